package alicaptcha_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

func TestClientFollowsNoRedirect(t *testing.T) {
	var arrived atomic.Int64
	second := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		arrived.Add(1)
		io.WriteString(w, passAnswer)
	}))
	defer second.Close()
	secondTLS := httptest.NewTLSServer(second.Config.Handler)
	defer secondTLS.Close()

	for _, status := range []int{300, 301, 302, 303, 305, 307, 308} {
		for _, to := range []string{
			second.URL, secondTLS.URL, "/other", "//" + strings.TrimPrefix(second.URL, "http://") + "/",
		} {
			var calls atomic.Int64
			handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				calls.Add(1)
				w.Header().Set("Location", to)
				w.WriteHeader(status)
				io.WriteString(w, passAnswer)
			})
			first, firstTLS := httptest.NewServer(handler), httptest.NewTLSServer(handler)
			for _, srv := range []*httptest.Server{first, firstTLS} {
				t.Run(fmt.Sprintf("%d from %s to %s", status, srv.URL, to), func(t *testing.T) {
					calls.Store(0)
					result, err := askClient(t, t.Context(), clientAt(t, srv.URL, func(tr *http.Transport) {
						if srv == firstTLS {
							tr.TLSClientConfig = srv.Client().Transport.(*http.Transport).TLSClientConfig
						}
					}))
					fault := requireFault(t, result, err)
					require.Equal(t, alicaptcha.ServiceUnavailable, fault.Code)
					require.Equal(t, status, fault.Status)
					require.EqualValues(t, 1, calls.Load())
					require.Zero(t, arrived.Load())
				})
			}
			first.Close()
			firstTLS.Close()
		}
	}
}

// Many callers share one Client: each gets the verdict on its own param, and they use
// connections again.
func TestClientManyCallers(t *testing.T) {
	const callers, calls = 256, 5000
	codes := []alicaptcha.Code{"T001", "T005", "T006", "F001", "F004", "F007", "F009", "F010", "F015", "F024", "F777"}
	for _, version := range []int{1, 2} {
		t.Run(fmt.Sprintf("HTTP%d", version), func(t *testing.T) {
			sim := alicaptchatest.StartTLS(t, alicaptchatest.Config{})
			cfg := sim.ClientConfig()
			transport := cfg.Transport.(*http.Transport).Clone()
			if version == 1 {
				config := &tls.Config{RootCAs: transport.TLSClientConfig.RootCAs}
				transport = &http.Transport{MaxIdleConnsPerHost: 512, TLSClientConfig: config}
			}
			defer transport.CloseIdleConnections()
			var dials atomic.Int64
			transport.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
				dials.Add(1)
				return new(net.Dialer).DialContext(ctx, network, addr)
			}
			// The first call of each caller ends when all have their answers, so that
			// each holds a connection; from then on there is one for everybody.
			var other, held atomic.Int64
			all := make(chan struct{})
			cfg.Transport = transportFunc(func(r *http.Request) (*http.Response, error) {
				resp, err := transport.RoundTrip(r)
				if err == nil && resp.ProtoMajor != version {
					other.Add(1)
				}
				switch held.Add(1) {
				case 1: // alone, else each of them would open an HTTP/2 connection
					return resp, err
				case callers + 1:
					close(all)
				}
				select {
				case <-all:
				case <-r.Context().Done():
				}
				return resp, err
			})
			client := newClient(t, cfg)

			type job struct {
				param string
				code  alicaptcha.Code
			}
			jobs := make(chan job, calls)
			for i := range calls {
				code := codes[i%len(codes)]
				param, err := sim.Issue(alicaptchatest.Issue{SceneID: "login", Code: code})
				require.NoError(t, err)
				jobs <- job{param, code}
			}
			close(jobs)
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			defer cancel()
			var (
				wg    sync.WaitGroup
				mu    sync.Mutex
				wrong []string
				ids   = map[string]int{}
			)
			verify := func(job job) {
				result, err := client.Verify(ctx, alicaptcha.Request{Param: job.param, SceneID: "login"})
				mu.Lock()
				defer mu.Unlock()
				if err != nil || result.Code != job.code || result.Passed != (job.code[0] == 'T') {
					wrong = append(wrong, fmt.Sprint(job.code, result, err))
				}
				ids[result.CertifyID]++
				ids[result.RequestID]++
			}
			verify(<-jobs)
			for range callers {
				wg.Go(func() {
					for job := range jobs {
						verify(job)
					}
				})
			}
			wg.Wait()
			require.Empty(t, wrong)
			require.Len(t, ids, 2*calls)
			require.Equal(t, calls, sim.Count())
			// Not 257: net/http gives up a connection if the goroutine that wrote the
			// request was not scheduled within 50 ms of the answer, as happens under load.
			require.Less(t, dials.Load(), int64(calls/4))
			require.Zero(t, other.Load())
			nonces := map[string]bool{}
			for _, call := range sim.Calls() {
				nonces[call.Header.Get("X-Acs-Signature-Nonce")] = true
			}
			require.Len(t, nonces, calls)
		})
	}
}

