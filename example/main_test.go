package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"html"
	"io"
	"log/slog"
	"maps"
	"mime/multipart"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
	"github.com/stretchr/testify/require"
)

// If the environment has this variable, the test binary runs the program.
const asProgram = "EXAMPLE_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// lastLine is the last line that the program prints when it starts.
const lastLine = "Ctrl-C stops it."

var anyPort = []string{"-addr", "127.0.0.1:0", "-simulator", "127.0.0.1:0"}

var realEnv = map[string]string{
	"ALIBABA_CLOUD_ACCESS_KEY_ID":     "made-up-id",
	"ALIBABA_CLOUD_ACCESS_KEY_SECRET": "made-up-secret",
	"CAPTCHA_PREFIX":                  "made-up-prefix",
	"CAPTCHA_REGION":                  "cn",
	"CAPTCHA_SCENE_LOGIN":             "scene-a",
	"CAPTCHA_SCENE_SIGNUP":            "scene-b",
}

func env(vars map[string]string) func(string) string {
	return func(name string) string { return vars[name] }
}

// client does not use a proxy from the environment, and closes each connection after
// its request.
var client = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

// running is a program that has started.
type running struct {
	lines    []string
	stop     func() error // cancels the context of run, and returns its error
	commands []string
}

// start calls run and waits until it serves.
func start(t *testing.T, vars map[string]string) running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	stdout, printed := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := run(ctx, anyPort, env(vars), printed, io.Discard)
		printed.CloseWithError(io.EOF)
		done <- err
	}()
	stopped := false
	p := running{stop: func() error {
		cancel()
		if stopped {
			return nil
		}
		stopped = true
		select {
		case err := <-done:
			return err
		case <-time.After(20 * time.Second):
			t.Fatal("run did not return after its context was done")
			return nil
		}
	}}
	t.Cleanup(func() { require.NoError(t, p.stop()) })
	p.lines = startLines(t, stdout)
	for _, line := range p.lines {
		if strings.Contains(line, "curl ") {
			p.commands = append(p.commands, line)
		}
	}
	return p
}

// startLines reads the lines that the program prints when it starts.
func startLines(t *testing.T, stdout io.Reader) []string {
	t.Helper()
	var lines []string
	for in := bufio.NewScanner(stdout); in.Scan(); {
		lines = append(lines, in.Text())
		if in.Text() == lastLine {
			return lines
		}
	}
	require.Fail(t, "the program ended before it served", "%q", lines)
	return nil
}

// value returns the text after label in the lines of the start.
func (p running) value(t *testing.T, label string) string {
	t.Helper()
	for _, line := range p.lines {
		if v, ok := strings.CutPrefix(line, label+":"); ok {
			return strings.TrimSpace(v)
		}
	}
	require.Fail(t, "not printed", label)
	return ""
}

type response struct {
	status int
	header http.Header
	body   string
}

