"""Where things lie, which data set is meant, and the locks."""
import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from c2f_nnunet.errors import WorkspaceError
from c2f_nnunet.workspace import TEMPORARY_MARK, Workspace, lock, lock_in_turn, require_place, require_writable

VARIABLES = ("C2F_RAW", "C2F_PREPROCESSED", "C2F_RESULTS", "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    for name in ("Dataset015_HeadNeck", "Dataset016_Partial", "Dataset117_Other", "not_a_dataset"):
        (tmp_path / "raw" / name).mkdir(parents=True)
    return Workspace.find(tmp_path)


def plan_made(workspace: Workspace, dataset: str, *plans: str) -> None:
    for plan in plans:
        (workspace.results / dataset / plan).mkdir(parents=True)
        (workspace.results / dataset / plan / "plan.json").write_text("{}")


def test_a_named_folder_holds_all_three(tmp_path, monkeypatch):
    monkeypatch.setenv("C2F_RAW", "/elsewhere")  # the option beats the variables
    assert Workspace.find(tmp_path) == Workspace(tmp_path / "raw", tmp_path / "preprocessed", tmp_path / "results")


def test_the_variables(monkeypatch):
    monkeypatch.setenv("C2F_RAW", "/a/raw")
    monkeypatch.setenv("nnUNet_raw", "/n/nnUNet_raw")
    monkeypatch.setenv("C2F_RESULTS", "/b/res")
    assert Workspace.find() == Workspace(Path("/a/raw"), Path("/a/c2f_preprocessed"), Path("/b/res"))


def test_nnunets_folders_are_read_but_not_written(monkeypatch):
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", f"/n/nnUNet_{name}")
    assert Workspace.find() == Workspace(Path("/n/nnUNet_raw"), Path("/n/c2f_preprocessed"), Path("/n/c2f_results"))


@pytest.mark.parametrize("name", ["C2F_RESULTS", "C2F_PREPROCESSED"])
def test_what_is_not_named_lies_beside_what_is(monkeypatch, name):
    """c2f_predict and c2f_import_model need no raw data set."""
    monkeypatch.setenv(name, "/models/here")
    found = Workspace.find()
    assert (found.results if name == "C2F_RESULTS" else found.preprocessed) == Path("/models/here")
    assert found.raw == Path("/models/c2f_raw") and {found.preprocessed, found.results} <= {
        Path("/models/here"), Path("/models/c2f_preprocessed"), Path("/models/c2f_results"),
    }  # fmt: skip


def test_nothing_named():
    with pytest.raises(WorkspaceError, match="no folders named: set C2F_RAW, C2F_PREPROCESSED and C2F_RESULTS, or give --workspace DIR"):
        Workspace.find()


@pytest.mark.parametrize("wanted", ["15", "015", "Dataset015_HeadNeck"])
def test_forms_of_d(workspace, wanted):
    assert workspace.dataset_name(wanted) == "Dataset015_HeadNeck"


@pytest.mark.parametrize("wanted", ["5", "115", "HeadNeck", "Dataset015", "Dataset015_headneck", "", "²"])
def test_an_unknown_data_set_lists_what_there_is(workspace, wanted):
    listed = "Dataset015_HeadNeck, Dataset016_Partial, Dataset117_Other$"
    with pytest.raises(WorkspaceError, match=f"raw: no data set '{wanted}' there; it holds: {listed}"):
        workspace.dataset_name(wanted)


def test_no_d_means_the_only_one(workspace, tmp_path):
    with pytest.raises(WorkspaceError, match="which data set[?] give -d with one of: Dataset015_HeadNeck, Dataset016_Partial"):
        workspace.dataset_name(None)
    (tmp_path / "one" / "Dataset001_Only").mkdir(parents=True)
    assert workspace.dataset_name(None, tmp_path / "one") == "Dataset001_Only"
    with pytest.raises(WorkspaceError, match="give -d with one of: none"):
        workspace.dataset_name(None, tmp_path / "missing")


def test_an_id_used_twice(workspace):
    (workspace.raw / "Dataset015_Again").mkdir()
    with pytest.raises(WorkspaceError, match="data set id 15 is used by Dataset015_Again, Dataset015_HeadNeck; give -d the whole name"):
        workspace.dataset_name("15")
    assert workspace.dataset_name("Dataset015_Again") == "Dataset015_Again"


def test_the_model_of_a_data_set(workspace):
    name = "Dataset015_HeadNeck"
    plan_made(workspace, name, "mine")
    assert workspace.model("15", None).root == workspace.results / name / "mine"  # the only one
    plan_made(workspace, name, "paper_han")
    with pytest.raises(WorkspaceError, match="which plan[?] give -pl with one of: mine, paper_han"):
        workspace.model("15", None)
    plan_made(workspace, name, "auto")
    assert workspace.model("15", None).root.name == "auto"  # the default, where it was made
    assert workspace.model("15", "mine").run("2d_top", 3).root == workspace.results / name / "mine" / "2d_top" / "fold_3"
    with pytest.raises(WorkspaceError, match="no plan.json there; run c2f_plan_and_preprocess -d Dataset015_HeadNeck -pl theirs first"):
        workspace.model("15", "theirs")


def test_no_d_means_the_only_planned_one(workspace):
    with pytest.raises(WorkspaceError, match="results: nothing is planned there; run c2f_plan_and_preprocess first"):
        workspace.model(None, None)
    (workspace.results / "Dataset016_Partial").mkdir(parents=True)  # without a plan
    plan_made(workspace, "Dataset015_HeadNeck", "auto")
    assert workspace.model(None, None).root == workspace.results / "Dataset015_HeadNeck" / "auto"
    plan_made(workspace, "Dataset117_Other", "auto")
    with pytest.raises(WorkspaceError, match="which data set[?] give -d with one of: Dataset015_HeadNeck, Dataset117_Other$"):
        workspace.model(None, None)
    with pytest.raises(WorkspaceError, match="Dataset016_Partial/auto: no plan.json there; run c2f_plan_and_preprocess"):
        workspace.model("16", "auto")


def test_an_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WorkspaceError, match=r"file/below: cannot be written \(Not a directory\); choose another folder"):
        require_writable(tmp_path / "file" / "below")


