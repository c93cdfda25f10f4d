"""What an update finds of the conversions before it: what stays, and what goes."""
from __future__ import annotations

import logging
from dataclasses import replace
from typing import Collection, Sequence

import numpy as np

from c2f_nnunet.errors import ImageError, RecordError
from c2f_nnunet.geometry import same_grid
from c2f_nnunet.io import records
from c2f_nnunet.io.durable import remove_leftovers
from c2f_nnunet.io.images import read_image, read_label, write_volume

from .cases import SourceCase
from .edits import Edits, move
from .target import FOLDERS, CaseRecord, Target, read_records, read_whole, stamp

log = logging.getLogger("c2f_nnunet.conversion")


def is_done(target: Target, case: SourceCase) -> bool:
    """Whether the case was made whole from the source as it is now."""
    try:
        before = records.read(CaseRecord, target.record(case.id))
    except RecordError:
        return False
    image, label = target.files(case.id, case.training)
    there = image.is_file() and (label.is_file() or not case.training)  # a test case may have no label map
    return there and before.source == stamp(case) and before.training == case.training


def follow_patients(target: Target, cases: Sequence[SourceCase]) -> None:
    """Give the records the patients of the source as it is now; images need no making again.

    A case that the source has no more stays with the scans that it was with: its patient is called what theirs is now.
    """
    now, before = {case.id: case.patient or case.id for case in cases}, read_whole(target)
    renamed: dict[str, str] = {}
    for r in before:
        if r.case in now:
            renamed.setdefault(r.patient, now[r.case])
    for r in sorted(before, key=lambda r: r.case in now):  # last those that tell the new names: an interrupted update can begin again
        patient = now.get(r.case) or renamed.get(r.patient, r.patient)
        if patient != r.patient:
            records.write(target.record(r.case), replace(r, patient=patient))


def sweep(target: Target, cases: Sequence[SourceCase]) -> None:
    """Remove what cases of the source left that failed, that a kill interrupted, or that changed between training and test.

    Files of other names are the user's.
    """
    kept = {path for r in read_records(target) for path in target.files(r.case, r.training)}
    for path in (path for case in cases for training in FOLDERS for path in target.files(case.id, training)):
        if path not in kept:
            path.unlink(missing_ok=True)
    for folder in ("", "conversion", "conversion/cases", *FOLDERS[True], *FOLDERS[False]):
        remove_leftovers(target.folder / folder)


def drop_renamed(target: Target, cases: Sequence[SourceCase], edits: Edits) -> Edits:
    """Remove the old copy of each case that the source has under another id by now; name the cases that it has no more, which stay.

    What the user changed of a renamed case, in dataset.json or in its label map, is the new id's.
    """
    done, ids = read_records(target), {case.id for case in cases}
    present = {r.source: r for r in done if r.case in ids and r.source}
    gone = []
    for r in (r for r in done if r.case not in ids):
        if (new := present.get(r.source)) and new.training == r.training and _same_scan(target, r, new):
            edits = move(target, edits, r.case, new.case)
            _replace(target, r, new)
            log.info("%s is %s in the source now, and is called so here", r.case, new.case)
        else:
            gone.append(r.case)
    if gone:
        log.warning("%s: no longer in the source, but kept in the data set; if that is not meant, remove the images, the label maps "
                    "and conversion/cases/CASE.json, and run this again with --update", ", ".join(gone))
    return edits


def _same_scan(target: Target, old: CaseRecord, new: CaseRecord) -> bool:
    """Whether two cases have the same voxels: files of one name, size and time may hold different scans."""
    (image, label), (other, _) = (target.files(r.case, r.training) for r in (old, new))
    if not image.exists() and not label.exists():
        return True  # an interrupted update came as far as that
    try:
        a, b = read_image(image), read_image(other)
    except ImageError:
        return False
    return same_grid(a.geometry, b.geometry) and np.array_equal(a.array, b.array)


def _replace(target: Target, old: CaseRecord, new: CaseRecord) -> None:
    """Put a case's label map and record in the place of those of its copy under a new id; both are of one source."""
    image, label = target.files(old.case, old.training)
    if label.exists():
        label.replace(target.files(new.case, new.training)[1])
    records.write(target.record(new.case), replace(old, case=new.case, patient=new.patient))
    image.unlink(missing_ok=True)
    target.record(old.case).unlink()  # last: by it an interrupted update finds the rest


def take_out(target: Target, done: Sequence[CaseRecord], unseen: Collection[str]) -> list[CaseRecord]:
    """The records after the organs `unseen`, which dataset.json leaves out, are taken out of label maps too: those of test cases hold them.

    Such a record loses its stamp, so that an update makes the case again: a training case may have the organ by then.
    """
    left = []
    for r in done:
        if lost := [name for name in r.annotated if name in unseen]:
            r = replace(r, source="")
            records.write(target.record(r.case), r)  # first: after an interruption the label map may lack what the record says
            _, label = target.files(r.case, r.training)
            if label.is_file():
                volume, ids = read_label(label), [i for organ, i in target.ids.items() if target.names[organ] in lost]
                volume.array[np.isin(volume.array, ids)] = 0
                write_volume(label, volume.array, volume.geometry)
            r = replace(r, annotated=tuple(name for name in r.annotated if name not in lost))
            records.write(target.record(r.case), r)
        left.append(r)
    return left
