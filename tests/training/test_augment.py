"""Augmentation on small volumes whose changes can be seen by eye."""
import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from c2f_nnunet.labels import LabelSet
from c2f_nnunet.planning.plan import LossPlan, TrainingPlan
from c2f_nnunet.training.augment import (
    PRESETS, AffineInMm, EndOfScan, LeftRightMirror, OnIntensities, Preset, _intensity_transforms, make_transforms, rotation_limits, seeded,
)

LABELS = LabelSet(("Brainstem", "Parotid_L", "Parotid_R"), (1, 2, 3))
SWAP = LABELS.mirrored_channel  # (0, 1, 3, 2)
KNOWN = torch.tensor([True, True, True, False])  # the right parotid is not annotated


def sample(shape=(6, 8)):
    """Channels: an intensity, a left-right coordinate (odd about the middle), a vertical one; a left parotid at the right edge."""
    across = torch.linspace(-1, 1, shape[-1]).expand(shape)
    down = torch.linspace(0, 1, shape[-2]).view(-1, 1).expand(shape)
    segmentation = torch.zeros(1, *shape, dtype=torch.int16)
    segmentation[..., 2, 6] = 2
    segmentation[..., 3, 3] = 1
    return torch.stack([across + 10 * down, across, down]), segmentation


def always(mirror):
    mirror.get_parameters = lambda **_: {"mirrored": True, "axes": mirror.allowed_axes}
    return mirror


def test_mirror_swaps_labels_sides_and_coordinates():
    image, segmentation = sample()
    before = image.clone()
    out = always(LeftRightMirror(1, SWAP, odd_channels=(1,)))(image=image, segmentation=segmentation, known=KNOWN)
    assert torch.equal(out["image"][0], before[0].flip(1))
    torch.testing.assert_close(out["image"][1], before[1])  # a flipped odd coordinate with its sign changed is itself
    assert torch.equal(out["image"][2], before[2])
    assert out["segmentation"].dtype == torch.int16
    assert out["segmentation"].nonzero().tolist() == [[0, 2, 1], [0, 3, 4]]
    assert (out["segmentation"][0, 2, 1], out["segmentation"][0, 3, 4]) == (3, 1)  # what was the left parotid is a right one
    assert out["known"].tolist() == [True, True, False, True]  # and the organ not annotated is now the left one
    assert torch.equal(image, before)


def test_mirror_of_a_sagittal_slice_changes_position_order_and_labels_only():
    image = torch.stack([torch.full((2, 2), v) for v in (1.0, 2.0, 3.0, 0.4)])  # three neighbouring slices, their position
    segmentation = torch.tensor([[[0, 2], [1, 3]]], dtype=torch.int16)
    mirror = always(LeftRightMirror(None, SWAP, odd_channels=(3,), mirrored_input=(2, 1, 0, 3)))
    out = mirror(image=image, segmentation=segmentation, known=KNOWN)
    assert out["image"][:, 0, 0].tolist() == pytest.approx([3, 2, 1, -0.4])
    assert out["segmentation"].tolist() == [[[0, 3], [1, 2]]]
    assert image[3, 0, 0] == pytest.approx(0.4)


def test_mirror_happens_half_of_the_time_along_left_right_alone():
    image, segmentation = sample()
    mirror = LeftRightMirror(1, SWAP)
    with seeded(3):
        outs = [mirror(image=image, segmentation=segmentation, known=KNOWN)["segmentation"] for _ in range(200)]
    places = [tuple((out[0] == 1).nonzero()[0].tolist()) for out in outs]
    assert set(places) == {(3, 3), (3, 4)}  # row 3 always
    assert 70 < places.count((3, 4)) < 130


@pytest.mark.parametrize(
    "preset, arguments, mirrors",
    [
        ("full", {"mirror_axis": 1, "mirrored_channel": SWAP}, True),
        ("full", {"mirror_axis": None, "mirrored_channel": SWAP, "odd_channels": (1,)}, True),
        ("full", {"mirror_axis": None, "mirrored_channel": SWAP}, False),  # nothing in the sample tells the sides apart
        ("full", {"mirror_axis": 1}, False),  # a sided organ lacks its partner
        ("paper", {"mirror_axis": 1, "mirrored_channel": SWAP}, False),
    ],
)
def test_when_a_preset_mirrors(preset, arguments, mirrors):
    augment = make_transforms(PRESETS[preset], (6, 8), (1, 1), air=(-5.0,), **arguments)
    assert any(isinstance(t, LeftRightMirror) for t in augment.transforms.transforms) == mirrors


