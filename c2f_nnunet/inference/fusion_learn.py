"""One organ's fusion weights from voxels drawn out of held-out cases: the numeric part of `fusion.fit`.

log-odds and truth as in `fusion`; a score is a DSC in 0…1, NaN where undefined.
"""
from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..errors import ModelError

_NEAR = math.log(0.02 / 0.98)  # log-odds above which a source takes a voxel for possibly the organ
_DRAWN = {"organ": 6000, "near": 6000, "far": 2000}  # voxels drawn per stratum, organ and case
_RIDGE = 1e-3  # holds the weights of sources that separate an organ perfectly near the mean's 1/V
_BIAS_LIMIT, _WEIGHT_LIMIT = 12.0, 10.0


@dataclass(frozen=True)
class FitCase:
    """One held-out case: log-odds (V, C, Z, Y, X), truth as channels (Z, Y, X), and which organs are annotated, known (C,)."""

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
    """(V + 1,) weights and bias of one organ: minimal logistic loss + soft Dice per case, then the bias of the best mean DSC."""
    from scipy.optimize import minimize

    sources = drawn[0].x.shape[1]
    start = np.append(np.full(sources, 1 / sources), 0.0)
    bounds = [(0, _WEIGHT_LIMIT)] * sources + [(-_BIAS_LIMIT, _BIAS_LIMIT)]
    theta = minimize(_objective(drawn), start, jac=True, method="L-BFGS-B", bounds=bounds).x
    theta[-1] += _best_shift(drawn, theta)
    return theta


def _objective(drawn: list[Drawn]):
    """theta (V + 1,) → (logistic loss + soft Dice, each the mean over cases, + ridge; its gradient)."""
    x, y, s = (np.concatenate(part).astype(np.float64) for part in zip(*drawn))
    starts = np.cumsum([0] + [d.y.size for d in drawn[:-1]])
    case = np.repeat(np.arange(len(drawn)), [d.y.size for d in drawn])
    band = np.add.reduceat(s * ((x > _NEAR).any(axis=1) | (y > 0)), starts)  # the far voxels' number must not dilute a case
    truth = np.add.reduceat(s * y, starts)
    share = s / np.maximum(band, 1)[case] / len(drawn)
    has = (truth > 0) / max((truth > 0).sum(), 1)  # soft Dice: the mean over the cases that hold the organ

    def loss(theta):
        f = x @ theta[:-1] + theta[-1]
        p = 1 / (1 + np.exp(-np.clip(f, -60, 60)))
        hit, size = np.add.reduceat(s * p * y, starts), np.maximum(np.add.reduceat(s * p, starts) + truth, 1e-9)
        away = theta[:-1] - 1 / x.shape[1]
        value = (share * (np.logaddexp(0, f) - y * f)).sum() + (has * (1 - 2 * hit / size)).sum() + _RIDGE * (away @ away)
        slope = share * (p - y) - 2 * s * p * (1 - p) * (y * (has / size)[case] - (has * hit / size**2)[case])
        return value, np.append(x.T @ slope + 2 * _RIDGE * away, slope.sum())

    return loss


def _best_shift(drawn: list[Drawn], theta: np.ndarray) -> float:
    """The shift of the bias that gives the drawn voxels the highest mean DSC; of equals the smallest shift."""
    shifts = np.array(sorted(np.linspace(-4, 4, 161), key=abs))
    scores = []
    for x, y, s in drawn:
        f = x @ theta[:-1] + theta[-1]
        order = np.argsort(f)
        first = np.searchsorted(f[order], -shifts, side="right")  # voxels from here on are predicted
        predicted, hit = (np.append(np.cumsum(v[order][::-1])[::-1], 0)[first] for v in (s.astype(np.float64), s * y.astype(np.float64)))
        scores.append(dsc(hit, predicted, (s * y).sum(dtype=np.float64)))
    return float(shifts[np.nanargmax(means(np.array(scores)[None])[0])])


def dsc(hit, predicted, truth):
    """2 hit / (predicted + truth); NaN where both are empty, 0 for a prediction of what is not there."""
    size = np.asarray(predicted + truth, np.float64)
    return np.divide(2 * hit, size, out=np.full(size.shape, np.nan), where=size > 0)


def means(scores: np.ndarray) -> np.ndarray:
    """Mean over axis 1, the cases, of what is defined; NaN where nothing is."""
    counted = (~np.isnan(scores)).sum(axis=1)
    return np.where(counted, np.nansum(scores, axis=1) / np.maximum(counted, 1), np.nan)
