"""What lies in a folder: CT series by their UIDs, and what is passed over."""
import pydicom
import pytest
from pydicom.errors import InvalidDicomError
from pydicom.uid import (
    ExplicitVRLittleEndian, ImplicitVRLittleEndian, MediaStorageDirectoryStorage, RTStructureSetStorage, SecondaryCaptureImageStorage,
    generate_uid,
)  # fmt: skip

from c2f_nnunet.errors import ImageError
from c2f_nnunet.io.dicom import read_series
from c2f_nnunet.io.survey import NO_DICOM, Series, find_series, read_dicom, read_header, rtstruct_references, survey
from tests.io.test_dicom import FRAME, SERIES, slice_file, without_preamble

OTHER = generate_uid()


def in_folder(folder, *args, **tags):
    folder.mkdir(parents=True, exist_ok=True)
    return slice_file(folder, *args, **tags)


def test_series_are_told_apart_by_their_uid_wherever_their_files_lie(tmp_path):
    a = [in_folder(tmp_path / "mixed", k, PatientID="P1") for k in (0, 1)]
    b = in_folder(tmp_path / "mixed", 2, SeriesInstanceUID=OTHER, PatientID="P2")
    c = in_folder(tmp_path / "mixed" / "deeper", 3)
    found = survey(tmp_path)
    assert found.series == (Series(SERIES, "P1", (*a, c), FRAME), Series(OTHER, "P2", (b,), FRAME))
    assert found.others == {} and found.damaged == {}
    assert find_series(tmp_path) == {SERIES: (*a, c), OTHER: (b,)}


def test_what_is_no_slice_of_a_ct_is_listed_by_its_kind(tmp_path):
    listing = pydicom.Dataset()
    listing.FileSetID = "SET"
    listing.file_meta = pydicom.dataset.FileMetaDataset()
    listing.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    listing.file_meta.MediaStorageSOPClassUID, listing.file_meta.MediaStorageSOPInstanceUID = MediaStorageDirectoryStorage, generate_uid()
    listing.save_as(tmp_path / "DICOMDIR", enforce_file_format=True)
    files = {
        "RTSTRUCT": slice_file(tmp_path, 0, name="rs", Modality="RTSTRUCT", SOPClassUID=RTStructureSetStorage),
        "RTDOSE": slice_file(tmp_path, 0, name="rd", Modality="RTDOSE"),
        "MR": slice_file(tmp_path, 0, name="mr", Modality="MR"),
        "CT localiser": slice_file(tmp_path, 0, name="scout", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]),
        "CT as Secondary Capture Image Storage": slice_file(tmp_path, 0, name="screen", SOPClassUID=SecondaryCaptureImageStorage),
        "DICOMDIR": tmp_path / "DICOMDIR",
        NO_DICOM: tmp_path / "LICENSE",
    }
    files[NO_DICOM].write_text("no DICOM " * 50)
    slice_ = slice_file(tmp_path, 0, ImageType=["ORIGINAL", "PRIMARY", "AXIAL"])
    found = survey(tmp_path)
    assert found.others == {kind: (path,) for kind, path in files.items()}
    assert [s.files for s in found.series] == [(slice_,)] and not found.damaged


def test_hidden_files_and_images_of_other_formats_are_left_out(tmp_path):
    for name in ("._CT000.dcm", ".DS_Store", "case_0000.nii.gz", "case.NRRD", ".hidden/CT000.dcm"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no DICOM " * 50)
    found = survey(tmp_path)
    assert not found.series and not found.others and not found.damaged


def test_linked_folders_are_visited_once(tmp_path):
    in_folder(tmp_path / "archive" / "P1", 0)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "P1").symlink_to(tmp_path / "archive" / "P1")
    (tmp_path / "in" / "P1_too").symlink_to(tmp_path / "archive" / "P1")
    (tmp_path / "in" / "up").symlink_to(tmp_path / "in")
    assert [s.files for s in survey(tmp_path / "in").series] == [(tmp_path / "in" / "P1" / "CT000.dcm",)]


@pytest.mark.parametrize("harm, told", [
    (lambda path: path.write_bytes(b""), "CT001.dcm: is no DICOM file; copy or export it again, or remove it"),
    (lambda path: path.write_bytes(b"\0" * 5000), "CT001.dcm: is no DICOM file"),
    (lambda path: path.write_bytes(path.read_bytes()[:400]), "CT001.dcm: "),
])  # fmt: skip
def test_a_damaged_file_belongs_to_every_series_of_its_folder(tmp_path, harm, told):
    a, bad = in_folder(tmp_path / "ct", 0), in_folder(tmp_path / "ct", 1)
    b = in_folder(tmp_path / "ct", 2, SeriesInstanceUID=OTHER)
    c = in_folder(tmp_path / "elsewhere", 3, SeriesInstanceUID=generate_uid())
    harm(bad)
    found = survey(tmp_path)
    assert list(found.damaged) == [bad] and told in found.damaged[bad]
    assert [s.files for s in found.series] == [(a, bad), (bad, b), (c,)]
    with pytest.raises(ImageError, match="CT001.dcm: "):
        find_series(tmp_path)


