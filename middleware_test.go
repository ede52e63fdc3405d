package alicaptcha_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/gorilla/mux"
	"github.com/stretchr/testify/require"
	"golang.org/x/time/rate"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

// param is what the tests of the middleware send; what it means is the Verifier's matter.
const param = "a-param-that-must-not-be-logged"

// A spy is a Verifier that records what it was asked and answers by do.
type spy struct {
	mu   sync.Mutex
	seen []alicaptcha.Request
	do   func(ctx context.Context, req alicaptcha.Request) (alicaptcha.Result, error)
}

func (s *spy) Verify(ctx context.Context, req alicaptcha.Request) (alicaptcha.Result, error) {
	s.mu.Lock()
	s.seen = append(s.seen, req)
	s.mu.Unlock()
	return s.do(ctx, req)
}

func (s *spy) asked() []alicaptcha.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]alicaptcha.Request(nil), s.seen...)
}

// answering returns a Verifier that always gives that answer.
func answering(result alicaptcha.Result, err error) *spy {
	return &spy{do: func(context.Context, alicaptcha.Request) (alicaptcha.Result, error) { return result, err }}
}

func passing() *spy { return answering(alicaptcha.Result{Passed: true, Code: alicaptcha.T001}, nil) }

// A logbook is a slog.Handler that keeps its records.
type logbook struct {
	mu      sync.Mutex
	records []slog.Record
}

func (l *logbook) Enabled(context.Context, slog.Level) bool { return true }
func (l *logbook) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *logbook) WithGroup(string) slog.Handler            { return l }
func (l *logbook) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.records = append(l.records, r)
	return nil
}

func (l *logbook) levels() []slog.Level {
	l.mu.Lock()
	defer l.mu.Unlock()
	var levels []slog.Level
	for _, r := range l.records {
		levels = append(levels, r.Level)
	}
	return levels
}

func (l *logbook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var b strings.Builder
	for _, r := range l.records {
		fmt.Fprintf(&b, "%s %s", r.Level, r.Message)
		r.Attrs(func(a slog.Attr) bool { fmt.Fprintf(&b, " %s=%v", a.Key, a.Value); return true })
		b.WriteByte('\n')
	}
	return b.String()
}

// A trial is one request through one gate, and all that can be seen of it.
type trial struct {
	*httptest.ResponseRecorder
	called   bool               // the handler was
	inside   alicaptcha.Outcome // what the handler found in its context
	observed []alicaptcha.Outcome
	log      *logbook
}

// try sends r through a gate of cfg. SceneID, Logger and Observe are set for it
// where cfg has none.
func try(t *testing.T, cfg alicaptcha.Config, r *http.Request) *trial {
	t.Helper()
	tr := &trial{ResponseRecorder: httptest.NewRecorder(), log: new(logbook)}
	if cfg.SceneID == "" && cfg.SceneIDFunc == nil && !cfg.AnyScene {
		cfg.SceneID = "login"
	}
	cfg.Logger = slog.New(tr.log)
	cfg.Observe = func(_ context.Context, o alicaptcha.Outcome) { tr.observed = append(tr.observed, o) }
	m, err := alicaptcha.New(cfg)
	require.NoError(t, err)
	m.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tr.called = true
		tr.inside, _ = alicaptcha.FromContext(r.Context())
		w.WriteHeader(http.StatusNoContent)
	})).ServeHTTP(tr, r)
	return tr
}

// outcome returns the only one that was observed.
func (tr *trial) outcome(t *testing.T) alicaptcha.Outcome {
	t.Helper()
	require.Len(t, tr.observed, 1)
	return tr.observed[0]
}

func jsonRequest(body string) *http.Request {
	r := httptest.NewRequest("POST", "/login", strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	return r
}

func loginRequest() *http.Request {
	return jsonRequest(`{"username":"alice","captchaVerifyParam":"` + param + `"}`)
}

// reason returns the member of that name in a problem+json body.
func reason(t *testing.T, w *httptest.ResponseRecorder) string {
	t.Helper()
	require.Equal(t, "application/problem+json", w.Header().Get("Content-Type"))
	var body struct{ Reason string }
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &body))
	return body.Reason
}

// The same table over each way of wiring the middleware.
func TestRouters(t *testing.T) {
	server := alicaptchatest.Start(t, alicaptchatest.Config{})
	client := server.Client()
	gate := func(scene string) *alicaptcha.Middleware {
		m, err := alicaptcha.New(alicaptcha.Config{Verifier: client, SceneID: scene, Logger: slog.New(slog.DiscardHandler)})
		require.NoError(t, err)
		return m
	}
	login, signup := gate("login"), gate("signup")
	// The handler reads its own fields after the gate has read the body.
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		o, ok := alicaptcha.FromContext(r.Context())
		var name string
		if strings.HasPrefix(r.Header.Get("Content-Type"), "application/json") {
			var body struct{ Username string }
			if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
				http.Error(w, "unreadable", http.StatusUnprocessableEntity)
				return
			}
			name = body.Username
		} else {
			name = r.PostFormValue("username")
		}
		fmt.Fprintf(w, "%s %v %v %s", name, ok, o.Verified, o.Code)
	})

	chiRouter := chi.NewRouter()
	chiRouter.With(login.Handler).Post("/login", handler.ServeHTTP)
	chiRouter.With(signup.Handler).Post("/signup", handler.ServeHTTP)

	muxRouter := mux.NewRouter()
	loginRoutes := muxRouter.Path("/login").Methods("POST").Subrouter()
	loginRoutes.Use(login.Handler)
	loginRoutes.Handle("", handler)
	signupRoutes := muxRouter.Path("/signup").Methods("POST").Subrouter()
	signupRoutes.Use(signup.Handler)
	signupRoutes.Handle("", handler)

	serveMux := http.NewServeMux()
	serveMux.Handle("POST /login", login.Handler(handler))
	serveMux.Handle("POST /signup", signup.Handler(handler))

	gatedLogin, gatedSignup := login.Handler(handler), signup.Handler(handler)
	bare := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/signup" {
			gatedSignup.ServeHTTP(w, r)
			return
		}
		gatedLogin.ServeHTTP(w, r)
	})

	issue := func(scene string, code alicaptcha.Code, format alicaptchatest.Format) string {
		p, err := server.Issue(alicaptchatest.Issue{SceneID: scene, Code: code, Format: format})
		require.NoError(t, err)
		return p
	}
	asJSON := func(param string) (string, string) {
		body, err := json.Marshal(map[string]string{"username": "alice", "captchaVerifyParam": param})
		require.NoError(t, err)
		return "application/json", string(body)
	}
	asForm := func(param string) (string, string) {
		return "application/x-www-form-urlencoded", url.Values{"captchaVerifyParam": {param}, "username": {"alice"}}.Encode()
	}
	asMultipart := func(param string) (string, string) {
		var b bytes.Buffer
		w := multipart.NewWriter(&b)
		require.NoError(t, w.WriteField("CaptchaVerifyParam", param))
		require.NoError(t, w.WriteField("username", "alice"))
		require.NoError(t, w.Close())
		return w.FormDataContentType(), b.String()
	}

	for name, router := range map[string]http.Handler{"chi": chiRouter, "gorilla": muxRouter, "ServeMux": serveMux, "bare": bare} {
		t.Run(name, func(t *testing.T) {
			web := httptest.NewServer(router)
			defer web.Close()
			used := issue("login", "T001", alicaptchatest.V3)
			usedV2 := issue("signup", "T001", alicaptchatest.V2)
			for _, row := range []struct {
				path   string
				encode func(string) (string, string)
				param  string
				status int
				answer string // the handler's, or the reason
			}{
				{"/login", asJSON, "", 400, "captcha_missing"},
				{"/login", asJSON, used, 200, "alice true true T001"},
				{"/login", asJSON, used, 403, "captcha_expired"},
				{"/login", asJSON, issue("login", "T001", alicaptchatest.V2), 200, "alice true true T001"},
				{"/login", asJSON, issue("login", "F010", alicaptchatest.V3), 429, "captcha_rate_limited"},
				{"/login", asJSON, "junk", 400, "captcha_invalid"},
				{"/login", asJSON, issue("signup", "T001", alicaptchatest.V3), 403, "captcha_rejected"},
				{"/signup", asForm, "", 400, "captcha_missing"},
				{"/signup", asForm, usedV2, 200, "alice true true T001"},
				{"/signup", asForm, usedV2, 403, "captcha_expired"},
				{"/signup", asForm, issue("login", "T001", alicaptchatest.V2), 403, "captcha_rejected"},
				{"/signup", asForm, "junk", 400, "captcha_invalid"},
				{"/signup", asMultipart, issue("signup", "T001", alicaptchatest.V2), 200, "alice true true T001"},
				{"/signup", asMultipart, issue("signup", "F009", alicaptchatest.V3), 403, "captcha_rejected"},
				{"/signup", asMultipart, "", 400, "captcha_missing"},
			} {
				contentType, body := row.encode(row.param)
				resp, err := web.Client().Post(web.URL+row.path, contentType, strings.NewReader(body))
				require.NoError(t, err)
				answer, err := io.ReadAll(resp.Body)
				require.NoError(t, err)
				resp.Body.Close()
				require.Equal(t, row.status, resp.StatusCode, "%s: %s", row.answer, answer)
				require.Contains(t, string(answer), row.answer)
				if row.status == 429 {
					require.Equal(t, "60", resp.Header.Get("Retry-After"))
				}
				if row.status != 200 {
					require.Equal(t, "application/problem+json", resp.Header.Get("Content-Type"))
				}
			}
		})
	}
}

