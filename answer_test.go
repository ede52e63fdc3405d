package alicaptcha_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unicode"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
)

func TestClientAnswersThatAreNoVerdict(t *testing.T) {
	rows := answersWithoutVerdict()
	require.Greater(t, len(rows), 40)
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			result, err := askClient(t, t.Context(), newClient(t, secretConfig(cannedTransport(row.status, row.body))))
			row.check(t, result, err)
		})
	}
	for _, status := range []int{0, 1, 99, 100, 101, 102, 103, 199, 204, 304} { // bodies that net/http would not read
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			result, err := askClient(t, t.Context(), newClient(t, secretConfig(cannedTransport(status, passAnswer))))
			fault := requireFault(t, result, err)
			require.Equal(t, alicaptcha.ServiceUnavailable, fault.Code)
			require.Equal(t, status, fault.Status)
		})
	}
}

// The same answers over real connections.
func TestClientAnswersOverTheWire(t *testing.T) {
	var raw atomic.Pointer[string]
	addr := serveRaw(t, func(conn net.Conn) {
		if readCall(bufio.NewReader(conn)) {
			io.WriteString(conn, *raw.Load())
		}
	})
	client := clientAt(t, "http://"+addr)
	for _, row := range answersWithoutVerdict() {
		t.Run(row.name, func(t *testing.T) {
			raw.Store(new(wireAnswer(row.status, row.body, "Content-Type: application/json\r\n")))
			result, err := askClient(t, t.Context(), client)
			row.check(t, result, err)
		})
	}

	var zipped bytes.Buffer
	zip := gzip.NewWriter(&zipped)
	io.WriteString(zip, passAnswer)
	require.NoError(t, zip.Close())
	for name, tc := range map[string]struct {
		raw    string
		code   alicaptcha.Code
		status int
	}{
		"204": {"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n" + passAnswer, alicaptcha.ServiceUnavailable, 204},
		"304": {"HTTP/1.1 304 Not Modified\r\nConnection: close\r\n\r\n" + passAnswer,
			alicaptcha.ServiceUnavailable, 304},
		"302 with Location": {wireAnswer(302, passAnswer, "Location: /\r\n"), alicaptcha.ServiceUnavailable, 302},
		"100 and nothing":   {"HTTP/1.1 100 Continue\r\n\r\n", alicaptcha.ServiceUnavailable, 0},
		"103 and nothing":   {"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n", alicaptcha.ServiceUnavailable, 0},
		"101": {"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n" +
			"Upgrade: x\r\n\r\n" + passAnswer,
			alicaptcha.ServiceUnavailable, 101},
		"gzip of a pass": {wireAnswer(200, zipped.String(), "Content-Encoding: gzip\r\n"),
			alicaptcha.ServiceUnavailable, 200},
		"chunk broken": {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" +
			fmt.Sprintf("%x\r\n%s\r\nzz\r\n", len(passAnswer), passAnswer), alicaptcha.ServiceUnavailable, 200},
		"no last chunk": {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" +
			fmt.Sprintf("%x\r\n%s\r\n", len(passAnswer), passAnswer), alicaptcha.ServiceUnavailable, 200},
		"chunk cut": {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfff\r\n" + passAnswer,
			alicaptcha.ServiceUnavailable, 200},
		"Content-Length large": {
			fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(passAnswer)+1, passAnswer),
			alicaptcha.ServiceUnavailable, 200,
		},
		"Content-Length small": {
			fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s",
				len(passAnswer)-1, passAnswer),
			alicaptcha.ServiceUnavailable, 200,
		},
		"Content-Length twice": {"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n" + passAnswer,
			alicaptcha.ServiceUnavailable, 0},
		"not HTTP": {"hello " + secretMessage + "\r\n\r\n", alicaptcha.ServiceUnavailable, 0},
		"header broken": {"HTTP/1.1 200 OK\r\n" + secretMessage + "\r\n\r\n" + passAnswer,
			alicaptcha.ServiceUnavailable, 0},
		"header cut":            {"HTTP/1.1 200 OK\r\nContent-Type: " + secretMessage, alicaptcha.ServiceUnavailable, 0},
		"nothing":               {"", alicaptcha.ServiceUnavailable, 0},
		"status of two digits":  {"HTTP/1.1 20 OK\r\n\r\n" + passAnswer, alicaptcha.ServiceUnavailable, 0},
		"status that is a word": {"HTTP/1.1 two OK\r\n\r\n" + passAnswer, alicaptcha.ServiceUnavailable, 0},
		"header of 11 MB": {"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 11<<20) + "\r\n\r\n" + passAnswer,
			alicaptcha.ServiceUnavailable, 0},

		// The status has come, and it says that the request is at fault. A gateway that
		// hangs up on a large body sends no more: that must not look like an outage.
		"400 cut": {"HTTP/1.1 400 Bad Request\r\nContent-Length: 100\r\n\r\n{", alicaptcha.RequestRefused, 400},
		"403 with a bad chunk": {"HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
			alicaptcha.RequestRefused, 403},
		"413 cut": {"HTTP/1.1 413 Too Large\r\nContent-Length: 100\r\n\r\n", alicaptcha.RequestRefused, 413},
		"400 cut after a Code": {"HTTP/1.1 400 Bad Request\r\nContent-Length: 100\r\n\r\n" + `{"Code":"Forbidden"}`,
			alicaptcha.RequestRefused, 400},
		"429 cut": {"HTTP/1.1 429 Too Many\r\nContent-Length: 100\r\n\r\n{", alicaptcha.ServiceThrottled, 429},
		"502 cut": {"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 100\r\n\r\n{", alicaptcha.ServiceUnavailable, 502},
	} {
		t.Run(name, func(t *testing.T) {
			raw.Store(&tc.raw)
			result, err := askClient(t, t.Context(), client)
			fault := requireFault(t, result, err)
			require.Equal(t, tc.code, fault.Code, err)
			require.Equal(t, tc.status, fault.Status)
		})
	}

	t.Run("after informational answers", func(t *testing.T) {
		raw.Store(new("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n" + wireAnswer(200, passAnswer)))
		result, err := askClient(t, t.Context(), client)
		require.NoError(t, err)
		require.True(t, result.Passed)
	})
}

