"""Work in several processes; expressions given to `eval` stand for the work, since spawned processes can import it."""
import logging
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from c2f_nnunet.errors import C2FError
from c2f_nnunet.io.processes import each

DIE = "__import__('os')._exit(9)"


@pytest.mark.parametrize("processes", [1, 2])
def test_results_are_in_order(processes):
    slow_first = ["__import__('time').sleep(0.3) or 'first'", "'second'", "1 + 2"]
    assert list(each(eval, slow_first, processes)) == ["first", "second", 3]
    assert list(each(eval, [], processes)) == []


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_of_the_work_comes_through(processes):
    with pytest.raises(ZeroDivisionError):
        list(each(eval, ["1", "1 / 0", "3"], processes))


def test_a_worker_that_dies_again_is_named():
    results = each(eval, ["1", "2", DIE, "4"], 2, name=lambda item: f"the item {item}")
    with pytest.raises(C2FError, match=r"the item __import__\('os'\)._exit\(9\): the process working on it died; free memory"):
        list(results)


def test_a_worker_killed_once_costs_nothing(tmp_path, caplog):
    once = f"2 if __import__('os').path.exists({str(tmp_path / 'seen')!r}) else (open({str(tmp_path / 'seen')!r}, 'w'), {DIE})"
    with caplog.at_level(logging.WARNING):
        assert list(each(eval, ["1", once, "3"], 2)) == [1, 2, 3]
    assert "a worker process died" in caplog.text


def runs(pid: int) -> bool:
    """Whether a process is there and not only its entry, which waits for a parent that does not ask."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] not in "ZX"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("busy", ["", "workers.submit(sum, range(10**10)); "])  # minutes in which no Python thread of the worker can run
def test_workers_end_with_a_parent_that_is_killed(busy):
    work = "from c2f_nnunet.io.processes import pool; workers = pool(1); print(workers.submit(os.getpid).result(), flush=True)"
    work = f"import os, time; {work}; {busy}time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", work], stdout=subprocess.PIPE, text=True) as parent:
        worker = int(parent.stdout.readline())
        assert runs(worker)
        time.sleep(0.5)
        parent.send_signal(signal.SIGKILL)
    ends = time.monotonic() + 10
    while runs(worker) and time.monotonic() < ends:
        time.sleep(0.1)
    assert not runs(worker)
