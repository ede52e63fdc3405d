// Package redisalicaptcha has a Limiter for package alicaptcha whose count is
// kept in Redis or Valkey, so that all replicas of a program share one budget of
// requests that an outage of the service lets through.
//
//	client := redis.NewClient(&redis.Options{Addr: "redis:6379", ContextTimeoutEnabled: true})
//	budget, err := redisalicaptcha.New(client, redisalicaptcha.Config{
//		Key:   "captcha",
//		Rate:  rate.Every(6 * time.Second),
//		Burst: 10,
//	})
//	…
//	captcha, err := alicaptcha.New(alicaptcha.Config{
//		Verifier: verifier,
//		SceneID:  "1a2b3c4d",
//		Policy:   alicaptcha.Policy{alicaptcha.ServiceUnavailable: alicaptcha.AllowAtMost(budget)},
//	})
package redisalicaptcha

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"os"
	"reflect"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/go-redis/redis_rate/v10"
	"github.com/redis/go-redis/v9"
	"github.com/sony/gobreaker/v2"
	"golang.org/x/time/rate"

	"github.com/alicaptcha/alicaptcha"
)

// Config configures [New].
type Config struct {
	// Key names the budget in Redis, where the key is "rate:" and Key. All
	// Budgets with the same Key share one count; they should have the same Rate
	// and Burst. It must not be empty.
	Key string

	// Rate is how many requests a second the budget gains, over all replicas: in
	// any time t no more than Burst + Rate·t are let through. It must be above 0
	// and at most 100,000. rate.Every(6*time.Second) is one request in 6 seconds.
	Rate rate.Limit

	// Burst is how many requests may be let through at once. It must be above 0.
	Burst int

	// Timeout is how long Redis is waited for. It must be below a second, which
	// is how long a gate waits for its Limiter. Zero means 50 ms.
	Timeout time.Duration

	// Logger receives a line, at most once a minute, while Redis fails. Nil means
	// slog.Default.
	Logger *slog.Logger

	_ [0]func() // fields by name only
}

// maxRate is far from what the clock of Redis can tell apart, a microsecond.
const maxRate = 100_000

// A Budget is an [alicaptcha.Limiter] that all replicas share. It is safe for
// concurrent use; all gates of a program should share one. A nil or zero Budget
// lets nobody in.
type Budget struct {
	limiter *redis_rate.Limiter
	key     string
	limit   redis_rate.Limit
	timeout time.Duration
	breaker *gobreaker.CircuitBreaker[answer]
	logger  *slog.Logger // nil: slog.Default
	logs    rate.Sometimes

	start     time.Time
	fullAt    atomic.Int64 // when the budget will be whole, by what Redis said; since start
	notBefore atomic.Int64 // when the budget will have gained one; since start

	allowed, refused, failed atomic.Uint64

	_ [0]func()
}

var _ alicaptcha.Limiter = (*Budget)(nil)

