"""What DICOM files lie in a folder: CT series to read, and what is passed over. Reads headers only, by pydicom."""
from __future__ import annotations

import os
import struct
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator

import pydicom
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.uid import (
    CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage, MediaStorageDirectoryStorage,
)  # fmt: skip

from ..errors import ImageError
from .images import IMAGE_ENDINGS, stated

NO_DICOM = "no DICOM"
PREAMBLE = 132  # bytes before a DICOM file's elements: 128 of any content, and "DICM"
DICOM_ENDINGS = (".dcm", ".dicom", ".ima")
_CT_CLASSES = (CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
_ABOUT = ("SeriesInstanceUID", "PatientID", "FrameOfReferenceUID")
_REFERRING = ("DirectoryRecordSequence", "ReferencedImageSequence", "SourceImageSequence")
_TAGS = ["SOPClassUID", "Modality", "ImageType", *_ABOUT]


@dataclass(frozen=True)
class Series:
    """The files of one CT series, sorted by path. uid: "" for damaged files alone. patient, frame: PatientID and FrameOfReferenceUID, ""
    where there is none.
    """

    uid: str
    patient: str
    files: tuple[Path, ...]
    frame: str = ""


@dataclass(frozen=True)
class Survey:
    """What lies in a folder: its CT series, and by kind ("RTSTRUCT", "CT localiser", NO_DICOM, …) the files beside them.

    damaged: DICOM file → why its header cannot be read; what lies beside slices, ends as they do and is emptied counts as one. Such a
    file may belong to any series of its folder, and is listed in each of them so that reading these refuses it by name; where there is
    none, in a series of its own.
    """

    series: tuple[Series, ...]
    others: dict[str, tuple[Path, ...]]
    damaged: dict[Path, str]


def survey(folder: str | Path) -> Survey:
    """What a folder and its sub-folders hold, linked ones too; hidden files, and images of other formats, are left out."""
    slices, others, uids_in, about, damaged = defaultdict(list), defaultdict(list), defaultdict(set), {}, {}
    for path in sorted(files_below(Path(folder))):
        if path.name.lower().endswith(IMAGE_ENDINGS):
            continue
        try:
            kind, uid, *texts = _kind(path)
        except ImageError as e:
            damaged[path] = str(e)
            continue
        if kind == "CT":
            slices[uid].append(path)
            uids_in[path.parent].add(uid)
            about.setdefault(uid, texts)
        else:
            others[kind].append(path)
    like_slices = {(path.parent, _ending(path)) for files in slices.values() for path in files}
    no_dicom = others.pop(NO_DICOM, [])
    emptied = [path for path in no_dicom if (path.parent, _ending(path)) in like_slices and _is_emptied(path)]
    damaged |= {path: str(_no_dicom_error(path)) for path in emptied}
    if kept := [path for path in no_dicom if path not in damaged]:
        others[NO_DICOM] = kept
    alone = defaultdict(list)
    for path in damaged:
        beside = [slices[uid] for uid in uids_in.get(path.parent, ())]
        for files in beside or [alone[path.parent]]:
            files.append(path)
    series = [Series(uid, about[uid][0], tuple(sorted(files)), about[uid][1]) for uid, files in slices.items()]
    series += [Series("", "", tuple(files)) for files in alone.values()]
    return Survey(tuple(series), {kind: tuple(paths) for kind, paths in others.items()}, damaged)


def files_below(folder: Path) -> Iterator[Path]:
    """The files in a folder and its sub-folders, but for hidden ones. Links are followed, but no folder is visited twice."""
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (path for name in names if not name.startswith(".") and (path := Path(place) / name).is_file())


def find_series(folder: str | Path) -> dict[str, tuple[Path, ...]]:
    """Series UID → its files, for every CT series in a folder and its sub-folders; ImageError for a damaged file among them."""
    found = survey(folder)
    if found.damaged:
        raise ImageError(next(iter(found.damaged.values())))
    return {series.uid: series.files for series in found.series}


def rtstruct_references(path: Path) -> tuple[set[str], set[str]]:
    """(series UIDs, frame of reference UIDs) that an RTSTRUCT says it was drawn on; ImageError where its header is damaged."""
    header = read_header(path, ["ReferencedFrameOfReferenceSequence", "StructureSetROISequence", "FrameOfReferenceUID"])
    with reading(path):
        frames = header.get("ReferencedFrameOfReferenceSequence") or ()
        studies = [study for frame in frames for study in frame.get("RTReferencedStudySequence") or ()]
        series = {str(s.get("SeriesInstanceUID") or "") for study in studies for s in study.get("RTReferencedSeriesSequence") or ()}
        named = {str(item.get("FrameOfReferenceUID") or "") for item in (*frames, header)}
        named |= {str(roi.get("ReferencedFrameOfReferenceUID") or "") for roi in header.get("StructureSetROISequence") or ()}
        return series - {""}, named - {""}


@contextmanager
def reading(path: Path):
    """`stated`, and what pydicom raises on damaged headers besides."""
    try:
        with stated(path):
            yield
    except (AttributeError, TypeError, BytesLengthException, struct.error) as e:  # struct: the file ends within an element's header
        raise ImageError(f"{path}: its DICOM header is damaged ({type(e).__name__}); export the series again") from e


def read_dicom(path: Path, tags: list[str] | None = None, header_only: bool = False) -> pydicom.Dataset:
    """A file by pydicom, also one without the 128 bytes and "DICM" before its elements, as older systems write them.

    tags: the attributes to read (default: all). InvalidDicomError where it is no DICOM; other errors are for `reading` to state.
    """
    try:
        return pydicom.dcmread(path, stop_before_pixels=header_only, specific_tags=tags)
    except InvalidDicomError:
        if not _begins_with_element(path):
            raise
    dataset = pydicom.dcmread(path, stop_before_pixels=header_only, specific_tags=tags and [*tags, "SOPClassUID"], force=True)
    if not dataset.get("SOPClassUID"):
        raise InvalidDicomError(f"{path} says nothing of what it is")
    return dataset


def _begins_with_element(path: Path) -> bool:
    """Whether a file's first bytes are the head of an element of group 0002, or of 0008, the first one of most objects."""
    with open(path, "rb") as f:
        head = f.read(8)
    explicit, implicit = head[4:6].isupper(), head[6:] == b"\0\0"  # a VR of two letters, or a length below 64 kB
    return head[3:4] == b"\0" and (head[:2] == b"\x08\0" and (explicit or implicit) or head[:2] == b"\x02\0" and explicit)


def read_header(path: Path, tags: list[str] | None = None) -> pydicom.Dataset:
    """A file's header without the voxels. InvalidDicomError where it is no DICOM at all, ImageError where it is damaged or refers to a
    file outside of its folder."""
    with reading(path):
        header = read_dicom(path, tags and [*tags, *_REFERRING], header_only=True)
        outside = _outside(header)
    if outside:
        raise ImageError(f"{path}: refers to a file outside of its folder ({outside}); do not trust this export, or remove the file")
    return header


def _outside(header: pydicom.Dataset) -> str:
    """A file that the header refers to and that cannot lie below its folder, "" where there is none. None is ever opened."""
    for item in (i for name in _REFERRING for i in header.get(name) or ()):
        named = item.get("ReferencedFileID") or ""
        place = named if isinstance(named, str) else "/".join(map(str, named))
        if place.startswith("/") or ":" in place or ".." in place.split("/"):
            return place.strip()
    return ""


def _no_dicom_error(path: Path) -> ImageError:
    return ImageError(f"{path}: is no DICOM file; copy or export it again, or remove it")


def _ending(path: Path) -> str:
    """The file's ending, "" for none: a number is a part of a UID or counts the slices."""
    return "" if path.suffix[1:].isdigit() else path.suffix.lower()


def _is_emptied(path: Path) -> bool:
    """Whether a file is shorter than a DICOM file's preamble, or has nothing in its place, as copies that failed have."""
    with open(path, "rb") as f:
        begin = f.read(PREAMBLE)
    return len(begin) < PREAMBLE or not any(begin)


def _kind(path: Path) -> tuple[str, str, str, str]:
    """(kind, and as texts the tags of _ABOUT); kind: "CT" for a slice, else a modality, a class of objects or NO_DICOM.

    ImageError where the header is damaged.
    """
    try:
        header = read_header(path, _TAGS)
    except InvalidDicomError:
        if _ending(path) in DICOM_ENDINGS:  # an emptied or overwritten slice must not pass unseen
            raise _no_dicom_error(path) from None
        return NO_DICOM, "", "", ""
    with reading(path):
        storage = header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID")
        kind = header.get("Modality")
        if storage == MediaStorageDirectoryStorage:
            kind = "DICOMDIR"
        elif not kind or not header.get("SeriesInstanceUID"):
            raise ImageError(f"{path}: its header has no Modality or no SeriesInstanceUID; export it again, or remove it")
        elif kind == "CT" and "LOCALIZER" in (header.get("ImageType") or ()):
            kind = "CT localiser"
        elif kind == "CT" and storage and storage not in _CT_CLASSES:
            kind = f"CT as {storage.name}"  # screens that list the dose, for instance, are secondary captures
        return str(kind), *(str(header.get(tag) or "") for tag in _ABOUT)
