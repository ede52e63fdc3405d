package redisalicaptcha_test

import (
	"context"
	"log"
	"time"

	"github.com/redis/go-redis/v9"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"golang.org/x/time/rate"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/redisalicaptcha"
)

// newGate returns a gate that lets through, while the service is down, what the
// budget has that all replicas share.
func newGate(verifier alicaptcha.Verifier, redisAddr string) (*alicaptcha.Middleware, *redisalicaptcha.Budget, error) {
	client := redis.NewClient(&redis.Options{
		Addr:                  redisAddr,
		ContextTimeoutEnabled: true, // otherwise New returns an error
		MaxRetries:            -1,
		DialerRetries:         1,
	})
	budget, err := redisalicaptcha.New(client, redisalicaptcha.Config{
		Key:   "captcha",
		Rate:  rate.Every(6 * time.Second),
		Burst: 10,
	})
	if err != nil {
		return nil, nil, err
	}
	captcha, err := alicaptcha.New(alicaptcha.Config{
		Verifier: verifier,
		SceneID:  "1a2b3c4d",
		Policy: alicaptcha.Policy{
			alicaptcha.ServiceTimeout:     alicaptcha.AllowAtMost(budget),
			alicaptcha.ServiceUnavailable: alicaptcha.AllowAtMost(budget),
		},
	})
	return captcha, budget, err
}

// observe makes a counter of what budget answers.
func observe(meter metric.Meter, budget *redisalicaptcha.Budget) error {
	const answer = attribute.Key("alicaptcha.answer")
	_, err := meter.Int64ObservableCounter("alicaptcha.budget.answers",
		metric.WithUnit("{answer}"),
		metric.WithDescription("Answers of the shared budget."),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			s := budget.Stats()
			o.Observe(int64(s.Allowed), metric.WithAttributes(answer.String("allowed")))
			o.Observe(int64(s.Refused), metric.WithAttributes(answer.String("refused")))
			o.Observe(int64(s.Failed), metric.WithAttributes(answer.String("failed")))
			return nil
		}))
	return err
}

func Example() {
	client, err := alicaptcha.NewClient(alicaptcha.ClientConfig{Region: alicaptcha.International})
	if err != nil {
		log.Fatal(err)
	}
	captcha, budget, err := newGate(client, "redis:6379")
	if err != nil {
		log.Fatal(err)
	}
	if err := observe(otel.Meter("example.com/site"), budget); err != nil {
		log.Fatal(err)
	}
	_ = captcha.Handler // in front of the routes that need it
}
