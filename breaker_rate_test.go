package alicaptcha_test

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
)

// A visit is how one call of many fared.
type visit struct {
	came, took time.Duration
	asked      bool
	err        error
}

// visits asks b at a rate, with a deadline of 5 s each. The service of s is asked as a
// function of the time since the beginning; it hangs where that returns errTimeout.
func visits(perSecond int, lasting time.Duration, service func(time.Duration) error,
	breakers ...func(alicaptcha.Verifier) alicaptcha.Verifier,
) []visit {
	start := time.Now()
	type key struct{}
	var mu sync.Mutex // service is called by one at a time
	var replicas []alicaptcha.Verifier
	for _, breaker := range breakers {
		replicas = append(replicas, breaker(alicaptcha.VerifierFunc(
			func(ctx context.Context, _ alicaptcha.Request) (alicaptcha.Result, error) {
				ctx.Value(key{}).(*visit).asked = true
				mu.Lock()
				err := service(time.Since(start))
				mu.Unlock()
				if err == errTimeout {
					<-ctx.Done()
				}
				time.Sleep(20 * time.Millisecond)
				return alicaptcha.Result{Passed: err == nil}, err
			})))
	}
	all := make([]visit, int(lasting.Seconds()*float64(perSecond)))
	var underWay sync.WaitGroup
	for i := range all {
		underWay.Go(func() {
			v := &all[i]
			v.came = time.Since(start)
			ctx, cancel := context.WithTimeout(context.WithValue(context.Background(), key{}, v), 5*time.Second)
			defer cancel()
			_, v.err = replicas[i%len(replicas)].Verify(ctx, alicaptcha.Request{Param: "p"})
			v.took = time.Since(start) - v.came
		})
		time.Sleep(time.Second / time.Duration(perSecond))
	}
	underWay.Wait()
	return all
}

func share(all []visit, of func(visit) bool) float64 {
	n := 0
	for _, v := range all {
		if of(v) {
			n++
		}
	}
	return float64(n) / float64(len(all))
}

func failed(v visit) bool { return v.err != nil }

// A service that fails a part of its calls makes no more of the users fail than that.
func TestBreakerOfAServiceThatFailsInPart(t *testing.T) {
	t.Parallel()
	for _, perSecond := range []int{75, 500} {
		for _, p := range []float64{.2, .3, .5} {
			synctest.Test(t, func(t *testing.T) {
				rnd := rand.New(rand.NewPCG(1, 2)) // one that does not begin with five failures
				all := visits(perSecond, 20*time.Second, func(time.Duration) error {
					if rnd.Float64() < p {
						return errors.New("failed")
					}
					return nil
				}, withBreaker(t))
				require.InDelta(t, p, share(all, func(v visit) bool { return v.asked && failed(v) }), .03)
				require.LessOrEqual(t, share(all, failed), 1.2*p, "%d a second", perSecond)
			})
		}
	}
}

func withBreaker(t *testing.T) func(alicaptcha.Verifier) alicaptcha.Verifier {
	return func(v alicaptcha.Verifier) alicaptcha.Verifier { return newBreaker(t, v, alicaptcha.BreakerConfig{}) }
}

// A service that hangs holds nobody beyond those who came before its first timeouts, but
// one caller at a time, to see whether it still does.
func TestBreakerOfAServiceThatHangs(t *testing.T) {
	t.Parallel()
	for _, perSecond := range []int{1, 10, 75, 500} {
		synctest.Test(t, func(t *testing.T) {
			atFirst := 5020*perSecond/1000 + 5
			all := visits(perSecond, time.Minute, func(came time.Duration) error {
				if came < 10*time.Second {
					return nil
				}
				return errTimeout
			}, withBreaker(t))
			held, until := 0, time.Duration(0)
			for _, v := range all {
				if v.took < time.Second {
					continue
				}
				if held++; held > atFirst {
					require.GreaterOrEqual(t, v.came, until, "one at a time")
					until = v.came + v.took
				}
			}
			require.Greater(t, held, atFirst+5, "it looks again and again")
		})
	}
}

// With a service that works and fails in turn few more are turned away than it fails,
// whoever many replicas there are.
func TestBreakerOfAServiceThatFlaps(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		all := visits(140, 2*time.Minute, func(came time.Duration) error {
			if came/(2*time.Second)%2 == 1 {
				return errors.New("failed")
			}
			return nil
		}, withBreaker(t), withBreaker(t))
		require.InDelta(t, .55, share(all, failed), .05)
		require.Greater(t, share(all, func(v visit) bool { return !v.asked }), .2, "it opens")
	})
}

// openFor returns how long b stays open from now on.
func openFor(t *testing.T, b *alicaptcha.Breaker) time.Duration {
	t.Helper()
	start := time.Now()
	for b.State() == "open" {
		require.Less(t, time.Since(start), time.Minute)
		time.Sleep(10 * time.Millisecond)
	}
	return time.Since(start)
}

