"""The store of preprocessed volumes: blosc2 arrays (int16 HU, small-integer labels) and one JSON record each.

Chunks of 128³ and blocks of 32³ make an axial slice and a 64³ patch about equally cheap to read; int16 is smaller and
quicker than float16 (measured when blosc2 was chosen; see CONTRIBUTING.md). Normalisation happens on load.
"""
from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import blosc2
import numpy as np

from ..errors import DatasetError, RecordError
from ..geometry import Box, Geometry
from ..io import durable, records
from ..io.records import record


@record
class StoredRecord:
    """What is known of one stored volume. anchor_index: the body's anchor in its index frame (z, y, x).

    known: organs delineated in it; boxes: organ → its box here, where it has voxels. source: SHA-256 of the image and
    label files; plan: hash of the part of the plan that it was made by; checksums: of the stored arrays' bytes, and of
    all that this record says beside its own.
    """

    id: str
    case: str
    geometry: Geometry
    anchor_index: tuple[float, float, float]
    mirrored: bool
    known: tuple[str, ...]
    boxes: dict[str, Box]
    source: str
    plan: str
    image_sha256: str = ""
    labels_sha256: str = ""
    record_sha256: str = ""


def _own_sha256(values: dict) -> str:
    """The checksum of a record's plain values, those that its file holds: a number keeps the form in which it is written."""
    return hashlib.sha256(records.to_text({**values, "record_sha256": ""}).encode()).hexdigest()


def read_record(path: Path) -> StoredRecord:
    """A stored volume's record; DatasetError where it is missing or damaged."""
    try:
        values = records.read_json(path)
        found = records.from_json(StoredRecord, values, path)
    except RecordError as e:
        raise DatasetError(f"{path}: stored volume is damaged (its record cannot be read); run c2f_plan_and_preprocess again") from e
    if found.record_sha256 != _own_sha256(values):
        raise DatasetError(f"{path}: stored volume is damaged (its record's checksum differs); run c2f_plan_and_preprocess again")
    return found


@dataclass(frozen=True)
class StoredVolume:
    """One volume of the store; arrays are opened when first asked for."""

    folder: Path
    record: StoredRecord

    def _open(self, kind: str):
        path = self.folder / f"{self.record.id}_{kind}.b2nd"
        try:
            return blosc2.open(str(path), mode="r")
        except (OSError, RuntimeError, ValueError) as e:
            raise DatasetError(f"{path}: stored volume is missing or damaged ({e}); run c2f_plan_and_preprocess again") from e

    @cached_property
    def image(self):
        """HU (z, y, x) as a blosc2 array: slice it to read."""
        return self._open("image")

    @cached_property
    def labels(self):
        """Label channels (z, y, x) as a blosc2 array."""
        return self._open("labels")

    def verify(self) -> None:
        """Compare both files with their checksums; DatasetError names the damaged one and the remedy."""
        for kind, expected in (("image", self.record.image_sha256), ("labels", self.record.labels_sha256)):
            path = self.folder / f"{self.record.id}_{kind}.b2nd"
            if not path.is_file():
                raise DatasetError(f"{path}: stored volume is missing; run c2f_plan_and_preprocess again")
            if durable.sha256(path) != expected:
                raise DatasetError(f"{path}: stored volume is damaged (its checksum differs); run c2f_plan_and_preprocess again")


@dataclass(frozen=True)
class Store:
    """One folder of stored volumes (a stage's or a fine member's)."""

    folder: Path

    def read(self) -> tuple[StoredVolume, ...]:
        """Every volume that has a record, by id; DatasetError where one is damaged."""
        return tuple(StoredVolume(self.folder, read_record(f)) for f in sorted(self.folder.glob("*.json")))

    def of_cases(self, cases) -> tuple[StoredVolume, ...]:
        """The volumes of these cases; a fine member has none of a case in which its organs are unknown."""
        wanted = set(cases)
        return tuple(v for v in self.read() if v.record.case in wanted)

    def write(self, item: StoredRecord, image: np.ndarray, labels: np.ndarray) -> None:
        """Store one volume durably; the record is written last, so a volume without one is unfinished."""
        (self.folder / f"{item.id}.json").unlink(missing_ok=True)  # an older one must not vouch for the new arrays
        arrays = {"image": image, "labels": labels}
        checksums = {kind: self._write_array(f"{item.id}_{kind}.b2nd", array) for kind, array in arrays.items()}
        values = records.plain(replace(item, image_sha256=checksums["image"], labels_sha256=checksums["labels"]))
        records.write(self.folder / f"{item.id}.json", {**values, "record_sha256": _own_sha256(values)})

    def _write_array(self, name: str, array: np.ndarray) -> str:
        path = self.folder / name
        array = np.ascontiguousarray(array)
        chunks = tuple(min(128, n) for n in array.shape)
        blocks = tuple(min(32, n) for n in chunks)

        def write(temporary: Path) -> None:
            how = {"codec": blosc2.Codec.ZSTD, "clevel": 5, "nthreads": 1}  # with more, their race decides the order of the blocks
            try:
                blosc2.asarray(array, urlpath=str(temporary), mode="w", chunks=chunks, blocks=blocks, cparams=how)
            except RuntimeError as e:  # blosc2's own, also where the disk is full
                raise OSError(str(e)) from e

        def check(temporary: Path) -> None:
            if not np.array_equal(blosc2.open(str(temporary), mode="r")[:], array):
                raise DatasetError(f"{path}: reads back differently from what was written; the disk may be full or failing")

        durable.write_with(path, write, check)
        return durable.sha256(path)

    def is_whole(self, volume_id: str) -> bool:
        """Whether a volume's three files are there."""
        names = (f"{volume_id}.json", f"{volume_id}_image.b2nd", f"{volume_id}_labels.b2nd")
        return all((self.folder / name).exists() for name in names)

    def is_sound(self, volume_id: str) -> bool:
        """Whether a volume is there and its files have their checksums."""
        try:
            StoredVolume(self.folder, read_record(self.folder / f"{volume_id}.json")).verify()
        except DatasetError:
            return False
        return True

    def remove(self, volume_id: str) -> None:
        for path in (self.folder / f"{volume_id}.json", self.folder / f"{volume_id}_image.b2nd", self.folder / f"{volume_id}_labels.b2nd"):
            path.unlink(missing_ok=True)
