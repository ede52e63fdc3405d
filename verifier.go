package alicaptcha

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"
)

// Verifier obtains the verdict on a param. [Client] and [Breaker] implement it.
type Verifier interface {
	// Verify obtains the verdict on one param. For a rejection it returns a
	// Result with Passed false and a nil error. A non-nil error means that
	// there is no verdict. It should be an *Error: any other error counts as
	// ServiceUnavailable, or as ServiceTimeout if the deadline of ctx has
	// passed.
	//
	// Verify must be safe for concurrent use and must return soon after ctx is
	// done. It must not repeat a call that may have reached the service,
	// because a param can be verified only once.
	Verify(ctx context.Context, req Request) (Result, error)
}

// VerifierFunc is an adapter that makes a function a [Verifier].
type VerifierFunc func(context.Context, Request) (Result, error)

// Verify calls f(ctx, req).
func (f VerifierFunc) Verify(ctx context.Context, req Request) (Result, error) { return f(ctx, req) }

// Request is the input of a [Verifier]. Packages fmt, slog and encoding/json
// print it without its Param, unless it is in an unexported field of the value
// that they print.
type Request struct {
	Param   string // the CaptchaVerifyParam, byte for byte as the client sent it
	SceneID string // the scene that Param must belong to; empty for any scene of the account
}

// Format implements [fmt.Formatter]. It writes r without its Param.
func (r Request) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "{Param:[%d bytes] SceneID:%q}", len(r.Param), r.SceneID)
}

// LogValue implements [slog.LogValuer]. It returns r without its Param.
func (r Request) LogValue() slog.Value {
	return slog.GroupValue(slog.Int("param_bytes", len(r.Param)), slog.String("scene", r.SceneID))
}

// MarshalJSON implements [encoding/json.Marshaler]. It returns r without its Param. The
// JSON handler of slog calls it where r is part of another value.
func (r Request) MarshalJSON() ([]byte, error) { return json.Marshal(fmt.Sprint(r)) }

// Result is the service's verdict on a param. The zero value is a rejection.
type Result struct {
	Passed    bool   // VerifyResult
	Code      Code   // VerifyCode; empty if the service sent none
	CertifyID string // identifies the challenge in the service's records; may be empty
	RequestID string // identifies the call in the service's records; may be empty
}

// strict returns r with a Code, if it has none. It reports false if r is no
// verdict: if its Code has another form than T and F codes, or contradicts Passed.
func (r Result) strict() (Result, bool) {
	if r.Code == "" {
		r.Code = F001
		if r.Passed {
			r.Code = T001
		}
	}
	passed, ok := r.Code.Verdict()
	return r, ok && passed == r.Passed
}

// Error reports why there is no verdict.
type Error struct {
	Code        Code   // the reason; never a T or F code
	Status      int    // the HTTP status of the service's answer; 0 if there was no answer
	ServiceCode string // the Code of the answer, such as "InvalidParameter"; Diagnose may set a VerifyCode
	RequestID   string // identifies the call in the service's records; may be empty
	Err         error  // the cause; may be nil

	// Stage is what a Client was doing when a call ended as ServiceTimeout or
	// Overloaded: "queue" (waiting for a connection of the Transport), "dns",
	// "connect", "tls", "send", "wait" (for the answer) or "read" (the answer).
	Stage string
}

// Error returns a text that is safe to log. It consists of Code, Status,
// ServiceCode, RequestID and Stage. The text of Err is added only if this package knows
// that it is harmless: that of a dial, DNS, TLS or context error, or one that this
// package wrote. Each part is cut to 256 bytes and reduced to printable ASCII. The
// text never contains the param, a key or the message of the service.
func (e *Error) Error() string {
	if e == nil {
		return "alicaptcha: no verdict"
	}
	var b strings.Builder
	b.WriteString("alicaptcha: " + printable(string(e.Code), 256))
	sep := " ("
	add := func(s string) {
		b.WriteString(sep + printable(s, 256))
		sep = ", "
	}
	if e.Status != 0 {
		add("status " + strconv.Itoa(e.Status))
	}
	if e.ServiceCode != "" {
		add("code " + e.ServiceCode)
	}
	if e.RequestID != "" {
		add("request " + e.RequestID)
	}
	if e.Stage != "" {
		add("stage " + e.Stage)
	}
	if sep == ", " {
		b.WriteString(")")
	}
	if safe, ok := e.Err.(safeError); ok {
		b.WriteString(": " + printable(safe.text, 256))
	}
	return b.String()
}

// Unwrap returns e.Err.
func (e *Error) Unwrap() error {
	if e == nil {
		return nil
	}
	return e.Err
}

// classify returns the Error for an error that a Verifier returned. It replaces a
// Code that a Verifier must not return, or that this package does not define, by
// ServiceUnavailable.
func classify(asking context.Context, err error) *Error {
	e, typed := errors.AsType[*Error](err)
	if e != nil && e.Code != ParamMissing && e.Code != ClientCanceled && e.Code != Exempted && e.Code.Known() {
		if _, verdict := e.Code.Verdict(); !verdict {
			return e
		}
	}
	code := ServiceUnavailable
	if !typed && asking.Err() == context.DeadlineExceeded {
		code = ServiceTimeout
	}
	return &Error{Code: code, Err: err}
}

// A safeError has a text that Error.Error may show. The error that it wraps may
// contain secrets.
type safeError struct {
	text string
	err  error
}

func (e safeError) Error() string { return "alicaptcha: " + e.text }

func (e safeError) Unwrap() error { return e.err }

// defaultTimeout bounds a call that has no other bound, and minTimeout is the least that
// may be set: a number without a unit means nanoseconds, and every call would time out.
const (
	defaultTimeout = 5 * time.Second
	minTimeout     = 100 * time.Millisecond
)

// A call that ends without an answer counts against the service only if it had
// enoughTime, or Timeout if that is less. A client that sends its body slowly can
// use up most of a deadline that the request had from the start.
const enoughTime = time.Second
