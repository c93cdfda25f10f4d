"""Reference plans: pinned values, and what follows from them."""
import numpy as np
import pytest

from c2f_nnunet.errors import PlanError, RecordError
from c2f_nnunet.planning import topology
from c2f_nnunet.planning.plan import LossPlan
from c2f_nnunet.planning.planner import choose_plan, make_plan


def test_paper_han_pins_the_papers_numbers(make):
    data = make.pddca()
    plan = choose_plan("paper_han", data, make.gpu)
    assert (plan.name, plan.coarse.shape, plan.coarse.spacing_mm) == ("paper_han", (280, 280, 280), (1.0, 1.0, 1.0))
    for m in plan.members:
        t = m.training
        assert (t.epochs, t.validate_every, t.learning_rate, t.optimiser, t.schedule) == (100, 10, 1e-4, "adam", "constant")
        assert m.spacing_mm == (1.0, 1.0, 1.0) and len(m.network.strides) == 3
        (w,) = m.windows
        assert (w.low_hu, w.high_hu) == (-400, 800)
        assert w.mean == pytest.approx((20 + 400) / 1200, abs=1e-4)  # the data set's mean is 20 HU
    # what the paper does not speak of is off: gradients are not cut, no prior is put into the heads
    assert {(m.training.clip_norm, m.network.background_prior, m.training.mirrors) for m in plan.members} == {(0.0, 0.0, False)}
    assert [m.training.batch_size for m in plan.coarse.members] == [16] * 3
    assert {m.training.batch_size for m in plan.fine.members} == {4}
    assert plan.coarse.members[0].training.loss == LossPlan("weighted_ce", "predictions", 1.0, 0.0)
    assert plan.fine.members[0].training.loss == LossPlan("generalised_dice", "none", 0.0, 1.0)
    assert plan.coarse.members[0].rules["training.loss"] == "name, class_weights, temper, dice_weight pinned by paper_han"
    assert plan.coarse.members[0].network.in_channels == 1


def test_an_epoch_of_paper_han_is_one_pass(make):
    plan = choose_plan("paper_han", make.pddca(), make.gpu)
    steps = {m.name: m.training.steps_per_epoch for m in plan.members}
    assert steps["2d_side"] == 8 * 280 // 16  # four fifths of ten cases, 280 slices each
    assert steps["3d_Mandible"] == 8 // 4
    assert steps["3d_Parotid"] == 16 // 4  # both sides
    assert plan.member("3d_Parotid").rules["training.steps_per_epoch"] == "one pass over the data: 16 crops (four fifths) in batches of 4"


def test_a_pinned_fine_spacing_keeps_the_extent(make, tmp_path):
    auto = make_plan(make.pddca(), make.gpu)
    path = make.reference(tmp_path, fine={"member": {"spacing_mm": [5.0, 2.5, 2.5]}})
    pinned = choose_plan(path, make.pddca(), make.gpu)
    for a, b in zip(auto.fine.members, pinned.fine.members):
        need = np.array(a.shape) * a.spacing_mm - np.multiply(topology.divisors(a.network.strides, 3), a.spacing_mm)
        assert b.spacing_mm == (5.0, 2.5, 2.5)
        assert (np.multiply(b.shape, b.spacing_mm) >= need).all()
        assert all(n % k == 0 for n, k in zip(b.shape, topology.divisors(b.network.strides, 3)))
        assert b.rules["spacing_mm"] == "pinned by mine"


def test_a_pinned_coarse_spacing_reshapes_the_volume_and_the_jitter(make, tmp_path):
    plan = choose_plan(make.reference(tmp_path, coarse={"spacing_mm": [4.0, 4.0, 4.0]}), make.pddca(), make.gpu)
    same = make_plan(make.pddca(), make.gpu, spacing_mm=(4, 4, 4))
    assert plan.coarse.shape == same.coarse.shape
    assert plan.fine.members[0].jitter_mm == same.fine.members[0].jitter_mm


