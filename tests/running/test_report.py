"""The report of a prediction: made from the label maps, notes and checks in a folder, with what is missing named."""
import json
import shutil

import numpy as np
import pytest

from c2f_nnunet.cli import predict
from c2f_nnunet.data.dataset import prediction_cases
from c2f_nnunet.errors import C2FError, RecordError
from c2f_nnunet.evaluation.metrics import mean_sd
from c2f_nnunet.io.images import read_image, read_label, write_label
from c2f_nnunet.running import viewing
from c2f_nnunet.running.predict import PredictOptions
from c2f_nnunet.running.report import noted_organs, open_case, prediction_report, read_checks


@pytest.fixture
def predicted(tiny_raw, tmp_path):
    """Label maps as if predicted, the reference's, with notes: in s1 the right gland is flagged and empty. Returns folder and call."""
    labels, cases = tiny_raw.dataset.labels, prediction_cases(tiny_raw.raw / "imagesTs", ".nii.gz")
    for case in cases:
        shutil.copy(tiny_raw.raw / "labelsTs" / f"{case.id}.nii.gz", tmp_path)
        organs = [
            {"organ": o, "how": "threshold 0.5", "confidence": 0.9, "volume_ml": 8.0, "grown": False, "flags": [], "new": {"of": "later"}}
            for o in labels.organs
        ]  # fmt: skip
        if case.id == "s1":
            organs[1] |= {"how": "prior", "confidence": 0.0, "volume_ml": 0.0, "flags": ["not found by the fine stage either"]}
        (tmp_path / f"{case.id}.json").write_text(json.dumps({"case": case.id, "stage": "fine", "organs": organs}))

    def make(given=cases, **more):
        return prediction_report(tmp_path, "Tiny", labels, given, PredictOptions(), **more)

    make.labels, make.cases = labels, cases
    return tmp_path, make


def test_the_page_and_the_viewers_files(predicted):
    out, make = predicted
    html = make().read_text(encoding="utf-8")
    first, second = html.index('id="case-1"'), html.index('id="case-2"')
    assert "not found by the fine stage either" in html[first:second]
    assert html.count("data:image/jpeg") == 3 * 5 == html.count("<svg")  # three organs in s0, two in s1, no reference beside them
    index = viewing.read_index(out)
    assert [c.case for c in index.cases] == ["s1", "s0"] and not any(c.reference for c in index.cases)
    assert index.cases[0].organs[1].centre_mm is None and index.cases[0].flagged == 1
    seen = read_label(out / "viewer" / "s0_prediction.nii.gz")
    assert (seen.array == 3).sum() == (read_label(out / "s0.nii.gz").array == 3).sum()


def test_what_the_checks_found_is_flagged(predicted):
    out, make = predicted
    asked = [{"name": "volume", "limit": [9.0, 12.5], "passed": False, "sentence": "volume 8.0 ml below the training range"},
             {"name": "found", "limit": [None, None], "passed": True, "sentence": "fine"},
             {"name": "pieces", "limit": [0.9, None], "passed": False, "sentence": "two parts"}]
    found = [{"case": "s0", "organ": "Stem", "evidence": {"views": 0.625}, "checks": asked},
             {"case": "s1", "organ": "Gland_R", "evidence": {"views": 0.5}, "checks": asked[1:2]}]
    (out / "checks.json").write_text(json.dumps(found))
    html = make().read_text(encoding="utf-8")
    assert "volume 8.0 ml below the training range; two parts" in html and "not found by the fine stage either" not in html
    assert [c.flagged for c in viewing.read_index(out).cases] == [1, 0]  # s0 comes first now
    assert ">9.0 to 12.5</td>" in html and ">62.5</td>" in html and 'href="#def-agree"' in html
    for wrong in ("1", "[1]", '[{"case": "s0"}]'):
        (out / "checks.json").write_text(wrong)
        with pytest.raises(RecordError, match="checks.json: holds no list of records with case, organ, evidence and checks"):
            make()
    assert read_checks(out / "nothing.json") == {}


