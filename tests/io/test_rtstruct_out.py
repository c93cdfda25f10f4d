"""RTSTRUCTs of label maps: masks that come back, what the file refers to and says, and that the standard's rules are kept."""
from dataclasses import replace
from datetime import datetime

import numpy as np
import pydicom
import pytest
from scipy import ndimage

from c2f_nnunet.errors import ImageError, WorkspaceError
from c2f_nnunet.geometry import Geometry, reorientation
from c2f_nnunet.io.dicom import read_series
from c2f_nnunet.io.images import Source, read_label
from c2f_nnunet.io.rtstruct_in import full_mask, read_rtstruct
from c2f_nnunet.io.rtstruct_out import NOTICE, write_rtstruct
from c2f_nnunet.io.series import series_reference
from c2f_nnunet.labels import LabelSet
from tests.io.dicom_rules import broken_rules, dciodvfy
from tests.io.rt_files import FRAME, PATIENT, SERIES, STUDY, Scan, dice, scan

ORGANS = LabelSet(("BrainStem", "Parotid_L", "Parotid_R"), (1, 3, 7))
MADE = datetime(2026, 3, 4, 15, 16, 17)


@pytest.fixture(scope="module")
def ct(tmp_path_factory):
    return scan(tmp_path_factory.mktemp("series") / "ct")  # 6 slices of 20 rows and 24 columns


def example():
    """Three organs: a box, a ring of two pieces with a hole, and a single voxel."""
    labels = np.zeros((6, 20, 24), np.uint8)
    labels[1:4, 2:9, 3:8] = 1
    labels[2:5, 10:18, 10:20] = 3
    labels[2:5, 12:15, 13:16] = 0
    labels[3, 1:3, 15:17] = 3
    labels[5, 19, 23] = 7
    return labels


def written(made, labels, path, organs=ORGANS):
    write_rtstruct(path, labels, organs, made.image.source, made.series, MADE)
    return read_rtstruct(path, made.image.geometry, made.series)


def comes_back(made, labels, path, organs=ORGANS):
    rtstruct = written(made, labels, path, organs)
    for structure in rtstruct.structures:
        i = dict(zip(organs.organs, organs.ids))[structure.name]
        np.testing.assert_array_equal(full_mask(rtstruct, structure), labels == i, err_msg=structure.name)
        assert not structure.refusal
    return rtstruct


def test_masks_names_numbers_and_colours_come_back(ct, tmp_path):
    rtstruct = comes_back(ct, example(), tmp_path / "rt.dcm")
    assert [(s.number, s.name, s.interpreted_type, s.notes) for s in rtstruct.structures] == [
        (1, "BrainStem", "ORGAN", ()), (3, "Parotid_L", "ORGAN", ()), (7, "Parotid_R", "ORGAN", ())]  # fmt: skip
    assert rtstruct.structures[1].colour == tuple(round(255 * c) for c in ORGANS.colour("Parotid_L"))
    assert rtstruct.notes == () and rtstruct.label == "AI, not reviewed"