def test_a_pinned_jitter_has_room_in_the_crop(make, tmp_path):
    derived = make_plan(make.pddca(), make.gpu)
    plan = choose_plan(make.reference(tmp_path, fine={"member": {"jitter_mm": [30.0, 20.0, 25.0]}}), make.pddca(), make.gpu)
    for before, now in zip(derived.fine.members, plan.fine.members):
        wanted = [n * s + 2 * (j - was) for n, s, j, was in zip(before.shape, before.spacing_mm, now.jitter_mm, before.jitter_mm)]
        steps = topology.divisors(now.network.strides, 3)
        assert all(n * s > mm - k * s for n, s, mm, k in zip(now.shape, now.spacing_mm, wanted, steps)) and "for the jitter pinned" in now.rules["shape"]
    both = choose_plan(make.reference(tmp_path, fine={"member": {"jitter_mm": [30.0] * 3, "shape": [32, 32, 32]}}), make.pddca(), make.gpu)
    assert {m.shape for m in both.fine.members} == {(32, 32, 32)}


def test_pinned_shapes_are_made_divisible_and_say_so(make, tmp_path):
    path = make.reference(tmp_path, coarse={"spacing_mm": [2, 2, 2], "shape": [101, 96, 90]}, fine={"member": {"shape": [30, 64, 65]}})
    plan = choose_plan(path, make.pddca(), make.gpu)
    assert plan.coarse.shape == (104, 96, 96) == plan.members[0].shape
    assert "[101, 96, 90] made larger" in plan.coarse.rules["shape"]
    for m in plan.fine.members:
        assert all(n % k == 0 for n, k in zip(m.shape, topology.divisors(m.network.strides, 3)))


def test_a_stated_mean_stands(make, tmp_path):
    path = make.reference(tmp_path, coarse={"member": {"windows": [{"low_hu": -100, "high_hu": 300, "mean": 0.25}]}})
    assert choose_plan(path, make.pddca(), make.gpu).members[0].windows[0].mean == 0.25


@pytest.mark.parametrize(("network", "features", "strides"), [
    ({"features": [8, 16]}, (8, 16), 1),  # the poolings follow
    ({"strides": [[2, 2], [2, 2]]}, (32, 64, 128), 2),  # the features follow
    ({"features": [8, 16, 32], "strides": [[2, 2], [2, 2]]}, (8, 16, 32), 2),
])  # fmt: skip
def test_levels_follow_what_is_pinned(make, tmp_path, network, features, strides):
    plan = choose_plan(make.reference(tmp_path, coarse={"member": {"network": network}}), make.pddca(), make.gpu)
    for m in plan.coarse.members:
        assert (m.network.features, len(m.network.strides), len(m.network.kernels)) == (features, strides, len(features))


@pytest.mark.parametrize(("values", "error", "says"), [
    ({"coarse": {"member": {"network": {"features": [8, 16], "strides": [[2, 2]] * 3}}}}, PlanError, "2 features need"),
    ({"coarse": {"member": {"training": {"batch_size": 0}}}}, PlanError, "batch_size is 0"),
    ({"coarse": {"member": {"windows": [{"low_hu": 10, "high_hu": 10, "mean": 0}]}}}, PlanError, "high_hu is not above"),
    ({"coarse": {"member": {"training": {"epoch": 5}}}}, RecordError, "epoch"),  # an unknown key
    ({"coarse": {"shape": "large"}}, RecordError, "coarse.shape"),
    ({"coarse": {"member": {"windows": [{"low_hu": "low", "high_hu": 5}]}}}, RecordError, "low_hu"),
    ({"coarse": {"spacing_mm": [0, 1, 1]}}, PlanError, "above 0"),
    ({"coarse": {"spacing_mm": "fine"}}, RecordError, "fine"),
    ({"coarse": {"member": {"spacing_mm": [3, 3, 3]}}}, PlanError, "spacing_mm under coarse.member: the three views share one grid"),
    ({"coarse": {"member": {"shape": [8, 8, 8]}}}, PlanError, "shape under coarse.member"),
    ({"coarse": []}, PlanError, "must be objects"),
    ({"corase": {}}, PlanError, "no corase"),
    ({"name": "../elsewhere"}, PlanError, "no name for a folder"),
])  # fmt: skip
def test_a_bad_reference_is_a_stated_error(make, tmp_path, values, error, says):
    with pytest.raises(error, match=says):
        choose_plan(make.reference(tmp_path, **values), make.pddca(), make.gpu)


def test_a_file_without_name_is_no_reference(make, tmp_path):
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(PlanError, match="has no 'name'"):
        choose_plan(str(tmp_path / "x.json"), make.pddca(), make.gpu)
