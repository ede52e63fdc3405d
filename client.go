package alicaptcha

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	captcha "github.com/alibabacloud-go/captcha-20230305/client"
	openapi "github.com/alibabacloud-go/darabonba-openapi/v2/utils"
	"github.com/alibabacloud-go/tea/dara"
	"github.com/aliyun/credentials-go/credentials"
)

// Region identifies the region of the service in which the scenes were created.
// The widget on the page has the same value in AliyunCaptchaConfig.region.
type Region string

// The regions of the service, with their endpoints. Each region refuses the
// params of the other.
const (
	Mainland      Region = "cn"  // captcha.cn-shanghai.aliyuncs.com
	International Region = "sgp" // captcha.ap-southeast-1.aliyuncs.com
)

var endpoints = map[Region]string{
	Mainland:      "captcha.cn-shanghai.aliyuncs.com",
	International: "captcha.ap-southeast-1.aliyuncs.com",
}

// ClientConfig configures [NewClient]. Packages fmt, slog and encoding/json print
// it without its keys, unless it is in an unexported field of the value that they
// print.
type ClientConfig struct {
	// Region selects the endpoint. It is required unless Endpoint is set.
	Region Region

	// Endpoint replaces the endpoint of Region. It must be a host with or
	// without a port, an https URL, or an http URL of a loopback host, such as
	// that of a simulator.
	Endpoint string

	// AccessKeyID and AccessKeySecret are the AccessKey pair of a RAM user.
	// SecurityToken is the token of temporary keys. If all three are empty,
	// NewClient reads the environment variables ALIBABA_CLOUD_ACCESS_KEY_ID,
	// ALIBABA_CLOUD_ACCESS_KEY_SECRET and ALIBABA_CLOUD_SECURITY_TOKEN.
	AccessKeyID, AccessKeySecret, SecurityToken string

	// Credential provides the keys in place of these three fields, for keys
	// that rotate. NewClient asks it once. Later, a call that finds the keys
	// older than a minute starts a request for new ones in the background. The
	// keys that Credential returns must be valid for at least another 150
	// seconds, as those from the providers of credentials-go are, which renew
	// keys 180 seconds before they expire. Credential must be safe for
	// concurrent use.
	Credential credentials.Credential

	// Transport makes the HTTP calls. Nil means a Transport for this API: it
	// speaks HTTP/1.1, uses [http.ProxyFromEnvironment], keeps idle connections
	// for 20 seconds (the service keeps them for 25), resumes TLS sessions,
	// limits a dial and a TLS handshake to 5 seconds each, and accepts 64 KiB of
	// response headers.
	//
	// A Transport of your own needs limits on the dial and the TLS handshake as
	// well, because net/http continues a dial whose call has ended. It should
	// not limit the number of connections, which Config.MaxConcurrent bounds,
	// and its IdleConnTimeout should be less than the time for which the service,
	// or a proxy in between, keeps idle connections. Over HTTP/2, net/http may
	// repeat a call that the server has reset.
	Transport http.RoundTripper

	// Logger receives an error when Credential provides no new keys, at most
	// once a minute, and a message at level Info when it provides keys again.
	// Nil means slog.Default().
	Logger *slog.Logger

	_ [0]func() // fields by name only
}

// Format implements [fmt.Formatter]. It writes c without its keys.
func (c ClientConfig) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "{Region:%q Endpoint:%q}", string(c.Region), c.shownEndpoint())
}

// LogValue implements [slog.LogValuer]. It returns c without its keys.
func (c ClientConfig) LogValue() slog.Value {
	return slog.GroupValue(slog.String("region", string(c.Region)), slog.String("endpoint", c.shownEndpoint()))
}

// MarshalJSON implements [encoding/json.Marshaler]. It returns c without its keys.
func (c ClientConfig) MarshalJSON() ([]byte, error) { return json.Marshal(fmt.Sprint(c)) }

