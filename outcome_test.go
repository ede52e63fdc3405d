package alicaptcha_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/time/rate"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

// A deadline that is shorter than Timeout is said, once a minute.
func TestShortDeadlineIsLogged(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log := new(logbook)
		m, err := alicaptcha.New(alicaptcha.Config{Verifier: passing(), SceneID: "login", Logger: slog.New(log)})
		require.NoError(t, err)
		check := func(d time.Duration) {
			ctx, cancel := context.WithTimeout(t.Context(), d)
			defer cancel()
			require.True(t, m.Check(loginRequest().WithContext(ctx)).Verified)
		}
		lines := func() int { return strings.Count(log.String(), "leaves the call less time than Config.Timeout") }
		check(5 * time.Second)
		require.Zero(t, lines())
		for range 10 {
			check(3 * time.Second)
		}
		require.Equal(t, 1, lines())
		require.Contains(t, log.String(), "WARN captcha: the request's own deadline")
		require.Contains(t, log.String(), "captcha.left=3s captcha.timeout=5s")
		time.Sleep(time.Minute)
		check(time.Second)
		require.Equal(t, 2, lines())
	})
}

// Nothing that a client or the service could smuggle in reaches a log line, an
// error's text or a response: neither the param, nor a key, nor the service's
// message.
func TestSecretsStayIn(t *testing.T) {
	t.Setenv("ALIBABA_CLOUD_ACCESS_KEY_ID", "")
	const (
		secret   = "the-secret-key"
		stsToken = "the-sts-token"
		message  = "the-service-says-so"
		long     = "the-long-identifier"
	)
	bodies := []string{
		`{"RequestId":"R","Message":"` + message + `","Code":"Success","Success":true,` +
			`"Result":{"VerifyResult":true,"VerifyCode":"T001","CertifyId":"C"}}`,
		`{"RequestId":"R","Message":"` + message + `","Code":"Success","Success":true,` +
			`"Result":{"VerifyResult":false,"VerifyCode":"F001"}}`,
		`{"RequestId":"R","Message":"` + message + `","Code":"` + message + " " + param + " " + secret + `","Success":false}`,
		`{"RequestId":"` + message + " " + param + `","Message":"` + message + `","Code":"Forbidden.RAMUserAccessDenied"}`,
		`{"RequestId":"R","Message":"` + message + `","Code":"Throttling.User"}`,
		`<Error><Code>SignatureDoesNotMatch</Code><Message>` + message + `</Message></Error>`,
		`<html>` + message + param + secret + stsToken + `</html>`,
		message + param,
		``,
		`{"RequestId":"R","Code":"Success","Success":true,"Result":{"VerifyResult":true,"VerifyCode":"T001",` +
			`"CertifyId":"` + strings.Repeat("x", 200) + long + `"}}`,
	}
	for _, status := range []int{200, 302, 400, 401, 403, 429, 500} {
		for _, body := range bodies {
			upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Location", "/elsewhere?"+message)
				w.WriteHeader(status)
				io.WriteString(w, body)
			}))
			client, err := alicaptcha.NewClient(alicaptcha.ClientConfig{
				Endpoint: upstream.URL, AccessKeyID: "the-id", AccessKeySecret: secret, SecurityToken: stsToken,
			})
			require.NoError(t, err)
			for _, accept := range []string{"*/*", "text/html"} {
				r := loginRequest()
				r.Header.Set("Accept", accept)
				tr := try(t, alicaptcha.Config{Verifier: client}, r)
				o := tr.outcome(t)
				require.NotEmpty(t, tr.log.String())
				all := tr.log.String() + tr.Body.String() + fmt.Sprint(tr.Header())
				if o.Err != nil {
					all += o.Err.Error()
				}
				for _, word := range []string{param, secret, stsToken, message, long, "the-id"} {
					require.NotContains(t, all, word, "status %d, body %s", status, body)
				}
			}
			upstream.Close()
		}
	}
}

