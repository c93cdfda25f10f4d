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


def prediction_report(
    out: Path, title: str, labels: LabelSet, cases: Sequence[Case], options: PredictOptions,
    held_out: Mapping[str, Sequence[float]] | None = None, left_out: Mapping[str, str] | None = None,
) -> Path:  # fmt: skip
    """Write report.html and viewer/ for the cases that are predicted in `out`; returns the page's path.

    held_out: organ → DSCs (0…1) that the model reached on held-out cases of its training set, to be shown beside. left_out: case → why it
    is not shown though a result may be there: it failed now, or the result is another model's. A case without a result, or one that
    cannot be read, is named in the report. C2FError where there is none at all.
    """
    organs: dict[str, tuple[PredictedOrgan, ...]] = {}
    views: dict[str, Views] = {}
    centres, notes, checks = {}, [], read_checks(out / CHECKS)
    for case in cases:
        if case.id in (left_out or {}):
            notes.append(f"incomplete: {case.id} is left out: {left_out[case.id]}")
            continue
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
    return build_prediction_report(out, title, labels, organs, table, notes, held_out)


def open_case(case: Case, target: Path, labels: LabelSet) -> OverlayCase:
    """A scan and its prediction; ImageError where either cannot be read, C2FError where they are not on one grid."""
    image, predicted = read_scan(case.image), read_label(target)
    if not same_grid(image.geometry, predicted.geometry):
        raise C2FError(f"{target}: is not on the grid of {place_of(case.image)}; predict it again")
    if (largest := int(predicted.array.max())) > max(labels.ids):
        raise C2FError(f"{target}: holds label {largest}, which this model does not have; predict it again")
    return OverlayCase(case.id, image.array, image.geometry, None, labels.to_channels(predicted.array))


def noted_organs(path: Path, labels: LabelSet, checked: Mapping[str, Mapping]) -> tuple[PredictedOrgan, ...]:
    """The organs of a CASE.json; RecordError where it is missing or is not such a file.

    checked: organ → its record in checks.json, whose failed checks are shown in place of the flags: they ask of these too.
    """
    try:
        entries = {o["organ"]: o for o in records.read_json(path)["organs"]}
        return tuple(_noted_organ(organ, entries[organ], checked.get(organ)) for organ in labels.organs)
    except (KeyError, TypeError, ValueError) as e:
        raise RecordError(f"{path}: is not a note of c2f_predict ({type(e).__name__}: {e}); predict this case again") from e


def _noted_organ(organ: str, entry: Mapping, checked: Mapping | None) -> PredictedOrgan:
    """One organ of a CASE.json, with its record in checks.json, if there is one."""
    evidence = {"confidence": float(entry["confidence"]), **(checked["evidence"] if checked else {})}
    evidence["expected_dsc"] = checked["expected_dsc"] if checked else None
    flags = [str(f) for f in entry["flags"]] if checked is None else [c["sentence"] for c in checked["checks"] if not c["passed"]]
    expected = next((c["limit"] for c in checked["checks"] if c["name"] == "volume"), None) if checked else None
    return PredictedOrgan(organ, str(entry["how"]), float(entry["volume_ml"]), evidence, tuple(flags), tuple(expected) if expected else None)


def read_checks(path: Path) -> dict[str, dict[str, Mapping]]:
    """Case → organ → its record in checks.json beside the predictions; {} where no checks were run.

    The file is a list of records: case, organ, evidence, and checks, each of these with the keys name, limit, passed and sentence.
    """
    if not path.exists():
        return {}
    found: dict[str, dict[str, Mapping]] = {}
    try:
        for entry in records.read_json(path):
            kept = {"evidence": dict(entry["evidence"]), "expected_dsc": entry.get("expected_dsc"),
                    "checks": [{key: check[key] for key in ("name", "limit", "passed", "sentence")} for check in entry["checks"]]}
            found.setdefault(entry["case"], {})[entry["organ"]] = kept
    except (KeyError, TypeError, ValueError) as e:
        raise RecordError(f"{path}: holds no list of records with case, organ, evidence and checks ({type(e).__name__}: {e}); remove it") from e
    return found