func TestNewReportsEveryFault(t *testing.T) {
	t.Parallel()
	someScene := func(*http.Request) string { return "login" }
	for _, row := range []struct {
		name  string
		cfg   alicaptcha.Config
		wants []string
	}{
		{"zero", alicaptcha.Config{}, []string{"Config.Verifier", "Config.SceneID"}},
		{"nil func", alicaptcha.Config{Verifier: alicaptcha.VerifierFunc(nil), SceneID: "x"}, []string{"Config.Verifier"}},
		{"nil pointer", alicaptcha.Config{Verifier: (*alicaptcha.Client)(nil), SceneID: "x"}, []string{"Config.Verifier"}},
		{"two scenes", alicaptcha.Config{Verifier: passing(), SceneID: "x", AnyScene: true}, []string{"Config.SceneID"}},
		{"scene and func", alicaptcha.Config{Verifier: passing(), SceneID: "x", SceneIDFunc: someScene}, []string{"Config.SceneID"}},
		{"func and any", alicaptcha.Config{Verifier: passing(), AnyScene: true, SceneIDFunc: someScene}, []string{"Config.SceneID"}},
		{"newline", alicaptcha.Config{Verifier: passing(), SceneID: "x\n"}, []string{"Config.SceneID"}},
		{"not UTF-8", alicaptcha.Config{Verifier: passing(), SceneID: "x\xff"}, []string{"Config.SceneID"}},
		{"nil extractor", alicaptcha.Config{Verifier: passing(), SceneID: "x", Extractors: []alicaptcha.Extractor{alicaptcha.FromHeader("A"), nil}}, []string{"Config.Extractors[1]"}},
		{"no extractor", alicaptcha.Config{Verifier: passing(), SceneID: "x", Extractors: []alicaptcha.Extractor{}}, []string{"Config.Extractors"}},
		{"all numbers", alicaptcha.Config{Verifier: passing(), SceneID: "x", Timeout: -1, MaxParamBytes: -1, MaxBodyBytes: -1, MaxConcurrent: -1},
			[]string{"Config.Timeout", "Config.MaxParamBytes", "Config.MaxBodyBytes", "Config.MaxConcurrent"}},
		{"policy and verifier", alicaptcha.Config{SceneID: "x", Policy: alicaptcha.Policy{"X1": {}, alicaptcha.F001: {Status: 302}}},
			[]string{"Config.Verifier", `Config.Policy["F001"]`, `Config.Policy["X1"]`}},
	} {
		t.Run(row.name, func(t *testing.T) {
			m, err := alicaptcha.New(row.cfg)
			require.Nil(t, m)
			require.Error(t, err)
			faults := err.(interface{ Unwrap() []error }).Unwrap()
			require.Len(t, faults, len(row.wants), "%v", err)
			for i, want := range row.wants {
				require.True(t, strings.HasPrefix(faults[i].Error(), "alicaptcha: "+want), "%v", faults[i])
			}
		})
	}
}

func TestNewCopiesItsConfig(t *testing.T) {
	t.Parallel()
	cfg := alicaptcha.Config{
		Verifier: alicaptchatest.Rejecting(alicaptcha.F009), SceneID: "login", Logger: slog.New(slog.DiscardHandler),
		Policy:     alicaptcha.Policy{alicaptcha.F009: alicaptcha.Reject(451)},
		Extractors: alicaptcha.DefaultExtractors(),
	}
	m, err := alicaptcha.New(cfg)
	require.NoError(t, err)
	cfg.Policy[alicaptcha.F009] = alicaptcha.Allow()
	for i := range cfg.Extractors {
		cfg.Extractors[i] = func(*http.Request) (string, error) { return "", nil }
	}
	o := m.Check(loginRequest())
	require.Equal(t, alicaptcha.F009, o.Code)
	require.Equal(t, 451, o.Action.Status)
}

// What a nil or zero Middleware wraps is shut, and so is Require without one.
func TestNoMiddlewareRejects(t *testing.T) {
	reached := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the handler was called") })
	require503 := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if alicaptcha.Require(w, r) {
			t.Error("Require passed")
		}
	})
	for name, handler := range map[string]http.Handler{
		"nil":           (*alicaptcha.Middleware)(nil).Handler(reached),
		"zero":          new(alicaptcha.Middleware).Handler(reached),
		"nil deferred":  (*alicaptcha.Middleware)(nil).Deferred(require503),
		"zero deferred": new(alicaptcha.Middleware).Deferred(require503),
		"none":          require503,
	} {
		t.Run(name, func(t *testing.T) {
			log := quietDefault(t)
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, loginRequest())
			require.Equal(t, 503, w.Code)
			require.Equal(t, "captcha_unavailable", reason(t, w))
			require.Equal(t, []slog.Level{slog.LevelError}, log.levels())
		})
	}
	quietDefault(t)
	for _, m := range []*alicaptcha.Middleware{nil, new(alicaptcha.Middleware)} {
		o := m.Check(loginRequest())
		require.Equal(t, alicaptcha.Misconfigured, o.Code)
		require.False(t, o.Allowed)
		require.False(t, o.Verified)
		require.Error(t, o.Err)
	}
}

