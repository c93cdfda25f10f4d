"""c2f_train: each option in the training that starts, the order of the work, what is shown, and how it ends."""
import os
import signal
import socket
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from c2f_nnunet.cli import train
from c2f_nnunet.errors import TrainingError
from c2f_nnunet.inference.cascade import MERGE_SOURCES
from c2f_nnunet.inference.fusion import FUSION_VERSION, FusionFile, mean_weights
from c2f_nnunet.io import durable, records
from c2f_nnunet.running import engines, fit, graph, members, model
from c2f_nnunet.training import checkpoint
from c2f_nnunet.training.state import Progress
from c2f_nnunet.training.train import Interrupted
from c2f_nnunet.workspace import lock

ROW = {"epoch": 0, "train_loss": 0.5}


@pytest.fixture
def trainings(monkeypatch):
    """What was to be trained, in order: nothing is. `act` stands for the training and gives its progress."""
    seen = SimpleNamespace(calls=[], act=lambda hooks: None)

    def run_here(model, store, job, split, hooks):
        seen.calls.append(SimpleNamespace(model=model, store=store, job=job, split=split))
        return seen.act(hooks)

    monkeypatch.setattr(engines, "run_here", run_here)
    return seen


@pytest.fixture
def tiny(tiny_planned, tmp_path):
    """A copy that checkpoints may be put into."""
    return tiny_planned.copy(tmp_path / "w")


def the_job(tiny, trainings, *args):
    """The one training that 3d_Stem on fold 1 starts with these arguments."""
    assert train.main(tiny.args("3d_Stem", 1, "-device", "cpu", *args)) == 0
    (call,) = trainings.calls
    return call.job


def titles(trainings) -> list[str]:
    return [f"{c.job.member.name} {c.job.fold}" for c in trainings.calls]


# Options


def test_without_options_the_plan_is_trained(tiny_planned, trainings):
    job = the_job(tiny_planned, trainings)
    assert job.settings.training == tiny_planned.model.plan.member("3d_Stem").training and not job.go_on
    s = job.settings
    assert (s.seed, s.seconds, s.workers, s.device, s.world, s.pretrained) == (0, None, members.default_workers(), "cpu", 1, None)
    (call,) = trainings.calls
    assert call.model.folder == tiny_planned.folder and call.store == tiny_planned.store
    assert call.split == tiny_planned.model.splits()[1] and (job.member.name, job.fold) == ("3d_Stem", 1)


@pytest.mark.parametrize("option, value, place", [
    ("--epochs", 7, "training.epochs"),
    ("--batch_size", 3, "training.batch_size"),
    ("--lr", 0.5, "training.learning_rate"),
    ("--seed", 9, "seed"),
    ("-num_gpus", 2, "world"),
    ("-np", 3, "workers"),
    ("-np", 0, "workers"),
])  # fmt: skip
def test_a_setting_reaches_the_training_and_changes_nothing_else(tiny_planned, trainings, option, value, place):
    found = the_job(tiny_planned, trainings, option, value).settings
    train.main(tiny_planned.args("3d_Stem", 1, "-device", "cpu"))
    plain = trainings.calls[1].job.settings
    if place.startswith("training."):
        told = {"epochs": value} if option == "--epochs" else {}  # so that they end a training by --minutes, too
        assert found == replace(plain, training=replace(plain.training, **{place.removeprefix("training."): value}), **told)
    else:
        assert found == replace(plain, **{place: value})


def test_minutes_are_for_the_whole_command(tiny_planned, trainings):
    """6000 minutes, of which the merge's fit keeps its share."""
    seconds = the_job(tiny_planned, trainings, "--minutes", 6000).settings.seconds
    assert seconds == pytest.approx(360_000 / (1 + graph.FIT_SHARE["merge"]), rel=1e-3)


@pytest.mark.parametrize("ending", ["", ".json"])
def test_pretrained_weights(tiny_planned, tmp_path, trainings, ending):
    checkpoint.save(tmp_path / "checkpoint_best", {}, {})
    path = f"{tmp_path}/checkpoint_best{ending}"
    assert the_job(tiny_planned, trainings, "-pretrained_weights", path).settings.pretrained == path