func post(t *testing.T, url, contentType, body string) response {
	t.Helper()
	resp, err := client.Post(url, contentType, strings.NewReader(body))
	require.NoError(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return response{resp.StatusCode, resp.Header, string(b)}
}

// mint asks the simulator for a param.
func (p running) mint(t *testing.T, request string) string {
	t.Helper()
	issued := post(t, p.value(t, "Simulator")+"/issue", "application/json", request)
	var answer struct{ CaptchaVerifyParam string }
	require.NoError(t, json.Unmarshal([]byte(issued.body), &answer), issued.body)
	require.NotEmpty(t, answer.CaptchaVerifyParam, issued.body)
	return answer.CaptchaVerifyParam
}

func (p running) login(t *testing.T, username, password, param string) response {
	t.Helper()
	body, err := json.Marshal(map[string]string{"username": username, "password": password, "captchaVerifyParam": param})
	require.NoError(t, err)
	return post(t, p.value(t, "Site")+"/login", "application/json", string(body))
}

// requireRejected checks that the captcha refused the request.
func requireRejected(t *testing.T, got response, status int, reason string) {
	t.Helper()
	require.Equal(t, status, got.status, got.body)
	require.Equal(t, "application/problem+json", got.header.Get("Content-Type"))
	require.Contains(t, got.body, `"reason":"`+reason+`"`)
	require.NotContains(t, got.body, "verified")
}

const passed = `"verified":true,"code":"T001"`

func TestLogin(t *testing.T) {
	p := start(t, nil)
	param := p.mint(t, `{"sceneId":"login"}`)

	got := p.login(t, "alice", "correct-horse", param)
	require.Equal(t, http.StatusOK, got.status, got.body)
	require.Equal(t, "application/json", got.header.Get("Content-Type"))
	require.Contains(t, got.body, passed)
	var body struct {
		User    string
		Captcha struct{ CertifyID, RequestID string }
	}
	require.NoError(t, json.Unmarshal([]byte(got.body), &body))
	require.Equal(t, "alice", body.User)
	require.NotEmpty(t, body.Captcha.CertifyID)
	require.NotEmpty(t, body.Captcha.RequestID)

	requireRejected(t, p.login(t, "alice", "correct-horse", param), http.StatusForbidden, "captcha_expired")
}

func TestLoginRefusesAnyOtherPairAfterTheCaptcha(t *testing.T) {
	p := start(t, nil)
	for _, pair := range [][2]string{
		{"alice", "wrong"}, {"alice", ""}, {"alice", "correct-horse "},
		{"bob", "correct-horse"}, {"", ""}, {"correct-horse", "alice"},
	} {
		got := p.login(t, pair[0], pair[1], p.mint(t, `{"sceneId":"login"}`))
		require.Equal(t, http.StatusUnauthorized, got.status, "%q: %s", pair, got.body)
		require.Contains(t, got.body, passed)
		require.NotContains(t, got.body, `"user"`)
	}
	// Without a captcha, the answer does not depend on the password.
	requireRejected(t, p.login(t, "alice", "wrong", ""), http.StatusBadRequest, "captcha_missing")
}

func TestLoginRejections(t *testing.T) {
	p := start(t, nil)
	login := p.value(t, "Site") + "/login"

	none := post(t, login, "application/json", `{"username":"alice","password":"correct-horse"}`)
	requireRejected(t, none, http.StatusBadRequest, "captcha_missing")
	requireRejected(t, p.login(t, "alice", "correct-horse", "junk"), http.StatusBadRequest, "captcha_invalid")
	foreign := p.login(t, "alice", "correct-horse", p.mint(t, `{"sceneId":"signup"}`))
	requireRejected(t, foreign, http.StatusForbidden, "captcha_rejected")

	limited := p.login(t, "alice", "correct-horse", p.mint(t, `{"sceneId":"login","code":"F010"}`))
	requireRejected(t, limited, http.StatusTooManyRequests, "captcha_rate_limited")
	require.Equal(t, "3600", limited.header.Get("Retry-After"))
}

func TestLoginReadsItsBodyStrictly(t *testing.T) {
	p := start(t, nil)
	param := func() string { return `"captchaVerifyParam":"` + p.mint(t, `{"sceneId":"login"}`) + `"` }
	const pair = `"username":"alice","password":"correct-horse"`
	for name, tc := range map[string]struct {
		body   string
		status int
	}{
		"unknown member":   {`{` + pair + `,` + param() + `,"admin":true}`, http.StatusBadRequest},
		"another document": {`{` + pair + `,` + param() + `}{}`, http.StatusBadRequest},
		"broken tail":      {`{` + param() + `,` + pair, http.StatusBadRequest},
		"not a string":     {`{` + param() + `,"username":1}`, http.StatusBadRequest},
		"endless": {
			`{` + param() + `,"username":"` + strings.Repeat("a", maxBodyBytes) + `"}`,
			http.StatusRequestEntityTooLarge,
		},
		"trailing whitespace": {`{` + pair + `,` + param() + "}\n", http.StatusOK},
	} {
		t.Run(name, func(t *testing.T) {
			got := post(t, p.value(t, "Site")+"/login", "application/json", tc.body)
			require.Equal(t, tc.status, got.status, got.body)
			require.Equal(t, "application/json", got.header.Get("Content-Type"))
			require.Contains(t, got.body, passed)
		})
	}
}

func TestSignup(t *testing.T) {
	p := start(t, nil)
	signup := p.value(t, "Site") + "/signup"
	fields := func(username, password string) url.Values {
		return url.Values{
			"captchaVerifyParam": {p.mint(t, `{"sceneId":"signup"}`)},
			"username":           {username},
			"email":              {"bob+news@example.com"},
			"password":           {password},
		}
	}
	urlencoded := func(v url.Values) response {
		return post(t, signup, "application/x-www-form-urlencoded", v.Encode())
	}
	multiparted := func(v url.Values) response {
		var body bytes.Buffer
		form := multipart.NewWriter(&body)
		for name := range v {
			require.NoError(t, form.WriteField(name, v.Get(name)))
		}
		require.NoError(t, form.Close())
		return post(t, signup, form.FormDataContentType(), body.String())
	}

	for name, send := range map[string]func(url.Values) response{"urlencoded": urlencoded, "multipart": multiparted} {
		t.Run(name, func(t *testing.T) {
			got := send(fields("bob & co", "12345678"))
			require.Equal(t, http.StatusCreated, got.status, got.body)
			require.Contains(t, got.body, "bob &amp; co &lt;bob&#43;news@example.com&gt;")

			// A form that is refused after the captcha is shown again with its values.
			for _, v := range []url.Values{fields("", "12345678"), fields("bob", "1234567")} {
				got = send(v)
				require.Equal(t, http.StatusUnprocessableEntity, got.status, got.body)
				require.Equal(t, "text/html; charset=utf-8", got.header.Get("Content-Type"))
				require.Contains(t, got.body, `value="bob&#43;news@example.com"`)
				require.NotContains(t, got.body, "1234567")
			}

			v := fields("bob", "12345678")
			v.Del("captchaVerifyParam")
			requireRejected(t, send(v), http.StatusBadRequest, "captcha_missing")
		})
	}
	t.Run("broken form", func(t *testing.T) {
		got := post(t, signup, "application/x-www-form-urlencoded", fields("bob", "12345678").Encode()+"&x=%zz")
		require.Equal(t, http.StatusBadRequest, got.status, got.body)
		require.Contains(t, got.body, "not a form")
		require.Contains(t, got.body, passed)
	})
}

func TestCrossOriginFormsSpendNoVerification(t *testing.T) {
	p := start(t, nil)
	param := p.mint(t, `{"sceneId":"signup"}`)
	form := url.Values{"captchaVerifyParam": {param}, "username": {"bob"}, "password": {"12345678"}}.Encode()
	signup := p.value(t, "Site") + "/signup"
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, signup, strings.NewReader(form))
	require.NoError(t, err)
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Origin", "https://elsewhere.example")
	resp, err := client.Do(r)
	require.NoError(t, err)
	resp.Body.Close()
	require.Equal(t, http.StatusForbidden, resp.StatusCode)

	got := post(t, p.value(t, "Site")+"/signup", "application/x-www-form-urlencoded", form)
	require.Equal(t, http.StatusCreated, got.status, got.body)
}

