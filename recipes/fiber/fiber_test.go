package fiber_test

import (
	"bytes"
	"context"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/gofiber/fiber/v3"
	"github.com/gofiber/fiber/v3/log"
	"github.com/gofiber/fiber/v3/middleware/adaptor"
	"github.com/gofiber/fiber/v3/middleware/timeout"
	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
	recipe "github.com/alicaptcha/alicaptcha/recipes/fiber"
	"github.com/alicaptcha/alicaptcha/recipes/internal/gatetest"
)

func TestMain(m *testing.M) {
	log.SetOutput(io.Discard)
	m.Run()
}

// start starts app behind what gives requests the context of the bridge.
func start(t *testing.T, app *fiber.App) *gatetest.Bridge {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	bridge := &gatetest.Bridge{Address: listener.Addr().String()}
	outer := fiber.New(app.Config())
	outer.Use(func(c fiber.Ctx) error {
		c.SetContext(bridge.Context(c.Get(gatetest.BridgeHeader)))
		return c.Next()
	})
	outer.Use(app)
	go outer.Listener(listener, fiber.ListenConfig{DisableStartupMessage: true})
	t.Cleanup(func() { outer.ShutdownWithTimeout(time.Nanosecond) })
	return bridge
}

// wrap returns a handler of fiber that calls h.
func wrap(h http.HandlerFunc) fiber.Handler {
	return func(c fiber.Ctx) error {
		r := httptest.NewRequestWithContext(c.Context(), "POST", "/", bytes.NewReader(c.BodyRaw()))
		w := httptest.NewRecorder()
		h(w, r)
		return c.Status(w.Code).Send(w.Body.Bytes())
	}
}

func TestApp(t *testing.T) {
	gatetest.Run(t, gatetest.App{
		Signup:   true,
		Recovers: true,
		Buffers:  true,
		New: func(captcha *alicaptcha.Middleware, home, login http.HandlerFunc, create func(string)) http.Handler {
			return start(t, recipe.NewApp(captcha, wrap(home), wrap(login), recipe.Signup(create)))
		},
	})
}

const typeJSON = "application/json"

func ok(c fiber.Ctx) error { return c.Send(c.BodyRaw()) }

// post sends a request to POST /login of app.
func post(t *testing.T, app *fiber.App, body string, header http.Header) gatetest.Answer {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+start(t, app).Address+"/login", strings.NewReader(body))
	require.NoError(t, err)
	r.Header = http.Header{"Content-Type": {typeJSON}}
	maps.Copy(r.Header, header)
	return gatetest.Do(t, r)
}

// gated returns an App with POST /login behind captcha.
func gated(captcha *alicaptcha.Middleware, login fiber.Handler, cfg ...fiber.Config) *fiber.App {
	app := fiber.New(cfg...)
	app.Post("/login", recipe.Gate(captcha.Handler), login)
	return app
}

// fiber refuses a body that is too long before a param is spent, and headers that are
// longer than ReadBufferSize, such as one with a param of V2.
func TestLimits(t *testing.T) {
	service := gatetest.Start(t)
	body := gatetest.JSON("alice", service.Param(t))
	app := gated(service.Gate(t), ok, fiber.Config{BodyLimit: 1000})
	require.Equal(t, http.StatusRequestEntityTooLarge, post(t, app, body, nil).Status)
	long := http.Header{"Captcha-Verify-Param": {strings.Repeat("x", 5000)}}
	require.Equal(t, http.StatusRequestHeaderFieldsTooLarge, post(t, gated(service.Gate(t), ok), "{}", long).Status)
	require.Empty(t, service.Outcomes)
	app = gated(service.Gate(t), ok, fiber.Config{ReadBufferSize: 64 << 10})
	gatetest.RequireRejected(t, post(t, app, "{}", long), 400, "captcha_invalid")
}

// With StreamRequestBody the param must be in the header, and the handler gets the body
// whole.
func TestStreamedBody(t *testing.T) {
	service := gatetest.Start(t)
	cfg := fiber.Config{StreamRequestBody: true, BodyLimit: 1000}
	body := gatetest.JSON("alice", service.Param(t))
	gatetest.RequireRejected(t, post(t, gated(service.Gate(t), ok, cfg), body, nil), 400, "captcha_missing")
	a := post(t, gated(service.Gate(t), ok, cfg), body, http.Header{"Captcha-Verify-Param": {service.Param(t)}})
	require.Equal(t, http.StatusOK, a.Status)
	require.Equal(t, body, a.Body)
}

