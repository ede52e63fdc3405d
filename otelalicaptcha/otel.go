// Package otelalicaptcha exports OpenTelemetry metrics and traces for package
// alicaptcha. It counts outcomes, measures the duration of verifications, and
// creates a span for each verification.
//
//	telemetry, err := otelalicaptcha.New(otelalicaptcha.Config{Scenes: []string{"1a2b3c4d"}})
//	…
//	verifier, err := alicaptcha.NewBreaker(telemetry.Verifier(client), alicaptcha.BreakerConfig{})
//	…
//	err = telemetry.Breaker("login", verifier.State)
//	…
//	captcha, err := alicaptcha.New(alicaptcha.Config{
//		Verifier: verifier,
//		SceneID:  "1a2b3c4d",
//		Observe:  telemetry.Observe,
//	})
//
// These are the metrics, with their names in Prometheus:
//
//	alicaptcha.outcomes               alicaptcha_outcomes_total
//	alicaptcha.verification.duration  alicaptcha_verification_duration_seconds
//	alicaptcha.verifications.active   alicaptcha_verifications_active
//	alicaptcha.breaker.state          alicaptcha_breaker_state
//
// The last one exists for each breaker that was passed to [Telemetry.Breaker].
//
// The number of series is bounded by the [Config], whatever clients send and the
// service answers. No metric or span contains a param, a key, or the text of an
// error or a panic.
package otelalicaptcha

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/alicaptcha/alicaptcha"
)

// scope names this package as the source of its metrics and spans.
const scope = "github.com/alicaptcha/alicaptcha/otelalicaptcha"

// The attributes that OpenTelemetry does not define.
const (
	codeKey      = attribute.Key("alicaptcha.code")
	sceneKey     = attribute.Key("alicaptcha.scene")
	decisionKey  = attribute.Key("alicaptcha.decision")
	requestIDKey = attribute.Key("alicaptcha.request_id")
	referenceKey = attribute.Key("alicaptcha.reference")
	stageKey     = attribute.Key("alicaptcha.stage")
)

// other is the value for scenes and codes that have no series of their own.
const other = "other"

// buckets are the boundaries for durations, in seconds. A verdict takes about 20 to
// 300 ms. The last boundary is the default timeout of a gate, 5 s.
var buckets = []float64{.005, .01, .025, .05, .075, .1, .15, .2, .3, .5, .75, 1, 1.5, 2.5, 4, 5}

// Config configures [New]. The zero value is usable.
type Config struct {
	// MeterProvider provides the meter for the metrics. Nil means the global
	// MeterProvider.
	MeterProvider metric.MeterProvider

	// TracerProvider provides the tracer for the spans. Nil means the global
	// TracerProvider.
	TracerProvider trace.TracerProvider

	// Scenes lists the scenes that have series of their own. Metrics for all
	// other scenes have the scene "other". The list keeps the number of series
	// bounded even if a SceneIDFunc returns what a client sent.
	Scenes []string

	_ [0]func() // fields by name only
}

// Telemetry records metrics and spans. Several gates may share a Telemetry. It is
// safe for concurrent use. A nil or zero Telemetry records nothing.
type Telemetry struct {
	tracer   trace.Tracer
	outcomes metric.Int64Counter
	duration metric.Float64Histogram
	active   metric.Int64UpDownCounter

	scenes map[string]bool

	meter    metric.Meter
	breakers sync.Map // the names that are taken

	_ [0]func()
}

// New returns a Telemetry. If cfg is invalid or a provider fails, it returns an
// error that joins all faults. Later changes to cfg.Scenes have no effect.
func New(cfg Config) (*Telemetry, error) {
	var errs []error
	t := &Telemetry{scenes: make(map[string]bool, len(cfg.Scenes))}
	for i, scene := range cfg.Scenes {
		if scene == "" || scene == other || scene != strings.TrimSpace(scene) || !utf8.ValidString(scene) {
			errs = append(errs, fmt.Errorf("otelalicaptcha: Config.Scenes[%d] must not be empty, %q or invalid UTF-8, "+
				"and must not begin or end with white space", i, other))
		}
		t.scenes[scene] = true
	}

	if cfg.TracerProvider == nil {
		cfg.TracerProvider = otel.GetTracerProvider()
	}
	if cfg.MeterProvider == nil {
		cfg.MeterProvider = otel.GetMeterProvider()
	}
	t.tracer = cfg.TracerProvider.Tracer(scope)
	meter := cfg.MeterProvider.Meter(scope)
	t.meter = meter
	var err1, err2, err3 error
	t.outcomes, err1 = meter.Int64Counter("alicaptcha.outcomes",
		metric.WithUnit("{outcome}"),
		metric.WithDescription("Requests at the gates, by how they ended."))
	t.duration, err2 = meter.Float64Histogram("alicaptcha.verification.duration",
		metric.WithUnit("s"),
		metric.WithDescription("Duration of the verifications for which the service was asked."),
		metric.WithExplicitBucketBoundaries(buckets...))
	t.active, err3 = meter.Int64UpDownCounter("alicaptcha.verifications.active",
		metric.WithUnit("{verification}"),
		metric.WithDescription("Verifications under way."))
	if err := errors.Join(err1, err2, err3); err != nil {
		errs = append(errs, fmt.Errorf("otelalicaptcha: Config.MeterProvider: %w", err))
	}
	if errs != nil {
		return nil, errors.Join(errs...)
	}
	return t, nil
}

