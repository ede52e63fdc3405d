//go:build unix

package caddyalicaptcha_test

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha/alicaptchatest"
	"github.com/alicaptcha/alicaptcha/caddyalicaptcha"
)

const reloads = 50

// countedService starts a service that counts its connections.
func countedService(t *testing.T, connections *atomic.Int64) *alicaptchatest.Server {
	sim := alicaptchatest.NewSimulator(alicaptchatest.Config{})
	srv := httptest.NewUnstartedServer(sim)
	srv.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			connections.Add(1)
		}
	}
	srv.Start()
	t.Cleanup(srv.Close)
	return &alicaptchatest.Server{Simulator: sim, URL: srv.URL}
}

const reloadSite = `
	alicaptcha /login login {
		SERVICE
		outage 5 1h
		breaker {
			failures 1
			failure_ratio 0.01
			open_for 1h
		}
	}
	alicaptcha /signup signup {
		SERVICE
		outage 3 1h
		breaker {
			failures 1
			failure_ratio 0.01
			open_for 1h
		}
	}
	reverse_proxy %s {
		transport http {
			keepalive off # otherwise Caddy keeps those of old configurations for two minutes
		}
	}
`

func TestReloadsUnderLoad(t *testing.T) {
	var connections atomic.Int64
	service, u := countedService(t, &connections), startUpstream(t)
	directives := fmt.Sprintf(reloadSite, u.URL)
	s := start(t, service, directives)

	post := func(client *http.Client, param string) (*http.Response, error) {
		body := `{"captchaVerifyParam":` + mustJSON(param) + `}`
		return client.Post("http://"+s.addr+"/login", "application/json", strings.NewReader(body))
	}
	var sent, passed atomic.Int64
	done := make(chan struct{})
	var load sync.WaitGroup
	for i := range 8 {
		client := newClient(t, i%2 == 0)
		load.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				param, err := service.Issue(alicaptchatest.Issue{SceneID: "login"})
				if err != nil {
					t.Error(err)
					return
				}
				sent.Add(1)
				resp, err := post(client, param)
				for n := 0; err != nil && i%2 == 1 && n < 20; n++ {
					// While it shuts down, net/http closes a connection of HTTP/1.1 without an
					// answer if a request begins on it. The param is still good, because the gate
					// has not seen the request.
					resp, err = post(client, param)
				}
				if err != nil {
					t.Error(err)
					continue
				}
				resp.Body.Close()
				if resp.StatusCode == 200 {
					passed.Add(1)
				}
			}
		})
	}
	for i := range reloads {
		// One of them is refused, and the old configuration stays.
		if i == 25 {
			broken := strings.Replace(string(s.config(t, service, directives)), `"scene":"signup"`, `"scene":""`, 1)
			require.ErrorContains(t, caddy.Load([]byte(broken), true), "scene is required")
		}
		require.NoError(t, caddy.Load(s.config(t, service, directives), true))
		require.Equal(t, 1+2+1, caddyalicaptcha.Pooled(), "the service, two budgets, and the metrics of one configuration")
	}
	close(done)
	load.Wait()
	require.NotZero(t, sent.Load())
	require.Equal(t, sent.Load(), passed.Load())
	require.Equal(t, int(sent.Load()), service.Count())
	require.LessOrEqual(t, connections.Load(), int64(8), "no more connections than requests at once")
}

func TestReloadKeepsWhatItShould(t *testing.T) {
	var connections atomic.Int64
	service, u := countedService(t, &connections), startUpstream(t)
	directives := fmt.Sprintf(reloadSite, u.URL)
	require.Zero(t, caddyalicaptcha.Pooled())
	s := start(t, service, directives)
	client := newClient(t, true)
	generation := 0
	reload := func(directives string) {
		t.Helper()
		generation++
		directives = fmt.Sprintf("respond /generation g%d\n%s", generation, directives)
		require.NoError(t, caddy.Load(s.config(t, service, directives), true))
		// The old server may still get what comes at once. After this, the only
		// connection of the client is one to the new server.
		for began := time.Now(); ; {
			client.CloseIdleConnections()
			status, text := s.send(t, client, "/generation", nil, nil)
			if text == fmt.Sprint("g", generation) {
				return
			}
			require.Less(t, time.Since(began), testGuard, "%d %q generation %d", status, text, generation)
		}
	}

	// The connection.
	for range reloads {
		status, _ := s.send(t, client, "/login", withParam(issue(t, service)), nil)
		require.Equal(t, 200, status)
		reload(directives)
	}
	require.EqualValues(t, 1, connections.Load())

	// The breaker and the budget.
	require.NoError(t, service.SetFaults(alicaptchatest.Faults{Status: 500}))
	statuses := map[int]int{}
	asked := service.Count()
	for range reloads {
		status, _ := s.send(t, client, "/login", withParam("junk"), nil)
		statuses[status]++
		reload(directives)
	}
	require.Equal(t, map[int]int{200: 5, 503: reloads - 5}, statuses)
	require.Equal(t, asked+1, service.Count(), "the breaker opened once and stayed open")
	for range 5 {
		status, _ := s.send(t, client, "/signup", withParam("junk"), nil)
		statuses[status]++
	}
	require.Equal(t, map[int]int{200: 5 + 3, 503: reloads - 5 + 2}, statuses, "another scene has a budget of its own")
	require.Equal(t, asked+1, service.Count(), "and the same breaker")

	// A changed budget is a new one, and changed settings of the breaker make a new service.
	reload(strings.Replace(directives, "outage 5 1h", "outage 6 1h", 1))
	status, _ := s.send(t, client, "/login", withParam("junk"), nil)
	require.Equal(t, 200, status)
	require.Equal(t, asked+1, service.Count())
	reload(strings.ReplaceAll(directives, "failures 1", "failures 2"))
	status, _ = s.send(t, client, "/login", withParam("junk"), nil)
	require.Equal(t, 200, status)
	require.Equal(t, asked+2, service.Count())
	require.Equal(t, 4, caddyalicaptcha.Pooled())
	require.Contains(t, s.logged(t), "captcha: the breaker is open")

	// Nothing is left.
	require.NoError(t, service.SetFaults(alicaptchatest.Faults{}))
	settled := func() int {
		n := 0
		require.Eventually(t, func() bool {
			before := n
			n = runtime.NumGoroutine()
			return n == before
		}, testGuard, 300*time.Millisecond)
		return n
	}
	reload(directives)
	before := settled()
	for i := range reloads {
		reload(strings.ReplaceAll(directives, "failures 1", fmt.Sprint("failures ", 2+i)))
		s.send(t, client, "/login", withParam(issue(t, service)), nil)
	}
	// Idle connections to the service end within 10 s, and Caddy's own goroutines soon.
	require.Eventually(t, func() bool { return runtime.NumGoroutine() <= before+2 }, 2*testGuard, 100*time.Millisecond)
	reload("respond ok")
	require.Zero(t, caddyalicaptcha.Pooled())
}
