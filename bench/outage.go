package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/alicaptcha/alicaptcha"
)

const maxConcurrent = 256 // the default of Config.MaxConcurrent

// A defence is a gate in front of the login while the service hangs.
type defence struct {
	name string
	wrap func(endpoint string, next http.Handler) (http.Handler, error)
}

func gated(v alicaptcha.Verifier, next http.Handler) (http.Handler, error) {
	m, err := alicaptcha.New(alicaptcha.Config{
		Verifier: v, SceneID: scene, MaxConcurrent: maxConcurrent, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return nil, err
	}
	return m.Handler(next), nil
}

// withBreaker has a Breaker that is open after enough failed calls.
func withBreaker(endpoint string, next http.Handler) (http.Handler, error) {
	client, err := ours(endpoint, nil)
	if err != nil {
		return nil, err
	}
	const failures = 5
	v, err := alicaptcha.NewBreaker(client, alicaptcha.BreakerConfig{
		Failures: failures, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return nil, err
	}
	for range failures {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
		_, err := v.Verify(ctx, alicaptcha.Request{Param: v3, SceneID: scene})
		cancel()
		if err == nil {
			return nil, fmt.Errorf("the service does not hang")
		}
	}
	return gated(v, next)
}

func withoutBreaker(endpoint string, next http.Handler) (http.Handler, error) {
	client, err := ours(endpoint, nil)
	if err != nil {
		return nil, err
	}
	return gated(client, next)
}

func asSample(endpoint string, next http.Handler) (http.Handler, error) {
	v, err := newSample(endpoint, nil)
	return readAll(v, decodeJSON, true, next), err
}

// An outcome is the result of one round of an outage.
type outcome struct {
	gated, ungated    []time.Duration // from when the client should have asked until it had its answer
	unanswered        int             // requests without an answer at the end
	letIn             int64           // requests that the gate let in without a verdict
	goroutines        int             // of the site, when all requests have been offered
	clients, upstream int64           // connections at that time, to the site and to the service
	heap              float64         // growth of the whole process until that time, including stacks
}

// offers describes the number and the rate of the requests.
type offers struct {
	window           time.Duration
	perSecond, other int           // to the login, and to the route without a gate
	patience         time.Duration // how long to wait for answers after the window
}

// suffer runs an outage for the site behind d.
func suffer(d defence, o offers) (outcome, error) {
	var found outcome
	service, err := newService(serviceConfig{hangs: true})
	if err != nil {
		return found, err
	}
	defer service.close()
	var letIn, clients atomic.Int64
	login, err := d.wrap(service.URL, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		letIn.Add(1)
		io.Copy(io.Discard, r.Body)
	}))
	if err != nil {
		return found, err
	}
	mux := http.NewServeMux()
	mux.Handle("/login", login)
	mux.Handle("/other", reads)
	site := httptest.NewUnstartedServer(mux)
	site.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	site.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			clients.Add(1)
		case http.StateClosed, http.StateHijacked:
			clients.Add(-1)
		}
	}
	// A goroutine inherits the labels of the goroutine that started it.
	pprof.Do(context.Background(), pprof.Labels("part", siteLabel), func(context.Context) { site.Start() })
	defer site.Close()
	defer site.CloseClientConnections()

	ctx, cancel := context.WithTimeout(context.Background(), o.window+o.patience)
	defer cancel()
	transport := &http.Transport{MaxIdleConnsPerHost: o.perSecond, DisableCompression: true}
	defer transport.CloseIdleConnections()
	body := jsonBody(512, v3, true).body
	send := func(path string) bool {
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, site.URL+path, strings.NewReader(body))
		if err != nil {
			return false
		}
		r.Header.Set("Content-Type", "application/json")
		resp, err := transport.RoundTrip(r)
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body)
		return err == nil
	}

	heap := heapNow()
	var mu sync.Mutex
	var offering, answering sync.WaitGroup
	offer := func(path string, perSecond int, latencies *[]time.Duration) {
		start := time.Now()
		for i := range int(o.window.Seconds() * float64(perSecond)) {
			due := start.Add(time.Duration(i) * time.Second / time.Duration(perSecond))
			time.Sleep(time.Until(due))
			answering.Go(func() {
				answered := send(path)
				took := time.Since(due)
				mu.Lock()
				defer mu.Unlock()
				if !answered {
					found.unanswered++
					return
				}
				*latencies = append(*latencies, took)
			})
		}
	}
	offering.Go(func() { offer("/login", o.perSecond, &found.gated) })
	offering.Go(func() { offer("/other", o.other, &found.ungated) })
	offering.Wait()
	found.heap = max(0, heapNow()-heap)
	found.clients, found.upstream = clients.Load(), service.open.Load()
	found.goroutines, err = goroutinesOf(siteLabel)
	answering.Wait() // at the latest when ctx ends
	found.letIn = letIn.Load()
	return found, err
}

