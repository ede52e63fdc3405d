package alicaptcha_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aliyun/credentials-go/credentials"
	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

// What must never be seen in a log or an error.
const (
	clientID      = "LTAI5tClientTestKeyId"
	clientSecret  = "client-secret-hunter2"
	clientSTS     = "client-sts-token/hunter3+=="
	clientParam   = `{"certifyId":"x","data":"client-param-hunter4"}`
	clientMessage = "client-message-hunter5"
)

var clientWords = []string{"hunter", clientID, "client-param", "client-message"}

// clientPass is the service's answer to a good param.
const clientPass = `{"RequestId":"R-1","Message":"success","Code":"Success","Success":true,"Result":{"VerifyResult":true,"VerifyCode":"T001","CertifyId":"C-1"}}`

// clientDoc is an answer in which only Result is of interest.
func clientDoc(result string) string {
	return `{"RequestId":"R-1","Message":"` + clientMessage + `","Code":"Success","Success":true,"Result":` + result + `}`
}

// clientGuard is how long a test waits for what must happen.
const clientGuard = 20 * time.Second

type clientTransport func(*http.Request) (*http.Response, error)

func (f clientTransport) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// clientCanned gives the same answer to each call.
func clientCanned(status int, body string) clientTransport {
	return func(r *http.Request) (*http.Response, error) {
		io.Copy(io.Discard, r.Body)
		r.Body.Close()
		return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
	}
}

func clientFailing(err error) clientTransport {
	return func(*http.Request) (*http.Response, error) { return nil, err }
}

func clientConfig(transport http.RoundTripper) alicaptcha.ClientConfig {
	return alicaptcha.ClientConfig{
		Region: alicaptcha.Mainland, AccessKeyID: clientID, AccessKeySecret: clientSecret, SecurityToken: clientSTS, Transport: transport,
	}
}

func clientNew(tb testing.TB, cfg alicaptcha.ClientConfig) *alicaptcha.Client {
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
	cfg := clientConfig(transport)
	cfg.Endpoint = endpoint
	return clientNew(t, cfg)
}

// clientAsk verifies clientParam. It ends the test where Verify hangs.
func clientAsk(t *testing.T, ctx context.Context, client *alicaptcha.Client) (alicaptcha.Result, error) {
	t.Helper()
	type answer struct {
		result alicaptcha.Result
		err    error
	}
	ch := make(chan answer, 1)
	go func() {
		result, err := client.Verify(ctx, alicaptcha.Request{Param: clientParam, SceneID: "login"})
		ch <- answer{result, err}
	}()
	select {
	case a := <-ch:
		return a.result, a.err
	case <-time.After(clientGuard):
		require.FailNow(t, "Verify hangs")
		return alicaptcha.Result{}, nil
	}
}

// clientFault requires that err is an *Error with a zero Result, which shows nothing secret.
func clientFault(t *testing.T, result alicaptcha.Result, err error) *alicaptcha.Error {
	t.Helper()
	require.Zero(t, result)
	require.Error(t, err)
	fault, ok := errors.AsType[*alicaptcha.Error](err)
	require.True(t, ok, "%T: %v", err, err)
	require.NotNil(t, fault)
	clientShowsNothing(t, err)
	return fault
}

// clientShowsNothing looks at all the ways in which a log shows an error.
func clientShowsNothing(t *testing.T, err error) {
	t.Helper()
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Error("x", "err", err)
	slog.New(slog.NewJSONHandler(&log, nil)).Error("x", "err", err)
	fmt.Fprintf(&log, "%v %+v %s %q %x", err, err, err, err, err)
	for _, word := range clientWords {
		require.NotContains(t, log.String(), word)
		require.NotContains(t, log.String(), hex.EncodeToString([]byte(word)))
	}
	require.NotContains(t, err.Error(), "\n")
	require.True(t, strings.HasPrefix(err.Error(), "alicaptcha: "), err.Error())
}

