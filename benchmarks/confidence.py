"""Does the confidence rank errors? Every held-out case's evidence beside the DSC that it reached, and what ranks it best.

Predicts the held-out cases of one fold with the networks that never saw them, and prints Spearman's correlation of each quantity
with the DSC, per organ and pooled, with bootstrap intervals over the cases; and how many of the worst tenth are among the flagged,
each organ's limit taken from the other cases. Further model folders (trained on the same fold) join as an ensemble, as folds would.

  python benchmarks/confidence.py RESULTS/Dataset015_HeadNeckKBP/auto --raw RAW/Dataset015_HeadNeckKBP --fold 0 -o features.csv
"""
from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import spearmanr
from tqdm import tqdm

from c2f_nnunet.data.dataset import Case, read_dataset
from c2f_nnunet.inference.cascade import Cascade, merge, run_coarse, run_fine
from c2f_nnunet.inference.shapes import shapes
from c2f_nnunet.io.images import read_image, read_label
from c2f_nnunet.network.precision import default_device, find_device
from c2f_nnunet.running.model import build_cascade, held_out_case, open_model
from c2f_nnunet.workspace import ModelFolder

QUANTITIES = ("inside", "soft", "views", "folds", "stages", "largest_share")
COMBINED = {
    "views + stages": ("views", "stages"),
    "soft + views": ("soft", "views"),
    "soft + stages": ("soft", "stages"),
    "soft + views + stages": ("soft", "views", "stages"),
    "soft + views + stages + folds": ("soft", "views", "stages", "folds"),
}
RESAMPLES = 2000


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("models", nargs="+", type=Path, metavar="MODEL_FOLDER", help="the first gives the fusion's weights and the split")
    p.add_argument("--raw", required=True, type=Path, help="the raw data set's folder")
    p.add_argument("--fold", type=int, default=0)
    p.add_argument("-o", dest="out", required=True, type=Path, metavar="CSV", help="cases that are in it already are not predicted again")
    args = p.parse_args()
    frame = measure(args.models, args.raw, args.fold, args.out)
    show(frame)


def measure(models: list[Path], raw: Path, fold: int, out: Path) -> pd.DataFrame:
    """One row per held-out case and organ; written after each case."""
    opened = [open_model(ModelFolder(folder)) for folder in models]
    device = find_device(default_device())
    cascades = [build_cascade(model, (fold,), "best", device)[0] for model in opened]
    ensemble = {name: [n for c in cascades for n in c.networks[name]] for name in cascades[0].networks}
    cascade, clean = replace(cascades[0], networks=ensemble), frozenset(opened[0].fusion.clean)
    cases = {c.id: c for c in read_dataset(raw).training}
    frame = pd.read_csv(out) if out.exists() else pd.DataFrame({"case": []})
    for case in tqdm([c for c in opened[0].splits()[fold].val if c not in set(frame["case"])], unit="case", disable=None):
        frame = pd.concat([frame, pd.DataFrame(of_case(cascade, held_out_case(cases, case), clean))])
        out.parent.mkdir(parents=True, exist_ok=True)
        frame.to_csv(out, index=False)
    return frame


def of_case(cascade: Cascade, case: Case, clean: frozenset[str]) -> list[dict]:
    """The evidence for every organ of a case, and its DSC."""
    image, truth = read_image(case.image), cascade.plan.labels.to_channels(read_label(case.label).array)
    began = time.monotonic()
    coarse = run_coarse(cascade, image.array, image.geometry)
    maps = run_fine(cascade, coarse, image.array, image.geometry)
    result = merge(cascade.plan, maps, image.geometry, cascade.merge_weights, coarse.located, clean)
    predicted = time.monotonic()
    found, rows = shapes(result.channels, cascade.plan.labels.organs), []
    shaped = time.monotonic()
    for c, report in enumerate(result.reports, start=1):
        a, b = truth == c, result.channels == c
        shape = found.get(report.organ)
        rows.append({
            "case": case.id, "organ": report.organ, "dsc": 2 * (a & b).sum() / max(1, a.sum() + b.sum()), **asdict(report.evidence),
            "largest_share": shape.largest_share if shape else 0.0, "components": shape.components if shape else 0,
            "volume_ml": report.volume_ml, "true_ml": a.sum() * image.geometry.voxel_mm3 / 1000, "how": report.how,
            "grown": report.grown, "flags": "; ".join(report.flags), "predict_s": predicted - began, "shapes_s": shaped - predicted,
        })  # fmt: skip
    return rows


