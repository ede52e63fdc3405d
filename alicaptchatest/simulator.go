// Package alicaptchatest helps to test code that uses alicaptcha, without an
// account and without network access beyond this machine.
//
//   - [Passing], [Rejecting] and [Failing] return Verifiers with a fixed answer.
//   - [NewContext] returns the context of a handler behind the middleware.
//   - [AssertProtected] checks that routes are behind the middleware.
//   - [Simulator] speaks the service's wire protocol, including signatures. It
//     accepts each param once, and params expire. [Start] and [StartTLS] serve a
//     Simulator until the end of a test. [Faults] simulate outages.
//
// A Simulator issues params to anyone who asks. It must not be used to protect
// anything.
package alicaptchatest

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/alicaptcha/alicaptcha"
)

const (
	paramLife  = 20 * time.Minute // from initialization, F014
	solvedLife = 90 * time.Second // from solving, V3 only, F019
	paramKept  = time.Hour        // older params are forgotten, and F014 anyway

	keepAlive = 25 * time.Second // what the service's gateway announces; [Start] closes idle connections then

	maxMinted    = 1 << 20 // the oldest is forgotten earlier
	maxCalls     = 10_000
	maxCallBytes = 64 << 20 // 10,000 calls with params of 1 MiB would be 10 GiB
	maxBody      = 1 << 20
	maxIssueBody = 64 << 10
	bodyTime     = 30 * time.Second // for the body of a request; the answer may be an hour late
)

// Config configures a [Simulator]. Its zero value is usable.
type Config struct {
	// AccessKeyID and AccessKeySecret are the AccessKey that calls must be signed
	// with. If both are empty, they are "test-id" and "test-secret".
	AccessKeyID, AccessKeySecret string

	// SecurityToken makes the AccessKey a temporary one from STS: each call must
	// carry this token. If empty, a call that carries a token is refused.
	SecurityToken string

	// Scenes are the scenes of the account. Nil means "login" and
	// "signup".
	Scenes []string

	// ForeignScenes are scenes of another account, for which the verdict is F006. A
	// scene that is in Scenes as well counts as foreign.
	ForeignScenes []string

	// EKey switches encrypted mode on: it is the account's key for it, in base64 of
	// 32 bytes. The script then gets no V3 param without a valid EncryptedSceneId,
	// and the verdict F022 instead. Issue and POST /issue need none.
	EKey string

	_ [0]func() // fields by name only
}

// Simulator is an [http.Handler] that answers as the service does:
//
//   - POST / is VerifyIntelligentCaptcha of version 2023-03-05, signed with
//     ACS3-HMAC-SHA256. An invalid call is answered with the status, the Code and
//     the format of the service's gateway.
//   - GET /AliyunCaptcha.js stands in for the vendor's script. A page that differs
//     only in the script's URL shows a slider as the challenge, which can be moved
//     with a mouse, a finger or a keyboard. Its initAliyunCaptcha takes the options
//     of V3 with success and of V2 with captchaVerifyCallback, each as popup and
//     embed, and is as awkward as the vendor's. A query of the script's URL asks
//     for faults, which the beginning of the script lists. The script itself uses
//     POST /widget/init and POST /widget/verify.
//   - POST /issue issues a param without a browser. It takes an [Issue] in JSON,
//     and answers with {"captchaVerifyParam":"…"}, or with 400 and {"error":"…"}.
//     Pages of any origin may read the answer.
//   - POST /faults calls SetFaults. It takes [Faults] in JSON, or an empty body for
//     none, and answers with the faults then in force, or with 400 and
//     {"error":"…"}. GET /faults returns the faults in force. Except for TLSDelay,
//     faults affect POST / only.
//
// The service's verdict on a person cannot be simulated: a param passes if it was
// issued to pass. The rest is checked: the format of the param, its scene, its age,
// and whether it was changed or used before. The param that a script makes itself
// because it cannot reach the service is rejected: with F023 for V2, and for V3, for
// which the service's verdict is not known, with F014.
//
// A Simulator is safe for concurrent use. It remembers the params of the last hour,
// at most the newest million, and a bounded number of calls. A server that waits for
// its calls when it stops may wait forever for one that a fault holds up, unless
// SetFaults(Faults{}) is called first. [Server] does that itself.
type Simulator struct {
	cfg  Config          // with all defaults; never changed
	ekey []byte          // nil without encrypted mode
	life context.Context // done when faults must no longer hold up calls
	stop context.CancelFunc

	mu        sync.Mutex
	outage    *outage
	offset    time.Duration
	swept     time.Time
	nonces    map[string]time.Time // until when each is remembered
	minted    map[string]*record   // by certifyId
	order     []string             // the certifyIds of minted, oldest first
	calls     []*Call              // the most recent ones
	callBytes int
	count     int
}

