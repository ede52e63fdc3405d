package main

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/alicaptcha/alicaptcha/bench/internal/loopback"
)

// A service passes every param, and closes connections that wait for a call.
type service struct {
	listener net.Listener
	scheme   string
	idle     time.Duration
	opened   atomic.Int64 // connections
	late     atomic.Int64 // those that it closed although a call had come
	serving  sync.WaitGroup

	mu   sync.Mutex
	came map[string]int // how often each param did
}

func newService(idle time.Duration, plain bool) (*service, error) {
	cert, err := loopback.Certificate()
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	scheme := "http"
	if !plain {
		scheme = "https"
		listener = tls.NewListener(listener, &tls.Config{Certificates: []tls.Certificate{cert}})
	}
	s := &service{listener: listener, scheme: scheme, idle: idle, came: map[string]int{}}
	s.serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			s.opened.Add(1)
			s.serving.Go(func() { s.serve(conn) })
		}
	})
	return s, nil
}

func (s *service) url() string { return s.scheme + "://" + s.listener.Addr().String() }

// close returns when all connections are closed, the idle ones by themselves.
func (s *service) close() {
	s.listener.Close()
	s.serving.Wait()
}

func (s *service) twice() (n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, times := range s.came {
		if times > 1 {
			n++
		}
	}
	return n
}

const verdict = `{"RequestId":"r","Code":"Success","Success":true,` +
	`"Result":{"VerifyResult":true,"VerifyCode":"T001","CertifyId":"c"}}`

func (s *service) serve(conn net.Conn) {
	defer conn.Close()
	in := bufio.NewReader(conn)
	wait := 5 * time.Second // for the first call
	for {
		conn.SetReadDeadline(time.Now().Add(wait))
		if _, err := in.Peek(1); err != nil {
			if hasMore(conn) {
				s.late.Add(1)
			}
			return
		}
		conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		if err := s.answer(conn, in); err != nil {
			return
		}
		wait = rand.N(s.idle)
	}
}

func (s *service) answer(conn net.Conn, in *bufio.Reader) error {
	r, err := http.ReadRequest(in)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return err
	}
	form, err := url.ParseQuery(string(body))
	param := form.Get("CaptchaVerifyParam")
	if err != nil || param == "" {
		return errors.New("no param")
	}
	s.mu.Lock()
	s.came[param]++
	s.mu.Unlock()
	_, err = fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(verdict), verdict)
	return err
}
