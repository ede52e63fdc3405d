package alicaptchatest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/alicaptcha/alicaptcha"
)

const (
	maxDelay      = time.Hour
	maxFaultsBody = 1 << 20
)

// AccountRate is the service's default limit on the calls of an account, in calls
// a second. It is a value for Faults.ThrottleRate.
const AccountRate = 1000

// Stage is a point in a call, for [Faults].
type Stage string

// The stages of a call, in order. A call that ends before StageHeaders does not
// spend its param; one that ends there or later does, and the verdict on a second
// call with the param says so.
const (
	StageRequest    Stage = "request"     // before the body is read
	StageMidRequest Stage = "mid-request" // when half of the body is read
	StageHeaders    Stage = "headers"     // before the answer
	StageMidHeaders Stage = "mid-headers" // in the middle of its headers
	StageBody       Stage = "body"        // in the middle of its body
)

// Faults describes what is wrong with the service. The zero value means nothing
// is. In JSON, as in POST /faults, the members have the names of the fields in
// camelCase, and durations are strings such as "150ms". No delay may be longer than
// an hour.
//
// Credentials, ThrottleShare, ThrottleRate and Status take the place of a verdict
// on calls with a valid signature, and the param is not spent; if several apply,
// Credentials wins over throttling, and throttling over Status. The verdict is
// reached before any Latency, so a call that is abandoned during the Latency has
// spent its param. A body that is too large or incomplete is answered as if there
// were no faults.
type Faults struct {
	// Latency is how long each answer is delayed.
	Latency time.Duration

	// Jitter is the largest random delay that is added to Latency. The delays are
	// evenly distributed.
	Jitter time.Duration

	// Steps are added to Latency: the first one for the first call after the
	// faults are set, and so on, and the last one for all calls after that.
	Steps []time.Duration

	// Hang is where each call hangs: StageHeaders, StageMidHeaders or StageBody.
	// It hangs until the client goes away, the faults are changed (the call then
	// continues), or the Server stops. Over HTTP/2, StageMidHeaders means
	// StageHeaders.
	Hang Stage

	// Trickle is the pause after each byte of the answer's body.
	Trickle time.Duration

	// Reset is where the connection is reset: StageRequest, StageMidRequest,
	// StageHeaders or StageBody. Over HTTP/2, only the stream of the call is reset.
	Reset Stage

	// CloseIdle closes each connection after its answer without announcing it in
	// the answer, as a server's idle timeout does, so that a client may be using
	// the connection for its next call just then. It has no effect over HTTP/2.
	CloseIdle bool

	// Status is the status of an answer in place of any verdict, 200 to 999. Body
	// and ContentType are sent as they are; an empty ContentType is not sent.
	Status      int
	Body        string
	ContentType string

	// ThrottleShare is the share of calls, 0 to 1, that are throttled whatever
	// their rate. A throttled call is answered with 503 and the Code
	// Throttling.User. (The service has been seen to use 400 and 429 as well. A client that ignores the
	// Code mistakes a 503 for an outage.)
	ThrottleShare float64

	// ThrottleRate is the limit on calls a second, with a burst of one second's
	// worth; calls above it are throttled. The service's own default is
	// AccountRate. Zero means no limit.
	ThrottleRate float64

	// Credentials is what is wrong with the account, even if the signature is
	// valid:
	//
	//	"wrong"      404 InvalidAccessKeyId.NotFound
	//	"expired"    400 InvalidSecurityToken.Expired
	//	"forbidden"  403 Forbidden.RAMUserAccessDenied
	//	"overdue"    403 Forbidden.AccountAccessDenied
	Credentials string

	// VerifyCode is the verdict on each param that is spent, in place of the
	// verdict that it was issued with: T or F and three digits, such as F010.
	// T005, F004, F005 and F006 are about the scene (T005 and F004 mean that it
	// is in test mode), so they are also the verdict on a well-formed param that
	// was never issued. Whether the service does the same is not known.
	VerifyCode alicaptcha.Code

	// TLSDelay is how long the TLS handshake of each new connection is delayed,
	// including connections for /faults. It needs StartTLS or the command
	// "alicaptcha simulate -tls".
	TLSDelay time.Duration

	_ [0]func() // fields by name only
}

var credentialFaults = map[string]answer{
	"wrong":   {status: 404, code: "InvalidAccessKeyId.NotFound", message: "Specified access key is not found."},
	"expired": {status: 400, code: "InvalidSecurityToken.Expired", message: "Specified SecurityToken is expired."},
	"forbidden": {
		status: 403, code: "Forbidden.RAMUserAccessDenied",
		message: "The RAM user is not authorized to perform this operation.",
	},
	"overdue": {
		status: 403, code: "Forbidden.AccountAccessDenied",
		message: "The service is not activated or the account is overdue.",
	},
}

