"""Organ names: their pairs, channels, TG-263 names and colours."""
import numpy as np
import pytest

from c2f_nnunet.errors import DatasetError
from c2f_nnunet.labels import LabelSet, member_name, member_names
from c2f_nnunet.sides import side_and_stem

FIVE = LabelSet.from_names({"background": 0, "BrainStem": 1, "SpinalCord": 2, "Parotid_R": 3, "Parotid_L": 4, "Mandible": 5})


def test_pairs_are_left_then_right_whatever_their_order_in_the_file():
    assert FIVE.pairs == (("Parotid_L", "Parotid_R"),)
    alone = LabelSet.from_names({"background": 0, "Parotid_L": 1, "OpticNrv_R": 2})
    assert alone.pairs == ()


def test_pairs_of_different_spellings():
    labels = LabelSet.from_names({"background": 0, "Left Optic Nerve": 1, "right optic nerve": 2})
    assert labels.pairs == (("Left Optic Nerve", "right optic nerve"),)


@pytest.mark.parametrize("left, right, member", [
    ("LParotid", "RParotid", "3d_Parotid"),
    ("PAROTIDL", "PAROTIDR", "3d_PAROTID"),
    ("Eye_AL", "Eye_AR", "3d_Eye_A"),
    ("Lobe_Temporal_L_sup", "Lobe_Temporal_R_sup", "3d_Lobe_Temporal_sup"),
    ("Parotide G", "Parotide D", "3d_Parotide"),
    ("Parotide gauche", "Parotide droite", "3d_Parotide"),
    ("Parotis li.", "Parotis re.", "3d_Parotis"),
])  # fmt: skip
def test_weaker_signs_of_a_side_count_beside_the_partner(left, right, member):
    labels = LabelSet.from_names({"background": 0, "CANAL": 1, right: 2, "Lens D": 3, left: 4})
    assert labels.pairs == ((left, right),) and labels.is_symmetric and labels.mirrored_channel == (0, 1, 4, 3, 2)
    assert member_name((left, right)) == member and side_and_stem(left) is None
    assert labels.colour(left) == pytest.approx([0.75 * v for v in labels.colour(right)])
    alone = LabelSet.from_names({"background": 0, "CANAL": 1, left: 2})
    assert alone.pairs == () and alone.sides == {}


def test_the_same_labels_under_standard_names():
    labels = LabelSet.from_names({"background": 0, "Mandible": 2, "Optic-Nerve-Lt": 5, "IAC_L": 7})
    assert labels.standard == LabelSet(("Bone_Mandible", "OpticNrv_L", "IAC_L"), (2, 5, 7))


def test_mirrored_channel():
    assert FIVE.mirrored_channel == (0, 1, 2, 4, 3, 5)  # background, stem, cord, the parotids swapped, mandible


def test_ids_with_gaps_become_channels_and_come_back():
    labels = LabelSet.from_names({"background": 0, "B": 7, "A": 3})
    assert labels.organs == ("A", "B") and labels.ids == (3, 7) and labels.channels == 3
    label_map = np.array([[0, 3], [7, 3]], np.uint8)
    assert labels.to_channels(label_map).tolist() == [[0, 1], [2, 1]]
    assert labels.to_ids(labels.to_channels(label_map)).tolist() == label_map.tolist()


@pytest.mark.parametrize("organs, dtype", [(5, np.uint8), (255, np.uint8), (256, np.uint16), (300, np.uint16)])
def test_many_labels_keep_their_ids_exactly(organs, dtype):
    labels = LabelSet.from_names({"background": 0} | {f"Organ{i}": i for i in range(1, organs + 1)})
    label_map = np.arange(organs + 1).reshape(1, 1, -1)
    channels = labels.to_channels(label_map)
    back = labels.to_ids(channels)
    assert labels.dtype is dtype and channels.dtype == dtype and back.dtype == dtype
    np.testing.assert_array_equal(back, label_map)


def test_a_high_id_needs_uint16_though_the_organs_are_few():
    labels = LabelSet.from_names({"background": 0, "A": 1000})
    back = labels.to_ids(np.array([0, 1]))
    assert back.tolist() == [0, 1000] and back.dtype == np.uint16


def test_two_organs_of_one_id_are_refused():
    with pytest.raises(DatasetError, match=r"two organs share one id in .*'A': 1, 'B': 1.*give each organ an id of its own"):
        LabelSet.from_names({"background": 0, "A": 1, "B": 1})


@pytest.mark.parametrize("organs, name", [
    (("Mandible",), "3d_Mandible"),
    (("Parotid_L", "Parotid_R"), "3d_Parotid"),
    (("Parotid_L",), "3d_Parotid_L"),
    (("Optic nerve/L",), "3d_Optic_nerve_L"),  # safe as a folder name
    (("../../etc",), "3d_.._.._etc"),
    (("\u8111\u5e72",), "3d_\u8111\u5e72"),  # letters of any script tell organs apart
    (("caf\u0065\u0301",), "3d_caf\u00e9"),
])  # fmt: skip
def test_member_name(organs, name):
    assert member_name(organs) == name


def test_colours_tell_organs_apart_and_darken_the_left():
    colours = {organ: FIVE.colour(organ) for organ in FIVE.organs}
    assert len(set(colours.values())) == 5
    assert all(left == pytest.approx(0.75 * right) for left, right in zip(colours["Parotid_L"], colours["Parotid_R"]))


def test_no_two_members_have_one_name():
    groups = [("Eye_L", "Eye_R"), ("Eye",), ("eye!",), ("\U0001f600",), ("\U0001f601",), ("Stem",)]
    assert member_names(groups) == ["3d_Eye", "3d_Eye_2", "3d_eye_", "3d__", "3d___2", "3d_Stem"]
