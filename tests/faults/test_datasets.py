"""FAULTS rows 33 to 37: labels and data sets that do not hold together, through the commands."""
import json
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from c2f_nnunet.cli import crossval, evaluate, train
from c2f_nnunet.geometry import Geometry
from c2f_nnunet.io import records
from c2f_nnunet.io.images import read_label, write_volume
from c2f_nnunet.labels import LabelSet
from c2f_nnunet.training import checkpoint
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


IDS = (*range(1, 300), 1000)
AT = (0, 1, 299)  # where the organs of the tiny model are among 300: the last one has the id 1000


def widened(tiny):
    """The trained tiny model as one of 300 organs, 297 of which its networks never see."""
    plan, places = tiny.model.plan, dict(zip(AT, tiny.model.plan.labels.organs))
    labels = LabelSet(tuple(places.get(i, f"Never{i}") for i in range(len(IDS))), IDS)

    def view(m):
        return replace(m, organs=labels.organs, network=replace(m.network, out_channels=labels.channels))

    coarse = replace(plan.coarse, members=tuple(view(m) for m in plan.coarse.members))
    priors = tuple(replace(plan.prior(places.get(i, "Stem")), organ=organ) for i, organ in enumerate(labels.organs))
    records.write(tiny.folder.plan, replace(plan, labels=labels, coarse=coarse, fine=replace(plan.fine, priors=priors)))
    rows = [0, *(i + 1 for i in AT)]
    for m in coarse.members:
        path = tiny.folder.run(m.name, 0).checkpoint("best")
        tensors, progress, _ = checkpoint.load(path)
        for name in [n for n in tensors if ".heads." in n]:
            old = tensors[name]
            tensors[name] = torch.full((labels.channels, *old.shape[1:]), 0.0 if name.endswith("weight") else -200.0)
            tensors[name][rows] = old
        checkpoint.save(path, tensors, progress)


def test_row_34_the_organs_of_a_model_of_300(tiny_trained, tmp_path):
    """A trained cascade finds the same voxels, under ids beyond a byte's."""
    tiny = tiny_trained.copy(tmp_path / "w")
    tiny.folder.fusion.unlink()  # fitted for three organs
    tiny.folder.dataset_json.unlink()
    assert segment(tiny, "imagesTs", tmp_path / "three") == 0
    widened(tiny)
    assert segment(tiny, "imagesTs", tmp_path / "many") == 0
    table = np.array([0, *(IDS[i] for i in AT)], np.uint16)
    for case in ("s0", "s1"):
        few, many = (nib.load(tmp_path / folder / f"{case}.nii.gz") for folder in ("three", "many"))
        assert few.get_data_dtype() == np.uint8 and many.get_data_dtype() == np.uint16
        assert np.asarray(few.dataobj).any() and np.array_equal(np.asarray(many.dataobj), table[np.asarray(few.dataobj)])


def test_row_34_three_hundred_labels_in_one_file(tmp_path):
    """What is written is what is read, and what c2f_evaluate scores."""
    labels = np.array([0, *IDS], np.uint16)[np.arange(20 * 20 * 20).reshape(20, 20, 20) % 301]
    for folder in ("truth", "out"):
        write_volume(tmp_path / folder / "a.nii.gz", labels, Geometry(labels.shape, (1.0, 1.0, 1.0)))
    found = read_label(tmp_path / "out" / "a.nii.gz")
    assert found.array.dtype == np.uint16 and set(np.unique(found.array)) == {0, *IDS}
    assert evaluate.main([str(tmp_path / "truth"), str(tmp_path / "out"), "-np", "1"]) == 0
    scores = pd.read_csv(tmp_path / "out" / "per_case.csv")
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


def test_row_36_organs_that_no_held_out_case_has_at_training(tiny, capsys):
    """Of t4 the stem alone is annotated: nothing can be told of the glands, so that the newest weights count as the best."""
    tiny.folder.splits.write_text(json.dumps([{"train": ["t0", "t1", "t2", "t3", "t5", "t6"], "val": ["t4"]}]))
    assert train.main(tiny.args("3d_Gland", 0, "-d", 901, "-device", "cpu", "-np", 0, "--epochs", 2)) == 0
    assert "no held-out case has Gland_L or Gland_R; the newest weights count as the best" in capsys.readouterr().err
    best, final = (checkpoint.load(tiny.folder.run("3d_Gland", 0).checkpoint(which))[0] for which in ("best", "final"))
    assert all(torch.equal(best[name], final[name]) for name in best)


def test_row_36_an_organ_that_a_held_out_case_lacks_at_cross_validation(tiny_trained, tmp_path):
    """Without its right gland's label, t5 has no score of it in any stage; the mean is t2's."""
    tiny = tiny_trained.copy(tmp_path / "w")
    without(2)(tiny.raw / LABEL.format("t5"))
    assert crossval.main(tiny.args("-d", 901, "-device", "cpu")) == 0
    scores = pd.read_csv(tiny.folder.crossval / "tables" / "per_case.csv")
    gland = scores["organ"] == "Gland_R"
    assert scores.loc[gland & (scores["case"] == "t5"), "dsc"].isna().all() and scores.loc[~gland, "dsc"].notna().all()
    means = pd.read_csv(tiny.folder.crossval / "tables" / "numbers.csv").set_index(["result", "metric", "organ"])
    for result in scores["result"].unique():
        t2 = scores.loc[gland & (scores["case"] == "t2") & (scores["result"] == result), "dsc"].item()
        assert means.loc[(result, "dsc", "Gland_R"), "mean"] == pytest.approx(t2) and means.loc[(result, "dsc", "Gland_R"), "n"] == 1


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
