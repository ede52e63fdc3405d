// Command soak tests a program under load while the service fails and recovers, and then
// under attack by its clients. It prints a report:
//
//	cd bench && go run ./soak
//
// Service, site, load and attackers run in one process and communicate over loopback. The
// program takes about two minutes. Before each login its page is viewed, which warms the
// Client, and half of the logins Begin their verification. Its exit status is 1 if one of these conditions
// does not hold:
//
//   - In the outage, every request is accounted for, no more requests are let through
//     than the budget allows, and the gate recovers within one interval of its Breaker.
//   - Under attack, no request is let through, and no client can feign an outage of the
//     service.
//   - While the Mode changes, every request has the answer of the Mode that it had.
//   - Afterwards, no goroutine, connection or memory remains in use.
//
// Like bench, it needs Linux to run.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
	"github.com/alicaptcha/alicaptcha/bench/internal/loopback"
)

func main() {
	perSecond := flag.Int("rate", 2000, "logins a second that are offered")
	phase := flag.Duration("phase", 5*time.Second, "how long each phase lasts")
	flag.Parse()
	if err := run(*perSecond, *phase); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(perSecond int, phase time.Duration) error {
	forget, err := loopback.Only()
	if err != nil {
		return err
	}
	defer forget()
	outage, outageErr := soak(perSecond, phase, true)
	fmt.Println(outage)
	flipped, flippedErr := flips(perSecond, phase)
	fmt.Println(flipped)
	attacked, attackedErr := underAttack(false)
	fmt.Print(attacked)
	return errors.Join(outageErr, flippedErr, attackedErr)
}

const (
	serviceTakes = 5 * time.Millisecond
	budgetBurst  = 20
	budgetRate   = 2 // per second
	otherRate    = 200
	mostAtOnce   = 4096 // the most logins of the load at a time
)

type phase struct {
	name   string
	faults alicaptchatest.Faults
}

var phases = []phase{
	{"healthy", alicaptchatest.Faults{Latency: serviceTakes}},
	{"hanging", alicaptchatest.Faults{Hang: "headers"}},
	{"failing", alicaptchatest.Faults{Status: http.StatusServiceUnavailable}},
	{"throttling", alicaptchatest.Faults{ThrottleShare: 1}},
	{"healthy", alicaptchatest.Faults{Latency: serviceTakes}},
	{"hanging", alicaptchatest.Faults{Hang: "headers"}},
	{"healthy", alicaptchatest.Faults{Latency: serviceTakes}},
}

// A tally is the result of one phase.
type tally struct {
	offered, skipped int
	outcomes         map[alicaptcha.Code]int
	opened           int // allowed without a verdict
	logins, others   []time.Duration
	recovered        time.Duration // from the start of the phase to the first pass
}

type soakRun struct {
	mu      sync.Mutex
	now     int // the phase
	started time.Time
	tallies []tally

	entered  atomic.Int64 // requests that reached the gate
	answered atomic.Int64 // requests whose client waited for the answer, counted by the client
	lost     atomic.Value // the error of a client that waited in vain
	waited   atomic.Int64 // requests whose client waited for the answer, counted by the gate
	inside   atomic.Int64 // calls of the handler
	warmed   atomic.Int64 // requests to the service by Warm
}

func (s *soakRun) update(f func(*tally)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(&s.tallies[s.now])
}

func (s *soakRun) observe(_ context.Context, o alicaptcha.Outcome) {
	s.update(func(t *tally) {
		t.outcomes[o.Code]++
		if o.Allowed && !o.Verified {
			t.opened++
		}
		if o.Verified && t.recovered == 0 {
			t.recovered = time.Since(s.started)
		}
	})
}

// soak runs all phases and returns the report, and an error for each condition that does
// not hold. It checks conditions on time only if timed is set. The Timeout of the gate
// and the interval of its Breaker are a fifth of a phase.
func soak(perSecond int, each time.Duration, timed bool) (string, error) {
	patience := each / 5
	goroutines, heap := settle(0)
	s := &soakRun{tallies: make([]tally, len(phases))}
	for i := range s.tallies {
		s.tallies[i].outcomes = make(map[alicaptcha.Code]int)
	}
	began := time.Now()
	if err := s.drive(perSecond, each, patience); err != nil {
		return "", err
	}
	goroutinesAfter, heapAfter := settle(goroutines)

	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d logins a second offered (one in 20 is junk, one in 20 hangs up after 20 ms), "+
		"the service takes %v, Timeout %v, breaker open for %v\n\n", perSecond, serviceTakes, patience, patience)
	fmt.Fprintln(&b, "| phase | logins | how they ended | let through unverified "+
		"| login p50 / p99 | another route p99 | first pass after |")
	fmt.Fprintln(&b, "|---|---|---|---|---|---|---|")
	var outcomes, opened, verified int
	for i, t := range s.tallies {
		var ends []string
		total := 0
		for code, n := range t.outcomes {
			ends = append(ends, fmt.Sprintf("%s %d", code, n))
			total += n
		}
		slices.Sort(ends)
		outcomes += total
		opened += t.opened
		recovered := ""
		if phases[i].name == "healthy" {
			recovered = t.recovered.Round(time.Millisecond).String()
		}
		fmt.Fprintf(&b, "| %s | %d | %s | %d | %v / %v | %v | %s |\n",
			phases[i].name, total, strings.Join(ends, ", "), t.opened,
			percentile(t.logins, 50), percentile(t.logins, 99), percentile(t.others, 99), recovered)
		if t.skipped > 0 {
			fmt.Fprintf(&b, "\n%d of %d could not be offered: the load has %d under way at most\n\n",
				t.skipped, t.offered, mostAtOnce)
		}
		if phases[i].name == "healthy" {
			check(t.recovered != 0, "phase %d: nobody passed", i)
			check(!timed || t.recovered <= patience+100*time.Millisecond, "phase %d: the first pass after %v", i, t.recovered)
		}
		verified += t.outcomes[alicaptcha.T001]
	}
	budget := budgetBurst + int(budgetRate*each.Seconds()*float64(len(phases))) + 1
	fmt.Fprintf(&b, "\n%d requests reached the gate and had %d outcomes; %d clients waited and %d had an answer; "+
		"%d of at most %d were let through unverified\n",
		s.entered.Load(), outcomes, s.waited.Load(), s.answered.Load(), opened, budget)
	fmt.Fprintf(&b, "%d requests by Warm\n", s.warmed.Load())
	fmt.Fprintf(&b, "goroutines: %d before, %d after; heap: %.1f MB before, %.1f MB after\n",
		goroutines, goroutinesAfter, heap, heapAfter)

	check(s.entered.Load() == int64(outcomes), "%d requests, %d outcomes", s.entered.Load(), outcomes)
	check(s.waited.Load() == s.answered.Load(), "%d clients waited, %d had an answer; one had an error %v",
		s.waited.Load(), s.answered.Load(), s.lost.Load())
	mostWarmed := 1 + int64(time.Since(began)/(15*time.Second))
	check(s.warmed.Load() <= mostWarmed, "%d requests by Warm, not %d at most", s.warmed.Load(), mostWarmed)
	check(opened <= budget, "%d were let through unverified, the budget is %d", opened, budget)
	check(goroutinesAfter <= goroutines, "%d goroutines stay behind", goroutinesAfter-goroutines)
	check(heapAfter <= heap+8, "%.1f MB stay behind", heapAfter-heap)
	check(s.inside.Load() == int64(verified+opened), "the handler was called %d times, for %d verified and %d let through",
		s.inside.Load(), verified, opened)
	return b.String(), errors.Join(errs...)
}

