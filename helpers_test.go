package alicaptcha_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aliyun/credentials-go/credentials"
	"github.com/stretchr/testify/require"
	"golang.org/x/time/rate"

	"github.com/alicaptcha/alicaptcha"
)

// param is what the tests of the middleware send; what it means is the Verifier's matter.
const param = "a-param-that-must-not-be-logged"

// A spy is a Verifier that records what it was asked and answers by do.
type spy struct {
	mu   sync.Mutex
	seen []alicaptcha.Request
	do   func(ctx context.Context, req alicaptcha.Request) (alicaptcha.Result, error)
}

func (s *spy) Verify(ctx context.Context, req alicaptcha.Request) (alicaptcha.Result, error) {
	s.mu.Lock()
	s.seen = append(s.seen, req)
	s.mu.Unlock()
	return s.do(ctx, req)
}

func (s *spy) asked() []alicaptcha.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]alicaptcha.Request(nil), s.seen...)
}

// params returns the params that s was asked about.
func (s *spy) params() []string {
	var params []string
	for _, req := range s.asked() {
		params = append(params, req.Param)
	}
	return params
}

// answering returns a Verifier that always gives that answer.
func answering(result alicaptcha.Result, err error) *spy {
	return &spy{do: func(context.Context, alicaptcha.Request) (alicaptcha.Result, error) { return result, err }}
}

func passing() *spy { return answering(alicaptcha.Result{Passed: true, Code: alicaptcha.T001}, nil) }

// hooked returns a spy's do that passes everything that hook has nothing against.
func hooked(hook func(ctx context.Context) error) func(context.Context, alicaptcha.Request) (alicaptcha.Result, error) {
	return func(ctx context.Context, _ alicaptcha.Request) (alicaptcha.Result, error) {
		if err := hook(ctx); err != nil {
			return alicaptcha.Result{}, err
		}
		return alicaptcha.Result{Passed: true, Code: alicaptcha.T001}, nil
	}
}

// A logbook is a slog.Handler that keeps its records.
type logbook struct {
	mu      sync.Mutex
	records []slog.Record
}

func (l *logbook) Enabled(context.Context, slog.Level) bool { return true }

func (l *logbook) WithAttrs([]slog.Attr) slog.Handler { return l }

func (l *logbook) WithGroup(string) slog.Handler { return l }

func (l *logbook) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.records = append(l.records, r)
	return nil
}

func (l *logbook) levels() []slog.Level {
	l.mu.Lock()
	defer l.mu.Unlock()
	var levels []slog.Level
	for _, r := range l.records {
		levels = append(levels, r.Level)
	}
	return levels
}

func (l *logbook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var b strings.Builder
	for _, r := range l.records {
		fmt.Fprintf(&b, "%s %s", r.Level, r.Message)
		r.Attrs(func(a slog.Attr) bool { fmt.Fprintf(&b, " %s=%v", a.Key, a.Value); return true })
		b.WriteByte('\n')
	}
	return b.String()
}

// A trial is one request through one gate, and all that can be seen of it.
type trial struct {
	*httptest.ResponseRecorder
	called   bool               // the handler was
	inside   alicaptcha.Outcome // what the handler found in its context
	observed []alicaptcha.Outcome
	log      *logbook
}

// try sends r through a gate of cfg. SceneID, Logger and Observe are set for it
// where cfg has none.
func try(t *testing.T, cfg alicaptcha.Config, r *http.Request) *trial {
	t.Helper()
	tr := &trial{ResponseRecorder: httptest.NewRecorder(), log: new(logbook)}
	if cfg.SceneID == "" && cfg.SceneIDFunc == nil && !cfg.AnyScene {
		cfg.SceneID = "login"
	}
	cfg.Logger = slog.New(tr.log)
	cfg.Observe = func(_ context.Context, o alicaptcha.Outcome) { tr.observed = append(tr.observed, o) }
	m, err := alicaptcha.New(cfg)
	require.NoError(t, err)
	m.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tr.called = true
		tr.inside, _ = alicaptcha.FromContext(r.Context())
		w.WriteHeader(http.StatusNoContent)
	})).ServeHTTP(tr, r)
	return tr
}

