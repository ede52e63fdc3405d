package alicaptcha

import (
	"cmp"
	"context"
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

// A Region is where the service's scenes were made; the widget on the page has
// the same in its AliyunCaptchaConfig.region.
type Region string

// The service's regions and their endpoints. A param of one is refused by the
// other.
const (
	Mainland      Region = "cn"  // captcha.cn-shanghai.aliyuncs.com
	International Region = "sgp" // captcha.ap-southeast-1.aliyuncs.com
)

var endpoints = map[Region]string{
	Mainland:      "captcha.cn-shanghai.aliyuncs.com",
	International: "captcha.ap-southeast-1.aliyuncs.com",
}

// ClientConfig configures [NewClient]. It redacts the keys as [Request] does the
// param.
type ClientConfig struct {
	// Region picks the endpoint. It is required unless Endpoint is set.
	Region Region

	// Endpoint overrides Region's: a host with or without a port, an https
	// URL, or an http URL of a loopback host (such as that of a simulator).
	Endpoint string

	// AccessKeyID and AccessKeySecret are a RAM user's pair, SecurityToken
	// belongs to temporary ones. If all three are empty, they are taken from
	// ALIBABA_CLOUD_ACCESS_KEY_ID, ALIBABA_CLOUD_ACCESS_KEY_SECRET and
	// ALIBABA_CLOUD_SECURITY_TOKEN.
	AccessKeyID, AccessKeySecret, SecurityToken string

	// Credential overrides the three, for keys that rotate. NewClient asks it
	// once; later a call that finds its answer older than a minute has it
	// asked again in the background. What it gives must be good for 150 s
	// more, as it is from the providers of credentials-go, which renew 180 s
	// before the end. It must be safe for concurrent use.
	Credential credentials.Credential

	// Transport makes the connections. If nil, it is one that is tuned for
	// this API, keeps connections for 10 s, gives a dial and a TLS handshake
	// 5 s each, takes 64 KiB of an answer's headers, speaks HTTP/1.1, and goes
	// through [http.ProxyFromEnvironment]. One without a limit on connections
	// is best: Config.MaxConcurrent bounds them. It needs those two timeouts,
	// because net/http goes on with a dial whose call has ended. Over HTTP/2
	// net/http may send a call again that the server has reset.
	Transport http.RoundTripper

	// Logger is told when Credential gave no new keys, at error and at most
	// once a minute, and when it gives them again. If nil, it is slog.Default.
	Logger *slog.Logger

	_ [0]func() // fields by name only
}

// Format writes c without its keys.
func (c ClientConfig) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "{Region:%q Endpoint:%q}", string(c.Region), c.shownEndpoint())
}

// LogValue returns c without its keys.
func (c ClientConfig) LogValue() slog.Value {
	return slog.GroupValue(slog.String("region", string(c.Region)), slog.String("endpoint", c.shownEndpoint()))
}

// MarshalJSON returns c without its keys.
func (c ClientConfig) MarshalJSON() ([]byte, error) { return json.Marshal(fmt.Sprint(c)) }

// shownEndpoint hides an Endpoint that may hold a password.
func (c ClientConfig) shownEndpoint() string {
	if strings.Contains(c.Endpoint, "@") {
		return "[redacted]"
	}
	return c.Endpoint
}

// Client is the [Verifier] that asks the service. The official SDK builds and
// signs the request; the connection and the reading of the answer are our own,
// because the SDK shares its HTTP client by a race, follows redirects with the
// keys, reads without limit, and takes "true" and -7 for a pass.
//
// It is safe for concurrent use and needs no Close.
type Client struct {
	sdk      captcha.Client // copied for each call: the SDK writes to it
	keys     *keyring
	calls    *callRecord
	endpoint string
	_        [0]func()
}

// debugAtStart is what the SDK has read: it looks at DEBUG when its packages are
// initialized, and never again.
var debugAtStart = os.Getenv("DEBUG")

// NewClient returns a Client for cfg, or an error that joins every fault of it.
// It asks cfg.Credential for keys but sends nothing to the service.
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
		// Only https is proxied, http is for loopback hosts. net/http would go
		// round what it cannot read.
		if protocol != "http" && !isProxy(cmp.Or(os.Getenv("HTTPS_PROXY"), os.Getenv("https_proxy"))) {
			fault("Transport: the environment's HTTPS_PROXY is not the URL of a proxy")
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
	sdk, err := captcha.NewClient(&openapi.Config{
		Endpoint:   &host,
		Protocol:   &protocol,
		NoProxy:    &host, // the SDK would send the proxy's password to the service
		HttpClient: connection{transport, calls},
	})
	if err != nil {
		return nil, &Error{Code: Misconfigured, Err: err}
	}
	sdk.Client.DisableSDKError = new(true) // errors are read in connection, and SDKError costs a JSON round trip
	return &Client{sdk: *sdk, keys: keys, calls: calls, endpoint: protocol + "://" + host + "/"}, nil
}

// keyring returns the keys of c, or tells fault what is wrong with them.
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
		fault("Credential gave no keys: %w", err)
	}
	return keys
}

