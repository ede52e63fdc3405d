package alicaptcha

import (
	"context"
	"crypto/tls"
	"encoding/xml"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// answerKey is the context key of the *answer that a call fills.
type answerKey struct{}

// An answer is the result of a call.
type answer struct {
	taken  bool // connection.Call was reached
	result Result
	err    *Error

	// The progress of the call.
	began             atomic.Int64 // when it left the queue of the Transport, in Unix nanoseconds
	connected, reused atomic.Bool
	closed, wrote     atomic.Bool  // see reuse.go
	stage             atomic.Int32 // unanswered, answered or read
	step              atomic.Value // the Error.Stage that it is in, a string
}

const (
	unanswered = iota
	answered   // the first byte of the answer has arrived
	read
)

// trace returns ctx with a trace that fills a.
func (a *answer) trace(ctx context.Context, calls *callRecord) context.Context {
	begin := func() { a.began.CompareAndSwap(0, time.Now().UnixNano()) }
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GetConn:           func(string) { a.step.Store("queue") },
		DNSStart:          func(httptrace.DNSStartInfo) { begin(); a.step.Store("dns") },
		ConnectStart:      func(string, string) { begin(); a.step.Store("connect") },
		TLSHandshakeStart: func() { a.step.Store("tls") },
		WroteRequest: func(info httptrace.WroteRequestInfo) {
			if info.Err == nil {
				a.step.CompareAndSwap("send", "wait")
			}
		},
		GotConn: func(info httptrace.GotConnInfo) {
			begin()
			a.step.Store("send")
			a.connected.Store(true)
			a.got(info)
		},
		WroteHeaders: func() { a.wrote.Store(true) },
		GotFirstResponseByte: func() {
			a.step.Store("read")
			if a.stage.CompareAndSwap(unanswered, answered) {
				calls.unread.Add(1)
			}
		},
	})
}

// A callRecord holds what the calls of a Client share.
type callRecord struct {
	refused atomic.Int64 // when a call was last refused, in Unix nanoseconds
	unread  atomic.Int64 // the number of calls whose answer has begun but has not been read
	warmth  warmth
}

// isRefusing reports whether a call was refused recently. For a short time it waits
// for the calls whose answers are being read.
func (c *callRecord) isRefusing() bool {
	for range 100 {
		if time.Since(time.Unix(0, c.refused.Load())) < refusalLasts {
			return true
		}
		if c.unread.Load() == 0 {
			return false
		}
		time.Sleep(time.Millisecond)
	}
	return false
}

// errTaken ends the SDK's part of a call. The SDK never gets an answer.
var errTaken = errors.New("alicaptcha: the answer is read outside of the SDK")

// connection is the SDK's HttpClient.
type connection struct {
	transport http.RoundTripper
	calls     *callRecord
}

// Call sends req and reads the answer into the *answer in its context. It ignores
// the transport of the SDK.
func (c connection) Call(req *http.Request, _ *http.Transport) (*http.Response, error) {
	a := req.Context().Value(answerKey{}).(*answer)
	a.taken = true
	defer func() { // runs even if the Transport panics
		if a.stage.Swap(read) == answered {
			c.calls.unread.Add(-1)
		}
	}()
	a.result, a.err = c.exchange(req, a)
	if e := a.err; e != nil && (e.Code == ServiceTimeout || e.Code == Overloaded) {
		e.Stage, _ = a.step.Load().(string)
	}
	if e := a.err; e != nil && e.Status != 0 && (e.Code == RequestRefused || e.Code == ServiceThrottled) {
		c.calls.refused.Store(time.Now().UnixNano())
	}
	return nil, errTaken
}

// maxAnswerBytes is the number of bytes that are read of an answer. A verdict has
// about 200.
const maxAnswerBytes = 64 << 10

func (c connection) exchange(req *http.Request, a *answer) (Result, *Error) {
	// If the header is set, a Transport does not decompress the answer, which could
	// be a bomb.
	req.Header.Set("Accept-Encoding", "identity")
	// An http.Client would follow redirects, and send the security token along.
	resp, err := c.roundTrip(req, a)
	if err != nil {
		return Result{}, c.noAnswer(req, a, err)
	}
	if resp == nil || resp.Body == nil {
		text := "the Transport returned neither an answer nor an error"
		return Result{}, &Error{Code: ServiceUnavailable, Err: safeError{text: text}}
	}
	defer resp.Body.Close()
	if !resp.Close {
		defer c.calls.warmth.use()
	}
	return readResponse(req.Context(), resp)
}

