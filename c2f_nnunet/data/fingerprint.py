"""Stage 0: one pass over the training cases that verifies every voxel-level rule and measures what the planner needs."""
from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, permutations
from typing import Callable, Sequence

import numpy as np
from scipy import ndimage

from ..errors import DatasetError, ImageError
from ..geometry import Box, Geometry, Reorientation, same_grid
from ..io.images import Image, read_image, read_label
from ..io.processes import each
from ..io.records import record
from ..labels import LabelSet
from .body import BODY_HU, body_anchor_mm, body_box, search_stride
from .dataset import Case, Dataset

log = logging.getLogger(__name__)
PERCENTILES = (0.5, 50, 99.5)
ORGAN_SAMPLES = 10_000
GRID_TOLERANCE_VOXELS = 0.05
ASIDE_MM = 10.0  # an organ farther from the midline lies on a side
SPACING_OUTLIER = 3.0  # ratio to the data set's median, on any axis
CANONICAL_LETTERS = (("S", "I"), ("P", "A"), ("L", "R"))  # where a canonical axis points: kept, flipped


@record
class OrganStats:
    """One organ in one case, in canonical (z, y, x) order.

    voxel_share: of all voxels of the scan. offset_mm: centroid minus body anchor (`body_anchor_mm`), along the world's
    axes. axial_slices: those that hold a voxel of it. hu: percentiles over at most 10,000 evenly spaced voxels.
    """

    volume_mm3: float
    extent_mm: tuple[float, float, float]
    voxel_share: float
    offset_mm: tuple[float, float, float]
    axial_slices: int
    box: Box
    hu: tuple[float, float, float]


@record
class CaseStats:
    """One training case, in canonical (z, y, x) order.

    orientation: of the file, as nibabel's axis codes ("RAS", "LPS" …). hu_body, mean_hu_body: over the voxels above
    -300 HU inside the body box, seen at about 4 mm. annotated: the organs known here; those of them without a voxel
    are not in `organs`.
    """

    id: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    orientation: str
    body_box: Box
    body_extent_mm: tuple[float, float, float]
    hu_body: tuple[float, float, float]
    mean_hu_body: float
    annotated: tuple[str, ...]
    organs: dict[str, OrganStats]


@record
class Fingerprint:
    """All that the planner knows of a data set. pairs: (left, right) organs."""

    dataset: str
    labels: LabelSet
    cases: tuple[CaseStats, ...]
    pairs: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Measured:
    """What one case gave: statistics and the hash of its pixels, or else its problems."""

    stats: CaseStats | None
    digest: str
    problems: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def measure(dataset: Dataset, processes: int = 1, on_case: Callable[[str], None] | None = None) -> Fingerprint:
    """Verify and measure every training case; the same result for any number of processes.

    on_case(id) is called after each case, in order. DatasetError lists every bad case at once; what is only doubtful
    becomes a warning, logged and kept in the fingerprint.
    """
    measured = []
    results = each(partial(_measure_case, labels=dataset.labels), dataset.training, processes, lambda case: f"{case.id} ({case.image})")
    for result, case in zip(results, dataset.training):
        measured.append(result)
        if on_case:
            on_case(case.id)
    if problems := [p for m in measured for p in m.problems]:
        bad = sum(bool(m.problems) for m in measured)
        raise DatasetError(f"{dataset.name}: {bad} of {len(measured)} training cases cannot be used: " + "\n  ".join(["", *problems]))
    cases = tuple(m.stats for m in measured)
    _refuse_organs_never_seen(dataset, cases)
    warnings = [w for m in measured for w in m.warnings]
    warnings += _spacing_warnings(cases) + _swapped_sides(cases, dataset.labels.pairs) + _nameless_pairs(cases, dataset.labels) + _twins(measured)
    for warning in warnings:
        log.warning("%s", warning)
    return Fingerprint(dataset.name, dataset.labels, cases, dataset.labels.pairs, tuple(warnings))


def _measure_case(case: Case, labels: LabelSet) -> _Measured:
    """Everything about one case; what is wrong with it is returned, so that the other cases are still looked at."""
    images, problems = [], []
    for read, path in ((read_image, case.image), (read_label, case.label)):
        try:
            images.append(read(path))
        except ImageError as e:
            problems.append(str(e))
    if problems:
        return _Measured(None, "", tuple(problems))
    image, label = images
    boxes = _boxes(label.array)
    if problems := _grid_problems(case, image.geometry, label.geometry) + _undeclared(case, label.array, boxes, labels):
        return _Measured(None, "", tuple(problems))
    known = labels.organs if case.annotated is None else case.annotated
    warnings = []
    if image.array.min() > BODY_HU:
        lowest = f"{case.id}: the lowest value is {image.array.min()}, so there is no air in the image"
        warnings.append(f"{lowest}; make sure that its values are Hounsfield units")
    for organ, i in zip(labels.organs, labels.ids):
        if organ not in known and i in boxes:
            warnings.append(
                f"{case.id}: the label map holds {organ} ({_count(label.array, i, boxes[i])} voxels), "
                "which dataset.json's 'annotated' leaves out; it is taken as unknown there"
            )
    there = {organ: (i, boxes[i]) for organ, i in zip(labels.organs, labels.ids) if organ in known and i in boxes}
    stats = _case_stats(case.id, image, label, known, there)
    # the shape belongs to the hash: two scans of few values may hold the same bytes
    digest = hashlib.sha256(repr(image.array.shape).encode() + image.array.tobytes()).hexdigest()
    return _Measured(stats, digest, (), tuple(warnings))


