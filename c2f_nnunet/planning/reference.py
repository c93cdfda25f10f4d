"""Reference plans: values that are pinned over the derived ones, and what follows from them carried through."""
from __future__ import annotations

import math
from copy import deepcopy
from pathlib import Path

from ..data.fingerprint import Fingerprint
from ..errors import PlanError
from ..io import records
from .coarse import mean_hu, window_mean
from .fine import crop_extent_mm, stats_of
from .plan import Plan, checked
from .topology import IN_PLANE, divisors, features, kernels, round_up

STAGES = ("coarse", "fine")
TRAINED_ON = 0.8  # share of the cases that one of five folds trains on


def pin(derived: Plan, reference, path: Path, fingerprint: Fingerprint) -> Plan:
    """A plan with a reference's values put over it; it must be derived in the reference's spacings (`pinned_spacing`).

    reference: {"name", "why", "coarse": {…, "member": {…}}, "fine": {…, "member": {…}}}; a "member" block goes to every
    member of the stage. What is pinned says so in the rules. A window without "mean" gets the data set's mean as seen
    through it; "steps_per_epoch": 0 is one pass over the data.
    """
    value = records.plain(derived)
    why = f"pinned by {reference['name']}"
    for stage in STAGES:
        block = deepcopy(reference.get(stage, {}))
        member = block.pop("member", {})
        _merge(value[stage], block, value[stage]["rules"], why)
        for m in value[stage]["members"]:
            _merge(m, deepcopy(member), m["rules"], why)
            _fill_means(m, mean_hu(fingerprint))
    value["name"] = reference["name"]
    if "why" in reference:
        value["rules"]["name"] = reference["why"]
    plan = records.from_json(Plan, value, path)  # what is pinned has the right types from here on
    return checked(records.from_json(Plan, _consistent(records.plain(plan), fingerprint, why), path), path)


def pinned_spacing(reference, path: Path) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """The reference's coarse and fine spacing, where pinned; PlanError where the file is no reference plan."""
    if not isinstance(reference, dict) or "name" not in reference:
        raise PlanError(f"{path}: not a reference plan: it has no 'name'; see plans/paper_han.json")
    if unknown := sorted(reference.keys() - {"name", "why", *STAGES}):
        raise PlanError(f"{path}: a reference plan has no {', '.join(unknown)}; remove it, or see plans/paper_han.json")
    coarse, fine = reference.get("coarse", {}), reference.get("fine", {})
    for block in (coarse, fine):
        if not isinstance(block, dict) or not isinstance(block.get("member", {}), dict):
            raise PlanError(f"{path}: 'coarse', 'fine' and their 'member' must be objects; see plans/paper_han.json")
    if own := sorted({"spacing_mm", "shape"} & coarse.get("member", {}).keys()):
        raise PlanError(f"{path}: {' and '.join(own)} under coarse.member: the three views share one grid; write it under coarse")
    found = []
    for block in (coarse, fine.get("member", {})):
        mm = block.get("spacing_mm")
        found.append(mm if mm is None else records.from_json(tuple[float, float, float], mm, path))
        if mm is not None and min(found[-1]) <= 0:
            raise PlanError(f"{path}: spacing_mm {mm} must be above 0 along each axis; mend it")
    return found[0], found[1]


def _merge(into: dict, values: dict, rules: dict, why: str, prefix: str = "") -> None:
    for key, v in values.items():
        if isinstance(v, dict) and isinstance(into.get(key), dict) and prefix + key not in rules:
            _merge(into[key], v, rules, why, f"{prefix}{key}.")
        elif isinstance(v, dict) and isinstance(into.get(key), dict):  # a block with one rule, as the loss
            into[key] = into[key] | v
            rules[prefix + key] = f"{', '.join(v)} {why}"
        else:
            into[key] = v
            rules[prefix + key] = why


