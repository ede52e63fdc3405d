package main

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/alicaptcha/alicaptcha"
)

// A checking is a way to verify a param and to check a password.
type checking struct {
	name string
	wrap func(gate *alicaptcha.Middleware, check func() bool) http.Handler
}

const (
	beginName = "Begin"
	hashName  = "ungated"
	aloneName = "gate alone"
)

var checkings = []checking{
	{"gate first", func(gate *alicaptcha.Middleware, check func() bool) http.Handler { return gate.Handler(answers(check)) }},
	{beginName, func(gate *alicaptcha.Middleware, check func() bool) http.Handler {
		return gate.Deferred(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			alicaptcha.Begin(r.Context())
			ok := check()
			if alicaptcha.Require(w, r) {
				answers(func() bool { return ok }).ServeHTTP(w, r)
			}
		}))
	}},
	{hashName, func(_ *alicaptcha.Middleware, check func() bool) http.Handler { return answers(check) }},
	{aloneName, func(gate *alicaptcha.Middleware, _ func() bool) http.Handler { return gate.Handler(enters) }},
}

// answers returns a handler that answers 401 if check fails.
func answers(check func() bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if !check() {
			w.WriteHeader(http.StatusUnauthorized)
		}
	})
}

// hashing measures logins with a password one after the other, since a hash takes a core.
func (b *bench) hashing() error {
	const delay = 50 * time.Millisecond
	rounds, costs := b.few(9, 1), []int{10, 12}
	if b.short {
		costs = []int{4, 5}
	}
	service, err := newService(serviceConfig{tls: true, version: tls.VersionTLS13})
	if err != nil {
		return err
	}
	defer service.close()
	far, err := newLink(service.Listener.Addr().String(), delay)
	if err != nil {
		return err
	}
	defer far.close()
	gate := func() (*alicaptcha.Middleware, error) {
		client, err := ours(far.url(), nil)
		if err != nil {
			return nil, err
		}
		return alicaptcha.New(alicaptcha.Config{Verifier: client, SceneID: scene, Logger: slog.New(slog.DiscardHandler)})
	}
	b.print("The same for a login that checks a password with bcrypt: behind the gate, after Begin and before Require, "+
		"and without a gate. “%s” is the verification without the hash. The link is the same, with TLS 1.3, and the "+
		"connection is kept or the first one. The longer is that of the hash and of the verification, measured "+
		"by themselves. Medians of %d logins.\n\n"+
		"| bcrypt | connection | login | time | ÷ the longer | ÷ the sum |\n|--:|---|---|--:|--:|--:|\n", aloneName, rounds)

	worst := 0.0
	for _, cost := range costs {
		hash, err := bcrypt.GenerateFromPassword([]byte("a password"), cost)
		if err != nil {
			return err
		}
		check := func() bool { return bcrypt.CompareHashAndPassword(hash, []byte("a password")) == nil }
		for _, kept := range []bool{true, false} {
			times := make(map[string][]float64)
			warm, err := gate()
			if err != nil {
				return err
			}
			for round := range rounds + 1 { // the first one opens the connection that is kept
				for _, i := range order(round, len(checkings)) {
					c, m := checkings[i], warm
					if !kept {
						if m, err = gate(); err != nil {
							return err
						}
					}
					took, err := c.login(m, check)
					if err != nil {
						return err
					}
					if round > 0 {
						times[c.name] = append(times[c.name], float64(took))
					}
				}
			}
			hashed, verified := median(times[hashName]), median(times[aloneName])
			longer, sum := max(hashed, verified), hashed+verified
			for _, c := range checkings {
				took := median(times[c.name])
				b.print("| %d | %s | %s | %s | %.2f | %.2f |\n", cost, map[bool]string{true: "kept", false: "new"}[kept], c.name,
					showTime(took), took/longer, took/sum)
				if c.name == beginName {
					worst = max(worst, took/longer)
				}
			}
		}
	}
	b.print("\n")
	b.target("with Begin, a login within 10 % of the longer of hash and verification", worst, "%.2f of it", worst <= 1.1)
	return nil
}

// login makes one login and returns its time.
func (c checking) login(gate *alicaptcha.Middleware, check func() bool) (time.Duration, error) {
	operation, answer := jsonBody(512, v3, true).through(c.wrap(gate, check))
	start := time.Now()
	operation()
	took := time.Since(start)
	if answer.status != http.StatusOK {
		return 0, fmt.Errorf("%s: status %d", c.name, answer.status)
	}
	return took, nil
}
