"""The phantom: its anatomy is plausible, sided, incomplete where it says so, and the same for the same seed."""
import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, binary_erosion, label

from c2f_nnunet.geometry import to_canonical
from c2f_nnunet.io import records
from c2f_nnunet.io.images import read_image, read_label

FOLDER = Path(__file__).resolve().parents[2] / "dataset_conversion"
ML = {  # plausible volumes in millilitres, generous limits for adults
    "BrainStem": (14, 38), "Chiasm": (0.3, 1.3), "Mandible": (28, 75),
    "OpticNerve": (0.25, 1.1), "Parotid": (9, 35), "Submandibular": (3, 14),
}


@pytest.fixture(scope="module")
def phantom():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module("phantom")


@pytest.fixture(scope="module")
def cases(phantom):
    """Cases 0 (whole), 1 (without Submandibular_R) and 2 (fillings in the teeth)."""
    return [phantom.make_case(0, number) for number in range(3)]


def stem(organ: str) -> str:
    return organ.removesuffix("_L").removesuffix("_R")


def test_a_whole_case_holds_nine_organs_of_plausible_volume(phantom, cases):
    hu, labels, geometry, _ = cases[0]
    assert hu.shape == labels.shape == geometry.shape and hu.dtype == np.int16 and labels.dtype == np.uint8
    for organ in phantom.ORGANS:
        low, high = ML[stem(organ)]
        volume_ml = (labels == phantom.ID[organ]).sum() * geometry.voxel_mm3 / 1000
        assert low < volume_ml < high, f"{organ}: {volume_ml:.2f} ml"


def test_each_organ_is_in_one_piece_and_inside_the_field_of_view(phantom, cases):
    for _, labels, _, anatomy in cases:
        for organ, value in phantom.ID.items():
            mask = labels == value
            sizes = np.bincount(label(mask, np.ones((3, 3, 3)))[0].ravel())[1:]
            assert sizes.sum() == 0 or sizes.max() > 0.9 * sizes.sum(), organ
            assert not any(mask.take(edge, axis).any() for axis in range(3) for edge in (0, -1)), organ


def test_left_organs_lie_to_the_left_and_organs_stand_in_the_right_order(phantom, cases):
    for _, labels, geometry, anatomy in cases:
        x, y, z = {}, {}, {}
        for organ, value in phantom.ID.items():
            if organ != anatomy.absent:
                x[organ], y[organ], z[organ] = geometry.world(np.argwhere(labels == value)).mean(0)
        for organ in x:
            if organ.endswith("_L") and organ[:-2] + "_R" in x:
                assert x[organ] > x[organ[:-2] + "_R"] + 15  # LPS: x grows to the patient's left
        assert z["Chiasm"] > z["Parotid_L"] > z["Submandibular_L"]
        assert y["OpticNerve_L"] < y["Chiasm"] < y["BrainStem"]  # y grows to posterior
        slices = np.unique(np.argwhere(labels == phantom.ID["Chiasm"])[:, 0])
        assert 3 <= len(slices) <= 5


def test_an_absent_organ_has_no_label_and_leaves_a_bed_of_fat(phantom, cases):
    hu, labels, geometry, anatomy = cases[1]
    assert anatomy.absent == "Submandibular_R" and phantom.ABSENT[1] == "Submandibular_R"
    assert not (labels == phantom.ID["Submandibular_R"]).any() and (labels == phantom.ID["Submandibular_L"]).any()
    canvas = phantom.Canvas(anatomy)
    before = canvas.hu.copy()
    canvas.organ("Submandibular_R")
    bed = canvas.hu != before
    assert canvas.hu[bed].mean() < -20 and not canvas.label.any()
    canvas.organ("Submandibular_L")
    gland = canvas.label == phantom.ID["Submandibular_L"]
    assert 0.5 < bed.sum() / gland.sum() < 2 and not (bed & gland).any()


def ring(mask: np.ndarray, hu: np.ndarray, low: float, high: float) -> np.ndarray:
    """HU of the soft tissue two to three voxels outside a mask."""
    around = binary_dilation(mask, iterations=3) & ~binary_dilation(mask, iterations=1)
    return hu[around & (hu > low) & (hu < high)]


