package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

var quiet = slog.New(slog.DiscardHandler)

// gateOf returns a gate as the command line makes it.
func gateOf(t *testing.T, verifier alicaptcha.Verifier, args ...string) (*gate, *metrics) {
	t.Helper()
	args = append([]string{"-region", "cn"}, args...)
	s, ok, err := parseGate(args, io.Discard)
	require.NoError(t, err)
	require.True(t, ok)
	g, m, err := newGate(s, verifier, quiet)
	require.NoError(t, err)
	return g, m
}

func ask(h http.Handler, r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// aRequest returns a request for the scene "login", with a param in its body.
func aRequest() *http.Request { return requestFor("/gate/login", `{"captchaVerifyParam":"x"}`) }

func requestFor(target, body string) *http.Request {
	r := httptest.NewRequest("POST", target, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	return r
}

var references = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)

// shown returns an answer without its reference and date.
func shown(w *httptest.ResponseRecorder) string {
	var text strings.Builder
	fmt.Fprintln(&text, w.Code)
	w.Result().Header.Write(&text)
	text.WriteString(w.Body.String())
	return references.ReplaceAllString(text.String(), "REFERENCE")
}

// For each code the gate's answer is what net/http gets, or 204.
func TestGateAnswers(t *testing.T) {
	t.Parallel()
	verifiers := map[alicaptcha.Code]alicaptcha.Verifier{"T999": verdictOf("T999"), "F999": verdictOf("F999")}
	for code := range alicaptcha.DefaultPolicy() {
		if _, ok := code.Verdict(); ok {
			verifiers[code] = verdictOf(code)
		} else {
			verifiers[code] = alicaptchatest.Failing(code)
		}
	}
	require.Greater(t, len(verifiers), 35)
	for code, verifier := range verifiers {
		captcha, err := alicaptcha.New(alicaptcha.Config{Verifier: verifier, SceneID: "login", Logger: quiet})
		require.NoError(t, err)
		handler := captcha.Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Captcha-Verified", "true")
			w.Header().Set("Cache-Control", "no-store")
			w.WriteHeader(http.StatusNoContent)
		}))
		plain, _ := gateOf(t, verifier, "-scene", "login")
		mapped, _ := gateOf(t, verifier, "-scene", "login", "-unavailable-status", "403")
		for _, accept := range []string{"", "text/html"} {
			request := func() *http.Request {
				r := aRequest()
				r.Header.Set("Accept", accept)
				return r
			}
			want := ask(handler, request())
			require.Equal(t, shown(want), shown(ask(plain, request())), code)
			got := ask(mapped, request())
			if want.Code < 500 {
				require.Equal(t, shown(want), shown(got), code)
				continue
			}
			require.Equal(t, 403, got.Code, code)
			require.Equal(t, want.Header().Get("Retry-After"), got.Header().Get("Retry-After"))
			require.Empty(t, got.Header().Get("Captcha-Verified"))
			if accept == "" {
				var problem alicaptcha.Problem
				require.NoError(t, json.Unmarshal(got.Body.Bytes(), &problem))
				require.Equal(t, 403, problem.Status)
				require.Equal(t, "captcha_unavailable", problem.Reason)
			}
		}
	}
}

func verdictOf(code alicaptcha.Code) alicaptcha.Verifier {
	passed, _ := code.Verdict()
	return alicaptcha.VerifierFunc(func(context.Context, alicaptcha.Request) (alicaptcha.Result, error) {
		return alicaptcha.Result{Passed: passed, Code: code}, nil
	})
}

