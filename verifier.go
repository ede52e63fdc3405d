package alicaptcha

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unicode/utf8"

	captcha "github.com/alibabacloud-go/captcha-20230305/client"
	openapi "github.com/alibabacloud-go/darabonba-openapi/v2/utils"
	"github.com/alibabacloud-go/tea/dara"
	"github.com/aliyun/credentials-go/credentials"
	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/time/rate"
)

// A Verifier asks for the verdict on a param. [Client] is one.
type Verifier interface {
	// Verify asks for the verdict on one param. A rejection is a Result with
	// Passed false and a nil error. A non-nil error means that there is no
	// verdict; it should be an *Error, any other counts as ServiceUnavailable.
	//
	// Verify must be safe for concurrent use and return soon after ctx is
	// done. It must not repeat a call that may have reached the service: a
	// param is spent once.
	Verify(ctx context.Context, req Request) (Result, error)
}

// VerifierFunc is a function that is a [Verifier].
type VerifierFunc func(context.Context, Request) (Result, error)

// Verify calls f.
func (f VerifierFunc) Verify(ctx context.Context, req Request) (Result, error) { return f(ctx, req) }

// A Request is what a [Verifier] is asked. It redacts Param where fmt, slog or
// encoding/json print it, but cannot where it is an unexported field of what
// they print.
type Request struct {
	Param   string // the CaptchaVerifyParam, byte for byte as the client sent it
	SceneID string // the scene that Param must be of; empty for any of the account
}

// Format writes r without its Param.
func (r Request) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "{Param:[%d bytes] SceneID:%q}", len(r.Param), r.SceneID)
}

// LogValue returns r without its Param.
func (r Request) LogValue() slog.Value {
	return slog.GroupValue(slog.Int("param_bytes", len(r.Param)), slog.String("scene", r.SceneID))
}

// MarshalJSON returns r without its Param: slog's JSON handler asks for it where
// r is a part of something else.
func (r Request) MarshalJSON() ([]byte, error) { return json.Marshal(fmt.Sprint(r)) }

// A Result is the service's verdict. The zero Result is a rejection.
type Result struct {
	Passed    bool   // VerifyResult
	Code      Code   // VerifyCode; empty from services that do not send one
	CertifyID string // names the challenge in the service's records; may be empty
	RequestID string // names the call in the service's records; may be empty
}

// strict completes a Result without a Code, and reports false for one that is
// no verdict: a Code of another shape, or one that contradicts Passed.
func (r Result) strict() (Result, bool) {
	if r.Code == "" {
		r.Code = F001
		if r.Passed {
			r.Code = T001
		}
	}
	letter := r.Code.letter()
	return r, letter == 'T' && r.Passed || letter == 'F' && !r.Passed
}

// An Error says why there is no verdict.
type Error struct {
	Code        Code   // one of the words, never a T or F code
	Status      int    // of the service's answer; 0 if there was none
	ServiceCode string // the answer's Code, such as "InvalidParameter"; from Diagnose also a VerifyCode
	RequestID   string // names the call in the service's records
	Err         error  // the cause, may be nil
}

// Error returns a text that is safe to log: Code, Status, ServiceCode,
// RequestID, and of Err only what this package knows to be harmless (a dial,
// DNS, TLS or context error, or its own words), each cut to 256 bytes and made
// printable. It never holds the param, a key or the service's text.
func (e *Error) Error() string {
	if e == nil {
		return "alicaptcha: no verdict"
	}
	var b strings.Builder
	b.WriteString("alicaptcha: " + printable(string(e.Code), 256))
	sep := " ("
	add := func(s string) {
		b.WriteString(sep + printable(s, 256))
		sep = ", "
	}
	if e.Status != 0 {
		add("status " + strconv.Itoa(e.Status))
	}
	if e.ServiceCode != "" {
		add("code " + e.ServiceCode)
	}
	if e.RequestID != "" {
		add("request " + e.RequestID)
	}
	if sep == ", " {
		b.WriteString(")")
	}
	if safe, ok := e.Err.(safeError); ok {
		b.WriteString(": " + printable(safe.text, 256))
	}
	return b.String()
}