const (
	// If the connection ends before an answer, a call with a body longer than
	// longBody counts as refused. A gateway that finds a param too large answers
	// early and closes the connection, and the reset can overtake the answer.
	// Otherwise a client could feign an outage by a long param.
	longBody = 8 << 10

	// For refusalLasts after a refusal, the end of a reused connection before an
	// answer does not count as an outage. A gateway that refuses a request may
	// close the connection without notice, so that the next call on it fails,
	// whichever client causes that call. Otherwise a client could feign an outage
	// for others. By default net/http keeps idle connections that long.
	refusalLasts = 90 * time.Second
)

// noAnswer returns the Error for a call whose connection failed with err.
func (c connection) noAnswer(req *http.Request, a *answer, err error) *Error {
	e := callError(req.Context(), err)
	switch {
	case e.Code == ServiceTimeout && c.hasQueue() && !a.hadTime():
		e.Code = Overloaded
	case e.Code != ServiceUnavailable:
	case req.ContentLength > longBody && a.connected.Load():
		e.Code = RequestRefused
	case a.reused.Load() && a.stage.Load() == unanswered && c.calls.isRefusing():
		e.Code, e.Err = RequestRefused, safeError{"the reused connection was closed after an earlier refusal", err}
	}
	return e
}

// hadTime reports whether the call had enoughTime outside of the queue.
func (a *answer) hadTime() bool {
	began := a.began.Load()
	return began != 0 && time.Since(time.Unix(0, began)) >= enoughTime
}

// hasQueue reports whether calls may wait in the Transport for earlier calls. A flood
// of requests can make that wait arbitrarily long.
func (c connection) hasQueue() bool {
	transport, ok := c.transport.(*http.Transport)
	return ok && transport.MaxConnsPerHost > 0
}

// readResponse reads the body of resp, up to maxAnswerBytes.
func readResponse(ctx context.Context, resp *http.Response) (Result, *Error) {
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return readAnswer(resp.StatusCode, nil) // the body is the connection, which has no deadline
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes+1))
	isTooLong := len(body) > maxAnswerBytes
	switch {
	case resp.StatusCode >= 400 && resp.StatusCode <= 499:
		// The status alone makes this a refusal, even if the body cannot be read:
		// a gateway that aborts a request that is too large is not an outage.
	case err != nil:
		e := callError(ctx, err)
		e.Status = resp.StatusCode
		return Result{}, e
	case isTooLong && resp.StatusCode == http.StatusOK:
		// The service may repeat what a client sent, so this is not an outage.
		text := "the answer is too long"
		return Result{}, &Error{Code: RequestRefused, Status: resp.StatusCode, Err: safeError{text: text}}
	}
	if err != nil || isTooLong {
		body = nil
	}
	return readAnswer(resp.StatusCode, body)
}

// callError returns the Error for a call that failed with err before it had an
// answer.
func callError(ctx context.Context, err error) *Error {
	if cause := ctx.Err(); cause != nil {
		code := ServiceTimeout
		if errors.Is(cause, context.Canceled) {
			code = ClientCanceled
		}
		return &Error{Code: code, Err: safeError{cause.Error(), cause}}
	}
	e := &Error{Code: ServiceUnavailable, Err: err}
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		e.Code = ServiceTimeout
	}
	if isExhausted(err) {
		e.Code = Overloaded
	}
	if text, ok := safeText(err); ok {
		e.Err = safeError{text, err}
	}
	return e
}

// safeText returns the text of an error of a connection, if it is known to contain
// nothing but addresses and the fault.
func safeText(err error) (text string, ok bool) {
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		return dns.Error(), true
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		if inner, ok := errors.AsType[*net.OpError](op.Err); ok {
			op = inner // the dial to a proxy
		}
		if op.Op == "dial" || op.Op == "remote error" || op.Op == "local error" { // the last two are TLS alerts
			return op.Error(), true
		}
		errno, ok := errors.AsType[syscall.Errno](op.Err)
		return op.Op + ": " + errno.Error(), ok
	}
	if cert, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return cert.Error(), true
	}
	if record, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return record.Msg, true
	}
	isEnd := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
	return "the connection was closed before the end of the answer", isEnd
}

// isExhausted reports whether err means that this machine has run out of sockets or
// memory, which clients can cause.
func isExhausted(err error) bool {
	dns, isDNS := errors.AsType[*net.DNSError](err) // contains only the text of its cause
	for _, errno := range []syscall.Errno{
		syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EADDRNOTAVAIL,
	} {
		if errors.Is(err, errno) || isDNS && strings.Contains(dns.Err, errno.Error()) {
			return true
		}
	}
	return false
}