func TestBreakerOpensLongerAndLonger(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &script{err: errTimeout}
		b := newBreaker(t, s, alicaptcha.BreakerConfig{Failures: 1, OpenFor: 40 * time.Second, Probes: 2})
		isLike := func(length time.Duration) (took time.Duration) {
			t.Helper()
			require.True(t, call(t, b, s))
			took = openFor(t, b)
			require.GreaterOrEqual(t, took, length/2)
			require.LessOrEqual(t, took, length+10*time.Millisecond)
			return took
		}
		length := time.Second
		for range 17 { // 1.25^17 is above 40
			isLike(length)
			length += length / 4
		}
		shortest, longest := time.Hour, time.Duration(0)
		for range 30 {
			took := isLike(40 * time.Second)
			shortest, longest = min(shortest, took), max(longest, took)
		}
		require.Less(t, shortest, 25*time.Second, "at random")
		require.Greater(t, longest, 35*time.Second)

		s.answer(nil)
		calls(t, b, s, 3, nil)
		require.EqualValues(t, "closed", b.State())
		time.Sleep(999 * time.Millisecond)
		s.answer(errTimeout)
		isLike(40 * time.Second) // it was closed for less than Window

		calls(t, b, s, 1, nil)
		s.answer(errTimeout)
		for _, length := range []time.Duration{1000, 1250, 1562, 1953, 2441, 3051, 3814, 4768} {
			isLike(length * time.Millisecond) // from the beginning, after a probe that succeeded
		}

		calls(t, b, s, 2, nil)
		time.Sleep(time.Second)
		s.answer(errTimeout)
		isLike(time.Second) // and for no less
	})
}

// calls makes n calls that end with err.
func calls(t *testing.T, b *alicaptcha.Breaker, s *script, n int, err error) {
	t.Helper()
	s.answer(err)
	for i := range n {
		require.True(t, call(t, b, s), "%d", i)
	}
}

func TestBreakerRatio(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name     string
		cfg      alicaptcha.BreakerConfig
		good     int           // calls that succeed
		since    time.Duration // from those to the others
		failures int           // that open it
	}{
		{"no other calls", alicaptcha.BreakerConfig{}, 0, 0, 5},
		{"few", alicaptcha.BreakerConfig{}, 4, 0, 5},
		{"ten, of which half fail", alicaptcha.BreakerConfig{}, 5, 0, 20},
		{"many", alicaptcha.BreakerConfig{}, 100, 0, 400},
		{"within the window", alicaptcha.BreakerConfig{}, 100, 800 * time.Millisecond, 400},
		{"not any more", alicaptcha.BreakerConfig{}, 100, 1100 * time.Millisecond, 5},
		{"long ago", alicaptcha.BreakerConfig{}, 100, time.Hour, 5},
		{"a long window", alicaptcha.BreakerConfig{Window: time.Hour}, 100, 50 * time.Minute, 400},
		{"a short one", alicaptcha.BreakerConfig{Window: time.Millisecond}, 100, 2 * time.Millisecond, 5},
		{"half", alicaptcha.BreakerConfig{FailureRatio: .5}, 100, 0, 100},
		{"all", alicaptcha.BreakerConfig{FailureRatio: 1}, 4, 0, 5},
		{"many are few here", alicaptcha.BreakerConfig{MinCalls: 106}, 100, 0, 5},
		{"few are many here", alicaptcha.BreakerConfig{MinCalls: 1}, 4, 0, 16},
		{"more in a row", alicaptcha.BreakerConfig{Failures: 500}, 100, 0, 500},
		{"and over a long time", alicaptcha.BreakerConfig{Failures: 50}, 1, time.Hour, 50},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := new(script)
				b := newBreaker(t, s, row.cfg)
				calls(t, b, s, row.good, nil)
				time.Sleep(row.since)
				calls(t, b, s, row.failures, errTimeout)
				require.EqualValues(t, "open", b.State())
			})
		})
	}
}

// However few calls there are, failures in a row are not forgotten.
func TestBreakerAtALowRate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &script{err: errTimeout}
		b := newBreaker(t, s, alicaptcha.BreakerConfig{})
		for range 5 {
			require.True(t, call(t, b, s))
			require.True(t, s.count() < 5 || b.State() == "open")
			time.Sleep(time.Hour)
		}
	})
}

