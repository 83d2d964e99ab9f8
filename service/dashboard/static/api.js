// Calls of the API under the session's cookie, and what the user hears of them.

const token = document.querySelector('meta[name="csrf-token"]').content;

// Return the parsed answer; throw an Error with the service's own message.
export async function call(path, { method = "GET", body, headers = {}, signal } = {}) {
  const given = { accept: "application/json", ...headers };
  if (method !== "GET") given["x-csrf-token"] = token;
  if (body !== undefined && !(body instanceof Blob)) {
    given["content-type"] = "application/json";
    body = JSON.stringify(body);
  }
  const response = await fetch(path, { method, headers: given, body, signal, credentials: "same-origin" });
  if (response.status === 401) {
    location.assign(`/ui/sign-in?next=${encodeURIComponent(location.pathname + location.search)}`);
  }
  if (response.status === 204) return null;
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) {
    const fault = new Error(answer.error?.message ?? `the service answered ${response.status}`);
    fault.details = answer.error ?? {};
    throw fault;
  }
  return answer;
}

// Yield the parsed data of an answer's server-sent events; throw an Error with the service's own message.
export async function* stream(path, { body, signal }) {
  const headers = { accept: "text/event-stream", "content-type": "application/json", "x-csrf-token": token };
  const response = await fetch(path, { method: "POST", headers, body: JSON.stringify(body), signal, credentials: "same-origin" });
  if (!response.ok) throw new Error((await response.json().catch(() => ({}))).error?.message ?? `the service answered ${response.status}`);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (let read = await reader.read(); !read.done; read = await reader.read()) {
    const frames = (held + read.value).split("\n\n");
    held = frames.pop();
    for (const frame of frames) {
      const data = frame.split("\n").find((line) => line.startsWith("data: "));
      if (data) yield JSON.parse(data.slice(6));
    }
  }
}

// Tell sighted and unsighted users what happened.
export function announce(text, isFault = false) {
  const box = document.getElementById("announcer");
  box.textContent = text;
  box.classList.toggle("bad", isFault);
  clearTimeout(announce.timer);
  announce.timer = setTimeout(() => { box.textContent = ""; }, isFault ? 12000 : 5000);
}

// Call `tick` every so many milliseconds while the page is visible, one call at a time, and less often after failures.
// `tick` returns false to stop.
export function repeat(tick, milliseconds, { alsoHidden = false } = {}) {
  let failures = 0;
  async function turn() {
    if (alsoHidden || document.visibilityState === "visible") {
      try {
        if ((await tick()) === false) return;
        failures = 0;
      } catch (fault) {
        failures += 1;
        if (failures === 3) announce(`No news from the service: ${fault.message}`, true);
      }
    }
    setTimeout(turn, milliseconds * Math.min(8, 2 ** failures));
  }
  setTimeout(turn, milliseconds);
}

// An element with attributes and children; text is text.
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(key, "");
    else if (value !== false && value != null) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

// Parse what the service rendered, rows of a table included.
export function parsed(html) {
  const box = document.createElement("template");
  box.innerHTML = html;
  return box.content.firstElementChild;
}
