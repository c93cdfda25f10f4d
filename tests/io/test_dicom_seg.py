"""DICOM SEG: masks that come back by highdicom's own reader, what the file refers to, the standard's rules, the remedy without highdicom."""
import sys
from datetime import datetime

import numpy as np
import pydicom
import pytest
from skimage.color import lab2rgb

from c2f_nnunet.errors import ImageError
from c2f_nnunet.geometry import to_canonical
from c2f_nnunet.io.dicom import read_series
from c2f_nnunet.io.dicom_seg import write_dicom_seg
from c2f_nnunet.io.rtstruct_out import NOTICE
from c2f_nnunet.io.series import series_reference
from c2f_nnunet.labels import LabelSet
from tests.io.dicom_rules import broken_rules, dciodvfy
from tests.io.rt_files import FRAME, PATIENT, SERIES, STUDY, Scan, scan
from tests.io.test_dicom import without_preamble

ORGANS = LabelSet(("BrainStem", "Parotid_L", "Parotid_R"), (1, 3, 7))
MADE = datetime(2026, 3, 4, 15, 16, 17)


@pytest.fixture
def highdicom():
    return pytest.importorskip("highdicom", reason='highdicom is not installed (pip install "c2f-nnunet[seg]")')


def label_map(shape):
    labels = np.zeros(shape, np.uint8)
    labels[1:4, 2:9, 3:8], labels[2:5, 10:18, 10:16], labels[4, 0, 0] = 1, 3, 3
    return labels


def read_back(path, made, highdicom):
    """Canonical masks (z, y, x) by segment label, put on the grid by the SOP instances that the frames refer to."""
    segmentation = highdicom.seg.segread(path)
    uids = [instance.uid for instance in made.series.instances]
    frames = segmentation.get_pixels_by_source_instance(uids, ignore_spatial_locations=True, assert_missing_frames_are_empty=True)
    names = {n: segmentation.get_segment_description(n).segment_label for n in segmentation.segment_numbers}
    return {name: to_canonical(frames[..., n - 1], made.image.source.turn) > 0 for n, name in names.items()}


@pytest.mark.parametrize("orientation", [  # the last is tilted
    (1, 0, 0, 0, 1, 0), (-1, 0, 0, 0, -1, 0), (1, 0, 0, 0, -1, 0), (1, 0, 0, 0, 0, -1), (1, 0, 0, 0, 0.8, -0.6),
])  # fmt: skip
def test_masks_come_back(tmp_path, highdicom, orientation):
    made = scan(tmp_path / "ct", shape=(20, 20, 24), orientation=orientation)
    labels = label_map(made.image.array.shape)
    write_dicom_seg(tmp_path / "seg.dcm", labels, ORGANS, made.image.source, made.series, MADE)
    masks = read_back(tmp_path / "seg.dcm", made, highdicom)
    assert list(masks) == list(ORGANS.organs)
    for organ, i in zip(ORGANS.organs, ORGANS.ids):  # the right parotid has no voxel
        np.testing.assert_array_equal(masks[organ], labels == i)


def test_what_the_file_says_and_refers_to(tmp_path, highdicom):
    made = scan(tmp_path / "ct")
    write_dicom_seg(tmp_path / "seg.dcm", label_map((6, 20, 24)), ORGANS, made.image.source, made.series, MADE)
    dataset = pydicom.dcmread(tmp_path / "seg.dcm")
    assert dataset.SOPClassUID.name == "Segmentation Storage" and dataset.SegmentationType == "BINARY"
    assert (dataset.StudyInstanceUID, dataset.FrameOfReferenceUID) == (STUDY, FRAME)
    assert dataset.ReferencedSeriesSequence[0].SeriesInstanceUID == SERIES
    assert (dataset.PatientName, dataset.PatientID) == (PATIENT["PatientName"], PATIENT["PatientID"])
    assert dataset.SeriesDescription == dataset.ContentDescription == NOTICE and dataset.ContentQualification == "RESEARCH"
    assert {s.SegmentAlgorithmType for s in dataset.SegmentSequence} == {"AUTOMATIC"}
    for organ, segment in zip(ORGANS.organs, dataset.SegmentSequence):  # CIELab in 16 bits, PS3.3 C.10.7.1.1
        light, a, b = segment.RecommendedDisplayCIELabValue
        shown = lab2rgb([light / 655.35, a / 257 - 128, b / 257 - 128])
        np.testing.assert_allclose(shown, ORGANS.colour(organ), atol=0.01)
    uid = dataset.SOPInstanceUID
    write_dicom_seg(tmp_path / "seg.dcm", label_map((6, 20, 24)), ORGANS, made.image.source, made.series, MADE)
    assert pydicom.dcmread(tmp_path / "seg.dcm").SOPInstanceUID == uid