// shownEndpoint returns the Endpoint, unless it may contain a password.
func (c ClientConfig) shownEndpoint() string {
	if strings.Contains(c.Endpoint, "@") {
		return "[redacted]"
	}
	return c.Endpoint
}

// Client is the [Verifier] that asks the service. It is safe for concurrent use
// and does not have to be closed.
//
// The official SDK builds and signs the request. Client itself sends the request
// and reads the answer, because the SDK has a data race on its shared HTTP client,
// follows redirects with the keys, reads answers of any length, and accepts "true"
// and -7 as a pass.
type Client struct {
	sdk        captcha.Client // copied for each call: the SDK writes to it
	keys       *keyring
	connection connection
	endpoint   string
	_          [0]func()
}

// debugAtStart is the value that the SDK uses: it reads DEBUG when its packages
// are initialized, and never again.
var debugAtStart = os.Getenv("DEBUG")

// NewClient returns a Client for cfg. If cfg is invalid, it returns an error that
// joins all faults. NewClient asks cfg.Credential for keys, but it sends nothing
// to the service.
func NewClient(cfg ClientConfig) (*Client, error) {
	var errs []error
	fault := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("alicaptcha: ClientConfig."+format, args...))
	}

	protocol, host := cfg.address(fault)
	keys := cfg.keyring(fault)
	transport := cfg.Transport
	if transport == nil {
		transport = newTransport()
		// Only https uses a proxy; http is for loopback hosts. net/http would
		// ignore a proxy that it cannot parse.
		if protocol != "http" && !isProxy(cmp.Or(os.Getenv("HTTPS_PROXY"), os.Getenv("https_proxy"))) {
			fault("Transport: the environment variable HTTPS_PROXY is not the URL of a proxy")
		}
	} else if isNil(transport) {
		fault("Transport is a nil %T", transport)
	}

	for name := range strings.SplitSeq(debugAtStart, ",") {
		if name == "dara" || name == "credential" && cfg.Credential != nil {
			errs = append(errs, fmt.Errorf("alicaptcha: the program was started with DEBUG=%s in its environment, which makes "+
				"the SDK print keys, tokens and signatures to standard output: unset it and restart the program", name))
		}
	}
	if errs != nil {
		return nil, errors.Join(errs...)
	}

	calls := new(callRecord)
	connection := connection{transport, calls}
	sdk, err := captcha.NewClient(&openapi.Config{
		Endpoint:   &host,
		Protocol:   &protocol,
		NoProxy:    &host, // otherwise the SDK sends the password of the proxy to the service
		HttpClient: connection,
	})
	if err != nil {
		return nil, &Error{Code: Misconfigured, Err: err}
	}
	sdk.Client.DisableSDKError = new(true) // connection reads the errors, and an SDKError costs a JSON round trip
	return &Client{sdk: *sdk, keys: keys, connection: connection, endpoint: protocol + "://" + host + "/"}, nil
}

// keyring returns the keys of c, or reports to fault what is wrong with them.
func (c ClientConfig) keyring(fault func(format string, args ...any)) *keyring {
	if c.Credential == nil {
		return &keyring{key: c.staticKey(fault)}
	}
	if isNil(c.Credential) {
		fault("Credential is a nil %T", c.Credential)
		return nil
	}
	keys, err := newKeyring(c.Credential, c.Logger)
	if err != nil {
		fault("Credential provided no keys: %w", err)
	}
	return keys
}

