"""Reading a raw data set by its file names: empty files stand for images, since no voxel is read."""
import json
import logging
import unicodedata

import pytest

from c2f_nnunet.data.dataset import prediction_cases, read_dataset
from c2f_nnunet.errors import DatasetError, RecordError
from tests.io.test_dicom import slice_file

LABELS = {"background": 0, "Stem": 1, "Parotid_L": 3, "Parotid_R": 2}


@pytest.fixture
def make(tmp_path):
    """make(images, masks, tests, **keys of dataset.json) → the data set's folder; a key given as ... is left out."""

    def build(images="ab", masks="ab", tests=(), **keys):
        root = tmp_path / "Dataset001_Made"
        names = {"imagesTr": [f"{c}_0000.nii.gz" for c in images], "labelsTr": [f"{c}.nii.gz" for c in masks]}
        names["imagesTs"] = [f"{c}_0000.nii.gz" for c in tests]
        for folder, files in names.items():
            (root / folder).mkdir(parents=True, exist_ok=True)
            for file in files:
                (root / folder / file).touch()
        description = {"channel_names": {"0": "CT"}, "labels": LABELS, "file_ending": ".nii.gz", **keys}
        (root / "dataset.json").write_text(json.dumps({k: v for k, v in description.items() if v is not ...}))
        return root

    return build


def test_cases_labels_and_optional_keys(make):
    root = make(
        images=["b", "a b", "ü_seg", "-x"], masks=["b", "a b", "ü_seg", "-x"], tests=["t"], name="Any name", licence="MIT", numTraining=4,
        annotated={"b": ["Parotid_L", "Stem"], "t": []}, patients={"b": 7, "t": "p 1"},
    )
    dataset = read_dataset(root)
    assert dataset.name == "Dataset001_Made"
    assert dataset.labels.organs == ("Stem", "Parotid_R", "Parotid_L") and dataset.labels.ids == (1, 2, 3)
    assert [c.id for c in dataset.training] == ["-x", "a b", "b", "ü_seg"]
    b = dataset.training[2]
    assert b.image == root / "imagesTr/b_0000.nii.gz" and b.label == root / "labelsTr/b.nii.gz"
    assert b.annotated == ("Stem", "Parotid_L")  # in label order
    assert dataset.training[0].annotated is None
    assert [(c.id, c.label, c.annotated) for c in dataset.test] == [("t", None, ())]
    assert dataset.patients == {"b": "7", "t": "p 1"}


def test_test_labels_are_found_and_other_files_ignored(make):
    root = make(tests=["t"])
    (root / "labelsTs").mkdir()
    (root / "labelsTs/t.nii.gz").touch()
    for stray in ("imagesTr/notes.txt", "imagesTr/._a_0000.nii.gz", "imagesTr/a_0000.nrrd", "labelsTr/a.json"):
        (root / stray).touch()
    dataset = read_dataset(root)
    assert [c.id for c in dataset.training] == ["a", "b"]
    assert dataset.test[0].label == root / "labelsTs/t.nii.gz"


