"""DICOM series: tiny synthetic ones, whole and broken, and two real ones."""
import io
import random
import tempfile
import tracemalloc
from base64 import b85decode

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from PIL import Image as Pillow
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import (
    UID, CTImageStorage, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian,
    JPEG2000, JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless, generate_uid,
)  # fmt: skip

from c2f_nnunet.errors import ImageError
from c2f_nnunet.io.dicom import find_series, read_series, series_geometry
from c2f_nnunet.io.images import read_label, write_label

SERIES, FRAME = generate_uid(entropy_srcs=["series"]), generate_uid(entropy_srcs=["frame"])
VOXELS = np.arange(4 * 2 * 3).reshape(4, 2, 3)  # stored values (slice, row, column); HU = value - 1024


def slice_file(folder, k, syntax=ExplicitVRLittleEndian, **tags):
    """Slice k of a series of 3 mm gaps, rows 2 mm and columns 1.5 mm apart; `tags` override its header, None removes.

    syntax: the transfer syntax that the file says its PixelData are in.
    """
    header = pydicom.Dataset()
    header.SOPClassUID, header.SOPInstanceUID = CTImageStorage, generate_uid()
    header.Modality, header.SeriesInstanceUID, header.FrameOfReferenceUID = "CT", SERIES, FRAME
    header.InstanceNumber = k + 1
    header.Rows, header.Columns = 2, 3
    header.PixelSpacing, header.ImageOrientationPatient = [2, 1.5], [1, 0, 0, 0, 1, 0]
    header.ImagePositionPatient = [10, -20, 30 + 3 * k]
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 0
    header.RescaleSlope, header.RescaleIntercept = 1, -1024
    header.PixelData = VOXELS[k % 4].astype(np.uint16).tobytes()
    for name, value in tags.items():
        if isinstance(value, pydicom.DataElement):
            header.add(value)
        elif value is None:
            delattr(header, name)
        else:
            setattr(header, name, value)
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = syntax
    header["PixelData"].VR, header["PixelData"].is_undefined_length = "OB" if syntax.is_compressed else "OW", syntax.is_compressed
    header.file_meta.MediaStorageSOPClassUID, header.file_meta.MediaStorageSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    path = folder / f"{tags.get('name', f'CT{k:03}')}.dcm"
    header.save_as(path, enforce_file_format=True)
    return path


def without_preamble(path, from_group=8):
    """The file cut to its elements, from the first one of group 0002 or 0008 on."""
    content = path.read_bytes()
    path.write_bytes(content[132 if from_group == 2 else content.index(b"\x08\0\x16\0") :])
    return path


def write_series(folder, hu, geometry, **tags):
    """A CT (z, y, x) in canonical orientation as a DICOM series of signed HU; its files from the lowest slice on."""
    folder.mkdir(parents=True, exist_ok=True)
    common = {
        "Rows": hu.shape[1], "Columns": hu.shape[2], "PixelSpacing": list(geometry.spacing_mm[1:]), "PixelRepresentation": 1,
        "RescaleIntercept": 0, "StudyInstanceUID": FRAME, **tags,
    }  # fmt: skip
    places = np.round([geometry.world((k, 0, 0)) for k in range(len(hu))], 3).tolist()
    return [
        slice_file(folder, k, **{"ImagePositionPatient": place, "PixelData": hu[k].astype(np.int16).tobytes(), **common})
        for k, place in enumerate(places)
    ]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "ct").mkdir()
    return tmp_path / "ct"


def whole(folder, slices=range(4), **tags):
    return [slice_file(folder, k, **tags) for k in slices]


def refused(source, sentence):
    with pytest.raises(ImageError, match=sentence) as told:
        read_series(source)
    assert "\n" not in str(told.value)


