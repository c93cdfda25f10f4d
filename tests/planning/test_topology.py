import pytest

from c2f_nnunet.planning.topology import POOLINGS, SMALLEST_AXIS, divisors, features, kernels, round_up, strides

TWO, FLAT = (2, 2, 2), (1, 2, 2)


@pytest.mark.parametrize(("shape", "spacing_mm", "expected"), [
    ((64, 64), (1, 1), ((2, 2),) * 3),  # the ordinary slice
    ((64, 64, 64), (1, 1, 1), (TWO,) * 3),
    ((20, 56, 56), (3, 1, 1), (FLAT, TWO, TWO)),  # 3 against 1 mm waits; 3 against 2 mm does not
    ((40, 96, 96), (5, 1, 1), (FLAT, FLAT, TWO)),  # 5 against 4 mm goes along
    ((40, 96, 96), (2, 1, 1), (FLAT, TWO, TWO)),  # exactly twice as coarse waits, as in nnU-Net
    ((16, 64, 64), (1, 1, 1), (TWO, TWO, FLAT)),  # 16 → 8 → 4 voxels, and never fewer
    ((4, 64, 64), (1, 1, 1), (FLAT, FLAT, FLAT)),  # a short axis, although the finest, does not stop the others
    ((9, 9), (1, 1), ((2, 2),)),  # 9 → 5, then 2.5 would be under four
    ((7, 7), (1, 1), ()),
])  # fmt: skip
def test_strides(shape, spacing_mm, expected):
    assert (POOLINGS, SMALLEST_AXIS) == (3, 4), "the table is written for these"
    assert strides(shape, spacing_mm) == expected


def test_fewer_poolings_may_be_asked_for():
    assert strides((64, 64), (1, 1), poolings=2) == ((2, 2), (2, 2))


@pytest.mark.parametrize(("spacing_mm", "steps", "expected"), [
    ((1, 1), ((2, 2), (2, 2)), ((3, 3),) * 3),
    ((3, 1, 1), (FLAT, TWO), ((1, 3, 3), (3, 3, 3), (3, 3, 3))),  # 3 against 1 mm; then 3 against 2 mm
    ((5, 1, 1), (FLAT, FLAT), ((1, 3, 3), (1, 3, 3), (3, 3, 3))),
    ((2, 1, 1), (), ((3, 3, 3),)),  # exactly twice is near enough
    ((1, 1, 1), (FLAT, FLAT), ((3, 3, 3),) * 3),  # 1 against 4 mm at last: but an axis that had neighbours keeps them
])  # fmt: skip
def test_kernels(spacing_mm, steps, expected):
    assert kernels(spacing_mm, steps) == expected


def test_divisors():
    assert divisors((FLAT, TWO, TWO), 3) == (4, 8, 8)
    assert divisors((), 2) == (1, 1)


@pytest.mark.parametrize(("shape", "multiples", "expected"), [
    ((1, 8, 9), (8, 8, 8), (8, 8, 16)),
    ((7.2, 8.0), (4, 1), (8, 8)),
    ((280.0000000001,), (8,), (280,)),  # rounding error is no reason for eight more voxels
])  # fmt: skip
def test_round_up(shape, multiples, expected):
    assert round_up(shape, multiples) == expected


def test_features():
    assert features(32, 4, 2) == (32, 64, 128, 256)
    assert features(64, 5, 2)[-2:] == (512, 512)
    assert features(64, 4, 3) == (64, 128, 256, 320)
