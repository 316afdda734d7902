//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

func same(s string) string { return s }

// TestBrowserSignIn: refusals are said in words and never by a dialog of the browser; credentials are kept only where the user asked for that.
func TestBrowserSignIn(t *testing.T) {
	t.Parallel()
	st := startStub(t)
	fleetOf(st, "dev1", same)
	b := openTab(t, chromium(t), st.url, "#/clients/dev1")
	b.see("h1", "Sign in")
	b.shot("form")
	for _, c := range []struct {
		status         int
		password, says string
	}{
		{0, "wrong", "Wrong user or password."},
		{http.StatusForbidden, stubPassword, "needs the permission “read”"},
		{http.StatusTooManyRequests, stubPassword, "Try again in 2 s."},
	} {
		st.breaks("stats", c.status)
		b.signIn(stubUser, c.password)
		b.see(".problem", c.says)
	}
	b.shot("refused")
	kept := func() string {
		return eval[string](b, `JSON.stringify([sessionStorage, localStorage]) + document.cookie`)
	}

	// Let in, while nothing can be counted: the page says so, and goes on by itself.
	st.breaks("stats", http.StatusServiceUnavailable)
	b.signIn(stubUser, stubPassword)
	b.see("#status", "online")
	b.see("#banner", "cannot answer right now: stubbed 503")
	st.breaks("stats", 0)
	b.wait(`document.querySelector("#banner").innerText === ""`)
	if got := kept(); strings.Contains(got, "Basic") || strings.Contains(got, "cmVhZGVy") {
		t.Errorf("credentials are kept though nobody asked for that: %s", got)
	}
	b.run(chromedp.Reload())
	b.see("h1", "Sign in")

	// With the box ticked a reload stays signed in; signing out forgets.
	b.run(chromedp.Click(chromedp.CSS("#keep")))
	b.signIn(stubUser, stubPassword)
	b.see("#status", "online")
	b.run(chromedp.Reload())
	b.see("#status", "online")
	b.run(chromedp.Click(chromedp.CSS("#sign-out")))
	b.see("h1", "Sign in")
	if got := kept(); strings.Contains(got, "Basic") {
		t.Errorf("after signing out this is kept: %s", got)
	}

	// An account that is taken away while the page is open.
	b.signIn(stubUser, stubPassword)
	b.see("#status", "online")
	st.breaks("stats", http.StatusUnauthorized)
	b.see(".problem", "no longer accepts")
	if eval[bool](b, `document.body.innerText.includes("dev1")`) {
		t.Error("the client is still shown to nobody who is signed in")
	}
}