// Unwrap returns e.Err.
func (e *Error) Unwrap() error {
	if e == nil {
		return nil
	}
	return e.Err
}

// A safeError has a text that Error.Error may show; what it wraps may say more.
type safeError struct {
	text string
	err  error
}

func (e safeError) Error() string { return "alicaptcha: " + e.text }
func (e safeError) Unwrap() error { return e.err }

// printable makes a text from outside fit to be shown: at most most bytes of
// printable ASCII.
func printable(s string, most int) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s[:min(len(s), most)])
}

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

const (
	defaultTimeout = 5 * time.Second
	maxAnswerBytes = 64 << 10 // a verdict has 200
)

// Client is the [Verifier] that asks the service. The official SDK builds and
// signs the request; the connection and the reading of the answer are our own,
// because the SDK shares its HTTP client by a race, follows redirects with the
// keys, reads without limit, and takes "true" and -7 for a pass.
//
// It is safe for concurrent use and needs no Close.
type Client struct {
	sdk      captcha.Client // copied for each call: the SDK writes to it
	keys     *keyring
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

	host, known := endpoints[cfg.Region]
	protocol := "https"
	if !known && cfg.Region != "" {
		fault("Region must be Mainland (%q) or International (%q)", string(Mainland), string(International))
	}
	switch {
	case cfg.Endpoint != "":
		var err error
		if protocol, host, err = parseEndpoint(cfg.Endpoint); err != nil {
			fault("Endpoint %w", err)
		}
	case cfg.Region == "":
		fault("Region is required (Mainland or International), or Endpoint")
	}

	keys := newKeyring(cfg, fault)

	transport := cfg.Transport
	if transport == nil {
		transport = newTransport()
		// Only https is proxied, http is for loopback hosts. net/http would go round what it cannot read.
		if protocol != "http" && !isProxy(cmp.Or(os.Getenv("HTTPS_PROXY"), os.Getenv("https_proxy"))) {
			fault("Transport: the environment's HTTPS_PROXY is not the URL of a proxy")
		}
	} else if isNil(transport) {
		fault("Transport is a nil %T", transport)
	}

	for name := range strings.SplitSeq(debugAtStart, ",") {
		if name == "dara" || name == "credential" && cfg.Credential != nil {
			errs = append(errs, fmt.Errorf("alicaptcha: the program was started with DEBUG=%s in its environment, which makes the SDK print keys, tokens and signatures to standard output: unset it and restart the program", name))
		}
	}
	if errs != nil {
		return nil, errors.Join(errs...)
	}

	sdk, err := captcha.NewClient(&openapi.Config{
		Endpoint:   &host,
		Protocol:   &protocol,
		NoProxy:    &host, // the SDK would send the proxy's password to the service
		HttpClient: connection{transport},
	})
	if err != nil {
		return nil, &Error{Code: Misconfigured, Err: err}
	}
	sdk.Client.DisableSDKError = new(true) // errors are read in connection, and SDKError costs a JSON round trip
	return &Client{sdk: *sdk, keys: keys, endpoint: protocol + "://" + host + "/"}, nil
}

// Endpoint returns the URL that calls are made to, such as
// "https://captcha.ap-southeast-1.aliyuncs.com/", by POST.
func (c *Client) Endpoint() string { return c.endpoint }

