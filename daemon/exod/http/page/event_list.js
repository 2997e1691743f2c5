// The event log, newest first, bounded.

import { clock, element } from "/page/texts.js";

const MOST_EVENTS = 300;
const PLAIN = new Set(["ts", "type", "subject"]);

export class EventList {
  constructor(list, filter) {
    this.list = list;
    this.filter = filter;
    this.nameOf = (id) => id;
    filter.addEventListener("change", () => {
      for (const entry of list.children) entry.hidden = !this.shows(entry.dataset.type);
    });
  }

  shows(type) {
    return type.startsWith(this.filter.value);
  }

  add(event) {
    document.getElementById("no-events").hidden = true;
    const entry = element("li", "", { "data-type": event.type });
    const time = element("time", clock(event.ts), { datetime: new Date(1000 * event.ts).toISOString() });
    entry.append(time, element("span", event.type, { class: "type" }), element("span", this.story(event), { class: "what" }));
    entry.hidden = !this.shows(event.type);
    this.list.prepend(entry);
    while (this.list.children.length > MOST_EVENTS) this.list.lastElementChild.remove();
  }

  story(event) {
    const parts = Object.entries(event).filter(([key, value]) => !PLAIN.has(key) && value !== null && value !== "");
    const figures = parts.map(([key, value]) => `${key} ${figure(value, this.nameOf)}`).join(", ");
    return `${this.nameOf(event.subject)}${figures ? ` · ${figures}` : ""}`;
  }
}

function figure(value, nameOf) {
  if (typeof value === "number") return Number.isInteger(value) ? String(value) : value.toFixed(2);
  if (typeof value === "string") return nameOf(value);
  if (Array.isArray(value)) return value.map((one) => figure(one, nameOf)).join(" ");
  return JSON.stringify(value);
}
