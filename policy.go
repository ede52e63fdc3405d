package alicaptcha

import (
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"time"
)

// A Code says how a verification ended. It is either the service's VerifyCode, which is
// T (passed) or F (refused) and three digits, or one of the words below for an end
// without a verdict.
//
// The service adds codes from time to time. A code that is not listed here is handled
// by its letter; see [DefaultPolicy].
type Code string

// VerifyCodes of the service, from the documentation of
// VerifyIntelligentCaptcha.
const (
	T001 Code = "T001" // passed

	// T005 means that the service passed the param because the scene is in test
	// mode, in which it passes everybody. It is rejected by default. If a Policy
	// allows it, for staging, Outcome.Verified is still false: a handler that asks
	// more of unverified users asks it of everybody.
	T005 Code = "T005"

	T006 Code = "T006" // passed by the console's allow-list

	F001 Code = "F001" // failed: suspected attack, or the risk policy
	F002 Code = "F002" // the param is empty
	F003 Code = "F003" // the param is malformed
	F004 Code = "F004" // failed, because the scene is in test mode
	F005 Code = "F005" // the scene does not exist
	F006 Code = "F006" // the scene belongs to another account
	F007 Code = "F007" // the verification timed out
	F008 Code = "F008" // the param was submitted before
	F009 Code = "F009" // virtual device or emulator
	F010 Code = "F010" // too many requests from one IP address
	F011 Code = "F011" // too many requests from one device
	F012 Code = "F012" // the param is of another scene
	F013 Code = "F013" // the param is incomplete
	F014 Code = "F014" // the challenge was never started, or more than 20 minutes ago
	F015 Code = "F015" // the interaction failed
	F016 Code = "F016" // refused by the console's URL policy
	F017 Code = "F017" // suspected attack: the protocol or a parameter is anomalous
	F018 Code = "F018" // the param was used before (V3)
	F019 Code = "F019" // more than 90 seconds since it was solved (V3)
	F020 Code = "F020" // the ticket does not match the scene or the user
	F021 Code = "F021" // the param is of another scene than the challenge
	F022 Code = "F022" // the check of the encrypted mode failed (V3)
	F023 Code = "F023" // the page could not start the challenge (V2)
	F024 Code = "F024" // automation script
	F025 Code = "F025" // flagged by a model
)

// Ends without a verdict.
const (
	ParamMissing       Code = "param_missing"       // no Extractor found a param
	ParamMalformed     Code = "param_malformed"     // the body is unreadable, or the param is not a UTF-8 string
	ParamTooLarge      Code = "param_too_large"     // the param, or what precedes it in the body, is over a limit
	RequestRefused     Code = "request_refused"     // the service, or a gateway before it, refused the call itself (4xx)
	ClientCanceled     Code = "client_canceled"     // the client went away
	ServiceTimeout     Code = "service_timeout"     // the service did not answer in time
	ServiceUnavailable Code = "service_unavailable" // network error, 5xx, an invalid answer, or an open Breaker
	ServiceThrottled   Code = "service_throttled"   // the account's limit was reached
	Misconfigured      Code = "misconfigured"       // credentials, permissions, activation, endpoint or scene
	Overloaded         Code = "overloaded"          // a limit here was reached, or the request's deadline is too close
)

// Exempted is the Code of a request that Mode or ModeFunc let through as [Exempt].
const Exempted Code = "exempted"

// Reasons that a rejected client is told. It is told no more, because the codes would
// help a bot's author.
const (
	reasonMissing     = "captcha_missing"
	reasonInvalid     = "captcha_invalid"
	reasonExpired     = "captcha_expired"
	reasonRejected    = "captcha_rejected"
	reasonRateLimited = "captcha_rate_limited"
	reasonUnavailable = "captcha_unavailable"
)

// opening says whether a Policy may let a request through for a Code.
type opening int

const (
	openFreely  opening = iota
	openLimited         // only with a Limit: an outage of the service
	openNever           // junk, a replay, a flood or a hang-up: a client can cause it at will
)

// codeInfo is what the package knows about one Code.
type codeInfo struct {
	about string // for Description
	def   Action // the row of DefaultPolicy
	open  opening
}

