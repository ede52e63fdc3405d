package alicaptcha_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
)

// reject writes the rejection of o to r.
func reject(r *http.Request, o alicaptcha.Outcome) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	alicaptcha.WriteRejection(w, r, o)
	return w
}

func TestWriteRejectionIsAProblem(t *testing.T) {
	t.Parallel()
	w := reject(loginRequest(), alicaptcha.Outcome{Code: alicaptcha.F007, Action: alicaptcha.DefaultPolicy()[alicaptcha.F007]})
	require.Equal(t, 403, w.Code)
	require.Equal(t, http.Header{
		"Content-Type":           {"application/problem+json"},
		"Cache-Control":          {"no-store"},
		"Vary":                   {"Accept"},
		"X-Content-Type-Options": {"nosniff"},
	}, w.Header())
	var body map[string]any
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &body))
	require.NotEmpty(t, body["detail"])
	delete(body, "detail")
	require.Equal(t, map[string]any{
		"type": "about:blank", "title": "Forbidden", "status": 403.0, "reason": "captcha_expired", "retry": true,
	}, body)
}

func TestWriteRejectionByAccept(t *testing.T) {
	t.Parallel()
	const browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
	for _, row := range []struct {
		accept []string
		html   bool
	}{
		{nil, false},
		{[]string{""}, false},
		{[]string{"*/*"}, false},
		{[]string{"application/json"}, false},
		{[]string{"application/problem+json, text/html"}, false},
		{[]string{"application/json, text/html"}, false},
		{[]string{"text/html, application/json;q=0.9"}, true},
		{[]string{"application/json;q=0.9", "text/html"}, true},
		{[]string{"text/html;q=0.1, application/json;q=0"}, true},
		{[]string{"text/html;q=0, */*"}, false},
		{[]string{"text/*, application/json;q=0.5"}, true},
		{[]string{"text/*;q=0.4, application/*;q=0.5"}, false},
		{[]string{"text/html;level=1;q=0.7, application/*;q=0.5"}, true},
		{[]string{"TEXT/HTML;Q=1"}, true},
		{[]string{"text/html;q=x"}, false},
		{[]string{"text/html;q=nan, */*;q=0.1"}, false},
		{[]string{"text/plain"}, false},
		{[]string{";;;,,,/"}, false},
		{[]string{browser}, true},
	} {
		r := loginRequest()
		r.Header["Accept"] = row.accept
		w := reject(r, alicaptcha.Outcome{Code: alicaptcha.ParamMissing})
		require.Equal(t, 400, w.Code)
		want := "application/problem+json"
		if row.html {
			want = "text/html; charset=utf-8"
			require.Contains(t, w.Body.String(), "<h1>")
		}
		require.Equal(t, want, w.Header().Get("Content-Type"), "%q", row.accept)
	}
}

// The page leads back to the form, but nowhere else and with no markup of the client's.
func TestRejectionPageLeadsBack(t *testing.T) {
	t.Parallel()
	for referer, link := range map[string]string{
		"http://example.com/signup?a=1&b=2":          `href="/signup?a=1&amp;b=2"`,
		"https://example.com/":                       `href="/"`,
		"http://example.com/\"><script>alert(1)":     `href="/%22%3E%3Cscript%3Ealert%281%29"`,
		"http://evil.example/signup":                 "",
		"http://example.com//evil.example":           "",
		"http://example.com":                         "",
		"javascript:alert(1)":                        "",
		"":                                           "",
		"http://example.com/%zz":                     "",
		"http://user:password@example.com/x":         `href="/x"`,
		"http://example.com/\\evil.example/signup":   `href="/%5Cevil.example/signup"`,
		"http://example.com.evil.example/signup":     "",
		"http://example.com/a#<script>fragment":      `href="/a"`,
		"http://example.com/?q=<script>&x=%22%3E'\"": `href="/?q=&lt;script&gt;&amp;x=%22%3E&#39;&#34;"`,
	} {
		r := loginRequest()
		r.Header.Set("Accept", "text/html")
		r.Header.Set("Referer", referer)
		page := reject(r, alicaptcha.Outcome{Code: alicaptcha.F001}).Body.String()
		require.NotContains(t, page, "<script")
		require.NotContains(t, page, "password")
		if link == "" {
			require.NotContains(t, page, "href", referer)
			continue
		}
		require.Contains(t, page, link)
	}
}

func TestWriteRejectionHeadHasNoBody(t *testing.T) {
	t.Parallel()
	for _, accept := range []string{"*/*", "text/html"} {
		r := httptest.NewRequest("HEAD", "/login", nil)
		r.Header.Set("Accept", accept)
		w := reject(r, alicaptcha.Outcome{Code: alicaptcha.F001})
		require.Equal(t, 403, w.Code)
		require.Empty(t, w.Body.String())
		require.NotEmpty(t, w.Header().Get("Content-Type"))
	}
}

// It rejects whatever it is given: what it is called for has been decided.
func TestWriteRejectionAlwaysRejects(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		o      alicaptcha.Outcome
		status int
		reason string
	}{
		{alicaptcha.Outcome{}, 403, "captcha_rejected"},
		{alicaptcha.Outcome{Code: "nobody's"}, 403, "captcha_rejected"},
		{alicaptcha.Outcome{Code: alicaptcha.T001, Allowed: true, Action: alicaptcha.Allow()}, 403, "captcha_rejected"},
		{alicaptcha.Outcome{Code: alicaptcha.F010}, 429, "captcha_rate_limited"},
		{alicaptcha.Outcome{Code: alicaptcha.F010, Action: alicaptcha.Action{Status: 42}}, 403, "captcha_rate_limited"},
		{alicaptcha.Outcome{Code: alicaptcha.F010, Action: alicaptcha.Action{Status: 1000}}, 403, "captcha_rate_limited"},
		{alicaptcha.Outcome{Code: alicaptcha.F010, Action: alicaptcha.Action{Reason: "mine"}}, 403, "mine"},
		{alicaptcha.Outcome{Action: alicaptcha.Action{Status: 499, Reason: "mine"}}, 499, "mine"},
	} {
		w := reject(loginRequest(), row.o)
		require.Equal(t, row.status, w.Code)
		require.Equal(t, row.reason, reason(t, w))
	}
}

func TestWriteRejectionRetryAfterIsInWholeSeconds(t *testing.T) {
	t.Parallel()
	for after, want := range map[time.Duration]string{
		0: "", -time.Second: "", 1: "1", time.Second: "1", time.Second + 1: "2", time.Hour: "3600",
	} {
		w := reject(loginRequest(), alicaptcha.Outcome{Action: alicaptcha.Action{Status: 503, RetryAfter: after}})
		require.Equal(t, want, w.Header().Get("Retry-After"))
	}
}

// What an outer handler has set for its own page does not fit this one.
func TestWriteRejectionReplacesThePage(t *testing.T) {
	t.Parallel()
	w := httptest.NewRecorder()
	for _, name := range []string{"Content-Length", "Content-Encoding", "ETag", "Last-Modified", "Content-Type"} {
		w.Header().Set(name, "of another page")
	}
	w.Header().Set("Vary", "Origin")
	alicaptcha.WriteRejection(w, loginRequest(), alicaptcha.Outcome{})
	for name, values := range w.Header() {
		require.NotContains(t, strings.Join(values, ","), "another", name)
	}
	require.Equal(t, []string{"Origin", "Accept"}, w.Header().Values("Vary"))
}
