"use strict";

// What all charts are made of.

function make(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function html(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function linear([low, high], [from, to]) {
  const slope = (to - from) / (high - low || 1);
  return (value) => from + (value - low) * slope;
}

// Round values in [low, high], about `count` of them.
function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++) {
    found.push(Number((n * step).toPrecision(12)));
  }
  return found;
}

const percent = (share, digits = 0) => `${(100 * share).toFixed(digits)} %`;
const lowered = (title) => (title === "FLOPs" ? title : title.toLowerCase());
const score = (value) => `${value.toFixed(1)} %`;
const interval = ([, low, high], digits = 1) => `${low.toFixed(digits)} to ${high.toFixed(digits)}`;

// Grid lines, labels and names of both axes; the margins leave room for them.
function drawAxes(svg, frame, x, y) {
  const { left, right, top, bottom } = frame;
  for (const value of y.ticks) {
    const at = y.place(value);
    svg.append(make("line", { x1: left, x2: right, y1: at, y2: at, class: "grid" }));
    const label = { x: left - 8, y: at + 4, class: "tick", "text-anchor": "end" };
    svg.append(make("text", label, y.format(value)));
  }
  for (const value of x.ticks) {
    const label = { x: x.place(value), y: bottom + 20, class: "tick", "text-anchor": "middle" };
    svg.append(make("text", label, x.format(value)));
  }
  svg.append(make("line", { x1: left, x2: right, y1: bottom, y2: bottom, class: "axis" }));
  const under = { x: (left + right) / 2, y: bottom + 42, class: "name", "text-anchor": "middle" };
  svg.append(make("text", under, x.name));
  svg.append(make("text", { x: left - 8, y: top - 14, class: "name beside" }, y.name));
}

// Calls `draw(width)` now and whenever the box gets another width.
function drawToFit(box, draw) {
  let drawn = 0;
  const observer = new ResizeObserver(() => {
    const width = Math.round(box.clientWidth);
    if (width && width !== drawn) draw((drawn = width));
  });
  observer.observe(box);
}
