"use strict";

// One policy: its figures, tokens per layer, FLOPs by operator, kept patches, and its file.

class PolicyView {
  constructor(root, report) {
    Object.assign(this, { root, report });
    this.chart = make("svg", { role: "img" });
    this.part("tokens").append(this.chart);
    drawToFit(this.part("tokens"), (width) => this.drawTokens((this.width = width)));
    this.part("copy").addEventListener("click", () => this.copy());
  }

  part(name) {
    return this.root.querySelector(`[data-part=${name}]`);
  }

  show(id) {
    this.point = this.report.points.find((point) => point.id === id);
    this.policy = this.report.policies[id];
    const { policy } = this;
    this.part("name").textContent = this.point.name;
    this.part("about").textContent = [policy.about, policy.stages, policy.settings].filter(Boolean).join("; ");
    this.part("yaml").textContent = policy.yaml;
    this.showFigures();
    this.showOperators();
    this.showKept();
    if (this.width) this.drawTokens(this.width);
  }

  showFigures() {
    const { point, policy, report } = this;
    const rows = [];
    for (const split of ["search", "holdout"]) {
      const images = report.images[split];
      if (!images) continue;
      const value = point[split] ? score(point[split][0]) : "not measured";
      const under = point[split] ? `${interval(point[split])}, ${images.toLocaleString("en")} images` : "";
      rows.push([`${report.score.title}, ${split}`, value, under]);
    }
    const flops = (key) => `${(policy[key] / 1e6).toFixed(1)} M of ${(report.dense[key] / 1e6).toFixed(1)} M`;
    const ratio = (key) => percent(policy[key] / report.dense[key], 1);
    rows.push(["FLOPs, all that runs", ratio("flops"), flops("flops")]);
    rows.push(["FLOPs, paper's rule", ratio("paper_flops"), flops("paper_flops")]);
    for (const { name, key, title, unit: [unit, size] } of report.costs) {
      if (!policy.costs[key] || !report.objectives.includes(name)) continue;
      const [value, low, high] = point[key].map((v) => (100 * v).toFixed(1));
      const [pruned, dense] = policy.costs[key].map((v) => (v / size).toFixed(2));
      const range = low === high ? "" : `${low} to ${high} %, `;
      rows.push([title, `${value} %`, `${range}${pruned} of ${dense} ${unit}`]);
    }
    const cells = rows.map(([name, value, under]) =>
      html("div", {}, html("dt", {}, name), html("dd", {}, html("b", {}, value), html("small", {}, under))));
    this.part("figures").replaceChildren(...cells);
    const p = policy.protocol;
    this.part("protocol").textContent = point.latency
      ? `Latency: dense and pruned in turn on one batch of ${p.batch_size}, ${p.repeats} pairs, ` +
        `${p.precision}, ${p.device} (${p.device_name}), ${p.threads} threads, scan ${p.backend}; ` +
        "the median of the ratios with its 95 % interval."
      : "Latency was not measured for this policy.";
  }

  drawTokens(width) {
    if (!this.policy) return;
    const [tokens, dense] = [this.policy.tokens, this.report.dense.tokens];
    const height = 210;
    const frame = { left: 46, right: width - 6, top: 34, bottom: height - 46 };
    const y = linear([0, Math.max(...dense)], [frame.bottom, frame.top]);
    const step = (frame.right - frame.left) / tokens.length;
    const every = Math.ceil(26 / step);
    const last = tokens.length - 1;
    this.chart.replaceChildren();
    this.chart.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.chart.setAttribute("height", height);
    this.chart.setAttribute("aria-label", `Tokens that each block scans: ${tokens.slice(0, last).join(", ")}; `
      + `${tokens[last]} leave the model`);
    drawAxes(this.chart, frame,
      { place: (n) => frame.left + (n + 0.5) * step, name: "Block",
        ticks: tokens.map((_, n) => n).filter((n) => n === last || (n % every === 0 && n < last - every / 2)),
        format: (n) => (n === last ? "out" : n) },
      { place: y, ticks: ticks(0, Math.max(...dense), 4), format: String, name: "Tokens" });
    tokens.forEach((count, n) => {
      const [x, bar] = [frame.left + n * step + step * 0.14, step * 0.72];
      const column = (value, kind) => make("rect",
        { x, width: bar, y: y(value), height: frame.bottom - y(value), class: kind });
      this.chart.append(column(dense[n], "ghost"), column(count, "bar"));
      if (step > 24) {
        const label = { x: x + bar / 2, y: y(count) - 5, class: "tick", "text-anchor": "middle" };
        this.chart.append(make("text", label, count));
      }
    });
  }

