"""The cascade with fake networks that know the truth by intensity and place: what goes in must come out, on the image's grid."""
from dataclasses import replace

import numpy as np
import pytest
import torch

from c2f_nnunet.geometry import Box, Geometry, boxed
from c2f_nnunet.inference.cascade import (
    EMPTY, MERGE_SOURCES, TAKEN_AS_ABSENT, Cascade, OrganMaps, largest_component, merge, run, run_coarse, stage_maps,
)  # fmt: skip
from c2f_nnunet.inference.fusion import FusionWeights
from c2f_nnunet.inference.locate import MISSED, Located
from c2f_nnunet.inference.presence import Presence
from c2f_nnunet.io.images import read_image, read_label
from c2f_nnunet.preparing.prepare import PreparedVolume
from c2f_nnunet.preparing.views import IN_PLANE, POSITION_SCALE_MM, intensity_channels

CPU = torch.device("cpu")
SURE = 40.0
GLAND, STEM = (0.1, 0.3), 0.3  # normalised intensities, halfway: body 0, the glands' 160 HU are 0.22, the stem's 320 HU 0.54


class FakeView:
    """A view that knows glands and stem by intensity, and left from right by position. blind: a channel that it never sees;
    below_mm: it sees the stem only this far below the body's top or deeper."""

    def __init__(self, member, blind: int | None = None, below_mm: float = 0.0):
        order = (member.axis, *IN_PLANE[member.axis])
        self.z, self.x = (intensity_channels(member) + order.index(axis) for axis in (0, 2))
        self.blind, self.below_mm = blind, below_mm

    def __call__(self, batch: torch.Tensor) -> list[torch.Tensor]:
        v, z_mm, x_mm = batch[:, 1], POSITION_SCALE_MM * batch[:, self.z], POSITION_SCALE_MM * batch[:, self.x]
        gland = torch.minimum(v - GLAND[0], GLAND[1] - v)
        outside = torch.minimum(gland, (x_mm.abs() - 18) / 100)
        stem = torch.minimum(v - STEM, (-z_mm - self.below_mm) / 100)
        logits = SURE * torch.stack([0 * v, torch.where(x_mm > 0, outside, -1), torch.where(x_mm < 0, outside, -1), stem], 1)
        if self.blind:
            logits[:, self.blind] = -12.0
        return [logits]


class FakeOrgan:
    """A fine network that knows its organ by intensity; the pair's looks only outward, which a mirrored left crop has at low x."""

    def __init__(self, member):
        self.pair = len(member.organs) == 2

    def __call__(self, batch: torch.Tensor) -> list[torch.Tensor]:
        v = batch[:, 0]
        organ = torch.minimum(v - GLAND[0], GLAND[1] - v) if self.pair else v - STEM
        if self.pair:
            organ[..., 12:] = -1.0
        return [SURE * torch.stack([0 * v, organ], 1)]


def cascade_of(tiny, plan=None, **view) -> Cascade:
    plan = plan or tiny.model.plan
    networks = {m.name: [FakeView(m, **view)] for m in plan.coarse.members} | {m.name: [FakeOrgan(m)] for m in plan.fine.members}
    return Cascade(plan, networks, None, None, CPU, flips=not view.get("blind"))  # one blind on one side treats both unlike


def scan(tiny, case: str):
    image, label = read_image(tiny.raw / "imagesTr" / f"{case}_0000.nii.gz"), read_label(tiny.raw / "labelsTr" / f"{case}.nii.gz")
    return image.array, image.geometry, label.array


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize("case", ["t0", "t1", "t2"])  # plain; flipped axes and another place; thicker slices
@pytest.mark.parametrize("stage", ["coarse", "fine"])
def test_perfect_networks_give_the_truth(tiny_planned, case, stage):
    hu, geometry, truth = scan(tiny_planned, case)
    result = run(cascade_of(tiny_planned), hu, geometry, stage)
    assert result.channels.shape == hu.shape and result.channels.dtype == np.uint8
    for channel, report in enumerate(result.reports, 1):
        assert dice(result.channels == channel, truth == channel) > 0.85, report.organ
        assert report.how == "threshold 0.5" and report.flags == () and not report.grown
        assert report.volume_ml == pytest.approx((result.channels == channel).sum() * geometry.voxel_mm3 / 1000)