// clientRaw serves connections by script until the test ends, and returns their address.
func clientRaw(t *testing.T, script func(conn net.Conn)) string {
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

// clientReadCall reads one call from a connection, and reports whether there was one.
func clientReadCall(in *bufio.Reader) bool {
	r, err := http.ReadRequest(in)
	if err != nil {
		return false
	}
	_, err = io.Copy(io.Discard, r.Body)
	return err == nil
}

// clientWriting serves connections by reading a call and writing raw.
func clientWriting(t *testing.T, raw string) string {
	return clientRaw(t, func(conn net.Conn) {
		if clientReadCall(bufio.NewReader(conn)) {
			io.WriteString(conn, raw)
		}
	})
}

// clientTLS returns a server's and a client's side of a certificate for 127.0.0.1 and example.com.
func clientTLS(t *testing.T) (server, client *tls.Config, certificate *x509.Certificate) {
	srv := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(srv.Close)
	roots := x509.NewCertPool()
	roots.AddCert(srv.Certificate())
	return &tls.Config{Certificates: srv.TLS.Certificates}, &tls.Config{RootCAs: roots}, srv.Certificate()
}

// ---- NewClient

// clientSource is a Credential. The SDK may ask it for nothing but GetCredential.
type clientSource struct {
	credentials.Credential
	get func() (*credentials.CredentialModel, error)
}

func (s *clientSource) GetCredential() (*credentials.CredentialModel, error) { return s.get() }

func clientModel(id, secret, token string) *credentials.CredentialModel {
	return &credentials.CredentialModel{AccessKeyId: &id, AccessKeySecret: &secret, SecurityToken: &token, Type: new("sts")}
}

func clientGiving(model *credentials.CredentialModel, err error) *clientSource {
	return &clientSource{get: func() (*credentials.CredentialModel, error) { return model, err }}
}

// errClientSource is of another library and shows what it should not.
var errClientSource = errors.New("the STS endpoint answered client-secret-hunter2")

func TestNewClientFaults(t *testing.T) {
	for _, name := range []string{"ALIBABA_CLOUD_ACCESS_KEY_ID", "ALIBABA_CLOUD_ACCESS_KEY_SECRET", "ALIBABA_CLOUD_SECURITY_TOKEN", "DEBUG"} {
		t.Setenv(name, "")
	}
	type config = alicaptcha.ClientConfig
	bearer, err := credentials.NewCredential(new(credentials.Config).SetType("bearer").SetBearerToken("bearer-hunter"))
	require.NoError(t, err)
	for name, tc := range map[string]struct {
		change func(*config)
		env    map[string]string
		want   []string // in the text
	}{
		"no region":                       {change: func(c *config) { c.Region = "" }, want: []string{"Region"}},
		"another region":                  {change: func(c *config) { c.Region = "cn-shanghai" }, want: []string{"Region", "cn", "sgp"}},
		"a region in capitals":            {change: func(c *config) { c.Region = "CN" }, want: []string{"Region"}},
		"another region and an endpoint":  {change: func(c *config) { c.Region, c.Endpoint = "eu", "example.com" }, want: []string{"Region"}},
		"endpoint":                        {change: func(c *config) { c.Endpoint = "http://example.com" }, want: []string{"Endpoint", "https"}},
		"no keys":                         {change: func(c *config) { c.AccessKeyID, c.AccessKeySecret, c.SecurityToken = "", "", "" }, want: []string{"AccessKeyID", "AccessKeySecret", "ALIBABA_CLOUD_ACCESS_KEY_ID", "ALIBABA_CLOUD_ACCESS_KEY_SECRET"}},
		"no id":                           {change: func(c *config) { c.AccessKeyID = "" }, want: []string{"AccessKeyID is missing"}},
		"no secret":                       {change: func(c *config) { c.AccessKeySecret = "" }, want: []string{"AccessKeySecret is missing"}},
		"a token alone":                   {change: func(c *config) { c.AccessKeyID, c.AccessKeySecret = "", "" }, want: []string{"AccessKeyID is missing", "AccessKeySecret is missing"}},
		"half given, the other half env":  {change: func(c *config) { c.AccessKeySecret = "" }, env: map[string]string{"ALIBABA_CLOUD_ACCESS_KEY_ID": "env", "ALIBABA_CLOUD_ACCESS_KEY_SECRET": "hunter"}, want: []string{"AccessKeySecret is missing"}},
		"id with a space":                 {change: func(c *config) { c.AccessKeyID += " " }, want: []string{"AccessKeyID has white space"}},
		"secret with a newline":           {change: func(c *config) { c.AccessKeySecret += "\n" }, want: []string{"AccessKeySecret has white space"}},
		"secret with a CR":                {change: func(c *config) { c.AccessKeySecret += "\r" }, want: []string{"AccessKeySecret"}},
		"secret with a tab before":        {change: func(c *config) { c.AccessKeySecret = "\t" + c.AccessKeySecret }, want: []string{"AccessKeySecret"}},
		"secret with a space that breaks": {change: func(c *config) { c.AccessKeySecret += "\u00a0" }, want: []string{"AccessKeySecret"}},
		"secret with a zero-width space":  {change: func(c *config) { c.AccessKeySecret += "\u200b" }, want: []string{"AccessKeySecret"}},
		"secret with a BOM":               {change: func(c *config) { c.AccessKeySecret = "\ufeff" + c.AccessKeySecret }, want: []string{"AccessKeySecret"}},
		"secret that is not UTF-8":        {change: func(c *config) { c.AccessKeySecret += "\xff" }, want: []string{"AccessKeySecret"}},
		"secret of white space":           {change: func(c *config) { c.AccessKeySecret = "  " }, want: []string{"AccessKeySecret"}},
		"token with a newline":            {change: func(c *config) { c.SecurityToken += "\n" }, want: []string{"SecurityToken has white space"}},
		"id of the environment alone": {
			change: func(c *config) { c.AccessKeyID, c.AccessKeySecret, c.SecurityToken = "", "", "" },
			env:    map[string]string{"ALIBABA_CLOUD_ACCESS_KEY_ID": clientID}, want: []string{"ALIBABA_CLOUD_ACCESS_KEY_SECRET) is missing"},
		},
		"secret of the environment alone": {
			change: func(c *config) { c.AccessKeyID, c.AccessKeySecret, c.SecurityToken = "", "", "" },
			env:    map[string]string{"ALIBABA_CLOUD_ACCESS_KEY_SECRET": clientSecret}, want: []string{"ALIBABA_CLOUD_ACCESS_KEY_ID) is missing"},
		},
		"token of the environment alone": {
			change: func(c *config) { c.AccessKeyID, c.AccessKeySecret, c.SecurityToken = "", "", "" },
			env:    map[string]string{"ALIBABA_CLOUD_SECURITY_TOKEN": clientSTS}, want: []string{"ALIBABA_CLOUD_ACCESS_KEY_ID) is missing", "ALIBABA_CLOUD_ACCESS_KEY_SECRET) is missing"},
		},
		"newlines in the environment": {
			change: func(c *config) { c.AccessKeyID, c.AccessKeySecret, c.SecurityToken = "", "", "" },
			env:    map[string]string{"ALIBABA_CLOUD_ACCESS_KEY_ID": clientID + "\n", "ALIBABA_CLOUD_ACCESS_KEY_SECRET": clientSecret + "\n", "ALIBABA_CLOUD_SECURITY_TOKEN": clientSTS + "\n"},
			want:   []string{"ALIBABA_CLOUD_ACCESS_KEY_ID) has white space", "ALIBABA_CLOUD_ACCESS_KEY_SECRET) has white space", "ALIBABA_CLOUD_SECURITY_TOKEN) has white space"},
		},
		"typed nil Credential":        {change: func(c *config) { c.Credential = (*clientSource)(nil) }, want: []string{"Credential is a nil"}},
		"typed nil Transport":         {change: func(c *config) { c.Transport = (*http.Transport)(nil) }, want: []string{"Transport is a nil"}},
		"nil func as Transport":       {change: func(c *config) { c.Transport = clientTransport(nil) }, want: []string{"Transport is a nil"}},
		"failing Credential":          {change: func(c *config) { c.Credential = clientGiving(nil, errClientSource) }, want: []string{"Credential", "misconfigured"}},
		"Credential without a model":  {change: func(c *config) { c.Credential = clientGiving(nil, nil) }, want: []string{"Credential", "no AccessKey pair"}},
		"Credential without keys":     {change: func(c *config) { c.Credential = clientGiving(&credentials.CredentialModel{}, nil) }, want: []string{"Credential", "misconfigured"}},
		"Credential with empty keys":  {change: func(c *config) { c.Credential = clientGiving(clientModel("", "", clientSTS), nil) }, want: []string{"Credential", "misconfigured"}},
		"Credential without a secret": {change: func(c *config) { c.Credential = clientGiving(clientModel(clientID, "", clientSTS), nil) }, want: []string{"Credential", "misconfigured"}},
		"Credential without an id":    {change: func(c *config) { c.Credential = clientGiving(clientModel("", clientSecret, ""), nil) }, want: []string{"Credential", "misconfigured"}},
		"bearer Credential":           {change: func(c *config) { c.Credential = bearer }, want: []string{"Credential", "misconfigured"}},
		"panicking Credential": {
			change: func(c *config) {
				c.Credential = &clientSource{get: func() (*credentials.CredentialModel, error) { panic("client-secret-hunter2") }}
			}, want: []string{"Credential", "misconfigured"},
		},
		// A key that a file brought along with its last line break would end each call in net/http.
		"Credential with a newline in the id":     {change: func(c *config) { c.Credential = clientGiving(clientModel(clientID+"\n", clientSecret, ""), nil) }, want: []string{"Credential"}},
		"Credential with a newline in the secret": {change: func(c *config) { c.Credential = clientGiving(clientModel(clientID, clientSecret+"\n", ""), nil) }, want: []string{"Credential"}},
		"Credential with a newline in the token":  {change: func(c *config) { c.Credential = clientGiving(clientModel(clientID, clientSecret, clientSTS+"\n"), nil) }, want: []string{"Credential"}},
		// The SDK would send the one without a signature, the other with the token in a header of another scheme.
		"Credential of type bearer with keys": {
			change: func(c *config) {
				model := clientModel(clientID, clientSecret, "")
				model.Type, model.BearerToken = new("bearer"), new("bearer-hunter")
				c.Credential = clientGiving(model, nil)
			}, want: []string{"Credential"},
		},
		"Credential of type id_token with keys": {
			change: func(c *config) {
				model := clientModel(clientID, clientSecret, clientSTS)
				model.Type = new("id_token")
				c.Credential = clientGiving(model, nil)
			}, want: []string{"Credential"},
		},
		"everything at one time": {
			change: func(c *config) {
				*c = config{Region: "eu", Endpoint: "ftp://example.com", AccessKeyID: "a b", Transport: (*http.Transport)(nil)}
			},
			want: []string{"Region", "Endpoint", "AccessKeyID has", "AccessKeySecret is missing", "Transport"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			for name, value := range tc.env {
				t.Setenv(name, value)
			}
			cfg := clientConfig(clientFailing(errors.New("nothing may be sent")))
			tc.change(&cfg)
			client, err := alicaptcha.NewClient(cfg)
			require.Error(t, err)
			require.Nil(t, client)
			for _, want := range tc.want {
				require.ErrorContains(t, err, want)
			}
			for line := range strings.Lines(err.Error()) {
				require.True(t, strings.HasPrefix(line, "alicaptcha: "), line)
			}
			for _, word := range clientWords {
				require.NotContains(t, err.Error(), word)
			}
		})
	}
}

// The SDK reads DEBUG when the program starts, so that is what counts, and not what
// the program has made of it since.
func TestNewClientDebug(t *testing.T) {
	for _, row := range []struct {
		task, atStart string
		want          string // empty: no fault
	}{
		{"new https://captcha.example", "dara", "DEBUG=dara"},
		{"new https://captcha.example", "sdk,dara,x", "DEBUG=dara"},
		{"unset https://captcha.example", "dara", "DEBUG=dara"},
		{"credential https://captcha.example", "credential", "DEBUG=credential"},
		{"new https://captcha.example", "credential,express:*", ""}, // without a Credential nobody prints keys
		{"set https://captcha.example", "", ""},
	} {
		out := clientRunChild(t, row.task, "DEBUG="+row.atStart)
		if row.want == "" {
			require.Contains(t, out, "child: <nil>", "%+v", row)
			continue
		}
		require.Contains(t, out, "started with "+row.want, "%+v", row)
		require.NotContains(t, out, "child: <nil>")
	}
}

// A key may hold any printable ASCII but the space, its first and its last too.
func TestNewClientCharactersOfKeys(t *testing.T) {
	for _, r := range []rune{'!', '~', '+', '/', '=', ' ', '\n', '\t', 0, 0x1f, 0x7f, 0x80, 'é', '密'} {
		good := r > ' ' && r <= '~'
		odd := "a" + string(r) + "b"
		for i := range 3 {
			keys := []string{clientID, clientSecret, clientSTS}
			keys[i] = odd
			cfg := clientConfig(clientCanned(200, clientPass))
			cfg.AccessKeyID, cfg.AccessKeySecret, cfg.SecurityToken = keys[0], keys[1], keys[2]
			_, err := alicaptcha.NewClient(cfg)
			require.Equal(t, good, err == nil, "%q: %v", r, err)

			cfg = clientConfig(clientCanned(200, clientPass))
			cfg.Credential = clientGiving(clientModel(keys[0], keys[1], keys[2]), nil)
			_, err = alicaptcha.NewClient(cfg)
			require.Equal(t, good, err == nil, "%q: %v", r, err)
		}
	}
}

func TestNewClientCredentialsErrorCanBeAskedFor(t *testing.T) {
	cfg := clientConfig(nil)
	cfg.Credential = clientGiving(nil, errClientSource)
	_, err := alicaptcha.NewClient(cfg)
	require.ErrorIs(t, err, errClientSource)
	fault, ok := errors.AsType[*alicaptcha.Error](err)
	require.True(t, ok)
	require.Equal(t, alicaptcha.Misconfigured, fault.Code)
}

func TestNewClientEndpoints(t *testing.T) {
	const mainland, international = "captcha.cn-shanghai.aliyuncs.com", "captcha.ap-southeast-1.aliyuncs.com"
	for _, tc := range []struct {
		region   alicaptcha.Region
		endpoint string
		scheme   string // empty: refused
		host     string
	}{
		{"cn", "", "https", mainland},
		{"sgp", "", "https", international},
		{"cn", international, "https", international},
		{"", "captcha-dualstack.cn-shanghai.aliyuncs.com", "https", "captcha-dualstack.cn-shanghai.aliyuncs.com"},
		{"", "Captcha.Example", "https", "Captcha.Example"},
		{"", "example.com:8443", "https", "example.com:8443"},
		{"", "https://example.com", "https", "example.com"},
		{"", "https://example.com/", "https", "example.com"},
		{"", "HTTPS://example.com:443", "https", "example.com:443"},
		{"", "https://127.0.0.1:8443", "https", "127.0.0.1:8443"},
		{"", "10.0.0.1", "https", "10.0.0.1"},
		{"", "[::1]:8443", "https", "[::1]:8443"},
		{"", "https://[2001:db8::1]", "https", "[2001:db8::1]"},
		{"", "http://127.0.0.1", "http", "127.0.0.1"},
		{"", "http://127.0.0.1:8081/", "http", "127.0.0.1:8081"},
		{"", "http://127.255.255.254:1", "http", "127.255.255.254:1"},
		{"", "http://[::1]:8081", "http", "[::1]:8081"},
		{"", "http://[::ffff:127.0.0.1]:8081", "http", "[::ffff:127.0.0.1]:8081"},
		{"", "http://localhost", "http", "localhost"},
		{"", "http://LocalHost:65535", "http", "LocalHost:65535"},

		{endpoint: "http://example.com"},
		{endpoint: "http://captcha.cn-shanghai.aliyuncs.com"},
		{endpoint: "http://10.0.0.1"},
		{endpoint: "http://0.0.0.0:80"},
		{endpoint: "http://[::]:80"},
		{endpoint: "http://128.0.0.1"},
		{endpoint: "http://127.0.0.1.example.com"},
		{endpoint: "http://localhost.example.com"},
		{endpoint: "http://127.1"},
		{endpoint: "http://2130706433"},
		{endpoint: "http://[::1%25lo]:80"},
		{endpoint: "https://user:hunter2@example.com"},
		{endpoint: "https://user@example.com"},
		{endpoint: "user:hunter2@example.com"},
		{endpoint: "http://user:hunter2@127.0.0.1"},
		{endpoint: "http://127.0.0.1:80@example.com"},
		{endpoint: "https://user:hunter2@exa mple.com"},
		{endpoint: "https://user:hunter2@example.com:port"},
		{endpoint: "https://user:hunter2%zz@example.com"},
		{endpoint: "https://@example.com"},
		{endpoint: "https://example.com/path"},
		{endpoint: "https://example.com//"},
		{endpoint: "https://example.com/%2f"},
		{endpoint: "example.com/path"},
		{endpoint: "https://example.com?"},
		{endpoint: "https://example.com?hunter=2"},
		{endpoint: "example.com?hunter2"},
		{endpoint: "https://example.com#hunter2"},
		{endpoint: "https://example.com:"},
		{endpoint: "https://example.com:0"},
		{endpoint: "https://example.com:65536"},
		{endpoint: "https://example.com:99999999999999999999"},
		{endpoint: "https://example.com:-1"},
		{endpoint: "https://example.com:http"},
		{endpoint: "https://example.com:80:80"},
		{endpoint: "https://"},
		{endpoint: "http://"},
		{endpoint: "://example.com"},
		{endpoint: "//example.com"},
		{endpoint: "https:example.com"},
		{endpoint: "https:///"},
		{endpoint: "https://:443"},
		{endpoint: ":443"},
		{endpoint: "/"},
		{endpoint: " "},
		{endpoint: "\n"},
		{endpoint: " example.com"},
		{endpoint: "example.com "},
		{endpoint: "example.com\n"},
		{endpoint: "example.com\r\nX-Hunter: 2"},
		{endpoint: "exa mple.com"},
		{endpoint: "exam\x00ple.com"},
		{endpoint: "example.com,evil.example"},
		{endpoint: "example.com;evil"},
		{endpoint: "example.com\\evil"},
		{endpoint: "exämple.com"},
		{endpoint: "ｅxample.com"},
		{endpoint: "exam%70le.com"},
		{endpoint: "exam%00ple.com"},
		{endpoint: "<script>"},
		{endpoint: "*.example.com"},
		{endpoint: "$(hostname)"},
		{endpoint: "::1"},
		{endpoint: "https://::1"},
		{endpoint: "https://[::1"},
		{endpoint: "https://[example.com]"},
		{endpoint: "https://[]"},
		{endpoint: "\xff\xfe"},
		{endpoint: "ftp://example.com"},
		{endpoint: "ws://127.0.0.1"},
		{endpoint: "unix:///var/run/x"},
		{endpoint: "file:///etc/passwd"},
		{endpoint: "httpx://127.0.0.1"},
		{region: "cn", endpoint: "http://example.com"},
	} {
		t.Run(fmt.Sprintf("%s %q", tc.region, tc.endpoint), func(t *testing.T) {
			var got *http.Request
			cfg := clientConfig(clientTransport(func(r *http.Request) (*http.Response, error) {
				got = r
				return clientCanned(200, clientPass)(r)
			}))
			cfg.Region, cfg.Endpoint = tc.region, tc.endpoint
			client, err := alicaptcha.NewClient(cfg)
			if tc.scheme == "" {
				require.ErrorContains(t, err, "alicaptcha: ClientConfig.Endpoint ")
				require.Nil(t, client)
				for _, word := range append(clientWords, "user") {
					require.NotContains(t, strings.ReplaceAll(err.Error(), "a user or a password", ""), word)
				}
				require.NotContains(t, err.Error(), "\n")
				return
			}
			require.NoError(t, err)
			require.Equal(t, tc.scheme+"://"+tc.host+"/", client.Endpoint())
			require.Nil(t, got, "NewClient asked the service")
			result, err := clientAsk(t, t.Context(), client)
			require.NoError(t, err)
			require.True(t, result.Passed)
			require.Equal(t, http.MethodPost, got.Method)
			require.Equal(t, tc.scheme+"://"+tc.host+"/", got.URL.String())
			require.Equal(t, tc.host, got.Host)
		})
	}
}

// Nothing is sent by NewClient, not even a connection is made.
func TestNewClientIsQuiet(t *testing.T) {
	var conns atomic.Int64
	addr := clientRaw(t, func(net.Conn) { conns.Add(1) })
	for range 10 {
		clientNew(t, alicaptcha.ClientConfig{Endpoint: "http://" + addr, AccessKeyID: clientID, AccessKeySecret: clientSecret})
	}
	conn, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	io.Copy(io.Discard, conn) // ends when the script has counted this one
	conn.Close()
	require.EqualValues(t, 1, conns.Load())
}

func TestNewClientCopiesItsConfig(t *testing.T) {
	var got *http.Request
	cfg := clientConfig(clientTransport(func(r *http.Request) (*http.Response, error) {
		got = r
		return clientCanned(200, clientPass)(r)
	}))
	client := clientNew(t, cfg)
	cfg.Region, cfg.Endpoint, cfg.AccessKeyID, cfg.Transport = alicaptcha.International, "http://127.0.0.1:1", "other", nil
	_, err := clientAsk(t, t.Context(), client)
	require.NoError(t, err)
	require.Equal(t, "captcha.cn-shanghai.aliyuncs.com", got.Host)
	require.Contains(t, got.Header.Get("Authorization"), "Credential="+clientID+",")
}

func TestClientThatNewClientDidNotMake(t *testing.T) {
	for name, client := range map[string]*alicaptcha.Client{"nil": nil, "zero": {}} {
		t.Run(name, func(t *testing.T) {
			result, err := client.Verify(t.Context(), alicaptcha.Request{Param: clientParam})
			require.Equal(t, alicaptcha.Misconfigured, clientFault(t, result, err).Code)
			require.Error(t, client.Diagnose(t.Context(), "login"))
		})
	}
}

// ---- answers

type clientAnswerRow struct {
	name   string
	status int
	body   string

	code                   alicaptcha.Code
	serviceCode, requestID string
}

// clientNoVerdicts are answers that are no verdict. What looks like a pass in
// them must not become one.
func clientNoVerdicts() []clientAnswerRow {
	const (
		refused     = alicaptcha.RequestRefused
		unavailable = alicaptcha.ServiceUnavailable
		throttled   = alicaptcha.ServiceThrottled
		misconf     = alicaptcha.Misconfigured
	)
	var rows []clientAnswerRow
	add := func(name string, status int, body string, code alicaptcha.Code, serviceCode, requestID string) {
		rows = append(rows, clientAnswerRow{name, status, body, code, serviceCode, requestID})
	}

	// Another status makes a pass none.
	for status, code := range map[int]alicaptcha.Code{
		201: unavailable, 202: unavailable, 203: unavailable, 205: unavailable, 206: unavailable, 226: unavailable, 299: unavailable,
		300: unavailable, 301: unavailable, 302: unavailable, 303: unavailable, 305: unavailable, 307: unavailable, 308: unavailable, 399: unavailable,
		400: refused, 401: refused, 402: refused, 403: refused, 404: refused, 405: refused, 407: refused, 408: refused, 409: refused, 410: refused,
		413: refused, 414: refused, 418: refused, 429: throttled, 431: refused, 451: refused, 499: refused,
		500: unavailable, 501: unavailable, 502: unavailable, 503: unavailable, 504: unavailable, 520: unavailable, 599: unavailable,
		600: unavailable, 700: unavailable, 999: unavailable,
	} {
		add(fmt.Sprintf("%d with a pass", status), status, clientPass, code, "Success", "R-1")
		add(fmt.Sprintf("%d empty", status), status, "", code, "", "")
		add(fmt.Sprintf("%d HTML", status), status, "<html><body><h1>"+clientMessage+"</h1></body></html>", code, "", "")
	}

	// Not one document of the service's form: nothing of it is believed.
	for name, body := range map[string]string{
		"empty": "", "white space": " \n", "null": "null", "true": "true", "number": "200", "string": `"success"`, "text": "success",
		"array": "[]", "array around a pass": "[" + clientPass + "]", "string around a pass": `"{\"Success\":true}"`,
		"HTML": "<!doctype html><title>200</title>", "XML": "<R><Code>Success</Code><Success>true</Success><Result><VerifyResult>true</VerifyResult></Result></R>",
		"XML error with 200":            "<Error><Code>Throttling</Code><RequestId>R-1</RequestId></Error>",
		"truncated by a byte":           clientPass[:len(clientPass)-1],
		"truncated in the middle":       clientPass[:len(clientPass)/2],
		"brace only":                    "{",
		"garbage after":                 clientPass + "x",
		"brace after":                   clientPass + "}",
		"comma after":                   clientPass + ",",
		"NUL after":                     clientPass + "\x00",
		"NUL before":                    "\x00" + clientPass,
		"two documents":                 clientPass + clientPass,
		"two lines":                     clientPass + "\n" + clientPass,
		"null after":                    clientPass + " null",
		"BOM":                           "\ufeff" + clientPass,
		"UTF-16":                        "{\x00\"\x00",
		"XSSI prefix":                   ")]}'\n" + clientPass,
		"comment":                       "/* */" + clientPass,
		"comma at the end":              strings.Replace(clientPass, `"C-1"}`, `"C-1",}`, 1),
		"single quotes":                 strings.ReplaceAll(clientPass, `"`, `'`),
		"control character in a string": clientDoc("{\"VerifyResult\":true,\"CertifyId\":\"a\nb\"}"),
		"deep nesting":                  strings.Replace(clientPass, `{"RequestId"`, `{"x":`+strings.Repeat("[", 20000)+strings.Repeat("]", 20000)+`,"RequestId"`, 1),
		"deep nesting, not closed":      `{"x":` + strings.Repeat(`{"x":`, 10500),

		"Code twice":                      `{"Code":"Success","Code":"Success","Success":true,"Result":{"VerifyResult":true,"VerifyCode":"T001"}}`,
		"Success twice":                   `{"Code":"Success","Success":false,"Success":true,"Result":{"VerifyResult":true,"VerifyCode":"T001"}}`,
		"Result twice":                    `{"Code":"Success","Success":true,"Result":{"VerifyResult":false,"VerifyCode":"F001"},"Result":{"VerifyResult":true,"VerifyCode":"T001"}}`,
		"Result twice, once null":         `{"Code":"Success","Success":true,"Result":{"VerifyResult":true,"VerifyCode":"T001"},"Result":null}`,
		"RequestId twice":                 `{"RequestId":"R-1","RequestId":"R-2","Code":"Success","Success":true,"Result":{"VerifyResult":true}}`,
		"Message twice":                   `{"Message":"a","Message":"b","Code":"Success","Success":true,"Result":{"VerifyResult":true}}`,
		"unknown twice":                   `{"x":1,"x":2,"Code":"Success","Success":true,"Result":{"VerifyResult":true}}`,
		"unknown twice inside":            `{"x":{"y":1,"y":2},"Code":"Success","Success":true,"Result":{"VerifyResult":true}}`,
		"Result twice by an escape":       `{"Code":"Success","Success":true,"Result":{"VerifyResult":false},"\u0052esult":{"VerifyResult":true}}`,
		"VerifyResult twice":              clientDoc(`{"VerifyResult":false,"VerifyResult":true,"VerifyCode":"T001"}`),
		"VerifyResult twice, the same":    clientDoc(`{"VerifyResult":true,"VerifyResult":true}`),
		"VerifyResult twice by an escape": clientDoc(`{"VerifyResult":false,"Verify\u0052esult":true}`),
		"VerifyCode twice":                clientDoc(`{"VerifyResult":true,"VerifyCode":"F001","VerifyCode":"T001"}`),
		"CertifyId twice":                 clientDoc(`{"VerifyResult":true,"CertifyId":"a","CertifyId":"b"}`),

		"code beside Code":           `{"Code":"Success","code":"Fail","Success":true,"Result":{"VerifyResult":true,"VerifyCode":"T001"}}`,
		"CODE beside Code":           `{"CODE":"Fail","Code":"Success","Success":true,"Result":{"VerifyResult":true,"VerifyCode":"T001"}}`,
		"success beside Success":     `{"Code":"Success","success":false,"Success":true,"Result":{"VerifyResult":true,"VerifyCode":"T001"}}`,
		"result beside Result":       `{"Code":"Success","Success":true,"Result":{"VerifyResult":true},"result":{"VerifyResult":false}}`,
		"Re\u017fult beside Result":  `{"Code":"Success","Success":true,"Result":{"VerifyResult":true},"Re` + "\u017f" + `ult":{"VerifyResult":false}}`,
		"requestid beside RequestId": `{"RequestId":"R-1","requestid":"R-2","Code":"Success","Success":true,"Result":{"VerifyResult":true}}`,
		"requestID alone":            `{"RequestID":"R-1","Code":"Success","Success":true,"Result":{"VerifyResult":true}}`,
		"message alone":              `{"message":"success","Code":"Success","Success":true,"Result":{"VerifyResult":true}}`,
		"all in lower case":          strings.ToLower(clientPass),
		"all in upper case":          strings.ToUpper(clientPass),
		"code alone":                 `{"code":"Success","Success":true,"Result":{"VerifyResult":true}}`,
		"success alone":              `{"Code":"Success","success":true,"Result":{"VerifyResult":true}}`,
		"result alone":               `{"Code":"Success","Success":true,"result":{"VerifyResult":true}}`,
		"verifyResult alone":         clientDoc(`{"verifyResult":true,"VerifyCode":"T001"}`),
		"verifyresult beside":        clientDoc(`{"VerifyResult":true,"verifyresult":false}`),
		"VERIFYRESULT before":        clientDoc(`{"VERIFYRESULT":false,"VerifyResult":true}`),
		"verifyCode alone":           clientDoc(`{"VerifyResult":true,"verifyCode":"T001"}`),
		"verifyCode beside":          clientDoc(`{"VerifyResult":true,"VerifyCode":"T001","verifyCode":"F001"}`),
		"certifyId alone":            clientDoc(`{"VerifyResult":true,"VerifyCode":"T001","certifyId":"x"}`),
		"CertifyID beside":           clientDoc(`{"VerifyResult":true,"CertifyId":"x","CertifyID":"y"}`),

		"Code null":                 `{"Code":null,"Success":true,"Result":{"VerifyResult":true}}`,
		"Code a number":             `{"Code":200,"Success":true,"Result":{"VerifyResult":true}}`,
		"Code an array":             `{"Code":["Success"],"Success":true,"Result":{"VerifyResult":true}}`,
		"RequestId a number":        `{"RequestId":1,"Code":"Success","Success":true,"Result":{"VerifyResult":true}}`,
		"RequestId an object":       `{"RequestId":{},"Code":"Success","Success":true,"Result":{"VerifyResult":true}}`,
		"Result null":               clientDoc(`null`),
		"Result an array":           clientDoc(`[]`),
		"Result a list":             clientDoc(`[{"VerifyResult":true,"VerifyCode":"T001"}]`),
		"Result a string":           clientDoc(`"{\"VerifyResult\":true}"`),
		"Result true":               clientDoc(`true`),
		"VerifyCode null":           clientDoc(`{"VerifyResult":true,"VerifyCode":null}`),
		"VerifyCode a number":       clientDoc(`{"VerifyResult":true,"VerifyCode":1}`),
		"VerifyCode an array":       clientDoc(`{"VerifyResult":true,"VerifyCode":["T001"]}`),
		"VerifyCode empty":          clientDoc(`{"VerifyResult":true,"VerifyCode":""}`),
		"VerifyCode empty, refused": clientDoc(`{"VerifyResult":false,"VerifyCode":""}`),
		"CertifyId a number":        clientDoc(`{"VerifyResult":true,"VerifyCode":"T001","CertifyId":1}`),
	} {
		add(name, 200, body, unavailable, "", "")
	}

	// Of the service's form, but no verdict.
	add("{}", 200, `{}`, unavailable, "", "")
	for _, result := range []string{
		`{}`, `{"VerifyCode":"T001"}`, `{"VerifyCode":"F001"}`, `{"CertifyId":"C-1"}`,
		`{"VerifyResult":"true","VerifyCode":"T001"}`, `{"VerifyResult":"TRUE","VerifyCode":"T001"}`, `{"VerifyResult":"false"}`, `{"VerifyResult":""}`,
		`{"VerifyResult":1,"VerifyCode":"T001"}`, `{"VerifyResult":0}`, `{"VerifyResult":-7,"VerifyCode":"T001"}`, `{"VerifyResult":1.5}`,
		`{"VerifyResult":null,"VerifyCode":"T001"}`, `{"VerifyResult":{},"VerifyCode":"T001"}`, `{"VerifyResult":{"VerifyResult":true},"VerifyCode":"T001"}`,
		`{"VerifyResult":[true],"VerifyCode":"T001"}`, `{"VerifyResult":[],"VerifyCode":"T001"}`,
		`{"VerifyResult ":true,"VerifyCode":"T001"}`, `{"Verify_Result":true,"VerifyCode":"T001"}`,

		`{"VerifyResult":true,"VerifyCode":"F001"}`, `{"VerifyResult":true,"VerifyCode":"F999"}`,
		`{"VerifyResult":false,"VerifyCode":"T001"}`, `{"VerifyResult":false,"VerifyCode":"T006"}`,
	} {
		add("Result "+result, 200, clientDoc(result), unavailable, "Success", "R-1")
	}
	for _, code := range []string{
		"X001", "T01", "T1", "T", "T0001", "T001 ", " T001", "t001", "f001", "\uff34001", "T\uff10\uff10\uff11", "T0O1", "T-01", "T+01", "T1e2", "001T", "0001",
		"TTTT", "Success", "T001,F001", "service_timeout", "param_missing", "T\u0660\u0660\u0661", "T00\\u0000", "\\u0054\\u0020001",
	} {
		for _, passed := range []string{"true", "false"} {
			add(fmt.Sprintf("%s with VerifyCode %q", passed, code), 200, clientDoc(`{"VerifyResult":`+passed+`,"VerifyCode":"`+code+`"}`), unavailable, "Success", "R-1")
		}
	}
	for _, success := range []string{`"true"`, `"false"`, `null`, `1`, `0`, `[]`, `{}`, `[true]`} {
		add("Success "+success, 200, `{"RequestId":"R-1","Code":"Success","Success":`+success+`,"Result":{"VerifyResult":true,"VerifyCode":"T001"}}`, unavailable, "Success", "R-1")
	}
	add("Success missing", 200, `{"RequestId":"R-1","Code":"Success","Result":{"VerifyResult":true,"VerifyCode":"T001"}}`, unavailable, "Success", "R-1")
	add("Success false", 200, `{"RequestId":"R-1","Code":"Success","Success":false,"Result":{"VerifyResult":true,"VerifyCode":"T001"}}`, refused, "Success", "R-1")
	add("Success false with a rejection", 200, `{"RequestId":"R-1","Code":"Success","Success":false,"Result":{"VerifyResult":false,"VerifyCode":"F001"}}`, refused, "Success", "R-1")
	add("Success false, Code InvalidParameter", 200, `{"RequestId":"R-1","Code":"InvalidParameter","Success":false}`, refused, "InvalidParameter", "R-1")
	add("Success false, Code Throttling.User", 200, `{"RequestId":"R-1","Code":"Throttling.User","Success":false}`, throttled, "Throttling.User", "R-1")
	add("Success false, Code Forbidden", 200, `{"RequestId":"R-1","Code":"Forbidden.AccountAccessDenied","Success":false}`, misconf, "Forbidden.AccountAccessDenied", "R-1")
	add("Success false, no Code", 200, `{"RequestId":"R-1","Success":false}`, refused, "", "R-1")
	add("Code missing", 200, `{"RequestId":"R-1","Success":true,"Result":{"VerifyResult":true,"VerifyCode":"T001"}}`, unavailable, "", "R-1")
	for code, shown := range map[string]string{"": "", "success": "success", "SUCCESS": "SUCCESS", "Success ": "", " Success": "", "Fail": "Fail", "200": "200", "OK": "OK", "Success.Partial": "Success.Partial"} {
		add(fmt.Sprintf("Code %q", code), 200, `{"RequestId":"R-1","Code":"`+code+`","Success":true,"Result":{"VerifyResult":true,"VerifyCode":"T001"}}`, unavailable, shown, "R-1")
	}
	add("Result missing", 200, `{"RequestId":"R-1","Code":"Success","Success":true}`, unavailable, "Success", "R-1")
	add("verdict at the top", 200, `{"RequestId":"R-1","Code":"Success","Success":true,"VerifyResult":true,"VerifyCode":"T001"}`, unavailable, "Success", "R-1")
	add("verdict too deep", 200, `{"Data":`+clientPass+`}`, unavailable, "", "")

	// The service's errors, and a gateway's.
	for _, e := range []struct {
		status int
		code   string
		want   alicaptcha.Code
	}{
		{400, "MissingParameter", refused},
		{401, "InvalidParameter", refused},
		{400, "MissingCaptchaVerifyParam", refused},
		{400, "SomethingNew", refused},
		{404, "NotFound", refused},
		{405, "UnsupportedHTTPMethod", refused},
		{413, "RequestEntityTooLarge", refused},
		{403, "forbidden", refused},
		{403, "XForbidden", refused},
		{403, "Forbidden.AccountAccessDenied", misconf},
		{403, "Forbidden.RAMUserAccessDenied", misconf},
		{403, "Forbidden.NoPermission", misconf},
		{403, "Forbidden.AccessKeyDisabled", misconf},
		{403, "Forbidden", misconf},
		{403, "NoPermission", misconf},
		{400, "NoPermission.Something", misconf},
		{404, "InvalidAccessKeyId.NotFound", misconf},
		{400, "InvalidAccessKeyId.Inactive", misconf},
		{403, "InvalidAccessKeyId", misconf},
		{400, "SignatureDoesNotMatch", misconf},
		{403, "SignatureDoesNotMatch", misconf},
		{400, "SignatureNonceUsed", misconf},
		{400, "IncompleteSignature", misconf},
		{400, "InvalidSecurityToken.Expired", misconf},
		{400, "InvalidSecurityToken.Malformed", misconf},
		{400, "MissingSecurityToken", misconf},
		{400, "InvalidTimeStamp.Expired", misconf},
		{400, "InvalidTimeStamp.Format", misconf},
		{400, "IllegalTimestamp", misconf},
		{404, "InvalidAction.NotFound", misconf},
		{400, "InvalidVersion", misconf},
		{500, "Forbidden.AccountAccessDenied", misconf},
		{503, "InvalidSecurityToken.Expired", misconf},
		{302, "Forbidden", misconf},
		{400, "Throttling", throttled},
		{400, "Throttling.User", throttled},
		{400, "Throttling.Api", throttled},
		{400, "ThrottlingByStrategy", throttled},
		{403, "Throttling.Api", throttled},
		{429, "Throttling.User", throttled},
		{503, "Throttling", throttled},
		{500, "Throttling.User", throttled},
		{302, "Throttling", throttled},
		{429, "Forbidden.AccountAccessDenied", throttled},
		{429, "InvalidParameter", throttled},
		{429, "Anything", throttled},
		{400, "throttling", refused},
		{500, "InternalError", unavailable},
		{500, "InvalidParameter", unavailable},
		{502, "BadGateway", unavailable},
		{503, "ServiceUnavailable", unavailable},
		{504, "GatewayTimeout", unavailable},
		{300, "Whatever", unavailable},
	} {
		add(fmt.Sprintf("JSON %d %s", e.status, e.code), e.status,
			`{"RequestId":"R-9","HostId":"captcha.example","Code":"`+e.code+`","Message":"`+clientMessage+`","Recommend":"https://example.com"}`, e.want, e.code, "R-9")
		add(fmt.Sprintf("XML %d %s", e.status, e.code), e.status,
			`<?xml version='1.0' encoding='UTF-8'?><Error><RequestId>R-9</RequestId><HostId>captcha.example</HostId><Code>`+e.code+`</Code><Message>`+clientMessage+`</Message></Error>`, e.want, e.code, "R-9")
	}
	add("JSON 403 with a pass in it", 403, `{"RequestId":"R-9","Code":"Forbidden","Success":true,"Result":{"VerifyResult":true,"VerifyCode":"T001"}}`, misconf, "Forbidden", "R-9")
	add("JSON 400 with Code twice", 400, `{"Code":"Throttling","Code":"InvalidParameter"}`, refused, "", "")
	add("JSON 400, nothing else", 400, `{"Code":"InvalidParameter"}`, refused, "InvalidParameter", "")
	add("XML 400 with broken Code", 400, `<Error><Code>Throttling`, refused, "", "")
	add("XML bomb", 400, `<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><Error><Code>&b;</Code></Error>`, refused, "", "")
	add("XML with a file", 400, `<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><Error><Code>&a;</Code></Error>`, refused, "", "")
	add("XML, deep", 400, strings.Repeat("<a>", 12000), refused, "", "")
	add("200 refused, invalid UTF-8", 200, `{"RequestId":"R-9","Code":"InvalidParameter","Success":false,"Message":"`+"\xff"+`"}`, refused, "InvalidParameter", "R-9")
	// A pass that is not strict is none, but a client may have brought that about, so it ends in no Code that is opened.
	add("pass, invalid UTF-8 in a name", 200, strings.Replace(clientPass, `{"RequestId"`, `{"x`+"\xff"+`":1,"RequestId"`, 1), refused, "", "")
	add("pass, invalid UTF-8 in Message", 200, strings.Replace(clientPass, `"success"`, `"succ`+"\xff"+`ess"`, 1), refused, "", "")
	add("pass, invalid UTF-8 in the code", 200, clientDoc(`{"VerifyResult":true,"VerifyCode":"T001`+"\xff"+`"}`), refused, "", "")
	add("pass, lone surrogate", 200, clientDoc(`{"VerifyResult":true,"CertifyId":"\ud800"}`), refused, "", "")
	// The service may repeat what a client sent, so length is no outage.
	add("over 64 KB", 200, clientPass+strings.Repeat(" ", 64<<10+1-len(clientPass)), refused, "", "")
	add("pass after 64 KB", 200, strings.Repeat(" ", 64<<10)+clientPass, refused, "", "")
	add("500 over 64 KB", 500, clientPass+strings.Repeat(" ", 64<<10), unavailable, "", "")
	add("400 over 64 KB", 400, `{"Code":"Throttling"}`+strings.Repeat(" ", 64<<10), refused, "", "")

	// What somebody put in the place of a Code or an ID is not shown.
	long := strings.Repeat("a", 65)
	add("long Code", 400, `{"RequestId":"R-9","Code":"`+long+`"}`, refused, "", "R-9")
	add("long RequestId", 400, `{"RequestId":"`+long+`","Code":"X"}`, refused, "X", "")
	add("Code of words", 400, `{"RequestId":"R-9","Code":"`+clientMessage+` is the secret"}`, refused, "", "R-9")
	add("Code with a line break", 400, `{"RequestId":"R-9","Code":"A\nlevel=ERROR"}`, refused, "", "R-9")
	add("Code with an escape sequence", 400, `{"RequestId":"R-9","Code":"\u001b[31m"}`, refused, "", "R-9")
	add("Code with a colon", 400, `{"RequestId":"R-9","Code":"a:b"}`, refused, "", "R-9")
	add("Code with a quote", 400, `{"RequestId":"R-9","Code":"a\"b"}`, refused, "", "R-9")
	add("RequestId with a line break", 400, `{"RequestId":"R\r\n9","Code":"X"}`, refused, "X", "")
	add("Misconfigured although not shown", 403, `{"RequestId":"R-9","Code":"Forbidden because of `+clientMessage+`"}`, misconf, "", "R-9")
	add("the param in the place of the Code", 400, `{"RequestId":"R-9","Code":`+fmt.Sprintf("%q", clientParam)+`}`, refused, "", "R-9")
	add("RequestId null", 400, `{"RequestId":null,"Code":"X"}`, refused, "X", "")
	return rows
}

func (row clientAnswerRow) check(t *testing.T, result alicaptcha.Result, err error) {
	t.Helper()
	fault := clientFault(t, result, err)
	require.Equal(t, row.code, fault.Code, row.body)
	require.Equal(t, row.status, fault.Status)
	require.Equal(t, row.serviceCode, fault.ServiceCode)
	require.Equal(t, row.requestID, fault.RequestID)
	require.Contains(t, err.Error(), string(row.code))
	require.Contains(t, err.Error(), fmt.Sprintf("status %d", row.status))
	if row.serviceCode != "" {
		require.Contains(t, err.Error(), row.serviceCode)
	}
	if row.requestID != "" {
		require.Contains(t, err.Error(), row.requestID)
	}
}

func TestClientAnswersThatAreNoVerdict(t *testing.T) {
	rows := clientNoVerdicts()
	require.Greater(t, len(rows), 40)
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			result, err := clientAsk(t, t.Context(), clientNew(t, clientConfig(clientCanned(row.status, row.body))))
			row.check(t, result, err)
		})
	}
	for _, status := range []int{0, 1, 99, 100, 101, 102, 103, 199, 204, 304} { // bodies that net/http would not read
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			result, err := clientAsk(t, t.Context(), clientNew(t, clientConfig(clientCanned(status, clientPass))))
			fault := clientFault(t, result, err)
			require.Equal(t, alicaptcha.ServiceUnavailable, fault.Code)
			require.Equal(t, status, fault.Status)
		})
	}
}

