//go:build unix

package caddyalicaptcha_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	_ "github.com/caddyserver/caddy/v2/modules/caddyhttp/standard"
	_ "github.com/caddyserver/caddy/v2/modules/filestorage"
	_ "github.com/caddyserver/caddy/v2/modules/logging"
	_ "github.com/caddyserver/caddy/v2/modules/metrics"
	"github.com/quic-go/quic-go/http3"
	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
	_ "github.com/alicaptcha/alicaptcha/caddyalicaptcha"
)

func TestMain(m *testing.M) {
	// The environment of whoever runs the tests must not decide them.
	for _, name := range []string{
		"ALIBABA_CLOUD_ACCESS_KEY_ID", "ALIBABA_CLOUD_ACCESS_KEY_SECRET", "ALIBABA_CLOUD_SECURITY_TOKEN", "DEBUG",
	} {
		os.Unsetenv(name)
	}
	slog.SetDefault(slog.New(slog.DiscardHandler))
	os.Exit(m.Run())
}

// testGuard is how long a test waits for what must happen.
const testGuard = 20 * time.Second

// A site is a Caddy in this process. There can be only one at a time.
type site struct {
	addr string
	url  string
	cert string // the directive tls, or nothing
	bind string // the address of the directive bind
	log  string // the file of Caddy's log
}

// options are Caddy's global options for tests: no fixed port, no files in the home.
const options = `{
	admin off
	persist_config off
	auto_https off
	grace_period 10s
	servers {
		protocols h1 h2 %s
	}
	log {
		output file %q
		format json
		level INFO
	}
	metrics
	storage file_system %q
}
`

// start runs Caddy with the directives of one site until the test ends. In them, SERVICE
// stands for the options that all gates have.
func start(t *testing.T, service *alicaptchatest.Server, directives string) *site {
	t.Helper()
	s := listen(t)
	s.url = "http://" + s.addr
	s.run(t, service, directives)
	return s
}

// startTLS is start for a site that speaks TLS, and returns a client that speaks HTTP/2
// to it, too.
func startTLS(t *testing.T, service *alicaptchatest.Server, directives string) (*site, *http.Client) {
	t.Helper()
	s, client := listen(t), newClient(t, true)
	transport := client.Transport.(*http.Transport)
	transport.Protocols = new(http.Protocols)
	transport.Protocols.SetHTTP2(true)
	transport.TLSClientConfig = s.certify(t)
	s.run(t, service, directives)
	return s, client
}

// startHTTP3 is startTLS with HTTP/3, which Caddy speaks wherever it speaks TLS unless it
// is told otherwise.
func startHTTP3(t *testing.T, service *alicaptchatest.Server, directives string) (*site, *http.Client) {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	s := &site{addr: conn.LocalAddr().String(), bind: "127.0.0.1", log: filepath.Join(t.TempDir(), "caddy.log")}
	transport := &http3.Transport{TLSClientConfig: s.certify(t)}
	require.NoError(t, conn.Close())
	s.run(t, service, directives)
	t.Cleanup(func() { require.NoError(t, transport.Close()) })
	return s, &http.Client{Transport: transport, Timeout: testGuard}
}

// overTLS holds what starts a site for each protocol that needs TLS.
var overTLS = map[string]func(*testing.T, *alicaptchatest.Server, string) (*site, *http.Client){
	"HTTP/2.0": startTLS, "HTTP/3.0": startHTTP3,
}

// certify gives the site a certificate, and returns the settings of a client that
// accepts it.
func (s *site) certify(t *testing.T) *tls.Config {
	t.Helper()
	pair := httptest.NewTLSServer(http.NotFoundHandler()) // its certificate is for 127.0.0.1
	pair.Close()
	key, err := x509.MarshalPKCS8PrivateKey(pair.TLS.Certificates[0].PrivateKey)
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "tls.pem")
	text := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate().Raw}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})...)
	require.NoError(t, os.WriteFile(file, text, 0o600))
	s.url, s.cert = "https://"+s.addr, fmt.Sprintf("tls %q %q\n", file, file)
	return pair.Client().Transport.(*http.Transport).TLSClientConfig
}

// listen returns a site that does not run yet.
func listen(t *testing.T) *site {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	// Caddy gets the socket itself. With an address, each reload opens another socket
	// (SO_REUSEPORT) and closes the old one with the connections that wait in it.
	file, err := listener.(*net.TCPListener).File()
	require.NoError(t, err)
	fd, err := syscall.Dup(int(file.Fd()))
	require.NoError(t, err)
	require.NoError(t, file.Close())
	require.NoError(t, listener.Close())
	// It stays open to the end of the process: Caddy keeps it.
	return &site{addr: listener.Addr().String(), bind: fmt.Sprint("fd/", fd), log: filepath.Join(t.TempDir(), "caddy.log")}
}

func (s *site) run(t *testing.T, service *alicaptchatest.Server, directives string) {
	t.Helper()
	require.NoError(t, caddy.Load(s.config(t, service, directives), true))
	t.Cleanup(func() { require.NoError(t, caddy.Stop()) })
}

func (s *site) config(t *testing.T, service *alicaptchatest.Server, directives string) []byte {
	t.Helper()
	return adapt(t, s.caddyfile(service, directives))
}

func (s *site) caddyfile(service *alicaptchatest.Server, directives string) string {
	last := "h2c"
	if !strings.HasPrefix(s.bind, "fd/") {
		last = "h3"
	}
	text := fmt.Sprintf(options, last, s.log, filepath.Dir(s.log)) + s.url + " {\nbind " + s.bind + "\n" + s.cert + directives + "\n}\n"
	if service != nil {
		text = strings.ReplaceAll(text, "SERVICE", "endpoint "+service.URL+"\n\t\taccess_key test-id test-secret")
	}
	return text
}

