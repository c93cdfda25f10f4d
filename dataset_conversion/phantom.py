"""Write a raw data set of made-up head-and-neck CTs with nine delineated organs: nothing to download, nobody's patient.

    python dataset_conversion/phantom.py OUT_RAW_DIR [--train 20] [--test 5] [--seed 0] [--id 900]

Every case is drawn anew (anatomy, pose, spacing, field of view, file orientation, noise) from its own random stream and
painted from analytic shapes, so one seed gives the same patients again. Contrasts are as weak as in reality: a few HU
between brain stem and brain, ten to twenty between glands and muscle. For trying the commands, not for judging a method.
"""
from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
from phantom_parts import head
from phantom_parts.head import BRAIN, ID, MUSCLE, ORGANS, SIDES, Anatomy, Canvas
from phantom_parts.shapes import column, ellipsoid, rotation, waves, wavy
from scipy.ndimage import gaussian_filter
from tqdm import tqdm

from c2f_nnunet.errors import C2FError, DatasetError
from c2f_nnunet.geometry import Geometry, Reorientation, canonical_geometry, to_canonical
from c2f_nnunet.io import records
from c2f_nnunet.io.images import write_volume

ABSENT = {  # case → what surgery took from it
    1: "Submandibular_R", 4: "Parotid_L", 7: "Submandibular_L", 9: "Submandibular_R", 12: "Parotid_R", 15: "Submandibular_L", 21: "Submandibular_R",
}
TURNS = {  # file orientation → how a canonical array is turned into it
    "LPS": Reorientation((0, 1, 2), (False, False, False)),
    "RAS": Reorientation((0, 1, 2), (False, True, True)),
    "LAS": Reorientation((0, 1, 2), (False, True, False)),
    "LPI": Reorientation((0, 1, 2), (True, False, False)),
    "coronal slices": Reorientation((1, 0, 2), (False, True, False)),
}
NOISE_HU = 12.0


def draw(rng: np.random.Generator, number: int) -> Anatomy:
    """The anatomy and scan of case `number`; every fourth field of view cuts the vertex, every third the shoulders."""
    spacing = (round(rng.uniform(2.4, 3.5), 2), *[round(rng.uniform(2.2, 3.0), 2)] * 2)
    top = rng.uniform(58, 70) if number % 4 == 3 else rng.uniform(100, 112)
    bottom = rng.uniform(-175, -160) if number % 3 == 2 else rng.uniform(-225, -195)
    shape = (int(np.clip((top - bottom) / spacing[0], 80, 110)), *[int(np.clip(rng.uniform(275, 315) / spacing[1], 96, 128))] * 2)
    hu = {"BrainStem": BRAIN + rng.uniform(5, 8), "Chiasm": rng.uniform(34, 40), "Mandible": rng.uniform(850, 1050)}
    for stem, low, high in (("OpticNerve", 32, 40), ("Parotid", MUSCLE - 25, MUSCLE - 12), ("Submandibular", MUSCLE - 14, MUSCLE - 9)):
        value = rng.uniform(low, high)
        hu |= {stem + side: value + rng.normal(0, 1) for side in SIDES}
    return Anatomy(
        spacing, shape, top, middle_mm=(rng.uniform(8, 18), rng.uniform(-6, 6)),
        size=rng.normal(1.0, (0.04, 0.04, 0.03)).clip(0.9, 1.1), tilt=rotation(rng.normal(0, (4, 3, 4)).clip(-8, 8)),
        bend=waves(rng, 6, (130, 260), 2.5), grain=waves(rng, 8, (24, 60), 1.0),
        # nerves and chiasm stay joined to each other and to the globes
        moved={o: (rng.normal(0, 0.3 if "Nerve" in o or o == "Chiasm" else 1.5, 3), rng.normal(1, 0.05)) for o in ORGANS},
        hu=hu, fat_mm=rng.uniform(4, 10), vessel_hu=float(rng.choice([MUSCLE - 10, 160.0])), streaks=bool(rng.random() < 0.35),
        turn=str(rng.choice(list(TURNS))), absent=ABSENT.get(number),
    )


def add_table(c: Canvas) -> None:
    """A hollow, slightly curved couch under the head, in the world's frame: it does not tilt with the patient."""
    y = c.world[1] - np.float32(106 * c.anatomy.size[1]) - np.float32(0.0008) * c.world[0] ** 2
    for start, thick, hu in ((0.0, 18.0, 0.0), (4.5, 9.0, -930.0)):
        outside = np.where(c.skin_mm > c.edge_mm, np.abs(y - (start + thick / 2)) - thick / 2, np.inf)  # never inside the patient
        c.fill(np.maximum(outside, np.abs(c.world[0]) - 200), hu)


