// <call-timeline>: a call on lanes, drawn to scale, with one playhead.
//
// What is drawn comes from the server as items, each with its marks [lane, kind, from, to] in ms from the start of the
// call (webui/presenters/lanes.py); `to` is null while something goes on. #timeline-data has all of them, and whatever
// is put into #timeline-news replaces those of the same id. A playhead that was moved by hand says so with the event
// "playhead" and the turn that it is in.

const SVG = "http://www.w3.org/2000/svg";
const LANE_PX = 28;
const AXIS_PX = 24;
const INSET_PX = 5;
const LANES = 6;
const HEARD = 1;
const LEAST_SPAN_MS = 4_000;
// A longer call is not shown whole at first: a second of it would be thinner than a hair.
const FIRST_SPAN_MS = 180_000;
const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600].map((seconds) => seconds * 1000);
const LOUD = new Set(["violation", "blocked", "not-judged"]);
const WORDS = { violation: "violation", clean: "clean", "not-judged": "not judged", skipped: "skipped", cut: "cut off" };

const two = (number) => String(number).padStart(2, "0");

// As webui/formats.py writes a position.
export function offset(ms) {
  const tenths = Math.floor(Math.max(0, ms) / 100);
  const [seconds, tenth] = [Math.floor(tenths / 10), tenths % 10];
  const [minutes, second] = [Math.floor(seconds / 60), seconds % 60];
  const hours = Math.floor(minutes / 60);
  return hours ? `${hours}:${two(minutes % 60)}:${two(second)}.${tenth}` : `${minutes}:${two(second)}.${tenth}`;
}

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

export class CallTimeline extends HTMLElement {
  /** Whether the playhead stays at the end of a running call. */
  following = false;

  #stage;
  #svg;
  #overview;
  #items = new Map();
  #turns = null;
  #sorted = null;
  #live = false;
  #ms = 0;
  #since = performance.now();
  #whole = true;
  #from = 0;
  #span = 1;
  #at = 0;
  #chosen = null;
  #drawing = 0;
  #timer;
  #width = 0;
  // What the marks were drawn for.
  #painted = "";

