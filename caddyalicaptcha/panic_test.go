//go:build unix

package caddyalicaptcha_test

import (
	"encoding/json"
	"io"
	"net/http"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

// panicky is a handler of Caddy that panics in the way that the header Panic names, or
// answers with 200.
type panicky struct{}

var panickyCalls atomic.Int64

func init() {
	caddy.RegisterModule(panicky{})
	httpcaddyfile.RegisterHandlerDirective("test_panicky", func(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
		h.Next()
		return panicky{}, nil
	})
}

func (panicky) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.test_panicky", New: func() caddy.Module { return new(panicky) }}
}

// panics are the values of the header Panic. Caddy's reverse_proxy aborts if an upstream
// breaks off.
var panics = []string{"at once", "after the header", "after a part", "after all", "abort", "abort after a part"}

func (panicky) ServeHTTP(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
	panickyCalls.Add(1)
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return err
	}
	way := r.Header.Get("Panic")
	switch way {
	case "after the header":
		w.WriteHeader(http.StatusAccepted)
		http.NewResponseController(w).Flush()
	case "after a part", "abort after a part":
		w.Header().Set("Content-Length", "100")
		io.WriteString(w, "a part")
		http.NewResponseController(w).Flush()
	case "after all":
		w.Header().Set("Content-Length", "3")
		io.WriteString(w, "all")
		http.NewResponseController(w).Flush()
	}
	switch {
	case strings.HasPrefix(way, "abort"):
		panic(http.ErrAbortHandler)
	case way != "":
		panic("the test panics " + way)
	}
	return nil
}

// panickySite has error routes, which a panic does not reach, and a log of its requests.
func panickySite(gate string) string {
	return `
	log
	route {
		metrics /metrics
		` + gate + `
		test_panicky
	}
	handle_errors {
		respond "an error route" 418
	}
	`
}

const panickyGate = `alicaptcha login {
			SERVICE
			max_concurrent 2
		}`

// An ending is what a client sees of a request.
type ending struct {
	way    string
	status int
	header http.Header
	body   string
	err    string
}

var (
	ports   = regexp.MustCompile(`127\.0\.0\.1:\d+`)
	streams = regexp.MustCompile(`stream ID \d+`)
)

func isHTTP1(client *http.Client) bool { return client.Transport.(*http.Transport).Protocols.HTTP1() }

func endingOf(t *testing.T, s *site, client *http.Client, way, param string) ending {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "POST", s.url+"/login", strings.NewReader(`{"captchaVerifyParam":`+mustJSON(param)+`}`))
	require.NoError(t, err)
	r.Header = http.Header{"Content-Type": {"application/json"}, "Panic": {way}}
	e := ending{way: way}
	if isHTTP1(client) {
		client.CloseIdleConnections() // the server may be about to close one after a panic
	}
	resp, err := client.Do(r)
	if err == nil {
		defer resp.Body.Close()
		var text []byte
		text, err = io.ReadAll(resp.Body)
		e.status, e.header, e.body = resp.StatusCode, resp.Header, string(text)
		e.header.Del("Date")
	}
	if err != nil {
		e.err = streams.ReplaceAllString(ports.ReplaceAllString(err.Error(), "ADDRESS"), "stream ID X")
	}
	return e
}

// logOf returns the lines of Caddy's log about requests and panics, without times,
// addresses and stacks.
func (s *site) logOf(t *testing.T) (lines []map[string]any) {
	t.Helper()
	for text := range strings.Lines(s.logged(t)) {
		var line map[string]any
		require.NoError(t, json.Unmarshal([]byte(text), &line))
		msg, _, _ := strings.Cut(line["msg"].(string), "\n")
		if line["request"] == nil && !strings.HasPrefix(msg, "http: panic") {
			continue
		}
		line["msg"] = ports.ReplaceAllString(msg, "ADDRESS")
		for _, name := range []string{"ts", "duration", "request"} {
			delete(line, name)
		}
		lines = append(lines, line)
	}
	return lines
}

