// A conversation with the model, streamed through this node.

import { errorText, eventsOf, request } from "/page/stream.js";
import { element } from "/page/texts.js";

const MOST_TURNS = 40; // what is sent back each time; older turns are left out

export class Chat {
  constructor() {
    this.log = document.getElementById("chat-log");
    this.text = document.getElementById("chat-text");
    this.send = document.getElementById("chat-send");
    this.stop = document.getElementById("chat-stop");
    this.figures = document.getElementById("chat-figures");
    this.turns = [];
    this.control = null;
    document.getElementById("chat-form").addEventListener("submit", (event) => { event.preventDefault(); this.ask(); });
    document.getElementById("chat-reset").addEventListener("click", () => this.reset());
    this.stop.addEventListener("click", () => this.control?.abort());
    this.text.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); this.ask(); }
    });
  }

  reset() {
    this.control?.abort();
    this.turns = [];
    this.log.replaceChildren();
    this.figures.textContent = "";
  }

  show(kind, text = "") {
    const line = element("p", text, { class: kind });
    this.log.append(line);
    this.log.scrollTop = this.log.scrollHeight;
    return line;
  }

  async ask() {
    const text = this.text.value.trim();
    if (!text || this.control) return;
    this.text.value = "";
    this.show("user", text);
    const turns = this.turns;
    turns.push({ role: "user", content: text });
    turns.splice(0, turns.length - MOST_TURNS);
    this.control = new AbortController();
    this.send.disabled = true;
    this.stop.disabled = false;
    try {
      const answer = await this.answer(turns, this.control.signal);
      if (answer) turns.push({ role: "assistant", content: answer });
    } catch (error) {
      if (error.name === "AbortError") this.figures.textContent = "stopped";
      else this.show("error", error.message);
    } finally {
      this.control = null;
      this.send.disabled = false;
      this.stop.disabled = true;
    }
  }

  async answer(turns, signal) {
    const began = performance.now();
    const body = { model: "default", messages: turns, stream: true, temperature: 0, stream_options: { include_usage: true } };
    const response = await request("/v1/chat/completions", {
      method: "POST", signal, headers: { "content-type": "application/json" }, body: JSON.stringify(body),
    });
    if (!response.ok) throw new Error(await errorText(response));
    const shown = { reasoning: null, content: null };
    const text = { reasoning: "", content: "" };
    let usage = null;
    let first = 0;
    for await (const { data } of eventsOf(response)) {
      if (data === "[DONE]") break;
      const part = JSON.parse(data);
      if (part.error) throw new Error(part.error.message);
      usage = part.usage ?? usage;
      const delta = part.choices?.[0]?.delta ?? {};
      for (const [kind, more] of [["reasoning", delta.reasoning_content], ["content", delta.content]]) {
        if (!more) continue;
        first = first || performance.now();
        text[kind] += more;
        shown[kind] = shown[kind] ?? this.show(kind === "content" ? "assistant" : "reasoning");
        shown[kind].textContent = text[kind];
        this.log.scrollTop = this.log.scrollHeight;
      }
    }
    this.figures.textContent = figures(usage, first - began, performance.now() - first);
    return text.content;
  }
}

function figures(usage, firstMs, decodeMs) {
  if (!usage) return "";
  const speed = usage.completion_tokens > 1 && decodeMs > 0 ? 1000 * (usage.completion_tokens - 1) / decodeMs : 0;
  return `${usage.prompt_tokens} prompt tokens, ${usage.completion_tokens} generated`
    + `, first after ${Math.round(firstMs)} ms${speed ? `, ${speed.toFixed(1)} tokens/s` : ""}`;
}