// Where there is no verdict the line says why, if the code alone does not. What is not
// there has no key.
func TestLogSaysWhy(t *testing.T) {
	t.Parallel()
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	late, cancel := context.WithTimeout(t.Context(), -1)
	defer cancel()
	oddHeader := loginRequest()
	oddHeader.Header.Set("X-Param", "\xff")
	contradiction := answering(alicaptcha.Result{Passed: true, Code: alicaptcha.F001}, nil)
	panicking := &spy{do: func(context.Context, alicaptcha.Request) (alicaptcha.Result, error) { panic("x") }}
	for _, row := range []struct {
		cfg   alicaptcha.Config
		r     *http.Request
		want  string
		cause error
	}{
		{alicaptcha.Config{Extractors: []alicaptcha.Extractor{alicaptcha.FromHeader("X-Param")}}, oddHeader,
			"param_malformed: the param is not valid UTF-8", nil},
		{alicaptcha.Config{SceneIDFunc: func(*http.Request) string { return "" }}, loginRequest(),
			"misconfigured: SceneIDFunc returned an empty scene ID", nil},
		{alicaptcha.Config{Verifier: contradiction}, loginRequest(),
			"service_unavailable: the Verifier's Result is not a verdict", nil},
		{alicaptcha.Config{Verifier: panicking}, loginRequest(),
			"service_unavailable: the Verifier panicked", nil},
		{alicaptcha.Config{}, loginRequest().WithContext(canceled),
			"client_canceled: context canceled", context.Canceled},
		{alicaptcha.Config{}, loginRequest().WithContext(late),
			"overloaded: context deadline exceeded", context.DeadlineExceeded},
	} {
		if row.cfg.Verifier == nil {
			row.cfg.Verifier = passing()
		}
		tr := try(t, row.cfg, row.r)
		require.Contains(t, tr.log.String(), "captcha.error=alicaptcha: "+row.want)
		o := tr.outcome(t)
		require.EqualError(t, o.Err, "alicaptcha: "+row.want)
		require.Equal(t, row.cause != nil, row.cause != nil && errors.Is(o.Err, row.cause))
	}
	silent := func(*http.Request) (string, error) { return "", nil }
	tr := try(t, alicaptcha.Config{Verifier: passing(), Extractors: []alicaptcha.Extractor{silent}}, loginRequest())
	require.NotContains(t, tr.log.String(), "captcha.error", "nothing is known of it")
}

// Of an identifier a log line has 128 bytes at most.
func TestLogCutsIdentifiers(t *testing.T) {
	t.Parallel()
	const head, tail = "captcha.certify_id=", " captcha.request_id="
	for length, shown := range map[int]int{127: 127, 128: 128, 129: 128, 1000: 128} {
		id := strings.Repeat("c", length)
		verifier := answering(alicaptcha.Result{CertifyID: id, RequestID: id}, nil)
		line := try(t, alicaptcha.Config{Verifier: verifier}, loginRequest()).log.String()
		require.Contains(t, line, head+id[:shown]+tail+id[:shown]+" ")
	}
}

// A log line holds what an operator looks for under stable keys.
func TestLogKeys(t *testing.T) {
	t.Parallel()
	result := alicaptcha.Result{Code: "F001", CertifyID: "certify\n\x1b[31m", RequestID: "request"}
	tr := try(t, alicaptcha.Config{Verifier: answering(result, nil)}, loginRequest())
	require.Regexp(t, `^INFO captcha: rejected captcha.code=F001 captcha.duration_ms=[\d.e-]+ captcha.scene=login `+
		`captcha.certify_id=certify\?\?\[31m captcha.request_id=request captcha.reference=[0-9a-f-]{36} `+
		`http.request.method=POST\n$`, tr.log.String())

	tooLong := `{"captchaVerifyParam":"` + strings.Repeat("x", 40<<10) + `"}`
	tooFar := `{"a":"` + strings.Repeat("x", 200<<10) + `","captchaVerifyParam":"x"}`
	for body, want := range map[string]string{
		`{"captchaVerifyParam":7}`: "param_malformed: the field is not a string",
		`{`:                        "param_malformed: the body cannot be read as its Content-Type says",
		tooLong:                    "param_too_large: the param has 40960 bytes",
		tooFar:                     "param_too_large: not found in the first 131072 bytes of the body",
	} {
		log := try(t, alicaptcha.Config{Verifier: passing()}, jsonRequest(body)).log.String()
		require.Contains(t, log, "captcha.error=alicaptcha: "+want)
	}

	r := loginRequest()
	r.Header.Set("Content-Encoding", "gzip")
	tr = try(t, alicaptcha.Config{Verifier: passing()}, r)
	require.Contains(t, tr.log.String(), "captcha.error=alicaptcha: param_malformed: the body is compressed\n")

	tr = try(t, alicaptcha.Config{Verifier: answering(alicaptcha.Result{}, &alicaptcha.Error{
		Code: alicaptcha.ServiceThrottled, Status: 429, ServiceCode: "Throttling.User", RequestID: "R1",
	})}, loginRequest())
	require.Contains(t, tr.log.String(),
		"captcha.error=alicaptcha: service_throttled (status 429, code Throttling.User, request R1)")
	require.Contains(t, tr.log.String(), "captcha.description=")
}

