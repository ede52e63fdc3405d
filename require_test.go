package alicaptcha_test

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

// newMiddleware returns a Middleware of cfg that logs nothing, for the scene "login"
// if cfg has none.
func newMiddleware(t *testing.T, cfg alicaptcha.Config) *alicaptcha.Middleware {
	t.Helper()
	if cfg.SceneID == "" && cfg.SceneIDFunc == nil {
		cfg.SceneID = "login"
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	m, err := alicaptcha.New(cfg)
	require.NoError(t, err)
	return m
}

// requiring returns a handler that counts what comes past Require.
func requiring(passed *atomic.Int64) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if alicaptcha.Require(w, r) {
			passed.Add(1)
		}
	})
}

// An inner gate does not answer for an outer one.
func TestRequireSatisfiesEveryGate(t *testing.T) {
	t.Parallel()
	refusing := func() *spy { return answering(alicaptcha.Result{Code: alicaptcha.F001}, nil) }
	for _, row := range []struct {
		name         string
		strict       *spy
		trial        alicaptcha.Config
		wrap         func(strict, trial *alicaptcha.Middleware, h http.Handler) http.Handler
		passes       bool
		status       int
		trialAsked   int
		fromContext  alicaptcha.Code
		contextScene string
	}{
		{"report-only inside", refusing(), alicaptcha.Config{Verifier: refusing(), ReportOnly: true},
			func(s, t *alicaptcha.Middleware, h http.Handler) http.Handler { return s.Deferred(t.Handler(h)) },
			false, 403, 1, alicaptcha.F001, "easy"},
		{"an easier scene inside", refusing(), alicaptcha.Config{Verifier: passing()},
			func(s, t *alicaptcha.Middleware, h http.Handler) http.Handler { return s.Deferred(t.Handler(h)) },
			false, 403, 1, alicaptcha.T001, "easy"},
		{"both deferred", refusing(), alicaptcha.Config{Verifier: passing()},
			func(s, t *alicaptcha.Middleware, h http.Handler) http.Handler { return s.Deferred(t.Deferred(h)) },
			false, 403, 0, "", ""},
		{"the strict one inside", refusing(), alicaptcha.Config{Verifier: passing()},
			func(s, t *alicaptcha.Middleware, h http.Handler) http.Handler { return t.Deferred(s.Deferred(h)) },
			false, 403, 1, alicaptcha.F001, "hard"},
		{"both pass", passing(), alicaptcha.Config{Verifier: passing()},
			func(s, t *alicaptcha.Middleware, h http.Handler) http.Handler { return s.Deferred(t.Handler(h)) },
			true, 200, 1, alicaptcha.T001, "easy"},
		{"both deferred pass", passing(), alicaptcha.Config{Verifier: passing()},
			func(s, t *alicaptcha.Middleware, h http.Handler) http.Handler { return s.Deferred(t.Deferred(h)) },
			true, 200, 1, alicaptcha.T001, "easy"},
	} {
		t.Run(row.name, func(t *testing.T) {
			row.trial.SceneID = "easy"
			strict := newMiddleware(t, alicaptcha.Config{Verifier: row.strict, SceneID: "hard"})
			trial := newMiddleware(t, row.trial)
			var passed atomic.Int64
			inner := requiring(&passed)
			h := row.wrap(strict, trial, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				inner.ServeHTTP(w, r)
				inner.ServeHTTP(w, r) // asks nobody and writes nothing more
				o, found := alicaptcha.FromContext(r.Context())
				require.Equal(t, row.fromContext != "", found)
				require.Equal(t, row.fromContext, o.Code)
				require.Equal(t, row.contextScene, o.SceneID)
			}))
			w := httptest.NewRecorder()
			h.ServeHTTP(w, loginRequest())
			require.Equal(t, row.status, w.Code)
			require.Equal(t, row.passes, passed.Load() == 2)
			require.Equal(t, []alicaptcha.Request{{Param: param, SceneID: "hard"}}, row.strict.asked())
			require.Len(t, row.trial.Verifier.(*spy).asked(), row.trialAsked)
			if !row.passes {
				require.Zero(t, passed.Load())
				require.Equal(t, 1, strings.Count(w.Body.String(), `"reason"`), "the rejection is written once")
			}
		})
	}
}

