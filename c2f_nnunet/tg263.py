"""TG-263's names of the organs in head-and-neck scans, and how public data sets and clinics spell them.

The names are primary names of AAPM's worksheet TG263_Nomenclature_Worksheet_20170815 (report: Mayo et al., Int J Radiat
Oncol Biol Phys 100, 2018, 1057-1066), spelled as there ("Hypothalmus"): head, neck, and what such scans show of the chest.
Nothing is derived: the worksheet has no Bone_Mandible_L, so "Mandible_L" has no TG-263 name here.

Upper and lower case, blanks, hyphens and side words ("Optic-Nerve-Lt", "RightParotid", "Parotid (L)") are rules, and so
are the worksheet's reverse order ("L_Submand_Glnd") and its abbreviations written out ("submandibular gland"). OTHER_NAMES
holds what no rule gives: the spellings of PDDCA, OpenKBP, HaN-Seg, DeepMind's TCIA set, StructSeg, SegRap2023 and
TotalSegmentator, and plain English.
"""
from __future__ import annotations

import logging
import re
from collections import Counter
from functools import cache
from typing import Iterable

from .sides import side_and_stem

log = logging.getLogger(__name__)

SIDED = tuple("""
A_Carotid A_Subclavian A_Vertebral Arytenoid Bone_Incus Bone_Lacrimal Bone_Mastoid Bone_Nasal Bone_Palatine Bone_Parietal
Bone_Temporal Bone_Zygomatic BrachialPlex Cerebrum Clavicle CN_III CN_V CN_VI CN_VII CN_VIII CN_IX CN_XI CN_XII Cochlea Cornea
Ear_External Ear_Internal Ear_Middle Eye Glnd_Lacrimal Glnd_Subling Glnd_Submand Hemisphere Hippocampus Joint_TM Lens
LN_Neck_IA LN_Neck_IB LN_Neck_II LN_Neck_IIA LN_Neck_IIB LN_Neck_III LN_Neck_IV LN_Neck_V LN_Neck_VA LN_Neck_VB LN_Neck_VC
LN_Neck_VI LN_Neck_VII LN_Sclav Lobe_Frontal Lobe_Occipital Lobe_Parietal Lobe_Temporal Lung Malleus Maxilla Musc_Digastric
Musc_Masseter Musc_Platysma Musc_Pterygoid Musc_Sclmast Musc_Temporal OpticNrv Orbit Parotid Proc_Condyloid Proc_Coronoid
Pterygoid_Lat Pterygoid_Med Retina Scapula Sinus_Frontal Sinus_Maxilry Sinus_Sphenoid Spc_Retrophar Spc_Retrosty Spc_Supraclav
Stapes Tongue_Base Tongue_Oral V_Brachioceph V_Jugular_Ext V_Jugular_Int V_Subclavian VocalCord
""".split())  # the worksheet has each of them with _L and _R
UNSIDED = tuple("""
A_Aorta A_Brachiocephls A_Carotid A_Subclavian A_Vertebral Arytenoid Body Bone_Ethmoid Bone_Frontal Bone_Hyoid Bone_Incus
Bone_Lacrimal Bone_Mandible Bone_Mastoid Bone_Nasal Bone_Occipital Bone_Palatine Bone_Parietal Bone_Sphenoid Bone_Temporal
Bone_Zygomatics BrachialPlexs Brain Brainstem Brainstem_Core Brainstem_Surf Cartlg_Thyroid Cavity_Nasal Cavity_Oral Cerebellum
Cerebrum CN_III CN_V CN_VI CN_VII CN_VIII CN_IX CN_XI CN_XII Cochlea Cornea CribriformPlate Cricoid Cricopharyngeus Dens
Ear_Externals Ear_Internals Ear_Middle Esophagus Esophagus_S External Eyes Fossa_Jugular Fossa_Posterior Glnd_Lacrimal
Glnd_Parathyroid Glnd_Sublings Glnd_Submands Glnd_Thymus Glnd_Thyroid Glottis Hardpalate Heart Hemispheres Hippocampi Hypothalmus
Joint_TM Laryngl_Pharynx Larynx Larynx_SG Lens Lips Lobe_Frontal Lobe_Occipital Lobe_Parietal Lobe_Temporal Lungs Malleus Maxilla
Musc_Constrict Musc_Constrict_I Musc_Constrict_M Musc_Constrict_S Musc_Masseter Nasopharynx Nose OpticChiasm OpticNrv Oropharynx
Palate_Soft Parotids Pharynx Pineal Pituitary Pons Retinas Scalp Sinus_Ethmoid Sinus_Frontal Sinus_Maxilry Sinus_Sphenoid Skin
Skull Spc_Retrophars Spc_Retrosty SpinalCanal SpinalCord SpinalCord_Cerv SpinalCord_Thor Stapes Sys_Ventricular ThecalSac Tongue
Tongue_All Tongue_Base Tongue_Oral Tonsil Trachea V_Jugular V_Venacava_S VB_C VB_C1 VB_C2 VB_C3 VB_C4 VB_C5 VB_C6 VB_C7 VocalCords
Vomer
""".split())  # both sides together, or neither
WRITTEN_OUT = {  # the worksheet's abbreviations
    "Glnd": "gland", "Nrv": "nerve", "Musc": "muscle", "Cartlg": "cartilage", "Plex": "plexus", "Proc": "process", "Spc": "space",
    "Submand": "submandibular", "Subling": "sublingual", "Maxilry": "maxillary", "Sys": "system",
    "Sclmast": "sternocleidomastoid", "Constrict": "constrictor", "Retrophar": "retropharyngeal", "Retrosty": "retrostyloid",
    "Brachioceph": "brachiocephalic", "TM": "temporomandibular", "Lat": "lateral", "Med": "medial", "Ext": "external", "Int": "internal",
    "SG": "supraglottic", "S": "superior", "M": "middle", "I": "inferior", "Cerv": "cervical", "VB": "vertebra", "A": "artery",
}  # fmt: skip
OTHER_NAMES = {
    "A_Aorta": ("aorta",),
    "A_Carotid": ("carotid", "common carotid artery"),
    "Arytenoid": ("arytenoid cartilage", "arytenoids"),
    "Bone_Hyoid": ("hyoid",),
    "Bone_Mandible": ("mandible",),
    "Bone_Mastoid": ("mastoid",),
    "BrachialPlexs": ("brachial plexus",),
    "Clavicle": ("clavicula",),
    "Cricoid": ("cricoid cartilage",),
    "Ear_Internal": ("inner ear",),
    "Esophagus": ("oesophagus",),
    "Esophagus_S": ("cervical esophagus", "cervical oesophagus", "upper esophagus", "upper oesophagus"),
    "Eye": ("eyeball", "eye globe", "globe"),
    "Glnd_Lacrimal": ("lacrimal",),
    "Glnd_Subling": ("sublingual",),
    "Glnd_Submand": ("submandibular",),
    "Glnd_Submands": ("submandibular glands",),
    "Glnd_Thymus": ("thymus",),
    "Glnd_Thyroid": ("thyroid",),
    "Glottis": ("glottic larynx", "larynx glottic"),
    "Hypothalmus": ("hypothalamus",),
    "Joint_TM": ("tmj",),
    "Laryngl_Pharynx": ("hypopharynx", "laryngopharynx", "laryngeal pharynx"),
    "Larynx_SG": ("larynx supraglot", "supraglottis"),
    "Lens": ("eye lens",),
    "Musc_Constrict": ("pharynx const", "pharyngeal constrictor", "pharyngeal constrictors", "pharyngeal constrictor muscle"),
    "Musc_Constrict_I": ("inferior pharyngeal constrictor", "inferior pharyngeal constrictor muscle"),
    "Musc_Constrict_M": ("middle pharyngeal constrictor", "middle pharyngeal constrictor muscle"),
    "Musc_Constrict_S": ("superior pharyngeal constrictor", "superior pharyngeal constrictor muscle"),
    "Musc_Digastric": ("digastric",),
    "Musc_Masseter": ("masseter",),
    "Musc_Platysma": ("platysma",),
    "Musc_Sclmast": ("sternocleidomastoid",),
    "Musc_Temporal": ("temporalis",),
    "OpticChiasm": ("chiasm", "chiasma", "optic chiasma"),
    "Parotid": ("parotid gland",),
    "Parotids": ("parotid glands",),
    "Pituitary": ("pituitary gland",),
    "Pterygoid_Lat": ("lateral pterygoid muscle",),
    "Pterygoid_Med": ("medial pterygoid muscle",),
    "V_Venacava_S": ("superior vena cava",),
    **{f"VB_C{i}": (f"vertebrae C{i}",) for i in range(1, 8)},
}


