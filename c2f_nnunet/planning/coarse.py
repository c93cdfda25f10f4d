"""Stage 1's rules: spacing, shape, intensity windows and the three 2D members."""
from __future__ import annotations

import numpy as np

from ..data.fingerprint import CaseStats, Fingerprint
from ..workspace import VIEWS
from .budget import Budget, batch_rule, features_rule, largest_batch
from .plan import CoarsePlan, LossPlan, MemberPlan, NetworkPlan, TrainingPlan, Window
from .topology import IN_PLANE, POOLINGS, divisors, features, kernels, round_up, strides

PAPER_WINDOW = (-400.0, 800.0)
CONTEXT_MM = 40.0
BODY_PERCENTILE = 95.0
SOFT_HU = 150.0  # an organ whose median lies under it is soft tissue
BACKGROUND_PRIOR = 4.0
LARGEST_VOLUME = {True: 24_000_000, False: 4_000_000}  # with an accelerator: about the paper's 280³; on CPU cores
BASE_FEATURES = {True: 32, False: 16}
NEVER_MORE_POOLINGS = "three poolings: more lose the small organs (paper); fewer where an axis would fall under four voxels"
COMMON_RULES = {  # what holds for the members of both stages
    "network.out_channels": "the background and each organ that the member tells apart",
    "network.kernels": "3 (paper), but 1 across slices more than twice as far apart as the pixels (nnU-Net)",
    "network.se_ratio": "squeeze-and-excitation narrows to an eighth of the channels, but not under four",
    "network.background_prior": "a new network calls every voxel background, as nearly all are: no early steps go into learning that",
    "network.deep_supervision": "the paper's; every level but the coarsest two, where small organs vanish",
    "training.epochs": "a fixed number, as nnU-Net; --minutes gives a time instead",
    "training.steps_per_epoch": "a fixed number of batches, so that an epoch takes as long for any number of cases (nnU-Net)",
    "training.validate_every": "every 10 epochs, the best kept (paper)",
    "training.learning_rate": "higher than the paper's 1e-4, which is for a constant rate without warm-up",
    "training.optimiser": "Adam (paper) with decoupled weight decay",
    "training.schedule": "polynomial decay to 0 (nnU-Net): a training of any length ends in small steps",
    "training.warmup_steps": "the rate rises linearly at first: a class that dies early never comes back",
    "training.weight_decay": "AdamW's usual value",
    "training.ema_decay": "the running average of the weights is validated and kept: steadier than the last step's",
    "training.clip_norm": "gradients are cut to this norm (nnU-Net's 12)",
    "training.loss": "Dice for the small organs and plain cross-entropy: stronger class weights over-segment",
    "training.augmentation": "full: rotation, scaling, scans that end elsewhere, noise, blur, contrast, low resolution, flips with left and right labels swapped",
}


def coarse_spacing_mm(cases: tuple[CaseStats, ...], extent_mm, largest: int) -> tuple[tuple[float, float, float], str]:
    """The median spacing, its finest axes made coarser together until the volume has at most `largest` voxels."""
    median = np.median([c.spacing_mm for c in cases], axis=0)
    spacing, rule = median.copy(), f"median of {len(cases)} cases"
    while np.prod(coarse_shape(extent_mm, spacing)) > largest:
        finest = spacing.min()
        spacing = np.where(spacing < finest * 1.05, spacing * 1.05, spacing)
    if not np.allclose(spacing, median):
        rule += f" {_mm(median)}, finest axes coarsened until the volume holds at most {largest / 1e6:.0f} million voxels"
    return tuple(round(float(s), 4) for s in spacing), rule


def coarse_shape(extent_mm, spacing_mm) -> tuple[int, int, int]:
    """The extent in voxels, one more on each side, up to a multiple of 2^3 for the poolings."""
    return round_up([e / s + 2 for e, s in zip(extent_mm, spacing_mm)], (2**POOLINGS,) * 3)


