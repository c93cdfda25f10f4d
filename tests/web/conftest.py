"""A report's folder as c2f_crossval leaves it, without a training: the tiny data set's references, moved, stand for predictions."""
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from c2f_nnunet.evaluation.figures import OverlayCase
from c2f_nnunet.evaluation.metrics import score
from c2f_nnunet.evaluation.pages import PredictedOrgan, build_prediction_report, predicted_cases, scored_cases
from c2f_nnunet.evaluation.pictures import organ_views
from c2f_nnunet.evaluation.report import Beside, build_report
from c2f_nnunet.io.images import read_image, read_label
from c2f_nnunet.labels import LabelSet
from c2f_nnunet.running import viewing
from c2f_nnunet.running.serve import open_server


@pytest.fixture(scope="session")
def folder(tiny_raw, tmp_path_factory):
    """report.html and viewer/ of t2 (moved by a voxel) and t5 (moved by two: the worse one)."""
    out, labels = tmp_path_factory.mktemp("web") / "out", tiny_raw.dataset.labels
    scores, views, centres = [], {}, {}
    for case, moved in (("t2", 1), ("t5", 2)):
        image = read_image(tiny_raw.raw / "imagesTr" / f"{case}_0000.nii.gz")
        truth = labels.to_channels(read_label(tiny_raw.raw / "labelsTr" / f"{case}.nii.gz").array)
        predicted = np.roll(truth, moved, axis=1)
        scores.append(score(truth, predicted, image.geometry, labels, case=case))
        shown = OverlayCase(case, image.array, image.geometry, truth, predicted)
        views[case], centres[case] = organ_views(shown), viewing.write_case(out, shown)
    flags = [{"case": "t5", "organ": "Stem", "state": "present", "note": "box grown once"}]
    build_report(out, "Tiny: cross-validation of plan 'tiny'", labels, {"final": scores}, Beside(flags=flags, views=views))
    viewing.write_index(out, "Tiny", labels, scored_cases(scores, {}, flags), centres, ["t2", "t5"])
    return out


@pytest.fixture(scope="session")
def predictions(folder):
    """A prediction's page, without pictures, of long organ names and longer remarks; its address on the site."""
    labels = LabelSet(("Submandibular_L", "Submandibular_R"), (1, 2))
    said = ("found at threshold 0.25", "21.3 ml, to be expected are 4.1 to 13.9 ml", "in 3 pieces, the largest with 71.2 %",
            "place in the body: 12 mm farther to the front than to be expected")
    sure = {"confidence": 0.612, "views": 0.71, "folds": 0.83, "stages": 0.9}
    organs = [PredictedOrgan(o, how, 21.3, sure, said, (4.1, 13.9)) for o, how in zip(labels.organs, ("threshold 0.25", "prior"))]
    cases = dict.fromkeys(("HN_0522c0017", "1.2.826.0.1.3680043.8.498.7261_series2", "third"), organs)
    table = predicted_cases(cases, {}, labels)
    (folder / "predicted").mkdir()
    build_prediction_report(folder / "predicted", "Dataset015_HeadNeckKBP: predictions of plan 'auto'", labels, cases, table)
    return "/predicted/report.html"


@contextmanager
def _served(folder):
    """The folder, served; `probe` adds a page to it that tries the others: a script in a page beside a frame of a given size."""
    def probe(name: str, page: str, script: str, width: int, height: int) -> str:
        frame = f'<iframe id="frame" src="{page}" style="width: {width}px; height: {height}px; border: 0"></iframe>'
        head = '<!DOCTYPE html><link rel="icon" href="data:,">'
        (folder / name).write_text(f'{head}{frame}<pre id="told"></pre><script>{HELPERS}run(async () => {{{script}}})</script>')
        return f"http://127.0.0.1:{server.server_port}/{name}"

    with open_server(folder) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield SimpleNamespace(folder=folder, probe=probe)
        server.shutdown()


@pytest.fixture
def serving():
    """For a folder of the test's own."""
    return _served


@pytest.fixture(scope="session")
def site(folder):
    with _served(folder) as served:
        yield served


# what the scripts have: `w` and `d`, the framed page's window and document; `told`, which ends up on the page; waiting and comparing
HELPERS = """
const frame = document.getElementById("frame"), told = {};
let w, d;
// The page's own clock leaps ahead while its workers unpack a volume, but stands still while something is fetched: so time passes in truth.
async function until(test) {
  for (let k = 0; k < 3000; k++) {
    if (test()) return;
    await fetch(location.href, { cache: "no-store" });
    await new Promise((go) => setTimeout(go, 5));
  }
  throw new Error("waited in vain for " + test);
}
function press(key, code = "", shiftKey = false) {
  (d.activeElement ?? d.body).dispatchEvent(new w.KeyboardEvent("keydown", { key, code, shiftKey, bubbles: true, cancelable: true }));
}
function picture() {
  const { nv } = w.viewer, gl = nv.gl, all = new Uint8Array(4 * gl.drawingBufferWidth * gl.drawingBufferHeight);
  nv.drawScene();
  gl.readPixels(0, 0, gl.drawingBufferWidth, gl.drawingBufferHeight, gl.RGBA, gl.UNSIGNED_BYTE, all);
  return all;
}
const count = (all, test) => { let n = 0; for (let p = 0; p < all.length; p += 4) n += test(p); return n; };
const changed = (a, b) => count(a, (p) => Math.abs(a[p] - b[p]) + Math.abs(a[p + 1] - b[p + 1]) + Math.abs(a[p + 2] - b[p + 2]) > 12);
async function run(steps) {
  try {
    await until(() => frame.contentDocument?.readyState === "complete" && frame.contentWindow.location.href !== "about:blank");
    w = frame.contentWindow, d = w.document;
    await steps();
  } catch (error) { told.error = String(error); }
  document.getElementById("told").textContent = JSON.stringify(told) + "#";
}
"""
