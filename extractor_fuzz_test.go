package alicaptcha_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"mime"
	"mime/multipart"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
)

// An pieceReader delivers data in pieces of the sizes given, over and over. A
// size of 0 is a Read that gives nothing, an odd last size gives io.EOF along
// with the last piece.
type pieceReader struct {
	data  []byte
	sizes []byte
	next  int
}

func (p *pieceReader) Read(buf []byte) (int, error) {
	size := len(buf)
	early := false
	if len(p.sizes) > 0 {
		size = int(p.sizes[p.next%len(p.sizes)])
		if size == 0 && p.next%2 == 1 {
			size = 1 // not too many of them in a row
		}
		p.next++
		early = p.sizes[len(p.sizes)-1]%2 == 1
	}
	if len(p.data) == 0 {
		return 0, io.EOF
	}
	n := copy(buf[:min(size, len(buf))], p.data)
	p.data = p.data[n:]
	if early && len(p.data) == 0 {
		return n, io.EOF
	}
	return n, nil
}

// An fuzzProbe finds out what an Extractor makes of a body.
type fuzzProbe struct {
	gate, narrow *alicaptcha.Middleware // narrow has a limit of 100 bytes
}

type fuzzProbeKey struct{}

func newFuzzProbe(tb testing.TB, extractor alicaptcha.Extractor) fuzzProbe {
	config := alicaptcha.Config{
		Verifier: alicaptcha.VerifierFunc(func(ctx context.Context, req alicaptcha.Request) (alicaptcha.Result, error) {
			*ctx.Value(fuzzProbeKey{}).(*string) = req.Param
			return alicaptcha.Result{Passed: true, Code: alicaptcha.T001}, nil
		}),
		SceneID:       "scene",
		Extractors:    []alicaptcha.Extractor{extractor},
		Logger:        slog.New(slog.DiscardHandler),
		MaxBodyBytes:  1 << 20,
		MaxParamBytes: 1 << 20,
	}
	gate, err := alicaptcha.New(config)
	require.NoError(tb, err)
	config.MaxBodyBytes = 100
	narrow, err := alicaptcha.New(config)
	require.NoError(tb, err)
	return fuzzProbe{gate, narrow}
}

// An paramFound is what came of a body: the param, or the Code instead.
type paramFound struct {
	code  alicaptcha.Code
	param string
}

// run checks what holds for every body, and returns what was found in this one.
func (p fuzzProbe) run(t *testing.T, contentType string, body, pieces []byte) paramFound {
	check := func(gate *alicaptcha.Middleware, src io.Reader) paramFound {
		var found paramFound
		r := httptest.NewRequestWithContext(context.WithValue(t.Context(), fuzzProbeKey{}, &found.param), "POST", "/", src)
		r.Header.Set("Content-Type", contentType)
		o := gate.Check(r)
		found.code = o.Code
		switch o.Code {
		case alicaptcha.T001:
			require.NotEmpty(t, found.param)
			require.True(t, utf8.ValidString(found.param), "%q", found.param)
		case alicaptcha.ParamMissing, alicaptcha.ParamMalformed, alicaptcha.ParamTooLarge:
			require.Empty(t, found.param, "the Verifier was asked")
		default:
			t.Fatalf("code %s", o.Code)
		}
		got, err := io.ReadAll(r.Body)
		require.NoError(t, err)
		require.True(t, bytes.Equal(body, got), "the body is another: %q, not %q", got, body)
		return found
	}

	found := check(p.gate, bytes.NewReader(body))
	require.NotEqual(t, alicaptcha.ParamTooLarge, found.code)
	require.Equal(t, found, check(p.gate, &pieceReader{data: body, sizes: pieces}), "it depends on how the body arrives")

	narrow := check(p.narrow, &pieceReader{data: body, sizes: pieces})
	if len(body) <= 100 {
		require.Equal(t, found, narrow, "it depends on a limit that the body is within")
	} else if narrow.code != alicaptcha.ParamTooLarge {
		require.Equal(t, found, narrow, "it depends on the limit")
	}
	return found
}

// textOf returns what is found where the field has this value.
func textOf(value string) paramFound {
	switch {
	case value == "":
		return paramFound{code: alicaptcha.ParamMissing}
	case !utf8.ValidString(value):
		return paramFound{code: alicaptcha.ParamMalformed}
	}
	return paramFound{alicaptcha.T001, value}
}

