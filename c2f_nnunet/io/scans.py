"""A scan to segment: one image file, or the files of one DICOM series. One way to read either, and to tell whether it changed."""
from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Union

import numpy as np

from ..geometry import Geometry
from . import durable
from .dicom import read_series, series_geometry
from .images import Image, read_grid, read_image

Scan = Union[Path, tuple[Path, ...]]  # an image file, or a DICOM series' files


def is_series(scan: Scan) -> bool:
    return isinstance(scan, tuple)


def place_of(scan: Scan) -> Path:
    """What messages call a scan: its file, or its series' folder."""
    return scan[0].parent if is_series(scan) else scan


def read_scan(scan: Scan) -> Image:
    """A CT in HU from either; ImageError as `read_image` and `read_series` raise it."""
    return read_series(scan) if is_series(scan) else read_image(scan)


def scan_grid(scan: Scan) -> tuple[Geometry, np.dtype]:
    """The canonical grid and the type that voxels are read as, from the headers alone: a series' HU may be fractions, so float32."""
    return (series_geometry(scan), np.dtype(np.float32)) if is_series(scan) else read_grid(scan)


def scan_sha256(scan: Scan) -> str:
    """Hex SHA-256 of an image file; for a series, that of its files' hashes, whatever their names and order."""
    if not is_series(scan):
        return durable.sha256(scan)
    return hashlib.sha256("".join(sorted(map(durable.sha256, scan))).encode()).hexdigest()
