package alicaptchatest

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// The test vector signs six headers, without content-type, which the SDK signs as
// well.
func TestSignVector(t *testing.T) {
	t.Parallel()
	const body = "SceneId=test"
	sum := sha256.Sum256([]byte(body))
	hashed := hex.EncodeToString(sum[:])
	r := httptest.NewRequest(http.MethodPost, "https://captcha.cn-shanghai.aliyuncs.com/", strings.NewReader(body))
	r.Header.Set("X-Acs-Action", "VerifyIntelligentCaptcha")
	r.Header.Set("X-Acs-Content-Sha256", hashed)
	r.Header.Set("X-Acs-Date", "2026-09-27T00:00:00Z")
	r.Header.Set("X-Acs-Signature-Nonce", " test-nonce\t") // trimmed
	r.Header.Set("X-Acs-Version", "2023-03-05")

	// The caller's order does not matter.
	headers := []string{
		"x-acs-version", "host", "x-acs-action", "x-acs-content-sha256", "x-acs-date", "x-acs-signature-nonce",
	}
	got, ok := sign(r, hashed, headers, "test-secret")
	require.True(t, ok)
	require.Equal(t, "a6c2000eda36d6945559103f39c06f1837e21794e8051f56092bc3b3a7264b2b", got)

	r.URL.RawQuery = "b=1&a=%zz"
	_, ok = sign(r, hashed, headers, "test-secret")
	require.False(t, ok, "an unreadable query")
}

// The hash in the header is part of the protocol, even if the signature covers the
// correct hash.
func TestContentHashHeader(t *testing.T) {
	t.Parallel()
	s := NewSimulator(Config{})
	sum := sha256.Sum256(nil)
	hashed := hex.EncodeToString(sum[:])
	for header, fault := range map[string]string{
		hashed:                  "",
		strings.ToUpper(hashed): "SignatureDoesNotMatch",
		"x":                     "SignatureDoesNotMatch",
	} {
		r := httptest.NewRequest(http.MethodPost, "/", nil)
		r.Header.Set("X-Acs-Content-Sha256", header)
		headers := []string{
			"host", "x-acs-action", "x-acs-content-sha256", "x-acs-date", "x-acs-signature-nonce", "x-acs-version",
		}
		signature, ok := sign(r, hashed, headers, "test-secret")
		require.True(t, ok)
		r.Header.Set("Authorization",
			algorithm+" Credential=test-id,SignedHeaders="+strings.Join(headers, ";")+",Signature="+signature)
		got := s.checkSignature(r, nil)
		if fault == "" {
			require.Nil(t, got)
			continue
		}
		require.NotNil(t, got)
		require.Equal(t, fault, got.code)
	}
}

func TestParseAuthorization(t *testing.T) {
	t.Parallel()
	got, ok := parseAuthorization("ACS3-HMAC-SHA256 Credential=id,SignedHeaders=host;x-acs-date,Signature=00ff")
	require.True(t, ok)
	require.Equal(t, authorization{keyID: "id", signed: []string{"host", "x-acs-date"}, signature: "00ff"}, got)
	for _, header := range []string{
		"",
		"ACS3-HMAC-SHA256",
		"Credential=id,SignedHeaders=host,Signature=00ff",
		"ACS3-HMAC-SM3 Credential=id,SignedHeaders=host,Signature=00ff",
		"ACS3-HMAC-SHA256 Credential=,SignedHeaders=host,Signature=00ff",
		"ACS3-HMAC-SHA256 Credential=id,SignedHeaders=,Signature=00ff",
		"ACS3-HMAC-SHA256 Credential=id,SignedHeaders=host,Signature=",
		"ACS3-HMAC-SHA256 Credential=id,SignedHeaders=host",
		"ACS3-HMAC-SHA256 Credential=id,SignedHeaders=host,Signature=00ff,Signature=00ff",
		"ACS3-HMAC-SHA256 Credential=id,Signature=00ff,SignedHeaders=host",
	} {
		_, ok := parseAuthorization(header)
		require.False(t, ok, header)
	}
}