// quietDefault puts a logbook in the place of slog's default for the test.
func quietDefault(t *testing.T) *logbook {
	log, before := new(logbook), slog.Default()
	slog.SetDefault(slog.New(log))
	t.Cleanup(func() { slog.SetDefault(before) })
	return log
}

func TestNilHandlerPanics(t *testing.T) {
	t.Parallel()
	m, err := alicaptcha.New(alicaptcha.Config{Verifier: passing(), SceneID: "login"})
	require.NoError(t, err)
	require.Panics(t, func() { m.Handler(nil) })
	require.Panics(t, func() { m.Deferred(nil) })
}

func TestEveryMethodIsGated(t *testing.T) {
	t.Parallel()
	for _, method := range []string{"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "BREW"} {
		tr := try(t, alicaptcha.Config{Verifier: passing()}, httptest.NewRequest(method, "/login", nil))
		require.False(t, tr.called, method)
		require.Equal(t, 400, tr.Code, method)
	}
}

// The gate knows no origin, no address and no earlier request: SECURITY.md says
// that others have to.
func TestGateKnowsNoOrigin(t *testing.T) {
	t.Parallel()
	verifier := passing()
	for _, address := range []string{"192.0.2.1:1", "198.51.100.1:1"} {
		r := loginRequest()
		r.RemoteAddr = address
		r.Header.Set("Origin", "https://elsewhere.example")
		r.Header.Set("Sec-Fetch-Site", "cross-site")
		require.True(t, try(t, alicaptcha.Config{Verifier: verifier}, r).called)
	}
	asked := verifier.asked()
	require.Len(t, asked, 2)
	require.Equal(t, asked[0], asked[1])
}

func TestResponseWriterGoesOnUnwrapped(t *testing.T) {
	t.Parallel()
	m, err := alicaptcha.New(alicaptcha.Config{Verifier: passing(), SceneID: "login"})
	require.NoError(t, err)
	w := httptest.NewRecorder()
	next := http.HandlerFunc(func(got http.ResponseWriter, _ *http.Request) { require.Same(t, w, got) })
	m.Handler(next).ServeHTTP(w, loginRequest())
	m.Deferred(next).ServeHTTP(w, loginRequest())
}

func TestScenes(t *testing.T) {
	t.Parallel()
	byPath := func(r *http.Request) string { return map[string]string{"/login": "scene-of-login"}[r.URL.Path] }
	for _, row := range []struct {
		name  string
		cfg   alicaptcha.Config
		path  string
		scene string
	}{
		{"fixed", alicaptcha.Config{SceneID: "fixed"}, "/login", "fixed"},
		{"by route", alicaptcha.Config{SceneIDFunc: byPath}, "/login", "scene-of-login"},
		{"any", alicaptcha.Config{AnyScene: true}, "/login", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			verifier := passing()
			row.cfg.Verifier = verifier
			r := loginRequest()
			// A scene in the request is the client's word, and nobody asks for it.
			r.URL.RawQuery = "SceneId=other"
			r.Header.Set("SceneId", "other")
			tr := try(t, row.cfg, r)
			require.True(t, tr.called)
			require.Equal(t, []alicaptcha.Request{{Param: param, SceneID: row.scene}}, verifier.asked())
			require.Equal(t, row.scene, tr.outcome(t).SceneID)
		})
	}

	t.Run("none is never opened", func(t *testing.T) {
		verifier := passing()
		r := loginRequest()
		r.URL.Path = "/elsewhere"
		tr := try(t, alicaptcha.Config{Verifier: verifier, SceneIDFunc: byPath, Policy: openEverything()}, r)
		require.False(t, tr.called)
		require.Equal(t, 503, tr.Code)
		require.Equal(t, alicaptcha.Misconfigured, tr.outcome(t).Code)
		require.Empty(t, verifier.asked())
		require.Equal(t, []slog.Level{slog.LevelError}, tr.log.levels())
	})
}

// openEverything opens what a Policy can open.
func openEverything() alicaptcha.Policy {
	all := alicaptcha.AllowAtMost(rate.NewLimiter(rate.Inf, 0))
	return alicaptcha.Policy{
		alicaptcha.ServiceTimeout: all, alicaptcha.ServiceUnavailable: all, alicaptcha.Misconfigured: all,
		alicaptcha.T005: alicaptcha.Allow(), alicaptcha.F001: alicaptcha.Allow(),
	}
}

