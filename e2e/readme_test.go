package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
	"github.com/stretchr/testify/require"
)

// pieces returns the pieces of a document in a language, in order.
func pieces(t *testing.T, document, language string) []string {
	t.Helper()
	text, err := os.ReadFile("../" + document)
	require.NoError(t, err)
	var found []string
	for _, piece := range regexp.MustCompile("(?s)```"+language+"\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
		found = append(found, piece[1])
	}
	return found
}

// Every page and script of the documents is tried below.
func TestEveryPageIsTried(t *testing.T) {
	t.Parallel()
	tried := map[string]map[string]int{ // the second is like the first
		"README.md": {"html": 1, "js": 1}, "README.zh-CN.md": {"html": 1, "js": 1}, "docs/page.md": {"html": 2, "js": 3},
		"docs/apps.md": {"html": 1, "js": 1},
	}
	for _, pattern := range []string{"*.md", "docs/*.md", "recipes/*.md", ".github/*.md"} {
		files, err := filepath.Glob("../" + pattern)
		require.NoError(t, err)
		require.NotEmpty(t, files)
		for _, file := range files {
			document := filepath.ToSlash(strings.TrimPrefix(file, ".."+string(filepath.Separator)))
			for _, language := range []string{"html", "js"} {
				require.Len(t, pieces(t, document, language), tried[document][language], "%s: %s", document, language)
			}
		}
	}
}

// startReadme runs the README's program with its page, which change may change,
// on a simulator.
func startReadme(t *testing.T, w window, change func(page string) string) *person {
	t.Helper()
	p := newWindow(t, w)
	simulator := alicaptchatest.Start(t, alicaptchatest.Config{Scenes: []string{"1a2b3c4d"}})
	page := pieces(t, "README.md", "html")[0]
	require.Contains(t, page, "https://o.alicdn.com/captcha-frontend/aliyunCaptcha/")
	page = strings.Replace(page, "https://o.alicdn.com/captcha-frontend/aliyunCaptcha/", simulator.URL+"/", 1)

	port, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := port.Addr().String()
	require.NoError(t, port.Close())
	source := pieces(t, "README.md", "go")[0]
	require.Contains(t, source, `Addr: ":8080"`)
	source = strings.Replace(source, `Addr: ":8080"`, fmt.Sprintf("Addr: %q", addr), 1)

	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "main.go"), []byte(source), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "login.html"), []byte(change(page)), 0o600))
	out, err := exec.Command("go", "build", "-o", filepath.Join(dir, "login"), filepath.Join(dir, "main.go")).CombinedOutput()
	require.NoError(t, err, "%s", out)
	site := exec.Command(filepath.Join(dir, "login"))
	site.Dir = dir
	site.Env = append(os.Environ(), "CAPTCHA_ENDPOINT="+simulator.URL,
		"ALIBABA_CLOUD_ACCESS_KEY_ID=test-id", "ALIBABA_CLOUD_ACCESS_KEY_SECRET=test-secret")
	require.NoError(t, site.Start())
	t.Cleanup(func() {
		site.Process.Kill()
		site.Wait()
	})
	p.site, p.simulator = "http://"+addr, simulator.URL
	require.Eventually(t, func() bool {
		resp, err := http.Get(p.site)
		if err == nil {
			resp.Body.Close()
		}
		return err == nil && resp.StatusCode == http.StatusOK
	}, 20*time.Second, 20*time.Millisecond)
	return p
}

// The README's program and its plain form work as they stand there.
func TestReadmeForm(t *testing.T) {
	t.Parallel()
	require.Len(t, pieces(t, "README.md", "html"), 1)
	p := startReadme(t, window{width: 360}, func(page string) string { return page })
	p.open("/")
	p.faults(`{"verifyCode":"F019"}`)
	p.entersAndSubmits("any")
	p.drags(1)
	p.sees("The captcha has expired or was used already. Please solve a new one.")
	eval[bool](p, `(document.querySelector("a").click(), true)`)
	p.faults(`{}`)
	p.entersAndSubmits("any")
	p.drags(1)
	p.sees(`user: "alice", verified: true`)
}

// So does the form that is sent by fetch.
func TestReadmeFetch(t *testing.T) {
	t.Parallel()
	scripts := pieces(t, "README.md", "js")
	require.Len(t, scripts, 1)
	p := startReadme(t, window{}, func(page string) string { return withSuccess(t, page, scripts[0]) })
	p.open("/")
	p.faults(`{"verifyCode":"F019"}`)
	p.entersAndSubmits("any")
	p.drags(1)
	p.sees("The captcha has expired or was used already. Please solve a new one.")
	p.faults(`{}`)
	p.entersAndSubmits("any")
	p.drags(1)
	p.sees(`user: "alice", verified: true`)
	eval[bool](p, `(say(""), true)`)
	p.entersAndSubmits("any") // with a new param
	p.drags(1)
	p.sees(`user: "alice", verified: true`)
}

