package alicaptchatest_test

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.DiscardHandler)) // or log lines of gates without a Logger would bury a failure
	os.Exit(m.Run())
}

func newMiddleware(t *testing.T, cfg alicaptcha.Config) *alicaptcha.Middleware {
	t.Helper()
	if cfg.Verifier == nil {
		cfg.Verifier = alicaptchatest.Passing()
	}
	cfg.SceneID = "login"
	cfg.Logger = slog.New(slog.DiscardHandler)
	m, err := alicaptcha.New(cfg)
	require.NoError(t, err)
	return m
}

func TestAssertProtectedByMiddleware(t *testing.T) {
	t.Parallel()
	gate := newMiddleware(t, alicaptcha.Config{})
	reportOnly := newMiddleware(t, alicaptcha.Config{Mode: alicaptcha.ReportOnly})
	exempt := newMiddleware(t, alicaptcha.Config{Mode: alicaptcha.Exempt})
	open := newMiddleware(t, alicaptcha.Config{Policy: alicaptcha.Policy{alicaptcha.ParamMissing: alicaptcha.Allow()}})
	oddAnswer := newMiddleware(t, alicaptcha.Config{
		OnReject: func(http.ResponseWriter, *http.Request, alicaptcha.Outcome) {},
	})
	teapot := newMiddleware(t, alicaptcha.Config{
		OnReject: func(w http.ResponseWriter, _ *http.Request, _ alicaptcha.Outcome) {
			w.WriteHeader(http.StatusTeapot)
		},
	})
	polite := newMiddleware(t, alicaptcha.Config{
		OnReject: func(w http.ResponseWriter, _ *http.Request, _ alicaptcha.Outcome) {
			io.WriteString(w, `{"code":40001}`)
		},
	})
	inOrder := func(handlers ...http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			for _, h := range handlers {
				h.ServeHTTP(w, r)
			}
		})
	}
	asks := func(status int, heeds bool) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, proceed := alicaptcha.Ask(r.Context()); !proceed && heeds {
				w.WriteHeader(status)
				return
			}
			io.WriteString(w, "welcome")
		})
	}
	grpc := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/grpc+proto")
	})
	keepsBack := func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			kept := &keptBody{ResponseWriter: w}
			h.ServeHTTP(kept, r)
			w.Write(kept.body)
		})
	}
	writes := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "welcome") })
	flushes := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.(http.Flusher).Flush() })
	ok := status(200)
	requires := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if alicaptcha.Require(w, r) {
			w.WriteHeader(200)
		}
	})
	for name, c := range map[string]struct {
		h     http.Handler
		fault string
	}{
		"Handler":                     {gate.Handler(ok), ""},
		"zero Middleware":             {new(alicaptcha.Middleware).Handler(ok), ""},
		"Deferred, Require":           {gate.Deferred(requires), ""},
		"status 200 by OnReject":      {oddAnswer.Handler(ok), ""},
		"behind a timeout":            {http.TimeoutHandler(gate.Handler(ok), time.Minute, ""), ""},
		"not wrapped":                 {ok, "no gate was asked (status 200)"},
		"Require without a gate":      {requires, "no gate was asked (status 503)"},
		"Deferred, no Require":        {gate.Deferred(ok), "no gate was asked (status 200)"},
		"ReportOnly":                  {reportOnly.Handler(ok), "let a request without a param through"},
		"Exempt":                      {exempt.Handler(ok), "let a request without a param through"},
		"Deferred Exempt":             {exempt.Deferred(requires), "let a request without a param through"},
		"Deferred ReportOnly":         {reportOnly.Deferred(requires), "let a request without a param through"},
		"ParamMissing allowed":        {open.Handler(ok), "let a request without a param through"},
		"handler before the gate":     {inOrder(status(200), gate.Handler(ok)), "written before the rejection (status 200)"},
		"body before the gate":        {inOrder(writes, gate.Handler(ok)), "written before the rejection (status 200)"},
		"flush before the gate":       {inOrder(flushes, gate.Handler(ok)), "written before the rejection (status 200)"},
		"early hints only":            {inOrder(status(103), gate.Handler(ok)), ""},
		"handler after the rejection": {inOrder(gate.Handler(ok), writes), "the answer is not the rejection (status 400)"},
		"Require ignored": {gate.Deferred(inOrder(requires, writes)),
			"the answer is not the rejection (status 400)"},
		"kept back, before": {http.TimeoutHandler(inOrder(status(200), gate.Handler(ok)), time.Minute, ""),
			"the answer is not the rejection (status 200)"},
		"kept back, Require ignored": {http.TimeoutHandler(gate.Deferred(inOrder(requires, writes)), time.Minute, ""),
			"the answer is not the rejection (status 400)"},
		"kept back but for the status": {keepsBack(gate.Handler(ok)), ""},
		"kept back, another's 401": {http.TimeoutHandler(inOrder(status(401), gate.Handler(ok)), time.Minute, ""),
			"the answer is not the rejection (status 401)"},
		"kept back, OnReject": {http.TimeoutHandler(teapot.Handler(ok), time.Minute, ""), ""},
		"kept back, before OnReject": {http.TimeoutHandler(inOrder(status(200), teapot.Handler(ok)), time.Minute, ""),
			"the answer is not the rejection (status 200)"},
		"OnReject with 200":      {polite.Handler(ok), ""},
		"Ask":                    {gate.Deferred(asks(403, true)), ""},
		"Ask, gRPC":              {gate.Deferred(inOrder(grpc, asks(200, true))), ""},
		"Ask ignored":            {gate.Deferred(asks(403, false)), "the answer is not the rejection (status 200)"},
		"Ask, answered with 200": {gate.Deferred(asks(200, true)), "the answer is not the rejection (status 200)"},
		"body before Ask": {gate.Deferred(inOrder(writes, asks(403, true))),
			"written before the rejection (status 200)"},
		"let through, then forbidden": {open.Handler(status(403)), "let a request without a param through (status 403)"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fake := &fakeT{}
			require.Equal(t, c.fault == "", alicaptchatest.AssertProtected(fake, c.h, "POST /login", "GET /"))
			if c.fault == "" {
				require.Empty(t, fake.errors)
				return
			}
			require.Len(t, fake.errors, 2)
			require.Contains(t, fake.errors[0], c.fault)
		})
	}
}

