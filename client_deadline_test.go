package alicaptcha_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

// callStages are the places where a service can hang. reached is closed once it does.
func callStages(t *testing.T) map[string]func(t *testing.T, reached chan<- struct{}) *alicaptcha.Client {
	serverTLS, _, _ := tlsConfigs(t)
	plain := func(script func(conn net.Conn, in *bufio.Reader)) func(*testing.T, chan<- struct{}) *alicaptcha.Client {
		return func(t *testing.T, reached chan<- struct{}) *alicaptcha.Client {
			return clientAt(t, "http://"+serveRaw(t, func(conn net.Conn) {
				in := bufio.NewReader(conn)
				if readCall(in) {
					script(conn, in)
					reached <- struct{}{}
					io.Copy(io.Discard, in) // until the client hangs up
				}
			}))
		}
	}
	return map[string]func(*testing.T, chan<- struct{}) *alicaptcha.Client{
		"before the headers": plain(func(net.Conn, *bufio.Reader) {}),
		"in the status line": plain(func(conn net.Conn, _ *bufio.Reader) { io.WriteString(conn, "HTTP/1.1 200") }),
		"in the headers": plain(func(conn net.Conn, _ *bufio.Reader) {
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Len")
		}),
		"after 100": plain(func(conn net.Conn, _ *bufio.Reader) {
			io.WriteString(conn, "HTTP/1.1 100 Continue\r\n\r\n")
		}),
		"before the body": plain(func(conn net.Conn, _ *bufio.Reader) {
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n")
		}),
		"in the body": plain(func(conn net.Conn, _ *bufio.Reader) {
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{")
		}),
		"after the body": plain(func(conn net.Conn, _ *bufio.Reader) {
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n"+passAnswer)
		}),
		"before the last chunk": plain(func(conn net.Conn, _ *bufio.Reader) {
			fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n", len(passAnswer), passAnswer)
		}),
		"byte by byte": func(t *testing.T, reached chan<- struct{}) *alicaptcha.Client {
			return clientAt(t, "http://"+serveRaw(t, func(conn net.Conn) {
				if !readCall(bufio.NewReader(conn)) {
					return
				}
				io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n")
				reached <- struct{}{}
				pace := time.NewTicker(2 * time.Millisecond)
				defer pace.Stop()
				for range pace.C {
					if _, err := conn.Write([]byte(" ")); err != nil {
						return
					}
				}
			}))
		},
		"in the TLS handshake": func(t *testing.T, reached chan<- struct{}) *alicaptcha.Client {
			return clientAt(t, "https://"+serveRaw(t, func(conn net.Conn) {
				io.ReadFull(conn, make([]byte, 1))
				reached <- struct{}{}
				io.Copy(io.Discard, conn)
			}), func(tr *http.Transport) { tr.TLSHandshakeTimeout = 0 })
		},
		"after the TLS handshake": func(t *testing.T, reached chan<- struct{}) *alicaptcha.Client {
			return clientAt(t, "https://"+serveRaw(t, func(conn net.Conn) {
				secure := tls.Server(conn, serverTLS)
				if readCall(bufio.NewReader(secure)) {
					reached <- struct{}{}
					io.Copy(io.Discard, secure)
				}
			}), func(tr *http.Transport) { tr.TLSClientConfig = &tls.Config{InsecureSkipVerify: true} })
		},
		"while dialling": func(t *testing.T, reached chan<- struct{}) *alicaptcha.Client {
			return clientAt(t, "https://captcha.example", func(tr *http.Transport) {
				tr.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
					reached <- struct{}{}
					<-ctx.Done()
					return nil, ctx.Err()
				}
			})
		},
		"while a dial ignores the context": func(t *testing.T, reached chan<- struct{}) *alicaptcha.Client {
			release := make(chan struct{})
			t.Cleanup(func() { close(release) })
			return clientAt(t, "https://captcha.example", func(tr *http.Transport) {
				tr.DialContext = func(context.Context, string, string) (net.Conn, error) {
					reached <- struct{}{}
					<-release
					return nil, errors.New("released")
				}
			})
		},
	}
}

func TestClientDeadlineAndCancellation(t *testing.T) {
	for name, start := range callStages(t) {
		t.Run(name, func(t *testing.T) {
			t.Run("deadline", func(t *testing.T) {
				client := start(t, make(chan struct{}, 16))
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
				defer cancel()
				result, err := askClient(t, ctx, client)
				fault := requireFault(t, result, err)
				require.Equal(t, alicaptcha.ServiceTimeout, fault.Code)
				require.ErrorIs(t, err, context.DeadlineExceeded)
				require.Contains(t, err.Error(), "deadline exceeded")
			})
			t.Run("cancellation", func(t *testing.T) {
				reached := make(chan struct{}, 16)
				client := start(t, reached)
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				go func() {
					select {
					case <-reached:
					case <-time.After(testGuard):
					}
					cancel()
				}()
				result, err := askClient(t, ctx, client)
				fault := requireFault(t, result, err)
				require.Equal(t, alicaptcha.ClientCanceled, fault.Code)
				require.ErrorIs(t, err, context.Canceled)
			})
		})
	}
}

// The body of a 101 is the bare connection, which net/http ends by no context.
func TestClientDeadlineAfterSwitchingProtocols(t *testing.T) {
	client := clientAt(t, "http://"+serveRaw(t, func(conn net.Conn) {
		in := bufio.NewReader(conn)
		if readCall(in) {
			io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")
			io.Copy(io.Discard, in)
		}
	}))
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	result, err := askClient(t, ctx, client)
	code := requireFault(t, result, err).Code
	require.Contains(t, []alicaptcha.Code{alicaptcha.ServiceUnavailable, alicaptcha.ServiceTimeout}, code)
}

