"""scripts/pictures.sh, which makes the documentation's pictures: of the size asked for, of the place asked for, and not blank."""
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.web.browser import find

ROOT = Path(__file__).resolve().parents[2]


def picture(*args) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
    command = [ROOT / "scripts" / "pictures.sh", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


def pixels(kind: str, folder: Path, png: Path, *place: str) -> np.ndarray:
    """The picture (rows, columns, colours) of 900 × 700 pixels."""
    find()
    done = picture(kind, folder, png, "900,700", *place)
    assert done.returncode == 0, done.stderr
    with Image.open(png) as image:
        return np.asarray(image.convert("RGB"))


def test_the_report_from_its_top_and_from_a_section(folder, tmp_path):
    top, cases = pixels("report", folder, tmp_path / "top.png"), pixels("report", folder, tmp_path / "cases.png", "cases")
    for shown in (top, cases):
        assert shown.shape == (700, 900, 3) and len(np.unique(shown.reshape(-1, 3), axis=0)) > 50
    assert (top != cases).any(-1).mean() > 0.05


def test_the_viewer_at_a_case(folder, tmp_path):
    first, other = (pixels("viewer", folder, tmp_path / f"{case}.png", case) for case in ("t5", "t2"))
    slices = first[60:650, :550]  # left of the panel, below the title
    assert (slices.min(-1) > 40).mean() > 0.05  # a canvas that nothing was drawn on is black
    assert (first != other).any(-1).mean() > 0.01


@pytest.mark.parametrize("args, code, told", [
    (("report",), 2, "pictures.sh report FOLDER OUT.png WIDTH,HEIGHT"),
    (("page", ".", "x.png", "900,700"), 2, "pictures.sh viewer FOLDER"),
    (("viewer", ".", "x.png", "900x700"), 2, "pictures.sh viewer FOLDER"),
    (("viewer", "EMPTY", "x.png", "900,700"), 1, "nothing to view there"),
])  # fmt: skip
def test_what_cannot_be_pictured(tmp_path, args, code, told):
    if code == 1:
        find()
    done = picture(*(tmp_path if arg == "EMPTY" else arg for arg in args))
    assert done.returncode == code and told in done.stderr
