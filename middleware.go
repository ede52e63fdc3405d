// Package alicaptcha puts Alibaba Cloud CAPTCHA 2.0 in front of an
// [http.Handler].
//
// A [Middleware] takes the CaptchaVerifyParam that the page's widget made from a
// header, a form or a JSON body, asks the service for its verdict through a
// [Verifier] (a [Client], usually), and by a [Policy] either passes the request
// on, with the [Outcome] in its context, or rejects it:
//
//	client, err := alicaptcha.NewClient(alicaptcha.ClientConfig{Region: alicaptcha.International})
//	…
//	captcha, err := alicaptcha.New(alicaptcha.Config{Verifier: client, SceneID: "1a2b3c4d"})
//	…
//	mux.Handle("POST /login", captcha.Handler(login))
//
// It fails closed. Without a verdict of the service nobody passes, unless the
// Policy says so; and [New] refuses a Policy that opens junk, replays, floods or
// hang-ups, or an outage without a bound.
package alicaptcha

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/time/rate"

	"github.com/alicaptcha/alicaptcha/internal/gate"
)

// Config configures [New]. Verifier and one of SceneID, SceneIDFunc and AnyScene
// are required. Its functions must be safe for concurrent use.
type Config struct {
	// Verifier is asked for the verdicts.
	Verifier Verifier

	// SceneID is the scene that the param must be of. It comes from the
	// console and is the one that the page's widget has.
	SceneID string

	// SceneIDFunc returns the SceneID for a request, from what the server
	// knows of it, such as its route. It gets the request as it came to the
	// gate, before the body is read, under Deferred too. It must not read the body, nor believe the client. An empty one
	// ends the request as Misconfigured.
	SceneIDFunc func(*http.Request) string

	// AnyScene accepts a param of any scene of the account. A bot may then
	// solve the easiest one.
	AnyScene bool

	// Extractors are tried in order, and the first that finds something wins.
	// If nil, they are DefaultExtractors.
	Extractors []Extractor

	// Policy holds what differs from DefaultPolicy.
	Policy Policy

	// OnReject writes a rejection; if it wrote nothing, net/http would send 200.
	// If nil, it is WriteRejection. It is not called for ClientCanceled. If it
	// calls a handler, it should pass on the request that it was given: a gate
	// or Require there writes the usual rejection. With another request they
	// wait, for two seconds more than Timeout.
	OnReject func(http.ResponseWriter, *http.Request, Outcome)

	// Observe, if not nil, is called once for each Outcome, before the handler
	// or the rejection. The context is the request's, in which FromContext does
	// not find the Outcome yet, and Ask and Require return false.
	Observe func(context.Context, Outcome)

	// Logger gets passes at debug, rejections at info, and what the operator
	// should see at warn and error. If nil, it is slog.Default.
	Logger *slog.Logger

	// Timeout bounds the whole call to the service. If zero, it is 5 s. A
	// deadline of the request's own that is earlier bounds it too. A call that
	// had at least a second (or Timeout, if that is less) and no answer ends as
	// ServiceTimeout; one that was left less of the request's deadline ends as
	// Overloaded. A client that hangs up does not end the call.
	Timeout time.Duration

	// MaxParamBytes bounds the param. If zero, it is 32 KiB; the longest that
	// was seen of the service has 28 KB.
	MaxParamBytes int

	// MaxBodyBytes bounds how far extractors may read into a body. It does not
	// bound the body that the handler reads. If zero, it is 128 KiB; a param
	// grows up to sixfold where it is escaped.
	MaxBodyBytes int

	// MaxConcurrent bounds the verifications at once: at the bound a request
	// ends as Overloaded without waiting. It also bounds how many requests at
	// once wait for Limiters. If zero, it is 256.
	MaxConcurrent int

	// Mode says what is done with requests. The zero value is Enforce.
	Mode Mode

	// ModeFunc returns the Mode of a request. At most one of Mode and ModeFunc may
	// be set. It is called once for each request, before the body is read, and may
	// use what the server knows: a setting that changes while the program runs,
	// the route, the session or an identity that the server has verified itself.
	// It must not read the body or trust client input, such as a header or a
	// cookie that is not signed: a bot would choose Exempt. If it panics or returns
	// another value than the three Modes, the request is rejected as Misconfigured.
	ModeFunc func(*http.Request) Mode

	_ [0]func() // fields by name only
}

