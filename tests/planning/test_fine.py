import numpy as np
import pytest

from c2f_nnunet.errors import PlanError
from c2f_nnunet.planning import fine
from c2f_nnunet.planning.fine import crop_grid, fine_groups, fine_member, fine_plan, fine_spacing_mm, jitter_mm, prior, stats_of
from c2f_nnunet.planning.topology import divisors


def test_a_pair_shares_a_network(make):
    o = make.organ()
    data = make.fingerprint(make.case(Gland_R=o, Stem=o, Gland_L=o, Nerve_L=o))
    assert fine_groups(data) == [("Gland_L", "Gland_R"), ("Stem",), ("Nerve_L",)]  # Nerve_L has no partner
    assert [m.name for m in fine_plan(data, (2, 2, 2), make.cpu).members] == ["3d_Gland", "3d_Stem", "3d_Nerve_L"]


def test_statistics_are_of_both_sides_and_only_where_they_are(make):
    small, large = make.organ(volume_mm3=1.0), make.organ(volume_mm3=9.0)
    data = make.fingerprint(make.case(G_L=small, G_R=large), make.case(G_L=small), organs=("G_L", "G_R", "Stem"))
    assert [s.volume_mm3 for s in stats_of(data, ("G_L", "G_R"))] == [1.0, 9.0, 1.0]
    with pytest.raises(PlanError, match="Dataset001_Test: Stem is in no training case; remove it"):
        stats_of(data, ("Stem",))


COARSE = (4.0, 4.0, 4.0)


def test_spacing_follows_the_organs_size(make):
    side = 3 * fine.VOXELS_ACROSS  # a cube of this side is as many voxels of 3 mm across as wanted
    spacing, _ = fine_spacing_mm([make.organ(volume_mm3=side**3)], (1.0, 1.0, 1.0), COARSE, (60, 60, 60), 10**9)
    assert spacing == pytest.approx((3, 3, 3))


def test_spacing_is_never_under_the_datas_own(make):
    spacing, rule = fine_spacing_mm([make.organ(volume_mm3=300)], (2.5, 1.0, 0.9), COARSE, (50, 50, 50), 10**9)
    assert spacing == (2.5, 1.0, 0.9)
    assert "not under the data's own" in rule


def test_spacing_is_not_over_the_coarse_volumes(make):
    """Stage 2 refines: a large organ is not seen more coarsely there than in stage 1."""
    spacing, rule = fine_spacing_mm([make.organ(volume_mm3=60.0**3)], (1.0, 1.0, 1.0), (3.0, 1.5, 7.0), (60, 60, 60), 10**9)
    assert spacing == (3.0, 1.5, 5.0)
    assert "nor over the coarse one" in rule


def test_a_crop_that_would_be_too_large_is_coarsened(make):
    spacing, _ = fine_spacing_mm([make.organ(volume_mm3=1000)], (1.0, 1.0, 1.0), COARSE, (100, 100, 100), 64**3)
    assert spacing[0] == spacing[1] == spacing[2] > 1.0
    assert np.prod(crop_grid((100, 100, 100), spacing)[1]) <= 64**3


def test_large_crops_have_fewer_a_step(make):
    """Without an accelerator a step has no more voxels than 64³, so that there are enough steps, but never fewer than two crops."""
    def voxels_and_batch(z_mm: float, side_mm: float) -> tuple[int, int]:
        data = make.fingerprint(*[make.case(f"c{i}", Stem=make.organ(volume_mm3=36.0**3, extent_mm=(z_mm, side_mm, side_mm))) for i in range(3)])
        member = fine_member(("Stem",), data, (2.0, 2.0, 2.0), 0.5, make.cpu)
        assert member.training.batch_size == 4 or "large crops" in member.rules["training.batch_size"]
        return int(np.prod(member.shape)), member.training.batch_size

    small, middle, large, huge = map(voxels_and_batch, (30.0, 56.0, 64.0, 300.0), (30.0, 36.0, 64.0, 300.0))
    assert small[1] == 4 and middle[1] == 3 and large[1] == huge[1] == 2
    assert 4 * small[0] <= 64**3 < 4 * middle[0] and 3 * middle[0] <= 64**3 < 3 * large[0] and huge[0] <= 2 * 64**3


def test_a_crops_grid_holds_its_extent_and_can_be_pooled():
    steps, shape = crop_grid((61, 64, 65), (1.0, 1.0, 1.0))
    assert (steps, shape) == (((2, 2, 2),) * 3, (64, 64, 72))
    assert crop_grid((30, 60, 60), (3.0, 1.0, 1.0)) == (((1, 2, 2), (2, 2, 2), (1, 2, 2)), (10, 64, 64))  # z waits, goes, is short


