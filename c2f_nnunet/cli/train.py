"""c2f_train: train members of a plan, one or all, fold by fold; then fit the fusion and the merge."""
from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .common import StopRequest, add_device, add_folders, entry, new_parser, positive, positive_number, whole

if TYPE_CHECKING:
    import torch

    from ..data.splits import Split
    from ..running.graph import Task
    from ..running.members import TrainOptions
    from ..running.model import Model
    from ..workspace import StoreFolder, Workspace


def parser() -> argparse.ArgumentParser:
    p = new_parser(
        "c2f_train",
        "Train one configuration (2d_top, 2d_front, 2d_side, 3d_<organ or pair>) or a group (coarse, fine, all) on one fold or all folds. "
        "Groups skip what is finished and go on where they stopped.", "c2f_train all 0 -d 15 --minutes 40 -device cpu",
    )  # fmt: skip
    p.add_argument("config", metavar="CONFIG", help="2d_top, 2d_front, 2d_side, 3d_<organ or pair>, or coarse, fine, all")
    p.add_argument("fold", metavar="FOLD", help="a fold's number from 0, or all")
    add_folders(p)
    add_device(p)
    p.add_argument("--c", dest="resume", action="store_true", help="go on from the latest checkpoint")
    p.add_argument("--val", action="store_true", help="train nothing: score the finished members on their held-out cases")
    p.add_argument("--epochs", type=positive, metavar="N", help="epochs instead of the plan's")
    p.add_argument("--minutes", type=positive_number, metavar="M",
                   help="time for the whole command, shared among its members; the learning rate ends with it")
    p.add_argument("--batch_size", type=positive, metavar="B", help="batch size (per process) instead of the plan's")
    p.add_argument("--lr", type=positive_number, metavar="R", help="learning rate instead of the plan's")
    p.add_argument("--seed", type=whole, default=0, metavar="S", help="seed of weights, sampling and augmentation (default: 0)")
    p.add_argument("-pretrained_weights", metavar="F", help="start from this checkpoint's weights (path of its .json)")
    p.add_argument("-num_gpus", type=positive, default=1, metavar="N", help="train each member on N devices with torch's DDP (default: 1)")
    p.add_argument("-np", dest="workers", type=whole, metavar="N",
                   help="augmentation processes (default: one per core beside the first, on Linux; 0: none)")
    return p


@dataclass(frozen=True)
class Asked:
    """What the command line asks for, opened and checked."""

    workspace: Workspace
    model: Model
    store: StoreFolder
    device: torch.device
    splits: tuple[Split, ...]
    options: TrainOptions
    todo: list[Task]
    is_group: bool


def body(args: argparse.Namespace) -> int:
    stop = StopRequest()  # first: what follows takes seconds, and minutes where sources are hashed
    from ..running import graph
    from ..training.train import Interrupted

    try:
        with stop.at_once(Interrupted):
            asked = _asked_for(args)
            if args.val:
                return _validate(asked)
            todo = _left_to_do(args, asked)
    except Interrupted:
        print(f"{args.config} {args.fold}: stopped before any training; the same command starts it again")
        return stop.exit_code
    model, store, budget = asked.model, asked.store, graph.TimeBudget(args.minutes, todo)
    for number, task in enumerate(todo, 1):
        if stop():
            return stop.exit_code
        if task.member is None:
            try:
                _fit(task.kind, model, store, asked.device, asked.workspace, stop)
            except Interrupted:
                print(f"{task.title}: stopped; the same command fits them")
                return stop.exit_code
            continue
        job = graph.next_job(model.folder, task, asked.options, budget.start(task), asked.is_group)
        if job is None:
            print(f"{task.title}: finished already")
            continue
        if (code := _train(model, store, job, asked.splits[task.fold], f"[{number}/{len(todo)}] {task.title}", stop)) is not None:
            return code
    return 0


