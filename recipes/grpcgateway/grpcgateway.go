// Package grpcgateway puts alicaptcha in front of bindings of grpc-gateway,
// version 2.
package grpcgateway

import (
	"net/http"
	"slices"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"

	"github.com/alicaptcha/alicaptcha"
)

// NewMux returns a mux in which all bindings for /login are behind the gate, whether
// HandlePath or generated code registers them.
func NewMux(captcha *alicaptcha.Middleware) *runtime.ServeMux {
	return runtime.NewServeMux(runtime.WithMiddlewares(Gate(captcha, "/login")))
}

// Gate returns a Middleware for the bindings that have one of the patterns, with any
// method. It runs after the routing of the mux, so it cannot be bypassed with a
// different spelling of the path.
func Gate(captcha *alicaptcha.Middleware, patterns ...string) runtime.Middleware {
	return func(next runtime.HandlerFunc) runtime.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request, params map[string]string) {
			if pattern, ok := runtime.HTTPPattern(r.Context()); ok && !slices.Contains(patterns, pattern.String()) {
				next(w, r, params)
				return
			}
			captcha.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				next(w, r, params)
			})).ServeHTTP(w, r)
		}
	}
}

// ForwardHeaders is a runtime.HeaderMatcherFunc that forwards X-Request-Id in
// addition to the default headers. It does not forward the param.
func ForwardHeaders(name string) (string, bool) {
	if name == "X-Request-Id" {
		return name, true
	}
	return runtime.DefaultHeaderMatcher(name)
}