def add_streaks(c: Canvas, rng: np.random.Generator) -> None:
    """Metal fillings and the rays that they throw across the slices at the teeth."""
    for _ in range(int(rng.integers(1, 4))):
        tooth = (float(rng.choice([-1, 1]) * rng.uniform(18, 32)), float(rng.uniform(-75, -60)), -88.0)
        c.paint(partial(ellipsoid, centre=tooth, radii=(4, 4, 5)), head.FILLING, tooth, 10)
        x, y, z = c.place - column(tooth, c.place)
        angle = np.arctan2(y, x)
        rays = sum(np.cos(k * angle + phase) for k, phase in np.float32([rng.integers(3, 14, 4), rng.uniform(0, 6.28, 4)]).T)
        c.hu += np.where(c.skin_mm < 0, 90 * rays * np.exp(-np.hypot(x, y) / 60 - (z / 7) ** 2), 0)


def make_case(seed: int, number: int) -> tuple[np.ndarray, np.ndarray, Geometry, Anatomy]:
    """Case `number`: int16 HU and uint8 labels, both (z, y, x) canonical, their geometry, and what was drawn for it."""
    rng = np.random.default_rng((seed, number))
    canvas = Canvas(draw(rng, number))
    head.paint_body(canvas)
    for organ in ORGANS[5:]:  # the glands, before the bones that they touch
        canvas.organ(organ)
    for paint in (head.paint_skull, head.paint_brain, head.paint_orbits):
        paint(canvas)
    for organ in ("BrainStem", "OpticNerve_L", "OpticNerve_R", "Chiasm", "Mandible"):
        canvas.organ(organ)
    head.paint_teeth(canvas)
    if canvas.anatomy.streaks:
        add_streaks(canvas, rng)
    add_table(canvas)
    noise = gaussian_filter(rng.standard_normal(canvas.hu.shape, np.float32), (0.4, 0.8, 0.8))
    shading = 4 * wavy(canvas.world, waves(rng, 3, (250, 500), 1.0))[0]
    hu = gaussian_filter(canvas.hu, 0.4) + noise * np.float32(NOISE_HU / noise.std()) + shading
    return hu.clip(-1024, 3071).round().astype(np.int16), canvas.label, canvas.geometry, canvas.anatomy


def write_dataset(out_raw: Path, train: int = 20, test: int = 5, seed: int = 0, dataset_id: int = 900) -> Path:
    """DatasetXXX_Phantom with imagesTr, labelsTr, imagesTs, labelsTs and dataset.json; returns its folder."""
    folder = out_raw / f"Dataset{dataset_id:03d}_Phantom"
    if (folder / "dataset.json").exists():
        raise DatasetError(f"{folder}: there is a data set already; remove it or choose another folder or --id")
    for number in tqdm(range(train + test), desc="phantom", unit="case"):
        part = "Tr" if number < train else "Ts"
        hu, label, geometry, anatomy = make_case(seed, number)
        turn = TURNS[anatomy.turn]
        for array, path in ((hu, f"images{part}/phantom_{number:03d}_0000.nii.gz"), (label, f"labels{part}/phantom_{number:03d}.nii.gz")):
            write_volume(folder / path, to_canonical(array, turn), canonical_geometry(geometry, turn))
    records.write(folder / "dataset.json", {  # last: a data set with it is whole
        "name": "Phantom", "description": f"made-up head-and-neck CTs, seed {seed}", "channel_names": {"0": "CT"},
        "labels": {"background": 0, **ID}, "numTraining": train, "file_ending": ".nii.gz",
    })
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Write a raw data set of made-up head-and-neck CTs with nine organs.", allow_abbrev=False,
        epilog="example: python dataset_conversion/phantom.py workspace/raw --train 20 --test 5")
    parser.add_argument("out_raw", type=Path, metavar="OUT_RAW_DIR", help="the folder that Dataset900_Phantom is made in")
    parser.add_argument("--train", type=int, default=20, help="training cases (default 20)")
    parser.add_argument("--test", type=int, default=5, help="test cases (default 5)")
    parser.add_argument("--seed", type=int, default=0, help="another seed makes other patients (default 0)")
    parser.add_argument("--id", type=int, default=900, help="number of the data set (default 900)")
    options = parser.parse_args()
    if options.train < 1 or options.test < 0 or not 1 <= options.id <= 999 or options.seed < 0:
        parser.error("--train must be 1 or more, --test and --seed 0 or more, --id between 1 and 999")
    try:
        print(write_dataset(options.out_raw, options.train, options.test, options.seed, options.id))
    except C2FError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
