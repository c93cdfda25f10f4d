"""Where voxels lie in the patient: Geometry and Box, and the pure functions on them (numpy only).

Frames. Arrays are indexed (z, y, x); world points are millimetres in LPS (x to the patient's left, y to
posterior, z to superior), DICOM's and ITK's frame. In the canonical orientation array axis 0 runs inferior→superior,
axis 1 anterior→posterior and axis 2 right→left, so a canonical array's axes are the world axes in reverse order.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import numpy as np

CANONICAL_WORLD_AXIS = (2, 1, 0)  # array axis → the LPS axis (x=0, y=1, z=2) that it follows, in its positive direction


@dataclass(frozen=True)
class Geometry:
    """A voxel grid in the world: world = origin_mm + direction @ (spacing_mm * index).

    shape, spacing_mm: (z, y, x) in array order. origin_mm: LPS world position of voxel (0, 0, 0).
    direction: 3×3 as three rows; column k is the LPS unit vector of array axis k.
    """

    __pydantic_config__ = {"extra": "forbid"}
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction: tuple[tuple[float, float, float], ...] = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))

    @property
    def extent_mm(self) -> tuple[float, float, float]:
        """Edge-to-edge size (z, y, x) in mm."""
        return tuple(n * s for n, s in zip(self.shape, self.spacing_mm))

    @property
    def voxel_mm3(self) -> float:
        return float(np.prod(self.spacing_mm))

    def world(self, index_zyx) -> np.ndarray:
        """LPS positions (..., 3) in mm of (possibly fractional) array indices (..., 3)."""
        return np.asarray(self.origin_mm) + (np.asarray(index_zyx, float) * self.spacing_mm) @ np.asarray(self.direction).T

    def index(self, world_mm) -> np.ndarray:
        """Fractional array indices (..., 3) of LPS positions (..., 3); the inverse of `world`."""
        return (np.asarray(world_mm, float) - self.origin_mm) @ np.linalg.inv(np.asarray(self.direction)).T / self.spacing_mm


@dataclass(frozen=True)
class Box:
    """A half-open box of voxels: start ≤ index < stop, in (z, y, x); start may be negative and stop may pass the array's end."""

    __pydantic_config__ = {"extra": "forbid"}
    start: tuple[int, int, int]
    stop: tuple[int, int, int]

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(b - a for a, b in zip(self.start, self.stop))

    @property
    def centre(self) -> tuple[float, float, float]:
        """Centre in index coordinates of voxel centres: a box of one voxel at 5 has its centre at 5.0."""
        return tuple((a + b - 1) / 2 for a, b in zip(self.start, self.stop))

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        return tuple(slice(a, b) for a, b in zip(self.start, self.stop))

    def grown(self, margin_voxels) -> "Box":
        """Grown by margin_voxels (an int, or one per axis) on every side."""
        margins = np.broadcast_to(margin_voxels, 3)
        return Box(tuple(int(a - m) for a, m in zip(self.start, margins)), tuple(int(b + m) for b, m in zip(self.stop, margins)))

    def moved(self, by_voxels) -> "Box":
        """Moved by so many voxels along each axis."""
        return Box(tuple(a + m for a, m in zip(self.start, by_voxels)), tuple(b + m for b, m in zip(self.stop, by_voxels)))

    def clipped(self, shape) -> "Box":
        """The part of the box that lies inside an array of this shape."""
        start = tuple(min(max(a, 0), n) for a, n in zip(self.start, shape))
        return Box(start, tuple(max(min(b, n), a) for a, b, n in zip(start, self.stop, shape)))


def bounding_box(mask: np.ndarray) -> Box | None:
    """Tightest box around the non-zero voxels of a 3D mask; None where there is none."""
    start, stop = [], []
    for axis in range(3):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        if not hit.size:
            return None
        start.append(int(hit[0])), stop.append(int(hit[-1]) + 1)
    return Box(tuple(start), tuple(stop))


def centred_box(centre_index, shape) -> Box:
    """A box of this shape whose centre is as near as whole voxels allow to centre_index (z, y, x)."""
    start = tuple(int(np.floor(c - (n - 1) / 2 + 0.5)) for c, n in zip(centre_index, shape))
    return Box(start, tuple(a + n for a, n in zip(start, shape)))


def crop(array: np.ndarray, box: Box, fill=0) -> np.ndarray:
    """The box's voxels from array (..., z, y, x); what lies outside the array is `fill`."""
    inside = box.clipped(array.shape[-3:])
    out = np.full(array.shape[:-3] + box.shape, fill, array.dtype)
    target = tuple(slice(a - s, b - s) for a, b, s in zip(inside.start, inside.stop, box.start))
    out[(..., *target)] = array[(..., *inside.slices)]
    return out


