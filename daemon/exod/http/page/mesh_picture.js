// The mesh as a picture: nodes as boxes, every path as a line, the one in use bold, dead ones dashed.

import { bytes, milliseconds, shorten, svg } from "/page/texts.js";

const BOX = { width: 190, height: 92 };
const NARROW = 560; // px: below it two nodes stand above each other
const SPREAD = 46; // between two paths of a pair, so that their labels do not touch
const PATHS_SHOWN = 8; // of one pair: more cannot be told apart
const ROUND = 8; // nodes that have room in a circle; with more the picture grows
const LONGEST_LABEL = 28; // characters: interfaces of far edges are named by other machines

export function drawMesh(place, live) {
  const narrow = place.clientWidth > 0 && place.clientWidth < NARROW;
  const nodes = live.status.nodes;
  const size = canvas(nodes.length, narrow, live.status.links);
  const at = positions(nodes, size, narrow);
  const picture = svg("svg", { viewBox: frame(at, size), role: "img" });
  picture.append(svg("title", {}, summary(live)));
  const labels = [];
  for (const link of live.status.links) drawLink(picture, labels, at, live, link);
  drawFarEdges(picture, labels, at, live.status);
  for (const node of nodes) drawNode(picture, at.get(node.id), node, live);
  picture.append(...labels);
  place.replaceChildren(picture);
}

function canvas(count, narrow, links) {
  const most = Math.max(1, ...links.map((link) => Math.min(PATHS_SHOWN, link.paths.length)));
  if (count <= 1) return { width: narrow ? 360 : 820, height: 150 };
  if (count === 2) {
    const fan = most * SPREAD + 30;
    return narrow ? { width: 360, height: 460 } : { width: 820, height: Math.max(190, fan) };
  }
  const size = narrow ? { width: 420, height: 560 } : { width: 820, height: 470 };
  const grown = Math.max(1, count / ROUND);
  return { width: grown * size.width, height: grown * size.height };
}

// Of a circle, only as much height as its nodes take: three leave the lowest part free.
function frame(at, size) {
  if (at.size <= 2) return `0 0 ${size.width} ${size.height}`;
  const heights = [...at.values()].map(({ y }) => y);
  const room = BOX.height / 2 + 8;
  return `0 ${Math.min(...heights) - room} ${size.width} ${Math.max(...heights) - Math.min(...heights) + 2 * room}`;
}

function positions(nodes, { width, height }, narrow) {
  const found = new Map();
  const middle = { x: width / 2, y: height / 2 };
  if (nodes.length === 1) found.set(nodes[0].id, middle);
  else if (nodes.length === 2) {
    nodes.forEach((node, index) => {
      const end = index === 0 ? -1 : 1;
      found.set(node.id, narrow
        ? { x: middle.x, y: middle.y + end * (height / 2 - BOX.height / 2 - 6) }
        : { x: middle.x + end * (width / 2 - BOX.width / 2 - 8), y: middle.y });
    });
  } else {
    const radius = { x: width / 2 - BOX.width / 2 - 8, y: height / 2 - BOX.height / 2 - 8 };
    nodes.forEach((node, index) => {
      const angle = 2 * Math.PI * index / nodes.length - Math.PI / 2;
      found.set(node.id, { x: middle.x + radius.x * Math.cos(angle), y: middle.y + radius.y * Math.sin(angle) });
    });
  }
  return found;
}

function drawLink(picture, labels, at, live, link) {
  const from = at.get(live.status.node.id);
  const to = at.get(link.peer);
  if (!from || !to) return;
  const paths = link.paths.slice(0, PATHS_SHOWN);
  paths.forEach((path, index) => {
    const text = path.state === "dead" ? `${path.interface} dead`
      : `${path.interface} ${milliseconds(path.rtt_ms)}${path.state === "degraded" ? ", degraded" : ""}`;
    const classes = `path ${path.kind} ${path.state} ${path.selected ? "used" : "spare"}`;
    const line = curve(from, to, (index - (paths.length - 1) / 2) * SPREAD, classes, `${text}: ${path.why}`);
    picture.append(line.shape);
    labels.push(label(line.at(labelPlace(from, to, index, paths.length)), text));
  });
}

