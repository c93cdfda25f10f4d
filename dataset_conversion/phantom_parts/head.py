"""The made-up head and neck: what is drawn for a case, its shapes, and the canvas that they are painted on.

Frame of the shapes: millimetres, x to the patient's left, y to posterior, z to superior, origin in the middle of the brain.
"""
from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Callable

import numpy as np

from c2f_nnunet.geometry import Geometry

from .shapes import column, ellipsoid, merged, rise, tube, wavy

ORGANS = ("BrainStem", "Chiasm", "Mandible", "OpticNerve_L", "OpticNerve_R", "Parotid_L", "Parotid_R", "Submandibular_L", "Submandibular_R")
ID = {organ: i + 1 for i, organ in enumerate(ORGANS)}
SIDES = {"_L": 1.0, "_R": -1.0}
AIR, FAT, MUSCLE, BRAIN, FLUID = -1000.0, -95.0, 55.0, 34.0, 12.0  # HU
SPONGY, CORTICAL, TOOTH, FILLING = 350.0, 950.0, 1600.0, 3000.0


@dataclass(frozen=True)
class Anatomy:
    """All that is random in a case but the noise, drawn before anything is painted."""

    spacing_mm: tuple[float, float, float]  # z, y, x
    shape: tuple[int, int, int]
    top_mm: float  # upper edge of the field of view
    middle_mm: tuple[float, float]  # centre of the field of view in y and x
    size: np.ndarray  # the patient's scale in x, y, z
    tilt: np.ndarray  # rotation of the head against the shoulders, 3×3
    bend: np.ndarray  # waves that deform the whole patient
    grain: np.ndarray  # waves of the fat planes between muscles and of the glands' outlines
    moved: dict[str, tuple[np.ndarray, float]]  # organ → shift in mm and scale
    hu: dict[str, float]  # organ → HU
    fat_mm: float  # thickness of the fat under the skin
    vessel_hu: float
    streaks: bool
    turn: str
    absent: str | None


def skin(p: np.ndarray) -> np.ndarray:
    """The body's outline: cranium, face, jaw, nose, neck, shoulders and ears."""
    whole = merged([
        ellipsoid(p, (0, 2, 3), (80, 99, 84), 2.3), ellipsoid(p, (0, -28, -65), (76, 68, 68)), ellipsoid(p, (0, -50, -98), (56, 48, 34)),
        ellipsoid(p, (0, -94, -60), (11, 17, 18)), tube(p, [(0, 14, -60), (0, 22, -320)], 57),
        ellipsoid(p, (0, 34, -262), (205, 80, 82), 2.6),
    ], 18)
    return np.minimum(whole, ellipsoid(np.concatenate([np.abs(p[:1]), p[1:]]), (81, 14, -38), (5, 13, 26)))


def skull_base_mm(p: np.ndarray) -> np.ndarray:
    """Height of the skull base: anterior, middle and posterior fossa, one step below the other."""
    return -13 - 25 * rise((p[1] + 36) / 3) - 22 * rise((p[1] - 3) / 5)


def skull_cavity(p: np.ndarray) -> np.ndarray:
    return np.maximum(ellipsoid(p, (0, 0, 5), (67, 85, 70), 2.3), skull_base_mm(p) - p[2])


def skull(p: np.ndarray) -> np.ndarray:
    return np.maximum(np.maximum(ellipsoid(p, (0, 0, 5), (74, 92, 77), 2.3), skull_base_mm(p) - 6 - p[2]), -skull_cavity(p))


def brain_stem(p: np.ndarray) -> np.ndarray:
    column_of_fibres = tube(p, [(0, 3, -10), (0, 6, -32), (0, 15, -62)], (9, 10, 6.5), (1.25, 1, 1))
    pons = ellipsoid(p, (0, 2, -31), (15, 12, 13))
    return merged([column_of_fibres, pons], 4)


def chiasm(p: np.ndarray) -> np.ndarray:
    """An X: the nerves come from in front and leave as tracts, rising."""
    return tube(np.concatenate([np.abs(p[:1]), p[1:]]), [(8, -33, -21), (0, -27, -18.5), (9, -19, -14)], 2.2)


