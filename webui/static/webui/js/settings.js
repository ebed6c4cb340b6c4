// Privacy: rows of patterns that are added and taken away, and countries by their names. Without this the form works:
// there is an empty row to fill in, and a row that is emptied is gone when it is saved.
class PatternRows extends HTMLElement {
  connectedCallback() {
    this.list = this.querySelector("ol");
    this.adder = this.querySelector("[data-add]");
    this.total = document.getElementById("id_patterns-TOTAL_FORMS");
    this.querySelector("[data-plain]").hidden = true;
    for (const row of this.list.children) this.equip(row);
    // The empty row is for those who cannot add one.
    const last = this.list.lastElementChild;
    if (last && !last.querySelector(".field-error") && [...last.querySelectorAll("input")].every((field) => !field.value)) {
      last.hidden = true;
    }
    this.adder.addEventListener("click", () => this.add());
    this.show();
  }

  equip(row) {
    const button = row.querySelector("[data-remove]");
    button.hidden = false;
    button.addEventListener("click", () => this.take(row));
  }

  add() {
    const number = Number(this.total.value);
    const made = document.createElement("ol");
    made.innerHTML = this.querySelector("template").innerHTML.replaceAll("__prefix__", String(number));
    const row = made.firstElementChild;
    this.list.append(row);
    this.total.value = String(number + 1);
    this.equip(row);
    this.show();
    row.querySelector("input").focus();
  }

  // Its fields are sent empty: rows are counted, and those behind it keep their numbers.
  take(row) {
    for (const field of row.querySelectorAll("input")) field.value = "";
    row.hidden = true;
    this.show();
    this.adder.focus();
  }

  show() {
    const shown = [...this.list.children].filter((row) => !row.hidden).length;
    this.adder.hidden = shown >= Number(this.dataset.most);
  }
}

class RegionNames extends HTMLElement {
  connectedCallback() {
    if (!("DisplayNames" in Intl)) return;
    const names = new Intl.DisplayNames([document.documentElement.lang], { type: "region" });
    for (const option of this.querySelectorAll("option")) {
      const name = names.of(option.value);
      if (name && name !== option.value) option.textContent = `${name}, ${option.textContent}`;
    }
    const select = this.querySelector("select");
    const sorted = [...select.options].sort((one, other) => one.text.localeCompare(other.text));
    const chosen = select.value;
    select.append(...sorted);
    select.value = chosen;
  }
}

customElements.define("pattern-rows", PatternRows);
customElements.define("region-names", RegionNames);
