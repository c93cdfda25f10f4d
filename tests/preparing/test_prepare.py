from dataclasses import replace

import numpy as np
import pytest

from c2f_nnunet.data.body import body_anchor_mm, body_box
from c2f_nnunet.geometry import Box, Geometry
from c2f_nnunet.planning.plan import OrganPrior
from c2f_nnunet.preparing.prepare import BODY_MARGIN_VOXELS, jitter_voxels, prepare_labels, prepare_volume, training_crop, usual_place_mm
from c2f_nnunet.preparing.resample import AIR_HU

GRID = Geometry((30, 40, 50), (4.0, 4.0, 4.0), (-50.0, 20.0, -300.0))
BODY = Box((4, 8, 10), (24, 32, 42))  # 20 × 24 × 32 voxels


def scan(grid=GRID, body=BODY) -> np.ndarray:
    hu = np.full(grid.shape, -1000, np.int16)
    hu[body.slices] = np.random.default_rng(0).integers(0, 100, body.shape)
    return hu


def test_the_volume_holds_the_body_and_its_anchor(plans):
    prepared = prepare_volume(scan(), GRID, plans.coarse((64, 64, 64), (4.0, 4.0, 4.0)))
    m = BODY_MARGIN_VOXELS
    assert body_box(scan(), GRID.spacing_mm) == BODY
    assert prepared.hu.shape == tuple(n + 2 * m for n in BODY.shape)
    assert np.array_equal(prepared.hu[m:-m, m:-m, m:-m], scan()[BODY.slices])
    assert prepared.anchor_index == pytest.approx((m + BODY.shape[0] - 0.5, m + 11.5, m + 15.5))
    at = prepared.geometry.world(prepared.anchor_index)
    assert at[::-1] == pytest.approx(body_anchor_mm(GRID, BODY))


@pytest.mark.parametrize("spacing_mm", [(3.0, 5.0, 5.0), (4.0, 4.0, 4.0), (2.0, 2.0, 2.0)])
def test_the_anchor_is_one_place_in_the_world_in_every_spacing(spacing_mm, plans):
    prepared = prepare_volume(scan(), GRID, plans.coarse((200, 200, 200), spacing_mm))
    at = prepared.geometry.world(prepared.anchor_index)
    assert at[::-1] == pytest.approx(body_anchor_mm(GRID, BODY))


def test_a_wide_body_is_cut_about_its_anchor_but_not_its_height(plans):
    prepared = prepare_volume(scan(), GRID, plans.coarse((8, 16, 16), (4.0, 4.0, 4.0)))
    assert prepared.hu.shape == (BODY.shape[0] + 2 * BODY_MARGIN_VOXELS, 16, 16)
    assert prepared.anchor_index[1:] == pytest.approx((7.5, 7.5))  # in the middle
    assert np.array_equal(prepared.hu[2:-2], scan()[4:24, 12:28, 18:34])


def test_a_body_at_the_scans_edge_has_air_around(plans):
    body = Box((0, 8, 10), (30, 32, 42))
    prepared = prepare_volume(scan(body=body), GRID, plans.coarse((64, 64, 64), (4.0, 4.0, 4.0)))
    assert prepared.hu.shape[0] == 34 and (prepared.hu[:2] == AIR_HU).all() and (prepared.hu[-2:] == AIR_HU).all()


@pytest.mark.parametrize("spacing_mm", [(4.0, 4.0, 4.0), (5.0, 3.0, 3.0)])
def test_restore_brings_a_map_back_to_its_place(spacing_mm, plans):
    prepared = prepare_volume(scan(), GRID, plans.coarse((64, 64, 64), spacing_mm))
    centre = np.array(GRID.world((14.0, 20.0, 26.0)))
    index = np.stack(np.meshgrid(*map(np.arange, prepared.hu.shape), indexing="ij"), -1)
    values = (20 - np.linalg.norm(prepared.geometry.world(index) - centre, axis=-1)).astype(np.float32)  # above 0: a ball of 20 mm
    inside = np.argwhere(values > 0)
    box = Box(tuple(map(int, inside.min(0))), tuple(map(int, inside.max(0) + 1)))
    where, back = prepared.restore(values, GRID, box, -9.0)
    found = np.argwhere(back > 0) + where.start
    assert found.mean(0) == pytest.approx((14, 20, 26), abs=0.2)
    assert len(found) * GRID.voxel_mm3 == pytest.approx(4 / 3 * np.pi * 20**3, rel=0.1)
    if spacing_mm == GRID.spacing_mm:
        expected = 20 - np.linalg.norm(GRID.world(found) - centre, axis=-1)
        assert back[tuple((found - where.start).T)] == pytest.approx(expected, abs=1e-4)


