"""Predicting scans: a folder of them, one after the other, with what is written and what it took; or one in memory."""
from __future__ import annotations

import logging
import time
import zipfile
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Callable, Iterator, Mapping

import numpy as np

from ..data.dataset import Case
from ..errors import C2FError, WorkspaceError
from ..geometry import Geometry, canonical_geometry, from_canonical, reorientation, to_canonical
from ..inference.cascade import Cascade, OrganMaps, OrganReport, combined, merge, run, run_coarse, stage_maps
from ..inference.checks import Checked
from ..inference.fusion import LIMIT, FusionWeights, probabilities
from ..inference.limits import OrganLimits
from ..io import durable, records
from ..io.checks import check_geometry, ct_values
from ..io.dicom_seg import require_highdicom, write_dicom_seg
from ..io.images import IMAGE_ENDINGS, Image, write_label
from ..io.rtstruct_out import write_rtstruct
from ..io.scans import Scan, is_series, place_of, read_scan, scan_grid, scan_sha256
from ..io.series import SeriesReference, axial_slices, by_slice, series_reference
from ..labels import LabelSet
from .checking import checks_of
from .memory import memory_estimate_gb, peak_memory_gb
from .model import Model

log = logging.getLogger(__name__)
EXTRAS = {"probabilities": ".npz", "rtstruct": "_rtstruct.dcm", "dicom_seg": "_seg.dcm"}  # beside CASE.json: CASE and this ending


@dataclass(frozen=True)
class Predicted:
    """One case: what was found of each organ, or why it failed; seconds by stage; each organ's checks."""

    case: str
    reports: tuple[OrganReport, ...]
    seconds: dict[str, float]
    error: str | None = None
    checks: tuple[Checked, ...] = ()


@dataclass(frozen=True)
class PredictOptions:
    stage: str = "fine"
    save_probabilities: bool = False
    continue_prediction: bool = False
    clean: frozenset[str] = frozenset()
    file_ending: str = ".nii.gz"
    max_memory_gb: float | None = None
    rtstruct: bool = False
    dicom_seg: bool = False
    limits: Mapping[str, OrganLimits] = field(default_factory=dict)

    @property
    def extras(self) -> tuple[str, ...]:
        """Which of EXTRAS are to be written."""
        wanted = {"probabilities": self.save_probabilities, "rtstruct": self.rtstruct, "dicom_seg": self.dicom_seg}
        return tuple(name for name, asked in wanted.items() if asked)


def part_of(cases: tuple[Case, ...], num_parts: int, part_id: int) -> tuple[Case, ...]:
    """Every num_parts-th case from part_id on, as nnU-Net shares them out."""
    return cases[part_id::num_parts]


def require_dicom(cases: tuple[Case, ...], options: PredictOptions) -> None:
    """C2FError where an RTSTRUCT or a SEG is asked for and cannot be made: of a scan that is no DICOM series, or without highdicom."""
    asked = [f"--{name}" for name in ("rtstruct", "dicom_seg") if name in options.extras]
    others = [case.image for case in cases if not is_series(case.image)]
    if asked and others:
        raise C2FError(f"{others[0]}: is no DICOM series, and what {' and '.join(asked)} would write refers to the slices of one; "
                       "give the series, or leave the option out")
    if options.dicom_seg:
        require_highdicom()


def output_path(out: Path, case: Case, options: PredictOptions) -> Path:
    return out / f"{case.id}{options.file_ending}"


def predict_cases(
    cascade: Cascade, cases: tuple[Case, ...], out: Path, options: PredictOptions, on_case: Callable[[str], None] = lambda case: None
) -> list[Predicted]:
    """Predict every case; one that fails is named and the others are done. CASE's label map and CASE.json go to `out`."""
    done: list[Predicted] = []
    before_gb = peak_memory_gb()
    for case in cases:
        target = output_path(out, case, options)
        if options.continue_prediction and is_complete(target, case, options, cascade.made_of):
            log.info("%s: there already, skipped", target)
        else:
            try:
                done.append(predict_case(cascade, case, target, options, before_gb))
            except WorkspaceError:  # a full disk is no fault of this case, and would be met again at the next
                raise
            except Exception as e:  # whatever it is, it must not cost the other cases
                why = _why(case, e)
                log.error("%s: skipped: %s", case.id, why, exc_info=not isinstance(e, (C2FError, MemoryError, RuntimeError)))
                done.append(Predicted(case.id, (), {}, why))
        on_case(case.id)
    return done


