package docs

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

// Requests as an app sends them: JSON, without a cookie, an Origin or an Accept.
func TestExampleApp(t *testing.T) {
	simulator := alicaptchatest.Start(t, alicaptchatest.Config{Scenes: []string{"1a2b3c4d"}})
	verifier := simulator.Client()

	app, err := alicaptcha.New(alicaptcha.Config{
		Verifier:     verifier,
		SceneID:      "1a2b3c4d",
		Extractors:   []alicaptcha.Extractor{alicaptcha.FromJSON("captchaVerifyParam")},
		MaxBodyBytes: 64 << 10, // how far into a body the param may end
	})

	require.NoError(t, err)
	type credentials struct {
		Param    string `json:"captchaVerifyParam,omitempty"`
		Username string `json:"username"`
		Password string `json:"password"`
	}
	handler := app.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var got credentials
		if json.NewDecoder(r.Body).Decode(&got) != nil || got.Username != "alice" || got.Password != "correct-horse" {
			http.Error(w, "wrong password", http.StatusUnauthorized)
		}
	}))
	site := httptest.NewServer(http.NewCrossOriginProtection().Handler(handler))
	t.Cleanup(site.Close)

	issue := func(format alicaptchatest.Format, code alicaptcha.Code, bytes int) string {
		param, err := simulator.Issue(alicaptchatest.Issue{SceneID: "1a2b3c4d", Code: code, Format: format, Bytes: bytes})
		require.NoError(t, err)
		return param
	}
	post := func(body credentials, language string) (*http.Response, string) {
		text, err := json.Marshal(body)
		require.NoError(t, err)
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, site.URL+"/login", strings.NewReader(string(text)))
		require.NoError(t, err)
		r.Header.Set("Content-Type", "application/json; charset=utf-8")
		r.Header.Set("User-Agent", "okhttp/4.12.0")
		r.Header.Set("Accept-Language", language)
		resp, err := site.Client().Do(r)
		require.NoError(t, err)
		defer resp.Body.Close()
		answer, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return resp, string(answer)
	}
	long := issue(alicaptchatest.V2, alicaptcha.T001, 27_000)
	require.InDelta(t, 28_000, len(long), 1000)
	used := issue(alicaptchatest.V3, alicaptcha.T001, 0)
	alice := func(param string) credentials { return credentials{param, "alice", "correct-horse"} }
	for _, row := range []struct {
		body          credentials
		language      string
		status        int
		reason, after string
		retry         bool
		detail        string
	}{
		{body: alice(used), status: 200},
		{body: alice(long), status: 200},
		{body: alice(issue(alicaptchatest.V2, alicaptcha.T001, 0)), status: 200},
		{body: credentials{issue(alicaptchatest.V3, alicaptcha.T001, 0), "alice", "hunter2"}, status: 401},
		{body: alice(used), language: "zh-Hans-CN", status: 403, reason: "captcha_expired", retry: true, detail: "请重新完成验证。"},
		{body: alice(long), language: "en-GB", status: 403, reason: "captcha_expired", retry: true, detail: "solve a new one"},
		{body: alice(""), status: 400, reason: "captcha_missing", retry: true, detail: "complete it"},
		{body: alice(issue(alicaptchatest.V3, alicaptcha.F011, 0)), language: "zh", status: 429,
			reason: "captcha_rate_limited", after: "3600", detail: "请至少等待 1 小时后再试。"},
		{body: alice(issue(alicaptchatest.V3, alicaptcha.F009, 0)), status: 403, reason: "captcha_rejected",
			detail: "Trying again will not help."},
		{body: alice(strings.Repeat("x", 32<<10+1)), status: 413, reason: "captcha_invalid", detail: "could not be read"},
		{body: alice(strings.Repeat("x", 64<<10)), status: 413, reason: "captcha_invalid", detail: "could not be read"},
	} {
		resp, answer := post(row.body, row.language)
		require.Equal(t, row.status, resp.StatusCode, answer)
		require.Equal(t, row.after, resp.Header.Get("Retry-After"))
		if row.reason == "" {
			require.NotEqual(t, "application/problem+json", resp.Header.Get("Content-Type"))
			continue
		}
		require.Equal(t, "application/problem+json", resp.Header.Get("Content-Type"))
		var problem alicaptcha.Problem
		require.NoError(t, json.Unmarshal([]byte(answer), &problem))
		require.Equal(t, row.reason, problem.Reason)
		require.Equal(t, row.retry, problem.Retry)
		require.Contains(t, problem.Detail, row.detail)
		require.Regexp(t, `^urn:uuid:`, problem.Instance)
	}
}
