// A value that this page shows once: a button copies it, and it is gone when the page is left, so that going back to
// a page that the browser has kept does not show it again.
class CopyOnce extends HTMLElement {
  connectedCallback() {
    const field = this.querySelector("input, textarea");
    const button = this.querySelector("button");
    const said = this.querySelector("[role=status]");
    button.hidden = false;
    button.addEventListener("click", async () => {
      field.select();
      try {
        await navigator.clipboard.writeText(field.value);
        said.textContent = "Copied.";
      } catch {
        // No secure context, or no permission: it is selected.
        said.textContent = "Press Ctrl or ⌘ and C to copy it.";
      }
    });
    addEventListener("pagehide", () => {
      field.value = "";
    });
    addEventListener("pageshow", (event) => {
      if (event.persisted) location.reload();
    });
  }
}

customElements.define("copy-once", CopyOnce);
