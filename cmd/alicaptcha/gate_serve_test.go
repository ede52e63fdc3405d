package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

// startGate runs gate for the scenes "login" and "signup" of the simulator at url.
func startGate(t *testing.T, url string, args ...string) (gate string, s running) {
	t.Helper()
	vars := map[string]string{"ALIBABA_CLOUD_ACCESS_KEY_ID": keyID, "ALIBABA_CLOUD_ACCESS_KEY_SECRET": secret}
	s = startProgram(t, vars, append([]string{
		"gate", "-addr", "127.0.0.1:0", "-admin-addr", "127.0.0.1:0", "-endpoint", url, "-scene", "login", "-scene", "signup",
	}, args...)...)
	scene := s.value(t, "Scene")
	require.True(t, strings.HasSuffix(scene, "/gate/login"), scene)
	return strings.TrimSuffix(scene, "/login"), s
}

// The gate, as its user runs it.
func TestGateProgram(t *testing.T) {
	t.Parallel()
	service := serve(t, alicaptchatest.Config{Scenes: []string{"login", "signup"}}, nil)
	gate, s := startGate(t, service.url)
	send := func(target, body string) *http.Response {
		t.Helper()
		resp, err := client.Post(target, "application/x-www-form-urlencoded", strings.NewReader(body))
		require.NoError(t, err)
		resp.Body.Close()
		return resp
	}
	for _, scene := range []string{"login", "signup"} {
		param, err := service.Issue(alicaptchatest.Issue{SceneID: scene})
		require.NoError(t, err)
		body := url.Values{"captchaVerifyParam": {param}}.Encode()
		other := strings.NewReplacer("login", "signup", "signup", "login").Replace(scene)
		for _, step := range []struct {
			path   string
			status int
		}{{scene + "x", 404}, {scene, 204}, {scene + "/login?x", 403}, {other, 403}, {"", 404}} {
			resp := send(gate+"/"+step.path, body)
			require.Equal(t, step.status, resp.StatusCode, step.path)
			want := ""
			if step.status == 204 {
				want = "true"
			}
			require.Equal(t, want, resp.Header.Get("Captcha-Verified"))
		}
	}
	resp, err := client.Get(s.value(t, "Metrics"))
	require.NoError(t, err)
	metrics := read(t, resp)
	require.Contains(t, metrics, `alicaptcha_outcomes_total{alicaptcha_code="T001",alicaptcha_decision="passed",alicaptcha_scene="login"} 1`)
	require.NotContains(t, metrics, "hunter")
	resp, err = client.Get(s.value(t, "Health"))
	require.NoError(t, err)
	require.Equal(t, "ok\n", read(t, resp))
	for _, path := range []string{"/healthz", "/metrics"} { // not where a proxy may ask
		require.Equal(t, 404, send(strings.TrimSuffix(gate, "/gate")+path, "").StatusCode)
	}
	if runtime.GOOS == "windows" {
		return // a process cannot send the signal there
	}
	end := s.stop(os.Interrupt)
	require.Zero(t, end.status, end.stderr)
	require.Contains(t, end.stderr, "captcha: rejected")
	require.NotContains(t, end.stderr, "hunter")
	require.Empty(t, end.stdout)
}

func TestGateWarnsWhereOthersReachIt(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		return // a process cannot send the signal there
	}
	s := startProgram(t, keys, "gate", "-addr", "0.0.0.0:0", "-admin-addr", "127.0.0.1:0", "-region", "cn", "-scene", "a")
	got := s.stop(syscall.SIGTERM)
	require.Zero(t, got.status)
	require.Equal(t, 1, strings.Count(got.stderr, "warning: anyone who can reach"), got.stderr)
}

