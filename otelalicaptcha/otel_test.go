package otelalicaptcha_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
	"github.com/alicaptcha/alicaptcha/otelalicaptcha"
)

// secret stands for a param: it must be in no metric and no span.
const secret = "s3cret-param"

// A recorder has all that a Telemetry records.
type recorder struct {
	*otelalicaptcha.Telemetry
	reader *sdkmetric.ManualReader
	meters *sdkmetric.MeterProvider
	spans  *tracetest.SpanRecorder
	traces *sdktrace.TracerProvider
}

func newRecorder(tb testing.TB, scenes ...string) *recorder {
	tb.Helper()
	r := &recorder{reader: sdkmetric.NewManualReader(), spans: tracetest.NewSpanRecorder()}
	r.meters = sdkmetric.NewMeterProvider(
		sdkmetric.WithReader(r.reader),
		sdkmetric.WithCardinalityLimit(0), // no limit but ours
	)
	r.traces = sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(r.spans))
	var err error
	r.Telemetry, err = otelalicaptcha.New(otelalicaptcha.Config{
		MeterProvider: r.meters, TracerProvider: r.traces, Scenes: scenes,
	})
	require.NoError(tb, err)
	return r
}

// metric returns the data of the metric, or nil.
func (r *recorder) metric(tb testing.TB, name string) metricdata.Aggregation {
	tb.Helper()
	var all metricdata.ResourceMetrics
	require.NoError(tb, r.reader.Collect(context.Background(), &all))
	for _, s := range all.ScopeMetrics {
		require.Equal(tb, "github.com/alicaptcha/alicaptcha/otelalicaptcha", s.Scope.Name)
		for _, m := range s.Metrics {
			if m.Name == name {
				return m.Data
			}
		}
	}
	return nil
}

// labels prints attributes in their order, such as "alicaptcha.code=T001".
func labels(set attribute.Set) string {
	return set.Encoded(attribute.DefaultEncoder())
}

// outcomes returns the series of alicaptcha.outcomes and their values.
func (r *recorder) outcomes(tb testing.TB) map[string]int64 {
	tb.Helper()
	got := map[string]int64{}
	if data := r.metric(tb, "alicaptcha.outcomes"); data != nil {
		sum := data.(metricdata.Sum[int64])
		require.True(tb, sum.IsMonotonic)
		for _, p := range sum.DataPoints {
			got[labels(p.Attributes)] = p.Value
		}
	}
	return got
}

// durations returns the series of alicaptcha.verification.duration and their counts.
func (r *recorder) durations(tb testing.TB) map[string]uint64 {
	tb.Helper()
	got := map[string]uint64{}
	if data := r.metric(tb, "alicaptcha.verification.duration"); data != nil {
		for _, p := range data.(metricdata.Histogram[float64]).DataPoints {
			got[labels(p.Attributes)] = p.Count
		}
	}
	return got
}

// active returns the value of alicaptcha.verifications.active.
func (r *recorder) active(tb testing.TB) int64 {
	tb.Helper()
	data := r.metric(tb, "alicaptcha.verifications.active")
	require.NotNil(tb, data)
	sum := data.(metricdata.Sum[int64])
	require.False(tb, sum.IsMonotonic)
	require.Len(tb, sum.DataPoints, 1)
	require.Zero(tb, sum.DataPoints[0].Attributes.Len())
	return sum.DataPoints[0].Value
}

// span returns the one span that has ended.
func (r *recorder) span(t *testing.T) sdktrace.ReadOnlySpan {
	t.Helper()
	ended := r.spans.Ended()
	require.Len(t, ended, 1)
	return ended[0]
}

// spanLabels returns the attributes of a span.
func spanLabels(s sdktrace.ReadOnlySpan) string {
	return labels(attribute.NewSet(s.Attributes()...))
}

// gate returns a gate that tells r, quietly.
func (r *recorder) gate(tb testing.TB, cfg alicaptcha.Config) *alicaptcha.Middleware {
	tb.Helper()
	cfg.Observe = r.Observe
	cfg.Logger = slog.New(slog.DiscardHandler)
	if cfg.SceneID == "" && cfg.SceneIDFunc == nil && !cfg.AnyScene {
		cfg.SceneID = "login"
	}
	m, err := alicaptcha.New(cfg)
	require.NoError(tb, err)
	return m
}

func newRequest(param string) *http.Request {
	r := httptest.NewRequest("POST", "/login", nil)
	if param != "" {
		r.Header.Set("Captcha-Verify-Param", param)
	}
	return r
}

// answering returns a Verifier whose answer takes a moment, if only a short one.
func answering(result alicaptcha.Result, err error) alicaptcha.Verifier {
	return alicaptcha.VerifierFunc(func(context.Context, alicaptcha.Request) (alicaptcha.Result, error) {
		for start := time.Now(); time.Since(start) == 0; {
		}
		return result, err
	})
}