func FuzzFromJSON(f *testing.F) {
	for _, seed := range []string{
		`{"captchaVerifyParam":"x"}`,
		`{"a":{"captchaVerifyParam":"no"},"CaptchaVerifyParam":"\u0041\n\ud83d\ude00"}`,
		`{"captcha\u0056erifyParam":"","CaptchaVerifyParam":"é"} `,
		`{"captchaVerifyParam":null}`,
		`{"CAPTCHAVERIFYPARAM":"no"}`,
		`{"n":[{"x/y":"pointed","n":1e400}],"captchaVerifyParam":"x"}`,
		`{"n":[[],{"x/y":"no"}],"~":{"":"pointed"}}`,
		`{"n":{"0":{"x\/y":"pointed"}}}`,
		`{"~":null,"captchaVerifyParam":["x"]}`,
		`{"captchaVerifyParam":"x","captchaVerifyParam":"y"}`,
		`{"captchaVerifyParam":"x"]]]`,
		`{"captchaVerifyParam":"\ud800"}`,
		`{"captchaVerifyParam":"\\ud83d\ude00"}`, // an escaped backslash, and half of a pair
		"{\"captchaVerifyParam\":\"\xff\"}",
		"\ufeff{}",
		`[{"captchaVerifyParam":"x"}]`,
		`"captchaVerifyParam"`,
		` `,
		``,
		`{"a":[1,-0.5e-7,true,false,null,"\\\"",{}],"b":"` + strings.Repeat("long ", 30) + `","captchaVerifyParam":"x"}`,
		strings.Repeat("[", 20_000),
		`{"a":` + strings.Repeat("[", 9_999) + strings.Repeat("]", 9_999) + `,"captchaVerifyParam":"x"}`,
	} {
		f.Add([]byte(seed), []byte(nil))
		f.Add([]byte(seed), []byte{1})
		f.Add([]byte(seed), []byte{0, 3, 200, 7})
	}

	fields := []string{"captchaVerifyParam", "CaptchaVerifyParam", "/n/0/x~1y", "/~0/"}
	probe := newFuzzProbe(f, alicaptcha.FromJSON(fields...))
	f.Fuzz(func(t *testing.T, body, pieces []byte) {
		found := probe.run(t, jsonType, body, pieces)
		if want, ok := jsonOracle(body, fields); ok {
			require.Equal(t, want, found)
		}
	})
}

var (
	surrogatePair   = regexp.MustCompile(`\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}`)
	loneSurrogate   = regexp.MustCompile(`\\u[dD][89a-fA-F]`)
	errExtAmbiguous = errors.New("two members of one name")
)

// jsonOracle returns what encoding/json finds, where it is in no doubt:
// in valid JSON and UTF-8 without repeated names. No field may lead through
// another one.
func jsonOracle(body []byte, fields []string) (paramFound, bool) {
	if len(bytes.Trim(body, " \r\n\t")) == 0 {
		return paramFound{code: alicaptcha.ParamMissing}, true
	}
	unescaped := bytes.ReplaceAll(body, []byte(`\\`), []byte("_")) // in valid JSON, a \ that is left begins an escape
	if !utf8.Valid(body) || !json.Valid(body) || loneSurrogate.Match(surrogatePair.ReplaceAll(unescaped, []byte("_"))) {
		return paramFound{}, false
	}
	if first := bytes.TrimLeft(body, " \r\n\t")[0]; first != '{' && first != '[' {
		return paramFound{code: alicaptcha.ParamMalformed}, true
	}

	var pointers []string
	for _, field := range fields {
		if !strings.HasPrefix(field, "/") {
			field = "/" + field
		}
		pointers = append(pointers, field)
	}
	found := paramFound{code: alicaptcha.ParamMissing}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	err := walkJSON(dec, "", func(pointer string, value json.Token) {
		if found.code != alicaptcha.ParamMissing || !slices.Contains(pointers, pointer) {
			return
		}
		text, ok := value.(string)
		if found = textOf(text); !ok {
			found = paramFound{code: alicaptcha.ParamMalformed}
		}
	})
	return found, err == nil
}

// walkJSON calls visit for each value of dec, with the JSON Pointer to it.
func walkJSON(dec *json.Decoder, pointer string, visit func(pointer string, value json.Token)) error {
	value, err := dec.Token()
	if err != nil {
		return err
	}
	visit(pointer, value)
	open, ok := value.(json.Delim)
	if !ok {
		return nil
	}
	names := make(map[string]bool)
	for index := 0; dec.More(); index++ {
		name := strconv.Itoa(index)
		if open == '{' {
			token, err := dec.Token()
			if err != nil {
				return err
			}
			name = token.(string)
			if names[name] {
				return errExtAmbiguous
			}
			names[name] = true
		}
		escaped := strings.NewReplacer("~", "~0", "/", "~1").Replace(name)
		if err := walkJSON(dec, pointer+"/"+escaped, visit); err != nil {
			return err
		}
	}
	_, err = dec.Token()
	return err
}

