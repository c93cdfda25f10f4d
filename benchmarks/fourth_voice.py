"""Does a 3D network over the whole coarse volume help the three views? It is trained here, or read, and joins them with several shares.

  python benchmarks/fourth_voice.py segresnet_ds --workspace WS -d 15 --minutes 7 --filters 8 --batch 2

The workspace holds a trained fold 0. On its held-out cases, on the scans' own grid: DSC of the coarse result and of the final one, with the
coarse log-odds (1 - share) times those of the fused views plus share times the 3D network's; share 1 is that network alone. The
networks and weights of the fine stage and of the merge stay as they were fitted without it.
"""
from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "peers"))
from single_network import trained  # noqa: E402  (beside this script, not a package)
from whole_volume import Frame, predict  # noqa: E402

from c2f_nnunet.data.dataset import read_dataset  # noqa: E402
from c2f_nnunet.data.store import Store  # noqa: E402
from c2f_nnunet.evaluation.metrics import dsc  # noqa: E402
from c2f_nnunet.inference.cascade import coarse_maps, merge, run_coarse, run_fine  # noqa: E402
from c2f_nnunet.inference.fusion import log_odds  # noqa: E402
from c2f_nnunet.io.images import read_image, read_label  # noqa: E402
from c2f_nnunet.network.precision import find_device  # noqa: E402
from c2f_nnunet.running.model import build_cascade, open_model  # noqa: E402
from c2f_nnunet.workspace import Workspace, store_folder  # noqa: E402

SHARES = (0.0, 0.25, 0.5, 1.0)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("network", choices=("segresnet", "segresnet_ds", "dynunet"))
    p.add_argument("--workspace")
    p.add_argument("-d", dest="dataset")
    p.add_argument("--minutes", type=float, required=True)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--filters", type=int, default=8)
    p.add_argument("--patch", type=int, nargs=3, default=(64, 64, 64), help="voxels (z, y, x), multiples of 16")
    p.add_argument("--batch", type=int, default=2)
    p.add_argument("--lr", type=float, default=3e-3)
    p.add_argument("--weights", type=Path, help="where the trained weights are kept; where they are there, nothing is trained")
    args = p.parse_args()
    args.fold = 0
    workspace = Workspace.find(args.workspace)
    folder = workspace.model(args.dataset, None)
    model, device = open_model(folder), find_device("cpu")
    coarse = model.plan.coarse
    frame = Frame(tuple(args.patch), coarse.spacing_mm, coarse.members[0].windows)
    volumes = Store(store_folder(workspace, folder.root.parent.name, folder.root.name).volumes("coarse"))
    network = trained(model, volumes, frame, args)
    rows = scores(model, network, frame, workspace.raw, device)
    table = pd.DataFrame(rows, columns=["stage", "share", "organ", "dsc"]).pivot_table("dsc", ["stage", "share"], "organ", sort=False)
    print(table.assign(mean=table.mean(axis=1)).to_string(float_format=lambda v: f"{v:.1f}"))


def scores(model, network, frame: Frame, raw: Path, device) -> list[tuple[str, float, str, float]]:
    """(stage, share, organ, DSC in %) of every held-out case."""
    plan, labels = model.plan, model.plan.labels
    cascade, _ = build_cascade(model, (0,), "best", device)
    cases, rows = {c.id: c for c in read_dataset(raw / plan.dataset).training}, []
    for case in model.splits()[0].val:
        image, truth = read_image(cases[case].image), labels.to_channels(read_label(cases[case].label).array)
        views = run_coarse(cascade, image.array, image.geometry)
        voice = log_odds(predict(network, frame, labels, views.prepared.hu, views.prepared.anchor_index, device)[1:])
        for share in SHARES:
            joined = replace(views, logits=(1 - share) * views.logits + share * voice)
            stages = {
                "coarse": coarse_maps(plan, joined.logits, joined.prepared, image.geometry),
                "final": run_fine(cascade, joined, image.array, image.geometry),
            }
            for stage, maps in stages.items():
                channels = merge(plan, maps, image.geometry, cascade.merge_weights, joined.located).channels
                for i, organ in enumerate(labels.organs, 1):
                    a, b = truth == i, channels == i
                    rows.append((stage, share, organ, 100 * dsc(int(a.sum()), int(b.sum()), int((a & b).sum()))))
    return rows


if __name__ == "__main__":
    sys.exit(main())