// The same for the connections of a Client without a Transport.
func TestClientManyCallersByDefault(t *testing.T) {
	const callers, rounds = 100, 10
	var conns atomic.Int64
	// Nobody is answered until all have asked, so that all connections are idle between the rounds.
	var mu sync.Mutex
	waiting, gate := 0, make(chan struct{})
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		mu.Lock()
		mine := gate
		if waiting++; waiting == callers {
			waiting, gate = 0, make(chan struct{})
			close(mine)
		}
		mu.Unlock()
		select {
		case <-mine:
		case <-r.Context().Done():
		}
		io.WriteString(w, passAnswer)
	}))
	srv.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			conns.Add(1)
		}
	}
	srv.Start()
	defer srv.Close()
	client := newClient(t, alicaptcha.ClientConfig{Endpoint: srv.URL, AccessKeyID: keyID, AccessKeySecret: keySecret})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var failed atomic.Int64
	for range rounds {
		var wg sync.WaitGroup
		for range callers {
			wg.Go(func() {
				if result, err := client.Verify(ctx, alicaptcha.Request{Param: secretParam}); err != nil || !result.Passed {
					failed.Add(1)
				}
			})
		}
		wg.Wait()
	}
	require.Zero(t, failed.Load())
	// A connection that goes back to the pool a moment after its answer may cost a new one.
	require.Less(t, conns.Load(), int64(3*callers))
}

func TestClientSendsOnceOnly(t *testing.T) {
	type script = func(conn net.Conn, in *bufio.Reader, call int) bool // false: hang up
	for name, tc := range map[string]struct {
		script script
		asks   int
		status int
	}{
		"hangs up": {script: func(net.Conn, *bufio.Reader, int) bool { return false }, asks: 1},
		"resets": {script: func(conn net.Conn, _ *bufio.Reader, _ int) bool {
			conn.(*net.TCPConn).SetLinger(0)
			return false
		}, asks: 1},
		"hangs up in the headers": {script: func(conn net.Conn, _ *bufio.Reader, _ int) bool {
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nX: ")
			return false
		}, asks: 1},
		"hangs up in the body": {script: func(conn net.Conn, _ *bufio.Reader, _ int) bool {
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{")
			return false
		}, asks: 1, status: 200},
		"hangs up after 100": {script: func(conn net.Conn, _ *bufio.Reader, _ int) bool {
			io.WriteString(conn, "HTTP/1.1 100 Continue\r\n\r\n")
			return false
		}, asks: 1},
		"hangs up on a connection in use": {script: func(conn net.Conn, _ *bufio.Reader, call int) bool {
			if call == 1 {
				fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(passAnswer), passAnswer)
			}
			return call == 1
		}, asks: 2},
		"resets a connection in use": {script: func(conn net.Conn, _ *bufio.Reader, call int) bool {
			if call == 1 {
				fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(passAnswer), passAnswer)
			} else {
				conn.(*net.TCPConn).SetLinger(0)
			}
			return call == 1
		}, asks: 2},
		"503 with Retry-After": {script: func(conn net.Conn, _ *bufio.Reader, _ int) bool {
			io.WriteString(conn, "HTTP/1.1 503 Unavailable\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n")
			return true
		}, asks: 1, status: 503},
		"408": {script: func(conn net.Conn, _ *bufio.Reader, _ int) bool {
			io.WriteString(conn, "HTTP/1.1 502 Bad Gateway\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
			return false
		}, asks: 1, status: 502},
	} {
		t.Run(name, func(t *testing.T) {
			var calls atomic.Int64
			client := clientAt(t, "http://"+serveRaw(t, func(conn net.Conn) {
				in := bufio.NewReader(conn)
				for readCall(in) {
					if !tc.script(conn, in, int(calls.Add(1))) {
						return
					}
				}
			}))
			for range tc.asks - 1 {
				_, err := askClient(t, t.Context(), client)
				require.NoError(t, err)
			}
			result, err := askClient(t, t.Context(), client)
			fault := requireFault(t, result, err)
			require.Equal(t, alicaptcha.ServiceUnavailable, fault.Code, err)
			require.Equal(t, tc.status, fault.Status)
			require.EqualValues(t, tc.asks, calls.Load())
		})
	}
}

