// The page's one WebSocket. Topics share it: subscribe(topic, …) keeps a topic subscribed over reconnects.
//
// States, told by the "state" event: connecting (first time), live, stale (lost; it keeps trying), closed (for good:
// signed out, no member any more, or switched to another tenant).

const FIRST_RETRY_MS = 500;
const MOST_RETRY_MS = 15_000;
// The server says something at least every 10 s.
const SILENCE_MS = 25_000;
const SIGNED_OUT = 4401;
const NO_MEMBER = 4403;
const SWITCHED = 4409;

class ConsoleSocket extends EventTarget {
  #topics = new Map();
  #socket = null;
  #retryMs = FIRST_RETRY_MS;
  #retryTimer;
  #silenceTimer;
  state = "idle";
  lastHeard = null;
  retryAt = null;
  closedCode = null;

  /** `request()` gives the fields of each subscribe message, `update(message)` takes what comes back. */
  subscribe(topic, request, update) {
    this.#topics.set(topic, { request, update, n: 0 });
    if (!this.#socket) this.#open();
    else if (this.#socket.readyState === WebSocket.OPEN) this.#ask(topic);
  }

  unsubscribe(topic) {
    if (!this.#topics.delete(topic)) return;
    this.#send({ type: "unsubscribe", topic });
  }

  retryNow() {
    if (this.state === "stale") this.#open();
  }

  #open() {
    clearTimeout(this.#retryTimer);
    this.retryAt = null;
    if (this.state === "idle") this.#become("connecting");
    else this.#told();
    const url = new URL("/ws/console", location.href);
    url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    // The tenant that this page is about; the session may be in another one by now.
    const { tenant } = document.documentElement.dataset;
    if (tenant) url.searchParams.set("tenant", tenant);
    const socket = new WebSocket(url);
    this.#socket = socket;
    socket.addEventListener("open", () => {
      if (socket !== this.#socket) return;
      for (const topic of this.#topics.keys()) this.#ask(topic);
      this.#heard();
    });
    socket.addEventListener("message", (event) => {
      if (socket === this.#socket) this.#take(JSON.parse(event.data));
    });
    socket.addEventListener("close", (event) => {
      if (socket === this.#socket) this.#lost(event.code);
    });
  }

  #ask(name) {
    const topic = this.#topics.get(name);
    topic.n = 0;
    this.#send({ ...topic.request(), type: "subscribe", topic: name });
  }

  #send(message) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }

  #take(message) {
    this.#heard();
    // Live means: the server has shown that it serves us. An accepted socket that says nothing is not live.
    this.#retryMs = FIRST_RETRY_MS;
    this.#become("live");
    if (message.type === "update") this.#update(message);
  }

  #update(message) {
    const topic = this.#topics.get(message.topic);
    if (!topic) return;
    if (message.n !== topic.n + 1) {
      // Something is missing: from the start again. Or it is of the subscription before, and nobody waits for it.
      if (topic.n > 0) this.#ask(message.topic);
      return;
    }
    topic.n = message.n;
    topic.update(message);
    // Until this arrives the server sends no more of the topic: a slow browser gets fewer, larger updates.
    this.#send({ type: "ack", topic: message.topic, n: message.n });
  }

  #heard() {
    this.lastHeard = new Date();
    clearTimeout(this.#silenceTimer);
    this.#silenceTimer = setTimeout(() => {
      this.#socket?.close();
      this.#lost(0);
    }, SILENCE_MS);
  }

  #lost(code) {
    clearTimeout(this.#silenceTimer);
    this.#socket = null;
    this.closedCode = code;
    if (code === SIGNED_OUT || code === NO_MEMBER || code === SWITCHED) {
      this.#become("closed");
      return;
    }
    // Between half and all of the wait: browsers that lost the same server do not come back at once.
    const wait = this.#retryMs * (0.5 + Math.random() / 2);
    this.#retryMs = Math.min(this.#retryMs * 2, MOST_RETRY_MS);
    this.retryAt = Date.now() + wait;
    this.#become("stale", true);
    clearTimeout(this.#retryTimer);
    this.#retryTimer = setTimeout(() => this.#open(), wait);
  }

  #become(state, always = false) {
    if (state === this.state && !always) return;
    this.state = state;
    this.#told();
  }

  #told() {
    this.dispatchEvent(new Event("state"));
  }
}

export const consoleSocket = new ConsoleSocket();

// Back from sleep or offline: do not wait for the timer.
addEventListener("online", () => consoleSocket.retryNow());
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) consoleSocket.retryNow();
});