// A service that does not read the call is bounded too.
func TestClientDeadlineWhileSending(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	client := clientAt(t, "http://"+serveRaw(t, func(net.Conn) { <-release }))
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := client.Verify(ctx, alicaptcha.Request{Param: strings.Repeat("p", 8<<20)})
		done <- err
	}()
	select {
	case err := <-done:
		fault, ok := errors.AsType[*alicaptcha.Error](err)
		require.True(t, ok)
		require.Equal(t, alicaptcha.ServiceTimeout, fault.Code)
	case <-time.After(testGuard):
		require.FailNow(t, "Verify hangs")
	}
}

// A call that ended in a status which blames the request stays so however
// slowly its body comes: a gateway that stalls must not look like an outage.
func TestClientRefusalWithAStalledBody(t *testing.T) {
	for status, want := range map[int]alicaptcha.Code{
		403: alicaptcha.RequestRefused, 429: alicaptcha.ServiceThrottled, 502: alicaptcha.ServiceTimeout,
	} {
		client := clientAt(t, "http://"+serveRaw(t, func(conn net.Conn) {
			in := bufio.NewReader(conn)
			if readCall(in) {
				fmt.Fprintf(conn, "HTTP/1.1 %d Status\r\nContent-Length: 99\r\n\r\n{", status)
				io.Copy(io.Discard, in)
			}
		}))
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		result, err := askClient(t, ctx, client)
		cancel()
		fault := requireFault(t, result, err)
		require.Equal(t, want, fault.Code, status)
		require.Equal(t, status, fault.Status)
	}
}

func TestClientTakesFiveSecondsWithoutADeadline(t *testing.T) {
	for name, tc := range map[string]struct {
		deadline time.Duration // 0: none
		cancel   time.Duration
		takes    time.Duration
		code     alicaptcha.Code
	}{
		"none":            {takes: 5 * time.Second, code: alicaptcha.ServiceTimeout},
		"shorter":         {deadline: time.Second, takes: time.Second, code: alicaptcha.ServiceTimeout},
		"longer":          {deadline: time.Hour, takes: time.Hour, code: alicaptcha.ServiceTimeout},
		"none, cancelled": {cancel: 2 * time.Second, takes: 2 * time.Second, code: alicaptcha.ClientCanceled},
		"past":            {deadline: -time.Second, takes: 0, code: alicaptcha.ServiceTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client := newClient(t, secretConfig(transportFunc(func(r *http.Request) (*http.Response, error) {
					<-r.Context().Done()
					return nil, r.Context().Err()
				})))
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				if tc.deadline != 0 {
					ctx, cancel = context.WithTimeout(ctx, tc.deadline)
					defer cancel()
				}
				if tc.cancel != 0 {
					time.AfterFunc(tc.cancel, cancel)
				}
				start := time.Now()
				result, err := client.Verify(ctx, alicaptcha.Request{Param: secretParam})
				require.Equal(t, tc.takes, time.Since(start))
				require.Equal(t, tc.code, requireFault(t, result, err).Code)
			})
		})
	}
}

func TestClientContextThatIsDoneSendsNothing(t *testing.T) {
	sim := alicaptchatest.Start(t, alicaptchatest.Config{})
	param, err := sim.Issue(alicaptchatest.Issue{SceneID: "login"})
	require.NoError(t, err)
	client := sim.Client()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 10 {
		result, err := client.Verify(ctx, alicaptcha.Request{Param: param, SceneID: "login"})
		require.Equal(t, alicaptcha.ClientCanceled, requireFault(t, result, err).Code)
	}
	require.Zero(t, sim.Count())
	result, err := client.Verify(t.Context(), alicaptcha.Request{Param: param, SceneID: "login"})
	require.NoError(t, err)
	require.True(t, result.Passed)
}

// Timeouts of a Transport's own, without the context's end.
func TestClientTransportTimeout(t *testing.T) {
	client := clientAt(t, "http://"+serveRaw(t, func(conn net.Conn) {
		io.Copy(io.Discard, conn)
	}), func(tr *http.Transport) { tr.ResponseHeaderTimeout = 20 * time.Millisecond })
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	result, err := askClient(t, ctx, client)
	require.Equal(t, alicaptcha.ServiceTimeout, requireFault(t, result, err).Code)
}

func TestClientLeavesNoGoroutines(t *testing.T) {
	stages := callStages(t)
	before := runtime.NumGoroutine()
	t.Run("calls", func(t *testing.T) {
		for name, start := range stages {
			client := start(t, make(chan struct{}, 1000))
			done := make(chan struct{}, 16)
			for range cap(done) {
				go func() {
					ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
					defer cancel()
					client.Verify(ctx, alicaptcha.Request{Param: secretParam})
					done <- struct{}{}
				}()
			}
			for range cap(done) {
				select {
				case <-done:
				case <-time.After(testGuard):
					require.FailNow(t, "Verify hangs "+name)
				}
			}
		}
	}) // and its cleanups, which end the servers and the idle connections
	ended := func() bool { return runtime.NumGoroutine() <= before+1 } // one of them asks
	require.Eventually(t, ended, testGuard, 5*time.Millisecond)
}
