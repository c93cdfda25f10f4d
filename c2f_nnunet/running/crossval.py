"""Cross-validation: every held-out case through the cascade of the fold that never saw it, scored stage by stage."""
from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Mapping

import numpy as np
import torch

from ..data.dataset import Case, Dataset
from ..errors import C2FError, DatasetError, ModelError, WorkspaceError
from ..evaluation import folders
from ..evaluation.figures import OverlayCase
from ..evaluation.metrics import CaseScore, score
from ..evaluation.pages import Views, scored_cases
from ..evaluation.pictures import organ_views
from ..evaluation.report import COLUMNS, Beside, build_report, doubts, representative_cases, with_own_flags
from ..inference.cascade import MERGE_SOURCES, Cascade, coarse_maps, merge, run_coarse, run_fine
from ..inference.checks import Checked, as_rows
from ..inference.fusion import FusionWeights, mean_weights
from ..io import durable
from ..io.images import Image, read_image, read_label, write_label
from ..workspace import require_writable
from . import viewing
from .checking import checks_of, ranking, read_limits, write_checks
from .fit import complete_folds
from .model import Model, build_cascade, held_out_case

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CaseResult:
    """One held-out case: its scores by result name ('2d_top', 'fusion', 'coarse', 'fine', 'final') and the final result's checks.

    views, centres: for the report and the viewer, by channel; see `organ_views` and `viewing.write_case`.
    """

    case: str
    fold: int
    scores: dict[str, CaseScore]
    checks: tuple[Checked, ...]
    views: Views = field(default_factory=dict, repr=False)
    centres: Mapping[int, tuple[float, float, float]] = field(default_factory=dict)


def crossval(
    model: Model, dataset: Dataset, device: torch.device, which: str = "best", others: Mapping[str, Path] | None = None,
    on_case: Callable[[str], None] = lambda case: None, readers: bool = True,
) -> tuple[Path, dict[str, str]]:  # fmt: skip
    """Predict and score every held-out case of every trained fold; returns report.html, and the cases that failed and why.

    others: name → folder of further predictions of the same cases, which become columns of Tables II and III. readers: show what two
    human readers reach on other patients.
    ModelError where no fold is complete, DatasetError where the data set's labels are no longer those of the plan. Incomplete folds, and cases that could not be scored, are named in the report.
    """
    folds, splits = complete_folds(model, model.plan.members, which), model.splits()
    if not folds:
        raise ModelError(f"{model.folder.root}: no fold has all its members trained; run c2f_train all 0 first")
    if dataset.labels != model.plan.labels:
        raise DatasetError(f"{dataset.name}: its labels are not those that the model was planned for ({', '.join(model.plan.labels.organs)}); "
                           "put back the data set that it was trained on, or plan and train again")  # fmt: skip
    _check_others(model, others or {})
    require_writable(model.folder.crossval)
    for part in ("", "predictions", "tables", "figures"):
        durable.remove_leftovers(model.folder.crossval / part)
    cases = {c.id: c for c in dataset.training}
    notes, results, failed = _notes(model, folds, len(splits)), [], {}
    for fold in folds:
        cascade, _ = build_cascade(model, (fold,), which, device)
        for case_id in splits[fold].val:
            try:
                results.append(score_case(cascade, held_out_case(cases, case_id), fold, model))
            except WorkspaceError:  # a full disk is no fault of this case
                raise
            except (C2FError, MemoryError, RuntimeError) as e:  # RuntimeError: torch's and SimpleITK's
                failed[case_id] = str(e) if isinstance(e, C2FError) else f"{case_id}: {type(e).__name__}: {e}"
                log.error("%s", failed[case_id])
            on_case(case_id)
    if not results:
        raise ModelError(f"{model.folder.root}: no held-out case could be scored: {'; '.join(failed.values())}")
    notes += [f"incomplete: {case_id} could not be predicted or scored: {why}" for case_id, why in failed.items()]
    columns = {name: [r.scores[name] for r in results] for name in results[0].scores}
    for name, folder in (others or {}).items():
        columns[name] = _scores_of_folder(folder, model, {r.case: cases[r.case] for r in results}, notes)
    overlays = [_overlay(model, cases[c]) for c in representative_cases(columns["final"]).values()]
    checked = [c for r in results for c in r.checks]
    write_checks(model.folder.crossval, checked)
    notes += ranking(checked, columns["final"])
    title, labels, rows = f"{model.plan.dataset}: cross-validation of plan '{model.plan.name}'", model.plan.labels, as_rows(checked)
    views = {r.case: r.views for r in results}
    beside = Beside(overlays, _curves(model, folds), notes, checks=rows, readers=readers, views=views)
    page = build_report(model.folder.crossval, title, labels, columns, beside)
    table = scored_cases(columns["final"], {}, with_own_flags(columns["final"], doubts(rows)))
    viewing.write_index(model.folder.crossval, title, labels, table, {r.case: r.centres for r in results}, [r.case for r in results])
    return page, failed