@pytest.mark.parametrize("there, expected", [(True, "cuda"), (False, "cpu")])
def test_the_default_device_is_the_best_there_is(tiny_planned, trainings, monkeypatch, there, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert train.main(tiny_planned.args("3d_Stem", 1)) == 0
    assert trainings.calls[0].job.settings.device == expected


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_reaches_the_training_where_it_is_there(tiny_planned, trainings, monkeypatch, fails, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    error = fails(train, tiny_planned, "3d_Stem", 1, "-device", device)
    assert f"-device {device}: not available on this machine; use -device cpu" in error and not trainings.calls
    monkeypatch.setattr(torch.cuda if device == "cuda" else torch.backends.mps, "is_available", lambda: True)
    assert train.main(tiny_planned.args("3d_Stem", 1, "-device", device)) == 0
    assert trainings.calls[0].job.settings.device == device


@pytest.mark.parametrize("args", [["-d", "901"], ["-d", "0901"], ["-d", "Dataset901_Tiny"], ["-pl", "tiny"], []])
def test_the_data_set_and_the_plan(tiny_planned, trainings, args):
    assert train.main(tiny_planned.args("3d_Stem", 0, "-device", "cpu", *args)) == 0
    assert trainings.calls[0].model.folder == tiny_planned.folder


# Members and folds


@pytest.mark.parametrize("config, fold, expected", [
    ("2d_front", "0", ["2d_front 0"]),
    ("coarse", "1", ["2d_top 1", "2d_front 1", "2d_side 1"]),
    ("fine", "0", ["3d_Gland 0", "3d_Stem 0"]),
    ("3d_Gland", "all", ["3d_Gland 0", "3d_Gland 1"]),
    ("all", "0", ["2d_top 0", "2d_front 0", "2d_side 0", "3d_Gland 0", "3d_Stem 0"]),
])  # fmt: skip
def test_config_and_fold(tiny_planned, trainings, config, fold, expected):
    assert train.main(tiny_planned.args(config, fold, "-device", "cpu")) == 0
    assert titles(trainings) == expected


def test_each_fold_is_trained_on_its_own_split(tiny_planned, trainings):
    assert train.main(tiny_planned.args("3d_Stem", "all", "-device", "cpu")) == 0
    assert [c.split.val for c in trainings.calls] == [("t2", "t5"), ("t0", "t1", "t3")]


def test_groups_skip_what_is_finished(tiny, trainings, capsys):
    checkpoint.save(tiny.folder.run("3d_Gland", 0).checkpoint("final"), {}, {})
    assert train.main(tiny.args("fine", 0, "-device", "cpu")) == 0
    assert titles(trainings) == ["3d_Stem 0"]
    assert train.main(tiny.args("3d_Gland", 0, "-device", "cpu")) == 0  # alone it says so
    assert "3d_Gland fold 0: finished already" in capsys.readouterr().out and titles(trainings) == ["3d_Stem 0"]
    checkpoint.save(tiny.folder.run("3d_Stem", 0).checkpoint("final"), {}, {})
    assert train.main(tiny.args("fine", 0, "-device", "cpu")) == 0
    assert "fine 0: every training is finished already" in capsys.readouterr().out and titles(trainings) == ["3d_Stem 0"]


def started(tiny) -> None:
    """An unfinished training of 3d_Stem, fold 1, with the seed 5."""
    folder = tiny.folder.run("3d_Stem", 1)
    settings = members.settings_for(tiny.model.plan.member("3d_Stem"), members.TrainOptions("cpu", seed=5), None)
    checkpoint.save(folder.checkpoint("latest"), {}, {})
    records.write(folder.settings, settings)


def test_an_unfinished_one_goes_on_with_c_or_in_a_group(tiny, trainings, fails):
    started(tiny)
    error = fails(train, tiny, "3d_Stem", 1, "-device", "cpu")
    assert "3d_Stem/fold_1: an unfinished training is there; go on with --c, or move the folder away" in error and not trainings.calls
    assert train.main(tiny.args("3d_Stem", 1, "-device", "cpu", "--c")) == 0
    assert train.main(tiny.args("fine", 1, "-device", "cpu")) == 0
    gland = trainings.calls.pop(1).job
    assert [(c.job.go_on, c.job.settings.seed) for c in trainings.calls] == [(True, 5), (True, 5)]
    assert gland.member.name == "3d_Gland" and not gland.go_on


# The fits


def test_the_fits_come_after_their_stages_and_are_shown(tiny_planned, trainings, monkeypatch, capsys):
    order, organs = [], tiny_planned.model.plan.labels.organs
    views, stages = (mean_weights(organs, sources) for sources in (("2d_top", "2d_front", "2d_side"), MERGE_SOURCES))
    fitted = FusionFile(FUSION_VERSION, replace(views, fitted_on=("t2", "t5")), replace(stages, fitted_on=("t2",)), (0,))

    def fit_fusion(model, store, device, on_case):
        order.append(("fusion", len(trainings.calls), store == tiny_planned.store))
        on_case("t2")
        return fitted

    def fit_merge(model, cases, device, on_case):
        order.append(("merge", len(trainings.calls), list(cases) == [f"t{i}" for i in range(7)]))
        return fitted

    for name, stand_in in (("fit_fusion", fit_fusion), ("fit_merge", fit_merge)):
        monkeypatch.setattr(fit, name, stand_in)
        monkeypatch.setattr(fit, name.removeprefix("fit_") + "_is_due", lambda model: True)
    assert train.main(tiny_planned.args("all", 0, "-device", "cpu")) == 0
    assert order == [("fusion", 3, True), ("merge", 5, True)]  # after the three views; after the two organs
    shown = capsys.readouterr().out
    assert "fusion weights, fitted on 2 held-out cases (in " in shown and "merge weights, fitted on 1 held-out cases" in shown
    assert "Gland_L" in shown and "weight 2d_front" in shown and "0.333" in shown


def test_what_keeps_a_fit_from_being_made_is_said(tiny_planned, trainings, capsys):
    assert train.main(tiny_planned.args("coarse", 0, "-device", "cpu")) == 0
    shown = capsys.readouterr().out
    assert "fusion weights: not fitted yet, no fold has all of 2d_top, 2d_front, 2d_side trained" in shown
    assert "merge weights: not fitted yet, no fold has all of 2d_top, 2d_front, 2d_side, 3d_Gland, 3d_Stem trained" in shown


@pytest.fixture
def due(monkeypatch):
    """Makes a fit due: due("fusion", what stands for it)."""

    def due(kind: str, stand_in) -> None:
        monkeypatch.setattr(fit, f"{kind}_is_due", lambda model: True)
        monkeypatch.setattr(fit, f"fit_{kind}", stand_in)

    return due


def test_a_fit_waits_for_that_of_another_process(tiny, trainings, due, monkeypatch, capsys):
    """Folds that are trained side by side end side by side; fusion.json is one file."""
    organs, held = tiny.model.plan.labels.organs, []
    weights = replace(mean_weights(organs, MERGE_SOURCES), fitted_on=("t2",))
    fitted = FusionFile(FUSION_VERSION, None, weights, (0,))
    due("merge", lambda *args, **named: held.append((tiny.folder.root / ".lock").exists()) or fitted)
    other = lock(tiny.folder.root, "fitting of the fusion weights")
    other.__enter__()
    monkeypatch.setattr(train.time, "sleep", lambda seconds: other.__exit__(None, None, None))
    assert train.main(tiny.args("3d_Stem", 0, "-device", "cpu")) == 0
    shown = capsys.readouterr().out
    assert held == [True] and not (tiny.folder.root / ".lock").exists()
    assert "merge weights: waiting: " in shown and f"is already running on {socket.gethostname()} (pid {os.getpid()})" in shown
    assert shown.index("waiting") < shown.index("merge weights, fitted on 1 held-out cases")


def test_a_signal_ends_a_fit_at_once(tiny, trainings, due, capsys):
    """Not after the case at hand, whose cascade may take longer than a signal may wait."""
    ended = []

    def fit_fusion(*args, **named):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0)  # where the signal arrives at the latest
        ended.append("after the signal")

    due("fusion", fit_fusion)
    assert train.main(tiny.args("coarse", 0, "-device", "cpu")) == 143
    assert "fusion weights: stopped; the same command fits them" in capsys.readouterr().out
    assert not ended and not (tiny.folder.root / ".lock").exists()


# --val


def test_val_scores_what_is_finished_and_trains_nothing(tiny, trainings, monkeypatch, capsys):
    for fold in (0, 1):
        checkpoint.save(tiny.folder.run("3d_Gland", fold).checkpoint("final"), {}, {})
    asked = []

    def validation(plan, member, held_out, device):
        cases = sorted({v.record.case for v in held_out.volumes})
        return lambda network: asked.append((member.name, network, cases)) or {"Gland_L": 0.876, "Gland_R": None}

    monkeypatch.setattr(members, "validation", validation)
    monkeypatch.setattr(model, "load_network", lambda model, member, fold, which, device: f"{which} of {fold}")
    assert train.main(tiny.args("all", "all", "-device", "cpu", "--val")) == 0
    assert not trainings.calls
    assert asked == [("3d_Gland", "best of 0", ["t2", "t5"]), ("3d_Gland", "best of 1", ["t0", "t1", "t3"])]
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["3d_Gland", "0", "Gland_L", "87.6"] in lines and ["3d_Gland", "1", "Gland_R", "-"] in lines


# What is shown, and how it ends


def test_a_trained_member_is_told_in_a_line(tiny_planned, trainings, capsys):
    def act(hooks):
        hooks.on_epoch([ROW], False)
        hooks.on_epoch([ROW, {**ROW, "epoch": 1, "val_dsc": 0.876}], True)
        return Progress(step=80, epoch=4, elapsed_s=90.0, best=0.876)

    trainings.act = act
    for args in ([], ["--minutes", 6000]):
        assert train.main(tiny_planned.args("3d_Stem", 1, "-device", "cpu", *args)) == 0
        assert "[1/2] 3d_Stem fold 1: 80 steps, 4 epochs, 1.5 minutes, best held-out DSC 87.6 %" in capsys.readouterr().out


def test_a_failed_training_ends_with_1_and_nothing_more_is_started(tiny_planned, trainings, fails):
    def act(hooks):
        raise TrainingError("2d_top/fold_0: the loss became nan in epoch 3; lower the learning rate with --lr")

    trainings.act = act
    error = fails(train, tiny_planned, "all", 0, "-device", "cpu")
    assert error == "error: 2d_top/fold_0: the loss became nan in epoch 3; lower the learning rate with --lr"
    assert titles(trainings) == ["2d_top 0"]


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 143)])
def test_a_signal_ends_the_training_after_a_checkpoint(tiny, trainings, capsys, number, code):
    def act(hooks):
        assert not hooks.should_stop()
        os.kill(os.getpid(), number)
        assert hooks.should_stop()
        raise Interrupted

    trainings.act = act
    assert train.main(tiny.args("all", 0, "-device", "cpu")) == code
    assert titles(trainings) == ["2d_top 0"]
    assert "2d_top fold 0: stopped before its first step; the same command starts it again" in capsys.readouterr().out
    checkpoint.save(tiny.folder.run("2d_front", 0).checkpoint("latest"), {}, {})
    records.write(tiny.folder.run("2d_front", 0).settings, trainings.calls[0].job.settings)
    assert train.main(tiny.args("2d_front", 0, "-device", "cpu", "--c")) == code
    assert "2d_front fold 0: stopped after a checkpoint; go on with the same command and --c" in capsys.readouterr().out


