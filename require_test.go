package alicaptcha_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
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
		require.EqualError(t, o.Err, "alicaptcha: misconfigured: the Middleware was not made by New")
	}
}

func TestDeferred(t *testing.T) { bothWays(t, testDeferred) }

func testDeferred(t *testing.T, begin func(context.Context)) {
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
		idle := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
		gateOf(verifier).Deferred(idle).ServeHTTP(httptest.NewRecorder(), loginRequest())
		require.Empty(t, verifier.asked())
	})
	t.Run("a rejection is written once", func(t *testing.T) {
		verifier := answering(alicaptcha.Result{Code: "F009"}, nil)
		w := httptest.NewRecorder()
		gateOf(verifier).Deferred(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			begin(r.Context())
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
			begin(r.Context())
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
			begin(r.Context())
			go alicaptcha.Require(w, r)
			<-writing
			time.AfterFunc(10*time.Millisecond, func() { close(release) }) // for the next to come back early, if it does
			require.False(t, alicaptcha.Require(w, r))
			require.True(t, written.Load())
		})).ServeHTTP(httptest.NewRecorder(), loginRequest())
	})
	t.Run("a param that is missing or malformed", func(t *testing.T) {
		for body, want := range map[string]int{
			`{}`: 400, `{"captchaVerifyParam":7}`: 400,
			`{"captchaVerifyParam":"` + strings.Repeat("x", 40<<10) + `"}`: 413,
		} {
			w := httptest.NewRecorder()
			gateOf(passing()).Deferred(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				begin(r.Context())
				require.False(t, alicaptcha.Require(w, r))
			})).ServeHTTP(w, jsonRequest(body))
			require.Equal(t, want, w.Code)
		}
	})
	t.Run("after a panic of the Verifier it stays shut", func(t *testing.T) {
		verifier := &spy{do: func(context.Context, alicaptcha.Request) (alicaptcha.Result, error) {
			panic(http.ErrAbortHandler)
		}}
		gateOf(verifier).Deferred(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			begin(r.Context())
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
			Verifier: answering(alicaptcha.Result{Code: "F001"}, nil), SceneID: "login",
			Mode: alicaptcha.ReportOnly, Logger: slog.New(slog.DiscardHandler),
		})
		require.NoError(t, err)
		m.Deferred(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			begin(r.Context())
			require.True(t, alicaptcha.Require(w, r))
			o, _ := alicaptcha.FromContext(r.Context())
			require.False(t, o.Allowed)
		})).ServeHTTP(httptest.NewRecorder(), loginRequest())
	})
}

func TestRequireUnderHandlerIsTrue(t *testing.T) { bothWays(t, testRequireUnderHandlerIsTrue) }

