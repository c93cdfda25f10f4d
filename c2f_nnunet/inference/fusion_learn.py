"""One organ's fusion weights from voxels drawn out of held-out cases: the numeric part of `fusion_fit.fit`.

log-odds and truth as in `fusion`; a score is a DSC in 0…1, NaN where undefined.
"""
from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np

from ..errors import ModelError
from .fusion import TOLERANCE

_NEAR = math.log(0.02 / 0.98)  # log-odds above which a source takes a voxel for possibly the organ
_DRAWN = {"organ": 6000, "near": 6000, "far": 2000}  # voxels drawn per stratum, organ and case
_BIASES = np.array(sorted(np.linspace(-4, 4, 81).round(1), key=abs))  # 0 first
NEVER = float(-_BIASES.max()) - 0.05  # a voxel whose log-odds are up to this in every source is no organ's with any weights and bias tried
_BIAS_PRICE = 0.0025  # mean DSC that a bias must gain per unit of log-odds: documentation/experiments.md, 15


@dataclass(frozen=True)
class FitCase:
    """One held-out case: log-odds (V, C, …), truth as channels (…), and which organs are annotated, known (C,).

    …: a volume (Z, Y, X), or those of its voxels (N,) that are an organ's or above NEVER in any source: the others are in no mask.
    """

    id: str
    logits: np.ndarray
    truth: np.ndarray
    known: np.ndarray


class Drawn(NamedTuple):
    """Voxels drawn from one case for one organ: log-odds (n, V), truth (n,), and how many voxels each stands for (n,)."""

    x: np.ndarray
    y: np.ndarray
    stands_for: np.ndarray


def draw(cases, organs, sources, seed: int) -> tuple[list[list[Drawn]], tuple[str, ...]]:
    """Per organ the drawn voxels of every case where it is known, and the cases' ids; no voxels for an organ without truth."""
    samples, present, ids = [[] for _ in organs], np.zeros(len(organs), bool), []
    for case in cases:
        grid = case.truth.shape
        if case.logits.shape != (len(sources), len(organs), *grid) or case.known.shape != (len(organs),):
            wanted = f"{len(sources)} sources, {len(organs)} organs and the truth's {grid}"
            raise ModelError(f"{case.id}: held-out logits {case.logits.shape} do not fit {wanted}; predict the held-out cases again")
        ids.append(case.id)
        for c in np.flatnonzero(case.known):
            rng = np.random.default_rng((seed, c, zlib.crc32(case.id.encode())))  # whatever the order of the cases
            samples[c].append(_draw_organ(case.logits[:, c].reshape(len(sources), -1), case.truth.reshape(-1) == c + 1, rng))
            present[c] |= samples[c][-1].y.any()
    if not ids:
        raise ModelError("fusion: no held-out case to fit on; train at least one fold of every member first")
    return [drawn if p else [] for drawn, p in zip(samples, present)], tuple(ids)


def _draw_organ(logits: np.ndarray, truth: np.ndarray, rng: np.random.Generator) -> Drawn:
    """All three strata: the organ, voxels that some source may take for it, and the rest (so that no bias floods the volume)."""
    near = truth | (logits > _NEAR).any(axis=0)
    far = rng.integers(truth.size, size=_DRAWN["far"])
    strata = [(np.flatnonzero(truth), "organ"), (np.flatnonzero(near & ~truth), "near"), (far[~near[far]], "far")]
    counts = [strata[0][0].size, strata[1][0].size, truth.size - np.count_nonzero(near)]
    index = [rng.choice(i, _DRAWN[name], replace=False) if i.size > _DRAWN[name] else i for i, name in strata]
    stands_for = np.concatenate([np.full(i.size, n / max(i.size, 1)) for i, n in zip(index, counts)])
    index = np.concatenate(index)
    return Drawn(logits[:, index].T.astype(np.float32), truth[index], stands_for.astype(np.float32))


def learn(drawn: list[Drawn]) -> np.ndarray:
    """(V + 1,) weights and bias of one organ: of the weights that are no worse than the best source alone, those nearest to equal
    shares, without a bias; or those of the highest mean DSC, where that clearly carries over to other cases.

    It does where cases, each left out of the fit in turn, gain by the others' weights, on average by more than that average's standard error.
    A dozen cases rarely say more than the mean does: documentation/experiments.md, 15 and 34.
    """
    table = weights_tried(drawn[0].x.shape[1])
    scores = np.stack([_dsc_by_bias(drawn, weights) for weights in table], axis=1)  # (cases, weights, biases)
    plain = means(scores[:, :, 0].T)  # each row of the table without a bias
    nearest = int(np.argmax(plain >= np.nanmax(plain[(table == 1).any(axis=1)]) - TOLERANCE))
    highest = _best(scores)
    gains = np.array([s[_best(np.delete(scores, k, axis=0))] - s[nearest, 0] for k, s in enumerate(scores)]) if len(scores) > 1 else np.array([])
    gains = gains[~np.isnan(gains)]
    clear = gains.size > 1 and gains.mean() > max(gains.std(ddof=1) / math.sqrt(gains.size), TOLERANCE)
    weights, bias = highest if clear else (nearest, 0)
    return np.append(table[weights], _BIASES[bias])


def weights_tried(sources: int) -> np.ndarray:
    """(n, V): the plain mean, then every way to share eight eighths among the sources, those nearest to equal shares first."""
    cuts = combinations(range(8 + sources - 1), sources - 1)
    rows = [np.diff((-1, *c, 8 + sources - 1)) - 1 for c in cuts]
    return np.array([np.full(sources, 8 / sources), *sorted(rows, key=lambda row: (np.sum(row**2), *-row))]) / 8


def _best(scores: np.ndarray) -> tuple[int, int]:
    """Of DSC (cases, weights, biases) the place of the highest mean, less the biases' price; of equals the first."""
    n, weights, biases = scores.shape
    worth = means(scores.reshape(n, -1).T).reshape(weights, biases) - _BIAS_PRICE * np.abs(_BIASES)
    return np.unravel_index(np.where(np.isnan(worth), -np.inf, worth.round(9)).argmax(), worth.shape)


def _dsc_by_bias(drawn: list[Drawn], weights: np.ndarray) -> np.ndarray:
    """(cases, biases): the drawn voxels' DSC with each of _BIASES; NaN where undefined."""
    scores = []
    for x, y, s in drawn:
        f = x @ weights.astype(np.float32)
        order = np.argsort(f)
        first = np.searchsorted(f[order], -_BIASES, side="right")  # voxels from here on are predicted
        predicted, hit = (np.append(np.cumsum(v[order][::-1])[::-1], 0)[first] for v in (s.astype(np.float64), s * y.astype(np.float64)))
        scores.append(dsc(hit, predicted, (s * y).sum(dtype=np.float64)))
    return np.array(scores)


def dsc(hit, predicted, truth):
    """2 hit / (predicted + truth); NaN where both are empty, 0 for a prediction of what is not there."""
    size = np.asarray(predicted + truth, np.float64)
    return np.divide(2 * hit, size, out=np.full(size.shape, np.nan), where=size > 0)


def means(scores: np.ndarray) -> np.ndarray:
    """Mean over axis 1, the cases, of what is defined; NaN where nothing is."""
    counted = (~np.isnan(scores)).sum(axis=1)
    return np.where(counted, np.nansum(scores, axis=1) / np.maximum(counted, 1), np.nan)