// Ask verifies once and writes nothing; Require after it writes the rejection, once.
func TestAsk(t *testing.T) {
	t.Parallel()
	refused := answering(alicaptcha.Result{Code: alicaptcha.F001}, nil)
	for _, row := range []struct {
		name    string
		cfg     alicaptcha.Config
		want    alicaptcha.Code
		proceed bool
	}{
		{"passes", alicaptcha.Config{Verifier: passing()}, alicaptcha.T001, true},
		{"is refused", alicaptcha.Config{Verifier: refused}, alicaptcha.F001, false},
		{"report only", alicaptcha.Config{Verifier: refused, ReportOnly: true}, alicaptcha.F001, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			m := newMiddleware(t, row.cfg)
			before := len(row.cfg.Verifier.(*spy).asked())
			w := httptest.NewRecorder()
			m.Deferred(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				var all sync.WaitGroup
				for range 10 {
					all.Go(func() {
						o, proceed := alicaptcha.Ask(r.Context())
						require.Equal(t, row.want, o.Code)
						require.Equal(t, row.proceed, proceed)
						known, ok := alicaptcha.FromContext(r.Context())
						require.True(t, ok)
						require.Equal(t, o, known)
					})
				}
				all.Wait()
				require.Empty(t, w.(*httptest.ResponseRecorder).Body.String())
				for range 3 {
					require.Equal(t, row.proceed, alicaptcha.Require(w, r))
				}
			})).ServeHTTP(w, loginRequest())
			require.Len(t, row.cfg.Verifier.(*spy).asked(), before+1)
			require.Equal(t, map[bool]int{true: 0, false: 1}[row.proceed], strings.Count(w.Body.String(), `"reason"`))
		})
	}
	t.Run("without a gate", func(t *testing.T) {
		o, proceed := alicaptcha.Ask(t.Context())
		require.Equal(t, alicaptcha.Misconfigured, o.Code)
		require.Equal(t, 503, o.Action.Status)
		require.False(t, proceed)
	})
	t.Run("with an Outcome of a test", func(t *testing.T) {
		for _, allowed := range []bool{true, false} {
			want := alicaptcha.Outcome{Allowed: allowed, Code: alicaptcha.F009}
			o, proceed := alicaptcha.Ask(alicaptchatest.NewContext(t.Context(), want))
			require.Equal(t, want, o)
			require.Equal(t, allowed, proceed)
		}
	})
	t.Run("nested", func(t *testing.T) {
		inner, outer := newMiddleware(t, alicaptcha.Config{Verifier: passing(), SceneID: "inner"}), newMiddleware(t, alicaptcha.Config{Verifier: refused})
		outer.Deferred(inner.Deferred(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			o, proceed := alicaptcha.Ask(r.Context())
			require.False(t, proceed)
			require.Equal(t, alicaptcha.F001, o.Code)
			require.Equal(t, "login", o.SceneID)
		}))).ServeHTTP(httptest.NewRecorder(), loginRequest())
		inner.Deferred(newMiddleware(t, alicaptcha.Config{Verifier: passing()}).Deferred(http.HandlerFunc(
			func(_ http.ResponseWriter, r *http.Request) {
				o, proceed := alicaptcha.Ask(r.Context())
				require.True(t, proceed)
				require.Equal(t, "login", o.SceneID, "the innermost")
			}))).ServeHTTP(httptest.NewRecorder(), loginRequest())
	})
	t.Run("after a panic of the Verifier", func(t *testing.T) {
		m := newMiddleware(t, alicaptcha.Config{Verifier: &spy{do: func(context.Context, alicaptcha.Request) (alicaptcha.Result, error) {
			panic(http.ErrAbortHandler)
		}}})
		m.Deferred(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			require.Panics(t, func() { alicaptcha.Ask(r.Context()) })
			o, proceed := alicaptcha.Ask(r.Context())
			require.Equal(t, alicaptcha.ServiceUnavailable, o.Code)
			require.False(t, proceed)
			require.False(t, o.Allowed)
		})).ServeHTTP(httptest.NewRecorder(), loginRequest())
	})
}

