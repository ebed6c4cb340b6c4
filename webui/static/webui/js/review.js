// Reviewing by keys: whatever has data-key is checked, followed or sent by it. Single keys can be switched off, as
// speech input types letters by mistake.
const OFF = "review-keys-off";
const mac = /Mac|iPhone|iPad/.test(navigator.platform);

class ReviewKeys extends HTMLElement {
  #listen = (event) => this.#press(event);

  connectedCallback() {
    document.addEventListener("keydown", this.#listen);
    const help = this.querySelector("[data-help]");
    help.hidden = false;
    help.addEventListener("click", () => this.#dialog.showModal());
    for (const keys of this.querySelectorAll("[data-submit-keys]")) keys.textContent = mac ? "⌘ ↵" : "Ctrl ↵";
    const on = this.querySelector("[data-keys-on]");
    on.checked = !this.#off;
    on.addEventListener("change", () => localStorage.setItem(OFF, on.checked ? "" : "1"));
  }

  disconnectedCallback() {
    document.removeEventListener("keydown", this.#listen);
  }

  get #dialog() {
    return this.querySelector("dialog");
  }

  get #off() {
    return localStorage.getItem(OFF) === "1";
  }

  get #form() {
    return this.querySelector("form.review-form");
  }

  #press(event) {
    if (event.defaultPrevented || event.isComposing || this.#dialog.open) return;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      this.#next();
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const writing = event.target.closest("textarea, select, input:not([type=radio]), [contenteditable]");
    if (writing) {
      if (event.key === "Escape" && this.#form?.contains(writing)) writing.blur();
      return;
    }
    if (event.key === "?") {
      event.preventDefault();
      this.#dialog.showModal();
      return;
    }
    // A key that is held down would run through the queue.
    if (this.#off || event.repeat || event.key.length !== 1) return;
    const key = event.key.toLowerCase();
    if (key === "n") {
      const note = this.#form?.elements.note;
      if (!note) return;
      event.preventDefault();
      note.focus();
      return;
    }
    const wanted = this.querySelector(`[data-key="${CSS.escape(key)}"]`);
    if (!wanted) return;
    event.preventDefault();
    if (wanted.matches("input[type=radio]")) {
      wanted.checked = true;
      wanted.focus();
    } else {
      wanted.click();
    }
  }

  // Without a label there is nothing to save.
  #next() {
    if (this.#form?.querySelector("input[name=label]:checked")) this.#form.requestSubmit();
    else this.querySelector('[data-key="j"]')?.click();
  }
}

customElements.define("review-keys", ReviewKeys);
