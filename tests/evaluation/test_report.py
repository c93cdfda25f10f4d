"""The report: Tables I–III, what is bold, what is escaped, what it says of incomplete results."""
import re

import numpy as np
import pandas as pd
import pytest

from c2f_nnunet.errors import C2FError
from c2f_nnunet.evaluation import report
from c2f_nnunet.evaluation.figures import OverlayCase
from c2f_nnunet.evaluation.metrics import CaseScore, OrganScore
from c2f_nnunet.evaluation.pictures import organ_views
from c2f_nnunet.geometry import Geometry
from c2f_nnunet.labels import LabelSet

LABELS = LabelSet.from_names({"background": 0, "X": 1, "Y<b>": 2})


def case(name, x, y="absent"):
    """A case with DSC x and y for the two organs, HD95 10 − 10·DSC mm; a word instead of a number is that state."""
    def organ(o, i, d):
        if not isinstance(d, str):
            return OrganScore(o, i, "scored", 10, 10, 8, 1.0, 1.0, 2.0, d, 10 - 10 * d, 1.0, d)
        empty = {"missed": (10, 0, 0, 1.0, 0.0, 2.0, 0.0, None, None, 0.0), "absent": (0, 3, 0, 0.0, 0.3, 2.0), "unknown": ()}[d]
        return OrganScore(o, i, d, *empty)
    return CaseScore(name, 1000, (organ("X", 1, x), organ("Y<b>", 2, y)))


RESULTS = {
    "final": [case("a", 0.9, 0.7), case("b", 0.8, 0.6), case("c", 0.7)],
    "2d_top": [case("a", 0.5, 0.7), case("b", 0.5, 0.6), case("c", 0.5)],
    "2d_front": [case("a", 0.4, 0.7), case("b", 0.4, 0.6), case("c", 0.4)],
    "fusion": [case("a", 0.6, 0.7), case("b", 0.6, "missed"), case("c", 0.6, "unknown")],
    "coarse": [case("a", 0.6, 0.9), case("b", 0.6, "missed"), case("c", 0.6, "unknown")],
    "other <i>": [case("a", 0.99, 0.95)],
}


def texts(number, results=RESULTS):
    headings, rows = report.table_cells(report.TABLES[number], results)
    return headings, {organ: [("*" if c.best else "") + c.text for c in cells] for organ, cells in rows}, rows


def test_table_1_has_the_papers_columns_and_the_best_bold():
    headings, cells, rows = texts("I")
    assert headings == ["Front view (n = 3)", "Top view (n = 3)", "Fusion (n = 3)"]  # the side view is not there and left out
    assert cells["X"] == ["40.0 ± 0.0", "50.0 ± 0.0", "*60.0 ± 0.0"]
    assert cells["Y<b>"] == ["*65.0 ± 7.1", "*65.0 ± 7.1", "35.0 ± 49.5"]  # equal as shown: both; the missed one counts as 0
    assert [c.note for c in dict(rows)["Y<b>"]] == ["1 absent", "1 absent", "1 missed, 1 unknown"]
    assert cells["Mean"] == ["52.5", "*57.5", "47.5"]


def test_means_over_fewer_cases_do_not_win():
    headings, cells, _ = texts("III")
    assert headings == ["Coarse (n = 3)", "Final (n = 3)", "other <i> (n = 1)"]
    assert cells["X"] == ["4.00 ± 0.00", "*2.00 ± 1.00", "0.10"]  # the other folder scored one case only
    assert cells["Y<b>"] == ["1.00", "3.50 ± 0.71", "0.50"]  # coarse is 'better' because it missed case b: nothing to compare with, no bold


def test_nothing_is_the_best_where_all_are_equal():
    missed = [case("a", "missed", 0.8)]
    _, cells, _ = texts("II", {"coarse": missed, "final": missed})
    assert cells["X"] == ["0.0", "0.0"] and cells["Y<b>"] == ["80.0", "80.0"] and cells["Mean"] == ["40.0", "40.0"]


def test_an_organ_that_one_column_never_has_is_not_in_the_common_mean():
    results = {"coarse": [case("a", 0.5, "missed")], "final": [case("a", 0.6, 0.8)]}
    _, cells, _ = texts("III", results)
    assert cells["Y<b>"] == ["–", "2.00"] and cells["Mean of 1 organs"] == ["5.00", "*4.00"]