var (
	actInvalid     = Action{Status: 400, Reason: reasonInvalid, Retry: true}
	actExpired     = Action{Status: 403, Reason: reasonExpired, Retry: true}
	actRejected    = Action{Status: 403, Reason: reasonRejected, Retry: true}
	actRefused     = Action{Status: 403, Reason: reasonRejected}
	actRateLimited = Action{Status: 429, Reason: reasonRateLimited, RetryAfter: rateWindow}
	actOperator    = Action{Status: 503, Reason: reasonUnavailable}
	actUnavailable = Action{Status: 503, Reason: reasonUnavailable, Retry: true, RetryAfter: 5 * time.Second}
)

// rateWindow is the shorter of the windows in which the service counts requests for F010
// and F011, an hour and a day. The code does not say which one is full.
const rateWindow = time.Hour

// codes holds all codes except Exempted. It is never written to.
var codes = map[Code]codeInfo{
	T001: {"The service passed the param.", Allow(), openFreely},
	T005: {
		"The scene is in test mode and passes everybody: switch test mode off in the console, or allow " +
			"T005 in the Policy where that is meant.",
		actOperator, openFreely,
	},
	T006: {"The service passed the param by the console's allow-list.", Allow(), openFreely},

	F001: {"The service suspects an attack, or its risk policy refused the param.", actRejected, openFreely},
	F002: {"The service received an empty param.", actInvalid, openNever},
	F003: {"The service received a malformed param: it was damaged or made up.", actInvalid, openNever},
	F004: {
		"The scene is in test mode and fails everybody: switch test mode off in the console.",
		actOperator, openFreely,
	},
	F005: {
		"The scene ID does not exist: compare SceneID with the console; if only few requests end so, they " +
			"were tampered with.",
		actOperator, openNever,
	},
	F006: {
		"The scene ID belongs to another account: compare SceneID and the AccessKey with the console; if " +
			"only few requests end so, they were tampered with.",
		actOperator, openNever,
	},
	F007: {"The verification timed out at the service.", actExpired, openFreely},
	F008: {"The param was submitted before: a param is good for one verification.", actExpired, openNever},
	F009: {"The service detected a virtual device or an emulator.", actRefused, openFreely},
	F010: {"Too many requests came from one IP address.", actRateLimited, openFreely},
	F011: {"Too many requests came from one device.", actRateLimited, openFreely},
	F012: {
		"The param was made for another scene: if everybody gets this, compare SceneID with the page's; " +
			"if few do, they were tampered with.",
		actRefused, openNever,
	},
	F013: {"The service received an incomplete param.", actInvalid, openNever},
	F014: {
		"The service has no record of the challenge: it was never started, or more than 20 minutes ago.",
		actExpired, openNever,
	},
	F015: {"The client failed the challenge.", actRejected, openFreely},
	F016: {
		"The console's URL policy refused the page: if everybody gets this, allow the page's URL there; " +
			"if few do, they were tampered with.",
		actRefused, openFreely,
	},
	F017: {"The service suspects an attack: the protocol or a parameter is anomalous.", actRejected, openFreely},
	F018: {"The param was used before: a param is good for one verification.", actExpired, openNever},
	F019: {"More than 90 seconds passed since the challenge was solved.", actExpired, openFreely},
	F020: {"The ticket does not match the scene or the user.", actRejected, openFreely},
	F021: {
		"The scene at verification is not the one of the challenge: if everybody gets this, compare " +
			"SceneID with the page's; if few do, they were tampered with.",
		actRefused, openFreely,
	},
	F022: {
		"The check of the encrypted mode failed: if everybody gets this, compare the ekey with the console, set this " +
			"server's clock, and let nothing cache the page; if few do, their pages were open until the encrypted " +
			"scene ID had expired, or they were tampered with.",
		actRejected, openFreely,
	},
	F023: {"The page could not start the challenge and sent a disaster-recovery param.", actRejected, openFreely},
	F024: {"The service detected an automation script.", actRefused, openFreely},
	F025: {"A model of the service flagged the request.", actRejected, openFreely},

	ParamMissing:   {"The request carries no param.", Action{Status: 400, Reason: reasonMissing, Retry: true}, openFreely},
	ParamMalformed: {"The param or the body around it could not be read.", actInvalid, openNever},
	ParamTooLarge: {
		"The param, or what lies before it in the body, is over the limit.",
		Action{Status: 413, Reason: reasonInvalid}, openNever,
	},
	RequestRefused: {
		"The service, or a gateway before it, refused the request without a verdict.",
		actInvalid, openNever,
	},
	ClientCanceled: {"The client went away.", Action{Status: 503}, openNever},
	ServiceTimeout: {"The service did not answer in time.", actUnavailable, openLimited},
	ServiceUnavailable: {
		"The service could not be reached, or gave an answer that is no verdict.",
		actUnavailable, openLimited,
	},
	ServiceThrottled: {
		"The service throttled the call: the account's limit on verifications a second is reached.",
		actUnavailable, openNever,
	},
	Misconfigured: {
		"The operator has to act: check the AccessKey and its permission AliyunYundunAFSFullAccess, that " +
			"the service is activated and paid, the endpoint, the clock and the scene ID.",
		actOperator, openLimited,
	},
	Overloaded: {
		"The limit on verifications at once, the request's own deadline, or a limit of this machine (open " +
			"files, ports, memory) was reached.",
		actUnavailable, openNever,
	},
}

