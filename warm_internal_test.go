package alicaptcha

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// oneWay is how long a byte takes over a farService's link, and roundTrip how long it takes
// to have an answer.
const (
	oneWay    = 50 * time.Millisecond
	roundTrip = 2 * oneWay
)

// A farService is a service at the end of a long link, in a bubble of synctest. A call takes
// an exact number of round trips: one to connect, those of TLS, and its own.
type farService struct {
	*pipeListener
	dials, warm, calls, resumed atomic.Int64
}

func (s *farService) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	s.dials.Add(1)
	time.Sleep(roundTrip)
	near, err := s.pipeListener.dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	here, there := net.Pipe()
	go carry(near, there)
	go carry(there, near)
	return here, nil
}

// carry brings what it reads to another place, late. In the end it closes that.
func carry(to, from net.Conn) {
	type part struct {
		due  time.Time
		data []byte
	}
	underWay := make(chan part, 1000)
	go func() {
		defer to.Close()
		for p := range underWay {
			time.Sleep(time.Until(p.due))
			to.Write(p.data)
		}
		time.Sleep(oneWay)
	}()
	defer close(underWay)
	for {
		data := make([]byte, 32<<10)
		n, err := from.Read(data)
		if err != nil {
			return
		}
		underWay <- part{time.Now().Add(oneWay), data[:n]}
	}
}

// newFarService starts a service that keeps idle connections for 25 s, and returns it with a
// Client that has the default Transport. It must be called in a bubble.
func newFarService(t *testing.T, version uint16, own *httptest.Server) (*farService, *Client) {
	s := &farService{pipeListener: newPipeListener()}
	srv := &http.Server{
		IdleTimeout: 25 * time.Second,
		TLSConfig:   &tls.Config{Certificates: own.TLS.Certificates, MaxVersion: version},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			if r.Method == http.MethodGet {
				s.warm.Add(1)
				w.WriteHeader(http.StatusMethodNotAllowed)
				return
			}
			s.calls.Add(1)
			if r.TLS.DidResume {
				s.resumed.Add(1)
			}
			io.WriteString(w, `{"Code":"Success","Success":true,"Result":{"VerifyResult":true}}`)
		}),
	}
	transport := newTransport()
	transport.DialContext = s.dial
	transport.TLSClientConfig.RootCAs = x509.NewCertPool()
	transport.TLSClientConfig.RootCAs.AddCert(own.Certificate())
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		time.Sleep(time.Minute) // until what is under way has come
		require.NoError(t, srv.Close())
	})
	go srv.ServeTLS(s, "", "")
	client, err := NewClient(ClientConfig{
		Endpoint: "https://127.0.0.1", AccessKeyID: "id", AccessKeySecret: "secret", Transport: transport,
	})
	require.NoError(t, err)
	return s, client
}

// login returns how long a call takes.
func login(t *testing.T, client *Client) time.Duration {
	start := time.Now()
	result, err := client.Verify(t.Context(), Request{Param: "x"})
	require.NoError(t, err)
	require.True(t, result.Passed)
	return time.Since(start)
}

// inVirtualTime runs test with TLS 1.2 and 1.3. The number of round trips of a login that
// opens a connection is first without a TLS session, and again with one.
func inVirtualTime(t *testing.T, test func(t *testing.T, s *farService, client *Client, first, again time.Duration)) {
	own := httptest.NewTLSServer(http.NotFoundHandler())
	defer own.Close()
	for _, row := range []struct {
		version      uint16
		first, again time.Duration
	}{{tls.VersionTLS12, 4, 3}, {tls.VersionTLS13, 3, 3}} {
		t.Run(tls.VersionName(row.version), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, client := newFarService(t, row.version, own)
				test(t, s, client, row.first*roundTrip, row.again*roundTrip)
			})
		})
	}
}

// After 15 s of quiet a login takes one round trip, and none fails. After a longer time the
// connection is closed, but the TLS session is resumed.
func TestLoginAfterQuiet(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, s *farService, client *Client, first, again time.Duration) {
		require.Equal(t, first, login(t, client))
		for range 1000 {
			time.Sleep(15 * time.Second)
			require.Equal(t, roundTrip, login(t, client))
		}
		require.EqualValues(t, 1, s.dials.Load())
		require.Zero(t, s.resumed.Load())
		time.Sleep(21 * time.Second)
		require.Equal(t, again, login(t, client))
		require.EqualValues(t, 2, s.dials.Load())
		require.EqualValues(t, 1, s.resumed.Load())
	})
}

// With Warm on the view of a page, a login by somebody who needs 5 to 20 s takes one round
// trip, however long it was quiet before. A second login at the same time waits for its
// connection, or another one.
func TestLoginAfterWarm(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, s *farService, client *Client, first, again time.Duration) {
		opening := first
		for n, person := range []time.Duration{5, 10, 15, 19} {
			time.Sleep(time.Hour)
			start := time.Now()
			require.NoError(t, client.Warm(t.Context()))
			require.Equal(t, opening, time.Since(start))
			opening = again
			time.Sleep(person * time.Second)
			require.Equal(t, roundTrip, login(t, client))
			require.EqualValues(t, n+1, s.dials.Load())
		}
		require.EqualValues(t, 4, s.warm.Load())
		time.Sleep(time.Hour)
		require.NoError(t, client.Warm(t.Context()))
		time.Sleep(10 * time.Second)
		var both sync.WaitGroup
		var took atomic.Int64
		for range 2 {
			both.Go(func() { took.Add(int64(login(t, client))) })
		}
		both.Wait()
		require.EqualValues(t, roundTrip+2*roundTrip, took.Load(), "the second has the connection of the first")
	})
}

