package recipes_test

import (
	"os"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/stretchr/testify/require"
)

// The configurations of proxies that no test runs can be read, and fail closed.
func TestProxies(t *testing.T) {
	for _, setting := range []struct {
		file, path string
		want       any
	}{
		{"traefik/captcha.yaml", "$.http.middlewares.captcha.forwardAuth.address", "http://127.0.0.1:8082/gate/1a2b3c4d"},
		{"traefik/captcha.yaml", "$.http.middlewares.captcha.forwardAuth.forwardBody", true},
		{"traefik/captcha.yaml", "$.http.middlewares.captcha.forwardAuth.trustForwardHeader", false},
		{"traefik/captcha.yaml", "$.http.middlewares.captcha.forwardAuth.authResponseHeaders[0]", "Captcha-Verified"},
		{"traefik/captcha.yaml", "$.http.middlewares.no-captcha.headers.customRequestHeaders.Captcha-Verified", ""},
		{"traefik/captcha.yaml", "$.http.middlewares.spelling.headers.customRequestHeaders.Captcha_Verified", ""},
		{"traefik/captcha.yaml", "$.http.routers.login.middlewares[0]", "captcha"},
		{"traefik/captcha.yaml", "$.http.routers.login.middlewares[1]", "spelling"},
		{"traefik/captcha.yaml", "$.http.routers.others.middlewares[0]", "no-captcha"},
		{"traefik/captcha.yaml", "$.http.routers.others.middlewares[1]", "spelling"},
		{"envoy/envoy.yaml", extAuthz + ".failure_mode_allow", false},
		{"envoy/envoy.yaml", extAuthz + ".with_request_body.allow_partial_message", false},
		{"envoy/envoy.yaml", extAuthz + ".http_service.path_prefix", "/gate/1a2b3c4d"},
		{"envoy/envoy.yaml", extAuthz + ".http_service.authorization_response.allowed_upstream_headers.patterns[0].exact", "captcha-verified"},
		{"envoy/higress.yaml", "$.failure_mode_allow", false},
		{"envoy/higress.yaml", "$.http_service.endpoint_mode", "forward_auth"},
		{"envoy/higress.yaml", "$.http_service.endpoint.path", "/gate/1a2b3c4d"},
		{"envoy/higress.yaml", "$.http_service.authorization_request.with_request_body", true},
		{"envoy/higress.yaml", "$.http_service.authorization_response.allowed_upstream_headers[0].exact", "captcha-verified"},
	} {
		text, err := os.ReadFile(setting.file)
		require.NoError(t, err)
		var whole map[string]any
		require.NoError(t, yaml.Unmarshal(text, &whole), setting.file)
		require.NotContains(t, whole, "cache", "of answers")
		path, err := yaml.PathString(setting.path)
		require.NoError(t, err)
		var got any
		file, err := os.Open(setting.file)
		require.NoError(t, err)
		require.NoError(t, path.Read(file, &got), setting.path)
		require.NoError(t, file.Close())
		require.Equal(t, setting.want, got, setting.path)
	}
}

const extAuthz = "$.static_resources.listeners[0].filter_chains[0].filters[0].typed_config.http_filters[0].typed_config"
