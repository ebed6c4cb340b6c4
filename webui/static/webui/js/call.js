import { fragment, morph } from "./morph.js";
import "./timeline.js";

// How long the playhead must rest before its turn is fetched: whoever holds a key down wants the last one only.
const REST_MS = 120;
const TYPES_IN = "input, textarea, select, [contenteditable]";

const domId = (turn) => `turn-${turn.replaceAll("-", "")}`;
const html = (text) => new DOMParser().parseFromString(text, "text/html").body;

async function fetched(url) {
  const response = await fetch(url, { headers: { Accept: "text/html" } });
  // Signed out meanwhile: the page itself leads to sign-in and back.
  if (response.redirected) location.reload();
  if (!response.ok || response.redirected) throw new Error(`${response.status} for ${url}`);
  return response.text();
}

// <call-view call="/calls/…">: the turns, the chosen one's panel and the timeline are about one turn. It is chosen in
// any of them, by keys, or, while a running call is followed, by the call itself. The URL names it.
class CallView extends HTMLElement {
  #url;
  #timeline;
  #turn;
  #following = false;
  #resting;
  #asked = 0;
  #refreshing = false;
  #again = false;

  connectedCallback() {
    this.#url = this.getAttribute("call");
    this.#timeline = this.querySelector("call-timeline");
    this.#turn = this.#panel.dataset.turn || null;
    this.#follow(this.#timeline.live && !this.hasAttribute("chosen-here"));
    this.addEventListener("click", (event) => this.#click(event));
    this.#timeline.addEventListener("playhead", ({ detail }) => this.#playheadMoved(detail));
    this.#timeline.addEventListener("news", ({ detail }) => this.#news(detail));
    document.addEventListener("keydown", this.#key);
    // An update of the list takes the mark off again.
    const marks = new MutationObserver(() => this.#mark());
    marks.observe(this, { subtree: true, childList: true, attributeFilter: ["aria-current"] });
    for (const button of this.querySelectorAll("[data-go]")) {
      button.addEventListener("click", () => this.#goHighlight(button.dataset.go === "highlight-after" ? 1 : -1));
    }
    this.querySelector("[data-follow]")?.addEventListener("click", () => this.#follow(!this.#following, true));
    this.querySelector("[data-retry]").addEventListener("click", () => this.#load(this.#turn));
    this.#mark();
    const ms = this.#start(this.#turn);
    this.#timeline.show(this.#turn, this.#following ? this.#timeline.total : ms);
    this.#reveal();
  }

  disconnectedCallback() {
    document.removeEventListener("keydown", this.#key);
  }

  get #panel() {
    return document.getElementById("chosen");
  }

  #start(turn) {
    return (turn && this.#timeline.turnNamed(turn)?.start) ?? 0;
  }

  // -- choosing ---------------------------------------------------------------------------------------------------

  #click(event) {
    if (event.defaultPrevented || event.button !== 0 || event.ctrlKey || event.metaKey || event.shiftKey) return;
    const more = event.target.closest("a[data-more]");
    if (more) {
      event.preventDefault();
      this.#more(more);
      return;
    }
    const link = event.target.closest("a[data-turn], a[data-at]");
    if (link) {
      const ms = link.dataset.at === undefined ? undefined : Number(link.dataset.at);
      const turn = link.dataset.turn ?? this.#timeline.turnAt(ms)?.turn;
      if (!turn) return;
      event.preventDefault();
      this.#choose(turn, { ms, hash: link.hash });
      return;
    }
    // Anywhere else on a turn, unless something of it is being selected.
    const row = event.target.closest("li.turn");
    const own = row?.querySelector("a[data-turn]");
    if (own && !event.target.closest("a, button") && getSelection().isCollapsed) this.#choose(own.dataset.turn, {});
  }

  #playheadMoved({ ms, turn }) {
    this.#follow(this.#timeline.live && ms >= this.#timeline.total - 50);
    if (turn && turn !== this.#turn) this.#choose(turn, { ms, rest: true, keep: true });
  }

  async #choose(turn, { ms, hash = "", rest = false, keep = false, follow = false }) {
    if (!follow && !keep) this.#follow(false);
    const changed = turn !== this.#turn;
    this.#turn = turn;
    this.#timeline.show(turn, follow ? this.#timeline.total : keep ? undefined : (ms ?? this.#start(turn)));
    this.#mark();
    clearTimeout(this.#resting);
    if (rest) {
      this.#resting = setTimeout(() => this.#load(turn), REST_MS);
      return;
    }
    if (changed) await this.#load(turn);
    if (this.#turn === turn && !follow) this.#arrive(hash);
  }

  /** Where a link led to: a piece of the panel, or the panel itself where it is not beside the turns. */
  #arrive(hash) {
    const target = hash.length > 1 ? document.getElementById(hash.slice(1)) : null;
    if (target && target !== this.#panel && this.#panel.contains(target)) {
      // Set as a link does, so that the piece is :target.
      location.hash = hash;
      return;
    }
    const panel = this.#panel.getBoundingClientRect();
    if (panel.top < 0 || panel.top > innerHeight * 0.8) this.#panel.scrollIntoView({ block: "start" });
  }

  async #load(turn) {
    const asked = ++this.#asked;
    try {
      const [panel, list] = await Promise.all([
        fetched(`${this.#url}/turns/${turn}`),
        document.getElementById(domId(turn)) ? null : fetched(`${this.#url}/turns?around=${turn}`),
      ]);
      // Somebody went on meanwhile.
      if (asked !== this.#asked) return;
      this.#problem(false);
      if (list) document.getElementById("turn-list").replaceWith(fragment(list));
      this.#put(fragment(panel));
      if (!this.#following) history.replaceState(null, "", `?turn=${turn}`);
      this.#mark();
      this.#reveal();
    } catch {
      if (asked === this.#asked) this.#problem(true);
    }
  }

  // A new panel takes the place of the old one whole: what was typed about one turn is not said of another.
  #put(next) {
    const [old, active] = [this.#panel, document.activeElement];
    const step = old.contains(active) ? active.closest("[rel]")?.rel : null;
    const panel = document.importNode(next, true);
    old.replaceWith(panel);
    panel.scrollTop = 0;
    window.htmx?.process(panel);
    if (step) (panel.querySelector(`[rel="${step}"]`) ?? panel.querySelector("h2")).focus({ preventScroll: true });
  }

  #mark() {
    const id = this.#turn ? domId(this.#turn) : "";
    for (const row of this.querySelectorAll("li[aria-current]")) if (row.id !== id) row.removeAttribute("aria-current");
    const row = document.getElementById(id);
    if (row && row.getAttribute("aria-current") !== "true") row.setAttribute("aria-current", "true");
  }

  /** Bring the chosen turn into sight in its list; the page itself stays where it is. */
  #reveal() {
    const list = document.getElementById("turn-list");
    const row = this.#turn && document.getElementById(domId(this.#turn));
    if (!row || !list || list.scrollHeight <= list.clientHeight) return;
    const [outer, inner] = [list.getBoundingClientRect(), row.getBoundingClientRect()];
    const above = inner.top - outer.top - 8;
    const below = inner.bottom - outer.bottom + 8;
    if (above >= 0 && below <= 0) return;
    // A step goes no further than it must; what lies far off comes to where one looks first.
    const near = Math.abs(above < 0 ? above : below) < outer.height;
    list.scrollTop += near && above >= 0 ? Math.min(below, above) : above - (near ? 0 : outer.height / 4);
  }

  #problem(shown) {
    this.querySelector("[data-problem]").hidden = !shown;
  }

  // -- keys -------------------------------------------------------------------------------------------------------

  #key = (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target instanceof Element && event.target.closest(TYPES_IN)) return;
    const step = { j: 1, k: -1 }[event.key.toLowerCase()];
    const highlight = { "]": 1, "[": -1 }[event.key];
    if (step) {
      const beside = this.#timeline.turnBeside(step);
      if (beside) this.#timeline.moveTo(beside.start, beside.turn);
    } else if (highlight) this.#goHighlight(highlight);
    else return;
    event.preventDefault();
  };

  #goHighlight(step) {
    const links = [...document.querySelectorAll("#highlights a[data-at]")];
    const at = this.#timeline.position;
    // A tenth of a second is what the playhead shows: nearer than that is here.
    const beyond = links.filter((link) => (Number(link.dataset.at) - at) * step > 100);
    const link = step > 0 ? beyond[0] : beyond.at(-1);
    if (!link) return;
    const ms = Number(link.dataset.at);
    this.#timeline.moveTo(ms, link.dataset.turn ?? null);
  }

  // -- what goes on -----------------------------------------------------------------------------------------------

  #follow(on, now = false) {
    this.#following = this.#timeline.following = on;
    this.querySelector("[data-follow]")?.setAttribute("aria-pressed", String(on));
    if (on && now) this.#followNewest();
  }

  #followNewest() {
    const newest = this.#timeline.turns.at(-1)?.turn;
    if (!newest) return;
    if (newest === this.#turn) {
      this.#timeline.show(newest, this.#timeline.total);
      this.#refresh();
    } else this.#choose(newest, { follow: true });
  }

