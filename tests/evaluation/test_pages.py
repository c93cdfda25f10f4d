"""Case by case: the order of the cases, their cells, what is flagged, and the page of a prediction."""
import re

import numpy as np
import pytest

from c2f_nnunet.evaluation import pages
from c2f_nnunet.evaluation.figures import OverlayCase
from c2f_nnunet.evaluation.metrics import CaseScore, OrganScore
from c2f_nnunet.evaluation.pages import PredictedOrgan, Shown
from c2f_nnunet.evaluation.pictures import organ_views
from c2f_nnunet.geometry import Geometry
from c2f_nnunet.labels import LabelSet

LABELS = LabelSet.from_names({"background": 0, "X": 1, "Y<b>": 2})


def scored(name, x, y="absent"):
    """A case with these DSCs, HD95 10 − 10·DSC mm; a word instead of a number is that state."""
    def organ(o, i, d):
        if not isinstance(d, str):
            return OrganScore(o, i, "scored", 10, 10, 8, 1.0, 1.5, 2.0, d, 10 - 10 * d, 1.0, d)
        empty = {"missed": (10, 0, 0, 1.0, 0.0, 2.0, 0.0, None, None, 0.0), "absent": (0, 0, 0, 0.0, 0.0, 2.0)}[d]
        return OrganScore(o, i, d, *empty)
    return CaseScore(name, 1000, (organ("X", 1, x), organ("Y<b>", 2, y)))


def views():
    channels = np.zeros((6, 8, 8), np.uint8)
    channels[2:4, 2:5, 2:5] = 1
    return organ_views(OverlayCase("b", np.zeros((6, 8, 8), np.int16), Geometry((6, 8, 8), (3.0, 1.0, 1.0)), channels, channels))


def test_the_worst_scored_case_comes_first():
    flags = [{"case": "b", "organ": "X", "state": "present", "note": "box grown once"}]
    scores = [scored("a", 0.9), scored("n", "absent"), scored("b", 0.8, "missed"), scored("c", 0.7, 0.6)]
    table = pages.scored_cases(scores, {"b": views()}, flags)
    assert [c.case for c in table.cases] == ["b", "c", "a", "n"]  # mean DSC 0.4, 0.65, 0.9, none
    assert [h.title for h in table.headings] == ["Mean DSC", "Lowest DSC", "of", "Largest 95HD", "Missed", "Flagged"]
    b, c, _, none = table.cases
    assert [s.text for s in b.cells] == ["40.0", "0.0", "Y<b>", "2.00", "1", "1"] and b.cells[0].value == pytest.approx(40.0)
    assert [s.text for s in none.cells] == ["–", "–", "–", "–", "0", "0"] and none.cells[0].value is None
    assert [s.text for s in c.organs[0].cells] == ["70.0", "70.0", "3.00", "1.00", "1.50"]
    assert [s.text for s in b.organs[1].cells] == ["0.0", "0.0", "–", "1.00", "0.00"]
    assert none.organs[0].cells[0] == Shown("absent")
    assert b.organs[0].flags == ("present: box grown once",) and b.flags == 1 and c.flags == 0
    assert b.organs[0].views and not b.organs[1].views


def test_how_sure_each_organ_is_stands_beside_its_dsc():
    evidence = {("a", "X"): {"confidence": 0.9, "views": 0.75, "folds": None, "stages": 0.5}, ("b", "X"): {"confidence": 0.4, "views": None}}
    table = pages.scored_cases([scored("a", 0.9), scored("b", 0.8)], {}, [], evidence)
    assert [h.title for h in table.organ_headings][5:] == ["Confidence", "Views agree", "Stages agree"]  # one fold: none to agree with
    assert [[s.text for s in c.organs[0].cells[5:]] for c in table.cases] == [["40.0", "–", "–"], ["90.0", "75.0", "50.0"]]
    assert [s.text for s in table.cases[0].organs[1].cells[5:]] == ["–", "–", "–"]


def predicted(organ, how, confidence, volume_ml, *flags, expected_ml=None, **agree):
    return PredictedOrgan(organ, how, volume_ml, {"confidence": confidence, **agree}, flags, expected_ml)


SURE = predicted("X", "threshold 0.5", 0.95, 31.4, expected_ml=(20.0, 40.5))
DOUBTFUL = predicted("Y<b>", "prior", 0.4, 1.234, "found at its <usual> place", views=0.5)
EMPTY = predicted("Y<b>", "absent", 0.0, 0.0, "outside the scan")
FINE = predicted("Y<b>", "threshold 0.25", 0.8, 2.0)