// record is what a Simulator knows about a param that it issued.
type record struct {
	sum    [sha256.Size]byte
	format Format
	code   alicaptcha.Code
	at     time.Time
	used   bool
}

// NewSimulator returns a Simulator for cfg. Later changes to cfg have no effect. It
// panics if only one of AccessKeyID and AccessKeySecret is set, or if EKey is not
// valid.
func NewSimulator(cfg Config) *Simulator {
	if cfg.AccessKeyID == "" && cfg.AccessKeySecret == "" {
		cfg.AccessKeyID, cfg.AccessKeySecret = "test-id", "test-secret"
	}
	if cfg.AccessKeyID == "" || cfg.AccessKeySecret == "" {
		panic("alicaptchatest: Config has only one of AccessKeyID and AccessKeySecret")
	}
	if cfg.Scenes == nil {
		cfg.Scenes = []string{"login", "signup"}
	}
	cfg.Scenes = slices.Clone(cfg.Scenes)
	cfg.ForeignScenes = slices.Clone(cfg.ForeignScenes)
	s := &Simulator{cfg: cfg, nonces: map[string]time.Time{}, minted: map[string]*record{}}
	if cfg.EKey != "" {
		ekey, err := parseEKey(cfg.EKey)
		if err != nil {
			panic(err.Error())
		}
		s.ekey = ekey
	}
	s.life, s.stop = context.WithCancel(context.Background())
	s.outage = newOutage(s.life, Faults{})
	return s
}

// Call is a call to POST / as the Simulator received it, whether or not its
// signature was valid.
type Call struct {
	Time        time.Time       // by the Simulator's clock
	Param       string          // empty if the body could not be read
	SceneID     string          // empty if the body could not be read
	HasSceneID  bool            // whether a SceneId was sent, even an empty one
	Header      http.Header     // as it was received
	Status      int             // 0 until the headers of the answer are sent, and if they never are
	ServiceCode string          // the Code of the answer, such as Success, even if it was not sent
	VerifyCode  alicaptcha.Code // the verdict, even if it was not sent; empty without one
}

// size returns about how many bytes of memory c takes.
func (c *Call) size() int {
	n := len(c.Param) + len(c.SceneID)
	for name, values := range c.Header {
		for _, v := range values {
			n += len(name) + len(v)
		}
	}
	return n
}

// Calls returns copies of the last 10,000 calls to POST /, oldest first, or fewer
// if they take more than 64 MiB. A call is included before its answer is sent.
func (s *Simulator) Calls() []Call {
	s.mu.Lock()
	defer s.mu.Unlock()
	calls := make([]Call, len(s.calls))
	for i, call := range s.calls {
		calls[i] = *call
		calls[i].Header = call.Header.Clone()
	}
	return calls
}

// Count returns the number of calls to POST / so far.
func (s *Simulator) Count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count
}

// Advance moves the Simulator's clock forward by d, which affects the expiry of
// params and throttling. The dates of signatures are still compared with the real
// time, because the client's clock does not move. Advance panics if d is negative.
func (s *Simulator) Advance(d time.Duration) {
	if d < 0 {
		panic("alicaptchatest: Advance by a negative duration")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.offset += d
}

// now returns the time on the Simulator's clock. It also forgets what can no longer
// change an answer. s.mu must be held.
func (s *Simulator) now() time.Time {
	now := time.Now().Add(s.offset)
	if now.Sub(s.swept) > time.Minute {
		s.swept = now
		maps.DeleteFunc(s.nonces, func(_ string, until time.Time) bool { return time.Now().After(until) })
		for len(s.order) > 0 && now.Sub(s.minted[s.order[0]].at) > paramKept {
			s.forget()
		}
	}
	return now
}

// clock is like now, for callers that do not hold s.mu.
func (s *Simulator) clock() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now()
}

