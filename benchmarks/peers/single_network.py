"""One 3D network for all organs, MONAI's SegResNet, its deeply supervised kin or DynUNet: the strongest simple peer, trained by this project's own pipeline.

Volumes, intensity windows, position channels, augmentation, loss, optimiser, schedule and averaging of weights are those of this project's
views, so the network is all that differs; its size, patch, batch and rate are options. Needs a planned and preprocessed workspace.

  python benchmarks/peers/single_network.py segresnet --workspace WS -d 15 --minutes 20 --weights FILE -i imagesTs -o OUT

Trained weights are kept in FILE; where it is there, they are read and nothing is trained.
"""
from __future__ import annotations

import argparse
import copy
import json
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from monai.networks.nets import DynUNet, SegResNet, SegResNetDS
from torch import nn
from whole_volume import Frame, WindowSource, predict

from c2f_nnunet.data.dataset import prediction_cases
from c2f_nnunet.data.store import Store
from c2f_nnunet.inference.cascade import coarse_maps, merge
from c2f_nnunet.inference.fusion import log_odds, mean_weights
from c2f_nnunet.io.images import read_image, write_label
from c2f_nnunet.network.precision import find_device, place
from c2f_nnunet.preparing.prepare import prepare_volume
from c2f_nnunet.running.members import dice_by_organ
from c2f_nnunet.running.model import open_model
from c2f_nnunet.training.sampler import Batches, CachedVolumes, stream
from c2f_nnunet.training.schedule import Budget
from c2f_nnunet.training.state import OPTIMISERS, TrainState
from c2f_nnunet.training.train import Clock, Place, make_step
from c2f_nnunet.workspace import Workspace, store_folder

BACKGROUND = 4.0  # log-odds that the heads start with, as this project's networks do


class Listed(nn.Module):
    """A MONAI network whose outputs come as this project's: a list of logits, finest first."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        y = self.network(x)
        if isinstance(y, list):
            return y
        return list(y.unbind(1)) if y.ndim == 6 else [y]


def build(name: str, filters: int, channels_in: int, channels_out: int) -> nn.Module:
    if name == "segresnet":
        network = SegResNet(3, filters, channels_in, channels_out, norm=("INSTANCE", {"affine": True}))
        heads = [network.conv_final[-1].conv]
    elif name == "segresnet_ds":
        network = SegResNetDS(3, filters, channels_in, channels_out, norm="instance", dsdepth=3)
        heads = [level["head"] for level in network.up_layers]
    else:
        strides = [1, 2, 2, 2, 2]
        features = [min(filters * 2**i, 320) for i in range(len(strides))]
        network = DynUNet(
            3, channels_in, channels_out, [3] * len(strides), strides, strides[1:], features, deep_supervision=True, deep_supr_num=2
        )
        heads = [network.output_block.conv.conv, *(h.conv.conv for h in network.deep_supervision_heads)]
    for head in heads:
        nn.init.constant_(head.bias[:1], BACKGROUND)
    return Listed(network)


def train(model, volumes: Store, frame: Frame, args) -> nn.Module:
    """Train on the fold's training cases for the minutes given; returns the averaged network, its held-out Dice printed."""
    split, device, labels = model.splits()[args.fold], find_device("cpu"), model.plan.labels
    plan = replace(model.plan.coarse.members[0].training, batch_size=args.batch, learning_rate=args.lr)
    cached = CachedVolumes(volumes.of_cases(split.train), 4.0)
    source = WindowSource(frame, labels, cached, plan.foreground_share)
    torch.manual_seed(args.seed)
    network = place(build(args.network, args.filters, frame.in_channels, labels.channels), device, 3)
    state = TrainState(network, copy.deepcopy(network), OPTIMISERS[plan.optimiser](network.parameters(), plan))
    clock = Clock(Budget(None, 60 * args.minutes), state.progress)
    step = make_step(state, plan, clock, Place(device))
    network.train()
    waited, losses = 0.0, []
    with closing(stream(Batches(source, plan.batch_size, args.seed, 0, 1), 1)) as batches:
        while clock.used() < 1:
            before = clock.elapsed_s
            batch = next(batches)
            waited += clock.elapsed_s - before
            losses.append(step(batch)[0])
            if state.progress.step % 100 == 0:
                print(f"step {state.progress.step}, {clock.elapsed_s:.0f} s, loss {np.mean(losses[-100:]):.3f}", flush=True)
    used = clock.elapsed_s
    print(f"{state.progress.step} steps in {used:.0f} s ({waited / used:.1%} waiting for data)")
    average = state.average.eval()
    score_held_out(average, volumes, split.val, frame, labels)
    return average