func TestClientVerdicts(t *testing.T) {
	passed := func(code alicaptcha.Code, certifyID, requestID string) alicaptcha.Result {
		return alicaptcha.Result{Passed: true, Code: code, CertifyID: certifyID, RequestID: requestID}
	}
	failed := func(code alicaptcha.Code, certifyID, requestID string) alicaptcha.Result {
		return alicaptcha.Result{Code: code, CertifyID: certifyID, RequestID: requestID}
	}
	var raw atomic.Pointer[string]
	addr := serveRaw(t, func(conn net.Conn) {
		if readCall(bufio.NewReader(conn)) {
			io.WriteString(conn, *raw.Load())
		}
	})
	wire := clientAt(t, "http://"+addr)
	for name, tc := range map[string]struct {
		body string
		want alicaptcha.Result
	}{
		"pass": {passAnswer, passed("T001", "C-1", "R-1")},
		"as in the manual": {
			`{"Code":"Success","Message":"success","RequestId":"R-2",` +
				`"Result":{"VerifyCode":"F001","VerifyResult":false},"Success":true}`,
			failed("F001", "", "R-2"),
		},
		"pass without VerifyCode": {answerWith(`{"VerifyResult":true}`), passed("T001", "", "R-1")},
		"refusal without a code":  {answerWith(`{"VerifyResult":false}`), failed("F001", "", "R-1")},
		"CertifyId null": {answerWith(`{"VerifyResult":true,"VerifyCode":"T001","CertifyId":null}`),
			passed("T001", "", "R-1")},
		"CertifyId empty": {answerWith(`{"VerifyResult":true,"VerifyCode":"T001","CertifyId":""}`),
			passed("T001", "", "R-1")},
		"CertifyId of the client": {answerWith(`{"VerifyResult":true,"CertifyId":"用户 1 \"\\\u003c"}`),
			passed("T001", `用户 1 "\<`, "R-1")},
		"RequestId null": {`{"RequestId":null,"Code":"Success","Success":true,"Result":{"VerifyResult":true}}`,
			passed("T001", "", "")},
		"RequestId that is none": {
			`{"RequestId":"call us: the param","Code":"Success","Success":true,"Result":{"VerifyResult":true}}`,
			passed("T001", "", ""),
		},
		"RequestId missing": {`{"Code":"Success","Success":true,"Result":{"VerifyResult":true}}`, passed("T001", "", "")},
		"Message null": {`{"Message":null,"Code":"Success","Success":true,"Result":{"VerifyResult":true}}`,
			passed("T001", "", "")},
		"unknown T": {answerWith(`{"VerifyResult":true,"VerifyCode":"T999"}`), passed("T999", "", "R-1")},
		"T005":      {answerWith(`{"VerifyResult":true,"VerifyCode":"T005"}`), passed("T005", "", "R-1")},
		"unknown F": {answerWith(`{"VerifyResult":false,"VerifyCode":"F999"}`), failed("F999", "", "R-1")},
		"F000":      {answerWith(`{"VerifyResult":false,"VerifyCode":"F000"}`), failed("F000", "", "R-1")},
		"unknown members": {
			`{"a":[{"VerifyResult":false}],"RequestId":"R-1","HostId":null,"Code":"Success","Success":true,` +
				`"Result":{"x":{"VerifyResult":false},"VerifyResult":true,"Score":0.1},"Data":{"Success":false},"z":1e400}`,
			passed("T001", "", "R-1"),
		},
		"VerifyResult at the top": {`{"VerifyResult":false,"Code":"Success","Success":true,"Result":{"VerifyResult":true}}`,
			passed("T001", "", "")},
		"another order": {
			`{"Result":{"CertifyId":"C-1","VerifyCode":"T001","VerifyResult":true},` +
				`"Success":true,"Code":"Success","RequestId":"R-1"}`,
			passed("T001", "C-1", "R-1"),
		},
		"white space": {
			"\r\n\t {\n \"RequestId\" :\t\"R-1\" ,\"Code\"\n:\"Success\", \"Success\" : true ," +
				"\"Result\": { \"VerifyResult\" : true } } \n\n",
			passed("T001", "", "R-1"),
		},
		"escaped": {
			`{"\u0043ode":"\u0053uccess","Success":true,"Res\u0075lt":{"VerifyResult":true,"VerifyCode":"\u0054001"}}`,
			passed("T001", "", ""),
		},
		// What a client may have sent, in a refusal that must stay one.
		"refusal, invalid UTF-8": {answerWith(`{"VerifyResult":false,"VerifyCode":"F001","CertifyId":"` + "\xff" + `"}`),
			failed("F001", "\ufffd", "R-1")},
		"refusal, lone surrogate": {answerWith(`{"VerifyResult":false,"VerifyCode":"F001","CertifyId":"\ud800"}`),
			failed("F001", "\ufffd", "R-1")},
		"64 KB": {passAnswer + strings.Repeat(" ", 64<<10-len(passAnswer)), passed("T001", "C-1", "R-1")},
		"nested as deep as allowed": {
			`{"x":` + strings.Repeat("[", 1000) + strings.Repeat("]", 1000) +
				`,"Code":"Success","Success":true,"Result":{"VerifyResult":true}}`,
			passed("T001", "", ""),
		},
	} {
		t.Run(name, func(t *testing.T) {
			result, err := askClient(t, t.Context(), newClient(t, secretConfig(cannedTransport(200, tc.body))))
			require.NoError(t, err)
			require.Equal(t, tc.want, result)
			raw.Store(new(wireAnswer(200, tc.body)))
			result, err = askClient(t, t.Context(), wire)
			require.NoError(t, err)
			require.Equal(t, tc.want, result)
		})
	}
	for i := range 26 { // the codes of the manual
		code := alicaptcha.Code(fmt.Sprintf("F%03d", i))
		answer := answerWith(`{"VerifyResult":false,"VerifyCode":"` + string(code) + `"}`)
		result, err := askClient(t, t.Context(), newClient(t, secretConfig(cannedTransport(200, answer))))
		require.NoError(t, err)
		require.Equal(t, failed(code, "", "R-1"), result)
	}
}

