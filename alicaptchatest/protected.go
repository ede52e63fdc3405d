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
// asks the middleware what it did, and reports a route where anything was written
// before the rejection or added to it: there the handler runs before the gate, or
// does not heed what Require returned. A handler that calls Ask writes its own
// rejection, which must have a status of 300 or more, gRPC's aside. The body is empty,
// of type application/json. A route behind a login, and one whose handler validates
// the body before it asks, are reported, because they answer first: give
// AssertProtected a handler without the login, or one that puts a valid body without
// a param in the place of the empty one. A handler that runs in spite of the rejection
// and writes nothing, it does not see.
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
	// Without this one route would end the test before the others are seen.
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
	case !byGate: // after Ask the handler writes its own; gRPC has its status in a trailer
		isGRPC := strings.HasPrefix(w.Header().Get("Content-Type"), "application/grpc")
		isRejection = got.status >= 300 || isGRPC
	case rejection.body != "":
		isRejection = got == rejection
	case expected != 0: // a middleware in between has kept the answer back
		isRejection = got.status == expected && (got.body == "" || json.Valid([]byte(got.body)))
	case rejection.wrote:
		isRejection = got == rejection
	default:
		isRejection = got.status >= 300
	}
	switch {
	case mark.Passed.Load():
		return fmt.Sprintf("the gate let a request without a param through (status %d): "+
			"ReportOnly is on, or the Policy allows ParamMissing", w.Code)
	case !mark.Rejected.Load():
		return fmt.Sprintf("no gate was asked (status %d): %s", w.Code, hint(w.Code))
	case before.wrote:
		return fmt.Sprintf("an answer was written before the rejection (status %d): "+
			"the handler runs before the gate", before.status)
	case !isRejection:
		return fmt.Sprintf("the answer is not the rejection (status %d): "+
			"the handler wrote to it, or somebody replaced it", got.status)
	}
	return ""
}

// A recorder also tells whether anything was written.
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

// A written is what was written so far.
type written struct {
	wrote  bool
	status int
	body   string
}

func (r *recorder) written() written { return written{r.wrote, r.Code, r.Body.String()} }

func hint(status int) string {
	switch {
	case status == http.StatusNotFound || status == http.StatusMethodNotAllowed:
		return "the mux has no such route, or the handler is not wrapped"
	case status >= 300:
		return "the mux or another middleware answered first, the handler refused the empty body before it asked, " +
			"or it is not wrapped"
	}
	return "the handler is not wrapped, or it is behind Deferred and called neither Ask nor Require"
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
