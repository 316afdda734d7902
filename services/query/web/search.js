// The search for a client: an exact ID, with those that begin like it as suggestions.

import { get } from "./api.js";
import { foreign, h, icon, known, plain, put } from "./dom.js";

const DELAY = 180;
const SHOWN = 8;

// searchBox is a combobox; go is called with the client ID.
export function searchBox(cluster, go) {
  const list = h("ul", { id: "suggestions", class: "suggestions", role: "listbox", "aria-label": "Clients that begin so", hidden: true });
  const input = h("input", {
    id: "search", type: "text", name: "client", role: "combobox", "aria-expanded": "false", "aria-controls": "suggestions", "aria-autocomplete": "list",
    "aria-label": "Client ID", "aria-keyshortcuts": "/", placeholder: "Client ID", autocomplete: "off", autocapitalize: "none", spellcheck: "false", dir: "auto",
    oninput: later, onkeydown: key, onblur: close,
  });
  let ids = [];
  let at = -1;
  let timer;
  let asking = new AbortController();

  function later() {
    clearTimeout(timer);
    asking.abort();
    if (input.value === "") return close();
    timer = setTimeout(suggest, DELAY);
  }

  async function suggest() {
    asking = new AbortController();
    try {
      const answer = await get("v1/clients", { cluster: cluster(), client_id_prefix: input.value, page_size: SHOWN }, asking.signal);
      show(answer.clients ?? [], answer.next_page_token);
    } catch {
      close(); // the exact ID can be searched all the same, and says what is wrong
    }
  }

  function show(clients, more) {
    ids = clients.map((c) => c.client_id);
    at = -1;
    put(list, clients.map((c, i) => h("li", { id: `suggestion-${i}`, role: "option", "aria-selected": "false", "aria-label": `${plain(c.client_id)}, ${known(c.status)}`, onmousedown: (e) => {
      e.preventDefault();
      choose(ids[i]);
    } }, icon(known(c.status)), foreign(c.client_id, 80), h("span", { class: "muted" }, known(c.status)))),
    more && h("li", { class: "muted", role: "presentation" }, "More begin so; type on."));
    list.hidden = clients.length === 0 || document.activeElement !== input;
    input.setAttribute("aria-expanded", String(!list.hidden));
    input.removeAttribute("aria-activedescendant");
  }

  function close() {
    clearTimeout(timer);
    asking.abort();
    list.hidden = true;
    at = -1;
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
  }

  function mark(i) {
    at = i;
    [...list.children].forEach((item, n) => item.getAttribute("role") === "option" && item.setAttribute("aria-selected", String(n === at)));
    if (at < 0) input.removeAttribute("aria-activedescendant");
    else input.setAttribute("aria-activedescendant", `suggestion-${at}`);
  }

  function key(e) {
    const open = !list.hidden;
    if (e.key === "ArrowDown" && open) mark((at + 2) % (ids.length + 1) - 1);
    else if (e.key === "ArrowUp" && open) mark(at < 0 ? ids.length - 1 : at - 1);
    else if (e.key === "Escape" && open) close();
    else if (e.key === "Escape" && input.value !== "") input.value = "";
    else return;
    e.preventDefault();
  }

  function choose(id) {
    input.value = id;
    close();
    go(id);
  }

  const form = h("form", { class: "search", role: "search", onsubmit: (e) => {
    e.preventDefault();
    if (at >= 0) choose(ids[at]);
    else if (input.value !== "") choose(input.value);
  } },
  h("div", { class: "search-box" }, input, h("kbd", { "aria-hidden": "true" }, "/"), list), h("button", { type: "submit", class: "button primary" }, "Search"));
  return { form, input };
}