// A Middleware that a request comes to again answers by the Outcome it has: a
// param is good for one verification.
func TestSameMiddlewareAgain(t *testing.T) {
	t.Parallel()
	type wrapper = func(m *alicaptcha.Middleware, h http.Handler) http.Handler
	handler := func(m *alicaptcha.Middleware, h http.Handler) http.Handler { return m.Handler(h) }
	deferred := func(m *alicaptcha.Middleware, h http.Handler) http.Handler { return m.Deferred(h) }
	other := newMiddleware(t, alicaptcha.Config{Verifier: passing(), SceneID: "other"})
	between := func(_ *alicaptcha.Middleware, h http.Handler) http.Handler { return other.Handler(h) }
	onChi := func(m *alicaptcha.Middleware, h http.Handler) http.Handler {
		r := chi.NewRouter()
		r.Use(m.Handler)
		r.With(m.Handler).Post("/login", h.ServeHTTP)
		return r
	}
	for name, wrappers := range map[string][]wrapper{
		"Handler in Handler":   {handler, handler},
		"Deferred in Handler":  {handler, deferred},
		"Handler in Deferred":  {deferred, handler},
		"Deferred in Deferred": {deferred, deferred},
		"another in between":   {handler, between, deferred},
		"chi":                  {onChi},
	} {
		for _, passes := range []bool{true, false} {
			t.Run(name, func(t *testing.T) {
				var asked, observed, passed atomic.Int64
				once := alicaptcha.VerifierFunc(func(context.Context, alicaptcha.Request) (alicaptcha.Result, error) {
					if asked.Add(1) > 1 || !passes {
						return alicaptcha.Result{Code: alicaptcha.F018}, nil
					}
					return alicaptcha.Result{Passed: true, Code: alicaptcha.T001}, nil
				})
				m := newMiddleware(t, alicaptcha.Config{
					Verifier: once, Observe: func(context.Context, alicaptcha.Outcome) { observed.Add(1) },
				})
				inner := requiring(&passed)
				h := http.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					inner.ServeHTTP(w, r)
					o, found := alicaptcha.FromContext(r.Context())
					require.True(t, found)
					require.Equal(t, "login", o.SceneID, "the innermost")
					require.Equal(t, passes, o.Verified)
				}))
				for i := len(wrappers) - 1; i >= 0; i-- {
					h = wrappers[i](m, h)
				}
				w := httptest.NewRecorder()
				h.ServeHTTP(w, loginRequest())
				require.EqualValues(t, 1, asked.Load())
				require.EqualValues(t, 1, observed.Load())
				require.Equal(t, passes, passed.Load() == 1)
				require.Equal(t, map[bool]int{true: 200, false: 403}[passes], w.Code)
				if !passes {
					require.Equal(t, 1, strings.Count(w.Body.String(), `"reason"`), "the rejection is written once")
				}
			})
		}
	}
}

// Requests that share a context share its answer; one with a context of its own
// has its own.
func TestRequestsThatShareAContext(t *testing.T) {
	t.Parallel()
	verifier := passing()
	m := newMiddleware(t, alicaptcha.Config{Verifier: verifier})
	var passed atomic.Int64
	gated := m.Handler(requiring(&passed))
	m.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, ctx := range []context.Context{r.Context(), r.Context(), context.Background()} {
			gated.ServeHTTP(httptest.NewRecorder(), loginRequest().WithContext(ctx))
		}
	})).ServeHTTP(httptest.NewRecorder(), loginRequest())
	require.EqualValues(t, 3, passed.Load())
	require.Len(t, verifier.asked(), 2)
}

