// A conversation with the model, streamed through this node.

import { errorText, eventsOf, request } from "/page/stream.js";
import { element } from "/page/texts.js";

const MOST_TURNS = 40; // what is sent back each time; older turns are left out
const QUIET_MS = 1000; // without a token for so long, it is said what the engine does

export class Chat {
  // `engine` gives the newest state of the engine, as the status has it.
  constructor(engine) {
    this.engine = engine;
    this.log = document.getElementById("chat-log");
    this.text = document.getElementById("chat-text");
    this.send = document.getElementById("chat-send");
    this.stop = document.getElementById("chat-stop");
    this.figures = document.getElementById("chat-figures");
    this.turns = [];
    this.control = null;
    this.heardAt = 0;
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
    this.tell("");
  }

  show(kind, text = "") {
    const line = element("p", text, { class: kind });
    this.log.append(line);
    this.log.scrollTop = this.log.scrollHeight;
    return line;
  }

  tell(text) {
    if (this.figures.textContent !== text) this.figures.textContent = text;
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
    this.heardAt = performance.now();
    const watch = setInterval(() => this.tellWait(), QUIET_MS / 2);
    const answer = { reasoning: "", content: "" };
    try {
      await this.answer(turns, answer, this.control.signal);
    } catch (error) {
      this.ended(error, text);
    } finally {
      clearInterval(watch);
      // A part of an answer stays in the conversation; a question without any must not stand beside the next one.
      if (answer.content) turns.push({ role: "assistant", content: answer.content });
      else if (turns.at(-1)?.role === "user") turns.pop();
      this.control = null;
      this.send.disabled = false;
      this.stop.disabled = true;
    }
  }

  ended(error, text) {
    if (error.name === "AbortError") {
      this.tell(this.turns.length ? "stopped" : "");
      return;
    }
    this.tell("");
    const lost = error instanceof TypeError; // what fetch and a reader raise where the connection ends
    this.show("error", lost ? `The connection to this node was lost (${error.message}). Send it again once the page is connected.` : error.message);
    if (!this.text.value) this.text.value = text;
  }

  tellWait() {
    if (performance.now() - this.heardAt < QUIET_MS) return;
    const engine = this.engine();
    if (!engine) return;
    const busy = engine.state === "generating" || engine.state === "ready";
    this.tell(busy ? "waiting for a token" : `the engine is ${engine.state}${engine.text ? ` (${engine.text})` : ""}; the answer goes on by itself`);
  }

  async answer(turns, text, signal) {
    const began = performance.now();
    const body = { model: "default", messages: turns, stream: true, temperature: 0, stream_options: { include_usage: true } };
    const response = await request("/v1/chat/completions", {
      method: "POST", signal, headers: { "content-type": "application/json" }, body: JSON.stringify(body),
    });
    if (!response.ok) throw new Error(await errorText(response));
    const shown = { reasoning: null, content: null };
    let usage = null;
    let first = 0;
    let whole = false;
    for await (const { data } of eventsOf(response)) {
      whole = data === "[DONE]";
      if (whole) break;
      const part = JSON.parse(data);
      if (part.error) throw new Error(part.error.message);
      usage = part.usage ?? usage;
      const delta = part.choices?.[0]?.delta ?? {};
      for (const [kind, more] of [["reasoning", delta.reasoning_content], ["content", delta.content]]) {
        if (!more) continue;
        this.heardAt = performance.now();
        first = first || this.heardAt;
        text[kind] += more;
        shown[kind] = shown[kind] ?? this.show(kind === "content" ? "assistant" : "reasoning");
        shown[kind].textContent = text[kind];
        this.log.scrollTop = this.log.scrollHeight;
      }
    }
    if (!whole) throw new TypeError("the answer ended in its middle");
    this.tell(figures(usage, first - began, performance.now() - first));
  }
}

function figures(usage, firstMs, decodeMs) {
  if (!usage) return "";
  const speed = usage.completion_tokens > 1 && decodeMs > 0 ? 1000 * (usage.completion_tokens - 1) / decodeMs : 0;
  return `${usage.prompt_tokens} prompt tokens, ${usage.completion_tokens} generated`
    + `, first after ${Math.round(firstMs)} ms${speed ? `, ${speed.toFixed(1)} tokens/s` : ""}`;
}
