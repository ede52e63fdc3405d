// Package gatetest provides what the tests of the recipes share: a gate that uses the
// simulator of the service, and the tests that every router must pass.
package gatetest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"io"
	"log"
	"log/slog"
	"maps"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

// Service is the simulator, together with a Verifier that asks it over HTTP and
// records its calls.
type Service struct {
	*alicaptchatest.Server
	Asked    chan struct{}           // receives a value when a call begins
	Outcomes chan alicaptcha.Outcome // receives the outcomes of the gates of Config
	client   *alicaptcha.Client

	mu     sync.Mutex
	params []string // those of the calls
}

// Start starts the service. It stops when the test ends.
func Start(t *testing.T) *Service {
	server := alicaptchatest.Start(t, alicaptchatest.Config{})
	return &Service{
		Server:   server,
		Asked:    make(chan struct{}, 1000),
		Outcomes: make(chan alicaptcha.Outcome, 1000),
		client:   server.Client(),
	}
}

// Verify asks the simulator.
func (s *Service) Verify(ctx context.Context, req alicaptcha.Request) (alicaptcha.Result, error) {
	s.mu.Lock()
	s.params = append(s.params, req.Param)
	s.mu.Unlock()
	s.Asked <- struct{}{}
	return s.client.Verify(ctx, req)
}

// Config returns the configuration of a gate for the scene "login".
func (s *Service) Config() alicaptcha.Config {
	return alicaptcha.Config{
		Verifier: s,
		SceneID:  "login",
		Timeout:  time.Second, // bounds a call to a service that hangs
		Observe:  func(_ context.Context, o alicaptcha.Outcome) { s.Outcomes <- o },
		Logger:   slog.New(slog.DiscardHandler),
	}
}

// Gate returns a gate with the configuration s.Config().
func (s *Service) Gate(t *testing.T) *alicaptcha.Middleware {
	t.Helper()
	captcha, err := alicaptcha.New(s.Config())
	require.NoError(t, err)
	return captcha
}

// Param returns a param that passes the first time.
func (s *Service) Param(t *testing.T) string {
	t.Helper()
	param, err := s.Issue(alicaptchatest.Issue{SceneID: "login"})
	require.NoError(t, err)
	return param
}

// JSON returns the body of a login as JSON. It contains the param unless that is
// empty.
func JSON(username, param string) string {
	members := map[string]string{"username": username, "padding": strings.Repeat("x", 10_000)}
	if param != "" {
		members["captchaVerifyParam"] = param
	}
	body, _ := json.Marshal(members) // strings cannot fail
	return string(body)
}

// Login is a handler behind the gate. It answers with the body that it read and with
// what it found in the context.
type Login struct{ calls atomic.Int64 }

// Seen is the answer of a Login.
type Seen struct {
	Body     string
	Verified bool
	Code     alicaptcha.Code
	Found    bool // FromContext found an Outcome
}

func (l *Login) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	l.calls.Add(1)
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, "unreadable", http.StatusRequestEntityTooLarge)
		return
	}
	if bytes.Contains(body, []byte(`"username":"boom"`)) {
		panic("boom")
	}
	o, found := alicaptcha.FromContext(r.Context())
	json.NewEncoder(w).Encode(Seen{string(body), o.Verified, o.Code, found})
}

// Calls returns the number of times that the handler was called.
func (l *Login) Calls() int { return int(l.calls.Load()) }

// App is the router of a recipe.
type App struct {
	// New returns the router. POST /login must call login, GET / must call home,
	// and POST /signup must call create with the username.
	New func(captcha *alicaptcha.Middleware, home, login http.HandlerFunc, create func(string)) http.Handler

	// Recovers reports whether the router answers 500 when a handler panics.
	Recovers bool

	// Signup reports whether the router has POST /signup, behind Deferred.
	Signup bool

	// Buffers reports whether the server reads a body as a whole before it calls
	// any handler, and bounds it by itself.
	Buffers bool
}

// Answer is a response as the client received it.
type Answer struct {
	Status int
	Header http.Header
	Body   string
}

// Send starts a server for h, sends a request to it and returns the answer.
func Send(t *testing.T, h http.Handler, method, path, contentType, body string) Answer {
	t.Helper()
	server := httptest.NewServer(h)
	defer server.Close()
	r, err := http.NewRequestWithContext(t.Context(), method, server.URL+path, strings.NewReader(body))
	require.NoError(t, err)
	r.Header.Set("Content-Type", contentType)
	return Do(t, r)
}

