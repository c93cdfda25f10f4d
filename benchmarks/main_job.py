"""The main job on one data set, from plan to report, timed step by step; prints the times, and every stage's scores.

  python benchmarks/main_job.py --raw RAW --workspace WS -d 15 --minutes 40 --device cpu

Resumable: a finished step is skipped by the commands themselves.
"""
from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--raw", required=True, type=Path, help="folder that holds DatasetXXX_Name")
    p.add_argument("--workspace", required=True, type=Path, help="where preprocessed volumes, results and predictions go")
    p.add_argument("-d", dest="dataset", required=True)
    p.add_argument("--minutes", type=float, default=40)
    p.add_argument("--device", default="cpu")
    args = p.parse_args()
    places = {"C2F_RAW": args.raw, "C2F_PREPROCESSED": args.workspace / "preprocessed", "C2F_RESULTS": args.workspace / "results"}
    env = os.environ | {name: str(folder) for name, folder in places.items()}
    (found,) = [f for f in args.raw.iterdir() if f.name == args.dataset or f.name.startswith(f"Dataset{args.dataset.zfill(3)}_")]
    out = args.workspace / "predictions" / found.name
    steps = {
        "plan and preprocess": ["plan_and_preprocess", "-d", found.name],
        "train": ["train", "all", "0", "-d", found.name, "--minutes", str(args.minutes), "-device", args.device],
        "predict": ["predict", "-i", str(found / "imagesTs"), "-o", str(out), "-d", found.name, "-device", args.device],
        "evaluate": ["evaluate", str(found / "labelsTs"), str(out), "-djfile", str(found / "dataset.json")],
        "cross-validate": ["crossval", "-d", found.name, "-device", args.device],
    }
    times = []
    for title, (module, *arguments) in steps.items():
        began = time.monotonic()
        subprocess.run([sys.executable, "-m", f"c2f_nnunet.cli.{module}", *arguments], env=env, check=True)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        times.append({"step": title, "minutes": (time.monotonic() - began) / 60, "largest process so far, GB": peak})
    print(pd.DataFrame(times).to_string(index=False, float_format=lambda v: f"{v:.2f}"))


if __name__ == "__main__":
    sys.exit(main())
