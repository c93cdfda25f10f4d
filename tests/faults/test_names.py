"""FAULTS rows 38 and 39: names of cases and organs, and folders that cannot be written, through the commands."""
import json
import re
import shutil
import string
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from c2f_nnunet.cli import evaluate, import_model
from c2f_nnunet.data.store import Store
from c2f_nnunet.running.export import export_model
from tests.faults.inputs import edit_json, error, plan, segment, state
from tests.faults.processes import run, without_roots_rights

LETTERS = string.ascii_letters + string.digits
AWKWARD = st.text(st.sampled_from(LETTERS + " -_.'\"$&;(){}[]*?#%@!~+=,\u00e9\u00df\u4e2d\u0644\U0001f600\n\t\\:|<>"),
                  min_size=1, max_size=20)
PIECES = st.sampled_from(["_seg", "_0000", "-rf", "--help", "__Stem", ".nii", ".nii.gz", "~", "CON", " ", "\u0301", "\u202e", "\ud800"])


@st.composite
def names(draw) -> str:
    """A case's name: letters of many kinds, and pieces that have a meaning somewhere."""
    name = draw(st.sampled_from(("{0}{1}", "{1}{0}", "{0}"))).format(draw(AWKWARD), draw(PIECES))
    return "".join(name.split("/")).lstrip(".") or "x"  # hidden files are passed over: macOS leaves '._' twins of every file


@pytest.fixture(scope="module")
def work(tiny_trained, tmp_path_factory):
    """Two training cases beside those of the folds, one of which each example renames, and one scan to predict."""
    tiny = tiny_trained.copy(tmp_path_factory.mktemp("names") / "w")
    edit_json(tiny.raw / "dataset.json", lambda d: {k: v for k, v in d.items() if k not in ("annotated", "numTraining")})
    shutil.rmtree(tiny.root / "results")
    shutil.rmtree(tiny.root / "preprocessed")
    for case in ("t3", "t4", "t5", "t6"):
        (tiny.raw / "imagesTr" / f"{case}_0000.nii.gz").unlink()
        (tiny.raw / "labelsTr" / f"{case}.nii.gz").unlink()
    return tiny


