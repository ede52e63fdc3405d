package alicaptcha

import (
	"bufio"
	"encoding/json"
	"fmt"
	"html"
	"iter"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"golang.org/x/text/language"
)

// A Problem is what the client is told about a rejection. Its JSON is the body of
// application/problem+json (RFC 9457) with the members reason and retry, and its
// texts are in the language that the request prefers. None of it depends on the
// service's verdict beyond what the Action says.
type Problem struct {
	Type     string `json:"type"`               // always "about:blank": Title is the status's own
	Title    string `json:"title"`              // the text of Status
	Status   int    `json:"status"`             // 400 to 599
	Detail   string `json:"detail"`             // what happened and what helps, for a person to read
	Instance string `json:"instance,omitempty"` // Outcome.Reference, as urn:uuid:…
	Reason   string `json:"reason"`             // Action.Reason
	Retry    bool   `json:"retry"`              // Action.Retry

	RetryAfter time.Duration `json:"-"` // Action.RetryAfter in whole seconds, rounded up
	Language   string        `json:"-"` // of Detail: "en" or "zh-CN"
}

// NewProblem returns what [WriteRejection] would tell the client of r about the
// rejection of o, for an OnReject that writes an answer of its own. Fields that
// o.Action leaves empty have the default for o.Code.
func NewProblem(r *http.Request, o Outcome) Problem {
	a := o.rejection()
	if a.Status < 400 || a.Status > 599 {
		a.Status = http.StatusForbidden
	}
	p := Problem{
		Type: "about:blank", Title: http.StatusText(a.Status), Status: a.Status, Reason: a.Reason, Retry: a.Retry,
		RetryAfter: max(a.RetryAfter+time.Second-1, 0).Truncate(time.Second), Language: "en",
	}
	if p.Title == "" {
		p.Title = "Rejected"
	}
	if o.Reference != "" {
		p.Instance = instancePrefix + o.Reference
	}
	if prefersChinese(r.Header.Values("Accept-Language")) {
		p.Language = "zh-CN"
	}
	p.Detail = p.wording().detail(a, int64(p.RetryAfter/time.Second))
	return p
}

const instancePrefix = "urn:uuid:"

// SetHeader sets the headers of the rejection in h: Cache-Control, Retry-After if
// p.RetryAfter is not zero, Captcha-Reference if p.Instance is not empty,
// Content-Language and X-Content-Type-Options. It adds Accept-Language to Vary, and
// removes what belongs to another answer: Content-Length, Content-Encoding, ETag and
// Last-Modified. Content-Type is left to the caller.
func (p Problem) SetHeader(h http.Header) {
	for _, name := range []string{"Content-Length", "Content-Encoding", "Etag", "Last-Modified"} {
		h.Del(name)
	}
	h.Set("Cache-Control", "no-store")
	if p.RetryAfter > 0 {
		h.Set("Retry-After", strconv.FormatInt(int64(p.RetryAfter/time.Second), 10))
	}
	if reference := strings.TrimPrefix(p.Instance, instancePrefix); reference != "" {
		h.Set("Captcha-Reference", reference)
	}
	h.Add("Vary", "Accept-Language")
	h.Set("Content-Language", p.Language)
	h.Set("X-Content-Type-Options", "nosniff")
}

// A wording is what a rejection says to the person who reads it.
type wording struct {
	details map[string]string // by reason
	wait    string            // with the seconds, if they are few
	minutes string            // with the minutes, if there are at least two
	hours   string            // with the hours
	hour    string            // for one hour
	missing string            // if no param was sent
	retry   string            // if a new challenge may succeed
	later   string            // if the client is not the cause
	final   string            // if a new challenge will not succeed
	space   string            // between two sentences
	script  string            // for a browser without JavaScript
	title   string
	back    string // the text of the link back
	goBack  string // if there is no link
	help    string // before the reference
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
	wait:    "You can try again in %d s.",
	minutes: "Please wait at least %d minutes before you try again.",
	hours:   "Please wait at least %d hours before you try again.",
	hour:    "Please wait at least an hour before you try again.",
	missing: "Please complete it and try again.",
	retry:   "Please solve a new one.",
	later:   "Please try again later.",
	final:   "Trying again will not help.",
	space:   " ",
	script:  "The captcha needs JavaScript. Please turn it on.",
	title:   "Captcha",
	back:    "Go back",
	goBack:  "Please go back to the page before this one.",
	help:    "If you need help, tell us this:",
}

var chinese = wording{
	details: map[string]string{
		reasonMissing:     "尚未完成验证。",
		reasonInvalid:     "无法识别验证信息。",
		reasonExpired:     "验证已过期或已被使用。",
		reasonRejected:    "验证未通过。",
		reasonRateLimited: "尝试次数过多。",
		reasonUnavailable: "暂时无法完成验证。",
	},
	wait:    "请在 %d 秒后重试。",
	minutes: "请至少等待 %d 分钟后再试。",
	hours:   "请至少等待 %d 小时后再试。",
	hour:    "请至少等待 1 小时后再试。",
	missing: "请先完成验证。",
	retry:   "请重新完成验证。",
	later:   "请稍后再试。",
	final:   "重试也无法通过。",
	script:  "验证需要 JavaScript，请启用。",
	title:   "安全验证",
	back:    "返回",
	goBack:  "请返回上一页。",
	help:    "如需帮助，请提供此编号：",
}

// languages are those of the wordings, the default one first.
var languages = language.NewMatcher([]language.Tag{language.English, language.SimplifiedChinese})

