"""checks.json of a folder, the limits of a model folder, and what is said of the confidence's ranking."""
import json
from dataclasses import replace

import pytest

from c2f_nnunet.cli import predict
from c2f_nnunet.evaluation.metrics import CaseScore, OrganScore
from c2f_nnunet.inference.agreement import Evidence
from c2f_nnunet.inference.checks import Check, Checked
from c2f_nnunet.inference.limits import HeldOut
from c2f_nnunet.io import records
from c2f_nnunet.running.checking import gather_checks, ranking, read_limits, table, write_checks


def checked(case: str, organ: str, confidence: float, *sentences: str) -> Checked:
    answers = tuple(Check("volume", 1.0, (2.0, None), False, s) for s in sentences)
    return Checked(case, organ, confidence, Evidence(confidence, stages=0.5), bool(answers), answers)


def test_notes_are_gathered_and_written_in_order(tmp_path):
    given = {"a": [checked("a", "X", 0.9)], "b": [checked("b", "X", 0.4, "small"), checked("b", "Y", 0.8)]}
    for case, found in given.items():
        records.write(tmp_path / f"{case}.json", {"case": case, "checks": found})
    records.write(tmp_path / "dataset.json", {"labels": {"background": 0}})
    (tmp_path / "cut.json").write_text('{"case": "cut", "che')
    records.write(tmp_path / "old.json", {"case": "old", "checks": [{"organ": "X"}]})  # of another version
    assert gather_checks(tmp_path) == [*given["b"], *given["a"]]
    write_checks(tmp_path, gather_checks(tmp_path))
    found = json.loads((tmp_path / "checks.json").read_text())
    assert [(r["case"], r["organ"], r["needs_a_look"]) for r in found] == [("b", "X", True), ("b", "Y", False), ("a", "X", False)]
    assert found[0]["checks"] == [{"name": "volume", "value": 1.0, "limit": [2.0, None], "passed": False, "sentence": "small"}]
    assert found[0]["evidence"] == {"inside": 0.4, "soft": 0.0, "views": None, "folds": None, "stages": 0.5}
    assert gather_checks(tmp_path) == [*given["b"], *given["a"]]  # a second time: checks.json itself is no note


def test_nothing_is_written_where_nothing_was_checked(tmp_path):
    write_checks(tmp_path, gather_checks(tmp_path))
    assert not list(tmp_path.iterdir()) and table([]) == ""


def test_the_screen_shows_what_needs_a_look():
    shown = table([checked("a", "X", 0.9), checked("b", "Y", 0.456, "small", "loose")])
    assert [line.split() for line in shown.splitlines()] == [["case", "organ", "confidence", "stages", "note"], ["b", "Y", "0.456", "0.500", "small;", "loose"]]


def test_limits_come_from_the_models_folder(tiny_trained, tmp_path):
    model = tiny_trained.model
    found = read_limits(model)
    assert list(found) == ["Gland_L", "Gland_R", "Stem"] and found["Stem"].cases == 7 and found["Gland_R"].ratio is not None
    assert found["Stem"].inside is None  # of two held-out cases no limit is made
    assert model.fusion.held_out[2].organ == "Stem" and model.fusion.held_out[2].cases == ("t2", "t5")
    assert read_limits(model, without={"t0", "t4"})["Stem"].cases == 5
    tiny = tiny_trained.copy(tmp_path / "w")
    tiny.folder.fingerprint.unlink()
    assert read_limits(tiny.model) == {}


def test_held_out_results_give_limits_to_merged_results_only(tiny_trained, tmp_path):
    tiny = tiny_trained.copy(tmp_path / "w")
    three = HeldOut("Stem", ("t2", "t5", "t6"), (0.9, 0.8, 0.7), (0.9, 0.9, 0.9), (1.0, 0.95, 1.0))
    records.write(tiny.folder.fusion, replace(tiny.model.fusion, held_out=(three,)))
    found = read_limits(tiny.model)
    assert found["Stem"].inside == pytest.approx(0.9) and found["Stem"].largest_share == 0.95 and found["Gland_L"].inside is None
    coarse = read_limits(tiny.model, held_out=False)["Stem"]
    assert coarse.inside is None and coarse.largest_share is None and coarse.volume_ml == found["Stem"].volume_ml


def scores(*rows) -> list[CaseScore]:
    """(case, organ, DSC) → scores, one organ a case."""
    return [CaseScore(case, 10, (OrganScore(organ, 1, "scored", dsc=dsc),)) for case, organ, dsc in rows]


def test_ranking_says_how_well_errors_are_told():
    rows = [("a", "X", 0.9), ("b", "X", 0.8), ("c", "X", 0.5), ("d", "X", 0.7)]
    same_order = [checked("a", "X", 0.99), checked("b", "X", 0.8), checked("c", "X", 0.1, "small"), checked("d", "X", 0.5, "loose")]
    correlation, caught = ranking(same_order, scores(*rows))
    assert correlation == "confidence against DSC, rank correlation over 4 organs of 4 cases: 1.00; by organ: X 1.00"
    assert caught == "2 of 4 organs need a look by the checks, among them 1 of the 1 with the lowest DSC"
    # ranks of confidence 4 3 1 2 against DSC of an order of 1 2 3 4: correlation -0.8
    assert ranking(same_order, scores(*zip("abcd", "XXXX", (0.1, 0.2, 0.3, 0.4))))[0].endswith("cases: -0.80; by organ: X -0.80")


def test_ranking_tells_of_the_expected_dsc_first():
    rows = [("a", "X", 0.9), ("b", "X", 0.8), ("c", "X", 0.5), ("d", "X", 0.7)]
    known = [replace(checked(c, "X", 0.5), expected_dsc=v) for c, v in zip("abcd", (0.8, 0.7, None, 0.6))]
    told, confidence, _ = ranking(known, scores(*rows))
    assert told == "expected DSC against DSC, rank correlation over 3 organs of 3 cases: 1.00; by organ: X 1.00"
    assert confidence.startswith("confidence against DSC, rank correlation over 4 organs of 4 cases: –")


def test_ranking_leaves_out_what_has_no_dsc_or_does_not_vary():
    found = [checked(c, "X", 0.5) for c in "abcd"]
    assert ranking(found, scores(*zip("abcd", "XXXX", (0.1, 0.2, 0.3, 0.4))))[0].endswith("4 cases: –; by organ: X –")
    assert ranking(found, scores(("a", "X", 0.1), ("b", "X", None))) == [] and ranking([], []) == []


def test_a_continued_prediction_writes_the_same_checks(tiny_trained, tmp_path):
    """--continue_prediction looks at CASE.json, which holds the checks too: a second call redoes nothing and writes the same file."""
    args = tiny_trained.args("-i", "imagesTs", "-o", tmp_path, "-device", "cpu", "--disable_tta", "--continue_prediction")
    assert predict.main(args) == 0
    before = (tmp_path / "checks.json").read_bytes()
    (tmp_path / "checks.json").unlink()
    assert predict.main(args) == 0 and (tmp_path / "checks.json").read_bytes() == before
