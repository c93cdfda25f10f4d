"""Trainings of the tiny data set in processes of their own, and what they leave."""
import json
from pathlib import Path

from c2f_nnunet.training import checkpoint
from tests.faults.processes import Command, run, wait_for, weights_hash

EPOCHS = 4
STEPS = 20  # in each
LONG = 5000  # epochs: more than any test waits for


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


def step_of(tiny, member="3d_Stem") -> int:
    return checkpoint.load(folder(tiny, member).checkpoint("latest"))[1]["progress"]["step"]


def tensors_of(record: Path) -> Path:
    return record.with_name(json.loads(record.read_text())["tensors"]["file"])


def files_of(tiny) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder(tiny).root.glob("checkpoint_*")}


def hashes(tiny, member="3d_Stem") -> list[str]:
    return [weights_hash(folder(tiny, member).checkpoint(which)) for which in ("best", "final")]
