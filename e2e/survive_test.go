package e2e

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html/template"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

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
	opens    atomic.Bool  // the server's Policy lets F023 through
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

// stages serves page on a stage of its own. query goes to the URL of the script.
func stages(t *testing.T, w window, page, query string, cfg alicaptchatest.Config) *stage {
	t.Helper()
	s := &stage{person: newWindow(t, w)}
	simulator := alicaptchatest.Start(t, cfg)
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
	captcha, err := alicaptcha.New(alicaptcha.Config{
		Verifier: simulator.Client(), SceneID: "login", Logger: slog.New(slog.DiscardHandler),
	})
	require.NoError(t, err)
	open, err := alicaptcha.New(alicaptcha.Config{
		Verifier: simulator.Client(), SceneID: "login", Logger: slog.New(slog.DiscardHandler),
		Policy: alicaptcha.Policy{alicaptcha.F023: alicaptcha.Allow()},
	})
	require.NoError(t, err)

	page = strings.NewReplacer("your-prefix", "simulator", "your-scene", "login", "1a2b3c4d", "login",
		"https://o.alicdn.com/captcha-frontend/aliyunCaptcha/AliyunCaptcha.js", vendor.URL+"/AliyunCaptcha.js"+query).Replace(page)
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
	login := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
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
	})
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		s.posts.Add(1)
		gate := captcha
		if s.opens.Load() {
			gate = open
		}
		gate.Handler(login).ServeHTTP(w, r)
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
	s.clicksOn("form > button:last-of-type")
}

// titles are those of the challenge.
var titles = map[string]string{"en": "Please complete the verification", "zh-CN": "请完成安全验证"}

// passes solves the challenge that is shown, in the page's language.
func (s *stage) passes() {
	s.t.Helper()
	switch s.name {
	case "traceless": // nothing is shown
		return
	case "embedded":
		s.slider()
		require.Equal(s.t, map[string]string{"en": "Slide to the end", "zh-CN": "滑动到最右侧"}[s.language],
			eval[string](s.person, widget+`.querySelector("label").textContent`))
		s.drags(1)
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
				query := map[string]string{"traceless": "?traceless"}[name]
				s := stages(t, window{width: 360, language: language}, all[name], query, alicaptchatest.Config{})
				s.name, s.language = name, language
				test(t, s)
			})
		}
	}
}

const (
	everyPage    = "form fetch json traceless embedded v2"
	stillLoading = "The captcha is still loading. Please wait."
	notLoaded    = "The captcha could not be loaded. Please check your connection and reload the page."
)

// A submit that comes before the script is not lost. The page says what it waits for,
// and the challenge starts by itself.
func TestSlowScript(t *testing.T) {
	t.Parallel()
	each(t, everyPage, func(t *testing.T, s *stage) {
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
		if s.name != "traceless" {
			s.slider()
			s.looks("challenge-" + s.name)
		}
		s.passes()
		s.sees("You are in")
		require.EqualValues(t, 1, s.posts.Load())
	})
}

// bindsLater keeps the widget from binding until the test calls bind.
const bindsLater = `let real; Object.defineProperty(window, "initAliyunCaptcha", {set: (f) => { real = f; },
	get: () => (options) => { window.bind = () => real(options); }});`

