package main

import (
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// A link is a proxy that is as far away from a service as delay says. A byte takes that long
// in either direction, and a connection costs a round trip before its first byte, as the
// handshake of TCP does. It counts round trips: the connecting, and each time that the service
// answers to what came before.
type link struct {
	listener net.Listener
	to       string
	delay    time.Duration
	trips    atomic.Int64
	carrying sync.WaitGroup

	mu    sync.Mutex
	conns []net.Conn
}

// newLink starts a link to the address to.
func newLink(to string, delay time.Duration) (*link, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	l := &link{listener: listener, to: to, delay: delay}
	l.carrying.Go(func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", to)
			if err != nil {
				near.Close()
				continue
			}
			l.mu.Lock()
			l.conns = append(l.conns, near, far)
			l.mu.Unlock()
			l.trips.Add(1)
			var asked atomic.Bool // something has gone to the service since it last answered
			connected := time.Now().Add(2 * delay)
			l.carrying.Go(func() { l.carry(far, near, connected, func() { asked.Store(true) }) })
			l.carrying.Go(func() {
				l.carry(near, far, connected, func() {
					if asked.Swap(false) {
						l.trips.Add(1)
					}
				})
			})
		}
	})
	return l, nil
}

func (l *link) url() string { return "https://" + l.listener.Addr().String() }

// carry brings what comes from one connection to the other, late, and then its end. Nothing
// leaves before the time connected.
func (l *link) carry(to, from net.Conn, connected time.Time, came func()) {
	type part struct {
		due  time.Time
		data []byte
	}
	underWay := make(chan part, 1000)
	l.carrying.Go(func() {
		defer to.Close()
		for p := range underWay {
			time.Sleep(time.Until(p.due))
			to.Write(p.data)
		}
	})
	defer close(underWay)
	for {
		data := make([]byte, 32<<10)
		n, err := from.Read(data)
		if n > 0 {
			came()
		}
		left := time.Now()
		if left.Before(connected) {
			left = connected
		}
		underWay <- part{left.Add(l.delay), data[:n]}
		if err != nil {
			return
		}
	}
}

// close ends all connections.
func (l *link) close() {
	l.listener.Close()
	l.mu.Lock()
	for _, conn := range l.conns {
		conn.Close()
	}
	l.mu.Unlock()
	l.carrying.Wait()
}
