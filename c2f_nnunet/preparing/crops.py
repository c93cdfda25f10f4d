"""The crop of one organ: cut from the full-resolution image, mirrored for a left organ, and mapped back."""
from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..geometry import Geometry, boxed
from ..sides import sides_of
from ..planning.plan import MemberPlan
from .resample import AIR_HU, covering_box, resample_hu, resample_map


@dataclass(frozen=True)
class Crop:
    """One organ's crop: HU (z, y, x) on its grid as the network sees it, and how to go back.

    geometry: of the unmirrored crop; mirrored: whether the array's left-right axis was reversed.
    """

    organ: str
    hu: np.ndarray
    geometry: Geometry
    mirrored: bool


def is_mirrored(organ: str, member: MemberPlan) -> bool:
    """A pair's network is trained on right organs and mirrored left ones."""
    return len(member.organs) == 2 and sides_of(member.organs)[organ][0] == "L"


def is_symmetric(member: MemberPlan) -> bool:
    """Whether the member's organ lies across the midline, so that its mirror image is one of its kind."""
    return len(member.organs) == 1 and not sides_of(member.organs)


def crop_geometry(image: Geometry, centre_mm, spacing_mm, shape) -> Geometry:
    """A grid of this spacing and shape along the image's axes, its middle at a world point (LPS mm).

    Its first voxel is moved onto the image's nearest, by half a voxel at most: in the image's own spacing nothing is then
    interpolated, where a grid half a voxel off would blur the image and take half a voxel from each face of a label.
    """
    half = np.asarray(image.direction) @ ((np.asarray(shape) - 1) / 2 * np.asarray(spacing_mm))
    origin = image.world(np.rint(image.index(np.asarray(centre_mm) - half)))
    return replace(image, shape=tuple(int(n) for n in shape), spacing_mm=tuple(map(float, spacing_mm)), origin_mm=tuple(map(float, origin)))


def mirror(array: np.ndarray, mirrored: bool) -> np.ndarray:
    """Reverse the left-right axis of (..., z, y, x) where asked; its own inverse."""
    return np.flip(array, -1) if mirrored else array


def cut(image_hu: np.ndarray, geometry: Geometry, organ: str, member: MemberPlan, grid: Geometry) -> Crop:
    """The organ's crop on `grid` from a canonical image."""
    # a region two target voxels wider than the grid is all that interpolation and its blur can reach
    reach = tuple(int(np.ceil(2 * new / old)) + 1 for new, old in zip(grid.spacing_mm, geometry.spacing_mm))
    region = covering_box(grid, geometry).grown(reach).clipped(geometry.shape)
    mirrored = is_mirrored(organ, member)
    if all(region.shape):
        hu = resample_hu(image_hu[region.slices], boxed(geometry, region), grid)
    else:
        hu = np.full(grid.shape, AIR_HU, np.int16)  # the crop lies wholly outside the scan
    return Crop(organ, np.ascontiguousarray(mirror(hu, mirrored)), grid, mirrored)


def back_to_image(values: np.ndarray, crop: Crop, image: Geometry, fill: float):
    """A map on the crop's array (z, y, x), e.g. log-odds → (box in the image, values there), unmirrored and interpolated."""
    box = covering_box(crop.geometry, image).clipped(image.shape)
    if not all(box.shape):
        return box, np.zeros(box.shape, np.float32)
    return box, resample_map(mirror(values, crop.mirrored), crop.geometry, image, box, fill)
