package alicaptcha_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"math/rand/v2"
	"mime/multipart"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
)

const (
	extForm = "application/x-www-form-urlencoded"
	extJSON = "application/json"
	extMult = "multipart/form-data; boundary=b"
)

var errExtBoom = errors.New("boom")

// An extVerifier passes everything, and keeps what it was asked.
type extVerifier struct {
	hook func(ctx context.Context) error // if not nil, called for each param

	mu    sync.Mutex
	asked []string
}

func (v *extVerifier) verify(ctx context.Context, req alicaptcha.Request) (alicaptcha.Result, error) {
	v.mu.Lock()
	v.asked = append(v.asked, req.Param)
	v.mu.Unlock()
	if v.hook != nil {
		if err := v.hook(ctx); err != nil {
			return alicaptcha.Result{}, err
		}
	}
	return alicaptcha.Result{Passed: true, Code: alicaptcha.T001}, nil
}

func (v *extVerifier) params() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.asked)
}

// extGate returns a Middleware with these extractors (none: the default ones)
// and the Verifier behind it.
func extGate(tb testing.TB, change func(*alicaptcha.Config), extractors ...alicaptcha.Extractor) (*alicaptcha.Middleware, *extVerifier) {
	tb.Helper()
	v := &extVerifier{}
	cfg := alicaptcha.Config{
		Verifier:   alicaptcha.VerifierFunc(v.verify),
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

func extRequest(contentType string, body io.Reader) *http.Request {
	r := httptest.NewRequest(http.MethodPost, "/", body)
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	return r
}

// extCRLF writes multipart bodies as they are on the wire.
func extCRLF(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") }

// extPart returns a part of a body of type extMult.
func extPart(headers, value string) string {
	return extCRLF("--b\nContent-Disposition: form-data; "+headers+"\n\n") + value + "\r\n"
}

const extEnd = "--b--\r\n"

// extDeliveries are the ways in which a body may arrive.
var extDeliveries = map[string]func(string) io.Reader{
	"whole":           func(s string) io.Reader { return strings.NewReader(s) },
	"unknown length":  func(s string) io.Reader { return io.MultiReader(strings.NewReader(s)) },
	"byte by byte":    func(s string) io.Reader { return iotest.OneByteReader(strings.NewReader(s)) },
	"data and EOF":    func(s string) io.Reader { return iotest.DataErrReader(strings.NewReader(s)) },
	"halves":          func(s string) io.Reader { return iotest.HalfReader(strings.NewReader(s)) },
	"with empty read": func(s string) io.Reader { return &extStutter{src: strings.NewReader(s)} },
}

// An extStutter gives nothing on every other Read, as io.Reader allows.
type extStutter struct {
	src   io.Reader
	quiet bool
}

func (s *extStutter) Read(p []byte) (int, error) {
	if s.quiet = !s.quiet; s.quiet {
		return 0, nil
	}
	return s.src.Read(p)
}

// An extCase is a body and what is to be found in it.
type extCase struct {
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

func extRunAll(t *testing.T, cases []extCase) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			for delivery, reader := range extDeliveries {
				if delivery == "byte by byte" && len(c.body) > 32<<10 {
					continue // the race detector would take seconds
				}
				c.run(t, delivery, reader)
			}
		})
	}
}

var extStatus = map[alicaptcha.Code]int{
	alicaptcha.T001:           http.StatusOK,
	alicaptcha.ParamMissing:   http.StatusBadRequest,
	alicaptcha.ParamMalformed: http.StatusBadRequest,
	alicaptcha.ParamTooLarge:  http.StatusRequestEntityTooLarge,
}

func (c extCase) run(t *testing.T, delivery string, reader func(string) io.Reader) {
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
		r := extRequest(c.contentType, reader(c.body))
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

	gate, verifier := extGate(t, config, c.extractors...)
	r := request()
	o := gate.Check(r)
	require.Equal(t, want, o.Code, "%s, Check", delivery)
	require.Equal(t, asked, verifier.params(), "%s, Check", delivery)
	replays("Check", r)

	gate, verifier = extGate(t, config, c.extractors...)
	w := httptest.NewRecorder()
	called := false
	gate.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		called = true
		replays("Handler", r)
	})).ServeHTTP(w, request())
	require.Equal(t, extStatus[want], w.Code, "%s, Handler", delivery)
	require.Equal(t, c.code == "", called, "%s, Handler", delivery)
	require.Equal(t, asked, verifier.params(), "%s, Handler", delivery)

	gate, verifier = extGate(t, config, c.extractors...)
	w = httptest.NewRecorder()
	gate.Deferred(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		replays("Deferred", r)
		require.Empty(t, verifier.params(), "%s, before Require", delivery)
		require.Equal(t, c.code == "", alicaptcha.Require(w, r), "%s, Deferred", delivery)
	})).ServeHTTP(w, request())
	require.Equal(t, extStatus[want], w.Code, "%s, Deferred", delivery)
	require.Equal(t, asked, verifier.params(), "%s, Deferred", delivery)
}

