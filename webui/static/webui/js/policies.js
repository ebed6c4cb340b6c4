// The page of a policy's version: rows of rules that can be moved, and a panel that judges without leaving the page.
// Without this module the same buttons send the form, and the server answers with the page.

// -- rows ------------------------------------------------------------------------------------------------------------

class RuleRows extends HTMLElement {
  #list;
  #made = 0;

  connectedCallback() {
    this.#list = this.querySelector("ol");
    this.#show();
    this.addEventListener("click", (event) => {
      const button = event.target.closest("[data-do]");
      if (!button) return;
      event.preventDefault();
      this.#do(button.dataset.do, button.closest(".rule-row"), button);
    });
    this.addEventListener("keydown", (event) => {
      const row = event.target.closest(".rule-row");
      if (!row || (event.key !== "ArrowUp" && event.key !== "ArrowDown")) return;
      // On the handle the arrows alone, in its fields with Alt.
      if (!event.target.closest("[data-grip]") && !event.altKey) return;
      event.preventDefault();
      this.#do(event.key === "ArrowUp" ? "up" : "down", row, event.target);
    });
    this.addEventListener("pointerdown", (event) => this.#drag(event));
    this.addEventListener("change", (event) => {
      if (event.target.matches("[type=checkbox]")) event.target.closest(".rule-row").classList.toggle("off", !event.target.checked);
    });
  }

  #do(what, row, focused) {
    if (what === "add") {
      this.#made += 1;
      const made = this.querySelector("template").content.firstElementChild.outerHTML.replaceAll("__key__", `n${this.#made}${Date.now() % 1e6}`);
      this.#list.insertAdjacentHTML("beforeend", made);
      this.#changed();
      this.#list.lastElementChild.querySelector("textarea").focus();
      return;
    }
    if (what === "remove") {
      const next = row.nextElementSibling ?? row.previousElementSibling;
      const place = this.#place(row);
      row.remove();
      this.#changed(`Rule ${place} removed.`);
      (next?.querySelector("textarea") ?? this.querySelector("[data-do=add]")).focus();
      return;
    }
    const other = what === "up" ? row.previousElementSibling : row.nextElementSibling;
    if (!other) return;
    if (what === "up") other.before(row);
    else other.after(row);
    this.#moved(row);
    focused.focus();
  }

  #drag(event) {
    const grip = event.target.closest("[data-grip]");
    if (!grip || event.button !== 0) return;
    event.preventDefault();
    grip.focus();
    grip.setPointerCapture(event.pointerId);
    const row = grip.closest(".rule-row");
    const from = this.#place(row);
    row.classList.add("dragged");
    const move = ({ clientY }) => {
      for (const other of this.#list.children) {
        if (other === row) continue;
        const { top, height } = other.getBoundingClientRect();
        const before = row.compareDocumentPosition(other) & Node.DOCUMENT_POSITION_PRECEDING;
        if (before && clientY < top + height / 2) {
          other.before(row);
          return;
        }
      }
      for (const other of [...this.#list.children].reverse()) {
        if (other === row) continue;
        const { top, height } = other.getBoundingClientRect();
        const after = row.compareDocumentPosition(other) & Node.DOCUMENT_POSITION_FOLLOWING;
        if (after && clientY > top + height / 2) {
          other.after(row);
          return;
        }
      }
    };
    const end = () => {
      grip.removeEventListener("pointermove", move);
      row.classList.remove("dragged");
      if (this.#place(row) !== from) this.#moved(row);
    };
    grip.addEventListener("pointermove", move);
    grip.addEventListener("lostpointercapture", end, { once: true });
  }

  #place(row) {
    return [...this.#list.children].indexOf(row) + 1;
  }

  #moved(row) {
    this.#changed(`Moved to place ${this.#place(row)} of ${this.#list.childElementCount}.`);
  }

  #changed(words = "") {
    this.#show();
    this.querySelector("[data-said]").textContent = words;
    this.dispatchEvent(new Event("input", { bubbles: true }));
  }

  #show() {
    const rows = [...this.#list.children];
    rows.forEach((row, at) => {
      row.querySelector("[data-grip]").hidden = false;
      row.querySelector("[data-place]").textContent = at + 1;
      row.querySelector("[data-do=up]").disabled = at === 0;
      row.querySelector("[data-do=down]").disabled = at === rows.length - 1;
    });
    this.querySelector(".rule-none").hidden = rows.length > 0;
  }
}

// -- the panel -------------------------------------------------------------------------------------------------------

const AT_ONCE = 3;
// For each policy, in this tab.
const KEPT = `policy-panel ${location.pathname.split("/")[2]}`;
const UNHEARD = "The server did not answer. What you typed is still here: check your connection and try again.";

class PolicyEditor extends HTMLElement {
  #form;
  #unsaved = false;
  #stop = null;