// c.Body decompresses, but the gate reads no body that is declared as compressed.
func TestCompressedBody(t *testing.T) {
	service := gatetest.Start(t)
	app := gated(service.Gate(t), ok)
	a := post(t, app, gatetest.JSON("alice", service.Param(t)), http.Header{"Content-Encoding": {"gzip"}})
	gatetest.RequireRejected(t, a, 400, "captcha_invalid")
}

// A timeout outside the gate includes the verification, and fiber's own middleware
// answers by itself. The gate must not write at the same time.
func TestTimeout(t *testing.T) {
	for _, row := range []struct {
		timeout time.Duration
		code    alicaptcha.Code
	}{
		{50 * time.Millisecond, alicaptcha.Overloaded},
		{1200 * time.Millisecond, alicaptcha.ServiceTimeout},
	} {
		service, captcha := gatetest.Hang(t, 2*time.Second)
		app := fiber.New()
		var login gatetest.Login
		gate := timeout.New(recipe.Gate(captcha.Handler), timeout.Config{Timeout: row.timeout})
		app.Post("/login", gate, wrap(login.ServeHTTP))
		a := post(t, app, gatetest.JSON("alice", service.Param(t)), nil)
		require.Contains(t, []int{http.StatusRequestTimeout, http.StatusServiceUnavailable}, a.Status)
		require.Equal(t, row.code, (<-service.Outcomes).Code)
		require.Zero(t, login.Calls())
	}
}

// fiber does not notice that a client hangs up: the verification ends as for one that
// waits.
func TestClientHangsUp(t *testing.T) {
	service := gatetest.Start(t)
	require.NoError(t, service.SetFaults(alicaptchatest.Faults{Hang: alicaptchatest.StageHeaders}))
	var login gatetest.Login
	bridge := start(t, gated(service.Gate(t), wrap(login.ServeHTTP)))
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-service.Asked
		cancel()
	}()
	r, err := http.NewRequestWithContext(ctx, "POST", "http://"+bridge.Address+"/login", nil)
	require.NoError(t, err)
	r.Header.Set("Captcha-Verify-Param", service.Param(t))
	_, err = http.DefaultClient.Do(r)
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, alicaptcha.ServiceTimeout, (<-service.Outcomes).Code)
	require.Zero(t, login.Calls())
}

// A rejection replaces headers of the response as it does with net/http.
func TestHeaders(t *testing.T) {
	app := fiber.New()
	app.Use(func(c fiber.Ctx) error {
		c.Set("Vary", "Origin")
		c.Set("Cache-Control", "public")
		c.Set("ETag", "x")
		c.Set("Content-Encoding", "br")
		c.Cookie(&fiber.Cookie{Name: "a", Value: "b"})
		return c.Next()
	})
	app.Post("/login", recipe.Gate(gatetest.Start(t).Gate(t).Handler), ok)
	a := post(t, app, "{}", nil)
	gatetest.RequireRejected(t, a, 400, "captcha_missing")
	require.ElementsMatch(t, []string{"Origin", "Accept", "Accept-Language"}, a.Header.Values("Vary"))
	require.Equal(t, []string{"no-store"}, a.Header.Values("Cache-Control"))
	require.Empty(t, a.Header.Values("Etag"))
	require.Empty(t, a.Header.Values("Content-Encoding"))
	require.Len(t, a.Header.Values("Set-Cookie"), 1)
}

// Use gates the 404, too.
func TestUnmatched(t *testing.T) {
	captcha := gatetest.Start(t).Gate(t)
	app := fiber.New()
	app.Use(recipe.Gate(captcha.Handler))
	app.Post("/login", ok)
	bridge := start(t, app)
	gatetest.RequireRejected(t, gatetest.Send(t, bridge, "POST", "/nowhere", "", ""), 400, "captcha_missing")
	alicaptchatest.AssertProtected(t, bridge, "POST /login")
	bridge = start(t, gated(captcha, ok))
	require.Equal(t, http.StatusNotFound, gatetest.Send(t, bridge, "POST", "/nowhere", "", "").Status)
}

// The adaptor of fiber takes the last of several headers, and reads the memory that
// fiber uses again.
func TestAdaptor(t *testing.T) {
	service := gatetest.Start(t)
	app := fiber.New()
	app.Post("/login", adaptor.HTTPMiddleware(service.Gate(t).Handler), ok)
	a := post(t, app, "{}", http.Header{"Captcha-Verify-Param": {"junk", service.Param(t)}})
	require.Equal(t, http.StatusOK, a.Status)
}
