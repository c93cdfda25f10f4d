"""The cross-validation report of the tiny model: its files, columns, notes, and what is refused beforehand."""
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from c2f_nnunet.errors import C2FError, DatasetError, ModelError, WorkspaceError
from c2f_nnunet.inference.fusion import fuse
from c2f_nnunet.io import durable
from c2f_nnunet.io.images import read_label
from c2f_nnunet.labels import LabelSet
from c2f_nnunet.running import crossval as running
from c2f_nnunet.running import viewing
from c2f_nnunet.running.checking import read_limits
from c2f_nnunet.running.crossval import crossval, fine_alone

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def report(tiny_trained, tmp_path_factory):
    """The report with a further column: the reference labels themselves, as predictions of one case of two."""
    tmp = tmp_path_factory.mktemp("crossval")
    tiny, others = tiny_trained.copy(tmp / "w"), tmp / "others"
    others.mkdir()
    shutil.copy(tiny.raw / "labelsTr" / "t2.nii.gz", others)
    seen = []
    page, failed = crossval(tiny.model, tiny.dataset, CPU, others={"perfect": others}, on_case=seen.append)
    assert not failed and page == tiny.folder.crossval / "report.html" and seen == ["t2", "t5"]
    return tiny


def test_tables_and_notes(report):
    text = (report.folder.crossval / "report.md").read_text()
    for part in ("Table I", "Table II", "Table III", "perfect", "fold 1 of 2 not trained", "slightly optimistic"):
        assert part in text, part
    columns = {c for t in (report.folder.crossval / "tables").glob("*.csv") for c in pd.read_csv(t).columns}
    wanted = {"Top view", "Front view", "Side view", "Fusion", "Coarse", "Fine", "Final"}
    assert {f"{c} (n = 2)" for c in wanted} | {"perfect (n = 1)"} <= columns
    assert "others has no prediction of t5" in text
    tables = sorted((report.folder.crossval / "tables").glob("*.csv"))
    assert len(tables) >= 3 and all(len(pd.read_csv(t)) for t in tables)
    assert (report.folder.crossval / "report.html").read_text().count("<table") >= 3


def test_the_cases_of_a_compared_folder_have_their_names(report):
    """Of two cases it has one: that is said of it, and of no other column."""
    rows = pd.read_csv(report.folder.crossval / "tables" / "per_case.csv", keep_default_na=False)
    assert {r: set(part["case"]) for r, part in rows.groupby("result")} == {
        **dict.fromkeys(("2d_top", "2d_front", "2d_side", "fusion", "coarse", "fine", "final"), {"t2", "t5"}), "perfect": {"t2"},
    }  # fmt: skip
    text = (report.folder.crossval / "report.md").read_text()
    assert text.count("not comparable with those of a column with other cases") == 1 and "perfect: 1 of 2 cases" in text


def test_every_case_is_on_the_page_and_in_the_viewer(report):
    html = (report.folder.crossval / "report.html").read_text(encoding="utf-8")
    index = viewing.read_index(report.folder.crossval)
    assert re.findall(r'<details class="case" id="case-\d" open>\s*<summary><b>(\w+)', html) == [index.cases[0].case]
    assert sorted(c.case for c in index.cases) == ["t2", "t5"] and all(c.reference for c in index.cases)
    assert [o.organ for o in index.cases[0].organs] == ["Gland_L", "Gland_R", "Stem"] and "DSC" in index.cases[0].organs[0].line
    for name in ("prediction", "reference"):
        assert read_label(report.folder.crossval / "viewer" / f"t2_{name}.nii.gz").geometry.spacing_mm == (5.0, 4.0, 4.0)
    assert html.count("<svg") >= 2 * 3 * 3  # two cases, three organs in the reference, three views


def test_what_needs_a_look_is_flagged_on_the_page_as_in_the_viewer(tiny_trained, tmp_path, monkeypatch):
    """With a limit that no stem reaches, it is flagged in every case."""
    def strict(model, **more):
        return {"Stem": replace(read_limits(model, **more)["Stem"], inside=1.1)}

    monkeypatch.setattr(running, "read_limits", strict)
    tiny = tiny_trained.copy(tmp_path / "w")
    page, _ = crossval(tiny.model, tiny.dataset, CPU)
    html = page.read_text(encoding="utf-8")
    flagged = {case: int(n) for case, n in re.findall(r"<summary><b>(\w+)</b><span[^>]*>(\d) flagged", html)}
    assert flagged == {c.case: c.flagged for c in viewing.read_index(tiny.folder.crossval).cases} and min(flagged.values()) >= 1
    assert html.count("needs a look: ") >= 2 and "Confidence (%)" in html


