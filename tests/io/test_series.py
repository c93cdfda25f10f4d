"""What other objects need to know of a series."""
import numpy as np
import pydicom
import pytest

from c2f_nnunet.errors import ImageError
from c2f_nnunet.geometry import canonical_geometry
from c2f_nnunet.io.series import axial_slices, by_slice, series_reference, tell_broken
from tests.io.rt_files import FRAME, PATIENT, SERIES, STUDY, scan
from tests.io.test_dicom import without_preamble


def test_patient_study_and_slices(tmp_path):
    made = scan(tmp_path / "ct")
    series = made.series
    assert (series.study, series.series, series.frame) == (STUDY, SERIES, FRAME)
    assert dict(series.attributes) == PATIENT
    assert [i.path for i in series.instances] == made.files
    assert series.instances[2].position_mm == (-100.0, 50.5, -314.25)
    assert series.instances[2].uid == pydicom.dcmread(made.files[2]).SOPInstanceUID


def test_slices_in_the_grids_order_whatever_the_files(tmp_path):
    made = scan(tmp_path / "ct")
    mixed = series_reference([made.files[i] for i in (3, 0, 5, 1, 4, 2)])
    assert by_slice(mixed, made.image.geometry) == made.series.instances
    from_above = scan(tmp_path / "down", orientation=(1, 0, 0, 0, -1, 0))  # rows left, columns anterior: slices go down
    assert by_slice(from_above.series, from_above.image.geometry) == from_above.series.instances[::-1]
    assert by_slice(from_above.series, from_above.image.source.geometry) == from_above.series.instances


def test_slices_that_are_not_the_grids(tmp_path):
    made = scan(tmp_path / "ct")
    for files in (made.files[1:], made.files[:-1] + made.files[-2:-1]):
        with pytest.raises(ImageError, match="the . slices of the series are not the 6 axial slices of the label map"):
            by_slice(series_reference(files), made.image.geometry)
    coronal = scan(tmp_path / "coronal", orientation=(1, 0, 0, 0, 0, -1))
    geometry = coronal.image.source.geometry
    assert by_slice(coronal.series, geometry) == coronal.series.instances
    with pytest.raises(ImageError, match="an axial one"):
        by_slice(coronal.series, canonical_geometry(geometry, coronal.image.source.turn))


@pytest.mark.parametrize("degrees, refused", [(0, False), (0.05, False), (0.2, True), (15, True)])
def test_slices_that_are_tilted_from_axial_ones(tmp_path, degrees, refused):
    """Rows run left, columns to posterior and a little down: the stack is rectangular and can be read, but its planes are not axial."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    tilted = scan(tmp_path / "ct", orientation=(1, 0, 0, 0, c, -s))
    assert by_slice(tilted.series, tilted.image.geometry) == tilted.series.instances
    if refused:
        with pytest.raises(ImageError, match=rf"ct: its slices are tilted by {degrees}° from axial ones, and an RTSTRUCT holds contours in "
                                             "axial planes only; leave it out, or give an axial reconstruction"):
            axial_slices(tilted.series, tilted.image.geometry)
    else:
        assert axial_slices(tilted.series, tilted.image.geometry) == tilted.series.instances


def test_slices_that_references_would_not_tell_apart(tmp_path):
    made = scan(tmp_path / "ct")
    header = pydicom.dcmread(made.files[4])
    header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = made.series.instances[1].uid
    header.save_as(made.files[4])
    with pytest.raises(ImageError, match="CT001.dcm and CT004.dcm have one SOPInstanceUID, so nothing can refer to either; export"):
        by_slice(series_reference(made.files), made.image.geometry)
    no_frame = scan(tmp_path / "no_frame", FrameOfReferenceUID="")
    with pytest.raises(ImageError, match="no_frame: the series has no frame of reference, so nothing can be placed in it; export"):
        by_slice(no_frame.series, no_frame.image.geometry)


def test_names_in_other_alphabets_and_values_against_the_rules(tmp_path):
    made = scan(tmp_path / "ct", SpecificCharacterSet="ISO_IR 192", PatientName="Müller^Zoë=山田^太郎")
    assert dict(made.series.attributes)["PatientName"] == "Müller^Zoë=山田^太郎"
    for path in made.files:
        header = pydicom.dcmread(path)
        with pydicom.config.disable_value_validation():
            header.PatientBirthDate, header.StudyID, header.PatientSex = "REMOVED", ["1", "2"], "F" * 20
        del header.AccessionNumber
        header.save_as(path)
    series = series_reference(made.files)
    attributes = dict(series.attributes)
    assert [attributes[k] for k in ("PatientBirthDate", "StudyID", "PatientSex", "AccessionNumber", "PatientID")] == ["", "", "", "", "P1"]
    assert series.broken == ("PatientBirthDate", "PatientSex", "StudyID") and made.series.broken == ()  # the number that is not there is none


@pytest.mark.parametrize("tags, told", [
    ({"PatientID": "1" * 65}, "PatientID"), ({"PatientID": ["1", "2"]}, "PatientID"),
    ({"PatientName": "x" * 65, "PatientID": "1" * 65}, "PatientName, PatientID"), ({"PatientID": ""}, None), ({}, None),
])  # fmt: skip
def test_values_that_are_left_empty_are_told_by_their_names(tmp_path, caplog, tags, told):
    with pydicom.config.disable_value_validation():
        series = scan(tmp_path / "ct", shape=(2, 20, 24), **tags).series
    tell_broken("out/P1_rtstruct.dcm", series)
    assert caplog.messages == ([] if told is None else [
        f"out/P1_rtstruct.dcm: {told} of the CT: not as DICOM wants it, so left empty here; "
        "mend it in the CT's files, or enter it where this file is imported"])


def test_files_without_a_preamble(tmp_path):
    made = scan(tmp_path / "ct")
    for path in made.files:
        without_preamble(path)
    assert series_reference(made.files) == made.series


def test_what_cannot_be_referred_to(tmp_path):
    made = scan(tmp_path / "ct")
    text = tmp_path / "text.dcm"
    text.write_text("no DICOM " * 50)
    other = scan(tmp_path / "other", SeriesInstanceUID="1.2.3").files[0]
    header = pydicom.dcmread(made.files[2])
    del header.StudyInstanceUID
    header.save_as(made.files[2])
    for files, told in (
        ([], "no files of a DICOM series are given"),
        ([text], "text.dcm: is no DICOM file"),
        ([made.files[0], other], "CT000.dcm: is of another series than CT000.dcm"),
        (made.files, "CT002.dcm: its header has no StudyInstanceUID, so nothing can refer to it"),
    ):
        with pytest.raises(ImageError, match=told):
            series_reference(files)


def test_a_real_series(real_data):
    files = sorted((real_data / "dicom" / "head_neck_ct").glob("*.dcm"))
    series = series_reference(files)
    assert len(series.instances) == 90 and len({i.uid for i in series.instances}) == 90
    assert np.isfinite([i.position_mm for i in series.instances]).all()
