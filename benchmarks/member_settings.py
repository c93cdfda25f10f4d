"""One member trained under several settings, side by side: what documentation/experiments.md's tables of settings come from.

Each VARIANT is a comma-separated list of dotted plan fields, e.g. `network.background_prior=0,training.learning_rate=2e-3`
(an empty string is the plan as it is; lists are written with semicolons, as in `shape=[48;32;32]`). Variants are trained in
turn on fold 0 from one seed, each for the same steps or seconds, and scored on the held-out cases at three moments: a coarse
member on its own grid; a fine one on the scans' own grid, in the boxes that the workspace's trained coarse members give (alone,
and averaged with the coarse result). Nothing is written to the workspace; a fine variant's crops are made in a temporary folder.

  python benchmarks/member_settings.py --workspace WS -d 15 2d_top --steps 300 "" "network.background_prior=0"
"""
from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from c2f_nnunet.data.dataset import read_dataset
from c2f_nnunet.data.store import Store
from c2f_nnunet.evaluation.metrics import dsc
from c2f_nnunet.inference.cascade import run_coarse, run_fine
from c2f_nnunet.io import records
from c2f_nnunet.io.images import read_image, read_label
from c2f_nnunet.network.precision import default_device, find_device
from c2f_nnunet.planning.plan import MemberPlan
from c2f_nnunet.running.members import validation
from c2f_nnunet.running.model import build_cascade, open_model
from c2f_nnunet.running.preprocess import preprocess
from c2f_nnunet.training.sampler import Batches, CachedVolumes, CropSource, SliceSource, stream
from c2f_nnunet.training.schedule import Budget
from c2f_nnunet.training.state import new_state
from c2f_nnunet.training.train import Clock, Place, make_step
from c2f_nnunet.workspace import StoreFolder, Workspace, store_folder


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


class HeldOut:
    """The held-out cases as a trained coarse stage sees them; scores a fine member's network on the scans' own grid."""

    def __init__(self, model, dataset, device):
        self.cascade, _ = build_cascade(model, (0,), "best", device, stage="coarse")
        self.cases = []
        by_id = {c.id: c for c in dataset.training}
        for case in model.splits()[0].val:
            image, label = read_image(by_id[case].image), read_label(by_id[case].label)
            coarse = run_coarse(self.cascade, image.array, image.geometry)
            known = by_id[case].annotated or model.plan.labels.organs
            self.cases.append((image, model.plan.labels.to_channels(label.array), coarse, known))

    def scores(self, network, member: MemberPlan) -> dict[str, float]:
        """Mean DSC in % per organ: 'organ' of the fine network alone, 'organ+' averaged with the coarse log-odds."""
        plan, organs = self.cascade.plan, self.cascade.plan.labels.organs
        fine = replace(plan.fine, members=(member,))
        cascade = replace(self.cascade, plan=replace(plan, fine=fine), networks={**self.cascade.networks, member.name: [network]})
        found: dict[str, list[float]] = {}
        for image, truth, coarse, known in self.cases:
            for maps in run_fine(cascade, coarse, image.array, image.geometry):
                channel = organs.index(maps.organ) + 1
                size = int((truth == channel).sum())
                if maps.organ not in known or not size:
                    continue
                inside = truth[maps.box.slices] == channel
                for name, values in ((maps.organ, maps.fine), (maps.organ + "+", maps.coarse if maps.fine is None else maps.fine + maps.coarse)):
                    mask = np.zeros(inside.shape, bool) if values is None else values > 0
                    found.setdefault(name, []).append(100 * dsc(size, int(mask.sum()), int((mask & inside).sum())))
        return {name: float(np.mean(values)) for name, values in found.items()}


def drawn(cases: Sequence[str], count: int | None) -> Sequence[str]:
    """So many of the cases, always the same ones for a count, and a smaller count's among a larger one's; all for None."""
    return cases if count is None else [cases[i] for i in np.random.default_rng(0).permutation(len(cases))[:count]]


def run(member: MemberPlan, model, store: StoreFolder, args, held_out: HeldOut | None) -> list[dict]:
    """Train and score at a third, two thirds and the end."""
    split, device, plan = model.splits()[0], find_device(args.device), member.training
    volumes = Store(store.volumes(member.volumes))
    cached = CachedVolumes(volumes.of_cases(drawn(split.train, args.patients)), 4.0)
    source = SliceSource(member, model.plan.labels, cached) if member.stage == "coarse" else CropSource(member, cached)
    cached.load()
    if held_out:
        def validate(network):
            return {o: v / 100 for o, v in held_out.scores(network, member).items()}
    else:
        validate = validation(model.plan, member, CachedVolumes(volumes.of_cases(split.val), 4.0), device)
    state = new_state(member.network, plan, args.seed, device)
    clock, marks, rows, waited = Clock(Budget(args.steps, args.seconds), state.progress), [1 / 3, 2 / 3, 1.0], [], 0.0
    step = make_step(state, plan, clock, Place(device))
    state.network.train()
    with closing(stream(Batches(source, plan.batch_size, args.seed, 0, args.workers), args.workers)) as batches:
        while marks:
            before = clock.elapsed_s
            batch = next(batches)
            waited += clock.elapsed_s - before
            loss, _ = step(batch)
            if clock.used() >= marks[0]:
                used_s, began = clock.elapsed_s, time.monotonic()
                found = {o: None if v is None else round(100 * v, 1) for o, v in validate(state.average.eval()).items()}
                defined = [v for o, v in found.items() if v is not None and not o.endswith("+")]
                done = state.progress.step
                row = {"at": f"{marks.pop(0):.0%}", "steps": done, "ms/step": round(1000 * used_s / done), "waiting": f"{waited / used_s:.1%}",
                       "loss": round(loss, 3)}
                rows.append(row | found | {"mean": sum(defined) / max(1, len(defined))})
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
    p.add_argument("--patients", type=int, help="train with so many of the fold's training cases only")
    p.add_argument("--workers", type=int, default=1, help="augmentation processes (0: none)")
    p.add_argument("--device", default=default_device())
    args = p.parse_args()
    workspace = Workspace.find(args.workspace)
    folder = workspace.model(args.dataset, None)
    model = open_model(folder)
    store = store_folder(workspace, folder.root.parent.name, folder.root.name)
    dataset = read_dataset(workspace.raw / model.plan.dataset)
    fine = model.plan.member(args.member).stage == "fine"
    held_out, table = HeldOut(model, dataset, find_device(args.device)) if fine else None, []
    for variant in args.variants:
        member = varied(model.plan.member(args.member), variant)
        with tempfile.TemporaryDirectory() as scratch:
            made = store
            if fine:
                made = StoreFolder(Path(scratch))
                preprocess(dataset, model.plan, made, (member,), 2)
            rows = run(member, model, made, args, held_out)
        table += [{"variant": variant or "(plan)", **row} for row in rows]
        print(pd.DataFrame(table).to_string(index=False, float_format=lambda v: f"{v:.1f}"), "\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
