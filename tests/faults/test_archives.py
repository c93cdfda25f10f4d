"""FAULTS rows 46 to 48: exported models that lead out of their folder, are bombs, are cut, or whose import is killed."""
import hashlib
import json
import signal
import stat
import struct
import zipfile
from pathlib import Path

import pytest

from c2f_nnunet.cli import import_model
from tests.faults.processes import killed_in, run

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


@pytest.mark.parametrize("key", ["dataset", "plan"])
@pytest.mark.parametrize("name", ["../../evil", "..", "/evil", "a\\evil", "", "a\0b", "\ud800", "a\nb", ".import-1-x", "-d"], ids=range(10))
def test_row_46_a_manifest_whose_folder_leads_out_or_cannot_be(refused, crafted, key, name):
    """The plan inside says the same name, so that nothing else gives it away."""
    path = crafted(lambda files: files | {"plan.json": edited(files["plan.json"], {"dataset" if key == "dataset" else "name": name})})
    with zipfile.ZipFile(path) as old:
        files = {n: old.read(n) for n in old.namelist()}
    files["manifest.json"] = edited(files["manifest.json"], {key: name})
    with zipfile.ZipFile(path, "w") as new:
        for n, content in files.items():
            new.writestr(n, content)
    assert "is no folder name; do not trust this file" in refused(path)


def edited(content: bytes, values: dict) -> bytes:
    return json.dumps(json.loads(content) | values).encode()


@pytest.mark.parametrize("name", [
    "crossval/report.html", "crossval/tables/x/y.csv", "2d_top/fold_0/checkpoint_latest.json", "2d_top/fold_0/checkpoint_best.prev.json",
    "2d_top/fold_0/settings.json", "2d_top/fold_0/.lock", ".lock", "evil.py",
])  # fmt: skip
def test_row_46_files_that_no_export_writes(refused, crafted, name):
    assert f"'{name}' is no file of an exported model; do not trust this file" in refused(crafted(lambda files: files | {name: b"x"}))


def test_row_46_files_that_the_manifest_does_not_list(refused, crafted):
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
    zeros, name = bytes(64 << 20), "crossval/tables/bomb.csv"
    path = tmp_path / "bomb.zip"
    base = crafted()
    with zipfile.ZipFile(base) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for n in old.namelist():
            content = old.read(n)
            if n == "manifest.json":
                manifest = json.loads(content)
                manifest["files"][name] = [hashlib.sha256(zeros).hexdigest(), 100]
                content = json.dumps(manifest).encode()
            new.writestr(n, content)
        new.writestr(name, zeros)
    assert path.stat().st_size < base.stat().st_size + 200_000
    assert f"'{name}' is larger than its manifest says; do not trust this file" in refused(path)
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, content.rindex(name.encode()) - 46 + 24, 100)  # the directory lies as well
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


@pytest.mark.parametrize("function, call", [("_extract", 4), ("_check_model", 1), ("_place", 1)])
def test_row_48_a_kill_in_mid_import(archive, tmp_path, function, call):
    """Nothing is visible, and the next import works and leaves nothing of the killed one behind."""
    results = tmp_path / "w" / "results"
    args = [str(archive), "--workspace", str(tmp_path / "w")]
    code, printed = run(tmp_path / "printed", "import_model", args, killed_in(function, call))
    assert code == -signal.SIGKILL, printed
    assert not list(results.glob("[!.]*/[!.]*"))  # the data set's folder may be there, with the lock of the dead import
    assert import_model.main(args) == 0
    assert [f.name for f in results.iterdir()] == ["Dataset901_Tiny"]


def test_row_48_a_kill_while_a_model_is_replaced(archive, tmp_path):
    """Between the two renames, the old model is aside; the next import puts it back."""
    args = [str(archive), "--workspace", str(tmp_path / "w")]
    assert import_model.main(args) == 0
    model = tmp_path / "w" / "results" / "Dataset901_Tiny" / "tiny"
    (model / "mark").write_text("mine")
    code, printed = run(tmp_path / "printed", "import_model", [*args, "--replace"], killed_in("rename", 2))
    assert code == -signal.SIGKILL and not model.exists(), printed
    assert import_model.main(args) == 1  # without --replace: the old one is there again
    assert (model / "mark").read_text() == "mine"
    assert [f.name for f in model.parent.parent.iterdir()] == ["Dataset901_Tiny"]