// What calls for the operator, and an end without a verdict, is said once a minute, not
// once a request.
func TestOperatorsFaultsAreLoggedOnceAMinute(t *testing.T) {
	t.Parallel()
	for _, code := range []alicaptcha.Code{
		alicaptcha.T005, alicaptcha.F004, alicaptcha.F005, alicaptcha.F006, alicaptcha.F012, alicaptcha.F016,
		alicaptcha.F021, alicaptcha.F022, alicaptcha.Misconfigured, alicaptcha.RequestRefused,
		alicaptcha.ServiceTimeout, alicaptcha.ServiceUnavailable, alicaptcha.ServiceThrottled, alicaptcha.Overloaded,
	} {
		synctest.Test(t, func(t *testing.T) {
			log := new(logbook)
			verifier := answering(alicaptcha.Result{Code: code, Passed: code == alicaptcha.T005}, nil)
			if _, verdict := code.Verdict(); !verdict {
				verifier = answering(alicaptcha.Result{}, &alicaptcha.Error{Code: code})
			}
			m, err := alicaptcha.New(alicaptcha.Config{Verifier: verifier, SceneID: "login", Logger: slog.New(log)})
			require.NoError(t, err)
			loud := func() (n int) {
				for _, level := range log.levels() {
					if level > slog.LevelInfo {
						n++
					}
				}
				return n
			}
			for range 100 {
				m.Check(loginRequest())
			}
			require.Equal(t, 1, loud())
			require.Len(t, log.levels(), 100, "the others are there, at info")
			time.Sleep(time.Minute)
			m.Check(loginRequest())
			require.Equal(t, 2, loud())
			require.Equal(t, 1, strings.Count(log.String(), "captcha.count=100"), "how many there were since the first")
			require.Equal(t, 2, strings.Count(log.String(), "captcha.description="))
		})
	}
}

// Whoever opens an operator's fault still hears of it.
func TestOpenedFaultIsStillLogged(t *testing.T) {
	t.Parallel()
	log := new(logbook)
	m, err := alicaptcha.New(alicaptcha.Config{
		Verifier: alicaptchatest.Failing(alicaptcha.Misconfigured), SceneID: "login", Logger: slog.New(log),
		Policy: alicaptcha.Policy{alicaptcha.Misconfigured: alicaptcha.AllowAtMost(rate.NewLimiter(0, 2))},
	})
	require.NoError(t, err)
	for range 4 {
		m.Check(loginRequest())
	}
	require.Equal(t, []slog.Level{
		slog.LevelError, slog.LevelWarn, // let through, of which no line is left out
		slog.LevelWarn, slog.LevelInfo, slog.LevelInfo, // the Limiter is exhausted, once, and the rejections
	}, log.levels())
	require.Contains(t, log.String(),
		"captcha: rejected, because the Policy's Limiter is exhausted captcha.code=misconfigured")
}

// outage returns a Middleware whose Verifier always fails and whose Policy asks l.
func outage(t *testing.T, l alicaptcha.Limiter, cfg alicaptcha.Config) *alicaptcha.Middleware {
	t.Helper()
	cfg.Verifier = answering(alicaptcha.Result{}, &alicaptcha.Error{Code: alicaptcha.ServiceUnavailable})
	cfg.Policy = alicaptcha.Policy{alicaptcha.ServiceUnavailable: alicaptcha.AllowAtMost(l)}
	return newMiddleware(t, cfg)
}

// A Limiter that hangs holds MaxConcurrent requests at most, for a second each, and
// the others get their rejection at once.
func TestLimiterThatHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var inside, most atomic.Int64
		release := make(chan struct{})
		log := new(logbook)
		m := outage(t, limiterFunc(func() bool {
			most.Store(max(most.Load(), inside.Add(1)))
			defer inside.Add(-1)
			<-release
			return true
		}), alicaptcha.Config{MaxConcurrent: 4, Logger: slog.New(log)})
		start := time.Now()
		var atOnce, later atomic.Int64
		var all sync.WaitGroup
		for range 300 {
			all.Go(func() {
				o := m.Check(loginRequest())
				require.False(t, o.Allowed)
				require.Equal(t, alicaptcha.DefaultPolicy()[o.Code], o.Action)
				if time.Since(start) == 0 {
					atOnce.Add(1)
				} else {
					later.Add(1)
					require.Equal(t, time.Second, time.Since(start))
				}
			})
		}
		all.Wait()
		require.EqualValues(t, 4, most.Load())
		require.EqualValues(t, 296, atOnce.Load())
		require.EqualValues(t, 4, later.Load())
		require.Equal(t, 1, strings.Count(log.String(), "a Limiter did not answer in time"), "once a minute")
		require.False(t, m.Check(loginRequest()).Allowed, "the places are still taken")
		require.EqualValues(t, 4, inside.Load())

		close(release)
		synctest.Wait()
		require.True(t, m.Check(loginRequest()).Allowed, "the places are given back")
	})
}

