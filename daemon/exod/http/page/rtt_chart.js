// RTT of every path over time, on a logarithmic scale, with switches of the link marked. Bounded: one hour.

import { duration, milliseconds, shorten, svg } from "/page/texts.js";

const KEPT_S = 3600;
const EVERY_S = 5; // as the daemon keeps them; a path that dies or comes back has a sample of its own
const MOST_SAMPLES = 720; // of one path: an hour
const MOST_SERIES = 24;
const MOST_SWITCHES = 50;
const WIDE = { width: 820, height: 240, left: 58, right: 160, top: 10, bottom: 22 };
const NARROW = { width: 400, height: 260, left: 52, right: 120, top: 10, bottom: 22 };
const NARROW_PX = 560; // below it the figures of the wide one could not be read

export class RttHistory {
  constructor() {
    this.series = new Map(); // peer and path -> {name, kind, samples: [[at, ms]]}
    this.switches = []; // [at, text]
    this.selected = new Map();
    this.limitMs = null; // mesh.degraded_ms: a path above it is left
    this.shownS = 600;
  }

  // What the daemon remembers of the time before this page was opened.
  seed({ at, traces }) {
    for (const trace of traces.slice(0, MOST_SERIES)) {
      const first = at - (trace.rtt_ms.length - 1) * trace.every_s;
      this.series.set(`${trace.peer} ${trace.path}`, {
        name: `${trace.interface} ${trace.peer_name}`, kind: trace.kind,
        samples: trace.rtt_ms.slice(-MOST_SAMPLES).map((ms, index, kept) => [first + (trace.rtt_ms.length - kept.length + index) * trace.every_s, ms]),
      });
    }
    for (const peer of new Set(traces.map((trace) => trace.peer))) this.seedSwitches(at, traces.filter((trace) => trace.peer === peer));
    this.switches.sort((one, other) => one[0] - other[0]).splice(0, this.switches.length - MOST_SWITCHES);
  }

  seedSwitches(at, traces) {
    let after = null; // the path in use one sample later
    for (let back = 0; back < Math.max(...traces.map((trace) => trace.in_use.length)); back += 1) {
      const used = traces.find((trace) => trace.in_use.at(-1 - back) === "1") ?? null;
      if (back > 0 && used?.path !== after?.path) {
        this.switches.push([at - (back - 1) * traces[0].every_s, `${traces[0].peer_name}: ${after ? after.interface : "no path"}`]);
      }
      after = used;
    }
  }

  add(live) {
    this.limitMs = live.degraded_ms;
    for (const link of live.status.links) {
      const before = this.selected.get(link.peer);
      if (before !== undefined && before !== link.selected) {
        const path = link.paths.find((one) => one.selected);
        this.switches.push([live.at, `${link.peer_name}: ${path ? path.interface : "no path"}`]);
        this.switches.splice(0, this.switches.length - MOST_SWITCHES);
      }
      this.selected.set(link.peer, link.selected);
      for (const path of link.paths) this.addSample(live, link, path);
    }
    this.forget(live.at - KEPT_S);
  }

  addSample(live, link, path) {
    const name = `${link.peer} ${path.id}`;
    if (!this.series.has(name)) {
      if (this.series.size >= MOST_SERIES) return;
      this.series.set(name, { name: `${path.interface} ${link.peer_name}`, kind: path.kind, samples: [] });
    }
    const samples = this.series.get(name).samples;
    const ms = path.state === "dead" ? null : path.rtt_ms;
    const newest = samples.at(-1);
    const isSame = samples.length > 1 && (newest[1] === null) === (ms === null);
    if (isSame && live.at - samples.at(-2)[0] < EVERY_S) samples.pop();
    samples.push([live.at, ms]);
    if (samples.length > MOST_SAMPLES) samples.shift();
  }

  forget(before) {
    for (const [name, { samples }] of this.series) {
      while (samples.length && samples[0][0] < before) samples.shift();
      if (!samples.length) this.series.delete(name);
    }
    while (this.switches.length && this.switches[0][0] < before) this.switches.shift();
    const peers = new Set([...this.series.keys()].map((name) => name.split(" ")[0]));
    for (const peer of this.selected.keys()) if (!peers.has(peer)) this.selected.delete(peer);
  }
}

