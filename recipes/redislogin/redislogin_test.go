//go:build unix

package redislogin_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
	"github.com/alicaptcha/alicaptcha/recipes/redislogin"
)

// startRedis starts a Redis for the length of a test.
func startRedis(t *testing.T) (addr string, process *exec.Cmd) {
	t.Helper()
	_, err := exec.LookPath("redis-server")
	require.NoError(t, err, "in Debian: apt-get install redis-server")
	for range 10 { // another program may take the port in between
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		require.NoError(t, l.Close())
		port := l.Addr().(*net.TCPAddr).Port
		cmd := exec.Command("redis-server", "--port", strconv.Itoa(port), "--bind", "127.0.0.1", "--dir", t.TempDir(), "--save", "")
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if strings.Contains(lines.Text(), "Ready to accept connections") {
				go io.Copy(io.Discard, out)
				return l.Addr().String(), cmd
			}
		}
	}
	require.Fail(t, "no Redis started")
	return "", nil
}

// newReplica returns a login behind a captcha that each param passes.
func newReplica(t *testing.T, redisAddr string) http.Handler {
	captcha, err := alicaptcha.New(alicaptcha.Config{
		Verifier: alicaptchatest.Passing(), SceneID: "login", Logger: slog.New(slog.DiscardHandler),
	})
	require.NoError(t, err)
	login := redislogin.NewLogin(redisAddr, func(_ context.Context, username, password string) bool {
		return username == "alice" && password == "correct-horse"
	})
	return captcha.Deferred(login.WaitFor(500 * time.Millisecond))
}

