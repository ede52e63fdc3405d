package otelalicaptcha_test

import (
	"bytes"
	"html"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

// A reference from the page of a rejection leads to one log line and one span.
func TestReferenceLeadsToLineAndSpan(t *testing.T) {
	r := newRecorder(t, "login")
	var log bytes.Buffer
	m, err := alicaptcha.New(alicaptcha.Config{
		Verifier: r.Verifier(alicaptchatest.Rejecting(alicaptcha.F009)), SceneID: "login",
		Observe: r.Observe, Logger: slog.New(slog.NewJSONHandler(&log, nil)),
	})
	require.NoError(t, err)
	// As an instrumentation of the server does it.
	site := http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		ctx, span := r.traces.Tracer("server").Start(req.Context(), req.Method+" /login")
		defer span.End()
		m.Handler(http.NotFoundHandler()).ServeHTTP(w, req.WithContext(ctx))
	})
	var page string
	for range 20 {
		req := newRequest(secret)
		req.Header.Set("Accept", "text/html")
		w := httptest.NewRecorder()
		site.ServeHTTP(w, req)
		require.Equal(t, 403, w.Code)
		page = w.Body.String()
	}
	found := regexp.MustCompile(`<small>If you need help, tell us this:<br>(.*)</small>`).FindStringSubmatch(page)
	require.NotNil(t, found)
	reference := html.UnescapeString(found[1])
	require.NotContains(t, page, "F009")

	require.Equal(t, 1, strings.Count(log.String(), `"captcha.reference":"`+reference+`"`))
	spans := 0
	for _, s := range r.spans.Ended() {
		if strings.Contains(spanLabels(s), reference) {
			spans++
			require.Equal(t, "POST /login", s.Name())
			require.Equal(t, "alicaptcha.code=F009,alicaptcha.decision=rejected,alicaptcha.reference="+reference, spanLabels(s))
		}
	}
	require.Equal(t, 1, spans)
}