// A request that finds no place with the Limiters is told of in the log, before one of
// those that have a place gives up.
func TestLimiterWithoutAPlace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		held, release := context.WithCancel(t.Context())
		defer release()
		log := new(logbook)
		m := outage(t, limiterFunc(func() bool { <-held.Done(); return true }),
			alicaptcha.Config{MaxConcurrent: 1, Logger: slog.New(log)})
		go m.Check(loginRequest())
		synctest.Wait()
		require.NotContains(t, log.String(), "a Limiter did not answer in time")
		require.False(t, m.Check(loginRequest()).Allowed)
		require.Contains(t, log.String(), "a Limiter did not answer in time")
	})
}

// A Limiter that panics, or ends its goroutine, lets nobody in and keeps no place.
func TestLimiterThatPanics(t *testing.T) {
	t.Parallel()
	for name, l := range map[string]limiterFunc{
		"panic":  func() bool { panic("a text that must not be logged") },
		"abort":  func() bool { panic(http.ErrAbortHandler) },
		"Goexit": func() bool { runtime.Goexit(); return true },
	} {
		t.Run(name, func(t *testing.T) {
			log := new(logbook)
			m := outage(t, l, alicaptcha.Config{MaxConcurrent: 1, Logger: slog.New(log)})
			for range 5 {
				o := m.Check(loginRequest())
				require.False(t, o.Allowed)
				require.Equal(t, 503, o.Action.Status)
			}
			require.NotContains(t, log.String(), "must not be logged")
			require.NotContains(t, log.String(), "did not answer in time")
			require.Equal(t, name != "Goexit", strings.Contains(log.String(), "ERROR captcha: the Limiter panicked"))
			if name != "Goexit" {
				require.Equal(t, 1, strings.Count(log.String(), "captcha.stack"), "once a minute")
				require.Contains(t, log.String(), "outcome_test.go", "the stack")
			}
		})
	}
}

// A router's deadline that has passed does not keep a Limiter from being asked.
func TestLimiterAfterTheDeadline(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newMiddleware(t, alicaptcha.Config{
			Verifier: &spy{do: func(ctx context.Context, _ alicaptcha.Request) (alicaptcha.Result, error) {
				<-ctx.Done()
				return alicaptcha.Result{}, ctx.Err()
			}},
			Policy: alicaptcha.Policy{alicaptcha.ServiceTimeout: alicaptcha.AllowAtMost(limiterFunc(func() bool {
				time.Sleep(10 * time.Millisecond)
				return true
			}))},
		})
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		require.True(t, m.Check(loginRequest().WithContext(ctx)).Allowed)
	})
}

// What is the same for everybody is said once a minute, each matter by itself: none
// keeps another one quiet.
func TestLinesThatAreLimited(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log := new(logbook)
		var answer func(ctx context.Context) (alicaptcha.Result, error)
		hanging := limiterFunc(func() bool { time.Sleep(time.Second + 1); return true })
		m := newMiddleware(t, alicaptcha.Config{
			Verifier: alicaptcha.VerifierFunc(func(ctx context.Context, _ alicaptcha.Request) (alicaptcha.Result, error) {
				return answer(ctx)
			}),
			Policy: alicaptcha.Policy{alicaptcha.ServiceUnavailable: alicaptcha.AllowAtMost(hanging)},
			Logger: slog.New(log),
		})
		passes := func(context.Context) (alicaptcha.Result, error) { return alicaptcha.Result{Passed: true}, nil }
		fails := func(context.Context) (alicaptcha.Result, error) {
			return alicaptcha.Result{}, &alicaptcha.Error{Code: alicaptcha.ServiceUnavailable}
		}
		check := func() {
			ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
			defer cancel()
			m.Check(loginRequest().WithContext(ctx))
		}
		matters := []struct {
			line string
			do   func()
		}{
			{"WARN captcha: the request's own deadline leaves the call less time", func() { answer = passes; check() }},
			{"ERROR captcha: the Verifier panicked", func() {
				answer = func(context.Context) (alicaptcha.Result, error) { panic("x") }
				check()
			}},
			{"WARN captcha: a Limiter did not answer in time", func() { answer = fails; check() }},
		}
		for minute := range 3 {
			start := time.Now()
			for range 3 {
				for _, matter := range matters {
					matter.do()
				}
			}
			time.Sleep(30*time.Second - time.Since(start))
			for _, matter := range matters {
				matter.do()
				require.Equal(t, minute+1, strings.Count(log.String(), matter.line), matter.line)
			}
			time.Sleep(61*time.Second - time.Since(start)) // the Limiter's line came a second after the others
		}
	})
}