@pytest.mark.parametrize("shape", [(6, 8), (4, 6, 8)])
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_keep_shape_type_and_arguments(preset, shape):
    image, segmentation = sample(shape)
    image_before, segmentation_before = image.clone(), segmentation.clone()
    mirror = {"mirror_axis": len(shape) - 1, "mirrored_channel": SWAP, "odd_channels": (1,)}
    augment = make_transforms(PRESETS[preset], shape, (3.0, 1.0, 1.0)[-len(shape):], air=(-5.0,), **mirror)
    changed = 0
    for index in range(30):
        with seeded(1, index):
            out_image, out_segmentation, out_known = augment(image, segmentation, KNOWN)
        assert out_image.shape == image.shape and out_image.dtype == torch.float32 and torch.isfinite(out_image).all()
        assert out_segmentation.shape == segmentation.shape and out_segmentation.dtype == torch.int16
        assert set(out_segmentation.unique().tolist()) <= {0, 1, 2, 3}
        assert out_known.sum() == 3
        changed += not torch.equal(out_image, image_before)
        assert torch.equal(image, image_before) and torch.equal(segmentation, segmentation_before)
    assert (changed == 0) if preset == "none" else (changed > 10)


def test_intensity_transforms_leave_coordinates_alone():
    image = torch.rand(4, 12, 12)
    out = copy.deepcopy(image)
    change = OnIntensities(2, _intensity_transforms((1.0, 1.0)))
    with seeded(5):
        for _ in range(40):
            out = change(image=out)["image"]
    assert torch.equal(out[2:], image[2:])
    assert not torch.allclose(out[0], image[0]) and not torch.allclose(out[1], image[1])


@pytest.mark.parametrize("shape", [(10, 8), (6, 10, 8)])
def test_a_scan_ends_at_a_plane(shape):
    image, organ = torch.rand(3, *shape), torch.ones(1, *shape, dtype=torch.int16)
    before, end, ends = image.clone(), EndOfScan((-5.0, -7.0), missing=0.5), set()
    for index in range(100):
        with seeded(index):
            out = end(image=image, segmentation=organ, known=KNOWN)
        gone = out["segmentation"][0] == 0
        assert torch.equal(gone, out["image"][0] == -5) and torch.equal(gone, out["image"][1] == -7)  # air, and no organ
        assert torch.equal(out["image"][:2, ~gone], before[:2, ~gone]) and torch.equal(out["image"][2], before[2])  # the coordinate stays
        if gone.any():
            places = gone.nonzero()
            (axis,) = [a for a, n in enumerate(shape) if len(places[:, a].unique()) < n]  # whole planes across one axis
            n = len(places[:, axis].unique())
            assert n <= shape[axis] / 2 and gone.sum() == n * gone.numel() / shape[axis]
            assert places[:, axis].min() == 0 or places[:, axis].max() == shape[axis] - 1  # from one border on
            ends.add((axis, bool(places[:, axis].min() == 0)))
    assert len(ends) == 2 * len(shape)  # each border
    assert torch.equal(image, before) and organ.all()


def affine(shape, spacing_mm, patch_shape=None, **preset):
    return AffineInMm(patch_shape or shape, spacing_mm, Preset(**preset))


def ball(shape, spacing_mm, radius_mm, offset_mm=(0, 0, 0)):
    axes = [(torch.arange(n) - (n - 1) / 2) * s - o for n, s, o in zip(shape, spacing_mm, offset_mm)]
    return sum(a**2 for a in torch.meshgrid(*axes, indexing="ij")) <= radius_mm**2


@pytest.mark.parametrize("shape, spacing_mm", [((64, 32), (1.0, 2.0)), ((40, 32, 32), (1.0, 1.25, 2.0))])
def test_rotation_is_rigid_in_mm(shape, spacing_mm):
    """A long ellipsoid turned by a large angle keeps its longest and shortest half axis in mm."""
    grid = torch.meshgrid(*[(torch.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing_mm)], indexing="ij")
    half_axes_mm = (14.0, 7.0, 7.0)[: len(shape)]
    organ = sum((g / h) ** 2 for g, h in zip(grid, half_axes_mm)) <= 1
    turn = affine(shape, spacing_mm, p_rotation=1.0, degrees=45)
    turn.limits = np.radians([45.0] * len(turn.limits))
    angles = []
    for index in range(6):
        with seeded(index):
            out = turn(image=organ[None].float(), segmentation=organ[None].to(torch.int16))["segmentation"][0].bool()
        points_mm = np.stack([g[out].numpy() for g in grid])
        spread, directions = np.linalg.eigh(np.cov(points_mm))
        expected, _ = np.linalg.eigh(np.cov(np.stack([g[organ].numpy() for g in grid])))
        assert np.sqrt(spread) == pytest.approx(np.sqrt(expected), rel=0.08)
        angles.append(np.degrees(np.arccos(min(1.0, abs(directions[0, -1])))))
    assert max(angles) > 15