// A probe that is under way keeps others from waiting. Once one has ended well, the
// others are let through together.
func TestBreakerProbesAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		held := make(chan error)
		v := alicaptcha.VerifierFunc(func(ctx context.Context, _ alicaptcha.Request) (alicaptcha.Result, error) {
			return alicaptcha.Result{}, <-held
		})
		b := newBreaker(t, v, alicaptcha.BreakerConfig{Failures: 1, Probes: 4})
		var underWay sync.WaitGroup
		// asks lets so many calls begin at once and returns how many were turned away.
		asks := func(n int) (away int) {
			var mu sync.Mutex
			for range n {
				underWay.Go(func() {
					_, err := b.Verify(context.Background(), alicaptcha.Request{Param: "p"})
					mu.Lock()
					defer mu.Unlock()
					if errors.Is(err, alicaptcha.ErrBreakerOpen) {
						away++
					}
				})
			}
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			return away
		}
		asks(1)
		held <- errTimeout
		synctest.Wait()
		for _, end := range []error{errTimeout, errTimeout} { // again and again
			time.Sleep(5 * time.Second)
			require.Equal(t, 9, asks(10))
			time.Sleep(time.Hour)
			require.Equal(t, 10, asks(10), "for as long as it takes")
			held <- end
			synctest.Wait()
			require.EqualValues(t, "open", b.State())
		}
		time.Sleep(5 * time.Second)
		require.Equal(t, 9, asks(10))
		held <- nil
		synctest.Wait()
		require.Equal(t, 7, asks(10), "four are let through, one of which has ended")
		held <- errJunk
		synctest.Wait()
		require.Equal(t, 9, asks(10), "junk gives its place to another")
		for range 3 {
			require.EqualValues(t, "half-open", b.State())
			held <- nil
			synctest.Wait()
		}
		require.EqualValues(t, "closed", b.State())
		underWay.Wait()
	})
}

// What calls of an earlier state come to in the end moves nothing.
func TestBreakerIsNotMovedByLateCalls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		held := make(chan error)
		isHeld := true
		s := new(script)
		v := alicaptcha.VerifierFunc(func(ctx context.Context, req alicaptcha.Request) (alicaptcha.Result, error) {
			if isHeld {
				return alicaptcha.Result{}, <-held
			}
			return s.Verify(ctx, req)
		})
		b := newBreaker(t, v, alicaptcha.BreakerConfig{Failures: 1, Probes: 2})
		var underWay sync.WaitGroup
		for range 12 {
			underWay.Go(func() { b.Verify(context.Background(), alicaptcha.Request{Param: "p"}) })
		}
		synctest.Wait()
		isHeld = false
		late := func(state alicaptcha.BreakerState) {
			t.Helper()
			for _, end := range []error{nil, errTimeout, errJunk} {
				held <- end
				synctest.Wait()
				require.Equal(t, state, b.State())
			}
		}
		calls(t, b, s, 1, errTimeout)
		late("open")
		time.Sleep(5 * time.Second)
		s.answer(nil)
		require.True(t, call(t, b, s))
		late("half-open")
		require.True(t, call(t, b, s))
		late("closed")
		late("closed")
		underWay.Wait()
	})
}

// However much junk comes with them, those who are in the right close the breaker, and
// while there are none it neither closes nor holds anybody.
func TestBreakerIsNotMovedByFloods(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := 0
		all := visits(750, 20*time.Second, func(came time.Duration) error {
			n++
			switch {
			case n%10 != 0:
				return errJunk
			case came < 10*time.Second:
				return errors.New("failed")
			}
			return nil
		}, withBreaker(t))
		after := func(from time.Duration) func(visit) bool {
			return func(v visit) bool { return v.came >= from && !v.asked }
		}
		require.Greater(t, share(all, after(0)), .3, "an outage is seen")
		require.Zero(t, share(all, after(16*time.Second)), "and so is its end")
	})
	synctest.Test(t, func(t *testing.T) {
		s := &script{err: errTimeout}
		b := newBreaker(t, s, alicaptcha.BreakerConfig{})
		calls(t, b, s, 5, errTimeout)
		time.Sleep(5 * time.Second)
		calls(t, b, s, 1000, errJunk)
		require.EqualValues(t, "half-open", b.State(), "junk does not close it")
	})
}

func TestBreakerRatioConfig(t *testing.T) {
	t.Parallel()
	for _, cfg := range []alicaptcha.BreakerConfig{
		{FailureRatio: -.1}, {FailureRatio: 1.01}, {FailureRatio: math.NaN()}, {FailureRatio: math.Inf(1)},
		{Window: -1}, {Window: time.Millisecond - 1}, {Window: 24*time.Hour + 1}, {MinCalls: -1}, {Probes: math.MaxInt},
	} {
		_, err := alicaptcha.NewBreaker(new(script), cfg)
		require.ErrorContains(t, err, "alicaptcha: BreakerConfig.")
	}
	for _, cfg := range []alicaptcha.BreakerConfig{
		{FailureRatio: 1e-9}, {FailureRatio: 1}, {Window: time.Millisecond}, {MinCalls: math.MaxInt},
		{Failures: 1, OpenFor: 1}, {Failures: 1, OpenFor: math.MaxInt64, Window: 24 * time.Hour},
	} {
		s := new(script)
		b := newBreaker(t, s, cfg)
		calls(t, b, s, cfg.Failures, errTimeout)
		require.Equal(t, cfg.Failures == 0, b.State() == "closed")
	}
}
