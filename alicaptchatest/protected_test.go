package alicaptchatest_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha/alicaptchatest"
	"github.com/alicaptcha/alicaptcha/internal/gate"
)

// fakeT records what a test would report.
type fakeT struct{ errors []string }

func (*fakeT) Helper() {}
func (t *fakeT) Errorf(format string, args ...any) {
	t.errors = append(t.errors, fmt.Sprintf(format, args...))
}

// mark returns a handler that changes the mark as a gate would.
func mark(rejected, passed bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		m := r.Context().Value(gate.MarkKey{}).(*gate.Mark)
		m.Rejected.Store(rejected)
		m.Passed.Store(passed)
		w.WriteHeader(http.StatusTeapot)
	}
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

func TestAssertProtected(t *testing.T) {
	t.Parallel()
	mux := http.NewServeMux()
	mux.Handle("POST /good", mark(true, false))
	mux.Handle("DELETE /things/{id}", mark(true, false))
	mux.Handle("POST /open", mark(false, true))
	mux.Handle("POST /both", mark(true, true))
	mux.Handle("POST /bare", status(200))
	mux.Handle("POST /forbidden", status(403)) // like a rejection, but not by the gate
	mux.Handle("POST /unauthorized", status(401))
	mux.Handle("POST /panics", http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("at the disco") }))
	mux.Handle("POST /aborts", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mark(true, false)(w, r)
		panic(http.ErrAbortHandler)
	}))
	for name, c := range map[string]struct {
		routes []string
		errors [][]string // what each report contains
	}{
		"one":         {[]string{"POST /good"}, nil},
		"several":     {[]string{"POST /good", "DELETE /things/7?x=%20y"}, nil},
		"none":        {nil, [][]string{{"no routes"}}},
		"let through": {[]string{"POST /open"}, [][]string{{`"POST /open"`, "let", "418", "ReportOnly", "ParamMissing"}}},
		"both":        {[]string{"POST /both"}, [][]string{{`"POST /both"`, "let"}}},
		"no gate":     {[]string{"POST /bare"}, [][]string{{`"POST /bare"`, "status 200", "Deferred", "Require"}}},
		"another's 403": {
			[]string{"POST /forbidden"},
			[][]string{{`"POST /forbidden"`, "status 403", "another middleware"}},
		},
		"login": {
			[]string{"POST /unauthorized"},
			[][]string{{`"POST /unauthorized"`, "status 401", "another middleware"}},
		},
		"no route":       {[]string{"POST /nowhere"}, [][]string{{`"POST /nowhere"`, "status 404", "no such route"}}},
		"another method": {[]string{"PUT /good"}, [][]string{{`"PUT /good"`, "status 405", "no such route"}}},
		"panic": {
			[]string{"POST /panics", "POST /bare"},
			[][]string{{`"POST /panics"`, "panicked", "at the disco"}, {`"POST /bare"`}},
		},
		"abort":      {[]string{"POST /aborts"}, [][]string{{`"POST /aborts"`, "panicked"}}},
		"no method":  {[]string{"/good"}, [][]string{{`"/good"`, "a method and a path"}}},
		"no path":    {[]string{"POST"}, [][]string{{`"POST"`, "a method and a path"}}},
		"empty":      {[]string{""}, [][]string{{`""`, "a method and a path"}}},
		"no slash":   {[]string{"POST good"}, [][]string{{"a method and a path"}}},
		"more":       {[]string{"POST /good HTTP/1.0"}, [][]string{{"a method and a path"}}},
		"bad method": {[]string{"PO(ST /good"}, [][]string{{"malformed"}}},
		"bad path":   {[]string{"POST /%zz"}, [][]string{{"malformed"}}},
		"some":       {[]string{"POST /bare", "POST /good", "POST /open"}, [][]string{{"/bare"}, {"/open"}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fake := &fakeT{}
			require.Equal(t, c.errors == nil, alicaptchatest.AssertProtected(fake, mux, c.routes...))
			require.Len(t, fake.errors, len(c.errors), fake.errors)
			for i, parts := range c.errors {
				for _, part := range parts {
					require.Contains(t, fake.errors[i], part)
				}
			}
		})
	}
}

func TestAssertProtectedRequest(t *testing.T) {
	t.Parallel()
	seen := false
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen = true
		body, err := io.ReadAll(r.Body)
		require.NoError(t, err)
		require.Empty(t, body)
		require.Equal(t, "application/json", r.Header.Get("Content-Type"))
		require.Equal(t, "PATCH /a/b?c=d", r.Method+" "+r.URL.String())
		require.False(t, strings.Contains(strings.ToLower(fmt.Sprint(r.Header)), "captcha"))
		mark(true, false)(w, r)
	})
	require.True(t, alicaptchatest.AssertProtected(t, h, "PATCH /a/b?c=d"))
	require.True(t, seen)
}