// Edges of the ring between two other nodes: this node does not measure them, it knows the plan.
function drawFarEdges(picture, labels, at, status) {
  const drawn = new Set();
  for (const edge of status.mesh.edges) {
    const pair = [edge.from, edge.to].sort().join(" ");
    if (edge.from === status.node.id || edge.to === status.node.id || drawn.has(pair)) continue;
    drawn.add(pair);
    const from = at.get(edge.from);
    const to = at.get(edge.to);
    if (!from || !to) continue;
    const line = curve(from, to, 0, `path ${edge.kind} up used`, `${edge.interface}: an edge of the ring`);
    picture.append(line.shape);
    labels.push(label(line.at(0.5), edge.interface));
  }
}

function curve(from, to, offset, classes, title) {
  const length = Math.hypot(to.x - from.x, to.y - from.y) || 1;
  const normal = { x: -(to.y - from.y) / length, y: (to.x - from.x) / length };
  const side = normal.y < 0 || (normal.y === 0 && normal.x < 0) ? -1 : 1; // the same side whichever end draws
  const shift = offset * side;
  const bend = { x: (from.x + to.x) / 2 + 2 * shift * normal.x, y: (from.y + to.y) / 2 + 2 * shift * normal.y };
  const shape = svg("path", { class: classes, d: `M${from.x} ${from.y}Q${bend.x} ${bend.y} ${to.x} ${to.y}` });
  shape.append(svg("title", {}, title));
  const at = (t) => ({ // a point of the quadratic curve: t = 0 is `from`, 1 is `to`
    x: (1 - t) ** 2 * from.x + 2 * t * (1 - t) * bend.x + t ** 2 * to.x,
    y: (1 - t) ** 2 * from.y + 2 * t * (1 - t) * bend.y + t ** 2 * to.y,
  });
  return { shape, at };
}

// Where on its line a label stands: beside each other they would cover one another where the lines run upright.
function labelPlace(from, to, index, count) {
  if (Math.abs(to.x - from.x) > Math.abs(to.y - from.y) || count === 1) return 0.5;
  const room = 0.34;
  return 0.5 - room / 2 + room * index / (count - 1);
}

function label({ x, y }, whole) {
  const group = svg("g");
  const text = shorten(whole, LONGEST_LABEL);
  const width = 7.2 * [...text].length + 12;
  group.append(
    svg("rect", { class: "label-ground", x: x - width / 2, y: y - 10, width, height: 20, rx: 5 }),
    svg("text", { x, y: y + 4.5, "text-anchor": "middle" }, text),
  );
  return group;
}

function drawNode(picture, { x, y }, node, live) {
  const left = x - BOX.width / 2;
  const top = y - BOX.height / 2;
  const group = svg("g");
  group.append(
    svg("rect", { class: `node-box ${node.state} ${node.self ? "self" : ""}`, x: left, y: top, ...BOX, rx: 10 }),
    svg("text", { class: "name", x: left + 13, y: top + 25 }, shorten(node.name, 20)),
  );
  rowsOf(node, live).forEach((text, index) => {
    group.append(svg("text", { class: "small", x: left + 13, y: top + 45 + 17 * index }, shorten(text, 28)));
  });
  picture.append(group);
}

function rowsOf(node, live) {
  const rank = live.engine.ranks.find((one) => one.node === node.id);
  const state = node.state === "up" ? (node.self ? "this node" : "up") : node.left ? "left" : node.state;
  if (!rank) return [state, "hosts no layers"];
  const memory = rank.memory_bytes ? `, ${bytes(rank.memory_bytes)}` : "";
  const speed = live.status.engine.state === "generating" && rank.tokens_per_s ? `, ${rank.tokens_per_s.toFixed(1)} tokens/s` : "";
  return [`${state}${memory}`, `rank ${rank.rank}, ${share(rank)}`, `${rank.state}${speed}`];
}

// What of the model a rank has: a span of layers, or in a tensor group a part of each.
export function share({ layers, parts }) {
  if (layers[1] <= layers[0]) return "no layers yet";
  const span = `layers ${layers[0]}–${layers[1] - 1}`;
  return parts > 1 ? `1/${parts} of ${span}` : span;
}

function summary(live) {
  const { status } = live;
  const links = status.links.map((link) => {
    const used = link.paths.find((path) => path.selected);
    return used ? `${link.peer_name} over ${used.interface} at ${milliseconds(used.rtt_ms)}`
      : `no path to ${link.peer_name}`;
  });
  const nodes = status.nodes.map((node) => `${node.name}: ${rowsOf(node, live).join(", ")}`);
  return `${nodes.join(". ")}. ${links.join("; ") || "no peers"}`;
}
