package main

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"time"

	"github.com/alicaptcha/alicaptcha/bench/internal/loopback"
)

// A service answers every call with a pass. It reads no more of a call than
// its length: the simulator's signatures and records would be most of what a
// run under load measures.
type service struct {
	*httptest.Server
	opened, open atomic.Int64 // connections, so far and now
	http2        atomic.Int64 // calls over HTTP/2
	free         chan struct{}
}

type serviceConfig struct {
	tls   bool          // with HTTP/2 for those who want it
	takes time.Duration // for an answer
	idle  time.Duration // after which it closes an idle connection; 0 is never
	hangs bool          // there is no answer until it closes
}

func newService(cfg serviceConfig) (*service, error) {
	s := &service{free: make(chan struct{})}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor == 2 {
			s.http2.Add(1)
		}
		io.Copy(io.Discard, r.Body)
		if cfg.hangs {
			select {
			case <-s.free:
			case <-r.Context().Done():
			}
			panic(http.ErrAbortHandler)
		}
		if cfg.takes > 0 {
			time.Sleep(cfg.takes)
		}
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, passed)
	}))
	s.Config.IdleTimeout = cfg.idle
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			s.opened.Add(1)
			s.open.Add(1)
		case http.StateClosed, http.StateHijacked:
			s.open.Add(-1)
		}
	}
	if !cfg.tls {
		s.Start()
		return s, nil
	}
	own, err := loopback.Certificate()
	if err != nil {
		return nil, err
	}
	s.TLS = &tls.Config{Certificates: []tls.Certificate{own}}
	s.EnableHTTP2 = true
	s.StartTLS()
	return s, nil
}

// close ends the service and the calls that hang in it.
func (s *service) close() {
	close(s.free)
	s.CloseClientConnections()
	s.Close()
}
