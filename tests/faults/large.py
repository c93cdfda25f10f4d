"""A model of many organs and a scan of any size, made up: what predicting costs, without a training.

The coarse networks find nothing, so that every organ is looked for at its usual place; the fine ones call their whole crop the
organ, so that each crop is grown and every organ fills its box: as much work as a trained model can have with crops of this size.
"""
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from c2f_nnunet.geometry import Geometry
from c2f_nnunet.io import records
from c2f_nnunet.io.images import write_volume
from c2f_nnunet.labels import LabelSet
from c2f_nnunet.network.unet import build_network
from c2f_nnunet.planning.plan import MemberPlan, OrganPrior, Plan
from c2f_nnunet.training import checkpoint
from c2f_nnunet.workspace import ModelFolder

LPS = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
COARSE_MM, COARSE_SHAPE = 3.0, (96, 128, 160)
CROP_MM, CROP_SHAPE = 2.0, (32, 32, 32)
GROWN_MM3 = 48**3 * CROP_MM**3


def write_scan(path: Path, shape, spacing_mm) -> None:
    """A cylinder of soft tissue in air."""
    y, x = (np.arange(n) - n / 2 for n in shape[1:])
    inside = (y[:, None] / (0.4 * shape[1])) ** 2 + (x / (0.4 * shape[2])) ** 2 < 1
    hu = np.broadcast_to(np.where(inside, 40, -1000).astype(np.int16), shape)
    write_volume(path, hu, Geometry(shape, spacing_mm, (0.0, 0.0, 0.0), LPS))


def plan_of(tiny: Plan, organs: int) -> Plan:
    """The tiny plan on grids of real size, with this many organs: nine beside each other, every 100 mm from the top."""
    labels = LabelSet(tuple(f"Organ{i}" for i in range(organs)), tuple(range(1, organs + 1)))

    def view(m: MemberPlan) -> MemberPlan:
        network = replace(m.network, out_channels=labels.channels)
        return replace(m, organs=labels.organs, spacing_mm=(COARSE_MM,) * 3, shape=COARSE_SHAPE, network=network)

    def crop(organ: str) -> MemberPlan:
        return replace(tiny.member("3d_Stem"), name=f"3d_{organ}", organs=(organ,), spacing_mm=(CROP_MM,) * 3, shape=CROP_SHAPE)

    def prior(i: int, organ: str) -> OrganPrior:
        centre_mm = (-60.0 - 100 * (i // 9), -60.0 + 60 * (i % 9 // 3), -60.0 + 60 * (i % 3))
        return OrganPrior(organ, centre_mm, (1.0,) * 3, (40.0,) * 3, (0.1 * GROWN_MM3, GROWN_MM3, GROWN_MM3))

    coarse = replace(tiny.coarse, spacing_mm=(COARSE_MM,) * 3, shape=COARSE_SHAPE, members=tuple(view(m) for m in tiny.coarse.members))
    priors = tuple(prior(i, organ) for i, organ in enumerate(labels.organs))
    fine = replace(tiny.fine, priors=priors, members=tuple(crop(organ) for organ in labels.organs))
    return replace(tiny, labels=labels, coarse=coarse, fine=fine)


def write_model(root: Path, plan: Plan, folds: int = 1) -> ModelFolder:
    """A model folder whose networks nobody trained."""
    folder = ModelFolder(root)
    records.write(folder.plan, plan)
    for m in plan.members:
        network = build_network(m.network)
        for head in network.heads:
            torch.nn.init.zeros_(head.weight)
            torch.nn.init.constant_(head.bias, 0.0 if m.stage == "coarse" else 8.0)
            torch.nn.init.constant_(head.bias[:1], 8.0 if m.stage == "coarse" else -8.0)
        tensors = {f"average.{k}": v for k, v in network.state_dict().items()}
        for fold in range(folds):
            for which in ("best", "final"):
                checkpoint.save(folder.run(m.name, fold).checkpoint(which), tensors, {"progress": {}})
    return folder
