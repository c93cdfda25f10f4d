"""DICOM series as cases: readable, file-safe, unique names, and a log of what is passed over."""
import logging
from pathlib import Path

import pytest
from pydicom.uid import generate_uid

from c2f_nnunet.data.series import case_names, file_safe, series_cases
from c2f_nnunet.io.survey import Series
from tests.io.test_dicom import slice_file

IN = Path("in")


def names(*series: tuple[str, str, list[str]], taken=()) -> list[str]:
    """Names of series given as (UID, PatientID, files)."""
    return case_names(IN, [Series(uid, patient, tuple(IN / f for f in files)) for uid, patient, files in series], taken)


@pytest.mark.parametrize("series, expected", [
    # each in a sub-folder of its own, at any depth
    ([("1.1", "A", ["P01/1.dcm", "P01/2.dcm"]), ("1.2", "B", ["P02/CT/1.dcm"])], ["P01", "P02"]),
    ([("1.1", "A", ["P01/CT/1/1.dcm", "P01/CT/2/1.dcm"])], ["P01"]),  # one series in two folders
    # two of one patient
    ([("1.1", "A", ["P01/plan/1.dcm"]), ("1.2", "A", ["P01/again/1.dcm"])], ["P01_plan", "P01_again"]),
    ([("1.1", "A", ["P01/1.dcm"]), ("1.2", "A", ["P01/again/1.dcm"])], ["P01_11", "P01_again"]),
    # mixed: in a sub-folder by its name, in the folder itself by the patient
    ([("1.23456789012", "A", ["P01/1.dcm"]), ("1.2", "A", ["P01/2.dcm"])], ["P01_56789012", "P01_12"]),
    ([("1.23456789012", "HN 001", ["1.dcm"]), ("1.2.3", "", ["2.dcm"])], ["HN_001_56789012", "scan_123"]),
    ([("1.23", "A", ["x/1.dcm", "y/1.dcm"])], ["A_123"]),  # scattered over all
    # one alone in the folder itself, too
    ([("1.23", "A", ["1.dcm"])], ["A_123"]),
    # names that would be one file on some systems
    ([("1.23", "A", ["P 1/1.dcm"]), ("1.24", "A", ["p_1/1.dcm"])], ["P_1_123", "p_1_124"]),
    ([("1.23", "A", ["1.dcm"]), ("12.3", "A", ["2.dcm"])], ["A_123", "A_123_2"]),
    # damaged files alone
    ([("", "", ["P01/1.dcm"]), ("1.2", "A", ["P02/1.dcm"])], ["P01_damaged", "P02"]),
    ([("1.2", "A", ["P01/CT/1.dcm"]), ("", "", ["P01/RS.dcm"])], ["P01", "P01_damaged"]),
])  # fmt: skip
def test_names(series, expected):
    assert names(*series) == expected


def test_names_that_are_taken():
    series = [("1.23", "A", ["s0/1.dcm"]), ("1.24", "A", ["dataset/1.dcm"]), ("1.25", "A", ["s1/1.dcm"])]
    assert names(*series, taken=["S0"]) == ["s0_123", "dataset_124", "s1"]


@pytest.mark.parametrize("text, safe", [
    ("Müller, Jörg (2)", "Müller_Jörg_2"), ("../../etc", "etc"), ("-rf", "rf"), (".hidden", "hidden"), ("a\nb\0c", "a_b_c"),
    ("1.2.840.1", "1_2_840_1"), ("x.nii", "x_nii"), ("***", "scan"), ("", "scan"), ("胃", "胃"), ("CT-1_b", "CT-1_b"),
])  # fmt: skip
def test_file_safe(text, safe):
    assert file_safe(text) == safe and len(file_safe(text * 200).encode()) <= 120


def test_a_folder_and_what_is_passed_over(tmp_path, caplog):
    ours, other = generate_uid(), generate_uid()
    for k in range(2):
        (tmp_path / "P01").mkdir(exist_ok=True)
        slice_file(tmp_path / "P01", k, SeriesInstanceUID=ours)
        slice_file(tmp_path, k, SeriesInstanceUID=other, PatientID="HN7")
    for k in range(5):
        slice_file(tmp_path / "P01", k, name=f"mr{k}", Modality="MR")
    (tmp_path / "notes.txt").write_text("no DICOM " * 50)
    with caplog.at_level(logging.INFO):
        found = series_cases(tmp_path)
    end = "".join(c for c in other if c.isdigit())[-8:]
    assert {name: [f.name for f in files] for name, files in found.items()} == {
        f"HN7_{end}": ["CT000.dcm", "CT001.dcm"], "P01": ["CT000.dcm", "CT001.dcm"]}
    assert caplog.messages == [
        f"{tmp_path}: passed over 5 MR files: P01/mr0.dcm, P01/mr1.dcm, P01/mr2.dcm …",
        f"{tmp_path}: passed over 1 files that are no DICOM: notes.txt",
    ]


def test_without_a_series_nothing_is_said(tmp_path, caplog):
    (tmp_path / "notes.txt").write_text("no DICOM " * 50)
    with caplog.at_level(logging.INFO):
        assert series_cases(tmp_path) == {} and not caplog.messages
