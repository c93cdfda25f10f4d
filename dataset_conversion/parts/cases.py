"""The scans of a source as a converter lists them; most sources have a CT beside one file for each organ's mask."""
from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Callable, Collection, Iterable

import numpy as np

from c2f_nnunet.errors import ImageError
from c2f_nnunet.geometry import Geometry
from c2f_nnunet.io.images import read_image

from .masks import masks_of

log = logging.getLogger(__name__)
LFS_POINTER = b"version https://git-lfs"  # what a clone without Git LFS has in each file's place


@dataclass(frozen=True, eq=False)
class Scan:
    """hu: int16 or float32 (z, y, x), canonical. masks: (the source's organ, mask on the same grid), taken one at a time.

    notes: what a user of the masks should know, as sentences; they are kept in the case's record.
    """

    hu: np.ndarray
    geometry: Geometry
    masks: Iterable[tuple[str, np.ndarray]]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SourceCase:
    """One scan of a source. organs: those with a mask, as the source spells them. files: all that `load` reads.

    load: None where the converter has its own way of writing (`convert`'s `write`). patient: scans of one patient share it; None
    where the case is the patient's only one.
    """

    id: str
    training: bool
    organs: tuple[str, ...]
    files: tuple[Path, ...]
    load: Callable[[], Scan] | None = None
    patient: str | None = None


def masked_case(name: str, training: bool, image: Path, masks: dict[str, Path], patient: str | None = None) -> SourceCase:
    """A CT with one file for each organ's mask. masks: organ → where its file would be; without one it was not delineated."""
    files = {organ: path for organ, path in masks.items() if path.is_file()}
    return SourceCase(name, training, tuple(files), (image, *files.values()), partial(_load, image, files), patient)


def warn_of_unread(cases: list[SourceCase], masks_beside: Callable[[Path], Iterable[Path]]) -> None:
    """Name the masks beside each case's image that are none of the organs read: a spelling unknown here would pass for 'not delineated'."""
    unread = sorted({path for case in cases for path in masks_beside(case.files[0])} - {path for case in cases for path in case.files})
    if unread:
        log.warning("%d mask files are of no organ known here and are left out: %s", len(unread), _listed(map(str, unread)))


def warn_of_gaps(parts: dict[str, Iterable[str]], chosen: Iterable[str], there: Collection[str], fate: str = "taken all the same") -> None:
    """Name the scans of the chosen parts that are not there, and those that are there and of no part.

    Half a download would otherwise pass for the whole set. parts: part → the ids that its source publishes; fate: what is done with others.
    """
    known = {part: tuple(ids) for part, ids in parts.items()}
    for part in chosen:
        if missing := [name for name in known[part] if name not in there]:
            log.warning("%d of %d scans of part %s are not there: %s; complete the download unless that is meant",
                        len(missing), len(known[part]), part, _listed(missing))
    if others := sorted(set(there).difference(*known.values())):
        log.warning("%d folders of no known part are %s: %s", len(others), fate, _listed(others))


def _listed(names: Iterable[str]) -> str:
    """The first five."""
    names = list(names)
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def _load(image: Path, files: dict[str, Path]) -> Scan:
    for path in (image, *files.values()):
        with open(path, "rb") as f:
            if f.read(len(LFS_POINTER)) == LFS_POINTER:
                raise ImageError(f"{path}: is a Git LFS pointer, not the file; install Git LFS and run 'git lfs pull' in the clone")
    ct = read_image(image)
    return Scan(ct.array, ct.geometry, masks_of(ct, files))
