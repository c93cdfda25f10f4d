"""The fit of the fusion: each organ gets the sources that know it, and no organ is worse than in its best source."""
import logging

import numpy as np
import pytest

from c2f_nnunet.errors import ModelError
from c2f_nnunet.inference import fusion_fit
from c2f_nnunet.inference.fusion import OrganFit, decide, fuse, log_odds
from c2f_nnunet.inference.fusion_fit import fit
from c2f_nnunet.inference.fusion_learn import FitCase

ORGANS, VIEWS = ("Stem", "Cord"), ("top", "side")


def ball(grid, centre, radius):
    return sum((a - c) ** 2 for a, c in zip(np.indices(grid), centre)) <= radius**2


def case(name, masks, truth, known=(True, True), certain=4.0):
    """masks[source][organ] (bool) as log-odds ±certain."""
    return FitCase(name, np.where(np.array(masks), certain, -certain).astype(np.float16), truth.astype(np.uint8), np.array(known))


def two_organs(shift=0):
    grid = (12, 16, 16)
    stem, cord = ball(grid, (6, 4 + shift, 5), 3), ball(grid, (6, 11, 10), 3)
    return stem, cord, stem * 1 + cord * 2


def fitted_means(weights):
    return {s.organ: s for s in weights.scores}


def test_each_organ_gets_the_source_that_knows_it():
    # top sees the stem and takes the cord for 2 voxels to the left; side the other way round
    def cases():
        for shift in (0, 1):
            stem, cord, truth = two_organs(shift)
            yield case(f"p{shift}", [[stem, np.roll(cord, 2, 2)], [np.roll(stem, 2, 2), cord]], truth)

    weights = fit(cases, ORGANS, VIEWS)
    (stem_top, cord_top), (stem_side, cord_side) = weights.weights
    assert stem_top > stem_side and cord_side > cord_top
    for organ, best in (("Stem", 0), ("Cord", 1)):
        scores = fitted_means(weights)[organ]
        assert scores.fused == 1 and scores.by_source[best] == 1 and scores.by_source[1 - best] < 0.7
    assert weights.fitted_on == ("p0", "p1")
    for c in cases():
        assert np.array_equal(decide(fuse(c.logits, weights)), c.truth)


def test_fusion_of_complementary_sources_beats_both():
    # each source adds a slab of false positives of its own; only where both agree is the organ
    grid = (10, 12, 12)
    truth = ball(grid, (5, 6, 6), 3)
    top, side = truth.copy(), truth.copy()
    top[5, 6], side[5, :, 6] = True, True
    nothing = np.zeros(grid, bool)
    weights = fit(lambda: [case("p", [[top, nothing], [side, nothing]], truth)], ORGANS, VIEWS)
    stem, cord = weights.scores
    assert stem.fused == 1 and max(stem.by_source) < 1 and stem.chosen in ("learned", "mean")
    # the cord is in no case: the plain mean, and no score
    assert cord == OrganFit("Cord", (None, None), None, "no case")
    assert weights.table[:, 1].tolist() == [0.5, 0.5, 0]


def test_an_unknown_organ_is_ignored_and_a_false_one_counts():
    stem, cord, truth = two_organs()
    nothing = np.zeros_like(stem)
    full = case("full", [[stem, cord], [stem, cord]], truth)
    # p2 holds no cord: top predicts one (DSC 0), side none (undefined, skipped)
    empty = case("empty", [[stem, cord], [stem, nothing]], stem * 1)
    weights = fit(lambda: [full, empty], ORGANS, VIEWS)
    assert fitted_means(weights)["Cord"].by_source == (0.5, 1) and fitted_means(weights)["Cord"].fused == 1
    # not annotated there: nothing counts, whatever is predicted
    unknown = case("unknown", [[stem, cord], [stem, nothing]], stem * 1, known=(True, False))
    weights = fit(lambda: [full, unknown], ORGANS, VIEWS)
    assert fitted_means(weights)["Cord"].by_source == (1, 1)


