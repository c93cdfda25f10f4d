"""How many organs does a limit of the mean probability flag, and are they the poor ones? Limits from n cases at random, the others checked.

Reads the held-out results in a model's fusion.json; or what c2f_predict left for scans with a reference, and c2f_evaluate's per_case.csv
beside it.

  python benchmarks/confidence_limits.py RESULTS/Dataset015_HeadNeckKBP/auto/fusion.json -n 4 11
  c2f_predict -i imagesTs -o OUT -d 15 && c2f_evaluate labelsTs OUT && python benchmarks/confidence_limits.py OUT
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from c2f_nnunet.inference.fusion import read_fusion
from c2f_nnunet.inference.limits import FEWEST, least_probability
from c2f_nnunet.running.checking import gather_checks

DRAWS = 400
POOR = 0.1  # the part of the results with the lowest DSC, below their organ's median
MAD_TO_SD = 1.4826  # of normal values


def robust(inside: np.ndarray) -> float:
    """The median of the log-odds less three standard deviations, these from the median absolute deviation."""
    odds = logit(inside)
    middle = np.median(odds)
    return float(expit(middle - 3 * MAD_TO_SD * np.median(np.abs(odds - middle))))


LIMITS = {  # name → (the held-out values, number of organs) → the lowest value that is not flagged
    "10th percentile": lambda inside, organs: np.percentile(inside, 10),
    "lowest": lambda inside, organs: min(inside),
    "median - 3 MAD": lambda inside, organs: robust(inside),
    "bound, 1 case in 5": lambda inside, organs: least_probability(inside, 0.2 / organs),
    "bound, 1 case in 20": lambda inside, organs: least_probability(inside, 0.05 / organs),
}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("source", type=Path, metavar="FUSION_JSON or OUT")
    p.add_argument("-n", nargs="+", type=int, default=(4, 8, 12, 24), help="numbers of held-out cases")
    args = p.parse_args()
    inside, dsc = tables(results(args.source))
    poor = (dsc - dsc.median()).stack().rank(method="first").unstack().reindex_like(dsc) <= round(POOR * dsc.size)
    print(f"{inside.shape[0]} cases, {inside.shape[1]} organs; in %, means over {DRAWS} draws")
    print(pd.DataFrame([row for n in args.n for row in rows(inside.to_numpy(), poor.to_numpy(), n)]).round(1).to_string(index=False))


def results(source: Path) -> pd.DataFrame:
    """Case, organ, mean probability inside (0: not found) and DSC."""
    if source.is_file():
        rows = [(h.organ, *row) for h in read_fusion(source).held_out for row in zip(h.cases, h.inside, h.dsc)]
        return pd.DataFrame(rows, columns=["organ", "case", "inside", "dsc"])
    noted = pd.DataFrame([{"case": c.case, "organ": c.organ, "inside": c.evidence.inside} for c in gather_checks(source)])
    return noted.merge(pd.read_csv(source / "per_case.csv", dtype={"case": str}), on=["case", "organ"]).fillna({"dsc": 0.0})


def tables(both: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Mean probability and DSC by case and organ, of the organs that are found in nine of ten cases."""
    found = (both["inside"] > 0).groupby(both["organ"]).transform("mean") >= 0.9
    inside, dsc = (both[found].pivot(index="case", columns="organ", values=name) for name in ("inside", "dsc"))
    return inside, dsc


def rows(inside: np.ndarray, poor: np.ndarray, n: int) -> list[dict]:
    """One row per limit: flagged organs, cases with any, poor results that are flagged, flagged ones that are poor."""
    rng, counts = np.random.default_rng(0), {name: np.zeros(4) for name in LIMITS}
    for _ in range(DRAWS):
        order = rng.permutation(len(inside))
        held, rest = inside[order[:n]], order[n:]
        for name, limit in LIMITS.items():
            least = [limit(column[column > 0], held.shape[1]) if np.count_nonzero(column) >= FEWEST else np.nan for column in held.T]
            flagged = (inside[rest] > 0) & (inside[rest] < least)
            counts[name] += flagged.mean(), flagged.any(axis=1).mean(), (flagged & poor[rest]).mean(), poor[rest].mean()
    return [
        {"held out": n, "limit": name, "organs flagged": 100 * organs / DRAWS, "cases flagged": 100 * cases / DRAWS,
         "poor ones flagged": 100 * hits / poor_ones, "flagged ones poor": 100 * hits / max(organs, 1e-9)}
        for name, (organs, cases, hits, poor_ones) in counts.items()
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
