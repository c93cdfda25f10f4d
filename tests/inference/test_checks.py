"""The checks: each by hand, all of a small scan, and the order in which they are shown."""
from dataclasses import replace

import numpy as np
import pytest

from c2f_nnunet.geometry import Box, Geometry
from c2f_nnunet.inference import checks as module
from c2f_nnunet.inference.agreement import Evidence
from c2f_nnunet.inference.cascade import TAKEN_AS_ABSENT, OrganReport, Segmentation
from c2f_nnunet.inference.checks import Check, Checked, as_rows, check_agreement, check_case, ordered, scene, touched
from c2f_nnunet.inference.expectation import Expectation
from c2f_nnunet.inference.limits import OrganLimits
from c2f_nnunet.inference.locate import COINCIDE, MISSED, OUTSIDE, SWAPPED
from c2f_nnunet.inference.shapes import Shape


@pytest.mark.parametrize("volume, how, flags, grown, passed, sentence", [
    (3.14, "threshold 0.5", (), False, True, "found, 3.1 ml"),
    (3.14, "coarse", (), True, True, "found, 3.1 ml; box grown once"),
    (3.14, "threshold 0.25", (), False, False, "found at threshold 0.25"),
    (3.14, "prior", (MISSED,), True, False, "missed by the coarse stage; found at prior; box grown once"),
    (0.0, "threshold 0.5", (), False, False, "empty"),
    (0.0, "prior", (MISSED, TAKEN_AS_ABSENT), False, False, f"empty; {MISSED}; {TAKEN_AS_ABSENT}; looked for at prior"),
    (0.0, "absent", (OUTSIDE,), False, False, "empty; outside the scan"),
    (3.14, "threshold 0.5", (SWAPPED,), False, True, "found, 3.1 ml"),  # what check_sides asks
    (3.14, "threshold 0.5", ("no fine network",), False, False, "no fine network"),
])  # fmt: skip
def test_found(volume, how, flags, grown, passed, sentence):
    assert module.check_found(volume, how, flags, grown, 0.5) == Check("found", volume, (None, None), passed, sentence)


@pytest.mark.parametrize("how, least, sentence", [
    ("threshold 0.25", 0.25, "found, 3.1 ml"),  # as is usual for this organ
    ("threshold 0.1", 0.25, "found at threshold 0.1"),
    ("threshold 0.1", 0.0, "found, 3.1 ml"),
    ("prior", 0.0, "found at prior"),  # worth a look however often it happens
])
def test_found_at_a_threshold_that_is_usual(how, least, sentence):
    found = module.check_found(3.14, how, (), False, least)
    assert (found.passed, found.sentence) == (sentence == "found, 3.1 ml", sentence)


@pytest.mark.parametrize("check, value, passed, sentence", [
    (module.check_probability(0.8, 0.7), 0.8, True, "mean probability 0.800, to be expected are 0.700 or more"),
    (module.check_probability(0.6, 0.7), 0.6, False, "mean probability 0.600, to be expected are 0.700 or more"),
    (module.check_volume(5.0, (4.0, 6.0)), 5.0, True, "5.0 ml, to be expected are 4.0 to 6.0 ml"),
    (module.check_volume(0.03, (0.042, 0.3)), 0.03, False, "0.030 ml, to be expected are 0.042 to 0.300 ml"),
    (module.check_volume(7.0, (4.0, 6.0)), 7.0, False, "7.0 ml, to be expected are 4.0 to 6.0 ml"),
    (module.check_volume(3.0, (4.0, 6.0)), 3.0, False, "3.0 ml, to be expected are 4.0 to 6.0 ml"),
    (module.check_pieces(1, 1.0, 0.99), 1.0, True, "in one piece"),
    (module.check_pieces(2, 0.995, 0.99), 0.995, True, "in 2 pieces, the largest with 99.5 %"),
    (module.check_pieces(3, 0.6, 0.9), 0.6, False, "in 3 pieces, the largest with 60.0 %"),
    (module.check_ratio(1.2, "A_R", (0.5, 2.0)), 1.2, True, "1.20 times the size of A_R, to be expected are 0.50 to 2.00"),
    (module.check_ratio(2.5, "A_R", (0.5, 2.0)), 2.5, False, "2.50 times the size of A_R, to be expected are 0.50 to 2.00"),
    (module.check_sides(60.0, ()), 60.0, True, "left and right lie on their sides"),
    (module.check_sides(-1.0, ()), -1.0, False, "the left organ lies to the right of the right one"),
    (module.check_sides(60.0, (COINCIDE, MISSED)), 60.0, False, "left and right coincide"),
    (module.check_sides(None, (COINCIDE, MISSED)), None, False, "left and right coincide"),
])  # fmt: skip
def test_a_value_beside_its_limit(check, value, passed, sentence):
    assert (check.value, check.passed, check.sentence) == (value, passed, sentence)


