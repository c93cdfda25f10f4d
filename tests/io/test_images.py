"""Images from files and back: every orientation, exact headers, and one sentence for each kind of bad file."""
import gzip
import os
import random
from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from c2f_nnunet.errors import ImageError, WorkspaceError
from c2f_nnunet.geometry import Geometry
from c2f_nnunet.io.images import read_grid, read_image, read_label, write_label, write_volume

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")
ALL_48 = [(axes, signs) for axes in permutations(range(3)) for signs in product((1, -1), repeat=3)]
CANONICAL = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
GRID = Geometry((2, 3, 4), (3.0, 2.0, 1.5), (10.0, -20.0, 30.0))
CT = np.arange(-12, 12, dtype=np.int16).reshape(GRID.shape)
LPS_TO_RAS = np.array([-1, -1, 1])


def oriented(axes, signs) -> Geometry:
    """Array axis k runs along world axis axes[k], in the direction of signs[k]."""
    direction = np.zeros((3, 3))
    for k, (world, sign) in enumerate(zip(axes, signs)):
        direction[world, k] = sign
    return Geometry(GRID.shape, GRID.spacing_mm, GRID.origin_mm, tuple(map(tuple, direction.tolist())))


# Orientation


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("axes, signs", ALL_48)
def test_every_orientation_reads_to_the_same_world_and_writes_back(tmp_path, axes, signs, ending):
    geometry, path = oriented(axes, signs), tmp_path / f"ct{ending}"
    write_volume(path, CT, geometry)
    image = read_image(path)

    np.testing.assert_allclose(image.geometry.direction, CANONICAL, atol=1e-6)
    assert image.array.shape == image.geometry.shape and image.array.dtype == np.int16
    for index in np.ndindex(*image.array.shape):
        there = np.rint(geometry.index(image.geometry.world(index))).astype(int)
        assert image.array[index] == CT[tuple(there)]

    labels = (image.array + 12).astype(np.uint8)
    write_label(tmp_path / f"label{ending}", labels, image.source)
    back = read_label(tmp_path / f"label{ending}")
    np.testing.assert_array_equal(back.array, labels)
    np.testing.assert_allclose(back.geometry.world((1, 1, 1)), image.geometry.world((1, 1, 1)), atol=1e-4)
    if ending.startswith(".nii"):  # nibabel by itself finds the same: file order, and the affine to the last bit
        ct, label = nib.load(path), nib.load(tmp_path / f"label{ending}")
        np.testing.assert_array_equal(np.asarray(label.dataobj), np.asarray(ct.dataobj) + 12)
        np.testing.assert_array_equal(label.affine, ct.affine)


def test_nifti_is_ras_and_canonical_is_lps(tmp_path, nifti):
    # one bright voxel at i=3, j=0, k=1 of a RAS file: 4.5 mm to the right of the origin, which is the patient's right
    array = np.zeros((4, 3, 2), np.int16)
    array[3, 0, 1] = 7
    image = read_image(nifti(tmp_path / "ct.nii", array))
    index = tuple(np.argwhere(image.array == 7)[0])
    assert index == (1, 2, 0)  # superior slice; the file's anterior-most j is last since axis 1 runs to posterior; right is first
    np.testing.assert_allclose(image.geometry.world(index) * LPS_TO_RAS, (4.5, 0, 3))


def test_nifti_and_simpleitk_agree_about_the_world(tmp_path):
    c, s = np.cos(0.3), np.sin(0.3)
    oblique = Geometry(GRID.shape, GRID.spacing_mm, GRID.origin_mm, ((0.0, -s, c), (0.0, c, s), (1.0, 0.0, 0.0)))
    for ending in ENDINGS:
        write_volume(tmp_path / f"ct{ending}", CT, oblique)
        ours, theirs = read_image(tmp_path / f"ct{ending}"), sitk.ReadImage(str(tmp_path / f"ct{ending}"))
        for k, j, i in np.ndindex(*GRID.shape):
            index = tuple(np.rint(ours.geometry.index(theirs.TransformIndexToPhysicalPoint((i, j, k)))).astype(int).tolist())
            assert ours.array[index] == theirs.GetPixel(i, j, k)


# Types and headers


