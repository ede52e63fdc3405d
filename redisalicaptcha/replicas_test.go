//go:build unix

package redisalicaptcha_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/redisalicaptcha"
)

// A replica is this program, started again with the address of its Redis and the
// Burst in the environment.
const (
	redisOf = "REDISALICAPTCHA_TEST_REDIS"
	burstOf = "REDISALICAPTCHA_TEST_BURST"
)

type quiet struct{}

func (quiet) Printf(context.Context, string, ...any) {}

func TestMain(m *testing.M) {
	redis.SetLogger(quiet{}) // of connections that fail, as they are meant to
	if addr := os.Getenv(redisOf); addr != "" {
		burst, err := strconv.Atoi(os.Getenv(burstOf))
		if err == nil {
			err = replica(addr, burst)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// Each of the replicas has rps requests a second, and phase of them, or more, in
// each of two phases.
const (
	replicas = 3
	rps      = 1000
	phase    = 400
	atOnce   = 100 // of each replica; a busy machine is not buried in requests
	poolSize = 10
)

// A report is what a replica says at its end.
type report struct {
	Requests      int
	LetIn         int64
	Stats         redisalicaptcha.Stats
	P50, P99, Max string // how long requests took, which is as a figure only
	Goroutines    int    // at most, without one for each request
	Left          int    // goroutines at the end, beyond those at the begin
	Conns         uint32 // to Redis, at most
}

// replica has a gate whose service is down, and requests that come at their own
// pace. It writes a line after each of two phases, if the budget is small enough
// not before it has heard that it is used up. When it reads a number, Redis is well
// again, and it goes on for that many requests and until the budget is used up.
func replica(addr string, burst int) error {
	before := runtime.NumGoroutine()
	opts := options(addr)
	opts.PoolSize = poolSize
	client := redis.NewClient(opts)
	budget, err := redisalicaptcha.New(client, redisalicaptcha.Config{
		Key: "replicas", Rate: seldom, Burst: burst, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	captcha, err := alicaptcha.New(alicaptcha.Config{
		Verifier: alicaptcha.VerifierFunc(func(context.Context, alicaptcha.Request) (alicaptcha.Result, error) {
			return alicaptcha.Result{}, &alicaptcha.Error{Code: alicaptcha.ServiceUnavailable}
		}),
		SceneID: "login",
		Policy:  alicaptcha.Policy{alicaptcha.ServiceUnavailable: alicaptcha.AllowAtMost(budget)},
		Logger:  slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	var letIn atomic.Int64
	handler := captcha.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { letIn.Add(1) }))

	var r report
	var mu sync.Mutex
	var took []time.Duration
	var wg sync.WaitGroup
	var underWay atomic.Int64
	request := func() {
		defer underWay.Add(-1)
		req := httptest.NewRequest(http.MethodPost, "/", nil)
		req.Header.Set("Captcha-Verify-Param", "x")
		begin := time.Now()
		handler.ServeHTTP(httptest.NewRecorder(), req)
		d := time.Since(begin)
		mu.Lock()
		defer mu.Unlock()
		took = append(took, d)
	}
	begin := time.Now()
	serve := func() { // those that are due
		for ; float64(r.Requests) < rps*time.Since(begin).Seconds() && underWay.Load() < atOnce; r.Requests++ {
			underWay.Add(1)
			wg.Go(request)
		}
		requests := int(underWay.Load())
		r.Goroutines = max(r.Goroutines, runtime.NumGoroutine()-requests)
		r.Conns = max(r.Conns, client.PoolStats().TotalConns)
	}

	mended := make(chan int)
	go func() {
		var n int
		fmt.Scanln(&n) // fails if the test has ended
		mended <- n
	}()
	pace := time.NewTicker(time.Millisecond)
	defer pace.Stop()
	end := -1
	for written := 0; end < 0; {
		select {
		case n := <-mended:
			end = r.Requests + n
		case <-pace.C:
			serve()
		}
		spent := budget.Stats().Refused > 0 || burst > replicas*phase
		if written < 2 && r.Requests >= (written+1)*phase && spent {
			fmt.Println("a phase is over")
			written++
		}
	}
	for ; r.Requests < end; <-pace.C {
		serve()
	}
	for refused := budget.Stats().Refused; budget.Stats().Refused == refused; <-pace.C {
		serve()
	}
	wg.Wait()
	client.Close()
	for range 100 { // those that were under way end
		if r.Left = runtime.NumGoroutine() - before - 1; r.Left <= 1 { // go-redis has one for its clock
			break
		}
		<-pace.C
	}

	slices.Sort(took)
	r.P50, r.P99, r.Max = took[len(took)/2].String(), took[len(took)*99/100].String(), took[len(took)-1].String()
	r.LetIn, r.Stats = letIn.Load(), budget.Stats()
	return json.NewEncoder(os.Stdout).Encode(r)
}

// startReplica starts one; line reads what it writes, and mended tells it of that.
func startReplica(t *testing.T, addr string, burst int) (line func() string, mended func(requests int)) {
	exe, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), redisOf+"="+addr, burstOf+"="+strconv.Itoa(burst))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	lines := bufio.NewReader(out)
	line = func() string {
		s, err := lines.ReadString('\n')
		require.NoError(t, err)
		return s
	}
	return line, func(n int) { _, err := fmt.Fprintln(in, n); require.NoError(t, err) }
}

// Three replicas and one Redis in an outage of the service, at 3,000 requests a
// second: whatever happens to Redis, the budget is all that is let in, and what is
// left of it is let in when Redis is well again.
func TestReplicas(t *testing.T) {
	const spentAtOnce, lasting = 2 * phase, 2 * replicas * phase
	for name, tc := range map[string]struct {
		args       []string
		burst      int
		after      int // requests of each replica when Redis is well again
		hurt, mend func(s *server, p *proxy)
	}{
		"nothing": {
			burst: spentAtOnce,
			hurt:  func(*server, *proxy) {}, mend: func(*server, *proxy) {},
		},
		"stopped": {
			burst: lasting,
			hurt:  func(s *server, _ *proxy) { s.stop() }, mend: func(s *server, _ *proxy) { s.resume() },
		},
		"slow": {
			burst: lasting,
			hurt:  func(_ *server, p *proxy) { p.slow(300 * time.Millisecond) }, mend: func(_ *server, p *proxy) { p.slow(0) },
		},
		"out of memory": {
			burst: lasting,
			hurt:  func(s *server, _ *proxy) { s.do("CONFIG", "SET", "maxmemory", "1") },
			mend:  func(s *server, _ *proxy) { s.do("CONFIG", "SET", "maxmemory", "0") },
		},
		"killed, its data kept": {
			args: []string{"--appendonly", "yes", "--appendfsync", "always"}, burst: lasting,
			hurt: func(s *server, _ *proxy) { s.kill() }, mend: func(s *server, _ *proxy) { require.True(s.t, s.start()) },
		},
		"killed, its data lost, all spent": {
			// A replica that was told no does not ask for a second.
			burst: spentAtOnce, after: 2 * rps,
			hurt: func(s *server, _ *proxy) { s.kill() }, mend: func(s *server, _ *proxy) { require.True(s.t, s.start()) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			forEachServer(t, func(t *testing.T, binary string) {
				s := startServer(t, binary, tc.args...)
				p := startProxy(t, s.addr())
				var lines []func() string
				var mended []func(int)
				for range replicas {
					line, m := startReplica(t, p.Addr().String(), tc.burst)
					lines, mended = append(lines, line), append(mended, m)
				}
				each := func() (all []string) {
					for _, line := range lines {
						all = append(all, line())
					}
					return all
				}
				each()
				tc.hurt(s, p)
				each()
				tc.mend(s, p)
				for _, m := range mended {
					m(tc.after)
				}

				var letIn int64
				var stats redisalicaptcha.Stats
				for i, text := range each() {
					var r report
					require.NoError(t, json.Unmarshal([]byte(text), &r), text)
					t.Logf("replica %d: %+v", i, r)
					require.Equal(t, r.LetIn, int64(r.Stats.Allowed))
					// The gate asks its Limiter in a goroutine for each request; the
					// others are go-redis', a few, and those that are about to end.
					require.Less(t, r.Goroutines, 3*atOnce)
					require.LessOrEqual(t, r.Conns, uint32(poolSize))
					require.LessOrEqual(t, r.Left, 1)
					letIn += r.LetIn
					stats.Refused += r.Stats.Refused
					stats.Failed += r.Stats.Failed
				}
				t.Logf("let in: %d of %d, %+v", letIn, tc.burst, stats)
				require.LessOrEqual(t, letIn, int64(tc.burst))
				// Of those that failed Redis may have heard.
				require.GreaterOrEqual(t, letIn, int64(tc.burst)-int64(stats.Failed))
				require.NotZero(t, stats.Refused, "the budget was not used up")
				if name != "nothing" {
					require.NotZero(t, stats.Failed)
				}
			})
		})
	}
}
