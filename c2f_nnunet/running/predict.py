"""Predicting a folder of scans: which cases, one after the other, what is written, and what it took."""
from __future__ import annotations

import logging
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import numpy as np

from ..data.dataset import Case
from ..errors import C2FError, ImageError
from ..geometry import from_canonical
from ..inference.cascade import Cascade, OrganReport, coarse_maps, combined, merge, run_coarse, run_fine
from ..inference.fusion import probabilities
from ..io import durable, records
from ..io.images import Image, read_image, write_label

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Predicted:
    """One case: what was found of each organ, or why it failed; seconds by stage."""

    case: str
    reports: tuple[OrganReport, ...]
    seconds: dict[str, float]
    error: str | None = None


@dataclass(frozen=True)
class PredictOptions:
    stage: str = "fine"
    save_probabilities: bool = False
    continue_prediction: bool = False
    clean: frozenset[str] = frozenset()
    file_ending: str = ".nii.gz"
    max_memory_gb: float | None = None


def part_of(cases: tuple[Case, ...], num_parts: int, part_id: int) -> tuple[Case, ...]:
    """Every num_parts-th case from part_id on, as nnU-Net shares them out."""
    return cases[part_id::num_parts]


def output_path(out: Path, case: Case, options: PredictOptions) -> Path:
    return out / f"{case.id}{options.file_ending}"


def predict_cases(cascade: Cascade, cases: tuple[Case, ...], out: Path, options: PredictOptions, on_case: Callable[[Predicted], None] = lambda p: None) -> list[Predicted]:
    """Predict every case; one that fails is named and the others are done. Results go to `out`, and to its prediction.json."""
    done: list[Predicted] = []
    for case in cases:
        target = output_path(out, case, options)
        if options.continue_prediction and is_complete(target, case):
            log.info("%s: there already, skipped", target)
            continue
        try:
            done.append(predict_case(cascade, case, target, options))
        except (ImageError, C2FError) as e:
            log.error("%s: skipped: %s", case.id, e)
            done.append(Predicted(case.id, (), {}, str(e)))
        on_case(done[-1])
    return done


def predict_case(cascade: Cascade, case: Case, target: Path, options: PredictOptions) -> Predicted:
    """One scan from file to file."""
    clock = StageClock()
    image = read_image(case.image)
    _check_memory(cascade, image, options)
    clock.lap("read")
    coarse = run_coarse(cascade, image.array, image.geometry)
    clock.lap("coarse")
    if options.stage == "coarse":
        maps = coarse_maps(cascade.plan, coarse.logits, coarse.prepared, image.geometry)
    else:
        maps = run_fine(cascade, coarse, image.array, image.geometry)
    keep = [] if options.save_probabilities else None
    if keep is not None:
        maps = _recorded(maps, keep)
    result = merge(cascade.plan, maps, image.geometry, cascade.merge_weights, coarse.located, options.clean)
    clock.lap(options.stage)
    write_label(target, cascade.plan.labels.to_ids(result.channels), image.source)
    if keep is not None:
        _write_probabilities(target, cascade, keep, image)
    records.write(_note_path(target), {"case": case.id, "source_sha256": durable.sha256(case.image), "sha256": durable.sha256(target), "organs": result.reports})
    clock.lap("write")
    return Predicted(case.id, result.reports, clock.seconds)


def _note_path(target: Path) -> Path:
    """Beside each label map: what was found, and the hashes by which an unfinished or outdated result is told."""
    name = target.name
    for ending in (".nii.gz", ".nii", ".nrrd", ".mha"):
        name = name.removesuffix(ending)
    return target.with_name(f"{name}.json")


def is_complete(target: Path, case: Case) -> bool:
    """Whether a result is whole and of this very input."""
    try:
        note = records.read_json(_note_path(target))
        return note["sha256"] == durable.sha256(target) and note["source_sha256"] == durable.sha256(case.image)
    except (C2FError, OSError, KeyError, TypeError):
        return False


def _recorded(maps, keep: list):
    for m in maps:
        keep.append(m)
        yield m


def _write_probabilities(target: Path, cascade: Cascade, maps: list, image: Image) -> None:
    """CASE.npz beside the label map: 'probabilities' (organs + 1, …) float16 in the file's own axis order, as nnU-Net's."""
    labels = cascade.plan.labels
    logits = np.full((len(labels.organs), *image.geometry.shape), -12.0, np.float32)
    for m in maps:
        if all(m.box.shape):
            logits[(labels.organs.index(m.organ), *m.box.slices)] = combined(m, cascade.merge_weights)
    p = probabilities(logits)
    whole = np.concatenate([1 - p.sum(0, keepdims=True), p]).astype(np.float16)
    path = _note_path(target).with_suffix(".npz")

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as f:
            np.savez_compressed(f, probabilities=from_canonical(whole, image.source.turn))

    durable.write_with(path, write)


def memory_estimate_gb(cascade: Cascade, shape: tuple[int, int, int], spacing_mm) -> float:
    """What predicting a scan of this shape needs at its peak, in GiB, beside the networks and the libraries.

    The scan (int16, and float32 while it is resampled), the label map and the winning log-odds; on the coarse grid, per
    organ, one view's probabilities and log-odds and the running total.
    """
    voxels = float(np.prod(shape))
    coarse = voxels * np.prod(spacing_mm) / np.prod(cascade.plan.coarse.spacing_mm)
    coarse = min(coarse, coarse * min(1.0, np.prod(cascade.plan.coarse.shape[1:]) / max(1.0, coarse ** (2 / 3))) + np.prod(cascade.plan.coarse.shape))
    channels = cascade.plan.labels.channels
    return (voxels * (2 + 4 + 4 + 1 + 4) + coarse * channels * (2 + 4 + 4 + 4 + 4)) / 2**30


def _check_memory(cascade: Cascade, image: Image, options: PredictOptions) -> None:
    if options.max_memory_gb is None:
        return
    need = memory_estimate_gb(cascade, image.geometry.shape, image.geometry.spacing_mm) + peak_memory_gb()
    if need > options.max_memory_gb:
        raise C2FError(f"{image.source.path}: predicting it needs about {need:.1f} GB, more than --max_memory {options.max_memory_gb:g}; raise it, or crop the scan")


def peak_memory_gb() -> float:
    """This process's peak resident memory so far, in GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


class StageClock:
    """Seconds between laps, by name."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._began = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._began
        self._began = now


