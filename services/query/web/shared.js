// What both views show: how fresh an answer is, and transitions.

import { badge, foreign, h, icon, known } from "./dom.js";
import { ms, span, when } from "./time.js";
import { closeWords, reasonWords, staleWords } from "./words.js";

// freshness says whether an answer can be relied on now, and if not, why.
export function freshness(f) {
  if (!f) return null;
  const lag = Number(f.lag_ms);
  if (!f.stale) {
    return h("p", { class: "fresh" }, icon("ok"), h("span", {}, h("strong", {}, "Fresh"), f.lag_ms === undefined || Number(f.lag_records) === 0 ? ": everything received is applied." : `: at most ${span(lag)} behind.`));
  }
  const reasons = (f.stale_reasons ?? []).map(staleWords);
  const last = ms(f.applied_time);
  return h("p", { class: "fresh stale" }, icon("warn"), h("span", {}, h("strong", {}, "Stale"), ": ",
    reasons.length > 0 ? reasons.join("; ") : "the answer may be out of date", ".",
    f.lag_records !== undefined && Number(f.lag_records) > 0 && ` ${f.lag_records} records behind.`,
    !Number.isNaN(last) && [" The last fact applied was received at ", when(f.applied_time, true), "."]));
}

// clientHash is the address of a client on this page.
export function clientHash(id, cluster) {
  let path;
  try {
    path = encodeURIComponent(id);
  } catch {
    return null; // half of a surrogate pair: no client has it
  }
  return `#/clients/${path}${cluster ? `?cluster=${encodeURIComponent(cluster)}` : ""}`;
}

// transitionItem is a line of a live list; who names the client in it.
export function transitionItem(message, who, cluster) {
  const t = message.transition ?? {};
  const removed = message.type === "removed";
  const why = [reasonWords(t.status_reason)];
  if (t.close_reason && known(t.status) !== "online") why.push(` – ${closeWords(t.close_reason)}`);
  return h("li", { class: `event ${known(t.status)}` },
    h("span", { class: "event-time" }, when(t.time || t.since)),
    h("span", { class: "event-change" }, removed ? h("span", { class: "badge unknown" }, icon("unknown"), "removed")
      : known(t.status) === known(t.previous_status) ? [badge(t.status), h("span", { class: "muted" }, " on a new connection")]
        : [h("span", { class: "unseen" }, `${known(t.previous_status)}, now `), badge(t.status)]),
    h("span", { class: "event-text" },
      who && h("a", { href: clientHash(t.client_id, cluster), class: "event-client" }, foreign(t.client_id, 80)),
      h("span", { class: "muted" }, why, t.node && [" · ", foreign(t.node, 60)])));
}

// LiveList keeps the latest lines of a stream. Lines come in a bunch, a few times a second, however fast the stream is.
export class LiveList {
  constructor(max, empty) {
    this.max = max;
    this.waiting = [];
    this.total = 0;
    this.list = h("ol", { class: "events", "aria-label": "Live transitions, newest first", tabindex: 0 });
    this.state = h("p", { class: "live-state" });
    this.empty = h("p", { class: "note" }, empty);
    this.node = h("div", {}, this.state, this.empty, this.list);
    this.paused = false;
  }

  // add takes what makes a line: only those that will be seen are made.
  add(make) {
    this.total++;
    this.waiting.push(make);
    if (this.waiting.length > this.max) this.waiting.shift();
    if (!this.paused) this.timer ??= setTimeout(() => this.flush(), 120);
  }

  flush() {
    clearTimeout(this.timer);
    this.timer = undefined;
    if (this.waiting.length === 0) return;
    this.empty.hidden = true;
    const lines = this.waiting.map((make) => make()).reverse();
    this.waiting = [];
    this.list.prepend(...lines);
    while (this.list.children.length > this.max) this.list.lastElementChild.remove();
  }

  pause(paused) {
    this.paused = paused;
    if (!paused) this.flush();
  }

  // note puts a line that is no transition into the list, such as what was skipped.
  note(text) {
    this.add(() => h("li", { class: "event event-note" }, icon("warn"), h("span", {}, text)));
  }

  // follow says how the stream is.
  follow(state, error) {
    const words = { live: "Live", waiting: "Interrupted; connecting again", absent: "Not available: the service has no watch, or the account may not use it", connecting: "Connecting" }[state];
    if (state === "gap") return this.note("The log no longer holds everything since the interruption: some transitions are not shown.");
    this.list.dataset.state = state;
    const status = error?.status ? ` (answer ${error.status})` : "";
    this.state.replaceChildren(icon(state === "live" ? "ok" : state === "connecting" ? "all" : "warn"), ` ${words}${state === "live" ? "" : status}.`);
  }
}