// TestBrowserHostile: whatever clients, nodes, users, bridges and brokers call themselves is shown as text, everywhere.
func TestBrowserHostile(t *testing.T) {
	t.Parallel()
	st := startStub(t)
	fleetOf(st, hostile, func(s string) string { return s + hostile })
	b := openTab(t, chromium(t), st.url, "")
	b.signIn(stubUser, stubPassword)
	const shown = "<img src=x onerror=alert(1)>"
	safe := func() {
		t.Helper()
		// Our own picture is the one in the head of the page.
		if n := eval[int](b, `document.querySelectorAll("body img:not([src$='/icon.svg']), body script, body iframe, body [onerror], body [style]:not(svg *)").length`); n != 0 {
			t.Errorf("a text became %d elements", n)
		}
		if eval[bool](b, `/[\u202a-\u202e\u2066-\u2069]/.test(document.documentElement.textContent + document.title + [...document.querySelectorAll("*")].flatMap((e) => [...e.attributes].map((a) => a.value)).join(""))`) {
			t.Error("a mark that turns the direction of text is on the page")
		}
		if eval[bool](b, `[...document.querySelectorAll(".foreign")].some((e) => e.localName !== "bdi")`) {
			t.Error("a foreign text is not isolated")
		}
	}
	b.see(".tile", "18,204")
	b.wait(`document.querySelector(".live-state").innerText.includes("Live")`)
	st.send(transitionOf(hostile, "offline", "online", "t1", func(s string) string { return s + hostile }))
	for _, selector := range []string{".event-client", ".event-text", ".node-name", ".feed-name"} {
		b.see(selector, shown)
		b.see(selector, "U+202E")
	}
	safe()
	b.shot("fleet")

	// From the fleet to the client by its link.
	b.run(chromedp.Click(chromedp.CSS(".event-client")))
	b.see("h1", shown)
	b.wait(`document.querySelector(".timeline-svg")`)
	b.run(chromedp.Evaluate[chromedp.Void](`document.querySelectorAll("details").forEach((d) => d.open = true)`))
	for _, selector := range []string{".facts dd", ".timeline-detail", ".timeline-svg .lane", ".timeline table td", ".rule", "[data-part=facts] td", "[data-part=nodes] li"} {
		b.wait(fmt.Sprintf(`[...document.querySelectorAll(%q)].some((e) => e.textContent.includes("<img src=x"))`, selector))
	}
	b.wait(`document.title.includes("<img src=x")`)
	b.wait(`document.querySelector("#announce").textContent.includes("<img src=x")`)
	safe()
	b.shot("client")

	// As suggestions.
	b.run(chromedp.Focus(chromedp.CSS("#search")))
	b.keys("x")
	b.see("#suggestions li", shown)
	safe()

	// An address that is no address, and IDs that a browser cannot send in a path.
	b.run(navigate("#/clients/%ff"))
	b.see("h1", "Not an address")
	st.put("clients:batchGet", &presencev1.BatchGetClientsResponse{Clients: []*presencev1.Client{{ClientId: "..", Status: "unknown", StatusReason: "node_silent", Belief: "online"}},
		Freshness: &presencev1.Freshness{Stale: true, StaleReasons: []string{"feed_gap"}}})
	b.run(navigate("#/clients/.."))
	b.see("#status", "unknown")
	b.see("#status", "Best guess")
	b.see("#status", "events may have been lost")
}

// TestBrowserStream: a stream that ends is taken up where it ended, and what was skipped is said.
func TestBrowserStream(t *testing.T) {
	t.Parallel()
	st := startStub(t)
	fleetOf(st, "dev1", same)
	b := openTab(t, chromium(t), st.url, "")
	b.signIn(stubUser, stubPassword)
	b.see(".live-state", "Live")
	st.send(transitionOf("dev1", "online", "offline", "token-1", same))
	b.see(".event", "dev1")
	st.cut()
	b.wait(`document.querySelector(".live-state").innerText.includes("Interrupted")`)
	b.see(".live-state", "Live")
	if got := st.watches(); len(got) != 2 || got[0] != "" || got[1] != "token-1" {
		t.Errorf("streams were asked for with the tokens %q", got)
	}
	st.send(&presencev1.WatchClientsResponse{Type: "skipped", ResumeToken: "token-2", Skipped: &presencev1.Skipped{Records: 1234}})
	b.see(".event", "1,234 records were skipped")

	// A flood: the list stays short, and what came last is at its top.
	for i := range 900 {
		st.send(transitionOf(fmt.Sprintf("flood-%d", i), "online", "offline", "token-3", same))
	}
	b.wait(`document.querySelector(".event-client")?.innerText === "flood-899"`)
	if n := eval[int](b, `document.querySelectorAll(".event").length`); n > 100 {
		t.Errorf("%d lines are kept", n)
	}

	// Paused, nothing moves.
	b.run(chromedp.Click(chromedp.CSS(".live .button")))
	st.send(transitionOf("while-paused", "online", "offline", "token-4", same))
	st.send(&presencev1.WatchClientsResponse{Type: "heartbeat", ResumeToken: "token-5"})
	st.cut()
	b.see(".live-state", "Interrupted")
	b.see(".live-state", "Live")
	if eval[bool](b, `document.body.innerText.includes("while-paused")`) {
		t.Error("a paused list moved")
	}
	b.run(chromedp.Click(chromedp.CSS(".live .button")))
	b.see(".event", "while-paused")

	// The log has moved on.
	st.breaks("clients:watch", http.StatusGone)
	st.cut()
	b.wait(`document.querySelector(".live-state").innerText.includes("Interrupted")`)
	b.wait(`[...document.querySelectorAll(".event-note")].some((e) => e.innerText.includes("no longer holds"))`)
	st.breaks("clients:watch", 0)
	b.see(".live-state", "Live")
}

