"""What a file must hold to be a CT or a label map: values, grid, and the headers of NRRD and MHA, each wrong one in a sentence."""
import gzip
import tracemalloc
import zlib
from dataclasses import replace

import numpy as np
import pytest

from c2f_nnunet.errors import ImageError
from c2f_nnunet.geometry import Geometry
from c2f_nnunet.io.checks import check_complete, check_geometry, ct_values, label_values, mha_data, nrrd_data
from c2f_nnunet.io.images import read_label

GRID = Geometry((2, 3, 4), (3.0, 2.0, 1.5), (10.0, -20.0, 30.0))
CT = np.arange(-12, 12, dtype=np.int16).reshape(GRID.shape)
NRRD = """NRRD0004
# written by hand
type: short
dimension: 3
space: left-posterior-superior
sizes: 4 3 2
encoding: raw

"""
MHA = """ObjectType = Image
NDims = 3
BinaryData = True
CompressedData = False
TransformMatrix = 1 0 0 0 1 0 0 0 1
Offset = 10 -20 30
ElementSpacing = 1.5 2 3
DimSize = 4 3 2
ElementType = MET_SHORT
ElementDataFile = LOCAL
"""


# CT values


@pytest.mark.parametrize("values, expected", [
    (np.array([-32768, 32767], np.int64), np.int16),
    (np.array([-32768.0, 32767.0]), np.int16),
    (np.array([0, 32768], np.int64), np.float32),
    (np.array([-32769.0, 0.0]), np.float32),
    (np.array([0.0, 0.5]), np.float32),
])  # fmt: skip
def test_a_ct_is_int16_where_that_loses_nothing(values, expected):
    found = ct_values("ct.nii", values)
    assert found.dtype == expected and found.tolist() == values.tolist()


def test_what_float32_cannot_hold_is_infinite():
    with pytest.raises(ImageError, match="^ct.nii: 1 of 3 voxels are NaN or infinite; export the image again$"):
        ct_values("ct.nii", np.array([0.0, 1.0, 1e300]))


@pytest.mark.parametrize("value", [0, -1000])
def test_a_constant_image_is_no_ct_but_may_be_an_empty_label(tmp_path, value, nifti, refused):
    path = nifti(tmp_path / "ct.nii", np.full((4, 3, 2), value, np.int16))
    refused(path, f"every voxel is {value}, so it shows nothing")
    if value == 0:
        assert not read_label(path).array.any()


# Labels


@pytest.mark.parametrize("highest, expected", [(0, np.uint8), (255, np.uint8), (256, np.uint16), (65535, np.uint16)])
@pytest.mark.parametrize("stored", [np.int32, np.float64])
def test_labels_take_the_smallest_type(highest, expected, stored):
    found = label_values("label.nii", np.array([0, highest], stored))
    assert found.dtype == expected and found.tolist() == [0, highest]


def test_a_mask_is_a_label():
    assert label_values("label.nii", np.array([True, False])).tolist() == [1, 0]


def test_bad_labels_are_listed_with_their_counts(tmp_path, nifti, refused):
    array = np.zeros((4, 3, 2), np.float32)
    array[0, 0], array[1, 1, 1], array[2] = 0.5, -1, 3
    told = r"whole numbers from 0 to 65535 but it holds -1 \(1 voxels\), 0\.5 \(2 voxels\); export the label map again"
    refused(nifti(tmp_path / "label.nii.gz", array), told, read_label)
    array[0, 0], array[1, 1, 1] = 70000, np.nan
    refused(nifti(tmp_path / "label.nii.gz", array), r"it holds 70000 \(2 voxels\), nan \(1 voxels\)", read_label)


def test_whole_labels_stored_as_floats_are_taken(tmp_path, nifti):
    array = np.arange(24, dtype=np.float64).reshape(4, 3, 2)
    assert read_label(nifti(tmp_path / "label.nii.gz", array)).array.dtype == np.uint8


def test_the_highest_label_is_65535():
    with pytest.raises(ImageError, match=r"it holds 65536 \(1 voxels\); export"):
        label_values("label.nii", np.array([0, 65535, 65536]))


def test_of_many_wrong_labels_five_are_listed():
    with pytest.raises(ImageError, match=r"-7 \(1 voxels\), -6 .*, -5 .*, -4 .*, -3 \(1 voxels\), …; export the label map again"):
        label_values("label.nii", np.arange(-7, 2))


# Grids


def turned(radians: float) -> tuple:
    """Directions whose x axis leans towards y by this angle: a sheared grid."""
    return ((0.0, 0.0, np.cos(radians)), (0.0, 1.0, np.sin(radians)), (1.0, 0.0, 0.0))