  connectedCallback() {
    this.#stage = this.querySelector("[data-stage]");
    this.#svg = this.#stage.querySelector("svg");
    this.#overview = this.querySelector("[data-overview]");
    this.#take(this.#read("timeline-data"));
    this.querySelector("[data-body]").hidden = false;
    this.querySelector("[data-tools]").hidden = false;
    this.#whole = this.total <= FIRST_SPAN_MS;
    this.#span = this.#whole ? this.total : FIRST_SPAN_MS;
    this.#stage.addEventListener("keydown", (event) => this.#key(event));
    this.#stage.addEventListener("pointerdown", (event) => this.#press(event));
    this.#stage.addEventListener("pointermove", (event) => this.#drag(event));
    this.#overview.addEventListener("pointerdown", (event) => this.#jump(event));
    for (const button of this.querySelectorAll("[data-zoom]")) {
      button.addEventListener("click", () => this.zoom(button.dataset.zoom));
    }
    new ResizeObserver(() => this.#resize()).observe(this.#stage);
    const news = document.getElementById("timeline-news");
    new MutationObserver(() => this.#hear()).observe(news, { childList: true, characterData: true, subtree: true });
    this.#tick();
    this.#draw();
  }

  disconnectedCallback() {
    clearInterval(this.#timer);
  }

  // -- what there is ----------------------------------------------------------------------------------------------

  get live() {
    return this.#live;
  }

  /** How long the call is, in ms; of one that goes on, how long it has been. */
  get total() {
    return Math.max(1, this.#live ? this.#ms + performance.now() - this.#since : this.#ms);
  }

  get position() {
    return this.#at;
  }

  /** The turns in their order: {turn, n, start, words}. A turn starts where its audio does, if that is known. */
  get turns() {
    if (!this.#turns) {
      this.#turns = [...this.#items.values()]
        .filter((item) => item.n !== null)
        .map((item) => {
          const heard = item.marks.find(([lane, kind]) => lane === HEARD && kind === "heard");
          const words = item.marks.map(([, kind]) => WORDS[kind]).filter(Boolean);
          return { turn: item.turn, n: item.n, at: item.at, start: heard ? heard[2] : item.at, words };
        })
        .sort((one, other) => one.start - other.start || one.at - other.at);
    }
    return this.#turns;
  }

  /** The turn during which `ms` was: the last one that had started, else the first. */
  turnAt(ms) {
    const turns = this.turns;
    let [low, high] = [0, turns.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (turns[middle].start <= ms) low = middle + 1;
      else high = middle;
    }
    return turns[Math.max(0, low - 1)] ?? null;
  }

  turnNamed(turn) {
    return this.turns.find((each) => each.turn === turn) ?? null;
  }

  /** The turn after (1) or before (-1) the chosen one. */
  turnBeside(step) {
    const place = this.turns.findIndex((each) => each.turn === this.#chosen);
    return this.turns[place + step] ?? null;
  }

  #read(id) {
    return JSON.parse(document.getElementById(id)?.textContent || "null");
  }

  #take(data) {
    if (!data) return [];
    this.#live = data.live;
    this.#ms = data.ms;
    this.#since = performance.now();
    const items = data.items.map((item) => ({ n: null, turn: item.n === undefined ? null : item.id, ...item }));
    for (const item of items) this.#items.set(item.id, item);
    this.#turns = this.#sorted = null;
    this.#painted = "";
    return items;
  }

  #hear() {
    const items = this.#take(this.#read("timeline-news"));
    this.#tick();
    this.#draw();
    this.dispatchEvent(new CustomEvent("news", { detail: items }));
  }

  #tick() {
    clearInterval(this.#timer);
    if (this.#live) this.#timer = setInterval(() => this.#draw(), 500);
  }

  // -- moving -----------------------------------------------------------------------------------------------------

  /** Show `turn` as the chosen one, and with `ms` put the playhead there. Says nothing to anybody. */
  show(turn, ms) {
    this.#chosen = turn;
    if (ms !== undefined) this.#put(ms);
    this.#draw();
  }

  /** Put the playhead at `ms` and say so; `turn` when it is known which one is meant. */
  moveTo(ms, turn = null) {
    this.#put(ms);
    this.#draw();
    const chosen = turn ?? this.turnAt(this.#at)?.turn ?? null;
    this.dispatchEvent(new CustomEvent("playhead", { detail: { ms: this.#at, turn: chosen }, bubbles: true }));
  }

  #put(ms) {
    this.#at = clamp(ms, 0, this.total);
    const margin = this.#span * 0.1;
    if (this.#at < this.#from + margin || this.#at > this.#from + this.#span - margin) {
      this.#from = this.#at - this.#span / 2;
    }
  }

  zoom(how) {
    const total = this.total;
    if (how === "whole") this.#whole = true;
    else {
      const span = (this.#whole ? total : this.#span) * (how === "in" ? 0.5 : 2);
      this.#whole = span >= total;
      this.#span = clamp(span, Math.min(LEAST_SPAN_MS, total), total);
      this.#from = this.#at - this.#span / 2;
    }
    this.#draw();
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const second = event.shiftKey ? 10_000 : 1_000;
    const moves = {
      ArrowLeft: () => this.#at - second,
      ArrowRight: () => this.#at + second,
      PageUp: () => this.#at - this.#span / 2,
      PageDown: () => this.#at + this.#span / 2,
      Home: () => 0,
      End: () => this.total,
    };
    const zooms = { "+": "in", "=": "in", "-": "out", 0: "whole" };
    if (moves[event.key]) this.moveTo(moves[event.key]());
    else if (zooms[event.key]) this.zoom(zooms[event.key]);
    else if (event.key === "ArrowUp" || event.key === "ArrowDown") {
      const beside = this.turnBeside(event.key === "ArrowDown" ? 1 : -1);
      if (beside) this.moveTo(beside.start, beside.turn);
    } else return;
    event.preventDefault();
  }

  #press(event) {
    if (event.button !== 0) return;
    this.#stage.focus({ preventScroll: true });
    this.#stage.setPointerCapture(event.pointerId);
    this.moveTo(this.#msAt(event), event.target.dataset?.turn ?? null);
  }

  #drag(event) {
    if (this.#stage.hasPointerCapture(event.pointerId)) this.moveTo(this.#msAt(event));
  }

  #jump(event) {
    const box = this.#overview.getBoundingClientRect();
    this.moveTo(((event.clientX - box.left) / box.width) * this.total);
  }

  #msAt(event) {
    const box = this.#svg.getBoundingClientRect();
    return this.#from + ((event.clientX - box.left) / box.width) * this.#span;
  }

  // -- drawing ----------------------------------------------------------------------------------------------------

  #resize() {
    const width = Math.floor(this.#svg.getBoundingClientRect().width);
    if (width === this.#width) return;
    this.#width = width;
    this.#draw();
  }

  #draw() {
    if (this.#drawing) return;
    this.#drawing = requestAnimationFrame(() => {
      this.#drawing = 0;
      this.#paint();
    });
  }

  #paint() {
    const total = this.total;
    if (this.following && this.#live) this.#put(total);
    if (this.#whole) [this.#from, this.#span] = [0, total];
    this.#span = Math.min(this.#span, total);
    this.#from = clamp(this.#from, 0, total - this.#span);
    this.#say(total);
    if (!this.#width) return;
    const height = AXIS_PX + LANES * LANE_PX;
    const x = (ms) => ((ms - this.#from) / this.#span) * this.#width;
    this.#svg.setAttribute("viewBox", `0 0 ${this.#width} ${height}`);
    const layer = (name, fill) => {
      const drawn = [];
      fill((element, attributes) => drawn.push([element, attributes]));
      paint(this.#svg.querySelector(`.${name}`), drawn);
    };
    layer("under", (add) => this.#band(add, x, total));
    // A playhead that moves leaves the marks where they are, and there can be thousands.
    const flags = this.#highlights();
    const seen = [this.#from, this.#span, this.#width, this.#live && total, ...flags].join(" ");
    if (this.#painted !== seen) {
      this.#painted = seen;
      layer("marks", (add) => {
        this.#axis(add, x, height);
        this.#marks(add, x, total);
        this.#flags(add, x, flags);
        if (this.#live) add("line", { class: "now", x1: x(total), x2: x(total), y1: AXIS_PX, y2: height });
      });
    }
    layer("over", (add) => {
      const at = x(this.#at);
      add("line", { class: "playhead", x1: at, x2: at, y1: AXIS_PX - 6, y2: height });
      add("circle", { class: "playhead-knob", cx: clamp(at, 5, this.#width - 5), cy: AXIS_PX - 7, r: 5 });
    });
    this.#paintOverview(total);
  }

  #band(add, x, total) {
    const chosen = this.turnNamed(this.#chosen);
    if (!chosen) return;
    const next = this.turns[this.turns.indexOf(chosen) + 1];
    const [left, right] = [x(chosen.start), x(next ? next.start : total)];
    add("rect", { class: "band", x: left, y: AXIS_PX, width: Math.max(2, right - left), height: LANES * LANE_PX });
  }

  #flags(add, x, flags) {
    for (const ms of flags) {
      const at = x(ms);
      if (at >= -6 && at <= this.#width + 6) add("path", { class: "flag", d: `M${at - 5} ${AXIS_PX - 8}h10l-5 7z` });
    }
  }

  #axis(add, x, height) {
    const fits = this.#width / 70;
    const step = STEPS.find((each) => this.#span / each <= fits) ?? STEPS.at(-1) * Math.ceil(this.#span / STEPS.at(-1) / fits);
    for (let lane = 0; lane <= LANES; lane += 1) {
      const y = AXIS_PX + lane * LANE_PX;
      add("line", { class: "lane-line", x1: 0, x2: this.#width, y1: y, y2: y });
    }
    for (let ms = Math.ceil(this.#from / step) * step; ms <= this.#from + this.#span; ms += step) {
      add("line", { class: "tick", x1: x(ms), x2: x(ms), y1: AXIS_PX, y2: height });
      const at = x(ms);
      const anchor = at < 18 ? "start" : at > this.#width - 18 ? "end" : "middle";
      add("text", { x: at, y: 11, "text-anchor": anchor, text: offset(ms).replace(/\.0$/, "") });
    }
  }

  #marks(add, x, total) {
    this.#sorted ??= [...this.#items.values()]
      .flatMap((item) => item.marks.map((mark) => ({ item, mark })))
      // What matters is drawn last, over what lies in the same place.
      .sort((one, other) => LOUD.has(one.mark[1]) - LOUD.has(other.mark[1]) || one.mark[2] - other.mark[2]);
    const covered = new Map();
    const end = this.#from + this.#span;
    for (const { item, mark } of this.#sorted) {
      const [lane, kind, from, to] = mark;
      const until = Math.min(to ?? total, Math.max(total, from));
      if (until < this.#from || from > end) continue;
      const left = x(from);
      // Thinner than that nobody sees it; what matters is wider.
      const width = Math.max(LOUD.has(kind) || to === from ? 3 : 1, x(until) - left);
      // Of a call of hours many marks fall on one pixel; one of each kind is drawn there.
      const key = `${lane} ${kind}`;
      if (left + width <= (covered.get(key) ?? -Infinity)) continue;
      covered.set(key, left + width);
      this.#mark(add, item, lane, kind, left, width, to === null);
    }
  }

  #mark(add, item, lane, kind, left, width, open) {
    const low = kind === "clean" || kind === "skipped" || kind === "reported";
    const inset = low ? INSET_PX + 5 : INSET_PX;
    const y = AXIS_PX + lane * LANE_PX + inset;
    const height = LANE_PX - 2 * inset;
    const shape = { x: left, y, width, height, rx: 2, "data-turn": item.turn ?? undefined, "data-item": item.id };
    add("rect", { ...shape, class: `mark mark-${kind}${open ? " mark-open" : ""}`, "data-kind": kind });
    if (kind === "cut" && width > 6) {
      let d = "";
      for (let at = left - height; at < left + width; at += 7) {
        const [from, to] = [Math.max(at, left), Math.min(at + height, left + width)];
        d += `M${from} ${y + height - (from - at)}L${to} ${y + height - (to - at)}`;
      }
      add("path", { class: "hatch", d });
    } else if (kind === "blocked") {
      const middle = left + width / 2;
      add("path", { class: "cross", d: `M${middle - 4} ${y + height / 2 - 4}l8 8m0 -8l-8 8` });
    } else if (kind === "violation") {
      add("path", { class: "alarm", d: `M${left} ${y - 4}h7l-3.5 5z` });
    }
  }

  #paintOverview(total) {
    this.#overview.toggleAttribute("hidden", this.#whole);
    if (this.#whole) return;
    const width = Math.floor(this.#overview.getBoundingClientRect().width) || this.#width;
    const x = (ms) => (ms / total) * width;
    const drawn = [["rect", { class: "overview-all", x: 0, y: 4, width, height: 10, rx: 3 }]];
    let last = -1;
    for (const { mark } of this.#sorted) {
      if (!LOUD.has(mark[1])) continue;
      const at = Math.floor(x(mark[2]));
      if (at === last) continue;
      last = at;
      drawn.push(["rect", { class: `mark mark-${mark[1]}`, x: at, y: 4, width: 2, height: 10 }]);
    }
    const view = { x: x(this.#from), y: 1, width: Math.max(6, x(this.#span)), height: 16, rx: 3 };
    drawn.push(["rect", { class: "overview-view", ...view }]);
    drawn.push(["line", { class: "playhead", x1: x(this.#at), x2: x(this.#at), y1: 0, y2: 18 }]);
    this.#overview.setAttribute("viewBox", `0 0 ${width} 18`);
    paint(this.#overview, drawn);
  }

  #highlights() {
    return [...document.querySelectorAll("#highlights [data-at]")].map((link) => Number(link.dataset.at));
  }

  #say(total) {
    const turn = this.turnAt(this.#at);
    const words = [offset(this.#at), ...(turn ? [`turn ${turn.n}`, ...new Set(turn.words)] : [])].join(", ");
    this.#stage.setAttribute("aria-valuemax", Math.round(total));
    this.#stage.setAttribute("aria-valuenow", Math.round(this.#at));
    if (this.#stage.getAttribute("aria-valuetext") !== words) this.#stage.setAttribute("aria-valuetext", words);
    const shown = `${offset(this.#at)} of ${offset(total)}`;
    const place = this.querySelector("[data-position]");
    if (place.textContent !== shown) place.textContent = shown;
  }
}

// Elements are used again and only what differs is set: a live call is drawn twice a second.
function paint(svg, drawn) {
  let place = svg.firstElementChild;
  for (const [name, { text, ...attributes }] of drawn) {
    let element = place;
    if (element?.localName !== name) {
      element = document.createElementNS(SVG, name);
      svg.insertBefore(element, place);
      // What stands there now is of another kind; it may fit the next one.
    } else place = element.nextElementSibling;
    const wanted = Object.entries(attributes).filter(([, value]) => value !== undefined);
    for (const [key, value] of wanted) {
      const now = typeof value === "number" ? String(Math.round(value * 100) / 100) : value;
      if (element.getAttribute(key) !== now) element.setAttribute(key, now);
    }
    if (element.attributes.length > wanted.length) {
      for (const { name: key } of [...element.attributes]) {
        if (attributes[key] === undefined) element.removeAttribute(key);
      }
    }
    if (text !== undefined && element.textContent !== text) element.textContent = text;
  }
  while (place) {
    const after = place.nextElementSibling;
    place.remove();
    place = after;
  }
}

customElements.define("call-timeline", CallTimeline);