def test_representative_cases():
    scores = [case("a", 0.9), case("b", 0.5), case("c", 0.7), case("d", 0.8), case("e", "absent")]
    assert report.representative_cases(scores) == {"best": "a", "median": "d", "worst": "b"}
    assert report.representative_cases(scores[:2]) == {"best": "a", "worst": "b"}
    assert report.representative_cases(scores[:1]) == {"best": "a"}
    assert report.representative_cases(scores[4:]) == {}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    channels = np.zeros((6, 8, 8), np.uint8)
    channels[2:4, 2:5, 2:5] = 1
    overlay = OverlayCase("b", np.zeros((6, 8, 8), np.int16), Geometry((6, 8, 8), (3.0, 1.0, 1.0)), channels, channels)
    log = [{"epoch": 0, "train_loss": 1.0, "lr": 0.1, "seconds": 1.0, "val_dsc": {"X": 0.5}}]
    flag = {"case": "a", "organ": "X", "state": "box grown", "note": "once"}
    page = report.build_report(folder, "Set <script>", LABELS, RESULTS, report.Beside(
        [overlay], {"2d_top/fold_0": log, "2d_top/fold_1": []}, ["fold 3 is | missing"], [flag], views={"b": organ_views(overlay)},
    ))  # fmt: skip
    return folder, page.read_text(), (folder / "report.md").read_text()


def test_the_page_is_self_contained_and_escaped(made):
    _, html, _ = made
    assert html.count("<script>") == 1 and "Set &lt;script&gt;" in html and "Y&lt;b&gt;" in html and "other &lt;i&gt;" in html
    assert not re.findall(r'(?:src|href)="(?!data:,|data:image/(?:png|jpeg);base64,|#)', html)  # nothing is loaded from elsewhere
    assert html.count("data:image/png;base64,") == 6  # four box plots, one overlay, the training curves
    assert 'name="viewport"' in html
    assert re.search(r'<td class="best">80.0 ± 10.0</td>', html)
    assert "class=\"badge median\"" in html and "mean DSC 70.0 %" in html  # case b: (0.8 + 0.6) / 2


def test_the_page_says_what_is_incomplete_missed_and_flagged(made):
    _, html, markdown = made
    for text in (html, markdown):
        assert "1 of 3 cases; its numbers are not comparable" in text
        assert "box grown" in text and "false positive" in text  # given, and found in the main result: case c, organ Y
    assert "fold 3 is | missing" in html and r"fold 3 is \| missing" in markdown


def test_the_cases_are_on_the_page_worst_first(made):
    _, html, _ = made
    assert re.findall(r'<td data-v="(\w)"><a href="#case-\d"', html) == ["b", "c", "a"]  # mean DSC 70, 70, 80 %
    assert html.count("data:image/jpeg;base64,") == 3 and html.count("<svg") == 6  # case b, organ X: three views, with the reference beside
    assert all(f'id="{anchor}"' in html for anchor in re.findall(r'href="#([^"]+)"', html))


def test_markdown_tables_are_well_formed(made):
    _, _, markdown = made
    assert "| X | 40.0 ± 0.0 | 50.0 ± 0.0 | **60.0 ± 0.0** |" in markdown
    for block in re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1, block
    assert re.findall(r"!\[.*\]\(figures/(\w+)\.png\)", markdown) == [
        "box_views", "box_dsc", "box_surface_dsc", "box_hd95", "overlay_1", "training"]


def test_the_files_beside_the_page(made):
    folder, _, markdown = made
    assert sorted(p.stem for p in (folder / "tables").glob("*.csv")) == ["numbers", "per_case", "table_I", "table_II", "table_III"]
    assert all((folder / link).is_file() for link in re.findall(r"\((figures/\w+\.png)\)", markdown))
    assert pd.read_csv(folder / "tables" / "table_II.csv", index_col="organ").loc["X", "Final (n = 3)"] == "80.0 ± 10.0"
    numbers = pd.read_csv(folder / "tables" / "numbers.csv").set_index(["result", "metric", "organ"])
    assert numbers.loc[("coarse", "hd95_mm", "Y<b>"), ["n", "missed", "unknown"]].tolist() == [1, 1, 1]
    assert len(pd.read_csv(folder / "tables" / "per_case.csv")) == 2 * (5 * 3 + 1)