func testRequireUnderHandlerIsTrue(t *testing.T, begin func(context.Context)) {
	t.Parallel()
	for _, mode := range []alicaptcha.Mode{alicaptcha.Enforce, alicaptcha.ReportOnly} {
		verifier := passing()
		if mode == alicaptcha.ReportOnly {
			verifier = answering(alicaptcha.Result{Code: "F001"}, nil)
		}
		m, err := alicaptcha.New(alicaptcha.Config{
			Verifier: verifier, SceneID: "login", Mode: mode, Logger: slog.New(slog.DiscardHandler),
		})
		require.NoError(t, err)
		called := false
		m.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			begin(r.Context())
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

// An inner gate does not answer for an outer one.
func TestRequireSatisfiesEveryGate(t *testing.T) { bothWays(t, testRequireSatisfiesEveryGate) }

func testRequireSatisfiesEveryGate(t *testing.T, begin func(context.Context)) {
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
		{"report-only inside", refusing(), alicaptcha.Config{Verifier: refusing(), Mode: alicaptcha.ReportOnly},
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
			inner := requiringAfter(begin, &passed)
			h := row.wrap(strict, trial, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				begin(r.Context())
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
func TestAsk(t *testing.T) { bothWays(t, testAsk) }

func testAsk(t *testing.T, begin func(context.Context)) {
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
		{"report only", alicaptcha.Config{Verifier: refused, Mode: alicaptcha.ReportOnly}, alicaptcha.F001, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			m := newMiddleware(t, row.cfg)
			before := len(row.cfg.Verifier.(*spy).asked())
			w := httptest.NewRecorder()
			m.Deferred(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				begin(r.Context())
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
			if !allowed { // as behind a gate
				want.Action = alicaptcha.DefaultPolicy()[alicaptcha.F009]
			}
			require.Equal(t, want, o)
			require.Equal(t, allowed, proceed)
		}
	})
	t.Run("nested", func(t *testing.T) {
		inner := newMiddleware(t, alicaptcha.Config{Verifier: passing(), SceneID: "inner"})
		outer := newMiddleware(t, alicaptcha.Config{Verifier: refused})
		outer.Deferred(inner.Deferred(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			begin(r.Context())
			o, proceed := alicaptcha.Ask(r.Context())
			require.False(t, proceed)
			require.Equal(t, alicaptcha.F001, o.Code)
			require.Equal(t, "login", o.SceneID)
		}))).ServeHTTP(httptest.NewRecorder(), loginRequest())
		inner.Deferred(newMiddleware(t, alicaptcha.Config{Verifier: passing()}).Deferred(http.HandlerFunc(
			func(_ http.ResponseWriter, r *http.Request) {
				begin(r.Context())
				o, proceed := alicaptcha.Ask(r.Context())
				require.True(t, proceed)
				require.Equal(t, "login", o.SceneID, "the innermost")
			}))).ServeHTTP(httptest.NewRecorder(), loginRequest())
	})
	t.Run("after a panic of the Verifier", func(t *testing.T) {
		verifier := &spy{do: func(context.Context, alicaptcha.Request) (alicaptcha.Result, error) {
			panic(http.ErrAbortHandler)
		}}
		m := newMiddleware(t, alicaptcha.Config{Verifier: verifier})
		m.Deferred(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			begin(r.Context())
			require.Panics(t, func() { alicaptcha.Ask(r.Context()) })
			o, proceed := alicaptcha.Ask(r.Context())
			require.Equal(t, alicaptcha.ServiceUnavailable, o.Code)
			require.False(t, proceed)
			require.False(t, o.Allowed)
		})).ServeHTTP(httptest.NewRecorder(), loginRequest())
	})
}

// Who asks while the gate is being asked waits for its answer: Ask for the Outcome,
// Require for the rejection too. Nobody waits longer, or is told something else.
func TestWhoComesLaterWaits(t *testing.T) { bothWays(t, testWhoComesLaterWaits) }

func testWhoComesLaterWaits(t *testing.T, begin func(context.Context)) {
	t.Parallel()
	for _, passes := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			var asked, rejections atomic.Int64
			m := newMiddleware(t, alicaptcha.Config{
				Verifier: alicaptcha.VerifierFunc(func(context.Context, alicaptcha.Request) (alicaptcha.Result, error) {
					asked.Add(1)
					time.Sleep(time.Second)
					return alicaptcha.Result{Passed: passes}, nil
				}),
				OnReject: func(w http.ResponseWriter, r *http.Request, o alicaptcha.Outcome) {
					rejections.Add(1)
					time.Sleep(time.Second)
					alicaptcha.WriteRejection(w, r, o)
				},
			})
			start := time.Now()
			w := httptest.NewRecorder()
			m.Deferred(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				begin(r.Context())
				written := map[bool]time.Duration{true: time.Second, false: 2 * time.Second}[passes]
				var all sync.WaitGroup
				for i := range 4 {
					all.Go(func() {
						require.Equal(t, passes, alicaptcha.Require(w, r))
						require.Equal(t, written, time.Since(start))
					})
					all.Go(func() {
						time.Sleep(time.Duration(i) * 100 * time.Millisecond)
						_, found := alicaptcha.FromContext(r.Context())
						require.False(t, found)
						o, proceed := alicaptcha.Ask(r.Context())
						require.Equal(t, time.Second, time.Since(start))
						require.Equal(t, passes, proceed)
						require.Equal(t, passes, o.Verified)
						known, found := alicaptcha.FromContext(r.Context())
						require.True(t, found)
						require.Equal(t, o, known)
					})
				}
				all.Go(func() { // while the rejection is being written
					time.Sleep(1500 * time.Millisecond)
					_, proceed := alicaptcha.Ask(r.Context())
					require.Equal(t, passes, proceed)
					require.Equal(t, 1500*time.Millisecond, time.Since(start))
					require.Equal(t, passes, alicaptcha.Require(w, r))
					require.Equal(t, max(written, 1500*time.Millisecond), time.Since(start))
				})
				all.Wait()
			})).ServeHTTP(w, loginRequest())
			require.EqualValues(t, 1, asked.Load())
			require.Equal(t, map[bool]int64{true: 0, false: 1}[passes], rejections.Load())
			require.Equal(t, int(rejections.Load()), strings.Count(w.Body.String(), `"reason"`))
		})
	}
}

