package alicaptcha_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
)

const (
	formType      = "application/x-www-form-urlencoded"
	jsonType      = "application/json"
	multipartType = "multipart/form-data; boundary=b"
)

var errBoom = errors.New("boom")

// newGateAndSpy returns a Middleware with these extractors (none: the default ones)
// and the Verifier behind it.
func newGateAndSpy(tb testing.TB, change func(*alicaptcha.Config), extractors ...alicaptcha.Extractor) (*alicaptcha.Middleware, *spy) {
	tb.Helper()
	v := passing()
	cfg := alicaptcha.Config{
		Verifier:   v,
		SceneID:    "scene",
		Extractors: extractors,
		Logger:     slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&cfg)
	}
	m, err := alicaptcha.New(cfg)
	require.NoError(tb, err)
	return m, v
}

func bodyRequest(contentType string, body io.Reader) *http.Request {
	r := httptest.NewRequest(http.MethodPost, "/", body)
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	return r
}

// crlf writes multipart bodies as they are on the wire.
func crlf(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") }

// formPart returns a part of a body of type multipartType.
func formPart(headers, value string) string {
	return crlf("--b\nContent-Disposition: form-data; "+headers+"\n\n") + value + "\r\n"
}

const formEnd = "--b--\r\n"

// deliveries are the ways in which a body may arrive.
var deliveries = map[string]func(string) io.Reader{
	"whole":           func(s string) io.Reader { return strings.NewReader(s) },
	"unknown length":  func(s string) io.Reader { return io.MultiReader(strings.NewReader(s)) },
	"byte by byte":    func(s string) io.Reader { return iotest.OneByteReader(strings.NewReader(s)) },
	"data and EOF":    func(s string) io.Reader { return iotest.DataErrReader(strings.NewReader(s)) },
	"halves":          func(s string) io.Reader { return iotest.HalfReader(strings.NewReader(s)) },
	"with empty read": func(s string) io.Reader { return &stutterReader{src: strings.NewReader(s)} },
}

// An stutterReader gives nothing on every other Read, as io.Reader allows.
type stutterReader struct {
	src   io.Reader
	quiet bool
}

func (s *stutterReader) Read(p []byte) (int, error) {
	if s.quiet = !s.quiet; s.quiet {
		return 0, nil
	}
	return s.src.Read(p)
}

// An extractCase is a body and what is to be found in it.
type extractCase struct {
	name        string
	contentType string
	body        string
	code        alicaptcha.Code // "": found
	param       string

	header     http.Header
	target     string
	extractors []alicaptcha.Extractor
	maxBody    int
	maxParam   int
}

func runCases(t *testing.T, cases []extractCase) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			for delivery, reader := range deliveries {
				if delivery == "byte by byte" && len(c.body) > 32<<10 {
					continue // the race detector would take seconds
				}
				c.run(t, delivery, reader)
			}
		})
	}
}

var statusOf = map[alicaptcha.Code]int{
	alicaptcha.T001:           http.StatusOK,
	alicaptcha.ParamMissing:   http.StatusBadRequest,
	alicaptcha.ParamMalformed: http.StatusBadRequest,
	alicaptcha.ParamTooLarge:  http.StatusRequestEntityTooLarge,
}

func (c extractCase) run(t *testing.T, delivery string, reader func(string) io.Reader) {
	t.Helper()
	want := c.code
	var asked []string
	if want == "" {
		want, asked = alicaptcha.T001, []string{c.param}
	}
	config := func(cfg *alicaptcha.Config) {
		cfg.MaxBodyBytes, cfg.MaxParamBytes = c.maxBody, c.maxParam
	}
	request := func() *http.Request {
		r := bodyRequest(c.contentType, reader(c.body))
		maps.Copy(r.Header, c.header)
		if c.target != "" {
			r.URL, _ = url.Parse(c.target)
		}
		return r
	}
	replays := func(way string, r *http.Request) {
		require.Nil(t, r.Form, "%s, %s", delivery, way)
		require.Nil(t, r.PostForm, "%s, %s", delivery, way)
		require.Nil(t, r.MultipartForm, "%s, %s", delivery, way)
		got, err := io.ReadAll(r.Body)
		require.NoError(t, err, "%s, %s", delivery, way)
		require.Equal(t, len(c.body), len(got), "%s, %s: length of the body", delivery, way)
		require.True(t, c.body == string(got), "%s, %s: the body is another", delivery, way)
	}

	gate, verifier := newGateAndSpy(t, config, c.extractors...)
	r := request()
	o := gate.Check(r)
	require.Equal(t, want, o.Code, "%s, Check", delivery)
	require.Equal(t, asked, verifier.params(), "%s, Check", delivery)
	replays("Check", r)

	gate, verifier = newGateAndSpy(t, config, c.extractors...)
	w := httptest.NewRecorder()
	called := false
	gate.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		called = true
		replays("Handler", r)
	})).ServeHTTP(w, request())
	require.Equal(t, statusOf[want], w.Code, "%s, Handler", delivery)
	require.Equal(t, c.code == "", called, "%s, Handler", delivery)
	require.Equal(t, asked, verifier.params(), "%s, Handler", delivery)

	gate, verifier = newGateAndSpy(t, config, c.extractors...)
	w = httptest.NewRecorder()
	gate.Deferred(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		replays("Deferred", r)
		require.Empty(t, verifier.params(), "%s, before Require", delivery)
		require.Equal(t, c.code == "", alicaptcha.Require(w, r), "%s, Deferred", delivery)
	})).ServeHTTP(w, request())
	require.Equal(t, statusOf[want], w.Code, "%s, Deferred", delivery)
	require.Equal(t, asked, verifier.params(), "%s, Deferred", delivery)
}

func TestExtractHeader(t *testing.T) {
	t.Parallel()
	const both = `{"captchaVerifyParam":"body"}`
	header := func(values ...string) http.Header { return http.Header{"Captcha-Verify-Param": values} }
	runCases(t, []extractCase{
		{name: "alone", header: header("x"), param: "x"},
		{name: "before the body", contentType: jsonType, body: both, header: header("x"), param: "x"},
		{name: "body not looked at", contentType: jsonType, body: "}", header: header("x"), param: "x"},
		{name: "first of two", header: header("x", "y"), param: "x"},
		{name: "empty", contentType: jsonType, body: both, header: header(""), param: "body"},
		{name: "not UTF-8", header: header("a\xffb"), code: alicaptcha.ParamMalformed},
		{name: "at the limit", header: header("12345678"), maxParam: 8, param: "12345678"},
		{name: "over the limit", header: header("123456789"), maxParam: 8, code: alicaptcha.ParamTooLarge},
		{name: "at the default limit", header: header(strings.Repeat("x", 32<<10)), param: strings.Repeat("x", 32<<10)},
		{name: "over the default limit", header: header(strings.Repeat("x", 32<<10+1)), code: alicaptcha.ParamTooLarge},
		{name: "any spelling", header: http.Header{"X-Token": {"x"}}, extractors: []alicaptcha.Extractor{alicaptcha.FromHeader("x-tOKEN")}, param: "x"},
		{name: "another", header: http.Header{"X-Token": {"x"}}, code: alicaptcha.ParamMissing},
	})
}

