package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/alicaptcha/alicaptcha"
)

// buckets are the boundaries for durations, in seconds. They are those of module
// otelalicaptcha.
var buckets = []float64{.005, .01, .025, .05, .075, .1, .15, .2, .3, .5, .75, 1, 1.5, 2.5, 4, 5}

// metrics counts what a gate does, by the names and labels that the metrics of module
// otelalicaptcha have in Prometheus, so that the same alerts and dashboard serve both.
// Clients cannot multiply the series.
type metrics struct {
	breaker func() alicaptcha.BreakerState
	active  atomic.Int64 // verifications under way

	mu        sync.Mutex
	outcomes  map[string]uint64     // by their labels
	durations map[string]*histogram // by the label error_type, or "" for verdicts
}

type histogram struct {
	counts []uint64 // of each bucket alone, and of what is above the last one
	sum    float64
}

// verifier returns a Verifier that calls next, and counts its calls under way.
func (m *metrics) verifier(next alicaptcha.Verifier) alicaptcha.Verifier {
	return alicaptcha.VerifierFunc(func(ctx context.Context, req alicaptcha.Request) (alicaptcha.Result, error) {
		m.active.Add(1)
		defer m.active.Add(-1)
		return next.Verify(ctx, req)
	})
}

// observe counts o.
func (m *metrics) observe(_ context.Context, o alicaptcha.Outcome) {
	code := seriesOf(o.Code)
	labels := fmt.Sprintf(`alicaptcha_code="%s",alicaptcha_decision="%s",alicaptcha_scene="%s"`, code, decisionOf(o), o.SceneID)
	_, isVerdict := o.Code.Verdict()
	failure := ""
	if !isVerdict {
		failure = code
	}

	m.mu.Lock()
	defer m.mu.Unlock()
	if m.outcomes == nil {
		m.outcomes, m.durations = make(map[string]uint64), make(map[string]*histogram)
	}
	m.outcomes[labels]++
	if o.Duration <= 0 || errors.Is(o.Err, alicaptcha.ErrBreakerOpen) {
		return // the service was not asked
	}
	h := m.durations[failure]
	if h == nil {
		h = &histogram{counts: make([]uint64, len(buckets)+1)}
		m.durations[failure] = h
	}
	seconds := o.Duration.Seconds()
	i, _ := slices.BinarySearch(buckets, seconds)
	h.counts[i]++
	h.sum += seconds
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
		return "other"
	case passed:
		return "T_other"
	}
	return "F_other"
}

// writeTo writes the metrics in the text format of Prometheus, version 0.0.4.
func (m *metrics) writeTo(w io.Writer) {
	var b strings.Builder
	begin := func(name, kind, help string) { fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %[1]s %[3]s\n", name, help, kind) }

	m.mu.Lock()
	begin("alicaptcha_outcomes_total", "counter", "Requests at the gates, by how they ended.")
	for _, labels := range slices.Sorted(maps.Keys(m.outcomes)) {
		fmt.Fprintf(&b, "alicaptcha_outcomes_total{%s} %d\n", labels, m.outcomes[labels])
	}
	const duration = "alicaptcha_verification_duration_seconds"
	begin(duration, "histogram", "Duration of the verifications for which the service was asked.")
	for _, failure := range slices.Sorted(maps.Keys(m.durations)) {
		m.durations[failure].writeTo(&b, duration, failure)
	}
	m.mu.Unlock()

	begin("alicaptcha_verifications_active", "gauge", "Verifications under way.")
	fmt.Fprintf(&b, "alicaptcha_verifications_active %d\n", m.active.Load())
	begin("alicaptcha_breaker_state", "gauge", "1 for the present state of the breaker, and 0 for the others.")
	present := m.breaker()
	for _, state := range []alicaptcha.BreakerState{"closed", "half-open", "open"} {
		value := 0
		if state == present {
			value = 1
		}
		fmt.Fprintf(&b, "alicaptcha_breaker_state{alicaptcha_breaker_name=\"gate\",alicaptcha_breaker_state=\"%s\"} %d\n", state, value)
	}
	io.WriteString(w, b.String())
}

func (h *histogram) writeTo(b *strings.Builder, name, failure string) {
	label := ""
	if failure != "" {
		label = `error_type="` + failure + `"`
	}
	total := uint64(0)
	for i, count := range h.counts {
		bound := "+Inf"
		if i < len(buckets) {
			bound = strconv.FormatFloat(buckets[i], 'g', -1, 64)
		}
		total += count
		fmt.Fprintf(b, "%s_bucket{%sle=\"%s\"} %d\n", name, strings.TrimPrefix(label+",", ","), bound, total)
	}
	if label != "" {
		label = "{" + label + "}"
	}
	fmt.Fprintf(b, "%s_sum%s %v\n%s_count%[2]s %[5]d\n", name, label, h.sum, name, total)
}
