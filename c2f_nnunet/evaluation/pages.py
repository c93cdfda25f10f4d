"""Case by case in an HTML page: what the report of a cross-validation and that of a prediction share, and the latter itself."""
from __future__ import annotations

import base64
import datetime
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median, stdev

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..io import durable
from ..labels import LabelSet
from . import figures
from .metrics import METRICS, CaseScore, OrganScore, mean_sd
from .pictures import View

Views = Mapping[int, tuple[View, ...]]  # channel → its three views
Evidence = Mapping[str, float | None]  # each of SURENESS, 0…1, None where there was nothing to compare
PAGE = "report.html"
# how c2f_predict found an organ's place → what that means
FOUND = {
    "coarse": "in the coarse result",
    "prior": "not in the coarse result: looked for at its usual place",
    "absent": "nowhere",
}


@dataclass(frozen=True)
class Shown:
    """A table's cell: the text, and what its column is sorted by (None: last)."""

    text: str
    value: float | str | None = None


@dataclass(frozen=True)
class Heading:
    """A column: title, unit, and the anchor of its definition on the page; words stand on the left, numbers on the right."""

    title: str
    unit: str = ""
    definition: str = ""
    words: bool = False


# how sure a result is: the confidence, and how far the parts of the ensemble agree on it (see inference.agreement.Evidence)
SURENESS = {
    "expected_dsc": Heading("Expected DSC", "%", "def-expected-dsc"),
    "confidence": Heading("Confidence", "%", "def-confidence"), "views": Heading("Views agree", "%", "def-agree"),
    "folds": Heading("Folds agree", "%", "def-agree"), "stages": Heading("Stages agree", "%", "def-agree"),
}  # fmt: skip