// New returns a Budget, or an error that joins all faults of its arguments. It
// does not ask Redis: a program can start while Redis is down. It does not close
// client, which should be the Budget's own.
//
// The client must have ContextTimeoutEnabled, and no negative ReadTimeout or
// WriteTimeout but -1: otherwise a Redis that hangs holds a call for seconds,
// whatever its context says. A *redis.Ring is refused, since it moves a key to
// another shard when one is down, and each shard would have a budget of its own.
// A client of a type that is not go-redis' own must return once its context is
// done.
func New(client redis.UniversalClient, cfg Config) (*Budget, error) {
	errs := checkClient(client)
	fault := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("redisalicaptcha: Config."+format, args...))
	}
	if cfg.Key == "" || !utf8.ValidString(cfg.Key) {
		fault("Key is empty or not UTF-8")
	}
	if cfg.Burst <= 0 {
		fault("Burst is %d; it must be above 0", cfg.Burst)
	}
	var interval time.Duration // in which the budget gains one
	switch {
	case !(cfg.Rate > 0 && cfg.Rate <= maxRate): // NaN too
		fault("Rate is %v; it must be above 0 and at most %d", float64(cfg.Rate), maxRate)
	case float64(time.Second)/float64(cfg.Rate)*float64(max(cfg.Burst, 1)) > float64(maxRefill):
		fault("Burst is more than Rate yields in %v", maxRefill)
	default:
		interval = time.Duration(math.Ceil(float64(time.Second) / float64(cfg.Rate)))
	}
	if cfg.Timeout < 0 || cfg.Timeout >= time.Second {
		fault("Timeout is %v; it must be below a second and not negative", cfg.Timeout)
	}
	if errs != nil {
		return nil, errors.Join(errs...)
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 50 * time.Millisecond
	}
	return &Budget{
		limiter: redis_rate.NewLimiter(client),
		key:     cfg.Key,
		limit:   redis_rate.Limit{Rate: 1, Period: interval, Burst: cfg.Burst},
		timeout: cfg.Timeout,
		breaker: gobreaker.NewCircuitBreaker[answer](gobreaker.Settings{
			ReadyToTrip: func(c gobreaker.Counts) bool { return c.ConsecutiveFailures > 0 },
			Timeout:     pause,
			MaxRequests: 1,
		}),
		logger: cfg.Logger,
		logs:   rate.Sometimes{Interval: time.Minute},
		start:  time.Now(),
	}, nil
}

// pause is how long Redis is not asked after it failed. Then one request tries it
// for all. Without a pause each request would wait for Timeout, and open a
// connection, as long as Redis is down.
const pause = 250 * time.Millisecond

// maxRefill bounds the time in which an empty budget becomes whole, so that no
// figure in Redis' script overflows or becomes coarse.
const maxRefill = 10 * 365 * 24 * time.Hour

// checkClient returns what is against a client.
func checkClient(client redis.UniversalClient) (errs []error) {
	if v := reflect.ValueOf(client); !v.IsValid() || v.Kind() == reflect.Pointer && v.IsNil() {
		return []error{errors.New("redisalicaptcha: the client is nil")}
	}
	var byContext bool
	var read, write time.Duration
	switch c := client.(type) {
	case *redis.Client:
		byContext, read, write = c.Options().ContextTimeoutEnabled, c.Options().ReadTimeout, c.Options().WriteTimeout
	case *redis.ClusterClient:
		byContext, read, write = c.Options().ContextTimeoutEnabled, c.Options().ReadTimeout, c.Options().WriteTimeout
	case *redis.Ring:
		return []error{errors.New("redisalicaptcha: the client is a Ring: its shards would have a budget each")}
	default:
		return nil
	}
	if !byContext {
		errs = append(errs, errors.New("redisalicaptcha: the client's ContextTimeoutEnabled is not set"))
	}
	if read < 0 || write < 0 { // go-redis sets no deadline then
		errs = append(errs, errors.New("redisalicaptcha: the client's ReadTimeout or WriteTimeout is -2"))
	}
	return errs
}

// Allow reports whether one more request may be let through: whether Redis said
// so in time. It returns soon after Timeout at the latest.
//
// Redis is not asked each time. After an answer that the budget is used up, it is
// not asked until the budget has gained one, or for a second if that is less; and
// while it fails, one call in a quarter of a second asks it.
func (b *Budget) Allow() bool {
	if b == nil || b.limiter == nil {
		return false
	}
	if b.now() < b.notBefore.Load() {
		b.refused.Add(1)
		return false
	}
	said, err := b.breaker.Execute(b.ask)
	switch {
	case err != nil:
		b.fail(err)
	case said == forgotten:
		b.fail(errForgotten)
	case said == no:
		b.refused.Add(1)
	case said == yes:
		b.allowed.Add(1)
		return true
	}
	return false
}

// An answer is what Redis says of one more request.
type answer int

