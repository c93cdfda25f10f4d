"""The DSC to be expected: one slope for all organs, held towards none where there are few results."""
import numpy as np
import pytest
from scipy.special import expit

from c2f_nnunet.inference.expectation import Expectation, expectations


def results(n: int, rise: float, seed: int = 0, mean: float = 0.8, sd: float = 0.05):
    """DSC, volume and mean probability of n results, whose DSC rises by so many SDs for an SD of the volume's logarithm."""
    rng = np.random.default_rng(seed)
    size, odds, noise = rng.normal(size=(3, n))
    dsc = mean + sd * (rise * size + np.sqrt(1 - rise**2) * noise)
    return dsc, 20 * np.exp(0.3 * size), expit(3 + 0.2 * odds)


def test_by_hand():
    told = Expectation((0.8, 0.1), (np.log(10.0), 0.5), (2.0, 1.0), (0.4, 0.2))
    assert told.of(10.0, expit(2.0)) == pytest.approx(0.8)
    assert told.of(10.0 * np.exp(0.5), expit(2.0)) == pytest.approx(0.84)  # an SD larger
    assert told.of(10.0, expit(1.0)) == pytest.approx(0.78)  # an SD less sure
    assert told.of(1e-6, expit(2.0)) == pytest.approx(0.68) == told.of(1e-3, expit(2.0))  # three SDs tell all
    assert Expectation((0.02, 0.1), (0.0, 1.0), (0.0, 1.0), (1.0, 0.0)).of(0.1, 0.5) == 0.0 and told.of(10.0, 1.0) <= 1.0


def test_what_ranks_the_results_is_found_and_is_one_for_all_organs():
    found = expectations({"A": results(60, 0.5), "B": results(60, 0.5, 1, mean=0.6, sd=0.1)})
    assert found["A"].slopes == found["B"].slopes and found["A"].slopes[0] == pytest.approx(0.5, abs=0.15)
    assert abs(found["A"].slopes[1]) < 0.15  # the probability told nothing
    assert found["A"].dsc[0] == pytest.approx(0.8, abs=0.02) and found["B"].dsc[0] == pytest.approx(0.6, abs=0.04)
    dsc, volume, inside = results(200, 0.5, 7)
    told = [found["A"].of(v, p) for v, p in zip(volume, inside)]
    assert np.corrcoef(told, dsc)[0, 1] > 0.3


def test_few_results_tell_little_but_the_mean():
    many, few = expectations({"A": results(60, 0.9)})["A"], expectations({"A": results(4, 0.9)})["A"]
    assert many.slopes[0] > 0.7 > 0.3 > few.slopes[0] >= 0


def test_empty_results_and_organs_with_too_few_are_left_out():
    dsc, volume, inside = results(5, 0.0)
    empty = (np.append(dsc, 0.0), np.append(volume, 0.0), np.append(inside, 0.0))
    assert expectations({"A": empty})["A"] == expectations({"A": (dsc, volume, inside)})["A"]
    assert expectations({"A": tuple(v[:2] for v in (dsc, volume, inside))}) == {} == expectations({})
    assert expectations({"A": (dsc, (), inside)}) == {}  # of a model that was fitted before volumes were kept
    same = expectations({"A": ([0.8] * 4, [10.0] * 4, [0.9] * 4)})["A"]
    assert same.of(12.0, 0.8) == pytest.approx(0.8, abs=1e-3)
