"""What an update finds of the conversions before it: what stays, and what goes."""
from __future__ import annotations

from c2f_nnunet.errors import RecordError
from c2f_nnunet.io import records

from .cases import SourceCase
from .target import FOLDERS, CaseRecord, Target, read_records, stamp


def is_done(target: Target, case: SourceCase) -> bool:
    """Whether the case was made whole from the source as it is now."""
    try:
        before = records.read(CaseRecord, target.record(case.id))
    except RecordError:
        return False
    image, label = target.files(case.id, case.training)
    there = image.is_file() and (label.is_file() or not case.training)  # a test case may have no label map
    return there and before.source == stamp(case) and before.training == case.training


def sweep(target: Target) -> None:
    """Remove images and label maps without a record: those of cases that failed, or that a kill interrupted."""
    kept = {path for r in read_records(target) for path in target.files(r.case, r.training)}
    for folder in (target.folder / name for folders in FOLDERS.values() for name in folders):
        for path in folder.iterdir() if folder.is_dir() else []:
            if path.is_file() and path not in kept:
                path.unlink()