def _boxes(label: np.ndarray) -> dict[int, Box]:
    """Label id → its tightest box, for every id other than 0 that has a voxel."""
    found = enumerate(ndimage.find_objects(label), start=1)
    return {i: Box(*zip(*((s.start, s.stop) for s in slices))) for i, slices in found if slices}


def _count(label: np.ndarray, value: int, box: Box) -> int:
    return int(np.count_nonzero(label[box.slices] == value))


def _grid_problems(case: Case, image: Geometry, label: Geometry) -> list[str]:
    """How the label's grid differs from the image's: one sentence, or none."""
    remedy = "export the label on the image grid"
    if label.shape != image.shape:
        return [f"{case.id}: label shape {label.shape} differs from image {image.shape}; {remedy}"]
    if same_grid(label, image, GRID_TOLERANCE_VOXELS):
        return []
    tolerance = f"its corners may be {GRID_TOLERANCE_VOXELS} voxels apart"
    centred = replace(label, origin_mm=image.origin_mm)  # what still differs with one origin is the spacing or the direction
    if not same_grid(replace(centred, direction=image.direction), image, GRID_TOLERANCE_VOXELS):
        what, one, other = "spacing (z, y, x)", _numbers(label.spacing_mm) + " mm", _numbers(image.spacing_mm) + " mm"
    elif not same_grid(centred, image, GRID_TOLERANCE_VOXELS):
        what, one, other = "direction", *("; ".join(_numbers(row) for row in g.direction) for g in (label, image))
    else:
        what, one, other = "origin (x, y, z)", _numbers(label.origin_mm) + " mm", _numbers(image.origin_mm) + " mm"
    return [f"{case.id}: label {what} {one} differs from image {other} ({tolerance}); {remedy}"]


def _numbers(values) -> str:
    return ", ".join(f"{v:.6g}" for v in values)


def _undeclared(case: Case, label: np.ndarray, boxes: dict[int, Box], labels: LabelSet) -> list[str]:
    found = [f"{i} ({_count(label, i, box)} voxels)" for i, box in boxes.items() if i not in labels.ids]
    if not found:
        return []
    return [f"{case.id}: {case.label} holds labels that dataset.json does not declare: {', '.join(found)}; declare or remove them"]


def _case_stats(case_id: str, image: Image, label: Image, known: Sequence[str], organs: dict[str, tuple[int, Box]]) -> CaseStats:
    """Statistics of a sound case; organs: name → (label id, box) of the known ones that are there."""
    geometry = image.geometry
    body = body_box(image.array, geometry.spacing_mm)
    inside = image.array[body.slices][tuple(slice(None, None, n) for n in search_stride(geometry.spacing_mm))]
    dense = inside[inside > BODY_HU] if (inside > BODY_HU).any() else inside.ravel()
    anchor = body_anchor_mm(geometry, body)
    return CaseStats(
        id=case_id,
        shape=geometry.shape,
        spacing_mm=geometry.spacing_mm,
        orientation=orientation_codes(image.source.turn),
        body_box=body,
        body_extent_mm=_rounded(np.multiply(body.shape, geometry.spacing_mm)),
        hu_body=_rounded(np.percentile(dense, PERCENTILES)),
        mean_hu_body=round(float(dense.mean(dtype=np.float64)), 3),
        annotated=tuple(known),
        organs={name: _organ_stats(image, label.array, i, box, anchor) for name, (i, box) in organs.items()},
    )