// An HTTP/2 server that resets the stream after it has read the whole call may
// have spent the param.
func TestClientSendsOnceOnlyOverHTTP2(t *testing.T) {
	const internalError, cancelled, enhanceYourCalm = 2, 8, 11
	serverTLS, tlsConfigs, _ := tlsConfigs(t)
	serverTLS.NextProtos = []string{"h2"}
	for name, code := range map[string]uint32{
		"INTERNAL_ERROR": internalError, "ENHANCE_YOUR_CALM": enhanceYourCalm, "CANCEL": cancelled,
	} {
		t.Run(name, func(t *testing.T) {
			var calls atomic.Int64
			addr := serveRaw(t, func(raw net.Conn) {
				conn := tls.Server(raw, serverTLS)
				in := bufio.NewReader(conn)
				frame := func(kind, flags byte, stream uint32, payload []byte) {
					header := []byte{0, 0, byte(len(payload)), kind, flags}
					conn.Write(append(binary.BigEndian.AppendUint32(header, stream), payload...))
				}
				if _, err := io.ReadFull(in, make([]byte, len("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))); err != nil {
					return
				}
				frame(4, 0, 0, nil) // SETTINGS
				for {
					header := make([]byte, 9)
					if _, err := io.ReadFull(in, header); err != nil {
						return
					}
					length := int(header[0])<<16 | int(header[1])<<8 | int(header[2])
					if _, err := io.CopyN(io.Discard, in, int64(length)); err != nil {
						return
					}
					kind, flags, stream := header[3], header[4], binary.BigEndian.Uint32(header[5:])
					switch {
					case kind == 4 && flags&1 == 0:
						frame(4, 1, 0, nil)
					case kind == 0 && flags&1 != 0: // the end of the body
						calls.Add(1)
						frame(3, 0, stream, binary.BigEndian.AppendUint32(nil, code))
					}
				}
			})
			client := clientAt(t, "https://"+addr, func(tr *http.Transport) {
				tr.TLSClientConfig, tr.ForceAttemptHTTP2 = tlsConfigs.Clone(), true
			})
			result, err := askClient(t, t.Context(), client)
			require.Equal(t, alicaptcha.ServiceUnavailable, requireFault(t, result, err).Code)
			require.EqualValues(t, 1, calls.Load())
		})
	}
}

func TestClientConnectionRefused(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := listener.Addr().String()
	listener.Close()
	result, err := askClient(t, t.Context(), clientAt(t, "http://"+addr))
	fault := requireFault(t, result, err)
	require.Equal(t, alicaptcha.ServiceUnavailable, fault.Code)
	require.Zero(t, fault.Status)
	require.Contains(t, err.Error(), "dial tcp "+addr) // what an operator looks for
}

// closingConn tells when it is closed.
type closingConn struct {
	net.Conn
	closed chan<- struct{}
	once   *sync.Once
}

func (c closingConn) Close() error {
	c.once.Do(func() { c.closed <- struct{}{} })
	return c.Conn.Close()
}

// A connection that the server closed while it was idle fails no call.
func TestClientIdleConnectionClosedByTheServer(t *testing.T) {
	var calls atomic.Int64
	closed := make(chan struct{}, 100)
	client := clientAt(t, "http://"+serveRaw(t, func(conn net.Conn) {
		if readCall(bufio.NewReader(conn)) {
			calls.Add(1)
			fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(passAnswer), passAnswer)
		}
	}), func(tr *http.Transport) {
		tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, network, addr)
			return closingConn{conn, closed, new(sync.Once)}, err
		}
	})
	for range 20 {
		_, err := askClient(t, t.Context(), client)
		require.NoError(t, err)
		select {
		case <-closed:
		case <-time.After(testGuard):
			require.FailNow(t, "the connection stays")
		}
	}
	require.EqualValues(t, 20, calls.Load())
}

