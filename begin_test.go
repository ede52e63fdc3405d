package alicaptcha_test

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
	"github.com/alicaptcha/alicaptcha/internal/gate"
)

// serve serves a request as net/http does: the context ends when the handler returns,
// and a panic of the handler is the handler's.
func serve(h http.Handler, r *http.Request) *httptest.ResponseRecorder {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer func() { recover() }()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r.WithContext(ctx))
	return w
}

// taking returns a Verifier that passes everybody after d.
func taking(d time.Duration) *spy {
	return &spy{do: hooked(func(context.Context) error { time.Sleep(d); return nil })}
}

// With Begin, a login takes as long as the longer of the hash and the verification.
// Where the gate is first, it takes the sum.
func TestBeginOverlaps(t *testing.T) {
	t.Parallel()
	for _, row := range []struct{ hash, verification time.Duration }{
		{60 * time.Millisecond, 500 * time.Millisecond},
		{500 * time.Millisecond, 60 * time.Millisecond},
		{250 * time.Millisecond, 250 * time.Millisecond},
		{0, 250 * time.Millisecond},
		{8 * time.Second, 4 * time.Second}, // the hash is longer than Timeout
	} {
		synctest.Test(t, func(t *testing.T) {
			login := func(w http.ResponseWriter, r *http.Request) {
				time.Sleep(row.hash)
				require.True(t, alicaptcha.Require(w, r))
				o, found := alicaptcha.FromContext(r.Context())
				require.True(t, found)
				require.True(t, o.Verified)
				require.Equal(t, row.verification, o.Duration)
			}
			m := newMiddleware(t, alicaptcha.Config{Verifier: taking(row.verification)})
			for _, way := range []struct {
				handler http.Handler
				took    time.Duration
			}{
				{m.Handler(http.HandlerFunc(login)), row.hash + row.verification},
				{m.Deferred(http.HandlerFunc(login)), row.hash + row.verification},
				{m.Deferred(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					alicaptcha.Begin(r.Context())
					login(w, r)
				})), max(row.hash, row.verification)},
			} {
				start := time.Now()
				way.handler.ServeHTTP(httptest.NewRecorder(), loginRequest())
				require.Equal(t, way.took, time.Since(start))
			}
		})
	}
}

