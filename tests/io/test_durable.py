"""Durable writes: whole or not at all, and once where asked."""
import errno
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from c2f_nnunet.errors import WorkspaceError
from c2f_nnunet.io import durable


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_write_replaces_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "new" / "a.json"
    durable.write_text(path, "one")
    durable.write_text(path, "zwölf")
    assert path.read_text(encoding="utf-8") == "zwölf" and names(path.parent) == ["a.json"]


def test_failed_check_keeps_what_was_there(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def damaged(temporary):
        raise WorkspaceError("reads back differently")

    with pytest.raises(WorkspaceError, match="reads back differently"):
        durable.write_with(path, lambda temporary: temporary.write_bytes(b"new"), damaged)
    assert path.read_bytes() == b"old" and names(tmp_path) == ["a.bin"]


def test_write_once_keeps_the_first(tmp_path):
    path = tmp_path / "a.json"
    assert durable.write_once(path, b"first") is True
    assert durable.write_once(path, b"second") is False
    assert path.read_bytes() == b"first" and names(tmp_path) == ["a.json"]


def test_write_once_where_files_cannot_be_linked(tmp_path, monkeypatch):
    def no_links(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    path = tmp_path / "a.json"
    assert durable.write_once(path, b"first") is True
    assert durable.write_once(path, b"second") is False
    assert path.read_bytes() == b"first" and names(tmp_path) == ["a.json"]


def test_leftovers_of_the_dead_are_removed(tmp_path):
    dead, alive = (f"{durable.TEMPORARY_MARK}{pid}-{durable.HOST}-1-a.json" for pid in (4194999, os.getppid()))
    for name in (dead, alive, "a.json"):
        (tmp_path / name).touch()
    assert [p.name for p in durable.remove_leftovers(tmp_path)] == [dead]
    assert names(tmp_path) == sorted([alive, "a.json"])


def test_what_another_machine_is_writing_stays_for_a_day(tmp_path):
    """On a shared disk a process number says nothing of another machine's processes."""
    fresh, old = (tmp_path / f"{durable.TEMPORARY_MARK}4194999-0123abcd-{name}" for name in ("1-a.json", "1-b.json"))
    for path in (fresh, old):
        path.touch()
    os.utime(old, (1.0, 1.0))
    assert durable.remove_leftovers(tmp_path) == [old] and names(tmp_path) == [fresh.name]


def test_the_living_are_known_where_there_is_no_proc(tmp_path, monkeypatch):
    """As on macOS, where a second prediction into one folder would have removed what the first was writing."""
    monkeypatch.setattr(os.path, "exists", lambda path: False)
    alive, dead = (tmp_path / f"{durable.TEMPORARY_MARK}{pid}-{durable.HOST}-1-a.json" for pid in (os.getppid(), 4194999))
    assert not durable.is_abandoned(alive, durable.TEMPORARY_MARK) and durable.is_abandoned(dead, durable.TEMPORARY_MARK)


@pytest.fixture
def target(tmp_path):
    """A file that exists already, in a folder of its own."""
    path = tmp_path / "folder" / "map.nii.gz"
    durable.write_text(path, "old")
    return path


def test_the_temporary_keeps_the_endings_and_the_folder(target):
    seen = []
    durable.write_with(target, lambda temporary: (seen.append(temporary), temporary.write_text("new")))
    assert seen[0] != target and seen[0].parent == target.parent and seen[0].name.endswith("-map.nii.gz")
    assert seen[0].name.startswith(f"{durable.TEMPORARY_MARK}{os.getpid()}-{durable.HOST}-")


def test_a_full_disk_leaves_the_old_file(target):
    def write(temporary):
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(WorkspaceError, match=r"map.nii.gz: could not be written \(No space left on device\); free some space"):
        durable.write_with(target, write)
    assert target.read_text() == "old" and names(target.parent) == ["map.nii.gz"]


def test_any_other_failure_leaves_the_old_file(target):
    with pytest.raises(ZeroDivisionError):
        durable.write_with(target, lambda temporary: temporary.write_text(str(1 / 0)))
    assert target.read_text() == "old" and names(target.parent) == ["map.nii.gz"]


def test_a_disk_that_gives_back_something_else_is_noticed(target, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda handle: os.ftruncate(handle, 2))  # what a failing disk may do
    with pytest.raises(WorkspaceError, match="reads back differently from what was written"):
        durable.write_bytes(target, b"new")
    assert target.read_text() == "old"


def test_a_folder_that_cannot_be_made(target):
    with pytest.raises(WorkspaceError, match=r"map.nii.gz/below.json: could not be written \("):
        durable.write_text(target / "below.json", "")


def test_of_writers_that_race_one_wins(tmp_path):
    for attempt in range(20):
        path = tmp_path / str(attempt) / "splits.json"
        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(lambda k: durable.write_once(path, bytes([k]) * 1000), range(8)))
        assert won.count(True) == 1
        assert path.read_bytes() == bytes([won.index(True)]) * 1000
        assert names(path.parent) == ["splits.json"]


def test_sha256_of_abc(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")  # the standard's own example (FIPS 180-4)
    assert durable.sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