def _fill_means(member: dict, hu: float) -> None:
    """The data set's mean through each pinned window that states none (the paper subtracts it)."""
    for w in member["windows"] if isinstance(member["windows"], list) else ():
        low, high = (w.get("low_hu"), w.get("high_hu")) if isinstance(w, dict) and "mean" not in w else (None, None)
        if all(isinstance(v, (int, float)) for v in (low, high)) and low < high:
            w["mean"] = window_mean(low, high, hu)
            member["rules"]["windows"] += "; mean: the data set's, seen through the window"


def _consistent(value: dict, fingerprint: Fingerprint, why: str) -> dict:
    """Pinned values carried through to what follows: levels, input channels, grids that can be pooled, steps of an epoch."""
    coarse, multiples = value["coarse"], [1, 1, 1]
    for m in coarse["members"]:
        m["spacing_mm"] = coarse["spacing_mm"]
        _fit_network(m, [coarse["spacing_mm"][a] for a in IN_PLANE[m["axis"]]], why)
        for a, k in zip(IN_PLANE[m["axis"]], divisors(m["network"]["strides"], 2)):
            multiples[a] = math.lcm(multiples[a], k)
    _fit_shape(coarse, multiples)
    for m in coarse["members"]:
        m["shape"] = coarse["shape"]
        _fit_steps(m, len(fingerprint.cases), m["shape"][m["axis"]])
    for m in value["fine"]["members"]:
        _fit_network(m, m["spacing_mm"], why)
        if m["rules"]["jitter_mm"] == why != m["rules"]["shape"]:
            extent = crop_extent_mm(stats_of(fingerprint, tuple(m["organs"])), m["jitter_mm"])
            m["shape"] = [math.ceil(e / s) for e, s in zip(extent, m["spacing_mm"])]
            m["rules"]["shape"] += f"; for the jitter {why}"
        _fit_shape(m, divisors(m["network"]["strides"], 3))
        _fit_steps(m, sum(o in c.organs for c in fingerprint.cases for o in m["organs"]), 1)
    return value


def _fit_network(m: dict, spacing_mm, why: str) -> None:
    """As many poolings, kernels and features as the pinned one of them asks for; input channels as the member's input."""
    network, rules = m["network"], m["rules"]
    network["in_channels"] = len(m["windows"]) * (2 * m["context_slices"] + 1) + m["position_channels"]
    d, levels = network["dimensions"], len(network["features"])
    if len(network["strides"]) != levels - 1:
        if rules["network.strides"] == why and rules["network.features"] != why:
            network["features"] = features(network["features"][0], len(network["strides"]) + 1, d)
            rules["network.features"] += f", as many levels as poolings {why}"
        elif rules["network.strides"] != why:
            network["strides"] = [[2] * d] * (levels - 1)
            rules["network.strides"] = f"2 along each axis, as many as features {why}"
    if len(network["kernels"]) != len(network["features"]) and rules["network.kernels"] != why:
        network["kernels"] = kernels(spacing_mm, network["strides"])


def _fit_shape(block: dict, multiples) -> None:
    """A grid that the poolings divide."""
    fitting = list(round_up(block["shape"], multiples))
    if fitting != block["shape"]:
        block["rules"]["shape"] += f"; {block['shape']} made larger, to multiples of {list(multiples)} for the poolings"
        block["shape"] = fitting


def _fit_steps(m: dict, items: int, samples: int) -> None:
    """steps_per_epoch 0: one pass over what a fold trains on."""
    training = m["training"]
    if training["steps_per_epoch"] == 0:
        items = max(1, round(TRAINED_ON * items))
        training["steps_per_epoch"] = math.ceil(items * samples / training["batch_size"])
        what = f"{items} cases (four fifths) of {samples} slices" if m["stage"] == "coarse" else f"{items} crops (four fifths)"
        m["rules"]["training.steps_per_epoch"] = f"one pass over the data: {what} in batches of {training['batch_size']}"
