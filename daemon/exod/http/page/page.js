// Puts each state of the daemon on the screen.

import { act, Actions } from "/page/actions.js";
import { Chat } from "/page/chat.js";
import { EventList } from "/page/event_list.js";
import { drawMesh, share } from "/page/mesh_picture.js";
import { ModelList } from "/page/model_list.js";
import { drawChart, RttHistory } from "/page/rtt_chart.js";
import { drawSpeed, SpeedHistory } from "/page/speed_chart.js";
import { follow } from "/page/stream.js";
import { bytes, duration, element, milliseconds, percent, shorten } from "/page/texts.js";

const byId = (id) => document.getElementById(id);
const history = new RttHistory();
const speeds = new SpeedHistory();
const models = new ModelList(act);
const events = new EventList(byId("events"), byId("event-filter"));
const actions = new Actions();
const HASH = /^([0-9a-f]{8})[0-9a-f]{8,}$/; // of a plan or a node that is gone: its beginning tells it apart
let newest = null;
let drawing = false;

new Chat(() => newest?.status.engine);
byId("chart-span").addEventListener("change", (event) => { history.shownS = Number(event.target.value); draw(); });
events.nameOf = (id) => newest?.status.nodes.find((node) => node.id === id)?.name ?? String(id).replace(HASH, "$1");

follow({
  state(live) {
    newest = live;
    history.add(live);
    speeds.add(live);
    byId("connection").textContent = "";
    draw();
  },
  log: (event) => events.add(event),
  past: (told) => history.seed(told),
  lost(text) {
    byId("connection").textContent = `Not connected: ${text}. Trying again.`;
    byId("health").className = "lost";
    setText("health-text", "what is shown is old");
  },
});
addEventListener("resize", draw);
document.addEventListener("visibilitychange", draw);

function draw() {
  if (drawing || !newest) return;
  drawing = true;
  // Not by animation frames alone: a tab in the background has none, and must be true when it is looked at.
  setTimeout(() => { drawing = false; show(newest); }, 0);
}

function show(live) {
  const { status } = live;
  document.title = `${status.health} – ${status.cluster.name}`;
  if (document.hidden) return; // nobody sees more of it, and open pages should cost little; drawn when it is looked at
  setText("cluster", `${status.cluster.name} · ${status.node.name}`);
  byId("health").className = status.health;
  setText("health-text", status.health);
  showReasons(live);
  showNotes(live);
  drawMesh(byId("picture"), live);
  setText("mesh-text", meshText(status));
  showPaths(status);
  showEngine(live);
  showRequests(live);
  models.show(status.models, live.actions);
  actions.show(live.actions);
  drawChart(byId("chart"), history, live.at);
  drawSpeed(byId("speed"), speeds, live.at);
  setText("versions", `exod ${status.node.version}, up ${duration(status.node.uptime_s)}, MQTT ${status.mqtt.state}${status.mqtt.broker ? ` (${status.mqtt.broker})` : ""}${status.mqtt.text ? `: ${status.mqtt.text}` : ""}`);
}

// Only where it changed: a live region that is written again is read out again.
function setText(id, text) {
  if (byId(id).textContent !== text) byId(id).textContent = text;
}

const listsShown = new Map(); // by the id of a list, what it was made from

function isShown(id, ...values) {
  const key = JSON.stringify(values);
  const same = listsShown.get(id) === key;
  listsShown.set(id, key);
  return same;
}

function showReasons({ status, cures, severities }) {
  if (isShown("reasons", status.health, status.reasons, status.crashes)) return;
  const rows = status.reasons.map(({ text, code }) => row(text, `${severities[code]}: ${code}`, cures[code]));
  rows.push(...status.crashes.map((crash) => row(crash.text, "crash.seen", crash.cure)));
  byId("reasons").hidden = !rows.length;
  byId("reasons").className = status.health;
  setText("reasons-title", status.reasons.length ? "What is wrong" : "What crashed");
  byId("reason-list").replaceChildren(...rows);
}