// Whatever becomes of the request, a verification that was begun has one Outcome, which
// is true. It leaves no place taken, and no goroutine: synctest would find it.
func TestBeginLeavesNothing(t *testing.T) {
	t.Parallel()
	const second = time.Second
	begin := func(r *http.Request) { alicaptcha.Begin(r.Context()) }
	type want struct {
		code    alicaptcha.Code // of the only Outcome; empty if there is none
		allowed bool
	}
	passed := want{alicaptcha.T001, true}
	for _, row := range []struct {
		name     string
		verifier *spy // nil: one that passes after a second
		timeout  time.Duration
		handler  func(w http.ResponseWriter, r *http.Request, hangUp context.CancelFunc)
		want     want
		freed    time.Duration // when the place is free again
	}{
		{name: "nobody asks", handler: func(_ http.ResponseWriter, r *http.Request, _ context.CancelFunc) { begin(r) },
			want: passed, freed: second},
		{name: "nobody asks, and the call has ended",
			handler: func(_ http.ResponseWriter, r *http.Request, _ context.CancelFunc) {
				begin(r)
				time.Sleep(2 * second)
			}, want: passed, freed: second},
		{name: "the handler panics", handler: func(_ http.ResponseWriter, r *http.Request, _ context.CancelFunc) {
			begin(r)
			panic("handler")
		}, want: passed, freed: second},
		{name: "the handler aborts", handler: func(_ http.ResponseWriter, r *http.Request, _ context.CancelFunc) {
			begin(r)
			panic(http.ErrAbortHandler)
		}, want: passed, freed: second},
		{name: "the client hangs up, and nobody asks",
			handler: func(_ http.ResponseWriter, r *http.Request, hangUp context.CancelFunc) {
				begin(r)
				hangUp()
			}, want: want{code: alicaptcha.ClientCanceled}, freed: second},
		{name: "the client hangs up during the call",
			handler: func(w http.ResponseWriter, r *http.Request, hangUp context.CancelFunc) {
				begin(r)
				hangUp()
				require.False(t, alicaptcha.Require(w, r))
			}, want: want{code: alicaptcha.ClientCanceled}, freed: second},
		{name: "the client hangs up after the call",
			handler: func(w http.ResponseWriter, r *http.Request, hangUp context.CancelFunc) {
				begin(r)
				time.Sleep(2 * second)
				hangUp()
				require.False(t, alicaptcha.Require(w, r))
			}, want: want{code: alicaptcha.ClientCanceled}, freed: second},
		{name: "the client hangs up before Begin",
			handler: func(_ http.ResponseWriter, r *http.Request, hangUp context.CancelFunc) {
				hangUp()
				begin(r)
			}},
		{name: "the service refuses, and nobody asks",
			verifier: answering(alicaptcha.Result{Code: alicaptcha.F001}, nil),
			handler:  func(_ http.ResponseWriter, r *http.Request, _ context.CancelFunc) { begin(r) },
			want:     want{code: alicaptcha.F001}},
		{name: "an outage that the Policy opens, and nobody asks",
			verifier: answering(alicaptcha.Result{}, &alicaptcha.Error{Code: alicaptcha.ServiceUnavailable}),
			handler:  func(_ http.ResponseWriter, r *http.Request, _ context.CancelFunc) { begin(r) },
			want:     want{code: alicaptcha.ServiceUnavailable}},
		{name: "the service does not answer, and nobody asks",
			verifier: &spy{do: hooked(func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })}, timeout: 3 * second,
			handler: func(_ http.ResponseWriter, r *http.Request, _ context.CancelFunc) { begin(r) },
			want:    want{code: alicaptcha.ServiceTimeout}, freed: 3 * second},
		{name: "the Verifier panics, and nobody asks",
			verifier: &spy{do: hooked(func(context.Context) error { panic("verifier") })},
			handler:  func(_ http.ResponseWriter, r *http.Request, _ context.CancelFunc) { begin(r) },
			want:     want{code: alicaptcha.ServiceUnavailable}},
		{name: "the Verifier aborts, and nobody asks",
			verifier: &spy{do: hooked(func(context.Context) error { panic(http.ErrAbortHandler) })},
			handler:  func(_ http.ResponseWriter, r *http.Request, _ context.CancelFunc) { begin(r) }},
		{name: "the Verifier aborts",
			verifier: &spy{do: hooked(func(context.Context) error { panic(http.ErrAbortHandler) })},
			handler: func(w http.ResponseWriter, r *http.Request, _ context.CancelFunc) {
				begin(r)
				synctest.Wait()
				require.PanicsWithValue(t, http.ErrAbortHandler, func() { alicaptcha.Require(w, r) })
				require.False(t, alicaptcha.Require(w, r))
			}},
		{name: "the Verifier ends its goroutine",
			verifier: &spy{do: hooked(func(context.Context) error { runtime.Goexit(); return nil })},
			handler: func(w http.ResponseWriter, r *http.Request, _ context.CancelFunc) {
				begin(r)
				require.False(t, alicaptcha.Require(w, r))
			}, want: want{code: alicaptcha.ServiceUnavailable}},
		{name: "two goroutines ask and outlive the handler",
			handler: func(_ http.ResponseWriter, r *http.Request, _ context.CancelFunc) {
				begin(r)
				for _, after := range []time.Duration{0, second / 2, 2 * second} {
					go func() {
						time.Sleep(after)
						alicaptcha.Ask(r.Context())
					}()
				}
			}, want: passed, freed: second},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				if row.verifier == nil {
					row.verifier = taking(second)
				}
				limiter := limiterFunc(func() bool { t.Error("the Limiter was called"); return true })
				var mu sync.Mutex
				var observed []alicaptcha.Outcome
				log := new(logbook)
				m := newMiddleware(t, alicaptcha.Config{
					Verifier: row.verifier, MaxConcurrent: 1, Logger: slog.New(log), Timeout: row.timeout,
					Policy: alicaptcha.Policy{ // nobody is let through who did not ask
						alicaptcha.ServiceUnavailable: alicaptcha.AllowAtMost(limiter), alicaptcha.F001: alicaptcha.Allow(),
					},
					Observe: func(_ context.Context, o alicaptcha.Outcome) {
						mu.Lock()
						defer mu.Unlock()
						observed = append(observed, o)
					},
				})
				ctx, hangUp := context.WithCancel(t.Context())
				defer hangUp()
				r := loginRequest().WithContext(ctx)
				start := time.Now()
				serve(m.Deferred(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					row.handler(w, r, hangUp)
				})), r)

				checked := 0
				if time.Since(start) < row.freed {
					time.Sleep(row.freed - time.Since(start) - 1)
					require.Equal(t, alicaptcha.Overloaded, m.Check(loginRequest()).Code, "the place is taken")
					checked = 1
				}
				time.Sleep(2 * second) // for all goroutines to end
				synctest.Wait()
				mu.Lock()
				observed = observed[checked:]
				mu.Unlock()
				if row.want.code == "" {
					require.Empty(t, observed)
				} else {
					require.Len(t, observed, 1)
					require.Equal(t, row.want.code, observed[0].Code)
					require.Equal(t, row.want.allowed, observed[0].Allowed)
					require.Contains(t, log.String(), "captcha.code="+string(row.want.code))
				}
				row.verifier.mu.Lock()
				row.verifier.do = passing().do
				row.verifier.mu.Unlock()
				require.True(t, m.Check(loginRequest()).Verified, "the place is free")
			})
		})
	}
}

