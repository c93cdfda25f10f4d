"""Every path the project reads or writes, the environment variables that name them, and the locks on them."""
from __future__ import annotations

import fcntl
import json
import os
import re
import socket
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Callable, Sequence

from .errors import Locked, WorkspaceError

TEMPORARY_MARK = ".tmp-c2f-"  # how the name of whatever is not finished begins
FOLDS = 5
VIEWS = ("2d_top", "2d_front", "2d_side")
_DATASET_FOLDER = re.compile(r"^Dataset(\d{3})_(.+)$")


@dataclass(frozen=True)
class Workspace:
    """The three roots; any of them may not exist yet."""

    raw: Path
    preprocessed: Path
    results: Path

    @classmethod
    def find(cls, folder: str | Path | None = None) -> "Workspace":
        """From --workspace, else C2F_RAW / C2F_PREPROCESSED / C2F_RESULTS, else nnU-Net's variables where set.

        What is not set lies beside the first that is, as c2f_raw, c2f_preprocessed and c2f_results: a machine that only
        predicts needs C2F_RESULTS alone, and nothing is ever put into nnU-Net's own folders.
        """
        if folder is not None:
            root = Path(folder).absolute()
            return cls(root / "raw", root / "preprocessed", root / "results")
        raw, preprocessed, results = (os.environ.get(name) for name in ("C2F_RAW", "C2F_PREPROCESSED", "C2F_RESULTS"))
        raw = raw or os.environ.get("nnUNet_raw")
        first = raw or preprocessed or results
        if not first:
            given = "set C2F_RAW, C2F_PREPROCESSED and C2F_RESULTS, or give --workspace DIR holding raw/ preprocessed/ results/"
            raise WorkspaceError(f"no folders named: {given}")
        beside = Path(first).absolute().parent
        places = (raw, "c2f_raw"), (preprocessed, "c2f_preprocessed"), (results, "c2f_results")
        return cls(*(Path(own or beside / name).absolute() for own, name in places))

    def datasets(self, root: Path) -> dict[str, Path]:
        """DatasetXXX_Name → folder, for the data sets under one of the three roots."""
        folders = sorted(root.iterdir()) if root.is_dir() else []
        return {f.name: f for f in folders if f.is_dir() and _DATASET_FOLDER.match(f.name)}

    def dataset_name(self, wanted: str | None, among: Path | None = None) -> str:
        """Dataset015_Name for '15', '015' or the name itself; None means the only one under `among` (default: raw).

        Raises WorkspaceError where there is none or, with None, more than one; the message lists what exists.
        """
        root = among or self.raw
        return _chosen(wanted, list(self.datasets(root)), root)

    def plans(self, dataset: str) -> list[str]:
        """Names of the plans made for a data set."""
        folder = self.results / dataset
        return sorted(f.parent.name for f in folder.glob("*/plan.json"))

    def model(self, dataset: str | None, plan: str | None) -> "ModelFolder":
        """The results folder of a data set's plan; None as the plan means 'auto', or else the only one made."""
        planned = [name for name in self.datasets(self.results) if self.plans(name)]
        if not planned:
            raise WorkspaceError(f"{self.results}: nothing is planned there; run c2f_plan_and_preprocess first, or check the path")
        dataset = _chosen(dataset, planned if dataset is None else list(self.datasets(self.results)), self.results)
        made = self.plans(dataset)
        wanted = plan or ("auto" if "auto" in made or not made else made[0] if len(made) == 1 else None)
        if wanted is None:
            raise WorkspaceError(f"{self.results / dataset}: which plan? give -pl with one of: {', '.join(made)}")
        if wanted not in made:
            remedy = f"run c2f_plan_and_preprocess -d {dataset} -pl {wanted} first"
            raise WorkspaceError(f"{self.results / dataset / wanted}: no plan.json there; {remedy}")
        return ModelFolder(self.results / dataset / wanted)


def _chosen(wanted: str | None, names: Sequence[str], root: Path) -> str:
    """Which of the data sets under `root` -d means; WorkspaceError as `Workspace.dataset_name`."""
    listed = ", ".join(names) or "none"
    if wanted is None:
        if len(names) == 1:
            return names[0]
        raise WorkspaceError(f"{root}: which data set? give -d with one of: {listed}")
    hits = [n for n in names if n == wanted or (wanted.isdecimal() and int(_DATASET_FOLDER.match(n)[1]) == int(wanted))]
    if len(hits) == 1:
        return hits[0]
    if hits:
        raise WorkspaceError(f"{root}: data set id {wanted} is used by {', '.join(hits)}; give -d the whole name")
    raise WorkspaceError(f"{root}: no data set '{wanted}' there; it holds: {listed}")


