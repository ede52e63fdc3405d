package alicaptcha_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aliyun/credentials-go/credentials"
	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

func TestNewClientFaults(t *testing.T) {
	const (
		envID     = "ALIBABA_CLOUD_ACCESS_KEY_ID"
		envSecret = "ALIBABA_CLOUD_ACCESS_KEY_SECRET"
		envToken  = "ALIBABA_CLOUD_SECURITY_TOKEN"
	)
	for _, name := range []string{envID, envSecret, envToken, "DEBUG"} {
		t.Setenv(name, "")
	}
	type config = alicaptcha.ClientConfig
	noKeys := func(c *config) { c.AccessKeyID, c.AccessKeySecret, c.SecurityToken = "", "", "" }
	secret := func(s string) func(*config) { return func(c *config) { c.AccessKeySecret = s } }
	source := func(s credentials.Credential) func(*config) { return func(c *config) { c.Credential = s } }
	keys := func(id, secret, token string) func(*config) {
		return source(givingKeys(keyModel(id, secret, token), nil))
	}
	bearer, err := credentials.NewCredential(new(credentials.Config).SetType("bearer").SetBearerToken("bearer-hunter"))
	require.NoError(t, err)
	for name, tc := range map[string]struct {
		change func(*config)
		env    map[string]string
		want   []string // in the text
	}{
		"no region":            {change: func(c *config) { c.Region = "" }, want: []string{"Region"}},
		"another region":       {change: func(c *config) { c.Region = "cn-shanghai" }, want: []string{"Region", "cn", "sgp"}},
		"a region in capitals": {change: func(c *config) { c.Region = "CN" }, want: []string{"Region"}},
		"another region and an endpoint": {
			change: func(c *config) { c.Region, c.Endpoint = "eu", "example.com" }, want: []string{"Region"},
		},
		"endpoint": {
			change: func(c *config) { c.Endpoint = "http://example.com" }, want: []string{"Endpoint", "https"},
		},
		"no keys": {
			change: noKeys, want: []string{"AccessKeyID", "AccessKeySecret", envID, envSecret},
		},
		"no id":     {change: func(c *config) { c.AccessKeyID = "" }, want: []string{"AccessKeyID is missing"}},
		"no secret": {change: secret(""), want: []string{"AccessKeySecret is missing"}},
		"a token alone": {
			change: func(c *config) { c.AccessKeyID, c.AccessKeySecret = "", "" },
			want:   []string{"AccessKeyID is missing", "AccessKeySecret is missing"},
		},
		"half given, the other half env": {
			change: secret(""), env: map[string]string{envID: "env", envSecret: "hunter"},
			want: []string{"AccessKeySecret is missing"},
		},
		"id with a space": {
			change: func(c *config) { c.AccessKeyID += " " }, want: []string{"AccessKeyID contains white space"},
		},
		"secret with a newline": {
			change: secret(keySecret + "\n"), want: []string{"AccessKeySecret contains white space"},
		},
		"secret with a CR":                {change: secret(keySecret + "\r"), want: []string{"AccessKeySecret"}},
		"secret with a tab before":        {change: secret("\t" + keySecret), want: []string{"AccessKeySecret"}},
		"secret with a space that breaks": {change: secret(keySecret + "\u00a0"), want: []string{"AccessKeySecret"}},
		"secret with a zero-width space":  {change: secret(keySecret + "\u200b"), want: []string{"AccessKeySecret"}},
		"secret with a BOM":               {change: secret("\ufeff" + keySecret), want: []string{"AccessKeySecret"}},
		"secret that is not UTF-8":        {change: secret(keySecret + "\xff"), want: []string{"AccessKeySecret"}},
		"secret of white space":           {change: secret("  "), want: []string{"AccessKeySecret"}},
		"token with a newline": {
			change: func(c *config) { c.SecurityToken += "\n" }, want: []string{"SecurityToken contains white space"},
		},
		"id of the environment alone": {
			change: noKeys, env: map[string]string{envID: keyID}, want: []string{envSecret + ") is missing"},
		},
		"secret of the environment alone": {
			change: noKeys, env: map[string]string{envSecret: keySecret}, want: []string{envID + ") is missing"},
		},
		"token of the environment alone": {
			change: noKeys, env: map[string]string{envToken: stsToken},
			want: []string{envID + ") is missing", envSecret + ") is missing"},
		},
		"newlines in the environment": {
			change: noKeys,
			env:    map[string]string{envID: keyID + "\n", envSecret: keySecret + "\n", envToken: stsToken + "\n"},
			want: []string{
				envID + ") contains white space", envSecret + ") contains white space", envToken + ") contains white space",
			},
		},
		"typed nil Credential": {change: source((*keySource)(nil)), want: []string{"Credential is a nil"}},
		"typed nil Transport": {
			change: func(c *config) { c.Transport = (*http.Transport)(nil) }, want: []string{"Transport is a nil"},
		},
		"nil func as Transport": {
			change: func(c *config) { c.Transport = transportFunc(nil) }, want: []string{"Transport is a nil"},
		},
		"failing Credential": {
			change: source(givingKeys(nil, errKeySource)), want: []string{"Credential", "misconfigured"},
		},
		"Credential without a model": {
			change: source(givingKeys(nil, nil)), want: []string{"Credential", "no AccessKey pair"},
		},
		"Credential without keys": {
			change: source(givingKeys(&credentials.CredentialModel{}, nil)), want: []string{"Credential", "misconfigured"},
		},
		"Credential with empty keys":  {change: keys("", "", stsToken), want: []string{"Credential", "misconfigured"}},
		"Credential without a secret": {change: keys(keyID, "", stsToken), want: []string{"Credential", "misconfigured"}},
		"Credential without an id":    {change: keys("", keySecret, ""), want: []string{"Credential", "misconfigured"}},
		"bearer Credential":           {change: source(bearer), want: []string{"Credential", "misconfigured"}},
		"panicking Credential": {
			change: func(c *config) {
				c.Credential = &keySource{get: func() (*credentials.CredentialModel, error) { panic("client-secret-hunter2") }}
			}, want: []string{"Credential", "misconfigured"},
		},
		// A key that a file brought along with its last line break would end each call in net/http.
		"Credential with a newline in the id": {
			change: keys(keyID+"\n", keySecret, ""), want: []string{"Credential"},
		},
		"Credential with a newline in the secret": {
			change: keys(keyID, keySecret+"\n", ""), want: []string{"Credential"},
		},
		"Credential with a newline in the token": {
			change: keys(keyID, keySecret, stsToken+"\n"), want: []string{"Credential"},
		},
		// The SDK would send the one without a signature, the other with the token in a header of another scheme.
		"Credential of type bearer with keys": {
			change: func(c *config) {
				model := keyModel(keyID, keySecret, "")
				model.Type, model.BearerToken = new("bearer"), new("bearer-hunter")
				c.Credential = givingKeys(model, nil)
			}, want: []string{"Credential"},
		},
		"Credential of type id_token with keys": {
			change: func(c *config) {
				model := keyModel(keyID, keySecret, stsToken)
				model.Type = new("id_token")
				c.Credential = givingKeys(model, nil)
			}, want: []string{"Credential"},
		},
		"everything at one time": {
			change: func(c *config) {
				*c = config{Region: "eu", Endpoint: "ftp://example.com", AccessKeyID: "a b", Transport: (*http.Transport)(nil)}
			},
			want: []string{"Region", "Endpoint", "AccessKeyID contains", "AccessKeySecret is missing", "Transport"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			for name, value := range tc.env {
				t.Setenv(name, value)
			}
			cfg := secretConfig(failingTransport(errors.New("nothing may be sent")))
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
			for _, word := range secretWords {
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
		out := runChild(t, row.task, "DEBUG="+row.atStart)
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
			keys := []string{keyID, keySecret, stsToken}
			keys[i] = odd
			cfg := secretConfig(cannedTransport(200, passAnswer))
			cfg.AccessKeyID, cfg.AccessKeySecret, cfg.SecurityToken = keys[0], keys[1], keys[2]
			_, err := alicaptcha.NewClient(cfg)
			require.Equal(t, good, err == nil, "%q: %v", r, err)

			cfg = secretConfig(cannedTransport(200, passAnswer))
			cfg.Credential = givingKeys(keyModel(keys[0], keys[1], keys[2]), nil)
			_, err = alicaptcha.NewClient(cfg)
			require.Equal(t, good, err == nil, "%q: %v", r, err)
		}
	}
}

func TestNewClientCredentialsErrorCanBeAskedFor(t *testing.T) {
	cfg := secretConfig(nil)
	cfg.Credential = givingKeys(nil, errKeySource)
	_, err := alicaptcha.NewClient(cfg)
	require.ErrorIs(t, err, errKeySource)
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
			cfg := secretConfig(transportFunc(func(r *http.Request) (*http.Response, error) {
				got = r
				return cannedTransport(200, passAnswer)(r)
			}))
			cfg.Region, cfg.Endpoint = tc.region, tc.endpoint
			client, err := alicaptcha.NewClient(cfg)
			if tc.scheme == "" {
				require.ErrorContains(t, err, "alicaptcha: ClientConfig.Endpoint ")
				require.Nil(t, client)
				for _, word := range append(secretWords, "user") {
					require.NotContains(t, strings.ReplaceAll(err.Error(), "a user or a password", ""), word)
				}
				require.NotContains(t, err.Error(), "\n")
				return
			}
			require.NoError(t, err)
			require.Equal(t, tc.scheme+"://"+tc.host+"/", client.Endpoint())
			require.Nil(t, got, "NewClient asked the service")
			result, err := askClient(t, t.Context(), client)
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
	addr := serveRaw(t, func(net.Conn) { conns.Add(1) })
	for range 10 {
		newClient(t, alicaptcha.ClientConfig{Endpoint: "http://" + addr, AccessKeyID: keyID, AccessKeySecret: keySecret})
	}
	conn, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	io.Copy(io.Discard, conn) // ends when the script has counted this one
	conn.Close()
	require.EqualValues(t, 1, conns.Load())
}

func TestNewClientCopiesItsConfig(t *testing.T) {
	var got *http.Request
	cfg := secretConfig(transportFunc(func(r *http.Request) (*http.Response, error) {
		got = r
		return cannedTransport(200, passAnswer)(r)
	}))
	client := newClient(t, cfg)
	cfg.Region, cfg.Endpoint, cfg.AccessKeyID, cfg.Transport = alicaptcha.International, "http://127.0.0.1:1", "other", nil
	_, err := askClient(t, t.Context(), client)
	require.NoError(t, err)
	require.Equal(t, "captcha.cn-shanghai.aliyuncs.com", got.Host)
	require.Contains(t, got.Header.Get("Authorization"), "Credential="+keyID+",")
}

func TestClientThatNewClientDidNotMake(t *testing.T) {
	for name, client := range map[string]*alicaptcha.Client{"nil": nil, "zero": {}} {
		t.Run(name, func(t *testing.T) {
			result, err := client.Verify(t.Context(), alicaptcha.Request{Param: secretParam})
			require.Equal(t, alicaptcha.Misconfigured, requireFault(t, result, err).Code)
			require.Error(t, client.Diagnose(t.Context(), "login"))
		})
	}
}

// The context of a call ends with it, so that no timer of 5 s is left of each.
func TestClientEndsItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked []context.Context
		client := newClient(t, secretConfig(transportFunc(func(r *http.Request) (*http.Response, error) {
			asked = append(asked, r.Context())
			return cannedTransport(200, passAnswer)(r)
		})))
		for range 3 {
			_, err := client.Verify(t.Context(), alicaptcha.Request{Param: secretParam})
			require.NoError(t, err)
		}
		require.Len(t, asked, 3)
		for _, ctx := range asked {
			require.ErrorIs(t, ctx.Err(), context.Canceled)
		}
		require.NoError(t, t.Context().Err())
	})
}

