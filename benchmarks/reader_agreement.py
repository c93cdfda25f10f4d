"""Two readers' masks of the same scans: this project's DSC and surface DSC beside those of DeepMind's surface-distance library.

The library is run by another Python, in an environment of its own (`python -m venv deepmind; deepmind/bin/pip install surface-distance
nibabel`), since it is a reference for this comparison only. Distances and tolerances are as in `c2f_evaluate`. Times are of the surface
DSC alone, on masks cut to the box around both; single thread on both sides.

  python benchmarks/reader_agreement.py DATA/masks_two_readers/oncologist DATA/masks_two_readers/radiographer --peer deepmind/bin/python
"""
from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from time import perf_counter

import pandas as pd
from scipy.ndimage import find_objects
from tqdm import tqdm

from c2f_nnunet.evaluation.folders import declared, evaluate_folders, label_files
from c2f_nnunet.evaluation.metrics import CaseScore, tolerance_mm
from c2f_nnunet.evaluation.surface import surface_dsc, surfel_distances
from c2f_nnunet.io.images import read_label
from c2f_nnunet.labels import LabelSet

LABELS = Path(__file__).parent / "masks_two_readers.json"  # a dataset.json, which these folders lack


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("first", type=Path)
    p.add_argument("second", type=Path)
    p.add_argument("--peer", required=True, metavar="PYTHON", help="a Python that has surface-distance, nibabel and scipy")
    p.add_argument("-o", dest="out", type=Path, help="folder in which the peer's numbers are kept")
    args = p.parse_args()
    labels, _ = declared(LABELS)
    with tempfile.TemporaryDirectory() as scratch:
        theirs = by_peer(args, labels, args.out or Path(scratch))
    shown = partial(tqdm, unit="case", disable=None)
    scores = evaluate_folders(args.first, args.second, labels, progress=lambda done, total: shown(done, total=total))
    seconds = {case: timed(path, args.second / path.name, labels) for case, path in label_files(args.first).items()}
    show(scores, seconds, theirs)


def by_peer(args, labels: LabelSet, out: Path) -> dict:
    """Case → label id → what the library finds."""
    out.mkdir(parents=True, exist_ok=True)
    tolerances, theirs = out / "tolerances.json", out / "deepmind.json"
    tolerances.write_text(json.dumps({i: tolerance_mm(o) for o, i in zip(labels.organs, labels.ids)}))
    script = Path(__file__).parent / "peers" / "deepmind_surface.py"
    subprocess.run([args.peer, script, args.first, args.second, tolerances, theirs], check=True)
    return json.loads(theirs.read_text())


def timed(first: Path, second: Path, labels: LabelSet) -> dict[str, float]:
    """Seconds of the surface DSC of each organ that both files hold."""
    a, b = read_label(first), read_label(second)
    boxes = [dict(enumerate(find_objects(m.array), start=1)) for m in (a, b)]
    seconds = {}
    for organ, i in zip(labels.organs, labels.ids):
        if all(found.get(i) for found in boxes):
            union = tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*(found[i] for found in boxes)))
            masks = [m.array[union] == i for m in (a, b)]
            began = perf_counter()
            surface_dsc(surfel_distances(*masks, a.geometry.spacing_mm), tolerance_mm(organ))
            seconds[organ] = perf_counter() - began
    return seconds


def show(scores: list[CaseScore], seconds: dict[str, dict[str, float]], theirs: dict) -> None:
    """Per organ the means of both, the largest difference, and the ratio of the times."""
    rows = []
    for s in scores:
        for o in s.organs:
            peer = theirs.get(s.case, {}).get(str(o.id))
            if o.state == "scored" and peer:
                rows.append({
                    "organ": o.organ, "DSC": o.dsc, "theirs ": peer["dsc"], "surface DSC": o.surface_dsc, "theirs": peer["surface_dsc"],
                    "d_dsc": abs(o.dsc - peer["dsc"]), "d_surface": abs(o.surface_dsc - peer["surface_dsc"]),
                    "ours_s": seconds[s.case].get(o.organ), "theirs_s": peer["seconds"],
                })  # fmt: skip
    frame = pd.DataFrame(rows)
    groups = frame.groupby("organ", sort=False)
    table = groups[["DSC", "theirs ", "surface DSC", "theirs"]].mean()
    table.insert(0, "scans", groups.size())
    table["largest difference of DSC"], table["of surface DSC"] = groups["d_dsc"].max(), groups["d_surface"].max()
    table["time, theirs / ours"] = groups["theirs_s"].sum() / groups["ours_s"].sum()
    formats = {c: "{:.1e}".format for c in ("largest difference of DSC", "of surface DSC")} | {"time, theirs / ours": "{:.1f}".format}
    print(table.to_string(float_format="{:.4f}".format, formatters=formats))
    print(f"{len(frame)} organs in {len(scores)} scans; largest difference of DSC {frame['d_dsc'].max():.1e}, of surface DSC "
          f"{frame['d_surface'].max():.1e}; all together {frame['theirs_s'].sum() / frame['ours_s'].sum():.1f} times as long by theirs")


if __name__ == "__main__":
    sys.exit(main())