// try returns the status of a login.
func try(h http.Handler, address, username, password, param string) int {
	body := fmt.Sprintf(`{"captchaVerifyParam":%q,"username":%q,"password":%q}`, param, username, password)
	r := httptest.NewRequest(http.MethodPost, "/login", strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	r.RemoteAddr = address + ":1234"
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if w.Code == http.StatusBadRequest && strings.Contains(w.Body.String(), "captcha_missing") {
		return askedFor
	}
	return w.Code
}

// askedFor is in the place of the status where a captcha is asked for.
const askedFor = -1

// free returns how many of 200 wrong guesses, on two replicas in turn, met no
// captcha. The formats get the number of the guess.
func free(t *testing.T, replicas []http.Handler, address, username string) (free int) {
	fill := func(format string, i int) string {
		if strings.Contains(format, "%") {
			return fmt.Sprintf(format, i)
		}
		return format
	}
	for i := range 200 {
		switch got := try(replicas[i%len(replicas)], fill(address, i), fill(username, i), "wrong", ""); got {
		case http.StatusUnauthorized:
			free++
		default:
			require.Equal(t, askedFor, got)
		}
	}
	return free
}

func TestCounts(t *testing.T) {
	for name, tc := range map[string]struct {
		address, username string
		want              int
	}{
		"one account, one address":        {"192.0.2.1", "alice", 3},
		"one account, many addresses":     {"192.0.2.%d", "alice", 3},
		"many accounts, one address":      {"192.0.2.1", "user%d", 10},
		"many accounts, one IPv6 network": {"[2001:db8:0:1::%x]", "user%d", 10},
		"many accounts, many addresses":   {"192.0.2.%d", "user%d", 100},
		"many IPv6 networks":              {"[2001:db8:0:%x::1]", "user%d", 100},
	} {
		t.Run(name, func(t *testing.T) {
			addr, _ := startRedis(t)
			replicas := []http.Handler{newReplica(t, addr), newReplica(t, addr)}
			require.Equal(t, tc.want, free(t, replicas, tc.address, tc.username))
			require.Zero(t, free(t, replicas, tc.address, tc.username))
		})
	}
}

// What is named alike is not counted as one.
func TestKeepsCountsApart(t *testing.T) {
	addr, _ := startRedis(t)
	replicas := []http.Handler{newReplica(t, addr)}
	for i, username := range []string{"192.0.2.1", "address:192.0.2.1", "site"} {
		require.Equal(t, 3, free(t, replicas, fmt.Sprintf("198.51.100.%d", i), username), username)
	}
	require.Equal(t, 10, free(t, replicas, "192.0.2.1", "user%d"))
	require.Equal(t, 3, free(t, replicas, "203.0.113.1", "203.0.113.1"))
}

// 100 guesses at once over two replicas: three of them go without a captcha.
func TestGuessesAtOnce(t *testing.T) {
	addr, _ := startRedis(t)
	urls := make([]string, 2)
	for i := range urls {
		s := httptest.NewServer(newReplica(t, addr))
		t.Cleanup(s.Close)
		urls[i] = s.URL
	}
	var wg sync.WaitGroup
	var free atomic.Int32
	for i := range 100 {
		wg.Go(func() {
			resp, err := http.Post(urls[i%2], "application/json", strings.NewReader(`{"username":"alice","password":"wrong"}`))
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			io.Copy(io.Discard, resp.Body)
			if resp.StatusCode == http.StatusUnauthorized {
				free.Add(1)
			}
		})
	}
	wg.Wait()
	t.Logf("%d without a captcha", free.Load())
	require.LessOrEqual(t, free.Load(), int32(3))
}

// Without Redis a captcha is asked for, and who passes it may log in.
func TestRedisDown(t *testing.T) {
	for name, signal := range map[string]syscall.Signal{"killed": syscall.SIGKILL, "stopped": syscall.SIGSTOP} {
		t.Run(name, func(t *testing.T) {
			addr, process := startRedis(t)
			login := newReplica(t, addr)
			require.Equal(t, http.StatusNoContent, try(login, "192.0.2.1", "alice", "correct-horse", ""))
			require.NoError(t, process.Process.Signal(signal))
			require.Equal(t, askedFor, try(login, "192.0.2.1", "alice", "correct-horse", ""))
			require.Equal(t, http.StatusNoContent, try(login, "192.0.2.1", "alice", "correct-horse", "a param"))
			require.Equal(t, http.StatusUnauthorized, try(login, "192.0.2.1", "alice", "wrong", "a param"))
			if signal == syscall.SIGSTOP {
				require.NoError(t, process.Process.Signal(syscall.SIGCONT))
				for try(login, "198.51.100.1", "bob", "wrong", "") != http.StatusUnauthorized {
				}
			}
		})
	}
}

// Logins that go well never need a captcha, and take from what others left no
// more than one.
func TestGivesBack(t *testing.T) {
	addr, _ := startRedis(t)
	login := newReplica(t, addr)
	for range 200 {
		require.Equal(t, http.StatusNoContent, try(login, "192.0.2.1", "alice", "correct-horse", ""))
	}
	replicas := []http.Handler{login}
	require.Equal(t, 2, free(t, replicas, "192.0.2.1", "alice"), "of the account")
	for range 20 { // needs a captcha now, and gives back no more than it took
		require.Equal(t, http.StatusNoContent, try(login, "192.0.2.1", "alice", "correct-horse", "a param"))
	}
	require.Equal(t, askedFor, try(login, "198.51.100.1", "alice", "wrong", ""))
	require.Equal(t, 7, free(t, replicas, "192.0.2.1", "user%d"), "of the address")
	require.Equal(t, 90, free(t, replicas, "203.0.113.%d", "someone%d"), "of the site")
}

// A flood on an account that needs a captcha takes nothing from others, and
// failures with a captcha count as those without.
func TestFlood(t *testing.T) {
	addr, _ := startRedis(t)
	replicas := []http.Handler{newReplica(t, addr), newReplica(t, addr)}
	for range 3 {
		require.Equal(t, http.StatusUnauthorized, try(replicas[0], "192.0.2.1", "alice", "wrong", "a param"))
	}
	require.Zero(t, free(t, replicas, "203.0.113.%d", "alice"))
	require.Zero(t, free(t, replicas, "192.0.2.1", "alice"))
	require.Equal(t, 7, free(t, replicas, "192.0.2.1", "user%d"))
	require.Equal(t, 90, free(t, replicas, "198.51.100.%d", "someone%d"))

	client := redis.NewClient(&redis.Options{Addr: addr})
	defer client.Close()
	names, err := client.Keys(t.Context(), "*").Result()
	require.NoError(t, err)
	for _, name := range names {
		require.LessOrEqual(t, len(name), 100)
		ttl, err := client.TTL(t.Context(), name).Result()
		require.NoError(t, err)
		require.Positive(t, ttl, "a key that stays for good")
	}
}