def _organ_stats(image: Image, label: np.ndarray, value: int, box: Box, anchor_mm: np.ndarray) -> OrganStats:
    geometry, mask = image.geometry, label[box.slices] == value
    along = [mask.sum(axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]  # voxels per slice, across each axis
    voxels = int(along[0].sum())
    centroid = [a + counts @ np.arange(counts.size) / voxels for a, counts in zip(box.start, along)]
    hu = image.array[box.slices][mask][:: -(-voxels // ORGAN_SAMPLES)]
    return OrganStats(
        volume_mm3=round(voxels * geometry.voxel_mm3, 3),
        extent_mm=_rounded(np.multiply(box.shape, geometry.spacing_mm)),
        voxel_share=voxels / label.size,
        offset_mm=_rounded(geometry.world(centroid)[::-1] - anchor_mm),
        axial_slices=int(np.count_nonzero(along[0])),
        box=box,
        hu=_rounded(np.percentile(hu, PERCENTILES)),
    )


def _rounded(values) -> tuple[float, ...]:
    """To a thousandth (of a mm or HU), so that the JSON is readable."""
    return tuple(round(float(v), 3) for v in values)


def orientation_codes(turn: Reorientation) -> str:
    """The directions in which a file's first, second and third index grow, as nibabel's axis codes.

    >>> orientation_codes(Reorientation((0, 1, 2), (False, True, True)))
    'RAS'
    """
    codes = [""] * 3
    for letters, axis, flipped in zip(CANONICAL_LETTERS, turn.axes, turn.flips):
        codes[axis] = letters[flipped]
    return "".join(reversed(codes))  # arrays are in reversed file order


def _refuse_organs_never_seen(dataset: Dataset, cases: Sequence[CaseStats]) -> None:
    """DatasetError for organs that no case shows: there is nothing to plan or train with."""
    unseen = []
    for organ in dataset.labels.organs:
        known = any(organ in c.annotated for c in cases)
        if not any(organ in c.organs for c in cases):
            unseen.append(f"{organ} is absent in every case" if known else f"{organ} is annotated in no case")
    if unseen:
        raise DatasetError(f"{dataset.name}: {'; '.join(unseen)}; remove it from dataset.json's labels or add cases that show it")


def _spacing_warnings(cases: Sequence[CaseStats]) -> list[str]:
    """Cases whose spacing is far from the median, or fits it only with axes swapped (a header written in another order)."""
    median = np.median([c.spacing_mm for c in cases], axis=0)

    def apart(spacing_mm) -> float:
        return float(np.exp(np.abs(np.log(np.divide(spacing_mm, median))).max()))

    warnings = []
    for c in cases:
        says = f"{c.id}: spacing (z, y, x) {_numbers(c.spacing_mm)} mm"
        if apart(c.spacing_mm) > 2 and min(apart(p) for p in permutations(c.spacing_mm)) < 1.25:
            warnings.append(f"{says} fits the median {_numbers(median)} mm only with its axes swapped; check the file's header")
        elif apart(c.spacing_mm) > SPACING_OUTLIER:
            warnings.append(f"{says} is {apart(c.spacing_mm):.1f} times off the median {_numbers(median)} mm; check the file's header")
    return warnings


def _swapped_sides(cases: Sequence[CaseStats], pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Cases in which a left organ lies to the right of its twin: swapped labels, or a header that mirrors the patient."""
    return [
        f"{c.id}: {left} lies to the patient's right of {right}; check the label map and the orientation in the header"
        for c in cases for left, right in pairs
        if {left, right} <= c.organs.keys() and c.organs[left].offset_mm[2] < c.organs[right].offset_mm[2]
    ]


def _nameless_pairs(cases: Sequence[CaseStats], labels: LabelSet) -> list[str]:
    """Organs that lie like a left and a right one, but whose names tell no sides: mirrored patients would teach one for the other."""
    unsided = {o: [c.organs[o] for c in cases if o in c.organs] for o in labels.organs if o not in labels.sides}
    places = {o: np.median([s.offset_mm for s in stats], axis=0) for o, stats in unsided.items() if stats}
    volumes = {o: np.median([s.volume_mm3 for s in unsided[o]]) for o in places}
    return [
        f"{a} and {b} lie on either side of the patient like a left and a right organ, but their names do not say so, and mirrored patients "
        f"would teach one for the other; name them {a}_{'LR'[bool(places[a][2] < 0)]} and {b}_{'LR'[bool(places[b][2] < 0)]} in dataset.json"
        for a, b in combinations(places, 2)
        if places[a][2] * places[b][2] < 0 and min(abs(places[a][2]), abs(places[b][2])) > ASIDE_MM
        and np.abs(places[a] - places[b] * (1, 1, -1)).max() < ASIDE_MM and 0.5 < volumes[a] / volumes[b] < 2
    ]


def _twins(measured: Sequence[_Measured]) -> list[str]:
    """Cases with identical pixels: one of them may be held out while the other is trained on."""
    same: dict[str, list[str]] = {}
    for m in measured:
        same.setdefault(m.digest, []).append(m.stats.id)
    return [
        f"{', '.join(ids)} have identical image voxels; remove all but one, or give them one patient in dataset.json's 'patients'"
        for ids in same.values() if len(ids) > 1
    ]