def test_without_a_limit_there_is_no_check():
    assert module.check_probability(0.1, None) is module.check_volume(1.0, None) is module.check_ratio(1.0, "A_R", None) is None
    assert module.check_pieces(9, 0.1, None) is None
    assert module.check_place("place", (0, 0, 0), None) is module.check_place("place", None, None) is None


@pytest.mark.parametrize("at, out_mm, sentence", [
    ((0, 0, 0), 0.0, "place as in training"),
    ((5, -5, 10), 0.0, "place as in training"),  # on the limits themselves
    ((8, 0, 0), 3.0, "place: 3 mm higher than to be expected"),
    ((-9, 0, 0), 4.0, "place: 4 mm lower than to be expected"),
    ((8, -12, 0), 7.0, "place: 7 mm farther to the front than to be expected"),  # the axis on which it is farthest out
    ((5.25, 0, 0), 0.25, "place: 0.2 mm higher than to be expected"),
    ((0, 0, 30), 20.0, "place: 20 mm farther to the left than to be expected"),
])
def test_place(at, out_mm, sentence):
    limits = ((-5, 5), (-5, 5), (-10, 10))
    assert module.check_place("place", at, limits) == Check("place", out_mm, (None, 0.0), out_mm == 0, sentence)


def test_edge_of_the_scan():
    """A cord is cut by the lower edge in most scans; by the upper one in none."""
    seldom = ((0.9, 0.0), (0.0, 0.0), (0.4, 0.5))
    cut = module.check_edge(((True, True), (False, False), (True, True)), seldom)
    assert (cut.value, cut.passed, cut.sentence) == (2.0, False, "cut by the scan's upper and right edge")
    assert module.check_edge(((True, False), (False, False), (False, True)), seldom).passed
    shape = Shape(1, 1, 1.0, (0, 0, 0), Box((0, 2, 3), (4, 5, 9)))
    assert touched(shape, (10, 5, 10)) == ((True, False), (False, True), (False, False))


@pytest.mark.parametrize("scan, shift, least, value, passed, sentence", [
    ((-100, 0), 0, 1.0, 1.0, True, "the scan holds its usual place"),
    ((-35, 0), 0, 1.0, 0.75, False, "the scan ends 5 mm above its lower end"),
    ((-35, 0), 0, 0.7, 0.75, True, "the scan ends 5 mm above its lower end"),  # as in training: the cord
    ((-100, -30), 0, 1.0, 0.5, False, "the scan begins 10 mm below its upper end"),
    ((-35, -30), 0, 1.0, 0.25, False, "the scan ends 5 mm above its lower end and begins 10 mm below its upper end"),
    ((-35, 0), 5, 1.0, 1.0, True, "the scan holds its usual place"),  # the other organs lie 5 mm higher than usual
])
def test_range_of_the_scan(scan, shift, least, value, passed, sentence):
    assert module.check_scan((-40.0, -20.0), scan, shift, least) == Check("range of the scan", value, (least, None), passed, sentence)


# A whole scan: 10 slices of 2 mm, 1 mm in the plane, the body's anchor at the middle of the topmost slice's upper face

ORGANS, PAIRS = ("A_L", "A_R", "B"), (("A_L", "A_R"),)
IMAGE = Geometry((10, 20, 30), (2.0, 1.0, 1.0), (-14.5, -9.5, 100.0))
ANCHOR_MM = np.array([119.0, 0.0, 0.0])  # z, y, x
ANYWHERE = ((-99.0, 99.0),) * 3


def limits(organ: str, centre, **changes) -> OrganLimits:
    near, never = ((-3.0, 3.0),) * 3, ((0.0, 0.0),) * 3
    usual = OrganLimits(organ, 8, (0.001, 1.0), centre, ANYWHERE, near, None, (-16.0, -4.0), 1.0, never, 0.7, 0.99)
    return replace(usual, **changes)


