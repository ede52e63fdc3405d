// Package alicaptcha puts Alibaba Cloud CAPTCHA 2.0 in front of an
// [http.Handler].
//
// A [Middleware] takes the CaptchaVerifyParam, in short the param, from a header, a
// form or a JSON body. The widget on the page makes it when the user has solved the
// challenge.
// The Middleware asks the service for its verdict through a [Verifier], usually a
// [Client]. Then it either passes the request on, with the [Outcome] in its context,
// or rejects it, as a [Policy] says:
//
//	client, err := alicaptcha.NewClient(alicaptcha.ClientConfig{Region: alicaptcha.International})
//	…
//	captcha, err := alicaptcha.New(alicaptcha.Config{Verifier: client, SceneID: "1a2b3c4d"})
//	…
//	mux.Handle("POST /login", captcha.Handler(login))
//
// It fails closed on junk params, outages and misconfiguration. A request without a
// verdict of the service is let through only if the Policy says so, and [New] refuses
// a Policy that lets through what a client can cause at will, or that lets through
// requests in an outage without a bound.
//
// Terms: a scene is a challenge that is configured in the service's console, and has
// a scene ID. V2 and V3 are the service's two generations of integration; their params
// differ in form and length and are verified in the same way.
package alicaptcha

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/time/rate"

	"github.com/alicaptcha/alicaptcha/internal/gate"
)

// Config configures [New]. Verifier and one of SceneID, SceneIDFunc and AnyScene
// are required. The functions must be safe for concurrent use.
type Config struct {
	// Verifier returns the verdict on a param. Gates may share one.
	Verifier Verifier

	// SceneID is the ID of the scene that the param must be of. It is shown in the
	// console, and the page's widget must be given the same one.
	SceneID string

	// SceneIDFunc returns the scene ID for a request. It is called with the request
	// as it arrives, before the body is read, and may use what the server knows of
	// it, such as its route. It must not read the body or trust client input. If it
	// returns an empty string, the request ends as Misconfigured.
	SceneIDFunc func(*http.Request) string

	// AnyScene accepts a param of any scene of the account. A bot can then choose
	// the scene that is easiest to solve.
	AnyScene bool

	// Extractors find the param. They are tried in order until one finds something.
	// Nil means DefaultExtractors.
	Extractors []Extractor

	// Policy overrides DefaultPolicy for the codes that it holds.
	Policy Policy

	// OnReject writes the answer to a rejected request. Nil means WriteRejection,
	// which is also used if OnReject writes nothing. It is not called for
	// ClientCanceled. [NewProblem] gives it the texts and headers of the usual
	// answer.
	//
	// If OnReject calls a handler, it should pass on the request that it was given: a
	// gate or Require in that handler then writes the usual rejection at once. With
	// any other request it would first wait for this rejection, for up to Timeout and
	// 2 seconds.
	OnReject func(http.ResponseWriter, *http.Request, Outcome)

	// Observe, if not nil, is called once for each Outcome, before the handler or
	// the rejection, or after a handler that called Begin and neither Ask nor Require.
	// Its context is the request's. FromContext does not find the Outcome in it yet,
	// and Ask and Require must not be called: they return false.
	Observe func(context.Context, Outcome)

	// Logger receives a line for each Outcome: passes and exempt requests at debug,
	// rejections at info, and what the operator should see at warn and error. Of the
	// latter only the first in a minute for each Code keeps its level, and has the
	// number of such lines since the last one in captcha.count; the others are at info.
	// A request that a Limiter lets through is always at warn or above. The context of
	// a line is the request's. Nil means slog.Default.
	Logger *slog.Logger

	// Timeout bounds a call to the service. Zero means 5 seconds; New refuses less
	// than 100 milliseconds.
	//
	// An earlier deadline of the request's context bounds the call too. A call without
	// an answer ends as ServiceTimeout if it had at least a second, or Timeout if that
	// is less. It ends as Overloaded if the request's deadline left it less. The call
	// goes on if the client hangs up.
	Timeout time.Duration

	// MaxParamBytes bounds the length of the param. Zero means 32 KiB. The longest
	// param seen from the service is 28 KB.
	MaxParamBytes int

	// MaxBodyBytes bounds how far Extractors may read into a body. It does not bound
	// the body that the handler reads. Zero means 128 KiB. A param grows up to sixfold
	// if each of its characters is escaped, and the longest ones would then not fit.
	MaxBodyBytes int

	// MaxConcurrent bounds the number of verifications at the same time. A request
	// beyond it ends as Overloaded at once. It also bounds how many requests wait for
	// Limiters at the same time. Zero means 256.
	MaxConcurrent int

	// Mode says what is done with every request. The zero value is Enforce.
	Mode Mode

	// ModeFunc returns the Mode of a request. At most one of Mode and ModeFunc may
	// be set. It is called once for each request, before the body is read, and may
	// use what the server knows: a setting that changes while the program runs,
	// the route, the session or an identity that the server has verified itself.
	// It must not read the body or trust client input, such as a header or a
	// cookie that is not signed: a bot would choose Exempt. If it panics or returns
	// none of the three Modes, the request is rejected as Misconfigured.
	ModeFunc func(*http.Request) Mode

	_ [0]func() // requires field names in literals, and forbids comparison
}

