"""The plan's types and its file: what comes back, what is refused and named, and that no field of a plan can be set."""
import json
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace

import pytest

from c2f_nnunet.errors import PlanError, RecordError
from c2f_nnunet.io import records
from c2f_nnunet.planning.plan import (
    PLAN_VERSION, CoarsePlan, FinePlan, LossPlan, MemberPlan, NetworkPlan, OrganPrior, Plan, TrainingPlan, Window, read_plan,
)  # fmt: skip
from c2f_nnunet.planning.planner import make_plan


@pytest.fixture
def plan(make) -> Plan:
    return make_plan(make.pddca(), make.cpu)


@pytest.fixture
def edited(plan, tmp_path):
    """edited("fine.members.0.axis", 3) → a plan.json with this one entry set; with ... it is taken out."""

    def edited(place: str, new):
        value = json.loads(records.to_text(plan))
        *above, last = [int(part) if part.isdecimal() else part for part in place.split(".")]
        block = value
        for part in above:
            block = block[part]
        if new is ...:
            del block[last]
        else:
            block[last] = new
        path = tmp_path / "plan.json"
        path.write_text(json.dumps(value))
        return path

    return edited


def blocks(value) -> list:
    """A record and every record inside it."""
    if isinstance(value, (tuple, list)):
        return [b for v in value for b in blocks(v)]
    return [value] + [b for f in fields(value) for b in blocks(getattr(value, f.name))] if is_dataclass(value) else []


# The file


def test_a_plan_survives_its_file(plan, tmp_path):
    records.write(tmp_path / "plan.json", plan)
    assert read_plan(tmp_path / "plan.json") == plan


def test_lists_come_back_as_tuples(plan, tmp_path):
    records.write(tmp_path / "plan.json", plan)
    member = read_plan(tmp_path / "plan.json").member("3d_Parotid")
    assert member.organs == ("Parotid_L", "Parotid_R") and isinstance(member.network.strides[0], tuple)


def test_what_a_file_may_leave_out(edited):
    window = read_plan(edited("coarse.members.0.windows.0", {"low_hu": -100, "high_hu": 300})).members[0].windows[0]
    assert window == Window(-100.0, 300.0, 0.0, 1.0)
    assert read_plan(edited("fine.members.0.training.loss", {"name": "dice_ce"})).fine.members[0].training.loss == LossPlan("dice_ce")
    network = {"dimensions": 3, "in_channels": 2, "out_channels": 2, "features": [4, 8], "strides": [[2, 2, 2]], "kernels": [[3, 3, 3]] * 2}
    assert read_plan(edited("fine.members.0.network", network)).fine.members[0].network.norm == "instance"


@pytest.mark.parametrize("version", [99, PLAN_VERSION - 1, str(PLAN_VERSION), None, ...])
def test_a_plan_of_another_version_is_refused(edited, version):
    found = None if version is ... else version
    told = f"plan.json: plan version {found} and this program's {PLAN_VERSION} differ; run c2f_plan_and_preprocess again$"
    with pytest.raises(PlanError, match=told):
        read_plan(edited("version", version))


@pytest.mark.parametrize("block", ["", "coarse.", "fine.", "fine.priors.0.", "coarse.members.2.", "fine.members.0.training.",
                                   "fine.members.0.training.loss.", "fine.members.0.network.", "coarse.members.0.windows.0.", "labels."])
def test_an_unknown_key_is_named_with_its_place(edited, block):
    with pytest.raises(RecordError, match=rf"plan\.json: not a valid Plan: {block}nonsense: Unexpected keyword argument.*; mend"):
        read_plan(edited(f"{block}nonsense", 1))


