// Draws one explorer into `root` from `state`; see explorer.py for what state has.
const make = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
};
const sign = x => (x < 0 ? "−" : "+") + Math.abs(x).toPrecision(2);
let test = 0;

const choices = make("div", { class: "choices", role: "group", "aria-label": "test image" });
state.tests.forEach((one, k) => {
  const button = make("button", { type: "button", "aria-label": `test image ${one.number}, ${one.name}` },
    make("img", { src: one.image, alt: "" }));
  button.addEventListener("click", () => { test = k; draw(); });
  choices.append(button);
});
const slider = make("input", { type: "range", min: 0, max: state.stops.length - 1, step: 1,
  value: state.start, "aria-label": state.name });
const value = make("output");
slider.addEventListener("input", () => draw());
const view = make("div", { class: "view", "aria-live": "polite" });
root.append(
  make("p", { class: "ask" }, "Choose a test image"), choices,
  make("label", { class: "slide" }, `${state.name} `, slider, " ", value), view);

const picture = (image, alt) => make("img", { src: image, alt });

function side(title, rows, largest) {
  const list = make("ul");
  for (const [i, exact, estimate, leverage] of rows) {
    const one = state.train[i];
    const bar = (x, kind) => make("span", { class: `bar ${kind}`, style: `--part:${Math.abs(x) / largest}` });
    const words = make("span", { class: "words" },
      make("span", { class: "pair" }, bar(exact, "true"), make("b", {}, sign(exact))),
      make("span", { class: "pair" }, bar(estimate, "estimate"), make("span", {}, sign(estimate))));
    if (leverage !== undefined) words.append(make("small", {}, `leverage ${leverage.toFixed(2)}`));
    if (one.note) words.append(make("small", { class: "wrong" }, one.note));
    const alt = [`training image ${i}`, one.name, one.note].filter(Boolean).join(", ");
    list.append(make("li", { "data-row": i, "data-exact": exact, "data-estimate": estimate },
      picture(one.image, alt), words));
  }
  return make("div", { class: "side" }, make("p", {}, title), list);
}

function draw() {
  const stop = state.stops[slider.value], shown = stop.views[test], one = state.tests[test];
  value.textContent = stop.value;
  slider.setAttribute("aria-valuetext", stop.value);
  [...choices.children].forEach((button, k) => button.setAttribute("aria-pressed", k === test));
  const largest = Math.max(1e-12, ...shown.sides.flat().flatMap(row => [Math.abs(row[1]), Math.abs(row[2])]));
  const guess = shown.f >= 0 ? state.plus : state.minus;
  view.replaceChildren(
    make("div", { class: "test" }, picture(one.image, `test image ${one.number}, ${one.name}`),
      make("p", {}, `This is ${one.name}; the network says ${guess} (output ${sign(shown.f)}).`)),
    side("helped most", shown.sides[0], largest), side("hurt most", shown.sides[1], largest),
    make("p", { class: "unit" }, make("span", { class: "bar true key" }), ` ${state.unit} `,
      make("span", { class: "bar estimate key" }), ` ${state.estimate}.`));
}
draw();
