package alicaptcha

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"sync"
	"time"

	"github.com/sony/gobreaker/v2"
)

// BreakerConfig configures [NewBreaker]. The zero value is usable.
type BreakerConfig struct {
	// Failures is how many calls in a row must fail to open the breaker. If
	// zero, it is 5.
	Failures int

	// OpenFor is how long the breaker stays open before it lets probes
	// through. If zero, it is 5 s.
	OpenFor time.Duration

	// Probes is how many calls it then lets through. If all succeed it closes,
	// and if one fails it opens again. If zero, it is 3.
	Probes int

	// Logger is told of changes of state. If nil, it is slog.Default.
	Logger *slog.Logger

	_ [0]func() // fields by name only
}

// ErrBreakerOpen is in the chain of the error that a [Breaker] returns without
// asking its Verifier.
var ErrBreakerOpen = errors.New("alicaptcha: the breaker is open")

// Breaker is a [Verifier] that asks another one until the service fails, and then
// answers ServiceUnavailable at once, with [ErrBreakerOpen] as the cause, until
// it has recovered. It is safe for concurrent use; the gates of several routes
// should share one. A nil or zero Breaker answers Misconfigured.
//
// ServiceTimeout, ServiceUnavailable and any error that is no *Error are
// failures. A verdict is a success, a rejection too, and so are ServiceThrottled and
// Misconfigured. What a client can bring about without the service does not count,
// RequestRefused and Overloaded among it, nor does a call that was canceled or
// panicked: else junk would keep real users out, or waiting for a service that hangs.
type Breaker struct {
	verifier Verifier
	circuit  *gobreaker.TwoStepCircuitBreaker[Result]
	logger   *slog.Logger // nil: slog.Default

	mu      sync.Mutex
	changes []stateChange // not logged yet

	_ [0]func()
}

// BreakerState is the state of a [Breaker]: "closed", in which it asks its
// Verifier, "open", in which it does not, or "half-open", in which it lets probes
// through.
type BreakerState string

// NewBreaker returns a Breaker that asks v, or an error that joins every fault of
// the arguments. The Logger of cfg is called outside of the Breaker's locks, by the
// call that brought the change of state about.
func NewBreaker(v Verifier, cfg BreakerConfig) (*Breaker, error) {
	var errs []error
	if isNil(v) {
		errs = append(errs, errors.New("alicaptcha: NewBreaker: the Verifier is nil"))
	}
	if cfg.Failures < 0 || cfg.Failures > math.MaxInt32 {
		errs = append(errs, errors.New("alicaptcha: BreakerConfig.Failures is negative or too large"))
	}
	if cfg.OpenFor < 0 {
		errs = append(errs, errors.New("alicaptcha: BreakerConfig.OpenFor is negative"))
	}
	if cfg.Probes < 0 || cfg.Probes > math.MaxInt32 {
		errs = append(errs, errors.New("alicaptcha: BreakerConfig.Probes is negative or too large"))
	}
	if errs != nil {
		return nil, errors.Join(errs...)
	}
	if cfg.Failures == 0 {
		cfg.Failures = 5
	}
	if cfg.OpenFor == 0 {
		cfg.OpenFor = 5 * time.Second
	}
	if cfg.Probes == 0 {
		cfg.Probes = 3
	}
	b := &Breaker{verifier: v, logger: cfg.Logger}
	b.circuit = gobreaker.NewTwoStepCircuitBreaker[Result](gobreaker.Settings{
		MaxRequests:   uint32(cfg.Probes),
		Timeout:       cfg.OpenFor,
		ReadyToTrip:   func(c gobreaker.Counts) bool { return c.ConsecutiveFailures >= uint32(cfg.Failures) },
		IsExcluded:    func(err error) bool { return err == errNeutral },
		OnStateChange: b.noteChange,
	})
	return b, nil
}

type stateChange struct{ from, to gobreaker.State }

// noteChange is called under the circuit's lock, where a Logger would hold up
// every other call.
func (b *Breaker) noteChange(_ string, from, to gobreaker.State) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.changes = append(b.changes, stateChange{from, to})
}

func (b *Breaker) logChanges() {
	b.mu.Lock()
	changes := b.changes
	b.changes = nil
	b.mu.Unlock()
	for _, change := range changes {
		logState(b.logger, change.from, change.to)
	}
}

// State returns the state. Once OpenFor has passed it moves the breaker from open to
// half-open, and logs that, as a call would. A nil or zero Breaker is open.
func (b *Breaker) State() BreakerState {
	if b == nil || b.circuit == nil {
		return BreakerState(gobreaker.StateOpen.String())
	}
	defer b.logChanges()
	return BreakerState(b.circuit.State().String())
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

// Verify asks the Verifier, unless the breaker is open. It changes no answer.
func (b *Breaker) Verify(ctx context.Context, req Request) (Result, error) {
	if b == nil || b.circuit == nil {
		return Result{}, &Error{Code: Misconfigured, Err: errNoBreaker}
	}
	done, err := b.circuit.Allow()
	if err != nil {
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
		level, text = slog.LevelWarn, "captcha: the breaker is open, the service is not asked"
	}
	logger.LogAttrs(context.Background(), level, text,
		slog.String("captcha.breaker_from", from.String()), slog.String("captcha.breaker", to.String()))
}
