"""What a miss of the coarse stage means, worked by hand."""
import pytest

from c2f_nnunet.inference.presence import Presence


@pytest.mark.parametrize("found, present, absent, cases, odds", [
    (8, 8, 4, 40, (4.5 / 36.5) / (0.5 / 9)),  # never overlooked, and lacking in a tenth: 2.2
    (8, 8, 2, 40, (2.5 / 38.5) / (0.5 / 9)),  # 1.17
    (6, 8, 4, 40, (4.5 / 36.5) / (2.5 / 9)),  # overlooked twice: a miss says little
    (0, 8, 4, 40, (4.5 / 36.5) / (8.5 / 9)),
])
def test_odds_by_hand(found, present, absent, cases, odds):
    told = Presence("Gland", found, present, absent, cases)
    assert told.odds_of_absence == pytest.approx(odds) and told.a_miss_means_absent == (odds > 1)


def test_without_an_absent_case_no_organ_is_ever_taken_as_absent():
    told = Presence("Gland", 1000, 1000, 0, 5)
    assert told.odds_of_absence > 1 and not told.a_miss_means_absent


def test_without_held_out_cases_that_have_it_nothing_is_known_of_misses():
    assert not Presence("Gland", 0, 0, 9, 10).a_miss_means_absent