// Issue returns a new param, as the widget passes it to the page. It returns an
// error if i is not valid.
func (s *Simulator) Issue(i Issue) (string, error) {
	if i.Code == "" {
		i.Code = alicaptcha.T001
	}
	if i.Format == "" {
		i.Format = V3
	}
	switch {
	case !slices.Contains(s.cfg.Scenes, i.SceneID):
		return "", fmt.Errorf("alicaptchatest: %q is not a scene of the account", i.SceneID)
	case i.Format != V3 && i.Format != V2:
		return "", fmt.Errorf("alicaptchatest: the format is %q; it must be %q or %q",
			string(i.Format), string(V3), string(V2))
	case !isVerdict(i.Code):
		return "", fmt.Errorf("alicaptchatest: the code is %q; it must be T or F and three digits", string(i.Code))
	case i.Bytes < 0 || i.Bytes > maxData:
		return "", fmt.Errorf("alicaptchatest: the bytes are %d; they must be 0 to %d", i.Bytes, maxData)
	case i.Bytes != 0 && i.Format == V3:
		return "", errors.New("alicaptchatest: the bytes must be 0 for a v3 param")
	}
	param, _ := s.mint(i, "")
	return param, nil
}

// mint returns a new param for i, which must be valid and complete. If userCertifyID
// is empty, the certifyId has 10 letters and digits, like the service's. mint reports
// false if userCertifyID was used before. What the service does then is not known.
func (s *Simulator) mint(i Issue, userCertifyID string) (string, bool) {
	for {
		certifyID := cmp.Or(userCertifyID, rand.Text()[:10])
		param := mint(i, certifyID)
		isNew := s.keep(certifyID, &record{sum: sha256.Sum256([]byte(param)), format: i.Format, code: i.Code})
		if isNew || userCertifyID != "" {
			return param, isNew
		}
	}
}

// keep remembers a param. It reports false if there is one with its certifyID.
func (s *Simulator) keep(certifyID string, rec *record) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	rec.at = s.now()
	if s.minted[certifyID] != nil {
		return false
	}
	if len(s.order) >= maxMinted {
		s.forget()
	}
	s.minted[certifyID] = rec
	s.order = append(s.order, certifyID)
	return true
}

// forget forgets the oldest param. s.mu must be held.
func (s *Simulator) forget() {
	delete(s.minted, s.order[0])
	s.order = s.order[1:]
}

// ServeHTTP answers as described at [Simulator]. It panics with
// [http.ErrAbortHandler] if a fault breaks off an answer and w does not support
// hijacking, which is the case for HTTP/2 and [net/http/httptest.ResponseRecorder].
func (s *Simulator) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor == 1 { // HTTP/2 has no such header
		w.Header().Set("Keep-Alive", fmt.Sprintf("timeout=%.0f", keepAlive.Seconds()))
	}
	switch {
	case r.URL.Path == "/issue":
		s.serveIssue(w, r)
	case r.URL.Path == "/faults":
		s.serveFaults(w, r)
	case r.URL.Path == "/AliyunCaptcha.js":
		serveWidget(w, r)
	case r.URL.Path == "/widget/init" || r.URL.Path == "/widget/verify":
		s.serveWidgetCall(w, r)
	case r.URL.Path != "/":
		missing := answer{status: 404, code: "InvalidAction.NotFound", message: "The specified path is not found."}
		missing.reply(r.Host).write(w)
	case r.Method != http.MethodPost:
		w.Header().Set("Allow", http.MethodPost)
		refusal := answer{status: 405, code: "UnsupportedHTTPMethod", message: "This http method is not supported."}
		refusal.reply(r.Host).write(w)
	default:
		s.serveCall(w, r)
	}
}

func (s *Simulator) serveIssue(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Access-Control-Allow-Origin", "*") // the page has another origin
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		writeError(w, http.StatusMethodNotAllowed, "use POST")
		return
	}
	var i Issue
	if err := readJSON(w, r, maxIssueBody, &i); err != nil {
		refuseJSON(w, err)
		return
	}
	param, err := s.Issue(i)
	if err != nil {
		writeError(w, http.StatusBadRequest, err.Error())
		return
	}
	writeJSON(w, http.StatusOK, map[string]string{"captchaVerifyParam": param})
}

// readBody returns the body of r, for which a slow client has bodyTime.
func readBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	// The deadline stands after an error, or net/http would wait for the rest, and ends
	// with the body. The recorders of tests support none.
	http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTime))
	return io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
}

