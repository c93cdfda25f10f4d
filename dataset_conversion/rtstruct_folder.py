"""A folder of patients in DICOM, CT series and RTSTRUCTs in any nesting → raw data set.

    python dataset_conversion/rtstruct_folder.py EXPORT -d 15 --workspace WS --list
    python dataset_conversion/rtstruct_folder.py EXPORT -d 15 --workspace WS --mapping organs.json

First comes a table of the structures' names: how many patients have each, how many with contours, and which organ it is
taken as. With --mapping, organs.json says so: {"ROI name or regular expression": "Organ"}; a name as it is written goes
before an expression, which must match the whole name in any case. Without it, names are recognised as organs by TG-263
and its known spellings, and the others are left out; --names source takes every name as it is.

A structure that is missing, empty or cannot be used in a patient was not delineated there: the organ is left out of
`annotated` for this patient. Where organs overlap, the smaller one keeps the voxels. An RTSTRUCT belongs to the series
that it refers to; where that is not there, to the one in its frame of reference, or else to the only one in its folder, unless that
one has an RTSTRUCT which refers to it.

What is odd about a structure that is taken, such as slices between its contours that stay empty, is told, also by --list, and kept as
`notes` in conversion/cases/CASE.json.
"""
from __future__ import annotations

import argparse
import json
import logging
import re
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Container, Iterator

import numpy as np
import pandas as pd
from parts.cases import Scan, SourceCase
from parts.command import source_parser, target_folder
from parts.target import Target
from parts.writing import convert
from tqdm import tqdm

from c2f_nnunet.cli.common import entry
from c2f_nnunet.data.series import case_names, file_safe, log_passed_over, numbered
from c2f_nnunet.errors import C2FError, DatasetError, SomeCasesFailed
from c2f_nnunet.io import records
from c2f_nnunet.io.dicom import read_series, series_geometry
from c2f_nnunet.io.rtstruct_in import EMPTY, LEFT_EMPTY, NO_VOXEL, RTStruct, Structure, full_mask, read_rtstruct
from c2f_nnunet.io.series import series_reference
from c2f_nnunet.io.survey import DICOM_ENDINGS, Series, Survey, rtstruct_references, survey
from c2f_nnunet.tg263 import tg263_name

log = logging.getLogger("c2f_nnunet.conversion")
WHOLE_BODY = ("External", "Body", "Skin")  # TG-263 names that are no organs; a mapping may take them all the same
ABOUT = {"description": "CT series and RTSTRUCTs of a clinic, converted by rtstruct_folder.py"}


@dataclass(frozen=True)
class Note:
    """What a user of the masks should know. structure: whose it is, "" for the whole file. grave: a mask may lack what was meant."""

    sentence: str
    structure: str = ""
    grave: bool = False


@dataclass(frozen=True)
class Patient:
    """A CT series with its RTSTRUCT. names: of the structures → whether there are contours that can be used.

    notes: how they were brought together, where that is not by reference, and on the structures. error: why they cannot be used, "" where
    they can.
    """

    case: str
    series: Series
    rtstruct: Path
    names: dict[str, bool]
    notes: tuple[Note, ...] = ()
    error: str = ""


# What there is


