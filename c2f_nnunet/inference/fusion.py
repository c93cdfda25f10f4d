"""Learned fusion of probability maps, per class and source: F_c = Σ_v w[v,c] · z[v,c] + b_c.

A source is one of the three views, or, for the merge, the fine and the coarse result: one mechanism for both. z is the
log-odds log p - log(1 - p) of the source's softmax probability of organ c, and the background's logit is 0. Log-odds,
not raw logits: with a one-hot w and b = 0 the organ's mask F_c > 0 is exactly that source's own mask p > 0.5, so the
fusion of each organ can always fall back to its best source. A voxel is organ c where F_c > 0 and F_c is the largest.

Arrays: logits (V, C, Z, Y, X) with V sources and C organs (no background), float16 or float32; channels: 0 for the
background, c + 1 for organs[c].
"""
from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import numpy as np

from ..errors import ModelError
from ..io import records
from ..io.records import record
from .fusion_learn import FitCase, draw, dsc, learn, means
from .limits import HeldOut
from .presence import Presence

log = logging.getLogger(__name__)

FUSION_VERSION = 1
LIMIT = 12.0  # of the log-odds: p within 6e-6 of 0 or 1; beyond that a softmax tells certainty, not evidence
TOLERANCE = 1e-9  # of a mean DSC: an organ this much under its best source counts as worse
_LOUDER, _LOUDEST = 4.0, 3  # by this factor, up to so often, an organ in want is made to win the voxels that it contests


@record
class OrganFit:
    """What the fit found for one organ: mean DSC over its cases (0…1, None: no case) of each source, and fused.

    A case without the organ has no DSC and is skipped where the prediction is empty too, and counts as 0 where it is not.
    chosen: the candidate that is used; "no case" is the plain mean of an organ that no fitting case holds.
    """

    organ: str
    by_source: tuple[float | None, ...]
    fused: float | None
    chosen: Literal["learned", "mean", "best source", "no case"]

    @property
    def below_best_source(self) -> bool:
        return self.fused is not None and max(self.by_source) - self.fused > TOLERANCE


@record
class FusionWeights:
    """weights[source][organ] and bias[organ]; fitted_on: case ids; scores: on these cases, per organ (empty: not fitted)."""

    organs: tuple[str, ...]
    sources: tuple[str, ...]
    weights: tuple[tuple[float, ...], ...]
    bias: tuple[float, ...]
    fitted_on: tuple[str, ...] = ()
    scores: tuple[OrganFit, ...] = ()

    def __post_init__(self):
        if len(self.weights) != len(self.sources) or any(len(row) != len(self.organs) for row in (*self.weights, self.bias)):
            raise ValueError(f"weights do not fit {len(self.sources)} sources and {len(self.organs)} organs")
        if not np.isfinite(self.table).all():
            raise ValueError("weights hold a value that is not finite")

    @property
    def table(self) -> np.ndarray:
        """(V + 1, C): one row per source, then the bias."""
        return np.array((*self.weights, self.bias), np.float64).reshape(len(self.sources) + 1, len(self.organs))


@record
class FusionFile:
    """fusion.json: the weights of the views and of the merge, and the folds whose held-out predictions they were fitted on.

    clean: organs of which only the largest component is kept, because that helped on held-out cases. coarse_inputs,
    merge_inputs: hash of the checkpoints that the fits were made with, so that a fit is redone when they change.
    presence: how often the coarse stage overlooks each organ; held_out: what its results were like; both found with the merge.
    """

    version: int
    coarse: FusionWeights | None
    merge: FusionWeights | None
    folds: tuple[int, ...]
    clean: tuple[str, ...] = ()
    coarse_inputs: str = ""
    merge_inputs: str = ""
    presence: tuple[Presence, ...] = ()
    held_out: tuple[HeldOut, ...] = ()


