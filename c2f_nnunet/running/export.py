"""Models as files: a zip with plan, weights (safetensors), scores and a SHA-256 manifest; and importing one."""
from __future__ import annotations

import io
import json
import logging
import os
import re
import shutil
import stat
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

import torch

from ..errors import C2FError, ModelError, WorkspaceError
from ..io import durable, records
from ..io.records import record
from ..planning.plan import read_plan
from ..training import checkpoint
from ..workspace import ModelFolder, lock, require_idle
from .model import Model, load_network

log = logging.getLogger(__name__)
MANIFEST_VERSION = 1
LARGEST_ARCHIVE = 20 * 2**30
LARGEST_MANIFEST = 16 * 2**20
MOST_ENTRIES = 5000
LARGEST_RECORD = 64 * 2**20  # of all but the weights, which are read whole before they can be checked
SHRINKS = 4  # weights hardly do
STAGING = ".import-"
_WEIGHTS = re.compile(r"(?P<member>\w[\w.-]*)/fold_(?P<fold>[0-9]+)/checkpoint_(?P<which>best|final)(\.json|\.[0-9a-f]{8}\.safetensors)")
_OTHERS = re.compile(r"(plan|dataset|fingerprint|splits_final|fusion)\.json|crossval/(report\.md|tables/\w[\w.-]*\.csv)")


@record
class Manifest:
    """manifest.json of an exported model: its name and the SHA-256 and size in bytes of every other file."""

    version: int
    dataset: str
    plan: str
    files: dict[str, tuple[str, int]]


def export_model(model: Model, target: Path, which: str = "best") -> int:
    """Write model.zip with every trained member's weights; returns how many. ModelError where nothing is trained."""
    folder = model.folder
    names = ["plan.json", "dataset.json", "fingerprint.json", "splits_final.json", "fusion.json"]
    files = {n: folder.root / n for n in names if (folder.root / n).exists()}  # by their name in the archive
    weights = 0
    for m in model.plan.members:
        for fold in model.trained_folds(m, which):
            load_network(model, m, fold, which, torch.device("cpu"))  # one that does not fit its plan must not be exported
            for kept in (which, "final"):  # 'final' is also the sign of a finished training
                path = folder.run(m.name, fold).checkpoint(kept)
                record, tensors = checkpoint.usable_files(path)
                files |= {_name(folder, path.with_name(f"{path.name}.json")): record, _name(folder, tensors): tensors}
            weights += 1
    if not weights:
        raise ModelError(f"{folder.root}: nothing is trained there yet; run c2f_train all all first")
    durable.remove_leftovers(target.parent)
    reports = [f for f in (folder.crossval / "report.md",) if f.exists()]  # report.html shows every patient's scan: it stays
    files |= {_name(folder, f): f for f in (*sorted((folder.crossval / "tables").glob("*.csv")), *reports)}
    listed = {name: (durable.sha256(f), f.stat().st_size) for name, f in files.items()}
    manifest = Manifest(MANIFEST_VERSION, model.plan.dataset, model.plan.name, listed)

    def write(temporary: Path) -> None:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr("manifest.json", records.to_text(manifest), zipfile.ZIP_DEFLATED)
            for name, f in files.items():
                how = zipfile.ZIP_STORED if f.suffix == ".safetensors" else zipfile.ZIP_DEFLATED
                archive.write(f, name, how)

    durable.write_with(target, write, _check_zip)
    return weights


def _name(folder: ModelFolder, path: Path) -> str:
    """A file's name in the archive."""
    return path.relative_to(folder.root).as_posix()


