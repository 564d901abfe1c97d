// One resource over time: what others use and our own model on top of it, against the limits, with where each level
// would bring it, the level that answered below, and the decisions as buttons above.

import { clock, colourOf, draw, gib, make, of, percent, say, secondsOf } from "/page/words.js";

const TOP = 22, RIBBON = 16, AXIS = 18, GAP_STRETCHES = 2.5, LABEL = 14, MARK = 24, MARK_APART = 12;

export class Picture {
  constructor(resource, tall) {
    this.resource = resource;
    this.height = tall ? 250 : 150;
    this.explains = tall; // once for all pictures
    this.title = make("b");
    this.at = make("span", { cls: "at" });
    const legend = (text, colour) => {
      const swatch = make("span", { cls: "swatch" });
      if (colour) swatch.style.background = colour;
      return make("span", { cls: "legend" }, swatch, text);
    };
    this.ownLegend = legend("this model", "var(--high)");
    this.svg = draw("svg", { role: "img" });
    this.marks = make("div", { cls: "marks", role: "group", "aria-label": "Decisions, oldest first; arrow keys go through them" });
    this.tip = make("div", { cls: "tip", hidden: "" });
    this.stage = make("div", { cls: "stage" }, this.svg, ...(tall ? [this.marks, this.tip] : []));
    this.element = make("figure", { cls: "picture" },
      make("figcaption", {}, this.title, legend("other programs"), this.ownLegend, this.at), this.stage);
    this.buttons = new Map();
    this.stage.addEventListener("pointermove", (event) => this.point(event));
    this.stage.addEventListener("pointerleave", () => this.point(null));
    this.marks.addEventListener("keydown", (event) => this.walk(event));
  }

  show(state) {
    this.state = state;
    const { points, levels, status, now, lastS } = state;
    const width = Math.max(240, this.stage.clientWidth);
    const right = Math.min(104, Math.max(84, width * 0.13));
    const bottom = this.height - RIBBON - AXIS;
    const from = now - lastS;
    this.x = (at) => ((at - from) / lastS) * (width - right);
    this.timeAt = (x) => from + (x / (width - right)) * lastS;
    this.plotWidth = width - right;
    const y = (share) => TOP + (1 - Math.min(1.03, share)) * (bottom - TOP);
    const runs = this.runs(points, state.intervalS);
    this.svg.setAttribute("viewBox", `0 0 ${width} ${this.height}`);
    this.svg.setAttribute("height", this.height);
    const made = [];

    for (const share of [0, 0.25, 0.5, 0.75, 1]) {
      made.push(draw("line", { class: "grid", x1: 0, x2: this.plotWidth, y1: y(share), y2: y(share) }));
    }
    for (const run of runs) {
      const xs = run.map((point) => this.x(point.at));
      const other = run.map((point) => y(point.part.other_bytes / point.part.total_bytes));
      const used = run.map((point) => y((point.part.other_bytes + point.part.own_bytes) / point.part.total_bytes));
      made.push(draw("path", { class: "area-other", d: area(xs, other, xs.map(() => bottom)) }));
      for (const [first, last] of run.some((point) => point.part.own_bytes) ? stretches(run) : []) {
        const cut = (list) => list.slice(first, Math.min(last + 2, list.length));
        const colour = colourOf(run[first].serving, levels);
        made.push(draw("path", { class: "area-own", colour, d: area(cut(xs), cut(used), cut(other)) }));
        made.push(draw("path", { class: "edge-own", colour, d: line(cut(xs), cut(used)) }));
      }
      made.push(draw("path", { class: "edge-other", d: line(xs, other) }));
    }
    made.push(draw("text", { class: "axis share", x: 2, y: y(0.5) - 4 }, "50 %"));
    made.push(...this.would(runs, y), ...this.limits(y), ...this.ends(runs, y, width));
    made.push(...this.ribbon(points, bottom + 4), ...this.times(from, lastS));
    const marks = this.spread();
    for (const { x, at } of marks) {
      const up = this.explains ? at : x;
      made.push(draw("path", { class: "stem", d: line([up, x, x], [TOP - 4, TOP + 6, bottom + 4 + RIBBON]) }));
    }
    this.hair = draw("line", { class: "hair", y1: TOP, y2: bottom, visibility: "hidden" });
    this.svg.replaceChildren(...made, this.hair);
    if (this.explains) this.place(marks);
    const part = of(state.usage, this.resource);
    const name = this.name();
    const used = part ? `${gib(part.own_bytes + part.other_bytes)} of ${gib(part.total_bytes)} in use` : "not read now";
    say(this.title, `${name}: ${used}`);
    this.ownLegend.querySelector(".swatch").style.background = colourOf(status.serving, levels);
    this.svg.setAttribute("aria-label", `${name} over time: ${used}. The table below has the figures.`);
  }

  name() {
    if (this.resource === "ram") return "RAM";
    const gpu = (this.state.status.reading?.gpus ?? []).find((one) => `gpu${one.index}` === this.resource);
    return gpu?.name ? `${this.resource}, ${gpu.name}` : this.resource;
  }

