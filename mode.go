package alicaptcha

import (
	"net/http"
	"runtime/debug"
	"strconv"
)

// A Mode says what a [Middleware] does with a request.
type Mode int

const (
	// Enforce verifies the param and rejects the request where the Policy says so.
	Enforce Mode = iota

	// ReportOnly verifies, observes and logs as Enforce does, but lets every request
	// through. The Outcome of one that Enforce would reject has Allowed false.
	ReportOnly

	// Exempt lets the request through without a verification. Its Outcome has the
	// Code Exempted, Allowed true and Verified false.
	Exempt

	noMode Mode = -1 // lets nobody in
)

// String returns "enforce", "report-only" or "exempt", or the number of a Mode that does
// not exist.
func (m Mode) String() string {
	switch m {
	case Enforce:
		return "enforce"
	case ReportOnly:
		return "report-only"
	case Exempt:
		return "exempt"
	}
	return "mode " + strconv.Itoa(int(m))
}

// modeOf returns the Mode for r, or one that lets nobody in if ModeFunc panics.
func (m *Middleware) modeOf(r *http.Request) (mode Mode) {
	switch {
	case m.zero():
		return Enforce
	case m.cfg.ModeFunc == nil:
		return m.cfg.Mode
	}
	defer func() {
		v := recover()
		if v == http.ErrAbortHandler {
			panic(v)
		}
		if v != nil {
			m.logPanic(r.Context(), "captcha: ModeFunc panicked", v, debug.Stack())
			mode = noMode
		}
	}()
	return m.cfg.ModeFunc(r)
}

// A subject is what there is of a request to judge.
type subject struct {
	method, route string // for the log
	scene         string
	mode          Mode
	param         string
	fault         *Error // why there is no param
	begun         *call  // what Begin started, or nil
	unwanted      bool   // the handler has returned without asking, and so nobody is let through
}

// subject returns what there is to judge of r before its param is looked for.
func (m *Middleware) subject(r *http.Request, scene string) subject {
	return subject{method: r.Method, route: r.Pattern, scene: scene, mode: m.modeOf(r)}
}