  connectedCallback() {
    this.#form = this.querySelector("form");
    this.#form.addEventListener("submit", (event) => this.#submit(event));
    this.#form.addEventListener("keydown", (event) => this.#enter(event));
    this.#form.addEventListener("input", (event) => {
      if (!event.target.closest(".try")) this.#changed();
    });
    this.addEventListener("click", (event) => {
      if (event.target.closest("[data-judge-all]")) this.#judgeAll();
    });
    addEventListener("beforeunload", (event) => {
      if (this.#unsaved) event.preventDefault();
    });
    this.#restore();
    this.#ready();
  }

  #ready() {
    const all = this.querySelector("[data-judge-all]");
    if (all) all.hidden = this.querySelectorAll("[data-judge-turn]").length < 2;
  }

  #changed() {
    const said = this.querySelector("[data-unsaved]");
    if (!said || this.#unsaved) return;
    this.#unsaved = true;
    said.textContent = "Not saved yet";
  }

  // Enter in a field of the panel means the panel's button, not the form's first one.
  #enter(event) {
    if (event.key !== "Enter" || !event.target.matches(".try input:not([type=checkbox])")) return;
    event.preventDefault();
    event.target.closest(".try-find, .try-part").querySelector("button[name=try-do]")?.click();
  }

  #submit(event) {
    const button = event.submitter;
    if (button?.name !== "try-do") {
      this.#unsaved = false;
      this.#keep();
      return;
    }
    event.preventDefault();
    if (button.matches("[data-judge-turn]")) this.#judgeRow(button.closest(".past-turn"));
    else this.#ask(button);
  }

  async #fetch(button, part) {
    const response = await fetch(button.formAction, {
      method: "POST",
      body: new FormData(this.#form, button),
      headers: { "X-Mirror-Part": part },
    });
    // To the sign-in page, for instance.
    if (response.redirected) location.assign(response.url);
    if (response.redirected || (!response.ok && response.status !== 429)) throw new Error(`${response.status}`);
    const template = document.createElement("template");
    template.innerHTML = (await response.text()).trim();
    return template.content.firstElementChild;
  }

  async #ask(button) {
    const panel = this.querySelector(".try");
    const asked = button.value;
    panel.setAttribute("aria-busy", "true");
    this.#stop?.();
    try {
      panel.replaceWith(await this.#fetch(button, "panel"));
      // Where the keyboard was, if that is still there.
      this.querySelector(`.try button[name=try-do][value="${CSS.escape(asked)}"]`)?.focus({ preventScroll: true });
    } catch (error) {
      panel.removeAttribute("aria-busy");
      this.#problem(panel, error);
    }
    this.#ready();
  }

  async #judgeRow(row) {
    const button = row.querySelector("[data-judge-turn]");
    if (row.getAttribute("aria-busy")) return true;
    row.setAttribute("aria-busy", "true");
    const had = document.activeElement === button;
    try {
      const judged = await this.#fetch(button, "row");
      row.replaceWith(judged);
      if (had) judged.querySelector("[data-judge-turn]").focus({ preventScroll: true });
      return !judged.querySelector(".field-error");
    } catch (error) {
      row.removeAttribute("aria-busy");
      this.#problem(row, error);
      return false;
    }
  }

  async #judgeAll() {
    const progress = this.querySelector("[data-progress]");
    const all = this.querySelector("[data-judge-all]");
    if (this.#stop) {
      this.#stop();
      return;
    }
    const rows = [...this.querySelectorAll(".past-turn")].map((row) => row.id);
    const count = rows.length;
    const words = all.lastChild.textContent;
    let done = 0;
    let stopped = false;
    this.#stop = () => {
      stopped = true;
      this.#stop = null;
      all.lastChild.textContent = words;
    };
    all.lastChild.textContent = "Stop";
    const next = async () => {
      while (rows.length > 0 && !stopped) {
        const row = document.getElementById(rows.shift());
        if (!row) return;
        const right = await this.#judgeRow(row);
        if (stopped) return;
        if (!right) {
          this.#stop?.();
          return;
        }
        done += 1;
        progress.textContent = `${done} of ${count} judged. Flips: ${this.#flips}.`;
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, next));
    if (!stopped) {
      this.#stop?.();
      progress.textContent = `${done} judged. Flips: ${this.#flips}.`;
    }
  }

  get #flips() {
    return this.querySelectorAll(".past-turn.flips").length;
  }

  // What was typed into the panel is still there after saving.
  get #typed() {
    return [...this.querySelectorAll(".try [name^=try-]:is(textarea, input:not([type=hidden], [type=search]))")];
  }

  #keep() {
    const typed = this.#typed.map((field) => [field.name, field.type === "checkbox" ? field.checked : field.value]);
    sessionStorage.setItem(KEPT, JSON.stringify(Object.fromEntries(typed)));
  }

  #restore() {
    const kept = JSON.parse(sessionStorage.getItem(KEPT) ?? "null");
    sessionStorage.removeItem(KEPT);
    if (kept === null || this.#typed.some((field) => (field.type === "checkbox" ? field.checked : field.value))) return;
    for (const field of this.#typed) {
      if (field.type === "checkbox") field.checked = kept[field.name] ?? false;
      else field.value = kept[field.name] ?? "";
    }
  }

  #problem(where, error) {
    const words = { 403: "Your role does not include this any more.", 404: "This is not there any more. Reload the page." };
    let said = where.querySelector("[data-problem]");
    if (!said) {
      said = document.createElement("p");
      said.className = "field-error";
      said.setAttribute("role", "alert");
      said.dataset.problem = "";
      where.append(said);
    }
    said.textContent = words[error.message] ?? UNHEARD;
  }
}

// -- reading takes long ----------------------------------------------------------------------------------------------

class DeriveForm extends HTMLElement {
  connectedCallback() {
    const said = this.querySelector("[data-waiting]");
    const name = this.querySelector("#id_name").closest(".field");
    const policy = this.querySelector("#id_policy");
    const show = () => {
      name.hidden = policy.value !== "";
    };
    policy.addEventListener("change", show);
    show();
    this.querySelector("form").addEventListener("submit", () => {
      const began = Date.now();
      const tell = () => {
        said.textContent = `The model is reading: ${Math.round((Date.now() - began) / 1000)} s of 90 s at most. Stay on this page.`;
      };
      tell();
      setInterval(tell, 1000);
    });
  }
}

customElements.define("rule-rows", RuleRows);
customElements.define("policy-editor", PolicyEditor);
customElements.define("derive-form", DeriveForm);