LIMITS = {
    "A_L": limits("A_L", (-9, 0, 10), ratio=(0.5, 2.0)), "A_R": limits("A_R", (-9, 0, -10), ratio=(0.5, 2.0)), "B": limits("B", (-9, 0, 0)),
}


def channels() -> np.ndarray:
    """Each organ has 4 × 4 × 4 voxels, in slices 3 to 6: 14 to 6 mm below the anchor, all 1 mm lower than usual."""
    out = np.zeros(IMAGE.shape, np.uint8)
    out[3:7, 8:12, 23:27], out[3:7, 8:12, 3:7], out[3:7, 8:12, 13:17] = 1, 2, 3
    return out


def checked(array: np.ndarray, confidence=0.8, known=LIMITS, flags=()) -> dict[str, Checked]:
    volumes = np.bincount(array.ravel(), minlength=4)[1:] * IMAGE.voxel_mm3 / 1000
    reports = [OrganReport(o, "threshold 0.5", confidence, float(v), False, flags, Evidence(confidence)) for o, v in zip(ORGANS, volumes)]
    scan = scene(array, ORGANS, IMAGE, ANCHOR_MM)
    return {c.organ: c for c in check_case("hn_1", Segmentation(array, tuple(reports)), scan, known, PAIRS, 0.5)}


def failed(found: dict[str, Checked]) -> dict[str, list[str]]:
    return {organ: [f.name for f in c.failed] for organ, c in found.items() if c.needs_a_look}


def test_the_scene_is_measured_from_the_anchor():
    scan = scene(channels(), ORGANS, IMAGE, ANCHOR_MM)
    assert scan.scan_mm == (-20.0, 0.0) and list(scan.shapes) == list(ORGANS)
    assert scan.offsets_mm["A_L"] == (-10.0, 0.0, 10.0) and scan.offsets_mm["A_R"] == (-10.0, 0.0, -10.0)


def test_an_ordinary_scan_needs_no_look():
    found = checked(channels())
    assert failed(found) == {} and list(found) == list(ORGANS)
    names = ["found", "range of the scan", "probability", "volume", "place in the body", "place among the organs", "pieces"]
    names.append("edge of the scan")
    assert [c.name for c in found["B"].checks] == names
    assert [c.name for c in found["A_L"].checks] == [*names, "sides", "size beside its partner"]
    assert found["B"].confidence == 0.8 and found["B"].evidence.inside == 0.8 and found["B"].case == "hn_1"


def test_what_is_wrong_is_found():
    swapped = channels()
    swapped[channels() == 1], swapped[channels() == 2] = 2, 1
    assert failed(checked(swapped)) == dict.fromkeys(("A_L", "A_R"), ["place among the organs", "sides"])
    half = channels()
    half[5:7, :, :15][half[5:7, :, :15] == 2] = 0
    half[3:5, 8:11][half[3:5, 8:11] == 2] = 0  # 8 voxels of 64 are left
    assert "size beside its partner" in failed(checked(half))["A_L"] and "size beside its partner" in failed(checked(half))["A_R"]
    loose = channels()
    loose[9, 19, 13:15] = 3  # in the last slice and row, away from the rest
    assert failed(checked(loose)) == {"B": ["pieces", "edge of the scan"]}
    moved = channels()
    moved[moved == 3] = 0
    moved[3:7, 13:17, 13:17] = 3
    assert failed(checked(moved)) == {"B": ["place among the organs"]}  # 5 mm to the back of where the others put it
    assert failed(checked(channels(), confidence=0.6)) == {o: ["probability"] for o in ORGANS}


