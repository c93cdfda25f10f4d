"use strict";
// The viewer's page: NiiVue draws the scan and the label maps; this file holds the list of cases, the switches and the keys.

const WINDOWS = [["Soft tissue", -160, 240], ["Bone", -450, 1050], ["Brain", 0, 80]]; // name, lowest and highest HU
const LAYOUTS = [["All", 3], ["Axial", 0], ["Coronal", 1], ["Sagittal", 2], ["3D", 4]]; // name, NiiVue's slice type
const FILL = 0.45; // opacity: the scan shows through
const PALE = 0.55; // how far the reference's colour is moved to white, as in the report's pictures
const PHONE = matchMedia("(max-width: 720px)").matches;
const $ = (id) => document.getElementById(id);

const nv = new niivue.Niivue({
  backColor: [0, 0, 0, 1], fontColor: [1, 0.83, 0.3, 1], crosshairColor: [1, 0.83, 0.3, 0.6],
  crosshairWidth: 0.5, crosshairWidthUnit: "mm", crosshairGap: 6, // open in the middle, so that it hides no organ
  isRadiologicalConvention: true, sagittalNoseLeft: true, multiplanarShowRender: niivue.SHOW_RENDER.ALWAYS,
  dragMode: niivue.DRAG_MODE.windowing, dragAndDropEnabled: false, loadingText: "", logLevel: "error",
  viewModeHotKey: "", clipPlaneHotKey: "", cycleClipPlaneHotKey: "",
});
const state = {
  index: null, case: -1, wanted: -1, loaded: false, shown: [], maps: {}, window: 0,
  layout: PHONE ? 1 : 0, zoom: PHONE ? 2 : 1, // on a phone one plane, and of that the middle
};
let queue = Promise.resolve();

function say(text) {
  $("message").textContent = text;
}

// ---- what is drawn