// Description returns one sentence about c for a log or an operator. It must not be
// shown to clients.
func (c Code) Description() string {
	if info, ok := codes[c]; ok {
		return info.about
	}
	if c == Exempted {
		return "The operator exempted the request: it was let through without a verification."
	}
	switch passed, ok := c.Verdict(); {
	case !ok:
		return "Not a code of this package or of the service."
	case passed:
		return "The service passed the param with a code that this version does not know."
	default:
		return "The service refused the param with a code that this version does not know."
	}
}

// severity returns the level at which a rejection for c is logged.
func (c Code) severity() slog.Level {
	switch c {
	case T005, F004, F005, F006, Misconfigured:
		return slog.LevelError
	case F012, F016, F021, F022,
		RequestRefused, ServiceTimeout, ServiceUnavailable, ServiceThrottled, Overloaded:
		return slog.LevelWarn
	}
	return slog.LevelInfo
}

// Known reports whether c is one of the constants of this package. A code that is not
// may still be a verdict, because the service adds codes from time to time.
func (c Code) Known() bool {
	_, known := codes[c]
	return known || c == Exempted
}

// Verdict reports the verdict that c stands for. If c is T and three digits, passed is
// true; if it is F and three digits, passed is false. For any other code, such as
// those for an end without a verdict, ok is false.
func (c Code) Verdict() (passed, ok bool) {
	if len(c) != 4 || c[0] != 'T' && c[0] != 'F' {
		return false, false
	}
	for i := 1; i < 4; i++ {
		if c[i] < '0' || c[i] > '9' {
			return false, false
		}
	}
	return c[0] == 'T', true
}

// An Action says what to do with a request. The zero Action rejects it with status
// 403.
type Action struct {
	// Allow lets the request through. Outcome.Verified stays false unless the
	// service passed the param.
	Allow bool

	// Limit bounds Allow. A request that it does not allow gets the default
	// rejection for its Code. [New] requires a Limit where Allow is set for
	// ServiceTimeout, ServiceUnavailable or Misconfigured.
	Limit Limiter

	// Status is the HTTP status of a rejection, 400 to 599. Zero means 403.
	Status int

	// Reason is what the client is told, such as "captcha_rejected". If it is empty,
	// the default for the Code is used.
	Reason string

	// Retry tells the page that a new challenge may succeed.
	Retry bool

	// RetryAfter is how long the client should wait. It is sent in whole seconds,
	// rounded up. Zero means that nothing is sent.
	RetryAfter time.Duration
}

// A Limiter bounds how many requests a [Policy] lets through. A *rate.Limiter of
// golang.org/x/time/rate is one, for a single process. Module redisalicaptcha has one
// that several replicas share.
type Limiter interface {
	// Allow reports whether one more request may be let through now. It must be safe
	// for concurrent use.
	//
	// It is called in a goroutine of its own. A request that gets no answer within a
	// second, or whose call panics, is rejected. At most Config.MaxConcurrent calls are
	// under way at the same time; a request beyond that is rejected without a call.
	Allow() bool
}

// Allow returns the Action that lets every request through.
func Allow() Action { return Action{Allow: true} }

