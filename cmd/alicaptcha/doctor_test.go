package main

import (
	"bufio"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

// The output must never contain these, each of which contains "hunter".
const (
	keyID  = "LTAI5tDoctorhunter1"
	secret = "doctorSecrethunter2"
	token  = "doctorTokenhunter3+/=="
)

var keys = map[string]string{"ALIBABA_CLOUD_ACCESS_KEY_ID": keyID, "ALIBABA_CLOUD_ACCESS_KEY_SECRET": secret}

// with returns a copy of keys with the given pairs of names and values.
func with(pairs ...string) map[string]string {
	vars := maps.Clone(keys)
	for i := 0; i < len(pairs); i += 2 {
		vars[pairs[i]] = pairs[i+1]
	}
	return vars
}

// service is a simulator behind a handler that counts the calls.
type service struct {
	*alicaptchatest.Simulator
	url   string
	calls atomic.Int64
}

// serve serves a simulator with the keys. If before is not nil, it runs first, and
// answers in place of the simulator if it returns true.
func serve(t *testing.T, cfg alicaptchatest.Config, before func(w http.ResponseWriter, r *http.Request) bool) *service {
	t.Helper()
	if cfg.AccessKeyID == "" {
		cfg.AccessKeyID, cfg.AccessKeySecret = keyID, secret
	}
	cfg.ForeignScenes = []string{"theirs"}
	s := &service{Simulator: alicaptchatest.NewSimulator(cfg)}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			s.calls.Add(1)
		}
		if before == nil || !before(w, r) {
			s.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(func() {
		require.NoError(t, s.SetFaults(alicaptchatest.Faults{}))
		srv.Close()
	})
	s.url = srv.URL
	return s
}

// answering answers each call with status and body, and no other requests.
func answering(status int, body string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPost {
			return false
		}
		io.Copy(io.Discard, r.Body)
		w.WriteHeader(status)
		io.WriteString(w, body)
		return true
	}
}

func verdict(passed bool, code string) func(http.ResponseWriter, *http.Request) bool {
	return answering(200,
		fmt.Sprintf(`{"Code":"Success","Success":true,"Result":{"VerifyResult":%v,"VerifyCode":%q}}`, passed, code))
}

// dated shifts the date of each answer.
func dated(off time.Duration) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Date", time.Now().Add(off).UTC().Format(http.TimeFormat))
		return false
	}
}

func undated(w http.ResponseWriter, _ *http.Request) bool {
	w.Header()["Date"] = nil
	return false
}

// listen accepts connections on loopback, and closes them when the test ends.
func listen(t *testing.T, each func(net.Conn)) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	wg.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, conn)
			mu.Unlock()
			wg.Go(func() { each(conn) })
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

