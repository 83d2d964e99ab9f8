// A job's overview: draws its curves, and fetches what is new while it runs.

import { call, parsed, repeat } from "./api.js";
import { showTimes } from "./page.js";
import { Plot } from "./plot.js";

const POINTS = 1500; // of a curve; the service keeps the extremes of longer ones
const box = document.getElementById("plots");
const job = box.dataset.job;

const GROUPS = [
  { title: "Loss", names: ["loss"] },
  { title: "Divergence per token", unit: "nats", names: ["divergence_per_token", "divergence_p50", "divergence_p95", "divergence_p99"] },
  { title: "Held-out divergence", unit: "nats, on a fixed batch", prefix: "heldout_" },
  { title: "Tokens at the clip", unit: "share", names: ["clip_share"] },
  { title: "Gradient norm", names: ["grad_norm"] },
  { title: "Learning rate", names: ["learning_rate"] },
  { title: "Speed", unit: "tokens/s", names: ["tokens_per_second"] },
  { title: "Sampler–trainer gap", unit: "nats, by round", names: ["sampler_gap"] },
  { title: "Perplexity of the target", names: ["student_perplexity", "teacher_perplexity"] },
  { title: "Student's entropy", unit: "nats", names: ["student_entropy"] },
  { title: "Top-1 agreement", unit: "share", names: ["top1_agreement"] },
  { title: "Epistemic mass", unit: "share", names: ["epistemic_mass"] },
];

const curves = new Map(); // name -> {x, y}
const plots = new Map(); // title -> Plot

function groups() {
  const left = new Set(curves.keys());
  const found = [];
  for (const group of GROUPS) {
    const names = group.names ?? [...curves.keys()].filter((name) => name.startsWith(group.prefix));
    const present = names.filter((name) => curves.has(name));
    for (const name of present) left.delete(name);
    if (present.length) found.push({ ...group, names: present });
  }
  left.delete("divergence_max");
  return [...found, ...[...left].sort().map((name) => ({ title: name.replaceAll("_", " "), names: [name] }))];
}

function draw() {
  for (const group of groups()) {
    if (!plots.has(group.title)) {
      const toStep = (step) => location.assign(`/ui/jobs/${job}/trajectories?step=${step}`);
      plots.set(group.title, new Plot(box, { ...group, sync: "steps", onPoint: toStep }));
    }
    plots.get(group.title).show(group.names.map((name) => ({ label: label(name), ...curves.get(name) })));
  }
  document.getElementById("no-plots").hidden = curves.size > 0;
}

const label = (name) => name.replace(/^divergence_per_token$/, "mean").replace(/^divergence_/, "").replace(/^heldout_/, "").replaceAll("_", " ");

let lastStep = -1;
let size = 0;

function take(series) {
  for (const one of series) {
    const known = curves.get(one.name) ?? { x: [], y: [] };
    const after = known.x.at(-1) ?? -1;
    one.steps.forEach((step, i) => {
      if (step <= after) return;
      known.x.push(step);
      known.y.push(one.values[i]);
      lastStep = Math.max(lastStep, step);
    });
    curves.set(one.name, known);
    size = Math.max(size, known.x.length);
  }
}

async function load(names = "") {
  take((await call(`/jobs/${job}/metrics?resolution=${POINTS}&names=${names}`)).data);
  if (curves.size) draw();
}

async function loadAll() {
  curves.clear();
  lastStep = -1;
  size = 0;
  await load("loss"); // drawn while the rest is on its way
  await load();
  await loadGaps();
  draw();
}

async function loadGaps() {
  const rounds = (await call(`/jobs/${job}/diagnosis?limit=100`)).data.filter((one) => one.report.sampler_gap != null);
  if (rounds.length) curves.set("sampler_gap", { x: rounds.map((one) => one.step), y: rounds.map((one) => one.report.sampler_gap) });
}

async function tick() {
  const summary = document.getElementById("summary-box");
  const events = document.getElementById("events");
  const query = new URLSearchParams({ version: summary.dataset.version, after: events.dataset.after });
  const news = await call(`/ui/jobs/${job}/changes?${query}`);
  if (news.summary !== null) {
    const before = summary.firstElementChild.dataset.status;
    summary.replaceChildren(parsed(news.summary));
    summary.dataset.version = news.version;
    showTimes(summary);
    const now = summary.firstElementChild.dataset.status;
    if (now !== before) location.reload(); // other actions are possible now
  }
  for (const html of news.events) {
    const item = parsed(html);
    showTimes(item);
    events.prepend(item);
  }
  while (events.children.length > 30) events.lastElementChild.remove();
  events.dataset.after = news.num_events;
  if (news.step < lastStep || size > 2 * POINTS) await loadAll(); // a resumed run repeats steps; long curves are thinned
  else if (news.step > lastStep) {
    take((await call(`/jobs/${job}/metrics?from_step=${lastStep + 1}&resolution=${POINTS}`)).data);
    if (curves.size) draw();
  }
  return !news.is_over;
}

await loadAll();
if (box.dataset.over === "no") repeat(tick, 2000);
