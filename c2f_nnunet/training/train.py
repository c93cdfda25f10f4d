"""Training one member: the loop, what it remembers, and what it leaves behind."""
from __future__ import annotations

import json
import logging
import time
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Callable

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import ModelError, TrainingError
from ..io import durable, records
from ..io.records import record
from ..network.precision import autocast, place
from ..network.unet import build_network
from ..planning.plan import MemberPlan, TrainingPlan
from ..workspace import RunFolder
from . import checkpoint
from .loss import deep_supervised, make_loss
from .sampler import Batches, stream
from .schedule import Budget, learning_rate

log = logging.getLogger(__name__)
CHECKPOINT_EVERY_S = 300.0
CHECKPOINT_SHARE = 0.02  # of the training time at most
OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": lambda p, plan: torch.optim.Adam(p, plan.learning_rate, weight_decay=plan.weight_decay),
    "adamw": lambda p, plan: torch.optim.AdamW(p, plan.learning_rate, weight_decay=plan.weight_decay),
    "sgd": lambda p, plan: torch.optim.SGD(p, plan.learning_rate, momentum=0.99, nesterov=True, weight_decay=plan.weight_decay),
}


@record
class TrainSettings:
    """What the command line adds to a member's plan; written to the run's settings.json.

    seconds: this member's part of --minutes; None trains the plan's epochs. training: the plan's values after --epochs,
    --batch_size and --lr replaced theirs. workers: augmentation processes (0: in the training process).
    """

    training: TrainingPlan
    seed: int
    seconds: float | None
    workers: int
    device: str
    world: int
    pretrained: str | None


class Interrupted(Exception):
    """The training was asked to stop; its checkpoint is written."""


@dataclass
class Progress:
    """What changes while training (beside weights and optimiser)."""

    step: int = 0
    epoch: int = 0
    elapsed_s: float = 0.0
    validation_s: float = 0.0
    best: float = -1.0
    done: bool = False


Validate = Callable[[nn.Module], dict[str, float | None]]


