package alicaptcha

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

// clientPipes is a net.Listener on pipes, for time that a test makes pass.
type clientPipes struct {
	conns  chan net.Conn
	closed chan struct{}
	dials  atomic.Int64
	dead   atomic.Bool // what is written to a connection that was there before gets lost
}

func newClientPipes() *clientPipes {
	return &clientPipes{conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (l *clientPipes) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *clientPipes) Close() error { close(l.closed); return nil }

func (l *clientPipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }

func (l *clientPipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	l.dials.Add(1)
	client, server := net.Pipe()
	select {
	case l.conns <- server:
		return &clientMortalConn{Conn: client, dead: &l.dead, born: l.dead.Load()}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

type clientMortalConn struct {
	net.Conn
	dead *atomic.Bool
	born bool
}

func (c *clientMortalConn) Write(p []byte) (int, error) {
	if c.dead.Load() != c.born {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

// An idle connection is closed after 10 s, before a load balancer closes it
// under a call.
func TestTransportClosesIdleConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		listener := newClientPipes()
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
		client, err := NewClient(ClientConfig{Endpoint: "http://127.0.0.1", AccessKeyID: "id", AccessKeySecret: "secret", Transport: transport})
		require.NoError(t, err)
		for range 5 { // in use it stays
			_, err := client.Verify(context.Background(), Request{Param: "x"})
			require.NoError(t, err)
			time.Sleep(9 * time.Second)
		}
		require.EqualValues(t, 1, listener.dials.Load())
		time.Sleep(2 * time.Second)
		synctest.Wait()
		require.Equal(t, []time.Duration{46 * time.Second}, closed)
	})
}

// A connection that died without a word costs one call; those after it have another.
func TestTransportNoticesADeadConnection(t *testing.T) {
	certified := httptest.NewTLSServer(http.NotFoundHandler())
	defer certified.Close()
	roots := x509.NewCertPool()
	roots.AddCert(certified.Certificate())
	synctest.Test(t, func(t *testing.T) {
		listener := newClientPipes()
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
		client, err := NewClient(ClientConfig{Endpoint: "https://127.0.0.1", AccessKeyID: "id", AccessKeySecret: "secret", Transport: transport})
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

// A clientSpeaker is an HttpClient in the place of connection, that nobody asked to
// fill an answer.
type clientSpeaker func(*http.Request) (*http.Response, error)

func (f clientSpeaker) Call(r *http.Request, _ *http.Transport) (*http.Response, error) { return f(r) }

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
			c.sdk.HttpClient = clientSpeaker(func(r *http.Request) (*http.Response, error) {
				return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader(pass)), Request: r}, nil
			})
		},
		"an error of somebody else": func(c *Client) {
			c.sdk.HttpClient = clientSpeaker(func(*http.Request) (*http.Response, error) { return nil, errTaken })
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

// clientMembers returns what a JSON object holds, and false where it is none, or has
// a name twice or in a case other than that of a known one.
func clientMembers(text []byte, known ...string) (map[string]json.RawMessage, bool) {
	dec := json.NewDecoder(bytes.NewReader(text))
	if tok, err := dec.Token(); err != nil || tok != json.Delim('{') {
		return nil, false
	}
	all := map[string]json.RawMessage{}
	for dec.More() {
		tok, err := dec.Token()
		name, isName := tok.(string)
		var value json.RawMessage
		if err != nil || !isName || dec.Decode(&value) != nil {
			return nil, false
		}
		if _, twice := all[name]; twice {
			return nil, false
		}
		if slices.ContainsFunc(known, func(k string) bool { return k != name && strings.EqualFold(k, name) }) {
			return nil, false
		}
		all[name] = value
	}
	return all, true
}

func FuzzReadAnswer(f *testing.F) {
	const pass = `{"RequestId":"R-1","Message":"success","Code":"Success","Success":true,"Result":{"VerifyResult":true,"VerifyCode":"T001","CertifyId":"C-1"}}`
	for _, body := range []string{
		pass, "", "null", "{}", "[]", pass + pass, pass[:40], strings.ToLower(pass), "\ufeff" + pass, pass + "\xff",
		`{"Code":"Success","Message":"success","RequestId":"R","Result":{"VerifyCode":"F001","VerifyResult":false},"Success":true}`,
		`{"Code":"Success","Success":true,"Result":{"VerifyResult":true}}`,
		`{"Code":"Success","Success":true,"Result":{"VerifyResult":false}}`,
		`{"Code":"Success","Success":true,"Result":{"VerifyResult":"true","VerifyCode":"T001"}}`,
		`{"Code":"Success","Success":true,"Result":{"VerifyResult":true,"VerifyResult":false}}`,
		`{"Code":"Success","Success":true,"Result":{"VerifyResult":true,"verifyresult":false}}`,
		`{"Code":"Success","Success":true,"Result":{"VerifyResult":true,"VerifyCode":"F001"}}`,
		`{"Code":"Success","Success":true,"Result":{"VerifyResult":true,"VerifyCode":""}}`,
		`{"Code":"Success","Success":true,"Result":{"VerifyResult":true,"VerifyCode":null,"CertifyId":null}}`,
		`{"Code":"Success","Success":true,"\u0052esult":{"Verify\u0052esult":true}}`,
		`{"Code":"Success","Success":false,"Result":{"VerifyResult":true}}`,
		`{"Code":"Throttling.User","RequestId":"R","Message":"m"}`,
		`{"Code":"Forbidden.AccountAccessDenied"}`,
		`<?xml version="1.0"?><Error><RequestId>R</RequestId><Code>SignatureDoesNotMatch</Code></Error>`,
		`<html><body>Bad Gateway`,
	} {
		for _, status := range []int{200, 204, 400, 401, 429, 500} {
			f.Add(status, []byte(body))
		}
	}
	isPass := regexp.MustCompile(`^T[0-9]{3}$`)
	isRefusal := regexp.MustCompile(`^F[0-9]{3}$`)
	isToken := regexp.MustCompile(`^[A-Za-z0-9._-]{0,64}$`)
	text := func(raw json.RawMessage) (string, bool) {
		var s *string
		err := json.Unmarshal(raw, &s)
		return clientDeref(s), err == nil && s != nil
	}
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		result, fault := readAnswer(status, body)
		if fault != nil {
			require.Zero(t, result)
			require.Contains(t, []Code{ServiceThrottled, Misconfigured, RequestRefused, ServiceUnavailable}, fault.Code)
			require.Equal(t, status, fault.Status)
			require.Regexp(t, isToken, fault.ServiceCode)
			require.Regexp(t, isToken, fault.RequestID)
			require.NotPanics(t, func() { _ = fault.Error() })
			if status == http.StatusTooManyRequests {
				require.Equal(t, ServiceThrottled, fault.Code)
			}
			if fault.Code == ServiceUnavailable { // what a client can cause ends in no code that is opened
				require.False(t, status >= 400 && status <= 499)
			}
			return
		}

		// A verdict. encoding/json, which is lenient, must see the same one.
		require.Equal(t, http.StatusOK, status)
		require.True(t, json.Valid(body))
		require.True(t, utf8.Valid(body) || !result.Passed)
		outer, ok := clientMembers(body, "RequestId", "Code", "Success", "Result", "Message")
		require.True(t, ok)
		code, ok := text(outer["Code"])
		require.True(t, ok)
		require.Equal(t, "Success", code)
		require.Equal(t, "true", string(outer["Success"]))
		inner, ok := clientMembers(outer["Result"], "VerifyResult", "VerifyCode", "CertifyId")
		require.True(t, ok)
		switch string(inner["VerifyResult"]) {
		case "true":
			require.True(t, result.Passed)
			require.Regexp(t, isPass, string(result.Code))
		case "false":
			require.False(t, result.Passed)
			require.Regexp(t, isRefusal, string(result.Code))
		default:
			require.Fail(t, "VerifyResult is no boolean")
		}
		if raw, there := inner["VerifyCode"]; there {
			code, ok := text(raw)
			require.True(t, ok)
			require.Equal(t, code, string(result.Code))
		}
		var typed struct {
			RequestID *string `json:"RequestId"`
			Result    struct {
				CertifyID *string `json:"CertifyId"`
			}
		}
		require.NoError(t, json.Unmarshal(body, &typed))
		require.Equal(t, clientDeref(typed.RequestID), result.RequestID)
		require.Equal(t, clientDeref(typed.Result.CertifyID), result.CertifyID)
	})
}

func clientDeref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// net/http goes on with a TLS handshake whose call has ended. Against an endpoint
// that never finishes one, it stays behind for 5 s and no longer.
func TestTransportEndsHandshakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		listener := newClientPipes()
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
