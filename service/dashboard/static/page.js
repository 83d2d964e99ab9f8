// What every page does: relative times, copying, and going where the owner's scripts point.

import { announce, call, repeat } from "./api.js";
import { highlightAsked } from "./highlight.js";

const UNITS = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];
const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto" });

export function showTimes(root = document) {
  for (const shown of root.querySelectorAll("time[datetime]")) {
    const at = new Date(shown.dateTime);
    const seconds = (at - Date.now()) / 1000;
    const [unit, size] = UNITS.find(([, length]) => Math.abs(seconds) >= length) ?? UNITS[3];
    shown.title = at.toLocaleString();
    shown.textContent = Math.abs(seconds) < 5 ? "now" : relative.format(Math.round(seconds / size), unit);
  }
}

// Ask before something that cannot be undone; true if the user agrees.
export function confirmed(text) {
  const dialog = document.getElementById("confirm");
  document.getElementById("confirm-text").textContent = text;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
}

// Whatever fails without its own handler is shown, not swallowed.
addEventListener("unhandledrejection", (event) => announce(event.reason?.message ?? String(event.reason), true));

showTimes();
setInterval(showTimes, 10000);

document.addEventListener("click", async (event) => {
  const copying = event.target.closest("[data-copy]");
  if (copying) {
    const source = document.getElementById(copying.dataset.copy);
    if (navigator.clipboard) {
      await navigator.clipboard.writeText(source.textContent.trim());
      announce("Copied.");
    } else { // browsers have none on pages of another machine without TLS
      getSelection().selectAllChildren(source);
      announce("Selected: copy it with the keyboard.");
    }
  }
});

// Open the place that waits for a tab, if there is one. Hidden tabs ask less often, so that the visible one gets it.
let turn = 0;
async function openPlace() {
  turn += 1;
  if ((document.hidden && turn % 3 !== 0) || !(await call("/ui/view")).is_waiting) return;
  const { path } = await call("/ui/view/take", { method: "POST" });
  if (!path?.startsWith("/ui/jobs/")) return;
  const isHere = location.href === new URL(path, location.href).href;
  location.assign(path);
  if (isHere) dispatchEvent(new HashChangeEvent("hashchange"));
}

const main = document.getElementById("main");
if (main.dataset.follows === "yes") repeat(openPlace, 2000, { alsoHidden: true });

if (!document.getElementById("pair")) { // a trajectory's own script highlights there
  const showAsked = () => {
    const found = highlightAsked([main]);
    if (found === false) announce("The text is not on this page.", true);
    found?.scrollIntoView?.({ block: "center" });
  };
  showAsked();
  addEventListener("hashchange", showAsked);
}
