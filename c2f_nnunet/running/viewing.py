"""What c2f_view shows: viewer/ in a report's folder, with each case's scan and label maps on one canonical grid.

The scans are copied, cut to the patient's body, so that the folder can be looked at on another machine, whatever format and
orientation they came in, and so that c2f_view never has to read a file outside of it.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..data.body import body_box
from ..errors import C2FError
from ..evaluation.figures import OverlayCase
from ..evaluation.pages import CaseEntry, CaseTable, colours
from ..evaluation.pictures import around, boxes_of, centre_voxel
from ..geometry import Geometry, boxed
from ..io import durable, records
from ..io.images import write_volume
from ..io.records import record
from ..labels import LabelSet

VIEWER_VERSION = 1
FOLDER, INDEX = "viewer", "cases.json"
CT_RANGE_HU = (-1024, 3071)  # 12 bits, as scanners store: padding of -3024 and metal beyond it cost space and show nothing


@record
class ViewedOrgan:
    """One organ of a case. centre_mm: RAS, where the viewer goes for it (null: neither map holds it). line: its numbers in words."""

    organ: str
    line: str
    flags: tuple[str, ...]
    centre_mm: tuple[float, float, float] | None


@record
class ViewedCase:
    """One case; files are named relative to the index. reference: null where there is none."""

    case: str
    image: str
    prediction: str
    reference: str | None
    line: str
    flagged: int
    organs: tuple[ViewedOrgan, ...]


@record
class ViewerIndex:
    """viewer/cases.json. Label maps hold channels: i + 1 is organs[i], shown in colours[i] (#rrggbb)."""

    version: int
    title: str
    organs: tuple[str, ...]
    colours: tuple[str, ...]
    cases: tuple[ViewedCase, ...]


def write_case(folder: Path, shown: OverlayCase) -> dict[int, tuple[float, float, float]]:
    """viewer/CASE_image.nii.gz, _prediction and, where there is one, _reference below `folder`; channel → its centre (RAS, mm)."""
    maps = {"prediction": shown.prediction} | ({"reference": shown.reference} if shown.reference is not None else {})
    boxes = {name: boxes_of(m) for name, m in maps.items()}
    organs = [box for found in boxes.values() for box in found.values()]
    box = around([body_box(shown.image, shown.geometry.spacing_mm), *organs])
    grid = boxed(shown.geometry, box)
    volumes = {"image": np.clip(np.rint(shown.image[box.slices]), *CT_RANGE_HU).astype(np.int16)}
    volumes |= {name: m[box.slices] for name, m in maps.items()}
    for name, volume in volumes.items():
        write_volume(folder / FOLDER / file_name(shown.id, name), volume, grid)
    centres = {}
    for name in reversed(maps):  # the reference, then the prediction over it
        centres |= {c: centre_voxel(maps[name][b.slices] == c, b) for c, b in boxes[name].items()}
    return {c: ras(shown.geometry, centre) for c, centre in centres.items()}


def file_name(case: str, what: str) -> str:
    return f"{case}_{what}.nii.gz"


def ras(geometry: Geometry, index_zyx) -> tuple[float, float, float]:
    """A voxel's place in NIfTI's frame (x to the right, y to the front, z up), mm."""
    x, y, z = geometry.world(index_zyx)
    return round(-float(x), 2), round(-float(y), 2), round(float(z), 2)


def write_index(
    folder: Path, title: str, labels: LabelSet, table: CaseTable, centres: Mapping[str, Mapping[int, tuple[float, float, float]]],
    referenced: Sequence[str],
) -> Path:  # fmt: skip
    """viewer/cases.json, the cases in the report's order; centres: those written by `write_case`; referenced: with a reference."""
    cases = tuple(_viewed(c, table, centres[c.case], c.case in referenced) for c in table.cases if c.case in centres)
    path = folder / FOLDER / INDEX
    records.write(path, ViewerIndex(VIEWER_VERSION, title, labels.organs, tuple(colours(labels).values()), cases))
    durable.remove_leftovers(path.parent)
    return path


def _viewed(c: CaseEntry, table: CaseTable, centres: Mapping[int, tuple[float, float, float]], has_reference: bool) -> ViewedCase:
    organs = tuple(ViewedOrgan(o.organ, _line(table.organ_headings, o.cells), o.flags, centres.get(o.channel)) for o in c.organs)
    reference = file_name(c.case, "reference") if has_reference else None
    return ViewedCase(
        c.case, file_name(c.case, "image"), file_name(c.case, "prediction"), reference, _line(table.headings, c.cells), c.flags, organs
    )  # fmt: skip


def _line(headings, cells) -> str:
    """'DSC 81.2 %, 95HD 3.10 mm': the cells in words, those without a value left out."""
    parts = ((h, c) for h, c in zip(headings, cells) if c.value is not None)
    return ", ".join(f"{h.title} {c.text}{f' {h.unit}' if h.unit else ''}" for h, c in parts)


def read_index(folder: Path) -> ViewerIndex:
    """The index of a report's folder; C2FError where there is none, or one of another version."""
    path = folder / FOLDER / INDEX
    if not path.is_file():
        raise C2FError(f"{folder}: nothing to view there ({FOLDER}/{INDEX} is missing); give the folder of a c2f_predict --report, "
                       "or the crossval folder of a model")
    index = records.read(ViewerIndex, path)
    if index.version != VIEWER_VERSION:
        raise C2FError(f"{path}: is of version {index.version}, this program reads {VIEWER_VERSION}; make the report again")
    return index
