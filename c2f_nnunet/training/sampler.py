"""Training batches: which slices and crops are drawn, as a pure function of (seed, step, place in the batch).

Because a batch depends on nothing else, workers need no state, a resumed training draws what it would have drawn,
and DDP's processes take consecutive parts of one larger batch.
"""
from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from dataclasses import dataclass, field
from typing import Callable, Iterator

import numpy as np
import torch
from batchgenerators.dataloading.data_loader import SlimDataLoaderBase
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter

from ..data.store import StoredVolume
from ..errors import DatasetError, TrainingError
from ..geometry import Box
from ..io.processes import end_with_parent
from ..labels import LabelSet
from ..planning.plan import MemberPlan
from ..preparing.crops import is_symmetric
from ..preparing.normalise import normalise
from ..preparing.prepare import jitter_voxels
from ..preparing.views import (
    IN_PLANE, air_input, left_right_axis, mirrored_input, odd_channels, plane_shape, slab, slice_input, training_window,
)  # fmt: skip
from .augment import PRESETS, make_transforms, seeded


@dataclass
class CachedVolumes:
    """Stored volumes, decompressed once and kept where all of them fit `memory_gb`; the cache is never pickled."""

    volumes: tuple[StoredVolume, ...]
    memory_gb: float
    _kept: dict[tuple[int, str], np.ndarray] = field(default_factory=dict, repr=False)

    def __post_init__(self):
        total = sum(3 * int(np.prod(v.record.geometry.shape)) for v in self.volumes)
        self.keeps = total < self.memory_gb * 2**30

    def __getstate__(self):
        return {**self.__dict__, "_kept": {}}

    def array(self, index: int, kind: str):
        """The image or labels of a volume: a numpy array where kept, else a blosc2 array that reads what is sliced."""
        if not self.keeps:
            return getattr(self.volumes[index], kind)
        if (index, kind) not in self._kept:
            self._kept[index, kind] = getattr(self.volumes[index], kind)[:]
        return self._kept[index, kind]

    def load(self, before_each: Callable[[], None] = lambda: None) -> None:
        """Fill the cache now (before workers fork, so that they share it); before_each: called before each volume, may raise."""
        for i in range(len(self.volumes)) if self.keeps else []:
            before_each()
            self.array(i, "image"), self.array(i, "labels")


@dataclass(frozen=True)
class Draw:
    """What one sample is: a stored volume, a slice's index (2D), and how far (voxels) its window or the crop (3D) is moved."""

    volume: int
    index: int
    shift: tuple[int, int, int]


