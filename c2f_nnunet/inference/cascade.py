"""The two-stage prediction of one scan: views → fusion → boxes → crops → merge, all folds ensembled."""
from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Callable, Collection, Iterator, Mapping

import numpy as np
import torch
from acvl_utils.morphology.morphology_helper import remove_all_but_largest_component_cc3d
from torch import nn

from ..geometry import Box, Geometry, bounding_box, boxed
from ..planning.plan import MemberPlan, Plan
from ..planning.topology import divisors
from ..preparing.crops import Crop, back_to_image, crop_geometry, cut
from ..preparing.prepare import PreparedVolume, prepare_volume
from ..preparing.resample import covering_box, resample_map
from .agreement import Evidence, compact, mean_pair_dsc, weigh
from .fusion import LIMIT, FusionWeights, accumulate, log_odds, mean_weights, probabilities
from .locate import Located, accept_prior, grown, is_whole, locate, outside_faces, touches
from .member import predict_crop, predict_volume
from .presence import Presence

MERGE_SOURCES = ("fine", "coarse")
EMPTY = "located, but empty in the result"
TAKEN_AS_ABSENT = "taken as absent: the coarse stage would have found it"
Networks = Mapping[str, Collection[nn.Module]]  # member → its folds' networks in eval mode, on the device


@dataclass(frozen=True)
class Cascade:
    """Everything that predicting needs: the plan, trained networks, fitted weights, where and how to compute.

    made_of: a hash of all that decides the result, by which a result of another model or way of computing is told.
    """

    plan: Plan
    networks: Networks
    coarse: FusionWeights | None
    merge: FusionWeights | None
    device: torch.device
    flips: bool = True
    presence: tuple[Presence, ...] = ()
    made_of: str = ""

    @property
    def views(self) -> tuple[MemberPlan, ...]:
        """The coarse members that are trained."""
        return tuple(m for m in self.plan.coarse.members if m.name in self.networks)

    @property
    def view_weights(self) -> FusionWeights:
        """The fitted weights where they are for just these views; else the plain mean."""
        names = tuple(m.name for m in self.views)
        if self.coarse and self.coarse.sources == names:
            return self.coarse
        return mean_weights(self.plan.labels.organs, names)

    @property
    def merge_weights(self) -> FusionWeights:
        """The fitted weights of fine against coarse; else the fine result alone."""
        organs = self.plan.labels.organs
        if self.merge:
            return self.merge
        return replace(mean_weights(organs, MERGE_SOURCES), weights=((1.0,) * len(organs), (0.0,) * len(organs)))


@dataclass(frozen=True)
class CoarseResult:
    """Fused logits (organs, z, y, x) on the coarse grid, where each organ was found, and how far the views agree on it (see `Evidence`)."""

    prepared: PreparedVolume
    logits: np.ndarray
    located: dict[str, Located]
    views: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class OrganMaps:
    """One organ near its place, on the image's grid: log-odds of both stages in `box`; and what happened on the way.

    views, folds: how far the views' masks, and those of the fine networks of several folds, agree (see `Evidence`).
    """

    organ: str
    box: Box
    fine: np.ndarray | None
    coarse: np.ndarray
    grown: bool = False
    flags: tuple[str, ...] = ()
    views: float | None = None
    folds: float | None = None


@dataclass(frozen=True)
class OrganReport:
    """What prediction says of one organ in one scan. how: see `Located`; confidence: 0…1, see `Evidence`; volume_ml: of the result."""

    organ: str
    how: str
    confidence: float
    volume_ml: float
    grown: bool
    flags: tuple[str, ...]
    evidence: Evidence = Evidence()


@dataclass(frozen=True)
class Segmentation:
    """The result on the image's canonical grid: channels (z, y, x), and one report per organ."""

    channels: np.ndarray
    reports: tuple[OrganReport, ...] = field(default=())


