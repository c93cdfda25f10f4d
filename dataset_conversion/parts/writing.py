"""A data set written case by case: what every converter, whatever it reads, leaves to one place.

A converter lists its source as `SourceCase`s, describes the result as a `Target`, and calls `convert`. Every file is
written durably: a case's label map, its image, then conversion/cases/CASE.json, which says what was found in it;
dataset.json comes last, from these records. An interrupted conversion goes on with the cases that have no record, and a
case whose source has changed is made again. A case that cannot be converted leaves no files and the others are done.
"""
from __future__ import annotations

import logging
from collections import Counter
from typing import Callable, Sequence

import numpy as np
from tqdm import tqdm

from c2f_nnunet.data.dataset import read_dataset
from c2f_nnunet.errors import DatasetError, ImageError, RecordError, SomeCasesFailed
from c2f_nnunet.io import records
from c2f_nnunet.io.images import write_volume
from c2f_nnunet.io.rtstruct_in import LEFT_EMPTY
from c2f_nnunet.workspace import lock

from .cases import SourceCase
from .edits import Edits, known_organs, patients_of, put_away
from .masks import merge_masks
from .target import CaseRecord, Overlap, Target, read_records, read_whole, stamp
from .updating import drop_renamed, follow_patients, is_done, sweep, take_out

log = logging.getLogger("c2f_nnunet.conversion")


def write_case(target: Target, case: SourceCase) -> None:
    """Read a case, merge its masks, write label map, image and record; DatasetError or ImageError where it cannot be used."""
    scan, name = case.load(), {i: target.names[organ] for organ, i in target.ids.items()}
    dtype = np.uint8 if max(name) < 256 else np.uint16
    merged = merge_masks(((target.ids[organ], mask) for organ, mask in scan.masks if organ in target.ids), scan.hu.shape, dtype)
    there = set(np.unique(merged.labels).tolist())
    image, label = target.files(case.id, case.training)
    write_volume(label, merged.labels, scan.geometry)
    write_volume(image, scan.hu, scan.geometry)
    write_record(target, case,
                 annotated=tuple(name[i] for i in name if i in there),
                 empty=tuple(name[i] for i in merged.sizes if i not in there),
                 overlaps=tuple(Overlap(name[a], name[b], n) for (a, b), n in sorted(merged.overlaps.items())), notes=scan.notes)


def write_record(target: Target, case: SourceCase, annotated: tuple[str, ...], empty: tuple[str, ...] = (),
                 overlaps: tuple[Overlap, ...] = (), notes: tuple[str, ...] = ()) -> None:
    """The record that says that a case's files are whole; DatasetError for a training case without any organ."""
    if case.training and not annotated:
        raise DatasetError("no organ is delineated in it, so it teaches nothing; leave it out or make it a test case")
    patient = case.patient or case.id
    records.write(target.record(case.id), CaseRecord(case.id, case.training, patient, stamp(case), annotated, empty, overlaps, notes))


def convert(target: Target, cases: Sequence[SourceCase], update: bool,
            write: Callable[[Target, SourceCase], None] = write_case) -> None:
    """Write every case that is not there yet, by `write`, then dataset.json; print what was found.

    DatasetError, and nothing written, where a data set is there already and update is false or the settings differ;
    SomeCasesFailed at the end, naming them, where cases could not be converted.
    """
    if twins := [name for name, times in Counter(case.id.casefold() for case in cases).items() if times > 1]:
        raise DatasetError(f"{target.folder.name}: {', '.join(sorted(twins))} more than once in the source; remove one of each")
    if (target.folder / "dataset.json").exists() and not update:
        raise DatasetError(f"{target.folder}: there is a data set already; give --update to bring it up to date, or another -d")
    failed = {}
    with lock(target.folder, "a conversion"):
        edits = _begin(target, cases)
        follow_patients(target, cases)
        for case in tqdm(cases, desc=target.folder.name, unit="case", disable=None):
            if is_done(target, case):
                continue
            target.record(case.id).unlink(missing_ok=True)  # first: what is being replaced must not look whole
            try:
                write(target, case)
            except (DatasetError, ImageError, RecordError) as e:
                failed[case.id] = str(e)
        sweep(target, cases)
        edits = drop_renamed(target, cases, edits)
        reasons = "".join(f"\n  {case}: {reason}" for case, reason in failed.items())
        done = read_records(target)
        if not any(r.training for r in done):
            raise DatasetError(f"{target.folder}: no training case could be converted: {reasons or 'the source has none'}")
        done = finish_dataset(target, done, edits)
    print(summary(target, done))
    if failed:
        raise SomeCasesFailed(f"{len(failed)} of {len(cases)} cases are left out; mend them and run this again with --update:{reasons}")