// TestBrowserKeyboard uses the page without a mouse.
func TestBrowserKeyboard(t *testing.T) {
	t.Parallel()
	st := startStub(t)
	fleetOf(st, "VIN0000001", same)
	b := openTab(t, chromium(t), st.url, "")
	b.wait(`document.activeElement.id === "user"`)
	b.keys(stubUser)
	b.keys(kb.Tab)
	b.keys(stubPassword)
	b.keys(kb.Enter)
	b.see(".tile", "18,204")
	focus := func(selector string) {
		t.Helper()
		b.wait(fmt.Sprintf("document.activeElement?.matches(%q)", selector))
	}
	focus("#view-title")

	// The skip link is the first stop, and shows when it has the focus.
	b.run(chromedp.Evaluate[chromedp.Void](`document.activeElement.blur(); window.getSelection().removeAllRanges(); document.body.focus()`), chromedp.Reload())
	b.wait(`document.activeElement.id === "user"`)
	b.keys(stubUser)
	b.keys(kb.Tab)
	b.keys(stubPassword)
	b.keys(kb.Enter)
	focus("#view-title")
	b.press("/", "Slash")
	focus("#search")
	b.wait(`document.activeElement.value === ""`)
	b.keys("VIN")
	b.see("#suggestions li", "VIN0000001-2")
	b.keys(kb.ArrowDown)
	b.wait(`document.querySelector("#suggestions [aria-selected=true]")?.id === document.activeElement.getAttribute("aria-activedescendant")`)
	b.shot("suggestions")
	b.keys(kb.Escape)
	b.wait(`document.querySelector("#suggestions").hidden && document.querySelector("#search").value === "VIN"`)
	b.keys(kb.Escape)
	b.wait(`document.querySelector("#search").value === ""`)
	b.keys(kb.Escape)
	focus("#view-title")
	b.press("/", "Slash")
	b.keys("V")
	b.see("#suggestions li", "VIN0000001")
	b.keys(kb.ArrowDown)
	b.keys(kb.Enter)
	b.see("#status", "online")
	focus("#view-title")
	if got := eval[string](b, "location.hash"); got != "#/clients/VIN0000001" {
		t.Errorf("the search leads to %s", got)
	}

	// The picture is one stop; arrows move in it, and the details follow.
	b.tabTo(".bar")
	b.see(".timeline-detail", "open")
	b.keys(kb.ArrowLeft)
	b.see(".timeline-detail", "keep alive ran out")
	b.keys(kb.Home)
	b.see(".timeline-detail", "disconnected in order")
	b.shot("timeline")
	b.tabTo("summary")
	b.keys(kb.Enter)
	b.see(".timeline table", "a newer connection ended it")

	// Every stop shows that it has the focus, and Tab leads around the whole page.
	seen := map[string]bool{}
	for range 60 {
		b.keys(kb.Tab)
		at := eval[string](b, `(() => {
			const e = document.activeElement;
			if (e === document.body) return "";
			const s = getComputedStyle(e), r = e.querySelector?.(".hit") && getComputedStyle(e.querySelector(".hit"));
			const visible = (s.outlineStyle !== "none" && parseFloat(s.outlineWidth) >= 2) || (r && r.stroke !== "none");
			return (visible ? "" : "INVISIBLE ") + e.localName + "#" + e.id + "." + e.className + " " + e.textContent.slice(0, 20);
		})()`)
		if strings.HasPrefix(at, "INVISIBLE") {
			t.Errorf("the focus does not show on %s", at)
		}
		seen[strings.Fields(at + " body")[0]] = true
	}
	for _, stop := range []string{"a#skip.skip", "a#.home", "input#search.", "select#cluster.", "button#theme.button", "button#sign-out.button"} {
		if !seen[stop] {
			t.Errorf("Tab does not lead to %s: %v", stop, seen)
		}
	}
	b.tabTo("#skip")
	b.wait(`document.querySelector("#skip").getBoundingClientRect().top >= 0`)
	b.keys(kb.Enter)
	focus("#main")
	b.tabTo("#theme")
	b.keys(kb.Enter)
	b.wait(`document.documentElement.dataset.theme === "light"`)
	b.keys(" ")
	b.wait(`document.documentElement.dataset.theme === "dark"`)
	b.tabTo("#sign-out")
	b.keys(kb.Enter)
	b.see("h1", "Sign in")
}

