//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/fetch"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// tab is a browser's tab on the web page of one query service, and what went wrong in it.
type tab struct {
	t      *testing.T
	ctx    context.Context
	origin string
	limit  time.Duration // of wait

	mu       sync.Mutex
	problems []string
	asked    []string // URLs
}

// chromium starts a browser for a test. Its contexts share nothing.
func chromium(t *testing.T) context.Context {
	t.Helper()
	var path string
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if found, err := exec.LookPath(name); err == nil {
			path = found
			break
		}
	}
	if path == "" {
		if os.Getenv("PRESENCE_E2E_REQUIRE_DOCKER") == "1" {
			t.Fatal("Chromium is not installed: e2e/images/install.sh chromium=chromium")
		}
		t.Log("*** SKIPPED: Chromium is not installed, so the web page was NOT tested: e2e/images/install.sh chromium=chromium ***")
		t.SkipNow()
	}
	options := append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]),
		chromedp.ExecPath(path), chromedp.Env("TZ=UTC"), chromedp.Flag("lang", "en-US"),
		// Nothing but this machine can be reached: what the page shows it has from its own service.
		chromedp.Flag("host-resolver-rules", "MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"), chromedp.Flag("no-proxy-server", true))
	if os.Getuid() == 0 {
		options = append(options, chromedp.NoSandbox)
	}
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("start %s: %v", path, err)
	}
	return ctx
}

// openTab opens the page. At the end of the test nothing may have gone wrong in it: no error or warning on the console, no exception, no violation of the
// content security policy, no dialog, no request that leaves the service.
func openTab(t *testing.T, browser context.Context, origin, fragment string) *tab {
	t.Helper()
	b := &tab{t: t, origin: origin, limit: patience}
	ctx, cancel := chromedp.NewContext(browser, chromedp.WithNewBrowserContext(), chromedp.WithListener(b.observe))
	t.Cleanup(cancel)
	b.ctx = ctx
	t.Cleanup(b.check)
	must(t, chromedp.Do(ctx)) // without a time limit: it opens the tab
	order(b, fetch.Enable, fetch.EnableParams{HandleAuthRequests: new(true)})
	order(b, emulation.SetTimezoneOverride, emulation.SetTimezoneOverrideParams{TimezoneID: "UTC"})
	b.size(1280, 900)
	b.run(chromedp.Navigate(origin + "/" + fragment))
	return b
}

// observe is called for everything that the browser tells; it must not wait.
func (b *tab) observe(event any) {
	switch e := event.(type) {
	case *runtime.EventConsoleAPICalled:
		var args []string
		for _, a := range e.Args {
			args = append(args, string(a.Value)+a.Description)
		}
		b.problem("console %s: %s", e.Type, strings.Join(args, " "))
	case *runtime.EventExceptionThrown:
		b.problem("exception: %v", e.ExceptionDetails)
	case *log.EventEntryAdded:
		// That a call was answered 401, 429 or 503 is for the page to show.
		if e.Entry.Source != log.EntrySourceNetwork || !strings.HasPrefix(e.Entry.URL, b.origin+"/v1/") {
			b.problem("log %s: %s %s", e.Entry.Source, e.Entry.Text, e.Entry.URL)
		}
	case *page.EventJavascriptDialogOpening:
		b.problem("a dialog opened: %s", e.Message)
		later(b, page.HandleJavaScriptDialog, page.HandleJavaScriptDialogParams{Accept: true})
	case *fetch.EventAuthRequired:
		b.problem("the browser would ask for a password itself, for %s", e.Request.URL)
		later(b, fetch.ContinueWithAuth, fetch.ContinueWithAuthParams{
			RequestID: e.RequestID, AuthChallengeResponse: &fetch.AuthChallengeResponse{Response: fetch.AuthChallengeResponseResponseCancelAuth}})
	case *fetch.EventRequestPaused:
		b.mu.Lock()
		b.asked = append(b.asked, e.Request.URL)
		b.mu.Unlock()
		later(b, fetch.ContinueRequest, fetch.ContinueRequestParams{RequestID: e.RequestID})
	}
}

// later gives the browser an order from observe.
func later[P, R any](b *tab, command cdp.Command[P, R], params P) {
	go func() {
		// The tab may have been closed meanwhile.
		_, _ = chromedp.Call(b.ctx, command, params)
	}()
}

// order gives the browser an order.
func order[P, R any](b *tab, command cdp.Command[P, R], params P) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, callTimeout)
	defer cancel()
	if _, err := chromedp.Call(ctx, command, params); err != nil {
		b.t.Fatalf("in the browser: %v", err)
	}
}

