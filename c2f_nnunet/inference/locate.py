"""Where each organ lies, from the fused coarse probabilities; and whether and how far a fine crop must grow.

Boxes are in the coarse grid's index frame (z, y, x). Probabilities are softmax, one volume (Z, Y, X) per organ, on the
canonical coarse grid. Every organ asked for comes back as a Located: none vanishes silently.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import cc3d
import numpy as np

from ..errors import PlanError
from ..geometry import Box, Geometry, bounding_box, boxed, centred_box
from ..io.records import record
from ..labels import LabelSet
from ..planning.plan import FinePlan, OrganPrior

MISSED, NO_EVIDENCE, OUTSIDE = "missed by the coarse stage", "no evidence in the coarse stage", "outside the scan"
SWAPPED, COINCIDE = "left and right swapped", "left and right coincide"
COINCIDE_IOU = 0.5
ACCEPTED_MEAN = 0.7  # of the fine probability: a mask of p > 0.5 that only just holds is a guess at an empty place
WHOLE = 0.5  # of the 1st percentile of the training volumes: measured, documentation/experiments.md, 13
ACCEPTED_GROSS = 2.0  # times the 99th percentile of the training volumes

Faces = tuple[tuple[bool, bool], tuple[bool, bool], tuple[bool, bool]]  # per axis (z, y, x): its low and its high face


@record
class Located:
    """Where an organ was looked for and how it was found.

    box: in coarse voxels; it may reach beyond the grid where it comes from the prior. centre_world_mm: the box's middle,
    LPS. extent_mm: of the box (z, y, x). confidence: mean probability inside the component, or inside the prior's box.
    how: "threshold 0.5" and so on down the plan's ladder, "prior", or "absent" (nothing to look for). volume_mm3: of the
    component, 0 where there is none.
    """

    organ: str
    box: Box
    centre_world_mm: tuple[float, float, float]
    extent_mm: tuple[float, float, float]
    confidence: float
    how: str
    flags: tuple[str, ...] = ()
    volume_mm3: float = 0.0


def threshold_of(how: str) -> float:
    """The threshold of a Located's `how`; 0 where it was found at none."""
    return float(how.removeprefix("threshold ")) if how.startswith("threshold ") else 0.0


class _Component(NamedTuple):
    """A connected component: its organ's channel, box, voxels, centroid index (z, y, x), and the sum of its probabilities."""

    channel: int
    box: Box
    voxels: int
    centroid: np.ndarray
    mass: float


def locate(probabilities: Mapping[str, np.ndarray], geometry: Geometry, plan: FinePlan, anchor_index) -> dict[str, Located]:
    """One Located per organ. anchor_index: the body's anchor (superior face, mid y, mid x) in the grid's index frame.

    The ladder of an organ: the component of the largest probability mass (not size: a large faint smear is no organ) at
    the plan's first threshold, where it has at least `min_volume_share` of the organ's median volume; then at the lower
    thresholds, among voxels that no other organ won; then the prior's place, moved by the median shift of the organs that
    were found. A prior place outside the grid, which covers the body in the scan, makes the organ "absent".
    """
    priors = {p.organ: p for p in plan.priors}
    if missing := [organ for organ in probabilities if organ not in priors]:
        raise PlanError(f"plan: no prior for {', '.join(missing)}; run c2f_plan_and_preprocess again")
    labels, winning = _winners(probabilities, plan.thresholds[0])
    first_rung: dict[int, list[_Component]] = {}
    for component in _components(labels, winning):
        first_rung.setdefault(component.channel, []).append(component)
    found, centroids = {}, {}
    for c, (organ, volume) in enumerate(probabilities.items(), start=1):
        least = plan.min_volume_share * priors[organ].volume_mm3[1] / geometry.voxel_mm3
        for rung, threshold in enumerate(plan.thresholds):
            rivals = first_rung.get(c, []) if rung == 0 else _fainter(volume, threshold, (labels == 0) | (labels == c))
            best = max(rivals, key=lambda r: r.mass, default=None)
            if best and best.voxels >= least:
                place = _located(organ, best.box, geometry, best.mass / best.voxels, f"threshold {threshold:g}")
                found[organ] = replace(place, volume_mm3=best.voxels * geometry.voxel_mm3)
                centroids[organ] = best.centroid
                break
    anchor_mm = geometry.world(anchor_index)[::-1]
    shifts = [geometry.world(at)[::-1] - anchor_mm - priors[organ].centre_mm for organ, at in centroids.items()]
    anchor_mm = anchor_mm + (np.median(shifts, axis=0) if shifts else 0)  # a scan cut at the brow has another superior face
    for organ, volume in probabilities.items():
        if organ not in found:
            found[organ] = _from_prior(priors[organ], volume, geometry, anchor_mm, plan.thresholds[-1])
    return with_side_flags({organ: found[organ] for organ in probabilities})


