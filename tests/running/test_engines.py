"""Where a training runs: here, or in several processes that end as one."""
import os
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from c2f_nnunet.errors import TrainingError
from c2f_nnunet.network.unet import build_network
from c2f_nnunet.running import engines, graph, members
from c2f_nnunet.running.members import TrainOptions, settings_for
from c2f_nnunet.training import checkpoint
from c2f_nnunet.training.state import Progress
from c2f_nnunet.training.train import Hooks, Interrupted, Place
from c2f_nnunet.workspace import ModelFolder, RunFolder


def weights(run) -> dict[str, torch.Tensor]:
    return checkpoint.load(RunFolder(run).checkpoint("final"))[0]


# In this process


def test_one_process_is_this_one(monkeypatch):
    """Everything is handed on as it came, and the progress comes back."""

    def run_member(*given):
        seen.append(given)
        return Progress(step=7)

    seen, hooks = [], Hooks(should_stop=lambda: False)
    monkeypatch.setattr(engines, "run_member", run_member)
    job = SimpleNamespace(settings=SimpleNamespace(world=1, device="cpu"))
    assert engines.run_here("model", "store", job, "split", hooks) == Progress(step=7)
    assert seen == [("model", "store", job, "split", Place(torch.device("cpu"), 0, 1), hooks)]


# In several processes


@pytest.fixture
def started(monkeypatch):
    """What is to be started as several processes is noted instead; they end after three looks, or as `outcome` says."""
    seen = SimpleNamespace(looks=0, outcome=None, arguments=None, world=None)

    def join(timeout, grace) -> bool:
        seen.looks += 1
        if seen.outcome:
            raise seen.outcome
        return seen.looks == 3

    def spawn(function, arguments, nprocs, **options):
        assert function is engines._one_of_many and options == {"join": False}
        seen.arguments, seen.world = arguments, nprocs
        return SimpleNamespace(join=join)

    monkeypatch.setattr(engines.processes, "spawn", spawn)
    return seen


@pytest.fixture
def job():
    """A job for three processes on CPUs."""
    return SimpleNamespace(member=SimpleNamespace(name="3d_Stem"), fold=1, settings=SimpleNamespace(world=3, device="cpu"))


@pytest.fixture
def model(tmp_path):
    return SimpleNamespace(folder=ModelFolder(tmp_path / "model"))


STORE = SimpleNamespace(root="preprocessed")


def test_as_many_processes_as_asked_for_and_their_progress_stays_theirs(started, job, model):
    assert engines.run_here(model, STORE, job, "split") is None
    root, store, given, split, port, stop = started.arguments
    assert (root, store, given, split, started.world) == (model.folder.root, "preprocessed", job, "split", 3)
    assert 1024 <= port < 65536 and not stop.is_set()
    assert started.looks == 3


def test_a_stop_is_passed_on_and_ends_as_interrupted(started, job, model):
    with pytest.raises(Interrupted):
        engines.run_here(model, STORE, job, "split", Hooks(should_stop=lambda: started.looks == 1))
    assert started.arguments[-1].is_set() and started.looks == 3  # it waits until all have written their checkpoint


def test_a_stop_that_comes_after_the_last_step_is_no_interruption(started, job, model):
    checkpoint.save(model.folder.run("3d_Stem", 1).checkpoint("final"), {}, {})
    assert engines.run_here(model, STORE, job, "split", Hooks(should_stop=lambda: True)) is None


@pytest.mark.parametrize("outcome", [
    engines.processes.ProcessExitedException("process 1 terminated with signal SIGKILL", 1, 4711, -9),
    engines.processes.ProcessRaisedException("Traceback\n  line 1\nprocess 1 terminated with signal SIGKILL\n", 1, 4711),
])  # fmt: skip
def test_a_process_that_ends_is_told_in_one_sentence(started, job, model, outcome):
    started.outcome = outcome
    with pytest.raises(TrainingError) as told:
        engines.run_here(model, STORE, job, "split")
    assert str(told.value) == f"{model.folder.root}/3d_Stem/fold_1: one of 3 processes ended: process 1 terminated with signal SIGKILL"


def test_a_signal_is_left_to_the_parent_unless_it_is_gone(monkeypatch):
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    engines._end_if_alone(os.getppid(), signal.SIGTERM, None)
    assert ended == []
    engines._end_if_alone(os.getppid() + 1, signal.SIGTERM, None)
    assert ended == [1]


