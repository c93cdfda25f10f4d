"""Overlapping windows over a volume that is larger than a network's plan, and how their results are weighted."""
from __future__ import annotations

from itertools import product

import numpy as np

from ..geometry import Box


def tile_starts(length: int, tile: int, overlap: float) -> list[int]:
    """Starts along one axis: evenly spread, neighbours sharing at least `overlap` of a tile; centred where one tile holds all."""
    if length <= tile:
        return [(length - tile) // 2]
    stride = max(1, int(tile * (1 - overlap)))  # whole voxels, so that rounding cannot take from the overlap
    steps = int(np.ceil((length - tile) / stride)) + 1
    return [int(round(i * (length - tile) / (steps - 1))) for i in range(steps)]


def tiles(volume_shape, tile_shape, overlap: float = 0.25, top_axis_zero: bool = True) -> list[Box]:
    """Boxes of tile_shape that cover the volume. A volume lower than a tile lies at the tile's top, as in training."""
    starts = [tile_starts(n, t, overlap) for n, t in zip(volume_shape, tile_shape)]
    if top_axis_zero and volume_shape[0] <= tile_shape[0]:
        starts[0] = [volume_shape[0] - tile_shape[0]]
    return [Box(start, tuple(s + t for s, t in zip(start, tile_shape))) for start in product(*starts)]


def tile_weight(tile_shape) -> np.ndarray:
    """Weights that fall towards the tile's faces (a Gaussian of an eighth of its size, at least 0.01), as nnU-Net's."""
    parts = [np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (n / 8)) ** 2) for n in tile_shape]
    weight = parts[0]
    for p in parts[1:]:
        weight = weight[..., None] * p
    return np.maximum(weight, 0.01).astype(np.float32)