def organ_reach_mm(cases: tuple[CaseStats, ...]) -> tuple[float, float, float]:
    """How far organs reach from the body's anchor: down from the top face (z), to either side of the middle (y, x); 99th percentile."""
    reach = [
        (-s.offset_mm[0] + s.extent_mm[0] / 2, abs(s.offset_mm[1]) + s.extent_mm[1] / 2, abs(s.offset_mm[2]) + s.extent_mm[2] / 2)
        for c in cases
        for s in c.organs.values()
    ]
    return tuple(float(v) for v in np.percentile(reach, 99, axis=0))


def coarse_extent_mm(cases: tuple[CaseStats, ...]) -> tuple[tuple[float, float, float], str]:
    """The smaller, per axis, of the body's extent (95th percentile) and what the organs need with 40 mm around them.

    The paper's 280 mm likewise hold the head and neck, not the shoulders.
    """
    body = np.percentile([c.body_extent_mm for c in cases], BODY_PERCENTILE, axis=0)
    if not any(c.organs for c in cases):
        return tuple(float(v) for v in body), f"the body's {BODY_PERCENTILE:.0f}th percentile {_mm(body)}: no foreground was measured"
    z, y, x = organ_reach_mm(cases)
    need = np.array([z + CONTEXT_MM, 2 * (y + CONTEXT_MM), 2 * (x + CONTEXT_MM)])
    rule = (
        f"per axis the smaller of the body's {BODY_PERCENTILE:.0f}th percentile {_mm(body)} and the organs' reach from its anchor "
        f"with {CONTEXT_MM:.0f} mm around {_mm(need)}"
    )
    return tuple(float(v) for v in np.minimum(body, need)), rule


def windows(fingerprint: Fingerprint) -> tuple[tuple[Window, ...], str]:
    """A wide window that holds every organ and a narrow one for soft tissue, from the foreground percentiles."""
    mean = mean_hu(fingerprint)
    measured = {o: [c.organs[o].hu for c in fingerprint.cases if o in c.organs] for o in fingerprint.labels.organs}
    by_organ = {o: np.median(hu, axis=0) for o, hu in measured.items() if hu}
    if not by_organ:
        low, high = PAPER_WINDOW
        return (Window(low, high, window_mean(low, high, mean)),), "the paper's: no foreground was measured"
    wide = widened(min(v[0] for v in by_organ.values()), max(v[2] for v in by_organ.values()), mean)
    soft = [v for v in by_organ.values() if v[1] < SOFT_HU]
    rule = "wide: median 0.5 and 99.5 percentiles of all organs, a quarter of the width added on each side"
    if not soft or len(soft) == len(by_organ) and wide.high_hu - wide.low_hu < 500:
        return (wide,), rule
    narrow = widened(float(np.median([v[0] for v in soft])), float(np.median([v[2] for v in soft])), mean)
    return (wide, narrow), rule + f"; narrow: the same of the soft-tissue organs (median under {SOFT_HU:.0f} HU)"


def widened(low: float, high: float, mean_hu: float, share: float = 0.25) -> Window:
    """A window widened by a share of its width (at least 100 HU wide before), its mean that of the body."""
    low, high = (low, high) if high - low >= 100 else ((low + high) / 2 - 50, (low + high) / 2 + 50)
    wide = (high - low) * share
    low, high = round(max(-1024.0, low - wide)), round(min(3071.0, high + wide))
    return Window(float(low), float(high), window_mean(low, high, mean_hu))


def window_mean(low: float, high: float, mean_hu: float) -> float:
    """A mean intensity as seen through a window, 0…1."""
    return round(float(np.clip((mean_hu - low) / (high - low), 0, 1)), 4)


def mean_hu(fingerprint: Fingerprint) -> float:
    """The data set's mean intensity, over the patients' bodies: air around them says how large the scan is, nothing else."""
    return float(np.mean([c.mean_hu_body for c in fingerprint.cases]))