@pytest.mark.parametrize("place, value, told", [
    ("name", 7, r"name: Input should be a valid string \(got 7\)"),
    ("dataset", ..., "dataset: Field required"),
    ("rules", ..., "rules: Field required"),
    ("memory_target_gb", "much", r"memory_target_gb: Input should be a valid number.* \(got much\)"),
    ("labels.ids", ["one"], r"labels\.ids\.0: Input should be a valid integer.* \(got one\)"),
    ("coarse.shape", [96, 96], r"coarse\.shape\.2: Field required"),
    ("coarse.spacing_mm", [3, None, 3], r"coarse\.spacing_mm\.1: Input should be a valid number \(got None\)"),
    ("coarse.members.0.axis", 3, r"coarse\.members\.0\.axis: Input should be 0, 1 or 2 \(got 3\)"),
    ("coarse.members.0.stage", "middle", r"stage: Input should be 'coarse' or 'fine' \(got middle\)"),
    ("fine.members.0.network.dimensions", 4, r"network\.dimensions: Input should be 2 or 3 \(got 4\)"),
    ("fine.members.0.network.norm", "layer", r"network\.norm: Input should be 'instance' or 'batch' \(got layer\)"),
    ("fine.members.0.network.features", [8, 16.5], r"network\.features\.1: Input should be a valid integer.* \(got 16\.5\)"),
    ("fine.members.0.training.optimiser", "rmsprop", r"optimiser: Input should be 'adam', 'adamw' or 'sgd' \(got rmsprop\)"),
    ("fine.members.0.training.schedule", "cosine", r"schedule: Input should be 'constant' or 'poly' \(got cosine\)"),
    ("fine.members.0.training.augmentation", "much", r"augmentation: Input should be 'paper', 'full' or 'none' \(got much\)"),
    ("fine.members.0.training.loss.name", "focal", r"loss\.name: Input should be 'dice_ce'.* \(got focal\)"),
    ("fine.priors.0.volume_mm3", [1, 2, 3, 4], r"priors\.0\.volume_mm3: .*"),
    ("fine.members", {}, r"fine\.members: Input should be a valid tuple"),
])  # fmt: skip
def test_a_damaged_value_is_named_with_its_place(edited, place, value, told):
    with pytest.raises(RecordError, match=rf"plan\.json: not a valid Plan: .*{told}.*; mend these entries or make the file again"):
        read_plan(edited(place, value))


@pytest.mark.parametrize("place, value, told", [
    ("coarse.spacing_mm", [0, 3, 3], "the coarse volume: .* are no grid, all must be above 0; mend the plan"),
    ("fine.members.0.spacing_mm", [3, -1, 3], "3d_.*: .* are no grid"),
    ("coarse.shape", [-3, 7, 0], "the coarse volume: .* are no grid"),
    ("name", "../auto", "'../auto' is no name for a folder"),
    ("coarse.members.1.name", "a/b", "'a/b' is no name for a folder"),
    ("fine.members.0.volumes", ".hidden", "'.hidden' is no name for a folder"),
    ("coarse.members.0.training.batch_size", 0, "2d_top: batch_size is 0, at least 1 is needed"),
    ("coarse.members.0.windows.0.high_hu", -2000, "2d_top: a window's high_hu is not above its low_hu"),
    ("coarse.members.0.network.in_channels", 2, "2d_top: in_channels is 2, but its input has"),
    ("coarse.spacing_mm", [1e-9, 3, 3], "the coarse volume: .* are no grid for a patient, at most 2048 voxels of 0.05 to 50 mm"),
    ("fine.members.0.shape", [16, 16, 16 * 10**6], "3d_.*: .* are no grid for a patient"),
    ("fine.members.1.name", "3D_BrainStem", "3D_BrainStem and 3d_BrainStem would share a folder; give each member a name of its own"),
    ("fine.members.0.organs", ["Spleen"], ": Spleen: in two fine members, or no organ of the plan"),
    ("fine.members.0.organs", ["BrainStem", "Chiasm"], ": Chiasm: in two fine members"),
    ("coarse.members.0.organs", ["BrainStem"], "2d_top: organs is \\['BrainStem'\\], a coarse member has all of the plan's"),
    ("coarse.members.0.axis", None, "2d_top: axis is None in a coarse member"),
    ("fine.members.0.axis", 1, "3d_BrainStem: axis is 1 in a fine member"),
    ("fine.members.0.network.dimensions", 2, "3d_BrainStem: dimensions is 2, a fine member has 3"),
    ("fine.members.0.network.out_channels", 9, "3d_BrainStem: out_channels is 9, but it tells 2 apart"),
    ("fine.members.0.network.features", [8] * 11, "3d_BrainStem: 11 levels are more than 10"),
    ("fine.members.0.network.features", [8, 16, 0, 64], "3d_BrainStem: features is 0, at least 1 is needed"),
    ("fine.members.0.network.strides.0", [2, 2], "3d_BrainStem: strides and kernels need 3 numbers from 1 up"),
    ("fine.members.0.network.strides.0", [2, 0, 2], "3d_BrainStem: strides and kernels need 3 numbers from 1 up"),
    ("fine.members.0.network.se_ratio", 0, "3d_BrainStem: se_ratio is 0, at least 1 is needed"),
    ("fine.members.0.training.validate_every", 0, "3d_BrainStem: validate_every is 0, at least 1 is needed"),
    ("fine.members.0.windows.0.std", 0, "3d_BrainStem: a window's std is not above 0"),
    ("fine.members.0.shape", [15, 16, 16], "3d_BrainStem: shape .* is no multiple of its strides' product"),
])
def test_impossible_values_are_named(edited, place, value, told):
    with pytest.raises(PlanError, match=told):
        read_plan(edited(place, value))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_are_finite(edited, value):
    with pytest.raises(RecordError, match="coarse.spacing_mm.1: .*finite"):
        read_plan(edited("coarse.spacing_mm", [3.0, value, 3.0]))