def test_parts_of_the_ensemble_that_do_not_overlap_need_a_look():
    assert check_agreement(Evidence(0.9)) is None
    fine = check_agreement(Evidence(0.9, views=0.4, stages=0.01))
    assert fine == Check("agreement", 0.01, (0.0, None), True, "views, folds and stages agree at a DSC of 0.01 or more")
    apart = check_agreement(Evidence(0.9, views=0.0, folds=0.0, stages=0.5))
    assert not apart.passed and apart.sentence == "the views' masks do not overlap; the folds' masks do not overlap"
    assert check_agreement(Evidence(0.9, views=0.5, stages=0.0)).sentence == "the coarse and the fine masks do not overlap"
    reports = [OrganReport("B", "threshold 0.5", 0.0, 0.06, False, (), Evidence(0.8, stages=0.0))]
    (found,) = check_case("hn_1", Segmentation(channels(), tuple(reports)), scene(channels(), ORGANS, IMAGE, ANCHOR_MM), {}, PAIRS, 0.5)
    assert found.needs_a_look and [c.name for c in found.failed] == ["agreement"]  # without any limits
    missed = OrganReport("B", "prior", 0.0, 0.06, False, (MISSED,), Evidence(0.8, stages=0.0))  # of course they do not overlap: told once
    (found,) = check_case("hn_1", Segmentation(channels(), (missed,)), scene(channels(), ORGANS, IMAGE, ANCHOR_MM), {}, PAIRS, 0.5)
    assert [c.sentence for c in found.failed] == [f"{MISSED}; found at prior"]


def test_an_empty_organ_is_asked_for_its_place_only():
    gone = channels()
    gone[gone == 2] = 0
    found = checked(gone)
    assert failed(found) == {"A_R": ["found"]} and [c.name for c in found["A_R"].checks] == ["found", "range of the scan"]
    assert "sides" not in [c.name for c in found["A_L"].checks]


def test_sides_that_coincide_are_told_though_the_partner_came_out_empty():
    gone = channels()
    gone[gone == 2] = 0  # all its voxels went to the other side's organ, which may be either
    assert failed(checked(gone, flags=(COINCIDE,)))["A_L"] == ["sides"]


def test_a_model_without_limits_still_asks_what_needs_none():
    found = checked(channels(), known={})
    assert [c.name for c in found["B"].checks] == ["found"] and [c.name for c in found["A_L"].checks] == ["found", "sides"]
    assert failed(checked(channels(), known={}, flags=(SWAPPED,))) == {"A_L": ["sides"], "A_R": ["sides"]}


def record(case: str, organ: str, confidence: float, *sentences: str) -> Checked:
    answers = tuple(Check("x", 0.0, (None, None), False, s) for s in sentences)
    return Checked(case, organ, confidence, Evidence(confidence), bool(answers), (*answers, Check("y", 0.0, (None, None), True, "fine")))


def test_the_expected_dsc_comes_of_volume_and_probability():
    known = {o: replace(k, expected=Expectation((0.8, 0.1), (0.0, 1.0), (0.0, 1.0), (0.5, 0.0))) for o, k in LIMITS.items()}
    found, gone = checked(channels(), known=known), channels()
    volume_ml = {o: next(c.value for c in found[o].checks if c.name == "found") for o in found}
    assert all(found[o].expected_dsc == pytest.approx(0.8 + 0.05 * np.clip(np.log(v), -3, 3)) for o, v in volume_ml.items())
    gone[gone == 2] = 0
    assert checked(gone, known=known)["A_R"].expected_dsc is None and checked(channels())["A_R"].expected_dsc is None


def test_an_organ_that_is_there_without_any_agreement_is_the_least_sure_and_an_empty_one_is_not():
    split = replace(record("b", "A", 0.0), evidence=Evidence(0.9, views=0.0))
    assert [c.case for c in ordered([record("a", "A", 0.5), split, record("c", "A", 0.0)])] == ["b", "a", "c"]


def test_cases_that_need_a_look_come_first():
    given = [record("a", "A", 0.9), record("a", "B", 0.8), record("b", "A", 0.7), record("b", "B", 0.9, "cut"),
             record("c", "A", 0.9, "far", "small"), record("d", "A", 0.5)]
    assert [(c.case, c.organ) for c in ordered(given)] == [("c", "A"), ("b", "B"), ("b", "A"), ("d", "A"), ("a", "A"), ("a", "B")]
    rows = as_rows(given)
    alone = dict.fromkeys(("expected_dsc", "views", "folds", "stages"))
    assert rows[0] == {"case": "c", "organ": "A", "confidence": 0.9, **alone, "needs_a_look": True, "note": "far; small"}
    assert rows[2] == {"case": "b", "organ": "A", "confidence": 0.7, **alone, "needs_a_look": False, "note": ""} and ordered([]) == []
    assert [c.case for c in ordered([record("a", "A", 0.9), record("b", "A", 0.0), record("c", "A", 0.8)])] == ["c", "a", "b"]  # b has none
