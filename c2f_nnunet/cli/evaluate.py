"""c2f_evaluate: score a folder of predicted label maps against the reference ones."""
from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from .common import entry, new_parser, positive

DESCRIPTION = """Score predicted label maps against reference ones: DSC, surface DSC (%), 95HD, average surface distance (mm),
volumes (ml). Writes summary.json (nnU-Net's layout, further metrics, null where undefined) and per_case.csv.

An organ that a case does not have is "absent" (undefined, left out of the mean); one that was not predicted is
"missed" (DSC 0, distances undefined); one that dataset.json's "annotated" leaves out is "unknown" (not scored)."""


def parser() -> argparse.ArgumentParser:
    p = new_parser("c2f_evaluate", DESCRIPTION, "c2f_evaluate raw/Dataset015_HeadNeckKBP/labelsTs predictions -np 4")
    p.add_argument("gt_dir", metavar="GT_DIR", type=Path, help="folder of reference label files, CASE.nii.gz (.nii, .nrrd, .mha)")
    p.add_argument("pred_dir", metavar="PRED_DIR", type=Path, help="folder of predicted label files with the same names")
    p.add_argument("-djfile", metavar="FILE", type=Path,
                   help="dataset.json with the labels (default: that in GT_DIR, GT_DIR's parent or PRED_DIR; without one, the ids found)")
    p.add_argument("-o", dest="out", metavar="OUT", type=Path, help="folder for summary.json and per_case.csv (default: PRED_DIR)")
    p.add_argument("-np", dest="processes", metavar="N", type=positive, default=min(4, os.cpu_count() or 1),
                   help="processes (default: %(default)s)")
    return p


def body(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from ..errors import C2FError, SomeCasesFailed
    from ..evaluation import folders, metrics
    from ..io import durable
    from ..workspace import require_writable

    places = [f / "dataset.json" for f in (args.gt_dir, args.gt_dir.absolute().parent, args.pred_dir)]
    found = [args.djfile] if args.djfile else [f for f in places if f.is_file()]
    source = found[0] if found else None
    labels, annotated = folders.declared(source) if source else (None, None)
    if differing := [str(f) for f in found[1:] if folders.declared(f)[0] != labels]:  # a number would mean another organ in one of them
        raise C2FError(f"{source}: has other labels than {' and '.join(differing)}; give the one that holds for both folders as -djfile")
    folders.label_files(args.pred_dir)  # a misspelled folder must not be made by the check that it can be written
    out = args.out or args.pred_dir
    require_writable(out)
    durable.remove_leftovers(out)
    failed: dict[str, str] = {}
    scores = folders.evaluate_folders(
        args.gt_dir, args.pred_dir, labels, args.processes, annotated, failed=failed,
        progress=lambda done, total: tqdm(done, total=total, desc="scoring", unit="case", disable=None, leave=False),
    )
    if not scores:
        raise C2FError(f"{args.pred_dir}: none of the {len(failed)} cases could be scored: {'; '.join(failed.values())}")
    folders.write_evaluation(out, scores)
    print(f"{len(scores)} cases, mean ± SD over the cases, labels from {source or 'the files (no dataset.json found)'}")
    print(metrics.to_table(scores).to_string())
    print(f"written: {out / 'summary.json'}, {out / 'per_case.csv'}")
    if failed:
        raise SomeCasesFailed(f"{len(failed)} of {len(failed) + len(scores)} cases could not be scored: {'; '.join(failed.values())}")


main = entry(parser, body)

if __name__ == "__main__":
    sys.exit(main())