def coarse_plan(fingerprint: Fingerprint, budget: Budget, spacing_mm=None) -> CoarsePlan:
    """Stage 1 from the fingerprint."""
    extent, extent_rule = coarse_extent_mm(fingerprint.cases)
    spacing, spacing_rule = coarse_spacing_mm(fingerprint.cases, extent, LARGEST_VOLUME[budget.accelerator])
    if spacing_mm:
        spacing, spacing_rule = tuple(map(float, spacing_mm)), "given by --overwrite_target_spacing"
    shape = coarse_shape(extent, spacing)
    chosen, window_rule = windows(fingerprint)
    members = tuple(view_member(name, axis, fingerprint, spacing, shape, chosen, window_rule, budget) for axis, name in enumerate(VIEWS))
    return CoarsePlan(spacing, shape, BODY_PERCENTILE, members, {
        "spacing_mm": spacing_rule,
        "shape": f"{extent_rule}, in voxels, a margin of one on each side, up to a multiple of 2^3; "
        "taller bodies are seen in overlapping windows",
        "body_percentile": "one unusually long scan must not set the volume",
    })  # fmt: skip


def view_member(
    name: str, axis: int, fingerprint: Fingerprint, spacing, shape, chosen: tuple[Window, ...], window_rule: str, budget: Budget
) -> MemberPlan:
    """One view's network and training."""
    plane, plane_mm = tuple(shape[a] for a in IN_PLANE[axis]), tuple(spacing[a] for a in IN_PLANE[axis])
    context, positions = 1, 3
    steps = strides(plane, plane_mm)
    base = BASE_FEATURES[budget.accelerator]
    network = NetworkPlan(
        dimensions=2, in_channels=len(chosen) * (2 * context + 1) + positions, out_channels=fingerprint.labels.channels,
        features=features(base, len(steps) + 1, 2), strides=steps, kernels=kernels(plane_mm, steps), norm="batch",
        background_prior=BACKGROUND_PRIOR,
    )  # fmt: skip
    batch = largest_batch(network, plane, budget, wanted=16, least=4)
    assert all(n % d == 0 for n, d in zip(plane, divisors(steps, 2)))
    training = TrainingPlan(
        batch_size=batch, epochs=200, steps_per_epoch=100, validate_every=10, learning_rate=5e-3, optimiser="adamw", schedule="poly",
        warmup_steps=20, weight_decay=1e-2, ema_decay=0.99, clip_norm=12.0,
        loss=LossPlan("dice_ce", "none"), foreground_share=0.75, augmentation="full",
    )  # fmt: skip
    return MemberPlan(
        name=name, stage="coarse", organs=fingerprint.labels.organs, axis=axis, volumes="coarse", spacing_mm=spacing, shape=shape,
        windows=chosen, context_slices=context, position_channels=positions, jitter_mm=(0.0, 0.0, 0.0), network=network,
        training=training, minutes_share=0.15,
        rules={
            "organs": "all: one network for all organs of the data set (paper)",
            "spacing_mm": "the coarse volume's",
            "shape": "the coarse volume's; a slice is its two in-plane sizes",
            "jitter_mm": "none: slices are seen where they lie",
            "network.in_channels": "each window's slices, then the positions",
            "axis": f"{('top', 'front', 'side')[axis]}: slices across {'zyx'[axis]}",
            "windows": window_rule,
            "context_slices": "one neighbour on each side: a slice alone is ambiguous, a 3D network is what stage 2 is for",
            "position_channels": "offset from the body's anchor along all axes: a sagittal slice does not say on which side it lies",
            "network.features": features_rule(base, budget),
            "network.strides": NEVER_MORE_POOLINGS,
            "network.norm": "batch: fastest on CPUs in channels-last layout, and a batch holds enough slices",
            "training.batch_size": batch_rule(network, plane, budget, 16, "paper", batch),
            "training.foreground_share": "three quarters of the slices are drawn by organ, so that no class dies early",
            "minutes_share": "45 % of a time budget goes to the three views",
        } | COMMON_RULES,
    )  # fmt: skip


def _mm(values) -> str:
    return "(" + ", ".join(f"{v:.4g}" for v in values) + ") mm"
