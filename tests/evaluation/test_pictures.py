"""An organ's three views: which slices, how much around them, which way up, and outlines in millimetres."""
import io

import numpy as np
import pytest
from PIL import Image

from c2f_nnunet.evaluation import pictures
from c2f_nnunet.evaluation.figures import OverlayCase
from c2f_nnunet.geometry import Box, Geometry


def outline(path):
    """The corners (x, y) of each closed line of SVG path data."""
    lines = [line.removeprefix("M").split() for line in path.split("Z") if line]
    return [sorted(zip(map(float, line[::2]), map(float, line[1::2]))) for line in lines]


def case(reference=True, spacing=(2.0, 1.0, 1.0)):
    """A scan of 40 × 100 × 100 voxels; organ 1 predicted in rows 40–49, its reference 10 voxels behind; organ 3 in the reference only."""
    shape = (40, 100, 100)
    prediction, truth = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    prediction[10:20, 40:50, 30:36] = 1
    truth[10:20, 50:60, 30:36] = 1
    truth[30:34, 80:84, 60:64] = 3
    image = np.full(shape, -1000, np.int16)
    image[20:] = 1000  # the upper half is bright
    return OverlayCase("c", image, Geometry(shape, spacing), truth if reference else None, prediction)


def test_one_outline_is_the_masks_edge_with_its_corners_cut():
    """Two voxels of 3 × 2 mm side by side: the line runs half a voxel from their centres."""
    channels = np.zeros((3, 4), np.uint8)
    channels[1, 1:3] = 2
    (only,) = pictures.contours(channels, (3.0, 2.0))
    assert only.channel == 2
    # centres at x = 3 and 5, y = 4.5 mm; half a voxel on: x ± 1, y ± 1.5
    assert outline(only.path) == [[(2.0, 4.5), (3.0, 3.0), (3.0, 6.0), (5.0, 3.0), (5.0, 6.0), (6.0, 4.5)]]


def test_two_parts_a_hole_and_the_pictures_edge():
    channels = np.zeros((9, 9), np.uint8)
    channels[0:5, 0:5], channels[2, 2], channels[7, 7] = 1, 0, 1
    (only,) = pictures.contours(channels, (1.0, 1.0))
    lines = outline(only.path)
    assert len(lines) == 3 and lines[0][0][0] == 0.0  # closed along the edge, not open there
    assert [(7.0, 7.5), (7.5, 7.0), (7.5, 8.0), (8.0, 7.5)] in lines and [(2.0, 2.5), (2.5, 2.0), (2.5, 3.0), (3.0, 2.5)] in lines
    assert pictures.contours(np.zeros((4, 4), np.uint8), (1.0, 1.0)) == ()


def test_the_cuts_go_through_the_references_centre():
    views = pictures.organ_views(case())
    assert sorted(views) == [1, 3]
    axial, coronal, sagittal = views[1]
    assert [v.plane for v in views[1]] == ["axial", "coronal", "sagittal"]
    # z 10…19 of 2 mm: slice 14; y 50…59: 54; x 30…35: 32 (the lower of two that are equally near)
    assert (axial.place_mm, coronal.place_mm, sagittal.place_mm) == (28.0, 54.0, 32.0)
    assert [c.channel for c in axial.prediction] == [1] and not coronal.prediction  # it lies 10 mm in front of the reference
    alone = pictures.organ_views(case(reference=False))
    assert sorted(alone) == [1] and alone[1][1].place_mm == 44.0 and all(v.reference == () for v in alone[1])


def test_the_window_holds_both_masks_and_a_margin():
    axial, coronal, _ = pictures.organ_views(case())[1]
    assert axial.side_mm == pictures.SMALLEST_SIDE_MM and (axial.width_mm, axial.height_mm) == (70.0, 70.0)  # 20 mm and 2 × 20 are less
    (corners,) = outline(axial.reference[0].path)
    xs, ys = zip(*corners)
    assert max(xs) - min(xs) == pytest.approx(6.0) and max(ys) - min(ys) == pytest.approx(10.0)
    tall = case(spacing=(6.0, 1.0, 1.0))
    coronal = pictures.organ_views(tall)[1][1]
    assert coronal.side_mm == 60 + 2 * pictures.MARGIN_MM and coronal.height_mm == 17 * 6.0  # whole voxels


def test_the_head_is_up_and_the_scans_end_is_black():
    axial, coronal, _ = pictures.organ_views(case())[1]
    grey = np.asarray(Image.open(io.BytesIO(coronal.ct_jpeg)).convert("L"))
    assert grey.shape == (35, 70) and grey[:8].mean() > 240 and grey[-8:].mean() < 5
    assert np.asarray(Image.open(io.BytesIO(axial.ct_jpeg))).max() < 5  # below the bright half
    assert (axial.edges, coronal.edges) == ("RLAP", "RLSI")


def test_boxes():
    channels = np.zeros((3, 4, 5), np.uint8)
    channels[1, 2:4, 0] = 3
    assert pictures.boxes_of(channels) == {3: Box((1, 2, 0), (2, 4, 1))}
    assert pictures.around([Box((1, 2, 0), (2, 4, 1)), Box((0, 3, 2), (1, 4, 5))]) == Box((0, 2, 0), (2, 4, 5))


def test_a_bent_organ_is_cut_where_it_is():
    """The centre of a bow lies outside of it: the nearest slice that meets it is taken."""
    bow = np.zeros((9, 1, 9), bool)
    bow[0:2, :, :], bow[7:9, :, :] = True, True
    assert pictures.centre_voxel(bow, Box((10, 5, 0), (19, 6, 9))) == (11, 5, 4)
