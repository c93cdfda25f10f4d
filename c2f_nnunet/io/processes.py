"""The same work on many cases, in worker processes, in the cases' order."""
from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Callable, Iterator, Sequence, TypeVar

from ..errors import C2FError

log = logging.getLogger(__name__)
Item, Result = TypeVar("Item"), TypeVar("Result")
PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


def each(work: Callable[[Item], Result], items: Sequence[Item], processes: int, name: Callable[[Item], str] = str) -> Iterator[Result]:
    """work(item) for every item, in order; with one process here, else in that many spawned ones.

    `work` must be a function at a module's top level, or a partial of one. Where a worker dies (killed for memory, or a
    crash in a library), the items not done are done one at a time: a second death then tells which item it is, and
    becomes a C2FError with name(item); without one the work is completed.
    """
    if processes <= 1 or len(items) <= 1:
        yield from map(work, items)
        return
    done, workers = 0, pool(min(processes, len(items)))
    try:
        for future in [workers.submit(work, item) for item in items]:
            yield future.result()
            done += 1
        return
    except BrokenProcessPool:
        log.warning("a worker process died (out of memory?); the %d items left are done one at a time", len(items) - done)
    finally:
        workers.shutdown(cancel_futures=True)
    with pool(1) as single:
        for item in items[done:]:
            try:
                result = single.submit(work, item).result()
            except BrokenProcessPool:
                raise C2FError(f"{name(item)}: the process working on it died; free memory, or export its files again") from None
            yield result


def pool(workers: int) -> ProcessPoolExecutor:
    """Worker processes that end with this one, however it ends.

    Spawned, not forked: a forked child inherits locks of threads that it does not have.
    """
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=end_with_parent, initargs=(os.getpid(),))


def end_with_parent(parent: int) -> None:
    """Have this process end when its parent, of this number, is gone: killed, perhaps before the process began.

    Otherwise a worker would wait for ever for its next item, or to hand over what it made.
    """
    if sys.platform == "linux":  # at once, also inside a library's long call: the same command, started again, must not meet it at work
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_outlive_not, args=(parent,), daemon=True).start()


def _outlive_not(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
