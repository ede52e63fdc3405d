package alicaptcha_test

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
)

// checked is an Outcome of Check or CheckParam, with what was observed and logged of it.
type checked struct {
	outcome, observed alicaptcha.Outcome
	fault             string
	levels            []slog.Level
}

// checkBoth has one Middleware for each way check param, which comes by a header of the
// request for Check.
func checkBoth(t *testing.T, ctx context.Context, cfg alicaptcha.Config, param string) (byRequest, byParam checked) {
	t.Helper()
	check := func(ask func(*alicaptcha.Middleware) alicaptcha.Outcome) (c checked) {
		cfg, log, count := cfg, new(logbook), 0
		cfg.Logger = slog.New(log)
		cfg.Observe = func(_ context.Context, o alicaptcha.Outcome) { c.observed = o; count++ }
		cfg.Extractors = []alicaptcha.Extractor{func(r *http.Request) (string, error) { return r.Header.Get("Param"), nil }}
		m, err := alicaptcha.New(cfg)
		require.NoError(t, err)
		c.outcome = ask(m)
		require.Equal(t, 1, count)
		require.Equal(t, c.observed, c.outcome)
		require.Equal(t, c.outcome.Allowed, c.outcome.Reference == "")
		if c.outcome.Err != nil {
			c.fault = c.outcome.Err.Error()
		}
		c.outcome.Reference, c.outcome.Duration, c.outcome.Err = "", 0, nil
		c.observed = alicaptcha.Outcome{}
		c.levels = log.levels()
		require.NotContains(t, log.String(), "a-param")
		return c
	}
	byRequest = check(func(m *alicaptcha.Middleware) alicaptcha.Outcome {
		r := httptest.NewRequest("POST", "/login", nil).WithContext(ctx)
		r.Header["Param"] = []string{param}
		return m.Check(r)
	})
	byParam = check(func(m *alicaptcha.Middleware) alicaptcha.Outcome { return m.CheckParam(ctx, param) })
	return byRequest, byParam
}

func TestCheckParamIsCheck(t *testing.T) {
	t.Parallel()
	for _, row := range policyTable {
		t.Run(string(row.code), func(t *testing.T) {
			t.Parallel()
			verifier, r := ending(row.code)
			value := map[alicaptcha.Code]string{
				alicaptcha.ParamMissing:   "",
				alicaptcha.ParamMalformed: "\xff",
				alicaptcha.ParamTooLarge:  strings.Repeat("x", 32<<10+1),
			}
			param, isParam := value[row.code]
			if !isParam {
				param = "a-param"
			}
			for _, mode := range []alicaptcha.Mode{alicaptcha.Enforce, alicaptcha.ReportOnly, alicaptcha.Exempt} {
				cfg := alicaptcha.Config{Verifier: verifier, SceneID: "login", Mode: mode}
				byRequest, byParam := checkBoth(t, r.Context(), cfg, param)
				require.Equal(t, byRequest, byParam)
				if mode == alicaptcha.Exempt {
					require.Equal(t, alicaptcha.Exempted, byParam.outcome.Code)
					continue
				}
				require.Equal(t, row.code, byParam.outcome.Code)
				require.Equal(t, row.status == 0, byParam.outcome.Allowed)
				require.Equal(t, row.verified, byParam.outcome.Verified)
				require.Equal(t, row.status, byParam.outcome.Action.Status)
			}
			for _, asked := range verifier.asked() {
				require.Equal(t, alicaptcha.Request{Param: "a-param", SceneID: "login"}, asked)
			}
		})
	}
}

// A Policy that opens all that can be opened opens the same codes for both.
func TestCheckParamOpens(t *testing.T) {
	t.Parallel()
	for _, row := range policyTable {
		verifier, r := ending(row.code)
		cfg := alicaptcha.Config{Verifier: verifier, AnyScene: true, Policy: openEverything()}
		byRequest, byParam := checkBoth(t, r.Context(), cfg, "a-param")
		require.Equal(t, byRequest, byParam)
	}
}

// Without a request there is neither a scene nor a Mode that depends on one, and no
// Policy opens that.
func TestCheckParamNeedsARequest(t *testing.T) {
	t.Parallel()
	scene := func(*http.Request) string { panic("called without a request") }
	mode := func(*http.Request) alicaptcha.Mode { panic("called without a request") }
	for name, cfg := range map[string]alicaptcha.Config{
		"scene":             {SceneIDFunc: scene},
		"mode":              {SceneID: "login", ModeFunc: mode},
		"both":              {SceneIDFunc: scene, ModeFunc: mode},
		"scene, exempt":     {SceneIDFunc: scene, Mode: alicaptcha.Exempt},
		"mode of any scene": {AnyScene: true, ModeFunc: mode},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			verifier, log := passing(), new(logbook)
			cfg.Verifier, cfg.Policy, cfg.Logger = verifier, openEverything(), slog.New(log)
			m, err := alicaptcha.New(cfg)
			require.NoError(t, err)
			o := m.CheckParam(t.Context(), "a-param")
			require.Equal(t, alicaptcha.Misconfigured, o.Code)
			require.False(t, o.Allowed)
			require.Equal(t, 503, o.Action.Status)
			require.Contains(t, log.String(), "CheckParam has no request to give to SceneIDFunc or ModeFunc")
			require.Empty(t, verifier.asked())
		})
	}
}

func TestCheckParamOfAZeroMiddleware(t *testing.T) {
	quietDefault(t)
	for _, m := range []*alicaptcha.Middleware{nil, {}} {
		o := m.CheckParam(t.Context(), "a-param")
		require.Equal(t, alicaptcha.Misconfigured, o.Code)
		require.False(t, o.Allowed)
	}
}

// A call that is canceled ends as ClientCanceled, and keeps its place until the service
// has answered.
func TestCheckParamHangUp(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	verifier := &spy{do: hooked(func(asking context.Context) error {
		cancel()
		runtime.Gosched()
		require.NoError(t, asking.Err(), "the call goes on")
		return nil
	})}
	m := newMiddleware(t, alicaptcha.Config{Verifier: verifier})
	o := m.CheckParam(ctx, "a-param")
	require.Equal(t, alicaptcha.ClientCanceled, o.Code)
	require.False(t, o.Allowed)
}

// The client chooses the deadline of a gRPC call, and must not be able to make the service
// look slow by it: neither a Policy that opens an outage nor a breaker sees one.
func TestCheckParamDeadline(t *testing.T) {
	t.Parallel()
	for _, deadline := range []time.Duration{0, time.Millisecond, time.Second, 3 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), deadline)
			defer cancel()
			verifier := &spy{do: hooked(func(asking context.Context) error {
				<-asking.Done()
				return asking.Err()
			})}
			m := newMiddleware(t, alicaptcha.Config{Verifier: verifier, Policy: openEverything()})
			start := time.Now()
			o := m.CheckParam(ctx, "a-param")
			require.Equal(t, alicaptcha.ClientCanceled, o.Code)
			require.False(t, o.Allowed)
			if deadline > 0 {
				require.Equal(t, 5*time.Second, time.Since(start), "the call keeps its place to its own deadline")
			}
		})
	}
	synctest.Test(t, func(t *testing.T) { // a service that is slow without the client's doing
		verifier := &spy{do: hooked(func(asking context.Context) error { <-asking.Done(); return asking.Err() })}
		m := newMiddleware(t, alicaptcha.Config{Verifier: verifier})
		require.Equal(t, alicaptcha.ServiceTimeout, m.CheckParam(t.Context(), "a-param").Code)
	})
}
