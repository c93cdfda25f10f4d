"""The whole way through the commands, as a user walks it: plan, train, predict, evaluate, cross-validate, export, import."""
import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from c2f_nnunet.cli import crossval, evaluate, export_model, import_model, plan_and_preprocess, predict, train
from c2f_nnunet.training import checkpoint


def test_from_raw_data_to_an_imported_model(tiny_trained, tmp_path, capsys):
    """tiny_trained came from c2f_plan_and_preprocess and c2f_train."""
    tiny = tiny_trained.copy(tmp_path / "w")
    model, out = tiny.folder.root, tmp_path / "out"
    for name in ("plan.json", "dataset.json", "fingerprint.json", "splits_final.json", "fusion.json"):
        assert (model / name).is_file(), name
    for member in ("2d_top", "2d_front", "2d_side", "3d_Gland", "3d_Stem"):
        names = {f.name for f in (model / member / "fold_0").iterdir()}
        assert {"log.jsonl", "progress.png", "settings.json", *(f"checkpoint_{w}.json" for w in ("latest", "best", "final"))} <= names
        assert ".lock" not in names

    assert predict.main(tiny.args("-i", "imagesTs", "-o", out, "-d", 901, "-f", 0, "-device", "cpu")) == 0
    assert evaluate.main([str(tiny.raw / "labelsTs"), str(out), "-np", "1"]) == 0
    scores = pd.read_csv(out / "per_case.csv")
    assert (out / "summary.json").is_file() and scores["organ"].nunique() == 3
    stem = json.loads((out / "summary.json").read_text())["mean"]["3"]["Dice"]
    assert stem > 0.5

    assert crossval.main(tiny.args("-d", 901, "-device", "cpu")) == 0
    assert {"report.html", "report.md", "tables", "predictions"} <= {f.name for f in (model / "crossval").iterdir()}

    archive, other = tmp_path / "model.zip", tmp_path / "elsewhere"
    assert export_model.main(tiny.args("-d", 901, "-o", archive)) == 0
    assert import_model.main([str(archive), "--workspace", str(other)]) == 0
    imported = other / "results" / model.parent.name / "tiny"
    assert (imported / "crossval" / "report.md").is_file()
    again = ["-i", str(tiny.raw / "imagesTs"), "-o", str(tmp_path / "again"), "-m", str(imported), "-device", "cpu"]
    assert predict.main(again) == 0
    for case in ("s0", "s1"):
        assert (tmp_path / "again" / f"{case}.nii.gz").read_bytes() == (out / f"{case}.nii.gz").read_bytes()
    shown = capsys.readouterr()
    assert "NumExpr" not in shown.out + shown.err and "Traceback" not in shown.err


def test_a_second_run_of_each_redoes_nothing(tiny_trained, tmp_path, capsys):
    tiny = tiny_trained.copy(tmp_path / "w")
    assert plan_and_preprocess.main(tiny.args("-d", 901, "-pl", tiny.plan_file, "-np", 1)) == 0
    assert "preprocessed: 0 of 7 cases made" in capsys.readouterr().out
    before = {str(f): f.stat().st_mtime_ns for f in tiny.folder.root.rglob("checkpoint*")}
    assert train.main(tiny.args("all", 0, "-device", "cpu")) == 0
    assert {str(f): f.stat().st_mtime_ns for f in tiny.folder.root.rglob("checkpoint*")} == before
    assert train.main(tiny.args("2d_top", 0, "-device", "cpu", "--val")) == 0
    assert "2d_top" in capsys.readouterr().out


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interrupted_training_ends_with_a_checkpoint(tiny_planned, tmp_path, number, code):
    """A real process with a worker, stopped by a signal; the same command with --c goes on, and ends the training."""
    tiny = tiny_planned.copy(tmp_path / "w")
    args = [sys.executable, "-m", "c2f_nnunet.cli.train", *tiny.args("3d_Stem", 0, "-device", "cpu", "-np", 1, "--epochs", 500)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=one_thread)
    run = tiny.folder.run("3d_Stem", 0)
    deadline = time.monotonic() + 60
    while not checkpoint.exists(run.checkpoint("latest")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(number)
    shown, _ = process.communicate(timeout=60)
    assert process.returncode == code, shown
    assert "stopped after a checkpoint; go on with the same command and --c" in shown and "NumExpr" not in shown
    assert not checkpoint.exists(run.checkpoint("final")) and not (run.root / ".lock").exists()
    step = checkpoint.load(run.checkpoint("latest"))[1]["progress"]["step"]
    assert 0 < step < 10000
