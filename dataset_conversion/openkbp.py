"""OpenKBP → raw data set with seven organs.

    python dataset_conversion/openkbp.py open-kbp -d 20 --workspace WS

Source: a clone of https://github.com/ababier/open-kbp (Babier et al., Med Phys 48, 2021, doi 10.1002/mp.14845; MIT licence):
provided-data/{train,validation,test}-pats/pt_N/ with, among others, ct.csv, voxel_dimensions.csv and ORGAN.csv. 200 training,
40 validation and 100 test patients; an organ without a file was not delineated. Targets (PTVs) and doses are not read.

The format is read as the repository's provided_code/data_loader.py reads it: a CSV lists indices into a flattened
128 × 128 × 128 grid in C order, with a value for the CT and without one for a mask; what is not listed is 0. The grid's axes
point to posterior, left and inferior, in this order: that is how parotids, larynx and brain stem lie in it, and how the
challenge's winner reads it (RTDosePrediction, "(y, x, -z)"). voxel_dimensions.csv holds the three voxel sizes in the
order of the axes. HU = stored value - 1000: the brain stem's median is then 30 HU (with the 1024 of other code it would be 6, near
water). Voxels outside the patient are stored as 0 and so become -1000 HU. Slices above and below the scan, which only fill the
grid up to 128, are cut off; nothing is resampled.
"""
from __future__ import annotations

import argparse
import warnings
from functools import partial
from pathlib import Path

import numpy as np
from parts.cases import Scan, SourceCase, warn_of_gaps
from parts.command import add_organs, add_parts, chosen_parts, new_target, source_parser
from parts.writing import convert

from c2f_nnunet.cli.common import entry
from c2f_nnunet.errors import DatasetError, ImageError
from c2f_nnunet.geometry import Geometry
from c2f_nnunet.io.checks import ct_values

ORGANS = ("Brainstem", "SpinalCord", "RightParotid", "LeftParotid", "Esophagus", "Larynx", "Mandible")
PARTS = {"train": "train-pats", "validation": "validation-pats", "test": "test-pats"}
NUMBERS = {"train": range(1, 201), "validation": range(201, 241), "test": range(241, 341)}
GRID = (128, 128, 128)  # posterior, left, inferior
WATER = 1000  # the stored value of 0 HU
ABOUT = {
    "description": "planning CTs of head-and-neck cancer patients with organs at risk (OpenKBP)",
    "reference": "Babier et al., Med Phys 48, 2021, doi 10.1002/mp.14845",
    "licence": "MIT",
}


def find_cases(source: Path, parts: dict[str, bool]) -> list[SourceCase]:
    """The patients of the chosen parts (part → for training), by number; what is missing of them is told."""
    root = source / "provided-data" if (source / "provided-data").is_dir() else source
    cases = []
    for part, training in parts.items():
        folders = [p for p in (root / PARTS[part]).glob("pt_*") if p.is_dir() and p.name[3:].isdecimal()]
        cases += [_case(folder, training) for folder in sorted(folders, key=lambda p: int(p.name[3:]))]
    if not cases:
        raise DatasetError(f"{source}: no folder pt_N below {', '.join(PARTS[part] for part in parts)}; give the clone of open-kbp")
    warn_of_gaps({part: [f"pt_{n}" for n in numbers] for part, numbers in NUMBERS.items()}, parts, [case.id for case in cases])
    return cases


def _case(folder: Path, training: bool) -> SourceCase:
    files = {organ: path for organ in ORGANS if (path := folder / f"{organ}.csv").is_file()}
    needed = (folder / "ct.csv", folder / "voxel_dimensions.csv", *files.values())
    return SourceCase(folder.name, training, tuple(files), needed, partial(read_scan, folder, files))


def read_scan(folder: Path, files: dict[str, Path]) -> Scan:
    """A patient's CT and masks on the scan's own slices; ImageError for CSVs that are missing, damaged or off the grid."""
    spacing = _numbers(folder / "voxel_dimensions.csv", (0,), header=0).ravel()
    if spacing.shape != (3,) or not np.isclose(spacing[0], spacing[1]):
        raise ImageError(f"{folder / 'voxel_dimensions.csv'}: holds {spacing.tolist()} instead of three sizes in mm, the first two equal; "
                         "clone the repository again")
    stored = _volume(folder / "ct.csv", (0, 1), np.float32)
    masks = {organ: _volume(path, (0,), bool) for organ, path in files.items()}
    used = np.flatnonzero(np.any([stored > 0, *masks.values()], axis=(0, 2, 3)))
    if not used.size:
        raise ImageError(f"{folder / 'ct.csv'}: lists no voxel; clone the repository again")
    scan = slice(used[0], used[-1] + 1)
    hu = ct_values(folder / "ct.csv", stored[scan] - WATER)
    geometry = Geometry(hu.shape, (float(spacing[2]), float(spacing[0]), float(spacing[1])))
    return Scan(hu, geometry, ((organ, mask[scan]) for organ, mask in masks.items()))


def _volume(path: Path, columns: tuple[int, ...], dtype: type) -> np.ndarray:
    """A CSV's volume (z, y, x), canonical: the second column's values where there is one, else True at the listed indices."""
    rows = _numbers(path, columns, header=1)
    flat, index = np.zeros(np.prod(GRID), dtype), rows[:, 0]
    wrong = (index != np.rint(index)) | (index < 0) | (index >= flat.size)
    if wrong.any():
        raise ImageError(f"{path}: {np.count_nonzero(wrong)} indices are not on the grid of {GRID}; clone the repository again")
    flat[index.astype(np.int64)] = rows[:, 1] if len(columns) == 2 else True
    return flat.reshape(GRID)[:, :, ::-1].transpose(2, 0, 1)


def _numbers(path: Path, columns: tuple[int, ...], header: int) -> np.ndarray:
    """(rows, columns) float64 of a CSV without its `header` first lines; a mask of no voxel has no rows."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "no data": an empty mask
            return np.loadtxt(path, delimiter=",", skiprows=header, usecols=columns, ndmin=2).reshape(-1, len(columns))
    except (OSError, ValueError) as e:
        raise ImageError(f"{path}: cannot be read as a CSV of OpenKBP ({e}); clone the repository again") from e


def parser() -> argparse.ArgumentParser:
    p = source_parser("openkbp.py", "Make a raw data set of OpenKBP's CTs and organs at risk.",
                      "the clone of the repository open-kbp, or its folder provided-data", "OpenKBP",
                      "python dataset_conversion/openkbp.py open-kbp -d 20 --workspace WS")
    add_parts(p, PARTS, train=("train", "validation"), test=("test",))
    add_organs(p)
    return p


def body(args: argparse.Namespace) -> None:
    cases = find_cases(args.source, chosen_parts(args))
    convert(new_target(args, cases, ORGANS, ABOUT), cases, args.update)


main = entry(parser, body)

if __name__ == "__main__":
    raise SystemExit(main())
