"""Preprocessing a data set by a plan: every case's coarse volume and organ crops, redone only where something changed."""
from __future__ import annotations

import glob
import hashlib
import logging
from dataclasses import dataclass
from functools import partial
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
CODE_VERSION = 4  # raise it when preprocessing changes what it stores: every case is then redone


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
    done, work = [], partial(preprocess_case, plan=plan, store=store, members=members)
    for result in each(work, dataset.training, processes, lambda case: f"{case.id} ({case.image})"):
        done.append(result)
        on_case(result)
    return done


def plan_part(plan: Plan, member: MemberPlan) -> str:
    """Hash of everything that decides what this member's volumes hold."""
    part = {"code": CODE_VERSION, "labels": plan.labels, "spacing": member.spacing_mm, "shape": member.shape}
    part |= {"organs": member.organs, "jitter": member.jitter_mm} if member.stage == "fine" else {}
    return hashlib.sha256(records.to_text(part).encode()).hexdigest()


@dataclass(frozen=True)
class _Source:
    """What a case was made of: the hash of its files and of which organs are annotated, and the state in which they were hashed."""

    sha256: str
    state: str


def _source(case: Case) -> _Source:
    state = _state(case)  # first: whatever changes while the files are hashed, read and stored makes another state
    parts = [durable.sha256(case.image), durable.sha256(case.label), *(case.annotated or ("all",))]
    return _Source(hashlib.sha256("|".join(parts).encode()).hexdigest(), state)


def _state(case: Case) -> str:
    """Size and times of a case's files, and which organs are annotated: where these are the same, so is the hash."""
    stats = [path.stat() for path in (case.image, case.label)]
    return "|".join([f"{s.st_size} {s.st_mtime_ns} {s.st_ctime_ns}" for s in stats] + list(case.annotated or ("all",)))


def crop_id(case: str, organ: str) -> str:
    """The id, which is a file's name, of one organ's crop of a case."""
    return f"{case}__{organ.replace('/', '_')}"


def preprocess_case(case: Case, plan: Plan, store: StoreFolder, members: tuple[MemberPlan, ...]) -> Done:
    """One case: nothing is read but the files' hashes where everything stands already."""
    source = _source(case)
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


def _stands(store: Store, case: Case, member: MemberPlan, plan: Plan, source: _Source) -> bool:
    marker = _read_marker(store, case.id)
    made_by = (source.sha256, plan_part(plan, member))
    return (marker.source, marker.plan) == made_by and all(map(store.is_sound, _volumes(case.id, member, marker)))


@dataclass(frozen=True)
class _Marker:
    """CASE.done: the hashes that a case's volumes were made by, the state of its files then, and one volume's id a line."""

    source: str
    plan: str
    state: str
    volumes: tuple[str, ...]


def _read_marker(store: Store, case: str) -> _Marker:
    """A case's marker; one that fits nothing where there is none, or a damaged one."""
    path = store.folder / f"{case}.done"
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
    made_by, state, *volumes = lines if len(lines) > 1 else ("", "")
    source, _, plan = made_by.partition(" ")
    return _Marker(source, plan, state, tuple(volumes))


def _mark(store: Store, case: Case, member: MemberPlan, plan: Plan, source: _Source, volumes: list[str]) -> None:
    lines = [f"{source.sha256} {plan_part(plan, member)}", source.state, *volumes]
    durable.write_text(store.folder / f"{case.id}.done", "\n".join(lines))


def _volumes(case: str, member: MemberPlan, marker: _Marker) -> tuple[str, ...]:
    """The volumes that a case must have; a fine member's organ that could not be cropped has none."""
    return (case,) if member.stage == "coarse" else marker.volumes


def _record(volume_id: str, case: Case, geometry, anchor, mirrored, known, boxes, source: str, plan_hash: str) -> StoredRecord:
    return StoredRecord(volume_id, case.id, geometry, anchor, mirrored, tuple(known), boxes, source, plan_hash)