// SIGTERM lets a request that is under way end, and no new one begin.
func TestGateDrains(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		return // a process cannot send the signal there
	}
	asked, release := make(chan struct{}), make(chan struct{})
	service := serve(t, alicaptchatest.Config{}, func(http.ResponseWriter, *http.Request) bool {
		close(asked) // only one call is made
		<-release
		return false
	})
	gate, s := startGate(t, service.url, "-timeout", "50s")
	param, err := service.Issue(alicaptchatest.Issue{SceneID: "login"})
	require.NoError(t, err)
	answered := make(chan int, 1)
	go func() {
		resp, err := client.PostForm(gate+"/login", url.Values{"captchaVerifyParam": {param}})
		if err != nil {
			answered <- 0
			return
		}
		resp.Body.Close()
		answered <- resp.StatusCode
	}()
	<-asked
	ended := make(chan result, 1)
	go func() { ended <- s.stop(syscall.SIGTERM) }()
	for { // until the gate has noticed the signal
		resp, err := client.Get(s.value(t, "Health"))
		require.NoError(t, err)
		resp.Body.Close()
		if resp.StatusCode == http.StatusServiceUnavailable {
			break
		}
	}
	select {
	case <-ended:
		require.Fail(t, "it did not wait")
	case <-answered:
		require.Fail(t, "answered too early")
	default:
	}
	close(release)
	require.Equal(t, 204, <-answered)
	require.Zero(t, (<-ended).status)
	_, err = client.Get(gate + "/login")
	require.Error(t, err)
}

// serveGate serves g as the program does, but with little patience for bodies.
func serveGate(t *testing.T, g *gate, patience time.Duration) (addr string, stop func()) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	server := newServer(g, time.Minute, quiet)
	server.ReadTimeout, server.ReadHeaderTimeout, server.IdleTimeout = patience, patience, patience
	served := make(chan struct{})
	go func() {
		server.Serve(listener)
		close(served)
	}()
	stop = func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		require.NoError(t, server.Shutdown(ctx), "a connection is held")
		<-served
	}
	return listener.Addr().String(), stop
}

// Clients that send slowly, or nothing, are cut off, and hold nothing.
func TestGateSlowClients(t *testing.T) {
	t.Parallel()
	var calls atomic.Int64
	g, _ := gateOf(t, alicaptcha.VerifierFunc(func(context.Context, alicaptcha.Request) (alicaptcha.Result, error) {
		calls.Add(1)
		return alicaptcha.Result{Passed: true, Code: alicaptcha.T001}, nil
	}), "-scene", "login")
	addr, stop := serveGate(t, g, 100*time.Millisecond)
	const head = "POST /gate/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
	var all sync.WaitGroup
	for i := range 100 {
		all.Go(func() {
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			io.WriteString(conn, []string{
				"", "POST /gate/login HTTP/1.1\r\nHost:", head, head + `{"captchaVerifyParam":"`, head + `{"a":"b`,
			}[i%5])
			text, _ := io.ReadAll(conn) // until the gate has had enough
			if strings.Contains(string(text), " 204 ") {
				t.Error(string(text))
			}
		})
	}
	all.Wait()
	require.Zero(t, calls.Load())
	stop()
}