@pytest.mark.parametrize("degrees, down", [(0, True), (12, False), (90, False), (180, True), (-33, True)])
def test_any_axial_orientation(tmp_path, degrees, down):
    """Feet first, prone, on the side, and a head turned in an axial scan."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turned = scan(tmp_path / "ct", orientation=(c, s, 0, *((s, -c, 0) if down else (-s, c, 0))), first=(80, -60, 10))
    shape = turned.image.geometry.shape
    labels = np.random.default_rng(0).choice(np.array([0, 1, 3, 7], np.uint8), shape)
    comes_back(turned, labels, tmp_path / "rt.dcm")


@pytest.mark.parametrize("seed", range(8))
def test_random_blobs_of_touching_organs(ct, tmp_path, seed):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(6, 20, 24)), (0.5, 1, 1))
    labels = np.array([0, 1, 3, 7], np.uint8)[np.digitize(noise, np.quantile(noise, [0.3, 0.55, 0.8]))]
    comes_back(ct, labels, tmp_path / "rt.dcm")


def test_a_ball_of_any_size(tmp_path):
    """From one voxel to 10 ml, on a grid whose spacings and origin have no end of digits."""
    made = scan(tmp_path / "ct", shape=(21, 48, 48), spacing=(1.2345678, 0.9765625, 0.68359375), first=(-13.337, 7.7777, -999.125))
    grid = made.image.geometry
    at = grid.world(np.stack(np.indices(grid.shape), -1)) - grid.world((10, 24, 24))
    for radius in (0.3, 1, 2, 5, 12):
        labels = (np.linalg.norm(at, axis=-1) <= radius).astype(np.uint8)
        comes_back(made, labels, tmp_path / "rt.dcm")


def test_what_the_file_refers_to(ct, tmp_path):
    written(ct, example(), tmp_path / "rt.dcm")
    dataset = pydicom.dcmread(tmp_path / "rt.dcm")
    assert {keyword: dataset[keyword].value for keyword in PATIENT} == PATIENT
    assert dataset.StudyInstanceUID == STUDY and dataset.FrameOfReferenceUID == FRAME
    assert dataset.SeriesInstanceUID not in (SERIES, STUDY) and dataset.SOPInstanceUID not in (dataset.SeriesInstanceUID, SERIES)
    (frame,) = dataset.ReferencedFrameOfReferenceSequence
    (study,) = frame.RTReferencedStudySequence
    (series,) = study.RTReferencedSeriesSequence
    assert (frame.FrameOfReferenceUID, study.ReferencedSOPInstanceUID, series.SeriesInstanceUID) == (FRAME, STUDY, SERIES)
    assert [i.ReferencedSOPInstanceUID for i in series.ContourImageSequence] == [i.uid for i in ct.series.instances]
    depth = {i.uid: i.position_mm[2] for i in ct.series.instances}
    for drawn in dataset.ROIContourSequence:
        for contour in drawn.ContourSequence:
            points = np.reshape(contour.ContourData, (-1, 3))
            (image,) = contour.ContourImageSequence
            assert len(points) == contour.NumberOfContourPoints >= 4 and contour.ContourGeometricType == "CLOSED_PLANAR"
            np.testing.assert_allclose(points[:, 2], depth[image.ReferencedSOPInstanceUID], atol=1e-4)


def test_contours_lie_in_the_planes_of_slices_with_rounded_positions(tmp_path):
    """Gaps of 0.62 and 0.63 mm: the even grid's planes are up to 0.005 mm off, the contours are not."""
    files = scan(tmp_path / "ct", spacing=(0.625, 1.25, 0.8)).files
    for path in files:
        header = pydicom.dcmread(path)
        header.ImagePositionPatient = [f"{v:.2f}" for v in header.ImagePositionPatient]
        header.save_as(path)
    made = Scan(files, read_series(files), series_reference(files))
    comes_back(made, example(), tmp_path / "rt.dcm")
    contours = [c for drawn in pydicom.dcmread(tmp_path / "rt.dcm").ROIContourSequence for c in drawn.ContourSequence]
    heights = {float(z) for contour in contours for z in contour.ContourData[2::3]}
    assert heights == {i.position_mm[2] for i in made.series.instances[1:]}  # the lowest slice holds no organ


def test_contours_lie_on_the_voxels_edges(ct, tmp_path):
    labels = np.zeros((6, 20, 24), np.uint8)
    labels[4, 6, 9] = 1
    written(ct, labels, tmp_path / "rt.dcm")
    (contour,) = pydicom.dcmread(tmp_path / "rt.dcm").ROIContourSequence[0].ContourSequence
    x, y, z = -100 + 9 * 0.8, 50.5 + 6 * 1.25, -320.25 + 4 * 3
    expected = [(x - 0.4, y, z), (x, y - 0.625, z), (x, y + 0.625, z), (x + 0.4, y, z)]
    # less than 0.003 mm within them
    np.testing.assert_allclose(sorted(map(tuple, np.reshape(contour.ContourData, (-1, 3)).astype(float))), expected, atol=3e-3)