// curlStatus matches the status line that curl -i prints.
var curlStatus = regexp.MustCompile(`(?m)^HTTP/1\.1 (\d+)`)

func TestPrintedCommands(t *testing.T) {
	for _, tool := range []string{"sh", "curl", "sed"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed, so the printed commands cannot be tried", tool)
		}
	}
	p := start(t, nil)
	require.Len(t, p.commands, 3)
	script := exec.CommandContext(t.Context(), "sh", "-c", strings.Join(p.commands, "\n"))
	script.Env = append(os.Environ(), "no_proxy=127.0.0.1")
	out, err := script.Output()
	require.NoError(t, err)
	statuses := curlStatus.FindAllStringSubmatch(string(out), -1)
	require.Len(t, statuses, 2, "%s", out)
	require.Equal(t, "200", statuses[0][1], "%s", out)
	require.Equal(t, "403", statuses[1][1], "%s", out)
	require.Equal(t, 1, strings.Count(string(out), passed), "%s", out)
	require.Contains(t, string(out), `"reason":"captcha_expired"`)
}

func TestStartPrintsWhatTheSimulatorAccepts(t *testing.T) {
	p := start(t, map[string]string{"ALIBABA_CLOUD_SECURITY_TOKEN": "alone it does not count"})
	require.Equal(t, "test-id", p.value(t, "Access key ID"))
	require.Equal(t, "test-secret", p.value(t, "Access key secret"))
	require.Equal(t, "login", p.value(t, "Login scene"))
	require.Equal(t, "signup", p.value(t, "Signup scene"))
	for _, label := range []string{"Site", "Simulator"} {
		u, err := url.Parse(p.value(t, label))
		require.NoError(t, err)
		require.NotEqual(t, "0", u.Port())
	}
}

