package alicaptcha

import (
	"context"
	"fmt"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	"github.com/alicaptcha/alicaptcha/internal/gate"
)

// Begin starts the verification that [Ask] or [Require] will wait for, and returns at
// once, so that a handler under [Middleware.Deferred] can do its own work meanwhile,
// such as hashing a password. The argument is the context of the request.
//
// The work is then done for anybody, even if the param is junk. A handler should first
// validate the input and apply its rate limits, because a param is spent by Begin. It
// must call Ask or Require before it acts on the work or answers: an answer that
// depends on a password tells a bot what it wants to know.
//
// Begin takes a place of Config.MaxConcurrent. If there is none, the request ends as
// Overloaded. It has no effect if the verification was begun before, if there is
// nothing to verify, if it is called in a callback of the gate or after the handler has
// returned, or where no Deferred encloses the caller. If gates are nested, it starts the
// verification of the outermost of those that were not asked yet: the param of an inner
// gate is not spent if the request is rejected by an outer one.
//
// Until Ask or Require is called, [FromContext] finds no Outcome. If neither is called,
// the verification still goes on to its end or its deadline, and its Outcome is
// then observed and logged; no Limiter is called for it. The values of ctx may therefore
// be used after the handler has returned. Those of net/http permit that; a framework that
// reuses its contexts may not.
func Begin(ctx context.Context) {
	if s, ok := ctx.Value(gate.OutcomeKey{}).(*requestState); ok {
		s.begin(ctx)
	}
}

// Ask verifies the param of a request under [Middleware.Deferred] without writing
// a response. The argument is the context of the request. Ask returns the Outcome
// and whether the request may proceed; under ReportOnly a request may proceed even
// if Outcome.Allowed is false. The first call verifies. Later calls, from any
// goroutine, return the same result.
//
// If gates are nested, the request must satisfy all of them, beginning with the
// outermost. Each gate has its own Verifier and scene, and so it needs its own
// param and its own Extractors. Ask returns the Outcome of the first gate that is
// not satisfied, or that of the innermost gate if all are.
//
// Under [Middleware.Handler], Ask returns the result of that gate. A Handler inside
// a Deferred asks its own gate only; the handler behind it must call Ask or Require
// for the outer gate. If no Middleware encloses the caller, the Code of the Outcome
// is Misconfigured, and the request may not proceed.
//
// The result belongs to ctx. Requests that share a context share the result, so
// that one param admits all of them. This applies to the parts of a batch that a
// handler dispatches with the context of its own request. To require a param for
// each part, give each part a context that is not derived from that of a request
// behind a gate.
func Ask(ctx context.Context) (o Outcome, proceed bool) {
	switch s := ctx.Value(gate.OutcomeKey{}).(type) {
	case *requestState:
		return s.ask(ctx)
	case Outcome: // of alicaptchatest.NewContext
		if !s.Allowed {
			s.Action = s.rejection()
		}
		return s, s.Allowed || s.Mode == ReportOnly
	}
	return (*Middleware)(nil).judge(ctx, subject{}), false
}

// Require is like [Ask], but it also writes the rejection. If it returns false, the
// rejection has been written, and the handler should return. If Require is called
// several times, the first call writes the rejection to its w. The other calls wait
// until it is written, but at most two seconds longer than Config.Timeout.
func Require(w http.ResponseWriter, r *http.Request) bool {
	if s, ok := r.Context().Value(gate.OutcomeKey{}).(*requestState); ok {
		return s.require(w, r)
	}
	o, proceed := Ask(r.Context())
	if !proceed {
		WriteRejection(w, r, o)
	}
	return proceed
}

// A requestState is the state of one gate for a request, and the context of the request
// behind that gate. This saves the allocations of a context.WithValue.
type requestState struct {
	context.Context
	*verification
	outer *requestState
}

func (s *requestState) Value(key any) any {
	if _, ok := key.(gate.OutcomeKey); ok {
		return s
	}
	return s.Context.Value(key)
}

// String shows nothing of the verification to a program that prints its contexts.
func (s *requestState) String() string { return nameOf(s.Context) + ".WithValue(alicaptcha)" }

// nameOf names ctx as package context does.
func nameOf(ctx context.Context) string {
	if s, ok := ctx.(fmt.Stringer); ok {
		return s.String()
	}
	return fmt.Sprintf("%T", ctx)
}