// Of an endless answer only the first KB are taken, the connection is closed,
// and memory stays small. The same goes for what would unpack to as much.
func TestClientReadsABoundedAnswer(t *testing.T) {
	const size = 100 << 20
	var bomb bytes.Buffer
	zip := gzip.NewWriter(&bomb)
	block := bytes.Repeat([]byte(" "), 1<<20)
	for range size >> 20 {
		zip.Write(block)
	}
	require.NoError(t, zip.Close())
	for name, tc := range map[string]struct{ header, body string }{
		"100 MB":  {"Content-Length: 104857600\r\n\r\n", ""},
		"endless": {"\r\n", ""},
		"bomb":    {fmt.Sprintf("Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n", bomb.Len()), bomb.String()},
	} {
		t.Run(name, func(t *testing.T) {
			taken := make(chan int, 1)
			addr := serveRaw(t, func(conn net.Conn) {
				if !readCall(bufio.NewReader(conn)) {
					return
				}
				io.WriteString(conn, "HTTP/1.1 200 OK\r\n"+tc.header)
				if tc.body != "" {
					n, _ := io.WriteString(conn, tc.body)
					taken <- n
					return
				}
				n := 0
				for n < size {
					m, err := conn.Write(block[:64<<10])
					n += m
					if err != nil {
						break
					}
				}
				taken <- n
			})
			client := clientAt(t, "http://"+addr)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			result, err := askClient(t, t.Context(), client)
			runtime.ReadMemStats(&after)
			fault := requireFault(t, result, err)
			require.Equal(t, alicaptcha.RequestRefused, fault.Code, "the service may repeat what a client sent")
			require.Equal(t, 200, fault.Status)
			require.Less(t, <-taken, size/2) // what the kernel's buffers hold
			require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(8<<20))
		})
	}
}