func parseEndpoint(endpoint string) (protocol, host string, err error) {
	raw := endpoint
	if !strings.Contains(raw, "://") {
		raw = "https://" + raw
	}
	u, err := url.Parse(raw)
	if err != nil {
		return "", "", errors.New("is neither a host nor a URL") // err repeats a password in it
	}
	port, portErr := strconv.ParseUint(u.Port(), 10, 16)
	switch name := u.Hostname(); {
	case u.User != nil:
		return "", "", errors.New("must not hold a user or a password")
	case name == "" || strings.ContainsFunc(name, notInHost):
		return "", "", errors.New("has no valid host")
	case u.Port() == "" && strings.HasSuffix(u.Host, ":"), u.Port() != "" && (portErr != nil || port == 0):
		return "", "", errors.New("has no valid port")
	case u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return "", "", errors.New("must not have a path, a query or a fragment")
	case u.Scheme == "http" && !isLoopback(name):
		return "", "", errors.New("must be https: the param and the keys' signature would travel in the clear (http is for a loopback host)")
	case u.Scheme != "http" && u.Scheme != "https":
		return "", "", errors.New("must be a host, an https URL, or an http URL of a loopback host")
	}
	return u.Scheme, u.Host, nil
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

// Verify asks the service for its verdict, by VerifyIntelligentCaptcha. It takes
// until the deadline of ctx at most, or 5 s where ctx has none. Every error is
// an [*Error]: ClientCanceled if ctx was cancelled, ServiceTimeout if its
// deadline passed. Nothing is sent twice.
func (c *Client) Verify(ctx context.Context, req Request) (Result, error) {
	switch {
	case c == nil || c.keys == nil:
		return Result{}, &Error{Code: Misconfigured, Err: safeError{text: "a Client that NewClient did not make"}}
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
	// VerifyIntelligentCaptchaWithContext comes to the same call, but by way of
	// JSON and maps, which takes most of its time.
	_, err = sdk.CallApiWithCtx(context.WithValue(ctx, answerKey{}, &a), operation, &openapi.OpenApiRequest{
		Headers: map[string]*string{"content-type": new("application/x-www-form-urlencoded")},
		Body:    form.Encode(),
	}, &dara.RuntimeOptions{})
	switch {
	case !a.taken: // the SDK did not come as far as the call
		return Result{}, callError(ctx, err)
	case a.err != nil:
		return Result{}, a.err
	}
	return a.result, nil
}

// Diagnose asks the service about a made-up param of the scene, and returns nil
// or an error that says what the operator has to change. The error wraps an
// [*Error]; where it is about the scene, the Error's ServiceCode is the verdict's
// VerifyCode. It costs one verification. An empty sceneID leaves the scene out of
// it, and the page's widget, whose region must be the endpoint's, always is.
func (c *Client) Diagnose(ctx context.Context, sceneID string) error {
	// Of the form that V3 has: with any other the service need not look at the scene.
	made, err := json.Marshal(map[string]any{"certifyId": "alicaptcha-diagnose", "sceneId": sceneID, "isSign": true, "securityToken": "alicaptcha-diagnose"})
	if err != nil {
		return err
	}
	result, err := c.Verify(ctx, Request{Param: base64.StdEncoding.EncodeToString(made), SceneID: sceneID})
	if e, ok := errors.AsType[*Error](err); ok {
		if e.Code == RequestRefused && (e.ServiceCode == "InvalidParameter" || e.ServiceCode == "MissingParameter") {
			return nil // it was signed and permitted, and the made-up param was noticed
		}
		return fmt.Errorf("%w: %s", e, remedy(e))
	}
	if result.Passed || result.Code == F004 || result.Code == F005 || result.Code == F006 {
		e := &Error{Code: Misconfigured, Status: http.StatusOK, ServiceCode: string(result.Code), RequestID: token(result.RequestID)}
		return fmt.Errorf("%w: scene %q: %s", e, sceneID, remedy(e))
	}
	return nil
}

// remedies say what to do about the Codes that begin so; the first one counts.
var remedies = []struct{ prefix, text string }{
	{"InvalidAccessKeyId.Inactive", "the AccessKey is disabled: enable it in the RAM console, or use another"},
	{"InvalidAccessKeyId", "the AccessKey ID does not exist: compare it with the RAM console, and see that it is of an Alibaba Cloud account"},
	{"SignatureNonceUsed", "the call arrived twice: something on the way to the service repeats it"},
	{"Signature", "the AccessKey secret is not that of the AccessKey ID: set both anew (or something on the way to the service changes the call)"},
	{"IncompleteSignature", "the signature arrived in part: something on the way to the service drops headers"},
	{"InvalidSecurityToken.Expired", "the STS token has expired: use new temporary keys, or a Credential, which renews them"},
	{"InvalidSecurityToken", "the STS token is not that of the AccessKey: take all three from one answer of STS, and no token for a RAM user's own AccessKey"},
	{"MissingSecurityToken", "the AccessKey is a temporary one: set its STS token too"},
	{"InvalidTimeStamp", "the clock is more than 15 minutes off: set it, best by NTP"},
	{"IllegalTimestamp", "the clock is more than 15 minutes off: set it, best by NTP"},
	{"Forbidden.AccountAccessDenied", "the account is overdue, or CAPTCHA 2.0 is not activated for it: pay or activate it in the console"},
	{"Forbidden.AccessKeyDisabled", "the AccessKey is disabled: enable it in the RAM console, or use another"},
	{"Forbidden", "the RAM user or role lacks the permission: attach AliyunYundunAFSFullAccess to it in the RAM console"},
	{"NoPermission", "the RAM user or role lacks the permission: attach AliyunYundunAFSFullAccess to it in the RAM console"},
	{"InvalidAction", "the endpoint is not one of CAPTCHA 2.0: set the Region, or correct the Endpoint"},
	{"InvalidVersion", "the endpoint is not one of CAPTCHA 2.0: set the Region, or correct the Endpoint"},
	{"Throttling", "the account's limit on calls is reached: try again later; if the usual load does it, have the limit raised"},
	{"InternalError", "the service has a fault of its own: try again later"},
	{"F004", "it is in test mode and fails everybody: switch test mode off in the console"},
	{"F005", "it does not exist: compare it with the console's, of the region that the endpoint and the page's widget have"},
	{"F006", "it belongs to another account: compare it with the console of the account that the AccessKey is of"},
	{"T005", "it is in test mode and passes everybody: switch test mode off in the console, or allow T005 in the Policy where that is meant"},
	{"T0", "a made-up param passed: look for test mode and an allow-list in the console"},
}

// remedy says what to do about e.
func remedy(e *Error) string {
	for _, r := range remedies {
		if strings.HasPrefix(e.ServiceCode, r.prefix) {
			return r.text
		}
	}
	_, isDNS := errors.AsType[*net.DNSError](e)
	_, isCert := errors.AsType[*tls.CertificateVerificationError](e)
	_, isNoTLS := errors.AsType[tls.RecordHeaderError](e)
	switch {
	case isDNS:
		return "the endpoint could not be reached, as its name has no address: correct it, or this machine's DNS"
	case isCert || isNoTLS:
		return "the endpoint could not be reached by TLS: correct it, or this machine's root certificates, or let the proxy leave TLS alone"
	case e.Status == 0 && (e.Code == ServiceUnavailable || e.Code == ServiceTimeout):
		return "the endpoint could not be reached, or not in time: look at it, the firewall and the environment's HTTPS_PROXY"
	case e.ServiceCode == "" && (e.Code == ServiceUnavailable || e.Code == RequestRefused):
		return "the answer is not of the service's form: look for a proxy or gateway on the way, and at the endpoint"
	}
	return e.Code.Description()
}

// answerKey is the context's key of the *answer that a call fills.
type answerKey struct{}

// An answer is what connection made of the service's.
type answer struct {
	taken  bool
	result Result
	err    *Error
}

// errTaken ends the SDK's part in a call: it never sees an answer.
var errTaken = errors.New("alicaptcha: the answer was read elsewhere")

// connection is the SDK's HttpClient.
type connection struct{ transport http.RoundTripper }

// Call sends req and reads the answer into the context's *answer. It has no use
// for the SDK's transport.
func (c connection) Call(req *http.Request, _ *http.Transport) (*http.Response, error) {
	a := req.Context().Value(answerKey{}).(*answer)
	a.taken = true
	a.result, a.err = c.exchange(req)
	return nil, errTaken
}

// longBody is the length above which a call whose connection ends before an answer
// counts as refused. A gateway that finds a param too large answers early and
// closes, and the reset can overtake its answer; so a client could make an outage
// by the length of its param.
const longBody = 8 << 10

func (c connection) exchange(req *http.Request) (Result, *Error) {
	// Set by hand it also keeps a Transport from unpacking a bomb.
	req.Header.Set("Accept-Encoding", "identity")
	var connected atomic.Bool
	isLong := req.ContentLength > longBody
	if isLong {
		req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
			GotConn: func(httptrace.GotConnInfo) { connected.Store(true) },
		}))
	}
	// Not an http.Client: that would follow redirects, with the keys' token.
	resp, err := c.transport.RoundTrip(req)
	if err != nil {
		e := callError(req.Context(), err)
		if isLong && connected.Load() && e.Code == ServiceUnavailable {
			e.Code = RequestRefused
		}
		return Result{}, e
	}
	if resp == nil || resp.Body == nil {
		return Result{}, &Error{Code: ServiceUnavailable, Err: safeError{text: "the Transport returned neither an answer nor an error"}}
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return readAnswer(resp.StatusCode, nil) // its body is the connection, which no deadline ends
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes+1))
	// A refusal is one by its status alone: a gateway that cuts off what it
	// finds too large must not look like an outage.
	refused := resp.StatusCode >= 400 && resp.StatusCode <= 499
	if err != nil && !refused {
		e := callError(req.Context(), err)
		e.Status = resp.StatusCode
		return Result{}, e
	}
	if len(body) > maxAnswerBytes && resp.StatusCode == http.StatusOK {
		// The service may repeat what a client sent. That is no outage.
		return Result{}, &Error{Code: RequestRefused, Status: resp.StatusCode, Err: safeError{text: "the answer is too long"}}
	}
	if err != nil || len(body) > maxAnswerBytes {
		body = nil
	}
	return readAnswer(resp.StatusCode, body)
}

