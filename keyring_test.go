package alicaptcha_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aliyun/credentials-go/credentials"
	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
)

// errKeySource is of another library and shows what it should not.
var errKeySource = errors.New("the STS endpoint answered client-secret-hunter2")

func TestKeyringCredentials(t *testing.T) {
	t.Setenv("ALIBABA_CLOUD_ACCESS_KEY_ID", "env-id")
	t.Setenv("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "env-secret")
	type keys struct{ id, secret, token string }
	env := keys{"env-id", "env-secret", ""}
	envSTS := keys{"env-id", "env-secret", "env-sts"}
	given := keys{keyID, keySecret, ""}
	givenSTS := keys{keyID, keySecret, stsToken}
	provider := func(k keys) credentials.Credential {
		config := new(credentials.Config).SetType("access_key").SetAccessKeyId(k.id).SetAccessKeySecret(k.secret)
		if k.token != "" {
			config.SetType("sts").SetSecurityToken(k.token)
		}
		credential, err := credentials.NewCredential(config)
		require.NoError(t, err)
		return credential
	}
	for name, tc := range map[string]struct {
		envToken string
		cfg      keys
		source   credentials.Credential
		want     keys
	}{
		"given":                       {cfg: given, want: given},
		"given with a token":          {cfg: givenSTS, want: givenSTS},
		"given, not the env's token":  {cfg: given, envToken: "env-sts", want: given},
		"environment":                 {want: env},
		"environment with a token":    {envToken: "env-sts", want: envSTS},
		"Credential":                  {source: provider(given), want: given},
		"Credential with a token":     {source: provider(givenSTS), want: givenSTS},
		"Credential over half a pair": {cfg: keys{id: "half"}, source: provider(given), want: given},
		"Credential of the smallest": {
			source: givingKeys(&credentials.CredentialModel{
				AccessKeyId: new(keyID), AccessKeySecret: new(keySecret),
			}, nil),
			want: given,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("ALIBABA_CLOUD_SECURITY_TOKEN", tc.envToken)
			sim := alicaptchatest.Start(t, alicaptchatest.Config{
				AccessKeyID: tc.want.id, AccessKeySecret: tc.want.secret, SecurityToken: tc.want.token,
			})
			cfg := sim.ClientConfig()
			cfg.AccessKeyID, cfg.AccessKeySecret, cfg.SecurityToken = tc.cfg.id, tc.cfg.secret, tc.cfg.token
			cfg.Credential = tc.source
			client := newClient(t, cfg)
			t.Setenv("ALIBABA_CLOUD_ACCESS_KEY_ID", "another") // asked once
			param, err := sim.Issue(alicaptchatest.Issue{SceneID: "login"})
			require.NoError(t, err)
			result, err := client.Verify(t.Context(), alicaptcha.Request{Param: param, SceneID: "login"})
			require.NoError(t, err)
			require.True(t, result.Passed)
			auth := sim.Calls()[0].Header.Get("Authorization")
			require.Equal(t, tc.want.token != "", strings.Contains(auth, "x-acs-security-token"))
			require.Equal(t, tc.want.token != "", strings.Contains(auth, "x-acs-accesskey-id"))
		})
	}
}

// keyRotation is a Credential whose n-th answer is the id "key-n", and a
// Client that tells which id signed.
type keyRotation struct {
	log     logbook
	mu      sync.Mutex
	asked   int
	at      int // how many ask now
	most    int
	before  func(n int) error // runs within each ask
	signers []string
	client  *alicaptcha.Client
}

func (c *keyRotation) source() *keySource {
	return &keySource{get: func() (*credentials.CredentialModel, error) {
		c.mu.Lock()
		c.asked++
		n := c.asked
		c.at++
		c.most = max(c.most, c.at)
		before := c.before
		c.mu.Unlock()
		defer func() {
			c.mu.Lock()
			c.at--
			c.mu.Unlock()
		}()
		if before != nil {
			if err := before(n); err != nil {
				return nil, err
			}
		}
		return keyModel(fmt.Sprintf("key-%d", n), keySecret, fmt.Sprintf("token-%d", n)), nil
	}}
}