// closingBody tells when it is closed.
type closingBody struct {
	io.Reader
	closed *atomic.Bool
}

func (b closingBody) Close() error { b.closed.Store(true); return nil }

func TestClientClosesEachBody(t *testing.T) {
	for name, body := range map[string]io.Reader{
		"pass":    strings.NewReader(passAnswer),
		"junk":    strings.NewReader("junk"),
		"large":   strings.NewReader(strings.Repeat("x", 1<<20)),
		"failing": io.MultiReader(strings.NewReader("{"), failingReader{errors.New("read: " + secretMessage)}),
	} {
		t.Run(name, func(t *testing.T) {
			var closed atomic.Bool
			client := newClient(t, secretConfig(transportFunc(func(*http.Request) (*http.Response, error) {
				return &http.Response{StatusCode: 200, Body: closingBody{body, &closed}}, nil
			})))
			client.Verify(t.Context(), alicaptcha.Request{Param: secretParam})
			require.True(t, closed.Load())
		})
	}
}

func TestClientTransportThatBreaksItsContract(t *testing.T) {
	for name, transport := range map[string]transportFunc{
		"nothing":  func(*http.Request) (*http.Response, error) { return nil, nil },
		"nil Body": func(*http.Request) (*http.Response, error) { return &http.Response{StatusCode: 200}, nil },
		"answer and error": func(*http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 200, Body: http.NoBody}, errors.New(secretMessage)
		},
		"nil *Error": failingTransport((*alicaptcha.Error)(nil)),
		"nil *Error, reading": func(*http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 200, Body: io.NopCloser(failingReader{(*alicaptcha.Error)(nil)})}, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			require.NotPanics(t, func() {
				result, err := newClient(t, secretConfig(transport)).Verify(t.Context(), alicaptcha.Request{Param: secretParam})
				require.Equal(t, alicaptcha.ServiceUnavailable, requireFault(t, result, err).Code)
			})
		})
	}
}

type failingReader struct{ err error }

func (r failingReader) Read([]byte) (int, error) { return 0, r.err }

// An error that a Transport hands to many calls belongs to the Transport.
func TestClientLeavesATransportsErrorAlone(t *testing.T) {
	shared := &alicaptcha.Error{Code: alicaptcha.ServiceUnavailable}
	client := newClient(t, secretConfig(transportFunc(func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: 200, Body: io.NopCloser(failingReader{shared})}, nil
	})))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { client.Verify(t.Context(), alicaptcha.Request{Param: secretParam}) })
	}
	wg.Wait()
	require.Zero(t, shared.Status)
}

