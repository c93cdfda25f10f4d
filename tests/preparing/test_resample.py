from dataclasses import replace

import numpy as np
import pytest

from c2f_nnunet.geometry import Box, Geometry, boxed, canonical_geometry, reorientation, respaced, to_canonical
from c2f_nnunet.preparing.resample import AIR_HU, covering_box, resample, resample_hu, resample_labels, resample_map

FLIPPED = ((0.0, 0.0, -1.0), (0.0, -1.0, 0.0), (1.0, 0.0, 0.0))  # x and y run the other way
TURNED = ((0.0, 1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0))  # array axes follow y, x, z
CENTRE = np.array([12.0, 20.0, 35.0])  # world x, y, z in mm
GRIDS = {
    "isotropic": Geometry((70, 60, 50), (1.0, 1.0, 1.0), (-10.0, -8.0, 2.0)),
    "anisotropic": Geometry((24, 60, 40), (3.0, 1.0, 1.25), (-10.0, -8.0, 2.0)),
    "flipped": Geometry((35, 30, 25), (2.0, 2.0, 2.0), (38.3, 50.4, 2.3), FLIPPED),
    "turned": Geometry((60, 50, 35), (1.0, 1.0, 2.0), (-10.0, -8.0, 2.0), TURNED),
}


def ball(grid: Geometry, radius=12.0, centre=CENTRE) -> np.ndarray:
    """A ball with an edge of some 2 mm, 0…1000, drawn in world coordinates."""
    world = grid.world(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1))
    return (1000 * np.clip((radius - np.linalg.norm(world - centre, axis=-1)) / 2 + 0.5, 0, 1)).astype(np.float32)


def world_centroid(array: np.ndarray, grid: Geometry) -> np.ndarray:
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    return grid.world((index * array[..., None]).reshape(-1, 3).sum(0) / array.sum())


def dsc(a, b) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize("source", GRIDS)
@pytest.mark.parametrize("target", GRIDS)
def test_a_ball_stays_at_its_place_in_the_world(source, target):
    out = resample(ball(GRIDS[source]), GRIDS[source], GRIDS[target], 0.0)
    assert out.dtype == np.float32 and out.shape == GRIDS[target].shape
    assert world_centroid(out, GRIDS[target]) == pytest.approx(CENTRE, abs=0.1)  # a half-voxel shift would be 0.5 mm and more
    assert dsc(out > 500, ball(GRIDS[target]) > 500) > 0.95


def test_values_are_exact_where_the_field_is_linear():
    fine, coarse = Geometry((20, 20, 20), (1.0, 1.0, 1.0)), Geometry((6, 6, 6), (2.0, 2.0, 2.0), (4.0, 4.0, 4.0))
    x, y, z = np.moveaxis(fine.world(np.stack(np.meshgrid(*map(np.arange, fine.shape), indexing="ij"), -1)), -1, 0)
    out = resample(x + 10 * y + 100 * z, fine, coarse, 0.0, smooth=False)
    assert out[0, 0, 0] == pytest.approx(444) and out[5, 0, 1] == pytest.approx(14 * 100 + 40 + 6)


def test_the_same_grid_changes_nothing():
    grid = GRIDS["anisotropic"]
    array = np.random.default_rng(0).integers(-1024, 3000, grid.shape).astype(np.int16)
    assert np.array_equal(resample_hu(array, grid, grid), array)


def test_edges_coincide_for_respaced_grids():
    fine = Geometry((8, 8, 8), (1.0, 1.0, 1.0))
    ramp = np.broadcast_to(np.arange(8.0)[:, None, None], fine.shape)
    out = resample(ramp, fine, respaced(fine, (2.0, 2.0, 2.0)), 0.0, smooth=False)
    assert out[:, 2, 2] == pytest.approx([0.5, 2.5, 4.5, 6.5])  # a voxel of 2 mm lies between two of 1 mm


def test_outside_is_filled():
    small, large = Geometry((4, 4, 4), (1.0, 1.0, 1.0)), Geometry((4, 4, 12), (1.0, 1.0, 1.0), (-4.0, 0.0, 0.0))
    out = resample_hu(np.full((4, 4, 4), 100, np.int16), small, large)
    assert out[0, 0].tolist() == [AIR_HU] * 4 + [100] * 4 + [AIR_HU] * 4


