// Signing in, with the accounts that the calls have.

import { basic, session, tryCredentials } from "./api.js";
import { button, h, icon, put } from "./dom.js";

// loginView is a form; done is called once the service has accepted what was entered.
export function loginView(message, done) {
  const user = h("input", { id: "user", name: "username", type: "text", autocomplete: "username", autocapitalize: "none", spellcheck: "false", required: true, dir: "auto" });
  const password = h("input", { id: "password", name: "password", type: "password", autocomplete: "current-password", required: true });
  const token = h("input", { id: "token", name: "token", type: "password", autocomplete: "off", spellcheck: "false" });
  const keep = h("input", { id: "keep", type: "checkbox" });
  const problem = h("p", { class: "problem", role: "alert", id: "problem" });
  const submit = h("button", { type: "submit", class: "button primary" }, "Sign in");
  const accountFields = h("div", { class: "fields" }, label("User", user), label("Password", password));
  const tokenFields = h("div", { class: "fields", hidden: true }, label("Bearer token", token));
  let byToken = false;
  const other = button("Use a bearer token instead", () => {
    byToken = !byToken;
    accountFields.hidden = byToken;
    tokenFields.hidden = !byToken;
    user.required = password.required = !byToken;
    token.required = byToken;
    other.textContent = byToken ? "Use an account instead" : "Use a bearer token instead";
    (byToken ? token : user).focus();
  }, { class: "link" });

  async function signIn(e) {
    e.preventDefault();
    const value = byToken ? "Bearer " + token.value.trim().replace(/^bearer\s+/i, "") : basic(user.value, password.value);
    const said = unsendable(byToken, value);
    if (said) return say(said);
    submit.disabled = true;
    say("");
    try {
      await tryCredentials(value);
    } catch (error) {
      const refused = refusal(error, byToken);
      if (refused) {
        submit.disabled = false;
        say(refused);
        (byToken ? token : password).select();
        return;
      }
      // It was let in; what does not work then is said where it is shown.
    }
    session.signIn(value, keep.checked);
    done();
  }

  function say(text) {
    put(problem, text && [icon("warn"), " ", text]);
  }

  if (message) say(message);
  return h("div", { class: "login" },
    h("form", { class: "card", onsubmit: signIn, "aria-labelledby": "view-title" },
      h("h1", { id: "view-title", tabindex: -1 }, "Sign in"),
      h("p", { class: "muted" }, "With an account of this service that may read."),
      accountFields, tokenFields,
      h("label", { class: "check" }, keep, h("span", {}, "Stay signed in until this tab is closed")),
      problem,
      h("div", { class: "row" }, submit, other)));
}

function label(text, input) {
  return h("label", { class: "field" }, h("span", {}, text), input);
}

function unsendable(byToken, value) {
  return byToken && !/^Bearer [\x21-\x7e]+$/.test(value) ? "A token has only letters, digits and a few signs; copy it again." : "";
}

// refusal says why the credentials do not do; nothing if they were accepted and something else is wrong.
function refusal(error, byToken) {
  switch (error.status) {
    case 0: return "The service does not answer. Is it running, and can this machine reach it?";
    case 400: return `The service does not understand these credentials: ${error.message}.`;
    case 401: return byToken ? "The service does not accept this token." : "Wrong user or password.";
    case 403: return "This account may not read. Its line in the accounts file needs the permission “read”.";
    case 429: return `Too many requests or new sign-ins. Try again in ${error.retryAfter || 1} s.`;
  }
  return "";
}
