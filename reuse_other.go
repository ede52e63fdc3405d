//go:build !unix

package alicaptcha

import "net"

// isClosed reports nothing here; reuse_unix.go looks at the socket.
func isClosed(net.Conn) bool { return false }
