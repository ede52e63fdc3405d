package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

const simulateHelp = `usage: alicaptcha simulate [flags]

Simulate serves a simulator of the service until Ctrl-C, for programs in any
language: point their endpoint at it, and give them its keys. It checks the
signature of each call, takes a param once and lets it expire.

  POST /        VerifyIntelligentCaptcha, version 2023-03-05, signed with
                ACS3-HMAC-SHA256
  POST /issue   stands for the browser: {"sceneId":"login"} is answered with
                {"captchaVerifyParam":"…"}; "code" chooses the verdict that it
                gets (T001 if not given), "format" v3 (if not given) or v2
  GET /AliyunCaptcha.js
                stands for the vendor's script, with a slider for a challenge
  POST /faults  sets what is wrong with the service, see below; {} mends it
  GET /faults   shows it

Faults, in -faults and in POST /faults, are a JSON object of these:

  latency, jitter, trickle    durations such as "150ms"
  steps                       durations of the calls to come, added to latency
  hang                        "headers", "mid-headers" or "body"
  reset                       "request", "mid-request", "headers" or "body"
  closeIdle                   true
  status, body, contentType   the answer in the place of a verdict
  throttleShare               0 to 1 of the calls
  throttleRate                calls a second that are not throttled
  credentials                 "wrong", "expired", "forbidden" or "overdue"
  verifyCode                  the verdict, such as "F009" or "T005"

The exit status is 0 after Ctrl-C, 1 if it could not serve, 2 for a wrong use.
It hands params to whoever asks: it must not guard anything real.
`

// shutdownTime is how long calls may go on after Ctrl-C.
const shutdownTime = 5 * time.Second

// simulate serves until ctx is done.
func simulate(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("simulate", flag.ContinueOnError)
	addr := flags.String("addr", "127.0.0.1:8081", "the `address` to serve on; port 0 is any that is free")
	id := flags.String("access-key-id", "test-id", "the AccessKey `ID` that calls must be signed with")
	secret := flags.String("access-key-secret", "test-secret",
		"its `secret`; not a real one, as other users of the machine see it")
	token := flags.String("security-token", "", "the STS `token` that calls must carry; if empty, they must carry none")
	scenes := flags.String("scenes", "login,signup", "the account's scene `IDs`, separated by commas")
	foreign := flags.String("foreign-scenes", "", "scene `IDs` of another account (F006)")
	faultsJSON := flags.String("faults", "{}",
		"what is wrong from the start, as a JSON `object` such as {\"hang\":\"headers\"}")
	if ok, err := parse(flags, args, simulateHelp, stdout); !ok {
		return err
	}
	cfg := alicaptchatest.Config{
		AccessKeyID: *id, AccessKeySecret: *secret, SecurityToken: *token, Scenes: strings.Split(*scenes, ","),
	}
	if *foreign != "" {
		cfg.ForeignScenes = strings.Split(*foreign, ",")
	}
	switch {
	case *id == "" || *secret == "":
		return usageError{errors.New("-access-key-id and -access-key-secret must not be empty")}
	case slices.Contains(cfg.Scenes, "") || slices.Contains(cfg.ForeignScenes, ""):
		return usageError{errors.New("-scenes or -foreign-scenes has an empty ID")}
	}
	simulator := alicaptchatest.NewSimulator(cfg)
	var faults alicaptchatest.Faults
	err := json.Unmarshal([]byte(*faultsJSON), &faults)
	if err == nil {
		err = simulator.SetFaults(faults)
	}
	if err != nil {
		return usageError{fmt.Errorf("-faults: %w", err)}
	}

	listener, err := net.Listen("tcp", *addr)
	if err != nil {
		return err
	}
	defer listener.Close()
	at := *listener.Addr().(*net.TCPAddr)
	if !at.IP.IsLoopback() {
		fmt.Fprintf(stderr, "alicaptcha: warning: whoever reaches %s can mint params and set faults; "+
			"127.0.0.1 is for this machine alone\n", listener.Addr())
	}
	if at.IP.IsUnspecified() {
		at.IP = net.IPv4(127, 0, 0, 1)
	}
	if _, err := io.WriteString(stdout, banner("http://"+at.String(), cfg, faults)); err != nil {
		return err
	}

	// No WriteTimeout: an answer may be an hour late.
	server := &http.Server{Handler: simulator, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	// Else a call that hangs would hold up the end.
	if err := simulator.SetFaults(alicaptchatest.Faults{}); err != nil {
		return err
	}
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTime)
	defer cancel()
	if server.Shutdown(bounded) != nil { // a client that does not read, say
		server.Close()
	}
	return nil
}

// banner returns what is printed at the start.
func banner(url string, cfg alicaptchatest.Config, faults alicaptchatest.Faults) string {
	var b strings.Builder
	line := func(label, value string) { fmt.Fprintf(&b, "%-19s%s\n", label+":", value) }
	curl := func(path string, body any) {
		b.WriteString("curl -sS " + quoted(url+path))
		if body != nil {
			b.WriteString(" -d " + quoted(marshal(body)))
		}
		b.WriteByte('\n')
	}
	line("URL", url)
	line("Access key ID", cfg.AccessKeyID)
	line("Access key secret", cfg.AccessKeySecret)
	if cfg.SecurityToken != "" {
		line("Security token", cfg.SecurityToken)
	}
	line("Scenes", strings.Join(cfg.Scenes, ", "))
	if len(cfg.ForeignScenes) > 0 {
		line("Foreign scenes", strings.Join(cfg.ForeignScenes, ", "))
	}
	if text := marshal(faults); text != "{}" {
		line("Faults", text)
	}
	b.WriteString("Mint a param that passes, and one that does not:\n")
	curl("/issue", alicaptchatest.Issue{SceneID: cfg.Scenes[0]})
	curl("/issue", alicaptchatest.Issue{SceneID: cfg.Scenes[0], Code: "F001"})
	b.WriteString("Have the service hang, see what is wrong, mend it:\n")
	curl("/faults", alicaptchatest.Faults{Hang: alicaptchatest.StageHeaders})
	curl("/faults", nil)
	curl("/faults", alicaptchatest.Faults{})
	b.WriteString("Ctrl-C stops it.\n")
	return b.String()
}

// marshal returns v in JSON; all that it is called with has one.
func marshal(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(text)
}

// quoted returns s for a shell.
func quoted(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