// callError returns the Error for a call that got no answer.
func callError(ctx context.Context, err error) *Error {
	if cause := ctx.Err(); cause != nil {
		code := ServiceTimeout
		if errors.Is(cause, context.Canceled) {
			code = ClientCanceled
		}
		return &Error{Code: code, Err: safeError{cause.Error(), cause}}
	}
	e := &Error{Code: ServiceUnavailable, Err: err}
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		e.Code = ServiceTimeout
	}
	if isExhausted(err) {
		e.Code = Overloaded
	}
	// Only these texts are known to hold nothing but addresses and the fault.
	safe := func(text string) { e.Err = safeError{text, err} }
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		safe(dns.Error())
	} else if op, ok := errors.AsType[*net.OpError](err); ok {
		if inner, ok := errors.AsType[*net.OpError](op.Err); ok {
			op = inner // of a proxy
		}
		errno, isErrno := errors.AsType[syscall.Errno](op.Err)
		switch {
		case op.Op == "dial" || op.Op == "remote error" || op.Op == "local error": // the last two are TLS alerts
			safe(op.Error())
		case isErrno:
			safe(op.Op + ": " + errno.Error())
		}
	} else if cert, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		safe(cert.Error())
	} else if record, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		safe(record.Msg)
	} else if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		safe("the connection was closed before the end of the answer")
	}
	return e
}