def test_predicted_cases_with_remarks_come_first_then_the_least_sure():
    two = predicted("X", "threshold 0.5", 0.99, 9.0, "small", "loose")
    cases = {"a": [SURE, FINE], "b": [SURE, EMPTY], "c": [SURE, DOUBTFUL], "d": [predicted("X", "threshold 0.5", 0.7, 3.0), FINE], "e": [two, FINE]}
    table = pages.predicted_cases(cases, {}, LABELS)
    assert [c.case for c in table.cases] == ["e", "c", "b", "d", "a"]
    c, b = table.cases[1:3]
    assert [s.text for s in c.cells] == ["1", "2 of 2", "40.0", "Y<b>"] and [s.text for s in b.cells] == ["1", "1 of 2", "95.0", "X"]
    assert [h.title for h in table.organ_headings] == ["Volume", "Confidence", "Views agree", "Found"]
    assert [s.text for s in b.organs[1].cells] == ["0.00", "–", "–", "nowhere"]  # no confidence in what is not there
    assert [s.text for s in c.organs[1].cells] == ["1.23", "40.0", "50.0", "not in the coarse result: looked for at its usual place"]
    assert table.cases[4].organs[1].cells[3].text == "at probability 0.25"


def test_predicted_organs_over_all_cases():
    cases = {"a": [SURE, FINE], "b": [SURE, EMPTY], "c": [SURE, DOUBTFUL]}
    (_, x, first), (channel, y, second) = pages.predicted_organs(cases, LABELS).rows
    assert (x, y, channel) == ("X", "Y<b>", 2)
    assert [s.text for s in first] == ["3 of 3", "31.40", "31.40", "31.40", "20.0 to 40.5", "95.0", "95.0", "a", "–", "0"]
    assert [s.text for s in second] == ["2 of 3", "1.62", "1.23", "2.00", "–", "60.0", "40.0", "c", "–", "2"]
    nowhere = pages.predicted_organs({"a": [EMPTY]}, LABELS).rows[1][2]
    assert [s.text for s in nowhere] == ["0 of 1", *["–"] * 8, "1"]


def test_what_the_model_reached_on_held_out_cases_stands_beside():
    table = pages.predicted_organs({"a": [SURE, FINE]}, LABELS, {"X": (0.7, 0.8, 0.9), "Y<b>": (0.5,)})
    column = [h.title for h in table.headings].index("Held-out DSC")
    assert [cells[column].text for _, _, cells in table.rows] == ["80.0 ± 10.0 (3)", "50.0 (1)"]
    assert table.rows[0][2][column].value == pytest.approx(0.8)


def test_boxes_are_drawn_of_three_cases_at_least():
    cases = {"a": [SURE, FINE], "b": [SURE, EMPTY], "c": [SURE, DOUBTFUL]}
    drawn = pages.predicted_pictures(cases, LABELS)
    assert [caption.split(";")[0] for caption in drawn] == ["Volume", "Confidence"]
    assert all(picture.startswith(b"\x89PNG") for picture in drawn.values()) and len(set(drawn.values())) == 2
    assert pages.predicted_pictures({"a": [SURE, FINE], "b": [SURE, EMPTY]}, LABELS) == {}
    assert pages.predicted_pictures(dict.fromkeys("abc", [SURE, EMPTY]), LABELS) and not pages.predicted_pictures(dict.fromkeys("abc", [EMPTY]), LABELS)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    cases = {"a": [SURE, FINE], "b </script>": [SURE, DOUBTFUL], "c": [SURE, FINE]}
    table = pages.predicted_cases(cases, {"b </script>": views()}, LABELS)
    return pages.build_prediction_report(folder, "Set <i>", LABELS, cases, table, ["incomplete: d"])


def test_the_predictions_page(page):
    html = page.read_text(encoding="utf-8")
    assert page.name == "report.html" and "Set &lt;i&gt;" in html and "incomplete: d" in html
    assert html.count("<script>") == html.count("</script>") == 1 and "found at its &lt;usual&gt; place" in html and "Y<b>" not in html
    assert not re.findall(r'(?:src|href)="(?!data:,|data:image/(?:png|jpeg);base64,|#)', html)  # nothing is loaded from elsewhere
    assert html.count("data:image/png") == 2 and ">31.40</td>" in html and ">20.0 to 40.5</td>" in html  # the organs' boxes and table
    assert html.count("data:image/jpeg") == 3 and html.count("<svg") == 6  # organ X of one case, with its reference beside it
    assert len(set(re.findall(r'aria-label="(X, [a-z, ]+)"', html))) == 6  # each view by its own name
    rows = re.findall(r'<td data-v="([^"]*)"><a href="#case-(\d)"', html)
    assert rows == [("b &lt;/script&gt;", "1"), ("a", "2"), ("c", "3")]
    linked = set(re.findall(r'href="#([^"]+)"', html))
    assert all(f'id="{anchor}"' in html for anchor in linked), linked  # every definition and every case is there
    for unit in ("Volume (ml)", "Confidence (%)", "Lowest confidence (%)"):
        assert f'<button type="button">{unit}</button>' in html


def test_colours_are_those_of_the_label_set():
    assert pages.hex_colour((1.0, 0.0, 0.5)) == "#ff0080"
    assert pages.colours(LABELS) == {1: pages.hex_colour(LABELS.colour("X")), 2: pages.hex_colour(LABELS.colour("Y<b>"))}
