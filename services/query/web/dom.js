// Building the page. Text goes into text nodes alone: what a client, a node or a broker calls itself is never read as HTML.

const SVG = "http://www.w3.org/2000/svg";

// h makes an element: properties are attributes, on… listeners, and class, dataset; children are nodes, strings or nothing.
export function h(tag, props, ...children) {
  return fill(document.createElement(tag), props, children);
}

// s is h for SVG.
export function s(tag, props, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

function fill(node, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "value") node.value = value;
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  add(node, children);
  return node;
}

function add(node, children) {
  for (const child of children.flat(Infinity)) {
    if (child === undefined || child === null || child === false) continue;
    node.append(child); // a string becomes a text node
  }
}

// put replaces what a node holds.
export function put(node, ...children) {
  node.replaceChildren();
  add(node, children);
  return node;
}

// What does not show, or moves what stands around it: controls, soft hyphen, zero width, bidi marks, spaces that look like
// another, tags, halves of a surrogate pair.
const HIDDEN = /[\u0000-\u001f\u007f-\u00a0\u00ad\u034f\u061c\u115f\u1160\u1680\u17b4\u17b5\u180b-\u180f\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffc\u{1bca0}-\u{1bca3}\u{1d173}-\u{1d17a}\u{e0000}-\u{e0fff}]|\p{Cs}|^ | $| (?= )/gu;

const NAMES = { " ": "space", "\t": "tab", "\n": "line feed", "\r": "return", "\0": "NUL" };

function codeOf(c) {
  return NAMES[c] ?? "U+" + c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
}

function cut(text, max) {
  if (text.length <= max) return [text, ""];
  const points = Array.from(text.slice(0, 2 * max)).slice(0, max);
  const head = points.join("");
  return head.length < text.length ? [head, `… (${text.length.toLocaleString()} characters)`] : [text, ""];
}

// foreign shows a text that somebody else chose: isolated, so that its direction changes nothing around it, and with what would not be seen
// made visible. At most max characters are shown.
export function foreign(text, max = 256) {
  const value = String(text ?? "");
  const [head, tail] = cut(value, max);
  const node = h("bdi", { class: "foreign", dir: "auto" });
  let at = 0;
  for (const m of head.matchAll(HIDDEN)) {
    node.append(head.slice(at, m.index), h("span", { class: "hidden-char", title: "a character that does not show" }, codeOf(m[0])));
    at = m.index + m[0].length;
  }
  node.append(head.slice(at));
  if (tail) node.append(h("span", { class: "muted" }, tail));
  return node;
}

// plain is foreign as a string, for labels, titles and options.
export function plain(text, max = 120) {
  const [head, tail] = cut(String(text ?? ""), max);
  return head.replace(HIDDEN, (c) => `‹${codeOf(c)}›`) + tail;
}

// icon draws a status by shape, so that colour is never all that tells.
export function icon(status) {
  const shapes = {
    online: [s("circle", { cx: 8, cy: 8, r: 6, fill: "currentColor" })],
    offline: [s("rect", { x: 3, y: 3, width: 10, height: 10, rx: 1.5, fill: "none", stroke: "currentColor", "stroke-width": 2 })],
    unknown: [
      s("path", { d: "M8 1.2 14.8 8 8 14.8 1.2 8Z", fill: "none", stroke: "currentColor", "stroke-width": 1.8, "stroke-linejoin": "round" }),
      s("path", { d: "M8 4.6v4M8 10.4v1.2", stroke: "currentColor", "stroke-width": 1.8, fill: "none" }),
    ],
    ok: [s("path", { d: "m3 8.5 3.5 3.5L13 4.8", fill: "none", stroke: "currentColor", "stroke-width": 2.2, "stroke-linecap": "round", "stroke-linejoin": "round" })],
    warn: [
      s("path", { d: "M8 2 15 14H1Z", fill: "none", stroke: "currentColor", "stroke-width": 1.7, "stroke-linejoin": "round" }),
      s("path", { d: "M8 6.2v3.6M8 11.2v1.3", stroke: "currentColor", "stroke-width": 1.7, fill: "none" }),
    ],
    all: [s("path", { d: "M2 4h12M2 8h12M2 12h12", stroke: "currentColor", "stroke-width": 1.8, fill: "none", "stroke-linecap": "round" })],
  };
  return s("svg", { class: "icon " + status, viewBox: "0 0 16 16", "aria-hidden": "true", focusable: "false" }, shapes[status] ?? shapes.unknown);
}

// known keeps a status to the words that the contract has.
export function known(status) {
  return status === "online" || status === "offline" ? status : "unknown";
}

// badge is a status as shape, colour and word.
export function badge(status, extra = "", label = known(status)) {
  return h("span", { class: `badge ${known(status)} ${extra}` }, icon(known(status)), label);
}

const numbers = new Intl.NumberFormat(undefined);

// count formats a number of the contract, where 64 bits are strings.
export function count(n) {
  return n === undefined || n === null || n === "" ? "–" : numbers.format(typeof n === "string" ? BigInt(n) : n);
}

export const one = (n, word, words = word + "s") => `${count(n)} ${String(n) === "1" ? word : words}`;

// button is a button that does something on this page.
export function button(label, onclick, props = {}) {
  return h("button", { type: "button", class: "button", onclick, ...props }, label);
}

// announce says something to those who do not look.
export function announce(text) {
  document.getElementById("announce").textContent = text;
}