// AllowAtMost returns the Action that lets a request through if l allows it, and
// otherwise rejects it as [DefaultPolicy] does. [New] refuses a Policy that has a nil
// Limiter.
func AllowAtMost(l Limiter) Action {
	if isNil(l) {
		l = never{}
	}
	return Action{Allow: true, Limit: l}
}

// Reject returns the Action that rejects with status, which is 400 to 599. Its Reason is
// the default for the Code; Retry and RetryAfter are not set.
func Reject(status int) Action { return Action{Status: status} }

// never stands for a nil Limiter, since an Action without a Limit has no bound.
type never struct{}

func (never) Allow() bool { return false }

// A Policy says what to do for each Code. [DefaultPolicy] holds for codes that it does
// not have.
//
// [New] refuses a Policy that allows a Code which a client can cause at will:
// ParamMalformed, ParamTooLarge, RequestRefused, ServiceThrottled, Overloaded,
// ClientCanceled, F002, F003, F005, F006, F008, F012, F013, F014 and F018. It requires
// a Limit to allow ServiceTimeout, ServiceUnavailable or Misconfigured. A Policy has no
// say in Exempted.
type Policy map[Code]Action

// DefaultPolicy returns a new copy of the policy that holds for codes that Config.Policy
// does not have. T codes that are not in it are let through, and F codes that are not
// in it are rejected as F001 is.
func DefaultPolicy() Policy {
	p := make(Policy, len(codes))
	for c, info := range codes {
		p[c] = info.def
	}
	return p
}

// byDefault returns the row of DefaultPolicy for c, or the one for its letter.
func byDefault(c Code) Action {
	if info, ok := codes[c]; ok {
		return info.def
	}
	switch passed, ok := c.Verdict(); {
	case !ok:
		return Action{}
	case passed:
		return Allow()
	default:
		return actRejected
	}
}

// check returns a copy of p, and all faults of p.
func (p Policy) check() (Policy, []error) {
	var errs []error
	checked := maps.Clone(p)
	for _, c := range slices.Sorted(maps.Keys(p)) {
		a := p[c]
		fault := func(format string, args ...any) {
			errs = append(errs, fmt.Errorf("alicaptcha: Config.Policy[%q]: "+format, append([]any{c}, args...)...))
		}
		passed, verdict := c.Verdict()
		if c == Exempted {
			fault("a Policy has no say in what Mode or ModeFunc exempts")
			continue
		}
		if !c.Known() && !verdict {
			fault("not a code of this package, and not T or F and three digits")
			continue
		}
		if a.Status != 0 && (a.Status < 400 || a.Status > 599) {
			fault("Status is %d; it must be 0 or 400 to 599", a.Status)
		}
		if a.RetryAfter < 0 {
			fault("RetryAfter is negative")
		}
		switch {
		case a.Limit == nil:
		case !a.Allow:
			fault("Limit without Allow has no effect")
		case passed:
			fault("Limit on a T code: a pass of the service is not bounded")
		case isNil(a.Limit) || a.Limit == never{}:
			fault("Limit is a nil Limiter, which would let nobody in")
		}
		if a.Allow {
			codes[c].open.check(a.Limit, fault)
		}
	}
	return checked, errs
}

// check tells fault why o forbids an Action that allows, if it does.
func (o opening) check(limit Limiter, fault func(format string, args ...any)) {
	switch {
	case o == openNever:
		fault("must not be allowed: a client can cause it at will")
	case o == openLimited && limit == nil:
		fault("must not be allowed without a bound: use AllowAtMost")
	}
}

// action returns the complete Action for c. If the Policy allows c, open decides: it is
// called with the Action's Limit. A nil open allows nothing.
func (p Policy) action(c Code, open func(Limiter) bool) Action {
	a, ok := p[c]
	if !ok {
		a = byDefault(c)
	}
	if a.Allow && open != nil && open(a.Limit) {
		return a
	}
	return a.rejection(c)
}

// rejection returns a as a complete rejection for c. An Action that allows becomes the
// default rejection.
func (a Action) rejection(c Code) Action {
	def := byDefault(c)
	if a.Allow {
		a = def
		a.Allow = false
	}
	if a.Status == 0 {
		a.Status = http.StatusForbidden
	}
	if a.Reason == "" {
		a.Reason = def.Reason
	}
	if a.Reason == "" && c != ClientCanceled {
		a.Reason = reasonRejected
	}
	return a
}
