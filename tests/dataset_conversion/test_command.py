"""The converters' command line: where the data set goes, which organs and parts are taken, under which names."""
import subprocess
import sys

import pytest

from c2f_nnunet.errors import DatasetError, WorkspaceError
from tests.dataset_conversion.sources import FOLDER, load

parts, command = load("parts.cases"), load("parts.command")
ORGANS = ("Mandible", "Optic-Nerve-Lt", "Optic-Nerve-Rt", "IAC_L")


@pytest.fixture
def parse():
    def parse(*args, name="Made"):
        p = command.source_parser("made.py", "about", "source", name, "made.py SRC -d 1")
        command.add_organs(p)
        command.add_parts(p, ("a", "b", "c"), train=("a",), test=("c",))
        return p.parse_args(["src", *map(str, args)])

    return parse


def case(name, training, *organs):
    return parts.SourceCase(name, training, organs, ())


def test_folder_is_named_after_number_and_name(parse, tmp_path, monkeypatch):
    assert command.target_folder(parse("-d", 7, "--raw", tmp_path)) == tmp_path / "Dataset007_Made"
    named = parse("-d", 7, "--name", "My-set", "--workspace", tmp_path)
    assert command.target_folder(named) == tmp_path / "raw" / "Dataset007_My-set"
    monkeypatch.setenv("C2F_RAW", str(tmp_path / "r"))
    assert command.target_folder(parse("-d", 700)) == tmp_path / "r" / "Dataset700_Made"
    assert command.target_folder(parse(name=None), "Found", 12) == tmp_path / "r" / "Dataset012_Found"


@pytest.mark.parametrize("args", [("-d", 1000), ("-d", 1, "--name", "../x"), ("-d", 1, "--name", "a b")])
def test_number_and_name_must_make_a_folder_of_nnu_net(parse, tmp_path, args):
    with pytest.raises(DatasetError, match="give a number from 1 to 999 and a name of letters"):
        command.target_folder(parse(*args, "--raw", tmp_path))


def test_a_number_that_is_taken_is_refused(parse, tmp_path):
    (tmp_path / "Dataset007_Other").mkdir()
    with pytest.raises(WorkspaceError, match="the number 7 is taken by Dataset007_Other; give another -d"):
        command.target_folder(parse("-d", 7, "--raw", tmp_path))


def test_parts_are_for_training_or_for_testing(parse):
    assert command.chosen_parts(parse("-d", 1)) == {"a": True, "c": False}
    assert command.chosen_parts(parse("-d", 1, "--train", "b", "a", "--test")) == {"b": True, "a": True}
    with pytest.raises(DatasetError, match="--train and --test both name c"):
        command.chosen_parts(parse("-d", 1, "--train", "a", "c"))
    with pytest.raises(SystemExit):
        parse("-d", 1, "--train", "d")


def test_organs_without_a_training_case_are_left_out_and_ids_count_from_one(parse, tmp_path):
    given = [case("1", True, "Optic-Nerve-Rt", "Mandible"), case("2", True, "Mandible"), case("3", False, "Optic-Nerve-Lt")]

    def target(*args, about=(), **settings):
        return command.new_target(parse("-d", 1, "--raw", tmp_path, *args), given, ORGANS, dict(about), **settings)

    made = target("--train", "b", "a", about={"licence": "MIT"}, reader="one")
    assert made.folder == tmp_path / "Dataset001_Made" and made.ids == {"Mandible": 1, "Optic-Nerve-Rt": 2}
    assert made.names == {"Mandible": "Bone_Mandible", "Optic-Nerve-Rt": "OpticNrv_R"}
    assert made.settings == {"train": "a b", "test": "c", "reader": "one"} and made.about == {"licence": "MIT"}
    assert target("--names", "source").names == {"Mandible": "Mandible", "Optic-Nerve-Rt": "Optic-Nerve-Rt"}
    with pytest.raises(DatasetError, match="no training case with a mask of IAC_L; check the path and the chosen parts"):
        target("--organs", "IAC_L")


@pytest.mark.parametrize("wanted, expected", [
    (None, list(ORGANS)),
    (["OpticNrv_L"], ["Optic-Nerve-Lt"]),  # TG-263's name for what the source calls otherwise
    (["left optic nerve", "Mandible"], ["Mandible", "Optic-Nerve-Lt"]),  # in the source's order
    (["IAC_L"], ["IAC_L"]),  # no TG-263 name: as the source spells it
])  # fmt: skip
def test_wanted_organs_in_any_spelling(wanted, expected):
    assert command.select_organs(ORGANS, wanted) == expected


def test_an_organ_that_the_source_does_not_have_is_refused():
    with pytest.raises(DatasetError, match="--organs Parotid_L: not an organ of this source; it has Mandible, "):
        command.select_organs(ORGANS, ["Mandible", "Parotid_L"])


@pytest.mark.parametrize("script", sorted(path.name for path in FOLDER.glob("*.py")))
def test_each_converter_is_a_script_with_an_example_and_a_row_in_the_table(script):
    environment = {"PYTHONPATH": str(FOLDER.parent), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, str(FOLDER / script), "--help"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert f"python dataset_conversion/{script}" in done.stdout
    assert f"| `{script}` |" in (FOLDER.parent / "documentation" / "data_format.md").read_text(encoding="utf-8")
