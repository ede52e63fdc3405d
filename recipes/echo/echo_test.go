package echo_test

import (
	"bytes"
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/labstack/echo/v5"
	"github.com/labstack/echo/v5/middleware"
	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
	recipe "github.com/alicaptcha/alicaptcha/recipes/echo"
	"github.com/alicaptcha/alicaptcha/recipes/internal/gatetest"
)

func wrap(h http.HandlerFunc) echo.HandlerFunc { return echo.WrapHandler(h) }

func TestRouter(t *testing.T) {
	gatetest.Run(t, gatetest.App{
		Signup:   true,
		Recovers: true,
		New: func(captcha *alicaptcha.Middleware, home, login http.HandlerFunc, create func(string)) http.Handler {
			return recipe.NewRouter(captcha, wrap(home), wrap(login), recipe.Signup(create))
		},
	})
}

func ok(c *echo.Context) error {
	if _, err := io.Copy(io.Discard, c.Request().Body); err != nil {
		return err
	}
	return c.String(http.StatusOK, "ok")
}

const typeJSON = "application/json"

// sendChunked sends a body whose length is not announced.
func sendChunked(t *testing.T, h http.Handler, body string) gatetest.Answer {
	t.Helper()
	server := httptest.NewServer(h)
	defer server.Close()
	r, err := http.NewRequestWithContext(t.Context(), "POST", server.URL+"/login", io.MultiReader(strings.NewReader(body)))
	require.NoError(t, err)
	r.Header.Set("Content-Type", typeJSON)
	return gatetest.Do(t, r)
}

// BodyLimit outside the gate rejects a body that is too large before a param is spent.
// If the length is not announced, the gate detects it first.
func TestBodyLimitOutside(t *testing.T) {
	service := gatetest.Start(t)
	e := echo.New()
	e.POST("/login", ok, middleware.BodyLimit(1000), echo.WrapMiddleware(service.Gate(t).Handler))
	param := service.Param(t)
	paramLast := `{"padding":"` + strings.Repeat("x", 1000) + `","captchaVerifyParam":"` + param + `"}`

	answer := gatetest.Send(t, e, "POST", "/login", typeJSON, gatetest.JSON("alice", param))
	require.Equal(t, http.StatusRequestEntityTooLarge, answer.Status)
	require.Empty(t, service.Outcomes)

	// Echo's error is not an *http.MaxBytesError: 400 instead of 413.
	gatetest.RequireRejected(t, sendChunked(t, e, paramLast), 400, "captcha_invalid")
	require.Zero(t, service.Count())

	require.Equal(t, http.StatusRequestEntityTooLarge, sendChunked(t, e, gatetest.JSON("alice", param)).Status)
	require.Equal(t, 1, service.Count())
}

// BodyLimit inside the gate rejects the body only after the param is spent.
func TestBodyLimitInside(t *testing.T) {
	service := gatetest.Start(t)
	e := echo.New()
	e.POST("/login", ok, echo.WrapMiddleware(service.Gate(t).Handler), middleware.BodyLimit(1000))
	a := gatetest.Send(t, e, "POST", "/login", typeJSON, gatetest.JSON("alice", service.Param(t)))
	require.Equal(t, http.StatusRequestEntityTooLarge, a.Status)
	require.Equal(t, 1, service.Count())
}