@given(name=names())
@settings(max_examples=20, deadline=None, derandomize=True, database=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@example("-rf").via("an option")
@example("--workspace").via("an option")
@example("a b").via("spaces")
@example("case_seg").via("a suffix that others cut off")
@example("x_0000").via("a second channel's suffix")
@example("line\nbreak").via("a line break")
@example("caf\u00e9").via("composed")
@example("cafe\u0301").via("decomposed")
@example("a..").via("nearly the folder above")
@example("~").via("the home folder")
def test_row_38_names_of_cases(work, tiny_trained, tmp_path_factory, capsys, name):
    """Whatever a scan is called, its result is called the same; or the name is told, and nothing is computed."""
    folder = tmp_path_factory.mktemp("name")
    source, out = folder / "-in _seg", folder / "o \u00fct"
    source.mkdir()
    try:
        shutil.copy(work.raw / "imagesTs" / "s0_0000.nii.gz", source / f"{name}_0000.nii.gz")
    except (OSError, UnicodeError):
        return  # no name of a file here
    for where, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (work.raw / where / f"t1{ending}").rename(work.raw / where / f"{name}{ending}")
    try:
        capsys.readouterr()
        planned, shown = plan(work), capsys.readouterr().err
        code, told = segment(tiny_trained, source, out), capsys.readouterr().err
        assert (planned, code) in ((0, 0), (1, 1)), shown + told
        if code:
            for message in (error(shown), error(told)):
                assert "; rename" in message and (ascii(name)[1:-1][:8] in message or repr(name)[1:-1][:8] in message), message
            assert not out.exists() and not name.isprintable(), name
            return
        assert {f.name for f in out.iterdir()} == {"checks.json", "dataset.json", f"{name}.json", f"{name}.nii.gz"}
        cases = json.loads((work.root / "results" / work.raw.name / "tiny" / "fingerprint.json").read_text())["cases"]
        assert name in {c["id"] for c in cases}
        stored = {f.name for f in (work.store.root).rglob("*.done")}
        assert f"{name}.done" in stored
        truth = folder / "truth"
        truth.mkdir()
        shutil.copy(work.raw / "labelsTs" / "s0.nii.gz", truth / f"{name}.nii.gz")
        assert evaluate.main([str(truth), str(out), "-np", "1"]) == 0
        assert set(pd.read_csv(out / "per_case.csv", keep_default_na=False, dtype=str)["case"]) == {name}
    finally:
        for where, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
            (work.raw / where / f"{name}{ending}").rename(work.raw / where / f"t1{ending}")
        shutil.rmtree(folder)


@pytest.mark.parametrize("organ", ["../../evil", "a/b", "Brain Stem", "-rf", "Stamm\u00df", "\u8111\u5e72", "x'; DROP", "Stem\\..", "."])
def test_row_38_names_of_organs(tiny_raw, tmp_path, capsys, organ):
    """An organ's name becomes that of a network's folder: it works, inside the results, or is told."""
    tiny = tiny_raw.copy(tmp_path / "w")
    edit_json(tiny.raw / "dataset.json", lambda d: d | {
        "labels": {organ if k == "Stem" else k: v for k, v in d["labels"].items()}, "annotated": {"t4": [organ]},
    })
    code, around = plan(tiny), {f for f in tmp_path.iterdir()}
    assert around == {tmp_path / "w"} and {f.name for f in (tmp_path / "w").iterdir()} <= {"raw", "results", "preprocessed", "tiny.json"}
    if code:
        assert organ in error(capsys.readouterr().err)
    else:
        made = json.loads(tiny.folder.plan.read_text())
        assert organ in made["labels"]["organs"] and len(list(tiny.store.root.iterdir())) == 3
        member = next(m for m in tiny.model.plan.members if m.organs == (organ,))
        volumes = Store(tiny.store.volumes(member.volumes)).read()
        assert {v.record.case for v in volumes} == {f"t{i}" for i in range(7)}  # each case has its own
        for volume in volumes:
            volume.verify()


def run_bound_by_permissions(printed: Path, calls: list) -> list[tuple[int, str]]:
    """Commands in processes that permission bits bind, though they be root's: (exit code, what it printed) of each.

    calls: (command, arguments, a folder that cannot be written meanwhile).
    """
    results = []
    for command, args, folder in calls:
        if folder:
            folder.chmod(0o500)
        try:
            results.append(run(printed, command, [str(a) for a in args], without_roots_rights))
        finally:
            if folder:
                folder.chmod(0o700)
    return results


def read_only(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.chmod(0o400 if path.is_file() else 0o500)
    folder.chmod(0o500)


def writable(folder: Path) -> None:
    folder.chmod(0o700)
    for path in folder.rglob("*"):
        path.chmod(0o600 if path.is_file() else 0o700)


def test_row_39_inputs_that_can_only_be_read(tiny_raw, tiny_trained, tmp_path):
    """Raw data, preprocessed volumes, a model and its archive: each command works where it only has to read."""
    tiny, planned = tiny_trained.copy(tmp_path / "w"), tiny_raw.copy(tmp_path / "planned")
    assert export_model(tiny.model, tmp_path / "model.zip") == 5
    model = shutil.copytree(tiny.folder.root, tmp_path / "model")
    shutil.rmtree(tiny.folder.run("3d_Stem", 0).root)
    locked = (tiny.raw, tiny.store.root, model, planned.root / "raw")
    for folder in locked:
        read_only(folder)
    (tmp_path / "model.zip").chmod(0o400)
    common = ["--workspace", tiny.root, "-d", 901]
    try:
        results = run_bound_by_permissions(tmp_path / "printed", [
            ("train", ["3d_Stem", 0, *common, "-device", "cpu", "-np", 0, "--epochs", 1], None),
            ("predict", ["-i", tiny.raw / "imagesTs", "-o", tmp_path / "out", "-m", model, "-device", "cpu"], None),
            ("evaluate", [tiny.raw / "labelsTs", tmp_path / "out", "-o", tmp_path / "scores", "-np", 1], None),
            ("export_model", [*common, "-o", tmp_path / "again.zip"], None),
            ("import_model", [tmp_path / "model.zip", "--workspace", tmp_path / "other"], None),
            ("crossval", [*common, "-device", "cpu"], None),
            ("plan_and_preprocess", ["--workspace", planned.root, "-pl", planned.plan_file, "-np", 1], None),
        ])  # fmt: skip
        assert [code for code, _ in results] == [0] * 7, results
    finally:
        for folder in locked:
            writable(folder)


def test_row_39_outputs_that_cannot_be_written(tiny_raw, tiny_trained, tmp_path, tmp_path_factory):
    """Told before anything is computed: no case is verified, trained, predicted or scored, and nothing is changed."""
    tiny, begun, fresh = tiny_trained.copy(tmp_path / "w"), tiny_trained.copy(tmp_path / "begun"), tiny_raw.copy(tmp_path / "fresh")
    assert export_model(tiny.model, tmp_path / "model.zip") == 5
    out, other = tmp_path / "out", tmp_path / "other"
    out.mkdir()
    (other / "results").mkdir(parents=True)
    shutil.copy(tiny.raw / "labelsTs" / "s0.nii.gz", out)
    shutil.rmtree(begun.folder.run("3d_Stem", 0).root)
    (fresh.root / "results").mkdir()
    common = ["--workspace", tiny.root, "-d", 901]
    above = [tiny.folder.root.parent, tiny.store.root.parent]
    planned = [tiny.store.root.parent, tiny.folder.root, tiny.store.root, tiny.store.volumes("3d_Stem")]
    before = state(tmp_path)
    results = run_bound_by_permissions(tmp_path_factory.mktemp("printed") / "it", [
        *[("plan_and_preprocess", [*common, "-pl", tiny.plan_file, "-np", 1], folder) for folder in planned],
        *[("plan_and_preprocess", [*common, "-pl", "paper_han", "-np", 1], folder) for folder in above],  # its own are to be made
        ("plan_and_preprocess", ["--workspace", fresh.root, "-np", 1], fresh.root / "results"),
        ("train", ["3d_Stem", 1, *common, "-device", "cpu", "-np", 0], tiny.folder.root / "3d_Stem"),
        ("train", ["all", 0, "--workspace", begun.root, "-device", "cpu", "-np", 0], begun.folder.root),  # needed by the fits
        ("train", ["all", 1, *common, "-device", "cpu", "-np", 0], tiny.folder.root / "3d_Stem"),  # the last one's
        ("predict", ["-i", "imagesTs", "-o", out, *common, "-device", "cpu"], out),
        ("predict", ["-i", "imagesTs", "-o", out / "new", *common, "-device", "cpu"], out),
        ("evaluate", [tiny.raw / "labelsTs", out, "-np", 1], out),
        ("crossval", [*common, "-device", "cpu"], tiny.folder.root),
        ("export_model", [*common, "-o", out / "model.zip"], out),
        ("import_model", [tmp_path / "model.zip", "--workspace", other], other / "results"),
    ])  # fmt: skip
    assert state(tmp_path) == before
    for code, shown in results:
        message = error(shown)
        assert code == 1 and "Permission denied" in message and "; " in message, (code, shown)
        assert re.sub("^reading .*\n", "", shown).startswith("error: "), shown  # no remark on a case, no result
    assert import_model.main([str(tmp_path / "model.zip"), "--workspace", str(other)]) == 0
