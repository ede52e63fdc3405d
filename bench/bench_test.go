package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"image/png"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
	"github.com/alicaptcha/alicaptcha/bench/internal/cputime"
	"github.com/alicaptcha/alicaptcha/bench/internal/loopback"
)

func TestMain(m *testing.M) {
	forget, err := loopback.Only()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	forget()
	os.Exit(code)
}

// The whole program runs in its short form.
func TestShortRun(t *testing.T) {
	dir := t.TempDir()
	out, err := exec.CommandContext(t.Context(), "go", "run", ".", "-short", "-o", dir).Output()
	require.NoError(t, err)
	report, err := os.ReadFile(filepath.Join(dir, "performance.md"))
	require.NoError(t, err)
	require.Equal(t, string(out), string(report))
	for _, part := range []string{"Request cost", "Call cost", "What a person waits for", "Under load", "In an outage", "Growth", "Targets"} {
		require.Contains(t, string(report), "\n## "+part+"\n")
	}
	for _, contender := range []string{
		oursName, warmName, beginName, sampleName, floorName, "read-all", "ParseForm", "gorilla/csrf", "go-chi/jwtauth", "CrossOriginProtection",
	} {
		require.Contains(t, string(report), "| "+contender+" |")
	}
	for _, wrong := range []string{"NaN", "%!", dir, os.TempDir()} {
		require.NotContains(t, string(report), wrong)
	}
	_, targets, _ := strings.Cut(string(report), "## Targets")
	require.Equal(t, 26, strings.Count(targets, "| yes |")+strings.Count(targets, "| **no** |"))
	pictures, err := filepath.Glob(filepath.Join(dir, "*.png"))
	require.NoError(t, err)
	require.Len(t, pictures, 2)
	for _, name := range pictures {
		require.Contains(t, string(report), "]("+filepath.Base(name)+")")
		file, err := os.Open(name)
		require.NoError(t, err)
		defer file.Close()
		_, err = png.Decode(file)
		require.NoError(t, err)
	}
}

func TestMeasure(t *testing.T) {
	runs := 0
	kept := make([][]byte, 1000)
	c := measure(1000, func() {
		kept[runs] = make([]byte, 4096)
		runs++
		for start := cputime.Used(); cputime.Used()-start < 20*time.Microsecond; {
		}
	})
	require.Len(t, kept[999], 4096)
	require.InDelta(t, 4096, c.bytes, 200)
	require.InDelta(t, 1, c.allocs, 0.2)
	require.GreaterOrEqual(t, c.cpu, 20e3)
	require.GreaterOrEqual(t, c.ns, 5e3)
	require.Less(t, c.ns, 1e9)

	slept := measure(2, func() { time.Sleep(20 * time.Millisecond) })
	require.GreaterOrEqual(t, slept.ns, 20e6)
	require.Less(t, slept.cpu, 20e6)
}

func TestCompare(t *testing.T) {
	var turns []string
	turn := func(name string) func() {
		return func() {
			if len(turns) == 0 || turns[len(turns)-1] != name {
				turns = append(turns, name)
			}
			time.Sleep(100 * time.Microsecond)
		}
	}
	found := compare(3, time.Millisecond, []contender{{"a", turn("a")}, {"b", turn("b")}, {"c", turn("c")}})
	for _, name := range []string{"a", "b", "c"} {
		require.Len(t, found[name], 3)
		require.GreaterOrEqual(t, found[name].best().ns, 100e3)
	}
	// Each contender first runs alone, to see how long it takes. Equal neighbors of two turns are compacted.
	spaced := slices.Insert(slices.Insert(slices.Insert(turns, 3, " "), 7, " "), 10, " ")
	require.Equal(t, strings.Split("abc abc ba bc", ""), spaced)
}

func TestSeries(t *testing.T) {
	s := series{{1, 20, 300, 4}, {3, 10, 100, 6}, {2, 30, 200, 5}}
	require.Equal(t, cost{2, 20, 200, 5}, s.median())
	require.Equal(t, cost{1, 10, 100, 4}, s.best())
	require.Equal(t, cost{1, 10, 100, 1}, s.median().less(s.best()))
	require.Equal(t, cost{2, 15, 200, 5}, s[:2].median())
	require.Zero(t, median(nil))
}

