//go:build unix

package caddyalicaptcha_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http/httpguts"

	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

func noise(n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.N(256))
	}
	return string(b)
}

// attack is a hostile request. Each pretends to have been verified.
func attack(ctx context.Context, site, kind string, body io.Reader) *http.Request {
	r, err := http.NewRequestWithContext(ctx, "POST", site+"/login", body)
	if err != nil {
		panic(err)
	}
	if kind != "" {
		r.Header.Set("Content-Type", kind)
	}
	r.Header[spellings[rand.N(len(spellings))]] = []string{"true"}
	return r
}

// carry returns a request with param, in one of the ways that the gate knows.
func carry(ctx context.Context, site, param string) *http.Request {
	way := rand.N(3)
	switch {
	case way == 0:
		return attack(ctx, site, "application/json", strings.NewReader(`{"captchaVerifyParam":`+mustJSON(param)+`}`))
	case way == 1 && httpguts.ValidHeaderFieldValue(param) && len(param) < 30<<10:
		r := attack(ctx, site, "", nil)
		r.Header.Set("Captcha-Verify-Param", param)
		return r
	}
	return attack(ctx, site, "application/x-www-form-urlencoded", strings.NewReader(url.Values{"CaptchaVerifyParam": {param}}.Encode()))
}

const signed = `{"certifyId":"x","sceneId":"login","isSign":true,"securityToken":"y"}`

// attackedSite opens outages almost without end, so that whatever can be made to look
// like one lets somebody in.
func attackedSite(p *php) string {
	return fmt.Sprintf(`
	root * %s
	alicaptcha /login login {
		SERVICE
		timeout 1m
		outage 1000000000 1s
		policy misconfigured allow 1000000000 1s
		breaker {
			failures 1
			open_for 1h
		}
	}
	php_fastcgi unix/%s
	`, p.root, p.socket)
}

// Ten thousand hostile requests, those of the root's TestAttacks, over HTTP/1.1 and
// HTTP/2.
func TestAttacks(t *testing.T) {
	service, p := alicaptchatest.Start(t, alicaptchatest.Config{}), startPHP(t)
	s := start(t, service, attackedSite(p))
	attacks(t, service, p, s, []*http.Client{newClient(t, false), newClient(t, true)}, 10_000)
}

// A fifth of them over TLS, as browsers have it.
func TestAttacksOverTLS(t *testing.T) {
	for name, start := range overTLS {
		t.Run(name, func(t *testing.T) {
			service, p := alicaptchatest.Start(t, alicaptchatest.Config{}), startPHP(t)
			s, client := start(t, service, attackedSite(p))
			attacks(t, service, p, s, []*http.Client{client, client}, 2_000)
		})
	}
}