def test_what_is_missing_or_damaged_is_named_and_the_rest_is_shown(predicted, caplog):
    out, make = predicted
    (out / "s1.nii.gz").unlink()
    assert "incomplete: s1 is not predicted" in make().read_text(encoding="utf-8")
    (out / "s1.nii.gz").write_bytes(b"cut")
    assert "incomplete: s1 is left out: " in make().read_text(encoding="utf-8") and "s1.nii.gz: cannot be read" in caplog.text
    (out / "s0.json").write_text('{"organs": [{"organ": "Stem"}]}')
    with pytest.raises(C2FError, match="no predicted case can be reported on: incomplete: s0 .*s0.json: is not a note of c2f_predict"):
        make()


def test_an_older_result_of_a_case_that_failed_now_is_not_shown(predicted):
    out, make = predicted
    html = make(left_out={"s1": "s1_0000.nii.gz: truncated"}).read_text(encoding="utf-8")
    assert "incomplete: s1 is left out: s1_0000.nii.gz: truncated" in html and 'id="case-2"' not in html
    assert [c.case for c in viewing.read_index(out).cases] == ["s0"]


def test_a_label_map_of_something_else_is_refused(predicted):
    out, make = predicted
    case = make.cases[0]
    shutil.copy(out / "s1.nii.gz", out / "other.nii.gz")
    with pytest.raises(C2FError, match="other.nii.gz: is not on the grid of .*s0_0000.nii.gz; predict it again"):
        open_case(case, out / "other.nii.gz", make.labels)
    image = read_image(case.image)
    write_label(out / "more.nii.gz", np.full(image.array.shape, 7, np.uint8), image.source)
    with pytest.raises(C2FError, match="more.nii.gz: holds label 7, which this model does not have"):
        open_case(case, out / "more.nii.gz", make.labels)


def test_a_note_that_is_none(tmp_path, tiny_raw):
    number_in_words = '{"organs": [{"organ": "Gland_L", "how": "x", "confidence": "high", "volume_ml": 1, "flags": []}]}'
    for text in ("[]", '{"organs": 1}', number_in_words):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(RecordError, match="a.json: is not a note of c2f_predict"):
            noted_organs(tmp_path / "a.json", tiny_raw.dataset.labels, {})


def test_the_command_makes_it_from_a_trained_model(tiny_trained, tmp_path, capsys):
    args = tiny_trained.args("-i", "imagesTs", "-o", tmp_path, "-device", "cpu", "--disable_tta", "--report")
    assert predict.main(args) == 0
    assert f"report: {tmp_path / 'report.html'}; slice by slice and in 3D: c2f_view {tmp_path}" in capsys.readouterr().out
    assert sorted(c.case for c in viewing.read_index(tmp_path).cases) == ["s0", "s1"]
    (tmp_path / "report.html").unlink()
    assert predict.main([*args, "--continue_prediction"]) == 0  # nothing is predicted, the report is made of what is there
    reached = tiny_trained.model.fusion.held_out[0].dsc
    assert f">{mean_sd(np.mean(reached), np.std(reached, ddof=1))} ({len(reached)})</td>" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert predict.main(tiny_trained.args("-i", "imagesTs", "-o", tmp_path, "-device", "cpu", "--report", "-num_parts", 2, "-part_id", 0)) == 0
    html = (tmp_path / "report.html").read_text(encoding="utf-8")  # s1's result is as before: without mirroring
    assert "incomplete: s1 is left out: its result there is of another model, stage or fold" in html and 'id="case-2"' not in html
    assert {c["case"] for c in json.loads((tmp_path / "checks.json").read_text())} == {"s0"}
    coarse = [*args, "-o", tmp_path / "coarse", "--stage", "coarse"]
    assert predict.main(list(map(str, coarse))) == 0  # of the merged results' DSC nothing is said beside the coarse stage's
    assert f"({len(reached)})</td>" not in (tmp_path / "coarse" / "report.html").read_text(encoding="utf-8")
