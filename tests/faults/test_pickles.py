"""FAULTS row 45: pickles where weights, plans and fusion files are expected; their code never runs."""
import io
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from c2f_nnunet.cli import predict, train
from tests.faults.archives import plant, with_weights
from tests.faults.inputs import error, state


class Canary:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def canary(tmp_path):
    path = tmp_path / "canary"
    pickle.loads(pickle.dumps(Canary(path)))
    assert path.is_dir()  # so does any unpickling below
    path.rmdir()
    return path


def pickles(canary: Path) -> dict[str, bytes]:
    """A malicious pickle by itself, as torch.save writes it, as numpy does, and inside a list of an old joblib's kind."""
    saved, array = io.BytesIO(), io.BytesIO()
    torch.save({"network_weights": Canary(canary)}, saved)
    np.save(array, np.array([Canary(canary)], dtype=object), allow_pickle=True)
    return {"plain": pickle.dumps(Canary(canary)), "torch": saved.getvalue(), "numpy": array.getvalue(),
            "old": pickle.dumps([Canary(canary)], protocol=0)}


KINDS = ("plain", "torch", "numpy", "old")

@pytest.mark.parametrize("kind", KINDS)
def test_row_45_a_pickle_is_never_imported(refused, crafted, canary, tmp_path, kind):
    evil = pickles(canary)[kind]
    assert "no safetensors file" in refused(crafted(lambda files: with_weights(files, evil)))
    (tmp_path / "model.pth").write_bytes(evil)
    assert "not an exported model" in refused(tmp_path / "model.pth") or kind != "torch"
    for name in ("plan.json", "fusion.json", "3d_Stem/fold_0/checkpoint_best.json"):
        refused(crafted(lambda files: files | {name: evil}))
    assert not canary.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_row_45_a_pickle_is_never_trained_on(tiny_trained, canary, tmp_path, capsys, kind):
    evil, tiny = pickles(canary)[kind], tiny_trained.copy(tmp_path / "w")
    run = tiny.folder.run("3d_Stem", 0).root
    for final in run.glob("checkpoint_final*"):
        final.unlink()  # so that there is something to go on with
    plant(run, "latest", evil)
    before = state(tiny.root)
    train_args = ("3d_Stem", 0, "-d", 901, "-device", "cpu", "-np", 0)
    assert train.main(tiny.args(*train_args, "--c")) == 1
    assert state(tiny.root) == before
    assert "no safetensors file" in error(capsys.readouterr().err)
    (tmp_path / "evil.json").write_bytes(evil)
    (tmp_path / "evil.pth").write_bytes(evil)
    for given in ("evil.json", "evil.pth", "evil"):
        assert train.main(tiny.args("3d_Stem", 1, *train_args[2:], "-pretrained_weights", tmp_path / given)) == 1
        assert "evil" in error(capsys.readouterr().err)
    assert not canary.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_row_45_a_pickle_is_never_predicted_with(tiny_trained, canary, tmp_path, capsys, kind):
    evil, tiny = pickles(canary)[kind], tiny_trained.copy(tmp_path / "w")
    plant(tiny.folder.run("2d_top", 0).root, "best", evil)
    args = tiny.args("-i", "imagesTs", "-o", tmp_path / "out", "-d", 901, "-device", "cpu")
    assert predict.main(args) == 1 and not (tmp_path / "out").exists()
    assert "no safetensors file" in error(capsys.readouterr().err)
    shutil.copytree(tiny_trained.folder.root, tiny.folder.root, dirs_exist_ok=True)
    tiny.folder.fusion.write_bytes(evil)
    assert predict.main(args) == 1 and not (tmp_path / "out").exists()
    assert "fusion.json" in error(capsys.readouterr().err) and not canary.exists()

