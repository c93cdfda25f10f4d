"""FAULTS.md, rows 1 to 8, 14 to 19 and 21: trainings that are killed, signalled, starved, and started twice.

Row 2 has its exact moments, one after the other, in tests/training/test_checkpoint.py; here real kills at random ones.
Row 6 in an archive (M): tests/running/test_export.py::test_a_flipped_byte_anywhere_is_refused.
Row 18 in evaluation: tests/evaluation/test_folders.py; prediction has no workers.
"""
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch

from c2f_nnunet.io import records
from c2f_nnunet.io.images import read_label, write_label
from c2f_nnunet.training import checkpoint
from tests.faults.processes import (
    CONTEXT, Command, children, largest_file, out_of_memory, run, slow_disk, slow_validation, spoiled_loss, wait_for, weights_hash,
)  # fmt: skip

EPOCHS = 6
LONG = 5000  # epochs: more than any test waits for
SIGNAL_S = 10.0


@pytest.fixture
def tiny(tiny_planned, tmp_path):
    return tiny_planned.copy(tmp_path / "w")


def args(tiny, *more, member="3d_Stem", epochs=EPOCHS, workers=0) -> list[str]:
    return tiny.args(member, 0, "-device", "cpu", "-np", workers, "--epochs", epochs, "--batch_size", 1, *more)


def folder(tiny, member="3d_Stem"):
    return tiny.folder.run(member, 0)


def train(tiny, *more, before=(), **named) -> tuple[int, str]:
    return run(tiny.root / "printed", "train", args(tiny, *more, **named), *before)


def started(tiny, *more, before=(), **named) -> Command:
    """A training that has written its first checkpoint."""
    command = Command(tiny.root / "printed", "train", args(tiny, *more, **named), *before)
    wait_for(lambda: latest(tiny).exists() or not command.process.is_alive())
    return command


def latest(tiny) -> Path:
    return folder(tiny).root / "checkpoint_latest.json"


def step_of(tiny) -> int:
    return checkpoint.load(folder(tiny).checkpoint("latest"))[1]["progress"]["step"]


def tensors_of(record: Path) -> Path:
    return record.with_name(json.loads(record.read_text())["tensors"]["file"])


def files_of(tiny) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder(tiny).root.glob("checkpoint_*")}


@pytest.fixture(scope="module")
def undisturbed(tiny_planned, tmp_path_factory):
    """Of a training that nothing happened to: what it took in s, and the hashes of its best and final weights."""
    tiny = tiny_planned.copy(tmp_path_factory.mktemp("undisturbed") / "w")
    began = time.monotonic()
    code, printed = train(tiny)
    assert code == 0, printed
    return time.monotonic() - began, hashes(tiny)


def hashes(tiny) -> list[str]:
    return [weights_hash(folder(tiny).checkpoint(which)) for which in ("best", "final")]


@pytest.fixture(scope="module")
def stopped(tiny_planned, tmp_path_factory):
    """A training stopped by SIGTERM after its second checkpoint at the earliest."""
    tiny = tiny_planned.copy(tmp_path_factory.mktemp("stopped") / "w")
    command = started(tiny, before=(slow_disk(0.02),))
    command.signal(signal.SIGTERM)
    assert command.ended()[0] == 143
    assert latest(tiny).with_name("checkpoint_latest.prev.json").exists()
    return tiny


def test_row_01_killed_at_random_moments_and_continued(tiny_planned, tmp_path, undisturbed, kills):
    took_s, wanted = undisturbed
    dice, killed = random.Random(1), 0
    for attempt in count():
        tiny = tiny_planned.copy(tmp_path / str(attempt))
        finished = False
        while not finished:
            more = ["--c"] if checkpoint.exists(folder(tiny).checkpoint("latest")) else []
            command = Command(tiny.root / "printed", "train", args(tiny, *more))
            if killed < kills:
                command.process.join(dice.uniform(0.1, 0.9) * took_s)
            finished = killed >= kills or not command.process.is_alive()
            if finished:
                code, printed = command.ended()
                assert code == 0, printed
            else:
                command.kill()
                killed += 1
        assert hashes(tiny) == wanted
        assert not list(folder(tiny).root.glob(".tmp*")) and not (folder(tiny).root / ".lock").exists()
        if killed >= kills:
            return


