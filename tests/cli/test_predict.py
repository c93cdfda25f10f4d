"""c2f_predict: each option in what is computed, which scans are meant, what is shown, and how it ends."""
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from c2f_nnunet.cli import predict
from c2f_nnunet.geometry import Geometry
from c2f_nnunet.inference.agreement import Evidence
from c2f_nnunet.inference.checks import Check, Checked
from c2f_nnunet.inference.fusion import FUSION_VERSION, FusionFile
from c2f_nnunet.io import durable, records
from c2f_nnunet.running import model
from c2f_nnunet.running import predict as running
from c2f_nnunet.running.predict import Predicted, PredictOptions
from tests.io.test_dicom import VOXELS, slice_file, write_series


@pytest.fixture
def predicted(monkeypatch):
    """What was to be predicted: no network is opened and no scan read. `result` makes each case's outcome."""
    seen = SimpleNamespace(result=lambda case: Predicted(case.id, (), {"read": 1.0, "coarse": 2.0}))

    def build_cascade(opened, folds, which, device, flips, stage):
        seen.opened, seen.folds, seen.which, seen.device, seen.flips, seen.stage = opened, folds, which, device, flips, stage
        return SimpleNamespace(made_of="these networks"), {"2d_top": (0, 1), "3d_Stem": (0,)}

    def predict_cases(cascade, cases, out, options, on_case):
        assert cascade.made_of == "these networks"
        seen.files, seen.out, seen.options = [c.image for c in cases], out, options
        for case in cases:
            on_case(case.id)
        return [seen.result(c) for c in cases]

    monkeypatch.setattr(model, "build_cascade", build_cascade)
    monkeypatch.setattr(running, "predict_cases", predict_cases)
    return seen


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


def done(tiny, out, *args) -> None:
    assert predict.main(tiny.args("-i", "imagesTs", "-o", out, "-device", "cpu", *args)) == 0


# Options


def test_without_options_all_folds_and_both_stages_are_used(tiny_planned, predicted, out):
    done(tiny_planned, out)
    assert predicted.opened.folder == tiny_planned.folder and predicted.out == out
    assert (predicted.folds, predicted.which, predicted.device) == (None, "best", torch.device("cpu"))
    assert (predicted.flips, predicted.stage) == (True, "fine")
    limits = predicted.options.limits
    assert predicted.options == PredictOptions("fine", False, False, frozenset(), ".nii.gz", None, limits=limits)
    assert list(limits) == ["Gland_L", "Gland_R", "Stem"] and limits["Stem"].cases == 7 and limits["Stem"].inside is None
    images = tiny_planned.raw / "imagesTs"
    assert predicted.files == [images / "s0_0000.nii.gz", images / "s1_0000.nii.gz"]


@pytest.mark.parametrize("args, place, expected", [
    (["-f", 1], "folds", (1,)),
    (["-f", 0, 1, 4], "folds", (0, 1, 4)),
    (["-chk", "final"], "which", "final"),
    (["-chk", "best"], "which", "best"),
    (["--disable_tta"], "flips", False),
    (["--stage", "coarse"], "stage", "coarse"),
    (["--stage", "coarse"], "options.stage", "coarse"),
    (["--save_probabilities"], "options.save_probabilities", True),
    (["--continue_prediction"], "options.continue_prediction", True),
    (["--max_memory", 7.5], "options.max_memory_gb", 7.5),
])  # fmt: skip
def test_an_option_reaches_the_prediction(tiny_planned, predicted, out, args, place, expected):
    done(tiny_planned, out, *args)
    *inside, name = place.split(".")
    assert getattr(predicted.options if inside else predicted, name) == expected


@pytest.mark.parametrize("part, expected", [(0, ["s0"]), (1, ["s1"])])
def test_parts(tiny_planned, predicted, out, part, expected):
    done(tiny_planned, out, "-num_parts", 2, "-part_id", part)
    assert [f.name.removesuffix("_0000.nii.gz") for f in predicted.files] == expected


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_the_device(tiny_planned, predicted, out, monkeypatch, device):
    for name in ("cuda", "mps"):
        monkeypatch.setattr(torch.cuda if name == "cuda" else torch.backends.mps, "is_available", lambda name=name: name == device)
    for args in (["-device", device], []):  # left out, it is the best there is
        assert predict.main(tiny_planned.args("-i", "imagesTs", "-o", out, *args)) == 0
        assert predicted.device.type == device


