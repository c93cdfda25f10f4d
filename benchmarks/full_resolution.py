"""The full-resolution regime, SIMULATED: made-up CTs around real anatomies, 512 × 512 in the plane, about 1 × 1 × 2.5 mm.

No full-resolution CT with organs can be shared here, so CTs are made from published label maps (simulation/head_ct.py): 20 anatomies,
each as it is and once deformed, to train; 8 others to test; eight organs of the paper's nine. Then the whole job by the project's commands,
and the coarse and the final result on the test scans side by side.

  python benchmarks/full_resolution.py --anatomies DIR --workspace WS --minutes 90

Resumable: scans that are there are not made again, and the commands skip what is finished.
"""
from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd

from c2f_nnunet.io.images import read_label, write_volume

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from simulation.head_ct import IDS, ORGANS, deformed, simulate  # noqa: E402  (beside this script, not a package)

DATASET = "Dataset017_SimulatedHeadNeck"
TRAINED, TESTED = 20, 8


def make_case(job: tuple[Path, str, int, str], root: Path) -> str:
    """One scan and its label map, written where they belong."""
    source, case, seed, part = job
    image, label = root / f"images{part}" / f"{case}_0000.nii.gz", root / f"labels{part}" / f"{case}.nii.gz"
    if image.exists() and label.exists():
        return case
    rng = np.random.default_rng(seed)
    read = read_label(source)
    labels = deformed(read.array, read.geometry.spacing_mm, rng) if case.endswith("_deformed") else read.array.astype(np.uint8)
    hu = simulate(labels, read.geometry.spacing_mm, rng)
    table = np.zeros(256, np.uint8)
    for i, organ in enumerate(ORGANS, 1):
        table[IDS[organ]] = i
    for path, array in ((label, table[labels]), (image, hu)):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_volume(path, array, read.geometry)
    return case


def make_dataset(anatomies: Path, root: Path, processes: int) -> None:
    """The data set in nnU-Net's format."""
    files = sorted(anatomies.glob("*.nii.gz"))
    if len(files) < TRAINED + TESTED:
        raise SystemExit(f"{anatomies}: {len(files)} label maps, {TRAINED + TESTED} are needed")
    train, test = files[:TRAINED], files[TRAINED : TRAINED + TESTED]
    names = [(f, f.name.removesuffix(".nii.gz")) for f in train]
    jobs = [(f, n, i, "Tr") for i, (f, n) in enumerate(names)] + [(f, f"{n}_deformed", 100 + i, "Tr") for i, (f, n) in enumerate(names)]
    jobs += [(f, f.name.removesuffix(".nii.gz"), 200 + i, "Ts") for i, f in enumerate(test)]
    with get_context("spawn").Pool(processes) as pool:
        for number, case in enumerate(pool.imap(partial(make_case, root=root), jobs), 1):
            print(f"{number} of {len(jobs)}: {case}", flush=True)
    patients = {n: n for _, n in names} | {f"{n}_deformed": n for _, n in names}
    (root / "dataset.json").write_text(json.dumps({
        "channel_names": {"0": "CT"}, "labels": {"background": 0, **{o: i for i, o in enumerate(ORGANS, 1)}}, "numTraining": 2 * TRAINED,
        "file_ending": ".nii.gz", "patients": patients, "description": "SIMULATED CTs around real label maps; not patients' scans",
    }, indent=1))  # fmt: skip


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--anatomies", required=True, type=Path, help="folder of full-resolution label maps")
    p.add_argument("--workspace", required=True, type=Path)
    p.add_argument("--minutes", type=float, default=90)
    p.add_argument("--processes", type=int, default=2)
    p.add_argument("--only_data", action="store_true", help="make the scans and stop")
    args = p.parse_args()
    root = args.workspace / "raw" / DATASET
    make_dataset(args.anatomies, root, args.processes)
    if args.only_data:
        return
    env = os.environ | {f"C2F_{k.upper()}": str(args.workspace / k) for k in ("raw", "preprocessed", "results")}

    def run(module: str, *arguments) -> float:
        began = time.monotonic()
        subprocess.run([sys.executable, "-m", f"c2f_nnunet.cli.{module}", *map(str, arguments)], env=env, check=True)
        return (time.monotonic() - began) / 60

    times = {"plan and preprocess": run("plan_and_preprocess", "-d", DATASET)}
    times["train"] = run("train", "all", 0, "-d", DATASET, "--minutes", args.minutes, "-device", "cpu")
    tables = {}
    for stage in ("coarse", "fine"):
        out = args.workspace / "predictions" / stage
        times[f"predict, {stage}"] = run("predict", "-i", root / "imagesTs", "-o", out, "-d", DATASET, "--stage", stage, "-device", "cpu")
        run("evaluate", root / "labelsTs", out, "-djfile", root / "dataset.json")
        tables["coarse" if stage == "coarse" else "final"] = pd.read_csv(out / "per_case.csv").groupby("organ", sort=False)[["dsc", "hd95_mm", "surface_dsc"]].mean()
    times["cross-validate"] = run("crossval", "-d", DATASET, "-device", "cpu")
    both = pd.concat(tables, axis=1).swaplevel(axis=1).sort_index(axis=1, level=0, sort_remaining=False)
    print("SIMULATED CTs, 8 test scans, mean over the scans")
    print((both * [100 if m != "hd95_mm" else 1 for m, _ in both.columns]).to_string(float_format=lambda v: f"{v:.2f}"))
    print(pd.Series(times, name="minutes").to_string(float_format=lambda v: f"{v:.1f}"))


if __name__ == "__main__":
    sys.exit(main())
