"""Does the confidence rank errors? Every held-out case's evidence beside the DSC that it reached, and what ranks it best.

Predicts the held-out cases of each fold with the networks that never saw them, and prints Spearman's correlation of each quantity
with the DSC, per organ and pooled, with bootstrap intervals over the cases; and how many of the worst tenth are among the flagged,
each organ's limit, a percentile or that of the checks, taken from the other cases. Further model folders (trained on the same folds) join as an ensemble, as folds would.

  python benchmarks/confidence.py RESULTS/Dataset015_HeadNeckKBP/auto --raw RAW/Dataset015_HeadNeckKBP --fold 0 1 2 3 4 -o features.csv
"""
from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import spearmanr
from tqdm import tqdm

from c2f_nnunet.data.dataset import Case, read_dataset
from c2f_nnunet.data.fingerprint import Fingerprint
from c2f_nnunet.geometry import Box, boxed
from c2f_nnunet.inference.cascade import Cascade, merge, run_coarse, run_fine
from c2f_nnunet.inference.checks import check_case, scene
from c2f_nnunet.inference.expectation import expectations
from c2f_nnunet.inference.limits import CASE_ALARMS, least_probability, organ_limits
from c2f_nnunet.io import records
from c2f_nnunet.io.images import read_image, read_label
from c2f_nnunet.network.precision import default_device, find_device
from c2f_nnunet.running.model import Model, build_cascade, held_out_case, open_model
from c2f_nnunet.workspace import ModelFolder

QUANTITIES = ("inside", "soft", "views", "folds", "stages", "volume_ml")
PRODUCTS = (("inside", "stages"), ("inside", "views"), ("inside", "views", "stages"), ("soft", "stages"), ("inside", "folds"))
PLACES = (("inside", "stages"), ("inside", "views", "stages"), ("inside", "views", "stages", "folds"))
RESAMPLES = 2000


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("models", nargs="+", type=Path, metavar="MODEL_FOLDER", help="the first gives the fusion's weights and the split")
    p.add_argument("--raw", required=True, type=Path, help="the raw data set's folder")
    p.add_argument("--fold", type=int, nargs="+", default=[0])
    p.add_argument("-o", dest="out", required=True, type=Path, metavar="CSV", help="cases that are in it already are not predicted again")
    p.add_argument("--drop_top", type=float, default=0.0, metavar="SHARE", help="cut this part of the slices off the top: is it noticed?")
    args = p.parse_args()
    frame = measure(args.models, args.raw, args.fold, args.out, args.drop_top)
    show_cut(frame) if args.drop_top else show(frame)


def measure(models: list[Path], raw: Path, folds: list[int], out: Path, drop_top: float) -> pd.DataFrame:
    """One row per held-out case and organ; written after each case."""
    opened = [open_model(ModelFolder(folder)) for folder in models]
    cases = {c.id: c for c in read_dataset(raw).training}
    fingerprint = records.read(Fingerprint, models[0] / "fingerprint.json")
    frame, clean = pd.read_csv(out) if out.exists() else pd.DataFrame({"case": []}), frozenset(opened[0].fusion.clean)
    out.parent.mkdir(parents=True, exist_ok=True)
    for fold in folds:
        cascade = ensembled(opened, fold)
        for case in tqdm([c for c in opened[0].splits()[fold].val if c not in set(frame["case"])], unit="case", disable=None):
            rows = of_case(cascade, held_out_case(cases, case), clean, fingerprint, drop_top)
            frame = pd.concat([frame, pd.DataFrame(rows)], ignore_index=True)
            frame.to_csv(out, index=False)
    return frame


def ensembled(models: list[Model], fold: int) -> Cascade:
    """The first model's cascade of a fold, with the others' networks beside its own."""
    cascades = [build_cascade(model, (fold,), "best", find_device(default_device()))[0] for model in models]
    return replace(cascades[0], networks={name: [n for c in cascades for n in c.networks[name]] for name in cascades[0].networks})