// drive starts service, site and load, and stops them again.
func (s *soakRun) drive(perSecond int, each, patience time.Duration) error {
	simulator := alicaptchatest.NewSimulator(alicaptchatest.Config{})
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			s.warmed.Add(1)
		}
		simulator.ServeHTTP(w, r)
	}))
	defer service.Close()
	transport := &http.Transport{MaxIdleConnsPerHost: 512, IdleConnTimeout: 20 * time.Second}
	defer transport.CloseIdleConnections()

	client, err := alicaptcha.NewClient(alicaptcha.ClientConfig{
		Endpoint: service.URL, AccessKeyID: "test-id", AccessKeySecret: "test-secret", Transport: transport,
	})
	if err != nil {
		return err
	}
	verifier, err := alicaptcha.NewBreaker(client, alicaptcha.BreakerConfig{OpenFor: patience, Logger: quiet})
	if err != nil {
		return err
	}
	budget := rate.NewLimiter(budgetRate, budgetBurst)
	gate, err := alicaptcha.New(alicaptcha.Config{
		Verifier: verifier, SceneID: "login", Timeout: patience, Logger: quiet, Observe: s.observe,
		Policy: alicaptcha.Policy{
			alicaptcha.ServiceTimeout:     alicaptcha.AllowAtMost(budget),
			alicaptcha.ServiceUnavailable: alicaptcha.AllowAtMost(budget),
		},
	})
	if err != nil {
		return err
	}
	gated := halfBegun(gate, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { s.inside.Add(1) }))
	mux := http.NewServeMux()
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		s.entered.Add(1)
		if r.Header.Get("Patient") != "" {
			s.waited.Add(1)
		}
		go client.Warm(context.WithoutCancel(r.Context()))
		gated.ServeHTTP(w, r)
	})
	mux.HandleFunc("GET /other", func(http.ResponseWriter, *http.Request) {})
	site := httptest.NewUnstartedServer(mux)
	site.Config.ErrorLog = slog.NewLogLogger(quiet.Handler(), slog.LevelInfo)
	site.Start()
	defer site.Close()

	newLoad := func() *http.Client {
		return &http.Client{Transport: &http.Transport{
			MaxIdleConnsPerHost: mostAtOnce, DialContext: (&net.Dialer{}).DialContext,
		}}
	}
	// Clients that hang up have connections of their own. For an answer without a
	// body, net/http reuses the connection before the request is done, so a client
	// that hangs up at that moment would end another request as well.
	load, hasty := newLoad(), newLoad()
	defer load.CloseIdleConnections()
	defer hasty.CloseIdleConnections()

	var underWay sync.WaitGroup
	slots := make(chan struct{}, mostAtOnce)
	for i := range phases {
		s.mu.Lock()
		if err := simulator.SetFaults(phases[i].faults); err != nil {
			s.mu.Unlock()
			return err
		}
		s.now, s.started = i, time.Now()
		s.mu.Unlock()

		end := time.Now().Add(each)
		underWay.Go(func() {
			for every := time.NewTicker(time.Second / otherRate); time.Now().Before(end); <-every.C {
				start := time.Now()
				if send(context.Background(), load, "GET", site.URL+"/other", nil, nil) == nil {
					took := time.Since(start)
					s.update(func(t *tally) { t.others = append(t.others, took) })
				}
			}
		})
		tick := time.NewTicker(time.Millisecond)
		sent, began := 0, time.Now()
		for now := began; now.Before(end); now = <-tick.C {
			for due := int(now.Sub(began).Seconds() * float64(perSecond)); sent < due; sent++ {
				s.update(func(t *tally) { t.offered++ })
				select {
				case slots <- struct{}{}:
					n := sent
					underWay.Go(func() {
						defer func() { <-slots }()
						s.login(load, hasty, site.URL, simulator, n)
					})
				default:
					s.update(func(t *tally) { t.skipped++ })
				}
			}
		}
		tick.Stop()
	}
	underWay.Wait()
	// Handlers whose clients have disconnected may still be running.
	deadline := time.Now().Add(10 * time.Second)
	for s.count() != int(s.entered.Load()) && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	return nil
}

