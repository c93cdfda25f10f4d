"""Grids, boxes and orientations, on arrays small enough to check by eye."""
from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from c2f_nnunet.geometry import (
    Box, Geometry, Reorientation, bounding_box, boxed, canonical_geometry, centred_box, crop, from_canonical, reorientation, respaced,
    same_grid, to_canonical, uncrop,
)  # fmt: skip

ALL_48 = [(axes, signs) for axes in permutations(range(3)) for signs in product((1, -1), repeat=3)]
CANONICAL = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))


def oriented(axes, signs, shape=(2, 3, 4)) -> Geometry:
    """Array axis k runs along world axis axes[k], in the direction of signs[k]."""
    direction = np.zeros((3, 3))
    for k, (world, sign) in enumerate(zip(axes, signs)):
        direction[world, k] = sign
    return Geometry(shape, (3.0, 2.0, 1.5), (10.0, -20.0, 30.0), tuple(map(tuple, direction.tolist())))


def rotated(degrees: float) -> Geometry:
    """The canonical axes turned about the world's z."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    return Geometry((2, 3, 4), (3.0, 2.0, 1.5), (5.0, 6.0, 7.0), tuple(map(tuple, (turn @ np.array(CANONICAL)).tolist())))


def every_index(shape) -> np.ndarray:
    return np.array(list(np.ndindex(*shape)))


def test_world_of_a_canonical_grid_by_hand():
    geometry = Geometry((5, 5, 5), (3.0, 2.0, 1.0), origin_mm=(100.0, 200.0, 300.0))
    # two slices up, one row back, four columns to the left: x + 4 * 1, y + 1 * 2, z + 2 * 3
    assert geometry.world((2, 1, 4)).tolist() == [104.0, 202.0, 306.0]
    assert geometry.extent_mm == (15.0, 10.0, 5.0)
    assert geometry.voxel_mm3 == 6.0


@pytest.mark.parametrize("geometry", [oriented((2, 1, 0), (1, 1, 1)), oriented((0, 2, 1), (-1, 1, -1)), rotated(20), rotated(-70)])
def test_index_inverts_world(geometry):
    points = np.array([[0, 0, 0], [1, 2, 3], [-0.5, 2.25, 7]])
    np.testing.assert_allclose(geometry.index(geometry.world(points)), points, atol=1e-12)


@pytest.mark.parametrize("axes, signs", ALL_48)
def test_every_orientation_becomes_canonical_and_comes_back(axes, signs):
    geometry = oriented(axes, signs)
    array = np.arange(24).reshape(geometry.shape)
    turn = reorientation(geometry)
    turned, canonical = to_canonical(array, turn), canonical_geometry(geometry, turn)

    assert canonical.direction == CANONICAL
    assert turned.shape == canonical.shape
    for index in every_index(canonical.shape):  # the same place in the world has the same value
        there = np.rint(geometry.index(canonical.world(index))).astype(int)
        assert turned[tuple(index)] == array[tuple(there)]
    np.testing.assert_array_equal(from_canonical(turned, turn), array)


@pytest.mark.parametrize("degrees, expected", [(0, (0, 1, 2)), (-44, (0, 1, 2)), (46, (0, 2, 1)), (70, (0, 2, 1)), (180, (0, 1, 2))])
def test_oblique_grids_go_to_the_nearest_orientation_and_stay_oblique(degrees, expected):
    geometry = rotated(degrees)
    turn = reorientation(geometry)
    canonical = canonical_geometry(geometry, turn)
    assert turn.axes == expected  # array axis 1 runs along y up to 45°, along x beyond
    assert min(np.diag(canonical.direction[::-1])) > np.cos(np.radians(45))  # each axis within 45° of its world axis
    array = np.arange(24).reshape(geometry.shape)
    for index in every_index(canonical.shape):
        there = np.rint(geometry.index(canonical.world(index))).astype(int)
        assert to_canonical(array, turn)[tuple(index)] == array[tuple(there)]


def test_channels_in_front_are_left_alone():
    turn = Reorientation((2, 0, 1), (True, False, True))
    array = np.arange(48).reshape(2, 2, 3, 4)
    turned = to_canonical(array, turn)
    for channel in range(2):
        np.testing.assert_array_equal(turned[channel], to_canonical(array[channel], turn))
    np.testing.assert_array_equal(from_canonical(turned, turn), array)


def test_a_box_is_half_open():
    box = Box((1, 2, 3), (2, 5, 7))
    assert box.shape == (1, 3, 4)
    assert box.centre == (1.0, 3.0, 4.5)
    assert box.grown(1) == Box((0, 1, 2), (3, 6, 8))
    assert box.grown((0, 2, 4)) == Box((1, 0, -1), (2, 7, 11))
    assert box.moved((-1, 0, 2)) == Box((0, 2, 5), (1, 5, 9))
    assert np.zeros((9, 9, 9))[box.slices].shape == box.shape


def test_clipped_boxes():
    assert Box((-2, 1, 3), (2, 9, 4)).clipped((5, 5, 5)) == Box((0, 1, 3), (2, 5, 4))
    assert Box((7, 0, 0), (9, 2, 2)).clipped((5, 5, 5)).shape == (0, 2, 2)  # beside the array: empty, not negative
    assert Box((-4, 0, 0), (-1, 2, 2)).clipped((5, 5, 5)).shape == (0, 2, 2)


def test_bounding_box():
    mask = np.zeros((5, 6, 7), bool)
    assert bounding_box(mask) is None
    mask[2, 3, 4] = True
    assert bounding_box(mask) == Box((2, 3, 4), (3, 4, 5))
    mask[0, 5, 6] = True
    assert bounding_box(mask) == Box((0, 3, 4), (3, 6, 7))


@pytest.mark.parametrize("centre, shape, start", [
    ((5, 5, 5), (3, 3, 3), (4, 4, 4)),
    ((5, 5, 5), (1, 1, 1), (5, 5, 5)),
    ((4.5, 4.5, 4.5), (2, 4, 6), (4, 3, 2)),  # between two voxels: even boxes fit exactly
    ((0, 0, 0), (5, 5, 5), (-2, -2, -2)),
])  # fmt: skip
def test_centred_box(centre, shape, start):
    box = centred_box(centre, shape)
    assert box.start == start and box.shape == shape and box.centre == tuple(map(float, centre))


def test_a_crop_beyond_the_border_is_filled():
    array = np.arange(1, 9).reshape(2, 2, 2)
    cropped = crop(array, Box((0, -1, 1), (1, 2, 3)), fill=-1)
    assert cropped.tolist() == [[[-1, -1], [2, -1], [4, -1]]]
    assert uncrop(cropped, Box((0, -1, 1), (1, 2, 3)), (2, 2, 2)).tolist() == [[[0, 2], [0, 4]], [[0, 0], [0, 0]]]


@given(st.tuples(*[st.integers(-4, 6)] * 3), st.tuples(*[st.integers(1, 7)] * 3), st.integers(0, 2))
def test_uncrop_puts_back_what_crop_took(start, size, leading_axes):
    box = Box(start, tuple(a + n for a, n in zip(start, size)))
    array = np.arange(1, 61).reshape(3, 4, 5) * np.ones((2,) * leading_axes + (1, 1, 1), int)
    cropped = crop(array, box)
    assert cropped.shape[-3:] == box.shape
    inside = np.zeros((3, 4, 5), bool)
    inside[box.clipped(inside.shape).slices] = True
    np.testing.assert_array_equal(uncrop(cropped, box, (3, 4, 5)), np.where(inside, array, 0))


def test_a_boxed_geometry_keeps_every_voxel_in_its_place():
    geometry, box = rotated(30), Box((-1, 1, 2), (1, 3, 6))
    cropped = boxed(geometry, box)
    assert cropped.shape == box.shape
    np.testing.assert_allclose(cropped.world((1, 1, 1)), geometry.world((0, 2, 3)), atol=1e-12)


@pytest.mark.parametrize("spacing, shape", [
    ((3.0, 2.0, 1.5), (2, 3, 4)),   # as it was
    ((1.5, 1.0, 1.5), (4, 6, 4)),   # halved
    ((6.0, 6.0, 6.0), (1, 1, 1)),   # all of it in one voxel
    ((4.0, 4.0, 4.0), (2, 2, 2)),   # 6 mm / 4 mm: rounded up
])  # fmt: skip
def test_respaced_keeps_the_corner_and_all_of_the_extent(spacing, shape):
    geometry = rotated(30)
    new = respaced(geometry, spacing)
    assert new.shape == shape and new.spacing_mm == spacing and new.direction == geometry.direction
    np.testing.assert_allclose(new.world((-0.5, -0.5, -0.5)), geometry.world((-0.5, -0.5, -0.5)), atol=1e-12)
    assert all(old <= longer < old + s for old, longer, s in zip(geometry.extent_mm, new.extent_mm, spacing))


def test_same_grid():
    geometry = Geometry((10, 10, 10), (3.0, 1.0, 1.0))
    shifted = lambda mm: Geometry((10, 10, 10), (3.0, 1.0, 1.0), (mm, 0.0, 0.0))  # noqa: E731
    assert same_grid(geometry, shifted(0.04))
    assert not same_grid(geometry, shifted(0.06))  # more than 0.05 of the smallest voxel
    assert not same_grid(geometry, Geometry((10, 10, 11), (3.0, 1.0, 1.0)))
    assert not same_grid(geometry, Geometry((10, 10, 10), (3.0, 1.0, 1.01)))  # 0.09 mm off at the far end
    assert not same_grid(geometry, Geometry((10, 10, 10), (3.0, 1.0, 1.0), direction=((0, 0, -1), (0, 1, 0), (1, 0, 0))))