def of_case(cascade: Cascade, case: Case, clean: frozenset[str], fingerprint: Fingerprint, drop_top: float) -> list[dict]:
    """The evidence for every organ of a case, its DSC, and which checks fail against the training set without this case."""
    image, truth, labels, rows = read_image(case.image), read_label(case.label).array, cascade.plan.labels, []
    whole = np.bincount(labels.to_channels(truth).ravel(), minlength=labels.channels)
    kept = Box((0, 0, 0), (round(image.geometry.shape[0] * (1 - drop_top)), *image.geometry.shape[1:]))
    hu, geometry = np.ascontiguousarray(image.array[kept.slices]), boxed(image.geometry, kept)
    truth = labels.to_channels(truth[kept.slices])
    began = time.monotonic()
    coarse = run_coarse(cascade, hu, geometry)
    maps = run_fine(cascade, coarse, hu, geometry)
    result = merge(cascade.plan, maps, geometry, cascade.merge_weights, coarse.located, clean)
    predicted = time.monotonic()
    anchor_mm = coarse.prepared.geometry.world(coarse.prepared.anchor_index)[::-1]
    scan = scene(result.channels, labels.organs, geometry, anchor_mm)
    checked = check_case(case.id, result, scan, organ_limits(fingerprint, without={case.id}), labels.pairs, cascade.plan.fine.thresholds[0])
    done = time.monotonic()
    for c, (report, its) in enumerate(zip(result.reports, checked), start=1):
        a, b, shape = truth == c, result.channels == c, scan.shapes.get(report.organ)
        rows.append({
            "case": case.id, "organ": report.organ, "dsc": 2 * (a & b).sum() / max(1, a.sum() + b.sum()), **asdict(report.evidence),
            "components": shape.components if shape else 0, "volume_ml": report.volume_ml,
            "true_ml": a.sum() * geometry.voxel_mm3 / 1000, "lost": 1 - a.sum() / max(1, whole[c]),
            "failed": "; ".join(f.sentence for f in its.failed),
            "predict_s": predicted - began, "checks_s": done - predicted,
        })  # fmt: skip
    return rows


def show(frame: pd.DataFrame) -> None:
    """Correlations and flagged errors, for every quantity and their combinations; then of all checks together."""
    print(frame.round(3).to_string())
    print("\nDSC per organ:\n" + frame.groupby("organ", sort=False)["dsc"].describe().round(3).to_string())
    candidates = pd.concat([frame[["case", "organ", "dsc"]], frame[[q for q in QUANTITIES if frame[q].notna().all()]]], axis=1)
    for parts in (p for p in PRODUCTS if set(p) <= set(candidates)):
        candidates[" × ".join(parts)] = candidates[list(parts)].prod(axis=1)
    for parts in (p for p in PLACES if set(p) <= set(candidates)):
        places = pd.concat([place_among_others(candidates, q) for q in parts], axis=1)
        shown = ", ".join(parts)
        candidates[f"mean place of {shown}"], candidates[f"lowest place of {shown}"] = places.mean(axis=1), places.min(axis=1)
    candidates["expected DSC"] = expected_after_others(frame)
    of_organ = frame.groupby("organ")["dsc"]
    mean_of_others = (of_organ.transform("sum") - frame["dsc"]) / (of_organ.transform("count") - 1)
    off = {"expected DSC": candidates["expected DSC"], "mean DSC of the organ's other cases": mean_of_others}
    print("\nMean distance from the DSC reached: " + "; ".join(f"{name} {(v - frame['dsc']).abs().mean():.4f}" for name, v in off.items()))
    names = [c for c in candidates if c not in ("case", "organ", "dsc")]
    print("\nSpearman's correlation with the DSC, 95 % bootstrap interval over the cases:")
    print(pd.DataFrame([correlations(candidates, n) for n in names]).set_index("quantity").to_string())
    print("\nFlagged (below the 10th percentile of the organ's other cases) and, of the worst tenth by DSC, how many are among them:")
    rows = [caught(candidates, n, below_limit(candidates, n), candidates[n]) for n in names]
    unusual, least = frame["failed"].fillna("").ne("").to_numpy(), below_least(frame)
    rows.append(caught(frame, "inside, by the limit of the checks", least))
    rows.append(caught(frame, "checks but the confidence's", unusual))
    rows.append(caught(frame, "all checks", unusual | least))
    print(pd.DataFrame(rows).set_index("quantity").to_string())
    print("\nChecks that failed:\n" + frame.loc[unusual, ["case", "organ", "dsc", "failed"]].to_string(index=False))


