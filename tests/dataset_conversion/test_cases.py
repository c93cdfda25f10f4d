"""A source's usual case: a CT with one file for each organ's mask."""
import numpy as np

from tests.dataset_conversion.sources import ct, load, mask, nrrd

parts = load("parts.cases")


def test_an_organ_whose_file_is_not_there_was_not_delineated(tmp_path):
    image, stem = nrrd(tmp_path / "ct.nrrd", ct()), nrrd(tmp_path / "stem.nrrd", 255 * mask((1, 3), (2, 4), (2, 4)))
    case = parts.masked_case("p1", True, image, {"Cord": tmp_path / "cord.nrrd", "Stem": stem}, patient="p")
    assert (case.id, case.training, case.organs, case.files, case.patient) == ("p1", True, ("Stem",), (image, stem), "p")
    scan = case.load()
    np.testing.assert_array_equal(scan.hu, ct())
    ((organ, found),) = scan.masks
    assert organ == "Stem"
    np.testing.assert_array_equal(found, mask((1, 3), (2, 4), (2, 4)) > 0)
