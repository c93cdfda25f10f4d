"""The report of a prediction: report.html and viewer/ from the label maps and notes that c2f_predict left in its folder."""
from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..data.dataset import Case
from ..errors import C2FError, RecordError, WorkspaceError
from ..evaluation.figures import OverlayCase
from ..evaluation.pages import PredictedOrgan, Views, build_prediction_report, predicted_cases
from ..evaluation.pictures import organ_views
from ..geometry import same_grid
from ..io import records
from ..io.images import read_label
from ..io.scans import place_of, read_scan
from ..labels import LabelSet
from . import viewing
from .predict import PredictOptions, note_path, output_path

log = logging.getLogger(__name__)
CHECKS = "checks.json"


def prediction_report(out: Path, title: str, labels: LabelSet, cases: Sequence[Case], options: PredictOptions) -> Path:
    """Write report.html and viewer/ for the cases that are predicted in `out`; returns the page's path.

    A case without a result, or one that cannot be read, is named in the report. C2FError where there is none at all.
    """
    organs: dict[str, tuple[PredictedOrgan, ...]] = {}
    views: dict[str, Views] = {}
    centres, notes, checks = {}, [], read_checks(out / CHECKS)
    for case in cases:
        target = output_path(out, case, options)
        if not target.exists():
            notes.append(f"incomplete: {case.id} is not predicted")
            continue
        try:
            found = noted_organs(note_path(target), labels, checks.get(case.id, {}))
            shown = open_case(case, target, labels)
            views[case.id] = organ_views(shown)
            centres[case.id] = viewing.write_case(out, shown)
            organs[case.id] = found
        except WorkspaceError:  # a full disk is no fault of this case
            raise
        except C2FError as e:
            log.error("%s: left out of the report: %s", case.id, e)
            notes.append(f"incomplete: {case.id} is left out: {e}")
    if not organs:
        raise C2FError(f"{out}: no predicted case can be reported on: {'; '.join(notes) or 'the input folder is empty'}; predict one first")
    table = predicted_cases(organs, views, labels)
    viewing.write_index(out, title, labels, table, centres, ())
    return build_prediction_report(out, title, labels, table, notes)


def open_case(case: Case, target: Path, labels: LabelSet) -> OverlayCase:
    """A scan and its prediction; ImageError where either cannot be read, C2FError where they are not on one grid."""
    image, predicted = read_scan(case.image), read_label(target)
    if not same_grid(image.geometry, predicted.geometry):
        raise C2FError(f"{target}: is not on the grid of {place_of(case.image)}; predict it again")
    if (largest := int(predicted.array.max())) > max(labels.ids):
        raise C2FError(f"{target}: holds label {largest}, which this model does not have; predict it again")
    return OverlayCase(case.id, image.array, image.geometry, None, labels.to_channels(predicted.array))


def noted_organs(path: Path, labels: LabelSet, checked: Mapping[str, tuple[str, ...]]) -> tuple[PredictedOrgan, ...]:
    """The organs of a CASE.json; RecordError where it is missing or is not such a file.

    checked: organ → what its failed checks say, which is shown in place of the flags: the checks ask of these too.
    """
    try:
        entries = {o["organ"]: o for o in records.read_json(path)["organs"]}
        return tuple(
            PredictedOrgan(o, str(e["how"]), float(e["confidence"]), float(e["volume_ml"]), checked.get(o, tuple(map(str, e["flags"]))))
            for o, e in ((organ, entries[organ]) for organ in labels.organs)
        )
    except (KeyError, TypeError, ValueError) as e:
        raise RecordError(f"{path}: is not a note of c2f_predict ({type(e).__name__}: {e}); predict this case again") from e


def read_checks(path: Path) -> dict[str, dict[str, tuple[str, ...]]]:
    """Case → organ → what its failed checks say, from checks.json beside the predictions; {} where no checks were run.

    The file is a list of records: case, organ, and checks, each of these with the keys passed and sentence.
    """
    if not path.exists():
        return {}
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    try:
        for entry in records.read_json(path):
            sentences = tuple(str(check["sentence"]) for check in entry["checks"] if not check["passed"])
            found.setdefault(entry["case"], {})[entry["organ"]] = sentences
    except (KeyError, TypeError) as e:
        raise RecordError(f"{path}: holds no list of records with case, organ and checks ({type(e).__name__}: {e}); remove it") from e
    return found
