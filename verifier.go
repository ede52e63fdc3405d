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

// A Verifier asks for the verdict on a param. [Client] is one.
type Verifier interface {
	// Verify asks for the verdict on one param. A rejection is a Result with
	// Passed false and a nil error. A non-nil error means that there is no
	// verdict; it should be an *Error, any other counts as ServiceUnavailable.
	//
	// Verify must be safe for concurrent use and return soon after ctx is
	// done. It must not repeat a call that may have reached the service: a
	// param is spent once.
	Verify(ctx context.Context, req Request) (Result, error)
}

// VerifierFunc is a function that is a [Verifier].
type VerifierFunc func(context.Context, Request) (Result, error)

// Verify calls f.
func (f VerifierFunc) Verify(ctx context.Context, req Request) (Result, error) { return f(ctx, req) }

// A Request is what a [Verifier] is asked. It redacts Param where fmt, slog or
// encoding/json print it, but cannot where it is an unexported field of what
// they print.
type Request struct {
	Param   string // the CaptchaVerifyParam, byte for byte as the client sent it
	SceneID string // the scene that Param must be of; empty for any of the account
}

// Format writes r without its Param.
func (r Request) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "{Param:[%d bytes] SceneID:%q}", len(r.Param), r.SceneID)
}

// LogValue returns r without its Param.
func (r Request) LogValue() slog.Value {
	return slog.GroupValue(slog.Int("param_bytes", len(r.Param)), slog.String("scene", r.SceneID))
}

// MarshalJSON returns r without its Param: slog's JSON handler asks for it where
// r is a part of something else.
func (r Request) MarshalJSON() ([]byte, error) { return json.Marshal(fmt.Sprint(r)) }

// A Result is the service's verdict. The zero Result is a rejection.
type Result struct {
	Passed    bool   // VerifyResult
	Code      Code   // VerifyCode; empty from services that do not send one
	CertifyID string // names the challenge in the service's records; may be empty
	RequestID string // names the call in the service's records; may be empty
}

// strict completes a Result without a Code, and reports false for one that is
// no verdict: a Code of another shape, or one that contradicts Passed.
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

// An Error says why there is no verdict.
type Error struct {
	Code        Code   // one of the words, never a T or F code
	Status      int    // of the service's answer; 0 if there was none
	ServiceCode string // the answer's Code, such as "InvalidParameter"; from Diagnose also a VerifyCode
	RequestID   string // names the call in the service's records
	Err         error  // the cause, may be nil
}

// Error returns a text that is safe to log: Code, Status, ServiceCode,
// RequestID, and of Err only what this package knows to be harmless (a dial,
// DNS, TLS or context error, or its own words), each cut to 256 bytes and made
// printable. It never holds the param, a key or the service's text.
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

// classify returns the Error for one that a Verifier returned. A word that is not a
// Verifier's to say, or no word of ours, is ServiceUnavailable.
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

// A safeError has a text that Error.Error may show; what it wraps may say more.
type safeError struct {
	text string
	err  error
}

func (e safeError) Error() string { return "alicaptcha: " + e.text }

func (e safeError) Unwrap() error { return e.err }

// defaultTimeout bounds a call where nobody has set a bound, and minTimeout is the
// least that may be set: a number without a unit means nanoseconds, and would make
// every call time out.
const (
	defaultTimeout = 5 * time.Second
	minTimeout     = 100 * time.Millisecond
)

// enoughTime is what a call must have had for itself, or Timeout if that is less,
// for its lack of an answer to say something of the service. A client that sends
// its body slowly can leave less of a deadline that the request brought along.
const enoughTime = time.Second
