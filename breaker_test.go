package alicaptcha_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
)

// A script is a Verifier whose answer a test can change.
type script struct {
	mu    sync.Mutex
	calls int
	err   error
	hold  func(context.Context) // before it answers
}

func (s *script) Verify(ctx context.Context, _ alicaptcha.Request) (alicaptcha.Result, error) {
	s.mu.Lock()
	s.calls++
	err, hold := s.err, s.hold
	s.mu.Unlock()
	if hold != nil {
		hold(ctx)
	}
	return alicaptcha.Result{Passed: err == nil}, err
}

func (s *script) answer(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

func (s *script) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls
}

var (
	errTimeout = &alicaptcha.Error{Code: alicaptcha.ServiceTimeout}
	errJunk    = &alicaptcha.Error{Code: alicaptcha.RequestRefused, Status: 401}
	errGone    = &alicaptcha.Error{Code: alicaptcha.ClientCanceled}
)

func newBreaker(t *testing.T, v alicaptcha.Verifier, cfg alicaptcha.BreakerConfig) *alicaptcha.Breaker {
	t.Helper()
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	b, err := alicaptcha.NewBreaker(v, cfg)
	require.NoError(t, err)
	return b
}

// call asks b once and reports whether its Verifier was asked.
func call(t *testing.T, b *alicaptcha.Breaker, s *script) (asked bool) {
	t.Helper()
	before := s.count()
	_, err := b.Verify(context.Background(), alicaptcha.Request{Param: "p"})
	asked = s.count() > before
	require.Equal(t, !asked, errors.Is(err, alicaptcha.ErrBreakerOpen))
	if !asked {
		var e *alicaptcha.Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, alicaptcha.ServiceUnavailable, e.Code)
		require.Equal(t, "alicaptcha: service_unavailable: the breaker is open", e.Error())
	}
	return asked
}

func TestBreakerOpensAndRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, log := &script{err: errTimeout}, new(logbook)
		b := newBreaker(t, s, alicaptcha.BreakerConfig{Logger: slog.New(log)})
		for range 5 {
			require.EqualValues(t, "closed", b.State())
			require.True(t, call(t, b, s))
		}
		require.False(t, call(t, b, s), "five in a row open it")
		require.EqualValues(t, "open", b.State())
		time.Sleep(5*time.Second + 1)

		require.EqualValues(t, "half-open", b.State())
		require.True(t, call(t, b, s), "a probe")
		require.EqualValues(t, "open", b.State())
		require.False(t, call(t, b, s), "and one that fails opens it again")
		time.Sleep(5*time.Second + 1)

		s.answer(nil)
		for range 10 {
			require.True(t, call(t, b, s), "three probes close it")
		}
		require.EqualValues(t, "closed", b.State())
		require.Equal(t, []slog.Level{
			slog.LevelWarn, slog.LevelInfo, slog.LevelInfo, slog.LevelInfo, slog.LevelInfo,
		}, log.levels(), "open, half-open, open, half-open, closed")

		s.answer(errTimeout)
		for range 4 {
			call(t, b, s)
		}
		s.answer(nil)
		call(t, b, s)
		s.answer(errTimeout)
		for range 4 {
			require.True(t, call(t, b, s), "only failures in a row count")
		}
	})
}

// What the service answered is no failure, whatever it is.
func TestBreakerCounts(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		err   error
		opens bool
	}{
		{nil, false},
		{errTimeout, true},
		{&alicaptcha.Error{Code: alicaptcha.ServiceUnavailable}, true},
		{fmt.Errorf("wrapped: %w", errTimeout), true},
		{errors.New("anything"), true},
		{context.DeadlineExceeded, true},
		{(*alicaptcha.Error)(nil), true},
		{&alicaptcha.Error{}, true},
		{&alicaptcha.Error{Code: "F001"}, true},
		{&alicaptcha.Error{Code: alicaptcha.ParamMissing}, true},
		{errJunk, false},
		{&alicaptcha.Error{Code: alicaptcha.ServiceThrottled}, false},
		{&alicaptcha.Error{Code: alicaptcha.Misconfigured}, false},
		{&alicaptcha.Error{Code: alicaptcha.ParamMalformed}, false},
		{&alicaptcha.Error{Code: alicaptcha.ParamTooLarge}, false},
		{&alicaptcha.Error{Code: alicaptcha.Overloaded}, false},
		{errGone, false},
		{context.Canceled, false},
	} {
		s := &script{err: row.err}
		b := newBreaker(t, s, alicaptcha.BreakerConfig{Failures: 1})
		_, err := b.Verify(t.Context(), alicaptcha.Request{Param: "p"})
		require.Equal(t, row.err, err, "it changes no answer")
		require.Equal(t, row.opens, !call(t, b, s), "%v", row.err)
	}
}