// outcome returns the only one that was observed.
func (tr *trial) outcome(t *testing.T) alicaptcha.Outcome {
	t.Helper()
	require.Len(t, tr.observed, 1)
	return tr.observed[0]
}

func jsonRequest(body string) *http.Request {
	r := httptest.NewRequest("POST", "/login", strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	return r
}

func loginRequest() *http.Request {
	return jsonRequest(`{"username":"alice","captchaVerifyParam":"` + param + `"}`)
}

// reason returns the member of that name in a problem+json body.
func reason(t *testing.T, w *httptest.ResponseRecorder) string {
	t.Helper()
	require.Equal(t, "application/problem+json", w.Header().Get("Content-Type"))
	var body struct{ Reason string }
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &body))
	return body.Reason
}

// quietDefault puts a logbook in the place of slog's default for the test.
func quietDefault(t *testing.T) *logbook {
	log, before := new(logbook), slog.Default()
	slog.SetDefault(slog.New(log))
	t.Cleanup(func() { slog.SetDefault(before) })
	return log
}

// openEverything opens what a Policy can open.
func openEverything() alicaptcha.Policy {
	all := alicaptcha.AllowAtMost(rate.NewLimiter(rate.Inf, 0))
	return alicaptcha.Policy{
		alicaptcha.ServiceTimeout: all, alicaptcha.ServiceUnavailable: all, alicaptcha.Misconfigured: all,
		alicaptcha.T005: alicaptcha.Allow(), alicaptcha.F001: alicaptcha.Allow(),
	}
}

// newMiddleware returns a Middleware of cfg that logs nothing, for the scene "login"
// if cfg has none.
func newMiddleware(t *testing.T, cfg alicaptcha.Config) *alicaptcha.Middleware {
	t.Helper()
	if cfg.SceneID == "" && cfg.SceneIDFunc == nil {
		cfg.SceneID = "login"
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	m, err := alicaptcha.New(cfg)
	require.NoError(t, err)
	return m
}

// requiring returns a handler that counts what comes past Require.
func requiring(passed *atomic.Int64) http.Handler {
	return requiringAfter(func(context.Context) {}, passed)
}

// bothWays runs a test whose handlers begin without effect, and one in which they call
// Begin.
func bothWays(t *testing.T, test func(t *testing.T, begin func(context.Context))) {
	t.Run("asked", func(t *testing.T) { test(t, func(context.Context) {}) })
	t.Run("begun", func(t *testing.T) { test(t, alicaptcha.Begin) })
}

// requiringAfter is requiring, where begin is called first.
func requiringAfter(begin func(context.Context), passed *atomic.Int64) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begin(r.Context())
		if alicaptcha.Require(w, r) {
			passed.Add(1)
		}
	})
}

// contextHandler is a slog.Handler that is called with the context of each record.
type contextHandler func(context.Context)

func (contextHandler) Enabled(context.Context, slog.Level) bool { return true }

func (f contextHandler) Handle(ctx context.Context, _ slog.Record) error {
	f(ctx)
	return nil
}

func (f contextHandler) WithAttrs([]slog.Attr) slog.Handler { return f }

func (f contextHandler) WithGroup(string) slog.Handler { return f }

// limiterFunc is a function that is a Limiter.
type limiterFunc func() bool

func (f limiterFunc) Allow() bool { return f() }

func TestMain(m *testing.M) {
	// The environment of whoever runs the tests must not decide them.
	for _, name := range []string{
		"ALIBABA_CLOUD_ACCESS_KEY_ID", "ALIBABA_CLOUD_ACCESS_KEY_SECRET", "ALIBABA_CLOUD_SECURITY_TOKEN", "DEBUG",
	} {
		os.Unsetenv(name)
	}
	if os.Getenv(childTask) != "" {
		beChild()
		return
	}
	slog.SetDefault(slog.New(slog.DiscardHandler)) // else the lines of gates without a Logger bury a test's failure
	os.Exit(m.Run())
}

// What must never be seen in a log or an error.
const (
	keyID         = "LTAI5tClientTestKeyId"
	keySecret     = "client-secret-hunter2"
	stsToken      = "client-sts-token/hunter3+=="
	secretParam   = `{"certifyId":"x","data":"client-param-hunter4"}`
	secretMessage = "client-message-hunter5"
)

