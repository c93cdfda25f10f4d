"""Frozen dataclasses to JSON and back, and the sentences about files that do not fit."""
import json

import numpy as np
import pytest

from c2f_nnunet.errors import RecordError
from c2f_nnunet.io import records
from c2f_nnunet.io.records import record


@record
class Inner:
    name: str
    size: tuple[int, int, int]


@record
class Outer:
    inner: Inner
    others: dict[str, Inner]
    shares: tuple[float, ...] = ()
    note: str | None = None


OUTER = Outer(Inner("Parotid ß", (1, 2, 3)), {"a": Inner("A", (4, 5, 6)), "b": Inner("B", (7, 8, 9))}, (0.5, 1e-9), None)


def test_a_nested_record_comes_back_equal(tmp_path):
    records.write(tmp_path / "outer.json", OUTER)
    assert records.read(Outer, tmp_path / "outer.json") == OUTER


def test_the_file_is_readable(tmp_path):
    records.write(tmp_path / "inner.json", Inner("Parotid ß", (1, 2, 3)))
    assert (tmp_path / "inner.json").read_text(encoding="utf-8") == '{\n "name": "Parotid ß",\n "size": [1, 2, 3]\n}\n'


def test_a_record_is_frozen():
    with pytest.raises(AttributeError):
        OUTER.note = "changed"


def test_nan_becomes_null(tmp_path):
    records.write(tmp_path / "x.json", {"mean": float("nan"), "all": [np.float32("inf"), np.float64(0.5), np.int64(3)], "none": None})
    assert json.loads((tmp_path / "x.json").read_text()) == {"mean": None, "all": [None, 0.5, 3], "none": None}


@pytest.mark.parametrize("change, told", [
    ({"colour": 1}, r"colour: Unexpected keyword argument \(got 1\)"),
    ({"name": 3}, r"name: Input should be a valid string \(got 3\)"),
    ({"size": [1, 2]}, r"size\.2: Field required"),
    ({"size": [1, 2, "x"]}, r"size\.2: Input should be a valid integer.* \(got x\)"),
    ({"size": [1, 2, 3.5]}, r"size\.2: Input should be a valid integer.* \(got 3\.5\)"),
    ({"size": None}, r"size: Input should be a valid tuple \(got None\)"),
])  # fmt: skip
def test_an_entry_that_does_not_fit_is_named_with_its_file(tmp_path, change, told):
    path = tmp_path / "inner.json"
    records.write(path, {"name": "A", "size": [1, 2, 3]} | change)
    with pytest.raises(RecordError, match=rf"inner\.json: not a valid Inner: {told}.*; mend these entries or make the file again"):
        records.read(Inner, path)


def test_all_wrong_entries_are_told_at_once_with_their_places():
    wrong = {"inner": {"name": "A", "size": [1, 2, 3], "extra": 0}, "others": {"b": {"name": 1, "size": [7, 8, 9]}}, "shares": "no"}
    with pytest.raises(RecordError) as told:
        records.from_json(Outer, wrong, "plan.json")
    for place in ("inner.extra: ", "others.b.name: ", "shares: "):
        assert place in str(told.value)


def test_a_missing_key():
    with pytest.raises(RecordError, match="plan.json: not a valid Inner: size: Field required"):
        records.from_json(Inner, {"name": "A"}, "plan.json")


@pytest.mark.parametrize("content", ["", "{", '{"name": "A"', "[" * 100_000, "\ufeff{}"])
def test_what_is_no_json(tmp_path, content):
    (tmp_path / "x.json").write_text(content, encoding="utf-8")
    with pytest.raises(RecordError, match=r"x\.json: cannot be read as JSON \(.*\); restore or make it again"):
        records.read(Inner, tmp_path / "x.json")


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "x.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecordError, match=r"x\.json: cannot be read as JSON"):
        records.read(Inner, tmp_path / "x.json")


def test_a_missing_file(tmp_path):
    with pytest.raises(RecordError, match=r"none\.json: no such file; check the path"):
        records.read(Inner, tmp_path / "none.json")


@pytest.mark.parametrize("value", ["text", [1, 2], None, 3])
def test_json_that_is_no_object(value):
    with pytest.raises(RecordError, match="plan.json: not a valid Inner: the file: "):
        records.from_json(Inner, value, "plan.json")