def test_it_says_that_nobody_has_reviewed_it(ct, tmp_path):
    written(ct, example(), tmp_path / "rt.dcm")
    dataset = pydicom.dcmread(tmp_path / "rt.dcm")
    assert dataset.SeriesDescription == dataset.StructureSetName == NOTICE == "AI-generated, not for clinical use without review"
    assert dataset.StructureSetDescription.startswith(NOTICE) and dataset.StructureSetLabel == "AI, not reviewed"
    assert dataset.ApprovalStatus == "UNAPPROVED"
    assert (dataset.StructureSetDate, dataset.StructureSetTime) == ("20260304", "151617")
    for structure, observed in zip(dataset.StructureSetROISequence, dataset.RTROIObservationsSequence):
        assert structure.ROIGenerationAlgorithm == "AUTOMATIC" and structure.ROIDescription == NOTICE
        assert observed.RTROIInterpretedType == "ORGAN" and observed.ROIInterpreter == "AI^c2f_nnunet"


def test_the_same_arguments_give_the_same_file_and_another_time_another_object(ct, tmp_path):
    path = tmp_path / "rt.dcm"
    written(ct, example(), path)
    first, uids = path.read_bytes(), {pydicom.dcmread(path).SOPInstanceUID}
    written(ct, example(), path)
    assert path.read_bytes() == first
    write_rtstruct(path, example(), ORGANS, ct.image.source, ct.series)  # now
    uids.add(pydicom.dcmread(path).SOPInstanceUID)
    labels = example()
    labels[0, 0, 0] = 1
    written(ct, labels, path)
    uids.add(pydicom.dcmread(path).SOPInstanceUID)
    assert len(uids) == 3


def test_identifiers_that_break_a_rule_are_copied_without_a_word(ct, tmp_path):
    """Numbers of a UID with zeros in front, as some systems make them of a date."""
    series = replace(ct.series, study="1.2.03.4", series="1.2.03.5", frame="1.2.03.6",
                     instances=tuple(replace(i, uid=f"1.2.03.{k}") for k, i in enumerate(ct.series.instances)))  # fmt: skip
    write_rtstruct(tmp_path / "rt.dcm", example(), ORGANS, ct.image.source, series, MADE)
    with pydicom.config.disable_value_validation():
        dataset = pydicom.dcmread(tmp_path / "rt.dcm")
        assert (dataset.StudyInstanceUID, dataset.FrameOfReferenceUID) == ("1.2.03.4", "1.2.03.6")
    rtstruct = read_rtstruct(tmp_path / "rt.dcm", ct.image.geometry, series)
    np.testing.assert_array_equal(full_mask(rtstruct, rtstruct.structures[0]), example() == 1)


def test_organs_without_voxels(ct, tmp_path):
    labels = example()
    labels[labels == 3] = 0
    assert [s.name for s in written(ct, labels, tmp_path / "rt.dcm").structures] == ["BrainStem", "Parotid_R"]
    rtstruct = written(ct, np.zeros_like(labels), tmp_path / "rt.dcm")
    assert [s.name for s in rtstruct.structures] == list(ORGANS.organs)
    assert not any(full_mask(rtstruct, s).any() for s in rtstruct.structures)


def test_long_and_odd_names(ct, tmp_path):
    organs = LabelSet(("Ohrspeicheldrüse links", "A\\B", "x" * 80), (1, 3, 7))
    names = [s.name for s in written(ct, example(), tmp_path / "rt.dcm", organs).structures]
    assert names == ["Ohrspeicheldrüse links", "A_B", "x" * 64]


def test_many_points_in_one_contour(tmp_path):
    """Beyond 64 kB, which explicit VR could not hold."""
    made = scan(tmp_path / "ct", shape=(2, 90, 90))
    labels = np.ones((2, 90, 90), np.uint8)
    labels[:, 1::3, 1::3] = 0
    comes_back(made, labels, tmp_path / "rt.dcm")
    dataset = pydicom.dcmread(tmp_path / "rt.dcm")
    assert len(dataset.ROIContourSequence[0].ContourSequence[0].get_item("ContourData").value) > 65536


