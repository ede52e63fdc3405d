package alicaptcha_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/alicaptcha/alicaptcha"
)

// newDeferredLogin returns a login that checks the form before it requires a
// verdict, so that a malformed form does not spend a param.
func newDeferredLogin(captcha *alicaptcha.Middleware) http.Handler {
	login := captcha.Deferred(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, 64<<10) // anybody comes this far, with a body of any length
		if err := r.ParseForm(); err != nil {
			http.Error(w, "the form cannot be read", http.StatusBadRequest)
			return
		}
		if r.PostForm.Get("username") == "" {
			http.Error(w, "a username is required", http.StatusUnprocessableEntity)
			return
		}
		if !alicaptcha.Require(w, r) {
			return // the rejection is written
		}
		handleLogin(w, r)
	}))

	return login
}

// The handler checks the form first, so that a malformed form does not spend a param.
func ExampleRequire() {
	login := newDeferredLogin(newGate())

	for _, form := range []string{"captchaVerifyParam=…", "username=alice", "username=alice&captchaVerifyParam=…"} {
		r := httptest.NewRequest("POST", "/login", strings.NewReader(form))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		w := httptest.NewRecorder()
		login.ServeHTTP(w, r)
		fmt.Println(w.Code)
	}
	// Output:
	// 422
	// 400
	// 200
}