// staticKey returns the keys that stand in c or in the environment.
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
			where += " (from the environment's " + f.variable + ")"
		}
		if f.value == "" && f.name != "SecurityToken" {
			fault("%s is missing", where)
		}
		if strings.ContainsFunc(f.value, notInKey) {
			fault("%s has white space or other characters that no key has", where)
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

// Endpoint returns the URL that calls are made to, such as
// "https://captcha.ap-southeast-1.aliyuncs.com/", by POST.
func (c *Client) Endpoint() string { return c.endpoint }

// address returns where calls go, or tells fault what is wrong with it.
func (c ClientConfig) address(fault func(format string, args ...any)) (protocol, host string) {
	host, known := endpoints[c.Region]
	if !known && c.Region != "" {
		fault("Region must be Mainland (%q) or International (%q)", string(Mainland), string(International))
	}
	if c.Endpoint == "" {
		if c.Region == "" {
			fault("Region is required (Mainland or International), or Endpoint")
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
		return "", "", errors.New("is neither a host nor a URL") // err repeats a password in it
	}
	switch name := u.Hostname(); {
	case u.User != nil:
		return "", "", errors.New("must not hold a user or a password")
	case name == "" || strings.ContainsFunc(name, notInHost):
		return "", "", errors.New("has no valid host")
	case !hasValidPort(u):
		return "", "", errors.New("has no valid port")
	case *u != (url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}) || u.Path != "" && u.Path != "/":
		return "", "", errors.New("must not have a path, a query or a fragment")
	case u.Scheme == "http" && !isLoopback(name):
		return "", "", errors.New("must be https: the param and the keys' signature would travel in the clear " +
			"(http is for a loopback host)")
	case u.Scheme != "http" && u.Scheme != "https":
		return "", "", errors.New("must be a host, an https URL, or an http URL of a loopback host")
	}
	return u.Scheme, u.Host, nil
}

// hasValidPort reports whether u has no port or a possible one.
func hasValidPort(u *url.URL) bool {
	if u.Port() == "" {
		return !strings.HasSuffix(u.Host, ":")
	}
	port, err := strconv.ParseUint(u.Port(), 10, 16)
	return err == nil && port != 0
}

// isProxy reports whether s, a proxy from the environment, is empty or can be
// one: a URL, or a host for http.
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

// notInHost reports a rune that stands neither in a host name nor in an IPv6 address.
func notInHost(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '.' || r == ':')
}

func isLoopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback() || strings.EqualFold(host, "localhost")
}

// newTransport returns the Transport for a ClientConfig that has none. The
// context's deadline bounds every stage of a call; the timeouts here bound what
// net/http does detached from it, so that a call leaves nothing behind on the
// wire: it goes on with a dial and a TLS handshake whose call has ended.
func newTransport() *http.Transport {
	// Not HTTP/2. There all calls share one connection, and each one that runs
	// into its deadline resets a stream of it; a server that counts those ends
	// the connection, and with it the calls of everybody else.
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: defaultTimeout}).DialContext,
		TLSHandshakeTimeout: defaultTimeout,
		Protocols:           protocols,
		// As many as callers: net/http keeps 2 and would open a new connection for each of the others' calls.
		MaxIdleConnsPerHost: 512,
		// Below what load balancers use (15 s and more): a POST on a connection
		// that the server has just closed fails, and may not be repeated.
		IdleConnTimeout:        10 * time.Second,
		MaxResponseHeaderBytes: maxAnswerBytes,
	}
}

// operation is VerifyIntelligentCaptcha for the SDK, which does not write to it.
var operation = &openapi.Params{
	Action:      new("VerifyIntelligentCaptcha"),
	Version:     new("2023-03-05"),
	Protocol:    new("HTTPS"), // the Client's own comes first
	Pathname:    new("/"),
	Method:      new("POST"),
	AuthType:    new("AK"),
	Style:       new("RPC"),
	ReqBodyType: new("byte"), // the body is encoded already
	BodyType:    new("json"),
}

var errNoClient = safeError{text: "a Client that NewClient did not make"}

// Verify asks the service for its verdict, by VerifyIntelligentCaptcha. It takes
// until the deadline of ctx at most, or 5 s where ctx has none. Every error is
// an [*Error]: ClientCanceled if ctx was cancelled, ServiceTimeout if its
// deadline passed. Nothing is sent twice.
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
	ctx = a.trace(context.WithValue(ctx, answerKey{}, &a), c.calls)
	// VerifyIntelligentCaptchaWithContext comes to the same call, but by way of
	// JSON and maps, which takes most of its time.
	_, err = sdk.CallApiWithCtx(ctx, operation, &openapi.OpenApiRequest{
		Headers: map[string]*string{"content-type": new("application/x-www-form-urlencoded")},
		Body:    form.Encode(),
	}, &dara.RuntimeOptions{}) // without retries: a param is spent once
	switch {
	case !a.taken: // the SDK did not come as far as the call
		return Result{}, callError(ctx, err)
	case a.err != nil:
		return Result{}, a.err
	}
	return a.result, nil
}