def test_a_report_on_one_case_and_one_result(tmp_path):
    page = report.build_report(tmp_path, "small", LABELS, {"final": [case("a", "absent", "unknown")], "fine": []})
    assert "–" in page.read_text() and not (tmp_path / "tables" / "table_I.csv").exists()


def test_nothing_scored_is_an_error(tmp_path):
    with pytest.raises(C2FError, match="small: there is no scored case"):
        report.build_report(tmp_path, "small", LABELS, {"final": []})


KNOWN = LabelSet.from_names({"background": 0, "Parotid_L": 1, "Glnd_Submand_R": 2, "Heart": 3})


def known_case(name: str, dsc: float) -> CaseScore:
    return CaseScore(name, 1000, tuple(
        OrganScore(o, i, "scored", 10, 10, 8, 1.0, 1.0, 2.0, dsc, 1.0, 1.0, dsc) for o, i in zip(KNOWN.organs, KNOWN.ids)
    ))


def test_two_readers_stand_beside_the_model_and_compete_with_none(tmp_path):
    results = {"coarse": [known_case("a", 0.5)], "final": [known_case("a", 0.7)]}
    page = report.build_report(tmp_path / "with", "set", KNOWN, results)
    markdown = page.with_name("report.md").read_text()
    assert "| Coarse (n = 1) | Final (n = 1) | Two readers, other patients (n = 28) |" in markdown
    assert "| Parotid\\_L | 50.0 | **70.0** | 87.2 |" in markdown  # 87.2 is not bold
    assert "| Glnd\\_Submand\\_R | 50.0 | **70.0** | 87.6 (23 scans) |" in markdown and "| Heart | 50.0 | **70.0** | – |" in markdown
    assert "| Mean | 50.0 | **70.0** | – |" in markdown
    for text in (markdown, page.read_text()):
        assert text.count("Nikolov et al. 2021") == 1 and "other readers than drew its references" in text
    table = pd.read_csv(tmp_path / "with" / "tables" / "table_II.csv", index_col="organ")
    assert str(table.loc["Parotid_L", "Two readers, other patients (n = 28)"]) == "87.2"
    assert "Two readers" not in (tmp_path / "with" / "tables" / "table_III.csv").read_text()
    without = report.build_report(tmp_path / "without", "set", KNOWN, results, report.Beside(readers=False))
    assert "Two readers" not in without.read_text() and "Two readers" not in without.with_name("report.md").read_text()


def test_two_readers_are_left_out_where_no_organ_is_known(made):
    _, html, markdown = made
    assert "Two readers" not in html and "Two readers" not in markdown


def test_organs_that_need_a_look_are_listed(tmp_path):
    checks = [{"case": "a", "organ": "Y<b>", "confidence": 0.456, "needs_a_look": True, "note": "empty; cut by the | edge"},
              {"case": "a", "organ": "X", "confidence": 0.9, "needs_a_look": False, "note": ""}]
    page = report.build_report(tmp_path, "set", LABELS, {"final": [case("a", 0.9, 0.7)]}, report.Beside(checks=checks))
    html, markdown = page.read_text(), page.with_name("report.md").read_text()
    assert "<tr><td>a</td><td>Y&lt;b&gt;</td><td>0.456</td><td>empty; cut by the | edge</td></tr>" in html
    assert r"| a | Y\<b\> | 0.456 | empty; cut by the \| edge |" in markdown
    for text in (html, markdown):
        assert "1 of 2 organs need a look by the checks" in text and "No organ was missed or flagged" not in text
    case_page = html[html.index('id="case-1"'):]
    assert "1 flagged" in case_page and "needs a look: empty; cut by the | edge" in case_page and ">45.6</td>" in case_page
    fine = report.build_report(tmp_path, "set", LABELS, {"final": [case("a", 0.9, 0.7)]}, report.Beside(checks=checks[1:]))
    assert "need a look by" not in fine.read_text() and "No organ was missed or flagged" in fine.read_text()