// A callback that leads back to the gate does not wait for itself.
func TestCallbacksThatLeadBack(t *testing.T) {
	refusing := answering(alicaptcha.Result{Code: alicaptcha.F001}, nil)
	stored := new(atomic.Pointer[http.Request]) // what a framework keeps of a request

	for _, row := range []struct {
		name  string
		build func(t *testing.T) http.Handler
		took  time.Duration
	}{
		{"OnReject serves the form by the same handler", func(t *testing.T) http.Handler {
			var h http.Handler
			m := newMiddleware(t, alicaptcha.Config{Verifier: refusing,
				OnReject: func(w http.ResponseWriter, r *http.Request, _ alicaptcha.Outcome) { h.ServeHTTP(w, r) },
			})
			h = m.Deferred(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				require.False(t, alicaptcha.Require(w, r))
			}))
			return h
		}, 0},
		{"OnReject leads to the same gate", func(t *testing.T) http.Handler {
			var h http.Handler
			m := newMiddleware(t, alicaptcha.Config{Verifier: refusing,
				OnReject: func(w http.ResponseWriter, r *http.Request, _ alicaptcha.Outcome) {
					h.ServeHTTP(w, r)
					h.ServeHTTP(w, r) // and has its answer once
				},
			})
			h = m.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the handler was called") }))
			return h
		}, 0},
		{"OnReject of an outer gate leads to an inner one", func(t *testing.T) http.Handler {
			var inner http.Handler
			outer := newMiddleware(t, alicaptcha.Config{Verifier: refusing,
				OnReject: func(w http.ResponseWriter, r *http.Request, _ alicaptcha.Outcome) { inner.ServeHTTP(w, r) },
			})
			inner = newMiddleware(t, alicaptcha.Config{Verifier: passing()}).Deferred(
				http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { require.False(t, alicaptcha.Require(w, r)) }))
			return outer.Handler(inner)
		}, 0},
		{"OnReject by a request that it was not given", func(t *testing.T) http.Handler {
			m := newMiddleware(t, alicaptcha.Config{Verifier: refusing, Timeout: time.Second,
				OnReject: func(w http.ResponseWriter, _ *http.Request, _ alicaptcha.Outcome) {
					require.False(t, alicaptcha.Require(w, stored.Load()))
				},
			})
			return m.Deferred(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				stored.Store(r)
				require.False(t, alicaptcha.Require(w, r))
			}))
		}, 3 * time.Second}, // it cannot be told from another goroutine, which waits
		{"Observe", func(t *testing.T) http.Handler {
			m := newMiddleware(t, alicaptcha.Config{Verifier: refusing, Observe: func(ctx context.Context, _ alicaptcha.Outcome) {
				w := httptest.NewRecorder()
				require.False(t, alicaptcha.Require(w, loginRequest().WithContext(ctx)))
				require.Empty(t, w.Body.String(), "the gate writes the rejection itself")
			}})
			return m.Deferred(requiring(new(atomic.Int64)))
		}, 0},
		{"Logger", func(t *testing.T) http.Handler {
			m := newMiddleware(t, alicaptcha.Config{Verifier: refusing, Logger: slog.New(contextHandler(func(ctx context.Context) {
				require.False(t, alicaptcha.Require(httptest.NewRecorder(), loginRequest().WithContext(ctx)))
			}))})
			return m.Deferred(requiring(new(atomic.Int64)))
		}, 0},
		{"Verifier", func(t *testing.T) http.Handler {
			m := newMiddleware(t, alicaptcha.Config{Verifier: alicaptcha.VerifierFunc(
				func(ctx context.Context, req alicaptcha.Request) (alicaptcha.Result, error) {
					require.False(t, alicaptcha.Require(httptest.NewRecorder(), loginRequest().WithContext(ctx)))
					return refusing.Verify(ctx, req)
				})})
			return m.Deferred(requiring(new(atomic.Int64)))
		}, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := row.build(t)
				start := time.Now()
				for range 20 {
					w := httptest.NewRecorder()
					h.ServeHTTP(w, loginRequest())
					require.Equal(t, 403, w.Code)
					require.Equal(t, "captcha_rejected", reason(t, w), "one rejection, by whomever it is written")
				}
				require.Equal(t, 20*row.took, time.Since(start))
			})
		})
	}
}