// heapNow returns the number of bytes in use, including stacks.
func heapNow() float64 {
	var mem runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&mem)
	return float64(mem.HeapAlloc + mem.StackInuse)
}

const siteLabel = "site"

var profiled = regexp.MustCompile(`(?m)^(\d+) @.*\n# labels: \{"part":"(\w+)"\}`)

// goroutinesOf returns the number of goroutines with the label.
func goroutinesOf(label string) (int, error) {
	var profile bytes.Buffer
	if err := pprof.Lookup("goroutine").WriteTo(&profile, 1); err != nil {
		return 0, err
	}
	total := 0
	for _, match := range profiled.FindAllStringSubmatch(profile.String(), -1) {
		n, err := strconv.Atoi(match[1])
		if err != nil {
			return 0, err
		}
		if match[2] == label {
			total += n
		}
	}
	return total, nil
}

func (b *bench) outage() error {
	rounds := b.few(5, 1)
	o := offers{3 * time.Second, 1000, 300, 8 * time.Second}
	if b.short {
		o = offers{300 * time.Millisecond, 200, 100, 500 * time.Millisecond}
	}
	const openName, closedName = oursName + ", Breaker open", oursName + ", no Breaker"
	defences := []defence{{openName, withBreaker}, {closedName, withoutBreaker}, {sampleName, asSample}}
	found := make(map[string][]outcome)
	for round := range rounds {
		for _, i := range order(round, len(defences)) {
			one, err := suffer(defences[i], o)
			if err != nil {
				return err
			}
			found[defences[i].name] = append(found[defences[i].name], one)
		}
	}

	b.print("## In an outage\n\n"+
		"The service takes calls and never answers, on loopback without TLS. For %v the site is offered %d logins "+
		"a second, and %d requests a second to a route without a gate; they come when they are due, whether or not "+
		"others are answered. Latency is from then until the client has its whole answer. Goroutines are the site's, "+
		"heap is what the whole process has added, with stacks, both when everything has been offered. Time-outs are "+
		"5 s, the defaults here and what the vendor's sample sets; it advises to let a login in where the call fails. "+
		"Medians of %d rounds.\n\n",
		o.window, o.perSecond, o.other, rounds)
	b.print("| gate | login p50 | login p99 | other route p50 | p99 | let in | no answer at the end | goroutines " +
		"| connections, clients' + service's | heap |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n")
	part := func(name string, of func(outcome) float64) float64 { return medianOf(found[name], of) }
	gated := func(p float64) func(outcome) float64 {
		return func(one outcome) float64 { return float64(percentile(one.gated, p)) }
	}
	ungated := func(p float64) func(outcome) float64 {
		return func(one outcome) float64 { return float64(percentile(one.ungated, p)) }
	}
	for _, d := range defences {
		b.print("| %s | %s | %s | %s | %s | %.0f | %.0f | %.0f | %.0f + %.0f | %s |\n", d.name,
			showTime(part(d.name, gated(50))), showTime(part(d.name, gated(99))),
			showTime(part(d.name, ungated(50))), showTime(part(d.name, ungated(99))),
			part(d.name, func(one outcome) float64 { return float64(one.letIn) }),
			part(d.name, func(one outcome) float64 { return float64(one.unanswered) }),
			part(d.name, func(one outcome) float64 { return float64(one.goroutines) }),
			part(d.name, func(one outcome) float64 { return float64(one.clients) }),
			part(d.name, func(one outcome) float64 { return float64(one.upstream) }),
			showBytes(part(d.name, func(one outcome) float64 { return one.heap })))
	}
	b.print("\n")

	share := part(openName, func(one outcome) float64 { return gated(99)(one) / ungated(99)(one) })
	b.target("outage, Breaker open: p99 within 3 times of a route without a gate", share, "%.2f times", share <= 3)
	// net/http has up to two goroutines for each connection, on either side.
	over := 0
	for _, name := range []string{openName, closedName} {
		for _, one := range found[name] {
			if one.goroutines > 2*int(one.clients)+2*maxConcurrent+16 {
				over++
			}
		}
	}
	b.target("outage: goroutines at most 2 for each client's connection and 2 for each of MaxConcurrent calls",
		float64(over), "%.0f rounds above", over == 0)
	return nil
}
