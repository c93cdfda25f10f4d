"""DICOM CT series in: the headers by pydicom, which decide where every slice lies, the voxels by SimpleITK.

A series is taken only if its slices are one complete, evenly spaced, rectangular stack; otherwise an ImageError says
which slices (files) break it. A tilted or uneven stack is not resampled: contours drawn on other slices than the
scanner's would be of no use to the planning system that has these. Positions and directions are DICOM's patient frame,
LPS in mm.
"""
from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Iterable

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.encaps import get_frame
from pydicom.errors import InvalidDicomError
from pydicom.tag import Tag
from pydicom.uid import (
    UID, ExplicitVRBigEndian, ImplicitVRLittleEndian, JPEG2000, JPEG2000Lossless, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless,
    RLELossless, UncompressedTransferSyntaxes,
)  # fmt: skip
from scipy import ndimage

from ..errors import ImageError
from ..geometry import Geometry, canonical_geometry, reorientation
from .checks import SHEAR_TOLERANCE, check_geometry, ct_values
from .images import Image, Source, canonical_image, stated
from .series import PLACE_SLICES, TILT_TOLERANCE_DEGREES
from .survey import find_series, read_dicom, read_header, reading

GAP_TOLERANCE = 0.02  # of the usual gap: positions are often rounded to 0.01 mm
DUPLICATE_MM = 0.01  # two slices nearer than this are at one place
ASIDE_MM = 0.05  # positions of slices are rounded, in short stacks too
AIR_HU = -1024  # what padding becomes: the usual lowest value of a CT
_JPEG = (JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless, JPEG2000)  # each stream begins and ends with a marker
_SIZ, _SIGNED_AT = b"\xff\x4f\xff\x51", 42  # how a JPEG 2000 stream begins; which byte says if it is signed (ISO 15444-1, A.5.1)
_NUMBERS = ("PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient")
_REQUIRED = ("SeriesInstanceUID", "Modality", "Rows", "Columns", "RescaleSlope", "RescaleIntercept", *_NUMBERS)
_TAGS = [*_REQUIRED, "FrameOfReferenceUID", "InstanceNumber", "NumberOfFrames", "GantryDetectorTilt", "PixelRepresentation",
         "PixelPaddingValue", "PixelPaddingRangeLimit", "PhotometricInterpretation"]