type always struct{}

func (always) Allow() bool { return true }

// Every situation comes through a real gate.
func TestObserve(t *testing.T) {
	outage := alicaptcha.Policy{
		alicaptcha.ServiceTimeout:     alicaptcha.AllowAtMost(always{}),
		alicaptcha.ServiceUnavailable: alicaptcha.AllowAtMost(always{}),
	}
	gone, hangUp := context.WithCancel(t.Context())
	hangUp()
	for name, tc := range map[string]struct {
		result   alicaptcha.Result
		err      error
		cfg      alicaptcha.Config
		request  *http.Request
		outcome  string
		duration string // "-": none
	}{
		"passed": {
			result:  alicaptcha.Result{Passed: true, Code: alicaptcha.T001},
			outcome: "alicaptcha.code=T001,alicaptcha.decision=passed,alicaptcha.scene=login",
		},
		"passed by an older service": {
			result:  alicaptcha.Result{Passed: true},
			outcome: "alicaptcha.code=T001,alicaptcha.decision=passed,alicaptcha.scene=login",
		},
		"passed with a new code": {
			result:  alicaptcha.Result{Passed: true, Code: "T123"},
			outcome: "alicaptcha.code=T_other,alicaptcha.decision=passed,alicaptcha.scene=login",
		},
		"rejected": {
			result:  alicaptcha.Result{Code: alicaptcha.F009},
			outcome: "alicaptcha.code=F009,alicaptcha.decision=rejected,alicaptcha.scene=login",
		},
		"rejected with a new code": {
			result:  alicaptcha.Result{Code: "F999"},
			outcome: "alicaptcha.code=F_other,alicaptcha.decision=rejected,alicaptcha.scene=login",
		},
		"rejection opened": {
			result:  alicaptcha.Result{Code: alicaptcha.F009},
			cfg:     alicaptcha.Config{Policy: alicaptcha.Policy{alicaptcha.F009: alicaptcha.Allow()}},
			outcome: "alicaptcha.code=F009,alicaptcha.decision=opened,alicaptcha.scene=login",
		},
		"pass refused by the policy": {
			result:  alicaptcha.Result{Passed: true, Code: alicaptcha.T006},
			cfg:     alicaptcha.Config{Policy: alicaptcha.Policy{alicaptcha.T006: alicaptcha.Reject(403)}},
			outcome: "alicaptcha.code=T006,alicaptcha.decision=rejected,alicaptcha.scene=login",
		},
		"test mode": {
			result:  alicaptcha.Result{Passed: true, Code: alicaptcha.T005},
			outcome: "alicaptcha.code=T005,alicaptcha.decision=rejected,alicaptcha.scene=login",
		},
		"test mode opened": {
			result:  alicaptcha.Result{Passed: true, Code: alicaptcha.T005},
			cfg:     alicaptcha.Config{Policy: alicaptcha.Policy{alicaptcha.T005: alicaptcha.Allow()}},
			outcome: "alicaptcha.code=T005,alicaptcha.decision=opened,alicaptcha.scene=login",
		},
		"let through by ReportOnly": {
			result:  alicaptcha.Result{Code: alicaptcha.F001},
			cfg:     alicaptcha.Config{Mode: alicaptcha.ReportOnly},
			outcome: "alicaptcha.code=F001,alicaptcha.decision=would_reject,alicaptcha.scene=login",
		},
		"exempt": {
			cfg:      alicaptcha.Config{Mode: alicaptcha.Exempt},
			outcome:  "alicaptcha.code=exempted,alicaptcha.decision=exempt,alicaptcha.scene=login",
			duration: "-",
		},
		"nothing sent": {
			request:  newRequest(""),
			outcome:  "alicaptcha.code=param_missing,alicaptcha.decision=rejected,alicaptcha.scene=login",
			duration: "-",
		},
		"client gone": {
			request:  newRequest(secret).WithContext(gone),
			outcome:  "alicaptcha.code=client_canceled,alicaptcha.decision=rejected,alicaptcha.scene=login",
			duration: "-",
		},
		"outage": {
			err:      &alicaptcha.Error{Code: alicaptcha.ServiceTimeout, Err: errors.New(secret)},
			outcome:  "alicaptcha.code=service_timeout,alicaptcha.decision=rejected,alicaptcha.scene=login",
			duration: "error.type=service_timeout",
		},
		"outage opened": {
			err:      errors.New(secret),
			cfg:      alicaptcha.Config{Policy: outage},
			outcome:  "alicaptcha.code=service_unavailable,alicaptcha.decision=opened,alicaptcha.scene=login",
			duration: "error.type=service_unavailable",
		},
		"breaker open": {
			err:      &alicaptcha.Error{Code: alicaptcha.ServiceUnavailable, Err: alicaptcha.ErrBreakerOpen},
			outcome:  "alicaptcha.code=service_unavailable,alicaptcha.decision=rejected,alicaptcha.scene=login",
			duration: "-",
		},
		"no verdict": {
			result:   alicaptcha.Result{Passed: true, Code: secret},
			outcome:  "alicaptcha.code=service_unavailable,alicaptcha.decision=rejected,alicaptcha.scene=login",
			duration: "error.type=service_unavailable",
		},
		"any scene": {
			result:  alicaptcha.Result{Passed: true, Code: alicaptcha.T001},
			cfg:     alicaptcha.Config{AnyScene: true},
			outcome: "alicaptcha.code=T001,alicaptcha.decision=passed",
		},
		"a scene that is not listed": {
			result:  alicaptcha.Result{Passed: true, Code: alicaptcha.T001},
			cfg:     alicaptcha.Config{SceneID: "signup"},
			outcome: "alicaptcha.code=T001,alicaptcha.decision=passed,alicaptcha.scene=other",
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRecorder(t, "login")
			tc.cfg.Verifier = answering(tc.result, tc.err)
			if tc.request == nil {
				tc.request = newRequest(secret)
			}
			r.gate(t, tc.cfg).Check(tc.request)
			require.Equal(t, map[string]int64{tc.outcome: 1}, r.outcomes(t))
			want := map[string]uint64{tc.duration: 1}
			if tc.duration == "-" {
				want = map[string]uint64{}
			}
			require.Equal(t, want, r.durations(t))
		})
	}
}