const (
	no answer = iota
	yes
	forgotten // yes, but for having forgotten what it said before
)

// ask asks Redis.
func (b *Budget) ask() (said answer, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), b.timeout)
	defer cancel()
	defer func() {
		if p := recover(); p != nil { // redis_rate panics on an answer of another shape
			said, err = no, ownError(fmt.Sprintf("panic: %T", p))
		}
	}()
	asked, fullAt := b.now(), b.fullAt.Load()
	res, err := b.limiter.Allow(ctx, b.key, b.limit)
	answered := b.now()
	switch {
	case err != nil:
		return no, err
	case answered-asked > int64(b.timeout):
		return no, context.DeadlineExceeded
	}
	whole := b.limit.Period * time.Duration(b.limit.Burst)
	raise(&b.fullAt, asked+int64(min(res.ResetAfter, whole)))
	switch {
	case res.Allowed != 1:
		b.notBefore.Store(asked + int64(min(res.RetryAfter, time.Second)))
		return no, nil
	case b.forgot(res.ResetAfter, fullAt-answered):
		return forgotten, nil
	}
	return yes, nil
}

// now returns the time since start: of the monotonic clock.
func (b *Budget) now() int64 { return int64(time.Since(b.start)) }

// raise makes v at least n.
func raise(v *atomic.Int64, n int64) {
	for old := v.Load(); old < n && !v.CompareAndSwap(old, n); old = v.Load() {
	}
}

// forgot reports whether Redis has lost the count, as it does by a restart, a
// failover or an eviction: it would then give the whole Burst again. It said
// earlier that the budget will not be whole before missing has passed. What other
// replicas let in since then can only add to that, and so does the request that it
// now says yes to, after which the budget is whole in resetAfter. The clocks may
// differ by one in a thousand.
//
// Each such yes is spent all the same, so that after at most Burst of them Redis
// has caught up.
func (b *Budget) forgot(resetAfter time.Duration, missing int64) bool {
	return missing > 0 && int64(resetAfter-b.limit.Period) < missing-missing/1000-int64(time.Millisecond)
}

// fail counts and logs an answer that is none.
func (b *Budget) fail(err error) {
	b.failed.Add(1)
	if errors.Is(err, gobreaker.ErrOpenState) || errors.Is(err, gobreaker.ErrTooManyRequests) {
		return // the failure before is logged
	}
	due := false
	b.logs.Do(func() { due = true }) // the Logger is not called under its lock
	if !due {
		return
	}
	logger := b.logger
	if logger == nil {
		logger = slog.Default()
	}
	logger.Warn("captcha: the budget's Redis fails, so nobody is let in by it", "captcha.error", reason(err))
}

// An ownError is safe to log.
type ownError string

func (e ownError) Error() string { return string(e) }

const errForgotten = ownError("the count was lost")

// reason returns what may be logged of err: the first word of Redis' answer, such as
// OOM, or what the network or this package says. Other errors may come from
// anywhere, such as a provider of credentials.
func reason(err error) string {
	var fromRedis redis.Error
	var network *net.OpError
	var own ownError
	switch {
	case errors.As(err, &own):
		return own.Error()
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return "timeout"
	case errors.As(err, &network):
		return network.Error()
	case errors.As(err, &fromRedis):
		word, _, _ := strings.Cut(fromRedis.Error(), " ")
		return word[:min(len(word), 32)]
	}
	return fmt.Sprintf("%T", err)
}

// Stats are counts since [New].
type Stats struct {
	Allowed uint64 // let in
	Refused uint64 // refused because the budget is used up
	Failed  uint64 // refused because Redis did not answer in time, failed, or lost the count
}

// Stats returns how often Allow said what.
func (b *Budget) Stats() Stats {
	if b == nil {
		return Stats{}
	}
	return Stats{b.allowed.Load(), b.refused.Load(), b.failed.Load()}
}
