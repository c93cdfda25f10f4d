"""The cross-validation report: Tables I–III in the paper's shape, figures, CSVs, as Markdown and as one self-contained HTML page."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import C2FError
from ..io import durable
from ..labels import LabelSet
from . import figures, pages
from .figures import OverlayCase
from .metrics import DEFAULT_TOLERANCE_MM, METRICS, CaseScore, mean_sd, per_case, summarise
from .readers import two_readers

Results = Mapping[str, Sequence[CaseScore]]
Curves = Mapping[str, Sequence[Mapping]]

# result → its heading, in the order in which results are shown; other results come after, under their own names
COLUMNS = {
    "2d_front": "Front view", "2d_top": "Top view", "2d_side": "Side view", "fusion": "Fusion",
    "coarse": "Coarse", "fine": "Fine", "final": "Final",
}
# box plot → the table whose columns it shows, its metric
BOX_PLOTS = {"box_views": ("I", "dsc"), "box_dsc": ("II", "dsc"), "box_surface_dsc": ("II", "surface_dsc"), "box_hd95": ("III", "hd95_mm")}
FURTHER = ("dsc", "surface_dsc", "hd95_mm", "asd_mm", "volume_error_ml")


@dataclass(frozen=True)
class Table:
    """A table of the paper: one metric, organs as rows, these results as columns (others: and every further one given; readers: and
    what two human readers reach elsewhere)."""

    title: str
    metric: str
    columns: tuple[str, ...]
    others: bool = False
    readers: bool = False


TABLES = {
    "I": Table("DSC of each view and of their fusion", "dsc", ("2d_front", "2d_top", "2d_side", "fusion")),
    "II": Table("DSC of the coarse, fine and final result", "dsc", ("coarse", "fine", "final"), others=True, readers=True),
    "III": Table("95 % Hausdorff distance of the coarse, fine and final result", "hd95_mm", ("coarse", "fine", "final"), others=True),
}


@dataclass(frozen=True)
class Cell:
    """A table's cell: 'mean ± SD', a note on what the mean leaves out, whether it is its row's best."""

    text: str
    note: str = ""
    best: bool = False


@dataclass(frozen=True)
class Beside:
    """What a report shows beside the scores.

    overlays: the cases to show (see `representative_cases`). curves: MEMBER/fold_N → rows of its log.jsonl. notes: what is incomplete or
    must be known. flags: what happened to single organs, each with the keys case, organ, state, note. checks: one record per case and
    organ, those that need a look first (see `inference.checks.as_rows`). readers: how far two human readers agree, where a name of an
    organ is known. views: case → the organs' views.
    """

    overlays: Sequence[OverlayCase] = ()
    curves: Curves = field(default_factory=dict)
    notes: Sequence[str] = ()
    flags: Sequence[Mapping] = ()
    checks: Sequence[Mapping] = ()
    readers: bool = True
    views: Mapping[str, pages.Views] = field(default_factory=dict)


def build_report(out_dir: Path, title: str, labels: LabelSet, results: Results, beside: Beside = Beside()) -> Path:
    """Write report.html, report.md, tables/*.csv and figures/*.png into out_dir; return the HTML page's path.

    results: result name (COLUMNS, or a folder of the user's) → scores. Raises C2FError where no result holds a score.
    """
    results = {name: list(results[name]) for name in sorted(results, key=_rank) if results[name]}
    if not results:
        raise C2FError(f"{title}: there is no scored case to report on; train and predict at least one fold first")
    out_dir, main, checks, notes = Path(out_dir), main_result(results), beside.checks, beside.notes
    pictures = _pictures(labels, results, beside.overlays, beside.curves)
    for name, content in pictures.items():
        durable.write_bytes(out_dir / "figures" / f"{name}.png", content)
    tables = {number: (spec, *table_cells(spec, results)) for number, spec in TABLES.items() if table_columns(spec, results)}
    if beside.readers:
        tables = {number: (t[0], *_with_readers(*t)) for number, t in tables.items()}
        notes = [*notes, *([two_readers().note] if any(two_readers().title in h for t in tables.values() for h in t[1]) else [])]
    _write_csvs(out_dir / "tables", tables, results)
    told = with_own_flags(results[main], beside.flags)
    cases = pages.scored_cases(results[main], beside.views, [*told, *doubts(checks)], {(c["case"], c["organ"]): c for c in checks})
    context = {
        "title": title, "made": pages.now(), "main": heading(main),
        "tiles": _tiles(results[main]), "tables": tables, "further": _further(results[main]),
        "metrics": METRICS, "default_tolerance": DEFAULT_TOLERANCE_MM,
        "notes": [*notes, *_cautions(results)], "flags": told, "lowest": _lowest(results[main]),
        "overlays": _captions(beside.overlays, results[main]), "pictures": pictures, "checks": checks,
        "table": cases, "colours": pages.colours(labels),
    }
    durable.write_text(out_dir / "report.md", pages.environment().get_template("report.md.j2").render(context))
    durable.write_text(out_dir / "report.html", pages.environment().get_template("report.html.j2").render(context))
    return out_dir / "report.html"


def main_result(results: Results) -> str:
    """The result that the report is about: the last standard stage there is, else the first given."""
    return max((name for name in results if name in COLUMNS), key=_rank, default=next(iter(results)))


def representative_cases(scores: Sequence[CaseScore]) -> dict[str, str]:
    """'best', 'median' and 'worst' → case id by mean DSC over the organs; fewer where there are fewer cases."""
    ranked = [s.case for s in sorted((s for s in scores if s.mean_dsc is not None), key=lambda s: (-s.mean_dsc, s.case))]
    places = {"best": 0, "median": (len(ranked) - 1) // 2, "worst": len(ranked) - 1}
    wanted = {1: ("best",), 2: ("best", "worst")}.get(len(ranked), tuple(places) if ranked else ())
    return {name: ranked[places[name]] for name in wanted}


def heading(name: str) -> str:
    return COLUMNS.get(name, name)


def _rank(name: str) -> int:
    return list(COLUMNS).index(name) if name in COLUMNS else len(COLUMNS)


# ---- tables

def table_columns(spec: Table, results: Results) -> list[str]:
    """The table's results among those given, in its own order."""
    others = [name for name in results if name not in COLUMNS] if spec.others else []
    return [name for name in (*spec.columns, *others) if name in results]


def table_cells(spec: Table, results: Results) -> tuple[list[str], list[tuple[str, list[Cell]]]]:
    """Headings and rows (organ, cells) of a table; the last row is the mean over the organs' means."""
    columns = table_columns(spec, results)
    summaries = {name: summarise(results[name], spec.metric) for name in columns}
    organs = list(dict.fromkeys(o for s in summaries.values() for o in s.index))
    rows = []
    for organ in organs:
        means, counts = zip(*(_value(s, organ) for s in summaries.values()))
        rows.append((organ, _bold_best([_cell(s, organ, spec.metric) for s in summaries.values()], means, counts, spec.metric)))
    # over the organs that every column has a value for, so that no column gains by missing a hard organ altogether
    common = [o for o in organs if all(_value(s, o)[1] for s in summaries.values())]
    overall = [float(s.loc[common, "mean"].mean()) if common else float("nan") for s in summaries.values()]
    counts = [int(s.loc[common, "n"].sum()) for s in summaries.values()]
    name = "Mean" if len(common) == len(organs) else f"Mean of {len(common)} organs"
    rows.append((name, _bold_best([Cell(mean_sd(v, float("nan"), spec.metric)) for v in overall], overall, counts, spec.metric)))
    return [f"{heading(n)} (n = {len(results[n])})" for n in columns], rows


def _with_readers(spec: Table, headings: list[str], rows: list[tuple[str, list[Cell]]]) -> tuple[list[str], list[tuple[str, list[Cell]]]]:
    """A table with a further column of two human readers' figures, which competes with none; as it is where no organ has one."""
    known, figures = two_readers(), {organ: two_readers().of(organ) for organ, _ in rows[:-1]}
    if not spec.readers or not any(figures.values()):
        return headings, rows
    cells = []
    for organ, _ in rows:
        found = figures.get(organ)
        note = f"{found.scans} scans" if found and found.scans != known.scans else ""
        cells.append(Cell(mean_sd(found.dsc, float("nan"), spec.metric) if found else "–", note))
    return [*headings, f"{known.title} (n = {known.scans})"], [(organ, [*row, cell]) for (organ, row), cell in zip(rows, cells)]


def _value(summary: pd.DataFrame, organ: str) -> tuple[float, int]:
    """An organ's mean and the number of cases in it."""
    return (float(summary.at[organ, "mean"]), int(summary.at[organ, "n"])) if organ in summary.index else (float("nan"), 0)


def _cell(summary: pd.DataFrame, organ: str, metric: str) -> Cell:
    if organ not in summary.index:
        return Cell("–", "not scored")
    row = summary.loc[organ]
    counted = [f"{int(row[state])} {state}" for state in ("missed", "absent", "unknown") if row[state]]
    return Cell(mean_sd(row["mean"], row["sd"], metric), ", ".join(counted))


def _bold_best(cells: Sequence[Cell], means: Sequence[float], counts: Sequence[int], metric: str) -> list[Cell]:
    """Marks the best cells of a row, judged as shown: equal after rounding are equally good, and where all are equal none is best.

    A mean over fewer cases than the row's fullest does not compete: it may leave out just the hard ones, or those it missed.
    """
    shown = METRICS[metric]
    rounded = [round(m * shown.scale, shown.digits) if n and n == max(counts) else None for m, n in zip(means, counts)]
    rivals = [v for v in rounded if v is not None]
    best = (max if shown.best == "max" else min)(rivals) if len(set(rivals)) > 1 else None
    return [Cell(c.text, c.note, best is not None and v == best) for c, v in zip(cells, rounded)]


def _further(scores: Sequence[CaseScore]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of every metric of one result, with each organ's tolerance and its counts."""
    summaries = {m: summarise(scores, m) for m in FURTHER}
    frame = per_case(scores)
    tolerance, volume = (frame.groupby("organ", sort=False)[c].mean() for c in ("tolerance_mm", "volume_reference_ml"))
    counts = {"missed": "Missed", "absent": "Absent", "false_positive": "False pos.", "unknown": "Unknown"}
    headings = ["n", *(f"{METRICS[m].title} ({METRICS[m].unit})" for m in FURTHER), "Toler. (mm)", "Volume (ml)", *counts.values()]
    rows = []
    for organ, row in summaries["dsc"].iterrows():
        values = [mean_sd(summaries[m].at[organ, "mean"], summaries[m].at[organ, "sd"], m) for m in FURTHER]
        known = [f"{tolerance[organ]:g}", f"{volume[organ]:.2f}"] if np.isfinite(tolerance[organ]) else ["–", "–"]
        rows.append([organ, str(int(row["n"])), *values, *known, *(str(int(row[c])) for c in counts)])
    return headings, rows


def _write_csvs(folder: Path, tables: Mapping, results: Results) -> None:
    """table_I.csv … as shown, numbers.csv (every result, metric and organ unrounded) and per_case.csv."""
    for number, (_, headings, rows) in tables.items():
        organs = pd.Index([organ for organ, _ in rows], name="organ")
        shown = pd.DataFrame([[c.text for c in cells] for _, cells in rows], columns=headings, index=organs)
        durable.write_text(folder / f"table_{number}.csv", shown.to_csv())
    summaries = {(name, metric): summarise(scores, metric) for name, scores in results.items() for metric in METRICS}
    numbers = pd.concat(summaries, names=["result", "metric"])
    durable.write_text(folder / "numbers.csv", numbers.to_csv())
    cases = pd.concat({name: per_case(scores) for name, scores in results.items()}, names=["result"]).reset_index(level=0)
    durable.write_text(folder / "per_case.csv", cases.to_csv(index=False))


# ---- what the reader should look at

def _tiles(scores: Sequence[CaseScore]) -> list[tuple[str, str]]:
    """The headline numbers of a result."""
    means = {m: summarise(scores, m) for m in ("dsc", "surface_dsc", "hd95_mm")}
    missed = int(means["dsc"]["missed"].sum())
    return [
        ("cases", str(len(scores))), ("organs", str(len(scores[0].organs))),
        ("mean DSC", mean_sd(means["dsc"]["mean"].mean(), float("nan")) + " %"),
        ("mean surface DSC", mean_sd(means["surface_dsc"]["mean"].mean(), float("nan")) + " %"),
        ("mean 95HD", mean_sd(means["hd95_mm"]["mean"].mean(), float("nan"), "hd95_mm") + " mm"),
        ("organs missed", str(missed)),
    ]


def _cautions(results: Results) -> list[str]:
    """What makes columns not comparable: results that cover different cases."""
    cases = {name: {s.case for s in scores} for name, scores in results.items()}
    everything = set().union(*cases.values())
    return [
        f"{heading(name)}: {len(mine)} of {len(everything)} cases; its numbers are not comparable with those of a column with other cases."
        for name, mine in cases.items() if mine != everything
    ]


def with_own_flags(scores: Sequence[CaseScore], given: Sequence[Mapping]) -> list[Mapping]:
    """The flags given, and the missed organs and false positives of the main result of which none of them speaks already."""
    known = {(f["case"], f["organ"], f["state"]) for f in given}
    found = []
    for s in scores:
        for o in s.organs:
            if o.state == "missed":
                state, note = "missed", f"reference {o.volume_reference_ml:.2f} ml, nothing predicted: DSC 0, distances undefined"
            elif o.false_positive:
                state, note = "false positive", f"not in the reference, {o.volume_prediction_ml:.2f} ml predicted"
            else:
                continue
            found.append({"case": s.case, "organ": o.organ, "state": state, "note": note})
    return [*given, *(f for f in found if (f["case"], f["organ"], f["state"]) not in known)]


def doubts(checks: Sequence[Mapping]) -> list[dict]:
    """The organs that need a look by the checks, as flags."""
    return [{"case": c["case"], "organ": c["organ"], "state": "needs a look", "note": c["note"]} for c in checks if c["needs_a_look"]]


def _lowest(scores: Sequence[CaseScore], count: int = 8) -> list[list[str]]:
    """The organs with the lowest DSC of the main result: case, organ, DSC, 95HD, volumes."""
    organs = sorted(((o.dsc, s.case, o) for s in scores for o in s.organs if o.state == "scored"), key=lambda item: item[:2])
    nan = float("nan")
    return [
        [case, o.organ, mean_sd(o.dsc, nan), mean_sd(o.hd95_mm, nan, "hd95_mm"),
         f"{o.volume_reference_ml:.2f}", f"{o.volume_prediction_ml:.2f}"]
        for _, case, o in organs[:count]
    ]


def _captions(overlays: Sequence[OverlayCase], scores: Sequence[CaseScore]) -> list[dict]:
    """Per overlay: its figure's name, its place among the cases and its DSC per organ."""
    place = {case: name for name, case in representative_cases(scores).items()}
    by_case = {s.case: s for s in scores}
    captions = []
    for k, shown in enumerate(overlays):
        mine = by_case.get(shown.id)
        organs = [(o.organ, mean_sd(o.dsc, float("nan")) if o.dsc is not None else o.state) for o in mine.organs] if mine else []
        mean = mean_sd(mine.mean_dsc, float("nan")) if mine else "–"
        captions.append({"figure": _overlay_name(k), "case": shown.id, "place": place.get(shown.id, "case"),
                         "mean": mean, "organs": organs})
    return captions


def _overlay_name(k: int) -> str:
    return f"overlay_{k + 1}"


def _pictures(labels: LabelSet, results: Results, overlays: Sequence[OverlayCase], curves: Curves) -> dict[str, bytes]:
    """Figure name → PNG bytes."""
    drawn = {_overlay_name(k): figures.overlay(case, labels) for k, case in enumerate(overlays)}
    for name, (number, metric) in BOX_PLOTS.items():
        if columns := table_columns(TABLES[number], results):
            drawn[name] = figures.box_plots({heading(c): results[c] for c in columns}, metric)
    if curves := {name: rows for name, rows in curves.items() if rows}:
        drawn["training"] = figures.training_curves(curves)
    return {name: figures.png(figure) for name, figure in drawn.items()}