func TestDuration(t *testing.T) {
	r := newRecorder(t)
	for _, d := range []time.Duration{
		time.Millisecond, 5 * time.Millisecond, 80 * time.Millisecond, 5 * time.Second, 6 * time.Second,
	} {
		r.Observe(t.Context(), alicaptcha.Outcome{Code: alicaptcha.T001, Duration: d})
	}
	r.Observe(t.Context(), alicaptcha.Outcome{Code: alicaptcha.T001, Duration: -1})
	points := r.metric(t, "alicaptcha.verification.duration").(metricdata.Histogram[float64]).DataPoints
	require.Len(t, points, 1)
	p := points[0]
	require.InDelta(t, 11.086, p.Sum, 1e-9)
	require.Equal(t, uint64(5), p.Count)
	require.True(t, slices.IsSorted(p.Bounds))
	require.Equal(t, .005, p.Bounds[0])
	require.Equal(t, 5.0, p.Bounds[len(p.Bounds)-1])
	counts := map[float64]uint64{} // by the upper bound
	for i, n := range p.BucketCounts {
		if n > 0 {
			upper := 1e9
			if i < len(p.Bounds) {
				upper = p.Bounds[i]
			}
			counts[upper] = n
		}
	}
	require.Equal(t, map[float64]uint64{.005: 2, .1: 1, 5: 1, 1e9: 1}, counts)
}

// closed is what a series may have, with the scenes login and signup.
func closed() map[attribute.Key][]string {
	known := []string{"T_other", "F_other", "other", string(alicaptcha.Exempted)}
	var words []string
	for c := range alicaptcha.DefaultPolicy() {
		known = append(known, string(c))
		if !strings.ContainsAny(string(c), "0123456789") {
			words = append(words, string(c))
		}
	}
	return map[attribute.Key][]string{
		"alicaptcha.code":     known,
		"alicaptcha.scene":    {"login", "signup", "other"},
		"alicaptcha.decision": {"passed", "rejected", "opened", "exempt", "would_reject"},
		"error.type":          append(words, "other"),
	}
}

// requireClosed checks that every series is one of a closed set, and returns how
// many outcomes there were.
func requireClosed(t *testing.T, r *recorder) (outcomes int64) {
	t.Helper()
	allowed := closed()
	check := func(set attribute.Set) {
		for _, a := range set.ToSlice() {
			require.Contains(t, allowed, a.Key)
			require.Contains(t, allowed[a.Key], a.Value.String())
		}
	}
	sum := r.metric(t, "alicaptcha.outcomes").(metricdata.Sum[int64])
	for _, p := range sum.DataPoints {
		check(p.Attributes)
		outcomes += p.Value
	}
	// 38 codes and 3 for the rest; two scenes, one for the rest, and none.
	require.LessOrEqual(t, len(sum.DataPoints), 42*4*5)
	if data := r.metric(t, "alicaptcha.verification.duration"); data != nil {
		points := data.(metricdata.Histogram[float64]).DataPoints
		for _, p := range points {
			check(p.Attributes)
		}
		require.LessOrEqual(t, len(points), 12)
	}
	return outcomes
}

