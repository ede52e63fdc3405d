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
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
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
	// knows of it, such as its route. It must not read the body, nor believe
	// the client. An empty one ends the request as Misconfigured.
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
	// If nil, it is WriteRejection. It is not called for ClientCanceled.
	OnReject func(http.ResponseWriter, *http.Request, Outcome)

	// Observe, if not nil, is called once for each Outcome, before the handler
	// or the rejection. The context is the request's, in which FromContext does
	// not find the Outcome yet.
	Observe func(context.Context, Outcome)

	// Logger gets passes at debug, rejections at info, and what the operator
	// should see at warn and error. If nil, it is slog.Default.
	Logger *slog.Logger

	// Timeout bounds the whole call to the service. If zero, it is 5 s.
	Timeout time.Duration

	// MaxParamBytes bounds the param. If zero, it is 32 KiB; the longest that
	// was seen of the service has 28 KB.
	MaxParamBytes int

	// MaxBodyBytes bounds how far extractors may read into a body. It does not
	// bound the body that the handler reads. If zero, it is 128 KiB; a param
	// grows up to sixfold where it is escaped.
	MaxBodyBytes int

	// MaxConcurrent bounds the verifications at once: at the bound a request
	// ends as Overloaded without waiting. If zero, it is 256.
	MaxConcurrent int

	// ReportOnly verifies, observes and logs, but lets everything through. The
	// Outcome of what would have been rejected has Allowed false.
	ReportOnly bool

	_ [0]func() // fields by name only
}

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

// A Middleware is a gate in front of handlers. It is immutable and safe for
// concurrent use. A nil or zero Middleware rejects everything.
type Middleware struct {
	cfg    Config
	slots  chan struct{}            // one taken for each verification under way
	loud   map[Code]*rate.Sometimes // bounds the log lines that call for the operator
	panics rate.Sometimes           // likewise

	_ [0]func()
}

// New returns a Middleware, or an error that joins every fault of cfg, each
// naming its field. Changing cfg afterwards, its Policy and Extractors
// included, changes nothing.
func New(cfg Config) (*Middleware, error) {
	var errs []error
	fault := func(text string) { errs = append(errs, errors.New("alicaptcha: Config."+text)) }

	if isNil(cfg.Verifier) {
		fault("Verifier is required")
	}
	scenes := 0
	for _, given := range []bool{cfg.SceneID != "", cfg.SceneIDFunc != nil, cfg.AnyScene} {
		if given {
			scenes++
		}
	}
	if scenes != 1 {
		fault("SceneID is required, or else SceneIDFunc or AnyScene; only one of the three may be set")
	}
	if cfg.SceneID != strings.TrimSpace(cfg.SceneID) || !utf8.ValidString(cfg.SceneID) {
		fault("SceneID has white space around it, or is not UTF-8")
	}
	if cfg.Extractors == nil {
		cfg.Extractors = DefaultExtractors()
	}
	if len(cfg.Extractors) == 0 {
		fault("Extractors is empty: leave it nil for the default ones")
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
	if cfg.Timeout < 0 {
		fault("Timeout is negative")
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = defaultTimeout
	}
	for _, limit := range []struct {
		name  string
		value *int
		byDef int
	}{
		{"MaxParamBytes", &cfg.MaxParamBytes, 32 << 10},
		{"MaxBodyBytes", &cfg.MaxBodyBytes, 128 << 10},
		{"MaxConcurrent", &cfg.MaxConcurrent, 256},
	} {
		if *limit.value < 0 {
			fault(limit.name + " is negative")
		}
		if *limit.value == 0 {
			*limit.value = limit.byDef
		}
	}
	if errs != nil {
		return nil, errors.Join(errs...)
	}

	m := &Middleware{cfg: cfg, slots: make(chan struct{}, cfg.MaxConcurrent), loud: make(map[Code]*rate.Sometimes), panics: rate.Sometimes{Interval: time.Minute}}
	for c := range codes {
		if _, once := c.severity(); once {
			m.loud[c] = &rate.Sometimes{Interval: time.Minute}
		}
	}
	return m, nil
}

// zero reports a Middleware that New did not make.
func (m *Middleware) zero() bool { return m == nil || m.slots == nil }

// Handler returns a handler that calls next only for requests that pass.
// FromContext finds the Outcome in the request that next gets, whose body is
// whole. Every method is gated, GET and OPTIONS too: wrap the routes that need
// it, and put CORS outside.
//
// It panics if next is nil.
func (m *Middleware) Handler(next http.Handler) http.Handler {
	return m.around(next, func(v *visit, w http.ResponseWriter, r *http.Request) bool {
		return v.require(w, r)
	})
}

// Deferred returns a handler that calls next for every request, and leaves it
// to next to call [Require]: after its own cheap checks, say, or only after a
// failed login. Extractors run before next, so that it gets its body whole.
//
// It panics if next is nil.
func (m *Middleware) Deferred(next http.Handler) http.Handler {
	return m.around(next, func(*visit, http.ResponseWriter, *http.Request) bool { return true })
}

func (m *Middleware) around(next http.Handler, enter func(*visit, http.ResponseWriter, *http.Request) bool) http.Handler {
	if next == nil {
		panic("alicaptcha: nil handler")
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v := &visit{m: m}
		inner := r.WithContext(context.WithValue(r.Context(), gate.OutcomeKey{}, v))
		v.param, v.fault = m.extract(inner)
		// The server removes the temporary files of the request that it knows.
		defer func() {
			if r.MultipartForm == nil {
				r.MultipartForm = inner.MultipartForm
			}
		}()
		if enter(v, w, inner) {
			next.ServeHTTP(w, inner)
		}
	})
}

