package alicaptcha

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
)

// A body that is being parsed takes a place, but not while it waits for the client:
// slow clients hold none, and a flood of bodies that take their time leaves the
// processor to others.
func TestParsersTakeTurns(t *testing.T) {
	for _, contentType := range []string{
		"application/json", "application/x-www-form-urlencoded", "multipart/form-data; boundary=b",
	} {
		synctest.Test(t, func(t *testing.T) {
			parsers := make(chan struct{}, 1)
			parse := func(body io.ReadCloser) (string, error) {
				r := httptest.NewRequest(http.MethodPost, "/", nil)
				r.Header.Set("Content-Type", contentType)
				r.Body = body
				param, _, err := extract(r, DefaultExtractors(), 1<<10, parsers)
				return param, err
			}
			// Ten clients that send nothing yet.
			ended := make(chan error, 10)
			var clients []*io.PipeWriter
			for range 10 {
				body, client := io.Pipe()
				clients = append(clients, client)
				go func() {
					_, err := parse(body)
					ended <- err
				}()
			}
			synctest.Wait()
			require.Empty(t, parsers, "nobody holds a place")

			// While somebody has the place, nobody parses what has come.
			parsers <- struct{}{}
			for _, client := range clients {
				go client.CloseWithError(io.EOF)
			}
			synctest.Wait()
			require.Empty(t, ended)
			<-parsers
			for range clients {
				<-ended
			}
			require.Empty(t, parsers, "each place is given back")

			// So it is after a panic of the body.
			require.Panics(t, func() { parse(panickingBody{}) })
			require.Empty(t, parsers)
		})
	}
}

type panickingBody struct{}

func (panickingBody) Read([]byte) (int, error) { panic(errors.New("read")) }
func (panickingBody) Close() error             { return nil }

// An Extractor of the user's holds no place, whatever it waits for.
func TestUsersExtractorTakesNoPlace(t *testing.T) {
	t.Parallel()
	parsers := make(chan struct{}, 1)
	r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader("x"))
	_, _, err := extract(r, []Extractor{func(r *http.Request) (string, error) {
		io.ReadAll(r.Body)
		require.Empty(t, parsers)
		return "", nil
	}}, 1<<10, parsers)
	require.NoError(t, err)
}

// A media type that is too long is not examined: over HTTP/2 a client sends one of 4 KB
// by a single byte, and to put that in lower case can take 40 microseconds.
func TestMediaTypeIsBounded(t *testing.T) {
	r := httptest.NewRequest(http.MethodPost, "/", nil)
	for _, long := range []string{strings.Repeat("\xff", 4000), "application/" + strings.Repeat("X", 4000) + "+json"} {
		r.Header.Set("Content-Type", long)
		require.Zero(t, testing.AllocsPerRun(100, func() { mediaType(r) }))
		require.False(t, isJSON(mediaType(r)))
	}
	longest := "Application/" + strings.Repeat("X", maxMediaType-len("application/+json")) + "+JSON"
	r.Header.Set("Content-Type", longest+" ; charset=utf-8")
	require.True(t, isJSON(mediaType(r)))
}
