"""FAULTS rows 1 to 4: trainings and saves that are killed at random moments, and signalled.

Row 2 has its exact moments, one after the other, in tests/training/test_checkpoint.py; here real kills at random ones.
"""
import random
import signal
import time
from functools import partial
from itertools import count
from pathlib import Path

import pytest
import torch

from c2f_nnunet.training import checkpoint
from tests.faults.inputs import edit_json
from tests.faults.processes import (
    CONTEXT, Command, checkpoints_every, killed_at_loss, killed_validating, saving_share, slow_batches, slow_disk, slow_start, slow_validation,
    survivors, threads, wait_for,
)  # fmt: skip
from tests.faults.trainings import LONG, STEPS, args, folder, hashes, started, step_of, train

SIGNAL_S = 10.0


def begun_or_continued(tiny, *before, **named) -> Command:
    """With a checkpoint at every occasion, so that kills at random moments hit many of them."""
    more = ["--c"] if checkpoint.exists(folder(tiny, named.get("member", "3d_Stem")).checkpoint("latest")) else []
    return Command(tiny.root / "printed", "train", args(tiny, *more, **named), saving_share(1.0), *before)


def test_row_01_killed_at_random_moments_and_continued(tiny_planned, tmp_path, undisturbed, kills, record_property):
    took_s, wanted = undisturbed
    record_property("kills", kills)
    places = survivors(begun_or_continued, lambda attempt: tiny_planned.copy(tmp_path / str(attempt)), took_s, kills, seed=1)
    for runs, tiny in enumerate(places, 1):
        record_property("runs", runs)
        assert hashes(tiny) == wanted
        assert not list(folder(tiny).root.glob(".tmp*")) and not (folder(tiny).root / ".lock").exists()


def test_row_01_a_view_with_augmentation_two_workers_and_two_threads(tiny, tmp_path, kills, record_property):
    """As above, of a training that draws random numbers in processes of its own and adds up in several threads."""
    edit_json(tiny.folder.plan, lambda p: p | {"coarse": p["coarse"] | {"members": [
        m | {"training": m["training"] | {"augmentation": "full"}} for m in p["coarse"]["members"]
    ]}})  # fmt: skip
    start = partial(begun_or_continued, member="2d_top", workers=2)
    whole, began = tiny.copy(tmp_path / "whole"), time.monotonic()
    code, printed = start(whole, threads(2)).ended()
    assert code == 0, printed
    took_s, wanted = time.monotonic() - began, hashes(whole, "2d_top")
    few = max(1, kills // 3)
    record_property("kills", few)
    places = survivors(lambda place: start(place, threads(2)), lambda attempt: tiny.copy(tmp_path / str(attempt)), took_s, few, seed=3)
    for runs, place in enumerate(places, 1):
        record_property("runs", runs)
        assert hashes(place, "2d_top") == wanted


@pytest.mark.parametrize("every_s, kept", [(300.0, STEPS), (0.0, STEPS + 12)])
def test_row_01_what_a_kill_inside_a_long_epoch_costs(tiny, undisturbed, every_s, kept):
    """Killed at its 13th step, an epoch is lost; not so what was trained until the last checkpoint, five minutes ago (here: none)."""
    code, printed = train(tiny, before=(checkpoints_every(every_s), killed_at_loss(STEPS + 13)))
    assert code == -signal.SIGKILL, printed
    assert step_of(tiny) == kept
    code, printed = train(tiny, "--c")
    assert code == 0, printed
    assert hashes(tiny) == undisturbed[1]


def test_row_01_what_a_kill_at_the_end_of_a_validation_costs(tiny, undisturbed):
    """In the second and last of two held-out cases: nothing of the two epochs before it."""
    code, printed = train(tiny, before=(saving_share(1.0), killed_validating(2)))
    assert code == -signal.SIGKILL, printed
    assert step_of(tiny) == 2 * STEPS
    code, printed = train(tiny, "--c")
    assert code == 0, printed
    assert hashes(tiny) == undisturbed[1]


def save_for_ever(path: Path) -> None:
    for n in count():
        checkpoint.save(path, {"weight": torch.full((50_000,), float(n))}, {"n": n})


def test_row_02_killed_inside_a_save(tmp_path, kills, record_property):
    record_property("kills", 2 * kills)
    path, dice, newest = tmp_path / "checkpoint_latest", random.Random(2), -1
    for _ in range(2 * kills):
        process = CONTEXT.Process(target=save_for_ever, args=(path,))
        process.start()
        wait_for(lambda: path.with_name("checkpoint_latest.json").exists())
        time.sleep(dice.uniform(0.0, 0.05))
        process.kill()
        process.join()
        tensors, state, warning = checkpoint.load(path)
        assert warning is None and (tensors["weight"] == state["n"]).all()
        newest = max(newest, state["n"])
    assert newest > 0


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGUSR1, 143), (signal.SIGINT, 130)])
def test_row_03_a_signal_ends_it_after_a_checkpoint(tiny, number, code):
    command = started(tiny, epochs=LONG)
    before = step_of(tiny)
    time.sleep(0.2)
    command.signal(number)
    assert command.ended(SIGNAL_S)[0] == code
    assert step_of(tiny) > before and not (folder(tiny).root / ".lock").exists()


def test_row_03_a_signal_while_validating(tiny, undisturbed):
    """It ends after the case at hand, of two; what was trained is kept, and validated first when it goes on."""
    mark = tiny.root / "validating"
    command = Command(tiny.root / "printed", "train", args(tiny), slow_validation(1.0, mark))
    wait_for(mark.exists)
    command.signal(signal.SIGTERM)
    assert command.ended(SIGNAL_S)[0] == 143
    assert mark.read_text() == "1" and step_of(tiny) == 2 * STEPS  # all of the two epochs before the first validation
    code, printed = train(tiny, "--c")
    assert code == 0, printed
    assert hashes(tiny) == undisturbed[1]


def test_row_03_a_signal_between_the_slices_of_a_held_out_case(tiny):
    """One case may take longer than a signal may wait: it ends after the batch of slices at hand, of three."""
    mark = tiny.root / "validating"
    command = Command(tiny.root / "printed", "train", args(tiny, member="2d_top"), slow_batches(1.0, mark))
    wait_for(mark.exists)
    command.signal(signal.SIGTERM)
    assert command.ended(SIGNAL_S)[0] == 143
    assert mark.read_text() == "1" and step_of(tiny, "2d_top") == 2 * STEPS


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGUSR1, 143), (signal.SIGINT, 130)])
def test_row_03_a_signal_before_the_first_training(tiny, number, code):
    """While the sources of a large data set are hashed, say: there is nothing to keep, so it ends at once."""
    mark = tiny.root / "hashing"
    command = Command(tiny.root / "printed", "train", args(tiny), slow_start(60.0, mark))
    wait_for(mark.exists)
    command.signal(number)
    ended, printed = command.ended(SIGNAL_S)
    assert ended == code and "3d_Stem 0: stopped before any training; the same command starts it again" in printed
    assert not folder(tiny).root.exists()


def test_row_04_further_signals_while_saving(tiny, undisturbed):
    command = started(tiny, before=(slow_disk(0.03),))
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGTERM):
        command.signal(number)
        time.sleep(0.03)
    assert command.ended(SIGNAL_S)[0] == 143
    assert checkpoint.load(folder(tiny).checkpoint("latest"))[2] is None
    assert train(tiny, "--c")[0] == 0 and hashes(tiny) == undisturbed[1]
