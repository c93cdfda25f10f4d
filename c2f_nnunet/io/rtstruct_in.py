"""RTSTRUCT in: the contours of each structure on a CT's canonical grid, and from there to masks, one structure at a time.

A contour belongs to the slice that it refers to where its points, which are millimetres in the patient, lie less than a slice from it;
otherwise the points decide. Nothing is added between contours: a slice without one is empty. On a slice a contour within another is a hole,
and one that crosses another is united with it. Every departure from the plain case is told in `notes`, and what cannot be used without
guessing in `refusal`.
"""
from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.errors import InvalidDicomError

from ..errors import ImageError
from ..geometry import Box, Geometry, uncrop
from .polygons import ON_EDGE_VOXELS, area_voxels, crossing, fill, repeated, window_of
from .series import SeriesReference
from .survey import read_dicom, reading

ON_SLICE = 0.1  # of the distance between slices: what is nearer to a slice than this lies on it, rounding included
ONE_PLANE = 0.05  # slices: contours nearer to each other than this were drawn in one plane
REFERRED = 0.97  # slices: a contour less far than this from the slice that it refers to belongs to it; a whole slice contradicts it
FARTHEST_VOXELS = 1e6  # a point farther off than this comes from a damaged file
XOR = "CLOSEDPLANAR_XOR"
CLOSED = ("CLOSED_PLANAR", XOR, "INTERPOLATED_PLANAR")  # the last is no standard's, but some systems write it
# how a contour's slice was found, where that is not the slice that it refers to and lies on
BARE = "referring to no slice: matched by position"
FOREIGN = "referring to slices of another series: matched by position"
APART = "referring to a slice elsewhere: matched by position"
OFF = "beside the slice referred to, by less than a slice: put on it"
# notes that a converter tells apart from the others
LEFT_EMPTY = "between its first and its last contour left empty"
NO_VOXEL = "with contours larger than a voxel that hold none: left empty"
EMPTY = "empty: it has no closed contours"


