package alicaptcha

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/alicaptcha/alicaptcha/internal/gate"
)

// Ask verifies the param of a request under [Middleware.Deferred] and writes
// nothing. It returns the Outcome and whether the request may proceed, which it may
// without Outcome.Allowed under ReportOnly. The first call verifies; later ones,
// from any goroutine, repeat its answer.
//
// Where gates are nested, every one of them has to be satisfied, the outermost
// first, each by its own Verifier and scene. Each needs a param of its own then, and
// so its own Extractors. The Outcome is that of the first that is not satisfied, or
// else the innermost's. Under [Middleware.Handler] Ask repeats the answer of that
// gate; a Handler inside of a Deferred asks its own gate only, and the handler behind
// it has to call Ask or Require for the outer one. Where no middleware stands the
// Outcome is Misconfigured, and the request may not proceed.
//
// The answer belongs to ctx. Requests that share one, such as the parts of a batch
// that a handler dispatches with its own request's context, share the answer, and
// one param then admits all of them. A handler that wants a param for each part has
// to give each a context that does not stem from a gated request's.
func Ask(ctx context.Context) (o Outcome, proceed bool) {
	switch s := ctx.Value(gate.OutcomeKey{}).(type) {
	case *requestState:
		return s.ask(ctx)
	case Outcome: // of alicaptchatest.NewContext
		if !s.Allowed {
			s.Action = s.rejection()
		}
		return s, s.Allowed
	}
	return (*Middleware)(nil).judge(ctx, subject{}), false
}

// Require is [Ask] for a handler that leaves the rejection to the middleware. If it
// returns false, the rejection is written and the handler should just return. It is
// written once, by the first call and to its w, however many calls there are; the
// others wait for that, but for no more than two seconds over Config.Timeout.
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

// A requestState is one gate that a request has come to. The request's context
// has the innermost.
type requestState struct {
	*verification
	outer *requestState
}

// find returns what m has made of the request for a scene, or nil.
func (s *requestState) find(m *Middleware, scene string) *verification {
	for ; s != nil; s = s.outer {
		if s.m == m && s.scene == scene && !m.zero() {
			return s.verification
		}
	}
	return nil
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

// A verification is what one Middleware makes of one request.
type verification struct {
	m *Middleware
	subject
	state requestState // where the request came to m first; here it costs no allocation

	mu      sync.Mutex // not held during callbacks
	stage   stage
	changed chan struct{} // closed at the next change of stage; nil if nobody waits for it
	outcome Outcome       // set from stage judged on
	proceed bool          // likewise
	written bool          // a rejection that a callback or a panic has left to us is written
}

type stage int

const (
	unasked   stage = iota
	judging         // the Outcome is being found
	judged          // it is known; if it is a rejection, that is not written
	rejecting       // the rejection is being written
	rejected        // it is written
	broken          // a panic came before the Outcome
)

// callbackKey is the key that the contexts of the verification's callbacks have.
type callbackKey struct{ *verification }

func (v *verification) isCallback(ctx context.Context) bool { return ctx.Value(callbackKey{v}) != nil }

// known returns the Outcome, if it is known.
func (v *verification) known() (Outcome, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.outcome, v.stage >= judged && v.stage != broken
}

// ask returns the Outcome and whether the request may proceed. The first call finds
// them out.
func (v *verification) ask(ctx context.Context) (Outcome, bool) {
	v.mu.Lock()
	first := v.stage == unasked
	if first {
		v.stage = judging
	}
	v.mu.Unlock()
	switch {
	case first:
		v.judge(ctx)
	case !v.isCallback(ctx): // else it would wait for itself
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
	o := v.m.judge(context.WithValue(ctx, callbackKey{v}, true), v.subject)
	proceed := o.Allowed || o.Mode == ReportOnly
	v.mu.Lock()
	v.outcome, v.proceed = o, proceed
	v.mu.Unlock()
	if mark, ok := ctx.Value(gate.MarkKey{}).(*gate.Mark); ok {
		mark.Passed.Store(proceed)
		mark.Rejected.Store(!proceed)
		if !proceed && mark.Refusing != nil {
			mark.Refusing()
		}
	}
	end = judged
}

// require returns whether the request may proceed. If it may not, the rejection is
// written when it returns, or the one who writes it takes too long to be waited for.
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

	// OnReject that leads here, or a panic before the Outcome, leaves the rejection
	// to us. Nobody else does: two must not write at once.
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
	inner := r.WithContext(context.WithValue(r.Context(), callbackKey{v}, true))
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

// waitFor waits until v is in that stage or a later one. A callback that leads here
// by a context that is not the one it was given cannot be told from another
// goroutine, and would wait for itself; so there is an end to it.
func (v *verification) waitFor(s stage) {
	patience := limiterPatience + time.Second
	if !v.m.zero() {
		patience += v.m.cfg.Timeout
	}
	tooLong := time.NewTimer(patience)
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