func startRotation(t *testing.T, before func(n int) error) *keyRotation {
	c := &keyRotation{before: before}
	cfg := secretConfig(transportFunc(func(r *http.Request) (*http.Response, error) {
		_, rest, _ := strings.Cut(r.Header.Get("Authorization"), "Credential=")
		id, _, _ := strings.Cut(rest, ",")
		c.mu.Lock()
		c.signers = append(c.signers, id)
		c.mu.Unlock()
		return cannedTransport(200, passAnswer)(r)
	}))
	cfg.Credential, cfg.Logger = c.source(), slog.New(&c.log)
	c.client = newClient(t, cfg)
	t.Cleanup(func() { time.Sleep(time.Minute) }) // a question that is under way ends before the bubble does
	return c
}

// verify returns the id that signed a call.
func (c *keyRotation) verify(t *testing.T) string {
	t.Helper()
	_, err := c.client.Verify(context.Background(), alicaptcha.Request{Param: secretParam})
	require.NoError(t, err)
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.signers[len(c.signers)-1]
}

func (c *keyRotation) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.asked
}

func TestKeyringRotatesKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startRotation(t, nil)
		require.Equal(t, 1, c.count())
		for range 60 { // once in a minute, however many calls there are
			require.Equal(t, "key-1", c.verify(t))
			time.Sleep(time.Second)
		}
		synctest.Wait()
		require.Equal(t, 1, c.count())

		time.Sleep(time.Second)
		require.Equal(t, "key-1", c.verify(t), "the old keys serve while new ones are asked for")
		synctest.Wait()
		require.Equal(t, 2, c.count())
		require.Equal(t, "key-2", c.verify(t))
		require.Equal(t, 2, c.count())

		time.Sleep(150 * time.Second)
		require.Equal(t, "key-2", c.verify(t))
		synctest.Wait()
		require.Equal(t, "key-3", c.verify(t))

		time.Sleep(150*time.Second + 1) // idle for so long that the keys may have ended
		require.Equal(t, "key-4", c.verify(t), "the call waits for new keys")
		time.Sleep(24 * time.Hour)
		require.Equal(t, "key-5", c.verify(t))
		require.Equal(t, 5, c.count())
	})
}

// Keys are asked for again once they were last asked for more than a minute ago, and
// waited for once they came more than 150 s ago.
func TestKeyringRotatesKeysAtTheirAge(t *testing.T) {
	for _, row := range []struct {
		age   time.Duration // of the keys when a call needs them
		asked bool
		waits time.Duration
	}{
		{60 * time.Second, false, 0},
		{60*time.Second + 1, true, 0},
		{150 * time.Second, true, 0},
		{150*time.Second + 1, true, time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			c := startRotation(t, func(n int) error {
				if n > 1 {
					time.Sleep(time.Second)
				}
				return nil
			})
			time.Sleep(row.age)
			start := time.Now()
			id := c.verify(t)
			require.Equal(t, row.waits, time.Since(start), row.age)
			require.Equal(t, row.waits != 0, id == "key-2", row.age)
			synctest.Wait()
			require.Equal(t, row.asked, c.count() == 2, row.age)
			if !row.asked {
				return
			}

			time.Sleep(60*time.Second - time.Since(start)) // the keys came a second after they were asked for
			require.Equal(t, "key-2", c.verify(t))
			synctest.Wait()
			require.Equal(t, 2, c.count(), row.age)
			time.Sleep(time.Nanosecond)
			require.Equal(t, "key-2", c.verify(t))
			synctest.Wait()
			require.Equal(t, 3, c.count(), row.age)

			time.Sleep(time.Second) // until they are there
			for range 2 {
				time.Sleep(150 * time.Second)
				start = time.Now()
				require.Equal(t, fmt.Sprintf("key-%d", c.count()), c.verify(t))
				require.Zero(t, time.Since(start))
				time.Sleep(time.Second)
			}
		})
	}
}

