"""Where the patient is in a CT, without table and air."""
from __future__ import annotations

import cc3d
import numpy as np
from scipy import ndimage

from ..geometry import Box, Geometry, bounding_box

BODY_HU = -300  # between lung or foam (below -500) and fat (-120): skin is found, air, couch foam and padding values are not
SEARCH_MM = 4.0  # organs are centimetres, so the box needs no finer look; a full-size scan shrinks to about 1 million voxels
OPENING_LIMIT_MM = 6.0  # coarser voxels than this are not opened: one would be a finger's breadth of patient


def search_stride(spacing_mm) -> tuple[int, int, int]:
    """Every how many voxels (z, y, x) to look, to see the scan at about 4 mm; 1 where it is that coarse itself."""
    return tuple(max(1, round(SEARCH_MM / s)) for s in spacing_mm)


def body_box(array_hu: np.ndarray, spacing_mm) -> Box:
    """The box of the patient in a canonical CT (z, y, x), HU; the whole volume where no patient is found.

    Everything above -300 HU is taken, seen at about 4 mm. An opening by one such voxel (2.7–5.3 mm) within each axial
    slice drops the shells of the couch and the fixation mask, which are thinner than that; across slices it would eat
    the vertex, and in scans of few slices everything. The largest component of what remains then grows by two voxels
    inside the original mask, so that nose, ears and vertex come back. A couch that is solid for more than a centimetre
    and touches the patient stays in the box: a too large box wastes voxels, a too small one loses organs.
    Air outside may have any value below -300 (-1000, -1024, -3024).
    """
    stride = search_stride(spacing_mm)
    dense = array_hu[tuple(slice(None, None, n) for n in stride)] > BODY_HU
    core = dense
    cross = np.zeros((3, 3, 3), bool)
    cross[1, 1, :] = cross[1, :, 1] = True
    if max(n * s for n, s in zip(stride[1:], spacing_mm[1:])) <= OPENING_LIMIT_MM:
        core = ndimage.binary_opening(dense, cross)
    if not core.any():
        return Box((0, 0, 0), array_hu.shape)
    core = cc3d.largest_k(np.ascontiguousarray(core), k=1, connectivity=6).astype(bool)
    found = bounding_box(ndimage.binary_dilation(core, iterations=2, mask=dense))
    # a surface lies between the last voxel seen as air and the first seen as body: take all between them
    start = tuple((a - 1) * n + 1 for a, n in zip(found.start, stride))
    stop = tuple(b * n for b, n in zip(found.stop, stride))
    return Box(start, stop).clipped(array_hu.shape)


def body_anchor_mm(geometry: Geometry, box: Box) -> np.ndarray:
    """The body's anchor in world mm (z, y, x): the middle of the box's superior face.

    The top of the head is where head-and-neck scans agree; how far down they reach differs from scan to scan.
    """
    _, y, x = box.centre
    return geometry.world((box.stop[0] - 0.5, y, x))[::-1]
