package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/alicaptcha/alicaptcha"
	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
	"golang.org/x/time/rate"
)

const (
	maxBodyBytes = 128 << 10 // far more than a param of 28 KB and a form around it
	postsAMinute = 60        // from one address
	sceneLife    = time.Hour // of an EncryptedSceneId: longer than most people stay on a page
)

// settings contains everything that differs between the simulator and the real
// service. The pages use its exported fields.
type settings struct {
	client                  alicaptcha.ClientConfig
	ekey                    string               // empty outside encrypted mode
	sceneKey                *alicaptcha.SceneKey // for ekey; newSite sets it
	LoginScene, SignupScene string
	Prefix                  string
	Script                  string   // the URL of the widget's script
	Origins                 string   // from which the widget loads its parts, for the Content-Security-Policy
	Commands                []string // simulator only
}

// Region returns the region for the widget on the page.
func (s settings) Region() string { return string(s.client.Region) }

// newSite returns the site.
func newSite(s settings, logger *slog.Logger) (http.Handler, error) {
	client, err := alicaptcha.NewClient(s.client)
	if err != nil {
		return nil, err
	}
	// Fail fast while the service is down.
	verifier, err := alicaptcha.NewBreaker(client, alicaptcha.BreakerConfig{Logger: logger})
	if err != nil {
		return nil, err
	}
	// A param is valid only for its own scene, so each form has its own Middleware.
	// They share the Client and the Breaker.
	login, err := alicaptcha.New(alicaptcha.Config{Verifier: verifier, SceneID: s.LoginScene, Logger: logger})
	if err != nil {
		return nil, err
	}
	signup, err := alicaptcha.New(alicaptcha.Config{Verifier: verifier, SceneID: s.SignupScene, Logger: logger})
	if err != nil {
		return nil, err
	}

	if s.ekey != "" {
		if s.sceneKey, err = alicaptcha.NewSceneKey(s.ekey); err != nil {
			return nil, err
		}
		for _, scene := range []string{s.LoginScene, s.SignupScene} {
			if _, err := s.sceneKey.Encrypt(scene, sceneLife); err != nil {
				return nil, err // rather than on each page
			}
		}
	}

	crossOrigin := http.NewCrossOriginProtection()
	crossOrigin.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		reply(w, r, http.StatusForbidden, answer{Error: "cross-origin request"})
	}))

	r := chi.NewRouter()
	r.Use(secure, middleware.GetHead)
	r.Get("/", func(w http.ResponseWriter, r *http.Request) { s.page(r).show(w, http.StatusOK, "index") })
	for _, path := range []string{"/login", "/signup", "/adaptive"} {
		r.Get(path, func(w http.ResponseWriter, r *http.Request) {
			go client.Warm(context.WithoutCancel(r.Context())) // the form will need a connection
			s.page(r).show(w, http.StatusOK, "form")
		})
	}
	for _, name := range []string{"style.css", "page.js"} {
		r.Get("/"+name, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Cache-Control", "no-cache")
			http.ServeFileFS(w, r, web, "web/"+name)
		})
	}
	r.Group(func(r chi.Router) {
		// Checks that cost nothing come before the captcha. A form of another site
		// must not cause a verification. A flood from one address must end here:
		// for each further request the site reads a body and asks the service,
		// which charges for it and limits the calls of the whole account. And the
		// captcha must not read more of a body than the handler would.
		r.Use(crossOrigin.Handler)
		r.Use(newPostLimits().handler)
		r.Use(func(next http.Handler) http.Handler { return http.MaxBytesHandler(next, maxBodyBytes) })

		r.With(login.Handler).Post("/login", handleLogin)
		r.With(signup.Handler).Post("/signup", s.handleSignup)
		r.With(login.Deferred).Post("/adaptive", newAdaptive().handle)
	})
	return r, nil
}

// address returns the address of the client. For IPv6 it returns the network, a /64,
// because a client has many addresses in it. This is the address of the connection,
// so behind a proxy it is that of the proxy. There, use the header in which your proxy
// sends the address of the client, but only if clients cannot set that header.
func address(r *http.Request) netip.Prefix {
	from, _ := netip.ParseAddrPort(r.RemoteAddr) // connections without an address count as one client
	ip := from.Addr().Unmap()
	network, _ := ip.Prefix(min(64, ip.BitLen()))
	return network
}

// postLimits limits how often an address may post. It is a table with a fixed size, so
// that an attacker with many addresses cannot make it grow. Addresses with the same
// entry share its limit. Clients cannot know which ones do, because the seed is random.
type postLimits struct {
	seed    maphash.Seed
	entries [4096]*rate.Limiter
}