func TestExtractHeader(t *testing.T) {
	t.Parallel()
	const both = `{"captchaVerifyParam":"body"}`
	header := func(values ...string) http.Header { return http.Header{"Captcha-Verify-Param": values} }
	extRunAll(t, []extCase{
		{name: "alone", header: header("x"), param: "x"},
		{name: "before the body", contentType: extJSON, body: both, header: header("x"), param: "x"},
		{name: "body not looked at", contentType: extJSON, body: "}", header: header("x"), param: "x"},
		{name: "first of two", header: header("x", "y"), param: "x"},
		{name: "empty", contentType: extJSON, body: both, header: header(""), param: "body"},
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
	inMult := extPart(`name="captchaVerifyParam"`, "x") + extEnd
	formOnly := []alicaptcha.Extractor{alicaptcha.FromForm("captchaVerifyParam")}
	jsonOnly := []alicaptcha.Extractor{alicaptcha.FromJSON("captchaVerifyParam")}
	encoded := func(values ...string) http.Header { return http.Header{"Content-Encoding": values} }
	extRunAll(t, []extCase{
		{name: "form", contentType: extForm, body: inForm, param: "x"},
		{name: "form with parameter", contentType: extForm + "; charset=UTF-8", body: inForm, param: "x"},
		{name: "form in capitals", contentType: "APPLICATION/X-WWW-Form-URLEncoded;Charset=utf-8", body: inForm, param: "x"},
		{name: "form with bad parameter", contentType: extForm + "; =", body: inForm, param: "x"},
		{name: "JSON", contentType: extJSON, body: inJSON, param: "x"},
		{name: "JSON with parameter", contentType: "application/json ; charset=utf-8", body: inJSON, param: "x"},
		{name: "JSON in capitals", contentType: "Application/JSON", body: inJSON, param: "x"},
		{name: "problem+json", contentType: "application/problem+json", body: inJSON, param: "x"},
		{name: "vendor type", contentType: "application/vnd.example.v2+JSON; v=1", body: inJSON, param: "x"},
		{name: "multipart", contentType: extMult, body: inMult, param: "x"},
		{name: "multipart in capitals, quoted", contentType: `Multipart/Form-Data; charset=utf-8; Boundary="b"`, body: inMult, param: "x"},

		{name: "missing", body: inJSON, code: alicaptcha.ParamMissing},
		{name: "missing for a form", body: inForm, code: alicaptcha.ParamMissing},
		{name: "text/plain", contentType: "text/plain", body: inJSON, code: alicaptcha.ParamMissing},
		{name: "text/json", contentType: "text/json", body: inJSON, code: alicaptcha.ParamMissing},
		{name: "image/svg+json", contentType: "image/svg+json", body: inJSON, code: alicaptcha.ParamMissing},
		{name: "jsonp", contentType: "application/jsonp", body: inJSON, code: alicaptcha.ParamMissing},
		{name: "multipart/mixed", contentType: "multipart/mixed; boundary=b", body: inMult, code: alicaptcha.ParamMissing},
		{name: "FromForm on JSON", contentType: extJSON, body: inJSON, extractors: formOnly, code: alicaptcha.ParamMissing},
		{name: "FromJSON on a form", contentType: extForm, body: inForm, extractors: jsonOnly, code: alicaptcha.ParamMissing},
		{name: "FromJSON on multipart", contentType: extMult, body: inMult, extractors: jsonOnly, code: alicaptcha.ParamMissing},
		{name: "JSON said to be a form", contentType: extForm, body: inJSON, code: alicaptcha.ParamMissing},
		{name: "form said to be JSON", contentType: extJSON, body: inForm, code: alicaptcha.ParamMalformed},

		{name: "no boundary", contentType: "multipart/form-data", body: inMult, code: alicaptcha.ParamMalformed},
		{name: "empty boundary", contentType: `multipart/form-data; boundary=""`, body: inMult, code: alicaptcha.ParamMalformed},
		{name: "two boundaries", contentType: "multipart/form-data; boundary=b; boundary=c", body: inMult, code: alicaptcha.ParamMalformed},

		{name: "gzip JSON", contentType: extJSON, body: inJSON, header: encoded("gzip"), code: alicaptcha.ParamMalformed},
		{name: "gzip form", contentType: extForm, body: inForm, header: encoded("gzip"), code: alicaptcha.ParamMalformed},
		{name: "gzip multipart", contentType: extMult, body: inMult, header: encoded("GZIP"), code: alicaptcha.ParamMalformed},
		{name: "br", contentType: extJSON, body: inJSON, header: encoded("br"), code: alicaptcha.ParamMalformed},
		{name: "identity, then gzip", contentType: extJSON, body: inJSON, header: encoded("identity", "gzip"), code: alicaptcha.ParamMalformed},
		{name: "identity", contentType: extJSON, body: inJSON, header: encoded("Identity"), param: "x"},
		{name: "empty encoding", contentType: extForm, body: inForm, header: encoded(""), param: "x"},
		{name: "gzip of a body that is none of ours", contentType: "text/plain", body: inJSON, header: encoded("gzip"), code: alicaptcha.ParamMissing},
		{name: "gzip, but the param is in the header", contentType: extJSON, body: inJSON,
			header: http.Header{"Content-Encoding": {"gzip"}, "Captcha-Verify-Param": {"h"}}, param: "h"},
	})
}

func TestExtractJSON(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("ab\\u0041\\\"", 3000)
	var longPlain string
	require.NoError(t, json.Unmarshal([]byte(`"`+long+`"`), &longPlain))

	cases := []extCase{
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
		cases[i].contentType = extJSON
	}
	extRunAll(t, cases)
}

func TestExtractJSONPointer(t *testing.T) {
	t.Parallel()
	pointer := func(fields ...string) []alicaptcha.Extractor {
		return []alicaptcha.Extractor{alicaptcha.FromJSON(fields...)}
	}
	cases := []extCase{
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
		cases[i].contentType = extJSON
	}
	extRunAll(t, cases)
}

func TestExtractURLEncoded(t *testing.T) {
	t.Parallel()
	fields := func(fields ...string) []alicaptcha.Extractor {
		return []alicaptcha.Extractor{alicaptcha.FromForm(fields...)}
	}
	cases := []extCase{
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
			extCase{name: fmt.Sprintf("%d bytes, last", size), body: "f=" + value, param: value},
			extCase{name: fmt.Sprintf("%d bytes, first", size), body: "f=" + value + "&a=1", param: value},
			extCase{name: fmt.Sprintf("%d bytes, after another as long", size), body: "a=" + value + "&f=" + value + "&b=1", param: value},
			extCase{name: fmt.Sprintf("%d bytes of another", size), body: strings.Repeat("&", size) + "f=x", param: "x"},
		)
	}
	for i := range cases {
		cases[i].contentType = extForm
		if cases[i].extractors == nil {
			cases[i].extractors = fields("f")
		}
	}
	extRunAll(t, cases)
}

func TestExtractMultipart(t *testing.T) {
	t.Parallel()
	field := extPart(`name="f"`, "x") + extEnd
	file := func(size int) string {
		return extPart(`name="upload"; filename="a.bin"`, strings.Repeat("0123456789abcde\n", size/16))
	}
	long := strings.Repeat("v", 28_000)
	cases := []extCase{
		{name: "alone", body: field, param: "x"},
		{name: "after others", body: extPart(`name="a"`, "1") + extPart(`name="b"`, "") + field, param: "x"},
		{name: "before a large file", body: extPart(`name="f"`, "x") + file(1<<20) + extEnd, param: "x"},
		{name: "behind a small file", body: file(64<<10) + field, param: "x"},
		{name: "behind a large file", body: file(128<<10) + field, code: alicaptcha.ParamTooLarge},
		{name: "long", body: extPart(`name="f"`, long) + extEnd, param: long},
		{name: "raw bytes are not unescaped", body: extPart(`name="f"`, "a+b%41\r\n--c\r\n") + extEnd, param: "a+b%41\r\n--c\r\n"},
		{name: "unquoted name", body: extPart("name=f", "x") + extEnd, param: "x"},
		{name: "preamble", body: "before\r\n" + field, param: "x"},
		{name: "line feeds only", body: "--b\nContent-Disposition: form-data; name=\"f\"\n\nx\n--b--\n", param: "x"},
		{name: "other headers", body: extPart("name=\"f\"\nContent-Type: text/plain; charset=utf-8\nX-A: b", "x") + extEnd, param: "x"},

		{name: "repeated", body: extPart(`name="f"`, "x") + extPart(`name="f"`, "no") + extEnd, param: "x"},
		{name: "first is empty", body: extPart(`name="f"`, "") + field, param: "x"},
		{name: "empty", body: extPart(`name="f"`, "") + extEnd, code: alicaptcha.ParamMissing},
		{name: "several names, the first in the body wins", extractors: []alicaptcha.Extractor{alicaptcha.FromForm("f", "g")}, body: extPart(`name="g"`, "x") + extPart(`name="f"`, "no") + extEnd, param: "x"},
		{name: "name with a slash is no pointer", extractors: []alicaptcha.Extractor{alicaptcha.FromBody("/f")}, body: extPart(`name="f"`, "no") + extPart(`name="/f"`, "x") + extEnd, param: "x"},
		{name: "case of a name", body: extPart(`name="F"`, "no") + extEnd, code: alicaptcha.ParamMissing},
		{name: "without the field", body: file(16) + extEnd, code: alicaptcha.ParamMissing},
		{name: "without any", body: extEnd, code: alicaptcha.ParamMissing},
		{name: "query only", target: "/?f=no", body: extPart(`name="a"`, "1") + extEnd, code: alicaptcha.ParamMissing},

		{name: "a file of that name", body: extPart(`name="f"; filename="a.txt"`, "no") + extEnd, code: alicaptcha.ParamMissing},
		{name: "a file of that name before", body: extPart(`name="f"; filename="a.txt"`, "no") + field, param: "x"},
		{name: "a file with an encoded name", body: extPart(`name="f"; filename*=utf-8''a.txt`, "no") + field, param: "x"},
		{name: "an attachment", body: extCRLF("--b\nContent-Disposition: attachment; name=\"f\"\n\nno\n") + field, param: "x"},
		{name: "a part without a name", body: extCRLF("--b\nContent-Type: text/plain\n\nno\n") + field, param: "x"},

		{name: "quoted-printable", body: extPart("name=\"f\"\nContent-Transfer-Encoding: quoted-printable", "a=3Db=\r\nc") + extEnd, param: "a=bc"},
		{name: "bad quoted-printable", body: extPart("name=\"f\"\nContent-Transfer-Encoding: quoted-printable", "a\x01b") + extEnd, code: alicaptcha.ParamMalformed},
		{name: "quoted-printable that net/http takes as it is", body: extPart("name=\"f\"\nContent-Transfer-Encoding: Quoted-Printable", "a=ZZ") + extEnd, param: "a=ZZ"},
		{name: "not UTF-8", body: extPart(`name="f"`, "a\xffb") + extEnd, code: alicaptcha.ParamMalformed},
		{name: "param at the limit", body: extPart(`name="f"`, "12345678") + extEnd, maxParam: 8, param: "12345678"},
		{name: "param over the limit", body: extPart(`name="f"`, "123456789") + extEnd, maxParam: 8, code: alicaptcha.ParamTooLarge},

		{name: "final boundary missing, field complete", body: extPart(`name="f"`, "x") + extPart(`name="a"`, "1"), param: "x"},
		{name: "boundary after the field missing", body: extPart(`name="f"`, "x"), code: alicaptcha.ParamMalformed},
		{name: "cut in the field", body: strings.TrimSuffix(extPart(`name="f"`, "xyz"), "z\r\n"), code: alicaptcha.ParamMalformed},
		{name: "cut in a header's name", body: extCRLF("--b\nContent-Dispo"), code: alicaptcha.ParamMalformed},
		{name: "cut between headers, which net/http takes for the end", body: extCRLF("--b\nContent-Disposition: form-data; name=\"f\"\n"), code: alicaptcha.ParamMissing},
		{name: "cut before the field", body: extPart(`name="a"`, "1"), code: alicaptcha.ParamMalformed},
		{name: "bad headers", body: extCRLF("--b\nno header\n\nno\n") + field, code: alicaptcha.ParamMalformed},
		{name: "another boundary", body: strings.ReplaceAll(field, "--b", "--c"), code: alicaptcha.ParamMalformed},
		{name: "no multipart at all", body: "f=no", code: alicaptcha.ParamMalformed},
		{name: "empty body", body: "", code: alicaptcha.ParamMalformed},
		{name: "broken behind the field", body: extPart(`name="f"`, "x") + "--b\r\nno header", param: "x"},
	}
	for i := range cases {
		cases[i].contentType = extMult
		if cases[i].extractors == nil {
			cases[i].extractors = []alicaptcha.Extractor{alicaptcha.FromForm("f")}
		}
	}
	extRunAll(t, cases)
}

// TestExtractEveryLimit puts the limit at every byte of some bodies: what is
// found must not depend on it, and nothing is ever found in part.
func TestExtractEveryLimit(t *testing.T) {
	t.Parallel()
	jsonBody := `{"a":[1,"é"],"f":"value","b":2}`
	formBody := "a=%41&f=value&b=2"
	for _, c := range []struct {
		name, contentType, body string
		enough                  int // the smallest limit that must do; 0: not said
	}{
		{"JSON", extJSON, jsonBody, strings.Index(jsonBody, `,"b"`)},
		{"JSON without more", extJSON, `{"f":"value"}`, len(`{"f":"value"`)},
		{"form", extForm, formBody, strings.Index(formBody, "b=")},
		{"form without more", extForm, "a=1&f=value", len("a=1&f=value")},
		{"multipart", extMult, extPart(`name="a"`, "1") + extPart(`name="f"`, "value") + extPart(`name="b"`, "2") + extEnd, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			found := false
			for limit := 1; limit <= len(c.body)+2; limit++ {
				for delivery, reader := range extDeliveries {
					gate, verifier := extGate(t, func(cfg *alicaptcha.Config) { cfg.MaxBodyBytes = limit }, alicaptcha.FromBody("f"))
					r := extRequest(c.contentType, reader(c.body))
					o := gate.Check(r)
					if limit >= len(c.body) || c.enough != 0 && limit >= c.enough || found && c.enough != 0 {
						require.Equal(t, alicaptcha.T001, o.Code, "limit %d, %s", limit, delivery)
					}
					if o.Code == alicaptcha.T001 {
						found = true
						require.Equal(t, []string{"value"}, verifier.params(), "limit %d, %s", limit, delivery)
						require.GreaterOrEqual(t, limit, c.enough, "limit %d, %s: read on behind the limit", limit, delivery)
					} else {
						require.Equal(t, alicaptcha.ParamTooLarge, o.Code, "limit %d, %s", limit, delivery)
						require.Empty(t, verifier.params())
					}
					got, err := io.ReadAll(r.Body)
					require.NoError(t, err)
					require.Equal(t, c.body, string(got), "limit %d, %s", limit, delivery)
				}
			}
			require.True(t, found)
		})
	}
}

// A limit that means "none" must not overflow.
func TestExtractLargestLimit(t *testing.T) {
	t.Parallel()
	for _, limit := range []int{math.MaxInt32, math.MaxInt - 1, math.MaxInt} {
		require.NotPanics(t, func() {
			extCase{contentType: extForm, body: "a=1&captchaVerifyParam=x", maxBody: limit, maxParam: limit, param: "x"}.
				run(t, strconv.Itoa(limit), extDeliveries["whole"])
		})
	}
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
	fails := func(*http.Request) (string, error) { return "", errExtBoom }
	both := func(*http.Request) (string, error) { return "no", errExtBoom }
	never := func(*http.Request) (string, error) { panic("called after the end of the search") }
	extRunAll(t, []extCase{
		{name: "each starts at the first byte", contentType: extJSON, body: body, param: "x",
			extractors: []alicaptcha.Extractor{some, all, alicaptcha.FromJSON("a"), some, alicaptcha.FromJSON("/b/c"), never}},
		{name: "an error ends the search", contentType: extJSON, body: body, code: alicaptcha.ParamMalformed,
			extractors: []alicaptcha.Extractor{all, fails, never}},
		{name: "an error counts more than a value", contentType: extJSON, body: body, code: alicaptcha.ParamMalformed,
			extractors: []alicaptcha.Extractor{both, never}},
		{name: "a finding ends the search", contentType: extJSON, body: body, param: "x",
			extractors: []alicaptcha.Extractor{alicaptcha.FromHeader("none"), alicaptcha.FromJSON("/b/c"), never}},
		{name: "none finds anything", contentType: extJSON, body: body, code: alicaptcha.ParamMissing,
			extractors: []alicaptcha.Extractor{all, alicaptcha.FromJSON("z"), alicaptcha.FromForm("z"), some}},
	})
}