  showOperators() {
    const [dense, policy] = [this.report.dense.operators, this.policy.operators];
    const names = [...new Set([...Object.keys(dense), ...Object.keys(policy)])];
    const sum = (table) => Object.values(table).reduce(([a, b], [c, d]) => [a + c, b + d], [0, 0]);
    const row = (name, before = [0, 0], after = [0, 0]) => {
      const cells = [0, 1].flatMap((rule) => {
        const share = before[rule] ? after[rule] / before[rule] : null;
        return [
          html("td", {}, before[rule] ? (before[rule] / 1e6).toFixed(2) : "–"),
          html("td", {}, after[rule] ? (after[rule] / 1e6).toFixed(2) : "–"),
          html("td", { class: "share", style: `--share:${Math.min(1, share || 0)}` },
            share === null ? "" : percent(share)),
        ];
      });
      return html("tr", {}, html("th", { scope: "row" }, name), ...cells);
    };
    const rows = names.map((name) => row(name, dense[name], policy[name]));
    const all = row("all", sum(dense), sum(policy));
    all.classList.add("total");
    this.part("operators").replaceChildren(...rows, all);
  }

  showKept() {
    const box = this.part("kept");
    const { kept, where } = this.policy;
    if (!box || !kept) return;
    box.style.setProperty("--columns", 1 + kept.stages.length);
    const cells = [html("span", { class: "head" }, "image")];
    for (const { count, grid, layer, groups, merged, match, similarity } of kept.stages) {
      const text = `${count} of ${grid[0] * grid[1]}${groups ? " tokens" : ""}`;
      const joined = match ? `, ${merged} merged (${match}), mean similarity ${similarity.toFixed(3)}` : "";
      cells.push(html("span", { class: "head" }, html("b", {}, text), ` ${where} block ${layer}${joined}`));
    }
    this.report.samples.forEach((sample, image) => {
      const { source, label } = sample;
      const right = kept.predicted[image] === label;
      const told = `${label}, predicted ${kept.predicted[image]}`;
      const caption = html("figcaption", { class: right ? "right" : "wrong" }, `${right ? "✓" : "✗"} ${told}`);
      cells.push(html("figure", {}, html("img", { src: source, alt: `Sample image ${image + 1}: ${told}` }), caption));
      for (const stage of kept.stages) cells.push(this.veiled(sample, stage, image));
    });
    box.replaceChildren(...cells);
  }

  // The image with its pruned patches covered, and its merged ones as their mean.
  veiled({ source, patches }, { layer, count, grid: [rows, columns], masks, groups, merged }, image) {
    let holes = "";
    [...masks[image]].forEach((kept, n) => {
      if (kept === "0") holes += `M${n % columns} ${Math.floor(n / columns)}h1v1h-1z`;
    });
    const veil = make("svg", { viewBox: `0 0 ${columns} ${rows}`, preserveAspectRatio: "none", "aria-hidden": "true" },
      make("path", { d: holes || "M0 0", class: "veil" }));
    if (groups) veil.append(...drawGroups(groups[image], columns, patches, this.report.group_colors));
    const tokens = groups ? `${count} tokens${merged ? `, ${merged} merged,` : ""}` : count;
    const alt = `Sample image ${image + 1} at block ${layer}: ${tokens} of ${rows * columns} patches`;
    return html("figure", {}, html("div", { class: "veiled" }, html("img", { src: source, alt }), veil));
  }

  async copy() {
    const text = this.policy.yaml;
    const button = this.part("copy");
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const range = document.createRange(); // no clipboard: the text is at least selected
      range.selectNodeContents(this.part("yaml"));
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      button.textContent = "Selected; press Ctrl+C";
      return;
    }
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  }
}
