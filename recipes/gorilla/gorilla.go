// Package gorilla puts alicaptcha in front of routes of a gorilla/mux router.
package gorilla

import (
	"net/http"

	"github.com/gorilla/mux"

	"github.com/alicaptcha/alicaptcha"
)

// NewRouter returns a router in which POST /login is behind the gate. The handler of
// POST /signup asks for the verdict itself, as with net/http. Use applies to each
// route of its subrouter.
func NewRouter(captcha *alicaptcha.Middleware, home, login, signup http.HandlerFunc) http.Handler {
	r := mux.NewRouter()
	r.HandleFunc("/", home).Methods("GET")
	r.Handle("/login", captcha.Handler(login)).Methods("POST")

	deferred := r.NewRoute().Subrouter()
	deferred.Use(captcha.Deferred)
	deferred.HandleFunc("/signup", signup).Methods("POST")
	return r
}