def test_the_bias_mends_sources_that_are_too_timid():
    # both give the organ p = 0.4 and the rest 0.01: alone, and in the mean, nothing is found
    stem, _, _ = two_organs()
    p = np.where(stem, 0.4, 0.01)
    logits = np.broadcast_to(log_odds(p), (2, 1, *stem.shape)).astype(np.float16)
    cases = [FitCase(name, logits, stem.astype(np.uint8), np.array([True])) for name in ("p", "q")]
    (stem_fit,) = fit(lambda: cases, ("Stem",), VIEWS).scores
    assert stem_fit.chosen == "learned" and stem_fit.by_source == (0, 0) and stem_fit.fused == 1
    # one case does not tell whether a bias carries over
    (stem_fit,) = fit(lambda: cases[:1], ("Stem",), VIEWS).scores
    assert stem_fit.chosen in ("mean", "best source") and stem_fit.fused == 0


def test_an_organ_that_others_rob_goes_back_to_its_best_source():
    # `_settle` alone. 1 voxel of A, 1 of B. Source 0 knows both; B's learned weights flood A's voxel with more certainty
    truth = np.array([1, 2, 0, 0]).reshape(1, 1, 4)
    z = np.array([[[2, -2, -2, -2], [-2, 2, -2, -2]],
                  [[1, -1, -1, -1], [9, 9, -9, -9]]], np.float32).reshape(2, 2, 1, 1, 4)
    cases = lambda: [FitCase("p", z, truth, np.array([True, True]))]  # noqa: E731
    start = np.array([[1.0, 0], [0, 1], [0, 0]])  # A from source 0, B from source 1: joint (B, B): A 0, B 2/3
    starts = [(start, np.array([True, False]))]
    table, fused, switched = fusion_fit._settle(cases, starts, np.array([[1, 1], [0, 2 / 3]]), np.array([0, 0]))
    assert fused.tolist() == [1, 1] and switched.all() and table[:, 1].tolist() == [1, 0, 0]


def test_what_cannot_be_mended_is_recorded(caplog):
    # three voxels, the same evidence in both cases: top says A, A, -; side says -, B, B. The middle one is A's in a
    # and B's in b, and each case knows one organ only: whoever gets the middle, the other loses it (DSC 2/3)
    z = np.array([[[5, 5, -5], [-5, -5, -5]],
                  [[-5, -5, -5], [-5, 5, 5]]], np.float32).reshape(2, 2, 1, 1, 3)
    a = FitCase("a", z, np.array([1, 1, 0]).reshape(1, 1, 3), np.array([True, False]))
    b = FitCase("b", z, np.array([0, 2, 2]).reshape(1, 1, 3), np.array([False, True]))
    weights = fit(lambda: [a, b], ("A", "B"), VIEWS)
    assert sorted(s.fused for s in weights.scores) == pytest.approx([2 / 3, 1])
    assert [max(s.by_source) for s in weights.scores] == [1, 1]
    (short,) = [s.organ for s in weights.scores if s.below_best_source]
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [
        f"fusion: {short} has DSC 0.6667, below {'top' if short == 'A' else 'side'} alone with 1.0000: other organs take its voxels"]


