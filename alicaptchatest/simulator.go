// Package alicaptchatest helps to test code that uses alicaptcha, without an
// account and without a network.
//
//   - [Passing], [Rejecting] and [Failing] are Verifiers with one answer each.
//   - [NewContext] is what a handler finds behind the middleware.
//   - [AssertProtected] proves that routes are behind it.
//   - [Simulator] is the service itself, true on the wire: it checks the
//     signature of each call, takes a param once and lets it expire. [Start]
//     and [StartTLS] serve one for the length of a test.
//
// A Simulator hands params to whoever asks: it must not guard anything real.
package alicaptchatest

import (
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
	"sync"
	"time"
	"unicode/utf8"

	"github.com/alicaptcha/alicaptcha"
)

const (
	paramLife  = 20 * time.Minute // from initialisation, F014
	solvedLife = 90 * time.Second // from solving, V3 only, F019
	paramKept  = time.Hour        // what is older is forgotten, and F014 anyway

	maxCalls     = 10_000
	maxCallBytes = 64 << 20 // 10,000 calls with params of 1 MiB would be 10 GiB
	maxBody      = 1 << 20
	maxIssueBody = 64 << 10
)

// Config configures a [Simulator]. Its zero value is usable.
type Config struct {
	// AccessKeyID and AccessKeySecret are the pair that calls must be signed
	// with. If both are empty, they are "test-id" and "test-secret".
	AccessKeyID, AccessKeySecret string

	// SecurityToken makes the pair a temporary one of STS: each call must
	// carry this token. If empty, a call that carries any is refused.
	SecurityToken string

	// Scenes are the scenes of the account. If nil, they are "login" and
	// "signup".
	Scenes []string

	// ForeignScenes are scenes of another account, F006. A scene that is in
	// Scenes as well counts as foreign.
	ForeignScenes []string

	_ [0]func() // fields by name only
}

// A Simulator is an [http.Handler] that answers as the service does:
//
//   - POST / is VerifyIntelligentCaptcha of version 2023-03-05, signed with
//     ACS3-HMAC-SHA256. Faults of the call have the status, Code and shape of
//     the service's gateway.
//   - POST /issue stands for the browser: it takes an [Issue] in JSON and
//     answers {"captchaVerifyParam":"…"}, or 400 and {"error":"…"}.
//
// Where the service's verdict depends on what nobody can see, a param passes
// if it was issued to pass. What can be seen is judged: the form of the param,
// its scene, its age, whether a byte of it was changed, whether it was used.
//
// It is safe for concurrent use. Its memory is bounded by the calls and params
// of the last hour.
type Simulator struct {
	cfg Config // complete, never written to

	mu        sync.Mutex
	offset    time.Duration
	swept     time.Time
	nonces    map[string]time.Time // until when each is remembered
	minted    map[string]*record   // by certifyId
	calls     []Call               // the last ones
	callBytes int
	count     int
}

// A record is what a Simulator knows of a param that it issued.
type record struct {
	sum    [sha256.Size]byte
	format Format
	code   alicaptcha.Code
	at     time.Time
	used   bool
}

// NewSimulator returns a Simulator for cfg. Changing cfg later changes nothing.
// It panics if cfg has one half of an AccessKey pair only.
func NewSimulator(cfg Config) *Simulator {
	if cfg.AccessKeyID == "" && cfg.AccessKeySecret == "" {
		cfg.AccessKeyID, cfg.AccessKeySecret = "test-id", "test-secret"
	}
	if cfg.AccessKeyID == "" || cfg.AccessKeySecret == "" {
		panic("alicaptchatest: Config has one of AccessKeyID and AccessKeySecret without the other")
	}
	if cfg.Scenes == nil {
		cfg.Scenes = []string{"login", "signup"}
	}
	cfg.Scenes = slices.Clone(cfg.Scenes)
	cfg.ForeignScenes = slices.Clone(cfg.ForeignScenes)
	return &Simulator{cfg: cfg, nonces: map[string]time.Time{}, minted: map[string]*record{}}
}

