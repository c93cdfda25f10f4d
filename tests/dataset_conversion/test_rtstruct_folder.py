"""A clinic's folder of CT series and RTSTRUCTs → raw data set: which belongs to which, names, patients who lack something."""
import json
import re
import shutil
from contextlib import contextmanager

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from c2f_nnunet.errors import DatasetError
from c2f_nnunet.io import records
from c2f_nnunet.io.dicom import read_series
from c2f_nnunet.io.rtstruct_out import write_rtstruct
from c2f_nnunet.io.series import series_reference
from c2f_nnunet.labels import LabelSet
from tests.dataset_conversion.sources import GRID, ct, image_of, known, label_of, load, mask, verified
from tests.io.test_dicom import write_series

converter = load("rtstruct_folder")
ROIS = {"brain stem": mask((1, 5), (2, 6), (2, 5)), "Parotid L": mask((2, 4), (3, 6), (7, 9)), "PTV 70": mask((1, 3), (4, 6), (5, 7))}
ORGANS = {"Brainstem": 1, "Parotid_L": 2}  # by TG-263, in alphabetical order


def series(folder, seed=0, **tags):
    """A CT series of its own; its files."""
    return write_series(folder, ct(seed), GRID, **{"SeriesInstanceUID": generate_uid(), "FrameOfReferenceUID": generate_uid(), **tags})


def structures(path, files, rois=ROIS, drawn=None):
    """An RTSTRUCT of boxes; drawn: names of those that have contours, the others are empty (default: all)."""
    labels = np.zeros(GRID.shape, np.uint8)
    for i, (name, voxels) in enumerate(rois.items(), 1):
        labels[(voxels > 0) & (name in (drawn or rois))] = i
    image = read_series(files)
    write_rtstruct(path, labels, LabelSet(tuple(rois), tuple(range(1, len(rois) + 1))), image.source, series_reference(files))
    if drawn:
        header = pydicom.dcmread(path)
        for number, name in enumerate(rois, 1):
            if name not in drawn:
                item = pydicom.Dataset()
                item.ROINumber, item.ROIName = number, name
                header.StructureSetROISequence.append(item)
        header.save_as(path)
    return path


@contextmanager
def edited(path):
    """An RTSTRUCT to be changed in place."""
    header = pydicom.dcmread(path)
    yield header
    header.save_as(path)


@pytest.fixture
def clinic(tmp_path):
    """Three patients in three nestings: A/CT/* and A/RS.dcm; all of B in one folder; C/study/… without the parotid's contours."""
    source = tmp_path / "export"
    structures(source / "A" / "RS.dcm", series(source / "A" / "CT", 0, PatientID="1"))
    structures(source / "B" / "rs_b.dcm", series(source / "B", 1, PatientID="2"))
    structures(source / "C" / "study" / "RS.dcm", series(source / "C" / "study" / "1", 2, PatientID="3"), drawn=("brain stem", "PTV 70"))
    return source


@pytest.fixture
def run(tmp_path, capsys):
    """run(source, …) → (exit code, what was printed, what went to stderr) of the script; the data set is in `run.folder`."""

    def run(source, *args):
        code = converter.main([str(a) for a in (source, "-d", 15, "--raw", tmp_path / "raw", *args)])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    run.folder = tmp_path / "raw" / "Dataset015_RTSTRUCT"
    return run


def rows(shown: str) -> dict[str, list[str]]:
    """Structure → patients, those with contours, organ, of the printed table."""
    found = {}
    for line in shown.splitlines():
        if row := re.fullmatch(r" *(\S.*?) +(\d+) +(\d+) +(\(left out\)|\S+)", line):
            found[row[1]] = [row[2], row[3], row[4]]
    return found


def test_a_folder_of_patients(clinic, run):
    code, shown, _ = run(clinic)
    assert code == 0
    assert rows(shown) == {"brain stem": ["3", "3", "Brainstem"], "Parotid L": ["3", "2", "Parotid_L"], "PTV 70": ["3", "3", "(left out)"]}
    dataset = verified(run.folder)
    assert dict(zip(dataset.labels.organs, dataset.labels.ids)) == ORGANS
    assert known(dataset) == {"A": None, "B": None, "C": ("Brainstem",)} and dataset.patients == {}
    for seed, case in enumerate("ABC"):
        np.testing.assert_array_equal(image_of(run.folder, case), ct(seed))
        expected = ROIS["brain stem"] + 2 * ROIS["Parotid L"] * (case != "C")
        np.testing.assert_array_equal(label_of(run.folder, case), expected)


