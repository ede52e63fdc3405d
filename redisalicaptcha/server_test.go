//go:build unix

package redisalicaptcha_test

import (
	"bufio"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
)

// forEachServer runs a test with Redis, and with Valkey where it is installed.
func forEachServer(t *testing.T, test func(t *testing.T, binary string)) {
	for _, binary := range []string{"redis-server", "valkey-server"} {
		if _, err := exec.LookPath(binary); err != nil {
			require.NotEqual(t, "redis-server", binary, "in Debian: apt-get install redis-server")
			continue
		}
		t.Run(binary, func(t *testing.T) { test(t, binary) })
	}
}

// A server is a Redis or Valkey that can be hurt. It ends with the test.
type server struct {
	t      *testing.T
	binary string
	args   []string
	dir    string
	port   int
	cmd    *exec.Cmd
	ended  chan struct{}
}

// startServer starts one with the flags args.
func startServer(t *testing.T, binary string, args ...string) *server {
	t.Helper()
	// Another program may take the port in between; then this is made again.
	for range 10 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		s := &server{t: t, binary: binary, args: args, dir: t.TempDir(), port: l.Addr().(*net.TCPAddr).Port}
		require.NoError(t, l.Close())
		if s.start() {
			t.Cleanup(s.kill)
			return s
		}
	}
	require.Fail(t, "no server started")
	return nil
}

// start starts the server, on the data that it left, and waits for it.
func (s *server) start() bool {
	s.t.Helper()
	s.cmd = exec.Command(s.binary, append([]string{
		"--port", strconv.Itoa(s.port), "--bind", "127.0.0.1", "--dir", s.dir, "--save", "",
	}, s.args...)...)
	out, err := s.cmd.StdoutPipe()
	require.NoError(s.t, err)
	require.NoError(s.t, s.cmd.Start())
	cmd, ready, ended := s.cmd, make(chan struct{}), make(chan struct{})
	s.ended = ended
	go func() {
		defer close(ended)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if strings.Contains(lines.Text(), "Ready to accept connections") {
				close(ready)
			}
		}
		cmd.Wait()
	}()
	select {
	case <-ready:
		return true
	case <-ended:
		return false
	}
}

func (s *server) addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

func (s *server) signal(sig os.Signal) { s.cmd.Process.Signal(sig) } // fails if it has ended

func (s *server) stop()       { s.signal(syscall.SIGSTOP) }
func (s *server) resume()     { s.signal(syscall.SIGCONT) }
func (s *server) kill()       { s.signal(os.Kill); <-s.ended }
func (s *server) restart()    { s.kill(); require.True(s.t, s.start()) }
func (s *server) do(a ...any) { require.NoError(s.t, s.client().Do(s.t.Context(), a...).Err()) }

// client returns a client as New wants it.
func (s *server) client() *redis.Client { return newClient(s.t, s.addr()) }

// options are those of the README.
func options(addr string) *redis.Options {
	return &redis.Options{Addr: addr, ContextTimeoutEnabled: true, MaxRetries: -1, DialerRetries: 1}
}

func newClient(t *testing.T, addr string) *redis.Client {
	client := redis.NewClient(options(addr))
	t.Cleanup(func() { client.Close() })
	return client
}

// A proxy stands before a server and can be told to keep its answers back.
type proxy struct {
	net.Listener
	mu    sync.Mutex
	delay time.Duration
	conns []net.Conn
}

func startProxy(t *testing.T, to string) *proxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := &proxy{Listener: l}
	t.Cleanup(func() {
		l.Close()
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, c := range p.conns {
			c.Close()
		}
	})
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				in.Close()
				continue
			}
			p.mu.Lock()
			p.conns = append(p.conns, in, out)
			p.mu.Unlock()
			go func() { io.Copy(out, in); out.Close() }()
			go func() { p.copy(in, out); in.Close() }()
		}
	}()
	return p
}

// slow makes each answer come that much later.
func (p *proxy) slow(by time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = by
}

func (p *proxy) copy(to, from net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		p.mu.Lock()
		delay := p.delay
		p.mu.Unlock()
		time.Sleep(delay) // it is what a slow network does
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}
