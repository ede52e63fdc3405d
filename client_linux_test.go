package alicaptcha

import (
	"context"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A dial that nobody answers ends after 5 s: net/http goes on with it when its call
// has ended. Linux drops the SYNs for a listener whose queue is full.
func TestTransportEndsDials(t *testing.T) {
	t.Parallel()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	require.NoError(t, err)
	defer syscall.Close(fd)
	require.NoError(t, syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	require.NoError(t, syscall.Listen(fd, 0))
	name, err := syscall.Getsockname(fd)
	require.NoError(t, err)
	addr := (&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: name.(*syscall.SockaddrInet4).Port}).String()
	filler, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	defer filler.Close()

	guard, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, err = newTransport().DialContext(guard, "tcp", addr)
	require.ErrorContains(t, err, "i/o timeout")
	require.NoError(t, guard.Err(), "the dialer's own timeout ended it")
}
