package alicaptcha_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
)

func TestExtractTemporaryFilesOnServer(t *testing.T) {
	count := tempFiles(t)
	for _, panics := range []bool{false, true} {
		gate, verifier := newGateAndSpy(t, nil)
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
			resp, err := server.Client().Post(server.URL, multipartType, strings.NewReader(uploadRequest(1<<20)))
			require.NoError(t, err)
			resp.Body.Close()
			server.Close() // waits until the server is done with the request
			require.Equal(t, 1, <-made, "no temporary file, so nothing is tested")
			require.Zero(t, count(), "panics %t: a temporary file is left", panics)
		}
		require.Equal(t, []string{"x"}, verifier.params())
	}
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
			{"another error", func(context.Context) error { return errBoom }},
			{"cut off", func(context.Context) error { return io.ErrUnexpectedEOF }},
			{"too large", func(context.Context) error { return tooLarge }},
		} {
			for _, contentType := range []string{jsonType, formType, multipartType} {
				t.Run(c.name+", "+e.name+", "+contentType, func(t *testing.T) {
					t.Parallel()
					ctx, cancel := c.end(t.Context())
					defer cancel()
					body := readerFunc(func([]byte) (int, error) {
						if c.code == alicaptcha.ClientCanceled {
							cancel()
						}
						<-ctx.Done()
						return 0, e.err(ctx)
					})
					// What a Policy opens for a body without the field is not open to this.
					gate, verifier := newGateAndSpy(t, func(cfg *alicaptcha.Config) {
						cfg.Policy = alicaptcha.Policy{alicaptcha.ParamMissing: alicaptcha.Allow()}
					})
					r := bodyRequest(contentType, body).WithContext(ctx)
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
			gate, verifier := newGateAndSpy(t, nil, func(*http.Request) (string, error) {
				if c.code == alicaptcha.ClientCanceled {
					cancel()
				}
				<-ctx.Done()
				return "x", nil
			})
			require.Equal(t, c.code, gate.Check(bodyRequest("", nil).WithContext(ctx)).Code)
			require.Empty(t, verifier.params())
		})
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// TestExtractAtOnce shares extractors, and whatever they keep, between many
// requests: none may see another's body.
func TestExtractAtOnce(t *testing.T) {
	t.Parallel()
	var wrong atomic.Int64
	type key struct{}
	gate, _ := newGateAndSpy(t, func(cfg *alicaptcha.Config) {
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
				contentType, body := jsonType, `{"a":[],"f":"`+param+`","b":"`+param+`"}`
				switch j % 4 {
				case 1:
					contentType, body = formType, "a=1&f="+param+"&b="+param
				case 2:
					contentType, body = multipartType, formPart(`name="f"`, param)+formPart(`name="b"`, param)+formEnd
				case 3: // an end in the middle must leave nothing behind
					gate.Check(bodyRequest(jsonType, strings.NewReader(`{"f":[{"`+param)))
				}
				r := bodyRequest(contentType, strings.NewReader(body))
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

// serveSite starts a server, and returns its URL and a client for it.
func serveSite(t *testing.T, http2 bool, handler http.Handler) (string, *http.Client) {
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

// echoHandler answers with the body and, as headers, the trailers that it came with.
func echoHandler(t *testing.T) http.Handler {
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

// The handler gets every byte that the client sent: over the wire, of known and unknown length,
// with trailers, and larger than every limit.
func TestReplayOnServer(t *testing.T) {
	t.Parallel()
	huge, err := io.ReadAll(io.LimitReader(noiseReader(3), 3<<20))
	require.NoError(t, err)
	large := huge[:300<<10]
	bodies := map[string]struct{ contentType, body string }{
		"form":      {formType, "captchaVerifyParam=x&a=1"},
		"huge form": {formType, "captchaVerifyParam=x&a=" + string(huge)},
		"form as long as limit": {formType,
			"a=" + string(large[:128<<10-len("a=&captchaVerifyParam=x")]) + "&captchaVerifyParam=x"},
		"JSON":       {jsonType, `{"captchaVerifyParam":"x"}`},
		"large JSON": {jsonType, `{"captchaVerifyParam":"x","a":"` + string(large) + `"}`},
		"multipart": {multipartType,
			formPart(`name="captchaVerifyParam"`, "x") + formPart(`name="u"; filename="u"`, string(large)) + formEnd},
		"other":   {"application/octet-stream", string(large)},
		"nothing": {"application/octet-stream", ""},
	}
	for _, http2 := range []bool{false, true} {
		for _, deferred := range []bool{false, true} {
			gate, verifier := newGateAndSpy(t, nil)
			handler := gate.Handler(echoHandler(t))
			if deferred {
				handler = gate.Deferred(echoHandler(t)) // which never asks
			}
			address, client := serveSite(t, http2, handler)
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
	body, err := io.ReadAll(io.LimitReader(noiseReader(4), 3<<20))
	require.NoError(t, err)
	for _, contentType := range []string{formType, jsonType, multipartType, "text/plain"} {
		text := slices.Clone(body)
		switch contentType {
		case jsonType:
			copy(text, `{"a":"`)
		case multipartType:
			copy(text, formPart(`name="a"; filename="a"`, "")[:len(formPart(`name="a"; filename="a"`, ""))-2])
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
		gate, verifier := newGateAndSpy(t, func(cfg *alicaptcha.Config) { cfg.Mode = alicaptcha.ReportOnly })
		gate.Handler(handler).ServeHTTP(httptest.NewRecorder(), bodyRequest(contentType, bytes.NewReader(text)))
		require.True(t, handled)
		require.Empty(t, verifier.params())
	}
}

// dialSite sends text to the server at address as it stands.
func dialSite(t *testing.T, address, text string) (net.Conn, *bufio.Reader) {
	conn, err := net.Dial("tcp", strings.TrimPrefix(address, "http://"))
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	_, err = io.WriteString(conn, text)
	require.NoError(t, err)
	return conn, bufio.NewReader(conn)
}

func TestReplayExpectContinue(t *testing.T) {
	t.Parallel()
	gate, verifier := newGateAndSpy(t, nil)
	address, _ := serveSite(t, false, gate.Handler(echoHandler(t)))
	const body = `{"captchaVerifyParam":"x","a":1}`
	head := func(more string) string {
		return fmt.Sprintf("POST / HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"+
			"Content-Length: %d\r\nExpect: 100-continue\r\n%s\r\n", len(body), more)
	}

	for name, more := range map[string]string{
		"the extractor reads": "",
		"the handler reads":   "Captcha-Verify-Param: x\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			conn, in := dialSite(t, address, head(more))
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
		gate, _ := newGateAndSpy(t, nil, alicaptcha.FromHeader("Captcha-Verify-Param"))
		address, _ := serveSite(t, false, gate.Handler(echoHandler(t)))
		_, in := dialSite(t, address, head(""))
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
			gate, verifier := newGateAndSpy(t, func(cfg *alicaptcha.Config) {
				cfg.Observe = func(_ context.Context, o alicaptcha.Outcome) { outcome <- o }
			})
			address, _ := serveSite(t, false, gate.Handler(echoHandler(t)))
			conn, _ := dialSite(t, address, "POST / HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"+text)
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
		{"more was to come", 1 << 20, 100 * time.Millisecond,
			[]alicaptcha.Code{alicaptcha.ClientCanceled, alicaptcha.ServiceTimeout}},
	} {
		t.Run("while the service is asked, "+c.name, func(t *testing.T) {
			t.Parallel()
			asked := make(chan struct{})
			outcome := make(chan alicaptcha.Outcome, 1)
			gate, verifier := newGateAndSpy(t, func(cfg *alicaptcha.Config) {
				cfg.Observe = func(_ context.Context, o alicaptcha.Outcome) { outcome <- o }
				cfg.Timeout = c.timeout
			})
			verifier.do = hooked(func(ctx context.Context) error {
				close(asked)
				<-ctx.Done()
				return ctx.Err()
			})
			address, _ := serveSite(t, false, gate.Handler(echoHandler(t)))
			const body = `{"captchaVerifyParam":"x"}`
			conn, _ := dialSite(t, address, fmt.Sprintf("POST / HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"+
				"Content-Length: %d\r\n\r\n%s", len(body)+c.more, body))
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
	backend, _ := serveSite(t, false, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/early" {
			w.WriteHeader(http.StatusTeapot) // with the body unread
			return
		}
		echoHandler(t).ServeHTTP(w, r)
	}))
	target, err := url.Parse(backend)
	require.NoError(t, err)
	proxy := &httputil.ReverseProxy{
		Rewrite:  func(p *httputil.ProxyRequest) { p.SetURL(target) },
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
	rest, err := io.ReadAll(io.LimitReader(noiseReader(5), 2<<20))
	require.NoError(t, err)
	body := "captchaVerifyParam=x&a=" + string(rest)
	gate, _ := newGateAndSpy(t, nil)
	for _, http2 := range []bool{false, true} {
		front, client := serveSite(t, http2, gate.Handler(proxy))
		var group sync.WaitGroup
		for i := range 8 {
			group.Go(func() {
				var in io.Reader = strings.NewReader(body)
				if i%4 < 2 {
					in = io.MultiReader(in)
				}
				if i%2 == 0 {
					resp, err := client.Post(front+"/early", formType, in)
					if err == nil { // the client may well fail to send what nobody reads
						resp.Body.Close()
					}
					return
				}
				resp, err := client.Post(front+"/", formType, in)
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
	m, err := alicaptcha.New(alicaptcha.Config{
		Verifier: passing(), SceneID: "login", Logger: slog.New(slog.DiscardHandler),
	})
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
