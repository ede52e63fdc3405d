package alicaptcha_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
)

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
		{"JSON", jsonType, jsonBody, strings.Index(jsonBody, `,"b"`)},
		{"JSON without more", jsonType, `{"f":"value"}`, len(`{"f":"value"`)},
		{"form", formType, formBody, strings.Index(formBody, "b=")},
		{"form without more", formType, "a=1&f=value", len("a=1&f=value")},
		{"multipart", multipartType,
			formPart(`name="a"`, "1") + formPart(`name="f"`, "value") + formPart(`name="b"`, "2") + formEnd, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			found := false
			for limit := 1; limit <= len(c.body)+2; limit++ {
				for delivery, reader := range deliveries {
					config := func(cfg *alicaptcha.Config) { cfg.MaxBodyBytes = limit }
					gate, verifier := newGateAndSpy(t, config, alicaptcha.FromBody("f"))
					r := bodyRequest(c.contentType, reader(c.body))
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
			extractCase{contentType: formType, body: "a=1&captchaVerifyParam=x", maxBody: limit, maxParam: limit, param: "x"}.
				run(t, strconv.Itoa(limit), deliveries["whole"])
		})
	}
}

// A body that nobody had to read is the server's own, with all its methods.
func TestExtractUntouchedBody(t *testing.T) {
	t.Parallel()
	body := io.NopCloser(strings.NewReader("captchaVerifyParam=no"))
	r := bodyRequest(formType, nil)
	r.Body = body
	r.Header.Set("Captcha-Verify-Param", "x")
	gate, verifier := newGateAndSpy(t, nil)
	require.True(t, gate.Check(r).Allowed)
	require.Equal(t, []string{"x"}, verifier.params())
	require.True(t, body == r.Body, "another body")
}

// An trackedBody counts what is read of it and how often it is closed.
type trackedBody struct {
	src    io.Reader
	read   atomic.Int64
	closed atomic.Int64
}

func (b *trackedBody) Read(p []byte) (int, error) {
	n, err := b.src.Read(p)
	b.read.Add(int64(n))
	return n, err
}

func (b *trackedBody) Close() error {
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
	body := &trackedBody{src: strings.NewReader(text)}
	gate, verifier := newGateAndSpy(t, nil, closes, closes, alicaptcha.FromForm("captchaVerifyParam"))
	verifier.do = hooked(func(context.Context) error {
		require.Zero(t, body.closed.Load(), "closed before the handler had it")
		return nil
	})
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
	})).ServeHTTP(w, bodyRequest(formType, body))
	require.Equal(t, http.StatusOK, w.Code)
	require.Equal(t, []string{"x"}, verifier.params())
}

