"""Learning one organ's weights: the drawn voxels, the loss and its slope, the shift of the bias."""
import numpy as np
import pytest

from c2f_nnunet.inference import fusion_learn


def random_draws():
    rng = np.random.default_rng(3)
    sizes = ((30, 0.4), (20, 0), (25, 0.2))  # voxels, share of the organ: the second case has none
    return [fusion_learn.Drawn(rng.normal(size=(n, 2)), rng.random(n) < share, rng.integers(1, 5, n)) for n, share in sizes]


def test_the_objective_s_gradient_is_its_slope():
    loss, theta, step = fusion_learn._objective(random_draws()), np.array([0.7, 0.2, -0.3]), 1e-6
    slopes = [(loss(theta + step * e)[0] - loss(theta - step * e)[0]) / (2 * step) for e in np.eye(3)]
    assert loss(theta)[1] == pytest.approx(slopes, rel=1e-6)


def test_the_bias_is_shifted_to_the_best_mean_dsc():
    # f = x. Case 1: organ at -0.32 and above, case 2: no organ, nothing over -0.9. Shifts come in steps of 0.05
    drawn = [fusion_learn.Drawn(np.array([[1.0], [-0.32], [-0.5]]), np.array([True, True, False]), np.ones(3)),
             fusion_learn.Drawn(np.array([[-0.9], [-3.0]]), np.array([False, False]), np.ones(2))]
    assert fusion_learn._best_shift(drawn, np.array([1.0, 0.0])) == pytest.approx(0.35)
    # the last voxel of case 1 stands for 9 of the organ: better take it (20/21 against 4/12), and case 2's 0 is not yet due
    drawn[0] = fusion_learn.Drawn(drawn[0].x, np.array([True, False, True]), np.array([1, 1, 9]))
    assert fusion_learn._best_shift(drawn, np.array([1.0, 0.0])) == pytest.approx(0.55)


def test_learning_ends_with_the_shift(monkeypatch):
    monkeypatch.setattr(fusion_learn, "_best_shift", lambda drawn, theta: 0.0)
    unshifted = fusion_learn.learn(random_draws())
    monkeypatch.setattr(fusion_learn, "_best_shift", lambda drawn, theta: 1.5)
    assert fusion_learn.learn(random_draws()) - unshifted == pytest.approx([0, 0, 1.5])


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
