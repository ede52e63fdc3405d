package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	exporter "go.opentelemetry.io/otel/exporters/prometheus"
	sdk "go.opentelemetry.io/otel/sdk/metric"
	"golang.org/x/time/rate"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
	"github.com/alicaptcha/alicaptcha/otelalicaptcha"
)

const (
	second = time.Second
	pace   = second / 20 // between two visits of a site
	atOnce = 64          // visits under way
)

// A site is a login behind a gate, with a simulator of its own.
type site struct {
	fault
	instance string
	faulty   atomic.Bool // the fault is there

	login     http.Handler
	simulator *alicaptchatest.Simulator
	server    *httptest.Server
	registry  *prometheus.Registry

	mu       sync.Mutex
	statuses map[int]int // of answers while the fault was there
}

// newSite returns the instance of the site that f befalls which has that number.
func newSite(f fault, number int) (*site, error) {
	s := &site{
		fault: f, instance: fmt.Sprint(number + 1), statuses: map[int]int{},
		simulator: alicaptchatest.NewSimulator(alicaptchatest.Config{}), registry: prometheus.NewRegistry(),
	}
	if number+1 < f.of { // it stays well
		s.service, s.visitors, s.code = alicaptchatest.Faults{}, usual, ""
	}
	s.server = httptest.NewServer(s.simulator)
	var err error
	if s.login, err = s.newLogin(); err != nil {
		s.server.Close()
		return nil, err
	}
	return s, nil
}

func (s *site) newLogin() (http.Handler, error) {
	reader, err := exporter.New(exporter.WithRegisterer(s.registry))
	if err != nil {
		return nil, err
	}
	telemetry, err := otelalicaptcha.New(otelalicaptcha.Config{
		MeterProvider: sdk.NewMeterProvider(sdk.WithReader(reader)), Scenes: []string{"login"},
	})
	if err != nil {
		return nil, err
	}
	client, err := alicaptcha.NewClient(alicaptcha.ClientConfig{
		Endpoint: s.server.URL, AccessKeyID: "test-id", AccessKeySecret: "test-secret",
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return nil, err
	}
	breaker, err := alicaptcha.NewBreaker(telemetry.Verifier(client), alicaptcha.BreakerConfig{
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return nil, err
	}
	if err := telemetry.Breaker("login", breaker.State); err != nil {
		return nil, err
	}
	captcha, err := alicaptcha.New(alicaptcha.Config{
		Verifier: breaker,
		SceneID:  "login",
		Mode:     s.mode,
		Observe:  telemetry.Observe,
		Policy: alicaptcha.Policy{
			alicaptcha.ServiceUnavailable: alicaptcha.AllowAtMost(rate.NewLimiter(1, 1)),
		},
		MaxConcurrent: s.room,
		Logger:        slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return nil, err
	}
	return captcha.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})), nil
}

// visit makes visits until ctx is done.
func (s *site) visit(ctx context.Context) {
	var visits sync.WaitGroup
	defer visits.Wait()
	room := make(chan struct{}, atOnce)
	every := time.NewTicker(pace)
	defer every.Stop()
	faulty, begun := false, !s.fresh
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-every.C:
		}
		does, code, faults := usual, alicaptcha.Code("T001"), alicaptchatest.Faults{}
		if n%10 == 0 {
			code = "F001"
		}
		if s.faulty.Load() {
			does, faults = s.visitors, s.service
			if s.code != "" {
				code = s.code
			}
		}
		if faulty != s.faulty.Load() {
			faulty, begun = !faulty, true
			if err := s.simulator.SetFaults(faults); err != nil {
				panic(err) // a mistake in this program
			}
		}
		sends := []alicaptcha.Code{code}
		switch {
		case does == nobody, !begun:
			sends = nil
		case does == bots:
			sends = append(sends, slices.Repeat([]alicaptcha.Code{"F001"}, 9)...)
		}
		for i, code := range sends {
			select {
			case room <- struct{}{}:
			default:
				continue // the site is slow, and has enough to do
			}
			visits.Go(func() {
				status := s.send(does, code)
				if <-room; faulty && i == 0 {
					s.mu.Lock()
					s.statuses[status]++
					s.mu.Unlock()
				}
			})
		}
	}
}

// send makes one request with a param of that code, and returns its status, or 0 if
// nobody waited for the answer.
func (s *site) send(does behavior, code alicaptcha.Code) int {
	param, err := s.simulator.Issue(alicaptchatest.Issue{SceneID: "login", Code: code})
	if err != nil {
		panic(err) // a mistake in this program
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	switch does {
	case noParam:
		param = ""
	case hugeParam:
		param = strings.Repeat("x", 1<<20)
	case hangUp:
		time.AfterFunc(second/50, cancel)
	}
	r := httptest.NewRequestWithContext(ctx, http.MethodPost, "/login", strings.NewReader("user=alice"))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Captcha-Verify-Param", param)
	w := httptest.NewRecorder()
	s.login.ServeHTTP(w, r)
	if ctx.Err() != nil {
		return 0
	}
	return w.Code
}

// answers returns what users of a job got while the fault was there.
func answers(sites []*site, job string) string {
	counts, total := map[int]int{}, 0
	for _, s := range sites {
		if s.name != job {
			continue
		}
		for status, n := range s.statuses {
			counts[status] += n
			total += n
		}
	}
	var texts []string
	for status, n := range counts {
		text := fmt.Sprintf("%d %%: %d", (100*n+total/2)/total, status)
		if status == 0 {
			text = "nothing"
		}
		texts = append(texts, text)
	}
	slices.Sort(texts)
	slices.Reverse(texts)
	return strings.Join(texts, ", ")
}

// scrapes serves the metrics of sites.
func scrapes(sites []*site) http.Handler {
	mux := http.NewServeMux()
	for i, s := range sites {
		mux.Handle(fmt.Sprintf("GET /metrics/%d", i), promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{}))
	}
	return mux
}
