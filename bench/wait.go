package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/alicaptcha/alicaptcha"
)

const warmName = oursName + ", Warm"

// A visit is a login after a time without any other.
type visit struct {
	name   string
	quiet  time.Duration // since the last login; 0 means that there was none
	person time.Duration // how long before the login its page was viewed; 0 means before the last one
}

// A waiter makes calls, and may be told that a page is viewed.
type waiter struct {
	name string
	make func(endpoint string) (v alicaptcha.Verifier, view func(context.Context) error, err error)
}

var waiters = []waiter{
	{oursName, func(endpoint string) (alicaptcha.Verifier, func(context.Context) error, error) {
		client, err := ours(endpoint, nil)
		return client, nil, err
	}},
	{warmName, func(endpoint string) (alicaptcha.Verifier, func(context.Context) error, error) {
		client, err := ours(endpoint, nil)
		return client, client.Warm, err
	}},
	{sampleName, func(endpoint string) (alicaptcha.Verifier, func(context.Context) error, error) {
		v, err := newSample(endpoint, nil)
		return v, nil, err
	}},
	{floorName, func(endpoint string) (alicaptcha.Verifier, func(context.Context) error, error) {
		return newFloor(endpoint, &http.Transport{MaxIdleConnsPerHost: 512}), nil, nil
	}},
}

// A waited is what a person waited for.
type waited struct {
	trips int64
	took  time.Duration
	err   error
}

// wait makes a login over a link of its own, unless w is the first one, and after the quiet
// another one, which counts.
func (w visit) wait(by waiter, address string, delay time.Duration) waited {
	l, err := newLink(address, delay)
	if err != nil {
		return waited{err: err}
	}
	defer l.close()
	v, view, err := by.make(l.url())
	if err != nil {
		return waited{err: err}
	}
	verify := func() error {
		result, err := v.Verify(context.Background(), alicaptcha.Request{Param: v3, SceneID: scene})
		if err == nil && !result.Passed {
			err = fmt.Errorf("a rejection")
		}
		return err
	}
	if w.quiet > 0 {
		if err := verify(); err != nil {
			return waited{err: err}
		}
	}
	time.Sleep(w.quiet - w.person)
	if view != nil && w.person > 0 {
		go view(context.Background())
	}
	time.Sleep(w.person)
	before, start := l.trips.Load(), time.Now()
	err = verify()
	return waited{l.trips.Load() - before, time.Since(start), err}
}

// A visitKey says which logins are alike.
type visitKey struct {
	version       uint16
	visit, waiter string
}

var tlsVersions = []uint16{tls.VersionTLS12, tls.VersionTLS13}

// visited measures all visits at once, since they consist of waiting.
func visited(rounds int, visits []visit, idle, delay time.Duration) (map[visitKey][]waited, error) {
	var mu sync.Mutex
	found := make(map[visitKey][]waited)
	var all sync.WaitGroup
	for _, version := range tlsVersions {
		service, err := newService(serviceConfig{tls: true, idle: idle, version: version})
		if err != nil {
			return nil, err
		}
		defer service.close()
		for range rounds {
			for _, v := range visits {
				for _, by := range waiters {
					all.Go(func() {
						one := v.wait(by, service.Listener.Addr().String(), delay)
						mu.Lock()
						defer mu.Unlock()
						key := visitKey{version, v.name, by.name}
						found[key] = append(found[key], one)
					})
					time.Sleep(20 * time.Millisecond) // the handshakes of others would take up the cores
				}
			}
		}
	}
	all.Wait()
	return found, nil
}

func (b *bench) waits() error {
	const delay = 50 * time.Millisecond
	rounds, idle := b.few(9, 1), 25*time.Second
	visits := []visit{
		{"after 1 s", time.Second, 0}, {"after 15 s", 15 * time.Second, 10 * time.Second},
		{"after 36 s", 36 * time.Second, 10 * time.Second}, {"the first one", 0, 10 * time.Second},
	}
	if b.short {
		idle = 200 * time.Millisecond
		visits[0].quiet = 10 * time.Millisecond
		visits[1].quiet, visits[1].person = 100*time.Millisecond, 50*time.Millisecond
		visits[2].quiet, visits[2].person = 400*time.Millisecond, 100*time.Millisecond
		visits[3].person = 100 * time.Millisecond
	}
	found, err := visited(rounds, visits, idle, delay)
	if err != nil {
		return err
	}
	b.print("## What a person waits for\n\n"+
		"A verification over a link on which a byte takes %v each way and opening a connection costs a round trip "+
		"before the first byte, to a service that answers at once, keeps idle connections for %v and resumes TLS "+
		"sessions. The link counts round trips: connecting is one, and then each answer of the service to what came "+
		"before. The login is the next one after another; with Warm its page was viewed %v before it, if the quiet was "+
		"longer. After 36 s nobody has a connection, and before the first login nobody has a TLS session either. Medians "+
		"of %d logins each; round trips are the least and the most.\n\n"+
		"| TLS | login | caller | round trips | time | ÷ the time of a round trip | failures |\n"+
		"|---|---|---|--:|--:|--:|--:|\n", delay, idle, visits[2].person, rounds)
	trips := func(r visitKey) (least, most int64) {
		of := func(a, b waited) int { return int(a.trips - b.trips) }
		return slices.MinFunc(found[r], of).trips, slices.MaxFunc(found[r], of).trips
	}
	failures, logins := 0, 0
	for _, version := range tlsVersions {
		for _, v := range visits {
			for _, by := range waiters {
				r := visitKey{version, v.name, by.name}
				failed := 0
				for _, one := range found[r] {
					if one.err != nil {
						failed++
					}
				}
				if by.name == oursName || by.name == warmName {
					failures, logins = failures+failed, logins+len(found[r])
				}
				least, most := trips(r)
				count := fmt.Sprint(most)
				if least < most {
					count = fmt.Sprintf("%d to %d", least, most)
				}
				took := medianOf(found[r], func(one waited) float64 { return float64(one.took) })
				b.print("| %s | %s | %s | %s | %s | %.2f | %d of %d |\n", tls.VersionName(version)[len("TLS "):], v.name, by.name,
					count, showTime(took), took/float64(2*delay), failed, len(found[r]))
			}
		}
	}
	b.print("\n")
	for _, t := range []struct{ text, visit, waiter string }{
		{"after 15 s of quiet a login takes one round trip", visits[1].name, oursName},
		{"after a long quiet too, with Warm and a person who needs 10 s", visits[2].name, warmName},
		{"and so does the first of all, with Warm", visits[3].name, warmName},
	} {
		most, theirs := int64(0), int64(0)
		for _, version := range tlsVersions {
			_, n := trips(visitKey{version, t.visit, t.waiter})
			_, their := trips(visitKey{version, t.visit, sampleName})
			most, theirs = max(most, n), max(theirs, their)
		}
		b.targets = append(b.targets, target{t.text, fmt.Sprintf("%d, the sample %d", most, theirs), most == 1})
	}
	b.targets = append(b.targets, target{"none of these logins fails", fmt.Sprintf("%d of %d", failures, logins), failures == 0})
	return nil
}
