"""c2f_import_model: each option in what is imported and where to, what is shown, and how it ends."""
from pathlib import Path

import pytest

from c2f_nnunet.cli import import_model
from c2f_nnunet.running import export
from c2f_nnunet.workspace import ModelFolder


@pytest.fixture
def imported(monkeypatch):
    """What was to be imported: (file, results folder, whether to replace)."""
    seen = []

    def place(archive, results, replace):
        seen.append((archive, results, replace))
        return ModelFolder(results / "Dataset015_HeadNeck" / "auto")

    monkeypatch.setattr(export, "import_model", place)
    return seen


def test_it_goes_to_the_results_and_says_how_to_use_it(imported, tmp_path, capsys):
    assert import_model.main(["model.zip", "--workspace", str(tmp_path)]) == 0
    assert imported == [(Path("model.zip"), tmp_path / "results", False)]
    folder = tmp_path / "results" / "Dataset015_HeadNeck" / "auto"
    assert capsys.readouterr().out == f"imported to {folder}; predict with: c2f_predict -m {folder} -i IMAGES -o OUT\n"


def test_a_model_that_is_there_is_replaced_where_asked_for(imported, tmp_path):
    assert import_model.main(["model.zip", "--workspace", str(tmp_path), "--replace"]) == 0
    assert imported[0][2] is True


def test_the_folder_of_the_results_may_come_from_the_environment(imported, tmp_path, monkeypatch):
    monkeypatch.setenv("C2F_RAW", str(tmp_path / "raw"))
    monkeypatch.setenv("C2F_RESULTS", str(tmp_path / "models"))
    assert import_model.main(["model.zip"]) == 0
    assert imported[0][1] == tmp_path / "models"


def test_no_folders_named(imported, capsys):
    assert import_model.main(["model.zip"]) == 1
    assert "error: no folders named: set C2F_RAW, C2F_PREPROCESSED and C2F_RESULTS, or give --workspace DIR" in capsys.readouterr().err
    assert not imported


def test_what_is_no_model(tiny_planned, tmp_path, fails):
    (tmp_path / "text.zip").write_text("no zip")
    assert "text.zip: no intact zip archive" in fails(import_model, tiny_planned, tmp_path / "text.zip")
    missing = fails(import_model, tiny_planned, tmp_path / "nothing.zip")
    assert "nothing.zip: cannot be imported (No such file or directory)" in missing


@pytest.mark.parametrize("args, told", [
    ([], "the following arguments are required: FILE"),
    (["a.zip", "b.zip"], "unrecognized arguments: b.zip"),
    (["a.zip", "-d", "15"], "unrecognized arguments: -d 15"),  # the file says which data set it is of
    (["a.zip", "--workspace"], "argument --workspace: expected one argument"),
])  # fmt: skip
def test_wrong_usage_is_named(misused, args, told):
    assert misused(import_model, *args).startswith(told)


def test_help_names_every_option(helps):
    shown = helps(import_model)
    for option in ("FILE", "--workspace DIR", "--replace "):
        assert option in shown, option
    assert shown.endswith("example: c2f_import_model model.zip")