export function drawChart(place, history, now) {
  const view = place.clientWidth > 0 && place.clientWidth < NARROW_PX ? NARROW : WIDE;
  const chart = svg("svg", { viewBox: `0 0 ${view.width} ${view.height}`, role: "img" });
  const series = [...history.series.values()].map((one) => ({ ...one, samples: since(one.samples, now - history.shownS) }));
  const values = series.flatMap(({ samples }) => samples.map((one) => one[1])).filter(Boolean);
  if (!values.length) {
    chart.append(svg("title", {}, "no path is measured"));
    chart.append(svg("text", { class: "small", x: view.left, y: 60 }, "No path is measured yet: no peer is known."));
    place.replaceChildren(chart);
    return;
  }
  const scale = scales(values, series, history.limitMs, now, view);
  chart.append(svg("title", {}, `RTT of ${series.length} paths over ${duration(scale.spanS)}`));
  drawGrid(chart, scale);
  drawSwitches(chart, since(history.switches, now - scale.spanS), scale);
  drawSeries(chart, series, scale);
  place.replaceChildren(chart);
}

// Of pairs that begin with their time, those of `first` and later.
function since(pairs, first) {
  return pairs.filter(([at]) => at >= first);
}

function scales(values, series, limitMs, now, view) {
  const first = Math.min(...series.map(({ samples }) => samples[0]?.[0] ?? now));
  const spanS = Math.max(30, now - first);
  const low = Math.log10(Math.max(0.01, Math.min(...values, limitMs) / 1.5));
  const high = Math.log10(Math.max(...values, limitMs) * 1.5);
  const inner = { width: view.width - view.left - view.right, height: view.height - view.top - view.bottom };
  return {
    view, spanS, low, high, limitMs,
    x: (at) => view.left + inner.width * (1 - (now - at) / spanS),
    y: (ms) => view.top + inner.height * (1 - (Math.log10(Math.max(ms, 0.001)) - low) / (high - low)),
  };
}

function drawGrid(chart, scale) {
  const { view } = scale;
  const right = view.width - view.right;
  for (let power = Math.ceil(scale.low); power <= Math.floor(scale.high); power += 1) {
    const y = scale.y(10 ** power);
    chart.append(
      svg("line", { class: "grid", x1: view.left, x2: right, y1: y, y2: y }),
      svg("text", { class: "small", x: view.left - 6, y: y + 4, "text-anchor": "end" }, `${10 ** power} ms`),
    );
  }
  const limit = scale.y(scale.limitMs);
  chart.append(
    svg("line", { class: "limit", x1: view.left, x2: right, y1: limit, y2: limit }),
    svg("text", { class: "small", x: view.left - 6, y: limit + 4, "text-anchor": "end" }, `${scale.limitMs} ms`),
    svg("text", { class: "small", x: view.left, y: view.height - 6 }, `${duration(scale.spanS)} ago`),
    svg("text", { class: "small", x: right, y: view.height - 6, "text-anchor": "end" }, "now"),
  );
}

function drawSwitches(chart, switches, scale) {
  const { view } = scale;
  for (const [at, text] of switches) {
    const mark = svg("line", { class: "switch", x1: scale.x(at), x2: scale.x(at), y1: view.top, y2: view.height - view.bottom });
    mark.append(svg("title", {}, `switched: ${text}`));
    chart.append(mark);
  }
}

function drawSeries(chart, series, scale) {
  const { view } = scale;
  const kinds = new Map();
  const ends = [];
  for (const { name, kind, samples } of series) {
    if (!samples.length) continue;
    const order = kinds.get(kind) ?? 0;
    kinds.set(kind, order + 1);
    let d = "";
    let pen = "M";
    for (const [at, ms] of samples) {
      if (ms === null) { pen = "M"; continue; }
      d += `${pen}${scale.x(at).toFixed(1)} ${scale.y(ms).toFixed(1)}`;
      pen = "L";
    }
    chart.append(svg("path", { class: `series ${kind} ${["", "second", "third"][Math.min(order, 2)]}`, d }));
    const last = samples.at(-1)[1];
    ends.push({ y: last === null ? view.height - view.bottom : scale.y(last), text: `${name} ${last === null ? "dead" : milliseconds(last)}` });
  }
  ends.sort((one, other) => one.y - other.y);
  const rows = spread(ends.map(({ y }) => y + 4), view.height - view.bottom + 4);
  ends.forEach(({ text }, index) => {
    const letters = Math.floor((view.right - 6) / 6.2);
    chart.append(svg("text", { class: "small", x: view.width - view.right + 6, y: rows[index] }, shorten(text, letters)));
  });
}

// Moves sorted heights apart, so that labels do not cover one another, and none lies below `bottom`.
function spread(heights, bottom) {
  const row = 14;
  const moved = [];
  for (const y of heights) moved.push(Math.max(y, (moved.at(-1) ?? -row) + row));
  for (let index = moved.length - 1, limit = bottom; index >= 0; index -= 1, limit -= row) {
    moved[index] = Math.min(moved[index], limit);
  }
  return moved;
}
