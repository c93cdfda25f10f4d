"""The same faults injected into this project and into nnU-Net 2.8.1, and what became of them: one table.

  python benchmarks/faults_against_nnunet.py --scratch DIR

Made-up scans of 24 × 40 × 40 voxels; this project's model is trained for two minutes, nnU-Net's has random weights, since no
result is scored. Each fault is injected by small processes (peers/fault_jobs.py) and by both methods' own commands. A fault that has its
record under benchmarks/results/faults_against_nnunet/ is not injected again, so a run that was cut short goes on with the same command.
"""
from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable

import nibabel as nib
import numpy as np

from against_nnunet import HERE, NNUNET, TORCH, commit, environment, processor  # beside this script
from c2f_nnunet.geometry import Geometry
from c2f_nnunet.io.images import write_volume

DATASET, NUMBER = "Dataset901_Made", "901"
SHAPE, SPACING_MM = (24, 40, 40), (4.0, 4.0, 4.0)
TRAINED, TESTED = 6, ("a", "b", "c")
KILLS, FLIPS = 15, 60
STARTED_S = 30.0  # by then both have begun to train


@dataclass(frozen=True)
class Method:
    """How one of the two is called. model: its folder; arguments that predict with it on a CPU follow `predict`.

    plan, train: what follows them is a data set's number, and a fold. runs: the folder of the folds' trainings; stored: of the
    preprocessed volumes.
    """

    name: str
    python: Path
    env: dict[str, str]
    model: Path
    given: str  # what fault_jobs.py is given as the model
    predict: tuple
    plan: tuple
    train: tuple
    runs: Path
    stored: Path
    logs: Path


def start(method: Method, command) -> tuple[subprocess.Popen, Path]:
    """The running process, in a session of its own, and the file that it prints to."""
    log = method.logs / f"{method.name}_{time.monotonic_ns()}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w") as out:
        how = {"env": os.environ | method.env, "stdout": out, "stderr": subprocess.STDOUT, "start_new_session": True}
        return subprocess.Popen([str(c) for c in command], **how), log


def run(method: Method, command, within_s: float = 180.0, until: str | None = None) -> tuple[int | None, str]:
    """(exit code, output); the code is None where it was ended: after within_s, or once `until` was printed."""
    child, log = start(method, command)
    ends = time.monotonic() + within_s
    try:
        while child.poll() is None and time.monotonic() < ends and not (until and until in log.read_text(errors="replace")):
            time.sleep(0.1)
        code = child.poll()
    finally:
        if child.poll() is None:  # its workers are in its session
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    return code, log.read_text(errors="replace")


def job(method: Method, name: str, *arguments) -> dict:
    """One of fault_jobs.py's, in a process of the method's own."""
    code, output = run(method, [method.python, HERE / "peers" / "fault_jobs.py", method.name, method.given, name, *arguments])
    if code != 0:
        raise SystemExit(f"{method.name}: {name} failed:\n{output}")
    lines = [line for line in output.splitlines() if line.startswith("{")]
    return json.loads(lines[-1]) if lines else {}


# Preparing


def make_dataset(root: Path) -> None:
    """A body with two bright balls and a rod, somewhat elsewhere in each case; in nnU-Net's format."""
    if (root / "dataset.json").exists():
        return
    rng, at = np.random.default_rng(0), np.moveaxis(np.indices(SHAPE), 0, -1) - (np.array(SHAPE) - 1) / 2
    for part, names in (("Tr", [f"t{i}" for i in range(TRAINED)]), ("Ts", TESTED)):
        for name in names:
            hu = np.where(((at / (11, 16, 17)) ** 2).sum(-1) < 1, 40.0, -1000.0)
            labels = np.zeros(SHAPE, np.uint8)
            for i, (centre, half, value) in enumerate((((-2, -2, 9), 3.5, 160), ((-2, -2, -9), 3.5, 160), ((2, 4, 0), 4.0, 320)), 1):
                inside = (((at - np.add(centre, rng.uniform(-1, 1, 3))) / half) ** 2).sum(-1) < 1
                hu[inside], labels[inside] = value, i
            hu, grid = (hu + rng.normal(0, 10, SHAPE)).round().astype(np.int16), Geometry(SHAPE, SPACING_MM)
            write_volume(root / f"images{part}" / f"{name}_0000.nii.gz", hu, grid)
            write_volume(root / f"labels{part}" / f"{name}.nii.gz", labels, grid)
    names = {"background": 0, "Gland_L": 1, "Gland_R": 2, "Stem": 3}
    declared = {"channel_names": {"0": "CT"}, "labels": names, "numTraining": TRAINED, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(declared))


