"""Fusion: what it computes, that it falls back exactly to a source, its file and its table."""
import json

import numpy as np
import pytest

from c2f_nnunet.errors import ModelError, RecordError
from c2f_nnunet.inference import fusion
from c2f_nnunet.inference.fusion import FusionFile, FusionWeights, OrganFit, accumulate, decide, fuse, log_odds, mean_weights
from c2f_nnunet.io import records

ORGANS, VIEWS = ("Stem", "Cord"), ("top", "side")
WEIGHTS = FusionWeights(ORGANS, VIEWS, ((1.0, 0.5), (0.0, 2.0)), (0.0, -1.0))


def weights_at(source: int, organs: int, sources: int) -> FusionWeights:
    rows = tuple(tuple(float(v == source) for _ in range(organs)) for v in range(sources))
    return FusionWeights(tuple(map(str, range(organs))), tuple(map(str, range(sources))), rows, (0.0,) * organs)


def test_log_odds_has_the_sign_of_p_minus_one_half_and_is_clipped():
    p = np.array([0.0, 0.25, 0.5, np.nextafter(np.float32(0.5), 1), 0.9, 1.0], np.float32)
    z = log_odds(p)
    assert z.dtype == np.float32
    assert z == pytest.approx([-12, -np.log(3), 0, 0, np.log(9), 12], abs=1e-4)
    assert list(z > 0) == [False, False, False, True, True, True]


def test_fuse_by_hand():
    # one voxel; top says (1, 2), side says (3, -1): Stem 1·1 + 0·3 + 0 = 1, Cord 0.5·2 + 2·(-1) - 1 = -2
    logits = np.array([[1, 2], [3, -1]], np.float16).reshape(2, 2, 1, 1, 1)
    fused = fuse(logits, WEIGHTS)
    assert fused.dtype == np.float32 and fused.ravel().tolist() == [1, -2]
    # softmax over (0, 1, -2)
    e = np.exp([0, 1, -2])
    assert fusion.probabilities(fused).ravel() == pytest.approx(e[1:] / e.sum())
    assert fusion.probabilities(np.array([[500.0]], np.float32)).item() == 1  # no overflow


def test_decide_needs_a_positive_and_the_largest_logit():
    fused = np.array([[1, 2, -1, 0, 3],
                      [2, 1, -3, 0, 3]], np.float32)
    assert decide(fused).tolist() == [2, 1, 0, 0, 1]  # of equals the first organ
    assert decide(fused).dtype == np.uint8
    assert decide(iter(fused)).tolist() == decide(fused).tolist()


def test_decide_counts_beyond_255():
    fused = np.full((300, 1), -1, np.float32)
    fused[299] = 1
    assert decide(fused).tolist() == [300] and decide(fused).dtype == np.uint16


def test_one_source_at_a_time_gives_the_same():
    logits = np.random.default_rng(0).normal(size=(2, 2, 3, 4, 5)).astype(np.float16)
    total = None
    for view, of_source in zip(VIEWS, logits):
        total = accumulate(total, of_source, view, WEIGHTS)
    assert np.array_equal(total, fuse(logits, WEIGHTS))
    with pytest.raises(ModelError, match="weights are for top, side, not for 'front'"):
        accumulate(None, logits[0], "front", WEIGHTS)
    with pytest.raises(ModelError, match=r"logits \(1, 2\) do not fit the weights' 2 sources and 2 organs"):
        fuse(logits[:1], WEIGHTS)


def test_a_single_source_gives_its_own_masks():
    logits = np.random.default_rng(1).normal(size=(3, 2, 40))
    p = np.exp(logits) / (1 + np.exp(logits).sum(axis=1, keepdims=True))  # softmax with the background's 0
    for v in range(3):
        fused = fuse(log_odds(p), weights_at(v, 2, 3))
        assert np.array_equal(decide(fused) == 1, p[v, 0] > 0.5) and np.array_equal(decide(fused) == 2, p[v, 1] > 0.5)


def test_the_file_comes_back_and_bad_ones_are_refused(tmp_path):
    path = tmp_path / "fusion.json"
    scores = (OrganFit("Stem", (0.8, 0.7), 0.85, "learned"), OrganFit("Cord", (None, None), None, "no case"))
    weights = FusionWeights(ORGANS, VIEWS, WEIGHTS.weights, WEIGHTS.bias, ("p1", "p2"), scores)
    records.write(path, FusionFile(fusion.FUSION_VERSION, weights, None, (0, 1)))
    assert fusion.read_fusion(path) == FusionFile(fusion.FUSION_VERSION, weights, None, (0, 1))
    good = json.loads(path.read_text())

    path.write_text(json.dumps(good | {"version": 99}))
    with pytest.raises(ModelError, match="fusion version 99 and this program's 1 differ"):
        fusion.read_fusion(path)
    for bias, wrong in (([0.0], "do not fit 2 sources and 2 organs"), ([0.0, float("nan")], "should be a finite number")):
        path.write_text(json.dumps(good | {"coarse": good["coarse"] | {"bias": bias}}))
        with pytest.raises(RecordError, match=wrong):
            fusion.read_fusion(path)


def test_rows_tell_what_was_found():
    scores = (OrganFit("Stem", (0.8, 0.7), 0.85, "learned"), OrganFit("Cord", (None, None), None, "no case"))
    stem, cord = fusion.rows(FusionWeights(ORGANS, VIEWS, WEIGHTS.weights, WEIGHTS.bias, (), scores))
    assert stem == {"organ": "Stem", "chosen": "learned", "weight top": 1.0, "weight side": 0.0, "bias": 0.0,
                    "DSC top": 0.8, "DSC side": 0.7, "DSC fused": 0.85}
    assert cord["chosen"] == "no case" and cord["DSC fused"] is None
    assert fusion.rows(mean_weights(ORGANS, VIEWS))[0]["chosen"] == "not fitted"
