"""What a file must hold to be taken as a CT or a label map: complete voxel data, a sane grid, sane values.

Nothing here reads voxels by a library; images.py and dicom.py call these on what they read.
"""
from __future__ import annotations

import re
import zlib
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np

from ..errors import ImageError
from ..geometry import Geometry

SPACING_LIMITS_MM = (0.05, 50.0)
FORMS_TOLERANCE_MM = 0.1  # between a corner's places by sform and by qform
SHEAR_TOLERANCE = 1e-3  # cosine between two axes: 0.5 mm over a 500 mm scan, far above what float32 headers round
NRRD_SPACES = ("left-posterior-superior", "lps", "right-anterior-superior", "ras", "left-anterior-superior", "las")
_MHA_TYPE = r"MET_U?(CHAR|SHORT|INT|LONG|LONG_LONG)|MET_(FLOAT|DOUBLE)"


def ct_values(path: str | Path, values: np.ndarray) -> np.ndarray:
    """Finite, non-constant CT values as int16 where that loses nothing, else float32."""
    with np.errstate(over="ignore"):  # beyond float32 becomes infinite, which the next lines refuse
        values = values if values.dtype.kind in "iu" else values.astype(np.float32, copy=False)
    whole = values.dtype.kind in "iu"
    bad = 0 if whole else values.size - sum(np.count_nonzero(np.isfinite(part)) for part in values)  # slice by slice: no large copies
    if bad:
        raise ImageError(f"{path}: {bad} of {values.size} voxels are NaN or infinite; export the image again")
    low, high = values.min(), values.max()
    if low == high:
        raise ImageError(f"{path}: every voxel is {low:g}, so it shows nothing; export the image again")
    fits = -32768 <= low and high <= 32767 and (whole or all(np.array_equal(part, np.rint(part)) for part in values))
    return values.astype(np.int16 if fits else np.float32, copy=False)


def label_values(path: str | Path, values: np.ndarray) -> np.ndarray:
    """Values as uint8 or uint16; ImageError with the offending values and their counts."""
    if values.dtype.kind == "b":
        return values.astype(np.uint8)
    if values.dtype not in (np.uint8, np.uint16):  # of which every value is one
        _refuse_strange_labels(path, values)
    return values.astype(np.uint8 if values.max() < 256 else np.uint16, copy=False)


def _refuse_strange_labels(path: str | Path, values: np.ndarray) -> None:
    wrong = (values < 0) | (values > 65535)
    if values.dtype.kind == "f":
        wrong |= values != np.rint(values)  # true for NaN as well
    if wrong.any():
        found, counts = np.unique(values[wrong], return_counts=True)
        listed = ", ".join(f"{v:g} ({n} voxels)" for v, n in zip(found[:5], counts)) + (", …" if len(found) > 5 else "")
        raise ImageError(f"{path}: labels must be whole numbers from 0 to 65535 but it holds {listed}; export the label map again")


def check_geometry(path: str | Path, geometry: Geometry) -> None:
    """ImageError unless the grid is a finite, unsheared volume of believable spacing."""
    low, high = SPACING_LIMITS_MM
    if min(geometry.shape) < 2:
        raise ImageError(f"{path}: its shape {geometry.shape} is no volume; give a 3D image")
    if not np.isfinite([*geometry.spacing_mm, *geometry.origin_mm]).all():
        raise ImageError(f"{path}: its affine holds NaN or infinite numbers; export the image again")
    if not all(low <= s <= high for s in geometry.spacing_mm):
        listed = " × ".join(f"{s:g}" for s in geometry.spacing_mm)
        raise ImageError(f"{path}: its spacing (z, y, x) of {listed} mm is not within {low:g} to {high:g} mm; mend the header")
    direction = np.asarray(geometry.direction)
    shear = np.abs(direction.T @ direction - np.eye(3)).max()
    if not shear <= SHEAR_TOLERANCE:  # so that NaN is refused too
        raise ImageError(f"{path}: its axes are not at right angles (cosine {shear:.3g}): a sheared grid; resample it to a rectangular one")


def check_raw_nifti(path: Path, raw: nib.Nifti1Header, available: int) -> None:
    """What nibabel accepts or mends but a CT or label map must not have; `available`: bytes that the file can hold at most."""
    if raw["magic"].item().split(b"\0")[0] not in (b"n+1", b"n+2"):
        raise ImageError(f"{path}: does not begin as a NIfTI file; copy or export it again")
    shape, dtype = raw.get_data_shape(), raw.get_data_dtype()
    if dtype.kind not in "iuf":
        raise ImageError(f"{path}: its voxels are colours or complex numbers ({dtype}); export it as a greyscale image")
    if len(shape) < 3 or any(n != 1 for n in shape[3:]) or min(shape) < 1:
        raise ImageError(f"{path}: its shape {tuple(map(int, shape))} is not three-dimensional; give one 3D image per file")
    needed = int(raw["vox_offset"]) + int(np.prod(shape, dtype=object)) * dtype.itemsize
    if needed > available:
        raise ImageError(f"{path}: truncated: its header asks for {needed} bytes, more than the file holds; copy or export it again")
    spacing = raw["pixdim"][1:4]
    if not (spacing > 0).all():
        raise ImageError(f"{path}: its spacing {' × '.join(f'{s:g}' for s in spacing)} mm is not positive; mend the header")


def check_nothing_follows(path: Path, end: int, held: int) -> None:
    """ImageError where a NIfTI file, of `held` bytes, goes on after its last voxel, which ends at byte `end`.

    The format has nothing to put there (extensions stand before the voxels): the header asks for too few, and all of them are misplaced.
    """
    if held > end:
        raise ImageError(f"{path}: its header asks for {end} bytes but it holds {held}, so its shape or its voxels' type is wrong; "
                         "copy or export it again")


