//go:build unix

package steering_test

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
	"github.com/alicaptcha/alicaptcha/recipes/steering"
)

func newGate(t *testing.T, cfg alicaptcha.Config) *alicaptcha.Middleware {
	cfg.Logger = slog.New(slog.DiscardHandler)
	if cfg.SceneIDFunc == nil {
		cfg.SceneID = "login"
	}
	m, err := alicaptcha.New(cfg)
	require.NoError(t, err)
	return m
}

func login(param string) *http.Request {
	r := httptest.NewRequest("POST", "/login", nil)
	r.Header.Set("Captcha-Verify-Param", param)
	return r
}

func TestSwitch(t *testing.T) {
	var modes steering.Switch
	m := newGate(t, alicaptcha.Config{Verifier: alicaptchatest.Rejecting(alicaptcha.F001), ModeFunc: modes.Mode})
	require.Equal(t, alicaptcha.Enforce, m.Check(login("x")).Mode)

	admin := http.NewServeMux()
	admin.Handle("PUT /captcha/mode/{mode}", &modes)
	for _, row := range []struct {
		name   string
		status int
		mode   alicaptcha.Mode
	}{
		{"report-only", 204, alicaptcha.ReportOnly},
		{"exempt", 204, alicaptcha.Exempt},
		{"off", 404, alicaptcha.Exempt},
		{"enforce", 204, alicaptcha.Enforce},
	} {
		w := httptest.NewRecorder()
		admin.ServeHTTP(w, httptest.NewRequest("PUT", "/captcha/mode/"+row.name, nil))
		require.Equal(t, row.status, w.Code)
		require.Equal(t, row.mode, m.Check(login("x")).Mode)
	}

	ctx, cancel := context.WithCancel(t.Context())
	received := make(chan os.Signal, 1) // until Listen listens, the signals would end the program
	signal.Notify(received, syscall.SIGUSR1, syscall.SIGUSR2)
	defer signal.Stop(received)
	listening := make(chan struct{})
	go func() {
		defer close(listening)
		modes.Listen(ctx, map[os.Signal]alicaptcha.Mode{
			syscall.SIGUSR1: alicaptcha.ReportOnly, syscall.SIGUSR2: alicaptcha.Enforce,
		})
	}()
	for _, row := range []struct {
		signal syscall.Signal
		mode   alicaptcha.Mode
	}{{syscall.SIGUSR1, alicaptcha.ReportOnly}, {syscall.SIGUSR2, alicaptcha.Enforce}} {
		for m.Check(login("x")).Mode != row.mode { // Listen may not listen yet
			require.NoError(t, syscall.Kill(syscall.Getpid(), row.signal))
			<-received
		}
	}
	cancel()
	<-listening
}

func TestRamp(t *testing.T) {
	session := func(r *http.Request) string { return r.Header.Get("Test-Session") }
	var percent atomic.Int64
	ramp := steering.Ramp(&percent, "salt", session)
	enforced := func() (n int) {
		for i := range 1000 {
			r := login("x")
			r.Header.Set("Test-Session", strconv.Itoa(i))
			first := ramp(r)
			require.Equal(t, first, ramp(r), "the same session gets the same mode")
			if first == alicaptcha.Enforce {
				n++
			} else {
				require.Equal(t, alicaptcha.ReportOnly, first)
			}
		}
		return n
	}
	require.Zero(t, enforced())
	require.Equal(t, alicaptcha.Enforce, ramp(login("x")), "without a session")
	percent.Store(25)
	require.InDelta(t, 250, enforced(), 60)
	percent.Store(100)
	require.Equal(t, 1000, enforced())
}

func TestReloadable(t *testing.T) {
	first := alicaptchatest.Start(t, alicaptchatest.Config{})
	second := alicaptchatest.Start(t, alicaptchatest.Config{})
	var settings steering.Reloadable
	settings.Store(&steering.Settings{Verifier: first.Client(), SceneID: "login"})
	m := newGate(t, alicaptcha.Config{Verifier: &settings, SceneIDFunc: settings.SceneID})
	check := func(server *alicaptchatest.Server, scene string) alicaptcha.Code {
		param, err := server.Issue(alicaptchatest.Issue{SceneID: scene})
		require.NoError(t, err)
		return m.Check(login(param)).Code
	}
	require.Equal(t, alicaptcha.T001, check(first, "login"))
	settings.Store(&steering.Settings{Verifier: second.Client(), SceneID: "signup"})
	require.Equal(t, alicaptcha.T001, check(second, "signup"))
	require.NotEqual(t, alicaptcha.T001, check(first, "login"))
}

func TestTenants(t *testing.T) {
	site := func(name string, verifier alicaptcha.Verifier) http.Handler {
		m := newGate(t, alicaptcha.Config{Verifier: verifier})
		return m.Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte(name)) }))
	}
	h := steering.Tenants(map[string]http.Handler{
		"a.example": site("a", alicaptchatest.Passing()),
		"b.example": site("b", alicaptchatest.Rejecting(alicaptcha.F001)),
	})
	for host, want := range map[string]string{"a.example": "a", "b.example": "captcha_rejected", "c.example": "Misdirected"} {
		r := login("x")
		r.Host = host
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		require.True(t, strings.Contains(w.Body.String(), want), w.Body)
	}
}
