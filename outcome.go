package alicaptcha

import (
	"context"
	cryptorand "crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/alicaptcha/alicaptcha/internal/gate"
)

// An Outcome describes how a request was handled.
type Outcome struct {
	Code   Code   // how the verification ended
	Result Result // the service's verdict; zero if there is none
	Action Action // what the Policy says about Code; a rejection has all its fields

	// Allowed reports whether the request may proceed. It is false for a request
	// that only ReportOnly let through.
	Allowed bool

	// Verified reports whether the service passed the param, whatever the Policy
	// made of that. It is false for T005: in test mode the service passes everybody.
	Verified bool

	SceneID   string        // the scene that the param had to be of
	Mode      Mode          // the Mode under which the request was judged
	Duration  time.Duration // how long the Verifier took; 0 if it was not called
	Reference string        // if Allowed is false, a random UUID that the log and the rejection have too
	Err       error         // an *Error if there is no verdict, else nil
}

// FromContext returns the Outcome of the request that ctx belongs to. There is one
// under [Middleware.Handler], and under [Middleware.Deferred] after [Ask] or
// [Require]. Of nested gates it returns the Outcome of the innermost; it returns none
// if an outer gate rejected the request before the innermost was asked.
func FromContext(ctx context.Context) (Outcome, bool) {
	switch s := ctx.Value(gate.OutcomeKey{}).(type) {
	case *requestState:
		return s.known()
	case Outcome:
		return s, true
	}
	return Outcome{}, false
}

// judge finds the Outcome of a request, and tells the log and the observer. Its ctx
// is the request's, and known as a callback's.
func (m *Middleware) judge(ctx context.Context, s subject) Outcome {
	if m.zero() {
		return judgeNothing(ctx)
	}
	o := Outcome{SceneID: s.scene, Mode: s.mode}
	if s.mode == Exempt {
		o.Code, o.Action, o.Allowed = Exempted, Allow(), true
	} else {
		m.decide(ctx, s, &o)
	}
	o.Verified = o.Result.Passed && o.Code != T005
	if !o.Allowed {
		o.Reference = newReference()
	}

	m.log(ctx, s, o)
	if m.cfg.Observe != nil {
		m.cfg.Observe(ctx, o)
	}
	return o
}

// judgeNothing is judge where there is no Middleware.
func judgeNothing(ctx context.Context) Outcome {
	o := Outcome{Code: Misconfigured, Err: &Error{Code: Misconfigured, Err: errNoMiddleware}}
	o.Action, o.Reference = Policy(nil).action(o.Code, nil), newReference()
	slog.Default().LogAttrs(ctx, slog.LevelError,
		"captcha: rejected, because no Middleware made by New is in front of the handler",
		slog.String("captcha.code", string(o.Code)), slog.String("captcha.reference", o.Reference))
	return o
}

// decide sets what o says of the verification of s, and of what the Policy makes of it.
func (m *Middleware) decide(ctx context.Context, s subject, o *Outcome) {
	var got reply
	switch {
	case s.fault != nil && s.fault.Code == Misconfigured:
		got.fault = s.fault
	case s.mode != Enforce && s.mode != ReportOnly:
		o.Mode = Enforce
		got.fault = &Error{Code: Misconfigured, Err: errNoMode}
	case s.scene == "" && !m.cfg.AnyScene:
		got.fault = &Error{Code: Misconfigured, Err: errNoScene}
	case s.fault != nil:
		got = reply{fault: s.fault, mayOpen: true}
	default:
		got = m.ask(ctx, s)
	}
	o.Result, o.Duration, o.Code = got.result, got.took, got.result.Code
	if got.fault != nil {
		o.Code, o.Err = got.fault.Code, got.fault
	}
	o.Action = m.cfg.Policy.action(o.Code, func(l Limiter) bool {
		if s.unwanted {
			return o.Result.Passed
		}
		return got.mayOpen && (l == nil || m.askLimiter(ctx, l, o.Code))
	})
	o.Allowed = o.Action.Allow
}

// newReference returns a random UUID (RFC 9562, version 4).
func newReference() string {
	var u [16]byte
	cryptorand.Read(u[:]) // never fails
	u[6] = u[6]&0x0f | 0x40
	u[8] = u[8]&0x3f | 0x80
	var text [36]byte
	hex.Encode(text[:8], u[:4])
	hex.Encode(text[9:13], u[4:6])
	hex.Encode(text[14:18], u[6:8])
	hex.Encode(text[19:23], u[8:10])
	hex.Encode(text[24:], u[10:])
	text[8], text[13], text[18], text[23] = '-', '-', '-', '-'
	return string(text[:])
}

// limiterPatience is how long a request waits for a Limiter.
const limiterPatience = time.Second

