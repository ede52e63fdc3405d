package alicaptchatest_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

type startFunc = func(testing.TB, alicaptchatest.Config) *alicaptchatest.Server

var protocols = map[string]startFunc{"http": alicaptchatest.Start, "https": alicaptchatest.StartTLS}

// deadline is a context whose deadline passes when passed is closed.
type deadline struct {
	context.Context
	passed chan struct{}
}

func newDeadline(t *testing.T) deadline { return deadline{t.Context(), make(chan struct{})} }

func (deadline) Deadline() (time.Time, bool) { return time.Now().Add(time.Hour), true }
func (d deadline) Done() <-chan struct{}     { return d.passed }
func (d deadline) Err() error {
	select {
	case <-d.passed:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

func eventually(t *testing.T, condition func() bool, why ...any) {
	t.Helper()
	require.Eventually(t, condition, 20*time.Second, time.Millisecond, why...)
}

func setFaults(t *testing.T, s interface {
	SetFaults(alicaptchatest.Faults) error
}, f alicaptchatest.Faults,
) {
	t.Helper()
	require.NoError(t, s.SetFaults(f))
}

// wireCall returns a valid call to srv for an HTTP client.
func wireCall(ctx context.Context, t *testing.T, srv *alicaptchatest.Server, param string) *http.Request {
	t.Helper()
	body := form(param, "login")
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, srv.URL+"/", strings.NewReader(body))
	require.NoError(t, err)
	r.Header = newCall(body).Header
	signWith(r, "test-id", "test-secret")
	return r
}

func httpClient(srv *alicaptchatest.Server) *http.Client {
	return &http.Client{Transport: srv.ClientConfig().Transport}
}

// closeIdle prevents calls on connections that CloseIdle is about to close.
func closeIdle(srv *alicaptchatest.Server) {
	srv.ClientConfig().Transport.(*http.Transport).CloseIdleConnections()
}

// dial opens a connection to srv that speaks HTTP/1.1.
func dial(t *testing.T, srv *alicaptchatest.Server) net.Conn {
	t.Helper()
	scheme, host, _ := strings.Cut(srv.URL, "://")
	var conn net.Conn
	var err error
	if scheme == "https" {
		config := srv.ClientConfig().Transport.(*http.Transport).TLSClientConfig.Clone()
		config.NextProtos = []string{"http/1.1"}
		conn, err = tls.Dial("tcp", host, config)
	} else {
		conn, err = net.Dial("tcp", host)
	}
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	return conn
}

// raw returns r as it is sent, split into headers and body.
func raw(t *testing.T, r *http.Request) (head, body string) {
	t.Helper()
	var b bytes.Buffer
	require.NoError(t, r.Write(&b))
	head, body, ok := strings.Cut(b.String(), "\r\n\r\n")
	require.True(t, ok)
	return head + "\r\n\r\n", body
}

// faultCases has, for each fault, what a Client reports, what is recorded about the
// call, and whether the param is spent.
var faultCases = map[string]struct {
	faults      alicaptchatest.Faults
	code        alicaptcha.Code
	status      int
	serviceCode string
	spent       bool
	holds       bool // until the client's deadline
}{
	"latency": {
		alicaptchatest.Faults{Latency: time.Hour},
		alicaptcha.ServiceTimeout, 0, "Success", true, true,
	},
	"jitter, steps": {
		alicaptchatest.Faults{Jitter: 1, Steps: []time.Duration{time.Hour}},
		alicaptcha.ServiceTimeout, 0, "Success", true, true,
	},
	"hang in headers": {alicaptchatest.Faults{Hang: "headers"}, alicaptcha.ServiceTimeout, 0, "Success", true, true},
	"hang mid-headers": {
		alicaptchatest.Faults{Hang: "mid-headers"},
		alicaptcha.ServiceTimeout, 0, "Success", true, true,
	},
	"hang in body": {alicaptchatest.Faults{Hang: "body"}, alicaptcha.ServiceTimeout, 200, "Success", true, true},
	"hang in idle-closed": {
		alicaptchatest.Faults{Hang: "body", CloseIdle: true},
		alicaptcha.ServiceTimeout, 200, "Success", true, true,
	},
	"trickle": {
		alicaptchatest.Faults{Trickle: time.Hour},
		alicaptcha.ServiceTimeout, 200, "Success", true, true,
	},
	"reset in request": {alicaptchatest.Faults{Reset: "request"}, alicaptcha.ServiceUnavailable, 0, "", false, false},
	"reset mid-request": {
		alicaptchatest.Faults{Reset: "mid-request"},
		alicaptcha.ServiceUnavailable, 0, "", false, false,
	},
	"reset in headers": {
		alicaptchatest.Faults{Reset: "headers"},
		alicaptcha.ServiceUnavailable, 0, "Success", true, false,
	},
	"reset in body": {
		alicaptchatest.Faults{Reset: "body"},
		alicaptcha.ServiceUnavailable, 200, "Success", true, false,
	},
	"reset in idle-closed": {
		alicaptchatest.Faults{Reset: "body", CloseIdle: true},
		alicaptcha.ServiceUnavailable, 200, "Success", true, false,
	},
	"500 JSON": {
		alicaptchatest.Faults{
			Status: 500, Body: `{"Code":"InternalError","Message":"try again"}`, ContentType: "application/json",
		},
		alicaptcha.ServiceUnavailable, 500, "", false, false,
	},
	"503 XML": {
		alicaptchatest.Faults{
			Status: 503, Body: `<Error><Code>ServiceUnavailable</Code></Error>`, ContentType: "text/xml",
		},
		alicaptcha.ServiceUnavailable, 503, "", false, false,
	},
	"502 HTML": {
		alicaptchatest.Faults{Status: 502, Body: "<html><h1>Bad Gateway</h1>", ContentType: "text/html"},
		alicaptcha.ServiceUnavailable, 502, "", false, false,
	},
	"504 nothing": {alicaptchatest.Faults{Status: 504}, alicaptcha.ServiceUnavailable, 504, "", false, false},
	"200 HTML": {
		alicaptchatest.Faults{Status: 200, Body: "<html>"},
		alicaptcha.ServiceUnavailable, 200, "", false, false,
	},
	"204": {alicaptchatest.Faults{Status: 204}, alicaptcha.ServiceUnavailable, 204, "", false, false},
	"304": {
		alicaptchatest.Faults{Status: 304, CloseIdle: true},
		alicaptcha.ServiceUnavailable, 304, "", false, false,
	},
	"999, a verdict in it": {
		alicaptchatest.Faults{
			Status: 999, Body: `{"Code":"Success","Success":true,"Result":{"VerifyResult":true,"VerifyCode":"T001"}}`,
		},
		alicaptcha.ServiceUnavailable, 999, "", false, false,
	},
	"404 HTML": {
		alicaptchatest.Faults{Status: 404, Body: "<html>"},
		alicaptcha.RequestRefused, 404, "", false, false,
	},
	"429 nothing": {alicaptchatest.Faults{Status: 429}, alicaptcha.ServiceThrottled, 429, "", false, false},
	"throttled share": {
		alicaptchatest.Faults{ThrottleShare: 1, Status: 500},
		alicaptcha.ServiceThrottled, 503, "Throttling.User", false, false,
	},
	"wrong keys": {
		alicaptchatest.Faults{Credentials: "wrong", ThrottleShare: 1},
		alicaptcha.Misconfigured, 404, "InvalidAccessKeyId.NotFound", false, false,
	},
	"expired keys": {
		alicaptchatest.Faults{Credentials: "expired"},
		alicaptcha.Misconfigured, 400, "InvalidSecurityToken.Expired", false, false,
	},
	"forbidden": {
		alicaptchatest.Faults{Credentials: "forbidden"},
		alicaptcha.Misconfigured, 403, "Forbidden.RAMUserAccessDenied", false, false,
	},
	"overdue": {
		alicaptchatest.Faults{Credentials: "overdue"},
		alicaptcha.Misconfigured, 403, "Forbidden.AccountAccessDenied", false, false,
	},
}

func TestFaultsAndClient(t *testing.T) {
	t.Parallel()
	for protocol, start := range protocols {
		for name, c := range faultCases {
			t.Run(protocol+"/"+name, func(t *testing.T) {
				t.Parallel()
				srv := start(t, alicaptchatest.Config{})
				client := srv.Client()
				param := issue(t, srv, alicaptchatest.Issue{})
				setFaults(t, srv, c.faults)

				ctx := newDeadline(t)
				failed := make(chan error, 1)
				go func() {
					_, err := client.Verify(ctx, alicaptcha.Request{Param: param, SceneID: "login"})
					failed <- err
				}()
				if c.holds {
					eventually(t, func() bool { return srv.Count() == 1 && srv.Calls()[0].Status == c.status })
					require.Empty(t, failed)
					close(ctx.passed)
				}
				failure, ok := (<-failed).(*alicaptcha.Error)
				require.True(t, ok)
				require.Equal(t, c.code, failure.Code, failure)
				require.Equal(t, 1, srv.Count())
				call := srv.Calls()[0]
				require.Equal(t, c.status, call.Status)
				require.Equal(t, c.serviceCode, call.ServiceCode)
				require.Equal(t, c.serviceCode == "Success", call.VerifyCode == alicaptcha.T001)
				if c.serviceCode != "" && c.serviceCode != "Success" {
					require.Equal(t, c.serviceCode, failure.ServiceCode)
				}

				setFaults(t, srv, alicaptchatest.Faults{})
				closeIdle(srv)
				result, err := client.Verify(t.Context(), alicaptcha.Request{Param: param, SceneID: "login"})
				require.NoError(t, err)
				require.Equal(t, c.spent, result.Code == alicaptcha.F018, result)
				require.Equal(t, !c.spent, result.Code == alicaptcha.T001, result)
				require.Equal(t, 2, srv.Count())
			})
		}
	}
}

// No fault affects other paths, and each ends when the faults are cleared.
func TestFaultsAffectCallsOnly(t *testing.T) {
	t.Parallel()
	for protocol, start := range protocols {
		for name, c := range faultCases {
			t.Run(protocol+"/"+name, func(t *testing.T) {
				t.Parallel()
				srv := start(t, alicaptchatest.Config{})
				setFaults(t, srv, c.faults)
				client := httpClient(srv)
				resp, err := client.Post(srv.URL+"/issue", "", strings.NewReader(`{"sceneId":"login"}`))
				require.NoError(t, err)
				var issued map[string]string
				require.NoError(t, json.NewDecoder(resp.Body).Decode(&issued))
				resp.Body.Close()
				resp, err = client.Get(srv.URL + "/faults")
				require.NoError(t, err)
				var shown alicaptchatest.Faults
				require.NoError(t, json.NewDecoder(resp.Body).Decode(&shown))
				resp.Body.Close()
				require.Equal(t, c.faults, shown)

				done := make(chan alicaptcha.Code, 1)
				go func() {
					req := alicaptcha.Request{Param: issued["captchaVerifyParam"], SceneID: "login"}
					result, _ := srv.Client().Verify(newDeadline(t), req)
					done <- result.Code
				}()
				if c.holds {
					eventually(t, func() bool { return srv.Count() == 1 })
				} else {
					require.Empty(t, <-done)
				}
				closeIdle(srv)
				resp, err = client.Post(srv.URL+"/faults", "", nil)
				require.NoError(t, err)
				text, err := io.ReadAll(resp.Body)
				require.NoError(t, err)
				resp.Body.Close()
				require.Equal(t, 200, resp.StatusCode)
				require.Equal(t, "{}", string(text))
				if c.holds {
					require.Equal(t, alicaptcha.T001, <-done, "a call that was held up goes on")
					closeIdle(srv)
				}
				param := issue(t, srv, alicaptchatest.Issue{})
				require.Equal(t, alicaptcha.T001, clientVerify(t, srv, param))
			})
		}
	}
}

func clientVerify(t *testing.T, srv *alicaptchatest.Server, param string) alicaptcha.Code {
	t.Helper()
	result, err := srv.Client().Verify(t.Context(), alicaptcha.Request{Param: param, SceneID: "login"})
	require.NoError(t, err)
	return result.Code
}

// An answer in place of a verdict is exactly as configured.
func TestForeignAnswers(t *testing.T) {
	t.Parallel()
	for protocol, start := range protocols {
		for _, closes := range []bool{false, true} {
			srv := start(t, alicaptchatest.Config{})
			for _, f := range []alicaptchatest.Faults{
				{Status: 500, Body: `{"Code":"InternalError"}`, ContentType: "application/json"},
				{Status: 502, Body: "<html>" + strings.Repeat("x", 200<<10), ContentType: "text/html; charset=gbk"},
				{Status: 503},
				{Status: 204},
				{Status: 302},
				{Status: 304},
				{Status: 999, Body: "<?xml version='1.0'?>"},
			} {
				f.CloseIdle = closes
				setFaults(t, srv, f)
				client := &http.Client{Transport: srv.ClientConfig().Transport.(*http.Transport).Clone()}
				resp, err := client.Do(wireCall(t.Context(), t, srv, "x"))
				require.NoError(t, err)
				body, err := io.ReadAll(resp.Body)
				require.NoError(t, err)
				resp.Body.Close()
				require.Equal(t, f.Status, resp.StatusCode)
				require.Equal(t, f.Body, string(body))
				require.Equal(t, f.ContentType, resp.Header.Get("Content-Type"))
				require.Empty(t, resp.Header.Get("X-Acs-Request-Id"))
				require.NotEmpty(t, resp.Header.Get("Date"))
				if f.Status == 204 || f.Status == 304 {
					require.Empty(t, resp.Header.Values("Content-Length"))
				}
				require.Equal(t, protocol == "https", resp.ProtoMajor == 2)
				client.CloseIdleConnections()
			}
		}
	}
}

// Faults do not change the answers to invalid signatures and unreadable bodies.
func TestFaultsComeAfterAuthentication(t *testing.T) {
	t.Parallel()
	s := alicaptchatest.NewSimulator(alicaptchatest.Config{})
	for _, f := range []alicaptchatest.Faults{{Status: 500}, {ThrottleShare: 1}, {Credentials: "overdue"}} {
		setFaults(t, s, f)
		r := newCall(form("x"))
		signWith(r, "test-id", "wrong")
		require.Equal(t, "SignatureDoesNotMatch", send(t, s, r).Code)
	}
	setFaults(t, s, alicaptchatest.Faults{Hang: "headers"})
	long := signed("CaptchaVerifyParam=" + strings.Repeat("x", 1<<20))
	require.Equal(t, 413, send(t, s, long).status, "it could not be seen to go away")
	setFaults(t, s, alicaptchatest.Faults{ThrottleShare: 1})
	require.Equal(t, "Throttling.User", send(t, s, signed("SceneId=login")).Code, "before the parameters")
}

func TestResetsOnTheWire(t *testing.T) {
	t.Parallel()
	for protocol, start := range protocols {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			srv := start(t, alicaptchatest.Config{})
			open := func(stage alicaptchatest.Stage, closes bool) (net.Conn, string, string) {
				setFaults(t, srv, alicaptchatest.Faults{Reset: stage, CloseIdle: closes})
				r := wireCall(t.Context(), t, srv, issue(t, srv, alicaptchatest.Issue{}))
				r.Header.Set("Expect", "100-continue")
				head, body := raw(t, r)
				return dial(t, srv), head, body
			}

			conn, head, _ := open(alicaptchatest.StageRequest, false)
			io.WriteString(conn, head)
			text, err := io.ReadAll(conn)
			require.ErrorIs(t, err, syscall.ECONNRESET)
			require.Empty(t, text, "the body was not asked for")

			conn, head, body := open(alicaptchatest.StageMidRequest, false)
			io.WriteString(conn, head)
			line, err := bufio.NewReader(conn).ReadString('\n')
			require.NoError(t, err)
			require.Contains(t, line, "100 Continue")
			io.WriteString(conn, body[:len(body)/2+1])
			_, err = io.ReadAll(conn)
			require.ErrorIs(t, err, syscall.ECONNRESET)

			conn, head, _ = open(alicaptchatest.StageMidRequest, false)
			before, after, ok := strings.Cut(head, "Content-Length: ")
			require.True(t, ok)
			io.WriteString(conn, before+"Transfer-Encoding: chunked\r\nX-Length: "+after)
			line, err = bufio.NewReader(conn).ReadString('\n')
			require.NoError(t, err)
			require.Contains(t, line, "100 Continue", "the length is not known, but there is a body")
			io.WriteString(conn, "5\r\nhello\r\n")
			_, err = io.ReadAll(conn)
			require.ErrorIs(t, err, syscall.ECONNRESET)

			conn, head, body = open(alicaptchatest.StageHeaders, false)
			io.WriteString(conn, head+body)
			text, err = io.ReadAll(conn)
			require.ErrorIs(t, err, syscall.ECONNRESET)
			require.NotContains(t, string(text), "200 OK")

			for _, closes := range []bool{false, true} {
				conn, head, body = open(alicaptchatest.StageBody, closes)
				io.WriteString(conn, head+body)
				text, err = io.ReadAll(conn)
				require.ErrorIs(t, err, syscall.ECONNRESET)
				_, answer, ok := strings.Cut(string(text), "200 OK\r\n")
				require.True(t, ok, string(text))
				_, answer, ok = strings.Cut(answer, "\r\n\r\n{")
				require.True(t, ok, string(text))
				require.NotEmpty(t, answer)
				require.NotContains(t, answer, "}")
			}
			require.Equal(t, 6, srv.Count())
		})
	}
}

