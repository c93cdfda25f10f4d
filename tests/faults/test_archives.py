"""FAULTS rows 45 to 50: pickles, and exported models that are crafted, cut, killed while they are imported, or unfit."""
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import signal
import stat
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from c2f_nnunet.cli import export_model, import_model, predict, train
from tests.faults.inputs import error, state


@pytest.fixture(scope="module")
def archive(tiny_trained, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("export") / "model.zip"
    assert export_model.main(tiny_trained.args("-d", 901, "-o", path)) == 0
    return path


@pytest.fixture
def refused(tmp_path, capsys):
    def refused(path: Path, *args) -> str:
        """c2f_import_model's one sentence about the file; nothing is placed, nor left among the results or beside them."""
        before = state(tmp_path)
        capsys.readouterr()
        assert import_model.main([str(path), "--workspace", str(tmp_path / "w"), *args]) == 1
        message = error(capsys.readouterr().err)
        assert path.name in message and state(tmp_path) == before
        assert not list((tmp_path / "w" / "results").glob("*")) or before
        return message

    return refused


@pytest.fixture
def crafted(archive, tmp_path):
    def crafted(change=lambda files: files, add=(), name="crafted.zip", relist=True) -> Path:
        """The exported model with its files changed (name → content), and its manifest made anew to fit them; then entries added."""
        with zipfile.ZipFile(archive) as old:
            files = {n: old.read(n) for n in old.namelist()}
        manifest = json.loads(files.pop("manifest.json"))
        files = change(files)
        if relist:
            manifest["files"] = {n: [hashlib.sha256(c).hexdigest(), len(c)] for n, c in files.items()}
        with zipfile.ZipFile(tmp_path / name, "w") as new:
            new.writestr("manifest.json", json.dumps(manifest))
            for n, content in files.items():
                new.writestr(n, content)
            for entry, content in add:
                new.writestr(entry, content)
        return tmp_path / name

    return crafted


class Canary:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def canary(tmp_path):
    path = tmp_path / "canary"
    pickle.loads(pickle.dumps(Canary(path)))
    assert path.is_dir()  # so does any unpickling below
    path.rmdir()
    return path


def pickles(canary: Path) -> dict[str, bytes]:
    """A malicious pickle by itself, as torch.save writes it, as numpy does, and inside a list of an old joblib's kind."""
    saved, array = io.BytesIO(), io.BytesIO()
    torch.save({"network_weights": Canary(canary)}, saved)
    np.save(array, np.array([Canary(canary)], dtype=object), allow_pickle=True)
    return {"plain": pickle.dumps(Canary(canary)), "torch": saved.getvalue(), "numpy": array.getvalue(),
            "old": pickle.dumps([Canary(canary)], protocol=0)}


KINDS = ("plain", "torch", "numpy", "old")


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


# Pickles


@pytest.mark.parametrize("kind", KINDS)
def test_row_45_a_pickle_is_never_imported(refused, crafted, canary, tmp_path, kind):
    evil = pickles(canary)[kind]
    assert "no safetensors file" in refused(crafted(lambda files: with_weights(files, evil)))
    (tmp_path / "model.pth").write_bytes(evil)
    assert "not an exported model" in refused(tmp_path / "model.pth") or kind != "torch"
    for name in ("plan.json", "fusion.json", "3d_Stem/fold_0/checkpoint_best.json"):
        refused(crafted(lambda files: files | {name: evil}))
    assert not canary.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_row_45_a_pickle_is_never_trained_on(tiny_trained, canary, tmp_path, capsys, kind):
    evil, tiny = pickles(canary)[kind], tiny_trained.copy(tmp_path / "w")
    run = tiny.folder.run("3d_Stem", 0).root
    for final in run.glob("checkpoint_final*"):
        final.unlink()  # so that there is something to go on with
    plant(run, "latest", evil)
    before = state(tiny.root)
    train_args = ("3d_Stem", 0, "-d", 901, "-device", "cpu", "-np", 0)
    assert train.main(tiny.args(*train_args, "--c")) == 1
    assert state(tiny.root) == before
    assert "no safetensors file" in error(capsys.readouterr().err)
    (tmp_path / "evil.json").write_bytes(evil)
    (tmp_path / "evil.pth").write_bytes(evil)
    for given in ("evil.json", "evil.pth", "evil"):
        assert train.main(tiny.args("3d_Stem", 1, *train_args[2:], "-pretrained_weights", tmp_path / given)) == 1
        assert "evil" in error(capsys.readouterr().err)
    assert not canary.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_row_45_a_pickle_is_never_predicted_with(tiny_trained, canary, tmp_path, capsys, kind):
    evil, tiny = pickles(canary)[kind], tiny_trained.copy(tmp_path / "w")
    plant(tiny.folder.run("2d_top", 0).root, "best", evil)
    args = tiny.args("-i", "imagesTs", "-o", tmp_path / "out", "-d", 901, "-device", "cpu")
    assert predict.main(args) == 1 and not (tmp_path / "out").exists()
    assert "no safetensors file" in error(capsys.readouterr().err)
    shutil.copytree(tiny_trained.folder.root, tiny.folder.root, dirs_exist_ok=True)
    tiny.folder.fusion.write_bytes(evil)
    assert predict.main(args) == 1 and not (tmp_path / "out").exists()
    assert "fusion.json" in error(capsys.readouterr().err) and not canary.exists()


# Entries


def link(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.create_system, entry.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return entry


@pytest.mark.parametrize("entry", [
    "../evil", "a/../../evil", "2d_top/../../../evil", "/tmp/evil", "..\\evil", "a\\..\\..\\evil", "C:\\evil", "C:evil", "\\\\host\\evil",
    link("evil"), link("2d_top/fold_0/evil"),
], ids=lambda entry: entry if isinstance(entry, str) else f"link {entry.filename}")  # fmt: skip
def test_row_46_entries_that_lead_out(refused, crafted, tmp_path, entry):
    told = refused(crafted(add=[(entry, "/etc/passwd")]))
    assert "leads out of the model's folder; do not trust this file" in told
    assert not list(tmp_path.rglob("evil")) and not Path("/tmp/evil").exists()


def test_row_46_a_manifest_that_leads_out(refused, crafted, tmp_path):
    """The entry's own name is harmless; the manifest's is not, nor the folder that it asks for."""
    def folder(name):
        path = crafted(name="named.zip")
        with zipfile.ZipFile(path) as old:
            files = {n: old.read(n) for n in old.namelist()}
        files["manifest.json"] = json.dumps(json.loads(files["manifest.json"]) | {"plan": name}).encode()
        with zipfile.ZipFile(path, "w") as new:
            for n, content in files.items():
                new.writestr(n, content)
        return path

    for name in ("../../evil", "..", "/evil", "a\\evil", ""):
        assert "is no folder name; do not trust this file" in refused(folder(name))
    assert "its files and its manifest do not agree" in refused(crafted(lambda files: files, relist=False, add=[("extra", "x")]))


def test_row_46_two_entries_of_one_name(refused, crafted):
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = crafted(add=[("plan.json", "{}")])
    assert "holds two files of one name; this is not an exported model" in refused(path)


# Bombs


def test_row_47_a_bomb_by_its_declared_size(refused, crafted, tmp_path):
    """30 GB of zeros, as the central directory says of one small entry."""
    path = crafted(add=[("bomb", bytes(1 << 20))])
    content = path.read_bytes()
    at = content.rindex(b"bomb") - 46 + 24  # its uncompressed size in the central directory
    assert struct.unpack_from("<I", content, at)[0] == 1 << 20
    huge = bytearray(content)
    for entry in range(7):  # every big entry says 4 GB
        at = huge.rfind(b"PK\x01\x02", 0, at)
        struct.pack_into("<I", huge, at + 24, 0xFFFFFFFE)
    path.write_bytes(huge)
    assert "too much for a model; this is not an exported model" in refused(path)


def test_row_47_a_bomb_by_its_real_size(refused, crafted, tmp_path):
    """64 MB of zeros, deflated to 64 kB and said to be 100 bytes: no more than these are ever written."""
    zeros = bytes(64 << 20)
    path = tmp_path / "bomb.zip"
    base = crafted()
    with zipfile.ZipFile(base) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "manifest.json":
                manifest = json.loads(content)
                manifest["files"]["bomb"] = [hashlib.sha256(zeros).hexdigest(), 100]
                content = json.dumps(manifest).encode()
            new.writestr(name, content)
        new.writestr("bomb", zeros)
    assert path.stat().st_size < base.stat().st_size + 200_000
    assert "'bomb' is larger than its manifest says; do not trust this file" in refused(path)
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, content.rindex(b"bomb") - 46 + 24, 100)  # the directory lies as well
    path.write_bytes(content)
    assert any(told in refused(path) for told in ("larger than its manifest says", "no intact zip archive", "is damaged"))


def test_row_47_a_manifest_that_is_a_bomb(refused, tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as new:
        new.writestr("manifest.json", b" " * (17 << 20))
    assert "has no manifest.json, or a huge one" in refused(tmp_path / "bomb.zip")


def directory_of(count: int) -> bytes:
    """A zip archive of empty files; its central directory is all there is."""
    entries = b"".join(
        struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 20, 20, 0, 0, 0, 33, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0) + b"%07d" % i for i in range(count)
    )
    end = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, len(entries), 0)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, len(entries), 1)
    return entries + end + locator + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1, 1, 100, 0, 0)  # whose small numbers are a lie


