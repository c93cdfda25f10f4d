"""A made-up patient in DICOM, read back: the CT, the structures in the style asked for, none of an organ that is not there."""
import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from c2f_nnunet.data.dataset import read_dataset
from c2f_nnunet.geometry import Geometry, same_grid
from c2f_nnunet.io.dicom import find_series, read_series
from c2f_nnunet.io.images import write_volume
from c2f_nnunet.io.rtstruct_in import full_mask, read_rtstruct
from c2f_nnunet.io.series import series_reference

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "own_data_example.py"
GRID = Geometry((24, 20, 20), (3.0, 1.5, 2.25), (12.5, -20.0, 30.0))
ORGANS = {"Mandible": 1, "BrainStem": 2, "Parotid_L": 3, "Parotid_R": 4, "Chiasm": 5}


@pytest.fixture
def raw(tmp_path):
    """A case to train on, without a left parotid, and one to test on."""
    hu, labels = np.full(GRID.shape, -1000, np.int16), np.zeros(GRID.shape, np.uint8)
    hu[2:22, 2:18, 2:18] = 40
    for i, z in ((1, 3), (2, 8), (4, 13), (5, 20)):
        labels[z : z + 3, 5:9, 6:11] = i
    root = tmp_path / "Dataset900_Phantom"
    for part, case in (("Tr", "phantom_000"), ("Ts", "phantom_001")):
        write_volume(root / f"images{part}" / f"{case}_0000.nii.gz", hu, GRID)
        write_volume(root / f"labels{part}" / f"{case}.nii.gz", labels, GRID)
    about = {"channel_names": {"0": "CT"}, "labels": {"background": 0, **ORGANS}, "numTraining": 1, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(about))
    return root, hu, labels


@pytest.mark.parametrize("style, stem, mandible, parotid, others", [
    ("ENGLISH", "Brain Stem", "Mandible", "Parotid Rt", ("BODY", "PTV 70")),
    ("FRENCH", "Tronc cerebral", "Mandibule", "Parotide D", ("Contour externe", "PTV 70")),
    ("TG263", "Brainstem", "Bone_Mandible", "Parotid_R", ("External", "PTV_7000")),
])  # fmt: skip
def test_a_patient_comes_back(raw, tmp_path, monkeypatch, style, stem, mandible, parotid, others):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    script, (root, hu, labels) = importlib.import_module("own_data_example"), raw
    dataset = read_dataset(root)
    script.write_patient(tmp_path / "P05", dataset.training[0], dataset.labels, getattr(script, style))
    (files,) = find_series(tmp_path / "P05").values()
    image, series = read_series(files), series_reference(files)
    assert same_grid(image.geometry, GRID) and dict(series.attributes)["PatientID"] == "P05"
    np.testing.assert_array_equal(image.array, hu)
    rtstruct = read_rtstruct(tmp_path / "P05" / "RS.dcm", image.geometry, series)
    assert [s.name for s in rtstruct.structures] == [stem, mandible, parotid, *others]
    for structure, i in zip(rtstruct.structures, (2, 1, 4)):
        np.testing.assert_array_equal(full_mask(rtstruct, structure), labels == i)


def test_the_script_writes_what_the_page_begins_with_and_nothing_over_it(raw, tmp_path):
    command = [sys.executable, SCRIPT, raw[0], tmp_path]
    subprocess.run(command, check=True)
    assert {p.relative_to(tmp_path).as_posix() for folder in ("export", "new") for p in (tmp_path / folder).glob("*/*")} == {
        "export/P01/CT", "export/P01/RS.dcm", "new/P13/CT"}  # fmt: skip
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 1 and "export: is there already; remove it, or choose another folder" in again.stderr
