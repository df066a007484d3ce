// Makes the ledger's table in `root` filterable and sortable; each row says its kind, page, outcome.
const table = root.querySelector("table"), body = table.tBodies[0], rows = [...body.rows];
const make = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
};
const count = make("span", { role: "status" });
const text = make("input", { type: "search", placeholder: "item, claim or data", "aria-label": "filter by item, claim or data" });
const choice = name => {
  const values = [...new Set(rows.map(row => row.dataset[name]))];
  const box = make("select", { "aria-label": `filter by ${name}` }, make("option", { value: "" }, `any ${name}`),
    ...values.map(value => make("option", { value }, value)));
  box.name = name;
  return box;
};
const choices = ["kind", "page", "outcome"].map(choice);
function filter() {
  const words = text.value.toLowerCase().split(/\s+/);
  for (const row of rows) {
    const content = row.textContent.toLowerCase();
    row.hidden = !(words.every(word => content.includes(word))
      && choices.every(box => !box.value || row.dataset[box.name] === box.value));
  }
  count.textContent = `${rows.filter(row => !row.hidden).length} of ${rows.length} rows`;
}
for (const box of [text, ...choices]) box.addEventListener("input", filter);
root.prepend(make("div", { class: "filters" }, text, ...choices, count));
[...table.tHead.rows[0].cells].forEach((head, k) => {
  const button = make("button", { type: "button" }, head.textContent);
  head.replaceChildren(button);
  button.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = row => row.cells[k].textContent;
    const order = new Intl.Collator("en", { numeric: true });
    const number = row => Number(key(row));
    const numeric = rows.every(row => Number.isFinite(number(row)));
    rows.sort((a, b) => (up ? 1 : -1) * (numeric ? number(a) - number(b) : order.compare(key(a), key(b))));
    body.append(...rows);
  });
});
filter();
