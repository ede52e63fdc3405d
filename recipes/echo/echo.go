// Package echo puts alicaptcha in front of routes of echo, version 5.
package echo

import (
	"net/http"

	"github.com/labstack/echo/v5"
	"github.com/labstack/echo/v5/middleware"

	"github.com/alicaptcha/alicaptcha"
)

// NewRouter returns an Echo in which POST /login is behind the gate. The handler of
// POST /signup asks for the verdict itself. Handlers find the Outcome in
// c.Request().Context().
func NewRouter(captcha *alicaptcha.Middleware, home, login, signup echo.HandlerFunc) *echo.Echo {
	e := echo.New()
	e.Use(middleware.Recover())
	e.GET("/", home)
	e.POST("/login", login, echo.WrapMiddleware(captcha.Handler))
	e.POST("/signup", signup, echo.WrapMiddleware(captcha.Deferred))
	return e
}

// Signup returns a handler that does not spend a param on an incomplete form.
func Signup(create func(username string)) echo.HandlerFunc {
	return func(c *echo.Context) error {
		var form struct {
			Username string `json:"username"`
		}
		c.Request().Body = http.MaxBytesReader(c.Response(), c.Request().Body, 64<<10)
		if err := c.Bind(&form); err != nil || form.Username == "" {
			return echo.NewHTTPError(http.StatusUnprocessableEntity, "a username is required")
		}
		if !alicaptcha.Require(c.Response(), c.Request()) {
			return nil // the rejection is written
		}
		create(form.Username)
		return c.NoContent(http.StatusCreated)
	}
}
