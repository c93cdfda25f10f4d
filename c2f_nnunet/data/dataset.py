"""A raw data set in nnU-Net v2's format: dataset.json, imagesTr, labelsTr and imagesTs, checked by file names alone.

What only the voxels can tell (geometry, label values) is verified by `fingerprint.measure`.
"""
from __future__ import annotations

import logging
import re
import unicodedata
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any, Iterable

from ..errors import DatasetError
from ..io import records
from ..io.images import IMAGE_ENDINGS
from ..io.records import record
from ..io.scans import Scan
from ..labels import LabelSet
from .series import RESERVED, series_cases

log = logging.getLogger(__name__)
OUR_KEYS = ("annotated", "patients")
MAX_LABEL_ID = 65535  # labels are stored as uint16 at most


@record
class _Description:
    """The keys of dataset.json that are read; the values of `labels` are checked one by one for better messages."""

    channel_names: dict[str, str]
    labels: dict[str, Any]
    file_ending: str
    annotated: dict[str, tuple[str, ...]] | None = None
    patients: dict[str, str | int] | None = None
    numTraining: int | None = None


@dataclass(frozen=True)
class Case:
    """One patient scan. image: a file, or where it is to be predicted, those of a DICOM series. annotated: the organs
    delineated in it, in label order; None means every organ."""

    id: str
    image: Scan
    label: Path | None
    annotated: tuple[str, ...] | None


@dataclass(frozen=True)
class Dataset:
    """A raw data set whose files are all there. patients: case id → patient id, for the cases that dataset.json lists."""

    name: str
    root: Path
    labels: LabelSet
    file_ending: str
    training: tuple[Case, ...]
    test: tuple[Case, ...]
    patients: dict[str, str]


def read_dataset(root: Path) -> Dataset:
    """The data set in a folder DatasetXXX_Name, cases sorted by id; DatasetError lists everything that is missing at once."""
    root = Path(root)
    source = root / "dataset.json"
    description = _read_description(source)
    labels, ending = _label_set(description.labels, source), description.file_ending
    images = _image_cases(root / "imagesTr", ending)
    masks = _files(root / "labelsTr", ending)
    tests = _image_cases(root / "imagesTs", ending)
    test_masks = _files(root / "labelsTs", ending)
    if not images and not masks:
        raise DatasetError(f"{root / 'imagesTr'}: no training case there; {_expected(root / 'imagesTr', ending)}")
    _refuse_collisions(chain(images, masks), root)  # chained: a label whose name differs from its image's in Unicode form only
    _refuse_collisions(tests, root)
    _refuse_missing(images, masks, root, ending)
    if both := sorted(images.keys() & tests.keys()):
        log.warning("%s: %s in both imagesTr and imagesTs; scores on imagesTs are not those of unseen cases", root, ", ".join(both))
    if description.numTraining not in (None, len(images)):
        log.warning("%s: numTraining is %d, but imagesTr holds %d cases; all are used", source, description.numTraining, len(images))
    annotated = _annotated(description.annotated or {}, labels, images.keys() | tests.keys(), source)
    if nothing := [c for c in sorted(images) if annotated.get(c) == ()]:
        raise DatasetError(f"{source}: 'annotated' lists no organ for {', '.join(nothing)}; move what teaches nothing to imagesTs")
    return Dataset(
        name=root.absolute().name,
        root=root,
        labels=labels,
        file_ending=ending,
        training=tuple(Case(c, images[c], masks[c], annotated.get(c)) for c in sorted(images)),
        test=tuple(Case(c, tests[c], test_masks.get(c), annotated.get(c)) for c in sorted(tests)),
        patients=_patients(description.patients or {}, images.keys() | tests.keys(), source),
    )


def prediction_cases(folder: Path, file_ending: str) -> tuple[Case, ...]:
    """The cases to predict in a folder, sorted by id.

    CASE_0000.ending, or CASE.ending where no file there has the suffix _0000; and each DICOM CT series there and in its
    sub-folders, by the names of `series.case_names`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder; give the folder that holds the images to predict")
    files: dict[str, Scan] = _files(folder, file_ending)
    if any(stem.endswith("_0000") for stem in files):
        files = _image_cases(folder, file_ending)
    _refuse_collisions(files, folder)
    if taken := [case for case in files if case.casefold() in RESERVED]:
        raise DatasetError(f"{folder}: {files[taken[0]].name} would have its notes in {taken[0]}.json, which c2f_nnunet writes; rename it")
    files = files | series_cases(folder, files)
    if not files:
        raise DatasetError(f"{folder}: no image there; {_expected(folder, file_ending)}; a folder of DICOM CT series will do as well")
    return tuple(Case(c, files[c], None, None) for c in sorted(files))


def _read_description(source: Path) -> _Description:
    """dataset.json's keys, with the traps of older and newer formats named; unknown keys are ignored, as nnU-Net ignores them."""
    value = records.read_json(source)
    if not isinstance(value, dict):
        raise DatasetError(f"{source}: is no JSON object; write one with channel_names, labels and file_ending, as nnU-Net v2 does")
    if "modality" in value and "channel_names" not in value:
        raise DatasetError(f"{source}: is in nnU-Net v1's format; convert it to v2's (channel_names, labels as name: id, file_ending)")
    if "dataset" in value:
        raise DatasetError(f"{source}: lists files under 'dataset', which is not read; put them into imagesTr and labelsTr and remove it")
    known = _Description.__dataclass_fields__
    for key in value.keys() - known:
        # a typo would mean "every organ is annotated everywhere", and unknown organs would be learned as absent
        if close := get_close_matches(key.lower(), OUR_KEYS, n=1, cutoff=0.8):
            raise DatasetError(f"{source}: unknown key '{key}'; write '{close[0]}' if that is meant, or remove it")
    description = records.from_json(_Description, {k: v for k, v in value.items() if k in known}, source)
    if len(description.channel_names) != 1:
        channels = ", ".join(f"{k}: {v}" for k, v in description.channel_names.items()) or "none"
        raise DatasetError(f"{source}: channel_names must hold exactly one channel, the CT, but holds {channels}; remove the others")
    if (name := next(iter(description.channel_names.values()))).upper() != "CT":
        log.warning("%s: the channel is called '%s'; intensities are taken as Hounsfield units of a CT", source, name)
    if description.file_ending not in IMAGE_ENDINGS:
        readable = ", ".join(IMAGE_ENDINGS)
        raise DatasetError(f"{source}: file_ending '{description.file_ending}' cannot be read; convert the images to one of {readable}")
    return description


