"""Where a training runs: in this process, or as one process per device with torch's DDP."""
from __future__ import annotations

import logging
import socket
from typing import Callable

import torch
import torch.distributed as dist
import torch.multiprocessing as processes

from ..data.splits import Split
from ..errors import TrainingError
from ..network.precision import find_device
from ..training.train import Progress
from ..workspace import ModelFolder, StoreFolder
from .graph import Job
from .members import run_member
from .model import Model, open_model

log = logging.getLogger(__name__)


def run_here(
    model: Model, store: StoreFolder, job: Job, split: Split,
    on_epoch: Callable[[list[dict]], None] = lambda rows: None, should_stop: Callable[[], bool] = lambda: False,
) -> Progress | None:  # fmt: skip
    """Train a member: in this process, or, with settings.world > 1, in that many (whose progress stays theirs)."""
    if job.settings.world == 1:
        device = find_device(job.settings.device)
        return run_member(model, store, job.task.member, job.task.fold, split, job.settings, device, job.resume, 0, on_epoch, should_stop)
    if job.settings.device == "cuda" and torch.cuda.device_count() < job.settings.world:
        raise TrainingError(f"-num_gpus {job.settings.world}: this machine has {torch.cuda.device_count()}; give at most that many")
    if job.settings.device == "mps":
        raise TrainingError("-num_gpus: torch cannot train on several MPS devices; leave it out")
    processes.spawn(_one_of_many, (model.folder.root, store.root, job, split, _free_port()), job.settings.world)
    return None


def _one_of_many(rank: int, model_root, store_root, job: Job, split: Split, port: int) -> None:
    """One DDP process; the global batch is world × the batch size, this process takes its part."""
    logging.basicConfig(level=logging.WARNING)
    world = job.settings.world
    if job.settings.device == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // world))
    backend = "nccl" if job.settings.device == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    try:
        device = find_device(job.settings.device, rank)
        run_member(open_model(ModelFolder(model_root)), StoreFolder(store_root), job.task.member, job.task.fold, split, job.settings, device, job.resume, rank)
        dist.barrier()
    finally:
        dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