// clientWire is an answer as it goes over a connection.
func clientWire(status int, body string, headers ...string) string {
	return fmt.Sprintf("HTTP/1.1 %03d Status\r\n%sContent-Length: %d\r\nConnection: close\r\n\r\n%s", status, strings.Join(headers, ""), len(body), body)
}

// The same answers over real connections.
func TestClientAnswersOverTheWire(t *testing.T) {
	var raw atomic.Pointer[string]
	addr := clientRaw(t, func(conn net.Conn) {
		if clientReadCall(bufio.NewReader(conn)) {
			io.WriteString(conn, *raw.Load())
		}
	})
	client := clientAt(t, "http://"+addr)
	for _, row := range clientNoVerdicts() {
		t.Run(row.name, func(t *testing.T) {
			raw.Store(new(clientWire(row.status, row.body, "Content-Type: application/json\r\n")))
			result, err := clientAsk(t, t.Context(), client)
			row.check(t, result, err)
		})
	}

	var zipped bytes.Buffer
	zip := gzip.NewWriter(&zipped)
	io.WriteString(zip, clientPass)
	require.NoError(t, zip.Close())
	for name, tc := range map[string]struct {
		raw    string
		code   alicaptcha.Code
		status int
	}{
		"204":                   {"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n" + clientPass, alicaptcha.ServiceUnavailable, 204},
		"304":                   {"HTTP/1.1 304 Not Modified\r\nConnection: close\r\n\r\n" + clientPass, alicaptcha.ServiceUnavailable, 304},
		"302 with Location":     {clientWire(302, clientPass, "Location: /\r\n"), alicaptcha.ServiceUnavailable, 302},
		"100 and nothing":       {"HTTP/1.1 100 Continue\r\n\r\n", alicaptcha.ServiceUnavailable, 0},
		"103 and nothing":       {"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n", alicaptcha.ServiceUnavailable, 0},
		"101":                   {"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n" + clientPass, alicaptcha.ServiceUnavailable, 101},
		"gzip of a pass":        {clientWire(200, zipped.String(), "Content-Encoding: gzip\r\n"), alicaptcha.ServiceUnavailable, 200},
		"chunk broken":          {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + fmt.Sprintf("%x\r\n%s\r\nzz\r\n", len(clientPass), clientPass), alicaptcha.ServiceUnavailable, 200},
		"no last chunk":         {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + fmt.Sprintf("%x\r\n%s\r\n", len(clientPass), clientPass), alicaptcha.ServiceUnavailable, 200},
		"chunk cut":             {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfff\r\n" + clientPass, alicaptcha.ServiceUnavailable, 200},
		"Content-Length large":  {fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(clientPass)+1, clientPass), alicaptcha.ServiceUnavailable, 200},
		"Content-Length small":  {fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(clientPass)-1, clientPass), alicaptcha.ServiceUnavailable, 200},
		"Content-Length twice":  {"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n" + clientPass, alicaptcha.ServiceUnavailable, 0},
		"not HTTP":              {"hello " + clientMessage + "\r\n\r\n", alicaptcha.ServiceUnavailable, 0},
		"header broken":         {"HTTP/1.1 200 OK\r\n" + clientMessage + "\r\n\r\n" + clientPass, alicaptcha.ServiceUnavailable, 0},
		"header cut":            {"HTTP/1.1 200 OK\r\nContent-Type: " + clientMessage, alicaptcha.ServiceUnavailable, 0},
		"nothing":               {"", alicaptcha.ServiceUnavailable, 0},
		"status of two digits":  {"HTTP/1.1 20 OK\r\n\r\n" + clientPass, alicaptcha.ServiceUnavailable, 0},
		"status that is a word": {"HTTP/1.1 two OK\r\n\r\n" + clientPass, alicaptcha.ServiceUnavailable, 0},
		"header of 11 MB":       {"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 11<<20) + "\r\n\r\n" + clientPass, alicaptcha.ServiceUnavailable, 0},

		// The status has come, and it says that the request is at fault. A gateway that
		// hangs up on a large body sends no more: that must not look like an outage.
		"400 cut":              {"HTTP/1.1 400 Bad Request\r\nContent-Length: 100\r\n\r\n{", alicaptcha.RequestRefused, 400},
		"403 with a bad chunk": {"HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", alicaptcha.RequestRefused, 403},
		"413 cut":              {"HTTP/1.1 413 Too Large\r\nContent-Length: 100\r\n\r\n", alicaptcha.RequestRefused, 413},
		"400 cut after a Code": {"HTTP/1.1 400 Bad Request\r\nContent-Length: 100\r\n\r\n" + `{"Code":"Forbidden"}`, alicaptcha.RequestRefused, 400},
		"429 cut":              {"HTTP/1.1 429 Too Many\r\nContent-Length: 100\r\n\r\n{", alicaptcha.ServiceThrottled, 429},
		"502 cut":              {"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 100\r\n\r\n{", alicaptcha.ServiceUnavailable, 502},
	} {
		t.Run(name, func(t *testing.T) {
			raw.Store(&tc.raw)
			result, err := clientAsk(t, t.Context(), client)
			fault := clientFault(t, result, err)
			require.Equal(t, tc.code, fault.Code, err)
			require.Equal(t, tc.status, fault.Status)
		})
	}

	t.Run("after informational answers", func(t *testing.T) {
		raw.Store(new("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n" + clientWire(200, clientPass)))
		result, err := clientAsk(t, t.Context(), client)
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
	addr := clientRaw(t, func(conn net.Conn) {
		if clientReadCall(bufio.NewReader(conn)) {
			io.WriteString(conn, *raw.Load())
		}
	})
	wire := clientAt(t, "http://"+addr)
	for name, tc := range map[string]struct {
		body string
		want alicaptcha.Result
	}{
		"pass":                    {clientPass, passed("T001", "C-1", "R-1")},
		"as in the manual":        {`{"Code":"Success","Message":"success","RequestId":"R-2","Result":{"VerifyCode":"F001","VerifyResult":false},"Success":true}`, failed("F001", "", "R-2")},
		"pass without VerifyCode": {clientDoc(`{"VerifyResult":true}`), passed("T001", "", "R-1")},
		"refusal without a code":  {clientDoc(`{"VerifyResult":false}`), failed("F001", "", "R-1")},
		"CertifyId null":          {clientDoc(`{"VerifyResult":true,"VerifyCode":"T001","CertifyId":null}`), passed("T001", "", "R-1")},
		"CertifyId empty":         {clientDoc(`{"VerifyResult":true,"VerifyCode":"T001","CertifyId":""}`), passed("T001", "", "R-1")},
		"CertifyId of the client": {clientDoc(`{"VerifyResult":true,"CertifyId":"用户 1 \"\\\u003c"}`), passed("T001", `用户 1 "\<`, "R-1")},
		"RequestId null":          {`{"RequestId":null,"Code":"Success","Success":true,"Result":{"VerifyResult":true}}`, passed("T001", "", "")},
		"RequestId that is none":  {`{"RequestId":"call us: the param","Code":"Success","Success":true,"Result":{"VerifyResult":true}}`, passed("T001", "", "")},
		"RequestId missing":       {`{"Code":"Success","Success":true,"Result":{"VerifyResult":true}}`, passed("T001", "", "")},
		"Message null":            {`{"Message":null,"Code":"Success","Success":true,"Result":{"VerifyResult":true}}`, passed("T001", "", "")},
		"unknown T":               {clientDoc(`{"VerifyResult":true,"VerifyCode":"T999"}`), passed("T999", "", "R-1")},
		"T005":                    {clientDoc(`{"VerifyResult":true,"VerifyCode":"T005"}`), passed("T005", "", "R-1")},
		"unknown F":               {clientDoc(`{"VerifyResult":false,"VerifyCode":"F999"}`), failed("F999", "", "R-1")},
		"F000":                    {clientDoc(`{"VerifyResult":false,"VerifyCode":"F000"}`), failed("F000", "", "R-1")},
		"unknown members":         {`{"a":[{"VerifyResult":false}],"RequestId":"R-1","HostId":null,"Code":"Success","Success":true,"Result":{"x":{"VerifyResult":false},"VerifyResult":true,"Score":0.1},"Data":{"Success":false},"z":1e400}`, passed("T001", "", "R-1")},
		"VerifyResult at the top": {`{"VerifyResult":false,"Code":"Success","Success":true,"Result":{"VerifyResult":true}}`, passed("T001", "", "")},
		"another order":           {`{"Result":{"CertifyId":"C-1","VerifyCode":"T001","VerifyResult":true},"Success":true,"Code":"Success","RequestId":"R-1"}`, passed("T001", "C-1", "R-1")},
		"white space":             {"\r\n\t {\n \"RequestId\" :\t\"R-1\" ,\"Code\"\n:\"Success\", \"Success\" : true ,\"Result\": { \"VerifyResult\" : true } } \n\n", passed("T001", "", "R-1")},
		"escaped":                 {`{"\u0043ode":"\u0053uccess","Success":true,"Res\u0075lt":{"VerifyResult":true,"VerifyCode":"\u0054001"}}`, passed("T001", "", "")},
		// What a client may have sent, in a refusal that must stay one.
		"refusal, invalid UTF-8":    {clientDoc(`{"VerifyResult":false,"VerifyCode":"F001","CertifyId":"` + "\xff" + `"}`), failed("F001", "\ufffd", "R-1")},
		"refusal, lone surrogate":   {clientDoc(`{"VerifyResult":false,"VerifyCode":"F001","CertifyId":"\ud800"}`), failed("F001", "\ufffd", "R-1")},
		"64 KB":                     {clientPass + strings.Repeat(" ", 64<<10-len(clientPass)), passed("T001", "C-1", "R-1")},
		"nested as deep as allowed": {`{"x":` + strings.Repeat("[", 1000) + strings.Repeat("]", 1000) + `,"Code":"Success","Success":true,"Result":{"VerifyResult":true}}`, passed("T001", "", "")},
	} {
		t.Run(name, func(t *testing.T) {
			result, err := clientAsk(t, t.Context(), clientNew(t, clientConfig(clientCanned(200, tc.body))))
			require.NoError(t, err)
			require.Equal(t, tc.want, result)
			raw.Store(new(clientWire(200, tc.body)))
			result, err = clientAsk(t, t.Context(), wire)
			require.NoError(t, err)
			require.Equal(t, tc.want, result)
		})
	}
	for i := range 26 { // the codes of the manual
		code := alicaptcha.Code(fmt.Sprintf("F%03d", i))
		result, err := clientAsk(t, t.Context(), clientNew(t, clientConfig(clientCanned(200, clientDoc(`{"VerifyResult":false,"VerifyCode":"`+string(code)+`"}`)))))
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
			addr := clientRaw(t, func(conn net.Conn) {
				if !clientReadCall(bufio.NewReader(conn)) {
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
			result, err := clientAsk(t, t.Context(), client)
			runtime.ReadMemStats(&after)
			fault := clientFault(t, result, err)
			require.Equal(t, alicaptcha.RequestRefused, fault.Code, "the service may repeat what a client sent")
			require.Equal(t, 200, fault.Status)
			require.Less(t, <-taken, size/2) // what the kernel's buffers hold
			require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(8<<20))
		})
	}
}

// clientBody tells when it is closed.
type clientBody struct {
	io.Reader
	closed *atomic.Bool
}

func (b clientBody) Close() error { b.closed.Store(true); return nil }

func TestClientClosesEachBody(t *testing.T) {
	for name, body := range map[string]io.Reader{
		"pass":    strings.NewReader(clientPass),
		"junk":    strings.NewReader("junk"),
		"large":   strings.NewReader(strings.Repeat("x", 1<<20)),
		"failing": io.MultiReader(strings.NewReader("{"), clientErrorReader{errors.New("read: " + clientMessage)}),
	} {
		t.Run(name, func(t *testing.T) {
			var closed atomic.Bool
			client := clientNew(t, clientConfig(clientTransport(func(*http.Request) (*http.Response, error) {
				return &http.Response{StatusCode: 200, Body: clientBody{body, &closed}}, nil
			})))
			client.Verify(t.Context(), alicaptcha.Request{Param: clientParam})
			require.True(t, closed.Load())
		})
	}
}

func TestClientTransportThatBreaksItsContract(t *testing.T) {
	for name, transport := range map[string]clientTransport{
		"nothing":  func(*http.Request) (*http.Response, error) { return nil, nil },
		"nil Body": func(*http.Request) (*http.Response, error) { return &http.Response{StatusCode: 200}, nil },
		"answer and error": func(*http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 200, Body: http.NoBody}, errors.New(clientMessage)
		},
		"nil *Error": clientFailing((*alicaptcha.Error)(nil)),
		"nil *Error, reading": func(*http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 200, Body: io.NopCloser(clientErrorReader{(*alicaptcha.Error)(nil)})}, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			require.NotPanics(t, func() {
				result, err := clientNew(t, clientConfig(transport)).Verify(t.Context(), alicaptcha.Request{Param: clientParam})
				require.Equal(t, alicaptcha.ServiceUnavailable, clientFault(t, result, err).Code)
			})
		})
	}
}

