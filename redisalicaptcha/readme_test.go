//go:build unix

package redisalicaptcha_test

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
)

// Each piece of Go in the README stands word by word in example_test.go.
func TestReadme(t *testing.T) {
	source, err := os.ReadFile("example_test.go")
	require.NoError(t, err)
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	blocks := regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(string(readme), -1)
	require.Len(t, blocks, 2)
	require.Len(t, blocks, strings.Count(string(readme), "```go"), "a block without an end")
	for _, block := range blocks {
		require.Contains(t, string(source), block[1])
	}
}

// The README's counter says what Stats does.
func TestReadmeMetric(t *testing.T) {
	reader := metric.NewManualReader()
	b := newBudget(t, newClient(t, startServer(t, "redis-server").addr()), config(2))
	require.NoError(t, observe(metric.NewMeterProvider(metric.WithReader(reader)).Meter("test"), b))
	for range 5 {
		b.Allow()
	}
	var got metricdata.ResourceMetrics
	require.NoError(t, reader.Collect(t.Context(), &got))
	counter := got.ScopeMetrics[0].Metrics[0]
	require.Equal(t, "alicaptcha.budget.answers", counter.Name)
	sums := map[string]int64{}
	for _, point := range counter.Data.(metricdata.Sum[int64]).DataPoints {
		answer, _ := point.Attributes.Value("alicaptcha.answer")
		sums[answer.AsString()] = point.Value
	}
	require.Equal(t, map[string]int64{"allowed": 2, "refused": 3, "failed": 0}, sums)
}