def ours(scratch: Path) -> Method:
    env = {f"C2F_{k.upper()}": str(scratch / ("raw" if k == "raw" else f"ours_{k}")) for k in ("raw", "preprocessed", "results")}
    python, model = Path(sys.executable), scratch / "ours_results" / DATASET / "auto"
    command = (python, "-m", "c2f_nnunet.cli.train", "-d", NUMBER, "-device", "cpu")
    predict = (python, "-m", "c2f_nnunet.cli.predict", "-device", "cpu", "--disable_tta", "-m")
    plan, stored = (python, "-m", "c2f_nnunet.cli.plan_and_preprocess", "-d"), scratch / "ours_preprocessed" / DATASET / "auto" / "coarse"
    train, runs = (*command, "2d_top"), model / "2d_top"
    method = Method("ours", python, env, model, str(model), predict, plan, train, runs, stored, scratch / "logs")
    if not (scratch / "ours_ready").exists():
        prepared(method, [*plan, NUMBER])
        prepared(method, [*command, "all", 0, "-np", 0, "--minutes", 2])
        (scratch / "ours_ready").touch()
    return method


def nnunet(scratch: Path) -> Method:
    folder = environment(scratch / "env_nnunet", [TORCH, NNUNET])
    env = {k: str(scratch / ("raw" if k == "nnUNet_raw" else k)) for k in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    env |= {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1", "nnUNet_compile": "false", "PYTHONUNBUFFERED": "1"}
    model = scratch / "nnUNet_results" / DATASET / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    predict = (folder / "nnUNetv2_predict_from_modelfolder", "-f", 0, "-npp", 1, "-nps", 1, "-device", "cpu", "--disable_tta", "-m")
    plan = (folder / "nnUNetv2_plan_and_preprocess", "-c", "3d_fullres", "-np", 1, "-npfp", 1, "-d")
    train = (folder / "nnUNetv2_train", "-device", "cpu", NUMBER, "3d_fullres")
    stored = scratch / "nnUNet_preprocessed" / DATASET / "nnUNetPlans_3d_fullres"
    method = Method("nnunet", folder / "python", env, model, NUMBER, predict, plan, train, model, stored, scratch / "logs")
    if not (scratch / "nnunet_ready").exists():
        prepared(method, [*plan, NUMBER])
        job(method, "untrained")
        (scratch / "nnunet_ready").touch()
    return method


def prepared(method: Method, command) -> None:
    code, output = run(method, command, 600.0)
    if code != 0:
        raise SystemExit(f"{method.name}: preparing failed:\n{output}")


# Faults: (method, the raw data set, a new folder for this fault) → what became of it


def killed_saving(method: Method, raw: Path, folder: Path) -> str:
    found = job(method, "kills", folder, KILLS)
    return f"{found['unreadable']} of {found['count']} kills left no readable checkpoint"


def flipped_bits(method: Method, raw: Path, folder: Path) -> str:
    found = job(method, "flips", folder, FLIPS)
    return f"{found['noticed']} of {found['count']} noticed"


def of_reading(found: dict) -> str:
    if "error" in found:
        return "refused"
    return f"read without a word, {100 * found['wrong']:.2f} % of the voxels wrong" + (", all of them 0" if found["zeros"] == 1 else "")


def truncated(method: Method, raw: Path, folder: Path) -> str:
    good, bad = raw / "imagesTs" / "a_0000.nii.gz", folder / "a_0000.nii.gz"
    content = good.read_bytes()
    bad.write_bytes(content[: len(content) // 2])
    return of_reading(job(method, "read", good, bad))


def nan_voxels(method: Method, raw: Path, folder: Path) -> str:
    good, bad = raw / "imagesTs" / "a_0000.nii.gz", folder / "a_0000.nii.gz"
    image = nib.load(good)
    values = np.asarray(image.dataobj, np.float32)
    values[10:20, 10:20, 10:20] = np.nan
    nib.Nifti1Image(values, image.affine).to_filename(bad)
    return of_reading(job(method, "read", good, bad))


def full_disk(method: Method, raw: Path, folder: Path) -> str:
    found = job(method, "full_disk", raw / "imagesTs" / "a_0000.nii.gz", folder / "label.nii.gz")
    if "error" in found:
        return "an error, " + ("a cut file under the final name" if found["left"] else "no file")
    return f"reported as written, {100 * found['wrong']:.0f} % of the voxels wrong"


def pickle_in_a_model(method: Method, raw: Path, folder: Path) -> str:
    model, canary = Path(shutil.copytree(method.model, folder / "model")), folder / "canary"
    planted = replace(method, given=str(model))
    job(planted, "plant", canary)
    code, output = run(method, [*method.predict, model, "-i", raw / "imagesTs", "-o", folder / "out"])
    if canary.exists():
        return "its code ran"
    ended = {0: "predicted with", None: "ended after minutes"}.get(code, f"refused, exit code {code}")
    return f"{ended}, its code did not run"


def continued_without_a_checkpoint(method: Method, raw: Path, folder: Path) -> str:
    code, output = run(method, [*method.train, 1, "--c"], until="Epoch 0")
    began = "Epoch 0" in output  # it would go on for its 1,000 epochs, and was ended
    return "a new training is begun, with a warning" if began else f"an error, exit code {code}"


def signalled(method: Method, raw: Path, folder: Path) -> str:
    """SIGTERM, as a batch system sends it, half a minute after a training's start."""
    child, _ = start(method, [*method.train, 2])
    time.sleep(STARTED_S)
    if child.poll() is not None:
        raise SystemExit(f"{method.name}: the training ended by itself")
    child.send_signal(signal.SIGTERM)
    began = time.monotonic()
    try:
        code = child.wait(60)
    except subprocess.TimeoutExpired:
        code = None
    took_s = time.monotonic() - began
    with suppress(ProcessLookupError):  # what it left running, nnU-Net's workers for instance
        os.killpg(child.pid, signal.SIGKILL)
    kept = "a checkpoint to go on from" if list((method.runs / "fold_2").glob("checkpoint_latest.*")) else "no checkpoint"
    return f"{kept}, " + ("still running after a minute" if code is None else f"exit code {code} after {took_s:.0f} s")


def two_trainings(method: Method, raw: Path, folder: Path) -> str:
    """The same fold of the same data set, while it is trained."""
    first, _ = start(method, [*method.train, 3])
    try:
        time.sleep(STARTED_S)
        code, output = run(method, [*method.train, 3], within_s=2 * STARTED_S)
        named = str(first.pid) in output
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    return "trained by both into one folder" if code is None else f"refused, exit code {code}, the first one {'' if named else 'not '}named"


def full_while_saving(method: Method, raw: Path, folder: Path) -> str:
    found = job(method, "full_while_saving", folder)
    return f"{'an error' if 'error' in found else 'no error'}, the checkpoint before it is {'kept' if found['readable'] else 'lost'}"


def flipped_volumes(method: Method, raw: Path, folder: Path) -> str:
    found = job(method, "flipped_volumes", shutil.copytree(method.stored, folder / "stored"), FLIPS)
    return f"{found['noticed']} of {found['count']} noticed before they are trained on"


def planned_with(method: Method, raw: Path, number: int, harm: Callable[[Path], None]) -> str:
    """Planning and preprocessing of the data set with case t1 harmed."""
    harmed = raw.with_name(f"Dataset{number}_Harmed")
    shutil.rmtree(harmed, ignore_errors=True)
    harm(shutil.copytree(raw, harmed))
    code, output = run(method, [*method.plan, number])
    shutil.rmtree(harmed)
    ended = "taken" if code == 0 else "ended after minutes" if code is None else f"refused, exit code {code}"
    return f"{ended}, the case is {'' if 't1' in output else 'not '}named"


def label_elsewhere(method: Method, raw: Path, folder: Path) -> str:
    """A label map that lies 40 mm beside its scan."""
    def harm(dataset: Path) -> None:
        path = dataset / "labelsTr" / "t1.nii.gz"
        image = nib.load(path)
        affine = image.affine.copy()
        affine[0, 3] += 40
        nib.Nifti1Image(np.asarray(image.dataobj), affine).to_filename(path)

    return planned_with(method, raw, 902, harm)


def scan_of_one_value(method: Method, raw: Path, folder: Path) -> str:
    def harm(dataset: Path) -> None:
        path = dataset / "imagesTr" / "t1_0000.nii.gz"
        image = nib.load(path)
        nib.Nifti1Image(np.full(image.shape, -1000, np.int16), image.affine).to_filename(path)

    return planned_with(method, raw, 903, harm)


def one_bad_case(method: Method, raw: Path, folder: Path) -> str:
    """The second of three files has noise instead of a header."""
    source, out = Path(shutil.copytree(raw / "imagesTs", folder / "in")), folder / "out"
    (source / "b_0000.nii.gz").write_bytes(gzip.compress(np.random.default_rng(0).bytes(5000)))
    code, output = run(method, [*method.predict, method.model, "-i", source, "-o", out])
    done, named = len(list(out.glob("*.nii.gz"))), "b_0000.nii.gz" in output
    return f"{done} of 2 good cases done, exit code {code}, the bad file is {'' if named else 'not '}named"


def incomplete_result(method: Method, raw: Path, folder: Path) -> str:
    out = folder / "out"
    command = [*method.predict, method.model, "-i", raw / "imagesTs", "-o", out]
    run(method, command)
    whole = (out / "b.nii.gz").read_bytes()
    cut = whole[: len(whole) // 2]
    (out / "b.nii.gz").write_bytes(cut)
    run(method, [*command, "--continue_prediction"])
    return "taken as done" if (out / "b.nii.gz").read_bytes() == cut else "redone"


FAULTS: dict[str, Callable[[Method, Path, Path], str]] = {
    f"kill -9 while a checkpoint is saved, {KILLS} times": killed_saving,
    f"one bit of a checkpoint flipped, {FLIPS} times": flipped_bits,
    "--c where no checkpoint is": continued_without_a_checkpoint,
    "pickle in a model": pickle_in_a_model,
    "scan cut to half of its file": truncated,
    "1,000 voxels of a scan are NaN": nan_voxels,
    "disk full at a label map": full_disk,
    "disk full at a checkpoint": full_while_saving,
    "SIGTERM in the first epoch": signalled,
    "a second training of the same fold": two_trainings,
    f"one bit of a preprocessed volume flipped, {FLIPS} times": flipped_volumes,
    "a training label map 40 mm beside its scan": label_elsewhere,
    "a training scan of one value": scan_of_one_value,
    "one bad scan of three": one_bad_case,
    "--continue_prediction over a cut result": incomplete_result,
}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--scratch", required=True, type=Path, help="environment, data and trainings; may be thrown away")
    p.add_argument("--records", type=Path, default=HERE / "results" / "faults_against_nnunet", help="(default: %(default)s)")
    args = p.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs is ended, too
    scratch, raw = args.scratch.resolve(), args.scratch.resolve() / "raw" / DATASET
    make_dataset(raw)
    args.records.mkdir(parents=True, exist_ok=True)
    table = {}
    for title, make in (("nnU-Net 2.8.1", nnunet), ("c2f_nnunet", ours)):
        method, column = None, {}
        for fault, inject in FAULTS.items():
            record = args.records / f"{inject.__name__}_{make.__name__}.json"
            if not record.exists():
                method = method or make(scratch)
                folder = scratch / "faults" / f"{inject.__name__}_{make.__name__}"
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                print(f"{time.strftime('%H:%M:%S')} {title}: {fault}", flush=True)
                made = {"commit": commit(), "date": time.strftime("%Y-%m-%d"), "machine": processor()}
                record.write_text(json.dumps({"fault": fault, "method": title, "outcome": inject(method, raw, folder), **made}) + "\n")
            column[fault] = json.loads(record.read_text())["outcome"]
        table[title] = column
    print(as_markdown(table))


def as_markdown(table: dict[str, dict[str, str]]) -> str:
    rows = [["fault", *table], ["---"] * (len(table) + 1)] + [[fault, *(column[fault] for column in table.values())] for fault in FAULTS]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


if __name__ == "__main__":
    sys.exit(main())
