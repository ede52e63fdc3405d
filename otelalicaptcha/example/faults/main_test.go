package main

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The rules of the program are those of docs with every time in seconds, and each
// critical alert has a fault.
func TestRules(t *testing.T) {
	rules, err := os.ReadFile("../../../docs/prometheus-alerts.yml")
	require.NoError(t, err)
	fast := string(faster(rules))
	require.Equal(t, "[1440s] offset 1410s\nfor: 2s\n", string(faster([]byte("[1d] offset 23h30m\nfor: 2m\n"))))
	for line := range strings.SplitSeq(fast, "\n") {
		if _, text, _ := strings.Cut(line, ": "); strings.Contains(text, "[") || strings.Contains(line, "for: ") {
			require.NotRegexp(t, `\b[0-9]+[mhdw]\b[^:]*$`, regexp.MustCompile(`\w+:\w+:\w+`).ReplaceAllString(line, ""))
		}
	}

	critical := map[string]bool{}
	known := map[string]bool{}
	for _, rule := range strings.Split(string(rules), "- alert: ")[1:] {
		name, rest, _ := strings.Cut(rule, "\n")
		known[name] = true
		if strings.Contains(rest, "severity: critical") {
			critical[name] = true
		}
	}
	require.Greater(t, len(critical), 5)
	for _, f := range faults() {
		for _, name := range append(f.alerts, f.perhaps...) {
			require.True(t, known[name], "%s: there is no %s", f.name, name)
			delete(critical, name)
		}
	}
	require.Empty(t, critical, "without a fault")
}