func get(t *testing.T, url, language string) response {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	require.NoError(t, err)
	r.Header.Set("Accept-Language", language)
	resp, err := client.Do(r)
	require.NoError(t, err)
	defer resp.Body.Close()
	require.Equal(t, http.StatusOK, resp.StatusCode)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return response{resp.StatusCode, resp.Header, string(body)}
}

var paths = []string{"/", "/login", "/signup", "/adaptive"}

func TestPages(t *testing.T) {
	p := start(t, nil)
	for _, path := range paths {
		for language, lang := range map[string]string{
			"en": "en", "zh-CN,zh;q=0.9": "zh-CN", "fr": "en", strings.Repeat("zh,", 1000): "en",
		} {
			got := get(t, p.value(t, "Site")+path, language)
			require.Equal(t, "text/html; charset=utf-8", got.header.Get("Content-Type"))
			require.Equal(t, lang, got.header.Get("Content-Language"))
			require.Equal(t, "Accept-Language", got.header.Get("Vary"))
			require.Equal(t, "no-store", got.header.Get("Cache-Control"))
			require.Equal(t, "nosniff", got.header.Get("X-Content-Type-Options"))
			require.Equal(t, "same-origin", got.header.Get("Referrer-Policy"))
			require.Contains(t, got.body, `<html lang="`+lang+`">`)
			require.NotContains(t, got.body, "alicdn.com")
			require.NotContains(t, got.body, "test-secret")
			require.NotContains(t, got.body, "no value")
			if path != "/" {
				require.Contains(t, got.body, `action="`+path+`"`)
				require.Contains(t, got.body, `src="`+p.value(t, "Simulator")+`/AliyunCaptcha.js"`)
			}
		}
	}
	require.Contains(t, get(t, p.value(t, "Site")+"/", "en").body, p.value(t, "Simulator")+"/issue")

	resp, err := client.Head(p.value(t, "Site") + "/login")
	require.NoError(t, err)
	resp.Body.Close()
	require.Equal(t, http.StatusOK, resp.StatusCode)
}

// Both languages have all texts.
func TestWords(t *testing.T) {
	for _, w := range []words{english, chinese} {
		for _, v := range []reflect.Value{reflect.ValueOf(w), reflect.ValueOf(w.Script)} {
			for i := range v.NumField() {
				require.False(t, v.Field(i).IsZero(), "%s: %s", w.Lang, v.Type().Field(i).Name)
			}
		}
	}
}

