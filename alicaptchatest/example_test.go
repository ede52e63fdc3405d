package alicaptchatest_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

func ExampleStart() {
	t := &fakeTB{TB: new(testing.T)} // in a test, use its *testing.T
	defer t.cleanup()

	srv := alicaptchatest.Start(t, alicaptchatest.Config{})
	client := srv.Client()
	param, err := srv.Issue(alicaptchatest.Issue{SceneID: "login"})
	if err != nil {
		t.Fatalf("%v", err)
	}
	for range 2 {
		result, err := client.Verify(context.Background(), alicaptcha.Request{Param: param, SceneID: "login"})
		fmt.Println(result.Passed, result.Code, err)
	}
	for _, call := range srv.Calls() {
		fmt.Println(call.Status, call.ServiceCode, call.SceneID, call.VerifyCode)
	}
	// Output:
	// true T001 <nil>
	// false F018 <nil>
	// 200 Success login T001
	// 200 Success login F018
}

// A Simulator is an http.Handler, so it can also be served outside a test.
func ExampleNewSimulator() {
	sim := alicaptchatest.NewSimulator(alicaptchatest.Config{Scenes: []string{"checkout"}})
	srv := httptest.NewServer(sim)
	defer srv.Close()

	client, err := alicaptcha.NewClient(alicaptcha.ClientConfig{
		Endpoint:        srv.URL,
		AccessKeyID:     "test-id",
		AccessKeySecret: "test-secret",
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	param, err := sim.Issue(alicaptchatest.Issue{SceneID: "checkout", Code: alicaptcha.F001, Format: alicaptchatest.V2})
	if err != nil {
		fmt.Println(err)
		return
	}
	result, err := client.Verify(context.Background(), alicaptcha.Request{Param: param, SceneID: "checkout"})
	fmt.Println(result.Passed, result.Code, err)
	// Output: false F001 <nil>
}

// StartTLS is like Start, but over HTTPS. The Client trusts the certificate.
func ExampleStartTLS() {
	t := &fakeTB{TB: new(testing.T)} // in a test, use its *testing.T
	defer t.cleanup()

	srv := alicaptchatest.StartTLS(t, alicaptchatest.Config{})
	if err := srv.SetFaults(alicaptchatest.Faults{Credentials: "overdue"}); err != nil {
		t.Fatalf("%v", err)
	}
	_, err := srv.Client().Verify(context.Background(), alicaptcha.Request{Param: "…", SceneID: "login"})
	e, _ := errors.AsType[*alicaptcha.Error](err)
	fmt.Println(e.Code, e.Status, e.ServiceCode)
	// Output: misconfigured 403 Forbidden.AccountAccessDenied
}

func ExamplePassing() {
	fmt.Println(code(alicaptchatest.Passing()))
	// Output: T001
}

func ExampleRejecting() {
	fmt.Println(code(alicaptchatest.Rejecting(alicaptcha.F010)))
	// Output: F010
}

func ExampleFailing() {
	fmt.Println(code(alicaptchatest.Failing(alicaptcha.ServiceTimeout)))
	// Output: service_timeout
}

// code returns the Code of a login behind a gate with v.
func code(v alicaptcha.Verifier) alicaptcha.Code {
	captcha, err := alicaptcha.New(alicaptcha.Config{Verifier: v, SceneID: "login", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		panic(err)
	}
	r := httptest.NewRequest("POST", "/login", nil)
	r.Header.Set("Captcha-Verify-Param", "…")
	return captcha.Check(r).Code
}

// In production the handler is behind the middleware; the test needs none.
func ExampleNewContext() {
	handler := func(w http.ResponseWriter, r *http.Request) {
		outcome, _ := alicaptcha.FromContext(r.Context())
		fmt.Fprint(w, "verified: ", outcome.Verified)
	}
	r := httptest.NewRequest("POST", "/login", nil)
	outcome := alicaptcha.Outcome{Code: alicaptcha.T001, Allowed: true, Verified: true}
	r = r.WithContext(alicaptchatest.NewContext(r.Context(), outcome))
	w := httptest.NewRecorder()
	handler(w, r)
	fmt.Println(w.Body)
	// Output: verified: true
}

func ExampleAssertProtected() {
	t := &fakeTB{TB: new(testing.T)} // in a test, use its *testing.T
	defer t.cleanup()

	captcha, err := alicaptcha.New(alicaptcha.Config{Verifier: alicaptchatest.Passing(), SceneID: "login"})
	if err != nil {
		t.Fatalf("%v", err)
	}
	mux := http.NewServeMux()
	login := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	mux.Handle("POST /login", captcha.Handler(login))
	mux.Handle("POST /v2/login", login) // forgotten

	fmt.Println(alicaptchatest.AssertProtected(t, mux, "POST /login"))
	fmt.Println(alicaptchatest.AssertProtected(t, mux, "POST /login", "POST /v2/login"))
	// Output:
	// true
	// false
}
