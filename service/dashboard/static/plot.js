// Line plots with uPlot: one figure each, in the page's colours, in light and dark.

import { element } from "./api.js";

const dark = matchMedia("(prefers-color-scheme: dark)");
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const plots = new Set();

export function short(value) {
  if (value == null) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 0.001 || size >= 1e6)) return value.toExponential(2);
  return Number(value.toPrecision(4)).toLocaleString("en", { maximumFractionDigits: 6 });
}

// A figure with a plot. `series`: [{label, x, y, dash}]; `onPoint(x)` is called when a point is clicked.
export class Plot {
  constructor(box, { title, unit = "", xLabel = "step", onPoint = null, sync = null, height = 200, bars = false }) {
    Object.assign(this, { title, unit, xLabel, onPoint, sync, height, bars });
    this.holder = element("div", { class: "plot-area" });
    this.caption = element("figcaption", {}, element("h3", {}, title), element("span", { class: "muted small" }, unit));
    this.figure = element("figure", { class: "card plot" }, this.caption, this.holder);
    box.append(this.figure);
    plots.add(this);
    this.resizing = new ResizeObserver(() => this.fit());
    this.resizing.observe(this.holder);
  }

  show(series) {
    const shape = series.map((one) => one.label).join("\n");
    this.series = series;
    const joined = uPlot.join(series.map((one) => [one.x, one.y]));
    const last = series.map((one) => `${one.label} ${short(one.y.at(-1))}`).join(", ");
    this.figure.setAttribute("aria-label", `${this.title}: at ${this.xLabel} ${short(series[0].x.at(-1))}, ${last}`);
    if (this.chart && this.shape === shape) {
      const { min, max } = this.chart.scales.x;
      const all = this.chart.data[0];
      const isZoomed = min > all[0] || max < all.at(-1);
      this.chart.setData(joined, !isZoomed);
      if (isZoomed) this.chart.setScale("x", { min, max }); // draws; setData alone would leave the old points
      return;
    }
    this.shape = shape;
    this.draw(joined);
  }

  draw(data) {
    this.chart?.destroy();
    const grid = { stroke: colour("--line"), width: 1 };
    const axis = { stroke: colour("--muted"), grid, ticks: { ...grid, size: 4 }, font: "11px system-ui, sans-serif" };
    const line = (one, i) => ({
      label: one.label,
      stroke: one.colour ? colour(one.colour) : colour(`--c${i % 6}`),
      width: 1.6,
      dash: one.dash,
      spanGaps: true,
      points: { show: one.x.length < 40, size: 5 },
      value: (_, value) => short(value),
    });
    this.chart = new uPlot(
      {
        width: this.holder.clientWidth || 320,
        height: this.height,
        scales: { x: { time: false } },
        axes: [
          { ...axis, label: this.xLabel, labelSize: 16, labelFont: axis.font, gap: 3, size: 26, values: (_, ticks) => ticks.map(short) },
          { ...axis, size: 54, values: (_, ticks) => ticks.map(short) },
        ],
        cursor: { sync: this.sync ? { key: this.sync, setSeries: false } : undefined, points: { size: 7 } },
        legend: { live: true },
        series: [{ label: this.xLabel, value: (_, value) => short(value) }, ...this.series.map(line)],
      },
      data,
      this.holder,
    );
    if (this.onPoint) this.followClicks();
  }

  followClicks() {
    let down = null;
    this.chart.over.classList.add("clickable");
    this.chart.over.addEventListener("mousedown", (event) => { down = event.clientX; });
    this.chart.over.addEventListener("click", (event) => {
      const place = this.chart.cursor.idx;
      if (place != null && down !== null && Math.abs(event.clientX - down) < 4) this.onPoint(this.chart.data[0][place]);
    });
  }

  fit() {
    const width = this.holder.clientWidth;
    if (this.chart && width > 0 && width !== this.chart.width) this.chart.setSize({ width, height: this.height });
  }

  remove() {
    this.resizing.disconnect();
    this.chart?.destroy();
    this.figure.remove();
    plots.delete(this);
  }
}

dark.addEventListener("change", () => {
  for (const plot of plots) if (plot.chart) plot.draw(plot.chart.data);
});
