"""Scores of hand-made label maps: states, counts, statistics, the organs' tolerances."""
import numpy as np
import pytest

from c2f_nnunet.errors import C2FError
from c2f_nnunet.evaluation import metrics
from c2f_nnunet.geometry import Geometry
from c2f_nnunet.io import records
from c2f_nnunet.labels import LabelSet

LABELS = LabelSet.from_names({"background": 0, "BrainStem": 1, "Parotid_L": 2, "Parotid_R": 3, "Chiasm": 7})
GEOMETRY = Geometry((4, 6, 10), (2.0, 1.0, 1.0))


def maps():
    """BrainStem: 8 voxels against 8, half shared. Parotid_L: missed. Parotid_R: absent but predicted. Chiasm (id 7): same in both."""
    truth, prediction = np.zeros(GEOMETRY.shape, np.uint8), np.zeros(GEOMETRY.shape, np.uint8)
    truth[1, 1:3, 0:4], prediction[1, 1:3, 2:6] = 1, 1
    truth[3, 5, 0:3] = 2
    prediction[0, 0, 9] = 3
    truth[2, 4, 8], prediction[2, 4, 8] = 7, 7
    return truth, prediction


def test_score_by_hand():
    s = metrics.score(*maps(), GEOMETRY, LABELS, case="a")
    stem, left, right, chiasm = s.organs
    assert (s.case, s.voxels, [o.state for o in s.organs]) == ("a", 240, ["scored", "missed", "absent", "scored"])
    assert (stem.voxels_reference, stem.voxels_prediction, stem.voxels_both) == (8, 8, 4)
    assert stem.dsc == 2 * 4 / 16
    assert stem.volume_reference_ml == stem.volume_prediction_ml == 8 * 2 / 1000  # 2 mm³ a voxel
    # the reference's columns x = 0…3, the prediction's 2…5: 0 0 from the shared half, 1 and 2 mm from the rest; percentile 95 of eight is 2
    assert stem.hd95_mm == 2.0
    assert stem.asd_mm == pytest.approx((0 + 0 + 1 + 2) / 4)
    assert stem.surface_dsc == 1.0  # nothing is farther than the brain stem's 2.5 mm
    assert (chiasm.id, chiasm.dsc, chiasm.hd95_mm, chiasm.surface_dsc) == (7, 1.0, 0.0, 1.0)


def test_missed_and_absent_organs():
    _, left, right, _ = metrics.score(*maps(), GEOMETRY, LABELS).organs
    assert (left.dsc, left.surface_dsc, left.hd95_mm, left.asd_mm) == (0.0, 0.0, None, None)
    assert left.volume_error_ml == pytest.approx(-0.006)
    assert (right.dsc, right.surface_dsc, right.hd95_mm, right.volume_error_ml) == (None, None, None, None)
    assert right.volume_prediction_ml == pytest.approx(0.002)
    assert right.false_positive and not left.false_positive


def test_organs_not_annotated_are_unknown_and_nothing_is_computed():
    s = metrics.score(*maps(), GEOMETRY, LABELS, annotated=("Chiasm",))
    assert [o.state for o in s.organs] == ["unknown", "unknown", "unknown", "scored"]
    assert s.organ("BrainStem") == metrics.OrganScore("BrainStem", 1, "unknown")
    assert s.mean_dsc == 1.0


def test_both_empty_is_absent_without_false_positive():
    empty = np.zeros(GEOMETRY.shape, np.uint8)
    s = metrics.score(empty, empty, GEOMETRY, LABELS)
    assert {o.state for o in s.organs} == {"absent"} and s.mean_dsc is None
    assert not any(o.false_positive for o in s.organs)


def test_scoring_does_not_depend_on_memory_order_or_type():
    truth, prediction = maps()
    expected = metrics.score(truth, prediction, GEOMETRY, LABELS)
    flipped = np.flip(np.flip(truth, 2).copy(), 2)
    assert metrics.score(np.asfortranarray(flipped.astype(np.uint16)), prediction.astype(np.int32), GEOMETRY, LABELS) == expected


def test_an_undeclared_label_or_another_shape_is_an_error():
    truth, prediction = maps()
    prediction[0, 0, 0] = 5
    with pytest.raises(C2FError, match=r"hn_1: prediction holds label\(s\) 5"):
        metrics.score(truth, prediction, GEOMETRY, LABELS, case="hn_1")
    with pytest.raises(C2FError, match=r"hn_1: reference \(4, 6, 10\), prediction \(4, 6, 9\)"):
        metrics.score(truth, prediction[..., :9], GEOMETRY, LABELS, case="hn_1")