// Do sends r and returns the answer. It follows no redirects.
func Do(t *testing.T, r *http.Request) Answer {
	t.Helper()
	resp, err := http.DefaultTransport.RoundTrip(r)
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return Answer{resp.StatusCode, resp.Header, string(body)}
}

// RequireRejected checks that a is a rejection as problem+json.
func RequireRejected(t *testing.T, a Answer, status int, reason string) {
	t.Helper()
	require.Equal(t, status, a.Status, a.Body)
	require.Equal(t, "application/problem+json", a.Header.Get("Content-Type"))
	var problem struct {
		Status int
		Reason string
	}
	require.NoError(t, json.Unmarshal([]byte(a.Body), &problem), a.Body)
	require.Equal(t, status, problem.Status)
	require.Equal(t, reason, problem.Reason)
}

// A Bridge is a handler that forwards requests to a server which is not one of
// net/http. Its tests need what the context of a request has, so that server asks for
// the context.
type Bridge struct {
	Address  string // of the server
	contexts sync.Map
}

// BridgeHeader is the header with the name of the context of a request.
const BridgeHeader = "Bridge"

// Context returns the context of the request with that name.
func (b *Bridge) Context(name string) context.Context {
	if ctx, ok := b.contexts.Load(name); ok {
		return ctx.(context.Context)
	}
	return context.Background()
}

func (b *Bridge) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := rand.Text()
	b.contexts.Store(name, r.Context())
	defer b.contexts.Delete(name)
	out := r.Clone(r.Context())
	out.URL.Scheme, out.URL.Host = "http", b.Address
	out.Header.Set(BridgeHeader, name)
	answer, err := http.DefaultTransport.RoundTrip(out)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	defer answer.Body.Close()
	maps.Copy(w.Header(), answer.Header)
	w.WriteHeader(answer.StatusCode)
	io.Copy(w, answer.Body)
}

const typeJSON = "application/json"