@pytest.mark.parametrize("change, told", [
    ({"shape": (1, 3, 4)}, r"its shape \(1, 3, 4\) is no volume; give a 3D image"),
    ({"spacing_mm": (3.0, 2.0, 0.049)}, r"its spacing \(z, y, x\) of 3 × 2 × 0\.049 mm is not within 0\.05 to 50 mm; mend the header"),
    ({"spacing_mm": (50.1, 2.0, 1.5)}, r"its spacing \(z, y, x\) of 50\.1 × 2 × 1\.5 mm is not within 0\.05 to 50 mm"),
    ({"spacing_mm": (3.0, np.nan, 1.5)}, "its affine holds NaN or infinite numbers; export the image again"),
    ({"origin_mm": (np.inf, 0.0, 0.0)}, "its affine holds NaN or infinite numbers"),
    ({"direction": turned(0.0011)}, r"not at right angles \(cosine 0\.0011\): a sheared grid; resample it to a rectangular one"),
    ({"direction": ((0.0, 0.0, 1.0), (0.0, np.nan, 0.0), (1.0, 0.0, 0.0))}, r"not at right angles \(cosine nan\)"),
])  # fmt: skip
def test_a_grid_that_cannot_be(change, told):
    with pytest.raises(ImageError, match=f"^ct.nii: .*{told}"):
        check_geometry("ct.nii", replace(GRID, **change))


@pytest.mark.parametrize("change", [{}, {"shape": (2, 2, 2)}, {"spacing_mm": (50.0, 0.05, 1.5)}, {"direction": turned(0.0009)}])
def test_a_grid_at_the_limits_is_taken(change):
    check_geometry("ct.nii", replace(GRID, **change))


def test_spacing_that_cannot_be_in_mha(tmp_path, write_itk, refused):
    path = tmp_path / "ct.mha"
    write_itk(path, CT)
    original = path.read_bytes()
    for spacing in (b"0 1 1", b"-1 1 1", b"nan 1 1", b"0.01 1 1", b"1 1"):
        path.write_bytes(original.replace(b"ElementSpacing = 1 1 1", b"ElementSpacing = " + spacing))
        refused(path, "spacing|ElementSpacing")


def test_a_sheared_grid(tmp_path, nifti, write_itk, refused):
    refused(nifti(tmp_path / "ct.nii", srow_x=[1.5, 0.2, 0, 0]), "its axes are not at right angles")
    path = write_itk(tmp_path / "ct.mha", CT)
    path.write_bytes(path.read_bytes().replace(b"TransformMatrix = 1 0 0 0 1 0", b"TransformMatrix = 1 0 0 0.1 1 0"))
    refused(path, "its axes are not at right angles")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_non_finite_affine(tmp_path, value, nifti, refused):
    refused(nifti(tmp_path / "ct.nii", srow_y=[0, 2, 0, value]), "its affine holds NaN or infinite numbers")


# Headers of NRRD and MHA: where the voxels begin, and what is wrong


def header(tmp_path, text: str, old: str = "", new: str = "", voxels: bytes = bytes(48)):
    """A file of a header, with a piece of it replaced, and of 4 × 3 × 2 voxels of two bytes."""
    assert old in text
    path = tmp_path / ("ct.nrrd" if text is NRRD else "ct.mha")
    path.write_bytes(text.replace(old, new).encode() + voxels)
    return path


def test_the_voxels_begin_after_the_header(tmp_path):
    assert nrrd_data(header(tmp_path, NRRD)) == (len(NRRD), False)
    assert mha_data(header(tmp_path, MHA)) == (len(MHA), False)


def test_compressed_voxels_are_told(tmp_path):
    assert nrrd_data(header(tmp_path, NRRD, "encoding: raw", "encoding: gzip")) == (len(NRRD) + 1, True)
    more = "CompressedData = True\nCompressedDataSize = 48"
    assert mha_data(header(tmp_path, MHA, "CompressedData = False", more)) == (len(MHA) - 1 + len("\nCompressedDataSize = 48"), True)


@pytest.mark.parametrize("old, new, told", [
    ("NRRD0004", "NRRB0004", "does not begin as an NRRD file; copy or export it again"),
    ("encoding: raw", "encoding: bzip2", "its voxels are not in the file itself, raw or gzip-compressed; save it as one such file"),
    ("encoding: raw\n", "", "its voxels are not in the file itself"),
    ("encoding: raw", "encoding: raw\nbyte skip: 8", "its voxels are not in the file itself"),
    ("encoding: raw", "encoding: raw\nLine Skip: 8", "its voxels are not in the file itself"),
    ("encoding: raw", "encoding: raw\ndatafile: ct.raw", "its voxels are not in the file itself"),
    ("left-posterior-superior", "scanner-xyz", "its space is 'scanner-xyz', so left and right are unknown; export it with a space"),
    ("dimension: 3\nspace: left-posterior-superior", "dimension: 2", r"its shape \(4 3 2\) is not three-dimensional; give one 3D image"),
])  # fmt: skip
def test_a_wrong_nrrd_header(tmp_path, old, new, told):
    with pytest.raises(ImageError, match=rf"ct\.nrrd: {told}"):
        nrrd_data(header(tmp_path, NRRD, old, new))


