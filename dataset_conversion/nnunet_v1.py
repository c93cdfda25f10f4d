"""nnU-Net v1's or the Medical Segmentation Decathlon's TaskXXX_Name → DatasetXXX_Name.

    python dataset_conversion/nnunet_v1.py nnUNet_raw_data/Task055_SegTHOR --workspace WS

Source: a task as nnU-Net v1's documentation/dataset_conversion.md describes it: dataset.json with "modality", "labels" (id →
name), "training" (pairs of image and label) and "test"; imagesTr/CASE_0000.nii.gz (CASE.nii.gz in the Decathlon), labelsTr/
CASE.nii.gz, imagesTs likewise, and labelsTs where there is one. Files are copied byte for byte after they were read and
compared; label ids stay. Tasks of several modalities are refused: there is one channel here, the CT.
"""
from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path

import numpy as np
from parts.cases import SourceCase
from parts.command import organ_names, source_parser, target_folder
from parts.target import Target
from parts.writing import convert, write_record

from c2f_nnunet.cli.common import entry
from c2f_nnunet.errors import DatasetError, ImageError, WorkspaceError
from c2f_nnunet.geometry import same_grid
from c2f_nnunet.io import durable, records
from c2f_nnunet.io.images import read_image, read_label
from c2f_nnunet.io.records import record

ENDING = ".nii.gz"  # nnU-Net v1 knows no other
COPIED_KEYS = ("description", "reference", "licence", "release")


@record
class Pair:
    """An entry of "training": paths relative to dataset.json's folder, the image without its channel."""

    image: str
    label: str


@record
class Task:
    """The keys of a v1 dataset.json that are read."""

    modality: dict[str, str]
    labels: dict[str, str]
    training: tuple[Pair, ...]
    test: tuple[str | Pair, ...] = ()


def read_task(source: Path) -> tuple[Task, dict[str, str]]:
    """The task's description and the keys that are copied; DatasetError where it is not v1's format or has several modalities."""
    path = source / "dataset.json"
    value = records.read_json(path)
    if not isinstance(value, dict) or "modality" not in value:
        raise DatasetError(f"{path}: has no 'modality', so it is not nnU-Net v1's; give a folder TaskXXX_Name")
    task = records.from_json(Task, {key: value[key] for key in Task.__dataclass_fields__ if key in value}, path)
    if len(task.modality) != 1:
        listed = ", ".join(task.modality.values())
        raise DatasetError(f"{path}: has {len(task.modality)} modalities ({listed}), but only one channel, the CT, can be used; "
                           "make a task of the CT alone")
    if (modality := next(iter(task.modality.values()))).upper() != "CT":
        raise DatasetError(f"{path}: its images are {modality}, but only CTs can be used; intensities are taken as Hounsfield units")
    ids = [int(key) for key in task.labels if key.isdecimal()]  # "00" is the background in nnU-Net's own Task017
    if len(set(ids)) != len(task.labels) or 0 not in ids:
        raise DatasetError(f"{path}: labels must be id: name, each id once and the background as 0, but are {task.labels}; mend the list")
    return task, {key: str(value[key]) for key in COPIED_KEYS if key in value}


def find_cases(source: Path, task: Task) -> list[SourceCase]:
    """The task's cases; a test case has a label map where its entry names one, or where labelsTs holds one."""
    cases = [_case(source, pair.image, source / pair.label, True) for pair in task.training]
    for test in task.test:
        pair = Pair(test, f"labelsTs/{_name(test)}{ENDING}") if isinstance(test, str) else test
        cases.append(_case(source, pair.image, source / pair.label, False))
    return cases


def _name(image: str) -> str:
    return Path(image).name.removesuffix(ENDING).removesuffix("_0000")


def _case(source: Path, image: str, label: Path, training: bool) -> SourceCase:
    name = _name(image)
    plain, channel = ((source / image).with_name(f"{name}{suffix}{ENDING}") for suffix in ("", "_0000"))
    return SourceCase(name, training, (), (channel if channel.is_file() else plain, label))


def copy_case(target: Target, case: SourceCase) -> None:
    """Check a case as planning will, copy its files and write its record; every organ counts as annotated, as nnU-Net v1 takes it."""
    source_image, source_label = case.files
    image, label = target.files(case.id, case.training)
    ct = read_image(source_image)
    if case.training or source_label.is_file():
        mask = read_label(source_label)
        if not same_grid(mask.geometry, ct.geometry):
            raise ImageError(f"{source_label}: its grid of {mask.geometry.shape} voxels is not the image's of {ct.geometry.shape}; "
                             "export the label map on the image's grid")
        if unknown := sorted(set(np.unique(mask.array).tolist()) - {0, *target.ids.values()}):
            raise ImageError(f"{source_label}: holds the labels {unknown}, which dataset.json does not list; add or remove them")
        _copy(source_label, label)
    _copy(source_image, image)
    write_record(target, case, annotated=tuple(target.names.values()))


def _copy(source: Path, path: Path) -> None:
    """Copy a file durably, byte for byte."""

    def check(temporary: Path) -> None:
        if durable.sha256(temporary) != durable.sha256(source):
            raise WorkspaceError(f"{path}: reads back differently from {source}; the disk may be full or failing")

    durable.write_with(path, lambda temporary: shutil.copyfile(source, temporary), check)


def parser() -> argparse.ArgumentParser:
    return source_parser("nnunet_v1.py", "Make a raw data set of a task in the format of nnU-Net v1 or the Medical Segmentation Decathlon.",
                         "the folder TaskXXX_Name", None,
                         "python dataset_conversion/nnunet_v1.py nnUNet_raw_data/Task055_SegTHOR --workspace WS")


def body(args: argparse.Namespace) -> None:
    task, about = read_task(args.source)
    found = re.fullmatch(r"Task(\d+)_(.+)", args.source.resolve().name)
    folder = target_folder(args, found[2] if found else "", int(found[1]) if found else None)
    ids = {name: int(i) for i, name in sorted(task.labels.items(), key=lambda item: int(item[0])) if int(i)}
    if len(ids) != len(task.labels) - 1:
        raise DatasetError(f"{args.source / 'dataset.json'}: two labels share a name in {task.labels}; rename one")
    convert(Target(folder, ids, organ_names(list(ids), args.names), {}, about), find_cases(args.source, task), args.update, copy_case)


main = entry(parser, body)

if __name__ == "__main__":
    raise SystemExit(main())
