"""Figures: the slices chosen, what is drawn, files that are pictures."""
import os

import numpy as np
import pytest

from c2f_nnunet.errors import WorkspaceError
from c2f_nnunet.evaluation import figures
from c2f_nnunet.geometry import Geometry
from c2f_nnunet.labels import LabelSet

LABELS = LabelSet.from_names({"background": 0, "A$1_L": 1, "A$1_R": 2})
PNG = b"\x89PNG\r\n\x1a\n"


def channels():
    """Organ 1 in slices 1–3, organ 2 in slices 3–6: only slice 3 meets both."""
    c = np.zeros((8, 10, 12), np.uint8)
    c[1:4, 2:6, 2:4] = 1
    c[3:7, 2:6, 8:10] = 2
    return c


def test_fullest_slice():
    assert figures.fullest_slice(channels(), 0) == 3
    assert figures.fullest_slice(channels(), 1) in (3, 4)  # all of 2…5 cut both alike; 3 and 4 are nearest to their centre 3.5
    assert figures.fullest_slice(np.zeros((8, 10, 12), np.uint8), 2) == 6


def test_fullest_slice_does_not_cut_organs_at_their_ends():
    """Areas along z, organ 1: 9 9 9 1 0 0 0, organ 2: 0 4 4 1 1 0 0, organ 3 (the largest): 0 0 0 20 20 20 20."""
    c = np.zeros((7, 5, 12), np.uint8)
    c[:3, :3, :3], c[3, 0, 0] = 1, 1
    c[1:3, :2, 4:6], c[3:5, 0, 4] = 2, 2
    c[3:, :, 8:] = 3
    assert figures.fullest_slice(c, 0) == 2  # slice 3 meets all three, two of them in one voxel


def test_overlay_keeps_the_patients_directions_and_proportions():
    spacing = (3.0, 1.0, 2.0)
    image = np.zeros((8, 10, 12), np.int16)
    figure = figures.overlay(figures.OverlayCase("c", image, Geometry(image.shape, spacing), channels(), np.roll(channels(), 1, 1)), LABELS)
    axial, coronal, sagittal = figure.axes
    assert axial.yaxis_inverted() and not coronal.yaxis_inverted() and not sagittal.yaxis_inverted()  # anterior up; head up
    assert not any(ax.xaxis_inverted() for ax in figure.axes)  # patient's right on the left
    assert axial.get_aspect() == coronal.get_aspect() == 1.0  # axes are in mm
    assert axial.images[0].get_extent() == [-1.0, 23.0, -0.5, 9.5] and coronal.images[0].get_extent() == [-1.0, 23.0, -1.5, 22.5]
    assert axial.get_title() == "axial, z = 9 mm"  # slice 3 of 3 mm
    dashed = [c for c in axial.collections if c.get_linestyle()[0][1] is not None]
    assert len(axial.collections) == 4 and len(dashed) == 2  # two organs, each predicted (solid) and in the reference (dashed)
    assert figures.png(figure, dpi=40).startswith(PNG)


def test_overlay_without_reference_and_without_organs():
    image = np.zeros((8, 10, 12), np.int16)
    for prediction in (channels(), np.zeros_like(channels())):
        figure = figures.overlay(figures.OverlayCase("c", image, Geometry(image.shape, (1.0, 1.0, 1.0)), None, prediction), LABELS)
        assert figures.png(figure, dpi=40).startswith(PNG)


@pytest.mark.parametrize("value, expected", [
    (None, {}), (0.8, {"mean": 0.8}), (float("nan"), {}), ({"A": 0.5, "B": None}, {"A": 0.5}),
])
def test_held_out_dsc(value, expected):
    assert figures.held_out_dsc({"val_dsc": value}) == expected


def rows(validated=True):
    """Six epochs, held out in every second one."""
    dsc = {e: {"A$1_L": 0.1 * e, "B": 0.2} if validated and e % 2 else None for e in range(6)}
    return [{"epoch": e, "train_loss": 1 / (e + 1), "lr": 0.01, "seconds": 1.0, "val_dsc": dsc[e]} for e in dsc]


@pytest.mark.parametrize("log", [rows(), rows(validated=False), rows()[:1], []])
def test_progress_figure_at_any_time_of_a_training(tmp_path, log):
    figures.progress_figure(log, tmp_path / "progress.png")
    assert (tmp_path / "progress.png").read_bytes().startswith(PNG)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_progress_figure_that_comes_out_wrong_leaves_the_old_one(tmp_path, monkeypatch):
    figures.progress_figure(rows()[:1], tmp_path / "progress.png")
    before = (tmp_path / "progress.png").read_bytes()
    monkeypatch.setattr("os.fsync", lambda handle: os.ftruncate(handle, 1000))  # what a full disk may leave
    with pytest.raises(WorkspaceError, match="progress.png: reads back differently from what was written"):
        figures.progress_figure(rows(), tmp_path / "progress.png")
    assert (tmp_path / "progress.png").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_training_curves_draw_a_member_per_row_and_a_line_per_fold():
    figure = figures.training_curves({"2d_top/fold_0": rows(), "2d_top/fold_1": rows(), "3d_A/fold_0": rows(validated=False)})
    assert [len(ax.lines) for ax in figure.axes] == [2, 2, 1, 1]
    assert figure.axes[1].lines[0].get_ydata() == pytest.approx([15.0, 25.0, 35.0])  # mean over the organs, in %