def view_logits(cascade: Cascade, prepared: PreparedVolume, member: MemberPlan) -> np.ndarray:
    """One view's log-odds (organs, z, y, x), its folds' probabilities averaged one network at a time."""
    total, networks = None, cascade.networks[member.name]
    for network in networks:
        p = predict_volume(network, member, cascade.plan.labels, prepared.hu, prepared.anchor_index, cascade.device, cascade.flips)[1:]
        total = p.astype(np.float32) if total is None else np.add(total, p, out=total)
        del p  # before the next fold's
    if len(networks) > 1:
        total /= len(networks)
    for volume in total:  # organ by organ and in place: all at once would take five times the memory
        volume[:] = log_odds(volume)
    return total


def run_coarse(
    cascade: Cascade, hu: np.ndarray, geometry: Geometry, on_view: Callable[[str, np.ndarray], None] = lambda name, logits: None
) -> CoarseResult:
    """Stage 1 on a canonical scan; on_view sees each view's log-odds before they are fused."""
    prepared = prepare_volume(hu, geometry, cascade.plan.coarse)
    total, masks = None, []
    for member in cascade.views:
        logits = view_logits(cascade, prepared, member)
        on_view(member.name, logits)
        masks.append([compact(volume > 0) for volume in logits])
        total = accumulate(total, logits, member.name, cascade.view_weights)
        del logits  # before the next view's
    p = probabilities(total)
    located = locate(dict(zip(cascade.plan.labels.organs, p)), prepared.geometry, cascade.plan.fine, prepared.anchor_index)
    agreement = (mean_pair_dsc(of_organ) for of_organ in zip(*masks))
    return CoarseResult(prepared, total, located, dict(zip(cascade.plan.labels.organs, agreement)))


def coarse_maps(plan: Plan, logits: np.ndarray, prepared: PreparedVolume, image: Geometry) -> Iterator[OrganMaps]:
    """Each organ's coarse log-odds on the image's grid, in the box where they are above -2 (p > 0.12)."""
    for organ, volume in zip(plan.labels.organs, logits):
        box = bounding_box(volume > -2.0)
        if box is None:
            continue
        target, values = prepared.restore(volume, image, box, -LIMIT)
        yield OrganMaps(organ, target, None, values)


def stage_maps(cascade: Cascade, coarse: CoarseResult, hu: np.ndarray, image: Geometry, stage: str) -> Iterator[OrganMaps]:
    """Every organ's maps by stage 'coarse' (views fused) or 'fine' (the whole cascade)."""
    if stage == "coarse":
        maps = coarse_maps(cascade.plan, coarse.logits, coarse.prepared, image)
        return (replace(m, views=coarse.views.get(m.organ)) for m in maps)
    return run_fine(cascade, coarse, hu, image)


def run_fine(cascade: Cascade, coarse: CoarseResult, hu: np.ndarray, image: Geometry) -> Iterator[OrganMaps]:
    """Stage 2, organ by organ; an organ whose fine member is not trained keeps its coarse result, flagged."""
    for member in cascade.plan.fine.members:
        for organ in member.organs:
            yield replace(_refine(cascade, member, organ, coarse, hu, image), views=coarse.views.get(organ))


