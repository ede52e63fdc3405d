package alicaptcha_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
)

// A Transport may find a kept connection closed before anything was sent on it, and only
// then the call is made on another one.
func TestClientTakesAnotherConnection(t *testing.T) {
	t.Parallel()
	idle := errors.New("http: server closed idle connection")
	open, theirs := net.Pipe()
	t.Cleanup(func() { open.Close(); theirs.Close() })
	closed, err := net.Dial("tcp", serveRaw(t, func(net.Conn) {}))
	require.NoError(t, err)
	closed.Close()
	for _, row := range []struct {
		name   string
		conn   net.Conn
		reused bool
		wrote  bool
		err    error
		again  bool
	}{
		{"closed before the call", open, true, false, idle, true},
		{"closed after it was written to", open, true, true, idle, false},
		{"another error", open, true, false, io.EOF, false},
		{"a new connection", open, false, false, idle, false},
		{"found closed", closed, true, true, io.EOF, true}, // what was written did not leave
		{"found closed, but new", closed, false, true, io.EOF, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			var bodies []string
			client := newClient(t, secretConfig(transportFunc(func(r *http.Request) (*http.Response, error) {
				trace := httptrace.ContextClientTrace(r.Context())
				body, err := io.ReadAll(r.Body)
				require.NoError(t, err)
				bodies = append(bodies, string(body))
				if len(bodies) > 2 {
					return cannedTransport(200, passAnswer)(r)
				}
				trace.GotConn(httptrace.GotConnInfo{Conn: row.conn, Reused: row.reused})
				if row.wrote {
					trace.WroteHeaders()
				}
				return nil, row.err
			})))
			result, err := askClient(t, t.Context(), client)
			if !row.again {
				require.Equal(t, alicaptcha.ServiceUnavailable, requireFault(t, result, err).Code)
				require.Len(t, bodies, 1)
				return
			}
			require.NoError(t, err)
			require.True(t, result.Passed)
			require.Len(t, bodies, 3)
			require.Contains(t, bodies[0], "CaptchaVerifyParam=")
			require.Equal(t, []string{bodies[0], bodies[0]}, bodies[1:], "the body is whole")
		})
	}
}

// It ends, whatever a Transport says: with the context, at a dial that fails, and after a
// number of connections.
func TestClientTakesNoMoreConnections(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	for _, row := range []struct {
		name string
		then func(n int, got func()) error
		n    int
		code alicaptcha.Code
	}{
		{"always closed", func(_ int, got func()) error { got(); return nil }, 101, alicaptcha.ServiceUnavailable},
		{"no other connection", func(n int, got func()) error {
			if n == 1 {
				got()
			}
			return nil
		}, 2, alicaptcha.ServiceUnavailable},
		{"canceled", func(_ int, got func()) error { got(); cancel(); return nil }, 1, alicaptcha.ClientCanceled},
	} {
		n := 0
		client := newClient(t, secretConfig(transportFunc(func(r *http.Request) (*http.Response, error) {
			n++
			err := row.then(n, func() {
				httptrace.ContextClientTrace(r.Context()).GotConn(httptrace.GotConnInfo{Reused: true})
			})
			if err == nil {
				err = errors.New("http: server closed idle connection")
			}
			return nil, err
		})))
		result, err := askClient(t, ctx, client)
		require.Equal(t, row.code, requireFault(t, result, err).Code, row.name)
		require.Equal(t, row.n, n, row.name)
	}
}

// A deafConn keeps what it reads to itself while it is deaf.
type deafConn struct {
	net.Conn
	isDeaf *atomic.Bool
	closed chan struct{}
}

func (c deafConn) NetConn() net.Conn { return c.Conn }

func (c deafConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.isDeaf.Load() {
		<-c.closed
	}
	return n, err
}

func (c deafConn) Close() error {
	defer func() { recover() }() // it may be closed twice
	close(c.closed)
	return c.Conn.Close()
}

// A kept connection whose end has arrived is not used, although net/http's reader has not
// got to run. So it is over TLS, where an alert comes before the end.
func TestClientLooksAtKeptConnections(t *testing.T) {
	t.Parallel()
	for _, scheme := range []string{"http", "https"} {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			serverTLS, clientTLS, _ := tlsConfigs(t)
			end, ended := make(chan struct{}), make(chan struct{})
			addr := serveRaw(t, func(raw net.Conn) {
				conn := raw
				if scheme == "https" {
					conn = tls.Server(raw, serverTLS)
				}
				if readCall(bufio.NewReader(conn)) {
					io.WriteString(conn, keptAnswer)
				}
				<-end
				conn.Close()
				ended <- struct{}{}
			})
			var dialed []deafConn
			client := clientAt(t, scheme+"://"+addr, func(transport *http.Transport) {
				transport.TLSClientConfig = clientTLS
				transport.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
					conn, err := new(net.Dialer).DialContext(ctx, network, addr)
					dialed = append(dialed, deafConn{conn, new(atomic.Bool), make(chan struct{})})
					return dialed[len(dialed)-1], err
				}
			})
			for range 3 {
				result, err := askClient(t, t.Context(), client)
				require.NoError(t, err)
				require.True(t, result.Passed)
				dialed[len(dialed)-1].isDeaf.Store(true)
				end <- struct{}{}
				<-ended
			}
			require.Len(t, dialed, 3)
		})
	}
}

// keptAnswer is a pass after which the connection may be kept.
var keptAnswer = strings.Replace(wireAnswer(200, passAnswer), "Connection: close\r\n", "", 1)

// No param is sent twice to a service that closes connections at any time: while they are
// idle, before it reads a call, amid it, and before the answer.
func TestClientSendsNothingTwice(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	came := map[string]int{}
	addr := serveRaw(t, func(conn net.Conn) {
		in := bufio.NewReader(conn)
		for {
			conn.SetReadDeadline(time.Now().Add(rand.N(5 * time.Millisecond)))
			if _, err := in.Peek(1); err != nil {
				return
			}
			conn.SetReadDeadline(time.Now().Add(testGuard))
			if rand.IntN(10) == 0 {
				return
			}
			r, err := http.ReadRequest(in)
			if err != nil || rand.IntN(10) == 0 {
				return
			}
			body, err := io.ReadAll(r.Body)
			if err != nil {
				return
			}
			form, _ := url.ParseQuery(string(body))
			mu.Lock()
			came[form.Get("CaptchaVerifyParam")]++
			mu.Unlock()
			if rand.IntN(10) == 0 {
				return
			}
			io.WriteString(conn, keptAnswer)
		}
	})
	client := clientAt(t, "http://"+addr)
	var calling sync.WaitGroup
	passed, failed := 0, 0
	for i := range 4 {
		calling.Go(func() {
			for j := range 250 {
				param := fmt.Sprint(i, "-", j, strings.Repeat("x", rand.IntN(8000)))
				result, err := client.Verify(t.Context(), alicaptcha.Request{Param: param})
				mu.Lock()
				switch {
				case err != nil:
					failed++
				case result.Passed && came[param] == 1:
					passed++
				}
				mu.Unlock()
			}
		})
	}
	calling.Wait()
	require.Equal(t, 1000, passed+failed)
	require.Positive(t, passed)
	for param, n := range came {
		require.Equal(t, 1, n, len(param))
	}
}
