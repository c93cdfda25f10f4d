"""What a segmentation is worth: per-organ scores of a case, the states in which an organ has none, and their statistics.

States of an organ in a case:
- scored: in the reference and in the prediction;
- missed: in the reference, prediction empty: DSC and surface DSC are 0, distances are undefined;
- absent: reference empty: every overlap and distance is undefined (a predicted volume is noted: a false positive);
- unknown: not annotated in this case: nothing is computed.
Undefined values are None here, null in JSON, empty in CSV; they are left out of means and counted.
"""
from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.ndimage import find_objects

from ..errors import C2FError
from ..geometry import Geometry
from ..io.records import record
from ..labels import LabelSet
from . import surface

if TYPE_CHECKING:
    import pandas as pd

STATES = ("scored", "absent", "missed", "unknown")
DEFAULT_TOLERANCE_MM = 2.0
# organ family (letters of the name, lower case) → tolerance of the surface DSC in mm; the first hit counts
TOLERANCES_MM = (
    (r"brainstem|stembrain", 2.5),
    (r"optic(nrv|nerve|nerf|n$)|nervusopticus", 2.5),
    (r"chiasm", 2.5),
    (r"parotid|parotis", 2.85),
    (r"submand", 2.02),  # before the mandible: "Submandibular" holds "mandib"
    (r"mandib", 1.01),
)
_SIDE_WORD = re.compile(r"(?i)[ _.\-]+(left|right|lt|rt|l|r)$|^(left|right|lt|rt|l|r)[ _.\-]+")


@dataclass(frozen=True)
class Metric:
    """How a metric is shown: value × scale, rounded to `digits`; `best` is max or min, or None where neither is better."""

    title: str
    unit: str
    scale: float
    digits: int
    best: str | None
    definition: str


METRICS = {
    "dsc": Metric("DSC", "%", 100, 1, "max", "Dice similarity coefficient, 2·|A∩B| / (|A|+|B|) over voxels."),
    "hd95_mm": Metric(
        "95HD", "mm", 1, 2, "min",
        "95 % Hausdorff distance: the larger of the two directed 95th percentiles (linear interpolation) of the distances "
        "between surface voxels (mask voxels with a face neighbour outside the mask), voxel spacing respected.",
    ),
    "asd_mm": Metric(
        "ASD", "mm", 1, 2, "min",
        "Symmetric average surface distance: the mean, over the surface voxels of both masks, of the distance to the other surface.",
    ),
    "surface_dsc": Metric(
        "Surface DSC", "%", 100, 1, "max",
        "Share of both surfaces, by marching-cubes area, that lies within the organ's tolerance of the other "
        "(Nikolov et al. 2018; the definition of DeepMind's surface-distance library).",
    ),
    "volume_error_ml": Metric("Volume error", "ml", 1, 2, None, "Predicted minus reference volume."),
}


@record
class OrganScore:
    """One organ in one case; a value that is undefined or was not computed is None.

    state: "scored", "absent", "missed" or "unknown". dsc, surface_dsc: 0…1. tolerance_mm: the surface DSC's. volumes in ml.
    """

    organ: str
    id: int
    state: str
    voxels_reference: int | None = None
    voxels_prediction: int | None = None
    voxels_both: int | None = None
    volume_reference_ml: float | None = None
    volume_prediction_ml: float | None = None
    tolerance_mm: float | None = None
    dsc: float | None = None
    hd95_mm: float | None = None
    asd_mm: float | None = None
    surface_dsc: float | None = None

    @property
    def volume_error_ml(self) -> float | None:
        return self.volume_prediction_ml - self.volume_reference_ml if self.state in ("scored", "missed") else None

    @property
    def false_positive(self) -> bool:
        """Predicted although the reference says that the organ is not there."""
        return self.state == "absent" and bool(self.voxels_prediction)