// zero reports whether t was not made by New.
func (t *Telemetry) zero() bool { return t == nil || t.tracer == nil }

// Observe records o. It is intended for Config.Observe of package alicaptcha.
//
// Every Outcome adds one to alicaptcha.outcomes, with these attributes:
//
//   - alicaptcha.code is Outcome.Code. A code for which package alicaptcha has no
//     constant is recorded as "T_other", "F_other" or "other".
//   - alicaptcha.scene is one of Config.Scenes, or "other". It is absent if no
//     scene was required, as with AnyScene.
//   - alicaptcha.decision is "passed" if the service passed the param, "opened" if
//     the Policy let the request through unverified, which includes test mode (T005),
//     "exempt" if the Mode was Exempt, "would_reject" if only ReportOnly let the
//     request through, and "rejected" otherwise.
//
// With n Scenes there are at most 42 codes, n+2 scenes and 5 decisions.
//
// The span in ctx, which is the server's if the program makes one around the gate, gets
// alicaptcha.code, alicaptcha.decision and, if the request was not allowed,
// alicaptcha.reference, which is Outcome.Reference.
//
// If the service was asked, Observe records Outcome.Duration in
// alicaptcha.verification.duration. It does not do so for a request that ended
// before that, nor for one that an open [alicaptcha.Breaker] refused, which would
// make an outage look fast. If there is no verdict, the only attribute is
// error.type, which is the code.
func (t *Telemetry) Observe(ctx context.Context, o alicaptcha.Outcome) {
	if t.zero() {
		return
	}
	code := seriesOf(o.Code)
	decision := decisionOf(o)
	if span := trace.SpanFromContext(ctx); span.IsRecording() {
		set(span, codeKey, string(o.Code))
		set(span, decisionKey, decision)
		set(span, referenceKey, o.Reference)
	}
	attrs := append(make([]attribute.KeyValue, 0, 3), codeKey.String(code), decisionKey.String(decision))
	if o.SceneID != "" {
		scene := other
		if t.scenes[o.SceneID] {
			scene = o.SceneID
		}
		attrs = append(attrs, sceneKey.String(scene))
	}
	t.outcomes.Add(ctx, 1, metric.WithAttributeSet(attribute.NewSet(attrs...)))

	if o.Duration <= 0 || errors.Is(o.Err, alicaptcha.ErrBreakerOpen) {
		return
	}
	if _, verdict := o.Code.Verdict(); verdict {
		t.duration.Record(ctx, o.Duration.Seconds())
		return
	}
	t.duration.Record(ctx, o.Duration.Seconds(),
		metric.WithAttributeSet(attribute.NewSet(semconv.ErrorTypeKey.String(code))))
}

func decisionOf(o alicaptcha.Outcome) string {
	switch {
	case o.Code == alicaptcha.Exempted:
		return "exempt"
	case o.Allowed && o.Verified:
		return "passed"
	case o.Allowed:
		return "opened"
	case o.Mode == alicaptcha.ReportOnly:
		return "would_reject"
	}
	return "rejected"
}

// seriesOf returns the code under which c is counted.
func seriesOf(c alicaptcha.Code) string {
	switch passed, ok := c.Verdict(); {
	case c.Known():
		return string(c)
	case !ok:
		return other
	case passed:
		return "T_" + other
	default:
		return "F_" + other
	}
}