// A Middleware is a gate in front of handlers. It is immutable and safe for
// concurrent use. A nil or zero Middleware rejects everything.
type Middleware struct {
	cfg      Config
	slots    chan struct{} // one taken for each verification under way
	limiting chan struct{} // one taken for each call of a Limiter under way
	parsers  chan struct{} // one taken for each body that is being parsed

	// What bounds the log lines that call for the operator.
	tallies                                           map[Code]*tally // "" for unknown codes
	panics, deadlines, limiters, exhausted, unwritten rate.Sometimes

	_ [0]func()
}

// New returns a Middleware, or an error that joins every fault of cfg, each
// naming its field. Changing cfg afterwards, its Policy and Extractors
// included, changes nothing.
func New(cfg Config) (*Middleware, error) {
	cfg, errs := cfg.complete()
	if errs != nil {
		return nil, errors.Join(errs...)
	}
	m := &Middleware{
		cfg:      cfg,
		slots:    make(chan struct{}, cfg.MaxConcurrent),
		limiting: make(chan struct{}, cfg.MaxConcurrent),
		parsers:  make(chan struct{}, runtime.GOMAXPROCS(0)),
		tallies:  map[Code]*tally{"": newTally()},
	}
	for _, limit := range []*rate.Sometimes{&m.panics, &m.deadlines, &m.limiters, &m.exhausted, &m.unwritten} {
		limit.Interval = time.Minute
	}
	for c := range codes {
		m.tallies[c] = newTally()
	}
	return m, nil
}

// complete returns a copy of cfg with the defaults in place, and every fault of cfg.
func (cfg Config) complete() (Config, []error) {
	var errs []error
	fault := func(text string) { errs = append(errs, errors.New("alicaptcha: Config."+text)) }

	if isNil(cfg.Verifier) {
		fault("Verifier is required")
	}
	cfg.checkScene(fault)
	if cfg.Extractors == nil {
		cfg.Extractors = DefaultExtractors()
	}
	if len(cfg.Extractors) == 0 {
		fault("Extractors is empty; leave it nil for DefaultExtractors")
	}
	cfg.Extractors = slices.Clone(cfg.Extractors)
	for i, extractor := range cfg.Extractors {
		if extractor == nil {
			fault(fmt.Sprintf("Extractors[%d] is nil", i))
		}
	}
	policy, policyErrs := cfg.Policy.check()
	cfg.Policy = policy
	errs = append(errs, policyErrs...)
	if cfg.Timeout != 0 && cfg.Timeout < minTimeout {
		fault(fmt.Sprintf("Timeout is %v; it must be 0 or at least %v", cfg.Timeout, minTimeout))
	}
	cfg.Timeout = cmp.Or(cfg.Timeout, defaultTimeout)
	switch {
	case cfg.Mode < Enforce || cfg.Mode > Exempt:
		fault("Mode must be Enforce, ReportOnly or Exempt")
	case cfg.Mode != Enforce && cfg.ModeFunc != nil:
		fault("ModeFunc is set, and so is Mode")
	}
	for _, limit := range []struct {
		name  string
		value *int
		def   int
	}{
		{"MaxParamBytes", &cfg.MaxParamBytes, 32 << 10},
		{"MaxBodyBytes", &cfg.MaxBodyBytes, 128 << 10},
		{"MaxConcurrent", &cfg.MaxConcurrent, 256},
	} {
		if *limit.value < 0 {
			fault(limit.name + " is negative")
		}
		*limit.value = cmp.Or(*limit.value, limit.def)
	}
	return cfg, errs
}