def test_coarse_targets_do_not_alias():
    """Slices of 1 mm that alternate between -500 and 500: at 4 mm only their mean is left."""
    fine, coarse = Geometry((64, 8, 8), (1.0, 1.0, 1.0)), Geometry((12, 8, 8), (4.0, 1.0, 1.0), (0.0, 0.0, 6.0))
    stripes = np.where(np.arange(64)[:, None, None] % 2, 500.0, -500.0) * np.ones((64, 8, 8))
    assert np.abs(resample(stripes, fine, coarse, 0.0)).max() < 25
    assert np.abs(resample(stripes, fine, coarse, 0.0, smooth=False)).max() > 400


def test_integers_are_rounded_and_kept_in_range():
    grid, half = Geometry((1, 1, 4), (1.0, 1.0, 1.0)), Geometry((1, 1, 3), (1.0, 1.0, 1.0), (0.5, 0.0, 0.0))
    assert resample_hu(np.array([[[0, 3, 4, 8]]], np.int16), grid, half).tolist() == [[[2, 4, 6]]]  # 1.5 and 3.5 to even
    assert resample_hu(np.array([[[1e6, -1e6, 0, 0]]], np.float32), grid, grid)[0, 0, :2].tolist() == [32767, -32768]


# --- labels


def test_labels_on_the_same_grid_are_identical():
    grid = GRIDS["anisotropic"]
    labels = np.random.default_rng(1).integers(0, 5, grid.shape).astype(np.uint8)  # every voxel an edge
    out = resample_labels(labels, grid, grid)
    assert out.dtype == np.uint8 and np.array_equal(out, labels)


@pytest.mark.parametrize("there", ["anisotropic", "flipped", "turned"])
def test_labels_on_another_grid_are_what_one_would_draw_there(there):
    home, grid, above = GRIDS["isotropic"], GRIDS[there], CENTRE + (0, 0, 25)
    labels = np.where(ball(home) > 500, 3, 0).astype(np.uint8)
    labels[ball(home, 10.0, above) > 500] = 7
    out = resample_labels(labels, home, grid)
    assert dsc(out == 3, ball(grid) > 500) > 0.95
    assert dsc(out == 7, ball(grid, 10.0, above) > 500) > 0.95
    assert set(np.unique(out)) == {0, 3, 7}


@pytest.mark.parametrize("there", ["anisotropic", "flipped", "turned"])
def test_labels_round_trip(there):
    home = GRIDS["isotropic"]
    labels = np.where(ball(home, 14.0) > 500, 3, 0).astype(np.uint8)
    back = resample_labels(resample_labels(labels, home, GRIDS[there]), GRIDS[there], home)
    assert dsc(labels == 3, back == 3) > 0.95


def test_touching_labels_leave_no_gap_and_the_larger_share_wins():
    fine, coarse = Geometry((6, 6, 12), (1.0, 1.0, 1.0)), Geometry((2, 2, 4), (3.0, 3.0, 3.0), (1.0, 1.0, 1.0))
    labels = np.ones(fine.shape, np.uint8)
    labels[..., 7:] = 2  # coarse voxels hold columns 0–2, 3–5, 6–8, 9–11
    assert resample_labels(labels, fine, coarse)[0, 0].tolist() == [1, 1, 2, 2]


def test_a_label_cut_off_by_the_scans_end_reaches_the_end():
    fine, coarse = Geometry((12, 9, 9), (1.0, 1.0, 1.0)), Geometry((4, 3, 3), (3.0, 3.0, 3.0), (1.0, 1.0, 1.0))
    labels = np.zeros(fine.shape, np.uint8)
    labels[:6, :, 3:6] = 1  # as the cord at the lowest slice
    assert resample_labels(labels, fine, coarse)[:, :, 1].tolist() == [[1, 1, 1], [1, 1, 1], [0, 0, 0], [0, 0, 0]]


