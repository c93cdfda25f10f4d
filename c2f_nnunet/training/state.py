"""What a training remembers: networks, optimiser, progress and log; saved, resumed, and handed to prediction."""
from __future__ import annotations

import json
import logging
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Callable

import torch
from torch import Tensor, nn

from ..errors import ModelError, TrainingError
from ..io import durable, records
from ..network.precision import place
from ..network.unet import build_network
from ..planning.plan import NetworkPlan, TrainingPlan
from ..workspace import RunFolder
from . import checkpoint

log = logging.getLogger(__name__)
CHECKPOINT_EVERY_S = 300.0
SAVING_SHARE = 0.02  # of the training time at most
OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": lambda p, plan: torch.optim.Adam(p, plan.learning_rate, weight_decay=plan.weight_decay),
    "adamw": lambda p, plan: torch.optim.AdamW(p, plan.learning_rate, weight_decay=plan.weight_decay),
    "sgd": lambda p, plan: torch.optim.SGD(p, plan.learning_rate, momentum=0.99, nesterov=True, weight_decay=plan.weight_decay),
}


@dataclass
class Progress:
    """How far a training is. validation_s: what the last validation took, kept for the final one.

    saving_s: what of elapsed_s was spent on writing files. rate_factor: what the learning rate is multiplied by, below 1 once the
    loss was not finite.
    """

    step: int = 0
    epoch: int = 0
    elapsed_s: float = 0.0
    validation_s: float = 0.0
    saving_s: float = 0.0
    best: float = -1.0
    done: bool = False
    rate_factor: float = 1.0


@dataclass
class TrainState:
    """Everything that changes while training. average: the running average of the network, which is validated and kept."""

    network: nn.Module
    average: nn.Module
    optimiser: torch.optim.Optimizer
    progress: Progress = field(default_factory=Progress)
    rows: list[dict] = field(default_factory=list)
    saved_at: float = field(default_factory=time.monotonic)
    save_cost_s: float = 0.0

    def checkpoint_is_due(self, ahead_s: float = 0.0) -> bool:
        """After every epoch, unless all that is written would then take more than 2 % of the time; after five minutes at the latest.

        ahead_s: for how long there will be no further occasion.
        """
        spent_s = self.progress.saving_s + self.save_cost_s
        return self.checkpoint_is_overdue(ahead_s) or spent_s < SAVING_SHARE * self.progress.elapsed_s

    def checkpoint_is_overdue(self, ahead_s: float = 0.0) -> bool:
        """Whether five minutes have passed, also inside a long epoch."""
        return time.monotonic() - self.saved_at + ahead_s > CHECKPOINT_EVERY_S

    @contextmanager
    def saving(self):
        """The time inside counts as the cost of saving."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.progress.saving_s += time.monotonic() - began

    def save(self, run: RunFolder) -> None:
        """Everything that is needed to go on, to checkpoint_latest, and the log."""
        before_s = self.progress.saving_s
        with self.saving():
            tensors, state = checkpoint.optimiser_state(self.optimiser)
            random_tensors, random_state = checkpoint.random_state()
            tensors |= random_tensors | _named("network.", self.network) | _named("average.", self.average)
            whole = {"progress": asdict(self.progress), "optimiser": state, "random": random_state, "rows": self.rows}
            checkpoint.save(run.checkpoint("latest"), tensors, whole)
            self.write_log(run)
        self.saved_at, self.save_cost_s = time.monotonic(), self.progress.saving_s - before_s

    def save_weights(self, run: RunFolder, which: str) -> None:
        """The averaged weights alone, to checkpoint_<which>: what prediction reads."""
        with self.saving():
            checkpoint.save(run.checkpoint(which), _named("average.", self.average), {"progress": asdict(self.progress)})

    def write_log(self, run: RunFolder) -> None:
        """One JSON object per epoch."""
        durable.write_text(run.log, "".join(json.dumps(records.plain(row)) + "\n" for row in self.rows))


def new_state(network_plan: NetworkPlan, plan: TrainingPlan, seed: int, device: torch.device) -> TrainState:
    """A network with weights that the seed decides, its average equal to it."""
    torch.manual_seed(seed)
    network, average = (place(build_network(network_plan), device, network_plan.dimensions) for _ in range(2))
    average.load_state_dict(network.state_dict())
    return TrainState(network, average, OPTIMISERS[plan.optimiser](network.parameters(), plan))


def resume(state: TrainState, run: RunFolder) -> None:
    """Go on from checkpoint_latest (or the one before it, where that is damaged)."""
    tensors, saved, warning = checkpoint.load(run.checkpoint("latest"))
    if warning:
        log.warning("%s", warning)
    restore_weights(state.network, tensors, "network.", str(run.root))
    restore_weights(state.average, tensors, "average.", str(run.root))
    checkpoint.restore_optimiser(state.optimiser, tensors, saved["optimiser"])
    checkpoint.restore_random_state(tensors, saved["random"])
    state.progress, state.rows = Progress(**saved["progress"]), saved["rows"]


def start_from(state: TrainState, pretrained: str) -> None:
    """Start from another training's averaged weights (-pretrained_weights)."""
    path = weights_path(pretrained)
    tensors, _, warning = checkpoint.load(path)
    if warning:
        log.warning("%s", warning)
    restore_weights(state.network, tensors, "average.", str(path))
    state.average.load_state_dict(state.network.state_dict())


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    """Running average of the weights (and of normalisation statistics); early steps count less, so the start is forgotten."""
    decay = min(decay, step / (step + 10))
    for mean, now in zip(average.state_dict().values(), network.state_dict().values()):
        mean.lerp_(now, 1 - decay) if mean.is_floating_point() else mean.copy_(now)


def _named(prefix: str, network: nn.Module) -> dict[str, Tensor]:
    return {prefix + k: v for k, v in network.state_dict().items()}


def restore_weights(network: nn.Module, tensors: dict[str, Tensor], prefix: str, where: str) -> None:
    """Load the tensors with this prefix; TrainingError where they do not fit the network."""
    network.load_state_dict(fitting_weights(network, tensors, prefix, where))


def fitting_weights(network: nn.Module, tensors: dict[str, Tensor], prefix: str, where: str) -> dict[str, Tensor]:
    """The tensors with this prefix by their names in the network (which may be on torch's meta device); TrainingError as above."""
    own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    expected = network.state_dict()
    if wrong := sorted(k for k in expected.keys() | own.keys() if k not in own or k not in expected or own[k].shape != expected[k].shape):
        raise TrainingError(
            f"{where}: the weights do not fit the plan's network ({len(wrong)} tensors differ, first {wrong[0]}); "
            "train it again or use the plan that it was trained with"
        )
    return own


def weights_path(pretrained: str) -> Path:
    """The checkpoint that -pretrained_weights names, with or without .json; ModelError where there is none."""
    path = Path(pretrained.removesuffix(".json"))
    if not checkpoint.exists(path):
        raise ModelError(f"-pretrained_weights {pretrained}: no checkpoint there; give a checkpoint_best.json")
    return path