func TestClientRedaction(t *testing.T) {
	req := alicaptcha.Request{Param: secretParam, SceneID: "login-scene"}
	cfg := secretConfig(nil)
	cfg.Endpoint = "https://captcha.example"
	cfg.Credential = givingKeys(keyModel(keyID, keySecret, stsToken), nil)
	cfg.Logger = slog.New(slog.NewTextHandler(io.Discard, nil)).With("key", keySecret)
	withPassword := alicaptcha.ClientConfig{Endpoint: "https://user:hunter2@captcha.example", AccessKeySecret: keySecret}
	type holder struct {
		Request *alicaptcha.Request
		Config  alicaptcha.ClientConfig
	}
	values := map[string]any{
		"Request": req, "*Request": &req,
		"ClientConfig": cfg, "*ClientConfig": &cfg,
		"ClientConfig with a password": withPassword, "*ClientConfig with a password": &withPassword,
		"*Client": newClient(t, secretConfig(cannedTransport(200, passAnswer))), "*Client with a Credential": func() any {
			cfg := cfg
			cfg.Transport = cannedTransport(200, passAnswer)
			return newClient(t, cfg)
		}(),
		"[]Request": []alicaptcha.Request{req}, "map of Request": map[string]alicaptcha.Request{"x": req},
		"struct": holder{&req, cfg}, "*struct": &holder{&req, cfg},
		"[]ClientConfig": []alicaptcha.ClientConfig{
			{AccessKeyID: keyID, AccessKeySecret: keySecret, SecurityToken: stsToken},
		},
	}
	for name, value := range values {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			for _, verb := range []string{
				"%v", "%+v", "%#v", "%s", "%q", "%d", "%x", "%X", "%t", "%f", "%U", "%10v", "%-10.3v", "% x", "%!",
			} {
				fmt.Fprintf(&out, verb+"\n", value)
			}
			fmt.Fprintln(&out, value, fmt.Errorf("x: %v", value))
			requireRedacted(t, out.String())
			for _, format := range []func(io.Writer) slog.Handler{
				func(w io.Writer) slog.Handler { return slog.NewTextHandler(w, nil) },
				func(w io.Writer) slog.Handler { return slog.NewJSONHandler(w, nil) },
			} {
				var log bytes.Buffer
				logger := slog.New(format(&log))
				logger.Info("x", "value", value)
				logger.Info("x", slog.Group("g", slog.Any("value", value)))
				logger.With("value", value).WithGroup("g").Info("x")
				requireRedacted(t, log.String())
			}
		})
	}

	require.Equal(t, `{Param:[47 bytes] SceneID:"login-scene"}`, fmt.Sprintf("%+v", req))
	require.Equal(t, `{Region:"cn" Endpoint:"https://captcha.example"}`, fmt.Sprint(cfg))
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "req", &req, "cfg", cfg)
	require.Contains(t, log.String(),
		`req.param_bytes=47 req.scene=login-scene cfg.region=cn cfg.endpoint=https://captcha.example`)
	require.NotPanics(t, func() { _ = fmt.Sprintf("%v %+v", (*alicaptcha.Request)(nil), (*alicaptcha.ClientConfig)(nil)) })
	slog.New(slog.NewJSONHandler(&log, nil)).
		Info("x", "req", (*alicaptcha.Request)(nil), "cfg", (*alicaptcha.ClientConfig)(nil))
}

