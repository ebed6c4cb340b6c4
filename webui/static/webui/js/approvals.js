import { fragment, morph } from "./morph.js";

// Deciding without leaving the page: what is typed beside other tool calls, and where the viewer has scrolled to, stay.
// Whatever goes wrong, the form is sent as it would be without this script, or says that nothing was decided.
class ApprovalForm extends HTMLElement {
  connectedCallback() {
    const form = this.querySelector("form");
    form.addEventListener("submit", (event) => {
      const button = event.submitter;
      if (button === null || form.dataset.plain) return;
      event.preventDefault();
      if (!this.hasAttribute("busy")) this.decide(form, button);
    });
  }

  async decide(form, button) {
    this.setAttribute("busy", "");
    button.setAttribute("aria-busy", "true");
    try {
      const answer = await fetch(form.action, {
        method: "POST",
        body: new URLSearchParams(new FormData(form, button)),
        headers: { "X-Mirror-Part": "approvals" },
        redirect: "manual",
      });
      if (!answer.ok) {
        // Signed out, or no such tool call: the page that says so.
        form.dataset.plain = "yes";
        form.requestSubmit(button);
        return;
      }
      const { said, good, html } = await answer.json();
      this.say(said, good);
      const focused = document.activeElement === button;
      const section = morph(document.getElementById("approvals"), fragment(html));
      // Not to the next button: pressing Enter twice would decide what nobody has read.
      if (focused && !button.isConnected) (section.querySelector("h2") ?? this.querySelector("[role=status]")).focus();
    } catch {
      this.say("Mirror did not answer. Nothing that you typed is lost: try again.", false);
    } finally {
      this.removeAttribute("busy");
      button.removeAttribute("aria-busy");
    }
  }

  say(words, good) {
    const line = this.querySelector("[role=status]");
    line.hidden = false;
    line.classList.toggle("bad", !good);
    line.textContent = words;
  }
}

customElements.define("approval-form", ApprovalForm);
