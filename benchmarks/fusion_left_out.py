"""Do fitted fusion and merge weights carry over to cases that they were not fitted on?

  python benchmarks/fusion_left_out.py --workspace WS --raw RAW -d 15

Fold 0 of a trained workspace. For the views' fusion (on the coarse grid) and for the merge of both stages (on the scans' grid): mean DSC in % of each
source alone, of the plain mean, of the fit on the cases that it was fitted on, and of the fit with each case left out in turn, scored on that case.
"""
from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from c2f_nnunet.data.dataset import read_dataset
from c2f_nnunet.inference.cascade import MERGE_SOURCES
from c2f_nnunet.inference.fusion import FusionWeights, fuse, mean_weights
from c2f_nnunet.inference.fusion_fit import fit
from c2f_nnunet.inference.fusion_learn import NEVER, FitCase, dsc
from c2f_nnunet.network.precision import default_device, find_device
from c2f_nnunet.running import fit as running
from c2f_nnunet.running.members import stored_of
from c2f_nnunet.running.model import build_cascade, open_model
from c2f_nnunet.workspace import Workspace, store_folder


def one_organ(case: FitCase, c: int) -> FitCase:
    """The case for organ c alone, near where a source or the truth has it."""
    logits, truth = case.logits[:, c : c + 1], case.truth == c + 1
    inside = (logits[:, 0] > NEVER).any(axis=0) | truth
    return FitCase(case.id, logits[:, :, inside], truth[inside].astype(np.uint8), case.known[c : c + 1])


def score(case: FitCase, weights: FusionWeights) -> float:
    mask, truth = fuse(np.asarray(case.logits, np.float32), weights)[0] > 0, case.truth == 1
    return 100 * float(dsc((mask & truth).sum(), mask.sum(), truth.sum()))


def row(organ: str, cases: list[FitCase], sources: tuple[str, ...]) -> dict:
    """All scores of one organ."""
    def alone(v: int) -> FusionWeights:
        return FusionWeights((organ,), sources, tuple((float(v == u),) for u in range(len(sources))), (0.0,))

    def fitted(some: list[FitCase]) -> FusionWeights:
        return fit(lambda: iter(some), (organ,), sources)

    given = {s: alone(v) for v, s in enumerate(sources)} | {"mean": mean_weights((organ,), sources), "fitted": fitted(cases)}
    scores = {name: np.mean([score(c, w) for c in cases]) for name, w in given.items()}
    left_out = np.mean([score(c, fitted(cases[:k] + cases[k + 1 :])) for k, c in enumerate(cases)])
    return {"organ": organ, **scores, "left out": left_out, "chosen": given["fitted"].scores[0].chosen}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--workspace")
    p.add_argument("--raw", required=True, type=Path)
    p.add_argument("-d", dest="dataset")
    p.add_argument("--device", default=default_device())
    args = p.parse_args()
    workspace = Workspace.find(args.workspace)
    folder = workspace.model(args.dataset, None)
    model = open_model(folder)
    organs, split = model.plan.labels.organs, model.splits()[0]
    cascade, _ = build_cascade(model, (0,), "best", find_device(args.device))
    cases = {c.id: c for c in read_dataset(args.raw / model.plan.dataset).training}
    store = store_folder(workspace, folder.root.parent.name, folder.root.name)
    with tempfile.TemporaryDirectory() as scratch:
        views = [running._save_views(cascade, v, Path(scratch))() for v in stored_of(store, cascade.views[0], split.val)]
        maps: dict[str, list[FitCase]] = {o: [] for o in organs}
        for case in split.val:
            for organ, saved in running._save_maps(cascade, cases[case], Path(scratch), {o: [] for o in organs}):
                if saved.load:
                    maps[organ].append(one_organ(saved.load(), 0))
        names = tuple(m.name for m in cascade.views)
        tables = {"fusion of the views": [row(o, [one_organ(v, c) for v in views], names) for c, o in enumerate(organs)],
                  "merge of both stages": [row(o, maps[o], MERGE_SOURCES) for o in organs]}  # fmt: skip
    for title, rows in tables.items():
        table = pd.DataFrame(rows).set_index("organ")
        table.loc["mean"] = table.mean(numeric_only=True)
        print(f"{title}, {len(split.val)} cases\n{table.to_string(float_format=lambda v: f'{v:.2f}', na_rep='')}\n")


if __name__ == "__main__":
    sys.exit(main())
