// The page: who is signed in, which view is shown, and what all views share.

import { get, poll, session } from "./api.js";
import { Counts } from "./charts.js";
import { clientView } from "./client.js";
import { announce, button, h, icon, plain, put } from "./dom.js";
import { fleetView } from "./fleet.js";
import { loginView } from "./login.js";
import { searchBox } from "./search.js";
import { clientHash } from "./shared.js";
import { refreshAges, zone } from "./time.js";
import { errorWords } from "./words.js";

const THEME = "presence.theme";
const STATS_INTERVAL = 5000;

const main = document.getElementById("main");
const top = document.getElementById("top");
const banner = document.getElementById("banner");

const app = {
  cluster: "", // empty: the service's default
  stats: null,
  counts: new Counts(STATS_INTERVAL),
  onStats: () => {},
  troubles: new Map(), // what does not work now, by what it is for

  failed(what, error) {
    if (!(error.status >= 0)) console.error(error); // none of the service's answers: a mistake of this page
    app.troubles.set(what, error.status >= 0 ? errorWords(error) : "This page could not show an answer.");
    showTroubles();
  },
  worked(what) {
    if (app.troubles.delete(what)) showTroubles();
  },
  titled(text) {
    document.title = `${text} · Presence`;
  },
};

let view = new AbortController(); // ends with the view shown
let shown = ""; // address of the view shown
let polling = new AbortController();
let search = null;
let clusterChoice = null;

function showTroubles() {
  const texts = [...new Set(app.troubles.values())];
  put(banner, texts.map((text) => h("p", {}, icon("warn"), " ", text)));
}