def _make_volume(store: Store, case: Case, member: MemberPlan, plan: Plan, source: _Source, image, channels, known) -> None:
    prepared = prepare_volume(image.array, image.geometry, plan.coarse)
    labels = prepare_labels(channels, image.geometry, prepared.geometry)
    boxes = {organ: box for i, organ in enumerate(plan.labels.organs, 1) if (box := bounding_box(labels == i))}
    record = _record(case.id, case, prepared.geometry, prepared.anchor_index, False, known, boxes, source.sha256, plan_part(plan, member))
    store.write(record, prepared.hu, labels)
    _mark(store, case, member, plan, source, [case.id])


def _make_crops(store: Store, case: Case, member: MemberPlan, plan: Plan, source: _Source, image, channels, known) -> None:
    written = []
    for volume_id in {*_read_marker(store, case.id).volumes, *(crop_id(case.id, o) for o in member.organs)}:
        store.remove(volume_id)  # those of organs by earlier names, too: whatever lies there is trained on
    for organ in member.organs:
        volume_id = crop_id(case.id, organ)
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
        record = _record(volume_id, case, grid, anchor, is_mirrored(organ, member), (organ,), boxes, source.sha256, plan_part(plan, member))
        store.write(record, hu, labels)
        written.append(volume_id)
    _mark(store, case, member, plan, source, written)


def _remove_foreign(dataset: Dataset, plan: Plan, store: StoreFolder, members: tuple[MemberPlan, ...]) -> None:
    """Volumes of cases that are no longer in the data set would otherwise be trained on."""
    cases = {c.id for c in dataset.training}
    for name in {m.volumes for m in members}:
        volumes = Store(store.volumes(name))
        for path in volumes.folder.glob("*.done") if volumes.folder.is_dir() else []:
            if path.stem not in cases:
                log.info("%s: removing the stored volumes of %s, which is not in the data set any more", volumes.folder, path.stem)
                for record in volumes.folder.glob(f"{glob.escape(path.stem)}*.json"):
                    if record.stem == path.stem or record.stem.startswith(f"{path.stem}__"):
                        volumes.remove(record.stem)
                path.unlink()


def require_prepared(store: StoreFolder, member: MemberPlan, plan: Plan, cases: tuple[str, ...], remedy: str) -> None:
    """DatasetError listing the cases whose volumes were made by another plan, or of which a file is missing."""
    volumes, part = Store(store.volumes(member.volumes)), plan_part(plan, member)
    markers = {case: _read_marker(volumes, case) for case in cases}
    if other := [case for case, m in markers.items() if m.plan != part]:
        raise DatasetError(f"{volumes.folder}: not preprocessed by this plan: {_listed(other)}; run {remedy}")
    if lacking := [case for case, m in markers.items() if not all(map(volumes.is_whole, _volumes(case, member, m)))]:
        raise DatasetError(f"{volumes.folder}: stored files are missing of {_listed(lacking)}; run {remedy}")


def require_same_source(dataset: Dataset, store: StoreFolder, members: tuple[MemberPlan, ...], cases: set[str]) -> None:
    """DatasetError listing the cases whose files are others than those preprocessed; only files in another state than then are hashed."""
    changed, volumes = set(), [Store(store.volumes(name)) for name in sorted({m.volumes for m in members})]
    for case in (c for c in dataset.training if c.id in cases):
        state = _state(case)
        if others := [m for m in (_read_marker(v, case.id) for v in volumes) if m.source and m.state != state]:
            source = _source(case).sha256
            if any(m.source != source for m in others):
                changed.add(case.id)
    if changed:
        where = f"{dataset.root}: changed after preprocessing: {_listed(sorted(changed))}"
        raise DatasetError(f"{where}; run c2f_plan_and_preprocess -d {dataset.root.name}")


def _listed(cases: list[str]) -> str:
    return ", ".join(cases[:5]) + (f" and {len(cases) - 5} more" if len(cases) > 5 else "")
