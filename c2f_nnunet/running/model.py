"""A model folder opened for use: its plan, splits, fusion file, and the trained networks of chosen folds."""
from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import Iterator
from typing import Mapping

import torch
from torch import nn

from ..data.dataset import Case
from ..data.fingerprint import Fingerprint
from ..data.splits import Split, make_splits, read_splits, write_splits
from ..errors import DatasetError, ModelError
from ..inference.cascade import Cascade
from ..inference.fusion import FUSION_VERSION, FusionFile, read_fusion
from ..io import records
from ..network.precision import place
from ..network.unet import build_network
from ..planning.plan import MemberPlan, Plan, read_plan
from ..training import checkpoint
from ..training.state import fitting_weights, restore_weights
from ..workspace import ModelFolder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """A planned (and possibly trained) model."""

    folder: ModelFolder
    plan: Plan

    @property
    def fusion(self) -> FusionFile:
        """fusion.json, or an empty one where nothing was fitted yet; ModelError where it is of other organs than the plan."""
        if not self.folder.fusion.exists():
            return FusionFile(FUSION_VERSION, None, None, ())
        found = read_fusion(self.folder.fusion)
        for weights in filter(None, (found.coarse, found.merge)):
            if weights.organs != self.plan.labels.organs:
                theirs, ours = ", ".join(weights.organs), ", ".join(self.plan.labels.organs)
                raise ModelError(f"{self.folder.fusion}: was fitted for {theirs}, the plan has {ours}; remove it and run c2f_train again")
        return found

    def splits(self) -> tuple[Split, ...]:
        """splits_final.json; made by nnU-Net's rule where it is not there."""
        training = trained_on(self.folder)
        if self.folder.splits.exists():
            return read_splits(self.folder.splits, training)
        return write_splits(self.folder.splits, make_splits(training, patients_of(self.folder)))

    def trained_folds(self, member: MemberPlan, which: str = "best") -> tuple[int, ...]:
        """Folds whose training of this member is finished (has its final checkpoint)."""
        folds = sorted(int(f.name[5:]) for f in (self.folder.root / member.name).glob("fold_*") if f.name[5:].isdigit())
        return tuple(f for f in folds if all(checkpoint.exists(self.folder.run(member.name, f).checkpoint(w)) for w in {"final", which}))

    def result_hash(self, found: Mapping[str, tuple[int, ...]], which: str, flips: bool) -> str:
        """Hash of all that decides what the cascade of these members' folds predicts: plan, weights, fits, mirroring."""
        parts = [self.inputs_hash((self.plan.member(name),), folds, which) for name, folds in found.items()]
        parts += [records.to_text(self.plan), records.to_text(self.fusion), str(flips)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def inputs_hash(self, members: tuple[MemberPlan, ...], folds: tuple[int, ...], which: str) -> str:
        """Hash of the checkpoints of these members and folds: changes when any is trained again."""
        digest = hashlib.sha256()
        for m in members:
            for fold in folds:
                record, _ = checkpoint.usable_files(self.folder.run(m.name, fold).checkpoint(which))
                digest.update(record.read_bytes())
        return digest.hexdigest()


def open_model(folder: ModelFolder) -> Model:
    """Read a model folder's plan."""
    if not folder.plan.exists():
        raise ModelError(f"{folder.plan}: no plan there; give a model folder, or run c2f_plan_and_preprocess first")
    return Model(folder, read_plan(folder.plan))


def trained_on(folder: ModelFolder) -> tuple[str, ...]:
    """The training cases, from the fingerprint."""
    return tuple(c.id for c in records.read(Fingerprint, folder.fingerprint).cases)


def patients_of(folder: ModelFolder) -> dict[str, str]:
    return {k: str(v) for k, v in (records.read_json(folder.dataset_json).get("patients") or {}).items()}


def held_out_case(cases: Mapping[str, Case], case_id: str) -> Case:
    """A case of the splits among the raw data set's; DatasetError where it is not there any more."""
    if case_id not in cases:
        raise DatasetError(f"{case_id}: is in splits_final.json but not in the raw data set; put its files back, or plan again without it")
    return cases[case_id]


def load_network(model: Model, member: MemberPlan, fold: int, which: str, device: torch.device) -> nn.Module:
    """One trained network in eval mode; ModelError where its newest weights are damaged: older ones would be another network."""
    path = model.folder.run(member.name, fold).checkpoint(which)
    tensors, _, _ = checkpoint.load(path, newest_only=True)
    with torch.device("meta"):  # without memory: a foreign plan may ask for a network of any size
        fitting_weights(build_network(member.network), tensors, "average.", str(path))
    network = build_network(member.network)
    restore_weights(network, tensors, "average.", str(path))
    return place(network, device, member.network.dimensions).eval()


@dataclass(frozen=True)
class FoldNetworks:
    """One member's networks, loaded one at a time as they are iterated over: memory does not grow with the folds."""

    model: Model
    member: MemberPlan
    folds: tuple[int, ...]
    which: str
    device: torch.device

    def __len__(self) -> int:
        return len(self.folds)

    def __contains__(self, network: object) -> bool:
        return False  # each iteration makes new ones

    def __iter__(self) -> Iterator[nn.Module]:
        for fold in self.folds:
            yield load_network(self.model, self.member, fold, self.which, self.device)


def _checked(networks: FoldNetworks) -> FoldNetworks | list[nn.Module]:
    """Every network loaded once, so that a damaged one is an error before anything is computed; a single one is kept."""
    if len(networks) == 1:
        return list(networks)
    for _ in networks:
        pass
    return networks


def _require_checkpoint(model: Model, which: str) -> None:
    """ModelError where the views have only the other kind of checkpoint, as in a model that was exported so."""
    other, views = "final" if which == "best" else "best", model.plan.coarse.members
    if not any(model.trained_folds(m, which) for m in views) and any(model.trained_folds(m, other) for m in views):
        raise ModelError(f"{model.folder.root}: holds no checkpoint_{which}, only checkpoint_{other}; give -chk {other}")


def build_cascade(
    model: Model, folds: tuple[int, ...] | None, which: str, device: torch.device, flips: bool = True, stage: str = "fine"
) -> tuple[Cascade, dict[str, tuple[int, ...]]]:
    """The cascade with every trained network of these folds (None: all found), and which folds each member has.

    ModelError where no view is trained, or a fold that was asked for is missing from a member that others have.
    """
    _require_checkpoint(model, which)
    members = model.plan.coarse.members + (model.plan.fine.members if stage == "fine" else ())
    found: dict[str, tuple[int, ...]] = {}
    for m in members:
        have = model.trained_folds(m, which)
        use = tuple(f for f in have if folds is None or f in folds)
        if use:
            found[m.name] = use
        if folds and set(folds) - set(use):
            missing, trained = sorted(set(folds) - set(use)), ", ".join(map(str, have)) or "none"
            raise ModelError(
                f"{model.folder.root / m.name}: fold {', '.join(map(str, missing))} is not trained (trained: {trained}); "
                f"run c2f_train {m.name} {missing[0]} or leave -f out"
            )
    if not any(m.name in found for m in model.plan.coarse.members):
        raise ModelError(f"{model.folder.root}: no trained coarse member there; run c2f_train all all first")
    if missing := [m.name for m in members if m.name not in found]:
        log.warning("%s: not trained and left out: %s", model.folder.root, ", ".join(missing))
    networks = {m.name: _checked(FoldNetworks(model, m, found[m.name], which, device)) for m in members if m.name in found}
    fusion = model.fusion
    made_of = model.result_hash(found, which, flips)
    return Cascade(model.plan, networks, fusion.coarse, fusion.merge, device, flips, fusion.presence, made_of), found