def test_the_slices_lie_as_far_apart_as_their_positions_say(tmp_path, highdicom):
    """SpacingBetweenSlices, an optional attribute of a CT, may be anything in its header, and it was copied from there."""
    made = scan(tmp_path / "ct", SpacingBetweenSlices="0.5")  # the slices are 3 mm apart
    write_dicom_seg(tmp_path / "seg.dcm", label_map((6, 20, 24)), ORGANS, made.image.source, made.series, MADE)
    measures = pydicom.dcmread(tmp_path / "seg.dcm").SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert (measures.SpacingBetweenSlices, *measures.PixelSpacing) == (3.0, 1.25, 0.8)


def test_a_series_of_files_without_a_preamble(tmp_path, highdicom):
    made = scan(tmp_path / "ct")
    for path in made.files:
        without_preamble(path)
    labels = label_map((6, 20, 24))
    write_dicom_seg(tmp_path / "seg.dcm", labels, ORGANS, made.image.source, made.series, MADE)
    np.testing.assert_array_equal(read_back(tmp_path / "seg.dcm", made, highdicom)["BrainStem"], labels == 1)


def test_directions_that_differ_in_rounding_among_the_slices(tmp_path, highdicom):
    made = scan(tmp_path / "ct")
    for k, path in enumerate(made.files):
        header = pydicom.dcmread(path)
        header.ImageOrientationPatient = [1, f"{1e-6 * k:.6f}", 0, f"{-1e-6 * k:.6f}", 1, 0]
        header.save_as(path)
    made = Scan(made.files, read_series(made.files), series_reference(made.files))
    write_dicom_seg(tmp_path / "seg.dcm", label_map((6, 20, 24)), ORGANS, made.image.source, made.series, MADE)
    np.testing.assert_array_equal(read_back(tmp_path / "seg.dcm", made, highdicom)["Parotid_L"], label_map((6, 20, 24)) == 3)
    orientation = pydicom.dcmread(tmp_path / "seg.dcm").SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
    assert orientation.ImageOrientationPatient == [1, 0, 0, 0, 1, 0]


def test_a_label_map_without_organs_and_a_series_without_a_patient(tmp_path, highdicom):
    made = scan(tmp_path / "ct", PatientSex="X", PatientBirthDate="", StudyDate="", StudyTime="")
    write_dicom_seg(tmp_path / "seg.dcm", np.zeros((6, 20, 24), np.uint8), ORGANS, made.image.source, made.series, MADE)
    assert len(pydicom.dcmread(tmp_path / "seg.dcm").SegmentSequence) == 3


def test_values_of_the_series_that_break_a_rule_are_copied_without_a_word(tmp_path, highdicom):
    with pydicom.config.disable_value_validation():
        made = scan(tmp_path / "ct", PatientAge="45", PatientComments="Grüße", Occupation="x" * 20)
    write_dicom_seg(tmp_path / "seg.dcm", label_map((6, 20, 24)), ORGANS, made.image.source, made.series, MADE)
    with pydicom.config.disable_value_validation():
        dataset = pydicom.dcmread(tmp_path / "seg.dcm")
        assert (dataset.PatientAge, dataset.PatientComments) == ("45", "Grüße")


