//go:build unix

package redisalicaptcha_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"math"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"golang.org/x/time/rate"

	"github.com/alicaptcha/alicaptcha/redisalicaptcha"
)

// seldom is the Rate of a budget that gains nothing in a test.
var seldom = rate.Every(24 * time.Hour)

// config is one for tests that do not mean to find a busy machine too slow.
func config(burst int) redisalicaptcha.Config {
	return redisalicaptcha.Config{Key: "test", Rate: seldom, Burst: burst, Timeout: 900 * time.Millisecond}
}

func newBudget(t *testing.T, client redis.UniversalClient, cfg redisalicaptcha.Config) *redisalicaptcha.Budget {
	t.Helper()
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	b, err := redisalicaptcha.New(client, cfg)
	require.NoError(t, err)
	return b
}

// until calls Allow until it says true. Redis may have to be tried again first.
func until(t *testing.T, b *redisalicaptcha.Budget) {
	t.Helper()
	pace := time.NewTicker(time.Millisecond) // not to take the processor from Redis
	defer pace.Stop()
	for !b.Allow() {
		<-pace.C
	}
}

func TestNew(t *testing.T) {
	good := redisalicaptcha.Config{Key: "k", Rate: 1, Burst: 1}
	client := newClient(t, "127.0.0.1:1")
	for name, tc := range map[string]struct {
		client redis.UniversalClient
		change func(*redisalicaptcha.Config)
		want   string // empty: no fault
	}{
		"good":               {client: client},
		"fast":               {change: func(c *redisalicaptcha.Config) { c.Rate, c.Burst = 100_000, 1_000_000 }},
		"slow":               {change: func(c *redisalicaptcha.Config) { c.Rate, c.Burst = rate.Every(24*time.Hour), 365 }},
		"no key":             {change: func(c *redisalicaptcha.Config) { c.Key = "" }, want: "Key"},
		"key not UTF-8":      {change: func(c *redisalicaptcha.Config) { c.Key = "\xff" }, want: "Key"},
		"no rate":            {change: func(c *redisalicaptcha.Config) { c.Rate = 0 }, want: "Rate"},
		"negative rate":      {change: func(c *redisalicaptcha.Config) { c.Rate = -1 }, want: "Rate"},
		"NaN":                {change: func(c *redisalicaptcha.Config) { c.Rate = rate.Limit(math.NaN()) }, want: "Rate"},
		"rate too high":      {change: func(c *redisalicaptcha.Config) { c.Rate = 100_001 }, want: "Rate"},
		"no limit":           {change: func(c *redisalicaptcha.Config) { c.Rate = rate.Inf }, want: "Rate"},
		"rate too low":       {change: func(c *redisalicaptcha.Config) { c.Rate = 1e-300 }, want: "Rate"},
		"smallest rate":      {change: func(c *redisalicaptcha.Config) { c.Rate = math.SmallestNonzeroFloat64 }, want: "Rate"},
		"burst above rate":   {change: func(c *redisalicaptcha.Config) { c.Burst = math.MaxInt }, want: "Burst"},
		"no burst":           {change: func(c *redisalicaptcha.Config) { c.Burst = 0 }, want: "Burst"},
		"negative burst":     {change: func(c *redisalicaptcha.Config) { c.Burst = math.MinInt }, want: "Burst"},
		"negative timeout":   {change: func(c *redisalicaptcha.Config) { c.Timeout = -1 }, want: "Timeout"},
		"timeout too long":   {change: func(c *redisalicaptcha.Config) { c.Timeout = time.Second }, want: "Timeout"},
		"ring":               {client: redis.NewRing(&redis.RingOptions{ContextTimeoutEnabled: true}), want: "Ring"},
		"go-redis' defaults": {client: redis.NewClient(&redis.Options{}), want: "ContextTimeoutEnabled"},
		"their defaults, in a cluster": {
			client: redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{"127.0.0.1:1"}}),
			want:   "ContextTimeoutEnabled",
		},
		"no deadline to read": {
			client: redis.NewClient(&redis.Options{ContextTimeoutEnabled: true, ReadTimeout: -2}), want: "ReadTimeout",
		},
		"no deadline to write": {
			client: redis.NewClusterClient(&redis.ClusterOptions{
				Addrs: []string{"127.0.0.1:1"}, ContextTimeoutEnabled: true, WriteTimeout: -2,
			}),
			want: "WriteTimeout",
		},
		"only the context's deadline": {
			client: redis.NewClient(&redis.Options{ContextTimeoutEnabled: true, ReadTimeout: -1, WriteTimeout: -1}),
		},
		"by sentinels": {
			client: redis.NewFailoverClient(&redis.FailoverOptions{
				SentinelAddrs: []string{"127.0.0.1:1"}, ContextTimeoutEnabled: true,
			}),
		},
		"of another type": {client: struct{ redis.UniversalClient }{client}},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := good
			if tc.change != nil {
				tc.change(&cfg)
			}
			if tc.client == nil {
				tc.client = client
			} else {
				t.Cleanup(func() { tc.client.Close() })
			}
			b, err := redisalicaptcha.New(tc.client, cfg)
			if tc.want == "" {
				require.NoError(t, err)
				require.NotNil(t, b)
				return
			}
			require.ErrorContains(t, err, tc.want)
			require.Nil(t, b)
		})
	}
}