// A Middleware is a gate in front of handlers. It is immutable and safe for
// concurrent use. A nil or zero Middleware rejects every request.
type Middleware struct {
	cfg      Config
	slots    chan struct{} // one taken for each verification under way
	limiting chan struct{} // one taken for each call of a Limiter under way
	leaving  chan struct{} // one taken for each goroutine of leave
	parsers  chan struct{} // one taken for each body that is being parsed

	// What bounds the log lines that call for the operator.
	tallies                                           map[Code]*tally // "" for unknown codes
	panics, deadlines, limiters, exhausted, unwritten rate.Sometimes

	_ [0]func()
}

// New returns a Middleware, or an error that joins all faults of cfg, each of which
// names its field. Later changes to cfg, its Policy and its Extractors have no effect.
func New(cfg Config) (*Middleware, error) {
	cfg, errs := cfg.complete()
	if errs != nil {
		return nil, errors.Join(errs...)
	}
	m := &Middleware{
		cfg:      cfg,
		slots:    make(chan struct{}, cfg.MaxConcurrent),
		limiting: make(chan struct{}, cfg.MaxConcurrent),
		leaving:  make(chan struct{}, cfg.MaxConcurrent),
		parsers:  make(chan struct{}, runtime.GOMAXPROCS(0)),
		tallies:  map[Code]*tally{"": newTally()},
	}
	for _, limit := range []*rate.Sometimes{&m.panics, &m.deadlines, &m.limiters, &m.exhausted, &m.unwritten} {
		limit.Interval = time.Minute
	}
	for c := range codes {
		m.tallies[c] = newTally()
	}
	m.warnOfDescriptors()
	return m, nil
}

// complete returns a copy of cfg with the defaults set, and all faults of cfg.
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
	if cfg.Mode < Enforce || cfg.Mode > Exempt {
		fault("Mode must be Enforce, ReportOnly or Exempt")
	}
	if cfg.Mode != Enforce && cfg.ModeFunc != nil {
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

// zero reports whether m was not made by New.
func (m *Middleware) zero() bool { return m == nil || m.slots == nil }

// Handler returns a handler that calls next only for requests that pass. FromContext
// finds the Outcome in the context of the request that next gets, and its body is
// whole. Every method is gated, including GET and OPTIONS: wrap only the routes that
// need it, and put CORS outside.
//
// A request that reaches the same Middleware again, through Handler or Deferred and
// for the same scene, is not verified a second time: its first Outcome holds.
//
// Handler panics if next is nil.
func (m *Middleware) Handler(next http.Handler) http.Handler { return m.wrap(next, false) }

// Deferred returns a handler that calls next for every request. To validate input
// before a param is spent, or to ask for a captcha only after a failed login, next
// calls [Require] or [Ask] when it is ready. The Extractors run before next, which
// gets the body whole. [Begin] lets next do other work meanwhile.
//
// Until it calls Require, next serves anybody. It should put an
// [http.MaxBytesReader] around r.Body before it parses a form.
//
// Deferred panics if next is nil.
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
		*state = requestState{r.Context(), v, outer}
		inner := r.WithContext(state)
		if !again {
			v.param, v.fault = m.extract(inner, v.mode)
		}
		defer handBack(r, inner)
		if deferred && !again {
			defer v.leave(inner.Context())
		}
		if deferred || v.require(w, inner) {
			next.ServeHTTP(w, inner)
		}
	})
}