func TestExtractContentType(t *testing.T) {
	t.Parallel()
	const (
		inForm = "captchaVerifyParam=x"
		inJSON = `{"captchaVerifyParam":"x"}`
	)
	inMult := formPart(`name="captchaVerifyParam"`, "x") + formEnd
	formOnly := []alicaptcha.Extractor{alicaptcha.FromForm("captchaVerifyParam")}
	jsonOnly := []alicaptcha.Extractor{alicaptcha.FromJSON("captchaVerifyParam")}
	encoded := func(values ...string) http.Header { return http.Header{"Content-Encoding": values} }
	runCases(t, []extractCase{
		{name: "form", contentType: formType, body: inForm, param: "x"},
		{name: "form with parameter", contentType: formType + "; charset=UTF-8", body: inForm, param: "x"},
		{name: "form in capitals", contentType: "APPLICATION/X-WWW-Form-URLEncoded;Charset=utf-8", body: inForm, param: "x"},
		{name: "form with bad parameter", contentType: formType + "; =", body: inForm, param: "x"},
		{name: "JSON", contentType: jsonType, body: inJSON, param: "x"},
		{name: "JSON with parameter", contentType: "application/json ; charset=utf-8", body: inJSON, param: "x"},
		{name: "JSON in capitals", contentType: "Application/JSON", body: inJSON, param: "x"},
		{name: "problem+json", contentType: "application/problem+json", body: inJSON, param: "x"},
		{name: "vendor type", contentType: "application/vnd.example.v2+JSON; v=1", body: inJSON, param: "x"},
		{name: "multipart", contentType: multipartType, body: inMult, param: "x"},
		{name: "multipart in capitals, quoted", contentType: `Multipart/Form-Data; charset=utf-8; Boundary="b"`, body: inMult, param: "x"},

		{name: "missing", body: inJSON, code: alicaptcha.ParamMissing},
		{name: "missing for a form", body: inForm, code: alicaptcha.ParamMissing},
		{name: "text/plain", contentType: "text/plain", body: inJSON, code: alicaptcha.ParamMissing},
		{name: "text/json", contentType: "text/json", body: inJSON, code: alicaptcha.ParamMissing},
		{name: "image/svg+json", contentType: "image/svg+json", body: inJSON, code: alicaptcha.ParamMissing},
		{name: "jsonp", contentType: "application/jsonp", body: inJSON, code: alicaptcha.ParamMissing},
		{name: "multipart/mixed", contentType: "multipart/mixed; boundary=b", body: inMult, code: alicaptcha.ParamMissing},
		{name: "FromForm on JSON", contentType: jsonType, body: inJSON, extractors: formOnly, code: alicaptcha.ParamMissing},
		{name: "FromJSON on a form", contentType: formType, body: inForm, extractors: jsonOnly, code: alicaptcha.ParamMissing},
		{name: "FromJSON on multipart", contentType: multipartType, body: inMult, extractors: jsonOnly, code: alicaptcha.ParamMissing},
		{name: "JSON said to be a form", contentType: formType, body: inJSON, code: alicaptcha.ParamMissing},
		{name: "form said to be JSON", contentType: jsonType, body: inForm, code: alicaptcha.ParamMalformed},

		{name: "no boundary", contentType: "multipart/form-data", body: inMult, code: alicaptcha.ParamMalformed},
		{name: "empty boundary", contentType: `multipart/form-data; boundary=""`, body: inMult, code: alicaptcha.ParamMalformed},
		{name: "two boundaries", contentType: "multipart/form-data; boundary=b; boundary=c", body: inMult, code: alicaptcha.ParamMalformed},

		{name: "gzip JSON", contentType: jsonType, body: inJSON, header: encoded("gzip"), code: alicaptcha.ParamMalformed},
		{name: "gzip form", contentType: formType, body: inForm, header: encoded("gzip"), code: alicaptcha.ParamMalformed},
		{name: "gzip multipart", contentType: multipartType, body: inMult, header: encoded("GZIP"), code: alicaptcha.ParamMalformed},
		{name: "br", contentType: jsonType, body: inJSON, header: encoded("br"), code: alicaptcha.ParamMalformed},
		{name: "identity, then gzip", contentType: jsonType, body: inJSON, header: encoded("identity", "gzip"), code: alicaptcha.ParamMalformed},
		{name: "identity", contentType: jsonType, body: inJSON, header: encoded("Identity"), param: "x"},
		{name: "empty encoding", contentType: formType, body: inForm, header: encoded(""), param: "x"},
		{name: "gzip of a body that is none of ours", contentType: "text/plain", body: inJSON, header: encoded("gzip"), code: alicaptcha.ParamMissing},
		{name: "gzip, but the param is in the header", contentType: jsonType, body: inJSON,
			header: http.Header{"Content-Encoding": {"gzip"}, "Captcha-Verify-Param": {"h"}}, param: "h"},
	})
}