def _winners(probabilities: Mapping[str, np.ndarray], threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Channels (Z, Y, X): the organ with the largest probability above the threshold, 0 elsewhere; and that probability."""
    shape = next(iter(probabilities.values())).shape
    labels, winning = np.zeros(shape, np.uint16), np.full(shape, threshold, np.float32)
    for c, volume in enumerate(probabilities.values(), start=1):
        wins = volume > winning
        labels[wins], winning[wins] = c, volume[wins]
    return labels, winning


def _components(labels: np.ndarray, probability: np.ndarray) -> list[_Component]:
    """The 26-connected components of every label in one pass."""
    component, count = cc3d.connected_components(labels, connectivity=26, return_N=True)
    if not count:
        return []
    inside = np.flatnonzero(component)
    at = component.reshape(-1)[inside]
    mass = np.bincount(at, weights=probability.reshape(-1)[inside], minlength=count + 1)
    channel = np.zeros(count + 1, int)
    channel[at] = labels.reshape(-1)[inside]
    facts = cc3d.statistics(component)
    parts = []
    for k in range(1, count + 1):  # entry 0 is the background
        start, stop = zip(*((int(s.start), int(s.stop)) for s in facts["bounding_boxes"][k]))
        parts.append(_Component(int(channel[k]), Box(start, stop), int(facts["voxel_counts"][k]), facts["centroids"][k], float(mass[k])))
    return parts


def _fainter(volume: np.ndarray, threshold: float, free: np.ndarray) -> list[_Component]:
    """One organ's components above a lower threshold, where no other organ won."""
    mask = (volume > threshold) & free
    region = bounding_box(mask)
    if region is None:
        return []
    parts = _components(np.ascontiguousarray(mask[region.slices]).astype(np.uint8), np.ascontiguousarray(volume[region.slices]))
    return [p._replace(box=p.box.moved(region.start), centroid=p.centroid + region.start) for p in parts]


def _located(organ: str, box: Box, geometry: Geometry, confidence: float, how: str, flags: tuple[str, ...] = ()) -> Located:
    centre = tuple(float(v) for v in geometry.world(box.centre))
    return Located(organ, box, centre, boxed(geometry, box).extent_mm, float(confidence), how, flags)


def _from_prior(prior: OrganPrior, volume: np.ndarray, geometry: Geometry, anchor_mm: np.ndarray, lowest: float) -> Located:
    """The prior's box; `NO_EVIDENCE` where no voxel of the scan reaches half of the ladder's lowest threshold."""
    centre = geometry.index((anchor_mm + prior.centre_mm)[::-1])
    box = centred_box(centre, [max(1, int(np.ceil(e / s))) for e, s in zip(prior.extent_mm, geometry.spacing_mm)])
    if any(not -0.5 <= c <= n - 0.5 for c, n in zip(centre, geometry.shape)):
        return _located(prior.organ, box, geometry, 0.0, "absent", (OUTSIDE,))
    flags = (MISSED,) if volume.max() >= lowest / 2 else (MISSED, NO_EVIDENCE)
    return _located(prior.organ, box, geometry, volume[box.clipped(geometry.shape).slices].mean(), "prior", flags)


def accept_prior(probability: np.ndarray, voxel_mm3: float, prior: OrganPrior, min_volume_share: float) -> bool:
    """Whether a fine result (Z, Y, X) of a crop at a prior's place is the organ, so that one absent from the image stays empty.

    The heaviest component of p > 0.5 must have at least min_volume_share of the organ's median training volume, at most
    twice its 99th percentile, and a mean probability above 0.7: with nothing from the coarse stage to agree with, the fine
    network must be sure. Otherwise the organ is left out and its flags stay.
    """
    parts = _components((probability > 0.5).astype(np.uint8), probability)
    if not parts:
        return False
    best = max(parts, key=lambda part: part.mass)
    _, median, largest = prior.volume_mm3
    plausible = min_volume_share * median <= best.voxels * voxel_mm3 <= ACCEPTED_GROSS * largest
    return bool(plausible and best.mass / best.voxels > ACCEPTED_MEAN)


def is_whole(place: Located, prior: OrganPrior, plan: FinePlan, grid: Geometry, image: Geometry) -> bool:
    """Whether the coarse stage found the organ as such: at its first threshold, and as large as an organ, not a fragment.

    As large: half of the 1st percentile of its training volumes; or it comes within a coarse voxel of the scan's border (image), which
    may cut it. grid: the coarse one, that `place` was found in, whose voxels need not end with the scan.
    """
    if place.how != f"threshold {plan.thresholds[0]:g}":
        return False
    return place.volume_mm3 >= WHOLE * prior.volume_mm3[0] or any(any(f) for f in outside_faces(boxed(grid, place.box.grown(1)), image))


def with_side_flags(located: Mapping[str, Located]) -> dict[str, Located]:
    """Flag the pairs whose sides lie wrong: the left organ must be at the larger LPS x, and not in the right one's place."""
    flagged = dict(located)
    for pair in LabelSet(tuple(located), tuple(range(1, len(located) + 1))).pairs:
        left, right = (located[organ] for organ in pair)
        if "absent" in (left.how, right.how):
            continue
        wrong = COINCIDE if iou(left.box, right.box) > COINCIDE_IOU else SWAPPED
        if wrong == COINCIDE or left.centre_world_mm[0] <= right.centre_world_mm[0]:
            flagged |= {at.organ: replace(at, flags=(*at.flags, wrong)) for at in (left, right)}
    return flagged


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes' volumes."""
    common = np.prod([max(0, min(p, q) - max(m, n)) for m, n, p, q in zip(a.start, b.start, a.stop, b.stop)])
    return float(common / (np.prod(a.shape) + np.prod(b.shape) - common))


def outside_faces(crop: Geometry, image: Geometry) -> Faces:
    """The faces of a crop that lie on or beyond the image's border; both grids canonical, with the same directions."""
    low, high = image.index(crop.world((-0.5, -0.5, -0.5))), image.index(crop.world(np.array(crop.shape) - 0.5))
    near = 1e-3  # of an image voxel
    return tuple((bool(a <= -0.5 + near), bool(b >= n - 0.5 - near)) for a, b, n in zip(low, high, image.shape))


def touches(mask: np.ndarray, outside: Faces = ((False, False),) * 3) -> Faces:
    """The faces of the crop that the mask (Z, Y, X) reaches; those outside the image do not count: there is no more to see."""
    ends = tuple((mask.take(0, axis).any(), mask.take(-1, axis).any()) for axis in range(3))
    return tuple(tuple(bool(hit and not out) for hit, out in zip(*axis)) for axis in zip(ends, outside))


def grown(crop: Geometry, faces: Faces, share: float = 0.25, multiple=8) -> Geometry:
    """The crop, larger by at least `share` of its length at each of the faces, and an untouched axis as it is.

    multiple: what a grown axis' length must be a multiple of (an int, or one per axis: the network's strides).
    """
    start, stop = [], []
    for n, (low, high), step in zip(crop.shape, faces, np.broadcast_to(multiple, 3)):
        extra = int(np.ceil(n * (1 + share * (low + high)) / step - 1e-9) * step) - n if low or high else 0
        before = extra // (low + high) if low else 0
        start.append(-before), stop.append(n + extra - before)
    return boxed(crop, Box(tuple(start), tuple(stop)))