def test_everything_missing_is_listed_at_once(make):
    message = r"3 files of training cases are missing: imagesTr/c_0000.nii.gz, imagesTr/d_0000.nii.gz, labelsTr/a.nii.gz; add"
    with pytest.raises(DatasetError, match=message):
        read_dataset(make(images="ab", masks="bcd"))


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"channel_names": {"0": "CT", "1": "MR"}}, "channel_names must hold exactly one channel, the CT, but holds 0: CT, 1: MR"),
        ({"channel_names": {}}, "exactly one channel, the CT, but holds none"),
        ({"labels": {**LABELS, "both": [2, 3]}}, r"label 'both' is a region \[2, 3\]"),
        ({"labels": {**LABELS, "ignore": 4}}, r"label 'ignore' \(4\) is not supported; .*'annotated'"),
        ({"labels": {"background": 0, "Stem": "1"}}, "label 'Stem' has the id '1'"),
        ({"labels": {"0": "background", "1": "Stem"}}, "label '0' has the id 'background'"),
        ({"labels": {"background": 0, "Stem": True}}, "label 'Stem' has the id True"),
        ({"labels": {"background": 0, "Stem": 70000}}, "id 70000; write .* from 0 to 65535"),
        ({"labels": {"background": 0, "Stem": 1, "Cord": 1}}, "two organs share one id"),
        ({"labels": {"Stem": 1}}, 'must hold "background": 0'),
        ({"labels": {"background": 0, "Stem": 0}}, "no other label with the id 0"),
        ({"labels": {"background": 0}}, "names no organ besides the background"),
        ({"labels": {"background": 0, "Stem": 1, "STEM": 2}}, "labels 'Stem' and 'STEM' differ only by upper case"),
        ({"labels": {"background": 0, " ": 1}}, "label name ' ' is blank"),
        ({"file_ending": ".png"}, r"file_ending '.png' cannot be read; convert the images to one of .nii.gz, .nii, .nrrd, .mha"),
        ({"annotated": {"a": ["Stem", "Liver"], "z": ["Stem"]}}, "case 'z' has no image; a: 'Liver' is not one of the labels"),
        ({"annotated": {"a": []}}, "'annotated' lists no organ for a; move"),
        ({"patients": {"z": "p1"}}, "'patients' names cases without an image: z"),
        ({"anotated": {"a": ["Stem"]}}, "unknown key 'anotated'; write 'annotated'"),
        ({"channel_names": ..., "modality": {"0": "CT"}}, "nnU-Net v1's format"),
        ({"dataset": {}}, "lists files under 'dataset'"),
    ],
)
def test_bad_dataset_json(make, keys, message):
    with pytest.raises(DatasetError, match=message):
        read_dataset(make(**keys))


def test_missing_keys_and_wrong_types_are_named_together(make):
    with pytest.raises(RecordError, match="dataset.json: .*channel_names: Field required.*file_ending: .*annotated.a: "):
        read_dataset(make(channel_names=..., file_ending=3, annotated={"a": "Stem"}))


def test_no_dataset_json(tmp_path):
    with pytest.raises(RecordError, match="dataset.json: no such file"):
        read_dataset(tmp_path)


def test_no_training_case_says_what_was_expected(make):
    root = make(images="", masks="")
    with pytest.raises(DatasetError, match=r"imagesTr: no training case there; expected files named CASE_0000.nii.gz; add the images"):
        read_dataset(root)
    (root / "imagesTr/a_0000.nrrd").touch()
    with pytest.raises(DatasetError, match=r"it holds .nrrd files: convert them or mend file_ending"):
        read_dataset(root)


def test_channel_suffix(make):
    root = make()
    (root / "imagesTr/a_0001.nii.gz").touch()
    with pytest.raises(DatasetError, match=r"a_0001.nii.gz: is channel 0001 of case a, but only one channel"):
        read_dataset(root)
    (root / "imagesTr/a_0001.nii.gz").rename(root / "imagesTr/c.nii.gz")
    with pytest.raises(DatasetError, match=r"c.nii.gz: the name has no channel suffix; rename it to c_0000.nii.gz"):
        read_dataset(root)


@pytest.mark.parametrize(
    "one, other",
    [("Case", "case"), (unicodedata.normalize("NFC", "fränk"), unicodedata.normalize("NFD", "fränk")), ("straße", "STRASSE")],
)
def test_ids_that_collide(make, one, other):
    with pytest.raises(DatasetError, match="differ only by upper case or Unicode form; rename one"):
        read_dataset(make(images=[one, other], masks=[one, other]))


def test_image_and_label_named_in_two_unicode_forms(make):
    with pytest.raises(DatasetError, match="differ only by upper case or Unicode form"):
        read_dataset(make(images=[unicodedata.normalize("NFC", "é")], masks=[unicodedata.normalize("NFD", "é")]))


def test_names_that_cannot_be_printed(make):
    with pytest.raises(DatasetError, match=r"file name 'a\\nb_0000.nii.gz' holds characters that cannot be printed"):
        read_dataset(make(images=["a\nb"], masks=["a\nb"]))


def test_doubtful_things_are_logged(make, caplog):
    with caplog.at_level(logging.WARNING):
        read_dataset(make(tests="b", numTraining=3, channel_names={"0": "MR"}))
    assert "numTraining is 3, but imagesTr holds 2 cases" in caplog.text
    assert "b in both imagesTr and imagesTs" in caplog.text
    assert "the channel is called 'MR'" in caplog.text