def _asked_for(args: argparse.Namespace) -> Asked:
    from ..errors import C2FError
    from ..network.precision import default_device, find_device
    from ..running import graph
    from ..running.members import TrainOptions
    from ..running.model import open_model
    from ..training.state import weights_path
    from ..workspace import Workspace, store_folder

    workspace = Workspace.find(args.workspace)
    folder = workspace.model(args.dataset, args.plan)
    model = open_model(folder)
    store = store_folder(workspace, folder.root.parent.name, folder.root.name)
    device_name = args.device or default_device()
    device = find_device(device_name)
    if args.pretrained_weights:
        weights_path(args.pretrained_weights)
        if len(members := graph.members_of(model.plan, args.config)) > 1:
            raise C2FError(f"-pretrained_weights: one network's weights, and {args.config} are {len(members)} networks; give the one that they "
                           f"are for ({', '.join(m.name for m in members)})")  # fmt: skip
    options = TrainOptions(
        device_name, args.epochs, args.minutes, args.batch_size, args.lr, args.seed, args.pretrained_weights, args.num_gpus,
        args.resume, args.workers,
    )  # fmt: skip
    splits = model.splits()
    folds = graph.folds_of(args.fold, len(splits))
    todo = graph.tasks(model.plan, args.config, folds)
    return Asked(workspace, model, store, device, splits, options, todo, args.config in graph.GROUPS or len(folds) > 1)


def _left_to_do(args: argparse.Namespace, asked: Asked) -> list[Task]:
    """What of a group is not finished yet; DatasetError where the sources are others than those preprocessed, or a training could not begin."""
    from ..data.dataset import read_dataset
    from ..io import durable
    from ..running import graph
    from ..running.members import require_trainable
    from ..running.preprocess import require_same_source

    folder, splits, todo = asked.model.folder, asked.splits, asked.todo
    if args.resume and asked.is_group:
        graph.require_begun(folder, todo)
    left = [t for t in todo if not (t.member and asked.is_group and graph.is_finished(folder.run(t.member.name, t.fold)))]
    if not any(t.member for t in left):
        print(f"{args.config} {args.fold}: every training is finished already")
    graph.require_places(folder, left)
    for member in {t.member.name: t.member for t in left if t.member}.values():  # told now, and not after hours of other members
        require_trainable(asked.model, asked.store, member, {t.fold: splits[t.fold] for t in left if t.member == member})
    durable.remove_leftovers(folder.root)
    if (raw := asked.workspace.raw / asked.model.plan.dataset).is_dir():
        cases = {case for fold in {t.fold for t in todo if t.member} for case in splits[fold].train + splits[fold].val}
        require_same_source(read_dataset(raw), asked.store, tuple(t.member for t in left if t.member), cases)
    return left


def _train(model, store, job, split, title: str, stop: StopRequest) -> int | None:
    """Train one member with its progress on the screen; an exit code where it was interrupted."""
    from tqdm import tqdm

    from ..running.engines import run_here
    from ..training import checkpoint
    from ..training.train import Hooks, Interrupted

    plan, seconds = job.settings.training, job.settings.seconds
    total = seconds or plan.epochs
    with tqdm(total=round(total), desc=title, unit="s" if seconds else "epoch", disable=None) as bar:
        began = time.monotonic()

        def on_epoch(rows: list[dict], last: bool) -> None:
            row = rows[-1]
            bar.n = min(bar.total, round(time.monotonic() - began) if seconds else row["epoch"] + 1)
            bar.set_postfix({"loss": f"{row['train_loss']:.3f}", **({"DSC": f"{row['val_dsc']:.3f}"} if "val_dsc" in row else {})})

        try:
            progress = run_here(model, store, job, split, Hooks(on_epoch, stop))
        except Interrupted:
            bar.close()
            if checkpoint.exists(model.folder.run(job.member.name, job.fold).checkpoint("latest")):
                print(f"{title}: stopped after a checkpoint; go on with the same command and --c")
            else:
                print(f"{title}: stopped before its first step; the same command starts it again")
            return stop.exit_code
    if progress:
        done = f"{progress.step} steps, {progress.epoch} epochs, {progress.elapsed_s / 60:.1f} minutes"
        print(f"{title}: {done}, best held-out DSC {100 * progress.best:.1f} %")
    return None


