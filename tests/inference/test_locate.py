"""Locating: every step of the ladder, the prior and its shift, what is absent, the sides, and growing crops."""
import numpy as np
import pytest

from c2f_nnunet.errors import PlanError
from c2f_nnunet.geometry import Box, Geometry
from c2f_nnunet.inference import locate as module
from c2f_nnunet.inference.locate import Located, accept_prior, grown, iou, is_whole, locate, outside_faces, touches, with_side_flags
from c2f_nnunet.planning.plan import FinePlan, OrganPrior

# 20 × 20 × 20 voxels of 2 × 2 × 4 mm (z, y, x), 16 mm³ each; voxel (0, 0, 0) at LPS (10, 20, 30)
GRID = Geometry((20, 20, 20), (2.0, 2.0, 4.0), (10.0, 20.0, 30.0))
ANCHOR = (19.5, 9.5, 9.5)  # the body fills the grid: the middle of its superior face


def prior(organ, centre_mm=(-21.0, 1.0, 2.0), extent_mm=(8.0, 8.0, 16.0), volume_mm3=(300.0, 1024.0, 2000.0)):
    """Centre as in the index frame (9, 10, 10), extent 4 × 4 × 4 voxels, median volume 64 voxels."""
    return OrganPrior(organ, centre_mm, (1.0, 1.0, 1.0), extent_mm, volume_mm3)


def plan(*priors):
    return FinePlan((0.5, 0.25, 0.1), 0.25, priors, (), {})  # a component needs 0.25 · 64 = 16 voxels


def volume(*blobs):
    """Zeros with boxes of one probability each: (start, stop, p)."""
    out = np.zeros(GRID.shape, np.float32)
    for start, stop, p in blobs:
        out[Box(start, stop).slices] = p
    return out


def test_the_heaviest_component_wins_not_the_largest():
    # 6·4·4 = 96 voxels at 0.55 weigh 52.8; 4³ = 64 at 0.9 weigh 57.6
    smear, organ = ((0, 0, 0), (6, 4, 4), 0.55), ((10, 12, 8), (14, 16, 12), 0.9)
    (stem,) = locate({"Stem": volume(smear, organ)}, GRID, plan(prior("Stem")), ANCHOR).values()
    assert stem.box == Box((10, 12, 8), (14, 16, 12)) and stem.how == "threshold 0.5" and stem.flags == ()
    assert stem.confidence == pytest.approx(0.9)
    assert stem.extent_mm == (8, 8, 16)
    # the box's middle is index (11.5, 13.5, 9.5): x = 10 + 4·9.5, y = 20 + 2·13.5, z = 30 + 2·11.5
    assert stem.centre_world_mm == (48, 47, 53)


@pytest.mark.parametrize("probability, how, threshold", [
    (0.60, "threshold 0.5", 0.5),
    (0.40, "threshold 0.25", 0.25),
    (0.20, "threshold 0.1", 0.1),
    (0.08, "prior", 0.0),
])
def test_every_step_of_the_ladder(probability, how, threshold):
    found = locate({"Stem": volume(((2, 2, 2), (6, 6, 6), probability))}, GRID, plan(prior("Stem")), ANCHOR)["Stem"]
    assert found.how == how and module.threshold_of(how) == threshold and found.box.shape == (4, 4, 4)
    if how == "prior":
        assert found.box == Box((8, 9, 9), (12, 13, 13))  # centre (9, 10, 10), to the next half voxel
        assert found.flags == ("missed by the coarse stage",)
    else:
        assert found.box == Box((2, 2, 2), (6, 6, 6)) and found.confidence == pytest.approx(probability) and not found.flags


