import numpy as np
import pytest

from c2f_nnunet.geometry import Box
from c2f_nnunet.inference.tiles import tile_starts, tile_weight, tiles


@pytest.mark.parametrize(("length", "tile", "overlap", "expected"), [
    (8, 8, 0.25, [0]),
    (5, 8, 0.25, [-2]),  # centred, as in training: (5 - 8) // 2
    (9, 8, 0.25, [0, 1]),
    (14, 8, 0.25, [0, 6]),  # neighbours share exactly 2 of 8
    (15, 8, 0.25, [0, 4, 7]),  # one more voxel needs one more tile; 3.5 to even
    (20, 10, 0.25, [0, 5, 10]),  # 2.5 voxels must be shared: 3 in whole ones
    (3, 1, 0.0, [0, 1, 2]),
])  # fmt: skip
def test_starts(length, tile, overlap, expected):
    assert tile_starts(length, tile, overlap) == expected


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
@pytest.mark.parametrize("tile", [7, 8, 10])
def test_every_voxel_is_covered_and_neighbours_overlap(tile, overlap):
    for length in range(1, 60):
        starts = tile_starts(length, tile, overlap)
        seen = {i for s in starts for i in range(s, s + tile)}
        assert set(range(length)) <= seen
        if length > tile:
            assert starts[0] == 0 and starts[-1] == length - tile
            assert all(a + tile - b >= overlap * tile for a, b in zip(starts, starts[1:]))


def test_a_low_volume_lies_at_the_tiles_top():
    assert tiles((5, 4, 4), (8, 4, 4)) == [Box((-3, 0, 0), (5, 4, 4))]
    assert tiles((5, 4, 4), (8, 4, 4), top_axis_zero=False) == [Box((-2, 0, 0), (6, 4, 4))]


def test_tiles_of_all_axes():
    found = tiles((14, 4, 9), (8, 4, 8))
    assert [b.start for b in found] == [(0, 0, 0), (0, 0, 1), (6, 0, 0), (6, 0, 1)]
    assert {b.shape for b in found} == {(8, 4, 8)}


def test_weights_fall_towards_the_faces():
    w = tile_weight((8, 9))
    assert w.shape == (8, 9) and w.dtype == np.float32
    assert np.array_equal(w, w[::-1]) and np.array_equal(w, w[:, ::-1])
    assert w.max() == w[3, 4] and w.min() == pytest.approx(0.01)
    assert w[3, 4] == pytest.approx(np.exp(-0.5 * 0.5**2))  # half a voxel from the middle, sigma one voxel
    assert tile_weight((1, 4)).shape == (1, 4)
