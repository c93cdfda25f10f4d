"""HU → network input."""
from __future__ import annotations

import numpy as np

from ..planning.plan import Window


def normalise(hu: np.ndarray, windows: tuple[Window, ...]) -> np.ndarray:
    """HU (*spatial) → float32 (windows, *spatial): clipped, scaled to 0…1 (paper, equation 5), minus mean, by std."""
    out = np.empty((len(windows), *hu.shape), np.float32)
    for channel, w in zip(out, windows):
        np.clip(hu, w.low_hu, w.high_hu, out=channel, casting="unsafe")
        channel -= w.low_hu
        channel *= 1.0 / ((w.high_hu - w.low_hu) * w.std)
        channel -= w.mean / w.std
    return out
