package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/stretchr/testify/require"
)

type service struct {
	Build       struct{ Context, Dockerfile string }
	Command     []string
	Environment map[string]string
	Volumes     []string
	Ports       []string
	DependsOn   map[string]struct {
		Condition string
		Restart   bool
	} `yaml:"depends_on"`
	Healthcheck struct {
		Test     []string
		Interval string
	}
}

// compose returns compose.yaml, without a member that is not in the types here.
func compose(t *testing.T) (services map[string]service, volumes []string) {
	t.Helper()
	file, err := os.Open("compose.yaml")
	require.NoError(t, err)
	defer file.Close()
	var config struct {
		Services map[string]service
		Volumes  map[string]any
	}
	require.NoError(t, yaml.NewDecoder(file, yaml.Strict()).Decode(&config))
	for name := range config.Volumes {
		volumes = append(volumes, name)
	}
	return config.Services, volumes
}

// stages returns the instructions of each stage of the Dockerfile.
func stages(t *testing.T) [][]string {
	t.Helper()
	text, err := os.ReadFile("Dockerfile")
	require.NoError(t, err)
	var stages [][]string
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
			continue
		case strings.HasPrefix(line, "FROM "):
			stages = append(stages, nil)
		}
		require.NotEmpty(t, stages, line)
		stages[len(stages)-1] = append(stages[len(stages)-1], line)
	}
	require.Len(t, stages, 2)
	return stages
}

func TestFilesAgree(t *testing.T) {
	services, volumes := compose(t)
	require.Len(t, services, 2)
	require.Equal(t, []string{"ca"}, volumes)
	image := stages(t)[1]
	require.Contains(t, image, "COPY --from=build /out/ /usr/local/bin/")
	user, ok := strings.CutPrefix(image[len(image)-1], "USER ")
	require.True(t, ok)
	for name, s := range services {
		dockerfile, err := filepath.Abs(filepath.Join(s.Build.Context, s.Build.Dockerfile))
		require.NoError(t, err)
		want, err := filepath.Abs("Dockerfile")
		require.NoError(t, err)
		require.Equal(t, want, dockerfile)
		require.FileExists(t, filepath.Join(s.Build.Context, "cmd", "alicaptcha", "main.go"))
		for _, volume := range s.Volumes {
			parts := strings.Split(volume, ":")
			require.Contains(t, volumes, parts[0])
			require.Contains(t, image, fmt.Sprintf("RUN mkdir %s && chown %s %[1]s", parts[1], user), "the image has it for its user")
		}
		for other, dependency := range s.DependsOn {
			require.Contains(t, services, other)
			require.Equal(t, "service_healthy", dependency.Condition)
			require.NotEmpty(t, services[other].Healthcheck.Test)
		}
		for _, port := range s.Ports {
			require.True(t, strings.HasPrefix(port, "127.0.0.1:"), "%s is not for other machines", name)
		}
	}

	app, simulator := services["app"], services["simulator"]
	caFile := app.Environment["SSL_CERT_FILE"]
	endpoint, err := url.Parse(app.Environment["CAPTCHA_ENDPOINT"])
	require.NoError(t, err)
	require.Contains(t, services, endpoint.Hostname())
	for flag, value := range map[string]string{
		"-addr": ":" + endpoint.Port(), "-hosts": endpoint.Hostname(), "-ca-file": caFile,
	} {
		i := slices.Index(simulator.Command, flag)
		require.Positive(t, i, flag)
		require.Equal(t, value, simulator.Command[i+1])
	}
	require.Equal(t, []string{"127.0.0.1:" + endpoint.Port() + ":" + endpoint.Port()}, simulator.Ports)
	require.Equal(t, []string{"127.0.0.1:8080:8080"}, app.Ports)
	source, err := os.ReadFile("main.go")
	require.NoError(t, err)
	require.Contains(t, string(source), `":8080"`)
	require.Equal(t, caFile, simulator.Healthcheck.Test[len(simulator.Healthcheck.Test)-1])
	require.Contains(t, app.Volumes, "ca:"+filepath.Dir(caFile)+":ro")
	require.Contains(t, simulator.Volumes, "ca:"+filepath.Dir(caFile))
}

