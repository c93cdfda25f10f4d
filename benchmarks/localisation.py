"""How far the coarse stage's boxes are off: centre and size against the reference's, per organ, on one fold's held-out cases.

The planner's jitter (and with it the crop's margin) must cover this error; the last columns say in how many cases it does.

  python benchmarks/localisation.py --workspace WS -d 15 --fold 0
"""
from __future__ import annotations

import argparse
import sys

import numpy as np
import pandas as pd

from c2f_nnunet.data.dataset import read_dataset
from c2f_nnunet.geometry import bounding_box, boxed
from c2f_nnunet.inference.cascade import run_coarse
from c2f_nnunet.io.images import read_image, read_label
from c2f_nnunet.network.precision import default_device, find_device
from c2f_nnunet.running.model import build_cascade, open_model
from c2f_nnunet.workspace import Workspace


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("-d", dest="dataset")
    p.add_argument("--workspace")
    p.add_argument("--fold", type=int, default=0)
    args = p.parse_args()
    workspace = Workspace.find(args.workspace)
    model = open_model(workspace.model(args.dataset, None))
    cascade, _ = build_cascade(model, (args.fold,), "best", find_device(default_device()), stage="coarse")
    cases = {c.id: c for c in read_dataset(workspace.raw / model.plan.dataset).training}
    members, rows = {o: m for m in model.plan.fine.members for o in m.organs}, []
    for case in model.splits()[args.fold].val:
        image, label = read_image(cases[case].image), read_label(cases[case].label)
        located = run_coarse(cascade, image.array, image.geometry).located
        truth = model.plan.labels.to_channels(label.array)
        for channel, (organ, place) in enumerate(located.items(), 1):
            box = bounding_box(truth == channel)
            if box is None or cases[case].annotated is not None and organ not in cases[case].annotated:
                continue
            off = np.abs(np.array(place.centre_world_mm) - image.geometry.world(box.centre))[::-1]
            member = members[organ]
            # the organ fits the crop where half of the crop is more than the centre's error and half of the organ
            room = (np.array(member.shape) * member.spacing_mm - boxed(image.geometry, box).extent_mm) / 2
            rows.append({"organ": organ, "z": off[0], "y": off[1], "x": off[2], "within jitter": (off <= np.array(member.jitter_mm)).all(),
                         "organ inside crop": (off <= room).all(), "jitter": " × ".join(f"{j:.1f}" for j in member.jitter_mm)})
    table = pd.DataFrame(rows)
    summary = table.groupby("organ", sort=False)
    errors = summary[["z", "y", "x"]].quantile([0.5, 0.95]).unstack().round(1)
    errors.columns = [f"{axis} {'median' if q == 0.5 else '95 %'} mm" for axis, q in errors.columns]
    shares = summary[["within jitter", "organ inside crop"]].sum().astype(int)
    print(errors.join(shares).join(summary.size().rename("cases")).join(summary["jitter"].first().rename("jitter mm")).to_string())


if __name__ == "__main__":
    sys.exit(main())
