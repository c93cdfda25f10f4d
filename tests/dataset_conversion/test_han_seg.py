"""HaN-Seg: its file names, 30 organs, segments cut to a box, eyes whose names hide their side."""
import numpy as np
import pytest

from c2f_nnunet.geometry import Box, boxed, crop
from tests.dataset_conversion.sources import GRID, ct, known, label_of, load, mask, nrrd, verified

han_seg = load("han_seg")
MASKS = {organ: mask((1 + i // 8, 2 + i // 8), (2, 4), (1 + i % 8, 2 + i % 8)) for i, organ in enumerate(han_seg.ORGANS)}  # two voxels each


@pytest.fixture
def source(tmp_path):
    root = tmp_path / "HaN-Seg"
    for seed, (case, organs) in enumerate({"case_01": han_seg.ORGANS, "case_02": han_seg.ORGANS[:-1]}.items()):
        folder = root / "set_1" / case
        nrrd(folder / f"{case}_IMG_CT.nrrd", ct(seed))
        nrrd(folder / f"{case}_IMG_MR_T1.nrrd", ct(seed + 10))
        for organ in organs:
            nrrd(folder / f"{case}_OAR_{organ}.seg.nrrd", MASKS[organ])
    box = Box((2, 1, 1), (5, 5, 9))  # 3D Slicer may store a segment on a part of the CT's grid
    nrrd(folder / "case_02_OAR_Lips.seg.nrrd", crop(MASKS["Lips"], box), boxed(GRID, box))
    return root


@pytest.mark.parametrize("below", ["", "set_1"])
def test_a_whole_data_set(source, below, capsys):
    raw = source.parent / "raw"
    assert han_seg.main([str(source / below), "-d", "18", "--raw", str(raw)]) == 0
    dataset = verified(raw / "Dataset018_HaNSeg")
    assert known(dataset) == {"case_01": None, "case_02": dataset.labels.organs[:-1]} and dataset.test == ()
    assert len(dataset.labels.organs) == 30 and dataset.labels.ids == tuple(range(1, 31))
    expected = sum(i * MASKS[organ] for i, organ in enumerate(han_seg.ORGANS, 1))
    np.testing.assert_array_equal(label_of(dataset.root, "case_01"), expected)
    np.testing.assert_array_equal(label_of(dataset.root, "case_02"), np.where(expected == 30, 0, expected))
    told = "40 of 42 scans of part set_1 are not there: case_03, case_04, case_05, case_06, case_07, …; complete the download unless that"
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("names", ["tg263", "source"])
def test_each_sided_organ_has_its_partner_so_that_patients_may_be_mirrored(source, names):
    raw = source.parent / "raw"
    assert han_seg.main([str(source), "-d", "18", "--raw", str(raw), "--names", names]) == 0
    labels = verified(raw / "Dataset018_HaNSeg").labels
    assert labels.is_symmetric and len(labels.pairs) == 8
    assert {("Eye_A_L", "Eye_A_R"), ("Eye_P_L", "Eye_P_R")} < set(labels.pairs)
    assert {organ for organ in labels.organs if organ not in han_seg.ORGANS} == set(han_seg.SIDED_NAMES.values())


def test_linked_folders_of_scans_are_found(source):
    archive = source.rename(source.with_name("archive"))
    source.mkdir()
    for case in ("case_01", "case_02"):
        (source / case).symlink_to(archive / "set_1" / case)
    assert han_seg.main([str(source), "-d", "18", "--raw", str(source.parent / "raw")]) == 0
    assert sorted(known(verified(source.parent / "raw" / "Dataset018_HaNSeg"))) == ["case_01", "case_02"]


def test_a_mask_on_the_mr_grid_fails_its_case_alone(source, capsys):
    nrrd(source / "set_1" / "case_02" / "case_02_OAR_Lips.seg.nrrd", np.ones((4, 4, 4), np.uint8), boxed(GRID, Box((-1, 0, 0), (3, 4, 4))))
    assert han_seg.main([str(source), "-d", "18", "--raw", str(source.parent / "raw")]) == 3
    assert "case_02_OAR_Lips.seg.nrrd: its grid of (4, 4, 4) voxels is neither the CT's" in capsys.readouterr().err


def test_a_folder_without_scans_is_refused(tmp_path, capsys):
    assert han_seg.main([str(tmp_path), "-d", "18", "--raw", str(tmp_path / "raw")]) == 1
    assert "no file case_XX_IMG_CT.nrrd there or below" in capsys.readouterr().err
