package otelalicaptcha_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
	"github.com/alicaptcha/alicaptcha/otelalicaptcha"
)

// states returns the breakers by their state, as the metric has them.
func (r *recorder) states(tb testing.TB) map[string]string {
	tb.Helper()
	data := r.metric(tb, "alicaptcha.breaker.state")
	if data == nil {
		return nil
	}
	sum := data.(metricdata.Sum[int64])
	require.False(tb, sum.IsMonotonic)
	got := map[string]string{}
	zeros := map[string]int{}
	for _, p := range sum.DataPoints {
		require.Equal(tb, 2, p.Attributes.Len())
		name, _ := p.Attributes.Value("alicaptcha.breaker.name")
		state, _ := p.Attributes.Value("alicaptcha.breaker.state")
		switch p.Value {
		case 1:
			require.Empty(tb, got[name.AsString()])
			got[name.AsString()] = state.AsString()
		case 0:
			zeros[name.AsString()]++
		default:
			require.Fail(tb, "neither 0 nor 1", "%+v", p)
		}
	}
	for name := range got {
		require.Equal(tb, 2, zeros[name])
	}
	return got
}

func TestBreakerState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRecorder(t)
		require.Nil(t, r.states(t))
		var verifier alicaptcha.Verifier = alicaptchatest.Failing(alicaptcha.ServiceUnavailable)
		breaker := func(name string) *alicaptcha.Breaker {
			b, err := alicaptcha.NewBreaker(
				alicaptcha.VerifierFunc(func(ctx context.Context, req alicaptcha.Request) (alicaptcha.Result, error) {
					return verifier.Verify(ctx, req)
				}), alicaptcha.BreakerConfig{Failures: 1, Probes: 1, Logger: slog.New(slog.DiscardHandler)})
			require.NoError(t, err)
			require.NoError(t, r.Breaker(name, b.State))
			return b
		}
		login, signup := breaker("login"), breaker("signup")
		require.Equal(t, map[string]string{"login": "closed", "signup": "closed"}, r.states(t))
		login.Verify(t.Context(), alicaptcha.Request{Param: secret})
		require.Equal(t, map[string]string{"login": "open", "signup": "closed"}, r.states(t))
		signup.Verify(t.Context(), alicaptcha.Request{Param: secret})
		time.Sleep(5 * time.Second)
		require.Equal(t, map[string]string{"login": "half-open", "signup": "half-open"}, r.states(t))
		verifier = alicaptchatest.Passing()
		login.Verify(t.Context(), alicaptcha.Request{Param: secret})
		require.Equal(t, map[string]string{"login": "closed", "signup": "half-open"}, r.states(t))
	})
}

// A function that does not say one of the words makes no series of its own.
func TestBreakerStateIsClosedSet(t *testing.T) {
	t.Parallel()
	r := newRecorder(t)
	require.NoError(t, r.Breaker("login", func() alicaptcha.BreakerState { return secret }))
	require.Empty(t, r.states(t))
	require.Len(t, r.metric(t, "alicaptcha.breaker.state").(metricdata.Sum[int64]).DataPoints, 3)
}

func TestBreakerFaults(t *testing.T) {
	t.Parallel()
	r := newRecorder(t)
	var b *alicaptcha.Breaker // is open
	for _, name := range []string{"", " login", "\xff"} {
		require.ErrorContains(t, r.Breaker(name, b.State), "the name is empty")
	}
	require.ErrorContains(t, r.Breaker("login", nil), "the state is nil")
	require.Nil(t, r.states(t))
	require.NoError(t, r.Breaker("login", b.State))
	require.EqualError(t, r.Breaker("login", b.State), `otelalicaptcha: Breaker: the name "login" is taken`)
	require.Equal(t, map[string]string{"login": "open"}, r.states(t))

	for _, none := range []*otelalicaptcha.Telemetry{nil, {}} {
		require.NoError(t, none.Breaker("", nil))
	}

	meters := new(unobserving)
	telemetry, err := otelalicaptcha.New(otelalicaptcha.Config{MeterProvider: meters})
	require.NoError(t, err)
	require.EqualError(t, telemetry.Breaker("login", b.State), "otelalicaptcha: Config.MeterProvider: nothing is observed")
	meters.works = true
	require.NoError(t, telemetry.Breaker("login", b.State), "the name is free again")
}

// unobserving is a MeterProvider that does not make what a Breaker needs, until it works.
type unobserving struct {
	metricnoop.MeterProvider
	works bool
}

func (u *unobserving) Meter(string, ...metric.MeterOption) metric.Meter {
	return unobservingMeter{provider: u}
}

type unobservingMeter struct {
	metricnoop.Meter
	provider *unobserving
}

func (m unobservingMeter) Int64ObservableUpDownCounter(name string, opts ...metric.Int64ObservableUpDownCounterOption,
) (metric.Int64ObservableUpDownCounter, error) {
	if !m.provider.works {
		return nil, errors.New("nothing is observed")
	}
	return m.Meter.Int64ObservableUpDownCounter(name, opts...)
}

func TestBreakersAtOnce(t *testing.T) {
	t.Parallel()
	r := newRecorder(t)
	var b *alicaptcha.Breaker
	var telling sync.WaitGroup
	for i := range 20 {
		telling.Go(func() { r.Breaker(fmt.Sprint(i%10), b.State) })
		telling.Go(func() { r.states(t) })
	}
	telling.Wait()
	require.Len(t, r.states(t), 10)
}

func ExampleTelemetry_Breaker() {
	reader := sdkmetric.NewManualReader()
	telemetry, err := otelalicaptcha.New(otelalicaptcha.Config{
		MeterProvider: sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)),
	})
	if err != nil {
		log.Fatal(err)
	}
	breaker, err := alicaptcha.NewBreaker(telemetry.Verifier(alicaptchatest.Passing()), alicaptcha.BreakerConfig{})
	if err != nil {
		log.Fatal(err)
	}
	if err := telemetry.Breaker("login", breaker.State); err != nil {
		log.Fatal(err)
	}

	var metrics metricdata.ResourceMetrics
	if err := reader.Collect(context.Background(), &metrics); err != nil {
		log.Fatal(err)
	}
	for _, m := range metrics.ScopeMetrics[0].Metrics {
		for _, point := range m.Data.(metricdata.Sum[int64]).DataPoints {
			state, _ := point.Attributes.Value("alicaptcha.breaker.state")
			fmt.Println(m.Name, state.AsString(), point.Value)
		}
	}
	// Unordered output:
	// alicaptcha.breaker.state closed 1
	// alicaptcha.breaker.state open 0
	// alicaptcha.breaker.state half-open 0
}
