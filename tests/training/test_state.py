"""What a training remembers: saved, resumed, handed on, and averaged."""
import json
import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from c2f_nnunet.errors import ModelError, TrainingError
from c2f_nnunet.planning.plan import LossPlan, NetworkPlan, TrainingPlan
from c2f_nnunet.training import checkpoint, state
from c2f_nnunet.training.state import Progress, TrainState, new_state, restore_weights, resume, start_from, update_average, weights_path
from c2f_nnunet.workspace import RunFolder

CPU = torch.device("cpu")
NETWORK = NetworkPlan(2, 1, 2, (4, 8), ((2, 2),), ((3, 3), (3, 3)), "batch")
TRAINING = TrainingPlan(2, 3, 4, 1, 0.01, "adamw", "poly", 0, 0.001, 0.9, 0.0, LossPlan("dice_ce"), 0.5, "none")


def fresh(seed: int = 0) -> TrainState:
    return new_state(NETWORK, TRAINING, seed, CPU)


def step(made: TrainState) -> None:
    """One step on random numbers, so that the weights tell what the generators gave."""
    made.optimiser.zero_grad()
    sum(level.square().mean() for level in made.network(torch.randn(2, 1, 8, 8))).backward()
    made.optimiser.step()
    made.progress.step += 1
    update_average(made.average, made.network, 0.9, made.progress.step)


def trained() -> TrainState:
    """After two steps and one validation."""
    made = fresh()
    step(made), step(made)
    made.progress = Progress(2, 1, 12.5, 0.5, best=0.75)
    made.rows = [{"epoch": 0, "step": 2, "train_loss": 0.25, "val_dsc": 0.75}]
    return made


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def damage(run: RunFolder, which: str) -> None:
    """A flipped bit in the newest tensors of a checkpoint."""
    path = run.checkpoint(which)
    record = json.loads(path.with_name(f"{path.name}.json").read_text())
    tensors = path.with_name(record["tensors"]["file"])
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.write_bytes(content)


@pytest.fixture
def run(tmp_path) -> RunFolder:
    return RunFolder(tmp_path / "fold_0")


# A new training


def test_the_seed_decides_the_weights_and_the_average_starts_as_they_are():
    first, again, other = fresh(3), fresh(3), fresh(4)
    assert same(first.network, again.network) and not same(first.network, other.network)
    assert same(first.average, first.network)
    assert first.progress == Progress(0, 0, 0.0, 0.0, 0.0, -1.0, False) and first.rows == []


def test_the_average_is_a_network_of_its_own():
    made = fresh()
    before = {k: v.clone() for k, v in made.average.state_dict().items()}
    made.optimiser.zero_grad()
    sum(level.mean() for level in made.network(torch.ones(2, 1, 8, 8))).backward()
    made.optimiser.step()
    assert not same(made.average, made.network)
    assert all(torch.equal(v, before[k]) for k, v in made.average.state_dict().items())