def test_values_that_are_left_empty_are_told(tmp_path, highdicom, caplog):
    with pydicom.config.disable_value_validation():
        made = scan(tmp_path / "ct", PatientID="1" * 65)
    write_dicom_seg(tmp_path / "seg.dcm", label_map((6, 20, 24)), ORGANS, made.image.source, made.series, MADE)
    assert pydicom.dcmread(tmp_path / "seg.dcm").PatientID == ""
    assert [said for said in caplog.messages if said.startswith(f"{tmp_path / 'seg.dcm'}: PatientID of the CT: not as DICOM wants it")]


# The standard's rules


# attributes of type 1 and 2 of the mandatory modules of PS3.3 A.51.3, of Common Instance Reference and Frame of Reference, and of the
# functional groups that place a frame, by the sequence that they lie in; of types 1C and 2C those whose condition holds here
REFERENCE, CODE = ["ReferencedSOPClassUID", "ReferencedSOPInstanceUID"], ["CodeValue", "CodingSchemeDesignator", "CodeMeaning"]
TYPE_1 = {
    "": ["SOPClassUID", "SOPInstanceUID", "SpecificCharacterSet", "StudyInstanceUID", "Modality", "SeriesInstanceUID", "SeriesNumber",
         "FrameOfReferenceUID", "Manufacturer", "ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions", "ImageType",
         "InstanceNumber", "ContentDate", "ContentTime", "ContentLabel", "LossyImageCompression", "SegmentationType", "SegmentSequence",
         "SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit",
         "PixelRepresentation", "NumberOfFrames", "PixelData", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
         "DimensionOrganizationSequence", "DimensionIndexSequence", "ReferencedSeriesSequence"],
    "ReferencedSeriesSequence": ["SeriesInstanceUID", "ReferencedInstanceSequence"],
    "ReferencedInstanceSequence": REFERENCE,
    "SourceImageSequence": REFERENCE,
    "DimensionOrganizationSequence": ["DimensionOrganizationUID"],
    "DimensionIndexSequence": ["DimensionIndexPointer", "FunctionalGroupPointer", "DimensionOrganizationUID"],
    "SegmentSequence": ["SegmentNumber", "SegmentLabel", "SegmentAlgorithmType", "SegmentAlgorithmName",
                        "SegmentedPropertyCategoryCodeSequence", "SegmentedPropertyTypeCodeSequence"],
    "SegmentationAlgorithmIdentificationSequence": ["AlgorithmFamilyCodeSequence", "AlgorithmName", "AlgorithmVersion"],
    "SharedFunctionalGroupsSequence": ["PixelMeasuresSequence", "PlaneOrientationSequence"],
    "PixelMeasuresSequence": ["PixelSpacing", "SliceThickness"],
    "PlaneOrientationSequence": ["ImageOrientationPatient"],
    "PerFrameFunctionalGroupsSequence": ["FrameContentSequence", "PlanePositionSequence", "SegmentIdentificationSequence"],
    "FrameContentSequence": ["DimensionIndexValues"],
    "PlanePositionSequence": ["ImagePositionPatient"],
    "SegmentIdentificationSequence": ["ReferencedSegmentNumber"],
    "DerivationImageSequence": ["DerivationCodeSequence"],
    "ContributingEquipmentSequence": ["PurposeOfReferenceCodeSequence", "Manufacturer"],
    **dict.fromkeys(["SegmentedPropertyCategoryCodeSequence", "SegmentedPropertyTypeCodeSequence", "AlgorithmFamilyCodeSequence",
                     "DerivationCodeSequence", "PurposeOfReferenceCodeSequence"], CODE),
}  # fmt: skip
TYPE_2 = {
    "": ["PatientName", "PatientID", "PatientBirthDate", "PatientSex", "ReferringPhysicianName", "StudyDate", "StudyTime", "StudyID",
         "AccessionNumber", "PositionReferenceIndicator", "ContentDescription", "ContentCreatorName"],
    "PerFrameFunctionalGroupsSequence": ["DerivationImageSequence"],
    "DerivationImageSequence": ["SourceImageSequence"],
}  # fmt: skip
VALUES = {  # the only ones that PS3.3 C.8.20.2 allows in a binary segmentation
    "Modality": "SEG", "ImageType": ["DERIVED", "PRIMARY"], "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2",
    "PixelRepresentation": 0, "BitsAllocated": 1, "BitsStored": 1, "HighBit": 0,
}  # fmt: skip


