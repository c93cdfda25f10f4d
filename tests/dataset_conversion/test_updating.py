"""A data set brought up to date: what stays, what is made again, what goes."""
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from c2f_nnunet.errors import ImageError, SomeCasesFailed
from c2f_nnunet.io import durable, records
from c2f_nnunet.workspace import TEMPORARY_MARK
from tests.dataset_conversion.sources import GLAND, GRID, STEM, ct, known, label_of, load, mask, verified

updating, writing = load("parts.updating"), load("parts.writing")


def interrupt(*_):
    raise KeyboardInterrupt


def patients(made) -> dict[str, str]:
    """Case → patient, by the data set."""
    return verified(made.target.folder).patients


def test_cases_that_stay_follow_the_name_of_their_patient(made):
    writing.convert(made.target, [made.case("b", patient="b"), made.case("c")], update=False)
    assert patients(made) == {}
    writing.convert(made.target, [made.case("a", patient="a"), made.case("b", patient="a"), made.case("c")], update=True)
    assert patients(made) == {"a": "a", "b": "a", "c": "c"} and made.loaded == ["b", "c", "a"]  # b is not made again
    writing.convert(made.target, [made.case("b", patient="b"), made.case("c")], update=True)
    assert patients(made) == {"a": "b", "b": "b", "c": "c"}  # a is gone from the source, and stays with b


def test_an_interrupted_update_keeps_the_scans_of_a_patient_together(made, monkeypatch):
    cases = [made.case("a", patient="a"), made.case("b", patient="a"), made.case("c")]
    writing.convert(made.target, cases, update=False)
    write, written = records.write, []

    def until_the_first_record(path, value):
        if written:
            raise KeyboardInterrupt
        write(path, value)
        written.extend([path] if path.parent.name == "cases" else [])

    later = [made.case("b", patient="b"), made.case("c")]
    with monkeypatch.context() as patch:
        patch.setattr(records, "write", until_the_first_record)
        with pytest.raises(KeyboardInterrupt):
            writing.convert(made.target, later, update=True)
    assert [path.stem for path in written] == ["a"]
    writing.convert(made.target, later, update=True)
    assert patients(made) == {"a": "b", "b": "b", "c": "c"}


def test_files_that_the_user_added_stay(made, caplog):
    writing.convert(made.target, [made.case("a")], update=False)
    for part in ("Tr", "Ts"):
        writing.write_volume(made.target.folder / f"images{part}" / f"mine{part}_0000.nii.gz", ct(5), GRID)
        writing.write_volume(made.target.folder / f"labels{part}" / f"mine{part}.nii.gz", STEM, GRID)
    (made.target.folder / "labelsTr" / "notes.txt").write_text("mine")
    writing.convert(made.target, [made.case("a"), made.case("b")], update=True)
    dataset = verified(made.target.folder)
    assert [c.id for c in dataset.training] == ["a", "b", "mineTr"] and [c.id for c in dataset.test] == ["mineTs"]
    assert (made.target.folder / "labelsTr" / "notes.txt").exists() and dataset.test[0].label.exists()
    assert "numTraining" not in caplog.text


def test_a_case_that_became_a_test_case_is_no_training_case_any_more(made):
    writing.convert(made.target, [made.case("a"), made.case("b")], update=False)
    writing.convert(made.target, [made.case("a"), made.case("b", training=False)], update=True)
    assert sorted(p.name for p in made.target.folder.glob("*T*/*")) == ["a.nii.gz", "a_0000.nii.gz", "b.nii.gz", "b_0000.nii.gz"]
    assert [c.id for c in verified(made.target.folder).test] == ["b"]


def test_unfinished_files_of_a_kill_are_neither_read_nor_kept(made):
    writing.convert(made.target, [made.case("a")], update=False)
    for path in (made.target.folder / "dataset.json", made.target.record("a"), *made.target.files("a", True)):  # of a process that is gone
        path.with_name(f"{TEMPORARY_MARK}{2**22 + 1}-{durable.HOST}-1-{path.name}").write_bytes(path.read_bytes()[:40])
    writing.convert(made.target, [made.case("a")], update=True)
    assert [c.id for c in verified(made.target.folder).training] == ["a"] and not list(made.target.folder.rglob(f"{TEMPORARY_MARK}*"))