// A source that has failed is not waited for, as long as its failure is not older
// than 150 s; one that is silent is waited for until it has had ten seconds.
func TestKeyringPatienceWithACredential(t *testing.T) {
	for age, waits := range map[time.Duration]bool{150 * time.Second: false, 150*time.Second + 1: true} {
		synctest.Test(t, func(t *testing.T) {
			c := startRotation(t, func(n int) error {
				switch n {
				case 1:
					return nil
				case 2:
					return errKeySource
				}
				time.Sleep(time.Second)
				return nil
			})
			time.Sleep(61 * time.Second)
			require.Equal(t, "key-1", c.verify(t))
			synctest.Wait()
			require.Equal(t, 2, c.count())
			time.Sleep(age)
			start := time.Now()
			require.Equal(t, map[bool]string{false: "key-1", true: "key-3"}[waits], c.verify(t), age)
			require.Equal(t, waits, time.Since(start) == time.Second, age)
			time.Sleep(time.Minute)
		})
	}
	for asked, overdue := range map[time.Duration]bool{10 * time.Second: false, 10*time.Second + 1: true} {
		synctest.Test(t, func(t *testing.T) {
			release := make(chan struct{})
			c := startRotation(t, func(n int) error {
				if n > 1 {
					<-release
				}
				return nil
			})
			time.Sleep(61 * time.Second)
			require.Equal(t, "key-1", c.verify(t))
			time.Sleep(asked)
			require.Equal(t, "key-1", c.verify(t))
			require.Equal(t, overdue, c.log.String() != "", asked)
			close(release)
			synctest.Wait()
		})
	}
}

// Nobody waits for a slow source while the old keys serve.
func TestKeyringSlowCredential(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startRotation(t, func(n int) error {
			if n > 1 {
				time.Sleep(3 * time.Second)
			}
			return nil
		})
		time.Sleep(61 * time.Second)
		start := time.Now()
		require.Equal(t, "key-1", c.verify(t))
		require.Zero(t, time.Since(start), "nobody waits while the old keys serve")
		time.Sleep(3 * time.Second)
		synctest.Wait()
		require.Equal(t, "key-2", c.verify(t))

		time.Sleep(time.Hour)
		start = time.Now()
		require.Equal(t, "key-3", c.verify(t))
		require.Equal(t, 3*time.Second, time.Since(start))
	})
}

// After a failure nobody waits for the next one.
func TestKeyringCredentialThatFailsSlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startRotation(t, func(n int) error {
			if n == 1 {
				return nil
			}
			time.Sleep(3 * time.Second)
			return errKeySource
		})
		for range 10 {
			time.Sleep(61 * time.Second)
			start := time.Now()
			require.Equal(t, "key-1", c.verify(t))
			require.Zero(t, time.Since(start))
		}
		synctest.Wait()
		require.Equal(t, 11, c.count())

		// But what it said long ago says nothing of now.
		time.Sleep(time.Hour)
		start := time.Now()
		require.Equal(t, "key-1", c.verify(t))
		require.Equal(t, 3*time.Second, time.Since(start))
	})
}

// A failure before a quiet time does not have the next login signed with keys
// that have ended meanwhile.
func TestKeyringCredentialThatFailedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startRotation(t, func(n int) error {
			if n == 2 {
				return errKeySource
			}
			time.Sleep(time.Second)
			return nil
		})
		time.Sleep(61 * time.Second)
		require.Equal(t, "key-1", c.verify(t))
		synctest.Wait()
		time.Sleep(6 * time.Hour)
		var logins sync.WaitGroup
		for range 5 { // not only the first that asks
			logins.Go(func() { c.client.Verify(t.Context(), alicaptcha.Request{Param: secretParam}) })
		}
		logins.Wait()
		require.Equal(t, []string{"key-1", "key-3", "key-3", "key-3", "key-3", "key-3"}, c.signers)
		require.Equal(t, 3, c.count())
		require.Contains(t, c.log.String(), "provides keys again")
	})
}

func TestKeyringHangingCredential(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		held, release := context.WithCancel(t.Context())
		c := startRotation(t, func(n int) error {
			if n > 1 {
				<-held.Done()
			}
			return nil
		})
		time.Sleep(61 * time.Second)
		for range 80 { // as long as the old keys are good for certain
			require.Equal(t, "key-1", c.verify(t))
			time.Sleep(time.Second)
		}
		require.Equal(t, 2, c.count(), "one question at a time")

		// A source that hangs stalls nobody: the service may still take the old keys.
		time.Sleep(time.Hour)
		start := time.Now()
		require.Equal(t, "key-1", c.verify(t))
		require.Zero(t, time.Since(start))
		require.Equal(t, 2, c.count())

		release()
		synctest.Wait()
		require.Equal(t, "key-2", c.verify(t))
	})
}