def test_what_does_not_fit(ct, tmp_path):
    path = tmp_path / "rt.dcm"
    other = Geometry((6, 20, 25), (3.0, 1.25, 0.8))
    labels = example()
    labels[0, 0, 0] = 2
    no_frame = scan(tmp_path / "no_frame", FrameOfReferenceUID="")
    coronal = scan(tmp_path / "coronal", orientation=(1, 0, 0, 0, 0, -1))
    tilted = scan(tmp_path / "tilted", orientation=(1, 0, 0, 0, 0.995, -0.1))
    wide = Source(ct.files[0], other, reorientation(other))
    for values, source, series, told in (
        (example(), wide, ct.series, r"labels of shape \(6, 20, 24\) do not fit .* \(6, 20, 25\)"),
        (labels, ct.image.source, ct.series, "the labels hold 2, which no organ has"),
        (example(), ct.image.source, series_reference(ct.files[:5]), "the 5 slices of the series are not the 6 axial slices"),
        (example(), no_frame.image.source, no_frame.series, "has no frame of reference, so nothing can be placed in it"),
        (np.zeros(coronal.image.array.shape, np.uint8), coronal.image.source, coronal.series, "an axial one"),
        (np.zeros(tilted.image.array.shape, np.uint8), tilted.image.source, tilted.series, "its slices are tilted by 5.7° from axial ones"),
    ):  # fmt: skip
        with pytest.raises(ImageError, match=told) as found:
            write_rtstruct(path, values, ORGANS, source, series)
        assert "\n" not in str(found.value) and not path.exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkspaceError, match="could not be written"):
        write_rtstruct(tmp_path / "file" / "rt.dcm", example(), ORGANS, ct.image.source, ct.series)


# The standard's rules


# attributes of type 1 (must have a value) and 2 (must be there, may be empty) of the mandatory modules of PS3.3 A.19.3, and of Approval
# and Frame of Reference, by the sequence that they lie in
TYPE_1 = {
    "": ["StudyInstanceUID", "Modality", "SeriesInstanceUID", "StructureSetLabel", "StructureSetROISequence", "ROIContourSequence",
         "RTROIObservationsSequence", "SOPClassUID", "SOPInstanceUID", "ApprovalStatus", "FrameOfReferenceUID", "SpecificCharacterSet"],
    "ReferencedFrameOfReferenceSequence": ["FrameOfReferenceUID"],
    "RTReferencedStudySequence": ["ReferencedSOPClassUID", "ReferencedSOPInstanceUID", "RTReferencedSeriesSequence"],
    "RTReferencedSeriesSequence": ["SeriesInstanceUID", "ContourImageSequence"],
    "ContourImageSequence": ["ReferencedSOPClassUID", "ReferencedSOPInstanceUID"],
    "StructureSetROISequence": ["ROINumber", "ReferencedFrameOfReferenceUID"],
    "ROIContourSequence": ["ReferencedROINumber"],
    "ContourSequence": ["ContourGeometricType", "NumberOfContourPoints", "ContourData"],
    "RTROIObservationsSequence": ["ObservationNumber", "ReferencedROINumber"],
}  # fmt: skip
TYPE_2 = {
    "": ["PatientName", "PatientID", "PatientBirthDate", "PatientSex", "ReferringPhysicianName", "StudyDate", "StudyTime", "StudyID",
         "AccessionNumber", "OperatorsName", "SeriesNumber", "Manufacturer", "StructureSetDate", "StructureSetTime",
         "PositionReferenceIndicator"],
    "StructureSetROISequence": ["ROIName", "ROIGenerationAlgorithm"],
    "RTROIObservationsSequence": ["RTROIInterpretedType", "ROIInterpreter"],
}  # fmt: skip


def test_every_attribute_that_the_standard_asks_for(ct, tmp_path):
    written(ct, example(), tmp_path / "rt.dcm")
    dataset = pydicom.dcmread(tmp_path / "rt.dcm")
    assert broken_rules(dataset, TYPE_1, TYPE_2) == []
    assert dataset.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2"
    assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
    del dataset.PatientID, dataset.ROIContourSequence[1].ContourSequence[0].ContourData
    dataset.StructureSetROISequence[0].ROINumber = None
    assert broken_rules(dataset, TYPE_1, TYPE_2) == ["/PatientID is missing", "StructureSetROISequence/ROINumber has no value",
                                     "ContourSequence/ContourData has no value"]  # fmt: skip


def test_patients_of_whom_the_series_says_nothing(tmp_path):
    made = scan(tmp_path / "ct", PatientName="", PatientID="", PatientBirthDate="", PatientSex="", StudyDate="", StudyTime="", StudyID="",
                AccessionNumber="", StudyDescription="")  # fmt: skip
    comes_back(made, example(), tmp_path / "rt.dcm")
    assert broken_rules(pydicom.dcmread(tmp_path / "rt.dcm"), TYPE_1, TYPE_2) == []