def test_labels_lie_where_the_image_shows_them(plans):
    labels = np.zeros(GRID.shape, np.uint8)
    labels[10:16, 14:20, 20:30] = 2
    hu = scan()
    hu[labels == 2] = 1000
    prepared = prepare_volume(hu, GRID, plans.coarse((64, 64, 64), (4.0, 4.0, 4.0)))
    out = prepare_labels(labels, GRID, prepared.geometry)
    assert np.array_equal(out == 2, prepared.hu == 1000)


# --- crops


@pytest.mark.parametrize("size", [5, 6])  # an odd and an even organ in an even crop
def test_a_training_crop_in_the_scans_spacing_loses_no_voxel(size, plans):
    mask = np.zeros(GRID.shape, bool)
    mask[10:10 + size, 12:12 + size, 30:30 + size] = True
    member = plans.fine(("Gland_L", "Gland_R"), (8, 8, 8), GRID.spacing_mm, jitter_mm=(4.0, 4.0, 4.0))
    hu, labels, grid = training_crop(np.where(mask, 500, 0).astype(np.int16), mask, GRID, "Gland_R", member, jitter_voxels(member))
    assert hu.shape == labels.shape == grid.shape == (10, 10, 10)
    assert labels.sum() == size**3 and np.array_equal(labels == 1, hu == 500)
    assert np.abs(np.argwhere(labels).mean(0) - 4.5).max() <= 0.5  # in the middle


def test_a_left_organ_is_mirrored_with_its_label(plans):
    mask = np.zeros(GRID.shape, bool)
    mask[10:14, 12:16, 30:36] = True
    hu = np.zeros(GRID.shape, np.int16)
    hu[mask] = 100
    hu[10:14, 12:16, 35] = 900  # brightest at the patient's left
    member = plans.fine(("Gland_L", "Gland_R"), (8, 8, 8), GRID.spacing_mm)
    for organ, column in (("Gland_R", 6), ("Gland_L", 1)):
        image, labels, _ = training_crop(hu, mask, GRID, organ, member, (0, 0, 0))
        assert (image[..., column] == 900).any() and np.array_equal(image > 0, labels == 1)


def test_an_organ_without_a_voxel_has_no_crop(plans):
    member = plans.fine(("Stem",), (8, 8, 8), GRID.spacing_mm)
    nothing = np.zeros(GRID.shape, bool)
    assert training_crop(scan(), nothing, GRID, "Stem", member, (1, 1, 1)) is None
    hu, labels, grid = training_crop(scan(), nothing, GRID, "Stem", member, (1, 1, 1), place_mm=GRID.world((12, 20, 30)))
    assert hu.shape == (10, 10, 10) and not labels.any()
    assert np.abs(GRID.index(grid.world((4.5, 4.5, 4.5))) - (12, 20, 30)).max() <= 0.5


def test_the_usual_place_is_measured_from_the_bodys_anchor():
    """BODY's top face lies at index 23.5 in z, its middle at 19.5 in y and 25.5 in x."""
    prior = OrganPrior("Stem", (-10.0, 3.0, -4.0), (1.0,) * 3, (10.0,) * 3, (1.0,) * 3)
    assert usual_place_mm(scan(), GRID, prior) - GRID.world((23.5, 19.5, 25.5)) == pytest.approx((-4.0, 3.0, -10.0))  # x, y, z
    assert usual_place_mm(scan(), GRID, replace(prior, centre_mm=(-500.0, 0.0, 0.0))) is None


def test_jitter_in_voxels(plans):
    assert jitter_voxels(plans.fine(("Stem",), (8, 8, 8), (3.0, 2.0, 1.0), jitter_mm=(7.0, 4.0, 2.5))) == (3, 2, 3)
    assert jitter_voxels(plans.fine(("Stem",), (8, 8, 8), (3.0, 2.0, 1.0))) == (1, 1, 1)
