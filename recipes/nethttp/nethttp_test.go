package nethttp_test

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
	"github.com/alicaptcha/alicaptcha/recipes/internal/gatetest"
	"github.com/alicaptcha/alicaptcha/recipes/nethttp"
)

func TestMux(t *testing.T) {
	gatetest.Run(t, gatetest.App{
		Signup: true,
		New: func(captcha *alicaptcha.Middleware, home, login http.HandlerFunc, create func(string)) http.Handler {
			return nethttp.NewMux(captcha, home, login, nethttp.Signup(create))
		},
	})
}

func ok(w http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body)
	io.WriteString(w, "ok")
}

// http.TimeoutHandler answers at its deadline. The outcome is Overloaded, which no
// Policy can let through, and not ServiceTimeout.
func TestTimeoutHandlerOutside(t *testing.T) {
	service := gatetest.Start(t)
	require.NoError(t, service.SetFaults(alicaptchatest.Faults{Hang: alicaptchatest.StageHeaders}))
	var login gatetest.Login
	h := http.TimeoutHandler(service.Gate(t).Handler(&login), 50*time.Millisecond, "too slow")

	a := gatetest.Send(t, h, "POST", "/login", "application/json", gatetest.JSON("alice", service.Param(t)))
	require.Equal(t, http.StatusServiceUnavailable, a.Status)
	require.Equal(t, "too slow", a.Body)
	require.Equal(t, alicaptcha.Overloaded, (<-service.Outcomes).Code)
	require.Zero(t, login.Calls())
}

// Inside the gate, the time of the verification does not count.
func TestTimeoutHandlerInside(t *testing.T) {
	service := gatetest.Start(t)
	require.NoError(t, service.SetFaults(alicaptchatest.Faults{Latency: 200 * time.Millisecond}))
	var login gatetest.Login
	h := service.Gate(t).Handler(http.TimeoutHandler(&login, 100*time.Millisecond, "too slow"))

	a := gatetest.Send(t, h, "POST", "/login", "application/json", gatetest.JSON("alice", service.Param(t)))
	require.Equal(t, http.StatusOK, a.Status, a.Body)
	require.Equal(t, alicaptcha.T001, (<-service.Outcomes).Code)
}

// A limit outside the gate also applies to what the gate reads.
func TestMaxBytesHandlerOutside(t *testing.T) {
	service := gatetest.Start(t)
	var login gatetest.Login
	h := http.MaxBytesHandler(service.Gate(t).Handler(&login), 1000)
	param := service.Param(t)
	paramLast := `{"padding":"` + strings.Repeat("x", 1000) + `","captchaVerifyParam":"` + param + `"}`

	a := gatetest.Send(t, h, "POST", "/login", "application/json", paramLast)
	gatetest.RequireRejected(t, a, 413, "captcha_invalid")
	require.Zero(t, service.Count())

	// If the param comes first, the gate passes, and the handler fails to read the body.
	a = gatetest.Send(t, h, "POST", "/login", "application/json", gatetest.JSON("alice", param))
	require.Equal(t, http.StatusRequestEntityTooLarge, a.Status)
	require.Equal(t, "unreadable\n", a.Body)
	require.Equal(t, 1, service.Count(), "the param is spent")
}

func TestMethods(t *testing.T) {
	service := gatetest.Start(t)
	mux := http.NewServeMux()
	mux.Handle("POST /login", service.Gate(t).Handler(http.HandlerFunc(ok)))
	mux.Handle("/anymethod", service.Gate(t).Handler(http.HandlerFunc(ok)))

	require.Equal(t, http.StatusMethodNotAllowed, gatetest.Send(t, mux, "OPTIONS", "/login", "", "").Status)
	gatetest.RequireRejected(t, gatetest.Send(t, mux, "OPTIONS", "/anymethod", "", ""), 400, "captcha_missing")
}
