"""Learning one organ's weights: the drawn voxels, the weights and biases tried, and what they score."""
import numpy as np
import pytest

from c2f_nnunet.inference import fusion_learn
from c2f_nnunet.inference.fusion_learn import learn


def drawn(x, y, stands_for=None):
    x = np.array(x, np.float32)
    return fusion_learn.Drawn(x, np.array(y, bool), np.ones(len(x)) if stands_for is None else np.array(stands_for, float))


def test_the_mean_then_all_eighths_that_sum_to_one_are_tried():
    assert fusion_learn.weights_tried(1).tolist() == [[1], [1]]
    two = fusion_learn.weights_tried(2)
    assert two[:4].tolist() == [[0.5, 0.5], [0.5, 0.5], [0.625, 0.375], [0.375, 0.625]] and two[-2:].tolist() == [[1, 0], [0, 1]]
    three = fusion_learn.weights_tried(3)
    assert three.shape == (46, 3) and three.sum(axis=1) == pytest.approx(np.ones(46)) and len({tuple(row) for row in three}) == 46
    assert three[0].tolist() == [1 / 3] * 3 and three[1].tolist() == [0.375, 0.375, 0.25]


def test_weights_that_carry_over_are_learned():
    # the second source calls a voxel the organ that is none, more surely than the first denies it; the first overlooks one
    case = drawn([[4, 4], [-2, 3], [-4, 4.5], [-4, -4]], [True, True, False, False])
    # with 5 of 8 eighths for the first: 4, -0.125, -0.81, -4: the second voxel is won by a bias of 0.2
    assert learn([case, case]) == pytest.approx([0.625, 0.375, 0.2])
    assert learn([case]).tolist() == [0.5, 0.5, 0]  # one case cannot tell


def test_of_weights_no_worse_than_the_best_source_the_nearest_to_the_mean_are_taken():
    # the second source denies the organ: in the mean it is -1, with five eighths for the first -0.25, with six 0.5
    case = drawn([[2, -4], [-3, -3]], [True, False])
    assert learn([case]).tolist() == [0.75, 0.25, 0]
    # where the second is certain of what is wrong, the first alone
    assert learn([drawn([[2, 2], [-1, 9]], [True, False])]).tolist() == [1, 0, 0]


def test_what_helps_one_case_only_is_not_learned():
    timid = drawn([[-0.5, -0.5], [-3, -3]], [True, False])  # found with a bias of 0.6
    bold = drawn([[2, 2], [-0.4, -0.4]], [True, False])  # spoilt by it
    assert learn([timid, bold, bold]).tolist() == [0.5, 0.5, 0]
    assert learn([timid, timid, timid]) == pytest.approx([0.5, 0.5, 0.6])
    assert learn([timid, timid, bold, bold]).tolist() == [0.5, 0.5, 0]  # gains 1 and 1, loses 1/3 and 1/3: on average 0.33, ± 0.38


def test_of_equals_the_mean_is_taken():
    same = drawn([[3, 3], [2, 2], [-2, -2]], [True, True, False])
    assert learn([same, same]).tolist() == [0.5, 0.5, 0]


def test_a_bias_is_taken_where_it_gains_more_than_its_price():
    # two voxels of 100 lie at -0.55: with a bias of 0.6 they are in, at a price of 0.0015, and the DSC rises by 0.0101
    few = drawn([[1], [-0.55], [-9]], [True, True, False], [98, 2, 1000])
    assert learn([few, few]) == pytest.approx([1, 0.6])
    fewer = few._replace(stands_for=np.array([1999.0, 1, 1000]))  # one voxel of 2,000 gains 0.00025
    assert learn([fewer, fewer]).tolist() == [1, 0]


def test_dsc_by_bias_by_hand():
    # f = x. Case 1: organ at -0.32 and above; case 2 has no organ: undefined, and 0 from -0.9 on
    cases = [drawn([[1.0], [-0.32], [-0.5]], [True, True, False]), drawn([[-0.9], [-3.0]], [False, False])]
    places = [list(fusion_learn._BIASES).index(b) for b in (0.0, 0.4, 0.6, 1.0, -2.0)]
    first, second = fusion_learn._dsc_by_bias(cases, np.array([1.0]))[:, places]
    assert first == pytest.approx([2 / 3, 1, 4 / 5, 4 / 5, 0])
    assert np.array_equal(second, [np.nan, np.nan, np.nan, 0, np.nan], equal_nan=True)
    # the last voxel stands for nine: 2 * 2 hits of 2 + 11 voxels
    cases[0] = cases[0]._replace(stands_for=np.array([1.0, 1, 9]))
    assert fusion_learn._dsc_by_bias(cases, np.array([1.0]))[0, places[2]] == pytest.approx(4 / 13)


def test_cases_without_the_organ_are_no_evidence():
    timid = drawn([[-0.5], [-3]], [True, False])
    without = drawn([[-9], [-9]], [False, False])
    assert learn([timid, without]).tolist() == [1, 0]
    assert learn([timid, without, timid]) == pytest.approx([1, 0.6])


def test_drawn_voxels_stand_for_all(monkeypatch):
    monkeypatch.setattr(fusion_learn, "_DRAWN", {"organ": 10, "near": 10, "far": 500})
    truth = np.zeros(2000, bool)
    truth[:40] = True
    logits = np.full((2, 2000), -12, np.float16)
    logits[0, :100] = 0  # 60 more voxels that a source is unsure of
    x, y, stands_for = fusion_learn._draw_organ(logits, truth, np.random.default_rng(0))
    assert x.shape == (y.size, 2) and y.sum() == 10
    assert stands_for[y].sum() == pytest.approx(40)
    assert stands_for[~y & (x[:, 0] == 0)].sum() == pytest.approx(60)
    assert stands_for[x[:, 0] == -12].sum() == pytest.approx(1900)


def test_voxels_that_are_left_out_are_in_no_mask():
    """NEVER and less in every source: no weights and bias tried reach 0, nor do a source alone and the mean."""
    for theta in (np.append(w, fusion_learn._BIASES.max()) for w in fusion_learn.weights_tried(3)):
        assert np.full(3, fusion_learn.NEVER) @ theta[:-1] + theta[-1] < 0
