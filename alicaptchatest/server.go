package alicaptchatest

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/alicaptcha/alicaptcha"
)

// Server is a [Simulator] that is served on a loopback address until the end of a
// test. It is safe for concurrent use.
type Server struct {
	*Simulator
	URL string // "http://127.0.0.1:…" or "https://127.0.0.1:…", without a path

	tb        testing.TB
	transport *http.Transport
}

// Start serves a new Simulator over HTTP until tb and its subtests end. It closes
// connections that are idle for 25 seconds, as the service does.
func Start(tb testing.TB, cfg Config) *Server {
	tb.Helper()
	return start(tb, cfg, false)
}

// StartTLS is like Start, but over HTTPS, and over HTTP/2 with clients that support
// it. The Transport in ClientConfig trusts the certificate.
func StartTLS(tb testing.TB, cfg Config) *Server {
	tb.Helper()
	return start(tb, cfg, true)
}

func start(tb testing.TB, cfg Config, secure bool) *Server {
	tb.Helper()
	sim := NewSimulator(cfg)
	srv := httptest.NewUnstartedServer(sim)
	srv.Config.IdleTimeout = keepAlive
	transport := &http.Transport{MaxIdleConnsPerHost: 512, IdleConnTimeout: 20 * time.Second}
	if secure {
		srv.Listener = slowListener{srv.Listener, sim}
		srv.EnableHTTP2 = true
		srv.StartTLS()
		roots := x509.NewCertPool()
		roots.AddCert(srv.Certificate())
		transport.TLSClientConfig = &tls.Config{RootCAs: roots}
		transport.ForceAttemptHTTP2 = true // off by default with a TLSClientConfig
	} else {
		srv.Start()
	}
	tb.Cleanup(func() {
		transport.CloseIdleConnections()
		sim.stop() // Close waits for every call, even for one that hangs
		srv.Close()
	})
	return &Server{Simulator: sim, URL: srv.URL, tb: tb, transport: transport}
}

// ClientConfig returns the configuration of a Client for this Server, including
// the keys. All configurations share one Transport, whose idle connections are
// closed when the test ends.
func (s *Server) ClientConfig() alicaptcha.ClientConfig {
	return alicaptcha.ClientConfig{
		Endpoint:        s.URL,
		AccessKeyID:     s.cfg.AccessKeyID,
		AccessKeySecret: s.cfg.AccessKeySecret,
		SecurityToken:   s.cfg.SecurityToken,
		Transport:       s.transport,
	}
}

// Client returns a new Client for this Server. It ends the test with Fatalf if there
// is an error.
func (s *Server) Client() *alicaptcha.Client {
	s.tb.Helper()
	client, err := alicaptcha.NewClient(s.ClientConfig())
	if err != nil {
		s.tb.Fatalf("alicaptchatest: %v", err)
	}
	return client
}
