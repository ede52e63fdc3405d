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

	"github.com/aliyun/credentials-go/credentials"

	"github.com/alicaptcha/alicaptcha"
)

const doctorHelp = `usage: alicaptcha doctor -region cn|sgp [-scene ID] [flags]

Doctor makes these checks in this order, and says what to do about what it finds:

  credentials  the keys are set and look like keys
  endpoint     its name resolves, and it answers over TCP and TLS
  clock        this machine's clock is within 15 minutes of the service's
  call         the service itself answers a signed call, in time and unthrottled
  signature    the AccessKey exists, and its secret and STS token belong to it
  permission   the RAM user or role has AliyunYundunAFSFullAccess
  service      it is activated, and the account is not overdue
  scene        the service does not report that it is unknown or another account's
  test_mode    the service does not report that the scene is in test mode
  ekey         CAPTCHA_EKEY is the Base64 of 32 bytes; only if it is set

Each check is printed when it is done, and again if a later one changes it.
What cannot be checked is "not checked". That is so after a finding, and for
test mode whenever the service does not report it: it may reject the made-up
param of the call without looking at the scene's mode.

The checks from call on are one signed call with a made-up param, which is billed
as a verification. It is made only if there is no finding before it.

With -credential default the keys are those that the default chain of the vendor's
credentials-go finds, as by credentials.NewCredential(nil): the environment, OIDC, the
profiles of the command line and its files, and the RAM role of an ECS instance.
Otherwise they are taken from the environment, as by the package:

  ALIBABA_CLOUD_ACCESS_KEY_ID      a RAM user's pair
  ALIBABA_CLOUD_ACCESS_KEY_SECRET
  ALIBABA_CLOUD_SECURITY_TOKEN     only with temporary keys from STS

The ekey, which is for the encrypted mode only, is read from CAPTCHA_EKEY, as by the
example. It is not sent anywhere, so that whether it is the account's is not checked.

Connections go through the proxy in HTTPS_PROXY, if it is set.

The exit status is 0 without a finding, 1 with one, 2 for incorrect usage.

With -json the standard output is one object, at the end:

  ok             whether there is no finding
  region         the value of -region; absent if empty
  endpoint       the value of -endpoint; absent if empty
  scene          the value of -scene; absent if empty
  verifications  how many were made: 0 or 1
  checks         all of the above in their order, each with these members:
    name         as above
    status       "ok", "finding" or "not_checked"
    detail       what was found; the wording may change
    remedy       what to do about a finding; absent otherwise
    code         the service's Code or VerifyCode, if it sent one with a finding
    request_id   the ID of the call, likewise
`

// report is what doctor prints.
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

	printed string // the last text that was printed
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

// diagnosed makes a finding of an error from Client.Diagnose.
func (c *check) diagnosed(err error, scene string) {
	e, ok := errors.AsType[*alicaptcha.Error](err)
	if !ok {
		c.finding("the call could not be made", "")
		return
	}
	remedy := e.Remedy()
	if scene != "" && (c.Name == "scene" || c.Name == "test_mode") {
		remedy = fmt.Sprintf("scene %q: %s", scene, remedy)
	}
	c.finding(strings.TrimPrefix(e.Error(), "alicaptcha: "), remedy)
	c.Code, c.RequestID = e.ServiceCode, e.RequestID
}

