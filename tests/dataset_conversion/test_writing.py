"""Cases into a data set: whole or not at all, resumed where interrupted, and never over something else."""
from dataclasses import replace

import numpy as np
import pytest

from c2f_nnunet.errors import DatasetError, ImageError, SomeCasesFailed
from c2f_nnunet.io import records
from tests.dataset_conversion.sources import GLAND, GRID, STEM, ct, image_of, known, label_of, load, verified

writing = load("parts.writing")


def test_a_data_set_with_everything_in_it(made, capsys):
    cases = [made.case("a"), made.case("b", organs="s", patient="a"), made.case("t", training=False, organs="g")]
    writing.convert(made.target, cases, update=False)
    folder, about = made.target.folder, records.read_json(made.target.folder / "dataset.json")
    dataset = verified(folder)
    assert known(dataset) == {"a": None, "b": ("Stem",), "t": ("Gland",)} and dataset.labels.organs == ("Stem", "Gland")
    assert dataset.patients == {"a": "a", "b": "a", "t": "t"}
    assert about["name"] == "Made" and about["licence"] == "MIT" and about["numTraining"] == 2
    np.testing.assert_array_equal(image_of(folder, "a"), ct(ord("a")))
    np.testing.assert_array_equal(label_of(folder, "a"), np.where(GLAND, 2, STEM))
    np.testing.assert_array_equal(label_of(folder, "t", "Ts"), 2 * GLAND)
    assert capsys.readouterr().out.splitlines() == [
        f"{folder}: 2 training and 1 test cases",
        "names: s → Stem, g → Gland",
        "delineated in some of the 3 cases only: Stem 2, Gland 2",
        "Gland and Stem overlap, by at most 2 voxels (1 cases); Gland kept them",
    ]


def test_a_mask_without_a_voxel_means_not_delineated(made, capsys):
    target = replace(made.target, ids={"s": 1, "e": 2, "g": 7}, names={"s": "Stem", "e": "Empty", "g": "Gland"})
    writing.convert(target, [made.case("a", organs="seg"), made.case("b", organs="gs")], update=False)
    assert records.read_json(target.folder / "dataset.json")["labels"] == {"background": 0, "Stem": 1, "Gland": 7}
    assert known(verified(target.folder)) == {"a": None, "b": None}
    assert "masks without a voxel, taken as not delineated: a: Empty" in capsys.readouterr().out


def test_notes_are_kept_with_the_case_and_counted(made, capsys):
    gap = "'Cord': 3 slices between its first and its last contour left empty"
    writing.convert(made.target, [made.case("a", notes=(gap, "another")), made.case("b"), made.case("c", notes=("a third",))], update=False)
    cases = made.target.folder / "conversion" / "cases"
    assert {path.stem: records.read(writing.CaseRecord, path).notes for path in cases.iterdir()} == {
        "a": (gap, "another"), "b": (), "c": ("a third",)}
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"notes on 2 of the 3 cases, 3 in all, in {cases}",
        "slices between contours are empty in 1 of the 3 cases, look at them: a",
    ]


def test_records_of_before_there_were_notes_are_read(made):
    writing.convert(made.target, [made.case("a")], update=False)
    path = made.target.record("a")
    record = records.read_json(path)
    del record["notes"]
    records.write(path, record)
    writing.convert(made.target, [made.case("a")], update=True)
    assert made.loaded == ["a"]  # nothing is made again


def test_failing_cases_are_named_and_leave_nothing(made):
    cases = [made.case("a"), made.case("bad", error=ImageError("bad.nrrd: truncated; copy it again")), made.case("none", organs="")]
    reasons = r"  bad: bad\.nrrd: truncated; copy it again\n  none: no organ is delineated"
    with pytest.raises(SomeCasesFailed, match=r"2 of 3 cases are left out; mend them and run this again with --update:\n" + reasons):
        writing.convert(made.target, cases, update=False)
    assert [case.id for case in verified(made.target.folder).training] == ["a"]
    assert not list(made.target.folder.rglob("*bad*")) and not list(made.target.folder.rglob("*none*"))
    writing.convert(made.target, [made.case("a"), made.case("bad")], update=True)  # mended
    assert [case.id for case in verified(made.target.folder).training] == ["a", "bad"] and made.loaded == ["a", "bad", "none", "bad"]