function rgb(channel) {
  const colour = state.index.colours[channel - 1];
  return [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
}

// the voxels whose neighbours in the axial plane are not all of their organ; x runs fastest in a label map
function outline(map, nx, ny) {
  const edge = new map.constructor(map.length);
  for (let v = 0; v < map.length; v++) {
    const organ = map[v];
    if (!organ) continue;
    const x = v % nx, y = Math.floor(v / nx) % ny;
    const inside = x > 0 && x < nx - 1 && y > 0 && y < ny - 1;
    if (!inside || map[v - 1] !== organ || map[v + 1] !== organ || map[v - nx] !== organ || map[v + nx] !== organ) edge[v] = organ;
  }
  return edge;
}

function colourTable(name) {
  const table = { R: [0], G: [0], B: [0], A: [0], I: [0], labels: [""] };
  const visible = name === "prediction" || $("reference").checked;
  state.index.organs.forEach((organ, k) => {
    const pale = name === "reference" ? PALE : 0;
    const [r, g, b] = rgb(k + 1).map((part) => Math.round(part + (255 - part) * pale));
    table.R.push(r), table.G.push(g), table.B.push(b), table.I.push(k + 1), table.labels.push(organ);
    table.A.push(visible && state.shown[k] ? 255 : 0); // NiiVue knows only 0 and more than 0
  });
  return table;
}

function paint() {
  if (!state.loaded) return;
  for (const [name, map] of Object.entries(state.maps)) {
    const filled = name === "prediction" && $("filled").checked;
    if (!filled) map.edge ??= outline(map.whole, map.size[0], map.size[1]);
    map.volume.img = filled ? map.whole : map.edge;
    map.volume.opacity = filled ? FILL : 1;
    map.volume.setColormapLabel(colourTable(name));
  }
  const [, low, high] = WINDOWS[state.window];
  nv.volumes[0].cal_min = low, nv.volumes[0].cal_max = high;
  nv.updateGLVolume();
}

function goTo(mm) {
  nv.scene.crosshairPos = nv.mm2frac(mm, 0, true); // true: of an oblique scan, too, these are the world's millimetres
  nv.createOnLocationChange();
  zoom(1);
}

// The slices, larger or smaller, with the cross staying where it is.
function zoom(factor) {
  if (!state.loaded) return;
  state.zoom = Math.min(10, Math.max(1, state.zoom * factor));
  const [x, y, z] = nv.frac2mm(nv.scene.crosshairPos).map((mm) => (1 - state.zoom) * mm);
  nv.setPan2Dxyzmm([x, y, z, state.zoom]);
}

function showPlace(place) {
  if (!state.loaded) return;
  const [x, y, z] = place.mm;
  const [nx, ny] = state.maps.prediction.size;
  const [right, front, up] = place.vox; // counted from the left, the back and below, but a label map begins at the right and the front
  const voxel = nx - 1 - right + nx * (ny - 1 - front + ny * up);
  const names = Object.entries(state.maps).map(([name, map]) => [name, state.index.organs[map.whole[voxel] - 1]]);
  const told = names.filter(([, organ]) => organ).map(([name, organ]) => (names.length > 1 ? `${name} ${organ}` : organ));
  const at = [-x, -y, z].map((mm) => mm.toFixed(0).replace("-", "−").replace(/^−0$/, "0")).join(", ");
  $("place").textContent = [`${at} mm`, `${Math.round(place.values[0].value)} HU`.replace("-", "−"), ...told].join(" · ");
}

// ---- cases

// Loads one after the other: of several asked for in a hurry only the last is loaded.
function openCase(number) {
  state.wanted = (number + state.index.cases.length) % state.index.cases.length;
  queue = queue.then(() => (state.wanted === state.case ? null : load(state.wanted))).catch(fail);
  return queue;
}

async function load(number) {
  const chosen = state.index.cases[number];
  state.loaded = false, state.case = number, state.maps = {};
  say(`Loading ${chosen.case} …`);
  $("place").textContent = "";
  history.replaceState(null, "", "#case=" + encodeURIComponent(chosen.case));
  listOrgans(chosen);
  [...$("cases").querySelectorAll("button")].forEach((button, k) => button.setAttribute("aria-current", k === number));
  $("cases").children[number].scrollIntoView({ block: "nearest" });
  const names = chosen.reference ? ["prediction", "reference"] : ["prediction"];
  const [, low, high] = WINDOWS[state.window];
  const scan = { url: address(chosen.image), colormap: "gray", cal_min: low, cal_max: high };
  await nv.loadVolumes([scan, ...names.map((name) => ({ url: address(chosen[name]), opacity: 1 }))]);
  names.forEach((name, k) => {
    const volume = nv.volumes[k + 1];
    state.maps[name] = { volume, whole: volume.img, size: volume.hdr.dims.slice(1, 4) };
  });
  state.loaded = true;
  paint();
  const first = chosen.organs.find((o) => o.flags.length && o.centre_mm) ?? chosen.organs.find((o) => o.centre_mm);
  if (first) goTo(first.centre_mm);
  say("");
}

const address = (name) => "/viewer/" + encodeURIComponent(name);

function fail(error) {
  console.error(error);
  state.case = -1;
  say(`This case cannot be shown: ${error.message ?? error}`);
}

function listOrgans(chosen) {
  $("reference-row").hidden = !chosen.reference;
  $("organs").replaceChildren(...chosen.organs.map((organ, k) => {
    const item = document.createElement("li"), label = document.createElement("label"), box = document.createElement("input");
    box.type = "checkbox", box.checked = state.shown[k], box.dataset.organ = k;
    box.addEventListener("change", () => toggle(k, box.checked));
    const swatch = document.createElement("i"), text = document.createElement("span");
    swatch.className = "swatch", swatch.style.background = state.index.colours[k];
    text.append(organ.organ, small(organ.line), ...organ.flags.map((flag) => small(flag, "flag")));
    label.append(box, swatch, text);
    if (k < 20) label.append(key(k));
    item.append(label);
    if (organ.centre_mm) {
      const go = document.createElement("button");
      go.type = "button", go.textContent = "Go", go.setAttribute("aria-label", `Go to ${organ.organ}`);
      go.addEventListener("click", () => state.loaded && goTo(organ.centre_mm));
      item.append(go);
    }
    return item;
  }));
}

function small(text, kind = "") {
  const line = document.createElement("small");
  line.textContent = text, line.className = kind;
  return line;
}

function key(k) {
  const shown = document.createElement("kbd");
  shown.textContent = (k < 10 ? "" : "⇧") + ((k + 1) % 10);
  return shown;
}

// ---- switches

function toggle(k, on = !state.shown[k]) {
  if (k >= state.shown.length) return;
  state.shown[k] = on;
  sync();
}

function sync() {
  for (const box of document.querySelectorAll("#organs input")) box.checked = state.shown[box.dataset.organ];
  $("all").checked = state.shown.every(Boolean);
  paint();
}

function choose(where, number) {
  state[where] = number;
  [...$(where + "s").children].forEach((button, k) => button.setAttribute("aria-pressed", k === number));
  if (where === "layout") nv.setSliceType(LAYOUTS[number][1]);
  else paint();
}

function choices(where, list, tell) {
  $(where + "s").replaceChildren(...list.map((entry, k) => {
    const button = document.createElement("button");
    button.type = "button", button.textContent = entry[0], button.title = tell(entry);
    button.addEventListener("click", () => choose(where, k));
    return button;
  }));
  choose(where, state[where]);
}

const flip = (id) => ($(id).checked = !$(id).checked, $(id).dispatchEvent(new Event("change")));
const move = (x, y, z) => state.loaded && nv.moveCrosshairInVox(x, y, z); // steps to the patient's right, front and head
const KEYS = {
  ArrowUp: () => move(0, 0, 1), ArrowDown: () => move(0, 0, -1), ArrowLeft: () => move(1, 0, 0), ArrowRight: () => move(-1, 0, 0),
  PageUp: () => move(0, 1, 0), PageDown: () => move(0, -1, 0),
  "+": () => zoom(1.25), "=": () => zoom(1.25), "-": () => zoom(0.8),
  n: () => openCase(state.wanted + 1), p: () => openCase(state.wanted - 1),
  a: () => flip("all"), f: () => flip("filled"), r: () => flip("reference"),
  w: () => choose("window", (state.window + 1) % WINDOWS.length), v: () => choose("layout", (state.layout + 1) % LAYOUTS.length),
  "?": () => $("help").showModal(),
};

// In the capturing phase, and not passed on: NiiVue has keys of its own.
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("help").open || !state.index) return;
  const digit = /^Digit(\d)$/.exec(event.code)?.[1];
  const organ = digit && (() => toggle(((+digit + 9) % 10) + (event.shiftKey ? 10 : 0)));
  const act = organ || (KEYS[event.key] ?? KEYS[event.key.toLowerCase()]); // first: other keyboards have + and - on the digits' keys
  if (!act) return;
  event.preventDefault();
  event.stopPropagation();
  act();
}, true);

