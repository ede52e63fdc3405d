package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

const simulateHelp = `usage: alicaptcha simulate [flags]

Simulate serves a simulator of the service until Ctrl-C, for programs in any
language: set their endpoint to its URL, and give them its keys. It checks the
signature of each call, accepts a param once, and lets params expire.

  POST /        VerifyIntelligentCaptcha, version 2023-03-05, signed with
                ACS3-HMAC-SHA256
  POST /issue   stands in for the browser: {"sceneId":"login"} is answered with
                {"captchaVerifyParam":"…"}; "code" is the verdict that the param
                gets (T001 by default), "format" is v3 (the default) or v2
  GET /AliyunCaptcha.js
                stands in for the vendor's script, with a slider as the challenge;
                a query of its URL asks for what a page has to survive, such as
                ?delay=3000, ?never, ?down, ?error=Throttling, ?fail=F001 and
                ?traceless, which the beginning of the script explains
  POST /faults  sets what is wrong with the service (see below); {} clears it
  GET /faults   shows what is wrong with the service

The faults, in -faults and in POST /faults, are a JSON object of these members:

  latency, jitter, trickle    durations such as "150ms"
  steps                       durations of the next calls, added to latency
  hang                        "headers", "mid-headers" or "body"
  reset                       "request", "mid-request", "headers" or "body"
  closeIdle                   true
  status, body, contentType   the answer in place of a verdict
  throttleShare               the share of calls that are throttled, 0 to 1
  throttleRate                calls a second that are not throttled
  credentials                 "wrong", "expired", "forbidden" or "overdue"
  verifyCode                  the verdict, such as "F009"; "T005" and "F004" put
                              the scenes into test mode
  tlsDelay                    with -tls: how long each TLS handshake is delayed;
                              one of more than 10s fails

With -tls it serves HTTPS with a certificate of its own, made at each start. It
is for localhost, 127.0.0.1, ::1, the address that is served, and -hosts. The
certificate of the CA that signed it is written to -ca-file, for clients to
trust: curl has --cacert for that, and a Go program on Linux the environment
variable SSL_CERT_FILE.

The exit status is 0 after Ctrl-C, 1 if it could not serve, 2 for incorrect
usage. Anyone who can reach the simulator can get params from it: do not use it
to protect anything.
`

const (
	// shutdownTime is how long calls may go on after Ctrl-C.
	shutdownTime = 5 * time.Second

	// headerTime is how long a TLS handshake may take, and a request's header.
	headerTime = 10 * time.Second
)

// settings are what the command line of simulate says.
type settings struct {
	addr   string
	cfg    alicaptchatest.Config
	faults alicaptchatest.Faults
	secure bool
	hosts  []string // of the certificate
	caFile string   // empty without TLS
}

// parseSettings parses args. It reports false if they ask for help, which it
// prints, or are in error.
func parseSettings(args []string, stdout io.Writer) (s settings, ok bool, err error) {
	flags := flag.NewFlagSet("simulate", flag.ContinueOnError)
	flags.StringVar(&s.addr, "addr", "127.0.0.1:8081", "the `address` to serve on; port 0 is any free port")
	flags.StringVar(&s.cfg.AccessKeyID, "access-key-id", "test-id", "the AccessKey `ID` that calls must be signed with")
	flags.StringVar(&s.cfg.AccessKeySecret, "access-key-secret", "test-secret",
		"the `secret` of the AccessKey; not a real one, because other users of the machine can see it")
	flags.StringVar(&s.cfg.SecurityToken, "security-token", "",
		"the STS `token` that calls must carry; if empty, they must carry none")
	scenes := flags.String("scenes", "login,signup", "the account's scene `IDs`, separated by commas")
	foreign := flags.String("foreign-scenes", "", "scene `IDs` of another account (F006), separated by commas")
	flags.StringVar(&s.cfg.EKey, "ekey", "",
		"switch V3's encrypted mode on with this `key`, base64 of 32 bytes; not a real one. POST /issue needs no EncryptedSceneId")
	faults := flags.String("faults", "{}",
		"what is wrong from the start, as a JSON `object` such as {\"hang\":\"headers\"}")
	flags.BoolVar(&s.secure, "tls", false, "serve HTTPS; requires -ca-file")
	hosts := flags.String("hosts", "", "more `names` and IP addresses that the certificate is for, separated by commas")
	flags.StringVar(&s.caFile, "ca-file", "", "the `file` to write the CA's certificate to, in PEM; it is overwritten")
	if ok, err := parse(flags, args, simulateHelp, stdout); !ok {
		return settings{}, false, err
	}

	s.cfg.Scenes = strings.Split(*scenes, ",")
	if *foreign != "" {
		s.cfg.ForeignScenes = strings.Split(*foreign, ",")
	}
	switch {
	case s.cfg.AccessKeyID == "" || s.cfg.AccessKeySecret == "":
		err = errors.New("-access-key-id and -access-key-secret must not be empty")
	case slices.Contains(s.cfg.Scenes, ""):
		err = errors.New("-scenes must not contain an empty ID")
	case slices.Contains(s.cfg.ForeignScenes, ""):
		err = errors.New("-foreign-scenes must not contain an empty ID")
	case s.secure && s.caFile == "":
		err = errors.New("-tls requires -ca-file, by which clients can trust the certificate")
	case !s.secure && (*hosts != "" || s.caFile != ""):
		err = errors.New("-hosts and -ca-file require -tls")
	}
	if err != nil {
		return settings{}, false, usageError{err}
	}
	if s.cfg.EKey != "" {
		if _, err := alicaptcha.NewSceneKey(s.cfg.EKey); err != nil {
			return settings{}, false, usageError{fmt.Errorf("-ekey: %w", err)}
		}
	}
	if s.hosts, err = parseHosts(*hosts); err != nil {
		return settings{}, false, usageError{fmt.Errorf("-hosts: %w", err)}
	}
	if err := json.Unmarshal([]byte(*faults), &s.faults); err != nil {
		return settings{}, false, usageError{fmt.Errorf("-faults: %w", err)}
	}
	return s, true, nil
}

