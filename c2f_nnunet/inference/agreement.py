"""What speaks for an organ's result: how sure the probabilities are, and how far the parts of the ensemble agree on its mask.

Masks that are compared are kept small (`Compact`), so that the maps can stream by.
"""
from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy.special import expit

from ..geometry import Box, bounding_box
from ..io.records import record


@record
class Evidence:
    """One organ in one scan; every value is 0…1, the larger the better, None where there is nothing to compare.

    inside: mean probability of the result's voxels. soft: the DSC that the probabilities themselves lead to expect, see
    `soft_dsc`. views, folds: mean DSC of every two views' masks, and of every two folds' fine masks. stages: DSC of the
    coarse stage's mask and the fine one's.
    """

    inside: float = 0.0
    soft: float = 0.0
    views: float | None = None
    folds: float | None = None
    stages: float | None = None

    @property
    def confidence(self) -> float:
        """One number that ranks errors: `inside`, times how far views, folds and stages agree, as far as known (measured: experiment 17)."""
        return float(np.prod([self.inside, *(v for v in (self.views, self.folds, self.stages) if v is not None)]))


class Compact(NamedTuple):
    """A mask without the empty space around it: its tightest box in the whole volume, and the voxels in it; box None: empty."""

    box: Box | None
    inside: np.ndarray

    @property
    def voxels(self) -> int:
        return int(np.count_nonzero(self.inside))


def compact(mask: np.ndarray) -> Compact:
    """A mask (Z, Y, X) cut to its tightest box; a copy, so that the volume that it came from can go."""
    box = bounding_box(mask)
    return Compact(box, mask[box.slices].copy() if box else np.zeros((0, 0, 0), bool))


def overlap_dsc(a: Compact, b: Compact) -> float | None:
    """DSC (0…1) of two masks of one grid; 0 where one is empty, None where both are."""
    if a.box is None and b.box is None:
        return None
    if a.box is None or b.box is None:
        return 0.0
    start = tuple(map(max, a.box.start, b.box.start))
    stop = tuple(map(min, a.box.stop, b.box.stop))
    if any(m >= n for m, n in zip(start, stop)):
        return 0.0
    parts = [c.inside[tuple(slice(m - s, n - s) for m, n, s in zip(start, stop, c.box.start))] for c in (a, b)]
    return 2 * int(np.count_nonzero(parts[0] & parts[1])) / (a.voxels + b.voxels)


def mean_pair_dsc(masks: Sequence[Compact]) -> float | None:
    """Mean DSC over every two of some masks, pairs that are both empty left out; None where there is no such pair."""
    values = [v for a, b in combinations(masks, 2) if (v := overlap_dsc(a, b)) is not None]
    return float(np.mean(values)) if values else None


def soft_dsc(p: np.ndarray) -> float:
    """The DSC to be expected of the mask p > 0.5 where p (any shape, 0…1) is right; 0 where no voxel is in it.

    2 Σ p·[p > 0.5] / (Σ p + Σ [p > 0.5]),

    the soft Dice confidence of Borges et al. 2024, arXiv:2402.10665.
    """
    inside = p[p > 0.5]
    return float(2 * inside.sum(dtype=np.float64) / (p.sum(dtype=np.float64) + inside.size)) if inside.size else 0.0


def weigh(values: np.ndarray, fine: np.ndarray | None, coarse: np.ndarray, views: float | None, folds: float | None) -> Evidence:
    """The evidence for one organ from its final log-odds, those of both stages (all in one box), and what was compared before."""
    p = expit(values)
    inside = p[values > 0]
    stages = None if fine is None else overlap_dsc(compact(fine > 0), compact(coarse > 0))
    return Evidence(float(inside.mean(dtype=np.float64)) if inside.size else 0.0, soft_dsc(p), views, folds, stages)