// isExhausted reports whether err says that this machine has no more sockets or
// memory, which its clients can bring about.
func isExhausted(err error) bool {
	for _, errno := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EADDRNOTAVAIL} {
		if errors.Is(err, errno) {
			return true
		}
	}
	dns, ok := errors.AsType[*net.DNSError](err) // has only the text
	return ok && strings.Contains(dns.Err, syscall.EMFILE.Error())
}

// misconfigured are the beginnings of the Codes by which the service says that
// the operator has to act.
var misconfigured = []string{
	"InvalidAccessKeyId", "Signature", "IncompleteSignature", "InvalidSecurityToken", "MissingSecurityToken",
	"InvalidTimeStamp", "IllegalTimestamp", "InvalidAction", "InvalidVersion", "Forbidden", "NoPermission",
}

// readAnswer reads the service's answer: the verdict, or the Error that says
// why it is none.
func readAnswer(status int, body []byte) (Result, *Error) {
	doc, err := parseDocument(body)
	if err != nil {
		// The service may repeat what a client sent. That must neither make an
		// outage of its refusal, nor is a pass believed that is not strict.
		doc, err = parseDocument(body, jsontext.AllowInvalidUTF8(true))
		switch {
		case err == nil && doc.result.Passed && status == http.StatusOK:
			return Result{}, &Error{Code: RequestRefused, Status: status}
		case err != nil:
			doc = document{}
			if status != http.StatusOK {
				doc.fromXML(body)
			}
		}
	}
	if status == http.StatusOK && doc.success == jsontext.KindTrue && doc.code == "Success" && doc.hasVerdict {
		if result, ok := doc.result.strict(); ok {
			result.RequestID = token(doc.requestID)
			return result, nil
		}
	}

	e := &Error{Status: status, ServiceCode: token(doc.code), RequestID: token(doc.requestID)}
	startsWith := func(prefix string) bool { return strings.HasPrefix(doc.code, prefix) }
	switch {
	case startsWith("Throttling") || status == http.StatusTooManyRequests:
		e.Code = ServiceThrottled
	case slices.ContainsFunc(misconfigured, startsWith):
		e.Code = Misconfigured
	case status >= 400 && status <= 499 || status == http.StatusOK && doc.success == jsontext.KindFalse:
		e.Code = RequestRefused
	default:
		e.Code = ServiceUnavailable
	}
	return Result{}, e
}