// doctor runs the command. Its error is errFound if the report has a finding.
func doctor(args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("doctor", flag.ContinueOnError)
	region := flags.String("region", "", "the `region` of the service, which the page's widget must have too: cn or sgp")
	endpoint := flags.String("endpoint", "", "a `host` or URL in place of the region's, such as "+
		"captcha-vpc.cn-shanghai.aliyuncs.com, or http://127.0.0.1:8081 for the simulator")
	scene := flags.String("scene", "", "the `ID` of the scene in the console; if empty, no scene is checked")
	credential := flags.String("credential", "env", "the `source` of the keys: env, or default for the vendor's chain")
	timeout := flags.Duration("timeout", 5*time.Second, "how long each of the two requests may take")
	asJSON := flags.Bool("json", false, "print one JSON object")
	if ok, err := parse(flags, args, doctorHelp, stdout); !ok {
		return err
	}
	switch {
	case *region == "" && *endpoint == "":
		return usageError{errors.New("-region is required (cn or sgp), or -endpoint: see alicaptcha help doctor")}
	case *timeout <= 0:
		return usageError{errors.New("-timeout must be greater than zero")}
	case *credential != "env" && *credential != "default":
		return usageError{errors.New("-credential must be env or default")}
	}
	cfg := alicaptcha.ClientConfig{Region: alicaptcha.Region(*region), Endpoint: *endpoint}

	// With these keys and this Transport, only the flags can be at fault.
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true) // like the Client's own
	plain := &plainTransport{next: &http.Transport{
		Proxy: http.ProxyFromEnvironment, Protocols: protocols, DisableKeepAlives: true,
	}}
	unsigned := cfg
	unsigned.AccessKeyID, unsigned.AccessKeySecret, unsigned.Transport = "none", "none", plain
	prober, err := alicaptcha.NewClient(unsigned)
	if err != nil {
		return usageError{errors.New(short(err))}
	}

	notice, lines := stdout, stdout
	if *asJSON {
		notice, lines = stderr, io.Discard
	}
	if _, err := fmt.Fprintln(notice, "At most one verification is made; it is billed like any other."); err != nil {
		return err
	}

	r := &report{Region: *region, Endpoint: *endpoint, Scene: *scene}
	for _, name := range []string{
		"credentials", "endpoint", "clock", "call", "signature", "permission", "service", "scene", "test_mode",
	} {
		c := &check{Name: name, Status: notChecked, Detail: "because of a finding"}
		if *scene == "" && (name == "scene" || name == "test_mode") {
			c.Detail = "because -scene is not given"
		}
		r.Checks = append(r.Checks, c)
	}
	if *credential == "default" {
		cfg.Credential = r.checkChain(cfg, *timeout)
	} else {
		r.checkCredentials()
	}
	r.print(lines, "credentials")
	r.checkEndpoint(unsigned, prober, plain, *timeout)
	r.print(lines, "clock")
	if !r.hasFinding() {
		r.checkCall(cfg, *timeout)
	}
	r.print(lines, "test_mode")
	if ekey := os.Getenv(ekeyName); ekey != "" {
		r.checkEkey(ekey)
		r.print(lines, "ekey")
	}
	r.OK = !r.hasFinding()

	conclude := r.conclude
	if *asJSON {
		conclude = r.printJSON
	}
	if err := conclude(stdout); err != nil {
		return err
	}
	if !r.OK {
		return errFound
	}
	return nil
}

// short returns the text of an error from NewClient, which names fields of
// ClientConfig, in the words of the command line.
func short(err error) string {
	return strings.NewReplacer(
		"alicaptcha: ClientConfig.Region", "-region",
		"alicaptcha: ClientConfig.Endpoint", "-endpoint",
		"alicaptcha: ClientConfig.Transport: ", "",
		"alicaptcha: ClientConfig.", "",
		"alicaptcha: ", "",
	).Replace(err.Error())
}

func (r *report) check(name string) *check {
	return r.Checks[slices.IndexFunc(r.Checks, func(c *check) bool { return c.Name == name })]
}

func (r *report) hasFinding() bool {
	return slices.ContainsFunc(r.Checks, func(c *check) bool { return c.Status == statusFinding })
}

// checkChain checks the keys of credentials-go's default chain, and returns its
// Credential.
func (r *report) checkChain(cfg alicaptcha.ClientConfig, timeout time.Duration) credentials.Credential {
	c := r.check("credentials")
	type found struct {
		credential credentials.Credential
		err        error
	}
	asked := make(chan found, 1)
	go func() { // it cannot be canceled
		credential, err := credentials.NewCredential(nil)
		if err == nil {
			cfg.Credential = credential
			_, err = alicaptcha.NewClient(cfg) // asks for the keys, and says why there are none
		}
		asked <- found{credential, err}
	}()
	select {
	case f := <-asked:
		if f.err != nil {
			c.finding("the default chain gave no keys: "+short(f.err), "set the variables of one of its sources, or give the "+
				"instance a RAM role")
			return nil
		}
		c.ok("the default chain gave keys, of type " + *f.credential.GetType())
		return f.credential
	case <-time.After(timeout):
		c.finding(fmt.Sprintf("the default chain gave no keys within %v", timeout), "check the network to the source of the keys")
		return nil
	}
}