func TestPercentile(t *testing.T) {
	var hundred []time.Duration
	for i := range 100 {
		hundred = append(hundred, time.Duration(100-i))
	}
	require.Equal(t, time.Duration(50), percentile(hundred, 50))
	require.Equal(t, time.Duration(99), percentile(hundred, 99))
	require.Equal(t, time.Duration(100), percentile(hundred, 100))
	require.Equal(t, time.Duration(100), hundred[0], "it must not sort what it is given")
	require.Equal(t, time.Duration(7), percentile([]time.Duration{7}, 1))
	require.Equal(t, time.Duration(2), percentile([]time.Duration{3, 1, 2}, 50))
	require.Zero(t, percentile(nil, 99))
}

func TestShow(t *testing.T) {
	for ns, want := range map[float64]string{
		0: "0 ns", 999.4: "999 ns", 999.6: "1.00 µs", 12_340: "12.3 µs", 999_499: "999 µs", 999_600: "1.00 ms",
		20e6: "20.0 ms", 5.05e9: "5.05 s", -1500: "-1.50 µs",
	} {
		require.Equal(t, want, showTime(ns))
	}
	for n, want := range map[float64]string{0: "0 B", 999: "999 B", 1840: "1.84 kB", 52.4e6: "52.4 MB", 340e6: "340 MB"} {
		require.Equal(t, want, showBytes(n))
	}
}

// The test vector was computed by another program.
func TestSigned(t *testing.T) {
	header := signed("test-id", "test-secret", "captcha.cn-shanghai.aliyuncs.com", "SceneId=test",
		time.Date(2026, 9, 27, 0, 0, 0, 0, time.UTC), "test-nonce")
	require.Contains(t, header.Get("Authorization"),
		"Signature=a6c2000eda36d6945559103f39c06f1837e21794e8051f56092bc3b3a7264b2b")
}

// The simulator checks signatures and accepts a param once. Each caller sends the
// whole param with its scene and returns the verdict.
func TestCallersBeforeTheSimulator(t *testing.T) {
	sim := alicaptchatest.NewSimulator(alicaptchatest.Config{})
	own, err := loopback.Certificate()
	require.NoError(t, err)
	server := httptest.NewUnstartedServer(sim)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{own}}
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	all, err := callers(server.URL)
	require.NoError(t, err)
	multiplexed, err := http2Way(server.URL)
	require.NoError(t, err)
	all = append(all, caller{http2Name, multiplexed})
	for _, c := range all {
		for _, code := range []alicaptcha.Code{alicaptcha.T001, alicaptcha.F001} {
			param, err := sim.Issue(alicaptchatest.Issue{SceneID: scene, Code: code, Format: alicaptchatest.V2})
			require.NoError(t, err)
			result, err := c.Verify(t.Context(), alicaptcha.Request{Param: param, SceneID: scene})
			require.NoError(t, err, c.name)
			require.Equal(t, code == alicaptcha.T001, result.Passed, c.name)
			calls := sim.Calls()
			require.Equal(t, param, calls[len(calls)-1].Param, c.name)
			require.Equal(t, scene, calls[len(calls)-1].SceneID, c.name)
			require.Equal(t, code, calls[len(calls)-1].VerifyCode, c.name)
		}
	}
}

func TestCannedCallers(t *testing.T) {
	texts, err := params()
	require.NoError(t, err)
	require.Len(t, texts[0], 280)
	require.InDelta(t, 4500, len(texts[1]), 200)
	require.InDelta(t, 28_000, len(texts[2]), 500)
	all, err := callers("")
	require.NoError(t, err)
	for _, c := range all {
		require.NotPanics(t, call(c, texts[0]), c.name)
	}
	failing := caller{"failing", alicaptchatest.Failing(alicaptcha.ServiceTimeout)}
	require.Panics(t, call(failing, texts[0]))
	require.Panics(t, call(caller{"rejecting", alicaptchatest.Rejecting(alicaptcha.F001)}, texts[0]))
}

