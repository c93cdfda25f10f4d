"""Commands in processes of their own, to be killed, signalled and limited.

They are forked by a server that has imported torch already: real processes with pids of their own, without the seconds that
importing takes each time.
"""
import ctypes
import hashlib
import importlib
import multiprocessing
import os
import random
import resource
import signal
import sys
import time
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Callable, Iterator

import torch

from c2f_nnunet.training import checkpoint

CONTEXT = multiprocessing.get_context("forkserver")
_USED = ("running.graph", "running.predict", "running.crossval", "running.export", "running.planning", "cli.common")
CONTEXT.set_forkserver_preload([f"c2f_nnunet.{name}" for name in _USED] + ["pandas", "matplotlib.figure", "tqdm", "tests.faults.processes"])
PATIENCE_S = 240.0  # for what takes seconds on an idle machine: threads that wait for each other crawl on a busy one


class Command:
    """A running command: c2f_<name> with these arguments. before: called in the process first, to limit or to patch it."""

    def __init__(self, output: Path, name: str, args: list[str], *before):
        self.output = output
        output.write_text("")  # what an earlier one printed there must not be taken for this one's
        self.process = CONTEXT.Process(target=_run, args=(output, name, args, before))
        self.began = time.time()
        self.process.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def ended(self, within_s: float = PATIENCE_S) -> tuple[int, str]:
        """(exit code, everything it printed); killed, and an AssertionError, where it runs for longer."""
        self.process.join(within_s)
        if self.process.exitcode is None:
            self.kill()
            raise AssertionError(f"still running after {within_s} s; it printed: {self.output.read_text()}")
        return self.process.exitcode, self.output.read_text()


def ready() -> None:
    """Wait until the server that forks commands has imported what they use, which takes seconds: what is timed after it is the command."""
    first = CONTEXT.Process(target=os.getpid)
    first.start()
    first.join()


def run(output: Path, name: str, args: list[str], *before, within_s: float = PATIENCE_S) -> tuple[int, str]:
    """A command from start to end: (exit code, everything it printed)."""
    return Command(output, name, args, *before).ended(within_s)


def _run(output: Path, name: str, args: list[str], before) -> None:
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1), os.dup2(handle, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    torch.set_num_threads(1)
    multiprocessing.set_start_method(None, force=True)  # the command's own workers are started as ever
    command = importlib.import_module(f"c2f_nnunet.cli.{name}")
    for act in before:
        act()
    sys.exit(command.main(args))


def took(command: Command, begun: Callable[[Command], bool]) -> float:
    """Seconds from the moment in which a command has begun what it is to be killed at until it ends."""
    wait_for(lambda: begun(command) or not command.process.is_alive())
    began = time.monotonic()
    code, printed = command.ended()
    assert code == 0, printed
    return time.monotonic() - began


def survivors(
    start: Callable, fresh: Callable, took_s: float, kills: int, seed: int, begun: Callable[[Command], bool] = lambda command: True,
    killed_in: Callable = lambda place: None,
) -> Iterator:  # fmt: skip
    """What is left by commands that are killed at random moments and started again until they end by themselves, with exit code 0.

    start(place) starts the command or goes on with it; fresh(attempt) is a new place to start in. took_s: of an undisturbed
    one from when it has `begun` what it is to be killed at, so that its start is not counted. killed_in(place): called after each
    kill. Places come one after the other until `kills` are done.
    """
    dice, killed = random.Random(seed), 0
    for attempt in count():
        place, finished = fresh(attempt), False
        while not finished:
            command = start(place)
            if killed < kills:
                wait_for(lambda: begun(command) or not command.process.is_alive())
                command.process.join(dice.uniform(0.1, 0.9) * took_s)
            finished = killed >= kills or not command.process.is_alive()
            if finished:
                code, printed = command.ended()
                assert code == 0, printed
            else:
                command.kill()
                killed_in(place)
                killed += 1
        yield place
        if killed >= kills:
            return


def wait_for(condition, within_s: float = PATIENCE_S) -> None:
    ends = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < ends, "what was waited for did not happen"
        time.sleep(0.01)


def children(pid: int) -> list[int]:
    """The worker processes that a process has started (not multiprocessing's resource tracker)."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == pid and b"resource_tracker" not in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def weights_hash(path: Path) -> str:
    """SHA-256 of a checkpoint's tensors, names and all."""
    tensors, _, _ = checkpoint.load(path)
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


# What may be done in a process before its command runs


def largest_file(size: int):
    """Files cannot grow above this many bytes, as on a full disk."""
    return partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size))


def further_memory(size: int):
    """The process cannot have more memory (address space) than it has at its start and this many bytes."""
    return partial(_further_memory, size)


def _further_memory(size: int) -> None:
    has = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (has + size, has + size))


