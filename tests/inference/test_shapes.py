"""Shapes of all organs of a label map in one pass."""
import numpy as np
import pytest

from c2f_nnunet.geometry import Box
from c2f_nnunet.inference.shapes import Shape, shapes

ORGANS = ("A", "B", "C")


def test_voxels_components_centroid_and_box():
    channels = np.zeros((5, 6, 7), np.uint8)
    channels[1, 1, 1:4] = 1  # three voxels, and a fourth that touches only by a corner: one component
    channels[2, 2, 4] = 1
    channels[4, 5, 6] = 1  # a loose one
    channels[1, 2, 1] = 2  # a neighbour of another organ joins nothing
    found = shapes(channels, ORGANS)
    assert list(found) == ["A", "B"]
    middle = pytest.approx(((3 * 1 + 2 + 4) / 5, (3 * 1 + 2 + 5) / 5, (1 + 2 + 3 + 4 + 6) / 5))
    assert found["A"] == Shape(5, 2, 0.8, middle, Box((1, 1, 1), (5, 6, 7)))
    assert found["B"] == Shape(1, 1, 1.0, (1.0, 2.0, 1.0), Box((1, 2, 1), (2, 3, 2)))


def test_an_empty_map_has_no_shapes():
    assert shapes(np.zeros((3, 3, 3), np.uint8), ORGANS) == {}


def test_more_than_255_organs():
    channels = np.zeros((2, 2, 2), np.uint16)
    channels[0, 0, 0] = 300
    assert list(shapes(channels, tuple(map(str, range(1, 301))))) == ["300"]
