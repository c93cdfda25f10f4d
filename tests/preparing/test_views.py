import numpy as np
import pytest

from c2f_nnunet.geometry import Box
from c2f_nnunet.inference.tiles import tiles
from c2f_nnunet.preparing.views import (
    POSITION_SCALE_MM, air_input, intensity_channels, left_right_axis, mirrored_input, odd_channels, plane_shape, positions, slab, slice_input,
    training_window,
)  # fmt: skip

VOLUME = np.arange(3 * 4 * 5, dtype=np.int16).reshape(3, 4, 5)  # [z, y, x] = 20 z + 5 y + x
WHOLE = Box((0, 0, 0), (3, 4, 5))


@pytest.mark.parametrize(("axis", "plane", "left_right"), [(0, (4, 5), 1), (1, (3, 5), 1), (2, (3, 4), None)])
def test_what_a_view_sees(axis, plane, left_right):
    assert plane_shape((3, 4, 5), axis) == plane
    assert left_right_axis(axis) == left_right
    assert slab(VOLUME, axis, 1, 0, WHOLE, -1).shape == (1, *plane)


def test_left_right_of_a_crop_is_its_last_axis():
    assert left_right_axis(None) == 2


def test_slab_by_hand():
    three = [[[7, 8], [12, 13]], [[27, 28], [32, 33]], [[47, 48], [52, 53]]]
    assert slab(VOLUME, 0, 1, 1, Box((0, 1, 2), (3, 3, 4)), -1).tolist() == three
    assert slab(VOLUME, 2, 0, 1, Box((0, 0, 0), (1, 2, 5)), -1).tolist() == [[[-1, -1]], [[0, 5]], [[1, 6]]]  # left of the volume: fill
    assert slab(VOLUME, 1, 3, 0, Box((-1, 0, 3), (1, 4, 6)), -1).tolist() == [[[-1, -1, -1], [18, 19, -1]]]


def test_positions_are_offsets_from_the_anchor():
    z, y, x = positions((0, 2, -1), (2, 1, 3), (1.0, 0.5, 0.0), (5.0, 2.0, 100.0))
    assert z * POSITION_SCALE_MM == pytest.approx([-5, 0])
    assert y * POSITION_SCALE_MM == pytest.approx([3])
    assert x * POSITION_SCALE_MM == pytest.approx([-100, 0, 100])


def test_slice_input_by_hand(plans):
    m = plans.member(0, shape=(3, 4, 5), spacing_mm=(10.0, 1.0, 1.0))
    hu = np.full((3, 4, 5), -400, np.int16)
    hu[2] = 200
    image = slice_input(hu, m, 1, WHOLE, (2.0, 1.5, 2.0))
    assert image.shape == (2 * 3 + 3, 4, 5) and image.dtype == np.float32
    assert image[:3, 0, 0] == pytest.approx([-0.25, -0.25, 0.25])  # window 1 of slices 0, 1, 2; its mean is 0.25
    assert image[3:6, 0, 0] == pytest.approx([-0.5, -0.5, 0.5])  # window 2
    mm = image[6:] * POSITION_SCALE_MM
    assert mm[0] == pytest.approx(np.full((4, 5), -10.0))  # its own axis: one slice of 10 mm under the anchor
    assert mm[1, :, 0] == pytest.approx([-1.5, -0.5, 0.5, 1.5])  # y
    assert mm[2, 0] == pytest.approx([-2, -1, 0, 1, 2])  # x


@pytest.mark.parametrize("positions_", [0, 1, 3])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_mirrored_patient(axis, positions_, plans):
    """Mirroring the volume and mirroring the input by the stated table are one and the same."""
    shape = (6, 8, 10)
    m = plans.member(axis, shape, positions=positions_)
    hu = np.random.default_rng(axis).integers(-1000, 1000, shape).astype(np.int16)
    anchor, window, index = (5.5, 3.5, 4.0), Box((0, 0, 0), shape), 2
    turned_anchor = (*anchor[:2], shape[2] - 1 - anchor[2])
    turned = slice_input(hu[..., ::-1], m, shape[2] - 1 - index if axis == 2 else index, window, turned_anchor)
    expected = slice_input(hu, m, index, window, anchor).copy()
    expected[list(odd_channels(m))] *= -1
    if order := mirrored_input(m):
        assert axis == 2 and sorted(order) == list(range(m.network.in_channels))
        expected = expected[list(order)]
    else:
        expected = np.flip(expected, 1 + left_right_axis(axis))
    assert turned == pytest.approx(expected)


def test_odd_channels_by_hand(plans):
    assert [odd_channels(plans.member(a)) for a in (0, 1, 2)] == [(8,), (8,), (6,)]  # x comes last in top and front, first in side
    assert odd_channels(plans.member(0, positions=1)) == ()  # z only
    assert odd_channels(plans.fine(("Stem",), (8, 8, 8), (1, 1, 1))) == ()
    assert intensity_channels(plans.member(0)) == 6


def test_air_by_hand(plans):
    assert air_input(plans.member(0)) == pytest.approx([-0.25] * 3 + [-0.5] * 3)  # below both windows: 0 less each one's mean
    assert air_input(plans.fine(("Stem",), (8, 8, 8), (1, 1, 1))) == pytest.approx([-0.25])


@pytest.mark.parametrize(("volume", "start"), [
    ((8, 6, 10), (0, 0, 0)),
    ((12, 6, 10), (4, 0, 0)),  # taller: the top is seen
    ((5, 6, 10), (-3, 0, 0)),  # lower: it lies at the window's top
    ((8, 3, 13), (0, -2, 1)),  # narrower and wider: centred
])  # fmt: skip
def test_training_and_prediction_see_the_same_window(volume, start):
    window = training_window(volume, (8, 6, 10))
    assert window.start == start and window.shape == (8, 6, 10)
    if all(v <= t for v, t in zip(volume, (8, 6, 10))):
        assert tiles(volume, (8, 6, 10)) == [window]