// Clients choose the scene here, as they should not, and the service answers
// with junk.
func TestHostileRequestsMakeNoSeries(t *testing.T) {
	r := newRecorder(t, "login", "signup")
	answer := func(_ context.Context, req alicaptcha.Request) (alicaptcha.Result, error) {
		n, err := strconv.Atoi(strings.TrimPrefix(req.Param, secret))
		if err != nil {
			return alicaptcha.Result{}, err
		}
		switch code := alicaptcha.Code(fmt.Sprintf("%03d", n%1000)); n % 5 {
		case 0:
			return alicaptcha.Result{Passed: true, Code: "T" + code}, nil
		case 1:
			return alicaptcha.Result{Passed: n%2 == 0, Code: "F" + code, RequestID: req.Param}, nil
		case 2:
			return alicaptcha.Result{Passed: true, Code: alicaptcha.Code(req.Param)}, nil
		case 3:
			return alicaptcha.Result{}, &alicaptcha.Error{Code: alicaptcha.Code(req.Param), Err: errors.New(req.Param)}
		}
		return alicaptcha.Result{}, errors.New(req.Param)
	}
	gate := r.gate(t, alicaptcha.Config{
		SceneIDFunc:   func(r *http.Request) string { return r.Header.Get("X-Scene") },
		MaxConcurrent: 1000,
		Verifier:      r.Verifier(alicaptcha.VerifierFunc(answer)),
	})
	handler := gate.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))

	const requests = 10_000
	var workers sync.WaitGroup
	for worker := range 8 {
		workers.Go(func() {
			for n := worker; n < requests; n += 8 {
				req := newRequest(secret + strconv.Itoa(n))
				if n%50 == 0 {
					req.Header.Del("Captcha-Verify-Param")
				}
				if n%70 != 0 {
					req.Header.Set("X-Scene", fmt.Sprintf("junk-%d\xff", n))
				}
				if n%3 == 0 {
					req.Header.Set("X-Scene", "login")
				}
				handler.ServeHTTP(httptest.NewRecorder(), req)
			}
		})
	}
	workers.Wait()
	require.Equal(t, int64(requests), requireClosed(t, r))
	require.Equal(t, int64(0), r.active(t))
	require.Positive(t, r.outcomes(t)["alicaptcha.code=F_other,alicaptcha.decision=rejected,alicaptcha.scene=other"])
}

// No gate makes such Outcomes.
func TestImpossibleOutcomesMakeNoSeries(t *testing.T) {
	r := newRecorder(t, "login", "signup")
	rnd := rand.New(rand.NewPCG(1, 2))
	texts := []string{
		"", "T001", "t001", "F00١", "F0010", "T00", "Fabc", "F 01", "other", "T_other", "param_missing",
		"PARAM_MISSING", "login", "Login",
	}
	text := func() string {
		if rnd.IntN(2) == 0 {
			return strconv.FormatUint(rnd.Uint64(), 36)
		}
		return texts[rnd.IntN(len(texts))]
	}
	for range 10_000 {
		r.Observe(t.Context(), alicaptcha.Outcome{
			Code:     alicaptcha.Code(text()),
			SceneID:  text(),
			Allowed:  rnd.IntN(2) == 0,
			Verified: rnd.IntN(2) == 0,
			Duration: time.Duration(rnd.Int64N(3)),
			Err:      errors.New(text()),
		})
	}
	require.Equal(t, int64(10_000), requireClosed(t, r))
}

func TestCodesThatHaveNoSeries(t *testing.T) {
	r := newRecorder(t)
	for _, c := range []alicaptcha.Code{
		"T000", "T999", "F999", "", "F", "Fabc", "F0011", "f001", "T_other", "param_Missing",
	} {
		r.Observe(t.Context(), alicaptcha.Outcome{Code: c, Duration: 1})
	}
	require.Equal(t, map[string]int64{
		"alicaptcha.code=T_other,alicaptcha.decision=rejected": 2,
		"alicaptcha.code=F_other,alicaptcha.decision=rejected": 1,
		"alicaptcha.code=other,alicaptcha.decision=rejected":   7,
	}, r.outcomes(t))
	require.Equal(t, map[string]uint64{"": 3, "error.type=other": 7}, r.durations(t))
}