def written(made, path) -> pydicom.Dataset:
    write_dicom_seg(path, label_map((6, 20, 24)), ORGANS, made.image.source, made.series, MADE)
    return pydicom.dcmread(path)


def test_every_attribute_that_the_standard_asks_for(tmp_path, highdicom):
    dataset = written(scan(tmp_path / "ct"), tmp_path / "seg.dcm")
    assert broken_rules(dataset, TYPE_1, TYPE_2) == []
    assert {keyword: dataset[keyword].value for keyword in VALUES} == VALUES
    assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
    frames = dataset.PerFrameFunctionalGroupsSequence
    assert len(frames) == dataset.NumberOfFrames and [s.SegmentNumber for s in dataset.SegmentSequence] == [1, 2, 3]
    for frame in frames:
        assert len(frame.FrameContentSequence[0].DimensionIndexValues) == len(dataset.DimensionIndexSequence)
        assert frame.DerivationImageSequence[0].SourceImageSequence[0].PurposeOfReferenceCodeSequence  # of type 1 here, of type 3 above
    del dataset.StudyID, frames[1].PlanePositionSequence[0].ImagePositionPatient
    dataset.SegmentSequence[0].SegmentLabel = None
    assert broken_rules(dataset, TYPE_1, TYPE_2) == ["/StudyID is missing", "SegmentSequence/SegmentLabel has no value",
                                                     "PlanePositionSequence/ImagePositionPatient has no value"]  # fmt: skip


def test_dciodvfy_finds_nothing_wrong(tmp_path, highdicom):
    dataset = written(scan(tmp_path / "ct"), tmp_path / "seg.dcm")
    assert dciodvfy(tmp_path / "seg.dcm", "Segmentation") == ([], [])
    del dataset.ContentLabel
    dataset.save_as(tmp_path / "seg.dcm")
    errors, _ = dciodvfy(tmp_path / "seg.dcm", "Segmentation")
    assert "ContentLabel" in "".join(errors)


def test_what_does_not_fit(tmp_path, highdicom):
    made = scan(tmp_path / "ct")
    with pytest.raises(ImageError, match=r"labels of shape \(6, 20, 23\) do not fit"):
        write_dicom_seg(tmp_path / "seg.dcm", np.zeros((6, 20, 23), np.uint8), ORGANS, made.image.source, made.series)
    with pytest.raises(ImageError, match="the labels hold 9, which no organ has"):
        write_dicom_seg(tmp_path / "seg.dcm", label_map((6, 20, 24)) * 9, LabelSet(("A", "B"), (27, 30)), made.image.source, made.series)
    with pytest.raises(ImageError, match="the 5 slices of the series are not the 6 axial slices"):
        write_dicom_seg(tmp_path / "seg.dcm", label_map((6, 20, 24)), ORGANS, made.image.source, series_reference(made.files[1:]))
    assert not (tmp_path / "seg.dcm").exists()


def test_without_highdicom(tmp_path, monkeypatch):
    made = scan(tmp_path / "ct")
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(ImageError, match=r'seg.dcm: DICOM SEG needs the package highdicom; install it by: pip install "c2f-nnunet\[seg\]"'):
        write_dicom_seg(tmp_path / "seg.dcm", label_map((6, 20, 24)), ORGANS, made.image.source, made.series)