// staticKey returns the keys in c or in the environment.
func (c ClientConfig) staticKey(fault func(format string, args ...any)) accessKey {
	fields := []struct{ name, variable, value string }{
		{"AccessKeyID", "ALIBABA_CLOUD_ACCESS_KEY_ID", c.AccessKeyID},
		{"AccessKeySecret", "ALIBABA_CLOUD_ACCESS_KEY_SECRET", c.AccessKeySecret},
		{"SecurityToken", "ALIBABA_CLOUD_SECURITY_TOKEN", c.SecurityToken},
	}
	fromEnvironment := c.AccessKeyID == "" && c.AccessKeySecret == "" && c.SecurityToken == ""
	for i := range fields {
		f := &fields[i]
		where := f.name
		if fromEnvironment {
			f.value = os.Getenv(f.variable)
			where += " (from the environment variable " + f.variable + ")"
		}
		if f.value == "" && f.name != "SecurityToken" {
			fault("%s is missing", where)
		}
		if strings.ContainsFunc(f.value, notInKey) {
			fault("%s contains white space or another character that no key has", where)
		}
	}
	keyType := "access_key"
	if fields[2].value != "" {
		keyType = "sts"
	}
	return accessKey{model: credentials.CredentialModel{
		AccessKeyId: &fields[0].value, AccessKeySecret: &fields[1].value, SecurityToken: &fields[2].value, Type: &keyType,
	}}
}

// Endpoint returns the URL to which c sends its POST requests, such as
// "https://captcha.ap-southeast-1.aliyuncs.com/".
func (c *Client) Endpoint() string { return c.endpoint }

// address returns where to send calls, or reports to fault what is wrong with it.
func (c ClientConfig) address(fault func(format string, args ...any)) (protocol, host string) {
	host, known := endpoints[c.Region]
	if !known && c.Region != "" {
		fault("Region must be Mainland (%q) or International (%q)", string(Mainland), string(International))
	}
	if c.Endpoint == "" {
		if c.Region == "" {
			fault("Region must be Mainland (%q) or International (%q), or Endpoint must be set",
				string(Mainland), string(International))
		}
		return "https", host
	}
	protocol, host, err := parseEndpoint(c.Endpoint)
	if err != nil {
		fault("Endpoint %w", err)
	}
	return protocol, host
}

func parseEndpoint(endpoint string) (protocol, host string, err error) {
	raw := endpoint
	if !strings.Contains(raw, "://") {
		raw = "https://" + raw
	}
	u, err := url.Parse(raw)
	if err != nil {
		return "", "", errors.New("is neither a host nor a URL") // err would repeat a password
	}
	switch name := u.Hostname(); {
	case u.User != nil:
		return "", "", errors.New("must not contain a user or a password")
	case name == "" || strings.ContainsFunc(name, notInHost):
		return "", "", errors.New("has no valid host")
	case !hasValidPort(u):
		return "", "", errors.New("has no valid port")
	case *u != (url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}) || u.Path != "" && u.Path != "/":
		return "", "", errors.New("must not have a path, a query or a fragment")
	case u.Scheme == "http" && !isLoopback(name):
		return "", "", errors.New("must be https, since the param and the signature would be sent unencrypted " +
			"(http is allowed for a loopback host only)")
	case u.Scheme != "http" && u.Scheme != "https":
		return "", "", errors.New("must be a host, an https URL, or an http URL of a loopback host")
	}
	return u.Scheme, u.Host, nil
}

// hasValidPort reports whether u has no port or a valid one.
func hasValidPort(u *url.URL) bool {
	if u.Port() == "" {
		return !strings.HasSuffix(u.Host, ":")
	}
	port, err := strconv.ParseUint(u.Port(), 10, 16)
	return err == nil && port != 0
}

// isProxy reports whether s, which is from the environment, is empty or may denote
// a proxy: a URL, or a host that is reached by http.
func isProxy(s string) bool {
	if s == "" {
		return true
	}
	if !strings.Contains(s, "://") {
		s = "http://" + s
	}
	u, err := url.Parse(s)
	return err == nil && u.Scheme != "" && u.Hostname() != ""
}

// notInHost reports whether r occurs neither in host names nor in IP addresses.
func notInHost(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '.' || r == ':')
}

func isLoopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback() || strings.EqualFold(host, "localhost")
}