@record
class CaseScore:
    """All organs of one case, in label order; voxels is the size of the whole grid."""

    case: str
    voxels: int
    organs: tuple[OrganScore, ...]
    reference_file: str = ""
    prediction_file: str = ""

    def organ(self, name: str) -> OrganScore:
        return next(o for o in self.organs if o.organ == name)

    @property
    def mean_dsc(self) -> float | None:
        """Mean DSC over the organs that have one."""
        values = [o.dsc for o in self.organs if o.dsc is not None]
        return float(np.mean(values)) if values else None


def tolerance_mm(organ: str, overrides: Mapping[str, float] | None = None) -> float:
    """The surface DSC's tolerance for an organ: an override by its exact name, its family's, or 2 mm.

    >>> tolerance_mm("Brain_Stem"), tolerance_mm("Glnd_Submand_L"), tolerance_mm("Bone_Mandible"), tolerance_mm("SpinalCord")
    (2.5, 2.02, 1.01, 2.0)
    """
    if overrides and organ in overrides:
        return float(overrides[organ])
    letters = re.sub(r"[^a-z]", "", _SIDE_WORD.sub("", organ).lower())
    return next((mm for family, mm in TOLERANCES_MM if re.search(family, letters)), DEFAULT_TOLERANCE_MM)


def dsc(voxels_reference: int, voxels_prediction: int, voxels_both: int) -> float | None:
    """Dice coefficient from voxel counts; None where the reference is empty."""
    return 2 * voxels_both / (voxels_reference + voxels_prediction) if voxels_reference else None


def score(truth: np.ndarray, prediction: np.ndarray, geometry: Geometry, labels: LabelSet, annotated: Iterable[str] | None = None, *,
          case: str = "", tolerances: Mapping[str, float] | None = None, reference_file: str = "", prediction_file: str = "") -> CaseScore:
    """Score a label map (Z, Y, X) of label ids against the truth on the same grid.

    annotated: the organs delineated in this case (None = all); the others come out "unknown".
    Raises C2FError where the shapes differ or a label id is not declared.
    """
    if truth.shape != prediction.shape or truth.shape != geometry.shape:
        raise C2FError(
            f"case {case}: reference {truth.shape}, prediction {prediction.shape} and geometry {geometry.shape} differ in shape; "
            "bring them on one grid"
        )
    known = set(labels.organs if annotated is None else annotated)
    truth_boxes, prediction_boxes = _boxes(truth, labels, f"{case}: reference"), _boxes(prediction, labels, f"{case}: prediction")
    organs = tuple(
        _score_organ(truth, prediction, truth_boxes.get(i), prediction_boxes.get(i), geometry, organ, i, tolerance_mm(organ, tolerances))
        if organ in known else OrganScore(organ, i, "unknown")
        for organ, i in zip(labels.organs, labels.ids)
    )
    return CaseScore(case, int(truth.size), organs, reference_file, prediction_file)


def _boxes(label_map: np.ndarray, labels: LabelSet, what: str) -> dict[int, tuple[slice, ...]]:
    """Label id → its bounding slices, in one pass over the volume."""
    found = {i: box for i, box in enumerate(find_objects(label_map), start=1) if box is not None}
    if strange := sorted(set(found) - set(labels.ids)):
        listed = ", ".join(map(str, strange[:8]))
        raise C2FError(f"{what} holds label(s) {listed}, which dataset.json does not declare; declare them or correct the file")
    return found