// contextHandler is a slog.Handler that is called with the context of each record.
type contextHandler func(context.Context)

func (contextHandler) Enabled(context.Context, slog.Level) bool { return true }
func (f contextHandler) Handle(ctx context.Context, _ slog.Record) error {
	f(ctx)
	return nil
}
func (f contextHandler) WithAttrs([]slog.Attr) slog.Handler { return f }
func (f contextHandler) WithGroup(string) slog.Handler      { return f }

// The MultipartForm that OnReject parses is known to the server, which removes its
// files.
func TestOnRejectHandsTheFormBack(t *testing.T) {
	t.Parallel()
	m := newMiddleware(t, alicaptcha.Config{Verifier: passing(),
		OnReject: func(w http.ResponseWriter, r *http.Request, _ alicaptcha.Outcome) {
			require.NoError(t, r.ParseMultipartForm(1))
			w.WriteHeader(http.StatusForbidden)
		},
	})
	for _, h := range []http.Handler{m.Handler(requiring(nil)), m.Deferred(requiring(nil))} {
		r := httptest.NewRequest("POST", "/login", strings.NewReader(
			"--x\r\nContent-Disposition: form-data; name=a; filename=b\r\n\r\nabc\r\n--x--\r\n"))
		r.Header.Set("Content-Type", "multipart/form-data; boundary=x")
		h.ServeHTTP(httptest.NewRecorder(), r)
		require.NotNil(t, r.MultipartForm)
		require.NoError(t, r.MultipartForm.RemoveAll())
	}
}

// limiterFunc is a function that is a Limiter.
type limiterFunc func() bool

func (f limiterFunc) Allow() bool { return f() }

// outage returns a Middleware whose Verifier always fails and whose Policy asks l.
func outage(t *testing.T, l alicaptcha.Limiter, cfg alicaptcha.Config) *alicaptcha.Middleware {
	t.Helper()
	cfg.Verifier = answering(alicaptcha.Result{}, &alicaptcha.Error{Code: alicaptcha.ServiceUnavailable})
	cfg.Policy = alicaptcha.Policy{alicaptcha.ServiceUnavailable: alicaptcha.AllowAtMost(l)}
	return newMiddleware(t, cfg)
}

// A Limiter that hangs holds MaxConcurrent requests at most, for a second each, and
// the others get their rejection at once.
func TestLimiterThatHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var inside, most atomic.Int64
		release := make(chan struct{})
		log := new(logbook)
		m := outage(t, limiterFunc(func() bool {
			most.Store(max(most.Load(), inside.Add(1)))
			defer inside.Add(-1)
			<-release
			return true
		}), alicaptcha.Config{MaxConcurrent: 4, Logger: slog.New(log)})
		start := time.Now()
		var atOnce, later atomic.Int64
		var all sync.WaitGroup
		for range 300 {
			all.Go(func() {
				o := m.Check(loginRequest())
				require.False(t, o.Allowed)
				require.Equal(t, alicaptcha.DefaultPolicy()[o.Code], o.Action)
				if time.Since(start) == 0 {
					atOnce.Add(1)
				} else {
					later.Add(1)
					require.Equal(t, time.Second, time.Since(start))
				}
			})
		}
		all.Wait()
		require.EqualValues(t, 4, most.Load())
		require.EqualValues(t, 296, atOnce.Load())
		require.EqualValues(t, 4, later.Load())
		require.Equal(t, 1, strings.Count(log.String(), "a Limiter does not answer in time"), "once a minute")
		require.False(t, m.Check(loginRequest()).Allowed, "the places are still taken")
		require.EqualValues(t, 4, inside.Load())

		close(release)
		synctest.Wait()
		require.True(t, m.Check(loginRequest()).Allowed, "the places are given back")
	})
}