// What a Verifier returns is read strictly, and what is no verdict is only
// opened where it is an error that it returned.
func TestVerifierIsReadStrictly(t *testing.T) {
	t.Parallel()
	fails := func(code alicaptcha.Code) error { return &alicaptcha.Error{Code: code} }
	for _, row := range []struct {
		name   string
		result alicaptcha.Result
		err    error
		want   alicaptcha.Code
		opens  bool // under openEverything
	}{
		{"pass", alicaptcha.Result{Passed: true, Code: "T001"}, nil, "T001", true},
		{"allow-list", alicaptcha.Result{Passed: true, Code: "T006"}, nil, "T006", true},
		{"unknown T", alicaptcha.Result{Passed: true, Code: "T123"}, nil, "T123", true},
		{"older service passes", alicaptcha.Result{Passed: true}, nil, "T001", true},
		{"older service refuses", alicaptcha.Result{}, nil, "F001", true},
		{"unknown F", alicaptcha.Result{Code: "F999"}, nil, "F999", false},
		{"contradiction", alicaptcha.Result{Passed: true, Code: "F001"}, nil, "service_unavailable", false},
		{"contradiction the other way", alicaptcha.Result{Code: "T001"}, nil, "service_unavailable", false},
		{"a word", alicaptcha.Result{Code: alicaptcha.ServiceTimeout}, nil, "service_unavailable", false},
		{"a passing word", alicaptcha.Result{Passed: true, Code: alicaptcha.ParamMissing}, nil, "service_unavailable", false},
		{"short", alicaptcha.Result{Passed: true, Code: "T1"}, nil, "service_unavailable", false},
		{"long", alicaptcha.Result{Passed: true, Code: "T0011"}, nil, "service_unavailable", false},
		{"lower case", alicaptcha.Result{Passed: true, Code: "t001"}, nil, "service_unavailable", false},
		{"letters", alicaptcha.Result{Passed: true, Code: "Tabc"}, nil, "service_unavailable", false},
		{"a pass beside an error", alicaptcha.Result{Passed: true, Code: "T001"}, fails(alicaptcha.ServiceThrottled), "service_throttled", false},
		{"plain error", alicaptcha.Result{}, errors.New("oops"), "service_unavailable", true},
		{"nil *Error", alicaptcha.Result{}, (*alicaptcha.Error)(nil), "service_unavailable", true},
		{"empty *Error", alicaptcha.Result{}, &alicaptcha.Error{}, "service_unavailable", true},
		{"*Error with a T code", alicaptcha.Result{}, fails("T001"), "service_unavailable", true},
		{"*Error with an F code", alicaptcha.Result{}, fails("F001"), "service_unavailable", true},
		{"*Error with a code of nobody", alicaptcha.Result{}, fails("sunny"), "service_unavailable", true},
		{"ParamMissing", alicaptcha.Result{}, fails(alicaptcha.ParamMissing), "service_unavailable", true},
		{"ClientCanceled while the request lives", alicaptcha.Result{}, fails(alicaptcha.ClientCanceled), "service_unavailable", true},
		{"a context error while the request lives", alicaptcha.Result{}, context.Canceled, "service_unavailable", true},
		{"a deadline that is not ours", alicaptcha.Result{}, context.DeadlineExceeded, "service_unavailable", true},
		{"wrapped", alicaptcha.Result{}, fmt.Errorf("outer: %w", fails(alicaptcha.ServiceTimeout)), "service_timeout", true},
		{"ParamMalformed", alicaptcha.Result{}, fails(alicaptcha.ParamMalformed), "param_malformed", false},
		{"ParamTooLarge", alicaptcha.Result{}, fails(alicaptcha.ParamTooLarge), "param_too_large", false},
		{"RequestRefused", alicaptcha.Result{}, fails(alicaptcha.RequestRefused), "request_refused", false},
		{"Overloaded", alicaptcha.Result{}, fails(alicaptcha.Overloaded), "overloaded", false},
		{"Misconfigured", alicaptcha.Result{}, fails(alicaptcha.Misconfigured), "misconfigured", true},
	} {
		t.Run(row.name, func(t *testing.T) {
			tr := try(t, alicaptcha.Config{Verifier: answering(row.result, row.err)}, loginRequest())
			o := tr.outcome(t)
			require.Equal(t, row.want, o.Code)
			passed := strings.HasPrefix(string(row.want), "T")
			require.Equal(t, passed, o.Verified)
			require.Equal(t, passed, tr.called)
			if len(row.want) == 4 {
				require.NoError(t, o.Err)
				require.Equal(t, row.want, o.Result.Code)
			} else {
				var typed *alicaptcha.Error
				require.ErrorAs(t, o.Err, &typed)
				require.Equal(t, row.want, typed.Code)
				require.Zero(t, o.Result)
				if row.err != nil && !strings.HasPrefix(row.name, "nil") {
					require.ErrorIs(t, o.Err, unwrapTo(row.err))
				}
			}

			tr = try(t, alicaptcha.Config{Verifier: answering(row.result, row.err), Policy: openEverything()}, loginRequest())
			require.Equal(t, row.opens, tr.called)
			require.Equal(t, passed, tr.outcome(t).Verified)
		})
	}
}

// unwrapTo returns the *Error inside err, or err.
func unwrapTo(err error) error {
	if e, ok := errors.AsType[*alicaptcha.Error](err); ok && e != nil {
		return e
	}
	return err
}