func TestExtractNoBody(t *testing.T) {
	t.Parallel()
	for name, body := range map[string]io.ReadCloser{"nil": nil, "NoBody": http.NoBody} {
		for _, contentType := range []string{"", extJSON, extForm} {
			r := extRequest(contentType, nil)
			r.Body = body
			gate, verifier := extGate(t, nil)
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
		gate, _ := extGate(t, nil, func(r *http.Request) (string, error) {
			r.Body = io.NopCloser(strings.NewReader("mine"))
			return "", nil
		})
		r := extRequest("", nil)
		r.Body = nil
		require.Equal(t, alicaptcha.ParamMissing, gate.Check(r).Code)
		require.Nil(t, r.Body)
	})
}

// A body that nobody had to read is the server's own, with all its methods.
func TestExtractUntouchedBody(t *testing.T) {
	t.Parallel()
	body := io.NopCloser(strings.NewReader("captchaVerifyParam=no"))
	r := extRequest(extForm, nil)
	r.Body = body
	r.Header.Set("Captcha-Verify-Param", "x")
	gate, verifier := extGate(t, nil)
	require.True(t, gate.Check(r).Allowed)
	require.Equal(t, []string{"x"}, verifier.params())
	require.True(t, body == r.Body, "another body")
}

// An extBody counts what is read of it and how often it is closed.
type extBody struct {
	src    io.Reader
	read   atomic.Int64
	closed atomic.Int64
}

func (b *extBody) Read(p []byte) (int, error) {
	n, err := b.src.Read(p)
	b.read.Add(int64(n))
	return n, err
}

func (b *extBody) Close() error {
	b.closed.Add(1)
	return nil
}

func TestExtractClose(t *testing.T) {
	t.Parallel()
	const text = "captchaVerifyParam=x&a=1"
	closes := func(r *http.Request) (string, error) {
		if err := errors.Join(r.Body.Close(), r.Body.Close()); err != nil {
			return "", err
		}
		got, _ := io.ReadAll(r.Body)
		r.Body.Close()
		if string(got) != text {
			return "", errors.New("closed for the next extractor")
		}
		return "", nil
	}
	body := &extBody{src: strings.NewReader(text)}
	gate, verifier := extGate(t, nil, closes, closes, alicaptcha.FromForm("captchaVerifyParam"))
	verifier.hook = func(context.Context) error {
		require.Zero(t, body.closed.Load(), "closed before the handler had it")
		return nil
	}
	w := httptest.NewRecorder()
	gate.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		head := make([]byte, 3)
		_, err := io.ReadFull(r.Body, head)
		require.NoError(t, err)
		require.Equal(t, text[:3], string(head))
		require.NoError(t, r.Body.Close())
		require.EqualValues(t, 1, body.closed.Load(), "the handler's Close did not reach the body")
		n, err := r.Body.Read(head)
		require.Zero(t, n)
		require.ErrorIs(t, err, http.ErrBodyReadAfterClose)
	})).ServeHTTP(w, extRequest(extForm, body))
	require.Equal(t, http.StatusOK, w.Code)
	require.Equal(t, []string{"x"}, verifier.params())
}

// http.Transport closes a request's body while another goroutine reads it.
func TestExtractReadAndCloseAtOnce(t *testing.T) {
	t.Parallel()
	const text = "captchaVerifyParam=x&a="
	gate, _ := extGate(t, nil)
	for range 50 {
		in, out := io.Pipe()
		r := extRequest(extForm, io.NopCloser(io.MultiReader(strings.NewReader(text), in)))
		require.True(t, gate.Check(r).Allowed)
		var group sync.WaitGroup
		var got []byte
		group.Go(func() {
			for range 1000 {
				if _, err := out.Write([]byte("y")); err != nil {
					return
				}
			}
			out.Close()
		})
		group.Go(func() { got, _ = io.ReadAll(r.Body) })
		group.Go(func() { r.Body.Close(); in.Close() })
		group.Wait()
		whole := text + strings.Repeat("y", 1000)
		require.True(t, strings.HasPrefix(whole, string(got)), "not a prefix of the body: %q", got)
	}
}

// A read of nothing does not wait for a client that is silent.
func TestExtractReadsNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { // where to wait for ever is a failure
		for _, sent := range []string{"", "captchaVerify", "captchaVerifyParam=x&"} {
			in, out := io.Pipe()
			defer in.Close()
			reads := 0
			gate, _ := extGate(t, nil, func(r *http.Request) (string, error) {
				readNothing := func() {
					for _, none := range [][]byte{nil, {}} {
						n, err := r.Body.Read(none)
						require.NoError(t, err)
						require.Zero(t, n)
						reads++
					}
				}
				readNothing()
				if sent != "" {
					go io.WriteString(out, sent)
					_, err := io.ReadFull(r.Body, make([]byte, len(sent)))
					require.NoError(t, err)
				}
				readNothing()
				return "x", nil
			})
			r := extRequest(extForm, in)
			require.True(t, gate.Check(r).Allowed)
			require.Equal(t, 4, reads)
			if sent != "" { // the handler reads what is recorded
				n, err := r.Body.Read(nil)
				require.NoError(t, err)
				require.Zero(t, n)
				got := make([]byte, len(sent))
				_, err = io.ReadFull(r.Body, got)
				require.NoError(t, err)
				require.Equal(t, sent, string(got))
			}
		}
	})
}

func TestExtractReadError(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, contentType, sent string
		code                    alicaptcha.Code
	}{
		{"JSON, after the field", extJSON, `{"captchaVerifyParam":"x","a":`, alicaptcha.T001},
		{"JSON, in the field", extJSON, `{"captchaVerifyParam":"x`, alicaptcha.ParamMalformed},
		{"JSON, before the field", extJSON, `{"a":1`, alicaptcha.ParamMalformed},
		{"JSON, at once", extJSON, "", alicaptcha.ParamMalformed},
		{"form, after the field", extForm, "captchaVerifyParam=x&", alicaptcha.T001},
		{"form, in the field", extForm, "captchaVerifyParam=x", alicaptcha.ParamMalformed},
		{"form, before the field", extForm, "a=1&", alicaptcha.ParamMalformed},
		{"form, at once", extForm, "", alicaptcha.ParamMalformed},
		{"multipart, after the field", extMult, extPart(`name="captchaVerifyParam"`, "x") + "--b\r\n", alicaptcha.T001},
		{"multipart, in the field", extMult, extPart(`name="captchaVerifyParam"`, "x"), alicaptcha.ParamMalformed},
		{"multipart, at once", extMult, "", alicaptcha.ParamMalformed},
		{"unknown type", "text/plain", "hello", alicaptcha.ParamMissing},
	} {
		for way, src := range map[string]func() io.Reader{
			"by itself":     func() io.Reader { return io.MultiReader(strings.NewReader(c.sent), iotest.ErrReader(errExtBoom)) },
			"with the data": func() io.Reader { return &extFails{data: c.sent} },
			"only once":     func() io.Reader { return &extFails{data: c.sent, once: true} },
			"byte by byte": func() io.Reader {
				return iotest.OneByteReader(io.MultiReader(strings.NewReader(c.sent), iotest.ErrReader(errExtBoom)))
			},
		} {
			if way == "only once" && c.code == alicaptcha.ParamMissing {
				continue // nobody reads it, so nobody keeps the error
			}
			gate, verifier := extGate(t, nil)
			r := extRequest(c.contentType, src())
			o := gate.Check(r)
			require.Equal(t, c.code, o.Code, "%s, %s", c.name, way)
			require.Equal(t, c.code == alicaptcha.T001, len(verifier.params()) == 1, "%s, %s", c.name, way)
			got, err := io.ReadAll(r.Body)
			require.Equal(t, c.sent, string(got), "%s, %s", c.name, way)
			require.Equal(t, errExtBoom, err, "%s, %s", c.name, way)
			n, err := r.Body.Read(make([]byte, 8))
			require.Zero(t, n)
			require.Equal(t, errExtBoom, err, "%s, %s: the error went away", c.name, way)
		}
	}
}

// An extFails gives its data together with errExtBoom, and may then forget
// about that.
type extFails struct {
	data string
	once bool
	done bool
}

func (f *extFails) Read(p []byte) (int, error) {
	if f.done && f.once {
		return 0, io.EOF
	}
	n := copy(p, f.data)
	f.data = f.data[n:]
	f.done = f.data == ""
	if f.done {
		return n, errExtBoom
	}
	return n, nil
}

// TestExtractReadsNoFurther proves that the service is asked while the rest of
// the body is still with the client.
func TestExtractReadsNoFurther(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, contentType, first string }{
		{"JSON", extJSON, `{"captchaVerifyParam":"x"`},
		{"form", extForm, "captchaVerifyParam=x&"},
		{"multipart", extMult, extPart(`name="captchaVerifyParam"`, "x") + "--b\r\n"},
		{"unknown, param in the header", "text/plain", ""},
	} {
		for _, deferred := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, deferred %t", c.name, deferred), func(t *testing.T) {
				t.Parallel()
				const rest = 4 << 20
				var asked atomic.Bool
				body := &extBody{src: io.MultiReader(
					strings.NewReader(c.first),
					&extLater{ready: &asked, src: io.LimitReader(extNoise(1), rest)},
				)}
				gate, verifier := extGate(t, nil)
				verifier.hook = func(context.Context) error {
					require.EqualValues(t, len(c.first), body.read.Load(), "read further than the field")
					asked.Store(true)
					return nil
				}
				handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if deferred {
						require.EqualValues(t, len(c.first), body.read.Load(), "read further than the field")
						require.True(t, alicaptcha.Require(w, r))
					}
					got, want := sha256.New(), sha256.New()
					n, err := io.Copy(got, r.Body)
					require.NoError(t, err)
					require.EqualValues(t, len(c.first)+rest, n)
					io.WriteString(want, c.first)
					io.Copy(want, io.LimitReader(extNoise(1), rest))
					require.Equal(t, want.Sum(nil), got.Sum(nil))
				})
				r := extRequest(c.contentType, body)
				if c.first == "" {
					r.Header.Set("Captcha-Verify-Param", "x")
				}
				w := httptest.NewRecorder()
				if deferred {
					gate.Deferred(handler).ServeHTTP(w, r)
				} else {
					gate.Handler(handler).ServeHTTP(w, r)
				}
				require.Equal(t, http.StatusOK, w.Code)
				require.Equal(t, []string{"x"}, verifier.params())
			})
		}
	}

	// All of it is there at once.
	for _, c := range []struct {
		name, body string
		most       int64
	}{
		{"field first", "captchaVerifyParam=x&a=", 16 << 10},
		{"field never", "a=", 128<<10 + 1},
	} {
		body := &extBody{src: io.MultiReader(strings.NewReader(c.body), io.LimitReader(extNoise(2), 4<<20))}
		gate, _ := extGate(t, nil)
		gate.Check(extRequest(extForm, body))
		require.LessOrEqual(t, body.read.Load(), c.most, c.name)
		require.NotZero(t, body.read.Load(), c.name)
	}
}