// serve serves a page in front of a login that stands behind a gate, on a
// simulator that takes the vendor's place in the page.
func serve(t *testing.T, w window, page string) *person {
	t.Helper()
	p := newWindow(t, w)
	simulator := alicaptchatest.Start(t, alicaptchatest.Config{})
	captcha, err := alicaptcha.New(alicaptcha.Config{Verifier: simulator.Client(), SceneID: "login"})
	require.NoError(t, err)
	page = strings.NewReplacer("your-prefix", "simulator", "your-scene", "login",
		"https://o.alicdn.com/captcha-frontend/aliyunCaptcha/", simulator.URL+"/").Replace(page)

	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `<!doctype html><html lang="en"><title>Home</title><h1>You are in</h1>`)
	})
	mux.HandleFunc("GET /page", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `<!doctype html><html lang="en"><meta name="viewport" content="width=device-width">`+
			`<title>Login</title><link rel="icon" href="data:,"><h1>Log in</h1>`+page)
	})
	mux.Handle("POST /login", captcha.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var in struct{ Username, Password string }
		if json.NewDecoder(r.Body).Decode(&in) != nil || in.Username != "alice" || in.Password != "correct-horse" {
			http.Error(w, "no", http.StatusUnauthorized)
		}
	})))
	site := httptest.NewServer(mux)
	t.Cleanup(site.Close)
	p.site, p.simulator = site.URL, simulator.URL
	return p
}

func (p *person) entersAndSubmits(password string) {
	p.t.Helper()
	p.until(`typeof initAliyunCaptcha === "function" && ` + popup)
	eval[bool](p, `(document.querySelector("[name=username]").value = "alice", `+
		`document.querySelector("[name=password]").value = "`+password+`", `+
		`document.querySelector("form > button:last-of-type").click(), true)`)
}

// The page of docs/page.md works as it stands there.
func TestPageV3(t *testing.T) {
	t.Parallel()
	for _, width := range []int64{360, 1280} {
		t.Run(fmt.Sprint(width), func(t *testing.T) {
			t.Parallel()
			p := serve(t, window{width: width}, documented(t)["json"])
			p.open("/page")
			p.entersAndSubmits("wrong")
			p.drags(1)
			p.sees("Wrong username or password.")

			p.faults(`{"verifyCode":"F019"}`)
			p.entersAndSubmits("correct-horse")
			p.drags(1)
			p.sees("The captcha has expired or was used already. Please solve a new one.")

			// What is neither a rejection nor a wrong password is not called one.
			eval[bool](p, `(window.fetchBefore = fetch, fetch = (url, ...rest) => String(url).endsWith("/login") `+
				`? Promise.resolve(new Response("oops", {status: 500})) : fetchBefore(url, ...rest), true)`)
			p.entersAndSubmits("correct-horse")
			p.drags(1)
			p.sees("Something went wrong. Please try again.")
			eval[bool](p, `(fetch = (url, ...rest) => String(url).endsWith("/login") `+
				`? Promise.reject(new Error("offline")) : fetchBefore(url, ...rest), true)`)
			p.entersAndSubmits("correct-horse")
			p.drags(1)
			p.sees("The site cannot be reached. Please try again.")

			p.faults(`{}`)
			eval[bool](p, `(fetch = fetchBefore, true)`)
			p.entersAndSubmits("correct-horse")
			p.drags(1)
			p.sees("You are in")
		})
	}
}

// withScript returns the page of docs/page.md with another script in place of the last.
func withScript(t *testing.T, script string) string {
	t.Helper()
	page := pieces(t, "docs/page.md", "html")[0]
	return page[:strings.LastIndex(page, "<script>")] + "<script>\n" + script + "</script>\n"
}

// refusedByV2 waits until the widget says so, in any language, and takes the words away.
func (p *person) refusedByV2() {
	p.t.Helper()
	hint := widget + `.querySelector("#hint")`
	p.until(hint + `.classList.contains("bad")`)
	eval[bool](p, `(`+hint+`.className = "", true)`)
}

// The script for V2 in docs/page.md.
func TestPageV2(t *testing.T) {
	t.Parallel()
	p := serve(t, window{width: 360}, documented(t)["v2"])
	p.open("/page")
	p.entersAndSubmits("wrong")
	p.drags(1)
	p.sees("Wrong username or password.") // the captcha was passed, and the dialog is closed
	p.until("!" + opened)

	// What another challenge does not mend is said in the page.
	for fault, words := range map[string]string{
		`{"verifyCode":"F009"}`: "The captcha was not passed. Trying again will not help.",
		`{"verifyCode":"F010"}`: "There were too many attempts. Please wait at least an hour before you try again.",
		`{"status":503}`:        "The captcha cannot be checked right now. You can try again in 5 s.",
	} {
		p.faults(fault)
		p.entersAndSubmits("correct-horse")
		p.drags(1)
		p.sees(words)
		p.until("!" + opened)
	}

	p.faults(`{"verifyCode":"F001"}`)
	p.entersAndSubmits("correct-horse")
	p.drags(1)
	p.refusedByV2()
	p.until(opened)
	p.faults(`{}`)
	p.drags(1) // V2's new challenge is in the same dialog
	p.sees("You are in")
}
