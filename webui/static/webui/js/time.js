import { cookieWrite } from "./cookies.js";

const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
const rendered = document.documentElement.dataset.zone;

// From the next page on the server writes times in this zone itself.
if (zone && zone !== rendered) cookieWrite("tz", zone);

const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
const two = (number) => String(number).padStart(2, "0");

// The same two looks as the template tag `when`.
export function clock(date) {
  return `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
}

export function full(date) {
  return `${date.getDate()} ${MONTHS[date.getMonth()]} ${date.getFullYear()}, ${clock(date)}`;
}

class LocalTime extends HTMLElement {
  connectedCallback() {
    if (zone === rendered) return;
    const time = this.querySelector("time");
    const date = new Date(time.dateTime);
    time.textContent = this.getAttribute("look") === "clock" ? clock(date) : full(date);
  }
}

// Durations as webui/formats.py writes them.
export function duration(ms) {
  if (ms < 1000) return `${Math.floor(ms)} ms`;
  if (ms < 60_000) return `${(Math.floor(ms / 100) / 10).toFixed(1)} s`;
  if (ms < 3_600_000) return `${Math.floor(ms / 60_000)} min ${two(Math.floor((ms % 60_000) / 1000))} s`;
  return `${Math.floor(ms / 3_600_000)} h ${two(Math.floor((ms % 3_600_000) / 60_000))} min`;
}

// How long something has been running. It counts from the figure that the server gave, on this machine's monotonic
// clock: the two clocks need not agree.
class ElapsedTime extends HTMLElement {
  static observedAttributes = ["ms"];

  #since = performance.now();
  #timer;

  connectedCallback() {
    this.#timer = setInterval(() => this.#show(), 1000);
  }

  disconnectedCallback() {
    clearInterval(this.#timer);
  }

  attributeChangedCallback() {
    this.#since = performance.now();
  }

  #show() {
    // Whole seconds: tenths would only flicker.
    const ms = Number(this.getAttribute("ms")) + performance.now() - this.#since;
    this.textContent = duration(ms).replace(/\.\d s$/, " s");
  }
}

customElements.define("local-time", LocalTime);
// How long there is left, likewise; what is over says so until the server takes it away.
class TimeLeft extends HTMLElement {
  static observedAttributes = ["ms"];

  #since = performance.now();
  #timer;

  connectedCallback() {
    this.#timer = setInterval(() => this.#show(), 1000);
  }

  disconnectedCallback() {
    clearInterval(this.#timer);
  }

  attributeChangedCallback() {
    this.#since = performance.now();
  }

  #show() {
    const ms = Number(this.getAttribute("ms")) - (performance.now() - this.#since);
    this.textContent = ms > 0 ? `${duration(ms).replace(/\.\d s$/, " s").replace(/^\d+ ms$/, "0 s")} left` : "time is up";
  }
}

customElements.define("elapsed-time", ElapsedTime);
customElements.define("time-left", TimeLeft);