// check returns an error if the fields contradict each other or are out of range.
func (f Faults) check() error {
	delays := append([]time.Duration{f.Latency, f.Jitter, f.Trickle, f.TLSDelay}, f.Steps...)
	odd := func(d time.Duration) bool { return d < 0 || d > maxDelay }
	_, known := credentialFaults[f.Credentials]
	bodiless := f.Status == http.StatusNoContent || f.Status == http.StatusNotModified
	switch {
	case slices.ContainsFunc(delays, odd):
		return fmt.Errorf("alicaptchatest: a delay of %v; it must be 0 to %v",
			delays[slices.IndexFunc(delays, odd)], maxDelay)
	case !slices.Contains([]Stage{"", StageHeaders, StageMidHeaders, StageBody}, f.Hang):
		return fmt.Errorf("alicaptchatest: the hang is %q; it must be %q, %q or %q",
			string(f.Hang), StageHeaders, StageMidHeaders, StageBody)
	case !slices.Contains([]Stage{"", StageRequest, StageMidRequest, StageHeaders, StageBody}, f.Reset):
		return fmt.Errorf("alicaptchatest: the reset is %q; it must be %q, %q, %q or %q",
			string(f.Reset), StageRequest, StageMidRequest, StageHeaders, StageBody)
	case f.Status != 0 && (f.Status < 200 || f.Status > 999): // net/http sends another after 1xx
		return fmt.Errorf("alicaptchatest: the status is %d; it must be 200 to 999", f.Status)
	case f.Status == 0 && (f.Body != "" || f.ContentType != ""):
		return errors.New("alicaptchatest: a body and its type require a status")
	case bodiless && f.Body != "":
		return fmt.Errorf("alicaptchatest: an answer with status %d cannot have a body", f.Status)
	case f.Status != 0 && f.Body == "" && (f.Hang == StageBody || f.Reset == StageBody):
		return errors.New("alicaptchatest: a fault in the middle of the body requires a body")
	case !(f.ThrottleShare >= 0 && f.ThrottleShare <= 1): // refuses NaN as well
		return fmt.Errorf("alicaptchatest: the throttled share is %v; it must be 0 to 1", f.ThrottleShare)
	case !(f.ThrottleRate >= 0) || math.IsInf(f.ThrottleRate, 0):
		return fmt.Errorf("alicaptchatest: the rate is %v; it must be positive, or 0 for no limit", f.ThrottleRate)
	case f.VerifyCode != "" && !isVerdict(f.VerifyCode):
		return fmt.Errorf("alicaptchatest: the code is %q; it must be T or F and three digits", string(f.VerifyCode))
	case f.Credentials != "" && !known:
		return fmt.Errorf(`alicaptchatest: the credentials are %q; they must be "wrong", "expired", "forbidden" or "overdue"`,
			f.Credentials)
	}
	return nil
}

// faultsJSON is the form of Faults in JSON.
type faultsJSON struct {
	Latency       jsonDuration    `json:"latency,omitzero"`
	Jitter        jsonDuration    `json:"jitter,omitzero"`
	Steps         []jsonDuration  `json:"steps,omitempty"`
	Hang          Stage           `json:"hang,omitzero"`
	Trickle       jsonDuration    `json:"trickle,omitzero"`
	Reset         Stage           `json:"reset,omitzero"`
	CloseIdle     bool            `json:"closeIdle,omitzero"`
	Status        int             `json:"status,omitzero"`
	Body          string          `json:"body,omitzero"`
	ContentType   string          `json:"contentType,omitzero"`
	ThrottleShare float64         `json:"throttleShare,omitzero"`
	ThrottleRate  float64         `json:"throttleRate,omitzero"`
	Credentials   string          `json:"credentials,omitzero"`
	VerifyCode    alicaptcha.Code `json:"verifyCode,omitzero"`
	TLSDelay      jsonDuration    `json:"tlsDelay,omitzero"`
}

type jsonDuration time.Duration

func (d jsonDuration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

func (d *jsonDuration) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	*d = jsonDuration(parsed)
	return err
}

// MarshalJSON returns f as POST /faults takes it.
func (f Faults) MarshalJSON() ([]byte, error) {
	var steps []jsonDuration
	for _, step := range f.Steps {
		steps = append(steps, jsonDuration(step))
	}
	return json.Marshal(faultsJSON{
		jsonDuration(f.Latency), jsonDuration(f.Jitter), steps, f.Hang, jsonDuration(f.Trickle), f.Reset, f.CloseIdle,
		f.Status, f.Body, f.ContentType, f.ThrottleShare, f.ThrottleRate,
		f.Credentials, f.VerifyCode, jsonDuration(f.TLSDelay),
	})
}