// The texts of errors that Client makes: what an operator needs and no more.
func TestErrorTextsOfTheConnection(t *testing.T) {
	serverTLS, tlsConfigs, _ := tlsConfigs(t)
	untrusted := func(config *tls.Config) *tls.Config {
		config = config.Clone()
		config.RootCAs = x509.NewCertPool()
		return config
	}
	secure := func(t *testing.T, config *tls.Config) string {
		return "https://" + serveRaw(t, func(raw net.Conn) {
			conn := tls.Server(raw, config)
			if readCall(bufio.NewReader(conn)) {
				io.WriteString(conn, wireAnswer(200, passAnswer))
			}
			conn.Close()
		})
	}
	failing := func(err error) func(*testing.T) *alicaptcha.Client {
		return func(t *testing.T) *alicaptcha.Client { return newClient(t, secretConfig(failingTransport(err))) }
	}
	refused := os.NewSyscallError("connect", syscall.ECONNREFUSED)
	secret := errors.New("read: " + keySecret + secretParam)
	for name, tc := range map[string]struct {
		client func(t *testing.T) *alicaptcha.Client
		code   alicaptcha.Code
		want   string // in the text
	}{
		"any":  {failing(secret), alicaptcha.ServiceUnavailable, ""},
		"read": {failing(&net.OpError{Op: "read", Net: "tcp", Err: secret}), alicaptcha.ServiceUnavailable, ""},
		"reset": {
			failing(&net.OpError{Op: "read", Net: "tcp", Err: os.NewSyscallError("read", syscall.ECONNRESET)}),
			alicaptcha.ServiceUnavailable, "read: connection reset by peer",
		},
		"closed": {failing(io.EOF), alicaptcha.ServiceUnavailable, "closed before the end"},
		"a proxy that is down": {
			failing(&net.OpError{Op: "proxyconnect", Net: "tcp", Err: &net.OpError{Op: "dial", Net: "tcp", Err: refused}}),
			alicaptcha.ServiceUnavailable, "dial tcp: connect: connection refused",
		},
		// What runs out here is what clients can use up.
		"no descriptors": {
			failing(&net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("socket", syscall.EMFILE)}),
			alicaptcha.Overloaded, "too many open files",
		},
		"no descriptors for DNS": {
			failing(&net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{
				Err: "dial udp 127.0.0.1:53: socket: too many open files", Name: "captcha.example",
			}}),
			alicaptcha.Overloaded, "too many open files",
		},
		"URL": {
			failing(&url.Error{Op: "Post", URL: "https://user:hunter2@host", Err: secret}),
			alicaptcha.ServiceUnavailable, "",
		},
		"an *Error of a Transport": { // not the service's word
			failing(&alicaptcha.Error{Code: alicaptcha.T001, Err: secret}),
			alicaptcha.ServiceUnavailable, "",
		},
		"DNS": {
			failing(&net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{
				Err: "no such host", Name: "captcha.example", IsNotFound: true,
			}}),
			alicaptcha.ServiceUnavailable, "lookup captcha.example: no such host",
		},
		"DNS timeout": {
			failing(&net.DNSError{Err: "i/o timeout", Name: "captcha.example", IsTimeout: true}),
			alicaptcha.ServiceTimeout, "lookup captcha.example",
		},
		"untrusted certificate": {func(t *testing.T) *alicaptcha.Client {
			return clientAt(t, secure(t, serverTLS), func(tr *http.Transport) { tr.TLSClientConfig = untrusted(tlsConfigs) })
		}, alicaptcha.ServiceUnavailable, "failed to verify certificate"},
		"certificate of another host": {func(t *testing.T) *alicaptcha.Client {
			return clientAt(t, secure(t, serverTLS), func(tr *http.Transport) {
				tr.TLSClientConfig = tlsConfigs.Clone()
				tr.TLSClientConfig.ServerName = "captcha.example"
			})
		}, alicaptcha.ServiceUnavailable, "captcha.example"},
		"plain text instead of TLS": {func(t *testing.T) *alicaptcha.Client {
			return clientAt(t, "https://"+serveRaw(t, func(conn net.Conn) {
				io.ReadFull(conn, make([]byte, 5))
				io.WriteString(conn, secretMessage)
			}), func(tr *http.Transport) { tr.TLSClientConfig = tlsConfigs.Clone() })
		}, alicaptcha.ServiceUnavailable, "does not look like a TLS handshake"},
		"HTTP instead of TLS": {func(t *testing.T) *alicaptcha.Client {
			return clientAt(t, "https://"+serveRaw(t, func(conn net.Conn) {
				io.ReadFull(conn, make([]byte, 5))
				io.WriteString(conn, wireAnswer(400, secretMessage))
			}), func(tr *http.Transport) { tr.TLSClientConfig = tlsConfigs.Clone() })
		}, alicaptcha.ServiceUnavailable, ""},
		"alert in the handshake": {func(t *testing.T) *alicaptcha.Client {
			config := serverTLS.Clone()
			config.MinVersion = tls.VersionTLS13
			return clientAt(t, secure(t, config), func(tr *http.Transport) {
				tr.TLSClientConfig = tlsConfigs.Clone()
				tr.TLSClientConfig.MaxVersion = tls.VersionTLS12
			})
		}, alicaptcha.ServiceUnavailable, "protocol version not supported"},
		"alert after the handshake": {func(t *testing.T) *alicaptcha.Client {
			config := serverTLS.Clone()
			config.ClientAuth = tls.RequireAnyClientCert
			return clientAt(t, secure(t, config), func(tr *http.Transport) { tr.TLSClientConfig = tlsConfigs.Clone() })
		}, alicaptcha.ServiceUnavailable, ""},
		"TLS instead of HTTP": {func(t *testing.T) *alicaptcha.Client {
			return clientAt(t, strings.Replace(secure(t, serverTLS), "https", "http", 1))
		}, alicaptcha.ServiceUnavailable, ""},
	} {
		t.Run(name, func(t *testing.T) {
			result, err := askClient(t, t.Context(), tc.client(t))
			fault := requireFault(t, result, err)
			require.Equal(t, tc.code, fault.Code)
			require.Contains(t, err.Error(), tc.want)
		})
	}
}

