"""The training loop on the tiny data set: it learns, stops, goes on, ends in time, and says what is wrong."""
import json
import logging
import math
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from c2f_nnunet.data.store import Store
from c2f_nnunet.errors import TrainingError
from c2f_nnunet.io import records
from c2f_nnunet.training import checkpoint, state
from c2f_nnunet.training import train as module
from c2f_nnunet.training.sampler import CachedVolumes, CropSource, SliceSource
from c2f_nnunet.training.state import TrainState
from c2f_nnunet.training.train import Hooks, Interrupted, Place, TrainSettings, train
from c2f_nnunet.workspace import RunFolder

CPU = torch.device("cpu")


def start(
    tiny, run, member="3d_Stem", validate=lambda network: {"Stem": 0.5}, seconds=None, resume=False, stop_after=None,
    cases=("t0", "t1"), given_epochs=None, on_step=lambda: None, validation_takes=lambda network: 0.0, **training,
):  # fmt: skip
    """Train a tiny member for 3 epochs of 4 steps; stop_after: the number of steps after which it is asked to stop."""
    plan = tiny.model.plan
    m = plan.member(member)
    training = replace(m.training, **{"epochs": 3, "steps_per_epoch": 4, "batch_size": 2, "validate_every": 1, **training})
    cached = CachedVolumes(Store(tiny.store.volumes(m.volumes)).of_cases(cases), 1.0)
    source = SliceSource(m, plan.labels, cached) if m.stage == "coarse" else CropSource(m, cached)
    asked = []

    def should_stop() -> bool:
        asked.append(True)
        on_step()
        return stop_after is not None and len(asked) >= stop_after

    settings = TrainSettings(training, 1, seconds, 0, "cpu", 1, None, given_epochs)
    return train(m, settings, source, RunFolder(run), validate, Place(CPU), resume, Hooks(should_stop=should_stop), validation_takes)


def rows_of(run) -> list[dict]:
    return [json.loads(line) for line in RunFolder(run).log.read_text().splitlines()]


def weights(run, which="final") -> dict[str, torch.Tensor]:
    return checkpoint.load(RunFolder(run).checkpoint(which))[0]


def test_it_learns_and_leaves_its_files(tiny_trained):
    run = tiny_trained.folder.run("2d_top", 0)
    rows = rows_of(run.root)
    assert [r["epoch"] for r in rows] == [0, 1, 2, 3] and [r["step"] for r in rows] == [20, 40, 60, 80]
    assert rows[-1]["train_loss"] < 0.6 * rows[0]["train_loss"]
    assert [("val_dsc" in r) for r in rows] == [False, True, False, True]
    assert rows[-1]["lr"] < 0.05 * rows[0]["lr"]
    assert all(checkpoint.exists(run.checkpoint(which)) for which in ("latest", "best", "final")) and run.progress.stat().st_size > 1000
    settings = records.read(TrainSettings, run.settings)
    assert settings.training.epochs == 4 and settings.device == "cpu" and settings.seed == 0 and settings.workers == 0
    assert not any(key.startswith("network.") for key in weights(run.root))  # prediction needs the averaged weights alone


@pytest.mark.parametrize("member", ["3d_Stem", "2d_side"])
@pytest.mark.parametrize("stop_after", [3, 4, 7])  # inside an epoch, at an epoch's end, inside the next one
def test_resuming_is_bit_identical(tiny_planned, tmp_path, member, stop_after):
    start(tiny_planned, tmp_path / "whole", member, augmentation="full")
    with pytest.raises(Interrupted):
        start(tiny_planned, tmp_path / "parts", member, stop_after=stop_after, augmentation="full")
    assert not checkpoint.exists(RunFolder(tmp_path / "parts").checkpoint("final"))
    start(tiny_planned, tmp_path / "parts", member, resume=True, augmentation="full")
    for which in ("latest", "final", "best"):
        whole, parts = weights(tmp_path / "whole", which), weights(tmp_path / "parts", which)
        assert whole.keys() == parts.keys() and all(torch.equal(whole[k], parts[k]) for k in whole), which
    assert [(r["epoch"], r["step"]) for r in rows_of(tmp_path / "parts")] == [(0, 4), (1, 8), (2, 12)]


@pytest.mark.parametrize("takes_s, times", [(12, 1), (40, 1), (0.05, 13)])  # a twentieth of a step: after each epoch
def test_a_training_by_time_ends_with_it_however_long_a_validation_takes(tiny_planned, tmp_path, monkeypatch, takes_s, times):
    """By a clock on which a step takes a second, 60 of them: the rate has come down when they are over, and the last validation is in time."""
    now, seen = [0.0], []
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def validate(network) -> dict:
        seen.append(round(now[0]))
        now[0] += takes_s
        return {"Stem": 0.5}

    def on_step() -> None:
        now[0] += 1 - 1e-9

    start(tiny_planned, tmp_path, validate=validate, seconds=60.0, on_step=on_step, validation_takes=lambda network: takes_s, batch_size=1)
    assert now[0] == pytest.approx(60 + max(0, takes_s - 12), abs=4) and rows_of(tmp_path)[-1]["lr"] < 0.1 * rows_of(tmp_path)[0]["lr"], (now, seen)
    assert len(seen) == times and seen[-1] == pytest.approx(60 - min(takes_s, 12), abs=4), seen  # no more than a fifth is kept for it


def test_epochs_end_a_training_by_time_as_well(tiny_planned, tmp_path):
    done = start(tiny_planned, tmp_path, seconds=1e6, given_epochs=3)
    assert (done.step, done.epoch) == (12, 3) and rows_of(tmp_path)[-1]["lr"] < 0.3 * rows_of(tmp_path)[1]["lr"]


