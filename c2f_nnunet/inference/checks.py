"""Questions asked of every predicted organ: was it found, how sure is it, does it look and lie as in the training set, was it cut off?

Each check is a small function from plain numbers to a `Check`. Limits come from `limits`; where one could not be derived, its
check is left out. Points are millimetres (z, y, x) from the body's anchor.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..geometry import Geometry
from ..io.records import record
from .agreement import Evidence
from .cascade import OrganReport, Segmentation
from .limits import EDGE_SHARE, Limit, Limits3, OrganLimits, among_mm, held_share, others_shift_mm
from .locate import COINCIDE, MISSED, SWAPPED, Faces, threshold_of
from .shapes import Shape, shapes

SIDE_FLAGS = (SWAPPED, COINCIDE)  # of the coarse stage; asked of the final masks by `check_sides`
ALONG = (("lower", "higher"), ("farther to the front", "farther to the back"), ("farther to the right", "farther to the left"))
FACES = (("lower", "upper"), ("front", "back"), ("right", "left"))


@record
class Check:
    """One question and its answer. limit: (lowest, highest) of `value` that passes, None on an open side; sentence: for people.

    The lowest 0 of agreement and sides does not pass itself: masks must overlap, and a left organ lie to the left.
    """

    name: str
    value: float | None
    limit: Limit
    passed: bool
    sentence: str


@record
class Checked:
    """All that was asked of one organ in one case. confidence: 0…1, the evidence in one number; expected_dsc: 0…1, after held-out results,
    None where there are too few or the organ is empty."""

    case: str
    organ: str
    confidence: float
    evidence: Evidence
    needs_a_look: bool
    checks: tuple[Check, ...]
    expected_dsc: float | None = None

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(c for c in self.checks if not c.passed)


@dataclass(frozen=True)
class Scene:
    """A finished scan as the checks see it. scan_mm: where the scan begins and ends along z; offsets_mm: of the organs' centroids."""

    shapes: Mapping[str, Shape]
    size: tuple[int, int, int]
    scan_mm: tuple[float, float]
    offsets_mm: Mapping[str, tuple[float, float, float]]


def scene(channels: np.ndarray, organs: tuple[str, ...], image: Geometry, anchor_mm: np.ndarray) -> Scene:
    """Measure a label map (channels, canonical). anchor_mm: the body's anchor in world mm (z, y, x)."""
    found = shapes(channels, organs)
    n, middle = image.shape[0], [(m - 1) / 2 for m in image.shape[1:]]
    ends = [float(image.world((z, *middle))[2] - anchor_mm[0]) for z in (-0.5, n - 0.5)]
    offsets = {o: tuple(map(float, image.world(s.centroid)[::-1] - anchor_mm)) for o, s in found.items()}
    return Scene(found, image.shape, (ends[0], ends[1]), offsets)


def check_case(case: str, result: Segmentation, scan: Scene, limits: Mapping[str, OrganLimits], pairs, first: float) -> tuple[Checked, ...]:
    """Every organ's checks. pairs: (left, right) organs; limits: of the organs that have any; first: the plan's first threshold."""
    return tuple(_check_organ(case, report, scan, limits, pairs, first) for report in result.reports)


def _check_organ(case: str, report: OrganReport, scan: Scene, limits: Mapping[str, OrganLimits], pairs, first: float) -> Checked:
    organ, known, shape = report.organ, limits.get(report.organ), scan.shapes.get(report.organ)
    least = first if known is None or known.threshold is None else min(first, known.threshold)
    checks = [check_found(report.volume_ml, report.how, report.flags, report.grown, least)]
    if known:
        shift = others_shift_mm(organ, scan.offsets_mm, {o: k.centre_mm for o, k in limits.items()})
        checks.append(check_scan(known.span_mm, scan.scan_mm, 0.0 if shift is None else float(shift[0]), known.in_scan))
    if shape and MISSED not in report.flags:  # a miss is told once, as such
        checks.append(check_agreement(report.evidence))
    if shape and known:
        checks += _check_shape(report, shape, scan, limits)
    checks += _check_pair(report, scan, known, pairs)
    answered = tuple(c for c in checks if c is not None)
    told = known and known.expected and report.volume_ml and report.evidence.inside
    expected = known.expected.of(report.volume_ml, report.evidence.inside) if told else None
    return Checked(case, organ, report.confidence, report.evidence, not all(c.passed for c in answered), answered, expected)