type clientErrorReader struct{ err error }

func (r clientErrorReader) Read([]byte) (int, error) { return 0, r.err }

// An error that a Transport hands to many calls belongs to the Transport.
func TestClientLeavesATransportsErrorAlone(t *testing.T) {
	shared := &alicaptcha.Error{Code: alicaptcha.ServiceUnavailable}
	client := clientNew(t, clientConfig(clientTransport(func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: 200, Body: io.NopCloser(clientErrorReader{shared})}, nil
	})))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { client.Verify(t.Context(), alicaptcha.Request{Param: clientParam}) })
	}
	wg.Wait()
	require.Zero(t, shared.Status)
}

// ---- redirects

func TestClientFollowsNoRedirect(t *testing.T) {
	var arrived atomic.Int64
	second := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		arrived.Add(1)
		io.WriteString(w, clientPass)
	}))
	defer second.Close()
	secondTLS := httptest.NewTLSServer(second.Config.Handler)
	defer secondTLS.Close()

	for _, status := range []int{300, 301, 302, 303, 305, 307, 308} {
		for _, to := range []string{second.URL, secondTLS.URL, "/other", "//" + strings.TrimPrefix(second.URL, "http://") + "/"} {
			var calls atomic.Int64
			handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				calls.Add(1)
				w.Header().Set("Location", to)
				w.WriteHeader(status)
				io.WriteString(w, clientPass)
			})
			first, firstTLS := httptest.NewServer(handler), httptest.NewTLSServer(handler)
			for _, srv := range []*httptest.Server{first, firstTLS} {
				t.Run(fmt.Sprintf("%d from %s to %s", status, srv.URL, to), func(t *testing.T) {
					calls.Store(0)
					result, err := clientAsk(t, t.Context(), clientAt(t, srv.URL, func(tr *http.Transport) {
						if srv == firstTLS {
							tr.TLSClientConfig = srv.Client().Transport.(*http.Transport).TLSClientConfig
						}
					}))
					fault := clientFault(t, result, err)
					require.Equal(t, alicaptcha.ServiceUnavailable, fault.Code)
					require.Equal(t, status, fault.Status)
					require.EqualValues(t, 1, calls.Load())
					require.Zero(t, arrived.Load())
				})
			}
			first.Close()
			firstTLS.Close()
		}
	}
}

// ---- many at once

// Many callers share one Client: each gets the verdict on its own param, and
// there are no more connections than callers.
func TestClientManyCallers(t *testing.T) {
	const callers, calls = 256, 5000
	codes := []alicaptcha.Code{"T001", "T005", "T006", "F001", "F004", "F007", "F009", "F010", "F015", "F024", "F777"}
	for _, version := range []int{1, 2} {
		t.Run(fmt.Sprintf("HTTP%d", version), func(t *testing.T) {
			sim := alicaptchatest.StartTLS(t, alicaptchatest.Config{})
			cfg := sim.ClientConfig()
			transport := cfg.Transport.(*http.Transport).Clone()
			if version == 1 {
				transport = &http.Transport{MaxIdleConnsPerHost: 512, TLSClientConfig: &tls.Config{RootCAs: transport.TLSClientConfig.RootCAs}}
			}
			defer transport.CloseIdleConnections()
			var dials atomic.Int64
			transport.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
				dials.Add(1)
				return new(net.Dialer).DialContext(ctx, network, addr)
			}
			// The first call of each caller ends when all have their answers, so that
			// each holds a connection; from then on there is one for everybody.
			var other, held atomic.Int64
			all := make(chan struct{})
			cfg.Transport = clientTransport(func(r *http.Request) (*http.Response, error) {
				resp, err := transport.RoundTrip(r)
				if err == nil && resp.ProtoMajor != version {
					other.Add(1)
				}
				switch held.Add(1) {
				case 1: // alone, else each of them would open an HTTP/2 connection
					return resp, err
				case callers + 1:
					close(all)
				}
				select {
				case <-all:
				case <-r.Context().Done():
				}
				return resp, err
			})
			client := clientNew(t, cfg)

			type job struct {
				param string
				code  alicaptcha.Code
			}
			jobs := make(chan job, calls)
			for i := range calls {
				code := codes[i%len(codes)]
				param, err := sim.Issue(alicaptchatest.Issue{SceneID: "login", Code: code})
				require.NoError(t, err)
				jobs <- job{param, code}
			}
			close(jobs)
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			defer cancel()
			var (
				wg    sync.WaitGroup
				mu    sync.Mutex
				wrong []string
				ids   = map[string]int{}
			)
			verify := func(job job) {
				result, err := client.Verify(ctx, alicaptcha.Request{Param: job.param, SceneID: "login"})
				mu.Lock()
				defer mu.Unlock()
				if err != nil || result.Code != job.code || result.Passed != (job.code[0] == 'T') {
					wrong = append(wrong, fmt.Sprint(job.code, result, err))
				}
				ids[result.CertifyID]++
				ids[result.RequestID]++
			}
			verify(<-jobs)
			for range callers {
				wg.Go(func() {
					for job := range jobs {
						verify(job)
					}
				})
			}
			wg.Wait()
			require.Empty(t, wrong)
			require.Len(t, ids, 2*calls)
			require.Equal(t, calls, sim.Count())
			require.LessOrEqual(t, dials.Load(), int64(300))
			require.Zero(t, other.Load())
			nonces := map[string]bool{}
			for _, call := range sim.Calls() {
				nonces[call.Header.Get("X-Acs-Signature-Nonce")] = true
			}
			require.Len(t, nonces, calls)
		})
	}
}

// The same for the connections of a Client without a Transport.
func TestClientManyCallersByDefault(t *testing.T) {
	const callers, rounds = 100, 10
	var conns atomic.Int64
	// Nobody is answered until all have asked, so that all connections are idle between the rounds.
	var mu sync.Mutex
	waiting, gate := 0, make(chan struct{})
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		mu.Lock()
		mine := gate
		if waiting++; waiting == callers {
			waiting, gate = 0, make(chan struct{})
			close(mine)
		}
		mu.Unlock()
		select {
		case <-mine:
		case <-r.Context().Done():
		}
		io.WriteString(w, clientPass)
	}))
	srv.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			conns.Add(1)
		}
	}
	srv.Start()
	defer srv.Close()
	client := clientNew(t, alicaptcha.ClientConfig{Endpoint: srv.URL, AccessKeyID: clientID, AccessKeySecret: clientSecret})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var failed atomic.Int64
	for range rounds {
		var wg sync.WaitGroup
		for range callers {
			wg.Go(func() {
				if result, err := client.Verify(ctx, alicaptcha.Request{Param: clientParam}); err != nil || !result.Passed {
					failed.Add(1)
				}
			})
		}
		wg.Wait()
	}
	require.Zero(t, failed.Load())
	// A connection that goes back to the pool a moment after its answer may cost a new one.
	require.Less(t, conns.Load(), int64(3*callers))
}

// ---- time

// clientStages are the places where a service can hang. reached is closed once it does.
func clientStages(t *testing.T) map[string]func(t *testing.T, reached chan<- struct{}) *alicaptcha.Client {
	serverTLS, _, _ := clientTLS(t)
	plain := func(script func(conn net.Conn, in *bufio.Reader)) func(*testing.T, chan<- struct{}) *alicaptcha.Client {
		return func(t *testing.T, reached chan<- struct{}) *alicaptcha.Client {
			return clientAt(t, "http://"+clientRaw(t, func(conn net.Conn) {
				in := bufio.NewReader(conn)
				if clientReadCall(in) {
					script(conn, in)
					reached <- struct{}{}
					io.Copy(io.Discard, in) // until the client hangs up
				}
			}))
		}
	}
	return map[string]func(*testing.T, chan<- struct{}) *alicaptcha.Client{
		"before the headers": plain(func(net.Conn, *bufio.Reader) {}),
		"in the status line": plain(func(conn net.Conn, _ *bufio.Reader) { io.WriteString(conn, "HTTP/1.1 200") }),
		"in the headers":     plain(func(conn net.Conn, _ *bufio.Reader) { io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Len") }),
		"after 100":          plain(func(conn net.Conn, _ *bufio.Reader) { io.WriteString(conn, "HTTP/1.1 100 Continue\r\n\r\n") }),
		"before the body": plain(func(conn net.Conn, _ *bufio.Reader) {
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n")
		}),
		"in the body": plain(func(conn net.Conn, _ *bufio.Reader) {
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{")
		}),
		"after the body": plain(func(conn net.Conn, _ *bufio.Reader) {
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n"+clientPass)
		}),
		"before the last chunk": plain(func(conn net.Conn, _ *bufio.Reader) {
			fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n", len(clientPass), clientPass)
		}),
		"byte by byte": func(t *testing.T, reached chan<- struct{}) *alicaptcha.Client {
			return clientAt(t, "http://"+clientRaw(t, func(conn net.Conn) {
				if !clientReadCall(bufio.NewReader(conn)) {
					return
				}
				io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n")
				reached <- struct{}{}
				pace := time.NewTicker(2 * time.Millisecond)
				defer pace.Stop()
				for range pace.C {
					if _, err := conn.Write([]byte(" ")); err != nil {
						return
					}
				}
			}))
		},
		"in the TLS handshake": func(t *testing.T, reached chan<- struct{}) *alicaptcha.Client {
			return clientAt(t, "https://"+clientRaw(t, func(conn net.Conn) {
				io.ReadFull(conn, make([]byte, 1))
				reached <- struct{}{}
				io.Copy(io.Discard, conn)
			}), func(tr *http.Transport) { tr.TLSHandshakeTimeout = 0 })
		},
		"after the TLS handshake": func(t *testing.T, reached chan<- struct{}) *alicaptcha.Client {
			return clientAt(t, "https://"+clientRaw(t, func(conn net.Conn) {
				secure := tls.Server(conn, serverTLS)
				if clientReadCall(bufio.NewReader(secure)) {
					reached <- struct{}{}
					io.Copy(io.Discard, secure)
				}
			}), func(tr *http.Transport) { tr.TLSClientConfig = &tls.Config{InsecureSkipVerify: true} })
		},
		"while dialling": func(t *testing.T, reached chan<- struct{}) *alicaptcha.Client {
			return clientAt(t, "https://captcha.example", func(tr *http.Transport) {
				tr.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
					reached <- struct{}{}
					<-ctx.Done()
					return nil, ctx.Err()
				}
			})
		},
		"while a dial ignores the context": func(t *testing.T, reached chan<- struct{}) *alicaptcha.Client {
			release := make(chan struct{})
			t.Cleanup(func() { close(release) })
			return clientAt(t, "https://captcha.example", func(tr *http.Transport) {
				tr.DialContext = func(context.Context, string, string) (net.Conn, error) {
					reached <- struct{}{}
					<-release
					return nil, errors.New("released")
				}
			})
		},
	}
}

func TestClientDeadlineAndCancellation(t *testing.T) {
	for name, start := range clientStages(t) {
		t.Run(name, func(t *testing.T) {
			t.Run("deadline", func(t *testing.T) {
				client := start(t, make(chan struct{}, 16))
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
				defer cancel()
				result, err := clientAsk(t, ctx, client)
				fault := clientFault(t, result, err)
				require.Equal(t, alicaptcha.ServiceTimeout, fault.Code)
				require.ErrorIs(t, err, context.DeadlineExceeded)
				require.Contains(t, err.Error(), "deadline exceeded")
			})
			t.Run("cancellation", func(t *testing.T) {
				reached := make(chan struct{}, 16)
				client := start(t, reached)
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				go func() {
					select {
					case <-reached:
					case <-time.After(clientGuard):
					}
					cancel()
				}()
				result, err := clientAsk(t, ctx, client)
				fault := clientFault(t, result, err)
				require.Equal(t, alicaptcha.ClientCanceled, fault.Code)
				require.ErrorIs(t, err, context.Canceled)
			})
		})
	}
}

// The body of a 101 is the bare connection, which net/http ends by no context.
func TestClientDeadlineAfterSwitchingProtocols(t *testing.T) {
	client := clientAt(t, "http://"+clientRaw(t, func(conn net.Conn) {
		in := bufio.NewReader(conn)
		if clientReadCall(in) {
			io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")
			io.Copy(io.Discard, in)
		}
	}))
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	result, err := clientAsk(t, ctx, client)
	require.Contains(t, []alicaptcha.Code{alicaptcha.ServiceUnavailable, alicaptcha.ServiceTimeout}, clientFault(t, result, err).Code)
}

// A service that does not read the call is bounded too.
func TestClientDeadlineWhileSending(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	client := clientAt(t, "http://"+clientRaw(t, func(net.Conn) { <-release }))
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := client.Verify(ctx, alicaptcha.Request{Param: strings.Repeat("p", 8<<20)})
		done <- err
	}()
	select {
	case err := <-done:
		fault, ok := errors.AsType[*alicaptcha.Error](err)
		require.True(t, ok)
		require.Equal(t, alicaptcha.ServiceTimeout, fault.Code)
	case <-time.After(clientGuard):
		require.FailNow(t, "Verify hangs")
	}
}

// A call that ended in a status which blames the request stays so however
// slowly its body comes: a gateway that stalls must not look like an outage.
func TestClientRefusalWithAStalledBody(t *testing.T) {
	for status, want := range map[int]alicaptcha.Code{403: alicaptcha.RequestRefused, 429: alicaptcha.ServiceThrottled, 502: alicaptcha.ServiceTimeout} {
		client := clientAt(t, "http://"+clientRaw(t, func(conn net.Conn) {
			in := bufio.NewReader(conn)
			if clientReadCall(in) {
				fmt.Fprintf(conn, "HTTP/1.1 %d Status\r\nContent-Length: 99\r\n\r\n{", status)
				io.Copy(io.Discard, in)
			}
		}))
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		result, err := clientAsk(t, ctx, client)
		cancel()
		fault := clientFault(t, result, err)
		require.Equal(t, want, fault.Code, status)
		require.Equal(t, status, fault.Status)
	}
}

func TestClientTakesFiveSecondsWithoutADeadline(t *testing.T) {
	for name, tc := range map[string]struct {
		deadline time.Duration // 0: none
		cancel   time.Duration
		takes    time.Duration
		code     alicaptcha.Code
	}{
		"none":            {takes: 5 * time.Second, code: alicaptcha.ServiceTimeout},
		"shorter":         {deadline: time.Second, takes: time.Second, code: alicaptcha.ServiceTimeout},
		"longer":          {deadline: time.Hour, takes: time.Hour, code: alicaptcha.ServiceTimeout},
		"none, cancelled": {cancel: 2 * time.Second, takes: 2 * time.Second, code: alicaptcha.ClientCanceled},
		"past":            {deadline: -time.Second, takes: 0, code: alicaptcha.ServiceTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client := clientNew(t, clientConfig(clientTransport(func(r *http.Request) (*http.Response, error) {
					<-r.Context().Done()
					return nil, r.Context().Err()
				})))
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				if tc.deadline != 0 {
					ctx, cancel = context.WithTimeout(ctx, tc.deadline)
					defer cancel()
				}
				if tc.cancel != 0 {
					time.AfterFunc(tc.cancel, cancel)
				}
				start := time.Now()
				result, err := client.Verify(ctx, alicaptcha.Request{Param: clientParam})
				require.Equal(t, tc.takes, time.Since(start))
				require.Equal(t, tc.code, clientFault(t, result, err).Code)
			})
		})
	}
}