// checkCredentials checks the keys in the environment.
func (r *report) checkCredentials() {
	c := r.check("credentials")
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
	var missing []string
	for _, v := range []struct{ name, value string }{{idName, id}, {secretName, secret}, {tokenName, token}} {
		if odd(v.value) {
			c.finding(v.name+" has characters that no key has, such as spaces, quotes or line breaks",
				"set it to the bare value")
			return
		}
		if v.value == "" && v.name != tokenName {
			missing = append(missing, v.name)
		}
	}
	temporary := begins(id, "STS.", "TMP.")
	for _, v := range []struct{ name, value string }{{idName, id}, {secretName, secret}, {tokenName, token}} {
		if odd(v.value) {
			c.finding(v.name+" has characters that no key has, such as quotes or brackets", "set it to the bare value")
			return
		}
	}
	switch {
	case missing != nil:
		c.finding("not set in the environment: "+strings.Join(missing, ", "), "set a RAM user's AccessKey ID and secret")
	case begins(secret, "LTAI", "STS.", "TMP."):
		c.finding(secretName+" looks like an AccessKey ID", "set the ID and the secret to their own values")
	case id == secret:
		c.finding(idName+" and "+secretName+" have the same value", "set the ID and the secret to their own values")
	case temporary && token == "":
		c.finding(idName+" belongs to temporary keys, but "+tokenName+" is not set",
			"set the STS token too; all three must be from the same answer of STS")
	case begins(id, "LTAI") && token != "":
		c.finding(idName+" belongs to a permanent AccessKey, but "+tokenName+" is set",
			"unset "+tokenName+", or take all three from the same answer of STS")
	default:
		detail := "an AccessKey is set"
		if token != "" {
			detail = "a temporary AccessKey and an STS token are set"
		}
		if !temporary && !begins(id, "LTAI") {
			detail += ", although the ID does not begin with LTAI, STS. or TMP."
		}
		c.ok(detail + " (not checked: whether it belongs to a RAM user, as it should, or to the root account)")
	}
}

// ekeyName is the variable in which a program in the encrypted mode has the ekey.
const ekeyName = "CAPTCHA_EKEY"

// checkEkey checks the form of ekey. It comes last, because no other check depends on it.
func (r *report) checkEkey(ekey string) {
	c := &check{Name: "ekey"}
	r.Checks = append(r.Checks, c)
	if _, err := alicaptcha.NewSceneKey(ekey); err != nil {
		c.finding(ekeyName+": "+short(err), "copy the ekey from the console's overview, without quotes or line breaks")
		return
	}
	c.ok(ekeyName + " has the form of an ekey (not checked: whether it is the account's)")
}

