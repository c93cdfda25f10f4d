"""FAULTS rows 42 to 44: broken, crafted and mutated DICOM series, through c2f_predict.

What each tag does to a series is tested in tests/io/test_dicom.py; here is that a fault is told with its slices, that the other series
are segmented all the same, and what a crafted file may not do.
"""
import random
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest
from pydicom.sequence import Sequence
from pydicom.uid import MediaStorageDirectoryStorage, generate_uid

from c2f_nnunet.io.images import read_image, read_label
from tests.faults.inputs import error, segment, state
from tests.faults.processes import run
from tests.io.test_dicom import write_series

DEEP_START = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"  # a sequence and an item of unknown length
DEEP_END = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"


@pytest.fixture
def scans(tiny_trained, tmp_path):
    """A folder with one whole series of 24 slices, 4 mm apart, in "good"; `add` writes the same patient under another name."""
    ct = read_image(tiny_trained.raw / "imagesTs" / "s0_0000.nii.gz")
    source = tmp_path / "scans"

    def add(name: str):
        write_series(source / name, ct.array, ct.geometry, SeriesInstanceUID=generate_uid())
        return source / name

    add("good")
    return SimpleNamespace(tiny=tiny_trained, source=source, out=tmp_path / "out", add=add, ct=ct)


@pytest.fixture(scope="module")
def expected(tiny_trained, tmp_path_factory):
    """The labels of the same patient's NIfTI file, by the coarse stage."""
    out = tmp_path_factory.mktemp("expected")
    assert segment(tiny_trained, "imagesTs", out, "--stage", "coarse", "-num_parts", 2) == 0
    return read_label(out / "s0.nii.gz").array


def edit(path, **tags) -> None:
    header = pydicom.dcmread(path)
    for name, value in tags.items():
        setattr(header, name, value)
    header.save_as(path)


def moved(path, aside: float = 0.0, along: float = 0.0) -> None:
    x, y, z = pydicom.dcmread(path).ImagePositionPatient
    edit(path, ImagePositionPatient=[float(x), round(y + aside, 3), round(z + along, 3)])


def missing(folder) -> None:
    (folder / "CT003.dcm").unlink()


def twice(folder) -> None:
    shutil.copy(folder / "CT002.dcm", folder / "again.dcm")
    edit(folder / "again.dcm", SOPInstanceUID=generate_uid())


def tilted(folder) -> None:
    for k, path in enumerate(sorted(folder.iterdir())):
        moved(path, aside=k)


def uneven(folder) -> None:
    moved(folder / "CT003.dcm", along=1)


def other_grid(folder) -> None:
    edit(folder / "CT005.dcm", PixelSpacing=[4, 4.5])


def other_frame(folder) -> None:
    edit(folder / "CT006.dcm", FrameOfReferenceUID="1.2.3")


def emptied(folder) -> None:
    (folder / "CT023.dcm").write_bytes(b"")  # the last one: it leaves no gap


def cut(folder) -> None:
    (folder / "CT007.dcm").write_bytes((folder / "CT007.dcm").read_bytes()[:-100])


def one_slice(folder) -> None:
    for path in sorted(folder.iterdir())[1:]:
        path.unlink()


def frames(folder) -> None:
    edit(folder / "CT008.dcm", NumberOfFrames=2)


FAULTS = [
    (missing, r"1 slice is missing \(number 4\): CT002\.dcm and CT004\.dcm are 8 mm apart where 4 mm is usual; export"),
    (twice, r"duplicate slices at one place: (CT002\.dcm and again\.dcm|again\.dcm and CT002\.dcm); remove one of each"),
    (tilted, r"gantry tilt: from CT000\.dcm to CT023\.dcm the slices slide sideways by 14°; resample"),  # atan(1 / 4)
    (uneven, r"uneven spacing: CT002\.dcm and CT003\.dcm are 5 mm apart where 4 mm is usual, uneven spacing: CT003\.dcm and CT004\.dcm"),
    (other_grid, r"slices of different pixel spacing are mixed: CT005\.dcm with \(4\.0, 4\.5\) among 23 with \(4\.0, 4\.0\); give"),
    (other_frame, r"slices of different frame of reference are mixed: CT006\.dcm with 1\.2\.3"),
    (emptied, r"/CT023\.dcm: is no DICOM file; "),
    (cut, r"/CT007\.dcm: truncated or damaged: it holds 3100 of 3200 bytes of voxels; copy or export it again"),
    (one_slice, "1 DICOM slices are no volume; give the whole series"),
    (frames, r"/CT008\.dcm: is CT with 2 frames; export the CT as one file per slice"),
]


def test_row_42_broken_series_are_skipped_and_named(scans, expected, capsys):
    for harm, _ in FAULTS:
        harm(scans.add(harm.__name__))
    before = state(scans.source)
    assert segment(scans.tiny, scans.source, scans.out, "--stage", "coarse") == 3
    message = error(capsys.readouterr().err)
    assert state(scans.source) == before
    assert message.startswith(f"{len(FAULTS)} of {len(FAULTS) + 1} cases failed, the others are done: ")
    for harm, told in FAULTS:
        case = harm.__name__
        assert re.search(rf"{case}: {scans.source / case}(: )?{told}", message), (case, message)
    assert {f.name for f in scans.out.iterdir()} == {"checks.json", "dataset.json", "good.json", "good.nii.gz"}
    np.testing.assert_array_equal(read_label(scans.out / "good.nii.gz").array, expected)