var secretWords = []string{"hunter", keyID, "client-param", "client-message"}

// passAnswer is the service's answer to a good param.
const passAnswer = `{"RequestId":"R-1","Message":"success","Code":"Success","Success":true,` +
	`"Result":{"VerifyResult":true,"VerifyCode":"T001","CertifyId":"C-1"}}`

// answerWith is an answer in which only Result is of interest.
func answerWith(result string) string {
	return `{"RequestId":"R-1","Message":"` + secretMessage + `","Code":"Success","Success":true,"Result":` + result + `}`
}

// testGuard is how long a test waits for what must happen.
const testGuard = 20 * time.Second

type transportFunc func(*http.Request) (*http.Response, error)

func (f transportFunc) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// cannedTransport gives the same answer to each call.
func cannedTransport(status int, body string) transportFunc {
	return func(r *http.Request) (*http.Response, error) {
		io.Copy(io.Discard, r.Body)
		r.Body.Close()
		return &http.Response{
			StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body)), Request: r,
		}, nil
	}
}

func failingTransport(err error) transportFunc {
	return func(*http.Request) (*http.Response, error) { return nil, err }
}

func secretConfig(transport http.RoundTripper) alicaptcha.ClientConfig {
	return alicaptcha.ClientConfig{
		Region: alicaptcha.Mainland, AccessKeyID: keyID, AccessKeySecret: keySecret, SecurityToken: stsToken,
		Transport: transport,
	}
}

func newClient(tb testing.TB, cfg alicaptcha.ClientConfig) *alicaptcha.Client {
	tb.Helper()
	client, err := alicaptcha.NewClient(cfg)
	require.NoError(tb, err)
	require.NotNil(tb, client)
	return client
}

// clientAt returns a Client for a URL, with connections of its own.
func clientAt(t *testing.T, endpoint string, change ...func(*http.Transport)) *alicaptcha.Client {
	t.Helper()
	transport := &http.Transport{MaxIdleConnsPerHost: 512}
	t.Cleanup(transport.CloseIdleConnections)
	for _, f := range change {
		f(transport)
	}
	cfg := secretConfig(transport)
	cfg.Endpoint = endpoint
	return newClient(t, cfg)
}

// askClient verifies secretParam. It ends the test where Verify hangs.
func askClient(t *testing.T, ctx context.Context, client *alicaptcha.Client) (alicaptcha.Result, error) {
	t.Helper()
	type answer struct {
		result alicaptcha.Result
		err    error
	}
	ch := make(chan answer, 1)
	go func() {
		result, err := client.Verify(ctx, alicaptcha.Request{Param: secretParam, SceneID: "login"})
		ch <- answer{result, err}
	}()
	select {
	case a := <-ch:
		return a.result, a.err
	case <-time.After(testGuard):
		require.FailNow(t, "Verify hangs")
		return alicaptcha.Result{}, nil
	}
}

// requireFault requires that err is an *Error with a zero Result, which shows nothing secret.
func requireFault(t *testing.T, result alicaptcha.Result, err error) *alicaptcha.Error {
	t.Helper()
	require.Zero(t, result)
	require.Error(t, err)
	fault, ok := errors.AsType[*alicaptcha.Error](err)
	require.True(t, ok, "%T: %v", err, err)
	require.NotNil(t, fault)
	requireNothingShown(t, err)
	return fault
}

// requireNothingShown looks at all the ways in which a log shows an error.
func requireNothingShown(t *testing.T, err error) {
	t.Helper()
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Error("x", "err", err)
	slog.New(slog.NewJSONHandler(&log, nil)).Error("x", "err", err)
	fmt.Fprintf(&log, "%v %+v %s %q %x", err, err, err, err, err)
	for _, word := range secretWords {
		require.NotContains(t, log.String(), word)
		require.NotContains(t, log.String(), hex.EncodeToString([]byte(word)))
	}
	require.NotContains(t, err.Error(), "\n")
	require.True(t, strings.HasPrefix(err.Error(), "alicaptcha: "), err.Error())
}

