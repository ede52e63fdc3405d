package chi_test

import (
	"compress/gzip"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	router "github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
	"github.com/alicaptcha/alicaptcha/recipes/chi"
	"github.com/alicaptcha/alicaptcha/recipes/internal/gatetest"
	"github.com/alicaptcha/alicaptcha/recipes/nethttp"
)

func TestRouter(t *testing.T) {
	gatetest.Run(t, gatetest.App{
		Signup:   true,
		Recovers: true,
		New: func(captcha *alicaptcha.Middleware, home, login http.HandlerFunc, create func(string)) http.Handler {
			return chi.NewRouter(captcha, home, login, nethttp.Signup(create))
		},
	})
}

func ok(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") }

// Use and Mount put the gate in front of the subrouter's 404 and 405 as well.
// With and Group before the routes do not.
func TestUnmatched(t *testing.T) {
	service := gatetest.Start(t)
	captcha := service.Gate(t)
	r := router.NewRouter()
	r.Route("/use", func(r router.Router) {
		r.Use(captcha.Handler)
		r.Post("/login", ok)
	})
	sub := router.NewRouter()
	sub.Post("/login", ok)
	r.With(captcha.Handler).Mount("/mount", sub)
	r.Route("/group", func(r router.Router) {
		r.Group(func(r router.Router) {
			r.Use(captcha.Handler)
			r.Post("/login", ok)
		})
	})
	alicaptchatest.AssertProtected(t, r, "POST /use/login", "POST /mount/login", "POST /group/login")

	for _, prefix := range []string{"/use", "/mount"} {
		gatetest.RequireRejected(t, gatetest.Send(t, r, "POST", prefix+"/nowhere", "", ""), 400, "captcha_missing")
		gatetest.RequireRejected(t, gatetest.Send(t, r, "GET", prefix+"/login", "", ""), 400, "captcha_missing")
	}
	require.Equal(t, http.StatusNotFound, gatetest.Send(t, r, "POST", "/group/nowhere", "", "").Status)
	require.Equal(t, http.StatusMethodNotAllowed, gatetest.Send(t, r, "GET", "/group/login", "", "").Status)
}

// Compress outside the gate also compresses the HTML page of the gate.
func TestCompress(t *testing.T) {
	r := router.NewRouter()
	r.Use(middleware.Compress(5))
	r.With(gatetest.Start(t).Gate(t).Handler).Post("/login", ok)
	server := httptest.NewServer(r)
	defer server.Close()

	req, err := http.NewRequestWithContext(t.Context(), "POST", server.URL+"/login", nil)
	require.NoError(t, err)
	req.Header.Set("Accept", "text/html")
	req.Header.Set("Accept-Encoding", "gzip") // set by hand, it is not undone by the client
	a := gatetest.Do(t, req)
	require.Equal(t, http.StatusBadRequest, a.Status)
	require.Equal(t, "gzip", a.Header.Get("Content-Encoding"))
	unpacked, err := gzip.NewReader(strings.NewReader(a.Body))
	require.NoError(t, err)
	page, err := io.ReadAll(unpacked)
	require.NoError(t, err)
	require.Contains(t, string(page), "</html>")

	req.Header.Set("Accept", "application/json")
	gatetest.RequireRejected(t, gatetest.Do(t, req), 400, "captcha_missing")
}

// chi's Timeout sets a deadline for the request, so that the outcome is Overloaded. It
// writes its own 504 too late.
func TestTimeout(t *testing.T) {
	service := gatetest.Start(t)
	require.NoError(t, service.SetFaults(alicaptchatest.Faults{Hang: alicaptchatest.StageHeaders}))
	var login gatetest.Login
	r := router.NewRouter()
	r.Use(middleware.Timeout(50 * time.Millisecond))
	r.With(service.Gate(t).Handler).Post("/login", login.ServeHTTP)

	server := httptest.NewUnstartedServer(r)
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // the 504 is a superfluous WriteHeader
	server.Start()
	defer server.Close()
	body := strings.NewReader(gatetest.JSON("alice", service.Param(t)))
	req, err := http.NewRequestWithContext(t.Context(), "POST", server.URL+"/login", body)
	require.NoError(t, err)
	req.Header.Set("Content-Type", "application/json")
	gatetest.RequireRejected(t, gatetest.Do(t, req), 503, "captcha_unavailable")
	require.Equal(t, alicaptcha.Overloaded, (<-service.Outcomes).Code)
	require.Zero(t, login.Calls())
}
