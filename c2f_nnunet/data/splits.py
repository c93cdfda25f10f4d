"""Cross-validation folds: nnU-Net's split of the case ids, kept in splits_final.json."""
from __future__ import annotations

import logging
from pathlib import Path
from typing import Iterable, Mapping

import numpy as np

from ..errors import DatasetError
from ..io import durable, records
from ..io.records import record
from ..workspace import FOLDS

log = logging.getLogger(__name__)
SEED = 12345


@record
class Split:
    """One fold: the sorted ids of the cases to train on and of those held out."""

    train: tuple[str, ...]
    val: tuple[str, ...]


def _k_folds(n: int, folds: int, seed: int) -> list[np.ndarray]:
    """The held-out indices of each fold; those of scikit-learn's KFold(folds, shuffle=True, random_state=seed).

    RandomState and not the newer Generator: its stream is frozen for ever, so a seed means the same split everywhere.
    """
    shuffled = np.arange(n)
    np.random.RandomState(seed).shuffle(shuffled)
    return np.array_split(shuffled, folds)  # the first n % folds parts have one more


def make_splits(
    case_ids: Iterable[str], patients: Mapping[str, str] | None = None, folds: int = FOLDS, seed: int = SEED
) -> tuple[Split, ...]:
    """nnU-Net's folds over the sorted case ids; with patients (case → patient), over the sorted patients and their cases.

    A case without an entry in `patients` is a patient of its own, so without any this is nnU-Net's
    generate_crossval_split. Cases of one patient never stand on both sides of a fold.
    """
    cases = sorted(case_ids)
    patient_of = {case: (patients or {}).get(case, case) for case in cases}
    groups = sorted(set(patient_of.values()))
    if len(groups) < folds:
        what = "training cases" if len(groups) == len(cases) else f"patients (in {len(cases)} training cases)"
        raise DatasetError(
            f"{len(groups)} {what} are too few for {folds} folds; add cases until there are {folds} or more, "
            "or write a splits_final.json with fewer folds yourself"
        )
    splits = []
    for held_out in _k_folds(len(groups), folds, seed):
        val_groups = {groups[i] for i in held_out}
        train, val = (tuple(c for c in cases if (patient_of[c] in val_groups) == inside) for inside in (False, True))
        splits.append(Split(train, val))
    return tuple(splits)


def write_splits(path: Path, splits: Iterable[Split]) -> tuple[Split, ...]:
    """Write splits_final.json unless it is there already, and give back what the file holds.

    The first writer wins: folds that start at the same moment, or after a user put a file of their own there, all read
    one identical split.
    """
    splits = tuple(splits)
    durable.write_once(path, records.to_text(list(splits)).encode("utf-8"))
    return read_splits(path, {c for s in splits for c in s.train + s.val})


def read_splits(path: Path, case_ids: Iterable[str]) -> tuple[Split, ...]:
    """The folds of splits_final.json, any number from one up; DatasetError where they do not fit the training cases.

    A case that no fold names is only warned about: a user may leave some out on purpose.
    """
    value, known = records.read_json(path), set(case_ids)
    if not isinstance(value, list) or not value:
        raise DatasetError(f'{path}: holds no folds; write a list of {{"train": […], "val": […]}}, or remove it to have it made again')
    splits = tuple(records.from_json(Split, fold, f"{path}, fold {i}") for i, fold in enumerate(value))
    for i, split in enumerate(splits):
        _check_fold(f"{path}, fold {i}", split, known)
    if unused := sorted(known.difference(*(s.train + s.val for s in splits))):
        log.warning("%s: %d of %d training cases are in no fold and will not be used: %s", path, len(unused), len(known), ", ".join(unused))
    return splits


def _check_fold(where: str, split: Split, known: set[str]) -> None:
    train, val = set(split.train), set(split.val)
    for side, ids, unique in (("train", split.train, train), ("val", split.val, val)):
        if not ids:
            raise DatasetError(f"{where}: '{side}' is empty; put at least one case there")
        if len(unique) != len(ids):
            twice = ", ".join(sorted(c for c in unique if ids.count(c) > 1))
            raise DatasetError(f"{where}: '{side}' names a case twice ({twice}); name each once")
    if both := sorted(train & val):
        raise DatasetError(f"{where}: {', '.join(both)} is in both train and val; a held-out case must not be trained on")
    if unknown := sorted((train | val) - known):
        raise DatasetError(f"{where}: {', '.join(unknown)} is not a training case; mend the file, or remove it to have it made again")
