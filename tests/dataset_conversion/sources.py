"""Tiny scans in the layout of the public data sets' downloads, for the converters' tests."""
import importlib
from pathlib import Path

import numpy as np
import pytest

from c2f_nnunet.data.dataset import Dataset, read_dataset
from c2f_nnunet.data.fingerprint import measure
from c2f_nnunet.geometry import Geometry
from c2f_nnunet.io.images import read_image, read_label, write_volume

FOLDER = Path(__file__).resolve().parents[2] / "dataset_conversion"
GRID = Geometry((6, 8, 10), (3.0, 1.0, 1.5), (10.0, -20.0, 30.0))  # x grows to the patient's left


def load(name: str):
    """A converter or a part of one as a module, found as the script itself finds its parts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        return importlib.import_module(name)


def ct(seed: int = 0) -> np.ndarray:
    """Soft tissue with a voxel of air around it; another seed makes another scan."""
    hu = np.full(GRID.shape, -1000, np.int16)
    hu[1:-1, 1:-1, 1:-1] = np.random.default_rng(seed).integers(0, 80, (4, 6, 8))
    return hu


def mask(z, y, x) -> np.ndarray:
    """A box of ones; each axis from (first, behind last)."""
    out = np.zeros(GRID.shape, np.uint8)
    out[slice(*z), slice(*y), slice(*x)] = 1
    return out


STEM, GLAND = mask((1, 5), (2, 6), (2, 8)), mask((2, 3), (3, 4), (4, 6))  # the gland lies inside the stem


def nrrd(path: Path, array: np.ndarray, geometry: Geometry = GRID) -> Path:
    write_volume(path, array, geometry)
    return path


def verified(folder: Path) -> Dataset:
    """The data set of a folder, after the planning command's verification of names and of every voxel."""
    dataset = read_dataset(folder)
    measure(dataset)
    return dataset


def image_of(folder: Path, case: str, part: str = "Tr") -> np.ndarray:
    return read_image(folder / f"images{part}" / f"{case}_0000.nii.gz").array


def label_of(folder: Path, case: str, part: str = "Tr") -> np.ndarray:
    return read_label(folder / f"labels{part}" / f"{case}.nii.gz").array


def known(dataset: Dataset) -> dict[str, tuple[str, ...] | None]:
    """Case → annotated organs; None: all."""
    return {case.id: case.annotated for case in (*dataset.training, *dataset.test)}