def read_fusion(path: Path) -> FusionFile:
    """The fusion file; ModelError for one of another version, RecordError for anything else wrong."""
    value = records.read_json(path)
    if isinstance(value, dict) and value.get("version") != FUSION_VERSION:
        raise ModelError(f"{path}: fusion version {value.get('version')} and this program's {FUSION_VERSION} differ; fit the fusion again")
    return records.from_json(FusionFile, value, path)


def mean_weights(organs: tuple[str, ...], sources: tuple[str, ...]) -> FusionWeights:
    """The plain mean of the sources' log-odds: what stands where nothing was fitted."""
    return _weights(_mean_table(len(sources), len(organs)), organs, sources)


def log_odds(probabilities: np.ndarray) -> np.ndarray:
    """Softmax probabilities of the organs → log-odds, float32, within ±LIMIT; above 0 exactly where p > 0.5."""
    lowest = 1 / (1 + math.exp(LIMIT))
    p = np.clip(np.asarray(probabilities, np.float32), lowest, 1 - lowest)
    return np.clip(np.log(p) - np.log1p(-p), -LIMIT, LIMIT)


def fuse(logits: np.ndarray, weights: FusionWeights) -> np.ndarray:
    """Log-odds of all sources (V, C, ...) → fused logits (C, ...), float32."""
    if logits.shape[:2] != (len(weights.sources), len(weights.organs)):
        fitted = f"{len(weights.sources)} sources and {len(weights.organs)} organs"
        raise ModelError(f"fusion: logits {logits.shape[:2]} do not fit the weights' {fitted}; fit the fusion again")
    return np.stack([_organ(logits[:, c], weights.table[:, c]) for c in range(logits.shape[1])])


def accumulate(total: np.ndarray | None, logits: np.ndarray, source: str, weights: FusionWeights) -> np.ndarray:
    """Add one source's log-odds (C, ...) to the total, in place; None starts one. After every source it is `fuse`'s result."""
    if source not in weights.sources:
        raise ModelError(f"fusion: weights are for {', '.join(weights.sources)}, not for '{source}'; fit the fusion again")
    row = weights.weights[weights.sources.index(source)]
    if total is None:
        total = np.empty(logits.shape, np.float32)
        total[:] = np.reshape(weights.bias, (-1,) + (1,) * (logits.ndim - 1))
    for c, w in enumerate(row):
        if w:
            total[c] += np.float32(w) * logits[c]
    return total


def probabilities(fused: np.ndarray) -> np.ndarray:
    """Softmax over (background's 0, F_1 … F_C): fused logits (C, ...) → the organs' probabilities (C, ...), float32."""
    top = np.maximum(fused.max(axis=0), 0)
    out = (fused - top).astype(np.float32, copy=False)
    np.exp(out, out=out)
    out /= out.sum(axis=0) + np.exp(-top)
    return out


def decide(fused: Iterable[np.ndarray]) -> np.ndarray:
    """Fused logits, (C, ...) or one volume per organ in turn → channels: c + 1 where F_c > 0 is the largest (first of equals)."""
    labels = best = None
    for c, volume in enumerate(fused):
        if labels is None:
            labels, best = np.zeros(volume.shape, np.uint8), np.zeros(volume.shape, np.float32)
        if c == 255:
            labels = labels.astype(np.uint16)
        wins = volume > best
        labels[wins], best[wins] = c + 1, volume[wins]
    return labels