def check_forms(path: Path, header: nib.Nifti1Header, geometry: Geometry) -> None:
    """ImageError where the places of the voxels are unknown or told in two ways: sform, qform and pixdim must agree."""
    forms = [form for form, code in (header.get_sform(coded=True), header.get_qform(coded=True)) if code > 0]
    if not forms:
        raise ImageError(f"{path}: neither sform nor qform is set, so left and right are unknown; export it with its orientation")
    corners = np.array([(*corner, 1) for corner in product(*[(0, n - 1) for n in geometry.shape[::-1]])])
    apart_mm = np.abs(corners @ (forms[0] - forms[-1]).T).max()
    if not apart_mm <= FORMS_TOLERANCE_MM:
        raise ImageError(f"{path}: sform and qform place a corner {apart_mm:.3g} mm apart (over {FORMS_TOLERANCE_MM}); mend the header")
    zooms = np.array(header.get_zooms()[2::-1], float)
    if not np.allclose(zooms, geometry.spacing_mm, rtol=1e-2):
        raise ImageError(f"{path}: pixdim says a spacing (z, y, x) of {np.round(zooms, 4).tolist()} mm "
                         f"but the affine {np.round(geometry.spacing_mm, 4).tolist()} mm; mend the header")


def nrrd_data(path: Path) -> tuple[int, bool]:
    """(first byte of the voxel data, whether they are compressed) of an NRRD file."""
    with open(path, "rb") as f:
        if not f.readline(100).startswith(b"NRRD000"):
            raise ImageError(f"{path}: does not begin as an NRRD file; copy or export it again")
        fields = {}
        while (line := f.readline(1 << 16)).strip():
            key, _, value = line.decode("latin-1").partition(":")
            fields[key.strip().lower()] = value.strip().lower()
        elsewhere = fields.keys() & {"data file", "datafile", "byte skip", "line skip"}
        if elsewhere or fields.get("encoding") not in ("raw", "gzip", "gz"):
            raise ImageError(f"{path}: its voxels are not in the file itself, raw or gzip-compressed; save it as one such file")
        if fields.get("space") not in NRRD_SPACES and fields.get("dimension") != "3":
            raise ImageError(f"{path}: its shape ({fields.get('sizes')}) is not three-dimensional; give one 3D image per file")
        if fields.get("space") not in NRRD_SPACES:
            raise ImageError(f"{path}: its space is '{fields.get('space', '')}', so left and right are unknown; export it with a space")
        return f.tell(), fields["encoding"] != "raw"


def mha_data(path: Path) -> tuple[int, bool]:
    """(first byte of the voxel data, whether they are compressed) of an MHA file.

    Its numbers are checked here since ITK's reader crashes on some wrong ones and reads a wrong compressed size as zeros.
    """
    fields = {}
    with open(path, "rb") as f:
        while "ElementDataFile" not in fields and (line := f.readline(1 << 16)).strip():
            key, _, value = line.decode("latin-1").partition("=")
            fields[key.strip()] = value.strip()
        start = f.tell()
    if fields.get("ElementDataFile") != "LOCAL" or fields.get("BinaryData", "").lower() != "true":
        raise ImageError(f"{path}: its voxels are not in the file itself as binary data; save it as one such file")
    compressed = fields.get("CompressedData", "").lower() == "true"
    n = int(fields["NDims"]) if fields.get("NDims") in ("2", "3", "4") else 0
    numbers = {"DimSize": n, "ElementSpacing": n, "Offset": n, "Position": n, "Origin": n, "TransformMatrix": n * n, "CenterOfRotation": n,
               "ElementNumberOfChannels": 1, "CompressedDataSize": 1}
    wrong = [f"{key} = {fields[key]}" for key, count in numbers.items() if key in fields and len(_finite(fields[key])) != count]
    wrong += [f"{key} missing" for key in ("ObjectType", "NDims", "DimSize", "ElementSpacing") if key not in fields]
    if wrong or not n or not re.fullmatch(_MHA_TYPE, fields.get("ElementType", "")):
        wrong = wrong or [f"NDims = {fields['NDims']}, ElementType = {fields.get('ElementType')}"]
        raise ImageError(f"{path}: its header is damaged ({'; '.join(wrong)}); copy or export the file again")
    held, said = path.stat().st_size - start, fields.get("CompressedDataSize", "0")
    if compressed and held != int(float(said)):
        raise ImageError(f"{path}: truncated or damaged: it holds {held} of {said} bytes of compressed voxels; copy or export it again")
    return start, compressed


def _finite(text: str) -> list[float]:
    """The finite numbers in a header's text; none where anything else is among them."""
    try:
        found = [float(word) for word in text.split()]
    except ValueError:
        return []
    return found if np.isfinite(found).all() else []


def check_complete(path: Path, start: int, compressed: bool, expected: int) -> None:
    """ImageError unless the voxel data from byte `start` on are `expected` bytes; zlib.error for compressed ones with wrong checksum."""
    with open(path, "rb") as f:
        f.seek(start)
        if compressed:
            stream, found = zlib.decompressobj(47), 0  # 47: zlib (MHA) or gzip (NRRD), told apart by their first bytes
            while not stream.eof:
                block = stream.unconsumed_tail or f.read(1 << 20)
                inflated = len(stream.decompress(block, 1 << 24))  # in pieces: a small file may inflate to a huge one
                if not block and not inflated:
                    break
                found += inflated
            complete = stream.eof and found == expected
        else:
            found = path.stat().st_size - start
            complete = found == expected
    if not complete:
        raise ImageError(f"{path}: truncated or damaged: it holds {found} of {expected} bytes of voxels; copy or export it again")
