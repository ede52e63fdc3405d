package main

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io"
	"log/slog"
	"net/http"
	"unicode/utf8"

	"github.com/alicaptcha/alicaptcha"
	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
)

// maxBodyBytes is far more than a param of 28 KB and a form around it.
const maxBodyBytes = 128 << 10

//go:embed index.html
var indexHTML string

// settings is all that differs between the simulator and the real service. Its
// exported fields are the page's.
type settings struct {
	client                  alicaptcha.ClientConfig
	LoginScene, SignupScene string
	Prefix                  string   // real service only
	Commands                []string // simulator only
}

// Region is what the page's widget is told.
func (s settings) Region() string { return string(s.client.Region) }

// newSite returns the site.
func newSite(s settings, logger *slog.Logger) (http.Handler, error) {
	client, err := alicaptcha.NewClient(s.client)
	if err != nil {
		return nil, err
	}
	// While the service is down nobody waits for it.
	verifier, err := alicaptcha.Breaker(client, alicaptcha.BreakerConfig{Logger: logger})
	if err != nil {
		return nil, err
	}
	// A param is good for the one scene it was made for, so each form has its
	// own Middleware. They share the Client and the breaker.
	login, err := alicaptcha.New(alicaptcha.Config{Verifier: verifier, SceneID: s.LoginScene, Logger: logger})
	if err != nil {
		return nil, err
	}
	signup, err := alicaptcha.New(alicaptcha.Config{Verifier: verifier, SceneID: s.SignupScene, Logger: logger})
	if err != nil {
		return nil, err
	}

	// The page is the same for everybody.
	page, err := template.New("index").Parse(indexHTML)
	if err != nil {
		return nil, err
	}
	var index bytes.Buffer
	if err := page.Execute(&index, s); err != nil {
		return nil, err
	}

	crossOrigin := http.NewCrossOriginProtection()
	crossOrigin.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		reply(w, r, http.StatusForbidden, answer{Error: "cross-origin request"})
	}))

	r := chi.NewRouter()
	// Outside of the captcha stands what costs nothing: another site's form
	// must not spend a verification, and the captcha must not read further than
	// the handler would.
	r.Use(crossOrigin.Handler)
	r.Use(middleware.RequestSize(maxBodyBytes)) // an http.MaxBytesReader
	r.Get("/", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Write(index.Bytes())
	})
	r.With(login.Handler).Post("/login", handleLogin)
	r.With(signup.Handler).Post("/signup", handleSignup)
	return r, nil
}

// handleLogin is reached with a passed captcha only.
func handleLogin(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Username string          `json:"username"`
		Password string          `json:"password"`
		Param    json.RawMessage `json:"captchaVerifyParam"` // the middleware has read it
	}
	if err := decode(r.Body, &in); err != nil {
		badBody(w, r, "not the JSON that a login is", err)
		return
	}
	// Both are compared, whatever the first says, and in constant time.
	if equal(in.Username, "alice")&equal(in.Password, "correct-horse") != 1 {
		reply(w, r, http.StatusUnauthorized, answer{Error: "wrong username or password"})
		return
	}
	reply(w, r, http.StatusOK, answer{User: "alice"})
}

// decode reads one JSON document without unknown members, and nothing after it.
func decode(body io.Reader, to any) error {
	dec := json.NewDecoder(body)
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

// equal returns 1 or 0, like subtle.ConstantTimeCompare, which alone would show
// the length.
func equal(a, b string) int {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(x[:], y[:])
}

// handleSignup is reached with a passed captcha only. It stores nothing.
func handleSignup(w http.ResponseWriter, r *http.Request) {
	// Not ParseMultipartForm alone: of an urlencoded form it drops the errors.
	err := r.ParseForm()
	if err == nil {
		// The body is short enough to stay in memory.
		if err = r.ParseMultipartForm(maxBodyBytes); errors.Is(err, http.ErrNotMultipart) {
			err = nil
		}
	}
	if err != nil {
		badBody(w, r, "not a form", err)
		return
	}
	username := r.PostForm.Get("username") // PostForm: the URL's query does not count
	switch {
	case username == "":
		reply(w, r, http.StatusBadRequest, answer{Error: "username is missing"})
	case utf8.RuneCountInString(r.PostForm.Get("password")) < 8:
		reply(w, r, http.StatusBadRequest, answer{Error: "password must have at least 8 characters"})
	default:
		reply(w, r, http.StatusCreated, answer{Username: username, Email: r.PostForm.Get("email")})
	}
}

// badBody replies to a body that could not be read. err stays here: it is about
// our types.
func badBody(w http.ResponseWriter, r *http.Request, message string, err error) {
	if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
		reply(w, r, http.StatusRequestEntityTooLarge, answer{Error: fmt.Sprintf("the body is over %d bytes", tooLarge.Limit)})
		return
	}
	reply(w, r, http.StatusBadRequest, answer{Error: message})
}

// answer is the body of every reply but the captcha's own rejections.
type answer struct {
	Error    string   `json:"error,omitzero"`
	User     string   `json:"user,omitzero"`
	Username string   `json:"username,omitzero"`
	Email    string   `json:"email,omitzero"`
	Captcha  *captcha `json:"captcha,omitzero"`
}

// captcha shows how the verification ended. A real site keeps this in its log:
// the codes would help a bot's author.
type captcha struct {
	Verified  bool            `json:"verified"`
	Code      alicaptcha.Code `json:"code"`
	CertifyID string          `json:"certifyId"`
	RequestID string          `json:"requestId"`
}

// reply writes a as JSON, with the captcha's outcome where there is one.
func reply(w http.ResponseWriter, r *http.Request, status int, a answer) {
	if o, ok := alicaptcha.FromContext(r.Context()); ok {
		a.Captcha = &captcha{o.Verified, o.Code, o.Result.CertifyID, o.Result.RequestID}
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(a) // fails only if the client is gone
}
