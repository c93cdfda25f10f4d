"""A model as one file: out, in again, and everything that must be refused."""
import hashlib
import json
import zipfile

import pytest
import torch

from c2f_nnunet.errors import C2FError, Locked, ModelError, PlanError
from c2f_nnunet.io import durable
from c2f_nnunet.running.export import export_model, import_model
from c2f_nnunet.running.model import build_cascade, open_model
from c2f_nnunet.training import checkpoint
from c2f_nnunet.workspace import lock


@pytest.fixture(scope="module")
def archive(tiny_trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "model.zip"
    assert export_model(tiny_trained.model, path) == 5
    return path


def rewritten(archive, target, change=lambda name, content: content, add=(), manifest=lambda m: m):
    """A copy of the archive with contents changed, entries added and the manifest (as parsed JSON) changed."""
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "manifest.json":
                content = json.dumps(manifest(json.loads(content))).encode()
            new.writestr(name, change(name, content))
        for name, content in add:
            new.writestr(name, content)
    return target


def test_a_round_trip_keeps_every_file(tiny_trained, archive, tmp_path):
    folder = import_model(archive, tmp_path / "results")
    assert folder.root == tmp_path / "results" / "Dataset901_Tiny" / "tiny"
    names = {f.relative_to(folder.root).as_posix() for f in folder.root.rglob("*") if f.is_file()}
    top = {"plan.json", "dataset.json", "fingerprint.json", "splits_final.json", "fusion.json"}
    assert top | {"3d_Stem/fold_0/checkpoint_best.json"} <= names
    assert not any("latest" in n or n.endswith(".prev.json") for n in names)
    for name in names:
        assert (folder.root / name).read_bytes() == (tiny_trained.folder.root / name).read_bytes()
    assert not list((tmp_path / "results").glob(".import-*"))


def test_the_page_that_shows_every_patient_stays(tiny_trained, tmp_path):
    tiny = tiny_trained.copy(tmp_path / "w")
    for name in ("report.html", "report.md", "viewer/t2_image.nii.gz", "tables/table_I.csv"):
        (tiny.folder.crossval / name).parent.mkdir(parents=True, exist_ok=True)
        (tiny.folder.crossval / name).write_text("x")
    export_model(tiny.model, tmp_path / "model.zip")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        assert [n for n in archive.namelist() if n.startswith("crossval")] == ["crossval/tables/table_I.csv", "crossval/report.md"]


def test_a_model_that_is_there_stays_unless_replaced(archive, tmp_path):
    folder = import_model(archive, tmp_path)
    mark = folder.root / "mark"
    mark.write_text("mine")
    with pytest.raises(ModelError, match="a model is there already; give --replace to put model.zip in its place"):
        import_model(archive, tmp_path)
    assert mark.exists()
    with pytest.raises(ModelError):
        import_model(rewritten(archive, tmp_path / "bad.zip", lambda n, c: c + b" " if n == "plan.json" else c), tmp_path, replace=True)
    assert mark.exists()  # a bad one replaces nothing
    import_model(archive, tmp_path, replace=True)
    assert not mark.exists() and folder.plan.exists()


def test_a_model_that_is_being_trained_is_not_replaced(archive, tmp_path):
    folder = import_model(archive, tmp_path)
    with lock(folder.run("2d_top", 1).root, "training of 2d_top fold 1"):
        with pytest.raises(Locked, match="2d_top/fold_1: training of 2d_top fold 1 is already running on"):
            import_model(archive, tmp_path, replace=True)
        assert folder.plan.exists()
    import_model(archive, tmp_path, replace=True)
    assert not folder.run("2d_top", 1).root.exists()


def flipped(archive, target, at: int):
    content = bytearray(archive.read_bytes())
    content[at] ^= 0x40
    target.write_bytes(content)
    return target


@pytest.mark.parametrize("at", [0.02, 0.2, 0.5, 0.8])
def test_a_flipped_byte_of_any_content_is_refused(archive, tmp_path, at):
    with pytest.raises(C2FError, match="get the file again|do not trust this file|not an exported model|cannot be imported"):
        import_model(flipped(archive, tmp_path / "flipped.zip", int(archive.stat().st_size * at)), tmp_path / "results")
    assert not list((tmp_path / "results").rglob("plan.json"))


def test_a_flipped_byte_of_the_list_of_files_is_refused_or_changes_no_content(tiny_trained, archive, tmp_path):
    """The list, at the archive's end, also holds dates and permissions, which nothing is read from."""
    with zipfile.ZipFile(archive) as whole:
        start, size = whole.start_dir, archive.stat().st_size
    refused = 0
    for at in range(start, size, 97):
        try:
            folder = import_model(flipped(archive, tmp_path / "flipped.zip", at), tmp_path / str(at))
        except C2FError:
            refused += 1
            continue
        for file in (f for f in folder.root.rglob("*") if f.is_file()):
            assert file.read_bytes() == (tiny_trained.folder.root / file.relative_to(folder.root)).read_bytes()
    assert refused > (size - start) / 97 / 2


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "C:evil"])
def test_entries_that_lead_out_are_refused(archive, tmp_path, name):
    evil = rewritten(archive, tmp_path / "evil.zip", add=[(name, "x")])
    with pytest.raises(ModelError, match="leads out of the model's folder; do not trust this file"):
        import_model(evil, tmp_path / "results")
    assert not list(tmp_path.rglob("evil"))


