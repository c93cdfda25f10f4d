import numpy as np
import pytest

from c2f_nnunet.geometry import Box, Geometry, boxed
from c2f_nnunet.preparing.crops import back_to_image, crop_geometry, cut, is_mirrored, is_symmetric, mirror
from c2f_nnunet.preparing.resample import AIR_HU

IMAGE = Geometry((12, 14, 21), (2.0, 1.0, 1.0), (-10.0, 5.0, 100.0))


def noise(shape=IMAGE.shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-500, 1000, shape).astype(np.int16)


def test_a_crop_in_the_images_own_spacing_is_the_image(plans):
    hu, member = noise(), plans.fine(("Stem",), (4, 6, 8), IMAGE.spacing_mm)
    grid = crop_geometry(IMAGE, IMAGE.world((5.5, 6.5, 9.5)), IMAGE.spacing_mm, (4, 6, 8))
    crop = cut(hu, IMAGE, "Stem", member, grid)
    assert np.array_equal(crop.hu, hu[4:8, 4:10, 6:14]) and crop.hu.dtype == np.int16
    box, values = back_to_image(crop.hu.astype(np.float32), crop, IMAGE, -1.0)
    assert (box.start, box.stop) == ((4, 4, 6), (8, 10, 14))
    assert values == pytest.approx(hu[box.slices].astype(np.float32))


def test_a_grid_half_a_voxel_off_is_moved_onto_the_images_voxels():
    grid = crop_geometry(IMAGE, IMAGE.world((5, 6, 9)), IMAGE.spacing_mm, (4, 6, 8))  # an even shape about a voxel's centre
    first = IMAGE.index(grid.origin_mm)
    assert first == pytest.approx(np.rint(first)) and np.abs(first - (3.5, 3.5, 5.5)).max() <= 0.5


@pytest.mark.parametrize(("organ", "organs", "mirrored", "symmetric"), [
    ("Gland_L", ("Gland_L", "Gland_R"), True, False),
    ("Gland_R", ("Gland_L", "Gland_R"), False, False),
    ("Gland_L", ("Gland_L",), False, False),  # without a partner there is nothing to agree with
    ("Stem", ("Stem",), False, True),
])  # fmt: skip
def test_who_is_mirrored(organ, organs, mirrored, symmetric, plans):
    member = plans.fine(organs, (4, 4, 4), (1, 1, 1))
    assert is_mirrored(organ, member) == mirrored and is_symmetric(member) == symmetric


def test_mirror_is_its_own_inverse():
    a = noise()
    assert np.array_equal(mirror(mirror(a, True), True), a) and mirror(a, False) is a
    assert np.array_equal(mirror(a, True), a[..., ::-1])


@pytest.mark.parametrize("spacing_mm", [(2.0, 1.0, 1.0), (1.5, 1.3, 1.3)])
def test_both_glands_of_a_symmetric_patient_look_alike(plans, spacing_mm):
    half = noise((12, 14, 30))
    hu = np.concatenate([half, half[..., ::-1]], -1)  # symmetric about x = 29.5
    image, shape = Geometry(hu.shape, (2.0, 1.0, 1.0)), (6, 8, 9)
    member = plans.fine(("Gland_L", "Gland_R"), shape, spacing_mm)
    middle = (np.array(shape) - 1) / 2 * spacing_mm / image.spacing_mm
    right = np.array([2, 3, 8]) + middle  # grids that begin on a voxel, so that neither is moved
    left = np.array([right[0], right[1], 59 - right[2]])
    grids = [crop_geometry(image, image.world(c), spacing_mm, shape) for c in (right, left)]
    if spacing_mm == image.spacing_mm:
        a, b = (cut(hu, image, o, member, g) for o, g in zip(("Gland_R", "Gland_L"), grids))
        assert not a.mirrored and b.mirrored
        assert np.array_equal(a.hu, b.hu)
    else:  # the left one may begin half a voxel of the image elsewhere
        moved = np.abs(image.index(grids[1].origin_mm) - (left - middle))
        assert moved.max() <= 0.5


def test_a_mirrored_crop_comes_back_unmirrored(plans):
    hu, shape = noise(), (6, 6, 7)
    member = plans.fine(("Gland_L", "Gland_R"), shape, IMAGE.spacing_mm)
    crop = cut(hu, IMAGE, "Gland_L", member, crop_geometry(IMAGE, IMAGE.world((5, 6, 12)), IMAGE.spacing_mm, shape))
    assert crop.mirrored and crop.hu.flags.c_contiguous
    box, values = back_to_image(crop.hu.astype(np.float32), crop, IMAGE, 0.0)
    assert values == pytest.approx(hu[box.slices].astype(np.float32))


def test_a_coarser_crop_keeps_its_place(plans):
    """A bright block of the image comes back where it was after a round through 2 mm voxels."""
    hu = np.full(IMAGE.shape, -1000, np.int16)
    hu[3:9, 4:10, 6:14] = 1000
    member = plans.fine(("Gland_L", "Gland_R"), (12, 8, 12), (2.0, 2.0, 2.0))
    grid = crop_geometry(IMAGE, IMAGE.world((5.5, 6.5, 9.5)), member.spacing_mm, member.shape)
    crop = cut(hu, IMAGE, "Gland_L", member, grid)
    box, values = back_to_image(crop.hu.astype(np.float32), crop, IMAGE, -1000.0)
    found = np.argwhere(values > 0) + box.start
    assert found.mean(0) == pytest.approx((5.5, 6.5, 9.5), abs=0.26)


def test_a_crop_partly_outside_is_filled_with_air(plans):
    hu, member = noise(), plans.fine(("Stem",), (4, 6, 8), IMAGE.spacing_mm)
    grid = boxed(IMAGE, Box((-2, 4, 17), (2, 10, 25)))
    crop = cut(hu, IMAGE, "Stem", member, grid)
    assert (crop.hu[:2] == AIR_HU).all() and (crop.hu[..., 4:] == AIR_HU).all()
    assert np.array_equal(crop.hu[2:, :, :4], hu[:2, 4:10, 17:])
    box, values = back_to_image(crop.hu.astype(np.float32), crop, IMAGE, 0.0)
    assert (box.start, box.stop) == ((0, 4, 17), (2, 10, 21))
    assert values == pytest.approx(hu[box.slices].astype(np.float32))


@pytest.mark.parametrize("start", [(0, 0, 40), (-50, 0, 0)])
def test_a_crop_wholly_outside_is_air_and_comes_back_empty(plans, start):
    member = plans.fine(("Stem",), (4, 6, 8), IMAGE.spacing_mm)
    crop = cut(noise(), IMAGE, "Stem", member, boxed(IMAGE, Box(start, tuple(a + n for a, n in zip(start, member.shape)))))
    assert crop.hu.shape == member.shape and (crop.hu == AIR_HU).all()
    box, values = back_to_image(np.ones(member.shape, np.float32), crop, IMAGE, 0.0)
    assert values.size == 0 and values.shape == box.shape


def test_cutting_reads_enough_around_for_the_blur(plans):
    """The crop equals resampling the whole image: what the region leaves out cannot matter."""
    from c2f_nnunet.preparing.resample import resample_hu

    image = Geometry((40, 40, 40), (1.0, 1.0, 1.0))
    hu, member = noise(image.shape), plans.fine(("Stem",), (4, 4, 4), (3.0, 3.0, 3.0))
    grid = crop_geometry(image, image.world((20, 20, 20)), member.spacing_mm, member.shape)
    assert np.abs(cut(hu, image, "Stem", member, grid).hu.astype(int) - resample_hu(hu, image, grid)).max() <= 2
