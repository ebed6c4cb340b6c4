import { cookieWrite } from "./cookies.js";

const THEMES = ["system", "light", "dark"];

// The server reads the cookie too and writes data-theme into the page, so that no page flashes in the other theme.
class ThemeToggle extends HTMLElement {
  connectedCallback() {
    const button = this.querySelector("button");
    button.hidden = false;
    button.addEventListener("click", () => this.choose(THEMES[(THEMES.indexOf(this.current) + 1) % THEMES.length]));
    this.show();
  }

  get current() {
    return document.documentElement.dataset.theme ?? "system";
  }

  choose(theme) {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    cookieWrite("theme", theme === "system" ? "" : theme);
    for (const toggle of document.querySelectorAll("theme-toggle")) toggle.show();
  }

  show() {
    for (const icon of this.querySelectorAll("[data-theme-icon]")) {
      icon.hidden = icon.dataset.themeIcon !== this.current;
    }
    this.querySelector("[data-theme-name]").textContent = `Theme: ${this.current}`;
  }
}

customElements.define("theme-toggle", ThemeToggle);
