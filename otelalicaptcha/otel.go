// Package otelalicaptcha tells OpenTelemetry how the gates of package alicaptcha
// fare: it counts outcomes, measures verifications, and makes a span of each.
//
//	telemetry, err := otelalicaptcha.New(otelalicaptcha.Config{Scenes: []string{"1a2b3c4d"}})
//	…
//	verifier, err := alicaptcha.NewBreaker(telemetry.Verifier(client), alicaptcha.BreakerConfig{})
//	…
//	captcha, err := alicaptcha.New(alicaptcha.Config{
//		Verifier: verifier,
//		SceneID:  "1a2b3c4d",
//		Observe:  telemetry.Observe,
//	})
//
// The metrics, with the names that Prometheus has for them:
//
//	alicaptcha.outcomes               alicaptcha_outcomes_total
//	alicaptcha.verification.duration  alicaptcha_verification_duration_seconds
//	alicaptcha.verifications.active   alicaptcha_verifications_active
//	alicaptcha.breaker.state          alicaptcha_breaker_state
//
// The last is there for each breaker that [Telemetry.Breaker] was told of.
//
// Whatever clients send and the service answers, the number of series stays
// below a bound that the [Config] sets. No metric and no span holds a param, a
// key, or the text of an error or a panic.
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

// The attributes that are not OpenTelemetry's own.
const (
	codeKey      = attribute.Key("alicaptcha.code")
	sceneKey     = attribute.Key("alicaptcha.scene")
	decisionKey  = attribute.Key("alicaptcha.decision")
	requestIDKey = attribute.Key("alicaptcha.request_id")
	referenceKey = attribute.Key("alicaptcha.reference")
)

// other is the scene, or the code, of what has no series of its own.
const other = "other"

// buckets are the boundaries of the duration, in seconds. A verdict takes some
// 20 to 300 ms; a gate gives up after 5 s by default, which is the last one.
var buckets = []float64{.005, .01, .025, .05, .075, .1, .15, .2, .3, .5, .75, 1, 1.5, 2.5, 4, 5}

// Config configures [New]. The zero value is usable.
type Config struct {
	// MeterProvider makes the metrics. If nil, it is the global one.
	MeterProvider metric.MeterProvider

	// TracerProvider makes the spans. If nil, it is the global one.
	TracerProvider trace.TracerProvider

	// Scenes are the scenes that the metrics tell apart; every other one is
	// "other". The list has to be closed, because a SceneIDFunc may pass on
	// what a client sent.
	Scenes []string

	_ [0]func() // fields by name only
}

// Telemetry has the instruments; several gates may share one. It is safe for
// concurrent use. A nil or zero Telemetry records nothing.
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

// New returns a Telemetry, or an error that joins every fault of cfg and of its
// providers. Changing cfg.Scenes afterwards changes nothing.
func New(cfg Config) (*Telemetry, error) {
	var errs []error
	t := &Telemetry{scenes: make(map[string]bool, len(cfg.Scenes))}
	for i, scene := range cfg.Scenes {
		if scene == "" || scene == other || scene != strings.TrimSpace(scene) || !utf8.ValidString(scene) {
			errs = append(errs, fmt.Errorf("otelalicaptcha: Config.Scenes[%d] is empty, %q, not UTF-8, "+
				"or has white space around it", i, other))
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

// zero reports a Telemetry that New did not make.
func (t *Telemetry) zero() bool { return t == nil || t.tracer == nil }

// Observe records o. It is meant for Config.Observe of package alicaptcha.
//
// Every Outcome adds one to alicaptcha.outcomes, with these attributes:
//
//   - alicaptcha.code is Outcome.Code. One that package alicaptcha has no
//     constant for is "T_other", "F_other" or "other".
//   - alicaptcha.scene is one of Config.Scenes, or "other". Where no scene was
//     asked for, as with AnyScene, there is none.
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
// Where the service was asked, Outcome.Duration is recorded in
// alicaptcha.verification.duration: not for a request that ended before that,
// nor for the immediate refusals of an open [alicaptcha.Breaker], which would
// make an outage look fast. Its only attribute is error.type, the code, where
// there is no verdict.
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

// seriesOf returns c, or its like in the closed set of codes that have series.
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

// Verifier returns a Verifier that asks next, makes a span of that, and counts
// it in alicaptcha.verifications.active as long as it lasts. Put it inside an
// [alicaptcha.Breaker]: then every span is a call that was made. What next
// returns, and a panic of it, go on unchanged.
//
// The span is of kind client and named "POST VerifyIntelligentCaptcha". It has
//
//   - http.request.method, url.full, server.address and server.port, where next
//     is an *alicaptcha.Client, or has an Endpoint method like it,
//   - alicaptcha.scene, if one was asked for,
//   - alicaptcha.code, the verdict's if it has the shape of one; or that of the
//     error, by which one that is no *alicaptcha.Error is service_unavailable,
//   - alicaptcha.request_id, which the service's support asks for,
//   - http.response.status_code, where it is known.
//
// A rejection is a verdict and no error. Whatever ends without a verdict is one,
// also when it was the client who hung up, as OpenTelemetry has it for clients:
// the status is Error, and error.type and the description are the code. In case
// of a panic they are "panic". The gate's own word, in alicaptcha.outcomes, may
// differ where it does not believe next.
//
// That is what OpenTelemetry's conventions for HTTP clients ask for, with the
// operation in the place of a URL template, which would be "/". The wrapper does
// not inject the trace's headers: they are no business of the service's. An
// instrumented Transport in alicaptcha.ClientConfig would send them, if the
// program has set a propagator.
//
// A nil next is returned as it is, for [alicaptcha.New] to report.
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

// httpAttributes returns those of a call to endpoint, which is a URL.
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
	// End is not deferred itself: the SDK's would recover for a moment, and
	// write the panic's text, which may hold the param, into the span.
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
			span.SetAttributes(semconv.HTTPResponseStatusCode(http.StatusOK)) // a Client takes a verdict from no other
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
	}
	set(span, codeKey, failed)
	return result, err
}

// set sets an attribute to a text that may come from outside: as in the log, it
// is cut short and made printable ASCII. An empty one is left out.
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

// isNil also finds a nil pointer in the interface. Wrapped, it would get past
// alicaptcha.New.
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
