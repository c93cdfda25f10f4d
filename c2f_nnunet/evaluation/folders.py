"""Scoring whole folders of label files, and what an evaluation leaves: summary.json in nnU-Net's shape and per_case.csv."""
from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import numpy as np

from ..errors import C2FError
from ..geometry import same_grid
from ..io import durable, records
from ..io.images import IMAGE_ENDINGS, read_label
from ..io.processes import pool
from ..labels import LabelSet
from .metrics import CaseScore, OrganScore, per_case, score, summarise

log = logging.getLogger(__name__)
Progress = Callable[[Iterable[CaseScore], int], Iterable[CaseScore]]


@records.record
class _Declared:
    """The keys of dataset.json that scoring needs."""

    labels: dict[str, int]
    annotated: dict[str, tuple[str, ...]] | None = None


def declared(dataset_json: Path) -> tuple[LabelSet, dict[str, tuple[str, ...]]]:
    """The labels of a dataset.json and its `annotated` (case → organs; {} where it has none).

    Raises RecordError or C2FError where a label is no name: id, or nnU-Net's ignore label, or `annotated` names an organ that is none
    of the labels.
    """
    value = records.read_json(dataset_json)
    known = {k: value[k] for k in ("labels", "annotated") if k in value} if isinstance(value, dict) else value
    description = records.from_json(_Declared, known, dataset_json)
    labels, annotated = LabelSet.from_names(description.labels), description.annotated or {}
    if ignored := [organ for organ in labels.organs if organ.strip().lower() == "ignore"]:
        raise C2FError(f"{dataset_json}: the label '{ignored[0]}' is not supported; take it out of the masks and here, and list the organs that "
                       "are known in such cases under 'annotated'")  # fmt: skip
    if not labels.organs:
        raise C2FError(f"{dataset_json}: labels names no organ besides the background; list the organs and their ids")
    if wrong := sorted({f"{case}: {organ}" for case, organs in annotated.items() for organ in organs if organ not in labels.organs}):
        raise C2FError(f"{dataset_json}: 'annotated' names organs that are none of the labels ({'; '.join(wrong[:8])}); mend these entries")
    return labels, annotated


def label_files(folder: Path) -> dict[str, Path]:
    """Case id → label file; C2FError where the folder is missing or empty, or a case is there twice."""
    if not folder.is_dir():
        raise C2FError(f"{folder}: no such folder; give the folder that holds the label files")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        ending = next((e for e in IMAGE_ENDINGS if path.name.lower().endswith(e)), None)
        if ending is None or path.name.startswith(".") or not path.is_file():
            continue
        case = path.name[:-len(ending)]
        if case in files:
            raise C2FError(f"{folder}: case {case} is there twice, as {files[case].name} and {path.name}; remove one")
        files[case] = path
    if not files:
        raise C2FError(f"{folder}: holds no label file ({', '.join(IMAGE_ENDINGS)}); check the path")
    return files


def evaluate_case(reference: Path, prediction: Path, labels: LabelSet, annotated: Iterable[str] | None = None,
                  tolerances: Mapping[str, float] | None = None, case: str = "") -> CaseScore:
    """Read two label files and score them; C2FError where either cannot be read or their grids differ."""
    truth, predicted = read_label(reference), read_label(prediction)
    a, b = truth.geometry, predicted.geometry
    if not same_grid(a, b):
        raise C2FError(
            f"{prediction}: its grid (shape {_grid_text(b)}) is not the reference's (shape {_grid_text(a)}); "
            f"export the prediction on the grid of {reference.name}"
        )
    return score(truth.array, predicted.array, a, labels, annotated, case=case, tolerances=tolerances,
                 reference_file=str(reference), prediction_file=str(prediction))


def _grid_text(g) -> str:
    """A geometry in one line, in canonical z, y, x order."""
    spacing, origin = (" × ".join(f"{v:.4g}" for v in g.spacing_mm)), ", ".join(f"{v:.5g}" for v in g.origin_mm)
    return f"{' × '.join(map(str, g.shape))}, spacing {spacing} mm, first voxel at {origin} mm"


