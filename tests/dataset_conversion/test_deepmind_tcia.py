"""DeepMind's TCIA set: its folders, both readers, two scans of one patient, a clone without its large files."""
import hashlib

import numpy as np
import pytest

from tests.dataset_conversion.sources import ct, known, label_of, load, mask, nrrd, verified

deepmind_tcia = load("deepmind_tcia")
MASKS = {
    "oncologist": {"Spinal-Canal": mask((1, 5), (4, 7), (4, 7)), "Spinal-Cord": mask((1, 5), (5, 6), (5, 6)),
                   "Parotid-Lt": mask((2, 4), (2, 4), (7, 9)), "Parotid-Rt": mask((2, 4), (2, 4), (1, 3))},
    "radiographer": {"Parotid-Lt": mask((1, 4), (2, 4), (7, 9)), "Parotid-Rt": mask((1, 4), (2, 4), (1, 3))},
}  # fmt: skip
CASES = {"test": ("0522c0017", "TCGA-CV-7236"), "validation": ("0522c0727a", "0522c0727b")}


@pytest.fixture
def source(tmp_path):
    root = tmp_path / "tcia-ct-scan-dataset"
    for part, cases in CASES.items():
        for reader, masks in MASKS.items():
            for seed, case in enumerate(cases):
                folder = root / "nrrds" / part / reader / case
                nrrd(folder / "CT_IMAGE.nrrd", ct(seed))
                for organ, array in masks.items():
                    nrrd(folder / "segmentations" / f"{organ}.nrrd", array)
    return root


def convert(source, *args) -> int:
    return deepmind_tcia.main([str(source), "-d", "19", "--raw", str(source.parent / "raw"), *args])


def test_an_organ_inside_another_stays_whole(source, capsys):
    assert convert(source) == 0
    dataset = verified(source.parent / "raw" / "Dataset019_DeepMindTCIA")
    assert dataset.labels.organs == ("Parotid_L", "Parotid_R", "SpinalCanal", "SpinalCord")
    assert [c.id for c in dataset.training] == ["0522c0017", "TCGA-CV-7236"]
    assert [c.id for c in dataset.test] == ["0522c0727a", "0522c0727b"]
    assert dataset.patients["0522c0727a"] == dataset.patients["0522c0727b"] == "0522c0727"
    m = MASKS["oncologist"]
    expected = m["Parotid-Lt"] + 2 * m["Parotid-Rt"] + 3 * m["Spinal-Canal"] + 1 * m["Spinal-Cord"]  # 3 + 1 = 4: the cord's id
    np.testing.assert_array_equal(label_of(dataset.root, "TCGA-CV-7236"), expected)
    assert "SpinalCord and SpinalCanal overlap, by at most 4 voxels (4 cases); SpinalCord kept them" in capsys.readouterr().out


def test_the_ids_are_those_of_the_repositorys_folders():
    ids = {part: listed.split() for part, listed in deepmind_tcia.PARTS.items()}
    assert {part: len(listed) for part, listed in ids.items()} == {"test": 28, "validation": 7}
    assert len({*ids["test"], *ids["validation"]}) == 35
    assert hashlib.sha256(" ".join(ids["test"] + ids["validation"]).encode()).hexdigest()[:16] == "caf3f4efadeef5f4"


def test_scans_that_are_not_there_and_those_of_no_part_are_named(source, capsys):
    nrrd(source / "nrrds" / "test" / "oncologist" / "own_1" / "CT_IMAGE.nrrd", ct(5))
    nrrd(source / "nrrds" / "test" / "oncologist" / "own_1" / "segmentations" / "Parotid-Lt.nrrd", MASKS["oncologist"]["Parotid-Lt"])
    assert convert(source, "--test") == 0
    told = capsys.readouterr().err
    assert "26 of 28 scans of part test are not there: 0522c0057, 0522c0161, 0522c0226, 0522c0248, 0522c0251, …; complete" in told
    assert "1 folders of no known part are taken all the same: own_1" in told and "part validation" not in told
    assert "own_1" in known(verified(source.parent / "raw" / "Dataset019_DeepMindTCIA"))


def test_the_other_readers_masks(source):
    assert convert(source / "nrrds", "--reader", "radiographer", "--train", "validation", "test", "--test") == 0
    dataset = verified(source / "raw" / "Dataset019_DeepMindTCIA")
    assert dataset.labels.organs == ("Parotid_L", "Parotid_R") and len(dataset.training) == 4 and dataset.test == ()
    assert known(dataset) == dict.fromkeys(("0522c0017", "0522c0727a", "0522c0727b", "TCGA-CV-7236"))
    np.testing.assert_array_equal(label_of(dataset.root, "0522c0017") == 1, MASKS["radiographer"]["Parotid-Lt"] > 0)


def test_one_reader_is_not_mixed_with_the_other(source, capsys):
    assert convert(source, "--organs", "Parotid_L", "Parotid_R") == 0
    assert convert(source, "--organs", "Parotid_L", "Parotid_R", "--reader", "radiographer", "--update") == 1
    assert "was begun with other settings" in (error := capsys.readouterr().err) and "reader oncologist" in error


def test_the_scans_that_are_spelt_with_underscores(source, capsys):
    folder = source / "nrrds" / "test" / "oncologist" / "0522c0017" / "segmentations"
    for path in list(folder.iterdir()):
        path.rename(path.with_name(path.name.replace("-", "_")))
    nrrd(folder / "Parotid_Links.nrrd", mask((1, 2), (2, 4), (7, 9)))
    assert convert(source) == 0
    assert known(verified(source.parent / "raw" / "Dataset019_DeepMindTCIA"))["0522c0017"] is None
    error = capsys.readouterr().err
    assert "1 mask files are of no organ known here and are left out: " in error and "Parotid_Links.nrrd" in error


def test_a_pointer_of_git_lfs_is_told_as_such(source, capsys):
    path = source / "nrrds" / "test" / "oncologist" / "0522c0017" / "segmentations" / "Spinal-Cord.nrrd"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9000\n")
    assert convert(source) == 3
    assert "Spinal-Cord.nrrd: is a Git LFS pointer, not the file; install Git LFS and run 'git lfs pull'" in capsys.readouterr().err
    assert [c.id for c in verified(source.parent / "raw" / "Dataset019_DeepMindTCIA").training] == ["TCGA-CV-7236"]


def test_a_folder_without_scans_is_refused(tmp_path, capsys):
    assert convert(tmp_path / "nothing") == 1
    assert "no CASE/CT_IMAGE.nrrd below test/oncologist/ and validation/oncologist/; give the cloned repository" in capsys.readouterr().err
