//go:build e2e

package e2e

import (
	"fmt"
	"testing"

	"github.com/chromedp/chromedp"

	"github.com/mqtt-presence/presence/services/presence"
)

// TestBrowserLive watches real MQTT clients come and go, on the page of an embedded Presence.
func TestBrowserLive(t *testing.T) {
	t.Parallel()
	p := startInProcess(t, func(*presence.Config) {})
	tgt := p.target(t)
	const id = "page/änderung #1?<b>" // what a path, a fragment and HTML would each take apart
	browser := chromium(t)
	b := openTab(t, browser, "http://"+tgt.REST, "")
	b.signIn(tgt.User, "wrong")
	b.see(".problem", "Wrong user or password.")
	b.signIn(tgt.User, tgt.Password)
	b.see("h1", "Fleet")
	b.see(".live-state", "Live")
	b.see(".feeds", "ok")
	b.see(".node-name", "ok")

	// The fleet sees each transition, and counts follow.
	first := connect(t, tgt, id)
	b.see(".event", id)
	b.wait(`document.querySelector(".tile.online .tile-count").innerText === "1"`)
	b.shot("fleet")

	// Suggested by what its ID begins with, and found.
	b.run(chromedp.Focus(chromedp.CSS("#search")))
	b.keys("page/")
	b.see("#suggestions li", id)
	b.run(chromedp.Click(chromedp.CSS("#suggestions li")))
	b.see("h1", id)
	b.see("#status-word", "online")
	b.see("#status", "Fresh")
	b.see(".rule", "The newest connection has no end")
	b.wait(`document.querySelectorAll(".timeline-svg .bar.open").length === 1`)
	b.see(".live-state", "Live")

	// Its status changes by itself, sooner than the page would ask anyway, and is announced.
	b.limit = callTimeout
	must(t, first.disconnect())
	b.see("#status-word", "offline")
	b.see("#status", "Disconnected in order")
	b.see(".event", "offline")
	b.wait(fmt.Sprintf(`document.querySelector("#announce").textContent.startsWith(%q)`, id+" is offline"))
	b.wait(`document.querySelectorAll(".timeline-svg .bar.closed").length === 1 && !document.querySelector(".timeline-svg .bar.open")`)
	connect(t, tgt, id)
	b.see("#status-word", "online")
	second := connect(t, tgt, id)
	b.wait(`document.querySelectorAll(".timeline-svg .bar").length === 3`)
	must(t, second.kill())
	b.see("#status", "Connection lost")
	b.run(chromedp.Evaluate[chromedp.Void](`document.querySelectorAll("details").forEach((d) => d.open = true)`))
	b.see(".timeline table", "discarded by a newer connection")
	b.see("[data-part=facts] td", "connected")
	b.shot("client")
	connect(t, tgt, id)
	b.see("#status-word", "online")
	if !eval[bool](b, `[...document.querySelectorAll("details")].every((d) => d.open)`) {
		t.Error("what was unfolded did not stay so")
	}

	// The address is enough to come back, in a tab of its own.
	address := eval[string](b, "location.hash")
	other := openTab(t, browser, "http://"+tgt.REST, address)
	other.signIn(tgt.User, tgt.Password)
	other.see("h1", id)
	other.see("#status-word", "online")

	// A client never seen, and one whose first transition comes while it is shown.
	other.run(navigate("#/clients/page-never-seen"))
	other.see("#status", "never seen")
	other.see(".live-state", "Live")
	connect(t, tgt, "page-never-seen")
	other.see("#status-word", "online")
	other.run(navigate("#/clients/..%2F..%2Fv1"))
	other.see("#status", "never seen")
	other.run(navigate("#/clients/.."))
	other.see("#status", "never seen")
}
