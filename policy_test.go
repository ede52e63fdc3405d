package alicaptcha_test

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/time/rate"

	"github.com/alicaptcha/alicaptcha"
)

const (
	debug = slog.LevelDebug
	info  = slog.LevelInfo
	warn  = slog.LevelWarn
	fault = slog.LevelError
)

// A policyRow is what the design says of a Code. Status 0 means let through.
type policyRow struct {
	code       alicaptcha.Code
	status     int
	reason     string
	retry      bool
	retryAfter time.Duration
	verified   bool
	level      slog.Level
}

var policyTable = []policyRow{
	{"T001", 0, "", false, 0, true, debug},
	{"T005", 503, "captcha_unavailable", false, 0, false, fault},
	{"T006", 0, "", false, 0, true, debug},
	{"T999", 0, "", false, 0, true, warn},
	{"F001", 403, "captcha_rejected", true, 0, false, info},
	{"F002", 400, "captcha_invalid", true, 0, false, info},
	{"F003", 400, "captcha_invalid", true, 0, false, info},
	{"F004", 503, "captcha_unavailable", false, 0, false, fault},
	{"F005", 503, "captcha_unavailable", false, 0, false, fault},
	{"F006", 503, "captcha_unavailable", false, 0, false, fault},
	{"F007", 403, "captcha_expired", true, 0, false, info},
	{"F008", 403, "captcha_expired", true, 0, false, info},
	{"F009", 403, "captcha_rejected", false, 0, false, info},
	{"F010", 429, "captcha_rate_limited", false, time.Hour, false, info},
	{"F011", 429, "captcha_rate_limited", false, time.Hour, false, info},
	{"F012", 403, "captcha_rejected", false, 0, false, warn},
	{"F013", 400, "captcha_invalid", true, 0, false, info},
	{"F014", 403, "captcha_expired", true, 0, false, info},
	{"F015", 403, "captcha_rejected", true, 0, false, info},
	{"F016", 403, "captcha_rejected", false, 0, false, warn},
	{"F017", 403, "captcha_rejected", true, 0, false, info},
	{"F018", 403, "captcha_expired", true, 0, false, info},
	{"F019", 403, "captcha_expired", true, 0, false, info},
	{"F020", 403, "captcha_rejected", true, 0, false, info},
	{"F021", 403, "captcha_rejected", false, 0, false, warn},
	{"F022", 403, "captcha_rejected", true, 0, false, warn},
	{"F023", 403, "captcha_rejected", true, 0, false, info},
	{"F024", 403, "captcha_rejected", false, 0, false, info},
	{"F025", 403, "captcha_rejected", true, 0, false, info},
	{"F999", 403, "captcha_rejected", true, 0, false, info},
	{"param_missing", 400, "captcha_missing", true, 0, false, info},
	{"param_malformed", 400, "captcha_invalid", true, 0, false, info},
	{"param_too_large", 413, "captcha_invalid", false, 0, false, info},
	{"request_refused", 400, "captcha_invalid", true, 0, false, warn},
	{"client_canceled", 503, "", false, 0, false, info},
	{"service_timeout", 503, "captcha_unavailable", true, 5 * time.Second, false, warn},
	{"service_unavailable", 503, "captcha_unavailable", true, 5 * time.Second, false, warn},
	{"service_throttled", 503, "captcha_unavailable", true, 5 * time.Second, false, warn},
	{"misconfigured", 503, "captcha_unavailable", false, 0, false, fault},
	{"overloaded", 503, "captcha_unavailable", true, 5 * time.Second, false, warn},
}

// ending returns a Verifier and a request that end in code.
func ending(code alicaptcha.Code) (*spy, *http.Request) {
	switch {
	case code == alicaptcha.ParamMissing:
		return passing(), jsonRequest("{}")
	case code == alicaptcha.ParamMalformed:
		return passing(), jsonRequest("{")
	case code == alicaptcha.ParamTooLarge:
		return passing(), jsonRequest(`{"captchaVerifyParam":"` + strings.Repeat("x", 32<<10+1) + `"}`)
	case code == alicaptcha.ClientCanceled:
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		return passing(), loginRequest().WithContext(ctx)
	case len(code) == 4:
		return answering(alicaptcha.Result{Passed: code[0] == 'T', Code: code}, nil), loginRequest()
	}
	return answering(alicaptcha.Result{}, &alicaptcha.Error{Code: code}), loginRequest()
}

