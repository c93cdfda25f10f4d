"""What a DICOM series says beyond its voxels: the patient, the study, and the object behind each slice.

RTSTRUCT and SEG refer to these. Images carry none of it, so that what names a patient goes only where a standard asks for it.
"""
from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Iterable

import numpy as np
import pydicom
from pydicom.datadict import dictionary_VR
from pydicom.errors import InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.valuerep import validate_value

from ..errors import ImageError
from ..geometry import Geometry
from .survey import read_header, reading

log = logging.getLogger(__name__)
TILT_TOLERANCE_DEGREES = 0.1  # directions are rounded
PLACE_SLICES = 0.1  # how far from a slice of the grid, in slices, a file may lie and still be that slice
COPIED = (  # the attributes that every object of a patient and study shares: type 1 and 2 of PS3.3 C.7.1.1 and C.7.2.1, and the description
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID",
    "AccessionNumber", "StudyDescription",
)  # fmt: skip
_NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "ImagePositionPatient")
_TAGS = [*_NEEDED, "FrameOfReferenceUID", "SpecificCharacterSet", *COPIED]


@dataclass(frozen=True)
class Instance:
    """One slice's file: its SOP class and instance UID, and the LPS centre of its first pixel in mm."""

    path: Path
    sop_class: str
    uid: str
    position_mm: tuple[float, ...]


@dataclass(frozen=True)
class SeriesReference:
    """A series as other DICOM objects refer to it. frame: frame of reference UID, "" where there is none.

    attributes: (keyword, value) of COPIED; the value is "" where it is missing or breaks the rules of its type, as `broken` ones do.
    """

    study: str
    series: str
    frame: str
    attributes: tuple[tuple[str, str], ...]
    instances: tuple[Instance, ...]
    broken: tuple[str, ...] = ()


def series_reference(files: Iterable[str | Path]) -> SeriesReference:
    """What the headers of one series' files say, in the order given; ImageError for what is no DICOM, damaged, or of several series."""
    headers = [(Path(path), _read(Path(path))) for path in files]
    if not headers:
        raise ImageError("no files of a DICOM series are given; give the series that the contours belong to")
    path, first = headers[0]
    instances = []
    for other, header in headers:
        with reading(other):
            if header.SeriesInstanceUID != first.SeriesInstanceUID:
                raise ImageError(f"{other}: is of another series than {path.name}; give the files of one series only")
            position = tuple(float(v) for v in header.ImagePositionPatient)
            if len(position) != 3 or not np.isfinite(position).all():
                raise ImageError(f"{other}: its position {position} is damaged; export it again")
            instances.append(Instance(other, str(header.SOPClassUID), str(header.SOPInstanceUID), position))
    with reading(path):
        texts = {keyword: _text(first, keyword) for keyword in COPIED}
        attributes, broken = tuple((k, text or "") for k, text in texts.items()), tuple(k for k, text in texts.items() if text is None)
        frame = str(first.get("FrameOfReferenceUID") or "")
        return SeriesReference(str(first.StudyInstanceUID), str(first.SeriesInstanceUID), frame, attributes, tuple(instances), broken)


def tell_broken(path: str | Path, series: SeriesReference) -> None:
    """Warn of the attributes that are empty in a file which refers to the series. By name alone: their values name a patient."""
    if series.broken:
        log.warning("%s: %s of the CT: not as DICOM wants it, so left empty here; mend it in the CT's files, or enter it where this file is "
                    "imported", path, ", ".join(series.broken))


def by_slice(series: SeriesReference, geometry: Geometry) -> tuple[Instance, ...]:
    """The series' instances in the order of the grid's slices (axis 0); ImageError unless they are one for each slice, in its place.

    So is it where what refers to them would not say which slice, or where, is meant: for equal UIDs, and without a frame of reference.
    """
    folder = series.instances[0].path.parent
    if not series.frame:
        raise ImageError(f"{folder}: the series has no frame of reference, so nothing can be placed in it; export the series again")
    place = geometry.index([instance.position_mm for instance in series.instances])[:, 0]
    nearest = np.rint(place).astype(int)
    order = np.argsort(nearest, kind="stable")
    if not np.array_equal(nearest[order], np.arange(geometry.shape[0])) or np.abs(place - nearest).max() > PLACE_SLICES:
        raise ImageError(f"{folder}: the {len(series.instances)} slices of the series are not the "
                         f"{geometry.shape[0]} axial slices of the label map; give the series that was segmented, and an axial one")
    first: dict[str, Instance] = {}
    for instance in series.instances:
        if (same := first.setdefault(instance.uid, instance)) is not instance:
            both = f"{same.path.name} and {instance.path.name}"
            raise ImageError(f"{folder}: {both} have one SOPInstanceUID, so nothing can refer to either; export the series again")
    return tuple(series.instances[i] for i in order)


def axial_slices(series: SeriesReference, geometry: Geometry) -> tuple[Instance, ...]:
    """`by_slice` of a canonical grid whose slices are axial, in which alone contours of an RTSTRUCT lie; else ImageError."""
    upright = abs(geometry.direction[2][0])  # how much of the slices' normal goes along the patient
    if upright < np.cos(np.radians(TILT_TOLERANCE_DEGREES)):
        tilt = np.degrees(np.arccos(upright))
        raise ImageError(f"{series.instances[0].path.parent}: its slices are tilted by {tilt:.2g}° from axial ones, and an RTSTRUCT holds "
                         "contours in axial planes only; leave it out, or give an axial reconstruction")
    return by_slice(series, geometry)


def _read(path: Path) -> pydicom.Dataset:
    try:
        header = read_header(path, _TAGS)
    except InvalidDicomError:
        raise ImageError(f"{path}: is no DICOM file; give the files of one series only") from None
    with reading(path):
        missing = [tag for tag in _NEEDED if header.get(tag) in (None, "")]
    if missing:
        raise ImageError(f"{path}: its header has no {', '.join(missing)}, so nothing can refer to it; export the series again")
    return header


def _text(header: pydicom.Dataset, keyword: str) -> str | None:
    """An attribute as text, "" where it is missing; None where it has several values or breaks its type's rules, as some anonymisers' do."""
    value = header.get(keyword)
    text = "" if value is None else str(value)
    try:
        validate_value(dictionary_VR(keyword), text, pydicom.config.RAISE)
    except ValueError:
        return None
    return None if isinstance(value, MultiValue) else text