// What a param may bring about in a Verifier does not open the breaker: neither
// a panic, nor an answer that is no verdict, nor an odd word for a hang-up.
func TestBreakerIsNotMovedByParams(t *testing.T) {
	t.Parallel()
	contradiction := alicaptcha.Result{Passed: true, Code: alicaptcha.F001}
	b := newBreaker(t, answering(contradiction, nil), alicaptcha.BreakerConfig{Failures: 1})
	for range 3 {
		result, err := b.Verify(t.Context(), alicaptcha.Request{Param: "p"})
		require.NoError(t, err)
		require.Equal(t, contradiction, result, "the gate reads it")
	}

	v := &spy{do: func(context.Context, alicaptcha.Request) (alicaptcha.Result, error) { panic(http.ErrAbortHandler) }}
	b = newBreaker(t, v, alicaptcha.BreakerConfig{Failures: 1})
	for range 3 {
		require.PanicsWithValue(t, http.ErrAbortHandler, func() { b.Verify(t.Context(), alicaptcha.Request{Param: "p"}) })
	}

	gone, hangUp := context.WithCancel(t.Context())
	hangUp()
	for _, err := range []error{
		errors.New("rpc error: code = Canceled"), &alicaptcha.Error{Code: alicaptcha.ServiceUnavailable}, errTimeout,
	} {
		s := &script{err: err}
		b = newBreaker(t, s, alicaptcha.BreakerConfig{Failures: 1})
		for range 3 {
			_, got := b.Verify(gone, alicaptcha.Request{Param: "p"})
			require.Equal(t, err, got)
		}
		require.True(t, call(t, b, s))
	}
}

// Neither junk nor hanging up keeps the breaker from closing.
func TestBreakerProbes(t *testing.T) {
	open := func(t *testing.T, s *script) *alicaptcha.Breaker {
		b := newBreaker(t, s, alicaptcha.BreakerConfig{Failures: 1, OpenFor: time.Second, Probes: 2})
		s.answer(errTimeout)
		require.True(t, call(t, b, s))
		require.False(t, call(t, b, s))
		time.Sleep(time.Second + 1)
		return b
	}
	t.Run("junk closes it", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := new(script)
			b := open(t, s)
			s.answer(errJunk)
			require.True(t, call(t, b, s))
			require.True(t, call(t, b, s))
			s.answer(nil)
			for range 5 {
				require.True(t, call(t, b, s))
			}
		})
	})
	t.Run("a canceled call holds no place", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := new(script)
			b := open(t, s)
			s.answer(errGone)
			for range 10 {
				require.True(t, call(t, b, s))
			}
		})
	})
	t.Run("only so many at once", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := new(script)
			b := open(t, s)
			s.answer(nil)
			held, release := context.WithCancel(t.Context())
			s.hold = func(context.Context) { <-held.Done() }
			var probes sync.WaitGroup
			for range 2 {
				probes.Go(func() { b.Verify(context.Background(), alicaptcha.Request{Param: "p"}) })
			}
			synctest.Wait()
			require.False(t, call(t, b, s))
			release()
			probes.Wait()
			require.True(t, call(t, b, s))
		})
	})
	t.Run("closed, a call ends with its client", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := &script{err: errGone, hold: func(ctx context.Context) { <-ctx.Done() }}
			b := newBreaker(t, s, alicaptcha.BreakerConfig{})
			ctx, hangUp := context.WithCancel(context.Background())
			time.AfterFunc(time.Second, hangUp)
			start := time.Now()
			b.Verify(ctx, alicaptcha.Request{Param: "p"})
			require.Equal(t, time.Second, time.Since(start))
		})
	})
}