func TestHTTP2ResetsTheStreamOnly(t *testing.T) {
	t.Parallel()
	srv := alicaptchatest.StartTLS(t, alicaptchatest.Config{})
	client := httpClient(srv)
	var connections atomic.Int32
	transport := client.Transport.(*http.Transport)
	transport.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		connections.Add(1)
		return new(net.Dialer).DialContext(ctx, network, addr)
	}
	for _, stage := range []alicaptchatest.Stage{"request", "mid-request", "headers", "body"} {
		setFaults(t, srv, alicaptchatest.Faults{Reset: stage})
		resp, err := client.Do(wireCall(t.Context(), t, srv, issue(t, srv, alicaptchatest.Issue{})))
		if err == nil {
			require.Equal(t, alicaptchatest.StageBody, stage)
			_, err = io.ReadAll(resp.Body)
			resp.Body.Close()
		}
		require.ErrorContains(t, err, "INTERNAL_ERROR", stage)
	}
	setFaults(t, srv, alicaptchatest.Faults{})
	require.Equal(t, alicaptcha.T001, clientVerify(t, srv, issue(t, srv, alicaptchatest.Issue{})))
	require.Equal(t, 5, srv.Count())
	require.EqualValues(t, 1, connections.Load())
}

// What precedes a hang is sent, and the rest is sent when the hang ends.
func TestHangsOnTheWire(t *testing.T) {
	t.Parallel()
	for protocol, start := range protocols {
		for stage, status := range map[alicaptchatest.Stage]int{"headers": 0, "mid-headers": 0, "body": 200} {
			t.Run(fmt.Sprint(protocol, "/", stage), func(t *testing.T) {
				t.Parallel()
				srv := start(t, alicaptchatest.Config{})
				setFaults(t, srv, alicaptchatest.Faults{Hang: stage})
				conn := dial(t, srv)
				r := wireCall(t.Context(), t, srv, issue(t, srv, alicaptchatest.Issue{}))
				head, body := raw(t, r)
				io.WriteString(conn, head+body)
				var began []byte
				if stage == alicaptchatest.StageHeaders {
					eventually(t, func() bool { return srv.Count() == 1 })
				} else {
					began = make([]byte, 30)
					_, err := io.ReadFull(conn, began)
					require.NoError(t, err)
					require.True(t, strings.HasPrefix(string(began), "HTTP/1.1 200 OK\r\n"), string(began))
				}
				require.Equal(t, status, srv.Calls()[0].Status)
				setFaults(t, srv, alicaptchatest.Faults{})

				resp, err := http.ReadResponse(bufio.NewReader(io.MultiReader(bytes.NewReader(began), conn)), r)
				require.NoError(t, err)
				defer resp.Body.Close()
				var a reply
				require.NoError(t, json.NewDecoder(resp.Body).Decode(&a))
				require.Equal(t, alicaptcha.T001, a.Result.VerifyCode)
				require.NotEmpty(t, resp.Header.Get("X-Acs-Request-Id"))
				require.Equal(t, "application/json;charset=utf-8", resp.Header.Get("Content-Type"))
				require.Equal(t, 200, srv.Calls()[0].Status)
			})
		}
	}
}