def test_a_signal_in_a_members_last_moment_starts_no_further_one(tiny_planned, trainings):
    trainings.act = lambda hooks: os.kill(os.getpid(), signal.SIGTERM)
    assert train.main(tiny_planned.args("all", 0, "-device", "cpu")) == 143
    assert titles(trainings) == ["2d_top 0"]


# Wrong usage


def test_what_killed_commands_left_in_the_models_folder_is_removed(tiny, trainings):
    left, others = (tiny.folder.root / f"{durable.TEMPORARY_MARK}{pid}-{durable.HOST}-1-fusion.json" for pid in (4194999, os.getppid()))
    left.write_text("cut")
    others.write_text("being written")
    assert train.main(tiny.args("3d_Stem", 1, "-device", "cpu")) == 0
    assert not left.exists() and others.exists()


def test_wrong_members_folds_and_checkpoints(tiny_planned, fails, tmp_path):
    def error(*args) -> str:
        return fails(train, tiny_planned, *args, "-device", "cpu")

    known = "2d_top, 2d_front, 2d_side, 3d_Gland, 3d_Stem, or the groups coarse, fine, all"
    assert f"no configuration '3d_Glands'; it has: {known}" in error("3d_Glands", 0)
    for fold in (2, "al", "-1"):
        assert f"fold '{fold}': there are folds 0 to 1; give one of them or 'all'" in error("all", fold)
    assert "2d_top/fold_0: no checkpoint to continue from; leave --c out" in error("2d_top", 0, "--c")
    for group in (("all", 0), ("fine", "all"), ("2d_top", "all")):
        assert "no checkpoint to continue from in " in error(*group, "--c")
    assert "none of the members asked for is trained; leave --val out" in error("2d_top", 0, "--val")
    assert "-pretrained_weights nothing.json: no checkpoint there" in error("2d_top", 0, "-pretrained_weights", "nothing.json")
    checkpoint.save(tmp_path / "other", {}, {})
    several = error("coarse", 0, "-pretrained_weights", tmp_path / "other.json")
    assert "one network's weights, and coarse are 3 networks; give the one that they are for (2d_top, 2d_front, 2d_side)" in several


