"""DeepMind/UCLH's TCIA test and validation set → raw data set with 21 organs, by either of its readers.

    python dataset_conversion/deepmind_tcia.py tcia-ct-scan-dataset -d 19 --reader oncologist --workspace WS

Source: https://github.com/google-deepmind/tcia-ct-scan-dataset (Nikolov et al. 2018, arXiv 1809.04430), a clone with Git LFS:
nrrds/{test,validation}/{oncologist,radiographer}/CASE/ with CT_IMAGE.nrrd and segmentations/ORGAN.nrrd. 28 test scans (the
repository speaks of 24) and 7 validation scans (0522c0727a and 0522c0727b are of one patient). Four test scans spell their files with
underscores (Parotid_Lt.nrrd). An organ without a file was not delineated in that scan.

The readers' masks of one scan make two data sets; --reader chooses. Some organs lie inside others (spinal cord in spinal
canal, lens in orbit, brain stem in brain): the inner one keeps its voxels, so that the outer one has a hole there; leave
the outer ones out with --organs where that is not wanted. The 0522c scans are of RTOG 0522, and 14 of the 28 test scans are
PDDCA's: do not train on one of the two and test on the other without comparing the ids.
"""
from __future__ import annotations

import argparse
import re
from pathlib import Path

from parts.cases import SourceCase, masked_case, warn_of_gaps, warn_of_unread
from parts.command import add_organs, add_parts, chosen_parts, new_target, source_parser
from parts.writing import convert

from c2f_nnunet.cli.common import entry
from c2f_nnunet.errors import DatasetError

ORGANS = (
    "Brain", "Brainstem", "Cochlea-Lt", "Cochlea-Rt", "Lacrimal-Lt", "Lacrimal-Rt", "Lens-Lt", "Lens-Rt", "Lung-Lt", "Lung-Rt", "Mandible",
    "Optic-Nerve-Lt", "Optic-Nerve-Rt", "Orbit-Lt", "Orbit-Rt", "Parotid-Lt", "Parotid-Rt", "Spinal-Canal", "Spinal-Cord",
    "Submandibular-Lt", "Submandibular-Rt",
)  # fmt: skip
PARTS = {  # the ids of each as in the repository's folders
    "test": "0522c0017 0522c0057 0522c0161 0522c0226 0522c0248 0522c0251 0522c0331 0522c0416 0522c0419 0522c0427 0522c0457 0522c0479 "
            "0522c0629 0522c0659 0522c0667 0522c0669 0522c0708 0522c0768 0522c0770 0522c0773 0522c0845 "
            "TCGA-CV-7236 TCGA-CV-7243 TCGA-CV-7245 TCGA-CV-A6JO TCGA-CV-A6JY TCGA-CV-A6K0 TCGA-CV-A6K1",
    "validation": "0522c0014 0522c0519 0522c0576 0522c0727a 0522c0727b TCGA-CV-5977 TCGA-CV-5978",
}  # fmt: skip
READERS = ("oncologist", "radiographer")
ABOUT = {"reference": "Nikolov et al. 2018, arXiv 1809.04430", "licence": "CC BY 4.0"}


def find_cases(source: Path, parts: dict[str, bool], reader: str) -> list[SourceCase]:
    """The scans of the chosen parts (part → for training) with one reader's masks; what is missing of them is told."""
    root = source / "nrrds" if (source / "nrrds").is_dir() else source
    cases = [_case(image, training)
             for part, training in parts.items() for image in sorted((root / part / reader).glob("*/CT_IMAGE.nrrd"))]
    if not cases:
        raise DatasetError(f"{source}: no CASE/CT_IMAGE.nrrd below {'/ and '.join(f'{part}/{reader}' for part in parts)}/; "
                           "give the cloned repository or its folder nrrds")
    warn_of_gaps({part: ids.split() for part, ids in PARTS.items()}, parts, [case.id for case in cases])
    warn_of_unread(cases, lambda image: (image.parent / "segmentations").glob("*.nrrd"))
    return cases


def _case(image: Path, training: bool) -> SourceCase:
    name = image.parent.name
    folder = image.parent / "segmentations"
    masks = {organ: _either(folder / f"{organ}.nrrd", folder / f"{organ.replace('-', '_')}.nrrd") for organ in ORGANS}
    patient = re.sub(r"(?<=\d)[a-z]$", "", name)  # 0522c0727a → 0522c0727
    return masked_case(name, training, image, masks, patient)


def _either(usual: Path, other: Path) -> Path:
    return usual if usual.is_file() else other


def parser() -> argparse.ArgumentParser:
    p = source_parser("deepmind_tcia.py", "Make a raw data set of DeepMind's TCIA test and validation set, by one of its two readers.",
                      "the cloned repository tcia-ct-scan-dataset, or its folder nrrds", "DeepMindTCIA",
                      "python dataset_conversion/deepmind_tcia.py tcia-ct-scan-dataset -d 19 --reader oncologist --workspace WS")
    p.add_argument("--reader", choices=READERS, default=READERS[0], help=f"whose masks (default: {READERS[0]})")
    add_parts(p, PARTS, train=("test",), test=("validation",))
    add_organs(p)
    return p


def body(args: argparse.Namespace) -> None:
    cases = find_cases(args.source, chosen_parts(args), args.reader)
    about = {"description": f"planning CTs from TCIA with organs at risk drawn by the {args.reader} (DeepMind/UCLH)", **ABOUT}
    convert(new_target(args, cases, ORGANS, about, reader=args.reader), cases, args.update)


main = entry(parser, body)

if __name__ == "__main__":
    raise SystemExit(main())
