"use strict";

// Hypervolume as it grew, over candidates or over time.

class Growth {
  // `moments`: pairs of what lies along the axis and the hypervolume then.
  constructor(box, moments, { name, format }) {
    Object.assign(this, { box, moments, name, format });
    const [last, volume] = moments[moments.length - 1];
    this.svg = make("svg", {
      role: "img",
      "aria-label": `Hypervolume rises to ${volume.toFixed(3)} at ${format(last)} ${name.toLowerCase()}`,
    });
    this.note = html("p", { class: "note" });
    box.append(this.svg, this.note);
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => this.tell(moments.length - 1));
    drawToFit(box, (width) => this.draw(width));
  }

  draw(width) {
    const height = 230;
    const frame = { left: 52, right: width - 14, top: 36, bottom: height - 52 };
    const last = this.moments[this.moments.length - 1];
    const [xs, ys] = [[0, last[0] || 1], [0, 1.08 * last[1] || 1]];
    this.x = linear(xs, [frame.left, frame.right]);
    this.y = linear(ys, [frame.bottom, frame.top]);
    this.svg.replaceChildren();
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.setAttribute("height", height);
    drawAxes(this.svg, frame,
      { place: this.x, ticks: ticks(...xs, width / 90), format: this.format, name: this.name },
      { place: this.y, ticks: ticks(...ys, 4), format: String, name: "Hypervolume" });
    let path = "";
    for (const [at, volume] of this.moments) {
      path += path ? `H${this.x(at)}V${this.y(volume)}` : `M${this.x(at)} ${this.y(volume)}`;
    }
    this.dot = make("circle", { r: 4.5, class: "now" });
    this.svg.append(make("path", { d: path, class: "line" }), this.dot);
    this.tell(this.moments.length - 1);
  }

  point(event) {
    const at = event.clientX - this.svg.getBoundingClientRect().left;
    const after = this.moments.findIndex(([x]) => this.x(x) > at);
    this.tell(Math.max(0, (after < 0 ? this.moments.length : after) - 1));
  }

  tell(index) {
    const [at, volume] = this.moments[index];
    this.dot.setAttribute("cx", this.x(at));
    this.dot.setAttribute("cy", this.y(volume));
    this.note.textContent = `${volume.toFixed(4)} at ${this.format(at)} ${this.name.toLowerCase()}`;
  }
}