@pytest.mark.parametrize("dtype, value, expected", [
    (np.int16, 5, np.int16), (np.uint8, 5, np.int16), (np.int32, 32767, np.int16), (np.float32, -1024.0, np.int16),
    (np.float64, 3.0, np.int16),
    (np.int32, 32768, np.float32), (np.uint16, 40000, np.float32), (np.float32, 0.5, np.float32), (np.float64, -32769.0, np.float32),
])  # fmt: skip
def test_whole_numbers_that_fit_become_int16(tmp_path, dtype, value, expected, nifti):
    array = np.zeros((4, 3, 2), dtype)
    array[0, 0, 0] = value
    image = read_image(nifti(tmp_path / "ct.nii.gz", array))
    assert image.array.dtype == expected and value in image.array


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32"])
def test_a_grid_is_known_from_the_header_alone(tmp_path, ending, dtype):
    path = tmp_path / f"ct{ending}"
    write_volume(path, np.abs(CT).astype(dtype), oriented((1, 2, 0), (1, -1, 1)))
    assert read_grid(path) == (read_image(path).geometry, np.dtype(dtype))
    if ending == ".nii.gz":
        path.write_bytes(path.read_bytes()[:-1])
        assert read_grid(path)[1] == dtype  # whether its voxels are whole is found by reading them
        with pytest.raises(ImageError, match="cannot be read"):
            read_image(path)


def test_the_grid_of_a_scaled_file_and_of_none(tmp_path, nifti):
    path = nifti(tmp_path / "ct.nii", np.arange(24, dtype=np.int16).reshape(4, 3, 2), scl_slope=2, scl_inter=0)
    assert read_grid(path)[1] == np.float32
    for name in ("none.nii.gz", "scan.jpg"):
        with pytest.raises(ImageError, match="no such image file|not a known image format"):
            read_grid(tmp_path / name)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32", "float64"])
def test_scaled_values_are_those_of_nibabel(tmp_path, nifti, dtype):
    values = np.random.default_rng(0).integers(0, 255, (4, 3, 5)).astype(dtype)
    path = nifti(tmp_path / "ct.nii", values, scl_slope=0.1, scl_inter=-7.3)
    assert np.array_equal(read_image(path).array, np.asarray(nib.load(path).dataobj, np.float32).T[:, ::-1, ::-1])


@pytest.mark.parametrize("slope, inter, expected", [(1, -1024, -1024), (2, 0, 0), (2, 10, 10), (np.nan, 5, 0), (0, 5, 0)])
def test_rescaling_is_applied(tmp_path, slope, inter, expected, nifti):
    path = nifti(tmp_path / "ct.nii", np.arange(24, dtype=np.int16).reshape(4, 3, 2), scl_slope=slope, scl_inter=inter)
    image = read_image(path)
    used = 1 if not np.isfinite(slope) or slope == 0 else slope  # the standard: 0 means no scaling
    assert image.array.dtype == np.int16
    assert (image.array.min(), image.array.max()) == (expected, expected + 23 * used)


def test_a_last_axis_of_one_is_squeezed(tmp_path, nifti):
    image = read_image(nifti(tmp_path / "ct.nii.gz", CT.T[..., None]))
    np.testing.assert_array_equal(np.sort(image.array.ravel()), CT.ravel())
    write_label(tmp_path / "label.nii.gz", np.ones(image.array.shape, np.uint8), image.source)
    assert nib.load(tmp_path / "label.nii.gz").shape == (4, 3, 2)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_label_keeps_the_header_of_its_image(tmp_path, kind):
    affine = np.array([[-0.9765625, 0, 0, 123.4567], [0, 0.9765625, 0, -77.1], [0, 0, 2.5000012, 1 / 3], [0, 0, 0, 1]])
    image = kind(CT.T, affine)
    image.set_sform(affine, code=2)
    image.set_qform(affine, code=1)
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"], image.header["cal_max"] = b"scanner", 400
    image.header.set_slope_inter(0.5, -3)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Jane Doe"))
    image.to_filename(tmp_path / "ct.nii.gz")
    source = read_image(tmp_path / "ct.nii.gz").source
    write_label(tmp_path / "label.nii.gz", np.ones(CT.shape, np.int64), source)

    ct, label = nib.load(tmp_path / "ct.nii.gz"), nib.load(tmp_path / "label.nii.gz")
    assert type(label) is type(ct) is kind
    for field in ("srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z", "sform_code",
                  "qform_code", "pixdim", "dim", "xyzt_units", "descrip"):
        np.testing.assert_array_equal(label.header[field], ct.header[field], err_msg=field)
    assert label.get_data_dtype() == np.uint8 and (label.dataobj.slope, label.dataobj.inter) == (1, 0)
    assert label.header["cal_max"] == 0 and not label.header.extensions  # of the CT, not of the label