def test_the_list_writes_nothing(clinic, run, tmp_path):
    code, shown, _ = run(clinic, "--list")
    assert code == 0 and rows(shown)["Parotid L"] == ["3", "2", "Parotid_L"] and not (tmp_path / "raw").exists()


def test_a_mapping_says_which_structure_is_which_organ(clinic, run, tmp_path):
    """By name, by an expression in any case, and its own order of labels; what fits nothing is told."""
    mapping = tmp_path / "organs.json"
    mapping.write_text(json.dumps({"ptv.*": "Target", "brain stem": "Stem", "Cochlea": "Cochlea"}))
    code, shown, told = run(clinic, "--mapping", mapping)
    assert code == 0 and rows(shown)["Parotid L"] == ["3", "2", "(left out)"]
    assert "no structure fits these entries of the mapping: Cochlea" in told
    dataset = verified(run.folder)
    assert dict(zip(dataset.labels.organs, dataset.labels.ids)) == {"Target": 1, "Stem": 2}
    np.testing.assert_array_equal(label_of(run.folder, "A"), ROIS["PTV 70"] + 2 * ROIS["brain stem"])


def test_every_name_as_it_is(clinic, run):
    assert run(clinic, "--names", "source")[0] == 0
    assert verified(run.folder).labels.organs == ("PTV 70", "Parotid L", "brain stem")


@pytest.mark.parametrize("mapping, name, organ", [
    (None, "Parotid-Lt", "Parotid_L"), (None, "GTV", None), (None, "BODY", None), (None, "External", None),
    ({"Parotid (L)": "P"}, "Parotid (L)", "P"), ({"Parotid (L)": "P"}, "Parotid L", "P"),  # as a name, and as an expression
    ({"BODY": "Body"}, "Body", "Body"), ({"parotid": "P"}, "Parotid L", None),
    ({"par.*": "A", ".*otid L": "B", "Parotid L": "C"}, "Parotid L", "C"),
    ({"par.*": "A", ".*otid L": "A"}, "Parotid L", "A"),
])  # fmt: skip
def test_organ_of(mapping, name, organ):
    assert converter.organ_of(name, mapping, "tg263") == organ


def test_expressions_that_disagree():
    told = r"'Parotid L' fits several entries of the mapping \('par\.\*': A, '\.\*L': B\); add one for this very name"
    with pytest.raises(DatasetError, match=told):
        converter.organ_of("Parotid L", {"par.*": "A", ".*L": "B"}, "tg263")


@pytest.mark.parametrize("content, told", [
    ("[1]", "is no mapping; write"), ("{}", "is no mapping"), ('{"a": 1}', "is no mapping"), ('{"a": " "}', "is no mapping"),
    ('{"Parotid (L": "P"}', r"'Parotid \(L' is no regular expression"), ("{", "cannot be read as JSON"),
])  # fmt: skip
def test_what_is_no_mapping(clinic, run, tmp_path, content, told):
    (tmp_path / "organs.json").write_text(content)
    code, _, error = run(clinic, "--mapping", tmp_path / "organs.json")
    assert code == 1 and re.search(told, error) and not run.folder.exists()


def test_patients_who_cannot_be_used_are_named_and_the_others_are_done(clinic, run, tmp_path):
    ct_d = series(clinic / "D" / "CT", 3)
    structures(clinic / "D" / "RS.dcm", ct_d)
    ct_d[2].unlink()  # a slice is missing
    ct_e = series(clinic / "E", 4)
    for name in ("RS1.dcm", "RS2.dcm"):
        structures(clinic / "E" / name, ct_e)
    structures(clinic / "F" / "RS.dcm", series(tmp_path / "kept back", 5))  # its CT is not there
    (clinic / "G").mkdir()
    (clinic / "G" / "RS.dcm").write_bytes((clinic / "A" / "RS.dcm").read_bytes()[:200])
    structures(clinic / "H" / "RS.dcm", series(clinic / "H" / "CT", 6), {"Parotid L": ROIS["Parotid L"], "Parotid_Lt": ROIS["PTV 70"]})
    structures(clinic / "I" / "RS.dcm", series(clinic / "I" / "CT", 7), {"PTV": ROIS["PTV 70"]})
    code, _, told = run(clinic)
    error = told.split("\nerror: ")[-1]
    assert code == 3
    for case, reason in {
        "D": r"1 slice is missing \(number 3\): CT001\.dcm and CT003\.dcm are 6 mm apart",
        "E": r"2 RTSTRUCTs were drawn on it \(E/RS1\.dcm, E/RS2\.dcm\); keep the one that is meant",
        "F_RS": r"F/RS\.dcm: the CT series that it refers to is not there, .*; add the series",
        "G_RS": r"G/RS\.dcm: ",
        "H": "'Parotid L' and 'Parotid_Lt' are both Parotid_L; keep one of them",
        "I": "no organ is delineated in it",
    }.items():
        assert re.search(rf"^ *{case}: .*{reason}", error, re.MULTILINE), (case, error)
    assert sorted(known(verified(run.folder))) == ["A", "B", "C"]
    code, shown, told = run(clinic, "--list")
    assert code == 3 and "Parotid_Lt" in rows(shown) and "cannot be used: D: " in told