def test_two_processes_follow_one_with_the_doubled_batch(tiny_planned, tmp_path):
    """Instance normalisation knows no batch: two processes of batch 1 are one of batch 2.

    SGD, whose steps are proportional to the gradients: where processors round to bf16, Adam's first steps are of full size
    even along weights whose gradient is nothing but rounding.
    """
    results = {}
    for world, batch_size in ((1, 2), (2, 1)):
        tiny = tiny_planned.copy(tmp_path / f"w{world}")
        model, task = tiny.model, graph.Task("member", tiny.model.plan.member("3d_Stem"), 0)
        settings = settings_for(task.member, TrainOptions("cpu", epochs=1, batch_size=batch_size, world=world, workers=0), None)
        training = replace(settings.training, steps_per_epoch=3, loss=replace(settings.training.loss, dice_weight=0.0), clip_norm=0.0,
                           optimiser="sgd", learning_rate=0.1)
        job = members.Job(task.member, 0, replace(settings, training=training), False)
        engines.run_here(model, tiny.store, job, model.splits()[0])
        results[world] = weights(tiny.folder.run("3d_Stem", 0).root)
    assert results[1].keys() == results[2].keys()
    for k, v in results[1].items():
        np.testing.assert_allclose(results[2][k], v, atol=5e-4, err_msg=k)
    start_weights = build_network(task.member.network).state_dict()
    assert any(not torch.allclose(results[1][f"average.{k}"], v, atol=2e-2) for k, v in start_weights.items())  # it did move


def test_a_failing_process_is_a_stated_error(tiny_planned, tmp_path):
    tiny = tiny_planned.copy(tmp_path / "w")
    settings = settings_for(tiny.model.plan.member("3d_Stem"), TrainOptions("cpu", world=2, workers=0, pretrained="/nowhere"), None)
    job = members.Job(tiny.model.plan.member("3d_Stem"), 0, settings, False)
    with pytest.raises(TrainingError, match="one of 2 processes ended: .*-pretrained_weights /nowhere: no checkpoint there"):
        engines.run_here(tiny.model, tiny.store, job, tiny.model.splits()[0])


def test_a_failing_process_does_not_wait_for_the_others(monkeypatch):
    """With NCCL, closing the group waits for all: it is closed only where all have come to the end."""
    done = []

    def run_member(*given):
        done.append("trained")
        if len(done) > 1:
            raise TrainingError("a full disk")

    monkeypatch.setattr(engines, "run_member", run_member)
    monkeypatch.setattr(engines, "open_model", lambda folder: None)
    monkeypatch.setattr(engines.signal, "signal", lambda number, handler: None)
    for name in ("init_process_group", "barrier", "destroy_process_group"):
        monkeypatch.setattr(engines.dist, name, lambda *given, name=name, **more: done.append(name))
    job, stop = SimpleNamespace(settings=SimpleNamespace(world=2, device="cpu")), SimpleNamespace(is_set=lambda: False)
    with pytest.raises(TrainingError, match="a full disk"):
        engines._one_of_many(0, "model", "store", job, None, 1, stop)
    assert done == ["init_process_group", "trained"]
    done.clear()
    monkeypatch.setattr(engines, "run_member", lambda *given: None)
    engines._one_of_many(0, "model", "store", job, None, 1, stop)
    assert done == ["init_process_group", "barrier", "destroy_process_group"]


def test_a_training_begun_on_more_accelerators_says_so(model):
    job = SimpleNamespace(member=SimpleNamespace(name="3d_Stem"), fold=0, settings=SimpleNamespace(world=99, device="cuda"), go_on=True)
    with pytest.raises(TrainingError, match="3d_Stem/fold_0: was begun on 99 GPUs and this machine has .*; go on with it on a machine"):
        engines.run_here(model, STORE, job, "split")


def test_several_accelerators_must_be_there():
    job = SimpleNamespace(settings=SimpleNamespace(world=99, device="cuda"), go_on=False)
    with pytest.raises(TrainingError, match="-num_gpus 99: this machine has .*; give at most that many"):
        engines.run_here(None, None, job, None)
    job.settings.device = "mps"
    with pytest.raises(TrainingError, match="-num_gpus: torch cannot train on several MPS devices"):
        engines.run_here(None, None, job, None)
