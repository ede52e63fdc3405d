package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
)

// client ignores a proxy in the environment.
var client = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

// post sends body as curl -d does.
func post(t *testing.T, url, body string) string {
	t.Helper()
	resp, err := client.Post(url, "application/x-www-form-urlencoded", strings.NewReader(body))
	require.NoError(t, err)
	return read(t, resp)
}

func read(t *testing.T, resp *http.Response) string {
	t.Helper()
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, resp.StatusCode, string(body))
	return string(body)
}

// running is a program that has printed its banner.
type running struct {
	lines []string
	stop  func(os.Signal) result
}

// startSimulator runs simulate on a free port until the test ends.
func startSimulator(t *testing.T, args ...string) (url string, s running) {
	t.Helper()
	s = startProgram(t, nil, append([]string{"simulate", "-addr", "127.0.0.1:0"}, args...)...)
	return s.value(t, "URL"), s
}

// startProgram runs simulate or gate, with vars as its environment, until the test
// ends.
func startProgram(t *testing.T, vars map[string]string, args ...string) (s running) {
	t.Helper()
	var stderr bytes.Buffer
	cmd := program(t, vars, args...)
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	stopped := false
	s.stop = func(sig os.Signal) result {
		stopped = true
		require.NoError(t, cmd.Process.Signal(sig))
		rest, err := io.ReadAll(stdout)
		require.NoError(t, err)
		cmd.Wait()
		return result{cmd.ProcessState.ExitCode(), string(rest), stderr.String()}
	}
	t.Cleanup(func() {
		if !stopped {
			cmd.Process.Kill()
			cmd.Wait()
		}
	})
	in := bufio.NewReader(stdout)
	for {
		line, err := in.ReadString('\n')
		require.NoError(t, err, "%q", s.lines)
		line = strings.TrimSuffix(line, "\n")
		s.lines = append(s.lines, line)
		if line == "Ctrl-C stops it." {
			return s
		}
	}
}

// value returns what follows label.
func (s running) value(t *testing.T, label string) string {
	t.Helper()
	for _, line := range s.lines {
		if v, ok := strings.CutPrefix(line, label+":"); ok {
			return strings.TrimSpace(v)
		}
	}
	require.Fail(t, "not printed", "%s: %q", label, s.lines)
	return ""
}

func TestSimulate(t *testing.T) {
	t.Parallel()
	url, s := startSimulator(t, "-scenes", "it's,b")
	require.Equal(t, "it's, b", s.value(t, "Scenes"))
	for _, label := range []string{"Security token:", "Encrypted mode:", "Foreign scenes:", "Faults:"} {
		require.NotContains(t, strings.Join(s.lines, "\n"), label)
	}

	// The printed commands, parsed like in a shell.
	var answers []string
	command := regexp.MustCompile(`^curl -sS '([^']*)'(?: -d '(.*)')?$`)
	for _, line := range s.lines {
		if !strings.HasPrefix(line, "curl") {
			continue
		}
		parts := command.FindStringSubmatch(line)
		require.NotNil(t, parts, line)
		if parts[2] == "" {
			resp, err := client.Get(parts[1])
			require.NoError(t, err)
			answers = append(answers, read(t, resp))
			continue
		}
		require.NotContains(t, strings.ReplaceAll(parts[2], `'\''`, ""), "'")
		answers = append(answers, post(t, parts[1], strings.ReplaceAll(parts[2], `'\''`, "'")))
	}
	require.Len(t, answers, 5)
	require.Equal(t, []string{`{"hang":"headers"}`, `{"hang":"headers"}`, `{}`}, answers[2:])

	cfg := alicaptcha.ClientConfig{
		Endpoint:        url,
		AccessKeyID:     s.value(t, "Access key ID"),
		AccessKeySecret: s.value(t, "Access key secret"),
		Transport:       client.Transport,
	}
	verifier, err := alicaptcha.NewClient(cfg)
	require.NoError(t, err)
	for i, want := range []alicaptcha.Code{alicaptcha.T001, alicaptcha.F001} {
		var issued struct{ CaptchaVerifyParam string }
		require.NoError(t, json.Unmarshal([]byte(answers[i]), &issued))
		got, err := verifier.Verify(t.Context(), alicaptcha.Request{Param: issued.CaptchaVerifyParam, SceneID: "it's"})
		require.NoError(t, err)
		require.Equal(t, want, got.Code)
	}
}