func (cfg Config) checkScene(fault func(text string)) {
	scenes := 0
	for _, isGiven := range []bool{cfg.SceneID != "", cfg.SceneIDFunc != nil, cfg.AnyScene} {
		if isGiven {
			scenes++
		}
	}
	if scenes != 1 {
		fault("SceneID, SceneIDFunc, AnyScene: exactly one of them must be set")
	}
	if cfg.SceneID != strings.TrimSpace(cfg.SceneID) || !utf8.ValidString(cfg.SceneID) {
		fault("SceneID is surrounded by white space or is not valid UTF-8")
	}
}

// zero reports a Middleware that New did not make.
func (m *Middleware) zero() bool { return m == nil || m.slots == nil }

// Handler returns a handler that calls next only for requests that pass.
// FromContext finds the Outcome in the request that next gets, whose body is
// whole. Every method is gated, GET and OPTIONS too: wrap the routes that need
// it, and put CORS outside.
//
// A request that comes to the same Middleware again, by Handler or by Deferred, and
// for the same scene is not verified a second time: its Outcome holds.
//
// It panics if next is nil.
func (m *Middleware) Handler(next http.Handler) http.Handler { return m.wrap(next, false) }

// Deferred returns a handler that calls next for every request, and leaves it
// to next to call [Require] or [Ask]: after its own cheap checks, say, or only after
// a failed login. Extractors run before next, so that it gets its body whole.
// Until Require next serves anybody: it should put an [http.MaxBytesReader]
// around r.Body before it parses a form.
//
// It panics if next is nil.
func (m *Middleware) Deferred(next http.Handler) http.Handler { return m.wrap(next, true) }

func (m *Middleware) wrap(next http.Handler, deferred bool) http.Handler {
	if next == nil {
		panic("alicaptcha: nil handler")
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		outer, _ := r.Context().Value(gate.OutcomeKey{}).(*requestState)
		scene := m.sceneOf(r)
		v := outer.find(m, scene)
		again := v != nil
		if !again {
			v = &verification{m: m, subject: m.subject(r, scene)}
		}
		state := &v.state
		if again {
			state = new(requestState)
		}
		*state = requestState{v, outer}
		inner := r.WithContext(context.WithValue(r.Context(), gate.OutcomeKey{}, state))
		if !again {
			v.param, v.fault = m.extract(inner, v.mode)
		}
		defer handBack(r, inner)
		if deferred || v.require(w, inner) {
			next.ServeHTTP(w, inner)
		}
	})
}

// handBack gives r the MultipartForm of its copy, because the server removes the
// temporary files of the request that it knows.
func handBack(r, inner *http.Request) {
	if r.MultipartForm == nil {
		r.MultipartForm = inner.MultipartForm
	}
}

// Check verifies r and returns the Outcome, for callers who have no use for a
// handler; whether Outcome.Allowed is heeded is up to them, also with
// ReportOnly. The body of r stays readable: r.Body may be replaced.
func (m *Middleware) Check(r *http.Request) Outcome {
	s := m.subject(r, m.sceneOf(r))
	s.param, s.fault = m.extract(r, s.mode)
	return m.judge(r.Context(), s)
}

// A subject is what there is of a request to judge.
type subject struct {
	method, route string // for the log
	scene         string
	mode          Mode
	param         string
	fault         *Error // why there is no param
}

// subject returns what there is to judge of r before its param is looked for.
func (m *Middleware) subject(r *http.Request, scene string) subject {
	return subject{method: r.Method, route: r.Pattern, scene: scene, mode: m.modeOf(r)}
}

