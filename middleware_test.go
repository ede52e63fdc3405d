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
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

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

	for name, router := range map[string]http.Handler{
		"chi": chiRouter, "ServeMux": serveMux, "bare": bare,
	} {
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
					require.Equal(t, "3600", resp.Header.Get("Retry-After"))
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
		{"scene and func", alicaptcha.Config{Verifier: passing(), SceneID: "x", SceneIDFunc: someScene},
			[]string{"Config.SceneID"}},
		{"func and any", alicaptcha.Config{Verifier: passing(), AnyScene: true, SceneIDFunc: someScene},
			[]string{"Config.SceneID"}},
		{"newline", alicaptcha.Config{Verifier: passing(), SceneID: "x\n"}, []string{"Config.SceneID"}},
		{"not UTF-8", alicaptcha.Config{Verifier: passing(), SceneID: "x\xff"}, []string{"Config.SceneID"}},
		{"nil extractor", alicaptcha.Config{
			Verifier: passing(), SceneID: "x", Extractors: []alicaptcha.Extractor{alicaptcha.FromHeader("A"), nil},
		}, []string{"Config.Extractors[1]"}},
		{"no extractor", alicaptcha.Config{Verifier: passing(), SceneID: "x", Extractors: []alicaptcha.Extractor{}},
			[]string{"Config.Extractors"}},
		{"all numbers", alicaptcha.Config{
			Verifier: passing(), SceneID: "x", Timeout: -1, MaxParamBytes: -1, MaxBodyBytes: -1, MaxConcurrent: -1,
		}, []string{"Config.Timeout", "Config.MaxParamBytes", "Config.MaxBodyBytes", "Config.MaxConcurrent"}},
		{"policy and verifier", alicaptcha.Config{
			SceneID: "x", Policy: alicaptcha.Policy{"X1": {}, alicaptcha.F001: {Status: 302}},
		}, []string{"Config.Verifier", `Config.Policy["F001"]`, `Config.Policy["X1"]`}},
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

// The defaults are as the fields' comments say: what is at a limit is within it.
func TestNewDefaults(t *testing.T) {
	t.Parallel()
	body := func(before, param int) *http.Request {
		const head, middle, tail = `{"a":"`, `","captchaVerifyParam":"`, `"`
		filled := strings.Repeat("a", before-len(head)-len(middle)-param-len(tail))
		return jsonRequest(head + filled + middle + strings.Repeat("x", param) + tail + "}")
	}
	for _, row := range []struct {
		before, param int // where the param ends in the body, and its length
		want          alicaptcha.Code
	}{
		{64 << 10, 32 << 10, alicaptcha.T001},
		{64 << 10, 32<<10 + 1, alicaptcha.ParamTooLarge},
		{128 << 10, 7, alicaptcha.T001},
		{128<<10 + 1, 7, alicaptcha.ParamTooLarge},
	} {
		o := try(t, alicaptcha.Config{Verifier: passing()}, body(row.before, row.param)).outcome(t)
		require.Equal(t, row.want, o.Code, "%d bytes, %d of them the param", row.before, row.param)
	}
	synctest.Test(t, func(t *testing.T) {
		held, release := context.WithCancel(t.Context())
		defer release()
		verifier := &spy{do: func(context.Context, alicaptcha.Request) (alicaptcha.Result, error) {
			<-held.Done()
			return alicaptcha.Result{}, &alicaptcha.Error{Code: alicaptcha.ServiceUnavailable}
		}}
		m, err := alicaptcha.New(alicaptcha.Config{
			Verifier: verifier, SceneID: "login", Logger: slog.New(slog.DiscardHandler),
		})
		require.NoError(t, err)
		for range 256 {
			go m.Check(loginRequest())
		}
		synctest.Wait()
		require.Equal(t, alicaptcha.Overloaded, m.Check(loginRequest()).Code)
		require.Len(t, verifier.asked(), 256)
	})
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

func TestNilHandlerPanics(t *testing.T) {
	t.Parallel()
	m, err := alicaptcha.New(alicaptcha.Config{Verifier: passing(), SceneID: "login"})
	require.NoError(t, err)
	require.Panics(t, func() { m.Handler(nil) })
	require.Panics(t, func() { m.Deferred(nil) })
}

func TestEveryMethodIsGated(t *testing.T) {
	t.Parallel()
	for _, method := range []string{
		"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "BREW",
	} {
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

func TestPanickingVerifier(t *testing.T) {
	t.Parallel()
	panicking := func(v any) *spy {
		return &spy{do: func(context.Context, alicaptcha.Request) (alicaptcha.Result, error) { panic(v) }}
	}
	secret := "panic text with " + param
	for name, v := range map[string]any{
		"text": secret, "error": errors.New(secret), "slice": []string{secret}, "map": map[string]string{},
	} {
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
		m, err := alicaptcha.New(alicaptcha.Config{
			Verifier: panicking("x"), SceneID: "login", MaxConcurrent: 1, Logger: slog.New(slog.NewTextHandler(&log, nil)),
		})
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
		{"our own timeout", hanging(), context.WithCancel,
			second, alicaptcha.ServiceTimeout, second, context.DeadlineExceeded},
		{"a longer deadline of the request", hanging(), deadlineAfter(time.Minute),
			second, alicaptcha.ServiceTimeout, second, context.DeadlineExceeded},
		{"the client goes", hanging(), canceledAfter(second),
			0, alicaptcha.ClientCanceled, 5 * second, context.DeadlineExceeded},
		{"the client goes, and the service answers", answeringAfter(2*second, false), canceledAfter(second),
			0, alicaptcha.ClientCanceled, 2 * second, nil},
		{"the client goes, and the service passes", answeringAfter(2*second, true), canceledAfter(second),
			0, alicaptcha.ClientCanceled, 2 * second, nil},
		{"the client goes before the deadline", hanging(), both,
			0, alicaptcha.ClientCanceled, 5 * second, context.DeadlineExceeded},
		{"the request's deadline leaves a second", hanging(), deadlineAfter(second),
			0, alicaptcha.ServiceTimeout, second, context.DeadlineExceeded},
		{"the request's deadline leaves less", hanging(), deadlineAfter(justNot),
			0, alicaptcha.Overloaded, justNot, context.Canceled},
		{"the request's deadline leaves less than a short Timeout", hanging(), deadlineAfter(99 * time.Millisecond),
			100 * time.Millisecond, alicaptcha.Overloaded, 99 * time.Millisecond, context.Canceled},
		{"the request's deadline leaves a short Timeout", hanging(), deadlineAfter(100 * time.Millisecond),
			100 * time.Millisecond, alicaptcha.ServiceTimeout, 100 * time.Millisecond, context.DeadlineExceeded},
		{"little time is enough for a pass", answeringAfter(second/2, true), deadlineAfter(justNot),
			0, alicaptcha.T001, second / 2, nil},
		{"the client goes, the Verifier says timeout", typed(timedOut), canceledAfter(second),
			0, alicaptcha.ClientCanceled, 5 * second, context.DeadlineExceeded},
		{"too little, the Verifier says unavailable", typed(unavailable), deadlineAfter(justNot),
			0, alicaptcha.Overloaded, justNot, context.Canceled},
		{"the request's deadline, the Verifier knows better", typed(unavailable), deadlineAfter(second),
			0, alicaptcha.ServiceUnavailable, second, context.DeadlineExceeded},
		{"our timeout, the Verifier knows better", typed(unavailable), context.WithCancel,
			0, alicaptcha.ServiceUnavailable, 5 * second, context.DeadlineExceeded},
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
				cfg := alicaptcha.Config{Verifier: row.verifier, Timeout: row.timeout, Policy: openEverything()}
				tr := try(t, cfg, loginRequest().WithContext(ctx))
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

// A verdict that comes after the request's own deadline is one, however little time
// that has left; without one it depends on the time.
func TestVerdictAfterTheDeadline(t *testing.T) {
	t.Parallel()
	refusal := &alicaptcha.Error{Code: alicaptcha.RequestRefused}
	for _, row := range []struct {
		deadline time.Duration
		result   alicaptcha.Result
		err      error
		want     alicaptcha.Code
	}{
		{time.Second - 1, alicaptcha.Result{Passed: true}, nil, alicaptcha.T001},
		{time.Second - 1, alicaptcha.Result{}, nil, alicaptcha.F001},
		{time.Second - 1, alicaptcha.Result{}, refusal, alicaptcha.Overloaded},
		{time.Second, alicaptcha.Result{Passed: true}, nil, alicaptcha.T001},
		{time.Second, alicaptcha.Result{}, nil, alicaptcha.F001},
		{time.Second, alicaptcha.Result{}, refusal, alicaptcha.RequestRefused},
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), row.deadline)
			defer cancel()
			verifier := &spy{do: func(context.Context, alicaptcha.Request) (alicaptcha.Result, error) {
				time.Sleep(2 * time.Second)
				return row.result, row.err
			}}
			o := try(t, alicaptcha.Config{Verifier: verifier}, loginRequest().WithContext(ctx)).outcome(t)
			require.Equal(t, row.want, o.Code, row.deadline)
			require.Equal(t, row.want == alicaptcha.T001, o.Verified)
			require.Equal(t, 2*time.Second, o.Duration)
		})
	}
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
		m, err := alicaptcha.New(alicaptcha.Config{
			Verifier: verifier, SceneID: "login", MaxConcurrent: 2, Logger: slog.New(slog.DiscardHandler),
		})
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
		{answering(alicaptcha.Result{}, errors.New("x")), loginRequest(),
			alicaptcha.ServiceUnavailable, false, slog.LevelWarn},
		{answering(alicaptcha.Result{Code: "F005"}, nil), loginRequest(), alicaptcha.F005, false, slog.LevelError},
	} {
		t.Run(string(row.code), func(t *testing.T) {
			tr := try(t, alicaptcha.Config{Verifier: row.verifier, Mode: alicaptcha.ReportOnly}, row.r)
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

// The gate costs a bounded number of goroutines: none stands after a request.
func TestNoGoroutineStaysBehind(t *testing.T) {
	m, err := alicaptcha.New(alicaptcha.Config{
		Verifier: passing(), SceneID: "login", Logger: slog.New(slog.DiscardHandler),
	})
	require.NoError(t, err)
	before := runtime.NumGoroutine()
	for range 1000 {
		ctx, cancel := context.WithCancel(context.Background())
		m.Check(loginRequest().WithContext(ctx))
		cancel()
	}
	require.Eventually(t, func() bool { return runtime.NumGoroutine() <= before+1 }, 10*time.Second, time.Millisecond)
}