// asked is a Verifier that records its requests.
type asked struct {
	alicaptcha.Verifier
	requests []alicaptcha.Request
}

func (a *asked) Verify(ctx context.Context, req alicaptcha.Request) (alicaptcha.Result, error) {
	a.requests = append(a.requests, req)
	return a.Verifier.Verify(ctx, req)
}

// Every gate finds the param, follows the verdict, and leaves the body intact.
func TestGates(t *testing.T) {
	all, err := rows()
	require.NoError(t, err)
	require.Len(t, all, 13)
	for _, row := range all {
		for _, g := range row.gates {
			isYardstick := slices.ContainsFunc(yardsticks, func(y gate) bool { return y.name == g.name })
			asks := g.name != bareName && !isYardstick
			passing := &asked{Verifier: alicaptchatest.Passing()}
			calls := 0
			h := g.wrap(passing, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				calls++
				if g.name == parseFormGate.name {
					require.Equal(t, "alice", r.PostForm.Get("username"))
					return
				}
				body, err := io.ReadAll(r.Body)
				require.NoError(t, err)
				require.Equal(t, row.request.body, string(body), "%s, %s", row.name, g.name)
			}))
			operation, answer := row.request.through(h)
			operation()
			operation()
			require.Equal(t, 2, calls, "%s, %s: %d", row.name, g.name, answer.status)
			require.Equal(t, http.StatusOK, answer.status)
			require.LessOrEqual(t, len(answer.header["Vary"]), 1, "headers of the answer before")
			if asks {
				want := alicaptcha.Request{Param: v3, SceneID: scene}
				require.Equal(t, []alicaptcha.Request{want, want}, passing.requests, g.name)
			}
			for _, v := range []alicaptcha.Verifier{
				alicaptchatest.Rejecting(alicaptcha.F001), alicaptchatest.Failing(alicaptcha.ServiceUnavailable),
			} {
				if asks {
					h := g.wrap(v, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { calls++ }))
					operation, answer = row.request.through(h)
					operation()
					require.Equal(t, 2, calls, g.name)
					require.NotEqual(t, http.StatusOK, answer.status, g.name)
				}
			}
		}
	}
}

// The yardsticks perform their checks.
func TestYardsticks(t *testing.T) {
	spoil := map[string]func(http.Header){
		"gorilla/csrf":          func(h http.Header) { h.Set("X-CSRF-Token", "x") },
		"go-chi/jwtauth":        func(h http.Header) { h.Set("Authorization", "Bearer x") },
		"CrossOriginProtection": func(h http.Header) { h.Set("Sec-Fetch-Site", "cross-site") },
	}
	for _, g := range yardsticks {
		q, err := headerRequest()
		require.NoError(t, err)
		spoil[g.name](q.header)
		h := g.wrap(nil, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error(g.name) }))
		operation, answer := q.through(h)
		operation()
		require.GreaterOrEqual(t, answer.status, 400, g.name)
	}
}

func TestBodies(t *testing.T) {
	for _, first := range []bool{true, false} {
		for _, size := range []int{512, 4 << 10, 1 << 20} {
			require.Len(t, jsonBody(size, v3, first).body, size)
			require.Equal(t, v3, decodeJSON(nil, []byte(jsonBody(size, v3, first).body)))
			require.Len(t, formBody(size, v3, first).body, size)
			require.Equal(t, first, strings.Index(formBody(size, v3, first).body, v3) < 30)
			require.Equal(t, first, strings.Index(jsonBody(size, v3, first).body, v3) < 30)
		}
	}
	// A body with a shortcut for io.Copy would make the bare handler look fast.
	var body any = stream{strings.NewReader("x")}
	_, short := body.(io.WriterTo)
	require.False(t, short)
}

// Following the vendor's advice, a request is admitted if the call fails, but not if it
// is rejected.
func TestReadAllPassOnError(t *testing.T) {
	for _, passOnError := range []bool{true, false} {
		for _, v := range []alicaptcha.Verifier{
			alicaptchatest.Failing(alicaptcha.ServiceTimeout), alicaptchatest.Rejecting(alicaptcha.F001),
		} {
			_, err := v.Verify(t.Context(), alicaptcha.Request{Param: v3})
			calls := 0
			next := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { calls++ })
			operation, _ := jsonBody(512, v3, true).through(readAll(v, decodeJSON, passOnError, next))
			operation()
			require.Equal(t, passOnError && err != nil, calls == 1)
		}
	}
}

