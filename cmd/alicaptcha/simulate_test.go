package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
)

// client ignores a proxy that the environment may have.
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

// simulation is a simulator that has printed its lines.
type simulation struct {
	lines []string
	stop  func(os.Signal) result
}

// startSimulator runs simulate on a free port until the test ends.
func startSimulator(t *testing.T, args ...string) (url string, s simulation) {
	t.Helper()
	var stderr bytes.Buffer
	cmd := program(t, nil, append([]string{"simulate", "-addr", "127.0.0.1:0"}, args...)...)
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
			return s.value(t, "URL"), s
		}
	}
}

// value returns what follows label.
func (s simulation) value(t *testing.T, label string) string {
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
	for _, label := range []string{"Security token:", "Foreign scenes:", "Faults:"} {
		require.NotContains(t, strings.Join(s.lines, "\n"), label)
	}

	// The printed commands, as a shell reads them.
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
	_, s := startSimulator(t, "-access-key-id", "id", "-access-key-secret", "key", "-security-token", "tok",
		"-foreign-scenes", "c,d", "-faults", `{"latency":"1s"}`)
	for label, want := range map[string]string{
		"Access key ID": "id", "Access key secret": "key", "Security token": "tok",
		"Scenes": "login, signup", "Foreign scenes": "c, d", "Faults": `{"latency":"1s"}`,
	} {
		require.Equal(t, want, s.value(t, label))
	}
}

func TestSimulateWarnsWhereOthersReachIt(t *testing.T) {
	t.Parallel()
	url, s := startSimulator(t, "-addr", "0.0.0.0:0")
	require.True(t, strings.HasPrefix(url, "http://127.0.0.1:"), url)
	require.Contains(t, post(t, url+"/issue", `{"sceneId":"login"}`), "captchaVerifyParam")
	if runtime.GOOS == "windows" {
		return // there a process cannot send the signal
	}
	got := s.stop(os.Interrupt)
	require.Zero(t, got.status)
	require.Equal(t, 1, strings.Count(got.stderr, "\n"), got.stderr)
	require.Contains(t, got.stderr, "warning: whoever reaches")
}

// A call that hangs does not hold up the end, and has its answer before it.
func TestSimulateStops(t *testing.T) {
	t.Parallel()
	if runtime.GOOS == "windows" {
		return // there a process cannot send the signals
	}
	for _, sig := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			url, s := startSimulator(t, "-faults", `{"hang":"body"}`)
			resp, err := client.Post(url+"/", "application/x-www-form-urlencoded", strings.NewReader("x=y"))
			require.NoError(t, err) // the headers are here, and half of the body
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
