"""PDDCA (MICCAI 2015 head-and-neck challenge) → raw data set with nine organs.

    python dataset_conversion/pddca.py PDDCA-1.4.1 -d 17 --workspace WS

Source: https://www.imagenglab.com/newsite/pddca/, version 1.4.1 (Raudaschl et al., Med Phys 44, 2017, doi 10.1002/mp.12197):
48 planning CTs of RTOG 0522 as folders 0522cXXXX with img.nrrd and structures/ORGAN.nrrd, one 0/1 mask each. An organ
without a file was not delineated in that scan. SRC may hold the folders themselves or those of the downloaded parts.

The four parts are the challenge's: "train" (25 scans), "optional" (8 more for training),
"offsite" (10) and "onsite" (5) test scans. The ids of each are those in public code that uses the set: torch_em's pddca.py and
AnatomyNet's loader give the same ranges and check these counts. Masks overlap by a few voxels; the smaller organ keeps them.
"""
from __future__ import annotations

import argparse
from pathlib import Path

from parts.cases import SourceCase, masked_case, warn_of_gaps, warn_of_unread
from parts.command import add_organs, add_parts, chosen_parts, new_target, source_parser
from parts.writing import convert

from c2f_nnunet.cli.common import entry
from c2f_nnunet.errors import DatasetError
from c2f_nnunet.io.survey import files_below

ORGANS = ("BrainStem", "Chiasm", "Mandible", "OpticNerve_L", "OpticNerve_R", "Parotid_L", "Parotid_R", "Submandibular_L", "Submandibular_R")
PARTS = {
    "train": "0001 0002 0003 0009 0013 0014 0017 0057 0070 0077 0079 0081 0125 0132 0147 0149 0159 0161 0190 0195 0226 0248 0251 0253 0328",
    "optional": "0329 0330 0427 0433 0441 0455 0457 0479",
    "offsite": "0555 0576 0598 0659 0661 0667 0669 0708 0727 0746",
    "onsite": "0788 0806 0845 0857 0878",
}
IDS = {part: tuple(f"0522c{number}" for number in numbers.split()) for part, numbers in PARTS.items()}
ABOUT = {
    "description": "planning CTs of RTOG 0522 with organs at risk of the head and neck (PDDCA 1.4.1, MICCAI 2015 challenge)",
    "reference": "Raudaschl et al., Med Phys 44, 2017, doi 10.1002/mp.12197",
}


def find_cases(source: Path, parts: dict[str, bool]) -> list[SourceCase]:
    """The scans of the chosen parts (part → for training) below `source`, in the order of their ids; what is missing of them is told."""
    folders: dict[str, list[Path]] = {}
    for image in sorted(path for path in files_below(source) if path.name == "img.nrrd"):
        folders.setdefault(image.parent.name, []).append(image.parent)
    wanted = {name: training for part, training in parts.items() for name in IDS[part]}
    cases = [_case(folder, wanted[name]) for name in sorted(folders.keys() & wanted.keys()) for folder in folders[name]]
    if not cases:
        raise DatasetError(f"{source}: no folder 0522cXXXX with img.nrrd of the parts {', '.join(parts)}; give the unpacked PDDCA folder")
    warn_of_gaps(IDS, parts, folders, "left out")  # nothing says which part they are of
    warn_of_unread(cases, lambda image: (image.parent / "structures").glob("*.nrrd"))
    return cases


def _case(folder: Path, training: bool) -> SourceCase:
    masks = {organ: folder / "structures" / f"{organ}.nrrd" for organ in ORGANS}
    return masked_case(folder.name, training, folder / "img.nrrd", masks)


def parser() -> argparse.ArgumentParser:
    p = source_parser("pddca.py", "Make a raw data set of PDDCA, the data of the MICCAI 2015 head-and-neck challenge.",
                      "the unpacked download: folders 0522cXXXX, directly or in sub-folders", "PDDCA",
                      "python dataset_conversion/pddca.py PDDCA-1.4.1 -d 17 --workspace WS")
    add_parts(p, PARTS, train=("train", "optional"), test=("offsite", "onsite"))
    add_organs(p)
    return p


def body(args: argparse.Namespace) -> None:
    cases = find_cases(args.source, chosen_parts(args))
    convert(new_target(args, cases, ORGANS, ABOUT), cases, args.update)


main = entry(parser, body)

if __name__ == "__main__":
    raise SystemExit(main())