def test_train_needs_preprocessed_volumes(tiny, fails):
    (tiny.store.volumes("3d_Stem") / "t1.done").unlink()
    error = fails(train, tiny, "3d_Stem", 0, "-device", "cpu", "-np", 0)
    assert "3d_Stem: not preprocessed by this plan: t1; run c2f_plan_and_preprocess -d Dataset901_Tiny" in error
    assert not tiny.folder.run("3d_Stem", 0).root.exists()


@pytest.mark.parametrize("args, told", [
    ([], "the following arguments are required: CONFIG, FOLD"),
    (["all"], "the following arguments are required: FOLD"),
    (["all", 0, "--epochs", 0], "argument --epochs: '0' is not a whole number above 0"),
    (["all", 0, "--batch_size", "2.5"], "argument --batch_size: '2.5' is not a whole number above 0"),
    (["all", 0, "--minutes", "0"], "argument --minutes: '0' is not a number above 0"),
    (["all", 0, "--minutes", "inf"], "argument --minutes: 'inf' is not a number above 0"),
    (["all", 0, "--lr", "nan"], "argument --lr: 'nan' is not a number above 0"),
    (["all", 0, "--lr", "small"], "argument --lr: 'small' is not a number above 0"),
    (["all", 0, "--seed", "-3"], "argument --seed: '-3' is not a whole number of 0 or more"),
    (["all", 0, "-num_gpus", "0"], "argument -num_gpus: '0' is not a whole number above 0"),
    (["all", 0, "-np", "-1"], "argument -np: '-1' is not a whole number of 0 or more"),
    (["all", 0, "-device", "tpu"], "argument -device: invalid choice: 'tpu'"),
])  # fmt: skip
def test_a_wrong_value_is_named(misused, args, told):
    assert misused(train, *args).startswith(told)


def test_help_names_every_option(helps):
    shown = helps(train)
    for option in ("-d ID", "-pl PLAN", "--workspace DIR", "-device {cpu,cuda,mps}", "--c ", "--val ", "--epochs N", "--minutes M",
                   "--batch_size B", "--lr R", "--seed S", "-pretrained_weights F", "-num_gpus N", "-np N"):
        assert option in shown, option
    assert "2d_top, 2d_front, 2d_side, 3d_<organ or pair>, or coarse, fine, all" in shown
    assert shown.endswith("example: c2f_train all 0 -d 15 --minutes 40 -device cpu")
