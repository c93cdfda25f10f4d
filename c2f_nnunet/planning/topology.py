"""Poolings, kernels and features of a network from the grid that it sees; each rule a small function."""
from __future__ import annotations

import math

POOLINGS = 3
SMALLEST_AXIS = 4
ANISOTROPY = 2.0
IN_PLANE = {0: (1, 2), 1: (0, 2), 2: (0, 1)}  # the axis that a view slices across → the axes of its slices


def strides(shape: tuple[int, ...], spacing_mm: tuple[float, ...], poolings: int = POOLINGS) -> tuple[tuple[int, ...], ...]:
    """Three poolings (the paper: more lose the small organs); an axis is halved only while it is not the coarse one.

    An axis too short to be halved to four voxels waits, and so does one twice as coarse as the finest of the others
    or coarser (as nnU-Net's rule). With all axes waiting there is one pooling fewer.
    """
    out, size, mm = [], list(shape), list(spacing_mm)
    for _ in range(poolings):
        long = [n / 2 >= SMALLEST_AXIS for n in size]
        if not any(long):
            break
        finest = min(s for s, can in zip(mm, long) if can)
        step = tuple(2 if can and s < ANISOTROPY * finest else 1 for s, can in zip(mm, long))
        out.append(step)
        size = [math.ceil(n / k) for n, k in zip(size, step)]
        mm = [s * k for s, k in zip(mm, step)]
    return tuple(out)


def kernels(spacing_mm: tuple[float, ...], steps: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    """3 along every axis, but 1 along one more than twice as coarse as the finest, until a level where it is not (as nnU-Net's rule)."""
    out, mm = [], list(spacing_mm)
    for step in (*steps, None):
        before = out[-1] if out else (1,) * len(mm)
        out.append(tuple(3 if k == 3 or s <= ANISOTROPY * min(mm) else 1 for k, s in zip(before, mm)))
        mm = [s * k for s, k in zip(mm, step)] if step else mm
    return tuple(out)


def divisors(steps: tuple[tuple[int, ...], ...], dimensions: int) -> tuple[int, ...]:
    """What each spatial size must be divisible by: the product of the strides."""
    return tuple(math.prod(step[a] for step in steps) for a in range(dimensions))


def round_up(shape, multiples) -> tuple[int, ...]:
    """Each size up to the next multiple; a millionth above a multiple is rounding error."""
    return tuple(math.ceil(n / m - 1e-6) * m for n, m in zip(shape, multiples))


def features(base: int, levels: int, dimensions: int) -> tuple[int, ...]:
    """Doubled at each level, at most 512 in 2D and 320 in 3D (nnU-Net's caps)."""
    return tuple(min(base * 2**i, 512 if dimensions == 2 else 320) for i in range(levels))