func newPostLimits() *postLimits {
	l := &postLimits{seed: maphash.MakeSeed()}
	for i := range l.entries {
		l.entries[i] = rate.NewLimiter(rate.Every(time.Minute/postsAMinute), postsAMinute)
	}
	return l
}

// handler returns a handler that calls next unless the client has posted too often.
func (l *postLimits) handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !l.entries[maphash.Comparable(l.seed, address(r))%uint64(len(l.entries))].Allow() {
			tooMany(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// secure sets the headers that every answer should have.
func secure(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Referrer-Policy", "same-origin")
		next.ServeHTTP(w, r)
	})
}

// tooMany writes the same rejection as the captcha does for too many requests,
// so that the page needs to know only one.
func tooMany(w http.ResponseWriter, r *http.Request) {
	alicaptcha.WriteRejection(w, r, alicaptcha.Outcome{Action: alicaptcha.Action{
		Status: http.StatusTooManyRequests, Reason: "captcha_rate_limited", RetryAfter: time.Minute / postsAMinute,
	}})
}

// A loginBody is the body of a login.
type loginBody struct {
	Param    json.RawMessage `json:"captchaVerifyParam"` // read by the middleware
	Username string          `json:"username"`
	Password string          `json:"password"`
}

// handleLogin is called only if the captcha was passed.
func handleLogin(w http.ResponseWriter, r *http.Request) {
	var in loginBody
	if err := decode(r.Body, &in); err != nil {
		badBody(w, r, "the body is not the JSON of a login", err)
		return
	}
	if !in.correct() {
		// The param is spent anyway, so the page starts a new challenge.
		reply(w, r, http.StatusUnauthorized, answer{Error: "wrong username or password"})
		return
	}
	reply(w, r, http.StatusOK, answer{User: in.Username})
}

// correct reports whether both fields are correct. It takes the same time in all
// cases.
func (in loginBody) correct() bool {
	return equal(in.Username, "alice")&equal(in.Password, "correct-horse") == 1
}

// adaptive is a login that requires a captcha once there were too many failures.
// Replicas need a store that they share and that compares and counts in one
// step.
type adaptive struct {
	mu     sync.Mutex
	window time.Time       // the start of the present window
	now    map[failure]int // counts of the present window
	before map[failure]int // counts of the window before it
}

// A failure is a key under which failed logins are counted: the hash of an
// account or an address. A long name takes no more memory than a short one.
type failure [sha256.Size]byte

// These are the numbers of failures that need no captcha, in a window and the
// one before it. A count by account alone misses one password that is tried on
// many accounts, and a count by address misses many machines that try a few
// accounts each.
const (
	accountFailures = 3   // as often as people mistype
	addressFailures = 10  // a whole office may have one address
	siteFailures    = 100 // more than all users of a small site mistype; beyond it everybody needs a captcha
	failureWindow   = 15 * time.Minute
)

func newAdaptive() *adaptive { return &adaptive{} }

// A share is the number of failures that an account, an address or the site may
// have.
type share struct {
	key failure
	max int
}

// site is the share of the whole site.
var site = share{max: siteFailures}

// sharesOf returns the shares in which a login is counted. Each kind has a
// prefix, so that an account that is named like an address is not counted as
// that address.
func sharesOf(account string, address netip.Prefix) []share {
	return []share{
		{sha256.Sum256([]byte("account:" + account)), accountFailures},
		{sha256.Sum256([]byte("address:" + address.String())), addressFailures},
		site,
	}
}

// turn makes the window of the present time the present window.
func (a *adaptive) turn() {
	window := time.Now().Truncate(failureWindow)
	if window.Equal(a.window) {
		return
	}
	if window.Equal(a.window.Add(failureWindow)) {
		a.before = a.now
	} else {
		a.before = nil
	}
	a.window, a.now = window, map[failure]int{}
}

// begin reports whether the password of a login may be checked. After a passed captcha
// it always may; without one it may as long as no share is used up. If it may, begin
// counts the login as failed and returns the window in which it is counted. It counts
// the login before the password is checked, so that of a hundred simultaneous guesses
// no more than the smallest share are made without a captcha.
//
// Once the share of the site is used up in a window, begin counts nothing more and
// returns the zero time: everybody needs a captcha until the end of the next window
// anyway. So a window never contains more counts than siteFailures logins need.
func (a *adaptive) begin(shares []share, passed bool) (window time.Time, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.turn()
	for _, s := range shares {
		if !passed && a.now[s.key]+a.before[s.key] >= s.max {
			return time.Time{}, false
		}
	}
	if a.now[site.key] >= site.max {
		return time.Time{}, true
	}
	for _, s := range shares {
		a.now[s.key]++
	}
	return a.window, true
}