def _why(case: Case, e: Exception) -> str:
    """Why a case failed, in a sentence."""
    if isinstance(e, C2FError):
        return str(e)
    told = str(e) or type(e).__name__
    if isinstance(e, MemoryError):
        return f"{place_of(case.image)}: the memory is too small for it ({told}); free some, or crop the scan"
    return f"{place_of(case.image)}: cannot be predicted ({type(e).__name__}: {told}); export it again, or report this"


def predict_case(cascade: Cascade, case: Case, target: Path, options: PredictOptions, before_gb: float = 0.0) -> Predicted:
    """One scan from file to file. before_gb: what the process held before its first scan, for --max_memory."""
    clock = StageClock()
    _check_memory(cascade, case.image, options, before_gb)
    image = read_scan(case.image)
    series = _reference(case, image, options)
    clock.lap("read")
    coarse = run_coarse(cascade, image.array, image.geometry)
    clock.lap("coarse")
    maps = stage_maps(cascade, coarse, image.array, image.geometry, options.stage)
    keep = [] if options.save_probabilities else None
    if keep is not None:
        maps = _recorded(maps, cascade.merge_weights, keep)
    clean = options.clean if options.stage == "fine" else frozenset()
    result = merge(cascade.plan, maps, image.geometry, cascade.merge_weights, coarse.located, clean)
    clock.lap(options.stage)
    checks = checks_of(case.id, cascade.plan, coarse, result, image.geometry, options.limits)
    clock.lap("checks")
    ids = cascade.plan.labels.to_ids(result.channels)
    for name in set(EXTRAS) - set(options.extras):  # of an earlier result: it would lie beside this one as if it were its own
        _extra_path(target, name).unlink(missing_ok=True)
    write_label(target, ids, image.source)
    hashes = {"source_sha256": scan_sha256(case.image), "sha256": durable.sha256(target)}
    if keep is not None:
        _write_probabilities(target, cascade.plan.labels.organs, keep, image)
    _write_dicom(target, cascade.plan.labels, ids, image, series, options)
    hashes |= {f"{name}_sha256": durable.sha256(_extra_path(target, name)) for name in options.extras}
    made = {"case": case.id, "stage": options.stage, "model": cascade.made_of, **hashes}
    records.write(note_path(target), made | {"organs": result.reports, "checks": checks})
    clock.lap("write")
    return Predicted(case.id, result.reports, clock.seconds, checks=checks)


def predict_array(model: Model, cascade: Cascade, hu: np.ndarray, geometry: Geometry) -> tuple[np.ndarray, tuple[OrganReport, ...]]:
    """A CT in memory through the whole cascade: its label ids, those that c2f_predict writes, and what was found of each organ.

    hu: a volume of three axes in any order and direction, in Hounsfield units. geometry: where it lies (its shape and spacing in mm
    in the array's own order, its origin in mm, LPS). The label ids, 0 for the background, have the array's shape and order.
    C2FError where both differ in shape; ImageError where values are not finite or all the same, or the grid is not sane.
    """
    if hu.shape != geometry.shape:
        raise C2FError(f"array of shape {hu.shape}: its geometry has the shape {geometry.shape}; give the array's own geometry")
    check_geometry("array", geometry)
    turn = reorientation(geometry)
    values = np.ascontiguousarray(to_canonical(ct_values("array", hu), turn))
    result = run(cascade, values, canonical_geometry(geometry, turn), clean=frozenset(model.fusion.clean))
    ids = model.plan.labels.to_ids(result.channels)
    return np.ascontiguousarray(from_canonical(ids, turn)), result.reports


def note_path(target: Path) -> Path:
    """Beside each label map: what was found, and the hashes by which an unfinished or outdated result is told."""
    name = target.name
    for ending in IMAGE_ENDINGS:
        name = name.removesuffix(ending)
    return target.with_name(f"{name}.json")


def _extra_path(target: Path, name: str) -> Path:
    note = note_path(target)
    return note.with_name(note.name.removesuffix(".json") + EXTRAS[name])


def is_of(target: Path, stage: str, model: str) -> bool:
    """Whether the note beside a result says that it is of this stage and model (`Cascade.made_of`)."""
    try:
        note = records.read_json(note_path(target))
        return (note["stage"], note["model"]) == (stage, model)
    except (C2FError, OSError, KeyError, TypeError):
        return False