@pytest.mark.parametrize("name, kind", [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_the_plan_chooses_the_optimiser(name, kind):
    optimiser = new_state(NETWORK, replace(TRAINING, optimiser=name), 0, CPU).optimiser
    (group,) = optimiser.param_groups
    assert type(optimiser) is kind and (group["lr"], group["weight_decay"]) == (0.01, 0.001)


# When a checkpoint is due


@pytest.mark.parametrize("since_s, elapsed_s, saving_s, cost_s, due", [
    (1.0, 1.0, 0.0, 0.0, True),  # the first one: its cost is not known yet
    (10.0, 100.0, 1.0, 0.9, True),  # 1.9 % of the time, with the one that is to come
    (10.0, 100.0, 1.0, 1.1, False),
    (10.0, 100.0, 1.9, 0.2, False),  # whatever was written
    (299.0, 1000.0, 30.0, 50.0, False),
    (301.0, 1000.0, 30.0, 50.0, True),  # five minutes are the most that may be lost, at any cost
])  # fmt: skip
def test_what_is_written_takes_two_percent_or_checkpoints_come_every_five_minutes(monkeypatch, since_s, elapsed_s, saving_s, cost_s, due):
    monkeypatch.setattr(state, "time", SimpleNamespace(monotonic=lambda: 1000.0))
    progress = Progress(elapsed_s=elapsed_s, saving_s=saving_s)
    assert TrainState(None, None, None, progress, saved_at=1000.0 - since_s, save_cost_s=cost_s).checkpoint_is_due() is due


@pytest.mark.parametrize("ahead_s, due", [(99.0, False), (101.0, True)])
def test_a_checkpoint_comes_before_five_minutes_would_pass_in_a_validation(monkeypatch, ahead_s, due):
    monkeypatch.setattr(state, "time", SimpleNamespace(monotonic=lambda: 1000.0))
    assert TrainState(None, None, None, Progress(elapsed_s=1.0, saving_s=1.0), saved_at=800.0).checkpoint_is_due(ahead_s) is due


def test_what_is_written_is_measured(monkeypatch, run):
    made = fresh()
    clock = iter((100.0, 103.0, 103.0, 200.0, 201.0, 300.0, 300.5))
    monkeypatch.setattr(state, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    made.save(run)
    assert (made.saved_at, made.save_cost_s, made.progress.saving_s) == (103.0, 3.0, 3.0)
    made.save_weights(run, "best")
    with made.saving():
        pass
    assert (made.saved_at, made.save_cost_s, made.progress.saving_s) == (103.0, 3.0, 4.5)


# To files and back


def test_a_resumed_training_has_everything_and_goes_on_alike(run):
    made = trained()
    made.save(run)
    step(made)

    other = fresh(seed=9)
    resume(other, run)
    assert other.progress == Progress(2, 1, 12.5, 0.5, best=0.75)
    assert other.rows == [{"epoch": 0, "step": 2, "train_loss": 0.25, "val_dsc": 0.75}]
    step(other)  # needs the network, the average, the optimiser's moments and the random numbers
    assert same(other.network, made.network) and same(other.average, made.average)


def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(run, caplog):
    made = trained()
    made.save(run)
    step(made)
    made.save(run)
    damage(run, "latest")
    other = fresh(seed=9)
    with caplog.at_level(logging.WARNING):
        resume(other, run)
    assert other.progress.step == 2 and "checkpoint_latest.prev.json) is used instead" in caplog.text


def test_nothing_to_resume(run):
    with pytest.raises(ModelError, match=r"checkpoint_latest\.json: no checkpoint there; train this member first"):
        resume(fresh(), run)


def test_a_checkpoint_of_another_network_is_not_resumed(run):
    fresh().save(run)
    with pytest.raises(TrainingError, match=r"fold_0: the weights do not fit the plan's network"):
        resume(new_state(replace(NETWORK, out_channels=5), TRAINING, 0, CPU), run)


def test_what_prediction_reads_is_the_average_alone(run):
    made = trained()
    made.save_weights(run, "best")
    tensors, saved, _ = checkpoint.load(run.checkpoint("best"))
    assert {k.split(".")[0] for k in tensors} == {"average"}
    assert all(torch.equal(tensors[f"average.{k}"], v) for k, v in made.average.state_dict().items())
    assert saved["progress"]["best"] == 0.75 and not run.checkpoint("latest").with_name("checkpoint_latest.json").exists()


def test_the_log_has_one_json_object_per_epoch(run):
    made = fresh()
    made.rows = [{"epoch": 0, "train_loss": 0.5}, {"epoch": 1, "train_loss": float("nan"), "val_by_organ": {"Stem": None}}]
    made.write_log(run)
    assert run.log.read_text() == (
        '{"epoch": 0, "train_loss": 0.5}\n{"epoch": 1, "train_loss": null, "val_by_organ": {"Stem": null}}\n'
    )


def test_saving_writes_the_log_too(run):
    trained().save(run)
    assert [json.loads(line)["step"] for line in run.log.read_text().splitlines()] == [2]


# -pretrained_weights


def test_pretrained_weights(run):
    trained().save_weights(run, "best")
    path = run.checkpoint("best")
    made = fresh(9)
    start_from(made, f"{path}.json")
    tensors = checkpoint.load(path)[0]
    assert all(torch.equal(v, tensors[f"average.{k}"]) for net in (made.network, made.average) for k, v in net.state_dict().items())
    assert made.progress.step == 0  # the weights alone: it is a training of its own
    with pytest.raises(TrainingError, match=r"the weights do not fit the plan's network \(\d+ tensors differ, first .*\); train it again"):
        start_from(new_state(replace(NETWORK, out_channels=5), TRAINING, 0, CPU), str(path))
    with pytest.raises(ModelError, match="-pretrained_weights .*nothing.json: no checkpoint there"):
        start_from(made, str(run.root / "nothing.json"))


def test_a_damaged_checkpoint_to_start_from_falls_back_too(run, caplog):
    first, second = fresh(1), fresh(2)
    first.save_weights(run, "best"), second.save_weights(run, "best")
    damage(run, "best")
    made = fresh(9)
    with caplog.at_level(logging.WARNING):
        start_from(made, str(run.checkpoint("best")))
    assert same(made.network, first.network) and "is used instead" in caplog.text


def test_a_training_to_start_from_is_named_with_or_without_json(run):
    fresh().save_weights(run, "best")
    path = run.checkpoint("best")
    assert weights_path(str(path)) == weights_path(f"{path}.json") == path


@pytest.mark.parametrize("name", ["", "checkpoint_bst.json", "checkpoint_best.safetensors"])
def test_where_no_checkpoint_is_one_is_asked_for(run, name):
    fresh().save_weights(run, "best")
    wrong = f"{run.root}/{name}"
    with pytest.raises(ModelError, match=f"-pretrained_weights {wrong}: no checkpoint there; give a checkpoint_best.json$"):
        weights_path(wrong)


# Weights


@pytest.mark.parametrize("change, told", [
    (lambda t: t.pop("own.weight"), r"1 tensors differ, first weight"),
    (lambda t: t.update({"own.scale": torch.ones(1)}), r"1 tensors differ, first scale"),
    (lambda t: t.update({"own.bias": torch.ones(3)}), r"1 tensors differ, first bias"),
    (lambda t: t.clear(), r"2 tensors differ, first bias"),
])  # fmt: skip
def test_weights_that_do_not_fit_are_counted_and_change_nothing(change, told):
    network = torch.nn.Linear(3, 2)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    tensors = {"own.weight": torch.ones(2, 3), "own.bias": torch.ones(2), "other.weight": torch.ones(9)}
    change(tensors)
    with pytest.raises(TrainingError, match=rf"^here: the weights do not fit the plan's network \({told}\); train it again"):
        restore_weights(network, tensors, "own.", "here")
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_weights_are_taken_by_their_prefix():
    network = torch.nn.Linear(1, 1)
    tensors = {"own.weight": torch.tensor([[2.0]]), "own.bias": torch.tensor([3.0]), "other.weight": torch.ones(9)}
    restore_weights(network, tensors, "own.", "here")
    assert network(torch.tensor([5.0])).item() == 13.0


# The running average


@pytest.mark.parametrize("step, expected", [
    (1, 10.0),  # 1/11 of the old 0 and 10/11 of the new 11: the start is forgotten
    (10, 5.5),
    (90, 1.1),  # from here on the plan's 0.9
    (1000, 1.1),
])  # fmt: skip
def test_early_steps_count_less(step, expected):
    mean, now = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(mean.weight), torch.nn.init.constant_(now.weight, 11.0)
    update_average(mean, now, 0.9, step)
    assert mean.weight.item() == pytest.approx(expected) and now.weight.item() == 11.0


def test_statistics_are_averaged_and_counts_are_copied():
    mean, now = torch.nn.BatchNorm1d(1), torch.nn.BatchNorm1d(1)
    now.running_mean.fill_(11.0), now.num_batches_tracked.fill_(7)
    update_average(mean, now, 0.9, 1)
    assert mean.running_mean.item() == pytest.approx(10.0) and mean.num_batches_tracked.item() == 7
