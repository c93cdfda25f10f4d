"""Polygons and masks: shapes that can be counted by hand, edges, holes, keyholes, and random masks that must come back."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from skimage.draw import polygon2mask
from skimage.measure import points_in_poly

from c2f_nnunet.io.polygons import KEYHOLE_VOXELS, area_voxels, crossing, fill, repeated, trace, window_of

SQUARE = np.array([[1.5, 1.5], [1.5, 4.5], [4.5, 4.5], [4.5, 1.5]])  # around the centres 2, 3, 4


def filled(*polygons, shape=(8, 8)):
    return fill(polygons, (0, 0), shape)


def block(rows, columns, shape=(8, 8)):
    mask = np.zeros(shape, bool)
    mask[rows, columns] = True
    return mask


def test_a_square_holds_the_centres_in_it():
    np.testing.assert_array_equal(filled(SQUARE), block(slice(2, 5), slice(2, 5)))
    np.testing.assert_array_equal(filled(SQUARE[::-1]), block(slice(2, 5), slice(2, 5)))  # either way round


def test_a_window_shows_the_same_mask():
    np.testing.assert_array_equal(fill([SQUARE], (3, 1), (4, 3)), filled(SQUARE)[3:7, 1:4])
    assert not fill([SQUARE], (20, 20), (3, 3)).any()
    assert fill([SQUARE - 3], (0, 0), (8, 8)).sum() == 4  # cut by the upper left edges: the centres 0 and 1
    assert fill([SQUARE + 3], (0, 0), (8, 8)).sum() == 9  # 5, 6, 7 are just inside
    assert fill([SQUARE + 4], (0, 0), (8, 8)).sum() == 4


def test_a_diamond_and_a_triangle():
    diamond = np.array([[1.4, 3], [3, 4.6], [4.6, 3], [3, 1.4]])
    np.testing.assert_array_equal(filled(diamond), block([2, 3, 3, 3, 4], [3, 2, 3, 4, 3]))
    triangle = np.array([[0.5, 0.5], [0.5, 4], [4, 0.5]])  # row + column < 4.5
    np.testing.assert_array_equal(filled(triangle), block([1, 1, 1, 2, 2, 3], [1, 2, 3, 1, 2, 1]))


def test_a_centre_on_an_edge_counts_as_inside_on_every_side():
    through_centres = np.array([[2.0, 2.0], [2.0, 5.0], [5.0, 5.0], [5.0, 2.0]])
    np.testing.assert_array_equal(filled(through_centres), block(slice(2, 6), slice(2, 6)))
    slanted = np.array([[1.0, 1.0], [1.0, 5.0], [5.0, 5.0]])  # the diagonal runs through centres
    np.testing.assert_array_equal(filled(slanted), np.triu(block(slice(1, 6), slice(1, 6))))
    rounded = through_centres + np.array([[0.004, -0.003], [-0.005, 0.002], [0.003, -0.004], [-0.002, 0.005]])  # as 0.01 mm does
    np.testing.assert_array_equal(filled(rounded), filled(through_centres))


def test_holes_islands_and_overlaps_are_even_odd():
    outer = np.array([[0.5, 0.5], [0.5, 6.5], [6.5, 6.5], [6.5, 0.5]])
    island = np.array([[2.5, 2.5], [2.5, 3.5], [3.5, 3.5], [3.5, 2.5]])
    expected = block(slice(1, 7), slice(1, 7))
    expected[2:5, 2:5] = False
    np.testing.assert_array_equal(filled(outer, SQUARE), expected)
    expected[3, 3] = True
    np.testing.assert_array_equal(filled(outer, SQUARE, island), expected)
    np.testing.assert_array_equal(filled(island, outer, SQUARE[::-1]), expected)  # order and direction do not matter
    assert not filled(SQUARE, SQUARE).any()


def test_a_keyhole_polygon_is_a_ring():
    # around the outside, in by a channel along row 3 (through centres, which belong to the organ), around the hole, and out again
    polygon = np.array([[3, 0.5], [0.5, 0.5], [0.5, 6.5], [6.5, 6.5], [6.5, 0.5], [3, 0.5],
                        [3, 2.5], [4.5, 2.5], [4.5, 4.5], [2.5, 4.5], [2.5, 2.5], [3, 2.5]])  # fmt: skip
    expected = block(slice(1, 7), slice(1, 7))
    expected[3:5, 3:5] = False
    np.testing.assert_array_equal(filled(polygon), expected)


def test_polygons_without_area_hold_the_centres_under_them():
    np.testing.assert_array_equal(filled(np.array([[3.0, 4.0]])), block([3], [4]))
    np.testing.assert_array_equal(filled(np.array([[3.0, 1.0], [3.0, 5.0]])), block([3], slice(1, 6)))
    assert not filled(np.array([[3.5, 1.0], [3.5, 5.0]])).any()


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(3, 12))
def test_random_polygons_as_two_other_implementations_fill_them(seed, corners):
    """Star-shaped polygons with corners that no centre comes near: then all rules for edges agree."""
    rng = np.random.default_rng(seed)
    angle = np.sort(rng.uniform(0, 2 * np.pi, corners))
    polygon = 10 + rng.uniform(2, 9, (corners, 1)) * np.stack([np.sin(angle), np.cos(angle)], axis=1)
    mine = filled(polygon, shape=(21, 21))
    centres = np.stack(np.meshgrid(range(21), range(21), indexing="ij"), -1).reshape(-1, 2)
    to_edge = np.min([distance_to(centres, a, b) for a, b in zip(polygon, np.roll(polygon, -1, axis=0))], axis=0)
    clear = (to_edge > 0.02).reshape(21, 21)
    np.testing.assert_array_equal(mine[clear], points_in_poly(centres, polygon).reshape(21, 21)[clear])
    np.testing.assert_array_equal(mine[clear], polygon2mask((21, 21), polygon)[clear])
    assert mine.reshape(-1)[to_edge < 1e-3].all()


def distance_to(points, a, b):
    part = np.clip((points - a) @ (b - a) / max((b - a) @ (b - a), 1e-12), 0, 1)
    return np.linalg.norm(points - (a + part[:, None] * (b - a)), axis=1)


# How polygons lie to each other


def box(top, left, bottom, right):
    return np.array([[top, left], [top, right], [bottom, right], [bottom, left]], float)


KEYHOLED = np.array([[9, 0.5], [0.5, 0.5], [0.5, 15.5], [15.5, 15.5], [15.5, 0.5], [9, 0.5],  # 15 × 15 with a hole of 7 × 7
                     [9, 4.5], [11.5, 4.5], [11.5, 11.5], [4.5, 11.5], [4.5, 4.5], [9, 4.5]])  # fmt: skip
BIG = box(0.5, 0.5, 15.5, 15.5)


@pytest.mark.parametrize("polygons, groups, over", [
    ([box(0.5, 0.5, 5.5, 5.5), box(3.5, 3.5, 8.5, 8.5)], [(0, 1)], 0),
    ([box(0.5, 0.5, 5.5, 5.5), box(1.5, 1.5, 6.5, 6.5)], [(0, 1)], 0),  # by a voxel, but neither lies in the other
    ([box(0.5, 0.5, 5.5, 5.5), box(2.5, -0.5, 3.5, 9.5)], [(0, 1)], 0),  # a cross
    ([box(0.5, 0.5, 5.5, 5.5), box(3.5, 3.5, 8.5, 8.5), box(10.5, 0.5, 12.5, 2.5), box(7.5, 7.5, 12.5, 12.5)], [(0, 1, 3)], 0),  # a chain
    ([BIG, box(3.5, 3.5, 8.5, 8.5), box(6.5, 6.5, 12.5, 12.5)], [(1, 2)], 0),  # two holes
    ([BIG, box(3.5, 3.5, 8.5, 8.5)], [], 0),  # a hole
    ([box(0.5, 0.5, 5.5, 5.5), box(6.5, 0.5, 9.5, 5.5)], [], 0),  # apart
    ([box(0.5, 0.5, 5.5, 5.5), box(5.5, 0.5, 9.5, 5.5)], [], 0),  # neighbours, of one edge
    ([box(0.5, 0.5, 5.5, 5.5), box(5.495, 0.5, 9.5, 5.5)], [], 0),  # rounded
    ([box(1, 1, 5, 5), box(5, 1, 9, 5)], [], 0),  # through one line of centres, as OpenCV draws them
    ([BIG, box(3, 3, 6, 6), box(6, 3, 9, 6)], [], 0),  # as two holes with a wall of one voxel are drawn by it
    ([BIG, box(0.5, 3.5, 5.5, 8.5)], [], 0),  # a hole that touches the edge
    ([BIG, box(0.3, 3.5, 5.5, 8.5)], [], 0),  # or reaches over it by less than any voxel shows
    ([BIG, box(11.5, 3.5, 16.2, 8.5)], [], 1),  # by a voxel: 5 of them, and 200 are left around
    ([BIG, box(11.5, 3.5, 17.2, 8.5)], [(0, 1)], 0),  # by two
    ([KEYHOLED, box(6.5, 6.5, 8.5, 8.5)], [], 0),  # an island in the hole of a keyhole
    ([KEYHOLED, box(4.5, 4.5, 11.5, 11.5)], [], 0),  # what fills the hole
    ([KEYHOLED, box(12.5, 4.5, 14.5, 9.5)], [], 0),  # a hole in what is around it
    ([KEYHOLED, box(8.5, 1.5, 12.5, 7.5)], [(0, 1)], 0),  # across the keyhole and into the hole
    ([np.array([[3.0, 4.0]]), BIG, box(3, 2, 3, 9)], [], 0),  # a point and a line
    ([BIG], [], 0),
    ([], [], 0),
])  # fmt: skip
def test_polygons_that_cross(polygons, groups, over):
    assert crossing(polygons, (20, 20)) == (groups, over)
    turned = [polygon[::-1] for polygon in reversed(polygons)]
    assert crossing(turned, (20, 20)) == ([tuple(len(polygons) - 1 - i for i in reversed(group)) for group in groups], over)


def test_polygons_that_cross_count_as_one():
    a, b, hole = box(0.5, 0.5, 5.5, 5.5), box(3.5, 3.5, 8.5, 8.5), box(1.5, 1.5, 2.5, 2.5)
    shape, both = (10, 10), block(slice(1, 6), slice(1, 6), (10, 10)) | block(slice(4, 9), slice(4, 9), (10, 10))
    np.testing.assert_array_equal(fill([a, b], (0, 0), shape, [(0, 1)]), both)
    np.testing.assert_array_equal(fill([a, b], (0, 0), shape), both & ~block([4, 4, 5, 5], [4, 5, 4, 5], shape))
    np.testing.assert_array_equal(fill([a, hole, b], (0, 0), shape, [(0, 2)]), both & ~block(2, 2, shape))
    np.testing.assert_array_equal(fill([a, b], (3, 2), (4, 5), [(0, 1)]), both[3:7, 2:7])
    outer = box(-0.5, -0.5, 9.5, 9.5)
    np.testing.assert_array_equal(fill([a, outer, b], (0, 0), shape, [(0, 2)]), ~both)  # holes


def test_edges_within_polygons_that_count_as_one_are_no_voxels_of_a_hole():
    """They run through centres, which belong to what is around the hole only where they are its rim."""
    outer, a, b = box(-0.5, -0.5, 9.5, 9.5), box(1, 1, 5, 5), box(3, 3, 8, 8)
    expected = ~(block(slice(2, 5), slice(2, 5), (10, 10)) | block(slice(4, 8), slice(4, 8), (10, 10)))
    expected[[3, 4], [4, 3]] = False  # on the rim of one, inside of the other
    expected[3, 3] = False
    np.testing.assert_array_equal(fill([outer, a, b], (0, 0), (10, 10), [(1, 2)]), expected)


ANGLE = np.arange(30) / 30 * 2 * np.pi
CURVE = 8 + np.stack([5 * np.sin(ANGLE), 5 * np.cos(ANGLE)], axis=1)


@pytest.mark.parametrize("other, same", [
    (CURVE, True),
    (np.roll(CURVE, 7, axis=0), True),  # another first point
    (CURVE[::-1], True),  # the other way round
    (CURVE[[*range(30), 0]], True),  # its first point again at its end
    (np.repeat(CURVE, 2, axis=0), True),
    (np.round(CURVE, 1), True),
    (np.stack([CURVE, (CURVE + np.roll(CURVE, -1, axis=0)) / 2], 1).reshape(-1, 2), True),  # with points between
    (CURVE + 0.3, False),
    (8 + (CURVE - 8) * 0.95, False),  # the inner side of a wall of a quarter of a voxel
    (CURVE[:20], False),
    (CURVE[:1], False),
])  # fmt: skip
def test_a_polygon_that_is_there_twice(other, same):
    assert repeated([CURVE, other]) == repeated([other, CURVE]) == ({1} if same else set())
    assert repeated([SQUARE, CURVE, SQUARE, other, CURVE]) == ({2, 3, 4} if same else {2, 4})


def test_the_window_of_points():
    assert window_of(SQUARE, (8, 8)) == ((1, 1), (5, 5))
    assert window_of(SQUARE, (8, 3)) == ((1, 1), (5, 2))
    assert window_of(SQUARE - 4, (8, 8)) == ((0, 0), (2, 2))
    assert window_of(SQUARE + 40, (8, 8))[1] == window_of(SQUARE - 40, (8, 8))[1] == (0, 0)
    assert window_of(SQUARE, (8, 8), 1.0) == ((0, 0), (7, 7))


def test_areas():
    assert area_voxels(SQUARE) == area_voxels(SQUARE[::-1]) == 9
    assert area_voxels(np.concatenate([SQUARE, SQUARE])) == 18  # there and once more round
    assert area_voxels(KEYHOLED) == 15 * 15 - 7 * 7 and area_voxels(SQUARE[:2]) == 0


# Masks to polygons


def corners(polygon):
    """Its points, sorted, to a hundredth of a voxel."""
    return sorted(map(tuple, np.round(polygon, 2)))


def test_one_voxel_is_a_diamond_through_its_edges():
    (polygon,) = trace(block([3], [5]))
    assert corners(polygon) == [(2.5, 5), (3, 4.5), (3, 5.5), (3.5, 5)]


def test_a_box_has_eight_corners_on_the_voxels_edges():
    (polygon,) = trace(block(slice(2, 5), slice(1, 7)))
    assert corners(polygon) == [(1.5, 1), (1.5, 6), (2, 0.5), (2, 6.5), (4, 0.5), (4, 6.5), (4.5, 1), (4.5, 6)]


def test_pieces_that_touch_at_a_corner_only_are_two():
    assert len(trace(block([2, 3], [2, 3]))) == 2
    assert trace(np.zeros((4, 4), bool)) == []


def test_a_hole_is_joined_by_a_channel_beside_the_centres():
    mask = block(slice(1, 6), slice(1, 6))
    mask[3, 3] = False
    (polygon,) = trace(mask)
    after = np.roll(polygon, -1, axis=0)
    channel = [(tuple(a), tuple(b)) for a, b in zip(polygon, after) if a[1] == b[1] == 3 + KEYHOLE_VOXELS]
    assert len(channel) == 2 and channel[0] == channel[1][::-1]  # there and back
    assert {round(channel[0][0][0], 2), round(channel[0][1][0], 2)} == {0.5, 2.5}  # from the upper edge to the top of the hole
    back = filled(polygon)
    np.testing.assert_array_equal(back, mask)
    np.testing.assert_array_equal(polygon2mask((8, 8), polygon), mask)  # another reader's keyhole


def test_outer_and_hole_run_in_opposite_directions():
    """So that a reader that fills by winding number, not by even and odd, sees the hole as well."""
    mask = block(slice(1, 7), slice(1, 7))
    mask[3:5, 3:5] = False
    (polygon,) = trace(mask)
    after = np.roll(polygon, -1, axis=0)
    area = abs((polygon[:, 0] * after[:, 1] - polygon[:, 1] * after[:, 0]).sum() / 2)
    assert area == pytest.approx((36 - 0.5) - (4 - 0.5), abs=0.08)  # each ring has four corners of 1/8 cut


def came_back(mask):
    polygons = trace(mask)
    back = fill(polygons, (0, 0), mask.shape) if polygons else np.zeros_like(mask)
    np.testing.assert_array_equal(back, mask)
    assert crossing(polygons, mask.shape) == ([], 0) and repeated(polygons) == set()
    return polygons


def test_points_round_to_voxels_of_the_piece():
    mask = np.random.default_rng(3).random((30, 30)) < 0.7
    for polygon in trace(mask):
        assert mask[tuple(np.rint(polygon).astype(int).T)].all()


def test_rings_within_rings():
    at = np.maximum(*np.abs(np.indices((23, 23)) - 11))
    mask = (at % 4) < 2  # a block of 3 × 3, then rings two voxels thick
    assert len(came_back(mask)) == 3


def test_many_holes_in_a_sieve_and_a_checkerboard():
    sieve = np.ones((40, 40), bool)
    sieve[1::3, 1::3] = False
    assert len(came_back(sieve)) == 1
    assert len(came_back(np.indices((12, 12)).sum(0) % 2 == 0)) == 72


def test_a_hole_open_at_a_corner_is_no_hole():
    mask = block(slice(1, 4), slice(1, 4))
    mask[2, 2] = mask[1, 3] = False
    assert len(came_back(mask)) == 1


@settings(max_examples=200, deadline=None)
@given(arrays.arrays(bool, arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)))
def test_any_mask_comes_back(mask):
    came_back(mask)


@pytest.mark.parametrize("seed", range(5))
def test_large_random_blobs_come_back_and_as_another_reader_fills_them(seed):
    noise = np.random.default_rng(seed).normal(size=(60, 70))
    for _ in range(4):
        noise = (noise + np.roll(noise, 1, 0) + np.roll(noise, 1, 1) + np.roll(noise, -1, 0) + np.roll(noise, -1, 1)) / 5
    mask = noise > 0
    polygons = came_back(mask)
    united = np.any([polygon2mask(mask.shape, polygon) for polygon in polygons], axis=0)  # no exclusive or between contours
    np.testing.assert_array_equal(united, mask)
