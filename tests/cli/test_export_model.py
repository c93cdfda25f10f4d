"""c2f_export_model: each option in what is exported, what is shown, and how it ends."""
from types import SimpleNamespace

import pytest

from c2f_nnunet.cli import export_model
from c2f_nnunet.running import export


@pytest.fixture
def exported(monkeypatch):
    """What was to be exported: a file of half a megabyte of nothing is written in its place."""
    seen = SimpleNamespace()

    def write(model, target, which):
        seen.folder, seen.target, seen.which = model.folder, target, which
        target.write_bytes(bytes(2**19))
        return 25

    monkeypatch.setattr(export, "export_model", write)
    return seen


def test_the_file_is_named_with_its_size(tiny_planned, exported, tmp_path, capsys):
    target = tmp_path / "model.zip"
    assert export_model.main(tiny_planned.args("-o", target)) == 0
    assert (exported.folder, exported.target, exported.which) == (tiny_planned.folder, target, "best")
    assert capsys.readouterr().out == f"25 networks written to {target} (0.5 MB)\n"


@pytest.mark.parametrize("args", [["-d", "901"], ["-d", "0901"], ["-d", "Dataset901_Tiny"], ["-pl", "tiny"]])
def test_the_data_set_and_the_plan(tiny_planned, exported, tmp_path, args):
    assert export_model.main(tiny_planned.args("-o", tmp_path / "model.zip", *args)) == 0
    assert exported.folder == tiny_planned.folder


def test_the_checkpoint(tiny_planned, exported, tmp_path):
    assert export_model.main(tiny_planned.args("-o", tmp_path / "model.zip", "-chk", "final")) == 0
    assert exported.which == "final"


def test_export_needs_a_trained_model(tiny_planned, tmp_path, fails):
    assert "nothing is trained there yet; run c2f_train all all first" in fails(export_model, tiny_planned, "-o", tmp_path / "m.zip")
    assert not (tmp_path / "m.zip").exists()


@pytest.mark.parametrize("args, told", [
    ([], "the following arguments are required: -o"),
    (["-o"], "argument -o: expected one argument"),
    (["-o", "m.zip", "-chk", "latest"], "argument -chk: invalid choice: 'latest'"),
    (["m.zip"], "the following arguments are required: -o"),
])  # fmt: skip
def test_a_wrong_value_is_named(misused, args, told):
    assert misused(export_model, *args).startswith(told)


def test_help_names_every_option(helps):
    shown = helps(export_model)
    for option in ("-d ID", "-pl PLAN", "--workspace DIR", "-o FILE", "-chk {best,final}"):
        assert option in shown, option
    assert shown.endswith("example: c2f_export_model -d 15 -o model.zip")
