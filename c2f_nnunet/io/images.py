"""Volumes in and out of files: NIfTI by nibabel, NRRD and MHA by SimpleITK. The one door for image files.

Frames. A file's array is taken in reversed file order, (k, j, i), and its geometry in LPS mm; `read_image` and
`read_label` then bring both to the canonical orientation (see geometry.py), `write_label` puts a label map back.
SimpleITK reads truncated files and NaN voxels as zeros without a word, so NIfTI is left to nibabel and the
size of the voxel data of the others is compared with their headers before they are read.
"""
from __future__ import annotations

import gzip
import re
import warnings
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.volumeutils import apply_read_scaling

from ..errors import ImageError, WorkspaceError
from ..geometry import Geometry, Reorientation, canonical_geometry, from_canonical, reorientation, to_canonical
from . import durable
from .checks import (
    check_complete, check_forms, check_geometry, check_nothing_follows, check_raw_nifti, ct_values, label_values, mha_data, nrrd_data,
)  # fmt: skip

IMAGE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")
LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

sitk.ProcessObject.SetGlobalWarningDisplay(False)  # what ITK would print to stderr is checked here and raised


@dataclass(frozen=True, eq=False)
class Source:
    """Where an image came from, all that `write_label` needs to put labels back.

    geometry: of the file's array in (k, j, i) order. turn: file → canonical. header: a NIfTI file's header, else None.
    affine: a NIfTI file's exact 4×4 (RAS), else None.
    """

    path: Path
    geometry: Geometry
    turn: Reorientation
    header: nib.Nifti1Header | None = None
    affine: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Image:
    """A volume (z, y, x) in canonical orientation, its geometry, and the file it came from."""

    array: np.ndarray
    geometry: Geometry
    source: Source


def read_image(path: str | Path) -> Image:
    """A CT in HU: int16 where all values are whole numbers that fit, else float32.

    ImageError where the file is damaged, not a volume, not finite, constant, or without a sane geometry.
    """
    values, source = _load(Path(path))
    return canonical_image(ct_values(path, values), source)


def read_grid(path: str | Path) -> tuple[Geometry, np.dtype]:
    """An image's canonical grid and the type that its voxels are read as, from its header alone; ImageError as `read_image`."""
    path, ending = Path(path), _checked_ending(Path(path))
    if ending.startswith(".nii"):
        with _opened_nifti(path, ending) as (_, image, geometry):
            dtype = np.dtype(np.float32) if _is_scaled(image) else image.get_data_dtype()
    else:
        _, geometry, dtype = _opened_itk(path, ending)
    return canonical_geometry(geometry, reorientation(geometry)), dtype


def read_label(path: str | Path) -> Image:
    """A label map: uint8, or uint16 where an id is above 255. ImageError for fractional, negative or larger values."""
    values, source = _load(Path(path))
    return canonical_image(label_values(path, values), source)


def write_label(path: str | Path, labels: np.ndarray, source: Source) -> None:
    """Write canonical labels (z, y, x) durably in the source's exact grid and orientation, compressed, and read them back.

    The path's ending chooses the format. NIfTI to NIfTI keeps the source's header: sform, qform, their codes and units.
    """
    array = label_values(path, np.ascontiguousarray(from_canonical(labels, source.turn)))
    if array.shape != source.geometry.shape:
        raise ImageError(f"{path}: labels of shape {array.shape} do not fit {source.path} of shape {source.geometry.shape}; "
                         "give the labels of that image")
    _write(Path(path), array, source.geometry, source)


