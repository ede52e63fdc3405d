package alicaptchatest_test

import (
	"context"
	"fmt"
	"net/http/httptest"
	"testing"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

func ExampleStart() {
	t := &fakeTB{TB: new(testing.T)} // in a test: its *testing.T
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

// A Simulator is an http.Handler, so that it can also run without a test.
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