def test_an_absent_organ_comes_out_empty_and_flagged(tiny_planned):
    hu, geometry, truth = scan(tiny_planned, "t3")
    result = run(cascade_of(tiny_planned), hu, geometry)
    right = result.reports[1]
    assert not (result.channels == 2).any() and right.organ == "Gland_R" and right.volume_ml == 0
    assert MISSED in right.flags and right.flags[-1] == "not found by the fine stage either"
    assert dice(result.channels == 1, truth == 1) > 0.85


@pytest.mark.parametrize("channel", [1, 2, 3])
def test_an_organ_that_the_coarse_stage_missed_is_found_at_its_usual_place_and_flagged(tiny_planned, channel):
    hu, geometry, truth = scan(tiny_planned, "t0")
    result = run(cascade_of(tiny_planned, blind=channel), hu, geometry)
    report = result.reports[channel - 1]
    assert dice(result.channels == channel, truth == channel) > 0.85
    assert report.how == "prior" and MISSED in report.flags
    coarse = run(cascade_of(tiny_planned, blind=channel), hu, geometry, "coarse")
    assert MISSED in coarse.reports[channel - 1].flags and coarse.reports[channel - 1].volume_ml == 0


@pytest.mark.parametrize("told, empty", [
    (Presence("Stem", 9, 9, 3, 20), True), (Presence("Stem", 5, 9, 3, 20), False), (Presence("Stem", 9, 9, 0, 20), False),
    (Presence("Gland_L", 9, 9, 3, 20), False),
])
def test_a_missed_organ_is_taken_as_absent_where_that_explains_it_better(tiny_planned, told, empty):
    hu, geometry, truth = scan(tiny_planned, "t0")
    cascade = replace(cascade_of(tiny_planned, blind=3), presence=(told,))
    result = run(cascade, hu, geometry)
    assert (result.reports[2].volume_ml == 0) == empty == (TAKEN_AS_ABSENT in result.reports[2].flags)
    assert MISSED in result.reports[2].flags
    seen = run(replace(cascade_of(tiny_planned), presence=(told,)), hu, geometry)
    assert all(r.volume_ml for r in seen.reports) and not any(r.flags for r in seen.reports)  # what was found stays


@pytest.mark.parametrize("size, flags, whole", [(12, (), True), (8, ("touches its grown box",), False)])
def test_a_box_that_the_organ_touches_is_grown_once(tiny_planned, size, flags, whole):
    """The coarse stage sees the stem's lower half only: a crop of 48 mm about it is grown to 64 and holds all, one of 32 mm
    grows to 40 and does not."""
    plan = tiny_planned.model.plan
    small = tuple(replace(m, shape=(size,) * 3, jitter_mm=(0.0, 0.0, 0.0)) if m.name == "3d_Stem" else m for m in plan.fine.members)
    plan = replace(plan, fine=replace(plan.fine, members=small))
    hu, geometry, truth = scan(tiny_planned, "t0")
    body_top_to_stem_mm = 42 - 8
    result = run(cascade_of(tiny_planned, plan, below_mm=body_top_to_stem_mm), hu, geometry)
    stem = result.reports[2]
    assert stem.grown and stem.flags == flags
    top = np.flatnonzero((truth == 3).any((1, 2)))[-1]
    assert (result.channels[top] == 3).any() == whole


def test_the_fine_stage_decides_where_a_wide_body_was_cut_to_the_coarse_grid(tiny_planned):
    """The coarse grid ends before the stem does: there the coarse stage has no say, whatever its weight."""
    hu, geometry, truth = scan(tiny_planned, "t0")
    plan = tiny_planned.model.plan
    weights = FusionWeights(plan.labels.organs, MERGE_SOURCES, ((0.125,) * 3, (0.875,) * 3), (0.0,) * 3)
    cascade = replace(cascade_of(tiny_planned), merge=weights)
    coarse = run_coarse(cascade, hu, geometry)
    stem = np.argwhere(truth == 3)
    middle = geometry.world(stem.mean(0))
    last = int(np.floor(coarse.prepared.geometry.index(middle)[1]))  # the row of its middle
    cut = Box((0, 0, 0), (coarse.prepared.hu.shape[0], last + 1, coarse.prepared.hu.shape[2]))
    shorter = PreparedVolume(coarse.prepared.hu[cut.slices], boxed(coarse.prepared.geometry, cut), coarse.prepared.anchor_index)
    coarse = replace(coarse, prepared=shorter, logits=coarse.logits[:, :, : last + 1])
    found = merge(plan, stage_maps(cascade, coarse, hu, geometry, "fine"), geometry, weights, coarse.located).channels
    assert (found[tuple(stem[stem[:, 1] > stem[:, 1].mean()].T)] == 3).mean() > 0.95
    assert dice(found == 3, truth == 3) > 0.95


