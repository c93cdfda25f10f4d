"""Exported models that are crafted: their files changed, and every hash of theirs made to fit."""
import hashlib
import json
import zipfile
from pathlib import Path


def craft(archive: Path, folder: Path, change=lambda files: files, add=(), name="crafted.zip", relist=True) -> Path:
    """The exported model with its files changed (name → content), and its manifest made anew to fit them; then entries added."""
    with zipfile.ZipFile(archive) as old:
        files = {n: old.read(n) for n in old.namelist()}
    manifest = json.loads(files.pop("manifest.json"))
    files = change(files)
    if relist:
        manifest["files"] = {n: [hashlib.sha256(c).hexdigest(), len(c)] for n, c in files.items()}
    with zipfile.ZipFile(folder / name, "w") as new:
        new.writestr("manifest.json", json.dumps(manifest))
        for n, content in files.items():
            new.writestr(n, content)
        for entry, content in add:
            new.writestr(entry, content)
    return folder / name


def with_weights(files: dict[str, bytes], content: bytes) -> dict[str, bytes]:
    """One checkpoint's tensors replaced, and every hash of theirs made to fit."""
    record = "3d_Stem/fold_0/checkpoint_best.json"
    body = json.loads(files[record])
    name = f"3d_Stem/fold_0/{body['tensors']['file']}"
    digest = hashlib.sha256(content).hexdigest()
    body["tensors"] = {"file": f"checkpoint_best.{digest[:8]}.safetensors", "sha256": digest}
    signed = {k: body[k] for k in ("state", "tensors")}
    body["sha256"] = hashlib.sha256(json.dumps(signed, sort_keys=True).encode()).hexdigest()
    kept = {n: c for n, c in files.items() if n not in (name, record)}
    return kept | {record: json.dumps(body).encode(), f"3d_Stem/fold_0/checkpoint_best.{digest[:8]}.safetensors": content}


def plant(run: Path, which: str, content: bytes) -> None:
    """The same in a run's folder."""
    record = run / f"checkpoint_{which}.json"
    body = json.loads(record.read_text())
    digest = hashlib.sha256(content).hexdigest()
    body["tensors"] = {"file": f"checkpoint_{which}.{digest[:8]}.safetensors", "sha256": digest}
    signed = {k: body[k] for k in ("state", "tensors")}
    body["sha256"] = hashlib.sha256(json.dumps(signed, sort_keys=True).encode()).hexdigest()
    record.write_text(json.dumps(body))
    (run / body["tensors"]["file"]).write_bytes(content)
    for old in run.glob(f"checkpoint_{which}.prev.json"):
        old.unlink()