@pytest.mark.parametrize("content, told", [
    ("", "cannot be read as JSON"), ('{"version": 2', "cannot be read as JSON"), ("[]", "not a valid Plan"), ("null", "not a valid Plan"),
])  # fmt: skip
def test_what_is_no_plan(tmp_path, content, told):
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(RecordError, match=rf"plan\.json: {told}"):
        read_plan(tmp_path / "plan.json")


def test_a_missing_file(tmp_path):
    with pytest.raises(RecordError, match=r"plan\.json: no such file; check the path"):
        read_plan(tmp_path / "plan.json")


# The types


def test_no_field_of_a_plan_can_be_set(plan):
    found = blocks(plan)
    ours = {Plan, CoarsePlan, FinePlan, MemberPlan, NetworkPlan, TrainingPlan, LossPlan, Window, OrganPrior}
    assert ours <= {type(b) for b in found}
    for block in found:
        name = fields(block)[0].name
        with pytest.raises(FrozenInstanceError):
            setattr(block, name, getattr(block, name))


def test_a_variation_is_another_value(plan):
    member = plan.member("3d_Chiasm")
    other = replace(member, training=replace(member.training, epochs=5))
    assert other.training.epochs == 5 != member.training.epochs and plan.member("3d_Chiasm") is member


def test_members_are_those_of_both_stages_coarse_first(plan):
    assert plan.members == plan.coarse.members + plan.fine.members
    assert [m.stage for m in plan.members] == ["coarse"] * 3 + ["fine"] * 6


def test_members_and_priors_are_found_by_name(plan):
    assert plan.member("2d_side") is plan.coarse.members[2] and plan.member("3d_Parotid").organs == ("Parotid_L", "Parotid_R")
    assert plan.prior("Mandible").organ == "Mandible"


@pytest.mark.parametrize("name", ["3d_Glands", "all", "2D_top", ""])
def test_an_unknown_configuration_lists_those_there_are(plan, name):
    listed = "2d_top, 2d_front, 2d_side, 3d_BrainStem, .*, 3d_Submandibular, or the groups coarse, fine, all$"
    with pytest.raises(PlanError, match=f"plan 'auto' has no configuration '{name}'; it has: {listed}"):
        plan.member(name)


@pytest.mark.parametrize("augmentation, expected", [("full", True), ("paper", False), ("none", False)])
def test_only_a_network_that_saw_mirrored_patients_is_asked_about_them(plan, augmentation, expected):
    assert replace(plan.members[0].training, augmentation=augmentation).mirrors is expected
