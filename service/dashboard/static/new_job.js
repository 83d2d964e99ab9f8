// The form of a new job: uploads data, shows prompts, checks and submits.

import { announce, call, element } from "./api.js";

const form = document.getElementById("new-job");
const byId = (id) => document.getElementById(id);
let sent = { text: "", key: "" };

// The same spec has the same key, so that a second click submits no second job.
function idempotencyKey(body) {
  const text = JSON.stringify(body);
  if (text !== sent.text) sent = { text, key: `form-${Date.now()}-${Math.random()}` };
  return sent.key;
}

function put(spec, path, value) {
  const names = path.split(".");
  const last = names.pop();
  let node = spec;
  for (const name of names) node = node[name] ??= {};
  node[last] = value;
}

function merged(spec, more) {
  for (const [name, value] of Object.entries(more)) {
    const both = value !== null && typeof value === "object" && !Array.isArray(value) && typeof spec[name] === "object" && spec[name] !== null;
    spec[name] = both ? merged(spec[name], value) : value;
  }
  return spec;
}

// The spec as the form has it; throws an Error like those of the service if the JSON part is not JSON.
function spec() {
  const made = { mode: form.elements.mode.value, student: byId("student").value, task: byId("task").value };
  if (byId("dataset").value) made.dataset = byId("dataset").value;
  if (byId("teacher").value && made.mode !== "opsd") made.teacher = byId("teacher").value;
  if (form.elements.preset.value) made.preset = form.elements.preset.value;
  if (byId("name").value.trim()) made.name = byId("name").value.trim();
  const tags = byId("tags").value.split(",").map((tag) => tag.trim()).filter(Boolean);
  if (tags.length) made.tags = tags;
  for (const input of form.querySelectorAll("[data-path]")) {
    const text = input.value.trim();
    if (text === "") continue;
    const { path, kind } = input.dataset;
    const number = Number(text);
    const value = kind === "number" && !Number.isNaN(number) ? number : kind === "toggle" ? text === "true" : text;
    put(made, path, value);
  }
  const rest = byId("rest").value.trim();
  if (!rest) return made;
  try {
    return merged(made, JSON.parse(rest));
  } catch (fault) {
    throw Object.assign(new Error(`The part “as JSON” is not JSON: ${fault.message}`), { details: { param: "rest" } });
  }
}

function clearFaults() {
  byId("faults").replaceChildren();
  for (const input of form.querySelectorAll("[aria-invalid]")) input.removeAttribute("aria-invalid");
}

function showFault(fault) {
  const all = fault.details?.errors ?? [{ param: fault.details?.param, message: fault.message }];
  const list = element("ul", { class: "faults note bad" });
  for (const { param, message } of all) {
    list.append(element("li", {}, message));
    const input = param && (form.querySelector(`[data-path="${CSS.escape(param)}"]`) ?? byId(param));
    if (!input) continue;
    input.setAttribute("aria-invalid", "true");
    input.closest("details")?.setAttribute("open", "");
  }
  byId("faults").replaceChildren(list);
}

const bytes = (count) => (count >= 2 ** 30 ? `${(count / 2 ** 30).toFixed(1)} GiB` : `${(count / 2 ** 20).toFixed(0)} MiB`);