// The server itself lets nothing pass, whatever a proxy makes of what a client asks for.
func TestGateRequestLines(t *testing.T) {
	t.Parallel()
	g, _ := gateOf(t, verdictOf("T001"), "-scene", "login")
	addr, stop := serveGate(t, g, 10*time.Second)
	defer stop()
	for line, want := range map[string]string{
		"GET /gate/login": "204", "GET http://x/gate/login": "204", // what is asked for is a scene
		"OPTIONS *": "404", "GET *": "404", "CONNECT login": "404", "CONNECT login:80": "404",
		"GET http:login": "404", "GET http://login": "404", "GET //gate/login": "404", "GET gate/login": "400",
	} {
		conn, err := net.Dial("tcp", addr)
		require.NoError(t, err)
		fmt.Fprint(conn, line+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\nCaptcha-Verify-Param: x\r\n\r\n")
		answer, err := io.ReadAll(conn)
		require.NoError(t, err)
		conn.Close()
		require.Regexp(t, "^HTTP/1.1 "+want+" ", string(answer), line)
	}
}

// A request beyond those that a scene holds ends at once, and none of it is read.
func TestGateHoldsNoMore(t *testing.T) {
	t.Parallel()
	g, m := gateOf(t, verdictOf("T001"), "-scene", "login", "-max-concurrent", "2", "-outage-budget", "1000",
		"-max-param", "5")
	var bodies []*io.PipeWriter
	reading := make(chan struct{})
	var all sync.WaitGroup
	for range 8 {
		body, send := io.Pipe()
		bodies = append(bodies, send)
		all.Go(func() {
			r := httptest.NewRequest("POST", "/gate/login", readerFunc(func(p []byte) (int, error) {
				select {
				case reading <- struct{}{}:
				case <-t.Context().Done():
				}
				return body.Read(p)
			}))
			r.Header.Set("Content-Type", "application/json")
			ask(g, r)
		})
	}
	for range 8 {
		<-reading
	}
	r := httptest.NewRequest("POST", "/gate/login", readerFunc(func([]byte) (int, error) {
		t.Error("it was read")
		return 0, io.EOF
	}))
	w := ask(g, r)
	require.Equal(t, 503, w.Code)
	require.Regexp(t, references, w.Header().Get("Captcha-Reference"))
	require.Contains(t, w.Body.String(), "captcha_unavailable")
	go func() {
		for range reading { // what they still read
		}
	}()
	for _, send := range bodies {
		send.Close()
	}
	all.Wait()
	close(reading)
	require.Equal(t, 204, ask(g, aRequest()).Code)
	var b strings.Builder
	m.writeTo(&b)
	require.Contains(t, b.String(), `{alicaptcha_code="overloaded",alicaptcha_decision="rejected",alicaptcha_scene="login"} 1`)
	require.NotContains(t, b.String(), `error_type="overloaded"`, "the service was not asked")
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// A proxy that hangs up during a verification gets no 204, and leaves nothing behind.
func TestGateHangUps(t *testing.T) {
	t.Parallel()
	asked, release := make(chan struct{}), make(chan struct{})
	g, m := gateOf(t, alicaptcha.VerifierFunc(func(ctx context.Context, _ alicaptcha.Request) (alicaptcha.Result, error) {
		asked <- struct{}{}
		<-release
		return alicaptcha.Result{Passed: true, Code: alicaptcha.T001}, nil
	}), "-scene", "login", "-outage-budget", "1000")
	gone := make(chan struct{}, 50)
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		context.AfterFunc(r.Context(), func() { gone <- struct{}{} })
		g.ServeHTTP(w, r)
	}))
	for range 50 {
		conn, err := net.Dial("tcp", proxy.Listener.Addr().String())
		require.NoError(t, err)
		fmt.Fprint(conn, "POST /gate/login HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nCaptcha-Verify-Param: x\r\n\r\n")
		<-asked
		conn.Close()
		<-gone
	}
	close(release)
	proxy.Close() // waits for the requests
	var b strings.Builder
	m.writeTo(&b)
	require.Contains(t, b.String(), `{alicaptcha_code="client_canceled",alicaptcha_decision="rejected",alicaptcha_scene="login"} 50`)
	require.Contains(t, b.String(), "alicaptcha_verifications_active 0\n")
}