func TestMemoryIsBounded(t *testing.T) {
	t.Parallel()
	t.Run("number of calls", func(t *testing.T) {
		s := NewSimulator(Config{})
		for i := range maxCalls + 5 {
			s.record(&Call{Status: i})
		}
		calls := s.Calls()
		require.Len(t, calls, maxCalls)
		require.Equal(t, 5, calls[0].Status, "the oldest went")
		require.Equal(t, maxCalls+5, s.Count())
	})
	t.Run("size of calls", func(t *testing.T) {
		s := NewSimulator(Config{})
		param := strings.Repeat("p", 1<<20)
		for i := range 70 {
			s.record(&Call{Status: i, Param: param, Header: http.Header{"X": {"y", "z"}}})
		}
		calls := s.Calls()
		require.Len(t, calls, 63)
		require.Equal(t, 7, calls[0].Status, "the oldest went")
		require.Equal(t, 63*(1<<20+4), s.callBytes)
	})
	t.Run("size of scenes", func(t *testing.T) {
		for _, call := range []Call{
			{SceneID: strings.Repeat("s", 1<<20), HasSceneID: true},
			{Param: strings.Repeat("p", 1<<19), SceneID: strings.Repeat("s", 1<<19), HasSceneID: true},
			{Header: http.Header{strings.Repeat("h", 1<<19): {strings.Repeat("v", 1<<19)}}},
		} {
			require.Equal(t, 1<<20, call.size())
			s := NewSimulator(Config{})
			for i := range 70 {
				c := call
				c.Status = i
				s.record(&c)
			}
			calls := s.Calls()
			require.Len(t, calls, 64)
			require.Equal(t, 6, calls[0].Status, "the oldest went")
			require.Equal(t, maxCallBytes, s.callBytes)
		}
	})
	t.Run("number of params", func(t *testing.T) {
		s := NewSimulator(Config{})
		s.minted["oldest"] = &record{at: s.clock()}
		s.order = append([]string{"oldest"}, make([]string, maxMinted-1)...)
		_, err := s.Issue(Issue{SceneID: "login"})
		require.NoError(t, err)
		require.Len(t, s.order, maxMinted)
		require.Len(t, s.minted, 1)
		require.NotContains(t, s.minted, "oldest")
	})
	t.Run("params and nonces", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := NewSimulator(Config{})
			_, err := s.Issue(Issue{SceneID: "login"})
			require.NoError(t, err)
			s.nonces["n"] = s.clock().Add(dateWindow)

			time.Sleep(dateWindow)
			s.clock()
			require.Len(t, s.nonces, 1)
			time.Sleep(2 * time.Minute)
			s.clock()
			require.Empty(t, s.nonces)

			s.Advance(paramKept - dateWindow - 2*time.Minute)
			s.clock()
			require.Len(t, s.minted, 1)
			s.Advance(2 * time.Minute)
			s.clock()
			require.Empty(t, s.minted)
			require.Empty(t, s.order)
		})
	})
}

// exchange sends a request to s and returns the status of the answer, and how long it took.
// It must be called in a bubble.
func exchange(t *testing.T, s *Simulator, request string) (int, time.Duration) {
	client, server := net.Pipe()
	srv := &http.Server{Handler: s}
	defer srv.Close()
	defer client.Close()
	go srv.Serve(&oneConn{conn: server, closed: make(chan struct{})})
	began := time.Now()
	_, err := io.WriteString(client, request)
	require.NoError(t, err)
	resp, err := http.ReadResponse(bufio.NewReader(client), nil)
	require.NoError(t, err)
	return resp.StatusCode, time.Since(began)
}

// A client that sends its body slowly does not occupy the server forever, and an answer
// that takes long after the body is not cut off.
func TestSlowBody(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"/", "/issue", "/faults", "/widget/verify"} {
		t.Run(path, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				status, took := exchange(t, NewSimulator(Config{}), "POST "+path+" HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{")
				require.Equal(t, 400, status)
				require.Equal(t, bodyTime, took)
			})
		})
	}
	t.Run("slow answer", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := NewSimulator(Config{})
			require.NoError(t, s.SetFaults(Faults{Latency: maxDelay}))
			status, took := exchange(t, s, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nx=")
			require.Equal(t, 404, status, "not signed")
			require.Equal(t, maxDelay, took)
		})
	})
}

// oneConn is a listener with one connection.
type oneConn struct {
	net.Listener
	conn   net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *oneConn) Accept() (net.Conn, error) {
	if conn := l.conn; conn != nil {
		l.conn = nil
		return conn, nil
	}
	<-l.closed
	return nil, net.ErrClosed
}

func (l *oneConn) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *oneConn) Addr() net.Addr { return &net.TCPAddr{} }

// pipes is a listener whose connections are pipes with data to read.
type pipes struct{ net.Listener }

func (pipes) Accept() (net.Conn, error) {
	client, server := net.Pipe()
	go client.Write([]byte("hello"))
	return server, nil
}

func TestSlowListener(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := NewSimulator(Config{})
		began := time.Now()
		read := func(conn net.Conn) {
			_, err := conn.Read(make([]byte, 1))
			require.NoError(t, err)
		}
		accept := func() net.Conn {
			conn, err := slowListener{pipes{}, s}.Accept()
			require.NoError(t, err)
			t.Cleanup(func() { conn.Close() })
			return conn
		}
		read(accept())
		require.Zero(t, time.Since(began))

		require.NoError(t, s.SetFaults(Faults{TLSDelay: time.Minute}))
		conn := accept()
		read(conn)
		read(conn)
		require.Equal(t, time.Minute, time.Since(began), "before the first byte only")

		for _, end := range []func(){func() { require.NoError(t, s.SetFaults(Faults{TLSDelay: time.Hour})) }, s.stop} {
			conn := accept()
			var wg sync.WaitGroup
			wg.Go(func() { read(conn) })
			synctest.Wait()
			end()
			wg.Wait()
			require.Equal(t, time.Minute, time.Since(began), "until the faults end")
		}
	})
}