// The pages for the real service and for the simulator differ only in the URL of the
// script, in the values of the account, and in the Content-Security-Policy for them.
func TestRealService(t *testing.T) {
	simulated, p := start(t, nil), start(t, realEnv)
	require.Empty(t, p.commands)
	require.NotContains(t, strings.Join(p.lines, "\n"), "made-up-")
	require.NotContains(t, strings.Join(p.lines, "\n"), "Simulator")

	nonce := regexp.MustCompile(`nonce="([A-Z2-7]{26})"`)
	for path, scene := range map[string][2]string{
		"/login": {"login", "scene-a"}, "/signup": {"signup", "scene-b"}, "/adaptive": {"login", "scene-a"},
	} {
		page := get(t, p.value(t, "Site")+path, "en")
		require.NotContains(t, page.body, "data-encrypted-scene")
		require.Contains(t, page.body, `window.AliyunCaptchaConfig = {region: "cn", prefix: "made-up-prefix"}`)
		require.Contains(t, page.body, `data-scene="`+scene[1]+`"`)
		require.NotContains(t, page.body, "made-up-id")
		require.NotContains(t, page.body, "made-up-secret")
		require.Less(t, strings.Index(page.body, "AliyunCaptchaConfig"), strings.Index(page.body, "AliyunCaptcha.js"))

		other := get(t, simulated.value(t, "Site")+path, "en")
		same := func(r response) (string, string) {
			once := nonce.FindStringSubmatch(r.body)
			require.Len(t, once, 2)
			differ := strings.NewReplacer(once[1], "NONCE",
				"made-up-prefix", "PREFIX", `"simulator"`, `"PREFIX"`, `region: "cn"`, "REGION", `region: "sgp"`, "REGION",
				`data-scene="`+scene[0]+`"`, "SCENE", `data-scene="`+scene[1]+`"`, "SCENE",
				"https://o.alicdn.com/captcha-frontend/aliyunCaptcha/AliyunCaptcha.js", "SCRIPT",
				simulated.value(t, "Simulator")+"/AliyunCaptcha.js", "SCRIPT",
				"https://*.alicdn.com https://*.aliyuncs.com", "ORIGINS", simulated.value(t, "Simulator"), "ORIGINS")
			return differ.Replace(encrypted.ReplaceAllString(r.body, "")), differ.Replace(r.header.Get("Content-Security-Policy"))
		}
		body, policy := same(page)
		otherBody, otherPolicy := same(other)
		require.Equal(t, body, otherBody)
		require.Equal(t, policy, otherPolicy)
		require.Equal(t, "default-src 'self' ORIGINS; script-src 'self' 'nonce-NONCE' ORIGINS; "+
			"style-src 'self' 'unsafe-inline' ORIGINS; img-src 'self' data: ORIGINS; "+
			"object-src 'none'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'", policy)
		require.NotEqual(t, nonce.FindString(page.body), nonce.FindString(get(t, p.value(t, "Site")+path, "en").body))
	}

	// This request is rejected before anything is sent to the service.
	requireRejected(t, p.login(t, "alice", "correct-horse", ""), http.StatusBadRequest, "captcha_missing")
}

var encrypted = regexp.MustCompile(` data-encrypted-scene="([^"]+)"`)

// In encrypted mode, which the simulator always is in, each page has an encrypted scene ID
// of its own, and nothing has the key.
func TestEncryptedScene(t *testing.T) {
	key := []byte("0123456789abcdef0123456789abcdef")
	vars := maps.Clone(realEnv)
	vars["CAPTCHA_EKEY"] = base64.StdEncoding.EncodeToString(key)
	p := start(t, vars)
	require.NotContains(t, strings.Join(p.lines, "\n"), vars["CAPTCHA_EKEY"])

	block, err := aes.NewCipher(key)
	require.NoError(t, err)
	seen := map[string]bool{}
	for range 2 {
		for path, scene := range map[string]string{"/login": "scene-a", "/signup": "scene-b", "/adaptive": "scene-a"} {
			page := get(t, p.value(t, "Site")+path, "en")
			require.Equal(t, "no-store", page.header.Get("Cache-Control"))
			require.NotContains(t, page.body, vars["CAPTCHA_EKEY"])
			found := encrypted.FindStringSubmatch(page.body)
			require.Len(t, found, 2)
			sealed, err := base64.StdEncoding.DecodeString(html.UnescapeString(found[1]))
			require.NoError(t, err)
			cipher.NewCBCDecrypter(block, sealed[:aes.BlockSize]).CryptBlocks(sealed[aes.BlockSize:], sealed[aes.BlockSize:])
			require.Regexp(t, "^"+scene+`&\d{10}&36\d\d`, string(sealed[aes.BlockSize:]))
			seen[found[1]] = true
		}
		require.NotContains(t, get(t, p.value(t, "Site")+"/", "en").body, "data-encrypted-scene")
	}
	require.Len(t, seen, 6)

	simulated := start(t, nil)
	require.Regexp(t, encrypted, get(t, simulated.value(t, "Site")+"/login", "en").body)
}