func TestPanickingVerifier(t *testing.T) {
	t.Parallel()
	panicking := func(v any) *spy {
		return &spy{do: func(context.Context, alicaptcha.Request) (alicaptcha.Result, error) { panic(v) }}
	}
	secret := "panic text with " + param
	for name, v := range map[string]any{"text": secret, "error": errors.New(secret), "slice": []string{secret}, "map": map[string]string{}} {
		t.Run(name, func(t *testing.T) {
			tr := try(t, alicaptcha.Config{Verifier: panicking(v), Policy: openEverything()}, loginRequest())
			require.False(t, tr.called)
			require.Equal(t, 503, tr.Code)
			require.Equal(t, alicaptcha.ServiceUnavailable, tr.outcome(t).Code)
			require.Contains(t, tr.log.String(), "middleware_test.go", "the stack")
			require.Contains(t, tr.log.String(), fmt.Sprintf("captcha.panic=%T", v))
			require.NotContains(t, tr.log.String()+tr.Body.String(), secret)
		})
	}
	t.Run("the place is given back, and the stack is logged once", func(t *testing.T) {
		var log bytes.Buffer
		m, err := alicaptcha.New(alicaptcha.Config{Verifier: panicking("x"), SceneID: "login", MaxConcurrent: 1, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		require.NoError(t, err)
		for range 3 {
			require.Equal(t, alicaptcha.ServiceUnavailable, m.Check(loginRequest()).Code)
		}
		require.Equal(t, 1, strings.Count(log.String(), "captcha.stack"), log.String())
		require.Equal(t, 3, strings.Count(log.String(), "captcha: rejected"))
	})
	t.Run("ErrAbortHandler goes on", func(t *testing.T) {
		require.PanicsWithValue(t, http.ErrAbortHandler, func() {
			try(t, alicaptcha.Config{Verifier: panicking(http.ErrAbortHandler)}, loginRequest())
		})
	})
}

// Which context ended decides the Code, not what the Verifier says of it. A client
// that hangs up does not end the call.
func TestContexts(t *testing.T) {
	typed := func(err error) *spy {
		return &spy{do: func(ctx context.Context, _ alicaptcha.Request) (alicaptcha.Result, error) {
			<-ctx.Done()
			if err == nil {
				err = ctx.Err()
			}
			return alicaptcha.Result{}, err
		}}
	}
	hanging := func() *spy { return typed(nil) }
	answeringAfter := func(d time.Duration, passed bool) *spy {
		return &spy{do: func(ctx context.Context, _ alicaptcha.Request) (alicaptcha.Result, error) {
			select {
			case <-time.After(d):
				return alicaptcha.Result{Passed: passed}, nil
			case <-ctx.Done():
				return alicaptcha.Result{}, ctx.Err()
			}
		}}
	}
	timedOut := &alicaptcha.Error{Code: alicaptcha.ServiceTimeout}
	unavailable := &alicaptcha.Error{Code: alicaptcha.ServiceUnavailable}
	canceledAfter := func(d time.Duration) func(context.Context) (context.Context, context.CancelFunc) {
		return func(ctx context.Context) (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(ctx)
			time.AfterFunc(d, cancel)
			return ctx, cancel
		}
	}
	deadlineAfter := func(d time.Duration) func(context.Context) (context.Context, context.CancelFunc) {
		return func(ctx context.Context) (context.Context, context.CancelFunc) { return context.WithTimeout(ctx, d) }
	}
	both := func(ctx context.Context) (context.Context, context.CancelFunc) {
		ctx, cancel := context.WithTimeout(ctx, 900*time.Millisecond)
		time.AfterFunc(100*time.Millisecond, cancel)
		return ctx, cancel
	}
	const (
		second  = time.Second
		justNot = time.Second - 1
	)
	for _, row := range []struct {
		name     string
		verifier *spy
		context  func(context.Context) (context.Context, context.CancelFunc)
		timeout  time.Duration
		want     alicaptcha.Code
		took     time.Duration
		end      error // of the Verifier's context when it returns
	}{
		{"our timeout", hanging(), context.WithCancel, 0, alicaptcha.ServiceTimeout, 5 * second, context.DeadlineExceeded},
		{"our own timeout", hanging(), context.WithCancel, second, alicaptcha.ServiceTimeout, second, context.DeadlineExceeded},
		{"a longer deadline of the request", hanging(), deadlineAfter(time.Minute), second, alicaptcha.ServiceTimeout, second, context.DeadlineExceeded},
		{"the client goes", hanging(), canceledAfter(second), 0, alicaptcha.ClientCanceled, 5 * second, context.DeadlineExceeded},
		{"the client goes, and the service answers", answeringAfter(2*second, false), canceledAfter(second), 0, alicaptcha.ClientCanceled, 2 * second, nil},
		{"the client goes, and the service passes", answeringAfter(2*second, true), canceledAfter(second), 0, alicaptcha.ClientCanceled, 2 * second, nil},
		{"the client goes before the deadline", hanging(), both, 0, alicaptcha.ClientCanceled, 5 * second, context.DeadlineExceeded},
		{"the request's deadline leaves a second", hanging(), deadlineAfter(second), 0, alicaptcha.ServiceTimeout, second, context.DeadlineExceeded},
		{"the request's deadline leaves less", hanging(), deadlineAfter(justNot), 0, alicaptcha.Overloaded, justNot, context.Canceled},
		{"the request's deadline leaves less than a short Timeout", hanging(), deadlineAfter(99 * time.Millisecond), 100 * time.Millisecond, alicaptcha.Overloaded, 99 * time.Millisecond, context.Canceled},
		{"the request's deadline leaves a short Timeout", hanging(), deadlineAfter(100 * time.Millisecond), 100 * time.Millisecond, alicaptcha.ServiceTimeout, 100 * time.Millisecond, context.DeadlineExceeded},
		{"little time is enough for a pass", answeringAfter(second/2, true), deadlineAfter(justNot), 0, alicaptcha.T001, second / 2, nil},
		{"the client goes, the Verifier says timeout", typed(timedOut), canceledAfter(second), 0, alicaptcha.ClientCanceled, 5 * second, context.DeadlineExceeded},
		{"too little, the Verifier says unavailable", typed(unavailable), deadlineAfter(justNot), 0, alicaptcha.Overloaded, justNot, context.Canceled},
		{"the request's deadline, the Verifier knows better", typed(unavailable), deadlineAfter(second), 0, alicaptcha.ServiceUnavailable, second, context.DeadlineExceeded},
		{"our timeout, the Verifier knows better", typed(unavailable), context.WithCancel, 0, alicaptcha.ServiceUnavailable, 5 * second, context.DeadlineExceeded},
		{"gone before", passing(), canceledAfter(0), 0, alicaptcha.ClientCanceled, 0, nil},
		{"past the deadline before", passing(), deadlineAfter(0), 0, alicaptcha.Overloaded, 0, nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := row.context(context.Background())
				defer cancel()
				synctest.Wait()
				var end error
				inner := row.verifier.do
				row.verifier.do = func(ctx context.Context, req alicaptcha.Request) (alicaptcha.Result, error) {
					result, err := inner(ctx, req)
					synctest.Wait()
					end = ctx.Err()
					return result, err
				}
				start := time.Now()
				tr := try(t, alicaptcha.Config{Verifier: row.verifier, Timeout: row.timeout, Policy: openEverything()}, loginRequest().WithContext(ctx))
				require.Equal(t, row.took, time.Since(start))
				o := tr.outcome(t)
				require.Equal(t, row.want, o.Code)
				require.Equal(t, row.took, o.Duration)
				require.Equal(t, row.took == 0, len(row.verifier.asked()) == 0)
				require.Equal(t, row.want == alicaptcha.T001, o.Verified)
				opened := row.want == alicaptcha.ServiceTimeout || row.want == alicaptcha.ServiceUnavailable
				require.Equal(t, opened || o.Verified, tr.called, "only an outage of the service is opened")
				require.Equal(t, row.end, end)
			})
		})
	}
}

// At our own deadline an *Error whose Code is none that a Verifier may return is no
// timeout.
func TestOddErrorsAtTheDeadline(t *testing.T) {
	t.Parallel()
	for _, odd := range []*alicaptcha.Error{
		{}, nil, {Code: alicaptcha.T001}, {Code: alicaptcha.F001}, {Code: "sunny"},
		{Code: alicaptcha.ParamMissing}, {Code: alicaptcha.ClientCanceled}, {Err: context.DeadlineExceeded},
	} {
		for _, err := range []error{odd, fmt.Errorf("wrapped: %w", odd)} {
			synctest.Test(t, func(t *testing.T) {
				verifier := &spy{do: func(ctx context.Context, _ alicaptcha.Request) (alicaptcha.Result, error) {
					<-ctx.Done()
					return alicaptcha.Result{}, err
				}}
				o := try(t, alicaptcha.Config{Verifier: verifier}, loginRequest()).outcome(t)
				require.Equal(t, alicaptcha.ServiceUnavailable, o.Code, "%#v", odd)
				require.Equal(t, 5*time.Second, o.Duration)
			})
		}
	}
}

// A watchedContext counts what is to be called when it is done.
type watchedContext struct {
	context.Context
	watching *atomic.Int32
}

// Done is not that of a context of package context, which would not ask AfterFunc.
func (c watchedContext) Done() <-chan struct{} { return make(chan struct{}) }

func (c watchedContext) AfterFunc(f func()) (stop func() bool) {
	c.watching.Add(1)
	return func() bool { c.watching.Add(-1); return true }
}

// The context that a Verifier got ends with the call, and nothing of the call waits
// for the request's own: neither timers nor goroutines pile up.
func TestTheCallsContextEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for _, answer := range []func(){func() {}, func() { panic("x") }} {
			var asked context.Context
			var watching atomic.Int32
			during := int32(-1)
			verifier := &spy{do: func(ctx context.Context, _ alicaptcha.Request) (alicaptcha.Result, error) {
				asked, during = ctx, watching.Load()
				answer()
				return alicaptcha.Result{Passed: true}, nil
			}}
			m, err := alicaptcha.New(alicaptcha.Config{
				Verifier: verifier, SceneID: "login", Logger: slog.New(slog.DiscardHandler),
			})
			require.NoError(t, err)
			for deadline, watched := range map[time.Duration]int32{time.Hour: 0, 3 * time.Second: 0, time.Second / 2: 1} {
				ctx, cancel := context.WithTimeout(t.Context(), deadline)
				m.Check(loginRequest().WithContext(watchedContext{ctx, &watching}))
				require.ErrorIs(t, asked.Err(), context.Canceled, deadline)
				require.NoError(t, ctx.Err(), deadline)
				require.Equal(t, watched, during, deadline)
				require.Zero(t, watching.Load(), deadline)
				cancel()
			}
		}
	})
}

