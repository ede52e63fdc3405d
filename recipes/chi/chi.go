// Package chi puts alicaptcha in front of routes of a chi router.
package chi

import (
	"net/http"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"

	"github.com/alicaptcha/alicaptcha"
)

// NewRouter returns a router in which POST /login is behind the gate. The handler of
// POST /signup asks for the verdict itself, as with net/http.
func NewRouter(captcha *alicaptcha.Middleware, home, login, signup http.HandlerFunc) http.Handler {
	r := chi.NewRouter()
	r.Use(middleware.Recoverer)
	r.Get("/", home)
	r.With(captcha.Handler).Post("/login", login)
	r.With(captcha.Deferred).Post("/signup", signup)
	return r
}
