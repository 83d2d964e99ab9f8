// What every page does: relative times, copying, signing out.

import { announce, call } from "./api.js";

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

// Whatever fails without a handler of its own is said, not swallowed.
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
  if (event.target.closest("[data-sign-out]")) {
    await call("/ui/sign-out", { method: "POST" });
    location.assign("/ui/sign-in");
  }
});