// Until the Outcome is known, who is asked for it finds none, and Ask answers with a
// rejection that is complete.
func TestCallbacksBeforeTheOutcome(t *testing.T) { bothWays(t, testCallbacksBeforeTheOutcome) }

func testCallbacksBeforeTheOutcome(t *testing.T, begin func(context.Context)) {
	t.Parallel()
	looked := make(map[string]int)
	look := func(t *testing.T, name string, ctx context.Context) {
		looked[name]++
		_, found := alicaptcha.FromContext(ctx)
		require.False(t, found, name)
		o, proceed := alicaptcha.Ask(ctx)
		require.False(t, proceed, name)
		require.Equal(t, alicaptcha.ServiceUnavailable, o.Code, name)
		require.Equal(t, alicaptcha.DefaultPolicy()[alicaptcha.ServiceUnavailable], o.Action, name)
		require.False(t, o.Allowed || o.Verified, name)
	}
	m := newMiddleware(t, alicaptcha.Config{
		Verifier: alicaptcha.VerifierFunc(func(ctx context.Context, _ alicaptcha.Request) (alicaptcha.Result, error) {
			look(t, "Verifier", ctx)
			return alicaptcha.Result{Passed: true}, nil
		}),
		Observe: func(ctx context.Context, _ alicaptcha.Outcome) { look(t, "Observe", ctx) },
		Logger:  slog.New(contextHandler(func(ctx context.Context) { look(t, "Logger", ctx) })),
	})
	login := requiringAfter(begin, new(atomic.Int64))
	for _, h := range []http.Handler{m.Handler(login), m.Deferred(login)} {
		h.ServeHTTP(httptest.NewRecorder(), loginRequest())
	}
	require.Equal(t, map[string]int{"Verifier": 2, "Observe": 2, "Logger": 2}, looked)
}

// After a panic, and in a callback, the rejection is written once, however often
// Require is called.
func TestRejectionThatIsLeftToUsIsWrittenOnce(t *testing.T) {
	bothWays(t, testRejectionThatIsLeftToUsIsWrittenOnce)
}

func testRejectionThatIsLeftToUsIsWrittenOnce(t *testing.T, begin func(context.Context)) {
	t.Parallel()
	thrice := func(t *testing.T, w http.ResponseWriter, r *http.Request) {
		for range 3 {
			require.False(t, alicaptcha.Require(w, r))
		}
	}
	panicking := alicaptcha.VerifierFunc(func(context.Context, alicaptcha.Request) (alicaptcha.Result, error) {
		panic(http.ErrAbortHandler)
	})
	for name, h := range map[string]http.Handler{
		"after a panic": newMiddleware(t, alicaptcha.Config{Verifier: panicking}).Deferred(
			http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				begin(r.Context())
				require.Panics(t, func() { alicaptcha.Require(w, r) })
				thrice(t, w, r)
			})),
		"in OnReject": newMiddleware(t, alicaptcha.Config{
			Verifier: answering(alicaptcha.Result{}, nil),
			OnReject: func(w http.ResponseWriter, r *http.Request, _ alicaptcha.Outcome) { thrice(t, w, r) },
		}).Handler(requiringAfter(begin, nil)),
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, loginRequest())
		require.Equal(t, 1, strings.Count(w.Body.String(), `"reason"`), name)
	}
}

// The param is that of the body as the request came to the gate first, also where
// a handler in between has read it.
func TestSameMiddlewareAgainAfterTheBody(t *testing.T) {
	bothWays(t, testSameMiddlewareAgainAfterTheBody)
}

func testSameMiddlewareAgainAfterTheBody(t *testing.T, begin func(context.Context)) {
	t.Parallel()
	verifier := passing()
	m := newMiddleware(t, alicaptcha.Config{Verifier: verifier})
	var passed atomic.Int64
	inner := m.Deferred(requiringAfter(begin, &passed))
	m.Deferred(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begin(r.Context())
		_, err := io.Copy(io.Discard, r.Body)
		require.NoError(t, err)
		inner.ServeHTTP(w, r)
	})).ServeHTTP(httptest.NewRecorder(), loginRequest())
	require.EqualValues(t, 1, passed.Load())
	require.Equal(t, []alicaptcha.Request{{Param: param, SceneID: "login"}}, verifier.asked())
}