func TestNewJoinsFaults(t *testing.T) {
	for _, client := range []redis.UniversalClient{nil, (*redis.Client)(nil), (*redis.ClusterClient)(nil)} {
		_, err := redisalicaptcha.New(client, redisalicaptcha.Config{Timeout: -1})
		for _, part := range []string{"client is nil", "Key", "Rate", "Burst", "Timeout"} {
			require.ErrorContains(t, err, part)
		}
	}
}

func TestZeroBudget(t *testing.T) {
	for _, b := range []*redisalicaptcha.Budget{nil, new(redisalicaptcha.Budget)} {
		require.False(t, b.Allow())
		require.Zero(t, b.Stats())
	}
}

// Two replicas at once take what one budget has, and what it gains.
func TestBudgetIsShared(t *testing.T) {
	forEachServer(t, func(t *testing.T, binary string) {
		s := startServer(t, binary)
		a, b := newBudget(t, s.client(), config(50)), newBudget(t, s.client(), config(50))
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() { a.Allow() })
			wg.Go(func() { b.Allow() })
		}
		wg.Wait()
		of, and := a.Stats(), b.Stats()
		require.Zero(t, of.Failed+and.Failed)
		require.Equal(t, uint64(50), of.Allowed+and.Allowed)
		require.Equal(t, uint64(150), of.Refused+and.Refused)

		other := config(1)
		other.Key = "another"
		require.True(t, newBudget(t, s.client(), other).Allow())

		quick := config(1)
		quick.Key, quick.Rate = "quick", 20
		q := newBudget(t, s.client(), quick)
		begin := time.Now()
		for range 11 {
			until(t, q)
		}
		require.GreaterOrEqual(t, time.Since(begin), 10*time.Second/20)
	})
}

// The README says what a Budget's user in Redis has to be allowed.
func TestPermissions(t *testing.T) {
	forEachServer(t, func(t *testing.T, binary string) {
		s := startServer(t, binary)
		s.do("ACL", "SETUSER", "budget", "on", ">secret", "~rate:test", "+evalsha", "+eval", "+time", "+get", "+set")
		opts := options(s.addr())
		opts.Username, opts.Password = "budget", "secret"
		client := redis.NewClient(opts)
		t.Cleanup(func() { client.Close() })
		until(t, newBudget(t, client, config(10)))
	})
}

// A budget in a cluster, of one node.
func TestCluster(t *testing.T) {
	forEachServer(t, func(t *testing.T, binary string) {
		s := startServer(t, binary, "--cluster-enabled", "yes")
		s.do("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
		client := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{s.addr()}, ContextTimeoutEnabled: true})
		t.Cleanup(func() { client.Close() })
		b := newBudget(t, client, config(100))
		until(t, b) // it takes the cluster a moment to find itself
		s.stop()
		for range 1000 {
			require.False(t, b.Allow())
		}
		s.resume()
		until(t, b)
	})
}