// An extLater is not to be read before it is ready.
type extLater struct {
	ready *atomic.Bool
	src   io.Reader
}

func (l *extLater) Read(p []byte) (int, error) {
	if !l.ready.Load() {
		return 0, errors.New("read too early")
	}
	return l.src.Read(p)
}

// extNoise returns letters without end, the same for the same seed.
func extNoise(seed uint64) io.Reader { return &extLetters{rand.New(rand.NewPCG(seed, seed))} }

type extLetters struct{ rnd *rand.Rand }

func (l *extLetters) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'a' + byte(l.rnd.Uint32()%26)
	}
	return len(p), nil
}

// TestExtractHandlerUses has the handler use the request in each way that
// net/http offers, after each kind of extraction.
func TestExtractHandlerUses(t *testing.T) {
	t.Parallel()
	const (
		formBody = "f=x&a=1&a=2&b=%26"
		jsonBody = `{"f":"x","a":["1","2"],"b":"&"}`
	)
	multBody := extPart(`name="f"`, "x") + extPart(`name="a"`, "1") + extPart(`name="a"`, "2") + extPart(`name="b"`, "&") +
		extPart(`name="up"; filename="u.txt"`, "contents") + extEnd
	wantPost := url.Values{"f": {"x"}, "a": {"1", "2"}, "b": {"&"}}
	wantForm := url.Values{"f": {"x"}, "a": {"1", "2", "query"}, "b": {"&"}, "q": {"1"}}
	wantMult := url.Values{"f": {"x"}, "a": {"query", "1", "2"}, "b": {"&"}, "q": {"1"}} // net/http puts the query first here

	type use struct {
		name, contentType, body string
		do                      func(*testing.T, *http.Request)
	}
	whole := func(body string) func(*testing.T, *http.Request) {
		return func(t *testing.T, r *http.Request) {
			got, err := io.ReadAll(r.Body)
			require.NoError(t, err)
			require.Equal(t, body, string(got))
		}
	}
	file := func(t *testing.T, r *http.Request) {
		f, header, err := r.FormFile("up")
		require.NoError(t, err)
		defer f.Close()
		require.Equal(t, "u.txt", header.Filename)
		got, err := io.ReadAll(f)
		require.NoError(t, err)
		require.Equal(t, "contents", string(got))
	}
	uses := []use{
		{"Body", extForm, formBody, whole(formBody)},
		{"Body", extJSON, jsonBody, whole(jsonBody)},
		{"Body", extMult, multBody, whole(multBody)},
		{"ParseForm", extForm, formBody, func(t *testing.T, r *http.Request) {
			require.NoError(t, r.ParseForm())
			require.Equal(t, wantPost, r.PostForm)
			require.Equal(t, wantForm, r.Form)
		}},
		{"ParseForm of JSON", extJSON, jsonBody, func(t *testing.T, r *http.Request) {
			require.NoError(t, r.ParseForm())
			require.Equal(t, url.Values{}, r.PostForm)
			require.Equal(t, url.Values{"a": {"query"}, "q": {"1"}}, r.Form)
			whole(jsonBody)(t, r)
		}},
		{"PostFormValue", extForm, formBody, func(t *testing.T, r *http.Request) {
			require.Equal(t, "1", r.PostFormValue("a"))
			require.Equal(t, "x", r.PostFormValue("f"))
			require.Equal(t, "1", r.FormValue("q"))
			require.Empty(t, r.PostFormValue("q"))
		}},
		{"PostFormValue", extMult, multBody, func(t *testing.T, r *http.Request) {
			require.Equal(t, "1", r.PostFormValue("a"))
			require.Equal(t, "x", r.PostFormValue("f"))
		}},
		{"ParseMultipartForm", extMult, multBody, func(t *testing.T, r *http.Request) {
			require.NoError(t, r.ParseMultipartForm(1<<20))
			require.Equal(t, wantPost, url.Values(r.MultipartForm.Value))
			require.Equal(t, wantPost, r.PostForm)
			require.Equal(t, wantMult, r.Form)
			file(t, r)
		}},
		{"FormFile", extMult, multBody, file},
		{"MultipartReader", extMult, multBody, func(t *testing.T, r *http.Request) {
			parts, err := r.MultipartReader()
			require.NoError(t, err)
			var names []string
			for {
				part, err := parts.NextPart()
				if err == io.EOF {
					break
				}
				require.NoError(t, err)
				got, err := io.ReadAll(part)
				require.NoError(t, err)
				names = append(names, part.FormName()+"="+string(got))
			}
			require.Equal(t, []string{"f=x", "a=1", "a=2", "b=&", "up=contents"}, names)
		}},
		{"json.Decoder", extJSON, jsonBody, func(t *testing.T, r *http.Request) {
			var got struct {
				F, B string
				A    []string
			}
			dec := json.NewDecoder(r.Body)
			require.NoError(t, dec.Decode(&got))
			require.Equal(t, "x", got.F)
			require.Equal(t, []string{"1", "2"}, got.A)
			require.Equal(t, "&", got.B)
			require.Equal(t, io.EOF, dec.Decode(&got))
		}},
	}

	// What users write, good habits and bad, before the extractor that finds.
	extractors := map[string]alicaptcha.Extractor{
		"ours":               alicaptcha.FromHeader("none"),
		"reads all":          func(r *http.Request) (string, error) { io.Copy(io.Discard, r.Body); return "", nil },
		"closes":             func(r *http.Request) (string, error) { return "", r.Body.Close() },
		"reads all, closes":  func(r *http.Request) (string, error) { io.Copy(io.Discard, r.Body); return "", r.Body.Close() },
		"ParseForm":          func(r *http.Request) (string, error) { return "", r.ParseForm() },
		"ParseMultipartForm": func(r *http.Request) (string, error) { r.ParseMultipartForm(1 << 20); return "", nil },
		"FormValue":          func(r *http.Request) (string, error) { return r.FormValue("none"), nil },
		"PostFormValue":      func(r *http.Request) (string, error) { return r.PostFormValue("none"), nil },
		"FormFile":           func(r *http.Request) (string, error) { r.FormFile("up"); return "", nil },
		"MultipartReader": func(r *http.Request) (string, error) {
			if parts, err := r.MultipartReader(); err == nil {
				parts.NextPart()
			}
			return "", nil
		},
		"json.Decoder": func(r *http.Request) (string, error) {
			json.NewDecoder(r.Body).Decode(new(any))
			return "", nil
		},
		"replaces the body": func(r *http.Request) (string, error) {
			io.Copy(io.Discard, r.Body)
			r.Body = io.NopCloser(strings.NewReader("another"))
			return "", nil
		},
		"limits the body": func(r *http.Request) (string, error) {
			r.Body = http.MaxBytesReader(nil, r.Body, 3)
			io.Copy(io.Discard, r.Body)
			return "", nil
		},
		"nils the body": func(r *http.Request) (string, error) { r.Body = nil; return "", nil },
		"sets forms": func(r *http.Request) (string, error) {
			r.Form, r.PostForm = url.Values{"a": {"no"}}, url.Values{"a": {"no"}}
			r.MultipartForm = &multipart.Form{Value: map[string][]string{"a": {"no"}}}
			return "", nil
		},
	}
	for before, extractor := range extractors {
		for _, u := range uses {
			t.Run(before+" before "+u.name+" of "+u.contentType, func(t *testing.T) {
				t.Parallel()
				request := func() *http.Request {
					r := extRequest(u.contentType, strings.NewReader(u.body))
					r.URL.RawQuery = "a=query&q=1"
					return r
				}
				handled := 0
				handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					handled++
					require.Nil(t, r.Form)
					require.Nil(t, r.PostForm)
					require.Nil(t, r.MultipartForm)
					u.do(t, r)
					require.True(t, alicaptcha.Require(w, r))
				})
				gate, verifier := extGate(t, nil, extractor, alicaptcha.FromBody("f"))
				gate.Handler(handler).ServeHTTP(httptest.NewRecorder(), request())
				gate.Deferred(handler).ServeHTTP(httptest.NewRecorder(), request())
				r := request()
				require.True(t, gate.Check(r).Allowed)
				u.do(t, r)
				require.Equal(t, 2, handled)
				require.Equal(t, []string{"x", "x", "x"}, verifier.params())
			})
		}
	}
}

// An outer middleware that has called ParseForm leaves r.Form behind, to which
// a user's extractor that parses a multipart form would add.
func TestExtractParsedByOuterAndExtractor(t *testing.T) {
	t.Parallel()
	body := extPart(`name="f"`, "x") + extPart(`name="a"`, "1") + extEnd
	gate, verifier := extGate(t, nil, func(r *http.Request) (string, error) {
		err := r.ParseMultipartForm(1 << 20)
		return r.FormValue("f"), err
	})
	r := extRequest(extMult, strings.NewReader(body))
	r.URL.RawQuery = "q=1"
	require.NoError(t, r.ParseForm())
	handled := false
	gate.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		handled = true
		require.Equal(t, url.Values{"q": {"1"}}, r.Form, "the extractor's parsing is still there")
		require.Equal(t, url.Values{}, r.PostForm, "the extractor's parsing is still there")
		require.NoError(t, r.ParseMultipartForm(1<<20))
		require.Equal(t, url.Values{"q": {"1"}, "f": {"x"}, "a": {"1"}}, r.Form)
		require.Equal(t, url.Values{"f": {"x"}, "a": {"1"}}, r.PostForm)
	})).ServeHTTP(httptest.NewRecorder(), r)
	require.True(t, handled)
	require.Equal(t, []string{"x"}, verifier.params())
}

