package alicaptcha_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/go-chi/chi/v5"
	"golang.org/x/time/rate"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

func handleLogin(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "welcome") }

// newGate returns a gate for the examples, with a Verifier that always passes.
func newGate() *alicaptcha.Middleware {
	captcha, err := alicaptcha.New(alicaptcha.Config{Verifier: alicaptchatest.Passing(), SceneID: "1a2b3c4d"})
	if err != nil {
		log.Fatal(err)
	}
	return captcha
}

// knock sends a login without a param and prints the status of the answer.
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

func Example_serveMux() {
	captcha := newGate()

	mux := http.NewServeMux()
	mux.Handle("POST /login", captcha.Handler(http.HandlerFunc(handleLogin)))

	knock(mux)
	// Output: 400
}

// This example creates a Client, a Breaker around it, and a gate for each scene. In
// production the keys come from the environment; here they are those of a simulator.
func ExampleNew() {
	service := httptest.NewServer(alicaptchatest.NewSimulator(alicaptchatest.Config{}))
	defer service.Close()

	client, err := alicaptcha.NewClient(alicaptcha.ClientConfig{
		Endpoint:        service.URL, // in production: Region
		AccessKeyID:     "test-id",
		AccessKeySecret: "test-secret",
	})
	if err != nil {
		log.Fatal(err)
	}
	verifier, err := alicaptcha.NewBreaker(client, alicaptcha.BreakerConfig{})
	if err != nil {
		log.Fatal(err)
	}
	login, err := alicaptcha.New(alicaptcha.Config{Verifier: verifier, SceneID: "login"})
	if err != nil {
		log.Fatal(err)
	}
	signup, err := alicaptcha.New(alicaptcha.Config{Verifier: verifier, SceneID: "signup"})
	if err != nil {
		log.Fatal(err)
	}

	mux := http.NewServeMux()
	mux.Handle("POST /login", login.Handler(http.HandlerFunc(handleLogin)))
	mux.Handle("POST /signup", signup.Handler(http.HandlerFunc(handleLogin)))
	knock(mux)
	// Output: 400
}

// NewClient reports all faults of a ClientConfig at once, and shows no key.
func ExampleNewClient() {
	_, err := alicaptcha.NewClient(alicaptcha.ClientConfig{
		Region:          "eu",
		AccessKeyID:     "an ID",
		AccessKeySecret: "a secret\n", // read from a file
	})
	fmt.Println(err)
	// Output:
	// alicaptcha: ClientConfig.Region must be Mainland ("cn") or International ("sgp")
	// alicaptcha: ClientConfig.AccessKeyID contains white space or another character that no key has
	// alicaptcha: ClientConfig.AccessKeySecret contains white space or another character that no key has
}

