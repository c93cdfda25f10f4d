"""One member trained under several settings, side by side: what documentation/experiments.md's tables of settings come from.

Each VARIANT is a comma-separated list of dotted plan fields, e.g. `network.background_prior=0,training.learning_rate=2e-3`
(an empty string is the plan as it is). Variants are trained in turn on fold 0 from one seed, each for the same steps or seconds;
the held-out Dice on the member's own grid is printed at three moments. Nothing is written.

  python benchmarks/member_settings.py --workspace WS -d 15 2d_top --steps 300 "" "network.background_prior=0"
"""
from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import closing

import pandas as pd

from c2f_nnunet.data.store import Store
from c2f_nnunet.io import records
from c2f_nnunet.network.precision import default_device, find_device
from c2f_nnunet.planning.plan import MemberPlan
from c2f_nnunet.running.members import validation
from c2f_nnunet.running.model import open_model
from c2f_nnunet.training.sampler import Batches, CachedVolumes, CropSource, SliceSource, stream
from c2f_nnunet.training.schedule import Budget
from c2f_nnunet.training.state import new_state
from c2f_nnunet.training.train import Clock, Place, make_step
from c2f_nnunet.workspace import Workspace, store_folder


def varied(member: MemberPlan, variant: str) -> MemberPlan:
    """The member with dotted fields replaced; features may be given as a base: network.base=8."""
    value = records.plain(member)
    for assignment in filter(None, variant.split(",")):
        path, _, text = assignment.partition("=")
        *parents, last = path.split(".")
        block = value
        for key in parents:
            block = block[int(key) if isinstance(block, list) else key]
        if path == "network.base":
            block["features"] = [int(text) * 2**i for i in range(len(block["features"]))]
        else:
            if last not in block:
                raise SystemExit(f"{path}: the plan has no such field")
            block[last] = text if isinstance(block[last], str) else json.loads(text.replace(";", ","))
    network = value["network"]
    network["in_channels"] = len(value["windows"]) * (2 * value["context_slices"] + 1) + value["position_channels"]
    return records.from_json(MemberPlan, value, f"variant '{variant}'")


def run(member: MemberPlan, model, store, args) -> list[dict]:
    """Train and score at a third, two thirds and the end."""
    split, device, plan = model.splits()[0], find_device(args.device), member.training
    volumes = Store(store.volumes(member.volumes))
    cached = CachedVolumes(volumes.of_cases(split.train), 4.0)
    source = SliceSource(member, model.plan.labels, cached) if member.stage == "coarse" else CropSource(member, cached)
    cached.load()
    validate = validation(model.plan, member, CachedVolumes(volumes.of_cases(split.val), 4.0), device)
    state = new_state(member.network, plan, args.seed, device)
    clock, marks, rows = Clock(Budget(args.steps, args.seconds), state.progress), [1 / 3, 2 / 3, 1.0], []
    step = make_step(state, plan, clock, Place(device))
    state.network.train()
    with closing(stream(Batches(source, plan.batch_size, args.seed, 0, 1), 1)) as batches:
        for batch in batches:
            loss, _ = step(batch)
            if clock.used() >= marks[0]:
                used_s, began = clock.elapsed_s, time.monotonic()
                found = {o: None if v is None else round(100 * v, 1) for o, v in validate(state.average.eval()).items()}
                defined = [v for v in found.values() if v is not None]
                mean = sum(defined) / max(1, len(defined))
                done = state.progress.step
                row = {"at": f"{marks.pop(0):.0%}", "steps": done, "ms/step": round(1000 * used_s / done), "loss": round(loss, 3)}
                rows.append(row | found | {"mean": mean})
                if not marks:
                    break
                clock.began += time.monotonic() - began  # validating costs no time here
    return rows


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("member")
    p.add_argument("variants", nargs="+")
    p.add_argument("-d", dest="dataset")
    p.add_argument("--workspace")
    p.add_argument("--steps", type=int)
    p.add_argument("--seconds", type=float)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--device", default=default_device())
    args = p.parse_args()
    workspace = Workspace.find(args.workspace)
    folder = workspace.model(args.dataset, None)
    model = open_model(folder)
    store = store_folder(workspace, folder.root.parent.name, folder.root.name)
    table = []
    for variant in args.variants:
        rows = run(varied(model.plan.member(args.member), variant), model, store, args)
        table += [{"variant": variant or "(plan)", **row} for row in rows]
        print(pd.DataFrame(table).to_string(index=False, float_format=lambda v: f"{v:.1f}"), "\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
