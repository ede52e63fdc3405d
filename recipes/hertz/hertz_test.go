package hertz_test

import (
	"context"
	"maps"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cloudwego/hertz/pkg/app"
	"github.com/cloudwego/hertz/pkg/app/middlewares/server/recovery"
	"github.com/cloudwego/hertz/pkg/app/server"
	"github.com/cloudwego/hertz/pkg/common/adaptor"
	"github.com/cloudwego/hertz/pkg/common/config"
	"github.com/cloudwego/hertz/pkg/common/hlog"
	"github.com/cloudwego/hertz/pkg/network/standard"
	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
	recipe "github.com/alicaptcha/alicaptcha/recipes/hertz"
	"github.com/alicaptcha/alicaptcha/recipes/internal/gatetest"
)

func TestMain(m *testing.M) {
	hlog.SetLevel(hlog.LevelFatal)
	m.Run()
}

// start starts a server with what add adds to it. It has the transport of net, because
// the race detector sees no order in what netpoll reads and writes.
func start(t *testing.T, add func(*server.Hertz), opts ...config.Option) *gatetest.Bridge {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	h := server.New(append([]config.Option{
		server.WithListener(listener), server.WithTransport(standard.NewTransporter), server.WithDisablePrintRoute(true),
	}, opts...)...)
	bridge := &gatetest.Bridge{Address: listener.Addr().String()}
	h.Use(func(ctx context.Context, c *app.RequestContext) {
		if name := c.GetHeader(gatetest.BridgeHeader); len(name) > 0 {
			ctx = bridge.Context(string(name))
		}
		c.Next(ctx)
	})
	add(h)
	go h.Run()
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // requests that hang are not waited for
		h.Shutdown(ctx)
	})
	return bridge
}

func wrap(h http.Handler) app.HandlerFunc { return adaptor.HertzHandler(h) }

func TestRoutes(t *testing.T) {
	for _, preparse := range []bool{false, true} {
		gatetest.Run(t, gatetest.App{
			Signup:   true,
			Recovers: true,
			Buffers:  true,
			New: func(captcha *alicaptcha.Middleware, home, login http.HandlerFunc, create func(string)) http.Handler {
				return start(t, func(h *server.Hertz) {
					h.Use(recovery.Recovery())
					recipe.AddRoutes(h, captcha, wrap(home), wrap(login), recipe.Signup(create))
				}, server.WithDisablePreParseMultipartForm(!preparse))
			},
		})
	}
}

const typeJSON = "application/json"

func ok(_ context.Context, c *app.RequestContext) { c.Write(c.Request.Body()) }

// gated adds POST /login behind captcha.
func gated(captcha *alicaptcha.Middleware, login app.HandlerFunc) func(*server.Hertz) {
	return func(h *server.Hertz) { h.POST("/login", recipe.Gate(captcha.Handler), login) }
}

// post sends a request to POST /login.
func post(t *testing.T, address, body string, header http.Header) gatetest.Answer {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+address+"/login", strings.NewReader(body))
	require.NoError(t, err)
	r.Header = http.Header{"Content-Type": {typeJSON}}
	maps.Copy(r.Header, header)
	return gatetest.Do(t, r)
}

// Hertz refuses a body that is too long before a param is spent.
func TestMaxRequestBodySize(t *testing.T) {
	service := gatetest.Start(t)
	bridge := start(t, gated(service.Gate(t), ok), server.WithMaxRequestBodySize(1000))
	a := post(t, bridge.Address, gatetest.JSON("alice", service.Param(t)), nil)
	require.Equal(t, http.StatusRequestEntityTooLarge, a.Status)
	require.Empty(t, service.Outcomes)
}

// With WithStreamBody the param must be in the header, and the handler gets the body
// whole.
func TestStreamedBody(t *testing.T) {
	service := gatetest.Start(t)
	bridge := start(t, gated(service.Gate(t), ok), server.WithStreamBody(true))
	body := gatetest.JSON("alice", service.Param(t))
	gatetest.RequireRejected(t, post(t, bridge.Address, body, nil), 400, "captcha_missing")
	a := post(t, bridge.Address, body, http.Header{"Captcha-Verify-Param": {service.Param(t)}})
	require.Equal(t, http.StatusOK, a.Status)
	require.Equal(t, body, a.Body)
}

// The gate reads no body that is declared as compressed.
func TestCompressedBody(t *testing.T) {
	service := gatetest.Start(t)
	bridge := start(t, gated(service.Gate(t), ok))
	a := post(t, bridge.Address, gatetest.JSON("alice", service.Param(t)), http.Header{"Content-Encoding": {"gzip"}})
	gatetest.RequireRejected(t, a, 400, "captcha_invalid")
}

