package gorilla_test

import (
	"io"
	"net/http"
	"testing"

	"github.com/gorilla/mux"
	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
	"github.com/alicaptcha/alicaptcha/recipes/gorilla"
	"github.com/alicaptcha/alicaptcha/recipes/internal/gatetest"
	"github.com/alicaptcha/alicaptcha/recipes/nethttp"
)

func TestRouter(t *testing.T) {
	gatetest.Run(t, gatetest.App{
		Signup: true,
		New: func(captcha *alicaptcha.Middleware, home, login http.HandlerFunc, create func(string)) http.Handler {
			return gorilla.NewRouter(captcha, home, login, nethttp.Signup(create))
		},
	})
}

func ok(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") }

// Use applies to every route of a router and its subrouters, but not to 404 and 405.
func TestUnmatched(t *testing.T) {
	service := gatetest.Start(t)
	r := mux.NewRouter()
	r.Use(service.Gate(t).Handler)
	r.HandleFunc("/login", ok).Methods("POST")
	r.PathPrefix("/sub").Subrouter().HandleFunc("/login", ok).Methods("POST")

	require.Equal(t, http.StatusNotFound, gatetest.Send(t, r, "POST", "/nowhere", "", "").Status)
	require.Equal(t, http.StatusMethodNotAllowed, gatetest.Send(t, r, "GET", "/login", "", "").Status)
	require.Empty(t, service.Outcomes)
	alicaptchatest.AssertProtected(t, r, "POST /login", "POST /sub/login")
}

// Use does not apply to the NotFoundHandler, so a NotFoundHandler that serves content
// is not behind the gate.
func TestNotFoundHandler(t *testing.T) {
	service := gatetest.Start(t)
	r := mux.NewRouter()
	r.Use(service.Gate(t).Handler)
	r.NotFoundHandler = http.HandlerFunc(ok)
	require.Equal(t, "ok", gatetest.Send(t, r, "POST", "/anything", "", "").Body)
	require.Empty(t, service.Outcomes)

	r.NotFoundHandler = service.Gate(t).Handler(http.HandlerFunc(ok))
	gatetest.RequireRejected(t, gatetest.Send(t, r, "POST", "/anything", "", ""), 400, "captcha_missing")
}
