//go:build unix

package caddyalicaptcha_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

// A handler that fails behind the gate ends in Caddy's error routes, with the body whole.
// A rejection does not.
func TestErrorRoutes(t *testing.T) {
	service, u := alicaptchatest.Start(t, alicaptchatest.Config{}), startUpstream(t)
	s := start(t, service, fmt.Sprintf(`
	alicaptcha /login login {
		SERVICE
	}
	reverse_proxy 127.0.0.1:1
	handle_errors {
		reverse_proxy %s
	}
	`, u.URL))
	body := `{"captchaVerifyParam":` + mustJSON(issue(t, service)) + `,"padding":"` + strings.Repeat("x", 200_000) + `"}`
	header := http.Header{"Content-Type": {"application/json"}}
	status, text := s.send(t, newClient(t, false), "/login", header, strings.NewReader(body))
	require.Equal(t, 200, status, text)
	got := u.last(t)
	require.Equal(t, body, got.body)
	require.EqualValues(t, len(body), got.length)

	status, text = s.send(t, newClient(t, false), "/login", header, strings.NewReader("{}"))
	require.Equal(t, 400, status)
	require.Contains(t, text, "captcha_missing")
	require.Empty(t, u.take())
}

func TestMetrics(t *testing.T) {
	service, u := alicaptchatest.Start(t, alicaptchatest.Config{}), startUpstream(t)
	directives := fmt.Sprintf(`
	metrics /metrics
	alicaptcha /login login {
		SERVICE
	}
	alicaptcha /other other {
		SERVICE
	}
	reverse_proxy /login %s
	`, u.URL)
	s := start(t, service, directives)
	client := newClient(t, false)
	s.send(t, client, "/login", withParam(issue(t, service)), nil)
	s.send(t, client, "/login", withParam("junk"), nil)
	r, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+s.addr+"/metrics", nil)
	require.NoError(t, err)
	_, text := s.do(t, client, r)
	for _, line := range []string{
		`alicaptcha_outcomes_total{alicaptcha_code="T001",alicaptcha_decision="passed",alicaptcha_scene="login"} 1`,
		`alicaptcha_outcomes_total{alicaptcha_code="F003",alicaptcha_decision="rejected",alicaptcha_scene="login"} 1`,
		`alicaptcha_verification_duration_seconds_count 2`,
		`alicaptcha_breaker_state{alicaptcha_breaker_name="` + service.URL + `",alicaptcha_breaker_state="closed"} 1`,
	} {
		require.Contains(t, text, line+"\n")
	}
}