// readAnswer returns the verdict in the service's answer, or the Error that says why
// the answer is not a verdict.
func readAnswer(status int, body []byte) (Result, *Error) {
	doc, err := parseDocument(body)
	if err != nil {
		// The service may repeat what a client sent, which may be invalid UTF-8. A
		// refusal must not become an outage by that, but a pass in such an answer
		// is not accepted.
		doc, err = parseDocument(body, jsontext.AllowInvalidUTF8(true))
		switch {
		case err == nil && doc.Result.VerifyResult == kind(jsontext.KindTrue) && status == http.StatusOK:
			return Result{}, &Error{Code: RequestRefused, Status: status}
		case err != nil:
			doc = document{}
			if status != http.StatusOK {
				doc.fromXML(body)
			}
		}
	}
	if result, ok := doc.result(); ok && status == http.StatusOK {
		return result, nil
	}

	return Result{}, &Error{
		Code: doc.failure(status), Status: status, ServiceCode: token(doc.Code.string), RequestID: token(doc.RequestID),
	}
}

// failure returns the Code for an answer that is not a verdict.
func (doc *document) failure(status int) Code {
	known, _ := lookUp(doc.Code.string)
	switch {
	case known.code == ServiceThrottled || status == http.StatusTooManyRequests:
		return ServiceThrottled
	case known.code == Misconfigured:
		return Misconfigured
	case status >= 400 && status <= 499 || status == http.StatusOK && doc.Success == kind(jsontext.KindFalse):
		return RequestRefused
	}
	return ServiceUnavailable
}

// token returns s if it has the form of the service's codes and IDs, and otherwise
// "". A gateway in between could send any text, which Error.Error would show.
func token(s string) string {
	odd := func(r rune) bool { return notInHost(r) && r != '_' || r == ':' }
	if len(s) > 64 || strings.ContainsFunc(s, odd) {
		return ""
	}
	return s
}

// A document is the service's answer. It is read strictly, by the rules of package
// json (one value, valid UTF-8, no duplicate names) and of the types below.
type document struct {
	RequestID string `json:"RequestId"`
	Code      text
	Message   kind
	Success   kind
	Result    verdict

	others
}

type verdict struct {
	VerifyResult kind
	VerifyCode   text
	CertifyID    string `json:"CertifyId"`

	others
}

// others holds the members without a field. The option for such a field is "embed"
// in this json package and "unknown" in that of the Go distribution, which
// GOEXPERIMENT=jsonv2 selects.
type others struct {
	Others map[string]jsontext.Value `json:",embed,unknown"`
}

// check returns an error if a name differs from one of ours only in case, because
// another parser might take it for ours.
func (o others) check(ours ...string) error {
	for name := range o.Others {
		if slices.ContainsFunc(ours, func(our string) bool { return strings.EqualFold(our, name) }) {
			return errUnreadable
		}
	}
	return nil
}

var errUnreadable = errors.New("alicaptcha: the answer does not have the form of the service's answers")

// A text is a string that must not be null.
type text struct {
	string
	isSet bool
}

func (t *text) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	tok, err := dec.ReadToken()
	if err != nil || tok.Kind() != jsontext.KindString {
		return errors.Join(errUnreadable, err)
	}
	t.string, t.isSet = tok.String(), true
	return nil
}

// A kind is the kind of a JSON value, whose content is skipped.
type kind jsontext.Kind

func (k *kind) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	*k = kind(dec.PeekKind())
	return dec.SkipValue()
}

func (v *verdict) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	if dec.PeekKind() != jsontext.KindBeginObject { // null would leave v unset without an error
		return errUnreadable
	}
	type plain verdict
	if err := json.UnmarshalDecode(dec, (*plain)(v)); err != nil {
		return err
	}
	if v.VerifyCode.isSet && v.VerifyCode.string == "" { // an older service sends no VerifyCode, but not an empty one
		return errUnreadable
	}
	return v.check("VerifyResult", "VerifyCode", "CertifyId")
}

func parseDocument(body []byte, opts ...json.Options) (doc document, err error) {
	if err := json.Unmarshal(body, &doc, opts...); err != nil {
		return document{}, err
	}
	return doc, doc.check("RequestId", "Code", "Message", "Success", "Result")
}

// result returns the verdict in doc, and reports whether there is one.
func (doc *document) result() (Result, bool) {
	r := doc.Result
	isBool := r.VerifyResult == kind(jsontext.KindTrue) || r.VerifyResult == kind(jsontext.KindFalse)
	if doc.Success != kind(jsontext.KindTrue) || doc.Code.string != "Success" || !isBool {
		return Result{}, false
	}
	return Result{
		Passed: r.VerifyResult == kind(jsontext.KindTrue), Code: Code(r.VerifyCode.string), CertifyID: r.CertifyID,
		RequestID: token(doc.RequestID),
	}.strict()
}

// fromXML takes Code and RequestId from body, if it is the XML error of a gateway.
func (doc *document) fromXML(body []byte) {
	var e struct{ Code, RequestId string }
	if xml.Unmarshal(body, &e) == nil {
		doc.Code.string, doc.RequestID = e.Code, e.RequestId
	}
}
