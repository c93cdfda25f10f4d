"""Fixtures shared by all tests: the folder of real scans, and a tiny procedural data set, planned, preprocessed and trained once."""
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from c2f_nnunet.cli import plan_and_preprocess, train
from c2f_nnunet.data.dataset import read_dataset
from c2f_nnunet.geometry import Geometry
from c2f_nnunet.io.images import write_volume
from c2f_nnunet.running.model import open_model
from c2f_nnunet.workspace import ModelFolder, Workspace, store_folder

TINY = "Dataset901_Tiny"
ORGANS = ("Gland_L", "Gland_R", "Stem")
LPS = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))  # array axes z, y, x along the world's z, y, x
RAS = ((0.0, 0.0, -1.0), (0.0, -1.0, 0.0), (1.0, 0.0, 0.0))  # x and y reversed, as most NIfTI files have them
# case: spacing (z, y, x) in mm, direction, shift of all organs in mm, organs that are there
CASES = {
    "t0": ((4.0, 4.0, 4.0), LPS, (0, 0, 0), ORGANS),
    "t1": ((4.0, 4.0, 4.0), RAS, (4, 2, -3), ORGANS),
    "t2": ((5.0, 4.0, 4.0), LPS, (-4, -3, 3), ORGANS),
    "t3": ((4.0, 3.6, 3.6), RAS, (2, 4, 4), ("Gland_L", "Stem")),  # no right gland
    "t4": ((4.0, 4.0, 4.0), LPS, (-2, -4, -4), ORGANS),  # only the stem is annotated
    "t5": ((4.4, 4.0, 4.0), RAS, (3, 0, 2), ORGANS),
    "t6": ((4.0, 4.0, 4.0), LPS, (-3, 3, 0), ORGANS),
}
# organ: centre (z, y, x) and half axes in mm relative to the body's middle (x to the patient's left), HU
BLOBS = {
    "Gland_L": ((-10, -10, 34), (14, 12, 12), 160),
    "Gland_R": ((-10, -10, -34), (14, 12, 12), 160),
    "Stem": ((8, 14, 0), (22, 12, 12), 320),
}
BODY_HALF_MM = (42, 62, 66)
FOLDS = ({"train": ["t0", "t1", "t3", "t4", "t6"], "val": ["t2", "t5"]}, {"train": ["t2", "t4", "t5", "t6"], "val": ["t0", "t1", "t3"]})
_TRAINING = {
    "batch_size": 8, "epochs": 4, "steps_per_epoch": 20, "validate_every": 2, "learning_rate": 0.01, "warmup_steps": 5, "ema_decay": 0.9,
    "augmentation": "none",
}  # fmt: skip
TINY_PLAN = {
    "name": "tiny",
    "coarse": {
        "spacing_mm": [4.0, 4.0, 4.0], "shape": [24, 40, 40],
        "member": {
            "windows": [{"low_hu": -100.0, "high_hu": 400.0, "mean": 0.3}], "context_slices": 1, "position_channels": 3,
            "network": {"features": [8, 16], "background_prior": 0.0}, "training": _TRAINING,
        },
    },
    "fine": {
        "member": {
            "spacing_mm": [4.0, 4.0, 4.0], "shape": [16, 16, 16], "jitter_mm": [8.0, 8.0, 8.0],
            "windows": [{"low_hu": -100.0, "high_hu": 400.0, "mean": 0.3}],
            "network": {"features": [6, 12], "background_prior": 0.0}, "training": {**_TRAINING, "batch_size": 4},
        },
    },
}  # fmt: skip


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=10, metavar="N", help="how often each test of kills at random moments kills (default: 10)")
    parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")


def pytest_terminal_summary(terminalreporter):
    """How often processes were killed at random moments, and how many runs came to their end all the same and were compared."""
    calls = [report for reports in terminalreporter.stats.values() for report in reports if getattr(report, "when", None) == "call"]
    rows = [(report.nodeid, report.outcome, dict(report.user_properties)) for report in calls]
    rows = [row for row in rows if "kills" in row[2]]
    if rows:
        terminalreporter.section("kills at random moments")
    for test, outcome, found in rows:
        terminalreporter.write_line(f"{test}: {found['kills']} kills, {found.get('runs', found['kills'])} runs compared, {outcome}")


@pytest.fixture(scope="session")
def kills(request) -> int:
    """How often to kill a process at a random moment."""
    return request.config.getoption("--kills")