func TestNewContextIsReadByRequire(t *testing.T) {
	t.Parallel()
	for _, want := range []alicaptcha.Outcome{
		{Code: alicaptcha.T001, Allowed: true, Verified: true},
		{Code: alicaptcha.F001, Action: alicaptcha.Reject(451)},
		{},
	} {
		r := httptest.NewRequest(http.MethodPost, "/", nil)
		r = r.WithContext(alicaptchatest.NewContext(r.Context(), want))
		got, ok := alicaptcha.FromContext(r.Context())
		require.True(t, ok)
		require.Equal(t, want, got)
		w := httptest.NewRecorder()
		require.Equal(t, want.Allowed, alicaptcha.Require(w, r))
		switch {
		case want.Allowed:
			require.Empty(t, w.Body.String())
		case want.Action.Status != 0:
			require.Equal(t, want.Action.Status, w.Code)
		default:
			require.Equal(t, 403, w.Code)
		}
	}
}

func TestDoublesBehindMiddleware(t *testing.T) {
	t.Parallel()
	for code, verifier := range map[alicaptcha.Code]alicaptcha.Verifier{
		alicaptcha.T001:               alicaptchatest.Passing(),
		alicaptcha.F009:               alicaptchatest.Rejecting(alicaptcha.F009),
		alicaptcha.ServiceTimeout:     alicaptchatest.Failing(alicaptcha.ServiceTimeout),
		alicaptcha.ServiceUnavailable: alicaptchatest.Failing(alicaptcha.ParamMissing), // as its comment says
	} {
		r := httptest.NewRequest(http.MethodPost, "/", nil)
		r.Header.Set("Captcha-Verify-Param", "x")
		o := newMiddleware(t, alicaptcha.Config{Verifier: verifier}).Check(r)
		require.Equal(t, code, o.Code)
		require.Equal(t, code == alicaptcha.T001, o.Verified)
	}
}

// The path of a param from the widget to the handler, in both formats.
func TestMiddlewareOnSimulator(t *testing.T) {
	t.Parallel()
	srv := alicaptchatest.StartTLS(t, alicaptchatest.Config{})
	gate := newMiddleware(t, alicaptcha.Config{Verifier: srv.Client()})
	h := gate.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		o, _ := alicaptcha.FromContext(r.Context())
		io.WriteString(w, string(o.Code))
	}))
	for _, i := range []alicaptchatest.Issue{{}, {Format: alicaptchatest.V2}, {Format: alicaptchatest.V2, Bytes: 28000}} {
		body := form(issue(t, srv, i))
		body = "c" + strings.TrimPrefix(body, "C") // the widget's captchaVerifyParam
		for n, want := range []int{200, 403} {
			r := httptest.NewRequest(http.MethodPost, "/login", strings.NewReader(body))
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			require.Equal(t, want, w.Code, w.Body)
			require.Equal(t, n == 0, w.Body.String() == "T001")
		}
	}
	for _, call := range srv.Calls() {
		require.Equal(t, "login", call.SceneID)
	}
	require.Equal(t, 6, srv.Count())
}

// The clock can also be moved while a Client is in use.
func TestClientSeesExpiry(t *testing.T) {
	t.Parallel()
	server := alicaptchatest.Start(t, alicaptchatest.Config{})
	client := server.Client()
	for _, row := range []struct {
		format alicaptchatest.Format
		age    time.Duration
		code   alicaptcha.Code
	}{
		{alicaptchatest.V2, 21 * time.Minute, "F014"},
		{alicaptchatest.V3, 91 * time.Second, "F019"},
		{alicaptchatest.V3, time.Minute, "T001"},
	} {
		param, err := server.Issue(alicaptchatest.Issue{SceneID: "login", Format: row.format})
		require.NoError(t, err)
		server.Advance(row.age)
		result, err := client.Verify(t.Context(), alicaptcha.Request{Param: param, SceneID: "login"})
		require.NoError(t, err)
		require.Equal(t, row.code, result.Code)
	}
}

// keptBody buffers the body, but not the header.
type keptBody struct {
	http.ResponseWriter
	body []byte
}

func (k *keptBody) Write(p []byte) (int, error) {
	k.body = append(k.body, p...)
	return len(p), nil
}
