package alicaptchatest_test

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

// The Simulator announces how long connections are kept, as the service's gateway does, on
// every answer over HTTP/1.1. HTTP/2 forbids the header.
func TestKeepAlive(t *testing.T) {
	t.Parallel()
	for want, srv := range map[string]*alicaptchatest.Server{
		"timeout=25": alicaptchatest.Start(t, alicaptchatest.Config{}),
		"":           alicaptchatest.StartTLS(t, alicaptchatest.Config{}),
	} {
		transport := srv.ClientConfig().Transport
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			r, err := http.NewRequestWithContext(t.Context(), method, srv.URL, nil)
			require.NoError(t, err)
			resp, err := transport.RoundTrip(r)
			require.NoError(t, err)
			resp.Body.Close()
			require.Equal(t, want == "", resp.ProtoMajor == 2)
			require.Equal(t, want, resp.Header.Get("Keep-Alive"))
		}
	}
}
