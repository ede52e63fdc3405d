package gozero_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/zeromicro/go-zero/core/conf"
	"github.com/zeromicro/go-zero/core/logx"
	"github.com/zeromicro/go-zero/core/stat"
	"github.com/zeromicro/go-zero/rest"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
	"github.com/alicaptcha/alicaptcha/recipes/gozero"
	"github.com/alicaptcha/alicaptcha/recipes/internal/gatetest"
	"github.com/alicaptcha/alicaptcha/recipes/nethttp"
)

func TestMain(m *testing.M) {
	logx.MustSetup(logx.LogConf{Mode: "console"}) // else the first server sets the writer
	logx.SetWriter(logx.NewWriter(io.Discard))
	stat.DisableLog()
	m.Run()
}

const typeJSON = "application/json"

// config returns the usual configuration.
func config(t *testing.T) (cfg rest.RestConf) {
	t.Helper()
	require.NoError(t, conf.FillDefault(&cfg))
	cfg.Name = t.Name()
	cfg.Telemetry.Disabled = true
	return cfg
}

// serve returns a server with what add adds to it.
func serve(t *testing.T, cfg rest.RestConf, add func(*rest.Server)) http.Handler {
	t.Helper()
	server, err := rest.NewServer(cfg)
	require.NoError(t, err)
	add(server)
	serverless, err := rest.NewServerless(server)
	require.NoError(t, err)
	return http.HandlerFunc(serverless.Serve)
}

// gated returns a server with POST /login behind captcha.
func gated(t *testing.T, captcha *alicaptcha.Middleware, login http.HandlerFunc, opts ...rest.RouteOption) http.Handler {
	t.Helper()
	return serve(t, config(t), func(server *rest.Server) {
		gate := rest.ToMiddleware(captcha.Handler)
		route := rest.Route{Method: http.MethodPost, Path: "/login", Handler: login}
		server.AddRoutes(rest.WithMiddleware(gate, route), opts...)
	})
}

func TestRoutes(t *testing.T) {
	gatetest.Run(t, gatetest.App{
		Signup:   true,
		Recovers: true,
		New: func(captcha *alicaptcha.Middleware, home, login http.HandlerFunc, create func(string)) http.Handler {
			return serve(t, config(t), func(server *rest.Server) {
				gozero.AddRoutes(server, captcha, home, login, nethttp.Signup(create))
			})
		},
	})
}

func ok(w http.ResponseWriter, r *http.Request) {
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		http.Error(w, "unreadable", http.StatusBadRequest)
	}
}

// Use gates every route, but not 404 and 405.
func TestUnmatched(t *testing.T) {
	service := gatetest.Start(t)
	h := serve(t, config(t), func(server *rest.Server) {
		server.Use(rest.ToMiddleware(service.Gate(t).Handler))
		server.AddRoute(rest.Route{Method: http.MethodPost, Path: "/login", Handler: ok})
	})
	alicaptchatest.AssertProtected(t, h, "POST /login")
	<-service.Outcomes
	require.Equal(t, http.StatusNotFound, gatetest.Send(t, h, "POST", "/nowhere", "", "").Status)
	require.Equal(t, http.StatusMethodNotAllowed, gatetest.Send(t, h, "GET", "/login", "", "").Status)
	require.Empty(t, service.Outcomes)
}

// The timeout of a route includes the verification, unless the client asks for events or
// a WebSocket.
func TestTimeout(t *testing.T) {
	for _, row := range []struct {
		name    string
		timeout time.Duration
		accept  string
		code    alicaptcha.Code
	}{
		{"short", 50 * time.Millisecond, "", alicaptcha.Overloaded},
		{"enough for a call", 1200 * time.Millisecond, "", alicaptcha.ServiceTimeout},
		{"none for events", 50 * time.Millisecond, "text/event-stream", alicaptcha.ServiceTimeout},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			service, captcha := gatetest.Hang(t, 2*time.Second)
			var login gatetest.Login
			server := httptest.NewServer(gated(t, captcha, login.ServeHTTP, rest.WithTimeout(row.timeout)))
			defer server.Close()
			body := strings.NewReader(gatetest.JSON("alice", service.Param(t)))
			r, err := http.NewRequestWithContext(t.Context(), "POST", server.URL+"/login", body)
			require.NoError(t, err)
			r.Header = http.Header{"Content-Type": {typeJSON}, "Accept": {row.accept}}
			require.Equal(t, http.StatusServiceUnavailable, gatetest.Do(t, r).Status)
			require.Equal(t, row.code, (<-service.Outcomes).Code)
			require.Zero(t, login.Calls())
		})
	}
}