def without_roots_rights() -> None:
    """Permission bits bind the process, though it be root's: it gives up CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH (Linux)."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3; this process
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; low words first
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capget(header, sets) == 0, os.strerror(ctypes.get_errno())
    sets[0] &= ~0b110
    assert libc.capset(header, sets) == 0, os.strerror(ctypes.get_errno())


def threads(number: int):
    """torch computes with this many."""
    return partial(_threads, number)


def _threads(number: int) -> None:
    torch.set_num_threads(number)


def slow_disk(seconds: float):
    """Each fsync takes this long."""
    return partial(_slow_disk, seconds)


def _slow_disk(seconds: float) -> None:
    fsync = os.fsync
    os.fsync = lambda handle: (time.sleep(seconds), fsync(handle))


def slow_validation(seconds: float, mark: Path):
    """Each held-out case of a fine member takes this long; the file `mark` holds how many were begun."""
    return partial(_slow_validation, seconds, mark)


def _slow_validation(seconds: float, mark: Path) -> None:
    from c2f_nnunet.running import members

    predict_crop, numbers = members.predict_crop, count(1)

    def slow(*args, **named):
        mark.write_text(str(next(numbers)))
        time.sleep(seconds)
        return predict_crop(*args, **named)

    members.predict_crop = slow


def killed_validating(case: int):
    """The process is killed once it has predicted a fine member's held-out case for the case-th time."""
    return partial(_killed_validating, case)


def _killed_validating(case: int) -> None:
    from c2f_nnunet.running import members

    predict_crop, numbers = members.predict_crop, count(1)
    members.predict_crop = lambda *args, **named: _killed_at(case, next(numbers), predict_crop(*args, **named))


def saving_share(share: float):
    """Instead of 2 % of the time: with 1, a checkpoint comes at every occasion."""
    return partial(_saving_share, share)


def _saving_share(share: float) -> None:
    from c2f_nnunet.training import state

    state.SAVING_SHARE = share


def slow_batches(seconds: float, mark: Path):
    """Each batch of 8 slices of a held-out case takes this long; the file `mark` holds how many were begun."""
    return partial(_slow_batches, seconds, mark)


def _slow_batches(seconds: float, mark: Path) -> None:
    from c2f_nnunet.inference import member

    softmax, numbers = member._softmax, count(1)

    def slow(*args):
        mark.write_text(str(next(numbers)))
        time.sleep(seconds)
        return softmax(*args)

    member._softmax, member.SLICES_A_BATCH = slow, 8


def slow_start(seconds: float, mark: Path):
    """Comparing the sources with those that were preprocessed takes this long; the file `mark` is made when it begins."""
    return partial(_slow_start, seconds, mark)


def _slow_start(seconds: float, mark: Path) -> None:
    from c2f_nnunet.running import preprocess

    def in_pieces(*args) -> None:  # as hashing is: a signal that comes just before a single long sleep is heard after it
        mark.touch()
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            time.sleep(0.01)

    preprocess.require_same_source = in_pieces


def spoiled_loss(*calls: int):
    """The loss is NaN the first time, second time, … that it is computed, where the number is among `calls`."""
    return partial(_spoiled_loss, calls)


def _spoiled_loss(calls) -> None:
    _each_loss(lambda number, loss: loss * (float("nan") if number in calls else 1.0))


def killed_at_loss(call: int):
    """The process is killed where the loss is computed for the call-th time."""
    return partial(_each_loss, partial(_killed_at, call))


def _killed_at(call: int, number: int, result):
    if number == call:
        os.kill(os.getpid(), signal.SIGKILL)
    return result


def _each_loss(change: Callable) -> None:
    """Each loss becomes change(how many there were, this one's value)."""
    from c2f_nnunet.training import train

    numbers, make = count(1), train.deep_supervised

    def deep_supervised(loss):
        loss_of = make(loss)
        return lambda *args: change(next(numbers), loss_of(*args))

    train.deep_supervised = deep_supervised


def checkpoints_every(seconds: float):
    """Instead of every five minutes inside an epoch."""
    return partial(_checkpoints_every, seconds)


def _checkpoints_every(seconds: float) -> None:
    from c2f_nnunet.training import state

    state.CHECKPOINT_EVERY_S = seconds


def killed_in(name: str, call: int = 1):
    """The process is killed where c2f_nnunet.running.export's function of this name, or os.rename, is called for the call-th time."""
    return partial(_killed_in, name, call)


def _killed_in(name: str, call: int) -> None:
    from c2f_nnunet.running import export

    module = os if name == "rename" else export
    function, numbers = getattr(module, name), count(1)

    def killed(*args):
        if next(numbers) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args)

    setattr(module, name, killed)


def out_of_memory(above: int, dimensions: int | None = None):
    """A forward pass of a network (of these dimensions) with more than so many samples needs more memory than the device has."""
    return partial(_out_of_memory, above, dimensions)


def _out_of_memory(above: int, dimensions: int | None) -> None:
    from c2f_nnunet.network.unet import SEUNet

    forward = SEUNet.forward

    def limited(self, x):
        if len(x) > above and dimensions in (None, x.ndim - 2):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return forward(self, x)

    SEUNet.forward = limited
