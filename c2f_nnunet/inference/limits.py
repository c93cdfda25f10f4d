"""What a result is compared with: each organ's size and place in the training set, and what held-out results were like.

Points along an axis are millimetres (z, y, x) from the body's anchor (`data.body.body_anchor_mm`), along the world's axes.
A Limit is (lowest, highest), None on the side that is open.
"""
from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy.special import expit, logit, stdtrit

from ..data.fingerprint import CaseStats, Fingerprint
from ..io.records import record
from .expectation import Expectation, expectations

Limit = tuple[float | None, float | None]
Limits3 = tuple[Limit, Limit, Limit]
CASE_ALARMS = 0.05  # a choice: of ordinary cases, the share in which any organ's size or place is called unusual; of any probability, too
USUAL = 10.0  # a choice: percentile of the thresholds at which held-out cases were found; one below it is unusual
LOOSE = 0.01  # a choice: loose pieces that hold less of the organ than this are never remarked on
EDGE_SHARE = 0.5  # a choice: to touch a face of the scan is worth a look where less than half of the training cases do
FEWEST = 3  # cases that a range is derived from
CERTAIN = 1 - 1e-7  # a mean probability above it is taken as this: its log-odds would be infinite


@record
class HeldOut:
    """What one organ's results on held-out cases were like, case by case: DSC, mean probability inside, the part in the largest component
    (all 0…1; 0 for an empty result), the coarse stage's threshold at which it was found (0: at its usual place), and the volume in ml
    (the last two: () in older files)."""

    organ: str
    cases: tuple[str, ...]
    dsc: tuple[float, ...]
    inside: tuple[float, ...]
    largest_share: tuple[float, ...]
    threshold: tuple[float, ...] = ()
    volume_ml: tuple[float, ...] = ()

    def without(self, cases: Collection[str]) -> "HeldOut":
        """The same with these cases left out."""
        kept = [i for i, case in enumerate(self.cases) if case not in cases]
        columns = self.cases, self.dsc, self.inside, self.largest_share, self.threshold, self.volume_ml
        return HeldOut(self.organ, *(tuple(column[i] for i in kept) if column else () for column in columns))


@record
class OrganLimits:
    """One organ's limits; what could not be derived is None, and is then not checked.

    cases: training cases that show it. centre_mm: the median offset of its centroid; place_mm: the offset's range.
    among_mm: range of the offset that remains when the shift of the other organs is taken off (`others_shift_mm`).
    ratio: of its volume to its partner's on the other side. span_mm: where it usually begins and ends along z; in_scan: the
    smallest part (0…1) of that span that a training scan holds. touching: per axis, the part of the training cases in which
    it touches the scan's low and high face. inside, largest_share, threshold: the least to be expected after held-out results;
    expected: the DSC to be expected after them.
    """

    organ: str
    cases: int
    volume_ml: Limit | None
    centre_mm: tuple[float, float, float]
    place_mm: Limits3 | None
    among_mm: Limits3 | None
    ratio: Limit | None
    span_mm: tuple[float, float]
    in_scan: float
    touching: tuple[tuple[float, float], tuple[float, float], tuple[float, float]]
    inside: float | None
    largest_share: float | None
    threshold: float | None = None
    expected: Expectation | None = None


def organ_limits(fingerprint: Fingerprint, held_out: Sequence[HeldOut] = (), without: Collection[str] = ()) -> dict[str, OrganLimits]:
    """The limits of every organ that a training case shows. without: cases that must have no say, such as the one to be checked."""
    cases = [c for c in fingerprint.cases if c.id not in without]
    organs = [o for o in fingerprint.labels.organs if any(o in c.organs for c in cases)]
    centres = {o: np.median([c.organs[o].offset_mm for c in cases if o in c.organs], axis=0) for o in organs}
    partners = {a: b for pair in fingerprint.pairs for a, b in (pair, pair[::-1])}
    numbers = 7 * len(organs) + len(fingerprint.pairs)  # compared in each case: a volume and two places of three axes; and a ratio
    chance = CASE_ALARMS / numbers
    tests = {h.organ: h.without(without) for h in held_out}
    found = {o: _of_organ(o, partners.get(o), cases, centres, chance) for o in organs}
    expected = expectations({o: (h.dsc, h.volume_ml, h.inside) for o, h in tests.items()})
    return {
        o: replace(known, **_of_results(tests[o], CASE_ALARMS / len(organs)), expected=expected.get(o)) if o in tests else known
        for o, known in found.items()
    }


def _of_organ(
    organ: str, partner: str | None, cases: Sequence[CaseStats], centres: Mapping[str, np.ndarray], chance: float
) -> OrganLimits:  # fmt: skip
    mine = [c for c in cases if organ in c.organs]
    stats = [c.organs[organ] for c in mine]
    among = [a for c in mine if (a := among_mm(organ, {o: s.offset_mm for o, s in c.organs.items()}, centres)) is not None]
    both = [c for c in mine if partner in c.organs]
    ends = [np.subtract((c.organs[organ].box.start[0], c.organs[organ].box.stop[0]), c.body_box.stop[0]) * c.spacing_mm[0] for c in mine]
    span = tuple(float(v) for v in np.median(ends, axis=0))
    return OrganLimits(
        organ, len(mine), ratio_range([s.volume_mm3 / 1000 for s in stats], chance), tuple(map(float, centres[organ])),
        _ranges([s.offset_mm for s in stats], chance), _ranges(among, chance),
        ratio_range([c.organs[organ].volume_mm3 / c.organs[partner].volume_mm3 for c in both], chance),
        span, min(held_share(span, _scan_span(c), _shift_z(organ, c, centres)) for c in mine), _touching(mine, organ), None, None,
    )  # fmt: skip