func (s *site) logged(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(s.log)
	require.NoError(t, err)
	return string(text)
}

func adapt(t *testing.T, caddyfile string) []byte {
	t.Helper()
	config, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(caddyfile), map[string]any{"filename": "Caddyfile"})
	require.NoError(t, err, caddyfile)
	return config
}

// newClient returns a client for the site that speaks HTTP/1.1 or HTTP/2.
func newClient(t *testing.T, http2 bool) *http.Client {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(!http2)
	protocols.SetUnencryptedHTTP2(http2)
	transport := &http.Transport{Protocols: protocols, MaxIdleConnsPerHost: 64, ExpectContinueTimeout: testGuard}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: testGuard, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	}}
}

// upstream is an upstream in Go that keeps the requests that it has got.
type upstream struct {
	*httptest.Server
	mu   sync.Mutex
	seen []arrived
}

type arrived struct {
	path            string
	header, trailer http.Header
	body            string
	length          int64
}

func startUpstream(t *testing.T) *upstream {
	u := new(upstream)
	u.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		u.mu.Lock()
		defer u.mu.Unlock()
		u.seen = append(u.seen, arrived{r.URL.Path, r.Header.Clone(), r.Trailer.Clone(), string(body), r.ContentLength})
		io.WriteString(w, "welcome")
	}))
	t.Cleanup(u.Close)
	return u
}

// last returns the only request that has arrived since the last call.
func (u *upstream) last(t *testing.T) arrived {
	t.Helper()
	all := u.take()
	require.Len(t, all, 1)
	return all[0]
}

func (u *upstream) take() []arrived {
	u.mu.Lock()
	defer u.mu.Unlock()
	all := u.seen
	u.seen = nil
	return all
}

// php is an upstream in PHP, by FastCGI.
type php struct{ root, socket, log string }

// seenByPHP is what the script of a php answers.
type seenByPHP struct {
	Verified *string // HTTP_CAPTCHA_VERIFIED
	Length   string  // CONTENT_LENGTH
	Type     string
	Body     string // its SHA-256
	Protocol string
	TLS      bool
	Names    []string
}

const script = `<?php
$body = file_get_contents('php://input');
file_put_contents(__DIR__ . '/log', $_SERVER['REQUEST_URI'] . "\n", FILE_APPEND | LOCK_EX);
header('Content-Type: application/json');
echo json_encode([
	'Verified' => $_SERVER['HTTP_CAPTCHA_VERIFIED'] ?? null,
	'Length' => $_SERVER['CONTENT_LENGTH'] ?? '',
	'Type' => $_SERVER['CONTENT_TYPE'] ?? '',
	'Body' => hash('sha256', $body),
	'Protocol' => $_SERVER['SERVER_PROTOCOL'],
	'TLS' => ($_SERVER['HTTPS'] ?? '') === 'on',
	'Names' => array_values(preg_grep('/CAPTCHA.VERIFIED/i', array_keys($_SERVER))),
]);
`

func startPHP(t *testing.T) *php {
	t.Helper()
	root := t.TempDir()
	p := &php{root: root, socket: filepath.Join(root, "php"), log: filepath.Join(root, "log")}
	require.NoError(t, os.WriteFile(filepath.Join(root, "index.php"), []byte(script), 0o600))
	cmd := exec.Command("php-cgi", "-n", "-b", p.socket, "-d", "enable_post_data_reading=0", "-d", "post_max_size=16M")
	cmd.Env = append(os.Environ(), "PHP_FCGI_CHILDREN=4", "PHP_FCGI_MAX_REQUESTS=0")
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	require.NoError(t, cmd.Start(), "php-cgi is needed: apt-get install php-cgi")
	t.Cleanup(func() {
		cmd.Process.Signal(os.Interrupt) // it ends its children
		cmd.Wait()
	})
	require.Eventually(t, func() bool {
		conn, err := net.Dial("unix", p.socket)
		if err == nil {
			conn.Close()
		}
		return err == nil
	}, testGuard, 10*time.Millisecond)
	return p
}

// calls returns how often the script was run.
func (p *php) calls(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile(p.log)
	if os.IsNotExist(err) {
		return 0
	}
	require.NoError(t, err)
	return bytes.Count(text, []byte("\n"))
}

func issue(t *testing.T, service *alicaptchatest.Server) string {
	t.Helper()
	param, err := service.Issue(alicaptchatest.Issue{SceneID: "login"})
	require.NoError(t, err)
	return param
}

// send sends a request to the site and returns the status and the body of the answer.
func (s *site) send(t *testing.T, client *http.Client, path string, header http.Header, body io.Reader) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "POST", s.url+path, body)
	require.NoError(t, err)
	maps.Copy(r.Header, header)
	return s.do(t, client, r)
}

func (s *site) do(t *testing.T, client *http.Client, r *http.Request) (int, string) {
	t.Helper()
	resp, err := client.Do(r)
	require.NoError(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, string(text)
}

// withParam returns the header that carries param.
func withParam(param string) http.Header { return http.Header{"Captcha-Verify-Param": {param}} }

// gateLike returns a gate of package alicaptcha with the settings of SERVICE.
func gateLike(t *testing.T, service *alicaptchatest.Server) *alicaptcha.Middleware {
	t.Helper()
	m, err := alicaptcha.New(alicaptcha.Config{
		Verifier: service.Client(), SceneID: "login", Logger: slog.New(slog.DiscardHandler),
	})
	require.NoError(t, err)
	return m
}

func mustJSON(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(text)
}