def test_an_rtstruct_whose_series_has_another_uid_is_matched_by_frame_or_folder(clinic, run):
    """As after an anonymiser that renames the series of the CT alone."""
    for path in (clinic / "A" / "CT").iterdir():
        header = pydicom.dcmread(path)
        header.SeriesInstanceUID = "1.2.3"
        header.save_as(path)
    for path in (clinic / "B").glob("CT*"):
        header = pydicom.dcmread(path)
        header.SeriesInstanceUID, header.FrameOfReferenceUID = "1.2.4", "1.2.5"
        header.save_as(path)
    code, _, told = run(clinic)
    assert code == 0
    assert "A: the series that the RTSTRUCT refers to is not there: the only one in its frame of reference is taken" in told
    assert "B: the series that the RTSTRUCT refers to is not there: the only one in its folder is taken" in told
    for case in "AB":
        np.testing.assert_array_equal(label_of(run.folder, case), ROIS["brain stem"] + 2 * ROIS["Parotid L"])


def test_an_rtstruct_of_an_mr_beside_the_ct_is_passed_over(clinic, run, tmp_path):
    structures(clinic / "A" / "RS_MR.dcm", series(tmp_path / "mr", 5), {"Brainstem": ROIS["PTV 70"]})
    code, _, told = run(clinic)
    assert code == 0 and "passed over, since they refer to other series than the CT beside them" in told and "A/RS_MR.dcm" in told
    np.testing.assert_array_equal(label_of(run.folder, "A"), ROIS["brain stem"] + 2 * ROIS["Parotid L"])


def test_files_of_no_patient_whose_names_are_alike_are_all_named(clinic, run, tmp_path):
    """Names that are UIDs differ at the end only, and long ones are cut."""
    for name in ("RS.1.2.276.1", "RS.1.2.276.2", "1." * 60 + "1", "1." * 60 + "2"):
        structures(clinic / "F" / name, series(tmp_path / name, 5))  # its CT is not there
    code, _, told = run(clinic)
    error = told.split("\nerror: ")[-1]
    assert code == 3 and "4 of 7 cases are left out" in error
    for name in ("RS.1.2.276.1", "RS.1.2.276.2", "1." * 60 + "1", "1." * 60 + "2"):
        assert f"F/{name}: the CT series that it refers to is not there" in error
    assert sorted(known(verified(run.folder))) == ["A", "B", "C"]


