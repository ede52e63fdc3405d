package alicaptcha_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/time/rate"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

// A fortress is a site whose Policy opens the service's outages without end, so
// that whatever can be made to look like one lets somebody in.
type fortress struct {
	service *alicaptchatest.Server
	breaker alicaptcha.Verifier
	handler http.Handler
	pause   atomic.Int64 // before the service is asked, in ns

	verified, unverified atomic.Int64 // calls of the handler behind the gate
	loud                 atomic.Int64 // lines in the log at error
	mu                   sync.Mutex
	ends                 map[alicaptcha.Code]int
}

// begin is what the handler does before it asks, or nil if the gate asks.
func newFortress(t *testing.T, begin func(context.Context)) *fortress {
	f := &fortress{service: alicaptchatest.Start(t, alicaptchatest.Config{}), ends: make(map[alicaptcha.Code]int)}
	client := f.service.Client()
	slow := alicaptcha.VerifierFunc(func(ctx context.Context, req alicaptcha.Request) (alicaptcha.Result, error) {
		if pause := f.pause.Load(); pause > 0 {
			select {
			case <-time.After(time.Duration(pause)):
			case <-ctx.Done(): // the Client notices
			}
		}
		return client.Verify(ctx, req)
	})
	f.breaker = newBreaker(t, slow, alicaptcha.BreakerConfig{Failures: 1, OpenFor: time.Hour})
	open := alicaptcha.AllowAtMost(rate.NewLimiter(rate.Inf, 0))
	m, err := alicaptcha.New(alicaptcha.Config{
		Verifier: f.breaker, SceneID: "login", Logger: slog.New(countErrors{&f.loud}), Timeout: time.Minute,
		Policy: alicaptcha.Policy{
			alicaptcha.ServiceTimeout: open, alicaptcha.ServiceUnavailable: open, alicaptcha.Misconfigured: open,
		},
		Observe: func(_ context.Context, o alicaptcha.Outcome) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.ends[o.Code]++
		},
	})
	require.NoError(t, err)
	behind := func(r *http.Request) {
		if o, _ := alicaptcha.FromContext(r.Context()); o.Verified {
			f.verified.Add(1)
			return
		}
		f.unverified.Add(1)
	}
	if begin == nil {
		f.handler = m.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { behind(r) }))
		return f
	}
	f.handler = m.Deferred(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begin(r.Context())
		if alicaptcha.Require(w, r) {
			behind(r)
		}
	}))
	return f
}

// countErrors is a slog.Handler.
type countErrors struct{ n *atomic.Int64 }

func (countErrors) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelError }
func (h countErrors) Handle(context.Context, slog.Record) error      { h.n.Add(1); return nil }
func (h countErrors) WithAttrs([]slog.Attr) slog.Handler             { return h }
func (h countErrors) WithGroup(string) slog.Handler                  { return h }

func (f *fortress) issue(t *testing.T, scene string) string {
	format := []alicaptchatest.Format{alicaptchatest.V2, alicaptchatest.V3}[rand.N(2)]
	param, err := f.service.Issue(alicaptchatest.Issue{SceneID: scene, Format: format})
	require.NoError(t, err)
	return param
}

func (f *fortress) send(r *http.Request) { f.handler.ServeHTTP(httptest.NewRecorder(), r) }

// carry returns a request with param, in one of the ways that the gate knows.
func carry(param string) *http.Request {
	var r *http.Request
	switch rand.N(3) {
	case 0:
		body, _ := json.Marshal(map[string]string{"captchaVerifyParam": param})
		r = jsonRequest(string(body))
	case 1:
		r = httptest.NewRequest("POST", "/login", strings.NewReader(url.Values{"CaptchaVerifyParam": {param}}.Encode()))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	default:
		r = httptest.NewRequest("POST", "/login", nil)
		r.Header.Set("Captcha-Verify-Param", param)
	}
	return r
}

func noise(n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.N(256))
	}
	return string(b)
}

// Ten thousand hostile requests, and not one of them comes in.
func TestAttacks(t *testing.T) {
	t.Run("gate first", func(t *testing.T) { testAttacks(t, nil) })
	t.Run("begun", func(t *testing.T) { testAttacks(t, alicaptcha.Begin) })
}