def evaluate_folders(gt_dir: Path, pred_dir: Path, labels: LabelSet | None = None, processes: int = 1,
                     annotated: Mapping[str, Sequence[str]] | None = None, tolerances: Mapping[str, float] | None = None, *,
                     failed: dict[str, str] | None = None, progress: Progress = lambda done, total: done) -> list[CaseScore]:
    """Score every case of gt_dir, in the order of their names.

    labels: None takes the ids found in the files, named "label 1", "label 2", …
    annotated: case → organs delineated there; a case that is not listed has all of them.
    failed: gets the sentence of each case that cannot be scored, and the others are done; without it the first one raises.
    progress: wraps the iterator of finished scores, given their number.
    Raises C2FError where a reference has no prediction, naming all of them.
    """
    references, predictions = label_files(Path(gt_dir)), label_files(Path(pred_dir))
    if missing := [case for case in references if case not in predictions]:
        raise C2FError(
            f"{pred_dir}: no prediction for {len(missing)} of {len(references)} cases: {', '.join(missing)}; "
            f"predict them or take their references out of {gt_dir}"
        )
    if extra := sorted(set(predictions) - set(references)):
        log.warning("%s: %d prediction(s) without a reference are left out: %s", pred_dir, len(extra), ", ".join(extra))
    labels = labels or _labels_found([*references.values(), *(predictions[c] for c in references)])
    jobs = {
        case: partial(evaluate_case, path, predictions[case], labels, (annotated or {}).get(case), tolerances, case)
        for case, path in references.items()
    }
    return list(progress(_run(jobs, processes, failed), len(jobs)))


def _labels_found(paths: Iterable[Path]) -> LabelSet:
    ids = sorted({int(i) for path in paths for i in np.flatnonzero(np.bincount(read_label(path).array.ravel())) if i})
    if not ids:
        raise C2FError("no file holds any label; check the folders")
    return LabelSet(tuple(f"label {i}" for i in ids), tuple(ids))


def _run(jobs: Mapping[str, Callable[[], CaseScore]], processes: int, failed: dict[str, str] | None) -> Iterator[CaseScore]:
    """Run the jobs in this process or in several, and yield their results in order."""
    workers = min(processes, len(jobs))
    several = pool(workers) if workers > 1 else None
    try:
        waiting = {case: several.submit(job).result if several else job for case, job in jobs.items()}
        for case, result in waiting.items():
            try:
                yield result()
            except BrokenProcessPool as e:
                raise C2FError(f"case {case}: a scoring process was killed (out of memory?); try again with fewer processes (-np 1)") from e
            except C2FError as e:
                if failed is None:
                    raise
                failed[case] = str(e)
    finally:
        if several:
            several.shutdown(cancel_futures=True)


def write_evaluation(out_dir: Path, scores: Sequence[CaseScore]) -> None:
    """Write summary.json (nnU-Net's keys and ours, null where undefined) and per_case.csv into out_dir."""
    records.write(Path(out_dir) / "summary.json", summary(scores))
    durable.write_text(Path(out_dir) / "per_case.csv", per_case(scores).to_csv(index=False))


# our attribute → its key in summary.json; these have means
_SUMMARY_KEYS = {
    "dsc": "Dice", "hd95_mm": "HD95_mm", "asd_mm": "ASD_mm", "surface_dsc": "SurfaceDice",
    "volume_reference_ml": "VolumeReference_ml", "volume_prediction_ml": "VolumePrediction_ml", "volume_error_ml": "VolumeError_ml",
}


def summary(scores: Sequence[CaseScore]) -> dict:
    """summary.json's content. Unlike nnU-Net's, Dice is null and not 0 where the reference is empty (state "absent")."""
    cases = [
        {"case": s.case, "prediction_file": s.prediction_file, "reference_file": s.reference_file,
         "metrics": {str(o.id): _metrics(o, s.voxels) for o in s.organs}}
        for s in scores
    ]
    by_id = {str(o.id): o.organ for o in (scores[0].organs if scores else ())}
    mean = {i: {"organ": organ, **_mean([c["metrics"][i] for c in cases])} for i, organ in by_id.items()}
    for (i, entry), (_, row) in zip(mean.items(), summarise(scores).iterrows() if scores else ()):
        entry.update({k: int(row[k]) for k in ("n", "absent", "missed", "unknown", "false_positive")})
    return {"foreground_mean": _mean(list(mean.values())), "mean": mean, "metric_per_case": cases}


def _metrics(o: OrganScore, voxels: int) -> dict:
    values = {key: getattr(o, field) for field, key in _SUMMARY_KEYS.items()}
    counts = dict.fromkeys(("TP", "FP", "FN", "TN", "n_ref", "n_pred", "IoU"))
    if o.state != "unknown":
        ref, pred, both = o.voxels_reference, o.voxels_prediction, o.voxels_both
        counts = {"TP": both, "FP": pred - both, "FN": ref - both, "TN": voxels - ref - pred + both, "n_ref": ref, "n_pred": pred,
                  "IoU": both / (ref + pred - both) if ref else None}
    return {**values, **counts, "SurfaceDiceTolerance_mm": o.tolerance_mm, "state": o.state}


def _mean(entries: Sequence[Mapping]) -> dict:
    """Mean of each numeric key over the entries where it is defined; None where it is nowhere."""
    keys = [*_SUMMARY_KEYS.values(), "IoU", "TP", "FP", "FN", "TN", "n_ref", "n_pred"]
    defined = {k: [e[k] for e in entries if e[k] is not None] for k in keys}
    return {k: float(np.mean(v)) if v else None for k, v in defined.items()}