def _refine(cascade: Cascade, member: MemberPlan, organ: str, coarse: CoarseResult, hu: np.ndarray, image: Geometry) -> OrganMaps:
    place = coarse.located[organ]
    told = next((p for p in cascade.presence if p.organ == organ), None)
    if told and told.a_miss_means_absent and place.how != "absent" and not found_whole(cascade.plan, place, coarse, image):
        return _nothing(organ, False, (*place.flags, TAKEN_AS_ABSENT))
    volume = coarse.logits[cascade.plan.labels.organs.index(organ)]
    if place.how == "absent":
        return _nothing(organ, False, place.flags)
    grid = crop_geometry(image, place.centre_world_mm, member.spacing_mm, _holding(member, place.extent_mm))
    if member.name not in cascade.networks:
        box, values = _coarse_there(coarse, volume, grid, image, -LIMIT)
        return OrganMaps(organ, box, None, values, False, (*place.flags, "no fine network"))
    crop, p, folds = _predict_crop(cascade, member, organ, hu, image, grid)
    faces = touches(_upright(p > 0.5, crop), outside_faces(grid, image))
    was_grown = any(any(f) for f in faces)
    if was_grown:  # once: an organ that still touches is flagged
        grid = grown(grid, faces, multiple=_multiples(member))
        crop, p, folds = _predict_crop(cascade, member, organ, hu, image, grid)
    flags = place.flags
    if was_grown and any(any(f) for f in touches(_upright(p > 0.5, crop), outside_faces(grid, image))):
        flags = (*flags, "touches its grown box")
    if place.how == "prior" and not accept_prior(p, crop.geometry.voxel_mm3, cascade.plan.prior(organ), cascade.plan.fine.min_volume_share):
        return _nothing(organ, was_grown, (*flags, "not found by the fine stage either"))
    box, fine = back_to_image(log_odds(p), crop, image, -LIMIT)
    coarse_box, values = _coarse_there(coarse, volume, grid, image, np.nan)
    assert coarse_box == box, "both stages must be compared on one box"
    values = np.where(np.isnan(values), fine, values)  # where a wide body was cut to the coarse grid, that stage says nothing, not no
    return OrganMaps(organ, box, fine, values, was_grown, flags, folds=folds)


def found_whole(plan: Plan, place: Located, coarse: CoarseResult, image: Geometry) -> bool:
    """Whether the coarse stage found the organ as such (see `locate.is_whole`)."""
    return is_whole(place, plan.prior(place.organ), plan.fine, coarse.prepared.geometry, image)


def _nothing(organ: str, was_grown: bool, flags: tuple[str, ...]) -> OrganMaps:
    """An organ that comes out empty."""
    return OrganMaps(organ, Box((0, 0, 0), (0, 0, 0)), None, np.zeros((0, 0, 0), np.float32), was_grown, flags)


def _predict_crop(
    cascade: Cascade, member: MemberPlan, organ: str, hu, image: Geometry, grid: Geometry
) -> tuple[Crop, np.ndarray, float | None]:  # fmt: skip
    """The organ's crop on this grid, its probability there (in the crop's own frame) averaged over the folds, and their masks' mean DSC."""
    crop = cut(hu, image, organ, member, grid)
    networks = cascade.networks[member.name]
    total, masks = 0, []
    for network in networks:
        p = predict_crop(network, member, crop.hu, cascade.device, cascade.flips)
        total = total + p
        masks.append(compact(p > 0.5))
    return crop, total / len(networks), mean_pair_dsc(masks)


def _upright(array: np.ndarray, crop: Crop) -> np.ndarray:
    return np.flip(array, -1) if crop.mirrored else array


def _holding(member: MemberPlan, extent_mm) -> tuple[int, ...]:
    """The member's shape, larger where the located organ and its margin would not fit into it."""
    need = [np.ceil((e + 2 * j) / s) for e, j, s in zip(extent_mm, member.jitter_mm, member.spacing_mm)]
    return tuple(int(max(n, np.ceil(m / k) * k)) for n, m, k in zip(member.shape, need, _multiples(member)))


def _coarse_there(coarse: CoarseResult, volume: np.ndarray, grid: Geometry, image: Geometry, beyond: float) -> tuple[Box, np.ndarray]:
    """The coarse log-odds on the image's voxels that a fine crop covers; `beyond` where the coarse grid ends before.

    Within the fine ones' limits: fused weights may be louder, and are so only among the views.
    """
    box = covering_box(grid, image).clipped(image.shape)
    if not all(box.shape):
        return box, np.zeros(box.shape, np.float32)
    whole = coarse.prepared.geometry
    region = covering_box(boxed(image, box), whole).grown(1).clipped(whole.shape)  # all that interpolation can reach
    if not all(region.shape):
        return box, np.full(box.shape, beyond, np.float32)
    return box, np.clip(resample_map(volume[region.slices], boxed(whole, region), image, box, beyond), -LIMIT, LIMIT)


