"""Checkpoints: round trip, damage, and a kill at every step of a save."""
import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from c2f_nnunet.errors import ModelError, WorkspaceError
from c2f_nnunet.training import checkpoint


def generation(n):
    return {"weight": torch.full((2, 3), float(n)), "count": torch.tensor(n)}, {"step": n, "best": {"dice": 0.5 + n}}


def save(path, n):
    checkpoint.save(path, *generation(n))


def step_of(path):
    """The step that loads, after checking that the tensors belong to it; and whether there was a warning."""
    tensors, state, warning = checkpoint.load(path)
    expected_tensors, expected_state = generation(state["step"])
    assert state == expected_state
    assert all(torch.equal(tensors[k], v) for k, v in expected_tensors.items())
    return state["step"], warning


def newest_tensors(path):
    return path.with_name(json.loads(path.with_name(path.name + ".json").read_text())["tensors"]["file"])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint_latest"


def test_round_trip_of_types_and_views(path):
    base = torch.arange(12.0).view(3, 4)
    tensors = {
        "shared": base, "also shared": base, "transposed": base.t(), "slice": base[:, 1], "half": base.bfloat16(),
        "scalar": torch.tensor(7), "gradient": torch.nn.Parameter(base), "flags": base > 5, "empty": torch.empty(0, 3),
    }
    checkpoint.save(path, tensors, {"unicode": "é", "list": [1, 0.1], 3: None, 12: "keys become strings", "loss": float("inf")})
    loaded, state, warning = checkpoint.load(path)
    assert loaded.keys() == tensors.keys() and warning is None
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor)
    assert state == {"unicode": "é", "list": [1, 0.1], "3": None, "12": "keys become strings", "loss": float("inf")}


def test_the_files_of_the_generation_that_loads(path):
    with pytest.raises(ModelError, match="checkpoint_latest.json: no checkpoint that is whole there; train this member again"):
        checkpoint.usable_files(path)
    save(path, 1)
    first = checkpoint.usable_files(path)
    assert first == (path.with_name("checkpoint_latest.json"), newest_tensors(path))
    save(path, 2)
    newest_tensors(path).write_bytes(b"damaged")
    assert checkpoint.usable_files(path) == (path.with_name("checkpoint_latest.prev.json"), first[1])


def test_two_generations_are_kept_and_no_more(path):
    for n in range(4):
        save(path, n)
    assert step_of(path) == (3, None)
    names = sorted(p.name for p in path.parent.iterdir())
    assert [n for n in names if n.endswith(".json")] == ["checkpoint_latest.json", "checkpoint_latest.prev.json"]
    assert len(names) == 4


def test_other_checkpoints_in_the_folder_are_left_alone(path):
    other = path.with_name("checkpoint_latest.best")  # a name that begins alike
    save(other, 5)
    for n in range(3):
        save(path, n)
    assert step_of(other) == (5, None)


def test_nothing_there(path):
    assert not checkpoint.exists(path)
    with pytest.raises(ModelError, match=r"checkpoint_latest\.json: no checkpoint there; train this member first"):
        checkpoint.load(path)


def flip_bit(file: Path, at: float):
    content = bytearray(file.read_bytes())
    content[int(at * (len(content) - 1))] ^= 1
    file.write_bytes(content)


def other_step(record: Path):
    record.write_text(record.read_text().replace('"step": 2', '"step": 3'))


