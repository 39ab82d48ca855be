// Adds sort, search, filters, columns, comparison, permalinks, downloads and copies to every table of results.
// The tables read as they are without this file. All text goes in by textContent, never as markup.
"use strict";

const MOST_PICKED = 5;
const COLLATOR = new Intl.Collator("en", { numeric: true, sensitivity: "base" });
const JSON_NUMBER = /^-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?$/;
const LATEX = {
  "\\": "\\textbackslash{}", "{": "\\{", "}": "\\}", "$": "\\$", "&": "\\&", "#": "\\#", "_": "\\_", "%": "\\%",
  "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "<": "\\textless{}", ">": "\\textgreater{}",
  "|": "\\textbar{}", "\"": "''", "[": "{[}", "*": "{*}", "±": "$\\pm$", "−": "$-$", "–": "--", "—": "---",
  "×": "$\\times$", "÷": "$\\div$", "·": "$\\cdot$", "≤": "$\\leq$", "≥": "$\\geq$", "≈": "$\\approx$",
  "∞": "$\\infty$", "→": "$\\to$", "Δ": "$\\Delta$", "α": "$\\alpha$", "β": "$\\beta$", "λ": "$\\lambda$",
  "τ": "$\\tau$", "σ": "$\\sigma$", "…": "\\ldots{}",
};

/** An element with properties (attributes where it has no such property) and children. */
function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

const words = (node) => node.textContent.replace(/\s+/g, " ").trim();

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** "a=1&b=2,3" as a map of lists; commas and ampersands inside values are percent-encoded. */
function parseQuery(query) {
  const found = new Map();
  for (const part of query.split("&").filter(Boolean)) {
    const [name, value = ""] = part.split(/=(.*)/s);
    found.set(decode(name), value.split(",").filter(Boolean).map(decode));
  }
  return found;
}

function formatQuery(pairs) {
  const encode = encodeURIComponent;
  return pairs.map(([name, values]) => `${encode(name)}=${values.map(encode).join(",")}`).join("&");
}

