"""This project, nnU-Net 2.8.1 and MONAI's SegResNet and DynUNet side by side: same data, fold, minutes and two CPU cores.

  python benchmarks/against_nnunet.py --raw RAW --scratch DIR -d 15 --minutes 20 60

Run it alone on the machine. Each method is trained on fold 0 for the minutes given and predicts imagesTs; preparing the data
is not counted. A step that has its record under benchmarks/results/against_nnunet/ is not run again, so a run that was cut short goes on
with the same command; a record says on which processor it was made, and the table compares records of one processor only.

nnU-Net is installed in an environment of its own; its trainer is only made to end after the minutes (peers/nnUNetTrainerMinutes.py). The single networks
run in another (peers/single_network.py). Peak memory is the largest process's. Where nnU-Net's prediction with mirroring takes longer than its training,
which its first scan mostly tells, it is ended and made with --disable_tta, and the table says so.
"""
from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import wilcoxon

HERE = Path(__file__).resolve().parent
OURS = "c2f"
NNUNET_RELEASE, TORCH = "nnunetv2==2.8.1", "torch==2.13.0"
PLANNED = ["-gpu_memory_target", "1", "-overwrite_plans_name", "nnUNetPlans1"]  # what trains fastest on two cores of what its planner offers
NNUNET = {"nnunet_3d_fullres": "3d_fullres", "nnunet_2d": "2d"}  # its configuration
SINGLE = {  # options of peers/single_network.py, tuned on the held-out cases of fold 0 (documentation/experiments.md)
    "segresnet": ["--filters", "16", "--batch", "1"],
    "dynunet": ["--filters", "16", "--batch", "1"],
}
FIRST_SCAN = 1.5  # times its share of the minutes that a scan predicted alone may take: the start of the command counts there
METHODS = (OURS, *NNUNET, *SINGLE)
METRICS = {"dsc": ("DSC %", 100, True), "hd95_mm": ("95HD mm", 1, False), "surface_dsc": ("surface DSC %", 100, True)}


