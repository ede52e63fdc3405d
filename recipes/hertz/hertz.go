// Package hertz puts alicaptcha in front of routes of Hertz.
package hertz

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"

	"github.com/cloudwego/hertz/pkg/app"
	"github.com/cloudwego/hertz/pkg/route"

	"github.com/alicaptcha/alicaptcha"
)

// Gate adapts wrap, which is the method Handler or Deferred of a Middleware, to Hertz.
// It wraps the handlers that follow.
func Gate(wrap func(http.Handler) http.Handler) app.HandlerFunc {
	return func(ctx context.Context, c *app.RequestContext) {
		passed := false
		// The Abort is deferred because of panics: if another handler recovers
		// without an Abort, Hertz continues with the handler behind the gate.
		defer func() {
			if !passed {
				c.Abort()
			}
		}()
		serve(ctx, c, wrap(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			passed = true
			c.Next(r.Context())
		})))
	}
}

// Require does for Hertz what alicaptcha.Require does. If it returns false, the
// rejection is written, and later handlers do not run.
func Require(ctx context.Context, c *app.RequestContext) (passed bool) {
	serve(ctx, c, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		passed = alicaptcha.Require(w, r)
	}))
	if !passed {
		c.Abort()
	}
	return passed
}

// serve calls h with a copy of the request. The copy has no body if Hertz streams
// bodies, because the handlers could not read it again.
func serve(ctx context.Context, c *app.RequestContext, h http.Handler) {
	r, err := http.NewRequestWithContext(ctx, string(c.Method()), c.URI().String(), nil)
	if err != nil {
		c.SetStatusCode(http.StatusBadRequest)
		return
	}
	c.Request.Header.VisitAll(func(name, value []byte) { r.Header.Add(string(name), string(value)) })
	switch {
	case c.Request.HasMultipartForm(): // Hertz has parsed the body
		r.MultipartForm, _ = c.Request.MultipartForm()
	case !c.Request.IsBodyStream():
		r.Body = io.NopCloser(bytes.NewReader(c.Request.Body()))
	}
	w := &writer{c, http.Header{}}
	c.Response.Header.VisitAll(func(name, value []byte) { w.header.Add(string(name), string(value)) })
	h.ServeHTTP(w, r)
}

// A writer writes a rejection.
type writer struct {
	c      *app.RequestContext
	header http.Header
}

func (w *writer) Header() http.Header { return w.header }

func (w *writer) WriteHeader(status int) {
	h := &w.c.Response.Header
	var names []string
	h.VisitAll(func(name, _ []byte) { names = append(names, string(name)) })
	for _, name := range names {
		h.Del(name)
	}
	for name, values := range w.header {
		for _, value := range values {
			h.Add(name, value)
		}
	}
	w.c.Response.ResetBody()
	w.c.SetStatusCode(status)
}

func (w *writer) Write(p []byte) (int, error) { return w.c.Write(p) }

// AddRoutes adds routes of which POST /login is behind the gate. The handler of POST
// /signup asks for the verdict itself. Handlers find the Outcome in their context.
func AddRoutes(r route.IRoutes, captcha *alicaptcha.Middleware, home, login, signup app.HandlerFunc) {
	r.GET("/", home)
	r.POST("/login", Gate(captcha.Handler), login)
	r.POST("/signup", Gate(captcha.Deferred), signup)
}

// Signup returns a handler that does not spend a param on an incomplete form.
func Signup(create func(username string)) app.HandlerFunc {
	return func(ctx context.Context, c *app.RequestContext) {
		var form struct{ Username string }
		if err := json.Unmarshal(c.Request.Body(), &form); err != nil || form.Username == "" {
			c.AbortWithMsg("a username is required", http.StatusUnprocessableEntity)
			return
		}
		if !Require(ctx, c) {
			return // the rejection is written
		}
		create(form.Username)
		c.SetStatusCode(http.StatusCreated)
	}
}
