"""What is left between prediction and reference: is it noise, or how generously each patient's reader drew?

  python benchmarks/volume_ratios.py WS/results/DatasetXXX_Name/auto/crossval/tables/per_case.csv

From c2f_crossval's table: per organ the logarithm of predicted over reference volume, its spread, and how its size ranks with DSC; then
Spearman's correlation of that logarithm between organs over the cases. One reader drew all organs of a case: where the ratios
of organs that do not touch rise and fall together, the reader's style is in them, which no network can see in the image.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("per_case", type=Path)
    p.add_argument("--result", default="final")
    args = p.parse_args()
    rows = pd.read_csv(args.per_case).query("result == @args.result and state == 'scored'")
    rows["ratio"] = np.log(rows["volume_prediction_ml"] / rows["volume_reference_ml"])
    rows["size"] = rows["ratio"].abs()
    summary = rows.groupby("organ", sort=False).apply(
        lambda g: pd.Series({"cases": len(g), "DSC %": 100 * g["dsc"].mean(), "median ratio": np.exp(g["ratio"].median()),
                             "SD of log ratio": g["ratio"].std(), "Spearman with DSC": g["size"].corr(g["dsc"], method="spearman")}),
        include_groups=False,
    )  # fmt: skip
    print(summary.to_string(float_format=lambda v: f"{v:.2f}"), "\n")
    print("Spearman's correlation of the log ratio between organs")
    print(rows.pivot(index="case", columns="organ", values="ratio").corr("spearman").to_string(float_format=lambda v: f"{v:.2f}"))


if __name__ == "__main__":
    sys.exit(main())
