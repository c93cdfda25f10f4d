"""Surface distances: hand-worked cases, and MONAI as an independent implementation."""
import warnings
from functools import partial

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt, gaussian_filter

from c2f_nnunet.errors import C2FError
from c2f_nnunet.evaluation import surface


def box(shape, start, stop):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in zip(start, stop))] = True
    return mask


def blobs(seed, shape=(24, 30, 28), touching_border=False):
    """A random blob and a disturbed copy of it, both not empty."""
    rng = np.random.default_rng(seed)
    smooth = gaussian_filter(rng.normal(size=shape), 3)
    if not touching_border:
        edge = np.pad(np.ones([n - 4 for n in shape]), 2)
        smooth = np.where(edge, smooth, smooth.min())
    other = smooth + 0.3 * smooth.std() * gaussian_filter(rng.normal(size=shape), 1) / 0.12
    return smooth > np.percentile(smooth, 90), other > np.percentile(other, 91)


@pytest.mark.parametrize("step, spacing, expected_mm", [
    ((5, 0, 0), (3.0, 1.0, 1.0), 15.0),  # five slices of 3 mm
    ((0, 3, 4), (3.0, 1.0, 1.0), 5.0),  # 3-4-5 in the plane
    ((0, 0, 0), (3.0, 1.0, 1.0), 0.0),
])
def test_two_single_voxels(step, spacing, expected_mm):
    a, b = np.zeros((2, 9, 9, 9), bool)
    a[1, 1, 1] = True
    b[tuple(1 + n for n in step)] = True
    d = surface.voxel_distances(a, b, spacing)
    assert d.from_reference_mm.tolist() == d.from_prediction_mm.tolist() == [pytest.approx(expected_mm)]
    assert surface.hd95_mm(d) == surface.average_mm(d) == pytest.approx(expected_mm)


def test_a_slab_shifted_by_one_slice():
    # one-slice slabs, one slice of 2 mm apart: every voxel is a surface voxel, and 2 mm from its neighbour
    a, b = box((6, 8, 8), (2, 0, 0), (3, 8, 8)), box((6, 8, 8), (3, 0, 0), (4, 8, 8))
    d = surface.voxel_distances(a, b, (2.0, 1.0, 1.0))
    assert len(d.from_reference_mm) == 64
    assert surface.hd95_mm(d) == surface.average_mm(d) == 2.0


def test_hd95_is_the_larger_of_the_directed_percentiles():
    # reference: 20 voxels in a row; prediction: the same and one more, 30 mm beyond its end
    a = box((1, 1, 60), (0, 0, 0), (1, 1, 20))
    b = a.copy()
    b[0, 0, 49] = True
    d = surface.voxel_distances(a, b, (1.0, 1.0, 1.0))
    # directed: all 0 from the reference; from the prediction twenty 0 and one 30: percentile 95 of 21 values is the 20th = 0
    assert surface.hd95_mm(d) == 0.0
    b[0, 0, 48] = True  # 22 values, two of them far: position 0.95·21 = 19.95 between 0 and 29: 0.95·29
    assert surface.hd95_mm(surface.voxel_distances(a, b, (1.0, 1.0, 1.0))) == pytest.approx(0.95 * 29)
    assert surface.average_mm(surface.voxel_distances(a, b, (1.0, 1.0, 1.0))) == pytest.approx(59 / 42)


def test_surface_voxels_of_a_cube_are_its_shell_also_at_the_border():
    cube = np.ones((4, 4, 4), bool)
    assert surface.surface_voxels(cube).sum() == 4**3 - 2**3
    assert not surface.surface_voxels(cube)[1:3, 1:3, 1:3].any()


