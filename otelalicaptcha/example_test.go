package otelalicaptcha_test

import (
	"context"
	"fmt"
	"log"
	"net/http/httptest"

	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
	"github.com/alicaptcha/alicaptcha/otelalicaptcha"
)

// This example uses the global providers, which a program sets when it sets up its
// exporters.
func Example() {
	client := alicaptchatest.Passing() // an *alicaptcha.Client

	telemetry, err := otelalicaptcha.New(otelalicaptcha.Config{Scenes: []string{"1a2b3c4d"}})
	if err != nil {
		log.Fatal(err)
	}
	verifier, err := alicaptcha.NewBreaker(telemetry.Verifier(client), alicaptcha.BreakerConfig{})
	if err != nil {
		log.Fatal(err)
	}
	if err := telemetry.Breaker("login", verifier.State); err != nil {
		log.Fatal(err)
	}
	captcha, err := alicaptcha.New(alicaptcha.Config{
		Verifier: verifier,
		SceneID:  "1a2b3c4d",
		Observe:  telemetry.Observe,
	})

	if err != nil {
		log.Fatal(err)
	}
	r := httptest.NewRequest("POST", "/login", nil)
	r.Header.Set("Captcha-Verify-Param", "…")
	fmt.Println(captcha.Check(r).Code)
	// Output: T001
}

func ExampleNew() {
	reader := sdkmetric.NewManualReader()
	telemetry, err := otelalicaptcha.New(otelalicaptcha.Config{
		MeterProvider: sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)),
		Scenes:        []string{"1a2b3c4d"},
	})
	if err != nil {
		log.Fatal(err)
	}
	captcha, err := alicaptcha.New(alicaptcha.Config{
		Verifier: alicaptchatest.Passing(),
		SceneID:  "1a2b3c4d",
		Observe:  telemetry.Observe,
	})
	if err != nil {
		log.Fatal(err)
	}
	r := httptest.NewRequest("POST", "/login", nil)
	r.Header.Set("Captcha-Verify-Param", "…")
	captcha.Check(r)

	var metrics metricdata.ResourceMetrics
	if err := reader.Collect(context.Background(), &metrics); err != nil {
		log.Fatal(err)
	}
	outcomes := metrics.ScopeMetrics[0].Metrics[0]
	point := outcomes.Data.(metricdata.Sum[int64]).DataPoints[0]
	fmt.Println(outcomes.Name, point.Value)
	for _, a := range point.Attributes.ToSlice() {
		fmt.Println(a.Key, a.Value.AsString())
	}
	// Output:
	// alicaptcha.outcomes 1
	// alicaptcha.code T001
	// alicaptcha.decision passed
	// alicaptcha.scene 1a2b3c4d
}

func ExampleTelemetry_Verifier() {
	recorder := tracetest.NewSpanRecorder()
	telemetry, err := otelalicaptcha.New(otelalicaptcha.Config{
		TracerProvider: sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder)),
	})
	if err != nil {
		log.Fatal(err)
	}

	verifier := telemetry.Verifier(alicaptchatest.Failing(alicaptcha.ServiceThrottled))
	verifier.Verify(context.Background(), alicaptcha.Request{Param: "…", SceneID: "1a2b3c4d"})

	span := recorder.Ended()[0]
	fmt.Println(span.SpanKind(), span.Name(), span.Status().Code, span.Status().Description)
	// Output: client POST VerifyIntelligentCaptcha Error service_throttled
}
