"""Whether predicting needs more memory with more folds: one case with one fold's networks, and with five copies of them.

  python benchmarks/ensemble_memory.py --model WS/results/Dataset015_Name/auto --images IMAGES_FOLDER
"""
from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True, type=Path, help="a model folder with fold 0 trained")
    p.add_argument("--images", required=True, type=Path, help="a folder of images; the first is predicted")
    args = p.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        model, images = Path(scratch) / "model", Path(scratch) / "images"
        shutil.copytree(args.model, model, ignore=shutil.ignore_patterns("crossval", "fold_[1-9]", "checkpoint_latest*", ".lock"))
        images.mkdir()
        first = sorted(f for f in args.images.iterdir() if f.is_file())[0]
        shutil.copy(first, images)
        for runs in list(model.glob("*/fold_0")):
            for fold in range(1, 5):
                shutil.copytree(runs, runs.with_name(f"fold_{fold}"))
        for folds in (("0",), ("0", "1", "2", "3", "4")):
            command = [sys.executable, "-m", "c2f_nnunet.cli.predict", "-m", model, "-i", images, "-o", Path(scratch) / f"out{len(folds)}", "-f", *folds]
            output = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout
            peak = float(re.search(r"peak memory: ([\d.]+) GB", output)[1])
            rows.append({"case": first.name, "folds": len(folds), "peak memory GB": peak})
        weights = sum(f.stat().st_size for f in model.glob("*/fold_0/checkpoint_best*.safetensors")) / 2**20
    print(pd.DataFrame(rows).to_string(index=False))
    print(f"one fold's weights: {weights:.1f} MB")


if __name__ == "__main__":
    sys.exit(main())