func FuzzFromURLEncoded(f *testing.F) {
	for _, seed := range []string{
		"f=x", "a=1&f=x&b=2", "f=&f=x&f=no", "f&f=x", "g=x&f=no", "%66=x", "%67+=x", "f=a+b%2Bc%26",
		"f=%zz", "a=%zz&f=x", "%zz=1&f=x",
		"f=a;b", "a;b=1&f=x", "f=a%3Bb", "f=%ff", "f=\xff", "", "&&&", "f", "=x", "f==&", "f%=x", "f=%", "f=%4",
		strings.Repeat("&", 2000) + "f=x", "a=" + strings.Repeat("y", 1021) + "&f=x", "f=" + strings.Repeat("v", 5000) + "&a",
	} {
		f.Add([]byte(seed), []byte(nil))
		f.Add([]byte(seed), []byte{1})
		f.Add([]byte(seed), []byte{0, 3, 200, 7})
	}

	one := newFuzzProbe(f, alicaptcha.FromForm("f"))
	two := newFuzzProbe(f, alicaptcha.FromForm("f", "g "))
	f.Fuzz(func(t *testing.T, body, pieces []byte) {
		found := one.run(t, formType, body, pieces)
		if values, err := url.ParseQuery(string(body)); err == nil {
			want := paramFound{code: alicaptcha.ParamMissing}
			for _, value := range slices.Backward(values["f"]) {
				if value != "" {
					want = textOf(value)
				}
			}
			require.Equal(t, want, found)
		}

		// A pair that url.ParseQuery refuses is an error where it is the
		// field's, and of no interest where it is not.
		want := paramFound{code: alicaptcha.ParamMissing}
		for pair := range strings.SplitSeq(string(body), "&") {
			name, value, _ := strings.Cut(pair, "=")
			name, err := url.QueryUnescape(name)
			if err != nil || name != "f" && name != "g " || value == "" {
				continue
			}
			values, err := url.ParseQuery(pair)
			if want = textOf(values.Get(name)); err != nil {
				want = paramFound{code: alicaptcha.ParamMalformed}
			}
			break
		}
		require.Equal(t, want, two.run(t, formType, body, pieces))
	})
}

func FuzzFromMultipart(f *testing.F) {
	field := formPart(`name="f"`, "x")
	for _, seed := range []string{
		field + formEnd,
		formPart(`name="a"`, "1") + field + formEnd,
		formPart(`name="f"`, "") + field + formEnd,
		formPart(`name="f"; filename="a"`, "no") + field + formEnd,
		formPart("name=\"f\"\nContent-Transfer-Encoding: quoted-printable", "a=3Db") + formEnd,
		formPart("name=\"f\"\nContent-Transfer-Encoding: quoted-printable", "a\x01=") + formEnd,
		formPart(`name="f"`, "\xff") + formEnd,
		formPart(`name="f"`, strings.Repeat("\r\n--", 1500)) + formEnd,
		formPart(`name="a"`, strings.Repeat("y", 5000)) + field + formEnd,
		formPart(`name*=utf-8''f`, "x") + formEnd,
		field,
		field + "--b\r\n",
		field[:30],
		formEnd,
		"before\r\n" + field + formEnd + "after",
		"--b\nContent-Disposition: form-data; name=\"f\"\n\nx\n--b--\n",
		"--b\r\nContent-Disposition: form-data;\r\n name=f\r\n\r\nx\r\n--b--",
		"--b\r\nno header\r\n\r\nx\r\n--b--",
		"",
	} {
		f.Add("b", []byte(seed), []byte(nil))
		f.Add("b", []byte(seed), []byte{1})
		f.Add("b", []byte(seed), []byte{0, 3, 200, 7})
	}
	f.Add("", []byte(field), []byte(nil))
	f.Add("a b?", []byte(strings.ReplaceAll(field+formEnd, "--b", "--a b?")), []byte(nil))

	probe := newFuzzProbe(f, alicaptcha.FromForm("f"))
	f.Fuzz(func(t *testing.T, boundary string, body, pieces []byte) {
		contentType := mime.FormatMediaType("multipart/form-data", map[string]string{"boundary": boundary})
		if _, params, err := mime.ParseMediaType(contentType); err != nil || params["boundary"] != boundary {
			return // no Content-Type can carry this boundary
		}
		found := probe.run(t, contentType, body, pieces)
		if boundary == "" {
			require.Equal(t, paramFound{code: alicaptcha.ParamMalformed}, found)
			return
		}
		form, err := multipart.NewReader(bytes.NewReader(body), boundary).ReadForm(1 << 24)
		if err != nil {
			return
		}
		want := paramFound{code: alicaptcha.ParamMissing}
		for _, value := range slices.Backward(form.Value["f"]) {
			if value != "" {
				want = textOf(value)
			}
		}
		require.Equal(t, want, found)
	})
}
