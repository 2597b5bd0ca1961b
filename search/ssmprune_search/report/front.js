"use strict";

// The front: every pair of objectives, with everything that it has to be compared with.

const MARKERS = {
  circle: (r) => `M${-r} 0a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0z`,
  square: (r) => `M${-r} ${-r}h${2 * r}v${2 * r}h${-2 * r}z`,
  triangle: (r) => `M0 ${-1.2 * r}L${1.2 * r} ${r}H${-1.2 * r}z`,
  diamond: (r) => `M0 ${-1.35 * r}L${1.35 * r} 0 0 ${1.35 * r} ${-1.35 * r} 0z`,
  chevron: (r) => `M0 ${1.2 * r}L${1.2 * r} ${-r}H${-1.2 * r}z`,
  cross: (r) => {
    const [a, b] = [0.45 * r, 1.25 * r];
    return `M${-a} ${-b}h${2 * a}V${-a}H${b}v${2 * a}H${a}V${b}h${-2 * a}V${a}H${-b}v${-2 * a}H${-a}z`;
  },
  bar: (r) => `M${-1.4 * r} ${-0.5 * r}h${2.8 * r}v${r}h${-2.8 * r}z`,
  star: (r) => {
    const corner = (n) => {
      const [angle, size] = [(n * Math.PI) / 5, n % 2 ? 0.8 * r : 1.9 * r];
      return `${(size * Math.sin(angle)).toFixed(2)} ${(-size * Math.cos(angle)).toFixed(2)}`;
    };
    return `M${[0, 1, 2, 3, 4, 5, 6, 7, 8, 9].map(corner).join("L")}z`;
  },
};
const FAMILY_MARKERS = ["square", "triangle", "diamond", "chevron", "cross", "bar"];
const FAMILY_COLORS = 4;
const DEEPEST = 40; // points below the dense model
const REACH = 26; // pixels between the pointer and the point that it means

class Front {
  constructor(box, report, choose) {
    Object.assign(this, { box, report, choose });
    this.svg = make("svg", { role: "group", "aria-label": "The front; use the arrow keys" });
    this.tip = html("div", { class: "tip", "aria-hidden": "true", hidden: "" });
    box.append(this.svg, this.tip);
    this.hidden = new Set();
    this.chosen = null;
    this.families = [...new Set(this.of("schedule").map((point) => point.family))];
    this.pairs = this.findPairs();
    this.pair = this.pairs[0];
    this.split = "search";
    this.svg.addEventListener("pointermove", (event) => this.point(this.nearest(event)));
    this.svg.addEventListener("pointerleave", () => this.point(null));
    this.svg.addEventListener("click", (event) => this.pick(this.nearest(event)));
    this.svg.addEventListener("keydown", (event) => this.step(event));
    drawToFit(box, (width) => this.draw(width));
  }

  of(kind) {
    return this.report.points.filter((point) => point.kind === kind);
  }

  // Each pair of objectives: accuracy stands upright, and FLOPs lie down.
  findPairs() {
    const { objectives, costs, score } = this.report;
    const there = costs.filter(({ name }) => objectives.includes(name));
    const pairs = there.map((cost) => ({ x: cost.name, y: score.name }));
    there.forEach((x, n) => there.slice(n + 1).forEach((y) => pairs.push({ x: x.name, y: y.name })));
    const found = objectives.includes(score.name) ? pairs : pairs.filter(({ y }) => y !== score.name);
    const chosen = found.length ? found : [{ x: "flops", y: score.name }];
    return chosen.map(({ x, y }) => ({ x, y, name: `${this.title(y)} against ${lowered(this.title(x))}` }));
  }

  isScore(objective) {
    return objective === this.report.score.name;
  }

  cost(name) {
    return this.report.costs.find((cost) => cost.name === name);
  }

  title(objective) {
    return this.isScore(objective) ? this.report.score.title : this.cost(objective).title;
  }

  // Value, lower and upper end of one objective; null where it was not measured.
  figure(point, objective) {
    if (objective === "flops") return [point.flops, point.flops, point.flops];
    return this.isScore(objective) ? point[this.split] : point[this.cost(objective).key];
  }

  placed(kind) {
    if (this.hidden.has(kind)) return [];
    const seen = this.of(kind).map((point) => {
      const [x, y] = [this.figure(point, this.pair.x), this.figure(point, this.pair.y)];
      return { point, x, y };
    });
    return seen.filter(({ x, y }) => x && y);
  }

  show({ pair = this.pair, split = this.split }) {
    Object.assign(this, { pair, split });
    this.redraw();
  }

  toggle(kind) {
    if (!this.hidden.delete(kind)) this.hidden.add(kind);
    this.redraw();
  }

  mark(id) {
    this.chosen = id;
    this.redraw();
  }