func (b *tab) problem(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.problems = append(b.problems, fmt.Sprintf(format, args...))
}

func (b *tab) check() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range b.problems {
		b.t.Errorf("in the browser: %s", p)
	}
	if len(b.asked) == 0 {
		b.t.Error("the browser asked for nothing")
	}
	for _, url := range b.asked {
		if !strings.HasPrefix(url, b.origin+"/") {
			b.t.Errorf("the page asked for %s, which is elsewhere", url)
		}
	}
}

func (b *tab) run(actions ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, callTimeout)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		b.shot("failed")
		b.t.Fatalf("in the browser: %v", err)
	}
}

// eval returns what an expression is on the page.
func eval[T any](b *tab, expression string) T {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, callTimeout)
	defer cancel()
	result, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression))
	if err != nil {
		b.t.Fatalf("in the browser: %v", err)
	}
	return result
}

// wait waits until an expression is true on the page.
func (b *tab) wait(expression string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, b.limit)
	defer cancel()
	var last string
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := chromedp.Run(ctx, chromedp.Evaluate[bool]("Boolean("+expression+")"))
		if err == nil && ok {
			return
		}
		if err != nil {
			last = err.Error()
		}
		select {
		case <-ctx.Done():
			b.shot("failed")
			text := eval[string](b, "document.body.innerText")
			b.t.Fatalf("in the browser this does not come true: %s %s\nthe page says:\n%s", expression, last, text)
		case <-tick.C:
		}
	}
}

// see waits until an element shows a text.
func (b *tab) see(selector, text string) {
	b.t.Helper()
	b.wait(fmt.Sprintf("[...document.querySelectorAll(%q)].some((e) => e.checkVisibility() && e.innerText.includes(%q))", selector, text))
}

// keys types, with the keyboard alone.
func (b *tab) keys(text string, modifiers ...chromedp.KeyOption) {
	b.t.Helper()
	b.run(chromedp.KeyEvent(text, modifiers...))
}

// press presses a key that types a character, as a keyboard does: what the page does with the key decides whether it is typed.
func (b *tab) press(key, code string) {
	b.t.Helper()
	order(b, input.DispatchKeyEvent, input.DispatchKeyEventParams{Type: input.DispatchKeyEventTypeKeyDown, Key: key, Code: code, Text: key})
	order(b, input.DispatchKeyEvent, input.DispatchKeyEventParams{Type: input.DispatchKeyEventTypeKeyUp, Key: key, Code: code})
}

// tabTo presses Tab until an element has the focus.
func (b *tab) tabTo(selector string) {
	b.t.Helper()
	for range 60 {
		b.keys(kb.Tab)
		if eval[bool](b, fmt.Sprintf("document.activeElement.matches(%q)", selector)) {
			return
		}
	}
	b.shot("failed")
	b.t.Fatalf("Tab does not lead to %s", selector)
}

func (b *tab) size(width, height int64) {
	b.t.Helper()
	order(b, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: width, Height: height, DeviceScaleFactor: 1, Mobile: width < 600})
}

func (b *tab) media(scheme, motion string) {
	b.t.Helper()
	order(b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{
		{Name: "prefers-color-scheme", Value: scheme}, {Name: "prefers-reduced-motion", Value: motion}}})
}

// signIn fills in the form.
func (b *tab) signIn(user, password string) {
	b.t.Helper()
	b.wait(`document.querySelector("#password")`)
	b.run(chromedp.SetValue(chromedp.CSS("#user"), user), chromedp.SetValue(chromedp.CSS("#password"), password), chromedp.Click(chromedp.CSS("form button[type=submit]")))
}

// shot keeps a picture of the whole page, for people.
func (b *tab) shot(name string) {
	b.t.Helper()
	dir := os.Getenv("PRESENCE_E2E_ARTIFACTS")
	if dir == "" {
		dir = "artifacts"
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		b.t.Errorf("keep a screenshot: %v", err)
		return
	}
	ctx, cancel := context.WithTimeout(b.ctx, callTimeout)
	defer cancel()
	png, err := chromedp.Run(ctx, chromedp.FullScreenshot(100))
	if err != nil {
		b.t.Errorf("take a screenshot: %v", err)
		return
	}
	file := strings.NewReplacer("/", "-", " ", "-").Replace(b.t.Name()+"-"+name) + ".png"
	if err := os.WriteFile(filepath.Join(dir, file), png, 0o644); err != nil {
		b.t.Errorf("keep a screenshot: %v", err)
	}
}

// navigate follows a link to another view.
func navigate(fragment string) chromedp.Action[chromedp.Void] {
	return chromedp.Evaluate[chromedp.Void](fmt.Sprintf("location.hash = %q", fragment))
}
