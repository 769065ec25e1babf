"use strict";
// A click on the header of a sortable table: ascending, then descending, then as it was. Cells with data-value sort as
// numbers, others as text; a cell without either comes last in both directions. Only nodes move, no text becomes markup.
const order = new Intl.Collator(undefined, { numeric: true });

function valueOf(row, column) {
  const cell = row.cells[column];
  if (!cell) return null;
  if (cell.dataset.value !== undefined) return cell.dataset.value === "" ? null : Number(cell.dataset.value);
  const text = cell.textContent.trim();
  return text === "" || text === "–" ? null : text;
}

function compare(one, two, sign) {
  if (one === null || two === null) return (one === null) - (two === null);
  return sign * (typeof one === "number" && typeof two === "number" ? one - two : order.compare(String(one), String(two)));
}

for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], original = [...body.rows], headers = [...table.tHead.rows[0].cells];
  if (original.length < 2) continue;
  headers.forEach((header, column) => {
    if (header.tagName !== "TH") return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const before = header.getAttribute("aria-sort");
      for (const other of headers) other.removeAttribute("aria-sort");
      const rows = [...original];
      if (before !== "descending") {
        header.setAttribute("aria-sort", before === "ascending" ? "descending" : "ascending");
        const sign = before === "ascending" ? -1 : 1;
        rows.sort((a, b) => compare(valueOf(a, column), valueOf(b, column), sign));
      }
      body.append(...rows);
    });
  });
}

// Paper cannot be unfolded: all of the page is printed, and folded again afterwards.
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  for (const one of opened) one.open = true;
});
addEventListener("afterprint", () => {
  for (const one of opened) one.open = false;
  opened = [];
});