def test_values_that_break_a_rule_are_empty_and_told(tmp_path, caplog):
    with pydicom.config.disable_value_validation():
        made = scan(tmp_path / "ct", PatientID="1" * 65)
    written(made, example(), tmp_path / "rt.dcm")
    assert pydicom.dcmread(tmp_path / "rt.dcm").PatientID == ""
    (said,) = caplog.messages
    assert said.startswith(f"{tmp_path / 'rt.dcm'}: PatientID of the CT: not as DICOM wants it, so left empty here") and "1111" not in said


def test_patients_in_other_alphabets(tmp_path):
    made = scan(tmp_path / "ct", SpecificCharacterSet="ISO_IR 192", PatientName="Müller^Zoë=山田^太郎")
    written(made, example(), tmp_path / "rt.dcm")
    assert pydicom.dcmread(tmp_path / "rt.dcm").PatientName == "Müller^Zoë=山田^太郎"


def test_dciodvfy_finds_nothing_wrong(ct, tmp_path):
    written(ct, example(), tmp_path / "rt.dcm")
    assert dciodvfy(tmp_path / "rt.dcm", "RTStructureSet") == ([], [])
    dataset = pydicom.dcmread(tmp_path / "rt.dcm")
    del dataset.StructureSetLabel
    dataset.save_as(tmp_path / "rt.dcm")
    errors, _ = dciodvfy(tmp_path / "rt.dcm", "RTStructureSet")
    assert "StructureSetLabel" in "".join(errors)


# Real data


def test_a_real_ct_with_organs_made_up(real_data, tmp_path):
    """Balls, a shell and single voxels; 511 × 511 × 90 voxels of 1 × 1 × 3 mm."""
    files = sorted((real_data / "dicom" / "head_neck_ct").glob("*.dcm"))
    image, series = read_series(files), series_reference(files)
    shape, labels = image.array.shape, np.zeros(image.array.shape, np.uint8)
    grid = [np.arange(n).reshape([-1 if a == b else 1 for b in range(3)]) for a, n in enumerate(shape)]
    sizes = ((1, (30, 250, 250), 25, 0), (2, (45, 200, 300), 12, 8), (3, (45, 200, 240), 3, 0), (4, (60, 260, 260), 40, 34))
    for i, centre, outer, inner in sizes:  # id, voxel, radii in mm
        away = np.sqrt(sum(((g - c) * s) ** 2 for g, c, s in zip(grid, centre, image.geometry.spacing_mm)))
        labels[(away <= outer) & (away >= inner)] = i
    labels[70, 100, 100] = 5
    organs = LabelSet(("Ball", "Shell", "Small", "Skin", "Point"), (1, 2, 3, 4, 5))
    write_rtstruct(tmp_path / "rt.dcm", labels, organs, image.source, series)
    rtstruct = read_rtstruct(tmp_path / "rt.dcm", image.geometry, series)
    assert [s.name for s in rtstruct.structures] == list(organs.organs)
    for structure in rtstruct.structures:
        np.testing.assert_array_equal(full_mask(rtstruct, structure), labels == structure.number)


def test_real_organs_come_back(real_data, tmp_path):
    """104 organs of a chest, drawn by TotalSegmentator, on their CT."""
    folder = real_data / "dicom" / "chest_ct_rtstruct"
    files = sorted((folder / "dcm").glob("*.dcm"))[1:]  # the first lies beyond a missing slice
    image, series = read_series(files), series_reference(files)
    labels, names = np.zeros(image.array.shape, np.uint8), []
    for path in sorted((folder / "nii_seg").glob("*.nii.gz")):
        names.append(path.name.removesuffix(".nii.gz"))
        labels[read_label(path).array[1:] > 0] = len(names)
    organs = LabelSet(tuple(names), tuple(range(1, len(names) + 1)))
    write_rtstruct(tmp_path / "rt.dcm", labels, organs, image.source, series)
    rtstruct = read_rtstruct(tmp_path / "rt.dcm", image.geometry, series)
    assert len(rtstruct.structures) == len(np.unique(labels)) - 1 > 30
    assert min(dice(full_mask(rtstruct, s), labels == s.number) for s in rtstruct.structures) == 1