// In the body: all headers, part of the body, no more.
func TestHangInBody(t *testing.T) {
	t.Parallel()
	for protocol, start := range protocols {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			srv := start(t, alicaptchatest.Config{})
			setFaults(t, srv, alicaptchatest.Faults{Hang: "body", Status: 200, Body: "0123456789"})
			resp, err := httpClient(srv).Do(wireCall(t.Context(), t, srv, "x"))
			require.NoError(t, err)
			defer resp.Body.Close()
			require.EqualValues(t, 10, resp.ContentLength)
			half := make([]byte, 5)
			_, err = io.ReadFull(resp.Body, half)
			require.NoError(t, err)
			require.Equal(t, "01234", string(half))
			setFaults(t, srv, alicaptchatest.Faults{})
			rest, err := io.ReadAll(resp.Body)
			require.NoError(t, err)
			require.Equal(t, "56789", string(rest))
		})
	}
}

func TestDelays(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := alicaptchatest.NewSimulator(alicaptchatest.Config{})
		took := func() time.Duration {
			began := time.Now()
			send(t, s, signed(form("x")))
			return time.Since(began)
		}
		require.Zero(t, took())
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		for range 20 {
			send(t, s, signed(form("x")).WithContext(gone)) // without a wait, nothing is aborted
		}
		setFaults(t, s, alicaptchatest.Faults{Latency: time.Second})
		require.Equal(t, time.Second, took())
		require.Equal(t, time.Second, took())

		setFaults(t, s, alicaptchatest.Faults{Latency: 3, Steps: []time.Duration{10, 0, 20}})
		for _, want := range []time.Duration{13, 3, 23, 23, 23} {
			require.Equal(t, want, took())
		}
		setFaults(t, s, alicaptchatest.Faults{Steps: []time.Duration{10, 0}})
		require.EqualValues(t, 10, took(), "they begin anew")

		setFaults(t, s, alicaptchatest.Faults{Latency: 100, Jitter: 50})
		seen := map[time.Duration]bool{}
		for range 1000 {
			d := took()
			require.GreaterOrEqual(t, d, time.Duration(100))
			require.LessOrEqual(t, d, time.Duration(150))
			seen[d] = true
		}
		require.Greater(t, len(seen), 30)

		setFaults(t, s, alicaptchatest.Faults{Trickle: time.Second, Status: 200, Body: "{}        "})
		began := time.Now()
		w := httptest.NewRecorder()
		s.ServeHTTP(w, signed(form("x")))
		require.Equal(t, "{}        ", w.Body.String())
		require.True(t, w.Flushed)
		require.Equal(t, 9*time.Second, time.Since(began), "between ten bytes")

		// A change ends the delays of calls in progress.
		for _, f := range []alicaptchatest.Faults{
			{Latency: time.Hour}, {Trickle: time.Hour}, {Hang: "headers", Reset: "headers"}, {Hang: "body", Reset: "body"},
		} {
			setFaults(t, s, f)
			began := time.Now()
			var wg sync.WaitGroup
			wg.Go(func() { send(t, s, signed(form("x"))) })
			synctest.Wait()
			setFaults(t, s, alicaptchatest.Faults{})
			wg.Wait()
			require.Zero(t, time.Since(began))
		}

		// So does a client that goes away, which is sent nothing more.
		for _, f := range []alicaptchatest.Faults{{Latency: time.Hour}, {Hang: "headers"}} {
			setFaults(t, s, f)
			ctx, cancel := context.WithCancel(t.Context())
			w := httptest.NewRecorder()
			var wg sync.WaitGroup
			wg.Go(func() {
				require.PanicsWithValue(t, http.ErrAbortHandler, func() { s.ServeHTTP(w, signed(form("x")).WithContext(ctx)) })
			})
			synctest.Wait()
			cancel()
			wg.Wait()
			require.Zero(t, w.Body.Len())
			calls := s.Calls()
			require.Zero(t, calls[len(calls)-1].Status)
		}
	})
}

