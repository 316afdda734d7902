// The view of one client: its status and why, its history, and its transitions as they happen.

import { clientPath, get, poll, post, watch } from "./api.js";
import { announce, badge, button, count, foreign, h, icon, known, plain, put } from "./dom.js";
import { explanationView } from "./explanation.js";
import { freshness, LiveList, transitionItem } from "./shared.js";
import { ms, span, when } from "./time.js";
import { Timeline } from "./timeline.js";
import { closeWords, errorWords, protocolWords, reasonWords } from "./words.js";

const INTERVAL = 15_000;
const LINES = 100;

export function clientView(app, id, signal) {
  const head = h("div", { class: "client-head" });
  const status = h("div", { class: "card status-card", id: "status" }, h("p", { class: "muted" }, "Asking…"));
  const facts = h("div");
  const why = h("div", {}, h("p", { class: "muted" }, "Asking…"));
  const timeline = new Timeline();
  const history = h("div", {}, timeline.node);
  const live = new LiveList(LINES, "No transition since this page shows the client.");
  const title = h("h1", { id: "view-title", tabindex: -1, class: "client-id" }, foreign(id, 512));
  put(head, h("p", { class: "eyebrow" }, "Client"), title, copyButton(id));

  const node = h("div", { class: "client" }, head,
    h("div", { class: "columns" },
      h("div", { class: "column" }, status,
        h("section", { class: "card", "aria-labelledby": "history-title" }, h("h2", { id: "history-title" }, "History"), history),
        h("section", { class: "card", "aria-labelledby": "why-title" }, h("h2", { id: "why-title" }, "Why"), why)),
      h("div", { class: "column" },
        h("section", { class: "card", "aria-labelledby": "connection-title" }, h("h2", { id: "connection-title" }, "Connection"), facts),
        h("section", { class: "card live", "aria-labelledby": "live-title" }, h("h2", { id: "live-title" }, "Live"), live.node))));

  let client = null;
  let minOffset;
  const path = clientPath(id);
  const view = { node, title: plain(id, 60), focus: title };

  async function ask() {
    const params = { cluster: app.cluster, min_offset: minOffset };
    client = path ? await seen(path, params, signal) : await oddOne(id, app.cluster, signal);
    minOffset = undefined;
    app.worked("client");
    showStatus(client);
    if (!path) {
      put(why, h("p", {}, "A browser cannot ask why for the client IDs “.” and “..”: it takes them for steps in a path. Ask over gRPC or with presencectl."));
      put(history, h("p", { class: "note" }, "Nor for its history."));
      return;
    }
    if (!client.found) {
      put(why, h("p", {}, client.message));
      timeline.update({});
      return;
    }
    await Promise.all([part(why, "explanation", (x) => put(why, explanationView(x, why))), part(history, "sessions", (x) => {
      if (!history.contains(timeline.node)) put(history, timeline.node);
      timeline.update(x);
    })]);
  }

  // part fills a section of its own: that it cannot be had says nothing about the others.
  async function part(section, name, show) {
    try {
      show(await get(`${path}/${name}`, { cluster: app.cluster }, signal));
    } catch (e) {
      if (signal.aborted) return;
      if (!(e.status >= 0)) throw e;
      put(section, h("p", { class: "note" }, icon("warn"), " ", errorWords(e)));
    }
  }

  function showStatus(c) {
    const word = known(c.status);
    const since = ms(c.since);
    put(status,
      h("div", { class: `status ${word}` },
        h("p", { class: "status-word", id: "status-word" }, badge(c.status, "big"), !Number.isNaN(since) && h("span", { class: "status-for", "data-at": since, "data-form": "for" }, `for ${span(Date.now() - since)}`)),
        h("p", { class: "status-reason" }, c.found ? sentence(reasonWords(c.status_reason)) : sentence(c.message)),
        c.found && word === "unknown" && h("p", {}, "Best guess: ", badge(c.belief, "small"), "."),
        c.found && word === "offline" && c.connection?.close_reason && h("p", {}, sentence(closeWords(c.connection.close_reason)),
          c.connection.close_raw_reason && [" The broker says “", foreign(c.connection.close_raw_reason, 80), "”."])),
      freshness(c.freshness));
    put(facts, c.found ? factList(c) : h("p", { class: "note" }, "No connection is known."));
    view.title = `${plain(id, 60)}: ${word}`;
    app.titled(view.title);
    if (view.announced !== word) announce(`${plain(id, 60)} is ${word}${c.found ? ": " + reasonWords(c.status_reason) : ""}.`);
    view.announced = word;
  }

  const again = poll(INTERVAL, ask, (e) => {
    app.failed("client", e);
    if (!client) put(status, h("p", { class: "problem" }, icon("warn"), " ", errorWords(e)));
  }, signal);

  live.follow("connecting");
  watch({ cluster: app.cluster, client_ids: id }, {
    state: (state, error) => live.follow(state, error),
    message(message) {
      if (message.type === "skipped") live.note(`${count(message.skipped?.records)} records were skipped: this page was too slow for the stream.`);
      if (message.type !== "transition" && message.type !== "removed") return;
      live.add(() => transitionItem(message, false, app.cluster));
      // The answer that follows is to have this transition in it.
      if (message.type === "transition" && message.transition?.event_offset >= 0) minOffset = message.transition.event_offset;
      again();
    },
  }, signal);
  return view;
}

