// Package bcryptlogin is a login that hashes the password while the captcha is being
// verified, so that a person waits for the longer of the two and not for their sum.
package bcryptlogin

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"net/http"

	"golang.org/x/crypto/bcrypt"

	"github.com/alicaptcha/alicaptcha"
)

// maxPassword is the number of bytes after which bcrypt ignores the rest.
const maxPassword = 72

// A Login is the handler of a login. It stands behind Deferred of a Middleware.
type Login struct {
	allow   func(*http.Request) bool
	hashOf  func(ctx context.Context, username string) ([]byte, error)
	compare func(hash, password []byte) error
	nobody  []byte // the hash of a password that nobody knows
}

// NewLogin returns a Login. The function allow is the rate limit; since a hash is
// computed for every request that it allows, it bounds the processor time that a flood
// can cost. The function hashOf returns the hash of an account's password, which has
// the given cost, or nil if there is no such account.
func NewLogin(
	cost int, allow func(*http.Request) bool, hashOf func(ctx context.Context, username string) ([]byte, error),
) (*Login, error) {
	nobody, err := bcrypt.GenerateFromPassword([]byte(rand.Text()), cost)
	if err != nil {
		return nil, err
	}
	return &Login{allow, hashOf, bcrypt.CompareHashAndPassword, nobody}, nil
}

// ServeHTTP makes all cheap checks before Begin, which spends the param. From there to
// Require it writes no answer: whoever fails the captcha must not learn whether the
// password was right.
func (l *Login) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var form struct{ Username, Password string }
	body := http.MaxBytesReader(w, r.Body, 64<<10)
	if err := json.NewDecoder(body).Decode(&form); err != nil ||
		form.Username == "" || form.Password == "" || len(form.Password) > maxPassword {
		http.Error(w, "a username and a password of up to 72 bytes are required", http.StatusUnprocessableEntity)
		return
	}
	if !l.allow(r) {
		http.Error(w, "too many attempts", http.StatusTooManyRequests)
		return
	}

	alicaptcha.Begin(r.Context())
	correct, err := l.correct(r.Context(), form.Username, form.Password)
	if !alicaptcha.Require(w, r) {
		return // the rejection is written
	}
	switch {
	case err != nil:
		http.Error(w, "try again later", http.StatusInternalServerError)
	case !correct:
		http.Error(w, "wrong username or password", http.StatusUnauthorized)
	default:
		w.WriteHeader(http.StatusNoContent)
	}
}

// correct compares a hash also where there is no such account. Otherwise the time of the
// answer would tell which accounts there are.
func (l *Login) correct(ctx context.Context, username, password string) (bool, error) {
	hash, err := l.hashOf(ctx, username)
	if err != nil {
		return false, err
	}
	exists := hash != nil
	if !exists {
		hash = l.nobody
	}
	matches := l.compare(hash, []byte(password)) == nil
	return exists && matches, nil
}