// What the Dockerfile builds runs as compose.yaml has it, but for ports and files
// of this test. A proxy stands in for the network in which the name of the
// simulator is known.
func TestAppAndSimulator(t *testing.T) {
	if runtime.GOOS != "linux" {
		return // as in the containers: elsewhere SSL_CERT_FILE is not read
	}
	services, _ := compose(t)
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	out, caDir := t.TempDir(), t.TempDir()
	here := strings.NewReplacer("/src", root, "/out/", out+"/", "/ca/", caDir+"/", ":8443", "127.0.0.1:0")

	builds := 0
	for _, line := range stages(t)[0] {
		command, ok := strings.CutPrefix(line, "RUN ")
		if !ok {
			continue
		}
		builds++
		output, err := exec.CommandContext(t.Context(), "sh", "-c", here.Replace(command)).CombinedOutput()
		require.NoError(t, err, string(output))
	}
	require.Equal(t, 2, builds)

	// start runs a service until the test ends, and returns what the first line
	// with the label says.
	start := func(s service, label string, vars ...string) string {
		t.Helper()
		args := make([]string, len(s.Command))
		for i, arg := range s.Command {
			args[i] = here.Replace(arg)
		}
		cmd := exec.CommandContext(t.Context(), filepath.Join(out, args[0]), args[1:]...)
		for name, value := range s.Environment {
			if name != "CAPTCHA_ENDPOINT" {
				value = here.Replace(value)
			}
			cmd.Env = append(cmd.Env, name+"="+value)
		}
		cmd.Env = append(cmd.Env, vars...)
		output, err := cmd.StdoutPipe()
		require.NoError(t, err)
		cmd.Stderr = cmd.Stdout
		require.NoError(t, cmd.Start())
		t.Cleanup(func() {
			cmd.Process.Kill()
			cmd.Wait()
		})
		lines := bufio.NewScanner(output)
		for lines.Scan() {
			if _, value, ok := strings.Cut(lines.Text(), label); ok {
				go io.Copy(io.Discard, output)
				return strings.TrimSpace(value)
			}
		}
		require.Fail(t, "not printed", label)
		return ""
	}

	simulator := start(services["simulator"], "URL:")
	require.FileExists(t, filepath.Join(caDir, "ca.pem"))
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect || r.Host != "simulator:8443" {
			http.NotFound(w, r)
			return
		}
		tunnel(w, strings.TrimPrefix(simulator, "https://"))
	}))
	defer proxy.Close()
	app := start(services["app"], "listening on", "ADDR=127.0.0.1:0", "HTTPS_PROXY="+proxy.URL)

	// The README's curl commands.
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	var script strings.Builder
	for _, line := range regexp.MustCompile(`(?m)^(param=|curl ).*$`).FindAllString(string(readme), -1) {
		script.WriteString(strings.NewReplacer("https://127.0.0.1:8443", simulator, "127.0.0.1:8080", app).Replace(line) + "\n")
	}
	text := script.String()
	login := text[strings.Index(text, "\n")+1:]
	require.True(t, strings.HasPrefix(login, "curl -i "), text)
	for i, want := range []string{"HTTP/1.1 200 OK", "HTTP/1.1 403 Forbidden"} {
		cmd := exec.CommandContext(t.Context(), "sh", "-c", text+strings.Repeat(login, i))
		cmd.Env = append(os.Environ(), "NO_PROXY=127.0.0.1")
		output, err := cmd.Output()
		require.NoError(t, err)
		answers := regexp.MustCompile(`HTTP/1\.1 .*`).FindAllString(strings.ReplaceAll(string(output), "\r", ""), -1)
		require.Len(t, answers, i+1, string(output))
		require.Equal(t, want, answers[i])
	}
}

// tunnel connects the client of w to the server at addr.
func tunnel(w http.ResponseWriter, addr string) {
	server, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer server.Close()
	client, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer client.Close()
	io.WriteString(client, "HTTP/1.1 200 OK\r\n\r\n")
	go func() {
		io.Copy(server, client)
		server.Close()
	}()
	io.Copy(client, server)
}