// Run runs the tests that every router must pass.
func Run(t *testing.T, app App) {
	type fixture struct {
		*Service
		login   Login
		created []string
		app     http.Handler
	}
	startWith := func(t *testing.T, timeout time.Duration) *fixture {
		f := &fixture{Service: Start(t)}
		cfg := f.Config()
		cfg.Timeout = timeout
		captcha, err := alicaptcha.New(cfg)
		require.NoError(t, err)
		home := func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "welcome") }
		f.app = app.New(captcha, home, f.login.ServeHTTP, func(username string) { f.created = append(f.created, username) })
		return f
	}
	// A busy machine must not make the service look slow.
	start := func(t *testing.T) *fixture { return startWith(t, time.Minute) }
	requirePassed := func(t *testing.T, a Answer, body string) {
		t.Helper()
		require.Equal(t, http.StatusOK, a.Status, a.Body)
		var seen Seen
		require.NoError(t, json.Unmarshal([]byte(a.Body), &seen))
		require.Equal(t, Seen{body, true, alicaptcha.T001, true}, seen)
	}

	t.Run("passes with the body whole", func(t *testing.T) {
		f := start(t)

		body := JSON("alice", f.Param(t))
		requirePassed(t, Send(t, f.app, "POST", "/login", typeJSON, body), body)

		body = url.Values{"username": {"alice"}, "captchaVerifyParam": {f.Param(t)}}.Encode()
		requirePassed(t, Send(t, f.app, "POST", "/login", "application/x-www-form-urlencoded", body), body)

		var form bytes.Buffer
		parts := multipart.NewWriter(&form)
		require.NoError(t, parts.WriteField("captchaVerifyParam", f.Param(t)))
		file, err := parts.CreateFormFile("avatar", "avatar.png")
		require.NoError(t, err)
		_, err = file.Write(bytes.Repeat([]byte("0123456789abcdef"), 20_000))
		require.NoError(t, err)
		require.NoError(t, parts.Close())
		requirePassed(t, Send(t, f.app, "POST", "/login", parts.FormDataContentType(), form.String()), form.String())

		server := httptest.NewServer(f.app)
		defer server.Close()
		r, err := http.NewRequestWithContext(t.Context(), "POST", server.URL+"/login", strings.NewReader("anything"))
		require.NoError(t, err)
		r.Header.Set("Captcha-Verify-Param", f.Param(t))
		requirePassed(t, Do(t, r), "anything")
		require.Equal(t, 4, f.Count())
	})

	t.Run("rejects", func(t *testing.T) {
		f := start(t)
		RequireRejected(t, Send(t, f.app, "POST", "/login", typeJSON, JSON("alice", "")), 400, "captcha_missing")
		require.Zero(t, f.Count(), "the service must not be asked")

		body := JSON("alice", f.Param(t))
		requirePassed(t, Send(t, f.app, "POST", "/login", typeJSON, body), body)
		RequireRejected(t, Send(t, f.app, "POST", "/login", typeJSON, body), 403, "captcha_expired")
		require.Equal(t, 1, f.login.Calls())
	})

	t.Run("no attack reaches the handler", func(t *testing.T) {
		f := start(t)
		server := httptest.NewServer(f.app)
		defer server.Close()
		send := func(kind, body string, headers ...string) Answer {
			t.Helper()
			r, err := http.NewRequestWithContext(t.Context(), "POST", server.URL+"/login", strings.NewReader(body))
			require.NoError(t, err)
			r.Header.Set("Content-Type", kind)
			r.Header["Captcha-Verify-Param"] = headers
			r.Header.Set("Captcha-Verified", "true")
			return Do(t, r)
		}
		other, err := f.Issue(alicaptchatest.Issue{SceneID: "signup"})
		require.NoError(t, err)
		spent, good := f.Param(t), f.Param(t)
		requirePassed(t, send(typeJSON, "{}", spent), "{}")
		const typeForm = "application/x-www-form-urlencoded"
		for _, row := range []struct {
			kind, body string
			headers    []string
			status     int
			reason     string
		}{
			{typeJSON, JSON("alice", ""), nil, 400, "captcha_missing"},
			{typeJSON, JSON("alice", "junk"), nil, 400, "captcha_invalid"},
			{typeJSON, JSON("alice", strings.Repeat("x", 33<<10)), nil, 413, "captcha_invalid"},
			{typeJSON, `{"captchaVerifyParam":"` + "\xff" + `"}`, nil, 400, "captcha_invalid"},
			{typeJSON, `{"captchaVerifyParam":["` + good + `"]}`, nil, 400, "captcha_invalid"},
			{typeJSON, `{"captchaVerifyParam":"junk","captchaVerifyParam":"` + good + `"}`, nil, 400, "captcha_invalid"},
			{typeJSON, JSON("alice", other), nil, 403, "captcha_rejected"},
			{typeJSON, JSON("alice", spent), nil, 403, "captcha_expired"},
			{typeForm, "captchaVerifyParam=%FF", nil, 400, "captcha_invalid"},
			{typeForm, "captchaVerifyParam=" + strings.Repeat("x", 33<<10), nil, 413, "captcha_invalid"},
			{"multipart/form-data", "no boundary", nil, 400, "captcha_invalid"},
			{"text/plain", "captchaVerifyParam=" + good, nil, 400, "captcha_missing"},
			{typeJSON, "{}", []string{"junk", good}, 400, "captcha_invalid"}, // the first value counts
			{typeJSON, "{}", []string{"", good}, 400, "captcha_missing"},
			{typeJSON, JSON("alice", good), []string{other}, 403, "captcha_rejected"},
			{typeJSON, "{}", []string{spent}, 403, "captcha_expired"},
			{typeJSON, "{}", []string{"\xff"}, 400, "captcha_invalid"},
		} {
			RequireRejected(t, send(row.kind, row.body, row.headers...), row.status, row.reason)
		}
		require.Equal(t, 1, f.login.Calls())
		requirePassed(t, send(typeJSON, "{}", good, "junk"), "{}")
	})

	t.Run("answers as net/http does", func(t *testing.T) {
		f := start(t)
		mux := http.NewServeMux()
		cfg := f.Config()
		cfg.Timeout = time.Minute
		captcha, err := alicaptcha.New(cfg)
		require.NoError(t, err)
		mux.Handle("POST /login", captcha.Handler(&f.login))
		for _, accept := range []string{"", "text/html"} {
			for _, param := range []string{"", "junk"} {
				answer := func(h http.Handler) Answer {
					server := httptest.NewServer(h)
					defer server.Close()
					r, err := http.NewRequestWithContext(t.Context(), "POST", server.URL+"/login", strings.NewReader(JSON("", param)))
					require.NoError(t, err)
					r.Header = http.Header{"Accept": {accept}, "Accept-Language": {"zh-CN"}, "Content-Type": {typeJSON}}
					a := Do(t, r)
					a.Body = strings.ReplaceAll(a.Body, a.Header.Get("Captcha-Reference"), "REFERENCE")
					for _, name := range []string{"Captcha-Reference", "Date", "Content-Length", "Server", "Traceparent"} {
						a.Header.Del(name)
					}
					return a
				}
				require.Equal(t, answer(mux), answer(f.app))
			}
		}
	})

	// The service may be asked longer than a server keeps the memory of a request.
	t.Run("takes copies of the param", func(t *testing.T) {
		f := start(t)
		server := httptest.NewServer(f.app)
		defer server.Close()
		var sent []string
		for i := range 30 {
			param := strings.Repeat(string(rune('a'+i%26)), 100)
			sent = append(sent, param)
			body, header := JSON("alice", param), ""
			if i%2 == 1 {
				body, header = "{}", param
			}
			r, err := http.NewRequestWithContext(t.Context(), "POST", server.URL+"/login", strings.NewReader(body))
			require.NoError(t, err)
			r.Header = http.Header{"Content-Type": {typeJSON}, "Captcha-Verify-Param": {header}}
			RequireRejected(t, Do(t, r), 400, "captcha_invalid")
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		require.Equal(t, sent, f.params)
	})

	t.Run("lets one of many through", func(t *testing.T) {
		f := start(t)
		server := httptest.NewServer(f.app)
		defer server.Close()
		body := JSON("alice", f.Param(t))
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				resp, err := http.Post(server.URL+"/login", typeJSON, strings.NewReader(body))
				if err == nil {
					resp.Body.Close()
				}
			})
		}
		wg.Wait()
		require.Equal(t, 8, f.Count())
		require.Equal(t, 1, f.login.Calls())
	})

	t.Run("gates its route only", func(t *testing.T) {
		f := start(t)
		a := Send(t, f.app, "GET", "/", "", "")
		require.Equal(t, http.StatusOK, a.Status)
		require.Equal(t, "welcome", a.Body)
		require.Equal(t, http.StatusNotFound, Send(t, f.app, "POST", "/nowhere", typeJSON, "{}").Status)
		require.Contains(t, []int{404, 405, 501}, Send(t, f.app, "PUT", "/login", typeJSON, "{}").Status)
		require.Empty(t, f.Outcomes)

		alicaptchatest.AssertProtected(t, f.app, "POST /login")
		if app.Signup {
			alicaptchatest.AssertProtected(t, withUsername(f.app), "POST /signup")
		}
	})

	t.Run("has no way round", func(t *testing.T) {
		f := start(t)
		for _, target := range []string{
			"/login/", "//login", "/./login", "/x/../login", "/login/.", "/%6Cogin", "/LOGIN", "/login;x", "/login?x",
			"/%2Flogin", "%2Flogin", "/login%2F", "/login%00", "/x%2F..%2Flogin", "/login%3Fx", "/login:x", "http://other/login",
		} {
			for _, method := range []string{"POST", "post", "GET", "HEAD", "OPTIONS", "CONNECT"} {
				r := httptest.NewRequestWithContext(t.Context(), "POST", "/", strings.NewReader(JSON("alice", "")))
				r.Method = method
				r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
				r.Header.Set("X-HTTP-Method-Override", "POST")
				if u, err := url.ParseRequestURI(target); err == nil {
					r.URL = u
				} else {
					r.URL = &url.URL{Path: "/login", RawPath: target}
				}
				f.app.ServeHTTP(httptest.NewRecorder(), r)
				require.Zero(t, f.login.Calls(), "%s %s", method, target)
			}
		}
	})

	t.Run("a client that hangs up", func(t *testing.T) {
		f := startWith(t, time.Second)
		require.NoError(t, f.SetFaults(alicaptchatest.Faults{Hang: alicaptchatest.StageHeaders}))
		server := httptest.NewServer(f.app)
		defer server.Close()
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			<-f.Asked
			cancel()
		}()
		// An HTTP/1 server notices the disconnect once it has read the body.
		body := `{"username":"alice","captchaVerifyParam":"` + f.Param(t) + `"}`
		r, err := http.NewRequestWithContext(ctx, "POST", server.URL+"/login", strings.NewReader(body))
		require.NoError(t, err)
		r.Header.Set("Content-Type", typeJSON)
		_, err = http.DefaultClient.Do(r)
		require.ErrorIs(t, err, context.Canceled)
		require.Equal(t, alicaptcha.ClientCanceled, (<-f.Outcomes).Code)
		server.Close() // the request has ended
		require.Zero(t, f.login.Calls())
	})

	t.Run("a handler that panics", func(t *testing.T) {
		f := start(t)
		var logged LockedBuffer
		server := httptest.NewUnstartedServer(f.app)
		server.Config.ErrorLog = log.New(&logged, "", 0)
		server.Start()
		resp, err := http.Post(server.URL+"/login", typeJSON, strings.NewReader(JSON("boom", f.Param(t))))
		if err == nil {
			resp.Body.Close()
		}
		server.Close()
		require.Equal(t, 1, f.login.Calls())
		if app.Recovers {
			require.NoError(t, err)
			require.Equal(t, http.StatusInternalServerError, resp.StatusCode)
			require.Empty(t, logged.String())
		} else {
			require.Error(t, err)
			require.Contains(t, logged.String(), "panic serving")
			require.Contains(t, logged.String(), "boom")
		}
		body := JSON("alice", f.Param(t))
		requirePassed(t, Send(t, f.app, "POST", "/login", typeJSON, body), body)
	})

	if !app.Signup {
		return
	}
	t.Run("a handler that decides when", func(t *testing.T) {
		f := start(t)
		param := f.Param(t)
		require.Equal(t, http.StatusUnprocessableEntity, Send(t, f.app, "POST", "/signup", typeJSON, JSON("", param)).Status)
		require.Zero(t, f.Count(), "a bad form spends no param")
		require.Empty(t, f.Outcomes)
		require.Empty(t, f.created)

		require.Equal(t, http.StatusCreated, Send(t, f.app, "POST", "/signup", typeJSON, JSON("bob", param)).Status)
		RequireRejected(t, Send(t, f.app, "POST", "/signup", typeJSON, JSON("bob", param)), 403, "captcha_expired")
		RequireRejected(t, Send(t, f.app, "POST", "/signup", typeJSON, JSON("bob", "")), 400, "captcha_missing")
		require.Equal(t, 2, f.Count())
		require.Equal(t, []string{"bob"}, f.created)
	})

	if app.Buffers {
		return
	}
	t.Run("a handler that decides when bounds what it reads", func(t *testing.T) {
		f := start(t)
		const long = 40 << 20 // mime/multipart keeps less in memory
		for _, c := range []struct{ kind, text string }{
			{typeJSON, `{"username":"bob","padding":"`},
			{"multipart/form-data; boundary=b", "--b\r\nContent-Disposition: form-data; name=username\r\n\r\nbob" +
				"\r\n--b\r\nContent-Disposition: form-data; name=file; filename=file\r\n\r\n"},
			{"application/x-www-form-urlencoded", "username=bob&file="},
		} {
			files := t.TempDir()
			t.Setenv("TMPDIR", files)
			rest := strings.NewReader(strings.Repeat("x", long))
			r := httptest.NewRequestWithContext(t.Context(), "POST", "/signup", io.MultiReader(strings.NewReader(c.text), rest))
			r.Header.Set("Content-Type", c.kind)
			w := httptest.NewRecorder()
			f.app.ServeHTTP(w, r)
			require.Equal(t, http.StatusUnprocessableEntity, w.Code, c.kind)
			left, err := os.ReadDir(files)
			require.NoError(t, err)
			require.Empty(t, left, c.kind)
			require.Less(t, long-rest.Len(), 1<<20, c.kind)
		}
		require.Empty(t, f.Outcomes)
		require.Empty(t, f.created)
	})
}

// withUsername gives requests the body with which signup comes to its Require.
func withUsername(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = io.NopCloser(strings.NewReader(JSON("bob", "")))
		r.ContentLength = -1
		h.ServeHTTP(w, r)
	})
}

// Hang starts a service that hangs, and returns a gate whose calls end after timeout.
func Hang(t *testing.T, timeout time.Duration) (*Service, *alicaptcha.Middleware) {
	t.Helper()
	service := Start(t)
	require.NoError(t, service.SetFaults(alicaptchatest.Faults{Hang: alicaptchatest.StageHeaders}))
	cfg := service.Config()
	cfg.Timeout = timeout
	captcha, err := alicaptcha.New(cfg)
	require.NoError(t, err)
	return service, captcha
}

// A LockedBuffer is a buffer for logs that several goroutines write.
type LockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write implements [io.Writer].
func (b *LockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

// String returns what was written.
func (b *LockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