// What was not verified is not said to be.
func TestGateLetsThroughUnverified(t *testing.T) {
	t.Parallel()
	answers := func(n int, verifier alicaptcha.Verifier, args ...string) (all []string) {
		g, _ := gateOf(t, verifier, append(args, "-scene", "login")...)
		for range n {
			w := ask(g, aRequest())
			all = append(all, strings.TrimSpace(fmt.Sprint(w.Code, " ", w.Header().Get("Captcha-Verified"))))
		}
		return all
	}
	down := alicaptchatest.Failing(alicaptcha.ServiceUnavailable)
	require.Equal(t, []string{"204 true"}, answers(1, verdictOf("T001")))
	require.Equal(t, []string{"204 false"}, answers(1, verdictOf("F001"), "-mode", "report-only"))
	require.Equal(t, []string{"204 true"}, answers(1, verdictOf("T001"), "-mode", "report-only"))
	require.Equal(t, []string{"204 false"}, answers(1, verdictOf("T001"), "-mode", "exempt"))
	require.Equal(t, []string{"503"}, answers(1, down))
	require.Equal(t, []string{"204 false", "204 false", "503", "503"}, answers(4, down, "-outage-budget", "2"))
	hung := alicaptchatest.Failing(alicaptcha.ServiceTimeout)
	require.Equal(t, []string{"204 false", "503"}, answers(2, hung, "-outage-budget", "1"))
	wrong := alicaptchatest.Failing(alicaptcha.Misconfigured)
	require.Equal(t, []string{"503"}, answers(1, wrong, "-outage-budget", "9"))
	require.Equal(t, []string{"200 true"}, answers(1, verdictOf("T001"), "-pass-status", "200"))
	require.Equal(t, []string{"200 false"}, answers(1, down, "-pass-status", "200", "-outage-budget", "1"))
	require.Equal(t, []string{"503"}, answers(1, down, "-pass-status", "200"))
	// The budget is for all scenes together.
	g, _ := gateOf(t, down, "-scene", "a", "-scene", "b", "-outage-budget", "1")
	require.Equal(t, 204, ask(g, requestFor("/gate/a", `{"captchaVerifyParam":"x"}`)).Code)
	require.Equal(t, 503, ask(g, requestFor("/gate/b", `{"captchaVerifyParam":"x"}`)).Code)
}

// Only the first segment after /gate/ chooses the scene, byte by byte.
func TestGateScenes(t *testing.T) {
	t.Parallel()
	var asked string
	g, _ := gateOf(t, alicaptcha.VerifierFunc(func(_ context.Context, req alicaptcha.Request) (alicaptcha.Result, error) {
		asked = req.SceneID
		return alicaptcha.Result{Passed: true, Code: alicaptcha.T001}, nil
	}), "-scene", "easy", "-scene", "hard")
	for target, scene := range map[string]string{
		"/gate/easy": "easy", "/gate/hard": "hard", "/gate/hard/": "hard", "/gate/hard?scene=easy": "hard",
		"/gate/hard/login": "hard", "/gate/hard/../easy": "hard", "/gate/hard/../../gate/easy": "hard",
		"/gate/hard/%2e%2e/easy": "hard", "/gate/hard//easy": "hard", "/gate/hard/..%2feasy": "hard",
		"/gate/hard/%00": "hard", "/gate/hard//gate/easy": "hard", "http://easy/gate/hard/login": "hard",
		"/gate/hard/\\..\\easy": "hard", "/gate/hard/%zz": "", // the server refuses the last one

		"/": "", "/gate": "", "/gate/": "", "/gate//easy": "", "//gate/easy": "", "/gate/./easy": "",
		"/gate/x/../easy": "", "/x/../gate/easy": "", "/gate/../gate/easy": "", "/gate/%65asy": "", "/gate%2feasy": "",
		"/gate/easy%2f": "", "/gate/easy%2f..%2fhard": "", "/gate/easy;hard": "", "/gate/easy.": "", "/gate/EASY": "",
		"/GATE/easy": "", "/gate/easyhard": "", "/gate/%2e%2e/easy": "", "/gate/\\easy": "", "*": "",
		"/healthz": "", "/metrics": "", "/login": "",
	} {
		for _, method := range []string{"GET", "POST", "HEAD", "PUT", "OPTIONS", "DELETE", "PATCH", "BREW"} {
			asked = ""
			r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(method + " " + target + " HTTP/1.1\r\nHost: easy\r\n" +
				"X-Forwarded-Uri: /gate/easy\r\nX-Forwarded-Prefix: /gate/easy\r\nX-Forwarded-Host: easy\r\n" +
				"X-Original-Uri: /gate/easy\r\nX-Original-Url: /gate/easy\r\nX-Rewrite-Url: /gate/easy\r\n" +
				"X-Http-Method-Override: GET\r\nScene: easy\r\nSceneId: easy\r\n" +
				"Content-Type: application/json\r\nContent-Length: 44\r\n\r\n" +
				`{"sceneId":"easy","captchaVerifyParam": "x"}`)))
			status := 404
			if err == nil {
				status = ask(g, r).Code
			}
			require.Equal(t, scene, asked, "%s %s", method, target)
			if scene == "" {
				require.Equal(t, 404, status, "%s %s", method, target)
			} else {
				require.Equal(t, 204, status, "%s %s", method, target)
			}
		}
	}
}