@dataclass(frozen=True, eq=False)
class Structure:
    """One structure (ROI). polygons: slice → its closed contours (n, 2) there, in fractional (row, column) indices of the CT's grid.

    colour: display colour, red, green and blue in 0 … 255, None where there is none. interpreted_type: such as "ORGAN" or "PTV", "" where
    there is none. notes: what the reader of a mask should know. refusal: why there is no mask of it, "" where there is one.
    united: slice → groups of numbers of its polygons that count as one (see polygons.fill), where there are any.
    """

    number: int
    name: str
    colour: tuple[int, int, int] | None
    interpreted_type: str
    polygons: dict[int, tuple[np.ndarray, ...]]
    notes: tuple[str, ...] = ()
    refusal: str = ""
    united: dict[int, list[tuple[int, ...]]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class RTStruct:
    """The structures of one file for a CT of this shape (z, y, x); notes: on the file as a whole."""

    path: Path
    shape: tuple[int, int, int]
    label: str
    structures: tuple[Structure, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class _Contour:
    """A contour as stored. points: (n, 3) fractional (z, y, x) indices. instances: SOP instance UIDs of the slices it refers to."""

    kind: str
    points: np.ndarray
    instances: tuple[str, ...]


def read_rtstruct(path: str | Path, geometry: Geometry, series: SeriesReference) -> RTStruct:
    """An RTSTRUCT's structures on the canonical grid of a CT, the one of `series`; their masks are made by `structure_mask`.

    ImageError where the file is damaged, no RTSTRUCT, or holds contours but none that can be used for this CT. A structure that alone
    cannot be used has a `refusal`: it is drawn in another frame of reference and refers to no slice of this CT (coordinates of two
    frames are not comparable without a registration, PS3.3 C.7.4.1), or its contours do not lie in this CT's slices. A frame of another
    name is let pass, with a note, where the contours refer to slices of this CT: anonymisers often rename the frames of CT and RTSTRUCT
    apart, and the references say what was drawn on. References to other slices are let pass, with a note, in the CT's own frame.
    """
    path = Path(path)
    try:
        with reading(path):
            return _read(path, read_dicom(path), geometry, series)
    except InvalidDicomError:
        raise ImageError(f"{path}: is no DICOM file; give the RTSTRUCT of the series") from None
    except struct.error as e:  # pydicom, where a file ends within a header
        raise ImageError(f"{path}: truncated or damaged ({e}); copy or export it again") from e


def structure_mask(rtstruct: RTStruct, structure: Structure) -> tuple[np.ndarray, Box]:
    """A structure's mask (z, y, x) in a box that holds it, and the box; ImageError for a refused structure, an empty box for an empty one.

    A voxel belongs to it where its centre lies inside the contours of its slice by the even-odd rule, or on one (see polygons.fill). Those
    that cross each other count as one.
    """
    if structure.refusal:
        raise ImageError(f"{rtstruct.path}: '{structure.name}': {structure.refusal}; leave it out or draw it on this CT")
    if not structure.polygons:
        return np.zeros((0, 0, 0), bool), Box((0, 0, 0), (0, 0, 0))
    points = np.concatenate([polygon for polygons in structure.polygons.values() for polygon in polygons])
    low, high = np.floor(points.min(axis=0) - ON_EDGE_VOXELS), np.ceil(points.max(axis=0) + ON_EDGE_VOXELS) + 1
    box = Box((min(structure.polygons), *map(int, low)), (max(structure.polygons) + 1, *map(int, high))).clipped(rtstruct.shape)
    mask = np.zeros(box.shape, bool)
    for z, polygons in structure.polygons.items():
        mask[z - box.start[0]] = fill(polygons, box.start[1:], box.shape[1:], structure.united.get(z, ()))
    return mask, box


def full_mask(rtstruct: RTStruct, structure: Structure) -> np.ndarray:
    """A structure's mask on the whole grid (z, y, x); as `structure_mask`."""
    mask, box = structure_mask(rtstruct, structure)
    return uncrop(mask, box, rtstruct.shape)


# What the file says


def _read(path: Path, dataset: pydicom.Dataset, geometry: Geometry, series: SeriesReference) -> RTStruct:
    """`read_rtstruct` of an opened file, whose values pydicom converts as they are asked for."""
    if dataset.get("Modality") != "RTSTRUCT":
        raise ImageError(f"{path}: is {dataset.get('Modality') or 'of no modality'} and no RTSTRUCT; give the RTSTRUCT of the series")
    _check_whole(path, dataset)
    drawn, kinds, named = _drawn(path, dataset, geometry), _interpreted_types(dataset), series.series in _named_series(dataset)
    depth = dict(zip((i.uid for i in series.instances), geometry.index([i.position_mm for i in series.instances])[:, 0].tolist()))
    structures, seen = [], Counter()
    for item in dataset.get("StructureSetROISequence") or ():
        number = int(item.ROINumber)
        seen[number] += 1
        colour, contours = drawn.pop(number, (None, ()))
        frame = str(item.get("ReferencedFrameOfReferenceUID") or _only_frame(dataset))
        name = item.get("ROIName") or f"ROI {number}"
        name = name if isinstance(name, str) else "\\".join(name)  # a backslash parts a name into several values
        plain = Structure(number, name.strip(), colour, kinds.get(number, ""), {})
        structures.append(_structure(plain, contours, frame, named, geometry, series.frame, depth))
    label = str(dataset.get("StructureSetLabel") or "")
    twice = [str(number) for number, count in seen.items() if count > 1]
    if twice or not structures:
        what = f"gives the number {', '.join(twice)} to several structures" if twice else "names no structures"
        raise ImageError(f"{path}: {what}; export it again")
    _check_usable(path, structures)
    notes = [f"contours of number {number}, which no structure has, are left out" for number, (_, contours) in drawn.items() if contours]
    return RTStruct(path, geometry.shape, label, tuple(structures), tuple(notes))


def _check_whole(path: Path, dataset: pydicom.Dataset) -> None:
    """ImageError where the file ends too early: pydicom would read what is left of a cut sequence without a word."""
    for element in dataset.elements():
        if isinstance(element, RawDataElement) and element.length != 0xFFFFFFFF and len(element.value or b"") < element.length:
            raise ImageError(f"{path}: truncated: it ends within {element.tag}; copy or export it again")
    if "ROIContourSequence" not in dataset:
        raise ImageError(f"{path}: has no ROIContourSequence, so nothing is drawn in it or it is truncated; export it again")


def _drawn(path: Path, dataset: pydicom.Dataset, geometry: Geometry) -> dict[int, tuple]:
    """ROI number → (colour or None, its contours)."""
    found = {}
    for item in dataset.get("ROIContourSequence") or ():
        number = int(item.ReferencedROINumber)
        colour = tuple(int(v) for v in item.get("ROIDisplayColor") or ())
        contours = [_contour(path, number, contour, geometry) for contour in item.get("ContourSequence") or ()]
        before = found.get(number, (None, []))
        found[number] = (colour if len(colour) == 3 else before[0], before[1] + contours)
    return found


def _contour(path: Path, number: int, item: pydicom.Dataset, geometry: Geometry) -> _Contour:
    """One item of a contour sequence, its points as indices; ImageError where they are no finite triples within reach."""
    stored = item.get_item("ContourData") if "ContourData" in item else None
    values = [] if stored is None or stored.value is None else stored.value
    if isinstance(values, bytes):  # not parsed by pydicom, which makes an object of each of perhaps a million numbers
        values = values.decode("ascii").strip(" \0")
        values = values.split("\\") if values else []
    points = np.array(values, float).ravel()
    if points.size % 3 == 0:
        points = geometry.index(points.reshape(-1, 3))
    if points.ndim != 2 or not (np.abs(points) < FARTHEST_VOXELS).all():
        raise ImageError(f"{path}: a contour of ROI number {number} is damaged (no points of three finite numbers near the CT); "
                         "export it again")
    instances = [str(image.get("ReferencedSOPInstanceUID") or "") for image in item.get("ContourImageSequence") or ()]
    return _Contour(str(item.get("ContourGeometricType") or "unknown"), points, tuple(filter(None, instances)))


def _interpreted_types(dataset: pydicom.Dataset) -> dict[int, str]:
    return {int(item.ReferencedROINumber): str(item.get("RTROIInterpretedType") or "")
            for item in dataset.get("RTROIObservationsSequence") or () if item.get("ReferencedROINumber") is not None}


def _named_series(dataset: pydicom.Dataset) -> set[str]:
    """The series that the structure set as a whole refers to."""
    return {str(item.get("SeriesInstanceUID") or "") for frame in dataset.get("ReferencedFrameOfReferenceSequence") or ()
            for study in frame.get("RTReferencedStudySequence") or () for item in study.get("RTReferencedSeriesSequence") or ()}


def _only_frame(dataset: pydicom.Dataset) -> str:
    """The one frame of reference that the structure set names; "" where it names none or several."""
    frames = {str(item.get("FrameOfReferenceUID") or "") for item in dataset.get("ReferencedFrameOfReferenceSequence") or ()}
    frames = frames or {str(dataset.get("FrameOfReferenceUID") or "")}
    return frames.pop() if len(frames) == 1 else ""


# What of it can be used on this CT


def _structure(plain: Structure, contours, frame: str, named: bool, geometry: Geometry, ct_frame: str, depth: dict) -> Structure:
    """The structure with its polygons by slice, or with its refusal, and with its notes.

    named: whether the file names the CT's series. depth: SOP instance UID of each slice of the CT → its fractional slice index.
    """
    notes, others = [], Counter(c.kind for c in contours if c.kind not in CLOSED)
    notes += [f"{_count(n, 'contour')} of type {kind} {'is' if n == 1 else 'are'} passed over" for kind, n in sorted(others.items())]
    closed = [c for c in contours if c.kind in CLOSED and len(c.points)]
    if not closed:
        return replace(plain, notes=(*notes, EMPTY))
    refers = any(not depth.keys().isdisjoint(c.instances) or (named and not c.instances) for c in closed)
    if frame and ct_frame and frame != ct_frame:
        if not refers:
            why = "it is drawn in another frame of reference than the CT's and does not refer to the CT"
            return replace(plain, notes=tuple(notes), refusal=why)
        notes.append("its frame of reference is not the CT's, but it refers to the CT")
    elif not refers and not (frame and ct_frame):
        notes.append("it names no frame of reference: taken as the CT's")
    spans = [float(np.ptp(c.points[:, 0])) for c in closed]
    if max(spans) > ON_SLICE:
        tilted = sum(span > ON_SLICE for span in spans)
        why = (f"{_count(tilted, 'contour')} of {len(closed)} not in the plane of the CT's axial slices "
               f"(through up to {max(spans) * geometry.spacing_mm[0]:.3g} mm of them)")
        return replace(plain, notes=tuple(notes), refusal=why)
    kept, placed = _by_slice(closed, depth, geometry.shape)
    polygons = {k: tuple(c.points[:, 1:] for c in members) for k, members in kept.items()}
    united, met = _united(polygons, {k for k, members in kept.items() if any(c.kind == XOR for c in members)}, geometry.shape[1:])
    return replace(plain, polygons=polygons, united=united, notes=(*notes, *placed, *met))


def _by_slice(closed: list[_Contour], depth: dict[str, float], shape) -> tuple[dict[int, list[_Contour]], list[str]]:
    """Slice → its contours, each once, and notes. Of several planes of contours at one slice, the nearest is taken.

    Contours of two planes must not be filled together: one inside another would make a hole. So would one that is there twice.
    """
    z = np.array([np.median(c.points[:, 0]) for c in closed])
    plane, number, first = np.empty(len(z), int), -1, -np.inf
    for i in np.argsort(z, kind="stable"):
        if z[i] - first > ONE_PLANE:  # from the first one, not the one before: planes a small step apart must not become one
            number, first = number + 1, z[i]
        plane[i] = number
    z = np.array([z[plane == number].mean() for number in range(plane.max() + 1)])[plane]
    slices, found_by = zip(*(_slice_of(float(at), c.instances, depth) for at, c in zip(z, closed)))
    planes = {}  # slice → plane → the numbers of its contours
    for i, k in enumerate(slices):
        if 0 <= k < shape[0]:
            planes.setdefault(k, {}).setdefault(plane[i], []).append(i)
    inside = [i for here in planes.values() for members in here.values() for i in members]
    nearest = {k: min(here.values(), key=lambda members: abs(z[members[0]] - k)) for k, here in sorted(planes.items())}
    kept = {k: _once([closed[i] for i in members]) for k, members in nearest.items()}
    taken, drawn = sum(map(len, nearest.values())), [c.points[:, 1:] for members in kept.values() for c in members]
    edge = np.array(shape[1:]) - 0.5
    told = [(found_by.count(how), how) for how in (BARE, FOREIGN, APART, OFF)]
    told += [(len(closed) - len(inside), "above or below the CT: left out"),
             (sum(found_by[i] in (BARE, FOREIGN, APART) and abs(z[i] - slices[i]) > ON_SLICE for i in inside),
              "between slices: put on the nearest"),
             (len(inside) - taken, "at a slice that has nearer ones: left out"),
             (taken - len(drawn), "there twice: taken once"),
             (sum(bool((p < -0.5).any() or (p > edge).any()) for p in drawn), "reaching beyond the CT's edge: cut there"),
             (sum(len(p) < 3 for p in drawn), "of one or two points: voxels under them only")]
    gap = max(kept) - min(kept) + 1 - len(kept) if kept else 0
    notes = [f"{_count(n, 'contour')} {what}" for n, what in told if n]
    return kept, notes + ([f"{_count(gap, 'slice')} {LEFT_EMPTY}"] if gap else [])


def _once(contours: list[_Contour]) -> list[_Contour]:
    """The contours of a plane without those that are there twice; those of type XOR mean it, and stay."""
    others = [c for c in contours if c.kind != XOR]
    twice = {id(others[i]) for i in repeated([c.points[:, 1:] for c in others])} if len(others) > 1 else ()
    return [c for c in contours if id(c) not in twice]


def _united(polygons: dict[int, tuple[np.ndarray, ...]], even_odd: set[int], shape) -> tuple[dict[int, list[tuple[int, ...]]], list[str]]:
    """Structure.united, but for the slices that are meant to be `even_odd`, and notes. shape: of a slice (rows, columns)."""
    united, over, empty = {}, 0, 0
    for k, drawn in polygons.items():
        groups, edges = crossing(drawn, shape) if k not in even_odd else ([], 0)
        united |= {k: groups} if groups else {}
        over += edges
        empty += max(map(area_voxels, drawn)) > 1 and not fill(drawn, *window_of(np.concatenate(drawn), shape), groups).any()
    told = [(sum(len(group) for groups in united.values() for group in groups), "contour", "crossing each other: united"),
            (over, "contour", "over the edge of the one around, by a voxel at most: taken as a hole"),
            (empty, "slice", NO_VOXEL)]
    return united, [f"{_count(n, thing)} {what}" for n, thing, what in told if n]


def _slice_of(z: float, instances: tuple[str, ...], depth: dict[str, float]) -> tuple[int, str]:
    """The slice that a contour at the fractional slice z belongs to, and how that was found ("" for the plain case).

    It is the one that it refers to where they lie less than a slice apart: writers that spread slices evenly where one is missing, as
    rt-utils does, put contours off their slices. A reference further off contradicts the points, which then decide.
    """
    nearest = int(np.floor(z + 0.5))
    referred = min((depth[uid] for uid in instances if uid in depth), key=lambda at: abs(at - z), default=None)
    if referred is None:
        return nearest, FOREIGN if instances else BARE
    if abs(referred - z) > REFERRED:
        return nearest, APART
    return round(referred), OFF if abs(referred - z) > ON_SLICE else ""


def _check_usable(path: Path, structures: list[Structure]) -> None:
    """ImageError where every structure that has contours is refused."""
    refused = [s for s in structures if s.refusal]
    if refused and not any(s.polygons for s in structures):
        raise ImageError(f"{path}: no structure can be used on this CT; '{refused[0].name}': {refused[0].refusal}; "
                         "give the CT that the contours were drawn on")


def _count(n: int, thing: str) -> str:
    return f"{n} {thing}{'' if n == 1 else 's'}"
