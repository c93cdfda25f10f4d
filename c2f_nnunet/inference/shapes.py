"""What each organ's mask in a finished label map looks like: size, place, components; all organs in one pass."""
from __future__ import annotations

from dataclasses import dataclass

import cc3d
import numpy as np

from ..geometry import Box, bounding_box


@dataclass(frozen=True)
class Shape:
    """One organ's mask in a scan, in the scan's index frame (z, y, x); an organ without a voxel has no Shape.

    components: 26-connected ones. largest_share: the part of the voxels (0…1) that the largest component holds.
    """

    voxels: int
    components: int
    largest_share: float
    centroid: tuple[float, float, float]
    box: Box


def shapes(channels: np.ndarray, organs: tuple[str, ...]) -> dict[str, Shape]:
    """Channels (Z, Y, X), 0 for the background and c + 1 for organs[c] → the shape of every organ that is there."""
    region = bounding_box(channels)
    if region is None:
        return {}
    part = np.ascontiguousarray(channels[region.slices])
    component, count = cc3d.connected_components(part, connectivity=26, return_N=True)
    channel = np.zeros(count + 1, int)
    for plane, of_plane in zip(component, part):  # plane by plane: numpy makes a 64-bit copy of what it indexes by
        channel[plane] = of_plane  # every voxel of a component has one channel
    facts = cc3d.statistics(component)
    found = {}
    for c, organ in enumerate(organs, start=1):
        mine = np.flatnonzero(channel == c)
        if mine.size:
            found[organ] = _shape(mine, facts, np.array(region.start))
    return found


def _shape(mine: np.ndarray, facts: dict, start: np.ndarray) -> Shape:
    """One organ's components (their numbers), cc3d's statistics of all, and where their region starts in the scan."""
    voxels = facts["voxel_counts"][mine].astype(np.int64)
    boxes = np.array([[(s.start, s.stop) for s in facts["bounding_boxes"][k]] for k in mine])  # (component, axis, start and stop)
    low, high = boxes[..., 0].min(axis=0) + start, boxes[..., 1].max(axis=0) + start
    centroid = voxels @ facts["centroids"][mine] / voxels.sum() + start
    return Shape(
        int(voxels.sum()), mine.size, float(voxels.max() / voxels.sum()), tuple(map(float, centroid)),
        Box(tuple(map(int, low)), tuple(map(int, high))),
    )  # fmt: skip