// Ten thousand hostile requests get no 204, even in a gate that opens in an outage.
func TestGateAttacks(t *testing.T) {
	t.Parallel()
	service := serve(t, alicaptchatest.Config{Scenes: []string{"login", "signup"}}, nil)
	verifier, err := alicaptcha.NewClient(alicaptcha.ClientConfig{
		Endpoint: service.url, AccessKeyID: keyID, AccessKeySecret: secret, Logger: quiet,
	})
	require.NoError(t, err)
	g, m := gateOf(t, verifier, "-scene", "login", "-scene", "signup", "-outage-budget", "1000000", "-timeout", "1m")
	issue := func(scene string) string {
		param, err := service.Issue(alicaptchatest.Issue{SceneID: scene})
		if err != nil {
			t.Error(err)
		}
		return param
	}
	used := issue("login")
	require.Equal(t, 204, ask(g, carrying("/gate/login", used)).Code)

	noise := func(n int) string {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rand.N(256))
		}
		return string(b)
	}
	attacks := []func() *http.Request{
		func() *http.Request { return carrying("/gate/login", noise(1+rand.N(300))) },
		func() *http.Request { return carrying("/gate/login", strings.ToValidUTF8(noise(1+rand.N(300)), "?")) },
		func() *http.Request {
			const signed = `{"certifyId":"x","sceneId":"login","isSign":true,"securityToken":"y"}`
			return carrying("/gate/login", base64.StdEncoding.EncodeToString([]byte(signed)))
		},
		func() *http.Request { return carrying("/gate/login", "T001") },
		func() *http.Request { return carrying("/gate/login", used) },
		func() *http.Request { return carrying("/gate/login", issue("signup")) },
		func() *http.Request { return carrying("/gate/login/../signup", issue("signup")) },
		func() *http.Request { return carrying("/gate/log%69n", issue("login")) },
		func() *http.Request { return carrying("//gate/login", issue("login")) },
		func() *http.Request { return carrying("/gate/login", strings.Repeat("x", 33<<10+rand.N(1000))) },
		func() *http.Request { return requestFor("/gate/login", noise(2000)) },
		func() *http.Request { return requestFor("/gate/login", strings.Repeat("[", 5000)) },
		func() *http.Request { return requestFor("/gate/login", `{"captchaVerifyParam":{"a":1}}`) },
		func() *http.Request {
			return requestFor("/gate/login?captchaVerifyParam="+url.QueryEscape(issue("login")), "")
		},
		func() *http.Request {
			return requestFor("/gate/login", `{"a":"`+strings.Repeat("x", 140<<10)+`","captchaVerifyParam":"`+issue("login")+`"}`)
		},
		func() *http.Request {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			return carrying("/gate/login", issue("login")).WithContext(ctx)
		},
	}
	work := make(chan int)
	var all sync.WaitGroup
	var open atomic.Int64
	for range 8 {
		all.Go(func() {
			for i := range work {
				r := attacks[i%len(attacks)]()
				r.Method = []string{"POST", "PUT", "GET", "HEAD", "OPTIONS"}[rand.N(5)]
				// What a client would like the gate to believe.
				r.Header.Set("Captcha-Verified", "true")
				r.Header.Set("X-Forwarded-Uri", "/gate/signup")
				r.Header.Set("X-Original-Url", "/gate/signup")
				if w := ask(g, r); w.Code < 400 || w.Header().Get("Captcha-Verified") != "" {
					open.Add(1)
				}
			}
		})
	}
	for i := range 10_000 {
		work <- i
	}
	close(work)
	all.Wait()
	var b strings.Builder
	m.writeTo(&b)
	require.Zero(t, open.Load(), b.String())
	require.Contains(t, b.String(), `{alicaptcha_code="T001",alicaptcha_decision="passed",alicaptcha_scene="login"} 1`+"\n")
	require.NotContains(t, b.String(), `"opened"`)
	for _, code := range []string{
		"param_malformed", "param_too_large", "param_missing", "client_canceled", "F003", "F012", "F018",
	} {
		require.Contains(t, b.String(), `alicaptcha_code="`+code+`"`)
	}
	require.Equal(t, 204, ask(g, carrying("/gate/login", issue("login"))).Code)
}

// carrying returns a request with param, in one of the ways that the gate knows.
func carrying(target, param string) *http.Request {
	switch rand.N(3) {
	case 0:
		body, _ := json.Marshal(map[string]string{"captchaVerifyParam": param}) // strings cannot fail
		return requestFor(target, string(body))
	case 1:
		r := requestFor(target, url.Values{"CaptchaVerifyParam": {param}}.Encode())
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		return r
	}
	r := requestFor(target, "")
	r.Header.Set("Captcha-Verify-Param", param)
	return r
}