// A client that hangs up costs no connection to the service: the call goes on, in
// its place, and the connection serves the next one.
func TestHangUpsKeepConnections(t *testing.T) {
	const hangUps, places = 500, 10
	var opened atomic.Int64
	simulator := alicaptchatest.NewSimulator(alicaptchatest.Config{})
	require.NoError(t, simulator.SetFaults(alicaptchatest.Faults{Latency: 30 * time.Millisecond}))
	service := httptest.NewUnstartedServer(simulator)
	service.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			opened.Add(1)
		}
	}
	service.Start()
	defer service.Close()
	client, err := alicaptcha.NewClient(alicaptcha.ClientConfig{
		Endpoint: service.URL, AccessKeyID: "test-id", AccessKeySecret: "test-secret",
	})
	require.NoError(t, err)

	var ends sync.Map // how many requests ended in each Code
	m := newMiddleware(t, alicaptcha.Config{
		Verifier: client, MaxConcurrent: places,
		Observe: func(_ context.Context, o alicaptcha.Outcome) {
			n, _ := ends.LoadOrStore(o.Code, new(atomic.Int64))
			n.(*atomic.Int64).Add(1)
		},
	})
	site := httptest.NewServer(m.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		t.Error("the handler was called")
	})))
	defer site.Close()

	body := `{"captchaVerifyParam":"junk"}`
	call := fmt.Sprintf("POST /login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"+
		"Content-Length: %d\r\n\r\n%s", len(body), body)
	var all sync.WaitGroup
	for range places {
		all.Go(func() {
			for range hangUps / places {
				conn, err := net.Dial("tcp", site.Listener.Addr().String())
				if err != nil {
					t.Error(err)
					return
				}
				io.WriteString(conn, call)
				time.Sleep(5 * time.Millisecond) // the service is being asked
				conn.Close()
				time.Sleep(30 * time.Millisecond) // the call has its place until then
			}
		})
	}
	all.Wait()
	site.Close() // each request has ended
	n, _ := ends.Load(alicaptcha.ClientCanceled)
	require.NotNil(t, n, "nobody was noticed to hang up")
	require.Greater(t, n.(*atomic.Int64).Load(), int64(hangUps/2))
	require.LessOrEqual(t, opened.Load(), int64(places+10))
	for _, opens := range []alicaptcha.Code{
		alicaptcha.ServiceTimeout, alicaptcha.ServiceUnavailable, alicaptcha.Misconfigured,
	} {
		_, reached := ends.Load(opens)
		require.False(t, reached, opens)
	}
}

// A gateway that refuses a call and closes without saying so leaves a connection in
// the pool that anybody's next call finds closed. A client brings that about, so it
// is no outage; without a refusal before it, it is the service's doing.
func TestGatewayThatClosesUnannounced(t *testing.T) {
	t.Parallel()
	kept := func(status int, body string) string {
		return fmt.Sprintf("HTTP/1.1 %d Status\r\nContent-Length: %d\r\n\r\n%s", status, len(body), body)
	}
	for _, row := range []struct {
		name, first string
		want        alicaptcha.Code
	}{
		{"413", kept(413, ""), alicaptcha.RequestRefused},
		{"405", kept(405, "no such method"), alicaptcha.RequestRefused},
		{"429", kept(429, ""), alicaptcha.RequestRefused},
		{"a verdict", kept(200, passAnswer), alicaptcha.ServiceUnavailable},
		{"500", kept(500, ""), alicaptcha.ServiceUnavailable},
	} {
		t.Run(row.name, func(t *testing.T) {
			addr := serveRaw(t, func(conn net.Conn) {
				in := bufio.NewReader(conn)
				if readCall(in) {
					io.WriteString(conn, row.first)
					in.Peek(1) // as if the close had been on its way for as long
				}
			})
			client := clientAt(t, "http://"+addr)
			askClient(t, t.Context(), client)
			result, err := askClient(t, t.Context(), client)
			fault := requireFault(t, result, err)
			require.Equal(t, row.want, fault.Code)

			// On a new connection it is the service's doing in any case.
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(t, err)
			listener.Close()
			result, err = askClient(t, t.Context(), clientAt(t, "http://"+listener.Addr().String()))
			require.Equal(t, alicaptcha.ServiceUnavailable, requireFault(t, result, err).Code)
		})
	}
}

