"""The two readers' figures: the file, and which names they are found by."""
import pytest

from c2f_nnunet.evaluation.readers import two_readers


@pytest.mark.parametrize("name, dsc", [
    ("BrainStem", 0.900), ("Brainstem", 0.900), ("Brain_Stem", 0.900), ("Mandible", 0.942), ("Bone_Mandible", 0.942),
    ("OpticNrv_L", 0.793), ("Optic-Nerve-Rt", 0.784), ("OpticNerve_R", 0.784), ("Parotid_L", 0.872), ("Parotid-Rt", 0.874),
    ("Glnd_Submand_L", 0.881), ("Submandibular_R", 0.876), ("Left Parotid", 0.872),
    ("Parotid", None), ("Parotids", None), ("Submandibular", None), ("Gland Submandibular", None),  # a side is meant, or both
    ("Brain", None), ("OpticChiasm", None), ("Mandible_L", None), ("Lens_L", None), ("SpinalCord", None),
])  # fmt: skip
def test_organs_are_found_by_their_common_names(name, dsc):
    found = two_readers().of(name)
    assert (found.dsc if found else None) == dsc


def test_the_figures_say_where_they_come_from_and_that_they_are_others():
    note = two_readers().note
    assert note.startswith("Two readers, other patients: mean DSC of an oncologist's and a radiographer's masks on the 28 test scans")
    assert "Nikolov et al. 2021" in note and note.endswith("other readers than drew its references")
    assert all(0.7 < o.dsc < 1 and o.scans <= two_readers().scans == 28 for o in two_readers().organs)
