"""How much of what is missing is how generously each patient was drawn? An oracle moves the boundary, case by case.

  python benchmarks/generosity.py --workspace WS --raw RAW -d 15

Held-out cases of a trained fold 0, each organ by itself: DSC of the merged log-odds with the fitted weights and bias; with the bias that suits
the case best, one for all of its organs; and with the one that suits each organ of the case best. The last two know the reference: they
say what a network could gain at most that found the same boundary's shape and knew how large this reader draws, and are no result.
"""
from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from c2f_nnunet.data.dataset import read_dataset
from c2f_nnunet.inference.fusion import fuse_organ
from c2f_nnunet.inference.fusion_learn import dsc
from c2f_nnunet.network.precision import default_device, find_device
from c2f_nnunet.running import fit as running
from c2f_nnunet.running.model import build_cascade, open_model
from c2f_nnunet.workspace import Workspace

BIASES = np.linspace(-4, 4, 81).round(1)  # beyond them no voxel is kept by the fit


def by_bias(logits: np.ndarray, truth: np.ndarray, voxels: int, table: np.ndarray) -> np.ndarray:
    """DSC in % with each bias added to the fitted one. logits (V, 1, …), truth (…), voxels: of the whole reference."""
    fused, inside = fuse_organ(np.asarray(logits[:, 0], np.float32), table), truth > 0
    masks = [fused > -b for b in BIASES]
    return 100 * dsc(*(np.array([f(m) for m in masks], float) for f in (lambda m: (m & inside).sum(), np.sum)), float(voxels))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--workspace")
    p.add_argument("--raw", required=True, type=Path)
    p.add_argument("-d", dest="dataset")
    p.add_argument("--device", default=default_device())
    args = p.parse_args()
    model = open_model(Workspace.find(args.workspace).model(args.dataset, None))
    organs, weights = model.plan.labels.organs, model.fusion.merge
    cases = {c.id: c for c in read_dataset(args.raw / model.plan.dataset).training}
    cascade, _ = build_cascade(model, (0,), "best", find_device(args.device))
    found: dict[tuple[str, str], np.ndarray] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for case in model.splits()[0].val:
            for organ, saved in running._save_maps(cascade, cases[case], Path(scratch), {o: [] for o in organs}):
                if saved.load is None:
                    raise SystemExit(f"{case}: {organ} was found nowhere; train longer")
                loaded = saved.load()
                found[case, organ] = by_bias(loaded.logits, loaded.truth, saved.voxels, weights.table[:, organs.index(organ)])
    scores = pd.DataFrame.from_dict(found, orient="index", columns=BIASES)
    scores.index = pd.MultiIndex.from_tuples(scores.index, names=["case", "organ"])
    of_case = scores.groupby("case").transform("mean").idxmax(axis=1)
    columns = {
        "fitted bias": scores[0.0],
        "best for the case": pd.Series([scores.at[k, b] for k, b in of_case.items()], scores.index),
        "best for each organ of the case": scores.max(axis=1),
    }
    table = pd.DataFrame(columns).groupby("organ", sort=False).mean()
    table.loc["mean"] = table.mean()
    print(f"DSC in %, {len(scores.index.unique('case'))} held-out cases\n{table.to_string(float_format=lambda v: f'{v:.1f}')}")


if __name__ == "__main__":
    sys.exit(main())
