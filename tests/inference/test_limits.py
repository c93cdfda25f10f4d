"""Limits: ranges that few cases widen, places relative to the other organs, the scan's range and edges, held-out results."""
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit

from c2f_nnunet.data.fingerprint import CaseStats, Fingerprint, OrganStats
from c2f_nnunet.geometry import Box
from c2f_nnunet.inference import limits as module
from c2f_nnunet.inference.limits import (
    HeldOut, among_mm, held_share, least_probability, normal_range, organ_limits, others_shift_mm, ratio_range,
)  # fmt: skip
from c2f_nnunet.labels import LabelSet


def organ(volume_mm3=1000.0, offset_mm=(-50.0, 0.0, 0.0), box=Box((5, 4, 4), (8, 6, 6))) -> OrganStats:
    return OrganStats(volume_mm3, (9.0, 2.0, 2.0), 0.1, offset_mm, 3, box, (0.0, 0.0, 0.0))


def case(name: str, organs: dict[str, OrganStats], shape=(20, 10, 10), top=18) -> CaseStats:
    """A scan of 3 mm slices whose body ends below slice `top`."""
    body = Box((0, 0, 0), (top, 10, 10))
    return CaseStats(name, shape, (3.0, 1.0, 1.0), "LPS", body, (54.0, 10.0, 10.0), (0.0, 0.0, 0.0), 0.0, tuple(organs), organs)


def fingerprint(*cases: CaseStats) -> Fingerprint:
    labels = LabelSet(("A_L", "A_R", "B"), (1, 2, 3))
    return Fingerprint("Set", labels, cases, labels.pairs, ())


def test_a_range_is_the_prediction_interval_of_normal_values():
    values = [1.0, 2.0, 3.0]  # mean 2, sd 1
    reach = stats.t.ppf(0.975, 2) * np.sqrt(4 / 3)
    assert normal_range(values, 0.05) == (pytest.approx(2 - reach), pytest.approx(2 + reach))
    assert normal_range([1.0, 2.0], 0.05) is None and normal_range([], 0.05) is None
    assert ratio_range([10.0, 10.0, 10.0], 0.05) == (pytest.approx(10), pytest.approx(10))
    # never narrower than the values: mean ± 0.9 sd alone would be narrower
    assert normal_range([0.0, 0.0, 0.0, 0.0, 0.0, 10.0], 0.5)[1] == 10.0


@pytest.mark.parametrize("n", [5, 40])
def test_ordinary_values_fall_outside_as_often_as_the_chance_says(n):
    rng, outside = np.random.default_rng(0), 0
    for _ in range(2000):
        low, high = normal_range(rng.normal(size=n), 0.1)
        outside += not low <= rng.normal() <= high
    assert 0.02 < outside / 2000 <= 0.12  # at most the chance: with many cases the values' own range is the wider one


def test_the_least_probability_is_a_prediction_bound_of_the_log_odds():
    odds = np.array([1.0, 2.0, 3.0])  # mean 2, sd 1
    reach = stats.t.ppf(0.9, 2) * np.sqrt(4 / 3)
    assert least_probability(expit(odds), 0.1) == pytest.approx(expit(2 - reach))
    assert least_probability([*expit(odds), 0.0], 0.1) == pytest.approx(expit(2 - reach))  # an empty result says nothing
    assert least_probability([0.9, 0.8, 0.0], 0.1) is None and least_probability([], 0.1) is None
    assert 0.999 < least_probability([1.0, 1.0, 1.0], 0.1) < 1.0
    # a poor result among ordinary ones does not make such results ordinary
    assert least_probability(expit([2.0] * 11 + [1.0]), 0.1) > expit(1.0)


@pytest.mark.parametrize("n", [4, 12, 60])
def test_ordinary_results_lie_below_the_least_probability_as_often_as_the_chance_says(n):
    rng = np.random.default_rng(0)
    below = [expit(rng.normal(2, 1)) < least_probability(expit(rng.normal(2, 1, n)), 0.1) for _ in range(2000)]
    assert 0.08 < np.mean(below) < 0.12


def test_places_among_the_other_organs():
    centres = {"A": (0, 0, 0), "B": (10, 0, 0), "C": (20, 0, 0)}
    offsets = {"A": (1.0, 0.0, 0.0), "B": (12.0, 0.0, 0.0), "C": (50.0, 0.0, 5.0)}  # off by 1, 2 and 30
    assert others_shift_mm("C", offsets, centres).tolist() == [1.5, 0, 0]
    assert among_mm("C", offsets, centres).tolist() == [28.5, 0, 5]
    assert among_mm("A", {"A": (1.0, 0.0, 0.0)}, centres) is None  # there is no other


@pytest.mark.parametrize("scan, shift, share", [
    ((-100, 10), 0, 1.0), ((-35, 10), 0, 0.75), ((-100, -30), 0, 0.5), ((0, 10), 0, 0.0), ((-35, 10), -10, 0.25), ((-35, 10), 5, 1.0),
])
def test_the_part_of_an_organ_that_a_scan_holds(scan, shift, share):
    assert held_share((-40.0, -20.0), scan, shift) == share


