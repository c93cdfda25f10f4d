"""c2f_evaluate from its arguments to its files."""
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from c2f_nnunet.cli.evaluate import main
from c2f_nnunet.geometry import Geometry
from c2f_nnunet.io import durable
from c2f_nnunet.io.images import write_volume

GEOMETRY = Geometry((3, 5, 6), (2.0, 1.0, 1.0))


@pytest.fixture
def pair(tmp_path):
    """labelsTs and out with one case: organ A half found, organ B not annotated; dataset.json beside labelsTs."""
    gt, pred = tmp_path / "labelsTs", tmp_path / "out"
    truth, predicted = np.zeros(GEOMETRY.shape, np.uint8), np.zeros(GEOMETRY.shape, np.uint8)
    truth[1, 2, 0:2], predicted[1, 2, 1:3], predicted[0, 0, 0] = 1, 1, 2
    write_volume(gt / "hn_1.nii.gz", truth, GEOMETRY)
    write_volume(pred / "hn_1.nii.gz", predicted, GEOMETRY)
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "A": 1, "B": 2}, "annotated": {"hn_1": ["A"]}}))
    return gt, pred


def test_the_table_is_printed_and_the_files_written(pair, tmp_path, capsys):
    gt, pred = pair
    left = pred / f"{durable.TEMPORARY_MARK}4194999-{durable.HOST}-1-summary.json"  # of a killed one
    left.touch()
    assert main([str(gt), str(pred), "-np", "1"]) == 0
    assert not left.exists()
    printed = capsys.readouterr().out
    assert "50.0" in printed and "DSC (%)" in printed and "dataset.json" in printed
    summary = json.loads((pred / "summary.json").read_text())
    assert summary["mean"]["1"]["Dice"] == 0.5 and summary["mean"]["2"]["unknown"] == 1
    assert (pred / "per_case.csv").is_file()
    assert main([str(gt), str(pred), "-o", str(tmp_path / "scores"), "-np", "1"]) == 0
    assert (tmp_path / "scores" / "summary.json").read_text() == (pred / "summary.json").read_text()


def test_djfile_goes_before_the_file_that_is_found(pair, tmp_path):
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"labels": {"background": 0, "Stem": 1, "B": 2}}))
    assert main([str(pair[0]), str(pair[1]), "-djfile", str(other), "-np", "1"]) == 0
    summary = json.loads((pair[1] / "summary.json").read_text())
    assert summary["mean"]["1"]["organ"] == "Stem" and summary["mean"]["2"]["false_positive"] == 1


def test_the_references_table_holds_and_another_one_of_the_prediction_is_refused(pair, capsys):
    gt, pred = pair
    same = {"labels": {"background": 0, "A": 1, "B": 2}, "annotated": {"hn_1": ["B"]}}  # of the model's training set, with a case of this name
    (pred / "dataset.json").write_text(json.dumps(same))
    assert main([str(gt), str(pred), "-np", "1"]) == 0
    summary = json.loads((pred / "summary.json").read_text())
    assert summary["mean"]["1"]["Dice"] == 0.5 and summary["mean"]["2"]["unknown"] == 1
    (pred / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "B": 1, "A": 2}}))
    assert main([str(gt), str(pred), "-np", "1"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert f"has other labels than {pred / 'dataset.json'}; give the one that holds for both folders as -djfile" in said
    assert main([str(gt), str(pred), "-djfile", str(pred / "dataset.json"), "-np", "1"]) == 0


def test_without_dataset_json_the_ids_found_are_scored(pair, tmp_path, capsys):
    (tmp_path / "dataset.json").unlink()
    assert main([str(pair[0]), str(pair[1]), "-np", "1"]) == 0
    assert "label 2" in capsys.readouterr().out


def test_a_missing_prediction_is_a_stated_error_and_nothing_is_written(pair, capsys):
    gt, pred = pair
    (pred / "hn_1.nii.gz").rename(pred / "hn_9.nii.gz")
    assert main([str(gt), str(pred), "-np", "1"]) == 1
    assert "no prediction for 1 of 1 cases: hn_1" in capsys.readouterr().err
    assert not (pred / "summary.json").exists()


def test_a_damaged_prediction_is_named_and_the_rest_is_done(pair, capsys):
    gt, pred = pair
    for folder in pair:
        (folder / "hn_2.nii.gz").write_bytes((folder / "hn_1.nii.gz").read_bytes())
    (pred / "hn_2.nii.gz").write_bytes((pred / "hn_2.nii.gz").read_bytes()[:-20])
    assert main([str(gt), str(pred), "-np", "1"]) == 3
    assert "hn_2" in capsys.readouterr().err
    assert len(json.loads((pred / "summary.json").read_text())["metric_per_case"]) == 1


@pytest.mark.parametrize("extra", [["--outt", "x"], ["-np", "0"], ["-np", "x"]])
def test_wrong_usage_ends_with_2(pair, extra):
    with pytest.raises(SystemExit) as stopped:
        main([str(pair[0]), str(pair[1]), *extra])
    assert stopped.value.code == 2


def test_misspelled_folders_are_errors_and_are_not_made(pair, tmp_path):
    assert main([str(pair[0]), str(tmp_path / "ouput"), "-np", "1"]) == 1
    assert not (tmp_path / "ouput").exists()


# Two readers' masks of real scans: organ → DSC and surface DSC by DeepMind's surface-distance 0.1 (benchmarks/reader_agreement.py)
BY_DEEPMIND = json.loads((Path(__file__).parent / "two_readers.json").read_text())
LABELS = Path(__file__).resolve().parents[2] / "benchmarks" / "masks_two_readers.json"


def agreement(readers: tuple[Path, Path], out: Path) -> dict[str, dict[str, tuple]]:
    """Case → organ → DSC and surface DSC as the command writes them; organs that one reader or both lack are left out."""
    assert main([*map(str, readers), "-djfile", str(LABELS), "-o", str(out), "-np", "1"]) == 0
    table = pd.read_csv(out / "per_case.csv")
    table = table[table["state"] == "scored"].set_index(["case", "organ"])
    return {case: {o: (row["dsc"], row["surface_dsc"]) for (_, o), row in rows.iterrows()} for case, rows in table.groupby(level=0)}


def check_as_deepmind(found: dict[str, dict[str, tuple]]) -> None:
    """The same organs; the same DSC, to the last digit; the surface DSC but for the order of its sums."""
    for case, organs in found.items():
        assert organs.keys() == BY_DEEPMIND[case].keys()
        for organ, (dsc, surface_dsc) in organs.items():
            assert [dsc, surface_dsc] == [BY_DEEPMIND[case][organ][0], pytest.approx(BY_DEEPMIND[case][organ][1], abs=1e-9)], (case, organ)


def test_one_scan_of_two_readers_is_scored_as_deepminds_library_scores_it(real_data, tmp_path):
    case, readers = "TCGA-CV-5978", (tmp_path / "oncologist", tmp_path / "radiographer")
    for folder in readers:
        folder.mkdir()
        (folder / f"{case}.nii.gz").symlink_to(real_data / "masks_two_readers" / folder.name / f"{case}.nii.gz")
    found = agreement(readers, tmp_path / "out")
    assert found.keys() == {case} and len(found[case]) == len(BY_DEEPMIND[case])
    check_as_deepmind(found)


def test_all_scans_of_two_readers(slow, real_data, tmp_path):
    found = agreement((real_data / "masks_two_readers" / "oncologist", real_data / "masks_two_readers" / "radiographer"), tmp_path / "out")
    assert found.keys() == BY_DEEPMIND.keys() and len(found) == 7
    check_as_deepmind(found)
