package gorilla_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/gorilla/mux"
	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
	"github.com/alicaptcha/alicaptcha/recipes/internal/gatetest"
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

// Each subrouter has a gate for its own scene. The handlers can read their fields after
// the gate has read the body, whether it is JSON, a form or a multipart form.
func TestSubrouters(t *testing.T) {
	service := gatetest.Start(t)
	handler := func(w http.ResponseWriter, r *http.Request) {
		o, ok := alicaptcha.FromContext(r.Context())
		name := r.PostFormValue("username")
		if r.Header.Get("Content-Type") == "application/json" {
			var body struct{ Username string }
			if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
				http.Error(w, "unreadable", http.StatusUnprocessableEntity)
				return
			}
			name = body.Username
		}
		fmt.Fprintf(w, "%s %v %v %s", name, ok, o.Verified, o.Code)
	}
	router := mux.NewRouter()
	for _, scene := range []string{"login", "signup"} {
		cfg := service.Config()
		cfg.SceneID = scene
		captcha, err := alicaptcha.New(cfg)
		require.NoError(t, err)
		sub := router.Path("/" + scene).Methods("POST").Subrouter()
		sub.Use(captcha.Handler)
		sub.HandleFunc("", handler)
	}

	issue := func(scene string, code alicaptcha.Code, format alicaptchatest.Format) string {
		param, err := service.Issue(alicaptchatest.Issue{SceneID: scene, Code: code, Format: format})
		require.NoError(t, err)
		return param
	}
	asJSON := func(param string) (string, string) {
		body, err := json.Marshal(map[string]string{"username": "alice", "captchaVerifyParam": param})
		require.NoError(t, err)
		return "application/json", string(body)
	}
	asForm := func(param string) (string, string) {
		return "application/x-www-form-urlencoded", url.Values{"captchaVerifyParam": {param}, "username": {"alice"}}.Encode()
	}
	asMultipart := func(param string) (string, string) {
		var b bytes.Buffer
		w := multipart.NewWriter(&b)
		require.NoError(t, w.WriteField("CaptchaVerifyParam", param))
		require.NoError(t, w.WriteField("username", "alice"))
		require.NoError(t, w.Close())
		return w.FormDataContentType(), b.String()
	}
	used, usedV2 := issue("login", "T001", alicaptchatest.V3), issue("signup", "T001", alicaptchatest.V2)
	for _, row := range []struct {
		path   string
		encode func(string) (string, string)
		param  string
		status int
		want   string // the handler's answer, or the reason
	}{
		{"/login", asJSON, "", 400, "captcha_missing"},
		{"/login", asJSON, used, 200, "alice true true T001"},
		{"/login", asJSON, used, 403, "captcha_expired"},
		{"/login", asJSON, issue("login", "T001", alicaptchatest.V2), 200, "alice true true T001"},
		{"/login", asJSON, issue("login", "F010", alicaptchatest.V3), 429, "captcha_rate_limited"},
		{"/login", asJSON, "junk", 400, "captcha_invalid"},
		{"/login", asJSON, issue("signup", "T001", alicaptchatest.V3), 403, "captcha_rejected"},
		{"/signup", asForm, "", 400, "captcha_missing"},
		{"/signup", asForm, usedV2, 200, "alice true true T001"},
		{"/signup", asForm, usedV2, 403, "captcha_expired"},
		{"/signup", asForm, issue("login", "T001", alicaptchatest.V2), 403, "captcha_rejected"},
		{"/signup", asMultipart, issue("signup", "T001", alicaptchatest.V2), 200, "alice true true T001"},
		{"/signup", asMultipart, issue("signup", "F009", alicaptchatest.V3), 403, "captcha_rejected"},
		{"/signup", asMultipart, "", 400, "captcha_missing"},
	} {
		contentType, body := row.encode(row.param)
		got := gatetest.Send(t, router, "POST", row.path, contentType, body)
		if row.status == http.StatusOK {
			require.Equal(t, http.StatusOK, got.Status, got.Body)
			require.Equal(t, row.want, got.Body)
			continue
		}
		gatetest.RequireRejected(t, got, row.status, row.want)
	}
}
