"""Code in the pages: Python is run, JSON is read, and every block says which of these it is."""
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from c2f_nnunet.io.rtstruct_out import write_rtstruct
from c2f_nnunet.labels import LabelSet
from tests.documentation.markdown import FILES, FOLDER, name, read_page
from tests.io.rt_files import scan

LANGUAGES = {"bash", "json", "python", "text", ""}  # the last two are for people: trees of folders, what a command prints
WITH_PYTHON = [path for path in FILES if any(block.language == "python" for block in read_page(path).blocks)]


def run_page(path: Path) -> dict:
    """Run a page's Python blocks one after the other in the current folder, as a reader would; their names."""
    names = {"__name__": "__main__"}
    for block in read_page(path).blocks:
        if block.language == "python":
            exec(compile("\n" * block.line + block.text, str(path), "exec"), names)  # line breaks: errors show the page's lines
    return names


def a_quickstart(tiny, folder: Path) -> None:
    """What quickstart.sh leaves, of the tiny model and its data."""
    workspace = folder / "quickstart_workspace"
    shutil.copytree(tiny.folder.root, workspace / "results" / "Dataset900_Phantom" / "auto")
    data = workspace / "raw" / "Dataset900_Phantom"
    for source, target in (("imagesTs/s0_0000", "imagesTs/phantom_020_0000"), ("labelsTs/s0", "labelsTs/phantom_020")):
        (data / target).parent.mkdir(parents=True)
        shutil.copy(tiny.raw / f"{source}.nii.gz", data / f"{target}.nii.gz")


def a_patient(tiny, folder: Path) -> None:
    """A folder with a CT series and an RTSTRUCT of one organ."""
    (folder / "patient").mkdir()
    made = scan(folder / "patient" / "ct")
    labels = np.zeros(made.image.geometry.shape, np.uint8)
    labels[1:4, 5:9, 6:12] = 1
    write_rtstruct(folder / "patient" / "rs.dcm", labels, LabelSet(("Brainstem",), (1,)), made.image.source, made.series)


PREPARED = {"documentation/api.md": a_quickstart, "documentation/rtstruct.md": a_patient}


@pytest.fixture
def run(tiny_trained, tmp_path, monkeypatch):
    """Runs a page's Python in a folder with what it speaks of."""

    def run(path: Path) -> dict:
        if name(path) in PREPARED:
            PREPARED[name(path)](tiny_trained, tmp_path)
        monkeypatch.chdir(tmp_path)
        return run_page(path)

    return run


@pytest.mark.parametrize("path", [p for p in WITH_PYTHON if p.name != "api.md"], ids=name)
def test_python_runs(path, run):
    run(path)


def test_the_api_example_predicts_and_scores_a_scan_by_file_and_by_array(run, capsys):
    names = run(FOLDER / "api.md")
    shown = capsys.readouterr().out
    assert names["result"].organ("Stem").dsc > 0.5 and "Stem scored" in shown and "2d_top" in shown
    written = np.asarray(nib.load("phantom_020.nii.gz").dataobj)
    assert written.any() and np.array_equal(written, sitk.GetArrayFromImage(names["labels"]).T)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_json_is_json_and_every_block_has_its_language(path):
    for block in read_page(path).blocks:
        assert block.language in LANGUAGES, f"{name(path)}:{block.line}: write one of {sorted(LANGUAGES)} after the fence"
        if block.language == "json":
            json.loads(block.text)


def test_an_example_that_fails_names_its_line(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A page\n\n```python\na = 1\n```\n\n```python\nb = a\nassert b == 2\n```\n")
    with pytest.raises(AssertionError) as told:
        run_page(page)
    assert told.traceback[-1].path == page and told.traceback[-1].lineno + 1 == 9
