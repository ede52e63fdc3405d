package main

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/sony/gobreaker/v2"

	"github.com/alicaptcha/alicaptcha"
)

const (
	timeout   = 5 * time.Second // of a call, as in the gate by default
	heldAfter = time.Second     // a caller who waits for longer is held
)

// A service decides how a call ends that begins after it has run for a time.
type service func(after time.Duration, rnd *rand.Rand) answer

type answer int

const (
	passes answer = iota
	fails
	hangs
	refuses // junk
)

func failing(share float64) service {
	return func(_ time.Duration, rnd *rand.Rand) answer {
		if rnd.Float64() < share {
			return fails
		}
		return passes
	}
}

// flapping works and ends as down in turn, each for a time.
func flapping(each time.Duration, down answer) service {
	return func(after time.Duration, _ *rand.Rand) answer {
		if after/each%2 == 1 {
			return down
		}
		return passes
	}
}

// out is down from a time on, for another.
func out(from, lasting time.Duration, down answer) service {
	return func(after time.Duration, _ *rand.Rand) answer {
		if after >= from && after < from+lasting {
			return down
		}
		return passes
	}
}

// A contender makes what stands between the gate and the service.
type contender struct {
	name string
	wrap func(alicaptcha.Verifier) alicaptcha.Verifier
}

var (
	noBreaker = contender{"no breaker", func(v alicaptcha.Verifier) alicaptcha.Verifier { return v }}
	fiveInRow = contender{"five in a row", func(v alicaptcha.Verifier) alicaptcha.Verifier {
		return inRow{v, gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
			MaxRequests: 3,
			Timeout:     5 * time.Second,
			ReadyToTrip: func(c gobreaker.Counts) bool { return c.ConsecutiveFailures >= 5 },
			IsExcluded:  func(err error) bool { return errors.Is(err, errJunk) },
		})}
	}}
	ours = contender{"Breaker", func(v alicaptcha.Verifier) alicaptcha.Verifier {
		b, err := alicaptcha.NewBreaker(v, alicaptcha.BreakerConfig{Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			panic(err)
		}
		return b
	}}
	contenders = []contender{noBreaker, fiveInRow, ours}
)

// inRow is a breaker by the simplest rule.
type inRow struct {
	next    alicaptcha.Verifier
	circuit *gobreaker.TwoStepCircuitBreaker[struct{}]
}

func (b inRow) Verify(ctx context.Context, req alicaptcha.Request) (alicaptcha.Result, error) {
	done, err := b.circuit.Allow()
	if err != nil {
		return alicaptcha.Result{}, alicaptcha.ErrBreakerOpen
	}
	result, err := b.next.Verify(ctx, req)
	done(err)
	return result, err
}

var (
	errFailed = &alicaptcha.Error{Code: alicaptcha.ServiceUnavailable}
	errHung   = &alicaptcha.Error{Code: alicaptcha.ServiceTimeout}
	errJunk   = &alicaptcha.Error{Code: alicaptcha.RequestRefused, Status: 400}
)

// A scenario is what users and the service do.
type scenario struct {
	perSecond float64
	replicas  int           // each with a breaker of its own; users come to any
	lasting   time.Duration // in which users come
	service   service
	junk      float64 // the share of the calls that are junk, which a service that works refuses
}

// A login is how a call ended. Junk is left out.
type login struct {
	came, took time.Duration
	asked      bool // the service was
	passed     bool
	would      bool // the service would have let it pass
}

// run returns what became of the logins, in the order in which they came.
func (s scenario) run(c contender, seed uint64) []login {
	rnd := rand.New(rand.NewPCG(seed, 1))
	var replicas []alicaptcha.Verifier
	for range s.replicas {
		replicas = append(replicas, c.wrap(alicaptcha.VerifierFunc(call)))
	}
	var mu sync.Mutex
	var logins []login
	var underWay sync.WaitGroup
	start := time.Now()
	for {
		time.Sleep(time.Duration(rnd.ExpFloat64() / s.perSecond * float64(time.Second)))
		came := time.Since(start)
		if came > s.lasting {
			break
		}
		f := &fate{answer: s.service(came, rnd), takes: latency(rnd)}
		isJunk := rnd.Float64() < s.junk
		if isJunk && f.answer == passes {
			f.answer = refuses
		}
		v := replicas[rnd.IntN(len(replicas))]
		underWay.Go(func() {
			ctx, cancel := context.WithTimeout(context.WithValue(context.Background(), fateKey{}, f), timeout)
			defer cancel()
			_, err := v.Verify(ctx, alicaptcha.Request{Param: "p"})
			if isJunk {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			took := time.Since(start) - came
			logins = append(logins, login{came, took, f.asked, err == nil, f.answer == passes})
		})
	}
	underWay.Wait()
	slices.SortFunc(logins, func(a, b login) int { return cmp.Compare(a.came, b.came) })
	return logins
}

type fateKey struct{}

// A fate is what will become of a call, if it is made.
type fate struct {
	answer answer
	takes  time.Duration
	asked  bool
}

func call(ctx context.Context, _ alicaptcha.Request) (alicaptcha.Result, error) {
	f := ctx.Value(fateKey{}).(*fate)
	f.asked = true
	if f.answer == hangs {
		<-ctx.Done()
		return alicaptcha.Result{}, errHung
	}
	time.Sleep(f.takes)
	switch f.answer {
	case fails:
		return alicaptcha.Result{}, errFailed
	case refuses:
		return alicaptcha.Result{}, errJunk
	}
	return alicaptcha.Result{Passed: true, Code: alicaptcha.T001}, nil
}

// latency is between 20 and 60 ms, and 250 ms for one in fifty.
func latency(rnd *rand.Rand) time.Duration {
	if rnd.IntN(50) == 0 {
		return 250 * time.Millisecond
	}
	return 20*time.Millisecond + time.Duration(rnd.Int64N(int64(40*time.Millisecond)))
}