// What this machine has run out of is what clients can use up, so it is never an
// outage of the service: wherever in a call it shows, in whatever it is wrapped,
// and also for a long param and for an error that calls itself a timeout.
func TestClientExhaustion(t *testing.T) {
	const tooMany = "dial udp 127.0.0.1:53: socket: too many open files"
	failing := func(err error) transportFunc { return failingTransport(fmt.Errorf("x: %w", err)) }
	whileReading := func(err error) transportFunc {
		return func(*http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 200, Body: io.NopCloser(failingReader{err})}, nil
		}
	}
	connected := func(err error) transportFunc {
		return func(r *http.Request) (*http.Response, error) {
			if trace := httptrace.ContextClientTrace(r.Context()); trace != nil {
				trace.GotConn(httptrace.GotConnInfo{})
			}
			return nil, err
		}
	}
	exhausted := map[string]error{"DNS": &net.DNSError{Err: tooMany, Name: "captcha.example", IsTimeout: true}}
	for _, errno := range []syscall.Errno{
		syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EADDRNOTAVAIL,
	} {
		exhausted[errno.Error()] = &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("socket", errno)}
	}
	spared := map[string]error{"DNS": &net.DNSError{Err: "no such host", Name: "captcha.example"}}
	for _, errno := range []syscall.Errno{
		syscall.ECONNREFUSED, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EPIPE, syscall.EACCES,
	} {
		spared[errno.Error()] = &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", errno)}
	}
	for want, rows := range map[alicaptcha.Code]map[string]error{
		alicaptcha.Overloaded: exhausted, alicaptcha.ServiceUnavailable: spared,
	} {
		for name, cause := range rows {
			t.Run(name, func(t *testing.T) {
				for _, transport := range []transportFunc{failing(cause), whileReading(cause)} {
					result, err := askClient(t, t.Context(), newClient(t, secretConfig(transport)))
					require.Equal(t, want, requireFault(t, result, err).Code)
					require.ErrorIs(t, err, cause)
				}
				client := newClient(t, secretConfig(connected(cause)))
				result, err := client.Verify(t.Context(), alicaptcha.Request{Param: strings.Repeat("x", 9<<10)})
				long := requireFault(t, result, err).Code
				if want == alicaptcha.ServiceUnavailable {
					require.Equal(t, alicaptcha.RequestRefused, long)
					return
				}
				require.Equal(t, want, long)
			})
		}
	}
}

