"""FAULTS rows 20 and 21, prediction: a cap on the memory, and accelerators that have too little."""
import re

import nibabel as nib
import numpy as np
import pytest
import torch

from c2f_nnunet.data.dataset import Case
from c2f_nnunet.io.images import read_grid
from c2f_nnunet.running.memory import memory_estimate_gb, peak_memory_gb
from c2f_nnunet.running.model import build_cascade, open_model
from c2f_nnunet.running.predict import PredictOptions, predict_cases
from tests.faults.large import plan_of, write_model, write_scan
from tests.faults.processes import CONTEXT, further_memory, out_of_memory, run

GB = 2**30
WHOLE_BODY = (600, 512, 512), (1.0, 0.98, 0.98)


def predict(model, tmp_path, cap_gb: float, *more) -> tuple[int, str]:
    """c2f_predict in a process that can take no more than the cap beside what it has at its start."""
    args = ["-i", tmp_path / "in", "-o", tmp_path / "out", "-m", model.root, "-device", "cpu", "--max_memory", cap_gb, *more]
    return run(tmp_path / "printed", "predict", [str(a) for a in args], further_memory(int(cap_gb * GB)), within_s=600)


@pytest.fixture
def slow(request):
    if not request.config.getoption("--slow"):
        pytest.skip("takes minutes and 4 GB; give --slow")


@pytest.fixture(scope="module")
def whole_body(tmp_path_factory):
    """The folder of a scan of 512 × 512 × 600 voxels."""
    folder = tmp_path_factory.mktemp("scans")
    write_scan(folder / "in" / "large_0000.nii.gz", *WHOLE_BODY)
    return folder


@pytest.mark.parametrize("organs, cap_gb", [(9, 2.5), (40, 3.0)])
def test_row_20_a_whole_body_scan_is_done_within_the_cap(slow, whole_body, tiny_planned, tmp_path, organs, cap_gb):
    model = write_model(tmp_path / "model", plan_of(tiny_planned.model.plan, organs))
    (tmp_path / "in").symlink_to(whole_body / "in")
    code, printed = predict(model, tmp_path, cap_gb)
    assert code == 0, printed
    found = np.asanyarray(nib.load(tmp_path / "out" / "large.nii.gz").dataobj)
    assert found.shape == WHOLE_BODY[0][::-1] and set(np.unique(found)) == set(range(organs + 1))
    assert float(re.search(r"peak memory: ([0-9.]+) GB", printed)[1]) < cap_gb


@pytest.mark.parametrize("organs", [9, 40])
@pytest.mark.parametrize("cap_gb, more", [(1.2, []), (3.0, ["--save_probabilities"])])
def test_row_20_a_whole_body_scan_above_the_cap_is_refused(slow, whole_body, tiny_planned, tmp_path, organs, cap_gb, more):
    model = write_model(tmp_path / "model", plan_of(tiny_planned.model.plan, organs))
    (tmp_path / "in").symlink_to(whole_body / "in")
    code, printed = predict(model, tmp_path, cap_gb, *more)
    assert code == 1 and "large_0000.nii.gz: predicting it needs about" in printed and f"more than --max_memory {cap_gb:g}" in printed
    assert not list((tmp_path / "out").glob("large*"))


def test_row_20_a_scan_is_refused_by_its_header_and_the_others_are_done(tiny_trained, tmp_path):
    """Of the large one not a voxel is read: it has none."""
    source = tmp_path / "in"
    write_scan(source / "large_0000.nii.gz", (64, 256, 256), (4.0, 1.0, 1.0))
    path = source / "large_0000.nii.gz"
    path.write_bytes(path.read_bytes()[:-100])
    (source / "small_0000.nii.gz").write_bytes((tiny_trained.raw / "imagesTs" / "s0_0000.nii.gz").read_bytes())
    cascade, _ = build_cascade(tiny_trained.model, None, "best", torch.device("cpu"))
    small, large = (memory_estimate_gb(cascade, *read_grid(source / f"{n}_0000.nii.gz"), "fine", False) for n in ("small", "large"))
    assert small < large
    done = predict_cases(cascade, cases_of(source), tmp_path / "out", PredictOptions(max_memory_gb=peak_memory_gb() + (small + large) / 2))
    assert [d.case for d in done if d.error] == ["large"] and "predicting it needs about" in done[0].error
    assert (tmp_path / "out" / "small.nii.gz").exists() and not (tmp_path / "out" / "large.nii.gz").exists()


