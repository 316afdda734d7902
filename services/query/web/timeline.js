// The history of a client as a picture: connections over time, a lane for each broker node.

import { badge, foreign, h, plain, put, s } from "./dom.js";
import { clock, day, DAY, ms, span, when } from "./time.js";
import { endWords, protocolWords } from "./words.js";

const MINUTE = 60_000;
const RANGES = [["All", 0], ["7 d", 7 * DAY], ["24 h", DAY], ["1 h", 60 * MINUTE], ["10 min", 10 * MINUTE]];
const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400, 172_800, 604_800, 1_209_600, 2_592_000, 7_776_000, 31_536_000]
  .map((seconds) => seconds * 1000);
const LANE = 44;
const BAR = 16;
const AXIS = 26;
const EDGE = 8;

let patterns = 0; // makes the names of patterns distinct

// Timeline shows sessions; update gives it new ones, and keeps range and focus.
export class Timeline {
  constructor() {
    this.range = 0;
    this.sessions = [];
    this.selected = -1;
    this.pattern = `hatch-${++patterns}`;
    this.picture = h("div", { class: "timeline-picture" });
    this.detail = h("div", { class: "timeline-detail" });
    this.table = h("div");
    this.note = h("p", { class: "note" });
    this.ranges = h("div", { class: "segments", role: "group", "aria-label": "Time that the picture shows" },
      RANGES.map(([label, range]) => h("button", { type: "button", class: "segment", "aria-pressed": String(range === this.range), onclick: (e) => this.zoom(range, e.currentTarget) }, label)));
    this.node = h("div", { class: "timeline" }, this.ranges, this.picture, this.detail, this.note,
      h("details", { class: "more" }, h("summary", {}, "History as a table"), this.table));
    new ResizeObserver(() => this.draw()).observe(this.picture);
  }

  zoom(range, pressed) {
    this.range = range;
    for (const each of this.ranges.children) each.setAttribute("aria-pressed", String(each === pressed));
    this.draw();
  }

  update({ sessions = [], complete_since }) {
    // What was looked at stays so, unless that was the newest one: then the newest one is.
    const before = this.selected > 0 ? identity(this.sessions[this.selected]?.raw) : "";
    // Newest first, as answered: the picture reads from left to right.
    this.sessions = sessions.map((raw) => ({
      raw, from: ms(raw.connected_at), to: raw.state === "open" ? Infinity : ms(raw.disconnected_at),
    })).filter((each) => !Number.isNaN(each.from) || !Number.isNaN(each.to));
    for (const each of this.sessions) {
      each.endUnknown = Number.isNaN(each.to);
      if (Number.isNaN(each.from)) each.from = each.to;
    }
    this.selected = this.sessions.findIndex((each) => identity(each.raw) === before);
    this.completeSince = ms(complete_since);
    put(this.note, sessions.length === 0 ? "No connection is kept." : "Times are by the clock of the broker node, shown in your time zone. ",
      complete_since && ["Connections that ended before ", when(complete_since), " may be missing."]);
    put(this.table, this.rows(sessions));
    this.draw();
  }

