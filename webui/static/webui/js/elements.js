// A menu of <details>: Escape and a click elsewhere close it.
class MenuButton extends HTMLElement {
  connectedCallback() {
    const details = this.querySelector("details");
    this.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !details.open) return;
      details.open = false;
      details.querySelector("summary").focus();
    });
    document.addEventListener("click", (event) => {
      if (!this.contains(event.target)) details.open = false;
    });
  }
}

// A form of filters: a chosen option filters at once, and what is empty stays out of the URL.
// On a phone it stays folded while nothing is filtered.
class FilterForm extends HTMLElement {
  connectedCallback() {
    const form = this.querySelector("form");
    const narrow = matchMedia("(width < 40rem)");
    const fold = () => {
      this.querySelector("details").open = !narrow.matches || this.hasAttribute("active");
    };
    fold();
    narrow.addEventListener("change", fold);
    form.addEventListener("change", (event) => {
      if (event.target.matches("select")) form.requestSubmit();
    });
    form.addEventListener("formdata", (event) => {
      for (const [name, value] of [...event.formData]) {
        if (value === "") event.formData.delete(name);
      }
    });
  }
}

// On a phone the bar's links scroll: where one is stands in sight.
document.querySelector(".nav-main [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });

customElements.define("menu-button", MenuButton);
customElements.define("filter-form", FilterForm);