def test_limits_of_a_small_training_set():
    cases = [
        case(f"c{i}", {"A_L": organ(1000 + i, (-50.0 + i, 0, 30)), "A_R": organ(2000 + 2 * i, (-50.0 + i, 0, -30)),
                       "B": organ(500, (-40.0 + i, 5, 0), Box((0, 4, 4), (8, 6, 6)))})
        for i in range(4)
    ]
    found = organ_limits(fingerprint(*cases))
    left, b = found["A_L"], found["B"]
    assert left.cases == 4 and left.centre_mm == (-48.5, 0.0, 30.0) and left.inside is None and left.largest_share is None
    assert left.volume_ml[0] < 1.0 and left.volume_ml[1] > 1.003
    assert left.ratio == (pytest.approx(0.5), pytest.approx(0.5)) and b.ratio is None
    low, high = left.place_mm[0]
    assert low < -50 and high > -47 and left.place_mm[2] == (30, 30)
    assert left.among_mm == (pytest.approx((0, 0)),) * 3  # all organs move together
    # slices 5 to 7 of 3 mm, body's top below slice 18: from 13 · 3 to 10 · 3 mm under it; the scan holds it wherever it moves to
    assert left.span_mm == (-39.0, -30.0) and left.in_scan == 1.0 and b.span_mm == (-54.0, -30.0)
    assert b.in_scan == pytest.approx(1 - 1.5 / 24)  # the scan begins 54 mm below the top; c0's organs lie 1.5 mm lower than usual
    assert left.touching == ((0, 0),) * 3 and b.touching == ((1, 0), (0, 0), (0, 0))


def test_a_case_that_is_checked_has_no_say():
    cases = [case(f"c{i}", {"B": organ(1000 + i)}) for i in range(4)] + [case("odd", {"B": organ(9000), "A_L": organ()})]
    held_out = [HeldOut("B", ("c0", "c1", "c2", "odd"), (0.8, 0.8, 0.8, 0.1), (0.9, 0.8, 0.7, 0.1), (1.0, 1.0, 0.9, 0.2))]
    with_it, without = organ_limits(fingerprint(*cases), held_out), organ_limits(fingerprint(*cases), held_out, {"odd"})
    assert with_it["B"].volume_ml[1] > 9 > 1.1 > without["B"].volume_ml[1] and (with_it["B"].cases, without["B"].cases) == (5, 4)
    assert "A_L" in with_it and "A_L" not in without
    assert with_it["B"].inside == pytest.approx(least_probability([0.9, 0.8, 0.7, 0.1], 0.05 / 2))  # one in twenty, shared by A_L and B
    assert without["B"].inside == pytest.approx(least_probability([0.9, 0.8, 0.7], 0.05)) and without["B"].inside > with_it["B"].inside
    assert without["B"].largest_share == 0.9 and with_it["B"].largest_share == 0.2


def test_loose_crumbs_and_too_few_held_out_cases_give_no_limit_of_their_own():
    cases = [case(f"c{i}", {"B": organ()}) for i in range(3)]
    whole = HeldOut("B", ("c0", "c1", "c2"), (0.8,) * 3, (0.9,) * 3, (1.0,) * 3)
    assert organ_limits(fingerprint(*cases), [whole])["B"].largest_share == 1 - module.LOOSE
    assert organ_limits(fingerprint(*cases), [whole.without({"c1"})])["B"].inside is None
    empty = HeldOut("B", ("c0", "c1", "c2", "c3"), (0.8, 0.8, 0.8, 0.0), (0.9, 0.9, 0.9, 0.0), (1.0, 0.9, 1.0, 0.0))
    assert organ_limits(fingerprint(*cases), [empty])["B"].largest_share == 0.9


@pytest.mark.parametrize("found, least", [
    ((0.5,) * 12, 0.5),
    ((0.5,) * 11 + (0.25,), 0.5),  # one in twelve is not usual
    ((0.5,) * 10 + (0.25, 0.1), 0.25),  # two at 0.25 or below are
    ((0.5, 0.5, 0.25, 0.5), 0.25),
    ((0.5, 0.25, 0.0, 0.0), 0.0),  # often not found at all
    ((0.5, 0.25), None),
    ((), None),  # a fusion.json of an earlier version
])
def test_thresholds_at_which_a_tenth_of_the_held_out_cases_is_found_are_usual(found, least):
    n = len(found) or 3
    tests = HeldOut("B", tuple(f"h{i}" for i in range(n)), (0.8,) * n, (0.9,) * n, (1.0,) * n, found)
    assert organ_limits(fingerprint(*[case(f"c{i}", {"B": organ()}) for i in range(3)]), [tests])["B"].threshold == least


def test_more_organs_make_each_range_wider():
    """So that of ordinary cases one in twenty is called unusual, however many organs there are."""
    one = [case(f"c{i}", {"B": organ(1000 + 10 * i)}) for i in range(8)]
    three = [replace(c, organs={**c.organs, "A_L": organ(), "A_R": organ()}) for c in one]
    assert organ_limits(fingerprint(*three))["B"].volume_ml[1] > organ_limits(fingerprint(*one))["B"].volume_ml[1]