// A panic of a callback ends neither the program nor a request that is not its own.
func TestBeginSurvivesCallbacks(t *testing.T) {
	t.Parallel()
	for _, value := range []any{http.ErrAbortHandler, "observer"} {
		for _, asks := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				log := new(logbook)
				m := newMiddleware(t, alicaptcha.Config{
					Verifier: taking(time.Second), Logger: slog.New(log),
					Observe: func(context.Context, alicaptcha.Outcome) { panic(value) },
				})
				m.Deferred(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					alicaptcha.Begin(r.Context())
					if asks {
						require.PanicsWithValue(t, value, func() { alicaptcha.Ask(r.Context()) })
						require.False(t, alicaptcha.Require(w, r))
					}
				})).ServeHTTP(httptest.NewRecorder(), loginRequest())
				time.Sleep(2 * time.Second)
				panicked := "captcha: a callback panicked after the handler had returned"
				if !asks && value != http.ErrAbortHandler {
					require.Contains(t, log.String(), panicked+" captcha.panic=string")
				} else {
					require.NotContains(t, log.String(), panicked)
				}
			})
		}
	}
	t.Run("Logger", func(t *testing.T) {
		logs := &spy{do: hooked(func(context.Context) error { panic("so that the call logs") })}
		for _, verifier := range []*spy{logs, passing()} {
			for _, asks := range []bool{false, true} {
				synctest.Test(t, func(t *testing.T) {
					m := newMiddleware(t, alicaptcha.Config{
						Verifier: verifier,
						Logger:   slog.New(contextHandler(func(context.Context) { panic("logger") })),
					})
					m.Deferred(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						alicaptcha.Begin(r.Context())
						if asks {
							require.PanicsWithValue(t, "logger", func() { alicaptcha.Require(w, r) })
						}
					})).ServeHTTP(httptest.NewRecorder(), loginRequest())
				})
			}
		}
	})
}