func (p running) adaptive(t *testing.T, username, password, param string) response {
	t.Helper()
	body, err := json.Marshal(loginBody{
		Username: username, Password: password, Param: json.RawMessage(strconv.Quote(param)),
	})
	require.NoError(t, err)
	return post(t, p.value(t, "Site")+"/adaptive", "application/json", string(body))
}

func TestAdaptive(t *testing.T) {
	p := start(t, nil)
	for range 5 { // successful logins are not counted
		require.Equal(t, http.StatusOK, p.adaptive(t, "alice", "correct-horse", "").status)
	}
	for range 3 {
		got := p.adaptive(t, "alice", "wrong", "")
		require.Equal(t, http.StatusUnauthorized, got.status, got.body)
		require.NotContains(t, got.body, "captcha")
	}
	for range 2 { // the correct password as well, so that the answer does not reveal it
		requireRejected(t, p.adaptive(t, "alice", "correct-horse", ""), http.StatusBadRequest, "captcha_missing")
		requireRejected(t, p.adaptive(t, "alice", "wrong", ""), http.StatusBadRequest, "captcha_missing")
	}
	require.Equal(t, http.StatusUnauthorized, p.adaptive(t, "bob", "wrong", "").status, "another account")

	// A malformed body does not spend a param.
	param := p.mint(t, `{"sceneId":"login"}`)
	got := post(t, p.value(t, "Site")+"/adaptive", "application/json", `{"captchaVerifyParam":"`+param+`","username":1}`)
	require.Equal(t, http.StatusBadRequest, got.status, got.body)
	got = p.adaptive(t, "alice", "correct-horse", param)
	require.Equal(t, http.StatusOK, got.status, got.body)
	require.Contains(t, got.body, passed)
	requireRejected(t, p.adaptive(t, "alice", "correct-horse", param), http.StatusForbidden, "captcha_expired")
}

// The count cannot be avoided by simultaneous guesses.
func TestAdaptiveAtOnce(t *testing.T) {
	p := start(t, nil)
	var wg sync.WaitGroup
	var free, asked atomic.Int32
	for range 40 {
		wg.Go(func() {
			guess := strings.NewReader(`{"username":"alice","password":"wrong"}`)
			resp, err := client.Post(p.value(t, "Site")+"/adaptive", "application/json", guess)
			if err != nil {
				return
			}
			resp.Body.Close()
			switch resp.StatusCode {
			case http.StatusUnauthorized:
				free.Add(1)
			case http.StatusBadRequest:
				asked.Add(1)
			}
		})
	}
	wg.Wait()
	require.LessOrEqual(t, free.Load(), int32(3))
	require.Equal(t, int32(40), free.Load()+asked.Load())
}

// Failures are remembered for at least a quarter of an hour, but not forever.
func TestAdaptiveForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		captcha, err := alicaptcha.New(alicaptcha.Config{
			Verifier: alicaptchatest.Passing(), SceneID: "login", Logger: slog.New(slog.DiscardHandler),
		})
		require.NoError(t, err)
		h := captcha.Deferred(http.HandlerFunc(newAdaptive().handle))
		guess := func() int {
			w := httptest.NewRecorder()
			r := httptest.NewRequest("POST", "/adaptive", strings.NewReader(`{"username":"alice","password":"wrong"}`))
			r.Header.Set("Content-Type", "application/json")
			h.ServeHTTP(w, r)
			return w.Code
		}
		for range 3 {
			require.Equal(t, http.StatusUnauthorized, guess())
		}
		time.Sleep(failureWindow)
		require.Equal(t, http.StatusBadRequest, guess())
		time.Sleep(2 * failureWindow)
		require.Equal(t, http.StatusUnauthorized, guess())
	})
}

