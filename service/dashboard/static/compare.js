// Draws the curves of several jobs over each other.

import { announce, call } from "./api.js";
import { Plot } from "./plot.js";

const NAMES = ["loss", "divergence_per_token", "heldout_forward_kl", "clip_share", "grad_norm", "learning_rate", "student_entropy", "tokens_per_second"];
const box = document.getElementById("compared");

if (box) {
  const jobs = [...box.querySelectorAll("[data-job]")].map((one) => one.dataset);
  const found = await Promise.all(jobs.map(({ job }) => call(`/jobs/${job}/metrics?names=${NAMES.join(",")}&resolution=800`)))
    .catch((fault) => { announce(fault.message, true); return []; });
  for (const name of NAMES) {
    const series = [];
    found.forEach(({ data }, i) => {
      const one = data.find((metric) => metric.name === name);
      if (one) series.push({ label: jobs[i].name, x: one.steps, y: one.values, colour: `--c${i}` });
    });
    if (series.length) new Plot(box, { title: name.replaceAll("_", " "), sync: "compared", height: 220 }).show(series);
  }
}
