"""When the fusion and the merge are fitted, on what, and what is written."""
from dataclasses import replace

import numpy as np
import pytest
import torch

from c2f_nnunet.cli import train
from c2f_nnunet.data.fingerprint import Fingerprint
from c2f_nnunet.errors import DatasetError
from c2f_nnunet.inference.cascade import MERGE_SOURCES, view_logits
from c2f_nnunet.inference.fusion import FusionWeights, read_fusion
from c2f_nnunet.inference.fusion_learn import FitCase
from c2f_nnunet.inference.presence import Presence
from c2f_nnunet.io import records
from c2f_nnunet.preparing.prepare import PreparedVolume
from c2f_nnunet.running import fit
from c2f_nnunet.running.members import stored_of
from c2f_nnunet.running.model import build_cascade

CPU = torch.device("cpu")


def test_both_are_fitted_on_held_out_cases(tiny_trained):
    fusion = read_fusion(tiny_trained.folder.fusion)
    assert fusion.coarse.sources == ("2d_top", "2d_front", "2d_side") and fusion.merge.sources == MERGE_SOURCES
    assert fusion.coarse.fitted_on == fusion.merge.fitted_on == ("t2", "t5") and fusion.folds == (0,)
    for weights in (fusion.coarse, fusion.merge):
        assert not any(score.below_best_source for score in weights.scores)
    assert not list(tiny_trained.folder.root.glob(".fit-*"))


def test_a_damaged_held_out_volume_is_told_of_instead_of_fitted_on(tiny_trained, tmp_path, capsys):
    tiny = tiny_trained.copy(tmp_path / "w")
    path = tiny.store.volumes("coarse") / "t2_image.b2nd"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    tiny.folder.fusion.unlink()
    assert train.main(tiny.args("all", 0, "-d", 901, "-device", "cpu")) == 1
    assert f"{path.name}: stored volume is damaged" in capsys.readouterr().err and not tiny.folder.fusion.exists()
    assert train.main(tiny.args("coarse", 0, "-d", 901, "-device", "cpu", "--val")) == 1
    assert f"{path.name}: stored volume is damaged" in capsys.readouterr().err


def test_presence_counts_cases_with_and_without_each_organ(tiny_trained):
    """t3 lacks the right gland and in t4 only the stem is annotated: glands are known in six cases on each side."""
    left, right, stem = read_fusion(tiny_trained.folder.fusion).presence
    assert (left.organ, right.organ, stem.organ) == ("Gland_L", "Gland_R", "Stem")
    assert replace(left, organ="Gland_R") == right == Presence("Gland_R", right.found, 4, 1, 12)  # both held-out cases, both sides
    assert stem == Presence("Stem", stem.found, 2, 0, 7)
    found = {"Gland_L": [True, False], "Gland_R": [True], "Stem": []}
    counted = fit.count_presence(records.read(Fingerprint, tiny_trained.folder.fingerprint), found)
    assert [(p.found, p.present) for p in counted] == [(2, 3), (2, 3), (0, 0)]


def test_held_out_results_are_kept_for_the_checks(tiny_trained):
    """What later predictions are compared with: each held-out case that has the organ, DSC and mean probability in 0…1."""
    held_out = read_fusion(tiny_trained.folder.fusion).held_out
    assert [h.organ for h in held_out] == ["Gland_L", "Gland_R", "Stem"] and held_out[2].cases == ("t2", "t5")
    for h in held_out:
        assert len(h.volume_ml) == len(h.dsc) == len(h.inside) == len(h.largest_share) == len(h.threshold) == len(h.cases) and set(h.cases) <= {"t2", "t5"}
        assert all(0 <= v <= 1 for v in (*h.dsc, *h.inside, *h.largest_share))
    assert min(held_out[2].dsc) > 0.5 and min(held_out[2].inside) > 0.5 and set(held_out[2].threshold) <= {0.5, 0.25, 0.1}


def test_a_held_out_result_by_hand():
    """Four voxels found in two pieces, three of them right, of five in the whole reference: DSC 6/9; b lacks the organ, in c it was missed."""
    fine = np.full((1, 1, 8), -2.0, np.float32)
    fine[..., [0, 1, 2, 5]] = np.log(9.0)  # p = 0.9
    case = FitCase("a", np.stack([fine, fine])[:, None], np.array([1, 1, 1, 1, 0, 0, 0, 0], np.uint8).reshape(1, 1, 8), np.array([True]))
    weights = FusionWeights(("Stem",), MERGE_SOURCES, ((1.0,), (0.0,)), (0.0,))
    saved = [fit.SavedMaps("a", lambda: case, 5, 0.25, 2.0), fit.SavedMaps("b", lambda: case, 0, 0.5), fit.SavedMaps("c", None, 5, 0.0)]
    found = fit._held_out("Stem", saved, weights, clean=False)
    assert found.cases == ("a", "c") and found.dsc == (pytest.approx(6 / 9), 0.0) and found.largest_share == (0.75, 0.0)
    assert found.inside == (pytest.approx(0.9), 0.0) and found.threshold == (0.25, 0.0) and found.volume_ml == (0.008, 0.0)
    cleaned = fit._held_out("Stem", saved, weights, clean=True)
    assert cleaned.largest_share == (1.0, 0.0) and cleaned.dsc == (pytest.approx(6 / 8), 0.0)
    assert fit._held_out("Stem", [], weights, clean=False).cases == ()


