package bcryptlogin_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/bcrypt"
	"golang.org/x/time/rate"

	"github.com/alicaptcha/alicaptcha/alicaptchatest"
	"github.com/alicaptcha/alicaptcha/recipes/bcryptlogin"
	"github.com/alicaptcha/alicaptcha/recipes/internal/gatetest"
)

const password = "correct-horse"

// A site has one account, alice's.
type site struct {
	*gatetest.Service
	http.Handler
	limiter  *rate.Limiter
	hash     []byte
	compared [][]byte
	hashing  func() // called before a hash is computed
}

func newSite(t *testing.T) *site {
	s := &site{Service: gatetest.Start(t), limiter: rate.NewLimiter(rate.Inf, 0), hashing: func() {}}
	var err error
	s.hash, err = bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	require.NoError(t, err)
	login, err := bcryptlogin.NewLogin(bcrypt.MinCost,
		func(*http.Request) bool { return s.limiter.Allow() },
		func(_ context.Context, username string) ([]byte, error) {
			switch username {
			case "alice":
				return s.hash, nil
			case "broken":
				return nil, errors.New("the database is down")
			}
			return nil, nil
		})
	require.NoError(t, err)
	login.Compared(func(hash []byte) {
		s.hashing()
		s.compared = append(s.compared, hash)
	})
	s.Handler = s.Gate(t).Deferred(login)
	return s
}

func (s *site) try(t *testing.T, username, password, param string) gatetest.Answer {
	form := map[string]string{"username": username, "password": password, "captchaVerifyParam": param}
	body, err := json.Marshal(form)
	require.NoError(t, err)
	return gatetest.Send(t, s, "POST", "/login", "application/json", string(body))
}

func TestLogin(t *testing.T) {
	s := newSite(t)
	for _, row := range []struct {
		username, password string
		status             int
	}{
		{"alice", password, 204}, {"alice", "wrong", 401}, {"bob", password, 401}, {"broken", password, 500},
	} {
		require.Equal(t, row.status, s.try(t, row.username, row.password, s.Param(t)).Status, row)

		// Without the captcha all of them get the same answer.
		for _, param := range []string{"junk", ""} {
			reason := map[string]string{"junk": "captcha_invalid", "": "captcha_missing"}[param]
			gatetest.RequireRejected(t, s.try(t, row.username, row.password, param), 400, reason)
		}
	}
	require.False(t, strings.Contains(s.try(t, "alice", password, s.Param(t)).Body, "wrong"))
	alicaptchatest.AssertProtected(t, withBody(s), "POST /login")
}

// withBody replaces the empty body of AssertProtected by one that is valid.
func withBody(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		inner, _ := http.NewRequestWithContext(r.Context(), r.Method, r.URL.String(),
			strings.NewReader(`{"username":"alice","password":"x"}`))
		inner.Header.Set("Content-Type", "application/json")
		h.ServeHTTP(w, inner)
	})
}

// Cheap checks and the rate limit spend no param and no hash.
func TestCheapChecksFirst(t *testing.T) {
	s := newSite(t)
	param := s.Param(t)
	require.Equal(t, 422, s.try(t, "", password, param).Status)
	require.Equal(t, 422, s.try(t, "alice", "", param).Status)
	require.Equal(t, 422, s.try(t, "alice", strings.Repeat("x", 73), param).Status)
	s.limiter.SetLimit(0)
	require.Equal(t, 429, s.try(t, "alice", password, param).Status)
	require.Zero(t, s.Count())
	require.Empty(t, s.compared)
	s.limiter.SetLimit(rate.Inf)
	require.Equal(t, 204, s.try(t, "alice", password, param).Status)
}

// The service is asked before the hash is computed, and not after it.
func TestHashesMeanwhile(t *testing.T) {
	s := newSite(t)
	s.hashing = func() {
		select {
		case <-s.Asked:
		case <-time.After(20 * time.Second):
			t.Error("the verification has not begun")
		}
	}
	require.Equal(t, 204, s.try(t, "alice", password, s.Param(t)).Status)
}

// For an account that does not exist a hash of the same cost is compared.
func TestUnknownAccountCostsTheSame(t *testing.T) {
	s := newSite(t)
	s.try(t, "bob", password, s.Param(t))
	s.try(t, "alice", password, s.Param(t))
	require.Len(t, s.compared, 2)
	require.NotEqual(t, s.hash, s.compared[0])
	cost, err := bcrypt.Cost(s.compared[0])
	require.NoError(t, err)
	require.Equal(t, bcrypt.MinCost, cost)

	_, err = bcryptlogin.NewLogin(bcrypt.MaxCost+1, nil, nil)
	require.Error(t, err)
}