def show_cut(frame: pd.DataFrame) -> None:
    """Of the organs that lost a tenth or more of their reference to the cut, and of the others, how many the checks flag, and by which."""
    flags, cut = frame["failed"].fillna("").ne(""), frame["lost"] >= 0.1
    print(frame.loc[flags | cut, ["case", "organ", "lost", "dsc", "volume_ml", "failed"]].round(2).to_string(index=False))
    for name, rows in (("lost a tenth or more", cut), ("lost less", ~cut)):
        print(f"{name}: {int((flags & rows).sum())} of {int(rows.sum())} flagged")


def place_among_others(frame: pd.DataFrame, name: str) -> pd.Series:
    """The part (0…1) of the organ's other cases whose value is lower, equal ones counted half."""
    pairs = zip(frame[name], of_others(frame, name))
    return pd.Series([float((others < mine).mean() + 0.5 * (others == mine).mean()) for mine, others in pairs], index=frame.index)


def expected_after_others(frame: pd.DataFrame) -> pd.Series:
    """The DSC to be expected by volume and mean probability, after the results of the other cases; the organ's mean DSC for an empty one."""
    told = pd.Series(0.0, index=frame.index)
    for case in frame["case"].unique():
        others = frame[frame["case"] != case]
        known = expectations({o: tuple(g[c].to_numpy() for c in ("dsc", "volume_ml", "inside")) for o, g in others.groupby("organ")})
        for row in frame[frame["case"] == case].itertuples():
            its = known[row.organ]
            told[row.Index] = its.of(row.volume_ml, row.inside) if row.volume_ml and row.inside else its.dsc[0]
    return told


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


def of_others(frame: pd.DataFrame, name: str) -> Iterator[pd.Series]:
    """For each row, the values of its organ in the other cases."""
    for row in frame.itertuples():
        yield frame.loc[(frame["organ"] == row.organ) & (frame["case"] != row.case), name]


def below_limit(frame: pd.DataFrame, name: str, share: float = 0.1) -> np.ndarray:
    """Which rows lie below the percentile of the organ's other cases."""
    return frame[name].to_numpy() < np.array([np.percentile(others, 100 * share) for others in of_others(frame, name)])


def below_least(frame: pd.DataFrame) -> np.ndarray:
    """Which rows lie below the limit that the checks would make of the organ's other cases."""
    chance, inside = CASE_ALARMS / frame["organ"].nunique(), frame["inside"].to_numpy()
    return (inside > 0) & (inside < np.array([least_probability(others, chance) for others in of_others(frame, "inside")], float))


def caught(frame: pd.DataFrame, name: str, flags: np.ndarray, value: pd.Series | None = None, share: float = 0.1) -> dict:
    """How many are flagged; how many of the worst are among them, by DSC, and by DSC against the organ's median; or among the lowest."""
    count = max(1, round(share * len(frame)))
    lowest_dsc = (frame["dsc"].rank(method="first") <= count).to_numpy()
    below_median = frame["dsc"] - frame.groupby("organ")["dsc"].transform("median")
    unusual = (below_median.rank(method="first") <= count).to_numpy()
    ranked = "–" if value is None else f"{((value.rank(method='first') <= count).to_numpy() & lowest_dsc).sum()} of {count}"
    return {"quantity": name, "flagged": f"{flags.sum()} of {len(frame)}",
            "worst tenth flagged": f"{(flags & lowest_dsc).sum()} of {count}",
            "farthest below the organ's median flagged": f"{(flags & unusual).sum()} of {count}",
            "worst tenth among the lowest tenth": ranked}


if __name__ == "__main__":
    sys.exit(main())
