// The evidence behind a status.

import { badge, foreign, h, icon } from "./dom.js";
import { when } from "./time.js";
import { outcomeWords, reasonWords, stateWords } from "./words.js";

// explanationView shows an explanation; parts that were unfolded in what it replaces are unfolded again.
export function explanationView(x, before) {
  const unfolded = new Set([...before.querySelectorAll("details[open]")].map((each) => each.dataset.part));
  const part = (name, title, n, content) => n > 0 && h("details", { class: "more", "data-part": name, open: unfolded.has(name) }, h("summary", {}, `${title} (${n})`), content);
  const cell = (label, ...content) => h("td", { "data-label": label }, h("div", {}, content));
  const table = (caption, names, rows) => h("table", { class: "stack" }, h("caption", { class: "unseen" }, caption),
    h("thead", {}, h("tr", {}, names.map((name) => h("th", { scope: "col" }, name)))), h("tbody", {}, rows));

  const { connections = [], observations = [], facts = [], transitions = [], nodes = [], feed } = x;
  return [
    h("p", { class: "rule" }, words(x.rule)),
    nodes.map((n) => n.state !== "ok" && h("p", { class: "fresh stale" }, icon("warn"), h("span", {}, h("strong", {}, foreign(n.node, 80)), `: ${stateWords(n.state)}. `, words(n.summary)))),
    feed && feed.state !== "ok" && h("p", { class: "fresh stale" }, icon("warn"), h("span", {}, words(feed.summary))),
    part("connections", "Connections, newest of each node", connections.length, h("ul", { class: "plain" }, connections.map((c) => h("li", {}, c.current && h("strong", {}, "Current: "), words(c.summary))))),
    part("facts", "Facts, newest first", facts.length, [x.facts_note && h("p", { class: "note" }, words(x.facts_note)), table("Facts that the brokers sent about the client", ["Time", "What", "What became of it", "Offset"], facts.map((f) => h("tr", { class: f.ignored ? "ignored" : "" },
      cell("Time", when(f.time || f.received), f.time && f.received && h("span", { class: "line muted" }, "received ", when(f.received))),
      cell("What", f.type, f.reason && ` – ${f.reason.replaceAll("_", " ")}`, f.raw_reason && [" “", foreign(f.raw_reason, 60), "”"], f.online !== undefined && (f.online ? " – online" : " – offline"), h("span", { class: "line muted" }, f.node && ["node ", foreign(f.node, 60)], f.key && [" key ", foreign(f.key, 40)])),
      cell("What became of it", h("strong", {}, outcomeWords(f.outcome)), ". ", words(f.explanation)),
      cell("Offset", String(f.offset)))))]),
    part("observations", "Answers of the broker", observations.length, h("ul", { class: "plain" }, observations.map((o) => h("li", {}, when(o.query_start), ": ", o.online ? "online" : "offline", o.node && [" on ", foreign(o.node, 60)], o.source && [" (", foreign(o.source, 40), ")"])))),
    part("transitions", "Latest transitions", transitions.length, h("ul", { class: "plain" }, transitions.map((t) => h("li", {}, badge(t.previous_status, "small"), " to ", badge(t.status, "small"), ` – ${reasonWords(t.status_reason)} (${t.cause === "node_change" ? "a node changed" : "a fact about the client"}, offset ${t.event_offset})`)))),
    part("nodes", "Nodes and feed", nodes.length + (feed ? 1 : 0), h("ul", { class: "plain" }, nodes.map((n) => h("li", {}, foreign(n.node, 80), ` – ${stateWords(n.state)}. `, words(n.summary), n.alive_at && [" Last heartbeat ", when(n.alive_at), "."])), feed && h("li", {}, `Feed – ${stateWords(feed.state)}. `, words(feed.summary)))),
  ];
}

// words is a sentence of the service: it quotes what others chose.
function words(text) {
  return foreign(text, 4000);
}
