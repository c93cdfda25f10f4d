"""The patient's box in synthetic scans whose edges are known."""
import time

import numpy as np
import pytest

from c2f_nnunet.data.body import body_anchor_mm, body_box
from c2f_nnunet.geometry import Box, Geometry


def scan(shape=(20, 40, 40), body=Box((0, 8, 10), (18, 30, 32)), outside=-1000):
    array = np.full(shape, outside, np.int16)
    array[body.slices] = 40
    return array


@pytest.mark.parametrize("outside", [-1000, -1024, -3024])
@pytest.mark.parametrize("spacing_mm", [(3, 4, 4), (2.5, 4.6, 4.6), (4, 3, 3), (3, 5.08, 5.08)])
def test_exact_where_the_scan_itself_is_coarse(outside, spacing_mm):
    assert body_box(scan(outside=outside), spacing_mm) == Box((0, 8, 10), (18, 30, 32))


def test_lungs_and_airways_do_not_split_the_body():
    array = scan()
    array[2:10, 12:28, 12:30] = -850
    assert body_box(array, (3, 4, 4)) == Box((0, 8, 10), (18, 30, 32))


def test_couch_and_mask_lines_are_dropped():
    array = scan()
    array[:, 34, 2:38] = 100  # the couch's upper shell, apart from the patient
    array[:, 39, 2:38] = 100  # its lower one, on the border of the scan
    array[:, 5, 8:34] = -100  # the fixation mask
    array[:, 0:34, 36] = -100
    array[0:6, 34:39, 3:8] = 60  # a solid block of the couch, smaller than the patient
    assert body_box(array, (3, 4, 4)) == Box((0, 8, 10), (18, 30, 32))


def test_couch_that_the_patient_lies_on():
    array = scan()
    array[:, 30, :] = 100  # one voxel thick, over the whole width, touching the back
    found = body_box(array, (3, 4, 4))
    # the opening leaves it out; growing back takes its one row of voxels under the body and two voxels to either side
    assert (found.start[1], found.stop[1]) == (8, 31)
    assert 10 - 2 <= found.start[2] and found.stop[2] <= 32 + 2


def test_nose_and_vertex_stay():
    array = scan()
    array[8:11, 5:8, 20:22] = 40  # a nose two voxels wide before the face: thinner than the opening
    array[18, 18:20, 20:22] = 40  # the vertex's last slice
    assert body_box(array, (3, 4, 4)) == Box((0, 5, 10), (19, 30, 32))


def test_body_cut_off_by_the_scans_border():
    array = scan(body=Box((0, 0, 0), (20, 40, 33)))
    assert body_box(array, (3, 4, 4)) == Box((0, 0, 0), (20, 40, 33))


def test_full_size_scan_is_boxed_from_outside_within_one_search_voxel_and_fast():
    rng = np.random.default_rng(0)
    array = rng.normal(-1000, 30, (150, 512, 512)).astype(np.int16)
    body = Box((0, 101, 123), (141, 390, 402))
    array[body.slices] = 30
    array[:, 420:422, 40:480] = 200  # couch shells of 2 mm around foam
    array[:, 422:470, 40:480] = -950
    begin = time.perf_counter()
    found = body_box(array, (2.5, 1.0, 1.0))
    seconds = time.perf_counter() - begin
    assert all(f <= b and f > b - n for f, b, n in zip(found.start[1:], body.start[1:], (4, 4)))
    assert all(f >= b and f < b + n for f, b, n in zip(found.stop, body.stop, (2, 4, 4)))
    assert found.start[0] == 0
    assert found == body_box(array, (2.5, 1.0, 1.0))
    assert seconds < 1.5  # 0.1 s on an idle core; generous for a busy machine


@pytest.mark.parametrize("value", [-1000, 0])
def test_whole_volume_where_there_is_nothing_to_tell(value):
    assert body_box(np.full((4, 5, 6), value, np.int16), (3, 4, 4)) == Box((0, 0, 0), (4, 5, 6))


def test_only_thin_lines_are_no_body():
    array = np.full((10, 20, 20), -1000, np.int16)
    array[:, 10] = 100
    assert body_box(array, (3, 4, 4)) == Box((0, 0, 0), (10, 20, 20))


def test_very_coarse_scans_are_not_opened():
    array = scan(body=Box((3, 8, 10), (9, 10, 12)))  # two voxels of 8 mm
    assert body_box(array, (8, 8, 8)) == Box((3, 8, 10), (9, 10, 12))


def test_anchor_is_the_middle_of_the_superior_face():
    geometry = Geometry((10, 20, 30), (3.0, 2.0, 1.0), origin_mm=(100.0, 200.0, 300.0))
    # voxels 2–3 along x have their middle at index 2.5; z ends at the face between index 7 and 8
    assert body_anchor_mm(geometry, Box((0, 4, 2), (8, 6, 4))) == pytest.approx((300 + 3 * 7.5, 200 + 2 * 4.5, 100 + 2.5))
