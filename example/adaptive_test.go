package main

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
	"github.com/stretchr/testify/require"
)

// adaptiveLogin is the adaptive login without a limit on requests. Its captcha accepts
// every param.
type adaptiveLogin struct {
	*adaptive
	http.Handler
}

func newAdaptiveLogin(t *testing.T) adaptiveLogin {
	captcha, err := alicaptcha.New(alicaptcha.Config{
		Verifier: alicaptchatest.Passing(), SceneID: "login", Logger: slog.New(slog.DiscardHandler),
	})
	require.NoError(t, err)
	a := newAdaptive()
	return adaptiveLogin{a, captcha.Deferred(http.HandlerFunc(a.handle))}
}

// try returns the status of a login.
func (l adaptiveLogin) try(address, username, password, param string) int {
	body := fmt.Sprintf(`{"captchaVerifyParam":%q,"username":%q,"password":%q}`, param, username, password)
	r := httptest.NewRequest(http.MethodPost, "/adaptive", strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	r.RemoteAddr = address + ":1234"
	w := httptest.NewRecorder()
	l.ServeHTTP(w, r)
	return w.Code
}

// free makes n wrong guesses and returns how many needed no captcha. The number of the
// guess is inserted into the address and the username, if they have a verb.
func (l adaptiveLogin) free(n int, address, username string) (free int) {
	fill := func(format string, i int) string {
		if strings.Contains(format, "%") {
			return fmt.Sprintf(format, i)
		}
		return format
	}
	for i := range n {
		if l.try(fill(address, i), fill(username, i), "wrong", "") == http.StatusUnauthorized {
			free++
		}
	}
	return free
}

// The captcha cannot be avoided by one guess for each account. This tests the site as
// it is served.
func TestAdaptiveCountsByAddress(t *testing.T) {
	p := start(t, nil)
	for i := range postsAMinute {
		got := p.adaptive(t, fmt.Sprintf("user%d", i), "wrong", "")
		if i < 10 {
			require.Equal(t, http.StatusUnauthorized, got.status, got.body)
		} else {
			requireRejected(t, got, http.StatusBadRequest, "captcha_missing")
		}
	}
}

func TestAdaptiveCounts(t *testing.T) {
	for name, tc := range map[string]struct {
		address, username string
		want              int
	}{
		"one account, one address":        {"192.0.2.1", "alice", 3},
		"one account, many addresses":     {"192.0.2.%d", "alice", 3},
		"many accounts, one address":      {"192.0.2.1", "user%d", 10},
		"many accounts, one IPv6 network": {"[2001:db8:0:1::%x]", "user%d", 10},
		"many accounts, many addresses":   {"192.0.2.%d", "user%d", 100},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newAdaptiveLogin(t)
				require.Equal(t, tc.want, l.free(200, tc.address, tc.username))
				time.Sleep(failureWindow)
				require.Zero(t, l.free(200, tc.address, tc.username))
				time.Sleep(2 * failureWindow)
				require.Equal(t, tc.want, l.free(200, tc.address, tc.username))
			})
		})
	}
}

// An account and an address with the same name are counted separately.
func TestAdaptiveKeepsItsCountsApart(t *testing.T) {
	l := newAdaptiveLogin(t)
	// Accounts that are named like the address, its key, and the site.
	for i, username := range []string{"192.0.2.1", "address:192.0.2.1", "site:", "site", ""} {
		require.Equal(t, 3, l.free(5, fmt.Sprintf("198.51.100.%d", i), username), username)
	}
	require.Equal(t, 10, l.free(20, "192.0.2.1", "user%d"))
	require.Equal(t, 3, l.free(5, "203.0.113.1", "203.0.113.1"))
}

// A successful login changes none of the counts, with a captcha or without.
func TestAdaptiveTakesBack(t *testing.T) {
	l := newAdaptiveLogin(t)
	for _, param := range []string{"", "a param"} {
		for range 300 {
			require.Equal(t, http.StatusOK, l.try("192.0.2.1", "alice", "correct-horse", param))
		}
	}
	require.Equal(t, 3, l.free(5, "192.0.2.1", "alice"), "of the account")
	for range 20 { // they need a captcha now, and take back only themselves
		require.Equal(t, http.StatusOK, l.try("192.0.2.1", "alice", "correct-horse", "a param"))
	}
	require.Zero(t, l.free(1, "198.51.100.1", "alice"))
	require.Equal(t, 7, l.free(20, "192.0.2.1", "user%d"), "of the address")
	require.Equal(t, 90, l.free(200, "203.0.113.%d", "someone%d"), "of the site")
}

// Failures with a captcha are counted as well, so that solving one captcha does not
// allow guesses without one.
func TestAdaptiveCountsFailuresWithACaptcha(t *testing.T) {
	l := newAdaptiveLogin(t)
	require.Equal(t, 10, l.free(20, "192.0.2.1", "user%d"))
	for range 3 {
		require.Equal(t, http.StatusUnauthorized, l.try("192.0.2.1", "alice", "wrong", "a param"))
	}
	require.Zero(t, l.free(1, "198.51.100.1", "alice"))
}

// The count cannot be avoided by simultaneous guesses for many accounts.
func TestAdaptiveManyAccountsAtOnce(t *testing.T) {
	l := newAdaptiveLogin(t)
	var wg sync.WaitGroup
	var free atomic.Int32
	for i := range 100 {
		wg.Go(func() {
			if l.try("192.0.2.1", fmt.Sprintf("user%d", i), "wrong", "") == http.StatusUnauthorized {
				free.Add(1)
			}
		})
	}
	wg.Wait()
	require.Equal(t, int32(10), free.Load())
}

// Memory is bounded in a flood of invented names from many addresses, with a captcha
// and without. Counts that no longer matter are removed.
func TestAdaptiveMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newAdaptiveLogin(t)
		l.free(1000, "[2001:db8:%x::1]", "without%d")
		require.Len(t, l.now, 2*siteFailures+1)
		time.Sleep(failureWindow)
		for i := range 1000 {
			status := l.try(fmt.Sprintf("[2001:db8:%x::1]", i), fmt.Sprintf("with%d", i), "wrong", "a param")
			require.Equal(t, http.StatusUnauthorized, status)
		}
		require.Len(t, l.now, 2*siteFailures+1)
		require.Len(t, l.before, 2*siteFailures+1)
		time.Sleep(2 * failureWindow)
		require.Equal(t, http.StatusOK, l.try("192.0.2.1", "alice", "correct-horse", ""))
		require.Empty(t, l.now)
		require.Empty(t, l.before)
	})
}

// A login that was not counted because the share of the site was used up takes back
// nothing.
func TestAdaptiveTakesBackOnlyWhatItCounted(t *testing.T) {
	l := newAdaptiveLogin(t)
	require.Equal(t, siteFailures, l.free(200, "203.0.113.%d", "user%d"))
	for range 10 {
		require.Equal(t, http.StatusOK, l.try("203.0.113.1", "alice", "correct-horse", "a param"))
	}
	require.Zero(t, l.free(10, "203.0.113.%d", "another%d"))
}
