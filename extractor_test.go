package alicaptcha_test

import (
	"bytes"
	"context"
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
func newGateAndSpy(
	tb testing.TB, change func(*alicaptcha.Config), extractors ...alicaptcha.Extractor,
) (*alicaptcha.Middleware, *spy) {
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
		{name: "any spelling", header: http.Header{"X-Token": {"x"}},
			extractors: []alicaptcha.Extractor{alicaptcha.FromHeader("x-tOKEN")}, param: "x"},
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
		{name: "multipart in capitals, quoted", contentType: `Multipart/Form-Data; charset=utf-8; Boundary="b"`, body: inMult,
			param: "x"},

		{name: "missing", body: inJSON, code: alicaptcha.ParamMissing},
		{name: "missing for a form", body: inForm, code: alicaptcha.ParamMissing},
		{name: "text/plain", contentType: "text/plain", body: inJSON, code: alicaptcha.ParamMissing},
		{name: "text/json", contentType: "text/json", body: inJSON, code: alicaptcha.ParamMissing},
		{name: "image/svg+json", contentType: "image/svg+json", body: inJSON, code: alicaptcha.ParamMissing},
		{name: "jsonp", contentType: "application/jsonp", body: inJSON, code: alicaptcha.ParamMissing},
		{name: "multipart/mixed", contentType: "multipart/mixed; boundary=b", body: inMult, code: alicaptcha.ParamMissing},
		{name: "FromForm on JSON", contentType: jsonType, body: inJSON, extractors: formOnly, code: alicaptcha.ParamMissing},
		{name: "FromJSON on a form", contentType: formType, body: inForm, extractors: jsonOnly,
			code: alicaptcha.ParamMissing},
		{name: "FromJSON on multipart", contentType: multipartType, body: inMult, extractors: jsonOnly,
			code: alicaptcha.ParamMissing},
		{name: "JSON said to be a form", contentType: formType, body: inJSON, code: alicaptcha.ParamMissing},
		{name: "form said to be JSON", contentType: jsonType, body: inForm, code: alicaptcha.ParamMalformed},

		{name: "no boundary", contentType: "multipart/form-data", body: inMult, code: alicaptcha.ParamMalformed},
		{name: "empty boundary", contentType: `multipart/form-data; boundary=""`, body: inMult,
			code: alicaptcha.ParamMalformed},
		{name: "two boundaries", contentType: "multipart/form-data; boundary=b; boundary=c", body: inMult,
			code: alicaptcha.ParamMalformed},

		{name: "gzip JSON", contentType: jsonType, body: inJSON, header: encoded("gzip"), code: alicaptcha.ParamMalformed},
		{name: "gzip form", contentType: formType, body: inForm, header: encoded("gzip"), code: alicaptcha.ParamMalformed},
		{name: "gzip multipart", contentType: multipartType, body: inMult, header: encoded("GZIP"),
			code: alicaptcha.ParamMalformed},
		{name: "br", contentType: jsonType, body: inJSON, header: encoded("br"), code: alicaptcha.ParamMalformed},
		{name: "identity, then gzip", contentType: jsonType, body: inJSON, header: encoded("identity", "gzip"),
			code: alicaptcha.ParamMalformed},
		{name: "identity", contentType: jsonType, body: inJSON, header: encoded("Identity"), param: "x"},
		{name: "empty encoding", contentType: formType, body: inForm, header: encoded(""), param: "x"},
		{name: "gzip of a body that is none of ours", contentType: "text/plain", body: inJSON, header: encoded("gzip"),
			code: alicaptcha.ParamMissing},
		{name: "gzip, but the param is in the header", contentType: jsonType, body: inJSON,
			header: http.Header{"Content-Encoding": {"gzip"}, "Captcha-Verify-Param": {"h"}}, param: "h"},
	})
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
		{"looks like a timeout of the service", &alicaptcha.Error{Code: alicaptcha.ServiceTimeout},
			alicaptcha.ParamMalformed},
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
		fourBytes := func(cfg *alicaptcha.Config) { cfg.MaxBodyBytes = 4 }
		gate, _ := newGateAndSpy(t, fourBytes, func(r *http.Request) (string, error) {
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
		"multipart, truncated": {multipartType,
			"--b\r\nContent-Disposition: form-data; name=captchaVerifyParam\r\n\r\n" + secret},
		"multipart, no boundary": {multipartType, secret + "\r\n" + secret},
		"multipart, QP": {multipartType,
			formPart("name=captchaVerifyParam\nContent-Transfer-Encoding: quoted-printable", secret+"\x01") + formEnd},
		"multipart, bad type": {"multipart/form-data; boundary=" + secret + "; boundary=x", secret},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			extractor := alicaptcha.FromBody("captchaVerifyParam", "/a/b")
			body := http.MaxBytesReader(nil, io.NopCloser(strings.NewReader(c.body)), 128<<10)
			if _, err := extractor(bodyRequest(c.contentType, body)); err != nil {
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
		"FromHeader": func() alicaptcha.Extractor { return alicaptcha.FromHeader("!#$%&'*+-.^_`|~09azAZ") },
		"FromForm":   func() alicaptcha.Extractor { return alicaptcha.FromForm("a b", "/~", "ü", ";", "&") },
		"FromJSON":   func() alicaptcha.Extractor { return alicaptcha.FromJSON("a~b", "~", "é", " ", "a/b~2") },
		"FromJSON, pointers": func() alicaptcha.Extractor {
			return alicaptcha.FromJSON("/", "//", "/~0~1/~01", "/0/-", "/é")
		},
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
		"FromForm, multipart": {alicaptcha.FromForm, multipartType,
			formPart(`name="z"`, "no") + formPart(`name="f"`, "x") + formEnd},
		"FromJSON":       {alicaptcha.FromJSON, jsonType, `{"z":"no","f":"x"}`},
		"FromBody, form": {alicaptcha.FromBody, formType, "z=no&f=x"},
		"FromBody, JSON": {alicaptcha.FromBody, jsonType, `{"z":"no","f":"x"}`},
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
