"""Where a training runs: in this process, or as one process per device with torch's DDP."""
from __future__ import annotations

import logging
import os
import signal
import socket
from contextlib import suppress
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist
import torch.multiprocessing as processes

from ..data.splits import Split
from ..errors import TrainingError
from ..network.precision import find_device
from ..training.state import Progress
from ..training.train import Hooks, Interrupted, Place
from ..workspace import ModelFolder, StoreFolder
from .members import Job, is_finished, run_member
from .model import Model, open_model

POLL_S = 0.5  # how often the parent of several processes looks whether to stop
WAITS = timedelta(days=1)  # of the others while process 0 validates; torch gives up after ten minutes
GRACE_S = 5.0  # for the others to end by themselves when one has failed


def run_here(model: Model, store: StoreFolder, job: Job, split: Split, hooks: Hooks = Hooks()) -> Progress | None:
    """Train a member: in this process, or, with settings.world > 1, in that many (whose progress stays theirs).

    Raises Interrupted where it stopped after a checkpoint because hooks.should_stop() said so, TrainingError where a process failed.
    """
    if job.settings.world == 1:
        return run_member(model, store, job, split, Place(find_device(job.settings.device)), hooks)
    if job.settings.device == "cuda" and (there := torch.cuda.device_count()) < job.settings.world:
        if job.go_on:  # the number is the recorded one: with another, the same steps would be other batches
            run = model.folder.run(job.member.name, job.fold).root
            raise TrainingError(f"{run}: was begun on {job.settings.world} GPUs and this machine has {there}; go on with it on a machine that "
                                "has as many, or move the folder away to start again")  # fmt: skip
        raise TrainingError(f"-num_gpus {job.settings.world}: this machine has {there}; give at most that many")
    if job.settings.device == "mps":
        raise TrainingError("-num_gpus: torch cannot train on several MPS devices; leave it out")
    stop = processes.get_context("spawn").Event()
    many = processes.spawn(_one_of_many, (model.folder.root, store.root, job, split, _free_port(), stop), job.settings.world, join=False)
    try:
        while not many.join(POLL_S, GRACE_S):
            if hooks.should_stop():
                stop.set()
    except (processes.ProcessRaisedException, processes.ProcessExitedException) as e:
        run = model.folder.run(job.member.name, job.fold).root
        raise TrainingError(f"{run}: one of {job.settings.world} processes ended: {str(e).strip().splitlines()[-1]}") from e
    if stop.is_set() and not is_finished(model.folder.run(job.member.name, job.fold)):
        raise Interrupted
    return None


def _one_of_many(rank: int, model_root, store_root, job: Job, split: Split, port: int, stop) -> None:
    """One DDP process; the global batch is world × the batch size, this process takes its part.

    Where it fails it ends without closing its group: with NCCL, closing waits for the other processes, which wait for this one, and
    nobody would learn why. Signals are the parent's to handle: it sets the event `stop`, and all processes then end after one checkpoint.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, partial(_end_if_alone, os.getppid()))
    logging.basicConfig(level=logging.WARNING)
    world = job.settings.world
    if job.settings.device == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // world))
    where = Place(find_device(job.settings.device, rank), rank, world)
    backend, bound = "gloo", {}
    if where.device.type == "cuda":
        torch.cuda.set_device(where.device)  # else every process would open a context on the first GPU, too
        backend, bound = "nccl", {"device_id": where.device}
    dist.init_process_group(backend, init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world, timeout=WAITS, **bound)
    with suppress(Interrupted):
        run_member(open_model(ModelFolder(model_root)), StoreFolder(store_root), job, split, where, Hooks(should_stop=stop.is_set))
    dist.barrier()
    dist.destroy_process_group()


def _end_if_alone(parent: int, number: int, frame) -> None:
    """The handler of a DDP process' signals; torch sends one, too, when the parent was killed."""
    if os.getppid() != parent:
        os._exit(1)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
