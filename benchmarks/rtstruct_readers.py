"""How other projects read our RTSTRUCTs: DSC per structure with the mask that was written, by rt-utils and by dcmrtstruct2nii,
and which part of the voxels' volume the contours enclose.

Structures are made up on a real CT: balls of 0.01 to 100 ml, a shell, a ball with a canal and a single voxel. Each reader gets an
environment of its own, kept in the folder ENVIRONMENTS; both are several years old and want older numpy and pydicom than this project.
Ends with 1 where a structure comes back below DSC 0.99, or 0.97 under 1 ml.

  python benchmarks/rtstruct_readers.py DICOM_SERIES_FOLDER ENVIRONMENTS
"""
from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import numpy as np
import pandas as pd

from c2f_nnunet.geometry import Geometry, to_canonical
from c2f_nnunet.io.dicom import find_series, read_series
from c2f_nnunet.io.images import Image, read_label
from c2f_nnunet.io.rtstruct_in import full_mask, read_rtstruct
from c2f_nnunet.io.rtstruct_out import write_rtstruct
from c2f_nnunet.io.series import series_reference
from c2f_nnunet.labels import LabelSet

PACKAGES = {
    "rt-utils": ["rt-utils==1.2.7", "pydicom<3", "numpy<2", "opencv-python-headless<4.12"],
    "dcmrtstruct2nii": ["dcmrtstruct2nii==5", "pydicom<3", "numpy<2"],
}
LEAST_DSC, LEAST_DSC_SMALL, SMALL_ML = 0.99, 0.97, 1.0
BALLS_ML = {"Ball_100ml": 100, "Ball_10ml": 10, "Ball_1ml": 1, "Ball_0p1ml": 0.1, "Ball_0p01ml": 0.01}


def structures(geometry: Geometry) -> tuple[np.ndarray, LabelSet]:
    """A label map of shapes side by side in the CT's middle slices, and their names."""
    labels, names = np.zeros(geometry.shape, np.uint8), [*BALLS_ML, "Shell", "Canal", "Voxel"]
    place = [np.arange(n).reshape([-1 if a == b else 1 for b in range(3)]) for a, n in enumerate(geometry.shape)]
    for number, name in enumerate(names, 1):
        line, column = divmod(number - 1, 4)
        centre = [geometry.shape[0] // 2, geometry.shape[1] * (1 + 2 * line) // 4, geometry.shape[2] * (1 + column) // 5]
        if name == "Voxel":
            labels[tuple(centre)] = number
            continue
        z, y, x = ((p - c) * s for p, c, s in zip(place, centre, geometry.spacing_mm))
        away = np.sqrt(z**2 + y**2 + x**2)
        radius = (BALLS_ML[name] * 750 / np.pi) ** (1 / 3) if name in BALLS_ML else 25
        shape = away <= radius
        if name == "Shell":
            shape &= away >= 20
        if name == "Canal":
            shape &= np.hypot(y + 0 * z, x) >= 6
        labels[shape] = number
    return labels, LabelSet(tuple(names), tuple(range(1, len(names) + 1)))


def environment(folder: Path, packages: list[str]) -> Path:
    """The Python of an environment with these packages; made where it is not there."""
    if not (folder / "installed").exists():
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", *packages], check=True)
        (folder / "installed").write_text("\n".join(packages))
    return folder / "bin" / "python"


def read_by(reader: str, python: Path, series: Path, rtstruct: Path, out: Path, image: Image) -> dict[str, np.ndarray]:
    """Structure → its canonical mask as another project's reader sees it."""
    script = Path(__file__).resolve().parent / "peers" / "read_rtstruct.py"
    subprocess.run([python, script, reader, series, rtstruct, out], check=True)
    if reader == "rt-utils":
        return {path.stem: to_canonical(np.load(path), image.source.turn) for path in out.glob("*.npy")}
    return {path.name[5:-7]: read_label(path).array > 0 for path in out.glob("mask_*.nii.gz")}


def area(polygon: np.ndarray) -> float:
    """The area in voxels of a closed polygon (n, 2); a keyhole's two sides cancel."""
    after = np.roll(polygon, -1, axis=0)
    return float((polygon[:, 0] * after[:, 1] - polygon[:, 1] * after[:, 0]).sum() / 2)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.count_nonzero(a & b) / max(np.count_nonzero(a) + np.count_nonzero(b), 1)


def compare(source: Path, environments: Path) -> pd.DataFrame:
    """Of each structure, written on the DICOM series in `source`: ml, the part in its contours, and the DSC by each reader."""
    (files,) = find_series(source).values()
    image, series = read_series(files), series_reference(files)
    labels, organs = structures(image.geometry)
    pythons = {reader: environment(environments / reader, packages) for reader, packages in PACKAGES.items()}
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "rt.dcm"
        write_rtstruct(path, labels, organs, image.source, series)
        ours = read_rtstruct(path, image.geometry, series)
        seen = {"ours": {s.name: full_mask(ours, s) for s in ours.structures}}
        seen |= {reader: read_by(reader, python, source, path, Path(temporary) / reader, image) for reader, python in pythons.items()}
    voxels = {organ: labels == i for organ, i in zip(organs.organs, organs.ids)}
    drawn = {s.name: sum(abs(area(p)) for ps in s.polygons.values() for p in ps) for s in ours.structures}  # voxels
    table = pd.DataFrame({reader: {organ: dice(masks.get(organ, np.zeros_like(v)), v) for organ, v in voxels.items()}
                          for reader, masks in seen.items()})  # fmt: skip
    table.insert(0, "ml", [round(v.sum() * image.geometry.voxel_mm3 / 1000, 3) for v in voxels.values()])
    table.insert(1, "of it in contours", [drawn[organ] / v.sum() for organ, v in voxels.items()])
    return table


def too_low(table: pd.DataFrame) -> list[str]:
    """The structures that a reader does not see as they were written."""
    least = np.where(table["ml"] < SMALL_ML, LEAST_DSC_SMALL, LEAST_DSC)
    return list(table.index[table[["ours", *PACKAGES]].min(axis=1) < least])


def main(arguments: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("series", type=Path)
    p.add_argument("environments", type=Path)
    args = p.parse_args(arguments)
    table = compare(args.series, args.environments)
    print(table.round(4).to_string())
    if low := too_low(table):
        print(f"below DSC {LEAST_DSC}, or {LEAST_DSC_SMALL} under {SMALL_ML:g} ml: {', '.join(low)}")
    return 1 if low else 0


if __name__ == "__main__":
    sys.exit(main())