// serveRaw serves connections by script until the test ends, and returns their address.
func serveRaw(t *testing.T, script func(conn net.Conn)) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var (
		mu    sync.Mutex
		conns []net.Conn
		wg    sync.WaitGroup
	)
	wg.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, conn)
			mu.Unlock()
			wg.Go(func() {
				defer conn.Close()
				script(conn)
			})
		}
	})
	t.Cleanup(func() {
		listener.Close()
		mu.Lock()
		for _, conn := range conns {
			conn.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return listener.Addr().String()
}

// readCall reads one call from a connection, and reports whether there was one.
func readCall(in *bufio.Reader) bool {
	r, err := http.ReadRequest(in)
	if err != nil {
		return false
	}
	_, err = io.Copy(io.Discard, r.Body)
	return err == nil
}

// serveAnswer serves connections by reading a call and writing raw.
func serveAnswer(t *testing.T, raw string) string {
	return serveRaw(t, func(conn net.Conn) {
		if readCall(bufio.NewReader(conn)) {
			io.WriteString(conn, raw)
		}
	})
}

// tlsConfigs returns a server's and a client's side of a certificate for 127.0.0.1 and example.com.
func tlsConfigs(t *testing.T) (server, client *tls.Config, certificate *x509.Certificate) {
	srv := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(srv.Close)
	roots := x509.NewCertPool()
	roots.AddCert(srv.Certificate())
	return &tls.Config{Certificates: srv.TLS.Certificates}, &tls.Config{RootCAs: roots}, srv.Certificate()
}

// wireAnswer is an answer as it goes over a connection.
func wireAnswer(status int, body string, headers ...string) string {
	return fmt.Sprintf("HTTP/1.1 %03d Status\r\n%sContent-Length: %d\r\nConnection: close\r\n\r\n%s",
		status, strings.Join(headers, ""), len(body), body)
}

// childTask is the environment's name of what beChild is to do: the
// environment's proxy is read once in a process.
const childTask = "ALICAPTCHA_TEST_CHILD"

// runChild runs beChild in a process of its own and returns what it prints.
func runChild(t *testing.T, task string, env ...string) string {
	t.Helper()
	path, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), path)
	for _, pair := range os.Environ() {
		name, _, _ := strings.Cut(strings.ToUpper(pair), "=")
		if !strings.HasSuffix(name, "_PROXY") && name != "REQUEST_METHOD" {
			cmd.Env = append(cmd.Env, pair)
		}
	}
	cmd.Env = append(append(cmd.Env, childTask+"="+task), env...)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	require.Contains(t, string(out), "child:")
	return string(out)
}

// beChild does what the environment says, in a process of its own; see TestMain.
func beChild() {
	task, endpoint, _ := strings.Cut(os.Getenv(childTask), " ")
	cfg := alicaptcha.ClientConfig{Endpoint: endpoint, AccessKeyID: "test-id", AccessKeySecret: "test-secret"}
	switch task {
	case "unset":
		os.Unsetenv("DEBUG")
	case "set":
		os.Setenv("DEBUG", "dara")
	case "credential":
		cfg = alicaptcha.ClientConfig{Endpoint: endpoint, Credential: givingKeys(keyModel("test-id", "test-secret", ""), nil)}
	}
	client, err := alicaptcha.NewClient(cfg)
	if task != "verify" || err != nil {
		fmt.Printf("child: %v\n", err)
		return
	}
	for range 3 {
		result, err := client.Verify(context.Background(), alicaptcha.Request{Param: "junk", SceneID: "login"})
		fmt.Printf("child: %s %v\n", result.Code, err)
	}
}

// keySource is a Credential. The SDK may ask it for nothing but GetCredential.
type keySource struct {
	credentials.Credential
	get func() (*credentials.CredentialModel, error)
}

func (s *keySource) GetCredential() (*credentials.CredentialModel, error) { return s.get() }

func keyModel(id, secret, token string) *credentials.CredentialModel {
	return &credentials.CredentialModel{
		AccessKeyId: &id, AccessKeySecret: &secret, SecurityToken: &token, Type: new("sts"),
	}
}

func givingKeys(model *credentials.CredentialModel, err error) *keySource {
	return &keySource{get: func() (*credentials.CredentialModel, error) { return model, err }}
}
