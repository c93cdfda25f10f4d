"""Analytic shapes for made-up scans: signed distances (mm, negative inside) at points p of shape (3, …) in mm, x first."""
from __future__ import annotations

from typing import Sequence

import numpy as np


def column(values, p: np.ndarray) -> np.ndarray:
    """Three numbers, shaped to go with points p (3, …)."""
    return np.asarray(values, np.float32).reshape(3, *[1] * (p.ndim - 1))


def ellipsoid(p: np.ndarray, centre, radii, power: float = 2.0) -> np.ndarray:
    """|x/a|^n + |y/b|^n + |z/c|^n = 1 around centre; the distance is of first order: (level - 1) / slope."""
    q = np.abs((p - column(centre, p)) / column(radii, p)) + np.float32(1e-4)
    steep = q if power == 2 else q ** np.float32(power - 1)
    level = steep[0] * q[0] + steep[1] * q[1] + steep[2] * q[2]
    level = np.sqrt(level) if power == 2 else level ** np.float32(1 / power)
    slope = np.sqrt(sum((steep[k] / np.float32(radii[k])) ** 2 for k in range(3)))
    return (level - 1) * level ** np.float32(power - 1) / slope


def tube(p: np.ndarray, points: Sequence, radii, stretch=(1, 1, 1)) -> np.ndarray:
    """A round tube along points, with one radius or one per point; `stretch` widens its section along x, y, z."""
    q, points = p / column(stretch, p), np.float32(points) / np.float32(stretch)
    radii = np.broadcast_to(np.float32(radii), len(points))
    whole = None
    for a, b, ra, rb in zip(points[:-1], points[1:], radii[:-1], radii[1:]):
        along, from_a = b - a, q - column(a, q)
        t = (sum(from_a[k] * along[k] for k in range(3)) / (along @ along)).clip(0, 1)
        part = np.sqrt(sum((from_a[k] - t * along[k]) ** 2 for k in range(3))) - (ra + t * (rb - ra))
        whole = part if whole is None else np.minimum(whole, part)
    return whole


def merged(distances: Sequence[np.ndarray], blend_mm: float) -> np.ndarray:
    """Union of shapes with the seams between them rounded."""
    whole, *rest = distances
    for other in rest:
        share = (0.5 + 0.5 * (other - whole) / blend_mm).clip(0, 1)
        whole = other + (whole - other) * share - blend_mm * share * (1 - share)
    return whole


def rise(x: np.ndarray) -> np.ndarray:
    """A smooth step from 0 to 1."""
    return 1 / (1 + np.exp(-x))


def waves(rng: np.random.Generator, count: int, length_mm: tuple[float, float], amplitude: float) -> np.ndarray:
    """Random plane waves (count, 7): wave vector in radians per mm (3), phase, amplitude along x, y, z (3)."""
    direction, along = rng.normal(size=(2, count, 3))
    vector = direction / np.linalg.norm(direction, axis=1, keepdims=True) * (2 * np.pi / rng.uniform(*length_mm, (count, 1)))
    return np.hstack([vector, rng.uniform(0, 2 * np.pi, (count, 1)), along * amplitude / np.sqrt(count)]).astype(np.float32)


def wavy(p: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The smooth vector field (3, …) that waves `w` make at points p."""
    return (w[:, 4:].T @ np.sin(w[:, :3] @ p.reshape(3, -1) + w[:, 3:4])).reshape(p.shape)


def rotation(degrees) -> np.ndarray:
    """Rotation (3, 3) about x, then y, then z."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    return np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]]) @ about_y @ about_x
