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
	sites := strings.Split(string(text), "```Caddyfile\n")[1:]
	require.Len(t, sites, 2)
	for _, site := range sites {
		site, _, _ := strings.Cut(site, "```")
		require.Contains(t, string(adapt(t, site)), `"handler":"alicaptcha"`)
	}
}
