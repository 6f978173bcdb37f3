// Sorts a table by the column whose heading is clicked: numbers by their value,
// names by letters; what has no number is last.
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") !== (column ? "descending" : "ascending");
    const sign = (column ? down : !down) ? -1 : 1;
    const value = (row) => {
      const cell = row.cells[column];
      if (!column) return cell.textContent;
      return cell.dataset.value === undefined ? sign * Infinity : Number(cell.dataset.value);
    };
    const order = (a, b) => typeof a === "string" ? a.localeCompare(b, undefined, {numeric: true}) : a - b;
    const rows = [...body.rows].sort((a, b) => sign * order(value(a), value(b)));
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", sign < 0 ? "descending" : "ascending");
    body.append(...rows);
  }));
}