@pytest.mark.parametrize("organ, expected_mm", [
    ("BrainStem", 2.5), ("Brainstem", 2.5), ("Brain_Stem", 2.5), ("brain stem", 2.5), ("Brain", 2.0),
    ("OpticNrv_L", 2.5), ("OpticNerve_R", 2.5), ("Optic_Nerve_L", 2.5), ("Left Optic Nerve", 2.5),
    ("OpticN_Lt", 2.5), ("OpticTract_L", 2.0),
    ("Chiasm", 2.5), ("OpticChiasm", 2.5), ("Chiasm_Optic", 2.5),
    ("Parotid_L", 2.85), ("Glnd_Parotid_R", 2.85), ("ParotidGland_Rt", 2.85),
    ("Mandible", 1.01), ("Bone_Mandible", 1.01), ("mandible", 1.01),
    ("Submandibular_L", 2.02), ("Glnd_Submand_R", 2.02), ("Right Submandibular Gland", 2.02),
    ("SpinalCord", 2.0), ("Larynx", 2.0), ("label 3", 2.0),
])
def test_tolerance_by_family(organ, expected_mm):
    assert metrics.tolerance_mm(organ) == expected_mm


def test_tolerance_override_is_used_and_stated():
    assert metrics.tolerance_mm("Larynx", {"Larynx": 3}) == 3.0
    loose, tight = (metrics.score(*maps(), GEOMETRY, LABELS, tolerances={"BrainStem": mm}).organ("BrainStem") for mm in (2.5, 0.5))
    assert (loose.tolerance_mm, tight.tolerance_mm) == (2.5, 0.5)
    assert tight.surface_dsc < loose.surface_dsc == 1.0


def scored(case, **dsc):
    """A case with these DSCs; None means missed in the distances and 0 in the DSC."""
    organs = [
        metrics.OrganScore(o, i, "scored", 10, 10, 5, 1.0, 1.5, 2.0, d, 3.0 * d, 1.0, 1.0) if d is not None
        else metrics.OrganScore(o, i, "missed", 10, 0, 0, 1.0, 0.0, 2.0, 0.0, None, None, 0.0)
        for i, (o, d) in enumerate(dsc.items(), start=1)
    ]
    return metrics.CaseScore(case, 1000, tuple(organs))


def test_summarise_counts_the_missed_in_dsc_and_leaves_them_out_of_distances():
    scores = [scored("a", X=0.8, Y=0.5), scored("b", X=0.6, Y=None)]
    dsc, hd = metrics.summarise(scores), metrics.summarise(scores, "hd95_mm")
    assert dsc.loc["X", ["n", "mean"]].tolist() == [2, 0.7]
    assert dsc.loc["X", "sd"] == pytest.approx(0.1 * np.sqrt(2))  # sample SD of 0.6 and 0.8
    assert dsc.loc["Y", ["n", "mean", "missed"]].tolist() == [2, 0.25, 1]
    assert hd.loc["Y", ["n", "mean", "missed"]].tolist() == [1, 1.5, 1] and np.isnan(hd.loc["Y", "sd"])


def test_summarise_counts_absent_unknown_and_false_positives_and_keeps_label_order():
    scores = [metrics.score(*maps(), GEOMETRY, LABELS), metrics.score(*maps(), GEOMETRY, LABELS, annotated=("Parotid_L", "Chiasm"))]
    table = metrics.summarise(scores)
    assert list(table.index) == list(LABELS.organs)
    assert table[["n", "absent", "missed", "unknown", "false_positive"]].to_numpy().tolist() == [
        [1, 0, 0, 1, 0],  # BrainStem: unknown in the second case
        [2, 0, 2, 0, 0],  # Parotid_L: missed in both, DSC 0
        [0, 1, 0, 1, 1],  # Parotid_R: absent but predicted, then unknown
        [2, 0, 0, 0, 0],
    ]


@pytest.mark.parametrize("mean, sd, metric, text", [
    (0.852, 0.014, "dsc", "85.2 ± 1.4"), (1.944, 0.5, "hd95_mm", "1.94 ± 0.50"), (0.5, float("nan"), "dsc", "50.0"),
    (float("nan"), float("nan"), "dsc", "–"),
    (-0.001, 0.2, "volume_error_ml", "0.00 ± 0.20"), (-1.234, 0.2, "volume_error_ml", "−1.23 ± 0.20"),
])
def test_mean_sd(mean, sd, metric, text):
    assert metrics.mean_sd(mean, sd, metric) == text


def test_to_table():
    table = metrics.to_table([scored("a", X=0.8, Y=0.5), scored("b", X=0.6, Y=None)], ("dsc", "hd95_mm"))
    assert list(table.columns) == ["DSC (%)", "95HD (mm)", "absent", "missed", "unknown"]
    assert table.loc["X"].tolist() == ["70.0 ± 14.1", "2.10 ± 0.42", "0", "0", "0"]
    assert table.loc["Mean"].tolist() == ["47.5", "1.80", "0", "1", "0"]


def test_scores_survive_json(tmp_path):
    s = metrics.score(*maps(), GEOMETRY, LABELS, case="a")
    records.write(tmp_path / "s.json", s)
    assert records.read(metrics.CaseScore, tmp_path / "s.json") == s
