package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// With this in its environment the test binary is the program itself.
const asProgram = "EXAMPLE_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// lastLine ends what the program prints at its start.
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

// client ignores a proxy that the environment may have, and connections end
// with their request.
var client = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

// running is a program that has printed its lines.
type running struct {
	lines    []string
	stop     func() error // cancels, and returns what run returned
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

// startLines reads up to the last line of the start.
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

// value returns what follows label in the lines of the start.
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
		{"alice", "wrong"}, {"alice", ""}, {"alice", "correct-horse "}, {"bob", "correct-horse"}, {"", ""}, {"correct-horse", "alice"},
	} {
		got := p.login(t, pair[0], pair[1], p.mint(t, `{"sceneId":"login"}`))
		require.Equal(t, http.StatusUnauthorized, got.status, "%q: %s", pair, got.body)
		require.Contains(t, got.body, passed)
		require.NotContains(t, got.body, `"user"`)
	}
	// Nobody learns whether a pair is right without a captcha.
	requireRejected(t, p.login(t, "alice", "wrong", ""), http.StatusBadRequest, "captcha_missing")
}

func TestLoginRejections(t *testing.T) {
	p := start(t, nil)
	login := p.value(t, "Site") + "/login"

	requireRejected(t, post(t, login, "application/json", `{"username":"alice","password":"correct-horse"}`), http.StatusBadRequest, "captcha_missing")
	requireRejected(t, p.login(t, "alice", "correct-horse", "junk"), http.StatusBadRequest, "captcha_invalid")
	requireRejected(t, p.login(t, "alice", "correct-horse", p.mint(t, `{"sceneId":"signup"}`)), http.StatusForbidden, "captcha_rejected")

	limited := p.login(t, "alice", "correct-horse", p.mint(t, `{"sceneId":"login","code":"F010"}`))
	requireRejected(t, limited, http.StatusTooManyRequests, "captcha_rate_limited")
	require.Equal(t, "60", limited.header.Get("Retry-After"))
}

func TestLoginReadsItsBodyStrictly(t *testing.T) {
	p := start(t, nil)
	param := func() string { return `"captchaVerifyParam":"` + p.mint(t, `{"sceneId":"login"}`) + `"` }
	const pair = `"username":"alice","password":"correct-horse"`
	for name, tc := range map[string]struct {
		body   string
		status int
	}{
		"unknown member":      {`{` + pair + `,` + param() + `,"admin":true}`, http.StatusBadRequest},
		"another document":    {`{` + pair + `,` + param() + `}{}`, http.StatusBadRequest},
		"broken tail":         {`{` + param() + `,` + pair, http.StatusBadRequest},
		"not a string":        {`{` + param() + `,"username":1}`, http.StatusBadRequest},
		"endless":             {`{` + param() + `,"username":"` + strings.Repeat("a", maxBodyBytes) + `"}`, http.StatusRequestEntityTooLarge},
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
			var body struct{ Username, Email string }
			require.NoError(t, json.Unmarshal([]byte(got.body), &body))
			require.Equal(t, "bob & co", body.Username)
			require.Equal(t, "bob+news@example.com", body.Email)
			require.Contains(t, got.body, passed)

			for _, v := range []url.Values{fields("", "12345678"), fields("bob", "1234567")} {
				got = send(v)
				require.Equal(t, http.StatusBadRequest, got.status, got.body)
				require.Equal(t, "application/json", got.header.Get("Content-Type"))
				require.Contains(t, got.body, passed)
			}

			v := fields("bob", "12345678")
			v.Del("captchaVerifyParam")
			requireRejected(t, send(v), http.StatusBadRequest, "captcha_missing")
		})
	}
	t.Run("broken form", func(t *testing.T) {
		got := post(t, signup, "application/x-www-form-urlencoded", fields("bob", "12345678").Encode()+"&x=%zz")
		require.Equal(t, http.StatusBadRequest, got.status, got.body)
		require.Contains(t, got.body, passed)
	})
}

