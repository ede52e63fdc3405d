package caddyalicaptcha

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap/exp/zapslog"
	"golang.org/x/time/rate"

	"github.com/alicaptcha/alicaptcha"
)

// pool holds what outlives a reload of the configuration: the services with their
// connections and breakers, and the budgets. What was not changed by a reload is used
// by the new configuration before the old one gives it back.
var pool = caddy.NewUsagePool()

// poolKey identifies something in the pool by its settings. It is a hash, because the
// settings have the keys of the account.
type poolKey [sha256.Size]byte

func keyFor(settings ...any) poolKey {
	text, err := json.Marshal(settings)
	if err != nil { // strings and numbers only, of which NaN and infinities cannot come from JSON
		panic(err)
	}
	return sha256.Sum256(text)
}

// take returns the value for key from the pool, which make makes if there is none, until
// the configuration of h is cleaned up.
func take[T caddy.Destructor](h *Handler, key any, make func() (T, error)) (T, error) {
	value, _, err := pool.LoadOrNew(key, func() (caddy.Destructor, error) { return make() })
	if err != nil {
		var none T
		return none, err
	}
	h.releases = append(h.releases, func() error {
		_, err := pool.Delete(key)
		return err
	})
	return value.(T), nil
}

// A service is a Client and its Breaker. Gates with the same settings share one.
type service struct {
	key     poolKey
	name    string // of the region or of the endpoint
	client  *alicaptcha.Client
	breaker *alicaptcha.Breaker
}

// Destruct implements caddy.Destructor. There is nothing to do: the Client's idle
// connections end by themselves within 20 seconds.
func (*service) Destruct() error { return nil }

// service returns the service that the configuration describes.
func (h *Handler) service() (*service, error) {
	settings := []any{h.Region, h.Endpoint, h.AccessKeyID, h.AccessKeySecret, h.SecurityToken, h.Breaker}
	if h.AccessKeyID == "" && h.AccessKeySecret == "" && h.SecurityToken == "" {
		for _, name := range []string{"ID", "SECRET"} {
			settings = append(settings, os.Getenv("ALIBABA_CLOUD_ACCESS_KEY_"+name))
		}
		settings = append(settings, os.Getenv("ALIBABA_CLOUD_SECURITY_TOKEN"))
	}
	key := keyFor(settings...)
	return take(h, key, func() (*service, error) {
		client, err := alicaptcha.NewClient(alicaptcha.ClientConfig{
			Region:          alicaptcha.Region(h.Region),
			Endpoint:        h.Endpoint,
			AccessKeyID:     h.AccessKeyID,
			AccessKeySecret: h.AccessKeySecret,
			SecurityToken:   h.SecurityToken,
			Logger:          currentLogger,
		})
		if err != nil {
			return nil, named(err)
		}
		breaker, err := alicaptcha.NewBreaker(viaGate(client), h.Breaker.config())
		if err != nil {
			return nil, named(err)
		}
		name := h.Endpoint
		if name == "" {
			name = h.Region
		}
		return &service{key, name, client, breaker}, nil
	})
}

// verifierKey is a context key for the Verifier that a gate puts in place of the Client.
type verifierKey struct{}

// viaGate returns a Verifier that asks the one that the gate has put into the context,
// which records the call for the gate's configuration, or else client.
func viaGate(client alicaptcha.Verifier) alicaptcha.Verifier {
	return alicaptcha.VerifierFunc(func(ctx context.Context, req alicaptcha.Request) (alicaptcha.Result, error) {
		if v, ok := ctx.Value(verifierKey{}).(alicaptcha.Verifier); ok {
			return v.Verify(ctx, req)
		}
		return client.Verify(ctx, req)
	})
}

// verifier returns a Verifier that asks the Breaker of s, which asks inner in place of
// the Client.
func (s *service) verifier(inner alicaptcha.Verifier) alicaptcha.Verifier {
	return alicaptcha.VerifierFunc(func(ctx context.Context, req alicaptcha.Request) (alicaptcha.Result, error) {
		return s.breaker.Verify(context.WithValue(ctx, verifierKey{}, inner), req)
	})
}