  #news(items) {
    if (!this.#timeline.live) this.querySelector("[data-follow]")?.setAttribute("hidden", "");
    if (this.#following) this.#followNewest();
    else if (items.some((item) => item.turn === this.#turn || item.turn === null)) this.#refresh();
    if (!this.#timeline.live) this.#follow(false);
  }

  // The panel anew, morphed: what is open, focused or typed in it stays.
  async #refresh() {
    if (!this.#turn) return;
    if (this.#refreshing) {
      this.#again = true;
      return;
    }
    this.#refreshing = true;
    const turn = this.#turn;
    try {
      const next = fragment(await fetched(`${this.#url}/turns/${turn}`));
      if (turn === this.#turn && this.#panel.dataset.turn === turn) {
        morph(this.#panel, next);
        window.htmx?.process(this.#panel);
      }
    } catch {
      // The next update of the call asks again; the stale banner tells of a server that is gone.
    } finally {
      this.#refreshing = false;
      if (this.#again) {
        this.#again = false;
        this.#refresh();
      }
    }
  }

  // -- more -------------------------------------------------------------------------------------------------------

  async #more(link) {
    const place = link.closest(".more");
    const around = place.parentElement;
    const list = around.querySelector(":scope > ol");
    link.setAttribute("aria-busy", "true");
    try {
      const found = html(await fetched(link.dataset.more));
      insertMore(list, place, found);
      if (list.id === "turns-part" && !around.querySelector(":scope > ol ~ .more")) await this.#catchUp(list);
    } catch {
      // Without a script's help it leads to the page that shows them.
      location.href = link.href;
    }
  }

  /** The list reaches the end of the call: from now on new turns belong to it, and those of just now are fetched. */
  async #catchUp(list) {
    list.id = "turns";
    const last = [...list.querySelectorAll(":scope > li a[data-turn]")].at(-1);
    if (!this.#timeline.live || !last) return;
    insertMore(list, null, html(await fetched(`${this.#url}/turns?after=${last.dataset.turn}`)));
  }
}

// The rows of `found` into `list`, each at its place and none twice; its link to yet more in the place of the old one.
function insertMore(list, place, found) {
  for (const row of [...found.querySelectorAll("ol > li")]) {
    if (document.getElementById(row.id)) continue;
    const after = [...list.children].find((other) => other.dataset.order > row.dataset.order) ?? null;
    list.insertBefore(document.importNode(row, true), after);
  }
  const next = found.querySelector(".more");
  if (!place) return;
  if (next) place.replaceWith(document.importNode(next, true));
  else place.remove();
}

// The log stands below the view: its link is its own.
document.addEventListener("click", async (event) => {
  const link = event.target.closest?.("#event-list a[data-more]");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  try {
    const list = document.querySelector("#event-list > ol");
    insertMore(list, link.closest(".more"), html(await fetched(link.dataset.more)));
  } catch {
    location.href = link.href;
  }
});

customElements.define("call-view", CallView);