def test_what_is_odd_in_a_patient_is_told_kept_and_counted(clinic, run):
    stem = ROIS["brain stem"].copy()
    stem[2:4] = 0  # drawn on slices 1 and 4 alone
    structures(clinic / "A" / "RS.dcm", sorted((clinic / "A" / "CT").iterdir()), {**ROIS, "brain stem": stem})
    with edited(clinic / "B" / "rs_b.dcm") as header:
        stem, parotid, target = (item.ContourSequence for item in header.ROIContourSequence)
        for contour in [*stem, *target]:  # the target is no organ: nothing is said of it
            del contour.ContourImageSequence
        parotid[0].ContourData[2] += 2  # mm: across the slices
    with edited(clinic / "C" / "study" / "RS.dcm") as header:
        header.StructureSetROISequence = [item for item in header.StructureSetROISequence if item.ROIName != "PTV 70"]
    expected = {
        "A": ["WARNING 'brain stem': 2 slices between its first and its last contour left empty"],
        "B": ["INFO 'brain stem': 4 contours referring to no slice: matched by position",
              "WARNING 'Parotid L' is left out: 1 contour of 2 not in the plane of the CT's axial slices (through up to 2 mm of them)"],
        "C": ["INFO contours of number 3, which no structure has, are left out"],  # and nothing of the parotid, which nobody drew
    }  # fmt: skip
    lines = [note.replace(" ", f" {case}: ", 1) for case, notes in expected.items() for note in notes]
    for args in (("--list",), ()):
        code, shown, told = run(clinic, *args)
        assert code == 0 and [line for line in told.splitlines() if re.match("(INFO|WARNING) [ABC]: ", line)] == lines
    for case, notes in expected.items():
        record = records.read_json(run.folder / "conversion" / "cases" / f"{case}.json")
        assert record["notes"] == [note.split(" ", 1)[1] for note in notes]
    assert known(verified(run.folder))["B"] == ("Brainstem",)  # what is refused is not annotated
    assert f"notes on 3 of the 3 cases, 4 in all, in {run.folder / 'conversion' / 'cases'}" in shown
    assert "slices between contours are empty in 1 of the 3 cases, look at them: A" in shown
    assert label_of(run.folder, "A").any(axis=(1, 2)).tolist() == [False, True, True, True, True, False]  # the parotid is on 2 and 3


def test_contours_of_which_none_lies_on_the_ct_are_a_warning(clinic, run):
    with edited(clinic / "A" / "RS.dcm") as header:
        for contour in header.ROIContourSequence[1].ContourSequence:
            contour.ContourData = [v + 100 * (i % 3 == 2) for i, v in enumerate(contour.ContourData)]
    code, _, told = run(clinic)
    assert code == 0 and "WARNING A: 'Parotid L': 2 contours above or below the CT: left out" in told
    assert known(verified(run.folder))["A"] == ("Brainstem",)


def test_a_usual_patient_has_no_notes(clinic, run):
    code, shown, told = run(clinic)
    assert code == 0 and "INFO" not in told and "WARNING" not in told and "notes on" not in shown and "slices between" not in shown
    assert all(records.read_json(path)["notes"] == [] for path in (run.folder / "conversion" / "cases").iterdir())


def test_series_without_an_rtstruct_and_other_files_are_passed_over(clinic, run):
    series(clinic / "C" / "follow-up", 8)
    (clinic / "notes.txt").write_text("no DICOM " * 50)
    code, _, told = run(clinic)
    assert "passed over 1 files that are no DICOM: notes.txt" in told and "RTSTRUCT files" not in told
    assert code == 0 and f"1 CT series without an RTSTRUCT are passed over, in {clinic / 'C' / 'follow-up'}" in told
    assert sorted(known(verified(run.folder))) == ["A", "B", "C"]


def test_scans_of_one_patient_stay_together(clinic, run):
    structures(clinic / "A2" / "RS.dcm", series(clinic / "A2" / "CT", 4, PatientID="1"))
    assert run(clinic)[0] == 0
    assert verified(run.folder).patients == {"A": "A", "A2": "A", "B": "B", "C": "C"}


def test_scans_of_one_patient_that_come_later_stay_together(clinic, run):
    """A patient is called as its first case is, and that may be the new one."""
    assert run(clinic)[0] == 0
    structures(clinic / "A0" / "RS.dcm", series(clinic / "A0" / "CT", 4, PatientID="2"))
    assert run(clinic, "--update")[0] == 0
    assert verified(run.folder).patients == {"A": "A", "A0": "A0", "B": "A0", "C": "C"}


def test_a_second_ct_of_a_patient_leaves_no_old_copy_of_the_first(clinic, run):
    """One CT in A is called A; with a second one beside it they are A_CT and A_CT2."""
    assert run(clinic)[0] == 0
    structures(clinic / "A" / "RS2.dcm", series(clinic / "A" / "CT2", 4, PatientID="1"))
    code, _, told = run(clinic, "--update")
    assert code == 0 and "A is A_CT in the source now, and is called so here" in told
    dataset = verified(run.folder)
    assert [c.id for c in dataset.training] == ["A_CT", "A_CT2", "B", "C"] and dataset.patients["A_CT2"] == "A_CT"


def test_one_id_for_all_means_nothing(tmp_path, run):
    source = tmp_path / "export"
    for seed, name in enumerate("AB"):
        structures(source / name / "RS.dcm", series(source / name / "CT", seed, PatientID="ANON"))
    code, _, told = run(source)
    assert code == 0 and "all 2 scans have the PatientID 'ANON'; they are taken as scans of different patients" in told
    assert verified(run.folder).patients == {}


