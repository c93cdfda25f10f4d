"""Preprocessing a data set by a plan: every case's coarse volume and organ crops, redone only where something changed."""
from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Callable

from ..data.dataset import Case, Dataset
from ..data.store import Store, StoredRecord
from ..errors import DatasetError
from ..geometry import bounding_box
from ..io import durable, records
from ..io.images import read_image, read_label
from ..io.processes import each
from ..planning.plan import MemberPlan, Plan
from ..preparing.crops import is_mirrored
from ..preparing.prepare import jitter_voxels, prepare_labels, prepare_volume, training_crop, usual_place_mm
from ..workspace import StoreFolder

log = logging.getLogger(__name__)
CODE_VERSION = 3  # raise it when preprocessing changes what it stores: every case is then redone


@dataclass(frozen=True)
class Done:
    """What preprocessing one case did: how many volumes were made, and how many stood already."""

    case: str
    made: int
    kept: int


def preprocess(
    dataset: Dataset, plan: Plan, store: StoreFolder, members: tuple[MemberPlan, ...], processes: int,
    on_case: Callable[[Done], None] = lambda done: None,
) -> list[Done]:  # fmt: skip
    """Make what is missing or outdated for these members; a killed run goes on where it was."""
    folders = sorted({m.volumes for m in members})
    for name in folders:
        durable.remove_leftovers(store.volumes(name))
    _remove_foreign(dataset, plan, store, members)
    done = []
    for result in each(partial(preprocess_case, plan=plan, store=store, members=members), dataset.training, processes, lambda c: c.id):
        done.append(result)
        on_case(result)
    return done


def plan_part(plan: Plan, member: MemberPlan) -> str:
    """Hash of everything that decides what this member's volumes hold."""
    part = {"code": CODE_VERSION, "labels": plan.labels, "spacing": member.spacing_mm, "shape": member.shape}
    part |= {"organs": member.organs, "jitter": member.jitter_mm} if member.stage == "fine" else {}
    return hashlib.sha256(records.to_text(part).encode()).hexdigest()


def source_hash(case: Case) -> str:
    """Hash of a case's files and of which organs are annotated in it."""
    parts = [durable.sha256(case.image), durable.sha256(case.label), *(case.annotated or ("all",))]
    return hashlib.sha256("|".join(parts).encode()).hexdigest()


def volume_ids(case: str, member: MemberPlan, known: tuple[str, ...]) -> list[str]:
    """Ids of the volumes that a case has in a member's folder: one, or one per organ of a fine member."""
    return [case] if member.stage == "coarse" else [f"{case}__{o}" for o in member.organs if o in known]


def preprocess_case(case: Case, plan: Plan, store: StoreFolder, members: tuple[MemberPlan, ...]) -> Done:
    """One case: nothing is read but the files' hashes where everything stands already."""
    source = source_hash(case)
    wanted = {m.volumes: m for m in members}  # the three views share one volume
    missing = {name: m for name, m in wanted.items() if not _stands(Store(store.volumes(name)), case, m, plan, source)}
    if not missing:
        return Done(case.id, 0, len(wanted))
    image, label = read_image(case.image), read_label(case.label)
    channels = plan.labels.to_channels(label.array)
    known = case.annotated or plan.labels.organs
    for channel, organ in enumerate(plan.labels.organs, start=1):
        if organ not in known:
            channels[channels == channel] = 0  # unknown there, whatever the label map holds
    for name, member in missing.items():
        make = _make_volume if member.stage == "coarse" else _make_crops
        make(Store(store.volumes(name)), case, member, plan, source, image, channels, known)
    return Done(case.id, len(missing), len(wanted) - len(missing))