def _fit(kind: str, model, store, device, workspace, stop: StopRequest) -> None:
    """Fit the views' fusion, or the merge of both stages, where it is due; print the weights as a table.

    One process at a time fits: folds that are trained side by side end side by side, and fusion.json is one file.
    """
    from ..running import fit
    from ..training.train import Interrupted
    from ..workspace import lock_in_turn

    def is_due() -> bool:
        return fit.fusion_is_due(model) if kind == "fusion" else fit.merge_is_due(model)

    def wait(for_whom: str) -> None:
        if for_whom not in told:
            print(f"{kind} weights: waiting: {for_whom}")
            told.add(for_whom)
        time.sleep(1.0)

    if not is_due():
        members = model.plan.coarse.members if kind == "fusion" else model.plan.members
        if not fit.complete_folds(model, members, "best"):
            print(f"{kind} weights: not fitted yet, no fold has all of {', '.join(m.name for m in members)} trained")
        return
    told: set[str] = set()
    with stop.at_once(Interrupted), lock_in_turn(model.folder.root, f"fitting of the {kind} weights", wait):
        if is_due():  # the one waited for may have fitted them
            _show_fitted(kind, _fitted(kind, model, store, device, workspace, stop), model)


def _fitted(kind: str, model, store, device, workspace, stop: StopRequest):
    """The fusion file with its fitted weights, made with progress on the screen."""
    from tqdm import tqdm

    from ..data.dataset import read_dataset
    from ..running import fit
    from ..training.train import Interrupted

    with tqdm(desc=f"fitting the {kind} weights", unit="case", disable=None) as bar:

        def on_case(case: str) -> None:
            bar.update()
            if stop():  # where a library swallowed what the signal raised
                raise Interrupted

        if kind == "fusion":
            return fit.fit_fusion(model, store, device, on_case=on_case)
        cases = {c.id: c for c in read_dataset(workspace.raw / model.plan.dataset).training}
        return fit.fit_merge(model, cases, device, on_case=on_case)


def _show_fitted(kind: str, fusion, model) -> None:
    import pandas as pd

    from ..inference.fusion import rows

    weights = fusion.coarse if kind == "fusion" else fusion.merge
    print(f"{kind} weights, fitted on {len(weights.fitted_on)} held-out cases (in {model.folder.fusion}):")
    print(pd.DataFrame(rows(weights)).to_string(index=False, float_format=lambda v: f"{v:.3f}", na_rep=""))
    if kind == "merge" and (certain := [p.organ for p in fusion.presence if p.a_miss_means_absent]):
        print(f"absent where the coarse stage does not find them: {', '.join(certain)}")


def _validate(asked: Asked) -> int:
    """Score every finished member on its held-out cases; nothing is trained."""
    import pandas as pd

    from ..errors import TrainingError
    from ..running.members import CACHE_SHARE, is_finished, stored_of, validation
    from ..running.model import load_network
    from ..training.sampler import CachedVolumes
    from ..workspace import machine_memory_gb

    model, table = asked.model, []
    for task in asked.todo:
        if not task.member or not is_finished(model.folder.run(task.member.name, task.fold)):
            continue
        volumes = stored_of(asked.store, task.member, asked.splits[task.fold].val)
        for volume in volumes:
            volume.verify()
        validate = validation(model.plan, task.member, CachedVolumes(volumes, CACHE_SHARE * machine_memory_gb()), asked.device)
        found = validate(load_network(model, task.member, task.fold, "best", asked.device))
        row = {"member": task.member.name, "fold": task.fold}
        table += [{**row, "organ": organ, "held-out DSC %": None if v is None else 100 * v} for organ, v in found.items()]
    if not table:
        raise TrainingError(f"{model.folder.root}: none of the members asked for is trained; leave --val out to train them")
    print(pd.DataFrame(table).to_string(index=False, float_format=lambda v: f"{v:.1f}", na_rep="-"))
    return 0


main = entry(parser, body)

if __name__ == "__main__":
    sys.exit(main())