// The ways in which Redis fails: nobody is let in, one line says why, and when
// Redis is well again so is the Budget.
func TestRedisFails(t *testing.T) {
	for name, tc := range map[string]struct {
		hurt, mend func(s *server, p *proxy)
		reason     string
	}{
		"killed": {
			hurt:   func(s *server, _ *proxy) { s.kill() },
			mend:   func(s *server, _ *proxy) { require.True(s.t, s.start()) },
			reason: "", // closed or refused connections, or a timeout
		},
		"stopped": {
			hurt:   func(s *server, _ *proxy) { s.stop() },
			mend:   func(s *server, _ *proxy) { s.resume() },
			reason: "timeout",
		},
		"slow": {
			hurt:   func(_ *server, p *proxy) { p.slow(300 * time.Millisecond) },
			mend:   func(_ *server, p *proxy) { p.slow(0) },
			reason: "timeout",
		},
		"out of memory": {
			hurt:   func(s *server, _ *proxy) { s.do("CONFIG", "SET", "maxmemory", "1") },
			mend:   func(s *server, _ *proxy) { s.do("CONFIG", "SET", "maxmemory", "0") },
			reason: "OOM",
		},
		"a replica": {
			hurt:   func(s *server, _ *proxy) { s.do("REPLICAOF", "127.0.0.1", "1") },
			mend:   func(s *server, _ *proxy) { s.do("REPLICAOF", "NO", "ONE") },
			reason: "READONLY",
		},
		"no permission": {
			hurt:   func(s *server, _ *proxy) { s.do("ACL", "SETUSER", "default", "-evalsha") },
			mend:   func(s *server, _ *proxy) { s.do("ACL", "SETUSER", "default", "+evalsha") },
			reason: "NOPERM",
		},
		"another kind of value": {
			hurt:   func(s *server, _ *proxy) { s.do("DEL", "rate:test"); s.do("LPUSH", "rate:test", 1) },
			mend:   func(s *server, _ *proxy) { s.do("DEL", "rate:test") },
			reason: "WRONGTYPE",
		},
		"no number": {
			hurt:   func(s *server, _ *proxy) { s.do("SET", "rate:test", "many") },
			mend:   func(s *server, _ *proxy) { s.do("DEL", "rate:test") },
			reason: "ERR",
		},
	} {
		t.Run(name, func(t *testing.T) {
			forEachServer(t, func(t *testing.T, binary string) {
				s := startServer(t, binary)
				p := startProxy(t, s.addr())
				var log bytes.Buffer
				cfg := config(1000)
				cfg.Timeout, cfg.Logger = 100*time.Millisecond, slog.New(slog.NewTextHandler(&log, nil))
				b := newBudget(t, newClient(t, p.Addr().String()), cfg)
				until(t, b)
				before := b.Stats()
				log.Reset()

				tc.hurt(s, p)
				var wg sync.WaitGroup
				for range 100 {
					wg.Go(func() {
						if b.Allow() {
							t.Error("let in")
						}
					})
				}
				wg.Wait()
				for range 900 {
					require.False(t, b.Allow())
				}
				after := b.Stats()
				require.Equal(t, before.Allowed, after.Allowed)
				require.Equal(t, before.Failed+1000, after.Failed)
				if before.Failed == 0 {
					require.Equal(t, 1, strings.Count(log.String(), "\n"), log.String())
					require.Contains(t, log.String(), "captcha: the budget's Redis fails")
					require.Contains(t, log.String(), "captcha.error="+tc.reason)
				}

				tc.mend(s, p)
				until(t, b)
			})
		})
	}
}

// A hook answers in the place of Redis, once its client has a connection.
type hook func(ctx context.Context, cmd redis.Cmder) error

