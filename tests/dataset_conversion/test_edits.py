"""dataset.json changed by hand: what was changed of `annotated` and `patients` is there after an update, and after one that was killed."""
from pathlib import Path

import pytest

from c2f_nnunet.errors import DatasetError, ImageError, RecordError, SomeCasesFailed
from c2f_nnunet.io import durable, records
from tests.dataset_conversion.sources import GRID, STEM, ct, known, load, verified

writing = load("parts.writing")


@pytest.fixture
def source(made):
    """source() → four cases, of which b has no gland and d no stem, and in which a and c are scans of one patient."""
    return lambda: [made.case("a", patient="a"), made.case("b", organs="s"), made.case("c", patient="a"), made.case("d", organs="g")]


@pytest.fixture
def described(made):
    """described(**keys) → what dataset.json holds, after these keys were changed by hand."""

    def described(**keys):
        path = made.target.folder / "dataset.json"
        value = records.read_json(path) | keys
        if keys:
            records.write(path, value)
        return value

    return described


def test_what_was_changed_by_hand_stays_and_can_be_taken_back(made, source, described, caplog):
    caplog.set_level("INFO")
    writing.convert(made.target, source(), update=False)
    assert described()["annotated"] == {"b": ["Stem"], "d": ["Gland"]}
    assert described()["patients"] == {"a": "a", "b": "b", "c": "a", "d": "d"}
    # b's gland was taken by surgery, a's stem is drawn badly; b is another scan of a's patient
    mine = {"annotated": {"a": ["Gland"], "d": ["Gland"]}, "patients": {"a": "a", "b": "a", "c": "a", "d": "d"}}
    described(**mine)
    (made.target.folder.parent / "b.source").write_text("changed")
    for _ in range(2):
        writing.convert(made.target, [*source(), made.case("e", organs="s")], update=True)
        assert described()["annotated"] == mine["annotated"] | {"e": ["Stem"]}
        assert described()["patients"] == mine["patients"] | {"e": "e"}
    assert f"{made.target.folder / 'dataset.json'}: what was changed in it by hand is kept, of a, b" in caplog.messages
    described(annotated={"b": ["Stem"], "d": ["Gland"], "e": ["Stem"]}, patients={"a": "a", "c": "a"})
    caplog.clear()
    writing.convert(made.target, source(), update=True)
    assert described()["annotated"] == {"b": ["Stem"], "d": ["Gland"], "e": ["Stem"]} and "by hand" not in caplog.text
    assert described()["patients"]["b"] == "b"


def test_a_patient_named_by_hand_goes_where_its_other_scans_go(made, described):
    writing.convert(made.target, [made.case("b"), made.case("x")], update=False)
    described(patients={"x": "b"})
    writing.convert(made.target, [made.case("a", patient="a"), made.case("b", patient="a"), made.case("x")], update=True)
    assert verified(made.target.folder).patients == {"a": "a", "b": "a", "x": "a"}


def test_an_organ_that_is_drawn_later_is_known_beside_what_was_changed(made, described):
    """Only what was changed is kept, not the whole list."""
    writing.convert(made.target, [made.case("a"), made.case("t", training=False, organs="")], update=False)
    described(annotated={"t": ["Gland"]})
    (made.target.folder.parent / "t.source").write_text("the stem was drawn")
    writing.convert(made.target, [made.case("a"), made.case("t", training=False, organs="s")], update=True)
    assert known(verified(made.target.folder)) == {"a": None, "t": None}


def test_a_change_waits_for_an_organ_that_no_training_case_has_for_a_time(made, described):
    first, without = [made.case("a", organs="sg"), made.case("b", organs="s")], [made.case("a", organs="s"), made.case("b", organs="s")]
    writing.convert(made.target, first, update=False)
    described(annotated={})  # b has no gland
    for cases, organs in ((without, ("Stem",)), (without, ("Stem",)), (first, ("Stem", "Gland"))):
        (made.target.folder.parent / "a.source").write_text(f"{organs}")
        writing.convert(made.target, cases, update=True)
        dataset = verified(made.target.folder)
        assert dataset.labels.organs == organs and known(dataset) == {"a": None, "b": None}