// The context of a call ends with it, so that no timer of 5 s is left of each.
func TestClientEndsItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked []context.Context
		client := clientNew(t, clientConfig(clientTransport(func(r *http.Request) (*http.Response, error) {
			asked = append(asked, r.Context())
			return clientCanned(200, clientPass)(r)
		})))
		for range 3 {
			_, err := client.Verify(t.Context(), alicaptcha.Request{Param: clientParam})
			require.NoError(t, err)
		}
		require.Len(t, asked, 3)
		for _, ctx := range asked {
			require.ErrorIs(t, ctx.Err(), context.Canceled)
		}
		require.NoError(t, t.Context().Err())
	})
}

func TestClientContextThatIsDoneSendsNothing(t *testing.T) {
	sim := alicaptchatest.Start(t, alicaptchatest.Config{})
	param, err := sim.Issue(alicaptchatest.Issue{SceneID: "login"})
	require.NoError(t, err)
	client := sim.Client()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 10 {
		result, err := client.Verify(ctx, alicaptcha.Request{Param: param, SceneID: "login"})
		require.Equal(t, alicaptcha.ClientCanceled, clientFault(t, result, err).Code)
	}
	require.Zero(t, sim.Count())
	result, err := client.Verify(t.Context(), alicaptcha.Request{Param: param, SceneID: "login"})
	require.NoError(t, err)
	require.True(t, result.Passed)
}

// Timeouts of a Transport's own, without the context's end.
func TestClientTransportTimeout(t *testing.T) {
	client := clientAt(t, "http://"+clientRaw(t, func(conn net.Conn) {
		io.Copy(io.Discard, conn)
	}), func(tr *http.Transport) { tr.ResponseHeaderTimeout = 20 * time.Millisecond })
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	result, err := clientAsk(t, ctx, client)
	require.Equal(t, alicaptcha.ServiceTimeout, clientFault(t, result, err).Code)
}

func TestClientLeavesNoGoroutines(t *testing.T) {
	stages := clientStages(t)
	before := runtime.NumGoroutine()
	t.Run("calls", func(t *testing.T) {
		for name, start := range stages {
			client := start(t, make(chan struct{}, 1000))
			done := make(chan struct{}, 16)
			for range cap(done) {
				go func() {
					ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
					defer cancel()
					client.Verify(ctx, alicaptcha.Request{Param: clientParam})
					done <- struct{}{}
				}()
			}
			for range cap(done) {
				select {
				case <-done:
				case <-time.After(clientGuard):
					require.FailNow(t, "Verify hangs "+name)
				}
			}
		}
	}) // and its cleanups, which end the servers and the idle connections
	require.Eventually(t, func() bool { return runtime.NumGoroutine() <= before+1 }, clientGuard, 5*time.Millisecond) // one of them asks
}

// ---- once only

func TestClientSendsOnceOnly(t *testing.T) {
	type script = func(conn net.Conn, in *bufio.Reader, call int) bool // false: hang up
	for name, tc := range map[string]struct {
		script script
		asks   int
		status int
	}{
		"hangs up": {script: func(net.Conn, *bufio.Reader, int) bool { return false }, asks: 1},
		"resets": {script: func(conn net.Conn, _ *bufio.Reader, _ int) bool {
			conn.(*net.TCPConn).SetLinger(0)
			return false
		}, asks: 1},
		"hangs up in the headers": {script: func(conn net.Conn, _ *bufio.Reader, _ int) bool {
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nX: ")
			return false
		}, asks: 1},
		"hangs up in the body": {script: func(conn net.Conn, _ *bufio.Reader, _ int) bool {
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{")
			return false
		}, asks: 1, status: 200},
		"hangs up after 100": {script: func(conn net.Conn, _ *bufio.Reader, _ int) bool {
			io.WriteString(conn, "HTTP/1.1 100 Continue\r\n\r\n")
			return false
		}, asks: 1},
		"hangs up on a connection in use": {script: func(conn net.Conn, _ *bufio.Reader, call int) bool {
			if call == 1 {
				fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(clientPass), clientPass)
			}
			return call == 1
		}, asks: 2},
		"resets a connection in use": {script: func(conn net.Conn, _ *bufio.Reader, call int) bool {
			if call == 1 {
				fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(clientPass), clientPass)
			} else {
				conn.(*net.TCPConn).SetLinger(0)
			}
			return call == 1
		}, asks: 2},
		"503 with Retry-After": {script: func(conn net.Conn, _ *bufio.Reader, _ int) bool {
			io.WriteString(conn, "HTTP/1.1 503 Unavailable\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n")
			return true
		}, asks: 1, status: 503},
		"408": {script: func(conn net.Conn, _ *bufio.Reader, _ int) bool {
			io.WriteString(conn, "HTTP/1.1 502 Bad Gateway\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
			return false
		}, asks: 1, status: 502},
	} {
		t.Run(name, func(t *testing.T) {
			var calls atomic.Int64
			client := clientAt(t, "http://"+clientRaw(t, func(conn net.Conn) {
				in := bufio.NewReader(conn)
				for clientReadCall(in) {
					if !tc.script(conn, in, int(calls.Add(1))) {
						return
					}
				}
			}))
			for range tc.asks - 1 {
				_, err := clientAsk(t, t.Context(), client)
				require.NoError(t, err)
			}
			result, err := clientAsk(t, t.Context(), client)
			fault := clientFault(t, result, err)
			require.Equal(t, alicaptcha.ServiceUnavailable, fault.Code, err)
			require.Equal(t, tc.status, fault.Status)
			require.EqualValues(t, tc.asks, calls.Load())
		})
	}
}

// An HTTP/2 server that resets the stream after it has read the whole call may
// have spent the param.
func TestClientSendsOnceOnlyOverHTTP2(t *testing.T) {
	const internalError, cancelled, enhanceYourCalm = 2, 8, 11
	serverTLS, clientTLS, _ := clientTLS(t)
	serverTLS.NextProtos = []string{"h2"}
	for name, code := range map[string]uint32{"INTERNAL_ERROR": internalError, "ENHANCE_YOUR_CALM": enhanceYourCalm, "CANCEL": cancelled} {
		t.Run(name, func(t *testing.T) {
			var calls atomic.Int64
			addr := clientRaw(t, func(raw net.Conn) {
				conn := tls.Server(raw, serverTLS)
				in := bufio.NewReader(conn)
				frame := func(kind, flags byte, stream uint32, payload []byte) {
					header := []byte{0, 0, byte(len(payload)), kind, flags}
					conn.Write(append(binary.BigEndian.AppendUint32(header, stream), payload...))
				}
				if _, err := io.ReadFull(in, make([]byte, len("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))); err != nil {
					return
				}
				frame(4, 0, 0, nil) // SETTINGS
				for {
					header := make([]byte, 9)
					if _, err := io.ReadFull(in, header); err != nil {
						return
					}
					length := int(header[0])<<16 | int(header[1])<<8 | int(header[2])
					if _, err := io.CopyN(io.Discard, in, int64(length)); err != nil {
						return
					}
					kind, flags, stream := header[3], header[4], binary.BigEndian.Uint32(header[5:])
					switch {
					case kind == 4 && flags&1 == 0:
						frame(4, 1, 0, nil)
					case kind == 0 && flags&1 != 0: // the end of the body
						calls.Add(1)
						frame(3, 0, stream, binary.BigEndian.AppendUint32(nil, code))
					}
				}
			})
			client := clientAt(t, "https://"+addr, func(tr *http.Transport) {
				tr.TLSClientConfig, tr.ForceAttemptHTTP2 = clientTLS.Clone(), true
			})
			result, err := clientAsk(t, t.Context(), client)
			require.Equal(t, alicaptcha.ServiceUnavailable, clientFault(t, result, err).Code)
			require.EqualValues(t, 1, calls.Load())
		})
	}
}

func TestClientConnectionRefused(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := listener.Addr().String()
	listener.Close()
	result, err := clientAsk(t, t.Context(), clientAt(t, "http://"+addr))
	fault := clientFault(t, result, err)
	require.Equal(t, alicaptcha.ServiceUnavailable, fault.Code)
	require.Zero(t, fault.Status)
	require.Contains(t, err.Error(), "dial tcp "+addr) // what an operator looks for
}

// clientConn tells when it is closed.
type clientConn struct {
	net.Conn
	closed chan<- struct{}
	once   *sync.Once
}

func (c clientConn) Close() error {
	c.once.Do(func() { c.closed <- struct{}{} })
	return c.Conn.Close()
}

// A connection that the server closed while it was idle fails no call.
func TestClientIdleConnectionClosedByTheServer(t *testing.T) {
	var calls atomic.Int64
	closed := make(chan struct{}, 100)
	client := clientAt(t, "http://"+clientRaw(t, func(conn net.Conn) {
		if clientReadCall(bufio.NewReader(conn)) {
			calls.Add(1)
			fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(clientPass), clientPass)
		}
	}), func(tr *http.Transport) {
		tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, network, addr)
			return clientConn{conn, closed, new(sync.Once)}, err
		}
	})
	for range 20 {
		_, err := clientAsk(t, t.Context(), client)
		require.NoError(t, err)
		select {
		case <-closed:
		case <-time.After(clientGuard):
			require.FailNow(t, "the connection stays")
		}
	}
	require.EqualValues(t, 20, calls.Load())
}

// ---- proxies

// clientProxy is a proxy that connects everything to the server at to. It
// returns its address and what it was asked.
func clientProxy(t *testing.T, to string) (addr string, asked func() []*http.Request) {
	var mu sync.Mutex
	var requests []*http.Request
	addr = clientRaw(t, func(conn net.Conn) {
		r, err := http.ReadRequest(bufio.NewReader(conn))
		if err != nil {
			return
		}
		mu.Lock()
		requests = append(requests, r)
		mu.Unlock()
		if r.Method != http.MethodConnect {
			io.WriteString(conn, clientWire(200, clientPass))
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

// The SDK would read these itself, and send the password to the service.
func TestClientIgnoresTheEnvironmentsProxyWithATransport(t *testing.T) {
	for _, sim := range []*alicaptchatest.Server{alicaptchatest.Start(t, alicaptchatest.Config{}), alicaptchatest.StartTLS(t, alicaptchatest.Config{})} {
		addr, asked := clientProxy(t, strings.TrimPrefix(strings.TrimPrefix(sim.URL, "http://"), "https://"))
		for _, proxy := range []string{"http://user:hunter2@" + addr, "http://user:hunter2@bad host/", "://hunter2", "socks5://user:hunter2@" + addr} {
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
	addr, asked := clientProxy(t, strings.TrimPrefix(sim.URL, "https://"))
	proxy, err := url.Parse("http://user:hunter2@" + addr)
	require.NoError(t, err)
	cfg := sim.ClientConfig()
	transport := cfg.Transport.(*http.Transport).Clone()
	defer transport.CloseIdleConnections()
	transport.Proxy = http.ProxyURL(proxy)
	cfg.Transport = transport
	param, err := sim.Issue(alicaptchatest.Issue{SceneID: "login"})
	require.NoError(t, err)
	result, err := clientNew(t, cfg).Verify(t.Context(), alicaptcha.Request{Param: param, SceneID: "login"})
	require.NoError(t, err)
	require.True(t, result.Passed)
	require.Len(t, asked(), 1)
	require.NotEmpty(t, asked()[0].Header.Get("Proxy-Authorization"))
	require.Len(t, sim.Calls(), 1)
	require.Empty(t, sim.Calls()[0].Header.Get("Proxy-Authorization"))
}

func TestClientProxyThatRefuses(t *testing.T) {
	for name, answer := range map[string]string{
		"407":  "HTTP/1.1 407 " + clientMessage + "\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n",
		"502":  "HTTP/1.1 502 " + clientMessage + "\r\nContent-Length: 0\r\n\r\n",
		"junk": clientMessage + "\r\n\r\n",
		"shut": "",
	} {
		t.Run(name, func(t *testing.T) {
			proxy, err := url.Parse("http://user:hunter2@" + clientWriting(t, answer))
			require.NoError(t, err)
			client := clientAt(t, "https://captcha.example", func(tr *http.Transport) { tr.Proxy = http.ProxyURL(proxy) })
			result, err := clientAsk(t, t.Context(), client)
			require.Equal(t, alicaptcha.ServiceUnavailable, clientFault(t, result, err).Code)
		})
	}
	t.Run("not there", func(t *testing.T) {
		client := clientAt(t, "https://captcha.example", func(tr *http.Transport) {
			tr.Proxy = http.ProxyURL(&url.URL{Scheme: "http", User: url.UserPassword("user", "hunter2"), Host: "127.0.0.1:1"})
		})
		result, err := clientAsk(t, t.Context(), client)
		require.Equal(t, alicaptcha.ServiceUnavailable, clientFault(t, result, err).Code)
	})
	t.Run("malformed", func(t *testing.T) {
		client := clientAt(t, "https://captcha.example", func(tr *http.Transport) {
			malformed := "http://user:hunter2@bad host"
			tr.Proxy = func(*http.Request) (*url.URL, error) { return url.Parse(malformed) }
		})
		result, err := clientAsk(t, t.Context(), client)
		require.Equal(t, alicaptcha.ServiceUnavailable, clientFault(t, result, err).Code)
	})
}

// clientChild is the environment's name of what clientBeChild is to do: the
// environment's proxy is read once in a process.
const clientChild = "ALICAPTCHA_TEST_CHILD"

// clientRunChild runs clientBeChild in a process of its own and returns what it prints.
func clientRunChild(t *testing.T, task string, env ...string) string {
	t.Helper()
	path, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), path)
	for _, pair := range os.Environ() {
		if name, _, _ := strings.Cut(strings.ToUpper(pair), "="); !strings.HasSuffix(name, "_PROXY") && name != "REQUEST_METHOD" {
			cmd.Env = append(cmd.Env, pair)
		}
	}
	cmd.Env = append(append(cmd.Env, clientChild+"="+task), env...)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	require.Contains(t, string(out), "child:")
	return string(out)
}

// clientBeChild does what the environment says, in a process of its own; see TestMain.
func clientBeChild() {
	task, endpoint, _ := strings.Cut(os.Getenv(clientChild), " ")
	cfg := alicaptcha.ClientConfig{Endpoint: endpoint, AccessKeyID: "test-id", AccessKeySecret: "test-secret"}
	switch task {
	case "unset":
		os.Unsetenv("DEBUG")
	case "set":
		os.Setenv("DEBUG", "dara")
	case "credential":
		cfg = alicaptcha.ClientConfig{Endpoint: endpoint, Credential: clientGiving(clientModel("test-id", "test-secret", ""), nil)}
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

// net/http would go round a proxy that it cannot read, or take another host for it.
func TestNewClientMalformedProxyInTheEnvironment(t *testing.T) {
	for _, proxy := range []string{"http://user:hunter2@bad host", "http://user:hunter2@proxy:port", "user:hunter2@proxy:80%zz", "://user:hunter2"} {
		out := clientRunChild(t, "new https://captcha.example", "HTTPS_PROXY="+proxy, "HTTP_PROXY="+proxy)
		require.NotContains(t, out, "hunter2")
		require.Contains(t, out, "HTTPS_PROXY", proxy)
	}
	for _, env := range []string{"HTTPS_PROXY=http://user:hunter2@proxy:8080", "HTTPS_PROXY=proxy:8080", "HTTP_PROXY=http://user:hunter2@bad host"} {
		require.Contains(t, clientRunChild(t, "new https://captcha.example", env), "child: <nil>", env)
	}
}

// Without a Transport: the environment's proxy gets its password and the
// service does not, one connection serves, and it is never HTTP/2: there one
// client's hang-ups would end the calls of all.
func TestClientDefaultTransportThroughAProxy(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("SSL_CERT_FILE is not read here")
	}
	sim := alicaptchatest.NewSimulator(alicaptchatest.Config{})
	var protos sync.Map
	origin := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		protos.Store(r.Proto, true)
		sim.ServeHTTP(w, r)
	}))
	origin.EnableHTTP2 = true
	origin.StartTLS()
	defer origin.Close()
	addr, asked := clientProxy(t, origin.Listener.Addr().String())
	roots := filepath.Join(t.TempDir(), "roots.pem")
	require.NoError(t, os.WriteFile(roots, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: origin.Certificate().Raw}), 0o600))
	out := clientRunChild(t, "verify https://example.com", "HTTPS_PROXY=http://user:hunter2@"+addr, "SSL_CERT_FILE="+roots, "SSL_CERT_DIR="+t.TempDir())
	require.Equal(t, 3, strings.Count(out, "child: F003 <nil>"), out)
	require.Len(t, asked(), 1)
	require.Equal(t, "example.com:443", asked()[0].Host)
	require.NotEmpty(t, asked()[0].Header.Get("Proxy-Authorization"))
	require.Len(t, sim.Calls(), 3)
	for _, call := range sim.Calls() {
		require.Empty(t, call.Header.Get("Proxy-Authorization"))
	}
	require.Equal(t, []any{"HTTP/1.1"}, slices.Collect(func(yield func(any) bool) { protos.Range(func(k, _ any) bool { return yield(k) }) }))

	// Nobody's certificate is believed without a root for it.
	out = clientRunChild(t, "verify https://example.com", "HTTPS_PROXY=http://user:hunter2@"+addr, "SSL_CERT_FILE="+roots+".none", "SSL_CERT_DIR="+t.TempDir())
	require.Equal(t, 3, strings.Count(out, "alicaptcha: service_unavailable: tls: failed to verify certificate"), out)
	require.NotContains(t, out, "hunter2")
	require.Len(t, sim.Calls(), 3)
}

