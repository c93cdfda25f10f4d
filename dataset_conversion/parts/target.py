"""The data set that a conversion makes: where its files lie, and the record of each case."""
from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from c2f_nnunet.errors import RecordError
from c2f_nnunet.io import records
from c2f_nnunet.io.records import record

from .cases import SourceCase

FOLDERS = {True: ("imagesTr", "labelsTr"), False: ("imagesTs", "labelsTs")}  # training → images, label maps


@dataclass(frozen=True)
class Target:
    """The data set to be made. ids, names: the source's organ → label id, → name in dataset.json.

    settings: options that an update must repeat. about: more keys of dataset.json, such as reference and licence.
    """

    folder: Path
    ids: dict[str, int]
    names: dict[str, str]
    settings: dict[str, str]
    about: dict[str, str]
    ending: str = ".nii.gz"

    def files(self, case: str, training: bool) -> tuple[Path, Path]:
        """A case's image and label map."""
        images, labels = FOLDERS[training]
        return self.folder / images / f"{case}_0000{self.ending}", self.folder / labels / f"{case}{self.ending}"

    def images(self, training: bool) -> set[str]:
        """The cases with an image, those that the user added among them."""
        suffix = f"_0000{self.ending}"
        found = (self.folder / FOLDERS[training][0]).glob(f"[!.]*{suffix}")
        return {path.name.removesuffix(suffix) for path in found}

    def record(self, case: str) -> Path:
        return self.folder / "conversion" / "cases" / f"{case}.json"


@record
class Overlap:
    """Voxels in the masks of two organs, by their names in the data set; the one with the smaller mask kept them."""

    kept: str
    lost: str
    voxels: int


@record
class CaseRecord:
    """What became of a case. annotated: its known organs. empty: organs that had a mask, but no voxel in the end; taken as unknown.

    notes: what the converter had to say of its masks.
    """

    case: str
    training: bool
    patient: str
    source: str
    annotated: tuple[str, ...]
    empty: tuple[str, ...] = ()
    overlaps: tuple[Overlap, ...] = ()
    notes: tuple[str, ...] = ()


def read_records(target: Target) -> list[CaseRecord]:
    """The records; RecordError for a damaged one."""
    return [records.read(CaseRecord, path) for path in _record_files(target)]


def read_whole(target: Target) -> list[CaseRecord]:
    """The records but for damaged ones, whose cases are made again."""
    found = []
    for path in _record_files(target):
        with suppress(RecordError):
            found.append(records.read(CaseRecord, path))
    return found


def _record_files(target: Target) -> list[Path]:
    """Whole ones only: a hidden file is what a kill left of one."""
    return sorted(path for path in (target.folder / "conversion" / "cases").glob("*.json") if not path.name.startswith("."))


def stamp(case: SourceCase) -> str:
    """Changes when a file of the case is added, removed or written."""
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in case.files if path.is_file()]
    return hashlib.sha256(repr(stats).encode()).hexdigest()[:16]