def show(frame: pd.DataFrame) -> None:
    """Correlations and flagged errors, for every quantity and every mean of several."""
    for name, parts in COMBINED.items():
        if frame[list(parts)].notna().all().all():
            frame[name] = frame[list(parts)].mean(axis=1)
    names = [n for n in (*QUANTITIES, *COMBINED) if n in frame and frame[n].notna().all()]
    print(frame.drop(columns=[n for n in COMBINED if n in frame]).round(3).to_string())
    print("\nDSC per organ:\n" + frame.groupby("organ", sort=False)["dsc"].describe().round(3).to_string())
    print("\nSpearman's correlation with the DSC, 95 % bootstrap interval over the cases:")
    print(pd.DataFrame([correlations(frame, n) for n in names]).set_index("quantity").to_string())
    print("\nFlagged (below the 10th percentile of the organ's other cases) and, of the worst tenth by DSC, how many are among them:")
    print(pd.DataFrame([flagged(frame, n) for n in names]).set_index("quantity").to_string())


def correlations(frame: pd.DataFrame, name: str) -> dict:
    """Spearman per organ; over all organs; and over all with each organ's mean taken off (does it rank within the organs?)."""
    row = {"quantity": name}
    within = frame[["case", "organ"]].copy()
    for column in ("dsc", name):
        within[column] = frame.groupby("organ")[column].rank() - frame.groupby("organ")[column].transform("count") / 2
    for organ, part in frame.groupby("organ", sort=False):
        row[organ] = interval(part, name)
    return row | {"all": interval(frame, name), "within organs": interval(within, name)}


def interval(frame: pd.DataFrame, name: str) -> str:
    """'0.52 (0.10 to 0.81)'; whole cases are drawn, as one case's organs are no independent samples."""
    if frame[name].nunique() < 2:
        return "–"
    rng, groups, values = np.random.default_rng(0), [g[[name, "dsc"]].to_numpy() for _, g in frame.groupby("case")], []
    for _ in range(RESAMPLES):
        drawn = np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))])
        if np.ptp(drawn[:, 0]) and np.ptp(drawn[:, 1]):
            values.append(rank_correlation(*drawn.T))
    low, high = np.percentile(values, [2.5, 97.5])
    return f"{spearmanr(frame[name], frame['dsc']).statistic:.2f} ({low:.2f} to {high:.2f})"


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's correlation: that of the ranks, ties at their mean; quicker than scipy's, which also computes a p value."""
    ranks = [np.unique(x, return_inverse=True, return_counts=True) for x in (a, b)]
    first, second = ((np.cumsum(n) - (n - 1) / 2)[i] for _, i, n in ranks)
    return float(np.corrcoef(first, second)[0, 1])


def flagged(frame: pd.DataFrame, name: str, share: float = 0.1) -> dict:
    """How many organs are flagged, each against a limit from the other cases; and how many of the worst are among them."""
    limit = [
        np.percentile(frame.loc[(frame["organ"] == r.organ) & (frame["case"] != r.case), name], 100 * share) for r in frame.itertuples()
    ]
    flags = frame[name].to_numpy() < np.array(limit)
    count = max(1, round(share * len(frame)))
    worst = frame["dsc"].rank(method="first") <= count
    residual = frame["dsc"] - frame.groupby("organ")["dsc"].transform("median")
    unusual = residual.rank(method="first") <= count
    lowest = frame[name].rank(method="first") <= count
    return {"quantity": name, "flagged": f"{flags.sum()} of {len(frame)}", "worst tenth flagged": f"{(flags & worst).sum()} of {count}",
            "farthest below the organ's median flagged": f"{(flags & unusual).sum()} of {count}",
            "worst tenth among the lowest tenth": f"{(lowest & worst).sum()} of {count}"}


if __name__ == "__main__":
    sys.exit(main())