// ---- secrets

func TestClientRedaction(t *testing.T) {
	req := alicaptcha.Request{Param: clientParam, SceneID: "login-scene"}
	cfg := clientConfig(nil)
	cfg.Endpoint = "https://captcha.example"
	cfg.Credential = clientGiving(clientModel(clientID, clientSecret, clientSTS), nil)
	cfg.Logger = slog.New(slog.NewTextHandler(io.Discard, nil)).With("key", clientSecret)
	withPassword := alicaptcha.ClientConfig{Endpoint: "https://user:hunter2@captcha.example", AccessKeySecret: clientSecret}
	type holder struct {
		Request *alicaptcha.Request
		Config  alicaptcha.ClientConfig
	}
	values := map[string]any{
		"Request": req, "*Request": &req,
		"ClientConfig": cfg, "*ClientConfig": &cfg, "ClientConfig with a password": withPassword, "*ClientConfig with a password": &withPassword,
		"*Client": clientNew(t, clientConfig(clientCanned(200, clientPass))), "*Client with a Credential": func() any {
			cfg := cfg
			cfg.Transport = clientCanned(200, clientPass)
			return clientNew(t, cfg)
		}(),
		"[]Request": []alicaptcha.Request{req}, "map of Request": map[string]alicaptcha.Request{"x": req}, "struct": holder{&req, cfg}, "*struct": &holder{&req, cfg},
		"[]ClientConfig": []alicaptcha.ClientConfig{{AccessKeyID: clientID, AccessKeySecret: clientSecret, SecurityToken: clientSTS}},
	}
	for name, value := range values {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x", "%X", "%t", "%f", "%U", "%10v", "%-10.3v", "% x", "%!"} {
				fmt.Fprintf(&out, verb+"\n", value)
			}
			fmt.Fprintln(&out, value, fmt.Errorf("x: %v", value))
			clientRedacted(t, out.String())
			for _, format := range []func(io.Writer) slog.Handler{
				func(w io.Writer) slog.Handler { return slog.NewTextHandler(w, nil) },
				func(w io.Writer) slog.Handler { return slog.NewJSONHandler(w, nil) },
			} {
				var log bytes.Buffer
				logger := slog.New(format(&log))
				logger.Info("x", "value", value)
				logger.Info("x", slog.Group("g", slog.Any("value", value)))
				logger.With("value", value).WithGroup("g").Info("x")
				clientRedacted(t, log.String())
			}
		})
	}

	require.Equal(t, `{Param:[47 bytes] SceneID:"login-scene"}`, fmt.Sprintf("%+v", req))
	require.Equal(t, `{Region:"cn" Endpoint:"https://captcha.example"}`, fmt.Sprint(cfg))
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "req", &req, "cfg", cfg)
	require.Contains(t, log.String(), `req.param_bytes=47 req.scene=login-scene cfg.region=cn cfg.endpoint=https://captcha.example`)
	require.NotPanics(t, func() { _ = fmt.Sprintf("%v %+v", (*alicaptcha.Request)(nil), (*alicaptcha.ClientConfig)(nil)) })
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "req", (*alicaptcha.Request)(nil), "cfg", (*alicaptcha.ClientConfig)(nil))
}

func clientRedacted(t *testing.T, text string) {
	t.Helper()
	for _, word := range clientWords {
		require.NotContains(t, text, word)
		require.NotContains(t, strings.ToLower(text), hex.EncodeToString([]byte(word)))
	}
}

func TestErrorText(t *testing.T) {
	for _, tc := range []struct {
		err  *alicaptcha.Error
		want string
	}{
		{nil, "alicaptcha: no verdict"},
		{&alicaptcha.Error{Code: alicaptcha.ServiceTimeout}, "alicaptcha: service_timeout"},
		{&alicaptcha.Error{Code: alicaptcha.ServiceUnavailable, Status: 502}, "alicaptcha: service_unavailable (status 502)"},
		{&alicaptcha.Error{Code: alicaptcha.RequestRefused, Status: 401, ServiceCode: "InvalidParameter", RequestID: "R-1"}, "alicaptcha: request_refused (status 401, code InvalidParameter, request R-1)"},
		{&alicaptcha.Error{Code: alicaptcha.Misconfigured, RequestID: "R-1"}, "alicaptcha: misconfigured (request R-1)"},
		{&alicaptcha.Error{Code: alicaptcha.ServiceUnavailable, Err: errors.New(clientSecret)}, "alicaptcha: service_unavailable"},
		{&alicaptcha.Error{Code: alicaptcha.ServiceUnavailable, Err: context.Canceled}, "alicaptcha: service_unavailable"},
		{&alicaptcha.Error{Code: alicaptcha.ServiceUnavailable, Err: &alicaptcha.Error{Err: errors.New(clientSecret)}}, "alicaptcha: service_unavailable"},
	} {
		require.Equal(t, tc.want, tc.err.Error())
		require.Equal(t, tc.want, fmt.Sprint(tc.err))
		clientShowsNothing(t, tc.err)
	}
}

func TestErrorNil(t *testing.T) {
	var fault *alicaptcha.Error
	require.NotPanics(t, func() {
		require.NoError(t, fault.Unwrap())
		require.NotErrorIs(t, error(fault), context.Canceled)
		_, ok := errors.AsType[*net.OpError](error(fault))
		require.False(t, ok)
	})
}

func TestErrorUnwraps(t *testing.T) {
	cause := errors.New("cause")
	err := fmt.Errorf("login: %w", &alicaptcha.Error{Code: alicaptcha.ServiceUnavailable, Err: fmt.Errorf("deep: %w", cause)})
	require.ErrorIs(t, err, cause)

	for _, cause := range []error{errors.New(clientMessage), io.ErrUnexpectedEOF, &net.DNSError{Err: "no such host", Name: "captcha.example"}, &net.OpError{Op: "dial", Net: "tcp", Err: io.EOF}} {
		result, err := clientAsk(t, t.Context(), clientNew(t, clientConfig(clientFailing(fmt.Errorf("x: %w", cause)))))
		clientFault(t, result, err)
		require.ErrorIs(t, err, cause)
	}
	for _, cause := range []error{context.Canceled, context.DeadlineExceeded} { // a Transport's, while the context lives
		result, err := clientAsk(t, t.Context(), clientNew(t, clientConfig(clientFailing(cause))))
		require.NotEqual(t, alicaptcha.ClientCanceled, clientFault(t, result, err).Code)
		require.ErrorIs(t, err, cause)
	}
}

// The texts of errors that Client makes: what an operator needs and no more.
func TestErrorTextsOfTheConnection(t *testing.T) {
	serverTLS, clientTLS, _ := clientTLS(t)
	untrusted := func(config *tls.Config) *tls.Config {
		config = config.Clone()
		config.RootCAs = x509.NewCertPool()
		return config
	}
	secure := func(t *testing.T, config *tls.Config) string {
		return "https://" + clientRaw(t, func(raw net.Conn) {
			conn := tls.Server(raw, config)
			if clientReadCall(bufio.NewReader(conn)) {
				io.WriteString(conn, clientWire(200, clientPass))
			}
			conn.Close()
		})
	}
	secret := errors.New("read: " + clientSecret + clientParam)
	for name, tc := range map[string]struct {
		client func(t *testing.T) *alicaptcha.Client
		code   alicaptcha.Code
		want   string // in the text
	}{
		"any": {func(t *testing.T) *alicaptcha.Client { return clientNew(t, clientConfig(clientFailing(secret))) }, alicaptcha.ServiceUnavailable, ""},
		"read": {func(t *testing.T) *alicaptcha.Client {
			return clientNew(t, clientConfig(clientFailing(&net.OpError{Op: "read", Net: "tcp", Err: secret})))
		}, alicaptcha.ServiceUnavailable, ""},
		"reset": {func(t *testing.T) *alicaptcha.Client {
			return clientNew(t, clientConfig(clientFailing(&net.OpError{Op: "read", Net: "tcp", Err: os.NewSyscallError("read", syscall.ECONNRESET)})))
		}, alicaptcha.ServiceUnavailable, "read: connection reset by peer"},
		"closed": {func(t *testing.T) *alicaptcha.Client { return clientNew(t, clientConfig(clientFailing(io.EOF))) }, alicaptcha.ServiceUnavailable, "closed before the end"},
		"a proxy that is down": {func(t *testing.T) *alicaptcha.Client {
			return clientNew(t, clientConfig(clientFailing(&net.OpError{Op: "proxyconnect", Net: "tcp", Err: &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}})))
		}, alicaptcha.ServiceUnavailable, "dial tcp: connect: connection refused"},
		// What runs out here is what clients can use up.
		"no descriptors": {func(t *testing.T) *alicaptcha.Client {
			return clientNew(t, clientConfig(clientFailing(&net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("socket", syscall.EMFILE)})))
		}, alicaptcha.Overloaded, "too many open files"},
		"no descriptors for DNS": {func(t *testing.T) *alicaptcha.Client {
			return clientNew(t, clientConfig(clientFailing(&net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Err: "dial udp 127.0.0.1:53: socket: too many open files", Name: "captcha.example"}})))
		}, alicaptcha.Overloaded, "too many open files"},
		"URL": {func(t *testing.T) *alicaptcha.Client {
			return clientNew(t, clientConfig(clientFailing(&url.Error{Op: "Post", URL: "https://user:hunter2@host", Err: secret})))
		}, alicaptcha.ServiceUnavailable, ""},
		"an *Error of a Transport": {func(t *testing.T) *alicaptcha.Client { // not the service's word
			return clientNew(t, clientConfig(clientFailing(&alicaptcha.Error{Code: alicaptcha.T001, Err: secret})))
		}, alicaptcha.ServiceUnavailable, ""},
		"DNS": {func(t *testing.T) *alicaptcha.Client {
			return clientNew(t, clientConfig(clientFailing(&net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Err: "no such host", Name: "captcha.example", IsNotFound: true}})))
		}, alicaptcha.ServiceUnavailable, "lookup captcha.example: no such host"},
		"DNS timeout": {func(t *testing.T) *alicaptcha.Client {
			return clientNew(t, clientConfig(clientFailing(&net.DNSError{Err: "i/o timeout", Name: "captcha.example", IsTimeout: true})))
		}, alicaptcha.ServiceTimeout, "lookup captcha.example"},
		"untrusted certificate": {func(t *testing.T) *alicaptcha.Client {
			return clientAt(t, secure(t, serverTLS), func(tr *http.Transport) { tr.TLSClientConfig = untrusted(clientTLS) })
		}, alicaptcha.ServiceUnavailable, "failed to verify certificate"},
		"certificate of another host": {func(t *testing.T) *alicaptcha.Client {
			return clientAt(t, secure(t, serverTLS), func(tr *http.Transport) {
				tr.TLSClientConfig = clientTLS.Clone()
				tr.TLSClientConfig.ServerName = "captcha.example"
			})
		}, alicaptcha.ServiceUnavailable, "captcha.example"},
		"plain text instead of TLS": {func(t *testing.T) *alicaptcha.Client {
			return clientAt(t, "https://"+clientRaw(t, func(conn net.Conn) {
				io.ReadFull(conn, make([]byte, 5))
				io.WriteString(conn, clientMessage)
			}), func(tr *http.Transport) { tr.TLSClientConfig = clientTLS.Clone() })
		}, alicaptcha.ServiceUnavailable, "does not look like a TLS handshake"},
		"HTTP instead of TLS": {func(t *testing.T) *alicaptcha.Client {
			return clientAt(t, "https://"+clientRaw(t, func(conn net.Conn) {
				io.ReadFull(conn, make([]byte, 5))
				io.WriteString(conn, clientWire(400, clientMessage))
			}), func(tr *http.Transport) { tr.TLSClientConfig = clientTLS.Clone() })
		}, alicaptcha.ServiceUnavailable, ""},
		"alert in the handshake": {func(t *testing.T) *alicaptcha.Client {
			config := serverTLS.Clone()
			config.MinVersion = tls.VersionTLS13
			return clientAt(t, secure(t, config), func(tr *http.Transport) {
				tr.TLSClientConfig = clientTLS.Clone()
				tr.TLSClientConfig.MaxVersion = tls.VersionTLS12
			})
		}, alicaptcha.ServiceUnavailable, "protocol version not supported"},
		"alert after the handshake": {func(t *testing.T) *alicaptcha.Client {
			config := serverTLS.Clone()
			config.ClientAuth = tls.RequireAnyClientCert
			return clientAt(t, secure(t, config), func(tr *http.Transport) { tr.TLSClientConfig = clientTLS.Clone() })
		}, alicaptcha.ServiceUnavailable, ""},
		"TLS instead of HTTP": {func(t *testing.T) *alicaptcha.Client {
			return clientAt(t, strings.Replace(secure(t, serverTLS), "https", "http", 1))
		}, alicaptcha.ServiceUnavailable, ""},
	} {
		t.Run(name, func(t *testing.T) {
			result, err := clientAsk(t, t.Context(), tc.client(t))
			fault := clientFault(t, result, err)
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
	failing := func(err error) clientTransport { return clientFailing(fmt.Errorf("x: %w", err)) }
	whileReading := func(err error) clientTransport {
		return func(*http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 200, Body: io.NopCloser(clientErrorReader{err})}, nil
		}
	}
	connected := func(err error) clientTransport {
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
				for _, transport := range []clientTransport{failing(cause), whileReading(cause)} {
					result, err := clientAsk(t, t.Context(), clientNew(t, clientConfig(transport)))
					require.Equal(t, want, clientFault(t, result, err).Code)
					require.ErrorIs(t, err, cause)
				}
				client := clientNew(t, clientConfig(connected(cause)))
				result, err := client.Verify(t.Context(), alicaptcha.Request{Param: strings.Repeat("x", 9<<10)})
				long := clientFault(t, result, err).Code
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
		canned := clientCanned(400, `{"RequestId":"`+id+`","Code":"`+code+`"}`)
		result, err := clientAsk(t, t.Context(), clientNew(t, clientConfig(canned)))
		fault := clientFault(t, result, err)
		require.Equal(t, alicaptcha.RequestRefused, fault.Code)
		require.Equal(t, shown, strings.Contains(err.Error(), "request "+id), length)
		require.Equal(t, shown, strings.Contains(err.Error(), "code "+code), length)
		require.Equal(t, shown, fault.RequestID == id)
		require.Equal(t, shown, fault.ServiceCode == code)

		canned = clientCanned(200, `{"RequestId":"`+id+`","Code":"Success","Success":true,"Result":{"VerifyResult":true}}`)
		result, err = clientAsk(t, t.Context(), clientNew(t, clientConfig(canned)))
		require.NoError(t, err)
		require.Equal(t, shown, result.RequestID == id)
		require.Equal(t, !shown, result.RequestID == "")
	}
}

// Nothing is printed by a call, whatever comes back.
func TestClientPrintsNothing(t *testing.T) {
	read, write, err := os.Pipe()
	require.NoError(t, err)
	stdout, stderr := os.Stdout, os.Stderr
	os.Stdout, os.Stderr = write, write
	for _, status := range []int{200, 400, 403, 500} {
		for _, body := range []string{clientPass, "junk"} {
			clientNew(t, clientConfig(clientCanned(status, body))).Verify(t.Context(), alicaptcha.Request{Param: clientParam})
		}
	}
	os.Stdout, os.Stderr = stdout, stderr
	write.Close()
	out, err := io.ReadAll(read)
	require.NoError(t, err)
	require.Empty(t, string(out))
}

// ---- the param and the call

func TestClientParamIsSentByteForByte(t *testing.T) {
	sim := alicaptchatest.Start(t, alicaptchatest.Config{})
	client := sim.Client()
	all := strings.Builder{}
	for r := range rune(0x300) {
		all.WriteRune(r)
	}
	params := []string{
		"a", " ", "\x00", "\n", " a ", "\ta\r\n", "a=b&c=d;e", "CaptchaVerifyParam=x&SceneId=other", `"quoted"`, `'single'`, `\backslash\u0041`, "<script>&amp;</script>",
		"+", "%", "%20", "%2B+ ", "a+b c%2Bd", "100%", "\u2028\u2029", "😀👩‍👩‍👧", "é e\u0301", "\ufeffbom", "\ufffd", "\U0010ffff", "中文", "\u007f\u0080", "~*()!'-_.",
		"null", "true", "123", "1e400", "[]", `{}`, `[1,2]`, `{"a":{"b":[1,"2",null]},"a":1}`, `{"n":12345678901234567890,"f":1.0}`, "a.1=b", all.String(), strings.Repeat("+/=%\"", 6000),
	}
	for _, i := range []alicaptchatest.Issue{{SceneID: "login"}, {SceneID: "login", Format: alicaptchatest.V2}, {SceneID: "login", Format: alicaptchatest.V2, Bytes: 28000}} {
		param, err := sim.Issue(i)
		require.NoError(t, err)
		params = append(params, param)
	}
	for _, param := range params {
		before := sim.Count()
		_, err := client.Verify(t.Context(), alicaptcha.Request{Param: param, SceneID: "login"})
		require.NoError(t, err)
		calls := sim.Calls()
		require.Equal(t, before+1, sim.Count())
		require.Equal(t, param, calls[len(calls)-1].Param)
		require.Equal(t, "Success", calls[len(calls)-1].ServiceCode) // so it was well signed
	}
}

func TestClientScene(t *testing.T) {
	sim := alicaptchatest.Start(t, alicaptchatest.Config{Scenes: []string{"login", "场景 +&=%"}})
	client := sim.Client()
	for _, scene := range []string{"", "login", "场景 +&=%", " ", "other"} {
		_, err := client.Verify(t.Context(), alicaptcha.Request{Param: "x", SceneID: scene})
		require.NoError(t, err)
		call := sim.Calls()[sim.Count()-1]
		require.Equal(t, scene, call.SceneID)
		require.Equal(t, scene != "", call.HasSceneID)
	}
}

// What is on the wire, as the service's manual has it.
func TestClientCall(t *testing.T) {
	var got *http.Request
	var body []byte
	cfg := clientConfig(clientTransport(func(r *http.Request) (*http.Response, error) {
		got = r
		body, _ = io.ReadAll(r.Body)
		return clientCanned(200, clientPass)(r)
	}))
	client := clientNew(t, cfg)
	_, err := client.Verify(t.Context(), alicaptcha.Request{Param: clientParam, SceneID: "login"})
	require.NoError(t, err)
	header := func(name string) string { // the SDK writes names in lower case
		for key, values := range got.Header {
			if strings.EqualFold(key, name) {
				return strings.Join(values, "|")
			}
		}
		return ""
	}
	require.Equal(t, "POST https://captcha.cn-shanghai.aliyuncs.com/", got.Method+" "+got.URL.String())
	require.Equal(t, "VerifyIntelligentCaptcha", header("x-acs-action"))
	require.Equal(t, "2023-03-05", header("x-acs-version"))
	require.Equal(t, "application/x-www-form-urlencoded", header("content-type"))
	require.Equal(t, "identity", header("accept-encoding"))
	require.Equal(t, clientSTS, header("x-acs-security-token"))
	require.Contains(t, header("authorization"), "ACS3-HMAC-SHA256 Credential="+clientID+",SignedHeaders=")
	require.Contains(t, header("authorization"), "x-acs-security-token")
	require.NotContains(t, fmt.Sprint(got.Header), clientSecret)
	date, err := time.Parse("2006-01-02T15:04:05Z", header("x-acs-date"))
	require.NoError(t, err)
	require.WithinDuration(t, time.Now(), date, time.Minute)
	form, err := url.ParseQuery(string(body))
	require.NoError(t, err)
	require.Equal(t, url.Values{"CaptchaVerifyParam": {clientParam}, "SceneId": {"login"}}, form)
	require.EqualValues(t, len(body), got.ContentLength)
}

func TestClientParamThatIsNotSent(t *testing.T) {
	sim := alicaptchatest.Start(t, alicaptchatest.Config{})
	client := sim.Client()
	for param, want := range map[string]alicaptcha.Code{
		"": alicaptcha.ParamMissing, "\xff": alicaptcha.ParamMalformed, "a\xffb": alicaptcha.ParamMalformed, "\xed\xa0\x80": alicaptcha.ParamMalformed,
		"\xc0\x80": alicaptcha.ParamMalformed, "\xe4\xb8": alicaptcha.ParamMalformed, "\xf4\x90\x80\x80": alicaptcha.ParamMalformed, strings.Repeat("x", 5000) + "\x80": alicaptcha.ParamMalformed,
	} {
		result, err := client.Verify(t.Context(), alicaptcha.Request{Param: param, SceneID: "login"})
		require.Equal(t, want, clientFault(t, result, err).Code, "%q", param)
	}
	require.Zero(t, sim.Count())
}

// ---- credentials

func TestClientCredentials(t *testing.T) {
	t.Setenv("ALIBABA_CLOUD_ACCESS_KEY_ID", "env-id")
	t.Setenv("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "env-secret")
	type keys struct{ id, secret, token string }
	env := keys{"env-id", "env-secret", ""}
	envSTS := keys{"env-id", "env-secret", "env-sts"}
	given := keys{clientID, clientSecret, ""}
	givenSTS := keys{clientID, clientSecret, clientSTS}
	provider := func(k keys) credentials.Credential {
		config := new(credentials.Config).SetType("access_key").SetAccessKeyId(k.id).SetAccessKeySecret(k.secret)
		if k.token != "" {
			config.SetType("sts").SetSecurityToken(k.token)
		}
		credential, err := credentials.NewCredential(config)
		require.NoError(t, err)
		return credential
	}
	for name, tc := range map[string]struct {
		envToken string
		cfg      keys
		source   credentials.Credential
		want     keys
	}{
		"given":                       {cfg: given, want: given},
		"given with a token":          {cfg: givenSTS, want: givenSTS},
		"given, not the env's token":  {cfg: given, envToken: "env-sts", want: given},
		"environment":                 {want: env},
		"environment with a token":    {envToken: "env-sts", want: envSTS},
		"Credential":                  {source: provider(given), want: given},
		"Credential with a token":     {source: provider(givenSTS), want: givenSTS},
		"Credential over half a pair": {cfg: keys{id: "half"}, source: provider(given), want: given},
		"Credential of the smallest":  {source: clientGiving(&credentials.CredentialModel{AccessKeyId: new(clientID), AccessKeySecret: new(clientSecret)}, nil), want: given},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("ALIBABA_CLOUD_SECURITY_TOKEN", tc.envToken)
			sim := alicaptchatest.Start(t, alicaptchatest.Config{AccessKeyID: tc.want.id, AccessKeySecret: tc.want.secret, SecurityToken: tc.want.token})
			cfg := sim.ClientConfig()
			cfg.AccessKeyID, cfg.AccessKeySecret, cfg.SecurityToken, cfg.Credential = tc.cfg.id, tc.cfg.secret, tc.cfg.token, tc.source
			client := clientNew(t, cfg)
			t.Setenv("ALIBABA_CLOUD_ACCESS_KEY_ID", "another") // asked once
			param, err := sim.Issue(alicaptchatest.Issue{SceneID: "login"})
			require.NoError(t, err)
			result, err := client.Verify(t.Context(), alicaptcha.Request{Param: param, SceneID: "login"})
			require.NoError(t, err)
			require.True(t, result.Passed)
			auth := sim.Calls()[0].Header.Get("Authorization")
			require.Equal(t, tc.want.token != "", strings.Contains(auth, "x-acs-security-token"))
			require.Equal(t, tc.want.token != "", strings.Contains(auth, "x-acs-accesskey-id"))
		})
	}
}

