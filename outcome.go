package alicaptcha

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/alicaptcha/alicaptcha/internal/gate"
)

// An Outcome is how a request fared.
type Outcome struct {
	Code     Code          // how it ended
	Result   Result        // what the service said; zero without a verdict
	Action   Action        // what the Policy made of it; a rejection is complete
	Allowed  bool          // whether the request may go on; false for what ReportOnly let through
	Verified bool          // the service passed the param, test mode (T005) excepted; whatever the Policy did
	SceneID  string        // the scene that was asked for
	Duration time.Duration // how long the Verifier took; 0 where it was not asked
	Err      error         // an *Error where there is no verdict, else nil
}

// FromContext returns the Outcome of the request whose context it is: under
// [Middleware.Handler], and under [Middleware.Deferred] after [Ask] or [Require].
// Where gates are nested it is the innermost one's; it finds none where an outer gate
// said no before the innermost was asked.
func FromContext(ctx context.Context) (Outcome, bool) {
	switch s := ctx.Value(gate.OutcomeKey{}).(type) {
	case *requestState:
		return s.known()
	case Outcome:
		return s, true
	}
	return Outcome{}, false
}

// judge takes a request that has come with param, or with a fault in its place,
// to its Outcome, and tells the log and the observer. Its ctx is the request's, and
// known as a callback's.
func (m *Middleware) judge(ctx context.Context, scene, param string, fault *Error) Outcome {
	if m.zero() {
		o := Outcome{Code: Misconfigured, Err: &Error{Code: Misconfigured, Err: errNoMiddleware}}
		o.Action = Policy(nil).action(o.Code, nil)
		slog.Default().LogAttrs(ctx, slog.LevelError,
			"captcha: rejected, because no Middleware that New made stands before the handler",
			slog.String("captcha.code", string(o.Code)))
		return o
	}

	o := Outcome{SceneID: scene}
	mayOpen := true
	switch {
	case o.SceneID == "" && !m.cfg.AnyScene:
		fault, mayOpen = &Error{Code: Misconfigured, Err: errNoScene}, false
	case fault == nil:
		o.Result, o.Duration, fault, mayOpen = m.callVerifier(ctx, Request{Param: param, SceneID: o.SceneID})
	}
	o.Code = o.Result.Code
	if fault != nil {
		o.Code, o.Err = fault.Code, fault
	}
	o.Action = m.cfg.Policy.action(o.Code, func(l Limiter) bool {
		return mayOpen && (l == nil || m.askLimiter(ctx, l))
	})
	o.Allowed = o.Action.Allow
	o.Verified = o.Result.Passed && o.Code != T005

	m.log(ctx, o)
	if m.cfg.Observe != nil {
		m.cfg.Observe(ctx, o)
	}
	return o
}

// limiterPatience is how long a Limiter is waited for.
const limiterPatience = time.Second

// askLimiter reports whether l lets one more request through. At most
// MaxConcurrent calls of Limiters are under way at once, and none of them holds
// a request for longer than limiterPatience.
func (m *Middleware) askLimiter(ctx context.Context, l Limiter) bool {
	select {
	case m.limiting <- struct{}{}:
	default:
		m.logLimiter(ctx)
		return false
	}
	type answer struct {
		allowed  bool
		panicked any
		stack    []byte
	}
	answered := make(chan answer, 1)
	go func() {
		var a answer
		defer func() { // also if the Limiter ends its goroutine
			if a.panicked = recover(); a.panicked != nil {
				a.stack = debug.Stack()
			}
			<-m.limiting
			answered <- a
		}()
		a.allowed = l.Allow()
	}()
	tooLong := time.NewTimer(limiterPatience)
	defer tooLong.Stop()
	select {
	case a := <-answered:
		if a.panicked != nil {
			m.logPanic(ctx, "captcha: the Limiter panicked", a.panicked, a.stack)
		}
		return a.allowed
	case <-tooLong.C:
		m.logLimiter(ctx)
		return false
	}
}

// message returns the level and the text of the line about o.
func (m *Middleware) message(o Outcome) (slog.Level, string) {
	switch {
	case o.Allowed && o.Verified && !o.Code.Known():
		return slog.LevelWarn, "captcha: passed with a code that this version does not know"
	case o.Allowed && o.Verified:
		return slog.LevelDebug, "captcha: passed"
	case o.Allowed && o.Result.Passed: // test mode, by the operator's word
		return slog.LevelWarn, "captcha: let through unverified"
	case o.Allowed:
		return max(m.severity(o.Code), slog.LevelWarn), "captcha: let through unverified"
	case m.cfg.ReportOnly:
		return max(m.severity(o.Code), slog.LevelWarn), "captcha: let through by ReportOnly, would have been rejected"
	}
	return m.severity(o.Code), "captcha: rejected"
}

func (m *Middleware) log(ctx context.Context, o Outcome) {
	level, text := m.message(o)
	logger := m.logger()
	if !logger.Enabled(ctx, level) {
		return
	}

	attrs := make([]slog.Attr, 0, 7)
	attrs = append(attrs, slog.String("captcha.code", string(o.Code)))
	if o.Duration != 0 {
		attrs = append(attrs, slog.Duration("captcha.duration", o.Duration))
	}
	for _, a := range []struct{ key, value string }{
		{"captcha.scene", o.SceneID},
		{"captcha.certify_id", o.Result.CertifyID},
		{"captcha.request_id", o.Result.RequestID},
	} {
		if a.value != "" {
			attrs = append(attrs, slog.String(a.key, printable(a.value, 128)))
		}
	}
	if o.Err != nil && o.Err.Error() != "alicaptcha: "+string(o.Code) {
		attrs = append(attrs, slog.String("captcha.error", o.Err.Error()))
	}
	if level >= slog.LevelWarn {
		attrs = append(attrs, slog.String("captcha.description", o.Code.Description()))
	}
	logger.LogAttrs(ctx, level, text, attrs...)
}

// severity returns the level at which an end in c is logged now.
func (m *Middleware) severity(c Code) slog.Level {
	level, once := c.severity()
	if once && !isDue(m.logLimits[c]) { // a flood must not drown the line that counts
		return slog.LevelInfo
	}
	return level
}

func (m *Middleware) logLimiter(ctx context.Context) {
	if isDue(&m.limiters) {
		m.logger().LogAttrs(ctx, slog.LevelWarn, "captcha: a Limiter does not answer in time, so nobody is let through by it")
	}
}

func (m *Middleware) logDeadline(ctx context.Context, left time.Duration) {
	if isDue(&m.deadlines) {
		m.logger().LogAttrs(ctx, slog.LevelWarn,
			"captcha: the request's own deadline leaves the call less time than Config.Timeout",
			slog.Duration("captcha.left", left), slog.Duration("captcha.timeout", m.cfg.Timeout))
	}
}

// logPanic logs the type and the stack of a panic, never its text.
func (m *Middleware) logPanic(ctx context.Context, text string, v any, stack []byte) {
	if isDue(&m.panics) {
		m.logger().LogAttrs(ctx, slog.LevelError, text,
			slog.String("captcha.panic", fmt.Sprintf("%T", v)), slog.String("captcha.stack", string(stack)))
	}
}

func (m *Middleware) logger() *slog.Logger {
	if m.cfg.Logger != nil {
		return m.cfg.Logger
	}
	return slog.Default()
}
