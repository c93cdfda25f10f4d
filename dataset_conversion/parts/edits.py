"""What the user changed by hand in dataset.json: who has which organs (`annotated`), and which scans are one patient's (`patients`).

A conversion removes dataset.json before anything else and makes it anew at its end. Until then the changes are in conversion/edits.json,
where an interrupted conversion finds them, and where those of a case that fails wait for it.
"""
from __future__ import annotations

import logging
from dataclasses import field
from pathlib import Path
from typing import Any, Collection, Sequence

from c2f_nnunet.errors import DatasetError
from c2f_nnunet.io import records
from c2f_nnunet.io.records import record

from .cases import SourceCase
from .target import CaseRecord, Target

log = logging.getLogger("c2f_nnunet.conversion")


@record
class Edits:
    """annotated: case → organ → whether it is known there. patients: case → patient.

    Of a converted case only what differs from its record; of one that the user added all that dataset.json says.
    """

    annotated: dict[str, dict[str, bool]] = field(default_factory=dict)
    patients: dict[str, str] = field(default_factory=dict)


@record
class Description:
    """The keys of dataset.json that are compared."""

    labels: dict[str, Any]
    annotated: dict[str, tuple[str, ...]] | None = None
    patients: dict[str, str | int] | None = None


def put_away(target: Target, cases: Sequence[SourceCase], done: Sequence[CaseRecord]) -> Edits:
    """The changes, as dataset.json shows them beside the records `done`; they are in conversion/edits.json from here on.

    Where there is no dataset.json, those that an interrupted conversion put there. RecordError or DatasetError for a damaged file.
    """
    path, source = _file(target), target.folder / "dataset.json"
    edits = before = records.read(Edits, path) if path.exists() else Edits()
    if source.exists():
        edits = _compare(target, _describe(source), {case.id for case in cases}, {r.case: r for r in done}, before)
    if edits != before:
        records.write(path, edits)
    if changed := sorted({*edits.annotated, *edits.patients}):
        log.info("%s: what was changed in it by hand is kept, of %s", source, ", ".join(changed))
    return edits


def move(target: Target, edits: Edits, old: str, new: str) -> Edits:
    """The changes after a case was given another id; those in conversion/edits.json too."""

    def now(case: str) -> str:
        return new if case == old else case

    moved = Edits({now(case): said for case, said in edits.annotated.items()},
                  {now(case): now(patient) for case, patient in edits.patients.items()})
    if moved != edits:
        records.write(_file(target), moved)
    return moved


def known_organs(target: Target, edits: Edits, done: Sequence[CaseRecord], labels: Collection[str]) -> dict[str, list[str]]:
    """Case → its known organs, for the cases that lack one of `labels`."""
    found = {r.case: r.annotated for r in done} | dict.fromkeys(_added(target, done) & edits.annotated.keys(), ())
    known = {case: [o for o in labels if edits.annotated.get(case, {}).get(o, o in organs)] for case, organs in found.items()}
    return {case: organs for case, organs in known.items() if len(organs) < len(labels)}


def patients_of(target: Target, edits: Edits, done: Sequence[CaseRecord]) -> dict[str, str]:
    """Case → patient. What the user called after a case goes where that case goes, whose patient may have another name by now."""
    found = {r.case: r.patient for r in done}
    changed = {case: patient for case, patient in edits.patients.items() if case in found.keys() | _added(target, done)}
    return found | {case: patient if patient == case else found.get(patient, patient) for case, patient in changed.items()}


def _file(target: Target) -> Path:
    return target.folder / "conversion" / "edits.json"


def _added(target: Target, done: Sequence[CaseRecord]) -> set[str]:
    """The cases that the user added."""
    return (target.images(True) | target.images(False)) - {r.case for r in done}


def _describe(source: Path) -> Description:
    """dataset.json's keys; an organ that is none of its labels would be lost in silence."""
    value = records.read_json(source)
    known = {key: value[key] for key in Description.__dataclass_fields__ if key in value} if isinstance(value, dict) else value
    described = records.from_json(Description, known, source)
    if wrong := sorted({organ for organs in (described.annotated or {}).values() for organ in organs} - described.labels.keys()):
        raise DatasetError(f"{source}: 'annotated' names {', '.join(wrong)}, which 'labels' does not; mend these entries")
    return described


def _compare(target: Target, described: Description, source: set[str], done: dict[str, CaseRecord], before: Edits) -> Edits:
    """The changes in dataset.json; `before`'s stay of what it does not speak of: cases that failed, organs that no training case has."""
    organs = [name for name in target.names.values() if name in described.labels]
    listed, patients = described.annotated or {}, described.patients or {}
    known, patient_of = dict(before.annotated), dict(before.patients)
    for case in target.images(True) | target.images(False):
        if r := done.get(case):
            now = {organ: organ in listed.get(case, organs) for organ in organs}
            waiting = {organ: said for organ, said in before.annotated.get(case, {}).items() if organ not in organs}
            known[case] = waiting | {organ: said for organ, said in now.items() if said != (organ in r.annotated)}
            patient = str(patients.get(case, case))
            patient_of[case] = patient if patient != r.patient else ""
        elif case not in source:  # the user's own
            known[case] = {organ: organ in listed[case] for organ in organs} if case in listed else {}
            patient_of[case] = str(patients.get(case, ""))
    return Edits({case: said for case, said in known.items() if said}, {case: patient for case, patient in patient_of.items() if patient})