def test_labels_outside_the_target_do_not_matter():
    source, target = Geometry((4, 4, 20), (1.0, 1.0, 1.0)), Geometry((4, 4, 4), (1.0, 1.0, 1.0))
    labels = np.zeros(source.shape, np.uint16)
    labels[..., 15:] = 300
    assert not resample_labels(labels, source, target).any()
    assert not resample_labels(np.zeros((4, 4, 20), np.uint8), source, target).any()


def test_a_thin_organ_survives_in_a_coarser_scan():
    """A tube of 2 mm radius along x, whose log-odds on a grid of 2.5 × 1 × 1 mm fall from 5 within to -12 outside, in slices of 5 mm."""
    grid, image = Geometry((20, 30, 30), (2.5, 1.0, 1.0)), Geometry((10, 30, 30), (5.0, 1.0, 1.0), (0.0, 0.0, 1.25))
    x, y, z = np.moveaxis(grid.world(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)), -1, 0)
    values = np.clip(5 * (2.0 - np.hypot(y - 15, z - 26.25)), -12, 5).astype(np.float32)  # its middle lies in the middle of a slice
    there = resample_map(values, grid, image, Box((0, 0, 0), image.shape), -12.0) > 0
    assert there[5, 14:17, :].all() and there.sum() == 3 * 30
    assert (resample(values, grid, image, -12.0) > 0).sum() == 0  # as an image is resampled: blurred away


@pytest.mark.parametrize("end", [0, 1])
def test_a_map_does_not_taper_at_the_scans_end(end):
    """Slices of 2.5 mm, a grid of 3 mm that begins and ends beyond them: what is sure in the last slices stays so."""
    image = Geometry((20, 4, 4), (2.5, 3.0, 3.0), (0.0, 0.0, 0.0))
    grid = Geometry((20, 4, 4), (3.0, 3.0, 3.0), (0.0, 0.0, (-5.0, -4.0)[end]))
    z = grid.world([(i, 0, 0) for i in range(20)])[:, 2]
    inside = (z >= -1.25) & (z <= 48.75)
    assert not inside[0] and not inside[-1]
    values = np.broadcast_to(np.where(inside, 6.0, -10.0)[:, None, None], grid.shape).astype(np.float32)  # beyond the scan is air: no organ
    assert (resample_map(values, grid, image, Box((0, 0, 0), image.shape), -12.0) == 6.0).all()
    part = Box((18, 0, 0), (20, 4, 4)) if end else Box((0, 0, 0), (2, 4, 4))
    assert (resample(values, grid, boxed(image, part), -12.0, smooth=False) < 6.0).any()  # as an image is resampled


def test_a_map_is_unchanged_within_the_scan_and_filled_beyond_its_grid():
    image, values = Geometry((8, 8, 8), (2.0, 2.0, 2.0)), np.random.default_rng(0).normal(size=(4, 4, 4)).astype(np.float32)
    grid = boxed(image, Box((2, 2, 2), (6, 6, 6)))
    back = resample_map(values, grid, image, Box((0, 0, 0), (8, 8, 8)), np.nan)
    assert back[2:6, 2:6, 2:6] == pytest.approx(values, abs=1e-6) and np.isnan(back).sum() == 8**3 - 4**3


def test_covering_box():
    grid = Geometry((10, 10, 10), (2.0, 2.0, 2.0))
    part = Geometry((4, 4, 4), (1.0, 1.0, 1.0), (1.5, 1.5, 1.5))  # 1…5 mm; the grid's voxels reach from -1, 1, 3, 5 mm on
    assert covering_box(part, grid).start == (1, 1, 1) and covering_box(part, grid).stop == (3, 3, 3)
    moved = covering_box(replace(part, origin_mm=(1.6, -20.0, 1.5)), grid)  # x a little further, y far outside
    assert (moved.start[2], moved.stop[2]) == (1, 4) and moved.stop[1] <= 0  # not clipped


def test_a_canonical_view_of_a_turned_scan_is_resampled_to_the_same_place():
    grid = GRIDS["flipped"]
    turn = reorientation(grid)
    canonical = canonical_geometry(grid, turn)
    a = resample(ball(grid), grid, GRIDS["isotropic"], 0.0)
    b = resample(to_canonical(ball(grid), turn), canonical, GRIDS["isotropic"], 0.0)
    assert a == pytest.approx(b, abs=0.01)