func (h hook) DialHook(next redis.DialHook) redis.DialHook     { return next }
func (h hook) ProcessHook(redis.ProcessHook) redis.ProcessHook { return redis.ProcessHook(h) }
func (h hook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// Answers that are none let nobody in, and what they say is not logged.
func TestAnswersThatAreNone(t *testing.T) {
	yes := []any{int64(1), int64(0), "-1", "60"}
	for name, tc := range map[string]struct {
		answer hook
		want   string
	}{
		"nothing":     {func(context.Context, redis.Cmder) error { return nil }, "panic"},
		"a text":      {func(_ context.Context, c redis.Cmder) error { c.(*redis.Cmd).SetVal("secret"); return nil }, "panic"},
		"a short one": {func(_ context.Context, c redis.Cmder) error { c.(*redis.Cmd).SetVal(yes[:2]); return nil }, "panic"},
		"another shape": {func(_ context.Context, c redis.Cmder) error {
			c.(*redis.Cmd).SetVal([]any{"1", "0", "-1", "60"})
			return nil
		}, "panic"},
		"no number": {func(_ context.Context, c redis.Cmder) error {
			c.(*redis.Cmd).SetVal([]any{int64(1), int64(0), "-1", "secret"})
			return nil
		}, "NumError"},
		"an error":   {func(_ context.Context, c redis.Cmder) error { c.SetErr(errors.New("secret")); return c.Err() }, "errorString"},
		"a panic":    {func(context.Context, redis.Cmder) error { panic("secret") }, "panic: string"},
		"no network": {func(_ context.Context, c redis.Cmder) error { c.SetErr(net.ErrClosed); return c.Err() }, "captcha.error="},
		// It comes from a client that does not heed its context.
		"a late yes": {func(ctx context.Context, c redis.Cmder) error {
			<-ctx.Done()
			c.(*redis.Cmd).SetVal(yes)
			return nil
		}, "timeout"},
	} {
		t.Run(name, func(t *testing.T) {
			client := newClient(t, "127.0.0.1:1")
			client.AddHook(tc.answer)
			var log bytes.Buffer
			cfg := config(10)
			cfg.Timeout, cfg.Logger = 10*time.Millisecond, slog.New(slog.NewTextHandler(&log, nil))
			b := newBudget(t, client, cfg)
			require.False(t, b.Allow())
			require.Equal(t, redisalicaptcha.Stats{Failed: 1}, b.Stats())
			require.Contains(t, log.String(), tc.want)
			require.NotContains(t, log.String(), "secret")
		})
	}
}

// What Redis has forgotten is not let in again: nobody is until Redis has caught
// up. A program that has not asked it before knows no better.
func TestRedisForgets(t *testing.T) {
	forEachServer(t, func(t *testing.T, binary string) {
		s := startServer(t, binary)
		var log bytes.Buffer
		cfg := config(20)
		cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
		b, spent := newBudget(t, s.client(), cfg), newBudget(t, s.client(), cfg)
		for range 15 {
			require.True(t, b.Allow())
		}
		s.restart()
		for range 15 {
			require.False(t, b.Allow())
		}
		require.Contains(t, log.String(), "the count was lost")
		for range 5 {
			require.True(t, b.Allow())
		}
		require.False(t, b.Allow())
		require.Equal(t, redisalicaptcha.Stats{Allowed: 20, Refused: 1, Failed: 15}, b.Stats())

		require.False(t, spent.Allow()) // it learns that all is spent
		s.do("FLUSHALL")
		until(t, newBudget(t, s.client(), cfg)) // one that is new
		for spent.Stats().Failed < 19 {
			require.False(t, spent.Allow())
		}
		for range 10 {
			require.False(t, spent.Allow())
		}
	})
}

// A clock of Redis that was ahead for a while makes a budget wait no longer than
// it takes to become whole, and no longer than a second for the next question.
func TestClockOfRedis(t *testing.T) {
	client := newClient(t, "127.0.0.1:1")
	answer, asked := []any{int64(0), int64(0), "3600", "3600"}, 0
	client.AddHook(hook(func(_ context.Context, c redis.Cmder) error {
		asked++
		c.(*redis.Cmd).SetVal(answer)
		return nil
	}))
	synctest.Test(t, func(t *testing.T) {
		cfg := config(10)
		cfg.Rate = 1
		b := newBudget(t, client, cfg)
		require.False(t, b.Allow())
		require.False(t, b.Allow())
		require.Equal(t, 1, asked)
		time.Sleep(time.Second)
		require.False(t, b.Allow())
		require.Equal(t, 2, asked)

		answer = []any{int64(1), int64(9), "-1", "1"} // the clock is set, the count gone
		time.Sleep(9 * time.Second)
		require.False(t, b.Allow())
		time.Sleep(time.Second)
		require.True(t, b.Allow())
		require.Equal(t, redisalicaptcha.Stats{Allowed: 1, Refused: 3, Failed: 1}, b.Stats())
	})
}

// While Redis fails it is tried once in a quarter of a second, by one request.
func TestPause(t *testing.T) {
	client := newClient(t, "127.0.0.1:1")
	var asked atomic.Int64
	client.AddHook(hook(func(ctx context.Context, c redis.Cmder) error {
		asked.Add(1)
		<-ctx.Done()
		c.SetErr(ctx.Err())
		return c.Err()
	}))
	synctest.Test(t, func(t *testing.T) {
		cfg := config(10)
		cfg.Timeout = 0 // 50 ms
		b := newBudget(t, client, cfg)
		flood := func() time.Duration {
			begin := time.Now()
			var wg sync.WaitGroup
			for range 100 {
				wg.Go(func() { b.Allow() })
			}
			wg.Wait()
			return time.Since(begin)
		}
		require.Equal(t, 50*time.Millisecond, flood())
		require.Equal(t, int64(100), asked.Load(), "it is not known yet")
		require.Zero(t, flood())
		require.Equal(t, int64(100), asked.Load())
		for i := range int64(10) {
			time.Sleep(200 * time.Millisecond)
			require.Zero(t, flood())
			time.Sleep(50*time.Millisecond + 1)
			require.Equal(t, 50*time.Millisecond, flood())
			require.Equal(t, 101+i, asked.Load())
		}
		require.Equal(t, redisalicaptcha.Stats{Failed: 2200}, b.Stats())
	})
}
