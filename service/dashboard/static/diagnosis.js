// Draws a round's diagnosis: figures by position, and around the places where a rollout goes wrong.

import { announce, call } from "./api.js";
import { Plot } from "./plot.js";

const box = document.getElementById("diagnosis");

function draw(report) {
  const contexts = [["y_o", report.rollout], ["y_r", report.refined], ["y_r, teacher without y_o", report.refined_vanilla]].filter(([, part]) => part);
  const byPlace = (bins, name) => contexts.map(([label, part]) => ({
    label,
    x: part[bins].map((bin) => (bin.low + bin.high) / 2),
    y: part[bins].map((bin) => bin[name]),
  }));
  const lines = [
    ["KL by share of the length", { unit: "nats", xLabel: "share" }, byPlace("by_share", "forward_kl")],
    ["KL by position", { unit: "nats", xLabel: "token" }, byPlace("by_token", "forward_kl")],
    ["Epistemic mass by share of the length", { xLabel: "share" }, byPlace("by_share", "epistemic_mass")],
    ["Epistemic mass by position", { xLabel: "token" }, byPlace("by_token", "epistemic_mass")],
  ];
  const curve = (points, label) => [{ label, x: points.map((one) => one.distance), y: points.map((one) => one.mass) }];
  if (report.first_wrong_step?.onset_by_token.length) {
    lines.push(["Teacher's wish to correct, after the wrong step", { xLabel: "tokens after it" }, curve(report.first_wrong_step.onset_by_token, "mass on a correction")]);
  }
  if (report.parting?.correction_by_token.length) {
    lines.push(["Mass on y_r's first own token, along y_o", { xLabel: "tokens after they part" }, curve(report.parting.correction_by_token, "mass")]);
  }
  for (const [title, options, series] of lines) {
    const filled = series.filter((one) => one.x.length);
    if (filled.length) new Plot(box, { title, ...options }).show(filled);
  }
}

if (box) {
  const after = box.dataset.round > 0 ? `&after=${box.dataset.round - 1}` : "";
  await call(`/jobs/${box.dataset.job}/diagnosis?limit=1${after}`)
    .then(({ data }) => draw(data[0].report))
    .catch((fault) => announce(fault.message, true));
}