def _of_results(held_out: HeldOut, chance: float) -> dict[str, float | None]:
    """The limits that come from held-out results."""
    shares, thresholds = [s for s in held_out.largest_share if s > 0], held_out.threshold
    return {
        "inside": least_probability(held_out.inside, chance),
        "largest_share": min(*shares, 1 - LOOSE) if len(shares) >= FEWEST else None,
        "threshold": float(np.percentile(thresholds, USUAL, method="lower")) if len(thresholds) >= FEWEST else None,
    }


def normal_range(values: Sequence[float], chance: float) -> Limit | None:
    """Where a further value of the same kind lies but for this chance: the prediction interval of normal values, and never narrower
    than the values themselves; None for fewer than three.

    mean ± t(n - 1) · sd · √(1 + 1/n): few cases give a wide range.
    """
    if len(values) < FEWEST:
        return None
    mean, reach = np.mean(values), _reach(values, chance / 2)
    return float(min(np.min(values), mean - reach)), float(max(np.max(values), mean + reach))


def ratio_range(values: Sequence[float], chance: float) -> Limit | None:
    """`normal_range` of values above 0 by their logarithms: volumes, and ratios of volumes."""
    found = normal_range(np.log(values), chance)
    return None if found is None else (float(np.exp(found[0])), float(np.exp(found[1])))


def least_probability(values: Sequence[float], chance: float) -> float | None:
    """The mean probability below which a further result lies by this chance: a prediction bound by the log-odds; None for fewer than three.

    Not as low as the lowest of the values: some held-out results are poor, and one like them needs a look. Empty ones, of 0, are left out.
    """
    odds = logit(np.minimum([v for v in values if v > 0], CERTAIN))
    return None if len(odds) < FEWEST else float(expit(np.mean(odds) - _reach(odds, chance)))


def _reach(values: Sequence[float], chance: float) -> float:
    """How far from their mean a further normal value may lie; beyond it on one side it does by this chance."""
    n = len(values)
    return stdtrit(n - 1, 1 - chance) * np.std(values, ddof=1) * np.sqrt(1 + 1 / n)


def _ranges(points: Sequence[Sequence[float]], chance: float) -> Limits3 | None:
    found = [normal_range(axis, chance) for axis in zip(*points)]
    return tuple(found) if found and None not in found else None


def others_shift_mm(organ: str, offsets_mm: Mapping[str, Sequence[float]], centres_mm: Mapping[str, Sequence[float]]) -> np.ndarray | None:
    """(z, y, x): the median, over the organs other than this one, of how far each lies off its usual place; None where there is none."""
    shifts = [np.subtract(at, centres_mm[o]) for o, at in offsets_mm.items() if o != organ and o in centres_mm]
    return np.median(shifts, axis=0) if shifts else None


def among_mm(organ: str, offsets_mm: Mapping[str, Sequence[float]], centres_mm: Mapping[str, Sequence[float]]) -> np.ndarray | None:
    """How far an organ lies off its usual place (z, y, x) once the other organs' shift is taken off; None where there are none."""
    shift = others_shift_mm(organ, offsets_mm, centres_mm)
    return None if shift is None else np.subtract(offsets_mm[organ], centres_mm[organ]) - shift


def held_share(span_mm: tuple[float, float], scan_mm: tuple[float, float], shift_mm: float) -> float:
    """The part (0…1) of an organ's usual span along z, moved by the shift of the organs in this scan, that the scan holds."""
    low, high = span_mm[0] + shift_mm, span_mm[1] + shift_mm
    return max(0.0, min(high, scan_mm[1]) - max(low, scan_mm[0])) / (high - low)


def _shift_z(organ: str, case: CaseStats, centres) -> float:
    """How far (mm) the other organs of a case lie above their usual places."""
    shift = others_shift_mm(organ, {o: s.offset_mm for o, s in case.organs.items()}, centres)
    return 0.0 if shift is None else float(shift[0])


def _scan_span(case: CaseStats) -> tuple[float, float]:
    """Where the scan begins and ends along z, from the body's anchor."""
    top = case.body_box.stop[0]
    return -top * case.spacing_mm[0], (case.shape[0] - top) * case.spacing_mm[0]


def _touching(cases: Sequence[CaseStats], organ: str):
    """Per axis, the part of the cases in which the organ reaches the scan's first and its last slice."""
    boxes = [(c.organs[organ].box, c.shape) for c in cases]
    return tuple(
        (float(np.mean([b.start[axis] == 0 for b, _ in boxes])), float(np.mean([b.stop[axis] == n[axis] for b, n in boxes])))
        for axis in range(3)
    )
