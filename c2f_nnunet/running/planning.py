"""From a raw data set to a model folder with its plan: fingerprint, budget of this machine, files."""
from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Callable

import torch

from ..data.dataset import Dataset
from ..data.fingerprint import Fingerprint, measure
from ..data.splits import make_splits, read_splits, write_splits
from ..errors import DatasetError, PlanError
from ..io import durable, records
from ..planning.budget import Budget
from ..planning.plan import Plan, read_plan
from ..planning.planner import choose_plan
from ..workspace import ModelFolder, StoreFolder, lock, machine_memory_gb, require_idle, require_place

log = logging.getLogger(__name__)
GPU_TARGET_GB = 8.0  # nnU-Net's default
CPU_SHARE = 0.25


def fingerprint(dataset: Dataset, processes: int, on_case: Callable[[str], None]) -> Fingerprint:
    """Verify and measure the data set."""
    return measure(dataset, processes, on_case)


def budget(target_gb: float | None) -> Budget:
    """--gpu_memory_target, or what this machine suggests: nnU-Net's 8 GB with an accelerator, else a quarter of the memory, at most 8."""
    if target_gb:
        return Budget(target_gb, True, "given by --gpu_memory_target")
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        return Budget(GPU_TARGET_GB, True, "an accelerator is there: nnU-Net's default")
    memory = machine_memory_gb()
    why = f"no accelerator: a quarter of this machine's {memory:.0f} GB, at most {GPU_TARGET_GB:.0f} GB"
    return Budget(round(min(GPU_TARGET_GB, CPU_SHARE * memory), 2), False, why)


def require_places(folder: ModelFolder, store: StoreFolder) -> None:
    """WorkspaceError where the plan or its volumes could not be written: said before the data set is measured for minutes."""
    for place in (folder.root, store.root, *filter(Path.is_dir, store.root.glob("*"))):
        require_place(place)


def choose(wanted: str, dataset: Dataset, found: Fingerprint, target_gb: float | None, spacing_mm) -> Plan:
    """The plan that -pl names, for this data set."""
    return choose_plan(wanted, found, budget(target_gb), spacing_mm, dataset.file_ending)


def write(folder: ModelFolder, plan: Plan, found: Fingerprint, dataset: Dataset, preprocessed: Path) -> None:
    """plan.json, fingerprint.json, dataset.json and splits_final.json of the model folder.

    PlanError where members were trained there with a different plan: they would no longer fit. Locked where one is being trained: it
    reads the preprocessed volumes that belong to these files. A splits_final.json that a user put into the preprocessed data set's folder
    (as with nnU-Net) is taken over.
    """
    with lock(folder.root.parent, f"planning of {folder.root.name}"):  # an import holds it, too, while it places a model
        require_idle(folder.root)
        _require_same_plan(folder, plan)
        durable.remove_leftovers(folder.root)
        records.write(folder.fingerprint, found)
        durable.write_bytes(folder.dataset_json, (dataset.root / "dataset.json").read_bytes())
        _write_splits(folder, dataset, preprocessed / "splits_final.json")
        records.write(folder.plan, plan)


def _require_same_plan(folder: ModelFolder, plan: Plan) -> None:
    trained = sorted({p.parent.parent.name for p in folder.root.glob("*/fold_*/checkpoint_*.json")})
    if trained and folder.plan.exists() and _without_rules(records.plain(read_plan(folder.plan))) != _without_rules(records.plain(plan)):
        raise PlanError(
            f"{folder.plan}: {', '.join(trained)} were trained with another plan than the one derived now; "
            f"move {folder.root} away, or give -pl {folder.plan} to keep that plan"
        )


def _write_splits(folder: ModelFolder, dataset: Dataset, own: Path) -> None:
    """The user's own folds where there are any, else nnU-Net's; folds that stand already stay."""
    cases = tuple(c.id for c in dataset.training)
    if own.exists():
        if write_splits(folder.splits, wanted := read_splits(own, cases)) != wanted:
            log.warning("%s: other folds than those of %s, which stand; remove that file to have them taken over", own, folder.splits)
        return
    try:
        write_splits(folder.splits, make_splits(cases, dataset.patients))
    except DatasetError as e:
        log.warning("%s", e)


def _without_rules(value):
    """What a plan makes of networks: neither another wording of a rule nor another fingerprint with the same numbers changes one."""
    if isinstance(value, dict):
        return {k: _without_rules(v) for k, v in value.items() if k not in ("rules", "fingerprint")}
    return [_without_rules(v) for v in value] if isinstance(value, list) else value


def clean(store: StoreFolder) -> None:
    """Remove a plan's preprocessed volumes."""
    if store.root.is_dir():
        shutil.rmtree(store.root)
