package e2e

import (
	"testing"

	"github.com/chromedp/cdproto/page"
	"github.com/stretchr/testify/require"
)

// before runs a script in each page before the page's own scripts.
func (p *person) before(script string) {
	p.t.Helper()
	p.do(call(page.AddScriptToEvaluateOnNewDocument, page.AddScriptToEvaluateOnNewDocumentParams{Source: script}))
}

// widgets replaces initAliyunCaptcha by another function, whatever script loads.
func (p *person) widgets(initialize string) {
	p.t.Helper()
	p.before(`Object.defineProperty(window, "initAliyunCaptcha", {set() {}, get: () => ` + initialize + `});`)
}

// issues returns a new param, like the widget.
func (p *person) issues(scene string) string {
	p.t.Helper()
	return eval[string](p, `fetch("`+p.simulator+`/issue", {method: "POST", body: '{"sceneId":"`+scene+`"}'})`+
		`.then((r) => r.json()).then((a) => a.captchaVerifyParam)`)
}

func (p *person) fills() {
	p.t.Helper()
	p.types("username", "alice")
	p.types("password", "correct-horse")
}

// A widget that reports one challenge twice spends one param, and the result is the
// same as for one report.
func TestSuccessTwice(t *testing.T) {
	t.Parallel()
	t.Run("login", func(t *testing.T) {
		t.Parallel()
		p := newPerson(t, window{})
		p.open("/login")
		p.until(`typeof captcha === "object"`)
		p.fills()
		param := p.issues("login")
		eval[bool](p, `(restarts = 1, solved("`+param+`"), solved("`+param+`"), true)`)
		p.sees("Welcome, alice.")
		p.until("!" + opened)
	})
	t.Run("signup", func(t *testing.T) {
		t.Parallel()
		p := newPerson(t, window{})
		p.faults(`{"latency":"500ms"}`)
		p.open("/signup")
		p.until(`typeof captcha === "object"`)
		p.fills()
		param := p.issues("signup")
		eval[bool](p, `(solved("`+param+`"), setTimeout(() => solved("`+param+`"), 100), true)`)
		p.sees("Your account would now exist: alice")
	})
}

// However a widget fails, the page says so.
func TestBrokenWidgets(t *testing.T) {
	t.Parallel()
	const notLoaded = "The captcha could not be loaded. Please check your connection and reload the page."
	for name, widget := range map[string]string{
		"throws":               `() => { throw new Error("broken widget"); }`,
		"is not there":         `undefined`,
		"has an error at once": `({onError}) => onError({code: "broken widget"})`,
		"has an error when asked": `({getInstance, onError, button}) => { getInstance({}); ` +
			`document.querySelector(button).addEventListener("click", () => onError({code: "broken widget"})); }`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPerson(t, window{})
			p.allow("broken widget")
			p.allow("initAliyunCaptcha is not a function")
			p.allow("exception: Object") // how the console shows an error of the widget
			p.allow("error: ")
			p.widgets(widget)
			p.open("/login")
			p.fills()
			p.until(`document.readyState === "complete"`)
			for range 2 {
				p.submits()
				p.sees(notLoaded)
			}
			require.NotEmpty(t, p.complaints())
		})
	}

	t.Run("is late", func(t *testing.T) {
		t.Parallel()
		p := newPerson(t, window{})
		p.widgets(`({getInstance}) => { window.arrive = () => getInstance({}); }`)
		p.open("/login")
		p.fills()
		p.until(`window.arrive`)
		p.submits()
		p.sees("The captcha is still loading. Please wait.")
		eval[bool](p, `(arrive(), true)`)
		p.until(`message.textContent === ""`)
	})
	t.Run("has no refresh", func(t *testing.T) {
		t.Parallel()
		p := newPerson(t, window{})
		p.widgets(`({getInstance, success, button}) => { getInstance({}); ` +
			`document.querySelector(button).addEventListener("click", () => success(window.param)); }`)
		p.open("/login")
		p.until(`captcha`)
		p.fills()
		eval[bool](p, `(window.param = "`+p.issues("login")+`", true)`)
		p.submits()
		p.sees("Welcome, alice.")
	})
}

// An answer of a proxy in between is not a rejection, and the param is spent.
func TestAnswerThatIsNoJSON(t *testing.T) {
	t.Parallel()
	p := newPerson(t, window{})
	p.allow("is not valid JSON")
	p.open("/login")
	p.until(`typeof captcha === "object"`)
	eval[bool](p, `(window.fetchBefore = fetch, fetch = (url, ...rest) => String(url).endsWith("/login") `+
		`? Promise.resolve(new Response("<h1>502</h1>", {status: 502})) : fetchBefore(url, ...rest), true)`)
	p.fills()
	p.submits()
	p.drags(1)
	p.sees("Something went wrong. Please try again.")
	eval[bool](p, `(fetch = fetchBefore, true)`)
	p.submits()
	p.drags(1)
	p.sees("Welcome, alice.")
}

// After a page load that the person stops, the form can be sent again.
func TestSignupStopped(t *testing.T) {
	t.Parallel()
	p := newPerson(t, window{})
	// In the page, because the test cannot reach it while it loads another page.
	p.before(`window.setTimeoutBefore = setTimeout; window.setTimeout = (f, ms) => setTimeoutBefore(f, ms / 10);
		window.addEventListener("beforeunload", ` +
		`() => setTimeoutBefore(() => { window.said = message.textContent; stop(); }, 300));`)
	p.faults(`{"hang":"headers"}`)
	p.open("/signup")
	p.until(`typeof captcha === "object"`)
	p.fills()
	p.submits()
	p.drags(1)
	p.until(`window.said === "Sending…"`)
	p.faults(`{}`)
	p.until(`submit.getAttribute("aria-disabled") === "false" && message.textContent === ""`)
	p.submits()
	p.drags(1)
	p.sees("Your account would now exist: alice")
}