// A deadline that is shorter than Timeout is said, once a minute.
func TestShortDeadlineIsLogged(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log := new(logbook)
		m, err := alicaptcha.New(alicaptcha.Config{Verifier: passing(), SceneID: "login", Logger: slog.New(log)})
		require.NoError(t, err)
		check := func(d time.Duration) {
			ctx, cancel := context.WithTimeout(t.Context(), d)
			defer cancel()
			require.True(t, m.Check(loginRequest().WithContext(ctx)).Verified)
		}
		lines := func() int { return strings.Count(log.String(), "leaves the call less time than Config.Timeout") }
		check(5 * time.Second)
		require.Zero(t, lines())
		for range 10 {
			check(3 * time.Second)
		}
		require.Equal(t, 1, lines())
		require.Contains(t, log.String(), "WARN captcha: the request's own deadline")
		require.Contains(t, log.String(), "captcha.left=3s captcha.timeout=5s")
		time.Sleep(time.Minute)
		check(time.Second)
		require.Equal(t, 2, lines())
	})
}

func TestClientCanceledHasNoBodyAndNoOnReject(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	tr := try(t, alicaptcha.Config{
		Verifier: passing(),
		OnReject: func(http.ResponseWriter, *http.Request, alicaptcha.Outcome) { t.Error("OnReject was called") },
	}, loginRequest().WithContext(ctx))
	require.Equal(t, 503, tr.Code)
	require.Empty(t, tr.Body.String())
	require.False(t, tr.called)
}

// At the limit a request is answered at once; reading a body holds no place.
func TestMaxConcurrent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		held, release := context.WithCancel(t.Context())
		verifier := &spy{do: func(context.Context, alicaptcha.Request) (alicaptcha.Result, error) {
			<-held.Done()
			return alicaptcha.Result{Passed: true}, nil
		}}
		m, err := alicaptcha.New(alicaptcha.Config{Verifier: verifier, SceneID: "login", MaxConcurrent: 2, Logger: slog.New(slog.DiscardHandler)})
		require.NoError(t, err)

		slow, feed := io.Pipe()
		defer feed.Close()
		outcomes := make(chan alicaptcha.Outcome, 3)
		go func() {
			r := httptest.NewRequest("POST", "/login", slow)
			r.Header.Set("Content-Type", "application/json")
			outcomes <- m.Check(r)
		}()
		synctest.Wait() // it waits for its body
		for range 2 {
			go func() { outcomes <- m.Check(loginRequest()) }()
		}
		synctest.Wait()
		require.Len(t, verifier.asked(), 2)

		require.Equal(t, alicaptcha.Overloaded, m.Check(loginRequest()).Code)
		require.Len(t, verifier.asked(), 2)

		release()
		for range 2 {
			require.True(t, (<-outcomes).Verified)
		}
		go io.WriteString(feed, `{"captchaVerifyParam":"late"}`)
		require.True(t, (<-outcomes).Verified)
	})
}

func TestReportOnly(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		verifier *spy
		r        *http.Request
		code     alicaptcha.Code
		allowed  bool
		level    slog.Level
	}{
		{passing(), loginRequest(), alicaptcha.T001, true, slog.LevelDebug},
		{answering(alicaptcha.Result{Code: "F001"}, nil), loginRequest(), alicaptcha.F001, false, slog.LevelWarn},
		{passing(), jsonRequest("{}"), alicaptcha.ParamMissing, false, slog.LevelWarn},
		{answering(alicaptcha.Result{}, errors.New("x")), loginRequest(), alicaptcha.ServiceUnavailable, false, slog.LevelWarn},
		{answering(alicaptcha.Result{Code: "F005"}, nil), loginRequest(), alicaptcha.F005, false, slog.LevelError},
	} {
		t.Run(string(row.code), func(t *testing.T) {
			tr := try(t, alicaptcha.Config{Verifier: row.verifier, ReportOnly: true}, row.r)
			require.True(t, tr.called)
			require.Equal(t, 204, tr.Code)
			o := tr.outcome(t)
			require.Equal(t, o, tr.inside)
			require.Equal(t, row.code, o.Code)
			require.Equal(t, row.allowed, o.Allowed)
			require.Equal(t, row.allowed, o.Verified)
			require.Equal(t, row.allowed, o.Action.Allow, "the Action is what would have been done")
			require.Equal(t, []slog.Level{row.level}, tr.log.levels())
		})
	}
}

func TestOnRejectGetsTheWholeOutcome(t *testing.T) {
	t.Parallel()
	var got alicaptcha.Outcome
	tr := try(t, alicaptcha.Config{
		Verifier: answering(alicaptcha.Result{Code: "F009", CertifyID: "certify", RequestID: "request"}, nil),
		OnReject: func(w http.ResponseWriter, r *http.Request, o alicaptcha.Outcome) {
			got = o
			fromContext, ok := alicaptcha.FromContext(r.Context())
			require.True(t, ok)
			require.Equal(t, o, fromContext)
			body, err := io.ReadAll(r.Body)
			require.NoError(t, err)
			require.Contains(t, string(body), "alice", "the body is whole here too")
			w.WriteHeader(http.StatusTeapot)
		},
	}, loginRequest())
	require.Equal(t, http.StatusTeapot, tr.Code)
	require.Equal(t, tr.outcome(t), got)
	require.Equal(t, "certify", got.Result.CertifyID)
	require.Equal(t, "request", got.Result.RequestID)
	require.Equal(t, 403, got.Action.Status)
	require.Equal(t, "captcha_rejected", got.Action.Reason)
}

func TestCheckLeavesTheBody(t *testing.T) {
	t.Parallel()
	m, err := alicaptcha.New(alicaptcha.Config{Verifier: passing(), SceneID: "login"})
	require.NoError(t, err)
	r := loginRequest()
	for range 2 { // and a second gate finds it too
		require.True(t, m.Check(r).Verified)
	}
	body, err := io.ReadAll(r.Body)
	require.NoError(t, err)
	require.JSONEq(t, `{"username":"alice","captchaVerifyParam":"`+param+`"}`, string(body))
	_, found := alicaptcha.FromContext(r.Context())
	require.False(t, found)
}