// readJSON decodes the body of r, which must be one JSON value without unknown
// members, into v. The error for an empty body is io.EOF.
func readJSON(w http.ResponseWriter, r *http.Request, limit int64, v any) error {
	// The Decoder must not read the body: with GOEXPERIMENT=jsonv2 it reports a
	// syntax error for a body that is too large.
	text, err := readBody(w, r, limit)
	if err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if _, end := dec.Token(); end != io.EOF {
		return errors.New("there is something after the JSON object")
	}
	return nil
}

// refuseJSON answers a request for which readJSON returned err.
func refuseJSON(w http.ResponseWriter, err error) {
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		writeError(w, http.StatusRequestEntityTooLarge, "the body is too large")
		return
	}
	writeError(w, http.StatusBadRequest, "the body is not valid: "+err.Error())
}

func (s *Simulator) serveCall(w http.ResponseWriter, r *http.Request) {
	call := &Call{Time: s.clock(), Header: r.Header.Clone()}
	o, latency := s.enter()
	if o.Reset == StageRequest || o.Reset == StageMidRequest {
		s.record(call)
		o.resetRequest(w, r)
		return
	}
	body, err := readBody(w, r, maxBody)
	if err != nil {
		a := answer{status: 400, code: "InvalidParameter", message: "The request body cannot be read."}
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			a.status = 413
		}
		call.Status, call.ServiceCode = a.status, a.code
		s.record(call)
		// No faults here: while the client has more to send, its going away is not noticed.
		a.reply(r.Host).write(w)
		return
	}

	form, err := parseForm(r.Header.Get("Content-Type"), body)
	call.Param, call.SceneID, call.HasSceneID = form.Get("CaptchaVerifyParam"), form.Get("SceneId"), form.Has("SceneId")
	var a answer
	if fault := s.authenticate(r, body); fault != nil {
		a = *fault
	} else if fault := s.instead(o); fault != nil {
		a = *fault
	} else {
		a = s.verify(form, err)
	}
	call.ServiceCode, call.VerifyCode = a.code, a.verdict
	s.record(call)
	o.deliver(w, r, a.reply(r.Host), latency, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		call.Status = a.status
	})
}

// record adds call to the calls. From then on it is guarded by s.mu.
func (s *Simulator) record(call *Call) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count++
	s.calls = append(s.calls, call)
	s.callBytes += call.size()
	for len(s.calls) > maxCalls || s.callBytes > maxCallBytes {
		s.callBytes -= s.calls[0].size()
		s.calls[0] = nil // the underlying array is kept for a while
		s.calls = s.calls[1:]
	}
}

// parseForm parses a body. It returns no values if the body is not a form.
func parseForm(contentType string, body []byte) (url.Values, error) {
	mediaType, _, err := mime.ParseMediaType(contentType)
	if err != nil || mediaType != "application/x-www-form-urlencoded" {
		return nil, nil
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, err
	}
	for _, name := range []string{"CaptchaVerifyParam", "SceneId"} {
		if len(form[name]) > 1 {
			return nil, fmt.Errorf("%s is sent twice", name)
		}
		if !utf8.ValidString(form.Get(name)) {
			return nil, fmt.Errorf("%s is not UTF-8", name)
		}
	}
	return form, nil
}

// verify returns the answer to a call with a valid signature.
func (s *Simulator) verify(form url.Values, err error) answer {
	switch {
	case err != nil:
		return answer{status: 401, code: "InvalidParameter", message: "One or more parameters are invalid."}
	case !form.Has("CaptchaVerifyParam"):
		return answer{status: 400, code: "MissingParameter", message: "CaptchaVerifyParam is mandatory for this action."}
	}
	verdict, certifyID := s.judge(form.Get("CaptchaVerifyParam"), form.Get("SceneId"), form.Has("SceneId"))
	return answer{status: 200, code: "Success", message: "success", verdict: verdict, certifyID: certifyID}
}

