"""What predicting a scan takes of this process's memory, told before it starts from the plan and the scan's header."""
from __future__ import annotations

import math
import resource
import sys
from typing import Collection

import numpy as np

from ..geometry import Geometry
from ..inference.cascade import Cascade
from ..inference.member import SLICES_A_BATCH
from ..planning.budget import prediction_memory_gb
from ..planning.plan import MemberPlan
from ..planning.topology import IN_PLANE
from ..preparing.prepare import BODY_MARGIN_VOXELS

GROWN = 1.5  # a crop that is grown at both faces of an axis (locate.grown)
MERGING = 24  # bytes for each voxel of an organ's box while it is merged: log-odds of both stages, their sum, masks, copies
BETWEEN = 8  # and while the next organ's network computes: log-odds of both stages
SAVING = 48 * 2**20  # bytes: numpy's buffers while it compresses an array
LIBRARIES_GB = 0.1  # what torch, ITK and the C library set aside when they are first used


def peak_memory_gb() -> float:
    """This process's peak resident memory so far, in GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def memory_estimate_gb(cascade: Cascade, image: Geometry, stored: np.dtype, stage: str, probabilities: bool) -> float:
    """What predicting a scan needs at its peak, in GiB, beside what the process holds before it: the networks and the libraries.

    image: its canonical grid; stored: the type of its voxels in the file. It holds for organs that fit their plan's crops,
    grown once; a network that calls everything one organ would need more.
    """
    return LIBRARIES_GB + max(needs(cascade, image, stored, stage, probabilities).values()) / 2**30


def needs(cascade: Cascade, image: Geometry, stored: np.dtype, stage: str, probabilities: bool) -> dict[str, float]:
    """Bytes held at each moment that may be the peak.

    The scan is int16 (float32 where its values are no whole numbers, which its header cannot tell). Reading makes one copy
    in the type of the file and one that is turned; resampling holds it twice as float32. A view's result is on the coarse
    grid once as float16 and, as log-odds, once beside the running total (and once more where folds and tiles are
    averaged). Merging holds the label map and the winning log-odds; --save_probabilities all organs' boxes, then the result.
    """
    labels, voxels = cascade.plan.labels, math.prod(image.shape)
    scan = voxels * (2 if stored.kind in "iu" else 4)
    channels, ids = (voxels * (1 if n < 256 else 2) for n in (len(labels.organs), max(labels.ids, default=0)))
    grid = coarse_shape(cascade, image)
    coarse = math.prod(grid)
    averaged = any(len(networks) > 1 for networks in cascade.networks.values()) and grid[0] > cascade.plan.coarse.shape[0]
    logits = 4 * coarse * labels.channels
    boxes = {m.name: _box_voxels(m, image) for m in cascade.plan.fine.members}
    kept = 4 * sum(boxes[m.name] * len(m.organs) for m in cascade.plan.fine.members) if probabilities else 0
    largest = max(boxes.values(), default=0)
    passing = 0 if stage == "coarse" else BETWEEN * largest + max(_passes(cascade, cascade.plan.fine.members))
    bytes_by_moment = {
        "read": voxels * (2 * stored.itemsize + 4),
        "to the coarse grid": scan + 8 * voxels + 12 * coarse,
        "views": scan + coarse * ((14 if averaged else 10) * labels.channels + 10) + max(_passes(cascade, cascade.plan.coarse.members)),
        "locate": scan + coarse * (8 * labels.channels + 32),
        "merge": scan + channels + 4 * voxels + logits + kept + max(MERGING * largest, passing),
        "checks": scan + channels + 5 * voxels + logits,
        "write": scan + channels + 3 * ids + voxels + logits,
    }
    if probabilities:
        a_slice = 16 * labels.channels * math.prod(image.shape[1:])
        bytes_by_moment["probabilities"] = scan + channels + logits + kept + 2 * labels.channels * voxels + a_slice + SAVING
    return bytes_by_moment


def coarse_shape(cascade: Cascade, image: Geometry) -> tuple[int, int, int]:
    """The largest coarse grid that a scan can have: all of it in z, at most the plan's shape in y and x."""
    plan = cascade.plan.coarse
    whole = [math.ceil(n / s) + 2 * (BODY_MARGIN_VOXELS + 1) for n, s in zip(image.extent_mm, plan.spacing_mm)]
    return whole[0], min(whole[1], plan.shape[1]), min(whole[2], plan.shape[2])


def _box_voxels(member: MemberPlan, image: Geometry) -> int:
    """Voxels of the scan under a member's crop, grown once."""
    sides = (math.ceil(GROWN * n * s / own) + 2 for n, s, own in zip(member.shape, member.spacing_mm, image.spacing_mm))
    return math.prod(min(a, b) for a, b in zip(sides, image.shape))


def _passes(cascade: Cascade, members: Collection[MemberPlan]) -> list[float]:
    """Bytes of one forward pass of each member that is trained; on an accelerator it is not this process's memory that they take."""
    if cascade.device.type != "cpu":
        return [0.0]
    found = [0.0]
    for m in members:
        if m.name in cascade.networks:
            shape = tuple(GROWN * n for n in m.shape) if m.axis is None else tuple(m.shape[a] for a in IN_PLANE[m.axis])
            found.append(2**30 * prediction_memory_gb(m.network, shape, 1 if m.axis is None else SLICES_A_BATCH))
    return found
