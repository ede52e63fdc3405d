// Package nethttp puts alicaptcha in front of routes of an [http.ServeMux].
package nethttp

import (
	"encoding/json"
	"net/http"

	"github.com/alicaptcha/alicaptcha"
)

// NewMux returns a mux in which POST /login is behind the gate. The handler of POST
// /signup asks for the verdict itself.
func NewMux(captcha *alicaptcha.Middleware, home, login, signup http.HandlerFunc) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", home)
	mux.Handle("POST /login", captcha.Handler(login))
	mux.Handle("POST /signup", captcha.Deferred(signup))
	return mux
}

// Signup returns a handler that does not spend a param on an incomplete form.
func Signup(create func(username string)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var form struct{ Username string }
		body := http.MaxBytesReader(w, r.Body, 64<<10)
		if err := json.NewDecoder(body).Decode(&form); err != nil || form.Username == "" {
			http.Error(w, "a username is required", http.StatusUnprocessableEntity)
			return
		}
		if !alicaptcha.Require(w, r) {
			return // the rejection is written
		}
		create(form.Username)
		w.WriteHeader(http.StatusCreated)
	}
}