// takeBack removes a login that did not fail from the counts. It does not reset the
// counts: otherwise an attacker who has an account could log in between guesses to
// reset the count of the address. A login that ends after its window stays counted.
func (a *adaptive) takeBack(shares []share, window time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.turn()
	if !a.window.Equal(window) {
		return
	}
	for _, s := range shares {
		if a.now[s.key]--; a.now[s.key] == 0 {
			delete(a.now, s.key)
		}
	}
}

// handle decides whether a captcha is needed. A malformed body does not spend a param.
func (a *adaptive) handle(w http.ResponseWriter, r *http.Request) {
	var in loginBody
	if err := decode(r.Body, &in); err != nil {
		badBody(w, r, "the body is not the JSON of a login", err)
		return
	}
	shares := sharesOf(in.Username, address(r))
	window, ok := a.begin(shares, false)
	if !ok {
		if !alicaptcha.Require(w, r) {
			return // the rejection is written
		}
		window, _ = a.begin(shares, true)
	}
	if !in.correct() {
		reply(w, r, http.StatusUnauthorized, answer{Error: "wrong username or password"})
		return
	}
	a.takeBack(shares, window)
	reply(w, r, http.StatusOK, answer{User: in.Username})
}

// decode reads a single JSON document. Unknown members and data after the document are
// errors.
func decode(body io.Reader, to any) error {
	// The body is read first, because with GOEXPERIMENT=jsonv2 a Decoder reports a
	// syntax error if it is too large.
	text, err := io.ReadAll(body)
	if err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(to); err != nil {
		return err
	}
	switch _, err := dec.Token(); err {
	case io.EOF:
		return nil
	case nil:
		return errors.New("data after the document")
	default:
		return err
	}
}

// equal is like subtle.ConstantTimeCompare, but its time does not reveal the length
// either.
func equal(a, b string) int {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(x[:], y[:])
}

// handleSignup is called only if the captcha was passed. It stores nothing.
func (s settings) handleSignup(w http.ResponseWriter, r *http.Request) {
	// ParseMultipartForm alone would ignore errors in a urlencoded form.
	err := r.ParseForm()
	if err == nil {
		// The body is short enough to stay in memory.
		if err = r.ParseMultipartForm(maxBodyBytes); errors.Is(err, http.ErrNotMultipart) {
			err = nil
		}
	}
	if err != nil {
		badBody(w, r, "the body is not a form", err)
		return
	}
	p := s.page(r)
	p.Username, p.Email = r.PostForm.Get("username"), r.PostForm.Get("email") // PostForm ignores the query of the URL
	switch {
	case p.Username == "":
		p.Error, p.Invalid = p.Words.NoUsername, "username"
	case utf8.RuneCountInString(r.PostForm.Get("password")) < 8:
		p.Error, p.Invalid = p.Words.ShortPassword, "password"
	}
	if p.Error != "" {
		p.show(w, http.StatusUnprocessableEntity, "form")
		return
	}
	p.Path, p.Title, p.Scene = "", p.Words.Welcome, ""
	p.Hint = p.Words.SignedUp + p.Username
	if p.Email != "" {
		p.Hint += " <" + p.Email + ">"
	}
	p.show(w, http.StatusCreated, "welcome")
}

// badBody replies to a body that could not be read. It does not show err, which names
// types of this program.
func badBody(w http.ResponseWriter, r *http.Request, message string, err error) {
	if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
		reply(w, r, http.StatusRequestEntityTooLarge, answer{Error: fmt.Sprintf("the body is over %d bytes", tooLarge.Limit)})
		return
	}
	reply(w, r, http.StatusBadRequest, answer{Error: message})
}

// answer is the body of a JSON reply, except for the rejections of the captcha.
type answer struct {
	Error   string   `json:"error,omitzero"`
	User    string   `json:"user,omitzero"`
	Captcha *captcha `json:"captcha,omitzero"`
}

// captcha shows the result of the verification. A real site should only log it,
// because the codes would help the author of a bot.
type captcha struct {
	Verified  bool            `json:"verified"`
	Code      alicaptcha.Code `json:"code"`
	CertifyID string          `json:"certifyId"`
	RequestID string          `json:"requestId"`
}

// reply writes a as JSON, with the Outcome of the captcha if there is one.
func reply(w http.ResponseWriter, r *http.Request, status int, a answer) {
	if o, ok := alicaptcha.FromContext(r.Context()); ok {
		a.Captcha = &captcha{o.Verified, o.Code, o.Result.CertifyID, o.Result.RequestID}
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(a) // it fails only if the client has disconnected
}