func TestExtractFormParsedByOuter(t *testing.T) {
	t.Parallel()
	multBody := extPart(`name="f"`, "") + extPart(`name="f"`, "x") + extPart(`name="a"`, "1") + extEnd
	parseForm := func(r *http.Request) error { return r.ParseForm() }
	parseMultipart := func(r *http.Request) error { return r.ParseMultipartForm(1 << 20) }
	for _, c := range []struct {
		name, contentType, body, query string
		parse                          func(*http.Request) error
		code                           alicaptcha.Code
	}{
		{"form", extForm, "a=1&f=&f=x", "", parseForm, alicaptcha.T001},
		{"form by ParseMultipartForm", extForm, "a=1&f=x", "", func(r *http.Request) error {
			require.ErrorIs(t, r.ParseMultipartForm(1), http.ErrNotMultipart)
			return nil
		}, alicaptcha.T001},
		{"form by FormValue", extForm, "a=1&f=x", "", func(r *http.Request) error { r.FormValue("a"); return nil }, alicaptcha.T001},
		{"multipart", extMult, multBody, "", parseMultipart, alicaptcha.T001},
		{"multipart by ParseForm, which does not read it", extMult, multBody, "", parseForm, alicaptcha.T001},
		{"form without the field", extForm, "a=1", "f=no", parseForm, alicaptcha.ParamMissing},
		{"multipart without the field", extMult, extPart(`name="a"`, "1") + extEnd, "f=no", parseMultipart, alicaptcha.ParamMalformed},
		{"query only", extForm, "", "f=no", parseForm, alicaptcha.ParamMissing},
		{"not UTF-8", extForm, "f=%ff", "", parseForm, alicaptcha.ParamMalformed},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			for _, extractor := range []alicaptcha.Extractor{alicaptcha.FromForm("g", "f"), alicaptcha.FromBody("f", "g")} {
				gate, verifier := extGate(t, nil, extractor)
				r := extRequest(c.contentType, strings.NewReader(c.body))
				r.URL.RawQuery = c.query
				require.NoError(t, c.parse(r))
				form, postForm, multipartForm := r.Form, r.PostForm, r.MultipartForm
				require.Equal(t, c.code, gate.Check(r).Code)
				require.Equal(t, form, r.Form)
				require.Equal(t, postForm, r.PostForm)
				require.Equal(t, multipartForm, r.MultipartForm)
				if c.code == alicaptcha.T001 {
					require.Equal(t, []string{"x"}, verifier.params())
				} else {
					require.Empty(t, verifier.params())
				}
			}
		})
	}
}

// extTemp gives the test a directory for temporary files, and returns how many
// there are in it.
func extTemp(t *testing.T) func() int {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	return func() int {
		files, err := os.ReadDir(dir)
		require.NoError(t, err)
		return len(files)
	}
}

// extUpload is a body with a file that is longer than the memory that the tests
// give to ParseMultipartForm.
func extUpload(size int) string {
	return extPart(`name="captchaVerifyParam"`, "x") + extPart(`name="up"; filename="u.bin"`, strings.Repeat("u", size)) + extEnd
}

func TestExtractTemporaryFilesOfExtractor(t *testing.T) {
	count := extTemp(t)
	var made int
	parses := func(value string, err error) alicaptcha.Extractor {
		return func(r *http.Request) (string, error) {
			if err := r.ParseMultipartForm(1); err != nil {
				return "", err
			}
			made = count()
			return value, err
		}
	}
	upload := extUpload(64 << 10)
	for _, c := range []struct {
		name       string
		body       string
		extractors []alicaptcha.Extractor
		code       alicaptcha.Code
		made       int
	}{
		{"it finds", upload, []alicaptcha.Extractor{parses("x", nil)}, alicaptcha.T001, 1},
		{"the next one finds", upload, []alicaptcha.Extractor{parses("", nil), alicaptcha.FromForm("captchaVerifyParam")}, alicaptcha.T001, 1},
		{"two of them", upload, []alicaptcha.Extractor{parses("", nil), parses("x", nil)}, alicaptcha.T001, 1},
		{"it fails", upload, []alicaptcha.Extractor{parses("", errExtBoom)}, alicaptcha.ParamMalformed, 1},
		{"none finds", upload, []alicaptcha.Extractor{parses("", nil)}, alicaptcha.ParamMissing, 1},
		{"the file is too large", extUpload(256 << 10), []alicaptcha.Extractor{parses("x", nil)}, alicaptcha.ParamTooLarge, 0},
	} {
		made = 0
		gate, _ := extGate(t, nil, c.extractors...)
		r := extRequest(extMult, strings.NewReader(c.body))
		require.Equal(t, c.code, gate.Check(r).Code, c.name)
		require.Equal(t, c.made, made, "%s: no temporary file, so nothing is tested", c.name)
		require.Zero(t, count(), "%s: a temporary file is left", c.name)
		require.Nil(t, r.MultipartForm, c.name)
		got, err := io.ReadAll(r.Body)
		require.NoError(t, err)
		require.True(t, c.body == string(got), "%s: the body is another", c.name)
	}
}

// What an outer middleware has parsed is not ours to remove.
func TestExtractTemporaryFilesOfOuter(t *testing.T) {
	count := extTemp(t)
	gate, verifier := extGate(t, nil,
		func(r *http.Request) (string, error) {
			f, _, err := r.FormFile("up")
			if err != nil {
				return "", err
			}
			return "", f.Close()
		},
		alicaptcha.FromForm("captchaVerifyParam"))
	r := extRequest(extMult, strings.NewReader(extUpload(64<<10)))
	require.NoError(t, r.ParseMultipartForm(1))
	require.Equal(t, 1, count())
	form := r.MultipartForm
	handled := false
	gate.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		handled = true
		f, _, err := r.FormFile("up")
		require.NoError(t, err)
		defer f.Close()
		got, err := io.ReadAll(f)
		require.NoError(t, err)
		require.Len(t, got, 64<<10)
	})).ServeHTTP(httptest.NewRecorder(), r)
	require.True(t, handled)
	require.Equal(t, []string{"x"}, verifier.params())
	require.Same(t, form, r.MultipartForm)
	require.Equal(t, 1, count())
	require.NoError(t, form.RemoveAll())
}

// TestExtractTemporaryFilesOfHandler does after the handler what net/http's
// server does: it removes the files of the request that it made.
func TestExtractTemporaryFilesOfHandler(t *testing.T) {
	count := extTemp(t)
	for _, deferred := range []bool{false, true} {
		for _, panics := range []bool{false, true} {
			for gates := 1; gates <= 2; gates++ {
				name := fmt.Sprintf("deferred %t, panics %t, gates %d", deferred, panics, gates)
				var handler http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					require.NoError(t, r.ParseMultipartForm(1), name)
					require.Equal(t, 1, count(), "%s: no temporary file, so nothing is tested", name)
					if panics {
						panic(http.ErrAbortHandler)
					}
				})
				gate, _ := extGate(t, nil)
				for range gates {
					if deferred {
						handler = gate.Deferred(handler)
					} else {
						handler = gate.Handler(handler)
					}
				}
				r := extRequest(extMult, strings.NewReader(extUpload(1<<20)))
				func() {
					defer func() { require.Equal(t, panics, recover() != nil, name) }()
					handler.ServeHTTP(httptest.NewRecorder(), r)
				}()
				require.NotNil(t, r.MultipartForm, "%s: the server does not know of the files", name)
				require.NoError(t, r.MultipartForm.RemoveAll(), name)
				require.Zero(t, count(), name)
			}
		}
	}
}

// An extractor's panic is its author's fault, but not a reason to keep files.
func TestExtractTemporaryFilesOfPanickingExtractor(t *testing.T) {
	count := extTemp(t)
	gate, verifier := extGate(t, nil, func(r *http.Request) (string, error) {
		require.NoError(t, r.ParseMultipartForm(1))
		require.Equal(t, 1, count())
		panic(http.ErrAbortHandler)
	})
	r := extRequest(extMult, strings.NewReader(extUpload(64<<10)))
	func() {
		defer func() { require.Equal(t, http.ErrAbortHandler, recover()) }()
		gate.Handler(http.NotFoundHandler()).ServeHTTP(httptest.NewRecorder(), r)
	}()
	require.Empty(t, verifier.params())
	if r.MultipartForm != nil {
		require.NoError(t, r.MultipartForm.RemoveAll()) // as the server does
	}
	require.Zero(t, count(), "a temporary file is left")
}

func TestExtractTemporaryFilesOnServer(t *testing.T) {
	count := extTemp(t)
	for _, panics := range []bool{false, true} {
		gate, verifier := extGate(t, nil)
		made := make(chan int, 2)
		inner := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			r.ParseMultipartForm(1)
			made <- count()
			if panics {
				panic("handler")
			}
		})
		for _, handler := range []http.Handler{gate.Handler(inner), gate.Deferred(inner)} {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				// A router's recovery; net/http's own closes the connection and leaves the files.
				defer func() {
					if (recover() != nil) != panics {
						t.Error("the handler's panic did not come through, or there was none")
					}
				}()
				handler.ServeHTTP(w, r)
			}))
			resp, err := server.Client().Post(server.URL, extMult, strings.NewReader(extUpload(1<<20)))
			require.NoError(t, err)
			resp.Body.Close()
			server.Close() // waits until the server is done with the request
			require.Equal(t, 1, <-made, "no temporary file, so nothing is tested")
			require.Zero(t, count(), "panics %t: a temporary file is left", panics)
		}
		require.Equal(t, []string{"x"}, verifier.params())
	}
}

