// The buttons at the top of a job's pages.

import { announce, call } from "./api.js";
import { confirmed } from "./page.js";

const head = document.getElementById("job-head");
const job = head.dataset.job;

head.addEventListener("click", async (event) => {
  const action = event.target.closest("[data-act]")?.dataset.act;
  if (!action) return;
  try {
    if (action === "delete") {
      if (!(await confirmed("Delete this job with its events, trajectories and checkpoints? This cannot be undone."))) return;
      await call(`/jobs/${job}`, { method: "DELETE" });
      location.assign("/");
    } else {
      const now = await call(`/jobs/${job}/${action}`, { method: "POST" });
      announce(`The job is ${now.status}.`);
      location.reload();
    }
  } catch (fault) {
    announce(fault.message, true);
  }
});