func TestSpans(t *testing.T) {
	const id = "00000000-0000-4000-8000-000000000000"
	nothing := (*alicaptcha.Error)(nil)
	for name, tc := range map[string]struct {
		scene      string
		result     alicaptcha.Result
		err        error
		attributes string
		status     string // the description; "": no error
	}{
		"passed": {
			scene:      "login",
			result:     alicaptcha.Result{Passed: true, Code: alicaptcha.T001, RequestID: id, CertifyID: "c"},
			attributes: "alicaptcha.code=T001,alicaptcha.request_id=" + id + ",alicaptcha.scene=login",
		},
		"a rejection is no error": {
			scene:      "login",
			result:     alicaptcha.Result{Code: alicaptcha.F001, RequestID: id},
			attributes: "alicaptcha.code=F001,alicaptcha.request_id=" + id + ",alicaptcha.scene=login",
		},
		"a new code":       {result: alicaptcha.Result{Code: "F031"}, attributes: "alicaptcha.code=F031"},
		"almost a code":    {result: alicaptcha.Result{Code: "Fabc"}, attributes: ""},
		"an older service": {result: alicaptcha.Result{Passed: true}, attributes: ""},
		"junk": {
			scene:  "a\nb\x00é" + strings.Repeat("s", 200),
			result: alicaptcha.Result{Passed: true, Code: secret, RequestID: strings.Repeat("r", 200)},
			attributes: "alicaptcha.request_id=" + strings.Repeat("r", 128) +
				",alicaptcha.scene=a?b??" + strings.Repeat("s", 128-6),
		},
		"refused": {
			err: &alicaptcha.Error{
				Code: alicaptcha.Misconfigured, Status: 403, ServiceCode: "Forbidden", RequestID: id, Err: errors.New(secret),
			},
			attributes: "alicaptcha.code=misconfigured,alicaptcha.request_id=" + id +
				",error.type=misconfigured,http.response.status_code=403",
			status: "misconfigured",
		},
		"timed out": {
			err: &alicaptcha.Error{Code: alicaptcha.ServiceTimeout, Stage: "tls"},
			attributes: "alicaptcha.code=service_timeout,alicaptcha.stage=tls," +
				"error.type=service_timeout",
			status: "service_timeout",
		},
		"wrapped": {
			err:        fmt.Errorf("%s: %w", secret, &alicaptcha.Error{Code: alicaptcha.ServiceThrottled}),
			attributes: "alicaptcha.code=service_throttled,error.type=service_throttled",
			status:     "service_throttled",
		},
		"client gone": {
			err:        &alicaptcha.Error{Code: alicaptcha.ClientCanceled},
			attributes: "alicaptcha.code=client_canceled,error.type=client_canceled",
			status:     "client_canceled",
		},
		"an error of another type": {
			err:        errors.New(secret),
			attributes: "alicaptcha.code=service_unavailable,error.type=service_unavailable",
			status:     "service_unavailable",
		},
		"an error with a code that is none": {
			err:        &alicaptcha.Error{Code: secret, RequestID: "r\x1b[31m"},
			attributes: "alicaptcha.code=service_unavailable,alicaptcha.request_id=r?[31m,error.type=service_unavailable",
			status:     "service_unavailable",
		},
		"an error with the code of a verdict": {
			err:        &alicaptcha.Error{Code: alicaptcha.T001},
			attributes: "alicaptcha.code=service_unavailable,error.type=service_unavailable",
			status:     "service_unavailable",
		},
		"a nil error in an interface": {
			err:        nothing,
			attributes: "alicaptcha.code=service_unavailable,error.type=service_unavailable",
			status:     "service_unavailable",
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRecorder(t)
			var inner trace.SpanContext
			answer := func(ctx context.Context, req alicaptcha.Request) (alicaptcha.Result, error) {
				require.Equal(t, alicaptcha.Request{Param: secret, SceneID: tc.scene}, req)
				require.Equal(t, int64(1), r.active(t))
				inner = trace.SpanContextFromContext(ctx)
				return tc.result, tc.err
			}
			verifier := r.Verifier(alicaptcha.VerifierFunc(answer))
			ctx, parent := r.traces.Tracer("test").Start(t.Context(), "parent")
			result, err := verifier.Verify(ctx, alicaptcha.Request{Param: secret, SceneID: tc.scene})
			require.Equal(t, tc.result, result)
			require.Equal(t, tc.err, err)
			require.Equal(t, int64(0), r.active(t))

			span := r.span(t)
			require.Equal(t, "POST VerifyIntelligentCaptcha", span.Name())
			require.Equal(t, trace.SpanKindClient, span.SpanKind())
			require.Equal(t, "github.com/alicaptcha/alicaptcha/otelalicaptcha", span.InstrumentationScope().Name)
			require.Equal(t, parent.SpanContext().SpanID(), span.Parent().SpanID())
			require.Equal(t, span.SpanContext().SpanID(), inner.SpanID())
			require.Equal(t, tc.attributes, spanLabels(span))
			require.Empty(t, span.Events())
			want := sdktrace.Status{}
			if tc.status != "" {
				want = sdktrace.Status{Code: codes.Error, Description: tc.status}
			}
			require.Equal(t, want, span.Status())
			require.NotContains(t, fmt.Sprint(tracetest.SpanStubFromReadOnlySpan(span)), secret)
		})
	}
}

