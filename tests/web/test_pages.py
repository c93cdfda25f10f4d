"""The report and the viewer in a real browser: what is drawn, what the switches and keys do, and how they fit a phone."""
import html
import json
import re
from pathlib import Path

import numpy as np
import pytest

from c2f_nnunet.evaluation.figures import OverlayCase
from c2f_nnunet.evaluation.pages import PredictedOrgan, predicted_cases
from c2f_nnunet.geometry import Geometry
from c2f_nnunet.io import durable
from c2f_nnunet.labels import LabelSet
from c2f_nnunet.running import viewing
from c2f_nnunet.running.serve import WEB
from tests.web.browser import visit

LOADED = 'await until(() => w.viewer?.state.loaded && d.getElementById("message").textContent === "");'
VIEWER = LOADED + """
  const organs = () => [...d.querySelectorAll("#organs input")], z = () => w.viewer.nv.scene.crosshairPos[2];
  w.viewer.nv.setCrosshairWidth(0); // it has a colour of its own
  const first = picture();
  told.lit = count(first, (p) => first[p] + first[p + 1] + first[p + 2] > 30);
  told.coloured = count(first, (p) => Math.max(first[p], first[p + 1], first[p + 2]) - Math.min(first[p], first[p + 1], first[p + 2]) > 40);
  told.pixels = first.length / 4;
  told.title = d.title, told.hash = w.location.hash, told.organs = organs().length, told.place = d.getElementById("place").textContent;
  organs()[2].click();
  told.without = changed(first, picture());
  organs()[2].click();
  told.with_again = changed(first, picture());
  press("3", "Digit3");
  told.key_3 = [organs()[2].checked, changed(first, picture())];
  press("-", "Digit3"); // as on other keyboards
  told.key_3_back = changed(first, picture());
  press("3", "Digit3");
  press("3", "Digit3");
  press("r");
  told.reference = [d.getElementById("reference").checked, changed(first, picture())];
  press("r");
  press("f");
  told.outlined = changed(first, picture());
  press("f");
  press("a");
  told.some = organs().some((o) => o.checked);
  const bare = picture();
  told.bare = count(bare, (p) => Math.max(bare[p], bare[p + 1], bare[p + 2]) - Math.min(bare[p], bare[p + 1], bare[p + 2]) > 40);
  press("a");
  told.back = changed(first, picture());
  press("w");
  told.window = [d.querySelector("#windows [aria-pressed=true]").textContent, changed(first, picture())];
  press("w"), press("w");
  const before = z();
  press("ArrowUp"), press("ArrowUp");
  told.up = Math.round((z() - before) * w.viewer.nv.volumes[0].dimsRAS[3]);
  told.moved_place = d.getElementById("place").textContent;
  press("V");
  told.layout = d.querySelector("#layouts [aria-pressed=true]").textContent;
  const before_zoom = picture();
  press("+");
  told.zoomed = [w.viewer.nv.scene.pan2Dxyzmm[3], changed(before_zoom, picture())];
  press("-");
  told.zoomed_back = changed(before_zoom, picture());
  press("?", "Slash", true);
  told.help = d.getElementById("help").open;
  d.getElementById("help").close();
  const row = d.getElementById("reference-row"), shown = () => w.getComputedStyle(row).display;
  told.reference_row = [shown(), (row.hidden = true, shown())];
  press("n");
  await until(() => w.location.hash === "#case=t2" && w.viewer.state.loaded);
  told.next = d.querySelector("#cases [aria-current=true]").firstChild.textContent;
  press("p");
  await until(() => w.location.hash === "#case=t5" && w.viewer.state.loaded);
"""
SOLID = LOADED + """
  const organs = () => [...d.querySelectorAll("#organs input")];
  const colour = (all, p) => Math.max(all[p], all[p + 1], all[p + 2]) - Math.min(all[p], all[p + 1], all[p + 2]) > 40;
  w.viewer.nv.setCrosshairWidth(0);
  [...d.querySelectorAll("#layouts button")].at(-1).click();
  told.layout = d.querySelector("#layouts [aria-pressed=true]").textContent;
  const all = picture();
  told.coloured = count(all, (p) => colour(all, p));
  organs()[2].click();
  told.without = changed(all, picture());
  while (organs().some((o) => o.checked)) press("a");
  const bare = picture();
  told.bare = count(bare, (p) => colour(bare, p));
"""
PHONE = LOADED + """
  told.width = d.documentElement.scrollWidth, told.canvas = d.getElementById("canvas").clientHeight;
  told.layout = d.querySelector("#layouts [aria-pressed=true]").textContent;
  const all = picture();
  told.lit = count(all, (p) => all[p] + all[p + 1] + all[p + 2] > 30) / (all.length / 4);
"""
REPORT = """
  const cases = () => [...d.querySelectorAll("#cases table.sortable")][0];
  const column = (k) => [...cases().tBodies[0].rows].map((row) => row.cells[k].textContent);
  told.width = d.documentElement.scrollWidth;
  told.worst_first = column(0);
  cases().tHead.querySelectorAll("button")[1].click();
  told.ascending = [cases().tHead.rows[0].cells[1].getAttribute("aria-sort"), column(1)];
  cases().tHead.querySelectorAll("button")[1].click();
  told.descending = [cases().tHead.rows[0].cells[1].getAttribute("aria-sort"), column(1)];
  const details = [...d.querySelectorAll("details.case")];
  told.open = details.map((c) => c.open);
  w.location.hash = "#case-2";
  await until(() => details[1].open);
  details[1].open = false;
  d.querySelector('a[href="#case-2"]').click();
  await until(() => details[1].open); // again, though the address stays as it is
  const view = d.querySelector(".view");
  view.focus(), press("Enter");
  told.large = [view.classList.contains("large"), (press(" "), view.classList.contains("large"))];
  told.wide = d.documentElement.scrollWidth;
  const drawn = (svg) => svg.getBoundingClientRect().width > 100 && svg.querySelector("path.own");
  told.drawn = [...d.querySelectorAll(".view svg")].filter(drawn).length;
  told.viewer = [...d.querySelectorAll("a.in-viewer")].map((a) => [a.checkVisibility() === false && a.closest("[hidden]") !== null, a.getAttribute("href")]);
"""
IN_PAGE = """
  const page = d, viewer = d.getElementById("viewer");
  viewer.scrollIntoView();
  const ready = (hash) => viewer.contentWindow.location.hash === hash && viewer.contentWindow.viewer?.state.loaded;
  await until(() => ready("#case=t5"));
  told.first = viewer.contentWindow.location.hash;
  page.querySelector('a.in-viewer[data-case="t2"]').click();
  await until(() => ready("#case=t2"));
  told.second = viewer.contentWindow.location.hash, told.page = w.location.pathname;
  told.leaves = viewer.contentDocument.querySelector('a[href="/report.html"]').target;
  const box = viewer.getBoundingClientRect();
  told.shown = box.top >= 0 && box.bottom <= w.innerHeight;
  w = viewer.contentWindow, d = w.document;
  const all = picture();
  told.lit = count(all, (p) => all[p] + all[p + 1] + all[p + 2] > 30) / (all.length / 4);
"""
NAMES = """
  const lines = (node) => {
    const range = d.createRange();
    range.selectNodeContents(node);
    return new Set([...range.getClientRects()].map((box) => Math.round(box.top))).size;
  };
  const cells = (css) => [...d.querySelectorAll(css)], right = (cell) => cell.getBoundingClientRect().right;
  cells("details.case").forEach((one) => one.open = true);
  told.width = d.documentElement.scrollWidth;
  told.names = cells("#look td:nth-child(2), .case td:first-child").map((cell) => lines(cell.lastChild));
  told.cases = Math.max(...cells("#cases td:first-child").map((cell) => cell.clientWidth));
  told.remarks = Math.max(...cells("#look td:last-child").map((cell) => lines(cell)));
  told.farthest = Math.max(...cells("#look td").map(right));
  told.narrowest = Math.min(...cells("td.flag").map((cell) => cell.clientWidth));
"""


