package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

const (
	patience       = 20 * time.Second // the most time that a line may take
	streamsOfAConn = 100              // a server of net/http accepts 250 at a time
	frameBytes     = 16 << 10
)

// A request is written without the client of net/http, which would refuse malformed
// requests and cannot stop at any point of a request.
type request struct {
	path, host string // default to /login and the address of the site
	header     []hpack.HeaderField
	body       string
}

// A line carries one request.
type line interface {
	// head sends all but the body of r.
	head(r request) error

	// send sends a part of the body.
	send(part string, last bool) error

	// answer returns the status of the answer and ends the line.
	answer() (int, error)

	// hangUp ends the line.
	hangUp()
}

// A wire opens lines to a site. It is safe for concurrent use.
type wire struct {
	address string
	http2   bool

	mu    sync.Mutex
	conns []*h2Conn // the last one is in use
	used  int       // lines that have used it
}

func dial(address, protocol string) (*tls.Conn, error) {
	dialer := &net.Dialer{Timeout: patience}
	conn, err := tls.DialWithDialer(dialer, "tcp", address, &tls.Config{NextProtos: []string{protocol}})
	if err != nil {
		return nil, err
	}
	return conn, conn.SetDeadline(time.Now().Add(patience))
}

// open returns a line: over HTTP/1.1 a connection of its own, and over HTTP/2 a stream of
// a shared connection.
func (w *wire) open() (line, error) {
	if !w.http2 {
		conn, err := dial(w.address, "http/1.1")
		if err != nil {
			return nil, err
		}
		return &h1Line{conn: conn}, nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.conns) == 0 || w.used == streamsOfAConn || w.conns[len(w.conns)-1].ended() {
		conn, err := dialH2(w.address)
		if err != nil {
			return nil, err
		}
		w.conns, w.used = append(w.conns, conn), 0
	}
	w.used++
	return &h2Line{conn: w.conns[len(w.conns)-1], answered: make(chan int, 1)}, nil
}

// close closes the shared connections. No line may be in use.
func (w *wire) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, conn := range w.conns {
		conn.close()
	}
	w.conns = nil
}

type h1Line struct {
	conn *tls.Conn
	last bool // the whole body has been sent
}

func (l *h1Line) head(r request) error {
	var b strings.Builder
	host := r.host
	if host == "" {
		host = l.conn.RemoteAddr().String()
	}
	fmt.Fprintf(&b, "POST %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n", r.path, host)
	fmt.Fprintf(&b, "Content-Length: %d\r\n", len(r.body))
	for _, f := range r.header {
		b.WriteString(f.Name + ": " + f.Value + "\r\n")
	}
	_, err := io.WriteString(l.conn, b.String()+"\r\n")
	return err
}

func (l *h1Line) send(part string, last bool) error {
	l.last = last
	_, err := io.WriteString(l.conn, part)
	return err
}

func (l *h1Line) answer() (int, error) {
	defer l.conn.Close()
	resp, err := http.ReadResponse(bufio.NewReader(l.conn), nil)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
}

// hangUp resets the connection if the whole body has been sent, as if the program had
// crashed. Otherwise it closes the connection properly.
func (l *h1Line) hangUp() {
	if tcp, ok := l.conn.NetConn().(*net.TCPConn); ok && l.last {
		tcp.SetLinger(0)
		tcp.Close()
		return
	}
	l.conn.Close()
}

// An h2Conn is a connection over HTTP/2.
type h2Conn struct {
	conn *tls.Conn
	done chan struct{} // closed when reading has ended

	mu      sync.Mutex
	framer  *http2.Framer // only the method read may use its reading half
	block   bytes.Buffer
	encoder *hpack.Encoder // writes to block
	streams map[uint32]*h2Line
	next    uint32
}

func dialH2(address string) (*h2Conn, error) {
	conn, err := dial(address, http2.NextProtoTLS)
	if err != nil {
		return nil, err
	}
	c := &h2Conn{
		conn: conn, done: make(chan struct{}),
		framer: http2.NewFramer(conn, conn), streams: make(map[uint32]*h2Line), next: 1,
	}
	c.encoder = hpack.NewEncoder(&c.block)
	c.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	_, err = io.WriteString(conn, http2.ClientPreface)
	if err := errors.Join(err, c.framer.WriteSettings(), c.framer.WriteWindowUpdate(0, 1<<30)); err != nil {
		conn.Close()
		return nil, err
	}
	go c.read()
	return c, nil
}

