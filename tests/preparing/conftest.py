"""Members of both stages as plans have them, small."""
from types import SimpleNamespace

import pytest

from c2f_nnunet.planning.plan import CoarsePlan, LossPlan, MemberPlan, NetworkPlan, TrainingPlan, Window

WINDOWS = (Window(-400.0, 800.0, 0.25), Window(-100.0, 200.0, 0.5))
TRAINING = TrainingPlan(4, 1, 1, 1, 1e-3, "adamw", "poly", 0, 0.0, 0.9, 0.0, LossPlan("dice_ce"), 0.5, "none")


def member(
    axis, shape=(8, 6, 10), spacing_mm=(2.0, 1.0, 1.0), context=1, positions=3, organs=("Gland_L", "Gland_R"), jitter_mm=(0.0, 0.0, 0.0),
    windows=WINDOWS,
):  # fmt: skip
    """A view across `axis`, or with axis None a fine member."""
    d = 3 if axis is None else 2
    channels = len(windows) * (2 * context + 1) + positions
    network = NetworkPlan(d, channels, 2, (4, 8), ((2,) * d,), ((3,) * d,) * 2)
    stage = "fine" if axis is None else "coarse"
    return MemberPlan(
        f"m{axis}", stage, organs, axis, stage, spacing_mm, shape, windows, context, positions, jitter_mm, network, TRAINING, 0.1, {}
    )  # fmt: skip


def fine(organs, shape, spacing_mm, jitter_mm=(0.0, 0.0, 0.0)):
    return member(None, shape, spacing_mm, 0, 0, organs, jitter_mm, WINDOWS[:1])


def coarse(shape, spacing_mm):
    return CoarsePlan(spacing_mm, shape, 95.0, (), {})


@pytest.fixture
def plans():
    """The builders above."""
    return SimpleNamespace(member=member, fine=fine, coarse=coarse)
