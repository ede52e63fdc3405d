package alicaptcha_test

import (
	"fmt"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/gorilla/mux"
	"github.com/stretchr/testify/require"
	"golang.org/x/time/rate"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

func handleLogin(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "welcome") }

// newGate returns a gate for the examples, on a Verifier that always passes.
func newGate() *alicaptcha.Middleware {
	captcha, err := alicaptcha.New(alicaptcha.Config{Verifier: alicaptchatest.Passing(), SceneID: "1a2b3c4d"})
	if err != nil {
		log.Fatal(err)
	}
	return captcha
}

// knock sends a login without a param, and prints the answer's status.
func knock(h http.Handler) {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("POST", "/login", strings.NewReader("{}")))
	fmt.Println(w.Code)
}

func Example_chi() {
	captcha := newGate()

	r := chi.NewRouter()
	r.With(captcha.Handler).Post("/login", handleLogin)

	knock(r)
	// Output: 400
}

func Example_gorillaMux() {
	captcha := newGate()

	r := mux.NewRouter()
	login := r.Path("/login").Methods("POST").Subrouter()
	login.Use(captcha.Handler)
	login.HandleFunc("", handleLogin)

	knock(r)
	// Output: 400
}

func Example_serveMux() {
	captcha := newGate()

	mux := http.NewServeMux()
	mux.Handle("POST /login", captcha.Handler(http.HandlerFunc(handleLogin)))

	knock(mux)
	// Output: 400
}

// Every fault of a Config is reported at once.
func ExampleNew_faults() {
	_, err := alicaptcha.New(alicaptcha.Config{
		Policy: alicaptcha.Policy{
			alicaptcha.ServiceThrottled: alicaptcha.Allow(), // anybody can bring that about
			alicaptcha.ServiceTimeout:   alicaptcha.Allow(), // without a bound
		},
		Timeout: -time.Second,
	})
	fmt.Println(err)
	// Output:
	// alicaptcha: Config.Verifier is required
	// alicaptcha: Config.SceneID is required, or else SceneIDFunc or AnyScene; only one of the three may be set
	// alicaptcha: Config.Policy["service_throttled"]: must not be let through: a client can cause it at will
	// alicaptcha: Config.Policy["service_timeout"]: must not be let through without a bound: use AllowAtMost
	// alicaptcha: Config.Timeout is negative
}

// In an outage of the service ten logins a minute go on without a verdict. The
// handler can tell them from the others.
func ExampleAllowAtMost() {
	budget := rate.NewLimiter(rate.Every(6*time.Second), 10)
	policy := alicaptcha.Policy{
		alicaptcha.ServiceTimeout:     alicaptcha.AllowAtMost(budget),
		alicaptcha.ServiceUnavailable: alicaptcha.AllowAtMost(budget),
	}

	captcha, err := alicaptcha.New(alicaptcha.Config{
		Verifier: alicaptchatest.Failing(alicaptcha.ServiceUnavailable),
		SceneID:  "1a2b3c4d",
		Policy:   policy,
		Logger:   slog.New(slog.DiscardHandler),
	})
	if err != nil {
		log.Fatal(err)
	}
	login := captcha.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		outcome, _ := alicaptcha.FromContext(r.Context())
		fmt.Println("verified:", outcome.Verified, "code:", outcome.Code)
	}))

	r := httptest.NewRequest("POST", "/login", nil)
	r.Header.Set("Captcha-Verify-Param", "…")
	login.ServeHTTP(httptest.NewRecorder(), r)
	// Output: verified: false code: service_unavailable
}

// The handler's own checks come first, so that a malformed form spends no param.
func ExampleRequire() {
	captcha := newGate()

	login := captcha.Deferred(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.PostFormValue("username") == "" {
			http.Error(w, "a username is required", http.StatusUnprocessableEntity)
			return
		}
		if !alicaptcha.Require(w, r) {
			return // the rejection is written
		}
		handleLogin(w, r)
	}))

	for _, form := range []string{"captchaVerifyParam=…", "username=alice", "username=alice&captchaVerifyParam=…"} {
		r := httptest.NewRequest("POST", "/login", strings.NewReader(form))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		w := httptest.NewRecorder()
		login.ServeHTTP(w, r)
		fmt.Println(w.Code)
	}
	// Output:
	// 422
	// 400
	// 200
}

// A field of one's own, and a header before it.
func ExampleFromBody() {
	extractors := []alicaptcha.Extractor{
		alicaptcha.FromHeader("X-Captcha-Verify-Param"),
		alicaptcha.FromBody("captcha", "/security/captcha"), // a name, and a JSON Pointer
	}

	r := httptest.NewRequest("POST", "/login", strings.NewReader(`{"user":"alice","security":{"captcha":"a param"}}`))
	r.Header.Set("Content-Type", "application/json")
	for _, extract := range extractors {
		param, err := extract(r)
		fmt.Printf("%q %v\n", param, err)
	}
	// Output:
	// "" <nil>
	// "a param" <nil>
}

// A handler behind the gate is tested without one.
func Example_unitTest() {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if outcome, ok := alicaptcha.FromContext(r.Context()); !ok || !outcome.Verified {
			http.Error(w, "confirm by e-mail first", http.StatusAccepted)
			return
		}
		handleLogin(w, r)
	})

	r := httptest.NewRequest("POST", "/login", nil)
	r = r.WithContext(alicaptchatest.NewContext(r.Context(), alicaptcha.Outcome{Allowed: true, Code: alicaptcha.ServiceTimeout}))
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, r)
	fmt.Println(w.Code, w.Body)
	// Output: 202 confirm by e-mail first
}

func ExamplePolicy() {
	policy := alicaptcha.Policy{
		alicaptcha.F009: {Status: 403, Reason: "captcha_rejected", Retry: true}, // an emulator may try again
		alicaptcha.T005: alicaptcha.Allow(),                                     // in staging, where test mode is meant
	}

	captcha, err := alicaptcha.New(alicaptcha.Config{
		Verifier: alicaptchatest.Rejecting(alicaptcha.F009),
		SceneID:  "1a2b3c4d",
		Policy:   policy,
		Logger:   slog.New(slog.DiscardHandler),
	})
	if err != nil {
		log.Fatal(err)
	}
	r := httptest.NewRequest("POST", "/login", nil)
	r.Header.Set("Captcha-Verify-Param", "…")
	fmt.Println("retry:", captcha.Check(r).Action.Retry)
	// Output: retry: true
}

// newRouter returns the routes that TestRoutesAreProtected is about.
func newRouter() http.Handler {
	captcha := newGate()
	r := chi.NewRouter()
	r.With(captcha.Handler).Post("/login", handleLogin)
	r.With(captcha.Deferred).Post("/signup", func(w http.ResponseWriter, r *http.Request) {
		if alicaptcha.Require(w, r) {
			handleLogin(w, r)
		}
	})
	return r
}

func TestRoutesAreProtected(t *testing.T) {
	alicaptchatest.AssertProtected(t, newRouter(), "POST /login", "POST /signup")
}

func TestSimulator(t *testing.T) {
	server := alicaptchatest.Start(t, alicaptchatest.Config{})
	client := server.Client() // an *alicaptcha.Client
	param, err := server.Issue(alicaptchatest.Issue{SceneID: "login", Code: alicaptcha.F009})

	require.NoError(t, err)
	result, err := client.Verify(t.Context(), alicaptcha.Request{Param: param, SceneID: "login"})
	require.NoError(t, err)
	require.Equal(t, alicaptcha.F009, result.Code)
}
