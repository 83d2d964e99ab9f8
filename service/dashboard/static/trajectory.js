// One pair: tokens shaded by KL as they come into view, what is known of a token, and the keyboard.

import { announce, call, element } from "./api.js";
import { highlightAsked } from "./highlight.js";

const BOUNDS = [0.01, 0.03, 0.1, 0.3, 1, 3];
const pair = document.getElementById("pair");
const sides = document.getElementById("sides");
const panel = document.getElementById("token");
const path = `/jobs/${pair.dataset.job}/trajectories/${pair.dataset.trajectory}`;
const parts = pair.dataset.parts === "" ? null : Number(pair.dataset.parts);
let tokens = null;
let current = null;

const shadeOf = (kl) => (kl === null ? 6 : BOUNDS.filter((bound) => kl >= bound).length);
const visible = (text) => (text === "" ? "(no text: a special token)" : JSON.stringify(text).slice(1, -1).replaceAll('\\"', '"'));

// Divide an element's text into tokens.
function divide(run) {
  if (run.dataset.done) return;
  run.dataset.done = "1";
  const side = run.dataset.side;
  const { tokens: texts, kl } = tokens[side] ?? {};
  if (!texts) return;
  const wrong = side === "rollout" ? tokens.first_wrong_step : null;
  const made = document.createDocumentFragment();
  for (let i = Number(run.dataset.start); i < Number(run.dataset.end); i += 1) {
    const token = document.createElement("span");
    token.className = `t k${shadeOf(kl[i])}`;
    if (i === parts) token.classList.add("parts");
    if (wrong && i >= wrong[0] && i < wrong[1]) token.classList.add("wrong");
    token.dataset.i = i;
    token.textContent = texts[i];
    made.append(token);
  }
  run.replaceChildren(made);
}

function likely(title, found) {
  const list = element("ol", {}, ...found.map((one) =>
    element("li", {}, element("code", {}, visible(one.text)), one.probability < 0.0005 ? " < 0.1 %" : ` ${(100 * one.probability).toFixed(1)} %`)));
  return element("div", { class: "likely" }, element("h3", {}, title), list);
}

// Show what is known of a token; `side` is rollout or refined.
function select(side, i, { scroll = false } = {}) {
  const found = tokens?.[side];
  if (!found?.tokens || i < 0 || i >= found.tokens.length) return false;
  current?.classList.remove("current");
  const run = [...sides.querySelectorAll(`.run[data-side="${side}"]`)]
    .find((one) => Number(one.dataset.start) <= i && i < Number(one.dataset.end));
  divide(run);
  current = run.children[i - Number(run.dataset.start)];
  current.classList.add("current");
  if (scroll) reveal(current);
  const kl = found.kl[i];
  const facts = [`token ${i} of ${side === "rollout" ? "y_o" : "y_r"}`, kl === null ? "KL not finite" : `KL ${kl.toPrecision(3)} nats`];
  if (i === parts) facts.push("here the two part");
  if (current.classList.contains("wrong")) facts.push("in the first wrong step");
  const told = [element("div", { class: "what" }, element("code", {}, visible(found.tokens[i])), element("span", { class: "muted" }, facts.join(" · ")))];
  const there = found.alternatives?.find((one) => one.token === i);
  if (there) told.push(likely("The student", there.student), likely("The teacher", there.teacher));
  else told.push(element("span", { class: "muted small" }, found.alternatives
    ? "What both models would rather have written is recorded at the tokens with the largest KL."
    : "What both models would rather have written is not recorded for this trajectory."));
  panel.replaceChildren(...told);
  return true;
}

// Lines that come into view get their real height, and move what was scrolled to: scroll until they are done.
function reveal(target, times = 8) {
  target.scrollIntoView({ block: "center" });
  if (times > 1) setTimeout(() => { if (target === current) reveal(target, times - 1); }, 80);
}

function jump(where) {
  if (!tokens) return;
  if (where === "parts" && parts !== null) select("rollout", parts, { scroll: true }) || select("refined", parts, { scroll: true });
  if (where === "wrong" && tokens.first_wrong_step) select("rollout", tokens.first_wrong_step[0], { scroll: true });
  if (where === "largest") {
    const kl = tokens.rollout.kl;
    const largest = kl.reduce((best, one, i) => ((one ?? 0) > (kl[best] ?? 0) ? i : best), 0);
    select("rollout", largest, { scroll: true });
  }
}

// Dividing an element replaces the text in which a mark would be, so this is called again after it.
const markAsked = () => highlightAsked(...[".rollout", ".refined"].map((side) => sides.querySelectorAll(`.cell${side}`)));

// #token=12, #token=refined:12 and #text=words lead to a place.
function follow() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const [, side, number] = /^(?:(rollout|refined):)?(\d{1,7})$/.exec(asked.get("token") ?? "") ?? [];
  if (number !== undefined && !select(side ?? "rollout", Number(number), { scroll: true })) announce("This token is not recorded.", true);
  const found = markAsked();
  if (found === false) announce("The text is not in this trajectory.", true);
  else if (number === undefined) found?.scrollIntoView({ block: "center" });
}

function move(step) {
  const side = current?.closest(".run").dataset.side ?? "rollout";
  select(side, current ? Number(current.dataset.i) + step : 0, { scroll: true });
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
  if (event.key === "j" || event.key === "k") document.querySelector(`a[rel="${event.key === "j" ? "next" : "prev"}"]`)?.click();
  else if (event.key in { p: 1, w: 1, m: 1 }) jump({ p: "parts", w: "wrong", m: "largest" }[event.key]);
  else if (event.key === "ArrowRight" && sides.contains(document.activeElement)) move(1);
  else if (event.key === "ArrowLeft" && sides.contains(document.activeElement)) move(-1);
  else return;
  event.preventDefault();
});
for (const kind of ["click", "mouseover"]) {
  sides.addEventListener(kind, (event) => {
    const token = event.target.closest(".t");
    if (token) select(token.closest(".run").dataset.side, Number(token.dataset.i));
  });
}
for (const button of pair.querySelectorAll("[data-jump]")) button.addEventListener("click", () => jump(button.dataset.jump));
for (const name of ["shade", "difference"]) {
  document.getElementById(name)?.addEventListener("change", (event) => pair.classList.toggle(`no-${name}`, !event.target.checked));
}

if (document.getElementById("shade")) {
  try {
    tokens = (await call(`${path}?tokens=true`)).tokens;
    const seen = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        if (entry.isIntersecting) {
          divide(entry.target);
          seen.unobserve(entry.target);
        }
      }
      markAsked();
    }, { rootMargin: "600px" });
    for (const run of sides.querySelectorAll(".run")) seen.observe(run);
  } catch (fault) {
    announce(fault.message, true);
  }
}
follow();
addEventListener("hashchange", follow);
pair.dataset.ready = "1";