// This Breaker stops asking after the first failure.
func ExampleNewBreaker() {
	service := alicaptcha.VerifierFunc(func(context.Context, alicaptcha.Request) (alicaptcha.Result, error) {
		fmt.Println("asked")
		return alicaptcha.Result{}, &alicaptcha.Error{Code: alicaptcha.ServiceUnavailable}
	})
	verifier, err := alicaptcha.NewBreaker(service, alicaptcha.BreakerConfig{
		Failures: 1, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		log.Fatal(err)
	}
	for range 2 {
		_, err := verifier.Verify(context.Background(), alicaptcha.Request{Param: "…", SceneID: "login"})
		fmt.Println(err, errors.Is(err, alicaptcha.ErrBreakerOpen))
	}
	// Output:
	// asked
	// alicaptcha: service_unavailable false
	// alicaptcha: service_unavailable: the breaker is open true
}

// A JSON answer of a shape of its own, with the texts and headers of the usual
// rejection. Outcome.Code is for the log: a client should not learn it.
func ExampleNewProblem() {
	captcha, err := alicaptcha.New(alicaptcha.Config{
		Verifier: alicaptchatest.Rejecting(alicaptcha.F007),
		SceneID:  "1a2b3c4d",
		OnReject: func(w http.ResponseWriter, r *http.Request, o alicaptcha.Outcome) {
			p := alicaptcha.NewProblem(r, o)
			p.SetHeader(w.Header())
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(p.Status)
			json.NewEncoder(w).Encode(map[string]any{"error": p.Reason, "message": p.Detail})
		},
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		log.Fatal(err)
	}
	r := httptest.NewRequest("POST", "/login", nil)
	r.Header.Set("Captcha-Verify-Param", "…")
	w := httptest.NewRecorder()
	captcha.Handler(http.HandlerFunc(handleLogin)).ServeHTTP(w, r)
	fmt.Println(w.Code, w.Header().Get("Cache-Control"))
	fmt.Println(w.Body)
	// Output:
	// 403 no-store
	// {"error":"captcha_expired","message":"The captcha has expired or was used already. Please solve a new one."}
}

// OnReject writes a response of your own. Outcome.Code is for the log; the client
// should not learn it.
func ExampleReject() {
	captcha, err := alicaptcha.New(alicaptcha.Config{
		Verifier: alicaptchatest.Rejecting(alicaptcha.F001),
		SceneID:  "1a2b3c4d",
		Policy:   alicaptcha.Policy{alicaptcha.F001: alicaptcha.Reject(http.StatusUnauthorized)},
		OnReject: func(w http.ResponseWriter, _ *http.Request, o alicaptcha.Outcome) {
			w.WriteHeader(o.Action.Status)
			fmt.Fprintf(w, "reason=%s", o.Action.Reason)
		},
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		log.Fatal(err)
	}
	r := httptest.NewRequest("POST", "/login", nil)
	r.Header.Set("Captcha-Verify-Param", "…")
	w := httptest.NewRecorder()
	captcha.Handler(http.HandlerFunc(handleLogin)).ServeHTTP(w, r)
	fmt.Println(w.Code, w.Body)
	// Output: 401 reason=captcha_rejected
}

// In staging, the scene may be in test mode, in which every param passes.
func ExampleAllow() {
	captcha, err := alicaptcha.New(alicaptcha.Config{
		Verifier: alicaptcha.VerifierFunc(func(context.Context, alicaptcha.Request) (alicaptcha.Result, error) {
			return alicaptcha.Result{Passed: true, Code: alicaptcha.T005}, nil
		}),
		SceneID: "1a2b3c4d",
		Policy:  alicaptcha.Policy{alicaptcha.T005: alicaptcha.Allow()},
		Logger:  slog.New(slog.DiscardHandler),
	})
	if err != nil {
		log.Fatal(err)
	}
	r := httptest.NewRequest("POST", "/login", nil)
	r.Header.Set("Captcha-Verify-Param", "…")
	o := captcha.Check(r)
	fmt.Println("allowed:", o.Allowed, "verified:", o.Verified)
	// Output: allowed: true verified: false
}

func ExampleDefaultPolicy() {
	for _, code := range []alicaptcha.Code{alicaptcha.T001, alicaptcha.F018, alicaptcha.ServiceTimeout} {
		a := alicaptcha.DefaultPolicy()[code]
		fmt.Println(code, a.Allow, a.Status, a.Reason, a.Retry)
	}
	// Output:
	// T001 true 0  false
	// F018 false 403 captcha_expired true
	// service_timeout false 503 captcha_unavailable true
}

// New reports all faults of a Config at once.
func ExampleNew_faults() {
	_, err := alicaptcha.New(alicaptcha.Config{
		Policy: alicaptcha.Policy{
			alicaptcha.ServiceThrottled: alicaptcha.Allow(), // any client can cause it
			alicaptcha.ServiceTimeout:   alicaptcha.Allow(), // without a bound
		},
		Timeout: 5, // nanoseconds: 5*time.Second was meant
	})
	fmt.Println(err)
	// Output:
	// alicaptcha: Config.Verifier is required
	// alicaptcha: Config.SceneID, SceneIDFunc, AnyScene: exactly one of them must be set
	// alicaptcha: Config.Policy["service_throttled"]: must not be allowed: a client can cause it at will
	// alicaptcha: Config.Policy["service_timeout"]: must not be allowed without a bound: use AllowAtMost
	// alicaptcha: Config.Timeout is 5ns; it must be 0 or at least 100ms
}

// During an outage of the service, ten logins per minute proceed without a verdict.
// The handler can tell them from the others.
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

// Ask is for a handler that has no http.ResponseWriter, or that writes the rejection
// itself.
func ExampleAsk() {
	signup := newGate().Deferred(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		o, proceed := alicaptcha.Ask(r.Context())
		fmt.Println(o.Code, proceed)
		if !proceed {
			http.Error(w, "no captcha, no account", o.Action.Status)
		}
	}))
	knock(signup)
	// Output:
	// param_missing false
	// 400
}

// This example reads a header of your own, and then a field of your own.
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

func ExampleFromHeader() {
	r := httptest.NewRequest("POST", "/login", nil)
	r.Header.Set("X-Captcha-Verify-Param", "a param")
	fmt.Println(alicaptcha.FromHeader("X-Captcha-Verify-Param")(r))
	// Output: a param <nil>
}

// FromForm ignores the query of the URL, because URLs are logged.
func ExampleFromForm() {
	r := httptest.NewRequest("POST", "/login?captcha=in+the+URL", strings.NewReader("user=alice&captcha=a+param"))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	fmt.Println(alicaptcha.FromForm("captcha")(r))
	// Output: a param <nil>
}

func ExampleFromJSON() {
	r := httptest.NewRequest("POST", "/login", strings.NewReader(`{"forms":[{"captcha":"a param"}]}`))
	r.Header.Set("Content-Type", "application/json")
	fmt.Println(alicaptcha.FromJSON("/forms/0/captcha")(r))
	// Output: a param <nil>
}

// This example adds a header to the default extractors.
func ExampleDefaultExtractors() {
	extractors := append(alicaptcha.DefaultExtractors(), alicaptcha.FromHeader("X-Captcha-Verify-Param"))
	captcha, err := alicaptcha.New(alicaptcha.Config{
		Verifier: alicaptchatest.Passing(), SceneID: "1a2b3c4d", Extractors: extractors,
	})
	if err != nil {
		log.Fatal(err)
	}
	r := httptest.NewRequest("POST", "/login", nil)
	r.Header.Set("X-Captcha-Verify-Param", "…")
	fmt.Println(captcha.Check(r).Code)
	// Output: T001
}

// A handler can be tested without the gate in front of it.
func Example_unitTest() {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if outcome, ok := alicaptcha.FromContext(r.Context()); !ok || !outcome.Verified {
			http.Error(w, "confirm by e-mail first", http.StatusAccepted)
			return
		}
		handleLogin(w, r)
	})

	r := httptest.NewRequest("POST", "/login", nil)
	outcome := alicaptcha.Outcome{Allowed: true, Code: alicaptcha.ServiceTimeout}
	r = r.WithContext(alicaptchatest.NewContext(r.Context(), outcome))
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

// newRouter returns the routes that TestRoutesAreProtected tests.
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