// http.Transport closes a request's body while another goroutine reads it.
func TestExtractReadAndCloseAtOnce(t *testing.T) {
	t.Parallel()
	const text = "captchaVerifyParam=x&a="
	gate, _ := newGateAndSpy(t, nil)
	for range 50 {
		in, out := io.Pipe()
		r := bodyRequest(formType, io.NopCloser(io.MultiReader(strings.NewReader(text), in)))
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
			gate, _ := newGateAndSpy(t, nil, func(r *http.Request) (string, error) {
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
			r := bodyRequest(formType, in)
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
		{"JSON, after the field", jsonType, `{"captchaVerifyParam":"x","a":`, alicaptcha.T001},
		{"JSON, in the field", jsonType, `{"captchaVerifyParam":"x`, alicaptcha.ParamMalformed},
		{"JSON, before the field", jsonType, `{"a":1`, alicaptcha.ParamMalformed},
		{"JSON, at once", jsonType, "", alicaptcha.ParamMalformed},
		{"form, after the field", formType, "captchaVerifyParam=x&", alicaptcha.T001},
		{"form, in the field", formType, "captchaVerifyParam=x", alicaptcha.ParamMalformed},
		{"form, before the field", formType, "a=1&", alicaptcha.ParamMalformed},
		{"form, at once", formType, "", alicaptcha.ParamMalformed},
		{"multipart, after the field", multipartType,
			formPart(`name="captchaVerifyParam"`, "x") + "--b\r\n", alicaptcha.T001},
		{"multipart, in the field", multipartType, formPart(`name="captchaVerifyParam"`, "x"), alicaptcha.ParamMalformed},
		{"multipart, at once", multipartType, "", alicaptcha.ParamMalformed},
		{"unknown type", "text/plain", "hello", alicaptcha.ParamMissing},
	} {
		for way, src := range map[string]func() io.Reader{
			"by itself":     func() io.Reader { return io.MultiReader(strings.NewReader(c.sent), iotest.ErrReader(errBoom)) },
			"with the data": func() io.Reader { return &failsAfter{data: c.sent} },
			"only once":     func() io.Reader { return &failsAfter{data: c.sent, once: true} },
			"byte by byte": func() io.Reader {
				return iotest.OneByteReader(io.MultiReader(strings.NewReader(c.sent), iotest.ErrReader(errBoom)))
			},
		} {
			if way == "only once" && c.code == alicaptcha.ParamMissing {
				continue // nobody reads it, so nobody keeps the error
			}
			gate, verifier := newGateAndSpy(t, nil)
			r := bodyRequest(c.contentType, src())
			o := gate.Check(r)
			require.Equal(t, c.code, o.Code, "%s, %s", c.name, way)
			require.Equal(t, c.code == alicaptcha.T001, len(verifier.params()) == 1, "%s, %s", c.name, way)
			got, err := io.ReadAll(r.Body)
			require.Equal(t, c.sent, string(got), "%s, %s", c.name, way)
			require.Equal(t, errBoom, err, "%s, %s", c.name, way)
			n, err := r.Body.Read(make([]byte, 8))
			require.Zero(t, n)
			require.Equal(t, errBoom, err, "%s, %s: the error went away", c.name, way)
		}
	}
}

// An failsAfter gives its data together with errBoom, and may then forget
// about that.
type failsAfter struct {
	data string
	once bool
	done bool
}

func (f *failsAfter) Read(p []byte) (int, error) {
	if f.done && f.once {
		return 0, io.EOF
	}
	n := copy(p, f.data)
	f.data = f.data[n:]
	f.done = f.data == ""
	if f.done {
		return n, errBoom
	}
	return n, nil
}

// TestExtractReadsNoFurther proves that the service is asked while the rest of
// the body is still with the client.
func TestExtractReadsNoFurther(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, contentType, first string }{
		{"JSON", jsonType, `{"captchaVerifyParam":"x"`},
		{"form", formType, "captchaVerifyParam=x&"},
		{"multipart", multipartType, formPart(`name="captchaVerifyParam"`, "x") + "--b\r\n"},
		{"unknown, param in the header", "text/plain", ""},
	} {
		for _, deferred := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, deferred %t", c.name, deferred), func(t *testing.T) {
				t.Parallel()
				const rest = 4 << 20
				var asked atomic.Bool
				body := &trackedBody{src: io.MultiReader(
					strings.NewReader(c.first),
					&laterReader{ready: &asked, src: io.LimitReader(noiseReader(1), rest)},
				)}
				gate, verifier := newGateAndSpy(t, nil)
				verifier.do = hooked(func(context.Context) error {
					require.EqualValues(t, len(c.first), body.read.Load(), "read further than the field")
					asked.Store(true)
					return nil
				})
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
					io.Copy(want, io.LimitReader(noiseReader(1), rest))
					require.Equal(t, want.Sum(nil), got.Sum(nil))
				})
				r := bodyRequest(c.contentType, body)
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
		body := &trackedBody{src: io.MultiReader(strings.NewReader(c.body), io.LimitReader(noiseReader(2), 4<<20))}
		gate, _ := newGateAndSpy(t, nil)
		gate.Check(bodyRequest(formType, body))
		require.LessOrEqual(t, body.read.Load(), c.most, c.name)
		require.NotZero(t, body.read.Load(), c.name)
	}
}

// An laterReader is not to be read before it is ready.
type laterReader struct {
	ready *atomic.Bool
	src   io.Reader
}

func (l *laterReader) Read(p []byte) (int, error) {
	if !l.ready.Load() {
		return 0, errors.New("read too early")
	}
	return l.src.Read(p)
}

// noiseReader returns letters without end, the same for the same seed.
func noiseReader(seed uint64) io.Reader { return &letterReader{rand.New(rand.NewPCG(seed, seed))} }

type letterReader struct{ rnd *rand.Rand }