// A Breaker that NewBreaker did not make lets nobody ask.
func TestNoBreaker(t *testing.T) {
	t.Parallel()
	for _, b := range []*alicaptcha.Breaker{nil, new(alicaptcha.Breaker)} {
		result, err := b.Verify(t.Context(), alicaptcha.Request{Param: "p"})
		require.Zero(t, result)
		var e *alicaptcha.Error
		require.ErrorAs(t, err, &e)
		require.Equal(t, alicaptcha.Misconfigured, e.Code)
		require.EqualValues(t, "open", b.State())
	}
}

func TestBreakerConfig(t *testing.T) {
	t.Parallel()
	_, err := alicaptcha.NewBreaker(nil, alicaptcha.BreakerConfig{Failures: -1, OpenFor: -1, Probes: -1})
	require.Len(t, err.(interface{ Unwrap() []error }).Unwrap(), 4, "%v", err)
	_, err = alicaptcha.NewBreaker((*alicaptcha.Client)(nil), alicaptcha.BreakerConfig{})
	require.ErrorContains(t, err, "nil")

	log := quietDefault(t)
	b, err := alicaptcha.NewBreaker(answering(alicaptcha.Result{}, errTimeout), alicaptcha.BreakerConfig{Failures: 1})
	require.NoError(t, err)
	b.Verify(t.Context(), alicaptcha.Request{Param: "p"})
	require.Contains(t, log.String(), "captcha.breaker=open")
}

// A client cannot open the breaker behind a gate: neither by hanging up, nor by a
// deadline that its slow body has left too little of.
func TestBreakerIsNotMovedByClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{hold: func(context.Context) { time.Sleep(2 * time.Second) }}
		v := alicaptcha.VerifierFunc(func(ctx context.Context, req alicaptcha.Request) (alicaptcha.Result, error) {
			result, err := s.Verify(ctx, req)
			switch ctx.Err() {
			case context.Canceled:
				return alicaptcha.Result{}, errGone
			case context.DeadlineExceeded:
				return alicaptcha.Result{}, errTimeout
			}
			return result, err
		})
		b := newBreaker(t, v, alicaptcha.BreakerConfig{Failures: 1})
		m, err := alicaptcha.New(alicaptcha.Config{Verifier: b, SceneID: "login", Logger: slog.New(slog.DiscardHandler)})
		require.NoError(t, err)
		for range 3 {
			ctx, cancel := context.WithTimeout(context.Background(), 999*time.Millisecond)
			require.Equal(t, alicaptcha.Overloaded, m.Check(loginRequest().WithContext(ctx)).Code)
			cancel()
			ctx, cancel = context.WithCancel(context.Background())
			time.AfterFunc(time.Second, cancel)
			require.Equal(t, alicaptcha.ClientCanceled, m.Check(loginRequest().WithContext(ctx)).Code)
		}
		require.True(t, m.Check(loginRequest()).Verified)

		s.hold = func(ctx context.Context) { <-ctx.Done() }
		require.Equal(t, alicaptcha.ServiceTimeout, m.Check(loginRequest()).Code)
		o := m.Check(loginRequest())
		require.Equal(t, alicaptcha.ServiceUnavailable, o.Code)
		require.ErrorIs(t, o.Err, alicaptcha.ErrBreakerOpen, "only the service opens it")
	})
}