func TestDefaultPolicyForEveryCode(t *testing.T) {
	t.Parallel()
	for _, row := range policyTable {
		t.Run(string(row.code), func(t *testing.T) {
			t.Parallel()
			verifier, r := ending(row.code)
			tr := try(t, alicaptcha.Config{Verifier: verifier}, r)
			o := tr.outcome(t)
			require.Equal(t, row.code, o.Code)
			require.Equal(t, row.verified, o.Verified)
			require.Equal(t, row.status == 0, o.Allowed)
			require.Equal(t, row.status == 0, tr.called)
			require.Equal(t, []slog.Level{row.level}, tr.log.levels())
			if row.status == 0 {
				require.Equal(t, 204, tr.Code)
				require.Equal(t, o, tr.inside)
				return
			}
			require.Equal(t, row.status, tr.Code)
			require.Equal(t, alicaptcha.Action{
				Status: row.status, Reason: row.reason, Retry: row.retry, RetryAfter: row.retryAfter,
			}, o.Action)
			after := map[time.Duration]string{0: "", 5 * time.Second: "5", time.Hour: "3600"}[row.retryAfter]
			require.Equal(t, after, tr.Header().Get("Retry-After"))
			if row.code == alicaptcha.ClientCanceled {
				require.Empty(t, tr.Body.String())
				return
			}
			require.Equal(t, row.reason, reason(t, tr.ResponseRecorder))
			require.NotContains(t, tr.Body.String(), string(row.code), "a bot's author learns nothing")
		})
	}
}

func TestDefaultPolicyIsTheTable(t *testing.T) {
	t.Parallel()
	policy := alicaptcha.DefaultPolicy()
	rows := 0
	for _, row := range policyTable {
		if row.code == "T999" || row.code == "F999" {
			continue // by their letter
		}
		rows++
		want := alicaptcha.Action{
			Allow: row.status == 0, Status: row.status, Reason: row.reason, Retry: row.retry, RetryAfter: row.retryAfter,
		}
		require.Equal(t, want, policy[row.code], row.code)
	}
	require.Len(t, policy, rows)
	policy[alicaptcha.F001] = alicaptcha.Allow()
	require.Equal(t, 403, alicaptcha.DefaultPolicy()[alicaptcha.F001].Status, "each copy is the caller's own")

	_, err := alicaptcha.New(alicaptcha.Config{Verifier: passing(), SceneID: "login", Policy: alicaptcha.DefaultPolicy()})
	require.NoError(t, err, "it may be written out")
}

// Each Code can be rejected in another way.
func TestRejectOverridesEveryCode(t *testing.T) {
	t.Parallel()
	for _, row := range policyTable {
		t.Run(string(row.code), func(t *testing.T) {
			t.Parallel()
			verifier, r := ending(row.code)
			tr := try(t, alicaptcha.Config{Verifier: verifier, Policy: alicaptcha.Policy{row.code: alicaptcha.Reject(499)}}, r)
			require.Equal(t, 499, tr.Code)
			require.False(t, tr.called)
			o := tr.outcome(t)
			require.False(t, o.Allowed)
			require.Equal(t, row.verified, o.Verified, "what the service said does not change")
			wantReason := row.reason
			if row.status == 0 {
				wantReason = "captcha_rejected"
			}
			require.Equal(t, alicaptcha.Action{Status: 499, Reason: wantReason}, o.Action)

			verifier, r = ending(row.code)
			tr = try(t, alicaptcha.Config{Verifier: verifier, Policy: alicaptcha.Policy{row.code: {}}}, r)
			require.Equal(t, 403, tr.Code, "the zero Action")
			require.False(t, tr.called)

			verifier, r = ending(row.code)
			mine := alicaptcha.Action{Status: 402, Reason: "my_reason", Retry: true, RetryAfter: 1500 * time.Millisecond}
			tr = try(t, alicaptcha.Config{Verifier: verifier, Policy: alicaptcha.Policy{row.code: mine}}, r)
			require.Equal(t, mine, tr.outcome(t).Action)
			require.Equal(t, "2", tr.Header().Get("Retry-After"), "rounded up")
			if row.code != alicaptcha.ClientCanceled {
				require.Equal(t, "my_reason", reason(t, tr.ResponseRecorder))
			}
		})
	}
}