def write_volume(path: str | Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write an array and its geometry durably to .nii.gz, .nii, .nrrd or .mha, and read it back; 64-bit integers become 32-bit."""
    narrowed = {"bool": np.uint8, "int64": np.int32, "uint64": np.uint32}.get(array.dtype.name, array.dtype)
    if array.shape != geometry.shape:
        raise ImageError(f"{path}: array of shape {array.shape} differs from its geometry's {geometry.shape}; give its own geometry")
    _write(Path(path), np.ascontiguousarray(array.astype(narrowed, copy=False)), geometry, None)


def canonical_image(array: np.ndarray, source: Source) -> Image:
    """The image of a file's array (k, j, i) in canonical orientation."""
    turned = np.ascontiguousarray(to_canonical(array, source.turn))
    return Image(turned, canonical_geometry(source.geometry, source.turn), source)


def _ending(path: Path) -> str:
    for ending in IMAGE_ENDINGS:
        if path.name.lower().endswith(ending):
            return ending
    raise ImageError(f"{path}: not a known image format; use one of {', '.join(IMAGE_ENDINGS)}")


def _checked_ending(path: Path) -> str:
    ending = _ending(path)
    if not path.is_file():
        raise ImageError(f"{path}: no such image file; check the path")
    return ending


def _load(path: Path) -> tuple[np.ndarray, Source]:
    """A file's voxels (k, j, i) as stored, rescaled, and its checked geometry."""
    ending = _checked_ending(path)
    values, geometry, header, affine = _load_nifti(path, ending) if ending.startswith(".nii") else _load_itk(path, ending)
    return values, Source(path, geometry, reorientation(geometry), header, affine)


@contextmanager
def stated(path: str | Path):
    """Turn what the image libraries raise on a damaged file into an ImageError of one sentence; drop what they warn of and mend."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (OSError, EOFError, ValueError, KeyError, OverflowError, MemoryError, RuntimeError, zlib.error,
            nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError, nib.wrapstruct.WrapStructError) as e:
        lines = [line.split("ITK ERROR: ")[-1].strip() for line in str(e).splitlines() if line.strip() and "Reason: Success" not in line]
        reason = f"unknown code {e}" if isinstance(e, KeyError) else lines[-1] if lines else type(e).__name__  # ITK's reason comes last
        reason = re.sub(r"^\w+\(0x\w+\): ", "", reason)  # ITK's object and where it lies in memory
        raise ImageError(f"{path}: cannot be read ({reason}); copy or export the file again") from e


# NIfTI


@contextmanager
def _opened_nifti(path: Path, ending: str):
    """(open file, the image on it, its checked geometry) of a NIfTI-1 or -2 file; no voxel is read yet."""
    with stated(path), (gzip.open if ending.endswith("gz") else open)(path, "rb") as f:
        kind = nib.Nifti2Image if f.read(4) in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else nib.Nifti1Image
        f.seek(0)
        raw = kind.header_class.from_fileobj(f, check=False)  # unchecked: nibabel's checks would mend a bad spacing silently
        check_raw_nifti(path, raw, path.stat().st_size * (1100 if ending.endswith("gz") else 1))  # gzip packs 1032 : 1 at most
        f.seek(0)
        image = kind.from_file_map(kind.make_file_map({"image": f}), mmap=False)
        geometry = _from_affine(image.affine, image.shape[:3])
        check_geometry(path, geometry)
        check_forms(path, image.header, geometry)
        yield f, image, geometry


def _load_nifti(path: Path, ending: str):
    """(values (k, j, i), geometry, header, affine) of a NIfTI-1 or -2 file, read to its last byte."""
    with _opened_nifti(path, ending) as (f, image, geometry):
        values = image.dataobj.get_unscaled()
        end = image.dataobj.offset + values.nbytes
        if _is_scaled(image):
            values = _scaled(values, image.dataobj)
        while f.read(1 << 20):  # gzip compares checksum and length only at the very end
            pass
        check_nothing_follows(path, end, f.tell())
    return values.reshape(values.shape[:3], order="F").T, geometry, image.header, image.affine


def _is_scaled(image: nib.Nifti1Image) -> bool:
    return (image.dataobj.slope, image.dataobj.inter) != (1, 0)


def _scaled(raw: np.ndarray, stored) -> np.ndarray:
    """The values that a scaled file means, as float32, which holds every whole HU; slice by slice, since nibabel's are float64."""
    values = np.empty(raw.shape, np.float32, order="F")
    for k in range(raw.shape[2]):
        values[:, :, k] = apply_read_scaling(raw[:, :, k], stored.slope, stored.inter)
    return values


def _from_affine(affine: np.ndarray, shape_ijk) -> Geometry:
    """Geometry in (k, j, i) order and LPS of a RAS affine for (i, j, k)."""
    lps = LPS_FROM_RAS @ affine
    columns = lps[:3, 2::-1]
    spacing = np.linalg.norm(columns, axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):  # a zero column becomes NaN; check_geometry refuses it
        direction = columns / spacing + 0.0  # + 0.0: no negative zeros
    return _geometry(shape_ijk[::-1], spacing, lps[:3, 3] + 0.0, direction)


def to_affine(geometry: Geometry) -> np.ndarray:
    """The RAS affine for (i, j, k) of a geometry in (k, j, i) order and LPS; the inverse of `_from_affine`."""
    lps = np.eye(4)
    lps[:3, :3] = (np.asarray(geometry.direction) * geometry.spacing_mm)[:, ::-1]
    lps[:3, 3] = geometry.origin_mm
    return LPS_FROM_RAS @ lps


def _geometry(shape, spacing_mm, origin_mm, direction) -> Geometry:
    return Geometry(tuple(map(int, shape)), tuple(map(float, spacing_mm)), tuple(map(float, origin_mm)),
                    tuple(tuple(map(float, row)) for row in direction))


# NRRD and MHA


def _opened_itk(path: Path, ending: str) -> tuple[sitk.ImageFileReader, Geometry, np.dtype]:
    """The reader of an NRRD or MHA file, its checked geometry and its voxels' type; no voxel is read yet."""
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NrrdImageIO" if ending == ".nrrd" else "MetaImageIO")
    reader.SetFileName(str(path))
    with stated(path):
        (nrrd_data if ending == ".nrrd" else mha_data)(path)  # before ITK sees it, whose readers crash on some wrong headers
        reader.ReadImageInformation()
        size = reader.GetSize()
        if reader.GetNumberOfComponents() != 1:
            raise ImageError(f"{path}: its voxels are colours or vectors ({reader.GetNumberOfComponents()} numbers each); "
                             "export it as a greyscale image")
        if len(size) < 3 or any(n != 1 for n in size[3:]):
            raise ImageError(f"{path}: its shape {size} is not three-dimensional; give one 3D image per file")
        n = reader.GetDimension()
        direction = np.reshape(reader.GetDirection(), (n, n))[:3, 2::-1]
        geometry = _geometry(size[2::-1], reader.GetSpacing()[2::-1], reader.GetOrigin()[:3], direction)
        check_geometry(path, geometry)
        kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())  # "16-bit signed integer", "32-bit float"
        bits = int(re.search(r"(\d+)-bit", kind)[1])
        return reader, geometry, np.dtype(f"{'f' if 'float' in kind else 'u' if 'unsigned' in kind else 'i'}{bits // 8}")


