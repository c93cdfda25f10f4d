"""Training one member of a model: its samples, its held-out validation, its run folder."""
from __future__ import annotations

import logging
import os
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Callable, Mapping

import numpy as np
import torch
from torch import nn

from ..data.splits import Split
from ..data.store import Store, StoredVolume
from ..errors import DatasetError, TrainingError
from ..evaluation.figures import progress_figure
from ..evaluation.metrics import dsc
from ..inference.member import predict_crop, predict_volume
from ..io import durable, records
from ..network.precision import is_out_of_memory
from ..planning.plan import MemberPlan, Plan
from ..preparing.prepare import jitter_voxels
from ..training import checkpoint
from ..training.sampler import CachedVolumes, CropSource, SliceSource
from ..training.state import Progress
from ..training.train import Hooks, Interrupted, Place, TrainSettings, Validate, train
from ..workspace import RunFolder, StoreFolder, lock, machine_memory_gb
from .model import Model
from .preprocess import require_prepared

log = logging.getLogger(__name__)
DRAWN_EVERY_S = 60.0  # progress.png takes half a second
CACHE_SHARE = 0.25  # of the machine's memory: stored volumes are kept decompressed up to this


@dataclass(frozen=True)
class TrainOptions:
    """The command line's wishes; None leaves the plan's value."""

    device: str
    epochs: int | None = None
    minutes: float | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    seed: int = 0
    pretrained: str | None = None
    world: int = 1
    go_on: bool = False
    workers: int | None = None


@dataclass(frozen=True)
class Job:
    """A member's training as it is about to start: with which settings, and whether it goes on from its checkpoint."""

    member: MemberPlan
    fold: int
    settings: TrainSettings
    go_on: bool


def settings_for(member: MemberPlan, options: TrainOptions, seconds: float | None) -> TrainSettings:
    """The plan's training values with the command line's put over them."""
    training = member.training
    given = {"epochs": options.epochs, "batch_size": options.batch_size, "learning_rate": options.learning_rate}
    training = replace(training, **{k: v for k, v in given.items() if v is not None})
    workers = options.workers if options.workers is not None else default_workers(options.world)
    return TrainSettings(training, options.seed, seconds, workers, options.device, options.world, options.pretrained, options.epochs)