def fit(cases: Callable[[], Iterable[FitCase]], organs: tuple[str, ...], sources: tuple[str, ...], seed: int = 12345) -> FusionWeights:
    """Weights supervised by held-out cases, so that no organ is worse fused than in its best single source.

    cases: called anew for each pass, so that large cases are streamed one at a time. Learned weights (where they carry over
    to cases that they were not fitted on, see `learn`), the plain mean and each source alone are measured on the full
    volumes; each organ keeps what has the highest mean DSC (of equals the earlier), and `_settle` then checks all organs
    together. Deterministic for a seed. ModelError where no case fits.
    """
    samples, ids = draw(cases(), organs, sources, seed)
    mean = _mean_table(len(sources), len(organs))
    found = [learn(drawn) if drawn else (mean[:, c], False) for c, drawn in enumerate(samples)]
    learned, carries_over = np.stack([theta for theta, _ in found], axis=1), np.array([proven for _, proven in found])
    alone_at = [_source_table(v, len(sources), len(organs)) for v in range(len(sources))]
    tables = [learned, mean, *alone_at]
    single, joint = (means(s) for s in _measure(cases(), tables))
    single[0, ~carries_over] = np.nan
    fitted = np.array([any(drawn) for drawn in samples])
    by_source = np.where(fitted, joint[2:], np.nan)
    best_source = np.where(np.isnan(by_source), -1, by_source).argmax(axis=0)
    pick = np.where(np.isnan(single), -1, single).argmax(axis=0)
    pick[~fitted] = 1
    table = np.stack([tables[k][:, c] for c, k in enumerate(pick)], axis=1)
    at_source = np.stack([tables[2 + v][:, c] for c, v in enumerate(best_source)], axis=1)
    starts = [(table, pick - 2 == best_source), (at_source, fitted), (learned, ~fitted)]
    table, fused, switched = _settle(cases, starts, by_source, best_source)
    scores = []
    for c, organ in enumerate(organs):
        chosen = "no case" if not fitted[c] else "best source" if switched[c] else _name_of(table[:, c])
        scores.append(OrganFit(organ, tuple(_number(x) for x in by_source[:, c]), _number(fused[c]) if fitted[c] else None, chosen))
        if scores[-1].below_best_source:
            best = sources[best_source[c]], by_source[best_source[c], c]
            log.warning("fusion: %s has DSC %.4f, below %s alone with %.4f: other organs take its voxels", organ, fused[c], *best)
    return _weights(table, organs, sources, ids, tuple(scores))


def _name_of(column: np.ndarray) -> str:
    """What weights and a bias are: a single source, the mean, or learned."""
    weights, bias = column[:-1], column[-1]
    if bias == 0 and (weights == 1).sum() == 1 == weights.sum():
        return "best source"
    return "mean" if bias == 0 and np.ptp(weights) == 0 else "learned"


def rows(weights: FusionWeights) -> list[dict]:
    """One row per organ for a table: what was chosen, the weights, and the mean DSC of each source and of the fusion."""
    fits = {s.organ: s for s in weights.scores}
    table = []
    for c, organ in enumerate(weights.organs):
        found = fits.get(organ)
        row = {"organ": organ, "chosen": found.chosen if found else "not fitted"}
        row |= {f"weight {source}": weights.weights[v][c] for v, source in enumerate(weights.sources)} | {"bias": weights.bias[c]}
        row |= {f"DSC {source}": found.by_source[v] if found else None for v, source in enumerate(weights.sources)}
        table.append(row | {"DSC fused": found.fused if found else None})
    return table


# The fit's parts. A table is (V + 1, C): one row per source, then the bias.

def _mean_table(sources: int, organs: int) -> np.ndarray:
    return np.vstack([np.full((sources, organs), 1 / sources), np.zeros(organs)])


def _source_table(source: int, sources: int, organs: int) -> np.ndarray:
    table = np.zeros((sources + 1, organs))
    table[source] = 1
    return table


def _weights(table, organs, sources, ids=(), scores=()) -> FusionWeights:
    values = tuple(tuple(map(float, row)) for row in table)
    return FusionWeights(tuple(organs), tuple(sources), values[:-1], values[-1], tuple(ids), scores)


def _number(x) -> float | None:
    return None if np.isnan(x) else float(x)