def test_a_component_too_small_at_one_step_is_looked_for_at_the_next():
    # a core of 2·2·3 = 12 voxels < 16 at 0.5; with its rim 4³ = 64 at 0.25
    found = locate({"Stem": volume(((2, 2, 2), (6, 6, 6), 0.3), ((3, 3, 3), (5, 5, 6), 0.9))}, GRID, plan(prior("Stem")), ANCHOR)["Stem"]
    assert found.how == "threshold 0.25" and found.box == Box((2, 2, 2), (6, 6, 6))
    assert found.confidence == pytest.approx((12 * 0.9 + 52 * 0.3) / 64)


def test_a_lower_threshold_does_not_find_an_organ_in_another_one():
    # the left gland's faint trace lies mostly in the right one, which won that place; its own place holds 0.2
    right, own = ((2, 2, 2), (6, 6, 6)), ((2, 2, 14), (6, 6, 18))
    found = locate({"Gland_R": volume((*right, 0.55)), "Gland_L": volume((*right, 0.4), (*own, 0.2))}, GRID,
                   plan(prior("Gland_L"), prior("Gland_R")), ANCHOR)
    assert found["Gland_R"].box == Box(*right)
    assert found["Gland_L"].box == Box(*own) and found["Gland_L"].how == "threshold 0.1"
    assert list(found) == ["Gland_R", "Gland_L"]


@pytest.mark.parametrize("size, p, start, whole", [
    ((4, 4, 2), 0.9, (6, 6, 6), True),  # 32 voxels of 16 mm³ are 512 mm³; half of the prior's 800 are 400
    ((4, 2, 2), 0.9, (6, 6, 6), False),  # 256 mm³: a fragment
    ((4, 2, 2), 0.9, (6, 6, 0), True),  # at the scan's border, which may cut it
    ((4, 4, 4), 0.4, (6, 6, 6), False),  # large, but faint
])
def test_a_whole_organ_is_told_from_a_fragment(size, p, start, whole):
    stop = tuple(a + n for a, n in zip(start, size))
    planned = plan(prior("Stem", volume_mm3=(800.0, 1024.0, 2000.0)))
    place = locate({"Stem": volume((start, stop, p))}, GRID, planned, ANCHOR)["Stem"]
    assert place.volume_mm3 == np.prod(size) * GRID.voxel_mm3 == np.prod(size) * 16
    assert is_whole(place, planned.priors[0], planned, GRID, GRID) == whole


@pytest.mark.parametrize("spare_mm", [0.0, 0.5, 0.99])
def test_a_fragment_at_the_scans_end_is_not_taken_for_a_whole_absence(spare_mm):
    """Coarse voxels need not end with the scan: the last one whose centre lies within may end up to half of one short of it."""
    scan = Geometry((40, 40, 40), (1.0, 1.0, 2.0), (9.0, 19.5, 29.5 - spare_mm))  # begins so much below the coarse grid, x likewise there
    planned = plan(prior("Stem", volume_mm3=(800.0, 1024.0, 2000.0)))
    place = locate({"Stem": volume(((0, 6, 6), (4, 8, 8), 0.9))}, GRID, planned, ANCHOR)["Stem"]
    assert place.volume_mm3 == 256 and is_whole(place, planned.priors[0], planned, GRID, scan)
    apart = locate({"Stem": volume(((2, 6, 6), (6, 8, 8), 0.9))}, GRID, planned, ANCHOR)["Stem"]
    assert not is_whole(apart, planned.priors[0], planned, GRID, scan)


def test_touching_organs_are_apart():
    maps = {"A": volume(((2, 2, 2), (6, 6, 6), 0.9)), "B": volume(((6, 2, 2), (10, 6, 6), 0.8))}
    found = locate(maps, GRID, plan(prior("A"), prior("B")), ANCHOR)
    assert found["A"].box == Box((2, 2, 2), (6, 6, 6)) and found["B"].box == Box((6, 2, 2), (10, 6, 6))