def test_links_are_refused(archive, tmp_path):
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with pytest.raises(ModelError, match="entry 'link' leads out"):
        import_model(rewritten(archive, tmp_path / "evil.zip", add=[(link, "/etc/passwd")]), tmp_path / "results")


def test_what_is_no_exported_model_is_refused(archive, tmp_path):
    (tmp_path / "text.zip").write_text("no zip")
    cases = {
        "no intact zip archive": tmp_path / "text.zip",
        "do not agree": rewritten(archive, tmp_path / "a.zip", add=[("extra", "x")]),
        "'plan.json' is damaged": rewritten(archive, tmp_path / "b.zip", lambda n, c: c.replace(b"t", b"s", 1) if n == "plan.json" else c),
        "'plan.json' is larger": rewritten(archive, tmp_path / "c.zip", lambda n, c: c + b" " if n == "plan.json" else c),
        "'../up/tiny' is no folder name": rewritten(archive, tmp_path / "d.zip", manifest=lambda m: m | {"dataset": "../up"}),
        "its manifest says Dataset902_Other/tiny": rewritten(
            archive, tmp_path / "e.zip", manifest=lambda m: m | {"dataset": "Dataset902_Other"}
        ),
        "manifest version 99": rewritten(archive, tmp_path / "f.zip", manifest=lambda m: m | {"version": 99}),
    }
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as empty:
        empty.writestr("plan.json", "{}")
    cases["has no manifest.json"] = tmp_path / "empty.zip"
    for message, path in cases.items():
        with pytest.raises(ModelError, match=message):
            import_model(path, tmp_path / "results")
    with pytest.raises(C2FError, match="nothing.zip: cannot be imported"):
        import_model(tmp_path / "nothing.zip", tmp_path / "results")
    assert not list((tmp_path / "results").glob("**/plan.json"))


def test_a_damaged_or_untrained_model_is_not_exported(tiny_trained, tiny_planned, tmp_path):
    with pytest.raises(ModelError, match="nothing is trained there yet; run c2f_train all all first"):
        export_model(tiny_planned.model, tmp_path / "m.zip")
    tiny = tiny_trained.copy(tmp_path / "w")
    for path in tiny.folder.run("2d_top", 0).root.glob("checkpoint_best*.safetensors"):
        path.write_bytes(path.read_bytes()[:-8] + b"01234567")
    with pytest.raises(ModelError, match="2d_top.*damaged"):
        export_model(tiny.model, tmp_path / "m.zip")
    assert not (tmp_path / "m.zip").exists()