// find returns the verification by m for the scene, or nil.
func (s *requestState) find(m *Middleware, scene string) *verification {
	for ; s != nil; s = s.outer {
		if s.m == m && s.scene == scene && !m.zero() {
			return s.verification
		}
	}
	return nil
}

// begin reports whether the request is known to satisfy all gates up to this one.
func (s *requestState) begin(ctx context.Context) bool {
	return (s.outer == nil || s.outer.begin(ctx)) && s.verification.begin(ctx)
}

func (s *requestState) ask(ctx context.Context) (Outcome, bool) {
	if s.outer != nil {
		if o, proceed := s.outer.ask(ctx); !proceed {
			return o, false
		}
	}
	return s.verification.ask(ctx)
}

func (s *requestState) require(w http.ResponseWriter, r *http.Request) bool {
	return (s.outer == nil || s.outer.require(w, r)) && s.verification.require(w, r)
}

// A verification is the work of one Middleware on one request.
type verification struct {
	m *Middleware
	subject

	// These are fields to save their allocations.
	state  requestState    // of the first time that m saw the request
	asking callbackContext // of the callbacks of judge

	mu      sync.Mutex // not held during callbacks
	stage   stage
	changed chan struct{} // closed at the next change of stage; nil if no goroutine waits for it
	outcome Outcome       // set in stage judged and later ones
	proceed bool          // likewise
	written bool          // require has written the rejection that a callback or a panic left out
	over    bool          // the handler has returned
}

type stage int

const (
	unasked   stage = iota
	judging         // the Outcome is being determined
	judged          // the Outcome is known; if it is a rejection, that is not yet written
	rejecting       // the rejection is being written
	rejected        // the rejection is written
	broken          // a panic prevented an Outcome
)

// callbackKey is a context key that marks the callbacks of a verification.
type callbackKey struct{ *verification }

// A callbackContext is the context of the callbacks of a verification.
type callbackContext struct {
	context.Context
	of *verification
}

func (c *callbackContext) Value(key any) any {
	if k, ok := key.(callbackKey); ok && k.verification == c.of {
		return true
	}
	return c.Context.Value(key)
}

// String shows nothing of the verification.
func (c *callbackContext) String() string {
	return nameOf(c.Context) + ".WithValue(alicaptcha callback)"
}

func (v *verification) isCallback(ctx context.Context) bool { return ctx.Value(callbackKey{v}) != nil }

// known returns the Outcome and reports whether it is known.
func (v *verification) known() (Outcome, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.outcome, v.stage >= judged && v.stage != broken
}

// begin starts the verification, unless there is no need to. It reports whether the
// request is known to proceed.
func (v *verification) begin(ctx context.Context) (proceeds bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case v.stage != unasked:
		return v.stage != broken && v.proceed
	case v.begun != nil || v.over || v.m.zero():
		return false
	case v.mode == Exempt:
		return true
	case v.m.needsCall(v.subject) && ended(ctx) == nil:
		v.begun = v.m.begin(&callbackContext{ctx, v}, Request{Param: v.param, SceneID: v.scene})
	}
	return false
}

// leave is called when the handler has returned. If Begin was called and the Outcome was
// not asked for, it is determined all the same, so that each call to the service is
// observed and logged.
func (v *verification) leave(ctx context.Context) {
	v.mu.Lock()
	v.over = true
	left := v.stage == unasked && v.begun != nil
	if left {
		v.stage, v.unwanted = judging, true
	}
	v.mu.Unlock()
	if !left {
		return
	}
	if ctx.Err() == nil { // the server is about to cancel it, which is not a hang-up
		ctx = context.WithoutCancel(ctx)
	}
	select {
	case v.m.leaving <- struct{}{}:
		go func() {
			defer func() { <-v.m.leaving }()
			v.judgeUnwanted(ctx)
		}()
	default: // Observe or the Logger is slow: the connection waits, or it would start any number
		v.judgeUnwanted(ctx)
	}
}

func (v *verification) judgeUnwanted(ctx context.Context) {
	defer func() { recover() }() // of the Logger
	defer func() {
		if p := recover(); p != nil && p != http.ErrAbortHandler {
			v.m.logPanic(ctx, "captcha: a callback panicked after the handler had returned", p, debug.Stack())
		}
	}()
	v.judge(ctx)
}