def test_they_are_due_where_missing_and_after_a_retraining(tiny_trained, tmp_path):
    tiny = tiny_trained.copy(tmp_path / "w")
    model = tiny.model
    assert not fit.fusion_is_due(model) and not fit.merge_is_due(model)
    best = tiny.folder.run("3d_Stem", 0).checkpoint("best").with_name("checkpoint_best.json")
    best.write_text(best.read_text() + " ")  # as a new training would, in other bytes
    assert not fit.fusion_is_due(model) and fit.merge_is_due(model)
    fit.fit_merge(model, {c.id: c for c in tiny.dataset.training}, CPU)
    assert not fit.merge_is_due(model) and model.fusion.coarse == tiny_trained.model.fusion.coarse
    tiny.folder.fusion.unlink()
    assert fit.fusion_is_due(model) and fit.merge_is_due(model)
    assert train.main(tiny.args("2d_top", 0, "-device", "cpu", "-np", 0)) == 0  # nothing to train, but the fits are due
    assert not fit.fusion_is_due(model) and not fit.merge_is_due(model)


def test_a_merge_is_due_when_the_views_are_fused_otherwise(tiny_trained, tmp_path):
    """It weighs their fused log-odds: another fold's views change these, and no fine member."""
    tiny = tiny_trained.copy(tmp_path / "w")
    fusion = tiny.model.fusion
    records.write(tiny.folder.fusion, replace(fusion, coarse=replace(fusion.coarse, bias=(1.0, *fusion.coarse.bias[1:]))))
    assert not fit.fusion_is_due(tiny.model) and fit.merge_is_due(tiny.model)


def test_views_are_kept_where_some_weights_could_give_a_voxel_to_an_organ(tiny_trained, tmp_path, monkeypatch):
    """Here as if no bias were tried, since the tiny networks are never sure: voxels that are an organ's, or that a source takes for one."""
    monkeypatch.setattr(fit, "NEVER", 0.0)
    model, kept = tiny_trained.model, []
    cascade, _ = build_cascade(model, (0,), "best", CPU, stage="coarse")
    for volume in stored_of(tiny_trained.store, cascade.views[0], model.splits()[0].val):
        case = fit._save_views(cascade, volume, tmp_path)()
        prepared = PreparedVolume(volume.image[:], volume.record.geometry, volume.record.anchor_index)
        whole = np.stack([view_logits(cascade, prepared, m) for m in cascade.views])
        inside = (whole.astype(np.float16) > 0).any(axis=(0, 1)) | (volume.labels[:] > 0)
        np.testing.assert_array_equal(case.logits, whole.astype(np.float16)[:, :, inside])
        np.testing.assert_array_equal(case.truth, volume.labels[:][inside])
        kept.append(inside.mean())
    assert 0 < max(kept) < 0.5 and sorted(p.suffix for p in tmp_path.iterdir()) == [".npy"] * len(kept)


def test_maps_that_a_killed_fit_left_are_removed(tiny_trained, tmp_path):
    tiny = tiny_trained.copy(tmp_path / "w")
    left = tiny.folder.root / ".fit-killed" / "t2.npy"
    left.parent.mkdir()
    left.write_bytes(bytes(1000))
    fit.fit_merge(tiny.model, {c.id: c for c in tiny.dataset.training}, CPU)
    assert not left.parent.exists() and not list(tiny.folder.root.glob(".fit-*"))


def test_a_member_that_is_trained_again_during_the_fit_makes_it_due_again(tiny_trained, tmp_path):
    tiny = tiny_trained.copy(tmp_path / "w")
    best = tiny.folder.run("3d_Stem", 0).checkpoint("best").with_name("checkpoint_best.json")
    fit.fit_merge(tiny.model, {c.id: c for c in tiny.dataset.training}, CPU, on_case=lambda case: best.write_text(best.read_text() + " "))
    assert fit.merge_is_due(tiny.model)


def test_nothing_is_due_before_a_fold_is_complete(tiny_trained, tmp_path):
    tiny = tiny_trained.copy(tmp_path / "w")
    for path in tiny.folder.run("2d_side", 0).root.glob("checkpoint_final*"):
        path.unlink()
    tiny.folder.fusion.unlink()
    assert not fit.fusion_is_due(tiny.model) and not fit.merge_is_due(tiny.model)


def test_a_held_out_case_that_is_gone_is_named(tiny_trained):
    cases = {c.id: c for c in tiny_trained.dataset.training if c.id != "t5"}
    with pytest.raises(DatasetError, match="t5: is in splits_final.json but not in the raw data set"):
        fit.fit_merge(tiny_trained.model, cases, CPU)


def test_cleaning_is_chosen_where_it_helps():
    """A mask of 3 + 1 voxels against a truth of 3 (DSC 6/7): cleaned it is 1; of a truth of both it would fall."""
    fine = np.full((1, 1, 6), -5.0, np.float32)
    fine[..., [0, 1, 2, 5]] = 5.0
    logits = np.stack([fine, fine])[:, None]
    weights = FusionWeights(("Stem",), MERGE_SOURCES, ((1.0,), (0.0,)), (0.0,))
    for truth, helps in (([1, 1, 1, 0, 0, 0], True), ([1, 1, 1, 0, 0, 1], False)):
        case = FitCase("a", logits, np.array(truth, np.uint8).reshape(1, 1, 6), np.array([True]))
        assert fit._cleaning_helps("Stem", [lambda case=case: case], weights) == helps