def test_a_kill_while_it_validates_costs_no_epoch(tiny_planned, tmp_path, monkeypatch):
    """Each validation ends in one the first time; going on, the epoch is validated first."""
    monkeypatch.setattr(state, "SAVING_SHARE", math.inf)
    start(tiny_planned, tmp_path / "whole", validate=lambda network: {"Stem": 0.5})
    validated = []

    def killed_first(network) -> dict:
        validated.append(rows_of(tmp_path / "parts")[-1]["step"])
        if validated.count(validated[-1]) == 1:
            raise KeyboardInterrupt
        return {"Stem": 0.5}

    for go_on in (False, True, True):
        with pytest.raises(KeyboardInterrupt):
            start(tiny_planned, tmp_path / "parts", validate=killed_first, resume=go_on)
    start(tiny_planned, tmp_path / "parts", validate=killed_first, resume=True)
    assert validated == [4, 4, 8, 8, 12, 12]
    for which in ("final", "best"):
        whole, parts = weights(tmp_path / "whole", which), weights(tmp_path / "parts", which)
        assert all(torch.equal(whole[k], parts[k]) for k in whole), which
    told = [[(r["epoch"], r["step"], r["train_loss"], r["lr"], r["val_dsc"]) for r in rows_of(tmp_path / run)] for run in ("whole", "parts")]
    assert told[0] == told[1]


def test_what_was_written_stands_in_the_log_and_holds_checkpoints_back(tiny_planned, tmp_path, monkeypatch):
    """Each file costs 0.2 s here, ten times as much as an epoch: after the first checkpoint only the last one is written."""
    save, saved = checkpoint.save, []

    def slow(path, tensors, state) -> None:
        time.sleep(0.2)
        saved.append((path.name.removeprefix("checkpoint_"), state["progress"]["step"]))
        save(path, tensors, state)

    monkeypatch.setattr(checkpoint, "save", slow)
    start(tiny_planned, tmp_path, validate=lambda network: {"Stem": 0.5 if len(saved) < 2 else 0.1})
    assert saved == [("latest", 4), ("best", 4), ("latest", 12), ("final", 12)]
    spent = [row["saving_s"] for row in rows_of(tmp_path)]
    assert spent[0] == 0.0 and 0.4 < spent[1] < 1.0 and 0.0 < spent[2] < 0.1


def test_a_finished_training_is_not_trained_further(tiny_planned, tmp_path):
    start(tiny_planned, tmp_path)
    before = weights(tmp_path)
    assert start(tiny_planned, tmp_path, resume=True).step == 12
    assert all(torch.equal(before[k], v) for k, v in weights(tmp_path).items())


def test_a_time_budget_ends_in_time_with_a_small_rate(tiny_planned, tmp_path):
    """--epochs does not end it; validating counts, and the last one's time is kept for it."""
    began = time.monotonic()

    def slow(network) -> dict:
        time.sleep(0.1)
        return {"Stem": 0.1}

    progress = start(tiny_planned, tmp_path, seconds=2.5, epochs=1, steps_per_epoch=10, validate=slow)
    assert progress.done and 1.5 < time.monotonic() - began < 4.0
    rows = rows_of(tmp_path)
    assert len(rows) > 1
    assert rows[-1]["lr"] < 0.3 * max(r["lr"] for r in rows) and "val_dsc" in rows[-1]


def test_a_time_budget_that_ends_between_epochs_still_validates(tiny_planned, tmp_path, monkeypatch):
    """Time passes outside the steps, too: the log, a checkpoint. The last weights must be validated and kept all the same."""
    monkeypatch.setattr(TrainState, "write_log", lambda self, run: time.sleep(1.5))
    progress = start(tiny_planned, tmp_path, seconds=1.2, validate_every=100, validate=lambda network: {"Stem": 0.3})
    assert progress.best == 0.3 and checkpoint.exists(RunFolder(tmp_path).checkpoint("best"))


def test_a_loss_that_is_not_finite_is_a_stated_error(tiny_planned, tmp_path):
    with pytest.raises(TrainingError, match="the loss became (nan|inf) in .*; move the folder away and start again with a lower --lr"):
        start(tiny_planned, tmp_path, learning_rate=1e30, warmup_steps=0, clip_norm=0.0, optimiser="sgd", epochs=6)
    assert not checkpoint.exists(RunFolder(tmp_path).checkpoint("final"))


def test_a_dead_class_is_warned_about(tiny_planned, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        start(tiny_planned, tmp_path, epochs=1, validate=lambda network: {"Gland_L": 0.0, "Stem": 0.7, "Gland_R": None})
    assert [r.getMessage().split(":")[1] for r in caplog.records] == [" held-out Dice of Gland_L is 0"]
    assert rows_of(tmp_path)[-1]["val_dsc"] == pytest.approx(0.35)  # the undefined one is left out of the mean


def test_best_is_the_best_and_the_newest_where_nothing_can_be_measured(tiny_planned, tmp_path):
    scores = iter((0.4, 0.9, 0.2))
    assert start(tiny_planned, tmp_path / "a", validate=lambda network: {"Stem": next(scores)}).best == 0.9
    assert checkpoint.load(RunFolder(tmp_path / "a").checkpoint("best"))[1]["progress"]["step"] == 8
    start(tiny_planned, tmp_path / "b", validate=lambda network: {"Stem": None})
    assert checkpoint.load(RunFolder(tmp_path / "b").checkpoint("best"))[1]["progress"]["step"] == 12