DAMAGES = {
    "tensors: first byte": lambda path: flip_bit(newest_tensors(path), 0),
    "tensors: bit flip in the values": lambda path: flip_bit(newest_tensors(path), 0.95),
    "tensors: cut": lambda path: os.truncate(newest_tensors(path), 50),
    "tensors: empty": lambda path: os.truncate(newest_tensors(path), 0),
    "tensors: missing": lambda path: newest_tensors(path).unlink(),
    "json: cut": lambda path: os.truncate(path.with_name(path.name + ".json"), 60),
    "json: empty": lambda path: os.truncate(path.with_name(path.name + ".json"), 0),
    "json: missing": lambda path: path.with_name(path.name + ".json").unlink(),
    "json: another value": lambda path: other_step(path.with_name(path.name + ".json")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_noticed_and_the_previous_one_used(path, damage):
    save(path, 1), save(path, 2)
    DAMAGES[damage](path)
    step, warning = step_of(path)
    assert step == 1 and "checkpoint_latest.prev.json) is used instead" in warning
    save(path, 3)  # the next save must not put the damaged one in the place of the good one
    assert step_of(path) == (3, None)
    DAMAGES["tensors: missing"](path)
    assert step_of(path)[0] == 1


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_newest_alone_may_be_asked_for(path, damage):
    save(path, 1), save(path, 2)
    assert checkpoint.load(path, newest_only=True)[2] is None
    DAMAGES[damage](path)
    with pytest.raises(ModelError, match="checkpoint_latest.*; train this member again$"):
        checkpoint.load(path, newest_only=True)


@pytest.mark.parametrize("position", range(20))
def test_any_flipped_bit_of_the_json_is_noticed_or_harmless(path, position):
    save(path, 1), save(path, 2)
    flip_bit(path.with_name("checkpoint_latest.json"), position / 19)
    assert step_of(path)[0] in (1, 2)


def test_both_damaged(path):
    save(path, 1), save(path, 2)
    for file in path.parent.glob("*.safetensors"):
        flip_bit(file, 0.9)
    with pytest.raises(ModelError, match="tensors are damaged .* and the one before it: .*tensors are damaged .*; train this member again"):
        checkpoint.load(path)


def test_a_record_cannot_name_a_file_of_another_folder(path):
    save(path.parent.parent / "checkpoint_latest", 1), save(path, 2)
    record = path.with_name("checkpoint_latest.json")
    body = json.loads(record.read_text())
    body["tensors"]["file"] = "../" + body["tensors"]["file"]
    record.write_text(json.dumps(body | {"sha256": checkpoint._body_hash(body)}))
    with pytest.raises(ModelError, match="record is damaged"):
        checkpoint.load(path)


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    "saves_before, outcomes",
    [
        # one letter per moment, before and after each rename of a save: N nothing there, o the old one, n the new one
        (0, "NN" "Nn"),  # tensors, json
        (1, "oo" "oo" "on"),  # tensors, previous json, json
        (2, "oo" "oo" "on"),
    ],
)
def test_a_failure_before_or_after_any_rename_leaves_a_whole_checkpoint(path, saves_before, outcomes, monkeypatch):
    fsync, seen = os.fsync, ""  # a file is synced right before its rename and its folder right after
    for fatal in range(1, 20):
        shutil.rmtree(path.parent)
        for n in range(1, saves_before + 1):
            save(path, n)
        calls = 0

        def dying(handle):
            nonlocal calls
            calls += 1
            if calls == fatal:
                raise Killed
            fsync(handle)

        monkeypatch.setattr(os, "fsync", dying)
        try:
            save(path, 9)
            break  # a save has fewer moments than this
        except Killed:
            pass
        finally:
            monkeypatch.setattr(os, "fsync", fsync)
        try:
            step, warning = step_of(path)
            assert warning is None
            seen += {saves_before: "o", 9: "n"}[step]
        except ModelError:
            seen += "N"
        save(path, 10)
        assert step_of(path) == (10, None)
    assert seen == outcomes


def test_the_folder_is_whole_at_every_moment_of_a_save(path, monkeypatch, tmp_path):
    """What a kill -9 would leave: a copy of the folder taken before and after each rename (see above) and removal."""
    save(path, 1), save(path, 2)
    moments, fsync, unlink = [], os.fsync, Path.unlink

    def photograph():
        moments.append(tmp_path.parent / f"{tmp_path.name}_moment_{len(moments)}")
        shutil.copytree(tmp_path, moments[-1])

    def watched(act):
        def acting(*arguments, **named):
            photograph()
            act(*arguments, **named)
            photograph()

        return acting

    monkeypatch.setattr(os, "fsync", watched(fsync))
    monkeypatch.setattr(Path, "unlink", watched(unlink))
    save(path, 3)
    monkeypatch.undo()
    steps = [step_of(moment / path.name) for moment in moments]
    assert {step for step, _ in steps} == {2, 3} and all(warning is None for _, warning in steps)
    assert steps == sorted(steps, key=lambda s: s[0])  # never back to the older one
    assert len(moments) >= 2 * (6 + 1)  # before and after three renames, and at the removal of generation 1
    for moment in moments:
        save(moment / path.name, 4)
        assert step_of(moment / path.name) == (4, None)


def test_full_disk_keeps_the_old_one(path, monkeypatch):
    save(path, 1)
    files = sorted(path.parent.iterdir())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(WorkspaceError, match="could not be written .No space left on device.; free some space"):
        save(path, 2)
    assert sorted(path.parent.iterdir()) == files
    assert step_of(path) == (1, None)


def train(network, optimiser, steps):
    for step in range(steps):
        optimiser.zero_grad()
        network(torch.ones(2, 3) * (step + 1)).square().mean().backward()
        optimiser.step()


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
        lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
        lambda p: torch.optim.SGD(p, lr=0.01),
    ],
)
def test_optimiser_goes_on_as_if_never_stopped(path, make):
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 2)
    optimiser = make(network.parameters())
    train(network, optimiser, 3)
    tensors, state = checkpoint.optimiser_state(optimiser)
    checkpoint.save(path, tensors | {f"weights.{k}": v for k, v in network.state_dict().items()}, {"optimiser": state})
    train(network, optimiser, 2)

    loaded, states, _ = checkpoint.load(path)
    again = torch.nn.Linear(3, 2)
    again.load_state_dict({k.removeprefix("weights."): v for k, v in loaded.items() if k.startswith("weights.")})
    resumed = make(again.parameters())
    checkpoint.restore_optimiser(resumed, loaded, states["optimiser"])
    assert resumed.param_groups[0].keys() == optimiser.param_groups[0].keys()
    assert all(type(resumed.param_groups[0][k]) is type(v) for k, v in optimiser.param_groups[0].items())
    train(again, resumed, 2)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters()))


@pytest.mark.parametrize(
    "other, message",
    [
        (torch.nn.Linear(3, 2, bias=False), "does not fit the network"),
        (torch.nn.Linear(4, 2), r"'exp_avg' has shape \(2, 3\) for a parameter of shape \(2, 4\)"),
    ],
)
def test_optimiser_of_another_network(other, message):
    network = torch.nn.Linear(3, 2)
    optimiser = torch.optim.Adam(network.parameters())
    train(network, optimiser, 1)
    tensors, state = checkpoint.optimiser_state(optimiser)
    with pytest.raises(ModelError, match=message):
        checkpoint.restore_optimiser(torch.optim.Adam(other.parameters()), tensors, state)


def test_random_generators_go_on_where_they_were(path):
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    random.gauss(0, 1), np.random.randn(1)  # both keep a second normal number back
    tensors, state = checkpoint.random_state()
    checkpoint.save(path, tensors, {"random": state})

    def draw():
        return random.gauss(0, 1), random.random(), np.random.randn(3).tolist(), np.random.rand(), torch.randn(4).tolist()

    expected = draw()
    draw()
    loaded, states, _ = checkpoint.load(path)
    checkpoint.restore_random_state(loaded, states["random"])
    assert draw() == expected