def test_row_42_series_mixed_in_one_folder_are_cases_of_their_own(scans, expected, capsys):
    """Two whole ones and one that lost a slice, all in one folder, with files of one name overwritten by none."""
    for name in ("a", "b", "c"):
        folder = scans.add(name)
        for path in folder.iterdir():
            edit(path, PatientID="HN 7")
            path.rename(scans.source / f"{name}{path.name}")
        folder.rmdir()
    (scans.source / "cCT009.dcm").unlink()
    ends = {n: re.sub(r"\D", "", pydicom.dcmread(scans.source / f"{n}CT000.dcm").SeriesInstanceUID)[-8:] for n in "abc"}
    assert segment(scans.tiny, scans.source, scans.out, "--stage", "coarse") == 3
    message = error(capsys.readouterr().err)
    assert message.startswith(f"1 of 4 cases failed, the others are done: HN_7_{ends['c']}: {scans.source}: 1 slice is missing (number 10): "
                              "cCT008.dcm and cCT010.dcm are 8 mm apart")
    for case in ("good", f"HN_7_{ends['a']}", f"HN_7_{ends['b']}"):
        np.testing.assert_array_equal(read_label(scans.out / f"{case}.nii.gz").array, expected)


@pytest.mark.parametrize("depth", [1000, 20_000])
def test_row_43_sequences_a_thousand_deep(scans, tmp_path, depth):
    """In a process of its own: an overflow of the stack would be its death."""
    path = scans.add("deep") / "CT002.dcm"
    content = path.read_bytes()
    at = content.index(b"\x08\x00\x60\x00CS")  # just before Modality
    path.write_bytes(content[:at] + DEEP_START * depth + DEEP_END * depth + content[at:])
    args = scans.tiny.args("-i", scans.source, "-o", scans.out, "-d", 901, "-device", "cpu", "--disable_tta", "--stage", "coarse")
    code, shown = run(tmp_path / "shown", "predict", args)
    assert code == 3 and error(shown).startswith(f"1 of 2 cases failed, the others are done: deep: {path}: cannot be read ("), shown
    assert (scans.out / "good.nii.gz").exists() and not (scans.out / "deep.nii.gz").exists()


@pytest.mark.parametrize("harmed", ["DICOMDIR", "bad/CT001.dcm"])
@pytest.mark.parametrize("reference", [b"..\\secret\\CT009 ", b"../secret/CT009 ", b"/etc\\passwd     ", b"C:\\secret\\CT009 "])
def test_row_43_references_out_of_the_folder(scans, expected, tmp_path, reference, harmed, capsys):
    """In a DICOMDIR, or in a slice's sequence of references: told, and never followed."""
    shutil.copytree(scans.add("secret"), tmp_path / "secret")
    shutil.rmtree(scans.source / "secret")
    item = pydicom.Dataset()
    item.DirectoryRecordType, item.ReferencedFileID = "IMAGE", "A" * len(reference)  # pydicom would not write the evil one itself
    listing = pydicom.Dataset()
    listing.FileSetID, listing.DirectoryRecordSequence = "EVIL", Sequence([item])
    listing.file_meta = pydicom.dataset.FileMetaDataset()
    listing.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    listing.file_meta.MediaStorageSOPClassUID, listing.file_meta.MediaStorageSOPInstanceUID = MediaStorageDirectoryStorage, generate_uid()
    listing.save_as(scans.source / "DICOMDIR", enforce_file_format=True)
    edit(scans.add("bad") / "CT001.dcm", ReferencedImageSequence=Sequence([item]))
    path = scans.source / harmed
    assert path.read_bytes().count(b"A" * len(reference)) == 1
    path.write_bytes(path.read_bytes().replace(b"A" * len(reference), reference))
    assert segment(scans.tiny, scans.source, scans.out, "--stage", "coarse") == 3
    told = reference.strip().decode().replace("\\", "/")
    assert f"{path}: refers to a file outside of its folder ({told}); do not trust this export" in error(capsys.readouterr().err)
    assert {f.name for f in scans.out.iterdir()} - {"bad.json", "bad.nii.gz"} == {"checks.json", "dataset.json", "good.json", "good.nii.gz"}
    assert (scans.out / "bad.nii.gz").exists() == (harmed == "DICOMDIR")
    np.testing.assert_array_equal(read_label(scans.out / "good.nii.gz").array, expected)


def test_row_44_mutated_headers(scans, tmp_path):
    """Twelve series with one slice of mutated bytes each: told with their folder, or segmented; no crash, no hang."""
    rng = random.Random(0)
    for number in range(12):
        path = scans.add(f"m{number}") / "CT010.dcm"
        content = bytearray(path.read_bytes())
        for _ in range(rng.choice((1, 2, 4))):
            content[rng.randrange(len(content) - scans.ct.array[0].size * 2)] = rng.randrange(256)
        path.write_bytes(content)
    args = scans.tiny.args("-i", scans.source, "-o", scans.out, "-d", 901, "-device", "cpu", "--disable_tta", "--stage", "coarse")
    code, shown = run(tmp_path / "shown", "predict", args)
    done = {f.name.removesuffix(".nii.gz") for f in scans.out.glob("*.nii.gz")}
    failed = {f"m{number}" for number in range(12)} - done
    assert "good" in done and code == (3 if failed else 0), shown
    for case in failed:
        assert re.search(rf"\b{case}(_damaged|_[0-9]+)?: {scans.source / case}", error(shown)), (case, shown)
    for case in done - {"good"}:
        assert read_label(scans.out / f"{case}.nii.gz").array.shape == scans.ct.array.shape
