"""HaN-Seg (2023) → raw data set with 30 organs.

    python dataset_conversion/han_seg.py HaN-Seg -d 18 --workspace WS

Source: https://zenodo.org/records/7442914 (Podobnik et al., Med Phys 50, 2023, doi 10.1002/mp.16197): 42 patients as
set_1/case_XX/ with case_XX_IMG_CT.nrrd, case_XX_IMG_MR_T1.nrrd and case_XX_OAR_ORGAN.seg.nrrd, one segment each. The
masks lie on the CT's grid; the MR does not and is left out. An organ without a file was not delineated in that scan.
set_1/OAR_data.csv, which says how far each organ is there, is not read: a mask counts as the whole organ. Public code that uses the set
leaves case_19 out, since its masks do not fit its image; look at it before you train on it.

The eyes' anterior and posterior segments (Eye_AL, Eye_PR, ...) have no TG-263 name, and their names do not show the side to
a program that mirrors patients; they are always called Eye_A_L, Eye_A_R, Eye_P_L and Eye_P_R.
"""
from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from parts.cases import SourceCase, masked_case, warn_of_gaps, warn_of_unread
from parts.command import add_organs, new_target, source_parser
from parts.writing import convert

from c2f_nnunet.cli.common import entry
from c2f_nnunet.errors import DatasetError
from c2f_nnunet.io.survey import files_below

ORGANS = (  # in the order of the challenge's label ids, 1 to 30
    "A_Carotid_L", "A_Carotid_R", "Arytenoid", "Bone_Mandible", "Brainstem", "BuccalMucosa", "Cavity_Oral", "Cochlea_L", "Cochlea_R",
    "Cricopharyngeus", "Esophagus_S", "Eye_AL", "Eye_AR", "Eye_PL", "Eye_PR", "Glnd_Lacrimal_L", "Glnd_Lacrimal_R", "Glnd_Submand_L",
    "Glnd_Submand_R", "Glnd_Thyroid", "Glottis", "Larynx_SG", "Lips", "OpticChiasm", "OpticNrv_L", "OpticNrv_R", "Parotid_L", "Parotid_R",
    "Pituitary", "SpinalCord",
)  # fmt: skip
SIDED_NAMES = {"Eye_AL": "Eye_A_L", "Eye_AR": "Eye_A_R", "Eye_PL": "Eye_P_L", "Eye_PR": "Eye_P_R"}
IDS = tuple(f"case_{number:02d}" for number in range(1, 43))
CT = "_IMG_CT.nrrd"
ABOUT = {
    "description": "CTs of head-and-neck cancer patients with 30 organs at risk (HaN-Seg)",
    "reference": "Podobnik et al., Med Phys 50, 2023, doi 10.1002/mp.16197",
    "licence": "CC BY-NC-ND 4.0",
}


def find_cases(source: Path) -> list[SourceCase]:
    """Every case below `source`, in the order of their ids; what is missing of the set is told."""
    images = [path for path in files_below(source) if path.match(f"case_*{CT}")]
    cases = [_case(image) for image in sorted(images, key=lambda path: path.name)]
    if not cases:
        raise DatasetError(f"{source}: no file case_XX{CT} there or below; give the unpacked HaN-Seg folder")
    warn_of_gaps({"set_1": IDS}, ["set_1"], [case.id for case in cases])
    warn_of_unread(cases, lambda image: image.parent.glob(f"{image.name.removesuffix(CT)}_OAR_*.nrrd"))
    return cases


def _case(image: Path) -> SourceCase:
    name = image.name.removesuffix(CT)
    return masked_case(name, True, image, {organ: image.with_name(f"{name}_OAR_{organ}.seg.nrrd") for organ in ORGANS})


def parser() -> argparse.ArgumentParser:
    p = source_parser("han_seg.py", "Make a raw data set of HaN-Seg's CTs and their 30 organs; all are training cases.",
                      "the unpacked download: set_1/case_XX/, or a folder above or below it", "HaNSeg",
                      "python dataset_conversion/han_seg.py HaN-Seg -d 18 --workspace WS")
    add_organs(p)
    return p


def body(args: argparse.Namespace) -> None:
    cases = find_cases(args.source)
    target = new_target(args, cases, ORGANS, ABOUT)
    names = {organ: SIDED_NAMES.get(organ, name) for organ, name in target.names.items()}
    convert(replace(target, names=names), cases, args.update)


main = entry(parser, body)

if __name__ == "__main__":
    raise SystemExit(main())
