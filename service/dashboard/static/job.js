// A job's overview: draws its curves, and fetches what is new while it runs.

import { announce, call, element, parsed, repeat } from "./api.js";
import { showTimes } from "./page.js";
import { Plot, short } from "./plot.js";

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
  { title: "Forward KL around the first wrong step", unit: "nats", names: ["forward_kl_before_wrong_step", "forward_kl_within_wrong_step", "forward_kl_after_wrong_step"] },
  { title: "Verdicts changed by refining", unit: "share", names: ["fail_to_pass", "pass_to_fail"] },
];
// Metrics of a round's trajectories share a plot: what stands before the common part of their names says whose they are.
const SIDES = [["rollout_", "y_o"], ["refined_vanilla_", "y_r, teacher without y_o"], ["refined_", "y_r"]];

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
  const others = new Map(); // title -> names
  for (const name of [...left].sort()) {
    const [prefix] = SIDES.find(([start]) => name.startsWith(start)) ?? [""];
    const words = name.slice(prefix.length).replaceAll("_", " ").replace(/\bkl\b/, "KL");
    const title = words[0].toUpperCase() + words.slice(1) + (prefix && ", by round");
    others.set(title, [...(others.get(title) ?? []), name]);
  }
  const byLabel = (a, b) => label(a).localeCompare(label(b));
  return [...found, ...[...others].map(([title, names]) => ({ title, names: names.sort(byLabel) }))];
}

// A metric that was recorded once is a number, not a curve.
const isCurve = ({ names }) => names.some((name) => curves.get(name).x.length > 1);

function draw() {
  const found = groups();
  for (const group of found.filter(isCurve)) {
    if (!plots.has(group.title)) {
      const toStep = (step) => location.assign(`/ui/jobs/${job}/trajectories?step=${step}`);
      plots.set(group.title, new Plot(box, { ...group, sync: "steps", onPoint: toStep }));
    }
    plots.get(group.title).show(group.names.map((name) => ({ label: label(name), ...curves.get(name) })));
  }
  showNumbers(found.filter((group) => !isCurve(group)));
  document.getElementById("no-plots").hidden = curves.size > 0;
}

function showNumbers(found) {
  document.getElementById("numbers-box").hidden = found.length === 0;
  const cell = (text) => element("td", { class: "number" }, text);
  const rows = found.map(({ title, names }) => {
    const values = names.map((name) => (names.length > 1 ? `${label(name)} ` : "") + short(curves.get(name).y[0]));
    return element("tr", {}, element("th", { scope: "row" }, title), cell(short(curves.get(names[0]).x[0])), cell(values.join(" · ")));
  });
  document.querySelector("#numbers tbody").replaceChildren(...rows);
}

function label(name) {
  const side = SIDES.find(([start]) => name.startsWith(start))?.[1];
  return side ?? name.replace(/^divergence_per_token$/, "mean").replace(/^divergence_|^heldout_|^forward_kl_/, "").replaceAll("_", " ");
}

let shown = 0; // the job's step when the points were fetched
let round = null;
let size = 0;
let isComplete = false; // all curves were fetched since the last fault

// Take points of steps from `first` on in place of the known ones: a resumed run overwrites the steps it repeats.
function take(series, first = 0) {
  for (const one of series) {
    const known = curves.get(one.name) ?? { x: [], y: [] };
    while (known.x.length && known.x.at(-1) >= first) {
      known.x.pop();
      known.y.pop();
    }
    one.steps.forEach((step, i) => {
      known.x.push(step);
      known.y.push(one.values[i]);
    });
    curves.set(one.name, known);
    size = Math.max(size, known.x.length);
  }
}

async function load(query) {
  return (await call(`/jobs/${job}/metrics?resolution=${POINTS}&${query}`)).data;
}

async function loadAll() {
  isComplete = false;
  take(await load("names=loss"));
  if (curves.size) draw(); // the rest is on its way
  size = 0;
  take(await load(""));
  await loadGaps();
  draw();
  isComplete = true;
}

async function loadGaps() {
  const { steps, values } = await call(`/ui/jobs/${job}/sampler-gaps`);
  if (steps.length) curves.set("sampler_gap", { x: steps, y: values });
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
  if (!isComplete || size > 2 * POINTS) await loadAll(); // long curves are thinned again
  else if (news.step !== shown) {
    const first = Math.min(news.step, shown); // this step too: an evaluation adds to it later
    take(await load(`from_step=${first}`), first);
    if (news.round !== round) await loadGaps();
    if (curves.size) draw();
  }
  shown = news.step;
  round = news.round;
  return !news.is_over;
}

shown = Number(box.dataset.step);
await loadAll().catch((fault) => announce(fault.message, true));
if (box.dataset.over === "no") repeat(tick, 2000);
