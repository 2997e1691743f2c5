// Requests to this node's API, and its server-sent events by fetch, which can carry a key where EventSource cannot.

const RETRY_FIRST_MS = 500; // a daemon that restarts is back within a second or two
const RETRY_LONGEST_MS = 5000;
const SILENT_S = 5; // states come every second: after five without one a person must know
// Then another connection is tried. Sooner it would only delay a daemon that is slow, and lose what is on its way.
const GIVE_UP_S = 15;
const LONGEST_EVENT = 4000000; // characters; a state of 64 nodes has about 200,000

let key = ""; // in memory alone: gone when the page is closed

async function askKey() {
  const dialog = document.getElementById("key-dialog");
  document.getElementById("key-wrong").textContent = key ? "The API refuses that key." : "";
  if (!dialog.open) dialog.showModal();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  const input = document.getElementById("key-text");
  key = input.value.trim();
  input.value = "";
}

let asking = null;

// fetch, with the key, which is asked for where the API wants one.
export async function request(path, options = {}) {
  for (;;) {
    const headers = { ...options.headers, ...(key ? { authorization: `Bearer ${key}` } : {}) };
    const response = await fetch(path, { ...options, headers, cache: "no-store" });
    if (response.status !== 401) return response;
    asking = asking ?? askKey().finally(() => { asking = null; });
    await asking;
  }
}

export async function errorText(response) {
  try {
    const body = await response.json();
    return body.error.message;
  } catch {
    return `HTTP ${response.status}`;
  }
}

// Yields {event, data, id} of one response until it ends.
export async function* eventsOf(response, alive = () => {}) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      alive();
      rest += value;
      if (rest.length > LONGEST_EVENT) throw new Error("an event is too long");
      let end;
      while ((end = rest.indexOf("\n\n")) >= 0) {
        const block = rest.slice(0, end);
        rest = rest.slice(end + 2);
        const found = { event: "message", data: "", id: "" };
        for (const line of block.split("\n")) {
          const colon = line.indexOf(":");
          if (colon > 0) found[line.slice(0, colon)] = line.slice(colon + 1).trimStart();
        }
        if (found.data) yield found;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

// Names come from other machines: a character that turns the direction of a whole line is shown, not obeyed.
const INVISIBLE = /[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;

function visible(name, value) {
  return typeof value === "string" ? value.replace(INVISIBLE, "\ufffd") : value;
}

// Follows /api/live for ever; tells of each connection that is lost, and goes on after the last event it saw.
export async function follow({ state, log, past, lost }) {
  let since = "";
  let retryMs = RETRY_FIRST_MS;
  for (;;) {
    const control = new AbortController();
    // Counted in ticks, not by the clock: a page that stood still itself finds one tick, and what came meanwhile.
    let silent = 0;
    const ticks = setInterval(() => {
      silent += 1;
      if (silent === SILENT_S) lost("the daemon does not answer");
      if (silent > GIVE_UP_S) control.abort();
    }, 1000);
    // A page that a browser keeps for its back button must not keep a connection.
    const leave = () => control.abort();
    addEventListener("pagehide", leave);
    const alive = () => { silent = 0; };
    try {
      const response = await request(`/api/live${since ? `?since=${since}` : ""}`, { signal: control.signal });
      if (!response.ok) throw new Error(await errorText(response));
      for await (const { event, data, id } of eventsOf(response, alive)) {
        retryMs = RETRY_FIRST_MS;
        if (event === "state") state(JSON.parse(data, visible));
        else if (event === "history") past(JSON.parse(data, visible));
        else if (event === "log") { since = id || since; log(JSON.parse(data, visible)); }
      }
      lost("the daemon ended the connection");
    } catch (error) {
      lost(error.name === "AbortError" ? "the daemon does not answer" : error.message);
    } finally {
      clearInterval(ticks);
      removeEventListener("pagehide", leave);
    }
    await new Promise((resolve) => setTimeout(resolve, retryMs));
    retryMs = Math.min(2 * retryMs, RETRY_LONGEST_MS);
  }
}