@dataclass(frozen=True)
class ModelFolder:
    """results/DatasetXXX_Name/PLAN: one plan and everything trained from it."""

    root: Path

    @property
    def plan(self) -> Path:
        return self.root / "plan.json"

    @property
    def dataset_json(self) -> Path:
        return self.root / "dataset.json"

    @property
    def fingerprint(self) -> Path:
        return self.root / "fingerprint.json"

    @property
    def splits(self) -> Path:
        return self.root / "splits_final.json"

    @property
    def fusion(self) -> Path:
        return self.root / "fusion.json"

    @property
    def crossval(self) -> Path:
        return self.root / "crossval"

    def run(self, member: str, fold: int) -> "RunFolder":
        return RunFolder(self.root / member / f"fold_{fold}")


@dataclass(frozen=True)
class RunFolder:
    """MODEL/MEMBER/fold_N: one training."""

    root: Path

    def checkpoint(self, which: str) -> Path:
        """The checkpoint's path without an ending: 'latest', 'best' or 'final'."""
        return self.root / f"checkpoint_{which}"

    @property
    def log(self) -> Path:
        return self.root / "log.jsonl"

    @property
    def progress(self) -> Path:
        return self.root / "progress.png"

    @property
    def settings(self) -> Path:
        return self.root / "settings.json"

    @property
    def held_out(self) -> Path:
        """Held-out predictions of this member, which the fusion is fitted on."""
        return self.root / "held_out"


@dataclass(frozen=True)
class StoreFolder:
    """preprocessed/DatasetXXX_Name/PLAN: the preprocessed volumes of one plan, one sub-folder per stage or member."""

    root: Path

    def volumes(self, name: str) -> Path:
        return self.root / name


def store_folder(workspace: Workspace, dataset: str, plan: str) -> StoreFolder:
    return StoreFolder(workspace.preprocessed / dataset / plan)


def require_writable(folder: Path) -> None:
    """Make the folder and prove that a file can be made in it; WorkspaceError otherwise."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(prefix=TEMPORARY_MARK, dir=folder):  # without a name where the system allows: no kill leaves it behind
            pass
    except OSError as e:
        raise WorkspaceError(f"{folder}: cannot be written ({e.strerror}); choose another folder or change its permissions") from e


def require_place(folder: Path) -> None:
    """Prove that a folder can be written, or where it is not there yet, made; nothing is made. WorkspaceError otherwise."""
    while not folder.exists():
        folder = folder.parent
    require_writable(folder)


def is_alive(pid: int) -> bool:
    """Whether a process of this machine is there."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _started(pid: int) -> str | None:
    """When a process began, which tells it from a later one of the same number (in a container most are 1); None where that is unknown."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return None


@contextmanager
def lock(folder: Path, what: str):
    """Hold `folder/.lock` while the body runs; a second holder gets a Locked naming host and pid.

    The lock is a file made with O_EXCL that holds host, pid and when that process began; one whose owner on this host is dead is
    taken over.
    """
    require_writable(folder)
    path, host = folder / ".lock", socket.gethostname()
    with _one_at_a_time(folder):
        require_unlocked(folder, what)
        path.unlink(missing_ok=True)
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            raise Locked(f"{path}: another process took the lock at the same moment; try again") from None
        with os.fdopen(handle, "w") as f:
            json.dump({"host": host, "pid": os.getpid(), "started": _started(os.getpid()), "what": what}, f)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def lock_in_turn(folder: Path, what: str, wait: Callable[[str], None]):
    """`lock`; while another holds it, wait(who that is) is called, to sleep or to raise, and it is tried again."""
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(lock(folder, what))
                break
            except Locked as e:
                wait(str(e))
        yield


def require_unlocked(folder: Path, what: str) -> None:
    """Locked, naming host and pid, where another process holds the folder's lock."""
    path = folder / ".lock"
    owner = _lock_owner(path)
    if owner and (owner.get("host") != socket.gethostname() or _holds(owner)):
        raise Locked(f"{folder}: {owner.get('what', what)} is already running on {owner.get('host')} (pid {owner['pid']}); "
                     f"wait for it or stop it, or remove {path} if it is gone")


def _holds(owner: dict) -> bool:
    """Whether the process of this machine that a lock names is still there."""
    began = owner.get("started"), _started(owner["pid"])
    return is_alive(owner["pid"]) and (None in began or began[0] == began[1])


def require_idle(root: Path) -> None:
    """Locked where a command is at work in this folder or one below it."""
    for path in sorted(root.glob("**/.lock")):
        require_unlocked(path.parent, "a command")


@contextmanager
def _one_at_a_time(folder: Path):
    """Let one process of this machine at a time look at a lock and take it.

    Without it, of two that find a dead owner's lock the slower would remove the lock which the faster has just made.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems cannot lock a folder; O_EXCL alone is left there
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _lock_owner(path: Path) -> dict | None:
    """What a lock file says of its owner; None where there is no lock, or one that nobody finished writing."""
    try:
        owner = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return owner if isinstance(owner, dict) and isinstance(owner.get("pid"), int) else None


def machine_memory_gb() -> float:
    """This machine's physical memory in GiB (the container's limit where one is set)."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
    return total / 2**30
