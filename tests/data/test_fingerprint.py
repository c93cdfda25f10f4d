"""The fingerprint of a small made-up data set, with statistics worked out by hand, and every voxel-level fault."""
import json
import logging
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from c2f_nnunet.data import fingerprint
from c2f_nnunet.data.dataset import read_dataset
from c2f_nnunet.data.fingerprint import Fingerprint, measure, orientation_codes
from c2f_nnunet.errors import DatasetError
from c2f_nnunet.geometry import Box, Geometry, Reorientation, reorientation
from c2f_nnunet.io import records
from c2f_nnunet.io.images import write_volume

GRID = Geometry((12, 20, 24), (3.0, 4.0, 4.0), origin_mm=(10.0, 20.0, 30.0))
LABELS = {"background": 0, "Stem": 1, "Eye_L": 4, "Eye_R": 7}  # with gaps
STEM = Box((2, 8, 10), (5, 10, 12))  # 12 voxels
EYE_L, EYE_R = Box((6, 6, 16), (7, 7, 18)), Box((6, 6, 6), (7, 7, 7))  # 2 voxels and 1; x grows to the patient's left


def image_array(seed):
    """Air around a body of 40 HU with a stem of 100 HU; one voxel of air tells the cases apart."""
    array = np.full(GRID.shape, -1000, np.int16)
    array[0:10, 4:16, 4:20] = 40
    array[STEM.slices] = 100
    array[11, 0, seed] = -990
    return array


def label_array(organs=("Stem", "Eye_L", "Eye_R")):
    array = np.zeros(GRID.shape, np.uint8)
    for name, box in (("Stem", STEM), ("Eye_L", EYE_L), ("Eye_R", EYE_R)):
        if name in organs:
            array[box.slices] = LABELS[name]
    return array


@pytest.fixture
def root(tmp_path):
    """A data set of three cases a, b, c; tests overwrite what they want to be wrong."""
    root = tmp_path / "Dataset001_Made"
    for i, case in enumerate("abc"):
        put(root, case, image_array(i), label_array())
    describe(root)
    return root


def describe(root, **keys):
    description = {"channel_names": {"0": "CT"}, "labels": LABELS, "file_ending": ".nii.gz", **keys}
    (root / "dataset.json").write_text(json.dumps(description))


def put(root, case, image=None, label=None, image_grid=GRID, label_grid=GRID):
    for folder, name, array, grid in (("imagesTr", f"{case}_0000", image, image_grid), ("labelsTr", case, label, label_grid)):
        if array is not None:
            write_volume(root / folder / f"{name}.nii.gz", array, grid)


def fails(root, message):
    with pytest.raises(DatasetError, match=message):
        measure(read_dataset(root))


def test_statistics_by_hand(root):
    found = measure(read_dataset(root))
    assert found.dataset == "Dataset001_Made" and found.pairs == (("Eye_L", "Eye_R"),) and found.warnings == ()
    assert [c.id for c in found.cases] == ["a", "b", "c"]
    a = found.cases[0]
    assert (a.shape, a.spacing_mm, a.orientation) == ((12, 20, 24), (3.0, 4.0, 4.0), "LPS")
    assert a.body_box == Box((0, 4, 4), (10, 16, 20))
    assert a.body_extent_mm == (30.0, 48.0, 64.0)
    assert a.hu_body[:2] == (40.0, 40.0) and a.hu_body[2] == 100.0  # 12 of 1920 voxels, 0.6 %, are 100
    assert a.mean_hu_body == 40.375  # (1908 × 40 + 12 × 100) / 1920
    stem = a.organs["Stem"]
    assert stem.volume_mm3 == 12 * 48
    assert stem.extent_mm == (9.0, 8.0, 8.0)
    assert stem.voxel_share == 12 / 5760
    assert stem.axial_slices == 3
    assert stem.box == STEM
    assert stem.hu == (100.0, 100.0, 100.0)
    # anchor: top face at index 9.5, middles at 9.5 and 11.5; centroid at (3, 8.5, 10.5)
    assert stem.offset_mm == (3 * (3 - 9.5), 4 * (8.5 - 9.5), 4 * (10.5 - 11.5))
    assert a.organs["Eye_L"].volume_mm3 == 2 * 48 and a.organs["Eye_R"].axial_slices == 1


def test_file_orientation_does_not_matter(root):
    before = measure(read_dataset(root)).cases[0]
    for path in (root / "imagesTr/a_0000.nii.gz", root / "labelsTr/a.nii.gz"):
        nib.as_closest_canonical(nib.load(path)).to_filename(path)  # the same scan, stored as RAS
    after = measure(read_dataset(root)).cases[0]
    assert after.orientation == "RAS"
    assert replace(after, orientation="LPS") == before


