"""What becomes of an organ that a patient does not have: the quickstart's model on phantom patients after surgery.

Makes phantoms that the model never saw, each without one gland, and predicts them twice: with the weighing of misses against
absences (inference/presence.py) and without. Also counts the organs that are there and came out empty.

  python benchmarks/absent_organs.py --workspace quickstart_workspace --patients 12
"""
from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from c2f_nnunet.inference.cascade import merge, run_coarse, run_fine
from c2f_nnunet.network.precision import default_device, find_device
from c2f_nnunet.running.model import build_cascade, open_model
from c2f_nnunet.workspace import Workspace

sys.path.append(str(Path(__file__).resolve().parents[1] / "dataset_conversion"))
import phantom  # noqa: E402  (a script beside the package, not a part of it)

GLANDS = ("Submandibular_R", "Parotid_L", "Submandibular_L", "Parotid_R")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--workspace", required=True, help="that of a quickstart")
    p.add_argument("--patients", type=int, default=12)
    p.add_argument("--first", type=int, default=100, help="number of the first patient; the quickstart's own are below 100")
    args = p.parse_args()
    model = open_model(Workspace.find(args.workspace).model(None, None))
    weighing, _ = build_cascade(model, None, "best", find_device(default_device()))
    told = pd.DataFrame([{"organ": t.organ, "found": f"{t.found}/{t.present}", "lacking": f"{t.absent}/{t.cases}",
                          "odds": t.odds_of_absence, "a miss is": "absence" if t.a_miss_means_absent else "looked at"} for t in weighing.presence])
    print(told.to_string(index=False, float_format=lambda v: f"{v:.2f}"))
    rows, lost = [], Counter()
    for number in tqdm(range(args.first, args.first + args.patients), unit="patient", disable=None):
        phantom.ABSENT[number] = gland = GLANDS[number % len(GLANDS)]
        hu, _, geometry, _ = phantom.make_case(0, number)
        coarse = run_coarse(weighing, hu, geometry)
        row = {"patient": number, "lacks": gland, "found at": coarse.located[gland].how}
        for name, cascade in (("alone", replace(weighing, presence=())), ("weighed", weighing)):
            maps = run_fine(cascade, coarse, hu, geometry)
            result = merge(model.plan, maps, geometry, cascade.merge_weights, coarse.located, frozenset(model.fusion.clean))
            drawn = {r.organ: r.volume_ml for r in result.reports}
            row[f"{name}: ml drawn"] = drawn[gland]
            lost[name] += sum(ml == 0 for organ, ml in drawn.items() if organ != gland)
        rows.append(row)
    table = pd.DataFrame(rows)
    print(table.to_string(index=False, float_format=lambda v: f"{v:.1f}"))
    for name in ("alone", "weighed"):
        empty = int((table[f"{name}: ml drawn"] == 0).sum())
        there = args.patients * (len(model.plan.labels.organs) - 1)
        print(f"{name}: {empty} of {args.patients} absent glands came out empty; of {there} organs that are there, {lost[name]} did")


if __name__ == "__main__":
    sys.exit(main())
