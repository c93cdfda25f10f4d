"""A 3D network's view of the coarse volume: windows to train on, and the whole volume's probabilities; for single_network.py.

The same stored volumes, intensity windows, position channels and augmentation as this project's 2D views have, but for the ends of scans.
"""
from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd

from c2f_nnunet.geometry import Box
from c2f_nnunet.inference.tiles import tile_weight, tiles
from c2f_nnunet.labels import LabelSet
from c2f_nnunet.network.precision import autocast
from c2f_nnunet.planning.plan import Window
from c2f_nnunet.preparing.normalise import normalise
from c2f_nnunet.preparing.resample import AIR_HU
from c2f_nnunet.preparing.views import LEFT_RIGHT, positions, training_window
from c2f_nnunet.training.augment import PRESETS, make_transforms
from c2f_nnunet.training.sampler import CachedVolumes, Draw

AUGMENTATION = replace(PRESETS["full"], p_end=0.0)  # without ends of scans, which it is better without: documentation/experiments.md, 38


@dataclass(frozen=True)
class Frame:
    """What the network sees: windows of this shape (z, y, x) of volumes of this spacing, through these intensity windows."""

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    windows: tuple[Window, ...]

    @property
    def in_channels(self) -> int:
        return len(self.windows) + 3

    @property
    def left_right_channel(self) -> int:
        return len(self.windows) + LEFT_RIGHT

    @property
    def air(self) -> tuple[float, ...]:
        return tuple(normalise(np.array([AIR_HU]), self.windows).ravel().tolist())

    def input(self, hu: np.ndarray, window: Box, anchor_index) -> np.ndarray:
        """(in_channels, z, y, x) float32: the intensities, then the offsets from the body's anchor."""
        part = crop_and_pad_nd(hu, [[a, b] for a, b in zip(window.start, window.stop)], AIR_HU)
        along = positions(window.start, window.shape, anchor_index, self.spacing_mm)
        grids = np.broadcast_arrays(*(p.reshape([-1 if a == k else 1 for a in range(3)]) for k, p in enumerate(along)))
        return np.concatenate([normalise(part, self.windows), np.stack(grids)])


class WindowSource:
    """Training samples: windows about a random place in an organ's box, organ by organ, or anywhere."""

    def __init__(self, frame: Frame, labels: LabelSet, cached: CachedVolumes, foreground_share: float):
        self.frame, self.labels, self.cached, self.foreground_share = frame, labels, cached, foreground_share
        records = [v.record for v in cached.volumes]
        holding = ([(i, r.boxes[o]) for i, r in enumerate(records) if o in r.boxes and o in r.known] for o in labels.organs)
        self.by_organ = [places for places in holding if places]
        self.transforms = make_transforms(
            AUGMENTATION, frame.shape, frame.spacing_mm, air=frame.air, mirror_axis=LEFT_RIGHT,
            mirrored_channel=labels.mirrored_channel if labels.is_symmetric else (), odd_channels=(frame.left_right_channel,),
        )  # fmt: skip

    def draw(self, rng: np.random.Generator) -> Draw:
        if rng.random() < self.foreground_share:
            places = self.by_organ[rng.integers(len(self.by_organ))]
            volume, box = places[rng.integers(len(places))]
        else:
            volume = int(rng.integers(len(self.cached.volumes)))
            box = Box((0, 0, 0), self.cached.volumes[volume].record.geometry.shape)
        centre, size = rng.integers(box.start, box.stop), self.cached.volumes[volume].record.geometry.shape
        fitting = training_window(size, self.frame.shape).start  # where the volume is smaller than the window
        start = (f if n <= m else int(np.clip(c - m // 2, 0, n - m)) for f, c, n, m in zip(fitting, centre, size, self.frame.shape))
        return Draw(volume, 0, tuple(start))

    def read(self, draw: Draw) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        record, window = self.cached.volumes[draw.volume].record, Box(draw.shift, tuple(np.add(draw.shift, self.frame.shape).tolist()))
        image = self.frame.input(self.cached.array(draw.volume, "image"), window, record.anchor_index)
        target = crop_and_pad_nd(self.cached.array(draw.volume, "labels"), [[a, b] for a, b in zip(window.start, window.stop)], 0)
        return image, target, np.array([True, *(o in record.known for o in self.labels.organs)])


@torch.inference_mode()
def predict(network, frame: Frame, labels: LabelSet, hu: np.ndarray, anchor_index, device: torch.device) -> np.ndarray:
    """Softmax probabilities (organs + 1, z, y, x), windows overlapping by half and weighted, averaged with the mirrored patient's."""
    total, norm = np.zeros((labels.channels, *hu.shape), np.float32), np.zeros(hu.shape, np.float32)
    for window in tiles(hu.shape, frame.shape, 0.5):
        batch = torch.from_numpy(frame.input(hu, window, anchor_index)[None]).to(device, memory_format=torch.channels_last_3d)
        turned = batch.flip(4)
        turned[:, frame.left_right_channel] *= -1
        with autocast(device):
            p, back = (network(x)[0].float().softmax(1)[0] for x in (batch, turned))
        p = 0.5 * (p + back[list(labels.mirrored_channel)].flip(3)) if labels.is_symmetric else p
        inside = window.clipped(hu.shape)
        here = tuple(slice(a - s, b - s) for a, b, s in zip(inside.start, inside.stop, window.start))
        weight = tile_weight(frame.shape)[here]
        total[(slice(None), *inside.slices)] += weight * p.cpu().numpy()[(slice(None), *here)]
        norm[inside.slices] += weight
    return total / norm