// The param is found where the flags say, and in bodies of a bounded length.
func TestGateFindsTheParam(t *testing.T) {
	t.Parallel()
	post := func(contentType, body string, header ...string) *http.Request {
		r := requestFor("/gate/login", body)
		r.Header.Set("Content-Type", contentType)
		for i := 0; i < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		return r
	}
	form, asJSON := "application/x-www-form-urlencoded", "application/json"
	part := "--b\r\nContent-Disposition: form-data; name=%s\r\n\r\nx\r\n--b--\r\n"
	for name, tc := range map[string]struct {
		args   []string
		r      *http.Request
		status int
	}{
		"form":                {nil, post(form, "captchaVerifyParam=x"), 204},
		"multipart":           {nil, post("multipart/form-data; boundary=b", fmt.Sprintf(part, "CaptchaVerifyParam")), 204},
		"header":              {nil, post("", "", "captcha-verify-param", "x"), 204},
		"query":               {nil, requestFor("/gate/login?captchaVerifyParam=x", ""), 400},
		"another type":        {nil, post("text/plain", "captchaVerifyParam=x"), 400},
		"own field":           {[]string{"-fields", "c"}, post(form, "c=x"), 204},
		"own field, pointer":  {[]string{"-fields", "/a/b"}, post(asJSON, `{"a":{"b":"x"}}`), 204},
		"own field, default":  {[]string{"-fields", "c"}, post(form, "captchaVerifyParam=x"), 400},
		"no field":            {[]string{"-fields", ""}, post(form, "captchaVerifyParam=x"), 400},
		"own header":          {[]string{"-header", "X-C"}, post("", "", "X-C", "x"), 204},
		"own header, default": {[]string{"-header", "X-C"}, post("", "", "Captcha-Verify-Param", "x"), 400},
		"no header":           {[]string{"-header", ""}, post("", "", "Captcha-Verify-Param", "x"), 400},
		"behind much":         {nil, post(form, "a="+strings.Repeat("x", 100<<10)+"&captchaVerifyParam=x"), 204},
		"behind too much":     {nil, post(form, "a="+strings.Repeat("x", 200<<10)+"&captchaVerifyParam=x"), 413},
		"behind much more": {
			[]string{"-max-body", "300000"}, post(form, "a="+strings.Repeat("x", 200<<10)+"&captchaVerifyParam=x"), 204,
		},
		"before very much": {nil, post(form, "captchaVerifyParam=x&a="+strings.Repeat("x", 3<<20)), 204},
		"long":             {nil, post(form, "captchaVerifyParam="+strings.Repeat("x", 33<<10)), 413},
		"long enough":      {[]string{"-max-param", "9"}, post(form, "captchaVerifyParam="+strings.Repeat("x", 10)), 413},
	} {
		g, _ := gateOf(t, verdictOf("T001"), append(tc.args, "-scene", "login")...)
		require.Equal(t, tc.status, ask(g, tc.r).Code, name)
		rest, err := io.ReadAll(tc.r.Body)
		require.NoError(t, err)
		require.Empty(t, rest, "%s: a proxy that still sends may not read the answer", name)
	}
}

