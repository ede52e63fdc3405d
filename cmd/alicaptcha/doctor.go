package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/alicaptcha/alicaptcha"
)

const doctorHelp = `usage: alicaptcha doctor -region cn|sgp [-scene ID] [flags]

Doctor makes these checks, in this order, and says what to do about what it
finds:

  credentials  the keys are there and look like keys
  endpoint     its name resolves, and it answers over TCP and TLS
  clock        this machine's is within 15 minutes of the service's
  call         the service answers a signed call: in time, unthrottled, itself
  signature    the AccessKey exists, and its secret and STS token belong to it
  permission   the RAM user or role has AliyunYundunAFSFullAccess
  service      it is activated, and the account is not overdue
  scene        it exists, is of this account, and not in test mode

What cannot be checked because of a finding is "not checked". The checks from
call on are one signed call with a made-up param, which is billed as a
verification; it is made only if those before have no finding.

The keys are taken from the environment, as the package takes them:

  ALIBABA_CLOUD_ACCESS_KEY_ID      a RAM user's pair
  ALIBABA_CLOUD_ACCESS_KEY_SECRET
  ALIBABA_CLOUD_SECURITY_TOKEN     only with temporary keys, of STS

Connections go through the proxy in HTTPS_PROXY, if there is one.

The exit status is 0 without a finding, 1 with one, 2 for a wrong use.

With -json the standard output is one object:

  ok             whether there is no finding
  region         as in the flag; not there if empty
  endpoint       likewise
  scene          likewise
  verifications  how many were made: 0 or 1
  checks         all of the above, in their order; of each:
    name         as above
    status       "ok", "finding" or "not_checked"
    detail       what was found, in words that may change
    remedy       what to do about a finding; not there otherwise
    code         the service's Code or VerifyCode, where it gave one with a finding
    request_id   of the call, likewise
`

// A report is what doctor prints.
type report struct {
	OK            bool     `json:"ok"`
	Region        string   `json:"region,omitzero"`
	Endpoint      string   `json:"endpoint,omitzero"`
	Scene         string   `json:"scene,omitzero"`
	Verifications int      `json:"verifications"`
	Checks        []*check `json:"checks"`
}

type check struct {
	Name      string `json:"name"`
	Status    string `json:"status"`
	Detail    string `json:"detail"`
	Remedy    string `json:"remedy,omitzero"`
	Code      string `json:"code,omitzero"`
	RequestID string `json:"request_id,omitzero"`
}

const (
	statusOK      = "ok"
	statusFinding = "finding"
	notChecked    = "not_checked"
)

func (c *check) ok(detail string) { c.Status, c.Detail = statusOK, detail }

func (c *check) finding(detail, remedy string) {
	c.Status, c.Detail, c.Remedy = statusFinding, detail, remedy
}

// diagnosed makes a finding of what Client.Diagnose returned.
func (c *check) diagnosed(err error, scene string) {
	e, ok := errors.AsType[*alicaptcha.Error](err)
	if !ok {
		c.finding("the call could not be made", "")
		return
	}
	remedy := e.Remedy()
	if c.Name == "scene" {
		remedy = fmt.Sprintf("scene %q: %s", scene, remedy)
	}
	c.finding(strings.TrimPrefix(e.Error(), "alicaptcha: "), remedy)
	c.Code, c.RequestID = e.ServiceCode, e.RequestID
}