_OVERLAY_BITS = [Tag(0x6000 + 2 * i, 0x0102) for i in range(16)]  # where overlays are kept in voxels' spare bits, as was once allowed
_STORED = ["PixelData", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", *_OVERLAY_BITS]


@dataclass(frozen=True)
class Slice:
    """What one file's header says. name: its path within the series' folder.

    pixel_mm: distance between rows, then between columns. position_mm: LPS centre of the first pixel. orientation:
    direction along a row, then along a column (6 numbers). number: InstanceNumber, which may mean nothing.
    padding_hu: the range of values with which the scanner fills what it does not see; None where it names none. syntax: how
    the voxels are stored.
    """

    path: Path
    name: str
    series: str
    frame: str
    number: int | None
    shape: tuple[int, int]
    pixel_mm: tuple[float, ...]
    position_mm: tuple[float, ...]
    orientation: tuple[float, ...]
    tilt_degrees: float
    padding_hu: tuple[float, float] | None
    syntax: UID

    def __str__(self) -> str:
        return self.name


def read_series(source: str | Path | Iterable[str | Path]) -> Image:
    """One CT series in HU from a folder that holds just one series, or from the list of its files, in any order.

    ImageError, naming the slices, for missing or duplicate slices, uneven spacing, gantry tilt, slices of several
    series or grids, and for what `images.read_image` refuses in voxels and geometry.
    """
    place, slices, geometry = _checked(source)
    values = ct_values(place, np.stack([_voxels(s) for s in slices]))
    return canonical_image(values, Source(place, geometry, reorientation(geometry)))


def series_geometry(source: str | Path | Iterable[str | Path]) -> Geometry:
    """The canonical geometry that `read_series` would give, from the headers alone, and its errors of headers."""
    _, _, geometry = _checked(source)
    return canonical_geometry(geometry, reorientation(geometry))


def _checked(source: str | Path | Iterable[str | Path]) -> tuple[Path, list[Slice], Geometry]:
    """(folder, slices along their normal, geometry (k, j, i)) of one even, rectangular stack; ImageError where it is none."""
    if isinstance(source, (str, Path)):
        place, files = Path(source), _only_series(Path(source))
    else:
        files = [Path(f) for f in source]
        place = Path(os.path.commonpath([f.parent for f in files])) if files else Path()
    slices = [_read_slice(path, place) for path in files]
    if len(slices) < 2:
        raise ImageError(f"{place}: {len(slices)} DICOM slices are no volume; give the whole series")
    _check_alike(place, slices)
    slices, geometry = _stack(place, slices)
    check_geometry(place, geometry)
    return place, slices, geometry


def _only_series(folder: Path) -> tuple[Path, ...]:
    if not folder.is_dir():
        raise ImageError(f"{folder}: no such folder; give the folder of a DICOM series")
    series = find_series(folder)
    if not series:
        raise ImageError(f"{folder}: no DICOM CT slices there; give the folder of a DICOM series")
    if len(series) > 1:
        listed = "; ".join(f"{uid} ({len(files)} files, {files[0].name} …)" for uid, files in list(series.items())[:4])
        raise ImageError(f"{folder}: {len(series)} series are mixed there, {listed}; put each into a folder of its own")
    return next(iter(series.values()))


def _read_slice(path: Path, place: Path) -> Slice:
    """The slice's header as a Slice; ImageError for what is no single CT slice with a known place and HU scale."""
    try:
        header = read_header(path, _TAGS)
    except InvalidDicomError:
        raise ImageError(f"{path}: is no DICOM file; give the files of one series only") from None
    with reading(path):
        modality, frames = header.get("Modality"), int(header.get("NumberOfFrames") or 1)
        if modality not in (None, "", "CT") or frames != 1:  # first: files of several frames lack what is required below
            raise ImageError(f"{path}: is {modality} with {frames} frames; export the CT as one file per slice")
        missing = [tag for tag in _REQUIRED if header.get(tag) in (None, "")]
        if missing:
            raise ImageError(f"{path}: its header has no {', '.join(missing)}; export the CT's slices without scouts and reports")
        if (colours := header.get("PhotometricInterpretation", "MONOCHROME2")) != "MONOCHROME2":  # GDCM turns MONOCHROME1's values round
            raise ImageError(f"{path}: its voxels are {colours}, not MONOCHROME2 as a CT's; export the series again")
        pixel, position, orientation = (tuple(float(v) for v in header[tag].value) for tag in _NUMBERS)
        if (len(pixel), len(position), len(orientation)) != (2, 3, 6) or not np.isfinite(pixel + position + orientation).all():
            raise ImageError(f"{path}: its spacing {pixel}, position {position} or orientation {orientation} is damaged; export it again")
        slope, intercept = float(header.RescaleSlope), float(header.RescaleIntercept)
        if not slope or not np.isfinite([slope, intercept]).all():  # GDCM takes a slope of 0 as 1 without a word
            raise ImageError(f"{path}: its RescaleSlope {slope:g} and RescaleIntercept {intercept:g} give no HU; export the series again")
        number, tilt = header.get("InstanceNumber"), header.get("GantryDetectorTilt")
        return Slice(
            path, path.relative_to(place).as_posix(), str(header.SeriesInstanceUID), str(header.get("FrameOfReferenceUID", "")),
            None if number is None else int(number), (int(header.Rows), int(header.Columns)), pixel, position, orientation,
            0.0 if tilt is None else float(tilt), _padding_hu(header),
            UID(header.file_meta.get("TransferSyntaxUID") or ImplicitVRLittleEndian),
        )


def _padding_hu(header: pydicom.Dataset) -> tuple[float, float] | None:
    """The range of HU that PixelPaddingValue (and PixelPaddingRangeLimit) stand for, half a stored step wider on both sides."""
    stored = [int(v) for tag in ("PixelPaddingValue", "PixelPaddingRangeLimit") if (v := header.get(tag)) not in (None, "")]
    if not stored:
        return None
    # modulo: some scanners write a negative value as an unsigned number, and the other way round
    signed = header.get("PixelRepresentation") == 1
    values = [v % 65536 - 65536 * (signed and v % 65536 > 32767) for v in stored]
    slope = float(header.RescaleSlope)
    hu = [v * slope + float(header.RescaleIntercept) for v in values]
    return min(hu) - abs(slope) / 2, max(hu) + abs(slope) / 2


def _check_alike(place: Path, slices: list[Slice]) -> None:
    """ImageError naming the slices that differ from most others in series, frame of reference, shape, pixel size or direction."""
    for what, of, tolerance in (
        ("series", lambda s: s.series, None),
        ("frame of reference", lambda s: s.frame, None),
        ("rows and columns", lambda s: s.shape, 0),
        ("pixel spacing", lambda s: s.pixel_mm, 1e-4),
        ("orientation", lambda s: s.orientation, 1e-3),
    ):
        usual, count = Counter(map(of, slices)).most_common(1)[0]
        odd = [s for s in slices if of(s) != usual and (tolerance is None or np.abs(np.subtract(of(s), usual)).max() > tolerance)]
        if odd:
            raise ImageError(f"{place}: slices of different {what} are mixed: {_listed(odd)} with {of(odd[0])} "
                             f"among {count} with {usual}; give the slices of one series only")


def _stack(place: Path, slices: list[Slice]) -> tuple[list[Slice], Geometry]:
    """The slices sorted along their normal, and the geometry (k, j, i) of the stack; ImageError where they are no even stack."""
    row, column = np.reshape(slices[0].orientation, (2, 3))
    normal = np.cross(row, column)
    normal /= np.linalg.norm(normal) or 1.0  # rounded directions are not quite of length 1
    depth = np.array([s.position_mm for s in slices]) @ normal
    order = np.argsort(depth, kind="stable")
    slices, depth = [slices[i] for i in order], depth[order]
    gaps = np.diff(depth)
    same = [f"{slices[i]} and {slices[i + 1]}" for i in np.flatnonzero(gaps < DUPLICATE_MM)]
    if same:
        raise ImageError(f"{place}: duplicate slices at one place: {_listed(same)}; remove one of each, or export one series only")
    usual = float(np.median(gaps))
    odd = np.flatnonzero(np.abs(gaps - usual) > GAP_TOLERANCE * usual)
    if odd.size:
        raise ImageError(f"{place}: {_listed([_gap(slices[i], slices[i + 1], gaps[i], usual) for i in odd])}; export the whole series")
    off = np.abs(depth - np.linspace(depth[0], depth[-1], len(depth)))  # gaps that are each nearly the usual one may add up
    if off.max() > PLACE_SLICES * usual:
        raise ImageError(f"{place}: uneven spacing: {slices[off.argmax()]} lies {off.max():.3g} mm from its place in an even stack "
                         f"from {slices[0]} to {slices[-1]}; export the whole series")
    _check_tilt(place, slices, normal)
    spacing = (float((depth[-1] - depth[0]) / len(gaps)), *slices[0].pixel_mm)
    direction = tuple(tuple(map(float, axis)) for axis in np.stack([normal, column, row], axis=1) + 0.0)
    return slices, Geometry((len(slices), *slices[0].shape), spacing, slices[0].position_mm, direction)


def _gap(a: Slice, b: Slice, gap: float, usual: float) -> str:
    """One odd gap in words: which slices are missing between two files, or that the spacing is uneven there."""
    missing = round(gap / usual) - 1
    text = f"{a} and {b} are {gap:.4g} mm apart where {usual:.4g} mm is usual"
    if missing < 1 or abs(gap - (missing + 1) * usual) > GAP_TOLERANCE * gap:
        return f"uneven spacing: {text}"
    numbers = range(min(a.number, b.number) + 1, max(a.number, b.number)) if a.number is not None and b.number is not None else ()
    named = f" (number {', '.join(map(str, numbers))})" if len(numbers) == missing <= 5 else ""
    return f"{missing} slice{'s are' if missing > 1 else ' is'} missing{named}: {text}"


def _check_tilt(place: Path, slices: list[Slice], normal: np.ndarray) -> None:
    """ImageError for a tilted gantry: slices that slide sideways along the stack, or a header that says so; so are single slices aside."""
    ways = np.subtract([s.position_mm for s in slices], slices[0].position_mm)
    asides = np.linalg.norm(ways - np.outer(ways @ normal, normal), axis=1)
    length = float(np.linalg.norm(ways[-1]))
    if (aside := asides[-1] / length) > SHEAR_TOLERANCE:
        raise ImageError(f"{place}: gantry tilt: from {slices[0]} to {slices[-1]} the slices slide sideways by "
                         f"{np.degrees(np.arcsin(min(aside, 1))):.2g}°; resample the series to an untilted grid")
    if (moved := np.flatnonzero(asides > max(SHEAR_TOLERANCE * length, ASIDE_MM))).size:
        raise ImageError(f"{place}: slices that lie beside the others, by up to {asides.max():.3g} mm: "
                         f"{_listed([slices[i] for i in moved])}; export the slices of one reconstruction only")
    tilted = [s for s in slices if abs(s.tilt_degrees) > TILT_TOLERANCE_DEGREES]
    if tilted:
        raise ImageError(f"{place}: gantry tilt of {tilted[0].tilt_degrees:g}° in the header of {_listed(tilted)}; "
                         "resample the series to an untilted grid")


def _voxels(s: Slice) -> np.ndarray:
    """A slice's HU (rows, columns), rescaled by its own header."""
    _check_stored(s)
    with stated(s.path):
        array = sitk.GetArrayFromImage(sitk.ReadImage(str(s.path), imageIO="GDCMImageIO"))
    if array.shape != (1, *s.shape):
        raise ImageError(f"{s.path}: its voxels have the shape {array.shape} but its header says {s.shape}; export the series again")
    hu = array[0].astype(np.float32) if array.dtype.kind == "f" else array[0]  # GDCM gives float64, twice what a scan may take
    return _air_for_padding(hu, s.padding_hu)


def _check_stored(s: Slice) -> None:
    """ImageError where the voxels are compressed in a way that is not read, or are not as the header says.

    GDCM fills up what is missing, and cuts numbers that have more bits, without a word.
    """
    if s.syntax not in (*UncompressedTransferSyntaxes, *_JPEG, RLELossless):
        raise ImageError(f"{s.path}: its voxels are stored as {s.syntax.name}, which is not read; export the series uncompressed")
    with reading(s.path):
        stored = read_dicom(s.path, _STORED)
        if "PixelData" not in stored:
            raise ImageError(f"{s.path}: truncated or damaged: it holds no voxels; copy or export it again")
        needed = s.shape[0] * s.shape[1] * int(stored.BitsAllocated) // 8
        held = len(stored.PixelData)
        stream = get_frame(stored.PixelData, 0, number_of_frames=1).rstrip(b"\0") if s.syntax in _JPEG else b""
        signed = stored.get("PixelRepresentation") == 1
    if s.syntax in UncompressedTransferSyntaxes and held < needed:
        raise ImageError(f"{s.path}: truncated or damaged: it holds {held} of {needed} bytes of voxels; copy or export it again")
    if s.syntax in _JPEG and (stream[:2] not in (b"\xff\xd8", b"\xff\x4f") or stream[-2:] != b"\xff\xd9"):
        raise ImageError(f"{s.path}: truncated or damaged: its {s.syntax.name} stream has no beginning or no end; copy or export it again")
    if stream[:4] == _SIZ and stream[_SIGNED_AT : _SIGNED_AT + 1] > b"\x7f" and not signed:
        raise ImageError(f"{s.path}: its {s.syntax.name} stream holds signed numbers, but its header says unsigned; "
                         "export the series uncompressed")
    if s.syntax in UncompressedTransferSyntaxes:
        _check_bits(s, stored, signed)


def _check_bits(s: Slice, stored: pydicom.Dataset, signed: bool) -> None:
    """ImageError where uncompressed voxels hold numbers beyond the bits that the header says they have."""
    with reading(s.path):
        allocated = int(stored.BitsAllocated)
        bits = int(stored.get("BitsStored") or allocated)
        spare = int(stored.get("HighBit", bits - 1)) + 1 - bits  # bits below the numbers', 0 but in very old files
        overlays = any(stored[tag].value for tag in _OVERLAY_BITS if tag in stored)  # at bit 0, they are not in the voxels
        if allocated not in (8, 16, 32) or not 0 < bits < allocated or spare < 0 or overlays:
            return
        order = ">" if s.syntax == ExplicitVRBigEndian else "<"
        words = np.frombuffer(stored.PixelData, f"{order}{'i' if signed else 'u'}{allocated // 8}", s.shape[0] * s.shape[1])
        low, high = (int(v) >> spare for v in (words.min(), words.max()))
    if low < (-(2 ** (bits - 1)) if signed else 0) or high >= 2 ** (bits - signed):
        raise ImageError(f"{s.path}: its voxels hold numbers from {low} to {high}, but its header says {bits} bits, "
                         f"{'signed' if signed else 'unsigned'}; export the series again")


def _air_for_padding(hu: np.ndarray, padding_hu: tuple[float, float] | None) -> np.ndarray:
    """A slice (rows, columns) with AIR_HU instead of padding that reaches the slice's edge.

    Padding lies outside the round field of view. The same value elsewhere may be tissue: some scanners name 0 as padding.
    """
    if padding_hu is None or not (padded := (hu > padding_hu[0]) & (hu < padding_hu[1])).any():
        return hu
    parts = ndimage.label(padded)[0]
    at_edge = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
    widened = hu.astype(np.int32 if hu.dtype.kind in "iu" else np.float32)
    return np.where(np.isin(parts, at_edge[at_edge > 0]), AIR_HU, widened)


def _listed(things: list, most: int = 5) -> str:
    return ", ".join(map(str, things[:most])) + (f" and {len(things) - most} more" if len(things) > most else "")