@dataclass(frozen=True)
class Bench:
    """The places of one comparison."""

    raw: Path
    scratch: Path
    records: Path
    dataset: str

    @property
    def images(self) -> Path:
        return self.raw / self.dataset / "imagesTs"

    @property
    def truth(self) -> Path:
        return self.raw / self.dataset / "labelsTs"

    def step(self, name: str, method: str, minutes: float) -> Path:
        """Where a step's measure is kept, so that it is not made again."""
        return self.scratch / "steps" / f"{method}_{minutes:g}_{name}.json"

    def ours(self, minutes: float) -> dict[str, str]:
        """Environment of this project's commands; what is preprocessed is shared by all minutes."""
        results = self.scratch / f"results_{minutes:g}"
        return {"C2F_RAW": str(self.raw), "C2F_PREPROCESSED": str(self.scratch / "preprocessed"), "C2F_RESULTS": str(results)}

    def nnunet(self, minutes: float) -> dict[str, str]:
        folders = {k: self.scratch / "nnunet" / k for k in ("nnUNet_preprocessed", "nnUNet_results")}
        return {"nnUNet_raw": str(self.raw), **{k: str(v) for k, v in folders.items()}, "NNUNET_MINUTES": f"{minutes:g}",
                "nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "2"}


def processor() -> str:
    """The processor's name and whether it has bf16 arithmetic: what a time on CPUs depends on."""
    text = Path("/proc/cpuinfo").read_text()
    name = re.search(r"model name\s*:\s*(.+)", text)[1]
    return f"{name}, {os.cpu_count()} cores, {'bf16' if re.search(r'avx512_bf16|amx_bf16', text) else 'no bf16'}"


def commit() -> str:
    """What of this project is measured."""
    return subprocess.run(["git", "-C", HERE, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()


def run(command, env: dict[str, str], log: Path, most_minutes: float = float("inf")) -> dict[str, float]:
    """Run a command, its output to a file; minutes and the largest process's peak memory in GB. Ends the benchmark where it fails.

    TimeoutError where it was ended after most_minutes, with the processes that it started.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"{time.strftime('%H:%M')} {' '.join(map(str, command))}", flush=True)
    began = time.monotonic()
    with open(log, "a") as out:
        child = subprocess.Popen(list(map(str, command)), env=os.environ | env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
        timer = threading.Timer(min(60 * most_minutes, threading.TIMEOUT_MAX), os.killpg, (child.pid, signal.SIGKILL))
        timer.start()
        try:
            _, status, usage = os.wait4(child.pid, 0)  # of this command and the processes that it waited for
            child.returncode = os.waitstatus_to_exitcode(status)  # waited for behind its back
        except BaseException:
            os.killpg(child.pid, signal.SIGTERM)
            raise
        finally:
            timer.cancel()
    if status and time.monotonic() - began >= 60 * most_minutes:
        raise TimeoutError
    if status:
        raise SystemExit(f"{command[0]} failed; see {log}")
    return {"minutes": round((time.monotonic() - began) / 60, 2), "peak_gb": round(usage.ru_maxrss / 2**20, 2)}


def once(record: Path, command, env: dict[str, str], log: Path) -> dict[str, float]:
    """`run`, or what it measured before: a long step of a comparison that was cut short is not made again."""
    if not record.exists():
        measured = run(command, env, log)
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(measured))
    return json.loads(record.read_text())


def environment(folder: Path, packages: list[str]) -> Path:
    """A virtual environment with these packages; returns its bin folder."""
    if not (folder / "installed").exists():
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([folder / "bin" / "pip", "install", "--quiet", *packages], check=True)
        (folder / "installed").write_text("\n".join(packages))
    return folder / "bin"


def train_ours(bench: Bench, minutes: float, out: Path, log: Path) -> tuple[dict, dict]:
    env = bench.ours(minutes)
    command = [sys.executable, "-m", "c2f_nnunet.cli.train", "all", "0", "-d", bench.dataset, "--minutes", f"{minutes:g}", "-device", "cpu"]
    trained = once(bench.step("train", OURS, minutes), command, env, log)
    command = [sys.executable, "-m", "c2f_nnunet.cli.predict", "-i", bench.images, "-o", out, "-d", bench.dataset, "-device", "cpu"]
    return trained, run(command, env, log)


def nnunet_bin(bench: Bench) -> Path:
    folder = environment(bench.scratch / "env_nnunet", [TORCH, NNUNET_RELEASE])
    (trainers,) = (bench.scratch / "env_nnunet").glob("lib/python3*/site-packages/nnunetv2/training/nnUNetTrainer")
    shutil.copy(HERE / "peers" / "nnUNetTrainerMinutes.py", trainers)
    return folder


def train_nnunet(bench: Bench, method: str, minutes: float, out: Path, log: Path) -> tuple[dict, dict]:
    configuration = NNUNET[method]
    commands, env, number = nnunet_bin(bench), bench.nnunet(minutes), bench.dataset[7:10]
    prepared = Path(env["nnUNet_preprocessed"]) / bench.dataset
    plans = PLANNED[-1]
    if not (prepared / f"{plans}.json").exists():
        run([commands / "nnUNetv2_extract_fingerprint", "-d", number, "-np", "2"], env, log)
        run([commands / "nnUNetv2_plan_experiment", "-d", number, *PLANNED], env, log)
    if not list(prepared.glob(f"{plans}_{configuration}/*")):
        run([commands / "nnUNetv2_preprocess", "-d", number, "-plans_name", plans, "-c", configuration, "-np", "2"], env, log)
    shutil.copy(Path(bench.ours(minutes)["C2F_RESULTS"]) / bench.dataset / "auto" / "splits_final.json", prepared)
    trainer = ["-tr", "nnUNetTrainerMinutes", "-p", plans, "-device", "cpu"]
    trained = once(bench.step("train", method, minutes), [commands / "nnUNetv2_train", number, configuration, "0", *trainer], env, log)

    def predict(images: Path, out: Path) -> list:
        return [commands / "nnUNetv2_predict", "-i", images, "-o", out, "-d", number, "-c", configuration, "-f", "0", *trainer, "-npp", "1", "-nps", "1"]

    return trained, predict_nnunet(predict, bench, method, minutes, out, log)


def predict_nnunet(predict: Callable[[Path, Path], list], bench: Bench, method: str, minutes: float, out: Path, log: Path) -> dict:
    """Predict imagesTs with nnU-Net's defaults, or without mirroring where that takes longer than the training: the first scan alone mostly tells.

    predict: the command for a folder of images and one for results.
    """
    slow, env = bench.step("mirrored_is_slow", method, minutes), bench.nnunet(minutes)
    if not slow.exists():
        scans, alone = sorted(bench.images.glob("*_0000.*")), bench.scratch / "first_scan"
        shutil.rmtree(alone, ignore_errors=True)
        (alone / "images").mkdir(parents=True)
        (alone / "images" / scans[0].name).symlink_to(scans[0])
        try:
            run(predict(alone / "images", alone / "out"), env, log, most_minutes=FIRST_SCAN * minutes / len(scans))
            return run(predict(bench.images, out), env, log, most_minutes=minutes)
        except TimeoutError:
            slow.parent.mkdir(parents=True, exist_ok=True)
            slow.write_text(json.dumps({"minutes": minutes}))
    shutil.rmtree(out, ignore_errors=True)
    return run([*predict(bench.images, out), "--disable_tta"], env, log) | {"mirrored": False}


def train_single(bench: Bench, method: str, minutes: float, out: Path, log: Path) -> tuple[dict, dict]:
    commands, env = environment(bench.scratch / "env_single", [TORCH, f"{HERE.parent}[test]", "-c", str(HERE.parent / "constraints.txt")]), bench.ours(minutes)
    env |= {"PYTHONPATH": str(HERE.parent)}  # what is measured is this source, also where the environment was made from an earlier one
    weights = bench.step("weights", method, minutes).with_suffix(".safetensors")
    command = [commands / "python", HERE / "peers" / "single_network.py", method, "-d", bench.dataset, "--minutes", f"{minutes:g}", *SINGLE[method],
               "--weights", weights]
    trained = once(bench.step("train", method, minutes), command, env, log)
    return trained, run([*command, "-i", bench.images, "-o", out], env, log)


def measure(bench: Bench, method: str, minutes: float) -> None:
    """Train, predict and score one method, and write its record, unless that is there."""
    target = bench.records / f"{method}_{minutes:g}.json"
    if target.exists():
        return
    out, log = bench.scratch / "predictions" / f"{method}_{minutes:g}", bench.scratch / "logs" / f"{method}_{minutes:g}.txt"
    log.unlink(missing_ok=True)
    # for every method: it makes the splits, and what the single networks are trained from
    run([sys.executable, "-m", "c2f_nnunet.cli.plan_and_preprocess", "-d", bench.dataset], bench.ours(minutes), log)
    if method == OURS:
        trained, predicted = train_ours(bench, minutes, out, log)
    else:
        trained, predicted = (train_nnunet if method in NNUNET else train_single)(bench, method, minutes, out, log)
    declared = bench.raw / bench.dataset / "dataset.json"
    scores = bench.scratch / "scores" / f"{method}_{minutes:g}"
    run([sys.executable, "-m", "c2f_nnunet.cli.evaluate", bench.truth, out, "-djfile", declared, "-o", scores], {}, log)
    rows = pd.read_csv(scores / "per_case.csv")
    check_dsc(bench, out, scores, log)
    columns = ["case", "organ", "state", *METRICS]
    record = {"method": method, "minutes": minutes, "processor": processor(), "commit": commit(), "train": trained, "predict": predicted,
              "cases": json.loads(rows[columns].to_json(orient="records"))}
    bench.records.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(record, indent=0) + "\n")


def check_dsc(bench: Bench, out: Path, scores: Path, log: Path) -> None:
    """nnU-Net's own evaluation must find the same DSC, to four digits."""
    commands = nnunet_bin(bench)
    theirs = scores / "nnunet_summary.json"
    names = json.loads((bench.raw / bench.dataset / "dataset.json").read_text())["labels"]
    ids = [str(i) for name, i in names.items() if name != "background"]
    run([commands / "nnUNetv2_evaluate_simple", bench.truth, out, "-l", *ids, "-o", theirs, "-np", "2"], bench.nnunet(1), log)
    ours, other = (json.loads(p.read_text())["mean"] for p in (scores / "summary.json", theirs))
    for i in ids:
        if abs(ours[i]["Dice"] - other[i]["Dice"]) > 5e-5:
            raise SystemExit(f"{out}: mean DSC of label {i} is {ours[i]['Dice']:.6f} here and {other[i]['Dice']:.6f} by nnU-Net")


def holm(p_values: list[float]) -> list[float]:
    """Holm's step-down correction."""
    order, out, worst = np.argsort(p_values), np.empty(len(p_values)), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[i]))
        out[i] = worst
    return out.tolist()


def table(records: list[dict]) -> pd.DataFrame:
    """One row per method, organ and 'mean'; p: Wilcoxon's signed-rank test of the DSC against ours, Holm-corrected over the organs."""
    frames = {r["method"]: pd.DataFrame(r["cases"]) for r in records}
    rows = []
    for method, frame in frames.items():
        organs, tests = list(frame["organ"].unique()), {}
        if method != OURS and OURS in frames:
            wide = {m: f.pivot(index="case", columns="organ", values="dsc") for m, f in ((method, frame), (OURS, frames[OURS]))}
            raw = [wilcoxon(wide[OURS][o], wide[method][o]).pvalue for o in organs]
            tests = dict(zip(organs, holm(raw))) | {"mean": wilcoxon(wide[OURS].mean(axis=1), wide[method].mean(axis=1)).pvalue}
        for organ in [*organs, "mean"]:
            part = frame if organ == "mean" else frame[frame["organ"] == organ]
            by_case = part.groupby("case")[list(METRICS)].mean() if organ == "mean" else part[list(METRICS)]
            row = {"organ": organ, "method": method}
            row |= {title: f"{k * by_case[m].mean():.1f} ± {k * by_case[m].std(ddof=0):.1f}" for m, (title, k, _) in METRICS.items()}
            rows.append(row | {"missed": int((part["state"] == "missed").sum()), "p (DSC)": tests.get(organ, float("nan"))})
    return pd.DataFrame(rows).sort_values("organ", kind="stable", key=lambda c: c.map({o: i for i, o in enumerate(dict.fromkeys(c))}))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--raw", required=True, type=Path, help="folder that holds DatasetXXX_Name")
    p.add_argument("--scratch", required=True, type=Path, help="environments, trainings and predictions; may be thrown away")
    p.add_argument("--records", type=Path, default=HERE / "results" / "against_nnunet", help="where records are kept (default: %(default)s)")
    p.add_argument("-d", dest="dataset", required=True)
    p.add_argument("--minutes", type=float, nargs="+", default=[20.0, 60.0])
    p.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    args = p.parse_args()
    (found,) = [f.name for f in args.raw.iterdir() if f.name == args.dataset or f.name.startswith(f"Dataset{args.dataset.zfill(3)}_")]
    bench = Bench(args.raw.resolve(), args.scratch.resolve(), args.records.resolve(), found)
    for minutes in args.minutes:
        for method in args.methods:
            measure(bench, method, minutes)
    records = [json.loads(f.read_text()) for f in sorted(bench.records.glob("*.json"))]
    for minutes in args.minutes:
        for name in dict.fromkeys(r["processor"] for r in records):
            chosen = [r for r in records if r["minutes"] == minutes and r["processor"] == name]
            chosen.sort(key=lambda r: METHODS.index(r["method"]))
            if not chosen:
                continue
            print(f"\n{minutes:g} minutes, {name}")
            print(table(chosen).to_string(index=False, float_format=lambda v: f"{v:.4f}", na_rep=""))
            cost = [{"method": r["method"], **{f"{k} {u}": r[k][u] for k in ("train", "predict") for u in ("minutes", "peak_gb")}, "mirrored": r["predict"].get("mirrored", True), "commit": r["commit"]} for r in chosen]
            print(pd.DataFrame(cost).to_string(index=False))


if __name__ == "__main__":
    sys.exit(main())
