"""PDDCA: its folders and file names, its four parts, organs that were not delineated, overlaps of a few voxels."""
import hashlib

import numpy as np
import pytest

from tests.dataset_conversion.sources import GRID, ct, image_of, known, label_of, load, mask, nrrd, verified

pddca = load("pddca")
MASKS = {  # z, y, x; x below 5 is the patient's right
    "BrainStem": mask((1, 4), (5, 7), (4, 6)), "Chiasm": mask((4, 5), (3, 4), (4, 6)), "Mandible": mask((1, 2), (1, 3), (2, 8)),
    "OpticNerve_L": mask((4, 5), (1, 4), (5, 7)), "OpticNerve_R": mask((4, 5), (1, 3), (3, 5)),  # the left one runs into the chiasm
    "Parotid_L": mask((2, 4), (3, 5), (7, 9)), "Parotid_R": mask((2, 4), (3, 5), (1, 3)),
    "Submandibular_L": mask((1, 2), (3, 5), (7, 9)), "Submandibular_R": mask((1, 2), (3, 5), (1, 3)),
}  # fmt: skip
NAMES = (
    "Brainstem", "OpticChiasm", "Bone_Mandible", "OpticNrv_L", "OpticNrv_R", "Parotid_L", "Parotid_R", "Glnd_Submand_L", "Glnd_Submand_R",
)  # fmt: skip
CASES = {  # case → organs without a file
    "0522c0001": (), "0522c0329": ("Chiasm", "Mandible", "Submandibular_R"), "0522c0555": ("Submandibular_L",), "0522c0788": (),
}  # fmt: skip


@pytest.fixture
def source(tmp_path):
    root = tmp_path / "PDDCA-1.4.1"
    for seed, (case, missing) in enumerate(CASES.items()):
        folder = root / ("part1" if seed < 2 else "part2") / case
        nrrd(folder / "img.nrrd", ct(seed))
        for organ in MASKS.keys() - set(missing):
            nrrd(folder / "structures" / f"{organ}.nrrd", MASKS[organ])
        (folder / "img.fcsv").write_text("# landmarks")
    return root


def convert(source, *args) -> int:
    return pddca.main([str(source), "-d", "17", "--raw", str(source.parent / "raw"), *args])


def test_a_whole_data_set(source, capsys):
    assert convert(source) == 0
    folder = source.parent / "raw" / "Dataset017_PDDCA"
    dataset = verified(folder)
    assert dataset.labels.organs == NAMES and len(dataset.labels.pairs) == 3
    assert [c.id for c in dataset.training] == ["0522c0001", "0522c0329"] and [c.id for c in dataset.test] == ["0522c0555", "0522c0788"]
    assert known(dataset) == {
        "0522c0001": None, "0522c0788": None, "0522c0555": tuple(n for n in NAMES if n != "Glnd_Submand_L"),
        "0522c0329": ("Brainstem", "OpticNrv_L", "OpticNrv_R", "Parotid_L", "Parotid_R", "Glnd_Submand_L"),
    }  # fmt: skip
    np.testing.assert_array_equal(image_of(folder, "0522c0329"), ct(1))
    expected = np.zeros(GRID.shape, np.uint8)
    for i, organ in enumerate(pddca.ORGANS, 1):
        expected[MASKS[organ] > 0] = i
    expected[4, 3, 5] = 2  # shared with the left nerve's six voxels; the chiasm has two
    np.testing.assert_array_equal(label_of(folder, "0522c0001"), expected)
    out = capsys.readouterr().out
    assert "OpticChiasm and OpticNrv_L overlap, by at most 1 voxels (3 cases); OpticChiasm kept them" in out
    assert "BrainStem → Brainstem, Chiasm → OpticChiasm" in out and "Glnd_Submand_L 3" in out


