"""How well two readers agree on a coarser grid: what is left of their agreement where voxels are as large as in the data set trained on.

  python benchmarks/readers_on_a_grid.py DATA/masks_two_readers/oncologist DATA/masks_two_readers/radiographer --spacing 3 4.414 4.414

Both readers' masks of each scan are brought to voxels of this spacing as labels are for training (each organ keeps its volume), and scored on
either grid: mean DSC and 95HD per organ over the scans in which both drew it.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from c2f_nnunet.evaluation.folders import declared, label_files
from c2f_nnunet.evaluation.metrics import score
from c2f_nnunet.geometry import respaced
from c2f_nnunet.io.images import read_label
from c2f_nnunet.preparing.resample import resample_labels

LABELS = Path(__file__).parent / "masks_two_readers.json"  # a dataset.json, which these folders lack


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("first", type=Path)
    p.add_argument("second", type=Path)
    p.add_argument("--spacing", type=float, nargs=3, required=True, metavar=("Z", "Y", "X"), help="mm")
    args = p.parse_args()
    labels, _ = declared(LABELS)
    others, rows = label_files(args.second), []
    for case, path in tqdm(label_files(args.first).items(), unit="case", disable=None):
        a, b = read_label(path), read_label(others[case])
        grid = respaced(a.geometry, args.spacing)
        masks = {"as drawn": (a.geometry, a.array, b.array)}
        masks["coarser"] = grid, *(resample_labels(m.array, m.geometry, grid) for m in (a, b))
        for on, (geometry, first, second) in masks.items():
            found = score(first, second, geometry, labels).organs
            rows += [(o.organ, on, 100 * o.dsc, o.hd95_mm) for o in found if o.dsc is not None and o.hd95_mm is not None]
    table = pd.DataFrame(rows, columns=["organ", "grid", "DSC %", "95HD mm"])
    wide = table.pivot_table(["DSC %", "95HD mm"], "organ", "grid", sort=False)
    wide["scans", ""] = table[table["grid"] == "coarser"].groupby("organ").size()
    print(wide.to_string(float_format=lambda v: f"{v:.1f}"))


if __name__ == "__main__":
    sys.exit(main())
