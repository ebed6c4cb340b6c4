// What pages ask for by htmx: each request carries the CSRF token, and one that fails says so on top of the page.
const SAFE = ["get", "head"];

const WORDS = {
  403: "Your role does not include this, or you have signed in anew meanwhile. Nothing was changed. Reload the page and try again.",
  404: "What this is about is not there any more. Nothing was changed. Reload the page.",
  429: "That was too often. Nothing was changed. Wait a minute and try again.",
};
const BROKEN = "Something broke on our side. What you typed is still here: try again in a moment.";
const UNHEARD = "The server did not answer. What you typed is still here: check your connection and try again.";

class RequestProblem extends HTMLElement {
  #handlers = {
    "htmx:configRequest": ({ detail }) => {
      if (!SAFE.includes(detail.verb)) detail.headers["X-CSRFToken"] = this.dataset.csrf;
    },
    "htmx:beforeRequest": () => this.say(""),
    "htmx:responseError": ({ detail }) => this.say(WORDS[detail.xhr.status] ?? BROKEN),
    "htmx:sendError": () => this.say(UNHEARD),
    "htmx:timeout": () => this.say(UNHEARD),
  };

  connectedCallback() {
    for (const [name, handler] of Object.entries(this.#handlers)) document.addEventListener(name, handler);
  }

  disconnectedCallback() {
    for (const [name, handler] of Object.entries(this.#handlers)) document.removeEventListener(name, handler);
  }

  say(words) {
    this.querySelector(".banner")?.remove();
    if (words === "") return;
    const banner = this.querySelector("template").content.firstElementChild.cloneNode(true);
    banner.querySelector("p").textContent = words;
    this.append(banner);
    banner.scrollIntoView({ block: "nearest" });
  }
}

customElements.define("request-problem", RequestProblem);