@dataclass(frozen=True)
class OrganEntry:
    """One organ of a case: a cell for each of the page's organ headings, what is doubtful about it, its views."""

    organ: str
    channel: int
    cells: tuple[Shown, ...]
    flags: tuple[str, ...] = ()
    views: tuple[View, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class CaseEntry:
    """One case: a cell for each of the page's case headings, and its organs."""

    case: str
    cells: tuple[Shown, ...]
    organs: tuple[OrganEntry, ...]

    @property
    def flags(self) -> int:
        """How many of its organs need a look."""
        return sum(bool(o.flags) for o in self.organs)


@dataclass(frozen=True)
class CaseTable:
    """The cases in the order in which they should be looked at, and the headings of their tables."""

    headings: tuple[Heading, ...]
    organ_headings: tuple[Heading, ...]
    cases: tuple[CaseEntry, ...]
    order: str


@dataclass(frozen=True)
class OrganTable:
    """Organs over all cases: headings, and each organ's channel, name and cells."""

    headings: tuple[Heading, ...]
    rows: tuple[tuple[int, str, tuple[Shown, ...]], ...]


def number(value: float | None, digits: int, scale: float = 1.0) -> Shown:
    """A cell of a rounded number; a dash where there is none."""
    return Shown("–") if value is None else Shown(f"{value * scale:.{digits}f}", value * scale)


def named(organ: OrganScore | PredictedOrgan | None) -> Shown:
    """A cell of an organ's name; a dash where there is none."""
    return Shown(organ.organ, organ.organ) if organ else Shown("–")


def metric_cell(value: float | None, metric: str) -> Shown:
    return number(value, METRICS[metric].digits, METRICS[metric].scale)


def measured(evidence: Iterable[Evidence]) -> list[str]:
    """Which of SURENESS any of these organs has."""
    there = {name for e in evidence for name in SURENESS if e.get(name) is not None}
    return [name for name in SURENESS if name in there]


# ---- the held-out cases of a cross-validation

SCORED = ("dsc", "surface_dsc", "hd95_mm")


def scored_cases(
    scores: Sequence[CaseScore], views: Mapping[str, Views], flags: Sequence[Mapping], evidence: Mapping[tuple[str, str], Evidence] | None = None
) -> CaseTable:
    """The cases by mean DSC, worst first. views: by case. flags: each with the keys case, organ, state, note. evidence: by case and organ."""
    evidence = evidence or {}
    shown = measured(evidence.values())
    told: dict[tuple[str, str], list[str]] = {}
    for f in flags:
        told.setdefault((f["case"], f["organ"]), []).append(f"{f['state']}: {f['note']}")
    ranked = sorted(scores, key=lambda s: (s.mean_dsc is None, s.mean_dsc, s.case))
    columns = tuple(Heading(METRICS[m].title, METRICS[m].unit, f"def-{m}") for m in SCORED)
    volumes = (Heading("Reference", "ml", "def-volume"), Heading("Predicted", "ml", "def-volume"))
    return CaseTable(
        (Heading("Mean DSC", "%", "def-dsc"), Heading("Lowest DSC", "%", "def-dsc"), Heading("of", words=True),
         Heading("Largest 95HD", "mm", "def-hd95_mm"), Heading("Missed", "", "def-missed"), Heading("Flagged", "", "def-flag")),
        (*columns, *volumes, *(SURENESS[name] for name in shown)),
        tuple(_scored_case(s, views.get(s.case, {}), told, evidence, shown) for s in ranked), "lowest mean DSC first",
    )  # fmt: skip


def _scored_case(
    score: CaseScore, views: Views, told: Mapping[tuple[str, str], list[str]], evidence: Mapping[tuple[str, str], Evidence], shown: Sequence[str]
) -> CaseEntry:
    def sure(o: OrganScore) -> tuple[Shown, ...]:
        return tuple(number(evidence.get((score.case, o.organ), {}).get(name), 1, 100) for name in shown)

    organs = tuple(
        OrganEntry(o.organ, c, _scored_cells(o) + sure(o), tuple(told.get((score.case, o.organ), ())), views.get(c, ()))
        for c, o in enumerate(score.organs, start=1)
    )
    lowest = min((o for o in score.organs if o.dsc is not None), key=lambda o: o.dsc, default=None)
    missed, flagged = sum(o.state == "missed" for o in score.organs), sum(bool(o.flags) for o in organs)
    farthest = max((o.hd95_mm for o in score.organs if o.hd95_mm is not None), default=None)
    cells = (
        metric_cell(score.mean_dsc, "dsc"), metric_cell(lowest and lowest.dsc, "dsc"), named(lowest),
        metric_cell(farthest, "hd95_mm"), Shown(str(missed), missed), Shown(str(flagged), flagged),
    )  # fmt: skip
    return CaseEntry(score.case, cells, organs)


def _scored_cells(o: OrganScore) -> tuple[Shown, ...]:
    """DSC (the state, where the organ has none), surface DSC, 95HD, both volumes."""
    first = metric_cell(o.dsc, "dsc") if o.dsc is not None else Shown(o.state)
    return first, *(metric_cell(getattr(o, m), m) for m in SCORED[1:]), number(o.volume_reference_ml, 2), number(o.volume_prediction_ml, 2)


# ---- the cases of a prediction

@dataclass(frozen=True)
class PredictedOrgan:
    """What c2f_predict notes of an organ: how its place was found, its volume, how sure it is, what is doubtful.

    evidence: the confidence at least. expected_ml: the volumes (lowest, highest) that training cases let expect.
    """

    organ: str
    how: str
    volume_ml: float
    evidence: Evidence
    flags: tuple[str, ...] = ()
    expected_ml: tuple[float, float] | None = None

    @property
    def confidence(self) -> float | None:
        """None where the organ is not there: nothing can be sure of it."""
        return self.evidence["confidence"] if self.volume_ml else None


def predicted_cases(cases: Mapping[str, Sequence[PredictedOrgan]], views: Mapping[str, Views], labels: LabelSet) -> CaseTable:
    """The cases with the most remarks first, of equals that with the least sure organ: the order of `inference.checks.ordered`."""
    shown = measured(o.evidence for organs in cases.values() for o in organs)
    entries = [_predicted_case(case, organs, views.get(case, {}), labels, shown) for case, organs in cases.items()]
    remarks = {case: sum(len(o.flags) for o in organs) for case, organs in cases.items()}
    entries.sort(key=lambda e: (-remarks[e.case], e.cells[2].value if e.cells[2].value is not None else 100.0, e.case))
    return CaseTable(
        (Heading("Flagged", "", "def-flag"), Heading("Organs found", "", "def-found"),
         Heading("Lowest confidence", "%", "def-confidence"), Heading("of", words=True)),
        (Heading("Volume", "ml", "def-volume"), *(SURENESS[name] for name in shown), Heading("Found", "", "def-found", True)),
        tuple(entries), "most remarks first, then lowest confidence",
    )  # fmt: skip


def _predicted_case(case: str, organs: Sequence[PredictedOrgan], views: Views, labels: LabelSet, shown: Sequence[str]) -> CaseEntry:
    entries = []
    for o in organs:
        channel = labels.organs.index(o.organ) + 1
        sure = (number(o.evidence.get(name) if o.volume_ml else None, 1, 100) for name in shown)
        cells = (number(o.volume_ml, 2), *sure, Shown(found(o.how), o.how))
        entries.append(OrganEntry(o.organ, channel, cells, o.flags, views.get(channel, ())))
    there = [o for o in organs if o.volume_ml]
    lowest = min(there, key=lambda o: o.confidence, default=None)
    flagged = sum(bool(e.flags) for e in entries)
    cells = (
        Shown(str(flagged), flagged), Shown(f"{len(there)} of {len(organs)}", len(there)),
        number(lowest and lowest.confidence, 1, 100), named(lowest),
    )  # fmt: skip
    return CaseEntry(case, cells, tuple(entries))


def found(how: str) -> str:
    """How an organ's place was found, in words."""
    if how.startswith("threshold "):
        return how.replace("threshold", "at probability")
    return FOUND.get(how, how)


def predicted_organs(
    cases: Mapping[str, Sequence[PredictedOrgan]], labels: LabelSet, held_out: Mapping[str, Sequence[float]] | None = None
) -> OrganTable:
    """Each organ over the cases: in how many it was found, its volumes beside those to be expected, how sure it is, how often flagged.

    held_out: organ → DSCs (0…1) that the model reached on held-out cases of its training set.
    """
    rows = []
    for c, organ in enumerate(labels.organs, start=1):
        mine = [(case, o) for case, organs in cases.items() for o in organs if o.organ == organ]
        there = [(case, o) for case, o in mine if o.volume_ml]
        volumes, sure = [o.volume_ml for _, o in there], [o.confidence for _, o in there]
        expected = next((o.expected_ml for _, o in mine if o.expected_ml), None)
        least = min(there, key=lambda item: item[1].confidence, default=None)
        flagged = sum(bool(o.flags) for _, o in mine)
        rows.append((c, organ, (
            Shown(f"{len(there)} of {len(mine)}", len(there)),
            *(number(f(volumes) if volumes else None, 2) for f in (median, min, max)),
            Shown("{:.{d}f} to {:.{d}f}".format(*expected, d=1 if expected[1] >= 1 else 3), expected[0]) if expected else Shown("–"),
            *(number(f(sure) if sure else None, 1, 100) for f in (median, min)),
            Shown(least[0], least[0]) if least else Shown("–"), _reached((held_out or {}).get(organ, ())), Shown(str(flagged), flagged),
        )))  # fmt: skip
    return OrganTable(
        (Heading("Found in", "", "def-found"), Heading("Median volume", "ml", "def-volume"), Heading("Smallest", "ml", "def-volume"),
         Heading("Largest", "ml", "def-volume"), Heading("To be expected", "ml", "def-expected"),
         Heading("Median confidence", "%", "def-confidence"), Heading("Lowest", "%", "def-confidence"), Heading("of", words=True),
         Heading("Held-out DSC", "%", "def-held-out"), Heading("Flagged", "", "def-flag")), tuple(rows),
    )  # fmt: skip


def _reached(values: Sequence[float]) -> Shown:
    """'74.9 ± 13.8 (12)' of DSCs: mean, standard deviation, number of cases."""
    if not values:
        return Shown("–")
    mean, sd = fmean(values), stdev(values) if len(values) > 1 else None
    return Shown(f"{mean_sd(mean, sd)} ({len(values)})", mean)


def predicted_pictures(cases: Mapping[str, Sequence[PredictedOrgan]], labels: LabelSet) -> dict[str, bytes]:
    """Caption → PNG: box plots of the organs' volumes and of their confidence; {} of fewer than three cases, or no organ."""
    found = [o for organs in cases.values() for o in organs if o.volume_ml]
    if len(cases) < 3 or not found:
        return {}
    volumes = {organ: [o.volume_ml for o in found if o.organ == organ] for organ in labels.organs}
    sure = {organ: [100 * o.confidence for o in found if o.organ == organ] for organ in labels.organs}
    expected = {o.organ: o.expected_ml for o in found if o.expected_ml}
    return {
        "Volume; the grey bar is what training cases let expect": figures.png(figures.organ_boxes(volumes, "volume (ml)", expected, log=True)),
        "Confidence": figures.png(figures.organ_boxes(sure, "confidence (%)")),
    }


def build_prediction_report(
    out_dir: Path, title: str, labels: LabelSet, cases: Mapping[str, Sequence[PredictedOrgan]], table: CaseTable, notes: Sequence[str] = (),
    held_out: Mapping[str, Sequence[float]] | None = None,
) -> Path:  # fmt: skip
    """Write report.html into out_dir, pictures embedded; returns its path. table: of these cases. notes: what must be known.

    held_out: see `predicted_organs`.
    """
    flagged = [(c.case, o) for c in table.cases for o in c.organs if o.flags]
    context = {
        "title": title, "made": now(), "notes": notes, "table": table, "colours": colours(labels), "flagged": flagged,
        "organs": predicted_organs(cases, labels, held_out), "pictures": predicted_pictures(cases, labels),
        "tiles": [("cases", len(table.cases)), ("organs", len(labels.organs)), ("flagged cases", sum(bool(c.flags) for c in table.cases)),
                  ("flagged organs", len(flagged))],
    }  # fmt: skip
    path = Path(out_dir) / PAGE
    durable.write_text(path, environment().get_template("prediction.html.j2").render(context))
    return path


# ---- templates

def now() -> str:
    return datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")


def colours(labels: LabelSet) -> dict[int, str]:
    """Channel → #rrggbb; 0, the background, is left out."""
    return {c: hex_colour(labels.colour(organ)) for c, organ in enumerate(labels.organs, start=1)}


def hex_colour(rgb: Sequence[float]) -> str:
    return "#" + "".join(f"{round(255 * v):02x}" for v in rgb)


def environment() -> Environment:
    """Templates beside this module; HTML is escaped throughout, Markdown through the filter `md`."""
    made = Environment(loader=PackageLoader(__package__, "."), autoescape=lambda name: bool(name) and ".html" in name,
                       undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    made.filters["md"] = lambda value: re.sub(r"([\\`*_|<>\[\]])", r"\\\1", " ".join(str(value).split()))
    made.filters["data_uri"] = lambda content, kind="png": f"data:image/{kind};base64," + base64.b64encode(content).decode("ascii")
    return made
