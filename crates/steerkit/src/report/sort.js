// Column heads sort their table: rising, falling, as it was. Cells are numbers where they begin like one.
for (const table of document.querySelectorAll("table")) {
  if (!table.tHead) continue;
  const body = table.tBodies[0];
  const original = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  const key = (row, column) => {
    const cell = row.cells[column];
    const text = (cell && cell.firstChild ? cell.firstChild.textContent : "").trim().replace("\u2212", "-");
    const number = parseFloat(text.replace(/,/g, ""));
    return /^[-+]?[.\d]/.test(text) ? number : text === "" || text === "\u2013" ? null : text;
  };
  const compare = (a, b) => {
    if (a === null || b === null) return (a === null) - (b === null);
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), undefined, { numeric: true });
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const next = { none: "ascending", ascending: "descending", descending: "none" }[head.ariaSort || "none"];
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      const sign = next === "descending" ? -1 : 1;
      const rows = original.map((row) => ({ row, key: key(row, column) }));
      if (next !== "none") {
        head.ariaSort = next;
        // What has no value stays last either way.
        rows.sort((a, b) => (a.key === null || b.key === null ? 1 : sign) * compare(a.key, b.key));
      }
      body.append(...rows.map((entry) => entry.row));
    });
  });
}
