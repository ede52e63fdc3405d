package alicaptcha_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
)

// An exempt request is neither read nor verified, and its Outcome says so.
func TestExempt(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]alicaptcha.Config{
		"Mode":     {Mode: alicaptcha.Exempt},
		"ModeFunc": {ModeFunc: func(*http.Request) alicaptcha.Mode { return alicaptcha.Exempt }},
		"without a scene": {
			Mode: alicaptcha.Exempt, SceneIDFunc: func(*http.Request) string { return "" },
		},
	} {
		t.Run(name, func(t *testing.T) {
			verifier := passing()
			cfg.Verifier = verifier
			cfg.Extractors = []alicaptcha.Extractor{func(*http.Request) (string, error) {
				t.Error("an Extractor was called")
				return "", nil
			}}
			tr := try(t, cfg, loginRequest())
			require.True(t, tr.called)
			o := tr.outcome(t)
			require.Equal(t, o, tr.inside)
			o.SceneID = ""
			require.Equal(t, alicaptcha.Outcome{
				Code: alicaptcha.Exempted, Action: alicaptcha.Allow(), Allowed: true, Mode: alicaptcha.Exempt,
			}, o)
			require.Empty(t, verifier.asked())
			require.Equal(t, []slog.Level{slog.LevelDebug}, tr.log.levels())

			m := newMiddleware(t, cfg)
			require.True(t, m.Check(loginRequest()).Allowed)
			m.Deferred(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				require.True(t, alicaptcha.Require(w, r))
				o, proceed := alicaptcha.Ask(r.Context())
				require.True(t, proceed)
				require.Equal(t, alicaptcha.Exempted, o.Code)
			})).ServeHTTP(httptest.NewRecorder(), loginRequest())
		})
	}
}

// What is no Mode lets nobody in, whatever the Policy opens.
func TestModeThatIsNone(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]func(*http.Request) alicaptcha.Mode{
		"too large": func(*http.Request) alicaptcha.Mode { return 3 },
		"negative":  func(*http.Request) alicaptcha.Mode { return -1 },
		"a panic":   func(*http.Request) alicaptcha.Mode { panic("a secret") },
	} {
		t.Run(name, func(t *testing.T) {
			verifier := passing()
			tr := try(t, alicaptcha.Config{Verifier: verifier, ModeFunc: f, Policy: openEverything()}, loginRequest())
			require.False(t, tr.called)
			require.Equal(t, 503, tr.Code)
			o := tr.outcome(t)
			require.Equal(t, alicaptcha.Misconfigured, o.Code)
			require.Equal(t, alicaptcha.Enforce, o.Mode)
			require.EqualError(t, o.Err,
				"alicaptcha: misconfigured: ModeFunc panicked, or returned a Mode that does not exist")
			require.Empty(t, verifier.asked())
			require.NotContains(t, tr.log.String(), "a secret")
		})
	}
	m := newMiddleware(t, alicaptcha.Config{
		Verifier: passing(), ModeFunc: func(*http.Request) alicaptcha.Mode { panic(http.ErrAbortHandler) },
	})
	require.PanicsWithValue(t, http.ErrAbortHandler, func() { m.Check(loginRequest()) })
}

func TestModeFaults(t *testing.T) {
	t.Parallel()
	enforce := func(*http.Request) alicaptcha.Mode { return alicaptcha.Enforce }
	for want, cfg := range map[string]alicaptcha.Config{
		"":                               {Mode: alicaptcha.Enforce, ModeFunc: enforce},
		"Config.Mode must be":            {Mode: 3},
		"Mode must be Enforce":           {Mode: -1},
		"Config.ModeFunc is set":         {Mode: alicaptcha.ReportOnly, ModeFunc: enforce},
		`Config.Policy["exempted"]: a P`: {Policy: alicaptcha.Policy{alicaptcha.Exempted: alicaptcha.Reject(403)}},
	} {
		cfg.Verifier, cfg.SceneID = passing(), "login"
		_, err := alicaptcha.New(cfg)
		if want == "" {
			require.NoError(t, err)
			continue
		}
		require.ErrorContains(t, err, want)
	}
	_, err := alicaptcha.New(alicaptcha.Config{Mode: 7, ModeFunc: enforce})
	require.ErrorContains(t, err, "Config.Mode must be")
	require.ErrorContains(t, err, "Config.ModeFunc is set")
	require.Equal(t, "enforce report-only exempt mode 7", fmt.Sprint(
		alicaptcha.Enforce, " ", alicaptcha.ReportOnly, " ", alicaptcha.Exempt, " ", alicaptcha.Mode(7)))
	require.NotContains(t, alicaptcha.DefaultPolicy(), alicaptcha.Exempted)
	require.True(t, alicaptcha.Exempted.Known())
	_, verdict := alicaptcha.Exempted.Verdict()
	require.False(t, verdict)
	require.Contains(t, alicaptcha.Exempted.Description(), "exempted")

	// It is the operator's word, and no Verifier's.
	verifier := answering(alicaptcha.Result{}, &alicaptcha.Error{Code: alicaptcha.Exempted})
	tr := try(t, alicaptcha.Config{Verifier: verifier}, loginRequest())
	require.False(t, tr.called)
	require.Equal(t, alicaptcha.ServiceUnavailable, tr.outcome(t).Code)
	w := reject(loginRequest(), alicaptcha.Outcome{Code: alicaptcha.Exempted, Allowed: true, Action: alicaptcha.Allow()})
	require.Equal(t, 403, w.Code, "WriteRejection rejects")
}