func (s *soakRun) count() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.tallies {
		for _, outcomes := range t.outcomes {
			n += outcomes
		}
	}
	return n
}

// login sends the n-th login, which may be valid, be junk, or hang up.
func (s *soakRun) login(load, hasty *http.Client, site string, simulator *alicaptchatest.Simulator, n int) {
	param := "junk"
	if n%20 != 1 {
		var err error
		if param, err = simulator.Issue(alicaptchatest.Issue{SceneID: "login"}); err != nil {
			panic(err)
		}
	}
	body, err := json.Marshal(map[string]string{"username": "alice", "captchaVerifyParam": param})
	if err != nil {
		panic(err)
	}
	header := http.Header{"Content-Type": {"application/json"}}
	ctx := context.Background()
	if n%20 == 2 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, 20*time.Millisecond)
		defer cancel()
		load = hasty
	} else {
		header.Set("Patient", "1")
	}
	start := time.Now()
	err = send(ctx, load, "POST", site+"/login", header, body)
	switch took := time.Since(start); {
	case header.Get("Patient") == "":
	case err != nil:
		s.lost.Store(fmt.Sprintf("after %v: %v", took, err))
	default:
		s.answered.Add(1)
		s.update(func(t *tally) { t.logins = append(t.logins, took) })
	}
}

// send sends a request and reads the answer to its end.
func send(ctx context.Context, load *http.Client, method, url string, header http.Header, body []byte) error {
	r, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	if header != nil {
		r.Header = header
	}
	resp, err := load.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// settle waits until no more than want goroutines are left, for 10 s at most,
// and returns their number and the heap in use in MB.
func settle(want int) (goroutines int, heap float64) {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		goroutines = runtime.NumGoroutine()
		if want == 0 || goroutines <= want || time.Now().After(deadline) {
			break
		}
	}
	runtime.GC()
	runtime.GC() // what finalizers freed
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return goroutines, float64(m.HeapAlloc) / (1 << 20)
}

// percentile returns the p-th percentile of d, rounded, or 0 if d is empty.
func percentile(d []time.Duration, p int) time.Duration {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	return d[(len(d)-1)*p/100].Round(10 * time.Microsecond)
}