def test_an_organ_without_a_fine_network_keeps_its_coarse_result_flagged(tiny_planned):
    cascade = cascade_of(tiny_planned)
    views = {name: n for name, n in cascade.networks.items() if name != "3d_Stem"}
    hu, geometry, truth = scan(tiny_planned, "t0")
    result = run(replace(cascade, networks=views), hu, geometry)
    assert result.reports[2].flags == ("no fine network",) and dice(result.channels == 3, truth == 3) > 0.85


def test_folds_are_averaged_by_probability(tiny_planned):
    """One network that is sure of nothing and one that knows: their mean is under one half, so the view finds nothing."""
    cascade = cascade_of(tiny_planned)
    member = cascade.plan.member("2d_top")

    class Nothing:
        def __call__(self, batch):
            return [torch.tensor([12.0, -12, -12, -12]).reshape(1, 4, 1, 1).expand(len(batch), 4, *batch.shape[2:])]

    hu, geometry, _ = scan(tiny_planned, "t0")
    networks = {"2d_top": [FakeView(member), Nothing(), Nothing()]}
    logits = run_coarse(replace(cascade, networks=networks), hu, geometry).logits
    assert logits.max() == pytest.approx(np.log(1 / 3) - np.log(2 / 3), abs=0.02)


def test_views_that_the_weights_were_not_fitted_for_are_averaged(tiny_planned):
    cascade, organs = cascade_of(tiny_planned), tiny_planned.model.plan.labels.organs
    names = tuple(m.name for m in cascade.plan.coarse.members)
    fitted = FusionWeights(organs, names, ((2.0,) * 3,) * 3, (1.0,) * 3)
    assert replace(cascade, coarse=fitted).view_weights is fitted
    one = replace(cascade, coarse=fitted, networks={names[0]: cascade.networks[names[0]]})
    assert one.view_weights.sources == names[:1] and one.view_weights.weights == ((1.0, 1.0, 1.0),)


GRID = Geometry((1, 2, 4), (1.0, 1.0, 1.0))
FINE_ALONE = FusionWeights(("Gland_L", "Gland_R", "Stem"), MERGE_SOURCES, ((1.0,) * 3, (0.0,) * 3), (0.0,) * 3)


def maps(organ: str, start, fine, coarse=None, flags=()) -> OrganMaps:
    fine = np.array(fine, np.float32)[None]
    box = Box(start, tuple(a + n for a, n in zip(start, fine.shape)))
    return OrganMaps(organ, box, fine, np.zeros_like(fine) if coarse is None else np.array(coarse, np.float32)[None], False, flags)


def merged(tiny, parts, weights=FINE_ALONE, clean=()):
    return merge(tiny.model.plan, iter(parts), GRID, weights, {}, frozenset(clean))


def test_the_higher_log_odds_win_where_organs_compete(tiny_planned):
    parts = [maps("Stem", (0, 0, 0), [[3, 3, -1], [3, 1, -1]]), maps("Gland_L", (0, 0, 1), [[2, 2, -9], [2, 2, 0]])]
    expected = [[[3, 3, 1, 0], [3, 1, 1, 0]]]
    for order in (parts, parts[::-1]):
        result = merged(tiny_planned, order)
        assert result.channels.tolist() == expected
        assert [r.volume_ml for r in result.reports] == [0.003, 0.0, 0.003]


