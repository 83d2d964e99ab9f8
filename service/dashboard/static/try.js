// Chats with the models of a checkpoint: one question for all, each answer streamed. What models write is text.

import { announce, element, stream } from "./api.js";

const box = document.getElementById("chats");
const address = `/jobs/${box.dataset.job}/checkpoints/${box.dataset.step}/chat`;
const form = document.getElementById("ask");
const question = document.getElementById("question");
const [send, stop] = [document.getElementById("send"), document.getElementById("stop")];
let asking = null;

const panels = [...box.querySelectorAll(".chat")].map((panel) => ({
  model: panel.dataset.model,
  turns: panel.querySelector(".turns"),
  state: panel.querySelector(".state"),
  messages: [],
}));

async function ask(panel, text, settings, signal) {
  const messages = [...(settings.remembers ? panel.messages : []), { role: "user", content: text }];
  const answer = element("div", { class: "turn assistant" });
  panel.turns.append(element("div", { class: "turn user" }, text), answer);
  panel.state.classList.remove("bad");
  panel.state.textContent = "Asking…";
  const body = { model: panel.model, messages, temperature: settings.temperature, max_new_tokens: settings.tokens };
  let end = null;
  try {
    for await (const part of stream(address, { body, signal })) {
      if (part.object === "answer.waiting") {
        panel.state.textContent = part.position > 1 ? `Place ${part.position}. ${part.message}` : part.message;
      } else if (part.object === "answer.piece") {
        answer.append(part.text);
        panel.state.textContent = "Answering…";
        panel.turns.scrollTop = panel.turns.scrollHeight;
      } else end = part;
    }
    const length = end?.num_tokens == null ? "" : `${end.num_tokens} tokens`;
    panel.state.textContent = end?.error ?? [length, end?.is_truncated ? "cut off at the longest answer" : ""].filter(Boolean).join(", ");
    if (!end) panel.state.textContent = "The service ended the stream. Ask again.";
  } catch (fault) {
    panel.state.textContent = signal.aborted ? "Stopped." : fault.message;
  }
  panel.state.classList.toggle("bad", !signal.aborted && (!end || Boolean(end.error)));
  if (answer.textContent === "") answer.remove();
  else panel.messages = [...messages, { role: "assistant", content: answer.textContent }];
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = question.value;
  if (asking || !text.trim()) return;
  asking = new AbortController();
  [send.disabled, stop.hidden] = [true, false];
  const settings = {
    temperature: Number(document.getElementById("temperature").value),
    tokens: Number(document.getElementById("tokens").value),
    remembers: document.getElementById("remember").checked,
  };
  question.value = "";
  await Promise.all(panels.map((panel) => ask(panel, text, settings, asking.signal)));
  announce(asking.signal.aborted ? "Stopped." : "All models have answered.");
  asking = null;
  [send.disabled, stop.hidden] = [false, true];
});
stop.addEventListener("click", () => asking?.abort());
question.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});
document.getElementById("clear").addEventListener("click", () => {
  for (const panel of panels) {
    panel.messages = [];
    panel.turns.replaceChildren();
    panel.state.textContent = "";
  }
  question.focus();
});
form.dataset.ready = "1";
