package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
)

// client ignores the environment's proxies, which are not for 127.0.0.1.
var client = &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{}}

// A monitor is a Prometheus that runs until it is stopped.
type monitor struct {
	cmd *exec.Cmd
	dir string
	api string
	log *logText
}

// startPrometheus starts one that scrapes sites at addr, with the rules in docs.
func startPrometheus(ctx context.Context, docs, addr string, sites []*site) (_ *monitor, err error) {
	rules, err := os.ReadFile(filepath.Join(docs, "prometheus-alerts.yml"))
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "faults")
	if err != nil {
		return nil, err
	}
	p := &monitor{dir: dir, log: &logText{}}
	defer func() {
		if err != nil {
			p.stop()
		}
	}()
	var jobs strings.Builder
	for i, s := range sites {
		if i == 0 || sites[i-1].name != s.name {
			fmt.Fprintf(&jobs, "  - job_name: %q\n    static_configs:\n", s.name)
		}
		fmt.Fprintf(&jobs, "      - {targets: [%q], labels: {instance: %q, __metrics_path__: /metrics/%d}}\n",
			addr, s.instance, i)
	}
	config := "global: {scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 500ms}\n" +
		"rule_files: [rules.yml]\nscrape_configs:\n" + jobs.String()
	if err := errors.Join(
		os.WriteFile(filepath.Join(dir, "rules.yml"), faster(rules), 0o600),
		os.WriteFile(filepath.Join(dir, "prometheus.yml"), []byte(config), 0o600),
	); err != nil {
		return nil, err
	}

	p.cmd = exec.CommandContext(ctx, "prometheus", "--config.file="+filepath.Join(dir, "prometheus.yml"),
		"--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address=127.0.0.1:0")
	p.cmd.Stderr = p.log
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	address := regexp.MustCompile(`msg="Listening on" address=(127\.0\.0\.1:[0-9]+)`)
	for until := time.Now().Add(atMost); ; {
		if match := address.FindStringSubmatch(p.log.String()); match != nil {
			p.api = "http://" + match[1] + "/api/v1/"
			return p, nil
		}
		if err := tick(ctx); err != nil || time.Now().After(until) {
			return nil, errors.Join(err, fmt.Errorf("prometheus does not listen: %s", p.log))
		}
	}
}

// stop ends p and removes what it has written.
func (p *monitor) stop() {
	if p.cmd != nil && p.cmd.Process != nil {
		p.cmd.Process.Kill()
		p.cmd.Wait()
	}
	os.RemoveAll(p.dir)
}

// times finds the times in rules: ranges, offsets, and how long an alert waits.
var times = regexp.MustCompile(`(\[|offset |for: )((?:[0-9]+[dhm])+)`)

// faster returns rules with a second in the place of each minute.
func faster(rules []byte) []byte {
	return times.ReplaceAllFunc(rules, func(found []byte) []byte {
		match := times.FindSubmatch(found)
		minutes := 0
		for _, part := range regexp.MustCompile(`[0-9]+[dhm]`).FindAll(match[2], -1) {
			n, err := strconv.Atoi(string(part[:len(part)-1]))
			if err != nil {
				panic(err) // these are digits
			}
			minutes += n * map[byte]int{'d': 24 * 60, 'h': 60, 'm': 1}[part[len(part)-1]]
		}
		return fmt.Appendf(nil, "%s%ds", match[1], minutes)
	})
}

// watch calls done with the alerts that fire until it returns true, or for too long.
func (p *monitor) watch(ctx context.Context, done func([]alert) bool) error {
	for until := time.Now().Add(atMost); time.Now().Before(until); {
		firing, err := p.firing(ctx)
		if err != nil {
			return err
		}
		if done(firing) {
			return nil
		}
		if err := tick(ctx); err != nil {
			return err
		}
	}
	return nil // check says what is missing
}

// firing returns the alerts that fire.
func (p *monitor) firing(ctx context.Context) ([]alert, error) {
	var data struct {
		Alerts []struct {
			State  string
			Labels map[string]string
		}
	}
	if err := p.get(ctx, "alerts", nil, &data); err != nil {
		return nil, err
	}
	var firing []alert
	for _, a := range data.Alerts {
		if a.State == "firing" {
			firing = append(firing, alert{a.Labels["job"], a.Labels["alertname"]})
		}
	}
	return firing, nil
}

// passRatios returns what the dashboard's panel shows for each job.
func (p *monitor) passRatios(ctx context.Context, docs string) (map[string]string, error) {
	text, err := os.ReadFile(filepath.Join(docs, "grafana-dashboard.json"))
	if err != nil {
		return nil, err
	}
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		return nil, err
	}
	ratios := map[string]string{}
	for _, panel := range dashboard.Panels {
		if panel.Title != "Pass ratio, all scenes" {
			continue
		}
		for _, f := range faults() {
			query := strings.NewReplacer("$job", f.name, "$__rate_interval", "5s").Replace(panel.Targets[0].Expr)
			var data struct{ Result []struct{ Value [2]any } }
			if err := p.get(ctx, "query", url.Values{"query": {query}}, &data); err != nil {
				return nil, err
			}
			if len(data.Result) == 0 {
				continue
			}
			ratio, err := strconv.ParseFloat(fmt.Sprint(data.Result[0].Value[1]), 64)
			if err != nil {
				return nil, err
			}
			if ratio == ratio { // no NaN
				ratios[f.name] = fmt.Sprintf("%.0f %%", 100*ratio)
			}
		}
	}
	return ratios, nil
}

// get asks the API.
func (p *monitor) get(ctx context.Context, path string, query url.Values, data any) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, p.api+path+"?"+query.Encode(), nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer := struct {
		Status, Error string
		Data          any
	}{Data: data}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return err
	}
	if answer.Status != "success" {
		return fmt.Errorf("prometheus: %s", answer.Error)
	}
	return nil
}

// tick waits for a moment, or returns the error of ctx.
func tick(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(200 * time.Millisecond):
		return nil
	}
}

// logText collects a log.
type logText struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logText) Write(text []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(text)
}

func (l *logText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}
