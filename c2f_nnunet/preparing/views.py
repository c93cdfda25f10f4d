"""Slices of a prepared volume as the three views see them, with their neighbours and their position in the body."""
from __future__ import annotations

import numpy as np
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd

from ..geometry import Box
from ..planning.plan import MemberPlan
from ..planning.topology import IN_PLANE
from .normalise import normalise
from .resample import AIR_HU

LEFT_RIGHT = 2  # the array axis that runs right → left
POSITION_SCALE_MM = 300.0  # about the spread of intensities, so that neither drowns the other (documentation/experiments.md)


def plane_shape(shape: tuple[int, int, int], axis: int) -> tuple[int, int]:
    """The two in-plane sizes of a view's slices."""
    return tuple(shape[a] for a in IN_PLANE[axis])


def left_right_axis(axis: int | None) -> int | None:
    """Which spatial axis of a slice (or, for axis None, of a crop) runs left-right; None in the side view."""
    return LEFT_RIGHT if axis is None else (IN_PLANE[axis].index(LEFT_RIGHT) if LEFT_RIGHT in IN_PLANE[axis] else None)


def positions(start: tuple[int, int, int], shape: tuple[int, int, int], anchor_index, spacing_mm) -> tuple[np.ndarray, ...]:
    """Per axis the voxels' offsets (in units of 300 mm) from the body's anchor, for a window at `start` of this shape."""
    return tuple(
        ((np.arange(n) + s - a) * mm / POSITION_SCALE_MM).astype(np.float32)
        for s, n, a, mm in zip(start, shape, anchor_index, spacing_mm)
    )


def slab(volume: np.ndarray, axis: int, index: int, context: int, window: Box, fill) -> np.ndarray:
    """The slice at `index` across `axis` and `context` neighbours on each side, inside `window` of the other axes.

    (2 * context + 1, h, w); what lies outside the volume is `fill`.
    """
    start, stop = list(window.start), list(window.stop)
    start[axis], stop[axis] = index - context, index + context + 1
    return np.moveaxis(crop_and_pad_nd(volume, [[a, b] for a, b in zip(start, stop)], fill), axis, 0)


def slice_input(volume_hu: np.ndarray, member: MemberPlan, index: int, window: Box, anchor_index) -> np.ndarray:
    """A 2D member's input (in_channels, h, w) float32: every window's slab, then the position channels.

    Position channels: 1 is the slice's offset from the body's anchor along its own axis (a sagittal slice alone does
    not say on which side it lies); 3 adds the two in-plane offsets.
    """
    hu = slab(volume_hu, member.axis, index, member.context_slices, window, AIR_HU)
    intensities = normalise(hu, member.windows).reshape(-1, *hu.shape[1:])
    if not member.position_channels:
        return intensities
    start, shape = list(window.start), list(window.shape)
    start[member.axis], shape[member.axis] = index, 1
    along = positions(tuple(start), tuple(shape), anchor_index, member.spacing_mm)
    order = (member.axis, *IN_PLANE[member.axis])[: member.position_channels]
    grids = np.broadcast_arrays(*(p.reshape([-1 if a == k else 1 for a in range(3)]) for k, p in enumerate(along)))
    return np.concatenate([intensities, np.stack([np.take(grids[k], 0, member.axis) for k in order])])


def intensity_channels(member: MemberPlan) -> int:
    """How many of a member's input channels are intensities (they come first)."""
    return len(member.windows) * (2 * member.context_slices + 1)


def air_input(member: MemberPlan) -> tuple[float, ...]:
    """What air is in each of a member's intensity channels."""
    return tuple(normalise(np.full(2 * member.context_slices + 1, AIR_HU), member.windows).ravel().tolist())


def odd_channels(member: MemberPlan) -> tuple[int, ...]:
    """Input channels that change sign when left and right are swapped: the left-right position."""
    if not member.position_channels or member.axis is None:
        return ()
    order = (member.axis, *IN_PLANE[member.axis])[: member.position_channels]
    return tuple(intensity_channels(member) + i for i, a in enumerate(order) if a == LEFT_RIGHT)


def can_mirror(member: MemberPlan) -> bool:
    """Whether a view sees a mirrored patient as such: a sagittal slice without its position is the same slice, and averaging
    its answer with the swapped one would leave both organs of a pair at one half."""
    return left_right_axis(member.axis) is not None or bool(odd_channels(member))


def mirrored_input(member: MemberPlan) -> tuple[int, ...] | None:
    """The order of input channels in the mirrored patient: a sagittal slice's neighbours are reversed; None elsewhere."""
    if left_right_axis(member.axis) is not None:
        return None
    n, total = 2 * member.context_slices + 1, intensity_channels(member)
    return (*(first + n - 1 - i for first in range(0, total, n) for i in range(n)), *range(total, member.network.in_channels))


def training_window(volume_shape, shape) -> Box:
    """Where a plan's shape lies in a prepared volume: at the top in z, centred in y and x (the body's middle)."""
    start = (volume_shape[0] - shape[0], (volume_shape[1] - shape[1]) // 2, (volume_shape[2] - shape[2]) // 2)
    return Box(start, tuple(a + n for a, n in zip(start, shape)))
