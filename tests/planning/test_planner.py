"""The whole plan. golden_auto.json is what 'auto' derives from conftest.py's fingerprint; after a wanted change, write it again:

    PYTHONPATH=. python tests/planning/test_planner.py
"""
import importlib
import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from c2f_nnunet.errors import PlanError
from c2f_nnunet.io import records
from c2f_nnunet.planning import planner
from c2f_nnunet.planning.coarse import LARGEST_VOLUME
from c2f_nnunet.planning.fine import LARGEST_CROP
from c2f_nnunet.planning.plan import CoarsePlan, FinePlan, MemberPlan, NetworkPlan, Plan, TrainingPlan
from c2f_nnunet.planning.planner import choose_plan, derivation, make_plan, plan_name

GOLDEN = Path(__file__).with_name("golden_auto.json")
NAMES = {"name", "stage", "volumes", "members", "rules", "network.dimensions"}  # what a field is called by, not derived


def test_golden(make):
    assert records.to_text(make_plan(make.pddca(), make.cpu)) == GOLDEN.read_text()


def derived_fields(block, prefix="") -> set[str]:
    """Names of a block's fields, those of its network and training as 'network.features'."""
    out = set()
    for f in fields(block):
        value = getattr(block, f.name)
        out |= derived_fields(value, f"{f.name}.") if isinstance(value, (NetworkPlan, TrainingPlan)) else {prefix + f.name}
    return out - NAMES


@pytest.mark.parametrize("which", ["auto", "paper_han"])
def test_every_number_stands_beside_its_rule(which, make):
    plan = choose_plan(which, make.pddca(), make.gpu)
    for block in (plan.coarse, plan.fine, *plan.members):
        missing = derived_fields(block) - block.rules.keys() - ({"axis"} if getattr(block, "axis", 0) is None else set())
        assert not missing, f"{getattr(block, 'name', type(block).__name__)} has no rule for {sorted(missing)}"
        assert block.rules.keys() <= derived_fields(block), "a rule without its number"
    assert {MemberPlan, CoarsePlan, FinePlan} == {type(b) for b in (plan.coarse, plan.fine, plan.members[0])}


@pytest.mark.parametrize("machine", ["cpu", "gpu"])
def test_a_plan_for_pddca_is_sensible(make, machine):
    """Coarse volume under its cap and holding the organs; nerves finer than the mandible; crops that hold the organs and fit."""
    data, budget = make.pddca(), getattr(make, machine)
    plan = make_plan(data, budget)
    members = {m.name: m for m in plan.members}
    assert list(members) == [
        "2d_top", "2d_front", "2d_side", "3d_BrainStem", "3d_Chiasm", "3d_Mandible", "3d_OpticNerve", "3d_Parotid", "3d_Submandibular",
    ]  # fmt: skip
    assert np.prod(plan.coarse.shape) <= LARGEST_VOLUME[budget.accelerator]
    held = np.multiply(plan.coarse.shape, plan.coarse.spacing_mm)
    for c in data.cases:
        for s in c.organs.values():
            down, side = s.extent_mm[0] / 2 - s.offset_mm[0], np.abs(s.offset_mm[1:]) + np.divide(s.extent_mm[1:], 2)
            assert down < held[0] and (side < held[1:] / 2).all()
    assert (held <= np.array([340, 230, 400]) * 1.1 + 10 * np.array(plan.coarse.spacing_mm)).all()  # no more than the largest body
    own = np.array([2.5, 1.0, 1.0])
    for m in plan.fine.members:
        assert (np.array(m.spacing_mm) >= own).all()
        assert np.prod(m.shape) <= LARGEST_CROP[budget.accelerator]
        room = np.multiply(m.shape, m.spacing_mm) - 2 * np.array(m.jitter_mm)
        for c in data.cases:
            assert all((np.array(c.organs[o].extent_mm) < room).all() for o in m.organs)
        assert m.training.batch_size >= 2
    nerve, mandible = members["3d_OpticNerve"].spacing_mm, members["3d_Mandible"].spacing_mm
    if budget.accelerator:
        assert nerve == mandible == plan.coarse.spacing_mm  # stage 1 sees the scans' own voxels already
    else:
        assert np.prod(nerve) < np.prod(mandible) and all(a <= b for a, b in zip(nerve, mandible))
    assert all(a <= b for a, b in zip(nerve, plan.coarse.spacing_mm)), "the fine stage is finer"
    assert sum(m.minutes_share for m in plan.members) <= 1.0


