"""The report's pictures: contours over the CT, box plots, training curves. Matplotlib's objects only, no global pyplot state."""
from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from ..geometry import Box, Geometry, bounding_box
from ..io import durable
from ..labels import LabelSet
from .metrics import METRICS, CaseScore, per_case

SOFT_TISSUE_HU = (-160.0, 240.0)  # level 40, width 400: what head-and-neck organs are contoured on
OVERLAY_MARGIN_MM = 35.0
GRID = {"color": "#d5dae1", "linewidth": 0.6}
_NIGHT, _PAPER_WHITE = "#101418", "#e8ecf0"
# view → (sliced axis, shown as rows, shown as columns, labels of the left, right, top and bottom edge) in canonical axes
PLANES = {
    "axial": (0, 1, 2, "RLAP"),
    "coronal": (1, 0, 2, "RLSI"),
    "sagittal": (2, 0, 1, "APSI"),
}


@dataclass(frozen=True)
class OverlayCase:
    """A case to show: CT in HU and channel maps (0 = background, i + 1 = organs[i]), all (Z, Y, X) canonical on one geometry."""

    id: str
    image: np.ndarray = field(repr=False)
    geometry: Geometry
    reference: np.ndarray | None = field(repr=False)
    prediction: np.ndarray = field(repr=False)


def png(figure: Figure, dpi: int = 130) -> bytes:
    """The figure as a PNG file's bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor=figure.get_facecolor())
    return buffer.getvalue()


def literal(text: str) -> str:
    """Text that matplotlib shows as it is: a dollar sign in an organ's name does not start a formula."""
    return str(text).replace("$", r"\$")


# ---- contours over the CT

def overlay(case: OverlayCase, labels: LabelSet) -> Figure:
    """Three planes of a case: the prediction's contours solid, the reference's dashed, organs in their own colours.

    Each plane is the one that cuts the organs best, see `fullest_slice`.
    """
    maps = [m for m in (case.reference, case.prediction) if m is not None]
    shown = maps[0] if len(maps) == 1 else np.where(maps[0] > 0, maps[0], maps[1])
    spacing = np.asarray(case.geometry.spacing_mm)
    organs_box = bounding_box(shown > 0) or Box((0, 0, 0), shown.shape)
    box = organs_box.grown(np.ceil(OVERLAY_MARGIN_MM / spacing).astype(int)).clipped(shown.shape)
    size = np.asarray(box.shape) * spacing
    widths = [size[column] for _, _, column, _ in PLANES.values()]
    heights = [size[row] for _, row, _, _ in PLANES.values()]
    legend_rows = -(-(len(labels.organs) + 2) // 6)
    inches = float(np.clip(12.5 * max(heights) / sum(widths), 2.5, 8)) + 0.4 + 0.24 * legend_rows
    figure = Figure(figsize=(12.5, inches), layout="constrained", facecolor=_NIGHT)
    figure.get_layout_engine().set(w_pad=0.04, h_pad=0.04, wspace=0.01)
    axes = figure.subplots(1, 3, width_ratios=widths)
    for ax, plane in zip(axes, PLANES):
        _show_plane(ax, plane, case, shown, box, labels)
    organs = [o for o in labels.organs if any((m == labels.organs.index(o) + 1).any() for m in maps)]
    handles = [Line2D([], [], color=labels.colour(o), lw=3, label=literal(o)) for o in organs]
    handles += [Line2D([], [], color=_PAPER_WHITE, lw=1.4, label="prediction")]
    handles += [Line2D([], [], color=_PAPER_WHITE, lw=1.4, ls=(0, (3, 2)), label="reference")] if case.reference is not None else []
    figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False, labelcolor=_PAPER_WHITE, fontsize=10)
    return figure


def fullest_slice(channels: np.ndarray, axis: int) -> int:
    """The slice across `axis` that cuts the organs best; among equals the one nearest to the foreground's centre.

    Each organ counts by its area there, as a share of its largest: a slice that meets every organ just at its end, where contours
    differ most, would show a result worse than it is.
    """
    where = np.nonzero(channels)
    if not where[0].size:
        return channels.shape[axis] // 2
    _, organ = np.unique(channels[where], return_inverse=True)
    n = channels.shape[axis]
    areas = np.bincount(organ * n + where[axis], minlength=(organ.max() + 1) * n).reshape(-1, n)
    shares = (areas / areas.max(axis=1, keepdims=True)).sum(axis=0)
    best = np.flatnonzero(np.isclose(shares, shares.max()))
    return int(best[np.argmin(np.abs(best - where[axis].mean()))])