// A Middleware that a request comes to again answers by the Outcome it has: a
// param is good for one verification.
func TestSameMiddlewareAgain(t *testing.T) { bothWays(t, testSameMiddlewareAgain) }

func testSameMiddlewareAgain(t *testing.T, begin func(context.Context)) {
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
				inner := requiringAfter(begin, &passed)
				h := http.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					begin(r.Context())
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
func TestRequestsThatShareAContext(t *testing.T) { bothWays(t, testRequestsThatShareAContext) }

func testRequestsThatShareAContext(t *testing.T, begin func(context.Context)) {
	t.Parallel()
	verifier := passing()
	m := newMiddleware(t, alicaptcha.Config{Verifier: verifier})
	var passed atomic.Int64
	gated := m.Handler(requiringAfter(begin, &passed))
	m.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begin(r.Context())
		for _, ctx := range []context.Context{r.Context(), r.Context(), context.Background()} {
			gated.ServeHTTP(httptest.NewRecorder(), loginRequest().WithContext(ctx))
		}
	})).ServeHTTP(httptest.NewRecorder(), loginRequest())
	require.EqualValues(t, 3, passed.Load())
	require.Len(t, verifier.asked(), 2)
}

// A callback that leads back to the gate does not wait for itself.
func TestCallbacksThatLeadBack(t *testing.T) { bothWays(t, testCallbacksThatLeadBack) }

func testCallbacksThatLeadBack(t *testing.T, begin func(context.Context)) {
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
				begin(r.Context())
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
				OnReject: func(w http.ResponseWriter, _ *http.Request, o alicaptcha.Outcome) {
					require.False(t, alicaptcha.Require(w, stored.Load()))
					alicaptcha.WriteRejection(w, stored.Load(), o)
				},
			})
			return m.Deferred(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				begin(r.Context())
				stored.Store(r)
				require.False(t, alicaptcha.Require(w, r))
			}))
		}, 3 * time.Second}, // it cannot be told from another goroutine, which waits
		{"Observe", func(t *testing.T) http.Handler {
			observe := func(ctx context.Context, _ alicaptcha.Outcome) {
				w := httptest.NewRecorder()
				require.False(t, alicaptcha.Require(w, loginRequest().WithContext(ctx)))
				require.Empty(t, w.Body.String(), "the gate writes the rejection itself")
			}
			m := newMiddleware(t, alicaptcha.Config{Verifier: refusing, Observe: observe})
			return m.Deferred(requiringAfter(begin, new(atomic.Int64)))
		}, 0},
		{"Logger", func(t *testing.T) http.Handler {
			logger := slog.New(contextHandler(func(ctx context.Context) {
				require.False(t, alicaptcha.Require(httptest.NewRecorder(), loginRequest().WithContext(ctx)))
			}))
			m := newMiddleware(t, alicaptcha.Config{Verifier: refusing, Logger: logger})
			return m.Deferred(requiringAfter(begin, new(atomic.Int64)))
		}, 0},
		{"Verifier", func(t *testing.T) http.Handler {
			m := newMiddleware(t, alicaptcha.Config{Verifier: alicaptcha.VerifierFunc(
				func(ctx context.Context, req alicaptcha.Request) (alicaptcha.Result, error) {
					require.False(t, alicaptcha.Require(httptest.NewRecorder(), loginRequest().WithContext(ctx)))
					return refusing.Verify(ctx, req)
				})})
			return m.Deferred(requiringAfter(begin, new(atomic.Int64)))
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

// A form that an outer handler has parsed stays the request's own, whatever the
// handler behind the gate makes of its copy.
func TestHandlerLeavesTheOutersForm(t *testing.T) {
	t.Parallel()
	r := httptest.NewRequest("POST", "/login", strings.NewReader(
		"--x\r\nContent-Disposition: form-data; name=captchaVerifyParam\r\n\r\nabc\r\n--x--\r\n"))
	r.Header.Set("Content-Type", "multipart/form-data; boundary=x")
	require.NoError(t, r.ParseMultipartForm(1<<20))
	parsed := r.MultipartForm
	called := false
	newMiddleware(t, alicaptcha.Config{Verifier: passing()}).Handler(
		http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			called = true
			require.Same(t, parsed, r.MultipartForm)
			r.MultipartForm = nil
		})).ServeHTTP(httptest.NewRecorder(), r)
	require.True(t, called)
	require.Same(t, parsed, r.MultipartForm)
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

// A second caller does not write while the first one's OnReject takes its time, which
// a client can make it do.
func TestRejectionIsWrittenByOne(t *testing.T) { bothWays(t, testRejectionIsWrittenByOne) }

func testRejectionIsWrittenByOne(t *testing.T, begin func(context.Context)) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newMiddleware(t, alicaptcha.Config{
			Verifier: answering(alicaptcha.Result{Code: alicaptcha.F001}, nil),
			OnReject: func(w http.ResponseWriter, _ *http.Request, _ alicaptcha.Outcome) {
				time.Sleep(time.Minute)
				w.WriteHeader(http.StatusTeapot)
			},
		})
		w := httptest.NewRecorder()
		m.Deferred(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			begin(r.Context())
			var both sync.WaitGroup
			for range 2 {
				both.Go(func() { require.False(t, alicaptcha.Require(w, r)) })
			}
			both.Wait()
		})).ServeHTTP(w, loginRequest())
		require.Equal(t, http.StatusTeapot, w.Code)
		require.Empty(t, w.Body.String())
	})
}

