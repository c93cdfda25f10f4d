"""A model folder opened for use: several folds' networks are loaded one at a time, and checked before anything is computed."""
import gc
import shutil
import weakref

import pytest
import torch

from c2f_nnunet.errors import ModelError
from c2f_nnunet.running.model import build_cascade

CPU = torch.device("cpu")


def with_two_folds(tiny, folder):
    """The tiny model with fold 0's trainings once more as fold 1."""
    tiny = tiny.copy(folder)
    for run in list(tiny.folder.root.glob("*/fold_0")):
        shutil.copytree(run, run.with_name("fold_1"))
    return tiny


def test_networks_of_several_folds_are_loaded_one_at_a_time(tiny_trained, tmp_path):
    tiny = with_two_folds(tiny_trained, tmp_path / "w")
    cascade, found = build_cascade(tiny.model, None, "best", CPU)
    assert found["2d_top"] == (0, 1) and len(cascade.networks["2d_top"]) == 2
    alive, most = [], 0
    for network in cascade.networks["2d_top"]:
        alive.append(weakref.ref(network))
        del network
        gc.collect()
        most = max(most, sum(ref() is not None for ref in alive))
    assert len(alive) == 2 and most <= 1


def test_a_damaged_fold_is_an_error_before_anything_is_computed(tiny_trained, tmp_path):
    tiny = with_two_folds(tiny_trained, tmp_path / "w")
    for path in (tiny.folder.root / "3d_Stem" / "fold_1").glob("checkpoint_best*.safetensors"):
        path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ModelError, match="3d_Stem/fold_1/checkpoint_best.*damaged"):
        build_cascade(tiny.model, None, "best", CPU)