def test_translation_moves_image_labels_and_coordinates_together():
    shape, spacing_mm = (40, 40), (1.0, 2.0)
    organ = ball(shape, spacing_mm, 8.0)
    across_mm = ((torch.arange(40) - 19.5) * 2.0).expand(shape)
    move = affine(shape, spacing_mm, p_translation=1.0, shift=0.1)
    seen = []
    for index in range(20):
        with seeded(index):
            out = move(image=torch.stack([organ.float(), across_mm]), segmentation=organ[None].to(torch.int16))
        labels = out["segmentation"][0].bool()
        assert ((out["image"][0] > 0.5) != labels).float().mean() < 0.02
        assert out["image"][1][labels].mean().item() == pytest.approx(0, abs=1.1)  # its coordinates go along, to half a voxel
        seen.append(labels.nonzero().float().mean(0) - 19.5)
    furthest = torch.stack(seen).abs().amax(0)
    assert (furthest <= 4.5).all() and (furthest > 2).all()  # a tenth of 40 voxels, and half a voxel for rounding


def test_scaling_keeps_balls_round():
    shape, spacing_mm = (48, 24), (1.0, 2.0)
    scale = affine(shape, spacing_mm, p_scaling=1.0, scaling=(2.0, 2.0))
    organ = ball(shape, spacing_mm, 16.0)
    out = scale(image=organ[None].float(), segmentation=organ[None].to(torch.int16))["segmentation"][0]
    extents = [int(out.any(dim=1 - axis).sum()) for axis in range(2)]
    assert extents == [16, 8]  # half of the diameter of 32 mm: 16 voxels of 1 mm, 8 of 2 mm


def test_outside_the_image_its_border_is_repeated():
    image, segmentation = torch.full((1, 8, 8), -0.7), torch.ones(1, 8, 8, dtype=torch.int16)
    out = affine((8, 8), (1, 1), p_scaling=1.0, scaling=(2.0, 2.0))(image=image, segmentation=segmentation)
    assert torch.allclose(out["image"], image) and torch.equal(out["segmentation"], segmentation)
    out = affine((8, 8), (1, 1), patch_shape=(10, 12))(image=image, segmentation=segmentation)  # a patch beyond the image
    assert torch.equal(out["image"], torch.full((1, 10, 12), -0.7)) and torch.equal(out["segmentation"], torch.ones(1, 10, 12).short())


def test_a_larger_image_is_cropped_about_its_centre():
    image = torch.arange(64.0).view(1, 8, 8)
    segmentation = image.to(torch.int16)
    still = affine((8, 8), (1, 1), patch_shape=(4, 4))(image=image, segmentation=segmentation)
    assert torch.equal(still["image"], image[:, 2:6, 2:6]) and torch.equal(still["segmentation"], segmentation[:, 2:6, 2:6])
    # the path through interpolation cuts the same patch
    warped = affine((8, 8), (1, 1), patch_shape=(4, 4), p_scaling=1.0, scaling=(1.0, 1.0))(image=image, segmentation=segmentation)
    torch.testing.assert_close(warped["image"], still["image"])
    assert torch.equal(warped["segmentation"], still["segmentation"])


@pytest.mark.parametrize(
    "extent_mm, spacing_mm, expected",
    [
        ((100, 100), (1, 1), [30]),
        ((100, 160), (1, 1), [15]),  # a long slice
        ((100, 100), (4, 1), [0]),  # thick slices
        ((100, 100, 100), (3, 1, 1), [30, 30, 30]),
        ((100, 100, 100), (5, 1, 1), [30, 0, 0]),  # only within the thick slices
        ((200, 100, 100), (1, 1, 1), [30, 15, 15]),
    ],
)
def test_rotation_limits(extent_mm, spacing_mm, expected):
    limits = rotation_limits(30, np.array(extent_mm, float), np.array(spacing_mm, float))
    assert np.degrees(limits) == pytest.approx(expected)


def test_a_sample_depends_on_its_key_alone():
    image, segmentation = sample((16, 16))
    augment = make_transforms(PRESETS["full"], (16, 16), (1, 1), air=(-5.0,), mirror_axis=1, mirrored_channel=SWAP)

    def draw(*key):
        with seeded(*key):
            return augment(image, segmentation, KNOWN)[0]

    first = [draw(0, 7, index) for index in range(12)]
    torch.manual_seed(99), np.random.seed(99)
    assert all(torch.equal(draw(0, 7, index), first[index]) for index in reversed(range(12)))
    assert not all(torch.equal(draw(0, 8, index), first[index]) for index in range(12))


def test_seeded_restores_the_global_generators():
    torch.manual_seed(1), np.random.seed(1)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(1), np.random.seed(1)
    with pytest.raises(KeyError), seeded(5):
        torch.rand(3), np.random.rand(3)
        raise KeyError
    assert (torch.rand(1), np.random.rand()) == expected


def test_prediction_mirrors_just_what_training_mirrors():
    plan = TrainingPlan(4, 1, 1, 1, 1e-3, "adamw", "poly", 0, 0.0, 0.9, 0.0, LossPlan("dice_ce"), 0.5, "none")
    assert {name: replace(plan, augmentation=name).mirrors for name in PRESETS} == {name: preset.mirror for name, preset in PRESETS.items()}