def test_both_stages_are_weighted(tiny_planned):
    """0.5 · fine + 2 · coarse - 1 for the stem: 0.5, -1, 1.5."""
    weights = replace(FINE_ALONE, weights=((0.5,) * 3, (2.0,) * 3), bias=(0.0, 0.0, -1.0))
    parts = [maps("Stem", (0, 0, 0), [[-1, 4, 1]], [[1, -1, 1]])]
    assert merged(tiny_planned, parts, weights).channels.tolist() == [[[3, 0, 3, 0], [0, 0, 0, 0]]]
    only_coarse = [replace(parts[0], fine=None)]
    assert merged(tiny_planned, only_coarse, weights).channels.tolist() == [[[3, 0, 3, 0], [0, 0, 0, 0]]]


def test_cleaning_keeps_the_largest_component_of_the_organs_named(tiny_planned):
    parts = [maps("Stem", (0, 0, 0), [[2, 2, -1, 5], [-1, -1, -1, -1]]), maps("Gland_L", (0, 0, 2), [[-1, 1], [-1, -1]])]
    assert merged(tiny_planned, parts).channels.tolist() == [[[3, 3, 0, 3], [0, 0, 0, 0]]]
    # where the small part is cleaned away, the organ that came second has the voxel
    assert merged(tiny_planned, parts, clean=["Stem"]).channels.tolist() == [[[3, 3, 0, 1], [0, 0, 0, 0]]]
    assert not largest_component(np.zeros((2, 2, 2), bool)).any()


def test_flags_of_both_stages_are_reported_once(tiny_planned):
    place = Located("Stem", Box((0, 0, 0), (1, 1, 1)), (0, 0, 0), (1, 1, 1), 0.2, "prior", (MISSED,))
    parts = [maps("Stem", (0, 0, 0), [[1.0]], flags=(MISSED, "touches its grown box"))]
    stem = merge(tiny_planned.model.plan, iter(parts), GRID, FINE_ALONE, {"Stem": place}).reports[2]
    assert stem.flags == (MISSED, "touches its grown box") and stem.how == "prior"


def test_an_organ_that_was_located_and_comes_out_empty_is_flagged(tiny_planned):
    place = Located("Stem", Box((0, 0, 0), (1, 1, 1)), (0, 0, 0), (1, 1, 1), 0.9, "threshold 0.5")
    for fine, flags in ((-1.0, (EMPTY,)), (1.0, ())):
        stem = merge(tiny_planned.model.plan, iter([maps("Stem", (0, 0, 0), [[fine]])]), GRID, FINE_ALONE, {"Stem": place}).reports[2]
        assert stem.flags == flags and (stem.volume_ml > 0) == (fine > 0)


def test_stages_are_lazy(tiny_planned):
    """Maps come one organ at a time, so memory never holds all of them."""
    hu, geometry, _ = scan(tiny_planned, "t0")
    cascade = cascade_of(tiny_planned)
    coarse = run_coarse(cascade, hu, geometry)
    for stage in ("coarse", "fine"):
        assert iter(found := stage_maps(cascade, coarse, hu, geometry, stage)) is found


def test_views_stages_and_folds_that_agree_are_evidence(tiny_planned):
    """All networks know the same; a fine fold that finds the stem's lower half only disagrees, and one fold alone has no other."""
    hu, geometry, _ = scan(tiny_planned, "t0")
    cascade = cascade_of(tiny_planned)
    stem = run(cascade, hu, geometry).reports[2]
    # views see whole slices alike but for one plane's interpolation of nothing: their masks are the same
    assert stem.evidence.views == pytest.approx(1.0) and stem.evidence.stages > 0.7 and stem.evidence.folds is None
    assert stem.confidence == stem.evidence.confidence > 0.5 and 0.5 < stem.evidence.soft <= 1

    class Half(FakeOrgan):
        def __call__(self, batch):
            logits = super().__call__(batch)[0]
            logits[:, 1, logits.shape[2] // 2:] = -SURE
            return [logits]

    member = cascade.plan.member("3d_Stem")
    both = replace(cascade, networks={**cascade.networks, "3d_Stem": [FakeOrgan(member), Half(member)]})
    assert 0.3 < run(both, hu, geometry).reports[2].evidence.folds < 0.95
    blind = run(cascade_of(tiny_planned, blind=3), hu, geometry)
    assert blind.reports[2].evidence.views is None and blind.reports[2].evidence.stages == 0.0
    coarse = run(cascade, hu, geometry, "coarse").reports[2].evidence
    assert coarse.stages is None and coarse.folds is None and coarse.views == stem.evidence.views
