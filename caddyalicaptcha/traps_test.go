//go:build unix

package caddyalicaptcha_test

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

// reloadWith loads the site again, with the global option in place of what it replaces. It
// must be in the README.
func (s *site) reloadWith(t *testing.T, service *alicaptchatest.Server, directives, replaced, option string) {
	t.Helper()
	text, err := os.ReadFile("README.md")
	require.NoError(t, err)
	require.Contains(t, string(text), "`"+option+"`")
	option = strings.NewReplacer("{ ", "{\n", " }", "\n}").Replace(option)
	changed := strings.Replace(s.caddyfile(service, directives), replaced, option, 1)
	require.Contains(t, changed, option)
	require.NoError(t, caddy.Load(adapt(t, changed), true))
}

// Caddy's own logs have the headers of a request, but not if the filter of the README is set.
func TestLogsWithoutTheParam(t *testing.T) {
	service := alicaptchatest.Start(t, alicaptchatest.Config{})
	const directives = `
	log
	alicaptcha /login login {
		SERVICE
	}
	reverse_proxy 127.0.0.1:1
	`
	s := start(t, service, directives)
	logged := func(param string) (lines, params int) {
		before := len(s.logged(t))
		status, _ := s.send(t, newClient(t, false), "/login", withParam(param), nil)
		require.Equal(t, 502, status)
		isLogged := func() bool { return strings.Contains(s.logged(t)[before:], "handled request") }
		require.Eventually(t, isLogged, testGuard, time.Millisecond)
		text := s.logged(t)[before:]
		return strings.Count(text, `"uri":"/login"`), strings.Count(text, param)
	}
	lines, params := logged(issue(t, service))
	require.Equal(t, 2, lines, "of the access log and of the error log")
	require.Equal(t, 2, params, "or the README need not mention it")

	s.reloadWith(t, service, directives, "format json", "format filter { request>headers>Captcha-Verify-Param delete }")
	lines, params = logged(issue(t, service))
	require.Equal(t, 2, lines)
	require.Zero(t, params)
}