func (l *letterReader) Read(p []byte) (int, error) {
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
	multBody := formPart(`name="f"`, "x") +
		formPart(`name="a"`, "1") + formPart(`name="a"`, "2") + formPart(`name="b"`, "&") +
		formPart(`name="up"; filename="u.txt"`, "contents") + formEnd
	wantPost := url.Values{"f": {"x"}, "a": {"1", "2"}, "b": {"&"}}
	wantForm := url.Values{"f": {"x"}, "a": {"1", "2", "query"}, "b": {"&"}, "q": {"1"}}
	// net/http puts the query first here
	wantMult := url.Values{"f": {"x"}, "a": {"query", "1", "2"}, "b": {"&"}, "q": {"1"}}

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
		{"Body", formType, formBody, whole(formBody)},
		{"Body", jsonType, jsonBody, whole(jsonBody)},
		{"Body", multipartType, multBody, whole(multBody)},
		{"ParseForm", formType, formBody, func(t *testing.T, r *http.Request) {
			require.NoError(t, r.ParseForm())
			require.Equal(t, wantPost, r.PostForm)
			require.Equal(t, wantForm, r.Form)
		}},
		{"ParseForm of JSON", jsonType, jsonBody, func(t *testing.T, r *http.Request) {
			require.NoError(t, r.ParseForm())
			require.Equal(t, url.Values{}, r.PostForm)
			require.Equal(t, url.Values{"a": {"query"}, "q": {"1"}}, r.Form)
			whole(jsonBody)(t, r)
		}},
		{"PostFormValue", formType, formBody, func(t *testing.T, r *http.Request) {
			require.Equal(t, "1", r.PostFormValue("a"))
			require.Equal(t, "x", r.PostFormValue("f"))
			require.Equal(t, "1", r.FormValue("q"))
			require.Empty(t, r.PostFormValue("q"))
		}},
		{"PostFormValue", multipartType, multBody, func(t *testing.T, r *http.Request) {
			require.Equal(t, "1", r.PostFormValue("a"))
			require.Equal(t, "x", r.PostFormValue("f"))
		}},
		{"ParseMultipartForm", multipartType, multBody, func(t *testing.T, r *http.Request) {
			require.NoError(t, r.ParseMultipartForm(1<<20))
			require.Equal(t, wantPost, url.Values(r.MultipartForm.Value))
			require.Equal(t, wantPost, r.PostForm)
			require.Equal(t, wantMult, r.Form)
			file(t, r)
		}},
		{"FormFile", multipartType, multBody, file},
		{"MultipartReader", multipartType, multBody, func(t *testing.T, r *http.Request) {
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
		{"json.Decoder", jsonType, jsonBody, func(t *testing.T, r *http.Request) {
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
		"ours":      alicaptcha.FromHeader("none"),
		"reads all": func(r *http.Request) (string, error) { io.Copy(io.Discard, r.Body); return "", nil },
		"closes":    func(r *http.Request) (string, error) { return "", r.Body.Close() },
		"reads all, closes": func(r *http.Request) (string, error) {
			io.Copy(io.Discard, r.Body)
			return "", r.Body.Close()
		},
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
					r := bodyRequest(u.contentType, strings.NewReader(u.body))
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
				gate, verifier := newGateAndSpy(t, nil, extractor, alicaptcha.FromBody("f"))
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
	body := formPart(`name="f"`, "x") + formPart(`name="a"`, "1") + formEnd
	gate, verifier := newGateAndSpy(t, nil, func(r *http.Request) (string, error) {
		err := r.ParseMultipartForm(1 << 20)
		return r.FormValue("f"), err
	})
	r := bodyRequest(multipartType, strings.NewReader(body))
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
	multBody := formPart(`name="f"`, "") + formPart(`name="f"`, "x") + formPart(`name="a"`, "1") + formEnd
	parseForm := func(r *http.Request) error { return r.ParseForm() }
	parseMultipart := func(r *http.Request) error { return r.ParseMultipartForm(1 << 20) }
	for _, c := range []struct {
		name, contentType, body, query string
		parse                          func(*http.Request) error
		code                           alicaptcha.Code
	}{
		{"form", formType, "a=1&f=&f=x", "", parseForm, alicaptcha.T001},
		{"form by ParseMultipartForm", formType, "a=1&f=x", "", func(r *http.Request) error {
			require.ErrorIs(t, r.ParseMultipartForm(1), http.ErrNotMultipart)
			return nil
		}, alicaptcha.T001},
		{"form by FormValue", formType, "a=1&f=x", "", func(r *http.Request) error {
			r.FormValue("a")
			return nil
		}, alicaptcha.T001},
		{"multipart", multipartType, multBody, "", parseMultipart, alicaptcha.T001},
		{"multipart by ParseForm, which does not read it", multipartType, multBody, "", parseForm, alicaptcha.T001},
		{"form without the field", formType, "a=1", "f=no", parseForm, alicaptcha.ParamMissing},
		{"multipart without the field", multipartType, formPart(`name="a"`, "1") + formEnd, "f=no",
			parseMultipart, alicaptcha.ParamMissing},
		{"query only", formType, "", "f=no", parseForm, alicaptcha.ParamMissing},
		{"not UTF-8", formType, "f=%ff", "", parseForm, alicaptcha.ParamMalformed},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			for _, extractor := range []alicaptcha.Extractor{alicaptcha.FromForm("g", "f"), alicaptcha.FromBody("f", "g")} {
				gate, verifier := newGateAndSpy(t, nil, extractor)
				r := bodyRequest(c.contentType, strings.NewReader(c.body))
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
			gate, _ := newGateAndSpy(t, nil)
			gate.Handler(handler).ServeHTTP(httptest.NewRecorder(), bodyRequest(formType, strings.NewReader(body)))
			require.True(t, handled)
		})
		t.Run("outside, "+strconv.Itoa(limit), func(t *testing.T) {
			t.Parallel()
			if limit < 30 {
				return // the field is not before it
			}
			handled := false
			gate, verifier := newGateAndSpy(t, nil)
			http.MaxBytesHandler(gate.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				handled = true
				reads(limit)(w, r)
			})), int64(limit)).ServeHTTP(httptest.NewRecorder(), bodyRequest(formType, strings.NewReader(body)))
			require.True(t, handled)
			require.Equal(t, []string{"x"}, verifier.params())
		})
	}
	t.Run("outside, ParseForm of the handler", func(t *testing.T) {
		t.Parallel()
		gate, _ := newGateAndSpy(t, nil)
		handled := false
		http.MaxBytesHandler(gate.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			handled = true
			_, ok := errors.AsType[*http.MaxBytesError](r.ParseForm())
			require.True(t, ok)
		})), 100).ServeHTTP(httptest.NewRecorder(), bodyRequest(formType, strings.NewReader(body)))
		require.True(t, handled)
	})
	t.Run("outside, as long as the body", func(t *testing.T) {
		t.Parallel()
		for delivery, reader := range deliveries {
			gate, verifier := newGateAndSpy(t, nil)
			r := bodyRequest(formType, reader(late))
			r.Body = http.MaxBytesReader(nil, r.Body, int64(len(late)))
			require.Equal(t, alicaptcha.T001, gate.Check(r).Code, delivery)
			require.Equal(t, []string{"x"}, verifier.params())
			got, err := io.ReadAll(r.Body)
			require.NoError(t, err, delivery)
			require.Equal(t, late, string(got), delivery)
		}
	})
	for name, c := range map[string]struct{ contentType, body string }{
		"form": {formType, late},
		"JSON": {jsonType, `{"a":"` + strings.Repeat("y", 10_000) + `","captchaVerifyParam":"x"}`},
		"multipart": {multipartType, formPart(`name="a"; filename="a"`, strings.Repeat("y", 10_000)) +
			formPart(`name="captchaVerifyParam"`, "x") + formEnd},
		"multipart, in the field": {multipartType,
			formPart(`name="captchaVerifyParam"`, strings.Repeat("y", 10_000)) + formEnd},
		"JSON, in the field": {jsonType, `{"captchaVerifyParam":"` + strings.Repeat("y", 10_000) + `"}`},
		"JSON, in a name":    {jsonType, `{"` + strings.Repeat("y", 10_000) + `":1}`},
	} {
		t.Run("outside, field behind, "+name, func(t *testing.T) {
			t.Parallel()
			for _, limit := range []int64{1, 5000} {
				for _, outer := range []bool{true, false} { // the user's limit, or ours
					var seen alicaptcha.Outcome
					gate, verifier := newGateAndSpy(t, func(cfg *alicaptcha.Config) {
						cfg.Observe = func(_ context.Context, o alicaptcha.Outcome) { seen = o }
						if !outer {
							cfg.MaxBodyBytes = int(limit)
						}
					})
					r := bodyRequest(c.contentType, strings.NewReader(c.body))
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
