package alicaptcha

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// pipeListener is a net.Listener on pipes, for time that a test makes pass.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	dials  atomic.Int64
	dead   atomic.Bool // what is written to a connection that was there before gets lost
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error { close(l.closed); return nil }

func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }

func (l *pipeListener) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	l.dials.Add(1)
	client, server := net.Pipe()
	select {
	case l.conns <- server:
		return &mortalConn{Conn: client, dead: &l.dead, born: l.dead.Load()}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

type mortalConn struct {
	net.Conn
	dead *atomic.Bool
	born bool
}

func (c *mortalConn) Write(p []byte) (int, error) {
	if c.dead.Load() != c.born {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

// An idle connection is closed after 20 s, before the service, which keeps it for 25 s,
// closes it under a call.
func TestTransportClosesIdleConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		listener := newPipeListener()
		var closed []time.Duration
		start := time.Now()
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			io.WriteString(w, `{"Code":"Success","Success":true,"Result":{"VerifyResult":true}}`)
		}), ConnState: func(_ net.Conn, state http.ConnState) {
			if state == http.StateClosed {
				closed = append(closed, time.Since(start))
			}
		}}
		transport := newTransport()
		transport.DialContext = listener.dial
		t.Cleanup(func() {
			transport.CloseIdleConnections()
			require.NoError(t, srv.Close())
		})
		go srv.Serve(listener)
		client, err := NewClient(ClientConfig{
			Endpoint: "http://127.0.0.1", AccessKeyID: "id", AccessKeySecret: "secret", Transport: transport,
		})
		require.NoError(t, err)
		for range 5 { // in use it stays
			_, err := client.Verify(context.Background(), Request{Param: "x"})
			require.NoError(t, err)
			time.Sleep(19 * time.Second)
		}
		require.EqualValues(t, 1, listener.dials.Load())
		time.Sleep(2 * time.Second)
		synctest.Wait()
		require.Equal(t, []time.Duration{96 * time.Second}, closed)
	})
}

// A connection that died without a word costs one call; those after it have another.
func TestTransportNoticesADeadConnection(t *testing.T) {
	certified := httptest.NewTLSServer(http.NotFoundHandler())
	defer certified.Close()
	roots := x509.NewCertPool()
	roots.AddCert(certified.Certificate())
	synctest.Test(t, func(t *testing.T) {
		listener := newPipeListener()
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			io.WriteString(w, `{"Code":"Success","Success":true,"Result":{"VerifyResult":true}}`)
		}), TLSConfig: &tls.Config{Certificates: certified.TLS.Certificates}}
		transport := newTransport()
		transport.DialContext = listener.dial
		transport.TLSClientConfig = &tls.Config{RootCAs: roots}
		t.Cleanup(func() {
			transport.CloseIdleConnections()
			require.NoError(t, srv.Close())
		})
		go srv.ServeTLS(listener, "", "")
		client, err := NewClient(ClientConfig{
			Endpoint: "https://127.0.0.1", AccessKeyID: "id", AccessKeySecret: "secret", Transport: transport,
		})
		require.NoError(t, err)
		verify := func() error {
			_, err := client.Verify(context.Background(), Request{Param: "x"})
			return err
		}
		require.NoError(t, verify())
		require.NoError(t, verify())
		require.EqualValues(t, 1, listener.dials.Load())
		listener.dead.Store(true)
		require.Error(t, verify())
		time.Sleep(4 * time.Second) // less than IdleConnTimeout
		require.NoError(t, verify())
		require.EqualValues(t, 2, listener.dials.Load())
	})
}

// A sdkTransport is an HttpClient in the place of connection, that nobody asked to
// fill an answer.
type sdkTransport func(*http.Request) (*http.Response, error)

func (f sdkTransport) Call(r *http.Request, _ *http.Transport) (*http.Response, error) { return f(r) }

// Where the SDK does not come as far as the call, or goes round it, there is no
// verdict, neither a pass nor a rejection: nothing of what it says counts.
func TestVerifyWithoutACall(t *testing.T) {
	t.Parallel()
	const pass = `{"RequestId":"R","Code":"Success","Success":true,"Result":{"VerifyResult":true,"VerifyCode":"T001"}}`
	gone, hangUp := context.WithCancel(t.Context())
	hangUp()
	late, cancel := context.WithTimeout(t.Context(), -1)
	defer cancel()
	for name, change := range map[string]func(*Client){
		"no URL":         func(c *Client) { c.sdk.Endpoint = new("no host") },
		"no certificate": func(c *Client) { c.sdk.Key, c.sdk.Cert = new("no PEM"), new("no PEM") },
		"a pass that somebody else has read": func(c *Client) {
			c.sdk.HttpClient = sdkTransport(func(r *http.Request) (*http.Response, error) {
				return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader(pass)), Request: r}, nil
			})
		},
		"an error of somebody else": func(c *Client) {
			c.sdk.HttpClient = sdkTransport(func(*http.Request) (*http.Response, error) { return nil, errTaken })
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client, err := NewClient(ClientConfig{
				Region: Mainland, AccessKeyID: "id", AccessKeySecret: "secret", Transport: nobody{t},
			})
			require.NoError(t, err)
			change(client)
			for want, ctx := range map[Code]context.Context{
				ServiceUnavailable: t.Context(), ClientCanceled: gone, ServiceTimeout: late,
			} {
				result, err := client.Verify(ctx, Request{Param: "x", SceneID: "login"})
				require.Error(t, err)
				require.Zero(t, result)
				fault, ok := errors.AsType[*Error](err)
				require.True(t, ok)
				require.Equal(t, want, fault.Code)
				require.Zero(t, fault.Status)
			}
			require.Error(t, client.Diagnose(t.Context(), "login"))
		})
	}
}

// nobody is a Transport that is not to be asked.
type nobody struct{ t *testing.T }

func (n nobody) RoundTrip(*http.Request) (*http.Response, error) {
	n.t.Error("the Transport was asked")
	return nil, io.EOF
}

// net/http goes on with a TLS handshake whose call has ended. Against an endpoint
// that never finishes one, it stays behind for 5 s and no longer.
func TestTransportEndsHandshakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		listener := newPipeListener()
		defer listener.Close()
		var open atomic.Int64
		go func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				open.Add(1)
				go func() {
					io.Copy(io.Discard, conn)
					open.Add(-1)
				}()
			}
		}()
		transport := newTransport()
		transport.DialContext = listener.dial
		client, err := NewClient(ClientConfig{
			Endpoint: "https://127.0.0.1", AccessKeyID: "id", AccessKeySecret: "secret", Transport: transport,
		})
		require.NoError(t, err)
		for range 200 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			_, err := client.Verify(ctx, Request{Param: "x"})
			cancel()
			require.ErrorIs(t, err, context.DeadlineExceeded)
		}
		synctest.Wait()
		require.EqualValues(t, 200, open.Load())
		time.Sleep(5 * time.Second)
		synctest.Wait()
		require.Zero(t, open.Load())
	})
}