def test_jitter_follows_how_the_organs_extent_varies(make):
    found = [make.organ(extent_mm=(20 + z, 30, 40)) for z in range(0, 101)]  # 5-95 percentile range in z: 90 mm
    assert jitter_mm(found, (3.0, 4.414, 4.414)) == (26.91, 4.41, 4.41)  # 90 / 4 and one coarse voxel; the voxel alone


def test_crop_shape_and_window(make):
    hu = (-100.0, 20.0, 100.0)
    data = make.fingerprint(*[make.case(f"c{i}", Stem=make.organ(extent_mm=(40, 30, 20), hu=hu)) for i in range(3)])
    member = fine_member(("Stem",), data, (3.0, 2.0, 2.0), 0.5, make.gpu)
    assert member.jitter_mm == (3.0, 3.0, 3.0)  # one coarse voxel: the extents do not vary
    around = 2 * (3.0 + fine.CONTEXT_MM)
    extent = np.array([40, 30, 20]) + around
    multiples = np.array(divisors(member.network.strides, 3))
    held = np.multiply(member.shape, member.spacing_mm)
    assert (held >= extent - 1e-6).all() and (held < extent + multiples * member.spacing_mm).all()  # less than a step to spare
    (window,) = member.windows
    assert (window.low_hu, window.high_hu) == (-200, 200) and window.mean == 0.55  # the organ's median 20 in -200…200
    assert (member.network.in_channels, member.network.out_channels, member.network.norm) == (1, 2, "instance")


def test_a_soft_organ_also_sees_the_bone_about_it(make):
    """A single one always; a pair where its voxels are small enough to show it."""
    soft, bone = (-100.0, 20.0, 100.0), (0.0, 600.0, 1700.0)
    hu = {"Stem": soft, "Gland_L": soft, "Gland_R": soft, "Bone": bone}
    data = make.fingerprint(make.case(**{name: make.organ(hu=v) for name, v in hu.items()}))
    own, wide, pair = (-200, 200), (-100 - 450, 1700 + 450), ("Gland_L", "Gland_R")

    def seen(organs, mm):
        member = fine_member(organs, data, (3.0, 2.0, 2.0), 0.5, make.cpu, spacing_mm=(3.0, mm, mm))
        assert member.network.in_channels == len(member.windows)
        assert ("bone" in member.rules["windows"]) == (len(member.windows) == 2)
        return [(w.low_hu, w.high_hu) for w in member.windows]

    assert seen(("Stem",), 2.5) == seen(("Stem",), 2.6) == [own, wide]
    assert seen(pair, 2.5) == [own, wide] and seen(pair, 2.6) == [own]
    assert seen(("Bone",), 2.5) == [(-850, 2550)]


def test_a_given_spacing_keeps_the_extent_in_mm(make):
    one, two = (fine_member(("Mandible",), make.pddca(), (3, 2, 2), 0.5, make.gpu, spacing_mm=mm) for mm in ((1, 1, 1), (2, 2, 2)))
    for a, b in zip(np.multiply(one.shape, one.spacing_mm), np.multiply(two.shape, two.spacing_mm)):
        assert abs(a - b) <= 16  # both hold the same, up to a multiple of 8 voxels


def test_prior(make):
    offsets = [(-100.0 - i, 10.0, float(2 * i)) for i in range(101)]
    cases = [make.case(f"c{i}", Stem=make.organ(offset_mm=o, volume_mm3=1000.0 + i)) for i, o in enumerate(offsets)]
    found = prior("Stem", make.fingerprint(*cases))
    assert found.centre_mm == (-150, 10, 100)
    assert found.spread_mm == (45, 0, 90)  # half of the 5–95 percentile range
    assert found.volume_mm3 == (1001, 1050, 1099)
    assert found.extent_mm == (20, 20, 20)


def test_the_ladder_goes_down(make):
    plan = fine_plan(make.pddca(), (2, 2, 2), make.cpu)
    assert list(plan.thresholds) == sorted(plan.thresholds, reverse=True)
    assert {p.organ for p in plan.priors} == set(make.pddca().labels.organs)
    assert sum(m.minutes_share for m in plan.members) == pytest.approx(0.5, abs=0.01)


def test_organs_that_would_share_a_folder_have_networks_of_their_own(make):
    o = make.organ()
    plan = fine_plan(make.fingerprint(make.case(**{"Eye_L": o, "Eye_R": o, "Eye": o})), (2, 2, 2), make.cpu)
    assert [(m.name, m.organs) for m in plan.members] == [("3d_Eye", ("Eye_L", "Eye_R")), ("3d_Eye_2", ("Eye",))]
    assert [m.volumes for m in plan.members] == ["3d_Eye", "3d_Eye_2"]