// token returns s if it has the shape of the service's Codes and IDs. A gateway
// in between could put anything there, and Error.Error shows it.
func token(s string) string {
	odd := func(r rune) bool { return notInHost(r) && r != '_' || r == ':' }
	if len(s) > 64 || strings.ContainsFunc(s, odd) {
		return ""
	}
	return s
}

// A document is the service's answer, as far as we read it.
type document struct {
	code, requestID string
	success         jsontext.Kind
	hasVerdict      bool // VerifyResult is there and a boolean
	result          Result
}

// The members that a document has of ours. One whose name differs from them in
// case only makes it unreadable: somebody else might take it for ours.
var (
	documentNames = []string{"RequestId", "Code", "Success", "Result", "Message"}
	resultNames   = []string{"VerifyResult", "VerifyCode", "CertifyId"}
)

var errUnreadable = errors.New("alicaptcha: the answer is not of the service's form")

// parseDocument reads body strictly: one JSON object, no name twice, each
// member of its own type.
func parseDocument(body []byte, opts ...jsontext.Options) (document, error) {
	var doc document
	dec := jsontext.NewDecoder(bytes.NewReader(body), opts...)
	err := readObject(dec, documentNames, func(name string) (err error) {
		switch name {
		case "RequestId":
			doc.requestID, err = readStringOrNull(dec)
		case "Code":
			doc.code, err = readString(dec)
		case "Success":
			doc.success = dec.PeekKind()
			err = dec.SkipValue()
		case "Result":
			err = readObject(dec, resultNames, func(name string) (err error) {
				switch name {
				case "VerifyResult":
					kind := dec.PeekKind()
					doc.hasVerdict = kind == jsontext.KindTrue || kind == jsontext.KindFalse
					doc.result.Passed = kind == jsontext.KindTrue
					err = dec.SkipValue()
				case "VerifyCode":
					var code string
					if code, err = readString(dec); err == nil && code == "" {
						err = errUnreadable // only a missing one is an older service's
					}
					doc.result.Code = Code(code)
				case "CertifyId":
					doc.result.CertifyID, err = readStringOrNull(dec)
				default:
					err = dec.SkipValue()
				}
				return err
			})
		default:
			err = dec.SkipValue()
		}
		return err
	})
	if err != nil {
		return document{}, err
	}
	if _, err := dec.ReadToken(); err != io.EOF {
		return document{}, errUnreadable
	}
	return doc, nil
}

// readObject calls member for each name of the object that comes next; member
// reads the value.
func readObject(dec *jsontext.Decoder, known []string, member func(name string) error) error {
	if tok, err := dec.ReadToken(); err != nil || tok.Kind() != jsontext.KindBeginObject {
		return errors.Join(errUnreadable, err)
	}
	for dec.PeekKind() == jsontext.KindString {
		tok, err := dec.ReadToken()
		if err != nil {
			return err
		}
		name := tok.String()
		if slices.ContainsFunc(known, func(k string) bool { return k != name && strings.EqualFold(k, name) }) {
			return errUnreadable
		}
		if err := member(name); err != nil {
			return err
		}
	}
	_, err := dec.ReadToken()
	return err
}