// sceneOf returns the scene that the param of r must be of; empty for any, or for
// none.
func (m *Middleware) sceneOf(r *http.Request) string {
	switch {
	case m.zero():
		return ""
	case m.cfg.SceneIDFunc != nil:
		return m.cfg.SceneIDFunc(r)
	}
	return m.cfg.SceneID
}

// extract returns the param of r, or why there is none that is fit to be sent. It
// returns neither if r is exempt.
func (m *Middleware) extract(r *http.Request, mode Mode) (string, *Error) {
	if m.zero() || mode == Exempt {
		return "", nil
	}
	param, missing, err := extract(r, m.cfg.Extractors, m.cfg.MaxBodyBytes, m.parsers)
	if err != nil {
		if fault := ended(r.Context()); fault != nil {
			return "", fault
		}
		if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
			text := fmt.Sprintf("not found in the first %d bytes of the body", tooLarge.Limit)
			return "", &Error{Code: ParamTooLarge, Err: safeError{text, err}}
		}
		return "", &Error{Code: ParamMalformed, Err: err}
	}
	switch {
	case missing != "":
		return "", &Error{Code: ParamMissing, Err: safeError{text: missing}}
	case param == "":
		return "", &Error{Code: ParamMissing}
	case len(param) > m.cfg.MaxParamBytes:
		return "", &Error{Code: ParamTooLarge, Err: safeError{text: fmt.Sprintf("the param has %d bytes", len(param))}}
	case !utf8.ValidString(param):
		return "", &Error{Code: ParamMalformed, Err: safeError{text: "the param is not UTF-8"}}
	}
	return param, nil
}

var (
	errNoMiddleware = safeError{text: "no Middleware that New made"}
	errNoScene      = safeError{text: "SceneIDFunc returned an empty scene ID"}
	errNoMode       = safeError{text: "ModeFunc panicked, or returned a Mode that does not exist"}
	errNoVerdict    = safeError{text: "the Verifier's Result is no verdict"}
	errPanicked     = safeError{text: "the Verifier panicked"}
)

// callVerifier asks the Verifier. With a fault there is no verdict; mayOpen says
// whether a Policy may let the request through all the same, which it may for an
// error that the Verifier returned.
func (m *Middleware) callVerifier(ctx context.Context, req Request) (
	result Result, took time.Duration, fault *Error, mayOpen bool,
) {
	if fault := ended(ctx); fault != nil {
		return Result{}, 0, fault, false
	}
	select {
	case m.slots <- struct{}{}:
		defer func() { <-m.slots }()
	default:
		return Result{}, 0, &Error{Code: Overloaded}, false
	}
	defer func() {
		v := recover()
		if v == http.ErrAbortHandler {
			panic(v)
		}
		if v != nil {
			m.logPanic(ctx, "captcha: the Verifier panicked", v, debug.Stack())
			result, fault, mayOpen = Result{}, &Error{Code: ServiceUnavailable, Err: errPanicked}, false
		}
	}()

	start := time.Now()
	asking, cancel, tooShort := m.callContext(ctx, start)
	defer cancel()

	defer func() { took = time.Since(start) }()
	result, err := m.cfg.Verifier.Verify(asking, req)
	// The request's own end comes first, whatever the Verifier says.
	if gone := ended(ctx); gone != nil && (gone.Code == ClientCanceled || tooShort && err != nil) {
		return Result{}, 0, gone, false
	}
	if err != nil {
		return Result{}, 0, classify(asking, err), true
	}
	verdict, ok := result.strict()
	if !ok {
		return Result{}, 0, &Error{Code: ServiceUnavailable, Err: errNoVerdict}, false
	}
	return verdict, 0, nil, true
}

// callContext returns the context for a call that begins at start, and whether the
// deadline that the request brought along leaves it too little time.
//
// A client that hangs up does not end the call, which would cost a connection each
// time: it goes on, in its place of MaxConcurrent. Only a deadline ends it, and
// that is one for the Verifier if it leaves enough time; else it is a cancellation,
// because a client must not be able to make the service look slow.
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