def test_a_missed_organ_is_sought_where_the_found_ones_say():
    # A, B and C lie 3 voxels higher (6 mm) than their prior (centre 9, 10, 10), C also far off in x: the median ignores it
    def block(z, x=10):
        return volume(((z - 2, 8, x - 2), (z + 3, 13, x + 3), 0.9))  # 5³ around (z, 10, x)

    priors = [prior("A", (-21, 1, 2)), prior("B", (-13, 1, 2)), prior("C", (-31, 1, 2)), prior("D", (-21, 1, 22))]
    found = locate({"A": block(12), "B": block(16), "C": block(7, 3), "D": volume()}, GRID, plan(*priors), ANCHOR)
    assert [found[o].how for o in "ABCD"] == ["threshold 0.5"] * 3 + ["prior"]
    # D's own prior is index (9, 10, 15); shifted by +3 in z it is (12, 10, 15), box of 4: 10.5 … 13.5 rounds up
    assert found["D"].box == Box((11, 9, 14), (15, 13, 18))
    assert found["D"].flags == ("missed by the coarse stage", "no evidence in the coarse stage") and found["D"].confidence == 0


def test_an_organ_found_at_a_lower_threshold_gives_its_shift_too():
    # A's 5³ block lies around (12, 10, 10), 3 voxels above its prior: D (prior index 9, 10, 15) is sought at (12, 10, 15)
    faint = volume(((10, 8, 8), (15, 13, 13), 0.3))
    found = locate({"A": faint, "D": volume()}, GRID, plan(prior("A"), prior("D", (-21, 1, 22))), ANCHOR)
    assert found["A"].how == "threshold 0.25" and found["D"].box == Box((11, 9, 14), (15, 13, 18))


def test_an_organ_outside_the_scan_is_absent():
    # 2 mm below the lowest voxel's centre is 1 mm below the scan
    below = prior("Larynx", centre_mm=(-41.0, 1.0, 2.0))  # index -1
    just_in = prior("Cord", centre_mm=(-39.9, 1.0, 2.0))  # index -0.45
    found = locate({"Larynx": volume(), "Cord": volume()}, GRID, plan(below, just_in), ANCHOR)
    assert found["Larynx"].how == "absent" and found["Larynx"].flags == ("outside the scan",) and found["Larynx"].confidence == 0
    assert found["Cord"].how == "prior"


def test_an_organ_without_prior_is_a_stated_error():
    with pytest.raises(PlanError, match="no prior for Stem; run c2f_plan_and_preprocess"):
        locate({"Stem": volume()}, GRID, plan(prior("Cord")), ANCHOR)


@pytest.mark.parametrize("size, p, accepted", [
    (4, 0.9, True),   # 64 voxels
    (2, 0.9, False),  # 8 voxels are less than a quarter of the median 64
    (4, 0.6, False),  # unsure
    (7, 0.9, False),  # 343 voxels are more than twice the 99th percentile 125
])
def test_a_prior_s_result_must_be_sure_and_of_a_likely_size(size, p, accepted):
    fine = volume(((1, 1, 1), (1 + size,) * 3, p))
    assert accept_prior(fine, 16.0, prior("Stem"), 0.25) is accepted


def test_specks_do_not_add_up_to_an_organ():
    fine = np.zeros((8, 8, 8), np.float32)
    fine[::2, ::2, ::2] = 0.9  # 64 single voxels
    assert not accept_prior(fine, 16.0, prior("Stem"), 0.25)
    assert not accept_prior(np.zeros((4, 4, 4), np.float32), 16.0, prior("Stem"), 0.25)


def at(organ, x, how="threshold 0.5"):
    return Located(organ, Box((0, 0, x), (4, 4, x + 4)), (float(x), 0.0, 0.0), (4.0, 4.0, 4.0), 0.9, how)


