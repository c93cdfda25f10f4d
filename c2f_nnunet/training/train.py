"""Training one member: the loop."""
from __future__ import annotations

import logging
import math
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import count, islice
from typing import Callable

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from ..errors import TrainingError
from ..io.records import record
from ..network.precision import autocast
from ..planning.plan import MemberPlan, TrainingPlan
from ..workspace import RunFolder
from . import checkpoint
from .loss import deep_supervised, make_loss
from .sampler import Batches, stream
from .schedule import Budget, learning_rate
from .state import Progress, TrainState, new_state, resume, start_from, update_average

log = logging.getLogger(__name__)
Validate = Callable[[nn.Module], dict[str, float | None]]
Step = Callable[[dict], tuple[float, float]]  # a batch → its loss and the learning rate
# The learning rate's factor once a loss was not finite. A choice, not measured: no experiment here compares factors. It is the default of
# PyTorch's ReduceLROnPlateau, whose manual names 2 to 10; the largest step is taken since there is one try only: a rate that is too small
# costs some accuracy in what is left of the budget, one that is still too large costs the training.
RATE_AFTER_FAILURE = 0.1
VALIDATION_SHARE = 0.1  # of a training by time, at most, between the first step and the last: a choice
FINAL_SHARE = 0.2  # of a training by time, at most, is kept for the last validation; on a busy machine it then ends late, but is trained: a choice


@record
class TrainSettings:
    """What the command line adds to a member's plan; written to the run's settings.json.

    seconds: this member's part of --minutes; None trains the plan's epochs. training: the plan's values after --epochs,
    --batch_size and --lr replaced theirs. workers: augmentation processes (0: in the training process). epochs: --epochs, which ends a
    training by time as well.
    """

    training: TrainingPlan
    seed: int
    seconds: float | None
    workers: int
    device: str
    world: int
    pretrained: str | None
    epochs: int | None = None

    @property
    def budget(self) -> Budget:
        """Its epochs, its seconds, or, where both were asked for, whichever ends first."""
        by_steps = self.seconds is None or self.epochs is not None
        return Budget(self.training.epochs * self.training.steps_per_epoch if by_steps else None, self.seconds)


class Interrupted(Exception):
    """The training was asked to stop; its checkpoint is written."""


class NotFinite(Exception):
    """A loss or its gradient is not finite; the weights are still those of the step before."""


@dataclass(frozen=True)
class Hooks:
    """What the outside sees and says while a training runs: after each epoch the log's rows, and whether it was the last; before each
    step, whether to stop."""

    on_epoch: Callable[[list[dict], bool], None] = lambda rows, last: None
    should_stop: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class Place:
    """Where this process computes: its device, and its rank among `world` DDP processes."""

    device: torch.device
    rank: int = 0
    world: int = 1

    def agreed(self, value: float) -> float:
        """Process 0's value in every process, so that all stop at the same step."""
        if self.world == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64 if self.device.type != "mps" else torch.float32, device=self.device)
        dist.broadcast(shared, 0)
        return float(shared)


class Clock:
    """A budget against the time and steps that a training has used, those before a resume included."""

    def __init__(self, budget: Budget, progress: Progress):
        self.budget, self.progress, self.began = budget, progress, time.monotonic() - progress.elapsed_s

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.began

    def used(self) -> float:
        """The share of the budget used, 0…1; the time of one more validation, or a fifth of all, is kept for the final one."""
        kept = min(self.progress.validation_s, FINAL_SHARE * self.budget.seconds) if self.budget.seconds else 0.0
        return self.budget.progress(self.progress.step, self.elapsed_s + kept)