// MaxBytes refuses what is announced to be too long, before the param is spent. It does
// not bound a body whose length is not announced.
func TestMaxBytes(t *testing.T) {
	service := gatetest.Start(t)
	h := gated(t, service.Gate(t), ok, rest.WithMaxBytes(1000))
	body := gatetest.JSON("alice", service.Param(t))
	require.Equal(t, http.StatusRequestEntityTooLarge, gatetest.Send(t, h, "POST", "/login", typeJSON, body).Status)
	require.Empty(t, service.Outcomes)

	server := httptest.NewServer(h)
	defer server.Close()
	r, err := http.NewRequestWithContext(t.Context(), "POST", server.URL+"/login", io.MultiReader(strings.NewReader(body)))
	require.NoError(t, err)
	r.Header.Set("Content-Type", typeJSON)
	require.Equal(t, http.StatusOK, gatetest.Do(t, r).Status)
}

// go-zero decompresses a body without a word in its headers, and the gate does not read
// a body that is declared as compressed.
func TestGunzip(t *testing.T) {
	service := gatetest.Start(t)
	server := httptest.NewServer(gated(t, service.Gate(t), ok))
	defer server.Close()
	send := func(header string, body string) gatetest.Answer {
		var packed bytes.Buffer
		w := gzip.NewWriter(&packed)
		io.WriteString(w, body)
		require.NoError(t, w.Close())
		r, err := http.NewRequestWithContext(t.Context(), "POST", server.URL+"/login", &packed)
		require.NoError(t, err)
		r.Header = http.Header{
			"Content-Type": {typeJSON}, "Content-Encoding": {"gzip"}, "Captcha-Verify-Param": {header},
		}
		return gatetest.Do(t, r)
	}
	gatetest.RequireRejected(t, send("", gatetest.JSON("alice", service.Param(t))), 400, "captcha_invalid")
	require.Equal(t, http.StatusOK, send(service.Param(t), "{}").Status)
}

// go-zero logs a request that ends with a status of 500 or more, with its headers and
// the beginning of its body.
func TestLog(t *testing.T) {
	service := gatetest.Start(t)
	var logged gatetest.LockedBuffer
	logx.SetWriter(logx.NewWriter(&logged))
	defer logx.SetWriter(logx.NewWriter(io.Discard))
	h := gated(t, service.Gate(t), ok)
	send := func(status int) string {
		param := service.Param(t)
		require.Equal(t, status, gatetest.Send(t, h, "POST", "/login", typeJSON, gatetest.JSON("alice", param)).Status)
		return param
	}
	require.NotContains(t, logged.String(), send(200))
	gatetest.Send(t, h, "POST", "/login", typeJSON, gatetest.JSON("alice", "a-junk-param"))
	require.NotContains(t, logged.String(), "a-junk-param")
	require.NoError(t, service.SetFaults(alicaptchatest.Faults{Status: 500}))
	param := send(503)
	require.Contains(t, logged.String(), param)

	require.NoError(t, service.SetFaults(alicaptchatest.Faults{}))
	cfg := config(t)
	cfg.Verbose = true
	h = serve(t, cfg, func(server *rest.Server) {
		gozero.AddRoutes(server, service.Gate(t), ok, ok, ok)
	})
	param = send(200)
	require.Contains(t, logged.String(), param)
}

// Hang-ups are answered with 499, which does not count for the breaker of go-zero.
func TestHangUpsDoNotOpenTheBreaker(t *testing.T) {
	service := gatetest.Start(t)
	require.NoError(t, service.SetFaults(alicaptchatest.Faults{Hang: alicaptchatest.StageHeaders}))
	server := httptest.NewServer(gated(t, service.Gate(t), ok))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	for range 30 {
		r, err := http.NewRequestWithContext(ctx, "POST", server.URL+"/login", nil)
		require.NoError(t, err)
		r.Header.Set("Captcha-Verify-Param", service.Param(t))
		wg.Go(func() {
			if resp, err := http.DefaultClient.Do(r); err == nil {
				resp.Body.Close()
			}
		})
	}
	for range 30 {
		<-service.Asked
	}
	cancel()
	wg.Wait()
	for range 30 {
		require.Equal(t, alicaptcha.ClientCanceled, (<-service.Outcomes).Code)
	}
	require.NoError(t, service.SetFaults(alicaptchatest.Faults{}))
	for range 10 {
		r, err := http.NewRequestWithContext(t.Context(), "POST", server.URL+"/login", nil)
		require.NoError(t, err)
		r.Header.Set("Captcha-Verify-Param", service.Param(t))
		require.Equal(t, http.StatusOK, gatetest.Do(t, r).Status)
	}
	server.Close()
}
