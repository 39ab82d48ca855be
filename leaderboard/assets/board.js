// Adds sort, search, filters, columns, comparison, permalinks, downloads and copies to every table of results.
// The tables read as they are without this file. All text goes in by textContent, never as markup.
"use strict";

const MOST_PICKED = 5;
const FIRST_ROWS = 50; // of a long table, so that each sort and filter is painted at once
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

/** How a column shows its values (power of ten between value and text, decimals, suffix); null where cells differ. */
function unitOf(cells) {
  const units = cells.filter((cell) => Number.isFinite(cell.number) && cell.number).map((cell) => {
    const [, shown, decimals = "", suffix] = cell.text.replaceAll(",", "").replace("−", "-")
      .match(/^([-+]?\d+(?:\.(\d+))?(?:[eE][-+]?\d+)?)(\p{L}*)/u) ?? [];
    return { power: Math.round(Math.log10(Math.abs(shown / cell.number))), decimals: decimals.length, suffix };
  });
  const [first] = units;
  const alike = units.every((unit) => unit.power === first.power && unit.suffix === first.suffix);
  if (!first || !alike || !Number.isFinite(first.power)) return null;
  return { ...first, decimals: Math.min(20, Math.max(...units.map((unit) => unit.decimals))) };
}

/** The difference of a cell to the first one, in the unit that the column shows; "" where one is missing. */
function difference(cell, first, unit) {
  const value = cell.number - first.number;
  if (!Number.isFinite(value)) return "";
  if (value === 0) return "=";
  const shown = unit ? (value * 10 ** unit.power).toFixed(unit.decimals) : String(Number(value.toPrecision(3)));
  return (Number(shown) < 0 ? shown.replace("-", "−") : `+${shown.replace("-", "")}`) + (unit?.suffix ?? "");
}

/** One table of results with its tools. Its state (q, sort, on, facets, picked) is what a permalink holds. */
class View {
  constructor(section, table, changed) {
    Object.assign(this, { id: section.id, table, changed, body: table.tBodies[0], scroll: table.closest(".scroll") });
    this.columns = Array.from(table.tHead.rows[0].cells, (head, index) => ({
      head,
      index,
      label: words(head),
      key: head.dataset.key,
      isNumber: head.dataset.type === "number",
      fixed: index === 0 || head.dataset.optional === "no",
      hidden: "hidden" in head.dataset,
      facet: "facet" in head.dataset,
    }));
    this.rows = this.readRows();
    for (const column of this.columns) column.facet &&= this.counts(column).size > 1;
    this.orders = new Map([["", this.rows]]);
    this.limit = FIRST_ROWS;
    this.clear();
    this.addSorting();
    this.addPicking();
    this.addTools();
    this.render();
  }

  readRows() {
    const seen = new Map();
    return Array.from(this.body.rows, (tr) => {
      const cells = Array.from(tr.cells, (node, index) => {
        node.classList.toggle("number", this.columns[index].isNumber);
        const { v = null, low = null, high = null } = node.dataset;
        return { node, value: v, low, high, number: v === null ? NaN : Number(v), text: words(node) };
      });
      const name = tr.dataset.arm ?? cells[0].text;
      seen.set(name, (seen.get(name) ?? 0) + 1);
      const key = seen.get(name) > 1 ? `${name}~${seen.get(name)}` : name;
      return { tr, key, cells, text: cells.map((cell) => cell.text).join(" ").toLowerCase() };
    });
  }

  clear() {
    this.q = "";
    this.sort = "";
    this.on = new Set(this.columns.filter((column) => column.fixed || !column.hidden));
    this.facets = new Map();
    this.picked = [];
  }

  /** The state as the query of a permalink; "" where nothing was changed. */
  query() {
    const pairs = [];
    const optional = this.columns.filter((column) => !column.fixed);
    if (this.q) pairs.push(["q", [this.q]]);
    if (this.sort) pairs.push(["sort", [this.sort]]);
    if (optional.some((column) => this.on.has(column) === column.hidden)) {
      pairs.push(["cols", optional.filter((column) => this.on.has(column)).map((column) => column.key)]);
    }
    for (const [key, value] of this.facets) pairs.push([`f.${key}`, [value]]);
    if (this.picked.length) pairs.push(["pick", this.picked.map((row) => row.key)]);
    return formatQuery(pairs);
  }

