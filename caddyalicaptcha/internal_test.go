package caddyalicaptcha

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"
)

// Caddy drops some of these by itself, but not if it was told to expect them.
func TestRemoveOutcome(t *testing.T) {
	h := http.Header{"Captcha": {"a"}, "Captcha-Verifie": {"a"}, "Captcha-Verified-By": {"a"}, "Captchaxverified": {"a"}, "Captcha-Verify-Param": {"a"}}
	rest := h.Clone()
	for _, name := range []string{
		"Captcha-Verified", "captcha-verified", "CAPTCHA_VERIFIED", "Captcha_Verified", "Captcha.Verified", "captcha~verified",
		"captcha verified", "captcha+VERIFIED",
	} {
		h[name] = []string{"true"}
	}
	removeOutcome(h)
	require.Equal(t, rest, h)
}
