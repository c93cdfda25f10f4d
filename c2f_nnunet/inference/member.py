"""What one network says: probabilities over a prepared volume (2D members), or over one organ's crop (3D members)."""
from __future__ import annotations

import logging
from typing import Callable, Iterator

import numpy as np
import torch
from torch import nn

from ..errors import ModelError
from ..geometry import Box
from ..labels import LabelSet
from ..network.precision import autocast, is_out_of_memory
from ..planning.plan import MemberPlan
from ..preparing.crops import is_symmetric
from ..preparing.normalise import normalise
from ..preparing.views import can_mirror, left_right_axis, mirrored_input, odd_channels, slice_input
from .tiles import tile_weight, tiles

log = logging.getLogger(__name__)
SLICES_A_BATCH = 16  # fewer where the device's memory is too small for them


def predict_volume(
    network: nn.Module, member: MemberPlan, labels: LabelSet, hu: np.ndarray, anchor_index, device: torch.device, flips: bool,
    before_each: Callable[[], None] = lambda: None,
) -> np.ndarray:  # fmt: skip
    """A 2D member over a prepared volume (z, y, x) of HU: softmax probabilities (organs + 1, z, y, x), float16.

    Every slice is seen in windows of the plan's size; where several windows overlap they are averaged by weight.
    flips: average with the mirrored patient's result, its left and right organs swapped back, where the network was trained
    with mirrored patients and can tell them apart. before_each: called before each batch of slices, may raise. ModelError where
    the device's memory is too small for a single slice.
    """
    boxes = tiles(hu.shape, _tile_shape(hu.shape, member))
    total = np.zeros((labels.channels, *hu.shape), np.float16 if len(boxes) == 1 else np.float32)
    norm = None if len(boxes) == 1 else np.zeros(hu.shape, np.float32)
    for window in boxes:
        inside = window.clipped(hu.shape)
        here = tuple(slice(a - s, b - s) for a, b, s in zip(inside.start, inside.stop, window.start))
        weight = 1.0 if norm is None else np.moveaxis(_plane_weight(member, window)[None], 0, member.axis)

        def slices(indices: range) -> np.ndarray:  # (C, …) in volume axes
            before_each()
            return _slices(network, member, labels, hu, anchor_index, indices, window, device, flips)

        for indices, result in _batches(slices, range(inside.start[member.axis], inside.stop[member.axis]), member.name, device):
            place, source = list(inside.slices), list(here)
            place[member.axis], source[member.axis] = slice(indices[0], indices[-1] + 1), slice(None)
            if norm is None:
                total[(slice(None), *place)] = result[(slice(None), *source)]
            else:
                w = np.broadcast_to(weight, result.shape[1:])[tuple(source)]
                total[(slice(None), *place)] += w * result[(slice(None), *source)]
                norm[tuple(place)] += w
    if norm is None:
        return total
    total /= norm
    return total.astype(np.float16)


def _batches(
    slices: Callable[[range], np.ndarray], indices: range, name: str, device: torch.device
) -> Iterator[tuple[range, np.ndarray]]:
    """(some slices' indices, slices(these)) in turn: half as many at a time whenever the device's memory is too small for them."""
    size = SLICES_A_BATCH
    while indices:
        some, result = indices[:size], None
        try:
            result = slices(some)
        except RuntimeError as e:
            if not is_out_of_memory(e):
                raise
            if len(some) == 1:
                raise _too_large(name, "one slice", device, e) from e
            size = len(some) // 2
            log.warning("%s: %d slices do not fit the memory of %s; %d at a time", name, len(some), device, size)
        if result is not None:
            yield some, result
            indices = indices[len(some) :]


def _too_large(name: str, what: str, device: torch.device, error: RuntimeError) -> ModelError:
    remedy = "free some memory" if device.type == "cpu" else "free its memory or predict with -device cpu"
    return ModelError(f"{name}: {what} does not fit the memory of {device} ({str(error).splitlines()[0]}); {remedy}")


def _tile_shape(volume_shape, member: MemberPlan) -> tuple[int, int, int]:
    """The plan's in-plane size; along the member's own axis a tile holds the whole volume."""
    return tuple(n if a == member.axis else m for a, (n, m) in enumerate(zip(volume_shape, member.shape)))


def _plane_weight(member: MemberPlan, window: Box) -> np.ndarray:
    return tile_weight([n for a, n in enumerate(window.shape) if a != member.axis])


@torch.inference_mode()
def _slices(network, member: MemberPlan, labels: LabelSet, hu, anchor_index, indices, window: Box, device, flips: bool) -> np.ndarray:
    """Probabilities of some slices, (C, z, y, x) with the member's axis holding the slices."""
    batch = torch.from_numpy(np.stack([slice_input(hu, member, i, window, anchor_index) for i in indices]))
    batch = batch.to(device, memory_format=torch.channels_last)
    result = _softmax(network, batch, device)
    if flips and labels.is_symmetric and member.training.mirrors and can_mirror(member):
        turned = mirror_slices(batch, member)
        back = _softmax(network, turned, device)[:, list(labels.mirrored_channel)]
        axis = left_right_axis(member.axis)
        result = 0.5 * (result + (back.flip(2 + axis) if axis is not None else back))
    return np.moveaxis(result.transpose(0, 1).float().cpu().numpy(), 1, 1 + member.axis)


def mirror_slices(batch: torch.Tensor, member: MemberPlan) -> torch.Tensor:
    """The same slices of the mirrored patient (B, C, h, w): flipped in the plane, or, in the side view, neighbours reversed."""
    axis, order, odd = left_right_axis(member.axis), mirrored_input(member), list(odd_channels(member))
    out = batch.flip(2 + axis) if order is None else batch[:, list(order)]
    out[:, odd] = -out[:, odd]
    return out


def _softmax(network: nn.Module, batch: torch.Tensor, device: torch.device) -> torch.Tensor:
    with autocast(device):
        logits = network(batch)[0]
    return logits.float().softmax(1)


@torch.inference_mode()
def predict_crop(network: nn.Module, member: MemberPlan, hu: np.ndarray, device: torch.device, flips: bool) -> np.ndarray:
    """A 3D member over one crop (z, y, x) of HU: the organ's probability (z, y, x), float32.

    flips: average with the mirrored crop, where the organ is its own mirror image (not one side of a pair) and the network
    was trained with mirrored patients. ModelError where the device's memory is too small for it.
    """
    try:
        batch = torch.from_numpy(normalise(hu, member.windows)[None]).to(device, memory_format=torch.channels_last_3d)
        result = _softmax(network, batch, device)[0, 1]
        if flips and is_symmetric(member) and member.training.mirrors:
            result = 0.5 * (result + _softmax(network, batch.flip(4), device)[0, 1].flip(2))
        return result.cpu().numpy()
    except RuntimeError as e:
        if not is_out_of_memory(e):
            raise
        raise _too_large(member.name, f"a crop of {' × '.join(map(str, hu.shape))} voxels", device, e) from e
