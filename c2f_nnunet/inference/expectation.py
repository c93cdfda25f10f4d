"""The DSC to be expected of a result: what held-out cases reached, as far as the result's size and its probabilities tell it.

Small organs reach a lower DSC with the same errors at their border, and what was drawn too small or too large is often wrong:
measured, documentation/experiments.md, 17.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy.special import logit

from ..io.records import record

CERTAIN = 1 - 1e-6  # log-odds of a mean probability of 1 are infinite
FEWEST = 3  # results of an organ, of which a mean and a spread can be told
PRIOR = 10.0  # what the slopes are held towards 0 by, in results: few of them tell nothing but the organ's mean


@record
class Expectation:
    """One organ's held-out results: DSC, logarithm of the volume (ml), log-odds of the mean probability inside, each (mean, SD); and how
    many of its SDs the DSC rises for one SD of the other two."""

    dsc: tuple[float, float]
    log_volume: tuple[float, float]
    odds: tuple[float, float]
    slopes: tuple[float, float] = (0.0, 0.0)

    def of(self, volume_ml: float, inside: float) -> float:
        """The DSC (0…1) to be expected of a result of this volume and mean probability inside, both above 0."""
        rise = float(np.dot(self.slopes, self.standard(volume_ml, inside)))
        return float(np.clip(self.dsc[0] + self.dsc[1] * rise, 0.0, 1.0))

    def standard(self, volume_ml, inside) -> np.ndarray:
        """(2, …): how many SDs volume and mean probability lie off their means; beyond 3 they tell no more."""
        values = np.log(volume_ml), logit(np.minimum(inside, CERTAIN))
        return np.clip([(v - mean) / sd for v, (mean, sd) in zip(values, (self.log_volume, self.odds))], -3, 3)


def expectations(results: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float]]]) -> dict[str, Expectation]:
    """Organ → its expectation. results: organ → DSC, volume (ml) and mean probability inside of each held-out result.

    A ridge regression of the DSC, with one slope for all organs and everything in the organ's own SDs: sixty results of an organ are too
    few for slopes of its own. Empty results are left out; an organ with fewer than three has no expectation.
    """
    found, rows = {}, []
    for organ, columns in results.items():
        dsc, volume, inside = (np.array(c, float) for c in columns)
        there = (volume > 0) & (inside > 0) if len(volume) == len(inside) else np.zeros(len(dsc), bool)
        if there.sum() < FEWEST:
            continue
        dsc, volume, inside = dsc[there], volume[there], inside[there]
        found[organ] = Expectation(*(_mean_sd(v) for v in (dsc, np.log(volume), logit(np.minimum(inside, CERTAIN)))))
        rows.append(np.vstack([found[organ].standard(volume, inside), (dsc - found[organ].dsc[0]) / found[organ].dsc[1]]))
    if not found:
        return {}
    *known, reached = np.concatenate(rows, axis=1)
    known = np.array(known)
    slopes = np.linalg.solve(known @ known.T + PRIOR * np.eye(2), known @ reached)
    return {organ: replace(e, slopes=(float(slopes[0]), float(slopes[1]))) for organ, e in found.items()}


def _mean_sd(values: np.ndarray) -> tuple[float, float]:
    return float(np.mean(values)), max(float(np.std(values, ddof=1)), 1e-6)
