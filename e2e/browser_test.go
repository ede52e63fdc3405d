// Package e2e tests the example in a real browser, the way a person uses it.
package e2e

import (
	"bufio"
	"context"
	_ "embed"
	"fmt"
	"iter"
	"net/http"
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
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/require"
)

var (
	browser context.Context // nil without a browser
	program string          // the path of the example's binary
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	path := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"} {
		if found, err := exec.LookPath(name); err == nil {
			path = found
			break
		}
	}
	switch {
	case path != "":
	case os.Getenv("CI") != "":
		fmt.Fprintln(os.Stderr, "e2e: Chromium is required in CI (Debian: apt-get install chromium)")
		return 1
	default:
		return m.Run() // every test is skipped, and says why
	}

	dir, err := os.MkdirTemp("", "e2e")
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "example")
	build := exec.Command("go", "build", "-o", program, "./example")
	build.Dir = ".."
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "e2e: %v\n%s", err, out)
		return 1
	}

	options := append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]),
		chromedp.ExecPath(path), chromedp.Flag("no-proxy-server", true))
	if os.Geteuid() == 0 {
		options = append(options, chromedp.NoSandbox) // Chromium has no sandbox for root
	}
	allocator, stop := chromedp.NewExecAllocator(context.Background(), options...)
	defer stop()
	var cancel context.CancelFunc
	browser, cancel = chromedp.NewContext(allocator)
	defer cancel()
	if err := chromedp.Do(browser); err != nil { // starts it
		fmt.Fprintln(os.Stderr, "e2e: Chromium does not start:", err)
		return 1
	}
	return m.Run()
}

// window describes the window of a person. The zero value is 1280 px wide, light and
// in English.
type window struct {
	width         int64
	language      string
	dark, noJS    bool
	touch         bool
	blockedScript bool
}

// person is a browser window, on a site that no other person uses.
type person struct {
	t               *testing.T
	ctx             context.Context
	site, simulator string

	mu      sync.Mutex
	console []string // errors
	allowed []string
}

// newPerson starts the example and opens a window.
func newPerson(t *testing.T, w window) *person {
	t.Helper()
	p := newWindow(t, w)
	site := exec.Command(program, "-addr", "127.0.0.1:0", "-simulator", "127.0.0.1:0")
	stdout, err := site.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, site.Start())
	t.Cleanup(func() {
		site.Process.Signal(os.Interrupt)
		require.NoError(t, site.Wait())
	})
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), ":")
		switch value = strings.TrimSpace(value); name {
		case "Site":
			p.site = value
		case "Simulator":
			p.simulator = value
		}
		if strings.HasPrefix(lines.Text(), "Ctrl-C") {
			return p
		}
	}
	require.Fail(t, "the example did not start")
	return nil
}

func needsBrowser(t *testing.T) {
	t.Helper()
	if browser == nil {
		t.Skip("Chromium is not installed, so nothing was tested in a browser (Debian: apt-get install chromium)")
	}
}

// newWindow opens a window without a site.
func newWindow(t *testing.T, w window) *person {
	t.Helper()
	needsBrowser(t)
	ctx, cancel := chromedp.NewContext(browser, chromedp.WithNewBrowserContext())
	t.Cleanup(cancel)
	ctx, cancel = context.WithTimeout(ctx, 60*time.Second)
	t.Cleanup(cancel)
	p := &person{t: t, ctx: ctx}
	go p.listen(chromedp.Console(ctx))
	t.Cleanup(p.checkConsole)

	if w.width == 0 {
		w.width = 1280
	}
	if w.language == "" {
		w.language = "en"
	}
	scheme := "light"
	if w.dark {
		scheme = "dark"
	}
	viewport := []chromedp.EmulateViewportOption{}
	if w.touch {
		viewport = append(viewport, chromedp.EmulateMobile, chromedp.EmulateTouch)
	}
	blocked := []*network.BlockPattern{}
	if w.blockedScript {
		blocked = append(blocked, &network.BlockPattern{URLPattern: "*://*:*/AliyunCaptcha.js", Block: true})
	}
	media := []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}
	headers := network.Headers{"Accept-Language": w.language}
	p.do(chromedp.EmulateViewport(w.width, 800, viewport...),
		call(emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: media}),
		call(emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: w.noJS}),
		call(network.Enable, network.EnableParams{}),
		call(network.SetExtraHTTPHeaders, network.SetExtraHTTPHeadersParams{Headers: headers}),
		call(network.SetBlockedURLs, network.SetBlockedURLsParams{URLPatterns: blocked}))
	return p
}

