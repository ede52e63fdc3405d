// Package steering changes what a gate does while the program runs.
package steering

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"sync/atomic"

	"github.com/alicaptcha/alicaptcha"
)

// A Switch holds the Mode of a gate, for Config.ModeFunc. The zero value is Enforce.
type Switch struct{ mode atomic.Int64 }

// Mode returns the Mode that was set last. It does not look at the request.
func (s *Switch) Mode(*http.Request) alicaptcha.Mode { return alicaptcha.Mode(s.mode.Load()) }

// Set sets the Mode for requests that arrive from now on.
func (s *Switch) Set(mode alicaptcha.Mode) {
	s.mode.Store(int64(mode))
	slog.Warn("the captcha's mode was changed", "mode", mode)
}

// Listen sets the Mode that belongs to each signal that the program receives, until ctx
// is done. Call it in a goroutine of its own:
//
//	go modes.Listen(ctx, map[os.Signal]alicaptcha.Mode{
//		syscall.SIGUSR1: alicaptcha.ReportOnly, syscall.SIGUSR2: alicaptcha.Enforce,
//	})
func (s *Switch) Listen(ctx context.Context, modes map[os.Signal]alicaptcha.Mode) {
	received := make(chan os.Signal, 1)
	for sig := range modes {
		signal.Notify(received, sig)
	}
	defer signal.Stop(received)
	for {
		select {
		case sig := <-received:
			s.Set(modes[sig])
		case <-ctx.Done():
			return
		}
	}
}

// ServeHTTP sets the Mode to the one in the path's {mode}. It belongs on the site's
// admin listener, behind its authentication:
//
//	admin.Handle("PUT /captcha/mode/{mode}", modes)
func (s *Switch) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	mode, ok := map[string]alicaptcha.Mode{
		"enforce": alicaptcha.Enforce, "report-only": alicaptcha.ReportOnly, "exempt": alicaptcha.Exempt,
	}[r.PathValue("mode")]
	if !ok {
		http.Error(w, "the mode is enforce, report-only or exempt", http.StatusNotFound)
		return
	}
	s.Set(mode)
	w.WriteHeader(http.StatusNoContent)
}

// Ramp returns a ModeFunc that enforces the captcha for percent of the sessions, and
// only reports for the others. The same session always gets the same Mode at the same
// percentage, on every replica with the same salt. session returns an ID that the
// server has issued and verified, or "" for none, for which the captcha is enforced.
//
// A bot can open sessions until one is not enforced. A ramp is for trying a gate out
// on real users; it protects when it has reached 100 percent.
func Ramp(percent *atomic.Int64, salt string, session func(*http.Request) string) func(*http.Request) alicaptcha.Mode {
	return func(r *http.Request) alicaptcha.Mode {
		id := session(r)
		hash := sha256.Sum256([]byte(salt + id))
		if id == "" || int64(binary.BigEndian.Uint64(hash[:])%100) < percent.Load() {
			return alicaptcha.Enforce
		}
		return alicaptcha.ReportOnly
	}
}

// Settings are what a site reads from its configuration and may read again while it
// runs: a Verifier with its keys, and a scene.
type Settings struct {
	Verifier alicaptcha.Verifier
	SceneID  string
}

// Reloadable holds the Settings of a gate: it is its Verifier, and SceneID is its
// SceneIDFunc. Store must be called before the first request.
//
// Do not put it into a Breaker: make one for each Verifier that is stored.
type Reloadable struct{ atomic.Pointer[Settings] }

// Verify asks the Verifier that was stored last.
func (s *Reloadable) Verify(ctx context.Context, req alicaptcha.Request) (alicaptcha.Result, error) {
	return s.Load().Verifier.Verify(ctx, req)
}

// SceneID returns the scene that was stored last.
func (s *Reloadable) SceneID(*http.Request) string { return s.Load().SceneID }

// Tenants returns a handler that serves each host with the handler of its tenant, which
// has a gate of its own, and refuses other hosts. A client chooses the host, and with
// it the gate, so the handler behind a gate must serve that tenant's data alone.
func Tenants(byHost map[string]http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tenant, ok := byHost[r.Host]
		if !ok {
			http.Error(w, http.StatusText(http.StatusMisdirectedRequest), http.StatusMisdirectedRequest)
			return
		}
		tenant.ServeHTTP(w, r)
	})
}