def test_surfel_areas_by_hand():
    area = surface.surfel_areas_mm2((3.0, 2.0, 1.0))
    assert area[0] == area[255] == 0
    assert area[0b11110000] == pytest.approx(2.0 * 1.0)  # the lower z half inside: one face of y × x
    assert area[0b11001100] == pytest.approx(3.0 * 1.0)  # the lower y half inside: z × x
    assert area[0b10101010] == pytest.approx(3.0 * 2.0)  # the lower x half inside: z × y
    # one corner inside: a triangle with legs of half a voxel; its area is half the norm of the edges' cross product
    assert area[1] == pytest.approx(0.5 * np.linalg.norm(np.cross([-1.5, 1.0, 0], [-1.5, 0, 0.5])))
    assert np.allclose(area, area[::-1])  # a code and its complement share their surface


def test_surfel_area_of_a_box_is_that_of_its_faces_but_for_the_bevelled_edges():
    mask = box((22, 22, 22), (1, 1, 1), (21, 21, 21))
    d = surface.surfel_distances(mask, mask, (1.0, 1.0, 1.0))
    # 6 faces of 19 × 19 between voxel centres' cells, 12 edges of 19 bevels of √0.5, 8 corner triangles of √3/8
    assert d.weight_reference.sum() == pytest.approx(6 * 19**2 + 12 * 19 * np.sqrt(0.5) + 8 * np.sqrt(3) / 8)


def test_surface_dsc_of_shifted_cubes():
    shape = (24, 24, 24)
    a, b = box(shape, (4, 4, 4), (14, 14, 14)), box(shape, (4, 4, 7), (14, 14, 17))
    d = surface.surfel_distances(a, b, (1.0, 1.0, 1.0))
    assert surface.surface_dsc(d, 3.0) == 1.0  # a shift of 3 voxels of 1 mm is within 3 mm: the tolerance itself counts as within
    near = surface.surface_dsc(d, 2.99)
    assert 0.5 < near < 0.9  # the sides that both share still coincide, the ends do not
    assert surface.surface_dsc(surface.surfel_distances(a, a, (1.0, 1.0, 1.0)), 0.0) == 1.0
    far = box(shape, (20, 20, 20), (22, 22, 22))
    assert surface.surface_dsc(surface.surfel_distances(a, far, (1.0, 1.0, 1.0)), 1.0) == 0.0


def test_surface_dsc_of_two_voxels_by_hand():
    """A voxel's surface lies in the eight cells at its corners, an equal area in each. Its neighbour in x shares four of them: distance 0;
    the other four of each lie one voxel of 1.5 mm from the nearest."""
    a, b = box((5, 5, 6), (2, 2, 2), (3, 3, 3)), box((5, 5, 6), (2, 2, 3), (3, 3, 4))
    d = surface.surfel_distances(a, b, (3.0, 2.0, 1.5))
    assert sorted(d.from_reference_mm) == sorted(d.from_prediction_mm) == [0.0] * 4 + [1.5] * 4
    assert surface.surface_dsc(d, 1.49) == pytest.approx(0.5) and surface.surface_dsc(d, 1.5) == 1.0


Z, Y, X = np.ogrid[:14, :16, :18]


def ball(centre, radius):
    return (Z - centre[0]) ** 2 + (Y - centre[1]) ** 2 + (X - centre[2]) ** 2 <= radius**2


def block(start, stop):
    return box((14, 16, 18), start, stop)