def _organ(logits, column: np.ndarray) -> np.ndarray:
    """One organ's fused logit from its V volumes; float32 whatever the volumes' type."""
    total = np.full(logits[0].shape, column[-1], np.float32)
    for w, z in zip(column, logits):
        if w:
            total += np.float32(w) * z
    return total


def _measure(cases, tables) -> tuple[np.ndarray, np.ndarray]:
    """DSC on full volumes (tables, cases, C): of each organ's own mask F_c > 0, and of the joint decision of all organs.

    F_c ≤ Σ_v w[v,c] · max_v z[v,c] + b_c for w ≥ 0, so a voxel whose log-odds are all under the floor is in no mask.
    """
    floor = min((-t[-1] / np.maximum(t[:-1].sum(axis=0), 1e-6)).min() for t in tables) - 1e-3  # less rounding of float32
    alone, joint = [], []
    for case in cases:
        inside = np.zeros(case.truth.shape, bool)
        for of_source in case.logits:
            for volume in of_source:
                inside |= volume > floor
        logits, truth = case.logits[:, :, inside], case.truth[inside]
        size = np.bincount(case.truth[case.truth > 0], minlength=case.known.size + 1)
        scores = [[np.where(case.known, s, np.nan) for s in _scores(logits, truth, size, table)] for table in tables]
        alone.append([s[0] for s in scores])
        joint.append([s[1] for s in scores])
    return np.array(alone).transpose(1, 0, 2), np.array(joint).transpose(1, 0, 2)


def _scores(logits: np.ndarray, truth: np.ndarray, size: np.ndarray, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """DSC (C,) of each organ alone and of all jointly, from (V, C, n) log-odds, (n,) truth and the organs' sizes in full."""
    organs = table.shape[1]
    alone = np.full(organs, np.nan)

    def volumes():
        for c in range(organs):
            fused = _organ(logits[:, c], table[:, c])
            under = truth[fused > 0]
            alone[c] = dsc(np.count_nonzero(under == c + 1), under.size, size[c + 1])
            yield fused

    labels = decide(volumes())
    hit, predicted = (np.bincount(x, minlength=organs + 1) for x in (labels[labels == truth], labels))
    return alone, dsc(hit, predicted, size)[1:]


def _settle(cases, starts, by_source, best_source) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Let organs compete for voxels, and mend those that come out below their best source: (table, joint mean DSC, switched).

    Each round the organs in want go to their best source alone; ones that are there already are made louder (weights
    and bias × 4: the same mask F > 0, but more of what it contests). The round with the fewest organs in want is kept.
    starts: tables, and which organs are at their best source there; a further one is taken only while some are in want.
    """
    kept = None
    for table, at_best in starts:
        found = _settled_from(cases, table, by_source, best_source, at_best)
        if kept is None or found[0] < kept[0]:
            kept = found
        if not kept[0][0]:
            break
    return kept[1:]


def _settled_from(cases, table, by_source, best_source, at_best) -> tuple[tuple, np.ndarray, np.ndarray, np.ndarray]:
    """`_settle` from one table: (how many organs are in want and by how much, table, joint mean DSC, switched)."""
    best, organs = by_source.max(axis=0), np.arange(table.shape[1])
    stage, kept = at_best.astype(int), None
    for _ in range((1 + _LOUDEST) * len(organs) + 1):
        joint = means(_measure(cases(), [table])[1])[0]
        wanting = best - joint > TOLERANCE
        rank = (wanting.sum(), np.where(wanting, best - joint, 0).sum())
        if kept is None or rank < kept[0]:
            kept = rank, table, joint, stage > 0
        unswitched = wanting & (stage == 0)
        step = unswitched if unswitched.any() else wanting & (stage <= _LOUDEST)
        if not step.any():
            break
        table, stage = table.copy(), stage + step
        for c in organs[step]:
            table[:, c] = _source_table(best_source[c], len(table) - 1, len(organs))[:, c] if stage[c] == 1 else table[:, c] * _LOUDER
    return kept
