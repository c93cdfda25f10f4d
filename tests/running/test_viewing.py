"""What the viewer is given: scans cut to the body on one canonical grid, label maps beside them, and the index."""
import numpy as np
import pytest

from c2f_nnunet.errors import C2FError, RecordError
from c2f_nnunet.evaluation import pages
from c2f_nnunet.evaluation.figures import OverlayCase
from c2f_nnunet.evaluation.pages import PredictedOrgan
from c2f_nnunet.geometry import Geometry
from c2f_nnunet.io.images import read_image, read_label
from c2f_nnunet.labels import LabelSet
from c2f_nnunet.running import viewing

LABELS = LabelSet.from_names({"background": 0, "A": 4, "B": 9})
GRID = Geometry((20, 30, 40), (4.0, 4.0, 4.0), (-10.0, -20.0, 100.0))


def case(reference=True):
    """A block of tissue from (5, 6, 7) to (15, 24, 33) in air; organ 1 in it, organ 2 outside of it, 3 in the reference's place only."""
    image = np.full(GRID.shape, -3024, np.int16)
    image[5:15, 6:24, 7:33] = 40
    image[8, 8, 8] = 9000
    prediction, truth = np.zeros(GRID.shape, np.uint8), np.zeros(GRID.shape, np.uint8)
    prediction[8:11, 10:13, 10:13] = 1
    truth[8:11, 11:14, 10:13] = 1
    truth[17, 2, 38] = 2
    return OverlayCase("pat #1", image, GRID, truth if reference else None, prediction)


def test_the_scan_is_cut_to_the_body_and_every_organ_is_in_it(tmp_path):
    centres = viewing.write_case(tmp_path, case())
    scan = read_image(tmp_path / "viewer" / "pat #1_image.nii.gz")
    maps = [read_label(tmp_path / "viewer" / f"pat #1_{name}.nii.gz") for name in ("prediction", "reference")]
    assert scan.geometry == maps[0].geometry == maps[1].geometry and scan.geometry.spacing_mm == (4.0, 4.0, 4.0)
    assert np.prod(scan.array.shape) < np.prod(GRID.shape)
    assert (scan.array.min(), scan.array.max()) == (-1024, 3071)
    assert (maps[0].array == 1).sum() == 27 and (maps[1].array == 2).sum() == 1  # outside the body, but not cut off
    # organ 1's prediction has its centre at voxel (9, 11, 11): LPS x = −10 + 44, y = −20 + 44, z = 100 + 36; RAS turns x and y
    assert centres == {1: (-34.0, -24.0, 136.0), 2: (-142.0, 12.0, 168.0)}
    (z, y, x), (k, j, i) = np.argwhere(maps[0].array == 1).mean(0), (9, 11, 11)
    assert scan.geometry.world((z, y, x)) == pytest.approx(GRID.world((k, j, i)))


def test_without_a_reference_there_is_no_file_of_it(tmp_path):
    viewing.write_case(tmp_path, case(reference=False))
    assert sorted(f.name for f in (tmp_path / "viewer").iterdir()) == ["pat #1_image.nii.gz", "pat #1_prediction.nii.gz"]


def test_the_index_comes_back_as_it_was_written(tmp_path):
    organs = [PredictedOrgan("A", "threshold 0.5", 1.5, {"confidence": 0.9}, ("small",)), PredictedOrgan("B", "absent", 0.0, {"confidence": 0.0})]
    table = pages.predicted_cases({"p": organs, "not written": organs}, {}, LABELS)
    viewing.write_index(tmp_path, "Title", LABELS, table, {"p": {1: (1.0, 2.0, 3.0)}}, ["p"])
    index = viewing.read_index(tmp_path)
    assert (index.title, index.organs, index.colours) == ("Title", ("A", "B"), tuple(pages.colours(LABELS).values()))
    (only,) = index.cases
    assert (only.case, only.image, only.prediction, only.reference) == ("p", "p_image.nii.gz", "p_prediction.nii.gz", "p_reference.nii.gz")
    assert only.line == "Flagged 1, Organs found 1 of 2, Lowest confidence 90.0 %, of A" and only.flagged == 1
    assert [(o.organ, o.flags, o.centre_mm) for o in only.organs] == [("A", ("small",), (1.0, 2.0, 3.0)), ("B", (), None)]
    assert only.organs[0].line == "Volume 1.50 ml, Confidence 90.0 %, Found at probability 0.5"
    viewing.write_index(tmp_path, "Title", LABELS, table, {"p": {}}, [])
    assert viewing.read_index(tmp_path).cases[0].reference is None


def test_what_is_no_viewers_folder_is_refused(tmp_path):
    with pytest.raises(C2FError, match=r"nothing to view there \(viewer/cases.json is missing\); give the folder of a c2f_predict"):
        viewing.read_index(tmp_path)
    (tmp_path / "viewer").mkdir()
    (tmp_path / "viewer" / "cases.json").write_text('{"version": 1}')
    with pytest.raises(RecordError, match="cases.json: not a valid ViewerIndex: title"):
        viewing.read_index(tmp_path)
    (tmp_path / "viewer" / "cases.json").write_text('{"version": 9, "title": "t", "organs": [], "colours": [], "cases": []}')
    with pytest.raises(C2FError, match="is of version 9, this program reads 1; make the report again"):
        viewing.read_index(tmp_path)