def default_workers(world: int = 1) -> int:
    """Augmentation processes of each of `world` training processes: one per core beside the first, at most 12 (nnU-Net's number); none
    where forking is not safe."""
    return max(1, min(12, (os.cpu_count() or 2) // world - 1)) if sys.platform == "linux" else 0


def is_finished(run: RunFolder) -> bool:
    return checkpoint.exists(run.checkpoint("final"))


def run_member(model: Model, store: StoreFolder, job: Job, split: Split, where: Place, hooks: Hooks = Hooks()) -> Progress:
    """Train one member on one fold, in its run folder, which is locked meanwhile (process 0 holds the lock)."""
    member, run = job.member, model.folder.run(job.member.name, job.fold)
    require_trainable(model, store, member, {job.fold: split})
    if where.rank:
        return _train(model.plan, store, job, split, run, where, hooks)
    with lock(run.root, f"training of {member.name} fold {job.fold}"), memory_stated(run, job.settings):
        durable.remove_leftovers(run.root)
        if job.go_on and not checkpoint.exists(run.checkpoint("latest")):
            raise TrainingError(f"{run.checkpoint('latest')}: no checkpoint to continue from; leave --c out to start this training")
        if not job.go_on:
            records.write(run.settings, job.settings)
        return _train(model.plan, store, job, split, run, where, hooks)


@contextmanager
def memory_stated(run: RunFolder, settings: TrainSettings):
    """Turn what torch says where the device's memory is too small into a TrainingError with the remedy."""
    try:
        yield
    except RuntimeError as e:
        if not is_out_of_memory(e):
            raise
        what = f"a batch of {settings.training.batch_size} does not fit the memory of {settings.device}"
        remedy = "move the folder away and start again with a smaller --batch_size, or free the device's memory and go on with --c"
        raise TrainingError(f"{run.root}: {what} ({str(e).splitlines()[0]}); {remedy}") from e


def _train(plan: Plan, store: StoreFolder, job: Job, split: Split, run: RunFolder, where: Place, hooks: Hooks) -> Progress:
    member = job.member
    training, held_out = (stored_of(store, member, cases) for cases in (split.train, split.val))
    if not held_out:
        log.warning("%s: no held-out case has %s; the newest weights count as the best", run.root, " or ".join(member.organs))
    # of many volumes this takes minutes; several processes stop together, at their first step
    stop = hooks.should_stop if where.world == 1 else lambda: False
    for volume in training + held_out:
        _stop_if(stop)
        volume.verify()
    memory_gb = CACHE_SHARE * machine_memory_gb() / where.world  # each process of a training has its own
    cached = CachedVolumes(training, memory_gb)
    if job.settings.workers:
        cached.load(lambda: _stop_if(stop))
    source = SliceSource(member, plan.labels, cached) if member.stage == "coarse" else CropSource(member, cached)
    tested = CachedVolumes(held_out, memory_gb)
    validate = validation(plan, member, tested, where.device, hooks.should_stop)

    def validation_takes(network: nn.Module) -> float:
        """Seconds for all held-out cases, by the time that one takes."""
        if not held_out:
            return 0.0
        began, one = time.monotonic(), replace(tested, volumes=held_out[:1])
        validation(plan, member, one, where.device)(network)
        return (time.monotonic() - began) * len(held_out)

    drawn_at = time.monotonic()

    def after_epoch(rows: list[dict], last: bool) -> None:
        nonlocal drawn_at
        if last or time.monotonic() - drawn_at > DRAWN_EVERY_S:
            progress_figure(rows, run.progress)
            drawn_at = time.monotonic()
        hooks.on_epoch(rows, last)

    return train(member, job.settings, source, run, validate, where, job.go_on, replace(hooks, on_epoch=after_epoch), validation_takes)


def _stop_if(should_stop: Callable[[], bool]) -> None:
    if should_stop():
        raise Interrupted


def validation(
    plan: Plan, member: MemberPlan, held_out: CachedVolumes, device: torch.device, should_stop: Callable[[], bool] = lambda: False
) -> Validate:  # fmt: skip
    """validate(network) → mean held-out Dice per organ, on the member's own grid; None where no held-out case has the organ.

    Interrupted is raised between two batches of slices, or two crops, where should_stop() says so.
    """
    stop_if_asked = partial(_stop_if, should_stop)

    def counts_of(network: nn.Module, index: int) -> dict[str, float | None]:
        record = held_out.volumes[index].record
        hu, truth = (np.asarray(held_out.array(index, kind)) for kind in ("image", "labels"))
        if member.stage == "coarse":
            p = predict_volume(network, member, plan.labels, hu, record.anchor_index, device, False, stop_if_asked)
            return dice_by_organ(truth, p.argmax(0), {o: i for i, o in enumerate(plan.labels.organs, 1) if o in record.known})
        inner = tuple(slice(j, n - j) for j, n in zip(jitter_voxels(member), hu.shape))
        p = predict_crop(network, member, hu[inner], device, flips=False)
        return dice_by_organ(truth[inner], p > 0.5, {record.known[0]: 1})

    def validate(network: nn.Module) -> dict[str, float | None]:
        found: dict[str, list[float]] = {organ: [] for organ in member.organs}
        for i in range(len(held_out.volumes)):
            stop_if_asked()
            for organ, value in counts_of(network, i).items():
                if value is not None:
                    found[organ].append(value)
        return {organ: float(np.mean(values)) if values else None for organ, values in found.items()}

    return validate


def dice_by_organ(truth: np.ndarray, prediction: np.ndarray, channel: dict[str, int]) -> dict[str, float | None]:
    """Dice per organ of two channel maps."""
    out = {}
    for organ, c in channel.items():
        t, p = truth == c, prediction == c
        out[organ] = dsc(int(t.sum()), int(p.sum()), int((t & p).sum()))
    return out


def require_trainable(model: Model, store: StoreFolder, member: MemberPlan, splits: Mapping[int, Split]) -> None:
    """DatasetError where a member's volumes are not preprocessed by this plan, or one of these folds has none to train with."""
    cases = tuple(dict.fromkeys(case for split in splits.values() for case in split.train + split.val))
    require_prepared(store, member, model.plan, cases, f"c2f_plan_and_preprocess -d {model.plan.dataset}")
    stored = {v.record.case for v in stored_of(store, member, cases)}
    for fold, split in splits.items():
        if not stored & set(split.train):
            lacking = f"none of the {len(split.train)} training cases of this fold shows {' or '.join(member.organs)}, nor its place"
            raise DatasetError(f"{model.folder.run(member.name, fold).root}: {lacking}; share the cases out by a splits_final.json of your own, "
                               "or leave the organ out")  # fmt: skip


def stored_of(store: StoreFolder, member: MemberPlan, cases) -> tuple[StoredVolume, ...]:
    """A member's stored volumes of these cases; none where its organs are known in no case."""
    return Store(store.volumes(member.volumes)).of_cases(cases)