func requireRedacted(t *testing.T, text string) {
	t.Helper()
	for _, word := range secretWords {
		require.NotContains(t, text, word)
		require.NotContains(t, strings.ToLower(text), hex.EncodeToString([]byte(word)))
	}
}

// Nothing is printed by a call, whatever comes back.
func TestClientPrintsNothing(t *testing.T) {
	read, write, err := os.Pipe()
	require.NoError(t, err)
	stdout, stderr := os.Stdout, os.Stderr
	os.Stdout, os.Stderr = write, write
	for _, status := range []int{200, 400, 403, 500} {
		for _, body := range []string{passAnswer, "junk"} {
			newClient(t, secretConfig(cannedTransport(status, body))).Verify(t.Context(), alicaptcha.Request{Param: secretParam})
		}
	}
	os.Stdout, os.Stderr = stdout, stderr
	write.Close()
	out, err := io.ReadAll(read)
	require.NoError(t, err)
	require.Empty(t, string(out))
}

func TestClientParamIsSentByteForByte(t *testing.T) {
	sim := alicaptchatest.Start(t, alicaptchatest.Config{})
	client := sim.Client()
	all := strings.Builder{}
	for r := range rune(0x300) {
		all.WriteRune(r)
	}
	params := []string{
		"a", " ", "\x00", "\n", " a ", "\ta\r\n", "a=b&c=d;e",
		"CaptchaVerifyParam=x&SceneId=other", `"quoted"`, `'single'`, `\backslash\u0041`, "<script>&amp;</script>",
		"+", "%", "%20", "%2B+ ", "a+b c%2Bd", "100%", "\u2028\u2029", "😀👩‍👩‍👧",
		"é e\u0301", "\ufeffbom", "\ufffd", "\U0010ffff", "中文", "\u007f\u0080", "~*()!'-_.",
		"null", "true", "123", "1e400", "[]", `{}`, `[1,2]`, `{"a":{"b":[1,"2",null]},"a":1}`,
		`{"n":12345678901234567890,"f":1.0}`, "a.1=b", all.String(), strings.Repeat("+/=%\"", 6000),
	}
	for _, i := range []alicaptchatest.Issue{
		{SceneID: "login"},
		{SceneID: "login", Format: alicaptchatest.V2},
		{SceneID: "login", Format: alicaptchatest.V2, Bytes: 28000},
	} {
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
	cfg := secretConfig(transportFunc(func(r *http.Request) (*http.Response, error) {
		got = r
		body, _ = io.ReadAll(r.Body)
		return cannedTransport(200, passAnswer)(r)
	}))
	client := newClient(t, cfg)
	_, err := client.Verify(t.Context(), alicaptcha.Request{Param: secretParam, SceneID: "login"})
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
	require.Equal(t, stsToken, header("x-acs-security-token"))
	require.Contains(t, header("authorization"), "ACS3-HMAC-SHA256 Credential="+keyID+",SignedHeaders=")
	require.Contains(t, header("authorization"), "x-acs-security-token")
	require.NotContains(t, fmt.Sprint(got.Header), keySecret)
	date, err := time.Parse("2006-01-02T15:04:05Z", header("x-acs-date"))
	require.NoError(t, err)
	require.WithinDuration(t, time.Now(), date, time.Minute)
	form, err := url.ParseQuery(string(body))
	require.NoError(t, err)
	require.Equal(t, url.Values{"CaptchaVerifyParam": {secretParam}, "SceneId": {"login"}}, form)
	require.EqualValues(t, len(body), got.ContentLength)
}

func TestClientParamThatIsNotSent(t *testing.T) {
	sim := alicaptchatest.Start(t, alicaptchatest.Config{})
	client := sim.Client()
	for param, want := range map[string]alicaptcha.Code{
		"": alicaptcha.ParamMissing, "\xff": alicaptcha.ParamMalformed, "a\xffb": alicaptcha.ParamMalformed,
		"\xed\xa0\x80": alicaptcha.ParamMalformed, "\xc0\x80": alicaptcha.ParamMalformed,
		"\xe4\xb8": alicaptcha.ParamMalformed, "\xf4\x90\x80\x80": alicaptcha.ParamMalformed,
		strings.Repeat("x", 5000) + "\x80": alicaptcha.ParamMalformed,
	} {
		result, err := client.Verify(t.Context(), alicaptcha.Request{Param: param, SceneID: "login"})
		require.Equal(t, want, requireFault(t, result, err).Code, "%q", param)
	}
	require.Zero(t, sim.Count())
}

// A Client is what the middleware takes.
var (
	_ alicaptcha.Verifier = (*alicaptcha.Client)(nil)
	_ slog.LogValuer      = alicaptcha.Request{}
	_ slog.LogValuer      = alicaptcha.ClientConfig{}
	_ fmt.Formatter       = alicaptcha.Request{}
	_ fmt.Formatter       = alicaptcha.ClientConfig{}
)
