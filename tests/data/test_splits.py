"""Folds: equal to nnU-Net's, grouped by patient, written once."""
import json
import logging
import threading

import pytest

from c2f_nnunet.data.splits import Split, make_splits, read_splits, write_splits
from c2f_nnunet.errors import DatasetError, RecordError

# from scikit-learn 1.9.1: KFold(5, shuffle=True, random_state=12345).split(range(n))
EXPECTED = {
    60: [
        [6, 21, 22, 30, 32, 35, 42, 44, 45, 47, 50, 53],
        [2, 8, 12, 19, 20, 24, 25, 26, 39, 40, 43, 48],
        [0, 3, 4, 5, 15, 28, 31, 33, 46, 51, 52, 55],
        [7, 9, 10, 11, 13, 16, 17, 18, 23, 27, 38, 54],
        [1, 14, 29, 34, 36, 37, 41, 49, 56, 57, 58, 59],
    ],
    23: [  # 23 = 3 × 5 + 2 × 4: the first three folds hold one more
        [3, 8, 10, 17, 19],
        [0, 7, 12, 15, 16],
        [6, 11, 14, 18, 20],
        [9, 13, 21, 22],
        [1, 2, 4, 5],
    ],
}


def case(i):
    return f"case_{i:02d}"


@pytest.mark.parametrize("n", EXPECTED)
def test_split_is_nnunets(n):
    ids = [case(i) for i in range(n)]
    splits = make_splits(reversed(ids), {})  # the order of the ids given does not matter
    assert [list(s.val) for s in splits] == [[case(i) for i in fold] for fold in EXPECTED[n]]
    for s in splits:
        assert list(s.train) == [c for c in ids if c not in s.val]


def test_cases_follow_their_patient():
    # 23 patients in the order of EXPECTED[23]; patients 3 and 9 have a second scan, listed under ids that sort elsewhere
    patients = {case(i): f"p{i:02d}" for i in range(23)} | {"a_second": "p03", "z_second": "p09"}
    splits = make_splits(patients, patients)
    assert splits[0].val == ("a_second", "case_03", "case_08", "case_10", "case_17", "case_19")
    assert splits[3].val == ("case_09", "case_13", "case_21", "case_22", "z_second")
    for s in splits:
        assert not {patients[c] for c in s.train} & {patients[c] for c in s.val}
        assert len(s.train) + len(s.val) == 25


def test_case_without_patient_stands_alone():
    splits = make_splits("abcdef", {"a": "one", "b": "one"})
    assert sorted(c for s in splits for c in s.val) == list("abcdef")
    assert [s for s in splits if {"a", "b"} <= set(s.val)] and len(splits) == 5


def test_too_few_cases_or_patients():
    with pytest.raises(DatasetError, match="4 training cases are too few for 5 folds; add cases"):
        make_splits("abcd", {})
    with pytest.raises(DatasetError, match=r"2 patients \(in 6 training cases\) are too few for 5 folds"):
        make_splits("abcdef", dict(zip("abcdef", "xxxyyy")))


def test_first_writer_wins(tmp_path):
    path, ids = tmp_path / "model" / "splits_final.json", [case(i) for i in range(10)]
    mine = write_splits(path, make_splits(ids))
    before = path.read_bytes()
    later = write_splits(path, make_splits(ids, seed=1))
    assert later == mine and path.read_bytes() == before
    assert json.loads(before)[0] == {"train": list(mine[0].train), "val": list(mine[0].val)}
    assert [p.name for p in path.parent.iterdir()] == ["splits_final.json"]  # no temporary file is left


def test_racing_writers_read_one_split(tmp_path):
    path, ids, barrier, results = tmp_path / "splits_final.json", [case(i) for i in range(10)], threading.Barrier(2), []

    def run(seed):
        barrier.wait()
        results.append(write_splits(path, make_splits(ids, seed=seed)))

    for _ in range(20):
        path.unlink(missing_ok=True)
        results.clear()
        threads = [threading.Thread(target=run, args=(seed,)) for seed in (1, 2)]
        [t.start() for t in threads], [t.join() for t in threads]
        assert len(results) == 2 and results[0] == results[1] == read_splits(path, ids)


def test_users_own_file_with_other_folds(tmp_path, caplog):
    path = tmp_path / "splits_final.json"
    path.write_text('[{"train": ["a", "b"], "val": ["c"]}]')
    with caplog.at_level(logging.WARNING):
        assert read_splits(path, "abcd") == (Split(("a", "b"), ("c",)),)
    assert "1 of 4 training cases are in no fold and will not be used: d" in caplog.text


@pytest.mark.parametrize(
    "text, message, error",
    [
        ("[]", "holds no folds", DatasetError),
        ('{"train": []}', "holds no folds", DatasetError),
        ('[{"train": ["a"], "val": ["b"]}, {"train": ["a", "b"], "val": ["b"]}]', "fold 1: b is in both train and val", DatasetError),
        ('[{"train": ["a"], "val": ["x"]}]', "fold 0: x is not a training case", DatasetError),
        ('[{"train": ["a", "a"], "val": ["b"]}]', r"'train' names a case twice \(a\)", DatasetError),
        ('[{"train": ["a"], "val": []}]', "'val' is empty", DatasetError),
        ('[{"train": ["a"], "test": ["b"]}]', "fold 0: not a valid Split: .*val", RecordError),
        ('[{"train": "ab", "val": ["c"]}]', "fold 0: not a valid Split: train", RecordError),
        ("[", "cannot be read as JSON", RecordError),
    ],
)
def test_bad_files(tmp_path, text, message, error):
    path = tmp_path / "splits_final.json"
    path.write_text(text)
    with pytest.raises(error, match=message):
        read_splits(path, "abc")
