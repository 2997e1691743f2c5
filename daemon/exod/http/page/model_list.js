// Models that nodes fetch: each node's share, rate and time left, with a button to pause and to go on.

import { bytes, duration, element } from "/page/texts.js";

const MOST_MODELS = 20;
const STILL = new Set(["waiting", "fetching"]);

export class ModelList {
  constructor(act) {
    this.act = act;
    this.section = document.getElementById("models");
    this.list = document.getElementById("model-list");
    this.text = document.getElementById("models-text");
    this.shown = new Map(); // model -> its parts on the page, changed in place: a button keeps its focus
    this.told = "";
  }

  show(lines, allowed) {
    const names = [...new Set(lines.map((line) => line.model))].slice(0, MOST_MODELS);
    this.section.hidden = !names.length;
    for (const [name, { box }] of this.shown) {
      if (!names.includes(name)) { box.remove(); this.shown.delete(name); }
    }
    for (const name of names) this.showModel(name, lines.filter((line) => line.model === name), allowed);
    this.tell(names.map((name) => `${name}: ${lines.filter((line) => line.model === name).map((line) => `${line.node_name} ${stateText(line)}`).join(", ")}`).join(". "));
  }

  // States alone: a screen reader hears of each change, not of each percent.
  tell(text) {
    if (text === this.told) return;
    this.told = text;
    this.text.textContent = text;
  }

  showModel(name, lines, allowed) {
    const parts = this.shown.get(name) ?? this.make(name);
    const nodes = new Set(lines.map((line) => line.node));
    for (const [node, { entry }] of parts.rows) {
      if (!nodes.has(node)) { entry.remove(); parts.rows.delete(node); }
    }
    for (const line of lines) this.showNode(parts, line);
    parts.pause.hidden = !allowed || !lines.some((line) => STILL.has(line.state));
    parts.goOn.hidden = !allowed || !lines.some((line) => line.state === "paused" || line.state === "failed");
  }

  make(name) {
    const box = element("div", "", { class: "model" });
    const rows = element("ul");
    const pause = element("button", "Pause", { type: "button", "aria-label": `Pause ${name}` });
    const goOn = element("button", "Go on", { type: "button", "aria-label": `Go on with ${name}` });
    pause.addEventListener("click", async () => this.tell(await this.act("pause", { model: name })));
    goOn.addEventListener("click", async () => this.tell(await this.act("pull", { model: name })));
    box.append(element("h3", name), rows, pause, goOn);
    this.list.append(box);
    const parts = { box, list: rows, rows: new Map(), pause, goOn };
    this.shown.set(name, parts);
    return parts;
  }

  showNode(parts, line) {
    if (!parts.rows.has(line.node)) {
      const entry = element("li");
      const bar = element("progress", "", { max: "1" });
      const made = { entry, bar, name: element("span"), what: element("span", "", { class: "what" }) };
      entry.append(made.name, bar, made.what);
      parts.list.append(entry);
      parts.rows.set(line.node, made);
    }
    const { entry, bar, name, what } = parts.rows.get(line.node);
    entry.className = line.state;
    name.textContent = line.node_name;
    bar.setAttribute("aria-label", `${line.model} on ${line.node_name}`);
    if (line.state === "here") bar.value = 1;
    else if (line.total_bytes) bar.value = line.done_bytes / line.total_bytes;
    else if (line.state === "fetching") bar.removeAttribute("value");
    else bar.value = 0;
    what.textContent = lineText(line);
  }
}

function stateText({ state, code }) {
  return code ? `${state} (${code})` : state;
}

function lineText(line) {
  const facts = [line.state];
  if (line.total_bytes) facts.push(`${Math.floor(100 * line.done_bytes / line.total_bytes)}% of ${bytes(line.total_bytes)}`);
  if (line.bytes_per_s) facts.push(`${(line.bytes_per_s / 1e6).toFixed(1)} MB/s`);
  if (line.left_s !== null) facts.push(`${duration(line.left_s)} left`);
  if (line.sources.length) facts.push(`from ${line.sources.join(", ")}`);
  if (line.text) facts.push(line.text);
  return facts.join(", ");
}