func TestThrottle(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { // only Advance moves time
		s := alicaptchatest.NewSimulator(alicaptchatest.Config{})
		advance := s.Advance
		// answered returns how many of n calls were answered; the others were throttled.
		answered := func(n int) (ok int) {
			for range n {
				w := httptest.NewRecorder()
				s.ServeHTTP(w, signed(form("x")))
				if w.Code == 200 {
					ok++
				} else if w.Code != 503 || !strings.Contains(w.Body.String(), `"Code":"Throttling.User"`) {
					t.Error(w.Code, w.Body)
				}
			}
			return ok
		}
		require.Equal(t, 1500, answered(1500), "no limit unless one is set")
		setFaults(t, s, alicaptchatest.Faults{ThrottleRate: alicaptchatest.AccountRate})
		require.Equal(t, 1000, answered(1010))
		advance(100 * time.Millisecond)
		require.Equal(t, 100, answered(110))
		setFaults(t, s, alicaptchatest.Faults{ThrottleRate: alicaptchatest.AccountRate})
		require.Equal(t, 1000, answered(1001), "each switch fills the bucket")

		setFaults(t, s, alicaptchatest.Faults{ThrottleRate: 10})
		require.Equal(t, 10, answered(20))
		advance(time.Minute)
		require.Equal(t, 10, answered(20), "no more than the burst")
		setFaults(t, s, alicaptchatest.Faults{ThrottleRate: 0.5})
		require.Equal(t, 1, answered(5))
		advance(time.Second)
		require.Equal(t, 0, answered(5))
		advance(time.Second)
		require.Equal(t, 1, answered(5))
		setFaults(t, s, alicaptchatest.Faults{ThrottleRate: 1e300})
		require.Equal(t, 1500, answered(1500))

		setFaults(t, s, alicaptchatest.Faults{ThrottleShare: 0.25})
		require.InDelta(t, 750, answered(1000), 100) // seven standard deviations
	})
}

