package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/alicaptcha/alicaptcha"
)

// A shape describes the timing of calls from a number of simultaneous callers.
type shape struct {
	name    string
	callers int
	calls   int           // the total number of calls
	burst   bool          // all callers call, and then pause, at the same time
	pause   time.Duration // between the calls of a caller
	jitter  time.Duration // the most by which a pause is shorter or longer; 0 in bursts
	idle    time.Duration // the time after which the service closes an idle connection
}

// A tally is the result of one round of a shape.
type tally struct {
	latencies []time.Duration // without the first call of each caller, which opens its connection
	calls     int
	failures  int
	took      time.Duration
	opened    int64 // connections
	http2     int64 // calls
}

// drive makes the calls of s.
func (s shape) drive(v alicaptcha.Verifier, param string) tally {
	var t tally
	var mu sync.Mutex
	call := func(isFirst bool) {
		start := time.Now()
		result, err := v.Verify(context.Background(), alicaptcha.Request{Param: param, SceneID: scene})
		took := time.Since(start)
		mu.Lock()
		defer mu.Unlock()
		t.calls++
		if !isFirst {
			t.latencies = append(t.latencies, took)
		}
		if err != nil || !result.Passed {
			t.failures++
		}
	}
	start := time.Now()
	var all sync.WaitGroup
	if s.burst {
		for i := range s.calls / s.callers {
			for range s.callers {
				all.Go(func() { call(i == 0) })
			}
			all.Wait()
			time.Sleep(s.pause)
		}
	} else {
		for range s.callers {
			all.Go(func() {
				for i := range s.calls / s.callers {
					if i > 0 && s.jitter > 0 {
						time.Sleep(s.pause - s.jitter + rand.N(2*s.jitter))
					}
					call(i == 0)
				}
			})
		}
		all.Wait()
	}
	t.took = time.Since(start)
	return t
}

// A way creates the caller of a load, for each round anew.
type way struct {
	name string
	make func(endpoint string) (alicaptcha.Verifier, error)
}

const http2Name = oursName + ", HTTP/2 transport"

func oursWay(endpoint string) (alicaptcha.Verifier, error)   { return ours(endpoint, nil) }
func sampleWay(endpoint string) (alicaptcha.Verifier, error) { return newSample(endpoint, nil) }

// http2Way uses a Transport with the defaults of net/http, which speaks HTTP/2.
func http2Way(endpoint string) (alicaptcha.Verifier, error) {
	return ours(endpoint, &http.Transport{IdleConnTimeout: 10 * time.Second})
}

// loaded runs every shape in every way, in rounds, and returns the tallies by the names
// of shape and way.
func loaded(rounds int, takes time.Duration, shapes []shape, ways []way, param string) (map[[2]string][]tally, error) {
	found := make(map[[2]string][]tally)
	for _, s := range shapes {
		for round := range rounds {
			for _, i := range order(round, len(ways)) {
				service, err := newService(serviceConfig{tls: true, takes: takes, idle: s.idle})
				if err != nil {
					return nil, err
				}
				v, err := ways[i].make(service.URL)
				if err != nil {
					service.close()
					return nil, err
				}
				t := s.drive(v, param)
				t.opened, t.http2 = service.opened.Load(), service.http2.Load()
				service.close()
				key := [2]string{s.name, ways[i].name}
				found[key] = append(found[key], t)
			}
		}
	}
	return found, nil
}

func (t tally) percentile(p float64) float64 { return float64(percentile(t.latencies, p)) }
func (t tally) perSecond() float64           { return float64(t.calls) / t.took.Seconds() }

// worst returns the largest value that of returns for the rounds.
func worst(rounds []tally, of func(tally) int64) int64 {
	most := int64(0)
	for _, t := range rounds {
		most = max(most, of(t))
	}
	return most
}

func failed(rounds []tally) (failures, calls int) {
	for _, t := range rounds {
		failures += t.failures
		calls += t.calls
	}
	return failures, calls
}