def mandible(p: np.ndarray) -> np.ndarray:
    """An arch that is higher than thick, and the flat rami that rise from its ends."""
    half = np.concatenate([np.abs(p[:1]), p[1:]])  # the left half stands for both
    body = tube(half, [(0, -86, -107), (20, -80, -106), (37, -55, -102), (46, -26, -97)], 5.5, (1, 1, 2.3))
    return np.minimum(body, tube(half, [(46, -26, -94), (48, -18, -58)], 4.5, (1, 2.6, 1)))


ORGAN_SHAPES: dict[str, tuple[tuple, float, Callable]] = {  # centre, reach in mm, signed distance; of paired organs the left one
    "BrainStem": ((0, 6, -35), 48, brain_stem),
    "Chiasm": ((0, -26, -18), 22, chiasm),
    "Mandible": ((0, -50, -85), 70, mandible),
    "OpticNerve": ((19, -45, -26), 35, partial(tube, points=[(31, -58, -32), (26, -48, -29), (16, -39, -24), (8, -33, -21)], radii=2.2)),
    "Parotid": ((56, 0, -79), 42, partial(ellipsoid, centre=(56, 0, -79), radii=(14, 19, 25))),
    "Submandibular": ((26, -34, -119), 32, partial(ellipsoid, centre=(26, -34, -119), radii=(9.5, 15, 13))),
}


class Canvas:
    """A scan being painted: HU, label map and the anatomical place (3, z, y, x) of each voxel's centre."""

    def __init__(self, anatomy: Anatomy):
        self.anatomy = anatomy
        (dz, dy, dx), (nz, ny, nx) = anatomy.spacing_mm, anatomy.shape
        (my, mx), top = anatomy.middle_mm, anatomy.top_mm
        self.geometry = Geometry(anatomy.shape, anatomy.spacing_mm, (mx - (nx - 1) / 2 * dx, my - (ny - 1) / 2 * dy, top - (nz - 1) * dz))
        z, y, x = (np.arange(n, dtype=np.float32) * np.float32(d) + np.float32(o)
                   for n, d, o in zip(anatomy.shape, anatomy.spacing_mm, self.geometry.origin_mm[::-1]))
        self.world = np.stack(np.broadcast_arrays(x, y[:, None], z[:, None, None]))
        self.edge_mm = float(self.geometry.voxel_mm3) ** (1 / 3)  # partial volume: borders are one voxel wide
        self.hu = np.full(anatomy.shape, AIR, np.float32)
        self.label = np.zeros(anatomy.shape, np.uint8)
        pivot = column((0, 20, -120), self.world)
        turned = np.tensordot(anatomy.tilt.T.astype(np.float32), self.world - pivot, 1) + pivot
        head = rise((z[:, None, None] + 155) / 10)  # the shoulders lie still
        self.place = (self.world + head * (turned - self.world) + wavy(self.world, anatomy.bend)) / column(anatomy.size, self.world)
        self.skin_mm = skin(self.place)

    def near(self, centre, reach_mm) -> tuple[slice, slice, slice]:
        """A box of voxels that holds all places within reach (one number, or x, y, z) of the centre; looks at every fourth voxel."""
        few = self.place[:, ::4, ::4, ::4]
        hit = (np.abs(few - column(centre, few)) < column(np.broadcast_to(reach_mm, 3), few) + 8).all(0)
        out = []
        for axis in range(3):
            i = np.flatnonzero(hit.any(tuple(k for k in range(3) if k != axis)))
            out.append(slice(max(4 * int(i[0]) - 4, 0), 4 * int(i[-1]) + 8) if i.size else slice(0))
        return tuple(out)

    def fill(self, distance: np.ndarray, hu: float, here=...) -> None:
        """Mix `hu` in where distance < 0, in part at the border, as voxels do; what is painted over is no organ any more."""
        covered = (0.5 - distance / np.float32(self.edge_mm)).clip(0, 1)
        self.hu[here] += covered * (np.float32(hu) - self.hu[here])
        self.label[here][distance < 0] = 0

    def paint(self, shape: Callable, hu: float, centre=(0, 0, 0), reach_mm=100.0, side: float = 1.0) -> None:
        """Fill a shape that lies within reach of its centre; side -1 mirrors it to the right."""
        here = self.near(np.multiply(centre, (side, 1, 1)), reach_mm)
        p = self.place[(slice(None), *here)]
        self.fill(shape(p * column((side, 1, 1), p)), hu, here)

    def organ(self, organ: str) -> None:
        """Paint an organ and label the voxels that it covers by more than half; of an absent one, the bed that surgery left."""
        flip = column((SIDES.get(organ[-2:], 1.0), 1, 1), self.place)
        centre, reach, shape = ORGAN_SHAPES[organ.removesuffix("_L").removesuffix("_R")]
        shift, scale = self.anatomy.moved[organ]
        here = self.near(np.ravel(flip) * centre, reach)
        p = self.place[(slice(None), *here)] * flip
        distance = shape((p - column(shift + centre, p)) / np.float32(scale) + column(centre, p)) * np.float32(scale)
        if "Parotid" in organ or "Submandibular" in organ:  # lumpy, and under skin and fat
            distance = np.maximum(distance + 1.5 * wavy(p, self.anatomy.grain)[0], self.skin_mm[here] + 5)
        if organ == self.anatomy.absent:  # fat grows into an empty bed, with strands of scar
            self.fill(distance, FAT, here)
            self.fill(np.maximum(distance, planes(p, self.anatomy, 2) - 1.0), MUSCLE, here)
            return
        self.fill(distance, self.anatomy.hu[organ], here)
        if organ == "Mandible":
            self.fill(distance + 3, SPONGY, here)
        self.label[here][distance < 0] = ID[organ]