type withEndpoint struct {
	alicaptcha.Verifier
	endpoint string
}

func (v withEndpoint) Endpoint() string { return v.endpoint }

func TestSpanHasTheAddress(t *testing.T) {
	const verdict = ",http.response.status_code=200"
	for endpoint, want := range map[string]string{
		"https://captcha.cn-shanghai.aliyuncs.com/": "http.request.method=POST" + verdict +
			",server.address=captcha.cn-shanghai.aliyuncs.com,server.port=443" +
			",url.full=https://captcha.cn-shanghai.aliyuncs.com/",
		"http://localhost/": "http.request.method=POST" + verdict +
			",server.address=localhost,server.port=80,url.full=http://localhost/",
		"https://[::1]:8443/": "http.request.method=POST" + verdict +
			",server.address=::1,server.port=8443,url.full=https://[::1]:8443/",
		"https://user:" + secret + "@localhost/": "", // no Client has one
		"%":                                      "",
	} {
		r := newRecorder(t)
		verifier := r.Verifier(withEndpoint{alicaptchatest.Passing(), endpoint})
		_, err := verifier.Verify(t.Context(), alicaptcha.Request{Param: secret})
		require.NoError(t, err)
		_, got, _ := strings.Cut(spanLabels(r.span(t)), "alicaptcha.request_id=00000000-0000-4000-8000-000000000000")
		require.Equal(t, want, strings.TrimPrefix(got, ","))
	}
}

// The SDK would write the panic's text into the span.
func TestPanicGoesOn(t *testing.T) {
	r := newRecorder(t)
	answer := func(_ context.Context, req alicaptcha.Request) (alicaptcha.Result, error) {
		panic("bad param " + req.Param)
	}
	verifier := r.Verifier(alicaptcha.VerifierFunc(answer))
	require.PanicsWithValue(t, "bad param "+secret, func() {
		verifier.Verify(t.Context(), alicaptcha.Request{Param: secret})
	})
	require.Equal(t, int64(0), r.active(t))
	span := r.span(t)
	require.Equal(t, sdktrace.Status{Code: codes.Error, Description: "panic"}, span.Status())
	require.Equal(t, "error.type=panic", spanLabels(span))
	require.Empty(t, span.Events())
	require.NotContains(t, fmt.Sprint(tracetest.SpanStubFromReadOnlySpan(span)), secret)

	// The gate rejects it.
	o := r.gate(t, alicaptcha.Config{Verifier: verifier}).Check(newRequest(secret))
	require.False(t, o.Allowed)
	require.Equal(t, alicaptcha.ServiceUnavailable, o.Code)
	require.Equal(t, map[string]int64{
		"alicaptcha.code=service_unavailable,alicaptcha.decision=rejected,alicaptcha.scene=other": 1,
	}, r.outcomes(t))
}

func TestActive(t *testing.T) {
	const callers = 50
	r := newRecorder(t)
	entered, release := make(chan struct{}), make(chan struct{})
	verifier := r.Verifier(alicaptcha.VerifierFunc(func(context.Context, alicaptcha.Request) (alicaptcha.Result, error) {
		entered <- struct{}{}
		<-release
		return alicaptcha.Result{Passed: true}, nil
	}))
	var done sync.WaitGroup
	for range callers {
		done.Go(func() { verifier.Verify(context.Background(), alicaptcha.Request{Param: secret}) })
	}
	for range callers {
		<-entered
	}
	require.Equal(t, int64(callers), r.active(t))
	close(release)
	done.Wait()
	require.Equal(t, int64(0), r.active(t))
	require.Len(t, r.spans.Ended(), callers)
}

func TestNilVerifierIsFoundByNew(t *testing.T) {
	r := newRecorder(t)
	for _, v := range []alicaptcha.Verifier{nil, alicaptcha.VerifierFunc(nil), (*alicaptcha.Client)(nil)} {
		_, err := alicaptcha.New(alicaptcha.Config{Verifier: r.Verifier(v), SceneID: "login"})
		require.EqualError(t, err, "alicaptcha: Config.Verifier is required")
		_, err = alicaptcha.NewBreaker(r.Verifier(v), alicaptcha.BreakerConfig{})
		require.EqualError(t, err, "alicaptcha: NewBreaker: the Verifier is nil")
	}
}

func TestZeroTelemetryRecordsNothing(t *testing.T) {
	for _, telemetry := range []*otelalicaptcha.Telemetry{nil, {}} {
		telemetry.Observe(t.Context(), alicaptcha.Outcome{Code: alicaptcha.T001, Duration: 1})
		result, err := telemetry.Verifier(alicaptchatest.Rejecting(alicaptcha.F001)).Verify(t.Context(), alicaptcha.Request{})
		require.NoError(t, err)
		require.Equal(t, alicaptcha.F001, result.Code)
		require.Nil(t, telemetry.Verifier(nil))
	}
}