// doctor runs the command. Its error is errFound where the report has a finding.
func doctor(args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("doctor", flag.ContinueOnError)
	region := flags.String("region", "", "the endpoint's `region`, which is that of the page's widget: cn or sgp")
	endpoint := flags.String("endpoint", "", "a `host` or URL in the place of the region's, such as "+
		"captcha-vpc.cn-shanghai.aliyuncs.com, or http://127.0.0.1:8081 for the simulator")
	scene := flags.String("scene", "", "the scene's `ID` in the console; without it no scene is checked")
	timeout := flags.Duration("timeout", 5*time.Second, "how long each of the two requests may take")
	asJSON := flags.Bool("json", false, "print one JSON object")
	if ok, err := parse(flags, args, doctorHelp, stdout); !ok {
		return err
	}
	switch {
	case *region == "" && *endpoint == "":
		return usageError{errors.New("-region (cn or sgp) or -endpoint is required: alicaptcha help doctor")}
	case *timeout <= 0:
		return usageError{errors.New("-timeout must be above zero")}
	}
	cfg := alicaptcha.ClientConfig{Region: alicaptcha.Region(*region), Endpoint: *endpoint}

	// With these keys and this Transport nothing but the flags can be wrong with it.
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true) // as the Client's own
	plain := &plainTransport{next: &http.Transport{
		Proxy: http.ProxyFromEnvironment, Protocols: protocols, DisableKeepAlives: true,
	}}
	unsigned := cfg
	unsigned.AccessKeyID, unsigned.AccessKeySecret, unsigned.Transport = "none", "none", plain
	prober, err := alicaptcha.NewClient(unsigned)
	if err != nil {
		return usageError{errors.New(short(err))}
	}

	notice := stdout
	if *asJSON {
		notice = stderr
	}
	if _, err := fmt.Fprintln(notice, "One verification is made at most; it is billed as any other."); err != nil {
		return err
	}

	r := &report{Region: *region, Endpoint: *endpoint, Scene: *scene}
	for _, name := range []string{
		"credentials", "endpoint", "clock", "call", "signature", "permission", "service", "scene",
	} {
		r.Checks = append(r.Checks, &check{Name: name, Status: notChecked, Detail: "because of a finding"})
	}
	r.checkCredentials(cfg, plain)
	r.checkEndpoint(unsigned, prober, plain, *timeout)
	if !r.hasFinding() {
		r.checkCall(cfg, *timeout)
	}
	r.OK = !r.hasFinding()

	print := r.print
	if *asJSON {
		print = r.printJSON
	}
	if err := print(stdout); err != nil {
		return err
	}
	if !r.OK {
		return errFound
	}
	return nil
}

// short returns what NewClient's errors say, without what each begins with.
func short(err error) string {
	return strings.NewReplacer("alicaptcha: ClientConfig.", "", "alicaptcha: ", "").Replace(err.Error())
}

func (r *report) check(name string) *check {
	return r.Checks[slices.IndexFunc(r.Checks, func(c *check) bool { return c.Name == name })]
}

func (r *report) hasFinding() bool {
	return slices.ContainsFunc(r.Checks, func(c *check) bool { return c.Status == statusFinding })
}

// checkCredentials looks at the environment's keys.
func (r *report) checkCredentials(cfg alicaptcha.ClientConfig, transport http.RoundTripper) {
	c := r.check("credentials")
	cfg.Transport = transport // else the environment's proxy might be a fault, too
	if _, err := alicaptcha.NewClient(cfg); err != nil {
		c.finding(strings.ReplaceAll(short(err), "\n", "; "),
			"set the environment's variables to a RAM user's AccessKey, without quotes or line breaks in it")
		return
	}
	const (
		idName     = "ALIBABA_CLOUD_ACCESS_KEY_ID"
		secretName = "ALIBABA_CLOUD_ACCESS_KEY_SECRET"
		tokenName  = "ALIBABA_CLOUD_SECURITY_TOKEN"
	)
	id, secret, token := os.Getenv(idName), os.Getenv(secretName), os.Getenv(tokenName)
	begins := func(s string, prefixes ...string) bool {
		return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(s, p) })
	}
	odd := func(s string) bool {
		return strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_./+=") != ""
	}
	temporary := begins(id, "STS.", "TMP.")
	for _, v := range []struct{ name, value string }{{idName, id}, {secretName, secret}, {tokenName, token}} {
		if odd(v.value) {
			c.finding(v.name+" has characters that no key has, such as quotes or brackets", "set it to the bare value")
			return
		}
	}
	switch {
	case begins(secret, "LTAI", "STS.", "TMP."):
		c.finding(secretName+" looks like an AccessKey ID", "set the ID and the secret each to its own value")
	case id == secret:
		c.finding(idName+" and "+secretName+" are the same", "set the ID and the secret each to its own value")
	case temporary && token == "":
		c.finding(idName+" is that of temporary keys, and "+tokenName+" is missing",
			"set the STS token too, all three from one answer of STS")
	case begins(id, "LTAI") && token != "":
		c.finding(idName+" is that of an AccessKey that lasts, and there is an STS token",
			"unset "+tokenName+", or take all three from one answer of STS")
	default:
		detail := "an AccessKey is there"
		if token != "" {
			detail = "a temporary AccessKey and an STS token are there"
		}
		if !temporary && !begins(id, "LTAI") {
			detail += ", though the ID begins neither with LTAI nor with STS."
		}
		c.ok(detail + "; whether it is a RAM user's, as it should be, or the root account's cannot be seen from here")
	}
}

