package alicaptcha_test

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

// posted returns a request with that Content-Type, or none if it is empty.
func posted(contentType, body string) *http.Request {
	r := httptest.NewRequest("POST", "/login", strings.NewReader(body))
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	return r
}

// Each way in which a param gets lost has a text of its own, and none repeats what a
// client sent.
func TestWhyTheParamIsMissing(t *testing.T) {
	t.Parallel()
	const form, multipartForm = "application/x-www-form-urlencoded", "multipart/form-data; boundary=b"
	const secret = "what-the-client-sent"
	part := func(disposition, value string) string {
		return "--b\r\nContent-Disposition: form-data; " + disposition + "\r\n\r\n" + value + "\r\n--b--\r\n"
	}
	headerOnly := []alicaptcha.Extractor{alicaptcha.FromHeader("X-Captcha")}
	formOnly := []alicaptcha.Extractor{alicaptcha.FromForm("captcha")}
	jsonOnly := []alicaptcha.Extractor{alicaptcha.FromJSON("captcha")}
	pointer := []alicaptcha.Extractor{alicaptcha.FromJSON("/security/captcha")}
	readBefore := posted("application/json", `{"captchaVerifyParam":"`+secret+`"}`)
	io.Copy(io.Discard, readBefore.Body)
	readInPart := posted(form, "captchaVerifyParam="+secret+"&a=1")
	io.ReadFull(readInPart.Body, make([]byte, 30))
	taken := posted("application/json", `{"captchaVerifyParam":"`+secret+`"}`)
	taken.Body = http.NoBody
	chunked := posted("application/json", "")
	chunked.Body, chunked.ContentLength = io.NopCloser(strings.NewReader("")), -1
	wrapped := httptest.NewRequest("GET", "/login", nil)
	wrapped.Body = http.MaxBytesReader(nil, wrapped.Body, 1)
	parsed := posted(form, "captcha_verify_param="+secret)
	require.NoError(t, parsed.ParseForm())
	parsedMultipart := posted(multipartForm, part(`name="captchaVerifyParam"`, ""))
	require.NoError(t, parsedMultipart.ParseMultipartForm(1<<10))
	inQuery := posted(form, "user=a")
	inQuery.URL.RawQuery = url.Values{"captchaVerifyParam": {secret}}.Encode()
	long := `{"a":"` + strings.Repeat("x", 3000) + `","login":{"captchaVerifyParam":"` + secret

	texts := map[string]bool{}
	for _, row := range []struct {
		name       string
		r          *http.Request
		extractors []alicaptcha.Extractor
		want       string
	}{
		{"in the query", inQuery, nil, "the param is in the URL's query, which is not searched"},
		{"no body", httptest.NewRequest("GET", "/login", nil), nil,
			"the request has no body, and the param is in no header that is searched"},
		{"no body in a wrapper", wrapped, nil,
			"the request has no body or one without a Content-Type, and the param is in no header that is searched"},
		{"read before", readBefore, nil, "the body was read before it came to the gate"},
		{"read in part", readInPart, nil, "the body was read before it came to the gate"},
		{"read before and put away", taken, nil, "the body was read before it came to the gate"},
		{"chunked and empty", chunked, nil, "the body is empty, or was read before it came to the gate"},
		{"header only", posted("application/json", `{"captcha":"`+secret+`"}`), headerOnly,
			"the param is in no header that is searched, and FromHeader does not search the body"},
		{"no type", posted("", `{"captchaVerifyParam":"`+secret+`"}`), nil, "the body has no Content-Type"},
		{"text/plain", posted("text/plain;charset=UTF-8", `{"captchaVerifyParam":"`+secret+`"}`), nil,
			"the body is text/plain, which is neither a form nor JSON"},
		{"a type that the client made up", posted("text/"+secret, "a"), nil,
			"the body's Content-Type is neither that of a form nor that of JSON"},
		{"JSON for a form's Extractor", posted("application/json", `{"captcha":"`+secret+`"}`), formOnly,
			"the body is JSON, which FromForm does not search"},
		{"a form for JSON's Extractor", posted(form, "captcha="+secret), jsonOnly,
			"the body is a form, which FromJSON does not search"},
		{"JSON that says it is a form", posted(form, ` {"captchaVerifyParam":"`+secret+`"}`), nil,
			"the body looks like JSON, but its Content-Type is application/x-www-form-urlencoded"},
		{"nested", posted("application/json", `{"login":{"captchaVerifyParam":"`+secret+`"}}`), nil,
			"the field is elsewhere in the JSON: name its place by a JSON Pointer"},
		{"nested in an array", posted("application/json", `{"a":[1,{"CaptchaVerifyParam":"`+secret+`"}]}`), nil,
			"the field is elsewhere in the JSON: name its place by a JSON Pointer"},
		{"not where the pointer leads", posted("application/json", `{"captcha":"`+secret+`"}`), pointer,
			"the field is elsewhere in the JSON: name its place by a JSON Pointer"},
		{"snake case", posted("application/json", `{"captcha_verify_param":"`+secret+`"}`), nil,
			"the body has a field like CaptchaVerifyParam, but its name is spelled differently"},
		{"another case", posted(form, "captchaverifyparam="+secret), nil,
			"the body has a field like CaptchaVerifyParam, but its name is spelled differently"},
		{"in brackets", posted(form, "login%5BcaptchaVerifyParam%5D="+secret), nil,
			"the body has a field like CaptchaVerifyParam, but its name is spelled differently"},
		{"another case in multipart", posted(multipartForm, part(`name="captcha-verify-param"`, secret)), nil,
			"the body has a field like CaptchaVerifyParam, but its name is spelled differently"},
		{"parsed before", parsed, nil,
			"the body has a field like CaptchaVerifyParam, but its name is spelled differently"},
		{"empty in JSON", posted("application/json", `{"captchaVerifyParam":""}`), nil, "the field is empty"},
		{"empty in a form", posted(form, "user=a&captchaVerifyParam="), nil, "the field is empty"},
		{"empty in multipart", posted(multipartForm, part(`name="captchaVerifyParam"`, "")), nil, "the field is empty"},
		{"empty, parsed before", parsedMultipart, nil, "the field is empty"},
		{"a file", posted(multipartForm, part(`name="captchaVerifyParam"; filename="blob"`, secret)), nil,
			"the field is a file"},
		{"not there", posted(form, "user="+secret), nil, "the body has no field of a name that is searched"},
		{"not there, as a value", posted("application/json", `{"a":"captchaVerifyParam","b":["captchaVerifyParam"]}`), nil,
			"the body has no field of a name that is searched"},
		{"cut off where it is looked at", posted("application/json", long+`"}, "b":"`+strings.Repeat("x", 3000)+`"}`), nil,
			"the field is elsewhere in the JSON: name its place by a JSON Pointer"},
	} {
		t.Run(row.name, func(t *testing.T) {
			tr := try(t, alicaptcha.Config{Verifier: passing(), Extractors: row.extractors}, row.r)
			o := tr.outcome(t)
			require.Equal(t, alicaptcha.ParamMissing, o.Code)
			require.EqualError(t, o.Err, "alicaptcha: param_missing: "+row.want)
			require.Contains(t, tr.log.String(), "captcha.error=alicaptcha: param_missing: "+row.want)
			require.NotContains(t, tr.log.String(), secret)
			require.NotContains(t, tr.Body.String(), row.want, "the client is not told")
			texts[row.want] = true
		})
	}
	require.Len(t, texts, 17)

	var many []alicaptcha.Extractor
	for _, field := range []string{"a", "b", "c", "d", "e"} {
		many = append(many, alicaptcha.FromForm(field))
	}
	tr := try(t, alicaptcha.Config{Verifier: passing(), Extractors: many}, posted(form, "x=1"))
	require.EqualError(t, tr.outcome(t).Err, "alicaptcha: param_missing", "nothing is said of so many")
}

// A line about a request has its method and the pattern of its route, and never its URL.
func TestLogHasMethodAndRoute(t *testing.T) {
	t.Parallel()
	log := new(logbook)
	m := newMiddleware(t, alicaptcha.Config{Verifier: alicaptchatest.Passing(), Logger: slog.New(log)})
	mux := http.NewServeMux()
	for _, pattern := range []string{"/users/{id}/login", "PUT /users/{id}/login"} {
		mux.Handle(pattern, m.Handler(http.NotFoundHandler()))
	}
	for _, method := range []string{"POST", "PUT", strings.Repeat("M", 1000)} {
		mux.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(method, "/users/secret-id/login?q=secret", nil))
	}
	lines := strings.Split(strings.TrimSpace(log.String()), "\n")
	require.Len(t, lines, 3)
	require.Contains(t, lines[0], " http.request.method=POST http.route=/users/{id}/login ")
	require.Contains(t, lines[1], " http.request.method=PUT http.route=/users/{id}/login ")
	require.Contains(t, lines[2], " http.request.method="+strings.Repeat("M", 128)+" http.route=")
	require.NotContains(t, log.String(), "secret")
}
