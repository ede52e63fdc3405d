package alicaptcha_test

import (
	"encoding/json"
	"io"
	"log/slog"
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
	w := reject(loginRequest(), alicaptcha.Outcome{
		Code: alicaptcha.F007, Action: alicaptcha.DefaultPolicy()[alicaptcha.F007],
	})
	require.Equal(t, 403, w.Code)
	require.Equal(t, http.Header{
		"Content-Type":           {"application/problem+json"},
		"Cache-Control":          {"no-store"},
		"Content-Language":       {"en"},
		"Vary":                   {"Accept", "Accept-Language"},
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

// The title is that of the status, also where net/http has none for it, and the body
// ends its line, for who reads it in a terminal.
func TestWriteRejectionTitle(t *testing.T) {
	t.Parallel()
	for status, want := range map[int]string{400: "Bad Request", 418: "I'm a teapot", 499: "Rejected", 599: "Rejected"} {
		w := reject(loginRequest(), alicaptcha.Outcome{Action: alicaptcha.Reject(status)})
		require.Equal(t, status, w.Code)
		var body struct {
			Title  string
			Status int
		}
		require.NoError(t, json.Unmarshal(w.Body.Bytes(), &body))
		require.Equal(t, want, body.Title)
		require.Equal(t, status, body.Status)
		require.True(t, strings.HasSuffix(w.Body.String(), "}\n"))
	}
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
		// The most specific range counts, wherever it stands.
		{[]string{"*/*;q=0.1, text/*"}, true},
		{[]string{"text/*, */*;q=0.1"}, true},
		{[]string{"text/*;q=0.1, text/html, application/json;q=0.5"}, true},
		{[]string{"text/html, text/*;q=0.1, application/json;q=0.5"}, true},
		{[]string{"text/html;q=0.1, text/*, application/json;q=0.5"}, false},
		{[]string{"text/html;q=0.5, */*, application/json;q=0.4, application/problem+json;q=0.4"}, true},
		{[]string{"text/html;q=0.5, application/*, application/json;q=0.4, application/problem+json;q=0.4"}, true},
		{[]string{"text/html;q=0.5, application/*;q=0.4, application/json"}, false},
		{[]string{"text/html;q=0.5, application/problem+json;q=0.6"}, false},
		{[]string{"text/html;q=0.5, application/json;q=0.5"}, false},
		{[]string{"text/html;q=1, application/json"}, false},
		{[]string{"*/html"}, false},
		{[]string{"*/x, text/html;q=0.5"}, true},
		{[]string{"text/html;q=0, application/json;q=0, */*;q=0"}, false},
		{[]string{"text/html;q=0"}, false},
		// A weight has the form of RFC 9110, section 12.4.2, or is 0.
		{[]string{"text/html;q=1"}, true},
		{[]string{"text/html;q=1."}, true},
		{[]string{"text/html;q=1.000"}, true},
		{[]string{"text/html;q=0.001"}, true},
		{[]string{"text/html;q=0.501, application/json;q=0.5"}, true},
		{[]string{"text/html;q=0.51, application/json;q=0.501"}, true},
		{[]string{"text/html;q=0.5, application/json;q=0.49"}, true},
		{[]string{"text/html;q=1.001"}, false},
		{[]string{"text/html;q=1.0000"}, false},
		{[]string{"text/html;q=0.1234"}, false},
		{[]string{"text/html;q=2"}, false},
		{[]string{"text/html;q=10"}, false},
		{[]string{"text/html;q=00.5"}, false},
		{[]string{"text/html;q=.5"}, false},
		{[]string{"text/html;q=-1"}, false},
		{[]string{"text/html;q=+1"}, false},
		{[]string{"text/html;q=0.+5"}, false},
		{[]string{"text/html;q=0.5.5"}, false},
		{[]string{"text/html;q=0.1_0"}, false},
		{[]string{"text/html;q=9e-323"}, false},
		{[]string{"text/html;q=1e0"}, false},
		{[]string{"text/html;q="}, false},
		{[]string{"text/html;q"}, false},
		{[]string{`text/html;q="1"`}, false},
		{[]string{"text/html;Q=0.4, application/json;q=0.5"}, false},
		{[]string{"text/html;q=0.1;q=1, application/json;q=0.5"}, false}, // the first q is the weight
		{[]string{"text/html;q=1;q=0.1, application/json;q=0.5"}, true},
		{[]string{" text/html ; level=1 ;\tq=0.6 , application/json ; q=0.5 "}, true},
		{[]string{" text/html ; level=1 ;\tq=0.4 , application/json ; q=0.5 "}, false},
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

// A header is read up to its limit and, above it, is as if it were not there. Each
// value counts a byte more than it has, so that many empty ones are no way round.
func TestWriteRejectionBoundsTheHeaders(t *testing.T) {
	t.Parallel()
	filled := func(s string, size int) string { return strings.Repeat(" ", size-len(s)) + s }
	empty := func(n int, last string) []string { return append(make([]string, n), last) }
	for _, row := range []struct {
		header string
		values []string
		read   bool
	}{
		{"Accept", []string{filled("text/html", 511)}, true},
		{"Accept", []string{filled("text/html", 512)}, false},
		{"Accept", []string{filled("text/plain", 255), filled("text/html", 255)}, true},
		{"Accept", []string{filled("text/html", 255), filled("text/plain", 256)}, false},
		{"Accept", empty(502, "text/html"), true},
		{"Accept", empty(503, "text/html"), false},
		{"Accept-Language", []string{filled("zh", 255)}, true},
		{"Accept-Language", []string{filled("zh", 256)}, false},
		{"Accept-Language", []string{filled("zh", 127), filled("en;q=0.1", 127)}, true},
		{"Accept-Language", []string{filled("zh", 127), filled("en;q=0.1", 128)}, false},
		{"Referer", []string{"http://example.com/" + strings.Repeat("x", 2048-len("http://example.com/"))}, true},
		{"Referer", []string{"http://example.com/" + strings.Repeat("x", 2049-len("http://example.com/"))}, false},
	} {
		r := loginRequest()
		r.Header.Set("Accept", "text/html")
		r.Header[row.header] = row.values
		w := reject(r, alicaptcha.Outcome{Code: alicaptcha.F001})
		read := map[string]bool{
			"Accept":          w.Header().Get("Content-Type") == "text/html; charset=utf-8",
			"Accept-Language": w.Header().Get("Content-Language") == "zh-CN",
			"Referer":         strings.Contains(w.Body.String(), `href="/xx`),
		}
		require.Equal(t, row.read, read[row.header], "%s: %d values of %d bytes in all",
			row.header, len(row.values), len(strings.Join(row.values, "")))
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

func TestWriteRejectionByAcceptLanguage(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		accept []string
		lang   string
	}{
		{nil, "en"},
		{[]string{""}, "en"},
		{[]string{"*"}, "en"},
		{[]string{"fr"}, "en"},
		{[]string{"zh-CN,zh;q=0.9,en;q=0.8"}, "zh-CN"},
		{[]string{"zh"}, "zh-CN"},
		{[]string{"ZH-hans"}, "zh-CN"},
		{[]string{"zh-TW"}, "zh-CN"}, // rather than English
		{[]string{"en-US,en;q=0.9,zh;q=0.8"}, "en"},
		{[]string{"en;q=0.5, zh;q=0.6"}, "zh-CN"},
		{[]string{"fr, zh;q=0.1"}, "zh-CN"},
		{[]string{"fr", "zh"}, "zh-CN"},
		{[]string{"en;q=0.1", "zh;q=0.2"}, "zh-CN"},
		{[]string{"zh;q=0, en"}, "en"},
		{[]string{"zh;q=x"}, "en"},
		{[]string{";;;,,,-"}, "en"},
		{[]string{"zh-CN, *;q=0"}, "zh-CN"},
		{[]string{"zh-CN;q=0, *;q=0"}, "en"},
		{[]string{"en;q=0, zh;q=0.001"}, "zh-CN"},
		{[]string{"no_tag!;q=0, zh"}, "zh-CN"},
		{[]string{"en;q=0.009, zh;q=0.01"}, "zh-CN"},
		{[]string{"en;q=0.5, zh;q=1"}, "zh-CN"},
		{[]string{"zh;q=0.5, en;q=1."}, "en"},
		{[]string{"zh;q=0.1234, en;q=0.1"}, "en"},
		{[]string{"zh;q=1.001, en;q=0.1"}, "en"},
		{[]string{"zh;q=, en;q=0.1"}, "en"},
		{[]string{"en;q=9e-1, zh;q=0.1"}, "zh-CN"}, // a malformed weight is 0, in either language
		{[]string{"zh;Q=0.1, en;q=0.2"}, "en"},
		{[]string{"zh;q=0.1;q=1, en;q=0.2"}, "en"},
		{[]string{" en ; q=0.1 , zh ; q=0.2 "}, "zh-CN"},
		{[]string{strings.Repeat("zh-", 10_000)}, "en"},
		{[]string{strings.Repeat("zh,", 10_000)}, "en"},
	} {
		for _, accept := range []string{"application/json", "text/html"} {
			r := loginRequest()
			r.Header.Set("Accept", accept)
			r.Header["Accept-Language"] = row.accept
			w := reject(r, alicaptcha.Outcome{Code: alicaptcha.F007})
			require.Equal(t, row.lang, w.Header().Get("Content-Language"), "%.40q", row.accept)
			text := "The captcha has expired or was used already. Please solve a new one."
			if row.lang == "zh-CN" {
				text = "验证已过期或已被使用。请重新完成验证。"
			}
			require.Contains(t, w.Body.String(), text)
			if accept == "text/html" {
				require.Contains(t, w.Body.String(), `<html lang="`+row.lang+`">`)
			}
		}
	}
}

// Each reason has words of its own in both languages, and each ends with what
// helps: a new challenge, time, or nothing that the client can do.
func TestRejectionsSayWhatHelps(t *testing.T) {
	t.Parallel()
	detail := func(lang string, o alicaptcha.Outcome) string {
		r := loginRequest()
		r.Header.Set("Accept-Language", lang)
		var body struct{ Detail string }
		require.NoError(t, json.Unmarshal(reject(r, o).Body.Bytes(), &body))
		return body.Detail
	}
	after := func(d time.Duration) alicaptcha.Outcome {
		return alicaptcha.Outcome{Code: alicaptcha.F001, Action: alicaptcha.Action{RetryAfter: d}}
	}
	for _, row := range []struct {
		o           alicaptcha.Outcome
		english, zh string
	}{
		{alicaptcha.Outcome{Code: alicaptcha.ParamMissing},
			"The captcha was not completed. Please complete it and try again.", "尚未完成验证。请先完成验证。"},
		{alicaptcha.Outcome{Code: alicaptcha.F003},
			"The captcha could not be read. Please solve a new one.", "无法识别验证信息。请重新完成验证。"},
		{alicaptcha.Outcome{Code: alicaptcha.ParamTooLarge},
			"The captcha could not be read. Trying again will not help.", "无法识别验证信息。重试也无法通过。"},
		{alicaptcha.Outcome{Code: alicaptcha.F018},
			"The captcha has expired or was used already. Please solve a new one.",
			"验证已过期或已被使用。请重新完成验证。"},
		{alicaptcha.Outcome{Code: alicaptcha.F001},
			"The captcha was not passed. Please solve a new one.", "验证未通过。请重新完成验证。"},
		{alicaptcha.Outcome{Code: alicaptcha.F009},
			"The captcha was not passed. Trying again will not help.", "验证未通过。重试也无法通过。"},
		{alicaptcha.Outcome{Code: alicaptcha.F010},
			"There were too many attempts. Please wait at least an hour before you try again.",
			"尝试次数过多。请至少等待 1 小时后再试。"},
		{alicaptcha.Outcome{Code: alicaptcha.F010, Action: alicaptcha.Reject(429)},
			"There were too many attempts. Please try again later.", "尝试次数过多。请稍后再试。"},
		{alicaptcha.Outcome{Code: alicaptcha.ServiceTimeout},
			"The captcha cannot be checked right now. You can try again in 5 s.",
			"暂时无法完成验证。请在 5 秒后重试。"},
		{alicaptcha.Outcome{Code: alicaptcha.F010, Action: alicaptcha.Action{RetryAfter: time.Second}},
			"There were too many attempts. You can try again in 1 s.", "尝试次数过多。请在 1 秒后重试。"},
		{after(119 * time.Second), "The captcha was not passed. You can try again in 119 s.",
			"验证未通过。请在 119 秒后重试。"},
		{after(120*time.Second + 1), "The captcha was not passed. Please wait at least 3 minutes before you try again.",
			"验证未通过。请至少等待 3 分钟后再试。"},
		{after(7140 * time.Second), "The captcha was not passed. Please wait at least 119 minutes before you try again.",
			"验证未通过。请至少等待 119 分钟后再试。"},
		{after(7140*time.Second + 1), "The captcha was not passed. Please wait at least 2 hours before you try again.",
			"验证未通过。请至少等待 2 小时后再试。"},
		{after(24*time.Hour + 1), "The captcha was not passed. Please wait at least 25 hours before you try again.",
			"验证未通过。请至少等待 25 小时后再试。"},
		{alicaptcha.Outcome{Code: alicaptcha.Misconfigured},
			"The captcha cannot be checked right now. Please try again later.",
			"暂时无法完成验证。请稍后再试。"},
		{alicaptcha.Outcome{Action: alicaptcha.Action{Reason: "mine", Retry: true}},
			"The captcha was not passed. Please solve a new one.", "验证未通过。请重新完成验证。"},
	} {
		require.Equal(t, row.english, detail("en", row.o), row.o.Code)
		require.Equal(t, row.zh, detail("zh", row.o), row.o.Code)
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
		{alicaptcha.Outcome{Code: alicaptcha.F010, Action: alicaptcha.Action{Status: 399}}, 403, "captcha_rate_limited"},
		{alicaptcha.Outcome{Code: alicaptcha.F010, Action: alicaptcha.Action{Status: 400}}, 400, "captcha_rate_limited"},
		{alicaptcha.Outcome{Code: alicaptcha.F010, Action: alicaptcha.Action{Status: 599}}, 599, "captcha_rate_limited"},
		{alicaptcha.Outcome{Code: alicaptcha.F010, Action: alicaptcha.Action{Status: 600}}, 403, "captcha_rate_limited"},
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
	require.Equal(t, []string{"Origin", "Accept", "Accept-Language"}, w.Header().Values("Vary"))
}

// An empty element of a list is nothing (RFC 9110, section 5.6.1.2).
func TestWriteRejectionSkipsEmptyElements(t *testing.T) {
	t.Parallel()
	for _, accept := range [][]string{{"zh-CN,"}, {",zh-CN"}, {"zh-CN, , en;q=0.5"}, {"", "zh-CN"}} {
		r := loginRequest()
		r.Header["Accept-Language"] = accept
		w := reject(r, alicaptcha.Outcome{Code: alicaptcha.F001})
		require.Equal(t, "zh-CN", w.Header().Get("Content-Language"), "%q", accept)
	}
}

// A JSON shape of one's own has the texts and the headers of the usual rejection.
func TestNewProblem(t *testing.T) {
	t.Parallel()
	r := loginRequest()
	r.Header.Set("Accept-Language", "zh-CN,zh;q=0.9")
	o := alicaptcha.Outcome{
		Code:      alicaptcha.F010,
		Action:    alicaptcha.Action{Status: 429, Reason: "slow", RetryAfter: 1500 * time.Millisecond},
		Reference: "0189dd06-1f4a-4c5e-9d1b-1f2a3b4c5d6e",
	}
	p := alicaptcha.NewProblem(r, o)
	require.Equal(t, alicaptcha.Problem{
		Type: "about:blank", Title: "Too Many Requests", Status: 429, Detail: "验证未通过。请在 2 秒后重试。",
		Instance: "urn:uuid:0189dd06-1f4a-4c5e-9d1b-1f2a3b4c5d6e", Reason: "slow",
		RetryAfter: 2 * time.Second, Language: "zh-CN",
	}, p)
	text, err := json.Marshal(p)
	require.NoError(t, err)
	require.JSONEq(t, `{"type": "about:blank", "title": "Too Many Requests", "status": 429, "reason": "slow", "retry": false,
		"detail": "验证未通过。请在 2 秒后重试。", "instance": "urn:uuid:0189dd06-1f4a-4c5e-9d1b-1f2a3b4c5d6e"}`, string(text))

	h := http.Header{
		"Content-Length": {"7"}, "Content-Encoding": {"br"}, "Etag": {"x"}, "Last-Modified": {"x"},
		"Content-Type": {"application/json"}, "Vary": {"Cookie"},
	}
	p.SetHeader(h)
	require.Equal(t, http.Header{
		"Content-Type": {"application/json"}, "Cache-Control": {"no-store"}, "Retry-After": {"2"},
		"Captcha-Reference": {"0189dd06-1f4a-4c5e-9d1b-1f2a3b4c5d6e"}, "Content-Language": {"zh-CN"},
		"Vary": {"Cookie", "Accept-Language"}, "X-Content-Type-Options": {"nosniff"},
	}, h)

	p = alicaptcha.NewProblem(loginRequest(), alicaptcha.Outcome{Code: alicaptcha.ServiceTimeout, Allowed: true})
	require.Equal(t, 503, p.Status, "the default where the Outcome has none")
	require.Equal(t, 5*time.Second, p.RetryAfter)
	require.Empty(t, p.Instance)
	h = http.Header{}
	alicaptcha.NewProblem(loginRequest(), alicaptcha.Outcome{}).SetHeader(h)
	require.NotContains(t, h, "Captcha-Reference")
	require.NotContains(t, h, "Retry-After")
}

// What OnReject leaves unwritten must not become a 200, and what it wrote stays as it is.
func TestOnRejectThatWritesNothing(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name     string
		onReject func(http.ResponseWriter)
		status   int
		usual    bool
	}{
		{"nothing", func(http.ResponseWriter) {}, 403, true},
		{"a header only", func(w http.ResponseWriter) { w.Header().Set("Content-Type", "text/x") }, 403, true},
		{"103 only", func(w http.ResponseWriter) { w.WriteHeader(http.StatusEarlyHints) }, 403, true},
		{"a status", func(w http.ResponseWriter) { w.WriteHeader(418) }, 418, false},
		{"a body", func(w http.ResponseWriter) { io.WriteString(w, "no") }, 200, false},
		{"an empty body", func(w http.ResponseWriter) { w.Write(nil) }, 200, false},
		{"a flush", func(w http.ResponseWriter) { w.(http.Flusher).Flush() }, 200, false},
		{"a flush by the controller", func(w http.ResponseWriter) {
			require.NoError(t, http.NewResponseController(w).Flush())
		}, 200, false},
		{"a connection taken", func(w http.ResponseWriter) {
			require.NoError(t, http.NewResponseController(w).SetReadDeadline(time.Now().Add(time.Minute)))
			conn, _, err := http.NewResponseController(w).Hijack()
			require.NoError(t, err)
			io.WriteString(conn, "HTTP/1.1 418 Taken\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
			conn.Close()
		}, 418, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			log := new(logbook)
			m := newMiddleware(t, alicaptcha.Config{
				Verifier: answering(alicaptcha.Result{Code: alicaptcha.F001}, nil), Logger: slog.New(log),
				OnReject: func(w http.ResponseWriter, _ *http.Request, _ alicaptcha.Outcome) { row.onReject(w) },
			})
			server := httptest.NewServer(m.Handler(http.NotFoundHandler()))
			defer server.Close()
			answer, err := http.Post(server.URL, "application/json", strings.NewReader(`{"captchaVerifyParam":"x"}`))
			require.NoError(t, err)
			defer answer.Body.Close()
			require.Equal(t, row.status, answer.StatusCode)
			require.Equal(t, row.usual, answer.Header.Get("Content-Type") == "application/problem+json")
			require.Equal(t, row.usual, strings.Contains(log.String(), "ERROR captcha: OnReject wrote nothing"))
		})
	}
}

// A flush or a hijacking that fails has written nothing.
func TestOnRejectThatCannotFlush(t *testing.T) {
	t.Parallel()
	m := newMiddleware(t, alicaptcha.Config{
		Verifier: answering(alicaptcha.Result{Code: alicaptcha.F001}, nil),
		OnReject: func(w http.ResponseWriter, _ *http.Request, _ alicaptcha.Outcome) {
			require.ErrorIs(t, http.NewResponseController(w).Flush(), http.ErrNotSupported)
			_, _, err := http.NewResponseController(w).Hijack()
			require.ErrorIs(t, err, http.ErrNotSupported)
		},
	})
	w := httptest.NewRecorder()
	m.Handler(http.NotFoundHandler()).ServeHTTP(struct{ http.ResponseWriter }{w}, loginRequest())
	require.Equal(t, 403, w.Code)
	require.Equal(t, "application/problem+json", w.Header().Get("Content-Type"))
}

// A rejection has one reference wherever it is seen, and each has another.
func TestReference(t *testing.T) {
	t.Parallel()
	refused := answering(alicaptcha.Result{Code: alicaptcha.F001}, nil)
	seen := map[string]bool{}
	for range 100 {
		tr := try(t, alicaptcha.Config{Verifier: refused}, loginRequest())
		reference := tr.outcome(t).Reference
		require.Regexp(t, `^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`, reference)
		require.Contains(t, tr.Body.String(), `"instance":"urn:uuid:`+reference+`"`)
		require.Equal(t, reference, tr.Header().Get("Captcha-Reference"))
		require.Equal(t, 1, strings.Count(tr.log.String(), "captcha.reference="+reference))
		require.NotContains(t, seen, reference)
		seen[reference] = true
	}

	for language, want := range map[string]string{
		"en": "If you need help, tell us this:", "zh": "如需帮助，请提供此编号：",
	} {
		r := loginRequest()
		r.Header.Set("Accept", "text/html")
		r.Header.Set("Accept-Language", language)
		tr := try(t, alicaptcha.Config{Verifier: refused}, r)
		require.Contains(t, tr.Body.String(), "<small>"+want+"<br>"+tr.outcome(t).Reference+"</small>")
	}

	var got alicaptcha.Outcome
	onReject := func(w http.ResponseWriter, _ *http.Request, o alicaptcha.Outcome) {
		got = o
		w.WriteHeader(403)
	}
	tr := try(t, alicaptcha.Config{Verifier: refused, OnReject: onReject}, loginRequest())
	require.Equal(t, tr.outcome(t).Reference, got.Reference)
	require.NotEmpty(t, got.Reference)

	require.Empty(t, try(t, alicaptcha.Config{Verifier: passing()}, loginRequest()).outcome(t).Reference)
	tr = try(t, alicaptcha.Config{Verifier: refused, Mode: alicaptcha.ReportOnly}, loginRequest())
	require.NotEmpty(t, tr.outcome(t).Reference)
	require.NotContains(t, reject(loginRequest(), alicaptcha.Outcome{}).Body.String(), "instance")
}
