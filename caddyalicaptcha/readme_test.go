//go:build unix

package caddyalicaptcha_test

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestReadme(t *testing.T) {
	text, err := os.ReadFile("README.md")
	require.NoError(t, err)
	_, rest, found := strings.Cut(string(text), "```Caddyfile\n")
	require.True(t, found)
	site, _, _ := strings.Cut(rest, "```")
	require.Contains(t, string(adapt(t, site)), `{"access_key_id":"{env.ALIBABA_CLOUD_ACCESS_KEY_ID}"`)
}
