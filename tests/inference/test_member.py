"""Networks that code the position into their logits show where slices, tiles and flips land."""
from dataclasses import replace

import numpy as np
import pytest
import torch

from c2f_nnunet.errors import ModelError
from c2f_nnunet.inference.member import predict_crop, predict_volume
from c2f_nnunet.inference.tiles import tile_starts, tiles
from c2f_nnunet.preparing.views import IN_PLANE, POSITION_SCALE_MM, intensity_channels, left_right_axis, odd_channels

CPU = torch.device("cpu")
VIEWS = ["2d_top", "2d_front", "2d_side"]
ANCHOR = (30.0, 18.0, 19.5)


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits)
    return e / e.sum(0)


class Positions:
    """Logits of channels 1, 2, 3: the voxel's offset along z, y, x in dm (as the position channels say), background 0."""

    def __init__(self, member):
        first = intensity_channels(member)
        order = (member.axis, *IN_PLANE[member.axis])
        self.channels = [first + order.index(axis) for axis in range(3)]

    def __call__(self, batch: torch.Tensor) -> list[torch.Tensor]:
        return [torch.cat([torch.zeros_like(batch[:, :1]), POSITION_SCALE_MM / 100 * batch[:, self.channels]], 1)]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("shape", [(24, 40, 40), (20, 36, 40), (33, 40, 40)])  # the plan's, smaller, taller: two tiles
def test_every_voxel_lands_where_it_belongs(tiny_planned, view, shape):
    plan = tiny_planned.model.plan
    member = plan.member(view)
    p = predict_volume(Positions(member), member, plan.labels, np.zeros(shape, np.int16), ANCHOR, CPU, flips=False)
    offsets = [(n - a) * 4.0 / 100 for n, a in zip(np.indices(shape), ANCHOR)]  # 4 mm, in dm
    assert p.shape == (4, *shape) and p.dtype == np.float16
    np.testing.assert_allclose(p, softmax(np.stack([np.zeros(shape), *offsets])), atol=2e-3)


def test_overlapping_tiles_fade_into_each_other(tiny_planned):
    """A network that answers per window: above and below each tile's own answer, between them a gradual change."""
    plan = tiny_planned.model.plan
    member = plan.member("2d_side")

    class PerWindow(Positions):
        def __call__(self, batch):
            logits = super().__call__(batch)[0]
            return [logits[:, :, :1, :1].expand_as(logits)]  # the window's first voxel for all

    p = predict_volume(PerWindow(member), member, plan.labels, np.zeros((33, 40, 40), np.int16), ANCHOR, CPU, flips=False)[1, :, 20, 20]
    low, high = p[0], p[-1]
    assert [b.start[0] for b in tiles((33, 40, 40), (24, 40, 40))] == [0, 9] and low < high
    np.testing.assert_array_equal(p[:9], low)
    np.testing.assert_array_equal(p[24:], high)
    assert (np.diff(p[9:24].astype(float)) > -1e-3).all() and np.abs(np.diff(p.astype(float))).max() < 0.4 * (high - low)
    assert p[16] == pytest.approx((low + high) / 2, abs=1e-3)  # row 16 is as far from either tile's end


def test_tiles_cover_with_overlap():
    assert tile_starts(10, 10, 0.25) == [0] and tile_starts(8, 10, 0.25) == [-1]  # one that holds all lies centred
    assert tile_starts(33, 24, 0.25) == [0, 9]
    starts = tile_starts(100, 24, 0.25)
    assert starts[0] == 0 and starts[-1] == 76 and max(np.diff(starts)) <= 18
    assert tiles((8, 8, 8), (10, 10, 10))[0].start == (-2, -1, -1)  # in z at the tile's top, as in training


class Sided:
    """Knows left from right by the position channel, and by which neighbour of a sagittal slice is brighter."""

    def __init__(self, member, equivariant: bool):
        self.member, self.equivariant, self.x = member, equivariant, odd_channels(member)[0]

    def __call__(self, batch: torch.Tensor) -> list[torch.Tensor]:
        left = POSITION_SCALE_MM / 100 * batch[:, self.x]
        if left_right_axis(self.member.axis) is None:
            left = left + batch[:, 2] - batch[:, 0]  # the neighbours at one more and one less in x
        right = -left if self.equivariant else 0 * left
        return [torch.stack([0 * left, left, right, batch[:, 1]], 1)]


@pytest.mark.parametrize("view", VIEWS)
def test_flips_change_nothing_for_a_network_that_treats_both_sides_alike(tiny_planned, view):
    plan = tiny_planned.model.plan
    member = mirroring(plan.member(view))
    hu = np.random.default_rng(0).integers(-100, 400, (33, 40, 40)).astype(np.int16)

    def result(equivariant: bool, flips: bool) -> np.ndarray:
        return predict_volume(Sided(member, equivariant), member, plan.labels, hu, ANCHOR, CPU, flips).astype(float)

    np.testing.assert_allclose(result(True, True), result(True, False), atol=2e-3)
    assert np.abs(result(False, True) - result(False, False)).max() > 0.05  # and it would be seen
    assert np.abs(result(True, False)[1] - result(True, False)[2]).max() > 0.05