// broken is a MeterProvider that can make histograms only.
type broken struct{ metricnoop.MeterProvider }

func (broken) Meter(string, ...metric.MeterOption) metric.Meter { return brokenMeter{} }

type brokenMeter struct{ metricnoop.Meter }

func (brokenMeter) Int64Counter(string, ...metric.Int64CounterOption) (metric.Int64Counter, error) {
	return nil, errors.New("no counters")
}

func (brokenMeter) Int64UpDownCounter(string, ...metric.Int64UpDownCounterOption) (metric.Int64UpDownCounter, error) {
	return nil, errors.New("nothing goes down")
}

func TestNewReportsEveryFault(t *testing.T) {
	scenes := []string{"login", "", "other", " a", "\xff"}
	telemetry, err := otelalicaptcha.New(otelalicaptcha.Config{MeterProvider: broken{}, Scenes: scenes})
	require.Nil(t, telemetry)
	require.EqualError(t, err, `otelalicaptcha: Config.Scenes[1] must not be empty, "other" or invalid UTF-8, and must not begin or end with white space
otelalicaptcha: Config.Scenes[2] must not be empty, "other" or invalid UTF-8, and must not begin or end with white space
otelalicaptcha: Config.Scenes[3] must not be empty, "other" or invalid UTF-8, and must not begin or end with white space
otelalicaptcha: Config.Scenes[4] must not be empty, "other" or invalid UTF-8, and must not begin or end with white space
otelalicaptcha: Config.MeterProvider: no counters
nothing goes down`)
}

func TestScenesAreCopied(t *testing.T) {
	scenes := []string{"login"}
	r := newRecorder(t, scenes...)
	scenes[0] = "changed"
	r.Observe(t.Context(), alicaptcha.Outcome{Code: alicaptcha.T001, SceneID: "login"})
	r.Observe(t.Context(), alicaptcha.Outcome{Code: alicaptcha.T001, SceneID: "changed"})
	require.Equal(t, map[string]int64{
		"alicaptcha.code=T001,alicaptcha.decision=rejected,alicaptcha.scene=login": 1,
		"alicaptcha.code=T001,alicaptcha.decision=rejected,alicaptcha.scene=other": 1,
	}, r.outcomes(t))
}

func TestGlobalProviders(t *testing.T) {
	meters, traces := otel.GetMeterProvider(), otel.GetTracerProvider()
	t.Cleanup(func() {
		otel.SetMeterProvider(meters)
		otel.SetTracerProvider(traces)
	})
	r := newRecorder(t)
	otel.SetMeterProvider(r.meters)
	otel.SetTracerProvider(r.traces)
	telemetry, err := otelalicaptcha.New(otelalicaptcha.Config{})
	require.NoError(t, err)
	telemetry.Observe(t.Context(), alicaptcha.Outcome{Code: alicaptcha.T001})
	telemetry.Verifier(alicaptchatest.Passing()).Verify(t.Context(), alicaptcha.Request{Param: secret})
	require.Len(t, r.outcomes(t), 1)
	require.Len(t, r.spans.Ended(), 1)
}

