"""Left and right in organ names."""
import pytest

from c2f_nnunet.sides import side_and_stem, sides_of


@pytest.mark.parametrize("name, expected", [
    ("Parotid_L", ("L", "Parotid")),
    ("Glnd_Submand_R", ("R", "Glnd_Submand")),
    ("Right Optic Nerve", ("R", "Optic Nerve")),
    ("OpticNrv_Rt", ("R", "OpticNrv")),
    ("LeftEye", ("L", "Eye")),
    ("EyeL", ("L", "Eye")),
    ("parotid-r", ("R", "parotid")),
    ("L_Parotid", ("L", "Parotid")),
    ("Parotid (L)", ("L", "Parotid")),
    ("(rt) Parotid", ("R", "Parotid")),
    ("LN_Neck_IA_R", ("R", "LN_Neck_IA")),  # begins with a letter of a side, glued
    # names that only begin or end with such letters
    ("Larynx", None), ("Lung", None), ("Rectum", None), ("Temporal", None), ("rTemporal", None), ("Cord_L_x", None), ("BrainStem", None),
])  # fmt: skip
def test_sides(name, expected):
    assert side_and_stem(name) == expected


def test_weaker_signs_need_the_partner():
    assert sides_of(["PAROTIDL", "PAROTIDR", "CANAL", "Eye_L"]) == {"PAROTIDL": ("L", "PAROTID"), "PAROTIDR": ("R", "PAROTID"), "Eye_L": ("L", "Eye")}
    assert sides_of(["PAROTIDL", "CANAL"]) == {}