def test_orientation_codes_are_nibabels():
    # a file's (i, j, k) = (z up, x to the right, y to anterior): codes S R A; its reversed array is (k, j, i) = (A, R, S)
    towards_a, towards_r, towards_s = (0, -1, 0), (-1, 0, 0), (0, 0, 1)
    direction = tuple(tuple(float(v) for v in row) for row in np.array([towards_a, towards_r, towards_s]).T)
    turn = reorientation(Geometry((2, 3, 4), (1.0, 1.0, 1.0), direction=direction))
    assert orientation_codes(turn) == "SRA"
    assert orientation_codes(Reorientation((0, 1, 2), (False, False, False))) == "LPS"


def test_percentiles_over_evenly_spaced_voxels(root, monkeypatch):
    image = image_array(0)
    image[STEM.slices] = np.arange(12).reshape(3, 2, 2)
    put(root, "a", image)
    monkeypatch.setattr(fingerprint, "ORGAN_SAMPLES", 4)
    # every third voxel: 0, 3, 6, 9
    assert measure(read_dataset(root)).cases[0].organs["Stem"].hu == pytest.approx((0.045, 4.5, 8.955))


def test_record_survives_its_file(root, tmp_path):
    found = measure(read_dataset(root))
    records.write(tmp_path / "fingerprint.json", found)
    assert records.read(Fingerprint, tmp_path / "fingerprint.json") == found


def test_same_with_two_processes(root):
    seen = []
    dataset = read_dataset(root)
    assert measure(dataset, processes=2, on_case=seen.append) == measure(dataset)
    assert seen == ["a", "b", "c"]


def test_unannotated_organs_contribute_nothing(root, caplog):
    describe(root, annotated={"a": ["Stem"]})
    put(root, "b", label=label_array(["Stem", "Eye_R"]))  # Eye_L annotated in b, and absent
    with caplog.at_level(logging.WARNING):
        found = measure(read_dataset(root))
    a, b, c = found.cases
    assert (a.annotated, set(a.organs)) == (("Stem",), {"Stem"})
    assert (b.annotated, set(b.organs)) == (("Stem", "Eye_L", "Eye_R"), {"Stem", "Eye_R"})
    assert set(c.organs) == {"Stem", "Eye_L", "Eye_R"}
    assert found.warnings == (
        "a: the label map holds Eye_L (2 voxels), which dataset.json's 'annotated' leaves out; it is taken as unknown there",
        "a: the label map holds Eye_R (1 voxels), which dataset.json's 'annotated' leaves out; it is taken as unknown there",
    )
    assert found.warnings[0] in caplog.text


def test_organs_in_no_case(root):
    for case in "abc":
        put(root, case, label=label_array(["Stem"]))
    fails(root, "Dataset001_Made: Eye_L is absent in every case; Eye_R is absent in every case; remove it from dataset.json's labels")
    describe(root, annotated={c: ["Stem", "Eye_L"] for c in "abc"})
    fails(root, "Eye_L is absent in every case; Eye_R is annotated in no case")


def test_every_bad_case_is_listed(root):
    wrong = label_array()
    wrong[0, 0, :3], wrong[1, 0, 0] = 2, 9
    put(root, "a", label=wrong)
    path = root / "imagesTr/b_0000.nii.gz"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DatasetError) as caught:
        measure(read_dataset(root))
    first, *lines = str(caught.value).splitlines()
    assert first.strip() == "Dataset001_Made: 2 of 3 training cases cannot be used:"
    assert len(lines) == 2
    assert lines[0].strip().startswith("a: ")
    assert "holds labels that dataset.json does not declare: 2 (3 voxels), 9 (1 voxels); declare or remove them" in lines[0]
    assert "b_0000.nii.gz" in lines[1]


