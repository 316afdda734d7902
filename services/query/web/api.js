// Calls of the service. Credentials are kept in memory, in the tab's session only if the user asked for that; they are sent by fetch and never
// by the browser's own dialog.

const STORE = "presence.credentials";

// ApiError is an answer that is not a success; status 0: no answer at all.
export class ApiError extends Error {
  constructor(status, message, retryAfter = 0, details = []) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
    this.details = details;
  }
}

let authorization = "";
let onExpired = () => {};

export const session = {
  signedIn: () => authorization !== "",
  // restore takes what an earlier load of the page in this tab kept.
  restore() {
    authorization = sessionStorage.getItem(STORE) ?? "";
  },
  signIn(value, keep) {
    authorization = value;
    if (keep) sessionStorage.setItem(STORE, value);
    else sessionStorage.removeItem(STORE);
  },
  signOut() {
    authorization = "";
    sessionStorage.removeItem(STORE);
  },
  // user is the name of the account, empty for a token.
  user() {
    if (!authorization.startsWith("Basic ")) return "";
    const bytes = Uint8Array.from(atob(authorization.slice(6)), (c) => c.charCodeAt(0));
    return new TextDecoder().decode(bytes).split(":", 1)[0];
  },
  whenExpired(f) {
    onExpired = f;
  },
};

export function basic(user, password) {
  const bytes = new TextEncoder().encode(`${user}:${password}`);
  let binary = "";
  for (const b of bytes) binary += String.fromCharCode(b);
  return "Basic " + btoa(binary);
}

function target(path, params) {
  const url = new URL(path, document.baseURI.split("#")[0]);
  for (const [name, value] of Object.entries(params ?? {})) {
    for (const v of Array.isArray(value) ? value : [value]) {
      if (v !== undefined && v !== null && v !== "") url.searchParams.append(name, v);
    }
  }
  return url;
}

async function send(path, params, options, as = authorization) {
  let response;
  try {
    response = await fetch(target(path, params), {
      ...options,
      cache: "no-store",
      redirect: "error",
      headers: { Authorization: as, "X-Requested-With": "presence-page", ...options.headers },
    });
  } catch (e) {
    if (e.name === "AbortError") throw e;
    throw new ApiError(0, "no answer");
  }
  if (response.ok) return response;
  let body = {};
  try {
    body = await response.json();
  } catch {
    // Something between the page and the service answered.
  }
  const error = new ApiError(response.status, String(body.message ?? response.statusText), Number(response.headers.get("Retry-After")) || 0, body.details ?? []);
  if (error.status === 401 && as === authorization && session.signedIn()) onExpired();
  throw error;
}

// get asks a call with GET.
export async function get(path, params, signal) {
  const response = await send(path, params, { signal, headers: { Accept: "application/json" } });
  return response.json();
}

export async function post(path, body, signal) {
  const response = await send(path, {}, { method: "POST", body: JSON.stringify(body), signal, headers: { "Content-Type": "application/json" } });
  return response.json();
}

// tryCredentials asks a call with other credentials than those signed in with; it throws if they are not accepted.
export async function tryCredentials(value) {
  await send("v1/stats", { skip_usernames: true, page_size: 1 }, { headers: { Accept: "application/json" } }, value);
}

// clientPath is the path of a client; null for the two IDs that no browser sends: it takes them for steps in the path.
export function clientPath(id) {
  return id === "." || id === ".." ? null : "v1/clients/" + encodeURIComponent(id);
}

const HEARTBEAT = 10;

// watch follows transitions until signal aborts. It reconnects with the token of the last message, so that nothing is missed; on.message gets every
// message, on.state "live", "waiting" (with the error), "gap" (the log no longer has what came since) or "absent" (no such call here).
export async function watch(params, on, signal) {
  let token = "";
  let failures = 0;
  while (!signal.aborted) {
    const attempt = new AbortController();
    const stop = () => attempt.abort();
    signal.addEventListener("abort", stop);
    let error = null;
    try {
      const response = await send("v1/clients:watch", { ...params, heartbeat: `${HEARTBEAT}s`, resume_token: token }, {
        signal: attempt.signal,
        headers: { Accept: "text/event-stream" },
      });
      on.state("live");
      for await (const message of events(response, stop)) {
        failures = 0;
        token = message.resume_token || token;
        on.message(message);
      }
    } catch (e) {
      error = e;
    }
    signal.removeEventListener("abort", stop);
    attempt.abort();
    if (signal.aborted || error?.status === 401) return;
    if (error?.status === 404 || error?.status === 501 || error?.status === 403) {
      on.state("absent", error);
      return;
    }
    if (error?.status === 410) {
      token = "";
      on.state("gap", error);
      continue;
    }
    failures++;
    on.state("waiting", error);
    await pause(1000 * Math.max(error?.retryAfter ?? 0, Math.min(15, 2 ** (failures - 1))), signal);
  }
}

// events reads server-sent events. With no byte for longer than two heartbeats the connection is taken for dead.
async function* events(response, stop) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  let timer;
  try {
    for (;;) {
      timer = setTimeout(stop, 2500 * HEARTBEAT);
      const { done, value } = await reader.read();
      clearTimeout(timer);
      if (done) return;
      text += value;
      const blocks = text.split(/\r?\n\r?\n/);
      text = blocks.pop();
      for (const block of blocks) {
        const message = parseEvent(block);
        if (message) yield message;
      }
    }
  } finally {
    clearTimeout(timer);
    reader.cancel().catch(() => {}); // it is closed already
  }
}

function parseEvent(block) {
  const data = [];
  let id = "";
  let type = "";
  for (const line of block.split(/\r?\n/)) {
    const at = line.indexOf(":");
    if (at === 0) continue; // a comment
    const field = at < 0 ? line : line.slice(0, at);
    const value = at < 0 ? "" : line.slice(at + 1).replace(/^ /, "");
    if (field === "data") data.push(value);
    else if (field === "id") id = value;
    else if (field === "event") type = value;
  }
  if (data.length === 0) return null;
  const message = JSON.parse(data.join("\n"));
  message.type ||= type;
  message.resume_token ||= id;
  return message;
}

// pause waits; it ends early with signal.
export function pause(duration, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, duration);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    }, { once: true });
  });
}

// poll asks again and again while the page is seen, until signal aborts: every interval, after an error later and later, or when the service says.
export function poll(interval, ask, fail, signal) {
  let wake = () => {};
  const visible = () => document.visibilityState === "visible" && wake();
  document.addEventListener("visibilitychange", visible);
  signal.addEventListener("abort", () => document.removeEventListener("visibilitychange", visible));
  (async () => {
    let failures = 0;
    while (!signal.aborted) {
      let wait = interval;
      if (document.visibilityState === "visible") {
        try {
          await ask(signal);
          failures = 0;
        } catch (e) {
          if (signal.aborted || e.status === 401) return;
          failures++;
          wait = Math.max(1000 * (e.retryAfter ?? 0), Math.min(30_000, interval * failures));
          fail(e);
        }
      }
      const early = new AbortController();
      wake = () => early.abort();
      await pause(wait, AbortSignal.any([signal, early.signal]));
    }
  })();
  return () => wake();
}