def train(
    member: MemberPlan, settings: TrainSettings, source, run: RunFolder, validate: Validate, where: Place,
    go_on: bool = False, hooks: Hooks = Hooks(), validation_takes: Callable[[nn.Module], float] = lambda network: 0.0,
) -> Progress:  # fmt: skip
    """Train a member to its budget's end, keeping the best by held-out Dice; returns the final progress.

    source draws samples (see sampler); validate(network) gives each organ's held-out Dice, None where undefined. Where it
    is undefined for every organ, the newest weights count as the best. validation_takes(network): an estimate in seconds, which a
    training by time keeps for the last one; in between it validates where that is a tenth of the time at most. go_on: from the latest checkpoint. Raises
    Interrupted after a checkpoint where hooks.should_stop() says so between steps, or where validate raises it; a resumed
    training has the same epochs. Where a loss is not finite it goes on from the latest checkpoint with a tenth of
    the learning rate, once; TrainingError the second time.
    """
    plan = settings.training

    def started(go_on: bool) -> TrainState:
        state = new_state(member.network, plan, settings.seed, where.device)
        if go_on:
            resume(state, run)
        elif settings.pretrained:
            start_from(state, settings.pretrained)
        return state

    state = started(go_on)
    began = time.monotonic() - state.progress.elapsed_s
    while True:
        try:
            if settings.seconds and not state.progress.validation_s and where.rank == 0:
                state.progress.validation_s = validation_takes(state.average.eval())
            return _to_the_end(state, settings, source, run, validate, where, hooks)
        except NotFinite as e:
            if state.progress.rate_factor < 1.0:
                raise TrainingError(f"{run.root}: {e}; move the folder away and start again with a lower --lr") from None
            state = started(checkpoint.exists(run.checkpoint("latest")))
            state.progress.rate_factor, state.progress.elapsed_s = RATE_AFTER_FAILURE, time.monotonic() - began
            log.warning("%s: %s; once more from step %d with a tenth of the learning rate", run.root, e, state.progress.step)


def _to_the_end(
    state: TrainState, settings: TrainSettings, source, run: RunFolder, validate: Validate, where: Place, hooks: Hooks
) -> Progress:  # fmt: skip
    """Train from where the state is to the budget's end; NotFinite where that cannot be."""
    plan, progress = settings.training, state.progress
    clock = Clock(settings.budget, progress)
    batches = Batches(source, plan.batch_size, settings.seed, progress.step, settings.workers, where.rank, where.world)
    step, validated_s = make_step(state, plan, clock, where), clock.elapsed_s

    with closing(stream(batches, settings.workers)) as batch_stream:
        for epoch in count(progress.epoch):
            if progress.done:
                break
            row = _epoch(state, step, batch_stream, plan, clock, where, run, hooks)
            state.rows.append(row)
            last = bool(where.agreed(float(clock.used() >= 1.0)))
            affordable = settings.seconds is None or progress.validation_s <= VALIDATION_SHARE * (clock.elapsed_s - validated_s)
            validating = last or (epoch + 1) % plan.validate_every == 0 and bool(where.agreed(float(affordable)))
            if validating:
                if where.rank == 0 and state.checkpoint_is_due(progress.validation_s):
                    state.save(run)  # a kill while it validates then costs no epoch
                row |= _validated(validate, state, where, last, run)
                validated_s = clock.elapsed_s
            progress.epoch, progress.elapsed_s = epoch + 1, clock.elapsed_s
            if validating and row["val_dsc"] >= progress.best:
                progress.best = row["val_dsc"]
                if where.rank == 0:
                    state.save_weights(run, "best")
            progress.done = last
            stopping = bool(where.agreed(float(hooks.should_stop())))
            if where.rank == 0:
                if last or stopping or state.checkpoint_is_due():
                    state.save(run)
                with state.saving():
                    hooks.on_epoch(state.rows, last)
            if stopping and not progress.done:
                raise Interrupted
    if where.rank == 0:
        state.save_weights(run, "final")
    return progress


