// Sorting, filters, highlights and the theme of a leaderboard. Everything it reads stands in the page as data-* attributes, and it writes no HTML.
"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("scripted");

  // The theme, as early as possible so that a dark page does not flash white. Storage may be forbidden; then it lasts as long as the page.
  const THEME = "leaderboard-theme";
  let theme = "auto";
  try { theme = localStorage.getItem(THEME) || "auto"; } catch (error) { /* forbidden */ }
  const setTheme = (name) => {
    if (name === "light" || name === "dark") root.dataset.theme = name; else delete root.dataset.theme;
  };
  setTheme(theme);

  document.addEventListener("DOMContentLoaded", () => {
    const all = (selector, from = document) => [...from.querySelectorAll(selector)];
    const one = (selector, from = document) => from.querySelector(selector);

    const themes = all("button[data-theme]");
    const showTheme = () => themes.forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.theme === (root.dataset.theme || "auto"))));
    themes.forEach((button) => button.addEventListener("click", () => {
      setTheme(button.dataset.theme);
      try { localStorage.setItem(THEME, button.dataset.theme); } catch (error) { /* forbidden */ }
      showTheme();
    }));
    showTheme();

    // What belongs to a row, wherever it stands on the page.
    const parts = new Map();
    all("[data-row]").forEach((part) => {
      if (!parts.has(part.dataset.row)) parts.set(part.dataset.row, []);
      parts.get(part.dataset.row).push(part);
    });
    const board = one("#board");
    const rows = board ? all("tbody tr", board) : [];
    const filters = one("#table form.filters");
    const gallery = one("#gallery");
    const scatter = one("#scatter");
    const words = (text) => text.toLowerCase().split(/\s+/).filter(Boolean);
    const sorted = { index: -1, down: false };
    const phone = window.innerWidth < 700;
    let columns = phone ? "key" : "all";

    // Filters of rows: none always stays.
    const FLAGS = ["nofit", "noextra", "weights", "pareto"];
    const filterRows = () => {
      if (!filters) return;
      const wanted = words(filters.q.value), where = filters.where.value;
      let shown = 0;
      rows.forEach((row) => {
        const fits = "none" in row.dataset || (wanted.every((word) => row.dataset.words.includes(word))
          && (!where || row.dataset.where === where) && FLAGS.every((flag) => !filters[flag].checked || flag in row.dataset));
        parts.get(row.dataset.row).forEach((part) => part.classList.toggle("off", !fits));
        shown += fits;
      });
      filters.count.value = `${shown} of ${rows.length} shown`;
      countColumns();
    };
    const countColumns = () => {
      const grid = one(".gallery");
      if (grid) grid.style.setProperty("--n", all(".shot.head .cell:not(.off)", grid).length);
    };

    const filterLines = () => {
      const form = gallery && one("form.filters", gallery);
      if (!form) return;
      const wanted = words(form.words.value), group = form.group.value, lines = all(".shot:not(.head)", gallery);
      let shown = 0;
      lines.forEach((line) => {
        const fits = wanted.every((word) => line.dataset.words.includes(word)) && (!group || line.dataset.group === group);
        line.classList.toggle("off", !fits);
        shown += fits;
      });
      form.lines.value = `${shown} of ${lines.length} prompts`;
      // Methods, none always among them: what stands under a heading, and what attackers found.
      const named = words(form.method.value);
      all(".shot.head [data-words], #exhibits [data-words]").forEach((item) => {
        const fits = "none" in item.dataset || named.every((word) => item.dataset.words.includes(word));
        parts.get(item.dataset.row).forEach((part) => part.classList.toggle("off", !fits));
      });
      countColumns();
    };

    // Sorting by the number or the text of a column; what has none stands last in either direction.
    const sortTable = (table, index, down) => {
      const body = one("tbody", table), heads = all("tr.names th", table);
      const lines = table.lines || (table.lines = all("tr", body));
      if (index < 0 && !table.moved) return; // as the page has it
      table.moved = index >= 0;
      const numbers = index >= 0 && heads[index].dataset.kind === "number";
      const value = (line) => {
        const text = line.cells[index].dataset.v;
        return text === undefined || text === "" ? null : numbers ? Number(text) : text.toLowerCase();
      };
      const keyed = lines.map((line, place) => ({ line, place, value: index < 0 ? place : value(line) }));
      keyed.sort((a, b) => {
        if (a.value === null || b.value === null) return (a.value === null) - (b.value === null) || a.place - b.place;
        const order = a.value < b.value ? -1 : a.value > b.value ? 1 : 0;
        return (down ? -order : order) || a.place - b.place;
      });
      body.append(...keyed.map((item) => item.line));
      heads.forEach((head, place) => {
        if (place === index) head.setAttribute("aria-sort", down ? "descending" : "ascending"); else head.removeAttribute("aria-sort");
      });
    };
    all("table.sortable").forEach((table) => all("tr.names th", table).forEach((head, index) => {
      const button = one("button", head);
      if (button) button.addEventListener("click", () => {
        const now = head.getAttribute("aria-sort");
        const [next, down] = now === "ascending" ? [index, true] : now === "descending" ? [-1, false] : [index, false];
        sortTable(table, next, down);
        if (table === board) { sorted.index = next; sorted.down = down; save(); }
      });
    }));

    const showColumns = (name) => {
      columns = name === "key" ? "key" : "all";
      all("table.sortable").forEach((table) => {
        table.classList.toggle("compact", columns === "key");
        all("tr.parts th[data-part]", table).forEach((head) => {
          const own = all(`tr.names th.p-${head.dataset.part}`, table).filter((column) => columns === "all" || !column.classList.contains("extra"));
          head.classList.toggle("off", own.length === 0);
          head.colSpan = Math.max(own.length, 1);
        });
      });
      all("button[data-columns]").forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.columns === columns)));
    };

    const showScatter = () => {
      if (!scatter) return;
      const [x, y] = ["x", "y"].map((name) => one(`select[name=${name}]`, scatter).value);
      all("svg.plot", scatter).forEach((plot) => plot.classList.toggle("off", plot.dataset.x !== x || plot.dataset.y !== y));
    };

    // A method under the pointer, or pressed in the legend, stands out in every chart.
    const charts = all(".charts");
    let pinned = null, lit = null;
    const light = (place) => {
      if (!charts.length || place === lit) return;
      lit = place;
      all(".hot").forEach((part) => part.classList.remove("hot"));
      charts.forEach((part) => part.classList.toggle("focused", place !== null));
      if (place !== null) (parts.get(place) || []).forEach((part) => part.classList.add("hot"));
    };
    const placeOf = (event) => {
      const part = event.target instanceof Element ? event.target.closest(".charts [data-row], #board tr[data-row]") : null;
      return part ? part.dataset.row : pinned;
    };
    ["mouseover", "focusin"].forEach((kind) => document.addEventListener(kind, (event) => light(placeOf(event))));
    all(".legend button").forEach((button) => button.addEventListener("click", () => {
      pinned = pinned === button.dataset.row ? null : button.dataset.row;
      all(".legend button").forEach((other) => other.setAttribute("aria-pressed", String(other.dataset.row === pinned)));
      light(pinned);
    }));

    // The view as the address's fragment, so that it can be shared; a fragment without "=" is a place of the page.
    const save = () => {
      const state = new URLSearchParams();
      const put = (name, value, usual) => { if (value && value !== usual) state.set(name, value); };
      if (filters) {
        put("q", filters.q.value);
        put("where", filters.where.value);
        FLAGS.forEach((flag) => put(flag, filters[flag].checked ? "1" : ""));
      }
      if (sorted.index >= 0) state.set("sort", `${sorted.index}${sorted.down ? ".down" : ""}`);
      put("columns", columns, phone ? "key" : "all");
      all("#scatter select").forEach((select) => put(select.name, select.value, select.options[0].value));
      all("#gallery form.filters [name]").forEach((field) => { if (field.tagName !== "OUTPUT") put(field.name, field.value); });
      const text = state.toString();
      try { history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search); } catch (error) { /* no history here */ }
    };
    const choose = (select, value) => { select.value = all("option", select).some((option) => option.value === value) ? value : select.options[0].value; };
    const load = () => {
      const text = location.hash.slice(1);
      if (text && !text.includes("=")) return;
      const state = new URLSearchParams(text), get = (name) => state.get(name) || "";
      if (filters) {
        filters.q.value = get("q");
        choose(filters.where, get("where"));
        FLAGS.forEach((flag) => { filters[flag].checked = get(flag) === "1"; });
      }
      all("#scatter select").forEach((select) => choose(select, get(select.name)));
      const form = gallery && one("form.filters", gallery);
      if (form) { form.words.value = get("words"); form.method.value = get("method"); choose(form.group, get("group")); }
      showColumns(get("columns") || (phone ? "key" : "all"));
      if (board) {
        const found = /^(\d{1,4})(\.down)?$/.exec(get("sort"));
        const index = found ? Number(found[1]) : -1;
        sorted.index = index < all("tr.names th", board).length ? index : -1;
        sorted.down = Boolean(found && found[2]);
        sortTable(board, sorted.index, sorted.down);
      }
      filterRows(); filterLines(); showScatter();
    };

    all("form.filters").forEach((form) => {
      const apply = () => { filterRows(); filterLines(); save(); };
      form.addEventListener("input", apply);
      form.addEventListener("submit", (event) => event.preventDefault());
      form.addEventListener("reset", () => setTimeout(apply));
    });
    all("button[data-columns]").forEach((button) => button.addEventListener("click", () => { showColumns(button.dataset.columns); save(); }));
    all("#scatter select").forEach((select) => select.addEventListener("change", () => { showScatter(); save(); }));
    window.addEventListener("hashchange", load);
    load();
    if (location.hash && !location.hash.includes("=")) showColumns(columns);
  });
})();
