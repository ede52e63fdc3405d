package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/alicaptcha/alicaptcha"
	"github.com/alicaptcha/alicaptcha/alicaptchatest"
	"github.com/alicaptcha/alicaptcha/bench/internal/loopback"
)

// A target is the program of the README with its budget, a service, and the counts of
// what happens in both.
type target struct {
	simulator     *alicaptchatest.Simulator // exists even if another service is used
	site, service *sockets
	client        *alicaptcha.Client
	verifier      alicaptcha.Verifier
	wires         [2]*wire // over HTTP/1.1 and HTTP/2
	stop          []func()
	rest          func() // makes the service close its idle connections; may be nil

	entered atomic.Int64 // requests that have reached a gate
	letIn   atomic.Int64 // requests that a gate has let through
	moves   atomic.Int64 // changes of state of the Breaker

	mu       sync.Mutex
	outcomes map[alicaptcha.Code]int
}

// sockets is a listener that counts connections.
type sockets struct {
	net.Listener
	opened, open atomic.Int64 // so far, and at present
}

func listen() (*sockets, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	return &sockets{Listener: l}, err
}

func (s *sockets) Accept() (net.Conn, error) {
	conn, err := s.Listener.Accept()
	if err != nil {
		return nil, err
	}
	s.opened.Add(1)
	s.open.Add(1)
	return &socket{Conn: conn, closed: sync.OnceFunc(func() { s.open.Add(-1) })}, nil
}

type socket struct {
	net.Conn
	closed func()
}

func (s *socket) Close() error {
	defer s.closed()
	return s.Conn.Close()
}

var quiet = slog.New(slog.DiscardHandler)

// newTarget starts the site for the attack a, and its service.
func newTarget(a attack) (*target, error) {
	t := &target{
		simulator: alicaptchatest.NewSimulator(alicaptchatest.Config{}),
		outcomes:  make(map[alicaptcha.Code]int),
	}
	t.stop = append(t.stop, func() { t.simulator.SetFaults(alicaptchatest.Faults{}) }) // ends the calls that hang
	var errs [3]error
	t.site, errs[0] = listen()
	t.service, errs[1] = listen()
	errs[2] = t.simulator.SetFaults(a.faults)
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	if a.service == nil {
		a.service = func(t *target) error { return t.serveCalls(t.simulator) }
	}
	if err := a.service(t); err != nil {
		return nil, err
	}
	client, err := alicaptcha.NewClient(alicaptcha.ClientConfig{
		Endpoint:    "https://" + t.service.Addr().String(),
		AccessKeyID: "test-id", AccessKeySecret: "test-secret", Logger: quiet,
	})
	if err != nil {
		return nil, err
	}
	t.client = client
	t.verifier, err = alicaptcha.NewBreaker(client, alicaptcha.BreakerConfig{Logger: slog.New(counter{&t.moves})})
	if err != nil {
		return nil, err
	}
	budget := rate.NewLimiter(rate.Every(6*time.Second), 10)
	cfg := alicaptcha.Config{
		Verifier: t.verifier, SceneID: "login", Logger: quiet, Observe: t.observe,
		Policy: alicaptcha.Policy{
			alicaptcha.ServiceTimeout:     alicaptcha.AllowAtMost(budget),
			alicaptcha.ServiceUnavailable: alicaptcha.AllowAtMost(budget),
		},
	}
	if a.config != nil {
		a.config(t, &cfg)
	}
	gate, err := alicaptcha.New(cfg)
	if err != nil {
		return nil, err
	}
	if a.routes == nil {
		a.routes = func(t *target, gate *alicaptcha.Middleware, handle handleFunc) error {
			handle("/login", halfBegun(gate, t))
			return nil
		}
	}
	mux := http.NewServeMux()
	err = a.routes(t, gate, func(path string, gated http.Handler) {
		mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
			t.entered.Add(1)
			go client.Warm(context.WithoutCancel(r.Context())) // as the handler of the page does
			gated.ServeHTTP(w, r)
		})
	})
	if err != nil {
		return nil, err
	}
	address := t.site.Addr().String()
	t.wires = [2]*wire{{address: address}, {address: address, http2: true}}
	server := &http.Server{Handler: mux, ReadTimeout: 20 * time.Second, WriteTimeout: 30 * time.Second}
	return t, t.serve(t.site, server)
}

