package gorilla_test

import (
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/gorilla/mux"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
	"github.com/alicaptcha/alicaptcha/recipes/internal/gatetest"
	"github.com/alicaptcha/alicaptcha/recipes/nethttp"
)

func handleLogin(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "welcome") }

// A subrouter with a single route is another way to put a route behind the gate.
func Example() {
	captcha, err := alicaptcha.New(alicaptcha.Config{Verifier: alicaptchatest.Passing(), SceneID: "1a2b3c4d"})
	if err != nil {
		log.Fatal(err)
	}

	r := mux.NewRouter()
	login := r.Path("/login").Methods("POST").Subrouter()
	login.Use(captcha.Handler)
	login.HandleFunc("", handleLogin)

	w := httptest.NewRecorder()
	r.ServeHTTP(w, httptest.NewRequest("POST", "/login", strings.NewReader("{}")))
	fmt.Println(w.Code)
	// Output: 400
}

func TestSubrouters(t *testing.T) {
	gatetest.Run(t, gatetest.App{
		Signup: true,
		New: func(captcha *alicaptcha.Middleware, home, login http.HandlerFunc, create func(string)) http.Handler {
			r := mux.NewRouter()
			r.HandleFunc("/", home).Methods("GET")
			sub := r.Path("/login").Methods("POST").Subrouter()
			sub.Use(captcha.Handler)
			sub.HandleFunc("", login)
			sub = r.Path("/signup").Methods("POST").Subrouter()
			sub.Use(captcha.Deferred)
			sub.HandleFunc("", nethttp.Signup(create))
			return r
		},
	})
}