$("previous").addEventListener("click", KEYS.p);
$("next").addEventListener("click", KEYS.n);
$("larger").addEventListener("click", KEYS["+"]);
$("smaller").addEventListener("click", KEYS["-"]);
$("keys").addEventListener("click", KEYS["?"]);
$("all").addEventListener("change", () => (state.shown.fill($("all").checked), sync()));
$("filled").addEventListener("change", paint);
$("reference").addEventListener("change", paint);

// ---- start

function asked() {
  const name = decodeURIComponent(/^#case=(.*)$/.exec(location.hash)?.[1] ?? "");
  return Math.max(0, state.index.cases.findIndex((c) => c.case === name));
}

async function start() {
  if (!document.createElement("canvas").getContext("webgl2")) throw new Error("this browser has no WebGL 2; use a newer one");
  const answer = await fetch("/viewer/cases.json");
  if (!answer.ok) throw new Error(`the list of cases cannot be read (${answer.status})`);
  state.index = await answer.json();
  document.title = $("title").textContent = state.index.title;
  state.shown = state.index.organs.map(() => true);
  $("cases").replaceChildren(...state.index.cases.map((c, k) => {
    const item = document.createElement("li"), button = document.createElement("button");
    button.type = "button";
    button.append(c.case, small(c.line, c.flagged ? "flag" : ""));
    button.addEventListener("click", () => openCase(k));
    item.append(button);
    return item;
  }));
  await nv.attachToCanvas($("canvas"));
  nv.onLocationChange = showPlace;
  choices("window", WINDOWS, ([, low, high]) => `level ${(low + high) / 2}, width ${high - low} HU`);
  choices("layout", LAYOUTS, ([name]) => name);
  await openCase(asked());
}

addEventListener("hashchange", () => openCase(asked()));
start().catch(fail);
globalThis.viewer = { nv, state }; // for the browser's console, and for the tests