  draw() {
    const width = Math.floor(this.picture.clientWidth);
    this.picture.hidden = this.ranges.hidden = this.detail.hidden = this.sessions.length === 0;
    if (width < 40 || this.sessions.length === 0) return;
    const now = Date.now();
    const first = Math.min(...this.sessions.map((each) => each.from));
    const from = this.range ? now - this.range : Math.min(first, now - MINUTE) - (now - first) * 0.02;
    // A node's clock may be ahead of this one.
    const last = Math.max(now, ...this.sessions.flatMap((each) => [each.from, each.to]).filter(Number.isFinite));
    const until = last + (last - from) * 0.01;
    const x = (at) => EDGE + ((width - 2 * EDGE) * (at - from)) / (until - from);
    const lanes = [...new Set(this.sessions.map((each) => each.raw.node))];
    const height = lanes.length * LANE + AXIS;
    const shown = this.sessions.map((each, i) => ({ ...each, i })).filter((each) => each.to >= from || each.endUnknown && each.from >= from).reverse();
    const focused = this.picture.contains(document.activeElement);
    const stop = shown.some((each) => each.i === this.selected) ? this.selected : shown.at(-1)?.i;
    const svg = s("svg", { class: "timeline-svg", width, height, viewBox: `0 0 ${width} ${height}`, role: "group",
      "aria-label": `${this.sessions.length} connections of the client over time. Arrow keys move from one to the next.`, onkeydown: (e) => this.move(e, shown) },
      this.hatch(),
      Number.isFinite(this.completeSince) && this.completeSince > from &&
        s("rect", { class: "pruned", x: 0, y: 0, width: Math.max(0, x(this.completeSince)), height: height - AXIS, fill: `url(#${this.pattern})` }, s("title", {}, "not everything before this is kept")),
      this.axis(from, until, x, height, width),
      lanes.map((node, lane) => s("text", { class: "lane", x: EDGE, y: lane * LANE + 14 }, plain(node, 40) || "node unknown")),
      shown.map((each) => this.bar(each, x, lanes.indexOf(each.raw.node), width, each.i === stop)));
    put(this.picture, svg, shown.length === 0 && h("p", { class: "note" }, "No connection in this time."));
    if (focused) svg.querySelector("[tabindex='0']")?.focus();
    if (stop !== undefined) this.select(stop);
  }

