package main

import (
	"bytes"
	"net/http"
	"testing"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/stretchr/testify/require"
	"golang.org/x/time/rate"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
	"github.com/alicaptcha/alicaptcha/bench/internal/cputime"
)

// Over HTTP/2 a long header takes only a few bytes on the wire, so it must not be
// expensive. A request with 64 KB of it costs at most three times as much as one without.
// A request with 1 MB of it, which costs net/http alone ten times as much, or with 64 KB
// in one line, costs at most three times as much as with a handler that does nothing.
func TestHeadersCostLittle(t *testing.T) {
	gate, err := alicaptcha.New(alicaptcha.Config{Verifier: alicaptchatest.Passing(), SceneID: "login", Logger: quiet})
	require.NoError(t, err)
	idle := newBench(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusBadRequest)
		w.Write(make([]byte, 200)) // the size of a rejection
	}))
	for _, bench := range []struct {
		name    string
		handler http.Handler
	}{
		{"Handler", gate.Handler(http.NotFoundHandler())},
		{"WriteRejection", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			alicaptcha.WriteRejection(w, r, alicaptcha.Outcome{Code: alicaptcha.F001})
		})},
		{"the example's site", exampleSite(gate)},
	} {
		ours := newBench(t, bench.handler)
		for _, h := range floods {
			long := h.request(longest, entry)
			if !h.list { // a single line, all of whose bytes are sent
				long = h.request(64<<10, 64<<10)
			}
			beside := dearer(t, 8, ours, long, idle, long)
			with := 0.0
			if h.name != "host" { // it may occur only once
				with = dearer(t, 200, ours, h.request(64<<10, entry), ours, h.request(0, entry))
			}
			t.Logf("%s, %s: %.40q…: %.1f times a request without; if longer, %.1f times net/http alone",
				bench.name, h.name, h.prefix+h.unit, with, beside)
			require.LessOrEqual(t, with, 3.0)
			require.LessOrEqual(t, beside, 3.0)
		}
	}
}

// exampleSite has what stands in front of the example's login.
func exampleSite(gate *alicaptcha.Middleware) http.Handler {
	limit := rate.NewLimiter(1, 60)
	r := chi.NewRouter()
	r.Use(http.NewCrossOriginProtection().Handler)
	r.Use(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !limit.Allow() {
				alicaptcha.WriteRejection(w, r, alicaptcha.Outcome{Action: alicaptcha.Action{
					Status: http.StatusTooManyRequests, Reason: "captcha_rate_limited", RetryAfter: time.Second,
				}})
				return
			}
			next.ServeHTTP(w, r)
		})
	})
	r.Use(func(next http.Handler) http.Handler { return http.MaxBytesHandler(next, 128<<10) })
	r.With(gate.Handler).Post("/login", http.NotFound)
	return r
}

// A bench is a site that handler serves.
type bench struct{ address string }

func newBench(t *testing.T, handler http.Handler) bench {
	b := &target{}
	t.Cleanup(b.close)
	site, err := listen()
	require.NoError(t, err)
	require.NoError(t, b.serve(site, &http.Server{Handler: handler}))
	return bench{site.Addr().String()}
}

// dearer returns the least ratio of the processor time of n requests a on siteA to that
// of n requests b on siteB.
func dearer(t *testing.T, n int, siteA bench, a request, siteB bench, b request) float64 {
	var bestA, bestB, ratio float64
	for round := range 10 {
		costA, costB := siteA.cost(t, n, a), siteB.cost(t, n, b)
		if round == 0 {
			bestA, bestB = costA, costB
		}
		bestA, bestB = min(bestA, costA), min(bestB, costB)
		if ratio = bestA / bestB; ratio <= 3 {
			break
		}
	}
	return ratio
}

// cost returns the processor time of this process for n requests.
func (b bench) cost(t *testing.T, n int, r request) float64 {
	conn, err := dialH2(b.address)
	require.NoError(t, err)
	defer conn.close()
	r.body = ""
	ask := func(block []byte, n int) {
		lines := make([]*h2Line, n)
		conn.mu.Lock()
		for i := range lines {
			lines[i] = &h2Line{conn: conn, answered: make(chan int, 1)}
			require.NoError(t, lines[i].start(block, true))
		}
		conn.mu.Unlock()
		for _, l := range lines {
			status, err := l.answer()
			require.NoError(t, err)
			require.GreaterOrEqual(t, status, 400)
		}
	}
	var block []byte
	for range 2 { // the second block has only what is not in the dynamic table
		encoded, err := conn.encode(r)
		require.NoError(t, err)
		block = bytes.Clone(encoded)
		ask(block, 1)
	}
	before := cputime.Used()
	for range 4 {
		ask(block, n/4)
	}
	return float64(cputime.Used() - before)
}