/** A CSV field. What a spreadsheet would run as a formula is defused by an apostrophe; numbers stay as they are. */
function csvField(value, isNumber) {
  if (value === null) return "";
  const safe = !(isNumber && Number.isFinite(Number(value))) && /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

/** A JSON value. A number keeps the digits it was written with. */
function jsonValue(value, isNumber) {
  if (value === null) return "null";
  return isNumber && JSON_NUMBER.test(value) ? value : JSON.stringify(value);
}

function latexText(text) {
  const printable = text.replace(/\p{Cc}/gu, " ");
  return Array.from(printable, (letter) => LATEX[letter] ?? letter).join("").trim();
}

function download(name, type, text) {
  const address = URL.createObjectURL(new Blob([text], { type: `${type};charset=utf-8` }));
  make("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

/** Shows text to be copied by hand, where the clipboard is refused. */
function offer(text) {
  const area = make("textarea", { readOnly: true, rows: 10, value: text, ariaLabel: "Text to copy" });
  const close = make("button", { type: "submit" }, "Close");
  const form = make("form", { method: "dialog" }, make("p", {}, "Copy the selected text:"), area, close);
  const dialog = make("dialog", { className: "copy", ariaLabel: "Copy by hand", onclose: () => dialog.remove() }, form);
  document.body.append(dialog);
  dialog.showModal();
  area.focus();
  area.select();
}

/** How a column shows its values: the power of ten between value and text, and the decimals; null where rows differ. */
function unitOf(cells) {
  const units = cells.filter((cell) => Number(cell.value)).map((cell) => {
    const shown = cell.text.replaceAll(",", "").replace(/^−/, "-").match(/^[-+]?\d+(\.\d+)?(?:[eE][-+]?\d+)?/);
    const power = shown && Math.round(Math.log10(Math.abs(Number(shown[0]) / Number(cell.value))));
    return { power, decimals: shown?.[1] ? shown[1].length - 1 : 0 };
  });
  const same = units.length > 0 && units.every((unit) => Number.isFinite(unit.power) && unit.power === units[0].power);
  return same ? { power: units[0].power, decimals: Math.max(...units.map((unit) => unit.decimals)) } : null;
}

/** The difference of a cell to the first one, in the unit that the column shows. */
function difference(cell, first, unit) {
  const value = Number(cell.value) - Number(first.value);
  if (cell.value === null || first.value === null || !Number.isFinite(value)) return "";
  const shown = unit ? (value * 10 ** unit.power).toFixed(unit.decimals) : String(Number(value.toPrecision(3)));
  return Number(shown) < 0 ? shown.replace("-", "−") : `+${shown.replace("-", "")}`;
}

/** One table of results with its tools; its state is what a permalink holds. */
class View {
  constructor(section, table, changed) {
    this.id = section.id;
    this.table = table;
    this.changed = changed;
    this.body = table.tBodies[0];
    this.scroll = table.closest(".scroll");
    this.columns = Array.from(table.tHead.rows[0].cells, (head, index) => ({
      head,
      label: words(head),
      key: head.dataset.key,
      isNumber: head.dataset.type === "number",
      fixed: index === 0 || head.dataset.optional === "no",
      hidden: "hidden" in head.dataset,
      facet: "facet" in head.dataset,
    }));
    this.rows = this.readRows();
    this.interval = this.columns.map((_, index) =>
      ["low", "high"].filter((end) => this.rows.some((row) => row.cells[index][end] !== null)));
    this.clear();
    this.addSorting();
    this.addPicking();
    this.addTools();
    this.panel = make("section", { className: "compare", hidden: true, ariaLabel: "Comparison" });
    this.scroll.after(this.panel);
    if (!this.scroll.hasAttribute("tabindex")) this.scroll.tabIndex = 0;
    this.scroll.setAttribute("role", "region");
    this.scroll.ariaLabel ??= table.caption ? words(table.caption) : this.id;
    this.render();
  }

  readRows() {
    const seen = new Map();
    return Array.from(this.body.rows, (tr, place) => {
      const cells = Array.from(tr.cells, (node) => {
        const { v = null, low = null, high = null } = node.dataset;
        return { node, value: v, low, high, text: words(node) };
      });
      this.columns.forEach((column, index) => cells[index].node.classList.toggle("number", column.isNumber));
      const name = tr.dataset.arm ?? cells[0].value ?? cells[0].text;
      const count = (seen.get(name) ?? 0) + 1;
      seen.set(name, count);
      const key = count > 1 ? `${name}~${count}` : name;
      return { tr, place, key, cells, text: cells.map((cell) => cell.text).join(" ").toLowerCase() };
    });
  }

  clear() {
    this.q = "";
    this.sort = "";
    this.columnsOn = new Set(this.columns.filter((column) => column.fixed || !column.hidden));
    this.facets = new Map();
    this.picked = [];
  }

  /** The state as the query of a permalink; "" where nothing was changed. */
  query() {
    const pairs = [];
    if (this.q) pairs.push(["q", [this.q]]);
    if (this.sort) pairs.push(["sort", [this.sort]]);
    const optional = this.columns.filter((column) => !column.fixed);
    if (optional.some((column) => this.columnsOn.has(column) === column.hidden)) {
      pairs.push(["cols", optional.filter((column) => this.columnsOn.has(column)).map((column) => column.key)]);
    }
    for (const [key, value] of this.facets) pairs.push([`f.${key}`, [value]]);
    if (this.picked.length) pairs.push(["pick", this.picked.map((row) => row.key)]);
    return formatQuery(pairs);
  }

  link() {
    const query = this.query();
    return `#${this.id}${query && "?"}${query}`;
  }

  /** Take a permalink's state; says so where it names what this table lacks. */
  restore(query) {
    if (query === this.query()) return;
    this.clear();
    let missing = false;
    const known = (thing) => thing || (missing = true, false);
    for (const [name, values] of parseQuery(query)) {
      const text = values.join(",");
      if (name === "q") this.q = text;
      else if (name === "sort") {
        if (known(this.columns.some((column) => column.key === text.replace(/^-/, "")))) this.sort = text;
      } else if (name === "cols") {
        const keys = new Set(values);
        this.columnsOn = new Set(this.columns.filter((column) => column.fixed || keys.has(column.key)));
        values.forEach((key) => known(this.columns.some((column) => column.key === key)));
      } else if (name === "pick") {
        const rows = values.map((key) => this.rows.find((row) => row.key === key));
        this.picked = rows.filter(known).slice(0, MOST_PICKED);
      } else {
        const menu = this.menus.get(name.replace(/^f\./, ""));
        const option = menu && Array.from(menu.options).find((one) => one.value === text);
        if (known(option)) this.facets.set(name.slice(2), text);
      }
    }
    this.render();
    if (missing) this.say("The link names rows, columns or values that this table does not have.");
  }

  addSorting() {
    for (const column of this.columns) {
      const button = make("button", { type: "button", className: "sort" }, ...column.head.childNodes);
      button.addEventListener("click", () => {
        const orders = column.isNumber ? [`-${column.key}`, column.key, ""] : [column.key, `-${column.key}`, ""];
        this.set({ sort: orders[(orders.indexOf(this.sort) + 1) % orders.length] });
      });
      column.head.append(button);
      column.head.classList.toggle("number", column.isNumber);
    }
  }

  addPicking() {
    const head = make("th", { scope: "col", className: "pick" }, make("span", { className: "unseen" }, "compare"));
    this.table.tHead.rows[0].prepend(head);
    for (const row of this.rows) {
      row.box = make("input", { type: "checkbox", ariaLabel: `Compare ${row.key}` });
      row.tr.prepend(make("td", { className: "pick" }, row.box));
    }
    this.body.addEventListener("change", (event) => {
      const row = this.rows.find((one) => one.box === event.target);
      if (row.box.checked && this.picked.length === MOST_PICKED) {
        row.box.checked = false;
        this.say(`At most ${MOST_PICKED} rows can be compared.`);
      } else {
        this.pick(row, row.box.checked);
      }
    });
  }

  pick(row, on) {
    this.set({ picked: on ? [...this.picked, row] : this.picked.filter((one) => one !== row) });
  }

  addTools() {
    this.search = make("input", { type: "search", spellcheck: false, autocomplete: "off" });
    this.search.addEventListener("input", () => this.set({ q: this.search.value.trim() }, true));
    this.menus = new Map(this.columns.filter((column) => column.facet).map((column) => [column.key, this.facet(column)]));
    this.status = make("output", { ariaLive: "polite" });
    const reset = this.button("Reset", () => {
      this.clear();
      this.set({});
      this.search.focus();
    });
    this.tools = make("div", { className: "tools", role: "group", ariaLabel: `Tools: ${this.table.dataset.name}` });
    this.tools.append(make("label", {}, "Search ", this.search));
    for (const [key, menu] of this.menus) {
      const { label } = this.columns.find((column) => column.key === key);
      this.tools.append(make("label", {}, `${label} `, menu));
    }
    this.tools.append(this.columnMenu(), this.exportMenu(), reset, this.status);
    this.scroll.before(this.tools);
  }

  button(label, action) {
    return make("button", { type: "button", onclick: action }, label);
  }

  /** A menu that opens below its button; Escape or a click elsewhere closes it. */
  menu(label, ...children) {
    const summary = make("summary", {}, label);
    const menu = make("details", { className: "menu" }, summary, make("div", {}, ...children));
    menu.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !menu.open) return;
      menu.open = false;
      summary.focus();
    });
    document.addEventListener("click", (event) => {
      if (!menu.contains(event.target)) menu.open = false;
    });
    return menu;
  }

  facet(column) {
    const index = this.columns.indexOf(column);
    const counts = new Map();
    for (const { cells } of this.rows) {
      const { value, text } = cells[index];
      if (value !== null) counts.set(value, { text, count: (counts.get(value)?.count ?? 0) + 1 });
    }
    const options = [...counts].sort(([a], [b]) => COLLATOR.compare(a, b));
    const menu = make("select", {}, make("option", { value: "" }, "all"));
    menu.append(...options.map(([value, { text, count }]) => make("option", { value }, `${text} (${count})`)));
    menu.addEventListener("change", () => {
      const facets = new Map(this.facets);
      if (menu.value) facets.set(column.key, menu.value);
      else facets.delete(column.key);
      this.set({ facets });
    });
    return menu;
  }

  columnMenu() {
    const labels = this.columns.filter((column) => !column.fixed).map((column) => {
      column.box = make("input", { type: "checkbox" });
      column.box.addEventListener("change", () => {
        const columnsOn = new Set(this.columnsOn);
        columnsOn[column.box.checked ? "add" : "delete"](column);
        this.set({ columnsOn });
      });
      return make("label", {}, column.box, column.label);
    });
    return this.menu("Columns", make("fieldset", {}, make("legend", { className: "unseen" }, "Columns"), ...labels));
  }

  exportMenu() {
    const name = this.table.dataset.name;
    const buttons = [
      this.button("Download CSV", () => download(`${name}.csv`, "text/csv", this.csv())),
      this.button("Download JSON", () => download(`${name}.json`, "application/json", this.json())),
      this.button("Copy LaTeX", () => this.copy("LaTeX", this.latex())),
      this.button("Copy link", () => this.copy("Link", new URL(this.link(), location.href).href)),
    ];
    const entries = JSON.parse(document.getElementById("citation")?.textContent ?? "{}");
    const keys = (this.table.dataset.cite ?? "").split(/\s+/).filter((key) => Object.hasOwn(entries, key));
    if (keys.length) {
      const text = keys.map((key) => entries[key]).join("\n\n");
      buttons.splice(3, 0, this.button("Copy BibTeX", () => this.copy("BibTeX", text)));
    }
    return this.menu("Export", ...buttons);
  }

  async copy(what, text) {
    try {
      await navigator.clipboard.writeText(text);
      this.say(`${what} copied.`);
    } catch {
      offer(text);
    }
  }

  say(text) {
    this.status.textContent = text;
  }

  set(change, typing = false) {
    Object.assign(this, change);
    this.render();
    this.changed(this, typing);
  }

  render() {
    const wanted = this.q.toLowerCase().split(/\s+/);
    const filters = [...this.facets].map(([key, value]) =>
      [this.columns.findIndex((column) => column.key === key), value]);
    const shown = this.rows.filter((row) => wanted.every((word) => row.text.includes(word))
      && filters.every(([index, value]) => row.cells[index].value === value));
    this.shown = this.order(shown);
    this.body.replaceChildren(...this.shown.map((row) => row.tr));
    this.showColumns();
    this.showControls();
    this.comparePicked();
    this.say(`${this.shown.length} of ${this.rows.length} rows`);
  }

  /** Sorted rows: missing values last both ways, equal ones in the page's order. */
  order(rows) {
    const key = this.sort.replace(/^-/, "");
    const index = this.columns.findIndex((column) => column.key === key);
    const { isNumber, head: sorted } = this.columns[index] ?? {};
    const direction = this.sort.startsWith("-") ? -1 : 1;
    for (const { head } of this.columns) head.removeAttribute("aria-sort");
    if (!sorted) return rows;
    sorted.ariaSort = direction < 0 ? "descending" : "ascending";
    const missing = (value) => value === null || (isNumber && Number.isNaN(value));
    const keyed = rows.map((row) => {
      const { value } = row.cells[index];
      return { row, value: isNumber && value !== null ? Number(value) : value };
    });
    keyed.sort((a, b) => {
      const last = missing(a.value) - missing(b.value);
      if (last || missing(a.value)) return last || a.row.place - b.row.place;
      const found = isNumber ? (a.value > b.value) - (a.value < b.value) : COLLATOR.compare(a.value, b.value);
      return direction * found || a.row.place - b.row.place;
    });
    return keyed.map(({ row }) => row);
  }

  showColumns() {
    this.columns.forEach((column, index) => {
      const hidden = !this.columnsOn.has(column);
      if (column.box) column.box.checked = !hidden;
      if (column.head.hidden === hidden) return;
      column.head.hidden = hidden;
      for (const row of this.rows) row.cells[index].node.hidden = hidden;
    });
  }

  showControls() {
    if (this.search.value.trim() !== this.q) this.search.value = this.q;
    for (const [key, menu] of this.menus) menu.value = this.facets.get(key) ?? "";
    const picked = new Set(this.picked);
    for (const row of this.rows) {
      row.box.checked = picked.has(row);
      row.tr.classList.toggle("picked", picked.has(row));
    }
  }

  /** Picked rows side by side, with differences to the first of them. */
  comparePicked() {
    this.panel.hidden = this.picked.length < 2;
    if (this.panel.hidden) return this.panel.replaceChildren();
    const names = this.picked.map((row) => make("th", { scope: "col" }, row.cells[0].text, " ",
      make("button", { type: "button", ariaLabel: `Remove ${row.key}`, onclick: () => this.pick(row, false) }, "×")));
    const table = make("table", {}, make("caption", {}, `Side by side; differences are to ${this.picked[0].key}`));
    table.createTHead().append(make("tr", {}, make("td"), ...names));
    const body = table.createTBody();
    this.columns.slice(1).forEach((column, after) => {
      const cells = this.picked.map((row) => row.cells[after + 1]);
      if (cells.every((cell) => cell.value === null)) return;
      const unit = column.isNumber ? unitOf(cells) : null;
      body.append(make("tr", {}, make("th", { scope: "row" }, column.label), ...cells.map((cell, place) => {
        const node = make("td", { className: column.isNumber ? "number" : "" }, cell.text);
        const told = place && column.isNumber ? difference(cell, cells[0], unit) : "";
        if (told) node.append(" ", make("span", { className: "difference" }, told));
        return node;
      })));
    });
    const scroll = make("div", { className: "scroll", tabIndex: 0, role: "region", ariaLabel: "Rows side by side" }, table);
    this.panel.replaceChildren(scroll);
  }

  /** Fields of the columns in view: key, whether a number, and how to take it from a row. */
  fields() {
    return this.columns.flatMap((column, index) => !this.columnsOn.has(column) ? [] : [
      { key: column.key, isNumber: column.isNumber, of: (row) => row.cells[index].value },
      ...this.interval[index].map((end) =>
        ({ key: `${column.key}_${end}`, isNumber: true, of: (row) => row.cells[index][end] })),
    ]);
  }

  csv() {
    const fields = this.fields();
    const lines = this.shown.map((row) => fields.map((field) => csvField(field.of(row), field.isNumber)));
    return [fields.map((field) => csvField(field.key, false)), ...lines].map((line) => `${line.join(",")}\r\n`).join("");
  }

  json() {
    const fields = this.fields();
    const lines = this.shown.map((row) => fields.map((field) =>
      `${JSON.stringify(field.key)}: ${jsonValue(field.of(row), field.isNumber)}`));
    return `[\n${lines.map((line) => `  {${line.join(", ")}}`).join(",\n")}\n]\n`;
  }

  latex() {
    const columns = this.columns.map((column, index) => ({ ...column, index })).filter((column) => !column.head.hidden);
    const line = (texts) => `${texts.map(latexText).join(" & ")} \\\\`;
    return [
      "% \\usepackage{booktabs}", "\\begin{table}", "\\centering",
      ...(this.table.caption ? [`\\caption{${latexText(words(this.table.caption))}}`] : []),
      `\\begin{tabular}{${columns.map((column) => (column.isNumber ? "r" : "l")).join("")}}`, "\\toprule",
      line(columns.map((column) => column.label)), "\\midrule",
      ...this.shown.map((row) => line(columns.map(({ index }) => row.cells[index].text))),
      "\\bottomrule", "\\end{tabular}", "\\end{table}", "",
    ].join("\n");
  }
}