  link() {
    const query = this.query();
    return `#${this.id}${query && "?"}${query}`;
  }

  /** Takes a permalink's state, and says what it names that this table lacks. */
  restore(query) {
    if (query === this.query()) return;
    this.clear();
    const missing = [];
    const find = (things, key) => things.find((one) => one.key === key) ?? (missing.push(key), null);
    const findAll = (things, keys) => [...new Set(keys)].map((key) => find(things, key)).filter(Boolean);
    for (const [name, values] of parseQuery(query)) {
      const text = values.join(",");
      const column = name.startsWith("f.") ? find(this.columns.filter((one) => one.facet), name.slice(2)) : null;
      if (name === "q") this.q = text.trim();
      else if (name === "sort") this.sort = find(this.columns, text.replace(/^-/, "")) ? text : "";
      else if (name === "pick") this.picked = findAll(this.rows, values).slice(0, MOST_PICKED);
      else if (name === "cols") {
        this.on = new Set([...this.columns.filter((one) => one.fixed), ...findAll(this.columns, values)]);
      } else if (column && Array.from(column.menu.options).some((option) => option.value === text)) {
        this.facets.set(column.key, text);
      } else {
        missing.push(text);
      }
    }
    this.render();
    if (missing.length) this.say(`The link names what this table lacks: ${missing.join(", ")}.`);
  }

  addSorting() {
    for (const { head, key, isNumber } of this.columns) {
      const button = make("button", { type: "button", className: "sort" }, ...head.childNodes);
      const orders = isNumber ? [`-${key}`, key, ""] : [key, `-${key}`, ""];
      button.addEventListener("click", () => this.set({ sort: orders[(orders.indexOf(this.sort) + 1) % 3] }));
      head.append(button);
      head.classList.toggle("number", isNumber);
    }
  }

  addPicking() {
    const title = make("span", { className: "unseen" }, "compare");
    this.table.tHead.rows[0].prepend(make("th", { scope: "col", className: "pick" }, title));
    for (const row of this.rows) {
      row.box = make("input", { type: "checkbox", ariaLabel: `Compare ${row.key}` });
      row.box.addEventListener("change", () => this.pick(row));
      row.tr.prepend(make("td", { className: "pick" }, row.box));
    }
    this.panel = make("section", { className: "compare", ariaLabel: "Comparison" });
    this.more = this.button("", () => {
      this.showAll();
      this.scroll.focus();
    });
    this.more.className = "more";
    this.scroll.after(this.more, this.panel);
  }

  showAll() {
    this.limit = Infinity;
    this.render();
  }

  pick(row) {
    const others = this.picked.filter((one) => one !== row);
    if (others.length === MOST_PICKED) {
      row.box.checked = false;
      this.say(`At most ${MOST_PICKED} rows can be compared.`);
    } else {
      this.set({ picked: others.length < this.picked.length ? others : [...others, row] });
    }
  }

  addTools() {
    this.search = make("input", { type: "search", spellcheck: false, autocomplete: "off" });
    this.search.addEventListener("input", () => this.set({ q: this.search.value.trim() }, true));
    this.status = make("output", { ariaLive: "polite" });
    const reset = this.button("Reset", () => {
      this.clear();
      this.set({});
    });
    const facets = this.columns.filter((column) => column.facet);
    const tools = make("div", { className: "tools", role: "group", ariaLabel: `Tools of ${this.table.dataset.name}` },
      make("label", {}, "Search", this.search),
      ...facets.map((column) => make("label", {}, column.label, this.facetMenu(column))),
      this.columnMenu(), this.exportMenu(), reset, this.status);
    this.scroll.before(tools);
  }

  button(label, action) {
    return make("button", { type: "button", onclick: action }, label);
  }

  /** A menu that opens below its button; a choice, Escape or a click elsewhere closes it. */
  menu(label, ...children) {
    const summary = make("summary", {}, label);
    const box = make("div", {}, ...children);
    const menu = make("details", { className: "menu" }, summary, box);
    const close = (asked) => {
      if (!asked || !menu.open) return;
      menu.open = false;
      summary.focus();
    };
    menu.addEventListener("toggle", () => {
      box.classList.toggle("flip", box.getBoundingClientRect().right > document.documentElement.clientWidth);
    });
    menu.addEventListener("keydown", (event) => close(event.key === "Escape"));
    menu.addEventListener("click", (event) => close(event.target.closest("button")));
    document.addEventListener("click", (event) => {
      if (!menu.contains(event.target)) menu.open = false;
    });
    return menu;
  }

