package alicaptcha

import (
	"context"
	"errors"
	"net/http"
	"runtime/debug"
	"time"
)

var (
	errNoVerdict = safeError{text: "the Verifier's Result is not a verdict"}
	errPanicked  = safeError{text: "the Verifier panicked"}
	errNoAnswer  = safeError{text: "the Verifier did not return"}
)

// A reply is what came of asking the Verifier.
type reply struct {
	result Result
	took   time.Duration
	fault  *Error // why there is no verdict

	// mayOpen says whether a Policy may let the request through although there is a
	// fault: only for an error that the Verifier returned.
	mayOpen bool

	// cutShort reports an error of a call to which the request's own deadline left too
	// little time.
	cutShort bool
}

// A call is one that Begin made. Only its goroutine writes to it, until done is closed.
type call struct {
	reply    reply
	panicked any // what is to be raised where the reply is waited for
	done     chan struct{}
}

// begin starts a call, or returns one that has ended because there is no place for it.
// The callbacks of the call get the values of ctx.
func (m *Middleware) begin(ctx context.Context, req Request) *call {
	c := &call{done: make(chan struct{})}
	if fault := m.takePlace(); fault != nil {
		c.reply.fault = fault
		close(c.done)
		return c
	}
	c.reply.fault = &Error{Code: ServiceUnavailable, Err: errNoAnswer} // if the Verifier ends the goroutine
	go func() {
		defer close(c.done)
		defer func() { c.panicked = recover() }() // here it would end the program
		c.reply = m.callVerifier(ctx, req)
	}()
	return c
}

// wait returns the reply. The wait is bounded as that of waitFor is, for the same
// reason.
func (c *call) wait(patience time.Duration) reply {
	tooLong := time.NewTimer(patience)
	defer tooLong.Stop()
	select {
	case <-c.done:
	case <-tooLong.C:
		return reply{fault: &Error{Code: ServiceUnavailable, Err: errNoAnswer}}
	}
	if c.panicked != nil {
		panic(c.panicked)
	}
	return c.reply
}

// patience returns how long is waited for what another goroutine determines.
func (m *Middleware) patience() time.Duration {
	patience := limiterPatience + time.Second
	if !m.zero() {
		patience += m.cfg.Timeout
	}
	return patience
}

// needsCall reports whether the Verifier is asked about s.
func (m *Middleware) needsCall(s subject) bool {
	return s.fault == nil && (s.mode == Enforce || s.mode == ReportOnly) && (s.scene != "" || m.cfg.AnyScene)
}

// ask returns the reply to the call that Begin made for s, or else makes one.
func (m *Middleware) ask(ctx context.Context, s subject) reply {
	var got reply
	if s.begun != nil {
		got = s.begun.wait(m.patience())
	} else {
		if fault := ended(ctx); fault != nil {
			return reply{fault: fault}
		}
		if fault := m.takePlace(); fault != nil {
			return reply{fault: fault}
		}
		got = m.callVerifier(ctx, Request{Param: s.param, SceneID: s.scene})
	}
	// The end of the request takes precedence over what the Verifier says.
	if gone := ended(ctx); gone != nil && (gone.Code == ClientCanceled || got.cutShort) {
		return reply{fault: gone, took: got.took}
	}
	return got
}

// takePlace takes a place of MaxConcurrent, which callVerifier frees.
func (m *Middleware) takePlace() *Error {
	select {
	case m.slots <- struct{}{}:
		return nil
	default:
		return &Error{Code: Overloaded}
	}
}

// callVerifier asks the Verifier, and frees the place that its caller has taken.
func (m *Middleware) callVerifier(ctx context.Context, req Request) (got reply) {
	defer func() { <-m.slots }()
	defer func() {
		v := recover()
		if v == http.ErrAbortHandler {
			panic(v)
		}
		if v != nil {
			m.logPanic(ctx, "captcha: the Verifier panicked", v, debug.Stack())
			got = reply{took: got.took, fault: &Error{Code: ServiceUnavailable, Err: errPanicked}}
		}
	}()

	start := time.Now()
	asking, cancel, tooShort := m.callContext(ctx, start)
	defer cancel()

	defer func() { got.took = time.Since(start) }()
	result, err := m.cfg.Verifier.Verify(asking, req)
	if err != nil {
		fault := classify(asking, err)
		if gone := ended(ctx); tooShort && gone != nil && gone.Code == Overloaded {
			fault = gone // Begin may have been given an earlier deadline than Ask
		}
		return reply{fault: fault, mayOpen: true, cutShort: tooShort}
	}
	verdict, ok := result.strict()
	if !ok {
		return reply{fault: &Error{Code: ServiceUnavailable, Err: errNoVerdict}}
	}
	return reply{result: verdict, mayOpen: true}
}

// callContext returns the context for a call that begins at start, and whether the
// request's own deadline leaves it too little time.
//
// A client that hangs up does not end the call, because that would cost a connection
// each time: the call goes on and keeps its place of MaxConcurrent. Only a deadline
// ends it. If it leaves enough time, the Verifier sees it as a deadline. Otherwise the
// Verifier sees a cancellation, because a client that sends its body slowly must not
// be able to make the service look slow.
func (m *Middleware) callContext(ctx context.Context, start time.Time) (context.Context, context.CancelFunc, bool) {
	deadline, tooShort := start.Add(m.cfg.Timeout), false
	if brought, ok := ctx.Deadline(); ok && brought.Before(deadline) {
		left := brought.Sub(start)
		m.logDeadline(ctx, left)
		if tooShort = left < min(enoughTime, m.cfg.Timeout); !tooShort {
			deadline = brought
		}
	}
	asking, cancel := context.WithDeadline(context.WithoutCancel(ctx), deadline)
	if !tooShort {
		return asking, cancel, false
	}
	stop := context.AfterFunc(ctx, func() {
		if ctx.Err() == context.DeadlineExceeded {
			cancel()
		}
	})
	return asking, func() { stop(); cancel() }, true
}

// ended returns the Error for a request whose context is done, or nil.
func ended(ctx context.Context) *Error {
	err := ctx.Err()
	if err == nil {
		return nil
	}
	code := ClientCanceled
	if errors.Is(err, context.DeadlineExceeded) {
		code = Overloaded
	}
	return &Error{Code: code, Err: safeError{err.Error(), err}}
}
