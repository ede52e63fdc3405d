// Command example serves a login behind a gate whose metrics Prometheus can scrape.
//
// Usage:
//
//	go run ./example [flags]
//
// The flags are:
//
//	-addr address
//		The address at which the site listens (default 127.0.0.1:8080).
//	-metrics address
//		The address of /metrics (default 127.0.0.1:9464).
//	-simulator address
//		The address at which the simulator of the service listens (default
//		127.0.0.1:8081).
//
// The site runs on a simulator of the service. The program prints its addresses and
// the curl commands that produce an outcome and show the metrics.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	exporter "go.opentelemetry.io/otel/exporters/prometheus"
	sdk "go.opentelemetry.io/otel/sdk/metric"
	"golang.org/x/time/rate"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
	"github.com/alicaptcha/alicaptcha/otelalicaptcha"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:8080", "the `address` at which the site listens")
	metricsAddr := flag.String("metrics", "127.0.0.1:9464", "the `address` of /metrics")
	simulatorAddr := flag.String("simulator", "127.0.0.1:8081", "the `address` at which the simulator listens")
	flag.Parse()
	if flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C does not wait for the shutdown
	if err := run(ctx, *addr, *metricsAddr, *simulatorAddr, os.Stdout, os.Stderr); err != nil {
		log.Fatal("example: ", err)
	}
}

// run serves the site until ctx is done.
func run(ctx context.Context, addr, metricsAddr, simulatorAddr string, stdout, stderr io.Writer) (err error) {
	site, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("-addr: %w", err)
	}
	defer site.Close()
	scrapes, err := net.Listen("tcp", metricsAddr)
	if err != nil {
		return fmt.Errorf("-metrics: %w", err)
	}
	defer scrapes.Close()
	service, err := net.Listen("tcp", simulatorAddr)
	if err != nil {
		return fmt.Errorf("-simulator: %w", err)
	}
	defer service.Close()

	// Prometheus scrapes a registry, which the exporter of the SDK fills.
	registry := prometheus.NewRegistry()
	reader, err := exporter.New(exporter.WithRegisterer(registry))
	if err != nil {
		return err
	}
	meters := sdk.NewMeterProvider(sdk.WithReader(reader))
	defer func() { err = errors.Join(err, meters.Shutdown(context.WithoutCancel(ctx))) }()

	logger := slog.New(slog.NewTextHandler(stderr, nil))
	login, err := newLogin(url(service), meters, logger)
	if err != nil {
		return err
	}
	routes := http.NewServeMux()
	routes.Handle("POST /login", http.MaxBytesHandler(login, 128<<10))
	metrics := http.NewServeMux()
	metrics.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	simulator := alicaptchatest.NewSimulator(alicaptchatest.Config{})

	_, err = fmt.Fprintf(stdout, `Site:      %[1]s
Metrics:   %[2]s/metrics
Simulator: %[3]s
Mint a param, log in with it, send it again, and see what was counted:
param=$(curl -sS '%[3]s/issue' -d '{"sceneId":"login"}' | sed 's/.*"captchaVerifyParam": *"\([^"]*\)".*/\1/')
curl -sS '%[1]s/login' -H "Captcha-Verify-Param: $param" -d 'user=alice'
curl -sS '%[1]s/login' -H "Captcha-Verify-Param: $param" -d 'user=alice'
curl -sS '%[2]s/metrics'
Ctrl-C stops it.
`, url(site), url(scrapes), url(service))
	if err != nil {
		return err
	}
	// The requests that the site still serves need the simulator, so it stops last.
	return serve(ctx, []net.Listener{site, scrapes, service}, []http.Handler{routes, metrics, simulator})
}

// newLogin returns a login behind a gate that records its metrics in meters.
func newLogin(endpoint string, meters *sdk.MeterProvider, logger *slog.Logger) (http.Handler, error) {
	client, err := alicaptcha.NewClient(alicaptcha.ClientConfig{
		Endpoint: endpoint, AccessKeyID: "test-id", AccessKeySecret: "test-secret",
	})
	if err != nil {
		return nil, err
	}
	telemetry, err := otelalicaptcha.New(otelalicaptcha.Config{MeterProvider: meters, Scenes: []string{"login"}})
	if err != nil {
		return nil, err
	}
	verifier, err := alicaptcha.NewBreaker(telemetry.Verifier(client), alicaptcha.BreakerConfig{Logger: logger})
	if err != nil {
		return nil, err
	}
	if err := telemetry.Breaker("login", verifier.State); err != nil {
		return nil, err
	}
	// During an outage, ten logins per minute proceed without a verdict.
	budget := rate.NewLimiter(rate.Every(6*time.Second), 10)
	captcha, err := alicaptcha.New(alicaptcha.Config{
		Verifier: verifier,
		SceneID:  "login",
		Observe:  telemetry.Observe,
		Policy: alicaptcha.Policy{
			alicaptcha.ServiceTimeout:     alicaptcha.AllowAtMost(budget),
			alicaptcha.ServiceUnavailable: alicaptcha.AllowAtMost(budget),
		},
		Logger: logger,
	})
	if err != nil {
		return nil, err
	}
	return captcha.Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "welcome")
	})), nil
}

// url returns the URL of l.
func url(l net.Listener) string { return "http://" + l.Addr().String() }

// serve runs a server for each handler until ctx is done or one of them fails, and
// then stops them in order.
func serve(ctx context.Context, listeners []net.Listener, handlers []http.Handler) error {
	failed := make(chan error, len(listeners))
	var servers []*http.Server
	for i, l := range listeners {
		server := &http.Server{
			Handler:           handlers[i],
			ReadHeaderTimeout: 5 * time.Second,
			ReadTimeout:       20 * time.Second,
			WriteTimeout:      30 * time.Second,
			IdleTimeout:       time.Minute,
			MaxHeaderBytes:    64 << 10, // room for a param
		}
		servers = append(servers, server)
		go func() { failed <- server.Serve(l) }()
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}

	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	for _, server := range servers {
		if server.Shutdown(bounded) != nil {
			server.Close()
		}
	}
	return err
}