@pytest.mark.parametrize("names, content, emptied", [
    (("IM0", "IM1", "IM2"), b"", True),
    (("IM0", "IM1", "IM2"), b"\0" * 130, True),  # cut
    (("IM0", "IM1", "IM2"), b"404 Not Found", True),
    (("IM0", "IM1", "IM2"), b"\0" * 5000, True),  # blocks that were never written
    (("IM0", "IM1", "IM2"), b"no DICOM " * 50, False),
    (("1.2.30", "1.2.31", "1.2.32"), b"", True),  # names that are UIDs have no ending
    (("1.2.30", "IM1", "1.2.32"), b"", True),
    (("0.img", "1.IMG", "2.img"), b"", True),
    (("IM0", "IM1.txt", "IM2"), b"", False),
    (("0.dcm", "IM1", "2.dcm"), b"", False),
    (("sub/IM0", "IM1", "sub/IM2"), b"", False),  # another folder
])  # fmt: skip
def test_an_emptied_file_that_ends_as_the_slices_beside_it_is_one_of_them(tmp_path, names, content, emptied):
    first, path, last = (tmp_path / name for name in names)
    for k, place in ((0, first), (2, last)):
        place.parent.mkdir(exist_ok=True)
        slice_file(tmp_path, k).rename(place)
    path.write_bytes(content)
    found = survey(tmp_path)
    assert [s.files for s in found.series] == [tuple(sorted((first, path, last))) if emptied else (first, last)]
    assert found.damaged == ({path: f"{path}: is no DICOM file; copy or export it again, or remove it"} if emptied else {})
    assert found.others == ({} if emptied else {NO_DICOM: (path,)})
    if emptied:
        with pytest.raises(ImageError, match=f"{path.name}: is no DICOM file"):
            read_series(found.series[0].files)


def test_damaged_files_without_a_series_are_one_of_their_own(tmp_path):
    for name in ("a.dcm", "b.IMA"):
        (tmp_path / name).touch()
    assert survey(tmp_path).series == (Series("", "", (tmp_path / "a.dcm", tmp_path / "b.IMA")),)


@pytest.mark.parametrize("tags", [{"Modality": None}, {"SeriesInstanceUID": None}])
def test_a_file_that_does_not_say_where_it_belongs_is_damaged(tmp_path, tags):
    path = slice_file(tmp_path, 0, **tags)
    assert survey(tmp_path).damaged[path] == f"{path}: its header has no Modality or no SeriesInstanceUID; export it again, or remove it"


def test_a_header_is_read_without_the_voxels(tmp_path):
    header = read_header(slice_file(tmp_path, 0))
    assert header.Modality == "CT" and "PixelData" not in header
    assert list(read_header(slice_file(tmp_path, 0), ["Rows"]).keys()) == [pydicom.tag.Tag("Rows")]
    with pytest.raises(ImageError, match="gone.dcm: cannot be read"):
        read_header(tmp_path / "gone.dcm")


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("from_group", [2, 8])
def test_files_without_a_preamble_are_dicom(tmp_path, syntax, from_group):
    """As older systems write them: the elements alone, with those of the file's meta information or without."""
    path = without_preamble(slice_file(tmp_path, 0, syntax), from_group)
    assert survey(tmp_path).series == (Series(SERIES, "", (path,), FRAME),)
    assert read_header(path).Rows == 2 and read_dicom(path).PixelData == bytes([0, 0, 1, 0, 2, 0, 3, 0, 4, 0, 5, 0])
    assert read_header(path, ["Rows"]).Rows == 2


@pytest.mark.parametrize("content", [
    b"\x08\0\x16\0UI\x04\x001.2\0"[:8],  # nothing but the head of an element
    b"\x08\0\x08\0CS\x02\0AB",  # no SOPClassUID
    b"\x08\0\x08\0\x02\0\0\0AB",
    b"\x08\0\0\0\x10\0\x0b\0" * 40, b"\x02\0\0\0\x05\0\0\0" * 40,  # numbers
])  # fmt: skip
def test_what_only_begins_like_elements_is_no_dicom(tmp_path, content):
    path = tmp_path / "numbers"
    path.write_bytes(content)
    with pytest.raises(InvalidDicomError):
        read_header(path)
    assert survey(tmp_path).others == {NO_DICOM: (path,)}


def test_a_real_folder(real_data):
    found = survey(real_data / "dicom")
    assert sorted(len(s.files) for s in found.series) == [20, 90]
    assert {kind for kind in found.others} == {"RTSTRUCT", NO_DICOM} and not found.damaged


def test_what_an_rtstruct_refers_to(tmp_path):
    def item(**values):
        dataset = pydicom.Dataset()
        for name, value in values.items():
            setattr(dataset, name, value)
        return dataset

    studies = [item(RTReferencedSeriesSequence=[item(SeriesInstanceUID="1.2"), item(SeriesInstanceUID="1.3")])]
    frames = [item(FrameOfReferenceUID="1.9", RTReferencedStudySequence=studies), item(FrameOfReferenceUID="1.8")]
    path = slice_file(tmp_path, 0, Modality="RTSTRUCT", FrameOfReferenceUID="1.7", ReferencedFrameOfReferenceSequence=frames)
    assert rtstruct_references(path) == ({"1.2", "1.3"}, {"1.7", "1.8", "1.9"})
    assert rtstruct_references(slice_file(tmp_path, 1, FrameOfReferenceUID=None)) == (set(), set())
    structures = [item(ReferencedFrameOfReferenceUID="1.6"), item()]  # some writers name the frame here only
    assert rtstruct_references(slice_file(tmp_path, 1, FrameOfReferenceUID=None, StructureSetROISequence=structures)) == (set(), {"1.6"})


def test_a_file_cut_anywhere_in_its_header_is_stated(tmp_path):
    whole = slice_file(tmp_path, 0).read_bytes()
    cut = tmp_path / "cut.dcm"
    for length in range(132, 700):
        cut.write_bytes(whole[:length])
        try:
            read_header(cut)
        except (ImageError, InvalidDicomError):
            pass  # anything else fails this test
