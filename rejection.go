package alicaptcha

import (
	"encoding/json"
	"fmt"
	"html"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"golang.org/x/text/language"
)

// A problem is the body of a rejection, as in RFC 9457. With the type
// about:blank the title is the status's own.
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
	Reason string `json:"reason"`
	Retry  bool   `json:"retry"`
}

// A wording is what a rejection says to the person who reads it.
type wording struct {
	details map[string]string // by reason
	wait    string            // with the seconds
	retry   string            // a new challenge may succeed
	later   string            // it is not the client's doing
	final   string            // a new challenge will not succeed
	space   string            // between two sentences
	script  string            // in a page that a browser without JavaScript got to
	title   string
	back    string // a link's
	goBack  string // where there is no link
}

var english = wording{
	details: map[string]string{
		reasonMissing:     "The captcha was not completed.",
		reasonInvalid:     "The captcha could not be read.",
		reasonExpired:     "The captcha has expired or was used already.",
		reasonRejected:    "The captcha was not passed.",
		reasonRateLimited: "There were too many attempts.",
		reasonUnavailable: "The captcha cannot be checked right now.",
	},
	wait:   "You can try again in %d s.",
	retry:  "Please solve a new one.",
	later:  "Please try again later.",
	final:  "Trying again will not help.",
	space:  " ",
	script: "The captcha needs JavaScript. Please switch it on.",
	title:  "Captcha",
	back:   "Go back",
	goBack: "Please go back to the page before this one.",
}

var chinese = wording{
	details: map[string]string{
		reasonMissing:     "尚未完成验证。",
		reasonInvalid:     "无法识别验证码。",
		reasonExpired:     "验证码已过期或已被使用。",
		reasonRejected:    "验证码未通过。",
		reasonRateLimited: "尝试次数过多。",
		reasonUnavailable: "暂时无法校验验证码。",
	},
	wait:   "请在 %d 秒后重试。",
	retry:  "请重新完成验证。",
	later:  "请稍后再试。",
	final:  "重试也无法通过。",
	script: "验证码需要 JavaScript，请启用。",
	title:  "验证码",
	back:   "返回",
	goBack: "请返回上一页。",
}

// languages are those of the wordings, the default one first.
var languages = language.NewMatcher([]language.Tag{language.English, language.SimplifiedChinese})

// WriteRejection answers r with the rejection of o.Action, as
// application/problem+json (RFC 9457) with the members reason and retry, or as
// a plain HTML page where the Accept header prefers text/html, in English or,
// where Accept-Language prefers it, in Chinese. Neither says what the service
// said. It sets Cache-Control, Vary and, where the Action has one, Retry-After;
// a HEAD has no body. For ClientCanceled it writes the status alone: nobody
// reads more.
//
// It is what a Config without OnReject uses. It always rejects, also an Outcome
// that is Allowed; what o.Action leaves out, or all of it, is the default.
func WriteRejection(w http.ResponseWriter, r *http.Request, o Outcome) {
	a := o.rejection()
	if a.Status < 400 || a.Status > 599 {
		a.Status = http.StatusForbidden
	}
	h := w.Header()
	for _, name := range []string{"Content-Length", "Content-Encoding", "Etag", "Last-Modified"} {
		h.Del(name) // of the page that this one replaces
	}
	h.Set("Cache-Control", "no-store")
	seconds := int64(max(a.RetryAfter+time.Second-1, 0) / time.Second)
	if seconds > 0 {
		h.Set("Retry-After", strconv.FormatInt(seconds, 10))
	}
	if o.Code == ClientCanceled {
		w.WriteHeader(a.Status)
		return
	}

	words, lang := english, "en"
	if prefersChinese(r.Header.Values("Accept-Language")) {
		words, lang = chinese, "zh-CN"
	}
	h.Add("Vary", "Accept")
	h.Add("Vary", "Accept-Language")
	h.Set("Content-Language", lang)
	h.Set("X-Content-Type-Options", "nosniff")
	var body []byte
	if prefersHTML(r.Header.Values("Accept")) {
		h.Set("Content-Type", "text/html; charset=utf-8")
		body = words.page(r, lang, words.detail(a, seconds))
	} else {
		h.Set("Content-Type", "application/problem+json")
		title := http.StatusText(a.Status)
		if title == "" {
			title = "Rejected"
		}
		p := problem{"about:blank", title, a.Status, words.detail(a, seconds), a.Reason, a.Retry}
		body, _ = json.Marshal(p) // strings, a number and a bool
		body = append(body, '\n')
	}
	w.WriteHeader(a.Status)
	if r.Method != http.MethodHead {
		w.Write(body) // an error is the client's going away
	}
}

// rejection returns the complete rejection for o.
func (o Outcome) rejection() Action {
	a := o.Action
	if a == (Action{}) {
		a = byDefault(o.Code)
	}
	return a.rejection(o.Code)
}