func TestSimulatePrintsItsFlags(t *testing.T) {
	t.Parallel()
	const ekey = "a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s="
	url, s := startSimulator(t, "-access-key-id", "id", "-access-key-secret", "key", "-security-token", "tok",
		"-foreign-scenes", "c,d", "-ekey", ekey, "-faults", `{"latency":"1s"}`)
	for label, want := range map[string]string{
		"Access key ID": "id", "Access key secret": "key", "Security token": "tok",
		"Encrypted mode": "on, with the ekey " + ekey,
		"Scenes":         "login, signup", "Foreign scenes": "c, d", "Faults": `{"latency":"1s"}`,
	} {
		require.Equal(t, want, s.value(t, label))
	}
	require.Contains(t, post(t, url+"/widget/verify", `{"prefix":"p","sceneId":"login","format":"v3"}`), "F022")
}

func TestSimulateWarnsWhereOthersReachIt(t *testing.T) {
	t.Parallel()
	url, s := startSimulator(t, "-addr", "0.0.0.0:0")
	require.True(t, strings.HasPrefix(url, "http://127.0.0.1:"), url)
	require.Contains(t, post(t, url+"/issue", `{"sceneId":"login"}`), "captchaVerifyParam")
	if runtime.GOOS == "windows" {
		return // a process cannot send the signal there
	}
	got := s.stop(os.Interrupt)
	require.Zero(t, got.status)
	require.Equal(t, 1, strings.Count(got.stderr, "\n"), got.stderr)
	require.Contains(t, got.stderr, "warning: anyone who can reach")
}

// A call that hangs does not delay the end, and gets its answer before that.
func TestSimulateStops(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		return // a process cannot send the signals there
	}
	for _, sig := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			url, s := startSimulator(t, "-faults", `{"hang":"body"}`)
			resp, err := client.Post(url+"/", "application/x-www-form-urlencoded", strings.NewReader("x=y"))
			require.NoError(t, err) // the headers and half of the body have arrived
			defer resp.Body.Close()
			got := s.stop(sig)
			require.Equal(t, result{0, "", ""}, got)
			body, err := io.ReadAll(resp.Body)
			require.NoError(t, err)
			require.True(t, json.Valid(body), string(body))
			_, err = client.Get(url)
			require.Error(t, err)
		})
	}
}

// trusting returns a Transport that trusts only the CA in caFile, and connects to
// the server at addr for every host.
func trusting(t *testing.T, caFile, addr string) *http.Transport {
	t.Helper()
	ca, err := os.ReadFile(caFile)
	require.NoError(t, err)
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(ca))
	transport := &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: roots},
		ForceAttemptHTTP2: true, // the simulator does not support it
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, addr)
		},
	}
	t.Cleanup(transport.CloseIdleConnections)
	return transport
}