def _check_zip(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        if bad := archive.testzip():
            raise ModelError(f"{path}: {bad} reads back damaged; the disk may be full or failing")


def import_model(archive_path: Path, results: Path, replace: bool = False) -> ModelFolder:
    """Check an exported model and place it under results/DATASET/PLAN by one rename; ModelError says what is wrong with it.

    Nothing is unpickled and no code runs: weights are safetensors, the rest JSON against fixed schemas. All checks run
    in a staging folder; a model that is there already stays, unless `replace`.
    """
    try:
        _remove_leftovers(results)
        with _Bounded(archive_path) as file, zipfile.ZipFile(file) as archive:
            manifest = _read_manifest(archive, archive_path)
            target = ModelFolder(results / manifest.dataset / manifest.plan)
            _require_place(target.root, replace, archive_path)
            results.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f"{STAGING}{durable.owner()}-", dir=results) as staging:
                staged = Path(staging) / "model"
                for name, (digest, size) in manifest.files.items():
                    _extract(archive, name, staged / name, digest, size, archive_path)
                try:
                    _check_model(ModelFolder(staged), manifest, archive_path)
                except C2FError as e:  # a staged file is gone by the time this is read
                    raise type(e)(str(e).replace(f"{staged}{os.sep}", f"{archive_path}, ")) from e
                except RuntimeError as e:  # torch
                    raise ModelError(f"{archive_path}: its plan describes a network that cannot be ({e}); do not trust this file") from e
                with lock(target.root.parent, f"import of {target.root.name}"):  # planning holds it, too, while it writes
                    _require_place(target.root, replace, archive_path)  # once more: checking may have taken minutes
                    _place(staged, target.root, Path(staging) / "replaced" / manifest.dataset / manifest.plan)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, UnicodeDecodeError) as e:  # what zipfile raises for flipped bytes
        raise ModelError(f"{archive_path}: no intact zip archive ({e}); get the file again") from e
    except OSError as e:
        why = e.strerror or e
        raise WorkspaceError(f"{archive_path}: cannot be imported ({why}); check the path and the free space of {results}") from e
    return target


def _require_place(target: Path, replace: bool, source: Path) -> None:
    """ModelError where a model is there that is not to be replaced, Locked where a command is at work in it."""
    if target.exists() and not replace:
        raise ModelError(f"{target}: a model is there already; give --replace to put {source.name} in its place")
    require_idle(target)


class _Bounded(io.BufferedReader):
    """An archive of which zipfile cannot read more at once than a manifest may hold.

    zipfile reads the list of all entries in one piece and makes objects of them, a gigabyte for a million, before they can be counted.
    """

    def __init__(self, path: Path):
        super().__init__(io.FileIO(path))

    def read(self, size: int | None = -1) -> bytes:
        left = os.fstat(self.fileno()).st_size - self.tell()
        wanted = left if size is None or size < 0 else min(size, left)
        if wanted > LARGEST_MANIFEST:
            lists = f"a list of files of {wanted / 2**20:.0f} MB"
            raise ModelError(f"{self.name}: holds {lists}, too much for a model; this is not an exported model")
        return super().read(size)


def _remove_leftovers(results: Path) -> None:
    """Remove what killed imports left; a model that was moved aside and not replaced any more comes back."""
    for staging in results.glob(f"{STAGING}*") if results.is_dir() else []:
        if not durable.is_abandoned(staging, STAGING):
            continue
        for model in staging.glob("replaced/*/*"):
            if not (target := results / model.relative_to(staging / "replaced")).exists():
                os.rename(model, target)
        shutil.rmtree(staging, ignore_errors=True)