def _stands(store: Store, case: Case, member: MemberPlan, plan: Plan, source: str) -> bool:
    marker = store.folder / f"{case.id}.done"
    try:
        if marker.read_text() != f"{source} {plan_part(plan, member)}":
            return False
    except OSError:
        return False
    ids = volume_ids(case.id, member, case.annotated or plan.labels.organs)
    # a fine member's organ that is absent in this case has no volume: what was written must still be there
    written = [i for i in ids if (store.folder / f"{i}.json").exists()]
    whole = all((store.folder / f"{i}_{kind}.b2nd").exists() for i in written for kind in ("image", "labels"))
    return whole and (member.stage == "fine" or bool(written))


def _mark(store: Store, case: Case, member: MemberPlan, plan: Plan, source: str) -> None:
    durable.write_text(store.folder / f"{case.id}.done", f"{source} {plan_part(plan, member)}")


def _record(volume_id: str, case: Case, geometry, anchor, mirrored, known, boxes, source: str, plan_hash: str) -> StoredRecord:
    return StoredRecord(volume_id, case.id, geometry, anchor, mirrored, tuple(known), boxes, source, plan_hash, "", "")


def _make_volume(store: Store, case: Case, member: MemberPlan, plan: Plan, source: str, image, channels, known) -> None:
    prepared = prepare_volume(image.array, image.geometry, plan.coarse)
    labels = prepare_labels(channels, image.geometry, prepared.geometry)
    boxes = {organ: box for i, organ in enumerate(plan.labels.organs, 1) if (box := bounding_box(labels == i))}
    record = _record(case.id, case, prepared.geometry, prepared.anchor_index, False, known, boxes, source, plan_part(plan, member))
    store.write(record, prepared.hu, labels)
    _mark(store, case, member, plan, source)


def _make_crops(store: Store, case: Case, member: MemberPlan, plan: Plan, source: str, image, channels, known) -> None:
    for organ in member.organs:
        volume_id = f"{case.id}__{organ}"
        store.remove(volume_id)
        mask, place = channels == plan.labels.organs.index(organ) + 1, None
        if organ in known and not mask.any():
            place = usual_place_mm(image.array, image.geometry, plan.prior(organ))
        made = training_crop(image.array, mask, image.geometry, organ, member, jitter_voxels(member), place) if organ in known else None
        if made is None:
            continue
        hu, labels, grid = made
        anchor = tuple((n - 1) / 2 for n in grid.shape)
        box = bounding_box(labels)
        boxes = {organ: box} if box else {}
        record = _record(volume_id, case, grid, anchor, is_mirrored(organ, member), (organ,), boxes, source, plan_part(plan, member))
        store.write(record, hu, labels)
    _mark(store, case, member, plan, source)


def _remove_foreign(dataset: Dataset, plan: Plan, store: StoreFolder, members: tuple[MemberPlan, ...]) -> None:
    """Volumes of cases that are no longer in the data set would otherwise be trained on."""
    cases = {c.id for c in dataset.training}
    for name in {m.volumes for m in members}:
        volumes = Store(store.volumes(name))
        for path in volumes.folder.glob("*.done") if volumes.folder.is_dir() else []:
            if path.stem not in cases:
                log.info("%s: removing the stored volumes of %s, which is not in the data set any more", volumes.folder, path.stem)
                for record in volumes.folder.glob(f"{path.stem}*.json"):
                    if record.stem == path.stem or record.stem.startswith(f"{path.stem}__"):
                        volumes.remove(record.stem)
                path.unlink()


def require_prepared(store: StoreFolder, member: MemberPlan, plan: Plan, cases: tuple[str, ...], remedy: str) -> None:
    """DatasetError listing the cases whose volumes are missing or were made by another plan."""
    folder: Path = store.volumes(member.volumes)
    part, bad = plan_part(plan, member), []
    for case in cases:
        marker = folder / f"{case}.done"
        if not marker.exists() or marker.read_text().split(" ")[-1] != part:
            bad.append(case)
    if bad:
        listed = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
        raise DatasetError(f"{folder}: not preprocessed by this plan: {listed}; run {remedy}")