func TestCloseIdleOnTheWire(t *testing.T) {
	t.Parallel()
	for protocol, start := range protocols {
		srv := start(t, alicaptchatest.Config{})
		setFaults(t, srv, alicaptchatest.Faults{CloseIdle: true})
		conn := dial(t, srv)
		r := wireCall(t.Context(), t, srv, issue(t, srv, alicaptchatest.Issue{}))
		head, body := raw(t, r)
		io.WriteString(conn, head+body)
		text, err := io.ReadAll(conn)
		require.NoError(t, err, "it ends, and not by a reset")
		resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(text)), r)
		require.NoError(t, err)
		defer resp.Body.Close()
		require.False(t, resp.Close, "without a word of it")
		require.Positive(t, resp.ContentLength)
		var a reply
		require.NoError(t, json.NewDecoder(resp.Body).Decode(&a), protocol)
		require.Equal(t, alicaptcha.T001, a.Result.VerifyCode)
	}
}

// A call on a connection that has just been closed may fail. It must not be repeated,
// whether or not it arrived.
func TestCloseIdleAndClient(t *testing.T) {
	t.Parallel()
	for protocol, start := range protocols {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			srv := start(t, alicaptchatest.Config{})
			setFaults(t, srv, alicaptchatest.Faults{CloseIdle: true})
			client := srv.Client()
			const calls = 200
			var good, failed atomic.Int32
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() {
					for range calls / 4 {
						param, err := srv.Issue(alicaptchatest.Issue{SceneID: "login"})
						if err != nil {
							t.Error(err)
						}
						result, err := client.Verify(t.Context(), alicaptcha.Request{Param: param, SceneID: "login"})
						failure, _ := err.(*alicaptcha.Error)
						switch {
						case err == nil && result.Code == alicaptcha.T001:
							good.Add(1)
						case failure != nil && failure.Code == alicaptcha.ServiceUnavailable:
							failed.Add(1)
						default:
							t.Error(result, err)
						}
					}
				})
			}
			wg.Wait()
			require.EqualValues(t, calls, good.Load()+failed.Load())
			require.Positive(t, good.Load())
			require.GreaterOrEqual(t, srv.Count(), int(good.Load()))
			require.LessOrEqual(t, srv.Count(), calls)
			requireNoneTwice(t, srv)
			if protocol == "https" {
				require.EqualValues(t, calls, good.Load(), "HTTP/2 does not have it")
			}
		})
	}
}

