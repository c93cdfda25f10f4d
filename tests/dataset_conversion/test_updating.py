"""A data set brought up to date: what stays, what is made again, what goes."""
import pytest

from c2f_nnunet.io import records
from tests.dataset_conversion.sources import load, verified

writing = load("parts.writing")


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