  /** How many rows have each value of a column. */
  counts(column) {
    const found = new Map();
    for (const { cells } of this.rows) {
      const { value } = cells[column.index];
      if (value !== null) found.set(value, (found.get(value) ?? 0) + 1);
    }
    return found;
  }

  facetMenu(column) {
    const options = [...this.counts(column)].sort(([a], [b]) => COLLATOR.compare(a, b))
      .map(([value, count]) => make("option", { value }, `${value} (${count})`));
    column.menu = make("select", {}, make("option", { value: "" }, "all"), ...options);
    column.menu.addEventListener("change", () => {
      const facets = new Map(this.facets);
      if (column.menu.value) facets.set(column.key, column.menu.value);
      else facets.delete(column.key);
      this.set({ facets });
    });
    return column.menu;
  }

  columnMenu() {
    const twice = (column) => this.columns.some((other) => other !== column && other.label === column.label);
    const labels = this.columns.filter((column) => !column.fixed).map((column) => {
      column.box = make("input", { type: "checkbox" });
      column.box.addEventListener("change", () => {
        const on = new Set(this.on);
        on[column.box.checked ? "add" : "delete"](column);
        this.set({ on });
      });
      return make("label", {}, column.box, twice(column) ? `${column.label} (${column.key})` : column.label);
    });
    return this.menu("Columns", make("fieldset", {}, make("legend", { className: "unseen" }, "Columns"), ...labels));
  }

  exportMenu() {
    const { name, cite } = this.table.dataset;
    const entry = JSON.parse(document.getElementById("citation")?.textContent ?? "{}")[cite];
    return this.menu("Export",
      this.button("Download CSV", () => download(`${name}.csv`, "text/csv", this.csv())),
      this.button("Download JSON", () => download(`${name}.json`, "application/json", this.json())),
      this.button("Copy LaTeX", () => this.copy("LaTeX", this.latex())),
      ...(typeof entry === "string" ? [this.button("Copy BibTeX", () => this.copy("BibTeX", entry))] : []),
      this.button("Copy link", () => this.copy("Link", new URL(this.link(), location.href).href)));
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
    const filters = this.columns.filter((column) => this.facets.has(column.key));
    this.shown = this.inOrder().filter((row) => wanted.every((word) => row.text.includes(word))
      && filters.every((column) => row.cells[column.index].value === this.facets.get(column.key)));
    const inBody = this.shown.slice(0, this.limit).map((row) => row.tr);
    const same = inBody.length === this.body.rows.length && inBody.every((tr, place) => tr === this.body.rows[place]);
    if (!same) this.body.replaceChildren(...inBody); // where nothing moves, a focused checkbox keeps its focus
    const cut = this.shown.length > this.limit;
    this.more.hidden = !cut;
    this.more.textContent = `Show all ${this.shown.length} rows`;
    this.showColumns();
    this.showControls();
    this.comparePicked();
    this.say(`${this.shown.length} of ${this.rows.length} rows${cut ? `, the first ${this.limit} shown` : ""}`);
  }

  /** All rows as sorted: missing values last both ways, equal ones in the page's order. */
  inOrder() {
    if (!this.orders.has(this.sort)) {
      const { index, isNumber } = this.columns.find((column) => column.key === this.sort.replace(/^-/, ""));
      const sign = this.sort.startsWith("-") ? -1 : 1;
      const isMissing = ({ value, number }) => value === null || (isNumber && Number.isNaN(number));
      const compare = (a, b) => (isNumber ? (a.number > b.number) - (a.number < b.number)
        : COLLATOR.compare(a.value, b.value));
      this.orders.set(this.sort, this.rows.toSorted(({ cells: { [index]: a } }, { cells: { [index]: b } }) =>
        isMissing(a) - isMissing(b) || (isMissing(a) ? 0 : sign * compare(a, b))));
    }
    return this.orders.get(this.sort);
  }