@pytest.fixture(scope="session")
def slow(request):
    """Asked for by tests that take minutes."""
    if not request.config.getoption("--slow"):
        pytest.skip("takes minutes; give --slow")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real patients' CTs; tests that need it are skipped where it is not there."""
    folder = Path(os.environ.get("C2F_TEST_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    if not (folder / "raw").is_dir():
        pytest.skip(f"real data not found at {folder}; set C2F_TEST_DATA to run this test")
    return folder


def tiny_case(spacing_mm, direction, shift_mm, organs, seed: int) -> tuple[np.ndarray, np.ndarray, Geometry]:
    """CT (HU, int16), labels (ids 1, 2, 3) and geometry: a body ellipsoid in air with bright blobs, in file order."""
    shape = tuple(int(round(n / s)) for n, s in zip((96, 160, 160), spacing_mm))
    grid = Geometry(shape, spacing_mm, (0.0, 0.0, 0.0), direction)
    world = grid.world(np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1))
    at = (world - world.reshape(-1, 3).mean(0))[..., ::-1]  # mm (z, y, x) from the scan's middle
    hu = np.where(((at / BODY_HALF_MM) ** 2).sum(-1) < 1, 40, -1000).astype(float)
    labels = np.zeros(shape, np.uint8)
    for i, organ in enumerate(ORGANS, 1):
        centre, half, value = BLOBS[organ]
        if organ in organs:
            inside = (((at - np.add(centre, shift_mm)) / half) ** 2).sum(-1) < 1
            hu[inside], labels[inside] = value, i
    hu += np.random.default_rng(seed).normal(0, 10, shape)
    return np.rint(hu).astype(np.int16), labels, grid


def write_tiny(raw: Path) -> Path:
    """The tiny data set in nnU-Net's format; returns its folder."""
    root = raw / TINY
    for seed, (case, values) in enumerate(CASES.items()):
        hu, labels, grid = tiny_case(*values, seed)
        write_volume(root / "imagesTr" / f"{case}_0000.nii.gz", hu, grid)
        write_volume(root / "labelsTr" / f"{case}.nii.gz", labels, grid)
    for seed, (case, values) in enumerate({"s0": CASES["t1"], "s1": CASES["t3"]}.items(), 100):
        hu, labels, grid = tiny_case(*values, seed)
        write_volume(root / "imagesTs" / f"{case}_0000.nii.gz", hu, grid)
        write_volume(root / "labelsTs" / f"{case}.nii.gz", labels, grid)
    (root / "dataset.json").write_text(json.dumps({
        "channel_names": {"0": "CT"}, "labels": {"background": 0, "Gland_L": 1, "Gland_R": 2, "Stem": 3}, "numTraining": len(CASES),
        "file_ending": ".nii.gz", "annotated": {"t4": ["Stem"]},
    }))  # fmt: skip
    return root


@dataclass(frozen=True)
class Tiny:
    """A workspace with the tiny data set: raw, and where made, planned, preprocessed and trained."""

    root: Path

    @property
    def workspace(self) -> Workspace:
        return Workspace.find(self.root)

    @property
    def raw(self) -> Path:
        return self.root / "raw" / TINY

    @property
    def dataset(self):
        return read_dataset(self.raw)

    @property
    def plan_file(self) -> Path:
        return self.root / "tiny.json"

    @property
    def folder(self) -> ModelFolder:
        return ModelFolder(self.root / "results" / TINY / "tiny")

    @property
    def model(self):
        return open_model(self.folder)

    @property
    def store(self):
        return store_folder(self.workspace, TINY, "tiny")

    def args(self, *args) -> list[str]:
        """Command line arguments with this workspace."""
        return [*map(str, args), "--workspace", str(self.root)]

    def copy(self, target: Path) -> "Tiny":
        """A copy that a test may change."""
        return Tiny(Path(shutil.copytree(self.root, target)))


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tiny networks are quickest in one thread, and sums then have one order."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    """No test depends on the folders that the user's shell names."""
    for name in ("C2F_RAW", "C2F_PREPROCESSED", "C2F_RESULTS", "nnUNet_raw"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def tiny_raw(tmp_path_factory) -> Tiny:
    """The raw data set alone, a reference plan, and a split of two folds where the preprocessed volumes will be."""
    tiny = Tiny(tmp_path_factory.mktemp("tiny") / "workspace")
    write_tiny(tiny.root / "raw")
    tiny.plan_file.write_text(json.dumps(TINY_PLAN))
    split = tiny.root / "preprocessed" / TINY / "splits_final.json"
    split.parent.mkdir(parents=True)
    split.write_text(json.dumps(FOLDS))
    return tiny


@pytest.fixture(scope="session")
def tiny_planned(tiny_raw, tmp_path_factory) -> Tiny:
    """Planned and preprocessed by the command."""
    tiny = tiny_raw.copy(tmp_path_factory.mktemp("planned") / "workspace")
    assert plan_and_preprocess.main(tiny.args("-d", 901, "-pl", tiny.plan_file, "-np", 1)) == 0
    return tiny


@pytest.fixture(scope="session")
def tiny_trained(tiny_planned, tmp_path_factory) -> Tiny:
    """Fold 0 of every member trained by the command, fusion and merge fitted."""
    tiny = tiny_planned.copy(tmp_path_factory.mktemp("trained") / "workspace")
    assert train.main(tiny.args("all", 0, "-d", 901, "-device", "cpu", "-np", 0)) == 0
    return tiny
