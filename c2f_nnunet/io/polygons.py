"""Closed polygons to masks and masks to closed polygons, in one slice.

Points are fractional (row, column) indices: a voxel's centre has whole numbers, its edges lie half a voxel away. Nothing here knows of
DICOM; rtstruct_in.py and rtstruct_out.py put the polygons into the patient.
"""
from __future__ import annotations

from typing import Iterator, Sequence

import numpy as np
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from skimage.measure import find_contours

ON_EDGE_VOXELS = 0.01  # nearer to a polygon's edge than this, a voxel's centre lies on it: positions are often rounded to 0.01 mm
INSET_VOXELS = 0.002  # how far within the voxels' edges a polygon runs: for readers that round its points to whole voxels (rt-utils)
ALIKE_VOXELS = 0.1  # two polygons nowhere farther apart than this are one, stored twice: no wall is so thin
OVER_EDGE_PARTS = 4  # a hole reaches over the edge of what it is in by this part, or less, of what it leaves of it
KEYHOLE_VOXELS = 0.001  # how far beside the voxels' centres a keyhole runs, so that no reader has to say which side a centre is on


def fill(
    polygons: Sequence[np.ndarray], start: tuple[int, int], shape: tuple[int, int], united: Sequence[Sequence[int]] = ()
) -> np.ndarray:
    """The mask (rows, columns) of the voxels whose centres are inside closed polygons (n, 2), from voxel `start` on.

    Inside is even-odd over all polygons together: what a polygon inside another encloses is a hole, and the two sides of a keyhole
    cancel out. A centre on an edge counts as inside, on whichever side, so that contours drawn through the centres of the outermost
    voxels, as OpenCV's are, come back whole; skimage.draw.polygon counts likewise, but knows one polygon only.

    united: groups of numbers of polygons (see `crossing`); those of a group count as one polygon that holds what any of them holds.
    """
    grouped = {i for group in united for i in group}
    inside, on = _sides([polygon for i, polygon in enumerate(polygons) if i not in grouped], start, shape)
    for group in united:
        sides = [_sides([polygons[i]], start, shape) for i in group]
        within = np.any([held & ~edge for held, edge in sides], axis=0)
        inside ^= within
        on |= np.any([edge for _, edge in sides], axis=0) & ~within  # an edge inside of another polygon of the group is none of the group's
    return inside | on