// Verifier returns a Verifier that calls next and records the call: it creates a
// span for it, and counts it in alicaptcha.verifications.active until it returns.
// It returns the result of next unchanged, and does not recover its panics. It
// belongs inside an [alicaptcha.Breaker], so that there is a span only for calls
// that were made.
//
// The span has the kind client and the name "POST VerifyIntelligentCaptcha". These
// are its attributes:
//
//   - http.request.method, url.full, server.address and server.port, if next is an
//     *alicaptcha.Client or has the same Endpoint method
//   - alicaptcha.scene, if a scene was required
//   - alicaptcha.code, which is the code of the verdict, if it has the form of one,
//     or the code of the error. An error that is not an *alicaptcha.Error has the
//     code service_unavailable.
//   - alicaptcha.stage, in which a call of an *alicaptcha.Client timed out
//   - alicaptcha.request_id, which the support of the service asks for
//   - http.response.status_code, if it is known
//
// A rejection is a verdict and therefore not an error. A call without a verdict is
// an error, even if the client disconnected, as OpenTelemetry specifies for HTTP
// clients. The span then has the status Error; its description and error.type are
// the code, or "panic" if next panicked. The code in alicaptcha.outcomes may be
// another one if the gate does not accept what next returned.
//
// The span follows the OpenTelemetry conventions for HTTP clients, but its name has
// the operation in place of the URL template, which would be "/". Verifier does not
// send trace headers to the service. An instrumented Transport in
// alicaptcha.ClientConfig sends them if the program has set a propagator.
//
// If next is nil, Verifier returns it, so that [alicaptcha.New] reports it.
func (t *Telemetry) Verifier(next alicaptcha.Verifier) alicaptcha.Verifier {
	if t.zero() || isNil(next) {
		return next
	}
	v := &verifier{t: t, next: next}
	if client, ok := next.(interface{ Endpoint() string }); ok {
		v.http = httpAttributes(client.Endpoint())
	}
	return v
}

// httpAttributes returns the HTTP attributes of a call to the URL endpoint.
func httpAttributes(endpoint string) []attribute.KeyValue {
	u, err := url.Parse(endpoint)
	if err != nil || u.User != nil {
		return nil
	}
	port := 443
	if u.Scheme == "http" {
		port = 80
	}
	if n, err := strconv.Atoi(u.Port()); err == nil {
		port = n
	}
	return []attribute.KeyValue{
		semconv.HTTPRequestMethodPost,
		semconv.URLFull(endpoint),
		semconv.ServerAddress(u.Hostname()),
		semconv.ServerPort(port),
	}
}

type verifier struct {
	t    *Telemetry
	next alicaptcha.Verifier
	http []attribute.KeyValue
}

func (v *verifier) Verify(ctx context.Context, req alicaptcha.Request) (alicaptcha.Result, error) {
	ctx, span := v.t.tracer.Start(ctx, "POST VerifyIntelligentCaptcha",
		trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(v.http...))
	set(span, sceneKey, req.SceneID)
	v.t.active.Add(ctx, 1)
	failed := "panic" // until next returns
	// A deferred End would see the panic, and the SDK would write its text, which
	// may contain the param, into the span.
	defer func() {
		v.t.active.Add(ctx, -1)
		if failed != "" {
			span.SetStatus(codes.Error, failed)
			span.SetAttributes(semconv.ErrorTypeKey.String(failed))
		}
		span.End()
	}()

	result, err := v.next.Verify(ctx, req)
	if err == nil {
		failed = ""
		if v.http != nil {
			span.SetAttributes(semconv.HTTPResponseStatusCode(http.StatusOK)) // a Client accepts a verdict with no other status
		}
		if _, verdict := result.Code.Verdict(); verdict {
			set(span, codeKey, string(result.Code))
		}
		set(span, requestIDKey, result.RequestID)
		return result, nil
	}
	failed = string(alicaptcha.ServiceUnavailable)
	if e, _ := errors.AsType[*alicaptcha.Error](err); e != nil {
		if _, verdict := e.Code.Verdict(); !verdict && e.Code.Known() {
			failed = string(e.Code)
		}
		if e.Status != 0 {
			span.SetAttributes(semconv.HTTPResponseStatusCode(e.Status))
		}
		set(span, requestIDKey, e.RequestID)
		set(span, stageKey, e.Stage)
	}
	set(span, codeKey, failed)
	return result, err
}

// set sets an attribute to a text that may come from outside. As in the log, it cuts
// the text and replaces all characters other than printable ASCII. It sets no
// attribute if value is empty.
func set(span trace.Span, key attribute.Key, value string) {
	if value == "" || !span.IsRecording() {
		return
	}
	span.SetAttributes(key.String(strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, value[:min(len(value), 128)])))
}

// isNil reports whether v is nil or holds a nil value, which alicaptcha.New could
// not detect in a wrapper.
func isNil(v alicaptcha.Verifier) bool {
	if v == nil {
		return true
	}
	switch rv := reflect.ValueOf(v); rv.Kind() {
	case reflect.Pointer, reflect.Func, reflect.Map, reflect.Chan, reflect.Slice:
		return rv.IsNil()
	}
	return false
}
