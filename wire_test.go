package alicaptcha_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

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
	call := fmt.Sprintf("POST /login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
		len(body), body)
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
	for _, opens := range []alicaptcha.Code{alicaptcha.ServiceTimeout, alicaptcha.ServiceUnavailable, alicaptcha.Misconfigured} {
		_, reached := ends.Load(opens)
		require.False(t, reached, opens)
	}
}

// A gateway that finds a param too large, answers early and closes, or just closes,
// is no outage: a client chooses how long its param is.
func TestLongParamAndAnEarlyEnd(t *testing.T) {
	t.Parallel()
	readSome := func(conn net.Conn) { conn.Read(make([]byte, 1024)) }
	reset := func(conn net.Conn) { conn.(*net.TCPConn).SetLinger(0); conn.Close() }
	for name, script := range map[string]func(conn net.Conn){
		"413 and a close": func(conn net.Conn) {
			readSome(conn)
			io.WriteString(conn, clientWire(413, "too large", "Connection: close\r\n"))
		},
		"413 and a reset": func(conn net.Conn) {
			readSome(conn)
			io.WriteString(conn, clientWire(413, "too large"))
			reset(conn)
		},
		"a close":                    readSome,
		"a reset":                    func(conn net.Conn) { readSome(conn); reset(conn) },
		"a close after the call":     func(conn net.Conn) { clientReadCall(bufio.NewReader(conn)) },
		"a reset after the call":     func(conn net.Conn) { clientReadCall(bufio.NewReader(conn)); reset(conn) },
		"a part of an answer's head": func(conn net.Conn) { clientReadCall(bufio.NewReader(conn)); io.WriteString(conn, "HTTP/1.1 2") },
	} {
		t.Run(name, func(t *testing.T) {
			client := clientAt(t, "http://"+clientRaw(t, script))
			for range 20 {
				_, err := client.Verify(t.Context(), alicaptcha.Request{Param: strings.Repeat("x", 32<<10)})
				var fault *alicaptcha.Error
				require.ErrorAs(t, err, &fault)
				require.Equal(t, alicaptcha.RequestRefused, fault.Code, "%v", err)
			}
			if strings.HasPrefix(name, "413") {
				return
			}
			_, err := client.Verify(t.Context(), alicaptcha.Request{Param: strings.Repeat("x", 7<<10)})
			var fault *alicaptcha.Error
			require.ErrorAs(t, err, &fault)
			require.Equal(t, alicaptcha.ServiceUnavailable, fault.Code, "a param of ordinary length is not the cause: %v", err)
		})
	}
	// What came before the connection, or was slow, says nothing of the param.
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	listener.Close()
	long := alicaptcha.Request{Param: strings.Repeat("x", 32<<10)}
	_, err = clientAt(t, "http://"+listener.Addr().String()).Verify(t.Context(), long)
	require.Equal(t, alicaptcha.ServiceUnavailable, err.(*alicaptcha.Error).Code)
	hanging := clientAt(t, "http://"+clientRaw(t, func(conn net.Conn) { io.Copy(io.Discard, conn) }))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = hanging.Verify(ctx, long)
	require.Equal(t, alicaptcha.ServiceTimeout, err.(*alicaptcha.Error).Code)
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
		{"413", kept(413, ""), alicaptcha.Overloaded},
		{"405", kept(405, "no such method"), alicaptcha.Overloaded},
		{"429", kept(429, ""), alicaptcha.Overloaded},
		{"a verdict", kept(200, clientPass), alicaptcha.ServiceUnavailable},
		{"500", kept(500, ""), alicaptcha.ServiceUnavailable},
	} {
		t.Run(row.name, func(t *testing.T) {
			addr := clientRaw(t, func(conn net.Conn) {
				in := bufio.NewReader(conn)
				if clientReadCall(in) {
					io.WriteString(conn, row.first)
					in.Peek(1) // as if the close had been on its way for as long
				}
			})
			client := clientAt(t, "http://"+addr)
			clientAsk(t, t.Context(), client)
			result, err := clientAsk(t, t.Context(), client)
			fault := clientFault(t, result, err)
			require.Equal(t, row.want, fault.Code)

			// On a new connection it is the service's doing in any case.
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(t, err)
			listener.Close()
			result, err = clientAsk(t, t.Context(), clientAt(t, "http://"+listener.Addr().String()))
			require.Equal(t, alicaptcha.ServiceUnavailable, clientFault(t, result, err).Code)
		})
	}
}

// Of an answer's headers the default Transport takes 64 KiB.
func TestAnswersHeadersAreBounded(t *testing.T) {
	t.Parallel()
	const size = 32 << 20
	taken := make(chan int, 1)
	addr := clientRaw(t, func(conn net.Conn) {
		if !clientReadCall(bufio.NewReader(conn)) {
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
	cfg := clientConfig(nil)
	cfg.Endpoint = "http://" + addr
	result, err := clientAsk(t, t.Context(), clientNew(t, cfg))
	require.Equal(t, alicaptcha.ServiceUnavailable, clientFault(t, result, err).Code)
	require.Less(t, <-taken, size/2) // what the kernel's buffers hold
}

// What a certificate says is cut and made printable before it is shown.
func TestNamesOfACertificateAreCut(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	for i := range 1000 {
		template.DNSNames = append(template.DNSNames, fmt.Sprintf("name-%d\n\x1b[31m level=ERROR \u2028", i))
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil { // x509 makes no such name: an honest one will do for the length
		for i := range template.DNSNames {
			template.DNSNames[i] = fmt.Sprintf("name-%d.example.com", i)
		}
		der, err = x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	}
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	server := &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	client := clientAt(t, "https://"+clientRaw(t, func(conn net.Conn) { tls.Server(conn, server).Handshake() }), func(tr *http.Transport) {
		tr.TLSClientConfig = &tls.Config{RootCAs: roots}
	})
	result, err := clientAsk(t, t.Context(), client)
	fault := clientFault(t, result, err)
	require.Contains(t, fault.Error(), "certificate")
	requireShown(t, fault)

	// So is whatever a Verifier of somebody else puts into an Error, and what a
	// resolver or a proxy says.
	odd := strings.Repeat("\n\x1b[31mlevel=ERROR é", 1000)
	requireShown(t, &alicaptcha.Error{Code: alicaptcha.Code(odd), ServiceCode: odd, RequestID: odd})
	for _, cause := range []error{
		&net.DNSError{Err: odd, Name: odd, Server: odd},
		&net.OpError{Op: "dial", Net: odd, Err: fmt.Errorf("%s", odd)},
		&net.OpError{Op: "remote error", Err: fmt.Errorf("%s", odd)},
		tls.RecordHeaderError{Msg: odd},
		&tls.CertificateVerificationError{Err: fmt.Errorf("%s", odd)},
	} {
		_, err := clientNew(t, clientConfig(clientFailing(cause))).Verify(t.Context(), alicaptcha.Request{Param: "x"})
		requireShown(t, err)
	}
}

// requireShown checks that the text of err is short and printable.
func requireShown(t *testing.T, err error) {
	t.Helper()
	require.Less(t, len(err.Error()), 1000)
	for _, r := range err.Error() {
		require.True(t, r < unicode.MaxASCII && unicode.IsPrint(r), "%q", err.Error())
	}
}
