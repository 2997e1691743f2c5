// What can be done to the cluster from here. Each action asks first.

import { errorText, request } from "/page/stream.js";
import { element } from "/page/texts.js";

const ACTIONS = [
  { name: "renegotiate", label: "Renegotiate", title: "Agree on a new mesh plan?", text: "A running answer goes on after a short pause." },
  { name: "drain", label: "Drain", title: "Stop taking requests?", text: "Running answers end, new ones are refused." },
  { name: "load", label: "Load a model…", title: "Load another model?", text: "Running answers of the model that is loaded now are ended.", asksModel: true },
  { name: "pull", label: "Pull a model…", title: "Fetch a model?", text: "OWNER/NAME of a repository, or a folder of this node. It comes over the internet once; nodes hand it on to each other.", asksModel: true, asksNodes: true },
  { name: "unload", label: "Unload", title: "Unload the model?", text: "Running answers are ended, and nothing is served until a model is loaded." },
];

export class Actions {
  constructor() {
    this.place = document.getElementById("actions");
    this.text = document.getElementById("action-text");
    this.shown = null;
  }

  show(allowed) {
    if (allowed === this.shown) return;
    this.shown = allowed;
    this.place.replaceChildren();
    if (!allowed) {
      this.text.textContent = "Actions are off here (api.commands = false); from a terminal: exoctl engine, exoctl mesh, exoctl model.";
      return;
    }
    this.text.textContent = "";
    for (const action of ACTIONS) {
      const button = element("button", action.label, { type: "button" });
      button.addEventListener("click", () => this.run(action));
      this.place.append(button);
    }
  }

  async run(action) {
    const body = await ask(action);
    if (body === null) return;
    this.text.textContent = `${action.label}: under way`;
    this.text.textContent = await act(action.name, body);
  }
}

// What became of it, as one line.
export async function act(name, body) {
  try {
    const response = await request(`/api/actions/${name}`, {
      method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body),
    });
    return response.ok ? (await response.json()).text : await errorText(response);
  } catch (error) {
    return `${name}: ${error.message}`;
  }
}

// What is sent with the action, or null where it was called off.
function ask(action) {
  const dialog = document.getElementById("ask-dialog");
  const model = document.getElementById("ask-model-text");
  document.getElementById("ask-title").textContent = action.title;
  document.getElementById("ask-text").textContent = action.text;
  document.getElementById("ask-model").hidden = !action.asksModel;
  document.getElementById("ask-nodes").hidden = !action.asksNodes;
  model.required = Boolean(action.asksModel);
  dialog.showModal();
  // By the form's own event, which comes with the click: a dialog tells of its close later, when the next may be open.
  return new Promise((resolve) => {
    const form = document.getElementById("ask-form");
    const done = (answer) => {
      form.removeEventListener("submit", submitted);
      dialog.removeEventListener("cancel", cancelled);
      resolve(answer);
    };
    const submitted = (event) => done(event.submitter?.value === "yes" ? answers(action) : null);
    const cancelled = () => done(null);
    form.addEventListener("submit", submitted);
    dialog.addEventListener("cancel", cancelled);
  });
}

function answers(action) {
  const body = action.asksModel ? { model: document.getElementById("ask-model-text").value.trim() } : {};
  return action.asksNodes ? { ...body, everywhere: document.getElementById("ask-nodes-all").checked } : body;
}
