"""A data set brought up to date: what stays, what is made again, what goes."""
import numpy as np
import pytest

from c2f_nnunet.errors import ImageError, SomeCasesFailed
from c2f_nnunet.io import durable, records
from c2f_nnunet.workspace import TEMPORARY_MARK
from tests.dataset_conversion.sources import GLAND, GRID, STEM, ct, known, label_of, load, verified

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
