"""FAULTS rows 22 to 26: scans and label maps whose files or voxels are damaged, through the commands."""
import nibabel as nib
import numpy as np
import pytest

from tests.faults.inputs import (
    DAMAGED, LABEL, Fault, at, convert, cut, edit_json, flipped, kept, refused_by_planning, skipped_by_prediction, voxels,
)  # fmt: skip

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")


# Damaged files


CUT = [Fault(cut(1), DAMAGED), Fault(cut(3000), DAMAGED), Fault(kept(200), DAMAGED), Fault(kept(0), DAMAGED)]


@pytest.mark.parametrize("ending", ENDINGS)
def test_row_22_truncated_files_at_planning(tiny, capsys, ending):
    if ending != ".nii.gz":
        convert(tiny.raw, ending)
    faults = {f"t{i}": fault for i, fault in enumerate(CUT)}
    refused_by_planning(tiny, capsys, f"imagesTr/{{}}_0000{ending}", faults)


def test_row_22_truncated_labels_at_planning(refuses):
    refuses(CUT[2:], LABEL)


@pytest.mark.parametrize("ending", ENDINGS)
def test_row_22_truncated_files_at_prediction(tiny_trained, tmp_path, capsys, ending):
    tiny = tiny_trained.copy(tmp_path / "w")
    if ending != ".nii.gz":
        convert(tiny.raw, ending)
        edit_json(tiny.folder.plan, lambda p: p | {"file_ending": ending})
    skipped_by_prediction(tiny, tmp_path, capsys, CUT, ending)


@pytest.mark.parametrize("harmed", ["imagesTr/t2_0000.nii.gz", "labelsTr/t2.nii.gz"])
def test_row_22_truncated_between_verifying_and_preprocessing(preprocessing_refuses, harmed):
    preprocessing_refuses(harmed, Fault(kept(200), DAMAGED))


# checksum, length, data, and the trailer cut off
GZIP = [Fault(flipped(-8), DAMAGED), Fault(flipped(-4), DAMAGED), Fault(flipped(-3000), DAMAGED), Fault(cut(8), DAMAGED)]


def test_row_23_gzip_damage_at_planning(refuses):
    refuses(GZIP)


def test_row_23_gzip_damage_at_prediction(skips):
    skips(GZIP)


@pytest.mark.parametrize("byte", [-8, -4])
def test_row_23_gzip_damage_between_verifying_and_preprocessing(preprocessing_refuses, byte):
    preprocessing_refuses("imagesTr/t1_0000.nii.gz", Fault(flipped(byte), DAMAGED))


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_row_23_damage_inside_other_compressed_files(tiny, tiny_trained, tmp_path, capsys, ending):
    convert(tiny.raw, ending)
    faults = [Fault(flipped(-2), DAMAGED), Fault(flipped(-3000), DAMAGED)]
    refused_by_planning(tiny, capsys, f"imagesTr/{{}}_0000{ending}", {f"t{i}": f for i, f in enumerate(faults)})
    tiny = tiny_trained.copy(tmp_path / "w")
    convert(tiny.raw, ending)
    edit_json(tiny.folder.plan, lambda p: p | {"file_ending": ending})
    skipped_by_prediction(tiny, tmp_path, capsys, faults, ending)


# Voxels


NOT_FINITE = [
    Fault(voxels(at(np.nan)), "1 of [0-9]+ voxels are NaN or infinite; export the image again"),
    Fault(voxels(at(np.inf, -np.inf)), "2 of [0-9]+ voxels are NaN or infinite; export the image again"),
    Fault(voxels(at(1e300), np.float64), "1 of [0-9]+ voxels are NaN or infinite"),  # beyond what a network computes with
]


def test_row_24_voxels_that_are_no_numbers_at_planning(refuses):
    refuses(NOT_FINITE)


def test_row_24_voxels_that_are_no_numbers_at_prediction(skips):
    skips(NOT_FINITE)


def test_row_24_voxels_that_are_no_numbers_at_preprocessing(preprocessing_refuses):
    preprocessing_refuses("imagesTr/t3_0000.nii.gz", NOT_FINITE[0])


CONSTANT = [
    Fault(voxels(np.zeros_like), "every voxel is 0, so it shows nothing; export the image again"),
    Fault(voxels(lambda a: np.full_like(a, -1024)), "every voxel is -1024, so it shows nothing"),
]


def test_row_25_an_image_of_one_value_at_planning(refuses):
    refuses(CONSTANT)


def test_row_25_an_image_of_one_value_at_prediction(skips):
    skips(CONSTANT)


def colours(path) -> None:
    image = nib.load(path)
    rgb = np.zeros(image.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.Nifti1Image(rgb, image.affine).to_filename(path)


NO_VOLUME = [
    Fault(voxels(lambda a: np.stack([a, a], -1)), "not three-dimensional; give one 3D image per file"),
    Fault(voxels(lambda a: a[:, :, 0]), "not three-dimensional"),
    Fault(voxels(lambda a: a[:, :, :1]), r"its shape \(1, .* is no volume; give a 3D image"),
    Fault(colours, "colours or complex numbers.*export it as a greyscale image"),
]


def test_row_26_what_is_no_greyscale_volume_at_planning(refuses):
    refuses(NO_VOLUME)


def test_row_26_what_is_no_greyscale_volume_at_prediction(skips):
    skips(NO_VOLUME)