def planes(place: np.ndarray, anatomy: Anatomy, which: int) -> np.ndarray:
    """About the distance in mm to the nearest of a family of wavy planes: the waves' mean slope is 0.14 per mm."""
    return np.abs(wavy(place, anatomy.grain)[which]) / np.float32(0.14)


def paint_body(c: Canvas) -> None:
    """Skin, fat, muscles with planes of fat between them, spine, airway and vessels."""
    c.fill(c.skin_mm, 20)
    c.fill(c.skin_mm + 2.5, FAT)
    c.fill(np.maximum(c.skin_mm + 2.5 + c.anatomy.fat_mm, 1.0 - planes(c.place, c.anatomy, 1)), MUSCLE)
    vertebrae = partial(tube, points=[(0, 8, -76), (0, 18, -320)], radii=11, stretch=(1.2, 1, 1))
    level = lambda p: np.abs(p[2] % 18 - 9)  # noqa: E731  mm from the middle of the next vertebra
    neck = partial(c.paint, centre=(0, 20, -200), reach_mm=(30, 55, 140))
    neck(partial(tube, points=[(0, 32, -76), (0, 42, -320)], radii=12, stretch=(1.3, 1, 1)), SPONGY)  # arches
    neck(lambda p: np.maximum(tube(p, [(0, 48, -84), (0, 62, -320)], 4), level(p) - 4), SPONGY)  # spinous processes
    neck(vertebrae, SPONGY)
    neck(lambda p: np.maximum(vertebrae(p), 7 - level(p)), 90.0)  # discs
    airway = [(0, -12, -76), (0, -14, -110), (0, -18, -150), (0, -16, -320)]
    neck(partial(tube, points=airway, radii=(9, 6, 8, 9), stretch=(1.2, 1, 1)), AIR)
    for s in SIDES.values():
        vessel = partial(c.paint, centre=(30, 5, -190), reach_mm=(15, 15, 140), side=s)
        vessel(partial(tube, points=[(27, 6, -60), (27, 2, -150), (22, 4, -320)], radii=4), c.anatomy.vessel_hu)
        vessel(partial(tube, points=[(36, 10, -60), (35, 6, -150), (30, 4, -320)], radii=5.5), c.anatomy.vessel_hu - 20)


