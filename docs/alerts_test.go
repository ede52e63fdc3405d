package docs

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

// The table of alerts in docs/operations.md has each alert once, with its severity
// and with the times that the tests of the rules have, and each alert links to the
// heading of its name there.
func TestOperationsAlerts(t *testing.T) {
	t.Parallel()
	var rules struct {
		Groups []struct {
			Rules []struct {
				Alert               string
				Labels, Annotations map[string]string
			}
		}
	}
	unmarshal(t, "prometheus-alerts.yml", &rules)
	text := section(t, "operations.md", "## Alerts")
	documented := map[string][]string{}
	for _, row := range cells(text) {
		name := names(row[0])
		require.Len(t, name, 1, row)
		require.Len(t, row, 5, row)
		require.NotContains(t, documented, name[0], "two rows")
		documented[name[0]] = row
	}

	fires, clears := times(t)
	alerts := 0
	for _, group := range rules.Groups {
		for _, rule := range group.Rules {
			if rule.Alert == "" {
				continue
			}
			alerts++
			row := documented[rule.Alert]
			require.NotEmpty(t, row, "%s has no row", rule.Alert)
			require.Equal(t, rule.Labels["severity"], row[1], rule.Alert)
			require.Equal(t, minutes(fires[rule.Alert]), row[2], rule.Alert)
			require.Equal(t, minutes(clears[rule.Alert]), row[3], rule.Alert)

			anchor := docAnchor(rule.Alert)
			require.Equal(t, "https://github.com/alicaptcha/alicaptcha/blob/main/docs/operations.md#"+anchor,
				rule.Annotations["runbook_url"], rule.Alert)
			require.Contains(t, text, "\n### "+rule.Alert+"\n")
			require.Contains(t, row[0], "(#"+anchor+")")
		}
	}
	require.Positive(t, alerts)
	require.Len(t, documented, alerts, "a row has no rule")
}

// times returns how many minutes after the begin of a fault each alert fires, and how
// many after its end it clears, in each test of the rules that is named after it.
func times(t *testing.T) (fires, clears map[string][]int) {
	t.Helper()
	var tests struct {
		Tests []struct {
			Name  string
			Exprs []struct {
				Expr    string
				Samples []struct {
					Labels string
					Value  int
				} `yaml:"exp_samples"`
			} `yaml:"promql_expr_test"`
		}
	}
	unmarshal(t, "prometheus-alerts-test.yml", &tests)
	fires, clears = map[string][]int{}, map[string][]int{}
	alertname := regexp.MustCompile(`alertname="(\w+)"`)
	for _, test := range tests.Tests {
		subject, _, named := strings.Cut(test.Name, ": ")
		if !named {
			continue
		}
		require.Len(t, test.Exprs, 2, test.Name)
		for i, found := range []map[string][]int{fires, clears} {
			require.Contains(t, test.Exprs[i].Expr, []string{"min_over_time", "max_over_time"}[i], test.Name)
			before := len(found[subject])
			for _, sample := range test.Exprs[i].Samples {
				if alert := alertname.FindStringSubmatch(sample.Labels); alert[1] == subject {
					found[subject] = append(found[subject], sample.Value)
				}
			}
			require.Greater(t, len(found[subject]), before, test.Name)
		}
	}
	return fires, clears
}

// minutes returns what the table says of values.
func minutes(values []int) string {
	if len(values) == 0 {
		return ""
	}
	low, high := slices.Min(values), slices.Max(values)
	if low == high {
		return fmt.Sprintf("%d min", low)
	}
	return fmt.Sprintf("%d to %d min", low, high)
}

func unmarshal(t *testing.T, file string, into any) {
	t.Helper()
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	require.NoError(t, yaml.Unmarshal(text, into), file)
}

// The configuration of Alertmanager in docs/operations.md can be read, and names alerts
// that there are.
func TestOperationsRoute(t *testing.T) {
	t.Parallel()
	block := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindStringSubmatch(section(t, "operations.md", "## Alerts"))
	require.NotNil(t, block)
	var config struct {
		Route struct {
			Routes []struct{ Matchers []string }
		}
		InhibitRules []struct {
			Source []string `yaml:"source_matchers"`
			Target []string `yaml:"target_matchers"`
			Equal  []string
		} `yaml:"inhibit_rules"`
	}
	require.NoError(t, yaml.Unmarshal([]byte(block[1]), &config))
	require.NotEmpty(t, config.Route.Routes)
	require.NotEmpty(t, config.InhibitRules)
	rules, err := os.ReadFile("prometheus-alerts.yml")
	require.NoError(t, err)
	names := regexp.MustCompile(`Captcha[A-Za-z]+`).FindAllString(block[1], -1)
	require.NotEmpty(t, names)
	for _, name := range names {
		require.Contains(t, string(rules), "- alert: "+name+"\n")
	}
}
