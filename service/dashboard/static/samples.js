// The slider over the evaluations: it loads the same page of another step, and replaces what differs.

const slider = document.getElementById("at");
const steps = slider?.dataset.steps.split(",") ?? [];
let newest = 0;

async function show() {
  const step = steps[Number(slider.value)];
  document.getElementById("at-step").textContent = step;
  slider.setAttribute("aria-valuetext", `step ${step}`);
  const asked = ++newest;
  const address = `${location.pathname}?step=${step}`;
  const response = await fetch(address, { headers: { accept: "text/html" }, credentials: "same-origin" });
  if (!response.ok) throw new Error(`the samples of step ${step} cannot be loaded: the service answered ${response.status}`);
  const loaded = new DOMParser().parseFromString(await response.text(), "text/html");
  if (asked !== newest) return;
  document.getElementById("samples").replaceWith(loaded.getElementById("samples"));
  document.querySelector(".steps").replaceWith(loaded.querySelector(".steps"));
  history.replaceState(null, "", address);
}

slider?.addEventListener("input", show);