// address reads what the page is to show from the fragment: it never reaches a server or its logs.
function address() {
  const [path, query] = location.hash.replace(/^#/, "").split("?", 2);
  const cluster = new URLSearchParams(query ?? "").get("cluster") ?? "";
  const found = /^\/clients\/(.+)$/.exec(path);
  if (!found) return { cluster };
  try {
    return { cluster, id: decodeURIComponent(found[1]) };
  } catch {
    return { cluster, broken: true };
  }
}

function show() {
  if (!session.signedIn()) return showLogin("");
  const to = address();
  if (shown === location.hash && shown !== "") return;
  shown = location.hash || "#/";
  if (to.cluster !== app.cluster || polling.signal.aborted) startPolling(to.cluster);
  view.abort();
  view = new AbortController();
  app.troubles.clear();
  showTroubles();
  const next = to.broken ? brokenView() : to.id === undefined ? fleetView(app, view.signal) : clientView(app, to.id, view.signal);
  put(main, next.node);
  for (const link of top.querySelectorAll("a.home")) link.setAttribute("aria-current", to.id === undefined ? "page" : "false");
  if (search) search.input.value = to.id ?? "";
  app.titled(next.title);
  document.getElementById("view-title")?.focus({ preventScroll: true });
  window.scrollTo(0, 0);
}

function brokenView() {
  return { title: "Not an address", node: h("div", { class: "card" }, h("h1", { id: "view-title", tabindex: -1 }, "Not an address"),
    h("p", {}, "The client ID in the address is not percent-encoded. Search for it instead.")) };
}

// startPolling counts a cluster's clients from now on, whichever view is shown.
function startPolling(cluster) {
  polling.abort();
  polling = new AbortController();
  app.cluster = cluster;
  app.stats = null;
  app.counts.clear();
  const { signal } = polling;
  poll(STATS_INTERVAL, async () => {
    const stats = await get("v1/stats", { cluster, skip_usernames: true }, signal);
    app.stats = stats;
    const numbers = new Map(["online", "offline", "unknown", "total"].map((name) => [name, Number(stats.clients?.[name] ?? 0)]));
    for (const each of stats.nodes ?? []) numbers.set(`node ${each.node}`, Number(each.clients?.online ?? 0));
    app.counts.push(numbers);
    app.worked("stats");
    showClusters(stats);
    app.onStats();
  }, (e) => app.failed("stats", e), signal);
}

// showClusters offers a choice where there is one.
function showClusters(stats) {
  const names = [...new Set([stats.cluster, ...(stats.clusters ?? []).map((each) => each.cluster)])].sort();
  const key = JSON.stringify([names, stats.cluster]);
  if (clusterChoice.dataset.key === key) return;
  clusterChoice.dataset.key = key;
  if (names.length < 2) {
    put(clusterChoice, h("span", { class: "muted" }, "Cluster "), h("strong", {}, h("bdi", {}, plain(stats.cluster, 63))));
    return;
  }
  const select = h("select", { id: "cluster", onchange: () => {
    const to = address();
    location.hash = to.id === undefined ? `#/?cluster=${encodeURIComponent(select.value)}` : clientHash(to.id, select.value);
  } }, names.map((name) => h("option", { value: name, selected: name === stats.cluster }, plain(name, 63))));
  put(clusterChoice, h("label", {}, h("span", { class: "muted" }, "Cluster "), select));
}

function showLogin(message) {
  view.abort();
  polling.abort();
  shown = "";
  app.troubles.clear();
  showTroubles();
  search = null;
  showTop();
  put(main, loginView(message, () => {
    showTop();
    show();
    announce("Signed in.");
  }));
  app.titled("Sign in");
  announce(""); // nothing of what was seen stays
  document.getElementById(message ? "view-title" : "user")?.focus();
}

function signOut(message) {
  session.signOut();
  showLogin(message);
}

function showTop() {
  const brand = h("a", { class: "home", href: "#/" }, brandMark(), h("span", {}, "Presence"));
  if (!session.signedIn()) return put(top, h("div", { class: "bar-row" }, brand, h("div", { class: "top-end" }, themeChoice())));
  clusterChoice = h("div", { class: "cluster" });
  search = searchBox(() => app.cluster, (id) => {
    const to = clientHash(id, app.cluster);
    if (to === null) return app.failed("search", { status: 400, message: "a client ID is valid Unicode" });
    app.worked("search");
    if (to === location.hash) document.getElementById("view-title")?.focus();
    else location.hash = to;
  });
  const user = session.user();
  put(top, h("div", { class: "bar-row" }, brand, search.form,
    h("div", { class: "top-end" }, clusterChoice, themeChoice(),
      h("span", { class: "account" }, user ? h("bdi", {}, plain(user, 24)) : "token"), button("Sign out", () => signOut(""), { class: "button small", id: "sign-out" }))));
}

function brandMark() {
  return h("img", { src: new URL("icon.svg", import.meta.url).pathname, alt: "", width: 26, height: 26 });
}

// themeChoice steps through light and dark; at first the system decides.
function themeChoice() {
  const themes = { auto: "as the system", light: "light", dark: "dark" };
  const names = Object.keys(themes);
  const current = () => document.documentElement.dataset.theme ?? "auto";
  const label = () => `Theme: ${current()}`;
  const choice = button(label(), () => {
    setTheme(names[(names.indexOf(current()) + 1) % names.length]);
    choice.textContent = label();
    announce(`Theme: ${themes[current()]}.`);
  }, { class: "button small", id: "theme" });
  return choice;
}

function setTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  localStorage.setItem(THEME, theme);
}

document.addEventListener("keydown", (e) => {
  const typing = e.target.closest?.("input, textarea, select") || e.ctrlKey || e.metaKey || e.altKey;
  if (e.key === "/" && !typing && search) {
    e.preventDefault();
    search.input.focus();
    search.input.select();
  }
  // Escape closes the suggestions, then empties the search, then leaves it.
  if (e.key === "Escape" && !e.defaultPrevented && e.target === search?.input) document.getElementById("view-title")?.focus();
});
// A link to a fragment would change the address of the view.
document.getElementById("skip").addEventListener("click", (e) => {
  e.preventDefault();
  main.focus();
});
window.addEventListener("hashchange", show);
session.whenExpired(() => signOut("The service no longer accepts these credentials. Sign in again."));
setInterval(() => refreshAges(), 1000);

setTheme(["light", "dark"].includes(localStorage.getItem(THEME)) ? localStorage.getItem(THEME) : "auto");
put(document.getElementById("foot"), h("p", {}, `Times are in ${zone()}. `, h("a", { href: "openapi.json" }, "The calls of this service")));
session.restore();
showTop();
show();