func call[P, R any](command cdp.Command[P, R], params P) chromedp.Action[chromedp.Void] {
	return chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, command, params)
		return err
	})
}

func (p *person) do(steps ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	require.NoError(p.t, chromedp.Do(p.ctx, steps...))
}

// listen records the browser's complaints: exceptions, errors that the page logs, and
// violations of the Content-Security-Policy, but not answers of 4xx and 5xx.
func (p *person) listen(messages iter.Seq2[chromedp.ConsoleMessage, error]) {
	for m, err := range messages {
		if err != nil {
			return // the window is closed
		}
		complains := m.IsException() || m.Type == chromedp.ConsoleError || m.Type == chromedp.ConsoleWarning
		if m.Source != "network" && complains {
			p.mu.Lock()
			p.console = append(p.console, m.Source+" "+m.String())
			p.mu.Unlock()
		}
	}
}

// allow permits complaints that contain text.
func (p *person) allow(text string) { p.allowed = append(p.allowed, text) }

// complaints returns the complaints so far.
func (p *person) complaints() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.console)
}

func (p *person) checkConsole() {
	for _, line := range p.complaints() {
		expected := slices.ContainsFunc(p.allowed, func(text string) bool { return strings.Contains(line, text) })
		require.True(p.t, expected, "unexpected in the console: %s", line)
	}
}

func (p *person) open(path string) {
	p.t.Helper()
	p.do(chromedp.Navigate(p.site + path))
}

