// Times: RFC 3339 in, local time with its offset out.

import { h } from "./dom.js";

const HOUR = 3_600_000;
export const DAY = 24 * HOUR;

// ms is epoch milliseconds of a time of the contract; NaN if there is none.
export function ms(time) {
  return time ? Date.parse(time) : NaN;
}

const pad = (n, digits = 2) => String(n).padStart(digits, "0");

// clock is the time of day, with the day where it is not today's.
export function clock(at, now = Date.now()) {
  const d = new Date(at);
  if (Number.isNaN(d.getTime())) return "–";
  const time = `${pad(d.getHours())}:${pad(d.getMinutes())}:${pad(d.getSeconds())}`;
  return d.toDateString() === new Date(now).toDateString() ? time : `${day(at)} ${time}`;
}

export function day(at) {
  const d = new Date(at);
  return `${d.getFullYear()}-${pad(d.getMonth() + 1)}-${pad(d.getDate())}`;
}

// zone names the offset that clock is in.
export function zone() {
  const offset = -new Date().getTimezoneOffset();
  return offset === 0 ? "UTC" : `UTC${offset < 0 ? "−" : "+"}${pad(Math.floor(Math.abs(offset) / 60))}:${pad(Math.abs(offset) % 60)}`;
}

// span says how long something took.
export function span(duration) {
  const d = Math.max(0, duration);
  if (d < 1000) return `${Math.round(d)} ms`;
  const units = [[DAY, "d"], [HOUR, "h"], [60_000, "min"], [1000, "s"]];
  const i = units.findIndex(([size]) => d >= size);
  const [size, name] = units[i];
  const whole = Math.floor(d / size);
  const next = units[i + 1];
  const rest = next && whole < 10 ? Math.floor((d % size) / next[0]) : 0;
  return rest > 0 ? `${whole} ${name} ${rest} ${next[1]}` : `${whole} ${name}`;
}

// ago says how long ago something was, and nothing of clocks that differ by little.
export function ago(at, now = Date.now()) {
  const d = now - at;
  if (Number.isNaN(d)) return "";
  if (d < -5000) return `in ${span(-d)}`;
  return d < 1000 ? "just now" : `${span(d)} ago`;
}

// when shows a time of the contract; the exact one is its title.
export function when(time, relative = false) {
  const at = ms(time);
  if (Number.isNaN(at)) return h("span", { class: "muted" }, "–");
  return h("time", { datetime: time, title: new Date(at).toISOString() }, clock(at), relative && h("span", { class: "muted ago", "data-at": at }, ` (${ago(at)})`));
}

// refreshAges brings all relative times up to date.
export function refreshAges(root = document) {
  const now = Date.now();
  for (const node of root.querySelectorAll("[data-at]")) {
    const at = Number(node.dataset.at);
    node.textContent = node.dataset.form === "for" ? `for ${span(now - at)}` : ` (${ago(at, now)})`;
  }
}