func TestGateMetrics(t *testing.T) {
	t.Parallel()
	verifier := alicaptcha.Verifier(verdictOf("T001"))
	g, m := gateOf(t, alicaptcha.VerifierFunc(func(ctx context.Context, req alicaptcha.Request) (alicaptcha.Result, error) {
		return verifier.Verify(ctx, req)
	}), "-scene", "login", "-scene", "signup")
	a := &admin{metrics: m}
	read := func() string {
		w := ask(a, httptest.NewRequest("GET", "/metrics", nil))
		require.Equal(t, 200, w.Code)
		require.Equal(t, "text/plain; version=0.0.4; charset=utf-8", w.Header().Get("Content-Type"))
		return regexp.MustCompile(`(_sum\S*) \S+`).ReplaceAllString(w.Body.String(), "$1 SUM")
	}
	require.Equal(t, `# HELP alicaptcha_outcomes_total Requests at the gates, by how they ended.
# TYPE alicaptcha_outcomes_total counter
# HELP alicaptcha_verification_duration_seconds Duration of the verifications for which the service was asked.
# TYPE alicaptcha_verification_duration_seconds histogram
# HELP alicaptcha_verifications_active Verifications under way.
# TYPE alicaptcha_verifications_active gauge
alicaptcha_verifications_active 0
# HELP alicaptcha_breaker_state 1 for the present state of the breaker, and 0 for the others.
# TYPE alicaptcha_breaker_state gauge
alicaptcha_breaker_state{alicaptcha_breaker_name="gate",alicaptcha_breaker_state="closed"} 1
alicaptcha_breaker_state{alicaptcha_breaker_name="gate",alicaptcha_breaker_state="half-open"} 0
alicaptcha_breaker_state{alicaptcha_breaker_name="gate",alicaptcha_breaker_state="open"} 0
`, read())

	ask(g, aRequest())
	ask(g, aRequest())
	ask(g, requestFor("/gate/signup", `{}`))
	ask(g, requestFor("/gate/none", `{}`))
	verifier = verdictOf("F777")
	ask(g, aRequest())
	verifier = alicaptchatest.Failing(alicaptcha.ServiceUnavailable)
	for range 7 {
		ask(g, aRequest()) // opens the breaker
	}
	text := read()
	for _, line := range []string{
		`alicaptcha_outcomes_total{alicaptcha_code="F_other",alicaptcha_decision="rejected",alicaptcha_scene="login"} 1`,
		`alicaptcha_outcomes_total{alicaptcha_code="T001",alicaptcha_decision="passed",alicaptcha_scene="login"} 2`,
		`alicaptcha_outcomes_total{alicaptcha_code="param_missing",alicaptcha_decision="rejected",alicaptcha_scene="signup"} 1`,
		`alicaptcha_outcomes_total{alicaptcha_code="service_unavailable",alicaptcha_decision="rejected",alicaptcha_scene="login"} 7`,
		`alicaptcha_verification_duration_seconds_bucket{le="5"} 3`,
		`alicaptcha_verification_duration_seconds_bucket{le="+Inf"} 3`,
		`alicaptcha_verification_duration_seconds_sum SUM`,
		`alicaptcha_verification_duration_seconds_count 3`,
		`alicaptcha_verification_duration_seconds_bucket{error_type="service_unavailable",le="+Inf"} 5`,
		`alicaptcha_verification_duration_seconds_sum{error_type="service_unavailable"} SUM`,
		`alicaptcha_verification_duration_seconds_count{error_type="service_unavailable"} 5`,
		`alicaptcha_breaker_state{alicaptcha_breaker_name="gate",alicaptcha_breaker_state="open"} 1`,
	} {
		require.Contains(t, text, "\n"+line+"\n")
	}
	require.NotContains(t, text, "none")

	for target, want := range map[string]int{"/healthz": 200, "/": 404, "/gate/login": 404, "/metrics/": 404, "/debug/pprof/": 404} {
		require.Equal(t, want, ask(a, httptest.NewRequest("GET", target, nil)).Code, target)
	}
	require.Equal(t, 404, ask(a, httptest.NewRequest("POST", "/metrics", nil)).Code)
	a.isStopping.Store(true)
	require.Equal(t, 503, ask(a, httptest.NewRequest("GET", "/healthz", nil)).Code)
}

// A duration is counted in the bucket that it is the boundary of, and those above.
func TestGateHistogram(t *testing.T) {
	t.Parallel()
	m := &metrics{breaker: func() alicaptcha.BreakerState { return "closed" }}
	for _, o := range []alicaptcha.Outcome{
		{Code: alicaptcha.T001, Duration: 5_000_000}, {Code: alicaptcha.T001, Duration: 5_000_001},
		{Code: alicaptcha.F001, Duration: 6_000_000_000}, {Code: alicaptcha.ParamMissing},
	} {
		m.observe(t.Context(), o)
	}
	var b strings.Builder
	m.writeTo(&b)
	for _, line := range []string{`_bucket{le="0.005"} 1`, `_bucket{le="0.01"} 2`, `_bucket{le="5"} 2`, `_bucket{le="+Inf"} 3`} {
		require.Contains(t, b.String(), "alicaptcha_verification_duration_seconds"+line+"\n")
	}
	require.Contains(t, b.String(), "alicaptcha_verification_duration_seconds_sum 6.010000001\n")
}

// Nothing that a client sends is in the log or in the metrics.
func TestGateKeepsSecrets(t *testing.T) {
	t.Parallel()
	var logged strings.Builder
	s, _, err := parseGate([]string{"-region", "cn", "-scene", "login"}, io.Discard)
	require.NoError(t, err)
	g, m, err := newGate(s, verdictOf("F001"), slog.New(slog.NewTextHandler(&logged, nil)))
	require.NoError(t, err)
	for _, target := range []string{"/gate/login/hunter?hunter", "/hunter", "/gate/hunter"} {
		r := requestFor(target, url.Values{"captchaVerifyParam": {"hunter"}, "password": {"hunter"}}.Encode())
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set("Cookie", "hunter")
		w := ask(g, r)
		require.NotContains(t, shown(w), "hunter")
	}
	require.Equal(t, 2, strings.Count(logged.String(), "\n"), "of URLs of no scene there is one line a minute")
	require.Contains(t, logged.String(), "URL of no scene")
	require.NotContains(t, logged.String(), "hunter")
	var b strings.Builder
	m.writeTo(&b)
	require.NotContains(t, b.String(), "hunter")
}