  hatch() {
    return s("defs", {}, s("pattern", { id: this.pattern, width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
      s("path", { d: "M0 0V6", class: "hatch" })));
  }

  axis(from, until, x, height, width) {
    const wanted = Math.max(2, Math.floor(width / 110));
    const step = STEPS.find((each) => (until - from) / each <= wanted) ?? STEPS.at(-1);
    const offset = new Date(until).getTimezoneOffset() * MINUTE;
    const nodes = [s("path", { class: "axis", d: `M0 ${height - AXIS + 0.5}H${width}` })];
    for (let at = Math.ceil((from - offset) / step) * step + offset; at <= until; at += step) {
      const label = step >= DAY ? day(at) : clock(at).slice(-8).slice(0, step >= MINUTE ? 5 : 8);
      const near = x(at) < 30 ? "start" : x(at) > width - 30 ? "end" : "middle";
      nodes.push(s("path", { class: "tick", d: `M${x(at).toFixed(1)} 0V${height - AXIS + 4}` }),
        s("text", { class: "tick-label", x: near === "middle" ? x(at) : near === "start" ? 2 : width - 2, y: height - 8, "text-anchor": near }, label));
    }
    return nodes;
  }

  bar(each, x, lane, width, stop) {
    const { raw, i } = each;
    const left = Math.max(0, x(each.from));
    const open = each.to === Infinity;
    const right = each.endUnknown ? left + 24 : open ? width : Math.min(width, x(each.to));
    const y = lane * LANE + 20;
    const wide = Math.max(4, right - left);
    const kind = raw.state === "open" ? "open" : raw.state === "closed" ? "closed" : "undecided";
    return s("g", { class: `bar ${kind}`, role: "img", tabindex: stop ? 0 : -1, "data-i": i, "aria-label": this.describe(raw),
      onfocus: () => this.select(i), onmouseenter: () => this.select(i), onclick: () => this.select(i) },
      s("rect", { class: "hit", x: left - 4, y: y - 4, width: Math.max(24, wide + 8), height: BAR + 8 }),
      s("rect", { class: "body", x: left, y, width: wide, height: BAR, rx: 3 }),
      // How it ended shows at its end: stated, a line; inferred, a hatch; open, an arrow.
      open && right >= width - 1 && s("path", { class: "cap", d: `M${width - 7} ${y + 3}l5 5-5 5` }),
      !open && raw.end === "stated" && wide > 6 && s("path", { class: "cap", d: `M${right - 1.5} ${y - 3}V${y + BAR + 3}` }),
      !open && raw.end !== "stated" && s("rect", { x: Math.max(left, right - 14), y, width: Math.min(14, wide), height: BAR, fill: `url(#${this.pattern})` }));
  }

  move(e, shown) {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[e.key];
    const at = shown.findIndex((each) => each.i === this.selected);
    const to = e.key === "Home" ? 0 : e.key === "End" ? shown.length - 1 : step ? Math.min(shown.length - 1, Math.max(0, at + step)) : -1;
    if (to < 0) return;
    e.preventDefault();
    for (const bar of this.picture.querySelectorAll(".bar")) {
      bar.setAttribute("tabindex", bar.dataset.i === String(shown[to].i) ? "0" : "-1");
      if (bar.dataset.i === String(shown[to].i)) bar.focus();
    }
  }

  select(i) {
    this.selected = i;
    for (const bar of this.picture.querySelectorAll(".bar")) bar.classList.toggle("selected", bar.dataset.i === String(i));
    const raw = this.sessions[i]?.raw;
    if (!raw) return put(this.detail);
    put(this.detail,
      h("p", {}, stateMark(raw), " ", when(raw.connected_at), " to ", raw.state === "open" ? "now" : raw.disconnected_at ? when(raw.disconnected_at) : "a time not known", " ", lasted(raw)),
      h("p", { class: "muted" }, raw.state !== "open" && [ended(raw), " · "], "node ", foreign(raw.node || "not known"), raw.peer && [" · from ", foreign(raw.peer)], raw.username && [" · user ", foreign(raw.username)],
        raw.transport && [" · ", foreign(raw.transport)], raw.protocol_version ? ` · ${protocolWords(raw.protocol_version)}` : ""));
  }

  describe(raw) {
    const end = raw.state === "open" ? "still open" : `until ${raw.disconnected_at ? clock(ms(raw.disconnected_at)) : "a time not known"}, ${endWords(raw.reason)}${raw.end === "inferred" ? " (inferred)" : ""}`;
    return `Connection to ${plain(raw.node, 40) || "a node not known"} from ${clock(ms(raw.connected_at))}, ${end}`;
  }

  rows(sessions) {
    if (sessions.length === 0) return null;
    const cell = (label, ...content) => h("td", { "data-label": label }, h("div", {}, content));
    return h("table", { class: "stack" },
      h("caption", { class: "unseen" }, "Connections of the client, newest first"),
      h("thead", {}, h("tr", {}, ["State", "Connected", "Disconnected", "How it ended", "Connection"].map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, sessions.map((raw) => h("tr", {},
        cell("State", stateMark(raw)), cell("Connected", when(raw.connected_at)),
        cell("Disconnected", raw.state === "open" ? "–" : when(raw.disconnected_at), h("span", { class: "line muted" }, lasted(raw))), cell("How it ended", ended(raw)),
        cell("Connection", foreign(raw.node || "node not known"), h("span", { class: "line muted" },
          [raw.peer && ["from ", foreign(raw.peer)], raw.username && ["user ", foreign(raw.username)], protocolWords(raw.protocol_version), raw.transport && foreign(raw.transport), raw.key && ["key ", foreign(raw.key, 48)]]
            .filter(Boolean).map((each, i) => [i > 0 && " · ", each])))))));
  }
}

const identity = (raw) => (raw ? JSON.stringify([raw.node, raw.key, raw.connected_at]) : "");

function stateMark(raw) {
  const [status, label] = { open: ["online", "open"], closed: ["offline", "closed"] }[raw.state] ?? ["unknown", "undecided"];
  return badge(status, "small", label);
}

function lasted(raw) {
  const from = ms(raw.connected_at);
  const to = raw.state === "open" ? Date.now() : ms(raw.disconnected_at);
  return Number.isNaN(from) || Number.isNaN(to) ? "" : `(${span(to - from)})`;
}

function ended(raw) {
  if (raw.state === "open") return "open";
  const words = [endWords(raw.reason) || "it is not known how it ended"];
  if (raw.end === "inferred") words.push(" (inferred: at that time at the latest)");
  if (raw.raw_reason) words.push(" – the broker says “", foreign(raw.raw_reason, 80), "”");
  return words;
}
