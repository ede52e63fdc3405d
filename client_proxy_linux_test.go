package alicaptcha_test

import (
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

// Without a Transport: the environment's proxy gets its password and the
// service does not, one connection serves, and it is never HTTP/2: there one
// client's hang-ups would end the calls of all. Linux, because SSL_CERT_FILE is not
// read everywhere.
func TestClientDefaultTransportThroughAProxy(t *testing.T) {
	sim := alicaptchatest.NewSimulator(alicaptchatest.Config{})
	var protos sync.Map
	origin := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		protos.Store(r.Proto, true)
		sim.ServeHTTP(w, r)
	}))
	origin.EnableHTTP2 = true
	origin.StartTLS()
	defer origin.Close()
	addr, asked := serveProxy(t, origin.Listener.Addr().String())
	roots := filepath.Join(t.TempDir(), "roots.pem")
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: origin.Certificate().Raw})
	require.NoError(t, os.WriteFile(roots, certificate, 0o600))
	out := runChild(t, "verify https://example.com",
		"HTTPS_PROXY=http://user:hunter2@"+addr, "SSL_CERT_FILE="+roots, "SSL_CERT_DIR="+t.TempDir())
	require.Equal(t, 3, strings.Count(out, "child: F003 <nil>"), out)
	require.Len(t, asked(), 1)
	require.Equal(t, "example.com:443", asked()[0].Host)
	require.NotEmpty(t, asked()[0].Header.Get("Proxy-Authorization"))
	require.Len(t, sim.Calls(), 3)
	for _, call := range sim.Calls() {
		require.Empty(t, call.Header.Get("Proxy-Authorization"))
	}
	require.Equal(t, []any{"HTTP/1.1"}, slices.Collect(func(yield func(any) bool) {
		protos.Range(func(k, _ any) bool { return yield(k) })
	}))

	// Nobody's certificate is believed without a root for it.
	out = runChild(t, "verify https://example.com",
		"HTTPS_PROXY=http://user:hunter2@"+addr, "SSL_CERT_FILE="+roots+".none", "SSL_CERT_DIR="+t.TempDir())
	require.Equal(t, 3, strings.Count(out, "alicaptcha: service_unavailable: tls: failed to verify certificate"), out)
	require.NotContains(t, out, "hunter2")
	require.Len(t, sim.Calls(), 3)
}