def is_complete(target: Path, case: Case, options: PredictOptions, model: str) -> bool:
    """Whether a result is whole, of this very input, model and stage, with all the files that are wanted beside it."""
    if not is_of(target, options.stage, model):
        return False
    try:
        note = records.read_json(note_path(target))
        if any(note[f"{name}_sha256"] != durable.sha256(_extra_path(target, name)) for name in options.extras):
            return False
        return note["sha256"] == durable.sha256(target) and note["source_sha256"] == scan_sha256(case.image)
    except (C2FError, OSError, KeyError, TypeError):
        return False


def _recorded(maps: Iterator[OrganMaps], weights: FusionWeights, keep: list[OrganMaps]) -> Iterator[OrganMaps]:
    """The same maps; of each, both stages combined in one are kept."""
    for m in maps:
        keep.append(replace(m, fine=None, coarse=combined(m, weights)))
        yield m


def _write_probabilities(target: Path, organs: tuple[str, ...], maps: list[OrganMaps], image: Image) -> None:
    """CASE.npz beside the label map: 'probabilities' (organs + 1, …) float16 in the file's own axis order, as nnU-Net's.

    maps: combined ones. Slice by slice, so that all organs' float32 maps of the whole scan are never held.
    """
    shape = image.geometry.shape
    whole = np.empty((len(organs) + 1, *shape), np.float16)
    for z in range(shape[0]):
        logits = np.full((len(organs), *shape[1:]), -LIMIT, np.float32)
        for m in maps:
            if m.box.start[0] <= z < m.box.stop[0]:
                logits[(organs.index(m.organ), *m.box.slices[1:])] = m.coarse[z - m.box.start[0]]
        p = probabilities(logits)
        whole[0, z], whole[1:, z] = 1 - p.sum(0), p
    path, turned = _extra_path(target, "probabilities"), from_canonical(whole, image.source.turn)

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as f:
            np.savez_compressed(f, probabilities=turned)

    def check(temporary: Path) -> None:
        try:
            same = _holds(temporary, turned)
        except (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as e:
            raise WorkspaceError(f"{path}: cannot be read back after writing; the disk may be full or failing") from e
        if not same:
            raise WorkspaceError(f"{path}: reads back differently from what was written; the disk may be full or failing")

    durable.write_with(path, write, check)


def _holds(npz: Path, array: np.ndarray) -> bool:
    """Whether an .npz file's probabilities are this array (C order), compared slice by slice: memory does not hold a second one."""
    with zipfile.ZipFile(npz) as archive, archive.open("probabilities.npy") as f:
        np.lib.format.read_magic(f)
        told = np.lib.format.read_array_header_1_0(f)
        same = told == (array.shape, False, array.dtype)
        return same and all(f.read(part.nbytes) == part.tobytes() for organ in array for part in organ) and not f.read(1)


def _reference(case: Case, image: Image, options: PredictOptions) -> SeriesReference | None:
    """What an RTSTRUCT or a SEG of the case will refer to, None where none is asked for.

    ImageError, before anything is computed, where nothing can refer to the series: identifiers missing, or slices that are not axial.
    """
    if not {"rtstruct", "dicom_seg"}.intersection(options.extras):
        return None
    series = series_reference(case.image)
    if options.rtstruct:
        axial_slices(series, image.geometry)
    else:  # a SEG may have slices of any direction
        by_slice(series, image.source.geometry)
    return series


def _write_dicom(
    target: Path, labels: LabelSet, ids: np.ndarray, image: Image, series: SeriesReference | None, options: PredictOptions
) -> None:
    """The RTSTRUCT and the SEG that are asked for, of canonical label ids (z, y, x)."""
    if options.rtstruct:
        write_rtstruct(_extra_path(target, "rtstruct"), ids, labels.standard, image.source, series)
    if options.dicom_seg:
        write_dicom_seg(_extra_path(target, "dicom_seg"), ids, labels.standard, image.source, series)


def _check_memory(cascade: Cascade, scan: Scan, options: PredictOptions, before_gb: float) -> None:
    """C2FError where a scan, as its header has it, needs more memory than --max_memory."""
    most = options.max_memory_gb
    if most is None:
        return
    need = before_gb + memory_estimate_gb(cascade, *scan_grid(scan), options.stage, options.save_probabilities)
    if need > most:
        needs = f"predicting it needs about {need:.1f} GB, more than --max_memory {most:g}"
        raise C2FError(f"{place_of(scan)}: {needs}; raise it, or crop the scan")


class StageClock:
    """Seconds between laps, by name."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._began = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._began
        self._began = now
