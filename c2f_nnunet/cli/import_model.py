"""c2f_import_model: check an exported model and put it among the results."""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .common import entry, new_parser


def parser() -> argparse.ArgumentParser:
    about = "Check an exported model (manifest, hashes, shapes, finite weights) and place it under results."
    p = new_parser("c2f_import_model", about, "c2f_import_model model.zip")
    p.add_argument("archive", metavar="FILE", type=Path, help="a file that c2f_export_model wrote")
    p.add_argument("--workspace", metavar="DIR", help="folder holding raw/ preprocessed/ results/ (default: C2F_RESULTS)")
    p.add_argument("--replace", action="store_true", help="put it in the place of a model that is there already")
    return p


def body(args: argparse.Namespace) -> None:
    from ..running.export import import_model
    from ..workspace import Workspace

    folder = import_model(args.archive, Workspace.find(args.workspace).results, args.replace)
    print(f"imported to {folder.root}; predict with: c2f_predict -m {folder.root} -i IMAGES -o OUT")


main = entry(parser, body)

if __name__ == "__main__":
    sys.exit(main())