func requireNoneTwice(t *testing.T, srv *alicaptchatest.Server) {
	t.Helper()
	seen := map[string]bool{}
	for _, call := range srv.Calls() {
		if call.Param != "" {
			require.False(t, seen[call.Param], "a param was sent twice")
			seen[call.Param] = true
		}
	}
}

func TestTLSDelay(t *testing.T) {
	t.Parallel()
	t.Run("is waited for", func(t *testing.T) {
		t.Parallel()
		srv := alicaptchatest.StartTLS(t, alicaptchatest.Config{})
		const delay = 50 * time.Millisecond
		setFaults(t, srv, alicaptchatest.Faults{TLSDelay: delay})
		client := srv.Client()
		for i := range 2 {
			began := time.Now()
			_, err := client.Verify(t.Context(), alicaptcha.Request{Param: "x"})
			require.NoError(t, err)
			if i == 0 {
				require.GreaterOrEqual(t, time.Since(began), delay)
			}
		}
		conn := dial(t, srv)
		setFaults(t, srv, alicaptchatest.Faults{Reset: "request"})
		head, _ := raw(t, wireCall(t.Context(), t, srv, "x"))
		io.WriteString(conn, head)
		_, err := io.ReadAll(conn)
		require.ErrorIs(t, err, syscall.ECONNRESET, "such a connection can be reset too")
	})
	t.Run("outlasts a deadline, ends with the faults", func(t *testing.T) {
		t.Parallel()
		srv := alicaptchatest.StartTLS(t, alicaptchatest.Config{})
		setFaults(t, srv, alicaptchatest.Faults{TLSDelay: time.Hour})
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		_, err := srv.Client().Verify(ctx, alicaptcha.Request{Param: "x"})
		failure, ok := err.(*alicaptcha.Error)
		require.True(t, ok)
		require.Equal(t, alicaptcha.ServiceTimeout, failure.Code)
		require.Zero(t, srv.Count())

		done := make(chan error)
		go func() {
			_, err := srv.Client().Verify(newDeadline(t), alicaptcha.Request{Param: "x"})
			done <- err
		}()
		setFaults(t, srv, alicaptchatest.Faults{})
		require.NoError(t, <-done)
	})
	t.Run("not without TLS", func(t *testing.T) {
		t.Parallel()
		srv := alicaptchatest.Start(t, alicaptchatest.Config{})
		setFaults(t, srv, alicaptchatest.Faults{TLSDelay: time.Hour})
		_, err := srv.Client().Verify(t.Context(), alicaptcha.Request{Param: "x"})
		require.NoError(t, err)
	})
}

// A Server stops even if a client without a deadline is waiting for it, and no fault
// holds up a call after that.
func TestServerStopsWhatHangs(t *testing.T) {
	t.Parallel()
	for protocol, start := range protocols {
		for _, f := range []alicaptchatest.Faults{
			{Latency: time.Hour},
			{Hang: "headers"},
			{Hang: "mid-headers"},
			{Hang: "body"},
			{Trickle: time.Hour},
			{TLSDelay: time.Hour},
		} {
			t.Run(fmt.Sprintf("%s/%+v", protocol, f), func(t *testing.T) {
				t.Parallel()
				tb := &fakeTB{TB: t}
				srv := start(tb, alicaptchatest.Config{})
				setFaults(t, srv, f)
				done := make(chan struct{})
				go func() {
					defer close(done)
					srv.Client().Verify(newDeadline(t), alicaptcha.Request{Param: "x"})
				}()
				if f.TLSDelay == 0 {
					eventually(t, func() bool { return srv.Count() == 1 })
				}
				tb.cleanup()
				<-done
				setFaults(t, srv, f)
				require.Equal(t, 200, send(t, srv, signed(form("x"))).status)
			})
		}
	}
}

