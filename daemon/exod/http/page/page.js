// Puts each state of the daemon on the screen.

import { Actions } from "/page/actions.js";
import { Chat } from "/page/chat.js";
import { EventList } from "/page/event_list.js";
import { drawMesh } from "/page/mesh_picture.js";
import { drawChart, RttHistory } from "/page/rtt_chart.js";
import { follow } from "/page/stream.js";
import { bytes, duration, element, milliseconds, percent } from "/page/texts.js";

const byId = (id) => document.getElementById(id);
const history = new RttHistory();
const events = new EventList(byId("events"), byId("event-filter"));
const actions = new Actions();
const HASH = /^([0-9a-f]{8})[0-9a-f]{8,}$/; // of a plan or a node that is gone: its beginning tells it apart
let newest = null;
let drawing = false;

new Chat();
events.nameOf = (id) => newest?.status.nodes.find((node) => node.id === id)?.name ?? String(id).replace(HASH, "$1");

follow({
  state(live) {
    newest = live;
    history.add(live);
    byId("connection").textContent = "";
    draw();
  },
  log: (event) => events.add(event),
  lost(text) {
    byId("connection").textContent = `Not connected: ${text}. Trying again.`;
    byId("health").className = "lost";
    setText("health-text", "what is shown is old");
  },
});
addEventListener("resize", draw);

function draw() {
  if (drawing || !newest) return;
  drawing = true;
  // Not by animation frames alone: a tab in the background has none, and must be true when it is looked at.
  setTimeout(() => { drawing = false; show(newest); }, 0);
}

function show(live) {
  const { status } = live;
  document.title = `${status.health} – ${status.cluster.name}`;
  setText("cluster", `${status.cluster.name} · ${status.node.name}`);
  byId("health").className = status.health;
  setText("health-text", status.health);
  showReasons(status, live.cures);
  drawMesh(byId("picture"), live);
  setText("mesh-text", meshText(status));
  showPaths(status);
  showEngine(live);
  actions.show(live.actions);
  drawChart(byId("chart"), history, live.at);
  setText("versions", `exod ${status.node.version}, up ${duration(status.node.uptime_s)}, MQTT ${status.mqtt.state}${status.mqtt.broker ? ` (${status.mqtt.broker})` : ""}${status.mqtt.text ? `: ${status.mqtt.text}` : ""}`);
}

// Only where it changed: a live region that is written again is read out again.
function setText(id, text) {
  if (byId(id).textContent !== text) byId(id).textContent = text;
}

let reasonsShown = "";

function showReasons(status, cures) {
  const key = JSON.stringify([status.health, status.reasons, status.crashes]);
  if (key === reasonsShown) return;
  reasonsShown = key;
  const rows = status.reasons.map((reason) => row(reason.text, reason.code, cures[reason.code]));
  rows.push(...status.crashes.map((crash) => row(`${crash.text} ${crash.cure}`, "crash.seen")));
  byId("reasons").hidden = !rows.length;
  byId("reasons").className = status.health;
  setText("reasons-title", status.health === "healthy" ? "Good to know" : "What is wrong");
  byId("reason-list").replaceChildren(...rows);
}

function row(text, code, cure = "") {
  const entry = element("li", text);
  entry.append(element("code", code));
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
    ["Speed", summary.tokens_per_s === null ? "–" : `${summary.tokens_per_s.toFixed(1)} tokens/s`],
    ["Requests", `${summary.requests_active} running, ${summary.requests_waiting} waiting`],
    ["Sync", `${summary.sync.mode}: ${summary.sync.reason}`],
    ["Last gap", summary.last_gap_ms === null ? "–" : milliseconds(summary.last_gap_ms)],
  ];
  if (engine.max_context_tokens) rows.push(["Context", `${engine.max_context_tokens} tokens`]);
  for (const download of summary.downloads) {
    const node = status.nodes.find((one) => one.id === download.node)?.name ?? download.node;
    rows.push([`Download, ${node}`, `${bytes(download.done_bytes)} of ${download.total_bytes ? bytes(download.total_bytes) : "?"}`]);
  }
  byId("engine").replaceChildren(...rows.flatMap(([name, text]) => [element("dt", name), element("dd", text)]));
  byId("ranks").tBodies[0].replaceChildren(...engine.ranks.map((rank) => {
    const line = element("tr");
    const layers = `${rank.layers[0]}–${rank.layers[1] - 1}`;
    for (const text of [String(rank.rank), rank.node_name, layers, rank.text ? `${rank.state}: ${rank.text}` : rank.state, bytes(rank.memory_bytes)]) line.append(element("td", text));
    return line;
  }));
}