// Decompress leaves the Content-Encoding header in the request, and the gate does not
// read a body that is declared as compressed.
func TestDecompress(t *testing.T) {
	service := gatetest.Start(t)
	forget := func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c *echo.Context) error {
			c.Request().Header.Del("Content-Encoding")
			return next(c)
		}
	}
	e := echo.New()
	gate := echo.WrapMiddleware(service.Gate(t).Handler)
	e.POST("/login", ok, middleware.Decompress(), gate)
	e.POST("/forgotten", ok, middleware.Decompress(), forget, gate)
	server := httptest.NewServer(e)
	defer server.Close()

	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	io.WriteString(w, gatetest.JSON("alice", service.Param(t)))
	require.NoError(t, w.Close())
	send := func(path string) gatetest.Answer {
		r, err := http.NewRequestWithContext(t.Context(), "POST", server.URL+path, bytes.NewReader(packed.Bytes()))
		require.NoError(t, err)
		r.Header.Set("Content-Type", typeJSON)
		r.Header.Set("Content-Encoding", "gzip")
		return gatetest.Do(t, r)
	}
	gatetest.RequireRejected(t, send("/login"), 400, "captcha_invalid")
	require.Equal(t, http.StatusOK, send("/forgotten").Status)
}

// A rate limiter outside the gate rejects a request before its param is spent.
func TestRateLimiterOutside(t *testing.T) {
	service := gatetest.Start(t)
	e := echo.New()
	limit := middleware.NewRateLimiterMemoryStoreWithConfig(middleware.RateLimiterMemoryStoreConfig{Rate: 0.001, Burst: 1})
	e.POST("/login", ok, middleware.RateLimiter(limit), echo.WrapMiddleware(service.Gate(t).Handler))
	send := func() int {
		return gatetest.Send(t, e, "POST", "/login", typeJSON, gatetest.JSON("alice", service.Param(t))).Status
	}
	require.Equal(t, http.StatusOK, send())
	require.Equal(t, http.StatusTooManyRequests, send())
	require.Equal(t, 1, service.Count())
}

// A gate on an Echo or a Group is also in front of its 404; a gate on a route is not.
func TestUnmatched(t *testing.T) {
	service := gatetest.Start(t)
	gate := echo.WrapMiddleware(service.Gate(t).Handler)
	all := echo.New()
	all.Use(gate)
	all.POST("/login", ok)
	gatetest.RequireRejected(t, gatetest.Send(t, all, "POST", "/nowhere", "", ""), 400, "captcha_missing")

	e := echo.New()
	e.Group("/group", gate).POST("/login", ok)
	gatetest.RequireRejected(t, gatetest.Send(t, e, "POST", "/group/nowhere", "", ""), 400, "captcha_missing")
	alicaptchatest.AssertProtected(t, all, "POST /login")
	alicaptchatest.AssertProtected(t, e, "POST /group/login")

	config := echo.Config{NoGroupAutoRegister404Routes: true}
	e = echo.NewWithConfig(config)
	e.Group("/group", gate).POST("/login", ok)
	require.Equal(t, http.StatusNotFound, gatetest.Send(t, e, "POST", "/group/nowhere", "", "").Status)
	alicaptchatest.AssertProtected(t, e, "POST /group/login")
}

// An error of the handler reaches the error handler of Echo, and an outer middleware
// sees the status of a rejection.
func TestErrorsAndStatus(t *testing.T) {
	service := gatetest.Start(t)
	e := echo.New()
	var statuses []int
	e.Use(func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c *echo.Context) error {
			err := next(c)
			response, unwrapErr := echo.UnwrapResponse(c.Response())
			if unwrapErr == nil {
				statuses = append(statuses, response.Status)
			}
			return err
		}
	})
	e.POST("/login", func(*echo.Context) error {
		return echo.NewHTTPError(http.StatusUnauthorized, "wrong password")
	}, echo.WrapMiddleware(service.Gate(t).Handler))

	a := gatetest.Send(t, e, "POST", "/login", typeJSON, gatetest.JSON("alice", service.Param(t)))
	require.Equal(t, http.StatusUnauthorized, a.Status)
	require.JSONEq(t, `{"message":"wrong password"}`, a.Body)
	gatetest.RequireRejected(t, gatetest.Send(t, e, "POST", "/login", typeJSON, "{}"), 400, "captcha_missing")
	require.Len(t, statuses, 2)
	require.Equal(t, 400, statuses[1])
}