// After a quiet time the keys may have ended, so a call waits for new ones. A source that
// hangs leaves it time for the service, which may still take the old ones.
func TestKeyringWaitsForKeysThatMayHaveEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		held, release := context.WithCancel(t.Context())
		c := startRotation(t, func(n int) error {
			if n > 1 {
				<-held.Done()
			}
			return nil
		})
		time.Sleep(time.Hour)
		start := time.Now()
		within := func(d time.Duration) error {
			ctx, cancel := context.WithTimeout(context.Background(), d)
			defer cancel()
			_, err := c.client.Verify(ctx, alicaptcha.Request{Param: secretParam})
			return err
		}
		require.NoError(t, within(500*time.Millisecond))
		require.Equal(t, 250*time.Millisecond, time.Since(start), "half of a short time")
		require.NoError(t, within(2500*time.Millisecond))
		require.Equal(t, 1750*time.Millisecond, time.Since(start), "a second is left for the service")

		ctx, cancel := context.WithCancel(context.Background())
		time.AfterFunc(250*time.Millisecond, cancel)
		result, err := c.client.Verify(ctx, alicaptcha.Request{Param: secretParam})
		require.Equal(t, alicaptcha.ClientCanceled, requireFault(t, result, err).Code)
		require.Equal(t, 2*time.Second, time.Since(start))

		require.Equal(t, "key-1", c.verify(t))
		require.Equal(t, 4*time.Second, time.Since(start))
		require.Equal(t, "key-1", c.verify(t))
		require.Equal(t, 4*time.Second, time.Since(start), "the source has had its time")
		require.Equal(t, 2, c.count())
		release()
	})
}

func TestKeyringCredentialThatFails(t *testing.T) {
	for name, fail := range map[string]func() error{
		"error":     func() error { return errKeySource },
		"panic":     func() error { panic(errKeySource) },
		"nil panic": func() error { panic(nil) },
		"exit":      func() error { runtime.Goexit(); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var failing atomic.Bool
				c := startRotation(t, func(int) error {
					if failing.Load() {
						return fail()
					}
					return nil
				})
				failing.Store(true)
				time.Sleep(61 * time.Second)
				require.Equal(t, "key-1", c.verify(t))
				synctest.Wait()
				require.Equal(t, 2, c.count())
				for range 600 {
					require.Equal(t, "key-1", c.verify(t))
					time.Sleep(100 * time.Millisecond)
				}
				synctest.Wait()
				asked := c.count() - 2 // in 60 s, every 2 to 5 s
				require.GreaterOrEqual(t, asked, 11)
				require.LessOrEqual(t, asked, 30)

				asked = c.count()
				time.Sleep(time.Hour) // idle: the old keys are all there is
				require.Equal(t, "key-1", c.verify(t))
				synctest.Wait()
				require.Equal(t, asked+1, c.count())

				failing.Store(false)
				recovered := time.Now()
				for c.verify(t) == "key-1" {
					time.Sleep(100 * time.Millisecond)
					synctest.Wait()
				}
				require.LessOrEqual(t, time.Since(recovered), 5200*time.Millisecond)
			})
		})
	}
	t.Run("keys that are no pair", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			n := 0
			var used string
			cfg := secretConfig(transportFunc(func(r *http.Request) (*http.Response, error) {
				used = r.Header.Get("Authorization")
				return cannedTransport(200, passAnswer)(r)
			}))
			cfg.Credential = &keySource{get: func() (*credentials.CredentialModel, error) {
				if n++; n == 1 {
					return keyModel("key-1", keySecret, ""), nil
				}
				return []*credentials.CredentialModel{nil, {}, keyModel("", "", ""), keyModel("key-2", "", "")}[n%4], nil
			}}
			cfg.Logger = slog.New(slog.DiscardHandler)
			client := newClient(t, cfg)
			for range 6 {
				time.Sleep(10 * time.Minute)
				_, err := client.Verify(context.Background(), alicaptcha.Request{Param: secretParam})
				require.NoError(t, err)
				require.Contains(t, used, "Credential=key-1,")
				synctest.Wait()
			}
			require.Equal(t, 7, n)
		})
	})
}