def _check_shape(report: OrganReport, shape: Shape, scan: Scene, limits: Mapping[str, OrganLimits]) -> list[Check | None]:
    """What is asked of an organ that is there, beside the scan's range and its partner."""
    organ, known = report.organ, limits[report.organ]
    place, beside = scan.offsets_mm[organ], among_mm(organ, scan.offsets_mm, {o: k.centre_mm for o, k in limits.items()})
    return [
        check_probability(report.evidence.inside, known.inside),
        check_volume(report.volume_ml, known.volume_ml),
        check_place("place in the body", place, known.place_mm),
        check_place("place among the organs", beside, known.among_mm),
        check_pieces(shape.components, shape.largest_share, known.largest_share),
        check_edge(touched(shape, scan.size), known.touching),
    ]


def _check_pair(report: OrganReport, scan: Scene, known: OrganLimits | None, pairs) -> list[Check | None]:
    """Of an organ with a partner: do both lie on their sides, and do their sizes go together? Where one is empty, the coarse stage alone tells."""
    pair = next((p for p in pairs if report.organ in p), ())
    if pair and all(o in scan.shapes for o in pair):
        partner = pair[1 - pair.index(report.organ)]
        ratio = scan.shapes[report.organ].voxels / scan.shapes[partner].voxels
        left, right = (scan.offsets_mm[o][2] for o in pair)
        return [check_sides(left - right, report.flags), check_ratio(ratio, partner, known.ratio if known else None)]
    return [check_sides(None, report.flags)] if pair and set(report.flags) & set(SIDE_FLAGS) else []


def touched(shape: Shape, size: Sequence[int]) -> Faces:
    """The scan's faces that the organ's box reaches: per axis (z, y, x) the low and the high one."""
    return tuple((a == 0, b == n) for a, b, n in zip(shape.box.start, shape.box.stop, size))


# The checks: plain numbers in, a Check out; None where there is no limit to compare with.

def check_found(volume_ml: float, how: str, flags: Sequence[str], grown: bool, least: float) -> Check:
    """Whether the organ is there, and the coarse stage found it at a threshold that is usual; with what else was flagged.

    least: the lowest usual threshold.
    """
    said = [f for f in flags if f not in SIDE_FLAGS]
    usual = how.startswith("threshold") and threshold_of(how) >= least
    if how not in ("coarse", "absent") and not usual:
        said.append(f"found at {how}" if volume_ml else f"looked for at {how}")
    if not volume_ml:
        said.insert(0, "empty")
    passed, said = not said, said or [f"found, {volume_ml:.{_digits(volume_ml)}f} ml"]
    said += ["box grown once"] if grown else []  # worth knowing, but no sign of a fault
    return Check("found", volume_ml, (None, None), passed, "; ".join(said))


def check_agreement(evidence: Evidence) -> Check | None:
    """Whether the masks of the views, of the folds and of both stages overlap at all; the value is the least of the three DSCs."""
    known = {"the views'": evidence.views, "the folds'": evidence.folds, "the coarse and the fine": evidence.stages}
    values = [v for v in known.values() if v is not None]
    if not values:
        return None
    apart = [f"{whose} masks do not overlap" for whose, v in known.items() if v == 0]
    return Check("agreement", min(values), (0.0, None), not apart, "; ".join(apart) or f"views, folds and stages agree at a DSC of {min(values):.2f} or more")


def check_probability(inside: float, least: float | None) -> Check | None:
    """Whether the mean probability inside it is one to be expected after held-out results."""
    if least is None:
        return None
    said = f"mean probability {inside:.3f}, to be expected are {least:.3f} or more"
    return _between("probability", inside, (least, None), said)


def check_volume(volume_ml: float, limit: Limit | None) -> Check | None:
    """Whether its size is one to be expected of the training cases."""
    if limit is None:
        return None
    digits = _digits(limit[1])
    return _between("volume", volume_ml, limit, f"{volume_ml:.{digits}f} ml, to be expected are {limit[0]:.{digits}f} to {limit[1]:.{digits}f} ml")


def check_place(name: str, at_mm: Sequence[float] | None, limits: Limits3 | None) -> Check | None:
    """Whether it lies where the training cases have it; the value is how far (mm) it lies outside, on the axis where that is most."""
    if at_mm is None or limits is None:
        return None
    beyond = [(max(low - v, v - high), axis, bool(v > high)) for axis, (v, (low, high)) in enumerate(zip(at_mm, limits))]
    out_mm, axis, above = max(beyond)
    if out_mm <= 0:
        return Check(name, 0.0, (None, 0.0), True, f"{name} as in training")
    return Check(name, float(out_mm), (None, 0.0), False, f"{name}: {out_mm:.{0 if out_mm >= 1 else 1}f} mm {ALONG[axis][above]} than to be expected")


