"""The plan: every number that preprocessing, training and prediction need, each beside the rule that derived it.

A plan is one JSON file. Each block (the plan, its stages, its members) has `rules`: field name → the rule and its
source in words, so a reader finds the reason for a number next to the number.
"""
from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from ..errors import PlanError
from ..io import records
from ..io.checks import SPACING_LIMITS_MM
from ..io.records import record
from ..labels import LabelSet
from .topology import IN_PLANE, divisors

PLAN_VERSION = 2
LARGEST_AXIS = 2048  # voxels along one axis of a volume or crop
MOST_LEVELS = 10


@record
class Window:
    """Intensities in: ((clip(HU, low, high) - low) / (high - low) - mean) / std. The paper's equation (5), where std is 1."""

    low_hu: float
    high_hu: float
    mean: float = 0.0
    std: float = 1.0


@record
class NetworkPlan:
    """An SE-U-Net. features and kernels have one entry per level, strides one per pooling (levels - 1).

    background_prior: the heads' first bias of the background, in log-odds: a new network then calls every voxel
    background with about the certainty that the data have, instead of learning that first (Lin et al. 2017, focal loss).
    """

    dimensions: Literal[2, 3]
    in_channels: int
    out_channels: int
    features: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]
    norm: Literal["instance", "batch"] = "instance"
    se_ratio: int = 8
    deep_supervision: bool = True
    background_prior: float = 0.0


@record
class LossPlan:
    """Which loss (see training/loss.py) and how classes are weighted in its cross-entropy.

    class_weights: "none"; "labels" or "predictions" (equation 2 with y or ŷ); "tempered" (equation 2's label reading
    to the power `temper`, scaled to mean 1).
    """

    name: Literal["dice_ce", "weighted_ce", "generalised_dice", "dice_focal"]
    class_weights: Literal["none", "labels", "predictions", "tempered"] = "none"
    temper: float = 0.0
    dice_weight: float = 1.0


@record
class TrainingPlan:
    """How one member is trained; the command line's settings replace these values and are recorded with the run."""

    batch_size: int
    epochs: int
    steps_per_epoch: int
    validate_every: int
    learning_rate: float
    optimiser: Literal["adam", "adamw", "sgd"]
    schedule: Literal["constant", "poly"]
    warmup_steps: int
    weight_decay: float
    ema_decay: float
    clip_norm: float
    loss: LossPlan
    foreground_share: float
    augmentation: Literal["paper", "full", "none"]

    @property
    def mirrors(self) -> bool:
        """Whether the network sees mirrored patients in training, so that it may be asked about them in prediction."""
        return self.augmentation == "full"


@record
class MemberPlan:
    """One network: what it sees and predicts, on which grid, and how it is trained.

    axis: the array axis that a 2D member slices across (0 top, 1 front, 2 side); None for a 3D member.
    organs: every organ of the label set for a coarse member; one organ, or a (left, right) pair that shares the
    network, for a fine one. shape, spacing_mm: of the prepared volume (coarse) or crop (fine), (z, y, x).
    jitter_mm: how far, along each axis and either way, training crops are moved off the organ; 0 for a coarse member.
    volumes: the folder of the store that it is trained from.
    """

    name: str
    stage: Literal["coarse", "fine"]
    organs: tuple[str, ...]
    axis: Literal[0, 1, 2] | None
    volumes: str
    spacing_mm: tuple[float, float, float]
    shape: tuple[int, int, int]
    windows: tuple[Window, ...]
    context_slices: int
    position_channels: int
    jitter_mm: tuple[float, float, float]
    network: NetworkPlan
    training: TrainingPlan
    minutes_share: float
    rules: dict[str, str]


@record
class CoarsePlan:
    """Stage 1: one prepared volume per case, seen from three sides."""

    spacing_mm: tuple[float, float, float]
    shape: tuple[int, int, int]
    body_percentile: float
    members: tuple[MemberPlan, ...]
    rules: dict[str, str]


@record
class OrganPrior:
    """Where an organ lies and how large it is in the training set; for the fallback of locate and for plausibility.

    centre_mm: median offset (z, y, x) of its centroid from the body box's anchor (top face, mid-y, mid-x); spread_mm: half the
    5–95 percentile range of that offset; extent_mm: 99th percentile; volume_mm3: 1st, 50th and 99th percentiles.
    """

    organ: str
    centre_mm: tuple[float, float, float]
    spread_mm: tuple[float, float, float]
    extent_mm: tuple[float, float, float]
    volume_mm3: tuple[float, float, float]


@record
class FinePlan:
    """Stage 2: how organs are located in the coarse result, and one member per organ or pair.

    thresholds: the ladder of probabilities at which an organ is looked for, high to low.
    """

    thresholds: tuple[float, ...]
    min_volume_share: float
    priors: tuple[OrganPrior, ...]
    members: tuple[MemberPlan, ...]
    rules: dict[str, str]