// A renewal that fails is told to the operator, and not for each call.
func TestKeyringLogsCredentialThatFails(t *testing.T) {
	for name, tc := range map[string]struct {
		fail func() error
		want string
	}{
		"error": {func() error { return fmt.Errorf("x: %w", errKeySource) }, "the Credential failed: a *fmt.wrapError"},
		"panic": {func() error { panic(errKeySource) }, "the Credential panicked with a *errors.errorString"},
		"exit":  {func() error { runtime.Goexit(); return nil }, "the Credential ended its goroutine"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var failing atomic.Bool
				c := startRotation(t, func(int) error {
					if failing.Load() {
						return tc.fail()
					}
					return nil
				})
				calls := func(d time.Duration) {
					for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(time.Second) {
						c.verify(t)
					}
					synctest.Wait()
				}
				calls(10 * time.Minute)
				require.Empty(t, c.log.String(), "what works is not worth a line")

				failing.Store(true)
				calls(10 * time.Minute)
				lines := strings.SplitAfter(c.log.String(), "\n")
				require.Len(t, lines, 11, c.log.String()) // one a minute; the last is empty
				for _, line := range lines[:10] {
					require.Equal(t, "ERROR captcha: the Credential provided no new keys; the old keys stay in use until they expire "+
						"captcha.error=alicaptcha: misconfigured: "+tc.want+"\n", line)
				}
				for i, r := range c.log.records[1:] {
					require.GreaterOrEqual(t, r.Time.Sub(c.log.records[i].Time), time.Minute)
				}
				requireRedacted(t, c.log.String())

				failing.Store(false)
				c.log.records = nil
				calls(10 * time.Minute)
				require.Equal(t, "INFO captcha: the Credential provides keys again\n", c.log.String())
			})
		})
	}
}

// Failures that follow one another faster than a minute share a line.
func TestKeyringLogsAtMostOncePerMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startRotation(t, func(n int) error {
			switch n {
			case 1:
				return nil
			case 2:
				time.Sleep(9 * time.Second)
			}
			return errKeySource
		})
		for range 3 {
			time.Sleep(61 * time.Second)
			c.verify(t)
		}
		synctest.Wait()
		require.Equal(t, 4, c.count())
		require.Len(t, c.log.records, 2, c.log.String()) // after 70 s and 183 s, not after 122 s
	})
}

func TestKeyringLogsHangingCredential(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		held, release := context.WithCancel(t.Context())
		c := startRotation(t, func(n int) error {
			if n > 1 {
				<-held.Done()
			}
			return nil
		})
		time.Sleep(61 * time.Second)
		for range 10 {
			c.verify(t)
			time.Sleep(time.Second)
		}
		require.Equal(t, "key-1", c.verify(t))
		require.Empty(t, c.log.String(), "it has ten seconds")
		for range 120 {
			time.Sleep(time.Second)
			require.Equal(t, "key-1", c.verify(t))
		}
		line := "ERROR captcha: the Credential provided no new keys; the old keys stay in use until they expire " +
			"captcha.error=alicaptcha: misconfigured: the Credential does not answer\n"
		require.Equal(t, line+line, c.log.String())

		release()
		synctest.Wait()
		require.Equal(t, line+line+"INFO captcha: the Credential provides keys again\n", c.log.String())
		require.Equal(t, "key-2", c.verify(t))
	})
}

func TestKeyringLogsToTheDefault(t *testing.T) {
	log := quietDefault(t)
	synctest.Test(t, func(t *testing.T) {
		n := 0
		cfg := secretConfig(cannedTransport(200, passAnswer))
		cfg.Credential = &keySource{get: func() (*credentials.CredentialModel, error) {
			if n++; n > 1 {
				return nil, errKeySource
			}
			return keyModel(keyID, keySecret, ""), nil
		}}
		client := newClient(t, cfg)
		time.Sleep(61 * time.Second)
		_, err := client.Verify(context.Background(), alicaptcha.Request{Param: secretParam})
		require.NoError(t, err)
		synctest.Wait()
	})
	require.Equal(t, []slog.Level{slog.LevelError}, log.levels())
}