// http.MaxBytesReader around our body, or around what we read, still bites.
func TestExtractMaxBytesReader(t *testing.T) {
	t.Parallel()
	body := "captchaVerifyParam=x&a=" + strings.Repeat("y", 20_000)
	late := "a=" + strings.Repeat("y", 10_000) + "&captchaVerifyParam=x"
	reads := func(limit int) http.HandlerFunc {
		return func(_ http.ResponseWriter, r *http.Request) {
			got, err := io.ReadAll(r.Body)
			tooLarge, ok := errors.AsType[*http.MaxBytesError](err)
			require.True(t, ok, "%v", err)
			require.EqualValues(t, limit, tooLarge.Limit)
			require.Equal(t, body[:limit], string(got))
			_, err = r.Body.Read(make([]byte, 1))
			require.ErrorAs(t, err, &tooLarge)
		}
	}
	for _, limit := range []int{1, 30, 511, 512, 513, 1024, 4095, 4096, 4097, 19_999} {
		t.Run("inside, "+strconv.Itoa(limit), func(t *testing.T) {
			t.Parallel()
			handled := false
			handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				handled = true
				r.Body = http.MaxBytesReader(w, r.Body, int64(limit))
				reads(limit)(w, r)
			})
			gate, _ := extGate(t, nil)
			gate.Handler(handler).ServeHTTP(httptest.NewRecorder(), extRequest(extForm, strings.NewReader(body)))
			require.True(t, handled)
		})
		t.Run("outside, "+strconv.Itoa(limit), func(t *testing.T) {
			t.Parallel()
			if limit < 30 {
				return // the field is not before it
			}
			handled := false
			gate, verifier := extGate(t, nil)
			http.MaxBytesHandler(gate.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				handled = true
				reads(limit)(w, r)
			})), int64(limit)).ServeHTTP(httptest.NewRecorder(), extRequest(extForm, strings.NewReader(body)))
			require.True(t, handled)
			require.Equal(t, []string{"x"}, verifier.params())
		})
	}
	t.Run("outside, ParseForm of the handler", func(t *testing.T) {
		t.Parallel()
		gate, _ := extGate(t, nil)
		handled := false
		http.MaxBytesHandler(gate.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			handled = true
			_, ok := errors.AsType[*http.MaxBytesError](r.ParseForm())
			require.True(t, ok)
		})), 100).ServeHTTP(httptest.NewRecorder(), extRequest(extForm, strings.NewReader(body)))
		require.True(t, handled)
	})
	t.Run("outside, as long as the body", func(t *testing.T) {
		t.Parallel()
		for delivery, reader := range extDeliveries {
			gate, verifier := extGate(t, nil)
			r := extRequest(extForm, reader(late))
			r.Body = http.MaxBytesReader(nil, r.Body, int64(len(late)))
			require.Equal(t, alicaptcha.T001, gate.Check(r).Code, delivery)
			require.Equal(t, []string{"x"}, verifier.params())
			got, err := io.ReadAll(r.Body)
			require.NoError(t, err, delivery)
			require.Equal(t, late, string(got), delivery)
		}
	})
	for name, c := range map[string]struct{ contentType, body string }{
		"form":                    {extForm, late},
		"JSON":                    {extJSON, `{"a":"` + strings.Repeat("y", 10_000) + `","captchaVerifyParam":"x"}`},
		"multipart":               {extMult, extPart(`name="a"; filename="a"`, strings.Repeat("y", 10_000)) + extPart(`name="captchaVerifyParam"`, "x") + extEnd},
		"multipart, in the field": {extMult, extPart(`name="captchaVerifyParam"`, strings.Repeat("y", 10_000)) + extEnd},
		"JSON, in the field":      {extJSON, `{"captchaVerifyParam":"` + strings.Repeat("y", 10_000) + `"}`},
		"JSON, in a name":         {extJSON, `{"` + strings.Repeat("y", 10_000) + `":1}`},
	} {
		t.Run("outside, field behind, "+name, func(t *testing.T) {
			t.Parallel()
			for _, limit := range []int64{1, 5000} {
				for _, outer := range []bool{true, false} { // the user's limit, or ours
					var seen alicaptcha.Outcome
					gate, verifier := extGate(t, func(cfg *alicaptcha.Config) {
						cfg.Observe = func(_ context.Context, o alicaptcha.Outcome) { seen = o }
						if !outer {
							cfg.MaxBodyBytes = int(limit)
						}
					})
					r := extRequest(c.contentType, strings.NewReader(c.body))
					if outer {
						r.Body = http.MaxBytesReader(nil, r.Body, limit)
					}
					w := httptest.NewRecorder()
					gate.Handler(http.NotFoundHandler()).ServeHTTP(w, r)
					require.Equal(t, http.StatusRequestEntityTooLarge, w.Code)
					require.Equal(t, alicaptcha.ParamTooLarge, seen.Code)
					tooLarge, ok := errors.AsType[*http.MaxBytesError](seen.Err)
					require.True(t, ok, "%v", seen.Err)
					require.Equal(t, limit, tooLarge.Limit)
					require.Empty(t, verifier.params())
				}
			}
		})
	}
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
		{"plain", errExtBoom, alicaptcha.ParamMalformed},
		{"EOF", io.EOF, alicaptcha.ParamMalformed},
		{"unexpected EOF", io.ErrUnexpectedEOF, alicaptcha.ParamMalformed},
		{"too large", tooLarge, alicaptcha.ParamTooLarge},
		{"wrapped", fmt.Errorf("a: %w", fmt.Errorf("b: %w", tooLarge)), alicaptcha.ParamTooLarge},
		{"joined", errors.Join(errExtBoom, tooLarge), alicaptcha.ParamTooLarge},
		{"looks like the client's end", context.Canceled, alicaptcha.ParamMalformed},
		{"looks like a deadline", context.DeadlineExceeded, alicaptcha.ParamMalformed},
		{"looks like the service's", &alicaptcha.Error{Code: alicaptcha.ServiceUnavailable}, alicaptcha.ParamMalformed},
		{"looks like a timeout of the service", &alicaptcha.Error{Code: alicaptcha.ServiceTimeout}, alicaptcha.ParamMalformed},
	} {
		gate, verifier := extGate(t, nil, func(r *http.Request) (string, error) {
			io.CopyN(io.Discard, r.Body, 2)
			r.Body.Close()
			return "no", c.err
		})
		r := extRequest(extForm, strings.NewReader("a=1&b=2"))
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
		gate, _ := extGate(t, func(cfg *alicaptcha.Config) { cfg.MaxBodyBytes = 4 }, func(r *http.Request) (string, error) {
			got, err := io.ReadAll(r.Body)
			require.Equal(t, "a=1&", string(got))
			_, again := r.Body.Read(make([]byte, 1))
			require.Equal(t, err, again, "the error went away")
			return "", fmt.Errorf("reading: %w", err)
		})
		require.Equal(t, alicaptcha.ParamTooLarge, gate.Check(extRequest(extForm, strings.NewReader("a=1&b=2"))).Code)
	})
}

// TestExtractErrorsAreQuiet looks for the body in everything that is said of it.
func TestExtractErrorsAreQuiet(t *testing.T) {
	t.Parallel()
	const secret = "Zw9SECRETq7"
	for name, c := range map[string]struct{ contentType, body string }{
		"JSON, bad value":        {extJSON, `{"captchaVerifyParam":` + secret + `}`},
		"JSON, bad name":         {extJSON, `{` + secret + `:1}`},
		"JSON, duplicate":        {extJSON, `{"` + secret + `":1,"` + secret + `":2}`},
		"JSON, bad escape":       {extJSON, `{"captchaVerifyParam":"` + secret + `\x"}`},
		"JSON, not UTF-8":        {extJSON, `{"captchaVerifyParam":"` + secret + "\xff\"}"},
		"JSON, surrogate":        {extJSON, `{"captchaVerifyParam":"` + secret + `\ud800"}`},
		"JSON, object":           {extJSON, `{"captchaVerifyParam":{"a":"` + secret + `"}}`},
		"JSON, truncated":        {extJSON, `{"captchaVerifyParam":"` + secret},
		"JSON, in a pointer":     {extJSON, `{"a":{"` + secret + `":tru}}`},
		"JSON, no JSON":          {extJSON, secret},
		"JSON, too large":        {extJSON, `{"captchaVerifyParam":"` + strings.Repeat(secret, 20_000)},
		"form, bad escape":       {extForm, "captchaVerifyParam=" + secret + "%zz" + secret},
		"form, cut escape":       {extForm, "captchaVerifyParam=" + secret + "%4"},
		"form, semicolon":        {extForm, "captchaVerifyParam=" + secret + ";"},
		"form, not UTF-8":        {extForm, "captchaVerifyParam=" + secret + "%ff"},
		"form, too long":         {extForm, "captchaVerifyParam=" + strings.Repeat(secret, 4000)},
		"form, too large":        {extForm, "captchaVerifyParam=" + strings.Repeat(secret, 20_000)},
		"multipart, bad headers": {extMult, "--b\r\n" + secret + "\r\n\r\nx\r\n--b--\r\n"},
		"multipart, truncated":   {extMult, "--b\r\nContent-Disposition: form-data; name=captchaVerifyParam\r\n\r\n" + secret},
		"multipart, no boundary": {extMult, secret + "\r\n" + secret},
		"multipart, QP":          {extMult, extPart("name=captchaVerifyParam\nContent-Transfer-Encoding: quoted-printable", secret+"\x01") + extEnd},
		"multipart, bad type":    {"multipart/form-data; boundary=" + secret + "; boundary=x", secret},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			extractor := alicaptcha.FromBody("captchaVerifyParam", "/a/b")
			if _, err := extractor(extRequest(c.contentType, http.MaxBytesReader(nil, io.NopCloser(strings.NewReader(c.body)), 128<<10))); err != nil {
				for e := err; e != nil; e = errors.Unwrap(e) {
					require.NotContains(t, e.Error(), secret)
				}
				require.NotContains(t, fmt.Sprintf("%+v %#v", err, err), secret)
				_, tooLarge := errors.AsType[*http.MaxBytesError](err)
				require.True(t, tooLarge || strings.HasPrefix(err.Error(), "alicaptcha: "), "%v", err)
			}

			var log bytes.Buffer
			var seen alicaptcha.Outcome
			gate, verifier := extGate(t, func(cfg *alicaptcha.Config) {
				cfg.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
				cfg.Observe = func(_ context.Context, o alicaptcha.Outcome) { seen = o }
			}, extractor)
			w := httptest.NewRecorder()
			gate.Handler(http.NotFoundHandler()).ServeHTTP(w, extRequest(c.contentType, strings.NewReader(c.body)))
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
		gate, _ := extGate(t, func(cfg *alicaptcha.Config) {
			cfg.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		}, func(*http.Request) (string, error) { return secret, errors.New("cannot parse " + secret) })
		o := gate.Check(extRequest("", nil))
		require.NotContains(t, o.Err.Error(), secret)
		require.NotEmpty(t, log.String())
		require.NotContains(t, log.String(), secret)
	})
}

func TestExtractContextEnds(t *testing.T) {
	t.Parallel()
	tooLarge := &http.MaxBytesError{Limit: 1}
	for _, c := range []struct {
		name string
		end  func(context.Context) (context.Context, context.CancelFunc)
		code alicaptcha.Code
	}{
		{"cancelled", context.WithCancel, alicaptcha.ClientCanceled},
		{"deadline", func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithDeadline(ctx, time.Now().Add(time.Millisecond))
		}, alicaptcha.Overloaded},
	} {
		for _, e := range []struct {
			name string
			err  func(context.Context) error
		}{
			{"the context's error", context.Context.Err},
			{"another error", func(context.Context) error { return errExtBoom }},
			{"cut off", func(context.Context) error { return io.ErrUnexpectedEOF }},
			{"too large", func(context.Context) error { return tooLarge }},
		} {
			for _, contentType := range []string{extJSON, extForm, extMult} {
				t.Run(c.name+", "+e.name+", "+contentType, func(t *testing.T) {
					t.Parallel()
					ctx, cancel := c.end(t.Context())
					defer cancel()
					body := extReaderFunc(func([]byte) (int, error) {
						if c.code == alicaptcha.ClientCanceled {
							cancel()
						}
						<-ctx.Done()
						return 0, e.err(ctx)
					})
					// What a Policy opens for a body without the field is not open to this.
					gate, verifier := extGate(t, func(cfg *alicaptcha.Config) {
						cfg.Policy = alicaptcha.Policy{alicaptcha.ParamMissing: alicaptcha.Allow()}
					})
					r := extRequest(contentType, body).WithContext(ctx)
					o := gate.Check(r)
					require.Equal(t, c.code, o.Code)
					require.False(t, o.Allowed)
					require.Empty(t, verifier.params())
				})
			}
		}
		t.Run(c.name+", but the field was there", func(t *testing.T) {
			t.Parallel()
			ctx, cancel := c.end(t.Context())
			defer cancel()
			gate, verifier := extGate(t, nil, func(*http.Request) (string, error) {
				if c.code == alicaptcha.ClientCanceled {
					cancel()
				}
				<-ctx.Done()
				return "x", nil
			})
			require.Equal(t, c.code, gate.Check(extRequest("", nil).WithContext(ctx)).Code)
			require.Empty(t, verifier.params())
		})
	}
}

type extReaderFunc func([]byte) (int, error)