def train(
    member: MemberPlan, settings: TrainSettings, source, run: RunFolder, validate: Validate, device: torch.device,
    resume: bool = False, rank: int = 0, on_epoch: Callable[[list[dict]], None] = lambda rows: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Progress:  # fmt: skip
    """Train a member to its budget's end, keeping the best by held-out Dice; returns the final progress.

    source draws samples (see sampler); validate(network) gives each organ's held-out Dice, None where undefined. Where it
    is undefined for every organ, the newest weights count as the best. Raises Interrupted after a checkpoint where
    should_stop() says so: between steps, or after the epoch's end, so that a resumed training has the same epochs.
    """
    plan = settings.training
    torch.manual_seed(settings.seed)
    network = place(build_network(member.network), device, member.network.dimensions)
    average = place(build_network(member.network), device, member.network.dimensions)
    average.load_state_dict(network.state_dict())
    optimiser = OPTIMISERS[plan.optimiser](network.parameters(), plan)
    loss_of = deep_supervised(make_loss(plan.loss))
    budget = Budget(None if settings.seconds else plan.epochs * plan.steps_per_epoch, settings.seconds)
    progress, rows = Progress(), []
    if resume:
        progress, rows = _resume(run, network, average, optimiser)
    elif settings.pretrained:
        load_weights(network, settings.pretrained)
        average.load_state_dict(network.state_dict())
    parallel = nn.parallel.DistributedDataParallel(network) if settings.world > 1 else network
    batches = Batches(source, plan.batch_size, settings.seed, progress.step, settings.workers, rank, settings.world)
    clock, saved_at, save_cost = Clock(progress.elapsed_s), time.monotonic(), 0.0

    def spent() -> float:  # the last validation's time is kept for the final one
        return clock.elapsed + progress.validation_s

    with closing(stream(batches, settings.workers)) as batch_stream:
        for epoch in count(progress.epoch):
            if progress.done or _agreed(float(budget.finished(progress.step, spent())), settings.world, device):
                break
            network.train()
            losses, waited, began, stopping = [], 0.0, time.monotonic(), False
            # a training that was stopped inside an epoch goes on with what is left of it
            for batch in _timed(islice(batch_stream, plan.steps_per_epoch - progress.step % plan.steps_per_epoch)):
                waited += batch.waited_s
                used = _agreed(budget.progress(progress.step, spent()), settings.world, device)
                rate = learning_rate(plan.learning_rate, plan.schedule, used, progress.step, plan.warmup_steps)
                losses.append(_step(parallel, optimiser, loss_of, batch.content, rate, plan.clip_norm, device))
                progress.step += 1
                _update_average(average, network, plan.ema_decay, progress.step)
                stopping = bool(_agreed(float(should_stop()), settings.world, device))
                if stopping and progress.step % plan.steps_per_epoch:
                    _save(run, "latest", network, average, optimiser, replace(progress, elapsed_s=clock.elapsed), rows, rank)
                    raise Interrupted
                if used >= 1.0:
                    break
            progress.epoch = epoch + 1
            last = bool(_agreed(float(used >= 1.0 or budget.finished(progress.step, spent())), settings.world, device))
            row = {"epoch": epoch, "step": progress.step, "train_loss": float(np.mean(losses)), "lr": rate}
            row |= {"seconds": time.monotonic() - began, "waited_s": waited}
            if not np.isfinite(row["train_loss"]):
                raise TrainingError(f"{run.root}: the loss became {row['train_loss']} in epoch {epoch}; lower the learning rate with --lr")
            if last or progress.epoch % plan.validate_every == 0:
                row |= _validated(validate, average, progress, rank, last)
                if row["val_dsc"] >= progress.best:
                    progress.best = row["val_dsc"]
                    _save_weights(run, "best", average, progress, rank)
            # validating may itself have used up the time
            progress.done = bool(_agreed(float(last or budget.finished(progress.step, spent())), settings.world, device))
            progress.elapsed_s = clock.elapsed
            rows.append(row)
            due = time.monotonic() - saved_at
            if progress.done or stopping or due > CHECKPOINT_EVERY_S or save_cost < CHECKPOINT_SHARE * due:
                save_began = time.monotonic()
                _save(run, "latest", network, average, optimiser, progress, rows, rank)
                saved_at, save_cost = time.monotonic(), time.monotonic() - save_began
            if rank == 0:
                _write_log(run, rows)
                on_epoch(rows)
            if stopping and not progress.done:
                raise Interrupted
    _save_weights(run, "final", average, progress, rank)
    return progress


class Clock:
    """Seconds of training, those before a resume included."""

    def __init__(self, before_s: float):
        self.began = time.monotonic() - before_s

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.began


@dataclass(frozen=True)
class TimedBatch:
    content: dict
    waited_s: float


def _timed(batches):
    """Each batch with the seconds that the training waited for it."""
    began = time.monotonic()
    for content in batches:
        yield TimedBatch(content, time.monotonic() - began)
        began = time.monotonic()


def _step(network, optimiser, loss_of, batch: dict, rate: float, clip_norm: float, device: torch.device) -> float:
    """One optimiser step; returns the loss."""
    for group in optimiser.param_groups:
        group["lr"] = rate
    layout = torch.channels_last if batch["image"].ndim == 4 else torch.channels_last_3d
    image = torch.from_numpy(batch["image"]).to(device, memory_format=layout, non_blocking=True)
    target, known = (torch.from_numpy(batch[k]).to(device, non_blocking=True) for k in ("target", "known"))
    with autocast(device):
        logits = network(image)
    loss = loss_of(logits, target, known)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    if clip_norm:
        nn.utils.clip_grad_norm_(network.parameters(), clip_norm)
    optimiser.step()
    return float(loss.detach())


@torch.no_grad()
def _update_average(average: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    """Running average of the weights (and of normalisation statistics); early steps count less, so the start is forgotten."""
    decay = min(decay, step / (step + 10))
    for mean, now in zip(average.state_dict().values(), network.state_dict().values()):
        mean.lerp_(now, 1 - decay) if mean.is_floating_point() else mean.copy_(now)


def _agreed(value: float, world: int, device: torch.device) -> float:
    """Process 0's value in every process, so that all stop at the same step."""
    if world == 1:
        return value
    shared = torch.tensor([value], dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
    dist.broadcast(shared, 0)
    return float(shared)


def _validated(validate: Validate, average: nn.Module, progress: Progress, rank: int, last: bool) -> dict:
    """Held-out Dice per organ and their mean; warns of an organ that the network never finds."""
    if rank:
        return {"val_dsc": -1.0}
    began = time.monotonic()
    average.eval()
    by_organ = validate(average)
    progress.validation_s = time.monotonic() - began
    defined = [v for v in by_organ.values() if v is not None]
    for organ, value in by_organ.items():
        if value == 0.0 and (last or progress.epoch > 5):
            log.warning(
                "epoch %d: held-out Dice of %s is 0: this class has died or has not started; see documentation/troubleshooting.md",
                progress.epoch, organ,
            )  # fmt: skip
    return {"val_dsc": float(np.mean(defined)) if defined else 0.0, "val_by_organ": by_organ, "validation_s": progress.validation_s}


def _save(run: RunFolder, which: str, network, average, optimiser, progress: Progress, rows: list[dict], rank: int) -> None:
    """Everything that is needed to go on, to checkpoint_<which>, and the log."""
    if rank:
        return
    tensors, state = checkpoint.optimiser_state(optimiser)
    random_tensors, random_state = checkpoint.random_state()
    tensors |= random_tensors | _named("network.", network) | _named("average.", average)
    checkpoint.save(run.checkpoint(which), tensors, {"progress": vars(progress), "optimiser": state, "random": random_state, "rows": rows})
    durable.write_text(run.log, "".join(json.dumps(records.plain(row)) + "\n" for row in rows))


def _save_weights(run: RunFolder, which: str, average: nn.Module, progress: Progress, rank: int) -> None:
    """The averaged weights alone: what prediction reads."""
    if rank == 0:
        checkpoint.save(run.checkpoint(which), _named("average.", average), {"progress": vars(progress)})


def _named(prefix: str, network: nn.Module) -> dict[str, Tensor]:
    return {prefix + k: v for k, v in network.state_dict().items()}


def _resume(run: RunFolder, network, average, optimiser) -> tuple[Progress, list[dict]]:
    tensors, state, warning = checkpoint.load(run.checkpoint("latest"))
    if warning:
        log.warning("%s", warning)
    restore_weights(network, tensors, "network.", str(run.root))
    restore_weights(average, tensors, "average.", str(run.root))
    checkpoint.restore_optimiser(optimiser, tensors, state["optimiser"])
    checkpoint.restore_random_state(tensors, state["random"])
    return Progress(**state["progress"]), state["rows"]


def restore_weights(network: nn.Module, tensors: dict[str, Tensor], prefix: str, where: str) -> None:
    """Load the tensors with this prefix; TrainingError where they do not fit the network."""
    own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    expected = network.state_dict()
    if wrong := sorted(k for k in expected.keys() | own.keys() if k not in own or k not in expected or own[k].shape != expected[k].shape):
        raise TrainingError(
            f"{where}: the weights do not fit the plan's network ({len(wrong)} tensors differ, first {wrong[0]}); "
            "train it again or use the plan that it was trained with"
        )
    network.load_state_dict(own)


def weights_path(pretrained: str) -> Path:
    """The checkpoint that -pretrained_weights names, with or without .json; ModelError where there is none."""
    path = Path(pretrained.removesuffix(".json"))
    if not checkpoint.exists(path):
        raise ModelError(f"-pretrained_weights {pretrained}: no checkpoint there; give a checkpoint_best.json")
    return path


def load_weights(network: nn.Module, pretrained: str) -> None:
    """Start from another training's averaged weights (-pretrained_weights)."""
    path = weights_path(pretrained)
    tensors, _, warning = checkpoint.load(path)
    if warning:
        log.warning("%s", warning)
    restore_weights(network, tensors, "average.", str(path))