def test_a_big_endian_file(tmp_path):
    nib.Nifti1Image(CT.T, np.diag([1.5, 2, 3, 1]), nib.Nifti1Header(endianness=">")).to_filename(tmp_path / "ct.nii")
    image = read_image(tmp_path / "ct.nii")
    assert image.array.dtype == np.dtype("<i2") and sorted(image.array.ravel()) == CT.ravel().tolist()
    write_label(tmp_path / "label.nii", (image.array + 12).astype(np.uint16) * 100, image.source)
    np.testing.assert_array_equal(read_label(tmp_path / "label.nii").array, (image.array + 12) * 100)


@pytest.mark.parametrize("target", ENDINGS)
@pytest.mark.parametrize("source", ENDINGS)
def test_labels_can_be_written_in_any_format(tmp_path, source, target):
    write_volume(tmp_path / f"ct{source}", CT, oriented((1, 2, 0), (-1, 1, -1)))
    image = read_image(tmp_path / f"ct{source}")
    labels = (image.array + 12).astype(np.uint8)
    write_label(tmp_path / f"label{target}", labels, image.source)
    back = read_label(tmp_path / f"label{target}")
    np.testing.assert_array_equal(back.array, labels)
    assert back.source.geometry.shape == CT.shape  # the file's own order, not the canonical one
    np.testing.assert_allclose(back.geometry.world((1, 2, 3)), image.geometry.world((1, 2, 3)), atol=1e-4)


@pytest.mark.parametrize("ending", ENDINGS)
def test_three_hundred_labels(tmp_path, ending):
    labels = np.arange(300, dtype=np.uint16).reshape(5, 6, 10)
    write_volume(tmp_path / f"a{ending}", labels, Geometry(labels.shape, (3.0, 1.0, 1.0)))
    image = read_label(tmp_path / f"a{ending}")
    assert image.array.dtype == np.uint16
    write_label(tmp_path / f"b{ending}", image.array, image.source)
    np.testing.assert_array_equal(read_label(tmp_path / f"b{ending}").array, image.array)
    assert set(image.array.ravel()) == set(range(300))


# Bad files


KINDS = [(".nii", False), (".nii.gz", True), (".nrrd", False), (".nrrd", True), (".mha", False), (".mha", True)]


@pytest.mark.parametrize("missing", [1, 9, 1000, 15000])
@pytest.mark.parametrize("ending, compressed", KINDS)
def test_truncated(ending, compressed, missing, written, refused):
    path = written(ending, compressed)
    path.write_bytes(path.read_bytes()[:-missing])
    refused(path, "truncated|cannot be read|header", read_image)
    refused(path, "truncated|cannot be read|header", read_label)


@pytest.mark.parametrize("ending, compressed", KINDS)
@pytest.mark.parametrize("kept", [0, 3, 40])
def test_cut_in_the_header(ending, compressed, kept, written, refused):
    path = written(ending, compressed)
    path.write_bytes(path.read_bytes()[:kept])
    refused(path, "; ")


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
@pytest.mark.parametrize("byte", [-8, -4, -3000])  # checksum, length, data
def test_a_flipped_byte_in_a_gzip_stream(ending, byte, written, refused):
    path = written(ending, True)
    content = bytearray(path.read_bytes())
    content[byte] ^= 1
    path.write_bytes(content)
    refused(path, "cannot be read|truncated")


def test_nan_and_infinite_voxels_are_counted(tmp_path, nifti, write_itk, refused):
    array = np.zeros((4, 3, 2), np.float32)
    array[0, 0], array[1, 1, 1] = np.nan, np.inf
    for write in (nifti, lambda path, a: write_itk(path, a.T)):
        for ending in (".nii.gz",) if write is nifti else (".nrrd", ".mha"):
            path = tmp_path / f"ct{ending}"
            write(path, array)
            refused(path, "3 of 24 voxels are NaN or infinite; export the image again")


@pytest.mark.parametrize("shape, told", [
    ((4, 3), r"its shape \(4, 3\) is not three-dimensional; give one 3D image per file"),
    ((4, 3, 2, 2), r"its shape \(4, 3, 2, 2\) is not three-dimensional"),
    ((4, 3, 2, 1, 3), r"its shape \(4, 3, 2, 1, 3\) is not three-dimensional"),
    ((4, 3, 1), r"its shape \(1, 3, 4\) is no volume"),
])  # fmt: skip
def test_not_three_dimensional(tmp_path, shape, told, nifti, refused):
    refused(nifti(tmp_path / "ct.nii.gz", np.arange(np.prod(shape), dtype=np.int16).reshape(shape)), told)