func TestExtractJSON(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("ab\\u0041\\\"", 3000)
	var longPlain string
	require.NoError(t, json.Unmarshal([]byte(`"`+long+`"`), &longPlain))

	cases := []extractCase{
		{name: "first name", body: `{"captchaVerifyParam":"x"}`, param: "x"},
		{name: "second name", body: `{"CaptchaVerifyParam":"x"}`, param: "x"},
		{name: "the first in the body wins", body: `{"CaptchaVerifyParam":"x","captchaVerifyParam":"y"}`, param: "x"},
		{name: "white space", body: " \r\n\t{ \"a\" : 1 , \"captchaVerifyParam\" \n:\t\"x\" } ", param: "x"},
		{name: "after values of all kinds", body: `{"a":{"b":[1,{"c":null}]},"d":[],"e":-1.5e+9,"f":true,"g":"}\"","captchaVerifyParam":"x"}`, param: "x"},
		{name: "escaped name", body: `{"captcha\u0056erifyParam":"x"}`, param: "x"},
		{name: "name escaped throughout", body: `{"\u0063\u0061\u0070\u0074\u0063\u0068\u0061\u0056\u0065\u0072\u0069\u0066\u0079\u0050\u0061\u0072\u0061\u006D":"x"}`, param: "x"},
		{name: "escaped value", body: `{"captchaVerifyParam":"\u0022\\\/\b\f\n\r\t\ud83d\ude00é"}`, param: "\"\\/\b\f\n\r\t😀é"},
		{name: "long value", body: `{"captchaVerifyParam":"` + long + `"}`, param: longPlain},
		{name: "the value is JSON itself", body: `{"captchaVerifyParam":"{\"sceneId\":\"s\",\"certifyId\":\"c\"}"}`, param: `{"sceneId":"s","certifyId":"c"}`},

		{name: "another case", body: `{"CAPTCHAVERIFYPARAM":"x","captchaverifyparam":"y"}`, code: alicaptcha.ParamMissing},
		{name: "another case before", body: `{"CAPTCHAVERIFYPARAM":"no","captchaVerifyParam":"x"}`, param: "x"},
		{name: "another case after", body: `{"captchaVerifyParam":"x","CAPTCHAVERIFYPARAM":"no"}`, param: "x"},
		{name: "folds to the same", body: `{"captchaVerifyParam\u0000":"no","captchaVerifyParam ":"no"}`, code: alicaptcha.ParamMissing},
		{name: "nested before", body: `{"a":{"captchaVerifyParam":"no"},"captchaVerifyParam":"x"}`, param: "x"},
		{name: "nested only", body: `{"a":{"captchaVerifyParam":"no"},"b":[{"captchaVerifyParam":"no"}]}`, code: alicaptcha.ParamMissing},
		{name: "as a value", body: `{"a":"captchaVerifyParam","b":["captchaVerifyParam","no"]}`, code: alicaptcha.ParamMissing},

		{name: "duplicate", body: `{"captchaVerifyParam":"x","captchaVerifyParam":"no"}`, param: "x"},
		{name: "duplicate, escaped", body: `{"captchaVerifyParam":"x","\u0063aptchaVerifyParam":"no"}`, param: "x"},
		{name: "duplicate after an empty one", body: `{"captchaVerifyParam":"","captchaVerifyParam":"no"}`, code: alicaptcha.ParamMalformed},
		{name: "duplicate of another before", body: `{"a":1,"\u0061":2,"captchaVerifyParam":"x"}`, code: alicaptcha.ParamMalformed},
		{name: "duplicate in an object before", body: `{"a":{"b":1,"b":2},"captchaVerifyParam":"x"}`, code: alicaptcha.ParamMalformed},
		{name: "duplicate of another after", body: `{"captchaVerifyParam":"x","a":1,"a":2}`, param: "x"},

		{name: "null", body: `{"captchaVerifyParam":null}`, code: alicaptcha.ParamMalformed},
		{name: "null, then the other name", body: `{"captchaVerifyParam":null,"CaptchaVerifyParam":"x"}`, code: alicaptcha.ParamMalformed},
		{name: "number", body: `{"captchaVerifyParam":1}`, code: alicaptcha.ParamMalformed},
		{name: "true", body: `{"captchaVerifyParam":true}`, code: alicaptcha.ParamMalformed},
		{name: "false", body: `{"captchaVerifyParam":false}`, code: alicaptcha.ParamMalformed},
		{name: "object", body: `{"captchaVerifyParam":{"captchaVerifyParam":"x"}}`, code: alicaptcha.ParamMalformed},
		{name: "array", body: `{"captchaVerifyParam":["x"]}`, code: alicaptcha.ParamMalformed},
		{name: "no value", body: `{"captchaVerifyParam":}`, code: alicaptcha.ParamMalformed},
		{name: "no colon", body: `{"captchaVerifyParam" "x"}`, code: alicaptcha.ParamMalformed},

		{name: "empty string", body: `{"captchaVerifyParam":""}`, code: alicaptcha.ParamMissing},
		{name: "empty string, then the other name", body: `{"captchaVerifyParam":"","CaptchaVerifyParam":"x"}`, param: "x"},
		{name: "empty object", body: `{}`, code: alicaptcha.ParamMissing},
		{name: "without the field", body: `{"user":"u","password":"p"}`, code: alicaptcha.ParamMissing},
		{name: "empty body", body: "", code: alicaptcha.ParamMissing},
		{name: "white space only", body: " \r\n\t ", code: alicaptcha.ParamMissing},

		{name: "top-level array", body: `[{"captchaVerifyParam":"x"}]`, code: alicaptcha.ParamMalformed},
		{name: "top-level string", body: `"captchaVerifyParam"`, code: alicaptcha.ParamMalformed},
		{name: "top-level null", body: `null`, code: alicaptcha.ParamMalformed},
		{name: "top-level number", body: `1`, code: alicaptcha.ParamMalformed},
		{name: "no JSON", body: `hello`, code: alicaptcha.ParamMalformed},
		{name: "byte order mark", body: "\ufeff" + `{"captchaVerifyParam":"x"}`, code: alicaptcha.ParamMalformed},
		{name: "UTF-16", body: "\xff\xfe{\x00}\x00", code: alicaptcha.ParamMalformed},
		{name: "single quotes", body: `{'captchaVerifyParam':'x'}`, code: alicaptcha.ParamMalformed},
		{name: "comment", body: `{/**/"captchaVerifyParam":"x"}`, code: alicaptcha.ParamMalformed},
		{name: "leading comma", body: `{,"captchaVerifyParam":"x"}`, code: alicaptcha.ParamMalformed},
		{name: "two commas", body: `{"a":1,,"captchaVerifyParam":"x"}`, code: alicaptcha.ParamMalformed},
		{name: "wrong bracket", body: `{"a":[1},"captchaVerifyParam":"x"}`, code: alicaptcha.ParamMalformed},
		{name: "closed by a bracket", body: `{]`, code: alicaptcha.ParamMalformed},
		{name: "leading zero before", body: `{"a":01,"captchaVerifyParam":"x"}`, code: alicaptcha.ParamMalformed},
		{name: "NaN before", body: `{"a":NaN,"captchaVerifyParam":"x"}`, code: alicaptcha.ParamMalformed},
		{name: "raw line feed in the value", body: "{\"captchaVerifyParam\":\"a\nb\"}", code: alicaptcha.ParamMalformed},
		{name: "bad escape in the value", body: `{"captchaVerifyParam":"\x41"}`, code: alicaptcha.ParamMalformed},
		{name: "not UTF-8", body: "{\"captchaVerifyParam\":\"a\xffb\"}", code: alicaptcha.ParamMalformed},
		{name: "overlong UTF-8", body: "{\"captchaVerifyParam\":\"\xc0\x80\"}", code: alicaptcha.ParamMalformed},
		{name: "not UTF-8 before", body: "{\"a\":\"\xff\",\"captchaVerifyParam\":\"x\"}", code: alicaptcha.ParamMalformed},
		{name: "lone surrogate", body: `{"captchaVerifyParam":"\ud800"}`, code: alicaptcha.ParamMalformed},
		{name: "lone low surrogate", body: `{"captchaVerifyParam":"\udc00x"}`, code: alicaptcha.ParamMalformed},
		{name: "surrogates in the wrong order", body: `{"captchaVerifyParam":"\ude00\ud83d"}`, code: alicaptcha.ParamMalformed},
		{name: "lone surrogate in a name", body: `{"\ud800":1,"captchaVerifyParam":"x"}`, code: alicaptcha.ParamMalformed},

		{name: "deep array", body: strings.Repeat("[", 100_000), code: alicaptcha.ParamMalformed},
		{name: "deep array in a member", body: `{"a":` + strings.Repeat("[", 100_000), code: alicaptcha.ParamMalformed},
		{name: "deep object", body: strings.Repeat(`{"a":`, 20_000), code: alicaptcha.ParamMalformed},
		{name: "deep array as the value", body: `{"captchaVerifyParam":` + strings.Repeat("[", 100_000), code: alicaptcha.ParamMalformed},

		{name: "broken after the field", body: `{"captchaVerifyParam":"x"]]] not JSON`, param: "x"},
		{name: "truncated after the field", body: `{"captchaVerifyParam":"x"`, param: "x"},
		{name: "not UTF-8 after the field", body: "{\"captchaVerifyParam\":\"x\",\"a\":\"\xff\"}", param: "x"},
		{name: "truncated in the value", body: `{"captchaVerifyParam":"x`, code: alicaptcha.ParamMalformed},
		{name: "truncated in an escape", body: `{"captchaVerifyParam":"x\`, code: alicaptcha.ParamMalformed},
		{name: "truncated before the value", body: `{"captchaVerifyParam":`, code: alicaptcha.ParamMalformed},
		{name: "truncated in the name", body: `{"captchaVerify`, code: alicaptcha.ParamMalformed},
		{name: "truncated before the field", body: `{"a":1,`, code: alicaptcha.ParamMalformed},
		{name: "truncated after another", body: `{"a":1`, code: alicaptcha.ParamMalformed},
		{name: "brace only", body: `{`, code: alicaptcha.ParamMalformed},

		{name: "param at the limit", body: `{"captchaVerifyParam":"12345678"}`, maxParam: 8, param: "12345678"},
		{name: "param at the limit, escaped", body: `{"captchaVerifyParam":"\u0031\u0032\u0033\u0034\u0035\u0036\u0037\u0038"}`, maxParam: 8, param: "12345678"},
		{name: "param over the limit", body: `{"captchaVerifyParam":"123456789"}`, maxParam: 8, code: alicaptcha.ParamTooLarge},
		{name: "far behind", body: `{"a":"` + strings.Repeat("x", 128<<10) + `","captchaVerifyParam":"x"}`, code: alicaptcha.ParamTooLarge},
		{name: "far, but not too far behind", body: `{"a":"` + strings.Repeat("x", 100<<10) + `","captchaVerifyParam":"x"}`, param: "x"},
		{name: "not there as far as we read", body: `{"a":"` + strings.Repeat("x", 1<<20) + `"}`, code: alicaptcha.ParamTooLarge},
	}
	for i := range cases {
		cases[i].contentType = jsonType
	}
	runCases(t, cases)
}

func TestExtractJSONPointer(t *testing.T) {
	t.Parallel()
	pointer := func(fields ...string) []alicaptcha.Extractor {
		return []alicaptcha.Extractor{alicaptcha.FromJSON(fields...)}
	}
	cases := []extractCase{
		{name: "top", extractors: pointer("/p"), body: `{"p":"x"}`, param: "x"},
		{name: "nested", extractors: pointer("/a/b/p"), body: `{"p":"no","a":{"p":"no","b":{"p":"x"}}}`, param: "x"},
		{name: "nested, escaped in the body", extractors: pointer("/a/b"), body: `{"\u0061":{"\u0062":"x"}}`, param: "x"},
		{name: "~1 is a slash", extractors: pointer("/a~1b"), body: `{"a":{"b":"no"},"a/b":"x"}`, param: "x"},
		{name: "~0 is a tilde", extractors: pointer("/m~0n"), body: `{"m~0n":"no","m~n":"x"}`, param: "x"},
		{name: "~01 is a tilde and a one", extractors: pointer("/~01"), body: `{"/":"no","~1":"x"}`, param: "x"},
		{name: "~10 is a slash and a nought", extractors: pointer("/~10"), body: `{"~0":"no","/0":"x"}`, param: "x"},
		{name: "empty name", extractors: pointer("/"), body: `{"a":"no","":"x"}`, param: "x"},
		{name: "two empty names", extractors: pointer("//"), body: `{"":{"":"x"}}`, param: "x"},
		{name: "name with a quote", extractors: pointer(`/a"b\`), body: `{"a\"b\\":"x"}`, param: "x"},
		{name: "no unescaping of per cent", extractors: pointer("/a%20b"), body: `{"a b":"no","a%20b":"x"}`, param: "x"},
		{name: "index", extractors: pointer("/a/1"), body: `{"a":["no","x"]}`, param: "x"},
		{name: "index of two digits", extractors: pointer("/a/10"), body: `{"a":[0,1,2,3,4,5,6,7,8,9,"x"]}`, param: "x"},
		{name: "index with a leading nought", extractors: pointer("/a/01"), body: `{"a":["no","no"]}`, code: alicaptcha.ParamMissing},
		{name: "index with a sign", extractors: pointer("/a/+1", "/a/-1"), body: `{"a":["no","no"]}`, code: alicaptcha.ParamMissing},
		{name: "index after the last", extractors: pointer("/a/-"), body: `{"a":["no"]}`, code: alicaptcha.ParamMissing},
		{name: "index out of range", extractors: pointer("/a/1"), body: `{"a":["no"]}`, code: alicaptcha.ParamMissing},
		{name: "empty token in an array", extractors: pointer("/a/"), body: `{"a":["no"]}`, code: alicaptcha.ParamMissing},
		{name: "number as a name", extractors: pointer("/a/1"), body: `{"a":{"1":"x"}}`, param: "x"},
		{name: "top-level array", extractors: pointer("/0"), body: `["x"]`, param: "x"},
		{name: "array in array", extractors: pointer("/1/0/p"), body: `[["no"],[{"p":"x"}]]`, param: "x"},
		{name: "a name is no index", extractors: pointer("0", "/9"), body: `["no"]`, code: alicaptcha.ParamMissing},
		{name: "deep array", extractors: pointer("/0/0/0"), body: strings.Repeat("[", 100_000), code: alicaptcha.ParamMalformed},
		{name: "through null", extractors: pointer("/a/p"), body: `{"a":null}`, code: alicaptcha.ParamMissing},
		{name: "through a string", extractors: pointer("/a/p"), body: `{"a":"p"}`, code: alicaptcha.ParamMissing},
		{name: "through a number", extractors: pointer("/a/p"), body: `{"a":1}`, code: alicaptcha.ParamMissing},
		{name: "through nothing", extractors: pointer("/a/p"), body: `{"p":"no"}`, code: alicaptcha.ParamMissing},
		{name: "case of a level", extractors: pointer("/a/p"), body: `{"A":{"p":"no"},"a":{"P":"no"}}`, code: alicaptcha.ParamMissing},
		{name: "to null", extractors: pointer("/a/p"), body: `{"a":{"p":null}}`, code: alicaptcha.ParamMalformed},
		{name: "to an object", extractors: pointer("/a"), body: `{"a":{"p":"no"}}`, code: alicaptcha.ParamMalformed},
		{name: "to an array", extractors: pointer("/a"), body: `{"a":["no"]}`, code: alicaptcha.ParamMalformed},
		{name: "empty, then the other", extractors: pointer("/a/p", "/b/p"), body: `{"a":{"p":""},"b":{"p":"x"}}`, param: "x"},
		{name: "the first in the body wins", extractors: pointer("/a/p", "/b/p"), body: `{"b":{"p":"x"},"a":{"p":"no"}}`, param: "x"},
		{name: "two in one object", extractors: pointer("/a/q", "/a/p"), body: `{"a":{"p":"x","q":"no"}}`, param: "x"},
		{name: "one leads through the other", extractors: pointer("/a/p", "/a"), body: `{"a":{"p":"x"}}`, param: "x"},
		{name: "one leads through the other, a string", extractors: pointer("/a/p", "/a"), body: `{"a":"x"}`, param: "x"},
		{name: "pointer and name", extractors: pointer("p", "/a/p"), body: `{"a":{"p":"x"},"p":"no"}`, param: "x"},
		{name: "repeated on the way", extractors: pointer("/a/p"), body: `{"a":{"q":1},"a":{"p":"no"}}`, code: alicaptcha.ParamMalformed},
		{name: "broken on the way", extractors: pointer("/a/p"), body: `{"a":{"q":1,"p"`, code: alicaptcha.ParamMalformed},
		{name: "wrong bracket on the way", extractors: pointer("/a/p"), body: `{"a":{"q":1],"b":2}`, code: alicaptcha.ParamMalformed},
		{name: "broken after", extractors: pointer("/a/p"), body: `{"a":{"p":"x"]`, param: "x"},
		{name: "FromBody knows pointers", extractors: []alicaptcha.Extractor{alicaptcha.FromBody("/a/p")}, body: `{"/a/p":"no","a":{"p":"x"}}`, param: "x"},
	}
	for i := range cases {
		cases[i].contentType = jsonType
	}
	runCases(t, cases)
}

func TestExtractURLEncoded(t *testing.T) {
	t.Parallel()
	fields := func(fields ...string) []alicaptcha.Extractor {
		return []alicaptcha.Extractor{alicaptcha.FromForm(fields...)}
	}
	cases := []extractCase{
		{name: "alone", body: "f=x", param: "x"},
		{name: "last", body: "a=1&f=x", param: "x"},
		{name: "first", body: "f=x&a=1", param: "x"},
		{name: "in the middle", body: "a=1&f=x&b=2", param: "x"},
		{name: "repeated", body: "f=x&f=no", param: "x"},
		{name: "first is empty", body: "f=&f=x&f=no", param: "x"},
		{name: "first is bare", body: "f&f=x", param: "x"},
		{name: "empty", body: "f=", code: alicaptcha.ParamMissing},
		{name: "bare", body: "f", code: alicaptcha.ParamMissing},
		{name: "empty body", body: "", code: alicaptcha.ParamMissing},
		{name: "without the field", body: "user=u&password=p", code: alicaptcha.ParamMissing},
		{name: "several names, the first in the body wins", extractors: fields("f", "g"), body: "g=x&f=no", param: "x"},
		{name: "several names, the first is empty", extractors: fields("f", "g"), body: "f=&g=x", param: "x"},
		{name: "prefix of a name", body: "ff=no&f1=no&xf=no", code: alicaptcha.ParamMissing},
		{name: "case of a name", body: "F=no", code: alicaptcha.ParamMissing},
		{name: "as a value", body: "a=f&b=f%3Dno", code: alicaptcha.ParamMissing},
		{name: "equals signs in the value", body: "f=a=b==", param: "a=b=="},
		{name: "empty name", body: "=no&f=x", param: "x"},
		{name: "ampersands", body: strings.Repeat("&", 100_000) + "f=x" + strings.Repeat("&", 100), param: "x"},
		{name: "many pairs", body: strings.Repeat("f=&", 20_000) + "f=x", param: "x"},

		{name: "escaped", body: "f=%22a%26b%3Dc%25%22", param: `"a&b=c%"`},
		{name: "plus is a space", body: "f=a+b%2Bc", param: "a b+c"},
		{name: "plus alone", body: "f=+", param: " "},
		{name: "UTF-8", body: "f=%C3%A9é", param: "éé"},
		{name: "not UTF-8", body: "f=a%FFb", code: alicaptcha.ParamMalformed},
		{name: "not UTF-8, raw", body: "f=a\xffb", code: alicaptcha.ParamMalformed},
		{name: "bad escape in the value", body: "f=%zz", code: alicaptcha.ParamMalformed},
		{name: "cut escape in the value", body: "f=a%4", code: alicaptcha.ParamMalformed},
		{name: "bad escape, then a good one", body: "f=%zz&f=no", code: alicaptcha.ParamMalformed},
		{name: "bad escape in another value", body: "a=%zz&f=x&b=%", param: "x"},
		{name: "bad escape in another name", body: "%zz=1&f=x", param: "x"},
		{name: "bad escape in a like name", body: "f%zz=no&f%=no&%66%=no", code: alicaptcha.ParamMissing},
		{name: "escaped name", body: "%66=x", param: "x"},
		{name: "escaped longer name", extractors: fields("captchaVerifyParam"), body: "captcha%56erify%50aram=x", param: "x"},
		{name: "escaped twice", body: "%2566=no", code: alicaptcha.ParamMissing},
		{name: "name with a space", extractors: fields("my field"), body: "my+field=&my%20field=x", param: "x"},
		{name: "name with a plus", extractors: fields("a+b"), body: "a+b=no&a%2Bb=x", param: "x"},
		{name: "name with a slash is no pointer", extractors: fields("/a/b"), body: "/a/b=x", param: "x"},
		{name: "FromBody: name with a slash is no pointer", extractors: []alicaptcha.Extractor{alicaptcha.FromBody("/a~1b")}, body: "a%2Fb=no&%2Fa~1b=x", param: "x"},
		{name: "name with an ampersand", extractors: fields("a&b"), body: "a&b=no&a%26b=x", param: "x"},

		{name: "semicolon in the pair", body: "f=a;b", code: alicaptcha.ParamMalformed},
		{name: "semicolon as a separator", body: "a=1;f=no", code: alicaptcha.ParamMissing},
		{name: "semicolon after the field", body: "f=x;a=1", code: alicaptcha.ParamMalformed},
		{name: "semicolon in another pair", body: "a;b=1&f=x", param: "x"},
		{name: "escaped semicolon", body: "f=a%3Bb", param: "a;b"},

		{name: "query only", target: "/?f=no", body: "a=1", code: alicaptcha.ParamMissing},
		{name: "query and body", target: "/?f=no", body: "f=x", param: "x"},
		{name: "query of an empty body", target: "/?f=no", body: "", code: alicaptcha.ParamMissing},

		{name: "param at the limit", body: "f=%31%32%33%34%35%36%37%38", maxParam: 8, param: "12345678"},
		{name: "param over the limit", body: "f=123456789", maxParam: 8, code: alicaptcha.ParamTooLarge},
		{name: "ends at the limit", body: "a=1&f=1234", maxBody: 10, param: "1234"},
		{name: "cut at the limit", body: "a=1&f=12345", maxBody: 10, code: alicaptcha.ParamTooLarge},
		{name: "separator is the last byte", body: "a=1&f=123&b=2", maxBody: 10, param: "123"},
		{name: "name is cut", body: "aaaaaaaaa=1&f=x", maxBody: 10, code: alicaptcha.ParamTooLarge},
		{name: "not there, body as long as the limit", body: "aaaaaaaa=1", maxBody: 10, code: alicaptcha.ParamMissing},
		{name: "not there, body one longer", body: "aaaaaaaa=12", maxBody: 10, code: alicaptcha.ParamTooLarge},
		{name: "behind a long value", body: "a=" + strings.Repeat("y", 100<<10) + "&f=x", param: "x"},
		{name: "behind a too long value", body: "a=" + strings.Repeat("y", 128<<10) + "&f=x", code: alicaptcha.ParamTooLarge},
		{name: "not there, long", body: strings.Repeat("a=1&", 1<<18), code: alicaptcha.ParamTooLarge},
	}
	// Around the sizes of buffers.
	for _, size := range []int{1018, 1019, 1020, 1021, 1022, 1023, 1024, 1025, 2048, 4090, 4093, 4094, 4095, 4096, 4097, 28_000, 32 << 10} {
		value := strings.Repeat("v", size-1) + "w"
		cases = append(cases,
			extractCase{name: fmt.Sprintf("%d bytes, last", size), body: "f=" + value, param: value},
			extractCase{name: fmt.Sprintf("%d bytes, first", size), body: "f=" + value + "&a=1", param: value},
			extractCase{name: fmt.Sprintf("%d bytes, after another as long", size), body: "a=" + value + "&f=" + value + "&b=1", param: value},
			extractCase{name: fmt.Sprintf("%d bytes of another", size), body: strings.Repeat("&", size) + "f=x", param: "x"},
		)
	}
	for i := range cases {
		cases[i].contentType = formType
		if cases[i].extractors == nil {
			cases[i].extractors = fields("f")
		}
	}
	runCases(t, cases)
}

func TestExtractMultipart(t *testing.T) {
	t.Parallel()
	field := formPart(`name="f"`, "x") + formEnd
	file := func(size int) string {
		return formPart(`name="upload"; filename="a.bin"`, strings.Repeat("0123456789abcde\n", size/16))
	}
	long := strings.Repeat("v", 28_000)
	cases := []extractCase{
		{name: "alone", body: field, param: "x"},
		{name: "after others", body: formPart(`name="a"`, "1") + formPart(`name="b"`, "") + field, param: "x"},
		{name: "before a large file", body: formPart(`name="f"`, "x") + file(1<<20) + formEnd, param: "x"},
		{name: "behind a small file", body: file(64<<10) + field, param: "x"},
		{name: "behind a large file", body: file(128<<10) + field, code: alicaptcha.ParamTooLarge},
		{name: "long", body: formPart(`name="f"`, long) + formEnd, param: long},
		{name: "raw bytes are not unescaped", body: formPart(`name="f"`, "a+b%41\r\n--c\r\n") + formEnd, param: "a+b%41\r\n--c\r\n"},
		{name: "unquoted name", body: formPart("name=f", "x") + formEnd, param: "x"},
		{name: "preamble", body: "before\r\n" + field, param: "x"},
		{name: "line feeds only", body: "--b\nContent-Disposition: form-data; name=\"f\"\n\nx\n--b--\n", param: "x"},
		{name: "other headers", body: formPart("name=\"f\"\nContent-Type: text/plain; charset=utf-8\nX-A: b", "x") + formEnd, param: "x"},

		{name: "repeated", body: formPart(`name="f"`, "x") + formPart(`name="f"`, "no") + formEnd, param: "x"},
		{name: "first is empty", body: formPart(`name="f"`, "") + field, param: "x"},
		{name: "empty", body: formPart(`name="f"`, "") + formEnd, code: alicaptcha.ParamMissing},
		{name: "several names, the first in the body wins", extractors: []alicaptcha.Extractor{alicaptcha.FromForm("f", "g")}, body: formPart(`name="g"`, "x") + formPart(`name="f"`, "no") + formEnd, param: "x"},
		{name: "name with a slash is no pointer", extractors: []alicaptcha.Extractor{alicaptcha.FromBody("/f")}, body: formPart(`name="f"`, "no") + formPart(`name="/f"`, "x") + formEnd, param: "x"},
		{name: "case of a name", body: formPart(`name="F"`, "no") + formEnd, code: alicaptcha.ParamMissing},
		{name: "without the field", body: file(16) + formEnd, code: alicaptcha.ParamMissing},
		{name: "without any", body: formEnd, code: alicaptcha.ParamMissing},
		{name: "query only", target: "/?f=no", body: formPart(`name="a"`, "1") + formEnd, code: alicaptcha.ParamMissing},

		{name: "a file of that name", body: formPart(`name="f"; filename="a.txt"`, "no") + formEnd, code: alicaptcha.ParamMissing},
		{name: "a file of that name before", body: formPart(`name="f"; filename="a.txt"`, "no") + field, param: "x"},
		{name: "a file with an encoded name", body: formPart(`name="f"; filename*=utf-8''a.txt`, "no") + field, param: "x"},
		{name: "an attachment", body: crlf("--b\nContent-Disposition: attachment; name=\"f\"\n\nno\n") + field, param: "x"},
		{name: "a part without a name", body: crlf("--b\nContent-Type: text/plain\n\nno\n") + field, param: "x"},

		{name: "quoted-printable", body: formPart("name=\"f\"\nContent-Transfer-Encoding: quoted-printable", "a=3Db=\r\nc") + formEnd, param: "a=bc"},
		{name: "bad quoted-printable", body: formPart("name=\"f\"\nContent-Transfer-Encoding: quoted-printable", "a\x01b") + formEnd, code: alicaptcha.ParamMalformed},
		{name: "quoted-printable that net/http takes as it is", body: formPart("name=\"f\"\nContent-Transfer-Encoding: Quoted-Printable", "a=ZZ") + formEnd, param: "a=ZZ"},
		{name: "not UTF-8", body: formPart(`name="f"`, "a\xffb") + formEnd, code: alicaptcha.ParamMalformed},
		{name: "param at the limit", body: formPart(`name="f"`, "12345678") + formEnd, maxParam: 8, param: "12345678"},
		{name: "param over the limit", body: formPart(`name="f"`, "123456789") + formEnd, maxParam: 8, code: alicaptcha.ParamTooLarge},

		{name: "final boundary missing, field complete", body: formPart(`name="f"`, "x") + formPart(`name="a"`, "1"), param: "x"},
		{name: "boundary after the field missing", body: formPart(`name="f"`, "x"), code: alicaptcha.ParamMalformed},
		{name: "cut in the field", body: strings.TrimSuffix(formPart(`name="f"`, "xyz"), "z\r\n"), code: alicaptcha.ParamMalformed},
		{name: "cut in a header's name", body: crlf("--b\nContent-Dispo"), code: alicaptcha.ParamMalformed},
		{name: "cut between headers, which net/http takes for the end", body: crlf("--b\nContent-Disposition: form-data; name=\"f\"\n"), code: alicaptcha.ParamMissing},
		{name: "cut before the field", body: formPart(`name="a"`, "1"), code: alicaptcha.ParamMalformed},
		{name: "bad headers", body: crlf("--b\nno header\n\nno\n") + field, code: alicaptcha.ParamMalformed},
		{name: "another boundary", body: strings.ReplaceAll(field, "--b", "--c"), code: alicaptcha.ParamMalformed},
		{name: "no multipart at all", body: "f=no", code: alicaptcha.ParamMalformed},
		{name: "empty body", body: "", code: alicaptcha.ParamMalformed},
		{name: "broken behind the field", body: formPart(`name="f"`, "x") + "--b\r\nno header", param: "x"},
	}
	for i := range cases {
		cases[i].contentType = multipartType
		if cases[i].extractors == nil {
			cases[i].extractors = []alicaptcha.Extractor{alicaptcha.FromForm("f")}
		}
	}
	runCases(t, cases)
}

func TestExtractSeveralExtractors(t *testing.T) {
	t.Parallel()
	const body = `{"a":"","b":{"c":"x"},"tail":"` + "0123456789" + `"}`
	some := func(r *http.Request) (string, error) { // reads a little and finds nothing
		_, err := io.ReadFull(r.Body, make([]byte, 7))
		return "", err
	}
	all := func(r *http.Request) (string, error) {
		got, err := io.ReadAll(r.Body)
		if err != nil || string(got) != body {
			return "", errors.New("the body was not whole")
		}
		return "", nil
	}
	fails := func(*http.Request) (string, error) { return "", errBoom }
	both := func(*http.Request) (string, error) { return "no", errBoom }
	never := func(*http.Request) (string, error) { panic("called after the end of the search") }
	runCases(t, []extractCase{
		{name: "each starts at the first byte", contentType: jsonType, body: body, param: "x",
			extractors: []alicaptcha.Extractor{some, all, alicaptcha.FromJSON("a"), some, alicaptcha.FromJSON("/b/c"), never}},
		{name: "an error ends the search", contentType: jsonType, body: body, code: alicaptcha.ParamMalformed,
			extractors: []alicaptcha.Extractor{all, fails, never}},
		{name: "an error counts more than a value", contentType: jsonType, body: body, code: alicaptcha.ParamMalformed,
			extractors: []alicaptcha.Extractor{both, never}},
		{name: "a finding ends the search", contentType: jsonType, body: body, param: "x",
			extractors: []alicaptcha.Extractor{alicaptcha.FromHeader("none"), alicaptcha.FromJSON("/b/c"), never}},
		{name: "none finds anything", contentType: jsonType, body: body, code: alicaptcha.ParamMissing,
			extractors: []alicaptcha.Extractor{all, alicaptcha.FromJSON("z"), alicaptcha.FromForm("z"), some}},
	})
}

func TestExtractNoBody(t *testing.T) {
	t.Parallel()
	for name, body := range map[string]io.ReadCloser{"nil": nil, "NoBody": http.NoBody} {
		for _, contentType := range []string{"", jsonType, formType} {
			r := bodyRequest(contentType, nil)
			r.Body = body
			gate, verifier := newGateAndSpy(t, nil)
			require.Equal(t, alicaptcha.ParamMissing, gate.Check(r).Code, "%s, %s", name, contentType)
			require.Equal(t, body, r.Body, "%s, %s: not the body that it was", name, contentType)

			r.Header.Set("Captcha-Verify-Param", "x")
			w := httptest.NewRecorder()
			gate.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				require.Equal(t, body, r.Body, "%s, %s: not the body that it was", name, contentType)
			})).ServeHTTP(w, r)
			require.Equal(t, http.StatusOK, w.Code)
			require.Equal(t, []string{"x"}, verifier.params())
		}
	}

	t.Run("an extractor that reads a nil body", func(t *testing.T) {
		gate, _ := newGateAndSpy(t, nil, func(r *http.Request) (string, error) {
			r.Body = io.NopCloser(strings.NewReader("mine"))
			return "", nil
		})
		r := bodyRequest("", nil)
		r.Body = nil
		require.Equal(t, alicaptcha.ParamMissing, gate.Check(r).Code)
		require.Nil(t, r.Body)
	})
}

// A *http.MaxBytesError in the chain of a user's extractor's error counts.
func TestExtractUserError(t *testing.T) {
	t.Parallel()
	tooLarge := &http.MaxBytesError{Limit: 7}
	for _, c := range []struct {
		name string
		err  error
		code alicaptcha.Code
	}{
		{"plain", errBoom, alicaptcha.ParamMalformed},
		{"EOF", io.EOF, alicaptcha.ParamMalformed},
		{"unexpected EOF", io.ErrUnexpectedEOF, alicaptcha.ParamMalformed},
		{"too large", tooLarge, alicaptcha.ParamTooLarge},
		{"wrapped", fmt.Errorf("a: %w", fmt.Errorf("b: %w", tooLarge)), alicaptcha.ParamTooLarge},
		{"joined", errors.Join(errBoom, tooLarge), alicaptcha.ParamTooLarge},
		{"looks like the client's end", context.Canceled, alicaptcha.ParamMalformed},
		{"looks like a deadline", context.DeadlineExceeded, alicaptcha.ParamMalformed},
		{"looks like the service's", &alicaptcha.Error{Code: alicaptcha.ServiceUnavailable}, alicaptcha.ParamMalformed},
		{"looks like a timeout of the service", &alicaptcha.Error{Code: alicaptcha.ServiceTimeout}, alicaptcha.ParamMalformed},
	} {
		gate, verifier := newGateAndSpy(t, nil, func(r *http.Request) (string, error) {
			io.CopyN(io.Discard, r.Body, 2)
			r.Body.Close()
			return "no", c.err
		})
		r := bodyRequest(formType, strings.NewReader("a=1&b=2"))
		o := gate.Check(r)
		require.Equal(t, c.code, o.Code, c.name)
		require.False(t, o.Allowed, c.name)
		require.ErrorIs(t, o.Err, c.err, c.name)
		require.Empty(t, verifier.params(), c.name)
		got, err := io.ReadAll(r.Body)
		require.NoError(t, err)
		require.Equal(t, "a=1&b=2", string(got), c.name)
	}

	t.Run("the limit, as a user's extractor meets it", func(t *testing.T) {
		gate, _ := newGateAndSpy(t, func(cfg *alicaptcha.Config) { cfg.MaxBodyBytes = 4 }, func(r *http.Request) (string, error) {
			got, err := io.ReadAll(r.Body)
			require.Equal(t, "a=1&", string(got))
			_, again := r.Body.Read(make([]byte, 1))
			require.Equal(t, err, again, "the error went away")
			return "", fmt.Errorf("reading: %w", err)
		})
		require.Equal(t, alicaptcha.ParamTooLarge, gate.Check(bodyRequest(formType, strings.NewReader("a=1&b=2"))).Code)
	})
}

// TestExtractErrorsAreQuiet looks for the body in everything that is said of it.
func TestExtractErrorsAreQuiet(t *testing.T) {
	t.Parallel()
	const secret = "Zw9SECRETq7"
	for name, c := range map[string]struct{ contentType, body string }{
		"JSON, bad value":        {jsonType, `{"captchaVerifyParam":` + secret + `}`},
		"JSON, bad name":         {jsonType, `{` + secret + `:1}`},
		"JSON, duplicate":        {jsonType, `{"` + secret + `":1,"` + secret + `":2}`},
		"JSON, bad escape":       {jsonType, `{"captchaVerifyParam":"` + secret + `\x"}`},
		"JSON, not UTF-8":        {jsonType, `{"captchaVerifyParam":"` + secret + "\xff\"}"},
		"JSON, surrogate":        {jsonType, `{"captchaVerifyParam":"` + secret + `\ud800"}`},
		"JSON, object":           {jsonType, `{"captchaVerifyParam":{"a":"` + secret + `"}}`},
		"JSON, truncated":        {jsonType, `{"captchaVerifyParam":"` + secret},
		"JSON, in a pointer":     {jsonType, `{"a":{"` + secret + `":tru}}`},
		"JSON, no JSON":          {jsonType, secret},
		"JSON, too large":        {jsonType, `{"captchaVerifyParam":"` + strings.Repeat(secret, 20_000)},
		"form, bad escape":       {formType, "captchaVerifyParam=" + secret + "%zz" + secret},
		"form, cut escape":       {formType, "captchaVerifyParam=" + secret + "%4"},
		"form, semicolon":        {formType, "captchaVerifyParam=" + secret + ";"},
		"form, not UTF-8":        {formType, "captchaVerifyParam=" + secret + "%ff"},
		"form, too long":         {formType, "captchaVerifyParam=" + strings.Repeat(secret, 4000)},
		"form, too large":        {formType, "captchaVerifyParam=" + strings.Repeat(secret, 20_000)},
		"multipart, bad headers": {multipartType, "--b\r\n" + secret + "\r\n\r\nx\r\n--b--\r\n"},
		"multipart, truncated":   {multipartType, "--b\r\nContent-Disposition: form-data; name=captchaVerifyParam\r\n\r\n" + secret},
		"multipart, no boundary": {multipartType, secret + "\r\n" + secret},
		"multipart, QP":          {multipartType, formPart("name=captchaVerifyParam\nContent-Transfer-Encoding: quoted-printable", secret+"\x01") + formEnd},
		"multipart, bad type":    {"multipart/form-data; boundary=" + secret + "; boundary=x", secret},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			extractor := alicaptcha.FromBody("captchaVerifyParam", "/a/b")
			if _, err := extractor(bodyRequest(c.contentType, http.MaxBytesReader(nil, io.NopCloser(strings.NewReader(c.body)), 128<<10))); err != nil {
				for e := err; e != nil; e = errors.Unwrap(e) {
					require.NotContains(t, e.Error(), secret)
				}
				require.NotContains(t, fmt.Sprintf("%+v %#v", err, err), secret)
				_, tooLarge := errors.AsType[*http.MaxBytesError](err)
				require.True(t, tooLarge || strings.HasPrefix(err.Error(), "alicaptcha: "), "%v", err)
			}

			var log bytes.Buffer
			var seen alicaptcha.Outcome
			gate, verifier := newGateAndSpy(t, func(cfg *alicaptcha.Config) {
				cfg.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
				cfg.Observe = func(_ context.Context, o alicaptcha.Outcome) { seen = o }
			}, extractor)
			w := httptest.NewRecorder()
			gate.Handler(http.NotFoundHandler()).ServeHTTP(w, bodyRequest(c.contentType, strings.NewReader(c.body)))
			require.Contains(t, []alicaptcha.Code{alicaptcha.ParamMalformed, alicaptcha.ParamTooLarge}, seen.Code)
			require.Error(t, seen.Err)
			require.NotContains(t, seen.Err.Error(), secret)
			require.NotEmpty(t, log.String())
			require.NotContains(t, log.String(), secret)
			require.NotContains(t, w.Body.String(), secret)
			require.NotContains(t, fmt.Sprint(w.Header()), secret)
			require.Empty(t, verifier.params())
		})
	}

	t.Run("a user's extractor that quotes", func(t *testing.T) {
		t.Parallel()
		var log bytes.Buffer
		gate, _ := newGateAndSpy(t, func(cfg *alicaptcha.Config) {
			cfg.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		}, func(*http.Request) (string, error) { return secret, errors.New("cannot parse " + secret) })
		o := gate.Check(bodyRequest("", nil))
		require.NotContains(t, o.Err.Error(), secret)
		require.NotEmpty(t, log.String())
		require.NotContains(t, log.String(), secret)
	})
}

func TestFromPanics(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, says string
		make       func()
	}{
		{"FromHeader, empty", "FromHeader", func() { alicaptcha.FromHeader("") }},
		{"FromHeader, space", "FromHeader", func() { alicaptcha.FromHeader("Captcha Param") }},
		{"FromHeader, spaces around", "FromHeader", func() { alicaptcha.FromHeader(" X ") }},
		{"FromHeader, colon", "FromHeader", func() { alicaptcha.FromHeader("X-Captcha:") }},
		{"FromHeader, line feed", "FromHeader", func() { alicaptcha.FromHeader("X\n") }},
		{"FromHeader, NUL", "FromHeader", func() { alicaptcha.FromHeader("X\x00") }},
		{"FromHeader, umlaut", "FromHeader", func() { alicaptcha.FromHeader("X-Ü") }},
		{"FromHeader, not UTF-8", "FromHeader", func() { alicaptcha.FromHeader("X-\xff") }},
		{"FromHeader, slash", "FromHeader", func() { alicaptcha.FromHeader("a/b") }},
		{"FromHeader, quote", "FromHeader", func() { alicaptcha.FromHeader(`a"b`) }},
		{"FromHeader, bracket", "FromHeader", func() { alicaptcha.FromHeader("a[0]") }},
		{"FromHeader, pseudo", "FromHeader", func() { alicaptcha.FromHeader(":path") }},

		{"FromForm, none", "FromForm", func() { alicaptcha.FromForm() }},
		{"FromForm, empty list", "FromForm", func() { alicaptcha.FromForm([]string{}...) }},
		{"FromForm, empty", "FromForm", func() { alicaptcha.FromForm("") }},
		{"FromForm, one empty", "FromForm", func() { alicaptcha.FromForm("a", "") }},

		{"FromJSON, none", "FromJSON", func() { alicaptcha.FromJSON() }},
		{"FromJSON, empty", "FromJSON", func() { alicaptcha.FromJSON("") }},
		{"FromJSON, one empty", "FromJSON", func() { alicaptcha.FromJSON("a", "", "b") }},
		{"FromJSON, not UTF-8", "FromJSON", func() { alicaptcha.FromJSON("a\xff") }},
		{"FromJSON, pointer not UTF-8", "FromJSON", func() { alicaptcha.FromJSON("/a\xff") }},
		{"FromJSON, ~ at the end", "FromJSON", func() { alicaptcha.FromJSON("/a~") }},
		{"FromJSON, ~2", "FromJSON", func() { alicaptcha.FromJSON("/a~2b") }},
		{"FromJSON, ~~0", "FromJSON", func() { alicaptcha.FromJSON("/~~0") }},
		{"FromJSON, ~ at the end of a level", "FromJSON", func() { alicaptcha.FromJSON("/a~/1") }},
		{"FromJSON, the second is bad", "FromJSON", func() { alicaptcha.FromJSON("a", "/~") }},

		{"FromBody, none", "FromBody", func() { alicaptcha.FromBody() }},
		{"FromBody, empty", "FromBody", func() { alicaptcha.FromBody("") }},
		{"FromBody, bad pointer", "FromBody", func() { alicaptcha.FromBody("/~x") }},
		{"FromBody, not UTF-8", "FromBody", func() { alicaptcha.FromBody("\xff") }},
	} {
		func() {
			defer func() {
				text, ok := recover().(string)
				require.True(t, ok, "%s: no panic, or not with a text", c.name)
				require.True(t, strings.HasPrefix(text, "alicaptcha: "+c.says), "%s: %q", c.name, text)
			}()
			c.make()
		}()
	}

	for name, make := range map[string]func() alicaptcha.Extractor{
		"FromHeader":          func() alicaptcha.Extractor { return alicaptcha.FromHeader("!#$%&'*+-.^_`|~09azAZ") },
		"FromForm":            func() alicaptcha.Extractor { return alicaptcha.FromForm("a b", "/~", "ü", ";", "&") },
		"FromJSON":            func() alicaptcha.Extractor { return alicaptcha.FromJSON("a~b", "~", "é", " ", "a/b~2") },
		"FromJSON, pointers":  func() alicaptcha.Extractor { return alicaptcha.FromJSON("/", "//", "/~0~1/~01", "/0/-", "/é") },
		"FromBody":            func() alicaptcha.Extractor { return alicaptcha.FromBody("a", "/a/0") },
		"FromBody, the same":  func() alicaptcha.Extractor { return alicaptcha.FromBody("a", "a") },
		"DefaultExtractors 0": func() alicaptcha.Extractor { return alicaptcha.DefaultExtractors()[0] },
	} {
		require.NotPanics(t, func() { require.NotNil(t, make()) }, name)
	}
}

// The caller's slices stay the caller's.
func TestFromCopiesFields(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		make              func(...string) alicaptcha.Extractor
		contentType, body string
	}{
		"FromForm, urlencoded": {alicaptcha.FromForm, formType, "z=no&f=x"},
		"FromForm, multipart":  {alicaptcha.FromForm, multipartType, formPart(`name="z"`, "no") + formPart(`name="f"`, "x") + formEnd},
		"FromJSON":             {alicaptcha.FromJSON, jsonType, `{"z":"no","f":"x"}`},
		"FromBody, form":       {alicaptcha.FromBody, formType, "z=no&f=x"},
		"FromBody, JSON":       {alicaptcha.FromBody, jsonType, `{"z":"no","f":"x"}`},
	} {
		fields := []string{"f", "g"}
		extractors := []alicaptcha.Extractor{c.make(fields...)}
		gate, verifier := newGateAndSpy(t, nil, extractors...)
		fields[0], fields[1] = "z", "z"
		require.Equal(t, alicaptcha.T001, gate.Check(bodyRequest(c.contentType, strings.NewReader(c.body))).Code, name)
		require.Equal(t, []string{"x"}, verifier.params(), name)
	}

	extractors := []alicaptcha.Extractor{alicaptcha.FromHeader("A")}
	gate, verifier := newGateAndSpy(t, func(cfg *alicaptcha.Config) { cfg.Extractors = extractors })
	extractors[0] = func(*http.Request) (string, error) { return "no", nil }
	alicaptcha.DefaultExtractors()[0] = nil
	r := bodyRequest("", nil)
	r.Header.Set("A", "x")
	require.Equal(t, alicaptcha.T001, gate.Check(r).Code)
	require.Equal(t, []string{"x"}, verifier.params())
	require.NotNil(t, alicaptcha.DefaultExtractors()[0])
}

// Neither the Content-Type of a multipart body nor the Content-Disposition of its
// part may be so long that it takes its time.
func TestExtractMultipartLongParameters(t *testing.T) {
	t.Parallel()
	const head = "--b\r\nContent-Disposition: form-data; name=captchaVerifyParam"
	for _, row := range []struct {
		name, contentType, body string
		code                    alicaptcha.Code
	}{
		{"ordinary", "multipart/form-data; boundary=b", head + "\r\n\r\nx\r\n--b--\r\n", alicaptcha.T001},
		{"a type of 512 bytes", "multipart/form-data; boundary=b; x=" + strings.Repeat("y", 512-35),
			head + "\r\n\r\nx\r\n--b--\r\n", alicaptcha.T001},
		{"a type of 513 bytes", "multipart/form-data; boundary=b; x=" + strings.Repeat("y", 513-35),
			head + "\r\n\r\nx\r\n--b--\r\n", alicaptcha.ParamMalformed},
		{"a disposition of 2048 bytes", "multipart/form-data; boundary=b",
			head + "; x=" + strings.Repeat("y", 2048-len(head)-4+26) + "\r\n\r\nx\r\n--b--\r\n", alicaptcha.T001},
		{"a disposition of 2049 bytes", "multipart/form-data; boundary=b",
			head + "; x=" + strings.Repeat("y", 2049-len(head)-4+26) + "\r\n\r\nx\r\n--b--\r\n", alicaptcha.ParamMalformed},
	} {
		r := httptest.NewRequest("POST", "/login", strings.NewReader(row.body))
		r.Header.Set("Content-Type", row.contentType)
		require.Equal(t, row.code, try(t, alicaptcha.Config{Verifier: passing()}, r).outcome(t).Code, row.name)
	}
}
