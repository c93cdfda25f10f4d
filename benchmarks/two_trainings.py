"""Does training twice and averaging help? Independent trainings of one plan and fold, each alone and their ensemble.

  python benchmarks/two_trainings.py WS_A WS_B --raw RAW -d 15

Held-out cases of fold 0 (they must be the same in all workspaces): mean DSC in % of the fused views, the fine stage and the final result on
the scans' own grid. The ensemble averages the networks' probabilities, as folds are averaged, under the first workspace's fusion and merge weights.
"""
from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from c2f_nnunet.data.dataset import read_dataset
from c2f_nnunet.evaluation.metrics import dsc
from c2f_nnunet.inference.cascade import coarse_maps, merge, run_coarse, run_fine
from c2f_nnunet.io.images import read_image, read_label
from c2f_nnunet.network.precision import default_device, find_device
from c2f_nnunet.running.crossval import fine_alone
from c2f_nnunet.running.model import build_cascade, open_model
from c2f_nnunet.workspace import Workspace


def stages(cascade, image) -> dict[str, np.ndarray]:
    """Channels (z, y, x) of each stage's result."""
    coarse = run_coarse(cascade, image.array, image.geometry)
    maps = list(run_fine(cascade, coarse, image.array, image.geometry))
    given = {
        "fused": (coarse_maps(cascade.plan, coarse.logits, coarse.prepared, image.geometry), cascade.merge_weights),
        "fine": (iter(maps), fine_alone(cascade.plan.labels.organs)),
        "final": (iter(maps), cascade.merge_weights),
    }
    return {name: merge(cascade.plan, m, image.geometry, weights, coarse.located).channels for name, (m, weights) in given.items()}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("workspaces", nargs="+")
    p.add_argument("--raw", required=True, type=Path, help="folder that holds DatasetXXX_Name")
    p.add_argument("-d", dest="dataset")
    p.add_argument("--device", default=default_device())
    args = p.parse_args()
    models = [open_model(Workspace.find(w).model(args.dataset, None)) for w in args.workspaces]
    held_out = models[0].splits()[0].val
    if any(m.splits()[0].val != held_out for m in models):
        raise SystemExit("the workspaces hold out other cases; train them on one splits_final.json")
    alone = [build_cascade(m, (0,), "best", find_device(args.device))[0] for m in models]
    networks = {name: [n for c in alone for n in c.networks[name]] for name in alone[0].networks}
    cascades = dict(zip(args.workspaces, alone)) | {"ensemble": replace(alone[0], networks=networks)}
    cases = {c.id: c for c in read_dataset(args.raw / models[0].plan.dataset).training}
    labels, rows = models[0].plan.labels, []
    for case in held_out:
        image, truth = read_image(cases[case].image), labels.to_channels(read_label(cases[case].label).array)
        for trained, cascade in cascades.items():
            for stage, channels in stages(cascade, image).items():
                for i, organ in enumerate(labels.organs, 1):
                    a, b = truth == i, channels == i
                    rows.append((trained, stage, organ, 100 * dsc(int(a.sum()), int(b.sum()), int((a & b).sum()))))
    table = pd.DataFrame(rows, columns=["trained", "stage", "organ", "dsc"]).pivot_table("dsc", ["trained", "stage"], "organ", sort=False)
    print(table.assign(mean=table.mean(axis=1)).to_string(float_format=lambda v: f"{v:.1f}"))


if __name__ == "__main__":
    sys.exit(main())