func (b *bench) underLoad() error {
	const takes = 20 * time.Millisecond
	rounds := b.few(5, 1)
	texts, err := params()
	if err != nil {
		return err
	}
	param := texts[1]
	shapes := []shape{
		{name: "1 caller", callers: 1, calls: b.few(40, 4)},
		{name: "16 callers", callers: 16, calls: b.few(800, 32)},
		{name: "64 callers", callers: 64, calls: b.few(5120, 128)},
		{name: "256 callers", callers: 256, calls: b.few(2560, 512)},
		{name: "bursts of 64", callers: 64, calls: b.few(1280, 128), burst: true, pause: 100 * time.Millisecond},
	}
	ways := []way{{oursName, oursWay}, {sampleName, sampleWay}, {http2Name, http2Way}}
	found, err := loaded(rounds, takes, shapes, ways, param)
	if err != nil {
		return err
	}
	b.print("## Under load\n\n"+
		"The service takes %v for an answer, on loopback over TLS; the param has 4.5 KB. Callers call again at once; "+
		"bursts are %v apart. “%s” is a Client with a Transport of the user's; the default one speaks HTTP/1.1 on "+
		"purpose. Medians of %d rounds, of connections the most of one round, of failures the sum; p50 and p99 are "+
		"without each caller's first call, which opens a connection.\n\n", takes, shapes[4].pause, http2Name, rounds)
	b.printLoad(shapes, ways, found)

	// The first idle time is the service's, and the second is common in load balancers. A
	// single round is enough, since it consists of waiting.
	lasting := []shape{
		{name: "256 callers, one pause of 25 s", callers: 256, calls: 512,
			pause: 25 * time.Second, jitter: 10 * time.Millisecond, idle: 25 * time.Second},
		{name: "256 callers, one pause of 15 s", callers: 256, calls: 512,
			pause: 15 * time.Second, jitter: 10 * time.Millisecond, idle: 15 * time.Second},
	}
	// This idle time is shorter than in any load balancer.
	hasty := shape{name: "64 callers, pauses of 10 to 30 ms", callers: 64, calls: b.few(1280, 128),
		pause: 20 * time.Millisecond, jitter: 10 * time.Millisecond, idle: 20 * time.Millisecond}
	if b.short {
		for i := range lasting {
			lasting[i].pause, lasting[i].idle = time.Second, time.Second
		}
	}
	lasted, err := loaded(1, takes, lasting, ways[:2], param)
	if err != nil {
		return err
	}
	ownName := oursName + ", its connections end first"
	hastyWays := append(ways, way{ownName, func(endpoint string) (alicaptcha.Verifier, error) {
		return ours(endpoint, &http.Transport{MaxIdleConnsPerHost: 512, IdleConnTimeout: hasty.idle / 2})
	}})
	hurried, err := loaded(rounds, takes, []shape{hasty}, hastyWays, param)
	if err != nil {
		return err
	}
	b.print("Idle connections that the service closes: a call that was sent while it closes fails, because a param may "+
		"not be sent twice. First callers who call again just then (one round): after %v, which the service's gateway "+
		"announces, the default Transport has closed its connections, which it keeps for 20 s; after %v, which some load "+
		"balancers have, it has not. Then after %v; the last row has a Transport whose IdleConnTimeout is half of "+
		"that.\n\n", lasting[0].idle, lasting[1].idle, hasty.idle)
	b.printLoad(lasting, ways[:2], lasted)
	b.printLoad([]shape{hasty}, hastyWays, hurried)

	opened := func(t tally) int64 { return t.opened }
	for _, s := range []string{"64 callers", "bursts of 64"} {
		we, they := found[[2]string{s, oursName}], found[[2]string{s, sampleName}]
		most := worst(we, opened)
		met := most <= 80 && worst(we, func(t tally) int64 { return t.http2 }) == 0
		b.targets = append(b.targets, target{s + ": at most 80 connections over HTTP/1.1",
			fmt.Sprintf("%d, the sample %d", most, worst(they, opened)), met})
		p99 := func(t tally) float64 { return t.percentile(99) }
		share := medianOf(we, p99) / medianOf(they, p99)
		b.target(s+": p99 at most half of the sample's", share, "%.2f of it", share <= 0.5)
	}
	multiplexed := found[[2]string{"64 callers", http2Name}][0]
	b.targets = append(b.targets, target{"HTTP/2 to a service that offers it (by a Transport of the user's)",
		fmt.Sprintf("%d of %d calls", multiplexed.http2, multiplexed.calls), multiplexed.http2 == int64(multiplexed.calls)})
	for _, t := range []struct {
		text   string
		rounds []tally
	}{
		{
			fmt.Sprintf("no failure from idle connections that the service closes after %v", lasting[0].idle),
			lasted[[2]string{lasting[0].name, oursName}],
		},
		{
			fmt.Sprintf("none either where a load balancer closes them after %v", lasting[1].idle),
			lasted[[2]string{lasting[1].name, oursName}],
		},
		{
			fmt.Sprintf("none either after %v, by a Transport whose IdleConnTimeout is less", hasty.idle),
			hurried[[2]string{hasty.name, ownName}],
		},
	} {
		failures, calls := failed(t.rounds)
		b.targets = append(b.targets, target{t.text, fmt.Sprintf("%d of %d", failures, calls), failures == 0})
	}
	return nil
}

func (b *bench) printLoad(shapes []shape, ways []way, found map[[2]string][]tally) {
	b.print("| calls | caller | connections | calls a second | p50 | p99 | failures |\n|---|---|--:|--:|--:|--:|--:|\n")
	for _, s := range shapes {
		for _, w := range ways {
			rounds := found[[2]string{s.name, w.name}]
			failures, calls := failed(rounds)
			b.print("| %s | %s | %d | %.0f | %s | %s | %d of %d |\n", s.name, w.name,
				worst(rounds, func(t tally) int64 { return t.opened }), medianOf(rounds, tally.perSecond),
				showTime(medianOf(rounds, func(t tally) float64 { return t.percentile(50) })),
				showTime(medianOf(rounds, func(t tally) float64 { return t.percentile(99) })), failures, calls)
		}
	}
	b.print("\n")
}