@pytest.mark.parametrize("a, b, spacing, tolerance, share, areas", [
    (ball((6, 7, 8), 5), ball((7, 8, 9), 4.5), (2.5, 1.0, 1.2), 1.5, 0.7893067082429942, (786.6400426089924, 660.773821402194)),
    # two cubes that touch by a corner: cells that marching cubes may cut in two ways
    (block((2, 2, 2), (5, 5, 5)) | block((5, 5, 5), (8, 8, 8)), block((2, 2, 3), (8, 7, 8)), (1.0, 2.0, 3.0), 1.9, 0.4782660729982303,
     (323.106484226401, 539.3175867773289)),
    # crumbs everywhere: many of the 256 codes
    ((7 * Z + 5 * Y + 3 * X) % 4 == 0, (3 * Z + 7 * Y + 5 * X) % 5 == 0, (1.1, 0.9, 3.0), 0.95, 0.9725231367091652,
     (4412.24294961191, 6720.590846909424)),
    # both reach the array's border
    (block((0, 0, 0), (14, 16, 9)), block((0, 0, 0), (14, 16, 11)), (3.0, 1.0, 1.0), 1.5, 0.7515488130573436,
     (2294.1323291763874, 2522.7814398170613)),
])  # fmt: skip
def test_surface_dsc_is_that_of_deepminds_library(a, b, spacing, tolerance, share, areas):
    """share and areas: what surface-distance 0.1 gives, by
    `d = metrics.compute_surface_distances(a, b, spacing); metrics.compute_surface_dice_at_tolerance(d, tolerance)` and the sums of
    `d["surfel_areas_gt"]` and `d["surfel_areas_pred"]`."""
    d = surface.surfel_distances(a, b, spacing)
    assert surface.surface_dsc(d, tolerance) == pytest.approx(share, abs=1e-9)
    assert (d.weight_reference.sum(), d.weight_prediction.sum()) == pytest.approx(areas, rel=1e-9)


def test_distances_are_those_of_an_exact_distance_transform_to_the_last_bit():
    a, b = blobs(5)
    spacing = (2.5, 1.01, 0.977)  # products that floating point cannot hold
    mine = surface.voxel_distances(a, b, spacing).from_reference_mm
    whole = distance_transform_edt(~surface.surface_voxels(b), sampling=spacing)[surface.surface_voxels(a)]
    assert np.array_equal(mine, whole)


@pytest.mark.parametrize("seed, spacing, border", [
    (0, (3.0, 1.1, 0.9), False), (1, (1.0, 1.0, 1.0), False), (2, (0.8, 4.4, 2.0), False), (3, (2.5, 1.0, 1.0), True),
])
def test_against_monai(seed, spacing, border):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch = pytest.importorskip("torch")
        monai = pytest.importorskip("monai.metrics")
    a, b = blobs(seed, touching_border=border)
    y, y_pred = (torch.from_numpy(m[None, None].copy()) for m in (a, b))
    surface_dice = partial(monai.compute_surface_dice, include_background=True, spacing=spacing, use_subvoxels=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hd95 = monai.compute_hausdorff_distance(y_pred, y, include_background=True, percentile=95, spacing=spacing).item()
        there = monai.compute_average_surface_distance(y_pred, y, include_background=True, symmetric=True, spacing=spacing).item()
        # tolerances at which no distance lies exactly: rounding would decide
        shares = {t: surface_dice(y_pred.float(), y.float(), [t]).item() for t in (0.7, 1.3, 2.2)}
    voxels, surfels = surface.voxel_distances(a, b, spacing), surface.surfel_distances(a, b, spacing)
    assert surface.hd95_mm(voxels) == pytest.approx(hd95, abs=1e-4)
    assert surface.average_mm(voxels) == pytest.approx(there, abs=1e-4)
    for tolerance, share in shares.items():
        assert surface.surface_dsc(surfels, tolerance) == pytest.approx(share, abs=1e-4)
        assert 0.05 < share < 0.999  # a comparison that could fail


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 1.1, 0.7), (0.3, 5.0, 2.0)])
def test_every_surfel_area_is_monais(spacing):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        utils = pytest.importorskip("monai.metrics.utils")
    theirs = utils.create_table_neighbour_code_to_surface_area(spacing)[0].numpy()
    np.testing.assert_allclose(surface.surfel_areas_mm2(spacing), theirs, rtol=1e-5, atol=1e-6)


def test_empty_masks_and_different_shapes_are_errors():
    full, empty = np.ones((3, 3, 3), bool), np.zeros((3, 3, 3), bool)
    with pytest.raises(C2FError, match="not empty"):
        surface.voxel_distances(full, empty, (1, 1, 1))
    with pytest.raises(C2FError, match=r"\(3, 3, 3\).*\(3, 3, 4\)"):
        surface.surfel_distances(full, np.ones((3, 3, 4), bool), (1, 1, 1))
