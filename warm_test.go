package alicaptcha_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

func TestWarmOnNoClient(t *testing.T) {
	t.Parallel()
	for _, client := range []*alicaptcha.Client{nil, {}} {
		fault, ok := client.Warm(t.Context()).(*alicaptcha.Error)
		require.True(t, ok)
		require.Equal(t, alicaptcha.Misconfigured, fault.Code)
	}
}

// What Warm sends has no key and nothing to verify, by a Transport of the user's as well.
func TestWarmSendsNothing(t *testing.T) {
	t.Parallel()
	var sent []*http.Request
	client := newClient(t, secretConfig(transportFunc(func(r *http.Request) (*http.Response, error) {
		sent = append(sent, r)
		return answer405(), nil
	})))
	for range 100 {
		require.NoError(t, client.Warm(t.Context()))
	}
	require.Len(t, sent, 1)
	require.Equal(t, http.MethodGet, sent[0].Method)
	require.Equal(t, client.Endpoint(), sent[0].URL.String())
	require.Equal(t, http.Header{"Accept-Encoding": {"identity"}}, sent[0].Header)
	require.Nil(t, sent[0].Body)
	deadline, ok := sent[0].Context().Deadline()
	require.True(t, ok)
	require.LessOrEqual(t, time.Until(deadline), 5*time.Second)
}

func TestWarmBeforeTheSimulator(t *testing.T) {
	t.Parallel()
	for name, srv := range map[string]*alicaptchatest.Server{
		"http":  alicaptchatest.Start(t, alicaptchatest.Config{}),
		"https": alicaptchatest.StartTLS(t, alicaptchatest.Config{}),
	} {
		client := srv.Client()
		require.NoError(t, client.Warm(t.Context()), name)
		require.Zero(t, srv.Count(), "it must not call")
		param, err := srv.Issue(alicaptchatest.Issue{SceneID: "login"})
		require.NoError(t, err)
		result, err := client.Verify(t.Context(), alicaptcha.Request{Param: param, SceneID: "login"})
		require.NoError(t, err)
		require.True(t, result.Passed)
		require.NoError(t, client.Warm(t.Context()), name)
	}
}

// endless never ends, and counts what is read of it.
type endless struct{ read atomic.Int64 }

func (e *endless) Read(p []byte) (int, error) { e.read.Add(int64(len(p))); return len(p), nil }
func (e *endless) Close() error               { return nil }

// Every failure is an *Error, shows nothing secret, and leaves the Client as it was. After it
// there is no other request for 15 s.
func TestWarmFailures(t *testing.T) {
	t.Parallel()
	long := new(endless)
	answering := func(resp *http.Response, err error) transportFunc {
		return func(*http.Request) (*http.Response, error) { return resp, err }
	}
	for name, row := range map[string]struct {
		transport transportFunc
		code      alicaptcha.Code
	}{
		"no answer":       {answering(nil, errors.New(secretMessage)), alicaptcha.ServiceUnavailable},
		"nothing at all":  {answering(nil, nil), alicaptcha.ServiceUnavailable},
		"no body":         {answering(&http.Response{StatusCode: 200}, nil), alicaptcha.ServiceUnavailable},
		"an endless body": {answering(&http.Response{StatusCode: 400, Body: long}, nil), alicaptcha.ServiceUnavailable},
		"another protocol": {
			answering(&http.Response{StatusCode: 101, Body: http.NoBody}, nil), alicaptcha.ServiceUnavailable,
		},
		"not kept": {
			answering(&http.Response{StatusCode: 400, Body: http.NoBody, Close: true}, nil), alicaptcha.ServiceUnavailable,
		},
		"a body that breaks off": {
			answering(&http.Response{StatusCode: 400, Body: io.NopCloser(iotest.ErrReader(io.ErrUnexpectedEOF))}, nil),
			alicaptcha.ServiceUnavailable,
		},
		"a panic": {func(*http.Request) (*http.Response, error) { panic(secretMessage) }, alicaptcha.ServiceUnavailable},
		"a hang": {
			func(r *http.Request) (*http.Response, error) { <-r.Context().Done(); return nil, r.Context().Err() },
			alicaptcha.ServiceTimeout,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var n atomic.Int32
				client := newClient(t, secretConfig(transportFunc(func(r *http.Request) (*http.Response, error) {
					if r.Method == http.MethodPost {
						return cannedTransport(200, passAnswer)(r)
					}
					n.Add(1)
					return row.transport(r)
				})))
				for i := range 3 {
					start := time.Now()
					err := client.Warm(t.Context())
					require.Equal(t, row.code, requireFault(t, alicaptcha.Result{}, err).Code)
					require.LessOrEqual(t, time.Since(start), 5*time.Second)
					require.EqualValues(t, i+1, n.Load())
					time.Sleep(14*time.Second - time.Since(start))
					require.NoError(t, client.Warm(t.Context()))
					require.EqualValues(t, i+1, n.Load())
					time.Sleep(time.Second)
				}
				result, err := client.Verify(t.Context(), alicaptcha.Request{Param: "x"})
				require.NoError(t, err)
				require.True(t, result.Passed)
			})
		})
	}
	require.LessOrEqual(t, long.read.Load(), int64(1<<20))
}

// A Transport that does not heed its context holds one goroutine, and no caller.
func TestWarmWithADeafTransport(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var n atomic.Int32
		end := make(chan struct{})
		client := newClient(t, secretConfig(transportFunc(func(*http.Request) (*http.Response, error) {
			n.Add(1)
			<-end
			return nil, io.EOF
		})))
		start := time.Now()
		err := client.Warm(t.Context())
		require.Equal(t, alicaptcha.ServiceTimeout, requireFault(t, alicaptcha.Result{}, err).Code)
		require.Equal(t, 5*time.Second, time.Since(start))
		for range 10 {
			time.Sleep(time.Minute)
			require.NoError(t, client.Warm(t.Context()))
		}
		require.EqualValues(t, 1, n.Load())
		close(end)
		synctest.Wait()
	})
}

// A context that has ended opens nothing, and the next one does.
func TestWarmWithAnEndedContext(t *testing.T) {
	t.Parallel()
	n := 0
	client := newClient(t, secretConfig(transportFunc(func(r *http.Request) (*http.Response, error) {
		n++
		return answer405(), nil
	})))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	fault := requireFault(t, alicaptcha.Result{}, client.Warm(ctx))
	require.Equal(t, alicaptcha.ClientCanceled, fault.Code)
	require.Zero(t, n)
	require.NoError(t, client.Warm(t.Context()))
	require.Equal(t, 1, n)
}

// A gateway may refuse the request of Warm and close the connection without notice. That
// must not look like an outage to the call that follows: page views could feign one.
func TestWarmFeignsNoOutage(t *testing.T) {
	t.Parallel()
	client := clientAt(t, "http://"+serveRaw(t, func(conn net.Conn) {
		in := bufio.NewReader(conn)
		if readCall(in) {
			io.WriteString(conn, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
			readCall(in)
		}
	}))
	require.NoError(t, client.Warm(t.Context()))
	result, err := askClient(t, t.Context(), client)
	require.Equal(t, alicaptcha.RequestRefused, requireFault(t, result, err).Code)
}

func answer405() *http.Response {
	return &http.Response{StatusCode: http.StatusMethodNotAllowed, Body: io.NopCloser(strings.NewReader("no"))}
}
