"""Fitting the fusion of the views and the merge of both stages, on held-out cases predicted by the fold that never saw them."""
from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Callable, Iterator, Mapping, NamedTuple

import numpy as np
import torch

from ..data.dataset import Case
from ..data.fingerprint import Fingerprint
from ..data.store import StoredVolume
from ..evaluation.metrics import dsc
from ..geometry import Box, bounding_box
from ..inference.agreement import weigh
from ..inference.cascade import MERGE_SOURCES, Cascade, found_whole, largest_component, run_coarse, run_fine, view_logits
from ..inference.fusion import FUSION_VERSION, LIMIT, FusionFile, FusionWeights, OrganFit, fuse
from ..inference.fusion_fit import fit
from ..inference.fusion_learn import NEVER, FitCase
from ..inference.limits import HeldOut
from ..inference.locate import threshold_of
from ..inference.presence import Presence
from ..inference.shapes import shapes
from ..io import records
from ..io.images import read_image, read_label
from ..preparing.prepare import PreparedVolume
from ..workspace import StoreFolder
from .members import stored_of
from .model import Model, build_cascade, held_out_case

log = logging.getLogger(__name__)
TEMPORARY = ".fit-"
OnCase = Callable[[str], None]


class SavedMaps(NamedTuple):
    """One organ of a held-out case: how to get its maps back, its voxels in the whole reference, at what threshold it was found, and a voxel's size.

    load: None where the organ was found nowhere, so that there is nothing to fit.
    """

    case: str
    load: Callable[[], FitCase] | None
    voxels: int
    threshold: float
    voxel_mm3: float = 1.0


def complete_folds(model: Model, members, which: str) -> tuple[int, ...]:
    """Folds in which all of these members are trained."""
    sets = [set(model.trained_folds(m, which)) for m in members]
    return tuple(sorted(set.intersection(*sets))) if sets else ()


def fusion_is_due(model: Model, which: str = "best") -> bool:
    """Whether the views' weights are missing or were fitted with other checkpoints."""
    members, folds = model.plan.coarse.members, complete_folds(model, model.plan.coarse.members, which)
    return bool(folds) and model.fusion.coarse_inputs != model.inputs_hash(members, folds, which)


def merge_is_due(model: Model, which: str = "best") -> bool:
    """Whether the merge weights are missing or were fitted with other checkpoints; needs all members of a fold."""
    folds = complete_folds(model, model.plan.members, which)
    return bool(folds) and model.fusion.merge_inputs != _merge_inputs(model, folds, which)


def _merge_inputs(model: Model, folds: tuple[int, ...], which: str) -> str:
    """Hash of what the merge is fitted with: all members' checkpoints, and the views' weights, which make the coarse log-odds."""
    parts = model.inputs_hash(model.plan.members, folds, which), records.to_text(model.fusion.coarse)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def fit_fusion(
    model: Model, store: StoreFolder, device: torch.device, which: str = "best", on_case: OnCase = lambda case: None
) -> FusionFile:
    """Fit the views' weights on every complete fold's held-out cases and write fusion.json.

    The logits are kept in temporary files, of the voxels that any weights could give to an organ, so that memory holds one view of
    one case at a time, and a disk all cases.
    """
    members = model.plan.coarse.members
    folds = complete_folds(model, members, which)
    inputs = model.inputs_hash(members, folds, which)  # as they are now: one trained again meanwhile makes the fit due again
    splits, organs = model.splits(), model.plan.labels.organs
    _remove_leftovers(model)
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=model.folder.root) as folder:
        saved: list[Callable[[], FitCase]] = []
        for fold in folds:
            cascade, _ = build_cascade(model, (fold,), which, device, stage="coarse")
            for volume in stored_of(store, members[0], splits[fold].val):
                volume.verify()
                saved.append(_save_views(cascade, volume, Path(folder)))
                on_case(volume.record.case)
        weights = fit(lambda: (load() for load in saved), organs, tuple(m.name for m in members))
    done = replace(model.fusion, version=FUSION_VERSION, coarse=weights, folds=folds, coarse_inputs=inputs)
    records.write(model.folder.fusion, done)
    return done