def tilted(degrees):
    """GRID turned about the patient's long axis, around its first voxel."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return replace(GRID, direction=((0.0, -s, c), (0.0, c, s), (1.0, 0.0, 0.0)))


@pytest.mark.parametrize(
    "grid, message",
    [
        (replace(GRID, spacing_mm=(3.0, 4.0, 4.1)), r"a: label spacing \(z, y, x\) 3, 4, 4.1 mm differs from image 3, 4, 4 mm"),
        (replace(GRID, origin_mm=(10.0, 20.5, 30.0)), r"a: label origin \(x, y, z\) 10, 20.5, 30 mm differs from image 10, 20, 30 mm"),
        (tilted(1), r"a: label direction .* differs from image .*0.05 voxels apart\); export the label on the image grid"),
    ],
)
def test_label_on_another_grid(root, grid, message):
    put(root, "a", label=label_array(), label_grid=grid)
    fails(root, message)


def test_label_of_another_shape(root):
    put(root, "a", label=label_array()[:, :, :23], label_grid=replace(GRID, shape=(12, 20, 23)))
    fails(root, r"a: label shape \(12, 20, 23\) differs from image \(12, 20, 24\); export the label on the image grid")


def test_label_within_the_tolerance(root):
    put(root, "a", label=label_array(), label_grid=replace(GRID, origin_mm=(10.1, 20.0, 30.0)))  # 0.033 of the smallest voxel
    assert measure(read_dataset(root)).warnings == ()


def one_warning(root):
    (warning,) = measure(read_dataset(root)).warnings
    return warning


def test_spacing_outliers(root):
    far, swapped = replace(GRID, spacing_mm=(10.0, 4.0, 4.0)), replace(GRID, spacing_mm=(4.0, 4.0, 3.0))
    put(root, "c", image_array(2), label_array(), far, far)
    assert one_warning(root) == "c: spacing (z, y, x) 10, 4, 4 mm is 3.3 times off the median 3, 4, 4 mm; check the file's header"
    put(root, "c", image_array(2), label_array(), swapped, swapped)
    assert measure(read_dataset(root)).warnings == ()  # 4 against 3 mm is within what scanners differ by


def test_swapped_axes(root):
    grids = [replace(GRID, spacing_mm=s) for s in ((2.5, 1.0, 1.0), (2.5, 1.1, 1.1), (1.0, 1.0, 2.5))]
    for i, (case, grid) in enumerate(zip("abc", grids)):
        put(root, case, image_array(i), label_array(), grid, grid)
    assert one_warning(root).startswith("c: spacing (z, y, x) 1, 1, 2.5 mm fits the median 2.5, 1, 1.1 mm only with its axes swapped; check")


def test_identical_images(root):
    put(root, "c", image=image_array(0))
    assert one_warning(root).startswith("a, c have identical image voxels; remove all but one")


def test_swapped_sides(root):
    label = label_array(["Stem"])
    label[EYE_L.slices], label[EYE_R.slices] = LABELS["Eye_R"], LABELS["Eye_L"]
    put(root, "b", label=label)
    assert one_warning(root).startswith("b: Eye_L lies to the patient's right of Eye_R; check")


def test_sides_that_the_names_do_not_tell(tmp_path):
    labels, grid = {"background": 0, "Stem": 1, "Gland A": 2, "Gland B": 3}, Geometry((12, 20, 40), (3.0, 1.0, 1.0))
    root = tmp_path / "Dataset001_Made"
    for seed, case in enumerate("ab"):
        image, label = np.full(grid.shape, -1000, np.int16), np.zeros(grid.shape, np.uint8)
        image[0:10, 4:16, 4:36], image[11, 0, seed] = 40, -990
        label[2:5, 8:10, 18:22], label[3:5, 8:10, 33:35], label[3:5, 8:10, 5:8] = 1, 2, 3  # x grows to the patient's left
        put(root, case, image, label, grid, grid)
    describe(root, labels=labels)
    assert one_warning(root).startswith("Gland A and Gland B lie on either side of the patient like a left and a right organ, but")
    assert one_warning(root).endswith("name them Gland A_L and Gland B_R in dataset.json")
    describe(root, labels={"background": 0, "Stem": 1, "Gland (L)": 2, "Gland (R)": 3})
    assert measure(read_dataset(root)).warnings == ()


def test_values_that_are_no_hounsfield_units(root):
    put(root, "b", image=image_array(1) + np.int16(1000))
    assert one_warning(root) == "b: the lowest value is 0, so there is no air in the image; make sure that its values are Hounsfield units"


def test_three_real_cases(real_data):
    dataset = read_dataset(real_data / "raw/Dataset016_HeadNeckPartial")
    three = tuple(dataset.training[i] for i in (0, 1, 4))  # among them every organ is annotated somewhere
    found = measure(replace(dataset, training=three))
    assert found.warnings == () and found.pairs == (("Parotid_L", "Parotid_R"),)
    for case in found.cases:
        assert set(case.organs) == set(case.annotated)
        assert 200 < case.body_extent_mm[2] < 650  # head to shoulders
        for organ in case.organs.values():
            assert 0.5 < organ.volume_mm3 / 1000 < 150  # cm³
            assert -450 < organ.offset_mm[0] < 0 and abs(organ.offset_mm[2]) < 90
        stem = case.organs.get("BrainStem")
        assert stem is None or 10 < stem.hu[1] < 60
