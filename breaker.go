package alicaptcha

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"math"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/sony/gobreaker/v2"
)

// BreakerConfig configures [NewBreaker]. The zero value is usable.
type BreakerConfig struct {
	// Failures is how many calls in a row must fail to open the breaker. Zero
	// means 5. A call that does not count, see [Breaker], does not end a row.
	Failures int

	// FailureRatio is a second condition, besides Failures: the share of the calls
	// of the last Window that must have failed. At a high rate, a few failures in a
	// row are no sign of an outage. It applies if at least MinCalls have ended within
	// Window. It is at most 1. Zero means 0.8.
	FailureRatio float64

	// Window is how long a call counts for FailureRatio, measured from its end and
	// in steps of a tenth of Window. It is 1 ms to 24 h. Zero means 1 s, which is
	// short enough that earlier successes do not outweigh calls that hang.
	Window time.Duration

	// MinCalls is how many calls must have ended within Window for FailureRatio to
	// apply. With fewer, Failures in a row open the breaker. Zero means 10.
	MinCalls int

	// OpenFor is how long the breaker stays open, at most, before it lets probes
	// through. Zero means 5 s. The first opening lasts 1/40 of OpenFor. After each
	// failed probe the next one is a quarter longer. It is 1/40 again after a probe
	// that succeeded, or after the breaker was closed for at least Window. Every
	// opening is shortened at random by up to half, so that replicas do not probe
	// together.
	OpenFor time.Duration

	// Probes is how many calls must succeed after an opening to close the breaker.
	// If one fails, it opens again. Zero means 3. The first probe is alone, and the
	// others are let through together once it has succeeded, so that a service that
	// hangs holds one caller at a time.
	Probes int

	// Logger receives a line for each change of state: at warn when a closed breaker
	// opens, and otherwise at info, so that the failed probes of a long outage do not
	// repeat the warning. Nil means slog.Default.
	Logger *slog.Logger

	_ [0]func() // fields by name only
}

// ErrBreakerOpen is in the chain of the error that a [Breaker] returns without
// asking its Verifier.
var ErrBreakerOpen = errors.New("alicaptcha: the breaker is open")

// A Breaker is a [Verifier] that asks another one. When the service fails repeatedly,
// the Breaker opens: it answers ServiceUnavailable at once, with [ErrBreakerOpen] as
// the cause, until the service has recovered. It is safe for concurrent use; the gates
// of several routes should share one. A nil or zero Breaker answers Misconfigured.
//
// ServiceTimeout, ServiceUnavailable and any error that is not an *Error are failures.
// Every verdict is a success, even a rejection, and so are ServiceThrottled and
// Misconfigured. What a client can cause does not count: RequestRefused, Overloaded,
// ParamMalformed, ParamTooLarge, and a call that was canceled or panicked. Otherwise
// junk could open the breaker and keep real users out, or keep it closed while the
// service hangs.
type Breaker struct {
	verifier Verifier
	cfg      BreakerConfig
	circuit  *gobreaker.TwoStepCircuitBreaker[Result]

	mu         sync.Mutex    // held by every use of circuit, and so in what it calls
	generation int           // of the state: how often it has changed
	changes    []stateChange // that are not logged yet
	failures   int           // in a row
	recovering bool          // a probe has succeeded since it became half-open
	closed     time.Time     // when it closed last
	opening    time.Duration // the length of the last opening, before it was shortened
	until      time.Time     // the end of the last opening

	_ [0]func()
}

// BreakerState is the state of a [Breaker]: "closed", in which it asks its
// Verifier, "open", in which it does not, or "half-open", in which it lets probes
// through.
type BreakerState string