def _save_views(cascade: Cascade, volume: StoredVolume, folder: Path) -> Callable[[], FitCase]:
    """All views' log-odds of one stored case to a file; returns how to get them back (memory-mapped)."""
    record, truth, organs = volume.record, volume.labels[:], cascade.plan.labels.organs
    prepared = PreparedVolume(volume.image[:], record.geometry, record.anchor_index)
    path, whole, kept = folder / f"{record.id}.npy", folder / f"{record.id}.views", truth > 0
    logits = np.memmap(whole, np.float16, "w+", shape=(len(cascade.views), len(organs), *truth.shape))
    for view, member in zip(logits, cascade.views):
        view[:] = view_logits(cascade, prepared, member)
        for of_organ in view:
            kept |= of_organ > NEVER
    kept[0, 0, 0] |= not kept.any()  # so that there is something to draw from
    np.save(path, logits[:, :, kept], allow_pickle=False)
    del logits
    whole.unlink()
    truth = truth[kept]
    known = np.array([o in record.known for o in organs])
    return lambda: FitCase(record.case, np.load(path, mmap_mode="r", allow_pickle=False), truth, known)


def fit_merge(
    model: Model, cases: dict[str, Case], device: torch.device, which: str = "best", on_case: OnCase = lambda case: None
) -> FusionFile:
    """Fit each organ's say of the fine and the coarse stage, whether cleaning up helps and what a miss means; write fusion.json."""
    folds, splits, organs = complete_folds(model, model.plan.members, which), model.splits(), model.plan.labels.organs
    inputs = _merge_inputs(model, folds, which)
    _remove_leftovers(model)
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=model.folder.root) as folder:
        saved: dict[str, list[SavedMaps]] = {o: [] for o in organs}
        found: dict[str, list[bool]] = {o: [] for o in organs}
        for fold in folds:
            cascade = replace(build_cascade(model, (fold,), which, device)[0], presence=())  # every organ's maps are needed
            for case in splits[fold].val:
                for organ, maps in _save_maps(cascade, held_out_case(cases, case), Path(folder), found):
                    saved[organ].append(maps)
                on_case(case)
        loads = {o: [s.load for s in saved[o] if s.load] for o in organs}
        fitted = {o: _fit_organ(o, loads[o]) for o in organs}
        clean = tuple(o for o in organs if loads[o] and _cleaning_helps(o, loads[o], fitted[o]))
        held_out = tuple(_held_out(o, saved[o], fitted[o], o in clean) for o in organs)
    first = [fitted[o] for o in organs]
    ids = tuple(sorted({i for w in first for i in w.fitted_on}))
    table = tuple(tuple(w.weights[s][0] for w in first) for s in range(len(MERGE_SOURCES)))
    weights = FusionWeights(organs, MERGE_SOURCES, table, tuple(w.bias[0] for w in first), ids, tuple(s for w in first for s in w.scores))
    presence = count_presence(records.read(Fingerprint, model.folder.fingerprint), found)
    fitted_now = {"merge": weights, "clean": clean, "merge_inputs": inputs, "presence": presence, "held_out": held_out}
    done = replace(model.fusion, folds=folds, **fitted_now)
    records.write(model.folder.fusion, done)
    return done


def _remove_leftovers(model: Model) -> None:
    """Remove the maps of fits that were killed: fits are made one at a time (c2f_train holds the model folder's lock)."""
    for folder in model.folder.root.glob(f"{TEMPORARY}*"):
        shutil.rmtree(folder, ignore_errors=True)


def count_presence(fingerprint: Fingerprint, found: Mapping[str, list[bool]]) -> tuple[Presence, ...]:
    """Each organ's counts, a pair's added up. found: for each held-out case that has the organ, whether the coarse stage found it."""
    organs, partners = fingerprint.labels.organs, {o: pair for pair in fingerprint.labels.pairs for o in pair}
    known = {o: [o in c.organs for c in fingerprint.cases if o in c.annotated] for o in organs}
    out = []
    for organ in organs:
        both = partners.get(organ, (organ,))
        seen, there = [f for o in both for f in found[o]], [k for o in both for k in known[o]]
        out.append(Presence(organ, sum(seen), len(seen), there.count(False), len(there)))
    return tuple(out)


