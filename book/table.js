// Makes the ledger's table in `root` filterable and sortable. A row says its data; its link says its
// page, and its class whether it holds.
// The address may choose, as in ledger.html?item=Eq+9.
const table = root.querySelector("table"), body = table.tBodies[0], rows = [...body.rows];
const make = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
};
const order = new Intl.Collator("en", { numeric: true });
const heads = [...table.tHead.rows[0].cells], names = heads.map(head => head.textContent);
const told = {
  page: row => row.querySelector("a").getAttribute("href").split(".html")[0],
  outcome: row => row.className ? "does not hold" : "holds",
  data: row => row.dataset.data,
};
rows.forEach((row, k) => {  // an empty item or setting is that of the row above
  const above = rows[k - 1];
  for (const name of ["item", "setting"]) {
    const cell = row.cells[names.indexOf(name)];
    if (!cell.hasChildNodes()) cell.append(...above.cells[cell.cellIndex].cloneNode(true).childNodes);
  }
  row.dataset.data ??= above.dataset.data;
});
const value = (row, name) => told[name]?.(row) ?? row.cells[names.indexOf(name)].textContent;
const asked = new URLSearchParams(location.search);
const count = make("span", { role: "status" });
const text = make("input", { type: "search", placeholder: "words", "aria-label": "filter by words" });
const choice = name => {
  const values = [...new Set(rows.map(row => value(row, name)))].sort(order.compare);
  const box = make("select", { name, "aria-label": `filter by ${name}` },
    make("option", { value: "" }, `any ${name}`), ...values.map(value => make("option", { value }, value)));
  box.value = values.includes(asked.get(name)) ? asked.get(name) : "";
  return box;
};
const choices = ["page", "item", "data", "kind", "outcome"].map(choice);
function filter() {
  const words = text.value.toLowerCase().split(/\s+/);
  for (const row of rows) {
    const content = row.textContent.toLowerCase();
    row.hidden = !(words.every(word => content.includes(word))
      && choices.every(box => !box.value || value(row, box.name) === box.value));
  }
  count.textContent = `${rows.filter(row => !row.hidden).length} of ${rows.length} rows`;
}
for (const box of [text, ...choices]) box.addEventListener("input", filter);
root.prepend(make("div", { class: "filters" }, text, ...choices, count));
heads.forEach((head, k) => {
  const button = make("button", { type: "button" }, head.textContent);
  head.replaceChildren(button);
  button.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = row => row.cells[k].textContent;
    const number = row => Number(key(row));
    const numeric = rows.every(row => Number.isFinite(number(row)));
    rows.sort((a, b) => (up ? 1 : -1) * (numeric ? number(a) - number(b) : order.compare(key(a), key(b))));
    body.append(...rows);
  });
});
filter();