// contrast returns texts that are hard to read: their colour on what is behind them, by WCAG 2.
const contrast = `(() => {
	const channels = (c) => (c.match(/[\d.]+/g) ?? []).map(Number);
	const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
	const ground = (e) => {
		for (; e; e = e.parentElement) {
			const c = channels(getComputedStyle(e).backgroundColor);
			if (c.length && (c[3] ?? 1) === 1) return c;
		}
		return [255, 255, 255];
	};
	const bad = [];
	let looked = 0;
	const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
	while (walk.nextNode()) {
		const e = walk.currentNode.parentElement;
		if (!walk.currentNode.textContent.trim() || !e.checkVisibility() || e.closest(".unseen, defs, title, script, noscript")) continue;
		const s = getComputedStyle(e);
		const [a, b] = [light(channels(e instanceof SVGElement ? s.fill : s.color)), light(ground(e))];
		const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
		looked++;
		if (ratio < 4.5) bad.push(ratio.toFixed(2) + " " + walk.currentNode.textContent.slice(0, 40));
	}
	return looked < 10 ? ["only " + looked + " texts"] : bad;
})()`

// wide returns what is wider than the window, or than the box that it stands in.
const wide = `[...document.querySelectorAll("body *")].filter((e) => {
	if (!e.checkVisibility() || e.closest(".unseen, svg, thead")) return false;
	const box = e.closest(".card") ?? document.documentElement;
	return e.getBoundingClientRect().right > Math.min(document.documentElement.clientWidth, box.getBoundingClientRect().right) + 1;
}).slice(0, 5).map((e) => e.localName + "." + e.className + " " + e.textContent.slice(0, 30))`

// TestBrowserLooks keeps pictures of all views, dark and light, wide, narrow, and zoomed, and checks that all of it can be read.
func TestBrowserLooks(t *testing.T) {
	t.Parallel()
	st := startStub(t)
	fleetOf(st, "VIN0000001", same)
	browser := chromium(t)
	for _, scheme := range []string{"light", "dark"} {
		for _, size := range []struct {
			name          string
			width, height int64
		}{{"wide", 1280, 900}, {"narrow", 320, 640}, {"zoomed", 640, 450}} { // zoomed: 1280 by 900 at 200 %
			t.Run(scheme+" "+size.name, func(t *testing.T) {
				b := openTab(t, browser, st.url, "")
				b.media(scheme, "reduce")
				b.size(size.width, size.height)
				check := func(view string) {
					t.Helper()
					b.shot(view)
					for _, text := range eval[[]string](b, contrast) {
						t.Errorf("%s: contrast %s", view, text)
					}
					for _, e := range eval[[]string](b, wide) {
						t.Errorf("%s: wider than the window: %s", view, e)
					}
				}
				b.see("h1", "Sign in")
				b.signIn(stubUser, "wrong")
				b.see(".problem", "Wrong")
				check("login")
				b.signIn(stubUser, stubPassword)
				b.see(".tile", "18,204")
				b.see(".live-state", "Live")
				b.see(".node-name", "silent")
				st.send(transitionOf("VIN0000001", "offline", "online", "t1", same))
				st.send(transitionOf("VIN0000777", "online", "offline", "t2", same))
				b.see(".event", "VIN0000777")
				check("fleet")
				b.run(navigate("#/clients/VIN0000001"))
				b.see("#status", "for 25 min")
				b.wait(`document.querySelector(".timeline-svg .bar")`)
				check("client")
				b.run(chromedp.Evaluate[chromedp.Void](`document.querySelectorAll("details").forEach((d) => d.open = true)`))
				check("client unfolded")
				dark := eval[bool](b, `matchMedia("(prefers-color-scheme: dark)").matches`)
				ground := eval[string](b, `getComputedStyle(document.body).backgroundColor`)
				if dark != (scheme == "dark") || (ground == "rgb(244, 246, 248)") == dark {
					t.Errorf("in %s the ground is %s", scheme, ground)
				}
			})
		}
	}
}