// ask returns the Outcome and whether the request may proceed. The first call
// determines them.
func (v *verification) ask(ctx context.Context) (Outcome, bool) {
	v.mu.Lock()
	first := v.stage == unasked && !v.isCallback(ctx)
	if first {
		v.stage = judging
	}
	v.mu.Unlock()
	switch {
	case first:
		v.judge(ctx)
	case !v.isCallback(ctx): // a callback would wait for itself
		v.waitFor(judged)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.stage < judged || v.stage == broken {
		return Outcome{Code: ServiceUnavailable, Action: byDefault(ServiceUnavailable)}, false
	}
	return v.outcome, v.proceed
}

func (v *verification) judge(ctx context.Context) {
	end := broken
	defer func() { v.enter(end) }()
	v.asking = callbackContext{ctx, v}
	o := v.m.judge(&v.asking, v.subject)
	proceed := o.Allowed || o.Mode == ReportOnly
	v.mu.Lock()
	v.outcome, v.proceed = o, proceed
	v.mu.Unlock()
	if mark, ok := ctx.Value(gate.MarkKey{}).(*gate.Mark); ok && !v.unwanted {
		mark.Passed.Store(proceed)
		mark.Rejected.Store(!proceed)
		if !proceed && mark.Refusing != nil {
			mark.Refusing()
		}
	}
	end = judged
}

// require reports whether the request may proceed. If not, the rejection is written
// when require returns, unless the goroutine that writes it takes too long.
func (v *verification) require(w http.ResponseWriter, r *http.Request) bool {
	if _, proceed := v.ask(r.Context()); proceed {
		return true
	}
	v.mu.Lock()
	first := v.stage == judged
	if first {
		v.stage = rejecting
	}
	v.mu.Unlock()
	switch {
	case first:
		v.reject(w, r)
		return false
	case !v.isCallback(r.Context()):
		v.waitFor(rejected)
	}

	// The rejection is still to be written if OnReject has called this method, or
	// if a panic prevented an Outcome. In all other cases another call writes it,
	// and two calls must not write at once.
	v.mu.Lock()
	left := v.stage == broken || v.stage == rejecting && v.isCallback(r.Context())
	o, write := v.outcome, left && !v.written
	if v.stage == broken {
		o = Outcome{Code: ServiceUnavailable}
	}
	v.written = v.written || write
	v.mu.Unlock()
	if write {
		WriteRejection(w, r, o)
	}
	return false
}

// reject writes the rejection.
func (v *verification) reject(w http.ResponseWriter, r *http.Request) {
	defer v.enter(rejected)
	o := v.outcome
	byUs, status := v.m.zero() || v.m.cfg.OnReject == nil || o.Code == ClientCanceled, 0
	if byUs {
		status = o.Action.Status
	}
	if mark, ok := r.Context().Value(gate.MarkKey{}).(*gate.Mark); ok && mark.Rejecting != nil {
		defer mark.Rejecting(status)()
	}
	if byUs {
		WriteRejection(w, r, o)
		return
	}
	inner := r.WithContext(&callbackContext{r.Context(), v})
	defer handBack(r, inner)
	answer := &rejectionWriter{ResponseWriter: w}
	v.m.cfg.OnReject(answer, inner, o)
	if !answer.isWritten {
		v.m.logUnwritten(r.Context())
		WriteRejection(w, inner, o)
	}
}

// enter begins a stage.
func (v *verification) enter(next stage) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.stage = next
	if v.changed != nil {
		close(v.changed)
		v.changed = nil
	}
}

// waitFor waits until v is in stage s or a later one. The wait is bounded, because a
// callback that does not use the context it was given cannot be told from another
// goroutine, and would wait for itself.
func (v *verification) waitFor(s stage) {
	tooLong := time.NewTimer(v.m.patience())
	defer tooLong.Stop()
	for {
		v.mu.Lock()
		if v.stage >= s {
			v.mu.Unlock()
			return
		}
		if v.changed == nil {
			v.changed = make(chan struct{})
		}
		changed := v.changed
		v.mu.Unlock()
		select {
		case <-changed:
		case <-tooLong.C:
			return
		}
	}
}