// detail says what happened and what helps.
func (words wording) detail(a Action, seconds int64) string {
	detail := words.details[a.Reason]
	if detail == "" {
		detail = words.details[reasonRejected]
	}
	switch {
	case seconds > 0:
		return detail + words.space + fmt.Sprintf(words.wait, seconds)
	case a.Retry:
		return detail + words.space + words.retry
	case a.Reason == reasonUnavailable || a.Reason == reasonRateLimited:
		return detail + words.space + words.later
	}
	return detail + words.space + words.final
}

func (words wording) page(r *http.Request, lang, detail string) []byte {
	back := "<p>" + words.goBack + "</p>"
	referer := r.Referer()
	if len(referer) > maxReferer {
		referer = ""
	}
	from, err := url.Parse(referer)
	isOurs := err == nil && from.Host == r.Host
	if isOurs && strings.HasPrefix(from.Path, "/") && !strings.HasPrefix(from.Path, "//") {
		back = `<p><a href="` + html.EscapeString(from.RequestURI()) + `">` + words.back + `</a></p>`
	}
	return []byte(`<!DOCTYPE html>
<html lang="` + lang + `">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>` + words.title + `</title>
<style>body { font: 1.125rem/1.75 system-ui, sans-serif; max-width: 36rem; margin: 3rem auto; padding: 0 1rem }
a { display: inline-block; padding: .5rem 0 }</style>
</head>
<body>
<main>
<h1>` + words.title + `</h1>
<p role="alert">` + html.EscapeString(detail) + `</p>
<noscript><p>` + words.script + `</p></noscript>
` + back + `
</main>
</body>
</html>
`)
}

// prefersHTML reports whether text/html has a higher weight than JSON in the
// Accept header (RFC 9110, section 12.5.1): a browser's navigation, while fetch
// and curl send */*.
func prefersHTML(accept []string) bool {
	var html, problem, plain preference
	for mediaRange, weight := range weighted(accept, maxAccept) {
		kind, subtype, _ := strings.Cut(strings.ToLower(mediaRange), "/")
		html.consider(kind, subtype, "text", "html", weight)
		problem.consider(kind, subtype, "application", "problem+json", weight)
		plain.consider(kind, subtype, "application", "json", weight)
	}
	return html.weight > max(problem.weight, plain.weight)
}

// A preference is the weight of a media type: that of the most specific range
// that it is in.
type preference struct{ specific, weight int }

// consider takes the range kind/subtype into account if it holds
// wantKind/wantSubtype.
func (p *preference) consider(kind, subtype, wantKind, wantSubtype string, weight int) {
	specific := 0
	switch {
	case kind == wantKind && subtype == wantSubtype:
		specific = 3
	case kind == wantKind && subtype == "*":
		specific = 2
	case kind == "*" && subtype == "*":
		specific = 1
	}
	if specific > p.specific {
		*p = preference{specific, weight}
	}
}

// The longest headers that are looked at, in bytes. A browser's Accept and
// Accept-Language have about half of it. What is longer is as if it were not
// there: a request must not cost more than its bytes are worth, and over HTTP/2
// a byte can stand for 4 KB of a header.
const (
	maxAccept         = 512
	maxAcceptLanguage = 256
	maxReferer        = 2048
)

// weighted returns the elements of the header with the given values and their
// weights in thousandths, or none if together the values have more than limit
// bytes.
func weighted(values []string, limit int) iter.Seq2[string, int] {
	return func(yield func(string, int) bool) {
		for _, value := range values {
			if limit -= len(value) + 1; limit < 0 {
				return
			}
		}
		for _, value := range values {
			for element := range strings.SplitSeq(value, ",") {
				name, params, _ := strings.Cut(element, ";")
				name = strings.TrimSpace(name)
				if name != "" && !yield(name, weightIn(params)) {
					return
				}
			}
		}
	}
}

// weightIn returns the weight among the parameters of an element in thousandths:
// 1000 if there is none, and 0 if it is not of the form that RFC 9110, section
// 12.4.2, has.
func weightIn(params string) int {
	for param := range strings.SplitSeq(params, ";") {
		if name, value, _ := strings.Cut(strings.TrimSpace(param), "="); strings.EqualFold(name, "q") {
			return qvalue(value)
		}
	}
	return 1000
}

// qvalue returns a weight in thousandths. Its form has at most three decimals,
// and nothing else is read: the exponents that strconv.ParseFloat takes can make
// it slow.
func qvalue(s string) int {
	whole, decimals, _ := strings.Cut(s, ".")
	if whole != "0" && whole != "1" || len(decimals) > 3 {
		return 0
	}
	n, err := strconv.ParseUint(whole+(decimals + "000")[:3], 10, 32)
	if err != nil || n > 1000 {
		return 0
	}
	return int(n)
}

// prefersChinese reports whether the Accept-Language header prefers Chinese to
// English. The matcher gets the weights as they were read here, because it would
// read the client's by strconv.ParseFloat.
func prefersChinese(acceptLanguage []string) bool {
	var wanted strings.Builder
	for tag, weight := range weighted(acceptLanguage, maxAcceptLanguage) {
		if weight > 0 {
			fmt.Fprintf(&wanted, "%s;q=%d.%03d,", tag, weight/1000, weight%1000)
		}
	}
	_, i := language.MatchStrings(languages, wanted.String())
	return i == 1
}
