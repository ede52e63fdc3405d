package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

// With this variable in its environment, the test binary runs as the program.
const asProgram = "ALICAPTCHA_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// program returns a command that runs the program with vars as its environment.
func program(t *testing.T, vars map[string]string, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	path, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = []string{
		asProgram + "=1",
		"GODEBUG=netdns=go",         // does not look up an impossible name
		"GORACE=atexit_sleep_ms=0",  // or each program takes a second to end
		"GOCOVERDIR=" + t.TempDir(), // or -cover adds a warning to stderr
	}
	for name, value := range vars {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	return cmd
}

type result struct {
	status         int
	stdout, stderr string
}

func runProgram(t *testing.T, vars map[string]string, args ...string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := program(t, vars, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		require.IsType(t, &exec.ExitError{}, err)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

func TestUsageErrors(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { taken.Close() })
	for name, tc := range map[string]struct {
		args   []string
		vars   map[string]string
		status int // 0: 2
		want   string
	}{
		"nothing":                   {want: "alicaptcha help"},
		"no such command":           {args: []string{"treat"}, want: `"treat"`},
		"flag before the command":   {args: []string{"-json", "doctor"}, want: `"-json"`},
		"help on nothing":           {args: []string{"help", "treat"}, want: "doctor, gate and simulate"},
		"help on both":              {args: []string{"help", "doctor", "simulate"}, want: "doctor, gate and simulate"},
		"version of what":           {args: []string{"version", "x"}, want: "version"},
		"doctor without an address": {args: []string{"doctor"}, want: "-region is required (cn or sgp), or -endpoint"},
		"doctor elsewhere":          {args: []string{"doctor", "-region", "moon"}, want: `: -region must be`},
		"doctor at two faults": {
			args: []string{"doctor", "-region", "moon", "-endpoint", "ftp://x"},
			want: "; -endpoint must",
		},
		"doctor in the clear": {args: []string{"doctor", "-endpoint", "http://captcha.example"}, want: ": -endpoint must be https"},
		"doctor with a password": {
			args: []string{"doctor", "-endpoint", "https://user:hunter@captcha.example"},
			want: "password",
		},
		"doctor's flag":            {args: []string{"doctor", "-secret=hunter"}, want: "-secret"},
		"doctor's argument":        {args: []string{"doctor", "-region", "cn", "hunter"}, want: "no arguments"},
		"doctor's time":            {args: []string{"doctor", "-region", "cn", "-timeout", "0s"}, want: "-timeout"},
		"doctor's time, no number": {args: []string{"doctor", "-region", "cn", "-timeout", "soon"}, want: "-timeout"},
		"doctor's keys printed": {
			args: []string{"doctor", "-region", "cn"}, vars: with("DEBUG", "dara"),
			want: "DEBUG=dara",
		},
		"simulate's argument":       {args: []string{"simulate", "hunter"}, want: "no arguments"},
		"simulate's flag":           {args: []string{"simulate", "-port", "1"}, want: "-port"},
		"simulate without an ID":    {args: []string{"simulate", "-access-key-id", ""}, want: "-access-key-id"},
		"simulate without a secret": {args: []string{"simulate", "-access-key-secret", ""}, want: "-access-key-secret"},
		"simulate without scenes":   {args: []string{"simulate", "-scenes", ""}, want: "-scenes"},
		"simulate with a gap":       {args: []string{"simulate", "-foreign-scenes", "a,,b"}, want: "-foreign-scenes"},
		"simulate's faults, none":   {args: []string{"simulate", "-faults", ""}, want: "-faults"},
		"simulate's faults, null":   {args: []string{"simulate", "-faults", "null"}, want: "-faults"},
		"simulate's faults, odd":    {args: []string{"simulate", "-faults", `{"hung":"headers"}`}, want: "hung"},
		"simulate's faults, wrong":  {args: []string{"simulate", "-faults", `{"hang":"early"}`}, want: `"early"`},
		"simulate's faults, more":   {args: []string{"simulate", "-faults", "{}{}"}, want: "-faults"},
		"simulate with TLS alone":   {args: []string{"simulate", "-tls"}, want: "-tls requires -ca-file"},
		"simulate's ekey":           {args: []string{"simulate", "-ekey", "c2hvcnQ="}, want: "-ekey: "},
		"simulate's hosts, alone":   {args: []string{"simulate", "-hosts", "simulator"}, want: "require -tls"},
		"simulate's file, alone":    {args: []string{"simulate", "-ca-file", "nowhere/ca.pem"}, want: "require -tls"},
		"simulate's hosts, a URL": {
			args: []string{"simulate", "-tls", "-ca-file", "nowhere/ca.pem", "-hosts", "simulator,https://x"},
			want: `-hosts: "https://x" is neither a host name nor an IP address`,
		},
		"simulate's hosts, a port": {
			args: []string{"simulate", "-tls", "-ca-file", "nowhere/ca.pem", "-hosts", "simulator:8443"},
			want: `"simulator:8443"`,
		},
		"simulate's hosts, a gap": {
			args: []string{"simulate", "-tls", "-ca-file", "nowhere/ca.pem", "-hosts", "a,,b"}, want: `-hosts: ""`,
		},
		"simulate's file, nowhere": {
			args:   []string{"simulate", "-addr", "127.0.0.1:0", "-tls", "-ca-file", "nowhere/ca.pem"},
			status: 1, want: "-ca-file: open nowhere/ca.pem: ",
		},
		"gate without an address":     {args: []string{"gate", "-scene", "a"}, want: "-region is required (cn or sgp), or -endpoint"},
		"gate elsewhere":              {args: []string{"gate", "-region", "moon", "-scene", "a"}, want: ": -region must be"},
		"gate in the clear":           {args: []string{"gate", "-endpoint", "http://captcha.example", "-scene", "a"}, want: "must be https"},
		"gate without a scene":        {args: []string{"gate", "-region", "cn"}, want: "-scene is required"},
		"gate with an empty scene":    {args: []string{"gate", "-region", "cn", "-scene", ""}, want: "-scene"},
		"gate with a path as scene":   {args: []string{"gate", "-region", "cn", "-scene", "a/b"}, want: `"a/b"`},
		"gate with a dot as scene":    {args: []string{"gate", "-region", "cn", "-scene", ".."}, want: "letters, digits"},
		"gate with a scene twice":     {args: []string{"gate", "-region", "cn", "-scene", "a", "-scene", "a"}, want: "twice"},
		"gate's argument":             {args: []string{"gate", "-region", "cn", "-scene", "a", "hunter"}, want: "no arguments"},
		"gate's flag":                 {args: []string{"gate", "-secret=hunter"}, want: "-secret"},
		"gate's mode":                 {args: []string{"gate", "-region", "cn", "-scene", "a", "-mode", "open"}, want: "-mode must be"},
		"gate's credential":           {args: []string{"gate", "-region", "cn", "-scene", "a", "-credential", "x"}, want: "-credential must"},
		"gate's time":                 {args: []string{"gate", "-region", "cn", "-scene", "a", "-timeout", "0s"}, want: "-timeout must"},
		"gate's body":                 {args: []string{"gate", "-region", "cn", "-scene", "a", "-max-body", "0"}, want: "-max-body"},
		"gate's param":                {args: []string{"gate", "-region", "cn", "-scene", "a", "-max-param", "-1"}, want: "-max-param"},
		"gate's places":               {args: []string{"gate", "-region", "cn", "-scene", "a", "-max-concurrent", "0"}, want: "-max-concurrent"},
		"gate's places, too many":     {args: []string{"gate", "-region", "cn", "-scene", "a", "-max-concurrent", "9223372036854775807"}, want: "at most 1048576"},
		"gate's budget":               {args: []string{"gate", "-region", "cn", "-scene", "a", "-outage-budget", "-1"}, want: "-outage-budget"},
		"gate's status, a success":    {args: []string{"gate", "-region", "cn", "-scene", "a", "-unavailable-status", "204"}, want: "400 to 499"},
		"gate's status, unchanged":    {args: []string{"gate", "-region", "cn", "-scene", "a", "-unavailable-status", "503"}, want: "400 to 499"},
		"gate's pass":                 {args: []string{"gate", "-region", "cn", "-scene", "a", "-pass-status", "503"}, want: "204 or 200"},
		"gate's header":               {args: []string{"gate", "-region", "cn", "-scene", "a", "-header", "a b"}, want: "-header: "},
		"gate's fields":               {args: []string{"gate", "-region", "cn", "-scene", "a", "-fields", "a,,b"}, want: "-fields: "},
		"gate without places to look": {args: []string{"gate", "-region", "cn", "-scene", "a", "-fields", "", "-header", ""}, want: "both"},
		"gate without keys": {
			args: []string{"gate", "-region", "cn", "-scene", "a"}, status: 1, want: "ALIBABA_CLOUD_ACCESS_KEY_ID",
		},
		"gate's keys printed": {
			args: []string{"gate", "-region", "cn", "-scene", "a"}, vars: with("DEBUG", "dara"), want: "DEBUG=dara",
		},
		"gate's address in use": {
			args: []string{"gate", "-region", "cn", "-scene", "a", "-addr", taken.Addr().String()}, vars: keys, status: 1,
			want: ": -addr: listen tcp " + taken.Addr().String() + ": bind: address already in use",
		},
		"gate's other address in use": {
			args: []string{"gate", "-region", "cn", "-scene", "a", "-addr", "127.0.0.1:0", "-admin-addr", taken.Addr().String()},
			vars: keys, status: 1, want: ": -admin-addr: listen tcp ",
		},
		"address in use": {
			args: []string{"simulate", "-addr", taken.Addr().String()}, status: 1,
			want: ": -addr: listen tcp " + taken.Addr().String() + ": bind: address already in use",
		},
		"no address": {args: []string{"simulate", "-addr", "nowhere"}, status: 1, want: "-addr: listen tcp: address nowhere"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := runProgram(t, tc.vars, tc.args...)
			status := tc.status
			if status == 0 {
				status = 2
			}
			require.Equal(t, status, got.status, got)
			require.Empty(t, got.stdout)
			require.Contains(t, got.stderr, tc.want)
			require.True(t, strings.HasPrefix(got.stderr, "alicaptcha: "), got.stderr)
			require.Equal(t, 1, strings.Count(got.stderr, "\n"), got.stderr)
			require.NotContains(t, got.stderr, "hunter")
		})
	}
}

func TestHelp(t *testing.T) {
	t.Parallel()
	ask := func(args ...string) string {
		t.Helper()
		got := runProgram(t, nil, args...)
		require.Zero(t, got.status, got)
		require.Empty(t, got.stderr)
		return got.stdout
	}
	short := ask("help")
	for _, way := range []string{"-h", "-help", "--help"} {
		require.Equal(t, short, ask(way))
	}
	doctor, gate, simulate := ask("help", "doctor"), ask("help", "gate"), ask("help", "simulate")
	require.Equal(t, doctor, ask("doctor", "-h"))
	require.Equal(t, gate, ask("gate", "-h"))
	require.Equal(t, simulate, ask("simulate", "--help"))
	for _, word := range []string{"alicaptcha doctor", "alicaptcha gate", "alicaptcha simulate", "alicaptcha version", "exit status"} {
		require.Contains(t, short, word)
	}

	// The help mentions everything that its reader needs.
	words := []string{
		"-region", "-endpoint", "-scene", "-timeout", "-json", "exit status", "billed",
		"AliyunYundunAFSFullAccess", "HTTPS_PROXY", `"ok"`, `"finding"`, `"not_checked"`,
		"ALIBABA_CLOUD_ACCESS_KEY_ID", "ALIBABA_CLOUD_ACCESS_KEY_SECRET", "ALIBABA_CLOUD_SECURITY_TOKEN",
	}
	for _, name := range names {
		words = append(words, "\n  "+name+" ")
	}
	for _, typ := range []reflect.Type{reflect.TypeFor[report](), reflect.TypeFor[check]()} {
		for field := range typ.Fields() {
			member, _, _ := strings.Cut(field.Tag.Get("json"), ",")
			words = append(words, "  "+member+" ")
		}
	}
	for _, word := range words {
		require.Contains(t, doctor, word)
	}
	for _, word := range []string{
		"-addr", "-admin-addr", "-credential", "-endpoint", "-fields", "-header", "-max-body", "-max-concurrent", "-max-param",
		"-mode", "-outage-budget", "-pass-status", "-region", "-scene", "-timeout", "-unavailable-status", "/gate/ID", "Captcha-Verified", "204",
		"404", "/healthz", "/metrics", "SIGTERM", "exit",
		"ALIBABA_CLOUD_ACCESS_KEY_ID", "ALIBABA_CLOUD_ACCESS_KEY_SECRET", "ALIBABA_CLOUD_SECURITY_TOKEN",
	} {
		require.Contains(t, gate, word)
	}
	words = []string{
		"-addr", "-access-key-id", "-access-key-secret", "-security-token", "-scenes", "-foreign-scenes",
		"-faults", "-tls", "-hosts", "-ca-file", "SSL_CERT_FILE", "POST /issue", "exit status",
	}
	for i, typ := 0, reflect.TypeFor[alicaptchatest.Faults](); i < typ.NumField(); i++ {
		if name := strings.Replace(typ.Field(i).Name, "TLS", "Tls", 1); name != "_" {
			words = append(words, strings.ToLower(name[:1])+name[1:])
		}
	}
	for _, word := range words {
		require.Contains(t, simulate, word)
	}
	for _, text := range []string{short, doctor, gate, simulate} {
		for line := range strings.Lines(text) {
			if !strings.HasPrefix(line, "    \t") { // written by the flag package
				require.LessOrEqual(t, len(line), 100, line)
			}
		}
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	got := runProgram(t, nil, "version")
	require.Zero(t, got.status)
	require.Empty(t, got.stderr)
	require.Regexp(t, `^alicaptcha \S* ?`+runtime.Version()+`[^\n]*\n$`, got.stdout)
	require.Equal(t, got, runProgram(t, nil, "--version"))
}

// The doctor and the simulator, as their user runs them.
func TestDoctorAgainstSimulate(t *testing.T) {
	t.Parallel()
	url, _ := startSimulator(t, "-access-key-id", "STS.hunter", "-access-key-secret", secret, "-security-token", token,
		"-scenes", "a,b", "-foreign-scenes", "c", "-faults", `{"credentials":"forbidden"}`)
	vars := map[string]string{
		"ALIBABA_CLOUD_ACCESS_KEY_ID":     "STS.hunter",
		"ALIBABA_CLOUD_ACCESS_KEY_SECRET": secret,
		"ALIBABA_CLOUD_SECURITY_TOKEN":    token,
	}
	got, _ := examine(t, vars, "-endpoint", url, "-scene", "b")
	require.Equal(t, "oooooF---", got)
	require.Equal(t, "{}", post(t, url+"/faults", "{}"))
	for scene, want := range map[string]string{"a": "oooooooo-", "b": "oooooooo-", "c": "oooooooF-", "login": "oooooooF-"} {
		got, _ = examine(t, vars, "-endpoint", url, "-scene", scene)
		require.Equal(t, want, got, scene)
	}
	for _, code := range []string{"T005", "F004"} {
		post(t, url+"/faults", `{"verifyCode":"`+code+`"}`)
		got, f := examine(t, vars, "-endpoint", url, "-scene", "a")
		require.Equal(t, "ooooooooF", got, code)
		require.Equal(t, code, f.Checks[8].Code)
	}
	got, _ = examine(t, keys, "-endpoint", url, "-scene", "a")
	require.Equal(t, "ooooF----", got)
	require.True(t, json.Valid([]byte(post(t, url+"/issue", `{"sceneId":"b"}`))))
}
