"""The converters' common command line: SRC -d ID, where to, which organs, under which names, which parts of the source."""
from __future__ import annotations

import argparse
import logging
import re
from pathlib import Path
from typing import Iterable, Sequence

from c2f_nnunet.cli.common import new_parser, positive
from c2f_nnunet.errors import DatasetError, WorkspaceError
from c2f_nnunet.tg263 import standard_names, tg263_name
from c2f_nnunet.workspace import Workspace

from .cases import SourceCase
from .target import Target

log = logging.getLogger("c2f_nnunet.conversion")  # a name below the package's, so that its notes are shown


def source_parser(prog: str, about: str, source: str, name: str | None, example: str) -> argparse.ArgumentParser:
    """SRC, -d, --name, --workspace or --raw, --names, --update. name: the default; None where number and name come from the source."""
    p = new_parser(prog, about, example)
    p.add_argument("source", type=Path, metavar="SRC", help=source)
    default = f" (default: {name or 'as in the source'})"
    p.add_argument("-d", dest="dataset", type=positive, required=name is not None, metavar="ID",
                   help="number of the data set to make, 1 to 999" + ("" if name else default))
    p.add_argument("--name", default=name, metavar="NAME", help="its name: DatasetID_NAME" + default)
    where = p.add_mutually_exclusive_group()
    where.add_argument("--workspace", metavar="DIR", help="workspace in whose raw/ it is made (default: C2F_RAW)")
    where.add_argument("--raw", type=Path, metavar="DIR", help="the folder of raw data sets itself")
    p.add_argument("--names", choices=("tg263", "source"), default="tg263",
                   help="organ names: TG-263's where it has one, or all as the source spells them (default: tg263)")
    p.add_argument("--update", action="store_true", help="bring a data set made earlier up to date; cases whose source is unchanged stay")
    return p


def add_organs(p: argparse.ArgumentParser) -> None:
    """--organs: some of the source's organs."""
    p.add_argument("--organs", nargs="+", metavar="ORGAN", help="take only these, in any spelling (default: all)")


def add_parts(p: argparse.ArgumentParser, parts: Iterable[str], train: Sequence[str], test: Sequence[str]) -> None:
    """--train and --test, each a choice of the source's parts."""
    parts = tuple(parts)
    p.add_argument("--train", nargs="+", choices=parts, default=list(train), metavar="PART",
                   help=f"parts for imagesTr, of {', '.join(parts)} (default: {' '.join(train)})")
    p.add_argument("--test", nargs="*", choices=parts, default=list(test), metavar="PART",
                   help=f"parts for imagesTs (default: {' '.join(test)})")


def chosen_parts(args: argparse.Namespace) -> dict[str, bool]:
    """Part → whether it is for training, for the chosen ones; DatasetError where one is chosen for both."""
    if both := sorted(set(args.train) & set(args.test)):
        raise DatasetError(f"--train and --test both name {', '.join(both)}; a scan to test on must not be trained on")
    return {part: True for part in args.train} | {part: False for part in args.test}


def target_folder(args: argparse.Namespace, name: str = "", number: int | None = None) -> Path:
    """raw/DatasetXXX_NAME of the command line; `name` and `number` where that does not say. The folder need not exist."""
    number, name = args.dataset or number, args.name or name
    if not number or number > 999 or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise DatasetError(f"-d {number} --name {name}: give a number from 1 to 999 and a name of letters, digits, _ and -")
    raw = args.raw or Workspace.find(args.workspace).raw
    folder = raw / f"Dataset{number:03d}_{name}"
    if others := sorted(p.name for p in raw.glob(f"Dataset{number:03d}_*") if p.is_dir() and p != folder):
        raise WorkspaceError(f"{raw}: the number {number} is taken by {', '.join(others)}; give another -d")
    return folder


def new_target(args: argparse.Namespace, cases: Sequence[SourceCase], organs: Sequence[str], about: dict[str, str],
               **settings: str) -> Target:
    """What is to be made of `cases`. organs: all that the source can have, in label order; those without a training case are left out.

    about: more keys of dataset.json. settings: options of the converter that change what is written, beside the chosen parts.
    """
    wanted = select_organs(organs, args.organs)
    trained = {organ for case in cases if case.training for organ in case.organs}
    kept = [organ for organ in wanted if organ in trained]
    if not kept:
        raise DatasetError(f"{args.source}: no training case with a mask of {', '.join(wanted)}; check the path and the chosen parts")
    if missing := [organ for organ in wanted if organ not in trained]:
        log.warning("%s: no training case has a mask of it; left out", ", ".join(missing))
    parts = {key: " ".join(sorted(value)) for key in ("train", "test") if (value := getattr(args, key, None)) is not None}
    ids = {organ: i for i, organ in enumerate(kept, 1)}
    return Target(target_folder(args), ids, organ_names(kept, args.names), {**parts, **settings}, about)


def organ_names(organs: Sequence[str], scheme: str) -> dict[str, str]:
    """The source's organ → its name in the data set, by --names."""
    return standard_names(organs) if scheme == "tg263" else {organ: organ for organ in organs}


def select_organs(organs: Sequence[str], wanted: Sequence[str] | None) -> list[str]:
    """The wanted organs in their own order; a wanted name may have any spelling with the same TG-263 name. None: all."""
    if wanted is None:
        return list(organs)
    chosen = set()
    for name in wanted:
        meant = {organ for organ in organs if organ == name or (tg263_name(name) or name) == tg263_name(organ)}
        if not meant:
            raise DatasetError(f"--organs {name}: not an organ of this source; it has {', '.join(organs)}")
        chosen |= meant
    return [organ for organ in organs if organ in chosen]