@pytest.mark.parametrize("args", [["-d", "901"], ["-d", "0901"], ["-d", "Dataset901_Tiny"], ["-pl", "tiny"]])
def test_the_data_set_and_the_plan(tiny_planned, predicted, out, args):
    done(tiny_planned, out, *args)
    assert predicted.opened.folder == tiny_planned.folder


def test_a_model_folder_needs_no_workspace(tiny_planned, predicted, out, tmp_path):
    folder = shutil.copytree(tiny_planned.folder.root, tmp_path / "imported")
    args = ["-i", tiny_planned.raw / "imagesTs", "-o", out, "-m", folder, "-device", "cpu"]
    assert predict.main([str(a) for a in args]) == 0
    assert predicted.opened.folder.root == folder and len(predicted.files) == 2


def test_organs_that_the_fit_found_to_gain_are_cleaned(tiny_planned, predicted, out, tmp_path):
    tiny = tiny_planned.copy(tmp_path / "w")
    records.write(tiny.folder.fusion, FusionFile(FUSION_VERSION, None, None, (0,), ("Stem",)))
    done(tiny, out)
    assert predicted.options.clean == {"Stem"}


# Which scans


def test_a_folder_that_is_there_goes_before_one_of_the_data_set(tiny_planned, predicted, out, tmp_path, monkeypatch, capsys):
    done(tiny_planned, out)
    assert f"reading {tiny_planned.raw / 'imagesTs'}" in capsys.readouterr().out
    (tmp_path / "imagesTs").mkdir()
    (tmp_path / "imagesTs" / "mine_0000.nii.gz").touch()
    monkeypatch.chdir(tmp_path)
    done(tiny_planned, out)
    assert predicted.files == [Path("imagesTs/mine_0000.nii.gz")] and "reading" not in capsys.readouterr().out


# DICOM


@pytest.fixture
def series(tmp_path) -> Path:
    """A folder with one DICOM series in P01, and what is passed over."""
    files = write_series(tmp_path / "scans" / "P01", VOXELS, Geometry(VOXELS.shape, (3.0, 2.0, 1.5)))
    slice_file(files[0].parent, 0, name="rs", Modality="RTSTRUCT")
    return tmp_path / "scans"


@pytest.mark.parametrize("args, extras", [
    ([], ()), (["--rtstruct"], ("rtstruct",)), (["--rtstruct", "--dicom_seg"], ("rtstruct", "dicom_seg")),
])  # fmt: skip
def test_a_dicom_series_is_a_case(tiny_planned, predicted, out, series, capsys, monkeypatch, args, extras):
    monkeypatch.setitem(sys.modules, "highdicom", SimpleNamespace())
    assert predict.main(tiny_planned.args("-i", series, "-o", out, "-device", "cpu", *args)) == 0
    assert predicted.files == [tuple(series / "P01" / f"CT{k:03}.dcm" for k in range(4))] and predicted.options.extras == extras
    shown = capsys.readouterr()
    assert "1 cases, folds: " in shown.out and "passed over 1 RTSTRUCT files: P01/rs.dcm" in shown.err


@pytest.mark.parametrize("option", ["--rtstruct", "--dicom_seg"])
def test_what_refers_to_a_series_is_refused_for_other_scans_before_anything_is_computed(tiny_planned, predicted, out, fails, option):
    error = fails(predict, tiny_planned, "-i", "imagesTs", "-o", out, "-device", "cpu", option)
    assert f"s0_0000.nii.gz: is no DICOM series, and what {option} would write refers to the slices of one; give the series" in error
    assert not out.exists() and not hasattr(predicted, "files")


