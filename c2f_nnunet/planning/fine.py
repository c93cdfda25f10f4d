"""Stage 2's rules: which organs share a network, and each one's spacing, crop, window and network."""
from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..data.fingerprint import Fingerprint, OrganStats
from ..errors import PlanError
from ..labels import member_name, member_names
from .budget import Budget, batch_rule, features_rule, largest_batch
from .coarse import BACKGROUND_PRIOR, COMMON_RULES, NEVER_MORE_POOLINGS, SOFT_HU, widened, windows
from .plan import FinePlan, LossPlan, MemberPlan, NetworkPlan, OrganPrior, TrainingPlan, Window
from .topology import divisors, features, kernels, round_up, strides

VOXELS_ACROSS = 12.0
CONTEXT_MM = 14.0
FINE_GRID_MM = 2.5  # where a grid counts as fine to a pair; between 1.6 and 4.4 mm nothing was measured (experiment 46)
BASE_FEATURES = {True: 32, False: 12}
LARGEST_CROP = {True: 128**3, False: 2 * 64**3}
VOXELS_PER_STEP = {True: 4 * 128**3, False: 64**3}


def fine_groups(fingerprint: Fingerprint) -> list[tuple[str, ...]]:
    """Left/right pairs share a network (the left one mirrored) and so have twice the data; every other organ has its own."""
    paired = {organ: pair for pair in fingerprint.pairs for organ in pair}
    return list(dict.fromkeys(paired.get(organ, (organ,)) for organ in fingerprint.labels.organs))


def stats_of(fingerprint: Fingerprint, organs: tuple[str, ...]) -> list[OrganStats]:
    """Every case's statistics of these organs; PlanError where no case has any."""
    found = [c.organs[o] for c in fingerprint.cases for o in organs if o in c.organs]
    if not found:
        what = " and ".join(organs)
        remedy = "remove it from dataset.json's labels or add cases that have it"
        raise PlanError(f"{fingerprint.dataset}: {what} is in no training case; {remedy}")
    return found


def fine_spacing_mm(found: list[OrganStats], own_mm, coarse_mm, extent_mm, largest: int) -> tuple[tuple[float, float, float], str]:
    """About twelve voxels across the organ, never finer than the data nor coarser than stage 1, coarser where the crop would be too large."""
    size = float(np.median([s.volume_mm3 for s in found])) ** (1 / 3)
    spacing = np.maximum(own_mm, np.minimum(size / VOXELS_ACROSS, coarse_mm))
    while np.prod(crop_grid(extent_mm, spacing)[1]) > largest:
        spacing = np.where(spacing < spacing.min() * 1.05, spacing * 1.05, spacing)
    rule = (
        f"the organ's size ({size:.1f} mm, cube root of its median volume) over {VOXELS_ACROSS:.0f}, "
        f"not under the data's own median spacing nor over the coarse one, crop at most {largest:,} voxels"
    )
    return tuple(round(float(s), 4) for s in spacing), rule


def crop_grid(extent_mm, spacing_mm) -> tuple[tuple[tuple[int, ...], ...], tuple[int, int, int]]:
    """Poolings and shape of a crop: the extent in voxels, up to what the poolings divide by."""
    voxels = tuple(float(e / s) for e, s in zip(extent_mm, spacing_mm))
    steps = strides(voxels, spacing_mm)
    return steps, round_up(voxels, divisors(steps, 3))


def jitter_mm(found: list[OrganStats], coarse_spacing_mm) -> tuple[float, float, float]:
    """How far the coarse box's centre may be off along each axis: a quarter of the 5-95 percentile range of the organ's extent,
    and one coarse voxel (its longest side).

    What the coarse stage mistakes is where an organ ends, since readers and patients differ there as its extents do; an end
    that is off by half of that range moves the middle by a quarter. Measured in documentation/experiments.md, 4.
    """
    low, high = np.percentile([s.extent_mm for s in found], [5, 95], axis=0)
    return tuple(round(float(v), 2) for v in (high - low) / 4 + max(coarse_spacing_mm))


def crop_extent_mm(found: list[OrganStats], jitter_mm) -> np.ndarray:
    """What a crop must hold along each axis: the 99th percentile of the organ's extent, and on each side the jitter and some context."""
    return np.percentile([s.extent_mm for s in found], 99, axis=0) + 2 * (np.array(jitter_mm) + CONTEXT_MM)


def fine_windows(organs: tuple[str, ...], found: list[OrganStats], fingerprint: Fingerprint, spacing_mm) -> tuple[tuple[Window, ...], str]:
    """The organ's own window, and for a soft organ the views' wide one beside it, where bone is not white without structure.

    Not for a pair on a coarse grid: parotids lost by it at 4.4 mm and gained at 1.6 (documentation/experiments.md, 23, 45 and 46).
    """
    low, mid, high = (float(v) for v in np.median([s.hu for s in found], axis=0))
    own, views = widened(low, high, mid, share=0.5), windows(fingerprint)[0]
    rule = "median 0.5 and 99.5 percentiles of the organ, half the width added on each side; mean: the organ's median"
    coarse_pair = len(organs) > 1 and min(spacing_mm) > FINE_GRID_MM
    if coarse_pair or mid >= SOFT_HU or len(views) == 1:
        return (own,), rule
    return (own, views[0]), rule + "; and the views' wide one, which shows the bone about a soft organ"


