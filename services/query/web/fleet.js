// The view of a whole cluster: counts, nodes, feeds, and transitions as they happen.

import { get, poll, watch } from "./api.js";
import { covers, spark } from "./charts.js";
import { button, count, foreign, h, icon, plain, put } from "./dom.js";
import { freshness, LiveList, transitionItem } from "./shared.js";
import { when } from "./time.js";
import { stateWords } from "./words.js";

const INTERVAL = 5000;
const LINES = 100;
const STATUSES = ["online", "offline", "unknown"];

// fleetView shows the cluster; counts are the app's, which has polled them since the page was opened.
export function fleetView(app, signal) {
  const { counts } = app;
  const fresh = h("div");
  const tiles = h("div", { class: "tiles" });
  const since = h("div");
  const nodes = h("div");
  const feeds = h("div");
  const live = new LiveList(LINES, "No transition yet. Connect or disconnect a client, and it shows here.");
  const pauseButton = button("Pause", () => {
    live.pause(!live.paused);
    pauseButton.textContent = live.paused ? "Go on" : "Pause";
  }, { class: "button small" });

  const node = h("div", { class: "fleet" },
    h("div", { class: "view-head" }, h("div", {}, h("h1", { id: "view-title", tabindex: -1 }, "Fleet"), h("p", { class: "muted" }, "All clients of the cluster, by their current or last connection.")), fresh),
    h("section", { "aria-label": "Counts" }, tiles, since),
    h("div", { class: "columns" },
      h("div", { class: "column" },
        h("section", { class: "card", "aria-labelledby": "nodes-title" }, h("h2", { id: "nodes-title" }, "Broker nodes"), nodes),
        h("section", { class: "card", "aria-labelledby": "feeds-title" }, h("h2", { id: "feeds-title" }, "Feeds"), feeds)),
      h("section", { class: "card column live", "aria-labelledby": "live-title" }, h("div", { class: "card-head" }, h("h2", { id: "live-title" }, "Live transitions"), pauseButton), live.node)));

  let health = null;
  const show = () => {
    if (app.stats) showStats();
    showNodes();
  };

  function showStats() {
    const { stats } = app;
    put(fresh, freshness(stats.freshness));
    put(tiles, [...STATUSES, "all"].map((status) => {
      const field = status === "all" ? "total" : status;
      const value = stats.clients?.[field];
      return h("div", { class: `tile ${status}` },
        h("p", { class: "tile-name" }, icon(status), status === "all" ? "All" : status[0].toUpperCase() + status.slice(1)),
        h("p", { class: "tile-count" }, count(value)),
        spark(counts.of(field), status === "all" ? "All clients" : `Clients ${status}`, { interval: INTERVAL, status, width: 220, height: 44 }));
    }));
    put(since, covers(counts), stats.exact === false && h("p", { class: "note" }, icon("warn"), " Counts may be off for now: the store has yet to write down a change of nodes, or its indexes are being built. The status of every single client is right all the same."));
  }

  function showNodes() {
    const rows = new Map();
    for (const each of app.stats?.nodes ?? []) rows.set(each.node, { counts: each.clients });
    for (const each of health?.nodes ?? []) rows.set(each.node, { counts: each.clients, ...rows.get(each.node), health: each });
    const names = [...rows.keys()].sort();
    const cell = (label, ...content) => h("td", { "data-label": label }, h("div", {}, content));
    put(nodes, names.length === 0 ? h("p", { class: "note" }, "No node is known yet.") : h("table", { class: "stack" },
      h("caption", { class: "unseen" }, "Broker nodes, their health and their clients"),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Node"), STATUSES.map((each) => h("th", { scope: "col", class: "number" }, icon(each), " ", each)),
        h("th", { scope: "col" }, "Online lately"), h("th", { scope: "col" }, "Heartbeat"))),
      h("tbody", {}, names.map((name) => {
        const each = rows.get(name);
        const label = name === "" ? "no connection known" : plain(name, 60);
        return h("tr", {},
          h("th", { scope: "row", class: "node-name" }, name === "" ? h("span", { class: "muted" }, label) : foreign(name, 80),
            name !== "" && h("span", { class: "line" }, each.health ? healthMark(each.health) : "no health known"),
            each.health?.started_at && h("span", { class: "line muted" }, "runs since ", when(each.health.started_at))),
          STATUSES.map((status) => h("td", { "data-label": status, class: "number" }, h("div", {}, count(each.counts?.[status])))),
          cell("Online lately", spark(counts.of(`node ${name}`), `Clients online on ${label}`, { interval: INTERVAL, height: 28 })),
          cell("Heartbeat", each.health ? when(each.health.alive_at) : "–"));
      }))));
    if (health) showFeeds();
  }

  function showFeeds() {
    const ok = !health.gap && health.complete;
    put(feeds,
      h("p", { class: "fresh" + (ok ? "" : " stale") }, icon(ok ? "ok" : "warn"), h("span", {},
        health.gap ? ["Events may have been lost from ", when(health.gap.from), health.gap.to ? [" to ", when(health.gap.to)] : " on, and it lasts", ". That has not been healed yet."]
          : health.complete ? "Everything since the nodes began has been received: a client never seen is offline."
            : "Not everything since the nodes began has been received: of a client never seen it cannot be said for sure that it is offline.")),
      (health.feeds ?? []).length === 0 ? h("p", { class: "note" }, "No bridge has reported.") : h("ul", { class: "feeds" }, health.feeds.map((feed) => h("li", {},
        h("span", { class: "feed-name" }, foreign(feed.bridge, 80)), healthMark(feed), h("span", { class: "muted" }, "heartbeat ", when(feed.alive_at)),
        Number(feed.dropped_count) > 0 && h("span", { class: "warn-text" }, icon("warn"), ` ${count(feed.dropped_count)} facts dropped`)))));
  }

  app.onStats = show;
  signal.addEventListener("abort", () => {
    app.onStats = () => {};
  });
  show();
  poll(INTERVAL, async () => {
    health = await get("v1/nodes", { cluster: app.cluster }, signal);
    app.worked("nodes");
    showNodes();
  }, (e) => app.failed("nodes", e), signal);

  live.follow("connecting");
  watch({ cluster: app.cluster }, {
    state: (state, error) => live.follow(state, error),
    message(message) {
      if (message.type === "skipped") live.note(`${count(message.skipped?.records)} records were skipped: this page was too slow for the stream.`);
      if (message.type === "transition" || message.type === "removed") live.add(() => transitionItem(message, true, app.cluster));
    },
  }, signal);
  return { node, title: "Fleet" };
}

// healthMark is the state of a node or a feed, as shape, colour and words.
function healthMark(each) {
  const ok = each.state === "ok";
  return h("span", { class: `health ${ok ? "ok" : "bad"}` }, icon(ok ? "ok" : "warn"), " ", stateWords(each.state),
    !ok && each.silent_at && [" since ", when(each.silent_at)], !ok && each.gone_at && [" since ", when(each.gone_at)]);
}