func TestDeferred(t *testing.T) {
	t.Parallel()
	gateOf := func(v alicaptcha.Verifier) *alicaptcha.Middleware {
		m, err := alicaptcha.New(alicaptcha.Config{Verifier: v, SceneID: "login", Logger: slog.New(slog.DiscardHandler)})
		require.NoError(t, err)
		return m
	}
	t.Run("nothing is asked before Require", func(t *testing.T) {
		verifier := passing()
		w := httptest.NewRecorder()
		gateOf(verifier).Deferred(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, found := alicaptcha.FromContext(r.Context())
			require.False(t, found)
			body, err := io.ReadAll(r.Body) // gone before Require asks for the param
			require.NoError(t, err)
			require.Contains(t, string(body), "alice")
			require.Empty(t, verifier.asked())

			require.True(t, alicaptcha.Require(w, r))
			o, found := alicaptcha.FromContext(r.Context())
			require.True(t, found)
			require.True(t, o.Verified)
			w.WriteHeader(http.StatusAccepted)
		})).ServeHTTP(w, loginRequest())
		require.Equal(t, http.StatusAccepted, w.Code)
		require.Len(t, verifier.asked(), 1)
	})
	t.Run("a handler that does not ask spends no param", func(t *testing.T) {
		verifier := passing()
		gateOf(verifier).Deferred(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})).ServeHTTP(httptest.NewRecorder(), loginRequest())
		require.Empty(t, verifier.asked())
	})
	t.Run("a rejection is written once", func(t *testing.T) {
		verifier := answering(alicaptcha.Result{Code: "F009"}, nil)
		w := httptest.NewRecorder()
		gateOf(verifier).Deferred(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			require.False(t, alicaptcha.Require(w, r))
			body := w.(*httptest.ResponseRecorder).Body.String()
			require.False(t, alicaptcha.Require(w, r))
			require.Equal(t, body, w.(*httptest.ResponseRecorder).Body.String())
			o, found := alicaptcha.FromContext(r.Context())
			require.True(t, found)
			require.Equal(t, alicaptcha.F009, o.Code)
		})).ServeHTTP(w, loginRequest())
		require.Equal(t, 403, w.Code)
		require.Len(t, verifier.asked(), 1)
	})
	t.Run("from many goroutines", func(t *testing.T) {
		verifier := passing()
		var passed atomic.Int32
		gateOf(verifier).Deferred(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			var all sync.WaitGroup
			for range 20 {
				all.Go(func() {
					if alicaptcha.Require(w, r) {
						passed.Add(1)
					}
					alicaptcha.FromContext(r.Context())
				})
			}
			all.Wait()
		})).ServeHTTP(httptest.NewRecorder(), loginRequest())
		require.EqualValues(t, 20, passed.Load())
		require.Len(t, verifier.asked(), 1)
	})
	t.Run("who is told no finds the rejection written", func(t *testing.T) {
		writing, release := make(chan struct{}), make(chan struct{})
		var written atomic.Bool
		m, err := alicaptcha.New(alicaptcha.Config{
			Verifier: answering(alicaptcha.Result{Code: "F001"}, nil), SceneID: "login", Logger: slog.New(slog.DiscardHandler),
			OnReject: func(http.ResponseWriter, *http.Request, alicaptcha.Outcome) {
				close(writing)
				<-release
				written.Store(true)
			},
		})
		require.NoError(t, err)
		m.Deferred(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			go alicaptcha.Require(w, r)
			<-writing
			time.AfterFunc(10*time.Millisecond, func() { close(release) }) // for the next to come back early, if it does
			require.False(t, alicaptcha.Require(w, r))
			require.True(t, written.Load())
		})).ServeHTTP(httptest.NewRecorder(), loginRequest())
	})
	t.Run("a param that is missing or malformed", func(t *testing.T) {
		for body, want := range map[string]int{`{}`: 400, `{"captchaVerifyParam":7}`: 400, `{"captchaVerifyParam":"` + strings.Repeat("x", 40<<10) + `"}`: 413} {
			w := httptest.NewRecorder()
			gateOf(passing()).Deferred(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				require.False(t, alicaptcha.Require(w, r))
			})).ServeHTTP(w, jsonRequest(body))
			require.Equal(t, want, w.Code)
		}
	})
	t.Run("after a panic of the Verifier it stays shut", func(t *testing.T) {
		verifier := &spy{do: func(context.Context, alicaptcha.Request) (alicaptcha.Result, error) { panic(http.ErrAbortHandler) }}
		gateOf(verifier).Deferred(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			require.Panics(t, func() { alicaptcha.Require(w, r) })
			require.False(t, alicaptcha.Require(w, r))
			require.Equal(t, 503, w.(*httptest.ResponseRecorder).Code)
			_, found := alicaptcha.FromContext(r.Context())
			require.False(t, found)
		})).ServeHTTP(httptest.NewRecorder(), loginRequest())
		require.Len(t, verifier.asked(), 1)
	})
	t.Run("report only", func(t *testing.T) {
		m, err := alicaptcha.New(alicaptcha.Config{
			Verifier: answering(alicaptcha.Result{Code: "F001"}, nil), SceneID: "login", ReportOnly: true, Logger: slog.New(slog.DiscardHandler),
		})
		require.NoError(t, err)
		m.Deferred(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			require.True(t, alicaptcha.Require(w, r))
			o, _ := alicaptcha.FromContext(r.Context())
			require.False(t, o.Allowed)
		})).ServeHTTP(httptest.NewRecorder(), loginRequest())
	})
}

func TestRequireUnderHandlerIsTrue(t *testing.T) {
	t.Parallel()
	for _, reportOnly := range []bool{false, true} {
		verifier := passing()
		if reportOnly {
			verifier = answering(alicaptcha.Result{Code: "F001"}, nil)
		}
		m, err := alicaptcha.New(alicaptcha.Config{Verifier: verifier, SceneID: "login", ReportOnly: reportOnly, Logger: slog.New(slog.DiscardHandler)})
		require.NoError(t, err)
		called := false
		m.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			called = true
			require.True(t, alicaptcha.Require(w, r))
		})).ServeHTTP(httptest.NewRecorder(), loginRequest())
		require.True(t, called)
		require.Len(t, verifier.asked(), 1)
	}
}

// A unit test of a handler needs no gate.
func TestRequireUnderNewContext(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		outcome alicaptcha.Outcome
		status  int
	}{
		{alicaptcha.Outcome{Allowed: true, Verified: true, Code: alicaptcha.T001}, 200},
		{alicaptcha.Outcome{Code: alicaptcha.ParamMissing}, 400},
		{alicaptcha.Outcome{Code: alicaptcha.F010}, 429},
		{alicaptcha.Outcome{Code: alicaptcha.F010, Action: alicaptcha.Reject(418)}, 418},
		{alicaptcha.Outcome{}, 403},
	} {
		w := httptest.NewRecorder()
		r := loginRequest()
		r = r.WithContext(alicaptchatest.NewContext(r.Context(), row.outcome))
		o, found := alicaptcha.FromContext(r.Context())
		require.True(t, found)
		require.Equal(t, row.outcome, o)
		require.Equal(t, row.status == 200, alicaptcha.Require(w, r))
		require.Equal(t, row.status, w.Code)
	}
}