@pytest.mark.parametrize("seed", range(12))
def test_no_organ_is_worse_than_in_its_best_source(seed, caplog):
    """Random sources: right, shifted, noisy or blind per organ, in two cases with one organ unknown in the second."""
    rng = np.random.default_rng(seed)
    organs, sources, grid = ("A", "B", "C"), ("top", "front", "side"), (10, 14, 14)
    centres = [(5, 4, 4), (5, 7, 8), (4, 10, 5)]  # near each other, so that they compete
    skill = rng.integers(0, 4, (3, 3))
    cases = []
    for k in range(2):
        truth = np.zeros(grid, np.uint8)
        for c, centre in enumerate(centres):
            truth[ball(grid, rng.normal(centre, 0.7), 2.5)] = c + 1
        scores = rng.normal(0, 1.5, (3, 4, *grid))
        scores[:, 0] += 2
        for v, c in np.ndindex(3, 3):
            seen = np.roll(truth == c + 1, 0 if skill[v, c] else 3, axis=2)
            scores[v, c + 1] += seen * 2.5 * skill[v, c]
        p = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        cases.append(FitCase(f"p{k}", log_odds(p[:, 1:]).astype(np.float16), truth, np.array([True, True, k == 0])))
    with caplog.at_level(logging.WARNING):
        weights = fit(lambda: iter(cases), organs, sources)
    assert weights.table[:-1].min() >= 0
    for c, organ in enumerate(weights.scores):
        by_hand = [dice(decide(fuse(x.logits, weights)), x.truth, c + 1) for x in cases if x.known[c]]
        assert organ.fused == pytest.approx(np.mean(by_hand), abs=1e-12)
        assert organ.fused >= max(organ.by_source) - 1e-9
    assert not caplog.records
    assert fit(lambda: iter(cases), organs, sources) == weights  # deterministic


def test_nor_in_white_noise_where_organs_compete_everywhere(caplog):
    """24 voxels a case, no two alike: the learned weights often fail here, and best sources collide."""
    chosen = []
    for seed in range(60):
        rng, cases = np.random.default_rng(seed), []
        for k in range(2):
            truth = rng.integers(0, 4, 24)
            scores = rng.normal(0, 2, (3, 4, 24))
            for v, c in np.ndindex(3, 3):
                scores[v, c + 1] += (truth == c + 1) * rng.choice([0, 2, 6])
            p = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
            logits = log_odds(p[:, 1:]).astype(np.float16).reshape(3, 3, 1, 1, 24)
            cases.append(FitCase(f"p{k}", logits, truth.reshape(1, 1, 24), rng.random(3) < 0.9))
        weights = fit(lambda: iter(cases), ("A", "B", "C"), ("top", "front", "side"))
        assert not any(s.below_best_source for s in weights.scores), seed
        chosen += [s.chosen for s in weights.scores]
    assert {"learned", "best source"} <= set(chosen) and not caplog.records


def dice(labels, truth, channel):
    a, b = labels == channel, truth == channel
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_learned_weights_that_fail_in_full_give_way_to_the_best_source(monkeypatch):
    stem, cord, truth = two_organs()
    monkeypatch.setattr(fusion_fit, "learn", lambda drawn: np.array([0.5, 0.5, -10.0]))  # finds nothing
    early = stem.copy()
    early[6, 4, 12] = True  # a false voxel
    weights = fit(lambda: [case("p", [[early, cord], [stem, cord]], truth)], ORGANS, VIEWS)
    assert [s.chosen for s in weights.scores] == ["best source", "best source"]
    assert weights.scores[0].fused == 1 > weights.scores[0].by_source[0]


def test_an_organ_without_cases_starts_as_the_mean_wherever_the_others_start(monkeypatch):
    stem, _, truth = two_organs()
    settled, tables = fusion_fit._settled_from, []

    def never_content(cases, table, *rest):  # so that each start is tried
        tables.append(table[:, 1].tolist())
        return (1, 0), *settled(cases, table, *rest)[1:]

    monkeypatch.setattr(fusion_fit, "_settled_from", never_content)
    fit(lambda: [case("p", [[stem, stem], [stem, stem]], truth, known=(True, False))], ORGANS, VIEWS)
    assert tables == [[0.5, 0.5, 0], [0.5, 0.5, 0]]


def test_misfitting_or_missing_cases_are_stated_errors():
    stem, cord, truth = two_organs()
    wrong = case("p7", [[stem, cord]], truth)
    with pytest.raises(ModelError, match=r"p7: held-out logits \(1, 2, 12, 16, 16\) do not fit 2 sources"):
        fit(lambda: [wrong], ORGANS, VIEWS)
    with pytest.raises(ModelError, match="no held-out case to fit on"):
        fit(lambda: [], ORGANS, VIEWS)