func (b Breaker) config() alicaptcha.BreakerConfig {
	return alicaptcha.BreakerConfig{
		Failures:     b.Failures,
		FailureRatio: b.FailureRatio,
		Window:       time.Duration(b.Window),
		MinCalls:     b.MinCalls,
		OpenFor:      time.Duration(b.OpenFor),
		Probes:       b.Probes,
		Logger:       currentLogger,
	}
}

// A limiter is a Budget.
type limiter struct{ *rate.Limiter }

// Destruct implements caddy.Destructor.
func (*limiter) Destruct() error { return nil }

// limiter returns the limiter of the budget for the scene of h at s. Its purpose is a
// code, or the outage. A scene has a budget of its own, so that what is let through at
// one does not take the place of users at another.
func (h *Handler) limiter(s *service, purpose string, b Budget) (*limiter, error) {
	if b.Requests <= 0 {
		return nil, fmt.Errorf("requests is %d; it must be at least 1", b.Requests)
	}
	if b.Per <= 0 {
		return nil, errors.New("per must be positive")
	}
	return take(h, keyFor(s.key, h.Scene, purpose, b), func() (*limiter, error) {
		each := rate.Limit(float64(b.Requests) / time.Duration(b.Per).Seconds())
		return &limiter{rate.NewLimiter(each, b.Requests)}, nil
	})
}

// currentLogger logs to the log of the configuration that is in force, because what is
// in the pool outlives its configuration.
var currentLogger = slog.New(logHandler{})

type logHandler struct{}

func (logHandler) core() slog.Handler {
	return zapslog.NewHandler(caddy.Log().Core(), zapslog.WithName("http.handlers.alicaptcha"), zapslog.AddStacktraceAt(slog.Level(127)))
}

func (h logHandler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.core().Enabled(ctx, level)
}

func (h logHandler) Handle(ctx context.Context, r slog.Record) error { return h.core().Handle(ctx, r) }

func (h logHandler) WithAttrs(attrs []slog.Attr) slog.Handler { return h.core().WithAttrs(attrs) }

func (h logHandler) WithGroup(name string) slog.Handler { return h.core().WithGroup(name) }

// fieldNames are the names of the settings here for those of package alicaptcha.
var fieldNames = strings.NewReplacer(
	"alicaptcha: ", "",
	"ClientConfig.Region", "region", "or Endpoint must", "or endpoint must", "ClientConfig.Endpoint", "endpoint",
	"ClientConfig.AccessKeyID", "access_key_id", "ClientConfig.AccessKeySecret", "access_key_secret",
	"ClientConfig.SecurityToken", "security_token", "ClientConfig.", "",
	"Mainland (\"cn\")", "\"cn\"", "International (\"sgp\")", "\"sgp\"",
	"BreakerConfig.FailureRatio", "breaker.failure_ratio", "BreakerConfig.Failures", "breaker.failures",
	"BreakerConfig.Window", "breaker.window", "BreakerConfig.MinCalls", "breaker.min_calls",
	"BreakerConfig.OpenFor", "breaker.open_for", "BreakerConfig.Probes", "breaker.probes",
	"Config.SceneID", "scene", "Config.Timeout", "timeout", "Config.MaxParamBytes", "max_param_bytes",
	"Config.MaxBodyBytes", "max_body_bytes", "Config.MaxConcurrent", "max_concurrent",
	"Config.Policy", "policy", "use AllowAtMost", "set a budget", "Limit on a T code", "budget on a T code",
	"Limit without Allow", "budget without allow", "Status is", "status is",
)

// named returns err with the names that the settings have here.
func named(err error) error {
	if err == nil {
		return nil
	}
	return errors.New(strings.ReplaceAll(fieldNames.Replace(err.Error()), "\n", "; "))
}
