import { fragment, morph } from "./morph.js";
import { consoleSocket } from "./socket.js";
import { clock } from "./time.js";

const MOST_CHILDREN = 5000;

// <live-topic topic="call:…" after="12">: what the server renders of this topic is put into the page.
//
// An update's parts name an element by id. One that is there is morphed; another is put into the list `into`, at the
// place that its data-order has among its siblings. `only` names all that a list still holds.
class LiveTopic extends HTMLElement {
  connectedCallback() {
    consoleSocket.subscribe(
      this.getAttribute("topic"),
      () => ({ after: Number(this.getAttribute("after") ?? 0), query: this.getAttribute("query") ?? "" }),
      (message) => this.update(message),
    );
  }

  disconnectedCallback() {
    consoleSocket.unsubscribe(this.getAttribute("topic"));
  }

  update({ seq, parts, announce }) {
    for (const part of parts) {
      if (part.remove) document.getElementById(part.id)?.remove();
      else if (part.only) keep(part);
      else place(part);
    }
    if (seq !== undefined) this.setAttribute("after", seq);
    for (const words of announce ?? []) say(words);
  }
}

function keep({ id, only }) {
  for (const child of [...document.getElementById(id).children]) {
    if (!only.includes(child.id)) child.remove();
  }
}

function place({ id, into, html }) {
  const next = fragment(html);
  let element = document.getElementById(id);
  const list = into ? document.getElementById(into) : null;
  if (element) {
    element = morph(element, next);
    if (!list || (element.parentElement === list && inOrder(element))) return;
  } else {
    element = document.importNode(next, true);
    element.classList.add("fresh");
    element.addEventListener("animationend", () => element.classList.remove("fresh"), { once: true });
  }
  if (!list) {
    element.remove();
    return;
  }
  list.insertBefore(element, successor(list, element));
  // A page that stays open all day does not grow for ever: what falls off is on the next page.
  while (list.childElementCount > MOST_CHILDREN) {
    (list.dataset.sort === "desc" ? list.lastElementChild : list.firstElementChild).remove();
  }
}

const comesBefore = (list, one, other) =>
  list.dataset.sort === "desc" ? one.dataset.order > other.dataset.order : one.dataset.order < other.dataset.order;

function inOrder(element) {
  const list = element.parentElement;
  const { previousElementSibling: before, nextElementSibling: after } = element;
  return !(before && comesBefore(list, element, before)) && !(after && comesBefore(list, after, element));
}

function successor(list, element) {
  // From the end: what is new in a growing list mostly belongs there.
  let after = null;
  for (let child = list.lastElementChild; child; child = child.previousElementSibling) {
    if (child === element) continue;
    if (!comesBefore(list, element, child)) break;
    after = child;
  }
  return after;
}

// Read out by screen readers, in the order in which it happened.
let voice;
function say(words) {
  if (!voice) {
    voice = document.createElement("div");
    voice.className = "unseen";
    voice.setAttribute("role", "log");
    voice.setAttribute("aria-label", "What has just happened");
    document.body.append(voice);
  }
  const line = document.createElement("p");
  line.textContent = words;
  voice.append(line);
  while (voice.childElementCount > 20) voice.firstElementChild.remove();
}

class LiveStatus extends HTMLElement {
  #show = () => {
    const words = { connecting: "Connecting…", live: "Live updates", stale: "Not live", closed: "Not live" }[consoleSocket.state];
    if (!words) return;
    this.setAttribute("state", consoleSocket.state);
    if (this.textContent !== words) this.textContent = words;
  };

  connectedCallback() {
    consoleSocket.addEventListener("state", this.#show);
    this.#show();
  }

  disconnectedCallback() {
    consoleSocket.removeEventListener("state", this.#show);
  }
}

class StaleBanner extends HTMLElement {
  #countdown;
  #show = () => {
    const { state, lastHeard, retryAt } = consoleSocket;
    const shown = state === "closed" || (state === "stale" && lastHeard !== null);
    this.toggleAttribute("shown", shown);
    this.firstElementChild.hidden = !shown;
    clearInterval(this.#countdown);
    if (!shown) return;
    this.querySelector("[data-since]").textContent = lastHeard ? clock(lastHeard) : "when the page was loaded";
    const retry = this.querySelector("[data-retry]");
    if (state === "closed") {
      retry.textContent = "You are signed out, no member of this tenant any more, or have switched to another one: reload the page.";
      return;
    }
    const count = () => {
      const seconds = retryAt === null ? 0 : Math.ceil((retryAt - Date.now()) / 1000);
      retry.textContent = seconds > 0 ? `Trying again in ${seconds} s.` : "Trying again…";
    };
    count();
    this.#countdown = setInterval(count, 1000);
  };

  connectedCallback() {
    consoleSocket.addEventListener("state", this.#show);
    this.#show();
  }

  disconnectedCallback() {
    consoleSocket.removeEventListener("state", this.#show);
    clearInterval(this.#countdown);
  }
}

customElements.define("live-topic", LiveTopic);
customElements.define("live-status", LiveStatus);
customElements.define("stale-banner", StaleBanner);
