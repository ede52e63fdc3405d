package alicaptcha

import (
	"encoding/json"
	"html"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
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

// details says each reason in words for the person who reads them.
var details = map[string]string{
	reasonMissing:     "Please complete the captcha and send the form again.",
	reasonInvalid:     "The captcha could not be read. Please reload the page and solve it again.",
	reasonExpired:     "The captcha has expired or was used already. Please solve a new one.",
	reasonRejected:    "The captcha was not passed.",
	reasonRateLimited: "There were too many attempts. Please wait a minute before you try again.",
	reasonUnavailable: "The captcha cannot be checked right now. Please try again later.",
}

// WriteRejection answers r with the rejection of o.Action, as
// application/problem+json (RFC 9457) with the members reason and retry, or as
// a plain HTML page where the Accept header prefers text/html. Neither says
// what the service said. It sets Cache-Control, Vary and, where the Action has
// one, Retry-After; a HEAD has no body. For ClientCanceled it writes the status
// alone: nobody reads more.
//
// It is what a Config without OnReject uses. It always rejects, also an Outcome
// that is Allowed; what o.Action leaves out, or all of it, is the default.
func WriteRejection(w http.ResponseWriter, r *http.Request, o Outcome) {
	var p Policy
	if o.Action != (Action{}) {
		p = Policy{o.Code: o.Action}
	}
	a := p.action(o.Code, false)
	if a.Status < 400 || a.Status > 599 {
		a.Status = http.StatusForbidden
	}
	h := w.Header()
	for _, name := range []string{"Content-Length", "Content-Encoding", "Etag", "Last-Modified"} {
		h.Del(name) // of the page that this one replaces
	}
	h.Set("Cache-Control", "no-store")
	if a.RetryAfter > 0 {
		seconds := (a.RetryAfter + time.Second - 1) / time.Second
		h.Set("Retry-After", strconv.FormatInt(int64(seconds), 10))
	}
	if o.Code == ClientCanceled {
		w.WriteHeader(a.Status)
		return
	}

	detail := details[a.Reason]
	if detail == "" {
		detail = details[reasonRejected]
	}
	h.Add("Vary", "Accept")
	h.Set("X-Content-Type-Options", "nosniff")
	var body []byte
	if prefersHTML(r.Header.Values("Accept")) {
		h.Set("Content-Type", "text/html; charset=utf-8")
		body = rejectionPage(r, detail)
	} else {
		h.Set("Content-Type", "application/problem+json")
		title := http.StatusText(a.Status)
		if title == "" {
			title = "Rejected"
		}
		body, _ = json.Marshal(problem{"about:blank", title, a.Status, detail, a.Reason, a.Retry}) // strings, a number and a bool
		body = append(body, '\n')
	}
	w.WriteHeader(a.Status)
	if r.Method != http.MethodHead {
		w.Write(body) // an error is the client's going away
	}
}

func rejectionPage(r *http.Request, detail string) []byte {
	back := "<p>Go back to the page before this one to try again.</p>"
	if from, err := url.Parse(r.Referer()); err == nil && from.Host == r.Host && strings.HasPrefix(from.Path, "/") && !strings.HasPrefix(from.Path, "//") {
		back = `<p><a href="` + html.EscapeString(from.RequestURI()) + `">Go back and try again</a></p>`
	}
	return []byte(`<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Captcha</title>
</head>
<body>
<h1>Captcha</h1>
<p role="alert">` + html.EscapeString(detail) + `</p>
` + back + `
</body>
</html>
`)
}

// prefersHTML reports whether text/html has a higher weight than JSON in the
// Accept header (RFC 9110, section 12.5.1): a browser's navigation, while fetch
// and curl send */*.
func prefersHTML(accept []string) bool {
	return quality(accept, "text", "html") > max(
		quality(accept, "application", "problem+json"),
		quality(accept, "application", "json"))
}

// quality returns the weight of a media type: that of the most specific range
// that it is in.
func quality(accept []string, kind, subtype string) float64 {
	q, best := 0.0, 0
	for part := range strings.SplitSeq(strings.Join(accept, ","), ",") {
		mediaRange, params, _ := strings.Cut(part, ";")
		rangeKind, rangeSubtype, _ := strings.Cut(strings.ToLower(strings.TrimSpace(mediaRange)), "/")
		specific := 0
		switch {
		case rangeKind == kind && rangeSubtype == subtype:
			specific = 3
		case rangeKind == kind && rangeSubtype == "*":
			specific = 2
		case rangeKind == "*" && rangeSubtype == "*":
			specific = 1
		}
		if specific <= best {
			continue
		}
		best, q = specific, 1
		for param := range strings.SplitSeq(params, ";") {
			if name, value, _ := strings.Cut(strings.TrimSpace(param), "="); strings.EqualFold(name, "q") {
				q, _ = strconv.ParseFloat(value, 64) // 0 if it is no number
			}
		}
	}
	return q
}
