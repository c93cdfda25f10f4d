"""Evidence for an organ: masks kept small, their agreement, and what the probabilities say of themselves."""
from dataclasses import replace

import numpy as np
import pytest

from c2f_nnunet.geometry import Box
from c2f_nnunet.inference.agreement import Evidence, compact, mean_pair_dsc, overlap_dsc, soft_dsc, weigh


def row(*voxels, n=8):
    """A mask of one row with these voxels set."""
    mask = np.zeros((1, 1, n), bool)
    mask[0, 0, list(voxels)] = True
    return compact(mask)


def test_a_mask_is_cut_to_its_box_and_copied():
    mask = np.zeros((4, 5, 6), bool)
    mask[1, 2:4, 3] = True
    small = compact(mask)
    mask[:] = False
    assert small.box == Box((1, 2, 3), (2, 4, 4)) and small.inside.shape == (1, 2, 1) and small.voxels == 2
    assert compact(mask).box is None and compact(mask).voxels == 0


@pytest.mark.parametrize("a, b, expected", [
    (row(1, 2, 3), row(1, 2, 3), 1.0),
    (row(1, 2, 3, 4), row(3, 4), 2 * 2 / 6),  # boxes that overlap in part
    (row(0, 4), row(2, 4, 6), 2 * 1 / 5),  # holes inside the boxes
    (row(0, 1), row(5, 6), 0.0),  # boxes apart
    (row(0, 2), row(1), 0.0),  # one box inside the other, no voxel in common
    (row(), row(3), 0.0),
    (row(), row(), None),
])
def test_dsc_of_cut_masks_is_that_of_whole_ones(a, b, expected):
    assert overlap_dsc(a, b) == overlap_dsc(b, a) == (expected if expected is None else pytest.approx(expected))


def test_agreement_is_the_mean_over_pairs():
    # (1,2)–(1,2,3,4): 4/6; (1,2)–none: 0; (1,2,3,4)–none: 0
    assert mean_pair_dsc([row(1, 2), row(1, 2, 3, 4), row()]) == pytest.approx((4 / 6) / 3)
    assert mean_pair_dsc([row(), row(), row(1)]) == 0.0  # the pair that is empty on both sides is left out
    assert mean_pair_dsc([row(1)]) is None and mean_pair_dsc([row(), row()]) is None and mean_pair_dsc([]) is None


def test_soft_dsc_by_hand():
    # inside: 0.9 and 0.6; all: 0.9 + 0.6 + 0.5 + 0.1 = 2.1: 2 · 1.5 / (2.1 + 2)
    assert soft_dsc(np.array([0.9, 0.6, 0.5, 0.1])) == pytest.approx(3.0 / 4.1)
    assert soft_dsc(np.array([1.0, 1.0, 0.0])) == 1.0 and soft_dsc(np.array([0.4])) == 0.0


def test_evidence_from_log_odds():
    values = np.log([[[9.0, 1.5, 0.25]]])  # p: 0.9, 0.6, 0.2
    fine, coarse = np.array([[[1.0, 1.0, -1.0]]]), np.array([[[1.0, -1.0, -1.0]]])
    found = weigh(values, fine, coarse, 0.7, None)
    assert found == Evidence(pytest.approx(0.75), pytest.approx(2 * 1.5 / (1.7 + 2)), 0.7, None, pytest.approx(2 / 3))
    assert found.confidence == pytest.approx(0.75 * 0.7 * 2 / 3) and replace(found, folds=0.5).confidence == pytest.approx(0.75 * 0.7 * 0.5 * 2 / 3)
    assert Evidence(0.75).confidence == 0.75  # nothing to compare
    assert weigh(values, None, coarse, None, 0.4).stages is None and weigh(values, None, coarse, None, 0.4).folds == 0.4


def test_an_empty_result_has_no_confidence_and_large_log_odds_no_overflow():
    nothing = weigh(np.full((2, 2, 2), -800.0, np.float32), np.full((2, 2, 2), -1.0), np.full((2, 2, 2), -1.0), 0.9, 0.9)
    assert (nothing.inside, nothing.soft, nothing.confidence, nothing.stages) == (0.0, 0.0, 0.0, None)
    assert weigh(np.full((1, 1, 1), 800.0, np.float32), None, np.zeros((1, 1, 1)), None, None).inside == 1.0