// From the client's request to the service and back, in all the ways at once.
func TestEndToEnd(t *testing.T) {
	propagator := otel.GetTextMapPropagator()
	otel.SetTextMapPropagator(propagation.TraceContext{})
	t.Cleanup(func() { otel.SetTextMapPropagator(propagator) })

	r := newRecorder(t, "login")
	server := alicaptchatest.Start(t, alicaptchatest.Config{})
	quiet := slog.New(slog.DiscardHandler)
	verifier, err := alicaptcha.NewBreaker(r.Verifier(server.Client()), alicaptcha.BreakerConfig{
		Failures: 1, OpenFor: time.Hour, Logger: quiet,
	})
	require.NoError(t, err)
	gate := r.gate(t, alicaptcha.Config{
		Verifier: verifier,
		SceneID:  "login",
		Policy:   alicaptcha.Policy{alicaptcha.ServiceUnavailable: alicaptcha.AllowAtMost(always{})},
	})
	handler := gate.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))

	knock := func(code alicaptcha.Code) int {
		param, err := server.Issue(alicaptchatest.Issue{SceneID: "login", Code: code})
		require.NoError(t, err)
		ctx, span := r.traces.Tracer("test").Start(t.Context(), "POST /login")
		defer span.End()
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, newRequest(param).WithContext(ctx))
		require.NotContains(t, fmt.Sprint(r.outcomes(t)), param)
		return w.Code
	}
	require.Equal(t, 200, knock(alicaptcha.T001))
	require.Equal(t, 403, knock(alicaptcha.F009))
	require.NoError(t, server.SetFaults(alicaptchatest.Faults{Credentials: "overdue"}))
	require.Equal(t, 503, knock(alicaptcha.T001))
	require.NoError(t, server.SetFaults(alicaptchatest.Faults{Status: 500}))
	require.Equal(t, 200, knock(alicaptcha.T001)) // opens the breaker
	require.Equal(t, 200, knock(alicaptcha.T001)) // is not sent

	const scene = ",alicaptcha.scene=login"
	require.Equal(t, map[string]int64{
		"alicaptcha.code=T001,alicaptcha.decision=passed" + scene:                1,
		"alicaptcha.code=F009,alicaptcha.decision=rejected" + scene:              1,
		"alicaptcha.code=misconfigured,alicaptcha.decision=rejected" + scene:     1,
		"alicaptcha.code=service_unavailable,alicaptcha.decision=opened" + scene: 2,
	}, r.outcomes(t))
	require.Equal(t, map[string]uint64{
		"": 2, "error.type=misconfigured": 1, "error.type=service_unavailable": 1,
	}, r.durations(t))
	require.Equal(t, int64(0), r.active(t))

	calls := server.Calls()
	require.Len(t, calls, 4)
	for _, call := range calls {
		for name := range call.Header {
			require.NotContains(t, []string{"Traceparent", "Tracestate", "Baggage"}, name)
		}
	}
	var spans []string
	for _, s := range r.spans.Ended() {
		if s.Name() != "POST VerifyIntelligentCaptcha" {
			continue
		}
		require.True(t, s.Parent().IsValid())
		address, port, _ := strings.Cut(strings.TrimPrefix(server.URL, "http://"), ":")
		require.Subset(t, strings.Split(labels(attribute.NewSet(s.Attributes()...)), ","), []string{
			"http.request.method=POST", "url.full=" + server.URL + "/", "server.address=" + address, "server.port=" + port,
		})
		kept := slices.DeleteFunc(slices.Clone(s.Attributes()), func(a attribute.KeyValue) bool {
			return a.Key == "alicaptcha.request_id" && a.Value.AsString() != "" ||
				slices.Contains([]attribute.Key{"http.request.method", "url.full", "server.address", "server.port"}, a.Key)
		})
		spans = append(spans, s.Status().Code.String()+" "+labels(attribute.NewSet(kept...)))
	}
	require.Equal(t, []string{
		"Unset alicaptcha.code=T001,alicaptcha.scene=login,http.response.status_code=200",
		"Unset alicaptcha.code=F009,alicaptcha.scene=login,http.response.status_code=200",
		"Error alicaptcha.code=misconfigured,alicaptcha.scene=login,error.type=misconfigured,http.response.status_code=403",
		"Error alicaptcha.code=service_unavailable,alicaptcha.scene=login,error.type=service_unavailable," +
			"http.response.status_code=500",
	}, spans)
}

// Users of the package get the API alone.
func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	require.NoError(t, err)
	deps := strings.Fields(string(out))
	require.Contains(t, deps, "go.opentelemetry.io/otel/metric")
	for _, dep := range deps {
		require.False(t, strings.HasPrefix(dep, "go.opentelemetry.io/otel/sdk") ||
			strings.HasPrefix(dep, "go.opentelemetry.io/otel/exporters") ||
			strings.HasPrefix(dep, "github.com/prometheus"), dep)
	}
}

func BenchmarkObserve(b *testing.B) {
	r := newRecorder(b, "login")
	o := alicaptcha.Outcome{
		Code: alicaptcha.T001, SceneID: "login", Allowed: true, Verified: true, Duration: 80 * time.Millisecond,
	}
	b.ReportAllocs()
	for b.Loop() {
		r.Observe(context.Background(), o)
	}
}

// The difference from the Verifier alone is what the wrapper takes.
func BenchmarkVerifier(b *testing.B) {
	for name, cfg := range map[string]otelalicaptcha.Config{
		"sampled":     {TracerProvider: sdktrace.NewTracerProvider()},
		"not sampled": {TracerProvider: sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.NeverSample()))},
	} {
		b.Run(name, func(b *testing.B) {
			cfg.MeterProvider = sdkmetric.NewMeterProvider(sdkmetric.WithReader(sdkmetric.NewManualReader()))
			telemetry, err := otelalicaptcha.New(cfg)
			require.NoError(b, err)
			verifier := telemetry.Verifier(alicaptchatest.Passing())
			b.ReportAllocs()
			for b.Loop() {
				verifier.Verify(context.Background(), alicaptcha.Request{Param: "…", SceneID: "login"})
			}
		})
	}
}
