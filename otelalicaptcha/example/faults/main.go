// Command faults brings faults to sites, one each, and prints what their users get,
// which alerts fire in a real Prometheus, and how long they take to fire and to clear:
//
//	go run ./example/faults
//
// The rules are those of docs/prometheus-alerts.yml with their times divided by 60, so
// that a second stands for a minute. The pass ratio is that of the dashboard. The
// program takes about a minute, needs prometheus in the PATH, and listens on free ports
// of 127.0.0.1 only. It ends with status 1 if an alert is missing, if one fires that
// should not, or if one does not clear.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"
)

const (
	before = 25 * time.Second // in which nothing is wrong
	during = 15 * time.Second // of the faults, at least, for alerts that must not fire
	atMost = 90 * time.Second // for what has to happen
)

func main() {
	docs := flag.String("docs", "../docs", "the `folder` of the rules and the dashboard")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *docs, os.Stdout); err != nil {
		log.SetFlags(0)
		log.Fatal("faults: ", err)
	}
}

// run brings all faults to their sites at the same time, and ends them when every
// alert that has to fire does.
func run(ctx context.Context, docs string, out io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	var visitors sync.WaitGroup
	defer visitors.Wait()
	defer cancel()

	var sites []*site
	for _, f := range faults() {
		for i := range max(f.of, 1) {
			s, err := newSite(f, i)
			if err != nil {
				return fmt.Errorf("%s: %w", f.name, err)
			}
			defer s.server.Close()
			sites = append(sites, s)
		}
	}
	metrics := httptest.NewServer(scrapes(sites))
	defer metrics.Close()
	p, err := startPrometheus(ctx, docs, metrics.Listener.Addr().String(), sites)
	if err != nil {
		return err
	}
	defer p.stop()
	for _, s := range sites {
		visitors.Go(func() { s.visit(ctx) })
	}

	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(before):
	}
	switch firing, err := p.firing(ctx); {
	case err != nil:
		return err
	case len(firing) > 0:
		return fmt.Errorf("before the faults, these alerts fire: %v", firing)
	}

	result := results{fired: map[alert]time.Duration{}, cleared: map[alert]time.Duration{}}
	began := time.Now()
	for _, s := range sites {
		s.faulty.Store(true)
	}
	err = p.watch(ctx, func(firing []alert) bool {
		for _, a := range firing {
			if _, known := result.fired[a]; !known {
				result.fired[a] = time.Since(began)
			}
		}
		return time.Since(began) >= during && len(result.missing()) == 0
	})
	if err != nil {
		return err
	}
	if result.ratios, err = p.passRatios(ctx, docs); err != nil {
		return err
	}

	ended := time.Now()
	for _, s := range sites {
		s.faulty.Store(false)
	}
	err = p.watch(ctx, func(firing []alert) bool {
		for a := range result.fired {
			if slices.Contains(firing, a) {
				delete(result.cleared, a)
			} else if _, known := result.cleared[a]; !known {
				result.cleared[a] = time.Since(ended)
			}
		}
		return len(firing) == 0
	})
	cancel()
	visitors.Wait()
	return errors.Join(result.write(out, sites), result.check(), err)
}

// An alert is one of a job, whatever its other labels.
type alert struct{ job, name string }

// results are what was seen.
type results struct {
	fired, cleared map[alert]time.Duration
	ratios         map[string]string // by job
}

// missing returns what has to fire and has not.
func (r results) missing() (missing []alert) {
	for _, f := range faults() {
		for _, name := range f.alerts {
			if _, there := r.fired[alert{f.name, name}]; !there {
				missing = append(missing, alert{f.name, name})
			}
		}
	}
	return missing
}

// check returns what is wrong with r.
func (r results) check() error {
	var errs []error
	for _, a := range r.missing() {
		errs = append(errs, fmt.Errorf("%s: %s does not fire", a.job, a.name))
	}
	for _, f := range faults() {
		for a := range r.fired {
			if a.job != f.name {
				continue
			}
			if !slices.Contains(f.alerts, a.name) && !slices.Contains(f.perhaps, a.name) {
				errs = append(errs, fmt.Errorf("%s: %s fires", a.job, a.name))
			}
			if _, there := r.cleared[a]; !there {
				errs = append(errs, fmt.Errorf("%s: %s does not clear", a.job, a.name))
			}
		}
		if _, there := r.ratios[f.name]; there == (f.visitors == nobody) {
			errs = append(errs, fmt.Errorf("%s: the pass ratio is there: %t", f.name, there))
		}
	}
	return errors.Join(errs...)
}

// write writes a row for each fault and alert.
func (r results) write(out io.Writer, sites []*site) error {
	minutes := func(times map[alert]time.Duration, a alert) string {
		took, there := times[a]
		if !there {
			return "never"
		}
		return fmt.Sprintf("%.0f min", took.Seconds())
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "fault\tusers get\tpass ratio\talert\tfires after\tclears after")
	for _, f := range faults() {
		var alerts []alert
		for a := range r.fired {
			if a.job == f.name {
				alerts = append(alerts, a)
			}
		}
		slices.SortFunc(alerts, func(a, b alert) int { return int(r.fired[a] - r.fired[b]) })
		begin := strings.Join([]string{f.name, answers(sites, f.name), r.ratios[f.name]}, "\t")
		if len(alerts) == 0 {
			fmt.Fprintf(table, "%s\tnone\t\t\n", begin)
		}
		for _, a := range alerts {
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", begin, a.name, minutes(r.fired, a), minutes(r.cleared, a))
			begin = "\t\t"
		}
	}
	return table.Flush()
}