// Nothing that a client or the service could smuggle in reaches a log line, an
// error's text or a response: neither the param, nor a key, nor the service's
// message.
func TestSecretsStayIn(t *testing.T) {
	t.Setenv("ALIBABA_CLOUD_ACCESS_KEY_ID", "")
	const (
		secret   = "the-secret-key"
		stsToken = "the-sts-token"
		message  = "the-service-says-so"
		long     = "the-long-identifier"
	)
	bodies := []string{
		`{"RequestId":"R","Message":"` + message + `","Code":"Success","Success":true,"Result":{"VerifyResult":true,"VerifyCode":"T001","CertifyId":"C"}}`,
		`{"RequestId":"R","Message":"` + message + `","Code":"Success","Success":true,"Result":{"VerifyResult":false,"VerifyCode":"F001"}}`,
		`{"RequestId":"R","Message":"` + message + `","Code":"` + message + " " + param + " " + secret + `","Success":false}`,
		`{"RequestId":"` + message + " " + param + `","Message":"` + message + `","Code":"Forbidden.RAMUserAccessDenied"}`,
		`{"RequestId":"R","Message":"` + message + `","Code":"Throttling.User"}`,
		`<Error><Code>SignatureDoesNotMatch</Code><Message>` + message + `</Message></Error>`,
		`<html>` + message + param + secret + stsToken + `</html>`,
		message + param,
		``,
		`{"RequestId":"R","Code":"Success","Success":true,"Result":{"VerifyResult":true,"VerifyCode":"T001","CertifyId":"` + strings.Repeat("x", 200) + long + `"}}`,
	}
	for _, status := range []int{200, 302, 400, 401, 403, 429, 500} {
		for _, body := range bodies {
			upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Location", "/elsewhere?"+message)
				w.WriteHeader(status)
				io.WriteString(w, body)
			}))
			client, err := alicaptcha.NewClient(alicaptcha.ClientConfig{
				Endpoint: upstream.URL, AccessKeyID: "the-id", AccessKeySecret: secret, SecurityToken: stsToken,
			})
			require.NoError(t, err)
			for _, accept := range []string{"*/*", "text/html"} {
				r := loginRequest()
				r.Header.Set("Accept", accept)
				tr := try(t, alicaptcha.Config{Verifier: client}, r)
				o := tr.outcome(t)
				require.NotEmpty(t, tr.log.String())
				all := tr.log.String() + tr.Body.String() + fmt.Sprint(tr.Header())
				if o.Err != nil {
					all += o.Err.Error()
				}
				for _, word := range []string{param, secret, stsToken, message, long, "the-id"} {
					require.NotContains(t, all, word, "status %d, body %s", status, body)
				}
			}
			upstream.Close()
		}
	}
}

// A log line holds what an operator looks for under stable keys.
func TestLogKeys(t *testing.T) {
	t.Parallel()
	tr := try(t, alicaptcha.Config{Verifier: answering(alicaptcha.Result{Code: "F001", CertifyID: "certify\n\x1b[31m", RequestID: "request"}, nil)}, loginRequest())
	require.Regexp(t, `^INFO captcha: rejected captcha.code=F001 captcha.duration=\S+ captcha.scene=login captcha.certify_id=certify\?\?\[31m captcha.request_id=request\n$`, tr.log.String())

	for body, want := range map[string]string{
		`{"captchaVerifyParam":7}`: "param_malformed: the field is not a string",
		`{`:                        "param_malformed: the body cannot be read as its Content-Type says",
		`{"captchaVerifyParam":"` + strings.Repeat("x", 40<<10) + `"}`:          "param_too_large: the param has 40960 bytes",
		`{"a":"` + strings.Repeat("x", 200<<10) + `","captchaVerifyParam":"x"}`: "param_too_large: not found in the first 131072 bytes of the body",
	} {
		require.Contains(t, try(t, alicaptcha.Config{Verifier: passing()}, jsonRequest(body)).log.String(), "captcha.error=alicaptcha: "+want)
	}

	r := loginRequest()
	r.Header.Set("Content-Encoding", "gzip")
	tr = try(t, alicaptcha.Config{Verifier: passing()}, r)
	require.Contains(t, tr.log.String(), "captcha.error=alicaptcha: param_malformed: the body is compressed\n")

	tr = try(t, alicaptcha.Config{Verifier: answering(alicaptcha.Result{}, &alicaptcha.Error{Code: alicaptcha.ServiceThrottled, Status: 429, ServiceCode: "Throttling.User", RequestID: "R1"})}, loginRequest())
	require.Contains(t, tr.log.String(), "captcha.error=alicaptcha: service_throttled (status 429, code Throttling.User, request R1)")
	require.Contains(t, tr.log.String(), "captcha.description=")
}

// What calls for the operator is said once a minute, not once a request.
func TestOperatorsFaultsAreLoggedOnceAMinute(t *testing.T) {
	t.Parallel()
	for _, code := range []alicaptcha.Code{alicaptcha.T005, alicaptcha.F004, alicaptcha.F005, alicaptcha.F006, alicaptcha.F012, alicaptcha.F016, alicaptcha.F021, alicaptcha.F022, alicaptcha.Misconfigured} {
		synctest.Test(t, func(t *testing.T) {
			log := new(logbook)
			verifier := answering(alicaptcha.Result{Code: code, Passed: code == alicaptcha.T005}, nil)
			if code == alicaptcha.Misconfigured {
				verifier = answering(alicaptcha.Result{}, &alicaptcha.Error{Code: code})
			}
			m, err := alicaptcha.New(alicaptcha.Config{Verifier: verifier, SceneID: "login", Logger: slog.New(log)})
			require.NoError(t, err)
			loud := func() (n int) {
				for _, level := range log.levels() {
					if level > slog.LevelInfo {
						n++
					}
				}
				return n
			}
			for range 100 {
				m.Check(loginRequest())
			}
			require.Equal(t, 1, loud())
			require.Len(t, log.levels(), 100, "the others are there, at info")
			time.Sleep(time.Minute)
			m.Check(loginRequest())
			require.Equal(t, 2, loud())
		})
	}
}

// Whoever opens an operator's fault still hears of it.
func TestOpenedFaultIsStillLogged(t *testing.T) {
	t.Parallel()
	log := new(logbook)
	m, err := alicaptcha.New(alicaptcha.Config{
		Verifier: alicaptchatest.Failing(alicaptcha.Misconfigured), SceneID: "login", Logger: slog.New(log),
		Policy: alicaptcha.Policy{alicaptcha.Misconfigured: alicaptcha.AllowAtMost(rate.NewLimiter(0, 2))},
	})
	require.NoError(t, err)
	for range 4 {
		m.Check(loginRequest())
	}
	require.Equal(t, []slog.Level{slog.LevelError, slog.LevelWarn, slog.LevelInfo, slog.LevelInfo}, log.levels())
}

// The gate costs a bounded number of goroutines: none stands after a request.
func TestNoGoroutineStaysBehind(t *testing.T) {
	m, err := alicaptcha.New(alicaptcha.Config{Verifier: passing(), SceneID: "login", Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	before := runtime.NumGoroutine()
	for range 1000 {
		ctx, cancel := context.WithCancel(context.Background())
		m.Check(loginRequest().WithContext(ctx))
		cancel()
	}
	require.Eventually(t, func() bool { return runtime.NumGoroutine() <= before+1 }, 10*time.Second, time.Millisecond)
}

func TestMain(m *testing.M) {
	// The environment of whoever runs the tests must not decide them.
	for _, name := range []string{"ALIBABA_CLOUD_ACCESS_KEY_ID", "ALIBABA_CLOUD_ACCESS_KEY_SECRET", "ALIBABA_CLOUD_SECURITY_TOKEN", "DEBUG"} {
		os.Unsetenv(name)
	}
	if os.Getenv(clientChild) != "" {
		clientBeChild()
		return
	}
	slog.SetDefault(slog.New(slog.DiscardHandler)) // else the lines of gates without a Logger bury a test's failure
	os.Exit(m.Run())
}