// Check verifies r and returns the Outcome, for callers who have no use for a
// handler; whether Outcome.Allowed is heeded is up to them, also with
// ReportOnly. The body of r stays readable: r.Body may be replaced.
func (m *Middleware) Check(r *http.Request) Outcome {
	param, fault := m.extract(r)
	return m.judge(r, param, fault)
}

// Require verifies the param of a request under [Middleware.Deferred]. If it
// returns false, the rejection is written and the handler should just return.
// The first call verifies and, if need be, writes the rejection; later ones,
// from any goroutine, repeat its answer.
//
// Under [Middleware.Handler] it returns true. Where no middleware stands it
// rejects as Misconfigured.
func Require(w http.ResponseWriter, r *http.Request) bool {
	switch v := r.Context().Value(gate.OutcomeKey{}).(type) {
	case *visit:
		return v.require(w, r)
	case Outcome: // of alicaptchatest.NewContext
		if !v.Allowed {
			WriteRejection(w, r, v)
		}
		return v.Allowed
	}
	WriteRejection(w, r, (*Middleware)(nil).judge(r, "", nil))
	return false
}

// FromContext returns the Outcome of the request whose context it is: under
// [Middleware.Handler], and under [Middleware.Deferred] after [Require].
func FromContext(ctx context.Context) (Outcome, bool) {
	switch v := ctx.Value(gate.OutcomeKey{}).(type) {
	case *visit:
		if v.done.Load() {
			return v.outcome, true
		}
	case Outcome:
		return v, true
	}
	return Outcome{}, false
}

// A visit is one request at one gate; the request's context carries it.
type visit struct {
	m     *Middleware
	param string
	fault *Error // why there is no param

	once    sync.Once
	outcome Outcome // read only when done
	goesOn  bool
	done    atomic.Bool
}

func (v *visit) require(w http.ResponseWriter, r *http.Request) bool {
	v.once.Do(func() {
		v.outcome = v.m.judge(r, v.param, v.fault)
		v.goesOn = v.outcome.Allowed || !v.m.zero() && v.m.cfg.ReportOnly
		v.done.Store(true)
		mark, marked := r.Context().Value(gate.MarkKey{}).(*gate.Mark)
		if marked {
			mark.Passed.Store(v.goesOn)
			mark.Rejected.Store(!v.goesOn)
		}
		if !v.goesOn {
			v.m.reject(w, r, v.outcome)
		}
	})
	if !v.done.Load() { // the first call panicked, and somebody has caught it
		WriteRejection(w, r, Outcome{Code: ServiceUnavailable})
	}
	return v.goesOn
}

func (m *Middleware) reject(w http.ResponseWriter, r *http.Request, o Outcome) {
	if m.zero() || m.cfg.OnReject == nil || o.Code == ClientCanceled {
		WriteRejection(w, r, o)
		return
	}
	m.cfg.OnReject(w, r, o)
}

// extract returns the param of r, or why there is none that is fit to be sent.
func (m *Middleware) extract(r *http.Request) (string, *Error) {
	if m.zero() {
		return "", nil
	}
	param, err := extract(r, m.cfg.Extractors, m.cfg.MaxBodyBytes)
	if err != nil {
		if fault := ended(r.Context()); fault != nil {
			return "", fault
		}
		if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return "", &Error{Code: ParamTooLarge, Err: safeError{fmt.Sprintf("not found in the first %d bytes of the body", tooLarge.Limit), err}}
		}
		switch err {
		case errEncoded, errBody, errValue: // our own words
			err = safeError{strings.TrimPrefix(err.Error(), "alicaptcha: "), err}
		}
		return "", &Error{Code: ParamMalformed, Err: err}
	}
	switch {
	case param == "":
		return "", &Error{Code: ParamMissing}
	case len(param) > m.cfg.MaxParamBytes:
		return "", &Error{Code: ParamTooLarge, Err: safeError{text: fmt.Sprintf("the param has %d bytes", len(param))}}
	case !utf8.ValidString(param):
		return "", &Error{Code: ParamMalformed, Err: safeError{text: "the param is not UTF-8"}}
	}
	return param, nil
}