// clientRotation is a Credential whose n-th answer is the id "key-n", and a
// Client that tells which id signed.
type clientRotation struct {
	log     logbook
	mu      sync.Mutex
	asked   int
	at      int // how many ask now
	most    int
	before  func(n int) error // runs within each ask
	signers []string
	client  *alicaptcha.Client
}

func (c *clientRotation) source() *clientSource {
	return &clientSource{get: func() (*credentials.CredentialModel, error) {
		c.mu.Lock()
		c.asked++
		n := c.asked
		c.at++
		c.most = max(c.most, c.at)
		before := c.before
		c.mu.Unlock()
		defer func() {
			c.mu.Lock()
			c.at--
			c.mu.Unlock()
		}()
		if before != nil {
			if err := before(n); err != nil {
				return nil, err
			}
		}
		return clientModel(fmt.Sprintf("key-%d", n), clientSecret, fmt.Sprintf("token-%d", n)), nil
	}}
}

func clientRotate(t *testing.T, before func(n int) error) *clientRotation {
	c := &clientRotation{before: before}
	cfg := clientConfig(clientTransport(func(r *http.Request) (*http.Response, error) {
		_, rest, _ := strings.Cut(r.Header.Get("Authorization"), "Credential=")
		id, _, _ := strings.Cut(rest, ",")
		c.mu.Lock()
		c.signers = append(c.signers, id)
		c.mu.Unlock()
		return clientCanned(200, clientPass)(r)
	}))
	cfg.Credential, cfg.Logger = c.source(), slog.New(&c.log)
	c.client = clientNew(t, cfg)
	t.Cleanup(func() { time.Sleep(time.Minute) }) // a question that is under way ends before the bubble does
	return c
}

// verify returns the id that signed a call.
func (c *clientRotation) verify(t *testing.T) string {
	t.Helper()
	_, err := c.client.Verify(context.Background(), alicaptcha.Request{Param: clientParam})
	require.NoError(t, err)
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.signers[len(c.signers)-1]
}

func (c *clientRotation) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.asked
}

func TestClientRotatesKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := clientRotate(t, nil)
		require.Equal(t, 1, c.count())
		for range 60 { // once in a minute, however many calls there are
			require.Equal(t, "key-1", c.verify(t))
			time.Sleep(time.Second)
		}
		synctest.Wait()
		require.Equal(t, 1, c.count())

		time.Sleep(time.Second)
		require.Equal(t, "key-1", c.verify(t), "the old keys serve while new ones are asked for")
		synctest.Wait()
		require.Equal(t, 2, c.count())
		require.Equal(t, "key-2", c.verify(t))
		require.Equal(t, 2, c.count())

		time.Sleep(150 * time.Second)
		require.Equal(t, "key-2", c.verify(t))
		synctest.Wait()
		require.Equal(t, "key-3", c.verify(t))

		time.Sleep(150*time.Second + 1) // idle for so long that the keys may have ended
		require.Equal(t, "key-4", c.verify(t), "the call waits for new keys")
		time.Sleep(24 * time.Hour)
		require.Equal(t, "key-5", c.verify(t))
		require.Equal(t, 5, c.count())
	})
}

// Keys are asked for again once they were last asked for more than a minute ago, and
// waited for once they came more than 150 s ago.
func TestClientRotatesKeysAtTheirAge(t *testing.T) {
	for _, row := range []struct {
		age   time.Duration // of the keys when a call needs them
		asked bool
		waits time.Duration
	}{
		{60 * time.Second, false, 0},
		{60*time.Second + 1, true, 0},
		{150 * time.Second, true, 0},
		{150*time.Second + 1, true, time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			c := clientRotate(t, func(n int) error {
				if n > 1 {
					time.Sleep(time.Second)
				}
				return nil
			})
			time.Sleep(row.age)
			start := time.Now()
			id := c.verify(t)
			require.Equal(t, row.waits, time.Since(start), row.age)
			require.Equal(t, row.waits != 0, id == "key-2", row.age)
			synctest.Wait()
			require.Equal(t, row.asked, c.count() == 2, row.age)
			if !row.asked {
				return
			}

			time.Sleep(60*time.Second - time.Since(start)) // the keys came a second after they were asked for
			require.Equal(t, "key-2", c.verify(t))
			synctest.Wait()
			require.Equal(t, 2, c.count(), row.age)
			time.Sleep(1)
			require.Equal(t, "key-2", c.verify(t))
			synctest.Wait()
			require.Equal(t, 3, c.count(), row.age)

			time.Sleep(time.Second) // until they are there
			for range 2 {
				time.Sleep(150 * time.Second)
				start = time.Now()
				require.Equal(t, fmt.Sprintf("key-%d", c.count()), c.verify(t))
				require.Zero(t, time.Since(start))
				time.Sleep(time.Second)
			}
		})
	}
}

// A source that has failed is not waited for, as long as its failure is not older
// than 150 s; one that is silent is waited for until it has had ten seconds.
func TestClientPatienceWithACredential(t *testing.T) {
	for age, waits := range map[time.Duration]bool{150 * time.Second: false, 150*time.Second + 1: true} {
		synctest.Test(t, func(t *testing.T) {
			c := clientRotate(t, func(n int) error {
				switch n {
				case 1:
					return nil
				case 2:
					return errClientSource
				}
				time.Sleep(time.Second)
				return nil
			})
			time.Sleep(61 * time.Second)
			require.Equal(t, "key-1", c.verify(t))
			synctest.Wait()
			require.Equal(t, 2, c.count())
			time.Sleep(age)
			start := time.Now()
			require.Equal(t, map[bool]string{false: "key-1", true: "key-3"}[waits], c.verify(t), age)
			require.Equal(t, waits, time.Since(start) == time.Second, age)
			time.Sleep(time.Minute)
		})
	}
	for asked, overdue := range map[time.Duration]bool{10 * time.Second: false, 10*time.Second + 1: true} {
		synctest.Test(t, func(t *testing.T) {
			release := make(chan struct{})
			c := clientRotate(t, func(n int) error {
				if n > 1 {
					<-release
				}
				return nil
			})
			time.Sleep(61 * time.Second)
			require.Equal(t, "key-1", c.verify(t))
			time.Sleep(asked)
			require.Equal(t, "key-1", c.verify(t))
			require.Equal(t, overdue, c.log.String() != "", asked)
			close(release)
			synctest.Wait()
		})
	}
}

func TestClientSlowCredential(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := clientRotate(t, func(n int) error {
			if n > 1 {
				time.Sleep(3 * time.Second)
			}
			return nil
		})
		time.Sleep(61 * time.Second)
		start := time.Now()
		require.Equal(t, "key-1", c.verify(t))
		require.Zero(t, time.Since(start), "nobody waits while the old keys serve")
		time.Sleep(3 * time.Second)
		synctest.Wait()
		require.Equal(t, "key-2", c.verify(t))

		time.Sleep(time.Hour)
		start = time.Now()
		require.Equal(t, "key-3", c.verify(t))
		require.Equal(t, 3*time.Second, time.Since(start))
	})
}

// After a failure nobody waits for the next one.
func TestClientCredentialThatFailsSlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := clientRotate(t, func(n int) error {
			if n == 1 {
				return nil
			}
			time.Sleep(3 * time.Second)
			return errClientSource
		})
		for range 10 {
			time.Sleep(61 * time.Second)
			start := time.Now()
			require.Equal(t, "key-1", c.verify(t))
			require.Zero(t, time.Since(start))
		}
		synctest.Wait()
		require.Equal(t, 11, c.count())

		// But what it said long ago says nothing of now.
		time.Sleep(time.Hour)
		start := time.Now()
		require.Equal(t, "key-1", c.verify(t))
		require.Equal(t, 3*time.Second, time.Since(start))
	})
}

// A failure before a quiet time does not have the next login signed with keys
// that have ended meanwhile.
func TestClientCredentialThatFailedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := clientRotate(t, func(n int) error {
			if n == 2 {
				return errClientSource
			}
			time.Sleep(time.Second)
			return nil
		})
		time.Sleep(61 * time.Second)
		require.Equal(t, "key-1", c.verify(t))
		synctest.Wait()
		time.Sleep(6 * time.Hour)
		var logins sync.WaitGroup
		for range 5 { // not only the first that asks
			logins.Go(func() { c.client.Verify(t.Context(), alicaptcha.Request{Param: clientParam}) })
		}
		logins.Wait()
		require.Equal(t, []string{"key-1", "key-3", "key-3", "key-3", "key-3", "key-3"}, c.signers)
		require.Equal(t, 3, c.count())
		require.Contains(t, c.log.String(), "gives keys again")
	})
}

func TestClientHangingCredential(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		held, release := context.WithCancel(t.Context())
		c := clientRotate(t, func(n int) error {
			if n > 1 {
				<-held.Done()
			}
			return nil
		})
		time.Sleep(61 * time.Second)
		for range 80 { // as long as the old keys are good for certain
			require.Equal(t, "key-1", c.verify(t))
			time.Sleep(time.Second)
		}
		require.Equal(t, 2, c.count(), "one question at a time")

		// A source that hangs stalls nobody: the service may still take the old keys.
		time.Sleep(time.Hour)
		start := time.Now()
		require.Equal(t, "key-1", c.verify(t))
		require.Zero(t, time.Since(start))
		require.Equal(t, 2, c.count())

		release()
		synctest.Wait()
		require.Equal(t, "key-2", c.verify(t))
	})
}

// After a quiet time the keys may have ended, so a call waits for new ones, but
// neither past its context nor for longer than the source is given.
func TestClientWaitsForKeysThatMayHaveEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		held, release := context.WithCancel(t.Context())
		c := clientRotate(t, func(n int) error {
			if n > 1 {
				<-held.Done()
			}
			return nil
		})
		time.Sleep(time.Hour)
		start := time.Now()
		result, err := c.client.Verify(context.Background(), alicaptcha.Request{Param: clientParam})
		require.Equal(t, alicaptcha.ServiceTimeout, clientFault(t, result, err).Code)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, 5*time.Second, time.Since(start))

		ctx, cancel := context.WithCancel(context.Background())
		time.AfterFunc(time.Second, cancel)
		result, err = c.client.Verify(ctx, alicaptcha.Request{Param: clientParam})
		require.Equal(t, alicaptcha.ClientCanceled, clientFault(t, result, err).Code)
		require.Equal(t, 6*time.Second, time.Since(start))

		require.Equal(t, "key-1", c.verify(t))
		require.Equal(t, 10*time.Second, time.Since(start))
		release()
	})
}

func TestClientCredentialThatFails(t *testing.T) {
	for name, fail := range map[string]func() error{
		"error":     func() error { return errClientSource },
		"panic":     func() error { panic(errClientSource) },
		"nil panic": func() error { panic(nil) },
		"exit":      func() error { runtime.Goexit(); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var failing atomic.Bool
				c := clientRotate(t, func(int) error {
					if failing.Load() {
						return fail()
					}
					return nil
				})
				failing.Store(true)
				time.Sleep(61 * time.Second)
				require.Equal(t, "key-1", c.verify(t))
				synctest.Wait()
				require.Equal(t, 2, c.count())
				for range 59 {
					require.Equal(t, "key-1", c.verify(t))
					time.Sleep(time.Second)
				}
				synctest.Wait()
				require.Equal(t, 2, c.count(), "not asked again at once")

				time.Sleep(time.Hour) // idle: the old keys are all there is
				require.Equal(t, "key-1", c.verify(t))
				synctest.Wait()
				require.Equal(t, 3, c.count())

				failing.Store(false)
				time.Sleep(61 * time.Second)
				c.verify(t)
				synctest.Wait()
				require.Equal(t, "key-4", c.verify(t))
			})
		})
	}
	t.Run("keys that are no pair", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			n := 0
			var used string
			cfg := clientConfig(clientTransport(func(r *http.Request) (*http.Response, error) {
				used = r.Header.Get("Authorization")
				return clientCanned(200, clientPass)(r)
			}))
			cfg.Credential = &clientSource{get: func() (*credentials.CredentialModel, error) {
				if n++; n == 1 {
					return clientModel("key-1", clientSecret, ""), nil
				}
				return []*credentials.CredentialModel{nil, {}, clientModel("", "", ""), clientModel("key-2", "", "")}[n%4], nil
			}}
			cfg.Logger = slog.New(slog.DiscardHandler)
			client := clientNew(t, cfg)
			for range 6 {
				time.Sleep(10 * time.Minute)
				_, err := client.Verify(context.Background(), alicaptcha.Request{Param: clientParam})
				require.NoError(t, err)
				require.Contains(t, used, "Credential=key-1,")
				synctest.Wait()
			}
			require.Equal(t, 7, n)
		})
	})
}