def test_overlaps_go_to_the_smaller_organ_and_are_told(tmp_path, run):
    source = tmp_path / "export"
    files = series(source / "A" / "CT")
    rtstruct = structures(source / "A" / "RS.dcm", files, {"Brain": mask((1, 5), (1, 7), (1, 9))})
    other = structures(tmp_path / "lens.dcm", files, {"Lens_L": mask((2, 4), (2, 4), (3, 5))})
    both, lens = pydicom.dcmread(rtstruct), pydicom.dcmread(other)  # a label map cannot hold both: their contours are put together
    lens.StructureSetROISequence[0].ROINumber = lens.ROIContourSequence[0].ReferencedROINumber = 2
    both.StructureSetROISequence.append(lens.StructureSetROISequence[0])
    both.ROIContourSequence.append(lens.ROIContourSequence[0])
    both.save_as(rtstruct)
    code, shown, _ = run(source)
    assert code == 0 and "Lens_L and Brain overlap, by at most 8 voxels (1 cases); Lens_L kept them" in shown
    np.testing.assert_array_equal(label_of(run.folder, "A"), mask((1, 5), (1, 7), (1, 9)) + mask((2, 4), (2, 4), (3, 5)))


def test_nothing_is_put_over_a_data_set_and_an_update_makes_only_what_changed(clinic, run):
    assert run(clinic)[0] == 0
    before = {p: p.stat().st_mtime_ns for p in run.folder.glob("*Tr/*")}
    code, _, told = run(clinic)
    assert code == 1 and "there is a data set already; give --update" in told
    structures(clinic / "D" / "RS.dcm", series(clinic / "D" / "CT", 3))
    assert run(clinic, "--update")[0] == 0
    assert sorted(known(verified(run.folder))) == ["A", "B", "C", "D"]
    assert all(p.stat().st_mtime_ns == mtime for p, mtime in before.items())


@pytest.mark.parametrize("empty, told", [
    (lambda source: shutil.rmtree(source), "no such folder; give the folder that holds the patients' DICOM files"),
    (lambda source: [p.unlink() for p in source.rglob("*rs*") if p.is_file()] + [p.unlink() for p in source.rglob("RS*")],
     "no RTSTRUCT there; export the structure sets with the CT series"),
])  # fmt: skip
def test_where_there_is_nothing_to_convert(clinic, run, empty, told):
    empty(clinic)
    code, _, error = run(clinic)
    assert code == 1 and told in error and not run.folder.exists()


def test_no_known_organ(tmp_path, run):
    source = tmp_path / "export"
    structures(source / "A" / "RS.dcm", series(source / "A" / "CT"), {"PTV": ROIS["PTV 70"]})
    code, _, error = run(source)
    assert code == 1 and "no structure with contours is taken as an organ (the table shows what there is); give --mapping" in error
    assert not run.folder.exists()


# Real data


def test_a_real_patient(real_data, tmp_path, run):
    """A chest CT with 104 structures. One slice is missing: refused as it is, converted without the slice before the gap."""
    source = tmp_path / "export" / "P1"
    shutil.copytree(real_data / "dicom" / "chest_ct_rtstruct", source, ignore=shutil.ignore_patterns("nii_seg"))
    code, _, error = run(source.parent)
    assert code == 1 and "1 slice is missing (number 82): CT000081.dcm and CT000082.dcm are 1.6 mm apart" in error
    (source / "dcm" / "CT000081.dcm").unlink()
    code, shown, _ = run(source.parent)
    assert code == 0 and len(rows(shown)) == 104
    dataset = verified(run.folder)
    record = records.read_json(run.folder / "dataset.json")
    assert [c.id for c in dataset.training] == ["P1"] and set(record["labels"]) >= {"background", "A_Aorta", "Esophagus"}
    ours = (label_of(run.folder, "P1") == record["labels"]["A_Aorta"]).sum(axis=(1, 2))
    theirs = np.asarray(nib.load(real_data / "dicom" / "chest_ct_rtstruct" / "nii_seg" / "aorta.nii.gz").dataobj).astype(bool).sum(axis=(0, 1))
    assert ours.tolist() == theirs[1:].tolist()  # the slice that was taken away is the lowest