// The Mode is asked for once, before the body is read, and holds to the end.
func TestModeHoldsToTheEnd(t *testing.T) {
	t.Parallel()
	refused := answering(alicaptcha.Result{Code: alicaptcha.F001}, nil)
	var asked int
	mode := alicaptcha.ReportOnly
	m := newMiddleware(t, alicaptcha.Config{Verifier: refused, ModeFunc: func(r *http.Request) alicaptcha.Mode {
		asked++
		return mode
	}})
	called := false
	inner := m.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		called = alicaptcha.Require(w, r)
		o, _ := alicaptcha.FromContext(r.Context())
		require.Equal(t, alicaptcha.ReportOnly, o.Mode)
		require.False(t, o.Allowed)
	}))
	m.Deferred(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mode = alicaptcha.Enforce
		require.True(t, alicaptcha.Require(w, r))
		inner.ServeHTTP(w, r)
	})).ServeHTTP(httptest.NewRecorder(), loginRequest())
	require.True(t, called)
	require.Equal(t, 1, asked)
	require.Len(t, refused.asked(), 1)

	w := httptest.NewRecorder()
	inner.ServeHTTP(w, loginRequest())
	require.Equal(t, 403, w.Code, "the next request ends by the next mode")
}

// While the mode flips, no request is lost or verified twice, and each ends as the
// mode says that it began with.
func TestModeFlips(t *testing.T) {
	t.Parallel()
	var verified atomic.Int64
	verifier := &spy{do: func(context.Context, alicaptcha.Request) (alicaptcha.Result, error) {
		verified.Add(1)
		return alicaptcha.Result{Code: alicaptcha.F001}, nil
	}}
	var mode atomic.Value
	mode.Store(alicaptcha.Enforce)
	type key struct{}
	var outcomes [3]atomic.Int64
	m := newMiddleware(t, alicaptcha.Config{
		Verifier: verifier,
		ModeFunc: func(r *http.Request) alicaptcha.Mode {
			now := mode.Load().(alicaptcha.Mode)
			*r.Context().Value(key{}).(*alicaptcha.Mode) = now
			return now
		},
		Logger: slog.New(slog.DiscardHandler),
	})
	h := m.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		o, _ := alicaptcha.FromContext(r.Context())
		outcomes[o.Mode].Add(1)
		w.WriteHeader(204)
	}))
	const workers, each = 8, 500
	stop := make(chan struct{})
	var flipping, working sync.WaitGroup
	flipping.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				mode.Store(alicaptcha.Mode(i % 3))
			}
		}
	})
	var rejected atomic.Int64
	for range workers {
		working.Go(func() {
			for i := range each {
				mode.Store(alicaptcha.Mode(i % 3)) // the goroutine above may not get a processor
				began := alicaptcha.Mode(-1)
				w := httptest.NewRecorder()
				h.ServeHTTP(w, loginRequest().WithContext(context.WithValue(t.Context(), key{}, &began)))
				switch {
				case w.Code == 204 && began != alicaptcha.Enforce:
				case w.Code == 403 && began == alicaptcha.Enforce:
					rejected.Add(1)
				default:
					t.Errorf("status %d in mode %d", w.Code, began)
				}
			}
		})
	}
	working.Wait()
	close(stop)
	flipping.Wait()
	reported, exempt := outcomes[alicaptcha.ReportOnly].Load(), outcomes[alicaptcha.Exempt].Load()
	require.EqualValues(t, workers*each, rejected.Load()+reported+exempt)
	require.EqualValues(t, rejected.Load()+reported, verified.Load())
	require.NotZero(t, exempt)
	require.NotZero(t, reported)
}
