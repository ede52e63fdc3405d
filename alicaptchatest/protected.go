package alicaptchatest

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/alicaptcha/alicaptcha/internal/gate"
)

// TestingT is what [AssertProtected] needs of a *testing.T.
type TestingT interface {
	Helper()
	Errorf(format string, args ...any)
}

// AssertProtected sends one request without a param to each of the routes,
// written as "POST /login", and reports by t.Errorf each one that the
// middleware did not reject, also when the handler panics. It returns whether
// all were rejected; no routes at all are an error too.
//
// It does not go by the status of the answer, which others can write too, but
// asks the middleware what it did. The body is empty, of type application/json.
// A route behind a login is reported, because the login answers first: give
// AssertProtected a handler without it. What a Deferred handler does after
// Require said no, it does not see.
func AssertProtected(t TestingT, h http.Handler, routes ...string) bool {
	t.Helper()
	if len(routes) == 0 {
		t.Errorf("alicaptchatest: AssertProtected was given no routes")
		return false
	}
	ok := true
	for _, route := range routes {
		if fault := probe(h, route); fault != "" {
			t.Errorf("alicaptchatest: %q is not protected: %s", route, fault)
			ok = false
		}
	}
	return ok
}

// probe returns what is wrong with route, or nothing.
func probe(h http.Handler, route string) (fault string) {
	var mark gate.Mark
	r, err := newRequest(context.WithValue(context.Background(), gate.MarkKey{}, &mark), route)
	if err != nil {
		return err.Error()
	}
	// Without this one route would end the test before the others are seen.
	defer func() {
		if v := recover(); v != nil {
			fault = fmt.Sprintf("the handler panicked: %v", v)
		}
	}()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	switch {
	case mark.Passed.Load():
		return fmt.Sprintf("the gate let a request without a param through (status %d): ReportOnly is on, or the Policy allows ParamMissing", w.Code)
	case !mark.Rejected.Load():
		return fmt.Sprintf("no gate was asked (status %d): %s", w.Code, hint(w.Code))
	}
	return ""
}

func hint(status int) string {
	switch {
	case status == http.StatusNotFound || status == http.StatusMethodNotAllowed:
		return "the mux has no such route, or the handler is not wrapped"
	case status >= 300:
		return "the mux or another middleware answered first, or the handler is not wrapped"
	}
	return "the handler is not wrapped, or it is behind Deferred and did not call Require"
}

func newRequest(ctx context.Context, route string) (r *http.Request, err error) {
	fields := strings.Fields(route)
	if len(fields) != 2 || !strings.HasPrefix(fields[1], "/") {
		return nil, fmt.Errorf("the route must be a method and a path, such as %q", "POST /login")
	}
	defer func() {
		if v := recover(); v != nil { // what httptest does about a bad method or path
			err = fmt.Errorf("the route is malformed: %v", v)
		}
	}()
	r = httptest.NewRequestWithContext(ctx, fields[0], fields[1], nil)
	r.Header.Set("Content-Type", "application/json")
	return r, nil
}
