"""How far two masks' surfaces lie apart, in mm: the distances are computed once, each metric is a small reduction.

Two surfaces are in use, because the field defines its metrics on different ones:
- voxels: the mask's voxels that touch the background by a face (HD95, average surface distance; as MONAI does);
- surfels: the marching-cubes facets between voxel centres, each weighted with its area in mm² (surface DSC; as
  DeepMind's surface-distance does, Nikolov et al. 2018, arXiv:1809.04430).
"""
from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from scipy.spatial import cKDTree

from ..errors import C2FError
from ..geometry import bounding_box

_CORNER_BIT = np.arange(7, -1, -1, dtype=np.uint8).reshape(2, 2, 2)  # corner (z, y, x) of a 2×2×2 cell → its bit in the code


@dataclass(frozen=True)
class Distances:
    """Surface-to-surface distances in mm, one per surface element, and the elements' weights (1 per voxel, or mm² per surfel)."""

    from_reference_mm: np.ndarray
    from_prediction_mm: np.ndarray
    weight_reference: np.ndarray
    weight_prediction: np.ndarray


def voxel_distances(reference: np.ndarray, prediction: np.ndarray, spacing_mm) -> Distances:
    """Distances between the surface voxels of two masks (Z, Y, X); C2FError where either is empty."""
    reference, prediction = _cropped(reference, prediction)
    a, b = np.argwhere(surface_voxels(reference)), np.argwhere(surface_voxels(prediction))
    return Distances(nearest_mm(a, b, spacing_mm), nearest_mm(b, a, spacing_mm), np.ones(len(a)), np.ones(len(b)))


def surfel_distances(reference: np.ndarray, prediction: np.ndarray, spacing_mm) -> Distances:
    """Distances between the 2×2×2 cells that the two masks' surfaces run through, weighted with the surface's area in each cell."""
    reference, prediction = _cropped(reference, prediction)
    area_mm2 = surfel_areas_mm2(tuple(map(float, spacing_mm)))
    codes_a, codes_b = cell_codes(reference), cell_codes(prediction)
    a, b = (np.argwhere((codes > 0) & (codes < 255)) for codes in (codes_a, codes_b))
    weights = (area_mm2[codes[tuple(cells.T)]] for codes, cells in ((codes_a, a), (codes_b, b)))
    return Distances(nearest_mm(a, b, spacing_mm), nearest_mm(b, a, spacing_mm), *weights)


def hd95_mm(distances: Distances) -> float:
    """95 % Hausdorff distance: the larger of the two directed 95th percentiles (not the percentile of the pooled distances)."""
    return float(max(np.percentile(d, 95) for d in (distances.from_reference_mm, distances.from_prediction_mm)))


def average_mm(distances: Distances) -> float:
    """Symmetric average surface distance: the mean over the elements of both surfaces."""
    return float(np.mean(np.concatenate([distances.from_reference_mm, distances.from_prediction_mm])))


def surface_dsc(distances: Distances, tolerance_mm: float) -> float:
    """The share of both surfaces (0…1, by weight) that lies within tolerance_mm of the other."""
    near = distances.weight_reference[distances.from_reference_mm <= tolerance_mm].sum()
    near += distances.weight_prediction[distances.from_prediction_mm <= tolerance_mm].sum()
    return float(near / (distances.weight_reference.sum() + distances.weight_prediction.sum()))


def surface_voxels(mask: np.ndarray) -> np.ndarray:
    """The mask's voxels with a face neighbour outside it; beyond the array's border is outside."""
    padded = np.pad(mask, 1)
    inner = padded.copy()
    for axis in range(3):
        for step in (-1, 1):
            inner &= np.roll(padded, step, axis)
    return (padded & ~inner)[1:-1, 1:-1, 1:-1]


def cell_codes(mask: np.ndarray) -> np.ndarray:
    """(Z, Y, X) mask → (Z+1, Y+1, X+1) codes of the 2×2×2 cells: bit set = that corner voxel is inside; 0 and 255 hold no surface."""
    padded = np.pad(mask, 1).astype(np.uint8)
    codes = np.zeros([n + 1 for n in mask.shape], np.uint8)
    for (z, y, x), bit in np.ndenumerate(_CORNER_BIT):
        codes |= padded[z:z + codes.shape[0], y:y + codes.shape[1], x:x + codes.shape[2]] << bit
    return codes


@lru_cache(maxsize=64)
def surfel_areas_mm2(spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """(256,) area of the surface in a cell of each code, for this voxel spacing (z, y, x)."""
    sz, sy, sx = spacing_mm
    return np.linalg.norm(_surfel_normals() * (sy * sx, sz * sx, sz * sy), axis=-1).sum(axis=-1)


@cache
def _surfel_normals() -> np.ndarray:
    """(256, 5, 3) triangle normals of marching cubes (Lorensen & Cline 1987) on each cell; their length is the area at 1 mm spacing.

    A code and its complement have one surface, the minority's: without that, a foreground and a background edge contact
    would be cut differently, and the areas would not be those of the surface-distance library.
    """
    from skimage.measure import marching_cubes

    normals = np.zeros((256, 5, 3))
    for code in range(1, 255):
        inside = (code >> _CORNER_BIT) & 1
        minority = inside if inside.sum() <= 4 else 1 - inside
        vertices, faces, _, _ = marching_cubes(minority.astype(np.float32), 0.5, method="lorensen")
        a, b, c = (vertices[faces[:, k]].astype(float) for k in range(3))
        normals[code, :len(faces)] = np.cross(b - a, c - a) / 2
    return normals


def nearest_mm(points: np.ndarray, targets: np.ndarray, spacing_mm) -> np.ndarray:
    """Distance (N,) in mm from each index point (N, 3) to the nearest of the targets (M, 3).

    The tree finds the neighbour; the distance is then computed from the whole-voxel offsets, as an exact distance
    transform does, so that "2.5 mm away" on 2.5 mm slices is within a tolerance of 2.5 mm and not a rounding error beyond.
    """
    spacing = np.asarray(spacing_mm, float)
    # sliding-midpoint tree: builds several times faster than the balanced one on grid points
    _, hit = cKDTree(targets * spacing, balanced_tree=False, compact_nodes=False).query(points * spacing)
    return np.sqrt((((targets[hit] - points) * spacing) ** 2).sum(axis=1))


def _cropped(reference: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both masks as booleans, cropped to the box around their union."""
    reference, prediction = np.asarray(reference, bool), np.asarray(prediction, bool)
    if reference.shape != prediction.shape:
        raise C2FError(f"reference mask {reference.shape} and predicted mask {prediction.shape} differ in shape; bring both on one grid")
    if not (reference.any() and prediction.any()):
        raise C2FError("a surface distance needs two masks that are not empty; count this organ as absent or missed instead")
    box = bounding_box(reference | prediction)
    return reference[box.slices], prediction[box.slices]