// A handler that panics behind the gate ends its request as it does without a gate, for
// the client and in Caddy's log. HTTP/3 is not compared: the end of a stream overtakes
// what was written before it.
func TestPanicsEndAsWithoutGate(t *testing.T) {
	service := alicaptchatest.Start(t, alicaptchatest.Config{})
	for name, started := range map[string]func(t *testing.T, directives string) (*site, []*http.Client){
		"without TLS": func(t *testing.T, directives string) (*site, []*http.Client) {
			return start(t, service, directives), []*http.Client{newClient(t, false), newClient(t, true)}
		},
		"over TLS": func(t *testing.T, directives string) (*site, []*http.Client) {
			s, client := startTLS(t, service, directives)
			return s, []*http.Client{client}
		},
	} {
		var endings [2][]ending
		var logs [2][]map[string]any
		for i, gate := range []string{"", panickyGate} {
			t.Run(name+[]string{", bare", ", gated"}[i], func(t *testing.T) {
				s, clients := started(t, panickySite(gate))
				calls, panicked := panickyCalls.Load(), 0
				for _, client := range clients {
					for _, way := range panics {
						endings[i] = append(endings[i], endingOf(t, s, client, way, issue(t, service)))
						// Caddy logs those of HTTP/2 at debug.
						if isHTTP1(client) && !strings.HasPrefix(way, "abort") {
							panicked++
						}
					}
				}
				require.EqualValues(t, len(endings[i]), panickyCalls.Load()-calls)
				// net/http logs a panic when the client has seen it already.
				require.Eventually(t, func() bool {
					logs[i] = s.logOf(t)
					return len(logs[i]) == len(endings[i])+panicked
				}, testGuard, 10*time.Millisecond, "a line for each request and each panic")
			})
		}
		require.Equal(t, endings[0], endings[1], name)
		require.ElementsMatch(t, logs[0], logs[1], name)
	}
}

// ours is in the stack of a goroutine that is in one of the two packages, or began there.
var ours = regexp.MustCompile(`github\.com/alicaptcha/alicaptcha(/caddyalicaptcha)?\.`)

// A panic keeps no place of max_concurrent and no goroutine, and lets nobody in.
func TestPanicsKeepNothing(t *testing.T) {
	service := alicaptchatest.Start(t, alicaptchatest.Config{})
	s := start(t, service, panickySite(panickyGate))
	clients := []*http.Client{newClient(t, false), newClient(t, true)}
	const rounds = 20
	used := issue(t, service)
	before := runtime.NumGoroutine()
	calls := panickyCalls.Load()
	require.Equal(t, "a part", endingOf(t, s, clients[1], "after a part", used).body)
	sent := int64(1)
	var both sync.WaitGroup
	for _, client := range clients { // as many at once as there are places
		sent += rounds * int64(len(panics))
		both.Go(func() {
			for range rounds {
				for _, way := range panics {
					endingOf(t, s, client, way, issue(t, service))
				}
			}
		})
	}
	both.Wait()
	require.Equal(t, sent, panickyCalls.Load()-calls, "none of them was rejected as overloaded")
	asked := service.Count()
	for _, client := range clients {
		for _, way := range panics {
			for param, status := range map[string]int{used: 403, "junk": 400, "": 400} {
				require.Equal(t, status, endingOf(t, s, client, way, param).status, "%s %q", way, param)
			}
		}
	}
	require.Equal(t, asked+2*len(panics)*2, service.Count(), "all but those without a param are verified")
	require.Equal(t, sent, panickyCalls.Load()-calls, "nobody got in")

	r, err := http.NewRequestWithContext(t.Context(), "GET", s.url+"/metrics", nil)
	require.NoError(t, err)
	_, text := s.do(t, clients[0], r)
	require.Contains(t, text, "\nalicaptcha_verifications_active 0\n")
	for _, client := range clients {
		client.CloseIdleConnections()
	}
	// Both idle connections to the service, and what Caddy does by itself, may still be there.
	const few = 10
	require.Eventually(t, func() bool {
		stacks := make([]byte, 1<<20)
		stacks = stacks[:runtime.Stack(stacks, true)]
		return !ours.Match(stacks) && runtime.NumGoroutine() <= before+few
	}, testGuard, 50*time.Millisecond)
}