def test_parts_are_chosen_and_names_kept(source):
    assert convert(source, "--train", "train", "--test", "onsite", "--names", "source", "--organs", "Parotid_L", "Glnd_Submand_R") == 0
    dataset = verified(source.parent / "raw" / "Dataset017_PDDCA")
    assert [c.id for c in dataset.training] == ["0522c0001"] and [c.id for c in dataset.test] == ["0522c0788"]
    assert dataset.labels.organs == ("Parotid_L", "Submandibular_R")


def test_parts_hold_the_challenges_scans():
    numbers = {part: [int(n) for n in listed.split()] for part, listed in pddca.PARTS.items()}
    assert {part: len(ns) for part, ns in numbers.items()} == {"train": 25, "optional": 8, "offsite": 10, "onsite": 5}
    assert len({n for ns in numbers.values() for n in ns}) == 48 and all(ns == sorted(ns) for ns in numbers.values())
    # first and last of each part, as torch_em's pddca.py states them
    assert {part: (ns[0], ns[-1]) for part, ns in numbers.items()} == {
        "train": (1, 328), "optional": (329, 479), "offsite": (555, 746), "onsite": (788, 878)}
    # and every one of the 48, as a public list of the three downloads has them (part1_part2, part3, part4)
    ids = " ".join(name for listed in pddca.IDS.values() for name in listed)
    assert hashlib.sha256(ids.encode()).hexdigest()[:16] == "f800af72eea58957"


def test_scans_that_are_not_there_and_those_of_no_part_are_named(source, capsys):
    (source / "part1" / "0522c0002").mkdir()  # its image was not unpacked
    nrrd(source / "part2" / "0522c9999" / "img.nrrd", ct(9))
    assert convert(source, "--test", "onsite") == 0
    told = capsys.readouterr().err
    assert "24 of 25 scans of part train are not there: 0522c0002, 0522c0003, 0522c0009, 0522c0013, 0522c0014, …; complete the" in told
    assert "7 of 8 scans of part optional are not there: 0522c0330, " in told and "4 of 5 scans of part onsite are not there" in told
    assert "1 folders of no known part are left out: 0522c9999" in told and "offsite" not in told
    assert [c.id for c in verified(source.parent / "raw" / "Dataset017_PDDCA").test] == ["0522c0788"]


def test_linked_folders_of_scans_are_found(source):
    """Scans may lie on another disk; a link that leads upwards is no endless way."""
    archive = source.rename(source.with_name("archive"))
    (source / "scans").mkdir(parents=True)
    for case in CASES:
        (source / "scans" / case).symlink_to(next(archive.rglob(case)))
    (source / "scans" / "up").symlink_to(source)
    assert convert(source) == 0
    dataset = verified(source.parent / "raw" / "Dataset017_PDDCA")
    assert [c.id for c in (*dataset.training, *dataset.test)] == list(CASES)


def test_a_damaged_mask_fails_its_case_alone(source, capsys):
    path = source / "part1" / "0522c0329" / "structures" / "Parotid_L.nrrd"
    path.write_bytes(path.read_bytes()[:-20])
    assert convert(source) == 3
    assert "1 of 4 cases are left out" in (error := capsys.readouterr().err) and "Parotid_L.nrrd: truncated or damaged" in error
    assert [c.id for c in verified(source.parent / "raw" / "Dataset017_PDDCA").training] == ["0522c0001"]


@pytest.mark.parametrize("args, sentence", [
    (("--test", "train"), "--train and --test both name train"),
    (("--train", "onsite", "--test", "--organs", "Lens_L"), "--organs Lens_L: not an organ of this source"),
])  # fmt: skip
def test_what_cannot_be_meant_is_refused(source, capsys, args, sentence):
    assert convert(source, *args) == 1
    assert sentence in capsys.readouterr().err and not (source.parent / "raw").exists()


def test_a_folder_without_scans_is_refused(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert convert(tmp_path / "empty") == 1
    assert "empty: no folder 0522cXXXX with img.nrrd of the parts train, optional, offsite, onsite" in capsys.readouterr().err
