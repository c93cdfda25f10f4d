"""FAULTS rows 40 and 41: one bad scan among others, and results that are cut, through c2f_predict."""
import shutil

import numpy as np
import pytest

from tests.faults.inputs import DAMAGED, cut, error, flipped, kept, segment, state, told_of
from tests.faults.processes import Command, survivors, took


def test_row_40_one_bad_case_of_ten(tiny_trained, tmp_path, capsys):
    source, out = tmp_path / "scans", tmp_path / "out"
    source.mkdir()
    for i in range(10):
        shutil.copy(tiny_trained.raw / "imagesTs" / f"s{i % 2}_0000.nii.gz", source / f"c{i}_0000.nii.gz")
    kept(1000)(source / "c4_0000.nii.gz")
    assert segment(tiny_trained, source, out) == 3
    message = error(capsys.readouterr().err)
    assert message.startswith("1 of 10 cases failed, the others are done: c4: ")
    told_of(message, "c4_0000.nii.gz", DAMAGED)
    assert sorted(f.name for f in out.glob("*.nii.gz")) == [f"c{i}.nii.gz" for i in range(10) if i != 4]
    assert all((out / f"c{i}.nii.gz").read_bytes() == (out / f"c{i % 2}.nii.gz").read_bytes() for i in range(10) if i != 4)


@pytest.mark.parametrize("harmed, harm", [
    ("s1.nii.gz", cut(100)), ("s1.nii.gz", kept(0)), ("s1.nii.gz", flipped(-200)), ("s1.json", cut(20)), ("s1.npz", cut(50)),
    ("s1.npz", kept(0)),
])  # fmt: skip
def test_row_41_a_cut_result_is_redone(tiny_trained, tmp_path, harmed, harm):
    out = tmp_path / "out"
    options = ["--save_probabilities", "--continue_prediction"]
    assert segment(tiny_trained, tiny_trained.raw / "imagesTs", out, *options) == 0
    whole, s0 = state(out), (out / "s0.nii.gz").stat().st_mtime_ns
    harm(out / harmed)
    assert segment(tiny_trained, tiny_trained.raw / "imagesTs", out, *options) == 0
    again = state(out)
    assert again.keys() == whole.keys() and again[str(out / "s1.nii.gz")] == whole[str(out / "s1.nii.gz")]
    with np.load(out / "s1.npz") as found:
        assert np.isfinite(found["probabilities"]).all()
    assert (out / "s0.nii.gz").stat().st_mtime_ns == s0


def test_row_41_killed_while_predicting_and_continued(tiny_trained, tmp_path, kills, record_property):
    """Killed at random moments of predicting and continued, until it is done; nothing is seen that an undisturbed run does not leave, nor differs."""
    source = tmp_path / "scans"
    source.mkdir()
    for i in range(6):
        shutil.copy(tiny_trained.raw / "imagesTs" / f"s{i % 2}_0000.nii.gz", source / f"c{i}_0000.nii.gz")

    def start(out) -> Command:
        options = ("-d", 901, "-device", "cpu", "--disable_tta", "--save_probabilities", "--continue_prediction")
        return Command(tmp_path / "printed", "predict", tiny_trained.args("-i", source, "-o", out, *options))

    def left(out) -> dict[str, bytes]:
        return {f.name: f.read_bytes() for f in sorted(out.iterdir()) if f.name.endswith(".nii.gz")}

    def begun(command) -> bool:
        return "cases, folds: " in command.output.read_text()

    took_s, wanted = took(start(tmp_path / "undisturbed"), begun), left(tmp_path / "undisturbed")
    names = {f.name for f in (tmp_path / "undisturbed").iterdir()}
    assert len(wanted) == 6
    record_property("kills", kills)
    for runs, out in enumerate(survivors(start, lambda attempt: tmp_path / str(attempt), took_s, kills, 41, begun), 1):
        record_property("runs", runs)
        assert left(out) == wanted and {f.name for f in out.iterdir()} == names