def fine_member(
    organs: tuple[str, ...], fingerprint: Fingerprint, coarse_spacing, share: float, budget: Budget, spacing_mm=None
) -> MemberPlan:
    """One organ's or pair's crop, network and training; with a spacing given, all else follows from that one."""
    found = stats_of(fingerprint, organs)
    own = np.median([c.spacing_mm for c in fingerprint.cases], axis=0)
    jitter = jitter_mm(found, coarse_spacing)
    extent = crop_extent_mm(found, jitter)
    spacing, spacing_rule = fine_spacing_mm(found, own, coarse_spacing, extent, LARGEST_CROP[budget.accelerator])
    if spacing_mm:
        spacing, spacing_rule = tuple(map(float, spacing_mm)), "given"
    steps, shape = crop_grid(extent, spacing)
    base = BASE_FEATURES[budget.accelerator]
    chosen, window_rule = fine_windows(organs, found, fingerprint, spacing)
    network = NetworkPlan(
        3, len(chosen), 2, features(base, len(steps) + 1, 3), steps, kernels(spacing, steps), norm="instance", background_prior=BACKGROUND_PRIOR
    )
    wanted = int(np.clip(VOXELS_PER_STEP[budget.accelerator] // np.prod(shape), 2, 4))  # documentation/experiments.md, 33
    batch = largest_batch(network, shape, budget, wanted, least=2)
    why_batch = "paper" if wanted == 4 else "large crops: fewer a step, for more steps"
    training = TrainingPlan(
        batch_size=batch, epochs=200, steps_per_epoch=50, validate_every=10, learning_rate=3e-3, optimiser="adamw", schedule="poly",
        warmup_steps=20, weight_decay=1e-2, ema_decay=0.99, clip_norm=12.0,
        loss=LossPlan("dice_ce", "none"), foreground_share=0.8, augmentation="full",
    )  # fmt: skip
    return MemberPlan(
        name=member_name(organs), stage="fine", organs=organs, axis=None, volumes=member_name(organs), spacing_mm=spacing, shape=shape,
        windows=chosen, context_slices=0, position_channels=0, jitter_mm=jitter, network=network,
        training=training, minutes_share=share,
        rules={
            "organs": "a left/right pair shares one network, left crops mirrored" if len(organs) == 2 else "one organ, one network (paper)",
            "spacing_mm": spacing_rule,
            "shape": f"99th percentile of the organ's extent plus the jitter and {CONTEXT_MM:.0f} mm of surroundings on each side, up to what the "
            "poolings divide by",
            "windows": window_rule,
            "context_slices": "none: the network is three-dimensional",
            "position_channels": "none: the crop is already about the organ",
            "network.in_channels": "each window",
            "network.features": features_rule(base, budget),
            "jitter_mm": "the coarse stage's localisation error along each axis: a quarter of the 5-95 percentile range of the organ's extent, "
            "and one coarse voxel",
            "network.strides": f"{NEVER_MORE_POOLINGS}; an axis twice as coarse as the finest waits",
            "network.norm": "instance: a batch of few crops is too small for batch statistics",
            "training.batch_size": batch_rule(network, shape, budget, wanted, why_batch, batch),
            "training.foreground_share": "four crops of five hold the organ; the fifth, where cases lack it, shows its usual place without it",
            "minutes_share": "half of a time budget goes to the organs, in equal parts",
        } | COMMON_RULES,
    )  # fmt: skip


def prior(organ: str, fingerprint: Fingerprint) -> OrganPrior:
    """Where the organ lies in the training set's bodies and how large it is."""
    found = stats_of(fingerprint, (organ,))
    offset, extent = np.array([s.offset_mm for s in found]), np.array([s.extent_mm for s in found])
    low, mid, high = np.percentile(offset, [5, 50, 95], axis=0)
    return OrganPrior(
        organ, _rounded(mid), _rounded((high - low) / 2), _rounded(np.percentile(extent, 99, axis=0)),
        _rounded(np.percentile([s.volume_mm3 for s in found], [1, 50, 99])),
    )  # fmt: skip


def fine_plan(fingerprint: Fingerprint, coarse_spacing, budget: Budget, spacing_mm=None) -> FinePlan:
    """Stage 2 from the fingerprint; spacing_mm: given for every member, else each has its own."""
    groups = fine_groups(fingerprint)
    members = [fine_member(g, fingerprint, coarse_spacing, round(0.5 / len(groups), 4), budget, spacing_mm) for g in groups]
    members = tuple(replace(m, name=name, volumes=name) for name, m in zip(member_names(groups), members))
    priors = tuple(prior(o, fingerprint) for o in fingerprint.labels.organs)
    return FinePlan((0.5, 0.25, 0.1), 0.1, priors, members, {
        "thresholds": "an organ is looked for at probability one half, then lower, then at its usual place in the body",
        "min_volume_share": "a component under a tenth of the organ's median volume is not taken for the organ",
        "priors": "median place relative to the body and percentiles of size over the training cases",
    })  # fmt: skip


def _rounded(values) -> tuple[float, ...]:
    return tuple(round(float(v), 2) for v in values)