HARMLESS = "GL Driver Message .* GPU stall due to ReadPixels"  # the tests' own reading of pixels


def told(opened):
    """What the probing script found out; its errors and the console's are the test's."""
    found = re.search(r'<pre id="told">(.*?)#</pre>', opened.dom, re.DOTALL)
    assert found, (opened.console, opened.dom[:2000])
    values = json.loads(html.unescape(found[1]))
    assert "error" not in values, (values, opened.console)
    assert not complaints(opened), opened.console
    return values


def complaints(opened):
    """Whatever is on the console but what is known to be harmless: its lines do not tell an error from a greeting."""
    return [line for line in opened.console if not re.search(HARMLESS, line)]


def test_the_viewer_draws_and_its_switches_and_keys_work(site, tmp_path):
    seen = told(visit(site.probe("probe.html", "/", VIEWER, 800, 520), tmp_path / "profile"))
    assert seen["title"] == "Tiny" and seen["hash"] == "#case=t5" and seen["organs"] == 3  # the worst case is shown first
    assert seen["lit"] > 0.1 * seen["pixels"] and seen["coloured"] > 500
    assert re.match(r"[−\d]+, [−\d]+, [−\d]+ mm · [−\d]+ HU · prediction Stem", seen["place"])
    assert seen["without"] > 100 and seen["with_again"] == 0  # the flagged organ, at whose centre the viewer starts
    assert seen["key_3"][0] is False and seen["key_3"][1] == seen["without"] and seen["key_3_back"] == 0
    assert seen["reference"][0] is False and seen["reference"][1] > 20
    assert seen["outlined"] > 100
    assert seen["reference_row"] == ["flex", "none"]  # without a reference its switch is hidden
    assert seen["some"] is False and seen["bare"] < 0.2 * seen["coloured"] and seen["back"] == 0
    assert seen["window"][0] == "Bone" and seen["window"][1] > 1000
    assert seen["up"] == 2 and seen["moved_place"] != seen["place"]
    assert seen["zoomed"][0] == 1.25 and seen["zoomed"][1] > 1000 and seen["zoomed_back"] == 0
    assert seen["layout"] == "Axial" and seen["help"] is True and seen["next"] == "t2"