def _show_plane(ax: Axes, plane: str, case: OverlayCase, shown: np.ndarray, box: Box, labels: LabelSet) -> None:
    axis, row, column, (left, right, top, bottom) = PLANES[plane]
    k = fullest_slice(shown, axis)
    cut = tuple(k if a == axis else box.slices[a] for a in range(3))
    sy, sx = case.geometry.spacing_mm[row], case.geometry.spacing_mm[column]
    ny, nx = box.shape[row], box.shape[column]
    upward = row == 0  # z grows towards the head, y towards the back
    edges = (-sx / 2, (nx - 0.5) * sx, -sy / 2, (ny - 0.5) * sy)
    low, high = SOFT_TISSUE_HU
    ax.imshow(case.image[cut], cmap="gray", vmin=low, vmax=high, origin="lower", extent=edges, interpolation="bilinear")
    for channels, style in ((case.prediction, "solid"), (case.reference, (0, (3, 2)))):
        if channels is not None:
            _contours(ax, channels[cut], sx, sy, labels, style)
    ax.set_xlim(edges[0], edges[1])
    ax.set_ylim(edges[2:] if upward else edges[:1:-1])
    ax.set_axis_off()
    middle = [(n - 1) / 2 for n in shown.shape]
    middle[axis] = k
    place = case.geometry.world(middle)[2 - axis]
    ax.set_title(f"{plane}, {'zyx'[axis]} = {place:.0f} mm".replace("-", "−"), color=_PAPER_WHITE, fontsize=11)
    for text, x, y in ((left, 0.02, 0.5), (right, 0.98, 0.5), (top, 0.5, 0.97), (bottom, 0.5, 0.03)):
        ax.text(x, y, text, transform=ax.transAxes, color="#ffd34d", fontsize=11, ha="center", va="center", weight="bold")
    bar, x0, y0 = min(50.0, 10 * (nx * sx // 20)), 0.05 * nx * sx, (0.04 if upward else 0.96) * ny * sy
    ax.plot([x0, x0 + bar], [y0, y0], color=_PAPER_WHITE, lw=2.5, solid_capstyle="butt")
    ax.annotate(f"{bar:.0f} mm", (x0 + bar / 2, y0), (0, 4), textcoords="offset points", color=_PAPER_WHITE, fontsize=8, ha="center")


def _contours(ax: Axes, channels: np.ndarray, sx: float, sy: float, labels: LabelSet, style) -> None:
    for i, organ in enumerate(labels.organs, start=1):
        mask = channels == i
        if not mask.any():
            continue
        padded = np.pad(mask.astype(float), 1)  # closes a contour at the picture's edge
        x, y = (np.arange(-1, n + 1) * s for n, s in ((mask.shape[1], sx), (mask.shape[0], sy)))
        colour = np.array(labels.colour(organ))
        reference = style != "solid"
        # the reference is paler, so that it can be told from a prediction that lies on it
        ax.contour(x, y, padded, levels=[0.5], colors=[tuple(0.45 * colour + 0.55) if reference else tuple(colour)], linestyles=[style],
                   linewidths=1.1 if reference else 1.7)


# ---- box plots

def box_plots(results: Mapping[str, Sequence[CaseScore]], metric: str) -> Figure:
    """Horizontal boxes (quartiles, whiskers to 1.5 IQR) over every case's value: a row per organ, a colour per column."""
    shown = METRICS[metric]
    frames = {name: per_case(scores) for name, scores in results.items()}
    organs = list(dict.fromkeys(o for f in frames.values() for o in f["organ"]))
    values = {n: [f.loc[f["organ"] == o, metric].dropna().to_numpy() * shown.scale for o in organs] for n, f in frames.items()}
    limit = _axis_end(np.concatenate([v for per_organ in values.values() for v in per_organ] or [np.zeros(0)]), metric)
    colours = column_colours(list(frames))
    label = f"{shown.title} ({shown.unit}), {'higher' if shown.best == 'max' else 'lower'} is better"
    figure, _ = _box_figure(values, organs, label, limit, colours)
    handles = [Line2D([], [], color=colour, lw=6, alpha=0.75, label=literal(n)) for n, colour in colours.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(5, len(handles)) or 1, frameon=False, fontsize=9)
    return figure


def organ_boxes(
    values: Mapping[str, Sequence[float]], label: str, ranges: Mapping[str, tuple[float, float]] | None = None, log: bool = False
) -> Figure:
    """Horizontal boxes of one value per organ and case. ranges: organ → a grey bar behind its box. log: along a logarithmic axis."""
    drawn = [np.asarray(v, float) for v in values.values()]
    figure, ax = _box_figure({label: drawn}, list(values), label, None, {label: colormaps["tab10"](0)})
    for row, organ in enumerate(values):
        if low_high := (ranges or {}).get(organ):
            ax.barh(row, low_high[1] - low_high[0], 0.8, low_high[0], color="#e3e8ee", zorder=0.5)
    if log:
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_locator(NullLocator())
    return figure


def _box_figure(
    values: Mapping[str, Sequence[np.ndarray]], organs: Sequence[str], label: str, limit: float | None, colours: Mapping[str, tuple]
) -> tuple[Figure, Axes]:
    """Boxes of every column's values, in the organs' order. limit: where the axis ends, None: at the last value."""
    figure = Figure(figsize=(6.6, 1.0 + len(organs) * (0.2 + 0.14 * len(values))), layout="constrained")
    ax = figure.subplots()
    step = 0.8 / max(1, len(values))
    for k, (name, per_organ) in enumerate(values.items()):
        rows = np.arange(len(organs)) + (k + 0.5) * step - 0.4
        _boxes(ax, per_organ, rows, step, colours[name], limit)
    ax.set_yticks(range(len(organs)), [literal(o) for o in organs])
    ax.set_ylim(len(organs) - 0.5, -0.5)
    if limit is not None:
        ax.set_xlim(right=limit)
    ax.set_xlabel(label)
    ax.grid(axis="x", **GRID)
    ax.set_axisbelow(True)
    for y in np.arange(len(organs) - 1) + 0.5:
        ax.axhline(y, color="#eef1f4", lw=1, zorder=0)
    _bare(ax)
    return figure, ax


def column_colours(names: Sequence[str]) -> dict[str, tuple]:
    """A colour per column; the last standard stage stands out from the earlier ones."""
    palette = colormaps["tab10"]
    order = (7, 0, 2, 1, 4, 5, 6, 8, 9, 3)
    return {name: palette(order[k % len(order)]) for k, name in enumerate(names)}


def _axis_end(values: np.ndarray, metric: str) -> float | None:
    """100 for shares; for distances the end of the bulk, so that one stray component does not flatten every box."""
    if METRICS[metric].unit == "%":
        return 101.5
    if not values.size or values.max() <= (bulk := 2 * np.percentile(values, 90)):
        return None
    return float(bulk)


def _boxes(ax: Axes, per_organ: Sequence[np.ndarray], rows: np.ndarray, height: float, colour, limit: float | None) -> None:
    filled = [(v, y) for v, y in zip(per_organ, rows) if v.size]
    if not filled:
        return
    ax.boxplot([v for v, _ in filled], positions=[y for _, y in filled], widths=0.78 * height, orientation="horizontal",
               patch_artist=True, showfliers=False, manage_ticks=False, medianprops={"color": colour, "lw": 2},
               boxprops={"facecolor": (*colour[:3], 0.35), "edgecolor": colour}, whiskerprops={"color": colour}, capprops={"color": colour})
    for v, y in filled:
        jitter = (np.arange(v.size) * 0.618 % 1 - 0.5) * 0.5 * height
        inside = v <= (np.inf if limit is None else limit)
        ax.scatter(v[inside], (y + jitter)[inside], s=7, color=colour, alpha=0.65, linewidths=0, zorder=3)
        if (~inside).any():  # beyond the axis: an arrow at its end
            ax.scatter(np.full((~inside).sum(), limit), (y + jitter)[~inside], s=16, marker=">", color=colour, clip_on=False, zorder=4)


def _bare(ax: Axes) -> None:
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


# ---- training curves

def held_out_dsc(row: Mapping) -> dict[str, float]:
    """The held-out DSC of a log row, per organ ({} in an epoch without validation; a plain number is the mean)."""
    value = row.get("val_dsc")
    entries = value.items() if isinstance(value, Mapping) else [("mean", value)]
    return {name: float(v) for name, v in entries if v is not None and np.isfinite(v)}


def _losses(rows: Sequence[Mapping]) -> tuple[list, list]:
    kept = [(r["epoch"], r["train_loss"]) for r in rows if r.get("train_loss") is not None]
    return [e for e, _ in kept], [v for _, v in kept]


def progress_figure(rows: Sequence[Mapping], path: Path) -> None:
    """One member's progress.png from its log rows: training loss, held-out DSC per organ, learning rate."""
    figure = Figure(figsize=(8, 8), layout="constrained")
    loss, dice, rate = figure.subplots(3, 1, sharex=True, height_ratios=(3, 4, 2))
    loss.plot(*_losses(rows), color="#2b5c8a")
    loss.set_ylabel("training loss")
    checked = [(r["epoch"], held_out_dsc(r)) for r in rows if held_out_dsc(r)]
    organs = list(dict.fromkeys(o for _, d in checked for o in d))
    for k, organ in enumerate(organs):
        points = [(e, 100 * d[organ]) for e, d in checked if organ in d]
        dice.plot(*zip(*points), marker="o", ms=3, color=colormaps["tab20"](k % 20), label=literal(organ))
    if checked:
        dice.plot([e for e, _ in checked], [100 * np.mean(list(d.values())) for _, d in checked], color="black", lw=2, label="mean")
        dice.legend(fontsize=8, ncols=2, frameon=False, loc="lower right")
    dice.set_ylabel("held-out DSC (%)")
    dice.set_ylim(0, 100)
    rated = [(r["epoch"], r["lr"]) for r in rows if r.get("lr") is not None]
    rate.plot([e for e, _ in rated], [v for _, v in rated], color="#777777")
    rate.set_ylabel("learning rate")
    rate.set_xlabel("epoch")
    for ax in (loss, dice, rate):
        ax.grid(**GRID)
        _bare(ax)
    durable.write_bytes(Path(path), png(figure, dpi=110))


def training_curves(curves: Mapping[str, Sequence[Mapping]]) -> Figure:
    """Training loss (left) and mean held-out DSC (right) of every run; runs named MEMBER/fold_N share their member's row."""
    members: dict[str, dict[str, Sequence[Mapping]]] = {}
    for name, rows in curves.items():
        member, _, fold = name.partition("/")
        members.setdefault(member, {})[fold.replace("_", " ") or "run"] = rows
    figure = Figure(figsize=(8.6, 0.5 + 1.65 * len(members)), layout="constrained")
    grid = figure.subplots(len(members), 2, squeeze=False)
    folds = list(dict.fromkeys(f for runs in members.values() for f in runs))
    for (loss, dice), (member, runs) in zip(grid, members.items()):
        for fold, rows in runs.items():
            colour = colormaps["viridis"](folds.index(fold) / max(1, len(folds) - 1) * 0.85)
            loss.plot(*_losses(rows), color=colour, lw=1.2, label=fold)
            checked = [(r["epoch"], 100 * np.mean(list(d.values()))) for r in rows if (d := held_out_dsc(r))]
            dice.plot([e for e, _ in checked], [v for _, v in checked], color=colour, lw=1.2, marker="o", ms=2.5)
        loss.set_title(literal(member), loc="left", fontsize=10, weight="bold")
        loss.set_ylabel("training loss", fontsize=8)
        dice.set_ylabel("held-out DSC (%)", fontsize=8)
        dice.set_ylim(0, 100)
        for ax in (loss, dice):
            ax.grid(**GRID)
            ax.tick_params(labelsize=8)
            _bare(ax)
    for ax in grid[-1]:
        ax.set_xlabel("epoch", fontsize=8)
    handles = [Line2D([], [], color=colormaps["viridis"](k / max(1, len(folds) - 1) * 0.85), label=f) for k, f in enumerate(folds)]
    figure.legend(handles=handles, loc="outside upper right", ncols=5, frameon=False, fontsize=8)
    return figure