func TestFaultsRefused(t *testing.T) {
	t.Parallel()
	s := alicaptchatest.NewSimulator(alicaptchatest.Config{})
	inForce := alicaptchatest.Faults{Latency: 1}
	setFaults(t, s, inForce)
	for name, f := range map[string]alicaptchatest.Faults{
		"latency":                {Latency: -1},
		"long latency":           {Latency: time.Hour + 1},
		"jitter":                 {Jitter: -1},
		"long jitter":            {Jitter: math.MaxInt64},
		"steps":                  {Steps: []time.Duration{1, -1}},
		"long steps":             {Steps: []time.Duration{math.MaxInt64, math.MaxInt64}},
		"trickle":                {Trickle: -1},
		"TLSDelay":               {TLSDelay: -1},
		"hang":                   {Hang: "bodies"},
		"hang where none is":     {Hang: alicaptchatest.StageRequest},
		"reset":                  {Reset: "Body"},
		"reset where none is":    {Reset: alicaptchatest.StageMidHeaders},
		"negative status":        {Status: -1},
		"informational status":   {Status: 199},
		"status":                 {Status: 1000},
		"body alone":             {Body: "x"},
		"type alone":             {ContentType: "text/html"},
		"204 with a body":        {Status: 204, Body: "x"},
		"304 with a body":        {Status: 304, Body: "x"},
		"hang in no body":        {Status: 500, Hang: "body"},
		"reset in no body":       {Status: 500, Reset: "body"},
		"negative share":         {ThrottleShare: -0.1},
		"share":                  {ThrottleShare: 1.1},
		"share is no number":     {ThrottleShare: math.NaN()},
		"rate is no number":      {ThrottleRate: math.NaN()},
		"negative rate":          {ThrottleRate: -1},
		"rate infinite":          {ThrottleRate: math.Inf(1)},
		"rate minus infinite":    {ThrottleRate: math.Inf(-1)},
		"credentials":            {Credentials: "ok"},
		"verdict":                {VerifyCode: "F1"},
		"verdict, all wrong":     {VerifyCode: "success"},
		"credentials, all wrong": {Credentials: "Wrong"},
	} {
		require.ErrorContains(t, s.SetFaults(f), "alicaptchatest: ", name)
		require.Equal(t, inForce, s.Faults(), name)
	}
}

// VerifyCode replaces the verdict that a param was issued with, but no other.
func TestVerifyCodeFault(t *testing.T) {
	t.Parallel()
	s := alicaptchatest.NewSimulator(alicaptchatest.Config{})
	issue := func(code alicaptcha.Code) string {
		param, err := s.Issue(alicaptchatest.Issue{SceneID: "login", Code: code})
		require.NoError(t, err)
		return param
	}
	before, spent, refused := issue("T001"), issue("T001"), issue("F001")
	for _, code := range []alicaptcha.Code{"F009", "T005", "F004"} {
		setFaults(t, s, alicaptchatest.Faults{VerifyCode: code})
		require.Equal(t, code, verify(t, s, issue("T001")))
	}
	require.Equal(t, alicaptcha.F004, verify(t, s, spent))
	require.Equal(t, alicaptcha.F018, verify(t, s, spent))
	require.Equal(t, alicaptcha.F003, verify(t, s, "junk"))

	// A verdict on the scene also applies to a made-up param.
	madeUp := v3(`"certifyId":"c","sceneId":"login","isSign":true,"securityToken":"t"`)
	for code, want := range map[alicaptcha.Code]alicaptcha.Code{
		"T005": "T005", "F004": "F004", "F005": "F005", "F006": "F006", "T001": "F014", "T006": "F014", "F009": "F014",
	} {
		setFaults(t, s, alicaptchatest.Faults{VerifyCode: code})
		require.Equal(t, want, verify(t, s, madeUp), code)
		require.Equal(t, alicaptcha.F018, verify(t, s, spent), code)
		require.Equal(t, alicaptcha.F003, verify(t, s, "junk"), code)
	}
	setFaults(t, s, alicaptchatest.Faults{})
	require.Equal(t, alicaptcha.T001, verify(t, s, before))
	require.Equal(t, alicaptcha.F001, verify(t, s, refused))
}

func TestFaultsAreCopied(t *testing.T) {
	t.Parallel()
	s := alicaptchatest.NewSimulator(alicaptchatest.Config{})
	steps := []time.Duration{1, 2}
	setFaults(t, s, alicaptchatest.Faults{Steps: steps})
	steps[0] = -1
	got := s.Faults()
	require.EqualValues(t, 1, got.Steps[0])
	got.Steps[1] = -1
	require.EqualValues(t, 2, s.Faults().Steps[1])
}