def _epoch(
    state: TrainState, step: Step, batches, plan: TrainingPlan, clock: Clock, where: Place, run: RunFolder, hooks: Hooks
) -> dict:
    """One epoch, or what is left of it where a training was stopped inside it; returns its row of the log."""
    if state.rows and state.rows[-1]["epoch"] == state.progress.epoch:  # saved before it was validated, which is all that is left of it
        return state.rows.pop()
    state.network.train()
    losses, waited_s, began, rate = [], 0.0, time.monotonic(), 0.0
    for batch in _timed(islice(batches, (state.progress.epoch + 1) * plan.steps_per_epoch - state.progress.step)):
        waited_s += batch.waited_s
        loss, rate = step(batch.content)
        losses.append(loss)
        state.progress.elapsed_s = clock.elapsed_s
        stopping = bool(where.agreed(float(hooks.should_stop())))
        if where.rank == 0 and (stopping or state.checkpoint_is_overdue()):
            state.save(run)
        if stopping:
            raise Interrupted
        if where.agreed(float(clock.used() >= 1.0)):
            break
    mean = float(np.mean(losses)) if losses else math.nan
    return {
        "epoch": state.progress.epoch, "step": state.progress.step, "train_loss": mean, "lr": rate,
        "seconds": time.monotonic() - began, "waited_s": waited_s,
        "saving_s": state.progress.saving_s - sum(row.get("saving_s", 0.0) for row in state.rows),
    }  # fmt: skip


@dataclass(frozen=True)
class TimedBatch:
    """A batch and the seconds that the training waited for it."""

    content: dict
    waited_s: float


def _timed(batches):
    began = time.monotonic()
    for content in batches:
        yield TimedBatch(content, time.monotonic() - began)
        began = time.monotonic()


def make_step(state: TrainState, plan: TrainingPlan, clock: Clock, where: Place) -> Step:
    """step(batch) → (loss, learning rate): one optimiser step, and the running average brought up to date.

    NotFinite, with the weights untouched, where the loss or its gradient is not finite.
    """
    network = nn.parallel.DistributedDataParallel(state.network) if where.world > 1 else state.network
    loss_of = deep_supervised(make_loss(plan.loss))

    def step(batch: dict) -> tuple[float, float]:
        rate = learning_rate(plan.learning_rate, plan.schedule, where.agreed(clock.used()), state.progress.step, plan.warmup_steps)
        rate *= state.progress.rate_factor
        for group in state.optimiser.param_groups:
            group["lr"] = rate
        layout = torch.channels_last if batch["image"].ndim == 4 else torch.channels_last_3d
        image = torch.from_numpy(batch["image"]).to(where.device, memory_format=layout)
        target, known = (torch.from_numpy(batch[k]).to(where.device) for k in ("target", "known"))
        with autocast(where.device):
            logits = network(image)
        loss = loss_of(logits, target, known)
        state.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None])
        value = float(loss.detach())
        if not (math.isfinite(norm) and math.isfinite(where.agreed(value))):  # both are the same in every process
            raise NotFinite(f"the loss became {value} in epoch {state.progress.epoch} (norm of its gradient: {float(norm)})")
        if plan.clip_norm:
            nn.utils.clip_grads_with_norm_(network.parameters(), plan.clip_norm, norm)
        state.optimiser.step()
        state.progress.step += 1
        update_average(state.average, state.network, plan.ema_decay, state.progress.step)
        return value, rate

    return step


def _validated(validate: Validate, state: TrainState, where: Place, last: bool, run: RunFolder) -> dict:
    """Held-out Dice per organ and their mean (by process 0); warns of an organ that the network never finds.

    Until then the epoch is not counted as done, so a training that goes on from a checkpoint of its last step validates first; where
    validate raises Interrupted, that is the checkpoint.
    """
    began, progress, by_organ = time.monotonic(), state.progress, None
    if where.rank == 0:
        with suppress(Interrupted):
            by_organ = validate(state.average.eval())
    if where.agreed(float(by_organ is None)):
        if where.rank == 0:
            state.save(run)
        raise Interrupted
    if where.rank:
        return {"val_dsc": -1.0}
    progress.validation_s = time.monotonic() - began
    defined = [v for v in by_organ.values() if v is not None]
    for organ, value in by_organ.items():
        if value == 0.0 and (last or progress.epoch >= 5):
            log.warning(
                "epoch %d: held-out Dice of %s is 0: this class has died or has not started; see documentation/troubleshooting.md",
                progress.epoch + 1, organ,
            )  # fmt: skip
    return {"val_dsc": float(np.mean(defined)) if defined else 0.0, "val_by_organ": by_organ, "validation_s": progress.validation_s}