def test_a_series_is_read_in_hu_with_its_geometry(folder):
    whole(folder)
    image = read_series(folder)
    np.testing.assert_array_equal(image.array, VOXELS - 1024)
    assert image.array.dtype == np.int16
    assert image.geometry.spacing_mm == (3.0, 2.0, 1.5) and image.geometry.origin_mm == (10.0, -20.0, 30.0)
    assert image.geometry.direction == ((0, 0, 1), (0, 1, 0), (1, 0, 0))


def test_files_in_any_order_and_under_any_name(folder):
    files = whole(folder)
    random.Random(1).shuffle(files)
    np.testing.assert_array_equal(read_series(files).array, VOXELS - 1024)
    for path, name in zip(files, "dbca"):
        path.rename(folder / name)
    np.testing.assert_array_equal(read_series(folder).array, VOXELS - 1024)


def test_feet_first_and_prone_become_canonical(folder):
    # rows run to the right, columns to anterior: the patient's upside down; slices are listed from the top
    for k in range(4):
        slice_file(folder, k, ImageOrientationPatient=[-1, 0, 0, 0, -1, 0], ImagePositionPatient=[10, -20, 30 - 3 * k])
    image = read_series(folder)
    np.testing.assert_array_equal(image.array, VOXELS[::-1, ::-1, ::-1] - 1024)
    np.testing.assert_allclose(image.geometry.world((3, 1, 2)), (10, -20, 30))  # the first file's first pixel


def test_the_geometry_alone_is_that_of_the_image(folder):
    for k in range(6):  # turned, so that the canonical order is another one than the file's
        slice_file(folder, k, ImageOrientationPatient=[-1, 0, 0, 0, -1, 0], ImagePositionPatient=[10, -20, 30 - 3 * k])
    assert series_geometry(folder) == read_series(folder).geometry
    (folder / "CT001.dcm").unlink()
    with pytest.raises(ImageError, match="1 slice is missing"):
        series_geometry(folder)


def test_a_coronal_series(folder):
    for k in range(4):  # rows run left, columns to inferior, slices to posterior
        slice_file(folder, k, ImageOrientationPatient=[1, 0, 0, 0, 0, -1], ImagePositionPatient=[0, 3 * k, 0])
    image = read_series(folder)
    assert image.array.shape == (2, 4, 3) and image.geometry.spacing_mm == (2.0, 3.0, 1.5)
    np.testing.assert_array_equal(image.array, VOXELS.transpose(1, 0, 2)[::-1] - 1024)


def test_rounded_directions_do_not_stretch_the_stack(folder):
    """A head turned by 15 degrees: 0.966² + 0.259² is 1.0002."""
    whole(folder, ImageOrientationPatient=[0.966, 0.259, 0, -0.259, 0.966, 0])
    geometry = read_series(folder).geometry
    assert geometry.spacing_mm[0] == pytest.approx(3, abs=1e-9)
    np.testing.assert_allclose(geometry.world((3, 0, 0)), (10, -20, 39), atol=1e-9)