// read reads what the site sends, until the connection ends.
func (c *h2Conn) read() {
	defer close(c.done)
	for {
		frame, err := c.framer.ReadFrame()
		if err != nil {
			return
		}
		c.mu.Lock()
		l := c.streams[frame.Header().StreamID]
		switch f := frame.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				c.framer.WriteSettingsAck()
			}
		case *http2.PingFrame:
			if !f.IsAck() {
				c.framer.WritePing(true, f.Data)
			}
		case *http2.MetaHeadersFrame:
			if l != nil {
				l.status, _ = strconv.Atoi(f.PseudoValue("status"))
				l.read(f.StreamEnded())
			}
		case *http2.DataFrame:
			if l != nil {
				l.read(f.StreamEnded())
			}
		case *http2.RSTStreamFrame:
			if l != nil {
				l.status = 0
				l.read(true)
			}
		}
		c.mu.Unlock()
	}
}

func (c *h2Conn) ended() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// encode returns the header of r in HPACK. Only the lines of r itself enter the dynamic
// table, so that a long line is sent once and then repeated in a single byte.
func (c *h2Conn) encode(r request) ([]byte, error) {
	c.block.Reset()
	host := r.host
	if host == "" {
		host = c.conn.RemoteAddr().String()
	}
	for _, f := range [][2]string{
		{":method", "POST"}, {":scheme", "https"}, {":authority", host}, {":path", r.path},
		{"content-length", strconv.Itoa(len(r.body))},
	} {
		if err := c.encoder.WriteField(hpack.HeaderField{Name: f[0], Value: f[1], Sensitive: true}); err != nil {
			return nil, err
		}
	}
	for _, f := range r.header {
		if err := c.encoder.WriteField(f); err != nil {
			return nil, err
		}
	}
	return c.block.Bytes(), nil
}

func (c *h2Conn) close() {
	c.conn.Close()
	<-c.done
}

// An h2Line is a stream. The lock of the connection guards its status.
type h2Line struct {
	conn     *h2Conn
	id       uint32
	status   int
	answered chan int
}

// read records that a part of the answer has been read.
func (l *h2Line) read(end bool) {
	if end {
		delete(l.conn.streams, l.id)
		l.answered <- l.status
	}
}

func (l *h2Line) head(r request) error {
	l.conn.mu.Lock()
	defer l.conn.mu.Unlock()
	block, err := l.conn.encode(r)
	if err != nil {
		return err
	}
	return l.start(block, r.body == "")
}

// start sends block as the header of the stream.
func (l *h2Line) start(block []byte, end bool) error {
	c := l.conn
	l.id = c.next
	c.next += 2
	c.streams[l.id] = l
	first := block[:min(len(block), frameBytes)]
	block = block[len(first):]
	err := c.framer.WriteHeaders(http2.HeadersFrameParam{
		StreamID: l.id, BlockFragment: first, EndHeaders: len(block) == 0, EndStream: end,
	})
	for err == nil && len(block) > 0 {
		next := block[:min(len(block), frameBytes)]
		block = block[len(next):]
		err = c.framer.WriteContinuation(l.id, len(block) == 0, next)
	}
	return err
}

func (l *h2Line) send(part string, last bool) error {
	l.conn.mu.Lock()
	defer l.conn.mu.Unlock()
	for {
		n := min(len(part), frameBytes)
		err := l.conn.framer.WriteData(l.id, last && n == len(part), []byte(part[:n]))
		part = part[n:]
		if err != nil || part == "" {
			return err
		}
	}
}

func (l *h2Line) answer() (int, error) {
	tooLong := time.NewTimer(patience)
	defer tooLong.Stop()
	select {
	case status := <-l.answered:
		if status == 0 {
			return 0, errors.New("the stream was reset")
		}
		return status, nil
	case <-l.conn.done:
		return 0, errors.New("the connection has ended")
	case <-tooLong.C:
		return 0, errors.New("there is no answer")
	}
}

func (l *h2Line) hangUp() {
	l.conn.mu.Lock()
	defer l.conn.mu.Unlock()
	delete(l.conn.streams, l.id)
	l.conn.framer.WriteRSTStream(l.id, http2.ErrCodeCancel)
}
