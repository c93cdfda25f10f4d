"""TG-263's names: every public set's spelling finds its organ, and nothing that is not the organ does."""
import logging

import pytest

from c2f_nnunet.tg263 import OTHER_NAMES, SIDED, UNSIDED, standard_names, tg263_name

PUBLIC_SETS = {  # spelling → primary name of the worksheet; None: the worksheet has no such structure
    "PDDCA": """BrainStem Brainstem, Chiasm OpticChiasm, Mandible Bone_Mandible, OpticNerve_L OpticNrv_L, OpticNerve_R OpticNrv_R,
        Parotid_L Parotid_L, Parotid_R Parotid_R, Submandibular_L Glnd_Submand_L, Submandibular_R Glnd_Submand_R""",
    "OpenKBP": """Brainstem Brainstem, SpinalCord SpinalCord, RightParotid Parotid_R, LeftParotid Parotid_L, Esophagus Esophagus,
        Larynx Larynx, Mandible Bone_Mandible, PTV70 None""",
    "HaN-Seg": """A_Carotid_L A_Carotid_L, A_Carotid_R A_Carotid_R, Arytenoid Arytenoid, Bone_Mandible Bone_Mandible, Brainstem Brainstem,
        BuccalMucosa None, Cavity_Oral Cavity_Oral, Cochlea_L Cochlea_L, Cochlea_R Cochlea_R, Cricopharyngeus Cricopharyngeus,
        Esophagus_S Esophagus_S, Eye_AL None, Eye_AR None, Eye_PL None, Eye_PR None, Glnd_Lacrimal_L Glnd_Lacrimal_L,
        Glnd_Lacrimal_R Glnd_Lacrimal_R, Glnd_Submand_L Glnd_Submand_L, Glnd_Submand_R Glnd_Submand_R, Glnd_Thyroid Glnd_Thyroid,
        Glottis Glottis, Larynx_SG Larynx_SG, Lips Lips, OpticChiasm OpticChiasm, OpticNrv_L OpticNrv_L, OpticNrv_R OpticNrv_R,
        Parotid_L Parotid_L, Parotid_R Parotid_R, Pituitary Pituitary, SpinalCord SpinalCord""",
    "DeepMind": """Brain Brain, Brainstem Brainstem, Cochlea-Lt Cochlea_L, Cochlea-Rt Cochlea_R, Lacrimal-Lt Glnd_Lacrimal_L,
        Lacrimal-Rt Glnd_Lacrimal_R, Lens-Lt Lens_L, Lens-Rt Lens_R, Lung-Lt Lung_L, Lung-Rt Lung_R, Mandible Bone_Mandible,
        Optic-Nerve-Lt OpticNrv_L, Optic-Nerve-Rt OpticNrv_R, Orbit-Lt Orbit_L, Orbit-Rt Orbit_R, Parotid-Lt Parotid_L,
        Parotid-Rt Parotid_R, Spinal-Canal SpinalCanal, Spinal-Cord SpinalCord, Submandibular-Lt Glnd_Submand_L,
        Submandibular-Rt Glnd_Submand_R""",
    "StructSeg": """left_eye Eye_L, right_eye Eye_R, left_lens Lens_L, right_lens Lens_R, left_optic_nerve OpticNrv_L,
        right_optic_nerve OpticNrv_R, optic_chiasma OpticChiasm, pituitary Pituitary, brain_stem Brainstem,
        left_temporal_lobe Lobe_Temporal_L, right_temporal_lobe Lobe_Temporal_R, spinal_cord SpinalCord,
        left_parotid_gland Parotid_L, right_parotid_gland Parotid_R, left_inner_ear Ear_Internal_L, right_inner_ear Ear_Internal_R,
        left_middle_ear Ear_Middle_L, right_middle_ear Ear_Middle_R, left_T-M_joint Joint_TM_L, right_T-M_joint Joint_TM_R,
        left_mandible None, right_mandible None""",
    "SegRap2023": """Brain Brain, BrainStem Brainstem, Chiasm OpticChiasm, TemporalLobe_L Lobe_Temporal_L, TemporalLobe_R Lobe_Temporal_R,
        Hippocampus_L Hippocampus_L, Hippocampus_R Hippocampus_R, Eye_L Eye_L, Eye_R Eye_R, Lens_L Lens_L, Lens_R Lens_R,
        OpticNerve_L OpticNrv_L, OpticNerve_R OpticNrv_R, MiddleEar_L Ear_Middle_L, MiddleEar_R Ear_Middle_R, IAC_L None, IAC_R None,
        TympanicCavity_L None, VestibulSemi_L None, Cochlea_L Cochlea_L, Cochlea_R Cochlea_R, ETbone_L None, Pituitary Pituitary,
        OralCavity Cavity_Oral, Mandible_L None, Mandible_R None, Submandibular_L Glnd_Submand_L, Submandibular_R Glnd_Submand_R,
        Parotid_L Parotid_L, Parotid_R Parotid_R, Mastoid_L Bone_Mastoid_L, Mastoid_R Bone_Mastoid_R, TMjoint_L Joint_TM_L,
        TMjoint_R Joint_TM_R, SpinalCord SpinalCord, Esophagus Esophagus, Larynx Larynx, Larynx_Glottic Glottis,
        Larynx_Supraglot Larynx_SG, PharynxConst Musc_Constrict, Thyroid Glnd_Thyroid, Trachea Trachea""",
    "TotalSegmentator": """eye_left Eye_L, eye_lens_right Lens_R, optic_nerve_left OpticNrv_L, parotid_gland_right Parotid_R,
        submandibular_gland_left Glnd_Submand_L, nasopharynx Nasopharynx, oropharynx Oropharynx, hypopharynx Laryngl_Pharynx,
        nasal_cavity_left None, auditory_canal_left None, soft_palate Palate_Soft, hard_palate Hardpalate, masseter_left Musc_Masseter_L,
        temporalis_right Musc_Temporal_R, lateral_pterygoid_left Pterygoid_Lat_L, medial_pterygoid_right Pterygoid_Med_R, tongue Tongue,
        digastric_left Musc_Digastric_L, larynx_air None, thyroid_cartilage Cartlg_Thyroid, hyoid Bone_Hyoid, cricoid_cartilage Cricoid,
        styloid_process_left None, internal_carotid_artery_left None, internal_jugular_vein_right V_Jugular_Int_R,
        sternocleidomastoid_left Musc_Sclmast_L, superior_pharyngeal_constrictor Musc_Constrict_S,
        middle_pharyngeal_constrictor Musc_Constrict_M, inferior_pharyngeal_constrictor Musc_Constrict_I,
        platysma_right Musc_Platysma_R, trapezius_left None, brain Brain, skull Skull, spinal_cord SpinalCord, esophagus Esophagus,
        trachea Trachea, thyroid_gland Glnd_Thyroid, common_carotid_artery_left A_Carotid_L, subclavian_artery_right A_Subclavian_R,
        brachiocephalic_vein_left V_Brachioceph_L, clavicula_left Clavicle_L, scapula_right Scapula_R, vertebrae_C1 VB_C1,
        vertebrae_C7 VB_C7, mandible Bone_Mandible, sinus_maxillary Sinus_Maxilry, sinus_frontal Sinus_Frontal""",
}