def cases_of(source) -> tuple[Case, ...]:
    return tuple(Case(p.name.removesuffix("_0000.nii.gz"), p, None, None) for p in sorted(source.iterdir()))


def used_and_told(model, source, out, options, results) -> None:
    """What predicting a scan took of a process' memory, and what was told before it, in GiB."""
    torch.set_num_threads(1)
    cascade, _ = build_cascade(open_model(model), None, "best", torch.device("cpu"), flips=False)
    (case,) = cases_of(source)
    told, before = memory_estimate_gb(cascade, *read_grid(case.image), options.stage, options.save_probabilities), peak_memory_gb()
    (done,) = predict_cases(cascade, (case,), out, options)
    results.put((peak_memory_gb() - before, told, done.error))


MOMENTS = {  # organs, folds, shape, spacing (z, y, x) in mm, whether with probabilities; each has its peak elsewhere
    "resampling": (2, 1, (200, 320, 320), (1.0, 1.0, 1.0), False),
    "the views": (9, 1, (90, 300, 300), (2.0, 1.5, 1.5), False),
    "the views of two folds": (9, 2, (96, 240, 240), (3.0, 2.0, 2.0), False),
    "probabilities": (9, 1, (140, 256, 256), (1.0, 1.0, 1.0), True),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_row_20_the_estimate_holds_for_the_process(tiny_planned, tmp_path, moment):
    organs, folds, shape, spacing_mm, probabilities = MOMENTS[moment]
    write_scan(tmp_path / "in" / "scan_0000.nii.gz", shape, spacing_mm)
    model = write_model(tmp_path / "model", plan_of(tiny_planned.model.plan, organs), folds)
    results = CONTEXT.Queue()
    options = PredictOptions(save_probabilities=probabilities)
    process = CONTEXT.Process(target=used_and_told, args=(model, tmp_path / "in", tmp_path / "out", options, results))
    process.start()
    used, told, error = results.get(timeout=120)
    process.join()
    assert error is None
    assert 0.4 * told < used < told, (used, told)  # of small scans the constants are a large part


def test_row_21_fewer_slices_at_a_time_where_the_accelerator_has_too_little(tiny_trained, tmp_path):
    """What fits is found by halving, and the result is that of a device with enough."""
    outputs = []
    for name, before in (("usual", ()), ("small", (out_of_memory(5),))):
        command = tiny_trained.args("-i", "imagesTs", "-o", tmp_path / name, "-device", "cpu")
        code, printed = run(tmp_path / "printed", "predict", command, *before)
        assert code == 0, printed
        outputs.append({p.name: p.read_bytes() for p in (tmp_path / name).glob("*.nii.gz")})
    assert "2d_top: 16 slices do not fit the memory of cpu; 8 at a time" in printed and "8 slices do not fit" in printed
    assert "4 slices do not fit" not in printed and outputs[0] == outputs[1]


def test_row_21_an_accelerator_that_has_too_little_for_a_slice(tiny_trained, tmp_path):
    out = tmp_path / "out"
    command = tiny_trained.args("-i", "imagesTs", "-o", out, "-device", "cpu", "--stage", "coarse")
    code, printed = run(tmp_path / "printed", "predict", command, out_of_memory(0))
    assert code == 1 and "Traceback" not in printed
    for case in ("s0", "s1"):
        told = f"{case}: 2d_top: one slice does not fit the memory of cpu (CUDA out of memory. Tried to allocate 20.00 GiB.)"
        assert f"{told}; free some memory" in printed
    assert not list(out.glob("*.nii.gz"))


def test_row_21_an_accelerator_that_has_too_little_for_a_crop(tiny_trained, tmp_path):
    command = tiny_trained.args("-i", "imagesTs", "-o", tmp_path / "out", "-device", "cpu")
    code, printed = run(tmp_path / "printed", "predict", command, out_of_memory(0, dimensions=3))
    assert code == 1 and "Traceback" not in printed
    assert re.search("3d_Gland: a crop of [0-9]+ × [0-9]+ × [0-9]+ voxels does not fit the memory of cpu", printed)
    assert not list((tmp_path / "out").glob("*.nii.gz"))