def test_entries_of_cases_that_the_user_added_stay_while_these_are_there(made, source, described):
    writing.convert(made.target, source(), update=False)
    for name in ("mine", "mine2"):
        writing.write_volume(made.target.files(name, True)[0], ct(5), GRID)
        writing.write_volume(made.target.files(name, True)[1], STEM, GRID)
    described(annotated={**described()["annotated"], "mine": ["Stem"]}, patients={**described()["patients"], "mine": "x", "mine2": "x"})
    writing.convert(made.target, source(), update=True)
    dataset = verified(made.target.folder)
    assert known(dataset) == {"a": None, "b": ("Stem",), "c": None, "d": ("Gland",), "mine": ("Stem",), "mine2": None}
    assert dataset.patients == {"a": "a", "b": "b", "c": "a", "d": "d", "mine": "x", "mine2": "x"}
    for path in made.target.files("mine", True):
        path.unlink()
    writing.convert(made.target, source(), update=True)
    assert "mine" not in known(verified(made.target.folder))


def test_changes_of_a_case_that_fails_wait_for_it(made, source, described):
    writing.convert(made.target, source(), update=False)
    described(annotated={"d": ["Gland"]})
    (made.target.folder.parent / "b.source").write_text("damaged")
    with pytest.raises(SomeCasesFailed):
        writing.convert(made.target, [*source()[:1], made.case("b", error=ImageError("b is damaged")), *source()[2:]], update=True)
    writing.convert(made.target, source(), update=True)
    assert described()["annotated"] == {"d": ["Gland"]}


def test_changes_survive_a_kill_at_any_moment(made, source, described, monkeypatch):
    """An update is interrupted before its first write or removal, before its second, …, until one comes to its end."""
    mine = {"annotated": {"a": ["Gland"], "d": ["Gland"]}, "patients": {"a": "a", "b": "a", "c": "a", "d": "d"}}
    changes, n, ended = [], 0, False
    place, unlink = durable.write_with, Path.unlink

    def counted(change):
        def change_or_die(path, *args, **kwargs):
            changes.append(path)
            if len(changes) > n:
                raise KeyboardInterrupt
            change(path, *args, **kwargs)

        return change_or_die

    writing.convert(made.target, source(), update=False)
    while not ended:
        described(**mine)
        (made.target.folder / "conversion" / "edits.json").unlink(missing_ok=True)  # what the round before put there
        (made.target.folder.parent / "b.source").write_text(f"changed for the {n}. time")
        changes.clear()
        with monkeypatch.context() as patch:
            patch.setattr(durable, "write_with", counted(place))
            patch.setattr(Path, "unlink", counted(unlink))
            try:
                writing.convert(made.target, source(), update=True)
                ended = True
            except KeyboardInterrupt:
                pass
        (made.target.folder / ".lock").unlink(missing_ok=True)
        writing.convert(made.target, source(), update=True)
        assert {key: described()[key] for key in mine} == mine, f"after {n} changes"
        n += 1
    assert n > 10


@pytest.mark.parametrize("text, error, sentence", [
    ("{", RecordError, "cannot be read as JSON"),
    ("[]", RecordError, "not a valid Description"),
    ('{"labels": {"Stem": 1}, "annotated": {"a": "Stem"}}', RecordError, "annotated.a"),
    ('{"labels": {"Stem": 1}, "annotated": {"a": ["Stem", "Glnd"]}}', DatasetError,
     "dataset.json: 'annotated' names Glnd, which 'labels' does not; mend these entries"),
])  # fmt: skip
def test_what_cannot_be_understood_is_refused_and_left(made, text, error, sentence):
    writing.convert(made.target, [made.case("a")], update=False)
    (made.target.folder / "dataset.json").write_text(text)
    with pytest.raises(error, match=sentence):
        writing.convert(made.target, [made.case("a"), made.case("b")], update=True)
    assert (made.target.folder / "dataset.json").read_text() == text and made.loaded == ["a"]
