"""A model folder opened for use: several folds' networks are loaded one at a time, and checked before anything is computed."""
import gc
import json
import shutil
import weakref
from dataclasses import replace

import pytest
import torch

from c2f_nnunet.errors import ModelError
from c2f_nnunet.io import records
from c2f_nnunet.running.model import build_cascade
from c2f_nnunet.training import checkpoint

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


def test_older_weights_never_stand_in_for_damaged_ones(tiny_trained, tmp_path):
    """A training goes on from the generation before; a prediction by it would be that of another network."""
    tiny = tiny_trained.copy(tmp_path / "w")
    path = tiny.folder.run("3d_Stem", 0).checkpoint("best")
    tensors, state, _ = checkpoint.load(path)
    checkpoint.save(path, {name: value + 1 for name, value in tensors.items()}, state)
    newest = path.with_name(json.loads(path.with_name("checkpoint_best.json").read_text())["tensors"]["file"])
    newest.write_bytes(newest.read_bytes()[:-40])
    assert checkpoint.load(path)[2] is not None  # the one before is whole
    with pytest.raises(ModelError, match="3d_Stem/fold_0/checkpoint_best.*damaged.*; train this member again"):
        build_cascade(tiny.model, None, "best", CPU)


def test_the_other_checkpoint_is_named_where_it_is_the_only_one(tiny_trained, tmp_path):
    tiny = tiny_trained.copy(tmp_path / "w")
    for path in tiny.folder.root.glob("*/fold_0/checkpoint_best*"):
        path.unlink()
    with pytest.raises(ModelError, match="tiny: holds no checkpoint_best, only checkpoint_final; give -chk final"):
        build_cascade(tiny.model, None, "best", CPU)
    assert len(build_cascade(tiny.model, None, "final", CPU)[1]) == 5


def test_fits_of_other_organs_are_refused(tiny_trained, tmp_path):
    tiny = tiny_trained.copy(tmp_path / "w")
    fusion = tiny.model.fusion
    records.write(tiny.folder.fusion, replace(fusion, merge=replace(fusion.merge, organs=("Stem", "Gland_R", "Gland_L"))))
    told = "fusion.json: was fitted for Stem, Gland_R, Gland_L, the plan has Gland_L, Gland_R, Stem; remove it"
    with pytest.raises(ModelError, match=told):
        tiny.model.fusion


def test_a_cascade_knows_what_it_is_made_of(tiny_trained, tmp_path):
    tiny = with_two_folds(tiny_trained, tmp_path / "w")

    def made(*args, **named) -> str:
        return build_cascade(tiny.model, *args, CPU, **named)[0].made_of

    first = made((0,), "best")
    others = [made((0, 1), "best"), made((0,), "final"), made((0,), "best", flips=False)]
    tiny.folder.fusion.unlink()
    others.append(made((0,), "best"))
    assert len({first, *others}) == 5
    shutil.copy(tiny_trained.folder.fusion, tiny.folder.fusion)
    assert made((0,), "best") == first


def test_a_damaged_fold_is_an_error_before_anything_is_computed(tiny_trained, tmp_path):
    tiny = with_two_folds(tiny_trained, tmp_path / "w")
    for path in (tiny.folder.root / "3d_Stem" / "fold_1").glob("checkpoint_best*.safetensors"):
        path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ModelError, match="3d_Stem/fold_1/checkpoint_best.*damaged"):
        build_cascade(tiny.model, None, "best", CPU)