def _sides(polygons: Sequence[np.ndarray], start: tuple[int, int], shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Two masks (rows, columns): voxels whose centres are inside polygons by the even-odd rule, and those on an edge, of either side."""
    if not polygons:
        return np.zeros(shape, bool), np.zeros(shape, bool)
    a = np.concatenate(polygons) - start
    b = np.concatenate([np.roll(polygon, -1, axis=0) for polygon in polygons]) - start
    rows, columns = shape
    row, column = _meetings(a, b, 0, rows, 0.0)
    first = np.clip(np.ceil(column), 0, columns).astype(int)  # the first voxel to the right of the edge: from there on, the side changes
    turns = np.bincount(row * (columns + 1) + first, minlength=rows * (columns + 1)).reshape(rows, columns + 1)
    inside, edge = np.cumsum(turns, axis=1)[:, :columns] % 2 == 1, np.zeros(shape, bool)
    for along in (0, 1):  # both: a flat edge meets few rows, a steep one few columns
        line, other = _meetings(a, b, along, shape[along], ON_EDGE_VOXELS)
        near = np.rint(other).astype(int)
        on = (np.abs(other - near) <= ON_EDGE_VOXELS) & (near >= 0) & (near < shape[1 - along])
        at = (line[on], near[on])
        edge[at if along == 0 else at[::-1]] = True
    return inside, edge


def _meetings(a: np.ndarray, b: np.ndarray, along: int, n: int, margin: float) -> tuple[np.ndarray, np.ndarray]:
    """Where edges a → b (m, 2) meet the whole numbers 0 … n - 1 of axis `along`: (whole number, place on the other axis).

    margin 0: an edge has its lower end but not its upper one, so that a line through a corner meets just one of two edges. Otherwise
    both ends belong to it, and it is longer by the margin.
    """
    swapped = (a[:, along] > b[:, along])[:, None]  # from below: both sides of a keyhole are computed by the same steps
    a, b = np.where(swapped, b, a), np.where(swapped, a, b)
    first = np.ceil(a[:, along] - margin)
    last = np.floor(b[:, along] + margin) if margin else np.ceil(b[:, along]) - 1
    first, last = np.maximum(first, 0).astype(int), np.minimum(last, n - 1).astype(int)
    count = np.maximum(last - first + 1, 0)
    edge = np.repeat(np.arange(len(a)), count)
    line = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count)
    way = (b - a)[edge]
    part = np.divide(line - a[edge, along], way[:, along], out=np.zeros(len(edge)), where=way[:, along] > 0)
    return line, a[edge, 1 - along] + np.clip(part, 0, 1) * way[:, 1 - along]


# How polygons of one structure lie to each other


def window_of(points: np.ndarray, shape: tuple[int, int], margin: float = ON_EDGE_VOXELS) -> tuple[tuple[int, int], tuple[int, int]]:
    """(first voxel, rows and columns) of the part of a grid of this shape that holds points (n, 2), and the margin around them."""
    low, high = np.floor(points.min(axis=0) - margin), np.ceil(points.max(axis=0) + margin) + 1
    start = np.clip(low, 0, shape).astype(int)
    size = np.clip(high, start, np.maximum(start, shape)).astype(int) - start
    return tuple(map(int, start)), tuple(map(int, size))


def area_voxels(polygon: np.ndarray) -> float:
    """What a closed polygon (n, 2) encloses; what it goes round twice counts twice."""
    row, column = polygon.T
    return float(abs(row @ np.roll(column, -1) - column @ np.roll(row, -1)) / 2)


def repeated(polygons: Sequence[np.ndarray]) -> set[int]:
    """The numbers of the polygons (n, 2) that an earlier one is already, but for rounding, first point, direction and points between."""
    boxes, found = np.array([[*polygon.min(axis=0), *polygon.max(axis=0)] for polygon in polygons]), set()
    for i in range(1, len(polygons)):
        like = np.flatnonzero(np.abs(boxes[:i] - boxes[i]).max(axis=1) <= ALIKE_VOXELS)
        if any(_along(polygons[i], polygons[j]) and _along(polygons[j], polygons[i]) for j in like.tolist() if j not in found):
            found.add(i)
    return found


def _along(points: np.ndarray, polygon: np.ndarray) -> bool:
    """Whether all points (n, 2) lie on the edges of a closed polygon, or within ALIKE_VOXELS of them."""
    way = np.roll(polygon, -1, axis=0) - polygon
    length = np.maximum((way**2).sum(axis=1), 1e-12)
    for some in np.array_split(points, len(points) * len(polygon) // 10**6 + 1):  # not all at once: points × edges
        part = np.clip(((some[:, None] - polygon) * way).sum(axis=2) / length, 0, 1)
        off = np.linalg.norm(some[:, None] - polygon - part[:, :, None] * way, axis=2)
        if (off.min(axis=1) > ALIKE_VOXELS).any():
            return False
    return True


def crossing(polygons: Sequence[np.ndarray], shape: tuple[int, int]) -> tuple[list[tuple[int, ...]], int]:
    """(groups of numbers of polygons that cross each other, how many more reach a little over the edge of the one that they lie in).

    Two polygons cross where both hold a voxel's centre on a grid of this shape, and each also one that the other does not. Not so where
    they share an edge only, as neighbours do; nor where one reaches over the other's edge by a voxel at most and leaves far more of it
    than that: it is a hole near the edge, and both were rounded or thinned out.
    """
    crossed = {(i, j): _crossed(polygons[i], polygons[j], shape) for i, j in _neighbours(polygons)}
    joined = [pair for pair, do_cross in crossed.items() if do_cross]
    graph = coo_array((np.ones(len(joined)), np.reshape(joined, (-1, 2)).T.astype(int)), (len(polygons),) * 2)
    number, label = connected_components(graph, directed=False) if joined else (0, np.arange(len(polygons)))
    groups = [tuple(np.flatnonzero(label == group).tolist()) for group in range(number)]
    over = [pair for pair, do_cross in crossed.items() if do_cross is None and label[pair[0]] != label[pair[1]]]
    return [group for group in groups if len(group) > 1], len(over)


def _neighbours(polygons: Sequence[np.ndarray]) -> Iterator[tuple[int, int]]:
    """The pairs of polygons, as two numbers, whose boxes meet."""
    low, high = (np.array([reach(polygon, axis=0) for polygon in polygons]) for reach in (np.min, np.max))
    for j in range(1, len(polygons)):
        met = (low[:j] <= high[j]) & (low[j] <= high[:j])
        yield from ((i, j) for i in np.flatnonzero(met.all(axis=1)).tolist())


def _crossed(a: np.ndarray, b: np.ndarray, shape: tuple[int, int]) -> bool | None:
    """Whether two polygons cross; None where one only reaches a little over the edge of the one that it lies in."""
    if np.prod(np.ptp(a, axis=0)) > np.prod(np.ptp(b, axis=0)):  # the smaller one first, which settles most pairs on its few voxels
        a, b = b, a
    shared, less, far = _compared(a, b, shape)
    if not shared or not less:
        return False
    _, more, other_far = _compared(b, a, shape)
    if more < less:
        less, far, more = more, other_far, less
    if not less:
        return False
    return None if not far and OVER_EDGE_PARTS * less <= more else True


def _compared(a: np.ndarray, b: np.ndarray, shape: tuple[int, int]) -> tuple[int, int, bool]:
    """(voxels inside both polygons, those inside a and not in b, whether any of these lies more than a voxel from b)."""
    start, size = window_of(a, shape, 1.0)
    held, edge = _sides([a], start, size)
    other, rim = _sides([b], start, size)
    inner, outer = held & ~edge, other | rim
    beyond = inner & ~outer
    far = beyond.any() and (beyond & ~ndimage.binary_dilation(outer, np.ones((3, 3)))).any()
    return np.count_nonzero(inner & other & ~rim), np.count_nonzero(beyond), bool(far)


# Masks to polygons


def trace(mask: np.ndarray) -> list[np.ndarray]:
    """Closed polygons (n, 2) of a mask (rows, columns), one for each of its pieces; `fill` gives the mask back exactly.

    They go along the edges between voxels, INSET_VOXELS within them, corners cut (marching squares). Voxels that touch at a corner only
    are two pieces. Holes are joined to the polygon around them by keyholes: channels of no width, there and back.
    """
    pieces, _ = ndimage.label(mask)
    polygons = []
    for number, window in enumerate(ndimage.find_objects(pieces), 1):
        piece = np.pad(pieces[window] == number, 1)
        corner = (window[0].start - 1, window[1].start - 1)
        rings = [ring[:-1] + corner for ring in find_contours(piece.astype(float), 0.5 + INSET_VOXELS)]  # its last point is its first
        polygons.append(_straightened(_joined(rings)))
    return polygons


def _joined(rings: list[np.ndarray]) -> np.ndarray:
    """One polygon of a piece's outer ring and the rings of its holes, each (n, 2) as find_contours gives them.

    From the top of each hole a keyhole goes straight up, through the piece only, to what ends the piece there: the outer ring, or a
    hole that reaches higher and so is joined already, since the holes are taken from the top down.
    """
    polygon, *holes = sorted(rings, key=lambda ring: ring[:, 0].min())  # the outer ring encloses the others: it reaches highest
    for hole in holes:
        top = int(hole[:, 0].argmin())
        above = np.flatnonzero((polygon[:, 1] == hole[top, 1]) & (polygon[:, 0] < hole[top, 0]))
        at, mouth = _aside(polygon, int(above[polygon[above, 0].argmax()]))
        begin, end = _aside(hole, top)
        polygon = np.concatenate([polygon[:at], [mouth, end], np.roll(hole, -begin, axis=0), [end, mouth], polygon[at:]])
    return polygon


def _aside(ring: np.ndarray, at: int) -> tuple[int, np.ndarray]:
    """A point on a ring a little to the right of its point `at`, and the index at which it is to be inserted.

    `at` lies between a voxel and the one above it, where a ring of marching squares always goes on to the right on one of its sides.
    """
    before, after = ring[at - 1], ring[(at + 1) % len(ring)]
    ahead = bool(after[1] > ring[at, 1])
    way = (after if ahead else before) - ring[at]
    return at + ahead, np.array([ring[at, 0] + way[0] * (KEYHOLE_VOXELS / way[1]), ring[at, 1] + KEYHOLE_VOXELS])


def _straightened(ring: np.ndarray) -> np.ndarray:
    """The polygon without the points at which it goes straight on; a real turn is at least that of a keyhole's mouth, a thousandth."""
    to, on = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    turn = to[:, 0] * on[:, 1] - to[:, 1] * on[:, 0]
    return ring[(np.abs(turn) > 1e-6) | ((to * on).sum(axis=1) < 0)]