@record
class Plan:
    """A whole plan. fingerprint: SHA-256 of the fingerprint that it was derived from ("" for a reference plan)."""

    version: int
    name: str
    dataset: str
    labels: LabelSet
    file_ending: str
    fingerprint: str
    memory_target_gb: float
    coarse: CoarsePlan
    fine: FinePlan
    rules: dict[str, str]

    @property
    def members(self) -> tuple[MemberPlan, ...]:
        return self.coarse.members + self.fine.members

    def member(self, name: str) -> MemberPlan:
        for m in self.members:
            if m.name == name:
                return m
        known = ", ".join(m.name for m in self.members)
        raise PlanError(f"plan '{self.name}' has no configuration '{name}'; it has: {known}, or the groups coarse, fine, all")

    def prior(self, organ: str) -> OrganPrior:
        return next(p for p in self.fine.priors if p.organ == organ)


def read_plan(path: Path) -> Plan:
    """A plan from its file; PlanError for one of another version or with impossible numbers, RecordError for a wrong form."""
    value = records.read_json(path)
    if isinstance(value, dict) and value.get("version") != PLAN_VERSION:
        found = value.get("version")
        raise PlanError(f"{path}: plan version {found} and this program's {PLAN_VERSION} differ; run c2f_plan_and_preprocess again")
    return checked(records.from_json(Plan, value, path), path)


def checked(plan: Plan, path: Path) -> Plan:
    """The plan, or PlanError where its numbers are impossible or do not fit each other, or its names are no folders of their own."""
    for name in (plan.name, *(n for m in plan.members for n in (m.name, m.volumes))):
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise PlanError(f"{path}: '{name}' is no name for a folder; use letters, digits, '_', '-' and '.'")
    names = [m.name.casefold() for m in plan.members]
    if twice := sorted({m.name for m in plan.members if names.count(m.name.casefold()) > 1}):
        raise PlanError(f"{path}: {' and '.join(twice)} would share a folder; give each member a name of its own")
    refined = [o for m in plan.fine.members for o in m.organs]  # an organ that is in none of them keeps its coarse result
    if wrong := sorted({o for o in refined if refined.count(o) > 1 or o not in plan.labels.organs}):
        raise PlanError(f"{path}: {', '.join(wrong)}: in two fine members, or no organ of the plan; mend the plan")
    for what, block in (("the coarse volume", plan.coarse), *((m.name, m) for m in plan.members)):
        grid = f"{list(block.shape)} voxels of {list(block.spacing_mm)} mm"
        if min(*block.spacing_mm, *block.shape) <= 0:
            raise PlanError(f"{path}: {what}: {grid} are no grid, all must be above 0; mend the plan")
        low, high = SPACING_LIMITS_MM
        if min(block.spacing_mm) < low or max(block.spacing_mm) > high or max(block.shape) > LARGEST_AXIS:
            limits = f"at most {LARGEST_AXIS} voxels of {low:g} to {high:g} mm"
            raise PlanError(f"{path}: {what}: {grid} are no grid for a patient, {limits} along each axis are; mend the plan")
    for m in plan.members:
        for says in _misfits(m, plan.labels):
            raise PlanError(f"{path}: {m.name}: {says}; mend the plan")
    return plan


def _misfits(m: MemberPlan, labels: LabelSet) -> list[str]:
    """What does not hold together in a member."""
    network, coarse, levels = m.network, m.stage == "coarse", len(m.network.features)
    dimensions, outputs = (2, labels.channels) if coarse else (3, 2)
    channels = len(m.windows) * (2 * m.context_slices + 1) + m.position_channels
    strides, kernels = network.strides, network.kernels
    least = {
        "features": min(network.features, default=0), "se_ratio": network.se_ratio,
        **{name: getattr(m.training, name) for name in ("epochs", "steps_per_epoch", "validate_every", "batch_size")},
    }  # fmt: skip
    wrong = [
        (coarse == (m.axis is None), f"axis is {m.axis} in a {m.stage} member"),
        (network.dimensions != dimensions, f"dimensions is {network.dimensions}, a {m.stage} member has {dimensions}"),
        (coarse and m.organs != labels.organs, f"organs is {list(m.organs)}, a coarse member has all of the plan's"),
        (levels > MOST_LEVELS, f"{levels} levels are more than {MOST_LEVELS}"),
        (len(strides) + 1 != levels or len(kernels) != levels, f"{levels} features need as many kernels and one stride fewer"),
        (any(len(k) != dimensions or min(k) < 1 for k in strides + kernels), f"strides and kernels need {dimensions} numbers from 1 up"),
        (network.in_channels != channels, f"in_channels is {network.in_channels}, but its input has {channels}"),
        (network.out_channels != outputs, f"out_channels is {network.out_channels}, but it tells {outputs} apart"),
        *((n < 1, f"{name} is {n}, at least 1 is needed") for name, n in least.items()),
        (m.context_slices < 0, f"context_slices is {m.context_slices}, at least 0 is needed"),
        (any(w.high_hu <= w.low_hu for w in m.windows), "a window's high_hu is not above its low_hu"),
        (any(w.std <= 0 for w in m.windows), "a window's std is not above 0"),
    ]
    return [says for fails, says in wrong if fails] or _unpoolable(m)


def _unpoolable(m: MemberPlan) -> list[str]:
    """Whether a member's shape is none that its network can pool."""
    shape = m.shape if m.axis is None else tuple(m.shape[a] for a in IN_PLANE[m.axis])
    multiples = divisors(m.network.strides, m.network.dimensions)
    return [f"shape {shape} is no multiple of its strides' product {multiples}"] if any(n % k for n, k in zip(shape, multiples)) else []