// UnmarshalJSON sets f to the JSON object in text. It returns an error if text has
// an unknown member or is null.
func (f *Faults) UnmarshalJSON(text []byte) error {
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	var in *faultsJSON
	if err := dec.Decode(&in); err != nil {
		return err
	}
	if in == nil {
		return errors.New("null is not an object")
	}
	*f = Faults{
		Latency: time.Duration(in.Latency), Jitter: time.Duration(in.Jitter),
		Hang: in.Hang, Trickle: time.Duration(in.Trickle),
		Reset: in.Reset, CloseIdle: in.CloseIdle, Status: in.Status, Body: in.Body, ContentType: in.ContentType,
		ThrottleShare: in.ThrottleShare, ThrottleRate: in.ThrottleRate, Credentials: in.Credentials,
		VerifyCode: in.VerifyCode, TLSDelay: time.Duration(in.TLSDelay),
	}
	for _, step := range in.Steps {
		f.Steps = append(f.Steps, time.Duration(step))
	}
	return nil
}

// SetFaults replaces all faults with f, or returns an error if f is not valid.
// Calls that hang or wait continue at once, without faults. Throttling starts
// again with a full burst.
func (s *Simulator) SetFaults(f Faults) error {
	if err := f.check(); err != nil {
		return err
	}
	f.Steps = slices.Clone(f.Steps)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.outage.end()
	s.outage = newOutage(s.life, f)
	return nil
}

// Faults returns the faults in force.
func (s *Simulator) Faults() Faults {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.outage.Faults
	f.Steps = slices.Clone(f.Steps)
	return f
}

func (s *Simulator) serveFaults(w http.ResponseWriter, r *http.Request) {
	switch r.Method {
	case http.MethodGet, http.MethodHead:
	case http.MethodPost:
		var f Faults
		err := readJSON(w, r, maxFaultsBody, &f)
		if err == io.EOF { // an empty body
			err = nil
		}
		if err != nil {
			refuseJSON(w, err)
			return
		}
		if err := s.SetFaults(f); err != nil {
			writeError(w, http.StatusBadRequest, err.Error())
			return
		}
	default:
		w.Header().Set("Allow", "GET, HEAD, POST")
		writeError(w, http.StatusMethodNotAllowed, "use GET or POST")
		return
	}
	writeJSON(w, http.StatusOK, s.Faults())
}

// outage is Faults in force.
type outage struct {
	Faults
	over   context.Context // done when they are replaced
	end    context.CancelFunc
	bucket *rate.Limiter
	calls  int // so far; guarded by Simulator.mu
}

func newOutage(life context.Context, f Faults) *outage {
	limit := rate.Limit(f.ThrottleRate)
	if limit == 0 {
		limit = rate.Inf
	}
	burst := min(math.Ceil(float64(limit)), math.MaxInt32)
	over, end := context.WithCancel(life)
	return &outage{Faults: f, over: over, end: end, bucket: rate.NewLimiter(limit, int(burst))}
}

// enter returns the outage for a new call, and the latency of the call.
func (s *Simulator) enter() (*outage, time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.outage
	latency := o.Latency
	if n := len(o.Steps); n > 0 {
		latency += o.Steps[min(o.calls, n-1)]
	}
	if o.Jitter > 0 {
		latency += mathrand.N(o.Jitter + 1)
	}
	o.calls++
	return o, latency
}

// instead returns the answer to a call with a valid signature in place of a
// verdict, or nil.
func (s *Simulator) instead(o *outage) *answer {
	if a, ok := credentialFaults[o.Credentials]; ok {
		return &a
	}
	s.mu.Lock()
	throttled := mathrand.Float64() < o.ThrottleShare || !o.bucket.AllowN(s.now(), 1)
	s.mu.Unlock()
	if throttled {
		return &answer{status: 503, code: "Throttling.User", message: "Request was denied due to user flow control."}
	}
	if o.Status != 0 {
		header := http.Header{"Content-Type": nil} // or net/http would detect one
		if o.ContentType != "" {
			header.Set("Content-Type", o.ContentType)
		}
		return &answer{status: o.Status, foreign: &reply{o.Status, header, []byte(o.Body)}}
	}
	return nil
}

// isOver reports whether o has been replaced.
func (o *outage) isOver() bool { return o.over.Err() != nil }

// wait returns after d, or when o is over. If ctx is done first, it aborts the
// handler by the panic that net/http has for it, because a return would send an
// answer.
func (o *outage) wait(ctx context.Context, d time.Duration) {
	if d == 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-o.over.Done():
	case <-ctx.Done():
		panic(http.ErrAbortHandler)
	}
}

