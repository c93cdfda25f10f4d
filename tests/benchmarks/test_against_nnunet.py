"""The comparison's own logic, with a small script in the place of nnU-Net's prediction."""
import sys

import pytest

# copies the names of the scans; with mirroring it first sleeps as long as it was told
SCRIPT = """
import pathlib, sys, time
images, out, seconds = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), float(sys.argv[3])
mirrored = "--disable_tta" not in sys.argv
time.sleep(seconds if mirrored else 0)
out.mkdir(parents=True, exist_ok=True)
for image in images.iterdir():
    (out / image.name).write_text("mirrored" if mirrored else "not mirrored")
"""


@pytest.fixture
def bench(benchmark_of, tmp_path):
    against = benchmark_of("against_nnunet")
    images = tmp_path / "raw" / "Dataset015_Test" / "imagesTs"
    images.mkdir(parents=True)
    for case in ("a", "b"):
        (images / f"{case}_0000.nii.gz").write_text("a scan")
    return against.Bench(tmp_path / "raw", tmp_path / "scratch", tmp_path / "records", "Dataset015_Test")


@pytest.mark.parametrize("seconds, minutes, said", [(0, 10, "mirrored"), (600, 0.02, "not mirrored")])
def test_nnunet_predicts_without_mirroring_where_that_takes_longer_than_its_training(benchmark_of, bench, tmp_path, seconds, minutes, said):
    out = tmp_path / "out"
    measured = benchmark_of("against_nnunet").predict_nnunet(
        lambda images, out: [sys.executable, "-c", SCRIPT, images, out, seconds], bench, "nnunet_2d", minutes, out, tmp_path / "log.txt"
    )
    assert {f.name: f.read_text() for f in out.iterdir()} == {f"{case}_0000.nii.gz": said for case in ("a", "b")}
    assert measured.get("mirrored", True) == (said == "mirrored")
    assert bench.step("mirrored_is_slow", "nnunet_2d", minutes).exists() == (said == "not mirrored")