// judge returns the verdict on the param in text, and its certifyId if s issued it.
func (s *Simulator) judge(text, sceneID string, hasSceneID bool) (alicaptcha.Code, string) {
	if text == "" {
		return alicaptcha.F002, ""
	}
	p, ok := parseParam(text)
	if !ok {
		return alicaptcha.F003, ""
	}
	if !p.complete && !p.failover {
		return alicaptcha.F013, ""
	}
	sum := sha256.Sum256([]byte(text))

	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	rec := s.minted[p.certifyID]
	intact := rec != nil && rec.sum == sum
	var certifyID string
	if intact {
		certifyID = p.certifyID
	}
	switch {
	case hasSceneID && slices.Contains(s.cfg.ForeignScenes, sceneID):
		return alicaptcha.F006, certifyID
	case hasSceneID && !slices.Contains(s.cfg.Scenes, sceneID):
		return alicaptcha.F005, certifyID
	case hasSceneID && sceneID != p.sceneID:
		return alicaptcha.F012, certifyID
	case rec == nil && isAboutScene(s.outage.VerifyCode):
		return s.outage.VerifyCode, certifyID
	case p.failover && p.format == V2:
		return alicaptcha.F023, ""
	case rec == nil: // also V3's failover, because the service's verdict on that is not known
		return alicaptcha.F014, certifyID
	case !intact:
		return alicaptcha.F017, certifyID
	case rec.used && rec.format == V2:
		return alicaptcha.F008, certifyID
	case rec.used:
		return alicaptcha.F018, certifyID
	case now.Sub(rec.at) > paramLife:
		return alicaptcha.F014, certifyID
	case now.Sub(rec.at) > solvedLife && rec.format == V3:
		return alicaptcha.F019, certifyID
	}
	rec.used = true
	return cmp.Or(s.outage.VerifyCode, rec.code), certifyID
}

// answer is an answer of the Simulator: a verdict if status is 200, or else an error.
type answer struct {
	status        int
	code, message string
	verdict       alicaptcha.Code
	certifyID     string
	foreign       *reply // if not nil, it is sent in place of the rest
}

// reply returns a as the service sends it to a client that called it by host.
func (a answer) reply(host string) reply {
	if a.foreign != nil {
		return *a.foreign
	}
	requestID := newRequestID()
	var rep reply
	if a.status != http.StatusOK {
		rep = replyJSON(a.status, struct {
			RequestID string `json:"RequestId"`
			HostID    string `json:"HostId"`
			Code      string
			Message   string
		}{requestID, host, a.code, a.message})
	} else {
		passed, _ := a.verdict.Verdict()
		type result struct {
			VerifyResult bool
			VerifyCode   alicaptcha.Code
			CertifyID    string `json:"CertifyId,omitzero"`
		}
		rep = replyJSON(a.status, struct {
			RequestID string `json:"RequestId"`
			Message   string
			Code      string
			Success   bool
			Result    result
		}{requestID, a.message, a.code, true, result{passed, a.verdict, a.certifyID}})
	}
	rep.header.Set("X-Acs-Request-Id", requestID)
	return rep
}

// reply is an answer as it is sent.
type reply struct {
	status int
	header http.Header
	body   []byte
}

func replyJSON(status int, v any) reply {
	header := http.Header{"Content-Type": {"application/json;charset=utf-8"}, "Cache-Control": {"no-store"}}
	return reply{status, header, marshal(v)}
}

func (rep reply) write(w http.ResponseWriter) {
	rep.writeHead(w)
	w.Write(rep.body) // an error means that the client went away
}

func (rep reply) writeHead(w http.ResponseWriter) {
	maps.Copy(w.Header(), rep.header)
	if len(rep.body) > 0 {
		w.Header().Set("Content-Length", strconv.Itoa(len(rep.body)))
	}
	w.WriteHeader(rep.status)
}

// head returns the status line and headers for a connection that was taken over.
func (rep reply) head() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "HTTP/1.1 %03d %s\r\n", rep.status, http.StatusText(rep.status))
	rep.header.Write(&b)
	if rep.status != http.StatusNoContent && rep.status != http.StatusNotModified {
		fmt.Fprintf(&b, "Content-Length: %d\r\n", len(rep.body))
	}
	fmt.Fprintf(&b, "Date: %s\r\n\r\n", time.Now().UTC().Format(http.TimeFormat))
	return b.Bytes()
}

func writeJSON(w http.ResponseWriter, status int, v any) { replyJSON(status, v).write(w) }

func writeError(w http.ResponseWriter, status int, why string) {
	writeJSON(w, status, map[string]string{"error": why})
}

// newRequestID returns a random UUID in upper case.
func newRequestID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%X-%X-%X-%X-%X", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
