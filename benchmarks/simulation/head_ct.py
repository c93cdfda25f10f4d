"""A CT made up around a real label map of the head and neck: simulated tissue, real anatomy. Not a patient's scan.

Arrays are canonical (z, y, x: to superior, posterior, left); ids are those of the DeepMind/UCLH label maps. Soft fields (outline,
fat and muscle, bone, air) are drawn on a grid of about 2 mm and interpolated; organs are painted at the map's own resolution.
"""
from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch.nn.functional import grid_sample, interpolate

IDS = {"BrainStem": 1, "Mandible": 2, "OpticNrv_L": 3, "OpticNrv_R": 4, "Parotid_L": 5, "Parotid_R": 6, "Glnd_Submand_L": 7, "Glnd_Submand_R": 8,
       "SpinalCord": 9, "Orbit_L": 10, "Orbit_R": 11, "Lens_L": 12, "Lens_R": 13, "Cochlea_L": 14, "Cochlea_R": 15, "Lacrimal_L": 16,
       "Lacrimal_R": 17, "Lung_L": 18, "Lung_R": 19, "Brain": 20}  # fmt: skip
ORGANS = ("BrainStem", "Mandible", "OpticNrv_L", "OpticNrv_R", "Parotid_L", "Parotid_R", "Glnd_Submand_L", "Glnd_Submand_R")
AIR, LUNG, FAT, MUSCLE, BRAIN, FLUID, BONE, MARROW = -1000.0, -820.0, -95.0, 55.0, 35.0, 10.0, 900.0, 250.0
SOFT_MM = 2.0  # grid of the soft fields


def deformed(labels: np.ndarray, spacing_mm, rng: np.random.Generator) -> np.ndarray:
    """The label map under a smooth random deformation (6 mm, over 30 mm), a small rotation and a scaling; nearest neighbour."""
    size_mm = np.array(labels.shape) * spacing_mm
    knots = [max(4, int(s / 30)) for s in size_mm]
    shift_mm = torch.from_numpy(rng.normal(0, 6.0 / 1.5, (1, 3, *knots)).astype(np.float32))
    shift_mm = interpolate(shift_mm, labels.shape, mode="trilinear", align_corners=True)[0]
    angle, scale = np.radians(rng.uniform(-5, 5)), rng.uniform(0.94, 1.06, 3)
    axes = [torch.linspace(-1, 1, n) * float(s / 2) for n, s in zip(labels.shape, size_mm)]  # mm from the middle
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    turned = (z * scale[0], (y * np.cos(angle) - x * np.sin(angle)) * scale[1], (y * np.sin(angle) + x * np.cos(angle)) * scale[2])
    grid = torch.stack([(t + d) / float(s / 2) for t, d, s in zip(turned, shift_mm, size_mm)][::-1], -1)[None]
    out = grid_sample(torch.from_numpy(labels.astype(np.float32))[None, None], grid, mode="nearest", padding_mode="border", align_corners=True)
    return out[0, 0].numpy().astype(np.uint8)


def simulate(labels: np.ndarray, spacing_mm, rng: np.random.Generator) -> np.ndarray:
    """HU int16 (z, y, x) of a made-up patient with these organs."""
    step = [max(1, round(SOFT_MM / s)) for s in spacing_mm]
    soft = np.ascontiguousarray(labels[tuple(slice(None, None, k) for k in step)])
    soft_mm = np.array(spacing_mm) * step
    hu = _upsampled(_tissues(soft, soft_mm, rng), labels.shape)
    _paint_organs(hu, labels, spacing_mm, rng)
    in_plane = [0.0, 0.7 / spacing_mm[1], 0.7 / spacing_mm[2]]
    hu = ndimage.gaussian_filter(hu, in_plane)  # the scanner's resolution
    teeth = _paint_teeth(hu, labels, spacing_mm, rng)
    _paint_table(hu, labels, spacing_mm)
    _add_streaks(hu, teeth, rng)
    noise = ndimage.gaussian_filter(rng.standard_normal(hu.shape, np.float32), [0.3, 0.6, 0.6])
    hu += noise * (rng.uniform(9, 16) / noise.std())
    return np.rint(np.clip(hu, -1024, 3071)).astype(np.int16)