func readString(dec *jsontext.Decoder) (string, error) {
	if dec.PeekKind() != jsontext.KindString {
		return "", errUnreadable
	}
	tok, err := dec.ReadToken()
	if err != nil {
		return "", err
	}
	return tok.String(), nil
}

func readStringOrNull(dec *jsontext.Decoder) (string, error) {
	if dec.PeekKind() == jsontext.KindNull {
		return "", dec.SkipValue()
	}
	return readString(dec)
}

// fromXML takes Code and RequestId from a gateway's error in XML, if it is one.
func (doc *document) fromXML(body []byte) {
	var e struct{ Code, RequestId string }
	if xml.Unmarshal(body, &e) == nil {
		doc.code, doc.requestID = e.Code, e.RequestId
	}
}

// Keys from a Credential are asked for again in the background when they are
// older than keysFresh, and not used without asking when they are older than
// keysStale. When they end cannot be seen: a CredentialModel does not say it.
// But what credentials-go gives is good for 180 s more, a fifth of the shortest
// session: asked later than that it renews. So it renews while a call that asks
// is not held up, and two minutes before the keys end. (The deprecated
// rsa_key_pair renews when 5% are left, which is 180 s of its default session.)
// A source that has not answered for keysPatience is not waited for.
const (
	keysFresh    = 60 * time.Second
	keysStale    = 150 * time.Second
	keysPatience = 10 * time.Second
)

// A keyring has the keys of a Client.
type keyring struct {
	source   credentials.Credential // nil: the keys never change
	logger   *slog.Logger           // nil: slog.Default
	logLimit rate.Sometimes         // when a failure is logged

	mu         sync.Mutex
	key        accessKey
	got, asked time.Time     // when the source last gave keys, and was last asked
	failed     bool          // it gave none when last asked, or has not answered for keysPatience; forgotten after keysStale
	broken     bool          // it has failed since it last gave keys
	asking     chan struct{} // closed when the source has answered; nil while it is not being asked
}

// accessKey is the Credential that the SDK signs a call with.
type accessKey struct {
	credentials.Credential // nil: the SDK calls GetCredential alone
	model                  credentials.CredentialModel
}

func (k accessKey) GetCredential() (*credentials.CredentialModel, error) { return &k.model, nil }

// newKeyring tells fault what is wrong with cfg's keys.
func newKeyring(cfg ClientConfig, fault func(format string, args ...any)) *keyring {
	if cfg.Credential != nil {
		if isNil(cfg.Credential) {
			fault("Credential is a nil %T", cfg.Credential)
			return nil
		}
		key, err := askFor(cfg.Credential)
		if err != nil {
			fault("Credential gave no keys: %w", err)
		}
		now := time.Now()
		return &keyring{source: cfg.Credential, logger: cfg.Logger, logLimit: rate.Sometimes{Interval: time.Minute}, key: key, got: now, asked: now}
	}

	fields := []struct{ name, variable, value string }{
		{"AccessKeyID", "ALIBABA_CLOUD_ACCESS_KEY_ID", cfg.AccessKeyID},
		{"AccessKeySecret", "ALIBABA_CLOUD_ACCESS_KEY_SECRET", cfg.AccessKeySecret},
		{"SecurityToken", "ALIBABA_CLOUD_SECURITY_TOKEN", cfg.SecurityToken},
	}
	fromEnvironment := cfg.AccessKeyID == "" && cfg.AccessKeySecret == "" && cfg.SecurityToken == ""
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
	return &keyring{key: accessKey{model: credentials.CredentialModel{
		AccessKeyId: &fields[0].value, AccessKeySecret: &fields[1].value, SecurityToken: &fields[2].value, Type: &keyType,
	}}}
}

