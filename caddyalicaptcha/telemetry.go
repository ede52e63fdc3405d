package caddyalicaptcha

import (
	"context"
	"fmt"
	"sync"

	"github.com/caddyserver/caddy/v2"
	"github.com/prometheus/client_golang/prometheus"
	exporter "go.opentelemetry.io/otel/exporters/prometheus"
	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/embedded"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/otelalicaptcha"
)

// A meter holds the metrics of one configuration, in the registry that Caddy makes for
// it. They start at zero with each configuration, as Caddy's own do.
type meter struct {
	provider *sdk.MeterProvider
	breakers *otelalicaptcha.Telemetry

	mu    sync.Mutex
	names map[string]int
	known map[*service]bool
}

// Destruct implements caddy.Destructor.
func (m *meter) Destruct() error { return m.provider.Shutdown(context.Background()) }

// observed returns the Verifier and the observer of the gate. They record its metrics
// for Caddy's registry, and its spans where the request has one from Caddy's tracing.
func (h *Handler) observed(ctx caddy.Context, s *service) (alicaptcha.Verifier, func(context.Context, alicaptcha.Outcome), error) {
	registry := ctx.GetMetricsRegistry()
	m, err := take(h, registry, func() (*meter, error) { return newMeter(registry) })
	if err != nil {
		return nil, nil, err
	}
	if err := m.breaker(s); err != nil {
		return nil, nil, err
	}
	cfg := otelalicaptcha.Config{MeterProvider: m.provider, TracerProvider: requestTracer{}}
	if h.Scene != "other" { // which stands for the scenes without series of their own
		cfg.Scenes = []string{h.Scene}
	}
	t, err := otelalicaptcha.New(cfg)
	if err != nil {
		return nil, nil, err
	}
	return s.verifier(t.Verifier(s.client)), t.Observe, nil
}

func newMeter(registry *prometheus.Registry) (*meter, error) {
	reader, err := exporter.New(exporter.WithRegisterer(registry), exporter.WithoutTargetInfo(), exporter.WithoutScopeInfo())
	if err != nil {
		return nil, err
	}
	provider := sdk.NewMeterProvider(sdk.WithReader(reader))
	telemetry, err := otelalicaptcha.New(otelalicaptcha.Config{MeterProvider: provider, TracerProvider: requestTracer{}})
	if err != nil {
		return nil, err
	}
	return &meter{provider: provider, breakers: telemetry, names: make(map[string]int), known: make(map[*service]bool)}, nil
}

// breaker exports the state of the breaker of s, once. Its name is the region or the
// endpoint, with a number if there are several with different settings.
func (m *meter) breaker(s *service) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.known[s] {
		return nil
	}
	m.known[s] = true
	m.names[s.name]++
	name := s.name
	if n := m.names[s.name]; n > 1 {
		name = fmt.Sprintf("%s#%d", name, n)
	}
	return m.breakers.Breaker(name, s.breaker.State)
}

// requestTracer is a TracerProvider that makes spans with the TracerProvider of the
// request's span, which is how Caddy's tracing shows its own. A request without a span
// gets none.
type requestTracer struct{ embedded.TracerProvider }

// Tracer implements trace.TracerProvider.
func (requestTracer) Tracer(name string, options ...trace.TracerOption) trace.Tracer {
	return tracer{name: name, options: options}
}

type tracer struct {
	embedded.Tracer
	name    string
	options []trace.TracerOption
}

// Start implements trace.Tracer.
func (t tracer) Start(ctx context.Context, name string, options ...trace.SpanStartOption) (context.Context, trace.Span) {
	provider := trace.SpanFromContext(ctx).TracerProvider()
	return provider.Tracer(t.name, t.options...).Start(ctx, name, options...)
}