def test_contrast_is_as_weak_as_in_reality(phantom, cases):
    for number in (0, 1):
        hu, labels, _, anatomy = cases[number]
        stem_mask = labels == phantom.ID["BrainStem"]
        inside, brain = np.median(hu[binary_erosion(stem_mask)]), np.median(ring(stem_mask, hu, 0, 80))
        assert 1 < inside - brain < 14, (inside, brain)  # drawn 5 to 8, noise and shading added
        for organ in ("Parotid_L", "Submandibular_L"):
            mask = labels == phantom.ID[organ]
            contrast = np.median(ring(mask, hu, 20, 100)) - np.median(hu[binary_erosion(mask)])
            assert 2 < contrast < 35, (organ, contrast)  # drawn 9 to 25 below muscle
        nerve = np.median(hu[labels == phantom.ID["OpticNerve_L"]])
        assert -20 < nerve < 70  # between fat and bone, with partial volume
        assert np.median(hu[labels == phantom.ID["Mandible"]]) > 400


def test_scan_holds_air_table_bone_and_noise_of_a_ct(phantom, cases):
    hu, labels, geometry, anatomy = cases[0]
    air = hu[:, 0, :]
    assert abs(np.median(air) + 1000) < 10 and 8 < air[air > -1024].std() < 16
    assert (hu[geometry.shape[0] // 2, -20:] > -400).any(axis=0).mean() > 0.8  # the couch crosses the slice below the head
    assert hu.max() > 900
    assert cases[2][3].streaks and cases[2][0].max() > 2000


def test_one_seed_gives_the_same_patient_and_another_seed_another(phantom, cases):
    again = phantom.make_case(0, 0)
    assert np.array_equal(again[0], cases[0][0]) and np.array_equal(again[1], cases[0][1]) and again[2] == cases[0][2]
    other = phantom.make_case(1, 0)
    assert other[2] != cases[0][2]


def test_drawn_scans_vary(phantom):
    drawn = [phantom.draw(np.random.default_rng((0, number)), number) for number in range(25)]
    assert {a.turn for a in drawn} == set(phantom.TURNS)
    assert len({a.spacing_mm for a in drawn}) == 25
    assert all(80 <= a.shape[0] <= 110 and all(96 <= n <= 128 for n in a.shape[1:]) for a in drawn)
    assert [number for number, a in enumerate(drawn) if a.absent] == [1, 4, 7, 9, 12, 15, 21]
    assert 3 <= sum(a.streaks for a in drawn) <= 15
    assert sum(a.top_mm < 75 for a in drawn) == 6  # the vertex is cut in every fourth


def test_data_set_on_disk_is_the_drawn_one_in_every_orientation(phantom, cases, tmp_path):
    options = [sys.executable, str(FOLDER / "phantom.py"), str(tmp_path / "raw"), "--train", "2", "--test", "1"]
    environment = {"PYTHONPATH": str(FOLDER.parent), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(options, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "raw" / "Dataset900_Phantom"
    assert done.stdout.strip() == str(folder)
    about = records.read_json(folder / "dataset.json")
    assert about["numTraining"] == 2 and about["labels"] == {"background": 0, **phantom.ID} and about["file_ending"] == ".nii.gz"
    for number, part in ((0, "Tr"), (1, "Tr"), (2, "Ts")):
        hu, labels, geometry, anatomy = cases[number]
        image = read_image(folder / f"images{part}" / f"phantom_{number:03d}_0000.nii.gz")
        truth = read_label(folder / f"labels{part}" / f"phantom_{number:03d}.nii.gz")
        assert image.source.geometry.shape == to_canonical(hu, phantom.TURNS[anatomy.turn]).shape
        assert np.array_equal(image.array, hu) and np.array_equal(truth.array, labels)
        assert np.allclose(image.geometry.world(np.eye(3) * 50), geometry.world(np.eye(3) * 50), atol=1e-2)
    again = subprocess.run(options, capture_output=True, text=True, env=environment)
    assert again.returncode == 1 and "there is a data set already" in again.stderr