def test_derivation_is_numbered_and_says_no_rule_twice(make):
    lines = derivation(make_plan(make.pddca(), make.cpu))
    numbers = [int(line.split(".")[0]) for line in lines if not line.startswith("    ")]
    assert numbers == list(range(1, len(numbers) + 1))
    rules = [line for line in lines if line.startswith("    ")]
    assert len(rules) == len(set(rules))
    assert any("3d_OpticNerve" in line for line in lines)


def test_no_foreground_is_a_stated_error(make):
    with pytest.raises(PlanError, match="Stem is in no training case"):
        make_plan(make.fingerprint(make.case(), organs=("Stem",)), make.cpu)


# --- whole plans and names


def test_a_whole_plan_is_taken_as_it_is(make, tmp_path):
    plan = replace(make_plan(make.pddca(), make.cpu), name="kept", memory_target_gb=1.5)
    records.write(tmp_path / "plan.json", replace(plan, dataset="Dataset777_Other", fingerprint="old"))
    assert choose_plan(str(tmp_path / "plan.json"), make.pddca(), make.gpu) == plan  # whatever this machine's budget


def test_a_whole_plan_of_other_organs_is_refused(make, tmp_path):
    records.write(tmp_path / "plan.json", make_plan(make.fingerprint(make.case(Stem=make.organ())), make.cpu))
    with pytest.raises(PlanError, match="organs .*Stem.* differ from the data set's"):
        choose_plan(str(tmp_path / "plan.json"), make.pddca(), make.cpu)


def test_a_whole_plan_that_cannot_be_pooled_is_refused(make, tmp_path):
    value = records.plain(make_plan(make.pddca(), make.cpu))
    value["fine"]["members"][0]["shape"][1] += 1
    (tmp_path / "plan.json").write_text(json.dumps(value))
    with pytest.raises(PlanError, match="3d_BrainStem: shape .* is no multiple"):
        choose_plan(str(tmp_path / "plan.json"), make.pddca(), make.cpu)


def test_a_given_spacing_does_not_vanish_silently(make, tmp_path):
    with pytest.raises(PlanError, match="fixes the coarse spacing; leave --overwrite_target_spacing out"):
        choose_plan("paper_han", make.pddca(), make.gpu, spacing_mm=(2, 2, 2))
    free = make.reference(tmp_path, fine={"member": {"jitter_mm": [3.0, 3.0, 3.0]}})
    assert choose_plan(free, make.pddca(), make.gpu, spacing_mm=(2, 2, 2)).coarse.spacing_mm == (2, 2, 2)


def test_an_unknown_plan(make):
    with pytest.raises(PlanError, match="-pl nope: neither a known plan .*paper_han.* nor a file"):
        choose_plan("nope", make.pddca(), make.gpu)
    with pytest.raises(PlanError, match=r"-pl nope: neither a known plan \(auto, paper_han\) nor a file"):
        plan_name("nope")


@pytest.mark.parametrize("which", ["auto", "paper_han"])
def test_a_plans_name_is_known_before_it_is_made(which, make):
    assert plan_name(which) == choose_plan(which, make.pddca(), make.gpu).name


def test_the_name_of_a_plan_of_ones_own(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text('{"name": "mine"}')
    assert plan_name(str(path)) == "mine"
    for content in ("[]", "{}", '{"name": 3}'):
        path.write_text(content)
        with pytest.raises(PlanError, match="plan.json: not a plan: it has no 'name'; see plans/paper_han.json"):
            plan_name(str(path))


def test_reference_plans_are_found_installed_or_not(make, monkeypatch, tmp_path):
    expected = choose_plan("paper_han", make.pddca(), make.gpu)

    def not_installed(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(planner.resources, "files", not_installed)
    assert choose_plan("paper_han", make.pddca(), make.gpu) == expected
    (tmp_path / "paper_han.json").write_text('{"name": "from_the_package"}')
    monkeypatch.setattr(planner.resources, "files", {"c2f_nnunet.plans": tmp_path}.__getitem__)
    assert choose_plan("paper_han", make.pddca(), make.gpu).name == "from_the_package"


def test_two_fingerprints_have_two_hashes(make):
    a, b = make.pddca(), replace(make.pddca(), dataset="Dataset002_Other")
    assert make_plan(a, make.cpu).fingerprint != make_plan(b, make.cpu).fingerprint
    assert isinstance(make_plan(a, make.cpu), Plan)


if __name__ == "__main__":
    built = importlib.import_module("conftest")
    GOLDEN.write_text(records.to_text(make_plan(built.pddca(), built.CPU)))
    print(f"written: {GOLDEN}")
