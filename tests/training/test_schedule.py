"""Schedules as tables."""
import pytest

from c2f_nnunet.errors import TrainingError
from c2f_nnunet.training.schedule import Budget, learning_rate


@pytest.mark.parametrize(
    "budget, step, elapsed_s, expected",
    [
        (Budget(steps=200), 0, 99.0, 0.0),  # without a time limit the clock does not count
        (Budget(steps=200), 50, 0.0, 0.25),
        (Budget(steps=200), 250, 0.0, 1.0),
        (Budget(seconds=60.0), 10**9, 15.0, 0.25),
        (Budget(seconds=60.0), 0, 61.0, 1.0),
        (Budget(steps=100, seconds=60.0), 50, 15.0, 0.5),  # whichever is further
        (Budget(steps=100, seconds=60.0), 50, 45.0, 0.75),
    ],
)
def test_progress(budget, step, elapsed_s, expected):
    assert budget.progress(step, elapsed_s) == pytest.approx(expected)
    assert budget.finished(step, elapsed_s) == (expected == 1.0)


@pytest.mark.parametrize("steps, seconds", [(None, None), (0, None), (None, 0.0), (100, -1.0)])
def test_impossible_budgets(steps, seconds):
    with pytest.raises(TrainingError, match="must be above 0; change --epochs or --minutes"):
        Budget(steps, seconds)


@pytest.mark.parametrize(
    "schedule, progress, step, warmup_steps, expected",
    [
        ("constant", 0.0, 0, 0, 1.0),
        ("constant", 0.9, 900, 0, 1.0),
        ("poly", 0.0, 0, 0, 1.0),
        ("poly", 0.5, 500, 0, 0.5**0.9),
        ("poly", 1.0, 1000, 0, 0.0),
        ("constant", 0.0, 0, 4, 0.25),
        ("constant", 0.0, 2, 4, 0.75),
        ("constant", 0.0, 3, 4, 1.0),
        ("constant", 0.0, 4, 4, 1.0),
        ("poly", 0.1, 1, 4, 0.9**0.9 * 0.5),  # the warm-up multiplies
    ],
)
def test_learning_rate(schedule, progress, step, warmup_steps, expected):
    assert learning_rate(1e-3, schedule, progress, step, warmup_steps) == pytest.approx(1e-3 * expected)
