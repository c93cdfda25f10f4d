"""c2f_crossval: the cross-validation report."""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .common import add_device, add_folders, entry, new_parser


def compared(text: str) -> tuple[str, Path]:
    """An argparse type: NAME=FOLDER."""
    name, _, folder = text.partition("=")
    if not name or not folder or not Path(folder).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FOLDER with a folder that exists")
    return name, Path(folder)


def parser() -> argparse.ArgumentParser:
    p = new_parser(
        "c2f_crossval", "Predict every held-out case with the fold that never saw it, and report Tables I-III, figures and CSVs.",
        "c2f_crossval -d 15",
    )  # fmt: skip
    add_folders(p)
    add_device(p)
    p.add_argument("-chk", dest="checkpoint", choices=("best", "final"), default="best", help="which checkpoint (default: best)")
    p.add_argument("--compare", nargs="+", type=compared, default=[], metavar="NAME=DIR",
                   help="further folders of predictions of the same cases, as columns of Tables II and III")
    p.add_argument("--no_two_readers", action="store_true", help="leave out the column of two human readers' DSC on other patients")
    return p


def body(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from ..data.dataset import read_dataset
    from ..errors import C2FError, SomeCasesFailed
    from ..network.precision import default_device, find_device
    from ..running.crossval import crossval
    from ..running.model import open_model
    from ..workspace import Workspace

    others = dict(args.compare)
    if len(others) < len(args.compare):
        raise C2FError(f"--compare: a name is given twice ({', '.join(name for name, _ in args.compare)}); give each folder a name of its own")
    workspace = Workspace.find(args.workspace)
    folder = workspace.model(args.dataset, args.plan)
    model = open_model(folder)
    dataset = read_dataset(workspace.raw / model.plan.dataset)
    device = find_device(args.device or default_device())
    with tqdm(desc="cross-validating", unit="case", disable=None) as bar:
        page, failed = crossval(model, dataset, device, args.checkpoint, others, lambda case: bar.update(), not args.no_two_readers)
    print((folder.crossval / "report.md").read_text().split("## All metrics")[0].strip())
    print(f"\nreport: {page}")
    if failed:
        raise SomeCasesFailed(f"{len(failed)} held-out cases failed, the others are in the report: {'; '.join(failed.values())}")


main = entry(parser, body)

if __name__ == "__main__":
    sys.exit(main())