def test_a_seg_without_highdicom_is_refused_before_anything_is_computed(tiny_planned, predicted, out, series, fails, monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    error = fails(predict, tiny_planned, "-i", series, "-o", out, "-device", "cpu", "--dicom_seg")
    assert "a DICOM SEG needs the package highdicom; install it" in error and not hasattr(predicted, "files")


# What is shown and left, and how it ends


def test_the_label_names_go_with_the_label_maps(tiny_planned, predicted, out):
    done(tiny_planned, out)
    assert (out / "dataset.json").read_bytes() == tiny_planned.folder.dataset_json.read_bytes()


def test_leftovers_of_a_killed_run_are_removed(tiny_planned, predicted, out):
    out.mkdir()
    (out / f"{durable.TEMPORARY_MARK}999999-{durable.HOST}-1-s0.nii.gz").write_text("cut")
    done(tiny_planned, out)
    assert [f.name for f in out.iterdir()] == ["dataset.json"]


def test_folds_times_and_doubtful_organs_are_shown(tiny_planned, predicted, out, capsys):
    sure = Checked("s1", "Stem", 0.9, Evidence(0.9), False, (Check("found", 31.4, (None, None), True, "found, 31.4 ml"),))
    said = (Check("found", 2.3, (None, None), False, "found at prior"), Check("volume", 2.3, (4.0, 9.0), False, "small"))
    doubtful = Checked("s1", "Gland_R", 0.123, Evidence(0.123), True, said)
    seconds = {"coarse": 2.0, "fine": 4.5}
    predicted.result = lambda case: Predicted(case.id, (), seconds)
    for case in ("s1", "elsewhere"):  # what predicting leaves, now or, with --continue_prediction, earlier; of another input it is not shown
        records.write(out / f"{case}.json", {"case": case, "checks": [replace(c, case=case) for c in (sure, doubtful)]})
    done(tiny_planned, out)
    shown = capsys.readouterr().out
    assert "2 cases, folds: 2d_top 0+1, 3d_Stem 0\n" in shown
    assert "seconds per case (median): coarse 2.0, fine 4.5; all 13 s" in shown
    table = shown.split("organs that need a look:\n")[1].splitlines()
    assert table[0].split() == ["case", "organ", "confidence", "note"]
    assert table[1].split() == "s1 Gland_R 0.123 found at prior; small".split()
    assert "Stem" not in table[1] and table[2].startswith("peak memory: ") and table[2].endswith(f"; results in {out}")


def test_checks_are_shown_and_left(tiny_trained, tmp_path, capsys):
    """s1 has no right gland: whatever was made of it is on the screen if it is doubtful, and in checks.json, its case first then."""
    assert predict.main(tiny_trained.args("-i", "imagesTs", "-o", tmp_path, "-device", "cpu", "--disable_tta")) == 0
    shown = capsys.readouterr().out
    assert "2 cases, folds: 2d_top 0, 2d_front 0, 2d_side 0, 3d_Gland 0, 3d_Stem 0" in shown and "peak memory" in shown
    found = json.loads((tmp_path / "checks.json").read_text())
    assert sorted((r["case"], r["organ"]) for r in found) == [(c, o) for c in ("s0", "s1") for o in ("Gland_L", "Gland_R", "Stem")]
    failed = {c: sum(not k["passed"] for r in found if r["case"] == c for k in r["checks"]) for c in ("s0", "s1")}
    assert failed[found[0]["case"]] == max(failed.values())
    assert all(r["needs_a_look"] == any(not c["passed"] for c in r["checks"]) for r in found)
    assert ("organs that need a look" in shown) == any(r["needs_a_look"] for r in found)
    note = json.loads((tmp_path / "s1.json").read_text())
    assert [c["organ"] for c in note["checks"]] == [o["organ"] for o in note["organs"]]
    assert set(note["organs"][1]["evidence"]) == {"inside", "soft", "views", "folds", "stages"}


def test_some_failed_cases_are_named_and_the_rest_is_done(tiny_planned, predicted, out, capsys):
    predicted.result = lambda case: Predicted(case.id, (), {}, "s1_0000.nii.gz: truncated" if case.id == "s1" else None)
    assert predict.main(tiny_planned.args("-i", "imagesTs", "-o", out, "-device", "cpu")) == 3
    told = "error: 1 of 2 cases failed, the others are done: s1: s1_0000.nii.gz: truncated"
    assert capsys.readouterr().err.splitlines()[-1] == told and (out / "dataset.json").exists()


def test_where_every_case_failed_nothing_is_said_of_others(tiny_planned, predicted, out, capsys):
    predicted.result = lambda case: Predicted(case.id, (), {}, f"{case.id}_0000.nii.gz: truncated")
    assert predict.main(tiny_planned.args("-i", "imagesTs", "-o", out, "-device", "cpu")) == 1
    told = "error: 2 of 2 cases failed: s0: s0_0000.nii.gz: truncated; s1: s1_0000.nii.gz: truncated"
    assert capsys.readouterr().err.splitlines()[-1] == told


def test_where_every_result_is_there_nothing_is_said_of_times(tiny_planned, predicted, out, capsys, monkeypatch):
    monkeypatch.setattr(running, "predict_cases", lambda *given: [])
    done(tiny_planned, out, "--continue_prediction")
    assert "seconds per case" not in capsys.readouterr().out


# Stated errors and wrong usage


def test_what_cannot_be_predicted(tiny_trained, tiny_planned, tmp_path, fails):
    def error(tiny, *args) -> str:
        message = fails(predict, tiny, "-device", "cpu", "-o", tmp_path / "out", *args)
        assert not (tmp_path / "out").exists()
        return message

    assert "no trained coarse member there; run c2f_train all all first" in error(tiny_planned, "-i", "imagesTs")
    fold = error(tiny_trained, "-i", "imagesTs", "-f", 0, 1)
    assert "2d_top: fold 1 is not trained (trained: 0); run c2f_train 2d_top 1 or leave -f out" in fold
    assert "nowhere: no such folder; give the folder that holds the images" in error(tiny_trained, "-i", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "empty: no image there; expected files named CASE_0000.nii.gz" in error(tiny_trained, "-i", tmp_path / "empty")
    part = error(tiny_trained, "-i", "imagesTs", "-num_parts", 2, "-part_id", 2)
    assert "-part_id 2: there are parts 0 to 1 of -num_parts 2" in part
    assert "plan.json: no plan there; give a model folder" in error(tiny_trained, "-i", "imagesTs", "-m", tmp_path / "empty")


def test_predictions_never_overwrite_the_scans(tiny_trained, fails):
    source = tiny_trained.raw / "imagesTs"
    assert "is the input folder; give another one" in fails(predict, tiny_trained, "-i", source, "-o", source, "-device", "cpu")


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_computed(tiny_planned, predicted, tmp_path, fails):
    (tmp_path / "file").write_text("in the way")
    error = fails(predict, tiny_planned, "-i", "imagesTs", "-o", tmp_path / "file" / "out", "-device", "cpu")
    assert "file/out: cannot be written (Not a directory); choose another folder" in error and not hasattr(predicted, "files")


@pytest.mark.parametrize("args, told", [
    (["-o", "y"], "the following arguments are required: -i"),
    (["-i", "x"], "the following arguments are required: -o"),
    (["-f", "one"], "argument -f: 'one' is not a whole number of 0 or more"),
    (["-f", "-1"], "argument -f: '-1' is not a whole number of 0 or more"),
    (["-f"], "argument -f: expected at least one argument"),
    (["-part_id", "-1"], "argument -part_id: '-1' is not a whole number of 0 or more"),
    (["-num_parts", "0"], "argument -num_parts: '0' is not a whole number above 0"),
    (["--max_memory", "0"], "argument --max_memory: '0' is not a number above 0"),
    (["--stage", "both"], "argument --stage: invalid choice: 'both'"),
    (["-chk", "latest"], "argument -chk: invalid choice: 'latest'"),
    (["-device", "tpu"], "argument -device: invalid choice: 'tpu'"),
])  # fmt: skip
def test_a_wrong_value_is_named(misused, args, told):
    whole = args if args[0] in ("-i", "-o") else ["-i", "x", "-o", "y", *args]
    assert misused(predict, *whole).startswith(told)


def test_help_names_every_option(helps):
    shown = helps(predict)
    for option in ("-i FOLDER", "-o OUT", "-d ID", "-pl PLAN", "--workspace DIR", "-m MODEL_FOLDER", "-f FOLD", "-chk {best,final}",
                   "-device {cpu,cuda,mps}", "--stage {coarse,fine}", "--disable_tta ", "--save_probabilities ", "--report ", "--rtstruct ",
                   "--dicom_seg ", "--continue_prediction ",
                   "-num_parts N", "-part_id K", "--max_memory GB"):
        assert option in shown, option
    assert shown.endswith("example: c2f_predict -i imagesTs -o out -d 15")