def find_patients(source: Path) -> list[Patient]:
    """Every RTSTRUCT below `source` with its CT series, sorted by case; series without one and other files are passed over, with notes."""
    if not source.is_dir():
        raise DatasetError(f"{source}: no such folder; give the folder that holds the patients' DICOM files")
    found = survey(source)
    if not (rtstructs := found.others.get("RTSTRUCT")):
        raise DatasetError(f"{source}: no RTSTRUCT there; export the structure sets with the CT series, or check the path")
    log_passed_over(source, {kind: paths for kind, paths in found.others.items() if kind != "RTSTRUCT"})
    pairs = _by_reference(source, [(path, *_series_of(source, path, found)) for path in rtstructs])
    drawn_on = list(dict.fromkeys(series for _, series, _ in pairs if series))
    names = dict(zip(drawn_on, case_names(source, drawn_on)))
    count = Counter(series for _, series, _ in pairs if series)
    patients = []
    for path, series, note in tqdm(pairs, desc="reading RTSTRUCTs", unit="file", disable=None):
        if series is None:
            patients.append(_unusable(source, path, f"{path}: {note}"))
        elif count[series] == 1:
            patients.append(_patient(names[series], series, path, note))
    for series in (s for s in drawn_on if count[s] > 1):
        listed = ", ".join(path.relative_to(source).as_posix() for path, s, _ in pairs if s == series)
        error = f"{count[series]} RTSTRUCTs were drawn on it ({listed}); keep the one that is meant"
        patients.append(Patient(names[series], series, source, {}, (), error))
    patients += [_unusable(source, s.files[0], found.damaged[s.files[0]]) for s in found.series if not s.uid]
    if without := [s.files[0].parent for s in found.series if s.uid and s not in names]:
        log.warning("%d CT series without an RTSTRUCT are passed over, in %s", len(without), ", ".join(map(str, without[:5])))
    patients.sort(key=lambda p: not p.series.uid)  # a series keeps its name; of files without one, two may have the same
    cases = numbered([p.case for p in patients])
    return sorted((replace(p, case=case) for p, case in zip(patients, cases)), key=lambda p: p.case)


def _by_reference(source: Path, pairs: list[tuple[Path, Series | None, str]]) -> list[tuple[Path, Series | None, str]]:
    """The RTSTRUCTs with series and notes, but none that is only guessed to belong to a series that another one refers to.

    It was drawn on a scan that is no CT or not there, such as an MR beside the planning CT.
    """
    named = {series for _, series, note in pairs if series and not note}
    if others := [path.relative_to(source).as_posix() for path, series, note in pairs if note and series in named]:
        log.warning("passed over, since they refer to other series than the CT beside them, which has an RTSTRUCT of its own: %s",
                    ", ".join(others))
    return [(path, series, note) for path, series, note in pairs if not (note and series in named)]


def _unusable(source: Path, path: Path, error: str) -> Patient:
    """A file that belongs to no usable patient, so that it is named with what failed."""
    where = path.relative_to(source)
    case = file_safe("_".join((where.with_suffix("") if where.suffix.lower() in DICOM_ENDINGS else where).parts))
    return Patient(case, Series("", "", (path,)), path, {}, (), error)


def _series_of(source: Path, rtstruct: Path, found: Survey) -> tuple[Series | None, str]:
    """(the series that an RTSTRUCT was drawn on, a note where it is not found by reference); (None, reason) where there is none."""
    try:
        uids, frames = rtstruct_references(rtstruct)
    except C2FError as e:
        return None, str(e).removeprefix(f"{rtstruct}: ")
    known = [s for s in found.series if s.uid]
    if len(meant := [s for s in known if s.uid in uids]) == 1:
        return meant[0], ""
    if len(meant) > 1:
        return None, f"refers to {len(meant)} CT series; export one RTSTRUCT for each"
    if len(meant := [s for s in known if s.frame in frames]) == 1:
        return meant[0], "the series that the RTSTRUCT refers to is not there: the only one in its frame of reference is taken"
    for folder in (f for f in rtstruct.parents if f != source and f.is_relative_to(source)):  # from its own folder outwards
        inside = [s for s in known if any(f.is_relative_to(folder) for f in s.files)]
        if len(inside) == 1:
            return inside[0], "the series that the RTSTRUCT refers to is not there: the only one in its folder is taken"
        if inside:
            break
    return None, "the CT series that it refers to is not there, and no other is the only one in its frame or folder; add the series"


