package alicaptcha

import (
	"context"
	"fmt"
	"log/slog"
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
	Duration time.Duration // of the verification; 0 where there was none
	Err      error         // an *Error where there is no verdict, else nil
}

// FromContext returns the Outcome of the request whose context it is: under
// [Middleware.Handler], and under [Middleware.Deferred] after [Require]. Where
// gates are nested it is the innermost one's.
func FromContext(ctx context.Context) (Outcome, bool) {
	switch s := ctx.Value(gate.OutcomeKey{}).(type) {
	case *requestState:
		return s.known()
	case Outcome:
		return s, true
	}
	return Outcome{}, false
}

func (m *Middleware) log(ctx context.Context, o Outcome) {
	level, text := slog.LevelDebug, "captcha: passed"
	switch {
	case o.Allowed && o.Verified && !o.Code.Known():
		level, text = slog.LevelWarn, "captcha: passed with a code that this version does not know"
	case o.Allowed && o.Verified:
	case o.Allowed && o.Result.Passed: // test mode, by the operator's word
		level, text = slog.LevelWarn, "captcha: let through unverified"
	case o.Allowed:
		level, text = max(m.severity(o.Code), slog.LevelWarn), "captcha: let through unverified"
	case m.cfg.ReportOnly:
		level, text = max(m.severity(o.Code), slog.LevelWarn), "captcha: let through by ReportOnly, would have been rejected"
	default:
		level, text = m.severity(o.Code), "captcha: rejected"
	}
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
		m.logger().LogAttrs(ctx, slog.LevelWarn, "captcha: the request's own deadline leaves the call less time than Config.Timeout",
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