@pytest.mark.parametrize(
    "files, ids",
    [
        (["b_0000.nii.gz", "a_0000.nii.gz", "notes.txt"], ["a", "b"]),
        (["b.nii.gz", "a.nii.gz"], ["a", "b"]),
        (["scan_2023.nii.gz", "scan_2024.nii.gz"], ["scan_2023", "scan_2024"]),  # years, no channels: nothing is _0000
    ],
)
def test_prediction_cases(tmp_path, files, ids):
    for file in files:
        (tmp_path / file).touch()
    cases = prediction_cases(tmp_path, ".nii.gz")
    assert [c.id for c in cases] == ids
    assert all(c.image.is_file() and c.label is None and c.annotated is None for c in cases)


@pytest.mark.parametrize(
    "files, message",
    [
        ([], "no image there; expected files named CASE_0000.nii.gz; add the images or check the path"),
        (["a_0000.mha"], "expected files named CASE_0000.nii.gz; it holds .mha files"),
        (["a_0000.nii.gz", "b.nii.gz"], "b.nii.gz: the name has no channel suffix; rename it to b_0000.nii.gz"),
        (["a_0000.nii.gz", "a_0001.nii.gz"], "is channel 0001 of case a"),
        (["a.nii.gz", "A.nii.gz"], "differ only by upper case"),
    ],
)
def test_bad_prediction_folders(tmp_path, files, message):
    for file in files:
        (tmp_path / file).touch()
    with pytest.raises(DatasetError, match=message):
        prediction_cases(tmp_path, ".nii.gz")


def test_dicom_series_beside_images(tmp_path):
    """Both are taken; a series whose folder is called as an image gets the end of its UID."""
    for name in ("a_0000.nii.gz", "b_0000.nii.gz"):
        (tmp_path / name).touch()
    for name, uid in (("P01", "1.2.5"), ("B", "1.2.6")):
        (tmp_path / name).mkdir()
        for k in range(2):
            slice_file(tmp_path / name, k, SeriesInstanceUID=uid)
    cases = {c.id: c.image for c in prediction_cases(tmp_path, ".nii.gz")}
    assert cases == {
        "B_126": (tmp_path / "B" / "CT000.dcm", tmp_path / "B" / "CT001.dcm"),
        "P01": (tmp_path / "P01" / "CT000.dcm", tmp_path / "P01" / "CT001.dcm"),
        "a": tmp_path / "a_0000.nii.gz", "b": tmp_path / "b_0000.nii.gz",
    }  # fmt: skip
    assert list(cases) == sorted(cases)


def test_a_folder_without_images_and_series_says_that_both_would_do(tmp_path):
    slice_file(tmp_path, 0, Modality="MR")
    with pytest.raises(DatasetError, match="no image there; expected files .*; a folder of DICOM CT series will do as well"):
        prediction_cases(tmp_path, ".nii.gz")


def test_prediction_folder_missing(tmp_path):
    with pytest.raises(DatasetError, match="nowhere: no such folder"):
        prediction_cases(tmp_path / "nowhere", ".nii.gz")


def test_real_data_sets(real_data):
    whole = read_dataset(real_data / "raw/Dataset015_HeadNeckKBP")
    assert (len(whole.training), len(whole.test), whole.patients) == (60, 18, {})
    assert whole.labels.pairs == (("Parotid_L", "Parotid_R"),)
    assert all(c.annotated is None for c in whole.training) and all(c.label for c in whole.test)
    partial = read_dataset(real_data / "raw/Dataset016_HeadNeckPartial")
    assert (len(partial.training), len(partial.test)) == (24, 0)
    assert partial.training[0].id == "hn_003"
    assert partial.training[0].annotated == ("BrainStem", "SpinalCord", "Parotid_R", "Parotid_L")


@pytest.mark.parametrize("name", ["dataset", "Checks", "summary"])
def test_a_scan_whose_notes_would_lie_over_our_own_files_is_refused(tmp_path, name):
    for case in ("a", name):
        (tmp_path / f"{case}_0000.nii.gz").touch()
    with pytest.raises(DatasetError, match=f"{name}_0000.nii.gz would have its notes in {name}.json, which c2f_nnunet writes; rename it"):
        prediction_cases(tmp_path, ".nii.gz")