def trained(model, volumes: Store, frame: Frame, args) -> nn.Module:
    """The network of `--weights` where it is there, else a new one, kept there."""
    if args.weights is None:
        return train(model, volumes, frame, args)
    if not args.weights.exists():
        # DynUNet has its modules under two names each, and safetensors refuses tensors that are shared
        weights = {k: v.contiguous().clone() for k, v in train(model, volumes, frame, args).state_dict().items()}
        args.weights.parent.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(weights, unfinished := args.weights.with_suffix(".part"))
        unfinished.rename(args.weights)
    network = place(build(args.network, args.filters, frame.in_channels, model.plan.labels.channels), find_device("cpu"), 3)
    network.load_state_dict(safetensors.torch.load_file(args.weights))
    return network.eval()


def score_held_out(network: nn.Module, volumes: Store, cases, frame: Frame, labels) -> None:
    """Print the mean DSC of each organ over the held-out cases, on the coarse grid."""
    found: dict[str, list[float]] = {}
    for volume in volumes.of_cases(cases):
        p = predict(network, frame, labels, volume.image[:], volume.record.anchor_index, find_device("cpu"))
        for organ, value in dice_by_organ(volume.labels[:], p.argmax(0), {o: i for i, o in enumerate(labels.organs, 1) if o in volume.record.known}).items():
            found.setdefault(organ, []).extend([] if value is None else [100 * value])
    means = {o: round(float(np.mean(v)), 2) for o, v in found.items()}
    print(json.dumps({"held-out DSC %": means, "mean": round(float(np.mean(list(means.values()))), 2)}), flush=True)


def predict_images(model, network: nn.Module, frame: Frame, images: Path, out: Path) -> None:
    """Label maps of every image, brought back to its grid as this project's coarse stage does."""
    plan, device = model.plan, find_device("cpu")
    for case in prediction_cases(images, plan.file_ending):
        image = read_image(case.image)
        prepared = prepare_volume(image.array, image.geometry, plan.coarse)
        p = predict(network, frame, plan.labels, prepared.hu, prepared.anchor_index, device)[1:]
        maps = coarse_maps(plan, log_odds(p), prepared, image.geometry)
        result = merge(plan, maps, image.geometry, mean_weights(plan.labels.organs, ("fine", "coarse")), {})
        write_label(out / f"{case.id}{plan.file_ending}", plan.labels.to_ids(result.channels), image.source)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("network", choices=("segresnet", "segresnet_ds", "dynunet"))
    p.add_argument("--workspace")
    p.add_argument("-d", dest="dataset")
    p.add_argument("--minutes", type=float, required=True)
    p.add_argument("--fold", type=int, default=0)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--filters", type=int, default=16)
    p.add_argument("--patch", type=int, nargs=3, default=(64, 64, 64), help="voxels (z, y, x), multiples of 16")
    p.add_argument("--batch", type=int, default=1)
    p.add_argument("--lr", type=float, default=3e-3)
    p.add_argument("--weights", type=Path, help="where the trained weights are kept; where they are there, nothing is trained")
    p.add_argument("-i", dest="images", type=Path)
    p.add_argument("-o", dest="out", type=Path)
    args = p.parse_args()
    workspace = Workspace.find(args.workspace)
    folder = workspace.model(args.dataset, None)
    model = open_model(folder)
    coarse = model.plan.coarse
    frame = Frame(tuple(args.patch), coarse.spacing_mm, coarse.members[0].windows)
    volumes = Store(store_folder(workspace, folder.root.parent.name, folder.root.name).volumes("coarse"))
    network = trained(model, volumes, frame, args)
    if args.images and args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        predict_images(model, network, frame, args.images, args.out)


if __name__ == "__main__":
    sys.exit(main())
