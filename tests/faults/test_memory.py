"""FAULTS.md, row 20: predicting under a memory cap."""
import json

import numpy as np
import pytest

from c2f_nnunet.geometry import Geometry
from c2f_nnunet.io.images import write_volume
from tests.faults.processes import address_space, run

GB = 2**30
LPS = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))


def write_scan(folder, shape, spacing_mm):
    """A cylinder of soft tissue in air."""
    y, x = (np.arange(n) - n / 2 for n in shape[1:])
    inside = (y[:, None] / (0.4 * shape[1])) ** 2 + (x / (0.4 * shape[2])) ** 2 < 1
    hu = np.broadcast_to(np.where(inside, 40, -1000).astype(np.int16), shape)
    write_volume(folder / "large_0000.nii.gz", hu, Geometry(shape, spacing_mm, (0.0, 0.0, 0.0), LPS))


def predict(tiny, tmp_path, cap_gb: float, limit: int) -> tuple[int, str]:
    command = tiny.args("-i", tmp_path / "in", "-o", tmp_path / "out", "-device", "cpu", "--max_memory", cap_gb, "--disable_tta")
    return run(tmp_path / "printed", "predict", command, address_space(limit))


def test_row_20_a_scan_above_the_cap_is_refused_before_it_is_started(tiny_trained, tmp_path):
    write_scan(tmp_path / "in", (64, 256, 256), (4.0, 1.0, 1.0))
    code, printed = predict(tiny_trained, tmp_path, 0.05, 8 * GB)
    assert code == 3 and "large_0000.nii.gz: predicting it needs about" in printed and "more than --max_memory 0.05; raise it" in printed
    assert not list((tmp_path / "out").glob("*.nii.gz"))


def test_row_20_a_scan_below_the_cap_is_done_within_it(tiny_trained, tmp_path):
    write_scan(tmp_path / "in", (64, 256, 256), (4.0, 1.0, 1.0))
    code, printed = predict(tiny_trained, tmp_path, 4.0, 8 * GB)
    assert code == 0, printed
    assert (tmp_path / "out" / "large.nii.gz").exists() and json.loads((tmp_path / "out" / "large.json").read_text())["case"] == "large"