class SliceSource:
    """Samples of a 2D member. A share of them is drawn by class: organ, then case, then a slice that it touches; the others show any part
    of a body, also of one that goes on below the plan's grid, as prediction sees it."""

    def __init__(self, member: MemberPlan, labels: LabelSet, cached: CachedVolumes):
        self.member, self.labels, self.cached = member, labels, cached
        self.windows = [training_window(v.record.geometry.shape, member.shape) for v in cached.volumes]
        self.by_organ = [places for organ in labels.organs if (places := self._places(organ))]
        if not self.by_organ:
            where = cached.volumes[0].folder
            raise DatasetError(f"{where}: no training case of {member.name} has a labelled organ; check the labels")
        self.transforms = make_transforms(
            PRESETS[member.training.augmentation], plane_shape(member.shape, member.axis),
            tuple(member.spacing_mm[a] for a in IN_PLANE[member.axis]),
            air=air_input(member), mirror_axis=left_right_axis(member.axis),
            mirrored_channel=labels.mirrored_channel if labels.is_symmetric else (),
            odd_channels=odd_channels(member), mirrored_input=mirrored_input(member),
        )  # fmt: skip

    def _places(self, organ: str) -> list[tuple[int, int, int]]:
        """(volume, first slice, one past the last) for each case that has the organ inside its window."""
        axis, out = self.member.axis, []
        for i, (v, window) in enumerate(zip(self.cached.volumes, self.windows)):
            if organ in v.record.boxes and organ in v.record.known:
                box = v.record.boxes[organ]
                first, last = max(box.start[axis], window.start[axis]), min(box.stop[axis], window.stop[axis])
                if first < last:
                    out.append((i, first, last))
        return out

    def draw(self, rng: np.random.Generator) -> Draw:
        if rng.random() < self.member.training.foreground_share:
            places = self.by_organ[rng.integers(len(self.by_organ))]
            volume, first, last = places[rng.integers(len(places))]
            return Draw(volume, int(rng.integers(first, last)), (0, 0, 0))
        volume, axis = int(rng.integers(len(self.cached.volumes))), self.member.axis
        window, n = self.windows[volume], self.cached.volumes[volume].record.geometry.shape[axis]
        below = max(0, window.start[0])  # what the plan's grid, at the body's top, leaves out below
        first, last = max(0, window.start[axis]) if axis else 0, min(n, window.stop[axis])
        index = int(rng.integers(first, last))
        return Draw(volume, index, (-int(rng.integers(below + 1)) if axis and below else 0, 0, 0))

    def read(self, draw: Draw) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """image (C, h, w) float32, target (h, w) channels, known (organs + 1,) bool."""
        member, record = self.member, self.cached.volumes[draw.volume].record
        window = self.windows[draw.volume].moved(draw.shift)
        hu, target = self.cached.array(draw.volume, "image"), self.cached.array(draw.volume, "labels")
        image = slice_input(hu, member, draw.index, window, record.anchor_index)
        target = slab(target, member.axis, draw.index, 0, window, 0)[0]
        known = np.array([True, *(o in record.known for o in self.labels.organs)])
        return image, target, known


