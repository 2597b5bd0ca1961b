"use strict";

// The patches of merged tokens: their mean colour, and one outline.

const INSET = 0.09; // of an outline from the border of its patches, in patches

// `text` names the colour of each outline and the patches of each token; `patches` their colours.
function drawGroups(text, columns, patches, colors) {
  return text.split(",").filter(Boolean).flatMap((group) => {
    const [color, ...numbers] = group.split(" ").map((number) => parseInt(number, 36));
    const places = numbers.map((n) => [n % columns, Math.floor(n / columns)]);
    const area = places.map(([x, y]) => `M${x} ${y}h1v1h-1z`).join("");
    const d = outline(places);
    return [
      make("path", { d: area, fill: meanColor(numbers, patches), "shape-rendering": "crispEdges" }),
      make("path", { d, class: "edge" }),
      make("path", { d, class: "outline", stroke: colors[color] }),
    ];
  });
}

function meanColor(numbers, patches) {
  const channels = [0, 2, 4].map((at) => {
    const values = numbers.map((n) => parseInt(patches.slice(6 * n + at, 6 * n + at + 2), 16));
    return Math.round(values.reduce((sum, value) => sum + value, 0) / values.length);
  });
  return `rgb(${channels})`;
}

// Lines around patches, inside of their border.
function outline(places) {
  const cells = new Set(places.map(String));
  const has = (x, y) => cells.has(`${x},${y}`);
  const out = 0.5 - INSET;
  let d = "";
  for (const [x, y] of places) {
    for (const [dx, dy] of [[0, -1], [1, 0], [0, 1], [-1, 0]]) {
      if (has(x + dx, y + dy)) continue;
      // a line goes on, turns away from a corner, or around one
      const ends = [-1, 1].map((way) => {
        const [sideX, sideY] = [x + way * dy, y + way * dx];
        const turns = has(sideX, sideY) && has(sideX + dx, sideY + dy);
        const reach = way * (turns ? 0.5 + INSET : has(sideX, sideY) ? 0.5 : out);
        return `${x + 0.5 + out * dx + reach * dy} ${y + 0.5 + out * dy + reach * dx}`;
      });
      d += `M${ends.join("L")}`;
    }
  }
  return d;
}