  redraw() {
    if (this.width) this.draw(this.width);
  }

  // The front, known schedules and the dense model, down to what is of use.
  range(axis) {
    const objective = this.pair[axis];
    const kinds = ["front", "schedule", "smaller", "dense"];
    const figures = kinds.flatMap((kind) => this.placed(kind)).map((place) => place[axis]);
    let [low, high] = [Math.min(...figures.map((f) => f[1])), Math.max(...figures.map((f) => f[2]))];
    const [dense] = this.of("dense");
    if (this.isScore(objective) && dense[this.split]) low = Math.max(low, dense[this.split][0] - DEEPEST);
    const margin = 0.05 * (high - low || 0.1);
    return [low - margin, high + margin];
  }

  draw(width) {
    this.width = width;
    const height = Math.round(Math.min(520, Math.max(330, 0.56 * width)));
    const frame = { left: 52, right: width - 14, top: 40, bottom: height - 52 };
    const [xs, ys] = [this.range("x"), this.range("y")];
    this.x = linear(xs, [frame.left, frame.right]);
    this.y = linear(ys, [frame.bottom, frame.top]);
    const name = (objective) => this.isScore(objective) ? `${this.report.score.title} on the ${this.split} split`
      : `${this.title(objective)}, share of the dense model's`;
    const format = (objective) => (v) => (this.isScore(objective) ? `${v} %` : `${+(100 * v).toFixed(1)} %`);
    this.svg.replaceChildren();
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.setAttribute("height", height);
    drawAxes(this.svg, frame,
      { place: this.x, ticks: ticks(...xs, width / 90), format: format(this.pair.x), name: name(this.pair.x) },
      { place: this.y, ticks: ticks(...ys, 6), format: format(this.pair.y), name: name(this.pair.y) });
    this.targets = [];
    this.frame = frame;
    const clip = make("clipPath", { id: "inside" },
      make("rect", { x: 0, y: frame.top - 12, width, height: frame.bottom - frame.top + 12 }));
    this.svg.append(clip);
    this.layer = make("g", { "clip-path": "url(#inside)" });
    this.svg.append(this.layer);
    this.drawLine();
    for (const kind of ["candidate", "schedule", "smaller", "dense", "front"]) {
      for (const place of this.placed(kind).filter((p) => this.isInside(p))) this.drawPoint(place, kind);
    }
    const reachable = this.targets.filter(({ group }) => group.hasAttribute("tabindex"));
    const entry = reachable.find(({ point }) => point.id === this.chosen) || reachable[0];
    if (entry) entry.group.setAttribute("tabindex", 0);
    this.drawUnmeasured();
    const outside = ["candidate", "schedule", "front"].flatMap((kind) => this.placed(kind))
      .filter((place) => !this.isInside(place)).length;
    if (outside) {
      const at = { x: frame.right, y: frame.bottom - 8, class: "tick outside", "text-anchor": "end" };
      this.svg.append(make("text", at, `${outside} outside the axes`));
    }
  }

  isInside({ x, y }) {
    const { left, right, top, bottom } = this.frame;
    const [at, up] = [this.x(x[0]), this.y(y[0])];
    return at >= left && at <= right && up >= top - 1 && up <= bottom + 1;
  }

  // Members that no other member beats in these two objectives.
  drawLine() {
    const down = !this.isScore(this.pair.y);
    const places = this.placed("front").sort((a, b) => a.x[0] - b.x[0] || (down ? 1 : -1) * (a.y[0] - b.y[0]));
    let best = down ? Infinity : -Infinity;
    const corners = places.filter(({ y: [value] }) => {
      const better = down ? value < best : value > best;
      if (better) best = value;
      return better;
    });
    const path = corners.map(({ x, y }, n) => `${n ? "L" : "M"}${this.x(x[0])} ${this.y(y[0])}`);
    if (path.length) this.layer.append(make("path", { d: path.join(""), class: "line" }));
  }

  style(point) {
    if (point.kind !== "schedule") {
      const marker = { dense: "star", smaller: "square" }[point.kind] || "circle";
      return { marker, color: point.kind, size: { candidate: 2.5, front: 5.5 }[point.kind] || 5 };
    }
    const family = this.families.indexOf(point.family);
    const marker = FAMILY_MARKERS[family % FAMILY_MARKERS.length];
    return { marker, color: `family-${family % FAMILY_COLORS}`, size: 4.5 };
  }