// The widget binds asynchronously, so that there is a moment in which the script is
// there and no challenge can start.
func TestClickBeforeReady(t *testing.T) {
	t.Parallel()
	each(t, everyPage, func(t *testing.T, s *stage) {
		s.before(bindsLater)
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
			each(t, everyPage, func(t *testing.T, s *stage) {
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
	each(t, everyPage, func(t *testing.T, s *stage) {
		s.before(documentedOnly)
		s.goes()
		for fault, text := range rejections {
			s.faults(fault)
			s.enters("correct-horse")
			s.passes()
			if s.name == "v2" && strings.Contains(fault, "F019") {
				s.until(widget + `.querySelector("#hint").classList.contains("bad")`) // its new challenge
				s.presses(kb.Escape)
				s.until("!" + opened + ` && document.getElementById("message").textContent`) // which moves the button
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

// A param of V3 is good for 90 s. The embedded challenge asks for another one if it was
// solved too long before the form was sent.
func TestEmbeddedTooEarly(t *testing.T) {
	t.Parallel()
	s := stages(t, window{width: 360}, documented(t)["embedded"], "", alicaptchatest.Config{})
	s.goes()
	s.until("begin")
	s.drags(1)
	s.until("param")
	eval[bool](s.person, `(solvedAt -= 90_000, true)`)
	s.enters("correct-horse")
	s.sees("Please complete the captcha.")
	s.looks("embedded-too-early")
	require.Zero(t, s.posts.Load())
	s.drags(1)
	s.sees("You are in")
	require.EqualValues(t, 1, s.posts.Load())
}

// A risky visitor of a traceless scene has a challenge after all, and may close it.
func TestTracelessRisk(t *testing.T) {
	t.Parallel()
	s := stages(t, window{width: 360}, documented(t)["traceless"], "?traceless&fail=F001,F001", alicaptchatest.Config{})
	s.goes()
	s.enters("correct-horse")
	s.until(opened)
	s.looks("traceless-risk")
	s.presses(kb.Escape)
	s.sees("Please complete the captcha to log in.")
	s.enters("correct-horse")
	s.until(opened)
	s.drags(1)
	s.sees("You are in")
}

// A person who closes the challenge is told, and can go on.
func TestClosed(t *testing.T) {
	t.Parallel()
	each(t, "form fetch json v2", func(t *testing.T, s *stage) {
		s.goes()
		s.enters("correct-horse")
		s.until(opened)
		s.presses(kb.Escape)
		s.sees("Please complete the captcha to log in.")
		require.Zero(t, s.posts.Load())
		s.enters("correct-horse")
		s.passes()
		s.sees("You are in")
	})
}

// A drill: the Content-Security-Policy forgets the service's hosts. The widget hands over
// a param for disaster recovery, which the server rejects, and the person is told what
// helps: to load the page again. That is so once the policy is mended.
func TestFailover(t *testing.T) {
	t.Parallel()
	each(t, everyPage, func(t *testing.T, s *stage) {
		s.allow("INIT_FAIL")
		s.allow("Content Security Policy")
		s.allow("error: ") // what the page logs
		s.policy = "connect-src 'self'"
		s.goes()
		s.sees(notLoaded)
		for range 2 {
			s.enters("correct-horse")
			s.until(`document.getElementById("message").textContent === "` + notLoaded + `"`)
		}
		s.looks("failover-" + s.name)
		require.Equal(t, s.site+"/page", eval[string](s.person, "location.href"))
		require.True(t, eval[bool](s.person, "!"+opened))
		s.policy = ""
		s.goes()
		s.enters("correct-horse")
		s.passes()
		s.sees("You are in")
	})
}

// Where the server's Policy lets disaster recovery through, the page does.
func TestFailoverLetThrough(t *testing.T) {
	t.Parallel()
	s := stages(t, window{width: 360}, documented(t)["v2"], "?down", alicaptchatest.Config{})
	s.allow("INIT_FAIL")
	s.allow("error: ")
	s.opens.Store(true)
	s.goes()
	s.sees(notLoaded)
	s.enters("correct-horse")
	s.sees("You are in")
}

// The line for encrypted mode, in a template, satisfies the service.
func TestEncryptedMode(t *testing.T) {
	t.Parallel()
	key := base64.StdEncoding.EncodeToString([]byte("0123456789abcdef0123456789abcdef"))
	sceneKey, err := alicaptcha.NewSceneKey(key)
	require.NoError(t, err)
	encrypted, err := sceneKey.Encrypt("login", time.Minute)
	require.NoError(t, err)
	const scene = `    SceneId: "your-scene",` + "\n"
	page := strings.Replace(documented(t)["json"], scene, pieces(t, "docs/page.md", "html")[1], 1)
	require.Contains(t, page, "EncryptedSceneId: ")
	parsed, err := template.New("page").Parse(page)
	require.NoError(t, err)
	var shown strings.Builder
	require.NoError(t, parsed.Execute(&shown, map[string]string{"EncryptedSceneID": encrypted}))
	s := stages(t, window{}, shown.String(), "", alicaptchatest.Config{EKey: key})
	s.goes()
	s.enters("correct-horse")
	s.until(opened)
	s.drags(1)
	s.sees("You are in")
}