// A Limiter that panics, or ends its goroutine, lets nobody in and keeps no place.
func TestLimiterThatPanics(t *testing.T) {
	t.Parallel()
	for name, l := range map[string]limiterFunc{
		"panic":  func() bool { panic("a text that must not be logged") },
		"abort":  func() bool { panic(http.ErrAbortHandler) },
		"Goexit": func() bool { runtime.Goexit(); return true },
	} {
		t.Run(name, func(t *testing.T) {
			log := new(logbook)
			m := outage(t, l, alicaptcha.Config{MaxConcurrent: 1, Logger: slog.New(log)})
			for range 5 {
				o := m.Check(loginRequest())
				require.False(t, o.Allowed)
				require.Equal(t, 503, o.Action.Status)
			}
			require.NotContains(t, log.String(), "must not be logged")
			require.NotContains(t, log.String(), "does not answer in time")
			require.Equal(t, name != "Goexit", strings.Contains(log.String(), "ERROR captcha: the Limiter panicked"))
			if name != "Goexit" {
				require.Equal(t, 1, strings.Count(log.String(), "captcha.stack"), "once a minute")
				require.Contains(t, log.String(), "require_test.go", "the stack")
			}
		})
	}
}

// A router's deadline that has passed does not keep a Limiter from being asked.
func TestLimiterAfterTheDeadline(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newMiddleware(t, alicaptcha.Config{
			Verifier: &spy{do: func(ctx context.Context, _ alicaptcha.Request) (alicaptcha.Result, error) {
				<-ctx.Done()
				return alicaptcha.Result{}, ctx.Err()
			}},
			Policy: alicaptcha.Policy{alicaptcha.ServiceTimeout: alicaptcha.AllowAtMost(limiterFunc(func() bool {
				time.Sleep(10 * time.Millisecond)
				return true
			}))},
		})
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		require.True(t, m.Check(loginRequest().WithContext(ctx)).Allowed)
	})
}

// What the handler of the example reads before the captcha anybody can send: a long
// form is refused, and leaves no file.
func TestDeferredHandlerBoundsTheForm(t *testing.T) {
	const long = 40 << 20 // mime/multipart keeps less in memory
	login := newDeferredLogin(newGate())
	for _, c := range []struct{ kind, text string }{
		{"multipart/form-data; boundary=b", "--b\r\nContent-Disposition: form-data; name=username\r\n\r\nalice" +
			"\r\n--b\r\nContent-Disposition: form-data; name=file; filename=file\r\n\r\n"},
		{"application/x-www-form-urlencoded", "username=alice&file="},
	} {
		files := t.TempDir()
		t.Setenv("TMPDIR", files)
		rest := strings.NewReader(strings.Repeat("x", long))
		r := httptest.NewRequest(http.MethodPost, "/login", io.MultiReader(strings.NewReader(c.text), rest))
		r.Header.Set("Content-Type", c.kind)
		w := httptest.NewRecorder()
		login.ServeHTTP(w, r)
		require.Contains(t, []int{http.StatusBadRequest, http.StatusUnprocessableEntity}, w.Code, c.kind)
		left, err := os.ReadDir(files)
		require.NoError(t, err)
		require.Empty(t, left, c.kind)
		require.Less(t, long-rest.Len(), 1<<20, c.kind)
	}
}