// A router's deadline that leaves a call a second of its own does not disable the
// breaker, and a service that hangs is asked no more than otherwise.
func TestBreakerUnderARoutersDeadline(t *testing.T) {
	for _, deadline := range []time.Duration{time.Second, 3 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			s := &script{err: errTimeout, hold: func(ctx context.Context) { <-ctx.Done() }}
			b := newBreaker(t, s, alicaptcha.BreakerConfig{OpenFor: time.Hour})
			m, err := alicaptcha.New(alicaptcha.Config{
				Verifier: b, SceneID: "login", Logger: slog.New(slog.DiscardHandler), Policy: openEverything(),
			})
			require.NoError(t, err)
			for i := range 20 {
				ctx, cancel := context.WithTimeout(context.Background(), deadline)
				o := m.Check(loginRequest().WithContext(ctx))
				cancel()
				require.Equal(t, i >= 5, errors.Is(o.Err, alicaptcha.ErrBreakerOpen))
				require.Equal(t, i < 5, o.Code == alicaptcha.ServiceTimeout)
				require.True(t, o.Allowed, "a Policy can open it")
			}
			require.Equal(t, 5, s.count())
		})
	}
}

// A Logger that blocks holds up the call that it is told of, and no other.
func TestBreakerLogsUnderNoLock(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var calling *alicaptcha.Breaker
		blocking := alicaptcha.VerifierFunc(func(context.Context, alicaptcha.Request) (alicaptcha.Result, error) {
			return alicaptcha.Result{}, errTimeout
		})
		told := 0
		calling = newBreaker(t, blocking, alicaptcha.BreakerConfig{Failures: 1, Logger: slog.New(handlerFunc(func() {
			told++
			_, err := calling.Verify(context.Background(), alicaptcha.Request{Param: "p"}) // and may ask it
			require.ErrorIs(t, err, alicaptcha.ErrBreakerOpen)
			time.Sleep(2 * time.Second)
		}))})
		go calling.Verify(t.Context(), alicaptcha.Request{Param: "p"})
		synctest.Wait()
		start := time.Now()
		_, err := calling.Verify(t.Context(), alicaptcha.Request{Param: "p"})
		require.ErrorIs(t, err, alicaptcha.ErrBreakerOpen)
		require.Zero(t, time.Since(start))
		require.Equal(t, 1, told)
		time.Sleep(2 * time.Second) // until the Logger is back
	})
}

// handlerFunc is a slog.Handler that calls itself for each record.
type handlerFunc func()

func (handlerFunc) Enabled(context.Context, slog.Level) bool { return true }

func (f handlerFunc) Handle(context.Context, slog.Record) error { f(); return nil }

func (f handlerFunc) WithAttrs([]slog.Attr) slog.Handler { return f }

func (f handlerFunc) WithGroup(string) slog.Handler { return f }

// What a client brings about without the service neither opens nor closes the breaker,
// nor does it hide an outage.
func TestBreakerIsNotKeptClosed(t *testing.T) {
	t.Parallel()
	for _, code := range []alicaptcha.Code{
		alicaptcha.RequestRefused, alicaptcha.Overloaded, alicaptcha.ParamMalformed, alicaptcha.ParamTooLarge,
	} {
		s := new(script)
		b := newBreaker(t, s, alicaptcha.BreakerConfig{Failures: 3})
		for range 3 {
			s.answer(errTimeout)
			require.True(t, call(t, b, s), code)
			s.answer(&alicaptcha.Error{Code: code})
			b.Verify(t.Context(), alicaptcha.Request{Param: "p"})
		}
		require.EqualValues(t, "open", b.State(), code)
	}
}

// A Logger that panics takes no probe with it.
func TestBreakerLoggerPanics(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		panics := false
		s := &script{err: errTimeout}
		b := newBreaker(t, s, alicaptcha.BreakerConfig{Failures: 1, Probes: 1, Logger: slog.New(handlerFunc(func() {
			if panics {
				panics = false
				panic("disk full")
			}
		}))})
		require.True(t, call(t, b, s))
		time.Sleep(5*time.Second + 1)
		s.answer(nil)
		panics = true
		require.Panics(t, func() { b.Verify(t.Context(), alicaptcha.Request{Param: "p"}) })
		require.True(t, call(t, b, s), "the place of the probe is given back")
		require.EqualValues(t, "closed", b.State())
	})
}
