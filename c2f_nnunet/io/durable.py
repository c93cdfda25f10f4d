"""Durable writes: a temporary file in the same folder, fsync, read back, rename, fsync the folder."""
from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Callable

from ..errors import WorkspaceError
from ..workspace import TEMPORARY_MARK, is_alive

HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
ABANDONED_S = 24 * 3600.0  # another machine's processes cannot be asked for: what they have not touched for a day is left over


def write_with(
    path: Path, write: Callable[[Path], None], check: Callable[[Path], None] | None = None, place: Callable = os.replace
) -> None:
    """Let `write(temporary)` make the file, `check(temporary)` read it back (raising if it is wrong), then rename it to `path`.

    The temporary name keeps the path's endings, since image writers choose a format by them. On any failure the
    temporary is removed and whatever stood at `path` before stands there still.
    """
    temporary = path.with_name(f"{TEMPORARY_MARK}{owner()}-{threading.get_ident()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with open(temporary, "rb+") as f:
            os.fsync(f.fileno())
        if check:
            check(temporary)
        place(temporary, path)
        sync_folder(path.parent)
    except OSError as e:
        raise WorkspaceError(f"{path}: could not be written ({e.strerror or e}); free some space or choose another folder") from e
    finally:
        with suppress(OSError):  # what cannot be removed must not hide why the write failed
            temporary.unlink()


def write_bytes(path: Path, content: bytes, place: Callable = os.replace) -> None:
    """Write content durably and compare what the disk gives back with it."""

    def check(temporary: Path) -> None:
        if temporary.read_bytes() != content:
            raise WorkspaceError(f"{path}: reads back differently from what was written; the disk may be full or failing")

    write_with(path, lambda temporary: temporary.write_bytes(content), check, place)


def write_once(path: Path, content: bytes) -> bool:
    """Write the file durably unless it exists; of processes that race for it exactly one writes (True), and none sees half a file."""
    won = True

    def place(temporary: Path, path: Path) -> None:
        nonlocal won
        try:
            os.link(temporary, path)  # unlike a rename, a link never replaces what another process put there
        except FileExistsError:
            won = False
        except OSError:  # a file system without hard links: the file is still whole, but two racing processes may both win
            won = not path.exists()
            if won:
                os.replace(temporary, path)

    write_bytes(path, content, place)
    return won


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def sync_folder(folder: Path) -> None:
    """Make a rename in the folder survive a power cut (where the system allows syncing a folder)."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove temporary files that a killed process left in the folder; those of living processes stay."""
    removed = []
    for path in folder.glob(f"{TEMPORARY_MARK}*") if folder.is_dir() else []:
        if is_abandoned(path, TEMPORARY_MARK):
            path.unlink(missing_ok=True)
            removed.append(path)
    return removed


def owner() -> str:
    """How this process marks what it has not finished, in its name: its number and its machine."""
    return f"{os.getpid()}-{HOST}"


def is_abandoned(path: Path, mark: str) -> bool:
    """Whether nobody will finish what lies at `path`, whose name is `mark`, an `owner()` and more.

    Its process is gone; of another machine's process on a shared disk that is said after a day without a change.
    """
    pid, _, rest = path.name.removeprefix(mark).partition("-")
    if rest.startswith(HOST):
        return not pid.isdecimal() or int(pid) == os.getpid() or not is_alive(int(pid))
    try:
        return time.time() - path.stat().st_mtime > ABANDONED_S
    except OSError:  # its owner finished it just now
        return False


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