def _label_set(labels: dict[str, Any], source: Path) -> LabelSet:
    """labels of dataset.json as a LabelSet: plain whole numbers, background 0; no regions, no ignore label."""
    for name, value in labels.items():
        if name.strip().lower() == "ignore":
            raise DatasetError(
                f"{source}: the label '{name}' ({value}) is not supported; take it out of the masks and here, "
                "and list the organs that are known in such cases under 'annotated'"
            )
        if isinstance(value, (list, tuple)):
            raise DatasetError(f"{source}: label '{name}' is a region {value}, which is not supported; give each organ an id of its own")
        if not name.strip() or not name.isprintable():
            raise DatasetError(f"{source}: the label name {name!r} is blank or holds characters that cannot be printed; rename it")
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_LABEL_ID:
            raise DatasetError(f"{source}: label '{name}' has the id {value!r}; write a name and a whole number from 0 to {MAX_LABEL_ID}")
    if labels.get("background") != 0 or list(labels.values()).count(0) != 1:
        raise DatasetError(f"{source}: labels must hold \"background\": 0 and no other label with the id 0 (got {labels}); mend the list")
    if len(labels) == 1:
        raise DatasetError(f"{source}: labels names no organ besides the background; list the organs and their ids")
    _refuse_collisions(labels, source, "labels")
    return LabelSet.from_names(labels)


def _files(folder: Path, ending: str) -> dict[str, Path]:
    """Name without the ending → file, for the folder's images; hidden files (macOS leaves '._' twins) and other types are ignored."""
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    files = {p.name[: -len(ending)]: p for p in paths if p.name.endswith(ending) and not p.name.startswith(".") and p.is_file()}
    for stem, path in files.items():
        if not stem.isprintable():  # control characters, line breaks and undecodable bytes would break tables, logs and JSON
            raise DatasetError(f"{folder}: the file name {path.name!r} holds characters that cannot be printed; rename it")
    return files


def _image_cases(folder: Path, ending: str) -> dict[str, Path]:
    """Case id → image, for files CASE_0000.ending; a second channel or a missing suffix is an error."""
    cases = {}
    for stem, path in _files(folder, ending).items():
        found = re.fullmatch(r"(.+)_(\d{4})", stem)
        if not found:
            raise DatasetError(f"{path}: the name has no channel suffix; rename it to {stem}_0000{ending}")
        if found[2] != "0000":
            remedy = f"remove it, or add _0000 to its name if {found[2]} is part of the id"
            raise DatasetError(f"{path}: is channel {found[2]} of case {found[1]}, but only one channel (_0000) can be used; {remedy}")
        cases[found[1]] = path
    return cases


def _expected(folder: Path, ending: str) -> str:
    """What a folder without images should hold, and what it holds instead."""
    others = sorted({e for e in IMAGE_ENDINGS if e != ending and _files(folder, e)})
    found = f"; it holds {', '.join(others)} files: convert them or mend file_ending" if others else "; add the images or check the path"
    return f"expected files named CASE_0000{ending}{found}"


def _refuse_collisions(names: Iterable[str], where: Path, what: str = "case ids") -> None:
    """Names that differ only by case or Unicode form are one file on some systems and two on others."""
    seen: dict[str, str] = {}
    for name in names:
        key = unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())
        if seen.setdefault(key, name) != name:
            raise DatasetError(f"{where}: the {what} {seen[key]!a} and {name!a} differ only by upper case or Unicode form; rename one")


def _refuse_missing(images: dict[str, Path], masks: dict[str, Path], root: Path, ending: str) -> None:
    missing = [f"imagesTr/{c}_0000{ending}" for c in sorted(masks.keys() - images.keys())]
    missing += [f"labelsTr/{c}{ending}" for c in sorted(images.keys() - masks.keys())]
    if missing:
        listed = ", ".join(missing)
        raise DatasetError(f"{root}: {len(missing)} files of training cases are missing: {listed}; add them, or remove their counterparts")


def _annotated(
    annotated: dict[str, tuple[str, ...]], labels: LabelSet, cases: set[str], source: Path
) -> dict[str, tuple[str, ...]]:
    """dataset.json's `annotated` in label order; all unknown cases and organs are named at once."""
    wrong = [f"case '{c}' has no image" for c in annotated if c not in cases]
    wrong += [f"{c}: '{o}' is not one of the labels" for c, organs in annotated.items() for o in organs if o not in labels.organs]
    if wrong:
        raise DatasetError(f"{source}: 'annotated' does not fit the data set: {'; '.join(wrong)}; mend these entries")
    return {c: tuple(o for o in labels.organs if o in organs) for c, organs in annotated.items()}


def _patients(patients: dict[str, str | int], cases: set[str], source: Path) -> dict[str, str]:
    if unknown := sorted(patients.keys() - cases):
        raise DatasetError(f"{source}: 'patients' names cases without an image: {', '.join(unknown)}; mend or remove these entries")
    return {case: str(patient) for case, patient in patients.items()}
