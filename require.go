package alicaptcha

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/alicaptcha/alicaptcha/internal/gate"
)

// Require verifies the param of a request under [Middleware.Deferred]. If it
// returns false, the rejection is written and the handler should just return.
// The first call verifies and, if need be, writes the rejection; later ones,
// from any goroutine, repeat its answer.
//
// Where gates are nested, every one of them has to be satisfied, the outermost
// first, each by its own Verifier and scene. Under [Middleware.Handler] Require
// returns true. Where no middleware stands it rejects as Misconfigured.
//
// The answer belongs to the context of r. Requests that share one, such as the
// parts of a batch that a handler dispatches with its own request's context, share
// the answer, and one param then admits all of them. A handler that wants a param
// for each part has to give each a context that does not stem from a gated
// request's.
func Require(w http.ResponseWriter, r *http.Request) bool {
	switch s := r.Context().Value(gate.OutcomeKey{}).(type) {
	case *requestState:
		return s.require(w, r)
	case Outcome: // of alicaptchatest.NewContext
		if !s.Allowed {
			WriteRejection(w, r, s)
		}
		return s.Allowed
	}
	WriteRejection(w, r, (*Middleware)(nil).judge(r.Context(), r, "", nil))
	return false
}

// A requestState is one gate that a request has come to. The request's context
// has the innermost.
type requestState struct {
	*verification
	outer *requestState
}

// find returns what m has made of the request, or nil.
func (s *requestState) find(m *Middleware) *verification {
	for ; s != nil; s = s.outer {
		if s.m == m && !m.zero() {
			return s.verification
		}
	}
	return nil
}

func (s *requestState) require(w http.ResponseWriter, r *http.Request) bool {
	return (s.outer == nil || s.outer.require(w, r)) && s.verification.require(w, r)
}

// A verification is what one Middleware makes of one request.
type verification struct {
	m     *Middleware
	param string
	fault *Error // why there is no param

	mu      sync.Mutex // not held during callbacks
	stage   stage
	changed chan struct{} // closed at the next change of stage; nil if nobody waits for it
	outcome Outcome       // set in stage rejecting
	proceed bool          // likewise
	written bool          // the answer that stands for a rejection nobody wrote is written
}

type stage int

const (
	unasked   stage = iota
	judging         // the Outcome is being found
	rejecting       // it is known, and the rejection is being written
	settled         // nothing more happens
	broken          // likewise, but a panic came before the Outcome
)

// callbackKey is the key that the contexts of the verification's callbacks have.
type callbackKey struct{ *verification }

func (v *verification) known() (Outcome, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.outcome, v.stage == rejecting || v.stage == settled
}

// require returns whether the request may proceed. The first call finds it out.
func (v *verification) require(w http.ResponseWriter, r *http.Request) bool {
	v.mu.Lock()
	first := v.stage == unasked
	if first {
		v.stage = judging
	}
	v.mu.Unlock()
	switch {
	case first:
		v.settle(w, r)
	case r.Context().Value(callbackKey{v}) == nil: // else it would wait for itself
		v.wait()
	}

	v.mu.Lock()
	proceed, write := v.proceed, false
	var o Outcome
	switch v.stage {
	case rejecting: // OnReject has led here, and leaves the rejection to us
		o, write = v.outcome, !proceed && !v.written
	case broken:
		o, write = Outcome{Code: ServiceUnavailable}, !v.written
	}
	v.written = v.written || write
	v.mu.Unlock()
	if write {
		WriteRejection(w, r, o)
	}
	return proceed
}

// settle finds out the Outcome and, if need be, writes the rejection.
func (v *verification) settle(w http.ResponseWriter, r *http.Request) {
	end := broken
	defer func() { v.enter(end) }()
	ctx := context.WithValue(r.Context(), callbackKey{v}, true)
	o := v.m.judge(ctx, r, v.param, v.fault)
	v.mu.Lock()
	v.outcome = o
	v.proceed = o.Allowed || !v.m.zero() && v.m.cfg.ReportOnly
	v.mu.Unlock()
	end = settled

	mark, marked := ctx.Value(gate.MarkKey{}).(*gate.Mark)
	if marked {
		mark.Passed.Store(v.proceed)
		mark.Rejected.Store(!v.proceed)
	}
	if v.proceed {
		return
	}
	v.enter(rejecting)
	byUs, status := v.m.zero() || v.m.cfg.OnReject == nil || o.Code == ClientCanceled, 0
	if byUs {
		status = o.Action.Status
	}
	if marked && mark.Rejecting != nil {
		defer mark.Rejecting(status)()
	}
	if byUs {
		WriteRejection(w, r, o)
		return
	}
	inner := r.WithContext(ctx)
	defer handBack(r, inner)
	v.m.cfg.OnReject(w, inner, o)
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

// wait waits until v is settled. A callback that leads here by a request that is
// not the one it was given cannot be told from another goroutine, and would wait
// for itself; so there is an end to it.
func (v *verification) wait() {
	patience := limiterPatience + time.Second
	if !v.m.zero() {
		patience += v.m.cfg.Timeout
	}
	tooLong := time.NewTimer(patience)
	defer tooLong.Stop()
	for {
		v.mu.Lock()
		if v.stage == settled || v.stage == broken {
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