// A renewal that fails is told to the operator, and not for each call.
func TestClientLogsCredentialThatFails(t *testing.T) {
	for name, tc := range map[string]struct {
		fail func() error
		want string
	}{
		"error": {func() error { return fmt.Errorf("x: %w", errClientSource) }, "the Credential failed with a *fmt.wrapError"},
		"panic": {func() error { panic(errClientSource) }, "the Credential panicked with a *errors.errorString"},
		"exit":  {func() error { runtime.Goexit(); return nil }, "the Credential ended its goroutine"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var failing atomic.Bool
				c := clientRotate(t, func(int) error {
					if failing.Load() {
						return tc.fail()
					}
					return nil
				})
				calls := func(d time.Duration) {
					for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(time.Second) {
						c.verify(t)
					}
					synctest.Wait()
				}
				calls(10 * time.Minute)
				require.Empty(t, c.log.String(), "what works is not worth a line")

				failing.Store(true)
				calls(10 * time.Minute)
				lines := strings.SplitAfter(c.log.String(), "\n")
				require.Len(t, lines, 11, c.log.String()) // asked once in 61 s; the last is empty
				for _, line := range lines[:10] {
					require.Equal(t, "ERROR captcha: the Credential gave no new keys, the old ones serve on until they end captcha.error=alicaptcha: misconfigured: "+tc.want+"\n", line)
				}
				for i, r := range c.log.records[1:] {
					require.GreaterOrEqual(t, r.Time.Sub(c.log.records[i].Time), time.Minute)
				}
				clientRedacted(t, c.log.String())

				failing.Store(false)
				c.log.records = nil
				calls(10 * time.Minute)
				require.Equal(t, "INFO captcha: the Credential gives keys again\n", c.log.String())
			})
		})
	}
}

// Failures that follow one another faster than a minute share a line.
func TestClientLogsAtMostOncePerMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := clientRotate(t, func(n int) error {
			switch n {
			case 1:
				return nil
			case 2:
				time.Sleep(9 * time.Second)
			}
			return errClientSource
		})
		for range 3 {
			time.Sleep(61 * time.Second)
			c.verify(t)
		}
		synctest.Wait()
		require.Equal(t, 4, c.count())
		require.Len(t, c.log.records, 2, c.log.String()) // after 70 s and 183 s, not after 122 s
	})
}

func TestClientLogsHangingCredential(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		held, release := context.WithCancel(t.Context())
		c := clientRotate(t, func(n int) error {
			if n > 1 {
				<-held.Done()
			}
			return nil
		})
		time.Sleep(61 * time.Second)
		for range 10 {
			c.verify(t)
			time.Sleep(time.Second)
		}
		require.Equal(t, "key-1", c.verify(t))
		require.Empty(t, c.log.String(), "it has ten seconds")
		for range 120 {
			time.Sleep(time.Second)
			require.Equal(t, "key-1", c.verify(t))
		}
		line := "ERROR captcha: the Credential gave no new keys, the old ones serve on until they end captcha.error=alicaptcha: misconfigured: the Credential does not answer\n"
		require.Equal(t, line+line, c.log.String())

		release()
		synctest.Wait()
		require.Equal(t, line+line+"INFO captcha: the Credential gives keys again\n", c.log.String())
		require.Equal(t, "key-2", c.verify(t))
	})
}

func TestClientLogsToTheDefault(t *testing.T) {
	log := quietDefault(t)
	synctest.Test(t, func(t *testing.T) {
		n := 0
		cfg := clientConfig(clientCanned(200, clientPass))
		cfg.Credential = &clientSource{get: func() (*credentials.CredentialModel, error) {
			if n++; n > 1 {
				return nil, errClientSource
			}
			return clientModel(clientID, clientSecret, ""), nil
		}}
		client := clientNew(t, cfg)
		time.Sleep(61 * time.Second)
		_, err := client.Verify(context.Background(), alicaptcha.Request{Param: clientParam})
		require.NoError(t, err)
		synctest.Wait()
	})
	require.Equal(t, []slog.Level{slog.LevelError}, log.levels())
}

// What credentials-go gives for a session of 900 s, the shortest there is: with
// a call every few seconds the keys are always good, and no call waits for them
// although the source takes seconds. Time is the bubble's, but for the source's
// HTTP server, which stands outside; the service's key check is the simulator's.
func TestClientRotatesSessionKeys(t *testing.T) {
	const life = 900 * time.Second
	var mu sync.Mutex
	var ends []time.Time // of each session so far, by the bubble's clock
	var now time.Time
	source := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		ends = append(ends, now.Add(life))
		n := len(ends)
		fmt.Fprintf(w, `{"AccessKeyId":"STS.%d","AccessKeySecret":"secret-%d","SecurityToken":"token-%d","Expiration":%q}`,
			n, n, n, now.Add(life).UTC().Format("2006-01-02T15:04:05Z"))
	}))
	defer source.Close()
	source.Config.SetKeepAlivesEnabled(false) // time stands while a connection is open
	uri, err := credentials.NewCredential(&credentials.Config{Type: new("credentials_uri"), Url: &source.URL})
	require.NoError(t, err)

	synctest.Test(t, func(t *testing.T) {
		slow := false
		var renewals []time.Duration // what was left of the session before, when another began
		cfg := clientConfig(clientTransport(func(r *http.Request) (*http.Response, error) {
			_, rest, _ := strings.Cut(r.Header.Get("Authorization"), "Credential=STS.")
			id, _, _ := strings.Cut(rest, ",")
			n, err := strconv.Atoi(id)
			if err != nil {
				return nil, err
			}
			mu.Lock()
			ended := !time.Now().Before(ends[n-1])
			mu.Unlock()
			w := httptest.NewRecorder()
			if ended {
				io.WriteString(w, `{"Code":"InvalidSecurityToken.Expired"}`)
				return w.Result(), nil
			}
			sim := alicaptchatest.NewSimulator(alicaptchatest.Config{AccessKeyID: "STS." + id, AccessKeySecret: "secret-" + id, SecurityToken: "token-" + id})
			call := httptest.NewRequest(r.Method, r.URL.String(), r.Body)
			for name, values := range r.Header { // as the wire would have them
				call.Header[http.CanonicalHeaderKey(name)] = values
			}
			sim.ServeHTTP(w, call)
			return w.Result(), nil
		}))
		log := new(logbook)
		cfg.Logger = slog.New(log)
		cfg.Credential = &clientSource{get: func() (*credentials.CredentialModel, error) {
			if slow {
				time.Sleep(5 * time.Second)
			}
			mu.Lock()
			now = time.Now()
			before := len(ends)
			mu.Unlock()
			model, err := uri.GetCredential()
			mu.Lock()
			defer mu.Unlock()
			if before > 0 && len(ends) > before {
				renewals = append(renewals, ends[before-1].Sub(now))
			}
			return model, err
		}}
		client := clientNew(t, cfg)
		slow = true
		for end := time.Now().Add(2 * time.Hour); time.Now().Before(end); time.Sleep(7 * time.Second) {
			start := time.Now()
			result, err := client.Verify(context.Background(), alicaptcha.Request{Param: "junk", SceneID: "login"})
			require.NoError(t, err)
			require.Equal(t, alicaptcha.F003, result.Code, "signed as the simulator wants it")
			require.Zero(t, time.Since(start))
		}
		time.Sleep(time.Minute) // the last question has its answer
		require.Len(t, renewals, 9)
		for _, left := range renewals {
			require.Less(t, left, 3*time.Minute+time.Second)
			require.Greater(t, left, 100*time.Second)
		}
		require.Empty(t, log.String())
	})
}

func TestClientAsksForKeysOneAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := clientRotate(t, func(int) error { time.Sleep(time.Second); return nil })
		for range 5 {
			time.Sleep(time.Hour)
			var wg sync.WaitGroup
			for range 200 {
				wg.Go(func() { c.client.Verify(context.Background(), alicaptcha.Request{Param: clientParam}) })
			}
			wg.Wait()
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		require.Equal(t, 1, c.most)
		require.Equal(t, 6, c.asked)
		ids := map[string]int{}
		for _, id := range c.signers {
			ids[id]++
		}
		require.Equal(t, map[string]int{"key-2": 200, "key-3": 200, "key-4": 200, "key-5": 200, "key-6": 200}, maps.Clone(ids))
	})
}

// ---- Diagnose

func TestClientDiagnose(t *testing.T) {
	refused := func(status int, code string) clientTransport {
		return clientCanned(status, `{"RequestId":"R-9","Code":"`+code+`","Message":"`+clientMessage+`"}`)
	}
	verdict := func(passed bool, code string) clientTransport {
		return clientCanned(200, clientDoc(fmt.Sprintf(`{"VerifyResult":%v,"VerifyCode":%q}`, passed, code)))
	}
	for name, tc := range map[string]struct {
		transport clientTransport
		want      []string // in the error; nil: none
	}{
		"F002": {verdict(false, "F002"), nil}, "F003": {verdict(false, "F003"), nil}, "F013": {verdict(false, "F013"), nil}, "F001": {verdict(false, "F001"), nil}, "F014": {verdict(false, "F014"), nil}, "F017": {verdict(false, "F017"), nil},
		"InvalidParameter": {refused(401, "InvalidParameter"), nil},
		"MissingParameter": {refused(400, "MissingParameter"), nil},

		"F004":                  {verdict(false, "F004"), []string{`"login"`, "F004", "test mode and fails", "R-1"}},
		"F005":                  {verdict(false, "F005"), []string{`"login"`, "F005", "does not exist", "console", "region"}},
		"F006":                  {verdict(false, "F006"), []string{`"login"`, "F006", "another account"}},
		"T001":                  {verdict(true, "T001"), []string{`"login"`, "T001", "made-up param passed"}},
		"T005":                  {verdict(true, "T005"), []string{`"login"`, "T005", "test mode and passes"}},
		"T006":                  {verdict(true, "T006"), []string{`"login"`, "T006", "allow-list"}},
		"not activated":         {refused(403, "Forbidden.AccountAccessDenied"), []string{"misconfigured", "Forbidden.AccountAccessDenied", "R-9", "activated", "overdue"}},
		"not permitted":         {refused(403, "Forbidden.RAMUserAccessDenied"), []string{"misconfigured", "RAM user or role lacks", "attach AliyunYundunAFSFullAccess"}},
		"no permission":         {refused(403, "Forbidden.NoPermission"), []string{"misconfigured", "RAM user or role lacks", "attach AliyunYundunAFSFullAccess"}},
		"no permission at all":  {refused(403, "NoPermission"), []string{"misconfigured", "RAM user or role lacks", "attach AliyunYundunAFSFullAccess"}},
		"disabled key":          {refused(403, "Forbidden.AccessKeyDisabled"), []string{"misconfigured", "AccessKey is disabled"}},
		"inactive key":          {refused(403, "InvalidAccessKeyId.Inactive"), []string{"misconfigured", "AccessKey is disabled"}},
		"wrong keys":            {refused(404, "InvalidAccessKeyId.NotFound"), []string{"misconfigured", "InvalidAccessKeyId.NotFound", "AccessKey ID does not exist"}},
		"wrong secret":          {refused(400, "SignatureDoesNotMatch"), []string{"misconfigured", "SignatureDoesNotMatch", "secret is not that of"}},
		"half a signature":      {refused(400, "IncompleteSignature"), []string{"misconfigured", "drops headers"}},
		"sent twice":            {refused(400, "SignatureNonceUsed"), []string{"misconfigured", "repeats it"}},
		"expired token":         {refused(400, "InvalidSecurityToken.Expired"), []string{"misconfigured", "has expired"}},
		"another's token":       {refused(400, "InvalidSecurityToken.MismatchWithAccessKey"), []string{"misconfigured", "STS token is not that of"}},
		"no token":              {refused(400, "MissingSecurityToken"), []string{"misconfigured", "set its STS token"}},
		"clock":                 {refused(400, "InvalidTimeStamp.Expired"), []string{"misconfigured", "15 minutes", "NTP"}},
		"clock by its old name": {refused(400, "IllegalTimestamp"), []string{"misconfigured", "15 minutes", "NTP"}},
		"another service":       {refused(404, "InvalidAction.NotFound"), []string{"misconfigured", "not one of CAPTCHA 2.0"}},
		"another version":       {refused(400, "InvalidVersion"), []string{"misconfigured", "not one of CAPTCHA 2.0"}},

		"another refusal":           {refused(404, "NotFound"), []string{"request_refused", "status 404", "refused the request"}},
		"a gateway's page":          {clientCanned(404, "<html>"+clientMessage), []string{"request_refused", "status 404", "proxy or gateway"}},
		"a gateway's outage":        {clientCanned(502, "<html>"+clientMessage), []string{"service_unavailable", "status 502", "proxy or gateway"}},
		"throttled":                 {refused(400, "Throttling.User"), []string{"service_throttled", "try again later", "raised"}},
		"throttled without a Code":  {clientCanned(429, ""), []string{"service_throttled", "limit"}},
		"broken":                    {refused(500, "InternalError"), []string{"service_unavailable", "status 500", "try again later"}},
		"InvalidParameter with 500": {refused(500, "InvalidParameter"), []string{"service_unavailable"}},
		"no verdict":                {clientCanned(200, "{}"), []string{"service_unavailable"}},
		"unreachable":               {clientFailing(&net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")}), []string{"service_unavailable", "dial tcp", "could not be reached", "firewall"}},
		"unresolvable":              {clientFailing(&net.DNSError{Err: "no such host", Name: "captcha.example"}), []string{"lookup captcha.example", "could not be reached", "DNS"}},
		"untrusted":                 {clientFailing(&tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}), []string{"could not be reached", "root certificates"}},
		"not TLS":                   {clientFailing(tls.RecordHeaderError{Msg: "first record does not look like a TLS handshake"}), []string{"could not be reached", "by TLS"}},
		"too slow":                  {clientFailing(os.ErrDeadlineExceeded), []string{"service_timeout", "not in time"}},
		"failing elsewhere":         {clientFailing(errors.New(clientSecret)), []string{"service_unavailable"}},
	} {
		t.Run(name, func(t *testing.T) {
			err := clientNew(t, clientConfig(tc.transport)).Diagnose(t.Context(), "login")
			if tc.want == nil {
				require.NoError(t, err)
				return
			}
			require.Error(t, err)
			for _, want := range tc.want {
				require.ErrorContains(t, err, want)
			}
			clientShowsNothing(t, err)
			// What is wrong, then what to do, each in one line.
			fault, ok := errors.AsType[*alicaptcha.Error](err)
			require.True(t, ok)
			remedy, ok := strings.CutPrefix(err.Error(), fault.Error()+": ")
			require.True(t, ok)
			require.NotEmpty(t, remedy)
			require.False(t, strings.HasPrefix(string(fault.Code), "T") || strings.HasPrefix(string(fault.Code), "F"))
			if len(fault.ServiceCode) == 4 { // about the scene
				require.Equal(t, 200, fault.Status)
				require.Equal(t, "R-1", fault.RequestID)
				require.Equal(t, alicaptcha.Misconfigured, fault.Code)
			}
		})
	}
}

func TestClientDiagnoseAsksForTheScene(t *testing.T) {
	sim := alicaptchatest.Start(t, alicaptchatest.Config{ForeignScenes: []string{"theirs"}})
	client := sim.Client()
	for scene, want := range map[string]alicaptcha.Code{"login": "", "": "", "nowhere": alicaptcha.F005, "theirs": alicaptcha.F006} {
		err := client.Diagnose(t.Context(), scene)
		call := sim.Calls()[sim.Count()-1]
		require.Equal(t, scene, call.SceneID)
		require.Equal(t, scene != "", call.HasSceneID)
		if want == "" {
			require.NoError(t, err)
		} else {
			require.Equal(t, want, call.VerifyCode)
			fault, ok := errors.AsType[*alicaptcha.Error](err)
			require.True(t, ok)
			require.NotEmpty(t, fault.RequestID)
			require.Equal(t, &alicaptcha.Error{
				Code: alicaptcha.Misconfigured, Status: 200, ServiceCode: string(want), RequestID: fault.RequestID,
			}, fault)
		}
	}
	require.Equal(t, 4, sim.Count())

	cfg := sim.ClientConfig()
	cfg.AccessKeySecret = clientSecret
	err := clientNew(t, cfg).Diagnose(t.Context(), "login")
	fault, ok := errors.AsType[*alicaptcha.Error](err)
	require.True(t, ok)
	require.Equal(t, alicaptcha.Misconfigured, fault.Code)
	clientShowsNothing(t, err)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, client.Diagnose(ctx, "login"), context.Canceled)
}

// A Client is what the middleware takes.
var (
	_ alicaptcha.Verifier = (*alicaptcha.Client)(nil)
	_ slog.LogValuer      = alicaptcha.Request{}
	_ slog.LogValuer      = alicaptcha.ClientConfig{}
	_ fmt.Formatter       = alicaptcha.Request{}
	_ fmt.Formatter       = alicaptcha.ClientConfig{}
)

// A resolver that fails for the same want as a dial is no outage of the service
// either: of a *net.DNSError there is only the text.
func TestClientExhaustionInDNS(t *testing.T) {
	t.Parallel()
	for _, errno := range []syscall.Errno{
		syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EADDRNOTAVAIL,
	} {
		err := &net.DNSError{Err: "dial udp 127.0.0.1:53: socket: " + errno.Error(), Name: "captcha.example"}
		result, got := clientAsk(t, t.Context(), clientNew(t, clientConfig(clientFailing(err))))
		require.Equal(t, alicaptcha.Overloaded, clientFault(t, result, got).Code, errno.Error())
	}
}