@pytest.mark.parametrize("space", ["RAS", "right-anterior-superior", "LAS", "left-anterior-superior", "LPS"])
def test_spaces_with_a_known_left_and_right(tmp_path, space):
    assert nrrd_data(header(tmp_path, NRRD, "left-posterior-superior", space))[1] is False


def test_an_nrrd_without_a_space(tmp_path, write_itk, refused):
    path = write_itk(tmp_path / "ct.nrrd", CT)
    path.write_bytes(path.read_bytes().replace(b"space: left-posterior-superior", b"space dimension: 3"))
    refused(path, "its space is '', so left and right are unknown")


@pytest.mark.parametrize("old, new, told", [
    ("BinaryData = True", "BinaryData = False", "its voxels are not in the file itself as binary data; save it as one such file"),
    ("ElementDataFile = LOCAL", "ElementDataFile = LIST", "its voxels are not in the file itself"),
    ("DimSize = 4 3 2", "DimSize = 4 3", r"its header is damaged \(DimSize = 4 3\); copy or export the file again"),
    ("DimSize = 4 3 2\n", "", r"damaged \(DimSize missing\)"),
    ("ObjectType", "ObjektType", r"damaged \(ObjectType missing\)"),
    ("Offset = 10 -20 30", "Offset = 10 x 30", r"damaged \(Offset = 10 x 30\)"),
    ("1 0 0 0 1 0 0 0 1", "1 0 0 0 1 0 0 0", r"damaged \(TransformMatrix = 1 0 0 0 1 0 0 0\)"),
    ("1.5 2 3", "1.5 inf 3", r"damaged \(ElementSpacing = 1\.5 inf 3\)"),
    ("MET_SHORT", "MET_STRING", r"damaged \(NDims = 3, ElementType = MET_STRING\)"),
    ("NDims = 3", "NDims = 5", r"damaged \(DimSize = 4 3 2; "),  # every wrong entry is listed
    ("CompressedData = False", "CompressedData = True\nCompressedDataSize = 40", "it holds 48 of 40 bytes of compressed voxels; copy"),
])  # fmt: skip
def test_a_wrong_mha_header(tmp_path, old, new, told):
    with pytest.raises(ImageError, match=rf"ct\.mha: .*{told}"):
        mha_data(header(tmp_path, MHA, old, new))


def test_voxels_in_another_file(tmp_path, write_itk, refused):
    path = write_itk(tmp_path / "ct.mha", CT)
    path.write_bytes(path.read_bytes().replace(b"ElementDataFile = LOCAL", b"ElementDataFile = ../../secret.raw"))
    refused(path, "its voxels are not in the file itself")
    path = write_itk(tmp_path / "ct.nrrd", CT)
    path.write_bytes(path.read_bytes().replace(b"encoding: raw", b"encoding: raw\ndata file: /etc/passwd"))
    refused(path, "its voxels are not in the file itself")


@pytest.mark.parametrize("ending, text", [(".mha", b"NDims = -3"), (".mha", b"NDims = 99999"), (".mha", b"Dims = 3")])
def test_headers_that_crash_or_fool_itk(ending, text, written, refused):
    path = written(ending, True)
    path.write_bytes(path.read_bytes().replace(b"NDims = 3", text))
    refused(path, "its header is damaged")


def test_a_compressed_size_that_is_missing(written, refused):
    path = written(".mha", True)  # ITK by itself would read zeros
    path.write_bytes(path.read_bytes().replace(b"CompressedDataSize", b"CompressedDataXize"))
    refused(path, "truncated or damaged")


# Voxel data


@pytest.mark.parametrize("held", [0, 47, 49])
def test_raw_voxels_must_be_as_many_as_expected(tmp_path, held):
    path = header(tmp_path, MHA, voxels=bytes(held))
    with pytest.raises(ImageError, match=rf"ct\.mha: truncated or damaged: it holds {held} of 48 bytes of voxels; copy or export it again"):
        check_complete(path, len(MHA), False, 48)


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])  # as in NRRD, as in MHA
def test_compressed_voxels_are_counted_and_must_end(tmp_path, pack):
    whole = pack(bytes(range(48)))
    check_complete(header(tmp_path, MHA, voxels=whole), len(MHA), True, 48)
    for voxels, expected in ((pack(bytes(47)), 47), (pack(bytes(49)), 49), (whole[:-1], 48), (b"", 0)):
        with pytest.raises(ImageError, match=f"truncated or damaged: it holds {expected} of 48 bytes"):
            check_complete(header(tmp_path, MHA, voxels=voxels), len(MHA), True, 48)


def test_a_small_file_that_inflates_to_a_huge_one_does_not_fill_the_memory(tmp_path):
    huge = 96 << 20
    path = header(tmp_path, MHA, voxels=zlib.compress(bytes(huge)))
    tracemalloc.start()
    with pytest.raises(ImageError, match=f"it holds {huge} of 48 bytes"):
        check_complete(path, len(MHA), True, 48)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size < 200_000 and peak < huge / 2