// judge takes a request that has come with param, or with a fault in its place,
// to its Outcome, and tells the log and the observer.
func (m *Middleware) judge(r *http.Request, param string, fault *Error) Outcome {
	ctx := r.Context()
	if m.zero() {
		o := Outcome{Code: Misconfigured, Err: &Error{Code: Misconfigured, Err: errNoMiddleware}}
		o.Action = Policy(nil).action(o.Code, false)
		slog.Default().LogAttrs(ctx, slog.LevelError, "captcha: rejected, because no Middleware that New made stands before the handler",
			slog.String("captcha.code", string(o.Code)))
		return o
	}

	o := Outcome{SceneID: m.cfg.SceneID}
	if m.cfg.SceneIDFunc != nil {
		o.SceneID = m.cfg.SceneIDFunc(r)
	}
	mayOpen := true
	switch {
	case o.SceneID == "" && !m.cfg.AnyScene:
		fault, mayOpen = &Error{Code: Misconfigured, Err: errNoScene}, false
	case fault == nil:
		o.Result, o.Duration, fault, mayOpen = m.ask(ctx, Request{Param: param, SceneID: o.SceneID})
	}
	o.Code = o.Result.Code
	if fault != nil {
		o.Code, o.Err = fault.Code, fault
	}
	o.Action = m.cfg.Policy.action(o.Code, mayOpen)
	o.Allowed = o.Action.Allow
	o.Verified = o.Result.Passed && o.Code != T005

	m.log(ctx, o)
	if m.cfg.Observe != nil {
		m.cfg.Observe(ctx, o)
	}
	return o
}

var (
	errNoMiddleware = safeError{text: "no Middleware that New made"}
	errNoScene      = safeError{text: "SceneIDFunc returned no scene"}
	errNoVerdict    = safeError{text: "the Verifier's Result is no verdict"}
	errPanicked     = safeError{text: "the Verifier panicked"}
)

// ask asks the Verifier. With a fault there is no verdict; mayOpen says whether
// a Policy may let the request through all the same, which it may for an error
// that the Verifier returned.
func (m *Middleware) ask(ctx context.Context, req Request) (result Result, took time.Duration, fault *Error, mayOpen bool) {
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
			m.panics.Do(func() {
				m.logger().LogAttrs(ctx, slog.LevelError, "captcha: the Verifier panicked",
					slog.String("captcha.panic", fmt.Sprintf("%T", v)), slog.String("captcha.stack", string(debug.Stack())))
			})
			result, fault, mayOpen = Result{}, &Error{Code: ServiceUnavailable, Err: errPanicked}, false
		}
	}()

	// The Verifier sees our deadline as one, but the request's as a
	// cancellation: a client must not be able to make the service look slow.
	parent := ctx
	_, hasDeadline := ctx.Deadline()
	if hasDeadline {
		parent = context.WithoutCancel(ctx)
	}
	start := time.Now()
	asking, cancel := context.WithDeadline(parent, start.Add(m.cfg.Timeout))
	defer cancel()
	if hasDeadline {
		defer context.AfterFunc(ctx, cancel)()
	}

	defer func() { took = time.Since(start) }()
	result, err := m.cfg.Verifier.Verify(asking, req)
	if err != nil {
		return Result{}, 0, classify(ctx, asking, err), true
	}
	verdict, ok := result.strict()
	if !ok {
		return Result{}, 0, &Error{Code: ServiceUnavailable, Err: errNoVerdict}, false
	}
	return verdict, 0, nil, true
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

// classify returns the Error for one that a Verifier returned. The request's
// own end comes first, whatever the Verifier says of it.
func classify(ctx, asking context.Context, err error) *Error {
	if fault := ended(ctx); fault != nil {
		return fault
	}
	e, typed := errors.AsType[*Error](err)
	if e != nil && e.Code != ParamMissing && e.Code != ClientCanceled && e.Code.letter() == 0 {
		if _, ours := codes[e.Code]; ours {
			return e
		}
	}
	code := ServiceUnavailable
	if !typed && asking.Err() == context.DeadlineExceeded {
		code = ServiceTimeout
	}
	return &Error{Code: code, Err: err}
}

func (m *Middleware) logger() *slog.Logger {
	if m.cfg.Logger != nil {
		return m.cfg.Logger
	}
	return slog.Default()
}

func (m *Middleware) log(ctx context.Context, o Outcome) {
	level, text := slog.LevelDebug, "captcha: passed"
	switch _, known := codes[o.Code]; {
	case o.Allowed && o.Verified && !known:
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
			attrs = append(attrs, slog.String(a.key, clean(a.value)))
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
	if once {
		// A flood must not drown the line that counts.
		loud := false
		m.loud[c].Do(func() { loud = true })
		if !loud {
			return slog.LevelInfo
		}
	}
	return level
}

// clean makes a text from outside fit for a log: short, and printable ASCII.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s[:min(len(s), 128)])
}