func (f extReaderFunc) Read(p []byte) (int, error) { return f(p) }

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
		"FromForm, urlencoded": {alicaptcha.FromForm, extForm, "z=no&f=x"},
		"FromForm, multipart":  {alicaptcha.FromForm, extMult, extPart(`name="z"`, "no") + extPart(`name="f"`, "x") + extEnd},
		"FromJSON":             {alicaptcha.FromJSON, extJSON, `{"z":"no","f":"x"}`},
		"FromBody, form":       {alicaptcha.FromBody, extForm, "z=no&f=x"},
		"FromBody, JSON":       {alicaptcha.FromBody, extJSON, `{"z":"no","f":"x"}`},
	} {
		fields := []string{"f", "g"}
		extractors := []alicaptcha.Extractor{c.make(fields...)}
		gate, verifier := extGate(t, nil, extractors...)
		fields[0], fields[1] = "z", "z"
		require.Equal(t, alicaptcha.T001, gate.Check(extRequest(c.contentType, strings.NewReader(c.body))).Code, name)
		require.Equal(t, []string{"x"}, verifier.params(), name)
	}

	extractors := []alicaptcha.Extractor{alicaptcha.FromHeader("A")}
	gate, verifier := extGate(t, func(cfg *alicaptcha.Config) { cfg.Extractors = extractors })
	extractors[0] = func(*http.Request) (string, error) { return "no", nil }
	alicaptcha.DefaultExtractors()[0] = nil
	r := extRequest("", nil)
	r.Header.Set("A", "x")
	require.Equal(t, alicaptcha.T001, gate.Check(r).Code)
	require.Equal(t, []string{"x"}, verifier.params())
	require.NotNil(t, alicaptcha.DefaultExtractors()[0])
}

// TestExtractAtOnce shares extractors, and whatever they keep, between many
// requests: none may see another's body.
func TestExtractAtOnce(t *testing.T) {
	t.Parallel()
	var wrong atomic.Int64
	type key struct{}
	gate, _ := extGate(t, func(cfg *alicaptcha.Config) {
		cfg.Verifier = alicaptcha.VerifierFunc(func(ctx context.Context, req alicaptcha.Request) (alicaptcha.Result, error) {
			if ctx.Value(key{}) != req.Param {
				wrong.Add(1)
			}
			return alicaptcha.Result{Passed: true, Code: alicaptcha.T001}, nil
		})
	}, alicaptcha.FromBody("f", "/f"))
	var group sync.WaitGroup
	for i := range 32 {
		group.Go(func() {
			var kept []*http.Request
			var bodies []string
			for j := range 30 {
				param := fmt.Sprintf("%d-%d-", i, j) + strings.Repeat("v", (i*j)%700)
				contentType, body := extJSON, `{"a":[],"f":"`+param+`","b":"`+param+`"}`
				switch j % 4 {
				case 1:
					contentType, body = extForm, "a=1&f="+param+"&b="+param
				case 2:
					contentType, body = extMult, extPart(`name="f"`, param)+extPart(`name="b"`, param)+extEnd
				case 3: // an end in the middle must leave nothing behind
					gate.Check(extRequest(extJSON, strings.NewReader(`{"f":[{"`+param)))
				}
				r := extRequest(contentType, strings.NewReader(body))
				r = r.WithContext(context.WithValue(t.Context(), key{}, param))
				if gate.Check(r).Code != alicaptcha.T001 {
					wrong.Add(1)
				}
				kept, bodies = append(kept, r), append(bodies, body)
			}
			for i, r := range kept { // a handler may keep its body for long
				if got, err := io.ReadAll(r.Body); err != nil || string(got) != bodies[i] {
					wrong.Add(1)
				}
			}
		})
	}
	group.Wait()
	require.Zero(t, wrong.Load())
}

// extServe starts a server, and returns its URL and a client for it.
func extServe(t *testing.T, http2 bool, handler http.Handler) (string, *http.Client) {
	server := httptest.NewUnstartedServer(handler)
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	if http2 {
		server.EnableHTTP2 = true
		server.StartTLS()
	} else {
		server.Start()
	}
	t.Cleanup(server.Close)
	return server.URL, server.Client()
}

// extEcho answers with the body and, as headers, the trailers that it came with.
func extEcho(t *testing.T) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("reading the body: %v", err)
		}
		w.Header().Set("Proto", r.Proto)
		w.Header().Set("Length", strconv.FormatInt(r.ContentLength, 10))
		for name, values := range r.Trailer {
			w.Header()["Was-"+name] = values
		}
		w.Write(got)
	})
}

// TestReplayOnServer sends bodies over the wire, of known and unknown length,
// with trailers, and larger than every limit.
func TestReplayOnServer(t *testing.T) {
	t.Parallel()
	huge, err := io.ReadAll(io.LimitReader(extNoise(3), 3<<20))
	require.NoError(t, err)
	large := huge[:300<<10]
	bodies := map[string]struct{ contentType, body string }{
		"form":                  {extForm, "captchaVerifyParam=x&a=1"},
		"huge form":             {extForm, "captchaVerifyParam=x&a=" + string(huge)},
		"form as long as limit": {extForm, "a=" + string(large[:128<<10-len("a=&captchaVerifyParam=x")]) + "&captchaVerifyParam=x"},
		"JSON":                  {extJSON, `{"captchaVerifyParam":"x"}`},
		"large JSON":            {extJSON, `{"captchaVerifyParam":"x","a":"` + string(large) + `"}`},
		"multipart":             {extMult, extPart(`name="captchaVerifyParam"`, "x") + extPart(`name="u"; filename="u"`, string(large)) + extEnd},
		"other":                 {"application/octet-stream", string(large)},
		"nothing":               {"application/octet-stream", ""},
	}
	for _, http2 := range []bool{false, true} {
		for _, deferred := range []bool{false, true} {
			gate, verifier := extGate(t, nil)
			handler := gate.Handler(extEcho(t))
			if deferred {
				handler = gate.Deferred(extEcho(t)) // which never asks
			}
			address, client := extServe(t, http2, handler)
			for name, c := range bodies {
				for _, chunked := range []bool{false, true} {
					t.Run(fmt.Sprintf("HTTP/2 %t, deferred %t, chunked %t, %s", http2, deferred, chunked, name), func(t *testing.T) {
						var body io.Reader = strings.NewReader(c.body)
						if chunked {
							body = io.MultiReader(body)
						}
						req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, address, body)
						require.NoError(t, err)
						req.Header.Set("Content-Type", c.contentType)
						if c.contentType == "application/octet-stream" {
							req.Header.Set("Captcha-Verify-Param", "x")
						}
						if chunked {
							req.Trailer = http.Header{"Checksum": {"sum"}, "Other": {"one", "two"}}
						}
						resp, err := client.Do(req)
						require.NoError(t, err)
						defer resp.Body.Close()
						got, err := io.ReadAll(resp.Body)
						require.NoError(t, err)
						require.Equal(t, http.StatusOK, resp.StatusCode)
						require.True(t, c.body == string(got), "the body is another: %d bytes, not %d", len(got), len(c.body))
						want := map[bool]string{false: "HTTP/1.1", true: "HTTP/2.0"}[http2]
						require.Equal(t, want, resp.Header.Get("Proto"))
						if chunked {
							require.Equal(t, "-1", resp.Header.Get("Length"))
							require.Equal(t, []string{"sum"}, resp.Header.Values("Was-Checksum"))
							require.Equal(t, []string{"one", "two"}, resp.Header.Values("Was-Other"))
						} else {
							require.Equal(t, strconv.Itoa(len(c.body)), resp.Header.Get("Length"))
						}
					})
				}
			}
			for _, param := range verifier.params() {
				require.Equal(t, "x", param)
			}
			require.Equal(t, !deferred, len(verifier.params()) > 0)
		}
	}
}

// Under ReportOnly and Deferred the handler gets bodies that are rejected for
// being too large, too.
func TestReplayBehindTheLimit(t *testing.T) {
	t.Parallel()
	body, err := io.ReadAll(io.LimitReader(extNoise(4), 3<<20))
	require.NoError(t, err)
	for _, contentType := range []string{extForm, extJSON, extMult, "text/plain"} {
		text := slices.Clone(body)
		switch contentType {
		case extJSON:
			copy(text, `{"a":"`)
		case extMult:
			copy(text, extPart(`name="a"; filename="a"`, "")[:len(extPart(`name="a"; filename="a"`, ""))-2])
		}
		want := alicaptcha.ParamTooLarge
		if contentType == "text/plain" {
			want = alicaptcha.ParamMissing
		}
		handled := false
		handler := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			handled = true
			o, ok := alicaptcha.FromContext(r.Context())
			require.True(t, ok)
			require.Equal(t, want, o.Code, contentType)
			require.False(t, o.Allowed)
			got, err := io.ReadAll(r.Body)
			require.NoError(t, err)
			require.True(t, bytes.Equal(text, got), "%s: the body is another", contentType)
		})
		gate, verifier := extGate(t, func(cfg *alicaptcha.Config) { cfg.ReportOnly = true })
		gate.Handler(handler).ServeHTTP(httptest.NewRecorder(), extRequest(contentType, bytes.NewReader(text)))
		require.True(t, handled)
		require.Empty(t, verifier.params())
	}
}

// extDial sends text to the server at address as it stands.
func extDial(t *testing.T, address, text string) (net.Conn, *bufio.Reader) {
	conn, err := net.Dial("tcp", strings.TrimPrefix(address, "http://"))
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	_, err = io.WriteString(conn, text)
	require.NoError(t, err)
	return conn, bufio.NewReader(conn)
}

func TestReplayExpectContinue(t *testing.T) {
	t.Parallel()
	gate, verifier := extGate(t, nil)
	address, _ := extServe(t, false, gate.Handler(extEcho(t)))
	const body = `{"captchaVerifyParam":"x","a":1}`
	head := func(more string) string {
		return fmt.Sprintf("POST / HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\nExpect: 100-continue\r\n%s\r\n", len(body), more)
	}

	for name, more := range map[string]string{
		"the extractor reads": "",
		"the handler reads":   "Captcha-Verify-Param: x\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			conn, in := extDial(t, address, head(more))
			line, err := in.ReadString('\n')
			require.NoError(t, err)
			require.Equal(t, "HTTP/1.1 100 Continue\r\n", line)
			_, err = in.ReadString('\n')
			require.NoError(t, err)
			_, err = io.WriteString(conn, body)
			require.NoError(t, err)
			resp, err := http.ReadResponse(in, nil)
			require.NoError(t, err)
			defer resp.Body.Close()
			got, err := io.ReadAll(resp.Body)
			require.NoError(t, err)
			require.Equal(t, http.StatusOK, resp.StatusCode)
			require.Equal(t, body, string(got))
		})
	}
	require.Equal(t, []string{"x", "x"}, verifier.params())

	t.Run("nobody reads", func(t *testing.T) {
		gate, _ := extGate(t, nil, alicaptcha.FromHeader("Captcha-Verify-Param"))
		address, _ := extServe(t, false, gate.Handler(extEcho(t)))
		_, in := extDial(t, address, head(""))
		line, err := in.ReadString('\n')
		require.NoError(t, err)
		require.Equal(t, "HTTP/1.1 400 Bad Request\r\n", line, "the client was asked for a body that nobody wants")
	})
}