def _score_organ(truth, prediction, truth_box, prediction_box, geometry: Geometry, organ: str, i: int, tolerance: float) -> OrganScore:
    boxes = [b for b in (truth_box, prediction_box) if b]
    union = tuple(slice(min(b.start for b in axis), max(b.stop for b in axis)) for axis in zip(*boxes))
    a, b = (truth[union] == i, prediction[union] == i) if union else (np.zeros(1, bool), np.zeros(1, bool))
    counts = [int(np.count_nonzero(m)) for m in (a, b, a & b)]
    ml = [n * geometry.voxel_mm3 / 1000 for n in counts[:2]]
    state = "absent" if not counts[0] else "scored" if counts[1] else "missed"
    if state == "scored":
        voxels = surface.voxel_distances(a, b, geometry.spacing_mm)
        surfels = surface.surfel_distances(a, b, geometry.spacing_mm)
        distances = surface.hd95_mm(voxels), surface.average_mm(voxels), surface.surface_dsc(surfels, tolerance)
    else:
        distances = None, None, 0.0 if state == "missed" else None
    return OrganScore(organ, i, state, *counts, *ml, tolerance, dsc(*counts), *distances)


def per_case(scores: Sequence[CaseScore]) -> pd.DataFrame:
    """One row per case and organ with every field of OrganScore, the volume error and the false-positive mark."""
    import pandas as pd

    fields = list(OrganScore.__dataclass_fields__)
    rows = [[s.case, *(getattr(o, f) for f in fields), o.volume_error_ml, o.false_positive] for s in scores for o in s.organs]
    frame = pd.DataFrame(rows, columns=["case", *fields, "volume_error_ml", "false_positive"])
    counts = [f for f in fields if f.startswith("voxels_")]
    numbers = [f for f in (*fields, "volume_error_ml") if f not in ("organ", "id", "state", *counts)]
    return frame.astype({**{f: "Int64" for f in counts}, **{f: float for f in numbers}})


def summarise(scores: Sequence[CaseScore], metric: str = "dsc") -> pd.DataFrame:
    """Per organ (the index, in label order): n, mean, sd (ddof 1), median of a metric, and how often it was absent, missed, unknown.

    n counts the cases with a value: for DSC the missed ones are among them, with 0; for distances they are not.
    """
    import pandas as pd

    frame = per_case(scores)
    by_organ = frame.groupby("organ", sort=False)
    values = by_organ[metric]
    table = pd.DataFrame({"n": values.count(), "mean": values.mean(), "sd": values.std(ddof=1), "median": values.median()})
    for state in ("absent", "missed", "unknown"):
        table[state] = (frame["state"] == state).groupby(frame["organ"], sort=False).sum()
    table["false_positive"] = by_organ["false_positive"].sum()
    return table


def mean_sd(mean: float, sd: float, metric: str = "dsc") -> str:
    """'85.2 ± 1.4' in the metric's shown unit; '–' where undefined, no ± for a single case.

    >>> mean_sd(0.852, 0.014), mean_sd(1.94, float("nan"), "hd95_mm"), mean_sd(float("nan"), float("nan"))
    ('85.2 ± 1.4', '1.94', '–')
    """
    shown = METRICS[metric]
    if mean is None or not np.isfinite(mean):
        return "–"
    spread = f" ± {sd * shown.scale:.{shown.digits}f}" if sd is not None and np.isfinite(sd) else ""
    value = round(mean * shown.scale, shown.digits) + 0.0  # + 0.0: no "-0.00"
    return f"{value:.{shown.digits}f}{spread}".replace("-", "−")


def to_table(scores: Sequence[CaseScore], metrics: Sequence[str] = tuple(METRICS)) -> pd.DataFrame:
    """The per-organ table as text, 'mean ± SD' per metric, with counts; the last row is the mean over the organs' means."""
    import pandas as pd

    summaries = {m: summarise(scores, m) for m in metrics}
    table = pd.DataFrame({
        f"{METRICS[m].title} ({METRICS[m].unit})": [
            *(mean_sd(mean, sd, m) for mean, sd in zip(s["mean"], s["sd"])), mean_sd(s["mean"].mean(), float("nan"), m)
        ]
        for m, s in summaries.items()
    })
    first = next(iter(summaries.values()))
    table.index = [*first.index, "Mean"]
    for column in ("absent", "missed", "unknown"):
        table[column] = [*first[column].astype(str), str(first[column].sum())]
    return table