// askFor asks source for its keys. Its error does not show the source's text,
// which may hold what an STS endpoint answered.
func askFor(source credentials.Credential) (key accessKey, err error) {
	defer func() {
		// It also runs in a goroutine of ours, where a panic would end the program.
		if v := recover(); v != nil {
			err = &Error{Code: Misconfigured, Err: safeError{text: fmt.Sprintf("the Credential panicked with a %T", v)}}
		}
	}()
	model, err := source.GetCredential()
	if err != nil {
		return accessKey{}, &Error{Code: Misconfigured, Err: safeError{fmt.Sprintf("the Credential failed with a %T", err), err}}
	}
	if model == nil || dara.StringValue(model.AccessKeyId) == "" || dara.StringValue(model.AccessKeySecret) == "" {
		return accessKey{}, &Error{Code: Misconfigured, Err: safeError{text: "the Credential has no AccessKey pair"}}
	}
	if kind := dara.StringValue(model.Type); kind == "bearer" || kind == "id_token" {
		return accessKey{}, &Error{Code: Misconfigured, Err: safeError{text: "the Credential is of a type that signs nothing"}}
	}
	for _, value := range []*string{model.AccessKeyId, model.AccessKeySecret, model.SecurityToken} {
		if strings.ContainsFunc(dara.StringValue(value), notInKey) {
			return accessKey{}, &Error{Code: Misconfigured, Err: safeError{text: "the Credential's keys have white space or other characters that no key has"}}
		}
	}
	return accessKey{model: *model}, nil
}

// notInKey reports a rune that stands in no key; most often it is the newline
// at the end of a file.
func notInKey(r rune) bool { return r <= ' ' || r > '~' }

// get returns the keys to sign a call with. It waits for a slow source only
// where the keys at hand may have ended, and never past ctx.
func (k *keyring) get(ctx context.Context) (accessKey, error) {
	if k.source == nil {
		return k.key, nil
	}
	k.mu.Lock()
	now := time.Now()
	if k.asking == nil && now.Sub(k.asked) > keysFresh {
		// What a source said long ago says nothing of the one that is asked now.
		k.failed = k.failed && now.Sub(k.asked) <= keysStale
		k.asked = now
		k.asking = make(chan struct{})
		go k.renew()
	}
	overdue := k.asking != nil && now.Sub(k.asked) > keysPatience
	k.failed, k.broken = k.failed || overdue, k.broken || overdue
	key, asking := k.key, k.asking
	// After a failure nobody waits: the old keys serve on until the service refuses them.
	usable := k.failed || now.Sub(k.got) <= keysStale
	patience := keysPatience - now.Sub(k.asked)
	k.mu.Unlock()
	if overdue {
		k.logFailure(&Error{Code: Misconfigured, Err: safeError{text: "the Credential does not answer"}})
	}
	if usable || asking == nil {
		return key, nil
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-asking:
		k.mu.Lock()
		defer k.mu.Unlock()
		return k.key, nil
	case <-timer.C:
		return key, nil
	case <-ctx.Done():
		return accessKey{}, ctx.Err()
	}
}

// renew asks the source once.
func (k *keyring) renew() {
	var key accessKey
	var err error = &Error{Code: Misconfigured, Err: safeError{text: "the Credential ended its goroutine"}}
	defer func() { // also if the source does that
		k.mu.Lock()
		mended := k.broken && err == nil
		k.failed = err != nil
		k.broken = err != nil
		if err == nil {
			k.key, k.got = key, time.Now()
		}
		close(k.asking)
		k.asking = nil
		k.mu.Unlock()
		switch {
		case err != nil:
			k.logFailure(err)
		case mended:
			k.log().Info("captcha: the Credential gives keys again")
		}
	}()
	key, err = askFor(k.source)
}

// logFailure logs err, which shows nothing of what the source said.
func (k *keyring) logFailure(err error) {
	if isDue(&k.logLimit) {
		k.log().Error("captcha: the Credential gave no new keys, the old ones serve on until they end", "captcha.error", err.Error())
	}
}

func (k *keyring) log() *slog.Logger { return cmp.Or(k.logger, slog.Default()) }
