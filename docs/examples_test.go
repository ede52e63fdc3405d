package docs

import (
	"context"
	"encoding/json"
	"html/template"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/aliyun/credentials-go/credentials"
	"github.com/go-chi/chi/v5"
	"github.com/gorilla/mux"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/bcrypt"
	"golang.org/x/time/rate"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

// The code in this file stands in README.md and in the pages of this folder word
// by word, which TestCode checks.

func handleLogin(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }

func newGate(t *testing.T, cfg alicaptcha.Config) *alicaptcha.Middleware {
	t.Helper()
	if cfg.Verifier == nil {
		cfg.Verifier = alicaptchatest.Passing()
	}
	cfg.SceneID, cfg.Logger = "1a2b3c4d", slog.New(slog.DiscardHandler)
	captcha, err := alicaptcha.New(cfg)
	require.NoError(t, err)
	return captcha
}

// post sends a form to h and returns the answer.
func post(h http.Handler, fields ...string) *httptest.ResponseRecorder {
	form := url.Values{}
	for i := 0; i < len(fields); i += 2 {
		form.Set(fields[i], fields[i+1])
	}
	r := httptest.NewRequest(http.MethodPost, "/login", strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestExampleRouters(t *testing.T) {
	captcha := newGate(t, alicaptcha.Config{})
	for name, router := range map[string]func() http.Handler{
		"chi": func() http.Handler {
			r := chi.NewRouter()
			r.With(captcha.Handler).Post("/login", handleLogin)
			return r
		},
		"gorilla/mux": func() http.Handler {
			r := mux.NewRouter()
			r.Handle("/login", captcha.Handler(http.HandlerFunc(handleLogin))).Methods("POST")
			return r
		},
		"net/http": func() http.Handler {
			mux := http.NewServeMux()
			mux.Handle("POST /login", captcha.Handler(http.HandlerFunc(handleLogin)))
			return mux
		},
	} {
		require.Equal(t, 400, post(router()).Code, name)
		require.Equal(t, 204, post(router(), "captchaVerifyParam", "x").Code, name)
	}
}

func TestExampleScenes(t *testing.T) {
	verifier := alicaptcha.VerifierFunc(alicaptchatest.Passing().Verify)

	login, err := alicaptcha.New(alicaptcha.Config{Verifier: verifier, SceneID: "1a2b3c4d"})
	if err != nil {
		log.Fatal(err)
	}
	signup, err := alicaptcha.New(alicaptcha.Config{Verifier: verifier, SceneID: "5e6f7a8b"})
	if err != nil {
		log.Fatal(err)
	}

	for scene, captcha := range map[string]*alicaptcha.Middleware{"1a2b3c4d": login, "5e6f7a8b": signup} {
		require.Equal(t, scene, captcha.Check(httptest.NewRequest(http.MethodPost, "/", nil)).SceneID)
	}
}

func TestExampleDeferred(t *testing.T) {
	captcha := newGate(t, alicaptcha.Config{})

	login := captcha.Deferred(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, 64<<10) // every request comes this far, with a body of any length
		if err := r.ParseForm(); err != nil {
			http.Error(w, "the form cannot be read", http.StatusBadRequest)
			return
		}
		if r.PostForm.Get("username") == "" {
			http.Error(w, "a username is required", http.StatusUnprocessableEntity)
			return
		}
		if !alicaptcha.Require(w, r) {
			return // the rejection has been written
		}
		handleLogin(w, r)
	}))

	require.Equal(t, 422, post(login, "captchaVerifyParam", "x").Code)
	require.Equal(t, 400, post(login, "username", "alice").Code)
	require.Equal(t, 204, post(login, "username", "alice", "captchaVerifyParam", "x").Code)
}

func TestExampleExtractors(t *testing.T) {
	extractors := []alicaptcha.Extractor{
		alicaptcha.FromHeader("X-Captcha-Verify-Param"),
		alicaptcha.FromBody("captcha", "/security/captcha"), // the name of a field, and a JSON Pointer
	}

	captcha := newGate(t, alicaptcha.Config{Extractors: extractors})
	r := httptest.NewRequest(http.MethodPost, "/login", strings.NewReader(`{"security":{"captcha":"x"}}`))
	r.Header.Set("Content-Type", "application/json")
	require.True(t, captcha.Check(r).Verified)
}

func TestExamplePolicy(t *testing.T) {
	policy := alicaptcha.Policy{
		alicaptcha.F009: {Status: http.StatusForbidden, Retry: true}, // an emulator may try again
	}

	captcha := newGate(t, alicaptcha.Config{Policy: policy, Verifier: alicaptchatest.Rejecting(alicaptcha.F009)})
	w := post(captcha.Handler(http.HandlerFunc(handleLogin)), "captchaVerifyParam", "x")
	require.Equal(t, 403, w.Code)
	require.Contains(t, w.Body.String(), `"reason":"captcha_rejected","retry":true`)
}

