"""What a training step of a member costs on this machine, and what it consists of.

First table: milliseconds of a step (forward, backward, optimiser) for bf16 and fp32, batch and instance normalisation, channels-last and
plain layout: medians of turns, the settings in alternation. Second table: the share of operators in the plan's own step, by torch's profiler.

  python benchmarks/step_time.py --workspace WS -d 15 2d_top 3d_Parotid
"""
from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from contextlib import nullcontext
from dataclasses import replace

import pandas as pd
import torch
from torch.profiler import ProfilerActivity, profile

from c2f_nnunet.network.precision import find_device, has_bf16
from c2f_nnunet.planning.plan import MemberPlan
from c2f_nnunet.planning.topology import IN_PLANE
from c2f_nnunet.running.model import open_model
from c2f_nnunet.training.schedule import Budget
from c2f_nnunet.training.state import new_state
from c2f_nnunet.training.train import Clock, Place, make_step
from c2f_nnunet.workspace import Workspace

KINDS = {"convolution": ("conv",), "normalisation": ("norm",), "pooling": ("pool",), "activation": ("relu",), "optimiser": ("adam", "optimizer", "foreach", "lerp"),
         "loss": ("softmax", "where", "interpolate", "upsample")}


def batch_of(member: MemberPlan) -> dict:
    """Random input and labels of the member's shape."""
    shape = member.shape if member.axis is None else tuple(member.shape[a] for a in IN_PLANE[member.axis])
    n, generator = member.training.batch_size, torch.Generator().manual_seed(0)
    image = torch.randn(n, member.network.in_channels, *shape, generator=generator).numpy()
    target = torch.randint(0, member.network.out_channels, (n, *shape), generator=generator).short().numpy()
    return {"image": image, "target": target, "known": torch.ones(n, member.network.out_channels, dtype=torch.bool).numpy()}


def stepper(member: MemberPlan, device):
    state = new_state(member.network, member.training, 0, device)
    state.network.train()
    step = make_step(state, member.training, Clock(Budget(10_000), state.progress), Place(device))
    batch = batch_of(member)
    return lambda: step(batch)


def plain_step(member: MemberPlan, norm: str, bf16: bool, channels_last: bool):
    """One forward and backward pass and optimiser step, outside the training loop, under the settings compared."""
    state = new_state(replace(member.network, norm=norm), member.training, 0, torch.device("cpu"))
    layout = (torch.channels_last if member.axis is not None else torch.channels_last_3d) if channels_last else torch.contiguous_format
    network, x = state.network.to(memory_format=layout).train(), torch.from_numpy(batch_of(member)["image"]).to(memory_format=layout)

    def step():
        with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
            outputs = network(x)
        state.optimiser.zero_grad()
        sum(o.float().square().mean() for o in outputs).backward()
        state.optimiser.step()

    return step


def compare(member: MemberPlan, turns: int) -> pd.DataFrame:
    settings = list(itertools.product(("batch", "instance"), (True, False), (True, False)))
    steps = {s: plain_step(member, *s) for s in settings}
    times = {s: [] for s in settings}
    for turn in range(turns + 1):
        for s, step in steps.items():
            began = time.perf_counter()
            step()
            if turn:  # the first is a warm-up
                times[s].append(1000 * (time.perf_counter() - began))
    best = min(statistics.median(v) for v in times.values())
    return pd.DataFrame([
        {"member": member.name, "norm": norm, "precision": "bf16" if bf16 else "fp32", "layout": "channels last" if last else "plain",
         "ms": statistics.median(v), "ratio to the fastest": statistics.median(v) / best}
        for (norm, bf16, last), v in times.items()
    ])  # fmt: skip


def shares(member: MemberPlan, device) -> dict:
    """Share of a step's operator time by kind."""
    step = stepper(member, device)
    step()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(5):
            step()
    found = dict.fromkeys([*KINDS, "other"], 0.0)
    for event in profiler.key_averages():
        kind = next((k for k, words in KINDS.items() if any(w in event.key.lower() for w in words)), "other")
        found[kind] += event.self_cpu_time_total
    total = sum(found.values())
    return {"member": member.name, **{k: f"{v / total:.1%}" for k, v in found.items()}}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("members", nargs="+")
    p.add_argument("-d", dest="dataset")
    p.add_argument("--workspace")
    p.add_argument("--turns", type=int, default=7)
    args = p.parse_args()
    model = open_model(Workspace.find(args.workspace).model(args.dataset, None))
    device = find_device("cpu")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, bf16 in hardware: {has_bf16(device)}")
    members = [model.plan.member(name) for name in args.members]
    for member in members:
        print(compare(member, args.turns).to_string(index=False, float_format=lambda v: f"{v:.2f}"), flush=True)
    print(pd.DataFrame([shares(m, device) for m in members]).to_string(index=False))


if __name__ == "__main__":
    sys.exit(main())