def test_not_three_dimensional_in_other_formats(tmp_path, write_itk, refused):
    for ending in (".nrrd", ".mha"):
        refused(write_itk(tmp_path / f"flat{ending}", CT[0]), "not three-dimensional")
        joined = sitk.JoinSeries([sitk.GetImageFromArray(CT)] * 2)
        sitk.WriteImage(joined, str(tmp_path / f"film{ending}"))
        refused(tmp_path / f"film{ending}", "not three-dimensional")
    sitk.WriteImage(sitk.JoinSeries([sitk.GetImageFromArray(CT)]), str(tmp_path / "one.mha"))
    np.testing.assert_array_equal(read_image(tmp_path / "one.mha").array, CT)


def test_colours(tmp_path, nifti, refused):
    rgb = np.zeros((4, 3, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    refused(nifti(tmp_path / "rgb.nii", rgb), "colours or complex numbers.*export it as a greyscale image")
    refused(nifti(tmp_path / "complex.nii", np.ones((4, 3, 2), np.complex64)), "colours or complex numbers")
    for ending in (".nrrd", ".mha"):
        path = tmp_path / f"rgb{ending}"
        sitk.WriteImage(sitk.Compose([sitk.GetImageFromArray(CT)] * 3), str(path))
        refused(path, r"colours or vectors \(3 numbers each\)")


@pytest.mark.parametrize("spacing", [0.0, -1.5, 0.01, 51.0, np.nan, np.inf])
def test_spacing_that_cannot_be(tmp_path, spacing, nifti, refused):
    # in pixdim and in the sform, so that neither contradicts the other
    refused(nifti(tmp_path / "ct.nii", pixdim=[1, spacing, 2, 3, 0, 0, 0, 0], srow_x=[spacing, 0, 0, 0]), "spacing|affine holds NaN")


def test_sform_and_qform_must_agree(tmp_path, refused):
    affine = np.diag([1.5, 2.0, 3.0, 1.0])
    for shift_mm, fine in ((0.09, True), (0.11, False)):
        image = nib.Nifti1Image(CT.T, affine)
        moved = affine.copy()
        moved[0, 3] = shift_mm
        image.set_sform(affine, code=1)
        image.set_qform(moved, code=1)
        image.to_filename(tmp_path / "ct.nii")
        if fine:
            read_image(tmp_path / "ct.nii")
        else:
            refused(tmp_path / "ct.nii", r"sform and qform place a corner 0\.11 mm apart \(over 0\.1\); mend the header")


def test_a_spacing_told_in_two_ways(tmp_path, nifti, refused):
    path = nifti(tmp_path / "ct.nii", pixdim=[1, 1.5, 2, 6, 0, 0, 0, 0])
    refused(path, r"pixdim says a spacing .* of \[6\.0, 2\.0, 1\.5\] mm but the affine \[3\.0, 2\.0, 1\.5\] mm")


def test_an_unknown_orientation(tmp_path, nifti, refused):
    refused(nifti(tmp_path / "ct.nii", sform_code=0, qform_code=0), "neither sform nor qform is set, so left and right are unknown")


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_is_no_such_file(tmp_path, ending, refused):
    refused(tmp_path / f"none{ending}", "no such image file; check the path")
    (tmp_path / f"folder{ending}").mkdir()
    refused(tmp_path / f"folder{ending}", "no such image file")
    (tmp_path / f"text{ending}").write_text("hello " * 200)
    refused(tmp_path / f"text{ending}", "; ")


def test_an_unknown_format(tmp_path, refused):
    refused(tmp_path / "ct.png", r"not a known image format; use one of \.nii\.gz, \.nii, \.nrrd, \.mha")


def test_a_header_that_asks_for_terabytes(tmp_path, nifti, refused):
    refused(nifti(tmp_path / "ct.nii", dim=[3, 30000, 30000, 30000, 1, 1, 1, 1]), "truncated: its header asks for 54000000000352 bytes")
    (tmp_path / "ct.nii.gz").write_bytes(gzip.compress((tmp_path / "ct.nii").read_bytes()))
    refused(tmp_path / "ct.nii.gz", "truncated: its header asks for 54000000000352 bytes")


@pytest.mark.parametrize("dim", [(3, 3, 3, 2), (3, 4, 2, 2)])  # one less than (4, 3, 2)
def test_a_header_that_asks_for_fewer_voxels(tmp_path, nifti, refused, dim):
    """What is read would have its voxels at wrong places."""
    path = nifti(tmp_path / "ct.nii", dim=[*dim, 1, 1, 1, 1])
    told = r"its header asks for \d+ bytes but it holds 400, so its shape or its voxels' type is wrong; copy or export it again"
    refused(path, told)
    (tmp_path / "ct.nii.gz").write_bytes(gzip.compress(path.read_bytes()))
    refused(tmp_path / "ct.nii.gz", told)


def test_a_header_of_a_smaller_type(tmp_path, nifti, refused):
    refused(nifti(tmp_path / "ct.nii", datatype=2, bitpix=8), "its header asks for 376 bytes but it holds 400")  # uint8 instead of int16


@pytest.mark.parametrize("ending", [".nii", ".nrrd", ".mha"])
def test_mutated_headers_are_refused_or_read_whole(ending, written):
    path = written(ending, False)
    original, rng, outcomes = path.read_bytes(), random.Random(0), {"read": 0, "refused": 0}
    for _ in range(150):
        content = bytearray(original)
        for _ in range(rng.choice((1, 2, 5))):
            content[rng.randrange(300)] = rng.choice((rng.randrange(256), ord(rng.choice("0123456789-. \n"))))
        path.write_bytes(content)
        try:
            image = read_image(path)
            assert image.array.size == 8000 and np.isfinite(image.array).all()
            outcomes["read"] += 1
        except ImageError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 10  # both happen


# Writing


def test_labels_of_another_shape_or_kind_are_refused(tmp_path, nifti):
    source = read_image(nifti(tmp_path / "ct.nii.gz")).source
    with pytest.raises(ImageError, match=r"labels of shape \(2, 3, 5\) do not fit .*ct.nii.gz of shape \(2, 3, 4\)"):
        write_label(tmp_path / "label.nii.gz", np.zeros((2, 3, 5), np.uint8), source)
    with pytest.raises(ImageError, match=r"it holds -1 \(24 voxels\)"):
        write_label(tmp_path / "label.nii.gz", np.full((2, 3, 4), -1), source)
    with pytest.raises(ImageError, match="not a known image format"):
        write_label(tmp_path / "label.png", np.zeros((2, 3, 4), np.uint8), source)
    with pytest.raises(ImageError, match=r"array of shape \(2, 3, 5\) differs from its geometry's \(2, 3, 4\)"):
        write_volume(tmp_path / "a.nrrd", np.zeros((2, 3, 5)), GRID)
    assert [p.name for p in tmp_path.iterdir()] == ["ct.nii.gz"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_write_that_comes_out_wrong_leaves_the_old_file(tmp_path, monkeypatch, ending):
    write_volume(tmp_path / f"a{ending}", CT, GRID)
    before = (tmp_path / f"a{ending}").read_bytes()
    monkeypatch.setattr("os.fsync", lambda handle: os.ftruncate(handle, os.fstat(handle).st_size // 2))  # what a full disk may leave
    with pytest.raises(WorkspaceError, match="cannot be read back after writing; the disk may be full or failing"):
        write_volume(tmp_path / f"a{ending}", CT + 1, GRID)
    assert (tmp_path / f"a{ending}").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.uint16, np.int64, np.float32, np.float64])
@pytest.mark.parametrize("ending", ENDINGS)
def test_write_volume_takes_every_usual_type(tmp_path, dtype, ending):
    array = (np.arange(24).reshape(GRID.shape) % 2).astype(dtype)
    write_volume(tmp_path / f"a{ending}", array, GRID)
    np.testing.assert_array_equal(read_label(tmp_path / f"a{ending}").array, array)


def test_equal_labels_make_equal_files(tmp_path, nifti):
    source = read_image(nifti(tmp_path / "ct.nii.gz")).source
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_label(tmp_path / name / "label.nii.gz", np.ones((2, 3, 4), np.uint8), source)
    assert (tmp_path / "a" / "label.nii.gz").read_bytes() == (tmp_path / "b" / "label.nii.gz").read_bytes()


# Real data


def test_real_scans_and_labels(real_data, tmp_path):
    folder = real_data / "raw" / "Dataset015_HeadNeckKBP"
    ct, label = sorted((folder / "imagesTr").glob("*.nii.gz"))[0], sorted((folder / "labelsTr").glob("*.nii.gz"))[0]
    image, labels = read_image(ct), read_label(label)
    assert image.array.dtype == np.int16 and image.array.min() == -1000 and image.array.shape == labels.array.shape
    write_label(tmp_path / "label.nii.gz", labels.array, image.source)
    ours, theirs = nib.load(tmp_path / "label.nii.gz"), nib.load(label)
    np.testing.assert_array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))
    np.testing.assert_array_equal(ours.affine, nib.load(ct).affine)