def mirroring(member):
    """The member as one that saw mirrored patients in training; the tiny plan's did not."""
    return replace(member, training=replace(member.training, augmentation="full"))


def test_a_network_that_never_saw_a_mirrored_patient_is_not_asked_about_one(tiny_planned):
    plan = tiny_planned.model.plan
    member, hu = plan.member("2d_top"), np.zeros((24, 40, 40), np.int16)
    a, b, c = (
        predict_volume(Sided(m, False), m, plan.labels, hu, ANCHOR, CPU, flips)
        for m, flips in ((member, False), (member, True), (mirroring(member), True))
    )
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


def test_a_sagittal_slice_without_its_position_is_not_mirrored(tiny_planned):
    """Its mirror image is itself: averaged with the swapped sides, no organ of a pair would ever be above one half."""
    plan = tiny_planned.model.plan
    side = mirroring(plan.member("2d_side"))
    channels = len(side.windows)
    blind = replace(side, position_channels=0, context_slices=0, network=replace(side.network, in_channels=channels))

    class Left:
        def __call__(self, batch):
            assert batch.shape[1] == channels
            return [torch.tensor([0.0, 9, 0, 0]).reshape(1, 4, 1, 1).expand(len(batch), 4, *batch.shape[2:])]

    p = predict_volume(Left(), blind, plan.labels, np.zeros((24, 40, 40), np.int16), ANCHOR, CPU, True)
    assert p[1].min() > 0.99


def test_a_label_set_with_a_lone_side_is_never_flipped(tiny_planned):
    plan = tiny_planned.model.plan
    member, lone = mirroring(plan.member("2d_top")), replace(plan.labels, organs=("Gland_L", "Other", "Stem"))
    hu = np.zeros((24, 40, 40), np.int16)
    a, b = (predict_volume(Sided(member, False), member, lone, hu, ANCHOR, CPU, flips) for flips in (False, True))
    np.testing.assert_array_equal(a, b)


class Ramp:
    """The organ's logit rises along x."""

    def __call__(self, batch: torch.Tensor) -> list[torch.Tensor]:
        organ = torch.arange(batch.shape[4], dtype=torch.float32).expand_as(batch[:, :1])
        return [torch.cat([torch.zeros_like(organ), organ], 1)]


@pytest.mark.parametrize("name, flipped", [("3d_Stem", True), ("3d_Gland", False)])  # a gland's mirror image is the other gland
def test_crops_are_flipped_for_midline_organs_only(tiny_planned, name, flipped):
    member = mirroring(tiny_planned.model.plan.member(name))
    hu = np.zeros(member.shape, np.int16)
    plain, averaged = (predict_crop(Ramp(), member, hu, CPU, flips) for flips in (False, True))
    once = 1 / (1 + np.exp(-np.arange(16.0)))
    np.testing.assert_allclose(plain[3, 4], once, atol=1e-5)
    np.testing.assert_allclose(averaged[3, 4], (once + once[::-1]) / 2 if flipped else once, atol=1e-5)
    assert plain.dtype == np.float32


class Small(Positions):
    """On a device that holds so many samples."""

    def __init__(self, member, most: int, error=torch.OutOfMemoryError("CUDA out of memory.")):
        super().__init__(member)
        self.most, self.error, self.sizes = most, error, []

    def __call__(self, batch: torch.Tensor) -> list[torch.Tensor]:
        self.sizes.append(len(batch))
        if len(batch) > self.most:
            raise self.error
        return super().__call__(batch)


@pytest.mark.parametrize("view", VIEWS)
def test_fewer_slices_at_a_time_where_memory_is_short(tiny_planned, view):
    plan, hu = tiny_planned.model.plan, np.zeros((33, 40, 40), np.int16)
    member, network = plan.member(view), Small(plan.member(view), 5)
    found = predict_volume(network, member, plan.labels, hu, ANCHOR, CPU, flips=False)
    np.testing.assert_array_equal(found, predict_volume(Positions(member), member, plan.labels, hu, ANCHOR, CPU, flips=False))
    assert network.sizes[:4] == [16, 8, 4, 4]


def test_memory_that_is_too_small_for_one_sample(tiny_planned):
    plan = tiny_planned.model.plan
    member, hu = plan.member("2d_top"), np.zeros((24, 40, 40), np.int16)
    with pytest.raises(ModelError, match=r"^2d_top: one slice does not fit the memory of cpu \(CUDA out of memory.\); free some memory$"):
        predict_volume(Small(member, 0), member, plan.labels, hu, ANCHOR, CPU, False)
    with pytest.raises(RuntimeError, match="^something else$"):
        predict_volume(Small(member, 0, RuntimeError("something else")), member, plan.labels, hu, ANCHOR, CPU, False)

    def crop(error):
        def network(batch):
            raise error

        return predict_crop(network, plan.member("3d_Stem"), np.zeros((16, 16, 24), np.int16), CPU, False)

    with pytest.raises(ModelError, match="^3d_Stem: a crop of 16 × 16 × 24 voxels does not fit the memory of cpu "):
        crop(torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(RuntimeError, match="^something else$"):
        crop(RuntimeError("something else"))