def test_row_47_a_million_entries(refused, tmp_path, monkeypatch):
    """Refused by the size of their directory: a million entries would take a gigabyte before they could be counted."""
    (tmp_path / "few.zip").write_bytes(directory_of(5001))
    assert "too much for a model; this is not an exported model" in refused(tmp_path / "few.zip")
    (tmp_path / "many.zip").write_bytes(directory_of(1_000_000))
    monkeypatch.setattr(zipfile, "ZipInfo", lambda *args: pytest.fail("an entry was read"))
    assert "too much for a model; this is not an exported model" in refused(tmp_path / "many.zip")


# Damage and kills


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_row_48_a_cut_archive(refused, archive, tmp_path, share):
    content = archive.read_bytes()
    (tmp_path / "cut.zip").write_bytes(content[: int(len(content) * share)])
    assert "; get the file again" in refused(tmp_path / "cut.zip")


@pytest.mark.parametrize("name", ["manifest.json", "plan.json", "fusion.json", "weights"])
def test_row_48_a_bad_checksum(refused, archive, tmp_path, name):
    with zipfile.ZipFile(archive) as old:
        entry = next(e for e in old.infolist() if e.filename == name or (name == "weights" and e.filename.endswith(".safetensors")))
        at = entry.header_offset + 30 + len(entry.filename) + entry.compress_size // 2
    content = bytearray(archive.read_bytes())
    content[at] ^= 1
    (tmp_path / "flipped.zip").write_bytes(content)
    assert "get the file again" in refused(tmp_path / "flipped.zip")


