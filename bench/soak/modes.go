package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

// flipEvery is how long a Mode lasts.
const flipEvery = 50 * time.Millisecond

var modes = []alicaptcha.Mode{alicaptcha.Enforce, alicaptcha.ReportOnly, alicaptcha.Exempt}

// answerKey is the context key of the header of the answer, which ModeFunc adds the Mode to.
type answerKey struct{}

// flips changes the Mode under load. It returns a report, and an error for each condition
// that does not hold: every answer is the one of the Mode that ModeFunc gave its request, no
// param is verified twice, and the service is asked for each request that is not exempt.
func flips(perSecond int, each time.Duration) (string, error) {
	simulator := alicaptchatest.NewSimulator(alicaptchatest.Config{})
	if err := simulator.SetFaults(alicaptchatest.Faults{Latency: serviceTakes}); err != nil {
		return "", err
	}
	service := httptest.NewServer(simulator)
	defer service.Close()
	transport := &http.Transport{MaxIdleConnsPerHost: mostAtOnce}
	defer transport.CloseIdleConnections()
	client, err := alicaptcha.NewClient(alicaptcha.ClientConfig{
		Endpoint: service.URL, AccessKeyID: "test-id", AccessKeySecret: "test-secret", Transport: transport,
	})
	if err != nil {
		return "", err
	}
	var flipped atomic.Int64
	var mu sync.Mutex
	outcomes := make(map[alicaptcha.Code]int)
	gate, err := alicaptcha.New(alicaptcha.Config{
		Verifier: client, SceneID: "login", Logger: quiet, MaxConcurrent: mostAtOnce, Timeout: 20 * time.Second,
		ModeFunc: func(r *http.Request) alicaptcha.Mode {
			mode := modes[flipped.Load()%int64(len(modes))]
			r.Context().Value(answerKey{}).(http.Header).Add("Mode", mode.String())
			return mode
		},
		Observe: func(_ context.Context, o alicaptcha.Outcome) {
			mu.Lock()
			defer mu.Unlock()
			outcomes[o.Code]++
		},
	})
	if err != nil {
		return "", err
	}
	gated := halfBegun(gate, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		gated.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), answerKey{}, w.Header())))
	}))
	defer site.Close()
	load := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: mostAtOnce}}
	defer load.CloseIdleConnections()

	// login makes the n-th login and returns the Mode that it had.
	login := func(n int) (string, error) {
		param := "junk"
		if n%2 == 0 {
			valid, err := simulator.Issue(alicaptchatest.Issue{SceneID: "login"})
			if err != nil {
				return "", err
			}
			param = valid
		}
		body, err := json.Marshal(map[string]string{"captchaVerifyParam": param})
		if err != nil {
			return "", err
		}
		resp, err := load.Post(site.URL, "application/json", strings.NewReader(string(body)))
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		io.Copy(io.Discard, resp.Body)
		mode, want := strings.Join(resp.Header.Values("Mode"), ", "), http.StatusOK
		if mode == alicaptcha.Enforce.String() && n%2 == 1 {
			want = http.StatusBadRequest
		}
		if resp.StatusCode != want {
			return mode, fmt.Errorf("a login in mode %s is answered %d, not %d", mode, resp.StatusCode, want)
		}
		return mode, nil
	}
	counts := make(map[string]int)
	errs := make(map[string]error)
	var underWay sync.WaitGroup
	slots := make(chan struct{}, mostAtOnce)
	flip, tick := time.NewTicker(flipEvery), time.NewTicker(time.Millisecond)
	defer flip.Stop()
	defer tick.Stop()
	sent, began := 0, time.Now()
	for now := began; now.Sub(began) < each; {
		for due := int(now.Sub(began).Seconds() * float64(perSecond)); sent < due; sent++ {
			slots <- struct{}{}
			n := sent
			underWay.Go(func() {
				defer func() { <-slots }()
				mode, err := login(n)
				mu.Lock()
				defer mu.Unlock()
				counts[mode]++
				if err != nil {
					errs[err.Error()] = err
				}
			})
		}
		select {
		case <-flip.C:
			flipped.Add(1)
		case now = <-tick.C:
		}
	}
	underWay.Wait()

	asked := counts[alicaptcha.Enforce.String()] + counts[alicaptcha.ReportOnly.String()]
	var all []error
	for _, err := range errs {
		all = append(all, err)
	}
	check := func(ok bool, format string, args ...any) {
		if !ok {
			all = append(all, fmt.Errorf(format, args...))
		}
	}
	check(simulator.Count() == asked, "the service was asked %d times for %d requests", simulator.Count(), asked)
	check(outcomes[alicaptcha.F018] == 0, "%d params were verified twice", outcomes[alicaptcha.F018])
	for _, mode := range modes {
		check(counts[mode.String()] > 0, "no login was in mode %s", mode)
	}
	return fmt.Sprintf("%d logins a second, every other one junk, while the Mode changed %d times, every %v: %v; "+
		"%d calls of the service, %d of them for params that were verified before\n",
		perSecond, flipped.Load(), flipEvery, counts, simulator.Count(), outcomes[alicaptcha.F018]), errors.Join(all...)
}