def test_without_any_good_training_case_there_is_no_data_set(made):
    with pytest.raises(DatasetError, match=r"(?s)no training case could be converted: \n  a: a is damaged"):
        writing.convert(made.target, [made.case("a", error=ImageError("a is damaged")), made.case("t", training=False)], update=False)
    assert not (made.target.folder / "dataset.json").exists()


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interrupted_conversion_goes_on_with_what_is_missing(made, monkeypatch, when):
    cases, write = [made.case("a"), made.case("b")], writing.write_case

    def interrupted(target, case):
        if case.id == "b":
            image, label = target.files("b", True)
            if when == "after":  # the files are there, the record is not
                writing.write_volume(label, STEM, GRID)
                writing.write_volume(image, ct(), GRID)
            raise KeyboardInterrupt
        write(target, case)

    with pytest.raises(KeyboardInterrupt):
        writing.convert(made.target, cases, False, interrupted)
    assert not (made.target.folder / "dataset.json").exists() and made.loaded == ["a"]
    writing.convert(made.target, cases, update=False)  # no flag needed: there is no whole data set yet
    assert made.loaded == ["a", "b"] and len(verified(made.target.folder).training) == 2
    np.testing.assert_array_equal(image_of(made.target.folder, "b"), ct(ord("b")))


def test_what_an_interrupted_case_left_is_removed_when_it_fails_next_time(made):
    image, label = made.target.files("b", True)
    writing.convert(made.target, [made.case("a")], update=False)
    writing.write_volume(image, ct(), GRID)
    writing.write_volume(label, STEM, GRID)
    with pytest.raises(SomeCasesFailed):
        writing.convert(made.target, [made.case("a"), made.case("b", error=ImageError("b is damaged"))], update=True)
    assert not image.exists() and not label.exists() and len(verified(made.target.folder).training) == 1


def test_update_makes_changed_and_new_cases_only(made):
    writing.convert(made.target, [made.case("a"), made.case("b")], update=False)
    with pytest.raises(DatasetError, match="there is a data set already; give --update to bring it up to date, or another -d"):
        writing.convert(made.target, [made.case("a")], update=False)
    (made.target.folder.parent / "b.source").write_text("changed")
    writing.convert(made.target, [made.case("a"), made.case("b"), made.case("c")], update=True)
    assert made.loaded == ["a", "b", "b", "c"]
    made.target.files("c", True)[1].unlink()
    writing.convert(made.target, [made.case("c")], update=True)  # a deleted label map comes back, and the others stay
    assert made.loaded[4:] == ["c"] and len(verified(made.target.folder).training) == 3


@pytest.mark.parametrize("change", [
    {"names": {"s": "Stem", "g": "Gland_L"}}, {"ids": {"s": 2, "g": 1}}, {"settings": {"part": "some"}},
])  # fmt: skip
def test_other_settings_are_refused_and_the_data_set_stays(made, change):
    writing.convert(made.target, [made.case("a")], update=False)
    with pytest.raises(DatasetError, match=r"was begun with other settings \(organs .*part all\); give the same, remove it, or"):
        writing.convert(replace(made.target, **change), [made.case("a")], update=True)
    assert len(verified(made.target.folder).training) == 1


def test_a_folder_that_no_converter_made_is_left_alone(made):
    made.target.folder.mkdir()
    (made.target.folder / "notes.txt").write_text("mine")
    with pytest.raises(DatasetError, match="was not made by a converter, so nothing is put there; remove it or give another -d"):
        writing.convert(made.target, [made.case("a")], update=True)
    assert [p.name for p in made.target.folder.iterdir()] == ["notes.txt"]


def test_two_cases_of_one_name_are_refused(made):
    with pytest.raises(DatasetError, match="a more than once in the source; remove one of each"):
        writing.convert(made.target, [made.case("a"), made.case("A")], update=False)
    assert not made.target.folder.exists()
