"""c2f_export_model: a trained model as one file."""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .common import add_folders, entry, new_parser


def parser() -> argparse.ArgumentParser:
    about = "Write a trained model (plan, weights, scores, SHA-256 manifest) to one zip file."
    p = new_parser("c2f_export_model", about, "c2f_export_model -d 15 -o model.zip")
    add_folders(p)
    p.add_argument("-o", dest="output", required=True, metavar="FILE", help="the zip file to write")
    p.add_argument("-chk", dest="checkpoint", choices=("best", "final"), default="best", help="which checkpoint (default: best)")
    return p


def body(args: argparse.Namespace) -> None:
    from ..running.export import export_model
    from ..running.model import open_model
    from ..workspace import Workspace

    target = Path(args.output)
    count = export_model(open_model(Workspace.find(args.workspace).model(args.dataset, args.plan)), target, args.checkpoint)
    print(f"{count} networks written to {target} ({target.stat().st_size / 2**20:.1f} MB)")


main = entry(parser, body)

if __name__ == "__main__":
    sys.exit(main())