@pytest.mark.parametrize("left_x, right_x, flags", [
    (10, 2, ()),                                  # LPS: the left one at the larger x
    (2, 10, ("left and right swapped",)),
    (5, 4, ("left and right coincide",)),         # common 3 of 5 in x: IoU 0.6
    (4, 4, ("left and right coincide",)),
    (6, 4, ()),                                   # common 2 of 6
])
def test_sides(left_x, right_x, flags):
    found = with_side_flags({"Parotid_L": at("Parotid_L", left_x), "Parotid_R": at("Parotid_R", right_x), "Stem": at("Stem", 4)})
    assert found["Parotid_L"].flags == found["Parotid_R"].flags == flags
    assert found["Stem"].flags == ()


def test_an_absent_side_is_not_compared():
    found = with_side_flags({"Parotid_L": at("Parotid_L", 2, "absent"), "Parotid_R": at("Parotid_R", 10)})
    assert not found["Parotid_L"].flags and not found["Parotid_R"].flags


def test_locate_flags_sides():
    swapped = {"Eye_L": volume(((2, 2, 2), (6, 6, 6), 0.9)), "Eye_R": volume(((2, 2, 14), (6, 6, 18), 0.9))}
    found = locate(swapped, GRID, plan(prior("Eye_L"), prior("Eye_R")), ANCHOR)
    assert found["Eye_L"].flags == found["Eye_R"].flags == ("left and right swapped",)


def test_iou_by_hand():
    assert iou(Box((0, 0, 0), (2, 2, 2)), Box((0, 0, 1), (2, 2, 3))) == pytest.approx(4 / 12)
    assert iou(Box((0, 0, 0), (2, 2, 2)), Box((2, 2, 2), (4, 4, 4))) == 0


def test_touched_faces():
    mask = np.zeros((4, 4, 4), bool)
    mask[1:3, 1:3, 1:3] = True
    assert touches(mask) == ((False, False),) * 3
    mask[0, 1, 1] = mask[2, 2, 3] = True  # inferior face, left face
    assert touches(mask) == ((True, False), (False, False), (False, True))
    assert touches(mask, ((True, False), (False, False), (False, False))) == ((False, False), (False, False), (False, True))


def test_faces_outside_the_image():
    # a crop of 1 mm voxels over the image's first 8 mm in z, inside in y, over its last 24 mm and 4 more in x
    x0 = 10 - 2 + 80 - 24 + 0.5  # the image ends at x = 10 - 2 + 20·4; 24 mm before it, centre of a 1 mm voxel
    crop = Geometry((8, 10, 28), (1.0, 1.0, 1.0), (x0, 20 - 1 + 5 + 0.5, 30 - 1 + 0.5))
    assert outside_faces(crop, GRID) == ((True, False), (False, False), (False, True))


def test_a_touched_face_moves_out_by_a_quarter_and_the_others_stay():
    crop = Geometry((16, 32, 24), (1.0, 1.0, 2.0), (100.0, 200.0, 300.0))
    nothing = ((False, False),) * 3
    assert grown(crop, nothing) == crop
    # z low: 16 + 4 → 24 (multiple of 8), all 8 below; y both: 32 + 16 = 48, 8 and 8; x high: 24 + 6 → 32, beyond the end
    larger = grown(crop, ((True, False), (True, True), (False, True)))
    assert larger.shape == (24, 48, 32) and larger.spacing_mm == crop.spacing_mm
    assert larger.origin_mm == (100, 192, 292)  # LPS: x stays, y 8 mm and z 8 mm lower
    # an axis of its own multiple: 16 + 4 = 20 is a multiple of 4
    assert grown(crop, ((True, False), (False, False), (False, False)), multiple=(4, 16, 16)).shape == (20, 32, 24)


def test_components_of_all_labels_in_one_pass():
    labels = np.zeros((3, 3, 6), np.uint16)
    labels[0, 0, :2], labels[0, 0, 2], labels[2, 2, 5] = 2, 1, 2  # "2 2 1 . . ." and one more 2 far away
    parts = module._components(labels, labels * np.float32(0.25))
    assert sorted((p.channel, p.voxels, p.mass) for p in parts) == [(1, 1, 0.25), (2, 1, 0.5), (2, 2, 1.0)]
