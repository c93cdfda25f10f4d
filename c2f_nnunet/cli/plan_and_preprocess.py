"""c2f_plan_and_preprocess: verify, fingerprint, plan and preprocess a raw data set."""
from __future__ import annotations

import argparse
import os
import sys

from .common import add_folders, entry, new_parser, positive, positive_number


def parser() -> argparse.ArgumentParser:
    p = new_parser(
        "c2f_plan_and_preprocess", "Verify a raw data set, derive its plan (printed with the reason for each number) and preprocess it.",
        "c2f_plan_and_preprocess -d 15",
    )  # fmt: skip
    add_folders(p)
    p.add_argument("-c", dest="configs", nargs="+", metavar="CONFIG", help="preprocess only these configurations (default: all)")
    p.add_argument("-np", dest="processes", type=positive, default=os.cpu_count() or 1, metavar="N",
                   help="processes (default: one per core)")
    p.add_argument("--no_pp", action="store_true", help="plan only, preprocess nothing")
    p.add_argument("--clean", action="store_true", help="remove this plan's preprocessed volumes first")
    p.add_argument("--gpu_memory_target", type=positive_number, metavar="GB",
                   help="memory that one training may use; plans for a GPU (default: see the printed plan)")
    p.add_argument("--overwrite_target_spacing", type=positive_number, nargs=3, metavar=("Z", "Y", "X"),
                   help="coarse spacing in mm instead of the derived one")
    p.add_argument("--verify_dataset_integrity", action="store_true", help="accepted for nnU-Net's users: the data set is always verified")
    return p


def body(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from ..data.dataset import read_dataset
    from ..planning.planner import derivation, plan_name
    from ..running import planning
    from ..running.graph import members_of
    from ..running.preprocess import preprocess
    from ..workspace import ModelFolder, Workspace, lock, require_idle, store_folder

    workspace = Workspace.find(args.workspace)
    name = workspace.dataset_name(args.dataset)
    planned = plan_name(args.plan or "auto")
    folder, store = ModelFolder(workspace.results / name / planned), store_folder(workspace, name, planned)
    dataset = read_dataset(workspace.raw / name)
    planning.require_places(folder, store)
    with lock(workspace.preprocessed / name, f"planning and preprocessing of {name}"):
        with tqdm(total=len(dataset.training), desc="verifying", unit="case", disable=None) as bar:
            fingerprint = planning.fingerprint(dataset, args.processes, lambda case: bar.update())
        plan = planning.choose(args.plan or "auto", dataset, fingerprint, args.gpu_memory_target, args.overwrite_target_spacing)
        members = tuple({m.name: m for c in args.configs or ["all"] for m in members_of(plan, c)}.values())
        print("\n".join(derivation(plan)))
        planning.write(folder, plan, fingerprint, dataset, workspace.preprocessed / name)
        print(f"written: {folder.plan}")
        if args.no_pp:
            return
        require_idle(folder.root)  # a training may have begun since, and would read what is removed or made anew
        if args.clean:
            planning.clean(store)
        with tqdm(total=len(dataset.training), desc="preprocessing", unit="case", disable=None) as bar:
            done = preprocess(dataset, plan, store, members, args.processes, lambda d: bar.update())
        made = sum(1 for d in done if d.made)
        print(f"preprocessed: {made} of {len(done)} cases made, the others stood already; in {store.root}")


main = entry(parser, body)

if __name__ == "__main__":
    sys.exit(main())