// The next call may fail before the refusal has been read.
func TestGatewayThatClosesBeforeItsRefusalIsRead(t *testing.T) {
	t.Parallel()
	addr := serveRaw(t, func(conn net.Conn) {
		in := bufio.NewReader(conn)
		if readCall(in) {
			io.WriteString(conn, "HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
			in.Peek(1)
		}
	})
	base := &http.Transport{}
	t.Cleanup(base.CloseIdleConnections)
	arrived := make(chan struct{}, 1)
	cfg := secretConfig(transportFunc(func(r *http.Request) (*http.Response, error) {
		resp, err := base.RoundTrip(r)
		if err == nil {
			arrived <- struct{}{}
			time.Sleep(20 * time.Millisecond)
		}
		return resp, err
	}))
	cfg.Endpoint = "http://" + addr
	client := newClient(t, cfg)
	var first sync.WaitGroup
	first.Go(func() { client.Verify(t.Context(), alicaptcha.Request{Param: "x"}) })
	<-arrived
	result, err := askClient(t, t.Context(), client)
	require.Equal(t, alicaptcha.RequestRefused, requireFault(t, result, err).Code)
	first.Wait()
}

// Of an answer's headers the default Transport takes 64 KiB.
func TestAnswersHeadersAreBounded(t *testing.T) {
	t.Parallel()
	const size = 32 << 20
	taken := make(chan int, 1)
	addr := serveRaw(t, func(conn net.Conn) {
		if !readCall(bufio.NewReader(conn)) {
			return
		}
		n, _ := io.WriteString(conn, "HTTP/1.1 200 OK\r\n")
		line := "A: " + strings.Repeat("x", 4000) + "\r\n"
		for n < size {
			m, err := io.WriteString(conn, line)
			n += m
			if err != nil {
				break
			}
		}
		taken <- n
	})
	cfg := secretConfig(nil)
	cfg.Endpoint = "http://" + addr
	result, err := askClient(t, t.Context(), newClient(t, cfg))
	require.Equal(t, alicaptcha.ServiceUnavailable, requireFault(t, result, err).Code)
	require.Less(t, <-taken, size/2) // what the kernel's buffers hold
}

// In a Transport with a limit on connections calls wait for each other. A flood that
// makes them wait in vain says nothing of the service.
func TestTransportWithAQueue(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	addr := serveRaw(t, func(conn net.Conn) {
		readCall(bufio.NewReader(conn))
		<-release
	})
	client := clientAt(t, "http://"+addr, func(tr *http.Transport) { tr.MaxConnsPerHost = 1 })
	var codes sync.Map
	var calls sync.WaitGroup
	for range 5 {
		calls.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 1200*time.Millisecond)
			defer cancel()
			_, err := client.Verify(ctx, alicaptcha.Request{Param: "x"})
			n, _ := codes.LoadOrStore(err.(*alicaptcha.Error).Code, new(atomic.Int64))
			n.(*atomic.Int64).Add(1)
		})
	}
	calls.Wait()
	close(release)
	count := func(code alicaptcha.Code) int64 {
		n, ok := codes.Load(code)
		if !ok {
			return 0
		}
		return n.(*atomic.Int64).Load()
	}
	require.EqualValues(t, 1, count(alicaptcha.ServiceTimeout), "the one that had the connection")
	require.EqualValues(t, 4, count(alicaptcha.Overloaded))
}
