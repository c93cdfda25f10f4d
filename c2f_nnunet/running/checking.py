"""The checks of predicted cases: their limits from a model folder, checks.json, and whether the confidence ranked the errors."""
from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ..data.fingerprint import Fingerprint
from ..errors import C2FError
from ..evaluation.metrics import CaseScore
from ..geometry import Geometry
from ..inference.cascade import CoarseResult, Segmentation
from ..inference.checks import Checked, as_rows, check_case, ordered, scene
from ..inference.limits import OrganLimits, organ_limits
from ..io import records
from ..planning.plan import Plan
from .model import Model

CHECKS = "checks.json"
WORST = 0.1  # the part of a cross-validation's organs that counts as its errors


def read_limits(model: Model, without: Collection[str] = (), held_out: bool = True) -> dict[str, OrganLimits]:
    """The limits of a model's training set and held-out cases; {} where its folder has no fingerprint.

    without: cases left out. held_out: whether results are to be compared with those of held-out cases, which are the merged ones.
    """
    if not model.folder.fingerprint.exists():
        return {}
    tests = model.fusion.held_out if held_out else ()
    return organ_limits(records.read(Fingerprint, model.folder.fingerprint), tests, without)


def checks_of(
    case: str, plan: Plan, coarse: CoarseResult, result: Segmentation, image: Geometry, limits: Mapping[str, OrganLimits]
) -> tuple[Checked, ...]:  # fmt: skip
    """Every organ's checks of one predicted scan (canonical)."""
    anchor_mm = coarse.prepared.geometry.world(coarse.prepared.anchor_index)[::-1]
    return check_case(case, result, scene(result.channels, plan.labels.organs, image, anchor_mm), limits, plan.labels.pairs, plan.fine.thresholds[0])


def gather_checks(folder: Path) -> list[Checked]:
    """The checks that the notes (CASE.json) in a folder of predictions hold, cases that need a look first; other files are passed over."""
    found: list[Checked] = []
    for path in sorted(folder.glob("*.json")):
        try:
            note = records.read_json(path)
            if isinstance(note, dict) and "checks" in note:
                found += records.from_json(tuple[Checked, ...], note["checks"], path)
        except C2FError:  # a cut or foreign file: its case is predicted anew by --continue_prediction
            continue
    return ordered(found)


def write_checks(folder: Path, checked: Iterable[Checked]) -> None:
    """checks.json: one record per case and organ, cases that need a look first; nothing where there is none."""
    if checked := ordered(checked):
        records.write(folder / CHECKS, checked)


def table(checked: Iterable[Checked]) -> str:
    """The organs that need a look, as text for the screen; '' where there is none."""
    rows = [{k: v for k, v in row.items() if k != "needs_a_look"} for row in as_rows(checked) if row["needs_a_look"]]
    shown = pd.DataFrame(rows).dropna(axis="columns", how="all")  # of one fold there is no agreement of folds
    return shown.to_string(index=False, float_format=lambda v: f"{v:.3f}", na_rep="–") if rows else ""


def ranking(checked: Sequence[Checked], scores: Sequence[CaseScore]) -> list[str]:
    """Sentences: how well the confidence ranks the DSC of these cases, per organ and over all, and how many errors are flagged."""
    reached = {(s.case, o.organ): o.dsc for s in scores for o in s.organs if o.dsc is not None}
    frame = pd.DataFrame([
        {"case": c.case, "organ": c.organ, "confidence": c.confidence, "expected": c.expected_dsc, "dsc": reached[c.case, c.organ], "flagged": c.needs_a_look}
        for c in checked if (c.case, c.organ) in reached
    ])  # fmt: skip
    if len(frame) < 3:
        return []
    worst = frame["dsc"].rank(method="first") <= max(1, round(WORST * len(frame)))
    caught, flagged = int((worst & frame["flagged"]).sum()), int(frame["flagged"].sum())
    return [
        *(_ranked(frame, column, name) for column, name in (("expected", "expected DSC"), ("confidence", "confidence")) if frame[column].notna().any()),
        f"{flagged} of {len(frame)} organs need a look by the checks, among them {caught} of the {int(worst.sum())} with the lowest DSC",
    ]


def _ranked(frame: pd.DataFrame, column: str, name: str) -> str:
    """A sentence: how well a column ranks the DSC, of all organs that have it and organ by organ."""
    known = frame[frame[column].notna()]
    by_organ = "; ".join(f"{organ} {_spearman(part, column)}" for organ, part in known.groupby("organ", sort=False))
    over = f"{len(known)} organs of {known['case'].nunique()} cases"
    return f"{name} against DSC, rank correlation over {over}: {_spearman(known, column)}; by organ: {by_organ}"


def _spearman(frame: pd.DataFrame, column: str) -> str:
    """Spearman's rank correlation of a column and the DSC as text; '–' where either does not vary, or there are fewer than three."""
    ranks = frame[[column, "dsc"]].astype(float).rank()
    if len(frame) < 3 or not ranks.std().all():
        return "–"
    return f"{np.corrcoef(ranks[column], ranks['dsc'])[0, 1]:.2f}"