def test_fractional_hu_take_no_more_memory_than_is_estimated(folder):
    """running/memory.py counts on two float32 copies and one more of 4 bytes for each voxel."""
    voxels = np.arange(256 * 256, dtype=np.uint16).tobytes()
    whole(folder, range(16), Rows=256, Columns=256, RescaleSlope=0.5, PixelData=voxels)
    tracemalloc.start()
    image = read_series(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert image.array.dtype == np.float32 and image.array[3, 0, 1] == 0.5 - 1024
    assert peak < 12 * image.array.size


def test_every_slice_has_its_own_rescaling(folder):
    for k in range(4):
        slice_file(folder, k, RescaleSlope=k + 1, RescaleIntercept=-100 * k)
    expected = VOXELS * np.arange(1, 5)[:, None, None] - 100 * np.arange(4)[:, None, None]
    np.testing.assert_array_equal(read_series(folder).array, expected)


def test_labels_of_a_series_are_written_on_its_grid(folder, tmp_path):
    whole(folder)
    image = read_series(folder)
    labels = VOXELS.astype(np.uint8)
    for ending in (".nii.gz", ".nrrd", ".mha"):
        write_label(tmp_path / f"label{ending}", labels, image.source)
        back = read_label(tmp_path / f"label{ending}")
        np.testing.assert_array_equal(back.array, labels)
        np.testing.assert_allclose(back.geometry.world((3, 1, 2)), image.geometry.world((3, 1, 2)), atol=1e-4)


def test_finding_series(folder):
    whole(folder, range(2))
    (folder / "sub").mkdir()
    other = generate_uid()
    (second,) = whole(folder / "sub", [0], SeriesInstanceUID=other)
    whole(folder, [3], name="dose", Modality="RTDOSE", SeriesInstanceUID=generate_uid())
    (folder / "LICENSE").write_text("no DICOM " * 50)
    (folder / "empty").touch()
    assert find_series(folder) == {SERIES: (folder / "CT000.dcm", folder / "CT001.dcm"), other: (second,)}


# What the scanner did not see, and other ways to store voxels

RING = np.ones((5, 5), bool)
RING[1:4, 1:4] = False


@pytest.mark.parametrize("padding, dtype, intercept", [
    (65535, np.uint16, -1024),  # as a number it would be dense bone
    (-2000, np.int16, 0),
    (0, np.uint16, 0),  # 0 HU: water
    (pydicom.DataElement("PixelPaddingValue", "US", 63536), np.int16, -1024),  # -2000, written as an unsigned number
])  # fmt: skip
def test_padding_outside_the_field_of_view_is_air(folder, padding, dtype, intercept):
    stored = padding.value - 65536 if isinstance(padding, pydicom.DataElement) else padding
    values = np.where(RING, stored, 1100)
    values[2, 2] = stored  # inside, it is no padding
    signed = int(dtype is np.int16)
    whole(folder, Rows=5, Columns=5, PixelPaddingValue=padding, RescaleIntercept=intercept, PixelRepresentation=signed,
          PixelData=values.astype(dtype).tobytes())  # fmt: skip
    hu = read_series(folder).array[1]
    assert (hu[RING] == -1024).all() and hu[2, 2] == stored + intercept
    assert (hu[~RING] == 1100 + intercept).sum() == 8


def test_a_range_of_padding(folder):
    values = np.where(RING, -2000, 40)
    values[0] = [-1990, -1995, -1989, -2001, -2000]
    whole(folder, Rows=5, Columns=5, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1990, PixelRepresentation=1, RescaleSlope=0.5,
          RescaleIntercept=0, PixelData=values.astype(np.int16).tobytes())  # fmt: skip
    hu = read_series(folder).array[0]
    np.testing.assert_array_equal(hu[0], [-1024, -1024, -1989 / 2, -2001 / 2, -1024])
    np.testing.assert_array_equal(hu[1], [-1024, 20, 20, 20, -1024])


def test_without_padding_no_value_is_touched(folder):
    values = np.where(RING, -2000, 40)
    whole(folder, Rows=5, Columns=5, PixelRepresentation=1, RescaleIntercept=0, PixelData=values.astype(np.int16).tobytes())
    np.testing.assert_array_equal(read_series(folder).array[3], values)


def compressed(hu, compressor, dtype=np.int16) -> tuple[bytes, UID]:
    """(PixelData, transfer syntax) of values (rows, columns), as SimpleITK's writer compresses them."""
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.UseCompressionOn()
    writer.SetCompressor(compressor)
    with tempfile.TemporaryDirectory() as folder:
        writer.SetFileName(f"{folder}/one.dcm")
        writer.Execute(sitk.GetImageFromArray(hu[None].astype(dtype)))
        written = pydicom.dcmread(f"{folder}/one.dcm")
        return written.PixelData, written.file_meta.TransferSyntaxUID


SMOOTH = (np.hypot(*np.mgrid[:64, :48]) * 10 - 900).astype(np.int16)  # a slice of 64 × 48


def stored_as(folder, compressor, harm=lambda frame: frame):
    """Four slices of SMOOTH, the third one's stream harmed."""
    data, syntax = compressed(SMOOTH, compressor)
    harmed = encapsulate([harm(get_frame(data, 0, number_of_frames=1))])
    for k in range(4):
        stored = harmed if k == 2 else data
        slice_file(folder, k, syntax, Rows=64, Columns=48, PixelRepresentation=1, RescaleIntercept=-24, PixelData=stored)
    return syntax


@pytest.mark.parametrize("compressor, syntax", [("JPEG2000", JPEG2000Lossless), ("JPEG", JPEGLosslessSV1)])
def test_compressed_voxels(folder, compressor, syntax):
    assert stored_as(folder, compressor) == syntax
    image = read_series(folder)
    for k in range(4):
        np.testing.assert_array_equal(image.array[k], SMOOTH - 24)


SMALL = SMOOTH[:16, :16]
STREAMS = {  # of SMALL, by an encoder that is not installed here (pyjpegls 1.5.1): most difference in HU, stream
    JPEGLSLossless: (0, 
        "|JeWc01FTR5C9MX0TBTI_y7$7|Nj6I07C&306_oR00;pA00000I5ZQ2Fnk*egu&qOu&}VOaBy%^1wcpw0D!<?Fc=sZ7#J8B1tA3@BnS{7!GjJQ"
        "IB?(u=rJQnBvC;O5JL<w1<=7I6Ga3NLkuv-0$D6ENhFd=5R79O7b_S_l%%OCN)Ul^vxF&1Qc{FtFhzdc#Aa1hL_rn%vo%$fQBer5`?-p$%F58j"
        "cmHJDCfXRqb^cuwCeVg=U+tT0i3no4ueMFHXk$CS{@J$44FA~x"),
}


@pytest.mark.parametrize("syntax", STREAMS)
def test_voxels_compressed_by_others(folder, syntax):
    most_hu, stream = STREAMS[syntax]
    data = encapsulate([b85decode(stream)])
    whole(folder, syntax=syntax, Rows=16, Columns=16, PixelRepresentation=1, RescaleIntercept=0, PixelData=data)
    for k in range(4):
        assert np.abs(read_series(folder).array[k].astype(int) - SMALL).max() <= most_hu


def test_jpeg_2000_under_its_general_name(folder):
    """A stream under the name that also allows lossy ones."""
    stored_as(folder, "JPEG2000")
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.4.90", b"1.2.840.10008.1.2.4.91"))
    np.testing.assert_array_equal(read_series(folder).array[2], SMOOTH - 24)


def test_irreversible_jpeg_2000(folder):
    """The lossy wavelet, of another encoder, at a quarter of the size: HU near those that went in, and not the same."""
    written = io.BytesIO()
    Pillow.fromarray((SMOOTH + 1024).astype(np.uint16)).save(written, "JPEG2000", irreversible=True, no_jp2=True, quality_mode="rates", quality_layers=[4])
    data = encapsulate([written.getvalue()])
    whole(folder, syntax=JPEG2000, Rows=64, Columns=48, RescaleIntercept=-1024, PixelData=data)
    off = np.abs(read_series(folder).array[1] - SMOOTH)
    assert 0 < off.max() <= 10 and off.mean() < 1


def test_fewer_voxels_than_the_header_says(folder):
    whole(folder)
    slice_file(folder, 2, PixelData=VOXELS[2, :1].astype(np.uint16).tobytes())
    refused(folder, "CT002.dcm: truncated or damaged: it holds 6 of 12 bytes of voxels; copy or export it again")


def test_inverted_grey_values(folder):
    whole(folder, PhotometricInterpretation="MONOCHROME1")
    refused(folder, "CT000.dcm: its voxels are MONOCHROME1, not MONOCHROME2 as a CT's; export the series again")


def test_lossless_jpeg_under_its_general_name(folder):
    stored_as(folder, "JPEG")
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.4.70", b"1.2.840.10008.1.2.4.57"))
    np.testing.assert_array_equal(read_series(folder).array[2], SMOOTH - 24)


def test_run_lengths(folder):
    for k in range(4):
        path = slice_file(folder, k, Rows=64, Columns=48, PixelRepresentation=1, RescaleIntercept=0, PixelData=SMOOTH.tobytes())
        header = pydicom.dcmread(path)
        header.compress(RLELossless, generate_instance_uid=False)  # by pydicom itself
        header.save_as(path)
    np.testing.assert_array_equal(read_series(folder).array[3], SMOOTH)
    path.write_bytes(path.read_bytes()[:-100])
    refused(folder, "CT003.dcm: truncated or damaged: it holds no voxels; copy or export it again")


@pytest.mark.parametrize("compressor", ["JPEG2000", "JPEG"])
@pytest.mark.parametrize("harm", [lambda f: f[:-2], lambda f: f[: len(f) // 2], lambda f: b"\0" * len(f), lambda f: f[10:]])
def test_a_cut_stream_is_not_read_as_far_as_it_goes(folder, compressor, harm):
    stored_as(folder, compressor, harm)
    refused(folder, "CT002.dcm: truncated or damaged: its JPEG .* stream has no beginning or no end; copy or export it again")


@pytest.mark.parametrize("last, name", [(b"92", "JPEG 2000 Part 2 Multi-component"), (b"99", r"1\.2\.840\.10008\.1\.2\.4\.99")])
def test_a_compression_that_is_not_read_is_named(folder, last, name):
    stored_as(folder, "JPEG2000")
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.4.90", b"1.2.840.10008.1.2.4." + last))
    refused(folder, f"CT000.dcm: its voxels are stored as {name}.*, which is not read; export the series uncompressed")


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_other_uncompressed_files(folder, syntax):
    for k in range(4):
        slice_file(folder, k, syntax)
    np.testing.assert_array_equal(read_series(folder).array, VOXELS - 1024)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("from_group", [2, 8])
def test_files_without_a_preamble(folder, syntax, from_group):
    for path in whole(folder, syntax=syntax):
        without_preamble(path, from_group)
    np.testing.assert_array_equal(read_series(folder).array, VOXELS - 1024)


@pytest.mark.parametrize("signed", [0, 1])
def test_twelve_bits_in_sixteen(folder, signed):
    stored = VOXELS * 100 - 1000 * signed
    for k in range(4):
        slice_file(folder, k, BitsStored=12, HighBit=11, PixelRepresentation=signed, PixelData=stored[k].astype(np.int16).tobytes())
    np.testing.assert_array_equal(read_series(folder).array, stored - 1024)


@pytest.mark.parametrize("value, signed, told", [
    (5000, 0, "from 0 to 5000, but its header says 12 bits, unsigned"),  # 904 for GDCM
    (4096, 0, "from 0 to 4096, but its header says 12 bits, unsigned"),
    (65531, 0, "from 0 to 65531, but its header says 12 bits, unsigned"),
    (2048, 1, "from 0 to 2048, but its header says 12 bits, signed"),
    (-2049, 1, "from -2049 to 17, but its header says 12 bits, signed"),
    (4095, 0, ""), (2047, 1, ""), (-2048, 1, ""),
])  # fmt: skip
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_numbers_beyond_the_bits_stored(folder, value, signed, told, syntax):
    whole(folder, BitsStored=12, HighBit=11, PixelRepresentation=signed, syntax=syntax, PixelData=in_order(VOXELS[1], syntax))
    stored = VOXELS[2].copy()
    stored[1, 1], stored[0, 0] = value, 0
    slice_file(folder, 2, syntax, BitsStored=12, HighBit=11, PixelRepresentation=signed, PixelData=in_order(stored, syntax))
    if told:
        refused(folder, f"CT002.dcm: its voxels hold numbers {told}; export the series again")
    else:
        np.testing.assert_array_equal(read_series(folder).array[2], stored - 1024)


def in_order(stored, syntax) -> bytes:
    """PixelData of 16 bits in a transfer syntax's order of bytes."""
    return (stored & 65535).astype(">u2" if syntax == ExplicitVRBigEndian else "<u2").tobytes()


def test_overlays_in_the_voxels_spare_bits_are_no_numbers(folder):
    overlay = {"BitsStored": 12, "HighBit": 11, "PixelData": (VOXELS[1] + 4096 * (VOXELS[1] % 2)).astype(np.uint16).tobytes()}
    whole(folder, **overlay)
    for elsewhere in ({}, {"where": pydicom.DataElement(0x60000102, "US", 0)}):  # no overlay, and one that is stored by itself
        whole(folder, **overlay, **elsewhere)
        refused(folder, "CT000.dcm: its voxels hold numbers from 6 to 4107, but its header says 12 bits, unsigned")  # 11 + 4096
    whole(folder, **overlay, where=pydicom.DataElement(0x60000102, "US", 12))
    np.testing.assert_array_equal(read_series(folder).array[3], VOXELS[1] - 1024)


def test_a_signed_stream_under_a_header_that_says_unsigned(folder):
    stored_as(folder, "JPEG2000")
    files = sorted(folder.iterdir())
    header = pydicom.dcmread(files[1])
    header.PixelRepresentation = 0
    header.save_as(files[1])
    refused(folder, "CT001.dcm: its JPEG 2000 .* stream holds signed numbers, but its header says unsigned; export the series uncompressed")


def test_an_unsigned_stream_under_a_header_that_says_signed(folder):
    """GDCM reads these right."""
    data, syntax = compressed(SMOOTH, "JPEG2000", np.uint16)
    whole(folder, syntax=syntax, Rows=64, Columns=48, PixelRepresentation=1, RescaleIntercept=0, PixelData=data)
    np.testing.assert_array_equal(read_series(folder).array[1], SMOOTH)


# Broken series: each sentence names the slices


@pytest.mark.parametrize("left_out, told", [
    ([2], r"1 slice is missing \(number 3\): CT001.dcm and CT003.dcm are 6 mm apart where 3 mm is usual"),
    ([2, 3], r"2 slices are missing \(number 3, 4\): CT001.dcm and CT004.dcm are 9 mm apart"),
    ([2, 5], r"\(number 3\): CT001.dcm and CT003.dcm .*\(number 6\): CT004.dcm and CT006.dcm"),
])  # fmt: skip
def test_missing_slices(folder, left_out, told):
    whole(folder, [k for k in range(9) if k not in left_out])
    refused(folder, told)


def test_missing_slices_without_usable_numbers(folder):
    whole(folder, [0, 1, 3, 4], InstanceNumber=1)
    refused(folder, "1 slice is missing: CT001.dcm and CT003.dcm are 6 mm apart")


def test_uneven_spacing(folder):
    whole(folder, range(3))
    slice_file(folder, 3, ImagePositionPatient=[10, -20, 30 + 10])
    refused(folder, "uneven spacing: CT002.dcm and CT003.dcm are 4 mm apart where 3 mm is usual; export the whole series")


def test_positions_rounded_to_hundredths_are_even(folder):
    for k in range(4):
        slice_file(folder, k, ImagePositionPatient=[10, -20, round(k * 0.625, 2)])
    assert read_series(folder).geometry.spacing_mm[0] == pytest.approx(0.625, abs=0.01)


def test_gaps_that_drift(folder):
    """30 gaps of 3 mm and 30 of 3.05 mm, each within 2 % of the usual one: half-way the slices are 0.75 mm from the even stack's."""
    for k in range(61):
        slice_file(folder, k, ImagePositionPatient=[10, -20, 3 * k + 0.05 * max(k - 30, 0)])
    refused(folder, "uneven spacing: CT030.dcm lies 0.75 mm from its place in an even stack from CT000.dcm to CT060.dcm; export the whole")


@pytest.mark.parametrize("gap, start, decimals", [(0.625, 0.0, 2), (0.625, 0.004, 2), (2.5, 0.04, 1), (1.25, 0.003, 2), (2.9999, 0.0, 1)])
def test_rounded_positions_do_not_drift(folder, gap, start, decimals):
    for k in range(60):
        slice_file(folder, k, ImagePositionPatient=[10, -20, round(start + k * gap, decimals)])
    assert series_geometry(folder).spacing_mm[0] == pytest.approx(gap, abs=1e-3)


def test_duplicates(folder):
    whole(folder)
    slice_file(folder, 2, name="again")
    refused(folder, "duplicate slices at one place: (again.dcm and CT002.dcm|CT002.dcm and again.dcm); remove one of each")


def test_two_series(folder):
    whole(folder)
    other = generate_uid(entropy_srcs=["other"])
    path = slice_file(folder, 4, SeriesInstanceUID=other, name="other")
    refused(folder, f"2 series are mixed there, .*{other} \\(1 files, other.dcm …\\).*; put each into a folder of its own")
    refused([*sorted(folder.glob("CT*.dcm")), path], f"slices of different series are mixed: other.dcm with {other} among 4 with {SERIES};")


@pytest.mark.parametrize("tags, told", [
    ({"FrameOfReferenceUID": "1.2.3"}, "slices of different frame of reference are mixed: CT003.dcm with 1.2.3"),
    ({"Rows": 3, "Columns": 2}, r"slices of different rows and columns are mixed: CT003.dcm with \(3, 2\) among 3 with \(2, 3\)"),
    ({"PixelSpacing": [2, 1.6]}, r"slices of different pixel spacing are mixed: CT003.dcm with \(2.0, 1.6\) among 3 with \(2.0, 1.5\)"),
    ({"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}, "slices of different orientation are mixed: CT003.dcm"),
    ({"Modality": "MR"}, "CT003.dcm: is MR with 1 frames; export the CT as one file per slice"),
    ({"NumberOfFrames": 2}, "CT003.dcm: is CT with 2 frames; export the CT as one file per slice"),
    ({"ImagePositionPatient": None}, "CT003.dcm: its header has no ImagePositionPatient; export the CT's slices without scouts"),
    ({"RescaleSlope": None, "PixelSpacing": None}, "CT003.dcm: its header has no RescaleSlope, PixelSpacing;"),
    ({"RescaleSlope": 0}, "CT003.dcm: its RescaleSlope 0 and RescaleIntercept -1024 give no HU; export the series again"),
    ({"PixelSpacing": [2]}, r"CT003.dcm: its DICOM header is damaged \(TypeError\); export the series again"),
    ({"GantryDetectorTilt": 12}, "gantry tilt of 12° in the header of CT003.dcm; resample the series to an untilted grid"),
])  # fmt: skip
def test_one_slice_that_does_not_belong(folder, tags, told):
    files = whole(folder, range(3)) + [slice_file(folder, 3, **tags)]
    refused(files, told)


def test_a_tilted_gantry(folder):
    for k in range(4):
        slice_file(folder, k, ImagePositionPatient=[10, -20 + 0.5 * k, 30 + 3 * k])
    refused(folder, "gantry tilt: from CT000.dcm to CT003.dcm the slices slide sideways by 9.5°")  # atan(0.5 / 3)


def test_slices_beside_the_others(folder):
    """First and last lie in line, so it is no tilt, and the gaps along the stack are even."""
    whole(folder)
    slice_file(folder, 2, ImagePositionPatient=[10, -15, 36])
    refused(folder, "slices that lie beside the others, by up to 5 mm: CT002.dcm; export the slices of one reconstruction only")
    slice_file(folder, 2, ImagePositionPatient=[10.01, -20.01, 36])  # rounded
    assert read_series(folder).geometry.origin_mm == (10.0, -20.0, 30.0)


@pytest.mark.parametrize("spacing", [[0, 1.5], [-2, 1.5], [2, 1000]])
def test_pixel_spacing_that_cannot_be(folder, spacing):
    whole(folder, PixelSpacing=spacing)
    refused(folder, "its spacing .* is not within 0.05 to 50 mm")


@pytest.mark.parametrize("missing, told", [
    (1, "truncated or damaged: it holds 11 of 12 bytes"), (12, "truncated or damaged: it holds 0 of 12 bytes"),
    (60, "its header has no RescaleSlope"),
])  # fmt: skip
def test_a_truncated_slice(folder, missing, told):
    path = whole(folder)[2]
    path.write_bytes(path.read_bytes()[:-missing])
    refused(folder, f"CT002.dcm: {told}")


def test_a_constant_series(folder):
    whole(folder, PixelData=bytes(12))
    refused(folder, "every voxel is -1024, so it shows nothing")


def test_no_series_at_all(folder):
    refused(folder / "none", "none: no such folder; give the folder of a DICOM series")
    refused(folder, "no DICOM CT slices there")
    refused([], "0 DICOM slices are no volume")
    files = whole(folder, [0])
    refused(folder, "1 DICOM slices are no volume; give the whole series")
    (folder / "text.dcm").write_text("no DICOM " * 50)
    refused([*files, folder / "text.dcm"], "text.dcm: is no DICOM file")
    refused([*files, folder / "gone.dcm"], r"gone.dcm: cannot be read \(.*No such file")


def test_sequences_a_thousand_deep(folder):
    files = whole(folder, range(3))
    start = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"  # a sequence and an item of unknown length
    end = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    deep = slice_file(folder, 3)
    content = deep.read_bytes()
    at = content.index(b"\x08\x00\x60\x00CS")  # just before Modality
    deep.write_bytes(content[:at] + start * 1000 + end * 1000 + content[at:])
    refused([*files, deep], r"CT003.dcm: cannot be read \(maximum recursion depth exceeded")


def test_mutated_headers_are_refused_or_read_whole(folder):
    files, rng, outcomes = whole(folder), random.Random(0), {"read": 0, "refused": 0}
    original = files[2].read_bytes()
    for trial in range(100):
        content = bytearray(original)
        for _ in range(rng.choice((1, 2, 4))):
            content[rng.randrange(132, len(content))] = rng.randrange(256)
        files[2].write_bytes(content)
        try:
            assert read_series(files if trial % 2 else folder).array.shape == VOXELS.shape
            outcomes["read"] += 1
        except ImageError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 10  # both happen


# Real data


def test_a_real_series(real_data):
    image = read_series(real_data / "dicom" / "head_neck_ct")
    assert image.array.shape == (90, 511, 511) and image.array.dtype == np.int16
    assert image.geometry.spacing_mm == (3.0, 1.0, 1.0)
    assert image.array.min() == -1024 and image.array.max() == 3844
    one = pydicom.dcmread(real_data / "dicom" / "head_neck_ct" / "IMG_00040.dcm")  # pydicom's own decoder: an independent reading
    k = round(float(one.ImagePositionPatient[2]) - image.geometry.origin_mm[2]) // 3
    np.testing.assert_array_equal(image.array[k], one.pixel_array.astype(int) - 1024)


def test_a_real_series_with_a_gap(real_data):
    folder = real_data / "dicom" / "chest_ct_rtstruct" / "dcm"
    refused(folder, r"1 slice is missing \(number 82\): CT000081.dcm and CT000082.dcm are 1.6 mm apart where 0.8 mm is usual")
