"""Scoring folders of label files, and the files that an evaluation writes."""
import json
import os
from functools import partial

import numpy as np
import pandas as pd
import pytest

from c2f_nnunet.errors import C2FError
from c2f_nnunet.evaluation import folders
from c2f_nnunet.geometry import Geometry
from c2f_nnunet.io.images import write_volume
from c2f_nnunet.labels import LabelSet

GEOMETRY = Geometry((3, 5, 6), (2.0, 1.0, 1.0))
LABELS = LabelSet.from_names({"background": 0, "A": 1, "B": 4})


def label_map(a=slice(0, 3), b=None):
    """A: in slice 1, row 2, these columns. B: likewise in row 4."""
    labels = np.zeros(GEOMETRY.shape, np.uint8)
    labels[1, 2, a] = 1
    if b is not None:
        labels[1, 4, b] = 4
    return labels


@pytest.fixture
def pair(tmp_path):
    """Two cases: hn_1 with DSC 2·2/(3+3) for A and B missed; hn_2 perfect, B absent."""
    gt, pred = tmp_path / "gt", tmp_path / "pred"
    for folder, case, labels in ((gt, "hn_1", label_map(b=slice(0, 2))), (pred, "hn_1", label_map(slice(1, 4))),
                                 (gt, "hn_2", label_map()), (pred, "hn_2", label_map())):
        write_volume(folder / f"{case}.nii.gz", labels, GEOMETRY)
    return gt, pred


def test_cases_are_paired_by_name_and_scored_in_order(pair):
    first, second = folders.evaluate_folders(*pair, LABELS)
    assert [first.case, second.case] == ["hn_1", "hn_2"]
    assert first.organ("A").dsc == pytest.approx(4 / 6) and first.organ("B").state == "missed"
    assert second.organ("A").dsc == 1.0 and second.organ("B").state == "absent"
    assert first.reference_file.endswith("gt/hn_1.nii.gz")


def test_several_processes_give_the_same(pair):
    assert folders.evaluate_folders(*pair, LABELS, processes=2) == folders.evaluate_folders(*pair, LABELS)


def test_without_labels_the_ids_found_are_scored(pair):
    scores = folders.evaluate_folders(*pair)
    assert [o.organ for o in scores[1].organs] == ["label 1", "label 4"]
    assert [o.state for o in scores[1].organs] == ["scored", "absent"]


def test_annotated_is_respected_per_case(pair):
    first, second = folders.evaluate_folders(*pair, LABELS, annotated={"hn_1": ("A",)})
    assert first.organ("B").state == "unknown" and second.organ("B").state == "absent"


def test_missing_predictions_are_all_named(pair):
    gt, pred = pair
    write_volume(gt / "hn_3.nii.gz", label_map(), GEOMETRY)
    (pred / "hn_1.nii.gz").unlink()
    with pytest.raises(C2FError, match=r"no prediction for 2 of 3 cases: hn_1, hn_3"):
        folders.evaluate_folders(gt, pred, LABELS)


def test_a_prediction_on_another_grid_is_an_error_or_that_case_is_left_out(pair):
    gt, pred = pair
    write_volume(pred / "hn_2.nii.gz", label_map(), Geometry(GEOMETRY.shape, GEOMETRY.spacing_mm, (0.0, 0.0, 5.0)))
    with pytest.raises(C2FError, match=r"hn_2\.nii\.gz: its grid .* is not the reference's"):
        folders.evaluate_folders(gt, pred, LABELS)
    failed = {}
    assert [s.case for s in folders.evaluate_folders(gt, pred, LABELS, failed=failed)] == ["hn_1"]
    assert list(failed) == ["hn_2"] and "grid" in failed["hn_2"]


def test_predictions_in_another_format_and_hidden_files(pair):
    gt, pred = pair
    (pred / "hn_2.nii.gz").unlink()
    write_volume(pred / "hn_2.mha", label_map(), GEOMETRY)
    (gt / "._hn_2.nii.gz").write_bytes(b"not an image")
    assert folders.evaluate_folders(gt, pred, LABELS)[1].organ("A").dsc == 1.0
    write_volume(pred / "hn_1.nrrd", label_map(), GEOMETRY)
    with pytest.raises(C2FError, match="hn_1 is there twice, as hn_1.nii.gz and hn_1.nrrd"):
        folders.evaluate_folders(gt, pred, LABELS)


def test_folders_that_are_missing_or_empty(tmp_path):
    with pytest.raises(C2FError, match="nowhere: no such folder"):
        folders.label_files(tmp_path / "nowhere")
    with pytest.raises(C2FError, match="holds no label file"):
        folders.label_files(tmp_path)