func testAttacks(t *testing.T, begin func(context.Context)) {
	f, start := newFortress(t, begin), time.Now()
	total := 0
	// Many attackers at once; each gets its number.
	attack := func(n int, one func(i int)) {
		total += n
		var all sync.WaitGroup
		work := make(chan int)
		for range 16 {
			all.Go(func() {
				for i := range work {
					one(i)
				}
			})
		}
		for i := range n {
			work <- i
		}
		close(work)
		all.Wait()
	}
	var honest int64 // params that are good for one pass
	for _, row := range []struct {
		name string
		run  func()
	}{
		{"junk params", func() {
			attack(2500, func(i int) {
				f.send(carry([]func() string{
					func() string { return noise(1 + rand.N(300)) },
					func() string { return strings.ToValidUTF8(noise(1+rand.N(300)), "?") },
					func() string { return base64.StdEncoding.EncodeToString([]byte(noise(200))) },
					func() string { return base64.StdEncoding.EncodeToString([]byte(`{"certifyId":"x","sceneId":"login"}`)) },
					func() string {
						const signed = `{"certifyId":"x","sceneId":"login","isSign":true,"securityToken":"y"}`
						return base64.StdEncoding.EncodeToString([]byte(signed))
					},
					func() string { return `{"sceneId":"login","certifyId":"x","deviceToken":"y","data":"z"}` },
					func() string { return `{"sceneId":` },
					func() string { return "T001" },
					func() string { return `&SceneId=login&CaptchaVerifyParam=x` },
					func() string { return "\x00\r\n" },
				}[i%10]()))
			})
		}},
		{"junk bodies", func() {
			attack(2000, func(i int) {
				r := httptest.NewRequest("POST", "/login", strings.NewReader([]string{
					noise(2000), `{"captchaVerifyParam":`, `{"captchaVerifyParam":{"a":1}}`,
					`{"captchaVerifyParam":null}`, strings.Repeat("[", 5000),
					"captchaVerifyParam=%zz", "captchaVerifyParam",
					"--x\r\nContent-Disposition: form-data; name=captchaVerifyParam\r\n\r\nabc", "", "captchaVerifyParam=a;b",
				}[i%10]))
				r.Header.Set("Content-Type", []string{
					"application/json", "application/x-www-form-urlencoded",
					"multipart/form-data; boundary=x", "multipart/form-data", "text/plain", "",
				}[rand.N(6)])
				if rand.N(4) == 0 {
					r.Header.Set("Content-Encoding", "gzip")
				}
				f.send(r)
			})
		}},
		{"oversized params", func() {
			attack(500, func(i int) { f.send(carry(strings.Repeat("x", 32<<10+1+i*100))) })
		}},
		{"the field behind too much", func() {
			attack(200, func(int) {
				param := f.issue(t, "login")
				f.send(jsonRequest(`{"a":"` + strings.Repeat("x", 200<<10) + `","captchaVerifyParam":"` + param + `"}`))
			})
		}},
		{"params of another scene", func() {
			attack(800, func(int) { f.send(carry(f.issue(t, "signup"))) })
		}},
		{"replays", func() {
			param := f.issue(t, "login")
			honest++
			attack(1500, func(int) { f.send(carry(param)) })
		}},
		{"two at once", func() {
			params := make([]string, 500)
			for i := range params {
				params[i] = f.issue(t, "login")
			}
			honest += int64(len(params))
			attack(2*len(params), func(i int) { f.send(carry(params[i/2])) })
		}},
		{"hang-ups during the verification", func() {
			// The verification takes 2 ms; who hangs up later than that had an
			// honest param and came in by it.
			f.pause.Store(int64(2 * time.Millisecond))
			defer f.pause.Store(0)
			attack(600, func(i int) {
				const signed = `{"certifyId":"x","sceneId":"login","isSign":true,"securityToken":"y"}`
				r := carry(base64.StdEncoding.EncodeToString([]byte(signed)))
				ctx, cancel := context.WithCancel(r.Context())
				if i%2 == 0 { // or the router has had enough
					cancel()
					ctx, cancel = context.WithTimeout(r.Context(), rand.N(4*time.Millisecond))
				} else {
					time.AfterFunc(rand.N(4*time.Millisecond), cancel)
				}
				f.send(r.WithContext(ctx))
				cancel()
			})
		}},
		{"hang-ups and slow bodies", func() {
			site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				ctx, cancel := context.WithTimeout(r.Context(), 20*time.Millisecond)
				defer cancel()
				http.NewResponseController(w).SetReadDeadline(time.Now().Add(30 * time.Millisecond))
				f.handler.ServeHTTP(w, r.WithContext(ctx))
			}))
			defer site.Close()
			attack(400, func(i int) {
				conn, err := net.Dial("tcp", site.Listener.Addr().String())
				if err != nil {
					t.Error(err)
					return
				}
				defer conn.Close()
				body := `{"captchaVerifyParam":"` + strings.Repeat("x", 100) + `"}`
				fmt.Fprintf(conn, "POST /login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"+
					"Content-Length: %d\r\nConnection: close\r\n\r\n%s", len(body), body[:rand.N(len(body))])
				if i%2 == 0 {
					return
				}
				io.Copy(io.Discard, conn) // until the site has had enough
			})
		}},
		{"a flood that throttles the account", func() {
			require.NoError(t, f.service.SetFaults(alicaptchatest.Faults{ThrottleRate: 50}))
			defer f.service.SetFaults(alicaptchatest.Faults{})
			attack(500, func(int) { f.send(carry("junk")) })
		}},
	} {
		row.run()
		require.Zero(t, f.unverified.Load(), "%s let somebody in: %v", row.name, f.ends)
		require.Equal(t, honest, f.verified.Load(), "%s: each param is good for one", row.name)
	}
	require.Equal(t, 10_000, total)
	for _, opened := range []alicaptcha.Code{
		alicaptcha.ServiceTimeout, alicaptcha.ServiceUnavailable, alicaptcha.Misconfigured,
	} {
		require.Zero(t, f.ends[opened], "a client can cause %s: %v", opened, f.ends)
	}
	for _, seen := range []alicaptcha.Code{
		alicaptcha.ParamMalformed, alicaptcha.ParamTooLarge, alicaptcha.ParamMissing,
		alicaptcha.ClientCanceled, alicaptcha.Overloaded, alicaptcha.ServiceThrottled,
		alicaptcha.F003, alicaptcha.F008, alicaptcha.F012, alicaptcha.F013, alicaptcha.F014, alicaptcha.F018,
	} {
		require.NotZero(t, f.ends[seen], "%s was not reached: %v", seen, f.ends)
	}
	// At most a line a minute for each of T005, F004, F005, F006 and Misconfigured,
	// of which a client can reach F005 and F006 by a tampered param.
	require.LessOrEqual(t, f.loud.Load(), int64(2*time.Since(start)/time.Minute+2))
	f.send(carry(f.issue(t, "login")))
	require.Equal(t, honest+1, f.verified.Load(), "and an honest client still passes")
}