// A deadline of the context outside the gate includes the verification.
func TestTimeout(t *testing.T) {
	for _, row := range []struct {
		timeout time.Duration
		code    alicaptcha.Code
	}{
		{50 * time.Millisecond, alicaptcha.Overloaded},
		{1200 * time.Millisecond, alicaptcha.ServiceTimeout},
	} {
		service, captcha := gatetest.Hang(t, 2*time.Second)
		var login gatetest.Login
		bridge := start(t, func(h *server.Hertz) {
			h.Use(func(ctx context.Context, c *app.RequestContext) {
				ctx, cancel := context.WithTimeout(ctx, row.timeout)
				defer cancel()
				c.Next(ctx)
			})
			gated(captcha, wrap(&login))(h)
		})
		a := post(t, bridge.Address, gatetest.JSON("alice", service.Param(t)), nil)
		gatetest.RequireRejected(t, a, 503, "captcha_unavailable")
		require.Equal(t, row.code, (<-service.Outcomes).Code)
		require.Zero(t, login.Calls())
	}
}

// Hertz notices that a client hangs up only with WithSenseClientDisconnection.
func TestClientHangsUp(t *testing.T) {
	for _, row := range []struct {
		sense bool
		code  alicaptcha.Code
	}{{true, alicaptcha.ClientCanceled}, {false, alicaptcha.ServiceTimeout}} {
		service := gatetest.Start(t)
		require.NoError(t, service.SetFaults(alicaptchatest.Faults{Hang: alicaptchatest.StageHeaders}))
		var login gatetest.Login
		bridge := start(t, gated(service.Gate(t), wrap(&login)), server.WithSenseClientDisconnection(row.sense))
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
		require.Equal(t, row.code, (<-service.Outcomes).Code)
		require.Zero(t, login.Calls())
	}
}

// A rejection replaces headers of the response as it does with net/http.
func TestHeaders(t *testing.T) {
	captcha := gatetest.Start(t).Gate(t)
	bridge := start(t, func(h *server.Hertz) {
		h.Use(func(ctx context.Context, c *app.RequestContext) {
			c.Header("Vary", "Origin")
			c.Header("Cache-Control", "public")
			c.Header("ETag", "x")
			c.Header("Content-Encoding", "br")
			c.Header("Set-Cookie", "a=b; Path=/")
			c.Next(ctx)
		})
		gated(captcha, ok)(h)
	})
	a := post(t, bridge.Address, "{}", nil)
	gatetest.RequireRejected(t, a, 400, "captcha_missing")
	require.ElementsMatch(t, []string{"Origin", "Accept", "Accept-Language"}, a.Header.Values("Vary"))
	require.Equal(t, []string{"no-store"}, a.Header.Values("Cache-Control"))
	require.Empty(t, a.Header.Values("Etag"))
	require.Empty(t, a.Header.Values("Content-Encoding"))
	require.Len(t, a.Header.Values("Set-Cookie"), 1)
}

// A gate on the server is also in front of its 404; a gate on a group is not.
func TestUnmatched(t *testing.T) {
	captcha := gatetest.Start(t).Gate(t)
	bridge := start(t, func(h *server.Hertz) {
		h.Use(recipe.Gate(captcha.Handler))
		h.POST("/login", ok)
	})
	gatetest.RequireRejected(t, gatetest.Send(t, bridge, "POST", "/nowhere", "", ""), 400, "captcha_missing")
	alicaptchatest.AssertProtected(t, bridge, "POST /login")
	bridge = start(t, func(h *server.Hertz) { h.Group("/group", recipe.Gate(captcha.Handler)).POST("/login", ok) })
	require.Equal(t, http.StatusNotFound, gatetest.Send(t, bridge, "POST", "/group/nowhere", "", "").Status)
	alicaptchatest.AssertProtected(t, bridge, "POST /group/login")
}

// If a middleware recovers without an Abort, Hertz must not continue behind a gate that
// has panicked.
func TestGatePanics(t *testing.T) {
	service := gatetest.Start(t)
	cfg := service.Config()
	cfg.SceneID = ""
	cfg.SceneIDFunc = func(*http.Request) string { panic("boom") }
	captcha, err := alicaptcha.New(cfg)
	require.NoError(t, err)
	var login gatetest.Login
	bridge := start(t, func(h *server.Hertz) {
		h.Use(func(ctx context.Context, c *app.RequestContext) {
			defer func() {
				if recover() != nil {
					c.SetStatusCode(http.StatusInternalServerError)
				}
			}()
			c.Next(ctx)
		})
		gated(captcha, wrap(&login))(h)
	})
	a := post(t, bridge.Address, gatetest.JSON("alice", service.Param(t)), nil)
	require.Equal(t, http.StatusInternalServerError, a.Status)
	require.Zero(t, login.Calls())
}

// The transport that Hertz has by default is netpoll, except on Windows.
func TestDefaultTransport(t *testing.T) {
	service := gatetest.Start(t)
	var login gatetest.Login
	bridge := start(t, gated(service.Gate(t), wrap(&login)), server.WithTransport(nil))
	body := gatetest.JSON("alice", service.Param(t))
	require.Equal(t, http.StatusOK, post(t, bridge.Address, body, nil).Status)
	gatetest.RequireRejected(t, post(t, bridge.Address, body, nil), 403, "captcha_expired")
	require.Equal(t, 1, login.Calls())
}
