package alicaptcha

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/sony/gobreaker/v2"
)

// BreakerConfig configures [Breaker]. The zero value is usable.
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

// Breaker returns a Verifier that asks v until the service fails, and then
// answers ServiceUnavailable at once, with [ErrBreakerOpen] as the cause, until
// it has recovered. It is safe for concurrent use; the gates of several routes
// should share one. The error joins every fault of the arguments.
//
// ServiceTimeout, ServiceUnavailable and any error that is no *Error are
// failures. Everything that the service answered is a success, rejections,
// refusals and throttling too: else junk would keep real users out. A call that
// the client cancelled does not count.
//
// A probe is not cancelled with its client: it runs to the deadline of its
// context, or for 5 s where that has none, so that nobody can keep the breaker
// open by hanging up.
func Breaker(v Verifier, cfg BreakerConfig) (Verifier, error) {
	var errs []error
	if isNil(v) {
		errs = append(errs, errors.New("alicaptcha: Breaker: the Verifier is nil"))
	}
	if cfg.Failures < 0 {
		errs = append(errs, errors.New("alicaptcha: BreakerConfig.Failures is negative"))
	}
	if cfg.OpenFor < 0 {
		errs = append(errs, errors.New("alicaptcha: BreakerConfig.OpenFor is negative"))
	}
	if cfg.Probes < 0 {
		errs = append(errs, errors.New("alicaptcha: BreakerConfig.Probes is negative"))
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
	return &breaker{v, gobreaker.NewCircuitBreaker[Result](gobreaker.Settings{
		MaxRequests:   uint32(cfg.Probes),
		Timeout:       cfg.OpenFor,
		ReadyToTrip:   func(c gobreaker.Counts) bool { return c.ConsecutiveFailures >= uint32(cfg.Failures) },
		IsSuccessful:  isAnswer,
		IsExcluded:    isCanceled,
		OnStateChange: func(_ string, from, to gobreaker.State) { logState(cfg.Logger, from, to) },
	})}, nil
}

type breaker struct {
	verifier Verifier
	circuit  *gobreaker.CircuitBreaker[Result]
}

func (b *breaker) Verify(ctx context.Context, req Request) (Result, error) {
	if b.circuit.State() != gobreaker.StateClosed {
		deadline, ok := ctx.Deadline()
		if !ok {
			deadline = time.Now().Add(defaultTimeout)
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(context.WithoutCancel(ctx), deadline)
		defer cancel()
	}
	result, err := b.circuit.Execute(func() (Result, error) {
		result, err := b.verifier.Verify(ctx, req)
		if err == nil {
			if _, ok := result.strict(); !ok {
				err = errNoVerdict // for the circuit to count
			}
		}
		return result, err
	})
	if err == errNoVerdict {
		return result, nil
	}
	if errors.Is(err, gobreaker.ErrOpenState) || errors.Is(err, gobreaker.ErrTooManyRequests) {
		return Result{}, &Error{Code: ServiceUnavailable, Err: safeError{"the breaker is open", ErrBreakerOpen}}
	}
	return result, err
}

// isAnswer reports whether err leaves no doubt that the service answers.
func isAnswer(err error) bool {
	if err == nil {
		return true
	}
	e, _ := errors.AsType[*Error](err)
	if e == nil {
		return false
	}
	_, ours := codes[e.Code]
	return ours && e.Code.letter() == 0 && e.Code != ServiceTimeout && e.Code != ServiceUnavailable && e.Code != ParamMissing
}

// isCanceled reports whether err is the client's end of the call.
func isCanceled(err error) bool {
	if e, ok := errors.AsType[*Error](err); ok {
		return e != nil && e.Code == ClientCanceled
	}
	return errors.Is(err, context.Canceled)
}

func logState(logger *slog.Logger, from, to gobreaker.State) {
	if logger == nil {
		logger = slog.Default()
	}
	level, text := slog.LevelInfo, "captcha: the breaker is "+to.String()
	if to == gobreaker.StateOpen {
		level, text = slog.LevelWarn, "captcha: the breaker is open, the service is not asked"
	}
	logger.LogAttrs(context.Background(), level, text, slog.String("captcha.breaker_from", from.String()), slog.String("captcha.breaker", to.String()))
}
