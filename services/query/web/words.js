// The contract's words in sentences. The rule that decided a status comes from the service (explanation.rule); what stands here is short.

const REASONS = {
  connected: "the newest connection has no end",
  closed: "the newest connection ended by a disconnect of its own",
  superseded: "a newer connection ended it, and has ended as well",
  successor_unseen: "a newer connection took it over, and has not been seen",
  order_undecided: "two events are too close for the clocks to tell the order",
  close_ambiguous: "a disconnect that may belong to another connection",
  older_connection_open: "an older connection on another node has no end",
  node_restarted: "the node has restarted since",
  node_gone: "the node has left the cluster",
  node_silent: "the node sends no heartbeats",
  observed: "the broker was asked, and answered so",
  never_seen: "nothing is known of it",
  history_pruned: "what would decide is no longer kept",
  forgotten: "it was forgotten on request",
  expired: "nothing was heard of it for long",
};

const CLOSES = {
  normal: "disconnected in order",
  connection_lost: "connection lost",
  keep_alive_timeout: "keep alive ran out",
  taken_over: "taken over by a newer connection",
  discarded: "discarded by a newer connection",
  kicked: "kicked",
  not_authorized: "not authorized",
  protocol_error: "protocol error",
  quota_exceeded: "quota exceeded",
  server_shutdown: "broker shut down",
  server_error: "broker error",
  session_expired: "session expired",
  other: "another reason",
};

const STALE = {
  lagging: "the service has not yet applied everything that it received",
  lag_unknown: "it is not known how far the service is behind",
  catching_up: "the service has just started and is catching up",
  feed_down: "the feed from the broker is down",
  feed_gap: "events may have been lost, and that has not been healed yet",
  routing_stale: "it is not known for certain who owns the data",
};

const STATES = {
  ok: "ok",
  silent: "silent: no heartbeats",
  gone: "gone: not in the cluster's list",
  unheard: "no heartbeats heard",
  disconnected: "disconnected",
  expired: "expired: no heartbeat within the lease",
  gap: "interrupted",
  down: "down",
};

const OUTCOMES = { applied: "applied", duplicate: "duplicate", superseded: "superseded", ghost: "ghost", too_old: "too old", held: "held" };

const word = (table) => (key) => (Object.hasOwn(table, key) ? table[key] : String(key ?? "").replaceAll("_", " "));

export const reasonWords = word(REASONS);
export const closeWords = word(CLOSES);
export const staleWords = word(STALE);
export const stateWords = word(STATES);
export const outcomeWords = word(OUTCOMES);

// endWords tells why a connection ended: a close reason, or the status reason that its end was inferred from.
export const endWords = (key) => (Object.hasOwn(CLOSES, key) ? closeWords(key) : reasonWords(key));

export function protocolWords(level) {
  return { 3: "MQTT 3.1", 4: "MQTT 3.1.1", 5: "MQTT 5" }[level] ?? "";
}

// errorWords says what an answer other than 200 means for who looks at the page.
export function errorWords(e) {
  const wait = e.retryAfter ? ` Trying again in ${e.retryAfter} s.` : "";
  switch (e.status) {
    case 0: return "The service does not answer. Trying again.";
    case 401: return "The service does not accept these credentials. Sign in again.";
    case 403: return "This account may not see this. " + e.message;
    case 429: return "Too many requests from this account or address." + wait;
    case 501: return "This service does not offer this yet.";
    case 503: return "The service cannot answer right now: " + e.message + "." + wait;
  }
  return `The service answered ${e.status}: ${e.message}`;
}