def _load_itk(path: Path, ending: str):
    """(values (k, j, i), geometry, None, None) of an NRRD or MHA file whose voxel data are complete."""
    reader, geometry, dtype = _opened_itk(path, ending)
    with stated(path):
        start, compressed = (nrrd_data if ending == ".nrrd" else mha_data)(path)
        check_complete(path, start, compressed, int(np.prod(geometry.shape, dtype=object)) * dtype.itemsize)
        return sitk.GetArrayFromImage(reader.Execute()).reshape(geometry.shape), geometry, None, None


# Writing


def _write(path: Path, array: np.ndarray, geometry: Geometry, source: Source | None) -> None:
    """Write (k, j, i) durably in the format of the path's ending, in the exact frame of `source` where it is of the same format."""
    nifti = _ending(path).startswith(".nii")
    kept = source if nifti and source is not None and source.header is not None else None

    def write(temporary: Path) -> None:
        if nifti:
            _nifti(array, geometry, kept and kept.header).to_filename(temporary)
            return
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(geometry.spacing_mm[::-1])
        image.SetOrigin(geometry.origin_mm)
        image.SetDirection(np.asarray(geometry.direction)[:, ::-1].ravel().tolist())
        try:
            sitk.WriteImage(image, str(temporary), useCompression=True)
        except RuntimeError as e:
            raise OSError(str(e).splitlines()[-1]) from e

    def check(temporary: Path) -> None:
        try:
            values, written = _load(temporary)
        except ImageError as e:
            raise WorkspaceError(f"{path}: cannot be read back after writing; the disk may be full or failing") from e
        same_place = (np.array_equal(written.affine, kept.affine) if kept  # to the last bit
                      else np.allclose(to_affine(written.geometry), to_affine(geometry), atol=1e-3))
        if not same_place or not np.array_equal(values, array):
            raise WorkspaceError(f"{path}: reads back differently from what was written; the disk may be full or failing")

    durable.write_with(path, write, check)


def _nifti(array: np.ndarray, geometry: Geometry, header: nib.Nifti1Header | None) -> nib.Nifti1Image:
    """A NIfTI image of (k, j, i) voxels: in the given header's exact frame, or with the geometry as its sform."""
    if header is None:
        image = nib.Nifti1Image(array.T, to_affine(geometry), dtype=array.dtype)
        image.set_sform(to_affine(geometry), code=1)  # no qform: it could not hold a shear within the tolerance
        image.header.set_xyzt_units("mm")
        return image
    kept = header.copy()
    kept.set_data_dtype(array.dtype)
    kept["cal_min"] = kept["cal_max"] = 0  # the CT's display window would make labels invisible
    kept.extensions.clear()  # they describe the CT, and may name the patient
    kind = nib.Nifti2Image if isinstance(kept, nib.Nifti2Header) else nib.Nifti1Image
    return kind(array.T, None, kept)  # no affine: the header's forms stay bit for bit
