// Package gozero puts alicaptcha in front of routes of go-zero.
package gozero

import (
	"net/http"
	"time"

	"github.com/zeromicro/go-zero/rest"

	"github.com/alicaptcha/alicaptcha"
)

// AddRoutes adds routes of which POST /login is behind the gate. The handler of POST
// /signup asks for the verdict itself, as with net/http.
func AddRoutes(server *rest.Server, captcha *alicaptcha.Middleware, home, login, signup http.HandlerFunc) {
	gate, deferred := rest.ToMiddleware(captcha.Handler), rest.ToMiddleware(captcha.Deferred)
	server.AddRoute(rest.Route{Method: http.MethodGet, Path: "/", Handler: home})
	server.AddRoutes([]rest.Route{
		{Method: http.MethodPost, Path: "/login", Handler: gate(login)},
		{Method: http.MethodPost, Path: "/signup", Handler: deferred(signup)},
	}, rest.WithTimeout(10*time.Second))
}