// plainTransport sends an unsigned GET in place of each call, so that a Client
// reaches the endpoint as usual and the service has nothing to verify.
type plainTransport struct {
	next   http.RoundTripper
	status int // of the answer; 0 without one
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

// checkEndpoint makes a request that costs nothing, and compares the clock with
// the date of the answer.
func (r *report) checkEndpoint(
	cfg alicaptcha.ClientConfig, prober *alicaptcha.Client, plain *plainTransport, timeout time.Duration,
) {
	c := r.check("endpoint")
	cfg.Transport = nil
	if _, err := alicaptcha.NewClient(cfg); err != nil { // the keys and the flags are valid
		c.finding(short(err), "correct it, or unset it if no proxy is needed")
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
		c.Detail = "the answer has no date"
		return
	}
	off, word := plain.at.Sub(date).Round(time.Second), "ahead of"
	if off < 0 {
		off, word = off.Abs(), "behind"
	}
	detail := fmt.Sprintf("this machine's clock is %v %s the service's", off, word)
	if off > 15*time.Minute {
		c.finding(detail, "set the clock, preferably by NTP")
		return
	}
	c.ok(detail)
}

// checkCall makes the verification, and derives the remaining checks from how it
// ended.
func (r *report) checkCall(cfg alicaptcha.ClientConfig, timeout time.Duration) {
	client, err := alicaptcha.NewClient(cfg)
	if err != nil {
		r.check("credentials").finding(short(err), "set the variables to a RAM user's AccessKey")
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	r.Verifications = 1
	start := time.Now()
	err = client.Diagnose(ctx, r.Scene)
	took := time.Since(start)
	found := subject(err)
	if found == "call" {
		r.check("call").diagnosed(err, r.Scene)
		return
	}
	r.check("call").ok(fmt.Sprintf("the service answered within %v", took.Truncate(10*time.Millisecond)+10*time.Millisecond))
	if took > slow {
		r.check("call").finding(fmt.Sprintf("the service took %v; a verdict usually takes less than 300ms",
			took.Round(100*time.Millisecond)), "check the network, the proxy, and whether the endpoint is the near one")
	}
	switch found {
	case "", "permission", "service", "scene", "test_mode":
		r.check("signature").ok("it was accepted")
		if c := r.check("clock"); c.Status == notChecked {
			c.ok("the signature's date was accepted")
		}
	}
	switch found {
	case "", "scene", "test_mode":
		r.check("permission").ok("the call was permitted")
		r.check("service").ok("it is active")
	}
	if found != "" {
		r.check(found).diagnosed(err, r.Scene)
	}
	if r.Scene == "" {
		return
	}
	switch found {
	case "", "test_mode":
		r.check("scene").ok("the service reported no problem with it " +
			"(not checked: whether the page's widget has the same scene and region)")
	}
	if found == "" {
		r.check("test_mode").Detail = "whether the scene is in test mode: the service did not report it, " +
			"but may not have looked; the console shows it"
	}
}

// slow is how long a person would not wait for a login.
const slow = 2 * time.Second

// subject returns the name of the check that an error from Client.Diagnose is
// about, or nothing.
func subject(err error) string {
	if err == nil {
		return ""
	}
	var diagnosis interface {
		error
		Check() string
	}
	if !errors.As(err, &diagnosis) {
		return "call"
	}
	name := diagnosis.Check()
	if e, ok := errors.AsType[*alicaptcha.Error](err); ok && name == "scene" {
		switch alicaptcha.Code(e.ServiceCode) {
		case alicaptcha.F005, alicaptcha.F006:
		default: // the scene is there, and passes or fails everybody
			name = "test_mode"
		}
	}
	return name
}

// print prints the checks up to last, except those that were printed as they are.
// Its errors are left to conclude, which writes to the same place.
func (r *report) print(w io.Writer, last string) {
	for _, c := range r.Checks {
		text := fmt.Sprintf("%-11s  %-11s  %s\n", readable(c.Name), readable(c.Status), c.Detail)
		if c.Status == statusFinding {
			text += fmt.Sprintf("%-11s  %-11s  %s\n", "", "do this:", c.Remedy)
		}
		if text != c.printed {
			io.WriteString(w, text)
			c.printed = text
		}
		if c.Name == last {
			return
		}
	}
}

// readable returns a word of the report for people.
func readable(word string) string { return strings.ReplaceAll(word, "_", " ") }

// conclude prints how many findings there are, and what was not checked.
func (r *report) conclude(w io.Writer) error {
	findings, unchecked := 0, []string{}
	for _, c := range r.Checks {
		switch c.Status {
		case statusFinding:
			findings++
		case notChecked:
			unchecked = append(unchecked, readable(c.Name))
		}
	}
	text := "No findings."
	switch findings {
	case 0:
	case 1:
		text = "1 finding."
	default:
		text = fmt.Sprintf("%d findings.", findings)
	}
	if len(unchecked) > 0 {
		text += " Not checked: " + strings.Join(unchecked, ", ") + "."
	}
	_, err := fmt.Fprintln(w, text)
	return err
}

func (r *report) printJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(r)
}
