package e2e

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// buildCaddy returns the path of a Caddy with the module caddyalicaptcha: the one that
// ALICAPTCHA_CADDY names, or one that it builds.
func buildCaddy(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("ALICAPTCHA_CADDY"); path != "" {
		return path
	}
	path := filepath.Join(t.TempDir(), "caddy")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", path, "./cmd/caddy")
	build.Dir = filepath.Join("..", "caddyalicaptcha")
	out, err := build.CombinedOutput()
	require.NoError(t, err, string(out))
	return path
}

// The example's pages behind a Caddy whose gate answers the login.
func TestLoginThroughCaddy(t *testing.T) {
	t.Parallel()
	needsBrowser(t) // before a Caddy is built for it
	caddy := buildCaddy(t)
	p := newPerson(t, window{})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := listener.Addr().String()
	require.NoError(t, listener.Close())
	config := filepath.Join(t.TempDir(), "Caddyfile")
	require.NoError(t, os.WriteFile(config, fmt.Appendf(nil, `{
	admin off
	persist_config off
	auto_https off
}
http://%s {
	@login {
		method POST
		path /login
	}
	alicaptcha @login login {
		endpoint %s
		access_key {env.TEST_ID} {env.TEST_SECRET}
	}
	@verified {
		method POST
		path /login
		header Captcha-Verified true
	}
	respond @verified "{\"user\":\"alice\"}"
	respond @login 500
	reverse_proxy %s
}
`, addr, p.simulator, p.site), 0o600))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	server := exec.CommandContext(ctx, caddy, "run", "--config", config, "--adapter", "caddyfile")
	server.Env = append(os.Environ(), "TEST_ID=test-id", "TEST_SECRET=test-secret", "HOME="+t.TempDir())
	require.NoError(t, server.Start())
	t.Cleanup(func() {
		server.Process.Signal(os.Interrupt)
		server.Wait()
	})
	site := "http://" + addr
	require.Eventually(t, func() bool {
		resp, err := http.Get(site + "/login")
		if err == nil {
			resp.Body.Close()
		}
		return err == nil && resp.StatusCode == http.StatusOK
	}, 20*time.Second, 50*time.Millisecond)

	p.site = site
	p.open("/login")
	p.logsIn("alice", "correct-horse")
	p.until(opened)
	p.drags(1)
	p.sees("Welcome, alice. You are logged in.")
}