def test_an_oblique_scan_opens_at_its_organ(serving, tmp_path):
    """A small organ far off the middle of a scan that is turned about two axes: the cross stands in it, and the text names it."""
    a, b = np.cos(0.3), np.sin(0.3)
    turned = np.array([[a, -b, 0], [b, a, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, a, -b], [0, b, a]])
    grid = Geometry((24, 32, 36), (3.0, 2.0, 2.0), (-40.0, -150.0, -600.0), turned[:, ::-1])  # columns: of the axes z, y, x
    labels, image, organ = LabelSet(("Spot",), (1,)), np.full(grid.shape, 30, np.int16), np.zeros(grid.shape, np.uint8)
    organ[19:22, 4:7, 29:32] = 1
    shown, out = OverlayCase("oblique", image, grid, None, organ), tmp_path / "out"
    centres = {"oblique": viewing.write_case(out, shown)}
    cases = {"oblique": [PredictedOrgan("Spot", "threshold 0.5", 0.3, {"confidence": 0.9})]}
    viewing.write_index(out, "Oblique", labels, predicted_cases(cases, {}, labels), centres, ())
    with serving(out) as site:
        opened = visit(site.probe("place.html", "/", LOADED + 'told.place = d.getElementById("place").textContent;', 800, 520), tmp_path / "profile")
    assert re.fullmatch(r"[−\d]+, [−\d]+, [−\d]+ mm · 30 HU · Spot", told(opened)["place"]), told(opened)


def test_the_organs_are_drawn_in_3d(site, tmp_path):
    seen = told(visit(site.probe("solid.html", "/#case=t5", SOLID, 800, 520), tmp_path / "profile"))
    assert seen["layout"] == "3D" and seen["coloured"] > 500 and seen["without"] > 100 and seen["bare"] < 0.2 * seen["coloured"], seen


def test_the_viewer_fits_a_phone(site, tmp_path):
    seen = told(visit(site.probe("phone.html", "/#case=t2", PHONE, 390, 844), tmp_path / "profile"))
    assert seen["width"] <= 390 and seen["canvas"] > 300 and seen["layout"] == "Axial" and seen["lit"] > 0.2