func TestSimulateTLS(t *testing.T) {
	t.Parallel()
	caFile := filepath.Join(t.TempDir(), "it's ca.pem")
	url, s := startSimulator(t, "-tls", "-ca-file", caFile, "-hosts", "simulator,192.0.2.7,2001:db8::7",
		"-access-key-id", keyID, "-access-key-secret", secret)
	addr, ok := strings.CutPrefix(url, "https://")
	require.True(t, ok, url)
	require.Equal(t, caFile, s.value(t, "CA certificate"))
	commands := 0
	for _, line := range s.lines {
		if strings.HasPrefix(line, "curl ") {
			commands++
			prefix := "curl -sS --cacert '" + strings.ReplaceAll(caFile, "'", `'\''`) + "' '" + url + "/"
			require.True(t, strings.HasPrefix(line, prefix), line)
		}
	}
	require.Equal(t, 5, commands)

	transport := trusting(t, caFile, addr)
	browser := &http.Client{Timeout: 20 * time.Second, Transport: transport}
	ask := func(path, body string) string {
		t.Helper()
		resp, err := browser.Post("https://localhost"+path, "application/json", strings.NewReader(body))
		require.NoError(t, err)
		return read(t, resp)
	}

	t.Run("certificate", func(t *testing.T) {
		for _, name := range []string{"simulator", "localhost", "127.0.0.1", "[::1]", "192.0.2.7", "[2001:db8::7]"} {
			resp, err := browser.Get("https://" + name + "/faults")
			require.NoError(t, err, name)
			require.Equal(t, "{}", read(t, resp))
			leaf := resp.TLS.PeerCertificates[0]
			require.False(t, leaf.IsCA)
			require.Equal(t, "HTTP/1.1", resp.Proto)
		}
		for _, name := range []string{"simulator.example", "example", "127.0.0.2"} {
			_, err := browser.Get("https://" + name + "/faults")
			_, ok := errors.AsType[x509.HostnameError](err)
			require.True(t, ok, "%s: %v", name, err)
		}
		_, err := client.Get(url) // does not know the CA
		_, ok := errors.AsType[x509.UnknownAuthorityError](err)
		require.True(t, ok, err)
	})

	// As in Docker Compose: a host other than loopback, with a port.
	t.Run("Client", func(t *testing.T) {
		verifier, err := alicaptcha.NewClient(alicaptcha.ClientConfig{
			Endpoint: "https://simulator:8443", AccessKeyID: keyID, AccessKeySecret: secret, Transport: transport,
		})
		require.NoError(t, err)
		require.Equal(t, "https://simulator:8443/", verifier.Endpoint())
		var issued struct{ CaptchaVerifyParam string }
		require.NoError(t, json.Unmarshal([]byte(ask("/issue", `{"sceneId":"login"}`)), &issued))
		for _, want := range []alicaptcha.Code{alicaptcha.T001, alicaptcha.F018} {
			got, err := verifier.Verify(t.Context(), alicaptcha.Request{Param: issued.CaptchaVerifyParam, SceneID: "login"})
			require.NoError(t, err)
			require.Equal(t, want, got.Code)
		}
	})
	t.Run("SSL_CERT_FILE", func(t *testing.T) {
		if runtime.GOOS != "linux" {
			return // it is read on Linux
		}
		tunnel, asked := proxy(t, addr)
		vars := with("HTTPS_PROXY", "http://"+tunnel, "SSL_CERT_FILE", caFile, "SSL_CERT_DIR", t.TempDir())
		got, f := examine(t, vars, "-endpoint", "https://simulator:8443", "-scene", "login")
		require.Equal(t, "oooooooo-", got)
		require.Contains(t, f.Checks[1].Detail, "simulator:8443 through the proxy "+tunnel+" answered")
		require.Contains(t, asked(), "CONNECT simulator:8443")
	})

	t.Run("delay", func(t *testing.T) {
		require.Equal(t, `{"tlsDelay":"1h0m0s"}`, ask("/faults", `{"tlsDelay":"1h"}`)) // on a connection that is kept
		dial := func(ctx context.Context) error {
			conn, err := (&tls.Dialer{Config: transport.TLSClientConfig}).DialContext(ctx, "tcp", addr)
			if err == nil {
				conn.Close()
			}
			return err
		}
		short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		require.ErrorIs(t, dial(short), context.DeadlineExceeded)
		waiting := make(chan error, 1)
		go func() { waiting <- dial(t.Context()) }()
		require.Equal(t, "{}", ask("/faults", "{}"))
		require.NoError(t, <-waiting)
	})

	if runtime.GOOS == "windows" {
		return // a process cannot send the signal there
	}
	ask("/faults", `{"tlsDelay":"1h"}`)
	got := s.stop(os.Interrupt)
	require.Zero(t, got.status, got.stderr)
	require.Empty(t, got.stdout)
}

// Each start replaces the whole file.
func TestSimulateTLSAgain(t *testing.T) {
	t.Parallel()
	caFile := filepath.Join(t.TempDir(), "ca.pem")
	require.NoError(t, os.WriteFile(caFile, bytes.Repeat([]byte("x"), 10_000), 0o600))
	for range 2 {
		addr := "127.0.0.1:0"
		if runtime.GOOS == "linux" {
			addr = "127.0.0.2:0" // it does not exist on other systems
		}
		url, _ := startSimulator(t, "-tls", "-ca-file", caFile, "-addr", addr)
		transport := trusting(t, caFile, strings.TrimPrefix(url, "https://"))
		resp, err := (&http.Client{Timeout: 20 * time.Second, Transport: transport}).Get(url + "/faults")
		require.NoError(t, err)
		require.Equal(t, "{}", read(t, resp))
	}
}