// What a client can cause at will is never opened, an outage only with a bound.
func TestOpening(t *testing.T) {
	t.Parallel()
	never := []alicaptcha.Code{
		alicaptcha.ParamMalformed, alicaptcha.ParamTooLarge, alicaptcha.RequestRefused,
		alicaptcha.ServiceThrottled, alicaptcha.Overloaded, alicaptcha.ClientCanceled,
		alicaptcha.F002, alicaptcha.F003, alicaptcha.F013, alicaptcha.F008, alicaptcha.F018,
		alicaptcha.F005, alicaptcha.F006, alicaptcha.F012, alicaptcha.F014, // a made-up param brings them about
	}
	bounded := []alicaptcha.Code{alicaptcha.ServiceTimeout, alicaptcha.ServiceUnavailable, alicaptcha.Misconfigured}
	for _, row := range policyTable {
		t.Run(string(row.code), func(t *testing.T) {
			t.Parallel()
			create := func(a alicaptcha.Action) error {
				_, err := alicaptcha.New(alicaptcha.Config{
					Verifier: passing(), SceneID: "login", Policy: alicaptcha.Policy{row.code: a},
				})
				if err != nil {
					require.Contains(t, err.Error(), `Config.Policy["`+string(row.code)+`"]`)
				}
				return err
			}
			isT := row.code[0] == 'T'
			closed := slices.Contains(never, row.code) || slices.Contains(bounded, row.code)
			require.Equal(t, closed, create(alicaptcha.Allow()) != nil)
			bound := create(alicaptcha.AllowAtMost(rate.NewLimiter(1, 1)))
			require.Equal(t, slices.Contains(never, row.code) || isT, bound != nil)
			require.Error(t, create(alicaptcha.AllowAtMost(nil)))
			require.Error(t, create(alicaptcha.AllowAtMost((*rate.Limiter)(nil))))
			if slices.Contains(never, row.code) || isT {
				return
			}

			// A budget of two, then the default's rejection.
			policy := alicaptcha.Policy{row.code: alicaptcha.AllowAtMost(rate.NewLimiter(0, 2))}
			for i := range 4 {
				verifier, r := ending(row.code)
				tr := try(t, alicaptcha.Config{Verifier: verifier, Policy: policy}, r)
				o := tr.outcome(t)
				require.False(t, o.Verified)
				if i < 2 {
					require.True(t, tr.called)
					require.True(t, o.Allowed)
					require.Equal(t, o, tr.inside)
					require.Equal(t, []slog.Level{max(row.level, warn)}, tr.log.levels())
					require.Contains(t, tr.log.String(), "let through unverified")
					continue
				}
				require.False(t, tr.called)
				require.Equal(t, row.status, tr.Code)
				require.Equal(t, row.reason, o.Action.Reason)
				require.Equal(t, row.retryAfter, o.Action.RetryAfter)
				require.False(t, o.Action.Allow)
			}
		})
	}
	t.Run("T005", func(t *testing.T) {
		verifier, r := ending(alicaptcha.T005)
		tr := try(t, alicaptcha.Config{Verifier: verifier, Policy: alicaptcha.Policy{alicaptcha.T005: alicaptcha.Allow()}}, r)
		require.True(t, tr.called)
		require.False(t, tr.inside.Verified, "in test mode everybody passes")
		require.Equal(t, []slog.Level{warn}, tr.log.levels())
	})
}

