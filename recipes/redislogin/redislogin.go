// Package redislogin is a login that asks for a captcha once there were too many
// failures, which all replicas count in one Redis.
package redislogin

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"time"

	"github.com/go-redis/redis_rate/v10"
	"github.com/redis/go-redis/v9"

	"github.com/alicaptcha/alicaptcha"
)

// These are the failures that need no captcha: Burst at once, and Rate in each
// Period. A count by account alone misses one password that is tried on many
// accounts, and a count by address misses many machines that try a few each.
var (
	accountFailures = redis_rate.Limit{Rate: 3, Burst: 3, Period: 30 * time.Minute}
	addressFailures = redis_rate.Limit{Rate: 10, Burst: 10, Period: 30 * time.Minute}
	siteFailures    = redis_rate.Limit{Rate: 100, Burst: 100, Period: 30 * time.Minute}
)

// A Login is the handler of a login. It stands behind Deferred of a Middleware.
type Login struct {
	failures *redis_rate.Limiter
	correct  func(ctx context.Context, username, password string) bool
	patience time.Duration // how long Redis is waited for
}

// NewLogin returns a Login that counts in the Redis at addr. Without
// ContextTimeoutEnabled a Redis that hangs would hold a login for many seconds.
func NewLogin(addr string, correct func(ctx context.Context, username, password string) bool) *Login {
	client := redis.NewClient(&redis.Options{
		Addr: addr, ContextTimeoutEnabled: true, MaxRetries: -1, DialerRetries: 1,
	})
	return &Login{redis_rate.NewLimiter(client), correct, 50 * time.Millisecond}
}

// ServeHTTP counts a login as failed before it looks at the password, so that of
// a hundred guesses at once no more than the smallest share go without a captcha.
func (l *Login) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var form struct{ Username, Password string }
	body := http.MaxBytesReader(w, r.Body, 64<<10)
	if err := json.NewDecoder(body).Decode(&form); err != nil || form.Username == "" {
		http.Error(w, "a username is required", http.StatusUnprocessableEntity)
		return
	}
	shares := sharesOf(form.Username, address(r))
	taken, ok := l.take(r.Context(), shares, false)
	if !ok {
		l.giveBack(r.Context(), taken) // there was no guess
		if !alicaptcha.Require(w, r) {
			return // the rejection is written
		}
		taken, _ = l.take(r.Context(), shares, true)
	}
	if !l.correct(r.Context(), form.Username, form.Password) {
		http.Error(w, "wrong username or password", http.StatusUnauthorized)
		return
	}
	l.giveBack(r.Context(), taken)
	w.WriteHeader(http.StatusNoContent)
}

// A share is what an account, an address or the site may have in failures.
type share struct {
	key   string
	limit redis_rate.Limit
}

// sharesOf returns the shares that a login is counted in. That of the site is the
// last: a flood on one account, or from one address, does not use it up. The keys
// are hashes, so that a long name takes no more memory than a short one. Where two
// spellings are one account, account has to be one of them.
func sharesOf(account, address string) []share {
	key := func(kind, value string) string { return fmt.Sprintf("login:%s:%x", kind, sha256.Sum256([]byte(value))) }
	return []share{
		{key("address", address), addressFailures},
		{key("account", account), accountFailures},
		{key("site", ""), siteFailures},
	}
}

// take takes a failure from each share, and reports whether each had one. If not,
// the login needs a captcha: also where Redis does not answer. After one that was
// passed, take does not end at the first share that is used up.
func (l *Login) take(ctx context.Context, shares []share, passed bool) (taken []share, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, l.patience)
	defer cancel()
	for _, s := range shares {
		res, err := l.failures.Allow(ctx, s.key, s.limit)
		if err == nil && res.Allowed == 1 {
			taken = append(taken, s)
		} else if !passed {
			return taken, false
		}
	}
	return taken, len(taken) == len(shares)
}

// giveBack gives back what a login took that did not fail: no more, since an
// attacker with an account could otherwise log in between guesses, and clear the
// count of the address. Of a share that nothing else was taken from, redis_rate
// gives nothing back; it becomes whole by itself.
func (l *Login) giveBack(ctx context.Context, taken []share) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.patience)
	defer cancel()
	for _, s := range taken {
		l.failures.AllowN(ctx, s.key, s.limit, -1) // if it fails, the login stays counted
	}
}

// address returns the address of the connection; of IPv6, where a client has many,
// the network. Behind a proxy it is the proxy's: take it there from a header that
// the proxy sets.
func address(r *http.Request) string {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	if addr := from.Addr().Unmap(); addr.Is4() {
		return addr.String()
	}
	network, _ := from.Addr().WithZone("").Prefix(64)
	return network.String()
}
