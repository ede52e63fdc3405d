package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// client ignores a proxy that the environment may have, and connections end
// with their request.
var client = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

// start runs the example until the test ends, and returns what it prints.
func start(t *testing.T) (lines []string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	out, printed := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := run(ctx, "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", printed, io.Discard)
		printed.CloseWithError(io.EOF)
		done <- err
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			require.NoError(t, err)
		case <-time.After(20 * time.Second):
			require.Fail(t, "run did not return after its context was done")
		}
	})
	for in := bufio.NewScanner(out); in.Scan(); {
		lines = append(lines, in.Text())
		if in.Text() == "Ctrl-C stops it." {
			return lines
		}
	}
	require.Fail(t, "the example ended before it served", "%q", lines)
	return nil
}

// value returns what follows label in lines.
func value(t *testing.T, lines []string, label string) string {
	t.Helper()
	for _, line := range lines {
		if v, ok := strings.CutPrefix(line, label+":"); ok {
			return strings.TrimSpace(v)
		}
	}
	require.Fail(t, "not printed", label)
	return ""
}

func do(t *testing.T, method, url, param, body string) (status int, answer string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	require.NoError(t, err)
	if param != "" {
		r.Header.Set("Captcha-Verify-Param", param)
	}
	resp, err := client.Do(r)
	require.NoError(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, string(b)
}

// visit makes a request in each way that the rules and the dashboard tell from
// the others, and returns what /metrics then shows.
func visit(t *testing.T) string {
	t.Helper()
	lines := start(t)
	login, simulator := value(t, lines, "Site")+"/login", value(t, lines, "Simulator")
	mint := func(code string) string {
		_, answer := do(t, "POST", simulator+"/issue", "", fmt.Sprintf(`{"sceneId":"login","code":%q}`, code))
		var issued struct{ CaptchaVerifyParam string }
		require.NoError(t, json.Unmarshal([]byte(answer), &issued), answer)
		return issued.CaptchaVerifyParam
	}
	var params []string
	for _, v := range []struct {
		faults, code string
		status       int
	}{
		{`{}`, "T001", 200},
		{`{}`, "F009", 403},
		{`{}`, "T005", 503},
		{`{}`, "", 400},
		{`{"throttleShare":1}`, "T001", 503},
		{`{"credentials":"overdue"}`, "T001", 503},
		{`{"status":500}`, "T001", 200}, // opened
	} {
		param := ""
		if v.code != "" {
			param = mint(v.code)
			params = append(params, param)
		}
		status, answer := do(t, "POST", simulator+"/faults", "", v.faults)
		require.Equal(t, 200, status, answer)
		status, answer = do(t, "POST", login, param, "user=alice")
		require.Equal(t, v.status, status, answer)
		require.Equal(t, status == 200, answer == "welcome\n", answer)
	}
	status, metrics := do(t, "GET", value(t, lines, "Metrics"), "", "")
	require.Equal(t, 200, status)
	for _, param := range params {
		require.NotContains(t, metrics, param)
	}
	return metrics
}

// The rules and the dashboard stand on these names.
func TestSeries(t *testing.T) {
	metrics := visit(t)
	var types, series []string
	scope := regexp.MustCompile(`otel_scope_[a-z_]+="[^"]*",?`)
	for line := range strings.Lines(metrics) {
		line = strings.TrimSpace(line)
		if v, ok := strings.CutPrefix(line, "# TYPE alicaptcha_"); ok {
			types = append(types, v)
		}
		lesserBucket := strings.Contains(line, "_bucket{") && !strings.Contains(line, `le="+Inf"`)
		if !strings.HasPrefix(line, "alicaptcha_") || lesserBucket {
			continue
		}
		line = strings.ReplaceAll(scope.ReplaceAllString(line, ""), ",}", "}")
		if strings.Contains(line, "_sum{") {
			line = line[:strings.LastIndex(line, " ")] // a time
		}
		series = append(series, line)
	}
	slices.Sort(series)
	require.Equal(t, []string{
		"breaker_state gauge", "outcomes_total counter", "verification_duration_seconds histogram", "verifications_active gauge",
	}, types)
	const rejected = `alicaptcha_decision="rejected",alicaptcha_scene="login"} 1`
	require.Equal(t, []string{
		`alicaptcha_breaker_state{alicaptcha_breaker_name="login",alicaptcha_breaker_state="closed"} 1`,
		`alicaptcha_breaker_state{alicaptcha_breaker_name="login",alicaptcha_breaker_state="half-open"} 0`,
		`alicaptcha_breaker_state{alicaptcha_breaker_name="login",alicaptcha_breaker_state="open"} 0`,
		`alicaptcha_outcomes_total{alicaptcha_code="F009",` + rejected,
		`alicaptcha_outcomes_total{alicaptcha_code="T001",alicaptcha_decision="passed",alicaptcha_scene="login"} 1`,
		`alicaptcha_outcomes_total{alicaptcha_code="T005",` + rejected,
		`alicaptcha_outcomes_total{alicaptcha_code="misconfigured",` + rejected,
		`alicaptcha_outcomes_total{alicaptcha_code="param_missing",` + rejected,
		`alicaptcha_outcomes_total{alicaptcha_code="service_throttled",` + rejected,
		`alicaptcha_outcomes_total{alicaptcha_code="service_unavailable",` +
			`alicaptcha_decision="opened",alicaptcha_scene="login"} 1`,
		`alicaptcha_verification_duration_seconds_bucket{error_type="misconfigured",le="+Inf"} 1`,
		`alicaptcha_verification_duration_seconds_bucket{error_type="service_throttled",le="+Inf"} 1`,
		`alicaptcha_verification_duration_seconds_bucket{error_type="service_unavailable",le="+Inf"} 1`,
		`alicaptcha_verification_duration_seconds_bucket{le="+Inf"} 3`,
		`alicaptcha_verification_duration_seconds_count{error_type="misconfigured"} 1`,
		`alicaptcha_verification_duration_seconds_count{error_type="service_throttled"} 1`,
		`alicaptcha_verification_duration_seconds_count{error_type="service_unavailable"} 1`,
		`alicaptcha_verification_duration_seconds_count{} 3`,
		`alicaptcha_verification_duration_seconds_sum{error_type="misconfigured"}`,
		`alicaptcha_verification_duration_seconds_sum{error_type="service_throttled"}`,
		`alicaptcha_verification_duration_seconds_sum{error_type="service_unavailable"}`,
		`alicaptcha_verification_duration_seconds_sum{}`,
		`alicaptcha_verifications_active{} 0`,
	}, series)
}

// Every metric and every label that the rules, their tests and the dashboard
// name is one that the example has.
func TestDocsNameWhatIsThere(t *testing.T) {
	metrics := visit(t)
	there := map[string]bool{}
	for line := range strings.Lines(metrics) {
		for _, name := range regexp.MustCompile(`[a-z_]+`).FindAllString(line, -1) {
			there[name] = !strings.HasPrefix(line, "#") || there[name]
		}
	}
	require.True(t, there["alicaptcha_outcomes_total"])
	for _, file := range []string{"grafana-dashboard.json", "prometheus-alerts.yml", "prometheus-alerts-test.yml"} {
		text, err := os.ReadFile("../../docs/" + file)
		require.NoError(t, err)
		names := regexp.MustCompile(`\b(alicaptcha_[a-z_]+|error_[a-z_]+)`).FindAllString(string(text), -1)
		require.Greater(t, len(names), 10, file)
		for _, name := range names {
			require.True(t, there[name], "%s names %s", file, name)
		}
	}
}

func TestDashboard(t *testing.T) {
	text, err := os.ReadFile("../../docs/grafana-dashboard.json")
	require.NoError(t, err)
	type source struct{ UID string }
	var dashboard struct {
		SchemaVersion int
		Templating    struct{ List []struct{ Name, Type string } }
		Panels        []struct {
			ID                 int
			Title, Description string
			Datasource         source
			Targets            []struct {
				Expr       string
				Datasource source
			}
		}
	}
	require.NoError(t, json.Unmarshal(text, &dashboard))
	require.Positive(t, dashboard.SchemaVersion)
	require.Equal(t, "datasource", dashboard.Templating.List[0].Name)
	require.Equal(t, "datasource", dashboard.Templating.List[0].Type)
	ids := map[int]bool{}
	var titles []string
	for _, panel := range dashboard.Panels {
		titles = append(titles, panel.Title)
		require.False(t, ids[panel.ID], "two panels have the ID %d", panel.ID)
		ids[panel.ID] = true
		require.NotEmpty(t, panel.Description, panel.Title)
		require.Equal(t, "${datasource}", panel.Datasource.UID)
		require.NotEmpty(t, panel.Targets)
		for _, target := range panel.Targets {
			require.Equal(t, "${datasource}", target.Datasource.UID)
			require.Contains(t, target.Expr, `job=~"$job"`)
		}
	}
	require.Equal(t, []string{
		"Pass ratio, all scenes", "Share let in by the Policy", "Breakers",
		"Outcomes by decision", "Pass ratio", "Rejections by code", "Pass ratio by instance", "Let through unverified",
		"State of each breaker", "Service and limits", "Breakers that are not closed", "Operator faults",
		"Verification duration", "Verifications in flight",
	}, titles)
}

// Every alert says what is the matter and what to do, and has a test.
func TestAlerts(t *testing.T) {
	rules, err := os.ReadFile("../../docs/prometheus-alerts.yml")
	require.NoError(t, err)
	tests, err := os.ReadFile("../../docs/prometheus-alerts-test.yml")
	require.NoError(t, err)
	alerts := strings.Split(string(rules), "- alert: ")[1:]
	require.Len(t, alerts, 14)
	for _, alert := range alerts {
		name, _, _ := strings.Cut(alert, "\n")
		for _, field := range []string{"expr: |", "severity: ", "summary: ", "description: ", "action: ", "runbook_url: "} {
			require.Contains(t, alert, field, name)
		}
		require.Contains(t, string(tests), fmt.Sprintf("alertname=%q", name))
	}
}

// What the example prints can be put into a shell.
func TestPrintedCommands(t *testing.T) {
	var script []string
	for _, line := range start(t) {
		if strings.Contains(line, "curl ") {
			script = append(script, line)
		}
	}
	require.Len(t, script, 4)
	shell := exec.CommandContext(t.Context(), "sh", "-c", strings.Join(script, "\n"))
	shell.Env = append(os.Environ(), "no_proxy=127.0.0.1")
	out, err := shell.Output()
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(string(out), "welcome\n"), "%s", out)
	require.Contains(t, string(out), `"reason":"captcha_expired"`)
	require.Regexp(t, `alicaptcha_outcomes_total\{alicaptcha_code="T001",alicaptcha_decision="passed",.*\} 1`, string(out))
	require.Regexp(t, `alicaptcha_outcomes_total\{alicaptcha_code="F0(08|18)",alicaptcha_decision="rejected",.*\} 1`,
		string(out))
}

func TestBusyAddress(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	const free = "127.0.0.1:0"
	for i := range 3 {
		addrs := []string{free, free, free}
		addrs[i] = taken.Addr().String()
		err := run(t.Context(), addrs[0], addrs[1], addrs[2], io.Discard, io.Discard)
		require.ErrorContains(t, err, "address already in use")
	}
}