// eval returns the value of a JavaScript expression in the page.
func eval[T any](p *person, expression string) T {
	p.t.Helper()
	v, err := chromedp.Run(p.ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
	require.NoError(p.t, err, expression)
	return v
}

// until waits until a JavaScript expression is true, across page loads.
func (p *person) until(expression string) {
	p.t.Helper()
	require.Eventually(p.t, func() bool {
		v, err := chromedp.Run(p.ctx, chromedp.Evaluate[bool]("Boolean("+expression+")"))
		return err == nil && v
	}, 20*time.Second, 20*time.Millisecond, expression)
}

// sees waits until text is visible.
func (p *person) sees(text string) {
	p.t.Helper()
	seen := func() string {
		v, _ := chromedp.Run(p.ctx, chromedp.Evaluate[string](`document.body?.innerText ?? ""`))
		return v
	}
	require.Eventually(p.t, func() bool { return strings.Contains(seen(), text) },
		20*time.Second, 20*time.Millisecond, "%q is not visible", text)
}

func (p *person) types(id, text string) {
	p.t.Helper()
	eval[bool](p, `((field) => { field.focus(); field.select(); return true; })(document.getElementById("`+id+`"))`)
	p.presses(text)
}

func (p *person) presses(keys string) {
	p.t.Helper()
	p.do(chromedp.KeyEvent(keys))
}

func (p *person) submits() {
	p.t.Helper()
	p.clicksOn("[type=submit]")
}

// clicksOn presses an element, and again if it has moved away under the pointer: an
// embedded challenge that appears moves the button. It finds the element by a position,
// since the nodes that chromedp.Click looks up are void when the page ends loading in
// between.
func (p *person) clicksOn(selector string) {
	p.t.Helper()
	element := `document.querySelector("` + selector + `")`
	for range 10 {
		at := p.settled(element)
		eval[bool](p, `(`+element+`.addEventListener("click", () => { window.missed = false; }), window.missed = true)`)
		p.do(chromedp.MouseClickXY(at.Left+at.Width/2, at.Top+at.Height/2))
		missed, err := chromedp.Run(p.ctx, chromedp.Evaluate[bool]("Boolean(window.missed)"))
		if err != nil || !missed {
			return // an error is that of a page that has gone
		}
	}
	require.Fail(p.t, "cannot be clicked", selector)
}

// settled scrolls to an element, and returns its position once it has stopped moving.
func (p *person) settled(element string) rect {
	p.t.Helper()
	var at rect
	require.Eventually(p.t, func() bool {
		was := at
		at, _ = chromedp.Run(p.ctx, chromedp.Evaluate[rect](`(() => { const e = `+element+`; e.scrollIntoView({block: "nearest"}); `+
			`const {left, top, width, height} = e.getBoundingClientRect(); `+
			`return {Left: left, Top: top, Width: width, Height: height}; })()`))
		return at == was && at.Width > 0 && at.Height > 0
	}, 20*time.Second, 20*time.Millisecond, element)
	return at
}

// logsIn fills the form and submits it.
func (p *person) logsIn(username, password string) {
	p.t.Helper()
	p.until(`typeof captcha === "object"`) // the widget is ready
	p.types("username", username)
	p.types("password", password)
	p.submits()
}

// The parts of the widget, in a shadow tree: a popup is in the body, an embedded one
// in the page's element.
const (
	popup  = `document.querySelector("#aliyunCaptcha-window-popup")`
	widget = `(` + popup + ` ?? document.querySelector("#captcha-element > div")).shadowRoot`
	opened = popup + `?.shadowRoot.querySelector("dialog[open]")`
)

type rect struct{ Left, Top, Width, Height float64 }

// slider waits for a slider that can be moved, and returns its position.
func (p *person) slider() rect {
	p.t.Helper()
	p.until(widget + `.querySelector("input:enabled")?.checkVisibility()`)
	return p.settled(widget + `.querySelector("input")`)
}

const thumb = 44 // the width of the slider's thumb in px

// drags moves the slider with the mouse by the given part of its length.
func (p *person) drags(part float64) {
	p.t.Helper()
	r := p.slider()
	x, y := r.Left+thumb/2, r.Top+r.Height/2
	p.do(chromedp.MouseEvent(input.DispatchMouseEventTypeMouseMoved, x, y),
		chromedp.MouseEvent(input.DispatchMouseEventTypeMousePressed, x, y, chromedp.ButtonLeft, chromedp.ClickCount(1)))
	for i := range 10 {
		to := x + (r.Width-thumb)*part*float64(i+1)/10
		p.do(chromedp.MouseEvent(input.DispatchMouseEventTypeMouseMoved, to, y, chromedp.ButtonLeft))
	}
	end := x + (r.Width-thumb)*part
	p.do(chromedp.MouseEvent(input.DispatchMouseEventTypeMouseReleased, end, y,
		chromedp.ButtonLeft, chromedp.ClickCount(1)))
}

// swipes moves the slider to its end with a finger.
func (p *person) swipes() {
	p.t.Helper()
	r := p.slider()
	touch := func(kind input.DispatchTouchEventType, points ...*input.TouchPoint) {
		p.do(call(input.DispatchTouchEvent, input.DispatchTouchEventParams{
			Type: kind, TouchPoints: append([]*input.TouchPoint{}, points...),
		}))
	}
	at := func(part float64) *input.TouchPoint {
		return &input.TouchPoint{X: r.Left + thumb/2 + (r.Width-thumb)*part, Y: r.Top + r.Height/2}
	}
	touch(input.DispatchTouchEventTypeTouchStart, at(0))
	for i := range 10 {
		touch(input.DispatchTouchEventTypeTouchMove, at(float64(i+1)/10))
	}
	touch(input.DispatchTouchEventTypeTouchEnd)
}

// faults sets the faults of the simulator.
func (p *person) faults(json string) {
	p.t.Helper()
	resp, err := http.Post(p.simulator+"/faults", "application/json", strings.NewReader(json))
	require.NoError(p.t, err)
	resp.Body.Close()
	require.Equal(p.t, 200, resp.StatusCode)
}

//go:embed audit.js
var audit string

// looks saves a picture of the window for people to look at, and checks what a program
// can check.
func (p *person) looks(name string) {
	p.t.Helper()
	// Two frames later, transitions and late fonts are done. Fonts are never ready on a
	// page that waits for a script.
	eval[bool](p, `(document.readyState === "complete" ? document.fonts.ready : Promise.resolve()).then(() => new Promise((done) => `+
		`requestAnimationFrame(() => requestAnimationFrame(() => done(true)))))`)
	p.picture(name)
	require.Empty(p.t, eval[[]string](p, audit), name)
}

// picture saves a picture of the window without checks, which need scripts.
func (p *person) picture(name string) {
	p.t.Helper()
	png, err := chromedp.Run(p.ctx, chromedp.CaptureScreenshot())
	require.NoError(p.t, err)
	require.NoError(p.t, os.MkdirAll("screenshots", 0o755))
	require.NoError(p.t, os.WriteFile(filepath.Join("screenshots", name+".png"), png, 0o644))
}