  // Points that follow on one another; a time without readings is a gap.
  runs(points, intervalS) {
    const runs = [];
    let before = -Infinity;
    for (const point of points) {
      const part = of(point.usage, this.resource);
      if (!part) continue;
      if (point.at - before > GAP_STRETCHES * intervalS) runs.push([]);
      runs.at(-1).push({ at: point.at, serving: point.serving, part });
      before = point.at;
    }
    return runs;
  }

  takes(level) {
    return of(of(this.state.status.footprints, level), this.resource) ?? 0;
  }

  would(runs, y) {
    return this.state.levels.filter((level) => this.takes(level)).flatMap((level) => runs.map((run) => draw("path", {
      class: "would", colour: colourOf(level, this.state.levels),
      d: line(run.map((point) => this.x(point.at)),
        run.map((point) => y((point.part.other_bytes + this.takes(level)) / point.part.total_bytes))),
    })));
  }

  thresholds() {
    const policy = this.state.status.policy;
    const own = this.resource === "ram";
    return {
      scale: own ? policy.scale_at : policy.vram_scale_at ?? policy.scale_at,
      critical: own ? policy.critical_at : policy.vram_critical_at ?? policy.critical_at,
    };
  }

  limits(y) {
    const { scale, critical } = this.thresholds();
    const across = (cls, share) => draw("line", { class: cls, x1: 0, x2: this.plotWidth, y1: y(share), y2: y(share) });
    return [across("limit", scale), across("critical", critical)];
  }

  // What each line is, at its right end, moved apart where they would cover one another.
  ends(runs, y, width) {
    const { scale, critical } = this.thresholds();
    const labels = [
      { text: `limit ${Math.round(100 * scale)} %`, at: y(scale), cls: "of-limit" },
      { text: `critical ${Math.round(100 * critical)} %`, at: y(critical), cls: "of-critical" },
    ];
    const last = runs.at(-1)?.at(-1);
    for (const level of last ? this.state.levels.filter((one) => this.takes(one)) : []) {
      const share = (last.part.other_bytes + this.takes(level)) / last.part.total_bytes;
      const short = level.length > 9 ? `${level.slice(0, 8)}…` : level;
      labels.push({ text: `${short} ${Math.round(100 * share)} %`, at: y(share), cls: share <= scale ? "fits" : "" });
    }
    labels.sort((one, two) => one.at - two.at);
    labels.forEach((label, place) => {
      const above = labels[place - 1];
      if (above && label.at - above.at < LABEL) label.at = above.at + LABEL;
    });
    const over = (labels.at(-1)?.at ?? 0) - (this.height - RIBBON - AXIS);
    if (over > 0) {
      labels.at(-1).at -= over;
      for (let place = labels.length - 2; place >= 0; place--) {
        labels[place].at = Math.min(labels[place].at, labels[place + 1].at - LABEL);
      }
    }
    return labels.map(({ text, at, cls }) => draw("text", { class: `end ${cls}`, x: this.plotWidth + 7, y: at + 4 }, text));
  }

  ribbon(points, top) {
    const made = [];
    const { levels, intervalS } = this.state;
    for (let first = 0; first < points.length;) {
      let last = first;
      while (last + 1 < points.length && points[last + 1].serving === points[first].serving
        && points[last + 1].at - points[last].at <= GAP_STRETCHES * intervalS) last++;
      const follows = points[last + 1] && points[last + 1].at - points[last].at <= GAP_STRETCHES * intervalS;
      const x = Math.max(0, this.x(points[first].at));
      const end = Math.min(this.plotWidth, this.x(follows ? points[last + 1].at : points[last].at));
      const level = points[first].serving;
      made.push(draw("rect", { class: "ribbon", colour: colourOf(level, levels), x, y: top, width: Math.max(1, end - x), height: RIBBON - 3, rx: 2 }));
      if (end - x > level.length * 7 + 10) made.push(draw("text", { class: "ribbon-name", x: x + 6, y: top + 10 }, level));
      first = last + 1;
    }
    return made;
  }

  times(from, lastS) {
    const steps = [300, 600, 900, 1800, 3600, 7200, 14400, 21600];
    const step = steps.find((one) => (one / lastS) * this.plotWidth >= 64) ?? 43200;
    const shift = new Date(from * 1000).getTimezoneOffset() * 60;
    const made = [];
    for (let at = Math.ceil((from - shift) / step) * step + shift; at < from + lastS; at += step) {
      const x = this.x(at);
      if (x < 16 || x > this.plotWidth - 14) continue;
      made.push(draw("text", { class: "axis", x, y: this.height - 4, "text-anchor": "middle" }, clock(at, false)));
    }
    return made;
  }