func TestUpload(t *testing.T) {
	const size = 8 << 20
	for _, g := range uploadGates() {
		v := &asked{Verifier: alicaptchatest.Passing()}
		wrap := func(_ alicaptcha.Verifier, next http.Handler) http.Handler { return g.wrap(v, next) }
		found, err := sendUpload(gate{g.name, wrap}, size)
		require.NoError(t, err)
		require.Greater(t, found.total, found.entered)
		if g.name == bareName {
			require.Zero(t, found.readBefore)
			continue
		}
		require.Equal(t, []alicaptcha.Request{{Param: v3, SceneID: scene}}, v.requests, g.name)
		if g.name == oursName {
			require.Less(t, found.readBefore, float64(size/100))
		} else {
			require.EqualValues(t, size, found.readBefore, g.name)
			require.Greater(t, found.heap, float64(size), g.name)
		}
	}
	_, err := sendUpload(gate{"none", func(alicaptcha.Verifier, http.Handler) http.Handler { return enters }}, size)
	require.Error(t, err, "the handler was not called")
}

func TestDrive(t *testing.T) {
	texts, err := params()
	require.NoError(t, err)
	for _, s := range []shape{
		{callers: 4, calls: 20},
		{callers: 4, calls: 20, burst: true, pause: time.Millisecond},
		{callers: 4, calls: 20, pause: 2 * time.Millisecond, jitter: time.Millisecond},
	} {
		found, err := loaded(2, 5*time.Millisecond, []shape{s}, []way{{oursName, oursWay}, {http2Name, http2Way}}, texts[0])
		require.NoError(t, err)
		for name, isHTTP2 := range map[string]bool{oursName: false, http2Name: true} {
			require.Len(t, found[[2]string{"", name}], 2)
			for _, one := range found[[2]string{"", name}] {
				require.Zero(t, one.failures)
				require.Equal(t, 20, one.calls)
				require.Len(t, one.latencies, 16, "the first calls do not count")
				require.GreaterOrEqual(t, slices.Min(one.latencies), 5*time.Millisecond)
				require.Equal(t, isHTTP2, one.http2 == 20)
				require.Positive(t, one.opened)
				require.LessOrEqual(t, one.opened, int64(8))
				require.GreaterOrEqual(t, one.took, 25*time.Millisecond)
			}
		}
		require.Equal(t, 20, s.drive(alicaptchatest.Rejecting(alicaptcha.F001), texts[0]).failures)
		require.Equal(t, 20, s.drive(alicaptchatest.Failing(alicaptcha.ServiceTimeout), texts[0]).failures)
	}
}

func TestServiceClosesIdleConnections(t *testing.T) {
	s, err := newService(serviceConfig{tls: true, idle: time.Millisecond})
	require.NoError(t, err)
	defer s.close()
	roots := s.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	conn, err := tls.Dial("tcp", s.Listener.Addr().String(), &tls.Config{RootCAs: roots})
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL, strings.NewReader("a call"))
	require.NoError(t, err)
	require.NoError(t, r.Write(conn))
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, r)
	require.NoError(t, err)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, passed, string(body))
	_, err = in.ReadByte()
	require.Equal(t, io.EOF, err, "the service ends it, and says nothing more")
	require.EqualValues(t, 1, s.opened.Load())
	require.Eventually(t, func() bool { return s.open.Load() == 0 }, 10*time.Second, time.Millisecond)
}