def _patient(case: str, series: Series, path: Path, note: str) -> Patient:
    """The patient with the structures' names and notes, from headers and contours alone. note: on how both came together, or ""."""
    notes = [Note(note)] if note else []
    try:
        rtstruct = read_rtstruct(path, series_geometry(series.files), series_reference(series.files))
    except C2FError as e:
        return Patient(case, series, path, {}, tuple(notes), str(e))
    names: dict[str, bool] = {}
    for s in rtstruct.structures:
        names[s.name] = names.get(s.name, False) or bool(s.polygons)
    notes += [Note(text) for text in rtstruct.notes] + [n for s in rtstruct.structures for n in _notes_on(s)]
    return Patient(case, series, path, names, tuple(notes))


def _notes_on(s: Structure) -> list[Note]:
    """What there is to know of one structure; nothing of one that nobody drew, as templates have many."""
    if s.refusal:
        return [Note(f"'{s.name}' is left out: {s.refusal}", s.name, True)]
    if EMPTY in s.notes:
        return []
    return [Note(f"'{s.name}': {text}", s.name, LEFT_EMPTY in text or NO_VOXEL in text or not s.polygons) for text in s.notes]


def tell_notes(patient: Patient, organs: Container[str]) -> tuple[str, ...]:
    """Log the notes on a patient's file and on its structures that are taken as organs, grave ones as warnings; the sentences."""
    meant = [n for n in patient.notes if not n.structure or n.structure in organs]
    for note in meant:
        (log.warning if note.grave else log.info)("%s: %s", patient.case, note.sentence)
    return tuple(note.sentence for note in meant)


# Which structure is which organ


def read_mapping(path: Path) -> dict[str, str]:
    """The mapping of a JSON file; DatasetError for what is none."""
    mapping = records.read_json(path)
    if not isinstance(mapping, dict) or not mapping or not all(isinstance(v, str) and v.strip() == v != "" for v in mapping.values()):
        raise DatasetError(f'{path}: is no mapping; write {{"ROI name or regular expression": "Organ", …}}')
    for pattern in mapping:
        try:
            re.compile(pattern)
        except re.error as e:
            raise DatasetError(f"{path}: '{pattern}' is no regular expression ({e}); put a \\ before ( ) [ ] * + ? . | ^ $ and \\") from e
    return mapping


def organ_of(name: str, mapping: dict[str, str] | None, scheme: str) -> str | None:
    """The organ that a structure's name stands for; None where it is left out. DatasetError where expressions disagree."""
    if mapping is None and scheme == "source":
        return name
    if mapping is None:
        organ = tg263_name(name)
        return None if organ in WHOLE_BODY else organ
    if name in mapping:
        return mapping[name]
    hits = {pattern: organ for pattern, organ in mapping.items() if re.fullmatch(pattern, name, re.IGNORECASE)}
    if len(set(hits.values())) > 1:
        listed = ", ".join(f"'{pattern}': {organ}" for pattern, organ in hits.items())
        raise DatasetError(f"the structure '{name}' fits several entries of the mapping ({listed}); add one for this very name")
    return next(iter(hits.values()), None)


def organ_table(patients: list[Patient], organs: dict[str, str | None]) -> pd.DataFrame:
    """A row for each structure's name, the most frequent first: patients who have it, those with contours, and the organ."""
    listed, drawn = Counter(n for p in patients for n in p.names), Counter(n for p in patients for n, there in p.names.items() if there)
    rows = [{"structure": n, "patients": listed[n], "with contours": drawn[n], "organ": organs[n] or "(left out)"} for n in organs]
    return pd.DataFrame(rows).sort_values(["with contours", "structure"], ascending=[False, True], ignore_index=True)


# A case's scan and masks


