"""What storing labels on another grid costs: volume kept, and DSC of the way there and back, per organ (medians over cases).

Compares keeping each label's volume with cutting its share at one half.

  python benchmarks/label_round_trip.py RAW/Dataset015_HeadNeckKBP/labelsTr --spacing 3 4.414 4.414 --cases 12
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from c2f_nnunet.evaluation.folders import label_files
from c2f_nnunet.geometry import respaced
from c2f_nnunet.io.images import read_label
from c2f_nnunet.preparing import resample


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=Path)
    p.add_argument("--spacing", type=float, nargs=3, required=True, metavar=("Z", "Y", "X"))
    p.add_argument("--cases", type=int, default=12)
    args = p.parse_args()
    keeping, rows = resample._volume_keeping_share, []
    for path in list(label_files(args.folder).values())[: args.cases]:
        label = read_label(path)
        grid = respaced(label.geometry, args.spacing)
        for rule, share in {"volume kept": keeping, "one half": lambda part: 0.5}.items():
            resample._volume_keeping_share = share
            there = resample.resample_labels(label.array, label.geometry, grid)
            back = resample.resample_labels(there, grid, label.geometry)
            for value in np.unique(label.array)[1:]:
                t, b = label.array == value, back == value
                ratio = (there == value).sum() * grid.voxel_mm3 / (t.sum() * label.geometry.voxel_mm3)
                rows.append({"rule": rule, "label": value, "volume ratio": ratio, "DSC there and back": 2 * (t & b).sum() / (t.sum() + b.sum())})
    print(pd.DataFrame(rows).groupby(["rule", "label"]).median().unstack("rule").round(3).to_string())


if __name__ == "__main__":
    sys.exit(main())
