"""The DICOM CT series of a folder as cases: which there are, and what they are called."""
from __future__ import annotations

import logging
import re
import unicodedata
from collections import Counter, defaultdict
from pathlib import Path
from typing import Collection, Iterable, Mapping

from ..io.survey import NO_DICOM, Series, survey

log = logging.getLogger(__name__)
LONGEST_NAME = 120  # bytes: with what is added for the results' files it stays below 255
RESERVED = ("checks", "dataset", "summary")  # what is called so, with .json, lies among the results
UID_END = 8  # digits of a series UID that tell it from others of its folder


def series_cases(folder: Path, taken: Collection[str] = ()) -> dict[str, tuple[Path, ...]]:
    """Case name → files of each CT series in a folder and its sub-folders; what is passed over goes to the log.

    taken: names of other cases, which are not given again.
    """
    found = survey(folder)
    if found.series:
        log_passed_over(folder, found.others)
    names = case_names(folder, found.series, taken)
    return {name: series.files for name, series in zip(names, found.series)}


def case_names(folder: Path, series: Iterable[Series], taken: Collection[str] = ()) -> list[str]:
    """A readable, file-safe and unique name for each series.

    The outermost sub-folder that holds the series and no other one gives the name: P01 for P01/CT/*.dcm, and P01_CT for
    it where there is another series in P01. For series that share their folder it is that folder's name, or in `folder`
    itself the PatientID, and the last digits of the series UID: HN001_20231104. So is it where two names would be one.
    """
    series = list(series)
    places = [_place(folder, s.files) for s in series]
    uids_in = defaultdict(set)
    for s in series:
        for inside in {parent for f in s.files for parent in f.relative_to(folder).parents} if s.uid else ():
            uids_in[inside].add(s.uid)
    own, shared = [], []
    for s, place in zip(series, places):
        chain = [*reversed(place.parents), place][1:]  # from outermost to innermost, without `folder` itself
        alone = next((f for f in chain if uids_in[f] == {s.uid}), None)
        own.append(alone and file_safe("_".join(alone.parts)))
        shared.append(file_safe("_".join(place.parts) or s.patient))
    count = Counter(_key(name) for name in [*own, *taken, *RESERVED] if name)
    names = [o if o and count[_key(o)] == 1 else _with_uid(o or common, s.uid) for o, common, s in zip(own, shared, series)]
    return numbered(names, taken)


def file_safe(text: str) -> str:
    """Letters, digits, '-' and '_' of a text, all else as '_', so that it is a file's name everywhere."""
    kept = re.sub(r"[^\w\-]+", "_", unicodedata.normalize("NFC", text)).strip("_-")
    return kept.encode()[:LONGEST_NAME].decode(errors="ignore") or "scan"


def _place(folder: Path, files: Iterable[Path]) -> Path:
    """The innermost folder that holds all the files, relative to `folder`."""
    shared = None
    for f in files:
        parents = [*reversed(f.relative_to(folder).parents)]
        shared = parents if shared is None else [a for a, b in zip(shared, parents) if a == b]
    return shared[-1]


def _with_uid(name: str, uid: str) -> str:
    return f"{name}_{re.sub(r'[^0-9]', '', uid)[-UID_END:] or 'damaged'}"


def _key(name: str) -> str:
    """Equal for names that are one file on some systems."""
    return unicodedata.normalize("NFC", name.casefold())


def numbered(names: list[str], taken: Collection[str] = ()) -> list[str]:
    """Names that still collide get a number: the ends of two UIDs may be the same."""
    seen, unique = set(map(_key, [*taken, *RESERVED])), []
    for name in names:
        number, candidate = 1, name
        while _key(candidate) in seen:
            number += 1
            candidate = f"{name}_{number}"
        seen.add(_key(candidate))
        unique.append(candidate)
    return unique


def log_passed_over(folder: Path, others: Mapping[str, tuple[Path, ...]]) -> None:
    """One line for each kind of file that is no CT slice. others: as Survey has them."""
    for kind, paths in others.items():
        listed = ", ".join(p.relative_to(folder).as_posix() for p in paths[:3]) + (" …" if len(paths) > 3 else "")
        what = "files that are no DICOM" if kind == NO_DICOM else f"{kind} files"
        log.info("%s: passed over %d %s: %s", folder, len(paths), what, listed)
