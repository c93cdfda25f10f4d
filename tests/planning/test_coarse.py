import numpy as np
import pytest

from c2f_nnunet.planning import coarse
from c2f_nnunet.planning.coarse import (
    BODY_PERCENTILE, CONTEXT_MM, LARGEST_VOLUME, PAPER_WINDOW, coarse_extent_mm, coarse_plan, coarse_shape, coarse_spacing_mm,
    organ_reach_mm, widened, window_mean, windows,
)  # fmt: skip
from c2f_nnunet.planning.topology import IN_PLANE, divisors


def test_spacing_is_the_median_where_that_fits(make):
    cases = tuple(make.case(spacing_mm=s) for s in ((2, 1, 1), (3, 1, 1), (9, 0.8, 1.2)))
    assert coarse_spacing_mm(cases, (100, 100, 100), 10**7) == ((3.0, 1.0, 1.0), "median of 3 cases")


def test_the_finest_axes_are_coarsened_first_and_the_volume_then_fits(make):
    spacing, rule = coarse_spacing_mm((make.case(spacing_mm=(2.0, 1.0, 1.0)),), (200, 200, 200), 2_000_000)
    assert spacing[0] == 2.0  # z was coarse enough
    assert 1.0 < spacing[1] == spacing[2] < 2.0
    one_step_finer = (2.0, spacing[1] / 1.05, spacing[2] / 1.05)
    assert np.prod(coarse_shape((200, 200, 200), spacing)) <= 2_000_000 < np.prod(coarse_shape((200, 200, 200), one_step_finer))
    assert "coarsened until the volume holds at most 2 million" in rule


def test_shape_holds_the_extent_with_a_voxel_around_and_can_be_pooled():
    assert coarse_shape((30, 31, 60), (1.0, 1.0, 2.0)) == (32, 40, 32)


def test_reach_is_measured_from_the_anchor(make):
    low = make.organ(extent_mm=(20, 10, 10), offset_mm=(-150, 30, 0))  # 150 mm below the vertex: down to 160
    side = make.organ(extent_mm=(10, 10, 40), offset_mm=(-50, 0, -70))  # right: 70 + 20
    assert organ_reach_mm((make.case(A=low, B=side),)) == pytest.approx((160, 35, 90), rel=0.02)


def test_extent_is_the_smaller_of_body_and_need(make):
    near = make.organ(extent_mm=(20, 20, 20), offset_mm=(-100, 0, 0))  # needs 110, 10 and 10 mm from the anchor
    extent, rule = coarse_extent_mm((make.case(body_extent_mm=(120, 60, 500), A=near),))
    assert extent == pytest.approx((120, 60, 2 * (10 + CONTEXT_MM)))  # body, body, organs
    assert f"{BODY_PERCENTILE:.0f}th percentile" in rule and "organs' reach" in rule


def test_one_long_scan_does_not_set_the_volume(make):
    far = make.organ(offset_mm=(-5000, 0, 0))
    bodies = [make.case(body_extent_mm=(300, 200, 250), A=far)] * 39 + [make.case(body_extent_mm=(1800, 200, 250), A=far)]
    assert coarse_extent_mm(tuple(bodies))[0][0] == pytest.approx(300)


def test_extent_without_foreground_is_the_body(make):
    extent, rule = coarse_extent_mm((make.case(body_extent_mm=(300, 200, 250)),))
    assert extent == (300, 200, 250) and "no foreground" in rule


@pytest.mark.parametrize(("low", "high", "mean_hu", "expected"), [
    (0, 400, 100, (-100, 500, 0.3333)),  # a quarter of 400 on each side
    (0, 20, 10, (-65, 85, 0.5)),  # at least 100 HU wide before: -40…60
    (0, 400, -900, (-100, 500, 0.0)),  # the mean is seen through the window
])  # fmt: skip
def test_widened(low, high, mean_hu, expected):
    w = widened(low, high, mean_hu)
    assert (w.low_hu, w.high_hu, w.mean) == pytest.approx(expected, abs=1e-4)


def test_the_papers_window_where_no_foreground_was_measured(make):
    (window,), rule = windows(make.fingerprint(make.case(mean_hu_body=200.0), organs=("Stem",)))
    assert (window.low_hu, window.high_hu) == PAPER_WINDOW == (-400, 800)
    assert window.mean == 0.5 == window_mean(-400, 800, 200.0)
    assert "no foreground" in rule


def test_bone_and_soft_tissue_make_two_windows(make):
    bone, gland = make.organ(hu=(0, 600, 1700)), make.organ(hu=(-100, 20, 100))
    (wide, narrow), rule = windows(make.fingerprint(make.case(Bone=bone, Gland=gland)))
    assert (wide.low_hu, wide.high_hu) == (-100 - 450, 1700 + 450)
    assert (narrow.low_hu, narrow.high_hu) == (-100 - 50, 100 + 50)
    assert "narrow" in rule


def test_soft_tissue_alone_needs_one_window(make):
    chosen, rule = windows(make.fingerprint(make.case(Gland=make.organ(hu=(-100, 20, 100)))))
    assert len(chosen) == 1 and "narrow" not in rule


def test_bone_alone_needs_one_window(make):
    assert len(windows(make.fingerprint(make.case(Bone=make.organ(hu=(0, 600, 1700)))))[0]) == 1


def test_a_given_spacing_is_taken(make):
    plan = coarse_plan(make.pddca(), make.cpu, spacing_mm=(3, 2, 2))
    assert plan.spacing_mm == (3.0, 2.0, 2.0) and "--overwrite_target_spacing" in plan.rules["spacing_mm"]


def test_views_see_the_coarse_volume_across_their_axes(make):
    plan = coarse_plan(make.pddca(), make.cpu)
    assert [(m.name, m.axis) for m in plan.members] == [("2d_top", 0), ("2d_front", 1), ("2d_side", 2)]
    for m in plan.members:
        plane = tuple(plan.shape[a] for a in IN_PLANE[m.axis])
        assert all(n % k == 0 for n, k in zip(plane, divisors(m.network.strides, 2)))
        assert (m.shape, m.spacing_mm, m.volumes) == (plan.shape, plan.spacing_mm, "coarse")
        assert m.network.in_channels == len(m.windows) * (2 * m.context_slices + 1) + m.position_channels
        assert m.network.out_channels == 10
        assert m.network.features[0] == coarse.BASE_FEATURES[False]


def test_the_paper_volume_is_about_what_an_accelerator_may_hold():
    assert LARGEST_VOLUME[True] == pytest.approx(280**3, rel=0.1)


def test_the_batch_follows_the_budget(make):
    from c2f_nnunet.planning.budget import Budget

    ample, scarce = (coarse_plan(make.pddca(), Budget(gb, False, "")).members[0] for gb in (64.0, 0.01))
    assert (ample.training.batch_size, scarce.training.batch_size) == (16, 4)
    assert "over the budget" in scarce.rules["training.batch_size"]
