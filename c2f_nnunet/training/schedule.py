"""How far a training is and which learning rate that means: pure functions of the step and the time spent."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import TrainingError

POLY_EXPONENT = 0.9  # nnU-Net's PolyLRScheduler


@dataclass(frozen=True)
class Budget:
    """What a training may use: optimiser steps, seconds, or both, whichever ends first.

    Raises TrainingError where neither is given or one is not positive.
    """

    steps: int | None = None
    seconds: float | None = None

    def __post_init__(self):
        given = [x for x in (self.steps, self.seconds) if x is not None]
        if not given or not all(x > 0 for x in given):
            raise TrainingError(
                f"training budget of {self.steps} steps and {self.seconds} seconds: at least one must be given and each "
                "must be above 0; change --epochs or --minutes"
            )

    def progress(self, step: int, elapsed_s: float) -> float:
        """The share used, 0…1, after `step` steps and elapsed_s seconds of training (those before a resume included)."""
        shares = [step / self.steps] if self.steps else []
        shares += [elapsed_s / self.seconds] if self.seconds else []
        return min(max(*shares, 0.0), 1.0)

    def finished(self, step: int, elapsed_s: float) -> bool:
        return self.progress(step, elapsed_s) >= 1.0


def learning_rate(base: float, schedule: Literal["constant", "poly"], progress: float, step: int, warmup_steps: int) -> float:
    """The rate for step `step` (0 is the first): base · (1 - progress)^0.9 ("poly") or base, times a linear warm-up.

    The warm-up rises from base / warmup_steps at step 0 to the whole rate at step warmup_steps - 1.
    """
    annealed = {"constant": 1.0, "poly": (1.0 - progress) ** POLY_EXPONENT}[schedule]
    return base * annealed * min(1.0, (step + 1) / max(warmup_steps, 1))
