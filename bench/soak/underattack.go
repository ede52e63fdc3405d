package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"time"

	"github.com/alicaptcha/alicaptcha"
)

// settling is the time after the last attack by which nothing may remain in use. The
// default transport keeps idle connections for 20 s.
const settling = 25 * time.Second

// A course is the result of one attack.
type course struct {
	requests      int
	took          time.Duration
	site, service int64 // connections at its end
}

// underAttack runs the attacks one after the other, each on a target of its own. It
// returns the report, and an error for each condition that does not hold. In a short run
// there are few requests, and at the end the services close their idle connections, in
// place of the default transport.
func underAttack(short bool) (string, error) {
	targets, courses := make([]*target, len(attacks)), make([]course, len(attacks))
	for i, a := range attacks {
		t, err := newTarget(a)
		if err != nil {
			return "", fmt.Errorf("%s: %w", a.name, err)
		}
		defer t.close()
		targets[i] = t
	}
	goroutines, descriptors := behind()
	var errs []error
	for i, a := range attacks {
		n := a.requests
		if short {
			n = a.few
		}
		c, err := targets[i].suffer(a, n)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", a.name, err))
		}
		courses[i] = c
	}

	over := time.Now()
	settled := func() bool {
		g, d := behind()
		return g <= goroutines && d <= descriptors && !slices.ContainsFunc(targets, (*target).isOpen)
	}
	for !settled() && time.Since(over) < settling {
		for _, t := range targets {
			if short && t.rest != nil {
				t.rest()
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	waited := time.Since(over).Round(100 * time.Millisecond)
	goroutinesAfter, descriptorsAfter := behind()

	var b strings.Builder
	total := 0
	b.WriteString("| attack | requests, in | how they ended | let in | the breaker changed | connections to the service " +
		"| open at its end, to site + service | when all was over |\n|---|---|---|---|---|---|---|---|\n")
	for i, a := range attacks {
		t, c := targets[i], courses[i]
		total += c.requests
		fmt.Fprintf(&b, "| %s | %d, %v | %s | %d | %d | %d | %d + %d | %d + %d |\n", a.name,
			c.requests, c.took.Round(100*time.Millisecond), t.ends(c.requests), t.letIn.Load(), t.moves.Load(),
			t.service.opened.Load(), c.site, c.service, t.site.open.Load(), t.service.open.Load())
		for _, err := range t.faults(a) {
			errs = append(errs, fmt.Errorf("%s: %w", a.name, err))
		}
	}
	fmt.Fprintf(&b, "\n%d requests; goroutines: %d before, %d after; descriptors: %d before, %d after, %v later\n",
		total, goroutines, goroutinesAfter, descriptors, descriptorsAfter, waited)
	if descriptorsAfter > descriptors {
		errs = append(errs, fmt.Errorf("%d descriptors stay behind", descriptorsAfter-descriptors))
	}
	if goroutinesAfter > goroutines {
		var stacks strings.Builder
		pprof.Lookup("goroutine").WriteTo(&stacks, 1)
		errs = append(errs, fmt.Errorf("%d goroutines stay behind: %s", goroutinesAfter-goroutines, &stacks))
	}
	return b.String(), errors.Join(errs...)
}

// suffer makes n requests of the attack a on t.
func (t *target) suffer(a attack, n int) (course, error) {
	start := time.Now()
	err := a.run(t, n)
	c := course{requests: n, took: time.Since(start)}
	t.wires[1].close()
	// Handlers whose clients have disconnected may still be running.
	for end := time.Now().Add(patience); t.seen() < t.entered.Load() && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	c.site, c.service = t.site.open.Load(), t.service.open.Load()
	return c, err
}

// behind returns the number of goroutines and of file descriptors.
func behind() (goroutines, descriptors int) {
	entries, _ := os.ReadDir("/proc/self/fd") // none on systems without /proc
	return runtime.NumGoroutine(), len(entries)
}

func (t *target) isOpen() bool { return t.site.open.Load() > 0 || t.service.open.Load() > 0 }

// seen returns the number of Outcomes.
func (t *target) seen() (n int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, outcomes := range t.outcomes {
		n += int64(outcomes)
	}
	return n
}

// ends describes how the requests ended.
func (t *target) ends(requests int) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var ends []string
	for code, n := range t.outcomes {
		ends = append(ends, fmt.Sprintf("%s %d", code, n))
	}
	slices.Sort(ends)
	if before := requests - int(t.entered.Load()); before > 0 {
		ends = append(ends, fmt.Sprintf("%d did not reach the gate", before))
	}
	return strings.Join(ends, ", ")
}

// opened lists the Codes that a Policy can let through, but only with a bound.
var opened = []alicaptcha.Code{alicaptcha.ServiceTimeout, alicaptcha.ServiceUnavailable, alicaptcha.Misconfigured}

// faults returns the conditions that do not hold for the attack.
func (t *target) faults(a attack) (errs []error) {
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	entered, seen := t.entered.Load(), t.seen()
	check(entered == seen, "%d requests reached the gate and had %d outcomes", entered, seen)
	check(t.letIn.Load() == 0, "%d were let in", t.letIn.Load())
	check(t.moves.Load() == 0, "the breaker has changed %d times", t.moves.Load())
	for _, code := range opened {
		check(a.outage || t.outcomes[code] == 0, "%d ended as %s", t.outcomes[code], code)
	}
	for _, code := range a.reaches {
		check(t.outcomes[code] > 0, "none ended as %s", code)
	}
	connections, calls := t.service.opened.Load(), t.simulator.Count()
	check(a.connections == 0 || connections <= int64(a.connections),
		"%d connections to the service, not %d at most", connections, a.connections)
	check(a.calls == 0 || 2*calls == a.calls*int(entered), "%d requests made %d calls", entered, calls)
	check(!t.isOpen(), "connections stay behind: %d of the site, %d of the service",
		t.site.open.Load(), t.service.open.Load())
	return errs
}
