// Tokens a second and the length of the queue over the last ten minutes. Bounded.

import { duration, svg } from "/page/texts.js";

const KEPT_S = 600;
const MOST_SAMPLES = 720; // states come about once a second
const VIEW = { width: 400, height: 84, left: 6, right: 6, top: 16, bottom: 16 };

export class SpeedHistory {
  constructor() {
    this.samples = []; // [at, tokens/s or null where nothing is generated, requests waiting]
  }

  add({ at, status: { engine } }) {
    const speed = engine.state === "generating" ? engine.tokens_per_s : null;
    this.samples.push([at, speed, engine.waiting]);
    while (this.samples[0][0] < at - KEPT_S || this.samples.length > MOST_SAMPLES) this.samples.shift();
  }
}

// Nothing where nothing was generated.
export function drawSpeed(place, { samples }, now) {
  const fastest = Math.max(...samples.map((one) => one[1] ?? 0));
  if (!(fastest > 0)) {
    place.replaceChildren();
    return;
  }
  const longest = Math.max(0, ...samples.map((one) => one[2]));
  const spanS = Math.max(30, now - samples[0][0]);
  const x = (at) => VIEW.left + (VIEW.width - VIEW.left - VIEW.right) * (1 - (now - at) / spanS);
  const y = (share) => VIEW.height - VIEW.bottom - (VIEW.height - VIEW.top - VIEW.bottom) * share;
  const chart = svg("svg", { viewBox: `0 0 ${VIEW.width} ${VIEW.height}`, role: "img" });
  const text = `tokens/s, at most ${fastest.toFixed(1)}${longest ? `; dashed: requests waiting, at most ${longest}` : ""}`;
  chart.append(
    svg("title", {}, `${text}, over ${duration(spanS)}`),
    svg("line", { class: "grid", x1: VIEW.left, x2: VIEW.width - VIEW.right, y1: y(0), y2: y(0) }),
    svg("path", { class: "speed", d: line(samples.map((one) => [x(one[0]), one[1] === null ? null : y(one[1] / fastest)])) }),
    svg("text", { class: "small", x: VIEW.left, y: 11 }, text),
    svg("text", { class: "small", x: VIEW.left, y: VIEW.height - 3 }, `${duration(spanS)} ago`),
    svg("text", { class: "small", x: VIEW.width - VIEW.right, y: VIEW.height - 3, "text-anchor": "end" }, "now"),
  );
  if (longest) chart.append(svg("path", { class: "queue", d: line(samples.map((one) => [x(one[0]), y(one[2] / longest)])) }));
  place.replaceChildren(chart);
}

function line(points) {
  let d = "";
  let pen = "M";
  for (const [x, y] of points) {
    if (y === null) { pen = "M"; continue; }
    d += `${pen}${x.toFixed(1)} ${y.toFixed(1)}${pen === "M" ? "h0" : ""}`; // a sample alone is a dot
    pen = "L";
  }
  return d;
}