// Logins that are under way when the window ends neither allow further guesses nor
// change the counts of others.
func TestAdaptiveAcrossTheBoundary(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := alicaptcha.VerifierFunc(func(context.Context, alicaptcha.Request) (alicaptcha.Result, error) {
			time.Sleep(time.Second)
			return alicaptcha.Result{Code: alicaptcha.F001}, nil
		})
		captcha, err := alicaptcha.New(alicaptcha.Config{
			Verifier: slow, SceneID: "login", Logger: slog.New(slog.DiscardHandler),
		})
		require.NoError(t, err)
		h := captcha.Deferred(http.HandlerFunc(newAdaptive().handle))
		guess := func(username, param string) int {
			w := httptest.NewRecorder()
			body := `{"captchaVerifyParam":"` + param + `","username":"` + username + `","password":"wrong"}`
			r := httptest.NewRequest("POST", "/adaptive", strings.NewReader(body))
			r.Header.Set("Content-Type", "application/json")
			h.ServeHTTP(w, r)
			return w.Code
		}
		free := func(username string) (n int) {
			for range 50 {
				if guess(username, "") == http.StatusUnauthorized {
					n++
				}
			}
			return n
		}
		time.Sleep(failureWindow - 500*time.Millisecond)
		require.Equal(t, 3, free("alice"))
		require.Equal(t, 3, free("bob"))
		var wg sync.WaitGroup
		for range 30 {
			wg.Go(func() { guess("alice", "a param") }) // refused in the next window
		}
		time.Sleep(600 * time.Millisecond)
		guess("carol", "")
		wg.Wait()
		require.Zero(t, free("alice"))
		require.Zero(t, free("bob"))
	})
}

func TestServersHaveTimeouts(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	s := newServer(listener, slog.New(slog.DiscardHandler), http.NotFoundHandler())
	require.NotZero(t, s.ReadHeaderTimeout)
	require.NotZero(t, s.ReadTimeout)
	require.NotZero(t, s.IdleTimeout)
	require.Greater(t, s.WriteTimeout, s.ReadTimeout+5*time.Second, "a slow body, and then a slow service")
	require.Equal(t, 64<<10, s.MaxHeaderBytes)
}

// A flood from one address is refused before it costs a verification. Other pages are
// still served.
func TestRateLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// Nothing listens there, so that a verification ends as a 503.
		handler, err := newSite(simulated("http://127.0.0.1:1", "http://127.0.0.1:1"), slog.New(slog.DiscardHandler))
		require.NoError(t, err)
		send := func(method, remote string) *httptest.ResponseRecorder {
			r := httptest.NewRequest(method, "/login", strings.NewReader(`{}`))
			r.Header.Set("Content-Type", "application/json")
			r.RemoteAddr = remote
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, r)
			return w
		}
		passes := func(n int, remotes ...string) {
			t.Helper()
			for i := range n {
				require.Equal(t, http.StatusBadRequest, send("POST", remotes[i%len(remotes)]).Code)
			}
			w := send("POST", remotes[0])
			got := response{w.Code, w.Header(), w.Body.String()}
			requireRejected(t, got, http.StatusTooManyRequests, "captcha_rate_limited")
			require.Equal(t, []string{"1"}, got.header.Values("Retry-After"))
		}
		passes(postsAMinute, "192.0.2.1:1", "192.0.2.1:2", "[::ffff:192.0.2.1]:3")
		require.Equal(t, http.StatusOK, send("GET", "192.0.2.1:1").Code)
		time.Sleep(time.Second)
		passes(1, "192.0.2.1:1")
		// Addresses may share an entry, so each test begins with a full one.
		time.Sleep(time.Hour)
		passes(postsAMinute, "[2001:db8::1]:1", "[2001:db8::2]:1", "[2001:db8::ffff:ffff:ffff:ffff]:1")
		time.Sleep(time.Hour)
		passes(postsAMinute, "", "junk", "@")
	})
}

// Many addresses do not make the table grow, and clients cannot know which addresses
// share an entry.
func TestRateLimitIsBounded(t *testing.T) {
	l := newPostLimits()
	h := l.handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	entries := l.entries
	for i := range 10_000 {
		r := httptest.NewRequest("POST", "/", nil)
		r.RemoteAddr = fmt.Sprintf("[2001:db8:0:%x::1]:1", i)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		require.Equal(t, http.StatusOK, w.Code)
	}
	require.Equal(t, entries, l.entries)
	require.NotEqual(t, l.seed, newPostLimits().seed)
}

