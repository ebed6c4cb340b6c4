// <day-chart table="days" unit="count">: draws columns of a table that has a row for each day, the newest first. Each
// entry of its legend names one: data-column, data-look (bars or line), data-tone. The table stays: it says the same to
// whoever does not see the chart, and to everybody when there is nothing to draw with.
import { duration } from "./time.js";

const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const dollars = new Intl.NumberFormat("en", { style: "currency", currency: "USD", maximumSignificantDigits: 3 });
const AXIS = {
  count: (value) => compact.format(value),
  share: (value) => `${Math.round(value * 100)} %`,
  ms: (value) => duration(value),
  money: (value) => dollars.format(value),
};
const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

function dayName(text) {
  const [, month, day] = text.split("-").map(Number);
  return `${day} ${MONTHS[month - 1]}`;
}

class DayChart extends HTMLElement {
  #plot = null;
  #resized = null;
  #theme = null;
  #scheme = matchMedia("(prefers-color-scheme: dark)");
  #redraw = () => this.#plot?.redraw();

  connectedCallback() {
    // The oldest day first, as charts are read.
    const rows = [...document.getElementById(this.getAttribute("table")).tBodies[0].rows].reverse();
    const columns = [...this.querySelectorAll("[data-column]")].map((legend) => this.#column(legend, rows));
    if (!window.uPlot || !columns.some(({ values }) => values.some((value) => value !== null))) return;
    this.hidden = false;
    this.#draw(rows, columns);
  }

  disconnectedCallback() {
    this.#resized?.disconnect();
    this.#theme?.disconnect();
    this.#scheme.removeEventListener("change", this.#redraw);
    this.#plot?.destroy();
    this.#plot = null;
  }

  #column(legend, rows) {
    const { column } = legend.dataset;
    const cells = rows.map((row) => row.querySelector(`[data-${column}]`));
    const values = cells.map((cell) => (cell.dataset[column] === "" ? null : Number(cell.dataset[column])));
    return { legend, cells, values, drawn: values };
  }

  #draw(rows, columns) {
    const figure = document.createElement("div");
    figure.className = "chart-plot";
    figure.tabIndex = 0;
    figure.setAttribute("role", "img");
    const title = this.querySelector("h2").textContent;
    figure.setAttribute("aria-label", `${title}, by day. The table below has the figures; arrow keys go from day to day.`);
    this.append(figure);
    const said = this.#sayDay(rows, columns);
    // The last one of a stack is drawn first and is as high as all of them, the others stand before it.
    if (this.hasAttribute("stacked")) {
      for (let place = 1; place < columns.length; place++) {
        columns[place].drawn = columns[place].values.map((value, day) => value + columns[place - 1].drawn[day]);
      }
      columns.reverse();
    }
    const ink = () => getComputedStyle(this.querySelector(".legend")).color;
    const line = () => getComputedStyle(this).borderTopColor;
    const axis = { stroke: ink, grid: { stroke: line, width: 1 }, ticks: { show: false }, font: "12px system-ui" };
    const unit = AXIS[this.getAttribute("unit")];
    this.#plot = new uPlot(
      {
        width: Math.max(figure.clientWidth, 100),
        height: figure.clientHeight || 190,
        legend: { show: false },
        cursor: { drag: { x: false, y: false }, y: false, sync: { key: "days" } },
        scales: {
          x: { time: false, range: [-0.6, rows.length - 0.4] },
          y: { range: (_plot, least, most) => this.#range(least, most) },
        },
        axes: [
          {
            ...axis,
            grid: { show: false },
            size: 30,
            incrs: [1, 2, 7, 14, 30, 60, 90],
            space: 56,
            values: (_plot, places) => places.map((place) => (rows[place] ? dayName(rows[place].dataset.day) : "")),
          },
          { ...axis, size: 58, space: 34, values: (_plot, values) => values.map(unit) },
        ],
        series: [{}, ...columns.map((column) => this.#series(column, rows.length))],
        hooks: { setCursor: [(plot) => said(plot.cursor.idx)] },
      },
      [rows.map((_row, place) => place), ...columns.map(({ drawn }) => drawn)],
      figure,
    );
    this.#byKeyboard(figure, rows.length);
    this.#resized = new ResizeObserver(() => this.#plot?.setSize({ width: figure.clientWidth, height: figure.clientHeight }));
    this.#resized.observe(figure);
    this.#scheme.addEventListener("change", this.#redraw);
    this.#theme = new MutationObserver(this.#redraw);
    this.#theme.observe(document.documentElement, { attributeFilter: ["data-theme"] });
  }

  #series({ legend }, days) {
    // As the legend shows it, which follows the theme.
    const tone = () => getComputedStyle(legend, "::before").backgroundColor;
    if (legend.dataset.look === "bars") {
      return { stroke: tone, fill: tone, width: 0, points: { show: false }, paths: uPlot.paths.bars({ size: [0.7, 48] }) };
    }
    // A day between two without a value would be no line at all.
    return { stroke: tone, width: 2, points: { show: days <= 45, size: 5, stroke: tone, fill: tone } };
  }

  #range(least, most) {
    if (this.hasAttribute("whole")) return [Math.max(0, Math.min(0.9, Math.floor((least - 0.02) * 20) / 20)), 1.005];
    const top = most > 0 ? most * 1.08 : 1;
    return [0, this.getAttribute("unit") === "share" ? Math.min(Math.max(top, 0.1), 1.005) : top];
  }

  // The figures of the day under the pointer, beside their names.
  #sayDay(rows, columns) {
    const day = document.createElement("span");
    day.className = "chart-day";
    this.querySelector(".legend").append(day);
    const outputs = columns.map(({ legend, cells }) => {
      const output = document.createElement("output");
      legend.append(output);
      return { output, cells };
    });
    return (place) => {
      const known = place !== null && place !== undefined && rows[place];
      day.textContent = known ? dayName(rows[place].dataset.day) : "";
      for (const { output, cells } of outputs) output.textContent = known ? cells[place].firstChild.textContent : "";
    };
  }

  #byKeyboard(figure, days) {
    // All charts go together, as they do with the pointer.
    const go = (place) => {
      for (const plot of uPlot.sync("days").plots) plot.setCursor({ left: plot.valToPos(place, "x"), top: 1 });
    };
    figure.addEventListener("keydown", (event) => {
      const at = this.#plot.cursor.idx ?? days;
      const place = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: days - 1 }[event.key];
      if (place === undefined) return;
      event.preventDefault();
      go(Math.max(0, Math.min(days - 1, place)));
    });
    figure.addEventListener("blur", () => {
      for (const plot of uPlot.sync("days").plots) plot.setCursor({ left: -10, top: -10 });
    });
  }
}

customElements.define("day-chart", DayChart);
