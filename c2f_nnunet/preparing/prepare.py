"""A case as the members see it: the coarse volume, or one organ's crop; and the way back to the image's grid."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..data.body import body_anchor_mm, body_box
from ..geometry import Box, Geometry, bounding_box, boxed, centred_box, respaced
from ..planning.plan import CoarsePlan, MemberPlan, OrganPrior
from .crops import crop_geometry, cut, is_mirrored, mirror
from .resample import covering_box, resample_hu, resample_labels, resample_map

BODY_MARGIN_VOXELS = 2


@dataclass(frozen=True)
class PreparedVolume:
    """The body of one scan on the coarse grid. hu: int16 (z, y, x).

    anchor_index: the body's anchor (top face, mid y, mid x) in this array's index frame.
    """

    hu: np.ndarray
    geometry: Geometry
    anchor_index: tuple[float, float, float]

    def restore(self, values: np.ndarray, image: Geometry, box: Box, fill: float) -> tuple[Box, np.ndarray]:
        """A map (z, y, x) known in `box` of this grid → (box in the image's grid, interpolated values there)."""
        grown = box.grown(1).clipped(self.geometry.shape)
        part = boxed(self.geometry, grown)
        target = covering_box(part, image).clipped(image.shape)
        return target, resample_map(values[grown.slices], part, image, target, fill)


def coarse_geometry(hu: np.ndarray, geometry: Geometry, coarse: CoarsePlan) -> tuple[Geometry, tuple[float, float, float]]:
    """The coarse grid over the body's box (and two voxels around it), and the anchor's index in it.

    A body wider than the plan's shape (shoulders) is cut to it in y and x, about the anchor; in z the grid holds all
    of the body, however long the scan.
    """
    body = body_box(hu, geometry.spacing_mm)
    margin = tuple(int(np.ceil(BODY_MARGIN_VOXELS * c / s)) for c, s in zip(coarse.spacing_mm, geometry.spacing_mm))
    grid = respaced(boxed(geometry, body.grown(margin)), coarse.spacing_mm)
    anchor_mm = geometry.world((body.stop[0] - 0.5, body.centre[1], body.centre[2]))
    kept = centred_box(grid.index(anchor_mm), tuple(min(n, m) for n, m in zip(grid.shape, coarse.shape)))
    grid = boxed(grid, Box((0, *kept.start[1:]), (grid.shape[0], *kept.stop[1:])))
    return grid, tuple(float(v) for v in grid.index(anchor_mm))


def prepare_volume(hu: np.ndarray, geometry: Geometry, coarse: CoarsePlan) -> PreparedVolume:
    """A canonical scan → its coarse volume."""
    grid, anchor = coarse_geometry(hu, geometry, coarse)
    return PreparedVolume(resample_hu(hu, geometry, grid), grid, anchor)


def prepare_labels(channels: np.ndarray, geometry: Geometry, grid: Geometry) -> np.ndarray:
    """Label channels (z, y, x) of a canonical scan on a member's grid."""
    return resample_labels(channels, geometry, grid)


def usual_place_mm(hu: np.ndarray, geometry: Geometry, prior: OrganPrior) -> np.ndarray | None:
    """Where an organ that a scan does not show would lie (LPS mm): its usual offset from the body's anchor; None outside the scan."""
    place = (body_anchor_mm(geometry, body_box(hu, geometry.spacing_mm)) + prior.centre_mm)[::-1]
    inside = all(-0.5 <= i <= n - 0.5 for i, n in zip(geometry.index(place), geometry.shape))
    return place if inside else None


def training_crop(
    hu: np.ndarray, mask: np.ndarray, geometry: Geometry, organ: str, member: MemberPlan, margin_voxels: tuple[int, int, int], place_mm=None
) -> tuple[np.ndarray, np.ndarray, Geometry] | None:
    """One organ's crop for training, `margin_voxels` wider on each side than the member's shape, so that it can be jittered.

    mask: bool (z, y, x), the organ. place_mm: where to cut (LPS) if the organ has no voxel, so that the network learns what its
    absence looks like. Returns (hu int16, mask uint8, grid) in the network's frame (left ones mirrored), or None where there
    is neither.
    """
    box = bounding_box(mask)
    if box is not None:
        place_mm = geometry.world(box.centre)
    if place_mm is None:
        return None
    shape = tuple(n + 2 * m for n, m in zip(member.shape, margin_voxels))
    grid = crop_geometry(geometry, place_mm, member.spacing_mm, shape)
    image = cut(hu, geometry, organ, member, grid)
    labels = mirror(resample_labels(mask.astype(np.uint8), geometry, grid), is_mirrored(organ, member))
    return image.hu, np.ascontiguousarray(labels), grid


def jitter_voxels(member: MemberPlan) -> tuple[int, int, int]:
    """The member's jitter in whole voxels of its grid, at least one."""
    return tuple(max(1, int(np.ceil(j / s))) for j, s in zip(member.jitter_mm, member.spacing_mm))