  drawPoint({ point, x, y }, kind) {
    const { marker, color, size } = this.style(point);
    const [at, up] = [this.x(x[0]), this.y(y[0])];
    const group = make("g", { class: `point ${color}`, "data-id": point.id });
    if (kind !== "candidate") {
      const bar = (x1, y1, x2, y2) => make("line", { x1, y1, x2, y2, class: "interval" });
      group.append(bar(at, this.y(y[1]), at, this.y(y[2])), bar(this.x(x[1]), up, this.x(x[2]), up));
    }
    if (point.id === this.chosen) {
      group.append(make("circle", { cx: at, cy: up, r: 12, class: "ring" }));
    }
    group.append(make("path", { d: MARKERS[marker](size), transform: `translate(${at} ${up})` }));
    if (kind === "smaller") {
      group.append(make("text", { x: at + 10, y: up + 4, class: "tick" }, point.name));
    }
    if (this.report.policies[point.id]) {
      group.setAttribute("tabindex", -1);
      group.setAttribute("role", "button");
      group.setAttribute("aria-label", this.lines(point).join(", "));
      group.addEventListener("focus", () => this.point(this.targets.find((t) => t.group === group)));
      group.addEventListener("blur", () => this.point(null));
    }
    this.layer.append(group);
    this.targets.push({ point, at, up, group, has: Boolean(this.report.policies[point.id]) });
  }

  // Known schedules without accuracy: their FLOPs are exact, so they stand on the axis.
  drawUnmeasured() {
    if (this.pair.x !== "flops" || !this.isScore(this.pair.y) || this.hidden.has("schedule")) return;
    for (const point of this.of("schedule").filter((p) => !p[this.split])) {
      const [at, up] = [this.x(point.flops), this.frame.bottom];
      if (at < this.frame.left || at > this.frame.right) continue;
      const { marker, color } = this.style(point);
      const group = make("g", { class: `point unmeasured ${color}`, "data-id": point.id },
        make("path", { d: MARKERS[marker](4.5), transform: `translate(${at} ${up})` }));
      this.svg.append(group);
      this.targets.push({ point, at, up, group, has: true });
    }
  }

  lines(point) {
    const found = [point.name];
    for (const split of ["search", "holdout"]) {
      if (point[split] && point.kind !== "smaller") {
        found.push(`${score(point[split][0])} ${lowered(this.report.score.title)} on the ${split} split (${interval(point[split])})`);
      }
    }
    if (point.kind === "smaller") found.push(`${score(point.search[0])} ${lowered(this.report.score.title)}, published`);
    if (!point.search && !point.holdout) found.push("accuracy not measured");
    found.push(`${percent(point.flops, 1)} of the FLOPs`);
    for (const { name, key, title } of this.report.costs.filter((cost) => point[cost.key] && cost.name !== "flops")) {
      if (!this.report.objectives.includes(name)) continue;
      const [ratio, low, high] = point[key].map((v) => (100 * v).toFixed(1));
      found.push(`${ratio} % of the ${lowered(title)}${low === high ? "" : ` (${low} to ${high})`}`);
    }
    if (point.tokens) found.push(`tokens left ${point.tokens}`);
    return found;
  }

  nearest(event) {
    const hit = event.target.closest(".point");
    if (hit) return this.targets.find((target) => target.group === hit);
    const box = this.svg.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    let best = null;
    let distance = REACH;
    for (const target of this.targets) {
      const away = Math.hypot(target.at - x, target.up - y) + (target.has ? 0 : 6);
      if (away <= distance) [best, distance] = [target, away];
    }
    return best;
  }

  point(target) {
    this.svg.querySelectorAll(".hovered").forEach((node) => node.classList.remove("hovered"));
    this.tip.hidden = !target;
    this.svg.style.cursor = target && target.has ? "pointer" : "default";
    if (!target) return;
    target.group.classList.add("hovered");
    const [name, ...lines] = this.lines(target.point);
    this.tip.replaceChildren(html("b", {}, name), ...lines.map((line) => html("span", {}, line)));
    const { offsetWidth, offsetHeight } = this.tip;
    const left = Math.min(Math.max(target.at - offsetWidth / 2, 0), this.width - offsetWidth);
    const above = target.up - offsetHeight - 14;
    this.tip.style.left = `${left}px`;
    this.tip.style.top = `${above < 0 ? target.up + 16 : above}px`;
  }

  pick(target) {
    if (target && target.has) this.choose(target.point.id);
  }

  step(event) {
    const ways = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 };
    const focused = this.targets.find((target) => target.group === document.activeElement);
    if (!focused) return;
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.pick(focused);
      this.focus(focused.point.id);
    } else if (ways[event.key]) {
      event.preventDefault();
      const order = this.targets.filter((t) => t.has && t.group.hasAttribute("tabindex"))
        .sort((a, b) => a.at - b.at);
      const next = order[order.indexOf(focused) + ways[event.key]];
      if (next) this.focus(next.point.id);
    }
  }

  focus(id) {
    const target = this.targets.find((t) => t.point.id === id);
    this.targets.forEach((t) => t.has && t.group.setAttribute("tabindex", t === target ? 0 : -1));
    target.group.focus({ preventScroll: true });
  }
}
