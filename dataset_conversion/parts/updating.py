"""What an update finds of the conversions before it: what stays, and what goes."""
from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Sequence

from c2f_nnunet.errors import RecordError
from c2f_nnunet.io import records
from c2f_nnunet.io.durable import remove_leftovers

from .cases import SourceCase
from .target import FOLDERS, CaseRecord, Target, read_records, record_files, stamp


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
    now, before = {case.id: case.patient or case.id for case in cases}, _readable(target)
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


def _readable(target: Target) -> list[CaseRecord]:
    """The records but for damaged ones, whose cases are made again."""
    found = []
    for path in record_files(target):
        with suppress(RecordError):
            found.append(records.read(CaseRecord, path))
    return found