// Begin takes a place until the call ends, not until the handler asks.
func TestBeginTakesAPlace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		verifier := taking(time.Second)
		m := newMiddleware(t, alicaptcha.Config{Verifier: verifier, MaxConcurrent: 1})
		login := func(hash time.Duration, want alicaptcha.Code) http.Handler {
			return m.Deferred(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				alicaptcha.Begin(r.Context())
				time.Sleep(hash)
				_, found := alicaptcha.FromContext(r.Context())
				require.False(t, found, "the Outcome is known after Ask only")
				o, proceed := alicaptcha.Ask(r.Context())
				require.Equal(t, want, o.Code)
				require.Equal(t, o.Verified, proceed)
			}))
		}
		var all sync.WaitGroup
		all.Go(func() { serve(login(time.Minute, alicaptcha.T001), loginRequest()) })
		synctest.Wait()
		serve(login(0, alicaptcha.Overloaded), loginRequest())
		serve(login(10*time.Second, alicaptcha.Overloaded), loginRequest()) // as it was when it began
		require.Len(t, verifier.asked(), 1)
		serve(login(0, alicaptcha.T001), loginRequest())
		all.Wait()
		require.Len(t, verifier.asked(), 2)
	})
}

// Where there is nothing to begin, Begin has no effect.
func TestBeginWithoutEffect(t *testing.T) {
	t.Parallel()
	verifier := passing()
	var observed atomic.Int64
	observe := func(context.Context, alicaptcha.Outcome) { observed.Add(1) }
	m := newMiddleware(t, alicaptcha.Config{Verifier: verifier, Observe: observe})
	beginning := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { alicaptcha.Begin(r.Context()) })

	alicaptcha.Begin(t.Context())
	alicaptcha.Begin(alicaptchatest.NewContext(t.Context(), alicaptcha.Outcome{}))
	new(alicaptcha.Middleware).Deferred(beginning).ServeHTTP(httptest.NewRecorder(), loginRequest())
	m.Deferred(beginning).ServeHTTP(httptest.NewRecorder(), jsonRequest(`{}`))
	exempting := alicaptcha.Config{Verifier: verifier, Observe: observe, Mode: alicaptcha.Exempt}
	newMiddleware(t, exempting).Deferred(beginning).ServeHTTP(httptest.NewRecorder(), loginRequest())
	var late context.Context // of a handler that has returned, after which nobody would observe the call
	m.Deferred(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		late = r.Context()
	})).ServeHTTP(httptest.NewRecorder(), loginRequest())
	synctest.Test(t, func(*testing.T) { alicaptcha.Begin(late) }) // it ends after the call
	require.Empty(t, verifier.asked())
	require.Zero(t, observed.Load())

	m.Handler(beginning).ServeHTTP(httptest.NewRecorder(), loginRequest())
	m.Deferred(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		require.True(t, alicaptcha.Require(w, r))
		alicaptcha.Begin(r.Context())
	})).ServeHTTP(httptest.NewRecorder(), loginRequest())
	require.Len(t, verifier.asked(), 2)
	require.EqualValues(t, 2, observed.Load())

	callback := newMiddleware(t, alicaptcha.Config{
		Verifier: &spy{do: hooked(func(ctx context.Context) error { alicaptcha.Begin(ctx); return nil })},
		Observe: func(ctx context.Context, _ alicaptcha.Outcome) {
			alicaptcha.Begin(ctx)
			observe(ctx, alicaptcha.Outcome{})
		},
	})
	begun := requiringAfter(alicaptcha.Begin, new(atomic.Int64))
	callback.Deferred(begun).ServeHTTP(httptest.NewRecorder(), loginRequest())
	require.EqualValues(t, 3, observed.Load())

	// A callback that asks.
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		m := newMiddleware(t, alicaptcha.Config{Verifier: &spy{do: hooked(func(ctx context.Context) error {
			_, proceed := alicaptcha.Ask(ctx)
			require.False(t, proceed)
			require.Equal(t, start, time.Now(), "it does not wait for itself")
			return nil
		})}})
		m.Deferred(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			alicaptcha.Begin(r.Context())
			synctest.Wait()
			require.True(t, alicaptcha.Require(w, r))
		})).ServeHTTP(httptest.NewRecorder(), loginRequest())
	})

	// A callback that leads back to the handler.
	back := &spy{}
	var again http.Handler
	back.do = hooked(func(ctx context.Context) error {
		again.ServeHTTP(httptest.NewRecorder(), loginRequest().WithContext(ctx))
		return nil
	})
	var passed atomic.Int64
	again = newMiddleware(t, alicaptcha.Config{Verifier: back}).Deferred(requiringAfter(alicaptcha.Begin, &passed))
	again.ServeHTTP(httptest.NewRecorder(), loginRequest())
	require.Len(t, back.asked(), 1)
	require.EqualValues(t, 1, passed.Load())
}