// SceneIDFunc sees the request as it came to the gate, whatever the handler makes of
// it, and another scene is another verification.
func TestSceneIsThatOfTheGate(t *testing.T) { bothWays(t, testSceneIsThatOfTheGate) }

func testSceneIsThatOfTheGate(t *testing.T, begin func(context.Context)) {
	t.Parallel()
	verifier := passing()
	scene := func(r *http.Request) string { return "scene-of-" + r.URL.Path[1:] }
	m := newMiddleware(t, alicaptcha.Config{Verifier: verifier, SceneIDFunc: scene})
	m.Deferred(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begin(r.Context())
		r.URL.Path = "/easy" // in place, as a rewriting middleware does
		require.True(t, alicaptcha.Require(w, r))
	})).ServeHTTP(httptest.NewRecorder(), loginRequest())
	require.Equal(t, []alicaptcha.Request{{Param: param, SceneID: "scene-of-login"}}, verifier.asked())

	// A forward to another route by the same request.
	inner := m.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	m.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begin(r.Context())
		r.URL.Path = "/signup"
		inner.ServeHTTP(w, r)
	})).ServeHTTP(httptest.NewRecorder(), loginRequest())
	require.Equal(t, []string{"scene-of-login", "scene-of-signup"},
		[]string{verifier.asked()[1].SceneID, verifier.asked()[2].SceneID})
}

// Programs print contexts. They see no more of ours than of a context.WithValue.
func TestContextsShowNoParam(t *testing.T) {
	t.Parallel()
	var printed strings.Builder
	show := func(ctx context.Context) {
		child, cancel := context.WithCancel(ctx)
		defer cancel()
		for _, c := range []context.Context{ctx, child} {
			fmt.Fprintf(&printed, "%v %+v %#v %s %q\n", c, c, c, c, c)
			slog.New(slog.NewJSONHandler(&printed, nil)).Info("x", "ctx", c)
		}
	}
	m := newMiddleware(t, alicaptcha.Config{
		Verifier: passing(), Observe: func(ctx context.Context, _ alicaptcha.Outcome) { show(ctx) },
	})
	handler := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { show(r.Context()) })
	m.Handler(handler).ServeHTTP(httptest.NewRecorder(), loginRequest())
	require.Contains(t, printed.String(), "context.Background.WithValue(alicaptcha).WithCancel")
	require.Contains(t, printed.String(), "context.Background.WithValue(alicaptcha).WithValue(alicaptcha callback)")
	require.NotContains(t, printed.String(), param)

	printed.Reset()
	type foreign struct{ context.Context }
	m.Handler(handler).ServeHTTP(httptest.NewRecorder(), loginRequest().WithContext(foreign{t.Context()}))
	require.Contains(t, printed.String(), "alicaptcha_test.foreign.WithValue(alicaptcha)")
}
