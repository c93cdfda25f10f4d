"""The memory estimate, by hand; that it holds for a real process is tests/faults/test_memory.py's."""
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from c2f_nnunet.geometry import Geometry
from c2f_nnunet.labels import LabelSet
from c2f_nnunet.running.memory import LIBRARIES_GB, SAVING, coarse_shape, memory_estimate_gb, needs, peak_memory_gb

SCAN = Geometry((200, 100, 100), (2.0, 1.0, 1.0))  # 400 × 100 × 100 mm, 2 million voxels
INT16 = np.dtype(np.int16)


@pytest.fixture
def cascade(tiny_planned):
    """The tiny plan (coarse grid 4 mm, 24 × 40 × 40; crops 16³ of 4 mm), its networks on an accelerator."""
    return SimpleNamespace(plan=tiny_planned.model.plan, networks={}, device=torch.device("cuda"))


def test_the_coarse_grid_holds_the_scan_in_z_and_at_most_the_plans_shape_in_its_plane(cascade):
    assert coarse_shape(cascade, SCAN) == (100 + 6, 25 + 6, 25 + 6)
    assert coarse_shape(cascade, replace(SCAN, shape=(200, 500, 100))) == (106, 40, 31)


def test_what_is_held_at_each_moment(cascade):
    coarse = 106 * 31 * 31
    found = needs(cascade, SCAN, INT16, "fine", False)
    box = 50 * 98 * 98  # 16 · 1.5 voxels of 4 mm are 96 mm
    assert found == {
        "read": 2e6 * 8,
        "to the coarse grid": 2e6 * 10 + 12 * coarse,
        "views": 2e6 * 2 + coarse * (10 * 4 + 10),
        "locate": 2e6 * 2 + coarse * (8 * 4 + 32),
        "merge": 2e6 * 7 + 16 * coarse + 24 * box,
        "checks": 2e6 * (2 + 1 + 5) + 16 * coarse,
        "write": 2e6 * (2 + 1 + 3 + 1) + 16 * coarse,
    }
    assert memory_estimate_gb(cascade, SCAN, INT16, "fine", False) == pytest.approx(LIBRARIES_GB + max(found.values()) / 2**30)


def test_probabilities_are_held_for_all_organs_at_once(cascade):
    coarse, box = 106 * 31 * 31, 50 * 98 * 98
    found = needs(cascade, SCAN, INT16, "fine", True)
    assert found["probabilities"] == 2e6 * (2 + 1 + 2 * 4) + 16 * coarse + 4 * 3 * box + 16 * 4 * 10_000 + SAVING
    assert found["merge"] == needs(cascade, SCAN, INT16, "fine", False)["merge"] + 4 * 3 * box


def test_wider_types_need_more(cascade):
    whole, float32 = (needs(cascade, SCAN, np.dtype(t), "fine", False) for t in ("uint8", "float32"))
    assert float32["read"] - whole["read"] == 2e6 * 6 and float32["merge"] - whole["merge"] == 2e6 * 2
    many = LabelSet(("A", "B", "C"), (1, 2, 1000))
    plan = replace(cascade.plan, labels=many)
    wide = needs(SimpleNamespace(plan=plan, networks={}, device=cascade.device), SCAN, INT16, "fine", False)
    assert wide["write"] - needs(cascade, SCAN, INT16, "fine", False)["write"] == 3 * 2e6


def test_folds_are_averaged_beside_the_running_total(cascade):
    coarse = 106 * 31 * 31
    one, two = (needs(SimpleNamespace(plan=cascade.plan, networks={"2d_top": [0] * n}, device=cascade.device), SCAN, INT16, "fine", False)
                for n in (1, 2))
    assert two["views"] - one["views"] == 4 * 4 * coarse


def test_networks_take_the_processs_memory_on_a_cpu_only(cascade):
    networks = {m.name: [0] for m in cascade.plan.members}
    on_cpu, on_gpu = (needs(SimpleNamespace(plan=cascade.plan, networks=networks, device=torch.device(d)), SCAN, INT16, "fine", False)
                      for d in ("cpu", "cuda"))
    assert on_cpu["views"] > on_gpu["views"] and on_cpu["locate"] == on_gpu["locate"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel's own figure is Linux'")
def test_the_peak_is_the_kernels():
    kib = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
    assert peak_memory_gb() == pytest.approx(kib / 2**20, rel=0.02)