@pytest.mark.parametrize("interrupted", [False, True])
def test_an_organ_that_no_training_case_has_leaves_the_test_cases_until_one_has_it(made, monkeypatch, interrupted):
    """The only training case with the gland is damaged at first."""
    folder, damaged = made.target.folder, made.case("b", error=ImageError("b is damaged"))
    cases = [made.case("a", organs="s"), made.case("t", training=False), made.case("u", training=False, organs="s")]
    if interrupted:  # between the record and the label map
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(updating, "write_volume", interrupt)
            writing.convert(made.target, [*cases, damaged], update=False)
    with pytest.raises(SomeCasesFailed):
        writing.convert(made.target, [*cases, damaged], update=False)
    assert verified(folder).labels.organs == ("Stem",) and known(verified(folder)) == {"a": None, "t": None, "u": None}
    np.testing.assert_array_equal(label_of(folder, "t", "Ts"), np.where(GLAND, 0, STEM))
    np.testing.assert_array_equal(label_of(folder, "u", "Ts"), STEM)
    made.loaded.clear()
    writing.convert(made.target, [*cases, made.case("b")], update=True)
    assert made.loaded == ["t", "b"]
    assert known(verified(folder)) == {"a": ("Stem",), "b": None, "t": None, "u": ("Stem",)}
    np.testing.assert_array_equal(label_of(folder, "t", "Ts"), np.where(GLAND, 2, STEM))


def test_a_renamed_case_is_there_once_and_keeps_what_was_changed_by_hand(made, caplog):
    caplog.set_level("INFO")
    writing.convert(made.target, [made.case("P01", organs="s"), made.case("P02")], update=False)
    path = made.target.folder / "dataset.json"
    records.write(path, records.read_json(path) | {"annotated": {"P02": ["Stem"]}, "patients": {"P02": "P01"}})  # P01's gland is absent
    writing.write_volume(made.target.files("P01", True)[1], mended := STEM - GLAND, GRID)
    later = [made.case("P01_CT", organs="s", file="P01"), made.case("P01_CT2"), made.case("P02")]
    for _ in range(2):
        writing.convert(made.target, later, update=True)
        assert known(verified(made.target.folder)) == {"P01_CT": None, "P01_CT2": None, "P02": ("Stem",)}
        assert patients(made) == {"P01_CT": "P01_CT", "P01_CT2": "P01_CT2", "P02": "P01_CT"}
        np.testing.assert_array_equal(label_of(made.target.folder, "P01_CT"), mended)
        assert not [path for path in made.target.folder.rglob("*") if path.name.split(".")[0] in ("P01", "P01_0000")]
    assert caplog.messages.count("P01 is P01_CT in the source now, and is called so here") == 1


def test_a_killed_update_still_knows_a_renamed_case(made, monkeypatch):
    writing.convert(made.target, [made.case("a")], update=False)
    mended = 2 * GLAND + mask((3, 5), (2, 6), (2, 8))
    writing.write_volume(made.target.files("a", True)[1], mended, GRID)
    unlink = Path.unlink
    for name in ("a_0000.nii.gz", "a.json"):
        def until(path, *args, **kwargs):
            if path.name == name:
                raise KeyboardInterrupt
            unlink(path, *args, **kwargs)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Path, "unlink", until)
            writing.convert(made.target, [made.case("b", file="a")], update=True)
        assert made.target.record("a").exists()
    writing.convert(made.target, [made.case("b", file="a")], update=True)
    assert known(verified(made.target.folder)) == {"b": None} and not list(made.target.folder.rglob("a*.*"))
    np.testing.assert_array_equal(label_of(made.target.folder, "b"), mended)
    assert made.loaded == ["a", "b"]


def test_another_scan_in_files_of_one_name_size_and_time_is_no_renamed_case(made, caplog):
    """Times may be those of an archive, which gives all files one."""
    writing.convert(made.target, [made.case("a", file="scan")], update=False)
    other = replace(made.case("b", file="scan"), load=made.case("b").load)
    writing.convert(made.target, [other], update=True)
    assert known(verified(made.target.folder)) == {"a": None, "b": None} and "a: no longer in the source" in caplog.text


def test_cases_that_the_source_has_no_more_stay_and_are_named(made, caplog):
    writing.convert(made.target, [made.case("a"), made.case("b"), made.case("t", training=False)], update=False)
    writing.convert(made.target, [made.case("a")], update=True)
    assert sorted(known(verified(made.target.folder))) == ["a", "b", "t"]
    assert ("b, t: no longer in the source, but kept in the data set; if that is not meant, remove the images, the label maps and "
            "conversion/cases/CASE.json, and run this again with --update") in caplog.messages
    for path in (*made.target.files("b", True), made.target.record("b")):  # what the warning says
        path.unlink()
    writing.convert(made.target, [made.case("a")], update=True)
    assert sorted(known(verified(made.target.folder))) == ["a", "t"]
