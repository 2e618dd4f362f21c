// Long tables become sortable and filterable, and show a part of their rows. Without this script every row
// is there, in the order of the ranking, and the link still exports all of them.
(function () {
  "use strict";
  const ROWS = 100, MOST_CHOICES = 200;
  const compare = new Intl.Collator(undefined, { numeric: true }).compare;

  function make(tag, attributes, ...children) {
    const element = document.createElement(tag);
    Object.entries(attributes).forEach(([name, value]) => element.setAttribute(name, value));
    element.append(...children);
    return element;
  }

  function keyOf(cell) {
    return "key" in cell.dataset ? Number(cell.dataset.key) : cell.textContent;
  }

  function inOrder(a, b) {
    return typeof a === "number" && typeof b === "number" ? a - b : compare(String(a), String(b));
  }

  function enliven(part) {
    const table = part.querySelector("table"), body = table.tBodies[0];
    const link = part.querySelector("a[download]"), address = link.href;
    const heads = Array.from(table.tHead.rows[0].cells);
    const rows = Array.from(body.rows, (row, place) => ({ row, place, text: null }));
    const status = make("p", { role: "status", class: "quiet" });
    const more = make("button", { type: "button" }, `Show ${ROWS} more`);
    const all = make("button", { type: "button" }, "Show all");
    const field = make("input", { type: "search", autocomplete: "off", spellcheck: "false" });
    const chosen = [];
    let sorted = rows, matching = rows, limit = ROWS;

    function show() {
      const shown = matching.slice(0, limit);
      body.replaceChildren(...shown.map((one) => one.row));
      const of = matching.length === rows.length ? "" : `, of ${rows.length.toLocaleString("en")}`;
      status.textContent = matching.length
        ? `${shown.length.toLocaleString("en")} of ${matching.length.toLocaleString("en")} rows shown${of}`
        : `No row matches${of}`;
      const hasMore = shown.length < matching.length;
      if (!hasMore && [more, all].includes(document.activeElement)) table.parentElement.focus();
      more.hidden = all.hidden = !hasMore;
    }

    function filter() {
      const wanted = field.value.trim().toLowerCase();
      matching = sorted.filter((one) => {
        if (!chosen.every(([select, column]) =>
          !select.value || one.row.cells[column].textContent === select.value)) return false;
        if (!wanted) return true;
        one.text = one.text ?? one.row.textContent.toLowerCase();
        return one.text.includes(wanted);
      });
      limit = ROWS;
      show();
    }

    function sort(column) {
      const head = heads[column], turn = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach((one) => one.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", turn > 0 ? "ascending" : "descending");
      const keys = new Map(rows.map((one) => [one, keyOf(one.row.cells[column])]));
      sorted = rows.slice().sort((a, b) => turn * inOrder(keys.get(a), keys.get(b)) || a.place - b.place);
      filter();
    }

    function exported() {
      const bytes = Uint8Array.from(atob(address.split(",")[1]), (one) => one.charCodeAt(0));
      const records = new TextDecoder("utf-8").decode(bytes).split("\r\n");
      const lines = [records[0], ...matching.map((one) => records[one.place + 1])];
      return new Blob(["\ufeff" + lines.join("\r\n") + "\r\n"], { type: "text/csv" });
    }

    heads.forEach((head, column) => {
      if (!("sort" in head.dataset)) return;
      const button = make("button", { type: "button" }, ...head.childNodes);
      button.addEventListener("click", () => sort(column));
      head.append(button);
      if (!("choices" in head.dataset)) return;
      const values = new Set(rows.map((one) => one.row.cells[column].textContent));
      if (values.size < 2 || values.size > MOST_CHOICES) return;
      const options = Array.from(values).sort(compare).map((one) => make("option", { value: one }, one));
      const select = make("select", {}, make("option", { value: "" }, "all"), ...options);
      select.addEventListener("change", filter);
      chosen.push([select, column]);
    });
    heads[0].setAttribute("aria-sort", "ascending");
    field.addEventListener("input", filter);
    more.addEventListener("click", () => { limit += ROWS; show(); });
    all.addEventListener("click", () => { limit = rows.length; show(); });
    link.addEventListener("click", () => {
      link.href = URL.createObjectURL(exported());
      setTimeout(() => { URL.revokeObjectURL(link.href); link.href = address; }, 1000);
    });
    link.before(make("label", {}, "Filter ", field),
      ...chosen.map(([select, column]) => make("label", {}, `${heads[column].textContent} `, select)), status);
    part.append(make("div", { class: "tools" }, more, all));
    part.classList.add("live");
    show();
  }

  document.querySelectorAll(".list").forEach(enliven);
})();
