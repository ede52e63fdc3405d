package alicaptcha_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

// serveProxy is a proxy that connects everything to the server at to. It
// returns its address and what it was asked.
func serveProxy(t *testing.T, to string) (addr string, asked func() []*http.Request) {
	var mu sync.Mutex
	var requests []*http.Request
	addr = serveRaw(t, func(conn net.Conn) {
		r, err := http.ReadRequest(bufio.NewReader(conn))
		if err != nil {
			return
		}
		mu.Lock()
		requests = append(requests, r)
		mu.Unlock()
		if r.Method != http.MethodConnect {
			io.WriteString(conn, wireAnswer(200, passAnswer))
			return
		}
		origin, err := net.Dial("tcp", to)
		if err != nil {
			return
		}
		defer origin.Close()
		io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n")
		go func() {
			io.Copy(origin, conn)
			origin.Close()
		}()
		io.Copy(conn, origin)
	})
	return addr, func() []*http.Request {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(requests)
	}
}

// The SDK would read HTTP_PROXY and its like itself, and send the password to the
// service.
func TestClientIgnoresTheEnvironmentsProxyWithATransport(t *testing.T) {
	for _, sim := range []*alicaptchatest.Server{
		alicaptchatest.Start(t, alicaptchatest.Config{}), alicaptchatest.StartTLS(t, alicaptchatest.Config{}),
	} {
		addr, asked := serveProxy(t, strings.TrimPrefix(strings.TrimPrefix(sim.URL, "http://"), "https://"))
		for _, proxy := range []string{
			"http://user:hunter2@" + addr, "http://user:hunter2@bad host/", "://hunter2", "socks5://user:hunter2@" + addr,
		} {
			for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"} {
				t.Setenv(name, proxy)
			}
			t.Setenv("NO_PROXY", "example.com")
			param, err := sim.Issue(alicaptchatest.Issue{SceneID: "login"})
			require.NoError(t, err)
			result, err := sim.Client().Verify(t.Context(), alicaptcha.Request{Param: param, SceneID: "login"})
			require.NoError(t, err, proxy)
			require.True(t, result.Passed)
		}
		require.Empty(t, asked())
		for _, call := range sim.Calls() {
			require.NotContains(t, fmt.Sprint(call.Header), "roxy")
		}
	}
}

func TestClientTransportsProxyDecides(t *testing.T) {
	sim := alicaptchatest.StartTLS(t, alicaptchatest.Config{})
	addr, asked := serveProxy(t, strings.TrimPrefix(sim.URL, "https://"))
	proxy, err := url.Parse("http://user:hunter2@" + addr)
	require.NoError(t, err)
	cfg := sim.ClientConfig()
	transport := cfg.Transport.(*http.Transport).Clone()
	defer transport.CloseIdleConnections()
	transport.Proxy = http.ProxyURL(proxy)
	cfg.Transport = transport
	param, err := sim.Issue(alicaptchatest.Issue{SceneID: "login"})
	require.NoError(t, err)
	result, err := newClient(t, cfg).Verify(t.Context(), alicaptcha.Request{Param: param, SceneID: "login"})
	require.NoError(t, err)
	require.True(t, result.Passed)
	require.Len(t, asked(), 1)
	require.NotEmpty(t, asked()[0].Header.Get("Proxy-Authorization"))
	require.Len(t, sim.Calls(), 1)
	require.Empty(t, sim.Calls()[0].Header.Get("Proxy-Authorization"))
}

func TestClientProxyThatRefuses(t *testing.T) {
	for name, answer := range map[string]string{
		"407":  "HTTP/1.1 407 " + secretMessage + "\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n",
		"502":  "HTTP/1.1 502 " + secretMessage + "\r\nContent-Length: 0\r\n\r\n",
		"junk": secretMessage + "\r\n\r\n",
		"shut": "",
	} {
		t.Run(name, func(t *testing.T) {
			proxy, err := url.Parse("http://user:hunter2@" + serveAnswer(t, answer))
			require.NoError(t, err)
			client := clientAt(t, "https://captcha.example", func(tr *http.Transport) { tr.Proxy = http.ProxyURL(proxy) })
			result, err := askClient(t, t.Context(), client)
			require.Equal(t, alicaptcha.ServiceUnavailable, requireFault(t, result, err).Code)
		})
	}
	t.Run("not there", func(t *testing.T) {
		client := clientAt(t, "https://captcha.example", func(tr *http.Transport) {
			tr.Proxy = http.ProxyURL(&url.URL{Scheme: "http", User: url.UserPassword("user", "hunter2"), Host: "127.0.0.1:1"})
		})
		result, err := askClient(t, t.Context(), client)
		require.Equal(t, alicaptcha.ServiceUnavailable, requireFault(t, result, err).Code)
	})
	t.Run("malformed", func(t *testing.T) {
		client := clientAt(t, "https://captcha.example", func(tr *http.Transport) {
			malformed := "http://user:hunter2@bad host"
			tr.Proxy = func(*http.Request) (*url.URL, error) { return url.Parse(malformed) }
		})
		result, err := askClient(t, t.Context(), client)
		require.Equal(t, alicaptcha.ServiceUnavailable, requireFault(t, result, err).Code)
	})
}

// net/http would go round a proxy that it cannot read, or take another host for it.
func TestNewClientMalformedProxyInTheEnvironment(t *testing.T) {
	for _, proxy := range []string{
		"http://user:hunter2@bad host", "http://user:hunter2@proxy:port", "user:hunter2@proxy:80%zz", "://user:hunter2",
	} {
		out := runChild(t, "new https://captcha.example", "HTTPS_PROXY="+proxy, "HTTP_PROXY="+proxy)
		require.NotContains(t, out, "hunter2")
		require.Contains(t, out, "HTTPS_PROXY", proxy)
	}
	for _, env := range []string{
		"HTTPS_PROXY=http://user:hunter2@proxy:8080", "HTTPS_PROXY=proxy:8080",
		"HTTP_PROXY=http://user:hunter2@bad host",
	} {
		require.Contains(t, runChild(t, "new https://captcha.example", env), "child: <nil>", env)
	}
}
