"use strict";

// Brings the page to life: what is chosen in one place shows in all.

const report = JSON.parse(document.getElementById("data").textContent);
const find = (selector) => document.querySelector(selector);

const front = new Front(find("#front-chart"), report, choose);
const view = new PolicyView(find("#policy"), report);
const picker = find("#picker");
const order = [...picker.options].map((option) => option.value);

function choose(id) {
  view.show(id);
  front.mark(id);
  picker.value = id;
  history.replaceState(null, "", `#${id}`);
  document.querySelectorAll("[data-choose]").forEach((row) => {
    row.toggleAttribute("aria-current", row.dataset.choose === id);
  });
}

function radios(box, name, options, change) {
  options.forEach(([value, label], n) => {
    const input = html("input", { type: "radio", name, value, id: `${name}-${n}` });
    input.checked = n === 0;
    input.addEventListener("change", () => change(value));
    box.append(input, html("label", { for: input.id }, label));
  });
  box.hidden = options.length < 2;
}

radios(find("#pairs"), "pair", front.pairs.map((pair, n) => [n, pair.name]),
  (n) => front.show({ pair: front.pairs[n] }));
const splits = report.images.holdout ? ["search", "holdout"] : ["search"];
radios(find("#splits"), "split", splits.map((split) => [split, `${split} split`]),
  (split) => front.show({ split }));

const kinds = [["front", "front"], ["dense", "dense model"], ["smaller", "smaller dense models, published"],
  ["schedule", null], ["candidate", "other candidates"]];
for (const [kind, label] of kinds) {
  const points = front.of(kind);
  if (!points.length) continue;
  const icon = (point) => {
    const { marker, color } = front.style(point);
    return make("svg", { viewBox: "-9 -9 18 18", class: `icon point ${color}`, "aria-hidden": "true" },
      make("path", { d: MARKERS[marker](4.5) }));
  };
  const parts = label
    ? [html("span", {}, icon(points[0]), label)]
    : front.families.map((family) => html("span", {}, icon(points.find((p) => p.family === family)), family));
  const button = html("button", { type: "button", "aria-pressed": "true" }, ...parts);
  button.addEventListener("click", () => {
    front.toggle(kind);
    button.setAttribute("aria-pressed", String(!front.hidden.has(kind)));
  });
  find("#legend").append(button);
}

picker.addEventListener("change", () => choose(picker.value));
for (const [button, step] of [["#previous", -1], ["#next", 1]]) {
  find(button).addEventListener("click", () => {
    choose(order[(order.indexOf(picker.value) + step + order.length) % order.length]);
  });
}
document.querySelectorAll("[data-choose] button").forEach((button) => {
  button.addEventListener("click", () => {
    choose(button.closest("[data-choose]").dataset.choose);
    find("#policy").scrollIntoView();
  });
});

const seconds = report.history[report.history.length - 1][1];
const [unit, length] = seconds < 120 ? ["Seconds", 1] : seconds < 7200 ? ["Minutes", 60] : ["Hours", 3600];
const short = (value) => String(+value.toFixed(1));
new Growth(find("#over-candidates"), report.history.map(([n, , volume]) => [n, volume]),
  { name: "Candidates", format: short });
new Growth(find("#over-time"), report.history.map(([, at, volume]) => [at / length, volume]),
  { name: unit, format: short });

const asked = location.hash.slice(1);
choose(report.policies[asked] ? asked : picker.dataset.first);