  showColumns() {
    for (const column of this.columns) {
      const hidden = !this.on.has(column);
      if (column.key === this.sort) column.head.ariaSort = "ascending";
      else if (`-${column.key}` === this.sort) column.head.ariaSort = "descending";
      else column.head.removeAttribute("aria-sort");
      if (column.box) column.box.checked = !hidden;
      if (column.head.hidden === hidden) continue;
      column.head.hidden = hidden;
      for (const row of this.rows) row.cells[column.index].node.hidden = hidden;
    }
  }

  showControls() {
    if (this.search.value.trim() !== this.q) this.search.value = this.q;
    for (const column of this.columns) if (column.menu) column.menu.value = this.facets.get(column.key) ?? "";
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
      make("button", { type: "button", ariaLabel: `Remove ${row.key}`, onclick: () => this.pick(row) }, "×")));
    const lines = this.columns.slice(1).flatMap((column) => {
      const cells = this.picked.map((row) => row.cells[column.index]);
      if (cells.every((cell) => cell.value === null)) return [];
      const unit = unitOf(cells);
      return [make("tr", {}, make("th", { scope: "row" }, column.label), ...cells.map((cell, place) => {
        const told = place && column.isNumber ? difference(cell, cells[0], unit) : "";
        return make("td", { className: column.isNumber ? "number" : "" }, cell.text,
          ...(told ? [" ", make("span", { className: "difference" }, told)] : []));
      }))];
    });
    const table = make("table", {}, make("caption", {}, `Side by side; differences are to ${this.picked[0].key}`),
      make("thead", {}, make("tr", {}, make("td"), ...names)), make("tbody", {}, ...lines));
    const scroll = make("div", { className: "scroll", tabIndex: 0, role: "region", ariaLabel: "Side by side" }, table);
    return this.panel.replaceChildren(scroll);
  }

  /** Rows and columns in view as [[key, value, whether a number], …]; interval ends follow their column. */
  records() {
    const ends = (column) => ["low", "high"].filter((end) => this.rows.some((row) => row.cells[column.index][end]));
    const fields = this.columns.filter((column) => this.on.has(column)).flatMap((column) => [
      { ...column, part: "value" },
      ...ends(column).map((end) => ({ index: column.index, key: `${column.key}_${end}`, isNumber: true, part: end })),
    ]);
    const read = (row) => fields.map(({ key, index, isNumber, part }) => [key, row.cells[index][part], isNumber]);
    return { keys: fields.map((field) => field.key), lines: this.shown.map(read) };
  }

  csv() {
    const { keys, lines } = this.records();
    const fields = [keys.map((key) => csvField(key, false)),
      ...lines.map((line) => line.map(([, value, isNumber]) => csvField(value, isNumber)))];
    return fields.map((line) => `${line.join(",")}\r\n`).join("");
  }

  json() {
    const pair = ([key, value, isNumber]) => `${JSON.stringify(key)}: ${jsonValue(value, isNumber)}`;
    return `[\n${this.records().lines.map((line) => `  {${line.map(pair).join(", ")}}`).join(",\n")}\n]\n`;
  }

  latex() {
    const columns = this.columns.filter((column) => this.on.has(column));
    const line = (texts) => `${texts.map(latexText).join(" & ")} \\\\`;
    return [
      "% \\usepackage{booktabs}", "\\begin{table}", "\\centering",
      `\\caption{${latexText(words(this.table.caption))}}`,
      `\\begin{tabular}{${columns.map((column) => (column.isNumber ? "r" : "l")).join("")}}`, "\\toprule",
      line(columns.map((column) => column.label)), "\\midrule",
      ...this.shown.map((row) => line(columns.map((column) => row.cells[column.index].text))),
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

/** Lets the keyboard scroll a plot or an equation that is wider than its place. */
function watchWide() {
  const observer = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      if (target.scrollWidth > target.clientWidth) target.tabIndex = 0;
      else target.removeAttribute("tabindex");
    }
  });
  for (const node of document.querySelectorAll("figure.plot, pre")) observer.observe(node);
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
    const followed = !all && query && event?.type !== "popstate";
    if (followed) document.getElementById(id).scrollIntoView({ behavior: "instant" });
  };
  addEventListener("popstate", restore);
  addEventListener("hashchange", restore);
  addEventListener("beforeprint", () => {
    for (const view of views.values()) view.showAll();
  });
  restore();
}

addThemeButton();
watchWide();
start();