def test_a_kill_leaves_no_probe(tmp_path, monkeypatch):
    """Or, where the system cannot make a file without a name, one that the next command knows as left over."""
    def killed(*args, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.unlink", killed)
    with suppress(KeyboardInterrupt):
        require_writable(tmp_path)
    assert all(path.name.startswith(TEMPORARY_MARK) for path in tmp_path.iterdir())


def test_a_place_for_a_folder_is_proved_without_making_it(tmp_path):
    require_place(tmp_path / "a" / "b")
    require_place(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WorkspaceError, match=r"file: cannot be written \(File exists\); choose another folder"):
        require_place(tmp_path / "file" / "below")


def test_a_second_holder_is_told_who_holds_it(tmp_path):
    with lock(tmp_path, "training of 2d_top fold 0"):
        told = rf"training of 2d_top fold 0 is already running on {socket.gethostname()} \(pid {os.getpid()}\); wait for it or stop it"
        with pytest.raises(WorkspaceError, match=told):
            with lock(tmp_path, "another"):
                pass
    with lock(tmp_path, "later"):  # released, and the refused one did not remove it before
        assert json.loads((tmp_path / ".lock").read_text())["what"] == "later"
    assert not (tmp_path / ".lock").exists()


def test_the_lock_is_released_when_the_work_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), lock(tmp_path, "work"):
        1 / 0
    assert not (tmp_path / ".lock").exists()


def test_a_living_process_keeps_its_lock(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        (tmp_path / ".lock").write_text(json.dumps({"host": socket.gethostname(), "pid": other.pid, "what": "work"}))
        with pytest.raises(WorkspaceError, match=rf"pid {other.pid}"), lock(tmp_path, "work"):
            pass
        other.stdin.close()
    with lock(tmp_path, "work"):  # its owner is dead now: taken over
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("pid", [os.getpid(), os.getppid()])
def test_a_number_that_a_later_process_has_holds_no_lock(tmp_path, pid):
    """A container that is started again has the same name, and its command the number 1 again."""
    owner = {"host": socket.gethostname(), "pid": pid, "what": "work"}
    (tmp_path / ".lock").write_text(json.dumps({**owner, "started": "1"}))
    with lock(tmp_path, "work"):
        kept = json.loads((tmp_path / ".lock").read_text())
    assert kept["pid"] == os.getpid() and kept["started"].isdecimal()
    (tmp_path / ".lock").write_text(json.dumps(owner))  # of an older version
    with pytest.raises(WorkspaceError, match=f"pid {pid}"), lock(tmp_path, "work"):
        pass


def test_a_lock_of_another_machine_is_left_alone(tmp_path):
    (tmp_path / ".lock").write_text(json.dumps({"host": "elsewhere", "pid": 1, "what": "work"}))
    with pytest.raises(WorkspaceError, match=r"work is already running on elsewhere \(pid 1\).*remove .*\.lock if it is gone"):
        with lock(tmp_path, "work"):
            pass


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x"}'])
def test_an_unfinished_lock_is_taken_over(tmp_path, content):
    (tmp_path / ".lock").write_text(content)
    with lock(tmp_path, "work"):
        pass


def test_of_many_that_find_a_dead_lock_one_gets_it(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()

    def take(folder: Path) -> bool:
        try:
            context = lock(folder, "work")
            context.__enter__()  # and never leaves it
        except WorkspaceError:
            return False
        held.append(context)
        return True

    for attempt in range(20):
        folder, held = tmp_path / str(attempt), []
        folder.mkdir()
        (folder / ".lock").write_text(json.dumps({"host": socket.gethostname(), "pid": dead.pid, "what": "work"}))
        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(take, [folder] * 8)) == 1
        for context in held:
            context.__exit__(None, None, None)


def test_a_turn_is_waited_for(tmp_path):
    told, first = [], lock(tmp_path, "the first")
    first.__enter__()

    def wait(who: str) -> None:
        told.append(who)
        if len(told) == 2:
            first.__exit__(None, None, None)

    with lock_in_turn(tmp_path, "the second", wait):
        assert json.loads((tmp_path / ".lock").read_text())["what"] == "the second"
    assert len(told) == 2 and f"the first is already running on {socket.gethostname()} (pid {os.getpid()})" in told[0]
    assert not (tmp_path / ".lock").exists()


def test_what_cannot_be_locked_is_not_waited_for(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WorkspaceError, match="cannot be written"), lock_in_turn(tmp_path / "file", "work", lambda who: pytest.fail(who)):
        pass
