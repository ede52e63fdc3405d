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

// answerKey is the context's key of the *answer that a call fills.
type answerKey struct{}

// An answer is what connection made of the service's.
type answer struct {
	taken  bool
	result Result
	err    *Error

	// How far the call came.
	began             atomic.Int64 // when it left the Transport's queue, in Unix nanoseconds
	connected, reused atomic.Bool
	stage             atomic.Int32 // unanswered, answered, read
}

const (
	unanswered = iota
	answered   // the answer has begun
	read
)

// trace returns ctx with a trace that fills a.
func (a *answer) trace(ctx context.Context, calls *callRecord) context.Context {
	begin := func() { a.began.CompareAndSwap(0, time.Now().UnixNano()) }
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		DNSStart:     func(httptrace.DNSStartInfo) { begin() },
		ConnectStart: func(string, string) { begin() },
		GotConn: func(info httptrace.GotConnInfo) {
			begin()
			a.connected.Store(true)
			a.reused.Store(info.Reused)
		},
		GotFirstResponseByte: func() {
			if a.stage.CompareAndSwap(unanswered, answered) {
				calls.unread.Add(1)
			}
		},
	})
}

// A callRecord is what the calls of a Client know of each other.
type callRecord struct {
	refused atomic.Int64 // when the last call was answered by a refusal, in Unix nanoseconds
	unread  atomic.Int64 // calls whose answer has begun and may turn out to be a refusal
}

// isRefusing reports whether a call was refused lately. It gives those whose answers
// are about to be read a moment.
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

// errTaken ends the SDK's part in a call: it never sees an answer.
var errTaken = errors.New("alicaptcha: the answer was read elsewhere")

// connection is the SDK's HttpClient.
type connection struct {
	transport http.RoundTripper
	calls     *callRecord
}

// Call sends req and reads the answer into the context's *answer. It has no use
// for the SDK's transport.
func (c connection) Call(req *http.Request, _ *http.Transport) (*http.Response, error) {
	a := req.Context().Value(answerKey{}).(*answer)
	a.taken = true
	defer func() { // also if the Transport panics
		if a.stage.Swap(read) == answered {
			c.calls.unread.Add(-1)
		}
	}()
	a.result, a.err = c.exchange(req, a)
	if e := a.err; e != nil && e.Status != 0 && (e.Code == RequestRefused || e.Code == ServiceThrottled) {
		c.calls.refused.Store(time.Now().UnixNano())
	}
	return nil, errTaken
}

// maxAnswerBytes is how much of an answer is read. A verdict has 200 bytes.
const maxAnswerBytes = 64 << 10

func (c connection) exchange(req *http.Request, a *answer) (Result, *Error) {
	// Set by hand it also keeps a Transport from unpacking a bomb.
	req.Header.Set("Accept-Encoding", "identity")
	// Not an http.Client: that would follow redirects, with the keys' token.
	resp, err := c.transport.RoundTrip(req)
	if err != nil {
		return Result{}, c.noAnswer(req, a, err)
	}
	if resp == nil || resp.Body == nil {
		text := "the Transport returned neither an answer nor an error"
		return Result{}, &Error{Code: ServiceUnavailable, Err: safeError{text: text}}
	}
	defer resp.Body.Close()
	return readResponse(req.Context(), resp)
}

const (
	// A call of more bytes whose connection ends before an answer counts as
	// refused. A gateway that finds a param too large answers early and closes,
	// and the reset can overtake its answer; so a client could make an outage by
	// the length of its param.
	longBody = 8 << 10

	// For so long after a refusal a connection that was kept and ends before an
	// answer says nothing of the service. A gateway that refuses what it dislikes
	// may close without saying so, and the call that is next on the connection,
	// anybody's, finds it closed; so a client could make an outage for others.
	// net/http keeps connections that long by default.
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
		e.Code, e.Err = RequestRefused, safeError{"the connection was kept, and closed after an earlier refusal", err}
	}
	return e
}

// hadTime reports whether the call had enough time for itself.
func (a *answer) hadTime() bool {
	began := a.began.Load()
	return began != 0 && time.Since(time.Unix(0, began)) >= enoughTime
}

// hasQueue reports whether calls wait in the Transport for those before them, which a
// flood can make last for as long as it likes.
func (c connection) hasQueue() bool {
	transport, ok := c.transport.(*http.Transport)
	return ok && transport.MaxConnsPerHost > 0
}