def _check_others(model: Model, others: Mapping[str, Path]) -> None:
    """C2FError before anything is computed, where a folder to compare with is empty or its name is one of our own columns."""
    own = {name.casefold() for name in (*(m.name for m in model.plan.coarse.members), *COLUMNS, *COLUMNS.values())}
    for name, folder in others.items():
        if name.casefold() in own:
            raise C2FError(f"--compare {name}={folder}: '{name}' is a column of the report already; give another name")
        folders.label_files(folder)


def score_case(cascade: Cascade, case: Case, fold: int, model: Model) -> CaseResult:
    """One case through every stage; its final label map goes to crossval/predictions."""
    image, label = read_image(case.image), read_label(case.label)
    labels, scores = cascade.plan.labels, {}
    views: dict[str, np.ndarray] = {}
    coarse = run_coarse(cascade, image.array, image.geometry, lambda name, logits: views.update({name: logits.astype(np.float16)}))

    def put(name: str, channels: np.ndarray) -> None:
        scores[name] = score(label.array, labels.to_ids(channels), image.geometry, labels, case.annotated, case=case.id)

    def coarse_label(logits: np.ndarray) -> np.ndarray:
        maps = coarse_maps(cascade.plan, logits, coarse.prepared, image.geometry)
        return merge(cascade.plan, maps, image.geometry, cascade.merge_weights, coarse.located).channels

    for name in list(views):
        put(name, coarse_label(views.pop(name).astype(np.float32)))
    put("fusion", coarse_label(coarse.logits))
    scores["coarse"] = scores["fusion"]
    maps = list(run_fine(cascade, coarse, image.array, image.geometry))
    put("fine", merge(cascade.plan, iter(maps), image.geometry, fine_alone(labels.organs), coarse.located).channels)
    final = merge(cascade.plan, iter(maps), image.geometry, cascade.merge_weights, coarse.located, frozenset(model.fusion.clean))
    put("final", final.channels)
    write_label(model.folder.crossval / "predictions" / f"{case.id}{model.plan.file_ending}", labels.to_ids(final.channels), image.source)
    checks = checks_of(case.id, cascade.plan, coarse, final, image.geometry, read_limits(model, without={case.id}))
    shown = OverlayCase(case.id, image.array, image.geometry, labels.to_channels(label.array), final.channels)
    return CaseResult(case.id, fold, scores, checks, organ_views(shown), viewing.write_case(model.folder.crossval, shown))


def fine_alone(organs: tuple[str, ...]) -> FusionWeights:
    """Merge weights that leave the coarse stage out."""
    whole = mean_weights(organs, MERGE_SOURCES)
    return FusionWeights(organs, MERGE_SOURCES, ((1.0,) * len(organs), (0.0,) * len(organs)), whole.bias)


def _notes(model: Model, folds: tuple[int, ...], wanted: int) -> list[str]:
    notes = []
    if missing := [f for f in range(wanted) if f not in folds]:
        lacking, had = ", ".join(map(str, missing)), ", ".join(map(str, folds))
        notes.append(f"incomplete: fold {lacking} of {wanted} not trained; the tables hold the held-out cases of fold {had} only")
    fusion = model.fusion
    if fusion.coarse is None:
        notes.append("the fusion weights are not fitted: the views are averaged")
    if fusion.merge is None:
        notes.append("the merge weights are not fitted: the final result is the fine one")
    if fusion.coarse:
        notes.append(
            "the fusion and merge weights were fitted on these same held-out cases (a few numbers per organ), "
            "so fused and final results are slightly optimistic"
        )
    return notes


def _scores_of_folder(folder: Path, model: Model, cases: Mapping[str, Case], notes: list[str]) -> list[CaseScore]:
    """Scores of another folder's predictions of the same cases; what is missing or unreadable is noted."""
    files, out = folders.label_files(folder), []
    for case_id, case in cases.items():
        if case_id not in files:
            notes.append(f"incomplete: {folder} has no prediction of {case_id}")
            continue
        try:
            out.append(folders.evaluate_case(case.label, files[case_id], model.plan.labels, case.annotated, case=case_id))
        except C2FError as e:
            notes.append(f"incomplete: {e}")
    return out


def _overlay(model: Model, case: Case) -> OverlayCase:
    labels = model.plan.labels
    image: Image = read_image(case.image)
    predicted = read_label(model.folder.crossval / "predictions" / f"{case.id}{model.plan.file_ending}")
    truth = labels.to_channels(read_label(case.label).array)
    return OverlayCase(case.id, image.array, image.geometry, truth, labels.to_channels(predicted.array))


def _curves(model: Model, folds: tuple[int, ...]) -> dict[str, list[dict]]:
    curves = {}
    for member in model.plan.members:
        for fold in folds:
            path = model.folder.run(member.name, fold).log
            if path.exists():
                curves[f"{member.name}/fold_{fold}"] = [json.loads(line) for line in path.read_text().splitlines() if line]
    return curves
