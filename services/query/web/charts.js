// Counts over the last minutes: what this page has seen since it was opened, since the service keeps no history of counts.

import { count, h, put, s } from "./dom.js";
import { clock, span } from "./time.js";

export const WINDOW = 10 * 60_000;
const MISSING = 3; // intervals without a point that break a line

// Counts keeps the points of the last minutes: one a poll, each with all numbers of that moment.
export class Counts {
  constructor(interval) {
    this.interval = interval;
    this.clear();
  }

  clear() {
    this.began = Date.now();
    this.points = [];
  }

  // push adds the numbers of now, a Map from a name to a number.
  push(numbers, at = Date.now()) {
    this.points.push({ at, numbers });
    while (this.points[0].at < at - WINDOW) this.points.shift();
  }

  // of returns the points of one name; a name that a moment did not have counts 0.
  of(name) {
    return this.points.map((p) => ({ at: p.at, value: p.numbers.get(name) ?? 0 }));
  }

  covered() {
    return this.points.length === 0 ? 0 : Date.now() - this.points[0].at;
  }
}

// spark draws a line of counts. Its text alternative has what the line shows: last, lowest and highest.
export function spark(points, name, { interval, width = 160, height = 36, status = "online" }) {
  const values = points.map((p) => p.value);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const now = points.at(-1)?.at ?? Date.now();
  const from = Math.min(points[0]?.at ?? now, now - 60_000);
  const room = 4;
  const x = (at) => room + ((width - 2 * room) * (at - from)) / Math.max(1, now - from);
  // A line that is flat stands in the middle, not at the bottom: it is not zero.
  const y = (v) => (high === low ? height / 2 : room + ((height - 2 * room) * (high - v)) / (high - low));
  let path = "";
  let last = -Infinity;
  for (const p of points) {
    path += `${p.at - last > MISSING * interval ? "M" : "L"}${x(p.at).toFixed(1)} ${y(p.value).toFixed(1)}`;
    last = p.at;
  }
  if (points.length === 1) path += "h.01"; // a dot
  const label = values.length === 0
    ? `${name}: no counts yet`
    : `${name}: now ${count(values.at(-1))}, lowest ${count(low)}, highest ${count(high)} in the last ${span(now - points[0].at)}`;
  return s("svg", { class: `spark ${status}`, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label, preserveAspectRatio: "none" },
    s("title", {}, label),
    s("path", { d: `M0 ${height - 0.5}H${width}`, class: "base" }),
    values.length > 0 && s("path", { d: path, class: "line", "vector-effect": "non-scaling-stroke" }));
}

// covers says which time the lines are of.
export function covers(counts) {
  return put(h("p", { class: "note" }), counts.points.length < 2
    ? `Lines begin now, at ${clock(counts.began)}: they hold what this page sees, ten minutes at most.`
    : `Lines show what this page has seen since ${clock(counts.points[0].at)} (${span(counts.covered())}), from the lowest to the highest count. They begin when the page is opened.`);
}
