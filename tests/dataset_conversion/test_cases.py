"""A source's usual case: a CT with one file for each organ's mask."""
import numpy as np
import pytest

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


@pytest.mark.parametrize("there, told", [
    ("1 2 3 9", []),  # of part b, which was not asked for, nothing is said
    ("3 1 9 0", ["1 of 3 scans of part a are not there: 2; complete the download unless that is meant"]),
    ("1 2 3 8", ["1 of 1 scans of part c are not there: 9; complete the download unless that is meant",
                 "1 folders of no known part are left out: 8"]),
    ("1 2 3 4 5 6 7 8 9 x", ["6 folders of no known part are left out: 4, 5, 6, 7, 8, …"]),
])  # fmt: skip
def test_scans_that_are_missing_and_those_of_no_part_are_named(caplog, there, told):
    parts.warn_of_gaps({"a": "123", "b": "0", "c": "9"}, ["a", "c"], there.split(), "left out")
    assert caplog.messages == told
