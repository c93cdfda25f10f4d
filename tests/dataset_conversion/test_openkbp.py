"""OpenKBP: indices of its flattened grid → places in the patient, stored values → HU, organs without a file."""
import numpy as np
import pytest

from c2f_nnunet.io.images import read_image, read_label
from tests.dataset_conversion.sources import known, load, verified

openkbp = load("openkbp")
# voxels by the grid's own axes: (posterior, left, inferior), half open; the scan fills 5 of the 128 slices
BODY = ((40, 80), (40, 90), (30, 35))
ORGANS = {
    "Brainstem": ((60, 66), (60, 68), (30, 32)), "SpinalCord": ((64, 67), (62, 66), (32, 35)), "Larynx": ((45, 50), (60, 68), (33, 35)),
    "LeftParotid": ((50, 56), (78, 84), (31, 33)), "RightParotid": ((50, 56), (44, 50), (31, 33)),
}  # fmt: skip


def indices(box) -> np.ndarray:
    """A box's indices in the flattened 128 × 128 × 128 grid: the third axis runs fastest."""
    a, b, c = np.meshgrid(*(np.arange(*axis) for axis in box), indexing="ij")
    return ((a * 128 + b) * 128 + c).ravel()


def patient(folder, organs, spacing=(4.0, 4.0, 2.5), value=1040.0):
    folder.mkdir(parents=True)
    ct = {int(i): value + i % 7 for i in indices(BODY)}
    (folder / "ct.csv").write_text(",data\n" + "".join(f"{i},{v}\n" for i, v in ct.items()))
    (folder / "voxel_dimensions.csv").write_text("".join(f"{s:.18e}\n" for s in spacing))
    for organ in organs:
        (folder / f"{organ}.csv").write_text(",data\n" + "".join(f"{i},\n" for i in indices(ORGANS[organ])))
    (folder / "PTV70.csv").write_text(",data\n1057042,\n")
    return folder


@pytest.fixture
def source(tmp_path):
    root = tmp_path / "open-kbp"
    for name, organs in {
        "train-pats/pt_2": ORGANS, "train-pats/pt_10": [o for o in ORGANS if o != "Larynx"], "validation-pats/pt_201": ORGANS,
        "test-pats/pt_241": ORGANS,
    }.items():  # fmt: skip
        patient(root / "provided-data" / name, organs)
    return root


def convert(source, *args) -> int:
    return openkbp.main([str(source), "-d", "20", "--raw", str(source.parent / "raw"), *args])


def test_a_whole_data_set(source):
    assert convert(source) == 0
    dataset = verified(source.parent / "raw" / "Dataset020_OpenKBP")
    assert dataset.labels.organs == ("Brainstem", "SpinalCord", "Parotid_R", "Parotid_L", "Larynx")  # Esophagus and Mandible: no case
    assert [c.id for c in dataset.training] == ["pt_10", "pt_2", "pt_201"] and [c.id for c in dataset.test] == ["pt_241"]
    assert known(dataset)["pt_10"] == ("Brainstem", "SpinalCord", "Parotid_R", "Parotid_L") and known(dataset)["pt_2"] is None


def test_patients_who_are_not_there_and_those_of_no_part_are_named(source, capsys):
    patient(source / "provided-data" / "test-pats" / "pt_999", ORGANS)
    (source / "provided-data" / "train-pats" / "pt_1").touch()  # no folder
    assert convert(source, "--train", "train") == 0
    told = capsys.readouterr().err
    assert "198 of 200 scans of part train are not there: pt_1, pt_3, pt_4, pt_5, pt_6, …; complete the download unless that is" in told
    assert "99 of 100 scans of part test are not there: pt_242, " in told and "validation" not in told
    assert "1 folders of no known part are taken all the same: pt_999" in told
    assert [c.id for c in verified(source.parent / "raw" / "Dataset020_OpenKBP").test] == ["pt_241", "pt_999"]


def test_places_values_and_spacing(source):
    assert convert(source, "--train", "train", "--test", "--organs", "LeftParotid", "Brainstem", "Larynx") == 0
    root = source.parent / "raw" / "Dataset020_OpenKBP"
    image, label = read_image(root / "imagesTr" / "pt_2_0000.nii.gz"), read_label(root / "labelsTr" / "pt_2.nii.gz")
    assert image.geometry.shape == (5, 128, 128) and np.allclose(image.geometry.spacing_mm, (2.5, 4.0, 4.0))
    assert image.array.dtype == np.int16 and image.array[:, 0, 0].tolist() == [-1000] * 5
    first = indices(((40, 41), (50, 51), (30, 31)))[0]  # the uppermost slice: row 40, column 50
    assert image.array[4, 40, 50] == 1040 + first % 7 - 1000
    assert image.array[4, 39, 50] == -1000 and image.array[4, 40, 39] == -1000
    # canonical arrays grow to superior, posterior and left
    where = {organ: np.argwhere(label.array == i).mean(axis=0) for organ, i in (("Brainstem", 1), ("Parotid_L", 2), ("Larynx", 3))}
    assert where["Brainstem"][0] > where["Larynx"][0] and where["Brainstem"][1] > where["Larynx"][1]
    np.testing.assert_allclose(where["Parotid_L"], (2.5, 52.5, 80.5))  # slices 31 and 32 of 30 … 34, counted from below: 3 and 2
    assert where["Parotid_L"][2] > 64 and np.count_nonzero(label.array == 2) == 72


@pytest.mark.parametrize("file, content, sentence", [
    ("ct.csv", ",data\n2097152,1000.0\n5,1100.0\n", r"ct.csv: 1 indices are not on the grid of (128, 128, 128)"),
    ("ct.csv", ",data\n5,abc\n", "ct.csv: cannot be read as a CSV of OpenKBP"),
    ("ct.csv", ",data\n", "ct.csv: lists no voxel"),
    ("Brainstem.csv", ",data\n-1,\n", "Brainstem.csv: 1 indices are not on the grid"),
    ("voxel_dimensions.csv", "4.0\n3.0\n2.5\n", "voxel_dimensions.csv: holds [4.0, 3.0, 2.5] instead of three sizes in mm"),
    ("voxel_dimensions.csv", None, "voxel_dimensions.csv: cannot be read as a CSV of OpenKBP"),
])  # fmt: skip
def test_damaged_files_fail_their_patient_alone(source, capsys, file, content, sentence):
    path = source / "provided-data" / "train-pats" / "pt_2" / file
    path.unlink() if content is None else path.write_text(content)
    if content == ",data\n":  # nothing in the masks either
        for organ in ORGANS:
            (path.parent / f"{organ}.csv").write_text(",data\n")
    assert convert(source) == 3
    assert "1 of 4 cases are left out" in (error := capsys.readouterr().err) and sentence in error
    assert [c.id for c in verified(source.parent / "raw" / "Dataset020_OpenKBP").training] == ["pt_10", "pt_201"]


def test_a_mask_without_a_voxel_means_not_delineated(source, capsys):
    (source / "provided-data" / "train-pats" / "pt_2" / "Larynx.csv").write_text(",data\n")
    assert convert(source) == 0
    assert "masks without a voxel, taken as not delineated: pt_2: Larynx" in capsys.readouterr().out


def test_a_folder_without_patients_is_refused(tmp_path, capsys):
    assert convert(tmp_path / "nothing") == 1
    assert "no folder pt_N below train-pats, validation-pats, test-pats; give the clone of open-kbp" in capsys.readouterr().err