// A Call is one call to POST / as the Simulator saw it, whether or not it was
// well signed. Time is by the Simulator's clock.
type Call struct {
	Time        time.Time
	Param       string // empty where the body could not be read
	SceneID     string
	HasSceneID  bool // a SceneId was sent, if only an empty one
	Header      http.Header
	Status      int
	ServiceCode string          // the answer's Code, such as Success or SignatureDoesNotMatch
	VerifyCode  alicaptcha.Code // empty without a verdict
}

// size is about what c takes of the memory for calls.
func (c *Call) size() int {
	n := len(c.Param) + len(c.SceneID)
	for name, values := range c.Header {
		for _, v := range values {
			n += len(name) + len(v)
		}
	}
	return n
}

// Calls returns copies of the last 10,000 calls to POST /, oldest first; fewer
// if together they are larger than 64 MiB. A call is in it before its answer is
// sent.
func (s *Simulator) Calls() []Call {
	s.mu.Lock()
	defer s.mu.Unlock()
	calls := slices.Clone(s.calls)
	for i := range calls {
		calls[i].Header = calls[i].Header.Clone()
	}
	return calls
}

// Count returns how many calls to POST / there were so far.
func (s *Simulator) Count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count
}

// Advance moves the Simulator's clock forward, by which params expire and the
// dates of signatures are checked: a client's clock, which stays, is wrong by
// as much afterwards. It panics if d is negative.
func (s *Simulator) Advance(d time.Duration) {
	if d < 0 {
		panic("alicaptchatest: Advance by a negative duration")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.offset += d
}

// now is the Simulator's clock. It also forgets what can change no answer any
// more. s.mu must be held.
func (s *Simulator) now() time.Time {
	now := time.Now().Add(s.offset)
	if now.Sub(s.swept) > time.Minute {
		s.swept = now
		maps.DeleteFunc(s.nonces, func(_ string, until time.Time) bool { return now.After(until) })
		maps.DeleteFunc(s.minted, func(_ string, rec *record) bool { return now.Sub(rec.at) > paramKept })
	}
	return now
}

// clock is now for a caller that does not hold s.mu.
func (s *Simulator) clock() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now()
}

// Issue returns a new param, as the widget hands it to the page. It returns an
// error if i is not as its fields demand.
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
		return "", fmt.Errorf("alicaptchatest: the format is %q; it must be %q or %q", string(i.Format), string(V3), string(V2))
	case letter(i.Code) == 0:
		return "", fmt.Errorf("alicaptchatest: the code is %q; it must be T or F and three digits", string(i.Code))
	case i.Bytes < 0 || i.Bytes > maxData:
		return "", fmt.Errorf("alicaptchatest: %d bytes; it must be 0 to %d", i.Bytes, maxData)
	case i.Bytes != 0 && i.Format == V3:
		return "", errors.New("alicaptchatest: a v3 param has no data whose bytes could be chosen")
	}
	certifyID := rand.Text()
	param := mint(i, certifyID)

	s.mu.Lock()
	defer s.mu.Unlock()
	s.minted[certifyID] = &record{sum: sha256.Sum256([]byte(param)), format: i.Format, code: i.Code, at: s.now()}
	return param, nil
}

// ServeHTTP answers POST / and POST /issue, see [Simulator].
func (s *Simulator) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path == "/issue":
		s.serveIssue(w, r)
	case r.URL.Path != "/":
		writeAnswer(w, r, answer{status: 404, code: "InvalidAction.NotFound", message: "The specified path is not found."})
	case r.Method != http.MethodPost:
		w.Header().Set("Allow", http.MethodPost)
		writeAnswer(w, r, answer{status: 405, code: "UnsupportedHTTPMethod", message: "This http method is not supported."})
	default:
		s.serveCall(w, r)
	}
}

