// For admins: makes and revokes keys.

import { announce, call, element } from "./api.js";

document.getElementById("new-key")?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const given = new FormData(event.target);
  const body = { name: given.get("name"), scopes: [given.get("scope")] };
  if (given.get("owner")) body.owner = given.get("owner");
  try {
    const made = await call("/keys", { method: "POST", body });
    const box = document.getElementById("made-key");
    box.hidden = false;
    box.replaceChildren("Shown this once: ", element("code", { id: "key-text" }, made.key), " ", element("button", { type: "button", "data-copy": "key-text" }, "Copy"));
    event.target.reset();
  } catch (fault) {
    announce(fault.message, true);
  }
});

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-revoke]");
  if (!button) return;
  if (button.dataset.sure !== "yes") { // a second click confirms
    button.dataset.sure = "yes";
    button.textContent = "Really revoke";
    return;
  }
  try {
    await call(`/keys/${button.dataset.revoke}`, { method: "DELETE" });
    location.reload();
  } catch (fault) {
    announce(fault.message, true);
  }
});