// A plainTransport sends an unsigned GET in the place of each call, so that a
// Client reaches the endpoint as ever and the service has nothing to verify.
type plainTransport struct {
	next   http.RoundTripper
	status int // of the answer; 0 while there was none
	date   string
	at     time.Time
	from   string // the endpoint's host, and the proxy's
}

func (p *plainTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	get, err := http.NewRequestWithContext(r.Context(), http.MethodGet, r.URL.Scheme+"://"+r.URL.Host+"/", nil)
	if err != nil {
		return nil, err
	}
	p.from = get.URL.Host
	if proxy, err := http.ProxyFromEnvironment(get); err == nil && proxy != nil {
		p.from += " through the proxy " + proxy.Host
	}
	resp, err := p.next.RoundTrip(get)
	if err == nil {
		p.status, p.date, p.at = resp.StatusCode, resp.Header.Get("Date"), time.Now()
	}
	return resp, err
}

// checkEndpoint makes a request that costs nothing, and reads the clock off its
// answer.
func (r *report) checkEndpoint(
	cfg alicaptcha.ClientConfig, prober *alicaptcha.Client, plain *plainTransport, timeout time.Duration,
) {
	c := r.check("endpoint")
	cfg.Transport = nil
	if _, err := alicaptcha.NewClient(cfg); err != nil { // the keys and the flags are known to be right
		c.finding(short(err), "correct it, or unset it if there is no proxy")
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	err := prober.Diagnose(ctx, "")
	if plain.status == 0 {
		c.diagnosed(err, "")
		c.Detail = plain.from + ": " + c.Detail
		return
	}
	c.ok(fmt.Sprintf("%s answered an unsigned request with status %d", plain.from, plain.status))

	c = r.check("clock")
	date, err := http.ParseTime(plain.date)
	if err != nil {
		c.Detail = "the answer had no date"
		return
	}
	off, word := plain.at.Sub(date).Round(time.Second), "ahead of"
	if off < 0 {
		off, word = off.Abs(), "behind"
	}
	detail := fmt.Sprintf("this machine's is %v %s the service's", off, word)
	if off > 15*time.Minute {
		c.finding(detail, "set it, best by NTP")
		return
	}
	c.ok(detail)
}

// checkCall makes the verification, and tells from its end how far it came.
func (r *report) checkCall(cfg alicaptcha.ClientConfig, timeout time.Duration) {
	client, err := alicaptcha.NewClient(cfg)
	if err != nil {
		r.check("credentials").finding(short(err), "")
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	r.Verifications = 1
	err = client.Diagnose(ctx, r.Scene)
	found := "" // nothing
	var diagnosis interface {
		error
		Check() string
	}
	if errors.As(err, &diagnosis) {
		found = diagnosis.Check()
	} else if err != nil {
		found = "call"
	}

	if found == "call" {
		r.check("call").diagnosed(err, r.Scene)
		return
	}
	r.check("call").ok("the service answered")
	switch found {
	case "", "permission", "service", "scene":
		r.check("signature").ok("it was accepted")
		if c := r.check("clock"); c.Status == notChecked {
			c.ok("the signature's date was accepted")
		}
	}
	switch found {
	case "", "scene":
		r.check("permission").ok("the call was permitted")
		r.check("service").ok("it is active")
	}
	switch c := r.check("scene"); {
	case found != "":
		r.check(found).diagnosed(err, r.Scene)
	case r.Scene == "":
		c.Detail = "as -scene is not given"
	default:
		c.ok("the service had nothing against it; " +
			"whether the page's widget has the same scene and region cannot be seen from here")
	}
}

func (r *report) print(w io.Writer) error {
	var b strings.Builder
	var findings int
	for _, c := range r.Checks {
		fmt.Fprintf(&b, "%-11s  %-11s  %s\n", c.Name, strings.ReplaceAll(c.Status, "_", " "), c.Detail)
		if c.Status == statusFinding {
			findings++
			fmt.Fprintf(&b, "%-11s  %-11s  %s\n", "", "do this:", c.Remedy)
		}
	}
	switch findings {
	case 0:
		b.WriteString("All right.\n")
	case 1:
		b.WriteString("1 finding.\n")
	default:
		fmt.Fprintf(&b, "%d findings.\n", findings)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (r *report) printJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(r)
}
