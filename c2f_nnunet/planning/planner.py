"""Fingerprint and budget → plan, whichever -pl names, and the derivation as text."""
from __future__ import annotations

import hashlib
from dataclasses import replace
from importlib import resources
from itertools import count
from pathlib import Path

from ..data.fingerprint import Fingerprint
from ..errors import PlanError
from ..io import records
from .budget import Budget
from .coarse import coarse_plan
from .fine import fine_plan
from .plan import PLAN_VERSION, Plan, read_plan
from .reference import pin, pinned_spacing

REFERENCE_PLANS = ("auto", "paper_han")
UNSAID = "as the plan's file says"


def make_plan(fingerprint: Fingerprint, budget: Budget, spacing_mm=None, file_ending: str = ".nii.gz", fine_spacing_mm=None) -> Plan:
    """The self-configured plan 'auto'. spacing_mm, fine_spacing_mm: given for a stage, and all else follows from them."""
    coarse = coarse_plan(fingerprint, budget, spacing_mm)
    fine = fine_plan(fingerprint, coarse.spacing_mm, budget, fine_spacing_mm)
    return Plan(
        version=PLAN_VERSION, name="auto", dataset=fingerprint.dataset, labels=fingerprint.labels, file_ending=file_ending,
        fingerprint=fingerprint_hash(fingerprint), memory_target_gb=budget.memory_gb, coarse=coarse, fine=fine,
        rules={"memory_target_gb": budget.why},
    )  # fmt: skip


def fingerprint_hash(fingerprint: Fingerprint) -> str:
    """SHA-256 of the fingerprint's canonical JSON."""
    return hashlib.sha256(records.to_text(fingerprint).encode()).hexdigest()


def choose_plan(wanted: str, fingerprint: Fingerprint, budget: Budget, spacing_mm=None, file_ending: str = ".nii.gz") -> Plan:
    """-pl: 'auto', a reference plan's name, or the path of a reference (pinned values) or of a whole plan."""
    if wanted == "auto":
        return make_plan(fingerprint, budget, spacing_mm, file_ending)
    path = _plan_file(wanted)
    value = records.read_json(path)
    whole = isinstance(value, dict) and "version" in value
    coarse_mm, fine_mm = (None, None) if whole else pinned_spacing(value, path)
    if spacing_mm and (whole or coarse_mm):
        raise PlanError(f"-pl {wanted} fixes the coarse spacing; leave --overwrite_target_spacing out, or change it in the plan")
    if not whole:
        return pin(make_plan(fingerprint, budget, coarse_mm or spacing_mm, file_ending, fine_mm), value, path, fingerprint)
    plan = read_plan(path)
    if plan.labels != fingerprint.labels:
        own, others = plan.labels.organs, fingerprint.labels.organs
        raise PlanError(f"{path}: its organs {own} differ from the data set's {others}; choose another plan")
    here = {"dataset": fingerprint.dataset, "fingerprint": fingerprint_hash(fingerprint), "file_ending": file_ending}
    return replace(plan, **here)


def plan_name(wanted: str) -> str:
    """The name of the plan that -pl means, known before the data set is measured for minutes; PlanError where it means none."""
    if wanted == "auto":
        return wanted
    path = _plan_file(wanted)
    value = records.read_json(path)
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise PlanError(f"{path}: not a plan: it has no 'name'; see plans/paper_han.json")
    return value["name"]


def _plan_file(wanted: str) -> Path:
    """The file of -pl: a reference plan installed as c2f_nnunet.plans (or in a bare checkout beside the package), or a path."""
    if wanted in REFERENCE_PLANS:
        try:
            folder = Path(str(resources.files("c2f_nnunet.plans")))
        except ModuleNotFoundError:
            folder = Path(__file__).resolve().parents[2] / "plans"
        return folder / f"{wanted}.json"
    if not Path(wanted).is_file():
        raise PlanError(f"-pl {wanted}: neither a known plan ({', '.join(REFERENCE_PLANS)}) nor a file; check the name")
    return Path(wanted)


def derivation(plan: Plan) -> list[str]:
    """The plan as numbered lines: each derived number with its rule; what was said of a member before is not said again."""
    head = f"plan '{plan.name}' for {plan.dataset}: memory target {plan.memory_target_gb:.1f} GB"
    c, said = plan.coarse, set()
    lines = [f"{head} ({plan.rules.get('memory_target_gb', UNSAID)})"]
    lines += [f"{plan.name}: {plan.rules['name']}"] if "name" in plan.rules else []
    lines.append(f"coarse spacing {_show(c.spacing_mm)} mm: {c.rules.get('spacing_mm', UNSAID)}")
    lines.append(f"coarse volume {_show(c.shape)}: {c.rules.get('shape', UNSAID)}")
    for m in plan.members:
        grid = f"{_show(m.shape)} voxels of {_show(m.spacing_mm)} mm"
        lines.append(f"{m.name}: {grid}, batch {m.training.batch_size}, features {_show(m.network.features)}")
        shown = {
            "windows": ", ".join(f"[{w.low_hu:.0f}, {w.high_hu:.0f}] HU" for w in m.windows), "spacing_mm": _show(m.spacing_mm),
            "shape": _show(m.shape), "jitter_mm": f"{_show(m.jitter_mm)} mm",
        }  # fmt: skip
        for key, rule in m.rules.items():
            line = f"    {key.replace('_mm', '')}{' ' + shown[key] if key in shown else ''}: {rule}"
            if line not in said:
                lines.append(line)
                said.add(line)
    number = count(1)
    return [line if line.startswith(" ") else f"{next(number):3d}. {line}" for line in lines]


def _show(values) -> str:
    return " × ".join(f"{v:.4g}" for v in values)