func TestCrossOriginFormsSpendNoVerification(t *testing.T) {
	p := start(t, nil)
	param := p.mint(t, `{"sceneId":"signup"}`)
	form := url.Values{"captchaVerifyParam": {param}, "username": {"bob"}, "password": {"12345678"}}.Encode()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, p.value(t, "Site")+"/signup", strings.NewReader(form))
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

func get(t *testing.T, url string) string {
	t.Helper()
	resp, err := client.Get(url)
	require.NoError(t, err)
	defer resp.Body.Close()
	require.Equal(t, http.StatusOK, resp.StatusCode)
	require.Equal(t, "text/html; charset=utf-8", resp.Header.Get("Content-Type"))
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return string(body)
}

func TestPage(t *testing.T) {
	p := start(t, nil)
	page := get(t, p.value(t, "Site")+"/")
	require.Contains(t, page, `action="/login"`)
	require.Contains(t, page, `action="/signup"`)
	require.Contains(t, page, p.value(t, "Simulator")+"/issue")
	require.NotContains(t, page, "alicdn.com")
	require.NotContains(t, page, "test-secret")
}

func TestRealService(t *testing.T) {
	p := start(t, realEnv)
	require.Empty(t, p.commands)
	require.NotContains(t, strings.Join(p.lines, "\n"), "made-up-")
	require.NotContains(t, strings.Join(p.lines, "\n"), "Simulator")

	page := get(t, p.value(t, "Site")+"/")
	require.Contains(t, page, `window.AliyunCaptchaConfig = {region: "cn", prefix: "made-up-prefix"}`)
	require.Contains(t, page, `protect(login, "scene-a")`)
	require.Contains(t, page, `protect(signup, "scene-b")`)
	require.NotContains(t, page, "made-up-id")
	require.NotContains(t, page, "made-up-secret")
	require.Less(t, strings.Index(page, "AliyunCaptchaConfig"), strings.Index(page, "AliyunCaptcha.js"))

	// This ends before anything is sent to the service.
	requireRejected(t, p.login(t, "alice", "correct-horse", ""), http.StatusBadRequest, "captcha_missing")
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

	half := map[string]string{"CAPTCHA_PREFIX": "p", "CAPTCHA_REGION": "cn", "ALIBABA_CLOUD_ACCESS_KEY_ID": "id", "CAPTCHA_SCENE_SIGNUP": "s"}
	elsewhere := map[string]string{"CAPTCHA_REGION": "moon"}
	for name, value := range realEnv {
		if elsewhere[name] == "" {
			elsewhere[name] = value
		}
	}

	for name, tc := range map[string]struct {
		args   []string
		vars   map[string]string
		status int
		want   string
	}{
		"site's port in use":      {[]string{"-addr", busy}, nil, 1, "address already in use"},
		"simulator's port in use": {[]string{"-addr", freed, "-simulator", busy}, nil, 1, "address already in use"},
		"bad address":             {[]string{"-addr", "nowhere"}, nil, 1, "missing port"},
		"bad flag":                {[]string{"-nonsense"}, nil, 2, "-nonsense"},
		"argument":                {[]string{"nonsense"}, nil, 2, "nonsense"},
		"half an environment":     {anyPort, half, 1, "missing: ALIBABA_CLOUD_ACCESS_KEY_SECRET, CAPTCHA_SCENE_LOGIN (without any"},
		"unknown region":          {anyPort, elsewhere, 1, "Region"},
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

func TestStopsOnSignals(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("a process cannot send these signals on Windows")
	}
	for _, sig := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			program := exec.CommandContext(t.Context(), os.Args[0], anyPort...)
			program.Env = programEnv(t, nil)
			stdout, err := program.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, program.Start())
			startLines(t, stdout)
			require.NoError(t, program.Process.Signal(sig))
			require.NoError(t, program.Wait())
		})
	}
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