function addThemeButton() {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const button = make("button", { type: "button", className: "theme" }, "Dark");
  const show = () => {
    button.ariaPressed = String(root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  };
  try {
    const kept = localStorage.getItem("theme");
    if (kept === "dark" || kept === "light") root.dataset.theme = kept;
  } catch { /* storage is refused: the system's theme holds */ }
  button.addEventListener("click", () => {
    root.dataset.theme = button.ariaPressed === "true" ? "light" : "dark";
    show();
    try {
      localStorage.setItem("theme", root.dataset.theme);
    } catch { /* storage is refused: the choice holds for this page */ }
  });
  system.addEventListener("change", show);
  show();
  document.querySelector("nav.site")?.append(button);
}

/** Builds the views and keeps them and the address in step: the address names one view, the history entry all. */
function start() {
  const views = new Map();
  let timer = 0;
  const write = (view) => {
    const all = Object.fromEntries(Array.from(views.values(), (one) => [one.id, one.query()]));
    history.pushState({ views: all }, "", view.link());
  };
  const changed = (view, typing) => {
    clearTimeout(timer);
    if (typing) timer = setTimeout(write, 300, view);
    else write(view);
  };
  for (const section of document.querySelectorAll("section.view[id]")) {
    const table = section.querySelector("table.results");
    if (table) views.set(section.id, new View(section, table, changed));
  }
  const restore = (event) => {
    clearTimeout(timer);
    const [, id, query = ""] = location.hash.match(/^#([^?]*)\??(.*)$/s) ?? [];
    const all = history.state?.views;
    if (!all && id && !views.has(id)) return;
    for (const view of views.values()) view.restore(all?.[view.id] ?? (view.id === id ? query : ""));
    if (!all && query && event?.type !== "popstate") document.getElementById(id).scrollIntoView();
  };
  addEventListener("popstate", restore);
  addEventListener("hashchange", restore);
  restore();
}

addThemeButton();
start();
