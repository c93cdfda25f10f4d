"""FAULTS rows 49 and 50: an import over a model that is there, and models that do not fit their plan."""
import json
import re
import zipfile
from contextlib import ExitStack

import pytest
import safetensors.torch
import torch

from c2f_nnunet.cli import import_model
from c2f_nnunet.running import export
from c2f_nnunet.workspace import lock
from tests.faults.archives import with_weights
from tests.faults.inputs import error, state


def test_row_49_a_model_that_is_there(archive, crafted, tmp_path, capsys):
    args = [str(archive), "--workspace", str(tmp_path / "w")]
    assert import_model.main(args) == 0
    model = tmp_path / "w" / "results" / "Dataset901_Tiny" / "tiny"
    (model / "mark").write_text("mine")
    before = state(tmp_path / "w")
    capsys.readouterr()
    assert import_model.main(args) == 1 and state(tmp_path / "w") == before
    assert "a model is there already; give --replace to put model.zip in its place" in error(capsys.readouterr().err)
    bad = crafted(lambda files: with_weights(files, b"bad"))
    assert import_model.main([str(bad), *args[1:], "--replace"]) == 1 and state(tmp_path / "w") == before
    assert import_model.main([*args, "--replace"]) == 0
    assert not (model / "mark").exists() and (model / "plan.json").is_file()


def while_checking(monkeypatch, act) -> None:
    """What another process does while the import checks the archive, which takes minutes for a large one."""
    check = export._check_model
    monkeypatch.setattr(export, "_check_model", lambda *given: (check(*given), act()))


def test_row_49_a_model_that_comes_meanwhile(archive, tmp_path, capsys, monkeypatch):
    """As by planning, or by another import."""
    model = tmp_path / "w" / "results" / "Dataset901_Tiny" / "tiny"
    while_checking(monkeypatch, lambda: (model.mkdir(parents=True), (model / "plan.json").write_text("another's")))
    assert import_model.main([str(archive), "--workspace", str(tmp_path / "w")]) == 1
    assert "a model is there already" in error(capsys.readouterr().err)
    assert [*model.iterdir()] == [model / "plan.json"] and (model / "plan.json").read_text() == "another's"


def test_row_49_a_training_that_begins_meanwhile(archive, tmp_path, capsys, monkeypatch):
    args = [str(archive), "--workspace", str(tmp_path / "w")]
    assert import_model.main(args) == 0
    capsys.readouterr()
    model = tmp_path / "w" / "results" / "Dataset901_Tiny" / "tiny"
    before = state(model)
    with ExitStack() as training:
        while_checking(monkeypatch, lambda: training.enter_context(lock(model / "2d_top" / "fold_1", "training of 2d_top fold 1")))
        assert import_model.main([*args, "--replace"]) == 1
        assert "2d_top/fold_1: training of 2d_top fold 1 is already running on" in error(capsys.readouterr().err)
    assert state(model) == before and [f.name for f in model.parent.parent.iterdir()] == ["Dataset901_Tiny"]


def planned(change):
    """The archive's files with its plan changed."""

    def rewritten(files):
        plan = json.loads(files["plan.json"])
        change(plan)
        return files | {"plan.json": json.dumps(plan).encode()}

    return rewritten


def weights(change):
    """The archive's files with the averaged weights of one network changed."""

    def rewritten(files):
        name = next(n for n in files if n.startswith("3d_Stem/fold_0/checkpoint_best.") and n.endswith(".safetensors"))
        tensors = safetensors.torch.load(files[name])
        change(tensors, next(k for k in tensors if k.startswith("average.") and tensors[k].ndim == 5))
        return with_weights(files, safetensors.torch.save(tensors))

    return rewritten


def renamed(old: str, new: str, value: float | None = None):
    """The archive's files with a part of their names changed; with a value, that of one weight."""
    change = (lambda files: files) if value is None else weights(lambda t, k: t[k].view(-1)[0].fill_(value))
    return lambda files: {n.replace(old, new): c for n, c in change(files).items()}


UNFIT = r"3d_Stem/fold_0/checkpoint_best: the weights do not fit the plan's network \([0-9]+ tensors differ"


def member(plan):
    return plan["fine"]["members"][-1]


@pytest.mark.parametrize("change, told", [
    (planned(lambda p: member(p)["network"].update(norm="os.system")), "norm: Input should be 'instance' or 'batch'"),
    (planned(lambda p: member(p)["network"].update(network_class_name="evil.Network")), "network_class_name: Unexpected keyword"),
    (planned(lambda p: member(p)["training"].update(optimiser="torch.optim.SGD")), "optimiser: Input should be 'adam', 'adamw' or 'sgd'"),
    (planned(lambda p: member(p)["training"]["loss"].update(name="evil.Loss")), "name: Input should be 'dice_ce'"),
    (planned(lambda p: p.update(version=99)), "version"),
    (planned(lambda p: member(p)["network"].update(features=[6, 24])), UNFIT),
    (planned(lambda p: member(p)["network"].update(out_channels=9)), "3d_Stem: out_channels is 9, but it tells 2 apart"),
    (planned(lambda p: member(p)["network"].update(features=[6, 10**7])), UNFIT),  # a terabyte
    (planned(lambda p: p["coarse"]["members"][0]["network"].update(features=[8, 10**9])), "its plan describes a network that cannot be"),
    (weights(lambda t, k: t.update({k: torch.full_like(t[k], float("nan"))})), "3d_Stem fold 0 has weights that are NaN or infinite"),
    (weights(lambda t, k: t[k].view(-1)[0].fill_(float("inf"))), "3d_Stem fold 0 has weights that are NaN or infinite"),
    (weights(lambda t, k: t.update({k: t[k][:1]})), UNFIT),
    (weights(lambda t, k: t.pop(k)), UNFIT),
    (renamed("3d_Stem/fold_0/checkpoint_best", "3d_Stem/fold_1/checkpoint_best", float("nan")), "3d_Stem fold 1 has weights that are NaN"),
    (renamed("3d_Stem/fold_0/", "3d_Liver/fold_0/"), "holds weights of 3d_Liver, which its plan does not know"),
    (lambda files: {n: c for n, c in files.items() if "checkpoint_final" not in n}, "holds no trained network"),
    (lambda files: {n: c for n, c in files.items() if n != "plan.json"}, "has no plan.json; this is not an exported model"),
    (lambda files: files | {"fusion.json": b'{"version": 1, "coarse": "evil.Class"}'}, "fusion.json"),
], ids=range(18))
def test_row_50_what_does_not_fit(refused, crafted, change, told):
    message = refused(crafted(change))
    assert re.search(told, message), message


@pytest.mark.parametrize("change, told", [
    (lambda m: m | {"class": "evil.Model"}, "class"),
    (lambda m: m | {"version": "1; import os"}, "version"),
    (lambda m: m | {"files": [1, 2]}, "files"),
    (lambda m: {k: v for k, v in m.items() if k != "plan"}, "plan"),
    (lambda m: [m], "manifest"),
])
def test_row_50_a_manifest_of_another_form(refused, archive, tmp_path, change, told):
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(tmp_path / "crafted.zip", "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, json.dumps(change(json.loads(content))) if name == "manifest.json" else content)
    message = refused(tmp_path / "crafted.zip")
    assert "manifest.json: not a valid Manifest" in message and told in message