// handBack gives r the MultipartForm of its copy, because the server removes only the
// temporary files of the request that it made.
func handBack(r, inner *http.Request) {
	if r.MultipartForm == nil {
		r.MultipartForm = inner.MultipartForm
	}
}

// Check verifies r and returns its Outcome, for callers without a handler. It writes
// nothing: the caller rejects the request if Outcome.Allowed is false, unless
// Outcome.Mode is ReportOnly. The body of r stays readable; r.Body may be replaced.
func (m *Middleware) Check(r *http.Request) Outcome {
	s := m.subject(r, m.sceneOf(r))
	s.param, s.fault = m.extract(r, s.mode)
	return m.judge(r.Context(), s)
}

// CheckParam verifies a param that the caller has found by itself, for servers without
// an [http.Request], such as those of gRPC. It checks the param as Check does, and
// applies the same Policy, with the same log and observer. The caller rejects the call
// that it protects if Outcome.Allowed is false, unless Outcome.Mode is ReportOnly.
//
// The context is that of the call. If it ends, the Outcome is ClientCanceled, even if
// its deadline has passed, because the clients of gRPC choose that deadline and could
// otherwise make the service look slow. The verification takes up to Config.Timeout.
//
// CheckParam returns Misconfigured if Config has a SceneIDFunc or a ModeFunc, because
// there is no request for them.
func (m *Middleware) CheckParam(ctx context.Context, param string) Outcome {
	var s subject
	switch {
	case m.zero():
	case m.cfg.SceneIDFunc != nil || m.cfg.ModeFunc != nil:
		s.fault = &Error{Code: Misconfigured, Err: errNoRequest}
	default:
		s = subject{scene: m.cfg.SceneID, mode: m.cfg.Mode, param: param, fault: m.unfit(param)}
	}
	return m.judge(patient{ctx}, s)
}

// A patient context makes a deadline look like a hang-up.
type patient struct{ context.Context }

func (patient) Deadline() (time.Time, bool) { return time.Time{}, false }

func (p patient) Err() error {
	if p.Context.Err() != nil {
		return context.Canceled
	}
	return nil
}

// sceneOf returns the scene that the param of r must be of. It is empty for any scene,
// and if there is none.
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
	if missing != "" {
		return "", &Error{Code: ParamMissing, Err: safeError{text: missing}}
	}
	if fault := m.unfit(param); fault != nil {
		return "", fault
	}
	return param, nil
}

// unfit returns why param cannot be sent to the service, or nil.
func (m *Middleware) unfit(param string) *Error {
	switch {
	case param == "":
		return &Error{Code: ParamMissing}
	case len(param) > m.cfg.MaxParamBytes:
		return &Error{Code: ParamTooLarge, Err: safeError{text: fmt.Sprintf("the param has %d bytes", len(param))}}
	case !utf8.ValidString(param):
		return &Error{Code: ParamMalformed, Err: safeError{text: "the param is not valid UTF-8"}}
	}
	return nil
}

var (
	errNoMiddleware = safeError{text: "the Middleware was not made by New"}
	errNoRequest    = safeError{text: "CheckParam has no request to give to SceneIDFunc or ModeFunc"}
	errNoScene      = safeError{text: "SceneIDFunc returned an empty scene ID"}
	errNoMode       = safeError{text: "ModeFunc panicked, or returned a Mode that does not exist"}
)
