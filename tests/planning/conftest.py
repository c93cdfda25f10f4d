"""A hand-made fingerprint: nine organs as in PDDCA, scans of 512 × 512 × 150 voxels of 1 × 1 mm, 2.5 mm apart."""
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from c2f_nnunet.data.fingerprint import CaseStats, Fingerprint, OrganStats
from c2f_nnunet.geometry import Box
from c2f_nnunet.labels import LabelSet
from c2f_nnunet.planning.budget import Budget

# organ: volume mm³, extent mm (z, y, x), offset mm from the body's anchor (z below the vertex, y, x to the left), HU percentiles
PDDCA = {
    "BrainStem": (25_000, (50, 35, 38), (-120, 20, 0), (-10, 35, 70)),
    "Chiasm": (500, (7.5, 12, 18), (-90, -20, 0), (-20, 30, 70)),
    "Mandible": (60_000, (85, 90, 105), (-190, -60, 0), (0, 600, 1700)),
    "OpticNerve_L": (600, (10, 35, 18), (-95, -45, 20), (-80, 20, 70)),
    "OpticNerve_R": (600, (10, 35, 18), (-95, -45, -20), (-80, 20, 70)),
    "Parotid_L": (30_000, (65, 55, 35), (-150, 0, 60), (-100, 10, 90)),
    "Parotid_R": (30_000, (65, 55, 35), (-150, 0, -60), (-100, 10, 90)),
    "Submandibular_L": (9_000, (35, 35, 22), (-205, -25, 30), (-60, 50, 110)),
    "Submandibular_R": (9_000, (35, 35, 22), (-205, -25, -30), (-60, 50, 110)),
}


def organ(volume_mm3=8_000.0, extent_mm=(20.0, 20.0, 20.0), offset_mm=(-100.0, 0.0, 0.0), hu=(0.0, 50.0, 100.0)) -> OrganStats:
    """One organ's statistics; a cube of 20 mm where nothing is said."""
    return OrganStats(volume_mm3, extent_mm, 0.001, offset_mm, 8, Box((0, 0, 0), (1, 1, 1)), hu)


def case(name="c0", spacing_mm=(2.0, 1.0, 1.0), body_extent_mm=(300.0, 200.0, 250.0), mean_hu_body=0.0, **organs: OrganStats) -> CaseStats:
    """One scan's statistics."""
    box = Box((0, 0, 0), tuple(int(n / s) for n, s in zip(body_extent_mm, spacing_mm)))
    return CaseStats(name, box.stop, spacing_mm, "RAS", box, body_extent_mm, (-200.0, 30.0, 900.0), mean_hu_body, tuple(organs), organs)


def fingerprint(*cases: CaseStats, organs: tuple[str, ...] | None = None) -> Fingerprint:
    """A data set of these cases; its organs are those that the cases have, in their order, where not given."""
    names = organs or tuple(dict.fromkeys(o for c in cases for o in c.organs))
    labels = LabelSet.from_names({"background": 0, **{o: i for i, o in enumerate(names, 1)}})
    return Fingerprint("Dataset001_Test", labels, cases, labels.pairs, ())


def pddca() -> Fingerprint:
    """Ten heads: sizes and places 90 to 110 % of those above."""
    cases = []
    for i in range(10):
        k = 0.9 + 0.2 * i / 9
        scaled = {o: organ(v * k**3, _times(e, k), _times(p, k), hu) for o, (v, e, p, hu) in PDDCA.items()}
        cases.append(replace(case(f"p{i}", (2.5, 1.0, 1.0), _times((340, 230, 400), k), 20.0, **scaled), shape=(150, 512, 512)))
    return fingerprint(*cases)


def _times(values, k: float) -> tuple[float, ...]:
    return tuple(round(v * k, 3) for v in values)


def reference(folder, **values) -> str:
    """The path of a reference plan's file that is written to `folder`."""
    path = folder / "mine.json"
    path.write_text(json.dumps({"name": "mine", **values}))
    return str(path)


CPU = Budget(4.0, False, "given in the test")
GPU = Budget(8.0, True, "given in the test")


@pytest.fixture
def make():
    """The builders above, as one namespace."""
    made = {"organ": organ, "case": case, "fingerprint": fingerprint, "pddca": pddca, "reference": reference, "cpu": CPU, "gpu": GPU}
    return SimpleNamespace(**made)