// Any number of goroutines may begin and ask, in any order.
func TestBeginFromManyGoroutines(t *testing.T) {
	t.Parallel()
	for _, passes := range []bool{true, false} {
		verifier := answering(alicaptcha.Result{Passed: passes}, nil)
		var observed atomic.Int64
		m := newMiddleware(t, alicaptcha.Config{
			Verifier: verifier, Observe: func(context.Context, alicaptcha.Outcome) { observed.Add(1) },
		})
		for range 200 {
			m.Deferred(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				var all sync.WaitGroup
				for range 4 {
					all.Go(func() { alicaptcha.Begin(r.Context()) })
					all.Go(func() { require.Equal(t, passes, alicaptcha.Require(w, r)) })
					all.Go(func() { alicaptcha.FromContext(r.Context()) })
				}
				all.Wait()
			})).ServeHTTP(httptest.NewRecorder(), loginRequest())
		}
		require.Len(t, verifier.asked(), 200)
		require.EqualValues(t, 200, observed.Load())
	}
}

// Of nested gates the outermost that was not asked begins, and none behind one that
// rejects the request.
func TestBeginNested(t *testing.T) {
	t.Parallel()
	refusing := answering(alicaptcha.Result{Code: alicaptcha.F001}, nil)
	refused := answering(alicaptcha.Result{Code: alicaptcha.F001}, nil)
	for _, row := range []struct {
		name                string
		outer               alicaptcha.Config
		before              func(context.Context) // Begin
		begunOut, begunIn   int
		outerAfter, inAfter int
		code                alicaptcha.Code
	}{
		{"neither was asked", alicaptcha.Config{Verifier: passing()}, nil, 1, 0, 1, 1, alicaptcha.T001},
		{"twice", alicaptcha.Config{Verifier: passing()}, alicaptcha.Begin, 1, 0, 1, 1, alicaptcha.T001},
		{"the outer one refuses", alicaptcha.Config{Verifier: refusing}, nil, 1, 0, 1, 0, alicaptcha.F001},
		{"the outer one has refused", alicaptcha.Config{Verifier: refused}, func(ctx context.Context) { alicaptcha.Ask(ctx) },
			1, 0, 1, 0, alicaptcha.F001},
		{"the outer one is exempt", alicaptcha.Config{Verifier: passing(), Mode: alicaptcha.Exempt}, nil,
			0, 1, 0, 1, alicaptcha.T001},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				inner, outer := passing(), row.outer.Verifier.(*spy)
				row.outer.SceneID = "outer"
				m := newMiddleware(t, alicaptcha.Config{Verifier: inner})
				newMiddleware(t, row.outer).Deferred(m.Deferred(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
					if row.before != nil {
						row.before(r.Context())
					}
					alicaptcha.Begin(r.Context())
					synctest.Wait()
					require.Len(t, outer.asked(), row.begunOut)
					require.Len(t, inner.asked(), row.begunIn)
					o, proceed := alicaptcha.Ask(r.Context())
					require.Equal(t, row.code, o.Code)
					require.Equal(t, o.Allowed, proceed)
				}))).ServeHTTP(httptest.NewRecorder(), loginRequest())
				require.Len(t, outer.asked(), row.outerAfter)
				require.Len(t, inner.asked(), row.inAfter)
			})
		})
	}
	t.Run("behind a Handler", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			inner := passing()
			m := newMiddleware(t, alicaptcha.Config{Verifier: inner, SceneID: "inner"})
			outer := newMiddleware(t, alicaptcha.Config{Verifier: passing()})
			outer.Handler(m.Deferred(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				alicaptcha.Begin(r.Context())
				synctest.Wait()
				require.Len(t, inner.asked(), 1)
				require.True(t, alicaptcha.Require(w, r))
			}))).ServeHTTP(httptest.NewRecorder(), loginRequest())
		})
	})
	t.Run("the inner handler has returned", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			verifier := passing()
			m := newMiddleware(t, alicaptcha.Config{Verifier: verifier})
			again := m.Deferred(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { alicaptcha.Begin(r.Context()) }))
			m.Deferred(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				again.ServeHTTP(w, r)
				synctest.Wait()
				_, found := alicaptcha.FromContext(r.Context())
				require.False(t, found, "the outer handler may still ask")
				require.True(t, alicaptcha.Require(w, r))
			})).ServeHTTP(httptest.NewRecorder(), loginRequest())
			require.Len(t, verifier.asked(), 1)
		})
	})
}