# signs that make it another structure than the organ: TG-263's "~" for a part of one ("Lung~_L"), and what planners put before or after
# the names of their helpers ("_Brain", "*Brain", "Parotid_L!")
_MARKED = re.compile(r"~|^\s*([^\w\s(]|_)|[^\w\s).]\s*$")


def tg263_name(name: str) -> str | None:
    """The TG-263 primary name of an organ in any known spelling; None where none is known, or for a part of the organ.

    >>> tg263_name("Optic-Nerve-Lt"), tg263_name("RightParotid"), tg263_name("BrainStem"), tg263_name("SpinalCord_PRV")
    ('OpticNrv_L', 'Parotid_R', 'Brainstem', None)
    """
    if _MARKED.search(name):
        return None
    plain = re.sub(r"[\W_]+", "_", name).strip("_")  # "Parotid (L)" → "Parotid_L"
    if found := _spellings(UNSIDED).get(_key(plain)):
        return found
    sided = side_and_stem(plain)
    stem = sided and _spellings(SIDED).get(_key(sided[1]))
    return f"{stem}_{sided[0]}" if stem else None


def standard_names(organs: Iterable[str]) -> dict[str, str]:
    """Organ → its TG-263 name, in the given order.

    An organ without one keeps its own name, and so do organs that would share one; what is kept is logged.
    """
    found = {organ: tg263_name(organ) for organ in organs}
    shared = {name for name, times in Counter(found.values()).items() if name and times > 1}
    if unknown := [organ for organ, name in found.items() if name is None]:
        log.info("no TG-263 name known for %s; kept as written", ", ".join(unknown))
    if alike := [organ for organ, name in found.items() if name in shared]:
        log.warning("%s: several would have the TG-263 name %s; kept as written", ", ".join(alike), ", ".join(sorted(shared)))
    return {organ: organ if name is None or name in shared else name for organ, name in found.items()}


def _key(text: str) -> str:
    """A spelling without its case, separators and 'of': letters and digits alone."""
    words = re.findall(r"[^\W_]+", text.lower())
    return "".join(word for word in words if word != "of")


@cache
def _spellings(primary: tuple[str, ...]) -> dict[str, str]:
    """Key of each spelling → primary name; no two names share a spelling."""
    table: dict[str, str] = {}
    for name in primary:
        for spelling in (*_by_rule(name), *OTHER_NAMES.get(name, ())):
            if table.setdefault(_key(spelling), name) != name:
                raise ValueError(f"{spelling!r} would mean both {table[_key(spelling)]} and {name}")
    return table


def _by_rule(name: str) -> list[str]:
    """The name as it stands and in reverse order, each also with its abbreviations written out."""
    parts = name.split("_")
    full = []
    for i, part in enumerate(parts):
        words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", part)  # OpticNrv → Optic, Nrv
        vein = part == "V" and i == 0  # elsewhere V is a Roman five
        full.append("vein" if vein else " ".join(WRITTEN_OUT.get(word, word) for word in words))
    return ["_".join(order) for order in (parts, parts[::-1], full, full[::-1])]