// simulate serves until ctx is done.
func simulate(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	s, ok, err := parseSettings(args, stdout)
	if !ok {
		return err
	}
	simulator := alicaptchatest.NewSimulator(s.cfg)
	if err := simulator.SetFaults(s.faults); err != nil {
		return usageError{fmt.Errorf("-faults: %w", err)}
	}

	listener, err := net.Listen("tcp", s.addr)
	if err != nil {
		return fmt.Errorf("-addr: %w", err)
	}
	defer listener.Close()
	at := *listener.Addr().(*net.TCPAddr)
	if !at.IP.IsLoopback() {
		fmt.Fprintf(stderr, "alicaptcha: warning: anyone who can reach %s can get params and set faults; "+
			"127.0.0.1 can be reached from this machine only\n", listener.Addr())
	}
	if at.IP.IsUnspecified() {
		at.IP = net.IPv4(127, 0, 0, 1)
	}

	// HTTP/1.1, because faults such as a reset are those of a whole connection.
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	// No WriteTimeout: an answer may be an hour late.
	server := &http.Server{
		Handler: simulator, ReadHeaderTimeout: headerTime, IdleTimeout: 25 * time.Second, Protocols: protocols,
	}
	scheme, serve := "http", server.Serve
	if s.secure {
		certificate, ca, err := newCertificate(append([]string{"localhost", "127.0.0.1", "::1", at.IP.String()}, s.hosts...))
		if err != nil {
			return fmt.Errorf("-hosts: %w", err)
		}
		// The listener accepts connections already, so the file also says that.
		if err := os.WriteFile(s.caFile, ca, 0o644); err != nil {
			return fmt.Errorf("-ca-file: %w", err)
		}
		server.TLSConfig = delayedTLS(certificate, simulator)
		scheme, serve = "https", func(l net.Listener) error { return server.ServeTLS(l, "", "") }
	}
	if _, err := io.WriteString(stdout, s.banner(scheme+"://"+at.String())); err != nil {
		return err
	}

	failed := make(chan error, 1)
	go func() { failed <- serve(listener) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	// Without this a call that hangs would delay the end.
	if err := simulator.SetFaults(alicaptchatest.Faults{}); err != nil {
		return err
	}
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTime)
	defer cancel()
	if server.Shutdown(bounded) != nil { // for example because a client does not read
		server.Close()
	}
	return nil
}

// delayedTLS returns a configuration with certificate, whose handshakes are
// delayed by the simulator's TLSDelay.
func delayedTLS(certificate tls.Certificate, simulator *alicaptchatest.Simulator) *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{certificate},
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			delay := simulator.Faults().TLSDelay
			end := time.Now().Add(min(delay, headerTime)) // the server gives up then
			for simulator.Faults().TLSDelay == delay && time.Now().Before(end) {
				time.Sleep(min(10*time.Millisecond, time.Until(end)))
			}
			return nil, nil
		},
	}
}

// banner returns what is printed at the start.
func (s settings) banner(url string) string {
	var b strings.Builder
	line := func(label, value string) { fmt.Fprintf(&b, "%-19s%s\n", label+":", value) }
	curl := func(path string, body any) {
		b.WriteString("curl -sS ")
		if s.caFile != "" {
			b.WriteString("--cacert " + quoted(s.caFile) + " ")
		}
		b.WriteString(quoted(url + path))
		if body != nil {
			b.WriteString(" -d " + quoted(marshal(body)))
		}
		b.WriteByte('\n')
	}
	line("URL", url)
	if s.caFile != "" {
		line("CA certificate", s.caFile)
	}
	line("Access key ID", s.cfg.AccessKeyID)
	line("Access key secret", s.cfg.AccessKeySecret)
	if s.cfg.SecurityToken != "" {
		line("Security token", s.cfg.SecurityToken)
	}
	if s.cfg.EKey != "" {
		line("Encrypted mode", "on, with the ekey "+s.cfg.EKey)
	}
	line("Scenes", strings.Join(s.cfg.Scenes, ", "))
	if len(s.cfg.ForeignScenes) > 0 {
		line("Foreign scenes", strings.Join(s.cfg.ForeignScenes, ", "))
	}
	if text := marshal(s.faults); text != "{}" {
		line("Faults", text)
	}
	b.WriteString("Get a param that passes, and one that does not:\n")
	curl("/issue", alicaptchatest.Issue{SceneID: s.cfg.Scenes[0]})
	curl("/issue", alicaptchatest.Issue{SceneID: s.cfg.Scenes[0], Code: "F001"})
	b.WriteString("Make the service hang, show what is wrong, clear it:\n")
	curl("/faults", alicaptchatest.Faults{Hang: alicaptchatest.StageHeaders})
	curl("/faults", nil)
	curl("/faults", alicaptchatest.Faults{})
	b.WriteString("Ctrl-C stops it.\n")
	return b.String()
}

// marshal returns v in JSON, which must be possible.
func marshal(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(text)
}

// quoted returns s in quotes for a shell.
func quoted(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