def _tissues(soft: np.ndarray, mm: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Everything but the organs, on the soft grid: float32 HU."""
    noise = lambda length_mm: _noise(soft.shape, mm, length_mm, rng)  # noqa: E731
    body, cord = body_mask(soft, mm), _cord_line(soft)
    depth = _distance(body, mm)
    skin_fat = rng.uniform(3, 10)
    muscle = 1 / (1 + np.exp(-(noise(9) * 3 + noise(4) * 1.5 + rng.uniform(0.2, 1.0))))  # bundles with fat planes between them
    muscle *= 1 / (1 + np.exp(-(depth - skin_fat) / 1.5))
    hu = np.where(body, FAT + (MUSCLE - FAT) * muscle, AIR).astype(np.float32)
    inside = np.isin(soft, [IDS["Brain"], IDS["BrainStem"]])
    outside_brain = _distance(~inside, mm)
    z, y, x = np.indices(soft.shape, np.float32) * mm.reshape(3, 1, 1, 1).astype(np.float32)
    from_cord = np.hypot(y - (cord[:, 0] * mm[1])[:, None, None], x - (cord[:, 1] * mm[2])[:, None, None])
    below = _below(soft, mm)  # mm under the brain stem's lower end, negative above
    # skull: a shell with marrow, open where the cord leaves; spine: rings with discs between them
    shell = np.clip((outside_brain - 2) / 1.5, 0, 1) * np.clip((8.5 - outside_brain) / 1.5, 0, 1) * (from_cord > 9) * ~inside
    hu += (BONE - 200 * np.abs(noise(3)) - hu) * shell
    hu[(outside_brain <= 2) & ~inside & (outside_brain > 0)] = FLUID
    level = 0.5 + 0.5 * np.sin(z / 17 * 2 * np.pi + rng.uniform(0, 6))
    ahead = (cord[:, 0] * mm[1])[:, None, None] - 15 - y
    vertebra = ((np.hypot(ahead, x - (cord[:, 1] * mm[2])[:, None, None]) < 12) | ((from_cord > 8) & (from_cord < 13))) & (below > 0)
    hu = np.where(vertebra, np.where(level > 0.15, MARROW + 120 * noise(2), 80), hu)
    canal = (from_cord < 8) & (below > -5) & ~inside
    hu[canal] = FLUID
    # airway before the spine, oral and nasal cavities, sinuses
    airway = np.hypot(ahead - 24, (x - (cord[:, 1] * mm[2])[:, None, None]) * 0.8) < 7 + 2 * noise(25)
    hu[airway & (below > -25) & body & (depth > 12)] = AIR
    centre = _face_centre(soft, mm)
    if centre is not None:
        cz, cy, cx = centre
        nose = ((z - (cz - 22)) / 20) ** 2 + ((y - (cy + 14)) / 32) ** 2 + ((x - cx) / 11) ** 2 < 1 + 0.5 * noise(6)
        sinus = ((z - (cz - 20)) / 14) ** 2 + ((y - (cy + 8)) / 14) ** 2 + ((np.abs(x - cx) - 24) / 11) ** 2 < 1
        wall = ndimage.binary_dilation(sinus | nose, iterations=1) & ~sinus & ~nose
        hu[wall & body & ~inside] = 500
        hu[(nose & (noise(5) > -0.8) | sinus) & ~inside & (depth > 4)] = AIR
    # orbital fat around nerve and globe, with eye muscles; air cells in the bone about the cochlea
    nerve = np.isin(soft, [IDS["OpticNrv_L"], IDS["OpticNrv_R"]])
    if nerve.any():
        near = _distance(~nerve, mm)
        hu = np.where((near < 13) & ~inside & (outside_brain > 3), FAT + 8 * noise(3), hu)
        for dz, dx in ((8, 0), (-8, 0), (0, 8), (0, -8)):  # the four straight muscles, as bright as the nerve and nearly as thick
            moved = ndimage.shift(nerve.astype(np.float32), (dz / mm[0], 0, dx / mm[2]), order=1)
            hu += (MUSCLE - hu) * np.clip(moved, 0, 1) * (outside_brain > 3)
    cochlea = np.isin(soft, [IDS["Cochlea_L"], IDS["Cochlea_R"]])
    if cochlea.any():
        near = _distance(~cochlea, mm)
        hu = np.where((near < 14) & ~inside, np.where(noise(3) > 0.9, -700, 750 + 200 * noise(2)), hu)
    hu = np.where(np.isin(soft, [IDS["Lung_L"], IDS["Lung_R"]]), LUNG + 60 * noise(3), hu)
    return np.where(inside, BRAIN + 3 * noise(5), hu).astype(np.float32)


def body_mask(soft: np.ndarray, mm: np.ndarray) -> np.ndarray:
    """The patient's outline: scalp about the brain, a face about its organs, a neck about the cord, shoulders below."""
    brain = np.isin(soft, [IDS["Brain"], IDS["BrainStem"]])
    body = _distance(~brain, mm) < 15 if brain.any() else np.zeros(soft.shape, bool)
    face = np.isin(soft, [IDS[o] for o in IDS if not o.startswith(("Brain", "Spinal", "Lung"))])
    grown = _distance(~face, mm) < 45  # closing: what lies between jaw, glands and eyes is face
    body |= _distance(grown, mm) > 45 - 11
    cord, below = _cord_line(soft), _below(soft, mm)
    z, y, x = np.indices(soft.shape, np.float32) * mm.reshape(3, 1, 1, 1).astype(np.float32)
    widening = np.clip((below - 95) / 70, 0, 1) ** 2 * (3 - 2 * np.clip((below - 95) / 70, 0, 1))
    ahead, aside = (cord[:, 0] * mm[1])[:, None, None] - 24 - y, x - (cord[:, 1] * mm[2])[:, None, None]
    neck = (ahead / (60 + 25 * widening)) ** 2 + (aside / (64 + 150 * widening)) ** 2 < 1
    body |= neck & (below > -30)
    lungs = np.isin(soft, [IDS["Lung_L"], IDS["Lung_R"]])
    if lungs.any():
        body |= _distance(~lungs, mm) < 25
    return ndimage.gaussian_filter(body.astype(np.float32), 6 / mm) > 0.5


def _cord_line(soft: np.ndarray) -> np.ndarray:
    """The cord's (or brain stem's) middle (y, x) in every slice, held beyond its ends."""
    tube = np.isin(soft, [IDS["SpinalCord"], IDS["BrainStem"]])
    rows = [(k, *np.argwhere(s).mean(0)) for k, s in enumerate(tube) if s.any()]
    known = np.array(rows if rows else [(0, soft.shape[1] / 2, soft.shape[2] / 2)])
    every = np.arange(len(soft))
    line = np.stack([np.interp(every, known[:, 0], known[:, i]) for i in (1, 2)], 1)
    return ndimage.gaussian_filter1d(line, 4, axis=0)


def _below(soft: np.ndarray, mm: np.ndarray) -> np.ndarray:
    """mm under the brain stem's lower end, per slice (Z, 1, 1)."""
    has = np.flatnonzero((soft == IDS["BrainStem"]).any((1, 2)))
    end = has[0] if has.size else 0.6 * len(soft)
    return ((end - np.arange(len(soft))) * mm[0])[:, None, None]


def _face_centre(soft: np.ndarray, mm: np.ndarray) -> np.ndarray | None:
    """The middle between the eyes in mm (z, y, x)."""
    eyes = np.argwhere(np.isin(soft, [IDS["Orbit_L"], IDS["Orbit_R"]]))
    return eyes.mean(0) * mm if len(eyes) else None


def _paint_organs(hu: np.ndarray, labels: np.ndarray, spacing_mm, rng: np.random.Generator) -> None:
    """Organs at full resolution, hardly brighter or darker than what surrounds them."""
    texture = _noise(labels.shape, np.array(spacing_mm), 2.5, rng)
    gland = {"Parotid": rng.uniform(-45, 15), "Glnd": rng.uniform(25, 48)}
    values = {"BrainStem": BRAIN - 2, "SpinalCord": 33, "OpticNrv": rng.uniform(25, 40), "Orbit": 12, "Lens": 75, "Lacrimal": 35, "Cochlea": 500, **gland}
    for organ, i in IDS.items():
        value = next((v for stem, v in values.items() if organ.startswith(stem)), None)
        if value is None or not (mask := labels == i).any():
            continue
        grain = 14 if organ.startswith(("Parotid", "Glnd")) else 4
        hu[mask] = value + grain * texture[mask]
    jaw = labels == IDS["Mandible"]
    if jaw.any():
        box = ndimage.find_objects(jaw.astype(np.uint8))[0]
        depth = _distance(jaw[box], np.array(spacing_mm))
        inside = jaw[box]
        hu[box][inside] = np.where(depth < 2.2, 1150, MARROW + 80 * texture[box])[inside]


def _paint_teeth(hu: np.ndarray, labels: np.ndarray, spacing_mm, rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """Teeth over the mandible's arch, some with fillings; returns the fillings' voxels."""
    jaw = np.argwhere(labels == IDS["Mandible"])
    if not len(jaw):
        return []
    front = jaw[jaw[:, 1] < np.percentile(jaw[:, 1], 45)]
    top, fillings = np.percentile(front[:, 0], 92), []
    for _ in range(12):
        z, y, x = front[rng.integers(len(front))]
        z = int(min(len(hu) - 1, top + rng.uniform(1, 8) / spacing_mm[0]))
        radius = [int(np.ceil(r / s)) for r, s in zip((5, 4, 4), spacing_mm)]
        box = tuple(slice(max(0, c - r), c + r + 1) for c, r in zip((z, y, x), radius))
        grid = np.indices(hu[box].shape)
        centre = [c - b.start for c, b in zip((z, y, x), box)]
        level = sum(((g - c) * s / r) ** 2 for g, c, s, r in zip(grid, centre, spacing_mm, (5, 4, 4)))
        hu[box][(level < 1) & (labels[box] == 0)] = 1700
        if rng.random() < 0.25:
            hu[box][level < 0.3] = 3000
            fillings.append((z, int(y), int(x)))
    return fillings


def _paint_table(hu: np.ndarray, labels: np.ndarray, spacing_mm) -> None:
    """A thin carbon shell behind the patient."""
    behind = np.flatnonzero((hu > -300).any((0, 2)))
    row = min(hu.shape[1] - 8, (behind[-1] if behind.size else hu.shape[1] // 2) + int(6 / spacing_mm[1]))
    x = np.arange(hu.shape[2])
    across = np.abs(x - hu.shape[2] / 2) * spacing_mm[2] < 220
    for offset, value in ((0, -250), (1, -250), (2, -850), (3, -850)):
        if row + offset < hu.shape[1]:
            hu[:, row + offset, across] = np.maximum(hu[:, row + offset, across], value)


def _add_streaks(hu: np.ndarray, fillings, rng: np.random.Generator) -> None:
    """Dark and bright rays from the fillings, in their slices and the next."""
    y, x = np.indices(hu.shape[1:], np.float32)
    for z, cy, cx in fillings:
        angle, radius = np.arctan2(y - cy, x - cx), np.hypot(y - cy, x - cx)
        rays = sum(a * np.cos(n * angle + p) for n, a, p in zip((3, 5, 8, 13), rng.normal(0, 1, 4), rng.uniform(0, 6, 4)))
        for k, share in ((z, 1.0), (z - 1, 0.5), (z + 1, 0.5)):
            if 0 <= k < len(hu):
                hu[k] += share * 70 * rays * np.exp(-radius / 60) * (hu[k] > -500)


def _noise(shape, mm: np.ndarray, length_mm: float, rng: np.random.Generator) -> np.ndarray:
    """A smooth random field of standard deviation 1 and about this correlation length."""
    factor = [max(1.0, length_mm / 2 / m) for m in mm]
    small = rng.standard_normal([int(np.ceil(n / f)) + 2 for n, f in zip(shape, factor)], np.float32)
    small = ndimage.gaussian_filter(small, 0.8)
    return _upsampled(small / small.std(), shape)


def _upsampled(field: np.ndarray, shape) -> np.ndarray:
    return interpolate(torch.from_numpy(np.ascontiguousarray(field, np.float32))[None, None], tuple(shape), mode="trilinear", align_corners=False)[0, 0].numpy()


def _distance(mask: np.ndarray, mm) -> np.ndarray:
    """mm from each voxel of the mask to the nearest outside it; 0 outside."""
    if mask.all():
        return np.full(mask.shape, 1e3, np.float32)
    return ndimage.distance_transform_edt(mask, sampling=tuple(mm)).astype(np.float32)