// NewBreaker returns a Breaker that asks v, or an error that joins all faults of the
// arguments. The Logger of cfg is called by the call that caused the change of state,
// while no lock of the Breaker is held.
func NewBreaker(v Verifier, cfg BreakerConfig) (*Breaker, error) {
	var errs []error
	check := func(ok bool, fault string) {
		if !ok {
			errs = append(errs, errors.New("alicaptcha: "+fault))
		}
	}
	check(!isNil(v), "NewBreaker: the Verifier is nil")
	check(cfg.Failures >= 0, "BreakerConfig.Failures is negative")
	check(cfg.FailureRatio >= 0 && cfg.FailureRatio <= 1, "BreakerConfig.FailureRatio is not between 0 and 1")
	check(cfg.Window == 0 || cfg.Window >= time.Millisecond && cfg.Window <= 24*time.Hour,
		"BreakerConfig.Window is not between 1 ms and 24 h")
	check(cfg.MinCalls >= 0, "BreakerConfig.MinCalls is negative")
	check(cfg.OpenFor >= 0, "BreakerConfig.OpenFor is negative")
	check(cfg.Probes >= 0 && cfg.Probes <= math.MaxInt32, "BreakerConfig.Probes is negative or too large")
	if errs != nil {
		return nil, errors.Join(errs...)
	}
	cfg.Failures = cmp.Or(cfg.Failures, 5)
	cfg.FailureRatio = cmp.Or(cfg.FailureRatio, 0.8)
	cfg.Window = cmp.Or(cfg.Window, time.Second)
	cfg.MinCalls = cmp.Or(cfg.MinCalls, 10)
	cfg.OpenFor = cmp.Or(cfg.OpenFor, 5*time.Second)
	cfg.Probes = cmp.Or(cfg.Probes, 3)
	b := &Breaker{verifier: v, cfg: cfg}
	b.circuit = gobreaker.NewTwoStepCircuitBreaker[Result](gobreaker.Settings{
		MaxRequests:   uint32(cfg.Probes),
		Interval:      cfg.Window,
		BucketPeriod:  cfg.Window / 10,
		Timeout:       1, // the same for every opening; b.until is the end of one
		ReadyToTrip:   b.isFailing,
		IsExcluded:    func(err error) bool { return err == errNeutral },
		OnStateChange: b.noteChange,
	})
	return b, nil
}

// isFailing reports whether a failure opens the circuit. The circuit's own count of
// failures in a row is not used, because it forgets those that have left the window.
func (b *Breaker) isFailing(c gobreaker.Counts) bool {
	if b.failures < b.cfg.Failures {
		return false
	}
	calls := float64(c.TotalSuccesses) + float64(c.TotalFailures)
	return calls < float64(b.cfg.MinCalls) || float64(c.TotalFailures) >= b.cfg.FailureRatio*calls
}

type stateChange struct{ from, to gobreaker.State }

// noteChange is called by the circuit, and so under b.mu. It leaves the logging to
// logChanges, because a Logger would hold up every other call here.
func (b *Breaker) noteChange(_ string, from, to gobreaker.State) {
	now := time.Now()
	switch to {
	case gobreaker.StateOpen:
		b.setOpening(from, now)
		b.until = now.Add(b.opening - rand.N(b.opening/2+1))
	case gobreaker.StateClosed:
		b.closed = now
	}
	b.recovering = false
	b.generation++
	b.changes = append(b.changes, stateChange{from, to})
}

// setOpening sets the length of an opening that begins now.
func (b *Breaker) setOpening(from gobreaker.State, now time.Time) {
	if b.recovering || from == gobreaker.StateClosed && now.Sub(b.closed) >= b.cfg.Window {
		b.opening = b.cfg.OpenFor / 40
	} else {
		b.opening += min(b.opening/4, b.cfg.OpenFor-b.opening)
	}
}

func (b *Breaker) logChanges() {
	b.mu.Lock()
	changes := b.changes
	b.changes = nil
	b.mu.Unlock()
	for _, change := range changes {
		logState(b.cfg.Logger, change.from, change.to)
	}
}