def test_predictions_are_on_the_images_grid(report):
    for case in ("t2", "t5"):
        predicted = read_label(report.folder.crossval / "predictions" / f"{case}.nii.gz")
        truth = read_label(report.raw / "labelsTr" / f"{case}.nii.gz")
        assert predicted.geometry == truth.geometry
        stem, reference = predicted.array == 3, truth.array == 3
        assert 2 * (stem & reference).sum() / (stem.sum() + reference.sum()) > 0.5


def test_every_organ_of_every_case_is_checked(report):
    found = json.loads((report.folder.crossval / "checks.json").read_text())
    assert {(r["case"], r["organ"]) for r in found} == {(c, o) for c in ("t2", "t5") for o in ("Gland_L", "Gland_R", "Stem")}
    for r in found:
        assert 0 <= r["confidence"] <= 1 and r["needs_a_look"] == any(not c["passed"] for c in r["checks"])
        names = [c["name"] for c in r["checks"]]
        # two held-out cases are too few for a limit of the probability
        assert names[:2] == ["found", "range of the scan"] and "probability" not in names and ("volume" in names or not r["confidence"])
    text = (report.folder.crossval / "report.md").read_text()
    assert "rank correlation over 6 organs of 2 cases" in text
    doubtful = sum(r["needs_a_look"] for r in found)
    assert (f"{doubtful} of 6 organs need a look by the checks; the cases" in text) == bool(doubtful)


def test_the_fine_column_leaves_the_coarse_stage_out():
    assert fuse(np.array([[3.0], [5.0]])[:, :, None], fine_alone(("A",))).tolist() == [[3.0]]


def test_what_cannot_be_compared_is_refused_before_anything_is_computed(tiny_trained, tiny_planned, tmp_path):
    with pytest.raises(ModelError, match="no fold has all its members trained; run c2f_train all 0 first"):
        crossval(tiny_planned.model, tiny_planned.dataset, CPU)
    with pytest.raises(C2FError, match="holds no label file"):
        crossval(tiny_trained.model, tiny_trained.dataset, CPU, others={"empty": tmp_path})
    for name in ("final", "Final", "2d_top", "Top view"):
        with pytest.raises(C2FError, match=f"--compare {name}=.*: '{name}' is a column of the report already; give another name"):
            crossval(tiny_trained.model, tiny_trained.dataset, CPU, others={name: tmp_path})
    renumbered = LabelSet(tiny_trained.dataset.labels.organs, (2, 1, 3))
    with pytest.raises(DatasetError, match="its labels are not those that the model was planned for .Gland_L, .*; put back the data set"):
        crossval(tiny_trained.model, replace(tiny_trained.dataset, labels=renumbered), CPU)
    assert not tiny_planned.folder.crossval.exists() and not tiny_trained.folder.crossval.exists()


def test_a_case_that_cannot_be_scored_is_returned_and_noted(tiny_trained, tmp_path):
    tiny = tiny_trained.copy(tmp_path / "w")
    image = tiny.raw / "imagesTr" / "t2_0000.nii.gz"
    image.write_bytes(image.read_bytes()[:-100])
    page, failed = crossval(tiny.model, tiny.dataset, CPU)
    assert list(failed) == ["t2"] and "t2_0000.nii.gz" in failed["t2"]
    assert "incomplete: t2 could not be predicted or scored" in page.with_name("report.md").read_text()


def test_a_full_disk_is_no_fault_of_the_cases(tiny_trained, tmp_path, monkeypatch):
    def full(path, *given):
        raise WorkspaceError(f"{path}: could not be written (No space left on device); free some space or choose another folder")

    tiny = tiny_trained.copy(tmp_path / "w")
    left = tiny.folder.crossval / "predictions" / f"{durable.TEMPORARY_MARK}4194999-{durable.HOST}-1-t2.nii.gz"
    left.parent.mkdir(parents=True)
    left.touch()
    monkeypatch.setattr(running, "write_label", full)
    with pytest.raises(WorkspaceError, match="predictions/t2.nii.gz: could not be written"):
        crossval(tiny.model, tiny.dataset, CPU)
    assert not left.exists()  # what an earlier one left


def test_memory_that_one_case_lacks_costs_that_case_alone(tiny_trained, tmp_path, monkeypatch):
    score_case = running.score_case

    def scored(cascade, case, *given):
        if case.id == "t2":
            raise MemoryError("Unable to allocate 3 GiB")
        return score_case(cascade, case, *given)

    monkeypatch.setattr(running, "score_case", scored)
    tiny = tiny_trained.copy(tmp_path / "w")
    assert crossval(tiny.model, tiny.dataset, CPU)[1] == {"t2": "t2: MemoryError: Unable to allocate 3 GiB"}