func TestPolicyFaults(t *testing.T) {
	t.Parallel()
	limit := rate.NewLimiter(1, 1)
	for _, row := range []struct {
		name   string
		policy alicaptcha.Policy
		want   string // empty: accepted
	}{
		{"empty code", alicaptcha.Policy{"": {}}, "not a code"},
		{"lower case", alicaptcha.Policy{"f001": {}}, "not a code"},
		{"four digits", alicaptcha.Policy{"F0010": {}}, "not a code"},
		{"other letter", alicaptcha.Policy{"G001": {}}, "not a code"},
		{"not a digit", alicaptcha.Policy{"F00x": {}}, "not a code"},
		{"a word of nobody", alicaptcha.Policy{"param_missed": {}}, "not a code"},
		{"a code to come", alicaptcha.Policy{"F987": alicaptcha.Reject(418), "T987": alicaptcha.Reject(418)}, ""},
		{"redirect", alicaptcha.Policy{"F001": alicaptcha.Reject(302)}, "Status"},
		{"success", alicaptcha.Policy{"F001": alicaptcha.Reject(200)}, "Status"},
		{"399", alicaptcha.Policy{"F001": alicaptcha.Reject(399)}, "Status"},
		{"600", alicaptcha.Policy{"F001": alicaptcha.Reject(600)}, "Status"},
		{"negative", alicaptcha.Policy{"F001": alicaptcha.Reject(-1)}, "Status"},
		{"bounds", alicaptcha.Policy{
			"F001": alicaptcha.Reject(400), "F002": alicaptcha.Reject(599), "F003": alicaptcha.Reject(0),
		}, ""},
		{"negative time", alicaptcha.Policy{"F001": {RetryAfter: -1}}, "RetryAfter"},
		{"limit on a pass", alicaptcha.Policy{"T001": alicaptcha.AllowAtMost(limit)}, "T code"},
		{"limit without Allow", alicaptcha.Policy{"F001": {Limit: limit}}, "Limit without Allow"},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := alicaptcha.New(alicaptcha.Config{Verifier: passing(), SceneID: "login", Policy: row.policy})
			if row.want == "" {
				require.NoError(t, err)
				return
			}
			require.ErrorContains(t, err, row.want)
		})
	}
	_, err := alicaptcha.New(alicaptcha.Config{Verifier: passing(), SceneID: "login", Policy: alicaptcha.Policy{
		"x": {}, "F008": alicaptcha.Allow(), "F001": {Status: 1, RetryAfter: -1},
	}})
	require.Len(t, err.(interface{ Unwrap() []error }).Unwrap(), 4, "every fault at once: %v", err)
}

// A structVerifier is a Verifier that is no pointer.
type structVerifier struct{ err error }

func (v structVerifier) Verify(context.Context, alicaptcha.Request) (alicaptcha.Result, error) {
	return alicaptcha.Result{}, v.err
}

// A structLimiter, a mapLimiter and a funcLimiter are Limiters that are no pointers.
type (
	structLimiter struct{}
	mapLimiter    map[string]bool
	funcLimiter   func() bool
)

func (structLimiter) Allow() bool { return true }

func (l mapLimiter) Allow() bool { return l["all"] }

func (l funcLimiter) Allow() bool { return l() }