  // The decisions in the picture, oldest first: where each was (x), and where its mark stands (at), moved apart where
  // they would cover one another.
  spread() {
    const marks = this.state.decisions.map((event) => ({ event, x: this.x(secondsOf(event)) })).filter(({ x }) => x >= 0);
    const apart = Math.min(MARK_APART, this.plotWidth / marks.length);
    let least = 0;
    for (const mark of marks) least = (mark.at = Math.max(mark.x, least)) + apart;
    let most = this.plotWidth;
    for (const mark of marks.toReversed()) most = (mark.at = Math.min(mark.at, most)) - apart;
    return marks;
  }

  place(marks) {
    const known = new Set();
    let before = null;
    marks.forEach(({ event, at }, place) => {
      const key = `${event.at} ${event.ticket}`;
      known.add(key);
      let button = this.buttons.get(key);
      if (!button) {
        button = make("button", { type: "button", tabindex: "-1" });
        const show = () => this.explain(button);
        button.addEventListener("pointerenter", show);
        button.addEventListener("focus", show);
        button.addEventListener("click", show);
        button.addEventListener("pointerleave", () => this.hideTip());
        button.addEventListener("blur", () => this.hideTip());
        this.buttons.set(key, button);
        if (before) before.after(button);
        else this.marks.prepend(button);
      }
      before = button;
      button.event = event;
      const failed = event.outcome?.event === "switch_failed" ? " failed" : "";
      button.className = `mark ${event.direction}${failed}`;
      // As wide as a finger likes, and none over its neighbour.
      const width = Math.min(MARK, at - (marks[place - 1]?.at ?? -MARK), (marks[place + 1]?.at ?? Infinity) - at);
      button.style.left = `${at}px`;
      button.style.width = `${width}px`;
      button.style.marginLeft = `${-width / 2}px`;
      button.setAttribute("aria-label", `${clock(secondsOf(event))}, ${event.direction === "same" ? event.what : `${event.source} to ${event.dest}`}: ${event.why}`);
    });
    for (const [key, button] of this.buttons) {
      if (!known.has(key)) { button.remove(); this.buttons.delete(key); }
    }
    // One stop for Tab, however many there are.
    const all = [...this.marks.children];
    const stop = all.find((one) => one === document.activeElement) ?? all.at(-1);
    for (const one of all) one.tabIndex = one === stop ? 0 : -1;
    this.marks.hidden = !all.length;
  }

  walk(event) {
    const all = [...this.marks.children];
    const here = all.indexOf(document.activeElement);
    const to = { ArrowLeft: here - 1, ArrowRight: here + 1, Home: 0, End: all.length - 1 }[event.key];
    if (event.key === "Escape") this.hideTip();
    if (to === undefined || here < 0) return;
    event.preventDefault();
    const next = all[Math.max(0, Math.min(all.length - 1, to))];
    for (const one of all) one.tabIndex = one === next ? 0 : -1;
    next.focus();
  }

  explain(button) {
    const event = button.event;
    this.tip.replaceChildren(
      make("b", { text: event.what }),
      make("div", { text: event.why }),
      make("span", { text: clock(secondsOf(event)) }),
    );
    this.tip.hidden = false;
    const wide = this.stage.clientWidth;
    const left = parseFloat(button.style.left) - this.tip.offsetWidth / 2;
    this.tip.style.left = `${Math.max(0, Math.min(wide - this.tip.offsetWidth, left))}px`;
  }

  hideTip() {
    this.tip.hidden = true;
  }

  point(event) {
    const x = event ? event.clientX - this.stage.getBoundingClientRect().left : -1;
    if (!this.state || !this.hair || x < 0 || x > this.plotWidth) {
      this.hair?.setAttribute("visibility", "hidden");
      return say(this.at, "");
    }
    const at = this.timeAt(x);
    let nearest = null;
    for (const point of this.state.points) {
      if (of(point.usage, this.resource) && (!nearest || Math.abs(point.at - at) < Math.abs(nearest.at - at))) nearest = point;
    }
    this.hair.setAttribute("visibility", "visible");
    this.hair.setAttribute("transform", `translate(${x} 0)`);
    if (!nearest || Math.abs(nearest.at - at) > GAP_STRETCHES * this.state.intervalS) return say(this.at, `${clock(at)}  not read`);
    const part = nearest.usage[this.resource];
    const share = percent((part.own_bytes + part.other_bytes) / part.total_bytes);
    say(this.at, `${clock(nearest.at)}  ${nearest.serving}  ${share}: ${gib(part.other_bytes)} others, ${gib(part.own_bytes)} ours`);
  }
}

function line(xs, ys) {
  return xs.map((x, place) => `${place ? "L" : "M"}${x.toFixed(1)} ${ys[place].toFixed(1)}`).join("");
}

function area(xs, tops, bottoms) {
  const back = [...xs.keys()].reverse().map((place) => `L${xs[place].toFixed(1)} ${bottoms[place].toFixed(1)}`);
  return `${line(xs, tops)}${back.join("")}Z`;
}

// Where the same level answered, as [first, last].
function stretches(run) {
  const found = [];
  for (let place = 0; place < run.length; place++) {
    if (place && run[place].serving === run[place - 1].serving) found.at(-1)[1] = place;
    else found.push([place, place]);
  }
  return found;
}