// attacks sends hostile requests, as many as all, of each kind a share.
func attacks(t *testing.T, service *alicaptchatest.Server, p *php, s *site, clients []*http.Client, all int) {
	t.Helper()
	var total, answered, honest, passed atomic.Int64
	issued := func(scene string) string {
		format := []alicaptchatest.Format{alicaptchatest.V2, alicaptchatest.V3}[rand.N(2)]
		param, err := service.Issue(alicaptchatest.Issue{SceneID: scene, Format: format})
		if err != nil {
			panic(err)
		}
		return param
	}
	send := func(i int, r *http.Request) {
		resp, err := clients[i/2%2].Do(r)
		if err != nil {
			return
		}
		defer resp.Body.Close()
		io.Copy(io.Discard, resp.Body)
		answered.Add(1)
		if resp.StatusCode == http.StatusOK {
			passed.Add(1)
		}
	}
	share := func(n int) int { return n * all / 10_000 }
	many := func(n int, one func(i int)) {
		n = share(n)
		total.Add(int64(n))
		var workers sync.WaitGroup
		work := make(chan int)
		for range 16 {
			workers.Go(func() {
				for i := range work {
					one(i)
				}
			})
		}
		for i := range n {
			work <- i
		}
		close(work)
		workers.Wait()
	}
	ctx := t.Context()
	for _, row := range []struct {
		name string
		run  func()
	}{
		{"junk params", func() {
			many(2500, func(i int) {
				send(i, carry(ctx, s.url, []func() string{
					func() string { return noise(1 + rand.N(300)) },
					func() string { return strings.ToValidUTF8(noise(1+rand.N(300)), "?") },
					func() string { return base64.StdEncoding.EncodeToString([]byte(noise(200))) },
					func() string { return base64.StdEncoding.EncodeToString([]byte(`{"certifyId":"x","sceneId":"login"}`)) },
					func() string { return base64.StdEncoding.EncodeToString([]byte(signed)) },
					func() string { return `{"sceneId":"login","certifyId":"x","deviceToken":"y","data":"z"}` },
					func() string { return `{"sceneId":` },
					func() string { return "T001" },
					func() string { return `&SceneId=login&CaptchaVerifyParam=x` },
					func() string { return "\x00\r\n" },
				}[i%10]()))
			})
		}},
		{"junk bodies", func() {
			many(2000, func(i int) {
				r := attack(ctx, s.url, []string{
					"application/json", "application/x-www-form-urlencoded",
					"multipart/form-data; boundary=x", "multipart/form-data", "text/plain", "",
				}[rand.N(6)], strings.NewReader([]string{
					noise(2000), `{"captchaVerifyParam":`, `{"captchaVerifyParam":{"a":1}}`,
					`{"captchaVerifyParam":null}`, strings.Repeat("[", 5000),
					"captchaVerifyParam=%zz", "captchaVerifyParam",
					"--x\r\nContent-Disposition: form-data; name=captchaVerifyParam\r\n\r\nabc", "", "captchaVerifyParam=a;b",
				}[i%10]))
				if rand.N(4) == 0 {
					r.Header.Set("Content-Encoding", "gzip")
				}
				send(i, r)
			})
		}},
		{"oversized params", func() {
			many(500, func(i int) { send(i, carry(ctx, s.url, strings.Repeat("x", 32<<10+1+i*100))) })
		}},
		{"the field behind too much", func() {
			many(200, func(i int) {
				body := `{"a":"` + strings.Repeat("x", 200<<10) + `","captchaVerifyParam":` + mustJSON(issued("login")) + `}`
				send(i, attack(ctx, s.url, "application/json", strings.NewReader(body)))
			})
		}},
		{"params of another scene", func() {
			many(800, func(i int) { send(i, carry(ctx, s.url, issued("signup"))) })
		}},
		{"replays", func() {
			param := issued("login")
			honest.Add(1)
			many(1500, func(i int) { send(i, carry(ctx, s.url, param)) })
		}},
		{"two at once", func() {
			params := make([]string, share(500))
			for i := range params {
				params[i] = issued("login")
			}
			honest.Add(int64(len(params)))
			many(1000, func(i int) { send(i, carry(ctx, s.url, params[i/2])) })
		}},
		{"hang-ups during the verification", func() {
			require.NoError(t, service.SetFaults(alicaptchatest.Faults{Latency: 2 * time.Millisecond}))
			defer service.SetFaults(alicaptchatest.Faults{})
			many(600, func(i int) {
				ctx, cancel := context.WithTimeout(ctx, rand.N(4*time.Millisecond))
				defer cancel()
				send(i, carry(ctx, s.url, base64.StdEncoding.EncodeToString([]byte(signed))))
			})
		}},
		{"bodies that break off", func() {
			many(400, func(i int) {
				body := `{"captchaVerifyParam":"` + strings.Repeat("x", 100) + `"}`
				if s.cert != "" { // resets a stream
					broken := io.MultiReader(strings.NewReader(body[:rand.N(len(body))]), iotest.ErrReader(io.ErrUnexpectedEOF))
					r := attack(ctx, s.url, "application/json", broken)
					r.ContentLength = int64(len(body))
					send(i, r)
					return
				}
				conn, err := net.Dial("tcp", s.addr)
				if err != nil {
					t.Error(err)
					return
				}
				defer conn.Close()
				fmt.Fprintf(conn, "POST /login HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nCaptcha-Verified: true\r\n"+
					"Content-Length: %d\r\nConnection: close\r\n\r\n%s", s.addr, len(body), body[:rand.N(len(body))])
			})
		}},
		{"a flood that throttles the account", func() {
			require.NoError(t, service.SetFaults(alicaptchatest.Faults{ThrottleRate: 50}))
			defer service.SetFaults(alicaptchatest.Faults{})
			many(500, func(i int) { send(i, carry(ctx, s.url, "junk")) })
		}},
	} {
		row.run()
		require.Equal(t, honest.Load(), passed.Load(), "%s: each param is good for one", row.name)
		require.EqualValues(t, honest.Load(), p.calls(t), row.name)
	}
	require.EqualValues(t, all, total.Load())
	require.Greater(t, answered.Load(), total.Load()*8/10, "the others hang up, or are cut off")
	require.NotContains(t, s.logged(t), "let through")
	require.NotContains(t, s.logged(t), "the breaker is open")
	status, _ := s.send(t, clients[0], "/login", withParam(issued("login")), nil)
	require.Equal(t, 200, status, "and an honest client still passes")
}
