// <test-call>: a telephone in the page. It speaks to /ws/test-call (webui/phone.py), which is Plivo for it, and shows
// what Mirror makes of the call as the call's own page does.
import { devicesOf, microphoneOpen, PhoneAudio } from "./phone_audio.js";
import { duration } from "./time.js";

const ACK_MS = 500;
const MOST_EVENTS = 300;
const GONE = {
  4401: "You are signed out. Sign in again, and call again.",
  4403: "Your role here may not place test calls.",
  4409: "You have switched to another tenant: reload the page.",
};
const LOST = "The connection to Mirror was lost, so the call was hung up. Call again.";

class TestCall extends HTMLElement {
  #socket = null;
  #audio = null;
  #microphone = null;
  #format = null;
  #timers = [];
  #received = 0;
  #ended = false;
  #startedAt = null;

  connectedCallback() {
    this.place = this.querySelector(".phone-place");
    this.panel = this.querySelector(".phone-call");
    this.agent = this.querySelector("#phone-agent");
    this.lines = this.querySelector("#phone-lines");
    this.lines.dataset.given = this.lines.value;
    this.agent.addEventListener("change", () => this.#agentChosen());
    this.place.addEventListener("submit", (event) => {
      event.preventDefault();
      // Enter in a field stands for the first button.
      this.#call(event.submitter?.value ?? "script");
    });
    this.#on(".phone-hang-up", "click", () => this.#hangUp());
    this.#on(".phone-again", "click", () => this.#again());
    this.#on(".phone-mute", "click", (event) => this.#mute(event.currentTarget));
    this.#on(".phone-say", "submit", (event) => this.#say(event));
    this.#on(".phone-pad", "click", (event) => {
      if (event.target.value) this.#send({ type: "press", digits: event.target.value });
    });
    // Until now a click would have sent the form, which is not what it is for.
    for (const button of this.place.querySelectorAll("button")) button.disabled = false;
    // Leaving the page hangs up; while a call runs, what is linked opens beside it.
    this.#on(".phone-supervision", "click", (event) => {
      const link = event.target.closest("a[href]");
      if (!this.#socket || !link || link.getAttribute("href").startsWith("#")) return;
      event.preventDefault();
      open(link.href, "_blank", "noopener");
    });
    this.#on("#phone-microphone", "change", (event) => this.#microphoneChange(event.target.value));
    this.#on("#phone-speaker", "change", (event) => this.#audio?.speakerChoose(event.target.value));
  }

  disconnectedCallback() {
    this.#close();
  }

  #on(selector, kind, handler) {
    this.querySelector(selector).addEventListener(kind, handler);
  }

  #show(selector, shown) {
    for (const element of this.querySelectorAll(selector)) element.hidden = !shown;
  }

  /** The lines go with the agent, unless somebody has written their own. */
  #agentChosen() {
    const option = this.agent.selectedOptions[0];
    if (this.lines.value === this.lines.dataset.given) this.lines.value = option.dataset.lines;
    this.lines.dataset.given = option.dataset.lines;
    const hint = this.querySelector(".phone-hint");
    hint.textContent = option.dataset.hint;
    hint.hidden = !option.dataset.hint;
  }

  // -- the course of a call

  async #call(caller) {
    if (this.#socket || this.getAttribute("state") !== "idle") return;
    this.#problem("");
    this.setAttribute("state", "calling");
    this.#ended = false;
    this.#received = 0;
    this.#startedAt = null;
    const own = caller === "microphone";
    const lines = own ? null : this.lines.value.split("\n");
    let silent = "";
    try {
      this.#audio = await PhoneAudio.make(this.getAttribute("worklet")).catch((error) => {
        if (own) throw new Error(`The microphone cannot be used: this browser’s sound does not work (${error.message}). Let a script speak.`);
        silent = `You will not hear the call: this browser plays no sound (${error.message}).`;
        return null;
      });
      this.#microphone = own ? await microphoneOpen(this.querySelector("#phone-microphone").value) : null;
    } catch (error) {
      this.#refused(error.message);
      return;
    }
    const name = this.agent.selectedOptions[0].textContent;
    this.#fresh(own, `Calling ${name}…`);
    this.#note(silent);
    const url = new URL("/ws/test-call", location.href);
    url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    url.searchParams.set("tenant", document.documentElement.dataset.tenant);
    const socket = new WebSocket(url);
    socket.binaryType = "arraybuffer";
    this.#socket = socket;
    socket.addEventListener("open", () => this.#send({ type: "place", agent: this.agent.value, lines }));
    socket.addEventListener("message", ({ data }) => {
      if (socket !== this.#socket) return;
      if (data instanceof ArrayBuffer) this.#heard(data);
      else this.#take(JSON.parse(data));
    });
    socket.addEventListener("close", ({ code }) => {
      if (socket === this.#socket && !this.#ended) this.#over({ words: GONE[code] ?? LOST, failed: true });
    });
    this.#every(ACK_MS, () => this.#send({ type: "heard", bytes: this.#received }));
  }

  #fresh(own, words) {
    this.place.hidden = true;
    this.panel.hidden = false;
    this.#show(".phone-own", own);
    this.#show(".phone-mute", own);
    this.#show(".phone-hang-up, .phone-say, .phone-keys", true);
    this.#show(".phone-again, .phone-open, .phone-live", false);
    for (const selector of [".phone-lines", ".phone-events"]) this.querySelector(selector).replaceChildren();
    this.querySelector(".phone-time").textContent = "";
    this.#status(words);
    this.querySelector(".phone-hang-up").focus();
  }

  #take(message) {
    switch (message.type) {
      case "format":
        this.#format = { encoding: message.encoding, rate: message.rate };
        this.#sound();
        break;
      case "wire":
        this.#wire(message);
        if (message.event === "start") this.#answered();
        break;
      case "call":
        this.#supervision(message.id);
        break;
      case "unrecorded":
        this.#note("What Mirror does in this call cannot be shown now, for its record does not come. The call goes on; look for it among the calls later.");
        break;
      case "caller":
        this.#line(message.at_ms, message.text, message.ms);
        break;
      case "agent":
        this.toggleAttribute("agent-speaks", message.speaks);
        break;
      case "voice":
        this.#note(`The caller’s lines are beeps, a beep a word: ${message.problem}. An agent that transcribes hears no words.`);
        break;
      case "refused":
        this.#refused(message.message);
        break;
      case "ended":
        this.#over(message);
        break;
      default: // beat
    }
  }

  async #sound() {
    if (!this.#audio) return;
    const level = this.querySelector(".phone-agent-level");
    const own = this.querySelector(".phone-own-level");
    await this.#audio.listen(this.#format, (value) => {
      level.value = value;
    });
    if (this.#microphone) {
      const said = (audio) => this.#socket?.readyState === WebSocket.OPEN && this.#socket.send(audio);
      this.#audio.speak(this.#microphone, this.#format, said, (value) => {
        own.value = value;
      });
    }
    await this.#devices();
  }

  async #microphoneChange(device) {
    if (!this.#audio || !this.#microphone) return;
    try {
      const stream = await microphoneOpen(device);
      // The call may have ended while the browser asked.
      if (!this.#audio) stop(stream);
      else this.#audio.microphoneChange((this.#microphone = stream));
    } catch (error) {
      this.#note(error.message);
    }
  }

  async #devices() {
    const microphones = this.#microphone ? await devicesOf("audioinput") : [];
    const speakers = this.#audio?.choosesSpeaker ? await devicesOf("audiooutput") : [];
    options(this.querySelector("#phone-microphone"), microphones);
    options(this.querySelector("#phone-speaker"), speakers);
    this.#show(".phone-speakers", speakers.length > 0);
    this.#show(".phone-devices", microphones.length + speakers.length > 0);
  }

  #answered() {
    this.setAttribute("state", "talking");
    this.#startedAt = performance.now();
    this.#show(".phone-live", true);
    this.#status(this.#microphone ? "Speak now." : "The script speaks.");
    const time = this.querySelector(".phone-time");
    this.#every(100, () => {
      time.textContent = duration(performance.now() - this.#startedAt);
    });
  }

  #heard(audio) {
    this.#received += audio.byteLength;
    this.#audio?.play(audio);
  }

  #supervision(id) {
    const topic = document.createElement("live-topic");
    topic.setAttribute("topic", `call:${id}`);
    topic.setAttribute("after", "0");
    topic.append(this.querySelector("template").content.cloneNode(true));
    this.querySelector(".phone-live-place").replaceChildren(topic);
    const open = this.querySelector(".phone-open");
    open.href = `/calls/${id}`;
    open.hidden = false;
  }

  #hangUp() {
    this.#status("Hanging up…");
    this.#send({ type: "hang_up" });
    // The server closes when the call is written down; one that has not begun is over at once.
    if (this.#startedAt === null) this.#over({ words: "The call was hung up before it began.", failed: false });
  }

  #over({ words, failed, heard_ms: heard }) {
    this.#ended = true;
    this.#status(heard ? `${words} ${duration(heard)} of the agent and of Mirror were heard.` : words);
    this.panel.classList.toggle("phone-failed", failed);
    this.#show(".phone-live, .phone-hang-up, .phone-mute, .phone-say, .phone-keys", false);
    this.#show(".phone-again", true);
    this.removeAttribute("agent-speaks");
    this.setAttribute("state", "ended");
    this.#close();
    this.querySelector(".phone-again").focus();
  }

  #refused(words) {
    this.#ended = true;
    this.#close();
    this.#again();
    this.#problem(words);
  }

  #again() {
    this.panel.hidden = true;
    this.panel.classList.remove("phone-failed");
    this.#note("");
    this.place.hidden = false;
    this.setAttribute("state", "idle");
    this.place.querySelector("button").focus();
  }

  #close() {
    for (const timer of this.#timers) clearInterval(timer);
    this.#timers = [];
    this.#socket?.close();
    this.#socket = null;
    stop(this.#microphone);
    this.#microphone = null;
    this.#audio?.close();
    this.#audio = null;
    for (const meter of this.querySelectorAll("meter")) meter.value = 0;
  }

  // -- the caller

  #say(event) {
    event.preventDefault();
    const field = event.target.elements.line;
    const text = field.value.trim();
    if (!text) return;
    this.#send({ type: "say", text });
    field.value = "";
  }

  #mute(button) {
    const muted = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(muted));
    this.#audio?.mute(muted);
  }

  // -- words

  #line(at, text, ms) {
    const item = document.createElement("li");
    const said = word("span", "", `${text} `);
    said.append(word("span", "quiet small figure", duration(ms)));
    item.append(word("span", "at figure", duration(at)), said);
    this.querySelector(".phone-lines").append(item);
  }

  #wire({ at_ms: at, from, event, detail }) {
    const list = this.querySelector(".phone-events");
    const item = document.createElement("li");
    const arrow = from === "plivo" ? "Plivo → Mirror" : "Mirror → Plivo";
    item.append(word("span", "at figure", duration(at)), word("span", "quiet", arrow), word("code", "", event), word("span", "", detail));
    // Whoever has scrolled back to read goes on reading.
    const atEnd = list.scrollTop + list.clientHeight >= list.scrollHeight - 4;
    list.append(item);
    if (atEnd) list.scrollTop = list.scrollHeight;
    while (list.childElementCount > MOST_EVENTS) list.firstElementChild.remove();
  }

  #status(words) {
    this.querySelector(".phone-said").textContent = words;
  }

  #note(words) {
    this.#banner(".phone-note", words);
  }

  #problem(words) {
    this.#banner(".phone-problem", words);
  }

  #banner(selector, words) {
    const banner = this.querySelector(selector);
    banner.querySelector("p").textContent = words;
    banner.hidden = !words;
  }

  #send(message) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }

  #every(ms, work) {
    this.#timers.push(setInterval(work, ms));
  }
}

function stop(stream) {
  for (const track of stream?.getTracks() ?? []) track.stop();
}

function word(name, look, text) {
  const element = document.createElement(name);
  if (look) element.className = look;
  element.textContent = text;
  return element;
}

function options(select, devices) {
  const { value } = select;
  select.replaceChildren(...devices.map((device) => new Option(device.label, device.deviceId, false, device.deviceId === value)));
}

customElements.define("test-call", TestCall);