// A client that goes away in the middle of its body, or while the service is
// asked.
func TestExtractHangUp(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"known length": "Content-Length: 1000\r\n\r\n{\"captchaVerifyParam\":\"x",
		"chunked":      "Transfer-Encoding: chunked\r\n\r\n18\r\n{\"captchaVerifyParam\":\"x",
	} {
		t.Run("in the body, "+name, func(t *testing.T) {
			t.Parallel()
			outcome := make(chan alicaptcha.Outcome, 1)
			gate, verifier := extGate(t, func(cfg *alicaptcha.Config) {
				cfg.Observe = func(_ context.Context, o alicaptcha.Outcome) { outcome <- o }
			})
			address, _ := extServe(t, false, gate.Handler(extEcho(t)))
			conn, _ := extDial(t, address, "POST / HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"+text)
			conn.Close()
			o := <-outcome
			require.Contains(t, []alicaptcha.Code{alicaptcha.ParamMalformed, alicaptcha.ClientCanceled}, o.Code)
			require.False(t, o.Allowed)
			require.Empty(t, verifier.params())
		})
	}
	for _, c := range []struct {
		name    string
		more    int // bytes after the field that are announced but not sent
		timeout time.Duration
		codes   []alicaptcha.Code
	}{
		{"all was sent", 0, 0, []alicaptcha.Code{alicaptcha.ClientCanceled}},
		// The server looks for the client's end only behind the body's.
		{"more was to come", 1 << 20, 10 * time.Millisecond, []alicaptcha.Code{alicaptcha.ClientCanceled, alicaptcha.ServiceTimeout}},
	} {
		t.Run("while the service is asked, "+c.name, func(t *testing.T) {
			t.Parallel()
			asked := make(chan struct{})
			outcome := make(chan alicaptcha.Outcome, 1)
			gate, verifier := extGate(t, func(cfg *alicaptcha.Config) {
				cfg.Observe = func(_ context.Context, o alicaptcha.Outcome) { outcome <- o }
				cfg.Timeout = c.timeout
			})
			verifier.hook = func(ctx context.Context) error {
				close(asked)
				<-ctx.Done()
				return ctx.Err()
			}
			address, _ := extServe(t, false, gate.Handler(extEcho(t)))
			const body = `{"captchaVerifyParam":"x"}`
			conn, _ := extDial(t, address, fmt.Sprintf("POST / HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body)+c.more, body))
			<-asked
			conn.Close()
			o := <-outcome
			require.Contains(t, c.codes, o.Code)
			require.False(t, o.Allowed)
			require.Equal(t, []string{"x"}, verifier.params())
		})
	}
}

// TestReplayThroughReverseProxy puts a proxy behind the gate: its transport
// reads the body in one goroutine and closes it from another.
func TestReplayThroughReverseProxy(t *testing.T) {
	t.Parallel()
	backend, _ := extServe(t, false, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/early" {
			w.WriteHeader(http.StatusTeapot) // with the body unread
			return
		}
		extEcho(t).ServeHTTP(w, r)
	}))
	target, err := url.Parse(backend)
	require.NoError(t, err)
	proxy := &httputil.ReverseProxy{
		Rewrite:  func(p *httputil.ProxyRequest) { p.SetURL(target) },
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
	rest, err := io.ReadAll(io.LimitReader(extNoise(5), 2<<20))
	require.NoError(t, err)
	body := "captchaVerifyParam=x&a=" + string(rest)
	gate, _ := extGate(t, nil)
	for _, http2 := range []bool{false, true} {
		front, client := extServe(t, http2, gate.Handler(proxy))
		var group sync.WaitGroup
		for i := range 8 {
			group.Go(func() {
				var in io.Reader = strings.NewReader(body)
				if i%4 < 2 {
					in = io.MultiReader(in)
				}
				if i%2 == 0 {
					resp, err := client.Post(front+"/early", extForm, in)
					if err == nil { // the client may well fail to send what nobody reads
						resp.Body.Close()
					}
					return
				}
				resp, err := client.Post(front+"/", extForm, in)
				if err != nil {
					t.Errorf("posting: %v", err)
					return
				}
				defer resp.Body.Close()
				got, err := io.ReadAll(resp.Body)
				if err != nil || resp.StatusCode != http.StatusOK || body != string(got) {
					t.Errorf("status %d, %d bytes of %d, %v", resp.StatusCode, len(got), len(body), err)
				}
			})
		}
		group.Wait()
	}
}

type memoryBody struct{ name, kind, text string }

// memoryBodies returns bodies of n bytes at most, whose param is missing or has
// no end, and for which the extractors hold as much as anybody has found.
func memoryBodies(n int) []memoryBody {
	repeated := func(unit string, size int) string { return strings.Repeat(unit, size/len(unit)) }
	numbered := func(before, after string, size int) string {
		var b strings.Builder
		for i := int64(0); ; i++ {
			unit := before + strconv.FormatInt(i, 36) + after
			if b.Len()+len(unit) > size {
				return b.String()
			}
			b.WriteString(unit)
		}
	}
	const (
		typeJSON      = "application/json"
		typeForm      = "application/x-www-form-urlencoded"
		typeMultipart = "multipart/form-data; boundary=b"
		param         = "--b\r\nContent-Disposition:form-data;name=captchaVerifyParam\r\n"
	)
	size := n - 100 // for what stands around it
	// With more than 10,000 levels or headers the parser ends.
	levels := repeated(`{"a":`, min(size*4/10, 5*9990))
	parameters := "Content-Disposition:a" + numbered(";", "=b", min(size/2, 2000)) + "\n\n"
	headers := numbered("", ":\n", min(size-len(parameters), 45_000))
	return []memoryBody{
		{"JSON, many names", typeJSON, "{" + numbered(`"`, `":1,`, size)},
		{"JSON, many levels", typeJSON, repeated(`{"a":`, min(size, 5*9990))},
		{"JSON, many levels and names", typeJSON, levels + "{" + numbered(`"`, `":1,`, size-len(levels))},
		{"JSON, one long name", typeJSON, `{"` + repeated("x", size)},
		{"JSON, one long string", typeJSON, `{"a":"` + repeated("x", size)},
		{"JSON, a long param", typeJSON, `{"captchaVerifyParam":"` + repeated(`\u0041`, size)},
		{"form, many pairs", typeForm, repeated("a=b&", size)},
		{"form, one long field", typeForm, "a=" + repeated("x", size)},
		{"form, a long param", typeForm, "captchaVerifyParam=" + repeated("%41", size)},
		{"multipart, a long param", typeMultipart, param + "\r\n" + repeated("x", size)},
		{"multipart, a quoted-printable param", typeMultipart,
			param + "Content-Transfer-Encoding:quoted-printable\n\n" + repeated(strings.Repeat("=41", 24)+"=\n", size-50)},
		{"multipart, many parts", typeMultipart, repeated("--b\n\n\n", size)},
		{"multipart, many headers", typeMultipart, "--b\n" + numbered("", ":\n", min(size, 45_000))},
		{"multipart, long headers", typeMultipart, "--b\n" + numbered("x", ":xx\n", min(size, 75_000))},
		{"multipart, many parameters", typeMultipart, "--b\n" + parameters + repeated("x", size-len(parameters))},
		{"multipart, many headers and parameters", typeMultipart,
			"--b\n" + headers + parameters + repeated("x", size-len(headers)-len(parameters)) + "x"},
	}
}

// A body under way takes more memory than MaxBodyBytes. docs/operations.md says
// how much, and the other documents what it is by default. The bounds leave room
// for the race detector.
func TestBodyMemory(t *testing.T) {
	heap := func() int64 {
		var stats runtime.MemStats
		runtime.GC()
		runtime.GC() // the first leaves what stood in a sync.Pool
		runtime.ReadMemStats(&stats)
		return int64(stats.HeapAlloc)
	}
	for _, row := range []struct{ kibibytes, most int }{
		{128, 3_000_000},
		{16, 600_000},
		{4, 200_000},
	} {
		limit, bound := row.kibibytes, int64(row.most)
		m, err := alicaptcha.New(alicaptcha.Config{
			Verifier: passing(), SceneID: "login", Logger: slog.New(slog.DiscardHandler), MaxBodyBytes: limit << 10,
		})
		require.NoError(t, err)
		const clients = 16
		for _, body := range memoryBodies(limit << 10) {
			var ends []*io.PipeWriter
			done := make(chan alicaptcha.Outcome, clients)
			before := heap()
			for range clients {
				r, w := io.Pipe()
				ends = append(ends, w)
				request := httptest.NewRequest(http.MethodPost, "/login", r)
				request.Header.Set("Content-Type", body.kind)
				go func() {
					done <- m.Check(request)
					r.Close() // whoever still writes would wait
				}()
				// The last byte is read when what stands before it was parsed.
				last := len(body.text) - 1
				for _, text := range []string{body.text[:last], body.text[last:]} {
					_, err := io.WriteString(w, text) // returns when all of it was read
					require.NoError(t, err)
				}
			}
			each := (heap() - before) / clients
			t.Logf("%s: %d KB sent, %d KB of memory", body.name, len(body.text)/1000, each/1000)
			for _, w := range ends {
				w.CloseWithError(io.ErrUnexpectedEOF)
			}
			for range clients {
				require.Equal(t, alicaptcha.ParamMalformed, (<-done).Code, body.name)
			}
			require.Less(t, each, bound, "%s, %d KiB", body.name, row.kibibytes)
		}
	}
}

// A client cannot fatten the decoders in the pool: they would keep the memory for
// the names of each level that they have ever read.
func TestPooledDecodersStaySmall(t *testing.T) {
	m, err := alicaptcha.New(alicaptcha.Config{Verifier: passing(), SceneID: "login", Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	heap := func() int64 {
		var stats runtime.MemStats
		runtime.GC() // once: what a sync.Pool holds survives it
		runtime.ReadMemStats(&stats)
		return int64(stats.HeapAlloc)
	}
	var names strings.Builder
	for i := int64(0); names.Len() < 100_000; i++ {
		names.WriteString(`"` + strconv.FormatInt(i, 36) + `":1,`)
	}
	before := heap()
	for depth := 200; depth > 0; depth-- {
		for _, body := range []string{
			strings.Repeat(`{"a":`, depth) + "{" + names.String(),
			"{" + names.String() + `"a":{` + names.String(),
		} {
			require.False(t, m.Check(jsonRequest(body)).Allowed)
		}
	}
	require.Less(t, heap()-before, int64(8<<20))
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
