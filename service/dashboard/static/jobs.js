// The list of jobs: brings changed rows up to date, and acts on several.

import { announce, call, parsed, repeat } from "./api.js";
import { confirmed, showTimes } from "./page.js";

const body = document.querySelector("#jobs tbody");
const bulk = document.getElementById("bulk");
const all = document.getElementById("pick-all");

const picked = () => [...body.querySelectorAll("input[name=pick]:checked")].map((box) => box.value);

function showPicked() {
  const count = picked().length;
  bulk.hidden = count === 0;
  document.getElementById("picked").textContent = `${count} selected`;
  all.checked = count > 0 && count === body.rows.length;
}

let newest = 0;

async function refresh() {
  const asked = ++newest;
  const seen = Object.fromEntries([...body.rows].map((row) => [row.id, row.dataset.version]));
  const news = await call(`/ui/jobs/changes${location.search}`, { method: "POST", body: seen });
  if (asked !== newest) return; // a later call has been sent: its answer is the newer one
  const chosen = new Set(picked());
  const { id: focused } = document.activeElement.closest("tr") ?? {};
  const part = document.activeElement.name === "pick" ? "input[name=pick]" : "a";
  for (const [id, html] of Object.entries(news.rows)) {
    const row = parsed(html);
    row.querySelector("input[name=pick]").checked = chosen.has(id);
    showTimes(row);
    document.getElementById(id)?.replaceWith(row);
    if (!row.isConnected) body.append(row);
    if (id === focused) row.querySelector(part).focus();
  }
  const known = [...body.rows].map((row) => row.id);
  for (const id of known) if (!news.order.includes(id)) document.getElementById(id).remove();
  if (news.order.some((id, place) => body.rows[place]?.id !== id)) {
    body.append(...news.order.map((id) => document.getElementById(id)));
  }
  document.getElementById("no-match").hidden = news.order.length > 0;
  showPicked();
}

async function act(action) {
  const ids = picked();
  const text = `Delete ${ids.length} job${ids.length === 1 ? "" : "s"} with all checkpoints? This cannot be undone.`;
  if (action === "delete" && !(await confirmed(text))) return;
  const faults = [];
  for (const id of ids) {
    const [path, method] = action === "delete" ? [`/jobs/${id}`, "DELETE"] : [`/jobs/${id}/${action}`, "POST"];
    await call(path, { method }).catch((fault) => faults.push(fault.message));
  }
  const done = ids.length - faults.length;
  announce(`${action}: ${done} of ${ids.length} jobs. ${faults.slice(0, 2).join(" ")}`, faults.length > 0);
  for (const box of body.querySelectorAll("input[name=pick]")) box.checked = false;
  await refresh();
}

if (body) {
  document.getElementById("jobs").addEventListener("change", (event) => {
    if (event.target === all) for (const box of body.querySelectorAll("input[name=pick]")) box.checked = all.checked;
    showPicked();
  });
  bulk.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button?.dataset.action) act(button.dataset.action);
    if (button && "compare" in button.dataset) location.assign(`/ui/compare?${picked().slice(0, 20).map((id) => `job=${id}`).join("&")}`);
  });
  repeat(refresh, 3000);
} else { // the page of somebody without a job
  repeat(async () => {
    const { order } = await call("/ui/jobs/changes", { method: "POST", body: {} });
    if (order.length) location.reload();
  }, 3000);
}