function showNotes({ status, cures }) {
  if (isShown("notes", status.notes)) return;
  byId("notes").hidden = !status.notes.length;
  byId("note-list").replaceChildren(...status.notes.map(({ text, code }) => row(text, code, cures[code])));
}

function row(text, code, cure = "") {
  const entry = element("li", text);
  entry.append(" ", element("code", code));
  if (cure) entry.append(element("p", cure, { class: "cure" }));
  return entry;
}

function meshText({ mesh, nodes }) {
  const name = (id) => nodes.find((node) => node.id === id)?.name ?? id;
  if (mesh.epoch === null) return `${mesh.state}: no plan yet`;
  const ring = mesh.ring.map(name).join(" → ");
  const change = mesh.last_change;
  const took = change?.detect_ms != null ? ` (noticed after ${Math.round(change.detect_ms)} ms)` : "";
  return `${mesh.state}, epoch ${mesh.epoch}, coordinator ${name(mesh.coordinator)}; ring ${ring || "empty"}.`
    + (change ? ` Last change: ${change.reason}${took}` : "");
}

function showPaths(status) {
  const rows = status.links.flatMap((link) => link.paths.map((path) => {
    const line = element("tr");
    const state = path.selected ? `${path.state}, in use` : path.state;
    for (const text of [link.peer_name, path.interface, path.kind, state]) line.append(element("td", text));
    for (const text of [milliseconds(path.rtt_ms), milliseconds(path.rtt_p90_ms), percent(path.loss)]) line.append(element("td", text, { class: "figure" }));
    line.append(element("td", path.why));
    return line;
  }));
  byId("paths").tBodies[0].replaceChildren(...rows);
}

function showEngine({ status, engine }) {
  const summary = status.engine;
  const rows = [
    ["Model", summary.model ?? "none"],
    ["State", summary.text ? `${summary.state}: ${summary.text}` : summary.state],
    ["Speed", speedText(summary)],
    ["Requests", `${summary.active} running, ${summary.waiting} waiting`],
    ["Sync", summary.sync.reason ? `${summary.sync.mode}: ${summary.sync.reason}` : summary.sync.mode],
    ["Last gap", summary.last_gap_ms === null ? "–" : milliseconds(summary.last_gap_ms)],
  ];
  if (engine.max_context_tokens) rows.push(["Context", `${engine.max_context_tokens} tokens`]);
  // Of a node that says no more of it than its rank does; others are among the models.
  for (const download of summary.downloads.filter((one) => !status.models.some((line) => line.node === one.node))) {
    const node = status.nodes.find((one) => one.id === download.node)?.name ?? download.node;
    rows.push([`Download, ${node}`, `${bytes(download.done_bytes)} of ${download.total_bytes ? bytes(download.total_bytes) : "?"}`]);
  }
  byId("engine").replaceChildren(...rows.flatMap(([name, text]) => [element("dt", name), element("dd", text)]));
  byId("ranks").tBodies[0].replaceChildren(...engine.ranks.map((rank) => {
    const line = element("tr");
    for (const text of [String(rank.rank), rank.node_name, share(rank), rank.text ? `${rank.state}: ${rank.text}` : rank.state, bytes(rank.memory_bytes)]) line.append(element("td", text));
    return line;
  }));
}

function speedText({ tokens_per_s: speed, baseline_tokens_per_s: best }) {
  if (speed === null) return best ? `best ${best.toFixed(1)} tokens/s` : "–"; // nothing is computed
  return `${speed.toFixed(1)} tokens/s${best ? ` (best ${best.toFixed(1)})` : ""}`;
}

const NO_LIMIT = 32768; // what the API takes where a client names no limit

function showRequests({ at, requests }) {
  byId("requests-box").hidden = !requests.length;
  byId("requests").tBodies[0].replaceChildren(...requests.map((one) => {
    const line = element("tr");
    const tokens = one.max_tokens === NO_LIMIT ? String(one.tokens) : `${one.tokens} of ${one.max_tokens} at most`;
    line.append(element("td", shorten(one.id, 18)), element("td", duration(at - one.since), { class: "figure" }), element("td", tokens, { class: "figure" }));
    line.append(element("td", one.text || "answering"));
    return line;
  }));
}