def _save_maps(
    cascade: Cascade, case: Case, folder: Path, found: dict[str, list[bool]]
) -> Iterator[tuple[str, SavedMaps]]:  # fmt: skip
    """Each annotated organ's fine and coarse log-odds in its box, where the fine stage ran: of the box, the part that any weights
    could give to the organ.

    found: gets, for each annotated organ that is there, whether the coarse stage found it whole.
    """
    image, label = read_image(case.image), read_label(case.label)
    truth = cascade.plan.labels.to_channels(label.array)
    coarse = run_coarse(cascade, image.array, image.geometry)
    for channel, (organ, place) in enumerate(coarse.located.items(), start=1):
        if (case.annotated is None or organ in case.annotated) and (truth == channel).any():
            found[organ].append(found_whole(cascade.plan, place, coarse, image.geometry))
    for maps in run_fine(cascade, coarse, image.array, image.geometry):
        if case.annotated is not None and maps.organ not in case.annotated:
            continue
        channel, threshold = cascade.plan.labels.organs.index(maps.organ) + 1, threshold_of(coarse.located[maps.organ].how)
        voxels = int(np.count_nonzero(truth == channel))
        if maps.fine is None:
            yield maps.organ, SavedMaps(case.id, None, voxels, threshold, image.geometry.voxel_mm3)
            continue
        path, of_organ = folder / f"{case.id}__{channel}.npy", truth[maps.box.slices] == channel
        kept = bounding_box(of_organ | (maps.fine > NEVER) | (maps.coarse > NEVER)) or Box((0, 0, 0), (1, 1, 1))
        logits = np.stack([maps.fine[kept.slices], maps.coarse[kept.slices]])[:, None]
        np.save(path, logits.astype(np.float16), allow_pickle=False)
        load = _loader(case.id, path, of_organ[kept.slices].astype(np.uint8))
        yield maps.organ, SavedMaps(case.id, load, voxels, threshold, image.geometry.voxel_mm3)


def _loader(case_id: str, path: Path, truth: np.ndarray) -> Callable[[], FitCase]:
    return lambda: FitCase(case_id, np.load(path, mmap_mode="r", allow_pickle=False), truth, np.array([True]))


def _fit_organ(organ: str, saved: list[Callable[[], FitCase]]) -> FusionWeights:
    if not saved:
        return FusionWeights((organ,), MERGE_SOURCES, ((1.0,), (0.0,)), (0.0,), (), (OrganFit(organ, (None, None), None, "no case"),))
    return fit(lambda: (load() for load in saved), (organ,), MERGE_SOURCES)


def _cleaning_helps(organ: str, saved: list[Callable[[], FitCase]], weights: FusionWeights) -> bool:
    """Whether keeping only the largest component raises the organ's mean held-out Dice."""
    gains = []
    for load in saved:
        case = load()
        mask, truth = fuse(np.asarray(case.logits, np.float32), weights)[0] > 0, case.truth > 0
        if truth.any() and mask.any():
            cleaned = largest_component(mask)
            gains.append(_dice(truth, cleaned) - _dice(truth, mask))
    return bool(gains) and float(np.mean(gains)) > 1e-4


def _held_out(organ: str, saved: list[SavedMaps], weights: FusionWeights, clean: bool) -> HeldOut:
    """What the organ's merged results on held-out cases that have it were like, each organ by itself: what later ones are compared with."""
    rows = []
    for maps in saved:
        if not maps.voxels:
            continue
        if maps.load is None:  # missed
            rows.append((maps.case, 0.0, 0.0, 0.0, maps.threshold, 0.0))
            continue
        case = maps.load()
        fine, coarse = np.asarray(case.logits[:, 0], np.float32)
        values = fuse(np.stack([fine, coarse])[:, None], weights)[0]
        if clean:
            values = np.where(largest_component(values > 0), values, -LIMIT)
        mask = values > 0
        shape = shapes(mask.astype(np.uint8), (organ,)).get(organ)
        reached = dsc(maps.voxels, int(mask.sum()), int((mask & (case.truth > 0)).sum()))
        inside = weigh(values, fine, coarse, None, None).inside
        rows.append((maps.case, float(reached), inside, shape.largest_share if shape else 0.0, maps.threshold,
                     float(mask.sum() * maps.voxel_mm3 / 1000)))  # fmt: skip
    return HeldOut(organ, *(zip(*rows) if rows else ((),) * 6))


def _dice(truth: np.ndarray, mask: np.ndarray) -> float:
    return dsc(int(truth.sum()), int(mask.sum()), int((truth & mask).sum())) or 0.0