function lasting(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

function facts(pairs) {
  const list = element("dl", { class: "rows" });
  for (const [name, value] of pairs) list.append(element("dt", {}, name), element("dd", {}, value));
  return list;
}

function showEstimate(run) {
  const parts = [];
  for (const notice of run.notices) parts.push(element("p", { class: "note warn" }, element("strong", {}, notice.code), ` ${notice.message} ${notice.remedy}`));
  const pairs = [];
  if (run.estimate) {
    const { num_problems, num_heldout, num_trajectories, num_steps, max_trained_tokens } = run.estimate;
    pairs.push(["Problems", `${num_problems.toLocaleString("en")}, ${num_heldout.toLocaleString("en")} held out`]);
    pairs.push(["Trajectories", num_trajectories.toLocaleString("en")], ["Steps", num_steps.toLocaleString("en")]);
    pairs.push(["Tokens trained", `at most ${max_trained_tokens.toLocaleString("en")}`]);
  }
  const peak = run.memory?.peak_bytes ?? run.memory?.total_bytes;
  if (peak) pairs.push(["Memory", `${bytes(peak)} on each device`]);
  if (run.duration) pairs.push(["Time", `about ${lasting(run.duration.seconds)}`]);
  parts.push(element("p", { class: "note" }, "This job would be accepted."), facts(pairs));
  for (const note of run.estimate_notes) parts.push(element("p", { class: "muted small" }, note));
  byId("estimate").replaceChildren(...parts);
}

async function check() {
  clearFaults();
  try {
    showEstimate(await call("/jobs?dry_run=true", { method: "POST", body: spec() }));
  } catch (fault) {
    byId("estimate").replaceChildren();
    showFault(fault);
  }
}

async function submit(event) {
  event.preventDefault();
  clearFaults();
  byId("submit").disabled = true;
  try {
    const body = spec();
    const made = await call("/jobs", { method: "POST", body, headers: { "idempotency-key": idempotencyKey(body) } });
    location.assign(`/ui/jobs/${made.id}`);
  } catch (fault) {
    showFault(fault);
    byId("submit").disabled = false;
  }
}

async function upload() {
  const file = byId("file").files[0];
  if (!file) return;
  const box = byId("upload-faults");
  box.replaceChildren(element("p", { class: "muted" }, `Checking ${file.name} …`));
  try {
    const made = await call(`/datasets?filename=${encodeURIComponent(file.name)}`, { method: "POST", body: file, headers: { "content-type": "application/octet-stream" } });
    const option = element("option", { value: made.id }, `${made.filename} · ${made.num_rows.toLocaleString("en")} rows`);
    byId("dataset").append(option);
    byId("dataset").value = made.id;
    const notices = made.notices.map((one) => element("p", { class: "note warn" }, element("strong", {}, one.code), ` ${one.message} ${one.remedy}`));
    box.replaceChildren(element("p", { class: "note" }, `${made.num_rows.toLocaleString("en")} rows are in order.`), ...notices);
  } catch (fault) {
    const rows = fault.details?.errors ?? [];
    const list = element("ul", { class: "faults" }, ...rows.map((one) => element("li", {}, one.row == null ? "" : element("strong", {}, `Row ${one.row}: `), one.message)));
    box.replaceChildren(element("div", { class: "note bad" }, element("p", {}, rows.length ? `${file.name} was not stored: ${rows.length} faults.` : fault.message), list));
  }
}

async function preview() {
  const box = byId("prompts");
  const dataset = byId("dataset").value;
  if (!dataset) {
    announce("Choose a dataset first.", true);
    return;
  }
  const query = new URLSearchParams({ model: byId("student").value, task: byId("task").value, limit: 1 });
  if (byId("teacher").value && form.elements.mode.value !== "opsd") query.set("teacher", byId("teacher").value);
  try {
    const rows = (await call(`/datasets/${dataset}/preview?${query}`)).data;
    const parts = rows.flatMap((row) => [
      ...(row.dropped ? [element("p", { class: "note warn" }, `Row ${row.row} would be skipped: ${row.dropped}`)] : []),
      ...row.prompts.map((prompt) => element("details", { open: true },
        element("summary", {}, `${prompt.kind.replaceAll("_", " ")} `, element("span", { class: "muted small" }, `${prompt.num_tokens} tokens${prompt.num_cut_solution_tokens ? `, ${prompt.num_cut_solution_tokens} cut` : ""}${prompt.attempt_tokens_that_fit == null ? "" : `, an attempt of ${prompt.attempt_tokens_that_fit} fits`}`)),
        element("pre", { class: "wrap", tabindex: "0" }, prompt.text))),
    ]);
    box.replaceChildren(...parts);
  } catch (fault) {
    box.replaceChildren(element("p", { class: "note bad" }, fault.message));
  }
}

byId("check").addEventListener("click", check);
byId("preview").addEventListener("click", preview);
byId("file").addEventListener("change", upload);
form.addEventListener("submit", submit);
