package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/stretchr/testify/require"
)

// documented returns the pages of the documents by their names. Each of them has
// to survive what the tests in this file do to it.
func documented(t *testing.T) map[string]string {
	t.Helper()
	form := pieces(t, "README.md", "html")[0]
	v3, scripts := pieces(t, "docs/page.md", "html")[0], pieces(t, "docs/page.md", "js")
	require.Len(t, scripts, 3)
	return map[string]string{
		"form":      form,
		"fetch":     withSuccess(t, form, pieces(t, "README.md", "js")[0]),
		"json":      v3,
		"traceless": withScript(t, scripts[0]),
		"embedded":  withScript(t, scripts[1]),
		"v2":        withScript(t, scripts[2]),
	}
}

// withSuccess returns the README's page with another success.
func withSuccess(t *testing.T, page, success string) string {
	t.Helper()
	before, rest, found := strings.Cut(page, "    success(captchaVerifyParam) {\n")
	require.True(t, found)
	_, after, found := strings.Cut(rest, "\n    },\n")
	require.True(t, found)
	return before + success + after
}

// stage is a page in front of a login behind a gate. Its vendor serves the script
// and the browser's side of the service, and does what a test says.
type stage struct {
	*person
	held     chan struct{} // if not nil, the script is sent once this is closed
	stub     bool          // the script is empty, as those that ad blockers put in
	policy   string        // the Content-Security-Policy of the page
	name     string        // of the page
	language string
	posts    atomic.Int32 // logins that were sent
}

// looks are those of the example, which the documents leave out.
var looks = func() string {
	css, err := os.ReadFile("../example/web/style.css")
	if err != nil {
		panic(err)
	}
	return strings.ReplaceAll(string(css), "[type=submit]", "form > button:last-of-type") +
		"body { max-width: 26rem; } #message:not(:empty) { padding: .625rem .75rem; background: var(--soft); border-left: 4px solid var(--accent); }"
}()

// stages serves page on a stage of its own.
func stages(t *testing.T, w window, page string) *stage {
	t.Helper()
	s := &stage{person: newWindow(t, w)}
	simulator := alicaptchatest.Start(t, alicaptchatest.Config{})
	vendor := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		isScript := r.URL.Path == "/AliyunCaptcha.js"
		if isScript && s.held != nil {
			select {
			case <-s.held:
			case <-r.Context().Done():
				return
			}
		}
		if isScript && s.stub {
			w.Header().Set("Content-Type", "text/javascript")
			return
		}
		simulator.ServeHTTP(w, r)
	}))
	t.Cleanup(vendor.Close)
	captcha, err := alicaptcha.New(alicaptcha.Config{Verifier: simulator.Client(), SceneID: "login"})
	require.NoError(t, err)

	page = strings.NewReplacer("your-prefix", "simulator", "your-scene", "login", "1a2b3c4d", "login",
		"https://o.alicdn.com/captcha-frontend/aliyunCaptcha/", vendor.URL+"/").Replace(page)
	if !strings.Contains(page, "<title>") {
		page = `<!doctype html><html lang="en"><meta name="viewport" content="width=device-width"><title>Log in</title>` + page
	}
	page = strings.Replace(page, "<form", `<link rel="icon" href="data:,"><style>`+looks+`</style><h1>Log in</h1><form`, 1)
	if w.language == "zh-CN" {
		require.Contains(t, page, `language: "en"`)
		page = strings.NewReplacer(`language: "en"`, `language: "cn"`, `lang="en"`, `lang="zh-CN"`).Replace(page)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "You are in") })
	mux.HandleFunc("GET /page", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		if s.policy != "" {
			w.Header().Set("Content-Security-Policy", s.policy)
		}
		fmt.Fprint(w, page)
	})
	login := captcha.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		in := struct{ Username, Password string }{r.PostFormValue("username"), r.PostFormValue("password")}
		if r.Header.Get("Content-Type") == "application/json" {
			json.NewDecoder(r.Body).Decode(&in)
		}
		if in.Username != "alice" || in.Password != "correct-horse" {
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprint(w, "Wrong username or password.")
			return
		}
		fmt.Fprint(w, "You are in")
	}))
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		s.posts.Add(1)
		login.ServeHTTP(w, r)
	})
	site := httptest.NewServer(mux)
	t.Cleanup(site.Close)
	s.site, s.simulator = site.URL, simulator.URL
	return s
}

// goes opens the page without waiting for its scripts.
func (s *stage) goes() {
	s.t.Helper()
	s.do(call(page.Navigate, page.NavigateParams{URL: s.site + "/page"}))
	s.until(`document.querySelector("form > button:last-of-type")`)
}

// enters fills the form and presses its button, whether or not the widget is ready.
func (s *stage) enters(password string) {
	s.t.Helper()
	s.do(chromedp.Evaluate[chromedp.Void](`document.querySelector("[name=username]").value = "alice"; ` +
		`document.querySelector("[name=password]").value = "` + password + `"`))
	s.do(chromedp.Click(chromedp.CSS("form > button:last-of-type")))
}

// titles are those of the challenge.
var titles = map[string]string{"en": "Please complete the verification", "zh-CN": "请完成安全验证"}

// passes solves the challenge that is shown, in the page's language. A traceless one is
// not shown.
func (s *stage) passes() {
	s.t.Helper()
	if s.name == "traceless" {
		return
	}
	s.until(opened)
	require.Equal(s.t, titles[s.language], eval[string](s.person, widget+`.querySelector("h2").textContent`))
	s.drags(1)
}