def save_for_ever(path: Path) -> None:
    for n in count():
        checkpoint.save(path, {"weight": torch.full((50_000,), float(n))}, {"n": n})


def test_row_02_killed_inside_a_save(tmp_path, kills):
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
    """Both held-out cases would take 12 s; what was trained is kept, and validated first when it goes on."""
    mark = tiny.root / "validating"
    command = Command(tiny.root / "printed", "train", args(tiny), slow_validation(6.0, mark))
    wait_for(mark.exists)
    command.signal(signal.SIGTERM)
    assert command.ended(SIGNAL_S)[0] == 143
    assert step_of(tiny) == 40  # all of the two epochs before the first validation
    code, printed = train(tiny, "--c")
    assert code == 0, printed
    assert hashes(tiny) == undisturbed[1]


def test_row_04_further_signals_while_saving(tiny, undisturbed):
    command = started(tiny, before=(slow_disk(0.1),))
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGTERM):
        command.signal(number)
        time.sleep(0.1)
    assert command.ended(SIGNAL_S)[0] == 143
    assert checkpoint.load(folder(tiny).checkpoint("latest"))[2] is None
    assert train(tiny, "--c")[0] == 0 and hashes(tiny) == undisturbed[1]


DAMAGES = {
    "row 5: empty tensors": lambda record: os.truncate(tensors_of(record), 0),
    "row 5: cut tensors": lambda record: os.truncate(tensors_of(record), tensors_of(record).stat().st_size // 2),
    "row 5: cut record": lambda record: os.truncate(record, record.stat().st_size // 2),
    "row 6: flipped bit": lambda record: flip_bit(tensors_of(record)),
}


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[random.Random(6).randrange(len(content))] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", DAMAGES)
def test_row_05_06_a_damaged_checkpoint_gives_way_to_the_one_before(stopped, tmp_path, undisturbed, damage):
    tiny = stopped.copy(tmp_path / "w")
    DAMAGES[damage](latest(tiny))
    code, printed = train(tiny, "--c")
    assert code == 0 and "the checkpoint before it (checkpoint_latest.prev.json) is used instead" in printed
    assert hashes(tiny) == undisturbed[1]


def test_row_06_both_generations_flipped(stopped, tmp_path):
    tiny = stopped.copy(tmp_path / "w")
    for path in folder(tiny).root.glob("checkpoint_latest.*.safetensors"):
        flip_bit(path)
    before = files_of(tiny)
    code, printed = train(tiny, "--c")
    assert code == 1 and "checkpoint's tensors are damaged (SHA-256 " in printed and "train this member again" in printed
    assert files_of(tiny) == before


def test_row_06_prediction_with_a_flipped_checkpoint(tiny_trained, tmp_path):
    tiny = tiny_trained.copy(tmp_path / "w")
    for path in tiny.folder.run("2d_top", 0).root.glob("checkpoint_best.*.safetensors"):
        flip_bit(path)
    code, printed = run(tmp_path / "printed", "predict", tiny.args("-i", "imagesTs", "-o", tmp_path / "out", "-device", "cpu"))
    assert code == 1 and "checkpoint_best." in printed and "tensors are damaged" in printed and "train this member again" in printed
    assert not (tmp_path / "out").exists()


def test_row_07_nothing_to_continue_from(stopped, tmp_path):
    tiny = stopped.copy(tmp_path / "w")
    for path in folder(tiny).root.glob("checkpoint_*"):
        path.unlink()
    code, printed = train(tiny, "--c")
    assert code == 1 and "3d_Stem/fold_0: no checkpoint to continue from; leave --c out to start this training" in printed
    assert not files_of(tiny)


def test_row_08_disk_full_at_a_checkpoint(stopped, tmp_path, undisturbed):
    tiny = stopped.copy(tmp_path / "w")
    before = {name: content for name, content in files_of(tiny).items() if name.startswith("checkpoint_latest")}
    size = tensors_of(latest(tiny)).stat().st_size
    code, printed = train(tiny, "--c", before=(largest_file(size - 4096),))
    assert code == 1 and "safetensors: could not be written (File too large); free some space or choose another folder" in printed
    assert "Traceback" not in printed
    now = files_of(tiny)
    assert before == {name: content for name, content in now.items() if name.startswith("checkpoint_latest")}
    assert not list(folder(tiny).root.glob(".tmp*"))
    assert train(tiny, "--c")[0] == 0 and hashes(tiny) == undisturbed[1]


def test_row_14_a_label_edited_after_preprocessing(tiny):
    path = tiny.raw / "labelsTr" / "t1.nii.gz"
    label = read_label(path)
    write_label(path, np.where(label.array == 2, 0, label.array), label.source)
    code, printed = train(tiny)
    assert code == 1 and "Dataset901_Tiny: changed after preprocessing: t1; run c2f_plan_and_preprocess -d Dataset901_Tiny" in printed
    assert not folder(tiny).root.exists()


def test_row_14_other_organs_annotated_after_preprocessing(tiny):
    path = tiny.raw / "dataset.json"
    path.write_text(path.read_text().replace('"annotated": {"t4": ["Stem"]}', '"annotated": {"t4": ["Stem"], "t6": ["Stem"]}'))
    code, printed = train(tiny)
    assert code == 1 and "changed after preprocessing: t6; run" in printed


def test_row_14_files_that_were_only_touched(tiny):
    for path in tiny.raw.rglob("*.nii.gz"):
        path.touch()
    code, printed = train(tiny, epochs=1)
    assert code == 0, printed


def test_row_14_the_plan_edited_after_preprocessing(tiny):
    plan = json.loads(tiny.folder.plan.read_text())
    member = next(m for m in plan["fine"]["members"] if m["name"] == "3d_Stem")
    member["spacing_mm"] = [3.0, 3.0, 3.0]
    records.write(tiny.folder.plan, plan)
    code, printed = train(tiny)
    assert code == 1 and "3d_Stem: not preprocessed by this plan: t0, t1, " in printed
    assert not folder(tiny).root.exists()


@pytest.mark.parametrize("more", [[], ["--c"]])
def test_row_15_the_same_member_twice_at_once(tiny, more):
    first = started(tiny, epochs=LONG)
    code, printed = run(tiny.root / "second", "train", args(tiny, *more))
    assert first.process.is_alive()
    first.kill()
    owner = f"training of 3d_Stem fold 0 is already running on {socket.gethostname()} (pid {first.pid}); wait for it or stop it"
    assert code == 1 and owner in printed


def test_row_16_the_lock_of_a_dead_process(stopped, tmp_path, undisturbed):
    tiny = stopped.copy(tmp_path / "w")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    lock = folder(tiny).root / ".lock"
    lock.write_text(json.dumps({"host": socket.gethostname(), "pid": dead.pid, "what": "training of 3d_Stem fold 0"}))
    code, printed = train(tiny, "--c")
    assert code == 0, printed
    assert hashes(tiny) == undisturbed[1] and not lock.exists()


RACES, RACERS = 50, 4


def race(root: Path, barrier, results) -> None:
    from c2f_nnunet.running.model import open_model
    from c2f_nnunet.workspace import ModelFolder

    models = [open_model(ModelFolder(root / str(i))) for i in range(RACES)]
    splits = []
    for model in models:
        barrier.wait()
        splits.append(records.to_text(list(model.splits())))
    results.put(splits)


def test_row_17_folds_that_start_together_get_one_split(tiny_planned, tmp_path):
    for i in range(RACES):
        (tmp_path / str(i)).mkdir()
        for path in (tiny_planned.folder.plan, tiny_planned.folder.fingerprint, tiny_planned.folder.dataset_json):
            (tmp_path / str(i) / path.name).write_bytes(path.read_bytes())
    barrier, results = CONTEXT.Barrier(RACERS), CONTEXT.Queue()
    racers = [CONTEXT.Process(target=race, args=(tmp_path, barrier, results)) for _ in range(RACERS)]
    for racer in racers:
        racer.start()
    found = [results.get(timeout=60) for _ in racers]
    for racer in racers:
        racer.join()
    assert all(splits == found[0] for splits in found)
    assert [(tmp_path / str(i) / "splits_final.json").read_text() for i in range(RACES)] == found[0]
    assert not list(tmp_path.glob("*/.tmp*"))


def test_row_18_a_killed_augmentation_worker(tiny):
    command = started(tiny, epochs=LONG, workers=1)
    (worker,) = children(command.pid)
    os.kill(worker, signal.SIGKILL)
    code, printed = command.ended(30.0)
    told = [line for line in printed.splitlines() if line.startswith("error: an augmentation process ended at work on ")]
    assert code == 1 and len(told) == 1 and "__Stem (" in told[0] and "free memory, or see the message above it, or give -np 0" in told[0]
    assert not children(command.pid)


def test_row_18_killed_preprocessing_workers(tiny):
    command = Command(tiny.root / "printed", "plan_and_preprocess", tiny.args("-d", 901, "-pl", tiny.plan_file, "-np", 2))
    while command.process.is_alive():
        for worker in children(command.pid):
            os.kill(worker, signal.SIGKILL)
        time.sleep(0.05)
    code, printed = command.ended()
    assert code == 1 and "error: t0 (" in printed
    assert "t0_0000.nii.gz): the process working on it died; free memory, or export its files again" in printed
    assert "a worker process died (out of memory?); the 7 items left are done one at a time" in printed


def rates(tiny) -> list[float]:
    return [json.loads(line)["lr"] for line in folder(tiny).log.read_text().splitlines()]


def test_row_19_a_loss_that_is_nan_once(tiny):
    code, printed = train(tiny, before=(spoiled_loss(30),))
    assert code == 0, printed
    assert "3d_Stem/fold_0: the loss became nan in epoch 1 (norm of its gradient: nan); once more from step 20 with a tenth" in printed
    usual = tiny.model.plan.member("3d_Stem").training.learning_rate
    assert rates(tiny)[0] > 0.5 * usual and len(rates(tiny)) == EPOCHS and max(rates(tiny)[1:]) < 0.11 * usual
    tensors, _, _ = checkpoint.load(folder(tiny).checkpoint("final"))
    assert all(t.isfinite().all() for t in tensors.values())


def test_row_19_a_loss_that_is_nan_before_any_checkpoint(tiny):
    code, printed = train(tiny, before=(spoiled_loss(5),), epochs=2)
    assert code == 0 and "once more from step 0 with a tenth" in printed
    assert len(rates(tiny)) == 2


def test_row_19_a_loss_that_is_nan_twice(tiny):
    code, printed = train(tiny, before=(spoiled_loss(30, 45),))
    assert code == 1 and "error: " in printed and "3d_Stem/fold_0: the loss became nan in epoch " in printed
    assert "; lower the learning rate with --lr" in printed and not checkpoint.exists(folder(tiny).checkpoint("final"))
    tensors, _, _ = checkpoint.load(folder(tiny).checkpoint("latest"))
    assert all(t.isfinite().all() for t in tensors.values() if t.is_floating_point())


def test_row_21_the_accelerator_is_out_of_memory_while_training(tiny):
    code, printed = train(tiny, before=(out_of_memory(0),))
    assert code == 1 and "3d_Stem/fold_0: a batch of 1 does not fit the memory of cpu (CUDA out of memory." in printed
    assert "a smaller --batch_size" in printed and "Traceback" not in printed
    assert not (folder(tiny).root / ".lock").exists()
