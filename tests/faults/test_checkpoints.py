"""FAULTS rows 5 to 8: checkpoints that are damaged or missing, and a disk that has no room for one.

Row 6 in an archive (M): tests/running/test_export.py::test_a_flipped_byte_of_any_content_is_refused.
"""
import os
import random
from pathlib import Path

import pytest

from tests.faults.processes import largest_file, run
from tests.faults.trainings import files_of, folder, hashes, latest, tensors_of, train


DAMAGES = {
    "row 5: empty tensors": lambda record: os.truncate(tensors_of(record), 0),
    "row 5: cut tensors": lambda record: os.truncate(tensors_of(record), tensors_of(record).stat().st_size // 2),
    "row 5: cut record": lambda record: os.truncate(record, record.stat().st_size // 2),
    "row 6: flipped bit": lambda record: flip_bit(tensors_of(record)),
}


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[random.Random(6).randrange(len(content))] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", DAMAGES)
def test_row_05_06_a_damaged_checkpoint_gives_way_to_the_one_before(stopped, tmp_path, undisturbed, damage):
    tiny = stopped.copy(tmp_path / "w")
    DAMAGES[damage](latest(tiny))
    code, printed = train(tiny, "--c")
    assert code == 0 and "the checkpoint before it (checkpoint_latest.prev.json) is used instead" in printed
    assert hashes(tiny) == undisturbed[1]


def test_row_06_both_generations_flipped(stopped, tmp_path):
    tiny = stopped.copy(tmp_path / "w")
    for path in folder(tiny).root.glob("checkpoint_latest.*.safetensors"):
        flip_bit(path)
    before = files_of(tiny)
    code, printed = train(tiny, "--c")
    assert code == 1 and "checkpoint's tensors are damaged (SHA-256 " in printed and "train this member again" in printed
    assert files_of(tiny) == before


def test_row_06_prediction_with_a_flipped_checkpoint(tiny_trained, tmp_path):
    tiny = tiny_trained.copy(tmp_path / "w")
    for path in tiny.folder.run("2d_top", 0).root.glob("checkpoint_best.*.safetensors"):
        flip_bit(path)
    code, printed = run(tmp_path / "printed", "predict", tiny.args("-i", "imagesTs", "-o", tmp_path / "out", "-device", "cpu"))
    assert code == 1 and "checkpoint_best." in printed and "tensors are damaged" in printed and "train this member again" in printed
    assert not (tmp_path / "out").exists()


def test_row_07_nothing_to_continue_from(stopped, tmp_path):
    tiny = stopped.copy(tmp_path / "w")
    for path in folder(tiny).root.glob("checkpoint_*"):
        path.unlink()
    code, printed = train(tiny, "--c")
    assert code == 1 and "3d_Stem/fold_0: no checkpoint to continue from; leave --c out to start this training" in printed
    assert not files_of(tiny)


def test_row_08_disk_full_at_a_checkpoint(stopped, tmp_path, undisturbed):
    tiny = stopped.copy(tmp_path / "w")
    before = {name: content for name, content in files_of(tiny).items() if name.startswith("checkpoint_latest")}
    size = tensors_of(latest(tiny)).stat().st_size
    code, printed = train(tiny, "--c", before=(largest_file(size - 4096),))
    assert code == 1 and "safetensors: could not be written (File too large); free some space or choose another folder" in printed
    assert "Traceback" not in printed
    now = files_of(tiny)
    assert before == {name: content for name, content in now.items() if name.startswith("checkpoint_latest")}
    assert not list(folder(tiny).root.glob(".tmp*"))
    assert train(tiny, "--c")[0] == 0 and hashes(tiny) == undisturbed[1]
