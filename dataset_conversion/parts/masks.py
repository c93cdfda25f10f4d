"""One mask for each organ → one label map."""
from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Iterable, Iterator

import numpy as np

from c2f_nnunet.errors import ImageError
from c2f_nnunet.geometry import Box, Geometry, bounding_box, boxed, same_grid, uncrop
from c2f_nnunet.io.images import Image, read_label


@dataclass(frozen=True, eq=False)
class Merged:
    """labels: the label map. sizes: id → voxels in its mask. overlaps: (id that kept them, id that lost them) → shared voxels."""

    labels: np.ndarray
    sizes: dict[int, int]
    overlaps: Counter[tuple[int, int]]


def merge_masks(masks: Iterable[tuple[int, np.ndarray]], shape: tuple[int, int, int], dtype: type) -> Merged:
    """One label map of (id, mask) in any order: a voxel of several masks goes to the organ with the fewest voxels in this scan.

    So a lens stays whole inside its globe, and of two neighbours the smaller loses nothing; of equal sizes the lower id wins.
    Only one mask is held at a time. Where three meet, what the smallest has taken already is not counted for the other two.
    """
    labels, sizes, overlaps = np.zeros(shape, dtype), {}, Counter()
    for value, mask in masks:
        sizes[value] = int(np.count_nonzero(mask))
        if not (box := bounding_box(mask)):
            continue
        there, inside = labels[box.slices], np.asarray(mask[box.slices], bool)
        won = inside & (there == 0)
        for other in (int(i) for i in np.unique(there[inside]) if i):
            shared = inside & (there == other)
            kept, lost = sorted((value, other), key=lambda i: (sizes[i], i))
            overlaps[kept, lost] += int(np.count_nonzero(shared))
            if kept == value:
                won |= shared
        there[won] = value
    return Merged(labels, sizes, overlaps)


def on_grid(mask: Image, grid: Geometry) -> np.ndarray:
    """A mask's voxels on the CT's grid. One cut to a box of whole voxels, as 3D Slicer stores segments, is put in its place."""
    if same_grid(mask.geometry, grid):
        return mask.array
    start = tuple(int(i) for i in np.rint(grid.index(mask.geometry.origin_mm)))
    box = Box(start, tuple(a + n for a, n in zip(start, mask.geometry.shape)))
    if box.clipped(grid.shape) != box or not same_grid(mask.geometry, boxed(grid, box)):
        raise ImageError(f"{mask.source.path}: its grid of {mask.geometry.shape} voxels is neither the CT's of {grid.shape} "
                         "nor a part of it; export the mask on the CT's grid")
    return uncrop(mask.array, box, grid.shape)


def masks_of(ct: Image, files: dict[str, Path]) -> Iterator[tuple[str, np.ndarray]]:
    """(organ, mask on the CT's grid) for files that hold one mask each, read one at a time; every value but 0 is the organ."""
    for organ, path in files.items():
        yield organ, on_grid(read_label(path), ct.geometry) > 0
