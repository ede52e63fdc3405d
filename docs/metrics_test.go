package docs

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// alicaptcha gate writes the metrics of otelalicaptcha by itself, because the root module
// must not depend on OpenTelemetry. The alerts and the dashboard serve both.
func TestGateHasTheSameMetrics(t *testing.T) {
	t.Parallel()
	read := func(file string) string {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		return string(text)
	}
	gate, otel := read("../cmd/alicaptcha/metrics.go"), read("../otelalicaptcha/otel.go")
	for _, piece := range []string{
		`(?m)^var buckets = .*$`,
		`(?s)\nfunc decisionOf\(o alicaptcha\.Outcome\) string \{\n.*?\n\}\n`,
	} {
		same := regexp.MustCompile(piece).FindString(otel)
		require.NotEmpty(t, same, piece)
		require.Contains(t, gate, same)
	}

	used := read("prometheus-alerts.yml") + read("grafana-dashboard.json")
	names := regexp.MustCompile(`\balicaptcha_[a-z_]+[a-z]`)
	written := make(map[string]bool)
	for _, name := range names.FindAllString(gate, -1) {
		written[name] = true
	}
	for _, name := range names.FindAllString(used, -1) {
		require.True(t, written[strings.TrimSuffix(name, "_bucket")], "%s is used, and alicaptcha gate does not write it", name)
	}
	require.Len(t, written, 8)
}
