"""Every command's stated errors: exit code 1, one sentence with what exists, and nothing computed or changed before."""
from pathlib import Path

import pytest

from c2f_nnunet.cli import crossval, export_model, import_model, plan_and_preprocess, predict, train


def files(root: Path) -> dict[str, int]:
    """Every file below root, and when it was changed."""
    return {str(f): f.stat().st_mtime_ns for f in root.rglob("*") if f.is_file()}


def fails(command, tiny, capsys, *args) -> str:
    """Runs a command that must fail: its one sentence; nothing may have changed in the workspace."""
    before = files(tiny.root)
    assert command.main(tiny.args(*args)) == 1
    assert files(tiny.root) == before
    error = capsys.readouterr().err.splitlines()
    assert error[-1].startswith("error: ") and not any("Traceback" in line for line in error)
    return error[-1]


ALL = [(train, ["all", 0]), (predict, ["-i", "imagesTs", "-o", "out"]), (crossval, []), (export_model, ["-o", "m.zip"])]


@pytest.mark.parametrize("command, args", ALL)
def test_an_unknown_data_set_or_plan_lists_what_exists(command, args, tiny_planned, capsys):
    assert "no data set '17' there; it holds: Dataset901_Tiny" in fails(command, tiny_planned, capsys, *args, "-d", 17)
    missing = fails(command, tiny_planned, capsys, *args, "-pl", "auto")
    assert "no plan.json there; run c2f_plan_and_preprocess -d Dataset901_Tiny -pl auto first" in missing


@pytest.mark.parametrize("command, args", ALL)
def test_no_folders_named(command, args, capsys):
    assert command.main([str(a) for a in args]) == 1
    assert "no folders named: set C2F_RAW, C2F_PREPROCESSED and C2F_RESULTS, or give --workspace DIR" in capsys.readouterr().err


def test_plan(tiny_raw, capsys):
    assert "no data set '17' there; it holds: Dataset901_Tiny" in fails(plan_and_preprocess, tiny_raw, capsys, "-d", 17)
    unknown = fails(plan_and_preprocess, tiny_raw, capsys, "-pl", "papr_han")
    assert "-pl papr_han: neither a known plan (auto, paper_han) nor a file" in unknown
    wrong = fails(plan_and_preprocess, tiny_raw, capsys, "-pl", tiny_raw.plan_file, "-c", "2d_up", "-np", 1)
    assert "has no configuration '2d_up'; it has: 2d_top, 2d_front, 2d_side, 3d_Gland, 3d_Stem" in wrong


def test_train(tiny_planned, capsys):
    def error(*args) -> str:
        return fails(train, tiny_planned, capsys, *args, "-device", "cpu")

    known = "2d_top, 2d_front, 2d_side, 3d_Gland, 3d_Stem, or the groups coarse, fine, all"
    assert f"no configuration '3d_Glands'; it has: {known}" in error("3d_Glands", 0)
    for fold in (2, "al", "-1"):
        assert f"fold '{fold}': there are folds 0 to 1; give one of them or 'all'" in error("all", fold)
    assert "2d_top/fold_0: no checkpoint to continue from; leave --c out" in error("2d_top", 0, "--c")
    assert "none of the members asked for is trained; leave --val out" in error("2d_top", 0, "--val")
    assert "-pretrained_weights nothing.json: no checkpoint there" in error("2d_top", 0, "-pretrained_weights", "nothing.json")


def test_train_needs_preprocessed_volumes(tiny_planned, tmp_path, capsys):
    tiny = tiny_planned.copy(tmp_path / "w")
    (tiny.store.volumes("3d_Stem") / "t1.done").unlink()
    error = fails(train, tiny, capsys, "3d_Stem", 0, "-device", "cpu", "-np", 0)
    assert "3d_Stem: not preprocessed by this plan: t1; run c2f_plan_and_preprocess -d Dataset901_Tiny" in error
    assert not tiny.folder.run("3d_Stem", 0).root.exists()


def test_predict(tiny_trained, tiny_planned, tmp_path, capsys):
    def error(tiny, *args) -> str:
        message = fails(predict, tiny, capsys, "-device", "cpu", "-o", tmp_path / "out", *args)
        assert not (tmp_path / "out").exists()
        return message

    assert "no trained coarse member there; run c2f_train all all first" in error(tiny_planned, "-i", "imagesTs")
    fold = error(tiny_trained, "-i", "imagesTs", "-f", 0, 1)
    assert "2d_top: fold 1 is not trained (trained: 0); run c2f_train 2d_top 1 or leave -f out" in fold
    assert "nowhere: no such folder; give the folder that holds the images" in error(tiny_trained, "-i", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "empty: no image there; expected files named CASE_0000.nii.gz" in error(tiny_trained, "-i", tmp_path / "empty")
    part = error(tiny_trained, "-i", "imagesTs", "-num_parts", 2, "-part_id", 2)
    assert "-part_id 2: there are parts 0 to 1 of -num_parts 2" in part
    assert "plan.json: no plan there; give a model folder" in error(tiny_trained, "-i", "imagesTs", "-m", tmp_path / "empty")


def test_predictions_never_overwrite_the_scans(tiny_trained, capsys):
    source = tiny_trained.raw / "imagesTs"
    assert "is the input folder; give another one" in fails(predict, tiny_trained, capsys, "-i", source, "-o", source, "-device", "cpu")


def test_crossval_and_export_need_a_trained_model(tiny_planned, tmp_path, capsys):
    assert "no fold has all its members trained; run c2f_train all 0 first" in fails(crossval, tiny_planned, capsys, "-device", "cpu")
    assert "nothing is trained there yet" in fails(export_model, tiny_planned, capsys, "-o", tmp_path / "m.zip")
    assert not (tmp_path / "m.zip").exists()


def test_import(tiny_planned, tmp_path, capsys):
    (tmp_path / "text.zip").write_text("no zip")
    assert "text.zip: no intact zip archive" in fails(import_model, tiny_planned, capsys, tmp_path / "text.zip")
    missing = fails(import_model, tiny_planned, capsys, tmp_path / "nothing.zip")
    assert "nothing.zip: cannot be imported (No such file or directory)" in missing