// hang waits without a limit.
func (o *outage) hang(ctx context.Context) { o.wait(ctx, math.MaxInt64) }

// line is the connection of a call. If conn is nil, net/http owns the connection.
type line struct {
	w    http.ResponseWriter
	ctx  context.Context
	conn net.Conn
}

// takeOver takes the connection from net/http. It reports false if net/http does
// not give it away, which is the case over HTTP/2.
func (l *line) takeOver() bool {
	if l.conn != nil {
		return true
	}
	conn, _, err := http.NewResponseController(l.w).Hijack()
	if err != nil {
		return false
	}
	ctx, cancel := context.WithCancel(l.ctx)
	l.ctx, l.conn = ctx, conn
	go func() { // net/http no longer notices that the client is gone
		defer cancel()
		io.Copy(io.Discard, conn)
	}()
	return true
}

// close closes a connection that was taken over, because net/http does not.
func (l *line) close() {
	if l.conn != nil {
		l.conn.Close()
	}
}

// reset resets the connection. It panics if only net/http can do that, at the end of
// the handler.
func (l *line) reset() {
	if !l.takeOver() {
		panic(http.ErrAbortHandler)
	}
	conn := l.conn
	for { // below TLS, whose Close would send an alert
		above, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		conn = above.NetConn()
	}
	if tcp, ok := conn.(interface{ SetLinger(int) error }); ok {
		tcp.SetLinger(0)
	}
	conn.Close()
}

// write sends p, with pauses if o has a Trickle. Errors are ignored: a client that
// went away ends the next wait.
func (l *line) write(o *outage, p []byte) {
	to := io.Writer(l.w)
	if l.conn != nil {
		to = l.conn
	}
	for o.Trickle > 0 && len(p) > 1 {
		to.Write(p[:1])
		p = p[1:]
		l.flush()
		o.wait(l.ctx, o.Trickle)
	}
	to.Write(p)
}

func (l *line) flush() {
	if l.conn == nil {
		http.NewResponseController(l.w).Flush()
	}
}

// resetRequest resets the connection of r before the body is read, or after half
// of it.
func (o *outage) resetRequest(w http.ResponseWriter, r *http.Request) {
	if o.Reset == StageMidRequest {
		io.CopyN(io.Discard, r.Body, r.ContentLength/2+1) // the length may be -1
	}
	l := &line{w: w, ctx: r.Context()}
	defer l.close()
	l.reset()
}

// deliver sends a with the faults of o. It calls sent just before the last of the
// headers.
func (o *outage) deliver(w http.ResponseWriter, r *http.Request, a reply, latency time.Duration, sent func()) {
	l := &line{w: w, ctx: r.Context()}
	defer l.close()

	o.wait(l.ctx, latency)
	midHeaders := o.Hang == StageMidHeaders && l.takeOver()
	if o.Hang == StageHeaders || o.Hang == StageMidHeaders && !midHeaders {
		o.hang(l.ctx)
	}
	if o.Reset == StageHeaders && !o.isOver() {
		l.reset()
		return
	}

	if midHeaders || o.CloseIdle && l.takeOver() {
		head := a.head()
		if midHeaders {
			l.conn.Write(head[:len(head)/2])
			head = head[len(head)/2:]
			o.hang(l.ctx)
		}
		sent()
		l.conn.Write(head)
	} else {
		sent()
		a.writeHead(w)
	}

	if o.Hang == StageBody || o.Reset == StageBody {
		half := len(a.body) / 2
		l.write(o, a.body[:half])
		a.body = a.body[half:]
		l.flush()
		if o.Hang == StageBody {
			o.hang(l.ctx)
		}
		if o.Reset == StageBody && !o.isOver() {
			l.reset()
			return
		}
	}
	l.write(o, a.body)
}

// slowListener delays the TLS handshakes on its connections.
type slowListener struct {
	net.Listener
	sim *Simulator
}

func (l slowListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.sim.mu.Lock()
	o := l.sim.outage
	l.sim.mu.Unlock()
	if o.TLSDelay == 0 {
		return conn, nil
	}
	return &slowConn{conn, sync.OnceFunc(func() { o.wait(context.Background(), o.TLSDelay) })}, nil
}

// slowConn waits before its first Read, even if the client goes away meanwhile,
// which cannot be noticed without reading.
type slowConn struct {
	net.Conn
	wait func()
}

func (c *slowConn) Read(p []byte) (int, error) {
	c.wait()
	return c.Conn.Read(p)
}

// NetConn returns the underlying connection, like tls.Conn.NetConn.
func (c *slowConn) NetConn() net.Conn { return c.Conn }
