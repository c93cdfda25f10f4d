"""FAULTS row 44: a thousand mutated NIfTI, NRRD and DICOM headers, read in a child process: a stated error or a validated image."""
import gzip
import json
import select
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.io.test_dicom import VOXELS, slice_file

LIMIT_S = 60  # for one file; a hang, as a crash, fails the test
SHAPE = (4, 5, 6)
CT = np.arange(-60, 60, dtype=np.int16).reshape(SHAPE)
READER = """
import json, sys
import numpy as np
from c2f_nnunet.errors import ImageError
from c2f_nnunet.io.dicom import read_series
from c2f_nnunet.io.images import read_image
for path in sys.stdin:
    path = path.rstrip("\\n")
    try:
        image = (read_series if path.endswith("series") else read_image)(path)
        finite = bool(np.isfinite(image.array).all() and np.isfinite([*image.geometry.spacing_mm, *image.geometry.origin_mm]).all())
        answer = {"shape": image.array.shape, "grid": image.geometry.shape, "stored": image.source.geometry.shape,
                  "spacing": image.geometry.spacing_mm, "finite": finite}
    except ImageError as e:
        answer = {"error": str(e)}
    print(json.dumps(answer), flush=True)
"""


class Reader:
    """A child process that reads files; its death, silence or any other error than a stated one fails the test."""

    def __init__(self):
        self.process = subprocess.Popen([sys.executable, "-c", READER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, path: Path) -> dict:
        self.process.stdin.write(f"{path}\n")
        self.process.stdin.flush()
        assert select.select([self.process.stdout], [], [], LIMIT_S)[0], f"{path}: no answer after {LIMIT_S} s"
        line = self.process.stdout.readline()
        assert line, f"{path}: the reader died with exit code {self.process.wait()}"
        return json.loads(line)

    def close(self) -> None:
        self.process.stdin.close()
        try:
            self.process.wait(LIMIT_S)
        finally:
            self.process.kill()
            self.process.stdout.close()


@pytest.fixture(scope="module")
def reader():
    child = Reader()
    yield child
    child.close()


def thousand(share: int):
    return settings(max_examples=share, deadline=None, derandomize=True, database=None,
                    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def mutations(start: int, stop: int):
    """(position, byte) pairs: mostly one, bytes that are text as often as not."""
    byte = st.one_of(st.integers(0, 255), st.sampled_from(b"0123456789-. \n"))
    return st.lists(st.tuples(st.integers(start, stop - 1), byte), min_size=1, max_size=4)


def mutated(content: bytes, changes: list[tuple[int, int]]) -> bytes:
    content = bytearray(content)
    for at, byte in changes:
        content[at] = byte
    return bytes(content)


def stated_or_valid(answer: dict, path: Path, shape) -> None:
    """A sentence that begins with the path, or a finite volume that is stored in this shape; a mutated direction may turn it."""
    if "error" in answer:
        assert answer["error"].startswith(str(path)) and "\n" not in answer["error"] and "; " in answer["error"], answer
        return
    assert answer["finite"] and answer["grid"] == answer["shape"] and sorted(answer["shape"]) == sorted(shape), (answer, shape)
    assert answer["stored"] == list(shape), (answer, shape)
    assert all(0.05 <= s <= 50 for s in answer["spacing"]), answer


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("headers")
    nib.Nifti1Image(CT.T, np.diag([1.5, 2.0, 3.0, 1.0])).to_filename(folder / "ct.nii")
    sitk.WriteImage(sitk.GetImageFromArray(CT), str(folder / "ct.nrrd"))
    (folder / "series").mkdir()
    slices = [slice_file(folder / "series", k) for k in range(4)]
    return {"nii": folder / "ct.nii", "nrrd": folder / "ct.nrrd", "slice": slices[2]}


@pytest.fixture(scope="module")
def whole(files, reader) -> dict[str, bytes]:
    """The files before any mutation, which can be read."""
    for path in (files["nii"], files["nrrd"]):
        assert reader(path)["stored"] == list(SHAPE)
    assert reader(files["slice"].parent)["shape"] == list(VOXELS.shape)
    return {name: path.read_bytes() for name, path in files.items()}


@given(changes=mutations(0, 352))
@thousand(350)
def test_row_44_nifti_headers(files, whole, reader, changes):
    files["nii"].write_bytes(mutated(whole["nii"], changes))
    stated_or_valid(reader(files["nii"]), files["nii"], SHAPE)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_row_44_a_nifti_header_that_asks_for_fewer_voxels(whole, reader, tmp_path, axis, packed):
    """Read by it, the voxels would lie at wrong places."""
    content = bytearray(whole["nii"])
    content[42 + 2 * axis] -= 1  # dim[1], dim[2] or dim[3]
    path = tmp_path / ("ct.nii.gz" if packed else "ct.nii")
    path.write_bytes(gzip.compress(content) if packed else content)
    assert "so its shape or its voxels' type is wrong" in reader(path)["error"]


@given(changes=mutations(0, 350))
@thousand(350)
def test_row_44_nrrd_headers(files, whole, reader, changes):
    end = whole["nrrd"].index(b"\n\n") + 2
    content = mutated(whole["nrrd"], [(at % end, byte) for at, byte in changes])
    files["nrrd"].write_bytes(content)
    stated_or_valid(reader(files["nrrd"]), files["nrrd"], SHAPE)


@given(changes=mutations(0, 1000))
@thousand(300)
def test_row_44_dicom_headers(files, whole, reader, changes):
    """One slice of four: it still fits the other three, or is told."""
    content, folder = whole["slice"], files["slice"].parent
    files["slice"].write_bytes(mutated(content, [(at % (len(content) - VOXELS[0].size * 2), byte) for at, byte in changes]))
    answer = reader(folder)
    # a slice that is no DICOM file or no CT any more, at an end of the stack, would be passed over; this one leaves a gap
    stated_or_valid(answer, folder, VOXELS.shape)
