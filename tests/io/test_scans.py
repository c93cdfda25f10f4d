"""One way to read an image file and a DICOM series, and to tell whether they changed."""
import hashlib

import numpy as np
import pytest

from c2f_nnunet.errors import ImageError
from c2f_nnunet.geometry import Geometry, same_grid
from c2f_nnunet.io.images import write_volume
from c2f_nnunet.io.scans import is_series, place_of, read_scan, scan_grid, scan_sha256
from tests.io.test_dicom import VOXELS, slice_file


@pytest.fixture
def scans(tmp_path):
    """The same CT as a file and as a series."""
    write_volume(tmp_path / "ct.nii.gz", VOXELS.astype(np.int16) - 1024, Geometry(VOXELS.shape, (3.0, 2.0, 1.5), (10.0, -20.0, 30.0)))
    return tmp_path / "ct.nii.gz", tuple(slice_file(tmp_path, k) for k in range(4))


def test_both_are_read_alike(scans):
    file, series = scans
    assert not is_series(file) and is_series(series)
    a, b = read_scan(file), read_scan(series)
    np.testing.assert_array_equal(a.array, b.array)
    assert a.array.dtype == b.array.dtype == np.int16
    for corner in ((0, 0, 0), (3, 1, 2)):
        np.testing.assert_allclose(a.geometry.world(corner), b.geometry.world(corner), atol=1e-4)


def test_headers_tell_the_grid_that_reading_gives(scans):
    for scan in scans:
        geometry, dtype = scan_grid(scan)
        assert same_grid(geometry, read_scan(scan).geometry) and dtype == (np.float32 if is_series(scan) else np.int16)
    assert place_of(scans[0]) == scans[0] and place_of(scans[1]) == scans[1][0].parent


def test_what_cannot_be_read_is_told_by_the_reader_of_its_kind(scans):
    with pytest.raises(ImageError, match="1 slice is missing"):
        read_scan((*scans[1][:2], scans[1][3], slice_file(scans[0].parent, 4)))
    with pytest.raises(ImageError, match="gone.nii.gz: no such image file"):
        read_scan(scans[0].with_name("gone.nii.gz"))


def test_a_hash_changes_with_what_the_files_hold_and_not_with_their_names(scans):
    file, series = scans
    assert scan_sha256(file) == hashlib.sha256(file.read_bytes()).hexdigest()
    before = scan_sha256(series)
    renamed = tuple(path.rename(path.with_name(f"{9 - i}.dcm")) for i, path in enumerate(series))
    assert scan_sha256(renamed) == scan_sha256(renamed[::-1]) == before
    assert scan_sha256(renamed[:3]) != before
    content = bytearray(renamed[2].read_bytes())
    content[-1] ^= 1
    renamed[2].write_bytes(content)
    assert scan_sha256(renamed) != before