// newTransport returns the Transport for a ClientConfig that has none. The
// deadline of the context bounds every stage of a call. The timeouts here bound
// the dial and the TLS handshake, which net/http continues after the end of their
// call.
func newTransport() *http.Transport {
	// HTTP/2 is not used. All calls would share one connection, and each call
	// that exceeds its deadline would reset a stream of it. A server that counts
	// resets closes the connection, and so ends the calls of all other clients.
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: defaultTimeout}).DialContext,
		TLSHandshakeTimeout: defaultTimeout,
		Protocols:           protocols,
		// There are as many as callers. By default net/http keeps 2, and opens a new connection for each other call.
		MaxIdleConnsPerHost: 512,
		// This is less than the 25 s that the service's gateway announces: a POST on
		// a connection that the server has just closed fails and must not be repeated.
		IdleConnTimeout: 20 * time.Second,
		// A resumed session saves a round trip with TLS 1.2, and the certificates. There is one
		// session for each name: the service, and a proxy that speaks TLS.
		TLSClientConfig:        &tls.Config{ClientSessionCache: tls.NewLRUClientSessionCache(4)},
		MaxResponseHeaderBytes: maxAnswerBytes,
	}
}

// operation describes VerifyIntelligentCaptcha to the SDK, which only reads it.
var operation = &openapi.Params{
	Action:      new("VerifyIntelligentCaptcha"),
	Version:     new("2023-03-05"),
	Protocol:    new("HTTPS"), // the protocol of the Client takes precedence
	Pathname:    new("/"),
	Method:      new("POST"),
	AuthType:    new("AK"),
	Style:       new("RPC"),
	ReqBodyType: new("byte"), // the body is encoded already
	BodyType:    new("json"),
}

var errNoClient = safeError{text: "a Client that NewClient did not make"}

// Verify asks the service for its verdict by calling VerifyIntelligentCaptcha. It
// returns by the deadline of ctx, or after 5 seconds if ctx has none. Every error
// is an [*Error]. Its Code is ClientCanceled if ctx was canceled. If the deadline
// passed, it is ServiceTimeout, or Overloaded if the call had less than a second
// because it waited for a connection in a Transport that limits their number.
// Verify sends a param at most once.
func (c *Client) Verify(ctx context.Context, req Request) (Result, error) {
	switch {
	case c == nil || c.keys == nil:
		return Result{}, &Error{Code: Misconfigured, Err: errNoClient}
	case req.Param == "":
		return Result{}, &Error{Code: ParamMissing}
	case !utf8.ValidString(req.Param): // the SDK would replace bytes in it
		return Result{}, &Error{Code: ParamMalformed}
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, defaultTimeout)
		defer cancel()
	}
	key, err := c.keys.get(ctx)
	if err != nil {
		return Result{}, callError(ctx, err)
	}

	sdk := c.sdk
	sdk.Credential = key
	form := url.Values{"CaptchaVerifyParam": {req.Param}}
	if req.SceneID != "" {
		form.Set("SceneId", req.SceneID)
	}
	var a answer
	ctx = a.trace(context.WithValue(ctx, answerKey{}, &a), c.connection.calls)
	// VerifyIntelligentCaptchaWithContext makes the same call, but spends most of
	// its time on conversions to JSON and maps.
	_, err = sdk.CallApiWithCtx(ctx, operation, &openapi.OpenApiRequest{
		Headers: map[string]*string{"content-type": new("application/x-www-form-urlencoded")},
		Body:    form.Encode(),
	}, &dara.RuntimeOptions{}) // without retries, because a param can be verified only once
	switch {
	case !a.taken: // the SDK failed before the call
		return Result{}, callError(ctx, err)
	case a.err != nil:
		code := a.err.ServiceCode
		if strings.HasPrefix(code, "InvalidAccessKeyId") || strings.HasPrefix(code, "InvalidSecurityToken") {
			c.keys.refused(key)
		}
		return Result{}, a.err
	}
	return a.result, nil
}