def test_the_report_sorts_opens_and_fits_a_phone(site, tmp_path):
    seen = told(visit(site.probe("report_phone.html", "/report.html", REPORT, 390, 844), tmp_path / "profile"))
    assert seen["width"] <= 390 and seen["wide"] <= 390
    assert seen["worst_first"] == ["t5", "t2"] and seen["open"] == [True, False]
    (up, low_first), (down, high_first) = seen["ascending"], seen["descending"]
    assert (up, down) == ("ascending", "descending") and low_first == high_first[::-1] == sorted(low_first, key=float)
    assert seen["large"] == [True, False]
    assert seen["drawn"] == 2 * 3 * 3 * 2  # two cases, three organs, three views, the reference beside the prediction
    assert seen["viewer"] == [[False, link] for link in ("/", "/#case=t5", "/#case=t2")]


def test_the_served_report_holds_the_viewer(site, tmp_path):
    """It opens at the worst case, draws, and shows the case whose link is clicked; the page stays."""
    seen = told(visit(site.probe("in_page.html", "/report.html", IN_PAGE, 1100, 800), tmp_path / "profile"))
    assert seen["first"] == "#case=t5" and seen["second"] == "#case=t2" and seen["page"] == "/report.html" and seen["leaves"] == "_top"
    assert seen["lit"] > 0.1 and seen["shown"]


@pytest.mark.parametrize("width, lines", [(1280, 3), (390, 5)])
def test_names_stay_in_one_line_beside_long_remarks(site, predictions, tmp_path, width, lines):
    seen = told(visit(site.probe(f"names_{width}.html", predictions, NAMES, width, 844), tmp_path / "profile"))
    assert seen["width"] <= width and seen["names"] == [1] * 12 and seen["cases"] < width / 1.5  # of three cases, in both tables
    assert seen["remarks"] <= lines and seen["farthest"] <= width and seen["narrowest"] > 180


def test_the_report_read_from_a_file(folder, tmp_path):
    opened = visit((folder / "report.html").as_uri(), tmp_path / "profile", milliseconds=3000)
    assert not complaints(opened), opened.console
    assert '<div class="served" hidden="">' in opened.dom and '<span class="from-file">' in opened.dom and "<iframe" in opened.dom and 'src="/"' not in opened.dom
    assert opened.dom.count("<svg") == 2 * 3 * 3 * 2


def test_an_error_on_the_console_would_be_seen(site, tmp_path):
    """What the other tests rest on: a script's complaint, and an error that it does not catch."""
    script = """
      w.console.error("odd");
      setTimeout(() => undefinedThing());
      await new Promise((go) => addEventListener("error", go, { once: true }));
    """
    opened = visit(site.probe("errors.html", "/report.html", script, 800, 520), tmp_path / "profile")
    odd, uncaught = complaints(opened)
    assert odd.startswith('"odd"') and "undefinedThing is not defined" in uncaught


def test_a_prediction_s_report_read_from_a_file(site, predictions, tmp_path):
    opened = visit((site.folder / predictions.lstrip("/")).as_uri(), tmp_path / "profile", milliseconds=3000)
    assert not complaints(opened), opened.console
    assert "HN_0522c0017" in opened.dom and '<div class="served" hidden="">' in opened.dom


def test_the_page_names_nothing_outside():
    """The viewer's own files; NiiVue's is checked by its sum, and kept in by the server's Content-Security-Policy."""
    for name in ("index.html", "viewer.js", "viewer.css"):
        assert not re.findall(r"https?:|//[a-z]+\.", (WEB / name).read_text(encoding="utf-8"), re.IGNORECASE), name


def test_niivue_is_the_file_that_was_looked_at():
    """Its sum stands in the script that fetches it, and in the licences that go with it."""
    found = durable.sha256(WEB / "niivue.umd.js")
    script = Path(__file__).parents[2] / "scripts" / "vendor_niivue.sh"
    assert f"sha256={found}\n" in script.read_text(encoding="utf-8") and found in (WEB / "niivue.LICENSE.txt").read_text(encoding="utf-8")