def _read_manifest(archive: zipfile.ZipFile, source: Path) -> Manifest:
    entries = archive.infolist()
    size = sum(e.file_size for e in entries)
    largest = max((e.file_size for e in entries if not e.filename.endswith(".safetensors")), default=0)
    most = min(LARGEST_ARCHIVE, SHRINKS * source.stat().st_size + LARGEST_RECORD)
    if len(entries) > MOST_ENTRIES or size > most or largest > LARGEST_RECORD:
        held = f"{len(entries)} files of {size / 2**30:.1f} GB"
        raise ModelError(f"{source}: holds {held}, too much for a model; this is not an exported model")
    if strange := [e.filename for e in entries if e.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)]:
        raise ModelError(f"{source}: '{strange[0]}' is compressed in a way that no exported model is; get the file again")
    names = [e.filename for e in entries]
    if len(set(names)) != len(names):
        raise ModelError(f"{source}: holds two files of one name; this is not an exported model")
    for e in entries:
        path, is_link = PurePosixPath(e.filename), stat.S_ISLNK(e.external_attr >> 16)
        if path.is_absolute() or ".." in path.parts or set("\\:") & set(e.filename) or is_link:
            raise ModelError(f"{source}: entry '{e.filename}' leads out of the model's folder; do not trust this file")
    if "manifest.json" not in names or archive.getinfo("manifest.json").file_size > LARGEST_MANIFEST:
        raise ModelError(f"{source}: has no manifest.json, or a huge one; this is not an exported model")
    try:
        value = json.loads(archive.read("manifest.json"))
    except (ValueError, RecursionError) as e:
        raise ModelError(f"{source}: its manifest.json is no JSON ({e}); get the file again") from e
    manifest = records.from_json(Manifest, value, f"{source}, manifest.json")
    if manifest.version != MANIFEST_VERSION:
        versions = f"manifest version {manifest.version} and this program's {MANIFEST_VERSION} differ"
        raise ModelError(f"{source}: {versions}; export it with this version")
    if any(not p.isprintable() or set(p) & set("/\\:") or p[:1] in ("", ".", "-") for p in (manifest.dataset, manifest.plan)):
        raise ModelError(f"{source}: {f'{manifest.dataset}/{manifest.plan}'!r} is no folder name; do not trust this file")
    if set(names) != {"manifest.json", *manifest.files}:
        raise ModelError(f"{source}: its files and its manifest do not agree; get the file again")
    if foreign := [n for n in manifest.files if not (_OTHERS.fullmatch(n) or _WEIGHTS.fullmatch(n))]:
        raise ModelError(f"{source}: {foreign[0]!r} is no file of an exported model; do not trust this file")
    return manifest


def _extract(archive: zipfile.ZipFile, name: str, target: Path, digest: str, size: int, source: Path) -> None:
    """One file, not a byte more than the manifest says, its hash compared."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(name) as read, open(target, "wb") as written:
        left = size
        while block := read.read(min(1 << 20, left + 1)):
            left -= len(block)
            if left < 0:
                raise ModelError(f"{source}: '{name}' is larger than its manifest says; do not trust this file")
            written.write(block)
        written.flush()
        os.fsync(written.fileno())
    if durable.sha256(target) != digest:
        raise ModelError(f"{source}: '{name}' is damaged (its SHA-256 differs from the manifest); get the file again")


def _check_model(folder: ModelFolder, manifest: Manifest, source: Path) -> None:
    """The plan is readable and is the manifest's, every file of weights fits a network of it, and no weight is NaN or infinite."""
    if not folder.plan.exists():
        raise ModelError(f"{source}: has no plan.json; this is not an exported model")
    plan = read_plan(folder.plan)
    if (plan.dataset, plan.name) != (manifest.dataset, manifest.plan):
        says = f"its plan is {plan.dataset}/{plan.name}, its manifest says {manifest.dataset}/{manifest.plan}"
        raise ModelError(f"{source}: {says}; do not trust this file")
    model, names = Model(folder, plan), {m.name for m in plan.members}
    for member, fold, which in sorted({match.group("member", "fold", "which") for n in manifest.files if (match := _WEIGHTS.fullmatch(n))}):
        if member not in names:
            raise ModelError(f"{source}: holds weights of {member}, which its plan does not know; do not trust this file")
        network = load_network(model, plan.member(member), int(fold), which, torch.device("cpu"))
        if not all(torch.isfinite(v).all() for v in network.state_dict().values() if v.is_floating_point()):
            where = f"{member} fold {fold}"
            raise ModelError(f"{source}: {where} has weights that are NaN or infinite; export it again from a sound training")
    if not any(model.trained_folds(m, "final") for m in plan.members):
        raise ModelError(f"{source}: holds no trained network; this is not an exported model")
    model.fusion  # noqa: B018  (read for its checks)


def _place(staged: Path, target: Path, aside: Path) -> None:
    """One rename; an older model is moved aside first and removed only after."""
    if target.exists():
        aside.parent.mkdir(parents=True)
        os.rename(target, aside)
    try:
        os.rename(staged, target)
    except OSError:
        if aside.exists():
            os.rename(aside, target)
        raise
    durable.sync_folder(target.parent)
    shutil.rmtree(aside, ignore_errors=True)