// go doc ./example shows the same flags as -help.
func TestHelp(t *testing.T) {
	source, err := os.ReadFile("main.go")
	require.NoError(t, err)
	doc, _, _ := strings.Cut(string(source), "\npackage main")
	var help bytes.Buffer
	require.ErrorIs(t, run(t.Context(), []string{"-help"}, os.Getenv, io.Discard, &help), flag.ErrHelp)
	flags := regexp.MustCompile(`(?m)^  (-\w+ \w+)$`).FindAllStringSubmatch(help.String(), -1)
	require.Len(t, flags, strings.Count(doc, "\n//\t-"), help.String())
	require.NotEmpty(t, flags)
	for _, f := range flags {
		require.Contains(t, doc, "\n//\t"+f[1]+"\n")
	}
	for _, value := range regexp.MustCompile(`default "(.*)"`).FindAllStringSubmatch(help.String(), -1) {
		require.Contains(t, strings.ReplaceAll(doc, "\n//\t\t", " "), "default "+value[1]+")")
	}
}

func TestStartFailures(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	busy := taken.Addr().String()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	freed := free.Addr().String()
	require.NoError(t, free.Close())

	half := map[string]string{
		"CAPTCHA_PREFIX": "p", "CAPTCHA_REGION": "cn", "ALIBABA_CLOUD_ACCESS_KEY_ID": "id", "CAPTCHA_SCENE_SIGNUP": "s",
	}
	elsewhere, keyless := maps.Clone(realEnv), maps.Clone(realEnv)
	elsewhere["CAPTCHA_REGION"] = "moon"
	keyless["CAPTCHA_EKEY"] = "made-up-secret"

	for name, tc := range map[string]struct {
		args   []string
		vars   map[string]string
		status int
		want   string
	}{
		"site's port in use": {[]string{"-addr", busy}, nil, 1, "example: -addr: listen tcp " + busy},
		"simulator's port in use": {
			[]string{"-addr", freed, "-simulator", busy}, nil, 1, "example: -simulator: listen tcp " + busy,
		},
		"bad address": {[]string{"-addr", "nowhere"}, nil, 1, "missing port"},
		"bad flag":    {[]string{"-nonsense"}, nil, 2, "-nonsense"},
		"argument":    {[]string{"nonsense"}, nil, 2, "nonsense"},
		"half an environment": {
			anyPort, half, 1,
			"missing: ALIBABA_CLOUD_ACCESS_KEY_SECRET, CAPTCHA_SCENE_LOGIN (without any",
		},
		"unknown region": {anyPort, elsewhere, 1, "Region"},
		"invalid ekey":   {anyPort, keyless, 1, "the ekey"},
	} {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			program := exec.CommandContext(t.Context(), os.Args[0], tc.args...)
			program.Env = programEnv(t, tc.vars)
			program.Stdout, program.Stderr = &stdout, &stderr
			exit, ok := program.Run().(*exec.ExitError)
			require.True(t, ok)
			require.Equal(t, tc.status, exit.ExitCode(), stderr.String())
			require.Contains(t, stderr.String(), tc.want)
			require.Equal(t, 1, strings.Count(stderr.String(), "\n"), stderr.String())
			require.Empty(t, stdout.String())
			require.NotContains(t, stderr.String(), "made-up-secret")
		})
	}
}

// programEnv returns the environment for the test binary as the program.
func programEnv(t *testing.T, vars map[string]string) []string {
	environ := []string{asProgram + "=1", "GOCOVERDIR=" + t.TempDir()} // without it -cover adds a warning to stderr
	for name, value := range vars {
		environ = append(environ, name+"="+value)
	}
	return environ
}

func TestStopsWhenItsContextIsDone(t *testing.T) {
	p := start(t, nil)
	p.login(t, "alice", "correct-horse", p.mint(t, `{"sceneId":"login"}`))
	require.NoError(t, p.stop())
	for _, label := range []string{"Site", "Simulator"} {
		_, err := client.Get(p.value(t, label))
		require.Error(t, err, label)
	}
}
