package otelalicaptcha

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/alicaptcha/alicaptcha"
)

const (
	breakerNameKey  = attribute.Key("alicaptcha.breaker.name")
	breakerStateKey = attribute.Key("alicaptcha.breaker.state")
)

// breakerStates are all that a Breaker can be in.
var breakerStates = []alicaptcha.BreakerState{"closed", "open", "half-open"}

// Breaker exports the metric alicaptcha.breaker.state. Its state is the State method of
// an [alicaptcha.Breaker]:
//
//	err := telemetry.Breaker("login", breaker.State)
//
// A program that replaces its Breaker passes a function that calls State of the current
// one. The metric has a series for each state, which is 1 for the present state and 0
// for the others. Its attributes are alicaptcha.breaker.name, which is name, and
// alicaptcha.breaker.state, which is "closed", "open" or "half-open".
//
// state is called whenever the metrics are collected, for as long as the MeterProvider
// lives. It must be safe for concurrent use. Between two collections a breaker may open
// and close unseen, because its first openings are short.
//
// Breaker returns an error if name is empty, not valid UTF-8 or already in use, if state
// is nil, or if the MeterProvider returns one. It may be called for any number of breakers,
// each of which adds three series. A nil or zero Telemetry makes no metric.
func (t *Telemetry) Breaker(name string, state func() alicaptcha.BreakerState) error {
	if t.zero() {
		return nil
	}
	if name == "" || name != strings.TrimSpace(name) || !utf8.ValidString(name) {
		return errors.New("otelalicaptcha: Breaker: the name is empty, not UTF-8, or has white space around it")
	}
	if state == nil {
		return errors.New("otelalicaptcha: Breaker: the state is nil")
	}
	if _, taken := t.breakers.LoadOrStore(name, true); taken {
		return fmt.Errorf("otelalicaptcha: Breaker: the name %q is taken", name)
	}

	var series []metric.ObserveOption
	for _, s := range breakerStates {
		series = append(series, metric.WithAttributeSet(attribute.NewSet(
			breakerNameKey.String(name), breakerStateKey.String(string(s)))))
	}
	// The same instrument each time. A callback of its own would be that of the first.
	states, err := t.meter.Int64ObservableUpDownCounter("alicaptcha.breaker.state",
		metric.WithUnit("{breaker}"),
		metric.WithDescription("Breakers in each state."))
	if err == nil {
		_, err = t.meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
			now := state()
			for i, s := range breakerStates {
				var n int64
				if s == now {
					n = 1
				}
				o.ObserveInt64(states, n, series[i])
			}
			return nil
		}, states)
	}
	if err != nil {
		t.breakers.Delete(name)
		return fmt.Errorf("otelalicaptcha: Config.MeterProvider: %w", err)
	}
	return nil
}