// An identifier of the service's has 64 characters at most; what is longer is none.
func TestClientIdentifierLengths(t *testing.T) {
	for length, shown := range map[int]bool{1: true, 63: true, 64: true, 65: false, 200: false} {
		id, code := strings.Repeat("R", length), strings.Repeat("C", length)
		canned := cannedTransport(400, `{"RequestId":"`+id+`","Code":"`+code+`"}`)
		result, err := askClient(t, t.Context(), newClient(t, secretConfig(canned)))
		fault := requireFault(t, result, err)
		require.Equal(t, alicaptcha.RequestRefused, fault.Code)
		require.Equal(t, shown, strings.Contains(err.Error(), "request "+id), length)
		require.Equal(t, shown, strings.Contains(err.Error(), "code "+code), length)
		require.Equal(t, shown, fault.RequestID == id)
		require.Equal(t, shown, fault.ServiceCode == code)

		canned = cannedTransport(200, `{"RequestId":"`+id+`","Code":"Success","Success":true,"Result":{"VerifyResult":true}}`)
		result, err = askClient(t, t.Context(), newClient(t, secretConfig(canned)))
		require.NoError(t, err)
		require.Equal(t, shown, result.RequestID == id)
		require.Equal(t, !shown, result.RequestID == "")
	}
}

// A resolver that fails for the same want as a dial is no outage of the service
// either: of a *net.DNSError there is only the text.
func TestClientExhaustionInDNS(t *testing.T) {
	t.Parallel()
	for _, errno := range []syscall.Errno{
		syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EADDRNOTAVAIL,
	} {
		err := &net.DNSError{Err: "dial udp 127.0.0.1:53: socket: " + errno.Error(), Name: "captcha.example"}
		result, got := askClient(t, t.Context(), newClient(t, secretConfig(failingTransport(err))))
		require.Equal(t, alicaptcha.Overloaded, requireFault(t, result, got).Code, errno.Error())
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
			io.WriteString(conn, wireAnswer(413, "too large", "Connection: close\r\n"))
		},
		"413 and a reset": func(conn net.Conn) {
			readSome(conn)
			io.WriteString(conn, wireAnswer(413, "too large"))
			reset(conn)
		},
		"a close":                readSome,
		"a reset":                func(conn net.Conn) { readSome(conn); reset(conn) },
		"a close after the call": func(conn net.Conn) { readCall(bufio.NewReader(conn)) },
		"a reset after the call": func(conn net.Conn) { readCall(bufio.NewReader(conn)); reset(conn) },
		"a part of an answer's head": func(conn net.Conn) {
			readCall(bufio.NewReader(conn))
			io.WriteString(conn, "HTTP/1.1 2")
		},
	} {
		t.Run(name, func(t *testing.T) {
			client := clientAt(t, "http://"+serveRaw(t, script))
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
	hanging := clientAt(t, "http://"+serveRaw(t, func(conn net.Conn) { io.Copy(io.Discard, conn) }))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = hanging.Verify(ctx, long)
	require.Equal(t, alicaptcha.ServiceTimeout, err.(*alicaptcha.Error).Code)
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
	serve := func(conn net.Conn) { tls.Server(conn, server).Handshake() }
	client := clientAt(t, "https://"+serveRaw(t, serve), func(tr *http.Transport) {
		tr.TLSClientConfig = &tls.Config{RootCAs: roots}
	})
	result, err := askClient(t, t.Context(), client)
	fault := requireFault(t, result, err)
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
		_, err := newClient(t, secretConfig(failingTransport(cause))).Verify(t.Context(), alicaptcha.Request{Param: "x"})
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
