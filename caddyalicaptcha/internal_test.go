package caddyalicaptcha

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
	"github.com/alicaptcha/alicaptcha/otelalicaptcha"
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

// A call is a span where the request has one, as under Caddy's tracing.
func TestSpans(t *testing.T) {
	telemetry, err := otelalicaptcha.New(otelalicaptcha.Config{TracerProvider: requestTracer{}})
	require.NoError(t, err)
	verifier := telemetry.Verifier(alicaptchatest.Passing())
	recorder := tracetest.NewSpanRecorder()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder))

	_, err = verifier.Verify(t.Context(), alicaptcha.Request{Param: "x", SceneID: "login"})
	require.NoError(t, err)
	require.Empty(t, recorder.Started())

	ctx, parent := provider.Tracer("caddy").Start(t.Context(), "handler")
	_, err = verifier.Verify(ctx, alicaptcha.Request{Param: "x", SceneID: "login"})
	require.NoError(t, err)
	require.Len(t, recorder.Ended(), 1)
	require.Equal(t, parent.SpanContext().SpanID(), recorder.Ended()[0].Parent().SpanID())
}
