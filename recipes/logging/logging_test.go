package logging_test

import (
	"log/slog"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
	"github.com/alicaptcha/alicaptcha/recipes/logging"
)

func TestSamplerAndRequestID(t *testing.T) {
	for code, want := range map[alicaptcha.Code]int{
		alicaptcha.F001: 10,     // one in ten
		alicaptcha.F005: 1 + 10, // the first is loud, and is not sampled
	} {
		var out strings.Builder
		handler := logging.NewSampler(logging.WithRequestID{Handler: slog.NewJSONHandler(&out, nil)}, 10)
		m, err := alicaptcha.New(alicaptcha.Config{
			Verifier: alicaptchatest.Rejecting(code), SceneID: "login",
			Logger: slog.New(handler).With("service", "login").WithGroup("gate"),
		})
		require.NoError(t, err)
		for range 101 {
			r := httptest.NewRequest("POST", "/login", nil)
			r.Header.Set("Captcha-Verify-Param", "x")
			require.Equal(t, code, m.Check(r.WithContext(logging.NewContext(r.Context(), "r-1"))).Code)
		}
		require.Equal(t, want, strings.Count(out.String(), "\n"))
		require.Equal(t, want, strings.Count(out.String(), `"request_id":"r-1"`))
		require.Equal(t, want, strings.Count(out.String(), `"service":"login"`))
		require.Equal(t, 10, strings.Count(out.String(), `"sampled_1_in":10`))
	}
}

func ExampleSampler() {
	logger := slog.New(logging.NewSampler(slog.NewJSONHandler(os.Stderr, nil), 100))
	logger.Info("one of a hundred")
	// Output:
}