// each runs a test for the named pages, in both languages.
func each(t *testing.T, names string, test func(t *testing.T, s *stage)) {
	t.Helper()
	all := documented(t)
	for name := range strings.FieldsSeq(names) {
		require.Contains(t, all, name)
		for language := range titles {
			t.Run(name+" "+language, func(t *testing.T) {
				t.Parallel()
				s := stages(t, window{width: 360, language: language}, all[name])
				s.name, s.language = name, language
				test(t, s)
			})
		}
	}
}

const (
	stillLoading = "The captcha is still loading. Please wait."
	notLoaded    = "The captcha could not be loaded. Please check your connection and reload the page."
)

// A submit that comes before the script is not lost. The page says what it waits for,
// and the challenge starts by itself.
func TestSlowScript(t *testing.T) {
	t.Parallel()
	each(t, "form fetch json v2", func(t *testing.T, s *stage) {
		s.held = make(chan struct{})
		release := sync.OnceFunc(func() { close(s.held) })
		t.Cleanup(release)
		s.goes()
		for range 2 { // impatience does not start two challenges
			s.enters("correct-horse")
			s.sees(stillLoading)
		}
		s.looks("slow-script-" + s.name)
		require.Zero(t, s.posts.Load())
		release()
		s.passes()
		s.sees("You are in")
		require.EqualValues(t, 1, s.posts.Load())
	})
}

// The widget binds asynchronously, so that there is a moment in which the script is
// there and no challenge can start.
func TestClickBeforeReady(t *testing.T) {
	t.Parallel()
	each(t, "form fetch json v2", func(t *testing.T, s *stage) {
		s.before(`let real; Object.defineProperty(window, "initAliyunCaptcha", {set: (f) => { real = f; },
			get: () => (options) => { window.bind = () => real(options); }});`)
		s.goes()
		s.until("window.bind")
		s.enters("correct-horse")
		s.sees(stillLoading)
		require.Zero(t, s.posts.Load())
		eval[bool](s.person, `(bind(), true)`)
		s.passes()
		s.sees("You are in")
		require.EqualValues(t, 1, s.posts.Load())
	})
}

// A script that is blocked, or replaced by an empty one, is told of at once, and again
// when the form is submitted. Nothing is sent.
func TestBlockedScript(t *testing.T) {
	t.Parallel()
	for _, stub := range []bool{false, true} {
		t.Run(fmt.Sprint("stub=", stub), func(t *testing.T) {
			t.Parallel()
			each(t, "form fetch json traceless embedded v2", func(t *testing.T, s *stage) {
				s.allow("initAliyunCaptcha is not defined")
				s.allow("error") // the event
				if s.stub = stub; !stub {
					s.do(call(network.SetBlockedURLs, network.SetBlockedURLsParams{URLPatterns: []*network.BlockPattern{
						{URLPattern: "*://*:*/AliyunCaptcha.js", Block: true},
					}}))
				}
				s.goes()
				s.sees(notLoaded)
				s.enters("correct-horse")
				s.sees(notLoaded)
				s.looks("blocked-script-" + s.name)
				require.Zero(t, s.posts.Load())
				require.Equal(t, s.site+"/page", eval[string](s.person, "location.href"))
			})
		})
	}
}

// The texts of the server, in both languages.
var rejections = map[string]map[string]string{
	`{"verifyCode":"F019"}`: {
		"en":    "The captcha has expired or was used already. Please solve a new one.",
		"zh-CN": "验证已过期或已被使用。请重新完成验证。",
	},
	`{"status":500}`: {
		"en":    "The captcha cannot be checked right now. You can try again in 5 s.",
		"zh-CN": "暂时无法完成验证。请在 5 秒后重试。",
	},
}

// After a rejection, an outage and a wrong password the form can be sent again, with
// another param. Nothing but what the vendor documents is called.
func TestSolvedAgain(t *testing.T) {
	t.Parallel()
	each(t, "form fetch json v2", func(t *testing.T, s *stage) {
		s.before(documentedOnly)
		s.goes()
		for fault, text := range rejections {
			s.faults(fault)
			s.enters("correct-horse")
			s.passes()
			if s.name == "v2" && strings.Contains(fault, "F019") {
				s.until(widget + `.querySelector("#hint").classList.contains("bad")`) // its new challenge
				s.presses(kb.Escape)
				continue
			}
			s.sees(text[s.language])
			s.picture("again-" + s.name + "-" + s.language + "-" + regexp.MustCompile(`\W+`).ReplaceAllString(fault, ""))
			s.back()
		}
		s.faults(`{}`)
		s.enters("wrong")
		s.passes()
		s.sees("Wrong username or password.")
		s.back()
		s.enters("correct-horse")
		s.passes()
		s.sees("You are in")
	})
}

// documentedOnly takes the methods away from the widget's instance that the vendor does
// not document for V3.
const documentedOnly = `let real; Object.defineProperty(window, "initAliyunCaptcha", {set: (f) => { real = f; },
	get: () => (options) => real({...options, getInstance: (i) => options.getInstance(options.success
		? {show: i.show, hide: i.hide, startTracelessVerification: i.startTracelessVerification} : i)})});`

// back returns to the form after a full page load.
func (s *stage) back() {
	s.t.Helper()
	if s.name == "form" {
		s.goes()
	}
}
