"""Do fitted fusion and merge weights carry over to cases that they were not fitted on?

  python benchmarks/fusion_left_out.py --workspace WS --raw RAW -d 15

Every trained fold of a workspace. For the views' fusion (on the coarse grid) and for the merge of both stages (on the scans' grid): mean DSC in % of
each source alone, of the plain mean, of the fit on a fold's held-out cases on these same cases ('fitted'), and 'unseen': on the other folds' cases, each
predicted by its own fold's networks; where one fold is trained, on each case left out of the fit in turn.
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


def row(organ: str, folds: list[list[FitCase]], sources: tuple[str, ...]) -> dict:
    """All scores of one organ; folds: each one's held-out cases."""
    def alone(v: int) -> FusionWeights:
        return FusionWeights((organ,), sources, tuple((float(v == u),) for u in range(len(sources))), (0.0,))

    def fitted(some: list[FitCase]) -> FusionWeights:
        return fit(lambda: iter(some), (organ,), sources)

    every = [c for cases in folds for c in cases]
    given = {s: alone(v) for v, s in enumerate(sources)} | {"mean": mean_weights((organ,), sources)}
    scores = {name: np.mean([score(c, w) for c in every]) for name, w in given.items()}
    fits = [fitted(cases) for cases in folds]
    scores["fitted"] = np.mean([score(c, w) for w, cases in zip(fits, folds) for c in cases])
    if len(folds) > 1:
        unseen = [score(c, w) for k, w in enumerate(fits) for j, cases in enumerate(folds) if j != k for c in cases]
    else:
        unseen = [score(c, fitted(every[:k] + every[k + 1 :])) for k, c in enumerate(every)]
    return {"organ": organ, **scores, "unseen": np.mean(unseen), "chosen": ", ".join(w.scores[0].chosen for w in fits)}


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
    organs, names = model.plan.labels.organs, tuple(m.name for m in model.plan.coarse.members)
    cases = {c.id: c for c in read_dataset(args.raw / model.plan.dataset).training}
    store = store_folder(workspace, folder.root.parent.name, folder.root.name)
    views: dict[str, list[list[FitCase]]] = {o: [] for o in organs}  # by organ and fold
    maps: dict[str, list[list[FitCase]]] = {o: [] for o in organs}
    for fold in running.complete_folds(model, model.plan.members, "best"):
        cascade, _ = build_cascade(model, (fold,), "best", find_device(args.device))
        split = model.splits()[fold]
        for organ in organs:
            views[organ].append([])
            maps[organ].append([])
        with tempfile.TemporaryDirectory() as scratch:
            for volume in stored_of(store, cascade.views[0], split.val):
                case = running._save_views(cascade, volume, Path(scratch))()
                for c, organ in enumerate(organs):
                    views[organ][-1].append(one_organ(case, c))
            for case in split.val:
                for organ, saved in running._save_maps(cascade, cases[case], Path(scratch), {o: [] for o in organs}):
                    if saved.load:
                        maps[organ][-1].append(one_organ(saved.load(), 0))
    for title, found, sources in (("fusion of the views", views, names), ("merge of both stages", maps, MERGE_SOURCES)):
        table = pd.DataFrame([row(o, found[o], sources) for o in organs]).set_index("organ")
        table.loc["mean"] = table.mean(numeric_only=True)
        print(f"{title}\n{table.to_string(float_format=lambda v: f'{v:.2f}', na_rep='')}\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