def test_summary_has_nnunets_shape_and_null_for_the_undefined(pair, tmp_path):
    folders.write_evaluation(tmp_path / "out", folders.evaluate_folders(*pair, LABELS))
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert set(summary) == {"foreground_mean", "mean", "metric_per_case"}
    first, second = summary["metric_per_case"]
    assert first["prediction_file"].endswith("pred/hn_1.nii.gz") and first["reference_file"].endswith("gt/hn_1.nii.gz")
    expected = {"TP": 2, "FP": 1, "FN": 1, "TN": 86, "n_ref": 3, "n_pred": 3}
    assert {k: first["metrics"]["1"][k] for k in expected} == expected
    assert first["metrics"]["1"]["IoU"] == 0.5
    assert (first["metrics"]["4"]["Dice"], first["metrics"]["4"]["HD95_mm"], first["metrics"]["4"]["state"]) == (0.0, None, "missed")
    assert (second["metrics"]["4"]["Dice"], second["metrics"]["4"]["state"]) == (None, "absent")
    assert summary["mean"]["1"]["Dice"] == pytest.approx((4 / 6 + 1) / 2)
    assert (summary["mean"]["4"]["Dice"], summary["mean"]["4"]["HD95_mm"], summary["mean"]["4"]["missed"]) == (0.0, None, 1)
    assert summary["foreground_mean"]["Dice"] == pytest.approx((4 / 6 + 1) / 4)


def test_per_case_csv(pair, tmp_path):
    folders.write_evaluation(tmp_path, folders.evaluate_folders(*pair, LABELS))
    table = pd.read_csv(tmp_path / "per_case.csv").set_index(["case", "organ"])
    assert table.loc[("hn_1", "A"), "dsc"] == pytest.approx(4 / 6)
    assert table.loc[("hn_1", "B"), "state"] == "missed" and np.isnan(table.loc[("hn_1", "B"), "hd95_mm"])


def test_declared_reads_labels_and_annotated(tmp_path):
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"labels": {"background": 0, "A": 1, "B": 4}, "annotated": {"hn_1": ["A"]}, "numTraining": 3}))
    assert folders.declared(path) == (LABELS, {"hn_1": ("A",)})
    path.write_text(json.dumps({"labels": {"background": 0, "A": 1}, "annotated": {"hn_1": ["C"]}}))
    with pytest.raises(C2FError, match=r"'annotated' names organs .* \(hn_1: C\)"):
        folders.declared(path)
    path.write_text(json.dumps({"labels": {"background": 0, "A": 1, "Ignore": 2}}))
    with pytest.raises(C2FError, match="the label 'Ignore' is not supported; take it out of the masks and here, and list"):
        folders.declared(path)


def test_two_readers_of_a_real_scan(real_data):
    """One case of two readers: human agreement as published (mean DSC of the brain stem 90 %), and no organ lost."""
    a, b = (sorted((real_data / "masks_two_readers" / reader).glob("*.nii.gz"))[0] for reader in ("oncologist", "radiographer"))
    names = ["Brainstem", "Mandible", "OpticNrv_L", "OpticNrv_R", "Parotid_L", "Parotid_R", "Glnd_Submand_L", "Glnd_Submand_R"]
    names += [f"other_{i}" for i in range(9, 21)]
    score = folders.evaluate_case(a, b, LabelSet(tuple(names), tuple(range(1, 21))), names[:8], case=a.name)
    assert {o.state for o in score.organs[:8]} == {"scored"}
    assert score.organ("Brainstem").dsc > 0.8 and score.organ("Mandible").surface_dsc > 0.85 and score.organ("Parotid_L").hd95_mm < 12


def test_two_readers_of_a_real_scan_by_the_surface_distance_library(real_data):
    """DSC exactly and surface DSC as DeepMind's surface-distance 0.1 gives them on these files: its numbers, written by
    `python benchmarks/peers/deepmind_surface.py oncologist radiographer tolerances.json deepmind.json` for the scan 0522c0014."""
    expected = {  # organ: label id, DSC, surface DSC
        "Brainstem": (1, 0.8433541631481168, 0.8768458811867272),
        "OpticNrv_L": (3, 0.9307692307692308, 1.0),
        "OpticNrv_R": (4, 0.8687258687258688, 0.9937400416964078),
        "Parotid_L": (5, 0.8383484954513646, 0.9066153867651645),
        "Parotid_R": (6, 0.9178838493255993, 0.9386208617379365),
        "Glnd_Submand_L": (7, 0.8988385162982391, 0.9050097700714198),
        "Glnd_Submand_R": (8, 0.8041755267736324, 0.8828792238901422),
        "SpinalCord": (9, 0.8780886513674945, 0.9821215698312818),
        "Lacrimal_L": (16, 0.7245409015025042, 0.8866832805310715),
    }
    names = {i: f"other_{i}" for i in range(1, 21)} | {i: organ for organ, (i, _, _) in expected.items()}
    a, b = (real_data / "masks_two_readers" / reader / "0522c0014.nii.gz" for reader in ("oncologist", "radiographer"))
    score = folders.evaluate_case(a, b, LabelSet(tuple(names.values()), tuple(names)), list(expected))
    assert {o.organ: (o.id, o.dsc) for o in score.organs if o.state == "scored"} == {o: (i, dsc) for o, (i, dsc, _) in expected.items()}
    assert [score.organ(o).surface_dsc for o in expected] == pytest.approx([s for _, _, s in expected.values()], abs=1e-9)


def test_a_killed_process_is_an_error_that_names_the_case():
    jobs = {case: partial(os._exit, 9) for case in ("hn_1", "hn_2")}
    with pytest.raises(C2FError, match="case hn_1: a scoring process was killed"):
        list(folders._run(jobs, 2, {}))
