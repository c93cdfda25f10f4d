"""c2f_crossval: each option in the report that is made, what is shown of it, and how it ends."""
from types import SimpleNamespace

import pytest
import torch

from c2f_nnunet.cli import crossval
from c2f_nnunet.errors import ModelError
from c2f_nnunet.running import crossval as running

REPORT = "# Cross-validation\n\nTable I: Stem 87.6\n\n## All metrics\n\nevery number\n"


@pytest.fixture
def tiny(tiny_planned, tmp_path):
    return tiny_planned.copy(tmp_path / "w")


@pytest.fixture
def report(monkeypatch):
    """What was to be reported: nothing is computed, the page and its Markdown are made at once."""
    seen = SimpleNamespace(failed={})

    def made(model, dataset, device, which, others, on_case, readers):
        seen.model, seen.dataset, seen.device, seen.which, seen.others = model, dataset, device, which, others
        seen.readers = readers
        on_case("t2")
        model.folder.crossval.mkdir()
        (model.folder.crossval / "report.md").write_text(REPORT)
        return model.folder.crossval / "report.html", seen.failed

    monkeypatch.setattr(running, "crossval", made)
    return seen


def test_without_options_the_only_model_is_reported(tiny, report, capsys):
    assert crossval.main(tiny.args("-device", "cpu")) == 0
    assert report.model.folder == tiny.folder and report.dataset == tiny.dataset
    assert (report.device, report.which, report.others, report.readers) == (torch.device("cpu"), "best", {}, True)
    assert capsys.readouterr().out == f"# Cross-validation\n\nTable I: Stem 87.6\n\nreport: {tiny.folder.crossval / 'report.html'}\n"


@pytest.mark.parametrize("args", [["-d", "901"], ["-d", "Dataset901_Tiny"], ["-pl", "tiny"]])
def test_the_data_set_and_the_plan(tiny, report, args):
    assert crossval.main(tiny.args(*args, "-device", "cpu")) == 0
    assert report.model.folder == tiny.folder


def test_the_checkpoint(tiny, report):
    assert crossval.main(tiny.args("-chk", "final", "-device", "cpu")) == 0
    assert report.which == "final"


def test_the_device(tiny, report, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert crossval.main(tiny.args("-device", "cuda")) == 0
    assert report.device == torch.device("cuda", 0)


def test_two_readers_can_be_left_out(tiny, report):
    assert crossval.main(tiny.args("--no_two_readers", "-device", "cpu")) == 0
    assert not report.readers


def test_folders_to_compare_with_get_their_names(tiny, report, tmp_path):
    for name in ("a", "b=c"):
        (tmp_path / name).mkdir()
    assert crossval.main(tiny.args("--compare", f"nnU-Net={tmp_path / 'a'}", f"old={tmp_path / 'b=c'}", "-device", "cpu")) == 0
    assert report.others == {"nnU-Net": tmp_path / "a", "old": tmp_path / "b=c"}


def test_a_stated_error_ends_with_1(tiny_planned, monkeypatch, fails):
    def refuses(*given, **named):
        raise ModelError("model: no held-out case could be scored; train it")

    monkeypatch.setattr(running, "crossval", refuses)
    assert fails(crossval, tiny_planned, "-device", "cpu") == "error: model: no held-out case could be scored; train it"


def test_crossval_needs_a_trained_model(tiny_planned, fails):
    assert "no fold has all its members trained; run c2f_train all 0 first" in fails(crossval, tiny_planned, "-device", "cpu")


def test_a_name_given_twice_is_refused(tiny_planned, fails, tmp_path):
    told = fails(crossval, tiny_planned, "--compare", f"a={tmp_path}", f"a={tmp_path}", "-device", "cpu")
    assert told == "error: --compare: a name is given twice (a, a); give each folder a name of its own"


@pytest.mark.parametrize("args, told", [
    (["--compare", "name"], "argument --compare: 'name' is not NAME=FOLDER with a folder that exists"),
    (["--compare", "name=/nowhere"], "argument --compare: 'name=/nowhere' is not NAME=FOLDER with a folder that exists"),
    (["--compare", "=/tmp"], "argument --compare: '=/tmp' is not NAME=FOLDER with a folder that exists"),
    (["--compare", "name="], "argument --compare: 'name=' is not NAME=FOLDER with a folder that exists"),
    (["--compare"], "argument --compare: expected at least one argument"),
    (["-chk", "latest"], "argument -chk: invalid choice: 'latest'"),
    (["-device", "tpu"], "argument -device: invalid choice: 'tpu'"),
])  # fmt: skip
def test_a_wrong_value_is_named(misused, args, told):
    assert misused(crossval, *args).startswith(told)


def test_help_names_every_option(helps):
    shown = helps(crossval)
    for option in ("-d ID", "-pl PLAN", "--workspace DIR", "-device {cpu,cuda,mps}", "-chk {best,final}", "--compare NAME=DIR"):
        assert option in shown, option
    assert shown.endswith("example: c2f_crossval -d 15")


def test_failed_cases_are_named_after_the_report_and_end_with_3(tiny, report, capsys):
    report.failed = {"t2": "t2_0000.nii.gz: truncated", "t5": "t5.nii.gz: no such file"}
    assert crossval.main(tiny.args("-device", "cpu")) == 3
    shown = capsys.readouterr()
    assert "report: " in shown.out
    told = "2 held-out cases failed, the others are in the report: t2_0000.nii.gz: truncated; t5.nii.gz: no such file"
    assert shown.err.splitlines()[-1] == f"error: {told}"