// A Verifier that leads back to the handler by a request of its own cannot be told from
// another goroutine. The wait is bounded.
func TestBeginWaitIsBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		stored := new(atomic.Pointer[http.Request])
		verifier := &spy{do: hooked(func(context.Context) error {
			o, proceed := alicaptcha.Ask(stored.Load().Context())
			require.False(t, proceed)
			require.Equal(t, alicaptcha.ServiceUnavailable, o.Code)
			return errors.New("so it is")
		})}
		m := newMiddleware(t, alicaptcha.Config{Verifier: verifier, Timeout: time.Second, Policy: openEverything()})
		start := time.Now()
		m.Deferred(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			stored.Store(r)
			alicaptcha.Begin(r.Context())
			time.Sleep(time.Second)
			require.False(t, alicaptcha.Require(w, r))
		})).ServeHTTP(httptest.NewRecorder(), loginRequest())
		require.Equal(t, 3*time.Second, time.Since(start))
	})
}

// A call to which Begin leaves too little time says nothing of the service, even if Ask
// is given more time: a client that sends its body slowly must not open an outage.
func TestBeginWithLessTimeThanAsk(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newMiddleware(t, alicaptcha.Config{
			Verifier: &spy{do: hooked(func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })},
			Policy:   openEverything(),
		})
		asked := false
		m.Deferred(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			ctx, cancel := context.WithTimeout(r.Context(), 100*time.Millisecond)
			defer cancel()
			alicaptcha.Begin(ctx)
			o, proceed := alicaptcha.Ask(r.Context())
			require.Equal(t, alicaptcha.Overloaded, o.Code)
			require.False(t, proceed)
			asked = true
		})).ServeHTTP(httptest.NewRecorder(), loginRequest())
		require.True(t, asked)
	})
}

// What is observed after the handlers have returned is bounded, even if Observe hangs: a
// client that needs one connection for any number of requests must not pile it up.
func TestBeginLeavesABoundedNumber(t *testing.T) {
	t.Parallel()
	for _, verifier := range []*spy{passing(), taking(time.Second)} {
		synctest.Test(t, func(t *testing.T) {
			const places = 4
			release := make(chan struct{})
			var observing, returned atomic.Int64
			h := newMiddleware(t, alicaptcha.Config{
				Verifier: verifier, MaxConcurrent: places,
				Observe: func(context.Context, alicaptcha.Outcome) { observing.Add(1); <-release },
			}).Deferred(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { alicaptcha.Begin(r.Context()) }))
			go func() { // one connection
				for range 50 {
					serve(h, loginRequest())
					returned.Add(1)
				}
			}()
			time.Sleep(time.Minute)
			require.EqualValues(t, places, returned.Load())
			require.EqualValues(t, places+1, observing.Load(), "the last one by the connection's own goroutine")
			close(release)
			time.Sleep(time.Minute)
			require.EqualValues(t, 50, returned.Load())
			require.EqualValues(t, 50, observing.Load())
		})
	}
}

