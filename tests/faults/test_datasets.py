"""FAULTS rows 33 to 37: labels and data sets that do not hold together, through the commands."""
import json
import shutil
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from c2f_nnunet.cli import evaluate, train
from c2f_nnunet.io.images import read_label, write_volume
from c2f_nnunet.running import model
from c2f_nnunet.running import predict as running
from tests.faults.inputs import IMAGE, LABEL, Fault, at, error, plan, segment, state, voxels

# Labels


def test_row_33_labels_that_cannot_be(refuses):
    remedy = "export the label map again"
    refuses([
        Fault(voxels(at(9, 9, 77), np.uint8), r"labels that dataset.json does not declare: 9 \(2 voxels\), 77 \(1 voxels\); declare or"),
        Fault(voxels(at(0.5, 0.5, 2.25)), rf"whole numbers from 0 to 65535 but it holds 0\.5 \(2 voxels\), 2\.25 \(1 voxels\); {remedy}"),
        Fault(voxels(at(-1, -3), np.int16), rf"it holds -3 \(1 voxels\), -1 \(1 voxels\); {remedy}"),
        Fault(voxels(at(np.nan)), rf"it holds nan \(1 voxels\); {remedy}"),
    ], LABEL)


def three_hundred(plan_json: dict) -> dict:
    """The plan of a model that tells 300 organs apart, whose networks are never asked."""
    ids = [*range(1, 300), 1000]
    return plan_json | {"labels": {"organs": [f"Organ{i}" for i in ids], "ids": ids}}


def test_row_34_three_hundred_labels(tiny_trained, tmp_path, monkeypatch):
    """What a cascade finds of 300 organs is what the file holds, and what c2f_evaluate scores."""
    labels = SimpleNamespace(**three_hundred({})["labels"])
    scan = nib.load(tiny_trained.raw / "imagesTs" / "s1_0000.nii.gz")
    channels = np.arange(np.prod(scan.shape)).reshape(scan.shape[::-1]) % 301
    whole = tiny_trained.model.plan.labels.from_names({"background": 0, **dict(zip(labels.organs, labels.ids))})
    cascade = SimpleNamespace(plan=SimpleNamespace(labels=whole), merge_weights=None)
    monkeypatch.setattr(model, "build_cascade", lambda *args: (cascade, {"2d_top": (0,)}))
    monkeypatch.setattr(running, "run_coarse", lambda *args: SimpleNamespace(located={}))
    monkeypatch.setattr(running, "stage_maps", lambda *args: iter(()))
    monkeypatch.setattr(running, "merge", lambda *args: SimpleNamespace(channels=channels.astype(np.uint16), reports=()))
    out, truth = tmp_path / "out", tmp_path / "truth"
    (tmp_path / "in").mkdir()
    shutil.copy(tiny_trained.raw / "imagesTs" / "s1_0000.nii.gz", tmp_path / "in")
    assert segment(tiny_trained, tmp_path / "in", out) == 0
    found = read_label(out / "s1.nii.gz")
    assert found.array.dtype == np.uint16 and nib.load(out / "s1.nii.gz").get_data_dtype() == np.uint16
    assert np.array_equal(found.array, np.array([0, *labels.ids])[channels])

    write_volume(truth / "s1.nii.gz", np.array([0, *labels.ids], np.uint16)[channels], found.geometry)
    (out / "dataset.json").unlink()  # that of the three organs
    assert evaluate.main([str(truth), str(out), "-np", "1"]) == 0
    scores = pd.read_csv(out / "per_case.csv")
    assert scores["organ"].nunique() == 300 and (scores["dsc"] == 1).all()


# Data sets


def test_row_35_missing_files_are_all_listed(tiny, capsys):
    for name in ("imagesTr/t1_0000.nii.gz", "imagesTr/t4_0000.nii.gz", "labelsTr/t2.nii.gz"):
        (tiny.raw / name).unlink()
    before = state(tiny.root)
    assert plan(tiny) == 1 and state(tiny.root) == before
    message = error(capsys.readouterr().err)
    assert "3 files of training cases are missing: imagesTr/t1_0000.nii.gz, imagesTr/t4_0000.nii.gz, labelsTr/t2.nii.gz; add" in message


def without(label: int):
    return voxels(lambda a: np.where(a == label, 0, a).astype(np.uint8), np.uint8)


def test_row_36_an_organ_that_no_case_shows_at_planning(tiny, capsys):
    for case in [f"t{i}" for i in range(7)]:
        without(2)(tiny.raw / LABEL.format(case))
    before = state(tiny.root)
    assert plan(tiny) == 1 and state(tiny.root) == before
    message = error(capsys.readouterr().err)
    assert "Gland_R is absent in every case; remove it from dataset.json's labels or add cases that show it" in message


def test_row_36_an_organ_that_the_held_out_case_lacks_at_training(tiny):
    """t3 has no right gland: its Dice is undefined there, not 0, and the mean is over the other two."""
    rest = ["t0", "t1", "t2", "t4", "t5", "t6"]
    tiny.folder.splits.write_text(json.dumps([{"train": rest, "val": ["t3"]}]))
    assert train.main(tiny.args("2d_top", 0, "-d", 901, "-device", "cpu", "-np", 0, "--epochs", 2)) == 0
    rows = [json.loads(line) for line in tiny.folder.run("2d_top", 0).log.read_text().splitlines()]
    scores = [row for row in rows if "val_dsc" in row][-1]
    assert scores["val_by_organ"]["Gland_R"] is None
    assert scores["val_dsc"] == pytest.approx((scores["val_by_organ"]["Gland_L"] + scores["val_by_organ"]["Stem"]) / 2)


def test_row_36_an_organ_that_a_case_lacks_at_the_report(tiny_trained, tmp_path):
    """s1 has no right gland: perfect label maps score 1 everywhere, and there it is undefined."""
    truth = shutil.copytree(tiny_trained.raw / "labelsTs", tmp_path / "truth")
    args = [str(truth), str(tiny_trained.raw / "labelsTs"), "-djfile", str(tiny_trained.raw / "dataset.json"), "-o", str(tmp_path / "out")]
    assert evaluate.main([*args, "-np", "1"]) == 0
    scores = pd.read_csv(tmp_path / "out" / "per_case.csv").set_index(["case", "organ"])
    assert np.isnan(scores.loc[("s1", "Gland_R"), "dsc"]) and (scores["dsc"].drop(("s1", "Gland_R")) == 1).all()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["mean"]["2"]["Dice"] == 1


@pytest.mark.parametrize("one, other", [("Case", "case"), ("caf\u00e9", "cafe\u0301"), ("stra\u00dfe", "STRASSE")])
def test_row_37_ids_that_are_one_file_on_some_systems(tiny, capsys, one, other):
    for case, name in (("t0", one), ("t1", other)):
        for where in (IMAGE, LABEL):
            (tiny.raw / where.format(case)).rename(tiny.raw / where.format(name))
    before = state(tiny.root)
    assert plan(tiny) == 1 and state(tiny.root) == before
    assert "differ only by upper case or Unicode form; rename one" in error(capsys.readouterr().err)


def test_row_37_one_scan_twice(tiny, capsys):
    for where in (IMAGE, LABEL):
        shutil.copy(tiny.raw / where.format("t1"), tiny.raw / where.format("t6"))
    assert plan(tiny, "--no_pp") == 0
    assert "WARNING t1, t6 have identical image voxels; remove all but one, or give them one patient" in capsys.readouterr().err
