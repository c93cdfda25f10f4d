"""FAULTS rows 42 and 43: broken and malicious DICOM series, as `io.dicom` reads them (no command reads DICOM yet).

What each tag does to a series is tested in tests/io/test_dicom.py; here is that each fault is told with its slices, and what a crafted
file may not do.
"""
import os
import subprocess
import sys

import pydicom
import pytest
from pydicom.sequence import Sequence
from pydicom.uid import MediaStorageDirectoryStorage, generate_uid

from c2f_nnunet.errors import ImageError
from c2f_nnunet.io.dicom import find_series, read_series
from tests.faults.inputs import state
from tests.io.test_dicom import slice_file


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "ct").mkdir()
    return tmp_path / "ct"


def missing(folder) -> None:
    (folder / "CT003.dcm").unlink()


def twice(folder) -> None:
    slice_file(folder, 2, name="again")


def mixed(folder) -> None:
    slice_file(folder, 4, SeriesInstanceUID=generate_uid())


def tilted(folder) -> None:
    for k in range(6):
        slice_file(folder, k, ImagePositionPatient=[10, -20 + 0.8 * k, 30 + 3 * k])


def uneven(folder) -> None:
    slice_file(folder, 3, ImagePositionPatient=[10, -20, 30 + 3 * 3 + 1])


@pytest.mark.parametrize("harm, told", [
    (missing, r"1 slice is missing \(number 4\): CT002\.dcm and CT004\.dcm are 6 mm apart where 3 mm is usual"),
    (twice, r"duplicate slices at one place: .*(CT002\.dcm and again\.dcm|again\.dcm and CT002\.dcm)"),
    (mixed, r"2 series are mixed there, .* \(5 files, CT000\.dcm …\); .* \(1 files, CT004\.dcm …\)"),
    (tilted, r"gantry tilt: from CT000\.dcm to CT005\.dcm the slices slide sideways by 15°"),
    (uneven, r"uneven spacing: CT002\.dcm and CT003\.dcm are 4 mm apart where 3 mm is usual, uneven spacing: CT003\.dcm and CT004\.dcm"),
])  # fmt: skip
def test_row_42_a_broken_series(folder, harm, told):
    for k in range(6):
        slice_file(folder, k)
    harm(folder)
    before = state(folder)
    with pytest.raises(ImageError, match=told) as found:
        read_series(folder)
    assert str(found.value).startswith(str(folder)) and "\n" not in str(found.value) and state(folder) == before


READ = """
import sys
from c2f_nnunet.errors import ImageError
from c2f_nnunet.io.dicom import read_series
try:
    read_series(sys.argv[1])
except ImageError as e:
    print(e)
    sys.exit(7)
"""


@pytest.mark.parametrize("depth", [1000, 20_000])
def test_row_43_sequences_a_thousand_deep(folder, depth):
    """Read in a child process: an overflow of the stack would be its death."""
    for k in range(4):
        slice_file(folder, k)
    start = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"  # a sequence and an item of unknown length
    end = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    content = (folder / "CT002.dcm").read_bytes()
    at = content.index(b"\x08\x00\x60\x00CS")  # just before Modality
    (folder / "CT002.dcm").write_bytes(content[:at] + start * depth + end * depth + content[at:])
    done = subprocess.run([sys.executable, "-c", READ, str(folder)], capture_output=True, text=True, timeout=120,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 7 and done.stdout.startswith(str(folder / "CT002.dcm")) and not done.stderr, done


@pytest.mark.parametrize("reference", [b"..\\secret\\CT009 ", b"../secret/CT009 ", b"/etc\\passwd     "])
def test_row_43_references_out_of_the_folder(folder, reference, tmp_path):
    """A DICOMDIR, and sequences of references, lead nowhere: only what lies in the folder itself is read."""
    files = [slice_file(folder, k) for k in range(4)]
    (tmp_path / "secret").mkdir()
    slice_file(tmp_path / "secret", 9, name="CT009")
    item = pydicom.Dataset()
    item.DirectoryRecordType, item.ReferencedFileID = "IMAGE", "A" * len(reference)  # pydicom would not write the evil one itself
    listing = pydicom.Dataset()
    listing.FileSetID, listing.DirectoryRecordSequence = "EVIL", Sequence([item])
    listing.file_meta = pydicom.dataset.FileMetaDataset()
    listing.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    listing.file_meta.MediaStorageSOPClassUID, listing.file_meta.MediaStorageSOPInstanceUID = MediaStorageDirectoryStorage, generate_uid()
    listing.save_as(folder / "DICOMDIR", enforce_file_format=True)
    slice_file(folder, 1, ReferencedImageSequence=Sequence([item]))
    for path in (folder / "DICOMDIR", folder / "CT001.dcm"):
        assert path.read_bytes().count(b"A" * len(reference)) == 1
        path.write_bytes(path.read_bytes().replace(b"A" * len(reference), reference))
    assert list(find_series(folder).values()) == [tuple(files)]
    assert read_series(folder).array.shape[0] == 4
    with pytest.raises(ImageError, match="DICOMDIR: its header has no SeriesInstanceUID"):
        read_series([*files, folder / "DICOMDIR"])