KILLED = """
import os, signal, sys
from c2f_nnunet.running import export
from c2f_nnunet.cli import import_model
at, place = sys.argv[1], getattr(export, sys.argv[1])
calls = 0
def stop(*args):
    global calls
    calls += 1
    if at != "_extract" or calls == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return place(*args)
setattr(export, at, stop)
import_model.main(sys.argv[2:])
"""


@pytest.mark.parametrize("at", ["_extract", "_check_model", "_place"])
def test_row_48_a_kill_in_mid_import(archive, tmp_path, at):
    """Nothing is visible, and the next import works and leaves nothing of the killed one behind."""
    results = tmp_path / "w" / "results"
    args = [str(archive), "--workspace", str(tmp_path / "w")]
    done = subprocess.run([sys.executable, "-c", KILLED, at, *args], env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert all(f.name.startswith(".") for f in results.iterdir())
    assert import_model.main(args) == 0
    assert [f.name for f in results.iterdir()] == ["Dataset901_Tiny"]


def test_row_48_a_kill_while_a_model_is_replaced(archive, tiny_trained, tmp_path):
    """Between the two renames, the old model is aside; the next import puts it back."""
    args = [str(archive), "--workspace", str(tmp_path / "w")]
    assert import_model.main(args) == 0
    model = tmp_path / "w" / "results" / "Dataset901_Tiny" / "tiny"
    (model / "mark").write_text("mine")
    code = KILLED.replace('getattr(export, sys.argv[1])', 'os.rename').replace("setattr(export, at, stop)", "os.rename = stop")
    code = code.replace('at != "_extract" or calls == 4', "calls == 2")
    done = subprocess.run(
        [sys.executable, "-c", code, "rename", *args, "--replace"], env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120
    )
    assert done.returncode == -signal.SIGKILL and not model.exists()
    assert import_model.main(args) == 1  # without --replace: the old one is there again
    assert (model / "mark").read_text() == "mine"
    assert [f.name for f in model.parent.parent.iterdir()] == ["Dataset901_Tiny"]


# Over a model, and unfit ones


def test_row_49_a_model_that_is_there(archive, crafted, tmp_path, capsys):
    args = [str(archive), "--workspace", str(tmp_path / "w")]
    assert import_model.main(args) == 0
    model = tmp_path / "w" / "results" / "Dataset901_Tiny" / "tiny"
    (model / "mark").write_text("mine")
    before = state(tmp_path / "w")
    capsys.readouterr()
    assert import_model.main(args) == 1 and state(tmp_path / "w") == before
    assert "a model is there already; give --replace to put model.zip in its place" in error(capsys.readouterr().err)
    bad = crafted(lambda files: with_weights(files, b"bad"))
    assert import_model.main([str(bad), *args[1:], "--replace"]) == 1 and state(tmp_path / "w") == before
    assert import_model.main([*args, "--replace"]) == 0
    assert not (model / "mark").exists() and (model / "plan.json").is_file()


def planned(change):
    """The archive's files with its plan changed."""

    def rewritten(files):
        plan = json.loads(files["plan.json"])
        change(plan)
        return files | {"plan.json": json.dumps(plan).encode()}

    return rewritten


def weights(change):
    """The archive's files with the averaged weights of one network changed."""

    def rewritten(files):
        name = next(n for n in files if n.startswith("3d_Stem/fold_0/checkpoint_best.") and n.endswith(".safetensors"))
        tensors = safetensors.torch.load(files[name])
        change(tensors, next(k for k in tensors if k.startswith("average.") and tensors[k].ndim == 5))
        return with_weights(files, safetensors.torch.save(tensors))

    return rewritten


UNFIT = r"3d_Stem/fold_0/checkpoint_best: the weights do not fit the plan's network \([0-9]+ tensors differ"


def member(plan):
    return plan["fine"]["members"][-1]


@pytest.mark.parametrize("change, told", [
    (planned(lambda p: member(p)["network"].update(norm="os.system")), "norm: Input should be 'instance' or 'batch'"),
    (planned(lambda p: member(p)["network"].update(network_class_name="evil.Network")), "network_class_name: Unexpected keyword"),
    (planned(lambda p: member(p)["training"].update(optimiser="torch.optim.SGD")), "optimiser: Input should be 'adam', 'adamw' or 'sgd'"),
    (planned(lambda p: member(p)["training"]["loss"].update(name="evil.Loss")), "name: Input should be 'dice_ce'"),
    (planned(lambda p: p.update(version=99)), "version"),
    (planned(lambda p: member(p)["network"].update(features=[6, 24])), UNFIT),
    (planned(lambda p: member(p)["network"].update(out_channels=9)), UNFIT),
    (planned(lambda p: member(p)["network"].update(features=[6, 10**7])), UNFIT),  # a terabyte
    (planned(lambda p: p["coarse"]["members"][0]["network"].update(features=[8, 10**9])), "its plan describes a network that cannot be"),
    (weights(lambda t, k: t.update({k: torch.full_like(t[k], float("nan"))})), "3d_Stem fold 0 has weights that are NaN or infinite"),
    (weights(lambda t, k: t[k].view(-1)[0].fill_(float("inf"))), "3d_Stem fold 0 has weights that are NaN or infinite"),
    (weights(lambda t, k: t.update({k: t[k][:1]})), UNFIT),
    (weights(lambda t, k: t.pop(k)), UNFIT),
    (lambda files: {n: c for n, c in files.items() if n != "plan.json"}, "has no plan.json; this is not an exported model"),
    (lambda files: files | {"fusion.json": b'{"version": 1, "coarse": "evil.Class"}'}, "fusion.json"),
], ids=range(15))
def test_row_50_what_does_not_fit(refused, crafted, change, told):
    message = refused(crafted(change))
    assert re.search(told, message), message


@pytest.mark.parametrize("change, told", [
    (lambda m: m | {"class": "evil.Model"}, "class"),
    (lambda m: m | {"version": "1; import os"}, "version"),
    (lambda m: m | {"files": [1, 2]}, "files"),
    (lambda m: {k: v for k, v in m.items() if k != "plan"}, "plan"),
    (lambda m: [m], "manifest"),
])
def test_row_50_a_manifest_of_another_form(refused, archive, tmp_path, change, told):
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(tmp_path / "crafted.zip", "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, json.dumps(change(json.loads(content))) if name == "manifest.json" else content)
    message = refused(tmp_path / "crafted.zip")
    assert "manifest.json: not a valid Manifest" in message and told in message