@pytest.mark.parametrize("harm", ["tensors", "record"])
def test_older_weights_are_not_exported_in_the_place_of_damaged_ones(tiny_trained, tmp_path, harm):
    tiny = tiny_trained.copy(tmp_path / "w")
    path = tiny.folder.run("3d_Stem", 0).checkpoint("best")
    tensors, state, _ = checkpoint.load(path)
    checkpoint.save(path, {name: value + 1 for name, value in tensors.items()}, state)
    record = path.with_name("checkpoint_best.json")
    if harm == "record":
        record.unlink()
    else:
        newest = path.with_name(json.loads(record.read_text())["tensors"]["file"])
        newest.write_bytes(newest.read_bytes()[:-8] + b"01234567")
    with pytest.raises(ModelError, match="3d_Stem/fold_0/checkpoint_best"):
        export_model(tiny.model, tmp_path / "m.zip")
    assert not (tmp_path / "m.zip").exists()


def test_the_final_weights_come_in_again(tiny_trained, tmp_path):
    assert export_model(tiny_trained.model, tmp_path / "m.zip", "final") == 5
    folder = import_model(tmp_path / "m.zip", tmp_path / "results")
    assert not list(folder.root.rglob("checkpoint_best*"))
    model, ours = open_model(folder), tiny_trained.model
    assert model.inputs_hash(model.plan.members, (0,), "final") == ours.inputs_hash(ours.plan.members, (0,), "final")
    assert len(build_cascade(model, None, "final", torch.device("cpu"))[1]) == 5


def test_what_a_killed_export_left_is_removed(tiny_trained, tmp_path):
    left = tmp_path / f"{durable.TEMPORARY_MARK}4194999-{durable.HOST}-1-m.zip"
    left.touch()
    export_model(tiny_trained.model, tmp_path / "m.zip")
    assert [f.name for f in tmp_path.iterdir()] == ["m.zip"]


def test_small_archives_of_large_files_are_refused_before_anything_is_read(archive, tmp_path):
    """A record is read whole before it can be checked, and weights are compared with the plan only then."""
    for name, told in (("fingerprint.json", 65 << 20), ("weights.safetensors", 80 << 20)):
        bomb = rewritten(archive, tmp_path / f"{name}.zip")
        with zipfile.ZipFile(bomb, "a", zipfile.ZIP_DEFLATED) as more:
            more.writestr(f"more/{name}", bytes(told))
        assert bomb.stat().st_size < 3 << 20
        with pytest.raises(ModelError, match=rf"{name}.zip: holds .* files of 0.1 GB, too much for a model"):
            import_model(bomb, tmp_path / "results")


def test_other_compressions_are_refused(archive, tmp_path):
    path = rewritten(archive, tmp_path / "lzma.zip")
    with zipfile.ZipFile(path, "a") as more:
        more.writestr("extra", b"x" * 1000, zipfile.ZIP_LZMA)
    with pytest.raises(ModelError, match="'extra' is compressed in a way that no exported model is"):
        import_model(path, tmp_path / "results")


@pytest.mark.parametrize("change, told", [
    (lambda plan: plan["fine"]["members"][0].update(name="../../../../evil"), "'../../../../evil' is no name for a folder"),
    (lambda plan: plan["coarse"].update(spacing_mm=[0, 4.0, 4.0]), "the coarse volume: .* no grid, all must be above 0"),
])
def test_a_plan_that_leads_out_or_cannot_be_is_refused(tiny_trained, tmp_path, change, told):
    tiny = tiny_trained.copy(tmp_path / "w")
    export_model(tiny.model, tmp_path / "m.zip")
    plan = json.loads(tiny.folder.plan.read_text())
    change(plan)
    text = json.dumps(plan).encode()

    def listed(manifest):
        manifest["files"]["plan.json"] = [hashlib.sha256(text).hexdigest(), len(text)]
        return manifest

    evil = rewritten(tmp_path / "m.zip", tmp_path / "evil.zip", lambda n, c: text if n == "plan.json" else c, manifest=listed)
    with pytest.raises(PlanError, match=told):
        import_model(evil, tmp_path / "results")
    assert not list((tmp_path / "results").rglob("*.json"))