// halfBegun returns gate around next for one half of the requests. For the other half the
// handler begins the verification, does some work, and requires it.
func halfBegun(gate *alicaptcha.Middleware, next http.Handler) http.Handler {
	var n atomic.Int64
	first := gate.Handler(next)
	begun := gate.Deferred(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		alicaptcha.Begin(r.Context())
		time.Sleep(time.Millisecond) // as a short hash takes
		if alicaptcha.Require(w, r) {
			next.ServeHTTP(w, r)
		}
	}))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n.Add(1)/4%2 == 0 { // requests differ by their number modulo 4
			first.ServeHTTP(w, r)
		} else {
			begun.ServeHTTP(w, r)
		}
	})
}

// A handleFunc adds a route behind a gate.
type handleFunc func(path string, gated http.Handler)

// serve makes server serve HTTP/1.1 and HTTP/2 until t is closed.
func (t *target) serve(l net.Listener, server *http.Server) error {
	own, err := loopback.Certificate()
	if err != nil {
		return err
	}
	server.ErrorLog = slog.NewLogLogger(quiet.Handler(), slog.LevelInfo)
	server.TLSConfig = &tls.Config{Certificates: []tls.Certificate{own}}
	t.stop = append(t.stop, func() { server.Close() })
	go server.ServeTLS(l, "", "")
	return nil
}

// serveCalls makes handler the service.
func (t *target) serveCalls(handler http.Handler) error {
	var mu sync.Mutex
	unused := make(map[net.Conn]bool)
	server := &http.Server{Handler: handler, ConnState: func(conn net.Conn, state http.ConnState) {
		mu.Lock()
		defer mu.Unlock()
		switch state {
		case http.StateClosed:
			delete(unused, conn)
		default:
			unused[conn] = state == http.StateNew || state == http.StateIdle
		}
	}}
	t.rest = func() {
		mu.Lock()
		defer mu.Unlock()
		for conn, isUnused := range unused {
			if isUnused {
				conn.Close()
			}
		}
	}
	return t.serve(t.service, server)
}

// accept makes talk the service, which handles each connection without net/http.
// hangUp closes the connections.
func (t *target) accept(talk func(conn net.Conn, i int)) (hangUp func()) {
	ctx, cancel := context.WithCancel(context.Background())
	t.stop = append(t.stop, func() {
		cancel()
		t.service.Close()
	})
	go func() {
		for i := 0; ; i++ {
			conn, err := t.service.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				defer context.AfterFunc(ctx, func() { conn.Close() })()
				talk(conn, i)
			}()
		}
	}()
	return cancel
}

// ServeHTTP is the handler behind the gate.
func (t *target) ServeHTTP(http.ResponseWriter, *http.Request) { t.letIn.Add(1) }

func (t *target) observe(_ context.Context, o alicaptcha.Outcome) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.outcomes[o.Code]++
}

// close stops site and service, even if requests are under way.
func (t *target) close() {
	for _, stop := range t.stop {
		stop()
	}
}

// counter is a slog.Handler that counts the records.
type counter struct{ n *atomic.Int64 }

func (counter) Enabled(context.Context, slog.Level) bool    { return true }
func (c counter) Handle(context.Context, slog.Record) error { c.n.Add(1); return nil }
func (c counter) WithAttrs([]slog.Attr) slog.Handler        { return c }
func (c counter) WithGroup(string) slog.Handler             { return c }

// each makes n requests, a limited number of them at once. It returns the number of
// errors, and one of the errors.
func each(n, atOnce int, one func(i int) error) error {
	var all sync.WaitGroup
	var next atomic.Int64
	var mu sync.Mutex
	var failures int
	var last error
	for range min(n, atOnce) {
		all.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				if err := one(i); err != nil {
					mu.Lock()
					failures, last = failures+1, fmt.Errorf("request %d: %w", i, err)
					mu.Unlock()
				}
			}
		})
	}
	all.Wait()
	if last != nil {
		return fmt.Errorf("%d of %d requests failed; %w", failures, n, last)
	}
	return nil
}