func TestServeFaults(t *testing.T) {
	t.Parallel()
	s := alicaptchatest.NewSimulator(alicaptchatest.Config{})
	const all = `{"latency":"150ms","jitter":"20µs","steps":["1s","0s","1m0s"],"hang":"headers","trickle":"10ms",` +
		`"reset":"body","closeIdle":true,"status":503,"body":"<x>","contentType":"text/xml","throttleShare":0.5,` +
		`"throttleRate":50,"credentials":"expired","verifyCode":"F009","tlsDelay":"2s"}`
	whole := alicaptchatest.Faults{
		Latency: 150 * time.Millisecond, Jitter: 20 * time.Microsecond,
		Steps: []time.Duration{time.Second, 0, time.Minute}, Hang: "headers",
		Trickle: 10 * time.Millisecond, Reset: "body", CloseIdle: true, Status: 503, Body: "<x>", ContentType: "text/xml",
		ThrottleShare: 0.5, ThrottleRate: 50, Credentials: "expired", VerifyCode: "F009", TLSDelay: 2 * time.Second,
	}
	ask := func(method, body string) (int, string, http.Header) {
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest(method, "/faults", strings.NewReader(body)))
		return w.Code, w.Body.String(), w.Header()
	}
	for _, c := range []struct {
		body, why string
		status    int
		faults    alicaptchatest.Faults
	}{
		{all, "", 200, whole},
		{``, "", 200, alicaptchatest.Faults{}},
		{` {"hang":"body"} `, "", 200, alicaptchatest.Faults{Hang: "body"}},
		{` `, "", 200, alicaptchatest.Faults{}},
		{`{"status":500}`, "", 200, alicaptchatest.Faults{Status: 500}},
		{`{}`, "", 200, alicaptchatest.Faults{}},
		{`{"latency":"1s","steps":[]}`, "", 200, alicaptchatest.Faults{Latency: time.Second}},
		{`{"latency":"1s","latencies":"2s"}`, `unknown field "latencies"`, 400, alicaptchatest.Faults{}},
		{`{"latency":1}`, "latency", 400, alicaptchatest.Faults{}},
		{`{"latency":"1"}`, `missing unit in duration "1"`, 400, alicaptchatest.Faults{}},
		{`{"latency":"-1s"}`, "a delay of -1s; it must be 0 to 1h0m0s", 400, alicaptchatest.Faults{}},
		{`{"steps":"1s"}`, "steps", 400, alicaptchatest.Faults{}},
		{`{"hang":"somewhere"}`, `the hang is "somewhere"`, 400, alicaptchatest.Faults{}},
		{`{"reset":"somewhere"}`, `the reset is "somewhere"`, 400, alicaptchatest.Faults{}},
		{`{"closeIdle":"yes"}`, "closeIdle", 400, alicaptchatest.Faults{}},
		{`{"throttleShare":2}`, "the throttled share is 2", 400, alicaptchatest.Faults{}},
		{`null`, "null", 400, alicaptchatest.Faults{}},
		{`[]`, "the body is not valid", 400, alicaptchatest.Faults{}},
		{`{"hang":"body"}{}`, "something after", 400, alicaptchatest.Faults{}},
		{`{"hang":"body"`, "unexpected EOF", 400, alicaptchatest.Faults{}},
		{`{"status":500,"body":"` + strings.Repeat("x", 1<<20) + `"}`, "too large", 413, alicaptchatest.Faults{}},
	} {
		inForce := s.Faults()
		status, text, header := ask("POST", c.body)
		require.Equal(t, c.status, status, text)
		require.Equal(t, "application/json;charset=utf-8", header.Get("Content-Type"))
		if status == 200 {
			var answered alicaptchatest.Faults
			require.NoError(t, json.Unmarshal([]byte(text), &answered), text)
			require.Equal(t, c.faults, answered)
			require.Equal(t, c.faults, s.Faults())
		} else {
			var answered map[string]string
			require.NoError(t, json.Unmarshal([]byte(text), &answered), text)
			require.Len(t, answered, 1)
			require.Contains(t, answered["error"], c.why)
			require.Equal(t, inForce, s.Faults(), "what is refused changes nothing")
		}
	}
	require.Zero(t, s.Count())

	setFaults(t, s, whole)
	status, text, _ := ask("GET", "")
	require.Equal(t, 200, status)
	require.JSONEq(t, all, text)
	status, _, header := ask("DELETE", "")
	require.Equal(t, 405, status)
	require.Equal(t, "GET, HEAD, POST", header.Get("Allow"))
	require.Equal(t, whole, s.Faults())
}

// The faults are switched at random under load by clients with deadlines. Every call
// is recorded, none is made twice, and calls pass again in the end.
func TestFaultsUnderLoad(t *testing.T) {
	t.Parallel()
	for protocol, start := range protocols {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			srv := start(t, alicaptchatest.Config{})
			client := srv.Client()
			outage := map[alicaptcha.Code]bool{
				alicaptcha.ServiceTimeout: true, alicaptcha.ServiceUnavailable: true, alicaptcha.ServiceThrottled: true,
				alicaptcha.Misconfigured: true, alicaptcha.RequestRefused: true,
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var made atomic.Int32
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					for ctx.Err() == nil {
						param, err := srv.Issue(alicaptchatest.Issue{SceneID: "login"})
						if err != nil {
							t.Error(err)
						}
						short, done := context.WithTimeout(t.Context(), 20*time.Millisecond)
						made.Add(1)
						result, err := client.Verify(short, alicaptcha.Request{Param: param, SceneID: "login"})
						done()
						failure, ok := err.(*alicaptcha.Error)
						if !(err == nil && result.Code == alicaptcha.T001 || ok && outage[failure.Code]) {
							t.Error(result, err)
						}
					}
				})
			}
			control := &http.Client{Transport: srv.ClientConfig().Transport.(*http.Transport).Clone()}
			defer control.CloseIdleConnections()
			post := func(body []byte) {
				resp, err := control.Post(srv.URL+"/faults", "application/json", bytes.NewReader(body))
				require.NoError(t, err)
				resp.Body.Close()
				require.Equal(t, 200, resp.StatusCode)
			}
			names := slices.Collect(maps.Keys(faultCases))
			rand.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
			for _, name := range names {
				body, err := json.Marshal(faultCases[name].faults)
				require.NoError(t, err)
				post(body)
				before := made.Load()
				eventually(t, func() bool { return made.Load() > before+8 }, name)
			}
			post(nil)
			cancel()
			wg.Wait()
			closeIdle(srv)
			require.LessOrEqual(t, srv.Count(), int(made.Load()))
			requireNoneTwice(t, srv)
			for range 20 {
				require.Equal(t, alicaptcha.T001, clientVerify(t, srv, issue(t, srv, alicaptchatest.Issue{})))
			}
		})
	}
}

// It is not parallel, because it would count the goroutines of other tests.
func TestFaultsLeaveNoGoroutines(t *testing.T) {
	for protocol, start := range protocols {
		for name, c := range faultCases {
			t.Run(protocol+"/"+name, func(t *testing.T) {
				tb := &fakeTB{TB: t}
				srv := start(tb, alicaptchatest.Config{})
				defer tb.cleanup()
				before := runtime.NumGoroutine()
				setFaults(t, srv, c.faults)
				for i := range 5 {
					ctx := newDeadline(t)
					done := make(chan struct{})
					go func() {
						defer close(done)
						srv.Client().Verify(ctx, alicaptcha.Request{Param: "x"})
					}()
					if c.holds {
						eventually(t, func() bool { return srv.Count() == i+1 })
						close(ctx.passed) // the client goes away, and the fault stays
					}
					<-done
				}
				eventually(t, func() bool {
					closeIdle(srv)
					return runtime.NumGoroutine() <= before+1 // the condition runs in a goroutine of its own
				})
			})
		}
	}
}