// seen asks for a client, and for what is to be said if it was never seen.
async function seen(path, params, signal) {
  try {
    return { ...(await get(path, params, signal)), found: true };
  } catch (e) {
    if (e.status !== 404) throw e;
    const told = e.details.find((d) => d.metadata?.status)?.metadata ?? {};
    const message = e.message.replace(/^client_id: /, "");
    return { found: false, status: told.status ?? (message.includes("it is offline") ? "offline" : "unknown"), status_reason: "never_seen", belief: "offline", message };
  }
}

// oddOne asks in a batch, where the ID stands in the body.
async function oddOne(id, cluster, signal) {
  const answer = await post("v1/clients:batchGet", { client_ids: [id], cluster: cluster || undefined }, signal);
  const client = answer.clients[0];
  return { ...client, freshness: answer.freshness, found: client.status_reason !== "never_seen", message: "This client was never seen." };
}

function factList(c) {
  const x = c.connection ?? {};
  const rows = [
    ["Status since", when(c.since, true)],
    ["Node", x.node && [foreign(x.node), nodeWords(c.freshness?.node)]],
    ["Username", x.username && foreign(x.username)],
    ["From", x.peer && foreign(x.peer)],
    ["Connected", x.connected_at && when(x.connected_at)],
    ["Protocol", [protocolWords(x.protocol_version), x.transport].filter(Boolean).join(", ")],
    ["Keep alive", x.keep_alive_s !== undefined && (x.keep_alive_s === 0 ? "off" : `${x.keep_alive_s} s`)],
    ["Noticed within", c.detection_delay_s !== undefined && `${c.detection_delay_s} s, if the connection breaks`],
    ["Clean start", x.clean_start !== undefined && (x.clean_start ? "yes" : "no")],
    ["Session kept for", x.session_expiry_s !== undefined && `${count(x.session_expiry_s)} s`],
    ["Before that", c.last_transition?.previous_status && [badge(c.last_transition.previous_status, "small"), " until ", when(c.last_transition.time)]],
    ["Key", x.key && h("code", {}, foreign(x.key, 80))],
  ];
  return h("dl", { class: "facts" }, rows.filter(([, value]) => value).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

function nodeWords(state) {
  return state === "silent" || state === "gone" ? h("span", { class: "warn-text" }, " ", icon("warn"), " ", state) : "";
}

function copyButton(id) {
  if (!navigator.clipboard) return null; // not a secure context
  const copy = button("Copy ID", async () => {
    try {
      await navigator.clipboard.writeText(id);
      announce("Client ID copied.");
      copy.textContent = "Copied";
    } catch {
      announce("The browser does not allow copying.");
      copy.textContent = "Not allowed";
    }
    setTimeout(() => {
      copy.textContent = "Copy ID";
    }, 2000);
  }, { class: "button small" });
  return copy;
}

const sentence = (text) => (text ? text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".") : "");