def _multiples(member: MemberPlan) -> tuple[int, ...]:
    return divisors(member.network.strides, 3)


def combined(maps: OrganMaps, weights: FusionWeights) -> np.ndarray:
    """One organ's final log-odds in its box: fine and coarse weighted; the coarse ones alone where there is no fine result."""
    if maps.fine is None:
        return maps.coarse
    c = weights.organs.index(maps.organ)
    fine, coarse = (row[c] for row in weights.weights)
    return fine * maps.fine + coarse * maps.coarse + weights.bias[c]


def merge(
    plan: Plan, maps: Iterator[OrganMaps], image: Geometry, weights: FusionWeights, located: Mapping[str, Located],
    clean: frozenset[str] = frozenset(),
) -> Segmentation:  # fmt: skip
    """Paste every organ into the image's grid; where organs compete, the higher log-odds wins.

    clean: organs of which only the component with the largest volume is kept.
    """
    channels = np.zeros(image.shape, np.uint8 if plan.labels.channels < 257 else np.uint16)
    best = np.zeros(image.shape, np.float32)
    seen: dict[str, OrganMaps] = {}
    found: dict[str, Evidence] = {}
    for m in maps:
        seen[m.organ] = replace(m, fine=None, coarse=np.zeros((0, 0, 0), np.float32))
        if not all(m.box.shape):
            continue
        channel = plan.labels.organs.index(m.organ) + 1
        values = _paste(combined(m, weights), m.organ in clean, channel, channels[m.box.slices], best[m.box.slices])
        found[m.organ] = weigh(values, m.fine, m.coarse, m.views, m.folds)
    counts = sum(np.bincount(plane.ravel(), minlength=plan.labels.channels) for plane in channels)  # of all at once: 64-bit copies
    reports = []
    for i, organ in enumerate(plan.labels.organs, start=1):
        place, m = located.get(organ), seen.get(organ)
        flags = tuple(dict.fromkeys((*(place.flags if place else ()), *(m.flags if m else ()))))
        if not counts[i] and not flags and place:  # the fine stage said no, or others took its voxels: not silently
            flags = (EMPTY,)
        volume_ml = float(counts[i]) * image.voxel_mm3 / 1000
        how, evidence = place.how if place else "coarse", found.get(organ, Evidence())
        reports.append(OrganReport(organ, how, evidence.confidence, volume_ml, bool(m and m.grown), flags, evidence))
    return Segmentation(channels, tuple(reports))


def _paste(values: np.ndarray, cleaned: bool, channel: int, channels: np.ndarray, best: np.ndarray) -> np.ndarray:
    """Give an organ the voxels of its box where its log-odds are above the best so far; its log-odds, cleaned up where asked."""
    if cleaned:
        values = np.where(largest_component(values > 0), values, -LIMIT)
    wins = values > best
    np.copyto(best, values, where=wins)
    channels[wins] = channel
    return values


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest 26-connected component of a mask (z, y, x), by voxels."""
    return remove_all_but_largest_component_cc3d(mask, connectivity=26) if mask.any() else mask


def run(cascade: Cascade, hu: np.ndarray, geometry: Geometry, stage: str = "fine", clean: frozenset[str] = frozenset()) -> Segmentation:
    """A canonical scan (z, y, x) in HU → its segmentation by stage 'coarse' (views fused) or 'fine' (the whole cascade)."""
    coarse = run_coarse(cascade, hu, geometry)
    maps = stage_maps(cascade, coarse, hu, geometry, stage)
    return merge(cascade.plan, maps, geometry, cascade.merge_weights, coarse.located, clean if stage == "fine" else frozenset())