// WriteRejection answers r with the rejection of o: as a [Problem] in
// application/problem+json, or as a plain HTML page if the Accept header prefers
// text/html. Both are in English, or in Chinese if Accept-Language prefers it, and
// neither repeats what the service said. The headers are those of
// [Problem.SetHeader], and Accept is in Vary. A HEAD request gets no body. For
// ClientCanceled only the status and the headers are written, because nobody would
// read a body.
//
// It is what a Config without OnReject uses. It always rejects, even if o.Allowed is
// true.
func WriteRejection(w http.ResponseWriter, r *http.Request, o Outcome) {
	p := NewProblem(r, o)
	h := w.Header()
	if o.Code == ClientCanceled {
		p.SetHeader(h)
		w.WriteHeader(p.Status)
		return
	}
	h.Add("Vary", "Accept")
	p.SetHeader(h)
	var body []byte
	if prefersHTML(r.Header.Values("Accept")) {
		h.Set("Content-Type", "text/html; charset=utf-8")
		body = p.page(r)
	} else {
		h.Set("Content-Type", "application/problem+json")
		body, _ = json.Marshal(p) // strings, a number and a bool
		body = append(body, '\n')
	}
	w.WriteHeader(p.Status)
	if r.Method != http.MethodHead {
		w.Write(body) // an error means that the client has gone away
	}
}

// A rejectionWriter is the ResponseWriter that OnReject gets. It knows whether
// something was written, because net/http sends 200 if nothing is.
type rejectionWriter struct {
	http.ResponseWriter
	isWritten bool
}

func (w *rejectionWriter) WriteHeader(status int) {
	w.isWritten = w.isWritten || status >= 200
	w.ResponseWriter.WriteHeader(status)
}

func (w *rejectionWriter) Write(p []byte) (int, error) {
	w.isWritten = true
	return w.ResponseWriter.Write(p)
}

// Flush and FlushError send the headers, and Hijack takes the connection.
func (w *rejectionWriter) Flush() { w.FlushError() }

func (w *rejectionWriter) FlushError() error {
	err := http.NewResponseController(w.ResponseWriter).Flush()
	w.isWritten = w.isWritten || err == nil
	return err
}

func (w *rejectionWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, buf, err := http.NewResponseController(w.ResponseWriter).Hijack()
	w.isWritten = w.isWritten || err == nil
	return conn, buf, err
}

// Unwrap is for [http.ResponseController].
func (w *rejectionWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// rejection returns the complete rejection for o.
func (o Outcome) rejection() Action {
	a := o.Action
	if a == (Action{}) {
		a = byDefault(o.Code)
	}
	return a.rejection(o.Code)
}

// detail says what happened and what helps.
func (words *wording) detail(a Action, seconds int64) string {
	detail := words.details[a.Reason]
	if detail == "" {
		detail = words.details[reasonRejected]
	}
	switch {
	case seconds > 0:
		return detail + words.space + words.waitFor(seconds)
	case a.Retry && a.Reason == reasonMissing:
		return detail + words.space + words.missing
	case a.Retry:
		return detail + words.space + words.retry
	case a.Reason == reasonUnavailable || a.Reason == reasonRateLimited:
		return detail + words.space + words.later
	}
	return detail + words.space + words.final
}

// waitFor says how long to wait. A long time is rounded up, and may not be long enough: for
// F010 and F011 it is the shorter one of two windows.
func (words *wording) waitFor(seconds int64) string {
	switch {
	case seconds < 120:
		return fmt.Sprintf(words.wait, seconds)
	case seconds == 3600:
		return words.hour
	case seconds <= 7200-60:
		return fmt.Sprintf(words.minutes, (seconds+59)/60)
	}
	return fmt.Sprintf(words.hours, (seconds+3599)/3600)
}

func (p Problem) wording() *wording {
	if p.Language == "zh-CN" {
		return &chinese
	}
	return &english
}

// page returns p as an HTML page.
func (p Problem) page(r *http.Request) []byte {
	words := p.wording()
	help := ""
	if reference := strings.TrimPrefix(p.Instance, instancePrefix); reference != "" {
		help = "<p><small>" + words.help + "<br>" + html.EscapeString(reference) + "</small></p>\n"
	}
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
<html lang="` + p.Language + `">
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
<p role="alert">` + html.EscapeString(p.Detail) + `</p>
<noscript><p>` + words.script + `</p></noscript>
` + back + `
` + help + `</main>
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

// A preference is the weight of a media type, taken from the most specific range that
// matches it.
type preference struct{ specific, weight int }

// consider takes the range kind/subtype into account if it matches wantKind/wantSubtype.
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

// The longest headers that are examined, in bytes. A browser's Accept and
// Accept-Language are about half as long. Longer ones are ignored, because over HTTP/2
// a single byte can stand for 4 KB of a header.
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
// 1000 if there is none, and 0 if it does not have the form of RFC 9110, section
// 12.4.2.
func weightIn(params string) int {
	for param := range strings.SplitSeq(params, ";") {
		if name, value, _ := strings.Cut(strings.TrimSpace(param), "="); strings.EqualFold(name, "q") {
			return qvalue(value)
		}
	}
	return 1000
}

// qvalue returns a weight in thousandths. It accepts at most three decimals and nothing
// else, because strconv.ParseFloat is slow on some of the exponents that it accepts.
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
// English. The matcher is given the weights as they were read here, because it would
// read the client's with strconv.ParseFloat.
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