class CropSource:
    """Samples of a 3D member: a stored crop, shifted by up to the jitter. A share of them holds the organ; the others, where there
    are such cases, show its usual place without it."""

    def __init__(self, member: MemberPlan, cached: CachedVolumes):
        self.member, self.cached = member, cached
        self.present = [i for i, v in enumerate(cached.volumes) if v.record.boxes]
        self.absent = [i for i, v in enumerate(cached.volumes) if not v.record.boxes]
        self.jitter = jitter_voxels(member)
        self.transforms = make_transforms(
            PRESETS[member.training.augmentation], member.shape, member.spacing_mm, air=air_input(member),
            mirror_axis=left_right_axis(None), mirrored_channel=(0, 1) if is_symmetric(member) else (),
        )  # fmt: skip

    def draw(self, rng: np.random.Generator) -> Draw:
        among = self.present or self.absent
        if self.present and self.absent and rng.random() >= self.member.training.foreground_share:
            among = self.absent
        volume = among[int(rng.integers(len(among)))]
        return Draw(volume, 0, tuple(int(rng.integers(-j, j + 1)) for j in self.jitter))

    def read(self, draw: Draw) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """image (windows, z, y, x) float32, target (z, y, x), known (2,) bool."""
        stored = self.cached.volumes[draw.volume].record.geometry.shape
        start = tuple((n - m) // 2 + s for n, m, s in zip(stored, self.member.shape, draw.shift))
        box = Box(start, tuple(a + n for a, n in zip(start, self.member.shape)))
        hu, target = (np.asarray(self.cached.array(draw.volume, kind)[box.slices]) for kind in ("image", "labels"))
        return normalise(hu, self.member.windows), target, np.array([True, True])


class Batches(SlimDataLoaderBase):
    """Batches from `first_step` on, for one of `world` DDP processes: dicts of image, target, known and step.

    Worker k of n makes the batches k, k + n, …: the augmenter hands them out in order.
    """

    def __init__(self, source, batch_size: int, seed: int, first_step: int, workers: int, rank: int = 0, world: int = 1):
        super().__init__(None, batch_size, max(1, workers))
        self.source, self.seed, self.first_step, self.rank, self.world = source, seed, first_step, rank, world
        self.made, self.owner = 0, os.getpid()
        self.reading = multiprocessing.RawArray("i", max(1, workers))  # by worker: 1 + the volume that it is at

    def set_thread_id(self, thread_id: int) -> None:
        """Called first in each worker process, which is forked.

        OpenMP's threads did not come along, so torch must not wait for them. The training's signal handlers did: a worker
        leaves every signal to its parent, which needs batches until its checkpoint and then ends its workers.
        """
        super().set_thread_id(thread_id)
        torch.set_num_threads(1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        end_with_parent(self.owner)

    def generate_train_batch(self) -> dict:
        step = self.first_step + self.thread_id + self.made * self.number_of_threads_in_multithreaded
        self.made += 1
        return self.batch(step)

    def batch(self, step: int) -> dict:
        """Batch number `step`; an error in it names the case."""
        samples = []
        for i in range(self.rank * self.batch_size, (self.rank + 1) * self.batch_size):
            rng = np.random.default_rng([self.seed, step, i])
            draw = self.source.draw(rng)
            self.reading[self.thread_id] = draw.volume + 1
            try:
                image, target, known = self.source.read(draw)
            except (OSError, RuntimeError, ValueError) as e:
                case = self.source.cached.volumes[draw.volume]
                where = case.folder / case.record.id
                raise TrainingError(f"{where}: stored volume cannot be read ({e}); run c2f_plan_and_preprocess again") from e
            with seeded(self.seed, step, i):
                image, target, known = self.source.transforms(
                    torch.from_numpy(image), torch.from_numpy(target[None].astype(np.int16)), torch.from_numpy(known)
                )  # fmt: skip
            samples.append((image.numpy(), target[0].numpy(), known.numpy()))
        images, targets, knowns = (np.stack(part) for part in zip(*samples))
        return {"image": images, "target": targets, "known": knowns, "step": step}


class Workers(MultiThreadedAugmenter):
    """batchgenerators' worker processes, ended at once instead of by draining their queues.

    A worker that is killed while it hands over a batch leaves half of it in the queue, and whoever reads that waits for
    ever: so nothing is read from a queue once a worker is dead, and the training hears of it within a second.
    """

    def _start(self) -> None:
        """Forked, whatever Python's own way is (3.14's is another): the workers share the loaded volumes, and their parent is this process."""
        starting, usual = not self.was_initialized, multiprocessing.get_start_method(allow_none=True)
        multiprocessing.set_start_method("fork", force=True)
        try:
            super()._start()
        finally:
            multiprocessing.set_start_method(usual, force=True)
        if starting:
            threading.Thread(target=self._watch, args=(list(self._processes), self.abort_event), daemon=True).start()

    @staticmethod
    def _watch(workers, abort_event) -> None:
        while not abort_event.is_set():
            if not all(worker.is_alive() for worker in workers):
                abort_event.set()
            time.sleep(0.5)

    def _finish(self, timeout: float = 5.0, force: bool = False) -> None:
        self.abort_event.set()
        if self._processes:
            self.dead = [k for k, worker in enumerate(self._processes) if not worker.is_alive()]
        for worker in self._processes:
            worker.kill()
        for worker in self._processes:
            worker.join(timeout)
        self._processes, self._queues, self.was_initialized = [], [], False


def stream(batches: Batches, workers: int) -> Iterator[dict]:
    """The batches in order, made by batchgenerators' worker processes, or in this process where workers is 0."""
    if not workers:
        while True:
            yield next(batches)
    batches.source.cached.load()
    augmenter = Workers(batches, None, workers, num_cached_per_queue=2, seeds=list(range(workers)))
    try:
        yield from augmenter
    except RuntimeError as e:  # of the augmenter, where a worker ended; what ended it stands on the screen above
        at = sorted({batches.source.cached.volumes[v - 1].record.id for k in augmenter.dead or range(workers) if (v := batches.reading[k])})
        where = f" at work on {' or '.join(at)}" if at else ""
        raise TrainingError(f"an augmentation process ended{where} ({e}); free memory, or see the message above it, or give -np 0") from e
    finally:
        augmenter._finish()
