"""An organ in three views through its centre, for pages: the CT as a small JPEG, the contours as SVG path data over it.

Contours as paths stay sharp at any size, take a few hundred bytes, and can be shown beside each other over one picture.
"""
from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image
from scipy.ndimage import find_objects
from skimage.measure import approximate_polygon, find_contours

from ..geometry import Box, centred_box, crop
from .figures import PLANES, SOFT_TISSUE_HU, OverlayCase

MARGIN_MM = 20.0  # around the organ: enough of its neighbours to see where one is
SMALLEST_SIDE_MM = 70.0
AIR_HU = -1000
JPEG_QUALITY = 85
STRAIGHT_VOXELS = 0.1  # a contour's point that lies nearer to the line between others is left out


@dataclass(frozen=True)
class Contour:
    """One organ's outline in a cut. channel: i + 1 for organs[i]. path: SVG path data, mm from the picture's upper left corner."""

    channel: int
    path: str


@dataclass(frozen=True)
class View:
    """A square of side_mm around an organ, in the middle of a picture of width_mm × height_mm (whole voxels).

    plane: a key of figures.PLANES. place_mm: where the cut lies across the plane (LPS). edges: what lies left, right, up and down.
    """

    plane: str
    place_mm: float
    side_mm: float
    width_mm: float
    height_mm: float
    edges: str
    ct_jpeg: bytes = field(repr=False)
    prediction: tuple[Contour, ...] = field(repr=False)
    reference: tuple[Contour, ...] = field(repr=False)


def organ_views(case: OverlayCase) -> dict[int, tuple[View, ...]]:
    """Channel → axial, coronal and sagittal view of it; an organ that neither the prediction nor the reference holds is left out.

    The cuts go through the centre of the reference, or of the prediction where there is no reference.
    """
    predicted = boxes_of(case.prediction)
    reference = boxes_of(case.reference) if case.reference is not None else {}
    views = {}
    for channel in sorted(predicted.keys() | reference.keys()):
        channels, own = (case.reference, reference[channel]) if channel in reference else (case.prediction, predicted[channel])
        centre = centre_voxel(channels[own.slices] == channel, own)
        box = around([boxes[channel] for boxes in (reference, predicted) if channel in boxes])
        views[channel] = tuple(_view(case, channel, plane, box, centre) for plane in PLANES)
    return views


def boxes_of(channels: np.ndarray) -> dict[int, Box]:
    """Channel → its tightest box, in one pass over the map; channels that are not there are left out."""
    found = enumerate(find_objects(channels), start=1)
    return {c: Box(tuple(s.start for s in slices), tuple(s.stop for s in slices)) for c, slices in found if slices}


def around(boxes: Sequence[Box]) -> Box:
    """The tightest box that holds all of these."""
    return Box(tuple(map(min, zip(*(b.start for b in boxes)))), tuple(map(max, zip(*(b.stop for b in boxes)))))


def centre_voxel(mask: np.ndarray, box: Box) -> tuple[int, int, int]:
    """Per axis (z, y, x) the slice that meets the organ nearest to its centre of mass; mask: the organ in its box."""
    centre = []
    for axis in range(3):
        area = mask.sum(axis=tuple(a for a in range(3) if a != axis))
        met = np.flatnonzero(area)
        middle = (area * np.arange(area.size)).sum() / area.sum()
        centre.append(box.start[axis] + int(met[np.argmin(np.abs(met - middle))]))
    return tuple(centre)


def _view(case: OverlayCase, channel: int, plane: str, box: Box, centre: tuple[int, int, int]) -> View:
    axis, row, column, edges = PLANES[plane]
    spacing = case.geometry.spacing_mm
    side = max(SMALLEST_SIDE_MM, max(box.shape[a] * spacing[a] for a in (row, column)) + 2 * MARGIN_MM)
    shape, middle = [1, 1, 1], list(box.centre)
    shape[row], shape[column] = (int(np.ceil(side / spacing[a])) for a in (row, column))
    middle[axis] = centre[axis]
    window = centred_box(middle, shape)

    def cut(array: np.ndarray, fill: int = 0) -> np.ndarray:
        flat = crop(array, window, fill).squeeze(axis)
        return flat[::-1] if row == 0 else flat  # z grows towards the head, which is shown up; y grows towards the back

    sizes = spacing[row], spacing[column]
    return View(
        plane, float(case.geometry.world(centre)[2 - axis]), side, shape[column] * sizes[1], shape[row] * sizes[0], edges,
        jpeg(cut(case.image, AIR_HU)), contours(cut(case.prediction), sizes),
        contours(cut(case.reference), sizes) if case.reference is not None else (),
    )  # fmt: skip


def jpeg(hu: np.ndarray) -> bytes:
    """A cut (rows, columns) in HU as a grey JPEG in the soft-tissue window."""
    low, high = SOFT_TISSUE_HU
    grey = ((hu.astype(np.float32) - low) / (high - low)).clip(0, 1) * 255
    buffer = io.BytesIO()
    Image.fromarray(np.rint(grey).astype(np.uint8)).save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def contours(channels: np.ndarray, spacing_mm: tuple[float, float]) -> tuple[Contour, ...]:
    """The outline of every organ in a cut (rows, columns), half-way between voxel centres; spacing_mm: of rows, columns."""
    drawn = []
    for channel in np.unique(channels[channels > 0]):
        padded = np.pad((channels == channel).astype(np.float32), 1)  # closes an outline at the picture's edge
        path = ""
        for line in find_contours(padded, 0.5):
            points = (approximate_polygon(line, STRAIGHT_VOXELS) - 0.5) * spacing_mm  # -1 for the padding, +½: from corner, not centre
            path += "M" + " ".join(f"{x:.1f} {y:.1f}" for y, x in points[:-1]) + "Z"
        drawn.append(Contour(int(channel), path))
    return tuple(drawn)
