package main

import (
	"bytes"
	"net/http"
	"syscall"
	"testing"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
	"github.com/go-chi/httprate"
	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

// Over HTTP/2 a long header is a few bytes on the wire, so it must not cost more
// than they are worth. 64 KB make a request at most three times as dear as one
// without; 1 MB, which net/http alone makes ten times as dear, or 64 KB in a line,
// at most three times as dear as where a handler does nothing.
func TestHeadersCostLittle(t *testing.T) {
	gate, err := alicaptcha.New(alicaptcha.Config{Verifier: alicaptchatest.Passing(), SceneID: "login", Logger: quiet})
	require.NoError(t, err)
	idle := newBench(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusBadRequest)
		w.Write(make([]byte, 200)) // as much as a rejection
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
			if !h.list { // one line, and each of its bytes is sent
				long = h.request(64<<10, 64<<10)
			}
			beside := dearer(t, 8, ours, long, idle, long)
			with := 0.0
			if h.name != "host" { // it may come once
				with = dearer(t, 200, ours, h.request(64<<10, entry), ours, h.request(0, entry))
			}
			t.Logf("%s, %s: %.40q…: %.1f times a request without; if longer, %.1f times net/http alone",
				bench.name, h.name, h.prefix+h.unit, with, beside)
			require.LessOrEqual(t, with, 3.0)
			require.LessOrEqual(t, beside, 3.0)
		}
	}
}

// exampleSite is what stands before the example's login.
func exampleSite(gate *alicaptcha.Middleware) http.Handler {
	r := chi.NewRouter()
	r.Use(http.NewCrossOriginProtection().Handler, middleware.ClientIPFromRemoteAddr)
	r.Use(httprate.LimitBy(60, time.Minute, func(r *http.Request) (string, error) {
		return httprate.CanonicalizeIP(middleware.GetClientIP(r.Context())), nil
	}, httprate.WithLimitHandler(func(w http.ResponseWriter, r *http.Request) {
		alicaptcha.WriteRejection(w, r, alicaptcha.Outcome{Action: alicaptcha.Action{
			Status: http.StatusTooManyRequests, Reason: "captcha_rate_limited", RetryAfter: time.Minute,
		}})
	})))
	r.Use(middleware.RequestSize(128 << 10))
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

// dearer returns how many times the processor time of n requests b on its site
// that of n requests a on its own is, at best.
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

// cost returns the processor time that this process takes for n requests.
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
	for range 2 { // the second one has only what is not in the table
		encoded, err := conn.encode(r)
		require.NoError(t, err)
		block = bytes.Clone(encoded)
		ask(block, 1)
	}
	before := cpuTime()
	for range 4 {
		ask(block, n/4)
	}
	return float64(cpuTime() - before)
}

// cpuTime returns what this process has used so far, of all its threads.
func cpuTime() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err) // it has no way to fail
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