// What credentials-go gives for a session of 900 s, the shortest there is: with
// a call every few seconds the keys are always good, and no call waits for them
// although the source takes seconds. Time is the bubble's, but for the source's
// HTTP server, which stands outside; the service's key check is the simulator's.
func TestKeyringRotatesSessionKeys(t *testing.T) {
	const life = 900 * time.Second
	var mu sync.Mutex
	var ends []time.Time // of each session so far, by the bubble's clock
	var now time.Time
	source := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		ends = append(ends, now.Add(life))
		n := len(ends)
		fmt.Fprintf(w, `{"AccessKeyId":"STS.%d","AccessKeySecret":"secret-%d","SecurityToken":"token-%d","Expiration":%q}`,
			n, n, n, now.Add(life).UTC().Format("2006-01-02T15:04:05Z"))
	}))
	defer source.Close()
	source.Config.SetKeepAlivesEnabled(false) // time stands while a connection is open
	uri, err := credentials.NewCredential(&credentials.Config{Type: new("credentials_uri"), Url: &source.URL})
	require.NoError(t, err)

	synctest.Test(t, func(t *testing.T) {
		slow := false
		var renewals []time.Duration // what was left of the session before, when another began
		cfg := secretConfig(transportFunc(func(r *http.Request) (*http.Response, error) {
			_, rest, _ := strings.Cut(r.Header.Get("Authorization"), "Credential=STS.")
			id, _, _ := strings.Cut(rest, ",")
			n, err := strconv.Atoi(id)
			if err != nil {
				return nil, err
			}
			mu.Lock()
			ended := !time.Now().Before(ends[n-1])
			mu.Unlock()
			w := httptest.NewRecorder()
			if ended {
				io.WriteString(w, `{"Code":"InvalidSecurityToken.Expired"}`)
				return w.Result(), nil
			}
			sim := alicaptchatest.NewSimulator(alicaptchatest.Config{
				AccessKeyID: "STS." + id, AccessKeySecret: "secret-" + id, SecurityToken: "token-" + id,
			})
			call := httptest.NewRequest(r.Method, r.URL.String(), r.Body)
			for name, values := range r.Header { // as the wire would have them
				call.Header[http.CanonicalHeaderKey(name)] = values
			}
			sim.ServeHTTP(w, call)
			return w.Result(), nil
		}))
		log := new(logbook)
		cfg.Logger = slog.New(log)
		cfg.Credential = &keySource{get: func() (*credentials.CredentialModel, error) {
			if slow {
				time.Sleep(5 * time.Second)
			}
			mu.Lock()
			now = time.Now()
			before := len(ends)
			mu.Unlock()
			model, err := uri.GetCredential()
			mu.Lock()
			defer mu.Unlock()
			if before > 0 && len(ends) > before {
				renewals = append(renewals, ends[before-1].Sub(now))
			}
			return model, err
		}}
		client := newClient(t, cfg)
		slow = true
		for end := time.Now().Add(2 * time.Hour); time.Now().Before(end); time.Sleep(7 * time.Second) {
			start := time.Now()
			result, err := client.Verify(context.Background(), alicaptcha.Request{Param: "junk", SceneID: "login"})
			require.NoError(t, err)
			require.Equal(t, alicaptcha.F003, result.Code, "signed as the simulator wants it")
			require.Zero(t, time.Since(start))
		}
		time.Sleep(time.Minute) // the last question has its answer
		require.Len(t, renewals, 9)
		for _, left := range renewals {
			require.Less(t, left, 3*time.Minute+time.Second)
			require.Greater(t, left, 100*time.Second)
		}
		require.Empty(t, log.String())
	})
}

func TestKeyringAsksForKeysOneAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startRotation(t, func(int) error { time.Sleep(time.Second); return nil })
		for range 5 {
			time.Sleep(time.Hour)
			var wg sync.WaitGroup
			for range 200 {
				wg.Go(func() { c.client.Verify(context.Background(), alicaptcha.Request{Param: secretParam}) })
			}
			wg.Wait()
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		require.Equal(t, 1, c.most)
		require.Equal(t, 6, c.asked)
		ids := map[string]int{}
		for _, id := range c.signers {
			ids[id]++
		}
		require.Equal(t, map[string]int{
			"key-2": 200, "key-3": 200, "key-4": 200, "key-5": 200, "key-6": 200,
		}, maps.Clone(ids))
	})
}