// readResponse reads the answer's body as far as it may be long.
func readResponse(ctx context.Context, resp *http.Response) (Result, *Error) {
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return readAnswer(resp.StatusCode, nil) // its body is the connection, which no deadline ends
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes+1))
	isTooLong := len(body) > maxAnswerBytes
	switch {
	case resp.StatusCode >= 400 && resp.StatusCode <= 499:
		// A refusal is one by its status alone: a gateway that cuts off what it
		// finds too large must not look like an outage.
	case err != nil:
		e := callError(ctx, err)
		e.Status = resp.StatusCode
		return Result{}, e
	case isTooLong && resp.StatusCode == http.StatusOK:
		// The service may repeat what a client sent. That is no outage.
		text := "the answer is too long"
		return Result{}, &Error{Code: RequestRefused, Status: resp.StatusCode, Err: safeError{text: text}}
	}
	if err != nil || isTooLong {
		body = nil
	}
	return readAnswer(resp.StatusCode, body)
}

// callError returns the Error for a call that got no answer.
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

// safeText returns what may be shown of an error of a connection: the texts that
// are known to hold nothing but addresses and the fault.
func safeText(err error) (text string, ok bool) {
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		return dns.Error(), true
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		if inner, ok := errors.AsType[*net.OpError](op.Err); ok {
			op = inner // of a proxy
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

// isExhausted reports whether err says that this machine has no more sockets or
// memory, which its clients can bring about.
func isExhausted(err error) bool {
	dns, isDNS := errors.AsType[*net.DNSError](err) // has only the text
	for _, errno := range []syscall.Errno{
		syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EADDRNOTAVAIL,
	} {
		if errors.Is(err, errno) || isDNS && strings.Contains(dns.Err, errno.Error()) {
			return true
		}
	}
	return false
}

// readAnswer reads the service's answer: the verdict, or the Error that says
// why it is none.
func readAnswer(status int, body []byte) (Result, *Error) {
	doc, err := parseDocument(body)
	if err != nil {
		// The service may repeat what a client sent. That must neither make an
		// outage of its refusal, nor is a pass believed that is not strict.
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

// failure returns what a call ends as whose answer is no verdict.
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

// token returns s if it has the shape of the service's Codes and IDs. A gateway
// in between could put anything there, and Error.Error shows it.
func token(s string) string {
	odd := func(r rune) bool { return notInHost(r) && r != '_' || r == ':' }
	if len(s) > 64 || strings.ContainsFunc(s, odd) {
		return ""
	}
	return s
}

// A document is the service's answer, as far as it is read: strictly, by the json
// package's rules (one value, UTF-8, no name twice) and those of the types here.
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

// others has the members that are not ours. The json package calls such a field
// "embed", and "unknown" where it is the Go distribution's, by GOEXPERIMENT=jsonv2.
type others struct {
	Others map[string]jsontext.Value `json:",embed,unknown"`
}

// check returns an error if a name differs from one of ours in case only: somebody
// else might take it for ours.
func (o others) check(ours ...string) error {
	for name := range o.Others {
		if slices.ContainsFunc(ours, func(our string) bool { return strings.EqualFold(our, name) }) {
			return errUnreadable
		}
	}
	return nil
}

var errUnreadable = errors.New("alicaptcha: the answer is not of the service's form")

// A text is a string, and not null.
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

// A kind is what is read of a value that may be of any.
type kind jsontext.Kind

func (k *kind) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	*k = kind(dec.PeekKind())
	return dec.SkipValue()
}

func (v *verdict) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	if dec.PeekKind() != jsontext.KindBeginObject { // null would be none
		return errUnreadable
	}
	type plain verdict
	if err := json.UnmarshalDecode(dec, (*plain)(v)); err != nil {
		return err
	}
	if v.VerifyCode.isSet && v.VerifyCode.string == "" { // only a missing one is an older service's
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

// result returns the verdict, if doc has one.
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

// fromXML takes Code and RequestId from a gateway's error in XML, if it is one.
func (doc *document) fromXML(body []byte) {
	var e struct{ Code, RequestId string }
	if xml.Unmarshal(body, &e) == nil {
		doc.Code.string, doc.RequestID = e.Code, e.RequestId
	}
}