def finish_dataset(target: Target, done: Sequence[CaseRecord], edits: Edits) -> list[CaseRecord]:
    """dataset.json of the converted cases, read back as planning will read it; the records that stand in the end.

    An organ that no training case has is left out, of the test cases' label maps too.
    """
    seen = {name for r in done if r.training for name in r.annotated}
    labels = {target.names[organ]: i for organ, i in target.ids.items() if target.names[organ] in seen}
    if unseen := [name for name in target.names.values() if name not in seen]:
        log.warning("%s: no voxel of it in any training case; left out of dataset.json", ", ".join(unseen))
    done = take_out(target, done, unseen)
    value = {
        "name": target.folder.name.split("_", 1)[1], **target.about, "channel_names": {"0": "CT"},
        "labels": {"background": 0, **labels}, "numTraining": len(target.images(True)), "file_ending": target.ending,
        "annotated": known_organs(target, edits, done, labels),
    }  # fmt: skip
    patient_of = patients_of(target, edits, done)
    if any(patient != case for case, patient in patient_of.items()):
        value["patients"] = patient_of
    records.write(target.folder / "dataset.json", value)
    read_dataset(target.folder)
    return done


def summary(target: Target, done: Sequence[CaseRecord]) -> str:
    """What the user should know of the result: cases, changed names, organs that are not everywhere, empty masks, overlaps, notes."""
    lines = [f"{target.folder}: {sum(r.training for r in done)} training and {sum(not r.training for r in done)} test cases"]
    if renamed := [f"{organ} → {name}" for organ, name in target.names.items() if organ != name]:
        lines.append(f"names: {', '.join(renamed)}")
    counts = Counter(name for r in done for name in r.annotated)
    if partial := [f"{name} {counts[name]}" for name in target.names.values() if counts[name] < len(done)]:
        lines.append(f"delineated in some of the {len(done)} cases only: {', '.join(partial)}")
    if empty := [f"{r.case}: {', '.join(r.empty)}" for r in done if r.empty]:
        lines.append(f"masks without a voxel, taken as not delineated: {'; '.join(empty)}")
    shared: dict[tuple[str, str], list[int]] = {}
    for overlap in (overlap for r in done for overlap in r.overlaps):
        shared.setdefault((overlap.kept, overlap.lost), []).append(overlap.voxels)
    for (kept, lost), voxels in shared.items():
        lines.append(f"{kept} and {lost} overlap, by at most {max(voxels)} voxels ({len(voxels)} cases); {kept} kept them")
    if noted := [r for r in done if r.notes]:
        lines.append(f"notes on {len(noted)} of the {len(done)} cases, {sum(len(r.notes) for r in noted)} in all, "
                     f"in {target.folder / 'conversion' / 'cases'}")
    if gaps := [r.case for r in done if any(note.endswith(LEFT_EMPTY) for note in r.notes)]:  # trained on as they are: their own line
        lines.append(f"slices between contours are empty in {len(gaps)} of the {len(done)} cases, look at them: {', '.join(gaps)}")
    return "\n".join(lines)


def _begin(target: Target, cases: Sequence[SourceCase]) -> Edits:
    """Refuse a folder that was made otherwise, and remove dataset.json until everything is whole; what the user changed in it."""
    path = target.folder / "conversion" / "settings.json"
    organs = [f"{i}: {organ} as {target.names[organ]}" for organ, i in target.ids.items()]
    settings = {"organs": organs, **target.settings}
    if path.exists():
        before = records.read_json(path)
        if before != settings:
            now = "; ".join(f"{key} {value}" for key, value in before.items()) if isinstance(before, dict) else "unreadable ones"
            raise DatasetError(f"{target.folder}: was begun with other settings ({now}); give the same, remove it, or give another -d")
    elif any(not p.name.startswith(".") for p in target.folder.iterdir()):
        raise DatasetError(f"{target.folder}: was not made by a converter, so nothing is put there; remove it or give another -d")
    edits = put_away(target, cases, read_whole(target))
    (target.folder / "dataset.json").unlink(missing_ok=True)
    records.write(path, settings)
    return edits
