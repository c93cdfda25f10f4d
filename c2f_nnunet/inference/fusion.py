"""Learned fusion of probability maps, per class and source: F_c = Σ_v w[v,c] · z[v,c] + b_c.

A source is one of the three views, or, for the merge, the fine and the coarse result: one mechanism for both. z is the
log-odds log p - log(1 - p) of the source's softmax probability of organ c, and the background's logit is 0. Log-odds,
not raw logits: with a one-hot w and b = 0 the organ's mask F_c > 0 is exactly that source's own mask p > 0.5, so the
fusion of each organ can always fall back to its best source. A voxel is organ c where F_c > 0 and F_c is the largest.

Arrays: logits (V, C, Z, Y, X) with V sources and C organs (no background), float16 or float32; channels: 0 for the
background, c + 1 for organs[c]. The weights are found by `fusion_fit`.
"""
from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np

from ..errors import ModelError
from ..io import records
from ..io.records import record
from .limits import HeldOut
from .presence import Presence

FUSION_VERSION = 1
LIMIT = 12.0  # of the log-odds: p within 6e-6 of 0 or 1; beyond that a softmax tells certainty, not evidence
TOLERANCE = 1e-9  # of a mean DSC: an organ this much under its best source counts as worse


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
    share = 1 / len(sources)
    return FusionWeights(organs, sources, ((share,) * len(organs),) * len(sources), (0.0,) * len(organs))


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
    return np.stack([fuse_organ(logits[:, c], weights.table[:, c]) for c in range(logits.shape[1])])


def fuse_organ(logits, column: np.ndarray) -> np.ndarray:
    """One organ's fused logit from its V volumes and the column (V + 1,) of its weights and bias; float32 whatever the volumes' type."""
    total = np.full(logits[0].shape, column[-1], np.float32)
    for w, z in zip(column, logits):
        if w:
            total += np.float32(w) * z
    return total


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
