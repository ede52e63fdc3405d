package alicaptchatest

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/alicaptcha/alicaptcha/internal/gate"
)

// TestingT is the part of *testing.T that [AssertProtected] uses.
type TestingT interface {
	Helper()
	Errorf(format string, args ...any)
}

// AssertProtected sends one request without a param to each route, which is
// written like "POST /login", and reports by t.Errorf each route on which the
// handler panicked or the middleware did not reject the request. It returns whether
// all routes are protected. It is an error to give no routes.
//
// The status of the answer is not enough, because other handlers can write the same
// status. AssertProtected asks the middleware what it did. It also reports a route
// on which anything was written before the rejection or added to it, because there
// the handler runs before the gate, or ignores the result of Require. A handler that
// calls Ask writes its own rejection, which must have a status of 300 or more, except
// in gRPC.
//
// The gate must be in the mode Enforce, and its Policy must not allow ParamMissing.
//
// The body of the request is empty, and its type is application/json. A route is also
// reported if something else answers before the gate, such as middleware that requires a
// session, or a handler that validates the body first. Leave that middleware out, or
// wrap the handler in one that replaces the body and its Content-Type by a valid body
// without a param, and keeps the context of the request, by which the gate is found.
// AssertProtected cannot notice a handler that runs despite the rejection and writes
// nothing.
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

// probe returns what is wrong with route, or an empty string.
func probe(h http.Handler, route string) (fault string) {
	w := &recorder{ResponseRecorder: httptest.NewRecorder()}
	var before, rejection written
	expected, byGate := 0, false
	mark := gate.Mark{
		Refusing: func() { before = w.written() },
		Rejecting: func(status int) func() {
			expected, byGate = status, true
			return func() { rejection = w.written() }
		},
	}
	r, err := newRequest(context.WithValue(context.Background(), gate.MarkKey{}, &mark), route)
	if err != nil {
		return err.Error()
	}
	// Without this, a panic would end the test before the other routes are probed.
	defer func() {
		if v := recover(); v != nil {
			fault = fmt.Sprintf("the handler panicked: %v", v)
		}
	}()
	h.ServeHTTP(w, r)
	got := w.written()
	var isRejection bool
	switch {
	case !got.wrote:
		isRejection = true
	case !byGate: // the handler writes its own after Ask; gRPC has its status in a trailer
		isGRPC := strings.HasPrefix(w.Header().Get("Content-Type"), "application/grpc")
		isRejection = got.status >= 300 || isGRPC
	case rejection.body != "":
		isRejection = got == rejection
	case expected != 0: // a middleware in between buffers the answer
		isRejection = got.status == expected && (got.body == "" || json.Valid([]byte(got.body)))
	case rejection.wrote:
		isRejection = got == rejection
	default:
		isRejection = got.status >= 300
	}
	switch {
	case mark.Passed.Load():
		return fmt.Sprintf("the gate let a request without a param through (status %d): "+
			"the Mode is ReportOnly or Exempt, or the Policy allows ParamMissing", w.Code)
	case !mark.Rejected.Load():
		return fmt.Sprintf("no gate was asked (status %d): %s", w.Code, hint(w.Code))
	case before.wrote:
		return fmt.Sprintf("an answer was written before the rejection (status %d): "+
			"the handler runs before the gate", before.status)
	case !isRejection:
		return fmt.Sprintf("the answer is not the rejection (status %d): "+
			"the handler wrote to it, or another middleware replaced it", got.status)
	}
	return ""
}

// recorder also records whether anything was written.
type recorder struct {
	*httptest.ResponseRecorder
	wrote bool
}

func (r *recorder) WriteHeader(status int) {
	r.wrote = r.wrote || status >= 200
	r.ResponseRecorder.WriteHeader(status)
}

func (r *recorder) Write(p []byte) (int, error) {
	r.wrote = true
	return r.ResponseRecorder.Write(p)
}

func (r *recorder) WriteString(s string) (int, error) {
	r.wrote = true
	return r.ResponseRecorder.WriteString(s)
}

func (r *recorder) Flush() {
	r.wrote = true
	r.ResponseRecorder.Flush()
}

// written is what was written so far.
type written struct {
	wrote  bool
	status int
	body   string
}

func (r *recorder) written() written { return written{r.wrote, r.Code, r.Body.String()} }

func hint(status int) string {
	switch {
	case status == http.StatusNotFound || status == http.StatusMethodNotAllowed:
		return "the mux has no such route, or the handler is not wrapped by the gate"
	case status >= 300:
		return "the mux or another middleware answered first, the handler refused the empty body before it called " +
			"Require or Ask, or it is not wrapped by the gate"
	}
	return "the handler is not wrapped by the gate, or it is behind Deferred and called neither Require nor Ask"
}

func newRequest(ctx context.Context, route string) (r *http.Request, err error) {
	fields := strings.Fields(route)
	if len(fields) != 2 || !strings.HasPrefix(fields[1], "/") {
		return nil, fmt.Errorf("the route must be a method and a path, such as %q", "POST /login")
	}
	defer func() {
		if v := recover(); v != nil { // as httptest does if the method or the path is malformed
			err = fmt.Errorf("the route is malformed: %v", v)
		}
	}()
	r = httptest.NewRequestWithContext(ctx, fields[0], fields[1], nil)
	r.Header.Set("Content-Type", "application/json")
	return r, nil
}