// State returns the state. If an opening is over, it moves the breaker from open to
// half-open and logs that, as a call would. A nil or zero Breaker is open.
func (b *Breaker) State() BreakerState {
	if b == nil || b.circuit == nil {
		return BreakerState(gobreaker.StateOpen.String())
	}
	defer b.logChanges()
	b.mu.Lock()
	defer b.mu.Unlock()
	return BreakerState(b.state().String())
}

// state returns the state of the circuit, which is not asked during an opening: it
// would be half-open at once.
func (b *Breaker) state() gobreaker.State {
	if time.Now().Before(b.until) {
		return gobreaker.StateOpen
	}
	return b.circuit.State()
}

var (
	errBreakerOpen = safeError{"the breaker is open", ErrBreakerOpen}
	errNoBreaker   = safeError{text: "a Breaker that NewBreaker did not make"}
)

// What the circuit is told of a call that had no answer.
var (
	errFailed  = errors.New("the service failed")
	errNeutral = errors.New("the call says nothing of the service")
)

// Verify asks the Verifier, unless the breaker is open, and returns its answer
// unchanged.
func (b *Breaker) Verify(ctx context.Context, req Request) (Result, error) {
	if b == nil || b.circuit == nil {
		return Result{}, &Error{Code: Misconfigured, Err: errNoBreaker}
	}
	done := b.begin()
	if done == nil {
		b.logChanges()
		return Result{}, &Error{Code: ServiceUnavailable, Err: errBreakerOpen}
	}
	end := errNeutral // of a panic: a param that brings one about must not open the breaker
	defer func() {    // before a Logger is called, which may panic
		done(end)
		b.logChanges()
	}()
	b.logChanges()
	result, err := b.verifier.Verify(ctx, req)
	end = breakerResult(ctx, err)
	return result, err
}

// begin returns the function to call with the end of a call, or nil if the service must
// not be asked.
func (b *Breaker) begin() (done func(error)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var probed func(error)
	switch b.state() {
	case gobreaker.StateOpen:
		return nil
	case gobreaker.StateHalfOpen:
		c := b.circuit.Counts()
		if c.Requests > 0 && c.TotalSuccesses+c.TotalExclusions == 0 {
			return nil // the first probe may be hanging
		}
		var err error
		if probed, err = b.circuit.Allow(); err != nil {
			return nil
		}
	}
	generation := b.generation
	return func(end error) {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.generation == generation { // an earlier state's call says nothing of this one
			b.count(probed, end)
		}
	}
}

// count tells the circuit how a call has ended, by probed if it was a probe. Any other
// call is counted as one that begins now, because the circuit ignores those that have
// taken longer than its window, which are the calls that hung.
func (b *Breaker) count(probed func(error), end error) {
	switch end {
	case nil:
		b.failures, b.recovering = 0, probed != nil
	case errFailed:
		b.failures++
	}
	if probed == nil {
		probed, _ = b.circuit.Allow() // never refused while it is closed
	}
	probed(end)
}

// breakerResult returns what the circuit is told of a call that ended with err.
func breakerResult(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	// As in the gate the context comes first, whatever a Verifier makes of it.
	if errors.Is(ctx.Err(), context.Canceled) || errors.Is(err, context.Canceled) {
		return errNeutral
	}
	e, _ := errors.AsType[*Error](err)
	if e == nil {
		return errFailed
	}
	switch e.Code {
	case ClientCanceled, RequestRefused, Overloaded, ParamMalformed, ParamTooLarge:
		return errNeutral // not the service's word, or its word on junk
	case ServiceThrottled, Misconfigured:
		return nil
	}
	return errFailed
}

func logState(logger *slog.Logger, from, to gobreaker.State) {
	if logger == nil {
		logger = slog.Default()
	}
	level, text := slog.LevelInfo, "captcha: the breaker is "+to.String()
	if to == gobreaker.StateOpen {
		text += ", the service is not asked"
	}
	if from == gobreaker.StateClosed {
		level = slog.LevelWarn
	}
	logger.LogAttrs(context.Background(), level, text,
		slog.String("captcha.breaker_from", from.String()), slog.String("captcha.breaker", to.String()))
}