func (s *Simulator) serveIssue(w http.ResponseWriter, r *http.Request) {
	refuse := func(status int, why string) {
		writeJSON(w, status, map[string]string{"error": why})
	}
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		refuse(http.StatusMethodNotAllowed, "use POST")
		return
	}
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxIssueBody))
	dec.DisallowUnknownFields()
	var i Issue
	err := dec.Decode(&i)
	if err == nil {
		if _, end := dec.Token(); end != io.EOF {
			err = errors.New("there is something after the JSON object")
		}
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		refuse(http.StatusRequestEntityTooLarge, "the body is too large")
		return
	}
	if err != nil {
		refuse(http.StatusBadRequest, "the body is not as it should be: "+err.Error())
		return
	}
	param, err := s.Issue(i)
	if err != nil {
		refuse(http.StatusBadRequest, err.Error())
		return
	}
	writeJSON(w, http.StatusOK, map[string]string{"captchaVerifyParam": param})
}

func (s *Simulator) serveCall(w http.ResponseWriter, r *http.Request) {
	call := Call{Time: s.clock(), Header: r.Header.Clone()}
	var a answer
	if body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody)); err != nil {
		a = answer{status: 400, code: "InvalidParameter", message: "The request body cannot be read."}
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			a.status = 413
		}
	} else {
		form, err := parseForm(r.Header.Get("Content-Type"), body)
		call.Param, call.SceneID, call.HasSceneID = form.Get("CaptchaVerifyParam"), form.Get("SceneId"), form.Has("SceneId")
		if fault := s.authenticate(r, body); fault != nil {
			a = *fault
		} else {
			a = s.verify(form, err)
		}
	}
	call.Status, call.ServiceCode, call.VerifyCode = a.status, a.code, a.verdict
	s.record(call)
	writeAnswer(w, r, a)
}

func (s *Simulator) record(call Call) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count++
	s.calls = append(s.calls, call)
	s.callBytes += call.size()
	for len(s.calls) > maxCalls || s.callBytes > maxCallBytes {
		s.callBytes -= s.calls[0].size()
		s.calls[0] = Call{} // the array behind the slice lives on for a while
		s.calls = s.calls[1:]
	}
}

// parseForm returns no values for a body that is not a form.
func parseForm(contentType string, body []byte) (url.Values, error) {
	if mediaType, _, err := mime.ParseMediaType(contentType); err != nil || mediaType != "application/x-www-form-urlencoded" {
		return nil, nil
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, err
	}
	for _, name := range []string{"CaptchaVerifyParam", "SceneId"} {
		if len(form[name]) > 1 {
			return nil, fmt.Errorf("%s is there twice", name)
		}
		if !utf8.ValidString(form.Get(name)) {
			return nil, fmt.Errorf("%s is not UTF-8", name)
		}
	}
	return form, nil
}

// verify answers a call that is well signed.
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

// judge returns the verdict on param, and its certifyId if s issued it.
func (s *Simulator) judge(text, sceneID string, hasSceneID bool) (alicaptcha.Code, string) {
	if text == "" {
		return alicaptcha.F002, ""
	}
	p, ok := parseParam(text)
	if !ok {
		return alicaptcha.F003, ""
	}
	if !p.complete {
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
	case rec == nil:
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
	return rec.code, certifyID
}

// An answer is the Simulator's: a verdict if status is 200, else an error.
type answer struct {
	status        int
	code, message string
	verdict       alicaptcha.Code
	certifyID     string
}

func writeAnswer(w http.ResponseWriter, r *http.Request, a answer) {
	requestID := newRequestID()
	w.Header().Set("X-Acs-Request-Id", requestID)
	if a.status != http.StatusOK {
		writeJSON(w, a.status, struct {
			RequestID string `json:"RequestId"`
			HostID    string `json:"HostId"`
			Code      string
			Message   string
		}{requestID, r.Host, a.code, a.message})
		return
	}
	type result struct {
		VerifyResult bool
		VerifyCode   alicaptcha.Code
		CertifyID    string `json:"CertifyId,omitzero"`
	}
	writeJSON(w, a.status, struct {
		RequestID string `json:"RequestId"`
		Message   string
		Code      string
		Success   bool
		Result    result
	}{requestID, a.message, a.code, true, result{letter(a.verdict) == 'T', a.verdict, a.certifyID}})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		panic(err) // texts and booleans only
	}
	w.Header().Set("Content-Type", "application/json;charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	w.Write(body) // a client that went away has no use for an error
}

// newRequestID returns a random UUID in capitals.
func newRequestID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%X-%X-%X-%X-%X", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