func TestSuffer(t *testing.T) {
	o := offers{window: 200 * time.Millisecond, perSecond: 100, other: 50, patience: 2 * time.Second}
	found, err := suffer(defence{"", withBreaker}, o)
	require.NoError(t, err)
	// A probe may be under way, one at a time, and hang.
	require.LessOrEqual(t, found.unanswered, 1)
	require.Len(t, found.gated, 20-found.unanswered)
	require.Len(t, found.ungated, 10)
	require.Zero(t, found.letIn)
	require.Positive(t, found.goroutines)
	require.LessOrEqual(t, found.upstream, int64(1))

	o.patience = 300 * time.Millisecond
	found, err = suffer(defence{"", withoutBreaker}, o)
	require.NoError(t, err)
	require.Empty(t, found.gated)
	require.Len(t, found.ungated, 10)
	require.Equal(t, 20, found.unanswered)
	require.Zero(t, found.letIn)
	require.GreaterOrEqual(t, found.upstream, int64(10))
	require.GreaterOrEqual(t, found.goroutines, 30)

	_, err = suffer(defence{"", func(string, http.Handler) (http.Handler, error) { return nil, errors.New("x") }}, o)
	require.Error(t, err)
}

func TestGoroutinesOf(t *testing.T) {
	const label = "counted"
	stop := make(chan struct{})
	defer close(stop)
	pprof.Do(t.Context(), pprof.Labels("part", label), func(context.Context) {
		for range 7 {
			go func() { <-stop }()
		}
	})
	pprof.Do(t.Context(), pprof.Labels("part", "other"), func(context.Context) {
		go func() { <-stop }()
	})
	go func() { <-stop }()
	n, err := goroutinesOf(label)
	require.NoError(t, err)
	require.Equal(t, 7, n)
}

// Over a link, every flight is late, connecting takes a round trip, and round trips are counted.
func TestLink(t *testing.T) {
	const delay = 20 * time.Millisecond
	for version, opening := range map[uint16]int64{tls.VersionTLS12: 3, tls.VersionTLS13: 2} {
		s, err := newService(serviceConfig{tls: true, version: version})
		require.NoError(t, err)
		defer s.close()
		l, err := newLink(s.Listener.Addr().String(), delay)
		require.NoError(t, err)
		defer l.close()
		client, err := ours(l.url(), nil)
		require.NoError(t, err)
		for n := range int64(3) {
			start := time.Now()
			call(caller{"ours", client}, v3)()
			want := 1 + n
			require.Equal(t, opening+want, l.trips.Load())
			if n == 0 {
				want += opening
			} else {
				want = 1
			}
			require.GreaterOrEqual(t, time.Since(start), time.Duration(want)*2*delay)
		}
		require.EqualValues(t, 1, s.opened.Load())
		require.Zero(t, s.http2.Load())
	}
}

// The end of a connection comes to the other side, late.
func TestLinkCloses(t *testing.T) {
	const delay = 20 * time.Millisecond
	s, err := newService(serviceConfig{idle: time.Millisecond})
	require.NoError(t, err)
	defer s.close()
	l, err := newLink(s.Listener.Addr().String(), delay)
	require.NoError(t, err)
	defer l.close()
	conn, err := net.Dial("tcp", l.listener.Addr().String())
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
	start := time.Now()
	_, err = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	require.NoError(t, err)
	answer, err := io.ReadAll(conn)
	require.NoError(t, err)
	require.Contains(t, string(answer), passed)
	require.GreaterOrEqual(t, time.Since(start), 4*delay)
	require.EqualValues(t, 2, l.trips.Load())
}

func TestWait(t *testing.T) {
	s, err := newService(serviceConfig{tls: true, version: tls.VersionTLS13})
	require.NoError(t, err)
	defer s.close()
	const delay = 10 * time.Millisecond
	for _, by := range waiters {
		for v, want := range map[visit]int64{
			{quiet: time.Millisecond}: 1, {person: 200 * time.Millisecond}: 3,
		} {
			if by.name == warmName {
				want = 1
			}
			found := v.wait(by, s.Listener.Addr().String(), delay)
			require.NoError(t, found.err)
			require.Equal(t, want, found.trips, by.name)
			require.GreaterOrEqual(t, found.took, time.Duration(want)*2*delay)
		}
	}
	gone, err := newService(serviceConfig{tls: true})
	require.NoError(t, err)
	gone.close()
	require.Error(t, visit{}.wait(waiters[0], gone.Listener.Addr().String(), delay).err)
}