// proxy serves a proxy that connects every request to the server at to, or answers
// 502 if to is empty. asked returns the requests so far.
func proxy(t *testing.T, to string) (addr string, asked func() []string) {
	var mu sync.Mutex
	var hosts []string
	addr = listen(t, func(conn net.Conn) {
		defer conn.Close()
		r, err := http.ReadRequest(bufio.NewReader(conn))
		if err != nil {
			return
		}
		mu.Lock()
		hosts = append(hosts, r.Method+" "+r.Host)
		mu.Unlock()
		if to == "" {
			io.WriteString(conn, "HTTP/1.1 502 hunter\r\nContent-Length: 0\r\n\r\n")
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
	return addr, func() []string {
		mu.Lock()
		defer mu.Unlock()
		return append([]string(nil), hosts...)
	}
}

// found is what doctor -json prints, according to its help.
type found struct {
	OK            bool   `json:"ok"`
	Region        string `json:"region"`
	Endpoint      string `json:"endpoint"`
	Scene         string `json:"scene"`
	Verifications int    `json:"verifications"`
	Checks        []struct {
		Name      string `json:"name"`
		Status    string `json:"status"`
		Detail    string `json:"detail"`
		Remedy    string `json:"remedy"`
		Code      string `json:"code"`
		RequestID string `json:"request_id"`
	} `json:"checks"`
}

var names = []string{
	"credentials", "endpoint", "clock", "call", "signature", "permission", "service", "scene", "test_mode",
}

// varying matches what differs between runs.
var varying = regexp.MustCompile(`request [0-9A-F-]{36}|127\.0\.0\.1:\d+->|\d+(\.\d+)?m?s (ahead of|behind)|within [\d.]+m?s|took [\d.]+s`)

// examine runs doctor with -json and without, and returns the statuses of its
// checks as letters: o for ok, F for a finding, - for not checked.
func examine(t *testing.T, vars map[string]string, args ...string) (string, found) {
	t.Helper()
	args = append([]string{"doctor"}, args...)
	asJSON := runProgram(t, vars, append(args, "-json")...)
	var f found
	dec := json.NewDecoder(strings.NewReader(asJSON.stdout))
	dec.DisallowUnknownFields()
	require.NoError(t, dec.Decode(&f), asJSON)
	_, err := dec.Token()
	require.Equal(t, io.EOF, err, asJSON.stdout)
	require.Equal(t, "At most one verification is made; it is billed like any other.\n", asJSON.stderr)

	text := runProgram(t, vars, args...)
	require.Equal(t, asJSON.status, text.status)
	require.Empty(t, text.stderr)
	require.True(t, strings.HasPrefix(text.stdout, asJSON.stderr), text.stdout)
	require.NotContains(t, asJSON.stdout+text.stdout, "hunter")

	letters, want, unchecked := "", asJSON.stderr, ""
	names := slices.Clone(names)
	if vars["CAPTCHA_EKEY"] != "" {
		names = append(names, "ekey")
	}
	require.Len(t, f.Checks, len(names))
	findings := 0
	for i, c := range f.Checks {
		require.Equal(t, names[i], c.Name)
		require.NotEmpty(t, c.Detail)
		require.NotContains(t, c.Detail+c.Remedy, "\n")
		name := strings.ReplaceAll(c.Name, "_", " ")
		want += fmt.Sprintf("%-11s  %-11s  %s\n", name, strings.ReplaceAll(c.Status, "_", " "), c.Detail)
		switch c.Status {
		case "ok":
			letters += "o"
		case "finding":
			letters += "F"
			findings++
			require.NotEmpty(t, c.Remedy)
			want += fmt.Sprintf("             do this:     %s\n", c.Remedy)
		case "not_checked":
			letters += "-"
			unchecked += ", " + name
		default:
			require.Fail(t, "no such status", c.Status)
		}
		if c.Status != "finding" {
			require.Empty(t, c.Remedy+c.Code+c.RequestID)
		}
	}
	want += []string{"No findings.", "1 finding.", "2 findings."}[findings]
	if unchecked != "" {
		want += " Not checked: " + strings.TrimPrefix(unchecked, ", ") + "."
	}
	want += "\n"
	require.Equal(t, varying.ReplaceAllString(want, ""), varying.ReplaceAllString(settled(text.stdout), ""),
		"the text has the same content")
	require.Equal(t, findings == 0, f.OK)
	status := 0
	if findings > 0 {
		status = 1
	}
	require.Equal(t, status, asJSON.status)
	return letters, f
}

// settled returns what doctor printed, with only the last text of each check: the
// call may change the result of checks before it.
func settled(text string) string {
	var order []string
	blocks := map[string]string{}
	name := ""
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, " ") { // what to do about it
			blocks[name] += line
			continue
		}
		name, _, _ = strings.Cut(line, "  ")
		if blocks[name] == "" {
			order = append(order, name)
		}
		blocks[name] = line
	}
	var b strings.Builder
	for _, name := range order {
		b.WriteString(blocks[name])
	}
	return b.String()
}

func TestDoctor(t *testing.T) {
	t.Parallel()
	type faults = alicaptchatest.Faults
	const html = "<html><body>hunter</body></html>"
	page := func(status int) faults { return faults{Status: status, Body: html, ContentType: "text/html"} }
	for name, tc := range map[string]struct {
		cfg    alicaptchatest.Config
		faults faults
		before func(http.ResponseWriter, *http.Request) bool
		vars   map[string]string // nil: keys
		args   []string          // in addition to -endpoint
		scene  string            // "": login; "-": none
		want   string
		code   string // of the finding
		words  []string
		calls  int64
	}{
		"all right": {want: "oooooooo-", calls: 1, words: []string{
			"answered an unsigned request with status 405",
			"an AccessKey is set (not checked: whether it belongs to a RAM user", "root account",
			"not checked: whether the page's widget", "whether the scene is in test mode: the service did not report it",
		}},
		"no scene": {scene: "-", want: "ooooooo--", calls: 1, words: []string{"-scene is not given"}},
		"keys of another shape": {
			cfg:  alicaptchatest.Config{AccessKeyID: "madeup", AccessKeySecret: secret},
			vars: with("ALIBABA_CLOUD_ACCESS_KEY_ID", "madeup"),
			want: "oooooooo-", calls: 1, words: []string{"does not begin with LTAI"},
		},
		"temporary keys": {
			cfg:  alicaptchatest.Config{AccessKeyID: "STS.hunter", AccessKeySecret: secret, SecurityToken: token},
			vars: with("ALIBABA_CLOUD_ACCESS_KEY_ID", "STS.hunter", "ALIBABA_CLOUD_SECURITY_TOKEN", token),
			want: "oooooooo-", calls: 1, words: []string{"a temporary AccessKey and an STS token are set"},
		},
		"a param that is noticed": {before: answering(401, `{"Code":"InvalidParameter"}`), want: "oooooooo-", calls: 1},

		"an ekey": {
			vars: with("CAPTCHA_EKEY", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="), want: "oooooooo-o", calls: 1,
			words: []string{"CAPTCHA_EKEY has the form of an ekey (not checked: whether it is the account's)"},
		},
		"an ekey as it is": { // the other checks are made
			vars: with("CAPTCHA_EKEY", "an-ekey-that-is-no-base64-hunter"), want: "oooooooo-F", calls: 1,
			words: []string{"CAPTCHA_EKEY: the ekey is not standard Base64", "copy the ekey from the console's overview"},
		},
		"an ekey with a line break": {
			vars: with("CAPTCHA_EKEY", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkahunter=\n"), want: "oooooooo-F", calls: 1,
			words: []string{"CAPTCHA_EKEY: the ekey contains white space"},
		},
		"a short ekey, and no keys": {
			vars: map[string]string{"CAPTCHA_EKEY": "AAhunter"}, want: "Foo------F",
			words: []string{"CAPTCHA_EKEY: the ekey is the Base64 of 6 bytes instead of 32"},
		},

		"wrong secret": {
			vars: with("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "hunter9"),
			want: "ooooF----", code: "SignatureDoesNotMatch", words: []string{"secret does not belong to"}, calls: 1,
		},
		"unknown key": {
			vars: with("ALIBABA_CLOUD_ACCESS_KEY_ID", "LTAIhunter9"),
			want: "ooooF----", code: "InvalidAccessKeyId.NotFound", words: []string{"does not exist"}, calls: 1,
		},
		"disabled key": {
			before: answering(403, `{"Code":"Forbidden.AccessKeyDisabled","Message":"hunter"}`),
			want:   "ooooF----", code: "Forbidden.AccessKeyDisabled", words: []string{"disabled"}, calls: 1,
		},
		"token wanted": {
			cfg:  alicaptchatest.Config{AccessKeyID: keyID, AccessKeySecret: secret, SecurityToken: token},
			want: "ooooF----", code: "MissingSecurityToken", words: []string{"set its STS token"}, calls: 1,
		},
		"expired token": {
			faults: faults{Credentials: "expired"},
			want:   "ooooF----", code: "InvalidSecurityToken.Expired", words: []string{"expired"}, calls: 1,
		},
		"RAM user denied": {
			faults: faults{Credentials: "forbidden"},
			want:   "oooooF---", code: "Forbidden.RAMUserAccessDenied", words: []string{"AliyunYundunAFSFullAccess"}, calls: 1,
		},
		"no permission": {
			before: answering(403, `{"Code":"NoPermission"}`),
			want:   "oooooF---", code: "NoPermission", words: []string{"AliyunYundunAFSFullAccess"}, calls: 1,
		},
		"overdue": {
			faults: faults{Credentials: "overdue"},
			want:   "ooooo-F--", code: "Forbidden.AccountAccessDenied", words: []string{"overdue", "not activated"}, calls: 1,
		},
		"unknown scene": {
			scene: "nowhere",
			want:  "oooooooF-", code: "F005", words: []string{`scene "nowhere"`, "does not exist", "region"}, calls: 1,
		},
		"foreign scene": {
			scene: "theirs",
			want:  "oooooooF-", code: "F006", words: []string{`scene "theirs"`, "another account"}, calls: 1,
		},
		"test mode, fails": {
			before: verdict(false, "F004"),
			want:   "ooooooooF", code: "F004", words: []string{`scene "login"`, "test mode and fails"}, calls: 1,
		},
		"test mode": {
			before: verdict(true, "T005"),
			want:   "ooooooooF", code: "T005", words: []string{"test mode and passes"}, calls: 1,
		},
		"test mode of the simulator, fails": {
			faults: faults{VerifyCode: "F004"},
			want:   "ooooooooF", code: "F004", words: []string{"test mode and fails"}, calls: 1,
		},
		"test mode of the simulator": {
			faults: faults{VerifyCode: "T005"},
			want:   "ooooooooF", code: "T005", words: []string{"test mode and passes"}, calls: 1,
		},
		"test mode, but no scene": {
			before: verdict(true, "T005"), scene: "-",
			want: "ooooooo-F", code: "T005", words: []string{"test mode and passes"}, calls: 1,
		},
		"scene deleted": {
			faults: faults{VerifyCode: "F005"},
			want:   "oooooooF-", code: "F005", words: []string{"does not exist"}, calls: 1,
		},
		"another verdict": {faults: faults{VerifyCode: "F009"}, want: "oooooooo-", calls: 1},
		"everybody passes": {
			before: verdict(true, "T001"),
			want:   "ooooooooF", code: "T001", words: []string{"made-up param passed"}, calls: 1,
		},

		"clock ahead": {
			before: dated(-16 * time.Minute),
			want:   "ooF------", words: []string{"this machine's clock is 16m", "ahead of", "NTP"},
		},
		"clock behind": {
			before: dated(48*time.Hour + 30*time.Second),
			want:   "ooF------", words: []string{"this machine's clock is 4", "behind", "NTP"},
		},
		"clock of another age": {before: func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Date", "Fri, 31 Dec 9999 23:59:59 GMT")
			return false
		}, want: "ooF------", words: []string{"behind", "NTP"}},
		"clock ahead, but in time": {
			before: dated(-14 * time.Minute),
			want:   "oooooooo-", calls: 1, words: []string{"14m", "ahead of"},
		},
		"clock behind, but in time": {
			before: dated(14*time.Minute + 30*time.Second),
			want:   "oooooooo-", calls: 1, words: []string{"behind"},
		},
		"no date": {
			before: undated,
			want:   "oooooooo-", calls: 1, words: []string{"the signature's date was accepted"},
		},
		"no date, and no signature": {
			before: undated, vars: with("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "hunter9"),
			want: "oo-oF----", code: "SignatureDoesNotMatch", calls: 1, words: []string{"the answer has no date"},
		},
		"the service minds the clock": {
			before: answering(400, `{"Code":"InvalidTimeStamp.Expired"}`),
			want:   "ooFo-----", code: "InvalidTimeStamp.Expired", calls: 1, words: []string{"15 minutes"},
		},

		"the clock, elsewhere": {
			before: answering(400, `{"Code":"IllegalTimestamp"}`),
			want:   "ooFo-----", code: "IllegalTimestamp", calls: 1, words: []string{"15 minutes"},
		},
		"another version": {
			before: answering(404, `{"Code":"InvalidVersion"}`),
			want:   "oFoo-----", code: "InvalidVersion", words: []string{"not one of CAPTCHA 2.0"}, calls: 1,
		},
		"another service": {
			before: answering(404, `{"Code":"InvalidAction.NotFound"}`),
			want:   "oFoo-----", code: "InvalidAction.NotFound", words: []string{"not one of CAPTCHA 2.0"}, calls: 1,
		},
		"hang": {
			faults: faults{Hang: alicaptchatest.StageHeaders}, args: []string{"-timeout", "200ms"},
			want: "oooF-----", words: []string{"service_timeout", "not in time"}, calls: 1,
		},
		"hang in the body": {
			faults: faults{Hang: alicaptchatest.StageBody}, args: []string{"-timeout", "200ms"},
			want: "oooF-----", words: []string{"service_timeout"}, calls: 1,
		},
		"reset": {
			faults: faults{Reset: alicaptchatest.StageHeaders},
			want:   "oooF-----", words: []string{"service_unavailable", "could not be reached"}, calls: 1,
		},
		"InternalError": {
			before: answering(500, `{"Code":"InternalError","Message":"hunter"}`),
			want:   "oooF-----", code: "InternalError", words: []string{"internal error"}, calls: 1,
		},
		"500": {
			faults: faults{Status: 500},
			want:   "oooF-----", words: []string{"status 500", "proxy or gateway"}, calls: 1,
		},
		"wrong key by a fault": {
			faults: faults{Credentials: "wrong"},
			want:   "ooooF----", code: "InvalidAccessKeyId.NotFound", words: []string{"does not exist"}, calls: 1,
		},
		"forbidden by a fault": {
			faults: faults{Credentials: "forbidden"},
			want:   "oooooF---", code: "Forbidden.RAMUserAccessDenied", words: []string{"AliyunYundunAFSFullAccess"}, calls: 1,
		},
		"overdue by a fault": {
			faults: faults{Credentials: "overdue"},
			want:   "ooooo-F--", code: "Forbidden.AccountAccessDenied", words: []string{"overdue"}, calls: 1,
		},
		"trickle":           {faults: faults{Trickle: 10 * time.Microsecond}, want: "oooooooo-", calls: 1},
		"jitter":            {faults: faults{Jitter: time.Millisecond}, want: "oooooooo-", calls: 1},
		"steps":             {faults: faults{Steps: []time.Duration{time.Millisecond}}, want: "oooooooo-", calls: 1},
		"closes idle calls": {faults: faults{CloseIdle: true}, want: "oooooooo-", calls: 1},
		"slow steps": {
			faults: faults{Steps: []time.Duration{2100 * time.Millisecond}}, args: []string{"-timeout", "20s"},
			want: "oooFoooo-", calls: 1, words: []string{"the service took 2."},
		},
		"reset in the body": {faults: faults{Reset: alicaptchatest.StageBody}, want: "oooF-----", calls: 1,
			words: []string{"service_unavailable"}},
		"throttled": {
			faults: faults{ThrottleShare: 1},
			want:   "oooF-----", code: "Throttling.User", words: []string{"service_throttled", "limit"}, calls: 1,
		},
		"gateway": {
			faults: page(502),
			want:   "oooF-----", words: []string{"status 502", "proxy or gateway"}, calls: 1,
		},
		"gateway's refusal": {
			faults: page(403),
			want:   "oooF-----", words: []string{"status 403", "proxy or gateway"}, calls: 1,
		},
		"gateway's success": {
			faults: page(200),
			want:   "oooF-----", words: []string{"status 200", "proxy or gateway"}, calls: 1,
		},
		"redirect": {
			before: answering(302, html),
			want:   "oooF-----", words: []string{"status 302", "proxy or gateway"}, calls: 1,
		},
		"gateway for all": {before: func(w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(503)
			io.WriteString(w, html)
			return true
		}, want: "oooF-----", words: []string{"with status 503", "proxy or gateway"}, calls: 1},

		"no keys": {vars: map[string]string{}, want: "Foo------", words: []string{
			"not set in the environment: ALIBABA_CLOUD_ACCESS_KEY_ID, ALIBABA_CLOUD_ACCESS_KEY_SECRET ",
		}},
		"no secret": {
			vars: with("ALIBABA_CLOUD_ACCESS_KEY_SECRET", ""),
			want: "Foo------", words: []string{"not set in the environment: ALIBABA_CLOUD_ACCESS_KEY_SECRET "},
		},
		"no ID": {
			vars: with("ALIBABA_CLOUD_ACCESS_KEY_ID", ""),
			want: "Foo------", words: []string{"not set in the environment: ALIBABA_CLOUD_ACCESS_KEY_ID "},
		},
		"line break in a secret": {
			vars: with("ALIBABA_CLOUD_ACCESS_KEY_SECRET", secret+"\n"),
			want: "Foo------", words: []string{"ALIBABA_CLOUD_ACCESS_KEY_SECRET has characters"},
		},
		"quotes around a secret": {
			vars: with("ALIBABA_CLOUD_ACCESS_KEY_SECRET", `"`+secret+`"`),
			want: "Foo------", words: []string{"ALIBABA_CLOUD_ACCESS_KEY_SECRET has characters"},
		},
		"placeholder": {
			vars: with("ALIBABA_CLOUD_ACCESS_KEY_ID", "<hunter>"),
			want: "Foo------", words: []string{"ALIBABA_CLOUD_ACCESS_KEY_ID has characters"},
		},
		"quoted token": {
			vars: with("ALIBABA_CLOUD_ACCESS_KEY_ID", "STS.x", "ALIBABA_CLOUD_SECURITY_TOKEN", "'"+token+"'"),
			want: "Foo------", words: []string{"ALIBABA_CLOUD_SECURITY_TOKEN has characters"},
		},
		"exchanged": {
			vars: with("ALIBABA_CLOUD_ACCESS_KEY_ID", secret, "ALIBABA_CLOUD_ACCESS_KEY_SECRET", keyID),
			want: "Foo------", words: []string{"ALIBABA_CLOUD_ACCESS_KEY_SECRET looks like an AccessKey ID"},
		},
		"twice the same": {
			vars: with("ALIBABA_CLOUD_ACCESS_KEY_ID", secret),
			want: "Foo------", words: []string{"have the same value"},
		},
		"temporary without a token": {
			vars: with("ALIBABA_CLOUD_ACCESS_KEY_ID", "STS.hunter"),
			want: "Foo------", words: []string{"ALIBABA_CLOUD_SECURITY_TOKEN is not set"},
		},
		"a token left over": {
			vars: with("ALIBABA_CLOUD_SECURITY_TOKEN", token),
			want: "Foo------", words: []string{"unset ALIBABA_CLOUD_SECURITY_TOKEN"},
		},
		"a proxy that is none": { // loopback is not proxied
			vars: with("HTTP_PROXY", "http://user:hunter2@bad host/", "http_proxy", "::hunter"),
			want: "oooooooo-", calls: 1,
		},
		"slow": {
			faults: alicaptchatest.Faults{Latency: 2100 * time.Millisecond}, args: []string{"-timeout", "20s"},
			want: "oooFoooo-", calls: 1, words: []string{"the service took 2.", "whether the endpoint is the near one"},
		},
		"the default chain": {
			args: []string{"-credential", "default"}, want: "oooooooo-", calls: 1,
			words: []string{"the default chain gave keys, of type default"},
		},
		"a default chain without a source": {
			args: []string{"-credential", "default", "-timeout", "20s"},
			vars: map[string]string{"ALIBABA_CLOUD_ECS_METADATA_DISABLED": "true", "HOME": "/nonexistent"},
			want: "Foo------", words: []string{"the default chain gave no keys", "Credential", "RAM role"},
		},
		"no keys, and another clock": {
			vars: map[string]string{}, before: dated(-time.Hour),
			want: "FoF------", words: []string{"not set", "1h0m"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, tc.cfg, tc.before)
			require.NoError(t, s.SetFaults(tc.faults))
			vars := tc.vars
			if vars == nil {
				vars = keys
			}
			args := append([]string{"-endpoint", s.url}, tc.args...)
			scene := tc.scene
			switch scene {
			case "":
				scene = "login"
				fallthrough
			default:
				args = append(args, "-scene", scene)
			case "-":
				scene = ""
			}
			got, f := examine(t, vars, args...)
			require.Equal(t, tc.want, got)
			require.EqualValues(t, 2*tc.calls, s.calls.Load(), "of two runs")
			require.EqualValues(t, tc.calls, f.Verifications)
			require.Equal(t, s.url, f.Endpoint)
			require.Equal(t, scene, f.Scene)
			require.Empty(t, f.Region)
			var said strings.Builder
			for _, c := range f.Checks {
				fmt.Fprintln(&said, c.Detail, c.Remedy)
				if c.Status == "finding" {
					require.Equal(t, tc.code, c.Code)
					if tc.before == nil { // the simulator sends one
						require.Equal(t, tc.code != "", c.RequestID != "")
					}
				}
			}
			for _, word := range tc.words {
				require.Contains(t, said.String(), word)
			}
		})
	}
}

// Problems between this machine and the service.
func TestDoctorEndpoint(t *testing.T) {
	t.Parallel()
	s := serve(t, alicaptchatest.Config{}, nil)
	secure := httptest.NewUnstartedServer(s)
	secure.Config.ErrorLog = log.New(io.Discard, "", 0) // TLS errors are expected
	secure.StartTLS()
	defer secure.Close()
	silent := listen(t, func(conn net.Conn) { io.Copy(io.Discard, conn) })
	closing := listen(t, func(conn net.Conn) {
		http.ReadRequest(bufio.NewReader(conn))
		conn.Close()
	})
	dead, asked := proxy(t, "")
	const refused = "127.0.0.1:1"
	for name, tc := range map[string]struct {
		args  []string
		vars  map[string]string
		words []string
	}{
		"unresolvable": {
			args:  []string{"-endpoint", "captcha..example"},
			words: []string{"captcha..example", "no such host", "its name has no address"},
		},
		"refused": {
			args:  []string{"-endpoint", "http://" + refused},
			words: []string{"refused", "firewall"},
		},
		"refused by https": {args: []string{"-endpoint", refused}, words: []string{"refused", "firewall"}},
		"unknown certificate": {
			args:  []string{"-endpoint", secure.URL},
			words: []string{"failed to verify certificate", "root certificates"},
		},
		"no TLS": {
			args:  []string{"-endpoint", strings.TrimPrefix(s.url, "http://")},
			words: []string{"over TLS"},
		},
		"silent": {
			args:  []string{"-endpoint", "http://" + silent, "-timeout", "200ms"},
			words: []string{"deadline exceeded", "not in time"},
		},
		"silent in TLS": {
			args:  []string{"-endpoint", silent, "-timeout", "200ms"},
			words: []string{"deadline exceeded", "not in time"},
		},
		"closing": {
			args:  []string{"-endpoint", "http://" + closing},
			words: []string{"closed before the end", "could not be reached"},
		},
		"a proxy that is none": {
			args:  []string{"-endpoint", secure.URL},
			vars:  with("HTTPS_PROXY", "http://user:hunter2@bad host/"),
			words: []string{"HTTPS_PROXY is not the URL of a proxy", "unset it"},
		},
		"a proxy that is not there": {
			args:  []string{"-region", "cn"},
			vars:  with("https_proxy", "http://user:hunter2@"+refused),
			words: []string{"captcha.cn-shanghai.aliyuncs.com through the proxy " + refused, "refused", "HTTPS_PROXY"},
		},
		"a proxy's outage": {
			args:  []string{"-region", "sgp"},
			vars:  with("HTTPS_PROXY", "http://user:hunter2@"+dead),
			words: []string{"captcha.ap-southeast-1.aliyuncs.com through the proxy " + dead, "could not be reached"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			vars := tc.vars
			if vars == nil {
				vars = keys
			}
			got, f := examine(t, vars, append(tc.args, "-scene", "login")...)
			require.Equal(t, "oF-------", got)
			require.Zero(t, f.Verifications)
			require.Zero(t, s.Count())
			require.Equal(t, "login", f.Scene)
			for _, word := range tc.words {
				require.Contains(t, f.Checks[1].Detail+f.Checks[1].Remedy, word)
			}
			if name == "a proxy's outage" {
				require.Equal(t, "sgp", f.Region)
			}
		})
	}
	const connect = "CONNECT captcha.ap-southeast-1.aliyuncs.com:443"
	require.Equal(t, []string{connect, connect}, asked(), "one of each run")

	t.Run("two findings", func(t *testing.T) {
		got, _ := examine(t, nil, "-endpoint", refused)
		require.Equal(t, "FF-------", got)
	})
	t.Run("all right, by TLS and a proxy", func(t *testing.T) {
		if runtime.GOOS != "linux" {
			return // SSL_CERT_FILE is read on Linux
		}
		addr, asked := proxy(t, secure.Listener.Addr().String())
		roots := filepath.Join(t.TempDir(), "roots.pem")
		block := &pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw}
		require.NoError(t, os.WriteFile(roots, pem.EncodeToMemory(block), 0o600))
		vars := with("HTTPS_PROXY", "http://user:hunter2@"+addr, "SSL_CERT_FILE", roots, "SSL_CERT_DIR", t.TempDir())
		got, f := examine(t, vars, "-region", "cn", "-endpoint", "example.com", "-scene", "login")
		require.Equal(t, "oooooooo-", got)
		require.Equal(t, 2, s.Count(), "one of each run")
		require.Len(t, asked(), 4)
		require.Contains(t, f.Checks[1].Detail, "example.com through the proxy "+addr+" answered")
	})
}

// Each check is printed when it is done, not only at the end.
func TestDoctorPrintsAsItGoes(t *testing.T) {
	t.Parallel()
	probed := make(chan struct{}, 1)
	s := serve(t, alicaptchatest.Config{}, func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet {
			<-probed
		}
		return false
	})
	require.NoError(t, s.SetFaults(alicaptchatest.Faults{Hang: alicaptchatest.StageHeaders}))
	cmd := program(t, keys, "doctor", "-endpoint", s.url, "-scene", "login", "-timeout", "30s")
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	in := bufio.NewReader(stdout)
	for _, want := range []string{"At most one verification", "credentials  ok", "endpoint     ok", "clock        ok"} {
		line, err := in.ReadString('\n')
		require.NoError(t, err)
		require.True(t, strings.HasPrefix(line, want), line)
		if want == "credentials  ok" {
			probed <- struct{}{} // the probe waited until here
		}
	}
	require.NoError(t, s.SetFaults(alicaptchatest.Faults{})) // the call hung until here
	rest, err := io.ReadAll(in)
	require.NoError(t, err)
	require.NoError(t, cmd.Wait())
	require.Regexp(t, `(?s)^call         ok .*\ntest mode    not checked  whether .*\nNo findings\. Not checked: test mode\.\n$`, string(rest))
}

// A check that the call changes is printed again.
func TestDoctorPrintsWhatChanges(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		before      func(http.ResponseWriter, *http.Request) bool
		first, then string
	}{
		"endpoint": {answering(404, `{"Code":"InvalidVersion"}`), "\nendpoint     ok ", "\nendpoint     finding "},
		"clock":    {undated, "\nclock        not checked  the answer has no date\n", "\nclock        ok           the signature's"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, alicaptchatest.Config{}, tc.before)
			got := runProgram(t, keys, "doctor", "-endpoint", s.url, "-scene", "login")
			_, after, ok := strings.Cut(got.stdout, tc.first)
			require.True(t, ok, got.stdout)
			require.Contains(t, "\n"+after, tc.then)
			require.Equal(t, 2, strings.Count(got.stdout, "\n"+name+" "), got.stdout)
		})
	}
}
