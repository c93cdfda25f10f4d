"""Masks into one label map: the smaller organ keeps shared voxels, in whatever order the masks come."""
from itertools import permutations

import numpy as np
import pytest

from c2f_nnunet.errors import ImageError
from c2f_nnunet.geometry import Box, Geometry, boxed, crop
from c2f_nnunet.io.images import read_image, read_label
from tests.dataset_conversion.sources import GRID, ct, load, mask, nrrd

masks = load("parts.masks")
LINE = (1, 1, 8)


def line(text: str) -> np.ndarray:
    """A mask of eight voxels in a row."""
    return np.array([int(c) for c in text], bool).reshape(LINE)


LARGE, MIDDLE, SMALL = line("11111100"), line("00001110"), line("00000100")


@pytest.mark.parametrize("order", list(permutations([(1, LARGE), (2, MIDDLE), (3, SMALL)])))
def test_smaller_organ_keeps_what_is_shared_in_any_order(order):
    merged = masks.merge_masks(order, LINE, np.uint8)
    assert merged.labels.ravel().tolist() == [1, 1, 1, 1, 2, 3, 2, 0] and merged.labels.dtype == np.uint8
    assert merged.sizes == {1: 6, 2: 3, 3: 1}


def test_overlaps_are_counted_for_each_pair():
    merged = masks.merge_masks([(1, LARGE), (2, MIDDLE), (3, SMALL)], LINE, np.uint8)
    assert merged.overlaps == {(2, 1): 2, (3, 2): 1}  # the small one took its voxel from the middle one, which had it from the large one


def test_equal_sizes_go_to_the_lower_id_and_empty_masks_change_nothing():
    same = np.array([[[1, 1, 0, 0]]], bool)
    merged = masks.merge_masks([(5, same), (2, same), (3, np.zeros_like(same))], same.shape, np.uint16)
    assert merged.labels.ravel().tolist() == [2, 2, 0, 0] and merged.sizes == {5: 2, 2: 2, 3: 0} and merged.overlaps == {(2, 5): 2}


def test_a_mask_cut_to_a_box_is_put_in_its_place(tmp_path):
    whole = mask((2, 5), (1, 4), (6, 9))
    box = Box((2, 1, 5), (6, 5, 10))
    cut = read_label(nrrd(tmp_path / "organ.seg.nrrd", crop(whole, box), boxed(GRID, box)))
    np.testing.assert_array_equal(masks.on_grid(cut, GRID), whole)
    image = read_image(nrrd(tmp_path / "ct.nrrd", ct()))
    (organ, found), = masks.masks_of(image, {"Organ": tmp_path / "organ.seg.nrrd"})
    assert organ == "Organ" and found.dtype == bool
    np.testing.assert_array_equal(found, whole)


@pytest.mark.parametrize("geometry", [
    Geometry(GRID.shape, (3.0, 1.0, 1.6), GRID.origin_mm),  # another spacing
    Geometry(GRID.shape, GRID.spacing_mm, (10.0, -20.0, 31.5)),  # half a voxel higher
    Geometry(GRID.shape, GRID.spacing_mm, (11.5, -20.0, 30.0)),  # a whole voxel to the left, so that it reaches beyond the CT
])  # fmt: skip
def test_a_mask_on_another_grid_is_refused(tmp_path, geometry):
    other = read_label(nrrd(tmp_path / "organ.nrrd", mask((2, 5), (1, 4), (6, 9)), geometry))
    with pytest.raises(ImageError, match=r"organ\.nrrd: its grid of .* is neither the CT's of .* nor a part of it; export the mask"):
        masks.on_grid(other, GRID)
