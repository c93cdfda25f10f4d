"""Closed polygons to masks and masks to closed polygons, in one slice.

Points are fractional (row, column) indices: a voxel's centre has whole numbers, its edges lie half a voxel away. Nothing here knows of
DICOM; rtstruct_in.py and rtstruct_out.py put the polygons into the patient.
"""
from __future__ import annotations

from typing import Sequence

import numpy as np
from scipy import ndimage
from skimage.measure import find_contours

ON_EDGE_VOXELS = 0.01  # nearer to a polygon's edge than this, a voxel's centre lies on it: positions are often rounded to 0.01 mm
INSET_VOXELS = 0.002  # how far within the voxels' edges a polygon runs: for readers that round its points to whole voxels (rt-utils)
KEYHOLE_VOXELS = 0.001  # how far beside the voxels' centres a keyhole runs, so that no reader has to say which side a centre is on


def fill(polygons: Sequence[np.ndarray], start: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    """The mask (rows, columns) of the voxels whose centres are inside closed polygons (n, 2), from voxel `start` on.

    Inside is even-odd over all polygons together: what a polygon inside another encloses is a hole, and the two sides of a keyhole
    cancel out. A centre on an edge counts as inside, on whichever side, so that contours drawn through the centres of the outermost
    voxels, as OpenCV's are, come back whole; skimage.draw.polygon counts likewise, but knows one polygon only.
    """
    a = np.concatenate(polygons) - start
    b = np.concatenate([np.roll(polygon, -1, axis=0) for polygon in polygons]) - start
    rows, columns = shape
    row, column = _meetings(a, b, 0, rows, 0.0)
    first = np.clip(np.ceil(column), 0, columns).astype(int)  # the first voxel to the right of the edge: from there on, the side changes
    turns = np.bincount(row * (columns + 1) + first, minlength=rows * (columns + 1)).reshape(rows, columns + 1)
    mask = np.cumsum(turns, axis=1)[:, :columns] % 2 == 1
    for along in (0, 1):  # both: a flat edge meets few rows, a steep one few columns
        line, other = _meetings(a, b, along, shape[along], ON_EDGE_VOXELS)
        near = np.rint(other).astype(int)
        on = (np.abs(other - near) <= ON_EDGE_VOXELS) & (near >= 0) & (near < shape[1 - along])
        at = (line[on], near[on])
        mask[at if along == 0 else at[::-1]] = True
    return mask


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