def load(patient: Patient, organs: dict[str, str]) -> Scan:
    """CT and masks by organ; DatasetError for a patient who cannot be used, ImageError where a file cannot be read."""
    if patient.error:
        raise DatasetError(patient.error)
    image = read_series(patient.series.files)
    rtstruct = read_rtstruct(patient.rtstruct, image.geometry, series_reference(patient.series.files))
    chosen: dict[str, Structure] = {}
    for s in rtstruct.structures:
        organ = organs.get(s.name)
        if not organ or not s.polygons:
            continue
        if organ in chosen:
            raise DatasetError(f"{patient.rtstruct}: '{chosen[organ].name}' and '{s.name}' are both {organ}; "
                               "keep one of them, or tell them apart in the mapping")
        chosen[organ] = s
    return Scan(image.array, image.geometry, _masks(rtstruct, chosen), tell_notes(patient, organs))


def _masks(rtstruct: RTStruct, chosen: dict[str, Structure]) -> Iterator[tuple[str, np.ndarray]]:
    for organ, structure in chosen.items():
        yield organ, full_mask(rtstruct, structure)


def source_cases(patients: list[Patient], organs: dict[str, str]) -> list[SourceCase]:
    """The patients as the converters' cases; scans with one PatientID are one patient's, by the first one's case name."""
    ids = {p.series.patient for p in patients if not p.error}
    same = len(ids) == 1 and len(patients) > 1  # anonymisers may give all patients one id
    if same:
        log.warning("all %d scans have the PatientID %r; they are taken as scans of different patients", len(patients), *ids)
    first: dict[str, str] = {}
    cases = []
    for p in patients:
        drawn = tuple(dict.fromkeys(organs[name] for name, there in p.names.items() if there and name in organs))
        patient = None if same or not p.series.patient else first.setdefault(p.series.patient, p.case)
        cases.append(SourceCase(p.case, True, drawn, (p.rtstruct, *p.series.files), partial(load, p, organs), patient))
    return cases


def parser() -> argparse.ArgumentParser:
    p = source_parser(
        "rtstruct_folder.py", "Make a raw data set of a clinic's CT series and RTSTRUCTs.",
        "a folder of patients: DICOM files in any nesting", "RTSTRUCT",
        "python dataset_conversion/rtstruct_folder.py EXPORT -d 15 --workspace WS --mapping organs.json")
    p.add_argument("--mapping", type=Path, metavar="FILE", help='JSON: {"ROI name or regular expression": "Organ"} (default: by TG-263)')
    p.add_argument("--list", action="store_true", help="show the table of structures and write nothing")
    return p


def body(args: argparse.Namespace) -> None:
    folder = target_folder(args)
    mapping = read_mapping(args.mapping) if args.mapping else None
    patients = find_patients(args.source)
    found = {name: organ_of(name, mapping, args.names) for name in sorted({name for p in patients for name in p.names})}
    failed = [f"{p.case}: {p.error}" for p in patients if p.error]
    if found:
        print(organ_table(patients, found).to_string(index=False))
    if unused := [pattern for pattern, organ in (mapping or {}).items() if organ not in found.values()]:
        log.warning("no structure fits these entries of the mapping: %s", ", ".join(unused))
    organs = {name: organ for name, organ in found.items() if organ}
    if args.list:
        for p in patients:
            tell_notes(p, organs)
        if failed:
            raise SomeCasesFailed(f"{len(failed)} of {len(patients)} RTSTRUCTs cannot be used: {'; '.join(failed)}")
        return
    cases = source_cases(patients, organs)
    drawn = {organ for case in cases for organ in case.organs}
    order = [o for o in dict.fromkeys((mapping or {}).values()) if o in drawn] if mapping else sorted(drawn)
    if not order:
        why = "; ".join(failed) or "the table shows what there is"
        raise DatasetError(f"{args.source}: no structure with contours is taken as an organ ({why}); give --mapping")
    settings = {"mapping": json.dumps(mapping, sort_keys=True, ensure_ascii=False) if mapping else args.names}
    convert(Target(folder, {organ: i for i, organ in enumerate(order, 1)}, {o: o for o in order}, settings, ABOUT), cases, args.update)


main = entry(parser, body)

if __name__ == "__main__":
    raise SystemExit(main())