def paint_skull(c: Canvas) -> None:
    """Bones of the head and the air in them."""
    c.paint(partial(ellipsoid, centre=(0, -70, -72), radii=(38, 22, 24)), SPONGY, (0, -70, -72), 40)  # maxilla
    c.paint(skull, CORTICAL)
    for s in SIDES.values():
        bone, air = partial(c.paint, hu=CORTICAL, side=s), partial(c.paint, hu=AIR, side=s)
        bone(partial(tube, points=[(52, 14, -38), (20, -4, -40)], radii=(10, 4)), centre=(36, 4, -38), reach_mm=36)  # petrous bone
        arch = [(40, -78, -54), (62, -48, -52), (66, -12, -48)]
        bone(partial(tube, points=arch, radii=3.5), centre=(53, -45, -50), reach_mm=45)  # zygoma
        bone(partial(tube, points=[(31, -70, -33), (13, -38, -24)], radii=(19, 6.5)), centre=(24, -60, -30), reach_mm=45)  # orbit
        air(partial(ellipsoid, centre=(24, -68, -68), radii=(11, 15, 13)), centre=(24, -68, -68), reach_mm=18)  # maxillary sinus
        air(partial(ellipsoid, centre=(56, 26, -50), radii=(6, 9, 9)), centre=(56, 26, -50), reach_mm=14)  # mastoid
    for centre, radii in (((0, -72, -60), (8, 24, 20)), ((0, -60, -36), (9, 18, 9)), ((0, -34, -36), (8, 7, 7))):
        c.paint(partial(ellipsoid, centre=centre, radii=radii), AIR, centre, 28)  # nose, ethmoid, sphenoid


def paint_brain(c: Canvas) -> None:
    """Brain with fluid around it and in its ventricles, cord, and the cistern that the chiasm lies in."""
    cord = partial(c.paint, centre=(0, 20, -190), reach_mm=(20, 25, 150))
    cord(partial(tube, points=[(0, 12, -48), (0, 22, -80), (0, 32, -320)], radii=(14, 8, 8)), FLUID)
    cord(partial(tube, points=[(0, 15, -66), (0, 22, -80), (0, 32, -320)], radii=5), BRAIN)
    c.paint(skull_cavity, FLUID)
    c.paint(lambda p: skull_cavity(p) + 2.5, BRAIN)
    c.paint(partial(ellipsoid, centre=(0, -26, -18), radii=(14, 12, 9)), FLUID, (0, -26, -18), 18)
    for s in SIDES.values():
        c.paint(partial(tube, points=[(10, -28, 18), (12, 20, 24), (24, 30, 4)], radii=(4, 6, 4)), FLUID, (14, 0, 15), 45, s)


def paint_orbits(c: Canvas) -> None:
    """A cone of fat with muscles, the globe and its lens, and the canal at its apex."""
    for s in SIDES.values():
        orbit = partial(c.paint, centre=(24, -56, -30), reach_mm=45, side=s)
        orbit(partial(tube, points=[(31, -74, -33), (13, -38, -24)], radii=(16.5, 4)), FAT)
        orbit(partial(tube, points=[(16, -39, -24), (8, -33, -21)], radii=4), FLUID)
        for muscle in ([(20, -68, -33), (12, -42, -25)], [(43, -68, -33), (18, -42, -25)],  # medial, lateral
                       [(31, -66, -22), (15, -42, -21)], [(31, -66, -44), (15, -42, -29)]):  # superior, inferior
            orbit(partial(tube, points=muscle, radii=1.8, stretch=(1, 1, 1.5)), MUSCLE)
        orbit(partial(ellipsoid, centre=(32, -70, -33), radii=(12, 12, 12)), FLUID + 4)
        orbit(partial(ellipsoid, centre=(32, -79, -33), radii=(4.5, 2.2, 4.5)), 90.0)


def paint_teeth(c: Canvas) -> None:
    for height in (-84, -92):
        row = partial(tube, points=[(0, -86, height), (18, -80, height), (32, -58, height)], radii=3.2)
        for s in SIDES.values():
            c.paint(row, TOOTH, (18, -72, height), 30, s)