func TestExampleBudget(t *testing.T) {
	budget := rate.NewLimiter(rate.Every(6*time.Second), 10) // of golang.org/x/time/rate
	policy := alicaptcha.Policy{
		alicaptcha.ServiceTimeout:     alicaptcha.AllowAtMost(budget),
		alicaptcha.ServiceUnavailable: alicaptcha.AllowAtMost(budget),
	}

	captcha := newGate(t, alicaptcha.Config{
		Policy: policy, Verifier: alicaptchatest.Failing(alicaptcha.ServiceUnavailable),
	})
	login := captcha.Handler(http.HandlerFunc(handleLogin))
	for range 10 {
		require.Equal(t, 204, post(login, "captchaVerifyParam", "x").Code)
	}
	require.Equal(t, 503, post(login, "captchaVerifyParam", "x").Code)
}

// In staging everybody is let through unverified, and only some of them are sent
// an e-mail.
func TestExampleStaging(t *testing.T) {
	asked := false
	askByEmail := func(http.ResponseWriter, *http.Request) { asked = true }
	login := func(w http.ResponseWriter, r *http.Request) {
		outcome, _ := alicaptcha.FromContext(r.Context())
		if !outcome.Verified && outcome.Code != alicaptcha.T005 {
			askByEmail(w, r) // let through without a verdict
			return
		}
		handleLogin(w, r)
	}

	policy := alicaptcha.Policy{alicaptcha.T005: alicaptcha.Allow()} // in staging only

	policy[alicaptcha.F009] = alicaptcha.Allow()
	for code, asks := range map[alicaptcha.Code]bool{"T001": false, "T005": false, "F009": true} {
		asked = false
		simulator := alicaptchatest.Start(t, alicaptchatest.Config{Scenes: []string{"1a2b3c4d"}})
		captcha := newGate(t, alicaptcha.Config{Policy: policy, Verifier: simulator.Client()})
		param, err := simulator.Issue(alicaptchatest.Issue{SceneID: "1a2b3c4d", Code: code})
		require.NoError(t, err)
		post(captcha.Handler(http.HandlerFunc(login)), "captchaVerifyParam", param)
		require.Equal(t, asks, asked, code)
	}
}

func TestExampleOnReject(t *testing.T) {
	verifier := alicaptchatest.Rejecting(alicaptcha.F018)

	captcha, err := alicaptcha.New(alicaptcha.Config{
		Verifier: verifier,
		SceneID:  "1a2b3c4d",
		OnReject: func(w http.ResponseWriter, r *http.Request, o alicaptcha.Outcome) {
			p := alicaptcha.NewProblem(r, o)
			p.SetHeader(w.Header())
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(p.Status)
			json.NewEncoder(w).Encode(map[string]any{"error": p.Reason, "message": p.Detail})
		},
	})

	require.NoError(t, err)
	w := post(captcha.Handler(http.HandlerFunc(handleLogin)), "captchaVerifyParam", "x")
	require.Equal(t, 403, w.Code)
	require.Equal(t, "no-store", w.Header().Get("Cache-Control"))
	require.JSONEq(t, `{"error": "captcha_expired", `+
		`"message": "The captcha has expired or was used already. Please solve a new one."}`, w.Body.String())
}

func TestExampleAsk(t *testing.T) {
	captcha := newGate(t, alicaptcha.Config{Verifier: alicaptchatest.Rejecting(alicaptcha.F018)})
	showForm := func(w http.ResponseWriter, status int, message string) { http.Error(w, message, status) }
	login := captcha.Deferred(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if o, proceed := alicaptcha.Ask(r.Context()); !proceed {
			p := alicaptcha.NewProblem(r, o)
			p.SetHeader(w.Header())
			showForm(w, p.Status, p.Detail)
			return
		}
		handleLogin(w, r)
	}))

	w := post(login, "captchaVerifyParam", "x")
	require.Equal(t, 403, w.Code)
	require.Contains(t, w.Body.String(), "Please solve a new one.")
}

