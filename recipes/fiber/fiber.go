// Package fiber puts alicaptcha in front of routes of fiber, version 3.
package fiber

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"

	"github.com/gofiber/fiber/v3"
	"github.com/gofiber/fiber/v3/middleware/recover"

	"github.com/alicaptcha/alicaptcha"
)

// Gate adapts wrap, which is the method Handler or Deferred of a Middleware, to fiber.
// It wraps the handlers that follow.
func Gate(wrap func(http.Handler) http.Handler) fiber.Handler {
	return func(c fiber.Ctx) error {
		var nextErr error
		err := serve(c, wrap(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			c.SetContext(r.Context())
			nextErr = c.Next()
		})))
		if err != nil {
			return err
		}
		return nextErr
	}
}

// Require does for fiber what alicaptcha.Require does. If it returns false, the handler
// returns err.
func Require(c fiber.Ctx) (passed bool, err error) {
	err = serve(c, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		passed = alicaptcha.Require(w, r)
	}))
	return passed, err
}

// serve calls h with a copy of the request, because fiber uses its memory again. The
// copy has no body if fiber streams bodies, because the handlers could not read it
// again. What h writes is the response.
func serve(c fiber.Ctx, h http.Handler) error {
	in, out := c.Request(), c.Response()
	r, err := http.NewRequestWithContext(c.Context(), string(in.Header.Method()), in.URI().String(), nil)
	if err != nil {
		return fiber.ErrBadRequest
	}
	for name, value := range in.Header.All() {
		r.Header.Add(string(name), string(value))
	}
	if !in.IsBodyStream() {
		r.Body = io.NopCloser(bytes.NewReader(in.Body()))
	}
	w := &writer{c: c, ctx: r.Context()}
	h.ServeHTTP(w, r)
	switch {
	case w.status == 0: // h wrote nothing
		return nil
	case r.Context().Err() != nil: // the middleware for timeouts writes the response
		return fiber.ErrServiceUnavailable
	}
	for _, name := range w.names {
		out.Header.Del(name)
	}
	for name, values := range w.header {
		for _, value := range values {
			out.Header.Add(name, value)
		}
	}
	out.SetStatusCode(w.status)
	out.SetBody(w.body)
	return nil
}

// A writer keeps what is written.
type writer struct {
	c      fiber.Ctx
	ctx    context.Context
	names  []string    // of the headers that the response had
	header http.Header // nil until it is needed
	status int
	body   []byte
}

// Header takes the headers of the response only when something is written: what the
// middleware for timeouts has given up must not touch the response, and it gives up
// what still waits for the service.
func (w *writer) Header() http.Header {
	if w.header != nil {
		return w.header
	}
	w.header = http.Header{}
	if w.ctx.Err() == nil {
		for name, value := range w.c.Response().Header.All() {
			w.names = append(w.names, string(name))
			w.header.Add(string(name), string(value))
		}
	}
	return w.header
}

func (w *writer) WriteHeader(status int) { w.status = status }

func (w *writer) Write(p []byte) (int, error) {
	w.body = append(w.body, p...)
	return len(p), nil
}

// NewApp returns an App in which POST /login is behind the gate. The handler of POST
// /signup asks for the verdict itself. Handlers find the Outcome in c.Context().
func NewApp(captcha *alicaptcha.Middleware, home, login, signup fiber.Handler) *fiber.App {
	app := fiber.New(fiber.Config{BodyLimit: 512 << 10})
	app.Use(recover.New())
	app.Get("/", home)
	app.Post("/login", Gate(captcha.Handler), login)
	app.Post("/signup", Gate(captcha.Deferred), signup)
	return app
}

// Signup returns a handler that does not spend a param on an incomplete form.
func Signup(create func(username string)) fiber.Handler {
	return func(c fiber.Ctx) error {
		var form struct{ Username string }
		if err := json.Unmarshal(c.Body(), &form); err != nil || form.Username == "" {
			return fiber.NewError(http.StatusUnprocessableEntity, "a username is required")
		}
		if passed, err := Require(c); !passed {
			return err // nil if the rejection is written
		}
		create(form.Username)
		return c.SendStatus(http.StatusCreated)
	}
}
