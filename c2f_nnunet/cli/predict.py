"""c2f_predict: the two-stage cascade on a folder of scans."""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .common import add_device, add_folders, entry, new_parser, positive, positive_number, whole


def parser() -> argparse.ArgumentParser:
    about = "Segment every scan of a folder with a trained model; all trained folds are ensembled."
    p = new_parser("c2f_predict", about, "c2f_predict -i imagesTs -o out -d 15")
    p.add_argument("-i", dest="input", required=True, metavar="FOLDER",
                   help="folder of images (CASE_0000.nii.gz) or of DICOM CT series, each in a sub-folder or mixed; a name like imagesTs is "
                        "also looked up in the raw data set")
    p.add_argument("-o", dest="output", required=True, metavar="OUT", help="folder for the label maps")
    add_folders(p)
    p.add_argument("-m", dest="model", metavar="MODEL_FOLDER", help="a model folder (holding plan.json) instead of -d")
    p.add_argument("-f", dest="folds", nargs="+", type=whole, metavar="FOLD", help="folds to ensemble (default: all found)")
    p.add_argument("-chk", dest="checkpoint", choices=("best", "final"), default="best", help="which checkpoint (default: best)")
    add_device(p)
    p.add_argument("--stage", choices=("coarse", "fine"), default="fine", help="coarse: the fused views alone (default: fine)")
    p.add_argument("--disable_tta", action="store_true", help="no averaging with the mirrored scan (twice as fast)")
    p.add_argument("--save_probabilities", action="store_true", help="also write CASE.npz with 'probabilities' (classes, z, y, x), float16")
    p.add_argument("--rtstruct", action="store_true", help="also write CASE_rtstruct.dcm, contours that refer to the DICOM series")
    p.add_argument("--dicom_seg", action="store_true", help="also write CASE_seg.dcm, a DICOM SEG that refers to the series")
    p.add_argument("--report", action="store_true", help="also write report.html with contour pictures, and viewer/ for c2f_view")
    p.add_argument("--continue_prediction", action="store_true", help="skip cases whose result is there, whole and of the same input")
    p.add_argument("-num_parts", type=positive, default=1, metavar="N", help="share the cases among N calls (default: 1)")
    p.add_argument("-part_id", type=whole, default=0, metavar="K", help="which part this call does, from 0 (default: 0)")
    p.add_argument("--max_memory", type=positive_number, metavar="GB", help="refuse a scan whose estimate is above this")
    return p


def body(args: argparse.Namespace) -> None:
    import pandas as pd
    from tqdm import tqdm

    from ..data.dataset import prediction_cases
    from ..errors import C2FError, SomeCasesFailed
    from ..io import durable
    from ..network.precision import default_device, find_device
    from ..running import checking, predict
    from ..running.model import build_cascade, open_model
    from ..running.report import prediction_report
    from ..workspace import ModelFolder, Workspace, require_writable

    if args.part_id >= args.num_parts:
        raise C2FError(f"-part_id {args.part_id}: there are parts 0 to {args.num_parts - 1} of -num_parts {args.num_parts}")
    workspace = None if args.model else Workspace.find(args.workspace)
    folder = ModelFolder(Path(args.model)) if args.model else workspace.model(args.dataset, args.plan)
    model = open_model(folder)
    source = Path(args.input)
    if workspace and not source.exists() and (workspace.raw / model.plan.dataset / source).is_dir():
        source = workspace.raw / model.plan.dataset / source
        print(f"reading {source}")
    everything = prediction_cases(source, model.plan.file_ending)
    cases = predict.part_of(everything, args.num_parts, args.part_id)
    out = Path(args.output)
    if out.exists() and out.resolve() == source.resolve():
        raise C2FError(f"-o {out}: is the input folder; give another one, so that no scan is overwritten")
    options = predict.PredictOptions(
        args.stage, args.save_probabilities, args.continue_prediction, frozenset(model.fusion.clean), model.plan.file_ending,
        args.max_memory, args.rtstruct, args.dicom_seg, checking.read_limits(model, held_out=args.stage == "fine"),
    )  # fmt: skip
    predict.require_dicom(cases, options)
    device = find_device(args.device or default_device())
    wanted = tuple(args.folds) if args.folds else None
    cascade, folds = build_cascade(model, wanted, args.checkpoint, device, not args.disable_tta, args.stage)
    require_writable(out)
    durable.remove_leftovers(out)
    print(f"{len(cases)} cases, folds: " + ", ".join(f"{name} {'+'.join(map(str, f))}" for name, f in folds.items()))
    with tqdm(total=len(cases), desc="predicting", unit="case", disable=None) as bar:
        done = predict.predict_cases(cascade, cases, out, options, lambda case: bar.update())
    if folder.dataset_json.exists():  # its label names are what c2f_evaluate shows
        durable.write_bytes(out / "dataset.json", folder.dataset_json.read_bytes())
    good, failed = [p for p in done if p.error is None], {p.case: p.error for p in done if p.error}
    left_out = failed | {
        c.id: "its result there is of another model, stage or fold" for c in everything
        if c.id not in failed and (target := predict.output_path(out, c, options)).exists() and not predict.is_of(target, args.stage, cascade.made_of)
    }  # fmt: skip
    noted = [c for c in checking.gather_checks(out) if c.case not in left_out]  # those of cases that stood already, too
    checking.write_checks(out, noted)
    if good:
        seconds = pd.DataFrame([p.seconds for p in good])
        medians = ", ".join(f"{name} {value:.1f}" for name, value in seconds.median().items())
        print(f"seconds per case (median): {medians}; all {seconds.to_numpy().sum():.0f} s")
    asked = {c.id for c in cases}
    if flagged := checking.table(c for c in noted if c.case in asked):
        print("organs that need a look:\n" + flagged)
    if args.report and len(failed) < len(cases):
        title = f"{model.plan.dataset}: predictions of plan '{model.plan.name}'"
        held_out = {h.organ: h.dsc for h in model.fusion.held_out} if args.stage == "fine" else {}  # merged results: no other stage's
        page = prediction_report(out, title, model.plan.labels, everything, options, held_out, left_out)
        print(f"report: {page}; slice by slice and in 3D: c2f_view {out}")
    print(f"peak memory: {predict.peak_memory_gb():.2f} GB; results in {out}")
    if failed:
        named = "; ".join(f"{case}: {why}" for case, why in failed.items())
        if len(failed) == len(cases):
            raise C2FError(f"{len(failed)} of {len(cases)} cases failed: {named}")
        raise SomeCasesFailed(f"{len(failed)} of {len(cases)} cases failed, the others are done: {named}")


main = entry(parser, body)

if __name__ == "__main__":
    sys.exit(main())