func TestExampleSceneKey(t *testing.T) {
	t.Setenv("CAPTCHA_EKEY", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")
	page := template.Must(template.New("").Parse(`{{.SceneID}} {{.EncryptedSceneID}}`))

	key, err := alicaptcha.NewSceneKey(os.Getenv("CAPTCHA_EKEY")) // from the console's overview; a secret
	if err != nil {
		log.Fatal(err)
	}
	login := func(w http.ResponseWriter, r *http.Request) {
		encrypted, err := key.Encrypt("1a2b3c4d", time.Hour)
		if err != nil {
			http.Error(w, "the page is not available", http.StatusInternalServerError)
			return
		}
		w.Header().Set("Cache-Control", "no-store") // what the page has in it expires
		page.Execute(w, map[string]string{"SceneID": "1a2b3c4d", "EncryptedSceneID": encrypted})
	}

	w := httptest.NewRecorder()
	login(w, httptest.NewRequest(http.MethodGet, "/login", nil))
	require.Equal(t, "no-store", w.Header().Get("Cache-Control"))
	require.Regexp(t, `^1a2b3c4d \S{64,}$`, w.Body.String())
}

func newRouter() http.Handler {
	captcha, err := alicaptcha.New(alicaptcha.Config{Verifier: alicaptchatest.Passing(), SceneID: "login"})
	if err != nil {
		log.Fatal(err)
	}
	r := chi.NewRouter()
	r.With(captcha.Handler).Post("/login", handleLogin)
	r.With(captcha.Handler).Post("/signup", handleLogin)
	return r
}

func TestRoutesAreProtected(t *testing.T) {
	alicaptchatest.AssertProtected(t, newRouter(), "POST /login", "POST /signup")
}

func TestExampleContext(t *testing.T) {
	r := httptest.NewRequest("POST", "/login", nil)
	outcome := alicaptcha.Outcome{Allowed: true, Code: alicaptcha.ServiceTimeout}
	r = r.WithContext(alicaptchatest.NewContext(r.Context(), outcome))

	got, ok := alicaptcha.FromContext(r.Context())
	require.True(t, ok)
	require.Equal(t, outcome, got)
}

func TestExampleSimulator(t *testing.T) {
	server := alicaptchatest.Start(t, alicaptchatest.Config{})
	client := server.Client() // an *alicaptcha.Client
	param, err := server.Issue(alicaptchatest.Issue{SceneID: "login", Code: alicaptcha.F009})

	require.NoError(t, err)
	result, err := client.Verify(t.Context(), alicaptcha.Request{Param: param, SceneID: "login"})
	require.NoError(t, err)
	require.Equal(t, alicaptcha.F009, result.Code)
}

func TestExampleEndpoint(t *testing.T) {
	t.Setenv("ALIBABA_CLOUD_ACCESS_KEY_ID", "test-id")
	t.Setenv("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "test-secret")

	client, err := alicaptcha.NewClient(alicaptcha.ClientConfig{Endpoint: "http://127.0.0.1:8081"})

	require.NoError(t, err)
	require.Equal(t, "http://127.0.0.1:8081/", client.Endpoint())
}

func TestExampleCredential(t *testing.T) {
	t.Setenv("ALIBABA_CLOUD_ACCESS_KEY_ID", "test-id")
	t.Setenv("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "test-secret")

	credential, err := credentials.NewCredential(nil)
	if err != nil {
		log.Fatal(err)
	}
	client, err := alicaptcha.NewClient(alicaptcha.ClientConfig{Region: alicaptcha.Mainland, Credential: credential})

	require.NoError(t, err)
	require.Equal(t, "https://captcha.cn-shanghai.aliyuncs.com/", client.Endpoint())
}

func TestExampleWarm(t *testing.T) {
	t.Chdir(t.TempDir())
	require.NoError(t, os.WriteFile("login.html", []byte("the page"), 0o600))
	server := alicaptchatest.Start(t, alicaptchatest.Config{})
	client, mux := server.Client(), http.NewServeMux()

	mux.HandleFunc("GET /login", func(w http.ResponseWriter, r *http.Request) {
		go client.Warm(context.WithoutCancel(r.Context())) // returns when the connection is open
		http.ServeFile(w, r, "login.html")
	})

	w := httptest.NewRecorder()
	mux.ServeHTTP(w, httptest.NewRequest("GET", "/login", nil))
	require.Equal(t, "the page", w.Body.String())
	require.Empty(t, server.Calls(), "nothing is verified")
}

func TestExampleBegin(t *testing.T) {
	password := "correct-horse"
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	require.NoError(t, err)
	for status, verifier := range map[int]alicaptcha.Verifier{
		204: alicaptchatest.Passing(), 403: alicaptchatest.Rejecting(alicaptcha.F001),
	} {
		captcha := newGate(t, alicaptcha.Config{Verifier: verifier})
		w := post(captcha.Deferred(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			alicaptcha.Begin(r.Context())
			err := bcrypt.CompareHashAndPassword(hash, []byte(password))
			if !alicaptcha.Require(w, r) {
				return // the rejection has been written
			}
			require.NoError(t, err)
			handleLogin(w, r)
		})), "captchaVerifyParam", "x")
		require.Equal(t, status, w.Code)
	}
}