// What is no pointer is good as it is, also where it is zero.
func TestValuesAsVerifiersAndLimiters(t *testing.T) {
	t.Parallel()
	breaker := newBreaker(t, structVerifier{errTimeout}, alicaptcha.BreakerConfig{Failures: 1000})
	for _, verifier := range []alicaptcha.Verifier{structVerifier{errTimeout}, breaker} {
		for _, row := range []struct {
			limiter alicaptcha.Limiter
			allows  bool
		}{
			{structLimiter{}, true},
			{mapLimiter{"all": true}, true},
			{mapLimiter{}, false},
			{funcLimiter(func() bool { return true }), true},
		} {
			for _, a := range []alicaptcha.Action{alicaptcha.AllowAtMost(row.limiter), {Allow: true, Limit: row.limiter}} {
				policy := alicaptcha.Policy{alicaptcha.ServiceTimeout: a}
				tr := try(t, alicaptcha.Config{Verifier: verifier, Policy: policy}, loginRequest())
				o := tr.outcome(t)
				require.Equal(t, alicaptcha.ServiceTimeout, o.Code)
				require.Equal(t, row.allows, o.Allowed, "%T", row.limiter)
				require.NotContains(t, tr.log.String(), "panicked")
			}
		}
	}
	for _, limiter := range []alicaptcha.Limiter{mapLimiter(nil), funcLimiter(nil), (*rate.Limiter)(nil), nil} {
		a := alicaptcha.AllowAtMost(limiter)
		for _, a := range []alicaptcha.Action{a, {Allow: true, Limit: limiter}} {
			_, err := alicaptcha.New(alicaptcha.Config{
				Verifier: breaker, SceneID: "login", Policy: alicaptcha.Policy{alicaptcha.ServiceTimeout: a},
			})
			require.Error(t, err, "%T", limiter)
		}
	}
	tr := try(t, alicaptcha.Config{Verifier: structVerifier{}}, loginRequest())
	require.Equal(t, alicaptcha.F001, tr.outcome(t).Code, "the zero Result")
}

func TestDescription(t *testing.T) {
	t.Parallel()
	seen := map[string]alicaptcha.Code{}
	for code := range maps.Keys(alicaptcha.DefaultPolicy()) {
		d := code.Description()
		require.True(t, strings.HasSuffix(d, ".") && len(d) > 15, "%s: %q", code, d)
		require.NotContains(t, seen, d, code)
		seen[d] = code
	}
	require.Contains(t, alicaptcha.Code("T777").Description(), "passed")
	require.Contains(t, alicaptcha.Code("F777").Description(), "refused")
	require.Contains(t, alicaptcha.Code("x").Description(), "Not a code")
}

// FuzzPolicy holds any Policy that New accepts against what it must never do.
func FuzzPolicy(f *testing.F) {
	f.Add("F001", true, 0, "", false, int64(0), uint8(0), "F001", true)
	f.Add("service_timeout", true, 503, "x", true, int64(time.Second), uint8(1), "T001", false)
	f.Add("T001", false, 200, "", false, int64(-1), uint8(2), "junk", true)
	f.Fuzz(func(
		t *testing.T, key string, allow bool, status int, reason string, retry bool, after int64, limit uint8,
		code string, passed bool,
	) {
		a := alicaptcha.Action{Allow: allow, Status: status, Reason: reason, Retry: retry, RetryAfter: time.Duration(after)}
		switch limit % 3 {
		case 1:
			a.Limit = rate.NewLimiter(rate.Inf, 0)
		case 2:
			a.Limit = (*rate.Limiter)(nil)
		}
		verifier := answering(alicaptcha.Result{Passed: passed, Code: alicaptcha.Code(code)}, nil)
		if len(code)%2 == 1 {
			verifier = answering(alicaptcha.Result{}, &alicaptcha.Error{Code: alicaptcha.Code(code), Err: errors.New("x")})
		}
		m, err := alicaptcha.New(alicaptcha.Config{
			Verifier: verifier, SceneID: "login", Logger: slog.New(slog.DiscardHandler),
			Policy: alicaptcha.Policy{alicaptcha.Code(key): a},
		})
		if err != nil {
			return
		}
		o := m.Check(loginRequest())
		if o.Verified && (o.Code[0] != 'T' || o.Code == alicaptcha.T005 || !o.Result.Passed) {
			t.Errorf("verified with %s", o.Code)
		}
		if o.Allowed && !o.Verified && (o.Code != alicaptcha.Code(key) || !allow) {
			t.Errorf("%s was let through, which nobody wrote", o.Code)
		}
		if o.Allowed && limit%3 == 2 && o.Code == alicaptcha.Code(key) && !o.Verified {
			t.Error("a nil Limiter let somebody through")
		}
		if !o.Allowed && (o.Action.Status < 400 || o.Action.Status > 599 || o.Action.Reason == "") {
			t.Errorf("an incomplete rejection: %+v", o.Action)
		}
	})
}
