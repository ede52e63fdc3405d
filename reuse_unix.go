//go:build unix

package alicaptcha

import (
	"crypto/tls"
	"net"
	"syscall"
)

// isClosed reports whether the peer has closed conn, which was kept for the next call:
// whether its end has arrived, or over TLS anything, because only an alert may come before
// the call. net/http finds that too, but not before its reader gets to run. Nothing is
// known of a connection of HTTP/2, on which the peer may send at any time, and of one that
// is not a socket.
func isClosed(conn net.Conn) bool {
	isTLS := false
	for {
		over, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		if c, ok := conn.(*tls.Conn); ok {
			if c.ConnectionState().NegotiatedProtocol == "h2" {
				return false
			}
			isTLS = true
		}
		conn = over.NetConn()
	}
	socket, ok := conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return false
	}
	var n int
	var failed error
	err = raw.Control(func(fd uintptr) { // not Read, which would wait for net/http's reader
		n, _, failed = syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	})
	switch {
	case err != nil: // it is closed here
		return true
	case failed != nil:
		return failed != syscall.EAGAIN && failed != syscall.EINTR
	}
	return n == 0 || isTLS
}
