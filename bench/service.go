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

// A service answers every call with a pass. It reads only the length of a call. Under
// load, the signature checks and records of the simulator would be most of what is
// measured.
type service struct {
	*httptest.Server
	opened, open atomic.Int64 // connections so far, and at present
	http2        atomic.Int64 // calls over HTTP/2
	free         chan struct{}
}

type serviceConfig struct {
	tls   bool          // with HTTP/2 for clients that support it
	takes time.Duration // the time until it answers
	idle  time.Duration // the time after which it closes an idle connection; 0 means never
	hangs bool          // it does not answer until it is closed

	version uint16 // the newest version of TLS, and HTTP/1.1 only; 0 means any
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
	s.TLS = &tls.Config{Certificates: []tls.Certificate{own}, MaxVersion: cfg.version}
	s.EnableHTTP2 = cfg.version == 0
	s.StartTLS()
	return s, nil
}

// close stops the service and ends its hanging calls.
func (s *service) close() {
	close(s.free)
	s.CloseClientConnections()
	s.Close()
}