// A handler that begins and never asks is not protected.
func TestBeginIsNoProtection(t *testing.T) {
	t.Parallel()
	m := newMiddleware(t, alicaptcha.Config{Verifier: passing()})
	var faults faultCounter
	begins := m.Deferred(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { alicaptcha.Begin(r.Context()) }))
	require.False(t, alicaptchatest.AssertProtected(&faults, begins, "POST /login"))
	asks := m.Deferred(requiringAfter(alicaptcha.Begin, new(atomic.Int64)))
	require.True(t, alicaptchatest.AssertProtected(t, asks, "POST /login"))
	require.EqualValues(t, 1, faults)

	// Nor does its Outcome say that the handler asked.
	synctest.Test(t, func(t *testing.T) {
		for _, verifier := range []*spy{passing(), answering(alicaptcha.Result{}, nil)} {
			mark := gate.Mark{Refusing: func() { t.Error("nobody was refused") }}
			r := loginRequest()
			h := newMiddleware(t, alicaptcha.Config{Verifier: verifier}).Deferred(
				http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { alicaptcha.Begin(r.Context()) }))
			h.ServeHTTP(httptest.NewRecorder(), r.WithContext(context.WithValue(r.Context(), gate.MarkKey{}, &mark)))
			synctest.Wait()
			require.Len(t, verifier.asked(), 1)
			require.False(t, mark.Passed.Load() || mark.Rejected.Load())
		}
	})
}

type faultCounter int

func (*faultCounter) Helper()                 {}
func (n *faultCounter) Errorf(string, ...any) { *n++ }

// A real server, whose clients hang up at any moment, and whose handlers return, panic
// or ask: nothing is left behind, and there is one Outcome for each call.
func TestBeginOnAServer(t *testing.T) {
	var asked, observed, n atomic.Int64
	m := newMiddleware(t, alicaptcha.Config{
		Verifier: alicaptcha.VerifierFunc(func(ctx context.Context, _ alicaptcha.Request) (alicaptcha.Result, error) {
			asked.Add(1)
			select {
			case <-time.After(5 * time.Millisecond):
				return alicaptcha.Result{Passed: true}, nil
			case <-ctx.Done():
				return alicaptcha.Result{}, ctx.Err()
			}
		}),
		Observe: func(context.Context, alicaptcha.Outcome) { observed.Add(1) },
	})
	site := httptest.NewUnstartedServer(m.Deferred(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		alicaptcha.Begin(r.Context())
		switch n.Add(1) % 4 {
		case 0:
			panic(http.ErrAbortHandler)
		case 1:
			<-r.Context().Done()
			fallthrough
		case 2:
			alicaptcha.Require(w, r)
		}
	})))
	site.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	site.Start()
	before := runtime.NumGoroutine()
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
			for range 50 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i+1)*2*time.Millisecond)
				r, _ := http.NewRequestWithContext(ctx, "POST", site.URL, http.NoBody)
				r.Header.Set("Captcha-Verify-Param", param)
				if resp, err := client.Do(r); err == nil {
					resp.Body.Close()
				}
				cancel()
			}
		})
	}
	all.Wait()
	site.Close()
	require.NotZero(t, asked.Load())
	everyCallObserved := func() bool { return observed.Load() >= asked.Load() } // the last ones after their handlers
	require.Eventually(t, everyCallObserved, testGuard, time.Millisecond)
	require.Eventually(t, func() bool { return runtime.NumGoroutine() <= before }, testGuard, time.Millisecond)
	require.LessOrEqual(t, observed.Load(), n.Load())
}