// 10,000 page views in a second open one connection. All but one are not held up.
func TestWarmOnManyPageViews(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, s *farService, client *Client, first, _ time.Duration) {
		var views sync.WaitGroup
		var waited atomic.Int64
		for range 10_000 {
			views.Go(func() {
				start := time.Now()
				require.NoError(t, client.Warm(t.Context()))
				waited.Add(int64(time.Since(start)))
			})
			time.Sleep(100 * time.Microsecond)
		}
		views.Wait()
		require.EqualValues(t, 1, s.dials.Load())
		require.EqualValues(t, 1, s.warm.Load())
		require.EqualValues(t, first, waited.Load())
	})
}

// Pages that are viewed all the time cause one request in 15 s, on one connection. Calls take
// the place of requests only if a connection has been used lately.
func TestWarmSendsOneRequestIn15Seconds(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, s *farService, client *Client, _, _ time.Duration) {
		for range 1000 {
			require.NoError(t, client.Warm(t.Context()))
			time.Sleep(time.Second)
		}
		require.EqualValues(t, 1, s.dials.Load())
		require.InDelta(t, 1000/15, s.warm.Load(), 5)

		time.Sleep(time.Hour)
		before := s.warm.Load()
		login(t, client)
		time.Sleep(4 * time.Second)
		require.NoError(t, client.Warm(t.Context()))
		require.Equal(t, before, s.warm.Load())
		time.Sleep(8 * time.Second)
		require.NoError(t, client.Warm(t.Context()))
		require.Equal(t, before+1, s.warm.Load())
		time.Sleep(10 * time.Second) // 22 after the login
		require.Equal(t, roundTrip, login(t, client))
		require.EqualValues(t, 2, s.dials.Load())
	})
}

// A visitor who leaves does not waste the connection that is being opened.
func TestWarmGoesOnWithoutItsCaller(t *testing.T) {
	inVirtualTime(t, func(t *testing.T, s *farService, client *Client, _, again time.Duration) {
		for left := roundTrip / 2; left < again; left += roundTrip / 2 {
			ctx, cancel := context.WithTimeout(t.Context(), left)
			fault, ok := client.Warm(ctx).(*Error)
			cancel()
			require.True(t, ok)
			require.Equal(t, ServiceTimeout, fault.Code)
			time.Sleep(10 * time.Second)
			require.Equal(t, roundTrip, login(t, client))
			time.Sleep(time.Hour)
		}
		require.Equal(t, s.dials.Load(), s.warm.Load())
		require.Equal(t, s.calls.Load(), s.warm.Load())
	})
}

// A service may close an idle connection at any moment between 5 and 30 s. No login fails if
// it has not been sent by then, with and without Warm.
func TestLoginsWhileConnectionsAreClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		listener := newPipeListener()
		var closed, served atomic.Int64
		var serving sync.WaitGroup
		serve := func(conn net.Conn) {
			defer conn.Close()
			in := bufio.NewReader(conn)
			for {
				conn.SetReadDeadline(time.Now().Add(5*time.Second + rand.N(25*time.Second)))
				r, err := http.ReadRequest(in)
				if err != nil {
					closed.Add(1)
					return
				}
				io.Copy(io.Discard, r.Body)
				served.Add(1)
				const answer = `{"Code":"Success","Success":true,"Result":{"VerifyResult":true}}`
				fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(answer), answer)
			}
		}
		serving.Go(func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				serving.Go(func() { serve(conn) })
			}
		})
		transport := newTransport()
		transport.DialContext = listener.dial
		client, err := NewClient(ClientConfig{
			Endpoint: "http://127.0.0.1", AccessKeyID: "id", AccessKeySecret: "secret", Transport: transport,
		})
		require.NoError(t, err)
		for i := range 2000 {
			time.Sleep(rand.N(40 * time.Second))
			if i%2 == 1 {
				require.NoError(t, client.Warm(t.Context()))
				time.Sleep(rand.N(20 * time.Second))
			}
			login(t, client)
		}
		require.Greater(t, closed.Load(), int64(500))
		require.GreaterOrEqual(t, served.Load(), int64(2000))
		time.Sleep(time.Minute)
		listener.Close()
		serving.Wait()
	})
}

// The default Transport speaks HTTP/1.1 to a service that offers HTTP/2, although it has a
// TLS configuration.
func TestTransportSpeaksHTTP1(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, r.Proto)
	}))
	srv.EnableHTTP2 = true
	srv.StartTLS()
	defer srv.Close()
	transport := newTransport()
	defer transport.CloseIdleConnections()
	transport.TLSClientConfig.RootCAs = x509.NewCertPool()
	transport.TLSClientConfig.RootCAs.AddCert(srv.Certificate())
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, srv.URL, nil)
	require.NoError(t, err)
	resp, err := transport.RoundTrip(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, "HTTP/1.1", string(body))
	require.GreaterOrEqual(t, resp.TLS.Version, uint16(tls.VersionTLS12))
}
