package alicaptcha_test

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

// A stuckConn takes nothing that is written until it is closed.
type stuckConn struct {
	net.Conn
	closed chan struct{}
}

func (c stuckConn) Write([]byte) (int, error) {
	<-c.closed
	return 0, net.ErrClosed
}

func (c stuckConn) Close() error {
	select {
	case <-c.closed:
	default:
		close(c.closed)
	}
	return c.Conn.Close()
}

// A timeout names what the call was doing.
func TestTimeoutNamesItsStage(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // it accepts by its queue alone
	require.NoError(t, err)
	t.Cleanup(func() { silent.Close() })
	deaf, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { deaf.Close() })
	toDeaf := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", deaf.LocalAddr().String())
	}}
	blackHole := &net.Dialer{ControlContext: func(ctx context.Context, _, _ string, _ syscall.RawConn) error {
		<-ctx.Done()
		return ctx.Err()
	}}
	stuck := func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, addr)
		return stuckConn{conn, make(chan struct{})}, err
	}
	hanging := func(where alicaptchatest.Stage) *alicaptchatest.Server {
		server := alicaptchatest.Start(t, alicaptchatest.Config{})
		server.SetFaults(alicaptchatest.Faults{Hang: where})
		return server
	}

	long := strings.Repeat("p", 28<<10) // more than net/http buffers
	for stage, row := range map[string]struct {
		endpoint  string
		transport *http.Transport
		code      alicaptcha.Code
	}{
		"dns": {"https://captcha.example",
			&http.Transport{DialContext: (&net.Dialer{Resolver: toDeaf}).DialContext}, alicaptcha.ServiceTimeout},
		"connect": {"http://" + silent.Addr().String(),
			&http.Transport{DialContext: blackHole.DialContext}, alicaptcha.ServiceTimeout},
		"tls": {"https://" + silent.Addr().String(),
			&http.Transport{TLSClientConfig: &tls.Config{}}, alicaptcha.ServiceTimeout},
		"send":  {"http://" + silent.Addr().String(), &http.Transport{DialContext: stuck}, alicaptcha.ServiceTimeout},
		"wait":  {hanging("headers").URL, &http.Transport{}, alicaptcha.ServiceTimeout},
		"read":  {hanging("body").URL, &http.Transport{}, alicaptcha.ServiceTimeout},
		"queue": {hanging("headers").URL, &http.Transport{MaxConnsPerHost: 1}, alicaptcha.Overloaded},
	} {
		t.Run(stage, func(t *testing.T) {
			t.Parallel()
			row.transport.Proxy = nil
			defer row.transport.CloseIdleConnections()
			client := newClient(t, alicaptcha.ClientConfig{
				Endpoint: row.endpoint, AccessKeyID: "test-id", AccessKeySecret: "test-secret", Transport: row.transport,
			})
			verify := func(d time.Duration) error {
				ctx, cancel := context.WithTimeout(t.Context(), d)
				defer cancel()
				_, err := client.Verify(ctx, alicaptcha.Request{Param: long, SceneID: "login"})
				return err
			}
			var err error
			if stage == "queue" {
				first, end := context.WithCancel(t.Context())
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					client.Verify(first, alicaptcha.Request{Param: "p", SceneID: "login"})
				}()
				defer func() { end(); <-ended }()
				for err == nil || stageOf(err) == "wait" { // until the other has the connection
					err = verify(50 * time.Millisecond)
				}
			} else {
				err = verify(300 * time.Millisecond)
			}
			require.Equal(t, stage, stageOf(err))
			require.ErrorContains(t, err, "alicaptcha: "+string(row.code)+" (")
			require.ErrorContains(t, err, "stage "+stage+")")
		})
	}
}

func stageOf(err error) string {
	e, _ := err.(*alicaptcha.Error)
	if e == nil {
		return ""
	}
	return e.Stage
}
