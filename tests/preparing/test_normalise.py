import numpy as np
import pytest

from c2f_nnunet.planning.plan import Window
from c2f_nnunet.preparing.normalise import normalise


def test_the_papers_window():
    hu = np.array([-1024, -400, 200, 800, 3000], np.int16)
    (out,) = normalise(hu, (Window(-400, 800, 0.0),))
    assert out.dtype == np.float32
    assert out == pytest.approx([0, 0, 0.5, 1, 1])


def test_mean_is_taken_off_after_scaling_and_each_window_is_a_channel():
    hu = np.array([[0, 50]], np.int16)
    out = normalise(hu, (Window(0, 100, 0.5), Window(-100.5, 99.5, 0.0)))
    assert out.shape == (2, 1, 2)
    assert out[0, 0] == pytest.approx([-0.5, 0.0])
    assert out[1, 0] == pytest.approx([0.5025, 0.7525])
    assert hu.tolist() == [[0, 50]]  # the volume itself is untouched