def uncrop(cropped: np.ndarray, box: Box, full_shape, fill=0) -> np.ndarray:
    """Inverse of `crop`: an array of full_shape with the crop in its place; what the box did not hold is `fill`."""
    inside = box.clipped(full_shape)
    out = np.full(cropped.shape[:-3] + tuple(full_shape), fill, cropped.dtype)
    source = tuple(slice(a - s, b - s) for a, b, s in zip(inside.start, inside.stop, box.start))
    out[(..., *inside.slices)] = cropped[(..., *source)]
    return out


def boxed(geometry: Geometry, box: Box) -> Geometry:
    """The geometry of a crop: same voxels, moved origin, the box's shape."""
    return replace(geometry, shape=box.shape, origin_mm=tuple(map(float, geometry.world(box.start))))


def respaced(geometry: Geometry, spacing_mm) -> Geometry:
    """The grid of new spacing that covers the same extent: voxel edges, not centres, coincide at the first corner.

    The shape is rounded up, so nothing of the old extent is cut; at most one voxel a side is beyond it.
    """
    shape = tuple(max(1, int(np.ceil(n * old / new - 1e-6))) for n, old, new in zip(geometry.shape, geometry.spacing_mm, spacing_mm))
    corner = geometry.world((-0.5, -0.5, -0.5))
    origin = corner + np.asarray(geometry.direction) @ (0.5 * np.asarray(spacing_mm, float))
    return replace(geometry, shape=shape, spacing_mm=tuple(map(float, spacing_mm)), origin_mm=tuple(map(float, origin)))


def same_grid(a: Geometry, b: Geometry, tolerance_voxels: float = 0.05) -> bool:
    """Whether two geometries have one shape and their corners lie within a fraction of the smallest voxel of each other."""
    if a.shape != b.shape:
        return False
    corners = np.array(list(product(*[(0, n - 1) for n in a.shape])))
    far = np.abs(a.world(corners) - b.world(corners)).max()
    return bool(far <= tolerance_voxels * min(a.spacing_mm + b.spacing_mm))


@dataclass(frozen=True)
class Reorientation:
    """How a file's array becomes canonical: transpose by `axes`, then reverse the axes where `flips` is true."""

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    @property
    def flipped_axes(self) -> tuple[int, ...]:
        return tuple(k for k, f in enumerate(self.flips) if f)


def reorientation(geometry: Geometry) -> Reorientation:
    """The permutation and flips that bring a grid nearest to canonical (I→S, A→P, R→L); oblique grids stay oblique.

    Array axes are assigned to world axes greedily by the largest direction cosine, as nibabel's io_orientation does.
    """
    cosines = np.abs(np.asarray(geometry.direction, float))  # rows: world axes; columns: array axes
    axis_of_world = {}
    for _ in range(3):
        world, axis = np.unravel_index(np.argmax(cosines), cosines.shape)
        axis_of_world[int(world)] = int(axis)
        cosines[world, :], cosines[:, axis] = -1, -1
    axes = tuple(axis_of_world[w] for w in CANONICAL_WORLD_AXIS)
    flips = tuple(bool(geometry.direction[w][a] < 0) for w, a in zip(CANONICAL_WORLD_AXIS, axes))
    return Reorientation(axes, flips)


def to_canonical(array: np.ndarray, turn: Reorientation) -> np.ndarray:
    """File order (..., 3 axes) → canonical order, as a view."""
    lead = array.ndim - 3
    turned = array.transpose(*range(lead), *(lead + a for a in turn.axes))
    return np.flip(turned, [lead + k for k in turn.flipped_axes]) if turn.flipped_axes else turned


def from_canonical(array: np.ndarray, turn: Reorientation) -> np.ndarray:
    """Inverse of `to_canonical`, as a view."""
    lead = array.ndim - 3
    unflipped = np.flip(array, [lead + k for k in turn.flipped_axes]) if turn.flipped_axes else array
    return unflipped.transpose(*range(lead), *(lead + int(k) for k in np.argsort(turn.axes)))


def canonical_geometry(geometry: Geometry, turn: Reorientation) -> Geometry:
    """The geometry of `to_canonical(array)`: every voxel keeps its place in the world."""
    first = np.zeros(3)
    for k, axis in enumerate(turn.axes):
        first[axis] = geometry.shape[axis] - 1 if turn.flips[k] else 0
    direction = np.asarray(geometry.direction)[:, turn.axes] * np.where(turn.flips, -1.0, 1.0)
    return Geometry(
        shape=tuple(geometry.shape[a] for a in turn.axes),
        spacing_mm=tuple(geometry.spacing_mm[a] for a in turn.axes),
        origin_mm=tuple(map(float, geometry.world(first))),
        direction=tuple(tuple(map(float, row)) for row in direction),
    )