@pytest.mark.parametrize("spelling, expected", [
    pytest.param(*pair.split(), id=f"{which}: {pair.split()[0]}") for which, pairs in PUBLIC_SETS.items() for pair in pairs.split(",")
])
def test_spellings_of_public_sets(spelling, expected):
    assert tg263_name(spelling) == (None if expected == "None" else expected)


@pytest.mark.parametrize("spelling, expected", [
    ("PAROTID LEFT", "Parotid_L"), ("Lt. Parotid", "Parotid_L"), ("Parotid (L)", "Parotid_L"), ("parotid, right", "Parotid_R"),
    ("L_Submand_Glnd", "Glnd_Submand_L"), ("R_IIA_Neck_LN", "LN_Neck_IIA_R"), ("S_Constrict_Musc", "Musc_Constrict_S"),  # reverse order
    ("Base of Tongue", "Tongue_Base"), ("Spinal cord", "SpinalCord"), ("Brain Stem", "Brainstem"), ("TMJ_R", "Joint_TM_R"),
    ("oesophagus", "Esophagus"), ("Supraglottic larynx", "Larynx_SG"), ("left brachial plexus", "BrachialPlex_L"),
    ("  Parotid_L ", "Parotid_L"), ("(L) Parotid", "Parotid_L"), ("Parotid Lt.", "Parotid_L"), ("parotid glands", "Parotids"),
    ("Hypothalamus", "Hypothalmus"), ("CN V left", "CN_V_L"),
])  # fmt: skip
def test_spellings_by_rule(spelling, expected):
    assert tg263_name(spelling) == expected


@pytest.mark.parametrize("name", [
    "SpinalCord_PRV", "SpinalCord_PRV05", "Brain-PTV", "Parotid_L-PTV", "PTV", "Parotid", "Temporal_L", "Oral", "Nasal", "Parotid_L_old",
    "Brainstem_L", "Lens_LR", "", "_", "L", "5",
    "Lung~_L", "Brain~", "~Brain",  # TG-263's sign for a part of the organ
    "_Brainstem", "*Parotid_L", "Parotid_L!", "Brainstem*", "Parotid_R ?", " _Parotid_R",  # planners' helpers
])  # fmt: skip
def test_what_is_not_the_organ_or_not_certain_has_no_name(name):
    assert tg263_name(name) is None


@pytest.mark.parametrize("name", [*UNSIDED, *(f"{stem}_{side}" for stem in SIDED for side in "LR")])
def test_each_primary_name_is_its_own_and_found_in_reverse_order(name):
    assert tg263_name(name) == name and tg263_name(name.upper()) == name
    assert tg263_name("_".join(reversed(name.split("_")))) == name  # "Submand_L" would not be: the worksheet reverses all parts
    assert len(name) <= 16  # TG-263's limit, for the planning systems that cut longer ones


def test_other_names_belong_to_primary_names():
    assert set(OTHER_NAMES) <= {*SIDED, *UNSIDED}


def test_unknown_and_ambiguous_organs_keep_their_names_with_a_note(caplog):
    with caplog.at_level(logging.INFO, logger="c2f_nnunet"):
        names = standard_names(["Mandible", "IAC_L", "Optic-Nerve-Lt", "Globe_L", "Eye_L"])
    assert names == {"Mandible": "Bone_Mandible", "IAC_L": "IAC_L", "Optic-Nerve-Lt": "OpticNrv_L", "Globe_L": "Globe_L", "Eye_L": "Eye_L"}
    assert list(names) == ["Mandible", "IAC_L", "Optic-Nerve-Lt", "Globe_L", "Eye_L"]
    assert [r.message for r in caplog.records] == [
        "no TG-263 name known for IAC_L; kept as written", "Globe_L, Eye_L: several would have the TG-263 name Eye_L; kept as written",
    ]
