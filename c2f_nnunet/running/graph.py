"""Which trainings, in what order, and how a time budget is shared: c2f_train's CONFIG and FOLD as a list of tasks."""
from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from typing import Callable, Literal

from ..errors import TrainingError
from ..io import records
from ..planning.plan import MemberPlan, Plan
from ..training import checkpoint
from ..training.train import TrainSettings
from ..workspace import ModelFolder, require_place, require_unlocked
from .members import Job, TrainOptions, is_finished, settings_for

log = logging.getLogger(__name__)
GROUPS = ("coarse", "fine", "all")
FIT_SHARE = {"fusion": 0.03, "merge": 0.04}  # of the trainings' shares, kept for the fits: a choice
LEAST_PART = 0.25  # of a training's part of a time budget, where others took more than theirs


@dataclass(frozen=True)
class Task:
    """One training (member and fold), or one of the fits that follow: of the views, or of both stages."""

    kind: Literal["member", "fusion", "merge"]
    member: MemberPlan | None = None
    fold: int = -1

    @property
    def title(self) -> str:
        return f"{self.member.name} fold {self.fold}" if self.member else f"{self.kind} weights"


def members_of(plan: Plan, config: str) -> tuple[MemberPlan, ...]:
    """The members that a CONFIG names; PlanError for an unknown one."""
    groups = {"coarse": plan.coarse.members, "fine": plan.fine.members, "all": plan.members}
    return groups.get(config) or (plan.member(config),)


def folds_of(text: str, available: int) -> tuple[int, ...]:
    """FOLD: a number of an existing fold, or 'all'."""
    if text == "all":
        return tuple(range(available))
    if not text.isdecimal() or int(text) >= available:
        raise TrainingError(f"fold '{text}': there are folds 0 to {available - 1}; give one of them or 'all'")
    return (int(text),)


def tasks(plan: Plan, config: str, folds: tuple[int, ...]) -> list[Task]:
    """Every task in order: the coarse members of all folds, the fusion's fit, the fine members, the merge's fit."""
    chosen = members_of(plan, config)
    coarse = [Task("member", m, f) for f in folds for m in chosen if m.stage == "coarse"]
    fine = [Task("member", m, f) for f in folds for m in chosen if m.stage == "fine"]
    return [*coarse, *([Task("fusion")] if coarse else []), *fine, Task("merge")]


def next_job(folder: ModelFolder, task: Task, options: TrainOptions, seconds: float | None, is_group: bool) -> Job | None:
    """How to start a member's training, or None where it is finished.

    An unfinished one goes on with the settings that it was started with (but for the device and the number of workers,
    which change nothing that is computed): in a group always, alone only with --c.
    """
    run = folder.run(task.member.name, task.fold)
    if is_finished(run):
        log.info("%s: finished, skipped", run.root)
        return None
    fresh = settings_for(task.member, options, seconds)
    started = checkpoint.exists(run.checkpoint("latest"))
    if not is_group and started and not options.go_on:
        require_unlocked(run.root, "a training")
        raise TrainingError(f"{run.root}: an unfinished training is there; go on with --c, or move the folder away to start again")
    if options.go_on and not started and (not is_group or run.log.exists()):  # a group's member may not have been begun yet
        raise TrainingError(f"{run.root}: no checkpoint to continue from; leave --c out to start this training")
    if started and not run.settings.exists():
        remedy = "put it back, or move the folder away to start again"
        raise TrainingError(f"{run.settings}: a checkpoint is there, but not the settings that it was started with; {remedy}")
    if started:
        recorded = records.read(TrainSettings, run.settings)
        if ignored := _ignored(options, recorded):
            log.warning("%s: goes on with the settings that it was started with, so %s changes nothing", run.root, " and ".join(ignored))
        return Job(task.member, task.fold, replace(recorded, device=options.device, workers=fresh.workers), True)
    return Job(task.member, task.fold, fresh, False)


def _ignored(options: TrainOptions, recorded: TrainSettings) -> list[str]:
    """The options given that are others than those a training was started with."""
    training = recorded.training
    given = {
        "--epochs": (options.epochs, training.epochs), "--batch_size": (options.batch_size, training.batch_size),
        "--lr": (options.learning_rate, training.learning_rate), "-pretrained_weights": (options.pretrained, recorded.pretrained),
        "--seed": (options.seed or None, recorded.seed), "-num_gpus": (options.world if options.world > 1 else None, recorded.world),
        "--minutes": (options.minutes if recorded.seconds is None else None, None),
    }  # fmt: skip
    return [name for name, (wanted, was) in given.items() if wanted is not None and wanted != was]


def require_begun(folder: ModelFolder, todo: list[Task]) -> None:
    """TrainingError where --c is given and not one of these trainings has a checkpoint: nothing must start anew unasked."""
    runs = [folder.run(t.member.name, t.fold) for t in todo if t.member]
    if not any(is_finished(run) or checkpoint.exists(run.checkpoint("latest")) for run in runs):
        named = ", ".join(dict.fromkeys(f"{run.root.parent.name}/{run.root.name}" for run in runs))
        raise TrainingError(f"{folder.root}: no checkpoint to continue from in {named}; leave --c out to start these trainings")


def require_places(folder: ModelFolder, todo: list[Task]) -> None:
    """WorkspaceError where what comes of these trainings and the fits after them could not be written, of the last ones too."""
    runs = [folder.run(t.member.name, t.fold).root for t in todo if t.member]
    for place in [folder.root, *runs] if runs else []:
        require_place(place)


class TimeBudget:
    """--minutes, shared out: each task gets its share of what is left, in proportion to the shares still to come."""

    def __init__(self, minutes: float | None, todo: list[Task], clock: Callable[[], float] = time.monotonic):
        self.clock = clock
        self.seconds = minutes * 60 if minutes else None
        self.ends = clock() + self.seconds if minutes else None
        self.todo = list(todo)
        members = sum(t.member.minutes_share for t in todo if t.member)
        self.shares = [t.member.minutes_share if t.member else members * FIT_SHARE[t.kind] for t in todo]

    def start(self, task: Task) -> float | None:
        """Seconds for a task that starts now; None without a budget. TrainingError where more than twice the budget has passed.

        A busy machine's long validations and fits may take more than their part: then a training gets a quarter of its own all the same,
        and the command takes longer than asked for, rather than that some organs are not trained at all. A member that went on with
        the time of an earlier command may take far more; seconds of training would then count as finished.
        """
        if self.ends is None:
            return None
        number, left = self.todo.index(task), self.ends - self.clock()
        if left < -self.seconds:
            raise TrainingError(f"{task.title}: --minutes were over before it began; run the same command again, with the minutes for what is left")
        least = LEAST_PART * self.seconds * self.shares[number] / sum(self.shares)
        if (part := left * self.shares[number] / sum(self.shares[number:])) >= least:
            return part
        if task.member:
            log.warning("%s: hardly anything is left of --minutes; it is trained for %.0f s all the same", task.title, least)
        return least
