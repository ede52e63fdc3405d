package alicaptcha_test

import (
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"
)

// writes is an io.Writer that hands on what it gets.
type writes chan string

func (w writes) Write(p []byte) (int, error) {
	w <- string(p)
	return len(p), nil
}

// What arrives after an answer, on a connection that waits for the next call,
// net/http prints itself, to the standard logger, which slog.SetDefault
// redirects. SECURITY.md says so.
func TestUnsolicitedBytesReachTheStandardLogger(t *testing.T) {
	output, flags, logger := log.Writer(), log.Flags(), slog.Default()
	t.Cleanup(func() {
		slog.SetDefault(logger)
		log.SetOutput(output) // which SetDefault leaves alone
		log.SetFlags(flags)
	})
	logged := make(writes, 10)
	slog.SetDefault(slog.New(slog.NewTextHandler(logged, nil)))

	answered := make(chan struct{})
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(passAnswer), passAnswer)
		<-answered
		io.WriteString(conn, "the-service-says-so\n\x1b[31m")
		io.Copy(io.Discard, conn) // until the client closes
	}))
	defer service.Close()

	result, err := askClient(t, t.Context(), clientAt(t, service.URL))
	close(answered)
	require.NoError(t, err)
	require.True(t, result.Passed)
	line := <-logged
	require.Regexp(t, `^time=\S+ level=INFO msg="Unsolicited response .*the-service-says-so.*"\n$`, line)
	require.NotContains(t, line, "\x1b")
}
