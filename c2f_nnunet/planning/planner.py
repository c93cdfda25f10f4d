"""Fingerprint and budget → plan, reference plans, and the derivation as text."""
from __future__ import annotations

import hashlib
from importlib import resources
from pathlib import Path

from ..data.fingerprint import Fingerprint
from ..errors import PlanError
from ..io import records
from .budget import Budget
from .coarse import coarse_plan
from .fine import fine_plan
from .plan import PLAN_VERSION, Plan, read_plan

REFERENCE_PLANS = ("auto", "paper_han")


def make_plan(fingerprint: Fingerprint, budget: Budget, spacing_mm=None, file_ending: str = ".nii.gz") -> Plan:
    """The self-configured plan 'auto'."""
    coarse = coarse_plan(fingerprint, budget, spacing_mm)
    fine = fine_plan(fingerprint, coarse.spacing_mm, budget)
    return Plan(
        version=PLAN_VERSION, name="auto", dataset=fingerprint.dataset, labels=fingerprint.labels, file_ending=file_ending,
        fingerprint=fingerprint_hash(fingerprint), memory_target_gb=budget.memory_gb, coarse=coarse, fine=fine, rules={"memory_target_gb": budget.why},
    )  # fmt: skip


def fingerprint_hash(fingerprint: Fingerprint) -> str:
    """SHA-256 of the fingerprint's canonical JSON."""
    return hashlib.sha256(records.to_text(fingerprint).encode()).hexdigest()


def choose_plan(wanted: str, fingerprint: Fingerprint, budget: Budget, spacing_mm=None, file_ending: str = ".nii.gz") -> Plan:
    """-pl: 'auto', a reference plan's name, or the path of a reference (pinned values) or of a whole plan."""
    derived = make_plan(fingerprint, budget, spacing_mm, file_ending)
    if wanted == "auto":
        return derived
    if wanted in REFERENCE_PLANS:
        with resources.as_file(resources.files("c2f_nnunet.plans") / f"{wanted}.json") as path:
            return pin(derived, records.read_json(path), path)
    path = Path(wanted)
    if not path.is_file():
        raise PlanError(f"-pl {wanted}: neither a known plan ({', '.join(REFERENCE_PLANS)}) nor a file; check the name")
    value = records.read_json(path)
    if not (isinstance(value, dict) and "version" in value):
        return pin(derived, value, path)
    plan = read_plan(path)
    if plan.labels != derived.labels:
        raise PlanError(f"{path}: its organs {plan.labels.organs} differ from the data set's {derived.labels.organs}; choose another plan")
    return records.from_json(Plan, {**records.plain(plan), "dataset": derived.dataset, "fingerprint": derived.fingerprint, "file_ending": file_ending}, path)


def pin(derived: Plan, reference, path: Path) -> Plan:
    """The derived plan with a reference's values put over it.

    reference: {"name", "why", "coarse": {…, "member": {…}}, "fine": {…, "member": {…}}}; a "member" block goes to every
    member of the stage. What is pinned says so in the rules.
    """
    if not isinstance(reference, dict) or "name" not in reference:
        raise PlanError(f"{path}: not a reference plan: it has no 'name'; see plans/paper_han.json")
    value = records.plain(derived)
    why = f"pinned by {reference['name']}"
    for stage in ("coarse", "fine"):
        block = dict(reference.get(stage, {}))
        member = block.pop("member", {})
        _merge(value[stage], block, value[stage]["rules"], why)
        for m in value[stage]["members"]:
            _merge(m, member, m["rules"], why)
    value["name"] = reference["name"]
    if "why" in reference:
        value["rules"]["name"] = reference["why"]
    return records.from_json(Plan, _consistent(value), path)


def _merge(into: dict, values: dict, rules: dict, why: str, prefix: str = "") -> None:
    for key, v in values.items():
        if isinstance(v, dict) and isinstance(into.get(key), dict):
            _merge(into[key], v, rules, why, f"{prefix}{key}.")
        else:
            into[key] = v
            rules[prefix + key] = why


def _consistent(value: dict) -> dict:
    """Pinned grids and channels carried through to what follows from them: members' grids, input channels, levels."""
    for stage in ("coarse", "fine"):
        for m in value[stage]["members"]:
            if stage == "coarse":
                m["spacing_mm"], m["shape"] = value["coarse"]["spacing_mm"], value["coarse"]["shape"]
            d = m["network"]["dimensions"]
            m["network"]["in_channels"] = len(m["windows"]) * (2 * m["context_slices"] + 1) + m["position_channels"]
            levels = len(m["network"]["features"])
            if len(m["network"]["strides"]) != levels - 1:
                m["network"]["strides"] = [[2] * d] * (levels - 1)
            if len(m["network"]["kernels"]) != levels:
                m["network"]["kernels"] = [[3] * d] * levels
            multiples = [1] * d
            for step in m["network"]["strides"]:
                multiples = [a * b for a, b in zip(multiples, step)]
            if stage == "fine":
                m["shape"] = [-(-n // k) * k for n, k in zip(m["shape"], multiples)]
    return value


def derivation(plan: Plan) -> list[str]:
    """The plan as numbered lines: each derived number with its rule."""
    lines = [f"plan '{plan.name}' for {plan.dataset}: memory target {plan.memory_target_gb:.1f} GB ({plan.rules.get('memory_target_gb', 'pinned')})"]
    c = plan.coarse
    lines += [f"coarse spacing {_show(c.spacing_mm)} mm: {c.rules['spacing_mm']}", f"coarse volume {_show(c.shape)}: {c.rules['shape']}"]
    for m in plan.members:
        lines.append(f"{m.name}: {_show(m.shape)} voxels of {_show(m.spacing_mm)} mm, batch {m.training.batch_size}, features {_show(m.network.features)}")
        shown = {"windows": ", ".join(f"[{w.low_hu:.0f}, {w.high_hu:.0f}] HU" for w in m.windows), "spacing_mm": _show(m.spacing_mm), "shape": _show(m.shape), "jitter_mm": f"{m.jitter_mm} mm"}
        for key, rule in m.rules.items():
            if m.stage == "fine" or m is plan.coarse.members[0] or key == "axis":
                lines.append(f"    {key.replace('_mm', '')}{' ' + shown[key] if key in shown else ''}: {rule}")
    return [f"{i:3d}. {line}" if not line.startswith(" ") else line for i, line in enumerate(lines, 1)]


def _show(values) -> str:
    return " × ".join(f"{v:.4g}" for v in values)