def check_pieces(components: int, largest_share: float, least: float | None) -> Check | None:
    """Whether it is in one piece, or in pieces no looser than on held-out cases."""
    if least is None:
        return None
    said = "in one piece" if components == 1 else f"in {components} pieces, the largest with {100 * largest_share:.1f} %"
    return _between("pieces", largest_share, (least, None), said)


def check_edge(faces: Faces, seldom: Sequence[Sequence[float]]) -> Check:
    """Whether it reaches a face of the scan that it mostly does not reach in training; the value counts such faces."""
    unusual = [FACES[axis][side] for axis in range(3) for side in (0, 1) if faces[axis][side] and seldom[axis][side] < EDGE_SHARE]
    said = f"cut by the scan's {' and '.join(unusual)} edge" if unusual else "not cut by the scan's edge more than in training"
    return Check("edge of the scan", float(len(unusual)), (None, 0.0), not unusual, said)


def check_scan(span_mm: tuple[float, float], scan_mm: tuple[float, float], shift_mm: float, least: float) -> Check:
    """Whether the scan reaches over the organ's usual place; the value is the part of it (0…1) that it holds."""
    share = held_share(span_mm, scan_mm, shift_mm)
    low, high = (s + shift_mm for s in span_mm)
    missing = [(scan_mm[0] - low, "ends {:.0f} mm above its lower end"), (high - scan_mm[1], "begins {:.0f} mm below its upper end")]
    said = " and ".join(text.format(mm) for mm, text in missing if mm > 0)
    return _between("range of the scan", share, (least, None), f"the scan {said}" if said else "the scan holds its usual place")


def check_sides(left_minus_right_mm: float | None, flags: Sequence[str]) -> Check:
    """Whether the left organ lies to the left of the right one (x grows to the left), in the result and in the coarse stage's boxes.

    left_minus_right_mm: None where one of them is empty in the result.
    """
    flagged = [f for f in flags if f in SIDE_FLAGS]
    passed = (left_minus_right_mm is None or left_minus_right_mm > 0) and not flagged
    said = "left and right lie on their sides" if passed else "; ".join(flagged) or "the left organ lies to the right of the right one"
    return Check("sides", None if left_minus_right_mm is None else float(left_minus_right_mm), (0.0, None), passed, said)


def check_ratio(ratio: float, partner: str, limit: Limit | None) -> Check | None:
    """Whether a pair's sizes go together as in the training cases."""
    if limit is None:
        return None
    said = f"{ratio:.2f} times the size of {partner}, to be expected are {limit[0]:.2f} to {limit[1]:.2f}"
    return _between("size beside its partner", ratio, limit, said)


def _digits(volume_ml: float) -> int:
    """Decimals for an organ of this size (ml): a lens or a cochlea has a tenth of a millilitre."""
    return 1 if volume_ml >= 1 else 3


def _between(name: str, value: float, limit: Limit, sentence: str) -> Check:
    low, high = limit
    return Check(name, float(value), limit, bool((low is None or value >= low) and (high is None or value <= high)), sentence)


# What is shown

def ordered(checked: Iterable[Checked]) -> list[Checked]:
    """Cases with the most failed checks first, of equals that with the least sure organ; within a case, organs that need a look first.

    An organ that is not there is not unsure: an empty reference looks the same.
    """
    checked = list(checked)
    failed, least = Counter(), {}
    for c in checked:
        failed[c.case] += len(c.failed)
        least[c.case] = min(least.get(c.case, 1.0), c.confidence if c.evidence.inside else 1.0)
    return sorted(checked, key=lambda c: (-failed[c.case], least[c.case], c.case, not c.needs_a_look))


def as_rows(checked: Iterable[Checked]) -> list[dict]:
    """Plain data for tables and pages, in order: case, organ, how sure it is, needs_a_look, and what the failed checks say (`note`)."""
    return [
        {"case": c.case, "organ": c.organ, "expected_dsc": c.expected_dsc, "confidence": c.confidence, "views": c.evidence.views, "folds": c.evidence.folds,
         "stages": c.evidence.stages, "needs_a_look": c.needs_a_look, "note": "; ".join(f.sentence for f in c.failed)}
        for c in ordered(checked)
    ]  # fmt: skip
