"""Fitting `fusion`'s weights on held-out cases: each organ by itself on drawn voxels, then all organs together on full volumes.

log-odds (V, C, Z, Y, X) and channels as in `fusion`; a table of weights is (V + 1, C): one row per source, then the bias.
"""
from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import numpy as np

from .fusion import TOLERANCE, FusionWeights, OrganFit, decide, fuse_organ
from .fusion_learn import FitCase, draw, dsc, learn, means

log = logging.getLogger(__name__)
_LOUDER, _LOUDEST = 4.0, 3  # by this factor, up to so often, an organ in want is made to win the voxels that it contests


def fit(cases: Callable[[], Iterable[FitCase]], organs: tuple[str, ...], sources: tuple[str, ...], seed: int = 12345) -> FusionWeights:
    """Weights supervised by held-out cases, so that no organ is worse fused than in its best single source.

    cases: called anew for each pass, so that large cases are streamed one at a time. Each organ's weights are learned by itself from
    drawn voxels (see `learn`); `_settle` then checks all organs together on the full volumes. Deterministic for a seed.
    ModelError where no case fits.
    """
    samples, ids = draw(cases(), organs, sources, seed)
    mean = _mean_table(len(sources), len(organs))
    learned = np.stack([learn(drawn) if drawn else mean[:, c] for c, drawn in enumerate(samples)], axis=1)
    alone_at = [_source_table(v, len(sources), len(organs)) for v in range(len(sources))]
    fitted = np.array([bool(drawn) for drawn in samples])
    by_source = np.where(fitted, means(_measure(cases(), alone_at)), np.nan)
    best_source = np.where(np.isnan(by_source), -1, by_source).argmax(axis=0)
    at_source = np.stack([alone_at[v][:, c] if fitted[c] else mean[:, c] for c, v in enumerate(best_source)], axis=1)
    starts = [(learned, (learned == at_source).all(axis=0)), (at_source, fitted)]
    table, fused, switched = _settle(cases, starts, by_source, best_source)
    scores = []
    for c, organ in enumerate(organs):
        chosen = "no case" if not fitted[c] else "best source" if switched[c] else _name_of(table[:, c])
        scores.append(OrganFit(organ, tuple(_number(x) for x in by_source[:, c]), _number(fused[c]) if fitted[c] else None, chosen))
        if scores[-1].below_best_source:
            best = sources[best_source[c]], by_source[best_source[c], c]
            log.warning("fusion: %s has DSC %.4f, below %s alone with %.4f: other organs take its voxels", organ, fused[c], *best)
    rows = tuple(tuple(map(float, row)) for row in table)
    return FusionWeights(tuple(organs), tuple(sources), rows[:-1], rows[-1], ids, tuple(scores))


def _name_of(column: np.ndarray) -> str:
    """What weights and a bias are: a single source, the mean, or learned."""
    weights, bias = column[:-1], column[-1]
    if bias == 0 and (weights == 1).sum() == 1 == weights.sum():
        return "best source"
    return "mean" if bias == 0 and np.ptp(weights) == 0 else "learned"


def _mean_table(sources: int, organs: int) -> np.ndarray:
    return np.vstack([np.full((sources, organs), 1 / sources), np.zeros(organs)])


def _source_table(source: int, sources: int, organs: int) -> np.ndarray:
    table = np.zeros((sources + 1, organs))
    table[source] = 1
    return table


def _number(x) -> float | None:
    return None if np.isnan(x) else float(x)


def _measure(cases, tables) -> np.ndarray:
    """DSC on full volumes (tables, cases, C) of the joint decision of all organs.

    F_c ≤ Σ_v w[v,c] · max_v z[v,c] + b_c for w ≥ 0, so a voxel whose log-odds are all under the floor is in no mask.
    """
    floor = min((-t[-1] / np.maximum(t[:-1].sum(axis=0), 1e-6)).min() for t in tables) - 1e-3  # less rounding of float32
    joint = []
    for case in cases:
        inside = np.zeros(case.truth.shape, bool)
        for of_source in case.logits:
            for volume in of_source:
                inside |= volume > floor
        logits, truth = case.logits[:, :, inside], case.truth[inside]
        size = np.bincount(case.truth[case.truth > 0], minlength=case.known.size + 1)
        joint.append([np.where(case.known, _scores(logits, truth, size, table), np.nan) for table in tables])
    return np.array(joint).transpose(1, 0, 2)


def _scores(logits: np.ndarray, truth: np.ndarray, size: np.ndarray, table: np.ndarray) -> np.ndarray:
    """DSC (C,) of each organ, all decided jointly, from (V, C, n) log-odds, (n,) truth and the organs' sizes in full."""
    organs = table.shape[1]
    labels = decide(fuse_organ(logits[:, c], table[:, c]) for c in range(organs))
    hit, predicted = (np.bincount(x, minlength=organs + 1) for x in (labels[labels == truth], labels))
    return dsc(hit, predicted, size)[1:]


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
        joint = means(_measure(cases(), [table]))[0]
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
