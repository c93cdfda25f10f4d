"""FAULTS rows 15 to 17: two at once on one member or data set, a dead owner's lock, folds that start together."""
import json
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from c2f_nnunet.data.splits import make_splits
from c2f_nnunet.io import records
from c2f_nnunet.workspace import ModelFolder
from tests.faults.inputs import state
from tests.faults.processes import CONTEXT, Command, run, slow_disk, wait_for
from tests.faults.trainings import LONG, args, folder, hashes, started, train


@pytest.mark.parametrize("more", [[], ["--c"]])
def test_row_15_the_same_member_twice_at_once(tiny, more):
    first = started(tiny, epochs=LONG)
    code, printed = run(tiny.root / "second", "train", args(tiny, *more))
    assert first.process.is_alive()
    first.kill()
    owner = f"training of 3d_Stem fold 0 is already running on {socket.gethostname()} (pid {first.pid}); wait for it or stop it"
    assert code == 1 and owner in printed


def preprocessing(tiny, *more) -> tuple[str, list[str]]:
    return "plan_and_preprocess", tiny.args("-d", 901, "-pl", tiny.plan_file, "-np", 1, *more)


def test_row_15_the_same_data_set_preprocessed_twice_at_once(tiny):
    first = Command(tiny.root / "first", *preprocessing(tiny), slow_disk(0.5))
    wait_for((tiny.workspace.preprocessed / tiny.raw.name / ".lock").exists)
    code, printed = run(tiny.root / "second", *preprocessing(tiny))
    assert first.process.is_alive()
    first.kill()
    what = f"planning and preprocessing of {tiny.raw.name}"
    assert code == 1 and f"{what} is already running on {socket.gethostname()} (pid {first.pid}); wait for it or stop it" in printed


def test_row_15_preprocessing_what_a_training_reads(tiny):
    """With a checkpoint or without, the volumes are its own until it ends: it reads them as it goes."""
    first = started(tiny, epochs=LONG)
    before = state(tiny.store.root, tiny.folder.root / "plan.json", tiny.folder.root / "fingerprint.json")
    code, printed = run(tiny.root / "second", *preprocessing(tiny, "--clean"))
    assert first.process.is_alive()
    first.kill()
    owner = f"training of 3d_Stem fold 0 is already running on {socket.gethostname()} (pid {first.pid}); wait for it or stop it"
    assert code == 1 and owner in printed
    assert state(tiny.store.root, tiny.folder.root / "plan.json", tiny.folder.root / "fingerprint.json") == before


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


def race(root: Path, seed: int, barrier, results) -> None:
    from c2f_nnunet.running import model

    model.make_splits = partial(make_splits, seed=seed)  # each would make another split
    models = [model.open_model(ModelFolder(root / str(i))) for i in range(RACES)]
    splits = []
    for opened in models:
        barrier.wait()
        splits.append(records.to_text(list(opened.splits())))
    results.put(splits)


def test_row_17_folds_that_start_together_get_one_split(tiny_planned, tmp_path):
    for i in range(RACES):
        (tmp_path / str(i)).mkdir()
        for path in (tiny_planned.folder.plan, tiny_planned.folder.fingerprint, tiny_planned.folder.dataset_json):
            (tmp_path / str(i) / path.name).write_bytes(path.read_bytes())
    barrier, results = CONTEXT.Barrier(RACERS), CONTEXT.Queue()
    racers = [CONTEXT.Process(target=race, args=(tmp_path, seed, barrier, results)) for seed in range(RACERS)]
    for racer in racers:
        racer.start()
    found = [results.get(timeout=60) for _ in racers]
    for racer in racers:
        racer.join()
    assert all(splits == found[0] for splits in found)
    assert [(tmp_path / str(i) / "splits_final.json").read_text() for i in range(RACES)] == found[0]
    own = {records.to_text(list(make_splits([c.id for c in tiny_planned.dataset.training], seed=seed))) for seed in range(RACERS)}
    assert len(own) == RACERS and set(found[0]) <= own
    assert not list(tmp_path.glob("*/.tmp*"))