// askLimiter reports whether l lets one more request through. At most
// MaxConcurrent calls of Limiters are under way at once, and none of them holds
// a request for longer than limiterPatience.
func (m *Middleware) askLimiter(ctx context.Context, l Limiter, c Code) bool {
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
		switch {
		case a.panicked != nil:
			m.logPanic(ctx, "captcha: the Limiter panicked", a.panicked, a.stack)
		case !a.allowed:
			m.logExhausted(ctx, c)
		}
		return a.allowed
	case <-tooLong.C:
		m.logLimiter(ctx)
		return false
	}
}

// A tally lets one line a minute about a Code call for the operator, so that neither an
// outage nor a flood drowns the rest of the log.
type tally struct {
	limit rate.Sometimes
	count atomic.Int64 // since the last such line
}

func newTally() *tally { return &tally{limit: rate.Sometimes{Interval: time.Minute}} }

// take counts one line. It returns how many there were since the last one that was
// due, and whether this one is.
func (t *tally) take() (count int64, due bool) {
	t.count.Add(1)
	if !isDue(&t.limit) {
		return 0, false
	}
	return t.count.Swap(0), true
}

// message returns the level and the text of the line about o.
func message(o Outcome) (slog.Level, string) {
	level := o.Code.severity()
	switch {
	case o.Code == Exempted:
		return slog.LevelDebug, "captcha: exempt from verification"
	case o.Allowed && o.Verified && o.Code.Known():
		return slog.LevelDebug, "captcha: passed"
	case o.Allowed && o.Verified:
		return slog.LevelWarn, "captcha: passed with a code that this version does not know"
	case o.Allowed && o.Result.Passed: // test mode, allowed by the Policy
		return slog.LevelWarn, "captcha: let through unverified"
	case o.Allowed:
		return max(level, slog.LevelWarn), "captcha: let through unverified"
	case o.Mode == ReportOnly:
		return max(level, slog.LevelWarn), "captcha: let through by ReportOnly, would have been rejected"
	}
	return level, "captcha: rejected"
}

func (m *Middleware) log(ctx context.Context, s subject, o Outcome) {
	level, text := message(o)
	var count int64
	if level >= slog.LevelWarn {
		t := m.tallies[o.Code]
		if t == nil {
			t = m.tallies[""]
		}
		var due bool
		if count, due = t.take(); !due {
			level = slog.LevelInfo
		}
		if o.Allowed && o.Action.Limit != nil { // no flood, since a Limiter let it through
			level = max(level, slog.LevelWarn)
		}
	}
	logger := m.logger()
	if !logger.Enabled(ctx, level) {
		return
	}

	attrs := make([]slog.Attr, 0, 11)
	attrs = append(attrs, slog.String("captcha.code", string(o.Code)))
	if o.Duration != 0 {
		attrs = append(attrs, slog.Float64("captcha.duration_ms", float64(o.Duration.Microseconds())/1000))
	}
	_, route, hasMethod := strings.Cut(s.route, " ")
	if !hasMethod {
		route = s.route
	}
	for _, a := range []struct{ key, value string }{
		{"captcha.scene", o.SceneID},
		{"captcha.certify_id", o.Result.CertifyID},
		{"captcha.request_id", o.Result.RequestID},
		{"captcha.reference", o.Reference},
		{"http.request.method", s.method},
		{"http.route", route},
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
	if count > 1 {
		attrs = append(attrs, slog.Int64("captcha.count", count))
	}
	logger.LogAttrs(ctx, level, text, attrs...)
}

func (m *Middleware) logLimiter(ctx context.Context) {
	if isDue(&m.limiters) {
		m.logger().LogAttrs(ctx, slog.LevelWarn, "captcha: a Limiter did not answer in time, so it lets nobody through")
	}
}

// logExhausted says that the Limiter of the Policy's Action for c let nobody in.
func (m *Middleware) logExhausted(ctx context.Context, c Code) {
	if isDue(&m.exhausted) {
		m.logger().LogAttrs(ctx, slog.LevelWarn, "captcha: rejected, because the Policy's Limiter is exhausted",
			slog.String("captcha.code", string(c)))
	}
}

// logUnwritten says that OnReject wrote nothing.
func (m *Middleware) logUnwritten(ctx context.Context) {
	if isDue(&m.unwritten) {
		m.logger().LogAttrs(ctx, slog.LevelError, "captcha: OnReject wrote nothing, so the usual rejection is written")
	}
}

// warnOfDescriptors says if the process may not open enough files and sockets for
// MaxConcurrent. Each verification needs two, one for the client's connection and one
// for the service's; some are left for the rest of the program.
func (m *Middleware) warnOfDescriptors() {
	const others = 64
	limit, known := descriptorLimit()
	if fits := (max(limit, others) - others) / 2; known && fits < uint64(m.cfg.MaxConcurrent) {
		m.logger().LogAttrs(context.Background(), slog.LevelWarn,
			"captcha: the limit on open files (RLIMIT_NOFILE) is too low for Config.MaxConcurrent",
			slog.Uint64("captcha.descriptors", limit), slog.Int("captcha.max_concurrent", m.cfg.MaxConcurrent))
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
