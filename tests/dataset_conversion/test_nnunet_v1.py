"""nnU-Net v1 tasks: files copied as they are, names and numbers from the task, what cannot be used refused with its reason."""
import json

import pytest

from c2f_nnunet.geometry import Geometry
from c2f_nnunet.io.images import write_volume
from tests.dataset_conversion.sources import GRID, ct, known, load, mask, verified

nnunet_v1 = load("nnunet_v1")
LABELS = {"0": "background", "1": "brain_stem", "2": "Parotid_L", "3": "Parotid_R"}
LABEL = mask((2, 4), (5, 7), (4, 6)) + 2 * mask((2, 4), (2, 4), (7, 9)) + 3 * mask((2, 4), (2, 4), (1, 3))


@pytest.fixture
def task(tmp_path):
    """task(decathlon, **keys of dataset.json) → the folder of a task with two training cases and one test case."""

    def build(decathlon=False, **keys):
        root, channel = tmp_path / "Task055_HeadNeck", "" if decathlon else "_0000"
        for seed, case in enumerate(("hn_1", "hn_2")):
            write_volume(root / "imagesTr" / f"{case}{channel}.nii.gz", ct(seed), GRID)
            write_volume(root / "labelsTr" / f"{case}.nii.gz", LABEL, GRID)
        write_volume(root / "imagesTs" / f"hn_3{channel}.nii.gz", ct(3), GRID)
        value = {
            "name": "HeadNeck", "description": "made up", "tensorImageSize": "4D", "reference": "none", "licence": "MIT", "release": "0.0",
            "modality": {"0": "CT"}, "labels": LABELS, "numTraining": 2, "numTest": 1, "test": ["./imagesTs/hn_3.nii.gz"],
            "training": [{"image": f"./imagesTr/{c}.nii.gz", "label": f"./labelsTr/{c}.nii.gz"} for c in ("hn_1", "hn_2")], **keys,
        }  # fmt: skip
        (root / "dataset.json").write_text(json.dumps(value))
        return root

    return build


def convert(source, *args) -> int:
    return nnunet_v1.main([str(source), "--raw", str(source.parent / "raw"), *args])


@pytest.mark.parametrize("decathlon", [False, True])
def test_files_are_copied_as_they_are(task, decathlon):
    source = task(decathlon)
    assert convert(source) == 0
    dataset = verified(source.parent / "raw" / "Dataset055_HeadNeck")
    assert dataset.labels.organs == ("Brainstem", "Parotid_L", "Parotid_R") and known(dataset) == dict.fromkeys(("hn_1", "hn_2", "hn_3"))
    channel = "" if decathlon else "_0000"
    assert dataset.training[0].image.read_bytes() == (source / "imagesTr" / f"hn_1{channel}.nii.gz").read_bytes()
    assert dataset.training[1].label.read_bytes() == (source / "labelsTr" / "hn_2.nii.gz").read_bytes()
    assert dataset.test[0].image.read_bytes() == (source / "imagesTs" / f"hn_3{channel}.nii.gz").read_bytes()
    assert dataset.test[0].label is None
    about = json.loads((dataset.root / "dataset.json").read_text())
    assert about["licence"] == "MIT" and about["labels"] == {"background": 0, "Brainstem": 1, "Parotid_L": 2, "Parotid_R": 3}


def test_number_name_and_spelling_can_be_given_and_test_labels_come_along(task):
    source = task()
    write_volume(source / "labelsTs" / "hn_3.nii.gz", LABEL, GRID)
    assert convert(source, "-d", "7", "--name", "Mine", "--names", "source") == 0
    dataset = verified(source.parent / "raw" / "Dataset007_Mine")
    assert dataset.labels.organs == ("brain_stem", "Parotid_L", "Parotid_R")
    assert dataset.test[0].label.read_bytes() == (source / "labelsTs" / "hn_3.nii.gz").read_bytes()
    stamps = {p: p.stat().st_mtime_ns for p in dataset.root.rglob("*.nii.gz")}
    assert convert(source, "-d", "7", "--name", "Mine", "--names", "source", "--update") == 0
    assert stamps == {p: p.stat().st_mtime_ns for p in dataset.root.rglob("*.nii.gz")}


def test_padded_ids_and_a_test_entrys_own_label(task):
    source = task(labels={f"0{i}": name for i, name in LABELS.items()}, test=[{"image": "./imagesTs/hn_3.nii.gz", "label": "./drawn/three.nii.gz"}])
    write_volume(source / "drawn" / "three.nii.gz", LABEL, GRID)
    assert convert(source) == 0
    dataset = verified(source.parent / "raw" / "Dataset055_HeadNeck")
    assert dataset.labels.ids == (1, 2, 3)
    assert dataset.test[0].label.read_bytes() == (source / "drawn" / "three.nii.gz").read_bytes()


@pytest.mark.parametrize("keys, sentence", [
    ({"modality": {"0": "CT", "1": "T1"}}, "has 2 modalities (CT, T1), but only one channel, the CT, can be used; make a task"),
    ({"modality": {"0": "MRI"}}, "its images are MRI, but only CTs can be used"),
    ({"labels": {"background": "0", "a": "1"}}, "labels must be id: name, each id once and the background as 0"),
    ({"labels": {**LABELS, "01": "Chiasm"}}, "each id once"),
    ({"labels": {**LABELS, "3": "Parotid_L"}}, "two labels share a name"),
    ({"training": ["a"]}, "not a valid Task: training.0"),
])  # fmt: skip
def test_what_cannot_be_used_is_refused_with_its_reason(task, capsys, keys, sentence):
    source = task(**keys)
    assert convert(source) == 1
    assert sentence in capsys.readouterr().err and not (source.parent / "raw").exists()


def test_a_data_set_of_version_two_is_refused(task, capsys):
    source = task()
    (source / "dataset.json").write_text(json.dumps({"channel_names": {"0": "CT"}, "labels": {"background": 0}, "file_ending": ".nii.gz"}))
    assert convert(source) == 1
    assert "has no 'modality', so it is not nnU-Net v1's; give a folder TaskXXX_Name" in capsys.readouterr().err


@pytest.mark.parametrize("label, geometry, sentence", [
    (LABEL + 4 * mask((1, 2), (1, 2), (1, 2)), GRID, "hn_2.nii.gz: holds the labels [4], which dataset.json does not list"),
    (LABEL, Geometry(GRID.shape, GRID.spacing_mm, (0.0, 0.0, 0.0)), "hn_2.nii.gz: its grid of (6, 8, 10) voxels is not the image's"),
])  # fmt: skip
def test_a_bad_label_map_fails_its_case_alone(task, capsys, label, geometry, sentence):
    source = task()
    write_volume(source / "labelsTr" / "hn_2.nii.gz", label, geometry)
    assert convert(source) == 3
    assert sentence in capsys.readouterr().err
    assert [c.id for c in verified(source.parent / "raw" / "Dataset055_HeadNeck").training] == ["hn_1"]
